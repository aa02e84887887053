//! A graph as an ONNX model.

use std::collections::{BTreeMap, HashSet};

use anyhow::{Result, ensure};
use clap::ValueEnum;

use super::graph::{Conv, Graph, LevelNodes, NodeId, Op, ScaledCodes, Weight};
use super::plan::{self, GraphPlan, QParams};
use super::proto::{self, Attribute, DataType, Tensor, ValueInfo};
use crate::nn::{Function, LEAKY_SLOPE, NORM_EPS, PoolShape};

/// The opset that `InstanceNormalization`, `Resize` and per-channel `DequantizeLinear` are written for.
pub const BASE_OPSET: i64 = 17;
/// The first opset with 4-bit integers.
pub const INT4_OPSET: i64 = 21;
/// The first opset with 2-bit integers.
pub const INT2_OPSET: i64 = 25;
/// The last opset that was tried.
pub const LAST_OPSET: i64 = 25;
/// Name of the input.
pub const INPUT: &str = "images";

/// How integer weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Carrier {
    /// A byte each: what convolution kernels take.
    Int8,
    /// 2, 4 or 8 bits, whichever is the smallest that holds them and that the opset has.
    TrueBits,
}

/// What is written.
#[derive(Debug, Clone)]
pub struct EmitOptions {
    /// Version of the operators.
    pub opset: i64,
    /// Type of integer weights.
    pub carrier: Carrier,
    /// Whether the runtime has 2-bit weights.
    pub int2: bool,
    /// Batch size; `None` leaves it open.
    pub batch: Option<i64>,
    /// Scores and decoded corners as further outputs.
    pub decode: bool,
}

/// Writes the graph, rounded by `plan`, as a model.
///
/// # Errors
/// If the opset is outside what is known, or lacks a type that is asked for.
pub fn emit(
    graph: &Graph,
    plan: &GraphPlan,
    options: &EmitOptions,
    metadata: &BTreeMap<String, String>,
) -> Result<proto::Model> {
    ensure!(
        (BASE_OPSET..=LAST_OPSET).contains(&options.opset),
        "opset {} is outside {BASE_OPSET}..={LAST_OPSET}",
        options.opset
    );
    let mut emitter =
        Emitter { graph, plan, options, out: proto::Graph::default(), known: HashSet::new() };
    emitter.run();
    let entries = metadata.iter();
    let metadata =
        entries.map(|(k, v)| proto::Entry { key: k.clone(), value: v.clone() }).collect();
    Ok(proto::Model {
        ir_version: ir_version(options.opset),
        producer_name: "mqat".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        doc_string: "6D-pose network: images to class logits and corner offsets by level"
            .to_owned(),
        graph: Some(proto::Graph { name: "mqat".to_owned(), ..emitter.out }),
        opset_import: vec![proto::OperatorSet { domain: String::new(), version: options.opset }],
        metadata,
    })
}

/// The version of the file format that came with an opset (the table in the ONNX release notes).
fn ir_version(opset: i64) -> i64 {
    match opset {
        ..=18 => 8,
        19..=20 => 9,
        21..=22 => 10,
        23 => 11,
        24 => 12,
        _ => 13,
    }
}

/// The type that holds a weight's codes.
pub fn carrier_of(codes: &ScaledCodes, options: &EmitOptions) -> DataType {
    let (low, high) = codes.range();
    let fits = |kind: DataType| kind.range().0 <= low && high <= kind.range().1;
    match options.carrier {
        Carrier::TrueBits
            if options.opset >= INT2_OPSET && options.int2 && fits(DataType::Int2) =>
        {
            DataType::Int2
        }
        Carrier::TrueBits if options.opset >= INT4_OPSET && fits(DataType::Int4) => DataType::Int4,
        _ => DataType::Int8,
    }
}

/// The name of a node's value before it is rounded; its integers are `NAME.q`, what these stand for is `NAME.dq`.
pub(super) fn value_name(graph: &Graph, node: NodeId) -> String {
    let output = graph.outputs.iter().find(|output| output.node == node && !output.flat);
    output.map_or(&graph.nodes[node].name, |output| &output.name).clone()
}

struct Emitter<'a> {
    graph: &'a Graph,
    plan: &'a GraphPlan,
    options: &'a EmitOptions,
    out: proto::Graph,
    /// Constants that are written.
    known: HashSet<String>,
}

