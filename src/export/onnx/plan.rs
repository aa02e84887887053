//! Which values of a graph are rounded to 8-bit integers, and how.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::graph::{Conv, Graph, GraphNode, NodeId, Op, ScaledCodes, Weight};
use super::proto::DataType;
use crate::nn::Function;
use crate::quant::{ActivationReport, ModuleQuantizer};

/// Largest magnitude of an integer bias: what makes its sum with the products fit 32 bits.
const MAX_BIAS_CODE: f64 = (1 << 30) as f64;

/// How a value becomes an integer: `clamp(round(x / scale) + zero_point)`, halves to even.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct QParams {
    /// The step, above 0.
    pub scale: f32,
    /// The integer of 0.
    pub zero_point: i32,
    /// [`DataType::Uint8`] or [`DataType::Int8`].
    pub kind: DataType,
    /// Integers that the rounding clamps to before the type does; `None` where the type's own range is meant.
    pub clamp: Option<(i32, i32)>,
}

impl QParams {
    /// The 8 bits (or fewer) from `low` to `high`, both moved to include 0.
    ///
    /// `symmetric`: signed integers around 0, as some runtimes demand. Unsigned ones of fewer than 8 bits keep the
    /// type's range above theirs: it is rarely reached.
    pub fn over(low: f32, high: f32, bits: u32, symmetric: bool) -> Self {
        let (low, high) = (f64::from(low.min(0.0)), f64::from(high.max(0.0)));
        let scale_of = |range: f64, steps: f64| {
            let scale = (range / steps) as f32;
            if scale > 0.0 && scale.is_finite() { scale } else { 1.0 }
        };
        if symmetric {
            let top = f64::from((1 << (bits - 1)) - 1);
            let scale = scale_of(high.max(-low), top);
            return Self { scale, zero_point: 0, kind: DataType::Int8, clamp: None };
        }
        let top = f64::from((1 << bits) - 1);
        let scale = scale_of(high - low, top);
        let zero_point = (-low / f64::from(scale)).round_ties_even().clamp(0.0, top) as i32;
        Self { scale, zero_point, kind: DataType::Uint8, clamp: None }
    }

    /// Evenly spaced levels over `[low, high]`, as a trained quantizer of inputs has them.
    ///
    /// A grid without a level at 0 (an even count around 0) is moved by half a step, since integers have one.
    ///
    /// # Errors
    /// If there are more than 256 levels or the range is empty.
    pub fn of_levels(low: f64, high: f64, num_levels: u32) -> Result<Self> {
        ensure!((2..=256).contains(&num_levels), "{num_levels} levels do not fit 8 bits");
        ensure!(
            high > low && low.is_finite() && high.is_finite(),
            "the range {low}..{high} is empty"
        );
        let top = num_levels as i32 - 1;
        let scale = ((high - low) / f64::from(top)) as f32;
        let zero_point = ((-low / f64::from(scale)).round() as i32).clamp(0, 255);
        // One level beyond the outermost (255 levels in 8 bits) is let through: at most one step off, and no
        // clamping operation stands between a convolution and its rounding.
        let clamp = (top < 254).then_some((0, top));
        Ok(Self { scale, zero_point, kind: DataType::Uint8, clamp })
    }

    /// The smallest and largest integer.
    pub fn range(&self) -> (i32, i32) {
        self.clamp.unwrap_or(self.kind.range())
    }

    /// The smallest and largest value.
    pub fn limits(&self) -> (f32, f32) {
        let (low, high) = self.range();
        let value = |q: i32| (q - self.zero_point) as f32 * self.scale;
        (value(low), value(high))
    }
}

/// The rounding of a graph's values.
#[derive(Debug, Clone, Default)]
pub struct GraphPlan {
    /// By node: its value is rounded, for everything that reads it.
    pub values: Vec<Option<QParams>>,
    /// By convolution node: its input is rounded (again) before it.
    pub inputs: Vec<Option<QParams>>,
    /// By node: each channel is rounded by its own scale and zero point, where readers take floats. `values` is then what
    /// the one scale of an integer kernel's result is to be: the kernel's weights are multiplied to make it so.
    pub channels: Vec<Option<Vec<QParams>>>,
    /// By convolution node: the bias in place of the layer's.
    pub biases: Vec<Option<Vec<f32>>>,
}

