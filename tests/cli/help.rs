//! Help, versions, completions, wrong usage.

use std::path::Path;
use std::process::Command;

use crate::support::{dataset, run};

#[test]
fn help_names_every_command_and_each_has_help() {
    let ran = run(&["--help"]).code(0);
    for command in ["train", "test", "synth", "inspect", "config", "completions"] {
        assert!(ran.stdout().contains(command), "{command}");
        let own = run(&[command, "--help"]).code(0);
        assert!(own.stdout().contains("Usage: mqat"), "{command}");
    }
}

#[test]
fn the_options_of_a_training_stand_under_headings() {
    let help = run(&["train", "--help"]).code(0).stdout();
    for (heading, option) in [
        ("Config:", "--topology <"),
        ("Flow:", "--flow <"),
        ("Data and device:", "--data <"),
        ("Saving and resuming:", "--ckpt-every-steps <"),
        ("Messages:", "--verbose"),
    ] {
        let (_, below) = help.split_once(heading).unwrap_or_else(|| panic!("no {heading}\n{help}"));
        let section = below.lines().take_while(|l| l.is_empty() || l.starts_with(' '));
        assert!(
            section.collect::<Vec<_>>().join("\n").contains(option),
            "{option} under {heading}"
        );
    }
}

#[test]
fn wrong_usage_exits_with_2_and_says_what_was_expected() {
    run(&["trian"]).code(2).says(&["train"]);
    run(&["train", "--resume", "never"]).code(2);
    run(&["train", "--device", "gpu"]).code(2).says(&["cuda:N"]);
    run(&["synth"]).code(2).says(&["--out"]);
    run(&["synth", "--out", "x", "--depth", "10d:1d"]).code(2);
    run(&["test", "--checkpoint", "a", "--exp-id", "1"]).code(2);
}

#[test]
fn the_version_tells_the_commit_and_libtorch() {
    let text = run(&["--version"]).code(0).stdout();
    let own = text.trim().strip_prefix(concat!("mqat ", env!("CARGO_PKG_VERSION"), " (")).unwrap();
    let parts: Vec<&str> = own.strip_suffix(')').unwrap().split(", ").collect();
    assert!(parts.last().unwrap().starts_with("libtorch 2."), "{text}");
    let git = Command::new("git")
        .args(["rev-parse", "--short=12", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output();
    // A released archive has no commit.
    let in_git = Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists();
    match git.ok().filter(|output| in_git && output.status.success()) {
        Some(output) => {
            let commit = String::from_utf8_lossy(&output.stdout);
            assert_eq!(parts[..parts.len() - 1], [format!("commit {}", commit.trim())], "{text}");
        }
        None => assert_eq!(parts.len(), 1, "{text}"),
    }
}

/// What help waits for is libtorch: the program that gives it must not load it, or it takes most of a second.
#[test]
fn the_launcher_is_free_of_libtorch() {
    let libraries = |program: &Path| {
        let output = Command::new(program).env("LD_TRACE_LOADED_OBJECTS", "1").output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let launcher = Path::new(env!("CARGO_BIN_EXE_mqat"));
    let listed = libraries(launcher);
    assert!(listed.contains("libc.so") && !listed.contains("torch"), "{listed}");
    let listed = libraries(Path::new(env!("CARGO_BIN_EXE_mqat-core")));
    assert!(listed.contains("libtorch_cpu.so"), "{listed}");
    // CUDA's half is loaded at run time: without it the program starts all the same.
    assert!(!listed.contains("torch_cuda"), "{listed}");
}

#[test]
fn the_launcher_alone_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let alone = folder.path().join("mqat");
    std::fs::copy(env!("CARGO_BIN_EXE_mqat"), &alone).unwrap();
    let run = |args: &[&str]| Command::new(&alone).args(args).output().unwrap();
    assert!(run(&["train", "--help"]).status.success());
    assert!(run(&["config", "--schema"]).status.success());
    let failed = run(&["config"]);
    let error = String::from_utf8_lossy(&failed.stderr);
    assert_eq!(failed.status.code(), Some(1), "{error}");
    assert!(error.contains("mqat-core") && error.contains("same folder"), "{error}");
}

#[test]
fn completions_come_for_every_shell() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        assert!(run(&["completions", shell]).code(0).stdout().contains("resume"), "{shell}");
    }
}

#[test]
fn a_gpu_that_is_asked_for_by_name_and_missing_is_an_error() {
    // On a machine with GPUs the number is the wrong one; on one without there is no driver.
    let data = dataset().to_str().unwrap();
    let logs = tempfile::tempdir().unwrap();
    let logs = logs.path().to_str().unwrap();
    let args = [
        "train",
        "--topology",
        "WidedepthTiny",
        "--data",
        data,
        "--logs",
        logs,
        "--device",
        "cuda:77",
    ];
    run(&args).code(1).says(&["--device cuda:77"]);
}
