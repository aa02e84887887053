//! `mqat export --format onnx`, and what runs the files.
//!
//! ONNX Runtime's library is taken from ORT_DYLIB_PATH, from beside the program (`setup.sh --with-ort`) or from the
//! Python environment; the `onnx` checker from MQAT_PYTHON_ONNX or .venv-onnx (`scripts/onnx_venv.sh`). What is missing
//! is said aloud and its checks are left out.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::Value;

use crate::support::{Ran, dataset, mqat, run, small};

/// Shipped full-precision weights.
const TINY: &str = "problems/SwissCube/WidedepthTiny/pretrained.safetensors";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn python() -> Option<PathBuf> {
    let named = std::env::var_os("MQAT_PYTHON_ONNX").map(PathBuf::from);
    let python = named.unwrap_or_else(|| root().join(".venv-onnx/bin/python"));
    let works = Command::new(&python).args(["-c", "import onnx, onnxruntime"]).output();
    let works = works.is_ok_and(|out| out.status.success());
    if !works {
        eprintln!(
            "NOT CHECKED: no Python with onnx and onnxruntime; scripts/onnx_venv.sh makes one"
        );
    }
    works.then_some(python)
}

/// ONNX Runtime's library.
pub fn library() -> Option<PathBuf> {
    let named = std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from);
    let beside = Path::new(env!("CARGO_BIN_EXE_mqat")).with_file_name("libonnxruntime.so");
    let of_python = glob::glob(&format!(
        "{}/.venv-onnx/lib/python3*/site-packages/onnxruntime/capi/libonnxruntime.so*",
        root().display()
    ));
    let of_python = of_python.unwrap().flatten().next();
    let found = [named, Some(beside), of_python].into_iter().flatten().find(|path| path.is_file());
    if found.is_none() {
        eprintln!("NOT CHECKED: no ONNX Runtime; ./setup.sh --with-ort fetches it");
    }
    found
}

/// Runs the program with ONNX Runtime from `library`.
pub fn run_ort(library: &Path, args: &[&str]) -> Ran {
    let mut command = mqat(args);
    command.env("ORT_DYLIB_PATH", library);
    let line = format!("{command:?}");
    Ran { output: command.output().unwrap(), line }
}

/// A folder with a small network whose FPN has 2-bit weights and 8-bit inputs, trained once.
fn trained() -> &'static str {
    static MADE: OnceLock<String> = OnceLock::new();
    MADE.get_or_init(|| {
        let logs = tempfile::tempdir().unwrap().keep();
        let data = dataset().to_str().unwrap();
        run(&small("train", &["--data", data, "--logs", logs.to_str().unwrap()])).code(0);
        let found =
            glob::glob(&format!("{}/**/checkpoints/*.safetensors", logs.display())).unwrap();
        let last = found.flatten().max().expect("training writes checkpoints");
        last.to_str().unwrap().to_owned()
    })
}

fn number(value: &Value, path: &str) -> f64 {
    value.pointer(path).and_then(Value::as_f64).unwrap_or_else(|| panic!("{path} in {value}"))
}

#[test]
fn a_float_file_computes_what_the_checkpoint_does() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("float.onnx");
    let out = out.to_str().unwrap();
    let weights = root().join(TINY);
    let export =
        ["export", weights.to_str().unwrap(), "--topology", "WidedepthTiny", "--format", "onnx"];
    let written =
        run(&[&export[..], &["--out", out, "--with-decode", "--json"]].concat()).code(0).json();
    assert_eq!(written["onnx"]["opset"], 17);
    assert_eq!(written["onnx"]["weights"]["float"], 24);
    run(&[&export[..], &["--out", out]].concat()).code(1).says(&["already exists"]);
    if let Some(python) = python() {
        let script = "import onnx, sys; m = onnx.load(sys.argv[1]); onnx.checker.check_model(m, full_check=True); \
                      print(len(m.graph.node), [o.name for o in m.graph.output][-2:])";
        let checked = Command::new(python).args(["-c", script, out]).output().unwrap();
        let text = String::from_utf8_lossy(&checked.stdout).into_owned();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
        assert!(text.contains("['scores', 'corners_px']"), "{text}");
    }
    let Some(library) = library() else { return };
    let again = folder.path().join("again.onnx");
    let checked = run_ort(
        &library,
        &[
            &export[..],
            &["--out", again.to_str().unwrap(), "--batch", "2", "--check", "1", "--json"],
        ]
        .concat(),
    );
    let check = &checked.code(0).json()["onnx"]["check"];
    // Batch norms are folded and sums run in another order: rounding of f32 alone.
    assert!(number(check, "/from_network/max_relative") < 1e-4, "{check}");
    assert_eq!(
        (&check["profile"]["integer_convs"], &check["profile"]["float_convs"]),
        (&0.into(), &50.into())
    );
}

