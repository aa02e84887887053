//! Folders as the BOP benchmark publishes them: scored without a config, trained on by their folders of scenes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{mqat, run, small};

fn reference(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/14_bop_multi").join(file)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn toy() -> PathBuf {
    reference("toy")
}

fn percent(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value}"))
}

#[test]
fn a_bop_folder_is_scored_without_a_problem_folder() {
    // A home without problems.
    let home = tempfile::tempdir().unwrap();
    let csv = reference("estimates_toy-test.csv");
    let args =
        ["score", "--data", text(&toy()), "--predictions", text(&csv), "--json"].map(str::to_owned);
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let output = mqat(&args).env("MQAT_HOME", home.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let report = &found["evaluations"][0]["report"];
    let bop = &report["bop"];
    // bop_toolkit's numbers of the same file.
    for (key, expected, tolerance) in [
        ("ar_mssd", 48.5, 1e-9),
        ("ar_mspd", 54.0, 1e-9),
        ("ar_vsd", 47.45, 5.0),
        ("ap", 52.982_465_554_2, 1e-9),
        ("ap_mssd", 49.666_743_597_4, 1e-9),
    ] {
        assert!((percent(&bop[key]) - expected).abs() <= tolerance, "{key}: {bop}");
    }
    assert_eq!((&bop["vsd_depth"], &bop["num_targets"]), (&"measured".into(), &20.into()));
    let ids: Vec<&Value> =
        bop["objects"].as_array().unwrap().iter().map(|o| &o["obj_id"]).collect();
    assert_eq!(ids, [2, 5, 11]);
    assert_eq!(report["dataset"]["list"], "test");
    assert_eq!(report["classes"][1]["symmetric"], true);
    // Image 12 of scene 3 is no target.
    assert_eq!(report["dataset"]["num_images"], 6);
}

#[test]
fn the_truth_reaches_everything_and_the_table_says_so() {
    let (data, csv) = (toy(), reference("gt_toy-test.csv"));
    let args = ["score", "--data", text(&data), "--predictions", text(&csv)];
    let table = run(&[&args[..], &["--split", "test"]].concat()).code(0).stdout();
    for part in ["object 11", "AR 100.0", "AP 100.0", "AD-0.1d 100.0"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    run(&[&args[..], &["--split", "tset"]].concat())
        .code(1)
        .says(&["no folder tset of numbered scenes", "test, train_pbr"]);
    // A config that is named asks for its list.
    run(&[&args[..], &["--topology", "Widedepth"]].concat())
        .code(1)
        .says(&["it is a BOP folder with the folders of scenes test, train_pbr", "data.TEST"]);
}

#[test]
fn a_network_is_trained_on_folders_of_scenes_and_tested_on_their_targets() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, data) = (dir.path().to_owned(), toy());
    let more = [
        "--data",
        text(&data),
        "--logs",
        text(&logs),
        "--set",
        "data.TRAIN=train_pbr:0.5 + test:0.5",
        "--set",
        "data.VALID=test",
        "--set",
        "data.TEST=test",
        "--set",
        "data.N_CLASS=4",
        "--set",
        "data.MESH_DIAMETERS=[]",
        "--set",
        "data.MIN_VISIBLE_FRACT=0.2",
    ];
    run(&small("train", &[&more[..], &["--max-steps", "2"]].concat())).code(0);
    let args = ["test", "--topology", "WidedepthTiny", "--device", "cpu", "--json"];
    let tested = run(&[&args[..], &more[..4]].concat()).code(0).json();
    let report = &tested["evaluations"][0]["report"];
    assert_eq!(report["dataset"]["num_images"], 6, "{report}");
    assert_eq!(report["bop"]["num_targets"], 20, "{report}");
    // Boxes come from models_info.json where there is no file of boxes.
    let (image, out) = (data.join("test/000003/rgb"), dir.path().join("poses"));
    let checkpoints = logs.join("SwissCube/WidedepthTiny/exp000/checkpoints");
    let weights = std::fs::read_dir(checkpoints).unwrap().next().unwrap().unwrap().path();
    let args = ["predict", "--checkpoint", text(&weights), text(&image), "--data", text(&data)];
    run(&[&args[..], &["--out", text(&out), "--device", "cpu"]].concat()).code(0);
    let args = [&more[..], &["--set", "data.N_CLASS=3"]].concat();
    run(&small("train", &args)).code(1).says(&[
        "3 objects [2, 5, 11]",
        "expected 4",
        "data.OBJ_IDS",
    ]);
}

/// A copy of the folder that a test may damage.
fn copied() -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        for entry in std::fs::read_dir(from).unwrap() {
            let (path, name) = entry.map(|e| (e.path(), e.file_name())).unwrap();
            match path.is_dir() {
                true => copy(&path, &to.join(name)),
                false => std::fs::write(to.join(name), std::fs::read(&path).unwrap()).unwrap(),
            }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    copy(&toy(), dir.path());
    dir
}

#[test]
fn a_bop_folder_is_looked_at_before_it_is_trained_on() {
    let found = run(&["dataset", "check", text(&toy()), "--json"]).code(0).json();
    assert_eq!(
        (&found["num_faults"], &found["data"]["N_CLASS"]),
        (&0.into(), &4.into()),
        "{found}"
    );
    assert_eq!(found["data"]["SYMMETRIC_CLASSES"], serde_json::json!([1, 2]));
    assert_eq!(
        (&found["data"]["TRAIN"], &found["data"]["TEST"]),
        (&"train_pbr".into(), &"test".into())
    );
    let names: Vec<&Value> =
        found["splits"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["test", "train_pbr"]);
    assert_eq!(found["splits"][1]["scenes"][0]["num_hidden"], 2, "{found}");
    let table = run(&["dataset", "check", text(&toy())]).code(0).stdout();
    assert!(
        table.contains("no faults found") && table.contains("train_pbr: 1 scenes, 3 images"),
        "{table}"
    );
    run(&["dataset", "check", "src"]).code(1).says(&["src is not a BOP folder"]);
}

#[test]
fn faults_of_a_bop_folder_are_told_with_their_files() {
    let dir = copied();
    let at = |file: &str| dir.path().join(file);
    std::fs::remove_file(at("test/000003/rgb/000004.png")).unwrap();
    std::fs::remove_file(at("test/000003/mask_visib/000000_000001.png")).unwrap();
    let edit = |file: &str, from: &str, to: &str| {
        let old = std::fs::read_to_string(at(file)).unwrap();
        assert!(old.contains(from), "{file}: {from}");
        std::fs::write(at(file), old.replacen(from, to, 1)).unwrap();
    };
    edit("models/models_info.json", "\"size_x\": 60.0", "\"size_x\": 0.06");
    edit("models/models_info.json", "106.28", "306.28");
    edit("test/000007/scene_gt.json", "\"obj_id\": 11", "\"obj_id\": 99");
    let table = run(&["dataset", "check", text(dir.path())]).code(0).stdout();
    for part in [
        "5 faults:",
        "000003: image 4: neither rgb nor gray has its file",
        "000003: image 0: 3 masks in mask_visib, but scene_gt.json has 4 objects",
        "object 5: its size is",
        "object 5: its diameter is 306.28",
        "obj_id 99 is not in models_info.json",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
}
