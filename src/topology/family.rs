//! What a folder of this room offers of its network.

use std::sync::Arc;

use anyhow::{Context, Result};
use tch::Device;

use super::settings::{LossSettings, TargetSettings, TrainingSettings};
use super::task::Task;
use super::teacher::Teacher;
use crate::data::ObjectModel;
use crate::geom::{Camera, Corners};
use crate::nn::{Decode, DenseLevel, Network, OutputShape, Preprocess, Store};

/// What a folder of this room offers of a network.
pub trait Family {
    /// Adds what does not fit together in the shape, each with its place below `at`; ranges are in the schema.
    fn check_together(&self, at: &str, problems: &mut Vec<String>);

    /// The network for `num_classes` classes (background not counted), whose tensors go into `store`.
    ///
    /// # Errors
    /// If the shape is out of range or there are no classes.
    fn build(&self, num_classes: i64, store: Store) -> Result<Box<dyn Network>>;

    /// As [`Family::build`], with initial values by `seed`, or all of them 0: to be loaded, or only looked at.
    ///
    /// # Errors
    /// As [`Family::build`].
    fn network(
        &self,
        num_classes: usize,
        device: Device,
        seed: Option<u64>,
    ) -> Result<Box<dyn Network>> {
        let num_classes = i64::try_from(num_classes).context("the number of classes")?;
        let seeded = |seed| Store::seeded(device, seed);
        self.build(num_classes, seed.map_or_else(|| Store::new(device), seeded))
    }

    /// Whether the task learns from the network that a run starts from, as it is then; `training.distill` has no place there.
    fn has_own_teacher(&self) -> bool {
        false
    }

    /// The sections with what they leave out.
    ///
    /// # Errors
    /// If keys are none of this family's, or values have another type: names them with their place in a config.
    fn complete(&self, settings: &TrainingSettings) -> Result<TrainingSettings>;

    /// What the network is to learn.
    ///
    /// # Errors
    /// If the settings are those of another family.
    fn task(&self, setting: TaskSetting) -> Result<Box<dyn Task>>;

    /// Names and shapes of the outputs for images of `width` x `height` px, as its decoder reads them.
    fn outputs(&self, num_classes: usize, width: usize, height: usize) -> Vec<OutputShape>;

    /// Outputs that are cells with anchors, finest first; none of other families.
    fn dense_levels(&self) -> Vec<DenseLevel> {
        Vec::new()
    }

    /// What the outputs mean, for people and to tell networks apart whose outputs cannot be compared.
    fn describe_outputs(&self) -> String;

    /// What reads the outputs.
    ///
    /// # Errors
    /// If there are not as many boxes as classes, or the settings are those of another family.
    fn decoder(&self, setting: DecodeSetting) -> Result<Box<dyn Decode>>;
}

/// How a family names its tensors, besides what all networks have in common (see [`super::keys`]).
pub(crate) struct FamilyKeys {
    /// First components of the bare network's keys. The network is built with the same constants.
    pub roots: &'static [&'static str],
    /// Modules whose tensors follow from the config, with the settings that they follow from.
    pub derived: &'static [(&'static str, &'static str)],
    /// Begins of the keys of tensors that no output depends on, with the reason.
    pub harmless: &'static [(&'static str, &'static str)],
    /// What stands before the keys in the network where a file with these keys holds a module alone.
    pub module_alone: fn(&[&str]) -> Option<&'static str>,
}

/// What a task is built from, besides the network's shape.
#[derive(Debug, Clone)]
pub struct TaskSetting {
    /// How bytes become images.
    pub preprocess: Preprocess,
    /// The internal camera.
    pub camera: Camera,
    /// The classes' boxes and diameters.
    pub models: Arc<Vec<ObjectModel>>,
    /// Which cells answer for an object.
    pub targets: TargetSettings,
    /// Weights of the losses.
    pub loss: LossSettings,
    /// The network to learn from besides the targets.
    pub teacher: Option<Teacher>,
    /// Seed of everything random.
    pub seed: u64,
}

/// What a decoder is built from, besides the network's shape.
#[derive(Debug, Clone)]
pub struct DecodeSetting {
    /// Width of the image, px.
    pub width: usize,
    /// Height of the image, px.
    pub height: usize,
    /// Classes of the network.
    pub num_classes: usize,
    /// The box of each class, mm.
    pub corners: Vec<Corners>,
    /// Detections below it are left out, 0 to 1.
    pub confidence_threshold: f64,
    /// Most instances of a class in an image, at least 1.
    pub max_instances: usize,
    /// Which cells answer for an object.
    pub targets: TargetSettings,
}
