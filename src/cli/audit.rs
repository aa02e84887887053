//! `mqat audit`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::ConfigSelect;
use super::shared::select;
use crate::commands::{AuditRequest, audit_file};
use crate::run::{Bits, FlowSource};

/// Arguments of `mqat audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// The file: a checkpoint, safetensors, or a PyTorch file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    #[command(flatten)]
    pub select: ConfigSelect,

    /// The flow that the file should have run to its end [default: the checkpoint's own, as far as it came].
    #[arg(long, value_name = "FLOW|FILE", conflicts_with = "bits")]
    pub flow: Option<FlowSource>,

    /// Bits that every convolution should have: 4, w4a8, ...
    #[arg(long, value_name = "BITS")]
    pub bits: Option<Bits>,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Prints what was found; problems are a failure.
pub(super) fn run(args: AuditArgs) -> Result<()> {
    let found = audit_file(&AuditRequest {
        file: args.file,
        select: select(args.select),
        flow: args.flow,
        bits: args.bits,
    })?;
    if args.json {
        print_json(&found)?;
    } else {
        print_text(&found.text())?;
    }
    if !found.passed {
        bail!("{}: {}", found.file.display(), found.summary());
    }
    Ok(())
}
