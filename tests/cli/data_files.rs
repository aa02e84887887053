//! Datasets and pictures as people have them: other units, other spellings, marks, missing masks, several objects of a class.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::bad_input::copy;
use crate::support::{Ran, dataset, run, small};

const WEIGHTS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/problems/SwissCube/WidedepthTiny/pretrained.safetensors");

/// A copy of the shared dataset that a test may change.
struct Data {
    dir: tempfile::TempDir,
}

impl Data {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        copy(dataset(), &dir.path().join("data"));
        Self { dir }
    }

    fn at(&self, file: &str) -> PathBuf {
        self.dir.path().join("data").join(file)
    }

    fn text(&self) -> String {
        self.at("").display().to_string()
    }

    fn json(&self, file: &Path, change: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
        change(&mut value);
        fs::write(file, value.to_string()).unwrap();
    }

    fn list(&self) -> Vec<String> {
        let text = fs::read_to_string(self.at("testing.txt")).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// The folder of the test images' scene.
    fn scene(&self) -> PathBuf {
        self.at(&self.list()[0]).ancestors().nth(2).unwrap().to_owned()
    }

    /// Changes every object of the test images.
    fn objects(&self, change: impl Fn(&mut Vec<Value>)) {
        let mut scenes: Vec<PathBuf> = (self.list().iter())
            .map(|image| self.at(image).ancestors().nth(2).unwrap().join("scene_gt.json"))
            .collect();
        scenes.dedup();
        for file in scenes {
            self.json(&file, |images| {
                for objects in images.as_object_mut().unwrap().values_mut() {
                    change(objects.as_array_mut().unwrap());
                }
            });
        }
    }

    /// The true poses as JSON lines, t multiplied by `factor`.
    fn truth(&self, factor: f64) -> String {
        let mut lines = String::new();
        for image in self.list() {
            let scene = self.at(&image).ancestors().nth(2).unwrap().join("scene_gt.json");
            let gt: Value = serde_json::from_slice(&fs::read(scene).unwrap()).unwrap();
            let number: u32 =
                Path::new(&image).file_stem().unwrap().to_str().unwrap().parse().unwrap();
            for object in gt[number.to_string()].as_array().unwrap() {
                let t: Vec<f64> = serde_json::from_value(object["cam_t_m2c"].clone()).unwrap();
                let t: Vec<f64> = t.iter().map(|v| v * factor).collect();
                let (r, id) = (&object["cam_R_m2c"], &object["obj_id"]);
                lines += &format!(
                    "{}\n",
                    json!({"image": image, "obj_id": id, "score": 1.0, "R": r, "t": t})
                );
            }
        }
        lines
    }

    fn score(&self, text: &str, more: &[&str]) -> Ran {
        let file = self.dir.path().join("poses.jsonl");
        fs::write(&file, text).unwrap();
        let data = self.text();
        let args = ["score", "--predictions", file.to_str().unwrap(), "--data", &data];
        run(&[&args[..], more].concat())
    }

    fn test(&self, more: &[&str]) -> Ran {
        let data = self.text();
        let args =
            ["test", "--topology", "WidedepthTiny", "--checkpoint", WEIGHTS, "--data", &data];
        run(&[&args[..], &["--device", "cpu"], more].concat())
    }

    fn train(&self, more: &[&str]) -> Ran {
        let (data, logs) = (self.text(), self.dir.path().join("logs"));
        let args = ["--data", &data, "--logs", logs.to_str().unwrap()];
        run(&small("train", &[&args[..], more].concat()))
    }
}

fn headline(ran: &Ran) -> f64 {
    ran.json()["evaluations"][0]["report"]["headline_percent"].as_f64().unwrap()
}

#[test]
fn boxes_in_metres_stop_every_command_and_boxes_of_another_size_are_told() {
    let data = Data::new();
    let scaled = |factor: f64| {
        data.json(&data.at("swisscube_bbox.json"), |boxes| {
            for corner in boxes[0].as_array_mut().unwrap() {
                for v in corner.as_array_mut().unwrap() {
                    *v = json!(v.as_f64().unwrap() * factor);
                }
            }
        });
    };
    scaled(0.001);
    for ran in [data.test(&[]), data.train(&[]), data.score(&data.truth(1.0), &[])] {
        ran.code(1).says(&["swisscube_bbox.json", "obj_000001.ply", "1000 times", "in metres?"]);
    }
    scaled(2000.0);
    let told = &["WARN", "the box of class 0", "208.40 x", "104.20 x"];
    data.score(&data.truth(1.0), &[]).code(0).says(told);
}

