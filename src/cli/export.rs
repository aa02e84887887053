//! `mqat export`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};

use super::args::ConfigSelect;
use super::{print_json, print_text, select};
use crate::experiment::{self, ExportRequest, export};

/// Arguments of `mqat export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// The checkpoint, or another file of weights.
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,

    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// What to write.
    #[arg(long, value_enum, default_value_t)]
    pub format: Format,

    /// Which weights of a quantized network: those that training goes on from, or those that it computes with
    /// [default: the quantized ones, where a module is quantized].
    #[arg(long, value_enum)]
    pub weights: Option<Weights>,

    #[command(flatten)]
    pub select: ConfigSelect,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

/// `--format`.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Format {
    /// Weights under PyTorch keys.
    #[default]
    Safetensors,
}

/// `--weights`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Weights {
    /// Float weights, where there are any.
    Float,
    /// Weights on their levels.
    Quantized,
}

impl From<Format> for experiment::ExportFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Safetensors => Self::Safetensors,
        }
    }
}

impl From<Weights> for experiment::ExportWeights {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Float => Self::Float,
            Weights::Quantized => Self::Quantized,
        }
    }
}

pub(super) fn run(args: ExportArgs) -> Result<()> {
    let report = export(&ExportRequest {
        checkpoint: args.checkpoint,
        select: select(args.select),
        format: args.format.into(),
        weights: args.weights.map(Into::into),
        out: args.out,
    })?;
    if args.json {
        return print_json(&report);
    }
    print_text(&format!(
        "{}: {} tensors, {:.2} MB",
        report.path.display(),
        report.num_tensors,
        report.bytes as f64 / 1e6
    ))
}
