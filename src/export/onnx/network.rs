//! From a network's trace to a graph: constants, folded batch norms, integer weights.
//!
//! A test compares the graph's numbers with the network's own.

use std::collections::{HashMap, HashSet};

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor};

use super::graph::{
    Conv, Graph, GraphNode, LevelNodes, NodeId, NormConstants, Op, Output, ScaledCodes, Weight,
    Window,
};
use crate::nn::{self, Function, LayerInfo, LayerKind, NORM_EPS, Network, Store, Trace, TraceOp};
use crate::quant::{Grid, ModuleQuantizer, WeightCodes};

/// The largest code of an 8-bit carrier.
const MAX_CODE: i32 = 127;

/// The graph of a network for images of `width` x `height` px, with the weights' integer codes where `quantizers` have
/// them.
///
/// # Errors
/// As [`graph_of_trace`].
pub fn graph_of(
    net: &dyn Network,
    quantizers: &[ModuleQuantizer],
    (width, height): (usize, usize),
) -> Result<Graph> {
    let mut graph = graph_of_trace(net.store(), &net.trace(width, height), quantizers)?;
    for level in net.dense_levels() {
        let [cls, reg] = [&level.cls, &level.reg].map(|name| {
            let output = graph.outputs.iter().find(|output| output.name == *name);
            output.map(|output| output.node).with_context(|| format!("the graph has no {name}"))
        });
        let (cls, reg) = (cls?, reg?);
        graph.num_classes = graph.nodes[cls].shape[0] as usize;
        graph.levels.push(LevelNodes { cls, reg, stride: level.stride, anchor_px: level.size_px });
    }
    Ok(graph)
}

/// The graph of a trace, with the constants of `store` and the weights' integer codes where `quantizers` have them.
///
/// A batch norm is folded into the convolution in front of it where nothing else reads that. A weight on a grid keeps its
/// integers: the fold goes into its scale, which becomes one per output channel. A grid whose levels are not multiples of
/// one step that fit 8 bits becomes floats, and so do a transposed convolution's of several scales and the weights of a module that
/// is only partly quantized: those that it computes with.
///
/// # Errors
/// If a weight of a quantized module is not on its levels.
pub fn graph_of_trace(
    store: &Store,
    trace: &Trace,
    quantizers: &[ModuleQuantizer],
) -> Result<Graph> {
    let mut codes = HashMap::new();
    for quantizer in quantizers.iter().filter(|quantizer| !quantizer.is_partial()) {
        let module = quantizer.module();
        for weight in quantizer.codes().with_context(|| format!("module {module}"))? {
            codes.insert(weight.name.clone(), weight);
        }
    }
    let graph = Graph {
        nodes: vec![],
        convs: vec![],
        norms: vec![],
        outputs: vec![],
        levels: vec![],
        num_classes: 0,
    };
    let mut builder = Builder { store, codes, by_layer: HashMap::new(), graph };
    builder.build(trace)?;
    Ok(builder.graph)
}

/// For each batch norm of a trace that a convolution takes in, that convolution's node; the other way round.
fn folds(trace: &Trace) -> HashMap<NodeId, NodeId> {
    let readers = trace.readers();
    let is_output = |node: NodeId| trace.outputs.iter().any(|&(_, output)| output == node);
    let norm_of = |(i, node): (NodeId, &nn::Node)| {
        node.layer()?.kind.site()?;
        let &[reader] = readers[i].as_slice() else { return None };
        let is_norm = |l: &LayerInfo| matches!(l.kind, LayerKind::BatchNorm { .. });
        (!is_output(i) && trace.nodes[reader].layer().is_some_and(is_norm)).then_some((i, reader))
    };
    let found: HashMap<NodeId, NodeId> =
        trace.nodes.iter().enumerate().filter_map(norm_of).collect();
    same_everywhere(trace, found)
}

/// A layer that runs several times has one set of constants: only the same norm behind each of its uses goes into them.
fn same_everywhere(trace: &Trace, folds: HashMap<NodeId, NodeId>) -> HashMap<NodeId, NodeId> {
    let layer = |node: NodeId| trace.nodes[node].layer().map(|layer| layer.name.as_str());
    let norms = |conv: &NodeId| -> HashSet<Option<&str>> {
        let uses = (0..trace.nodes.len()).filter(|&node| layer(node) == layer(*conv));
        uses.map(|node| folds.get(&node).and_then(|&norm| layer(norm))).collect()
    };
    let kept: Vec<NodeId> = folds.keys().copied().filter(|conv| norms(conv).len() == 1).collect();
    folds.into_iter().filter(|(conv, _)| kept.contains(conv)).collect()
}

