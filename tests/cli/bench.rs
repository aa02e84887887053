//! `mqat bench`: the documents and tables, and what is refused. What the times are is nobody's promise here.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{Ran, SMALL, dataset, mqat, run};

/// Shipped full-precision weights.
const TINY: &str = "problems/SwissCube/WidedepthTiny/pretrained.safetensors";
/// What makes a bench quick.
const QUICK: &[&str] = &["--rounds", "3", "--warm-up", "0"];

/// The small network; what does not compute with libtorch takes no device.
fn small<'a>(bench: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let device = ["--device", "cpu"];
    let no_device = SMALL.iter().filter(|arg| !device.contains(arg)).copied();
    let own: &[&str] = if ["loader", "pnp"].contains(&bench) { &[] } else { &device };
    ["bench", bench].into_iter().chain(no_device).chain(own.iter().chain(more).copied()).collect()
}

/// Every subject has as many samples as rounds, and numbers that follow from them; returns the subjects' names.
#[track_caller]
fn check(report: &Value, bench: &str, rounds: usize) -> Vec<String> {
    assert_eq!((&report["bench"], &report["rounds"]), (&bench.into(), &rounds.into()));
    assert!(report["machine"]["cpus"].as_u64().unwrap() >= 1, "{}", report["machine"]);
    for key in ["cpu", "device", "mqat", "libtorch"] {
        assert!(report["machine"][key].is_string(), "{key}: {}", report["machine"]);
    }
    assert!(report["command"].as_array().unwrap().contains(&"bench".into()));
    let number = |v: &Value| v.as_f64().unwrap_or_else(|| panic!("{v} in {report}"));
    let subjects = report["subjects"].as_array().unwrap();
    let of = |subject: &Value| -> Vec<f64> {
        subject["samples_s"].as_array().unwrap().iter().map(number).collect()
    };
    for subject in subjects {
        let samples = of(subject);
        assert_eq!(samples.len(), rounds, "{subject}");
        assert!(samples.iter().all(|s| *s > 0.0), "{subject}");
        for spread in ["call_s", "seconds_per_item", "over_first"] {
            let at = |key| number(&subject[spread][key]);
            let all = ["min", "q1", "median", "q3", "max"].map(at);
            assert!(all.is_sorted(), "{spread} of {subject}");
        }
        let least = samples.iter().copied().fold(f64::INFINITY, f64::min);
        let most = samples.iter().copied().fold(0.0, f64::max);
        assert_eq!(number(&subject["call_s"]["min"]), least);
        assert_eq!(number(&subject["call_s"]["max"]), most);
        let items = number(&subject["items_per_call"]);
        let per_item = number(&subject["call_s"]["median"]) / items;
        let told = number(&subject["seconds_per_item"]["median"]);
        assert!((told / per_item - 1.0).abs() < 1e-9, "{subject}");
        assert!((number(&subject["items_per_s"]) * told - 1.0).abs() < 1e-9, "{subject}");
        // the ratios are those of equal rounds
        let first_items = number(&subjects[0]["items_per_call"]);
        let ratio = |(own, first): (&f64, &f64)| (own / items) / (first / first_items);
        let mut ratios: Vec<f64> = samples.iter().zip(&of(&subjects[0])).map(ratio).collect();
        ratios.sort_by(f64::total_cmp);
        let told = number(&subject["over_first"]["median"]);
        assert!((told / ratios[rounds / 2] - 1.0).abs() < 1e-9, "{subject}");
    }
    subjects.iter().map(|s| s["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn pnp_measures_every_combination_and_says_how_good_the_poses_are() {
    let options = ["--problems", "5", "--points", "16,80", "--noise", "0", "--outliers", "0,0.25"];
    let ran = run(&[&["bench", "pnp"], &options[..], QUICK, &["--json"]].concat()).code(0);
    let report = ran.json();
    let names = check(&report, "pnp", 3);
    assert_eq!((names.len(), names[1].as_str()), (4, "16 points, 0 px, 25 % outliers"));
    assert_eq!(report["subjects"][2]["details"]["solved_fraction"], 1.0);
    let ran = run(&[&["bench", "pnp"], &options[..], QUICK].concat()).code(0);
    assert!(ran.stdout().contains("s/problem"), "{}", ran.stdout());
    assert!(ran.stdout().contains("80 points, 0 px, 0 % outliers"), "{}", ran.stdout());
}

#[test]
fn forward_measures_settings_and_files_side_by_side() {
    let options = ["--batch", "1,2", "--threads", "1,2", "--json"];
    let report = run(&[&small("forward", QUICK)[..], &options].concat()).code(0).json();
    let names = check(&report, "forward", 3);
    assert_eq!(names.len(), 4);
    assert_eq!(names[3], "WidedepthTiny, 2 threads, batch 2");
    assert_eq!(report["subjects"][3]["items_per_call"], 2);
    assert_eq!(report["settings"]["size_px"], serde_json::json!([64, 64]));

    let folder = tempfile::tempdir().unwrap();
    let other = folder.path().join("other.pth");
    let other = other.to_str().unwrap();
    let topology = ["--topology", "WidedepthTiny"];
    run(&[&["export", TINY, "--format", "pth", "--out", other], &topology[..]].concat()).code(0);
    let files = ["--checkpoint", TINY, "--checkpoint", other, "--size", "64", "--device", "cpu"];
    let args = [&["bench", "forward"], &topology[..], &files, QUICK, &["--json"]].concat();
    let report = run(&args).code(0).json();
    assert_eq!(check(&report, "forward", 3), ["pretrained.safetensors", "other.pth"]);
    assert_eq!(report["subjects"][0]["details"]["network"], "full precision");
}

#[test]
fn updates_are_measured_float_first() {
    let data = ["--data", dataset().to_str().unwrap(), "--json"];
    let options = ["--method", "inq,lsq", "--bits", "w4a8", "--batch", "2"];
    let args = [&small("train-step", QUICK)[..], &data, &options].concat();
    let report = run(&args).code(0).json();
    assert_eq!(check(&report, "train-step", 3), ["float", "inq", "lsq"]);
    assert_eq!(
        (&report["settings"]["batch"], &report["settings"]["images"]),
        (&2.into(), &2.into())
    );
    assert_eq!(report["settings"]["synthetic_data"], true);
    let details = |i: usize| &report["subjects"][i]["details"];
    assert_eq!(
        (&details(0)["quantized_layers"], &details(0)["frozen_fraction"]),
        (&0.into(), &Value::Null)
    );
    let frozen = details(1)["frozen_fraction"].as_f64().unwrap();
    assert!((0.3..0.8).contains(&frozen), "{}", details(1));
    for i in [1, 2] {
        assert!(details(i)["quantized_layers"].as_u64().unwrap() > 10, "{}", details(i));
        assert_eq!(details(i)["quantized_activations"], details(i)["quantized_layers"]);
    }

    let flow = ["--flow", "fpn:2,head:4@lsq", "--batch", "2", "--threads", "1"];
    let report = run(&[&small("train-step", QUICK)[..], &data, &flow].concat()).code(0).json();
    assert_eq!(check(&report, "train-step", 3), ["float", "fpn", "head"]);
    assert_eq!(report["subjects"][2]["details"]["bits"], serde_json::json!([2, 4]));
}

#[test]
fn loading_is_measured_for_each_number_of_workers() {
    let data = dataset().to_str().unwrap();
    let options = ["--workers", "0,2", "--images", "4", "--data", data, "--json"];
    let report = run(&[&small("loader", QUICK)[..], &options].concat()).code(0).json();
    let names = check(&report, "loader", 3);
    assert_eq!(names[..2], ["0 workers, not augmented", "2 workers, not augmented"]);
    assert_eq!((names.len(), names[3].as_str()), (4, "2 workers, augmented"));
    assert_eq!(report["subjects"][0]["items_per_call"], 4);
}

#[test]
fn without_a_dataset_images_are_rendered_and_the_report_says_so() {
    let home = tempfile::tempdir().unwrap();
    let options = ["--workers", "1", "--augment", "on", "--images", "3", "--image-size", "64"];
    let args = [&small("loader", QUICK)[..], &options].concat();
    let mut command = mqat(&args);
    command.env("MQAT_HOME", home.path()).env("TMPDIR", home.path());
    let ran = Ran { line: format!("{command:?}"), output: command.output().unwrap() }.code(0);
    let text = ran.stdout();
    assert!(text.contains("synthetic: 3 of 64 x 64 px") && text.contains("images/s"), "{text}");
    // nothing stays
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 0);
}

/// The one line that an error is.
#[track_caller]
fn one_line(ran: Ran, parts: &[&str]) {
    let ran = ran.code(1).says(parts);
    let err = ran.stderr();
    assert_eq!(err.lines().filter(|l| l.starts_with("mqat: ")).count(), 1, "{err}");
    assert!(ran.stdout().is_empty());
}

#[test]
fn what_cannot_be_measured_is_refused_in_a_line() {
    run(&["bench"]).code(2);
    run(&["bench", "pnp", "--rounds", "0"]).code(2).says(&["--rounds"]);
    run(&["bench", "train-step", "--method", "lsqq"]).code(2).says(&["lsqq", "did you mean lsq"]);
    run(&["bench", "engine"]).code(2).says(&["FILE"]);
    one_line(run(&["bench", "pnp", "--outliers", "2"]), &["--outliers: 2"]);
    one_line(run(&["bench", "engine", "no/net.mqat"]), &["no file no/net.mqat"]);
    one_line(run(&["bench", "forward", "--checkpoint", "src"]), &["no file src"]);
    one_line(run(&["bench", "forward", "--size", "100"]), &["--size 100", "multiple"]);
    one_line(run(&["bench", "forward", "--batch", "0"]), &["--batch: 0"]);
    one_line(run(&["bench", "engine", "Cargo.toml"]), &["Cargo.toml", "is not a file of weights"]);
    let missing = ["bench", "loader", "--data", "/nowhere"];
    one_line(run(&missing), &["/nowhere", "training.txt"]);
    let flow = ["--flow", "fnp:2", "--data", dataset().to_str().unwrap()];
    one_line(run(&[&small("train-step", QUICK)[..], &flow].concat()), &["fnp", "fpn"]);
}

#[test]
fn engines_are_for_their_files_and_a_missing_runtime_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let onnx = folder.path().join("float.onnx");
    let onnx = onnx.to_str().unwrap();
    let topology = ["--topology", "WidedepthTiny"];
    run(&[&["export", TINY, "--format", "onnx", "--out", onnx], &topology[..]].concat()).code(0);
    fn engine<'a>(more: &[&'a str]) -> Vec<&'a str> {
        [&["bench", "engine", "--topology", "WidedepthTiny"], QUICK, more].concat()
    }
    one_line(run(&engine(&["--engine", "torch", onnx])), &["float.onnx", "--engine ort"]);
    one_line(run(&engine(&["--engine", "ort", TINY])), &["pretrained", "mqat export"]);
    // The same file twice does the same: what their times differ by is noise.
    let twice = run(&engine(&[TINY, TINY, "--engine", "torch", "--device", "cpu"])).code(0);
    assert!(twice.stdout().contains("the same arithmetic"), "{}", twice.stdout());
    let mut command = mqat(&engine(&[onnx]));
    command.env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so");
    let ran = Ran { line: format!("{command:?}"), output: command.output().unwrap() };
    one_line(ran, &["ORT_DYLIB_PATH", "not a file"]);

    let Some(library) = crate::onnx::library() else { return };
    let bench = |library: &Path, more: &[&str]| {
        let mut command = mqat(&engine(more));
        command.env("ORT_DYLIB_PATH", library);
        Ran { line: format!("{command:?}"), output: command.output().unwrap() }
    };
    let report = bench(&library, &[TINY, onnx, "--device", "cpu", "--json"]).code(0).json();
    let names = check(&report, "engine", 3);
    assert_eq!(names, ["pretrained.safetensors (libtorch)", "float.onnx (ONNX Runtime)"]);
    assert!(report["machine"]["onnxruntime"].is_string(), "{}", report["machine"]);
    one_line(bench(&library, &[onnx, "--size", "64"]), &["float.onnx", "128 x 128", "--size"]);
}

