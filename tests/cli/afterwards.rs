//! Modules that go on learning after their stage, watched weights and a teacher: trained, stopped, resumed, exported.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{dataset, run, small, tensors};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A plan of two stages with learnt steps; the first one goes on learning, and its weights are watched.
fn plan(dir: &Path) -> PathBuf {
    let stage = |module: &str, afterwards: &str, oscillation: Value| {
        serde_json::json!({
            "module": module, "epochs": 2, "afterwards": afterwards,
            "weights": {"method": "lsq", "bits": 3, "oscillation": oscillation},
            "activations": {"method": "pact", "bits": 8, "quant_start_epoch": 0},
            "lr": {"base": 0.05, "decay": "constant"},
        })
    };
    let watched = serde_json::json!({"freeze_above": 0.05, "momentum": 0.1});
    let flow = [stage("fpn", "train", watched), stage("head", "freeze", Value::Null)];
    let file = dir.join("plan.json");
    fs::write(&file, serde_json::json!({"format": 1, "flow": flow}).to_string()).unwrap();
    file
}

/// Float weights to start from.
fn weights(dir: &Path) -> PathBuf {
    let logs = dir.join("float");
    let places = ["--data", text(dataset()), "--logs", text(&logs)];
    let short = [
        "--set",
        "quantize.flow=[]",
        "--set",
        "training.full_precision={\"name\":\"full_precision\",\"epochs\":1,\"batch_size\":4}",
    ];
    run(&small("train", &[&places[..], &short].concat())).code(0);
    logs.join("SwissCube/WidedepthTiny/exp000/checkpoints/stage_0_full_precision.safetensors")
}

fn value(all: &[(String, Vec<u8>)], name: &str) -> Vec<u8> {
    all.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}")).1.clone()
}

#[test]
fn a_module_that_trains_on_is_resumed_audited_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    let (plan, start) = (plan(dir.path()), weights(dir.path()));
    let url = format!("experiment.url={}", start.display());
    let train = |logs: &Path, more: &[&str]| {
        let fixed = [
            "--data",
            text(dataset()),
            "--logs",
            text(logs),
            "--flow",
            text(&plan),
            "--set",
            "training.full_precision=null",
            "--set",
            "experiment.pretrained=true",
            "--set",
            &url,
            "--set",
            "training.distill={\"weight_cls\":0.01,\"weight_reg\":0.1}",
        ];
        run(&small("train", &[&fixed, more].concat())).code(0);
        logs.join("SwissCube/WidedepthTiny/exp000")
    };
    let whole = train(&dir.path().join("whole"), &[]);
    let logs = dir.path().join("stopped");
    let stopped = train(&logs, &["--max-steps", "11"]);
    let places = ["--data", text(dataset()), "--logs", text(&logs)];
    let resume = ["train", "--topology", "WidedepthTiny", "--device", "cpu", "--resume"];
    // another file in the place of the teacher's
    let kept = dir.path().join("kept.safetensors");
    fs::rename(&start, &kept).unwrap();
    run(&[&resume[..], &places].concat()).code(1).says(&["teacher", "no file"]);
    fs::copy(whole.join("checkpoints/stage_1_head.safetensors"), &start).unwrap();
    run(&[&resume[..], &places].concat()).code(1).says(&["teacher", "quantized already"]);
    fs::rename(&kept, &start).unwrap();
    run(&[&resume[..], &places].concat()).code(0);

    let end = |exp: &Path, stage: &str| exp.join(format!("checkpoints/stage_{stage}.safetensors"));
    let (first, last) = (tensors(end(&whole, "0_fpn")), tensors(end(&whole, "1_head")));
    assert_eq!(last, tensors(end(&stopped, "1_head")), "stopped and resumed");
    for name in ["fpn.out_convs.2.weight", "quant.fpn.out_convs.2.weight_step"] {
        assert_ne!(value(&first, name), value(&last, name), "{name} rests after its stage");
    }
    assert!(last.iter().any(|(name, _)| name == "quant.fpn.out_convs.2.osc_code"));

    let metrics = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let modules: Vec<(&Value, &Value)> = lines
        .iter()
        .filter(|l| l["kind"] == "telemetry")
        .map(|l| (&l["stage"], &l["module"]))
        .collect();
    let expected = [(0, "fpn"), (0, "fpn"), (1, "fpn"), (1, "head"), (1, "fpn"), (1, "head")];
    assert!(
        modules.iter().zip(expected).all(|((s, m), (stage, name))| **s == stage && **m == name)
    );
    assert_eq!(modules.len(), expected.len());
    assert!(
        lines.iter().filter(|l| l["kind"] == "step").all(|l| l["loss_distill_cls"].is_number())
    );
    let of_fpn = lines.iter().find(|l| l["kind"] == "telemetry").unwrap();
    assert!(of_fpn["num_frozen_by_oscillation"].is_number(), "{of_fpn}");

    for stage in ["0_fpn", "1_head"] {
        let file = end(&whole, stage);
        run(&["audit", text(&file)]).code(0);
        let packed = dir.path().join(format!("{stage}.mqat"));
        run(&["export", text(&file), "--format", "packed", "--out", text(&packed)]).code(0);
        run(&["audit", text(&packed)]).code(0);
        let other = dir.path().join("other.mqat");
        let export = ["export", text(&file), "--format", "packed", "--out", text(&other)];
        let refused = run(&[&export[..], &["--boxes", "boxes.json"]].concat()).code(1);
        refused.says(&["--boxes", "carries its objects"]);
        assert!(!other.exists());
        run(&["verify", text(&file), text(&packed), "--data", text(dataset())]).code(0);
    }
}

