//! Batch norms of a quantized network, or of a float control: their running statistics estimated again before they are used.

use std::time::Instant;

use anyhow::{Context, Result};

use super::batch_norm::{
    BatchNormInfo, Estimated, batch_statistics, estimation_epoch, largest_shift,
};
use super::together::add_statistics;
use super::trainer::{Hooks, Trainer};
use super::{BatchNormRecord, BatchRequest};
use crate::nn::{BatchNormShift, BatchStatistics};
use crate::quant::ModuleQuantizer;

/// Statistics over training batches, and how far those of the network were from them.
struct Estimate {
    statistics: BatchStatistics,
    on: Estimated,
    shifts: Vec<BatchNormShift>,
}

impl Trainer {
    /// Estimates the running statistics of batch norms again, if quantization changes what the network computes or
    /// `bn_always` says so: they are the cumulative average over training batches instead of a moving one that lags behind steps between levels.
    ///
    /// They become those of the weights and, with estimates of their own, of the averaged weights where there are any. Training
    /// does not depend on them, since it normalises by the batch; where batch norms are frozen it does, and they stay.
    ///
    /// # Errors
    /// If a batch cannot be read, or statistics are not finite.
    pub(super) fn reestimate_batch_norms(&mut self, hooks: &mut Hooks<'_>) -> Result<()> {
        let num = self.config.bn_batches.min(hooks.source.num_batches(self.stage().batch_size));
        let is_quantized = || self.quantizers.iter().any(|(_, q)| ModuleQuantizer::is_acting(q));
        let concerns =
            self.net.store().has_batch_norms() && (self.config.bn_always || is_quantized());
        if num == 0 || self.stage().freeze_bn || !concerns {
            return Ok(());
        }
        let since = Instant::now();
        let mut estimate = self.estimate(hooks, num)?;
        estimate.statistics.assign(self.net.store())?;
        if self.ema.is_some() {
            estimate = self.evaluated(|| self.estimate(hooks, num))?;
        }
        if let Some(ema) = &mut self.ema {
            ema.set(&estimate.statistics.tensors())?;
        }
        self.tell_estimate(&estimate, since.elapsed().as_secs_f64(), hooks)
    }

    /// The statistics of the network as it is now, over batches that are a function of seed, stage and epoch.
    fn estimate(&self, hooks: &mut Hooks<'_>, num: usize) -> Result<Estimate> {
        let place = [self.position.stage as u64, u64::from(self.position.epoch)];
        let (slices, world) = (self.together.slices(), self.world());
        let request = BatchRequest {
            epoch_key: estimation_epoch(self.seed(), &place),
            first_batch: 0,
            batch_size: self.stage().batch_size,
            slices,
        };
        let (net, task) = (self.net.as_ref(), self.task.as_ref());
        let estimate = |batches| {
            let (mut statistics, mut on) =
                batch_statistics(net, task, batches, num * slices.count)?;
            add_statistics(world, &mut statistics).context("adding up statistics")?;
            on.num_batches = num * slices.of;
            let shifts = statistics.shifts(net.store())?;
            Ok(Estimate { statistics, on, shifts })
        };
        (hooks.source.open(request).and_then(estimate))
            .context("estimating the statistics of batch norms (training.bn_batches)")
    }

    /// Keeps for checkpoints what was estimated, and tells it.
    fn tell_estimate(
        &mut self,
        estimate: &Estimate,
        seconds: f64,
        hooks: &mut Hooks<'_>,
    ) -> Result<()> {
        let Estimate { on, shifts, .. } = estimate;
        let Some(largest) = largest_shift(shifts) else { return Ok(()) };
        self.batch_norm = Some(BatchNormInfo {
            reestimated_on: on.num_batches,
            batch_size: on.batch_size,
            global_step: self.position.global_step,
            largest_shift: largest.clone(),
        });
        let furthest = |a: &&BatchNormShift, b: &&BatchNormShift| {
            a.variance_factor().total_cmp(&b.variance_factor())
        };
        hooks.observer.batch_norm(&BatchNormRecord {
            global_step: self.position.global_step,
            global_epoch: self.position.global_epoch,
            stage: self.position.stage,
            stage_name: self.stage().label(),
            num_batches: on.num_batches,
            num_layers: shifts.len(),
            seconds,
            largest_shift: largest.clone(),
            largest_variance_ratio: shifts.iter().max_by(furthest).unwrap_or(largest).clone(),
        })
    }

    /// Whether the weights have moved since the statistics were estimated, or they never were.
    pub(super) fn is_estimate_due(&self) -> bool {
        self.batch_norm.as_ref().is_none_or(|b| b.global_step != self.position.global_step)
    }
}
