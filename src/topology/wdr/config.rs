//! The network's shape.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::{above_zero, check_ranges, even};

/// Stages of the backbone; stage `k` has stride `2^k`.
pub(crate) const NUM_STAGES: u32 = 5;
/// The coarsest level there can be: P7.
const COARSEST_LEVEL: u32 = 7;

/// What turns images into features.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Backbone {
    /// Darknet-53, or a narrower one by `stem_channels`, `stage_channels` and `stage_units`.
    #[default]
    Darknet53,
    /// ResNet-18 with torchvision's keys.
    Resnet18,
    /// ResNet-34 with torchvision's keys.
    Resnet34,
    /// ResNet-50 with torchvision's keys.
    Resnet50,
}

impl Backbone {
    /// How many times wider a ResNet's blocks end than their 3x3 convolutions are.
    pub(super) fn expansion(self) -> i64 {
        if self == Self::Resnet50 { 4 } else { 1 }
    }
}

/// Channels of the published ResNets' first convolution.
const RESNET_WIDTH: i64 = 64;

/// The shape of a network; the default is the published `Widedepth`.
///
/// Levels are called P2..P7, level `k` has stride `2^k`. There are as many as anchor sizes, from `finest_level` on;
/// those to P5 look at a stage of the backbone, P6 and P7 are convolutions on top.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkConfig {
    /// The backbone.
    #[serde(skip_serializing_if = "is_default")]
    #[schemars(extend("default" = Backbone::default()))]
    pub backbone: Backbone,
    /// Channels of a ResNet's first convolution and first layer; 64 is the published width, and the other layers'
    /// channels are multiples of it. Below 8 the gradient of a 1x1 convolution of stride 2 in libtorch 2.11 (oneDNN) writes beyond
    /// its memory on CPUs without AVX-512.
    #[serde(skip_serializing_if = "is_published_width")]
    #[schemars(range(min = 8, max = 8192), extend("default" = RESNET_WIDTH))]
    pub resnet_width: i64,
    /// Channels of Darknet's first convolution.
    #[schemars(range(min = 1, max = 8192))]
    pub stem_channels: i64,
    /// Channels of Darknet's 5 stages.
    #[schemars(inner(range(min = 2, max = 8192)), transform = even)]
    pub stage_channels: [i64; NUM_STAGES as usize],
    /// Units of Darknet's 5 stages: a stride-2 convolution, then residual pairs.
    #[schemars(inner(range(min = 1, max = 64)))]
    pub stage_units: [i64; NUM_STAGES as usize],
    /// Whether the state holds the backbone's unused classifier (`backbone.output` of Darknet, `backbone.fc` of a
    /// ResNet, 1000 classes), as published checkpoints do.
    pub with_output_layer: bool,
    /// Channels of every FPN level.
    #[schemars(range(min = 1, max = 8192))]
    pub fpn_channels: i64,
    /// Factor on the initial weights of the FPN's convolutions. Group norm behind the FPN makes its output
    /// independent of their size, which then only sets how far a step of the optimizer turns them: smaller ones are
    /// learnt faster. 1 is the published initialization.
    #[schemars(transform = above_zero)]
    pub fpn_init_gain: f64,
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

fn is_default(backbone: &Backbone) -> bool {
    *backbone == Backbone::default()
}

