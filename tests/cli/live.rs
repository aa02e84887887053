//! `mqat predict` from cameras, streams and standard input.

use std::fs;
use std::io::{Cursor, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use image::{ImageFormat, RgbImage};
use mqat::io::picture::read_rgb;
use serde_json::{Value, json};

use crate::support::{dataset, mqat};

const WEIGHTS: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/problems/SwissCube/WidedepthTiny/pretrained.safetensors");

/// A camera of 64 px, boxes, and a stand-in for ffmpeg.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let bench = Self { dir: tempfile::tempdir().unwrap() };
        let list = fs::read_to_string(dataset().join("testing.txt")).unwrap();
        let image = dataset().join(list.lines().next().unwrap());
        let cameras = image.ancestors().nth(2).unwrap().join("scene_camera.json");
        let cameras: Value = serde_json::from_slice(&fs::read(cameras).unwrap()).unwrap();
        let k = &cameras.as_object().unwrap().values().next().unwrap()["cam_K"];
        let camera = json!({ "K": k, "width": 64, "height": 64 });
        fs::write(bench.at("camera.json"), camera.to_string()).unwrap();
        bench
    }

    fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A stand-in for ffmpeg: says its version, else notes its arguments and runs `body`.
    fn ffmpeg(&self, body: &str) {
        fs::create_dir_all(self.at("bin")).unwrap();
        let script = format!(
            "#!/bin/sh\nif [ \"$1\" = -version ]; then echo 'ffmpeg version 6.1'; exit 0; fi\necho \"$@\" > '{}'\n{body}\n",
            self.at("args").display()
        );
        fs::write(self.at("bin/ffmpeg"), script).unwrap();
        fs::set_permissions(self.at("bin/ffmpeg"), fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command =
            mqat(&["predict", "--checkpoint", WEIGHTS, "--topology", "WidedepthTiny"]);
        command.args(["--device", "cpu", "--set", "RUNTIME.NUM_THREADS=1", "--boxes"]);
        command.arg(dataset().join("swisscube_bbox.json"));
        command.arg("--camera").arg(self.at("camera.json"));
        command.arg("--out").arg(self.at("out")).args(more);
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{}:{path}", self.at("bin").display()));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs to the end with `input` on standard input.
    fn run(&self, more: &[&str], input: &[u8]) -> Output {
        let mut child = self.command(more).spawn().unwrap();
        // A program that has ended takes no more.
        drop(child.stdin.take().unwrap().write_all(input));
        child.wait_with_output().unwrap()
    }

    fn summary(&self) -> Value {
        serde_json::from_slice(&fs::read(self.at("out/summary.json")).unwrap()).unwrap()
    }
}

/// The test images of the shared dataset.
fn pictures() -> Vec<RgbImage> {
    let list = fs::read_to_string(dataset().join("testing.txt")).unwrap();
    list.lines().map(|name| read_rgb(&dataset().join(name)).unwrap()).collect()
}

fn encoded(picture: &RgbImage, format: ImageFormat) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    picture.write_to(&mut out, format).unwrap();
    out.into_inner()
}

#[track_caller]
fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    let parse = |line: &str| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"));
    text.lines().map(parse).collect()
}

#[track_caller]
fn ends_with(output: &Output, code: i32) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{text}");
    text
}

#[test]
fn files_on_standard_input_give_lines_in_their_order() {
    let bench = Bench::new();
    let pictures = pictures();
    let formats = [ImageFormat::Jpeg, ImageFormat::Png].into_iter().cycle();
    let input: Vec<u8> = pictures
        .iter()
        .zip(formats)
        .flat_map(|(picture, format)| encoded(picture, format))
        .collect();
    let output = bench.run(&["-"], &input);
    let log = ends_with(&output, 0);
    let found = lines(&output);
    assert_eq!(found.len(), 6);
    for (i, line) in found.iter().enumerate() {
        assert_eq!(line["image"], format!("-#{i:06}"));
        assert_eq!((&line["scene_id"], &line["im_id"]), (&0.into(), &i.into()));
        let ms = |key: &str| line[key].as_f64().unwrap();
        let parts = ms("read_ms") + ms("network_ms") + ms("poses_ms");
        assert!((ms("latency_ms") - parts).abs() < 1e-6 && ms("network_ms") > 0.0, "{line}");
    }
    assert!(found.iter().any(|line| line.get("t").is_some()), "{found:?}");
    assert!(log.contains("6 images") && log.contains("(p95)"), "{log}");
    let own = fs::read_to_string(bench.at("out/predictions.jsonl")).unwrap();
    assert_eq!(own, String::from_utf8_lossy(&output.stdout));
    let latency = &bench.summary()["latency_ms"];
    assert!(latency["p95"].as_f64() >= latency["p50"].as_f64());
    assert!(latency["network"]["p99"].as_f64() > Some(0.0));
}

