//! A run that was stopped or killed at any moment ends with the bits of one that was not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::support::{dataset, mqat, run, small};

/// Kills of the test in the suite; `MQAT_KILLS` sets another number (the measure is 20).
const KILLS: u32 = 4;

fn places(logs: &Path) -> [String; 4] {
    ["--data".into(), dataset().display().to_string(), "--logs".into(), logs.display().to_string()]
}

fn args<'a>(places: &'a [String; 4], more: &[&'a str]) -> Vec<&'a str> {
    let places: Vec<&str> = places.iter().map(String::as_str).collect();
    small("train", &[&places[..], more].concat())
}

/// Goes on without naming the dataset: the run knows its own.
fn resumed(places: &[String; 4]) -> Vec<&str> {
    let logs: Vec<&str> = places[2..].iter().map(String::as_str).collect();
    [&["train", "--topology", "WidedepthTiny", "--device", "cpu", "--resume"], &logs[..]].concat()
}

fn last(logs: &Path) -> PathBuf {
    logs.join("SwissCube/WidedepthTiny/exp000/checkpoints/stage_1_fpn.safetensors")
}

/// The tensors of a checkpoint; its metadata tells times of the run.
fn tensors(path: &Path) -> Vec<(String, Vec<u8>)> {
    let bytes = fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> =
        file.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    all.sort();
    assert!(all.iter().any(|(name, _)| name.starts_with("optim.")));
    assert!(all.iter().any(|(name, _)| name.starts_with("quant.")));
    all
}

fn undisturbed(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let logs = dir.join("undisturbed");
    run(&args(&places(&logs), &[])).code(0);
    tensors(&last(&logs))
}

#[track_caller]
fn assert_same(expected: &[(String, Vec<u8>)], found: &[(String, Vec<u8>)], what: &str) {
    let names = |all: &[(String, Vec<u8>)]| all.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>();
    assert_eq!(names(expected), names(found), "{what}");
    for ((name, a), (_, b)) in expected.iter().zip(found) {
        assert!(a == b, "{what}: {name} differs");
    }
}

#[test]
fn a_run_is_trained_once_more_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    let logs = dir.path().join("undisturbed");
    let experiment = logs.join("SwissCube/WidedepthTiny/exp000").display().to_string();
    let again = dir.path().join("again");
    let logs_again = again.display().to_string();
    let like = ["train", "--like", &experiment, "--device", "cpu", "--logs", &logs_again];
    run(&like).code(0);
    assert_same(&expected, &tensors(&last(&again)), "--like");
    for (more, part) in [
        (&["--flow", "fpn:2"][..], "--flow cannot act"),
        (&["--config", "x.json"], "--config cannot act"),
        (&["--resume"], "--resume cannot act"),
    ] {
        run(&[&like[..], more].concat()).code(1).says(&[part]);
    }
    let none = ["train", "--like", "77", "--logs", &logs_again, "--topology", "WidedepthTiny"];
    run(&none).code(1).says(&["no experiment exp077"]);
}

#[test]
fn stopping_after_any_number_of_steps_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    let logs = dir.path().join("stopped");
    let places = places(&logs);
    // In an epoch, at its end, at the end of a stage, in the quantized stage.
    run(&args(&places, &["--max-steps", "2"])).code(0);
    for steps in ["4", "8", "11"] {
        run(&[&resumed(&places)[..], &["--max-steps", steps]].concat()).code(0);
    }
    run(&resumed(&places)).code(0);
    assert_same(&expected, &tensors(&last(&logs)), "stopped at 2, 4, 8, 11");
    // Nothing is left to do, and nothing more is written.
    let metrics = logs.join("SwissCube/WidedepthTiny/exp000/metrics.jsonl");
    let before = fs::read_to_string(&metrics).unwrap();
    // Batch norms of the quantized stage were estimated again, once an epoch.
    assert_eq!(before.matches("\"kind\":\"batch_norm\"").count(), 2, "{before}");
    assert_eq!(before.matches("\"stage_end\"").count(), 2, "{before}");
    run(&resumed(&places)).code(0);
    assert_eq!(fs::read_to_string(&metrics).unwrap(), before);
}

