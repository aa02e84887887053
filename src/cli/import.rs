//! `mqat import`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, select};
use crate::artifact::Reading;
use crate::commands::import;

/// Arguments of `mqat import`.
#[derive(Debug, Clone, Args)]
pub struct ImportArgs {
    /// The file: PyTorch (.pth, .ckpt; zip or legacy), safetensors, or a checkpoint.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// The checkpoint to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    #[command(flatten)]
    pub select: ConfigSelect,

    /// Take what fits; the rest of the network keeps its initial values.
    #[arg(long)]
    pub loose: bool,

    /// What stands before the keys of the network to take, where the file holds several (student. of a distillation); what
    /// all keys share is taken off without it.
    #[arg(long, value_name = "PREFIX")]
    pub strip_prefix: Option<String>,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: ImportArgs) -> Result<()> {
    let reading = Reading::new(args.loose, args.strip_prefix);
    let report = import(&args.file, &select(args.select), &args.out, reading)?;
    if let [first, ..] = report.load.not_loaded()[..] {
        tracing::warn!(
            "{} tensors of the network are NOT from the file and keep their initial values: {first}, ...",
            report.load.not_loaded().len()
        );
    }
    if args.json { print_json(&report) } else { print_text(&report.text()) }
}
