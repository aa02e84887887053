//! Steps without a run around them: what they cost can be measured, and nothing is written.

use std::slice::from_ref;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, ensure};

use super::{BatchRequest, BatchSource, Batches, Hooks, Position, Trainer};
use crate::data::Batch;
use crate::quant::SiteReport;
use crate::topology::Prepared;

/// A trainer in the middle of its last stage, doing its steps with the same batch again and again.
///
/// Steps are those of a run ([`Trainer::run`]): forward, losses, backward, quantizers, clipping, optimizer, moving
/// average. Loading and target assignment, which a run does on other threads, were done once.
pub struct Rehearsal {
    trainer: Trainer,
    prepared: Prepared,
}

/// Hands out nothing.
struct NoBatches;

impl BatchSource for NoBatches {
    fn num_batches(&self, _batch_size: Option<usize>) -> usize {
        1
    }

    fn open(&mut self, _request: BatchRequest) -> Result<Batches> {
        Ok(Box::new(std::iter::empty()))
    }
}

impl Rehearsal {
    /// Takes a trainer at its beginning to `epoch` of its last stage, with one step in each stage: earlier stages are
    /// taken to their last epoch, and the ranges of inputs are those of the batch.
    ///
    /// # Errors
    /// If the stage has no such epoch, the batch does not fit the network, or a step fails.
    pub fn new(mut trainer: Trainer, batch: Batch, epoch: u32) -> Result<Self> {
        ensure!(
            *trainer.position() == Position::default(),
            "a run that has begun cannot be rehearsed"
        );
        let prepared = trainer.task.preparer().prepare(batch, 0)?;
        let epochs: Vec<u32> = trainer.config.stages.iter().map(|stage| stage.epochs).collect();
        for (stage, &num_epochs) in epochs.iter().enumerate() {
            let last = stage + 1 == epochs.len();
            let epoch = if last { epoch } else { num_epochs.saturating_sub(1) };
            ensure!(epoch < num_epochs, "epoch {epoch} of a stage that has {num_epochs}");
            trainer.rehearse_stage(stage, epoch, &prepared)?;
        }
        Ok(Self { trainer, prepared })
    }

    /// Does a step.
    ///
    /// # Errors
    /// As a step of a run: if a loss or the gradient is not finite.
    pub fn update(&mut self) -> Result<()> {
        self.trainer.update(from_ref(&self.prepared), 1, false).map(|_| ())
    }

    /// The layers that carry quantizers, of all stages.
    pub fn sites(&self) -> Vec<SiteReport> {
        self.trainer.sites()
    }

    /// Fraction of the weights of the stage's module that are frozen; `None` if they stay float.
    pub fn frozen_fraction(&self) -> Option<f64> {
        self.trainer.frozen_fraction()
    }

    /// The run it is of.
    #[cfg(test)]
    pub(super) fn trainer(&self) -> &Trainer {
        &self.trainer
    }
}

impl Trainer {
    /// Begins a stage, does a step in its `epoch`, and ends the recording of inputs.
    fn rehearse_stage(&mut self, stage: usize, epoch: u32, prepared: &Prepared) -> Result<()> {
        self.position = Position { stage, ..Position::default() };
        let stop = AtomicBool::new(false);
        let mut hooks = Hooks {
            source: &mut NoBatches,
            validate: &mut |_, _| Ok(None),
            observer: &mut (),
            stop: &stop,
        };
        self.begin_stage(&mut hooks)?;
        self.position.epoch = epoch;
        self.start_epoch()?;
        self.update(from_ref(prepared), 1, false)?;
        let label = self.stage().label();
        self.end_quantizers().with_context(|| format!("rehearsing stage {label}"))
    }
}