impl GraphPlan {
    /// Rounds nothing.
    pub fn none(num_nodes: usize) -> Self {
        Self {
            values: vec![None; num_nodes],
            inputs: vec![None; num_nodes],
            channels: vec![None; num_nodes],
            biases: vec![None; num_nodes],
        }
    }

    /// The bias of a convolution node.
    pub fn bias<'a>(&'a self, graph: &'a Graph, node: NodeId, conv: usize) -> &'a [f32] {
        self.biases[node].as_deref().unwrap_or(&graph.convs[conv].bias)
    }

    /// How the input of a convolution is rounded, by whatever came last.
    pub fn input_of(&self, node: NodeId, x: NodeId) -> Option<QParams> {
        self.inputs[node].or(self.values[x])
    }

    /// Whether anything is rounded.
    pub fn is_empty(&self) -> bool {
        self.values.iter().chain(&self.inputs).all(Option::is_none)
    }
}

/// The trained quantizers of inputs, by layer.
///
/// # Errors
/// If one does not quantize yet or has more than 256 levels.
pub fn trained_inputs(quantizers: &[ModuleQuantizer]) -> Result<HashMap<String, QParams>> {
    let mut all = HashMap::new();
    for site in quantizers.iter().flat_map(ModuleQuantizer::report) {
        let Some(report) = &site.activations else { continue };
        if let Some(params) = of_report(&site.name, report)? {
            all.insert(site.name.clone(), params);
        }
    }
    Ok(all)
}

fn of_report(layer: &str, report: &ActivationReport) -> Result<Option<QParams>> {
    let known = report.scale.zip(report.codes).filter(|_| report.quantizing);
    let Some((scale, [lowest, highest])) = known else {
        if report.max_level == Some(0.0) {
            return Ok(None); // an input that is always 0 stays as it is
        }
        bail!(
            "the activations that go into {layer} are not quantized yet: train that stage to its end"
        );
    };
    let value = |code: i32| f64::from(code) * f64::from(scale);
    QParams::of_levels(value(lowest), value(highest), report.num_levels)
        .with_context(|| format!("the activations that go into {layer}"))
        .map(Some)
}

/// Rounds only the inputs that training quantized.
pub fn as_trained(graph: &Graph, trained: &HashMap<String, QParams>) -> GraphPlan {
    let inputs = graph.nodes.iter().map(|node| {
        let conv = node.op.conv()?;
        trained.get(&graph.convs[conv].name).copied()
    });
    GraphPlan { inputs: inputs.collect(), ..GraphPlan::none(graph.nodes.len()) }
}

/// What calibration has to find.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// By node: its range.
    pub values: Vec<bool>,
    /// By node: the range of each channel.
    pub channels: Vec<bool>,
}

/// What calibration found, by node.
#[derive(Debug, Clone)]
pub struct Found {
    /// Rounding of the whole value.
    pub values: Vec<Option<QParams>>,
    /// Rounding of each channel.
    pub channels: Vec<Option<Vec<QParams>>>,
}

