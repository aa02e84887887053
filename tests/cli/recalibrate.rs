//! Statistics of batch norms: estimated by training, told by files, estimated again by `mqat recalibrate`.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::support::{dataset, run, small, tensors};

/// Of `SMALL`, for files without a config: batches of 4 of 16 images.
const BATCHES_OF_AN_EPOCH: u64 = 4;

fn data() -> &'static str {
    dataset().to_str().unwrap()
}

/// The checkpoints of a small run: its float stage, and its stage with a quantized FPN.
fn train(more: &[&str]) -> [String; 2] {
    let logs = tempfile::tempdir().unwrap().keep();
    let places = ["--data", data(), "--logs", logs.to_str().unwrap()];
    run(&small("train", &[&places[..], more].concat())).code(0);
    let folder = logs.join("SwissCube/WidedepthTiny/exp000/checkpoints");
    ["stage_0_full_precision", "stage_1_fpn"]
        .map(|name| folder.join(name).with_extension("safetensors").display().to_string())
}

/// A run whose statistics are those of training.
fn stale() -> &'static [String; 2] {
    static MADE: OnceLock<[String; 2]> = OnceLock::new();
    MADE.get_or_init(|| train(&["--set", "training.bn_batches=0"]))
}

fn beside(file: &str, name: &str) -> String {
    Path::new(file).with_file_name(name).display().to_string()
}

fn recalibrate(file: &str, out: &str, more: &[&str]) -> Value {
    let args = ["recalibrate", file, "--out", out, "--data", data(), "--device", "cpu", "--json"];
    run(&[&args[..], more].concat()).code(0).json()
}

fn inspect(file: &str) -> Value {
    run(&["inspect", file, "--json"]).code(0).json()
}

fn largest(report: &Value, when: &str) -> f64 {
    let layers = report["layers"].as_array().unwrap();
    layers.iter().map(|l| l[when]["mean_shift_sd"].as_f64().unwrap()).fold(0.0, f64::max)
}

#[test]
fn a_checkpoint_gets_new_statistics_and_nothing_else() {
    let [_, quantized] = stale();
    let out = beside(quantized, "new.safetensors");
    let report = recalibrate(quantized, &out, &["--batches", "40"]);
    assert_eq!(
        (report["kind"].as_str(), report["num_batches"].as_u64()),
        (Some("checkpoint"), Some(40))
    );
    assert_eq!(report["batch_size"], 4);
    // Sixteen steps of momentum 0.1 lag behind; ten passes over the images differ by their augmentation alone.
    let (before, after) = (largest(&report, "before"), largest(&report, "after"));
    assert!(before > 0.2 && after < 0.7 * before, "{before} {after}");
    let (old, new) = (tensors(quantized), tensors(&out));
    assert_eq!(old.len(), new.len());
    for ((name, a), (same, b)) in old.iter().zip(&new) {
        assert_eq!(name, same);
        let is_statistic = name.contains(".running_") && !name.starts_with("optim.");
        assert_eq!(a != b, is_statistic, "{name}");
    }
    assert_eq!(inspect(quantized)["batch_norm"], Value::Null);
    assert_eq!(inspect(&out)["batch_norm"]["reestimated_on"], 40);
    // The same again is the same file; what lies there is replaced only if asked for.
    let args = ["recalibrate", quantized, "--out", &out, "--data", data(), "--device", "cpu"];
    let bytes = std::fs::read(&out).unwrap();
    run(&args).code(1).says(&["already exists", "--overwrite"]);
    run(&[&args[..], &["--overwrite", "--batches", "40"]].concat()).code(0);
    assert_eq!(std::fs::read(&out).unwrap(), bytes);
    // Without --out it lies beside the file.
    let table = run(&["recalibrate", quantized, "--data", data(), "--batches", "1"]).code(0);
    assert!(table.stdout().contains("init_block.bn"), "{}", table.stdout());
    assert!(PathBuf::from(beside(quantized, "stage_1_fpn_recalibrated.safetensors")).is_file());
}

