//! Configs: shipped ones pass, mistakes are named.

use std::fs;

use serde_json::Value;

use crate::support::run;

#[test]
fn every_shipped_config_resolves_and_comes_back_as_itself() {
    for topology in ["Widedepth", "WidedepthTiny", "CaSpaceNet", "CaSpaceNetTiny"] {
        let resolved = run(&["config", "--topology", topology]).code(0);
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        fs::write(&file, &resolved.output.stdout).unwrap();
        let again = run(&["config", "--config", file.to_str().unwrap()]).code(0);
        let without_url = |mut v: Value| {
            v["experiment"]["url"] = Value::Null;
            v
        };
        assert_eq!(without_url(again.json()), without_url(resolved.json()), "{topology}");
    }
}

#[test]
fn the_schema_describes_every_section() {
    let schema = run(&["config", "--schema"]).code(0).json();
    for section in
        ["experiment", "RUNTIME", "data", "INPUT", "network", "training", "quantize", "evaluation"]
    {
        assert!(schema["properties"][section].is_object(), "{section}");
    }
}

#[test]
fn set_changes_a_value_and_a_mistyped_key_gets_the_nearest_one() {
    let changed = run(&["config", "--set", "data.bs_train=3", "--seed", "7"]).code(0).json();
    assert_eq!(changed["data"]["bs_train"], 3);
    assert_eq!(changed["experiment"]["seed"], 7);
    run(&["config", "--set", "data.bs_trian=3"])
        .code(1)
        .says(&["data.bs_trian", "did you mean bs_train?"]);
    run(&["config", "--set", "data.bs_train=0", "--set", "quantize.flow.0.epochs=0"])
        .code(1)
        .says(&["data.bs_train", "quantize.flow.0.epochs"]);
    run(&["config", "--topology", "Nothing"]).code(1).says(&["SwissCube/Widedepth"]);
    run(&["config", "--set", "quantize.flow.0.module=fnp", "--config", "nowhere.json"])
        .code(1)
        .says(&["nowhere.json"]);
}

#[test]
fn a_broken_file_names_itself_and_the_line() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("config.json");
    fs::write(&file, "{\n  \"data\": {\n    \"bs_train\": ,\n  }\n}").unwrap();
    run(&["config", "--config", file.to_str().unwrap()]).code(1).says(&["config.json", "line 3"]);
}

#[test]
fn a_module_that_is_not_there_is_named_with_the_nearest() {
    run(&["inspect", "--set", "quantize.flow.0.module=fnp"]).code(1).says(&["fnp", "fpn"]);
}
