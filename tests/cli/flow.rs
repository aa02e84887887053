//! Flows: their plan, their training, their audit.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::support::{SMALL, dataset, run, small};

/// [`SMALL`] without what is for commands that compute.
fn settings() -> Vec<&'static str> {
    SMALL.iter().copied().filter(|a| !["--device", "cpu"].contains(a)).collect()
}

/// A plan of the small network.
fn small_plan<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["plan"], &settings()[..], more].concat()
}

fn plan(more: &[&str]) -> Value {
    run(&small_plan(&[more, &["--json"]].concat())).code(0).json()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn the_published_compressions_come_out_of_the_full_network() {
    for (flow, factor) in [("fpn:2,head:8,backbone:8", 4.33), ("fpn:2,head:4,backbone:4", 8.43)] {
        let plan = run(&["plan", "--flow", flow, "--images", "30000", "--json"]).code(0).json();
        let found = plan["sizes"]["paper_compression"].as_f64().unwrap();
        assert!((found - factor).abs() < 0.005, "{flow}: {found}");
        let file = plan["sizes"]["file_compression"].as_f64().unwrap();
        assert!(1.0 < file && file < found, "{flow}: {file}");
        let names: Vec<&str> = plan["stages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|s| s["name"].as_str().unwrap())
            .collect();
        assert_eq!(names, ["full_precision", "fpn", "head", "backbone"]);
        assert_eq!(plan["stages"][1]["steps_per_epoch"], 3750);
        assert_eq!(plan["stages"][1]["epochs"][29]["fraction"], 1.0);
        assert_eq!(plan["layers"].as_array().unwrap().len(), 70 + 1);
    }
}

#[test]
fn a_plan_tells_every_convolution_and_epoch() {
    let found = plan(&[
        "--data",
        text(dataset()),
        "--set",
        "quantize.flow.0.last_layer=false",
        "--flow",
        "head:w4a8/255, backbone.features.stage[1-2]+fpn.*.2:2/4",
    ]);
    assert_eq!((&found["num_images"], &found["num_steps"]), (&16.into(), &(3 * 8).into()));
    let layer = |name: &str| {
        found["layers"].as_array().unwrap().iter().find(|l| l["name"] == name).unwrap().clone()
    };
    let head = layer("head.cls_tower.0");
    assert_eq!((&head["stage"], &head["weights"]["num_levels"]), (&1.into(), &15.into()));
    assert_eq!(
        (&head["activations"]["bits"], &head["activations"]["num_levels"]),
        (&8.into(), &255.into())
    );
    let last = layer("head.cls_logits");
    assert_eq!(
        (&last["weights"], &last["float_because"]),
        (&Value::Null, &"last_layer is false".into())
    );
    let two = layer("fpn.out_convs.2");
    assert_eq!((&two["weights"]["bits"], &two["weights"]["num_levels"]), (&2.into(), &4.into()));
    assert_eq!(layer("fpn.out_convs.3")["stage"], Value::Null);
    assert_eq!(layer("backbone.features.stage2.unit1.conv")["stage"], 2);
    let epochs = &found["stages"][1]["epochs"];
    assert_eq!(
        (&epochs[0]["activations"], &epochs[1]["activations"]),
        (&"recorded".into(), &"quantized".into())
    );
    assert_eq!((&epochs[0]["fraction"], &epochs[1]["fraction"]), (&0.5.into(), &1.0.into()));

    let text = run(&small_plan(&["--images", "400"])).code(0).stdout();
    for part in [
        "stage 1 fpn: quantizes fpn: 8 convolutions",
        "2 epochs of 100 steps of 4 images",
        "100.00 % frozen, activations quantized, momentum cleared",
        "inq 2 bits (3 levels)",
        "weight-only compression",
        "whole-model",
    ] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn baselines_keep_the_budget_of_the_flow() {
    let uniform = plan(&["--method", "inq", "--bits", "4"]);
    let stages = uniform["stages"].as_array().unwrap();
    assert_eq!((stages.len(), &stages[1]["module"]), (2, &"*".into()));
    assert_eq!(stages[1]["epochs"].as_array().unwrap().len(), 2);
    assert!(uniform["layers"].as_array().unwrap().iter().all(|l| l["weights"]["bits"] == 4));
    assert_eq!(uniform["sizes"]["paper_compression"], 8.0);
    let float = plan(&["--method", "full-precision"]);
    assert_eq!(float["stages"][1]["epochs"].as_array().unwrap().len(), 2);
    assert!(float["layers"].as_array().unwrap().iter().all(|l| l["weights"].is_null()));
}

#[test]
fn equal_bits_may_mean_equal_levels_for_every_method() {
    let levels = |plan: &Value| -> Vec<u64> {
        let layers = plan["layers"].as_array().unwrap();
        let mut all: Vec<u64> =
            layers.iter().filter_map(|l| l["weights"]["num_levels"].as_u64()).collect();
        all.sort_unstable();
        all.dedup();
        all
    };
    for method in ["inq", "lsq", "uniform", "dorefa"] {
        let of = |more: &[&str]| {
            let found = plan(&[&["--method", method, "--bits", "2"], more].concat());
            assert_eq!(found["sizes"]["paper_compression"], 16.0);
            levels(&found)
        };
        let own = if ["lsq", "dorefa"].contains(&method) { 4 } else { 3 };
        assert_eq!(of(&[]), [own], "{method}");
        assert_eq!(of(&["--levels", "odd"]), [3], "{method}");
        assert_eq!(of(&["--levels", "full"]), [4], "{method}");
    }
    let flow = "quantize.flow=[{\"module\":\"fpn\",\"weights\":{\"bits\":3,\"layer_bits\":\
                {\"fpn.out_convs\":{\"bits\":2,\"n_levels\":4},\"fpn.top_blocks\":{\"bits\":4,\"levels\":\"full\"}}}}]";
    let mixed = plan(&["--set", flow]);
    assert_eq!(levels(&mixed), [4, 7, 16]);
    let written = run(&small_plan(&["--set", flow])).code(0).stdout();
    assert!(written.contains("inq 2 bits (4 levels)"), "{written}");

    run(&small_plan(&["--set", "quantize.flow.0.weights={\"n_levels\":4,\"levels\":\"odd\"}"]))
        .code(1)
        .says(&["levels odd and n_levels 4 contradict each other: 2 bits are 3 levels"]);
    run(&small_plan(&["--method", "inq", "--bits", "a8", "--levels", "odd"]))
        .code(1)
        .says(&["--levels is of weights"]);
    run(&small_plan(&["--method", "full-precision", "--levels", "odd"]))
        .code(1)
        .says(&["full-precision takes no --levels"]);
    run(&small_plan(&["--levels", "odd"])).code(2);
    run(&small_plan(&["--method", "inq", "--bits", "2", "--levels", "even"])).code(2);
}

#[test]
fn a_plan_warns_of_a_rate_table_that_ends_at_full_rate() {
    let text = |epochs: &str| run(&small_plan(&["--epochs", epochs])).code(0).stdout();
    let warning = "warning: the last epoch (30) has the largest factor of the table";
    let published = run(&["plan", "--flow", "fpn:2", "--images", "64"]).code(0).stdout();
    assert!(published.contains(warning), "{published}");
    // Averaged weights are not those of the last steps.
    let ema = ["--set", "training.ema={\"decay\":0.999}"];
    let averaged = ["plan", "--flow", "fpn:2", "--images", "64", ema[0], ema[1]];
    assert!(!run(&averaged).code(0).stdout().contains("warning:"));
    let lr = "quantize.flow.0.lr.decay={\"epochs\":{\"0\":1,\"1\":0.1}}";
    let quiet = run(&small_plan(&["--set", lr])).code(0).stdout();
    assert!(!quiet.contains("warning:"), "{quiet}");
    assert!(text("1").contains("1 epoch"), "one epoch has one factor");
    assert!(!text("1").contains("largest factor of the table"));
}

#[test]
fn each_mistake_in_a_flow_has_its_own_message() {
    let refused = |flow: &[&str], parts: &[&str]| {
        run(&small_plan(flow)).code(1).says(parts);
    };
    refused(&["--flow", "fnp:2"], &["\"fnp\" has no layer to quantize", "nearest names are fpn"]);
    refused(
        &["--flow", "backbone.features.stag[12]:2"],
        &["nothing in \"backbone.features\" matches", "stage1"],
    );
    refused(
        &["--flow", "head.*.0:2,head.cls_tower:4"],
        &["head.cls_tower.0.weight is claimed by module", "head.*.0"],
    );
    refused(
        &["--set", "quantize.flow.0.weights.schedule={\"0\":0.5,\"1\":0.75}"],
        &["quantize.flow.0.weights.schedule.1: the last fraction is 0.75, expected 1"],
    );
    refused(
        &["--set", "quantize.flow.0.weights={\"n_levels\":1}"],
        &["quantize.flow.0.weights.n_levels: 1 is outside 2..=256"],
    );
    refused(&["--set", "quantize.flow.0.weights.method=inc"], &["inc", "inq"]);
    refused(&["--flow", "nowhere.json"], &["nowhere.json"]);
    refused(&["--method", "inq"], &["--bits"]);
    for usage in [
        &["--flow", "fpn:2@inc"][..],
        &["--flow", "fpn"],
        &["--method", "inc", "--bits", "2"],
        &["--bits", "2"],
    ] {
        run(&small_plan(usage)).code(2);
    }
}

#[test]
fn a_flow_is_trained_audited_and_kept_by_its_run() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let places = ["--data", text(dataset()), "--logs", text(&logs)];
    let file = dir.path().join("flow.json");
    let flow = "fpn:2,head.*_tower:w3";
    run(&small_plan(&["--flow", flow, "--out", text(&file)])).code(0);
    run(&small_plan(&["--flow", flow, "--out", text(&file)])).code(1).says(&["already exists"]);
    let wanted = [
        "--set",
        "training.full_precision=null",
        "--set",
        "training.ema={\"decay\":0.5}",
        "--json",
        "--flow",
        text(&file),
    ];
    let report = run(&small("train", &[&places[..], &wanted].concat())).code(0).json();
    assert_eq!((&report["outcome"], &report["global_step"]), (&"finished".into(), &16.into()));
    let exp = logs.join("SwissCube/WidedepthTiny/exp000");
    telemetry(&exp);
    let checkpoint = exp.join("checkpoints/stage_1_head._tower.safetensors");
    audits(&checkpoint, dir.path());

    let resume = |flow: &str| {
        let own = ["train", "--topology", "WidedepthTiny", "--device", "cpu", "--resume"];
        run(&[&own[..], &places, &["--flow", flow]].concat())
    };
    resume("fpn:2").code(1).says(&["a resumed run keeps its own flow (fpn, head._tower)"]);
    resume(flow).code(0);
    let tested =
        run(&[&["test", "--topology", "WidedepthTiny", "--device", "cpu", "--json"][..], &places]
            .concat());
    let name = tested.code(0).json()["evaluations"][0]["report"]["name"].clone();
    assert!(name.as_str().unwrap().ends_with("averaged weights"), "{name}");
}

fn telemetry(exp: &Path) {
    let metrics = fs::read_to_string(exp.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let of = |kind: &str| lines.iter().filter(|l| l["kind"] == kind).collect::<Vec<_>>();
    let telemetry = of("telemetry");
    assert_eq!(telemetry.len(), 4);
    let last = telemetry[1];
    assert_eq!((&last["module"], &last["frozen_fraction"]), (&"fpn".into(), &1.0.into()));
    for key in ["flip_rate", "sqnr_db", "zero_fraction", "levels_in_use", "scale_drift"] {
        assert!(last[key].is_number() && last["layers"][0][key].is_number(), "{key} in {last}");
    }
    assert!(of("validation").iter().all(|v| v["averaged"] == true));
}

fn audits(checkpoint: &Path, dir: &Path) {
    let audit = |file: &Path, more: &[&str]| run(&[&["audit", text(file)], more].concat());
    let found = audit(checkpoint, &["--json"]).code(0).json();
    assert_eq!((&found["passed"], &found["averaged"]), (&true.into(), &true.into()));
    let row = |found: &Value, name: &str| {
        let tensors = found["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap().clone()
    };
    let fpn = row(&found, "fpn.out_convs.2");
    assert_eq!(fpn["expected"], "inq 2 bits (3 levels)");
    assert_eq!(
        (&fpn["quantized"]["num_values"], &fpn["quantized"]["num_off_grid"]),
        (&3.into(), &0.into())
    );
    assert_eq!(row(&found, "head.cls_logits")["expected"], "float");
    let shown = audit(checkpoint, &[]).code(0).stdout();
    assert!(
        shown.contains("18 convolutions: 10 quantized and on their levels, 8 float; no problem"),
        "{shown}"
    );
    audit(checkpoint, &["--flow", "fpn:2,head:3"]).code(1).says(&["2 of 18 convolutions"]);
    audit(checkpoint, &["--bits", "8"]).code(1).says(&["8 of 18 convolutions have problems"]);
    // weights alone are told by their values
    let alone = dir.join("weights.safetensors");
    run(&["export", text(checkpoint), "--out", text(&alone)]).code(0);
    let by_values = audit(&alone, &[&settings()[..], &["--json"]].concat()).code(0).json();
    let fpn = row(&by_values, "fpn.out_convs.2");
    assert_eq!(
        (&fpn["values"]["num_values"], &fpn["values"]["spacing"]),
        (&3.into(), &"even".into())
    );
    assert_eq!(row(&by_values, "head.cls_logits")["values"]["spacing"], "float");
    // one weight off its levels
    let damaged = dir.join("damaged.safetensors");
    fs::write(&damaged, with_value(checkpoint, "ema.fpn.out_convs.2.weight", 0.123)).unwrap();
    let ran = audit(&damaged, &[]).code(1).says(&["1 of 18 convolutions", "fpn.out_convs.2"]);
    assert!(ran.stdout().contains("1 weights lie on none of its levels"), "{}", ran.stdout());
}

/// The bytes of a safetensors file with another first value of a tensor.
fn with_value(file: &Path, name: &str, value: f32) -> Vec<u8> {
    let mut bytes = fs::read(file).unwrap();
    let length = usize::try_from(u64::from_le_bytes(bytes[..8].try_into().unwrap())).unwrap();
    let header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    let offset = header[name]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[8 + length + offset..][..4].copy_from_slice(&value.to_le_bytes());
    // without the checksums, which would tell it before the audit does
    for text in ["\"crc32c\"", "\"header_crc32c\"", "\"header-"] {
        let at = bytes.windows(text.len()).position(|w| w == text.as_bytes());
        bytes[at.expect("files have checksums") + 1] = b'x';
    }
    bytes
}

/// The number and the learning rate of every step of a run.
fn rates(exp: &Path) -> Vec<(u64, f64)> {
    let metrics = fs::read_to_string(exp.join("metrics.jsonl")).unwrap();
    let lines = metrics.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    let steps = lines.filter(|l| l["kind"] == "step" || l["kind"] == "epoch");
    steps.map(|l| (l["global_step"].as_u64().unwrap(), l["lr"].as_f64().unwrap())).collect()
}

/// [`SMALL`] without what `--like` takes from another run: of a plan file the flow alone.
fn without_stages(of_plan: bool) -> Vec<&'static str> {
    let taken = ["quantize.flow=", "training.full_precision=", "data.bs_train="];
    let taken = if of_plan { &taken[..1] } else { &taken[..] };
    let is_taken = |pair: &[&str]| taken.iter().any(|key| pair[1].starts_with(key));
    SMALL.chunks(2).filter(|pair| !is_taken(pair)).flatten().copied().collect()
}

#[test]
fn a_float_control_takes_the_steps_and_rates_of_the_flow_it_is_like() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let places = ["--data", text(dataset()), "--logs", text(&logs)];
    // Two cosines with a restart, other rates and batch sizes, one of them the run's own; 12 of 16 images.
    let flow = "quantize.flow=[{\"module\":\"fpn\",\"epochs\":2,\"batch_size\":2,\"lr\":{\"base\":0.002,\"decay\":\
                {\"cosine\":{\"to\":0.1}}},\"weights\":{\"method\":\"lsq\",\"bits\":2}},{\"module\":\"head\",\"epochs\":\
                1,\"lr\":{\"base\":0.004,\"warmup_steps\":2,\"decay\":{\"cosine\":{\"to\":0}}},\"weights\":{\"method\":\
                \"lsq\",\"bits\":4}}]";
    let base = ["--set", "training.full_precision=null"];
    let own = ["--set", "training.train_images=12", "--set", "data.bs_train=3", "--set", flow];
    run(&small("train", &[&base[..], &own, &places].concat())).code(0);
    let exp = |i: u32| logs.join(format!("SwissCube/WidedepthTiny/exp00{i}"));
    let expected = rates(&exp(0));
    // the first 10 of 16 steps have a line each, and every epoch has one
    assert_eq!(expected.len(), 10 + 3);

    // By the number of the run: everything that decides its steps is taken over.
    let control = ["train", "--method", "full-precision", "--like"];
    let of_run = without_stages(false);
    run(&[&control[..], &["0"], &of_run, &places].concat()).code(0);
    assert_eq!(rates(&exp(1)), expected);
    let config: Value =
        serde_json::from_slice(&fs::read(exp(1).join("config.json")).unwrap()).unwrap();
    let stages = config["quantize"]["flow"].as_array().unwrap();
    assert!(stages.iter().all(|s| s["module"].is_null() && s["weights"].is_null()), "{config:#}");
    assert_eq!(stages[1]["name"], "float_head");

    // A plan file holds the stages alone.
    let file = dir.path().join("flow.json");
    run(&small_plan(&["--set", flow, "--out", text(&file)])).code(0);
    let of_plan = without_stages(true);
    let like_plan = [&control[..], &[text(&file)], &of_plan, &base, &own[..4], &places].concat();
    run(&like_plan).code(0);
    assert_eq!(rates(&exp(2)), expected);

    let refused = |more: &[&str]| run(&[&["train"], &of_run[..], &places, more].concat()).code(1);
    refused(&["--method", "lsq", "--bits", "2", "--like", "0"]).says(&["--like is for"]);
    refused(&[&control[1..], &["7"]].concat()).says(&["exp007"]);
    refused(&[&control[1..], &["nowhere"]].concat()).says(&["nowhere", "number of an experiment"]);
    refused(&[&control[1..], &["0", "--set", "data.bs_train=2"]].concat())
        .says(&["data.bs_train=2 is overruled by --like"]);

    // A control is scored like its flow, batch norms included, and begins with the same weights.
    assert_eq!(config["training"]["bn_always"], true);
    refused(&[&control[1..3], &["--set", "training.bn_always=false"]].concat())
        .says(&["training.bn_always=false is overruled by --method full-precision"]);
    let end = exp(0).join("checkpoints/stage_0_fpn.safetensors");
    let url = format!("experiment.url={}", text(&end));
    let elsewhere = ["--set", "experiment.pretrained=true", "--set", &url];
    refused(&[&control[1..], &["0"], &elsewhere].concat())
        .says(&["it begins with random values and this run with", "experiment.pretrained=false"]);
}
