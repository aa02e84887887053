//! The head: class logits and corner offsets of every cell, one set of weights for all levels.

use tch::Tensor;

use super::config::NetworkConfig;
use super::net::Outputs;
use crate::nn::{Conv2d, ConvShape, Fill, GroupNorm, LayerSummary, Path, Scale};

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
struct Tower(Vec<(Conv2d, GroupNorm)>);

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
        Self(blocks.collect())
    }

    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let mut x = x.shallow_clone();
        for (conv, norm) in &self.0 {
            x = norm.forward(&conv.forward_t(&x, train)).relu_();
        }
        x
    }

    fn summarize(&self, size: (i64, i64), layers: &mut Vec<LayerSummary>) {
        for (conv, norm) in &self.0 {
            conv.summarize(size, layers);
            norm.summarize(size, layers);
        }
    }
}

/// Keys: `cls_tower.*`, `pose_tower.*`, `cls_logits.*`, `pose_pred.*`, `scales.{level}.scale`.
pub(super) struct Head {
    cls_tower: Tower,
    pose_tower: Tower,
    cls_logits: Conv2d,
    pose_pred: Conv2d,
    scales: Vec<Scale>,
}

impl Head {
    pub(super) fn new(p: &Path, config: &NetworkConfig, num_classes: i64) -> Self {
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
        }
    }

    pub(super) fn forward_t(&self, levels: &[Tensor], train: bool) -> Outputs {
        let mut outputs = Outputs { cls: vec![], reg: vec![] };
        for (x, scale) in levels.iter().zip(&self.scales) {
            let cls = self.cls_logits.forward_t(&self.cls_tower.forward_t(x, train), train);
            let reg = self.pose_pred.forward_t(&self.pose_tower.forward_t(x, train), train);
            outputs.cls.push(cls); // [n, C, h, w]
            outputs.reg.push(scale.forward(&reg)); // [n, 16 C, h, w]
        }
        outputs
    }

    /// Adds the layers' lines for levels of these sizes, the costs of a layer summed over the levels.
    pub(super) fn summarize(&self, sizes: &[(i64, i64)], layers: &mut Vec<LayerSummary>) {
        let one_level = |size: (i64, i64)| {
            let mut lines = vec![];
            self.cls_tower.summarize(size, &mut lines);
            self.pose_tower.summarize(size, &mut lines);
            self.cls_logits.summarize(size, &mut lines);
            self.pose_pred.summarize(size, &mut lines);
            lines
        };
        let Some((&first, others)) = sizes.split_first() else { return };
        let mut lines = one_level(first);
        for &size in others {
            for (line, more) in lines.iter_mut().zip(one_level(size)) {
                line.uses += more.uses;
                line.macs += more.macs;
            }
        }
        let num_offsets = lines[lines.len() - 1].output[0];
        for (scale, &(h, w)) in self.scales.iter().zip(sizes) {
            scale.summarize([num_offsets, h, w], &mut lines);
        }
        layers.append(&mut lines);
    }
}