#[test]
fn a_broken_image_in_a_pipe_is_one_record_and_the_end_is_clean() {
    let bench = Bench::new();
    let whole = encoded(&pictures()[0], ImageFormat::Jpeg);
    let mut broken = encoded(&pictures()[1], ImageFormat::Png);
    let middle = broken.len() / 2;
    broken[middle] ^= 0x7f;
    let input = [&whole[..], b"noise", &broken, &whole, &whole[..whole.len() / 2]].concat();
    let output = bench.run(&["-"], &input);
    let log = ends_with(&output, 1);
    let bad: Vec<bool> =
        lines(&output).iter().map(|line| line["no_pose"] == "unreadable_image").collect();
    assert_eq!(bad, [false, true, false, true], "{log}");
    assert!(log.contains("5 bytes of the stream are no PNG or JPEG"), "{log}");
    assert_eq!(bench.summary()["num_bad"], 2);
    let again = bench.run(&["-", "--overwrite", "--skip-bad", "--json"], &input);
    ends_with(&again, 0);
    let report: Value = serde_json::from_slice(&again.stdout).unwrap();
    assert_eq!((&report["num_images"], &report["realtime"]), (&4.into(), &false.into()));
}

#[test]
fn raw_frames_are_those_of_the_same_pictures_as_files() {
    let bench = Bench::new();
    let pictures = pictures();
    let raw: Vec<u8> = pictures.iter().flat_map(|picture| picture.as_raw().clone()).collect();
    let files: Vec<u8> = pictures.iter().flat_map(|p| encoded(p, ImageFormat::Png)).collect();
    let poses = |output: &Output| -> Vec<Value> {
        ends_with(output, 0);
        lines(output).iter().map(|line| line["t"].clone()).collect()
    };
    let of_raw = poses(&bench.run(&["-", "--raw", "64x64"], &raw));
    let of_files = poses(&bench.run(&["-", "--overwrite"], &files));
    assert_eq!(of_raw.len(), 6);
    assert_eq!(of_raw, of_files);
    let output = bench.run(&["-", "--raw", "64x64", "--overwrite"], &raw[..raw.len() - 7]);
    ends_with(&output, 1);
    assert_eq!(lines(&output)[5]["detail"], "the stream ends within an image");
}

#[test]
fn a_camera_and_a_stream_are_asked_of_ffmpeg() {
    let bench = Bench::new();
    let frames = bench.at("frames");
    let mut file = fs::File::create(&frames).unwrap();
    for picture in pictures() {
        write!(file, "P6\n64 64\n255\n").unwrap();
        file.write_all(picture.as_raw()).unwrap();
    }
    bench.ffmpeg(&format!("cat '{}'", frames.display()));
    let output = bench.run(&["/dev/video7"], b"");
    ends_with(&output, 0);
    assert_eq!(
        (lines(&output).len(), &lines(&output)[2]["image"]),
        (6, &"/dev/video7#000002".into())
    );
    let args = fs::read_to_string(bench.at("args")).unwrap();
    assert!(args.contains("-f v4l2 -i /dev/video7"), "{args}");

    let address = "rtsp://me:secret@cam.local/live";
    let output = bench.run(&[address, "--overwrite"], b"");
    let log = ends_with(&output, 0);
    assert!(fs::read_to_string(bench.at("args")).unwrap().contains(address));
    assert_eq!(lines(&output)[0]["image"], "rtsp://cam.local/live#000000");
    for text in [log, bench.summary().to_string(), String::from_utf8(output.stdout).unwrap()] {
        assert!(!text.contains("secret"), "{text}");
    }

    bench.ffmpeg("echo 'no such device' >&2; exit 1");
    let output = bench.run(&["/dev/video7", "--overwrite"], b"");
    let log = ends_with(&output, 1);
    assert!(
        log.contains("/dev/video7: ffmpeg failed after 0 frames") && log.contains("no such device")
    );
    assert_eq!(bench.summary()["num_images"], 1);
}

