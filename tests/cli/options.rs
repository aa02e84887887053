//! Options that cannot act: an error that names the option and says why, for every command.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::support::{dataset, run, small};

/// Shipped full-precision weights, without a config.
const TINY: &str = "problems/SwissCube/WidedepthTiny/pretrained.safetensors";
/// A shipped config.
const CONFIG: &str = "problems/SwissCube/WidedepthTiny/config.json";

/// Files of one network: a checkpoint, which carries its config, and an ONNX file.
struct Files {
    folder: PathBuf,
    checkpoint: String,
    onnx: String,
}

fn files() -> &'static Files {
    static MADE: OnceLock<Files> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap().keep();
        let at = |name: &str| folder.join(name).display().to_string();
        let (checkpoint, onnx) = (at("net.safetensors"), at("net.onnx"));
        run(&["import", TINY, "--out", &checkpoint]).code(0);
        run(&["export", &checkpoint, "--format", "onnx", "--out", &onnx]).code(0);
        Files { folder, checkpoint, onnx }
    })
}

/// Runs the command line, the words of `line` with CKPT, ONNX, DATA, OUT and DIR in place.
#[track_caller]
fn refused(line: &str, parts: &[&str]) {
    let files = files();
    let out = files.folder.join("out");
    let (data, out) = (dataset().to_str().unwrap(), out.to_str().unwrap());
    let words: Vec<&str> = line
        .split(' ')
        .map(|word| match word {
            "CKPT" => files.checkpoint.as_str(),
            "ONNX" => files.onnx.as_str(),
            "BARE" => TINY,
            "CONFIG" => CONFIG,
            "DATA" => data,
            "OUT" => out,
            "DIR" => files.folder.to_str().unwrap(),
            word => word,
        })
        .collect();
    let ran = run(&words);
    let code = ran.output.status.code();
    assert!(code == Some(1) || code == Some(2), "{line}: {code:?}\n{}", ran.stderr());
    ran.says(parts);
    assert!(!Path::new(out).exists(), "{line} has written");
}

#[test]
fn names_beside_a_config_that_is_known_are_refused() {
    for (line, option) in [
        ("audit CKPT --problem Nope", "--problem Nope"),
        ("export CKPT --out OUT --problem Nope", "--problem Nope"),
        ("export CKPT --out OUT --format packed --problem Nope", "--problem Nope"),
        ("import CKPT --out OUT --problem Nope", "--problem Nope"),
        ("bench engine CKPT --problem Nope", "--problem Nope"),
        ("bench engine ONNX --problem Nope", "--problem Nope"),
        ("bench forward --checkpoint CKPT --problem Nope", "--problem Nope"),
    ] {
        refused(line, &[option, "carries its own config", "leave it out"]);
    }
    for (line, option) in [
        ("config --config CONFIG --problem Nope", "--problem Nope"),
        ("config --config CONFIG --topology Nope", "--topology Nope"),
        ("inspect --config CONFIG --topology Nope", "--topology Nope"),
        ("audit CKPT --config CONFIG --topology Nope", "--topology Nope"),
        ("export CKPT --out OUT --config CONFIG --problem Nope", "--problem Nope"),
        ("import BARE --out OUT --config CONFIG --topology Nope", "--topology Nope"),
        ("test --checkpoint CKPT --config CONFIG --topology Nope", "--topology Nope"),
        ("verify CKPT CKPT --config CONFIG --topology Nope", "--topology Nope"),
        ("predict --checkpoint CKPT --config CONFIG --topology Nope --out OUT x.png", "--topology"),
        ("score --predictions x.csv --config CONFIG --topology Nope", "--topology Nope"),
        ("plan --config CONFIG --problem Nope --images 16", "--problem Nope"),
        ("bench pnp --config CONFIG --problem Nope", "--problem Nope"),
        ("bench forward --config CONFIG --problem Nope", "--problem Nope"),
        ("bench loader --config CONFIG --topology Nope", "--topology Nope"),
        ("bench train-step --config CONFIG --topology Nope", "--topology Nope"),
    ] {
        refused(line, &[option, "--config", "cannot act"]);
    }
}

#[test]
fn a_topology_that_is_named_has_to_exist() {
    for line in [
        "audit CKPT --topology Nope",
        "export CKPT --out OUT --topology Nope",
        "bench engine ONNX --topology Nope",
        "verify CKPT ONNX --topology Nope",
    ] {
        refused(line, &["problems/SwissCube/Nope"]);
    }
}

