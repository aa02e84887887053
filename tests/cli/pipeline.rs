//! The whole story on a few small images.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{dataset, run, small};

#[test]
fn a_run_trains_quantizes_and_is_evaluated() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
    let report = run(&small("train", &[&places[..], &["--json"]].concat())).code(0).json();
    assert_eq!(report["outcome"], "finished");
    assert_eq!(report["synthetic_data"], true);
    assert_eq!(report["global_step"], 2 * 4 + 2 * 4);
    let layers = report["stages"][1]["layers"].as_array().unwrap();
    assert!(!layers.is_empty());
    for layer in layers {
        assert_eq!(
            (&layer["bits"], &layer["num_levels"]),
            (&Value::from(2), &Value::from(3)),
            "{layer}"
        );
        assert_eq!(layer["frozen_fraction"], 1.0, "{layer}");
        assert!(layer["levels_in_use"].as_u64().unwrap() <= 3, "{layer}");
        assert_eq!(layer["activations"]["quantizing"], true, "{layer}");
    }

    let exp = logs.join("SwissCube/WidedepthTiny/exp000");
    for file in [
        "config.json",
        "provenance.json",
        "metrics.jsonl",
        "checkpoints/stage_0_full_precision.safetensors",
        "checkpoints/stage_1_fpn.safetensors",
        "plots/loss.svg",
        "plots/loss.png",
    ] {
        assert!(exp.join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_dir(exp.join("tensorboard")).unwrap().count(), 1);
    let provenance: Value =
        serde_json::from_slice(&fs::read(exp.join("provenance.json")).unwrap()).unwrap();
    assert!(provenance["starts"][0]["command"].as_array().unwrap().len() > 5);

    evaluate(&exp, &places);
}

fn evaluate(exp: &Path, places: &[&str]) {
    let predictions = exp.join("predictions.jsonl");
    let args = ["test", "--topology", "WidedepthTiny", "--device", "cpu", "--all-stages", "--json"];
    let wanted =
        ["--predictions", predictions.to_str().unwrap(), "--set", "data.CONFIDENCE_TH=0.001"];
    let report = run(&[&args[..], places, &wanted].concat()).code(0).json();
    let names: Vec<&str> = (report["evaluations"].as_array().unwrap().iter())
        .map(|e| e["report"]["name"].as_str().unwrap())
        .collect();
    assert_eq!(names[0], "full precision");
    assert!(names[1].starts_with("fpn 2-bit (3 levels)"), "{names:?}");
    for evaluation in report["evaluations"].as_array().unwrap() {
        assert_eq!(evaluation["report"]["dataset"]["synthetic"], true);
        assert_eq!(evaluation["report"]["dataset"]["num_images"], 6);
        let file = evaluation["predictions"].as_str().unwrap();
        let text = fs::read_to_string(file).unwrap();
        assert!(text.lines().count() <= 6, "{file}");
        for line in text.lines() {
            let p: Value = serde_json::from_str(line).unwrap();
            assert!(p["image"].as_str().unwrap().starts_with("testing/"), "{p}");
            assert_eq!(p["R"].as_array().unwrap().len(), 9, "{p}");
            assert_eq!(p["t"].as_array().unwrap().len(), 3, "{p}");
            for key in ["class", "score", "inliers", "residual"] {
                assert!(p[key].is_number(), "{key} in {p}");
            }
        }
    }
    let folder = exp.join("eval/test");
    for file in [
        "metrics.json",
        "table.txt",
        "table.md",
        "accuracy_over_depth.svg",
        "accuracy_over_depth.png",
    ] {
        assert!(folder.join(file).is_file(), "{file}");
    }
    assert_eq!(fs::read_dir(folder.join("overlays_0")).unwrap().count(), 6);
    let table = fs::read_to_string(folder.join("table.txt")).unwrap();
    for word in ["near", "medium", "far", "all", "ADD-0.1d", "synthetic"] {
        assert!(table.contains(word), "{word} is missing in\n{table}");
    }
    // A checkpoint carries its config: no topology needed.
    let checkpoint = exp.join("checkpoints/stage_1_fpn.safetensors");
    let alone = ["test", "--device", "cpu", "--json", "--checkpoint", checkpoint.to_str().unwrap()];
    let again = run(&[&alone[..], &places[..2], &["--set", "data.CONFIDENCE_TH=0.001"]].concat())
        .code(0)
        .json();
    assert_eq!(
        again["evaluations"][0]["report"]["table"],
        report["evaluations"][1]["report"]["table"]
    );
    let seen = run(&["inspect", checkpoint.to_str().unwrap(), "--json"]).code(0).json();
    assert!(seen["quantized"][0].as_str().unwrap().contains("fpn 2-bit"), "{seen}");
    weights_alone(exp, places, &report["evaluations"][0]["report"]["table"]);
}