impl Emitter<'_> {
    fn run(&mut self) {
        let shape = self.graph.nodes[0].shape;
        let doc = "RGB images, byte / 255 - mean, over deviation; see the metadata";
        self.out.input.push(ValueInfo::batched(INPUT, self.options.batch, &shape, doc));
        for node in 0..self.graph.nodes.len() {
            self.node(node);
            self.round_value(node);
        }
        self.outputs();
        if self.options.decode {
            self.decode();
        }
    }

    /// The name of a node's value before it is rounded.
    fn raw(&self, node: NodeId) -> String {
        value_name(self.graph, node)
    }

    /// The name of a node's value as its readers take it.
    fn value(&self, node: NodeId) -> String {
        let raw = self.raw(node);
        if self.plan.values[node].is_some() { format!("{raw}.dq") } else { raw }
    }

    fn node(&mut self, node: NodeId) {
        let name = self.graph.nodes[node].name.clone();
        let out = self.raw(node);
        let inputs: Vec<String> =
            self.graph.nodes[node].inputs.iter().map(|&x| self.value(x)).collect();
        match self.graph.nodes[node].op {
            Op::Input => {}
            Op::Conv { conv } => self.conv(node, self.graph.input_of(node), conv),
            Op::GroupNorm { norm } => self.group_norm(node, norm),
            Op::Affine { norm } => self.affine(norm, &name, &inputs[0], &out),
            Op::Scale { factor } => {
                let factor = self.floats(&format!("{name}.factor"), &[], &[factor]);
                self.push("Mul", &name, &[inputs[0].clone(), factor], &out, vec![]);
            }
            Op::Function(function) => self.function(node, function, &inputs),
        }
    }

    fn function(&mut self, node: NodeId, function: Function, inputs: &[String]) {
        let (name, out) = (self.graph.nodes[node].name.clone(), self.raw(node));
        let (op, attributes) = match function {
            Function::Relu => ("Relu", vec![]),
            Function::LeakyRelu => {
                ("LeakyRelu", vec![Attribute::float("alpha", LEAKY_SLOPE as f32)])
            }
            Function::Add => ("Add", vec![]),
            Function::Sub => ("Sub", vec![]),
            Function::Concat => ("Concat", vec![Attribute::int("axis", 1)]),
            Function::GlobalAvgPool => ("GlobalAveragePool", vec![]),
            Function::MaxPool(PoolShape { kernel, stride, padding }) => (
                "MaxPool",
                vec![
                    Attribute::ints("kernel_shape", &[kernel; 2]),
                    Attribute::ints("pads", &[padding; 4]),
                    Attribute::ints("strides", &[stride; 2]),
                ],
            ),
            Function::Upsample { .. } => return self.upsample(node, self.graph.input_of(node)),
            Function::Times(factor) => {
                let factor = self.floats(&format!("{name}.factor"), &[], &[factor]);
                return self.push("Mul", &name, &[inputs[0].clone(), factor], &out, vec![]);
            }
            Function::Flatten => {
                let shape = [0, self.graph.nodes[node].shape[0] as i32, 1, 1];
                let shape = self.integers(&format!("{name}.shape"), &[4], DataType::Int64, &shape);
                return self.push("Reshape", &name, &[inputs[0].clone(), shape], &out, vec![]);
            }
        };
        self.push(op, &name, inputs, &out, attributes);
    }

    /// Rounding and its inverse after a node.
    fn round_value(&mut self, node: NodeId) {
        let Some(params) = self.plan.values[node] else { return };
        let raw = self.raw(node);
        match &self.plan.channels[node] {
            None => self.round(&raw, &raw, &params),
            Some(channels) => self.round_channels(&raw, &params, channels),
        }
    }

    /// Rounds a value whose channels were multiplied to have `common`'s step; `{name}.dq` has the channels' own ones.
    fn round_channels(&mut self, name: &str, common: &QParams, channels: &[QParams]) {
        let scale = self.floats(&format!("{name}.scale"), &[], &[common.scale]);
        let zero = self.integers(&format!("{name}.zero"), &[], common.kind, &[common.zero_point]);
        let (q, dq) = (format!("{name}.q"), format!("{name}.dq"));
        self.push("QuantizeLinear", &q, &[name.to_owned(), scale, zero], &q, vec![]);
        let dims = [channels.len() as i64];
        let scales: Vec<f32> = channels.iter().map(|c| c.scale).collect();
        let zeros: Vec<i32> = channels.iter().map(|c| c.zero_point).collect();
        let scale = self.floats(&format!("{name}.scales"), &dims, &scales);
        let zero = self.integers(&format!("{name}.zeros"), &dims, common.kind, &zeros);
        let axis = vec![Attribute::int("axis", 1)];
        self.push("DequantizeLinear", &dq, &[q.clone(), scale, zero], &dq, axis);
    }

    /// Rounds `x`; the integers are `{name}.q`, what they stand for `{name}.dq`.
    fn round(&mut self, x: &str, name: &str, params: &QParams) {
        let mut x = x.to_owned();
        if params.clamp.is_some() {
            let (low, high) = params.limits();
            let low = self.floats(&format!("{name}.low"), &[], &[low]);
            let high = self.floats(&format!("{name}.high"), &[], &[high]);
            let clamped = format!("{name}.clamped");
            self.push("Clip", &clamped.clone(), &[x, low, high], &clamped, vec![]);
            x = clamped;
        }
        let scale = self.floats(&format!("{name}.scale"), &[], &[params.scale]);
        let zero = self.integers(&format!("{name}.zero"), &[], params.kind, &[params.zero_point]);
        let (q, dq) = (format!("{name}.q"), format!("{name}.dq"));
        let args = [x, scale.clone(), zero.clone()];
        self.push("QuantizeLinear", &q, &args, &q, vec![]);
        self.push("DequantizeLinear", &dq, &[q.clone(), scale, zero], &dq, vec![]);
    }

    fn conv(&mut self, node: NodeId, x: NodeId, conv: usize) {
        let (name, out) = (self.graph.nodes[node].name.clone(), self.raw(node));
        let constants = &self.graph.convs[conv];
        let mut value = self.value(x);
        if let Some(params) = self.plan.inputs[node] {
            let input = format!("{name}.input");
            self.round(&value, &input, &params);
            value = format!("{input}.dq");
        }
        let weight = match &constants.weight {
            Weight::Float(values) => {
                let (dims, values) = (stored_dims(constants), stored(constants, values));
                self.floats(&format!("{}.weight", constants.name), &dims, &values)
            }
            Weight::Codes(codes) => self.codes(node, conv, codes),
        };
        let bias = self.bias(node, x, conv);
        let op = if constants.is_transposed() { "ConvTranspose" } else { "Conv" };
        self.push(op, &name, &[value, weight, bias], &out, attributes_of(constants));
    }

    /// What a channel of a convolution is multiplied with to have the step of [`GraphPlan::values`].
    fn gains(&self, node: NodeId) -> Option<Vec<f32>> {
        let (common, channels) = self.plan.values[node].zip(self.plan.channels[node].as_ref())?;
        Some(channels.iter().map(|c| common.scale / c.scale).collect())
    }

    /// Integer weights and their inverse rounding; returns the floats' name.
    fn codes(&mut self, node: NodeId, conv: usize, codes: &ScaledCodes) -> String {
        let constants = &self.graph.convs[conv];
        let (layer, name) = (&constants.name, self.graph.nodes[node].name.clone());
        let kind = carrier_of(codes, self.options);
        let (dims, integers) = (stored_dims(constants), stored(constants, &codes.codes));
        let weight = self.integers(&format!("{layer}.weight_codes"), &dims, kind, &integers);
        // The integers are stored once, however often a layer runs; the scales differ where channels have their own.
        let (at, scales) = match self.gains(node) {
            None => (layer, codes.scale.clone()),
            Some(gains) => {
                let scales = gains.iter().enumerate().map(|(c, gain)| codes.scale_of(c) * gain);
                (&name, scales.collect())
            }
        };
        let channels = scales.len() as i64;
        let dims: &[i64] = if channels == 1 { &[] } else { &[channels] };
        let scale = self.floats(&format!("{at}.weight_scale"), dims, &scales);
        let zeros = vec![0; scales.len()];
        let zero = self.integers(&format!("{at}.weight_zero"), dims, kind, &zeros);
        let out = format!("{name}.weight_dq");
        let out_axis = i64::from(constants.is_transposed());
        let axis = (channels > 1).then(|| Attribute::int("axis", out_axis));
        let args = [weight, scale, zero];
        self.push("DequantizeLinear", &out, &args, &out, axis.into_iter().collect());
        out
    }

    /// The bias: integers where the convolution is one of integers from end to end, else floats.
    fn bias(&mut self, node: NodeId, x: NodeId, conv: usize) -> String {
        let constants = &self.graph.convs[conv];
        let name = self.graph.nodes[node].name.clone();
        let integer = plan::integer_bias(self.graph, self.plan, node, x, conv);
        let Some((mut integers, mut scales)) = integer else {
            let at = if self.plan.biases[node].is_some() { &name } else { &constants.name };
            let values = self.plan.bias(self.graph, node, conv);
            return self.floats(&format!("{at}.bias"), &[constants.dims[0]], values);
        };
        if let Some((gains, channels)) = self.gains(node).zip(self.plan.channels[node].as_ref()) {
            // A channel's zero point is a part of the bias, since the kernel has one for all.
            let scale_of = |c: usize| scales[if scales.len() == 1 { 0 } else { c }];
            for (c, integer) in integers.iter_mut().enumerate() {
                let shift = f64::from(channels[c].zero_point) * f64::from(channels[c].scale);
                *integer += (shift / f64::from(scale_of(c))).round() as i32;
            }
            scales = gains.iter().enumerate().map(|(c, gain)| scale_of(c) * gain).collect();
        }
        let per_tensor = scales.len() == 1;
        let dims: &[i64] = if per_tensor { &[] } else { &[constants.dims[0]] };
        let bias = self.integers(
            &format!("{name}.bias_codes"),
            &[constants.dims[0]],
            DataType::Int32,
            &integers,
        );
        let scale = self.floats(&format!("{name}.bias_scale"), dims, &scales);
        let zeros = vec![0; scales.len()];
        let zero = self.integers(&format!("{name}.bias_zero"), dims, DataType::Int32, &zeros);
        let out = format!("{name}.bias_dq");
        let axis = (!per_tensor).then(|| Attribute::int("axis", 0));
        self.push("DequantizeLinear", &out, &[bias, scale, zero], &out, axis.into_iter().collect());
        out
    }

    fn upsample(&mut self, node: NodeId, x: NodeId) {
        let (name, out) = (self.graph.nodes[node].name.clone(), self.raw(node));
        let ([_, h, w], [_, from_h, from_w]) =
            (self.graph.nodes[node].shape, self.graph.nodes[x].shape);
        let whole = (h, w) == (2 * from_h, 2 * from_w);
        let twice = if whole { out.clone() } else { format!("{name}.twice") };
        let scales = self.floats("upsample.scales", &[4], &[1.0, 1.0, 2.0, 2.0]);
        let attributes = vec![
            Attribute::text("mode", "nearest"),
            Attribute::text("coordinate_transformation_mode", "asymmetric"),
            Attribute::text("nearest_mode", "floor"),
        ];
        self.push("Resize", &name, &[self.value(x), String::new(), scales], &twice, attributes);
        if !whole {
            let kind = DataType::Int64;
            let starts = self.integers("upsample.starts", &[2], kind, &[0, 0]);
            let ends = self.integers(&format!("{name}.ends"), &[2], kind, &[h as i32, w as i32]);
            let axes = self.integers("upsample.axes", &[2], kind, &[2, 3]);
            self.push("Slice", &format!("{name}.cut"), &[twice, starts, ends, axes], &out, vec![]);
        }
    }

    /// Group norm as an instance norm over the groups, then each channel's factor and offset.
    ///
    /// ONNX Runtime has a kernel of its own for the instance norm; `GroupNormalization` is expanded into a dozen
    /// operations there.
    fn group_norm(&mut self, node: NodeId, norm: usize) {
        let x = self.graph.input_of(node);
        let (name, out) = (self.graph.nodes[node].name.clone(), self.raw(node));
        let [c, h, w] = self.graph.nodes[node].shape;
        let constants = &self.graph.norms[norm];
        let (groups, layer) = (constants.groups, &constants.name);
        let kind = DataType::Int64;
        let grouped = [0, groups as i32, -1];
        let grouped = self.integers(&format!("{layer}.groups"), &[3], kind, &grouped);
        let shape = [0, c as i32, h as i32, w as i32];
        let shape = self.integers(&format!("{name}.shape"), &[4], kind, &shape);
        let ones = self.floats(&format!("{layer}.ones"), &[groups], &vec![1.0; groups as usize]);
        let zeros = self.floats(&format!("{layer}.zeros"), &[groups], &vec![0.0; groups as usize]);
        let step = |what: &str| format!("{name}.{what}");
        let eps = Attribute::float("epsilon", NORM_EPS as f32);
        self.push("Reshape", &step("split"), &[self.value(x), grouped], &step("split"), vec![]);
        let args = [step("split"), ones, zeros];
        self.push("InstanceNormalization", &name, &args, &step("normal"), vec![eps]);
        self.push("Reshape", &step("join"), &[step("normal"), shape], &step("join"), vec![]);
        self.affine(norm, &name, &step("join"), &out);
    }

    /// Factor and offset of each channel.
    fn affine(&mut self, norm: usize, name: &str, x: &str, out: &str) {
        let constants = &self.graph.norms[norm];
        let (layer, dims) = (&constants.name, [1, constants.weight.len() as i64, 1, 1]);
        let weight = self.floats(&format!("{layer}.weight"), &dims, &constants.weight);
        let bias = self.floats(&format!("{layer}.bias"), &dims, &constants.bias);
        let (scale, offset) = (format!("{name}.scale"), format!("{name}.offset"));
        self.push("Mul", &scale, &[x.to_owned(), weight], &scale, vec![]);
        self.push("Add", &offset, &[scale.clone(), bias], out, vec![]);
    }

    fn outputs(&mut self) {
        for output in self.graph.outputs.clone() {
            let shape = self.graph.nodes[output.node].shape;
            let (mut dims, doc) = (shape.to_vec(), self.doc(output.node));
            if output.flat {
                dims.truncate(1);
                let flat = [0, shape[0] as i32];
                let flat =
                    self.integers(&format!("{}.shape", output.name), &[2], DataType::Int64, &flat);
                let args = [self.raw(output.node), flat];
                self.push("Reshape", &output.name, &args, &output.name, vec![]);
            }
            let info = ValueInfo::batched(&output.name, self.options.batch, &dims, &doc);
            self.out.output.push(info);
        }
    }

    /// What an output is, for people.
    fn doc(&self, node: NodeId) -> String {
        let level = |l: &&LevelNodes| l.cls == node || l.reg == node;
        match self.graph.levels.iter().find(level) {
            Some(level) if level.cls == node => "class logits [n, C, h, w]".to_owned(),
            Some(level) => format!(
                "corner offsets [n, 16 C, h, w], class by class 8 x then 8 y, from the anchor's centre \
                 (stride {} px) in anchor sizes ({} px)",
                level.stride, level.anchor_px
            ),
            None => String::new(),
        }
    }

    /// `scores` `[n, C, cells]` and `corners_px` `[n, C, 2, 8, cells]` over all levels, finest first.
    fn decode(&mut self) {
        let classes = self.graph.num_classes as i32;
        let (mut scores, mut corners, mut total) = (vec![], vec![], 0);
        let kind = DataType::Int64;
        let by_class = self.integers("decode.by_class", &[3], kind, &[0, classes, -1]);
        let by_corner = self.integers("decode.by_corner", &[5], kind, &[0, classes, 2, 8, -1]);
        for level in self.graph.levels.clone() {
            let [_, h, w] = self.graph.nodes[level.cls].shape;
            let [cls, reg] = [level.cls, level.reg].map(|node| self.raw(node));
            let step = |name: &str, what: &str| format!("decode.{name}.{what}");
            let (flat, points) = (step(&cls, "flat"), step(&reg, "points"));
            self.push("Reshape", &flat.clone(), &[cls.clone(), by_class.clone()], &flat, vec![]);
            self.push("Sigmoid", &step(&cls, "sigmoid"), &[flat], &step(&cls, "scores"), vec![]);
            self.push(
                "Reshape",
                &points.clone(),
                &[reg.clone(), by_corner.clone()],
                &points,
                vec![],
            );
            let size = self.floats(&step(&reg, "anchor"), &[], &[level.anchor_px as f32]);
            let scaled = step(&reg, "scaled");
            self.push("Mul", &scaled.clone(), &[points, size], &scaled, vec![]);
            let half = level.stride as f32 / 2.0;
            let center = |i: i64| half + level.stride as f32 * i as f32;
            let xs = (0..h * w).map(|i| center(i % w));
            let centers: Vec<f32> = xs.chain((0..h * w).map(|i| center(i / w))).collect();
            let centers = self.floats(&step(&reg, "centers"), &[1, 1, 2, 1, h * w], &centers);
            let pixels = step(&reg, "pixels");
            self.push("Add", &pixels.clone(), &[scaled, centers], &pixels, vec![]);
            scores.push(step(&cls, "scores"));
            corners.push(pixels);
            total += h * w;
        }
        let last = || vec![Attribute::int("axis", -1)];
        self.push("Concat", "decode.scores", &scores, "scores", last());
        self.push("Concat", "decode.corners", &corners, "corners_px", last());
        let (batch, classes) = (self.options.batch, i64::from(classes));
        let doc = "probability of each class and cell, levels from the finest on, row by row";
        self.out.output.push(ValueInfo::batched("scores", batch, &[classes, total], doc));
        let doc = "x and y of the 8 corners, px of the input";
        self.out.output.push(ValueInfo::batched("corners_px", batch, &[classes, 2, 8, total], doc));
    }

    fn push(
        &mut self,
        op: &str,
        name: &str,
        inputs: &[String],
        out: &str,
        attribute: Vec<Attribute>,
    ) {
        self.out.node.push(proto::Node {
            input: inputs.to_vec(),
            output: vec![out.to_owned()],
            name: format!("{name}:{op}"),
            op_type: op.to_owned(),
            attribute,
        });
    }

    fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) -> String {
        if self.known.insert(name.to_owned()) {
            self.out.initializer.push(Tensor::floats(name, dims, values));
        }
        name.to_owned()
    }

    fn integers(&mut self, name: &str, dims: &[i64], kind: DataType, values: &[i32]) -> String {
        if self.known.insert(name.to_owned()) {
            self.out.initializer.push(Tensor::integers(name, dims, kind, values));
        }
        name.to_owned()
    }
}