#[test]
fn a_file_is_inspected_whatever_a_config_says() {
    for option in ["--config nofile.json", "--set a.b=1", "--topology Nope", "--problem Nope"] {
        let name = option.split(' ').next().unwrap();
        refused(&format!("inspect CKPT {option}"), &[name, "FILE is shown as it is"]);
        refused(&format!("config --schema {option}"), &[name, "every config"]);
    }
}

#[test]
fn a_seed_needs_something_random() {
    for command in ["audit CKPT", "inspect CKPT", "inspect", "export CKPT --out OUT"] {
        refused(&format!("{command} --seed 3"), &["--seed"]);
    }
    refused("import CKPT --out OUT --seed 3", &["--seed", "--loose"]);
    refused("config --schema --seed 3", &["--seed"]);
}

#[test]
fn settings_apply_to_the_config_of_a_file() {
    for line in [
        "audit CKPT --set a.b=1",
        "export CKPT --out OUT --set a.b=1",
        "import CKPT --out OUT --set a.b=1",
        "test --checkpoint CKPT --set a.b=1",
        "test --checkpoint ONNX --set a.b=1",
        "verify CKPT ONNX --set a.b=1",
        "bench engine ONNX --set a.b=1",
    ] {
        refused(line, &["unknown key"]);
    }
}

#[test]
fn options_of_another_format_are_refused_by_name() {
    for option in [
        "--calibrate 4",
        "--calibrate 4 --calibration mse",
        "--calibrate 4 --keep-float",
        "--weight-type int8",
        "--target ort",
        "--opset 17",
        "--batch 1",
        "--with-decode",
        "--check",
    ] {
        let name = option.split(' ').next().unwrap();
        for format in ["", " --format pth", " --format packed"] {
            let line = format!("export CKPT --out OUT{format} {option}");
            refused(&line, &[name, "add --format onnx"]);
        }
    }
    for option in ["--ternary base3", "--fold-bn"] {
        let name = option.split(' ').next().unwrap();
        for format in ["", " --format pth", " --format onnx"] {
            let line = format!("export CKPT --out OUT{format} {option}");
            refused(&line, &[name, "add --format packed"]);
        }
    }
    for option in ["--data DATA", "--boxes b.json"] {
        let name = option.split(' ').next().unwrap();
        for format in ["", " --format pth"] {
            let line = format!("export CKPT --out OUT{format} {option}");
            refused(&line, &[name, "add --format packed or onnx"]);
        }
    }
    let onnx = "export CKPT --out OUT --format onnx";
    for option in ["--activation-bits 8", "--keep-float", "--full-range", "--calibration mse"] {
        let name = option.split(' ').next().unwrap();
        refused(&format!("{onnx} {option}"), &[name, "--calibrate"]);
    }
    refused(&format!("{onnx} --percentile 99"), &["--percentile", "--calibrate"]);
    refused(
        &format!("{onnx} --calibrate 4 --calibration mse --percentile 99"),
        &["--percentile", "--calibration"],
    );
    refused(
        &format!("{onnx} --calibrate 4 --full-range --target openvino"),
        &["--full-range", "--target ort"],
    );
    refused(
        "export CKPT --out OUT --quantize fpn:4 --weights float",
        &["--weights float cannot act", "--quantize"],
    );
}

#[test]
fn options_of_frames_are_refused_beside_files() {
    let predict = "predict --checkpoint CKPT --out OUT";
    refused(&format!("{predict} tests/golden/README.md --raw 4x4"), &["--raw", "cannot act"]);
    refused(&format!("{predict} DIR --realtime"), &["--realtime", "cannot act"]);
    refused(&format!("{predict} - --realtime --batch 4"), &["--batch", "--realtime"]);
    refused(&format!("{predict} - --lines --json"), &["--lines", "--json"]);
}

#[test]
fn what_an_onnx_file_fixes_cannot_be_changed() {
    refused("test --checkpoint ONNX --loose --data DATA --device cpu", &["--loose", "ONNX"]);
    refused("predict --checkpoint ONNX --device cuda:0 --out OUT x.png", &["--device cuda:0"]);
    refused("test --checkpoint ONNX --device cuda:0", &["--device cuda:0", "ONNX Runtime"]);
    refused("verify ONNX ONNX --device cuda:0", &["--device cuda:0", "ONNX Runtime"]);
    refused("bench forward --checkpoint ONNX", &["net.onnx", "--engine ort"]);
    refused("import ONNX --out OUT", &["net.onnx is an ONNX file"]);
}

