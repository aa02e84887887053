//! Bad input to any command: one line that names the file and says what to do, and an exit code that says it failed.

use std::fs;
use std::path::Path;

use crate::support::{Ran, dataset, run};

/// Shipped full-precision weights.
const TINY: &str = "problems/SwissCube/WidedepthTiny/pretrained.safetensors";

#[track_caller]
fn one_line(args: &[&str], parts: &[&str]) {
    let ran = run(args).code(1).says(parts);
    let err = ran.stderr();
    assert_eq!(err.lines().filter(|l| l.starts_with("mqat: ")).count(), 1, "{err}");
    assert!(ran.stdout().is_empty(), "{}", ran.stdout());
}

/// Copies a folder with everything in it.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &target),
            false => drop(fs::copy(entry.path(), target).unwrap()),
        }
    }
}

#[test]
fn an_unreadable_image_in_the_middle_is_named_and_can_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    copy(dataset(), &data);
    let list = fs::read_to_string(data.join("testing.txt")).unwrap();
    let image = list.lines().nth(3).unwrap();
    let bytes = fs::read(data.join(image)).unwrap();
    fs::write(data.join(image), &bytes[..bytes.len() / 3]).unwrap();
    let common = ["--topology", "WidedepthTiny", "--device", "cpu", "--data"];
    let test = [&["test", "--checkpoint", TINY], &common[..], &[data.to_str().unwrap()]].concat();
    let verify = [&["verify", TINY, TINY], &common[..], &[data.to_str().unwrap()]].concat();
    for args in [&test, &verify] {
        one_line(args, &[image, "--skip-bad"]);
        let ran: Ran = run(&[&args[..], &["--skip-bad", "--json"]].concat()).code(0).says(&[image]);
        let report = ran.json();
        let images = match args[0] {
            "test" => &report["evaluations"][0]["report"]["timing"]["num_images"],
            _ => &report["num_images"],
        };
        assert_eq!(images, 5, "{report}");
    }
}

#[test]
fn files_of_another_kind_are_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let onnx = folder.path().join("net.onnx");
    let onnx = onnx.to_str().unwrap();
    let topology = ["--topology", "WidedepthTiny"];
    run(&[&["export", TINY, "--format", "onnx", "--out", onnx], &topology[..]].concat()).code(0);
    let out = folder.path().join("out");
    for args in [
        &["export", onnx, "--out", out.to_str().unwrap()][..],
        &["import", onnx, "--out", out.to_str().unwrap()],
    ] {
        one_line(args, &["net.onnx is an ONNX file", "exported from"]);
    }
    assert!(!out.exists());
    let place = folder.path().to_str().unwrap();
    one_line(&["test", "--device", "cpu", "--checkpoint", place], &[place, "is a directory"]);
    let bytes = fs::read(onnx).unwrap();
    fs::write(onnx, &bytes[..bytes.len() / 2]).unwrap();
    one_line(&["test", "--device", "cpu", "--checkpoint", onnx], &["net.onnx", "truncated"]);
    one_line(&["verify", TINY, onnx, "--device", "cpu"], &["net.onnx", "truncated"]);
}
