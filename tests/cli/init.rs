//! `mqat init`: from an unknown BOP folder to a table in three commands.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

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
    // Every choice that is told is what the file has, and these are the folder's own, not the preset's.
    let at = |key: &str| written.pointer(&format!("/{}", key.replace('.', "/"))).cloned();
    for choice in made["choices"].as_array().unwrap() {
        let key = choice["key"].as_str().unwrap();
        assert_eq!(at(key).as_ref(), Some(&choice["value"]), "{key}");
    }
    for (key, value) in [
        ("data.N_CLASS", json!(4)),
        ("data.TRAIN", json!("train_pbr[without 0.1 seed 1]")),
        ("data.TEST", json!("test")),
        ("data.SYMMETRIC_CLASSES", json!([1, 2])),
        ("data.MESH_DIAMETERS", json!([])),
        // Two of its three images are trained on.
        ("training.full_precision.batch_size", json!(2)),
        ("INPUT.INTERNAL_WIDTH", json!(64)),
        ("evaluation.instances", json!(2)),
        ("quantize.flow", json!([])),
    ] {
        assert_eq!(at(key), Some(value), "{key}");
    }
    // fx of 82 px of images 96 px wide.
    let fx = at("INPUT.INTERNAL_K.0").unwrap().as_f64().unwrap();
    assert!((fx - 82.0 * 64.0 / 96.0).abs() < 1e-9, "{fx}");
    assert!(home.path().join("data/Toy/test").is_dir());

    run_in(home.path(), &init).code(1).says(&["already exists", "--overwrite"]);
    let again = run_in(home.path(), &[&init[..], &["--overwrite"]].concat()).code(0).stdout();
    assert!(again.contains("mqat train --problem Toy --topology WidedepthTiny"), "{again}");

    let quick =
        ["--device", "cpu", "--set", "RUNTIME.NUM_THREADS=1", "--set", "RUNTIME.NUM_WORKERS=1"];
    let train = [&["train"][..], &names, &quick, &["--max-steps", "1"]].concat();
    run_in(home.path(), &train).code(0);
    let test = [&["test"][..], &names, &["--device", "cpu", "--json"]].concat();
    let tested = run_in(home.path(), &test).code(0).json();
    let report = &tested["evaluations"][0]["report"];
    assert_eq!(report["bop"]["num_targets"], 20, "{tested}");
    assert_eq!(report["dataset"]["list"], "test");
}

#[test]
fn a_network_whose_backbone_stays_needs_weights() {
    // A home without the presets' weights.
    let home = tempfile::tempdir().unwrap();
    let data = toy();
    let init = |topology: &str, more: &[&str]| {
        let args = ["init", "--data", text(&data), "--problem", "P", "--topology", topology];
        run_in(home.path(), &[&args[..], more].concat())
    };
    for topology in ["CaSpaceNet", "CaSpaceNetTiny"] {
        init(topology, &[]).code(1).says(&[
            &format!("{topology} keeps backbone as its weights have it"),
            "pretrained.safetensors is not there",
            &format!("--topology {}", topology.replace("CaSpaceNet", "Widedepth")),
            "--weights CHECKPOINT",
        ]);
    }
    init("CaSpaceNetTiny", &["--weights", "none.pth"]).code(1).says(&["none.pth: no such file"]);
    assert!(!home.path().join("problems").exists());
    let weights = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("problems/SwissCube/WidedepthTiny/pretrained.safetensors");
    let made = init("CaSpaceNetTiny", &["--weights", text(&weights), "--json"]).code(0).json();
    let choice = |key: &str| {
        let all = made["choices"].as_array().unwrap().iter();
        all.clone().find(|choice| choice["key"] == key).unwrap_or_else(|| panic!("{key}: {made}"))
    };
    assert_eq!(choice("experiment.url")["value"], text(&weights));
    assert_eq!(choice("training.full_precision.frozen")["value"], "backbone");
}