/// The dimensions of a weight as ONNX has them: a transposed one begins with the channels that come in.
fn stored_dims(conv: &Conv) -> [i64; 4] {
    let [c_out, c_in, h, w] = conv.dims;
    if conv.is_transposed() { [c_in, c_out, h, w] } else { conv.dims }
}

/// A weight's numbers in the order of [`stored_dims`].
fn stored<T: Copy>(conv: &Conv, values: &[T]) -> Vec<T> {
    if !conv.is_transposed() {
        return values.to_vec();
    }
    let [c_out, c_in, h, w] = conv.dims.map(|d| d as usize);
    let kernel = |i: usize, o: usize| &values[(o * c_in + i) * h * w..][..h * w];
    (0..c_in).flat_map(|i| (0..c_out).flat_map(move |o| kernel(i, o))).copied().collect()
}

/// Attributes that have ONNX's default value are left out, but for those that every convolution has.
fn attributes_of(conv: &Conv) -> Vec<Attribute> {
    let window = conv.window;
    let mut attributes = vec![
        Attribute::ints("kernel_shape", &conv.dims[2..]),
        Attribute::ints("pads", &[window.padding; 4]),
        Attribute::ints("strides", &[window.stride; 2]),
    ];
    if window.dilation != 1 {
        attributes.push(Attribute::ints("dilations", &[window.dilation; 2]));
    }
    if window.groups != 1 {
        attributes.push(Attribute::int("group", window.groups));
    }
    if let Some(cells) = window.output_padding.filter(|cells| *cells != 0) {
        attributes.push(Attribute::ints("output_padding", &[cells; 2]));
    }
    attributes
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::export::onnx::network::graph_of;
    use crate::export::onnx::testing::network;
    use crate::topology::wdr::NetworkConfig;

    fn options() -> EmitOptions {
        EmitOptions {
            opset: BASE_OPSET,
            carrier: Carrier::Int8,
            int2: true,
            batch: None,
            decode: false,
        }
    }

    /// The tiny network with every value but the outputs rounded.
    fn rounded() -> (Graph, GraphPlan) {
        let net = network(&NetworkConfig::widedepth_tiny(), 2);
        let mut graph = graph_of(&net, &[], (64, 64)).unwrap();
        let wanted = plan::wanted(&graph, true);
        plan::round_weights(&mut graph, &wanted, false);
        let params = QParams::over(-1.0, 2.0, 8, false);
        let values = wanted.values.iter().map(|wanted| wanted.then_some(params)).collect();
        let channels = wanted.channels.iter().zip(&graph.nodes).map(|(wanted, node)| {
            let of = |c: i64| QParams::over(-1.0, c as f32 + 1.0, 8, false);
            wanted.then(|| (0..node.shape[0]).map(of).collect())
        });
        let found = plan::Found { values, channels: channels.collect() };
        let plan = plan::calibrated(&graph, &HashMap::new(), found);
        (graph, plan)
    }

    /// Names are written once and before they are read; constants have as many bytes as their shapes say.
    fn check_names(graph: &proto::Graph) {
        let mut known: HashSet<&str> = graph.input.iter().map(|v| v.name.as_str()).collect();
        for tensor in &graph.initializer {
            assert!(known.insert(&tensor.name), "{} occurs twice", tensor.name);
            let count: i64 = tensor.dims.iter().product();
            let bits = match tensor.data_type {
                22 => 4,
                26 => 2,
                2 | 3 => 8,
                7 => 64,
                _ => 32,
            };
            let bytes = (count as usize * bits).div_ceil(8);
            assert_eq!(tensor.raw_data.len(), bytes, "{}", tensor.name);
        }
        for node in &graph.node {
            for input in node.input.iter().filter(|name| !name.is_empty()) {
                assert!(known.contains(input.as_str()), "{} reads {input}", node.name);
            }
            for output in &node.output {
                assert!(known.insert(output), "{output} is written twice");
            }
        }
        for output in &graph.output {
            assert!(known.contains(output.name.as_str()), "{} is not there", output.name);
        }
    }

    #[test]
    fn every_convolution_of_a_rounded_network_stands_between_roundings() {
        let (graph, plan) = rounded();
        let model = emit(&graph, &plan, &options(), &BTreeMap::new()).unwrap();
        let out = model.graph.unwrap();
        check_names(&out);
        let by_output: HashMap<&str, &str> =
            out.node.iter().map(|n| (n.output[0].as_str(), n.op_type.as_str())).collect();
        let convs: Vec<_> = out.node.iter().filter(|n| n.op_type == "Conv").collect();
        assert_eq!(convs.len(), 36);
        let mut between = 0;
        for conv in convs {
            let readers: Vec<&str> = out
                .node
                .iter()
                .filter(|n| n.input.contains(&conv.output[0]))
                .map(|n| n.op_type.as_str())
                .collect();
            let name = &conv.name;
            if ["init_block", "cls_logits", "pose_pred"].iter().any(|float| name.contains(float)) {
                // Floats with float weights, which nothing rounds.
                assert!(!by_output.contains_key(conv.input[1].as_str()), "{name}");
                assert!(!readers.contains(&"QuantizeLinear"), "{name}");
                continue;
            }
            assert_eq!(readers, ["QuantizeLinear"], "{name}");
            for input in &conv.input {
                assert_eq!(by_output[input.as_str()], "DequantizeLinear", "{name}");
            }
            between += 1;
        }
        assert_eq!(between, 29);
        // The head's weights are stored once for the five levels, their scales by level: in front of a group norm each
        // channel has its own step.
        let stored = |name: &str| out.initializer.iter().filter(|t| t.name == name).count();
        assert_eq!(stored("head.pose_pred.weight"), 1);
        assert_eq!(stored("head.cls_tower.0.weight_codes"), 1);
        let by_name = |name: &str| out.initializer.iter().find(|t| t.name == name).unwrap();
        assert_eq!(by_name("head.cls_tower.0.p4.weight_scale").dims, [64]);
        assert_eq!(by_name("head.cls_tower.0.p4.scale").dims, [0; 0]);
        assert_eq!(by_name("head.cls_tower.0.p4.scales").dims, [64]);
    }

    #[test]
    fn a_channels_own_step_and_zero_point_are_in_weight_and_bias() {
        let (graph, plan) = rounded();
        let out = emit(&graph, &plan, &options(), &BTreeMap::new()).unwrap().graph.unwrap();
        let floats = |name: &str| -> Vec<f32> {
            let raw = &out.initializer.iter().find(|t| t.name == name).unwrap().raw_data;
            raw.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let integers = |name: &str| -> Vec<i32> {
            let raw = &out.initializer.iter().find(|t| t.name == name).unwrap().raw_data;
            raw.chunks(4).map(|b| i32::from_le_bytes(b.try_into().unwrap())).collect()
        };
        let at = "head.cls_tower.0.p4";
        let (own, zeros) = (floats(&format!("{at}.scales")), {
            let raw = &out.initializer.iter().find(|t| t.name == format!("{at}.zeros")).unwrap();
            raw.raw_data.clone()
        });
        let common = floats(&format!("{at}.scale"))[0];
        let bias = integers(&format!("{at}.bias_codes"));
        let unit = floats(&format!("{at}.bias_scale"));
        let conv = graph.convs.iter().find(|c| c.name == "head.cls_tower.0").unwrap();
        for c in 0..own.len() {
            // An input of zeros: the kernel's integer is the bias over the common step, the reader's value the layer's bias.
            let kernel = bias[c] as f32 * unit[c] / common;
            let value = (kernel - f32::from(zeros[c])) * own[c];
            assert!((value - conv.bias[c]).abs() < 0.01 * own[c], "{c}: {value} {}", conv.bias[c]);
        }
    }

    #[test]
    fn codes_get_the_smallest_type_that_opset_and_runtime_have() {
        let of = |codes: &[i32], options: &EmitOptions| {
            carrier_of(&ScaledCodes { codes: codes.to_vec(), scale: vec![1.0] }, options)
        };
        let all = EmitOptions { opset: INT2_OPSET, carrier: Carrier::TrueBits, ..options() };
        assert_eq!(of(&[-1, 0, 1], &all), DataType::Int2);
        assert_eq!(of(&[-3, 3], &all), DataType::Int4);
        assert_eq!(of(&[-7, 7], &all), DataType::Int4);
        assert_eq!(of(&[-15, 15], &all), DataType::Int8);
        assert_eq!(of(&[-1, 0, 1], &EmitOptions { int2: false, ..all.clone() }), DataType::Int4);
        let before = EmitOptions { opset: INT4_OPSET, ..all.clone() };
        assert_eq!(of(&[-1, 0, 1], &before), DataType::Int4);
        assert_eq!(of(&[-1, 0, 1], &EmitOptions { opset: 20, ..before }), DataType::Int8);
        assert_eq!(of(&[-1, 0, 1], &options()), DataType::Int8);
        let error =
            emit(&rounded().0, &rounded().1, &EmitOptions { opset: 16, ..all }, &BTreeMap::new());
        assert!(error.unwrap_err().to_string().contains("opset 16 is outside 17..=25"));
    }

    #[test]
    fn odd_sizes_are_cut_and_decoded_outputs_cover_every_cell() {
        let net = network(&NetworkConfig::widedepth_tiny(), 2);
        let graph = graph_of(&net, &[], (72, 100)).unwrap();
        let plan = plan::as_trained(&graph, &HashMap::new());
        assert!(plan.is_empty());
        let options = EmitOptions { decode: true, batch: Some(3), ..options() };
        let out = emit(&graph, &plan, &options, &BTreeMap::new()).unwrap().graph.unwrap();
        check_names(&out);
        assert!(out.node.iter().any(|n| n.op_type == "Slice"));
        assert!(out.node.iter().all(|n| n.op_type != "QuantizeLinear"));
        let cells = net.grid(72, 100).num_cells() as i64;
        let dims = |name: &str| -> Vec<i64> {
            let output = out.output.iter().find(|o| o.name == name).unwrap();
            output.dims().unwrap().into_iter().flatten().collect()
        };
        assert_eq!(dims("scores"), [3, 2, cells]);
        assert_eq!(dims("corners_px"), [3, 2, 2, 8, cells]);
        assert_eq!(dims("cls_p3"), [3, 2, 13, 9]);
        assert_eq!(out.input[0].dims().unwrap(), [Some(3), Some(3), Some(100), Some(72)]);
    }
}