#[test]
fn a_trained_checkpoint_becomes_integers_that_score_as_it_does() {
    let (folder, data) = (tempfile::tempdir().unwrap(), dataset().to_str().unwrap());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (as_trained, integers) = (file("trained.onnx"), file("integers.onnx"));
    let export = ["export", trained(), "--format", "onnx", "--json"];
    let written = run(&[&export[..], &["--out", &as_trained, "--carrier", "true-bits"]].concat());
    let written = written.code(0).json();
    assert_eq!(written["onnx"]["opset"], 25);
    assert_eq!(written["onnx"]["weights"]["int2"], 8, "{written}");
    assert!(written["onnx"]["activations"].as_str().unwrap().contains("as trained (8 layers)"));
    run(&[&export[..], &["--out", "x.onnx", "--weight-type", "true-bits", "--opset", "17"]]
        .concat())
    .code(1)
    .says(&[
        "opset 17 has no integers of 4 bits for --weight-type true-bits",
        "--weight-type int8",
    ]);
    let calibrated =
        ["--out", &integers, "--calibrate", "8", "--carrier", "true-bits", "--data", data];
    if let Some(python) = python() {
        let script =
            "import onnx, sys; onnx.checker.check_model(onnx.load(sys.argv[1]), full_check=True)";
        let checked = Command::new(python).args(["-c", script, &as_trained]).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    }
    let Some(library) = library() else {
        run(&[&export[..], &calibrated].concat()).code(0);
        return;
    };
    let written =
        run_ort(&library, &[&export[..], &calibrated, &["--check", "4"]].concat()).code(0).json();
    let check = &written["onnx"]["check"];
    // 8 convolutions of the FPN, 5 of the backbone, 2 towers on 5 levels; the first convolution and the predictions on 5
    // levels stay float.
    assert_eq!(check["profile"]["integer_convs"], 23, "{check}");
    assert_eq!(check["profile"]["float_convs"], 11, "{check}");
    // Layer by layer, from the same integers: the other runtime's float products may fall to the other side of a half.
    assert!(number(check, "/max_steps") <= 1.0, "{check}");
    for layer in check["layers"].as_array().unwrap() {
        assert!(number(layer, "/fraction") < 0.1, "{layer}"); // the coarsest level has 64 values
    }
    // Both compute with the same integers: what is left are halves that fall to the other side.
    assert!(number(check, "/from_reference/mean_offset") < 1e-3, "{check}");
    assert!(number(check, "/from_network/mean_offset") < 0.05, "{check}");
    for file in [&as_trained, &integers] {
        let args = ["test", "--checkpoint", file, "--data", data, "--engine", "ort", "--json"];
        let report = run_ort(&library, &args).code(0).json();
        let name = report["evaluations"][0]["report"]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with("fpn 2-bit (3 levels)") && name.contains("ONNX"), "{name}");
    }
}

