//! `mqat init`: from an unknown BOP folder to a table in three commands.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Ran, mqat};

fn toy() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/14_bop_multi/toy")
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn run_in(home: &Path, args: &[&str]) -> Ran {
    let mut command = mqat(args);
    command.env("MQAT_HOME", home);
    let line = format!("{command:?}");
    Ran { output: command.output().unwrap(), line }
}

#[test]
fn three_commands_lead_from_a_folder_to_a_table() {
    let home = tempfile::tempdir().unwrap();
    let data = toy();
    let names = ["--problem", "Toy", "--topology", "WidedepthTiny"];
    let init = [&["init", "--data", text(&data), "--size", "64x64"][..], &names].concat();
    let made = run_in(home.path(), &[&init[..], &["--json"]].concat()).code(0).json();
    let config = home.path().join("problems/Toy/WidedepthTiny/config.json");
    assert_eq!(made["config"], text(&config));
    let written: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    assert_eq!(written["data"]["N_CLASS"], 4);
    assert_eq!(written["INPUT"]["INTERNAL_WIDTH"], 64);
    assert!(home.path().join("data/Toy/test").is_dir());
    let keys: Vec<&Value> =
        made["choices"].as_array().unwrap().iter().map(|choice| &choice["key"]).collect();
    assert!(keys.contains(&&"INPUT.INTERNAL_K".into()), "{made}");

    run_in(home.path(), &init).code(1).says(&["already exists", "--overwrite"]);
    let again = run_in(home.path(), &[&init[..], &["--overwrite"]].concat()).code(0).stdout();
    assert!(again.contains("mqat train --problem Toy --topology WidedepthTiny"), "{again}");

    let quick =
        ["--device", "cpu", "--set", "RUNTIME.NUM_THREADS=1", "--set", "RUNTIME.NUM_WORKERS=1"];
    let train = [&["train"][..], &names, &quick, &["--max-steps", "1"]].concat();
    run_in(home.path(), &train).code(0);
    let test = [&["test"][..], &names, &["--device", "cpu", "--json"]].concat();
    let tested = run_in(home.path(), &test).code(0).json();
    assert_eq!(tested["evaluations"][0]["report"]["bop"]["num_targets"], 20, "{tested}");
}

#[test]
fn what_cannot_be_a_problem_is_refused() {
    let home = tempfile::tempdir().unwrap();
    let init = |data: &str, more: &[&str]| {
        run_in(home.path(), &[&["init", "--problem", "P", "--data", data][..], more].concat())
    };
    init(text(home.path()), &[]).code(1).says(&["is not a BOP folder", "scene_camera.json"]);
    let data = toy();
    init(text(&data), &["--size", "100x64"])
        .code(1)
        .says(&["100 is no multiple of 32", "96 or 128"]);
    init(text(&data), &["--topology", "Nope"])
        .code(1)
        .says(&["no config", "SwissCube/WidedepthTiny"]);
    init(text(&data), &["--size", "wide"]).code(2).says(&["expected WIDTHxHEIGHT"]);
    assert!(!home.path().join("problems").exists());
}
