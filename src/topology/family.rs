//! What a folder of this room offers of its network.

use std::sync::Arc;

use anyhow::Result;
use tch::Device;

use super::task::Task;
use super::teacher::Teacher;
use super::wdr::{LossConfig, TargetConfig};
use crate::data::ObjectModel;
use crate::geom::{Camera, Corners};
use crate::nn::{Decode, Network, OutputShape, Preprocess};

/// What a folder of this room offers of a network.
pub trait Family {
    /// Adds what does not fit together in the shape, each with its place below `at`; ranges are in the schema.
    fn check_together(&self, at: &str, problems: &mut Vec<String>);

    /// The network for `num_classes` classes (background not counted); with initial values by `seed`, or all of them 0: to
    /// be loaded, or only looked at.
    ///
    /// # Errors
    /// If the shape is out of range or there are no classes.
    fn network(
        &self,
        num_classes: usize,
        device: Device,
        seed: Option<u64>,
    ) -> Result<Box<dyn Network>>;

    /// What the network is to learn.
    fn task(&self, setting: TaskSetting) -> Box<dyn Task>;

    /// Names and shapes of the outputs for images of `width` x `height` px, as its decoder reads them.
    fn outputs(&self, num_classes: usize, width: usize, height: usize) -> Vec<OutputShape>;

    /// What the outputs mean, for people and to tell networks apart whose outputs cannot be compared.
    fn describe_outputs(&self) -> String;

    /// What reads the outputs.
    ///
    /// # Errors
    /// If there are not as many boxes as classes.
    fn decoder(&self, setting: DecodeSetting) -> Result<Box<dyn Decode>>;
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
    pub targets: TargetConfig,
    /// Weights of the losses.
    pub loss: LossConfig,
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
    pub targets: TargetConfig,
}