#[test]
fn diameters_that_no_mesh_can_have_are_told_with_both_numbers() {
    let data = Data::new();
    let set = |value: &str| data.score(&data.truth(1.0), &["--set", value]);
    set("data.MESH_DIAMETERS=[178.46]").code(0);
    let told = ["WARN", "100 mm", "114.75 mm (its longest side)", "models_info.json", "178.4"];
    set("data.MESH_DIAMETERS=[100]").code(0).says(&told);
    set("data.MESH_DIAMETERS=[0.17846]").code(1).says(&["MESH_DIAMETERS in metres?"]);
}

#[test]
fn translations_in_metres_are_an_error_in_a_dataset_and_a_warning_in_a_file_of_poses() {
    let data = Data::new();
    let told = ["WARN", "in metres?", "mm from the camera in the median"];
    data.score(&data.truth(0.001), &[]).code(0).says(&told);
    let plain = data.score(&data.truth(1.0), &["--json"]).code(0);
    assert!(!plain.stderr().contains("WARN"), "{}", plain.stderr());
    data.objects(|objects| {
        for v in objects[0]["cam_t_m2c"].as_array_mut().unwrap() {
            *v = json!(v.as_f64().unwrap() / 1000.0);
        }
    });
    data.test(&[]).code(1).says(&["6 of 6 objects", "is cam_t_m2c", "in metres?"]);
}

#[test]
fn several_objects_of_a_class_are_told_at_load_and_in_the_table() {
    let data = Data::new();
    data.objects(|objects| {
        let mut second = objects[0].clone();
        second["cam_t_m2c"][2] = json!(second["cam_t_m2c"][2].as_f64().unwrap() + 200.0);
        objects.push(second);
    });
    let out = data.dir.path().join("out");
    let args = ["--json", "--no-overlays", "--out", out.to_str().unwrap()];
    let ran = data.score(&data.truth(1.0), &args).code(0);
    assert_eq!(headline(&ran), 100.0, "poses are matched one to one");
    let ran = ran.says(&["WARN", "6 of 6 images hold several objects", "6 of 12 objects, 50.0 %"]);
    let summary = &ran.json()["evaluations"][0]["report"]["dataset"];
    assert_eq!(summary["ceiling_percent"], 50.0);
    assert_eq!(summary["num_images_with_several"], 6);
    let table = fs::read_to_string(out.join("table.txt")).unwrap();
    assert!(table.contains("6 images with several objects of a class"), "{table}");
}

#[test]
fn scores_need_no_masks_and_training_says_who_makes_them() {
    let data = Data::new();
    let before = headline(&data.test(&["--json"]).code(0));
    for scene in ["testing", "training"] {
        for sequence in fs::read_dir(data.at(scene)).unwrap().map(Result::unwrap) {
            fs::remove_dir_all(sequence.path().join("000000/mask_visib")).unwrap();
        }
    }
    assert_eq!(headline(&data.score(&data.truth(1.0), &["--json"]).code(0)), 100.0);
    assert_eq!(headline(&data.test(&["--json"]).code(0)), before);
    data.train(&[]).code(1).says(&["mask_visib", "training needs", "calc_gt_masks.py"]);
}

#[test]
fn nothing_to_evaluate_is_an_error_and_nothing_to_validate_is_told() {
    let data = Data::new();
    let rename = |list: &str| {
        let text = fs::read_to_string(data.at(list)).unwrap();
        fs::write(data.at(list), text.replace(".png", ".jpg")).unwrap();
    };
    rename("testing.txt");
    data.test(&["--skip-bad"]).code(1).says(&["none of the 6 images could be read", ".jpg"]);
    rename("validation.txt");
    let ran = data.train(&["--skip-bad"]).code(0);
    ran.says(&["WARN", "nothing to validate: validation.txt: none of the 4 images"]);
    data.objects(Vec::clear);
    data.test(&[]).code(1).says(&["no object in any of the 6 images", "mqat predict"]);
}

