//! What a network is to learn, as the trainer sees it.

use std::any::Any;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tch::{Device, Tensor};

use crate::data::Batch;
use crate::nn::Network;

/// A batch and its targets, of whatever kind the task makes.
pub struct Prepared {
    /// The batch.
    pub batch: Batch,
    targets: Box<dyn Any + Send>,
}

impl Prepared {
    /// A batch with these targets.
    pub fn new(batch: Batch, targets: impl Any + Send) -> Self {
        Self { batch, targets: Box::new(targets) }
    }

    /// The targets.
    ///
    /// # Errors
    /// If they are of another kind: another task made them.
    pub fn targets<T: Any>(&self) -> Result<&T> {
        self.targets.downcast_ref().context("the batch was prepared for another task")
    }
}

/// Makes targets, on a thread of its own while the device computes.
pub trait Prepare: Send + Sync {
    /// The targets of a batch for training step `step` (from 0): a function of the step and the task's seed.
    ///
    /// # Errors
    /// If the batch does not fit the task.
    fn prepare(&self, batch: Batch, step: u64) -> Result<Prepared>;
}

/// What a network is to learn: everything between a batch of bytes and its losses.
pub trait Task {
    /// What makes its targets.
    fn preparer(&self) -> Arc<dyn Prepare>;

    /// Looks at the network as training begins, before anything of it changes. A run that goes on from a checkpoint calls
    /// [`Task::load_state`] behind it.
    ///
    /// # Errors
    /// If it is the network of another task.
    fn begin(&mut self, _network: &dyn Network) -> Result<()> {
        Ok(())
    }

    /// The images of a batch as the network takes them: `[n, 3, h, w]`, normalised, on `device`.
    ///
    /// # Errors
    /// If the batch does not fit the network.
    fn images(&self, batch: &Batch, device: Device) -> Result<Tensor>;

    /// Runs the network (`train`: in training mode) and compares its outputs with the targets. The losses of the slices of a
    /// batch add up to those of the batch: sums over images do; a mean is to be divided by `1 + Batch::num_others`.
    ///
    /// # Errors
    /// If the batch does not fit the network.
    fn losses(
        &self,
        network: &dyn Network,
        prepared: &Prepared,
        train: bool,
    ) -> Result<BatchLosses>;

    /// How many targets each part of the outputs gets in a batch, such as the levels of a feature pyramid: always the same
    /// parts in the same order, none where there are no parts.
    ///
    /// # Errors
    /// If the targets are those of another task.
    fn level_targets(&self, prepared: &Prepared) -> Result<Vec<LevelTargets>> {
        let _ = prepared;
        Ok(Vec::new())
    }

    /// What changes while it trains, for checkpoints: tensors by name.
    fn state(&self) -> Vec<(String, Tensor)> {
        Vec::new()
    }

    /// Takes back what [`Task::state`] gave.
    ///
    /// # Errors
    /// If it is the state of another task.
    fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        ensure!(
            state.is_empty(),
            "the checkpoint holds {} tensors of its task, and this one has no state",
            state.len()
        );
        Ok(())
    }
}

/// Targets of a part of the outputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LevelTargets {
    /// The part, such as a pyramid level by its stride.
    pub name: String,
    /// Its targets.
    pub num_targets: usize,
}

/// The losses of a batch by name, each with its weight: scalars with a graph.
#[derive(Debug)]
pub struct BatchLosses {
    named: Vec<(&'static str, Tensor)>,
    /// Targets that the network is to find, such as the cells that answer for an object.
    pub num_positive: usize,
}

impl BatchLosses {
    /// The losses in the task's order.
    ///
    /// # Panics
    /// If there are none.
    pub fn new(named: Vec<(&'static str, Tensor)>, num_positive: usize) -> Self {
        assert!(!named.is_empty(), "a task has a loss");
        Self { named, num_positive }
    }

    /// Names and values, in order.
    pub fn named(&self) -> &[(&'static str, Tensor)] {
        &self.named
    }

    /// What is minimised: their sum.
    pub fn total(&self) -> Tensor {
        let (first, others) = self.named.split_first().expect("a task has a loss");
        others.iter().fold(first.1.shallow_clone(), |sum, (_, loss)| sum + loss)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_those_of_the_task_that_made_them() {
        let prepared = Prepared::new(Batch::default(), vec![1_u32, 2]);
        assert_eq!(prepared.targets::<Vec<u32>>().unwrap(), &[1, 2]);
        let text = prepared.targets::<String>().unwrap_err().to_string();
        assert!(text.contains("another task"), "{text}");
    }

    #[test]
    fn the_sum_of_all_losses_is_minimised() {
        let x = Tensor::from(2.0f32).set_requires_grad(true);
        let losses = BatchLosses::new(vec![("a", &x * 3.0), ("b", &x * &x), ("c", &x * 1.0)], 4);
        assert_eq!(losses.total().double_value(&[]), 6.0 + 4.0 + 2.0);
        losses.total().backward();
        assert_eq!(x.grad().double_value(&[]), 3.0 + 4.0 + 1.0);
    }
}
