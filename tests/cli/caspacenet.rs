//! The second family of networks: from the first one's weights to quantized pyramids, files and a search, by the same
//! commands.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::onnx::{library, run_ort};
use crate::support::{SMALL, dataset, run, small, tensors};

/// Short stages that keep the backbone, and 2 bits for both pyramids.
const STAGES: &[&str] = &[
    "--set",
    "training.full_precision={\"name\":\"full_precision\",\"epochs\":1,\"batch_size\":4,\"frozen\":\"backbone\"}",
    "--set",
    "quantize.flow=[{\"module\":\"fpn\",\"epochs\":2,\"frozen\":\"backbone\",\
     \"weights\":{\"bits\":2,\"schedule\":{\"0\":0.5,\"1\":1}}}]",
];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Weights of the first family, trained for an epoch.
fn start() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let logs = tempfile::tempdir().unwrap().keep();
        let short = [
            "--set",
            "quantize.flow=[]",
            "--set",
            "training.full_precision={\"name\":\"full_precision\",\"epochs\":1,\"batch_size\":4}",
        ];
        let places = ["--data", text(dataset()), "--logs", text(&logs)];
        run(&small("train", &[&places[..], &short].concat())).code(0);
        logs.join("SwissCube/WidedepthTiny/exp000/checkpoints/stage_0_full_precision.safetensors")
    })
}

/// `command` with the small network of the second family, and `more`.
fn second<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let (topology, rest) = SMALL.split_at(2);
    assert_eq!(topology, ["--topology", "WidedepthTiny"]);
    [&[command, "--topology", "CaSpaceNetTiny"], rest, STAGES, more].concat()
}

/// A run that begins with the first family's weights; its folder.
fn train(logs: &Path, more: &[&str]) -> PathBuf {
    let url = format!("experiment.url={}", start().display());
    let own = [
        "--data",
        text(dataset()),
        "--logs",
        text(logs),
        "--set",
        "experiment.pretrained=true",
        "--set",
        &url,
    ];
    run(&second("train", &[&own, more].concat())).code(0);
    logs.join("SwissCube/CaSpaceNetTiny/exp000")
}

fn last(exp: &Path) -> PathBuf {
    exp.join("checkpoints/stage_1_fpn.safetensors")
}

/// A whole run, trained once.
fn trained() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| train(&tempfile::tempdir().unwrap().keep(), &[]))
}

fn module<'a>(
    all: &'a [(String, Vec<u8>)],
    name: &'a str,
) -> impl Iterator<Item = &'a (String, Vec<u8>)> {
    all.iter().filter(move |(key, _)| key.split('.').next() == Some(name))
}

#[test]
fn a_run_keeps_the_backbone_and_ends_the_same_after_a_stop() {
    let whole = tensors(last(trained()));
    let before = tensors(start());
    assert!(module(&before, "backbone").eq(module(&whole, "backbone")), "the backbone has changed");
    for name in ["fpn", "head"] {
        let changed = module(&before, name).zip(module(&whole, name)).any(|(a, b)| a != b);
        assert!(changed, "{name} has not learnt");
    }
    // They begin at 0.
    let is_last = |key: &str| key.contains(".out_convs.") && key.ends_with(".weight");
    let ends: Vec<_> = module(&whole, "fpn_sub").filter(|(key, _)| is_last(key)).collect();
    assert!(!ends.is_empty());
    assert!(ends.iter().all(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)));

    let dir = tempfile::tempdir().unwrap();
    let exp = train(dir.path(), &["--max-steps", "2"]);
    let resume = |more: &[&str]| {
        let all =
            ["train", "--topology", "CaSpaceNetTiny", "--device", "cpu", "--resume", "--logs"];
        run(&[&all[..], &[text(dir.path())], more].concat()).code(0);
    };
    resume(&["--max-steps", "7"]);
    resume(&[]);
    assert_eq!(whole, tensors(last(&exp)), "stopped and resumed");

    let metrics = fs::read_to_string(exp.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let steps: Vec<_> = lines.iter().filter(|line| line["kind"] == "step").collect();
    assert!(
        !steps.is_empty() && steps.iter().all(|step| step["loss_feature"].as_f64().unwrap() > 0.0)
    );
}

