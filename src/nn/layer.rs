//! What a layer is, without its tensors: kind, sizes, costs, and the shape that comes out.

use std::rc::Rc;

use tch::Tensor;

use super::slot::SiteKind;

/// Something with a key that turns one value into another: what [`super::Ops::layer`] runs.
pub trait Layer {
    /// What the layer is.
    fn info(&self) -> &Rc<LayerInfo>;

    /// The result for values `[n, ...]`; `train` for batch statistics and quantizers that learn.
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor;
}

/// What a layer is, without its tensors.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerInfo {
    /// The layer's path, for example `fpn.inner_convs.2`.
    pub name: String,
    /// What it does.
    pub kind: LayerKind,
    /// Shape of the weight.
    pub weight: Vec<i64>,
    /// Learnt numbers.
    pub parameters: usize,
}

impl LayerInfo {
    /// The name of the node where it runs: its path, for a scale its one key.
    pub(super) fn node_name(&self) -> String {
        match self.kind {
            LayerKind::Scale => format!("{}.scale", self.name),
            _ => self.name.clone(),
        }
    }
}

/// What a layer does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LayerKind {
    /// A convolution.
    Conv(ConvShape),
    /// A transposed convolution.
    ConvTranspose(TransposeShape),
    /// A linear layer.
    Linear {
        /// Numbers that come in.
        c_in: i64,
        /// Numbers that go out.
        c_out: i64,
    },
    /// A batch norm.
    BatchNorm {
        /// Channels.
        channels: i64,
    },
    /// A group norm.
    GroupNorm {
        /// Groups of channels.
        groups: i64,
        /// Channels.
        channels: i64,
    },
    /// A learnt factor.
    Scale,
}

impl LayerKind {
    /// `conv`, `transposed conv`, `linear`, `batch norm`, `group norm` or `scale`.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Conv(_) => "conv",
            Self::ConvTranspose(_) => "transposed conv",
            Self::Linear { .. } => "linear",
            Self::BatchNorm { .. } => "batch norm",
            Self::GroupNorm { .. } => "group norm",
            Self::Scale => "scale",
        }
    }

    /// What kind of quantizable layer it is, if it is one.
    pub fn site(&self) -> Option<SiteKind> {
        match self {
            Self::Conv(_) => Some(SiteKind::Conv),
            Self::ConvTranspose(_) => Some(SiteKind::ConvTranspose),
            Self::Linear { .. } => Some(SiteKind::Linear),
            Self::BatchNorm { .. } | Self::GroupNorm { .. } | Self::Scale => None,
        }
    }

    /// Channels of the weight's result; 1 for a factor.
    pub(super) fn channels(&self) -> i64 {
        match *self {
            Self::Conv(shape) => shape.c_out,
            Self::ConvTranspose(shape) => shape.c_out,
            Self::Linear { c_out, .. } => c_out,
            Self::BatchNorm { channels } | Self::GroupNorm { channels, .. } => channels,
            Self::Scale => 1,
        }
    }

    /// Multiply-accumulates of one use, by the cells of its input and of its output.
    pub(super) fn macs(&self, cells_in: i64, cells_out: i64) -> u64 {
        let macs = match *self {
            Self::Conv(shape) => shape.fan_in() * shape.c_out * cells_out,
            Self::ConvTranspose(s) => s.c_in * s.c_out * s.kernel * s.kernel * cells_in,
            Self::Linear { c_in, c_out } => c_in * c_out * cells_out,
            Self::BatchNorm { .. } | Self::GroupNorm { .. } | Self::Scale => 0,
        };
        macs as u64
    }

    /// The shape of the result without the batch, for an input of shape `x`.
    ///
    /// # Panics
    /// If the input has other channels than the layer `name`.
    pub(super) fn shape(&self, name: &str, x: &[i64]) -> Vec<i64> {
        let fits = |dims: usize, channels: i64| {
            assert!(
                x.len() == dims && x[0] == channels,
                "{name} takes {channels} channels in {dims} dimensions, and is given {x:?}"
            );
        };
        match *self {
            Self::Conv(shape) => {
                fits(3, shape.c_in);
                vec![shape.c_out, shape.out(x[1]), shape.out(x[2])]
            }
            Self::ConvTranspose(shape) => {
                fits(3, shape.c_in);
                vec![shape.c_out, shape.out(x[1]), shape.out(x[2])]
            }
            Self::Linear { c_in, c_out } => {
                fits(1, c_in);
                vec![c_out]
            }
            Self::BatchNorm { channels } | Self::GroupNorm { channels, .. } => {
                fits(3, channels);
                x.to_vec()
            }
            Self::Scale => x.to_vec(),
        }
    }
}

/// Sizes of a convolution with a square kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels that come in.
    pub c_in: i64,
    /// Channels that go out.
    pub c_out: i64,
    /// Kernel size.
    pub kernel: i64,
    /// Stride.
    pub stride: i64,
    /// Cells of zeros on each side.
    pub padding: i64,
    /// Distance of the kernel's taps, cells.
    pub dilation: i64,
    /// Groups of channels that do not see each other; divides both channel counts.
    pub groups: i64,
}

impl ConvShape {
    /// Stride 1, padding `kernel / 2`, no dilation, one group: an odd kernel keeps the size.
    pub fn new(c_in: i64, c_out: i64, kernel: i64) -> Self {
        let padding = kernel / 2;
        Self { c_in, c_out, kernel, stride: 1, padding, dilation: 1, groups: 1 }
    }

    /// With that stride.
    pub fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }

    /// With so many cells of zeros on each side.
    pub fn padding(self, padding: i64) -> Self {
        Self { padding, ..self }
    }

    /// With taps so far apart, and the padding with which an odd kernel keeps the size.
    pub fn dilation(self, dilation: i64) -> Self {
        Self { dilation, padding: self.kernel / 2 * dilation, ..self }
    }

    /// With so many groups.
    pub fn groups(self, groups: i64) -> Self {
        Self { groups, ..self }
    }

    /// Inputs of one output.
    pub fn fan_in(&self) -> i64 {
        self.c_in / self.groups * self.kernel * self.kernel
    }

    /// Cells of the output in one direction.
    fn out(&self, size: i64) -> i64 {
        (size + 2 * self.padding - self.dilation * (self.kernel - 1) - 1) / self.stride + 1
    }
}

/// Sizes of a transposed convolution with a square kernel and one group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransposeShape {
    /// Channels that come in.
    pub c_in: i64,
    /// Channels that go out.
    pub c_out: i64,
    /// Kernel size.
    pub kernel: i64,
    /// How many times larger the output is.
    pub stride: i64,
    /// Cells cut off on each side.
    pub padding: i64,
    /// Cells added below and on the right.
    pub output_padding: i64,
}

impl TransposeShape {
    fn out(&self, size: i64) -> i64 {
        (size - 1) * self.stride - 2 * self.padding + self.kernel + self.output_padding
    }
}
