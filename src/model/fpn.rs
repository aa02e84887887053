//! The feature pyramid.

use tch::Tensor;

use super::config::{NUM_STAGES, NetworkConfig};
use crate::nn::{Conv2d, ConvShape, Fill, LayerSummary, Path};

/// Feature pyramid network with extra levels on top.
///
/// Keys: `inner_convs.{i}.*` (1x1), `out_convs.{i}.*` (3x3) for the stages used, `i` from 0 (stage 3 is 2), and
/// `top_blocks.p6.*`, `top_blocks.p7.*` (3x3, stride 2, p6 from stage 5, p7 from the ReLU of p6).
///
/// Source: Lin et al., *Feature Pyramid Networks for Object Detection*, CVPR 2017; the top levels: Lin et al.,
/// *Focal Loss for Dense Object Detection*, ICCV 2017, section 4.
pub(super) struct Fpn {
    first_stage: usize,
    inner_convs: Vec<Conv2d>,
    out_convs: Vec<Conv2d>,
    top_blocks: Vec<Conv2d>,
}

impl Fpn {
    pub(super) fn new(p: &Path, config: &NetworkConfig) -> Self {
        let channels = config.fpn_channels;
        let conv = |p: Path, shape: ConvShape| {
            let fill = Fill::kaiming_uniform(shape.fan_in(), 1.0).scaled(config.fpn_init_gain);
            Conv2d::new(&p, shape, fill, Some(0.0))
        };
        let first_stage = config.finest_level as usize - 1;
        let stages = first_stage..NUM_STAGES as usize;
        let inner = stages.clone().map(|i| {
            conv(p / "inner_convs" / i, ConvShape::new(config.stage_channels[i], channels, 1))
        });
        let inner_convs = inner.collect();
        let out = stages.map(|i| conv(p / "out_convs" / i, ConvShape::new(channels, channels, 3)));
        let out_convs = out.collect();
        let top = config.levels().filter(|&level| level > NUM_STAGES).map(|level| {
            let last = config.stage_channels[NUM_STAGES as usize - 1];
            let c_in = if level == NUM_STAGES + 1 { last } else { channels };
            let shape = ConvShape::new(c_in, channels, 3).stride(2);
            conv(p / "top_blocks" / format!("p{level}"), shape)
        });
        let top_blocks = top.collect();
        Self { first_stage, inner_convs, out_convs, top_blocks }
    }

    /// The levels, finest first, from the outputs of the 5 stages.
    pub(super) fn forward_t(&self, stages: &[Tensor], train: bool) -> Vec<Tensor> {
        let used = &stages[self.first_stage..];
        let mut levels = vec![];
        let mut above: Option<Tensor> = None;
        for ((stage, inner), out) in used.iter().zip(&self.inner_convs).zip(&self.out_convs).rev() {
            let mut merged = inner.forward_t(stage, train);
            if let Some(above) = &above {
                // Nearest, x 2; a stage of odd size takes all but the last row or column.
                let (_, _, h, w) = sizes(&merged);
                let _ = merged.g_add_(&above.upsample_nearest2d([h, w], None, None));
            }
            levels.insert(0, out.forward_t(&merged, train));
            above = Some(merged);
        }
        let mut top = used[used.len() - 1].shallow_clone();
        for (i, block) in self.top_blocks.iter().enumerate() {
            let y = if i == 0 {
                block.forward_t(&top, train)
            } else {
                block.forward_t(&top.relu(), train)
            };
            levels.push(y.shallow_clone());
            top = y;
        }
        levels
    }

    /// Adds the layers' lines for stages of these sizes; returns the sizes of the levels.
    pub(super) fn summarize(
        &self,
        stages: &[(i64, i64)],
        layers: &mut Vec<LayerSummary>,
    ) -> Vec<(i64, i64)> {
        let used = &stages[self.first_stage..];
        for (conv, &size) in self.inner_convs.iter().zip(used) {
            conv.summarize(size, layers);
        }
        let mut sizes: Vec<_> = self
            .out_convs
            .iter()
            .zip(used)
            .map(|(conv, &size)| conv.summarize(size, layers))
            .collect();
        let mut top = used[used.len() - 1];
        for block in &self.top_blocks {
            top = block.summarize(top, layers);
            sizes.push(top);
        }
        sizes
    }
}

fn sizes(x: &Tensor) -> (i64, i64, i64, i64) {
    let s = x.size();
    (s[0], s[1], s[2], s[3])
}