#[test]
fn in_realtime_the_newest_frame_is_taken_and_the_others_are_counted() {
    let bench = Bench::new();
    let frames = bench.at("frames");
    let mut file = fs::File::create(&frames).unwrap();
    let picture = &pictures()[0];
    for _ in 0..300 {
        write!(file, "P6\n64 64\n255\n").unwrap();
        file.write_all(picture.as_raw()).unwrap();
    }
    bench.ffmpeg(&format!("cat '{}'", frames.display()));
    let output = bench.run(&["http://cam.local/mjpeg", "--realtime"], b"");
    ends_with(&output, 0);
    let found = lines(&output);
    let dropped: u64 = found.iter().filter_map(|line| line["dropped"].as_u64()).sum();
    let summary = bench.summary();
    assert_eq!(summary["num_dropped"], dropped);
    assert_eq!((found.len() as u64 + dropped, &summary["batch"]), (300, &1.into()));
    assert!(dropped > 0, "a reader of 300 frames at once is faster than the network");
    // The last frame that came is the last that is answered.
    assert_eq!(found.last().unwrap()["image"], "http://cam.local/mjpeg#000299");
}

/// Reads a line of a running child, which is then alive.
fn first_line(child: &mut Child) -> String {
    let mut line = Vec::new();
    let out = child.stdout.as_mut().unwrap();
    let mut byte = [0];
    while out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

fn interrupt(child: &Child) {
    let status = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(status.success());
}

#[test]
fn a_silent_source_is_left_at_a_signal_with_a_summary() {
    let picture = &pictures()[0];
    for realtime in [&[][..], &["--realtime"]] {
        let bench = Bench::new();
        // The answer comes before the next frame does.
        let mut child = bench.command(&[&["-"], realtime].concat()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&encoded(picture, ImageFormat::Jpeg)).unwrap();
        let line = first_line(&mut child);
        assert_eq!(serde_json::from_str::<Value>(&line).unwrap()["image"], "-#000000");
        let began = Instant::now();
        interrupt(&child);
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        let log = ends_with(&output, 130);
        assert!(began.elapsed() < Duration::from_secs(20), "{log}");
        assert!(log.contains("1 images"), "{log}");
        assert_eq!(bench.summary()["interrupted"], true);
        // A source without an end ends like that: its results are whole.
        assert!(Path::new(&bench.at("out/predictions.jsonl")).is_file());
    }
}

#[test]
fn a_closed_standard_output_ends_it_while_it_waits_for_frames() {
    let bench = Bench::new();
    for realtime in [&[][..], &["--realtime", "--overwrite"]] {
        let mut child = bench.command(&[&["-"], realtime].concat()).spawn().unwrap();
        drop(child.stdout.take().unwrap());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all(&encoded(&pictures()[0], ImageFormat::Jpeg)).unwrap();
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        let log = ends_with(&output, 1);
        assert!(log.contains("writing what was found in -#000000"), "{log}");
    }
}

#[test]
fn what_standard_input_cannot_be_is_told_before_anything_runs() {
    let bench = Bench::new();
    let refused = |more: &[&str], part: &str| {
        let output = bench.run(more, b"");
        let code = output.status.code();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(matches!(code, Some(1 | 2)) && text.contains(part), "{more:?}: {code:?} {text}");
        assert!(!bench.at("out").exists(), "{more:?} has written");
    };
    let file = dataset().join("testing.txt");
    let file = file.to_str().unwrap();
    refused(&["-", "-"], "- comes after -, which goes on until somebody ends it");
    refused(&["-", file], "comes after -, which goes on");
    refused(&["-", "--raw", "65x64"], "the image is 65 x 64 px, but its camera is for 64 x 64 px");
    refused(&[file, "--raw", "64x64"], "--raw cannot act");
    refused(&["-", "--raw", "64"], "expected WIDTHxHEIGHT");
    refused(&[file, "--realtime"], "--realtime cannot act");
    refused(&["-", "--realtime", "--batch", "2"], "--batch cannot act");
    refused(&["-", "--lines", "--json"], "--json");
    // Nothing on the pipe: no image, and no failure.
    let output = bench.run(&["-"], b"");
    ends_with(&output, 0);
    assert_eq!(bench.summary()["num_images"], 0);
}