struct Builder<'a> {
    store: &'a Store,
    codes: HashMap<String, WeightCodes>,
    /// Constants that exist already, by the layer's key.
    by_layer: HashMap<String, usize>,
    graph: Graph,
}

impl Builder<'_> {
    fn build(&mut self, trace: &Trace) -> Result<()> {
        let folds = folds(trace);
        let folded: HashSet<NodeId> = folds.values().copied().collect();
        // By node of the trace, the node of the graph with its value.
        let mut place: Vec<NodeId> = vec![];
        for (i, node) in trace.nodes.iter().enumerate() {
            let inputs: Vec<NodeId> = node.inputs.iter().map(|&x| place[x]).collect();
            if folded.contains(&i) {
                place.push(inputs[0]);
                continue;
            }
            let op = match &node.op {
                TraceOp::Input => Op::Input,
                TraceOp::Function(Function::Times(factor)) => Op::Scale { factor: *factor },
                TraceOp::Function(function) => Op::Function(*function),
                TraceOp::Layer(layer) => {
                    let norm = folds.get(&i).and_then(|&norm| trace.nodes[norm].layer());
                    self.layer(layer, norm).with_context(|| layer.name.clone())?
                }
            };
            let at = |i: usize| node.shape.get(i).copied().unwrap_or(1);
            let shape = [at(0), at(1), at(2)];
            place.push(self.graph.nodes.len());
            self.graph.nodes.push(GraphNode { name: node.name.clone(), op, inputs, shape });
        }
        for (name, node) in &trace.outputs {
            let flat = trace.nodes[*node].shape.len() == 1;
            self.graph.outputs.push(Output { name: name.clone(), node: place[*node], flat });
        }
        Ok(())
    }

    /// The operation of a layer, with the batch norm that it takes in.
    fn layer(&mut self, layer: &LayerInfo, norm: Option<&LayerInfo>) -> Result<Op> {
        let known = self.by_layer.get(&layer.name).copied();
        Ok(match layer.kind {
            LayerKind::Conv(_) | LayerKind::ConvTranspose(_) | LayerKind::Linear { .. } => {
                let conv = match known {
                    Some(conv) => conv,
                    None => {
                        let conv = self.constants(layer, norm)?;
                        self.graph.convs.push(conv);
                        self.remember(layer, self.graph.convs.len() - 1)
                    }
                };
                Op::Conv { conv }
            }
            LayerKind::GroupNorm { groups, .. } => {
                let norm = match known {
                    Some(norm) => norm,
                    None => {
                        let weight = self.floats(&format!("{}.weight", layer.name))?;
                        let bias = self.floats(&format!("{}.bias", layer.name))?;
                        self.add_norm(layer, groups, weight, bias)
                    }
                };
                Op::GroupNorm { norm }
            }
            LayerKind::BatchNorm { .. } => {
                let norm = match known {
                    Some(norm) => norm,
                    None => {
                        let (gain, bias) = self.batch_norm(&layer.name, None)?;
                        let weight = gain.iter().map(|g| *g as f32).collect();
                        self.add_norm(layer, 1, weight, bias)
                    }
                };
                Op::Affine { norm }
            }
            LayerKind::Scale => {
                Op::Scale { factor: self.floats(&format!("{}.scale", layer.name))?[0] }
            }
        })
    }

    fn add_norm(
        &mut self,
        layer: &LayerInfo,
        groups: i64,
        weight: Vec<f32>,
        bias: Vec<f32>,
    ) -> usize {
        self.graph.norms.push(NormConstants { name: layer.name.clone(), groups, weight, bias });
        self.remember(layer, self.graph.norms.len() - 1)
    }

    fn remember(&mut self, layer: &LayerInfo, index: usize) -> usize {
        self.by_layer.insert(layer.name.clone(), index);
        index
    }

    /// Weight and bias of a layer, its batch norm folded in where it takes one in.
    fn constants(&self, layer: &LayerInfo, norm: Option<&LayerInfo>) -> Result<Conv> {
        let key = format!("{}.weight", layer.name);
        let sites = self.store.sites();
        let site = sites.iter().find(|s| s.name == layer.name);
        let site = site.context("the network has no such quantizable layer")?;
        let (dims, window) = dims_and_window(layer)?;
        let num_out = dims[0] as usize;
        let per_channel = site.num_weights() / num_out;
        let fold = self.fold(layer, norm, num_out)?;
        let bias = fold.bias;
        let by_channel = |t: &Tensor| match window.output_padding {
            Some(_) => t.transpose(0, 1).contiguous(),
            None => t.shallow_clone(),
        };
        let trained = self.codes.get(&key);
        let one_scale =
            |w: &&WeightCodes| window.output_padding.is_none() || w.grid.num_ranges() == 1;
        let codes = trained
            .filter(one_scale)
            .and_then(|w| integers(&w.grid, &by_channel(&w.codes.reshape(site.weight.size()))));
        let weight = match codes {
            Some((codes, steps)) => {
                Weight::Codes(fold_codes(codes, &steps, fold.gain.as_deref(), per_channel))
            }
            None => {
                let weight = tch::no_grad(|| by_channel(&site.effective_weight(false)));
                let mut values = floats_of(&weight)?;
                if let Some(gain) = &fold.gain {
                    for (channel, gain) in values.chunks_mut(per_channel).zip(gain) {
                        channel.iter_mut().for_each(|v| *v = (f64::from(*v) * gain) as f32);
                    }
                }
                Weight::Float(values)
            }
        };
        let trained_bits = trained.map_or(32, |w| w.grid.spacing().bits());
        Ok(Conv { name: layer.name.clone(), dims, window, weight, bias, trained_bits })
    }

    /// Gain and bias of a layer's channels: of its batch norm, else its own bias.
    fn fold(&self, layer: &LayerInfo, norm: Option<&LayerInfo>, num_out: usize) -> Result<Fold> {
        let own = self.store.get(&format!("{}.bias", layer.name));
        let own = own.map(|bias| floats_of(&bias)).transpose()?;
        Ok(match norm {
            None => Fold { gain: None, bias: own.unwrap_or_else(|| vec![0.0; num_out]) },
            Some(norm) => {
                let (gain, bias) = self.batch_norm(&norm.name, own.as_deref())?;
                Fold { gain: Some(gain), bias }
            }
        })
    }

    /// Factor and offset of a batch norm's channels, behind a bias.
    fn batch_norm(&self, name: &str, before: Option<&[f32]>) -> Result<(Vec<f64>, Vec<f32>)> {
        let [gamma, beta, mean, var] = ["weight", "bias", "running_mean", "running_var"]
            .map(|field| self.floats(&format!("{name}.{field}")));
        let (gamma, beta, mean, var) = (gamma?, beta?, mean?, var?);
        let gain: Vec<f64> = (gamma.iter().zip(&var))
            .map(|(&g, &v)| f64::from(g) / (f64::from(v) + NORM_EPS).sqrt())
            .collect();
        let offset = |c: usize| {
            let mean = f64::from(mean[c]) - before.map_or(0.0, |bias| f64::from(bias[c]));
            (f64::from(beta[c]) - mean * gain[c]) as f32
        };
        let bias = (0..gain.len()).map(offset).collect();
        Ok((gain, bias))
    }

    fn floats(&self, key: &str) -> Result<Vec<f32>> {
        let tensor = self.store.get(key);
        floats_of(&tensor.with_context(|| format!("the network has no tensor {key}"))?)
    }
}

