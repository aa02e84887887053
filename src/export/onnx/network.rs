//! From a pose network to a graph: the forward pass of `model`, written down once more as a list.
//!
//! A test compares the graph's numbers with the network's own.

use std::collections::HashMap;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use super::graph::{Codes, Conv, Graph, LevelNodes, Node, NodeId, Norm, Op, Weight};
use crate::model::PoseNet;
use crate::nn::NORM_EPS;
use crate::quant::{Grid, ModuleQuantizer, WeightCodes};

/// Stages of the backbone.
const NUM_STAGES: usize = 5;
/// The largest code of an 8-bit carrier.
const MAX_CODE: i32 = 127;

/// The graph of a network for images of `width` x `height` px, with the weights' integer codes where `quantizers` have
/// them.
///
/// Batch norm is folded into weight and bias. A weight on a grid keeps its integers: the fold goes into its scale, which
/// becomes one per output channel. A grid whose levels are no multiples of one step that fit 8 bits becomes floats.
///
/// # Errors
/// If a module is only partly quantized.
pub fn graph_of(
    net: &PoseNet,
    quantizers: &[ModuleQuantizer],
    (width, height): (usize, usize),
) -> Result<Graph> {
    let mut codes = HashMap::new();
    let mut trained_bits = HashMap::new();
    for quantizer in quantizers {
        let module = quantizer.module();
        let found = quantizer.codes();
        for weight in found.with_context(|| format!("module {module} is only partly quantized"))? {
            trained_bits.insert(weight.name.clone(), weight.grid.spacing().bits());
            codes.insert(weight.name.clone(), weight);
        }
    }
    let graph = Graph {
        nodes: vec![],
        convs: vec![],
        norms: vec![],
        levels: vec![],
        num_classes: net.num_classes() as usize,
    };
    let mut builder = Builder { net, codes, trained_bits, by_name: HashMap::new(), graph };
    builder.build(width as i64, height as i64)?;
    Ok(builder.graph)
}

struct Builder<'a> {
    net: &'a PoseNet,
    codes: HashMap<String, WeightCodes>,
    trained_bits: HashMap<String, u32>,
    /// Convolutions and norms that are there already, by key.
    by_name: HashMap<String, usize>,
    graph: Graph,
}

