//! Networks and what they learn, one folder each: layers, targets, losses, decoding, keys.
//!
//! Start at [`Topology`]: the enum of a config, with the one `match` that leads to a family. A [`Family`] builds the
//! [`Network`], its [`Task`] and what decodes its outputs; everything above this room knows these traits alone.

mod task;
pub mod wdr;

use std::sync::Arc;

use anyhow::Result;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};
use tch::Device;

use crate::data::ObjectModel;
use crate::geom::{Camera, Corners};
use crate::nn::{Decode, Network, OutputShape, Preprocess};
pub use task::{BatchLosses, Prepare, Prepared, Task};

/// A network of a config: the key `class` tells the family, `params` is its shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "Section", into = "Section")]
pub enum Topology {
    /// The Wide-Depth-Range network (Hu et al., CVPR 2021), full or narrow.
    Widedepth(wdr::NetworkConfig),
}

impl Topology {
    /// What the network's folder offers: the one place where topologies are told apart.
    pub fn family(&self) -> &dyn Family {
        match self {
            Self::Widedepth(params) => params,
        }
    }
}

impl Default for Topology {
    fn default() -> Self {
        Self::Widedepth(wdr::NetworkConfig::default())
    }
}

/// What a folder of this room offers of a network.
pub trait Family {
    /// Adds what is wrong with the shape, each with its place below `at`.
    fn check(&self, at: &str, problems: &mut Vec<String>);

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
    pub targets: wdr::TargetConfig,
    /// Weights of the losses.
    pub loss: wdr::LossConfig,
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
    /// Which cells answer for an object.
    pub targets: wdr::TargetConfig,
}

/// The JSON form of a [`Topology`].
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Topology")]
struct Section {
    /// The family: `Widedepth`, the Wide-Depth-Range network (Hu et al., CVPR 2021).
    class: Class,
    /// Its shape.
    params: wdr::NetworkConfig,
}

/// Network families.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
enum Class {
    /// The Wide-Depth-Range network, full or narrow.
    #[default]
    Widedepth,
}

impl From<Section> for Topology {
    fn from(section: Section) -> Self {
        match section.class {
            Class::Widedepth => Self::Widedepth(section.params),
        }
    }
}

impl From<Topology> for Section {
    fn from(topology: Topology) -> Self {
        match topology {
            Topology::Widedepth(params) => Self { class: Class::Widedepth, params },
        }
    }
}

impl JsonSchema for Topology {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        Section::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        Section::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_json_form_has_a_class_and_params() {
        let topology: Topology = serde_json::from_str("{}").unwrap();
        assert_eq!(topology, Topology::default());
        let json = r#"{"class": "Widedepth", "params": {"head_convs": 2}}"#;
        let topology: Topology = serde_json::from_str(json).unwrap();
        let Topology::Widedepth(params) = &topology;
        assert_eq!(params.head_convs, 2);
        let written = serde_json::to_value(&topology).unwrap();
        assert_eq!(
            (&written["class"], &written["params"]["head_convs"]),
            (&"Widedepth".into(), &2.into())
        );
        assert_eq!(serde_json::from_value::<Topology>(written).unwrap(), topology);
        for bad in [r#"{"class": "Deep"}"#, r#"{"classes": "Widedepth"}"#] {
            assert!(serde_json::from_str::<Topology>(bad).is_err(), "{bad}");
        }
    }
}