#[test]
fn both_pyramids_are_one_module_in_every_command() {
    let checkpoint = last(trained());
    let (data, dir) = (text(dataset()), tempfile::tempdir().unwrap());
    let at = |name: &str| dir.path().join(name).display().to_string();
    let audit = run(&["audit", text(&checkpoint), "--json"]).code(0).json();
    let layers = audit.to_string().matches("fpn_sub.out_convs.2").count();
    assert!(layers > 0, "{audit}");
    let inspected = run(&["inspect", text(&checkpoint), "--json"]).code(0).json();
    assert_eq!(inspected["quantized"], serde_json::json!(["fpn 2-bit (3 levels)"]));

    let (packed, onnx) = (at("net.mqat"), at("net.onnx"));
    run(&["export", text(&checkpoint), "--format", "packed", "--out", &packed]).code(0);
    run(&["audit", &packed]).code(0);
    let test = |file: &str, predictions: &str| {
        let places = ["test", "--device", "cpu", "--data", data, "--checkpoint", file];
        run(&[&places[..], &["--predictions", predictions]].concat()).code(0);
        fs::read_to_string(predictions).unwrap()
    };
    let (a, b) = (test(text(&checkpoint), &at("a.csv")), test(&packed, &at("b.csv")));
    assert_eq!(a, b, "poses of the packed file");

    let export = ["export", text(&checkpoint), "--format", "onnx", "--out", &onnx, "--json"];
    let written = run(&[&export[..], &["--carrier", "true-bits"]].concat()).code(0).json();
    assert_eq!(written["onnx"]["weights"]["int2"], 16, "{written}");
    if let Some(library) = library() {
        run_ort(&library, &["verify", text(&checkpoint), &onnx, "--data", data]).code(0);
    }
}

#[test]
fn a_search_measures_and_plans_both_pyramids() {
    let dir = tempfile::tempdir().unwrap();
    let plan = dir.path().join("plan.json");
    let from = trained().join("checkpoints/stage_0_full_precision.safetensors");
    let own = [
        "--data",
        text(dataset()),
        "--logs",
        text(dir.path()),
        "--from",
        text(&from),
        "--modules",
        "fpn,head",
        "--bits",
        "2,8",
        "--target-compression",
        "4",
        "--trace-images",
        "4",
        "--trace-batch",
        "4",
        "--trace-probes",
        "2",
        "--out",
        text(&plan),
        "--json",
    ];
    run(&second("search", &own)).code(0);
    let plan: Value = serde_json::from_str(&fs::read_to_string(&plan).unwrap()).unwrap();
    let mut modules: Vec<&Value> =
        plan["flow"].as_array().unwrap().iter().map(|stage| &stage["module"]).collect();
    modules.sort_by_key(|module| module.to_string());
    assert_eq!(modules, ["fpn", "head"], "{plan}");
}

#[test]
fn a_file_of_the_first_family_is_told_from_one_of_the_second() {
    let start = text(start());
    let test = ["test", "--device", "cpu", "--data", text(dataset()), "--checkpoint"];
    let config = trained().join("config.json");
    let as_second = [start, "--config", text(&config)];
    run(&[&test[..], &as_second].concat())
        .code(1)
        .says(&["it has no second pyramid (fpn_sub)", "experiment.loose"]);
    let places = ["plan", "--topology", "CaSpaceNetTiny", "--images", "16"];
    let neck = ["--set", "training.full_precision.frozen=neck"];
    run(&[&places[..], &neck].concat())
        .code(1)
        .says(&["training.full_precision.frozen: \"neck\" holds nothing of the network"]);
    let plan = run(&[&places[..], &["--flow", "fpn:2,backbone:8"]].concat()).code(0).stdout();
    assert_eq!(plan.matches("  backbone stays as it is\n").count(), 2, "{plan}");
}
