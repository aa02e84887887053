//! Several processes on this machine that train and evaluate together, over gloo on the loopback.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::support::{Ran, dataset, mqat, run, small};

/// Every method of weights, a module each, with frozen batch norms: two steps an epoch of six images each.
const METHODS: &[&str] = &[
    "--set",
    "data.bs_train=6",
    "--set",
    "training.full_precision={\"name\":\"full_precision\",\"epochs\":1,\"batch_size\":6,\"freeze_bn\":true}",
    "--set",
    "quantize.flow=[\
     {\"module\":\"fpn\",\"epochs\":2,\"freeze_bn\":true,\"weights\":{\"bits\":2,\"schedule\":{\"0\":0.5,\"1\":1}},\
      \"activations\":{\"n_levels\":255,\"quant_start_epoch\":1}},\
     {\"module\":\"head\",\"epochs\":2,\"freeze_bn\":true,\"weights\":{\"method\":\"lsq\",\"bits\":4}},\
     {\"module\":\"backbone\",\"epochs\":2,\"freeze_bn\":true,\"weights\":{\"method\":\"dorefa\",\"bits\":4}}]",
];

fn experiment(logs: &Path) -> PathBuf {
    logs.join("SwissCube/WidedepthTiny/exp000")
}

/// `train` with settings of its own.
fn train(logs: &Path, more: &[&str]) -> Vec<String> {
    let (data, logs) = (dataset().to_str().unwrap(), logs.to_str().unwrap());
    let all = small("train", &[&["--data", data, "--logs", logs], more].concat());
    all.into_iter().map(str::to_owned).collect()
}

/// Goes on with the experiment of these logs.
fn resume(logs: &Path, more: &[&str]) -> Vec<String> {
    let logs = logs.to_str().unwrap();
    let all =
        ["train", "--topology", "WidedepthTiny", "--device", "cpu", "--resume", "--logs", logs];
    all.iter().chain(more).map(|&text| text.to_owned()).collect()
}

/// Runs a command in one process, or starts several of it.
fn ran(procs: usize, command: &[String]) -> Ran {
    let procs = procs.to_string();
    let mut all = match procs.as_str() {
        "1" => vec![],
        _ => vec!["launch", "--procs", &procs, "--"],
    };
    all.extend(command.iter().map(String::as_str));
    run(&all)
}

/// The state of a checkpoint: floats by name, and the bytes of all else. How the history went is left out.
fn state(path: &Path) -> (BTreeMap<String, Vec<f32>>, BTreeMap<String, Vec<u8>>) {
    let bytes = fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (mut floats, mut others) = (BTreeMap::new(), BTreeMap::new());
    for (name, view) in file.tensors() {
        if name.starts_with("telemetry.") {
            continue;
        }
        match view.dtype() {
            Dtype::F32 => {
                let chunks = view.data().chunks_exact(4);
                let values = chunks.map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
                floats.insert(name, values);
            }
            _ => drop(others.insert(name, view.data().to_vec())),
        }
    }
    (floats, others)
}

/// Of weights and scales that should agree to rounding: how many do not, of how many.
fn strays(a: &BTreeMap<String, Vec<f32>>, b: &BTreeMap<String, Vec<f32>>) -> (usize, usize) {
    assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
    let (mut num, mut all) = (0, 0);
    let learnt = a.iter().zip(b.values()).filter(|((name, _), _)| !name.starts_with("optim."));
    for ((_, a), b) in learnt {
        let largest = a.iter().fold(0.0f32, |max, x| max.max(x.abs()));
        num += a.iter().zip(b).filter(|(x, y)| (*x - *y).abs() > 1e-3 * largest).count();
        all += a.len();
    }
    (num, all)
}

#[test]
fn processes_and_pieces_train_what_one_process_does() {
    let dir = tempfile::tempdir().unwrap();
    let trained = |name: &str, procs: usize, more: &[&str]| {
        let logs = dir.path().join(name);
        ran(procs, &train(&logs, &[METHODS, more].concat())).code(0);
        let checkpoints = experiment(&logs).join("checkpoints");
        ["full_precision", "fpn", "head", "backbone"]
            .iter()
            .enumerate()
            .map(|(i, stage)| state(&checkpoints.join(format!("stage_{i}_{stage}.safetensors"))))
            .collect::<Vec<_>>()
    };
    let one = trained("one", 1, &[]);
    for (name, procs, more) in
        [("two", 2, &[][..]), ("three", 3, &[]), ("pieces", 1, &["--accumulate", "2"])]
    {
        let together = trained(name, procs, more);
        for (stage, (expected, found)) in one.iter().zip(&together).enumerate() {
            let (num, all) = strays(&expected.0, &found.0);
            // A weight at the border of two levels may fall to the other one by a last bit.
            assert!(num * 1000 <= all, "{name}, stage {stage}: {num} of {all} differ");
        }
        assert!(together[0].0.len() > 50 && together[3].0 != together[2].0);
    }
    // What the others than process 0 say is in their logs, and nothing else of theirs is there.
    let folder = experiment(&dir.path().join("three"));
    for rank in [1, 2] {
        let log = fs::read_to_string(folder.join(format!("rank_{rank}.log"))).unwrap();
        assert!(log.contains("stage 3 (backbone)"), "{log}");
    }
    let lines = |logs: &str| {
        let text = fs::read_to_string(experiment(&dir.path().join(logs)).join("metrics.jsonl"));
        text.unwrap().lines().count()
    };
    assert_eq!(lines("one"), lines("three"));
}

