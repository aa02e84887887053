//! The search: trials, curvature, bits, orders; stopped and resumed; its plans run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::{dataset, mqat, run, small, tensors};

/// Short stages without quantized inputs.
const SHORT: &[&str] = &[
    "--set",
    "training.full_precision={\"name\":\"full_precision\",\"epochs\":1,\"batch_size\":4}",
    "--set",
    "quantize.flow=[{\"module\":\"fpn\",\"epochs\":1,\"weights\":{\"bits\":2,\"schedule\":{\"0\":1}}}]",
];

/// Full-precision weights, trained once.
fn weights() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let logs = tempfile::tempdir().unwrap().keep();
        let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
        run(&small("train", &[SHORT, &["--set", "quantize.flow=[]"], &places].concat())).code(0);
        logs.join("SwissCube/WidedepthTiny/exp000/checkpoints/stage_0_full_precision.safetensors")
    })
}

/// A short measurement of the curvature.
const TRACE: &[&str] = &["--trace-images", "4", "--trace-batch", "4", "--trace-probes", "4"];
/// Trials beside each other.
const JOBS: &[&str] = &["--jobs", "2"];

/// `mqat search` over `fpn` and `head` with everything short.
fn search<'a>(logs: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
    let data = dataset().to_str().unwrap();
    let logs = logs.to_str().unwrap();
    let own = [
        "--data",
        data,
        "--logs",
        logs,
        "--from",
        weights().to_str().unwrap(),
        "--modules",
        "fpn,head",
    ];
    small("search", &[SHORT, &own, more].concat())
}

fn folder(logs: &Path) -> PathBuf {
    logs.join("SwissCube/WidedepthTiny/search")
}

