//! Odd names, signals and hostile files from outside: one line, and nothing lost.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::{Ran, dataset, mqat, run, small};

const EXPERIMENT: &str = "SwissCube/WidedepthTiny/exp000";

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn finish(mut command: Command) -> Ran {
    let line = format!("{command:?}");
    Ran { output: command.output().unwrap(), line }
}

#[test]
fn arguments_need_not_be_utf_8() {
    let dir = tempfile::tempdir().unwrap();
    let odd = dir.path().join(OsStr::from_bytes(b"l\xf6gs \xe9"));
    fs::create_dir(&odd).unwrap();
    let data = odd.join("data");
    symlink(dataset(), &data).unwrap();
    let mut train = mqat(&small("train", &["--max-steps", "2", "--json"]));
    train.arg("--data").arg(&data).arg("--logs").arg(&odd);
    let report = finish(train).code(0).json();
    assert_eq!(report["global_step"], 2);
    let provenance = read_json(&odd.join(EXPERIMENT).join("provenance.json"));
    let command = provenance["starts"][0]["command"].to_string();
    assert!(command.contains("l\u{fffd}gs"), "{command}");
    let mut test = mqat(&["test", "--topology", "WidedepthTiny", "--device", "cpu", "--json"]);
    test.arg("--data").arg(&data).arg("--logs").arg(&odd);
    finish(test).code(0).json();
}

#[test]
fn a_start_that_trains_nothing_changes_no_record_and_ended_stages_stay() {
    let dir = tempfile::tempdir().unwrap();
    let (data, logs) = (dataset().to_str().unwrap(), dir.path().to_str().unwrap());
    let lsq = "quantize.flow=[{\"module\":\"fpn\",\"epochs\":1,\"batch_size\":4,\"weights\":{\"method\":\"lsq\",\"bits\":4}}]";
    let begin =
        ["--data", data, "--logs", logs, "--set", "training.full_precision.epochs=1", "--set", lsq];
    run(&small("train", &begin)).code(0);
    let folder = dir.path().join(EXPERIMENT);
    let config = fs::read(folder.join("config.json")).unwrap();
    let resume = |more: &[&str]| {
        let own =
            ["train", "--topology", "WidedepthTiny", "--device", "cpu", "--resume", "--logs", logs];
        run(&[&own[..], more].concat())
    };
    resume(&["--set", "data.bs_valid=3"]).code(0);
    assert_eq!(fs::read(folder.join("config.json")).unwrap(), config, "nothing was trained");
    assert_eq!(read_json(&folder.join("starts/001.json"))["data"]["bs_valid"], 3);
    resume(&["--set", "training.full_precision.epochs=5"])
        .code(1)
        .says(&["stage 0 (full_precision) has ended", "epochs"]);
    resume(&["--epochs", "2"]).code(0);
    let now = read_json(&folder.join("config.json"));
    assert_eq!(now["training"]["full_precision"]["epochs"], 1);
    assert_eq!(now["quantize"]["flow"][0]["epochs"], 2);
    let starts = read_json(&folder.join("provenance.json"))["starts"].clone();
    assert_eq!(starts[2]["config"], "starts/002.json");
    assert!(starts[0]["dataset"].as_str().is_some_and(|d| d.ends_with("data")));
}

#[test]
fn a_set_that_is_overruled_names_what_rules() {
    let dir = tempfile::tempdir().unwrap();
    let (data, logs) = (dataset().to_str().unwrap(), dir.path().to_str().unwrap());
    let own = "quantize.flow.0.batch_size=8";
    let train = |more: &[&str]| {
        let places = ["--data", data, "--logs", logs, "--max-steps", "1", "--set", own];
        run(&small("train", &[&places[..], more].concat()))
    };
    train(&["--set", "data.bs_train=2"]).code(1).says(&[
        "data.bs_train=2 is overruled",
        "training.full_precision.batch_size (4)",
        "quantize.flow.0.batch_size (8)",
        "--batch-size",
    ]);
    train(&["--set", "training.max_steps=9"]).code(1).says(&["overruled by --max-steps"]);
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none(), "nothing was made");
    let plan = run(&[
        "plan",
        "--topology",
        "WidedepthTiny",
        "--images",
        "64",
        "--batch-size",
        "2",
        "--json",
    ])
    .code(0)
    .json();
    for stage in plan["stages"].as_array().unwrap() {
        assert_eq!(stage["batch_size"], 2);
    }
}

/// Starts a long training, sends `signal` once it trains, and waits for its end.
fn signalled(logs: &Path, signal: i32, ignored: bool) -> (Option<i32>, String) {
    let (data, logs) = (dataset().to_str().unwrap(), logs.to_str().unwrap());
    let more = ["--data", data, "--logs", logs, "--set", "training.full_precision.epochs=5000"];
    let mut command = mqat(&small("train", &more));
    if ignored {
        // SAFETY: signal() is async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGHUP, libc::SIG_IGN);
                Ok(())
            });
        }
    }
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    for line in lines.by_ref() {
        let line = line.unwrap();
        said += &line;
        if line.contains("epoch 2 of") {
            break;
        }
    }
    // SAFETY: a process of this test's own.
    let send = |signal| assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
    send(signal);
    if ignored {
        for line in lines.by_ref().map_while(Result::ok) {
            if line.contains("epoch 8 of") {
                break;
            }
            assert!(!line.contains("stopping"), "{line}");
        }
        send(libc::SIGTERM);
    }
    lines.map_while(Result::ok).for_each(|line| said += &line);
    (child.wait().unwrap().code(), said)
}

