//! The network's outputs: by pyramid level, and by the names that they have in files.

use anyhow::Result;
use tch::Tensor;

use super::anchors::AnchorGrid;
use super::candidates::REG_CHANNELS;
use crate::nn::{self, OutputShape};

/// The network's outputs, one a level, finest first.
#[derive(Debug)]
pub struct HeadOutputs<V = Tensor> {
    /// Class logits `[n, C, h, w]`.
    pub cls: Vec<V>,
    /// Corner offsets in anchor sizes `[n, 16 C, h, w]`: class by class 8 x, then 8 y.
    pub reg: Vec<V>,
}

/// What lies between images and outputs.
#[derive(Debug)]
pub struct Features<V = Tensor> {
    /// The backbone's 5 stages, strides 2 to 32.
    pub backbone: Vec<V>,
    /// The levels of the FPN, finest first.
    pub fpn: Vec<V>,
}

/// The names of a pyramid level's outputs, logits and offsets: `cls_p3`, `reg_p3`, by the level's stride.
pub fn output_names(stride: i64) -> [String; 2] {
    let level = stride.max(1).ilog2();
    [format!("cls_p{level}"), format!("reg_p{level}")]
}

/// Names and shapes of the outputs: the logits `[C, h, w]` of all levels, then the offsets `[16 C, h, w]` of all levels.
pub fn output_shapes(grid: &AnchorGrid, num_classes: usize) -> Vec<OutputShape> {
    let of = |which: usize, channels: usize| {
        grid.levels.iter().map(move |level| {
            let [cls, reg] = output_names(level.stride);
            let name = if which == 0 { cls } else { reg };
            let shape = [channels, level.h, level.w].map(|n| n as i64).to_vec();
            OutputShape { name, shape }
        })
    };
    of(0, num_classes).chain(of(1, num_classes * REG_CHANNELS)).collect()
}

impl<V> HeadOutputs<V> {
    /// The values under their names, level by level of these strides: logits, then offsets.
    pub(in crate::topology) fn level_by_level(self, strides: &[i64]) -> Vec<(String, V)> {
        let levels = strides.iter().zip(self.cls.into_iter().zip(self.reg));
        let named = levels.flat_map(|(&stride, (cls, reg))| {
            let [cls_name, reg_name] = output_names(stride);
            [(cls_name, cls), (reg_name, reg)]
        });
        named.collect()
    }
}

impl HeadOutputs {
    /// The tensors under their names, for levels of these strides: all logits, then all offsets.
    pub fn named(self, strides: &[i64]) -> nn::Outputs {
        let name = |which: usize, tensors: Vec<Tensor>| -> Vec<(String, Tensor)> {
            let names = strides.iter().map(|stride| {
                let [cls, reg] = output_names(*stride);
                if which == 0 { cls } else { reg }
            });
            names.zip(tensors).collect()
        };
        let mut named = name(0, self.cls);
        named.extend(name(1, self.reg));
        nn::Outputs::new(named)
    }
}

impl HeadOutputs {
    /// The tensors of a [`PoseNet`](super::PoseNet)'s named outputs, level by level of `grid`.
    ///
    /// # Errors
    /// If one is missing; names it.
    pub fn of_named(outputs: &nn::Outputs, grid: &AnchorGrid) -> Result<Self> {
        let mut found = Self { cls: vec![], reg: vec![] };
        for level in &grid.levels {
            let [cls, reg] = output_names(level.stride);
            found.cls.push(outputs.get(&cls)?.shallow_clone());
            found.reg.push(outputs.get(&reg)?.shallow_clone());
        }
        Ok(found)
    }
}
