//! A network as a list of operations, in the order in which they run: what is calibrated, checked and written.

use tch::Tensor;

use crate::nn::Function;

/// A node by its number; its value is the operation's result.
pub type NodeId = usize;

/// A network whose batch norms are folded into its convolutions.
#[derive(Debug, Clone)]
pub struct Graph {
    /// The operations; each reads earlier ones only.
    pub nodes: Vec<GraphNode>,
    /// The constants of convolutions and linear layers; of a layer that runs several times once.
    pub convs: Vec<Conv>,
    /// The constants of norms.
    pub norms: Vec<NormConstants>,
    /// The outputs, in the network's order.
    pub outputs: Vec<Output>,
    /// For each level, finest first, logits and offsets.
    pub levels: Vec<LevelNodes>,
    /// Object classes.
    pub num_classes: usize,
}

impl Graph {
    /// By node, the nodes that read its value; an output counts as none.
    pub fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![vec![]; self.nodes.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            node.inputs.iter().for_each(|&x| readers[x].push(i));
        }
        readers
    }

    /// The first input of a node.
    pub fn input_of(&self, node: NodeId) -> NodeId {
        self.nodes[node].inputs[0]
    }
}

/// An output of the network.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// The node whose value it is.
    pub node: NodeId,
    /// Whether it is `[n, c]`: the node's value without its two dimensions of size 1.
    pub flat: bool,
}

/// The outputs of a level.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LevelNodes {
    /// Class logits `[n, C, h, w]`.
    pub cls: NodeId,
    /// Corner offsets in anchor sizes `[n, 16 C, h, w]`.
    pub reg: NodeId,
    /// Distance of the cells, px.
    pub stride: i64,
    /// Side of the anchors, px.
    pub anchor_px: f64,
}

/// An operation and the shape of its result.
#[derive(Debug, Clone)]
pub struct GraphNode {
    /// Its unique name: the layer's key, and the level where a layer runs on several.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// The nodes it reads.
    pub inputs: Vec<NodeId>,
    /// Channels, height and width of the result; numbers without cells have one.
    pub shape: [i64; 3],
}

/// What a node does: `x`, `a` and `b` are the nodes that it reads.
#[allow(missing_docs, reason = "the variants say what their fields are")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// The images.
    Input,
    /// A convolution or linear layer of [`Graph::convs`].
    Conv { conv: usize },
    /// A group norm of [`Graph::norms`].
    GroupNorm { norm: usize },
    /// A batch norm that no convolution could take in: factor and offset of each channel, of [`Graph::norms`].
    Affine { norm: usize },
    /// A factor.
    Scale { factor: f32 },
    /// A function without constants.
    Function(Function),
}

impl Op {
    /// The convolution that runs here.
    pub fn conv(&self) -> Option<usize> {
        match *self {
            Self::Conv { conv } => Some(conv),
            _ => None,
        }
    }
}

/// The constants of a convolution; a linear layer is one of 1 x 1.
#[derive(Debug, Clone)]
pub struct Conv {
    /// The layer's key.
    pub name: String,
    /// `[c_out, c_in / groups, k, k]`, of a transposed one, too.
    pub dims: [i64; 4],
    /// Where the kernel lies.
    pub window: Window,
    /// The weight, batch norm folded in.
    pub weight: Weight,
    /// The bias, batch norm folded in.
    pub bias: Vec<f32>,
    /// Bits of a weight as trained; 32 for float.
    pub trained_bits: u32,
}

impl Conv {
    /// Weights of an output channel.
    pub fn per_channel(&self) -> usize {
        (self.dims[1] * self.dims[2] * self.dims[3]) as usize
    }

    /// Number of weights.
    pub fn num_weights(&self) -> usize {
        self.per_channel() * self.dims[0] as usize
    }

    /// Whether it is a transposed one.
    pub fn is_transposed(&self) -> bool {
        self.window.output_padding.is_some()
    }

    /// The weight as floats, `[c_out, c_in / groups, k, k]`.
    pub fn values(&self) -> Tensor {
        let values = match &self.weight {
            Weight::Float(values) => values.clone(),
            Weight::Codes(codes) => codes.values(self.per_channel()),
        };
        Tensor::from_slice(&values).reshape(self.dims)
    }
}

/// How a convolution's kernel lies over its input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Distance of the places, cells; of a transposed one those of the output.
    pub stride: i64,
    /// Cells of zeros on each side (of a transposed one: cut off).
    pub padding: i64,
    /// Distance of the taps, cells.
    pub dilation: i64,
    /// Groups of channels that do not see each other.
    pub groups: i64,
    /// Of a transposed one: cells added below and on the right.
    pub output_padding: Option<i64>,
}

impl Window {
    /// An ordinary convolution of one group.
    pub fn of(stride: i64, padding: i64) -> Self {
        Self { stride, padding, dilation: 1, groups: 1, output_padding: None }
    }
}

/// A convolution's weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    /// Numbers without a grid.
    Float(Vec<f32>),
    /// Integers and their scale.
    Codes(ScaledCodes),
}

/// Integers, times a scale: one, or one an output channel.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaledCodes {
    /// -128 to 127.
    pub codes: Vec<i32>,
    /// One, or one an output channel.
    pub scale: Vec<f32>,
}

impl ScaledCodes {
    /// The scale of an output channel.
    pub fn scale_of(&self, channel: usize) -> f32 {
        self.scale[if self.scale.len() == 1 { 0 } else { channel }]
    }

    /// The numbers they stand for.
    pub fn values(&self, per_channel: usize) -> Vec<f32> {
        let channels = self.codes.chunks(per_channel).enumerate();
        channels
            .flat_map(|(c, codes)| codes.iter().map(move |&code| code as f32 * self.scale_of(c)))
            .collect()
    }

    /// The smallest and the largest code.
    pub fn range(&self) -> (i32, i32) {
        let of = |f: fn(i32, i32) -> i32| self.codes.iter().copied().reduce(f).unwrap_or(0);
        (of(i32::min), of(i32::max))
    }
}

/// The constants of a group norm (eps 1e-5), or of a batch norm of its own.
#[derive(Debug, Clone)]
pub struct NormConstants {
    /// The layer's key.
    pub name: String,
    /// Groups of channels; 1 for a batch norm.
    pub groups: i64,
    /// Factor of each channel.
    pub weight: Vec<f32>,
    /// Offset of each channel.
    pub bias: Vec<f32>,
}
