//! Statistics of a file's batch norms on training batches: what `mqat recalibrate` and `mqat audit` share.

use std::fmt::Write as _;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::data::{Dataset, Loader, LoaderOptions, Purpose, Split};
use crate::nn::{BatchNormShift, BatchStatistics, Network};
use crate::run::config::Config;
use crate::run::home::Home;
use crate::run::options::{loader_options, task_of};
use crate::run::request::{Request, thinned};
use crate::topology::Task;
use crate::train::{Batches, CheckpointMeta, Estimated, batch_statistics, estimation_epoch};

/// Shift of a mean, in standard deviations, from which on it is warned of.
pub(super) const LARGE_SHIFT_SD: f64 = 0.2;

/// Which batches are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Draw {
    /// Those that statistics are estimated on.
    Estimate = 0,
    /// Others, by which statistics are judged: of equal ones an estimate would look perfect.
    Check = 1,
}

/// Training batches of a file's own config, to estimate statistics on.
pub(super) struct TrainingBatches {
    config: Config,
    dataset: Arc<Dataset>,
    task: Box<dyn Task>,
    batch_size: usize,
    skip_bad: bool,
}

impl TrainingBatches {
    /// Opens the training split; batches are as large as those of the stage that a checkpoint is in.
    ///
    /// # Errors
    /// If the dataset cannot be read, or has fewer images than a batch.
    pub fn open(
        request: &Request,
        home: &Home,
        config: &Config,
        meta: Option<&CheckpointMeta>,
    ) -> Result<Self> {
        let dataset = request.open_split(home, config, Split::Train, Purpose::Training)?;
        let dataset = Arc::new(thinned(dataset, config.training.train_images));
        let stages = config.train_config().stages;
        let stage = meta.and_then(|meta| stages.get(meta.position.stage));
        let of_stage = stage.and_then(|stage| stage.batch_size);
        let batch_size = of_stage.unwrap_or(config.data.bs_train).max(1);
        ensure!(
            batch_size <= dataset.frames.len(),
            "the training split has {} images, fewer than a batch of {batch_size}; lower the batch size with --set \
             data.bs_train=N",
            dataset.frames.len()
        );
        let task = task_of(config, &dataset, config.experiment.seed)?;
        let skip_bad = request.skip_bad;
        Ok(Self { config: config.clone(), dataset, task, batch_size, skip_bad })
    }

    /// Statistics over `num` batches, of as many epochs as that takes.
    ///
    /// # Errors
    /// If a batch cannot be read or does not fit the network.
    pub fn statistics(
        &self,
        net: &dyn Network,
        draw: Draw,
        num: usize,
    ) -> Result<(BatchStatistics, Estimated)> {
        let seed = self.config.experiment.seed;
        let per_epoch = self.dataset.frames.len() / self.batch_size;
        let mut total = BatchStatistics::default();
        let mut on = Estimated { num_batches: 0, batch_size: self.batch_size };
        for epoch in 0_u64.. {
            let left = num - on.num_batches;
            if left == 0 {
                break;
            }
            let options = LoaderOptions {
                epoch: estimation_epoch(seed, &[u64::MAX, draw as u64, epoch]),
                skip_bad: self.skip_bad,
                ..loader_options(&self.config, self.batch_size)
            };
            let (input, data) = (&self.config.input, &self.config.data);
            let batches: Batches =
                Box::new(Loader::start(self.dataset.clone(), input, data, options)?);
            let take = left.min(per_epoch);
            let (part, _) = batch_statistics(net, self.task.as_ref(), batches, take)?;
            total.merge(&part);
            on.num_batches += take;
        }
        ensure!(
            total.num_layers() > 0,
            "the network has no batch norm: there are no running statistics to estimate"
        );
        Ok((total, on))
    }
}

/// The running statistics of a file's batch norms beside those of training batches.
#[derive(Debug, Serialize)]
pub struct BatchNormAudit {
    /// Training batches.
    pub num_batches: usize,
    /// Images of a batch.
    pub batch_size: usize,
    /// Every batch norm that runs.
    pub layers: Vec<BatchNormShift>,
    /// Those whose mean has moved by more than 0.2 standard deviations.
    pub large: Vec<String>,
}

impl BatchNormAudit {
    /// Measures a network.
    ///
    /// # Errors
    /// As [`TrainingBatches::statistics`], or if statistics are not finite.
    pub(super) fn of(batches: &TrainingBatches, net: &dyn Network, num: usize) -> Result<Self> {
        let (statistics, on) = batches.statistics(net, Draw::Check, num)?;
        let layers = statistics.shifts(net.store()).context("comparing batch norms")?;
        let large = layers.iter().filter(|l| l.mean_shift_sd > LARGE_SHIFT_SD);
        let large = large.map(|l| l.layer.clone()).collect();
        Ok(Self { num_batches: on.num_batches, batch_size: on.batch_size, layers, large })
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<44} {:>14} {:>15}   (file against {} training batches of {})\n",
            "batch norm", "mean shift, sd", "variance, ratio", self.num_batches, self.batch_size
        );
        for layer in &self.layers {
            let _ = writeln!(
                out,
                "{:<44} {:>14.3} {:>15.3}",
                layer.layer, layer.mean_shift_sd, layer.variance_ratio
            );
        }
        out
    }

    /// What to do where statistics are far from those of the batches.
    pub fn warning(&self, file: &str) -> Option<String> {
        let largest = crate::train::largest_shift(&self.layers)?;
        (!self.large.is_empty()).then(|| {
            format!(
                "the running statistics of {} of {} batch norms are stale: the mean of {} is {:.2} sd from that of the \
                 training batches ({LARGE_SHIFT_SD} is large), which costs accuracy; estimate them again with `mqat \
                 recalibrate {file}`",
                self.large.len(),
                self.layers.len(),
                largest.layer,
                largest.mean_shift_sd
            )
        })
    }
}