/// A layer as a convolution: `[c_out, c_in / groups, k, k]`, and where the kernel lies.
fn dims_and_window(layer: &LayerInfo) -> Result<([i64; 4], Window)> {
    Ok(match layer.kind {
        LayerKind::Conv(s) => (
            [s.c_out, s.c_in / s.groups, s.kernel, s.kernel],
            Window { dilation: s.dilation, groups: s.groups, ..Window::of(s.stride, s.padding) },
        ),
        LayerKind::ConvTranspose(s) => (
            [s.c_out, s.c_in, s.kernel, s.kernel],
            Window { output_padding: Some(s.output_padding), ..Window::of(s.stride, s.padding) },
        ),
        LayerKind::Linear { c_in, c_out } => ([c_out, c_in, 1, 1], Window::of(1, 0)),
        kind => anyhow::bail!("a {} layer is not a convolution", kind.name()),
    })
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

/// ScaledCodes whose scales carry the gains of a batch norm.
///
/// Scales are kept positive, as other runtimes want them: a channel of negative gain has its codes negated, unless one
/// of them would then leave the range that the weight needs anyhow (two's complement has one more negative value).
fn fold_codes(
    mut codes: Vec<i32>,
    steps: &[f32],
    gain: Option<&[f64]>,
    per_channel: usize,
) -> ScaledCodes {
    let Some(gain) = gain else { return ScaledCodes { codes, scale: steps.to_vec() } };
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
    ScaledCodes { codes, scale }
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