/// The nodes that become integers.
///
/// Floats stay: the images and the first convolution with its ReLU (0.3 % of the operations; its result is the first one
/// that is rounded), the outputs, and group norms up to their ReLU. `by_channel`: what only group norms read is rounded
/// channel by channel.
pub fn wanted(graph: &Graph, by_channel: bool) -> Wanted {
    let readers = graph.readers();
    let is_norm = |node: &NodeId| matches!(graph.nodes[*node].op, Op::GroupNorm { .. });
    let mut values: Vec<bool> = graph
        .nodes
        .iter()
        .map(|node| match node.op {
            Op::Input | Op::GroupNorm { .. } | Op::Affine { .. } | Op::Scale { .. } => false,
            Op::Conv { .. } => !matches!(graph.nodes[node.inputs[0]].op, Op::Input),
            Op::Function(function) => !function.copies(),
        })
        .collect();
    for output in &graph.outputs {
        let mut node = output.node;
        values[node] = false;
        while let Op::Scale { .. } | Op::Function(Function::Flatten) = graph.nodes[node].op {
            node = graph.input_of(node);
            values[node] = false;
        }
    }
    let mut channels = vec![false; values.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        let before_norm = !readers[i].is_empty() && readers[i].iter().all(is_norm);
        if by_channel && values[i] && is_integer_kernel(graph, node) && before_norm {
            values[i] = false;
            channels[i] = true;
        }
    }
    Wanted { values, channels }
}

/// Whether runtimes have a kernel of integers for what a node does: not for transposed convolutions.
fn is_integer_kernel(graph: &Graph, node: &GraphNode) -> bool {
    node.op.conv().is_some_and(|conv| !graph.convs[conv].is_transposed())
}

impl Wanted {
    /// Whether a node's value becomes integers.
    pub fn any(&self, node: NodeId) -> bool {
        self.values[node] || self.channels[node]
    }
}

/// Rounds what calibration found: by the trained quantizer of a layer that reads it (the widest where there are several;
/// the others round once more), else as found.
pub fn calibrated(graph: &Graph, trained: &HashMap<String, QParams>, found: Found) -> GraphPlan {
    let own = as_trained(graph, trained).inputs;
    let Found { mut values, mut channels } = found;
    let mut widest: HashMap<NodeId, QParams> = HashMap::new();
    for (node, params) in graph.nodes.iter().zip(&own) {
        if let Some(params) = params {
            let x = node.inputs[0];
            let wider = |p: &QParams| p.limits().1 >= params.limits().1;
            if !widest.get(&x).is_some_and(wider) {
                widest.insert(x, *params);
            }
        }
    }
    for (&x, &params) in &widest {
        // Only where calibration rounds anyhow: a float value stays float for its other readers.
        if values[x].is_some() {
            values[x] = Some(params);
        }
    }
    for (i, node) in graph.nodes.iter().enumerate() {
        match node.op {
            Op::Function(function) if function.copies() => values[i] = values[node.inputs[0]],
            // ONNX Runtime would round the weight, too, of a convolution between rounded values.
            Op::Conv { conv }
                if matches!(graph.convs[conv].weight, Weight::Float(_))
                    && is_integer_kernel(graph, node) =>
            {
                (values[i], channels[i]) = (None, None);
            }
            _ => {}
        }
        if let Some(channels) = &channels[i] {
            values[i] = Some(common(channels));
        }
    }
    let inputs = graph.nodes.iter().zip(own).map(|(node, own)| {
        let x = *node.inputs.first()?;
        own.filter(|own| values[x].as_ref() != Some(own))
    });
    let inputs = inputs.collect();
    GraphPlan { values, inputs, channels, biases: vec![None; graph.nodes.len()] }
}

/// The one rounding that an integer kernel does before [`GraphPlan::channels`]: the largest step, from 0 on.
fn common(channels: &[QParams]) -> QParams {
    let widest = channels.iter().max_by(|a, b| a.scale.total_cmp(&b.scale));
    QParams { zero_point: 0, ..*widest.expect("a value has channels") }
}

