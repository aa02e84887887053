//! `mqat audit`.

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigNames, names};
use crate::commands::{AuditRequest, audit_file};
use crate::run::{Bits, FlowSource};

/// Arguments of `mqat audit`.
#[derive(Debug, Clone, Args)]
pub struct AuditArgs {
    /// The file: a checkpoint, safetensors, a packed, a PyTorch or an ONNX file.
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    #[command(flatten)]
    pub select: ConfigNames,

    /// The flow that the file should have run to its end [default: the checkpoint's own, as far as it came].
    #[arg(long, value_name = "FLOW|FILE", conflicts_with = "bits")]
    pub flow: Option<FlowSource>,

    /// Bits that every convolution should have: 4, w4a8, ...
    #[arg(long, value_name = "BITS")]
    pub bits: Option<Bits>,

    /// Compare the running statistics of batch norms with those of so many training batches, and warn where a mean is off by
    /// more than 0.2 standard deviations.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub bn_batches: Option<u32>,

    /// The dataset of --bn-batches, or the folder that holds it as DATA/PROBLEM [default: cfg/hard_storage.json].
    #[arg(long, value_name = "DIR", requires = "bn_batches")]
    pub data: Option<PathBuf>,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Prints what was found; problems are a failure.
pub(super) fn run(args: AuditArgs) -> Result<()> {
    let found = audit_file(&AuditRequest {
        file: args.file,
        select: names(args.select),
        flow: args.flow,
        bits: args.bits,
        bn_batches: args.bn_batches.map(|num| num as usize),
        data: args.data,
    })?;
    let file = found.file.display().to_string();
    if let Some(warning) = found.batch_norms.as_ref().and_then(|b| b.warning(&file)) {
        tracing::warn!("{warning}");
    }
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
