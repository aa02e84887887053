//! The head: class logits and corner offsets of every cell, one set of weights for all levels.

use super::config::NetworkConfig;
use super::outputs::HeadOutputs;
use crate::nn::{Conv2d, ConvShape, Fill, GroupNorm, Ops, Path, Scale};

/// Numbers regressed for a cell and class: 8 corners, x and y.
pub(super) const NUM_OFFSETS: i64 = 16;
/// What an untrained network believes a cell to be an object with.
///
/// Source: Lin et al., *Focal Loss for Dense Object Detection*, ICCV 2017, section 4.1.
const PRIOR: f64 = 0.01;
/// Standard deviation of the initial weights.
const INIT: Fill = Fill::Normal { std: 0.01 };

/// Convolution, group norm, ReLU, several times.
///
/// Keys: `0.{weight,bias}` (conv), `1.{weight,bias}` (norm), `3.*`, `4.*`, ... (every third is the ReLU).
struct Tower {
    name: String,
    blocks: Vec<(Conv2d, GroupNorm)>,
}

impl Tower {
    fn new(p: &Path, config: &NetworkConfig) -> Self {
        let width = config.head_channels;
        let blocks = (0..config.head_convs).map(|i| {
            let c_in = if i == 0 { config.fpn_channels } else { width };
            (
                Conv2d::new(&(p / (3 * i)), ConvShape::new(c_in, width, 3), INIT, Some(0.0)),
                GroupNorm::new(&(p / (3 * i + 1)), config.group_norm_groups, width),
            )
        });
        Self { name: p.prefix().to_owned(), blocks: blocks.collect() }
    }

    fn run<O: Ops>(&self, ops: &mut O, x: &O::Value) -> O::Value {
        let mut x = ops.share(x);
        for (i, (conv, norm)) in self.blocks.iter().enumerate() {
            let y = ops.layer(conv, &x);
            let y = ops.layer(norm, &y);
            x = ops.relu_in_place(format_args!("{}.{}", self.name, 3 * i + 2), y);
        }
        x
    }
}

/// Keys: `cls_tower.*`, `pose_tower.*`, `cls_logits.*`, `pose_pred.*`, `scales.{level}.scale`.
pub(in crate::topology) struct Head {
    cls_tower: Tower,
    pose_tower: Tower,
    cls_logits: Conv2d,
    pose_pred: Conv2d,
    scales: Vec<Scale>,
    finest_level: u32,
}

impl Head {
    pub(in crate::topology) fn new(p: &Path, config: &NetworkConfig, num_classes: i64) -> Self {
        let width = config.head_channels;
        let cls_bias = -((1.0 - PRIOR) / PRIOR).ln();
        let cls = ConvShape::new(width, num_classes, 3);
        let pose = ConvShape::new(width, NUM_OFFSETS * num_classes, 3);
        Self {
            cls_tower: Tower::new(&(p / "cls_tower"), config),
            pose_tower: Tower::new(&(p / "pose_tower"), config),
            cls_logits: Conv2d::new(&(p / "cls_logits"), cls, INIT, Some(cls_bias)),
            pose_pred: Conv2d::new(&(p / "pose_pred"), pose, INIT, Some(0.0)),
            scales: (0..config.anchor_sizes.len())
                .map(|level| Scale::new(&(p / "scales" / level)))
                .collect(),
            finest_level: config.finest_level,
        }
    }

    /// Logits and offsets of each level, finest first.
    pub(in crate::topology) fn run<O: Ops>(
        &self,
        ops: &mut O,
        levels: &[O::Value],
    ) -> HeadOutputs<O::Value> {
        let mut outputs = HeadOutputs { cls: vec![], reg: vec![] };
        for ((x, scale), level) in levels.iter().zip(&self.scales).zip(self.finest_level..) {
            ops.at(Some(format_args!("p{level}")));
            let cls = self.cls_tower.run(ops, x);
            outputs.cls.push(ops.layer(&self.cls_logits, &cls)); // [n, C, h, w]
            let reg = self.pose_tower.run(ops, x);
            let reg = ops.layer(&self.pose_pred, &reg);
            ops.at(None);
            outputs.reg.push(ops.layer(scale, &reg)); // [n, 16 C, h, w]
        }
        outputs
    }
}
