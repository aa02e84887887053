//! Functions without tensors of their own: what they compute, and the shape that comes out.

use tch::{Kind, Tensor};

/// Negative slope of the leaky ReLU of Darknet-53.
pub(crate) const LEAKY_SLOPE: f64 = 0.1;

/// A square window that slides over cells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolShape {
    /// Side of the window, cells.
    pub kernel: i64,
    /// Distance of windows, cells.
    pub stride: i64,
    /// Cells added on each side, which never win.
    pub padding: i64,
}

/// A function of one or several values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Function {
    /// `x` where positive, 0 elsewhere.
    Relu,
    /// `x` where positive, 0.1 x elsewhere.
    LeakyRelu,
    /// The sum of two values.
    Add,
    /// The difference of two values.
    Sub,
    /// The value times a constant.
    Times(f32),
    /// The cells of one value, repeated to a size (nearest).
    Upsample {
        /// Height and width of the result.
        size: [i64; 2],
    },
    /// The largest value of each window.
    MaxPool(PoolShape),
    /// The mean of each channel.
    GlobalAvgPool,
    /// The channels of all values, one after the other.
    Concat,
    /// All numbers of an image in one dimension.
    Flatten,
}

impl Function {
    /// The result for values `[n, ...]`.
    ///
    /// # Panics
    /// If there are too few values, or their shapes do not fit.
    pub fn compute(&self, x: &[&Tensor]) -> Tensor {
        match self {
            Self::Relu => x[0].relu(),
            Self::LeakyRelu => x[0].maximum(&(x[0] * LEAKY_SLOPE)),
            Self::Add => x[0] + x[1],
            Self::Sub => x[0] - x[1],
            Self::Times(factor) => x[0] * f64::from(*factor),
            Self::Upsample { size } => x[0].upsample_nearest2d(size, None, None),
            Self::MaxPool(p) => {
                let side = |n: i64| [n, n];
                let (kernel, stride, padding) = (side(p.kernel), side(p.stride), side(p.padding));
                x[0].max_pool2d(kernel, stride, padding, [1, 1], false)
            }
            Self::GlobalAvgPool => x[0].mean_dim([2i64, 3].as_slice(), true, None::<Kind>),
            Self::Concat => Tensor::cat(x, 1),
            Self::Flatten => x[0].flatten(1, -1),
        }
    }

    /// The shape of the result, by the shapes of the values; all without the batch.
    ///
    /// # Panics
    /// If the shapes do not fit.
    pub fn shape(&self, x: &[&[i64]]) -> Vec<i64> {
        match self {
            Self::Relu | Self::LeakyRelu | Self::Times(_) => x[0].to_vec(),
            Self::Add | Self::Sub => {
                assert_eq!(x[0], x[1], "{self:?} of values of two shapes");
                x[0].to_vec()
            }
            Self::Upsample { size } => vec![x[0][0], size[0], size[1]],
            Self::MaxPool(p) => {
                let out = |n: i64| (n + 2 * p.padding - p.kernel) / p.stride + 1;
                vec![x[0][0], out(x[0][1]), out(x[0][2])]
            }
            Self::GlobalAvgPool => vec![x[0][0], 1, 1],
            Self::Concat => {
                assert!(x.iter().all(|s| s[1..] == x[0][1..]), "concat of {x:?}");
                [&[x.iter().map(|s| s[0]).sum()], &x[0][1..]].concat()
            }
            Self::Flatten => vec![x[0].iter().product()],
        }
    }

    /// Whether every number of the result is one of the value's: rounding before it is rounding after it.
    pub fn copies(&self) -> bool {
        matches!(self, Self::Upsample { .. } | Self::MaxPool(_) | Self::Flatten)
    }
}