/// Rounds the float weights of convolutions that become ones of integers to 8 bits, one scale an output channel; returns
/// the layers' keys.
///
/// `fit_pairs`: in steps as coarse as it takes for the products of two neighbouring weights with bytes to fit 16 bits, at
/// most twice as coarse: see [`super::sums_saturate`].
pub fn round_weights(graph: &mut Graph, wanted: &Wanted, fit_pairs: bool) -> Vec<String> {
    let mut rounded = vec![];
    let mut integer = vec![false; graph.convs.len()];
    for (i, node) in graph.nodes.iter().enumerate() {
        if let Some(conv) = node.op.conv().filter(|_| is_integer_kernel(graph, node)) {
            integer[conv] |= wanted.any(i);
        }
    }
    for (conv, _) in graph.convs.iter_mut().zip(integer).filter(|(_, integer)| *integer) {
        let per_channel = conv.per_channel();
        let places = (conv.dims[2] * conv.dims[3]) as usize;
        let Weight::Float(values) = &conv.weight else { continue };
        let (mut codes, mut scale) = (vec![], vec![]);
        for channel in values.chunks(per_channel) {
            let mut most = channel.iter().fold(0.0f32, |most, v| most.max(v.abs()));
            if fit_pairs {
                most = most.max(largest_pair(channel, places));
            }
            let step = if most > 0.0 { most / 127.0 } else { 1.0 };
            let code = |v: &f32| (v / step).round_ties_even().clamp(-127.0, 127.0) as i32;
            codes.extend(channel.iter().map(code));
            scale.push(step);
        }
        conv.weight = Weight::Codes(ScaledCodes { codes, scale });
        rounded.push(conv.name.clone());
    }
    rounded
}

/// The largest magnitude of the sum of two neighbouring weights of one sign, in the order of the kernels: place by place,
/// all input channels.
fn largest_pair(channel: &[f32], places: usize) -> f32 {
    let num_in = channel.len() / places;
    let at = |k: usize| channel[(k % num_in) * places + k / num_in];
    let sum = |(a, b): (f32, f32)| (a.max(0.0) + b.max(0.0)).max(-(a.min(0.0) + b.min(0.0)));
    (1..channel.len()).map(|k| sum((at(k - 1), at(k)))).fold(0.0, f32::max)
}

/// The bias of a convolution of integers, as integers and their scale (that of input and weight together): of one
/// between rounded values; `None` for others, whose bias stays float.
pub fn integer_bias(
    graph: &Graph,
    plan: &GraphPlan,
    node: NodeId,
    x: NodeId,
    conv: usize,
) -> Option<(Vec<i32>, Vec<f32>)> {
    if !is_integer_kernel(graph, &graph.nodes[node]) {
        return None;
    }
    let (input, _) = plan.input_of(node, x).zip(plan.values[node])?;
    let Weight::Codes(codes) = &graph.convs[conv].weight else { return None };
    let scales: Vec<f32> = codes.scale.iter().map(|s| s * input.scale).collect();
    let scale_of = |channel: usize| scales[if scales.len() == 1 { 0 } else { channel }];
    let integer = |(channel, bias): (usize, &f32)| {
        (f64::from(*bias) / f64::from(scale_of(channel))).round_ties_even() as i32
    };
    Some((plan.bias(graph, node, conv).iter().enumerate().map(integer).collect(), scales))
}

/// Makes the integer biases of a plan fit 32 bits: a bias has the scale of input and weight together, so a channel
/// whose weights are all but 0 gets a coarser scale, and codes that are smaller by as much.
pub fn fit_biases(graph: &mut Graph, plan: &GraphPlan) {
    for (i, node) in graph.nodes.iter().enumerate() {
        let Some(conv) = node.op.conv() else { continue };
        let x = node.inputs[0];
        if let Some(input) = plan.input_of(i, x) {
            // The zero point of a channel goes into the bias.
            let shift = |c: &QParams| c.zero_point as f32 * c.scale;
            let shifts = plan.channels[i].as_ref().map(|all| all.iter().map(shift).collect());
            fit_bias(&mut graph.convs[conv], input.scale, shifts);
        }
    }
}

