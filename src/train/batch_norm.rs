//! Statistics of batch norms over training batches, and what files say of them.

use anyhow::{Context, Result, ensure};
use rand::Rng;
use serde::{Deserialize, Serialize};
use tch::no_grad;

use super::Batches;
use crate::nn::{BatchNormShift, BatchStatistics, Network};
use crate::seed;
use crate::topology::Task;

/// First part of the place of the stream that draws the batches.
const PURPOSE_BATCHES: u64 = u64::from_le_bytes(*b"bn_batch");

/// How the running statistics of a file's batch norms were estimated, for its metadata.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchNormInfo {
    /// Training batches that they were estimated on.
    pub reestimated_on: usize,
    /// Images of a batch.
    pub batch_size: usize,
    /// Steps of the run behind the weights they belong to; training steps after it moved them on.
    pub global_step: u64,
    /// The batch norm whose mean had moved furthest before, and how far.
    pub largest_shift: BatchNormShift,
}

impl BatchNormInfo {
    /// For the metadata of a file.
    ///
    /// # Errors
    /// If a number cannot be written.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).context("writing what batch norms were estimated on as JSON")
    }

    /// For people.
    pub fn text(&self) -> String {
        format!(
            "batch-norm statistics estimated on {} training batches of {} after {} steps; the largest shift of a mean before \
             was {:.2} sd ({})",
            self.reestimated_on,
            self.batch_size,
            self.global_step,
            self.largest_shift.mean_shift_sd,
            self.largest_shift.layer
        )
    }
}

/// The epoch whose order and augmentation give the batches of an estimate: a function of seed and place, and none that
/// training uses.
pub fn estimation_epoch(seed: u64, place: &[u64]) -> u64 {
    let place: Vec<u64> = std::iter::once(PURPOSE_BATCHES).chain(place.iter().copied()).collect();
    // Training counts its epochs from 0.
    seed::stream(seed, &place).random::<u64>() | (1 << 63)
}

/// The largest shift of a mean among layers.
pub fn largest_shift(shifts: &[BatchNormShift]) -> Option<&BatchNormShift> {
    shifts.iter().max_by(|a, b| a.mean_shift_sd.total_cmp(&b.mean_shift_sd))
}

/// Statistics of a network's batch norms over the first `num` of `batches`, and the images they saw. Weights and activations are
/// those of evaluation; no gradient.
///
/// # Errors
/// If there is no batch, one cannot be read, or one does not fit the network.
pub fn batch_statistics(
    net: &dyn Network,
    task: &dyn Task,
    batches: Batches,
    num: usize,
) -> Result<(BatchStatistics, Estimated)> {
    let store = net.store();
    let mut estimated = Estimated::default();
    let collected = store.collect_batch_statistics(|| {
        for batch in batches.take(num) {
            let batch = batch?;
            estimated.num_batches += 1;
            estimated.batch_size = estimated.batch_size.max(batch.indices.len());
            let images = task.images(&batch, store.device())?;
            no_grad(|| drop(net.run(&images, false)));
        }
        Ok(())
    })?;
    ensure!(estimated.num_batches > 0, "no batch to estimate the statistics of batch norms on");
    Ok((collected, estimated))
}

/// What an estimate was made on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Estimated {
    /// Batches.
    pub num_batches: usize,
    /// Images of a batch.
    pub batch_size: usize,
}