#[test]
fn places_that_nothing_is_read_from_or_written_to_are_refused() {
    refused("test --checkpoint CKPT --logs DIR", &["--logs", "--checkpoint"]);
    refused("verify CKPT CKPT --logs DIR", &["--logs"]);
    refused("predict --checkpoint CKPT --out OUT --logs DIR x.png", &["--logs", "the results go"]);
    refused("predict --checkpoint CKPT --boxes b.json --data DIR x.png", &["--data", "--boxes"]);
    refused("predict --checkpoint CKPT --recursive --out OUT x.png", &["--recursive", "directory"]);
    refused("predict --checkpoint CKPT --overwrite x.png", &["--overwrite", "--out"]);
    refused("plan --data DATA --images 4", &["--data", "--images"]);
    refused("score --predictions x.csv --no-overlays", &["--no-overlays", "--out"]);
    refused("bench loader --data DATA --image-size 64", &["--image-size", "--data"]);
}

#[test]
fn a_report_without_an_evaluation_takes_no_options_of_one() {
    for option in
        ["--config CONFIG", "--set a.b=1", "--seed 3", "--data DATA", "--device cpu", "--skip-bad"]
    {
        let name = option.split(' ').next().unwrap();
        refused(&format!("report 0 {option}"), &[name, "--evaluate"]);
    }
    for option in ["--problem Nope", "--topology Nope", "--logs DIR"] {
        let name = option.split(' ').next().unwrap();
        refused(&format!("report DIR --out OUT {option}"), &[name, "every EXP"]);
    }
    refused("report 0 --format csv --json", &["--format", "--json"]);
    refused("report 0 --format doc", &["doc", "expected md, csv, latex or html"]);
    refused("report 0 --columns adi", &["is not a column", "true-adi"]);
    refused("report 0 --columns all,all", &["all is named twice"]);
}

#[test]
fn a_run_refuses_what_it_would_not_read() {
    let logs = tempfile::tempdir().unwrap();
    let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.path().to_str().unwrap()];
    let train = |more: &[&str], parts: &[&str]| {
        run(&small("train", &[&places[..], more].concat())).code(1).says(parts);
    };
    train(&["--loose"], &["--loose cannot act", "experiment.pretrained"]);
    train(&["--method", "full-precision", "--bits", "4"], &["--bits"]);
    train(
        &["--method", "lsq", "--bits", "4", "--target-compression", "8"],
        &["--target-compression"],
    );
    train(&["--resume", "--from", TINY], &["--from cannot act", "resumed run"]);
    refused("train --full-precision-epochs 2", &["--full-precision-epochs", "--from"]);
    refused("train --from BARE --set training.full_precision.epochs=2", &["overruled by --from"]);
    refused(
        "train --from BARE --full-precision-epochs 2 --set training.full_precision.epochs=2",
        &["overruled by --full-precision-epochs"],
    );
    refused("train --bits 4", &["--bits", "--method"]);
    refused("train --trace-probes 4", &["--trace-probes", "--target-compression"]);
    refused("train --flow fpn:2 --method lsq", &["--flow", "--method"]);
    refused("test --checkpoint CKPT --exp-id 0", &["--exp-id", "--checkpoint"]);
    refused("test --checkpoint CKPT --all-stages", &["--all-stages", "--checkpoint"]);
    refused("audit CKPT --flow fpn:2 --bits 4", &["--flow", "--bits"]);
    refused("bench train-step --flow fpn:2 --method lsq", &["--flow", "--method"]);
    refused("bench train-step --flow fpn:2 --bits 4", &["--flow", "--bits"]);
}