#[test]
fn all_measures_every_part_in_one_document() {
    let size = ["--size", "64", "--batch", "1", "--threads", "1", "--json"];
    let rounds = ["--rounds", "3", "--warm-up", "0", "--data", dataset().to_str().unwrap()];
    let report = run(&small("all", &[&size[..], &rounds].concat())).code(0).json();
    let parts = report["parts"].as_array().unwrap();
    let names: Vec<Vec<String>> = parts
        .iter()
        .zip(["train-step", "forward", "loader", "pnp"])
        .map(|(part, bench)| check(part, bench, 3))
        .collect();
    assert_eq!(names[0].len(), 3, "{names:?}");
    assert_eq!(names[1][0], "libtorch");
    let ort = report["notes"].to_string().contains("not run: ONNX Runtime");
    assert_eq!(names[1].len(), if ort { 1 } else { 3 }, "{report}");
    assert_eq!((names[2].len(), names[3].len()), (2, 2));
    assert!(report["train_step_peak_mb"].as_f64().unwrap() > 50.0);
    for subject in parts.iter().flat_map(|part| part["subjects"].as_array().unwrap()) {
        let cpu = |key: &str| subject["cpu_seconds_per_item"][key].as_f64().unwrap();
        assert!(cpu("min") > 0.0 && cpu("min") <= cpu("median"), "{subject}");
    }
}
