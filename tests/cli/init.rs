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

#[test]
fn rendered_scenes_of_several_objects_lead_to_a_table_of_instances() {
    let home = tempfile::tempdir().unwrap();
    let data = home.path().join("objects");
    let synth = ["synth", "--layout", "bop", "--out", text(&data), "--train", "10", "--val", "0"];
    let more = ["--test", "4", "--size", "64", "--depth", "1.5d:3d", "--instances", "3:4"];
    run_in(home.path(), &[&synth[..], &more, &["--objects", "2"]].concat()).code(0);
    assert!(data.join("train_pbr/000000/mask_visib/000000_000002.png").is_file());
    let names = ["--problem", "Two", "--topology", "WidedepthTiny"];
    let init = [&["init", "--data", text(&data), "--size", "64x64"][..], &names].concat();
    let made = run_in(home.path(), &init).code(0).stdout();
    assert!(made.contains("evaluation.instances"), "{made}");
    let quick =
        ["--device", "cpu", "--set", "RUNTIME.NUM_THREADS=1", "--set", "RUNTIME.NUM_WORKERS=1"];
    let train = [&["train"][..], &names, &quick, &["--max-steps", "1"]].concat();
    run_in(home.path(), &train).code(0).says(&["hold several objects of a class, up to"]);
    // A network that has learnt nothing is sure of nothing: every cell is asked.
    let test = [&["test"][..], &names, &["--device", "cpu", "--json"]].concat();
    let tested = run_in(home.path(), &test).code(0).json();
    let dataset = &tested["evaluations"][0]["report"]["dataset"];
    assert!(dataset["num_images_with_several"].as_u64().unwrap() > 0, "{dataset}");
}

#[test]
fn settings_of_scenes_are_refused_beside_the_satellite() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let synth =
        |more: &[&str]| run_in(dir.path(), &[&["synth", "--out", text(&out)][..], more].concat());
    synth(&["--objects", "2"]).code(1).says(&["--objects cannot act", "the satellite alone"]);
    synth(&["--layout", "bop", "--instances", "3:1"]).code(2).says(&["FEWEST:MOST"]);
    synth(&["--layout", "bop", "--meshes", text(dir.path())]).code(1).says(&["no .ply file"]);
}