#[test]
fn a_teacher_fills_its_whole_network_even_where_the_student_need_not() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(weights(dir.path())).unwrap();
    let whole = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = whole
        .tensors()
        .into_iter()
        .filter(|(name, _)| !name.starts_with("head.cls_logits.") && !name.starts_with("optim."));
    let part = dir.path().join("part.safetensors");
    fs::write(&part, safetensors::serialize(kept, None).unwrap()).unwrap();
    let (url, logs) = (format!("experiment.url={}", part.display()), dir.path().join("logs"));
    let train = |distill: &str| {
        let distill = format!("training.distill={distill}");
        let sets = [
            "training.full_precision=null",
            "experiment.pretrained=true",
            "experiment.loose=true",
            &url,
            &distill,
        ];
        let sets = sets.iter().flat_map(|set| ["--set", set]);
        let places = ["--data", text(dataset()), "--logs", text(&logs), "--max-steps", "1"];
        let more: Vec<&str> = places.into_iter().chain(sets).collect();
        run(&small("train", &more))
    };
    train("{}").code(1).says(&["training.distill", "experiment.loose", "head.cls_logits"]);
    train("null").code(0);
}

/// `mqat plan` with the small settings; it computes nothing, so that it has no device.
fn planned<'a>(more: &[&'a str]) -> Vec<&'a str> {
    small("plan", more).into_iter().filter(|arg| !["--device", "cpu"].contains(arg)).collect()
}

#[test]
fn the_plan_says_what_is_trained_on_and_mistakes_say_why() {
    let dir = tempfile::tempdir().unwrap();
    let file = plan(dir.path());
    let shown = run(&planned(&["--images", "16", "--flow", text(&file)])).code(0).stdout();
    assert!(shown.contains("  fpn of stage 1 is trained on\n"), "{shown}");
    let asked = ["--images", "16", "--json", "--flow", text(&file)];
    let json = run(&planned(&asked)).code(0).json();
    let attached = json["stages"][2]["attached"].clone();
    assert_eq!(
        attached,
        serde_json::json!([
            {"module": "fpn", "stage": 1, "state": "trained"},
            {"module": "head", "stage": 2, "state": "quantized"},
        ])
    );
    let refused = |set: &str, parts: &[&str]| {
        run(&planned(&["--images", "16", "--set", set])).code(1).says(parts);
    };
    refused(
        "quantize.flow.0.afterwards=train",
        &["quantize.flow.0.afterwards: is train, but method inq", "lsq, uniform, dorefa, ana"],
    );
    refused(
        "quantize.flow.0.weights.oscillation={\"momentum\":0.1}",
        &["quantize.flow.0.weights.oscillation: is for fake quantization", "inq"],
    );
    refused("training.distill={}", &["training.distill: the teacher", "experiment.pretrained"]);
}
