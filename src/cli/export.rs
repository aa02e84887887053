//! `mqat export`.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use super::onnx::OnnxArgs;
use super::print::{print_json, print_text};
use super::shared::{ConfigNames, names, refuse};
use crate::commands::{
    ExportFormat, ExportReport, ExportRequest, ExportTarget, ExportWeights, export,
};
use crate::export::packed::{PackOptions, Ternary};
use crate::run::FlowSource;

/// Arguments of `mqat export`.
#[derive(Debug, Clone, Args)]
pub struct ExportArgs {
    /// The checkpoint, or another file of weights.
    #[arg(value_name = "CHECKPOINT")]
    pub checkpoint: PathBuf,

    /// The file to write.
    #[arg(long, value_name = "FILE")]
    pub out: PathBuf,

    /// Replace the file of --out.
    #[arg(long)]
    pub overwrite: bool,

    /// Quantize modules of a float network for this file, without training: MODULE:BITS[:METHOD],... (fpn:4,backbone:8),
    /// each by its quantizer's own search for the scale. Training keeps more: `mqat train --from FILE --flow ...`.
    #[arg(long, value_name = "MODULE:BITS,...", value_parser = modules)]
    pub quantize: Option<FlowSource>,

    /// What to write.
    #[arg(long, value_enum, default_value_t)]
    pub format: ExportFormat,

    /// Which weights of a quantized network: those that training goes on from, or those that it computes with
    /// [default: the quantized ones, where a module is quantized].
    #[arg(long, value_enum)]
    pub weights: Option<ExportWeights>,

    /// Packed files: how weights of three levels are stored, five to a byte (1.6 bits each) or four (2 bits)
    /// [default: base3].
    #[arg(long, value_enum)]
    pub ternary: Option<Ternary>,

    /// Packed files: store each batch norm as one multiplier and one offset a channel, where that computes the same bits on
    /// a CPU.
    #[arg(long)]
    pub fold_bn: bool,

    /// The dataset, or the folder that holds it as DATA/PROBLEM [default: cfg/hard_storage.json]: its images calibrate and
    /// check an ONNX file, and its objects go into a packed or ONNX file where the checkpoint carries none.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Corners of the objects' boxes, as the dataset's BBOX_FILE, for a packed or ONNX file of a checkpoint that carries none.
    #[arg(long, value_name = "FILE")]
    pub boxes: Option<PathBuf>,

    #[command(flatten)]
    pub select: ConfigNames,

    #[command(flatten)]
    pub onnx: OnnxArgs,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: ExportArgs) -> Result<()> {
    let target = target(&args)?;
    let report = export(&ExportRequest {
        checkpoint: args.checkpoint,
        select: names(args.select),
        target,
        weights: args.weights,
        quantize: args.quantize,
        boxes: args.boxes,
        data: args.data,
        out: args.out,
        overwrite: args.overwrite,
    })?;
    report.notes.iter().for_each(|note| tracing::warn!("{note}"));
    print(&report, args.json)?;
    let check = report.onnx.and_then(|onnx| onnx.check);
    let failures = check.map(|check| check.failures).unwrap_or_default();
    ensure!(
        failures.is_empty(),
        "{} was not written, ONNX Runtime computes something else than the network: {}",
        report.path.display(),
        failures.join("; ")
    );
    Ok(())
}

/// Modules with bits; a method may stand behind a colon or, as in flows, behind `@`.
fn modules(text: &str) -> Result<FlowSource> {
    let stage = |part: &str| match part.rsplit_once(':') {
        Some((head, method)) if head.contains(':') => format!("{head}@{method}"),
        _ => part.to_owned(),
    };
    let stages = text.split(',').map(|part| stage(part).parse()).collect::<Result<_>>()?;
    Ok(FlowSource::Text(stages))
}

fn print(report: &ExportReport, json: bool) -> Result<()> {
    if json {
        return print_json(report);
    }
    if let Some(packed) = &report.packed {
        return print_text(&packed.text());
    }
    let size = format!("{:.2} MB", report.bytes as f64 / 1e6);
    if let Some(onnx) = &report.onnx {
        return print_text(&format!("{}\n{size}", onnx.text(&report.path)));
    }
    print_text(&format!("{}: {} tensors, {size}", report.path.display(), report.num_tensors))
}

/// The format with its options; those of another format are refused.
fn target(args: &ExportArgs) -> Result<ExportTarget> {
    let format = args.format;
    if format != ExportFormat::Packed {
        let options = [("--ternary", args.ternary.is_some()), ("--fold-bn", args.fold_bn)];
        refuse(&options, "it is for packed files (add --format packed)")?;
    }
    if format != ExportFormat::Onnx {
        refuse(&args.onnx.given(), "it is for ONNX files (add --format onnx)")?;
    }
    if !matches!(format, ExportFormat::Packed | ExportFormat::Onnx) {
        let options = [("--data", args.data.is_some()), ("--boxes", args.boxes.is_some())];
        refuse(&options, "it is for packed and ONNX files (add --format packed or onnx)")?;
    }
    Ok(match format {
        ExportFormat::Safetensors => ExportTarget::Safetensors,
        ExportFormat::Pth => ExportTarget::Pth,
        ExportFormat::Packed => ExportTarget::Packed(PackOptions {
            ternary: args.ternary.unwrap_or_default(),
            fold_bn: args.fold_bn,
        }),
        ExportFormat::Onnx => ExportTarget::Onnx(args.onnx.options(args.data.clone())?),
    })
}