#[test]
fn marks_repeats_and_hidden_files_change_no_score() {
    let data = Data::new();
    let files = [data.scene().join("scene_gt.json"), data.at("swisscube_bbox.json")];
    let text = fs::read_to_string(data.at("testing.txt")).unwrap();
    fs::write(data.at("testing.txt"), format!("\u{feff}{text}{text}").replace('\n', "\r\n"))
        .unwrap();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("\u{feff}{text}")).unwrap();
    }
    fs::write(data.at("models/._obj_000001.ply"), b"\0\x05\x16\x07").unwrap();
    let truth = dataset_truth();
    let ran = data.score(&truth, &["--json"]).code(0);
    assert_eq!(headline(&ran), 100.0);
    assert_eq!(ran.json()["evaluations"][0]["report"]["dataset"]["num_images"], 6);
    ran.says(&["image 7 repeats image 1", "twice"]);
    let csv = data.dir.path().join("p.csv");
    data.test(&["--predictions", csv.to_str().unwrap()]).code(0);
    assert!(fs::read_to_string(csv).unwrap().lines().count() <= 7);
}

/// The true poses of the shared dataset.
fn dataset_truth() -> String {
    Data::new().truth(1.0)
}

#[test]
fn cameras_of_other_images_are_told() {
    let data = Data::new();
    data.json(&data.scene().join("scene_camera.json"), |cameras| {
        for camera in cameras.as_object_mut().unwrap().values_mut() {
            for at in [0, 2, 4, 5] {
                camera["cam_K"][at] = json!(camera["cam_K"][at].as_f64().unwrap() * 4.0 / 3.0);
            }
        }
    });
    data.test(&[]).code(0).says(&[
        "WARN",
        "67 % of the width",
        "is the camera for images of 85 x 85 px?",
    ]);
    let data = Data::new();
    let wide = ["--max-steps", "1", "--set", "INPUT.INTERNAL_K=[20,0,32,0,20,32,0,0,1]"];
    data.train(&wide).code(0).says(&["INPUT.INTERNAL_K sees 116.0 x 116.0 degrees", "80.2"]);
}

#[test]
fn pictures_that_lie_on_their_side_are_turned_by_predict_alone() {
    let data = Data::new();
    let image = data.list()[0].clone();
    let picture = image::open(data.at(&image)).unwrap().into_rgb8();
    let jpeg = data.dir.path().join("a.jpg");
    mqat::io::picture::write_jpeg(&jpeg, &picture, 95).unwrap();
    let plain = fs::read(&jpeg).unwrap();
    // An EXIF block whose only entry is the orientation: turn by 180 degrees.
    let exif = b"\xff\xe1\x00\x22Exif\0\0MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0";
    let tagged = [&plain[..2], exif, &plain[2..]].concat();
    fs::write(&jpeg, &tagged).unwrap();
    let camera = data.dir.path().join("camera.json");
    let k = 64.0 * 303.7865161198519 / 512.0;
    fs::write(&camera, json!({"fx": k, "fy": k, "cx": 32, "cy": 32}).to_string()).unwrap();
    let out = data.dir.path().join("out");
    let (boxes, jpeg) = (data.at("swisscube_bbox.json"), jpeg.to_str().unwrap().to_owned());
    let args = [
        "predict",
        "--checkpoint",
        WEIGHTS,
        "--topology",
        "WidedepthTiny",
        "--device",
        "cpu",
        &jpeg,
        "--boxes",
        boxes.to_str().unwrap(),
        "--camera",
        camera.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--overlays",
        "all",
    ];
    run(&args).code(0).says(&["WARN", "a.jpg", "EXIF orientation (Rotate180) is obeyed"]);
    // In a dataset the pixels stay where the masks and the camera have them.
    let target = data.at(&image);
    fs::write(&target, &tagged).unwrap();
    data.test(&[]).code(0).says(&["WARN", "EXIF orientation", "is ignored"]);
}
