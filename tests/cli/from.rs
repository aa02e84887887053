//! From a file of weights to a device: `train --from`, `export --quantize`, `verify` of integer files, and what files carry of
//! their objects.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use serde_json::Value;

use crate::support::{dataset, mqat, run};

const TINY: &str = "problems/SwissCube/WidedepthTiny/pretrained.safetensors";
/// What makes a run of the shipped weights small.
const QUICK: &[&str] = &[
    "--device",
    "cpu",
    "--set",
    "RUNTIME.NUM_THREADS=1",
    "--set",
    "RUNTIME.NUM_WORKERS=1",
    "--epochs",
    "1",
    "--batch-size",
    "4",
];

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A checkpoint that `train --from` made of the shipped weights as a PyTorch file, in a folder of its own.
fn trained() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap().keep();
        let pth = dir.join("colleague.pth");
        run(&["export", TINY, "--format", "pth", "--out", text(&pth)]).code(0);
        let args = ["train", "--from", "colleague.pth", "--flow", "fpn:2@uniform"];
        let mut command = mqat(&[&args[..], QUICK].concat());
        command.current_dir(&dir);
        command.args(["--data", text(dataset()), "--logs", text(&dir.join("logs"))]);
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        dir
    })
}

fn checkpoint() -> String {
    let folder = trained().join("logs/SwissCube/WidedepthTiny/exp000/checkpoints");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "safetensors"));
    files.sort();
    files.pop().unwrap().display().to_string()
}

#[test]
fn a_pytorch_file_becomes_a_run_under_the_topology_it_tells() {
    let run_folder = trained().join("logs/SwissCube/WidedepthTiny/exp000");
    let config = json(&run_folder.join("config.json"));
    assert_eq!(config["training"]["full_precision"], Value::Null);
    assert_eq!(config["quantize"]["flow"][0]["module"], "fpn");
    let file = trained().join("colleague.pth").canonicalize().unwrap();
    let url = Path::new(config["experiment"]["url"].as_str().unwrap()).canonicalize().unwrap();
    assert_eq!(url, file);
    let from = &json(&run_folder.join("provenance.json"))["pretrained"];
    assert_eq!(from["bytes"], fs::metadata(&file).unwrap().len());
    let crc = crc32c::crc32c(&fs::read(&file).unwrap());
    assert_eq!(from["hash"], format!("crc32c:{crc:08x}"));
    assert_eq!(from["loose"], false);
}

#[test]
fn a_start_from_a_file_says_what_it_lacks() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let places = ["--data", text(dataset()), "--logs", text(&logs)];
    let refused = |more: &[&str], parts: &[&str]| {
        run(&[&["train"], QUICK, &places, more].concat()).code(1).says(parts);
        assert!(!logs.exists(), "{more:?} has made a folder");
    };
    refused(&["--from", "no/such.pth"], &["--from no/such.pth", "no such file"]);
    refused(
        &["--from", TINY, "--set", "quantize.flow=[]"],
        &["nothing is left to train", "--flow fpn:2", "--full-precision-epochs"],
    );
    refused(
        &["--from", TINY, "--set", "experiment.url=x.pth"],
        &["experiment.url=x.pth is overruled by --from"],
    );
    refused(
        &["--from", TINY, "--set", "training.full_precision.lr.base=0.1"],
        &["is overruled by --from"],
    );
    refused(&["--from", TINY, "--resume"], &["--from cannot act", "resumed run has its weights"]);
    // Weights of other classes: the way to fine-tune them.
    let two = ["--set", "data.N_CLASS=3", "--set", "data.MESH_DIAMETERS=[100,100]"];
    let out = dir.path().join("two.safetensors");
    run(&[&["import", TINY, "--topology", "WidedepthTiny", "--out", text(&out)], &two[..]].concat())
        .code(1)
        .says(&["knows 1 object class(es)", "mqat train --loose"]);
}

#[test]
fn full_precision_comes_before_the_flow_when_it_is_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let more = ["--from", TINY, "--full-precision-epochs", "3", "--flow", "fpn:2@uniform"];
    let places = ["--data", text(dataset()), "--logs", text(&logs)];
    run(&[&["train"], QUICK, &more, &places, &["--max-steps", "1"]].concat()).code(0);
    let config = json(&logs.join("SwissCube/WidedepthTiny/exp000/config.json"));
    assert_eq!(config["training"]["full_precision"]["epochs"], 3);
    assert_eq!(config["quantize"]["flow"][0]["epochs"], 1);
}

