//! What the rooms below are told by a config.

use anyhow::Result;
use tch::Device;

use super::config::Config;
use crate::data::{Dataset, LoaderOptions, Share};
use crate::eval::{InferOptions, preprocess};
use crate::geom::Corners;
use crate::nn::Decode;
use crate::topology::{DecodeSetting, Task, TaskSetting, Teacher};

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
        ransac: config.evaluation.ransac.clone(),
        seed: config.evaluation.seed,
        workers: num_workers(config),
        skip_bad,
        share: Share::All,
        device,
    }
}

/// What reads the outputs of a config's network, for classes whose boxes have these corners: one pose a class, unless
/// `evaluation.instances` says more.
///
/// # Errors
/// If there are not as many boxes as the config has classes.
pub(crate) fn decoder(config: &Config, corners: Vec<Corners>) -> Result<Box<dyn Decode>> {
    decoder_of_instances(config, corners, 1)
}

/// The same, with the number of instances to look for where the config leaves it open.
fn decoder_of_instances(
    config: &Config,
    corners: Vec<Corners>,
    instances: usize,
) -> Result<Box<dyn Decode>> {
    config.network.family().decoder(DecodeSetting {
        width: config.input.width,
        height: config.input.height,
        num_classes: config.data.num_classes(),
        corners,
        confidence_threshold: config.data.confidence_threshold,
        max_instances: config.evaluation.instances.unwrap_or(instances.max(1)),
        targets: config.training.targets.clone(),
    })
}

/// As [`decoder`], for the objects of a dataset: where the config leaves it open, as many poses of a class as its images hold at
/// most.
///
/// # Errors
/// As [`decoder`].
pub(crate) fn decoder_for(config: &Config, dataset: &Dataset) -> Result<Box<dyn Decode>> {
    let instances = dataset.most_of_a_class();
    if instances > 1 && config.evaluation.instances.is_none() {
        tracing::info!("looking for up to {instances} instances of a class (evaluation.instances)");
    }
    let corners = dataset.models.iter().map(|model| model.corners).collect();
    decoder_of_instances(config, corners, instances)
}

/// Images of an epoch, of `num_images` of the training list.
pub(crate) fn images_of_epoch(config: &Config, num_images: usize) -> usize {
    config.training.epoch_images.unwrap_or(num_images)
}

/// How all training images are loaded, once, in the order of the first epoch.
pub(crate) fn loader_options(config: &Config, batch_size: usize) -> LoaderOptions {
    LoaderOptions {
        seed: config.experiment.seed,
        epoch: 0,
        batch_size,
        augment: config.data.augment,
        shuffle: true,
        epoch_images: None,
        replace_empty: true,
        first_batch: 0,
        drop_last: true,
        workers: num_workers(config),
        skip_bad: false,
        share: Share::All,
    }
}

/// What the network of a config is to learn about the objects of a dataset; what is random follows from `seed`.
///
/// # Errors
/// If the internal camera is not valid, or the settings are those of another family.
pub(crate) fn task_of(config: &Config, dataset: &Dataset, seed: u64) -> Result<Box<dyn Task>> {
    task_with(config, dataset, seed, None)
}

/// The same, learning from a teacher too.
///
/// # Errors
/// As [`task_of`].
pub(crate) fn task_with(
    config: &Config,
    dataset: &Dataset,
    seed: u64,
    teacher: Option<Teacher>,
) -> Result<Box<dyn Task>> {
    config.network.family().task(TaskSetting {
        preprocess: preprocess(&config.input),
        camera: config.input.camera()?,
        models: dataset.models.clone(),
        targets: config.training.targets.clone(),
        loss: config.training.loss.clone(),
        teacher,
        seed,
    })
}
