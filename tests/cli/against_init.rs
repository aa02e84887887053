//! `mqat inspect FILE --against-init`: a network beside its initial values.

use serde_json::Value;

use crate::support::{dataset, run, small};

/// The checkpoint of a small float run that began with random values of that seed, and its exported weights.
fn trained(seed: &str) -> [String; 2] {
    let dir = tempfile::tempdir().unwrap().keep();
    let logs = dir.join("logs");
    let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
    let more = ["--seed", seed, "--set", "quantize.flow=[]"];
    run(&small("train", &[&places[..], &more].concat())).code(0);
    let folder = logs.join("SwissCube/WidedepthTiny/exp000/checkpoints");
    let checkpoint = folder.join("stage_0_full_precision.safetensors").display().to_string();
    let plain = dir.join("plain.safetensors").display().to_string();
    run(&["export", &checkpoint, "--format", "safetensors", "--out", &plain]).code(0);
    [checkpoint, plain]
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap()
}

#[test]
fn a_network_that_hardly_trained_is_told_by_its_initial_values_and_dead_levels() {
    let [checkpoint, _plain] = trained("7");
    let ran = run(&["inspect", &checkpoint, "--against-init", "--json"]).code(0);
    let found = ran.json();
    assert_eq!((&found["seed"], &found["levels"]), (&7.into(), &Value::Null));
    let names: Vec<&str> =
        found["modules"].as_array().unwrap().iter().map(|m| m["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["backbone", "fpn", "head"]);
    let fpn = &found["modules"][1];
    assert!(number(&fpn["cosine"]["median"]) > 0.9, "8 steps from the start: {fpn}");
    assert!((number(&fpn["gain"]["median"]) - 1.0).abs() < 0.3, "{fpn}");
    assert!(number(&fpn["kurtosis"]["median"]) < 2.3, "uniform values: {fpn}");
    assert_eq!(found["verdict"]["has_left_its_start"], false);
    assert_eq!(found["verdict"]["uses_every_level"], Value::Null);
    assert_eq!(found["verdict"]["is_trained"], false);

    // values of another seed are other values
    let other = run(&["inspect", &checkpoint, "--against-init", "--seed", "8", "--json"]).code(0);
    let cosine = number(&other.json()["modules"][1]["cosine"]["max"]);
    assert!(cosine.abs() < 0.3, "{cosine}");

    let text = run(&["inspect", &checkpoint, "--against-init", "--layers"]).code(0).stdout();
    for part in ["NOT COUNTED", "give --data DIR", "is NOT trained", "fpn.out_convs."] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }

    let data = dataset().to_str().unwrap();
    let args = ["inspect", &checkpoint, "--against-init", "--data", data, "--batches", "3"];
    let counted = run(&[&args[..], &["--json"]].concat()).code(0).json();
    assert_eq!(counted["num_images"], 3 * 4);
    // an epoch of the 16 images has 4 batches
    let long =
        ["inspect", &checkpoint, "--against-init", "--data", data, "--batches", "6", "--json"];
    assert_eq!(run(&long).code(0).json()["num_images"], 6 * 4);
    // the images are those that the run trained on: one batch is all of them
    let few = run(&[&args[..], &["--json", "--set", "training.train_images=2"]].concat());
    assert_eq!(few.code(0).json()["num_images"], 3 * 2);
    let levels = counted["levels"].as_array().unwrap();
    assert_eq!((levels.len(), &levels[0]["name"]), (5, &"stride 8, anchors of 8 px".into()));
    let targets: Vec<u64> = levels.iter().map(|l| l["num_targets"].as_u64().unwrap()).collect();
    assert!(targets.iter().sum::<u64>() > 0, "{targets:?}");
    let uses_all = targets.iter().all(|&n| n > 0);
    assert_eq!(counted["verdict"]["uses_every_level"], uses_all);
    let text = run(&args).code(0).stdout();
    assert_eq!(
        text.matches("DEAD: nothing to learn").count(),
        targets.iter().filter(|&&n| n == 0).count()
    );
}

#[test]
fn files_that_do_not_know_their_seed_ask_for_it() {
    let [checkpoint, plain] = trained("9");
    let inspect = |file: &str, more: &[&str]| {
        run(&[&["inspect", file, "--against-init", "--json"], more].concat())
    };
    let config = std::path::Path::new(&checkpoint).parent().unwrap().with_file_name("config.json");
    let config = ["--config", config.to_str().unwrap()];
    inspect(&plain, &config).code(1).says(&["holds no seed", "--seed N"]);
    let found = inspect(&plain, &[&config[..], &["--seed", "9"]].concat()).code(0).json();
    let from_checkpoint = inspect(&checkpoint, &[]).code(0).json();
    assert_eq!(found["layers"], from_checkpoint["layers"]);

    let pretrained =
        ["--set", "experiment.pretrained=true", "--set", &format!("experiment.url={checkpoint}")]
            .map(str::to_owned);
    let pretrained: Vec<&str> = pretrained.iter().map(String::as_str).collect();
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let places = ["--data", dataset().to_str().unwrap(), "--logs", logs.to_str().unwrap()];
    let flow = ["--set", "quantize.flow=[]", "--max-steps", "1"];
    run(&small("train", &[&places[..], &pretrained, &flow].concat())).code(0);
    let folder = logs.join("SwissCube/WidedepthTiny/exp000/checkpoints");
    let tuned = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "safetensors"))
        .unwrap();
    inspect(tuned.to_str().unwrap(), &[]).code(1).says(&["began with the weights of", "--seed N"]);
    run(&["inspect", "--against-init"]).code(2);
    run(&["inspect", &checkpoint, "--seed", "1"]).code(2);
}
