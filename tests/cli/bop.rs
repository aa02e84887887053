//! Folders as the BOP benchmark publishes them: scored without a config, trained on by their folders of scenes.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::{Ran, mqat, run, small};

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
struct Copied(tempfile::TempDir);

impl Copied {
    fn at(&self, file: &str) -> PathBuf {
        self.0.path().join(file)
    }

    fn edit(&self, file: &str, change: impl Fn(&mut Value)) {
        let old = std::fs::read_to_string(self.at(file)).unwrap();
        let mut json = serde_json::from_str(&old).unwrap();
        change(&mut json);
        std::fs::write(self.at(file), json.to_string()).unwrap();
    }

    fn remove(&self, file: &str) {
        let path = self.at(file);
        match path.is_dir() {
            true => std::fs::remove_dir_all(path).unwrap(),
            false => std::fs::remove_file(path).unwrap(),
        }
    }

    fn score(&self, more: &[&str]) -> crate::support::Ran {
        let csv = reference("estimates_toy-test.csv");
        let args = ["score", "--data", text(self.0.path()), "--predictions", text(&csv)];
        run(&[&args[..], more].concat())
    }

    /// The report of the scores.
    fn scored(&self, more: &[&str]) -> Value {
        let found = self.score(&[&["--json"], more].concat()).code(0).json();
        found["evaluations"][0]["report"].clone()
    }
}

fn copied() -> Copied {
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
    Copied(dir)
}

fn has_note(report: &Value, part: &str) -> bool {
    let notes = report["bop_notes"].as_array().unwrap();
    notes.iter().any(|note| note.as_str().unwrap().contains(part))
}