#[test]
fn a_search_refuses_options_of_what_it_leaves_out() {
    for option in [
        "--first fpn",
        "--budget-epochs 1",
        "--trial-images 4",
        "--trial-steps 4",
        "--jobs 2",
        "--only x",
        "--print-commands",
    ] {
        let name = option.split(' ').next().unwrap();
        let line = format!("search --layerwise --target-compression 8 {option}");
        refused(&line, &[name, "--layerwise runs no trials"]);
    }
    for option in [
        "--first fpn",
        "--trace-images 4",
        "--trace-batch 4",
        "--trace-probes 4",
        "--trace-error 0.5",
        "--trace mqbench",
        "--size file",
        "--target-compression 8",
    ] {
        let name = option.split(' ').next().unwrap();
        refused(&format!("search --assign fpn:2 --out OUT {option}"), &[name, "--assign"]);
    }
    refused("search --assign fpn:2 --out OUT --jobs 2", &["--jobs", "--orders"]);
    refused("search --layerwise --target-compression 8 --orders all", &["--orders"]);
    refused("search --only x --print-commands", &["--only", "--print-commands"]);
}

#[test]
fn a_file_that_tells_its_topology_needs_none() {
    let files = files();
    let out = files.folder.join("told.safetensors");
    let ran = run(&["export", TINY, "--out", out.to_str().unwrap()]).code(0);
    ran.says(&["holds a network of topology WidedepthTiny"]);
    let audited = run(&["audit", TINY, "--json"]).code(0).json();
    assert_eq!(audited["tensors"].as_array().unwrap().len(), 24);
}

#[test]
fn an_exported_file_is_given_the_objects_that_its_weights_lack() {
    let files = files();
    let at = |name: &str| files.folder.join(name).to_str().unwrap().to_owned();
    let bare = at("bare.safetensors");
    run(&["export", TINY, "--out", &bare]).code(0);
    let boxes = dataset().join("swisscube_bbox.json");
    let named = ["--boxes", boxes.to_str().unwrap()];
    let data = ["--data", dataset().to_str().unwrap()];
    for format in ["packed", "onnx"] {
        for (i, more) in [&[][..], &named, &data].into_iter().enumerate() {
            let out = at(&format!("objects_{i}.{format}"));
            let export = ["export", &bare, "--format", format, "--out", &out];
            let ran = run(&[&export[..], more].concat()).code(0);
            assert_eq!(ran.stderr().contains("carries no objects"), more.is_empty(), "{more:?}");
            let found = run(&["inspect", &out, "--json"]).code(0).json();
            let objects = found["objects"].as_array().map_or(0, Vec::len);
            assert_eq!(objects, usize::from(!more.is_empty()), "{format} {more:?}");
        }
    }
}

#[test]
fn an_onnx_file_is_inspected_and_audited() {
    let files = files();
    let found = run(&["inspect", &files.onnx, "--json"]).code(0).json();
    assert_eq!(
        (&found["kind"], &found["network"]["topology"]),
        (&"onnx".into(), &"WidedepthTiny".into())
    );
    let audited = run(&["audit", &files.onnx, "--json"]).code(0).json();
    assert_eq!((&audited["kind"], &audited["passed"]), (&"onnx".into(), &true.into()));
    // Integers of the FPN, on more levels than are asked for.
    let integers = files.folder.join("integers.onnx");
    let integers = integers.to_str().unwrap();
    let calibrate = ["--calibrate", "2", "--data", dataset().to_str().unwrap()];
    let export = ["export", &files.checkpoint, "--format", "onnx", "--out", integers];
    run(&[&export[..], &calibrate].concat()).code(0);
    let found = run(&["inspect", integers, "--json"]).code(0).json();
    let codes = found["codes"].as_array().unwrap();
    assert!(codes.len() > 10 && codes[0]["dtype"] == "int8", "{}", found["codes"]);
    run(&["audit", integers]).code(0);
    run(&["audit", integers, "--bits", "4"]).code(1).says(&["have problems"]);
    // A scale that is not positive.
    let mut bytes = std::fs::read(integers).unwrap();
    let name = b".weight_scale";
    // Constants lie after the nodes, which name them, too.
    let key = bytes.windows(name.len()).rposition(|w| w == name).unwrap() + name.len();
    assert_eq!(bytes[key], 0x4a, "raw_data follows the name");
    let length = bytes[key + 1..].iter().position(|b| b & 0x80 == 0).unwrap() + 1;
    let raw = key + 1 + length;
    bytes[raw..raw + 4].copy_from_slice(&(-1.0f32).to_le_bytes());
    let broken = files.folder.join("broken.onnx");
    std::fs::write(&broken, bytes).unwrap();
    let broken = broken.to_str().unwrap();
    run(&["audit", broken]).code(1).says(&["have problems"]);
}
