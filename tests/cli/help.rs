//! Help, versions, completions, wrong usage.

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
fn wrong_usage_exits_with_2_and_says_what_was_expected() {
    run(&["trian"]).code(2).says(&["train"]);
    run(&["train", "--resume", "never"]).code(2);
    run(&["train", "--device", "gpu"]).code(2).says(&["cuda:N"]);
    run(&["synth"]).code(2).says(&["--out"]);
    run(&["synth", "--out", "x", "--depth", "10d:1d"]).code(2);
    run(&["test", "--checkpoint", "a", "--exp-id", "1"]).code(2);
}

#[test]
fn the_version_is_that_of_the_package() {
    let ran = run(&["--version"]).code(0);
    assert_eq!(ran.stdout().trim(), format!("mqat {}", env!("CARGO_PKG_VERSION")));
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