#[test]
fn files_carry_their_objects_and_need_no_dataset() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (packed, onnx) = (at("net.mqat"), at("net.onnx"));
    run(&["export", &checkpoint(), "--format", "packed", "--out", &packed]).code(0);
    run(&["export", &checkpoint(), "--format", "onnx", "--out", &onnx]).code(0);
    let boxes: Vec<Vec<[f64; 3]>> =
        serde_json::from_slice(&fs::read(dataset().join("swisscube_bbox.json")).unwrap()).unwrap();
    for file in [checkpoint(), packed.clone(), onnx] {
        let report = run(&["inspect", &file, "--json"]).code(0).json();
        let object = &report["objects"][0];
        assert_eq!(
            (&object["obj_id"], &object["name"]),
            (&1.into(), &"obj_000001".into()),
            "{file}"
        );
        let corner = object["box_corners_mm"][7][0].as_f64().unwrap();
        assert!((corner - boxes[0][7][0]).abs() < 1e-9);
        assert_eq!(report["camera"]["width"], 128);
        let shown = run(&["inspect", &file]).code(0).stdout();
        assert!(shown.contains("internal camera: 128 x 128 px"), "{shown}");
        assert!(shown.contains("object 1 obj_000001: box "), "{shown}");
    }
    // No dataset, no problem folder.
    let image = at("image.png");
    image::RgbImage::new(128, 128).save(&image).unwrap();
    let mut command =
        mqat(&["predict", "--checkpoint", &packed, "--device", "cpu", &image, "--out", &at("out")]);
    let output = command.current_dir(dir.path()).env("MQAT_HOME", dir.path()).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{log}");
    assert_eq!(json(&dir.path().join("out/summary.json"))["num_images"], 1);

    // A dataset of other boxes.
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    let moved: Vec<Vec<[f64; 3]>> =
        boxes.iter().map(|b| b.iter().map(|c| c.map(|v| v * 0.97)).collect()).collect();
    fs::write(other.join("swisscube_bbox.json"), serde_json::to_vec(&moved).unwrap()).unwrap();
    let args = ["predict", "--checkpoint", &packed, "--device", "cpu", &image, "--out", &at("no")];
    run(&[&args[..], &["--data", text(&other)]].concat()).code(1).says(&[
        "contradict each other",
        "box corner 0 at (",
        "leave --data out",
    ]);
    run(&[&args[..], &["--boxes", text(&other.join("swisscube_bbox.json"))]].concat())
        .code(0)
        .says(&["carries other objects than --boxes, which is taken", "box corner 0"]);
    // A file of another program carries none, and that is said.
    let mut command = mqat(&[
        "predict",
        "--checkpoint",
        TINY,
        "--topology",
        "WidedepthTiny",
        "--device",
        "cpu",
        &image,
    ]);
    let output = command.args(["--out", &at("none"), "--data", &at(".")]).output().unwrap();
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && log.contains("--boxes"), "{log}");
}

#[test]
fn a_float_network_is_quantized_for_a_file_without_training() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (float, low) = (at("float.mqat"), at("low.mqat"));
    run(&["export", TINY, "--format", "packed", "--out", &float]).code(0).says(&[
        "nothing in",
        "mqat train --from",
        "--quantize fpn:4",
    ]);
    let quantize = ["--quantize", "fpn:4,backbone:8:uniform"];
    let report =
        run(&[&["export", TINY, "--format", "packed", "--out", &low, "--json"], &quantize[..]]
            .concat())
        .code(0)
        .says(&["without training", "mqat train --from", "fpn:w4,backbone:w8@uniform"])
        .json();
    assert_eq!(report["quantized_without_training"].as_array().unwrap().len(), 2);
    assert!(report["packed"]["num_coded"].as_u64() > Some(10));
    assert!(fs::metadata(&low).unwrap().len() < fs::metadata(&float).unwrap().len() / 2);
    run(&["audit", &low]).code(0);
    // Its weights lie near the float ones: it finds what they find, about.
    run(&["inspect", &low]).code(0);

    for (more, part) in [
        (&["--quantize", "fpn:w4a8"][..], "activations need images"),
        (&["--quantize", "neck:4"], "neck"),
        (&["--quantize", "fpn:4", "--weights", "float"], "--weights float cannot act"),
    ] {
        run(&[&["export", TINY, "--format", "packed", "--out", &at("no")], more].concat())
            .code(1)
            .says(&[part]);
        assert!(!dir.path().join("no").exists());
    }
    let again =
        ["export", &checkpoint(), "--format", "packed", "--out", &at("no"), "--quantize", "head:4"];
    run(&again).code(1).says(&["--quantize cannot act", "quantized already"]);
}

