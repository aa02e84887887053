//! Running the program, and a small synthetic dataset that the tests share.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use serde_json::Value;

/// A command of the program with a quiet environment; it computes on the CPU with one thread unless told otherwise.
pub fn mqat(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mqat"));
    command
        .args(args)
        .env("OMP_WAIT_POLICY", "PASSIVE")
        .env("MQAT_HOME", env!("CARGO_MANIFEST_DIR"))
        .env_remove("MQAT_LOG")
        .env_remove("LD_LIBRARY_PATH")
        .env_remove("RANK")
        .env_remove("WORLD_SIZE")
        .stdin(Stdio::null());
    command
}

/// What a finished command said; panics with all of it when a check fails.
pub struct Ran {
    pub output: Output,
    pub line: String,
}

impl Ran {
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn all(&self) -> String {
        let (out, err) = (self.stdout(), self.stderr());
        format!("{}\n{}\n-- stdout\n{out}\n-- stderr\n{err}", self.line, self.output.status)
    }

    /// Checks the exit code.
    #[track_caller]
    pub fn code(self, code: i32) -> Self {
        assert_eq!(self.output.status.code(), Some(code), "{}", self.all());
        self
    }

    /// Checks that stderr has every one of `parts`.
    #[track_caller]
    pub fn says(self, parts: &[&str]) -> Self {
        let err = self.stderr();
        for part in parts {
            assert!(err.contains(part), "{part:?} is missing:\n{}", self.all());
        }
        self
    }

    /// The one JSON document on stdout.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|e| panic!("{e}\n{}", self.all()))
    }
}

/// The tensors of a safetensors file, by name; their bytes.
pub fn tensors(file: impl AsRef<Path>) -> Vec<(String, Vec<u8>)> {
    let file = file.as_ref();
    let bytes = std::fs::read(file).unwrap_or_else(|e| panic!("{}: {e}", file.display()));
    let read = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<_> =
        read.tensors().into_iter().map(|(name, view)| (name, view.data().to_vec())).collect();
    all.sort();
    all
}

/// Runs the program to its end.
pub fn run(args: &[&str]) -> Ran {
    let mut command = mqat(args);
    let line = format!("{command:?}");
    Ran { output: command.output().unwrap(), line }
}

/// Settings that make a run small: one image size, one thread, few weights.
pub const SMALL: &[&str] = &[
    "--topology",
    "WidedepthTiny",
    "--device",
    "cpu",
    "--set",
    "experiment.pretrained=false",
    "--set",
    "RUNTIME.NUM_THREADS=1",
    "--set",
    "RUNTIME.NUM_WORKERS=1",
    "--set",
    "INPUT.INTERNAL_WIDTH=64",
    "--set",
    "INPUT.INTERNAL_HEIGHT=64",
    "--set",
    "INPUT.INTERNAL_K=[37.97331451,0,32,0,37.97331451,32,0,0,1]",
    "--set",
    "network.params={\"stem_channels\":4,\"stage_channels\":[8,8,16,16,16],\"stage_units\":[1,1,1,1,1],\
     \"with_output_layer\":false,\"fpn_channels\":16,\"head_channels\":16,\"head_convs\":1,\
     \"group_norm_groups\":4,\"finest_level\":3,\"anchor_sizes\":[8,16,32,64,128]}",
    "--set",
    "data.bs_train=4",
    "--set",
    "training.full_precision={\"name\":\"full_precision\",\"epochs\":2,\"batch_size\":4}",
    "--set",
    "quantize.flow=[{\"module\":\"fpn\",\"epochs\":2,\"weights\":{\"bits\":2,\"schedule\":{\"0\":0.5,\"1\":1}},\
     \"activations\":{\"n_levels\":255,\"quant_start_epoch\":1}}]",
];

/// `command` with [`SMALL`] and `more`.
pub fn small<'a>(command: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&[command], SMALL, more].concat()
}

/// A synthetic dataset of 16 + 4 + 6 images of 64 px, made once by the program itself.
pub fn dataset() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap().keep();
        let out = dir.join("data");
        let text = out.to_str().unwrap();
        run(&[
            "synth",
            "--out",
            text,
            "--train",
            "16",
            "--val",
            "4",
            "--test",
            "6",
            "--size",
            "64",
            "--depth",
            "1.5d:3d",
            "--attitude",
            "30",
            "--seed",
            "5",
            "--format",
            "png",
        ])
        .code(0);
        out
    })
}
