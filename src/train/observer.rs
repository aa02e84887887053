//! Who is told what a training run does.

use std::path::Path;

use anyhow::Result;

use super::record::{
    BatchNormRecord, CheckpointRecord, EpochRecord, StageEnd, StageStart, StepRecord,
    TelemetryRecord, ValidRecord,
};

/// Is told what happens, in order. An error stops the run.
///
/// A run that is resumed tells the steps after its checkpoint a second time, with the same numbers: drop what was
/// kept of steps beyond [`StageStart::global_step`].
pub trait Observer {
    /// The run's folder, before anything is written there.
    fn folder(&mut self, _path: &Path) -> Result<()> {
        Ok(())
    }

    /// The run begins or goes on; its stages have so many epochs, in order.
    fn run_start(&mut self, _epochs: &[u32]) -> Result<()> {
        Ok(())
    }

    /// A stage begins or goes on.
    fn stage_start(&mut self, _start: &StageStart) -> Result<()> {
        Ok(())
    }

    /// A step was done.
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

    /// The statistics of batch norms were estimated again; comes before the validation.
    fn batch_norm(&mut self, _estimate: &BatchNormRecord) -> Result<()> {
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