#[test]
fn the_end_of_a_terminal_and_of_a_time_limit_save() {
    for signal in [libc::SIGHUP, libc::SIGUSR1] {
        let dir = tempfile::tempdir().unwrap();
        let (code, said) = signalled(dir.path(), signal, false);
        assert_eq!(code, Some(130), "{said}");
        assert!(said.contains("with a checkpoint"), "{said}");
        assert!(fs::read_dir(dir.path().join(EXPERIMENT).join("checkpoints")).unwrap().count() > 0);
    }
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(signalled(dir.path(), libc::SIGHUP, true).0, Some(130), "as under nohup");
}

#[test]
fn a_damaged_header_is_not_believed() {
    let dir = tempfile::tempdir().unwrap();
    let (data, logs) = (dataset().to_str().unwrap(), dir.path().to_str().unwrap());
    run(&small(
        "train",
        &["--data", data, "--logs", logs, "--max-steps", "3", "--ckpt-every-steps", "1"],
    ))
    .code(0);
    let last = dir.path().join(EXPERIMENT).join("checkpoints/ckpt_00000003.safetensors");
    let good = fs::read(&last).unwrap();
    let length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header = String::from_utf8(good[8..8 + length].to_vec()).unwrap();
    for place in [
        "confidence",
        "stage_step",
        "header_crc32c",
        "crc32c\":\"",
        "dtype",
        "head.pose_pred.weight",
    ] {
        let at = 8 + header.to_lowercase().find(place).expect(place) + place.len() - 1;
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&last, bad).unwrap();
        run(&["audit", last.to_str().unwrap()]).code(1);
    }
    let resumed =
        ["train", "--topology", "WidedepthTiny", "--device", "cpu", "--resume", "--logs", logs];
    run(&[&resumed[..], &["--max-steps", "4"]].concat())
        .code(0)
        .says(&["passed over", "ckpt_00000002"]);
}

#[test]
fn a_resume_on_other_data_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (data, logs) = (dataset().to_str().unwrap(), dir.path().join("logs"));
    let logs = logs.to_str().unwrap();
    run(&small("train", &["--data", data, "--logs", logs, "--max-steps", "2"])).code(0);
    let other = dir.path().join("other");
    fs::create_dir(&other).unwrap();
    for entry in fs::read_dir(dataset()).unwrap() {
        let entry = entry.unwrap();
        symlink(entry.path(), other.join(entry.file_name())).unwrap();
    }
    let list = fs::read_to_string(other.join("training.txt")).unwrap();
    let mut lines: Vec<&str> = list.lines().collect();
    lines.reverse();
    fs::remove_file(other.join("training.txt")).unwrap();
    fs::write(other.join("training.txt"), lines.join("\n")).unwrap();
    let resume = |data: &str, steps: &str| {
        let own =
            ["train", "--topology", "WidedepthTiny", "--device", "cpu", "--resume", "--logs", logs];
        run(&[&own[..], &["--data", data, "--max-steps", steps]].concat()).code(0)
    };
    let same = resume(data, "3").stderr();
    assert!(!same.contains("the train split is not the one"), "{same}");
    resume(other.to_str().unwrap(), "4").says(&["the train split is not the one", "another list"]);
}

#[test]
fn what_is_no_file_is_refused_at_once_and_names_cannot_act() {
    let dir = tempfile::tempdir().unwrap();
    run(&["config", "--config", "/dev/zero"]).code(1).says(&["/dev/zero", "it is a device"]);
    run(&["inspect", "/dev/null"]).code(1).says(&["it is a device"]);
    for name in ["../x", "..", "a/b", "/tmp"] {
        run(&["train", "--topology", name]).code(2).says(&["is not the name of a folder"]);
        run(&["plan", "--problem", name]).code(2).says(&["is not the name of a folder"]);
    }
    let page = dir.path().join("net.pth");
    fs::write(&page, "<!DOCTYPE html><title>Sign in</title>").unwrap();
    run(&["inspect", page.to_str().unwrap()]).code(1).says(&["net.pth is a web page"]);
    let pointer = dir.path().join("c.json");
    fs::write(&pointer, "version https://git-lfs.github.com/spec/v1\n").unwrap();
    run(&["config", "--config", pointer.to_str().unwrap()]).code(1).says(&["git lfs pull"]);
    let odd = dir.path().join("\u{1b}]0;title\u{7}.pth");
    let ran = run(&["inspect", odd.to_str().unwrap()]).code(1);
    assert!(
        !ran.stderr().contains('\u{1b}') && ran.stderr().contains("\\u{1b}"),
        "{}",
        ran.stderr()
    );
    // A timeline of billions of epochs takes no memory.
    let epochs = "training.full_precision.epochs=4000000000";
    let plan =
        run(&["plan", "--topology", "WidedepthTiny", "--images", "64", "--set", epochs, "--json"]);
    assert_eq!(plan.code(0).json()["stages"][0]["num_epochs"], 4_000_000_000_u32);
}