impl Builder<'_> {
    fn build(&mut self, width: i64, height: i64) -> Result<()> {
        let config = self.net.config().clone();
        let images = self.add("images".to_owned(), Op::Input, [3, height, width]);
        let mut x = self.conv_bn_leaky("backbone.features.init_block", images, 1)?;
        let mut stages = vec![];
        for (i, &units) in config.stage_units.iter().enumerate() {
            let stage = format!("backbone.features.stage{}", i + 1);
            x = self.conv_bn_leaky(&format!("{stage}.unit1"), x, 2)?;
            for unit in 2..=units {
                let unit = format!("{stage}.unit{unit}");
                let y = self.conv_bn_leaky(&format!("{unit}.conv1"), x, 1)?;
                let y = self.conv_bn_leaky(&format!("{unit}.conv2"), y, 1)?;
                x = self.add(format!("{unit}.add"), Op::Add { a: y, b: x }, self.shape(x));
            }
            stages.push(x);
        }
        let levels = self.pyramid(&stages)?;
        let grid = self.net.grid(width as usize, height as usize);
        for ((index, &x), level) in levels.iter().enumerate().zip(&grid.levels) {
            let at = format!("p{}", config.levels().start as usize + index);
            let cls = self.tower("cls_tower", x, &at)?;
            let cls = self.conv_at("head.cls_logits", cls, 1, &at)?;
            let reg = self.tower("pose_tower", x, &at)?;
            let reg = self.conv_at("head.pose_pred", reg, 1, &at)?;
            let key = format!("head.scales.{index}.scale");
            let factor = self.floats(&key)?[0];
            let reg = self.add(key, Op::Scale { x: reg, factor }, self.shape(reg));
            ensure!(
                self.shape(cls)[1..] == [level.h as i64, level.w as i64],
                "level {at} has {:?} cells, expected {} x {}",
                self.shape(cls),
                level.h,
                level.w
            );
            let (stride, anchor_px) = (level.stride, level.size_px);
            self.graph.levels.push(LevelNodes { cls, reg, stride, anchor_px });
        }
        Ok(())
    }

    /// The levels, finest first.
    fn pyramid(&mut self, stages: &[NodeId]) -> Result<Vec<NodeId>> {
        let config = self.net.config().clone();
        let first = config.finest_level as usize - 1;
        let mut levels = vec![];
        let mut above: Option<NodeId> = None;
        for i in (first..NUM_STAGES).rev() {
            let mut merged = self.conv(&format!("fpn.inner_convs.{i}"), stages[i], 1)?;
            if let Some(above) = above {
                let shape = self.shape(merged);
                let up = self.add(format!("fpn.upsample.{i}"), Op::Upsample { x: above }, shape);
                merged = self.add(format!("fpn.add.{i}"), Op::Add { a: merged, b: up }, shape);
            }
            levels.insert(0, self.conv(&format!("fpn.out_convs.{i}"), merged, 1)?);
            above = Some(merged);
        }
        let mut top = stages[NUM_STAGES - 1];
        for level in config.levels().skip_while(|&level| level <= NUM_STAGES as u32) {
            if level > NUM_STAGES as u32 + 1 {
                let shape = self.shape(top);
                top = self.add(format!("fpn.top_blocks.relu{level}"), Op::Relu { x: top }, shape);
            }
            top = self.conv(&format!("fpn.top_blocks.p{level}"), top, 2)?;
            levels.push(top);
        }
        Ok(levels)
    }

    fn tower(&mut self, name: &str, x: NodeId, at: &str) -> Result<NodeId> {
        let mut x = x;
        let config = self.net.config().clone();
        for i in 0..config.head_convs {
            let y = self.conv_at(&format!("head.{name}.{}", 3 * i), x, 1, at)?;
            let key = format!("head.{name}.{}", 3 * i + 1);
            let norm = self.norm(&key, config.group_norm_groups)?;
            let shape = self.shape(y);
            let y = self.add(format!("{key}.{at}"), Op::GroupNorm { x: y, norm }, shape);
            x = self.add(format!("head.{name}.{}.{at}", 3 * i + 2), Op::Relu { x: y }, shape);
        }
        Ok(x)
    }

    fn conv_bn_leaky(&mut self, name: &str, x: NodeId, stride: i64) -> Result<NodeId> {
        let y = self.conv(&format!("{name}.conv"), x, stride)?;
        Ok(self.add(format!("{name}.activ"), Op::LeakyRelu { x: y }, self.shape(y)))
    }

    fn conv(&mut self, name: &str, x: NodeId, stride: i64) -> Result<NodeId> {
        self.conv_named(name, name.to_owned(), x, stride)
    }

    /// A layer that runs on several levels.
    fn conv_at(&mut self, name: &str, x: NodeId, stride: i64, at: &str) -> Result<NodeId> {
        self.conv_named(name, format!("{name}.{at}"), x, stride)
    }

    fn conv_named(&mut self, layer: &str, name: String, x: NodeId, stride: i64) -> Result<NodeId> {
        let conv = match self.by_name.get(layer) {
            Some(&conv) => conv,
            None => {
                let conv = self.constants(layer, stride)?;
                self.graph.convs.push(conv);
                self.by_name.insert(layer.to_owned(), self.graph.convs.len() - 1);
                self.graph.convs.len() - 1
            }
        };
        let [_, h, w] = self.shape(x);
        let c = self.graph.convs[conv].dims[0];
        let shape = [c, (h - 1) / stride + 1, (w - 1) / stride + 1];
        Ok(self.add(name, Op::Conv { x, conv }, shape))
    }

    fn norm(&mut self, key: &str, groups: i64) -> Result<usize> {
        if let Some(&norm) = self.by_name.get(key) {
            return Ok(norm);
        }
        let weight = self.floats(&format!("{key}.weight"))?;
        let bias = self.floats(&format!("{key}.bias"))?;
        self.graph.norms.push(Norm { name: key.to_owned(), groups, weight, bias });
        self.by_name.insert(key.to_owned(), self.graph.norms.len() - 1);
        Ok(self.graph.norms.len() - 1)
    }

    /// Weight and bias of a layer, its batch norm folded in where it has one.
    fn constants(&self, layer: &str, stride: i64) -> Result<Conv> {
        let key = format!("{layer}.weight");
        let sites = self.net.store.sites();
        let site = sites.iter().find(|s| s.name == layer);
        let site = site.with_context(|| format!("the network has no convolution {layer}"))?;
        let dims: [i64; 4] =
            site.weight.size().try_into().ok().context("a kernel of 4 dimensions")?;
        let num_out = dims[0] as usize;
        let per_channel = site.num_weights() / num_out;
        let fold = self.fold(layer, num_out)?;
        let bias = fold.bias;
        let codes = self.codes.get(&key).and_then(|w| integers(&w.grid, &w.codes));
        let weight = match codes {
            Some((codes, steps)) => {
                Weight::Codes(fold_codes(codes, &steps, fold.gain.as_deref(), per_channel))
            }
            None => {
                let mut values = floats_of(&tch::no_grad(|| site.effective_weight(false)))?;
                if let Some(gain) = &fold.gain {
                    for (channel, gain) in values.chunks_mut(per_channel).zip(gain) {
                        channel.iter_mut().for_each(|v| *v = (f64::from(*v) * gain) as f32);
                    }
                }
                Weight::Float(values)
            }
        };
        let trained_bits = self.trained_bits.get(&key).copied().unwrap_or(32);
        Ok(Conv { name: layer.to_owned(), dims, stride, weight, bias, trained_bits })
    }

    /// Gain and bias of a layer's channels: of its batch norm, else its own bias.
    fn fold(&self, layer: &str, num_out: usize) -> Result<Fold> {
        let norm = layer.strip_suffix(".conv").map(|block| format!("{block}.bn"));
        let norm = norm.filter(|bn| self.net.store.get(&format!("{bn}.weight")).is_some());
        let own = format!("{layer}.bias");
        let Some(bn) = norm else {
            let bias = match self.net.store.get(&own) {
                Some(bias) => floats_of(&bias)?,
                None => vec![0.0; num_out],
            };
            return Ok(Fold { gain: None, bias });
        };
        let [gamma, beta, mean, var] = ["weight", "bias", "running_mean", "running_var"]
            .map(|field| self.floats(&format!("{bn}.{field}")));
        let (gamma, beta, mean, var) = (gamma?, beta?, mean?, var?);
        let gain: Vec<f64> = (gamma.iter().zip(&var))
            .map(|(&g, &v)| f64::from(g) / (f64::from(v) + NORM_EPS).sqrt())
            .collect();
        let bias = (beta.iter().zip(&mean).zip(&gain))
            .map(|((&b, &m), g)| (f64::from(b) - f64::from(m) * g) as f32)
            .collect();
        Ok(Fold { gain: Some(gain), bias })
    }

    fn floats(&self, key: &str) -> Result<Vec<f32>> {
        let tensor = self.net.store.get(key);
        floats_of(&tensor.with_context(|| format!("the network has no tensor {key}"))?)
    }

    fn add(&mut self, name: String, op: Op, shape: [i64; 3]) -> NodeId {
        self.graph.nodes.push(Node { name, op, shape });
        self.graph.nodes.len() - 1
    }

    fn shape(&self, node: NodeId) -> [i64; 3] {
        self.graph.nodes[node].shape
    }
}