#[test]
fn tables_and_poses_are_equal_for_any_number_of_processes() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    ran(1, &train(&logs, &["--max-steps", "3"])).code(0);
    let tested = |procs: usize| {
        let poses = dir.path().join(format!("{procs}.jsonl"));
        let command = [
            "test",
            "--topology",
            "WidedepthTiny",
            "--device",
            "cpu",
            "--logs",
            logs.to_str().unwrap(),
            "--json",
            "--set",
            "data.bs_valid=1",
            "--set",
            "data.CONFIDENCE_TH=0",
            "--predictions",
            poses.to_str().unwrap(),
        ];
        let command: Vec<String> = command.iter().map(|&text| text.to_owned()).collect();
        let mut report = ran(procs, &command).code(0).json();
        let evaluation = &mut report["evaluations"][0];
        assert_eq!(evaluation["report"]["timing"]["num_images"], 6);
        evaluation["report"]["timing"] = Value::Null;
        evaluation["predictions"] = Value::Null;
        (report, fs::read(poses).unwrap())
    };
    let one = tested(1);
    for procs in [2, 3] {
        let together = tested(procs);
        assert_eq!(together.0, one.0, "{procs}");
        assert_eq!(together.1, one.1, "{procs}");
    }
}

#[test]
fn a_run_of_two_goes_on_with_the_same_bits_and_with_other_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let end = |logs: &Path| experiment(logs).join("checkpoints/stage_1_fpn.safetensors");
    let (undisturbed, stopped) = (dir.path().join("undisturbed"), dir.path().join("stopped"));
    ran(2, &train(&undisturbed, &[])).code(0).says(&["batch norms normalise by 2 images"]);
    ran(2, &train(&stopped, &["--max-steps", "3"])).code(0);
    ran(2, &resume(&stopped, &["--max-steps", "10"])).code(0);
    ran(2, &resume(&stopped, &[])).code(0);
    let (expected, found) = (state(&end(&undisturbed)), state(&end(&stopped)));
    for (name, values) in &expected.0 {
        let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(values), bits(&found.0[name]), "{name}");
    }
    assert_eq!(expected.1, found.1);

    let other = dir.path().join("other");
    ran(2, &train(&other, &["--max-steps", "5"])).code(0);
    ran(1, &resume(&other, &["--max-steps", "6"])).code(0).says(&["a number of processes of 2"]);
    ran(2, &resume(&other, &[])).code(0);
}

/// The processes that a process has started.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    text.unwrap_or_default().split_whitespace().map(|pid| pid.parse().unwrap()).collect()
}

fn send(signal: &str, pid: u32) {
    let sent = Command::new("kill").args([signal, &pid.to_string()]).status();
    assert!(sent.unwrap().success());
}

/// The value of a variable in the environment that a process was started with.
fn variable(pid: u32, name: &str) -> Option<String> {
    let all = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    let all = String::from_utf8_lossy(&all).into_owned();
    all.split('\0').find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
}