#[test]
fn every_kind_of_file_gets_the_statistics_of_its_checkpoint() {
    let [float, quantized] = stale();
    let shared = ["--batches", "3"];
    for (of, format, ending) in [
        (float, "safetensors", "bare.safetensors"),
        (float, "pth", "bare.pth"),
        (quantized, "packed", "net.mqat"),
    ] {
        let reference = beside(of, &format!("reference_{format}.safetensors"));
        let expected = recalibrate(of, &reference, &shared);
        let (file, out) = (beside(of, ending), beside(of, &format!("new_{ending}")));
        run(&["export", of, "--format", format, "--out", &file]).code(0);
        // Files without a config are told the network and its batches.
        let config = small("", &[]);
        let named: &[&str] = if format == "packed" { &[] } else { &config[1..] };
        let named: Vec<&str> =
            named.iter().copied().filter(|a| !["--device", "cpu"].contains(a)).collect();
        let report = recalibrate(&file, &out, &[&shared[..], &named].concat());
        for (a, b) in
            report["layers"].as_array().unwrap().iter().zip(expected["layers"].as_array().unwrap())
        {
            let [a, b] = [a, b].map(|l| l["before"]["mean_shift_sd"].as_f64().unwrap());
            assert!((a - b).abs() < 1e-3 * (1.0 + b), "{format}: {a} {b}");
        }
        assert_eq!(inspect(&file)["kind"], inspect(&out)["kind"]);
        let config = if format == "packed" { vec![] } else { named };
        let verify =
            ["verify", &reference, &out, "--data", data(), "--device", "cpu", "--split", "valid"];
        run(&[&verify[..], &config].concat()).code(0);
    }
}

#[test]
fn files_say_that_training_estimated_them_again() {
    let [float, quantized] = train(&[]).map(|file| (inspect(&file)["batch_norm"].clone(), file));
    assert_eq!(float.0, Value::Null);
    assert_eq!(quantized.0["reestimated_on"], BATCHES_OF_AN_EPOCH); // at most those of an epoch
    assert_eq!((&quantized.0["batch_size"], &quantized.0["global_step"]), (&4.into(), &16.into()));
    let shift = &quantized.0["largest_shift"];
    assert!(shift["mean_shift_sd"].as_f64().unwrap() > 0.0, "{shift}");
    for (format, name) in [("packed", "net.mqat"), ("onnx", "net.onnx")] {
        let out = beside(&quantized.1, name);
        run(&["export", &quantized.1, "--format", format, "--out", &out]).code(0);
        assert_eq!(inspect(&out)["batch_norm"], quantized.0, "{format}");
    }
    let text = run(&["inspect", &quantized.1]).code(0).stdout();
    assert!(text.contains("batch-norm statistics estimated on 4 training batches of 4"), "{text}");
    let onnx = beside(&quantized.1, "net.onnx");
    let data = ["--data", data()];
    run(&[&["recalibrate", &onnx][..], &data].concat())
        .code(1)
        .says(&["is an ONNX file", "recalibrate the checkpoint"]);
    run(&[&["audit", &onnx, "--bn-batches", "2"][..], &data].concat())
        .code(1)
        .says(&["--bn-batches cannot act"]);
    let folded = beside(&quantized.1, "folded.mqat");
    run(&["export", &quantized.1, "--format", "packed", "--fold-bn", "--out", &folded]).code(0);
    run(&[&["recalibrate", &folded][..], &data].concat())
        .code(1)
        .says(&["--fold-bn", "recalibrate the checkpoint"]);
}

#[test]
fn an_audit_warns_of_stale_statistics_until_they_are_estimated_again() {
    let [_, quantized] = stale();
    let audit = |file: &str| {
        run(&["audit", file, "--bn-batches", "12", "--data", data(), "--json"]).code(0)
    };
    let stale = audit(quantized).says(&["are stale", "mqat recalibrate"]);
    let report = stale.json();
    assert_eq!(report["batch_norms"]["num_batches"], 12);
    let large = report["batch_norms"]["large"].as_array().unwrap().len();
    assert!(large > 0, "{report}");
    let out = beside(quantized, "audited.safetensors");
    recalibrate(quantized, &out, &["--batches", "40"]);
    let fresh = audit(&out);
    assert!(!fresh.stderr().contains("stale"), "{}", fresh.stderr());
    assert_eq!(fresh.json()["batch_norms"]["large"].as_array().unwrap().len(), 0);
    run(&["audit", quantized, "--data", data()]).code(2).says(&["--bn-batches"]);
}
