//! `mqat export`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::{Args, ValueEnum};

use super::onnx::OnnxArgs;
use super::print::{print_json, print_text};
use super::shared::ConfigSelect;
use super::shared::select;
use crate::commands;
use crate::commands::{ExportRequest, export};
use crate::export::packed::{self, PackOptions};

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

    /// Packed files: how weights of three levels are stored, five to a byte (1.6 bits each) or four (2 bits)
    /// [default: base3].
    #[arg(long, value_enum)]
    pub ternary: Option<Ternary>,

    /// Packed files: store each batch norm as one multiplier and one offset a channel, where that computes the same bits on
    /// a CPU.
    #[arg(long)]
    pub fold_bn: bool,

    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub onnx: OnnxArgs,

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
    /// The same as a PyTorch file, which torch.load(weights_only=True) reads.
    Pth,
    /// Weights as codes of 1 to 8 bits, and everything else, in one small file.
    Packed,
    /// A graph for ONNX Runtime, TensorRT or OpenVINO.
    Onnx,
}

/// `--ternary`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Ternary {
    /// Five to a byte.
    Base3,
    /// Four to a byte.
    #[value(name = "2bit")]
    TwoBit,
}

/// `--weights`.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Weights {
    /// Float weights, where there are any.
    Float,
    /// Weights on their levels.
    Quantized,
}

impl From<Format> for commands::ExportFormat {
    fn from(format: Format) -> Self {
        match format {
            Format::Safetensors => Self::Safetensors,
            Format::Pth => Self::Pth,
            Format::Packed => Self::Packed,
            Format::Onnx => Self::Onnx,
        }
    }
}

impl From<Weights> for commands::ExportWeights {
    fn from(weights: Weights) -> Self {
        match weights {
            Weights::Float => Self::Float,
            Weights::Quantized => Self::Quantized,
        }
    }
}

pub(super) fn run(args: ExportArgs) -> Result<()> {
    let is_packed = matches!(args.format, Format::Packed);
    ensure!(
        is_packed || (args.ternary.is_none() && !args.fold_bn),
        "--ternary and --fold-bn are for packed files: add --format packed"
    );
    let report = export(&ExportRequest {
        checkpoint: args.checkpoint,
        select: select(args.select),
        format: args.format.into(),
        weights: args.weights.map(Into::into),
        packed: PackOptions {
            ternary: match args.ternary {
                None | Some(Ternary::Base3) => packed::Ternary::Base3,
                Some(Ternary::TwoBit) => packed::Ternary::TwoBit,
            },
            fold_bn: args.fold_bn,
        },
        out: args.out,
        onnx: args.onnx.into(),
    })?;
    if args.json {
        return print_json(&report);
    }
    if let Some(packed) = &report.packed {
        return print_text(&packed.text());
    }
    if let Some(onnx) = &report.onnx {
        let size = format!("{:.2} MB", report.bytes as f64 / 1e6);
        return print_text(&format!("{}\n{size}", onnx.text(&report.path)));
    }
    print_text(&format!(
        "{}: {} tensors, {:.2} MB",
        report.path.display(),
        report.num_tensors,
        report.bytes as f64 / 1e6
    ))
}