#[test]
fn broken_files_and_wrong_engines_say_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let data = dataset().to_str().unwrap();
    let weights = root().join(TINY);
    let weights = weights.to_str().unwrap();
    let out = folder.path().join("whole.onnx");
    let export = ["export", weights, "--topology", "WidedepthTiny", "--out", out.to_str().unwrap()];
    run(&[&export[..], &["--format", "onnx"]].concat()).code(0);
    let cut = folder.path().join("cut.onnx");
    let whole = std::fs::read(&out).unwrap();
    std::fs::write(&cut, &whole[..whole.len() / 2]).unwrap();
    let test = |file: &Path, more: &[&str]| {
        run(&[&["test", "--checkpoint", file.to_str().unwrap(), "--data", data], more].concat())
            .code(1)
    };
    test(&cut, &[]).says(&["cut.onnx is truncated or no ONNX file"]);
    let text = folder.path().join("text.onnx");
    std::fs::write(&text, "hello").unwrap();
    test(&text, &[]).says(&["text.onnx is truncated or no ONNX file"]);
    test(Path::new(weights), &["--engine", "ort"]).says(&["mqat export", "--format onnx"]);
    test(&out, &["--engine", "torch"]).says(&["--engine ort"]);
    run(&["test", "--engine", "tensorrt"]).code(2).says(&["expected auto, torch or ort"]);
    // The file's network takes 128 px images, and the dataset's are warped to them: only the library is missing.
    let mut command = mqat(&["test", "--checkpoint", out.to_str().unwrap(), "--data", data]);
    command.env("ORT_DYLIB_PATH", folder.path().join("none.so"));
    let line = format!("{command:?}");
    let ran = Ran { output: command.output().unwrap(), line }.code(1);
    ran.says(&["ORT_DYLIB_PATH", "none.so, which is not a file"]);
    let other = folder.path().join("other");
    let other =
        ["export", weights, "--topology", "WidedepthTiny", "--out", other.to_str().unwrap()];
    run(&[&other[..], &["--calibrate", "4"]].concat()).code(1).says(&["add --format onnx"]);
    run(&[&other[..], &["--format", "onnx", "--calibrate", "99", "--data", data]].concat())
        .code(1)
        .says(&["99 images are wanted, the training list has 16"]);
}

#[test]
fn a_resnet_trains_quantizes_and_is_exported() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let (logs, data) = (at("logs"), dataset().to_str().unwrap());
    let network = [
        "--set",
        "network.params={\"backbone\":\"resnet18\",\"resnet_width\":8,\"fpn_channels\":16,\
         \"head_channels\":16,\"head_convs\":1,\"group_norm_groups\":4,\
         \"anchor_sizes\":[8,16,32,64,128]}",
        "--set",
        "training.full_precision={\"name\":\"full_precision\",\"epochs\":1,\"batch_size\":4}",
        "--set",
        "quantize.flow=[{\"module\":\"fpn\",\"epochs\":1,\"weights\":{\"bits\":2,\"schedule\":{\"0\":1}}},\
         {\"module\":\"backbone.layer[1-3]\",\"epochs\":1,\"weights\":{\"bits\":4,\"schedule\":{\"0\":1}}}]",
    ];
    let places = ["--data", data, "--logs", &logs, "--json"];
    let report = run(&small("train", &[&places[..], &network].concat())).code(0).json();
    let layers = report["stages"][2]["layers"].as_array().unwrap();
    // Two blocks of two convolutions a layer, and two shortcuts; the FPN's 8 are of the stage before.
    assert_eq!(layers.len(), 8 + 3 * 4 + 2, "{report}");
    let checkpoint = report["checkpoint"].as_str().unwrap().to_owned();
    let (packed, onnx) = (at("net.mqat"), at("net.onnx"));
    let written =
        run(&["export", &checkpoint, "--format", "packed", "--out", &packed, "--json"]).code(0);
    assert_eq!(written.json()["quantized"].as_array().unwrap().len(), 2);
    let test = ["test", "--device", "cpu", "--data", data, "--checkpoint"];
    run(&[&test[..], &[&packed]].concat()).code(0);
    let export = ["export", &checkpoint, "--format", "onnx", "--out", &onnx, "--json"];
    let written =
        run(&[&export[..], &["--calibrate", "4", "--data", data]].concat()).code(0).json();
    assert_eq!(written["onnx"]["weights"]["float"], 1 + 2, "{written}");
    let Some(library) = library() else { return };
    let checked = run_ort(&library, &["verify", &checkpoint, &onnx, "--data", data, "--json"]);
    checked.code(0);
}