#[test]
fn a_bop_folder_is_looked_at_before_it_is_trained_on() {
    let found = run(&["dataset", "check", text(&toy()), "--json"]).code(0).json();
    assert_eq!(found["num_faults"], 0, "{found}");
    let command = found["init"].as_str().unwrap();
    assert_eq!(command, format!("mqat init --data {} --problem toy", text(&toy())));
    let names: Vec<&Value> =
        found["splits"].as_array().unwrap().iter().map(|s| &s["name"]).collect();
    assert_eq!(names, ["test", "train_pbr"]);
    assert_eq!(found["splits"][1]["scenes"][0]["num_hidden"], 2, "{found}");
    let table = run(&["dataset", "check", text(&toy())]).code(0).stdout();
    assert!(
        table.contains("no faults found") && table.contains("train_pbr: 1 scenes, 3 images"),
        "{table}"
    );
    assert!(table.ends_with(&format!("\nnext:\n  {command}\n")), "{table}");
    // The command does what it says.
    let home = tempfile::tempdir().unwrap();
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let made = mqat(&words).env("MQAT_HOME", home.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(home.path().join("problems/toy/Widedepth/config.json").is_file());
    run(&["dataset", "check", "src"]).code(1).says(&["src is not a BOP folder"]);
}

#[test]
fn faults_of_a_bop_folder_are_told_with_their_files() {
    let copied = copied();
    let at = |file: &str| copied.at(file);
    copied.remove("test/000003/rgb/000004.png");
    copied.remove("test/000003/mask_visib/000000_000001.png");
    let edit = |file: &str, from: &str, to: &str| {
        let old = std::fs::read_to_string(at(file)).unwrap();
        assert!(old.contains(from), "{file}: {from}");
        std::fs::write(at(file), old.replacen(from, to, 1)).unwrap();
    };
    edit("models/models_info.json", "\"size_x\": 60.0", "\"size_x\": 0.06");
    edit("models/models_info.json", "106.28", "306.28");
    edit("test/000007/scene_gt.json", "\"obj_id\": 11", "\"obj_id\": 99");
    let table = run(&["dataset", "check", text(&at(""))]).code(0).stdout();
    for part in [
        "5 faults:",
        "000003: image 4: neither rgb nor gray has its file",
        "000003: image 0: 3 masks in mask_visib, but scene_gt.json has 4 objects",
        "object 5: its size is",
        "object 5: its diameter is 306.28",
        "test/000007/scene_gt.json: image",
        "models/models_info.json does not list obj_id 99",
    ] {
        assert!(table.contains(part), "{part}: {table}");
    }
}

#[test]
fn objects_that_no_file_tells_are_refused_and_others_can_be_chosen() {
    let copied = copied();
    // The only object of image 1.
    copied.edit("train_pbr/000000/scene_gt.json", |gt| gt["1"][0]["obj_id"] = 7.into());
    let home = tempfile::tempdir().unwrap();
    let data = copied.at("");
    let init = |more: &[&str]| {
        let args = ["init", "--data", text(&data), "--problem", "P", "--overwrite"];
        let mut command = mqat(&[&args[..], more].concat());
        command.env("MQAT_HOME", home.path());
        let line = format!("{command:?}");
        Ran { output: command.output().unwrap(), line }
    };
    init(&[]).code(1).says(&[
        "train_pbr/000000/scene_gt.json: image 1 shows object 7",
        "models/models_info.json does not list it",
        "--objects 2,5",
    ]);
    let found = run(&["dataset", "check", text(&data), "--json"]).code(0).json();
    let fault = found["faults"][0].as_str().unwrap();
    for part in
        ["000000/scene_gt.json: image 1: object 0", "models_info.json does not list obj_id 7"]
    {
        assert!(fault.contains(part), "{part}: {fault}");
    }
    // Of the others object 11 is not seen any more.
    let command = found["init"].as_str().unwrap();
    assert!(command.ends_with(" --objects 2,5"), "{command}");
    init(&["--objects", "2,11"]).code(1).says(&["training images do not show object 11"]);
    init(&["--objects", "2,5"]).code(0);
}

/// Image 12 of scene 3 is no target; 4 of scene 3 and 2 of scene 7 are.
fn spoil_pose(copied: &Copied, image: &str) {
    copied.edit("test/000003/scene_gt.json", |gt| gt[image][0]["cam_t_m2c"][2] = Value::Null);
}

#[test]
fn a_bad_annotation_is_an_error_of_its_image_alone() {
    let copied = copied();
    spoil_pose(&copied, "12");
    assert_eq!(copied.scored(&[])["bop"]["num_targets"], 20);
    copied.edit("test/000003/scene_gt.json", |gt| gt["4"][1]["cam_R_m2c"][0] = 2.0.into());
    copied.score(&[]).code(1).says(&["scene_gt.json: image 4: object 1", "rotation"]);
    copied.edit("test/000007/scene_camera.json", |all| all["2"]["cam_K"][0] = 0.into());
    let report = copied.scored(&["--skip-bad"]);
    // 4 targets of image 4, 2 of image 2.
    assert_eq!(report["bop"]["num_targets"], 14, "{report}");
    assert!(has_note(&report, "2 images that are asked for are left out as bad"), "{report}");
    copied.edit("test/000003/scene_gt.json", |gt| gt["4"][1]["cam_R_m2c"][0] = 0.into());
    copied.score(&[]).code(1);
}

#[test]
fn the_pose_of_an_object_that_no_class_is_of_is_not_looked_at_in_training() {
    let copied = copied();
    // The only object of image 1 is 11.
    copied.edit("train_pbr/000000/scene_gt.json", |gt| gt["1"][0]["cam_R_m2c"][0] = 2.0.into());
    let logs = copied.at("logs");
    let data = copied.at("");
    let train = |ids: &str, num_classes: &str| {
        let ids = format!("data.OBJ_IDS={ids}");
        let classes = format!("data.N_CLASS={num_classes}");
        let mut args = vec!["--data", text(&data), "--logs", text(&logs), "--max-steps", "1"];
        for set in [
            "data.TRAIN=train_pbr + test",
            "data.VALID=test",
            "data.TEST=test",
            "data.MESH_DIAMETERS=[]",
            &ids,
            &classes,
        ] {
            args.extend(["--set", set]);
        }
        run(&small("train", &args))
    };
    train("[2, 5]", "3").code(0);
    train("[]", "4").code(1).says(&["scene_gt.json: image 1: object 0"]);
}

#[test]
fn each_bad_image_is_a_fault_and_the_others_are_counted() {
    let copied = copied();
    spoil_pose(&copied, "12");
    copied.edit("test/000007/scene_camera.json", |all| {
        all["2"]["cam_K"][0] = 0.into();
        all.as_object_mut().unwrap().remove("30");
    });
    let check = || run(&["dataset", "check", text(&copied.at("")), "--json"]).code(0).json();
    let found = check();
    assert_eq!(found["num_faults"], 3, "{found}");
    for (i, part) in ["image 12: object 0", "image 2", "image 30 has no camera"].iter().enumerate()
    {
        assert!(found["faults"][i].as_str().unwrap().contains(part), "{found}");
    }
    let scenes = &found["splits"][0]["scenes"];
    assert_eq!((&scenes[0]["num_images"], &scenes[0]["num_instances"]), (&4.into(), &12.into()));
    assert_eq!((&scenes[1]["num_images"], &scenes[1]["num_instances"]), (&3.into(), &6.into()));
    copied.score(&[]).code(1).says(&["image 2"]);
    copied.edit("test/000007/scene_camera.json", |all| all["2"]["cam_K"][0] = 80.into());
    copied.score(&[]).code(1).says(&["scene_camera.json: image 30 has no camera"]);
    // A scene that cannot be read leaves the other one.
    std::fs::write(copied.at("test/000007/scene_gt.json"), "{").unwrap();
    let found = check();
    assert_eq!(found["num_faults"], 2, "{found}");
    assert_eq!(found["splits"][0]["scenes"][0]["num_instances"], 12, "{found}");
}

#[test]
fn visibility_needs_no_other_key_of_its_file() {
    let copied = copied();
    let whole = copied.scored(&[]);
    copied.edit("test/000003/scene_gt_info.json", |all| {
        for info in
            all.as_object_mut().unwrap().values_mut().flat_map(|v| v.as_array_mut().unwrap())
        {
            let used = ["px_count_visib", "visib_fract"];
            info.as_object_mut().unwrap().retain(|key, _| used.contains(&key.as_str()));
        }
    });
    copied.edit("test/000007/scene_gt_info.json", |all| all["1"][0]["bbox_obj"][0] = 0.5.into());
    assert_eq!(copied.scored(&[])["bop"], whole["bop"]);
}

#[test]
fn depth_images_are_found_by_their_number() {
    let copied = copied();
    let at = |name: &str| copied.at("test/000003/depth").join(name);
    std::fs::rename(at("000004.png"), at("4.png")).unwrap();
    assert_eq!(copied.scored(&[])["bop"]["vsd_depth"], "measured");
}

#[test]
fn scores_without_image_sizes_say_that_there_is_no_ar() {
    let copied = copied();
    for scene in ["000003", "000007"] {
        copied.remove(&format!("test/{scene}/rgb"));
        copied.remove(&format!("test/{scene}/depth"));
    }
    let report = copied.scored(&[]);
    assert_eq!(report["bop"]["vsd_depth"], "rendered", "{report}");
    copied.edit("camera.json", |camera| _ = camera.as_object_mut().unwrap().remove("width"));
    let table = copied.score(&[]).code(0).stdout();
    for part in ["no AR: image sizes are not known (6 of 6", "object 11", "BOP detection"] {
        assert!(table.contains(part), "{part}: {table}");
    }
    std::fs::write(copied.at("camera.json"), "{\"width\": \"wide\"}").unwrap();
    copied.score(&[]).code(1).says(&["camera.json", "wide"]);
}

#[test]
fn several_splits_have_no_scores_of_the_benchmark_and_say_so() {
    let copied = copied();
    let table = copied.score(&["--split", "test + train_pbr", "--skip-bad"]).code(0).stdout();
    assert!(table.contains("the benchmark's scores are of one folder of scenes"), "{table}");
    assert!(!table.contains("object 11"), "{table}");
}

#[test]
fn the_tolerance_of_visibility_in_vsd_is_a_setting() {
    let copied = copied();
    let vsd = |delta: &str| percent(&copied.scored(&["--set", delta])["bop"]["ar_vsd"]);
    let (benchmark, far) = (vsd("evaluation.vsd_delta_mm=15"), vsd("evaluation.vsd_delta_mm=1000"));
    assert!((benchmark - 47.45).abs() < 5.0 && (benchmark - far).abs() > 0.1, "{benchmark} {far}");
}

#[test]
fn what_a_bop_folder_lacks_is_said() {
    let copied = copied();
    copied.remove("models_eval/models_info.json");
    let report = copied.scored(&[]);
    assert!(has_note(&report, "models: models_eval has no models_info.json"), "{report}");
    copied.remove("test");
    let root = copied.at("");
    let found = run(&["dataset", "check", text(&root), "--json"]).code(0).json();
    assert!(found["init"].is_string() && found["why_no_init"].is_null(), "{found}");
    let fault = found["faults"][0].as_str().unwrap();
    assert!(fault.contains("models_eval: there is no models_info.json"), "{found}");
    // Training takes masks.
    copied.remove("train_pbr/000000/mask");
    copied.remove("train_pbr/000000/mask_visib");
    let table = run(&["dataset", "check", text(&root)]).code(0).stdout();
    assert!(table.contains("nothing to train on") && !table.contains("mqat init"), "{table}");
}

#[test]
fn targets_of_objects_that_are_not_chosen_are_told() {
    let copied = copied();
    let csv = std::fs::read_to_string(reference("estimates_toy-test.csv")).unwrap();
    let is_chosen = |line: &&str| line.split(',').nth(2) != Some("11");
    let lines: Vec<&str> = csv.lines().filter(is_chosen).collect();
    let (data, chosen) = (copied.at(""), copied.at("chosen.csv"));
    std::fs::write(&chosen, lines.join("\n")).unwrap();
    let args = ["score", "--data", text(&data), "--predictions", text(&chosen), "--json"];
    let ran = run(&[&args[..], &["--set", "data.OBJ_IDS=[2, 5]"]].concat())
        .code(0)
        .says(&["left out objects that data.OBJ_IDS does not name"]);
    assert!(!ran.stderr().contains("no mesh"), "{}", ran.stderr());
    let report = &ran.json()["evaluations"][0]["report"];
    assert!(has_note(report, "objects [11], which data.OBJ_IDS leaves out"), "{report}");
    assert_eq!((&report["bop"]["num_targets"], &report["classes"][2]), (&20.into(), &Value::Null));
}

#[test]
fn depth_of_images_without_targets_of_ar_is_not_looked_at() {
    let copied = copied();
    copied.edit("test_targets_bop19.json", |lines| {
        let is_other =
            |line: &Value| (&line["scene_id"], &line["im_id"]) != (&7.into(), &30.into());
        lines.as_array_mut().unwrap().retain(is_other);
    });
    let whole = copied.scored(&[]);
    assert_eq!(
        (&whole["bop"]["vsd_depth"], &whole["bop"]["num_targets"]),
        (&"measured".into(), &17.into())
    );
    let depth = copied.at("test/000007/depth/000030.png");
    let bytes = std::fs::read(&depth).unwrap();
    std::fs::write(&depth, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(copied.scored(&[])["bop"], whole["bop"]);
    copied.remove("test/000007/depth/000030.png");
    assert_eq!(copied.scored(&[])["bop"], whole["bop"]);
}