struct Fold {
    gain: Option<Vec<f64>>,
    bias: Vec<f32>,
}

fn floats_of(tensor: &Tensor) -> Result<Vec<f32>> {
    let flat = tensor.detach().to_device(Device::Cpu).to_kind(Kind::Float).contiguous().view([-1]);
    Ok(Vec::try_from(flat)?)
}

/// The integers of a weight and their scales: multiples of one number that fit 8 bits; `None` where the grid has no such
/// scale.
fn integers(grid: &Grid, codes: &Tensor) -> Option<(Vec<i32>, Vec<f32>)> {
    let codes: Vec<i32> =
        Vec::try_from(codes.to_device(Device::Cpu).to_kind(Kind::Int).contiguous().view([-1]))
            .ok()?;
    let fits = |codes: &[i32]| codes.iter().all(|c| (-MAX_CODE - 1..=MAX_CODE).contains(c));
    if let Some(scales) = grid.scale() {
        return fits(&codes).then_some((codes, scales));
    }
    // Powers of two and other shapes: multiples of the smallest magnitude.
    let known = grid.spacing().codes();
    let mut multiples = HashMap::new();
    let mut steps = vec![];
    for channel in 0..grid.num_ranges() {
        let levels = grid.levels(channel);
        let step = levels.iter().copied().filter(|v| *v > 0.0).reduce(f32::min)?;
        for (&code, &level) in known.iter().zip(&levels) {
            let multiple = f64::from(level) / f64::from(step);
            if multiple.fract() != 0.0 || multiple.abs() > f64::from(MAX_CODE) {
                return None;
            }
            multiples.insert(code, multiple as i32);
        }
        steps.push(step);
    }
    let codes =
        codes.iter().map(|code| multiples.get(code).copied()).collect::<Option<Vec<_>>>()?;
    Some((codes, steps))
}