fn fit_bias(conv: &mut Conv, input_scale: f32, shifts: Option<Vec<f32>>) {
    let per_channel = conv.per_channel();
    let Weight::Codes(weight) = &mut conv.weight else { return };
    let limit = |c: usize| {
        let largest = conv.bias[c].abs() + shifts.as_ref().map_or(0.0, |shifts| shifts[c].abs());
        f64::from(largest) / (MAX_BIAS_CODE * f64::from(input_scale))
    };
    let mut scales: Vec<f32> = (0..conv.bias.len()).map(|c| weight.scale_of(c)).collect();
    if (0..scales.len()).all(|c| f64::from(scales[c].abs()) >= limit(c)) {
        return;
    }
    for (c, codes) in weight.codes.chunks_mut(per_channel).enumerate() {
        let needed = limit(c) as f32 * 1.000_001;
        if scales[c].abs() < needed {
            let ratio = f64::from(scales[c]) / f64::from(needed);
            codes.iter_mut().for_each(|v| *v = (f64::from(*v) * ratio).round() as i32);
            scales[c] = needed;
        }
    }
    weight.scale = scales;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::graph::Window;

    #[test]
    fn ranges_include_zero_and_reach_their_ends() {
        let p = QParams::over(-1.0, 4.1, 8, false);
        assert_eq!((p.zero_point, p.kind), (50, DataType::Uint8));
        assert!((p.scale - 0.02).abs() < 1e-6 && (p.limits().1 - 4.1).abs() < 1e-5);
        let p = QParams::over(0.5, 2.55, 8, false);
        assert_eq!(p.zero_point, 0);
        assert!((p.scale - 0.01).abs() < 1e-8);
        let p = QParams::over(-1.27, 0.3, 8, true);
        assert_eq!((p.zero_point, p.kind), (0, DataType::Int8));
        assert!((p.scale - 0.01).abs() < 1e-8);
        assert_eq!(QParams::over(0.0, 0.0, 8, false).scale, 1.0);
        let p = QParams::over(0.0, 1.27, 7, false);
        assert!((p.scale - 0.01).abs() < 1e-8);
    }

    #[test]
    fn trained_levels_are_met_exactly_where_they_are_odd() {
        let p = QParams::of_levels(-2.0, 2.0, 255).unwrap();
        assert_eq!((p.zero_point, p.clamp), (127, None));
        assert_eq!(p.scale, 2.0 / 127.0);
        let p = QParams::of_levels(-2.0, 2.0, 15).unwrap();
        assert_eq!((p.zero_point, p.range()), (7, (0, 14)));
        assert!((p.limits().0 + 2.0).abs() < 1e-6 && (p.limits().1 - 2.0).abs() < 1e-6);
        let p = QParams::of_levels(0.0, 3.0, 4).unwrap();
        assert_eq!((p.zero_point, p.range(), p.scale), (0, (0, 3), 1.0));
        assert!(QParams::of_levels(-1.0, 1.0, 300).is_err());
    }

    #[test]
    fn neighbours_in_the_kernels_order_make_the_step_that_fits_pairs() {
        // [channel][place]: 0.5 and 0.5 of one sign at the first place.
        assert_eq!(largest_pair(&[0.5, 0.1, 0.5, -0.9], 2), 1.0);
        assert_eq!(largest_pair(&[0.5, -0.6, -0.5, -0.3], 2), 1.1); // last of a place, first of the next
        assert_eq!(largest_pair(&[-0.7], 1), 0.0);
    }

    #[test]
    fn a_bias_that_is_too_large_for_its_scale_makes_the_scale_coarser() {
        let weight = Weight::Codes(ScaledCodes {
            codes: vec![100, -100, 100, -100],
            scale: vec![1e-12, 0.1],
        });
        let mut conv = Conv {
            name: "c".to_owned(),
            dims: [2, 2, 1, 1],
            window: Window::of(1, 0),
            weight,
            bias: vec![0.5, 0.5],
            trained_bits: 8,
        };
        fit_bias(&mut conv, 0.02, None);
        let Weight::Codes(codes) = &conv.weight else { panic!() };
        assert_eq!(codes.codes, [0, 0, 100, -100]);
        assert_eq!(codes.scale[1], 0.1);
        assert!(0.5 / (0.02 * f64::from(codes.scale[0])) < f64::from(i32::MAX));
    }
}
