//! `mqat recalibrate`: the running statistics of a file's batch norms estimated again.

mod rewrite;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::batch_norm::{Draw, TrainingBatches};
use crate::artifact::{Asked, FileKind, Stored, Strictness, open};
use crate::nn::BatchNormShift;
use crate::run::Names;
use crate::run::request::Request;
use crate::train::{BatchNormInfo, TrainConfig, largest_shift};

/// What `mqat recalibrate` is asked.
#[derive(Debug, Clone)]
pub struct RecalibrateRequest {
    /// Config, dataset, device.
    pub run: Request,
    /// The file.
    pub file: PathBuf,
    /// The file to write; none puts `_recalibrated` behind the file's name.
    pub out: Option<PathBuf>,
    /// Replace a file that already exists.
    pub overwrite: bool,
    /// Training batches; none takes `training.bn_batches`, or its default where that is 0.
    pub batches: Option<usize>,
}

/// What was written.
#[derive(Debug, Serialize)]
pub struct RecalibrateReport {
    /// The file that was read.
    #[serde(serialize_with = "crate::io::path_text")]
    pub file: PathBuf,
    /// The file that was written, of the same kind.
    #[serde(serialize_with = "crate::io::path_text")]
    pub out: PathBuf,
    /// Their kind.
    pub kind: FileKind,
    /// Training batches of the estimate; as many others measured `after`.
    pub num_batches: usize,
    /// Images of a batch.
    pub batch_size: usize,
    /// Whether the moving average of the weights was recalibrated, which a checkpoint holds beside the last ones.
    pub averaged: bool,
    /// Every batch norm that runs.
    pub layers: Vec<RecalibratedLayer>,
}

/// A batch norm before and after.
#[derive(Debug, Serialize)]
pub struct RecalibratedLayer {
    /// The layer.
    pub layer: String,
    /// The file's statistics against those of the batches.
    pub before: Shift,
    /// The new statistics against those of as many other batches: what is left by chance.
    pub after: Shift,
}

/// How far running statistics are from those of batches, without the layer's name.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Shift {
    /// The largest `|running mean - batch mean| / sd` of the channels.
    pub mean_shift_sd: f64,
    /// Running variance over batch variance, of the channel where they differ most.
    pub variance_ratio: f64,
}

impl Shift {
    fn of(shift: &BatchNormShift) -> Self {
        Self { mean_shift_sd: shift.mean_shift_sd, variance_ratio: shift.variance_ratio }
    }
}

/// Estimates the statistics of a file's batch norms on training batches, and writes a file of the same kind with them.
///
/// Weights, quantizers and, of a checkpoint, everything that a resume needs stay as they are.
///
/// # Errors
/// If the file cannot be read, has no batch norms (any more: ONNX files and `--fold-bn`), the dataset cannot be read, or the file
/// to write already exists.
pub fn recalibrate(request: &RecalibrateRequest) -> Result<RecalibrateReport> {
    let file = &request.file;
    let out = request.out.clone().unwrap_or_else(|| default_out(file));
    ensure!(
        request.overwrite || !out.exists(),
        "{} already exists; pass --overwrite to replace it, or name another file with --out",
        out.display()
    );
    let home = request.run.home()?;
    let artifact = open(file, &Asked::weights(&request.run.select, &home, Names::Dataset))?;
    rewrite::ensure_unfolded(&artifact)?;
    let config = &artifact.config;
    let device = request.run.open_device(config)?;
    let (net, loaded) = artifact.network(device, Strictness::Strict, Stored::AsComputed)?;
    loaded.report.log();
    let default = TrainConfig::default().bn_batches;
    let num = request.batches.unwrap_or(match config.training.bn_batches {
        0 => default,
        num => num,
    });
    let batches = TrainingBatches::open(&request.run, &home, config, loaded.meta.as_ref())?;
    let doing = || format!("recalibrating {}", file.display());
    let (statistics, on) =
        batches.statistics(net.as_ref(), Draw::Estimate, num).with_context(doing)?;
    let before = statistics.shifts(net.store()).with_context(doing)?;
    statistics.assign(net.store())?;
    let (others, _) = batches.statistics(net.as_ref(), Draw::Check, num).with_context(doing)?;
    let after = others.shifts(net.store()).with_context(doing)?;
    let info = BatchNormInfo {
        reestimated_on: on.num_batches,
        batch_size: on.batch_size,
        global_step: loaded.meta.as_ref().map_or(0, |meta| meta.position.global_step),
        largest_shift: largest_shift(&before).context("no batch norm")?.clone(),
    };
    rewrite::write(&artifact, &out, &statistics.tensors(), info).with_context(doing)?;
    let layer = |(before, after): (&BatchNormShift, &BatchNormShift)| RecalibratedLayer {
        layer: before.layer.clone(),
        before: Shift::of(before),
        after: Shift::of(after),
    };
    Ok(RecalibrateReport {
        file: file.clone(),
        out,
        kind: artifact.kind,
        num_batches: on.num_batches,
        batch_size: on.batch_size,
        averaged: loaded.averaged,
        layers: before.iter().zip(&after).map(layer).collect(),
    })
}

/// `a/fpn.safetensors` is `a/fpn_recalibrated.safetensors`.
fn default_out(file: &Path) -> PathBuf {
    let stem = file.file_stem().unwrap_or_default().to_string_lossy();
    let name = match file.extension() {
        Some(ending) => format!("{stem}_recalibrated.{}", ending.to_string_lossy()),
        None => format!("{stem}_recalibrated"),
    };
    file.with_file_name(name)
}

impl RecalibrateReport {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<44} {:>24} {:>24}\n{:<44} {:>11} -> {:>9} {:>11} -> {:>9}\n",
            "",
            "mean shift, sd",
            "variance, ratio",
            "batch norm",
            "before",
            "after",
            "before",
            "after"
        );
        for RecalibratedLayer { layer, before, after } in &self.layers {
            let _ = writeln!(
                out,
                "{layer:<44} {:>11.3} -> {:>9.3} {:>11.3} -> {:>9.3}",
                before.mean_shift_sd,
                after.mean_shift_sd,
                before.variance_ratio,
                after.variance_ratio
            );
        }
        let _ = write!(
            out,
            "{}: statistics of {} batch norms estimated on {} training batches of {}; \"after\" is measured on as many other \
             batches",
            self.out.display(),
            self.layers.len(),
            self.num_batches,
            self.batch_size
        );
        out
    }
}