#[test]
fn why_folders_of_scenes_are_taken_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    let synth = ["synth", "--layout", "bop", "--out", text(&data), "--train", "4", "--val", "2"];
    let more = ["--test", "2", "--size", "64", "--depth", "1.5d:3d", "--objects", "2"];
    run_in(dir.path(), &[&synth[..], &more].concat()).code(0);
    let rename = |from: &str, to: &str| std::fs::rename(data.join(from), data.join(to)).unwrap();
    rename("val", "val_primesense");
    rename("test", "test_a");
    std::fs::create_dir_all(data.join("test_b/000000")).unwrap();
    let copy = |name: &str, to: &str| {
        std::fs::copy(data.join("test_a/000000").join(name), data.join(to).join(name)).unwrap()
    };
    copy("scene_camera.json", "test_b/000000");
    // Poses without masks.
    std::fs::create_dir_all(data.join("train_real/000000/rgb")).unwrap();
    for name in ["scene_camera.json", "scene_gt.json", "rgb/000000.jpg"] {
        copy(name, "train_real/000000");
    }
    std::fs::create_dir_all(data.join("onboarding/000000")).unwrap();
    copy("scene_camera.json", "onboarding/000000");
    let names = ["--problem", "P", "--topology", "WidedepthTiny"];
    let init = [&["init", "--data", text(&data)][..], &names].concat();
    run_in(dir.path(), &init).code(0).says(&[
        "data.TRAIN is train_pbr: the folders whose name begins with `train`, without train_real (not every scene has \
         mask_visib or mask)",
        "data.VALID is val_primesense: the first folder of validation scenes with poses",
        "data.TEST is test_a: the first folder of test scenes with poses, without test_b (it is not the first)",
        "not used: onboarding, whose names begin with none of train, val, test",
    ]);
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
    let made = run_in(home.path(), &[&init[..], &["--json"]].concat()).code(0).json();
    // Counted here in the files: the most of an object in a training image.
    let most = instances(&data.join("train_pbr")).into_iter().flat_map(BTreeMap::into_values).max();
    let choices = made["choices"].as_array().unwrap();
    let told = choices.iter().find(|choice| choice["key"] == "evaluation.instances").unwrap();
    assert_eq!(told["value"], most.unwrap(), "{told}");
    let quick =
        ["--device", "cpu", "--set", "RUNTIME.NUM_THREADS=1", "--set", "RUNTIME.NUM_WORKERS=1"];
    let train = [&["train"][..], &names, &quick, &["--max-steps", "1"]].concat();
    run_in(home.path(), &train).code(0).says(&["hold several objects of a class, up to"]);
    // A network that has learnt nothing is sure of nothing: every cell is asked.
    let test = [&["test"][..], &names, &["--device", "cpu", "--json"]].concat();
    let tested = run_in(home.path(), &test).code(0).json();
    let dataset = &tested["evaluations"][0]["report"]["dataset"];
    let has_several = |of: &BTreeMap<u64, u64>| of.values().any(|num| *num > 1);
    let several = instances(&data.join("test")).iter().filter(|of| has_several(of)).count();
    assert_eq!(dataset["num_images_with_several"], several, "{dataset}");
}

/// Of each image of a folder of scenes the number of instances by object.
fn instances(split: &Path) -> Vec<BTreeMap<u64, u64>> {
    let mut all = Vec::new();
    for scene in std::fs::read_dir(split).unwrap() {
        let path = scene.unwrap().path().join("scene_gt.json");
        let gt: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        for objects in gt.as_object().unwrap().values() {
            let mut of = BTreeMap::new();
            for object in objects.as_array().unwrap() {
                *of.entry(object["obj_id"].as_u64().unwrap()).or_default() += 1;
            }
            all.push(of);
        }
    }
    all
}

#[test]
fn settings_of_scenes_are_refused_beside_the_satellite() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let synth =
        |more: &[&str]| run_in(dir.path(), &[&["synth", "--out", text(&out)][..], more].concat());
    synth(&["--objects", "2"]).code(1).says(&["--objects cannot act", "the satellite alone"]);
    synth(&["--clutter", "2"]).code(1).says(&["--clutter cannot act"]);
    synth(&["--layout", "bop", "--occlusion", "0.99"])
        .code(1)
        .says(&["occlusion: 0.99 is outside 0..=0.95"]);
    synth(&["--layout", "bop", "--instances", "3:1"]).code(2).says(&["FEWEST:MOST"]);
    synth(&["--layout", "bop", "--meshes", text(dir.path())]).code(1).says(&["no .ply file"]);
}
