//! `mqat recalibrate`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, Reads, reading};
use crate::commands::{RecalibrateRequest, recalibrate};

/// Arguments of `mqat recalibrate`.
#[derive(Debug, Clone, Args)]
pub struct RecalibrateArgs {
    /// The file: a checkpoint, safetensors, a packed or a PyTorch file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The file to write, of the same kind [default: FILE with _recalibrated behind its name].
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Replace a file that already exists.
    #[arg(long)]
    pub overwrite: bool,

    /// Training batches to estimate on [default: training.bn_batches of the config, 50 where that is 0].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batches: Option<u32>,

    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub reads: Reads,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: RecalibrateArgs) -> Result<()> {
    let report = recalibrate(&RecalibrateRequest {
        run: reading(args.select, args.reads),
        file: args.file,
        out: args.out,
        overwrite: args.overwrite,
        batches: args.batches.map(|num| num as usize),
    })?;
    if args.json { print_json(&report) } else { print_text(&report.text()) }
}