fn is_published_width(width: &i64) -> bool {
    *width == RESNET_WIDTH
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
            backbone: Backbone::Darknet53,
            resnet_width: RESNET_WIDTH,
            stem_channels: 32,
            stage_channels: [64, 128, 256, 512, 1024],
            stage_units: [2, 3, 9, 9, 5],
            with_output_layer: true,
            fpn_channels: 256,
            fpn_init_gain: 1.0,
            head_channels: 256,
            head_convs: 4,
            group_norm_groups: 32,
            finest_level: 3,
            anchor_sizes: vec![32.0, 64.0, 128.0, 256.0, 512.0],
        }
    }

    /// A narrow network of the same keys for CPUs, with three levels (P3 to P5): 0.89 M parameters, meant for
    /// 128 x 128 images. Its FPN begins small, so that it is learnt in minutes.
    pub fn widedepth_tiny() -> Self {
        Self {
            backbone: Backbone::Darknet53,
            resnet_width: RESNET_WIDTH,
            stem_channels: 16,
            stage_channels: [24, 48, 96, 144, 192],
            stage_units: [1, 2, 2, 2, 1],
            with_output_layer: false,
            fpn_channels: 64,
            fpn_init_gain: 0.25,
            head_channels: 64,
            head_convs: 2,
            group_norm_groups: 8,
            finest_level: 3,
            anchor_sizes: vec![32.0, 64.0, 128.0],
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

    /// Channels of the backbone's features of strides 2 to 32.
    pub(super) fn backbone_channels(&self) -> [i64; NUM_STAGES as usize] {
        let width = self.resnet_width;
        let layer = |times: i64| times * width * self.backbone.expansion();
        match self.backbone {
            Backbone::Darknet53 => self.stage_channels,
            _ => [width, layer(1), layer(2), layer(4), layer(8)],
        }
    }

    /// Whether what only the other kind of backbone reads is as the presets have it.
    fn check_unused(&self, at: &str, problems: &mut Vec<String>) {
        let darknet = |c: &Self| (c.stem_channels, c.stage_channels, c.stage_units);
        if self.backbone == Backbone::Darknet53 {
            if self.resnet_width != RESNET_WIDTH {
                problems.push(format!(
                    "{at}.resnet_width: is a setting of the ResNets, and the backbone is darknet53: leave it out or \
                     set {at}.backbone"
                ));
            }
        } else if [Self::widedepth(), Self::widedepth_tiny()]
            .iter()
            .all(|p| darknet(p) != darknet(self))
        {
            problems.push(format!(
                "{at}: stem_channels, stage_channels and stage_units are settings of darknet53, and the backbone is a \
                 ResNet: leave them out, and set {at}.resnet_width for a narrower one"
            ));
        }
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
        self.check_unused(at, problems);
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
    fn a_setting_of_the_other_backbone_is_refused() {
        let tiny = NetworkConfig::widedepth_tiny();
        let resnet =
            NetworkConfig { backbone: Backbone::Resnet18, resnet_width: 8, ..tiny.clone() };
        assert_eq!(problems(&resnet), [""; 0]);
        assert_eq!(resnet.backbone_channels(), [8, 8, 16, 32, 64]);
        let found = problems(&NetworkConfig { stem_channels: 5, ..resnet });
        assert!(found.len() == 1 && found[0].contains("are settings of darknet53"), "{found:?}");
        let found = problems(&NetworkConfig { resnet_width: 8, ..tiny });
        assert!(
            found.len() == 1 && found[0].starts_with("network.resnet_width: is a"),
            "{found:?}"
        );
    }

    #[test]
    fn what_older_configs_do_not_have_is_not_written() {
        let config = NetworkConfig { head_convs: 2, ..NetworkConfig::widedepth() };
        let text = serde_json::to_string(&config).unwrap();
        assert!(!text.contains("backbone") && !text.contains("resnet"), "{text}");
        let resnet = NetworkConfig { backbone: Backbone::Resnet34, ..config };
        let text = serde_json::to_string(&resnet).unwrap();
        assert!(text.starts_with(r#"{"backbone":"resnet34","stem"#), "{text}");
        assert_eq!(serde_json::from_str::<NetworkConfig>(&text).unwrap(), resnet);
    }

    #[test]
    fn a_mistyped_key_is_refused_and_a_missing_one_is_the_published_value() {
        let config: NetworkConfig = serde_json::from_str(r#"{"head_convs": 2}"#).unwrap();
        assert_eq!(config, NetworkConfig { head_convs: 2, ..NetworkConfig::widedepth() });
        assert!(serde_json::from_str::<NetworkConfig>(r#"{"head_conv": 2}"#).is_err());
    }
}