/// Codes whose scales carry the gains of a batch norm.
///
/// Scales are kept positive, as other runtimes want them: a channel of negative gain has its codes negated, unless one
/// of them would then leave the range that the weight needs anyhow (two's complement has one more negative value).
fn fold_codes(
    mut codes: Vec<i32>,
    steps: &[f32],
    gain: Option<&[f64]>,
    per_channel: usize,
) -> Codes {
    let Some(gain) = gain else { return Codes { codes, scale: steps.to_vec() } };
    let most = codes.iter().map(|c| if *c < 0 { -c - 1 } else { *c }).max().unwrap_or(0);
    let limit =
        most.max(0).checked_add(1).map_or(MAX_CODE, |n| (n as u32).next_power_of_two() as i32 - 1);
    let mut scale = vec![];
    for (c, (channel, &gain)) in codes.chunks_mut(per_channel).zip(gain).enumerate() {
        let step = f64::from(steps[if steps.len() == 1 { 0 } else { c }]);
        let mut factor = (step * gain) as f32;
        if factor == 0.0 {
            // A dead channel; no scale may be 0.
            channel.fill(0);
            factor = step as f32;
        } else if factor < 0.0 && channel.iter().all(|c| -c <= limit) {
            channel.iter_mut().for_each(|c| *c = -*c);
            factor = -factor;
        }
        scale.push(factor);
    }
    Codes { codes, scale }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Spacing;

    #[test]
    fn folding_keeps_the_integers_and_moves_the_gain_to_the_scales() {
        let codes = fold_codes(vec![1, -1, 0, 1, 0, -1], &[0.5], Some(&[2.0, -4.0, 0.0]), 2);
        assert_eq!(codes.codes, [1, -1, 0, -1, 0, 0]);
        assert_eq!(codes.scale, [1.0, 2.0, 0.5]);
        assert_eq!(codes.values(2), [1.0, -1.0, 0.0, -2.0, 0.0, 0.0]);
    }

    #[test]
    fn a_code_without_an_opposite_keeps_its_sign() {
        // -2..=1 is the range of two bits: +2 would need three.
        let codes = fold_codes(vec![-2, 1, -1, 1], &[1.0], Some(&[-1.0, -1.0]), 2);
        assert_eq!((codes.codes, codes.scale), (vec![-2, 1, 1, -1], vec![-1.0, 1.0]));
        let codes = fold_codes(vec![-128, 5], &[1.0], Some(&[-1.0]), 2);
        assert_eq!((codes.codes, codes.scale), (vec![-128, 5], vec![-1.0]));
    }

    #[test]
    fn grids_become_multiples_of_a_step_where_8_bits_hold_them() {
        let check = |spacing: Spacing, scale: f32| {
            let grid = Grid::new(spacing.clone(), vec![scale]).unwrap();
            let codes = Tensor::from_slice(&spacing.codes()).to_kind(Kind::Int16);
            integers(&grid, &codes).map(|(codes, steps)| {
                let values: Vec<f32> = codes.iter().map(|&c| c as f32 * steps[0]).collect();
                assert_eq!(values, grid.levels(0), "{spacing:?}");
                codes
            })
        };
        let uniform = |num_levels| check(Spacing::Uniform { num_levels }, 0.37);
        assert_eq!(uniform(4).unwrap(), [-3, -1, 1, 3]);
        assert_eq!(uniform(255).unwrap().last(), Some(&127));
        assert_eq!(uniform(256), None);
        let powers = |num_exponents| check(Spacing::PowerOfTwo { num_exponents }, 0.37);
        assert_eq!(powers(2).unwrap(), [-2, -1, 0, 1, 2]);
        assert_eq!(powers(7).unwrap().last(), Some(&64));
        assert_eq!(powers(8), None);
    }
}
