//! `mqat dataset convert` and `mqat dataset preview`.

use std::fs;
use std::path::Path;

use crate::support::{dataset, mqat, run};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Three labelled images of SPEED, all black.
fn speed(dir: &Path) {
    let images = dir.join("images/train");
    fs::create_dir_all(&images).unwrap();
    let mut labels = Vec::new();
    for i in 1..4 {
        let name = format!("img{i:06}.jpg");
        image::RgbImage::new(1920, 1200).save(images.join(&name)).unwrap();
        labels.push(serde_json::json!({
            "filename": name, "q_vbs2tango": [0.8, 0.0, 0.6, 0.0], "r_Vo2To_vbs_true": [0.1, -0.2, 5.0 + f64::from(i)],
        }));
    }
    fs::write(dir.join("train.json"), serde_json::to_vec(&labels).unwrap()).unwrap();
}

#[test]
fn speed_leads_to_a_config_and_its_true_poses_to_a_score_of_0() {
    let dir = tempfile::tempdir().unwrap();
    let (source, out) = (dir.path().join("speed"), dir.path().join("tango"));
    speed(&source);
    let args = ["dataset", "convert", text(&source), "--from", "speed", "--to", "bop"];
    let made = run(&[&args[..], &["--out", text(&out), "--json"]].concat()).code(0).json();
    assert_eq!(made["splits"], serde_json::json!([["train", 3]]));
    assert_eq!(made["next"], format!("mqat dataset check {}", text(&out)));
    let found = run(&["dataset", "check", text(&out), "--json"]).code(0).json();
    assert_eq!(
        (&found["num_faults"], &found["splits"][0]["objects"][0]["num_visible"]),
        (&0.into(), &3.into())
    );
    let command = found["init"].as_str().unwrap();
    assert!(command.ends_with("--problem tango"), "{command}");
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let made = mqat(&words).env("MQAT_HOME", dir.path()).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    // The labels' own poses: R of the quaternion (0.8, 0, 0.6, 0) turns about y by 2 acos 0.8.
    let (cos, sin) = (0.28, 0.96);
    let lines: Vec<String> = (1..4)
        .map(|i| {
            let z = 5000 + 1000 * i;
            format!("0,{i},1,1,{cos} 0 {sin} 0 1 0 -{sin} 0 {cos},100 -200 {z},-1")
        })
        .collect();
    let csv = dir.path().join("poses.csv");
    fs::write(&csv, lines.join("\n")).unwrap();
    let score = ["score", "--data", text(&out), "--split", "train", "--json", "--predictions"];
    let report = run(&[&score[..], &[text(&csv)]].concat()).code(0).json();
    let table = &report["evaluations"][0]["report"]["table"]["all"];
    for key in ["speed_score", "speed_plus_score"] {
        assert!(table[key][3].as_f64().unwrap() < 1e-6, "{key}: {table}");
    }
    // A folder that is there stays as it is.
    run(&[&args[..], &["--out", text(&out)]].concat()).code(1).says(&["already exists"]);
    run(&[&args[..], &["--out", text(&dir.path().join("b")), "--to", "coco"]].concat()).code(2);
}

#[test]
fn a_preview_shows_training_images_with_their_boxes() {
    let dir = tempfile::tempdir().unwrap();
    let preview = |more: &[&str], file: &str| {
        let out = dir.path().join(file);
        let args = [
            &["dataset", "preview"][..],
            SMALL_NAMES,
            &["--data", text(dataset()), "--images", "5"],
        ];
        let made = run(&[&args.concat()[..], &["--out", text(&out), "--json"], more].concat());
        (made.code(0).json(), image::open(&out).unwrap().into_rgb8())
    };
    let (report, picture) = preview(&[], "a.png");
    assert_eq!((picture.width(), picture.height()), (3 * 640, 2 * 640));
    assert_eq!(
        (report["images"].as_array().unwrap().len(), &report["augmented"]),
        (5, &true.into())
    );
    let green =
        |picture: &image::RgbImage| picture.pixels().filter(|p| p.0 == [60, 220, 90]).count();
    assert!(report["num_objects"].as_u64().unwrap() >= 5 && green(&picture) > 100);
    // Another epoch and another augmentation give other pictures, the same settings the same.
    assert_eq!(preview(&[], "b.png").1, picture);
    assert_ne!(preview(&["--epoch", "1"], "c.png").1, picture);
    let (report, plain) = preview(&["--set", "data.augment=false"], "d.png");
    assert!(plain != picture && report["augmented"] == false);
    let color = "data.COLOR={\"brightness\": 1.0, \"contrast\": 1.0, \"noise\": 0.5}";
    assert_ne!(preview(&["--set", color], "e.png").1, picture);
    let refuse = |more: &[&str]| {
        run(&[&["dataset", "preview", "--data", text(dataset())][..], more].concat())
    };
    refuse(&["--images", "0"]).code(1).says(&["--images: 0 is outside 1..=100"]);
    refuse(&["--out", "a.jpg"]).code(1).says(&["expected a name that ends in .png"]);
}

/// The names and settings of a small network, without the device, which a preview does not take.
const SMALL_NAMES: &[&str] = &[
    "--topology",
    "WidedepthTiny",
    "--set",
    "INPUT.INTERNAL_WIDTH=64",
    "--set",
    "INPUT.INTERNAL_HEIGHT=64",
    "--set",
    SMALL_K,
];
const SMALL_K: &str = "INPUT.INTERNAL_K=[37.97331451,0,32,0,37.97331451,32,0,0,1]";