#[test]
fn a_search_that_was_killed_goes_on_and_its_plan_is_trained() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, plan) = (dir.path().join("logs"), dir.path().join("plan.json"));
    let target = ["--target-bits", "8", "--out", plan.to_str().unwrap(), "--json"];
    // The backbone stays float, and is most of the network.
    let refused = run(&search(&logs, &[TRACE, JOBS, &target].concat()))
        .code(1)
        .says(&["cannot be reached", "stay float"])
        .stderr();
    let nearest = refused.split("--target-bits ").nth(1).unwrap();
    let nearest = nearest.split(';').next().unwrap();
    let listed = ["--target-bits", nearest, "--print-commands", "--json"];
    run(&search(&logs, &[TRACE, JOBS, &listed].concat())).code(0);
    let target = ["--target-compression", "1.5", "--out", plan.to_str().unwrap(), "--json"];
    let args = search(&logs, &[TRACE, JOBS, &target].concat());
    let listed = run(&[&args[..], &["--print-commands"]].concat()).code(0).json();
    let names: Vec<&str> =
        listed.as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["reference", "fpn-2bit", "head-2bit"]);

    let mut child = mqat(&args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let since = Instant::now();
    let reference = PathBuf::from(listed[0]["folder"].as_str().unwrap())
        .join("SwissCube/WidedepthTiny/exp000/checkpoints");
    while !reference.is_dir() {
        assert!(since.elapsed() < Duration::from_secs(120), "no trial has begun");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!plan.exists());

    let report = run(&args).code(0).json();
    let trials: Vec<&str> =
        report["trials"].as_array().unwrap().iter().map(|t| t["name"].as_str().unwrap()).collect();
    assert_eq!(trials, names);
    for trial in report["trials"].as_array().unwrap() {
        assert_eq!(trial["score"]["num_targets"], 4, "{trial}");
        assert_eq!(trial["global_step"], 4, "{trial}");
    }
    for (i, module) in report["modules"].as_array().unwrap().iter().enumerate() {
        assert_eq!(module["position"], i);
        assert!(module["trace"]["standard_error"].as_f64().unwrap() > 0.0, "{module}");
        for bits in ["2", "4", "8"] {
            assert!(module["sensitivity"][bits]["mean"].is_number(), "{module}");
        }
        let trial = &module["trial"];
        assert!(trial["reference"]["interval_95"].is_array(), "{module}");
        assert!(trial["start"]["interval_95"].is_array(), "{module}");
        // Untrained networks on four images: nothing is right, every gain is 0 and decides nothing.
        assert_eq!((&trial["points"], &trial["standard_error"]), (&0.0.into(), &0.0.into()));
        assert_eq!(trial["verdict"], "undecided");
        assert_eq!(module["is_first_by_trial"], false);
    }
    // The reference has what batch norms alone would gain a trial.
    let config_of = |i: usize| -> Value {
        let path = PathBuf::from(listed[i]["folder"].as_str().unwrap()).join("config.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    assert_eq!(config_of(0)["training"]["bn_always"], true);
    assert_eq!(config_of(1)["training"]["bn_always"], false);
    let size = &report["size"];
    assert!(size["paper_compression"].as_f64().unwrap() >= 1.5, "{size}");
    assert!(size["file_compression"].as_f64() < size["paper_compression"].as_f64(), "{size}");

    // Everything is there: the second time nothing is run, and the answer is the same.
    let logs_of = |i: usize| PathBuf::from(listed[i]["folder"].as_str().unwrap()).join("log.txt");
    let before: Vec<u64> = (0..3).map(|i| fs::metadata(logs_of(i)).unwrap().len()).collect();
    let again = run(&args).code(0).json();
    let after: Vec<u64> = (0..3).map(|i| fs::metadata(logs_of(i)).unwrap().len()).collect();
    assert_eq!(before, after);
    assert_eq!(again["modules"], report["modules"]);
    // Commands of orders are listed without an evaluation of the start.
    let starts = || {
        let names = fs::read_dir(folder(&logs)).unwrap().map(|e| e.unwrap().path());
        names.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with("start-")).collect()
    };
    let made: Vec<PathBuf> = starts();
    assert_eq!(made.len(), 1);
    fs::remove_dir_all(&made[0]).unwrap();
    let orders = [&args[..], &["--orders", "greedy", "--print-commands"]].concat();
    let listed_orders = run(&orders).code(0).json();
    assert!(!listed_orders.as_array().unwrap().is_empty() && starts().is_empty());
    // Other settings are other trials.
    let other = [&args[..], &["--seed", "9", "--print-commands"]].concat();
    assert_eq!(run(&other).code(0).json().as_array().unwrap().len(), 3);

    let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
    let plan = ["--flow", plan.to_str().unwrap(), "--json"];
    let trained = run(&small("train", &[SHORT, &places, &plan].concat())).code(0).json();
    let stages = trained["stages"].as_array().unwrap();
    for (i, module) in report["modules"].as_array().unwrap().iter().enumerate() {
        assert_eq!(stages[i + 1]["name"], module["module"]);
        for layer in stages[i + 1]["layers"].as_array().unwrap() {
            if layer["name"].as_str().unwrap().starts_with(module["module"].as_str().unwrap()) {
                assert_eq!(layer["bits"], module["bits"], "{layer}");
            }
        }
    }
}

#[test]
fn a_shared_prefix_ends_as_the_separate_run_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let orders = ["--assign", "fpn:2,head:8", "--orders", "all", "--json"];
    let report = run(&search(&logs, &[JOBS, &orders].concat())).code(0).json();
    let orders = &report["orders"];
    assert_eq!(
        (&orders["num_stages"], &orders["num_stages_separate"]),
        (&Value::from(4), &Value::from(4))
    );
    assert_eq!(orders["orders"].as_array().unwrap().len(), 2);
    let trial =
        orders["trials"].as_array().unwrap().iter().find(|t| t["name"] == "fpn-2bit.head-8bit");
    let trial = trial.unwrap();
    let shared = PathBuf::from(trial["checkpoint"].as_str().unwrap());
    assert!(folder(&logs).join("trials") < shared);
    // It was resumed from its parent's end, and not run from the beginning.
    let exp = shared.parent().unwrap().parent().unwrap();
    let provenance: Value =
        serde_json::from_slice(&fs::read(exp.join("provenance.json")).unwrap()).unwrap();
    assert_eq!(provenance["starts"][0]["resumed_from"], "last");
    let config = exp.join("../../../config.json");
    let alone = dir.path().join("alone");
    let args = [
        "train",
        "--topology",
        "WidedepthTiny",
        "--device",
        "cpu",
        "--config",
        config.to_str().unwrap(),
        "--data",
        dataset().to_str().unwrap(),
        "--logs",
        alone.to_str().unwrap(),
    ];
    run(&args).code(0);
    let separate =
        alone.join("SwissCube/WidedepthTiny/exp000/checkpoints").join(shared.file_name().unwrap());
    let (a, b) = (tensors(&shared), tensors(&separate));
    assert!(a.iter().any(|(name, _)| name.starts_with("optim.")));
    assert!(a.iter().any(|(name, _)| name.starts_with("quant.head")));
    assert_eq!(a.len(), b.len());
    for ((name, shared), (other, separate)) in a.iter().zip(&b) {
        assert!(name == other && shared == separate, "{name} differs");
    }
}

