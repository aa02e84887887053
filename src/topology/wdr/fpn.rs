//! The feature pyramid.

use std::ops::Range;

use super::config::{NUM_STAGES, NetworkConfig};
use crate::nn::{Conv2d, ConvShape, Fill, Layer, Ops, Path};

/// Feature pyramid network with extra levels on top.
///
/// Keys: `inner_convs.{i}.*` (1x1), `out_convs.{i}.*` (3x3) for the stages used, `i` from 0 (stage 3 is 2), and
/// `top_blocks.p6.*`, `top_blocks.p7.*` (3x3, stride 2, p6 from stage 5, p7 from the ReLU of p6).
///
/// Source: Lin et al., *Feature Pyramid Networks for Object Detection*, CVPR 2017; the top levels: Lin et al.,
/// *Focal Loss for Dense Object Detection*, ICCV 2017, section 4.
pub(in crate::topology) struct Fpn {
    name: String,
    first_stage: usize,
    inner_convs: Vec<Conv2d>,
    out_convs: Vec<Conv2d>,
    top_blocks: Vec<Conv2d>,
}

impl Fpn {
    pub(in crate::topology) fn new(p: &Path, config: &NetworkConfig) -> Self {
        Self::build(p, config, false, config.levels())
    }

    /// A second pyramid beside the first. `zero_start`: its last convolutions begin at 0, and so all of its levels;
    /// `shared_top`: it has no levels on top of its own.
    pub(in crate::topology) fn second(
        p: &Path,
        config: &NetworkConfig,
        zero_start: bool,
        shared_top: bool,
    ) -> Self {
        let levels = config.levels();
        let end = if shared_top { levels.end.min(NUM_STAGES + 1) } else { levels.end };
        Self::build(p, config, zero_start, levels.start..end)
    }

    fn build(p: &Path, config: &NetworkConfig, zero_start: bool, levels: Range<u32>) -> Self {
        let channels = config.fpn_channels;
        let widths = config.backbone_channels();
        let filled =
            |p: Path, shape: ConvShape, fill: Fill| Conv2d::new(&p, shape, fill, Some(0.0));
        let random = |shape: &ConvShape| {
            Fill::kaiming_uniform(shape.fan_in(), 1.0).scaled(config.fpn_init_gain)
        };
        let inner_conv = |p: Path, shape: ConvShape| filled(p, shape, random(&shape));
        let conv = |p: Path, shape: ConvShape| match zero_start {
            true => filled(p, shape, Fill::Constant(0.0)),
            false => filled(p, shape, random(&shape)),
        };
        let first_stage = config.finest_level as usize - 1;
        let stages = first_stage..NUM_STAGES as usize;
        let inner = stages
            .clone()
            .map(|i| inner_conv(p / "inner_convs" / i, ConvShape::new(widths[i], channels, 1)));
        let inner_convs = inner.collect();
        let out = stages.map(|i| conv(p / "out_convs" / i, ConvShape::new(channels, channels, 3)));
        let out_convs = out.collect();
        let top = levels.filter(|&level| level > NUM_STAGES).map(|level| {
            let last = widths[NUM_STAGES as usize - 1];
            let c_in = if level == NUM_STAGES + 1 { last } else { channels };
            let shape = ConvShape::new(c_in, channels, 3).stride(2);
            conv(p / "top_blocks" / format!("p{level}"), shape)
        });
        let top_blocks = top.collect();
        Self { name: p.prefix().to_owned(), first_stage, inner_convs, out_convs, top_blocks }
    }

    /// The keys of the levels on top.
    pub(in crate::topology) fn top_keys(&self) -> impl Iterator<Item = String> {
        let layers = self.top_blocks.iter().map(|block| &block.info().name);
        layers.flat_map(|layer| ["weight", "bias"].map(|leaf| format!("{layer}.{leaf}")))
    }

    /// The levels, finest first, from the outputs of the 5 stages.
    pub(in crate::topology) fn run<O: Ops>(
        &self,
        ops: &mut O,
        stages: &[O::Value],
    ) -> Vec<O::Value> {
        let name = &self.name;
        let used = &stages[self.first_stage..];
        let mut levels = vec![];
        let mut above: Option<O::Value> = None;
        let convs = self.inner_convs.iter().zip(&self.out_convs);
        for (i, (stage, (inner, out))) in used.iter().zip(convs).enumerate().rev() {
            let i = self.first_stage + i;
            let mut merged = ops.layer(inner, stage);
            if let Some(above) = &above {
                // Nearest, x 2; a stage of odd size takes all but the last row or column.
                let up = ops.upsample_like(format_args!("{name}.upsample.{i}"), above, &merged);
                merged = ops.add_in_place(format_args!("{name}.add.{i}"), merged, &up);
            }
            levels.insert(0, ops.layer(out, &merged));
            above = Some(merged);
        }
        let mut top = ops.share(&used[used.len() - 1]);
        for (i, block) in self.top_blocks.iter().enumerate() {
            if i > 0 {
                let level = NUM_STAGES as usize + 1 + i;
                top = ops.relu(format_args!("{name}.top_blocks.relu{level}"), &top);
            }
            top = ops.layer(block, &top);
            levels.push(ops.share(&top));
        }
        levels
    }
}
