//! `mqat predict`: poses in pictures of any camera.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use mqat::geom::{Camera, Distortion, Lens, Vec2};
use mqat::io::picture::{read_rgb, write_png};
use serde_json::{Value, json};

use crate::support::{Ran, dataset, mqat, run};

const WEIGHTS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/problems/SwissCube/WidedepthTiny/pretrained.safetensors");

/// The arguments of every prediction here.
const PREDICT: &[&str] = &[
    "predict",
    "--checkpoint",
    WEIGHTS,
    "--topology",
    "WidedepthTiny",
    "--device",
    "cpu",
    "--set",
    "RUNTIME.NUM_THREADS=1",
];

fn predict(more: &[&str]) -> Ran {
    run(&[PREDICT, more].concat())
}

fn boxes() -> String {
    dataset().join("swisscube_bbox.json").display().to_string()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The test images of a dataset, in the list's order.
fn images(root: &Path) -> Vec<PathBuf> {
    let list = fs::read_to_string(root.join("testing.txt")).unwrap();
    list.lines().map(|name| root.join(name)).collect()
}

/// K of a dataset's first test image.
fn matrix(root: &Path) -> Vec<f64> {
    let scene = images(root)[0].ancestors().nth(2).unwrap().to_owned();
    let cameras: Value =
        serde_json::from_slice(&fs::read(scene.join("scene_camera.json")).unwrap()).unwrap();
    let first = cameras.as_object().unwrap().values().next().unwrap();
    serde_json::from_value(first["cam_K"].clone()).unwrap()
}

/// A folder with copies of a dataset's test images, and their camera beside it.
struct Pictures {
    dir: tempfile::TempDir,
    root: PathBuf,
}

impl Pictures {
    /// Of the shared dataset: 6 images of 64 px.
    fn new() -> Self {
        Self::of(dataset(), 64)
    }

    fn of(root: &Path, side_px: u32) -> Self {
        let pictures = Self { dir: tempfile::tempdir().unwrap(), root: root.to_owned() };
        fs::create_dir(pictures.at("in")).unwrap();
        for (i, image) in images(root).iter().enumerate() {
            fs::copy(image, pictures.at(&format!("in/frame{i}.png"))).unwrap();
        }
        let camera = json!({ "K": matrix(root), "width": side_px, "height": side_px });
        pictures.write("camera.json", &camera.to_string());
        pictures
    }

    fn at(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.at(name), text).unwrap();
    }

    fn predict(&self, input: &str, camera: &str, out: &str, more: &[&str]) -> Ran {
        let (input, camera, out) = (self.at(input), self.at(camera), self.at(out));
        let args = [input.as_str(), "--camera", &camera, "--out", &out, "--boxes"];
        predict(&[&args[..], &[&boxes()], more].concat())
    }

    /// A stand-in for an old ffmpeg, which is asked for frames alone: says its version, else `body`.
    fn ffmpeg(&self, body: &str) {
        self.ffmpeg_of("4.0", body);
    }

    fn ffmpeg_of(&self, version: &str, body: &str) {
        let says = format!("echo 'ffmpeg version {version}'");
        self.program(
            "ffmpeg",
            &format!("if [ \"$1\" = -version ]; then {says}; exit 0; fi\n{body}"),
        );
    }

    fn program(&self, name: &str, body: &str) {
        fs::create_dir_all(self.at("bin")).unwrap();
        let path = format!("bin/{name}");
        self.write(&path, &format!("#!/bin/sh\n{body}\n"));
        fs::set_permissions(self.at(&path), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// The pictures as ffmpeg's pipe gives them.
    fn stream(&self) -> String {
        let path = self.at("stream");
        let mut out = fs::File::create(&path).unwrap();
        for image in images(&self.root) {
            let image = read_rgb(&image).unwrap();
            write!(out, "P6\n{} {}\n255\n", image.width(), image.height()).unwrap();
            out.write_all(image.as_raw()).unwrap();
        }
        path
    }
}

#[test]
fn the_poses_of_a_list_are_those_of_test_and_score_alike() {
    let dir = tempfile::tempdir().unwrap();
    let (data, list) = (dataset().to_str().unwrap(), dataset().join("testing.txt"));
    let (tested, out) = (dir.path().join("test.jsonl"), dir.path().join("out"));
    let args = ["test", "--checkpoint", WEIGHTS, "--topology", "WidedepthTiny", "--device", "cpu"];
    let more = ["--set", "RUNTIME.NUM_THREADS=1", "--data", data, "--json", "--predictions"];
    let own = run(&[&args[..], &more, &[tested.to_str().unwrap()]].concat()).code(0).json();
    let out_args = ["--out", out.to_str().unwrap(), "--overlays", "2", "--json"];
    let report = predict(&[&[list.to_str().unwrap()], &out_args[..]].concat()).code(0).json();

    let poses: Vec<Value> = lines(&out.join("predictions.jsonl"))
        .into_iter()
        .filter(|line| line.get("no_pose").is_none())
        .collect();
    let expected = lines(&tested);
    assert!(expected.len() > 2 && poses.len() == expected.len(), "{report}");
    for (pose, expected) in poses.iter().zip(&expected) {
        for (key, value) in expected.as_object().unwrap() {
            assert_eq!(&pose[key], value, "{key}");
        }
        let covariance = pose["covariance"].as_array().unwrap();
        assert_eq!(covariance.len(), 36);
        for axis in 0..3 {
            let variance = covariance[(axis + 3) * 7].as_f64().unwrap();
            let sigma = pose["sigma_t_mm"][axis].as_f64().unwrap();
            assert!((sigma - variance.sqrt()).abs() < 1e-9 * sigma && sigma > 0.0, "{pose}");
        }
        assert!(pose["latency_ms"].as_f64().unwrap() > 0.0);
    }
    assert_eq!((&report["num_images"], &report["num_bad"]), (&json!(6), &json!(0)));
    assert_eq!((&report["interrupted"], &report["ids_from_paths"]), (&json!(false), &json!(true)));
    assert!(report["cameras"][0]["source"].as_str().unwrap().ends_with("scene_camera.json"));
    assert!(report["latency_ms"]["p99"].as_f64() >= report["latency_ms"]["p50"].as_f64());
    assert_eq!(fs::read_dir(out.join("overlays")).unwrap().count(), 2);

    let files = ["predictions.jsonl", "predictions.csv"].map(|f| out.join(f).display().to_string());
    let args = ["score", "--predictions", &files[0], "--predictions", &files[1], "--json"];
    let more = ["--topology", "WidedepthTiny", "--data", data];
    let scored = run(&[&args[..], &more].concat()).code(0).json();
    for file in scored["evaluations"].as_array().unwrap() {
        assert_eq!(file["report"]["table"], own["evaluations"][0]["report"]["table"]);
    }
    let missing = 6 - expected.len();
    assert_eq!(scored["evaluations"][0]["num_no_pose"], json!(missing));
}

/// The pictures as a lens with this distortion takes them.
fn distort(pictures: &Pictures, folder: &str, distortion: Distortion) {
    fs::create_dir(pictures.at(folder)).unwrap();
    let camera = Camera::from_row_major(&matrix(&pictures.root)).unwrap();
    let lens = Lens::new(camera, distortion);
    for (i, path) in images(&pictures.root).iter().enumerate() {
        let straight = read_rgb(path).unwrap();
        let (w, h) = straight.dimensions();
        let tap = |x: f64, y: f64, c: usize| {
            let inside = x >= 0.0 && y >= 0.0 && x < f64::from(w) && y < f64::from(h);
            if inside { f64::from(straight.get_pixel(x as u32, y as u32).0[c]) } else { 0.0 }
        };
        let bent = image::RgbImage::from_fn(w, h, |x, y| {
            let seen = Vec2::new(f64::from(x), f64::from(y));
            let Some(d) = lens.direction_of(&seen) else { return image::Rgb([0; 3]) };
            let p = camera.project(&mqat::geom::Vec3::new(d.x, d.y, 1.0));
            let (x, y) = (p.x.floor(), p.y.floor());
            let (fx, fy) = (p.x - x, p.y - y);
            image::Rgb(std::array::from_fn(|c| {
                let top = tap(x, y, c) * (1.0 - fx) + tap(x + 1.0, y, c) * fx;
                let bottom = tap(x, y + 1.0, c) * (1.0 - fx) + tap(x + 1.0, y + 1.0, c) * fx;
                (top * (1.0 - fy) + bottom * fy).round() as u8
            }))
        });
        write_png(Path::new(&pictures.at(&format!("{folder}/frame{i}.png"))), &bent).unwrap();
    }
}

/// Mean distance of the translations of two runs over the distance, of pictures where both found one; and how many.
fn distance(pictures: &Pictures, a: &str, b: &str) -> (f64, usize) {
    let poses = |run: &str| {
        let lines = lines(Path::new(&pictures.at(&format!("{run}/predictions.jsonl"))));
        lines
            .into_iter()
            .map(|l| {
                let t = l["t"].as_array()?;
                Some([0, 1, 2].map(|i| t[i].as_f64().unwrap()))
            })
            .collect::<Vec<_>>()
    };
    let pairs: Vec<f64> = (poses(a).iter().zip(poses(b)))
        .filter_map(|(a, b)| Some((a.as_ref().copied()?, b?)))
        .map(|(a, b)| {
            let d: f64 = (0..3).map(|i| (a[i] - b[i]).powi(2)).sum();
            d.sqrt() / a[2]
        })
        .collect();
    (pairs.iter().sum::<f64>() / pairs.len() as f64, pairs.len())
}

#[test]
fn distortion_is_undone() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("data");
    let counts = ["--train", "1", "--val", "1", "--test", "6", "--size", "256"];
    let scene = ["--depth", "1.5d:2.5d", "--attitude", "30", "--seed", "5", "--format", "png"];
    run(&[&["synth", "--out", root.to_str().unwrap()], &counts[..], &scene].concat()).code(0);
    let pictures = Pictures::of(&root, 256);
    // Every second pixel of the straight pictures would be sharper than what was resampled: the network tells that apart.
    let smooth = ["--set", "data.ANTIALIAS=true"];
    pictures.predict("in", "camera.json", "straight", &smooth).code(0);
    let coefficients = [-0.25, 0.05, 0.002, -0.001];
    distort(&pictures, "bent", Distortion::polynomial(&coefficients).unwrap());
    let k = matrix(&root);
    pictures.write(
        "opencv.yaml",
        &format!(
            "%YAML:1.0\n---\nimage_width: 256\nimage_height: 256\ncamera_matrix: !!opencv-matrix\n   rows: 3\n   cols: 3\n   \
             dt: d\n   data: {k:?}\ndistortion_coefficients: !!opencv-matrix\n   rows: 4\n   cols: 1\n   dt: d\n   \
             data: {coefficients:?}\n"
        ),
    );
    let report = pictures
        .predict(
            "bent",
            "opencv.yaml",
            "undone",
            &[&smooth[..], &["--overlays", "all", "--json"]].concat(),
        )
        .code(0)
        .json();
    assert!(report["cameras"][0]["distortion"].as_str().unwrap().contains("-0.25"), "{report}");
    assert_eq!(fs::read_dir(pictures.at("undone/overlays")).unwrap().count(), 6);
    pictures.predict("bent", "camera.json", "ignored", &smooth).code(0);

    let fisheye = [0.02, -0.01, 0.0, 0.0];
    distort(&pictures, "fish", Distortion::equidistant(&fisheye).unwrap());
    let ros = json!({ "K": k, "D": fisheye, "distortion_model": "equidistant", "width": 256, "height": 256 });
    pictures.write("ros.yaml", &ros.to_string());
    pictures.predict("fish", "ros.yaml", "fish_undone", &smooth).code(0);

    let (undone, num) = distance(&pictures, "straight", "undone");
    let (ignored, _) = distance(&pictures, "straight", "ignored");
    let (fish, fish_num) = distance(&pictures, "straight", "fish_undone");
    assert!(num >= 4 && fish_num >= 4, "{num} and {fish_num} poses of 6");
    assert!(undone < 0.02 && fish < 0.02, "{undone} and {fish} of the distance");
    assert!(ignored > 5.0 * undone, "{ignored} when ignored, {undone} when undone");
}

#[test]
fn unreadable_images_are_recorded_and_the_others_predicted() {
    let pictures = Pictures::new();
    let whole = fs::read(pictures.at("in/frame2.png")).unwrap();
    fs::write(pictures.at("in/frame2.png"), &whole[..whole.len() / 2]).unwrap();
    image::RgbImage::new(32, 32).save(pictures.at("in/frame10.png")).unwrap();
    let ran = pictures.predict("in", "camera.json", "out", &["--batch", "2"]).code(1).says(&[
        "left out: reading image",
        "frame2.png",
        "frame10.png: the image is 32 x 32 px, but its camera is for 64 x 64 px",
        "2 of 7 images could not be read",
    ]);
    assert!(ran.stdout().contains("7 images"), "{}", ran.stdout());
    let lines = lines(Path::new(&pictures.at("out/predictions.jsonl")));
    let names: Vec<_> = lines.iter().map(|l| l["image"].as_str().unwrap().to_owned()).collect();
    // natural order: frame10 is the last
    let expected =
        ["0", "1", "2", "3", "4", "5", "10"].map(|i| pictures.at(&format!("in/frame{i}.png")));
    assert_eq!(names, expected);
    for bad in [2, 6] {
        assert_eq!(lines[bad]["no_pose"], "unreadable_image");
        assert!(lines[bad]["detail"].as_str().unwrap().contains("frame"));
    }
    assert_eq!(lines[3]["im_id"], 3);
    let summary: Value =
        serde_json::from_slice(&fs::read(pictures.at("out/summary.json")).unwrap()).unwrap();
    assert_eq!((&summary["num_bad"], &summary["num_images"]), (&json!(2), &json!(7)));

    pictures
        .predict("in", "camera.json", "out", &[])
        .code(1)
        .says(&["already exists", "--overwrite"]);
    pictures.predict("in", "camera.json", "out", &["--overwrite", "--skip-bad"]).code(0);
}

#[test]
fn a_camera_that_does_not_fit_is_one_clear_line() {
    let pictures = Pictures::new();
    let input = pictures.at("in");
    let ran = predict(&[&input, "--boxes", &boxes(), "--out", &pictures.at("none")]).code(1);
    ran.says(&[
        "frame0.png: nothing tells the camera of this image of 64 x 64 px",
        "--camera FILE",
    ]);
    pictures.write("bad.json", r#"{"depth_scale": 1.0}"#);
    pictures.write(
        "other.json",
        r#"{"fx": 600, "fy": 600, "cx": 512, "cy": 512, "width": 1024, "height": 1024}"#,
    );
    for (camera, expected) in [
        ("bad.json", "bad.json: it has neither K (camera_matrix) nor fx, fy, cx, cy"),
        ("other.json", "the image is 64 x 64 px, but its camera is for 1024 x 1024 px"),
        ("missing.yaml", "reading camera"),
    ] {
        let ran = pictures.predict("in", camera, "out", &[]).code(1).says(&[expected]);
        assert_eq!(ran.stderr().lines().filter(|l| l.starts_with("mqat: ")).count(), 1);
        assert!(!Path::new(&pictures.at("out")).exists());
    }
    let camera = pictures.at("camera.json");
    let none = pictures.at("none");
    fs::create_dir(&none).unwrap();
    predict(&[&input, "--camera", &camera, "--data", &none, "--out", &pictures.at("out")])
        .code(1)
        .says(&["swisscube_bbox.json", "--boxes"]);
    predict(&["no/such.png"]).code(1).says(&["no such file: no/such.png"]);
    run(&["predict", "--checkpoint", "x"]).code(2).says(&["INPUT"]);
    run(&["predict", "x.png"]).code(2).says(&["--checkpoint"]);
}

#[test]
fn videos_are_read_frame_by_frame_from_ffmpeg() {
    let pictures = Pictures::new();
    pictures.write("clip.mp4", "not looked at by the stand-in");
    let stream = pictures.stream();
    let command = |out: &str, path: &str| {
        let (clip, camera, out) =
            (pictures.at("clip.mp4"), pictures.at("camera.json"), pictures.at(out));
        let args = [clip.as_str(), "--camera", &camera, "--out", &out, "--boxes"];
        let mut command = mqat(&[PREDICT, &args[..], &[&boxes(), "--json"]].concat());
        command.env("PATH", path);
        let line = format!("{command:?}");
        Ran { output: command.output().unwrap(), line }
    };
    let path = format!("{}:/usr/bin:/bin", pictures.at("bin"));
    pictures.ffmpeg(&format!("cat {stream}"));
    let report = command("out", &path).code(0).json();
    assert_eq!(report["num_images"], 6);
    pictures.predict("in", "camera.json", "from_files", &[]).code(0);
    let of = |run: &str| lines(Path::new(&pictures.at(&format!("{run}/predictions.jsonl"))));
    for (i, (frame, file)) in of("out").iter().zip(of("from_files")).enumerate() {
        assert_eq!(frame["image"], format!("{}#{i:06}", pictures.at("clip.mp4")));
        assert_eq!((&frame["R"], &frame["t"]), (&file["R"], &file["t"]));
    }
    // A video that breaks off: what came before it counts.
    pictures.ffmpeg(&format!("head -c 30000 {stream}; echo 'corrupt input' >&2; exit 1"));
    let ran = command("broken", &path).code(1);
    let report = ran.json();
    assert_eq!((&report["num_images"], &report["num_bad"]), (&json!(3), &json!(1)));
    ran.says(&["ffmpeg failed after 2 frames", "corrupt input"]);
    command("none", &pictures.at("in")).code(1).says(&[
        "ffmpeg is not installed",
        "apt-get",
        "frames/%06d.png",
    ]);
}

#[test]
fn frames_of_a_video_have_the_times_and_numbers_of_its_container() {
    let pictures = Pictures::new();
    pictures.write("clip.ts", "not looked at by the stand-in");
    // The first pipe among ffmpeg's arguments is that of the times: 40 ms apart, 7 frames missing behind the third one.
    let units: Vec<u32> = [0, 1, 2, 10, 11, 12].iter().map(|i| 3600 * i).collect();
    let line = |at: &u32| format!("0, {at}, {at}, 3600, 12288, 0xe56fc30d\\n");
    let lines_of_times: String = units.iter().map(line).collect();
    let body = format!(
        "for a; do case $a in pipe:1) ;; pipe:*) times=${{a#pipe:}} ;; esac; done\nprintf '#tb 0: 1/90000\\n{lines_of_times}' > /dev/fd/$times\ncat {}",
        pictures.stream()
    );
    pictures.ffmpeg_of("6.1", &body);
    let run = |out: &str, mean_rate: &str| {
        pictures.program(
            "ffprobe",
            &format!(
                "echo '{{\"streams\": [{{\"r_frame_rate\": \"25/1\", \"avg_frame_rate\": \"{mean_rate}\"}}]}}'"
            ),
        );
        let (clip, camera, out) =
            (pictures.at("clip.ts"), pictures.at("camera.json"), pictures.at(out));
        let args = [clip.as_str(), "--camera", &camera, "--out", &out, "--boxes"];
        let mut command = mqat(&[PREDICT, &args[..], &[&boxes()]].concat());
        command.env("PATH", format!("{}:/usr/bin:/bin", pictures.at("bin")));
        let line = format!("{command:?}");
        Ran { output: command.output().unwrap(), line }.code(0);
        lines(&PathBuf::from(out).join("predictions.jsonl"))
    };
    let found = run("out", "25/1");
    assert_eq!(found.len(), 6);
    for (frame, number) in found.iter().zip([0, 1, 2, 10, 11, 12]) {
        assert_eq!(frame["image"], format!("{}#{number:06}", pictures.at("clip.ts")));
        assert_eq!(
            (&frame["im_id"], &frame["time_s"]),
            (&json!(number), &json!(number as f64 / 25.0))
        );
    }
    // Frames that do not come at equal times are counted.
    let found = run("uneven", "17/1");
    let numbers: Vec<_> = found.iter().map(|frame| frame["im_id"].as_u64().unwrap()).collect();
    assert_eq!((numbers, &found[5]["time_s"]), (vec![0, 1, 2, 3, 4, 5], &json!(0.48)));
}

#[test]
fn a_signal_ends_an_endless_video_with_whole_records() {
    let pictures = Pictures::new();
    pictures.write("clip.mp4", "");
    let stream = pictures.stream();
    pictures.ffmpeg(&format!("while cat {stream} 2>/dev/null; do :; done"));
    let (clip, camera, out) =
        (pictures.at("clip.mp4"), pictures.at("camera.json"), pictures.at("out"));
    let args = [clip.as_str(), "--camera", &camera, "--out", &out, "--batch", "2", "--boxes"];
    let mut command = mqat(&[PREDICT, &args[..], &[&boxes(), "--json"]].concat());
    command.env("PATH", format!("{}:/usr/bin:/bin", pictures.at("bin")));
    let line = format!("{command:?}");
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let partial = PathBuf::from(&out).join("predictions.partial.jsonl");
    let begun = Instant::now();
    while !fs::read_to_string(&partial).is_ok_and(|text| text.lines().count() >= 4) {
        assert!(begun.elapsed() < Duration::from_secs(120), "no record of {line}");
        std::thread::sleep(Duration::from_millis(20));
    }
    // SAFETY: the process is our child and not waited for yet.
    assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
    let ran = Ran { output: child.wait_with_output().unwrap(), line }.code(130);
    let report = ran.json();
    assert_eq!(report["interrupted"], true);
    let done = report["num_images"].as_u64().unwrap() as usize;
    assert_eq!(lines(&partial).len(), done);
    assert!(done >= 4 && !partial.with_file_name("predictions.jsonl").exists());
}

#[test]
fn calibrated_standard_deviations_are_as_large_as_the_errors() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let data = dataset().to_str().unwrap();
    let test = ["test", "--checkpoint", WEIGHTS, "--topology", "WidedepthTiny", "--device", "cpu"];
    let more = ["--set", "RUNTIME.NUM_THREADS=1", "--data", data, "--split", "train", "--out"];
    let measured = run(&[&test[..], &more, &[&at("measured")]].concat()).code(0);
    assert!(measured.stdout().contains("errors over told standard deviations"));
    let metrics = at("measured/metrics.json");

    let list = dataset().join("training.txt").display().to_string();
    let plain = predict(&[&list, "--out", &at("plain")]).code(0);
    assert!(!plain.stdout().contains("calibrated"));
    let args = [list.as_str(), "--out", &at("out"), "--calibrated", &metrics, "--json"];
    let report = predict(&args).code(0).json();
    let score = |from: &str| {
        let file = at(&format!("{from}/predictions.jsonl"));
        let args = ["score", "--predictions", &file, "--split", "train", "--json"];
        let more = ["--topology", "WidedepthTiny", "--data", data];
        run(&[&args[..], &more].concat()).code(0).json()["evaluations"][0]["report"].clone()
    };
    let (before, after) = (score("plain"), score("out"));
    assert_eq!(before["table"], after["table"]);
    for of in ["rotation", "translation"] {
        let factor = |report: &Value| report["sigma"][of]["factor"].as_f64().unwrap();
        assert_eq!(report["calibrated"][of].as_f64().unwrap(), factor(&before), "{of}");
        assert!((factor(&before) - 1.0).abs() > 0.05, "{of} was right already");
        assert!((factor(&after) - 1.0).abs() < 1e-9, "{of}: {}", factor(&after));
    }
    let lines =
        [at("plain"), at("out")].map(|out| lines(&Path::new(&out).join("predictions.jsonl")));
    let pose = |i: usize| lines[i].iter().find(|line| line["covariance"].is_array()).unwrap();
    let factor = report["calibrated"]["translation"].as_f64().unwrap();
    let entry = |i: usize| pose(i)["covariance"][35].as_f64().unwrap();
    assert!((entry(1) / entry(0) / factor.powi(2) - 1.0).abs() < 1e-9);

    // Of several reports that of the checkpoint counts; without factors there is nothing to take.
    let two: Value = serde_json::from_slice(&fs::read(&metrics).unwrap()).unwrap();
    fs::create_dir(at("two")).unwrap();
    let write = |name: &str, value: &Value| fs::write(at(name), value.to_string()).unwrap();
    write("two/metrics.json", &json!([two[0], two[0]]));
    write("two/checkpoints.json", &json!(["/elsewhere/a.pth", "/elsewhere/b.pth"]));
    let refused = predict(&[&list, "--out", &at("x"), "--calibrated", &at("two/metrics.json")]);
    refused.code(1).says(&["has 2 reports, none of", "name the metrics.json of a test"]);
    write(
        "two/metrics.json",
        &json!([two[0].as_object().map(|report| {
            let mut report = report.clone();
            report.remove("sigma");
            report
        })]),
    );
    let refused = predict(&[&list, "--out", &at("x"), "--calibrated", &at("two/metrics.json")]);
    refused.code(1).says(&["tells no factors of standard deviations"]);
    assert!(!Path::new(&at("x")).exists());
}

#[test]
fn objects_that_few_cells_agree_on_are_found_within_a_wider_distance_and_say_so() {
    let pictures = Pictures::new();
    let narrow = ["--set", "evaluation.ransac.inlier_px=0.2", "--json"];
    let report = pictures.predict("in", "camera.json", "wide", &narrow).code(0).json();
    let only = [&narrow[..], &["--set", "evaluation.ransac.widen=false"]].concat();
    let without = pictures.predict("in", "camera.json", "only", &only).code(0).json();
    let num = |report: &Value, key: &str| report[key].as_u64().unwrap();
    assert!(num(&report, "num_widened") > 0, "{report}");
    assert_eq!(num(&without, "num_widened"), 0);
    let found = num(&without, "num_poses") + num(&report, "num_widened");
    assert_eq!(num(&report, "num_poses"), found);
    for line in lines(Path::new(&pictures.at("wide/predictions.jsonl"))) {
        let Some(px) = line["inlier_px"].as_f64() else { continue };
        assert!([0.2, 0.4, 0.8].contains(&px), "{line}");
        assert!(
            line["residual"].as_f64().unwrap() < px && line["score"].as_f64().unwrap() <= 0.2 / px
        );
    }
}