#[test]
fn layers_get_their_own_bits_in_one_stage() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, plan) = (dir.path().join("logs"), dir.path().join("hawq.json"));
    let wanted =
        ["--layerwise", "--target-compression", "1.5", "--out", plan.to_str().unwrap(), "--json"];
    let report = run(&search(&logs, &[TRACE, &wanted].concat())).code(0).json();
    let layers = report["layers"].as_array().unwrap();
    assert!(layers.len() > 8 && report["trials"].as_array().unwrap().is_empty());
    let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
    let plan = ["--flow", plan.to_str().unwrap(), "--json"];
    let trained = run(&small("train", &[SHORT, &places, &plan].concat())).code(0).json();
    let trained = trained["stages"][1]["layers"].as_array().unwrap();
    assert_eq!(trained.len(), layers.len());
    for layer in layers {
        let found = trained.iter().find(|t| t["name"] == layer["layer"]).unwrap();
        assert_eq!(found["bits"], layer["bits"], "{layer}");
    }
}

#[test]
fn layers_get_their_own_bits_in_stages_of_modules() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, file) = (dir.path().join("logs"), dir.path().join("plan.json"));
    let sequential = [
        "--layerwise",
        "--sequential",
        "--method",
        "lsq",
        "--afterwards",
        "train",
        "--stage-epochs",
        "sensitivity",
        "--set",
        "quantize.flow.0.epochs=5",
        "--set",
        "quantize.flow.0.weights.schedule={\"4\":1}",
        "--target-compression",
        "1.5",
        "--out",
        file.to_str().unwrap(),
    ];
    let args = search(&logs, &[TRACE, &sequential].concat());
    let report = run(&[&args[..], &["--json"]].concat()).code(0).json();
    let plan: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let flow = plan["flow"].as_array().unwrap();
    // the order is by number of parameters, and every layer has its own bits in the stage of its module
    let modules: Vec<&str> = flow.iter().map(|s| s["module"].as_str().unwrap()).collect();
    assert!(modules == ["fpn", "head"] || modules == ["head", "fpn"], "{modules:?}");
    for layer in report["layers"].as_array().unwrap() {
        let position = layer["position"].as_u64().unwrap() as usize;
        assert_eq!(flow[position]["module"], layer["module"]);
        let bits = &flow[position]["weights"]["layer_bits"][layer["layer"].as_str().unwrap()];
        assert_eq!(*bits, layer["bits"], "{layer}");
    }
    assert!(flow.iter().all(|s| s["afterwards"] == "train" && s["weights"]["bits"].is_null()));
    // the total is kept, and the more sensitive module trains longer
    let epochs: Vec<u64> = flow.iter().map(|s| s["epochs"].as_u64().unwrap()).collect();
    assert_eq!(epochs.iter().sum::<u64>(), 10);
    let told = &plan["made_by"]["details"]["stage_epochs"];
    assert_eq!(
        (&told["rule"], &told["total"], &told["floor"]),
        (&"sensitivity".into(), &10.into(), &1.into())
    );
    let told = told["stages"].as_array().unwrap();
    let longest = told.iter().max_by_key(|s| s["epochs"].as_u64()).unwrap();
    let sensitivity = |s: &Value| s["sensitivity"].as_f64().unwrap();
    assert!(told.iter().all(|s| sensitivity(s) <= sensitivity(longest)), "{told:?}");
    let first = [&args[..], &["--first", modules[1]]].concat();
    let shown = run(&first).code(0).stdout();
    let order = format!("order: {}, {}; a stage for each module", modules[1], modules[0]);
    assert!(shown.contains(&order) && shown.contains("epochs: "), "{shown}");

    let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
    let trained = ["--max-steps", "1", "--flow", file.to_str().unwrap()];
    run(&small("train", &[SHORT, &places, &trained].concat())).code(0);

    let base = search(&logs, &[TRACE, &["--target-compression", "1.5"]].concat());
    let refused = |more: &[&str], code: i32, parts: &[&str]| {
        run(&[&base[..], more].concat()).code(code).says(parts);
    };
    refused(&["--sequential"], 2, &["--layerwise"]);
    refused(
        &["--layerwise", "--afterwards", "train"],
        1,
        &["--afterwards cannot act", "--sequential"],
    );
    refused(&["--layerwise", "--stage-epochs", "equal"], 1, &["--stage-epochs cannot act"]);
    refused(&["--stage-epochs", "equal"], 1, &["pass --out"]);
    refused(
        &["--layerwise", "--sequential", "--afterwards", "train", "--out", "x.json"],
        1,
        &["--afterwards: the stage of fpn.afterwards: is train, but method inq"],
    );
}

