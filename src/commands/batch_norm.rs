//! Training batches of a file's own config, and the statistics of its batch norms on them: what `mqat recalibrate`, `mqat audit` and
//! `mqat inspect --against-init` share.

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
use crate::topology::{LevelTargets, Task};
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
    /// Those that the targets of pyramid levels are counted on.
    Count = 2,
}

/// Training batches of a file's own config, augmented as in training.
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
        let stages = config.train_config().stages;
        let stage = meta.and_then(|meta| stages.get(meta.position.stage));
        let of_stage = stage.and_then(|stage| stage.batch_size);
        let batch_size = of_stage.unwrap_or(config.data.bs_train).max(1);
        let opened = Self::open_at_most(request, home, config, batch_size)?;
        ensure!(
            batch_size == opened.batch_size,
            "the training split has {} images, fewer than a batch of {batch_size}; lower the batch size with --set \
             data.bs_train=N",
            opened.batch_size
        );
        Ok(opened)
    }

    /// Opens the training split; batches are of `batch_size` images, or of all that there are.
    ///
    /// # Errors
    /// If the dataset cannot be read or has no image.
    pub fn open_at_most(
        request: &Request,
        home: &Home,
        config: &Config,
        batch_size: usize,
    ) -> Result<Self> {
        let dataset = request.open_split(home, config, Split::Train, Purpose::Training)?;
        let dataset = Arc::new(thinned(dataset, config.training.train_images));
        ensure!(!dataset.frames.is_empty(), "the training split has no image");
        let batch_size = batch_size.clamp(1, dataset.frames.len());
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
        let mut total = BatchStatistics::default();
        let mut on = Estimated::default();
        self.each_epoch(draw, num, |batches, most| {
            let (part, of_epoch) = batch_statistics(net, self.task.as_ref(), batches, most)?;
            total.merge(&part);
            on.num_batches += of_epoch.num_batches;
            on.batch_size = on.batch_size.max(of_epoch.batch_size);
            Ok(of_epoch.num_batches)
        })?;
        ensure!(
            total.num_layers() > 0,
            "the network has no batch norm: there are no running statistics to estimate"
        );
        Ok((total, on))
    }

    /// The targets of each pyramid level over `num` batches, of as many epochs as that takes; and the images of these batches.
    ///
    /// # Errors
    /// If a batch cannot be read or does not fit the network.
    pub fn level_targets(&self, num: usize) -> Result<(Vec<LevelTargets>, usize)> {
        let preparer = self.task.preparer();
        let (mut levels, mut num_images, mut step) = (Vec::<LevelTargets>::new(), 0, 0);
        self.each_epoch(Draw::Count, num, |batches, most| {
            let mut taken = 0;
            for batch in batches.take(most) {
                let prepared = preparer.prepare(batch?, step)?;
                num_images += prepared.batch.indices.len();
                (step, taken) = (step + 1, taken + 1);
                add_targets(&mut levels, self.task.level_targets(&prepared)?);
            }
            Ok(taken)
        })?;
        Ok((levels, num_images))
    }

    /// Goes through as many epochs as `num` batches take. `each` gets the batches of one and the most it is to take of them, and says
    /// how many it took: an epoch may have fewer than its images make, as files may be skipped.
    fn each_epoch(
        &self,
        draw: Draw,
        num: usize,
        mut each: impl FnMut(Batches, usize) -> Result<usize>,
    ) -> Result<()> {
        let (mut left, mut epoch) = (num, 0_u64);
        while left > 0 {
            let taken = each(self.epoch(draw, epoch)?, left)?;
            ensure!(taken > 0, "the training split gave no batch of {} images", self.batch_size);
            left -= taken;
            epoch += 1;
        }
        Ok(())
    }

    fn epoch(&self, draw: Draw, epoch: u64) -> Result<Batches> {
        let Config { experiment, input, data, .. } = &self.config;
        let options = LoaderOptions {
            epoch: estimation_epoch(experiment.seed, &[u64::MAX, draw as u64, epoch]),
            skip_bad: self.skip_bad,
            ..loader_options(&self.config, self.batch_size)
        };
        Ok(Box::new(Loader::start(self.dataset.clone(), input, data, options)?))
    }
}

fn add_targets(sums: &mut Vec<LevelTargets>, found: Vec<LevelTargets>) {
    if sums.is_empty() {
        *sums = found;
        return;
    }
    for (sum, now) in sums.iter_mut().zip(found) {
        sum.num_targets += now.num_targets;
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
