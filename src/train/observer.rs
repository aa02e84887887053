//! What a training run tells about itself.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use crate::quant::{ModuleTelemetry, SiteReport};

/// One update.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StepRecord {
    /// Updates of the run so far, this one included.
    pub global_step: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: String,
    /// The stage's epoch, from 0.
    pub epoch: u32,
    /// The batch of the epoch, from 0.
    pub batch: usize,
    /// Batches of the epoch.
    pub num_batches: usize,
    /// Classification loss, weighted.
    pub loss_cls: f64,
    /// Regression loss, weighted.
    pub loss_reg: f64,
    /// Their sum.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Images of the batch.
    pub num_images: usize,
    /// Positive cells of the batch.
    pub num_positive: usize,
    /// Images a second, waiting for data included.
    pub images_per_s: f64,
}

/// One epoch; losses and norm are means over its updates, those before a resume included.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EpochRecord {
    /// Updates of the run so far.
    pub global_step: u64,
    /// Epochs of the run so far, this one included.
    pub global_epoch: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: String,
    /// The stage's epoch, from 0.
    pub epoch: u32,
    /// Epochs of the stage.
    pub num_epochs: u32,
    /// Updates.
    pub steps: u64,
    /// Classification loss, weighted.
    pub loss_cls: f64,
    /// Regression loss, weighted.
    pub loss_reg: f64,
    /// Their sum.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Positive cells per image.
    pub positive_per_image: f64,
    /// Learning rate of the last update.
    pub lr: f64,
    /// The fraction that the schedule of the stage's module asks for.
    pub inq_fraction: Option<f64>,
    /// Share of the stage's module's weights that are frozen.
    pub share_frozen: Option<f64>,
    /// Images a second over the epoch.
    pub images_per_s: f64,
}

/// What quantization did to the weights of a stage's module in an epoch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TelemetryRecord {
    /// Updates of the run so far.
    pub global_step: u64,
    /// Epochs of the run so far, this one included.
    pub global_epoch: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: String,
    /// The stage's epoch, from 0.
    pub epoch: u32,
    /// Seconds that the measuring took.
    pub seconds: f64,
    /// The module and its layers.
    #[serde(flatten)]
    pub module: ModuleTelemetry,
}

/// A stage that begins, or goes on after a resume.
#[derive(Debug, Clone, Serialize)]
pub struct StageStart {
    /// The stage, from 0.
    pub stage: usize,
    /// Its name.
    pub name: String,
    /// The module it quantizes.
    pub module: Option<String>,
    /// The epoch it begins with: 0 unless resumed.
    pub epoch: u32,
    /// Its epochs.
    pub num_epochs: u32,
    /// Batches an epoch.
    pub num_batches: usize,
    /// Updates of the run so far.
    pub global_step: u64,
    /// Parameters that some entry of is trained, in numbers.
    pub num_trainable: usize,
    /// The layers of all modules that carry quantizers.
    pub sites: Vec<SiteReport>,
}

/// A stage that is complete.
#[derive(Debug, Clone, Serialize)]
pub struct StageEnd {
    /// The stage, from 0.
    pub stage: usize,
    /// Its name.
    pub name: String,
    /// Updates of the run so far.
    pub global_step: u64,
    /// The checkpoint that stays.
    #[serde(serialize_with = "crate::io::path_text")]
    pub checkpoint: PathBuf,
    /// The layers of all modules that carry quantizers; all weights were found on their levels.
    pub sites: Vec<SiteReport>,
}

/// A checkpoint that was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CheckpointRecord {
    /// Its file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub path: PathBuf,
    /// Updates of the run so far.
    pub global_step: u64,
    /// Epochs of the run so far.
    pub global_epoch: u64,
    /// Whether it is the best one now.
    pub best: bool,
}

/// What a validation measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValidScore {
    /// Name of the score that chooses the best checkpoint.
    pub name: String,
    /// The score.
    pub value: f64,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// Everything else that was measured.
    pub details: Vec<(String, f64)>,
}

/// A validation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValidRecord {
    /// Updates of the run so far.
    pub global_step: u64,
    /// Epochs of the run so far.
    pub global_epoch: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: String,
    /// What was measured.
    pub score: ValidScore,
    /// Whether the moving average of the weights was evaluated, not the weights themselves.
    pub averaged: bool,
    /// Whether the weights may be the stage's best: not while its module is only partly quantized.
    pub eligible: bool,
    /// Whether it is the stage's best so far.
    pub best: bool,
}

/// Is told what happens, in order. An error stops the run.
///
/// A run that is resumed tells the updates after its checkpoint a second time, with the same numbers: drop what was
/// kept of updates beyond [`StageStart::global_step`].
pub trait Observer {
    /// A stage begins or goes on.
    fn stage_start(&mut self, _start: &StageStart) -> Result<()> {
        Ok(())
    }

    /// An update was done.
    fn step(&mut self, _step: &StepRecord) -> Result<()> {
        Ok(())
    }

    /// An epoch was completed; comes before its validation.
    fn epoch(&mut self, _epoch: &EpochRecord) -> Result<()> {
        Ok(())
    }

    /// The quantization of the stage's module was measured; comes after the epoch.
    fn telemetry(&mut self, _telemetry: &TelemetryRecord) -> Result<()> {
        Ok(())
    }

    /// A validation was done.
    fn validation(&mut self, _valid: &ValidRecord) -> Result<()> {
        Ok(())
    }

    /// A checkpoint is about to be written: what was told so far must not be lost once it is there.
    fn before_checkpoint(&mut self) -> Result<()> {
        Ok(())
    }

    /// A checkpoint was written.
    fn checkpoint(&mut self, _checkpoint: &CheckpointRecord) -> Result<()> {
        Ok(())
    }

    /// A stage is complete.
    fn stage_end(&mut self, _end: &StageEnd) -> Result<()> {
        Ok(())
    }

    /// Something the user should know, in a sentence.
    fn message(&mut self, _text: &str) -> Result<()> {
        Ok(())
    }
}

/// Tells nobody.
impl Observer for () {}