#[test]
fn the_layerwise_baseline_is_one_command() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let url = format!("experiment.url={}", weights().display());
    let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
    let start = ["--set", "experiment.pretrained=true", "--set", &url];
    let hawq = [
        "--method",
        "hawq",
        "--target-compression",
        "5.5",
        "--trace-probes",
        "4",
        "--seed",
        "4",
        "--json",
    ];
    let args = small("train", &[SHORT, &places, &start, &hawq].concat());
    let trained = run(&args).code(0).json();
    let plan = folder(&logs).join("hawq-5.5x-seed4.json");
    let plan: Value = serde_json::from_slice(&fs::read(&plan).unwrap()).unwrap();
    let wanted = plan["flow"][0]["weights"]["layer_bits"].as_object().unwrap();
    assert!(wanted.values().any(|b| b != 4), "{wanted:?}");
    let layers = trained["stages"][1]["layers"].as_array().unwrap();
    assert_eq!(layers.len(), wanted.len());
    for layer in layers {
        assert_eq!(layer["bits"], wanted[layer["name"].as_str().unwrap()], "{layer}");
    }
    // A run that goes on keeps its plan.
    run(&[&args[..], &["--resume"]].concat()).code(1).says(&["leave --method hawq"]);
    let own = ["train", "--topology", "WidedepthTiny", "--device", "cpu", "--resume"];
    run(&[&own[..], &places].concat()).code(0);

    let base = small("train", &[SHORT, &places].concat());
    let refused = |more: &[&str], parts: &[&str]| {
        run(&[&base[..], more].concat()).code(1).says(parts);
    };
    refused(&["--method", "hawq"], &["--target-compression"]);
    refused(&["--method", "lsq", "--target-compression", "8"], &["--method hawq"]);
    refused(&["--method", "hawq", "--target-compression", "8", "--bits", "4"], &["--bits"]);
    let plan = ["plan", "--topology", "WidedepthTiny", "--method", "hawq"];
    run(&[&plan[..], &["--target-compression", "8"]].concat())
        .code(1)
        .says(&["search --layerwise"]);
}

#[test]
fn what_cannot_be_searched_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let places = ["--data", dataset().to_str().unwrap(), "--logs", dir.path().to_str().unwrap()];
    run(&small("search", &[&places[..], &["--target-compression", "4"]].concat()))
        .code(1)
        .says(&["full-precision weights", "--from FILE"]);
    let base = search(dir.path(), &[]);
    run(&base).code(1).says(&["no target", "--target-compression"]);
    let with = |more: &[&'static str]| [&base[..], more].concat();
    run(&with(&["--target-compression", "4", "--modules", "fpn,haed"]))
        .code(2)
        .says(&["cannot be used multiple times"]);
    run(&with(&["--assign", "fpn:2,neck:8", "--orders", "all"]))
        .code(1)
        .says(&["neck", "fpn, head"]);
    run(&with(&["--assign", "fpn:2"])).code(1).says(&["--orders", "--out"]);
    run(&with(&["--bits", "2,9"])).code(2).says(&["9"]);
}
