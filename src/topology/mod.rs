//! Networks and what they learn, one folder each: layers, targets, losses, decoding, keys.
//!
//! Start at [`Topology`]: the enum of a config, with the one `match` that leads to a family. A [`Family`] builds the
//! [`Network`](crate::nn::Network), its [`Task`] and what decodes its outputs; everything above this room knows these traits alone.

mod family;
pub mod keys;
mod settings;
mod task;
mod teacher;
pub mod wdr;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize};

pub use family::{DecodeSetting, Family, TaskSetting};
pub use settings::{LossSettings, TargetSettings};
pub use task::{BatchLosses, LevelTargets, Prepare, Prepared, Task};
pub use teacher::Teacher;

/// A network of a config: the key `class` tells the family, `params` is its shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "TopologySection", into = "TopologySection")]
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

    /// The name under which problems have this network; `None` where its shape is one of a user's own.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            Self::Widedepth(params) => wdr::recognise::topology_of(params),
        }
    }
}

/// The named topology of the network that tensors of these shapes, by key, are of; `None` if there is none.
pub fn recognise(sizes: &wdr::recognise::Sizes) -> Option<&'static str> {
    let shape = wdr::recognise::shape_of(sizes, &wdr::NetworkConfig::default())?;
    wdr::recognise::topology_of(&shape)
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

impl From<TopologySection> for Topology {
    fn from(section: TopologySection) -> Self {
        match section.class {
            Class::Widedepth => Self::Widedepth(section.params),
        }
    }
}

impl From<Topology> for TopologySection {
    fn from(topology: Topology) -> Self {
        match topology {
            Topology::Widedepth(params) => Self { class: Class::Widedepth, params },
        }
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