/// Exported weights carry no config, and score as the checkpoint they came from.
fn weights_alone(exp: &Path, places: &[&str], expected: &Value) {
    let out = exp.join("weights.safetensors");
    let out = out.to_str().unwrap();
    let stage = |name: &str| exp.join("checkpoints").join(name).display().to_string();
    let float = stage("stage_0_full_precision.safetensors");
    let exported = run(&["export", &float, "--out", out, "--json"]).code(0).json();
    assert!(exported["bytes"].as_u64().unwrap() < fs::metadata(&float).unwrap().len());
    run(&["export", &float, "--out", out]).code(1).says(&["already exists"]);
    let wanted = ["--checkpoint", out, "--set", "data.CONFIDENCE_TH=0.001", "--json"];
    let report = run(&small("test", &[&places[..2], &wanted[..]].concat())).code(0).json();
    assert_eq!(report["evaluations"][0]["report"]["table"], *expected);
    let other = exp.join("other.safetensors");
    run(&["export", &stage("stage_1_fpn.safetensors"), "--out", other.to_str().unwrap()])
        .code(1)
        .says(&["activations of fpn."]);
}

#[test]
fn bad_data_is_named_and_skipped_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    copy(dataset(), &data);
    let list = fs::read_to_string(data.join("training.txt")).unwrap();
    let first = list.lines().next().unwrap();
    let bytes = fs::read(data.join(first)).unwrap();
    fs::write(data.join(first), &bytes[..bytes.len() / 2]).unwrap();
    let logs = dir.path().join("logs");
    let places = ["--data", data.to_str().unwrap(), "--logs", logs.to_str().unwrap()];
    run(&small("train", &places)).code(1).says(&[first]);
    run(&small("train", &[&places[..], &["--skip-bad"]].concat())).code(0);

    fs::write(data.join("validation.txt"), "").unwrap();
    run(&small("train", &places)).code(1).says(&["validation.txt"]);
    fs::remove_file(data.join("validation.txt")).unwrap();
    run(&small("train", &places)).code(1).says(&["validation.txt", "mqat synth"]);
}

#[test]
fn missing_things_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().to_str().unwrap();
    let data = dataset().to_str().unwrap();
    run(&["test", "--data", data, "--logs", logs])
        .code(1)
        .says(&["no experiment", "train one first"]);
    run(&["train", "--data", data, "--logs", logs, "--resume"]).code(1).says(&["no experiment"]);
    run(&["test", "--data", data, "--checkpoint", "nowhere.safetensors"])
        .code(1)
        .says(&["nowhere.safetensors"]);
    run(&small(
        "train",
        &["--data", data, "--logs", logs, "--set", "training.full_precision.batch_size=17"],
    ))
    .code(1)
    .says(&["bs_train"]);
    run(&small("train", &["--data", data, "--logs", logs, "--set", "quantize.flow.0.module=fnp"]))
        .code(1)
        .says(&["quantize.flow.0.module", "fpn"]);
    let pretrained =
        ["--set", "experiment.pretrained=true", "--set", "experiment.url=weights.safetensors"];
    run(&small("train", &[&["--data", data, "--logs", logs][..], &pretrained].concat()))
        .code(1)
        .says(&["weights.safetensors", "experiment.pretrained=false"]);
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let target = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy(&path, &target);
        } else {
            fs::copy(&path, &target).unwrap();
        }
    }
}