#[test]
fn a_resume_that_is_refused_leaves_the_run_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    let logs = dir.path().join("logs");
    let places = places(&logs);
    run(&args(&places, &["--max-steps", "10"])).code(0);
    let resume = |more: &[&str]| run(&[&resumed(&places)[..], more].concat());
    resume(&["--set", "quantize.flow.0.weights.bits=3"]).code(1).says(&["other settings"]);
    resume(&["--set", "experiment.seed=5"]).code(1).says(&["keeps its seed"]);
    resume(&["--seed", "5"]).code(1).says(&["keeps its seed"]);
    resume(&["--config", "x.json"]).code(1).says(&["--set"]);
    resume(&[]).code(0);
    assert_same(&expected, &tensors(&last(&logs)), "refused, then resumed");
}

#[test]
fn a_signal_saves_and_exits_with_130() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let places = places(&logs);
    let mut child = mqat(&args(&places, &["--epochs", "400"]))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let metrics = logs.join("SwissCube/WidedepthTiny/exp000/metrics.jsonl");
    wait_for(&mut child, || metrics.exists());
    std::thread::sleep(Duration::from_millis(300));
    let killed =
        std::process::Command::new("kill").args(["-TERM", &child.id().to_string()]).status();
    assert!(killed.unwrap().success());
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(130));
    run(&[&resumed(&places)[..], &["--max-steps", "1"]].concat()).code(0);
}

#[test]
fn a_run_killed_at_random_moments_ends_with_the_same_bits() {
    let kills: u32 = std::env::var("MQAT_KILLS")
        .ok()
        .map_or(KILLS, |text| text.parse().expect("MQAT_KILLS is a number"));
    let dir = tempfile::tempdir().unwrap();
    let begun = std::time::Instant::now();
    let expected = undisturbed(dir.path());
    let whole = begun.elapsed();
    let mut num_cut = 0;
    for kill in 0..kills {
        let logs = dir.path().join(format!("killed_{kill}"));
        let places = places(&logs);
        let mut child = mqat(&args(&places, &["--ckpt-every-steps", "1"]))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // Spread over the run, with a jitter that no clock of the program shares.
        let share =
            (f64::from(kill) + 0.5 + f64::from(std::process::id() % 97) / 200.0) / f64::from(kills);
        std::thread::sleep(whole.mul_f64(share * 0.95));
        child.kill().unwrap();
        child.wait().unwrap();
        if !last(&logs).exists() {
            num_cut += 1;
        }
        // A run that had not yet written its config is not an experiment to go on with.
        if logs.join("SwissCube/WidedepthTiny/exp000/config.json").exists() {
            run(&resumed(&places)).code(0);
        } else {
            run(&resumed(&places)).code(1);
            drop(fs::remove_dir_all(&logs));
            run(&args(&places, &["--ckpt-every-steps", "1"])).code(0);
        }
        assert_same(&expected, &tensors(&last(&logs)), &format!("kill {kill}"));
    }
    assert!(num_cut > 0, "every kill came after the end of the run");
}

#[test]
fn one_command_begins_a_run_and_goes_on_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let expected = undisturbed(dir.path());
    let logs = dir.path().join("again");
    let places = places(&logs);
    let again = |more: &[&str]| {
        run(&args(&places, &[&["--exp-id", "0", "--resume", "auto"][..], more].concat()))
    };
    // A folder of a job that was killed before it began.
    fs::create_dir_all(logs.join("SwissCube/WidedepthTiny/exp000")).unwrap();
    again(&["--max-steps", "3"]).code(0);
    again(&["--max-steps", "9"]).code(0);
    again(&["--epochs", "9"])
        .code(1)
        .says(&["begun with another config", "training.full_precision.epochs, "]);
    again(&[]).code(0);
    assert_same(&expected, &tensors(&last(&logs)), "begun and resumed by one command");
    assert!(again(&[]).code(0).stdout().contains("exp000 finished"));
    run(&args(&places, &["--resume", "auto"])).code(1).says(&["needs --exp-id N"]);
}

fn wait_for(child: &mut std::process::Child, ready: impl Fn() -> bool) {
    for _ in 0..600 {
        if ready() {
            return;
        }
        if let Some(status) = child.try_wait().unwrap() {
            panic!("the run ended with {status} before it was ready");
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    child.kill().ok();
    panic!("the run was not ready after a minute");
}
