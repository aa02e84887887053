//! What the rooms below are told by a config.

use anyhow::Result;
use tch::Device;

use super::config::Config;
use crate::data::{Dataset, LoaderOptions};
use crate::eval::InferOptions;
use crate::eval::candidates::CandidateConfig;
use crate::train::Task;

pub(super) fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads that load images.
pub(crate) fn num_workers(config: &Config) -> usize {
    config.runtime.num_workers.min(num_cores())
}

/// How poses are inferred under a config.
pub(crate) fn infer_options(config: &Config, device: Device, skip_bad: bool) -> InferOptions {
    InferOptions {
        input: config.input.clone(),
        data: config.data.clone(),
        candidates: CandidateConfig {
            confidence_threshold: config.data.confidence_threshold,
            targets: config.training.targets.clone(),
        },
        ransac: config.evaluation.ransac.clone(),
        seed: config.evaluation.seed,
        workers: num_workers(config),
        skip_bad,
        device,
    }
}

/// How training images are loaded in the first epoch.
pub(crate) fn loader_options(config: &Config, batch_size: usize) -> LoaderOptions {
    LoaderOptions {
        seed: config.experiment.seed,
        epoch: 0,
        batch_size,
        augment: config.data.augment,
        shuffle: true,
        replace_empty: true,
        first_batch: 0,
        drop_last: true,
        workers: num_workers(config),
        skip_bad: false,
    }
}

/// What the network of a config is to learn about the objects of a dataset.
pub(crate) fn task_of(config: &Config, dataset: &Dataset) -> Result<Task> {
    Ok(Task {
        camera: config.input.camera()?,
        models: dataset.models.clone(),
        targets: config.training.targets.clone(),
        loss: config.training.loss.clone(),
        pixel_mean: config.input.pixel_mean,
        pixel_std: config.input.pixel_std,
    })
}