#[test]
fn statistics_are_estimated_before_they_are_folded() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let quantize = ["--topology", "WidedepthTiny", "--quantize", "fpn:4,backbone:3@lsq"];
    let export =
        |from: &str, more: &[&str]| run(&[&["export", from][..], &quantize, more].concat());
    let (rounded, twice) = (at("rounded.safetensors"), at("twice.safetensors"));
    export(TINY, &["--out", &rounded]).code(0).says(&["`mqat recalibrate", "regains part of it"]);
    let (onnx, packed) = (at("net.onnx"), at("net.mqat"));
    let folded: [&[&str]; 2] = [
        &["--format", "onnx", "--out", &onnx],
        &["--format", "packed", "--fold-bn", "--out", &packed],
    ];
    for more in folded {
        let way =
            ["--quantize fpn:w4,backbone:w3@lsq --out rounded", "rounded_recalibrated.safetensors"];
        export(TINY, more).code(0).says(&way);
    }
    // The way works: what is rounded already is rounded to itself.
    export(&rounded, &["--out", &twice]).code(0);
    let tensors = |path: &str| mqat::io::tensors::read(std::path::Path::new(path)).unwrap().tensors;
    let (once, again) = (tensors(&rounded), tensors(&twice));
    assert_eq!(once.len(), again.len());
    for ((name, a), (other, b)) in once.iter().zip(&again) {
        assert!(name == other && a.equal(b), "{name} differs");
    }
}

#[test]
fn an_export_replaces_only_what_it_is_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("w.safetensors").display().to_string();
    run(&["export", TINY, "--out", &out]).code(0);
    run(&["export", TINY, "--out", &out]).code(1).says(&["already exists", "--overwrite"]);
    fs::write(&out, "old").unwrap();
    run(&["export", TINY, "--out", &out, "--overwrite"]).code(0);
    let size = fs::metadata(&out).unwrap().len();
    assert!(size > 1000);
    run(&["export", &out, "--out", &out, "--overwrite", "--topology", "WidedepthTiny"])
        .code(1)
        .says(&["is the file that is exported"]);
    assert_eq!(fs::metadata(&out).unwrap().len(), size);
}

#[test]
fn limits_that_are_named_rule_a_verification() {
    let dir = tempfile::tempdir().unwrap();
    let low = dir.path().join("low.safetensors").display().to_string();
    run(&["export", TINY, "--out", &low, "--quantize", "fpn:8@uniform"]).code(0);
    let args =
        ["verify", TINY, &low, "--data", text(dataset()), "--device", "cpu", "--images", "0"];
    let more = ["--set", "RUNTIME.NUM_THREADS=1", "--json"];
    let report = run(&[&args[..], &more].concat()).code(1).json();
    assert_eq!(
        (&report["rule"], &report["limits"]["outputs"]),
        (&"same_numbers".into(), &1e-4.into())
    );
    assert!(report["add_difference"]["interval_95"].is_array(), "{report}");
    assert!(report["adi_chance"].as_f64() <= Some(1.0));
    let wide = ["--tolerance", "1", "--max-changed", "1", "--max-adi", "100", "--max-add", "1"];
    run(&[&args[..], &more, &wide].concat()).code(0);
    // By objects: other outputs are no failure, and what so few objects cannot show is said.
    let report = run(&[&args[..], &more, &["--rule", "as-good"]].concat()).code(0).json();
    assert_eq!((&report["rule"], &report["limits"]["outputs"]), (&"as_good".into(), &Value::Null));
    let shown = run(&[&args[..], &["--rule", "as-good"]].concat()).code(0).stdout();
    assert!(shown.contains("not shown to be worse") && shown.contains("fewer than 6"), "{shown}");
    let text = run(&[&args[..], &wide].concat()).code(0).stdout();
    assert!(text.contains("ADD: B ") && text.contains("(limit 1.00)"), "{text}");
}
