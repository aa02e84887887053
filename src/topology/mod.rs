//! Networks and what they learn, one folder each: layers, targets, losses, decoding, keys.
//!
//! Start at [`Topology`]: the enum of a config, with the one `match` that leads to a family. A [`Family`] builds the
//! [`Network`](crate::nn::Network), its [`Task`] and what decodes its outputs; everything above this room knows these traits alone.

pub mod caspacenet;
mod family;
pub mod keys;
mod settings;
mod task;
mod teacher;
pub mod wdr;

use anyhow::Result;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

pub use family::{DecodeSetting, Family, TaskSetting};
use settings::ShapeSettings;
pub use settings::{DistillSettings, LossSettings, TargetSettings, TrainingSettings};
pub use task::{BatchLosses, LevelTargets, Prepare, Prepared, Task};
pub use teacher::Teacher;
use wdr::recognise::Sizes;

/// A network of a config: the key `class` tells the family, `params` is its shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "TopologySection", into = "TopologySection")]
pub enum Topology {
    /// The Wide-Depth-Range network (Hu et al., CVPR 2021), full or narrow.
    Widedepth(wdr::NetworkConfig),
    /// CA-SpaceNet (Wang et al., IROS 2022), full or narrow.
    CaSpaceNet(caspacenet::NetworkConfig),
}

impl Topology {
    /// What the network's folder offers: the one place where topologies are told apart.
    pub fn family(&self) -> &dyn Family {
        match self {
            Self::Widedepth(params) => params,
            Self::CaSpaceNet(params) => params,
        }
    }

    /// The name under which problems have this network; `None` where its shape is one of a user's own.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            Self::Widedepth(params) => wdr::recognise::topology_of(params),
            Self::CaSpaceNet(params) => caspacenet::recognise::topology_of(params),
        }
    }

    /// Whether both are of one family, whatever their shapes.
    pub fn is_kin_of(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }

    /// The network that tensors of these shapes, by key, are of, as far as they tell; `None` if there is none.
    pub fn of(sizes: &Sizes) -> Option<Self> {
        // A network with a second pyramid is one of the first kind besides.
        let second = caspacenet::recognise::shape_of(sizes, &caspacenet::NetworkConfig::default());
        second.map(Self::CaSpaceNet).or_else(|| {
            let shape = wdr::recognise::shape_of(sizes, &wdr::NetworkConfig::default());
            shape.map(Self::Widedepth)
        })
    }
}

/// The named topology of the network that tensors of these shapes, by key, are of; `None` if there is none.
pub fn recognise(sizes: &Sizes) -> Option<&'static str> {
    Topology::of(sizes)?.name()
}

impl Default for Topology {
    fn default() -> Self {
        Self::Widedepth(wdr::NetworkConfig::default())
    }
}

/// The JSON form of a [`Topology`].
#[derive(Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
#[schemars(rename = "Topology")]
struct TopologySection {
    /// The family: `Widedepth`, the Wide-Depth-Range network (Hu et al., CVPR 2021), or `CaSpaceNet` (Wang et al., IROS 2022).
    class: Class,
    /// Its shape.
    params: ShapeSettings,
}

/// Network families.
#[derive(Debug, Default, Serialize, Deserialize, JsonSchema)]
enum Class {
    /// The Wide-Depth-Range network, full or narrow.
    #[default]
    Widedepth,
    /// CA-SpaceNet, full or narrow.
    CaSpaceNet,
}

impl TryFrom<TopologySection> for Topology {
    type Error = anyhow::Error;

    fn try_from(section: TopologySection) -> Result<Self> {
        Ok(match section.class {
            Class::Widedepth => Self::Widedepth(section.params.read()?),
            Class::CaSpaceNet => Self::CaSpaceNet(section.params.read()?),
        })
    }
}

impl From<Topology> for TopologySection {
    fn from(topology: Topology) -> Self {
        let (class, params) = match topology {
            Topology::Widedepth(params) => (Class::Widedepth, ShapeSettings::of(&params)),
            Topology::CaSpaceNet(params) => (Class::CaSpaceNet, ShapeSettings::of(&params)),
        };
        Self { class, params }
    }
}

impl JsonSchema for Topology {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        TopologySection::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        TopologySection::json_schema(generator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_family_has_keys_of_its_own() {
        let json = r#"{"class": "CaSpaceNet", "params": {"head_convs": 2, "subtract": 0.5}}"#;
        let topology: Topology = serde_json::from_str(json).unwrap();
        let Topology::CaSpaceNet(params) = &topology else { panic!("{topology:?}") };
        assert_eq!((params.wdr.head_convs, params.subtract), (2, 0.5));
        let written = serde_json::to_value(&topology).unwrap();
        assert_eq!(serde_json::from_value::<Topology>(written).unwrap(), topology);
        let json = r#"{"class": "Widedepth", "params": {"subtract": 0.5}}"#;
        let error = serde_json::from_str::<Topology>(json).unwrap_err().to_string();
        assert!(error.starts_with("params.subtract: unknown key"), "{error}");
    }

    #[test]
    fn the_json_form_has_a_class_and_params() {
        let topology: Topology = serde_json::from_str("{}").unwrap();
        assert_eq!(topology, Topology::default());
        let json = r#"{"class": "Widedepth", "params": {"head_convs": 2}}"#;
        let topology: Topology = serde_json::from_str(json).unwrap();
        let Topology::Widedepth(params) = &topology else { panic!("{topology:?}") };
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
