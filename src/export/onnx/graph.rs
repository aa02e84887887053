//! A network as a list of operations, in the order in which they run: what is calibrated, checked and written.

use tch::Tensor;

/// A node by its number; its value is the operation's result.
pub type NodeId = usize;

/// A network whose batch norms are folded into its convolutions.
#[derive(Debug, Clone)]
pub struct Graph {
    /// The operations; each reads earlier ones only.
    pub nodes: Vec<Node>,
    /// The convolutions' constants; the head's are used once a level.
    pub convs: Vec<Conv>,
    /// The group norms' constants.
    pub norms: Vec<Norm>,
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
            for x in node.op.inputs() {
                readers[x].push(i);
            }
        }
        readers
    }
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
pub struct Node {
    /// Its unique name: the layer's key, and the level where a layer runs on several.
    pub name: String,
    /// What it does.
    pub op: Op,
    /// Channels, height and width of the result.
    pub shape: [i64; 3],
}

/// What a node does: `x`, `a` and `b` are the nodes that it reads.
#[allow(missing_docs, reason = "the variants say what their fields are")]
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Op {
    /// The images.
    Input,
    /// A convolution of [`Graph::convs`].
    Conv { x: NodeId, conv: usize },
    /// `x` where positive, 0.1 x elsewhere.
    LeakyRelu { x: NodeId },
    /// `x` where positive, 0 elsewhere.
    Relu { x: NodeId },
    /// The sum.
    Add { a: NodeId, b: NodeId },
    /// Every cell twice in both directions, cut to the node's size.
    Upsample { x: NodeId },
    /// A group norm of [`Graph::norms`].
    GroupNorm { x: NodeId, norm: usize },
    /// A factor.
    Scale { x: NodeId, factor: f32 },
}

impl Op {
    /// The nodes it reads.
    pub fn inputs(&self) -> Vec<NodeId> {
        match *self {
            Self::Input => vec![],
            Self::Add { a, b } => vec![a, b],
            Self::Conv { x, .. }
            | Self::LeakyRelu { x }
            | Self::Relu { x }
            | Self::Upsample { x }
            | Self::GroupNorm { x, .. }
            | Self::Scale { x, .. } => vec![x],
        }
    }
}

/// The constants of a convolution.
#[derive(Debug, Clone)]
pub struct Conv {
    /// The layer's key.
    pub name: String,
    /// `[c_out, c_in, k, k]`.
    pub dims: [i64; 4],
    /// 1 or 2.
    pub stride: i64,
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

    /// The weight as floats, `[c_out, c_in, k, k]`.
    pub fn values(&self) -> Tensor {
        let values = match &self.weight {
            Weight::Float(values) => values.clone(),
            Weight::Codes(codes) => codes.values(self.per_channel()),
        };
        Tensor::from_slice(&values).reshape(self.dims)
    }
}

/// A convolution's weight.
#[derive(Debug, Clone, PartialEq)]
pub enum Weight {
    /// Numbers without a grid.
    Float(Vec<f32>),
    /// Integers and their scale.
    Codes(Codes),
}

/// Integers, times a scale: one, or one an output channel.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// -128 to 127.
    pub codes: Vec<i32>,
    /// One, or one an output channel.
    pub scale: Vec<f32>,
}

impl Codes {
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

/// The constants of a group norm (eps 1e-5).
#[derive(Debug, Clone)]
pub struct Norm {
    /// The layer's key.
    pub name: String,
    /// Groups of channels.
    pub groups: i64,
    /// Factor of each channel.
    pub weight: Vec<f32>,
    /// Offset of each channel.
    pub bias: Vec<f32>,
}