#[test]
fn whoever_is_killed_or_stopped_is_named_and_nobody_is_left() {
    let dir = tempfile::tempdir().unwrap();
    for (signal, timeout) in [("-KILL", "60"), ("-STOP", "10")] {
        let logs = dir.path().join(signal);
        let long = ["--epochs", "400", "--ckpt-every-steps", "1", "--world-timeout", timeout];
        let command = train(&logs, &long);
        let mut all = vec!["launch", "--procs", "2", "--"];
        all.extend(command.iter().map(String::as_str));
        let launcher = mqat(&all).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let checkpoints = experiment(&logs).join("checkpoints");
        let has_one = || {
            let files = fs::read_dir(&checkpoints).into_iter().flatten().flatten();
            files.into_iter().any(|f| f.file_name().to_string_lossy().starts_with("ckpt_"))
        };
        let since = Instant::now();
        while !has_one() {
            assert!(since.elapsed() < Duration::from_secs(60), "no step was done");
            std::thread::sleep(Duration::from_millis(20));
        }
        let ranks = children(launcher.id());
        assert_eq!(ranks.len(), 2);
        let second = ranks.iter().find(|pid| variable(**pid, "RANK").as_deref() == Some("1"));
        send(signal, *second.unwrap());
        let since = Instant::now();
        let output = launcher.wait_with_output().unwrap();
        let line = format!("launch, and {signal} to process 1");
        Ran { output, line }.code(1).says(&["process 0 of 2", "process 1 does not answer"]);
        assert!(since.elapsed() < Duration::from_secs(50), "{signal}: {:?}", since.elapsed());
        for pid in ranks {
            assert!(!Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
        }
        // What was saved is whole.
        let steps = fs::read_dir(&checkpoints).unwrap().count().to_string();
        ran(2, &resume(&logs, &["--max-steps", &steps])).code(0);
    }
}

#[test]
fn a_signal_to_the_launcher_saves_once() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let command = train(&logs, &["--epochs", "400", "--ckpt-every", "1000"]);
    let mut all = vec!["launch", "--procs", "2", "--"];
    all.extend(command.iter().map(String::as_str));
    let mut launcher = mqat(&all).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let metrics = experiment(&logs).join("metrics.jsonl");
    let since = Instant::now();
    while !metrics.exists() {
        assert!(since.elapsed() < Duration::from_secs(60), "the run did not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    send("-USR1", launcher.id());
    assert_eq!(launcher.wait().unwrap().code(), Some(130));
    let saved = fs::read_dir(experiment(&logs).join("checkpoints")).unwrap().flatten();
    let is_step = |name: &str| name.starts_with("ckpt_");
    assert_eq!(saved.filter(|f| is_step(&f.file_name().to_string_lossy())).count(), 1);
    let resumed = ran(2, &resume(&logs, &["--max-steps", "1"])).code(0);
    assert!(!resumed.stderr().contains("begins anew"), "{}", resumed.stderr());
}

/// Two processes with an environment of their own.
fn by_hand(port: u16, commands: [&[String]; 2]) -> Vec<Ran> {
    let started: Vec<_> = commands
        .iter()
        .enumerate()
        .map(|(rank, command)| {
            let command: Vec<&str> = command.iter().map(String::as_str).collect();
            let mut command = mqat(&command);
            command.env("RANK", rank.to_string()).env("WORLD_SIZE", "2");
            command.env("MASTER_ADDR", "127.0.0.1").env("MASTER_PORT", port.to_string());
            let line = format!("{command:?}");
            command.stdout(Stdio::piped()).stderr(Stdio::piped());
            (command.spawn().unwrap(), line)
        })
        .collect();
    let end = |(child, line): (std::process::Child, String)| Ran {
        output: child.wait_with_output().unwrap(),
        line,
    };
    started.into_iter().map(end).collect()
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn what_does_not_fit_together_is_named_before_anything_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let logs = dir.path().join("logs");
    let same = train(&logs, &[]);
    ran(3, &same).code(1).says(&[
        "stage full_precision has batches of 4 images",
        "3 processes",
        "take 3 or 6",
    ]);
    let other = train(&logs, &["--set", "training.loss.weight_reg=2"]);
    for ran in by_hand(free_port(), [&same, &other]) {
        ran.code(1).says(&["process 1 has another config", "training.loss.weight_reg differ"]);
    }
    let piece = train(&logs, &["--accumulate", "2"]);
    for ran in by_hand(free_port(), [&same, &piece]) {
        ran.code(1).says(&["another --accumulate than process 0: 2 there, 1 here"]);
    }
    assert!(!experiment(&logs).exists());

    let with = |vars: &[(&str, &str)], command: &[String]| {
        let command: Vec<&str> = command.iter().map(String::as_str).collect();
        let mut command = mqat(&command);
        command.envs(vars.iter().copied());
        let line = format!("{command:?}");
        Ran { output: command.output().unwrap(), line }
    };
    with(&[("RANK", "0")], &same).code(1).says(&["WORLD_SIZE is not"]);
    let world = [("RANK", "0"), ("WORLD_SIZE", "2")];
    with(&world, &same).code(1).says(&["MASTER_ADDR is missing"]);
    let meet = [("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", "1")];
    let slurm = [("SLURM_PROCID", "1"), ("SLURM_STEP_NUM_TASKS", "2")];
    let synth = ["synth".to_owned(), "--out".to_owned(), logs.display().to_string()];
    with(&[&slurm[..], &meet].concat(), &synth).code(1).says(&["process 1 of 2", "one process"]);

    // Nobody else comes; a port that another program has.
    let alone = train(&logs, &["--world-timeout", "1"]);
    let port = free_port().to_string();
    let first = [("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port.as_str())];
    with(&[&world[..], &first].concat(), &alone)
        .code(1)
        .says(&["rank 1 of 2 did not come within 1 s"]);
    let taken = std::net::TcpListener::bind("[::]:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let first = [("MASTER_ADDR", "127.0.0.1"), ("MASTER_PORT", port.as_str())];
    with(&[&world[..], &first].concat(), &alone).code(1).says(&["in use", "MASTER_PORT"]);
    assert!(!experiment(&logs).exists());
}
