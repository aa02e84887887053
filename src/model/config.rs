//! The network's shape.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{check_ranges, even};

/// Stages of the backbone; stage `k` has stride `2^k`.
pub(crate) const NUM_STAGES: u32 = 5;
/// The coarsest level there can be: P7.
const COARSEST_LEVEL: u32 = 7;

/// The shape of a network; the default is the published `Widedepth`.
///
/// Levels are called P2..P7, level `k` has stride `2^k`. There are as many as anchor sizes, from `finest_level` on;
/// those to P5 look at a stage of the backbone, P6 and P7 are convolutions on top.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// Channels of the backbone's first convolution.
    #[schemars(range(min = 1, max = 8192))]
    pub stem_channels: i64,
    /// Channels of the backbone's 5 stages.
    #[schemars(inner(range(min = 2, max = 8192)), transform = even)]
    pub stage_channels: [i64; NUM_STAGES as usize],
    /// Units of the 5 stages: a stride-2 convolution, then residual pairs.
    #[schemars(inner(range(min = 1, max = 64)))]
    pub stage_units: [i64; NUM_STAGES as usize],
    /// Whether the state holds the backbone's unused classifier (`backbone.output`, 1000 classes), as published
    /// checkpoints do.
    pub with_output_layer: bool,
    /// Channels of every FPN level.
    #[schemars(range(min = 1, max = 8192))]
    pub fpn_channels: i64,
    /// Channels of the head's towers, a multiple of `group_norm_groups`.
    #[schemars(range(min = 1, max = 8192))]
    pub head_channels: i64,
    /// Convolutions of each of the head's two towers.
    #[schemars(range(min = 1, max = 8))]
    pub head_convs: i64,
    /// Groups of the towers' group norms.
    #[schemars(range(min = 1))]
    pub group_norm_groups: i64,
    /// The finest level; level k has stride 2^k.
    #[schemars(range(min = 2, max = 5))]
    pub finest_level: u32,
    /// Anchor sizes, px of the internal image, one a level, from the finest to P5, P6 or P7.
    #[schemars(inner(range(min = 1)))]
    pub anchor_sizes: Vec<f64>,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self::widedepth()
    }
}

impl NetworkConfig {
    /// The published network: 51.6 M parameters, meant for 512 x 512 images.
    pub fn widedepth() -> Self {
        Self {
            stem_channels: 32,
            stage_channels: [64, 128, 256, 512, 1024],
            stage_units: [2, 3, 9, 9, 5],
            with_output_layer: true,
            fpn_channels: 256,
            head_channels: 256,
            head_convs: 4,
            group_norm_groups: 32,
            finest_level: 3,
            anchor_sizes: vec![32.0, 64.0, 128.0, 256.0, 512.0],
        }
    }

    /// A narrow network of the same keys for CPUs: 1.04 M parameters, meant for 128 x 128 images.
    pub fn widedepth_tiny() -> Self {
        Self {
            stem_channels: 16,
            stage_channels: [24, 48, 96, 144, 192],
            stage_units: [1, 2, 2, 2, 1],
            with_output_layer: false,
            fpn_channels: 64,
            head_channels: 64,
            head_convs: 2,
            group_norm_groups: 8,
            finest_level: 3,
            anchor_sizes: vec![32.0, 64.0, 128.0, 256.0, 512.0],
        }
    }

    /// The preset of that topology name: `Widedepth` or `WidedepthTiny`.
    pub fn preset(topology: &str) -> Option<Self> {
        match topology {
            "Widedepth" => Some(Self::widedepth()),
            "WidedepthTiny" => Some(Self::widedepth_tiny()),
            _ => None,
        }
    }

    /// The levels, finest first (3..=7 as published).
    pub fn levels(&self) -> std::ops::Range<u32> {
        self.finest_level..self.finest_level + self.anchor_sizes.len() as u32
    }

    /// Strides of the levels, px, finest first.
    pub fn strides(&self) -> Vec<i64> {
        self.levels().map(|level| 1 << level).collect()
    }

    /// Adds each value outside its range, or that does not fit another one, with its place below `at`.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        check_ranges(self, at, problems);
        self.check_together(at, problems);
    }

    /// Adds each value that does not fit another one, with its place below `at`.
    pub fn check_together(&self, at: &str, problems: &mut Vec<String>) {
        let groups = self.group_norm_groups;
        if groups >= 1 && self.head_channels % groups != 0 {
            problems.push(format!(
                "{at}.group_norm_groups: {groups} is not a divisor of head_channels ({})",
                self.head_channels
            ));
        }
        if !(2..=NUM_STAGES).contains(&self.finest_level) {
            return;
        }
        let fewest = NUM_STAGES + 1 - self.finest_level;
        let most = COARSEST_LEVEL + 1 - self.finest_level;
        let n = self.anchor_sizes.len();
        if !(fewest as usize..=most as usize).contains(&n) {
            problems.push(format!(
                "{at}.anchor_sizes: has {n} values, expected {fewest} to {most} (one a level, to P5..P7)"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems(config: &NetworkConfig) -> Vec<String> {
        let mut problems = vec![];
        config.check("network", &mut problems);
        problems
    }

    #[test]
    fn the_presets_are_in_range() {
        for topology in ["Widedepth", "WidedepthTiny"] {
            assert_eq!(problems(&NetworkConfig::preset(topology).unwrap()), [""; 0]);
        }
        assert!(NetworkConfig::preset("Wide").is_none());
        assert_eq!(NetworkConfig::default().strides(), [8, 16, 32, 64, 128]);
    }

    #[test]
    fn every_key_out_of_range_is_named() {
        let config = NetworkConfig {
            stem_channels: 0,
            stage_channels: [64, 127, 256, 512, 1024],
            stage_units: [2, 3, 9, 9, 0],
            fpn_channels: -1,
            head_channels: 250,
            head_convs: 9,
            finest_level: 3,
            anchor_sizes: vec![32.0, 0.0],
            ..NetworkConfig::widedepth()
        };
        let found = problems(&config);
        for key in [
            "stem_channels: 0 is outside 1..=8192",
            "stage_channels.1: 127 is not a multiple of 2",
            "stage_units.4: 0 is outside 1..=64",
            "fpn_channels: -1 is",
            "head_convs: 9 is",
            "group_norm_groups: 32 is not a divisor of head_channels (250)",
            "anchor_sizes: has 2 values, expected 3 to 5",
            "anchor_sizes.1: 0 is below 1",
        ] {
            let start = format!("network.{key}");
            assert!(found.iter().any(|p| p.starts_with(&start)), "{start} is not in {found:?}");
        }
        assert_eq!(found.len(), 8, "{found:?}");
        let found = problems(&NetworkConfig { finest_level: 6, ..NetworkConfig::widedepth() });
        assert_eq!(found, ["network.finest_level: 6 is outside 2..=5"]);
    }

    #[test]
    fn a_mistyped_key_is_refused_and_a_missing_one_is_the_published_value() {
        let config: NetworkConfig = serde_json::from_str(r#"{"head_convs": 2}"#).unwrap();
        assert_eq!(config, NetworkConfig { head_convs: 2, ..NetworkConfig::widedepth() });
        assert!(serde_json::from_str::<NetworkConfig>(r#"{"head_conv": 2}"#).is_err());
    }
}
