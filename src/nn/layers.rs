//! The layers, their keys and their initial values.
//!
//! Activations are `[n, c, h, w]`, f32, best in channels-last memory; every layer keeps the memory order it is given.

use std::cell::Cell;
use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::{Fill, Path, Site};

/// Added to variances by batch and group norm.
pub(crate) const NORM_EPS: f64 = 1e-5;
/// Weight of the batch in batch norm's running statistics.
const BATCH_NORM_MOMENTUM: f64 = 0.1;
/// Negative slope of the leaky ReLU of Darknet-53.
const LEAKY_SLOPE: f64 = 0.1;

/// What a layer costs, for one image.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSummary {
    /// The layer's path, for example `fpn.inner_convs.2`.
    pub name: String,
    /// `conv`, `batch norm`, `group norm`, `linear` or `scale`.
    pub kind: &'static str,
    /// Shape of the weight.
    pub weight: Vec<i64>,
    /// Learnt numbers.
    pub parameters: usize,
    /// Channels, height and width of the output; of the first use where a layer is used on several levels.
    pub output: [i64; 3],
    /// How often the layer runs; 0 when it is in the state but unused.
    pub uses: usize,
    /// Multiply-accumulates over all uses; norms, biases and scales count none.
    pub macs: u64,
}

/// Sizes of a convolution with a square kernel and padding `kernel / 2`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Channels that come in.
    pub c_in: i64,
    /// Channels that go out.
    pub c_out: i64,
    /// Kernel size, odd.
    pub kernel: i64,
    /// Stride; the output has `ceil(size / stride)` cells.
    pub stride: i64,
}

impl ConvShape {
    /// Stride 1.
    pub fn new(c_in: i64, c_out: i64, kernel: i64) -> Self {
        Self { c_in, c_out, kernel, stride: 1 }
    }

    /// With that stride.
    pub fn stride(self, stride: i64) -> Self {
        Self { stride, ..self }
    }

    /// Inputs of one output.
    pub fn fan_in(&self) -> i64 {
        self.c_in * self.kernel * self.kernel
    }
}

/// A convolution, whose weight and input a quantizer may replace.
///
/// Keys: `weight` `[c_out, c_in, k, k]`, and `bias` `[c_out]` where it has one.
pub struct Conv2d {
    site: Rc<Site>,
    bias: Option<Tensor>,
    shape: ConvShape,
}

impl Conv2d {
    /// Builds the layer; `bias` is the initial value of every bias, `None` for a layer without.
    pub fn new(p: &Path, shape: ConvShape, weight: Fill, bias: Option<f64>) -> Self {
        let ConvShape { c_in, c_out, kernel, .. } = shape;
        let weight = p.filled("weight", &[c_out, c_in, kernel, kernel], weight);
        let bias = bias.map(|value| p.filled("bias", &[c_out], Fill::Constant(value)));
        let site = p.site(Site::new(p.prefix().to_owned(), &weight));
        Self { site, bias, shape }
    }

    /// `[n, c_in, h, w]` to `[n, c_out, ceil(h / stride), ceil(w / stride)]`.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let ConvShape { kernel, stride, .. } = self.shape;
        self.site.effective_input(x, train).conv2d(
            &self.site.effective_weight(train),
            self.bias.as_ref(),
            [stride, stride],
            [kernel / 2, kernel / 2],
            [1, 1],
            1,
        )
    }

    /// Adds the layer's line for an input of `size` (height, width); returns the output's size.
    pub fn summarize(&self, size: (i64, i64), layers: &mut Vec<LayerSummary>) -> (i64, i64) {
        let ConvShape { c_out, stride, .. } = self.shape;
        let (h, w) = ((size.0 - 1) / stride + 1, (size.1 - 1) / stride + 1);
        let bias = self.bias.as_ref().map_or(0, Tensor::numel);
        layers.push(LayerSummary {
            name: self.site.name.clone(),
            kind: "conv",
            weight: self.site.weight.size(),
            parameters: self.site.num_weights() + bias,
            output: [c_out, h, w],
            uses: 1,
            macs: (self.shape.fan_in() * c_out * h * w) as u64,
        });
        (h, w)
    }
}

/// Batch normalisation with running statistics (momentum 0.1, eps 1e-5).
///
/// Keys: `weight`, `bias`, `running_mean`, `running_var` `[c]`, `num_batches_tracked` (i64, no dimension).
pub struct BatchNorm {
    name: String,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    frozen: Rc<Cell<bool>>,
}

impl BatchNorm {
    /// Builds the layer: weight 1, bias 0, running mean 0 and variance 1.
    pub fn new(p: &Path, channels: i64) -> Self {
        let cpu = (Kind::Float, Device::Cpu);
        Self {
            name: p.prefix().to_owned(),
            weight: p.filled("weight", &[channels], Fill::Constant(1.0)),
            bias: p.filled("bias", &[channels], Fill::Constant(0.0)),
            running_mean: p.buffer("running_mean", Tensor::zeros([channels], cpu)),
            running_var: p.buffer("running_var", Tensor::ones([channels], cpu)),
            num_batches_tracked: p.buffer("num_batches_tracked", Tensor::from(0i64)),
            frozen: p.batch_norm_frozen(),
        }
    }

    /// Normalises by the batch (and moves the running statistics) when `train` and not frozen
    /// ([`super::Store::freeze_batch_norm`]), by the running statistics else.
    pub fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let train = train && !self.frozen.get();
        if train {
            let _ = tch::no_grad(|| self.num_batches_tracked.shallow_clone().g_add_scalar_(1));
        }
        x.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(&self.running_mean),
            Some(&self.running_var),
            train,
            BATCH_NORM_MOMENTUM,
            NORM_EPS,
            true,
        )
    }

    /// Adds the layer's line for an input of `size` (height, width).
    pub fn summarize(&self, size: (i64, i64), layers: &mut Vec<LayerSummary>) {
        layers.push(norm_summary(&self.name, "batch norm", &self.weight, size));
    }
}

/// Group normalisation (eps 1e-5).
///
/// Keys: `weight`, `bias` `[c]`.
pub struct GroupNorm {
    name: String,
    weight: Tensor,
    bias: Tensor,
    num_groups: i64,
}

impl GroupNorm {
    /// Builds the layer: weight 1, bias 0. `num_groups` divides `channels`.
    pub fn new(p: &Path, num_groups: i64, channels: i64) -> Self {
        Self {
            name: p.prefix().to_owned(),
            weight: p.filled("weight", &[channels], Fill::Constant(1.0)),
            bias: p.filled("bias", &[channels], Fill::Constant(0.0)),
            num_groups,
        }
    }

    /// Normalises each image's groups of channels.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x.group_norm(self.num_groups, Some(&self.weight), Some(&self.bias), NORM_EPS, true)
    }

    /// Adds the layer's line for an input of `size` (height, width).
    pub fn summarize(&self, size: (i64, i64), layers: &mut Vec<LayerSummary>) {
        layers.push(norm_summary(&self.name, "group norm", &self.weight, size));
    }
}

fn norm_summary(
    name: &str,
    kind: &'static str,
    weight: &Tensor,
    (h, w): (i64, i64),
) -> LayerSummary {
    LayerSummary {
        name: name.to_owned(),
        kind,
        weight: weight.size(),
        parameters: 2 * weight.numel(),
        output: [weight.size()[0], h, w],
        uses: 1,
        macs: 0,
    }
}

/// A linear layer that the state holds and the forward pass does not use (the backbone's classifier).
///
/// Keys: `weight` `[c_out, c_in]`, `bias` `[c_out]`.
pub struct Linear {
    name: String,
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Builds the layer; its weight is no quantizable site, since nothing runs it.
    pub fn new(p: &Path, c_in: i64, c_out: i64) -> Self {
        let fill = Fill::Uniform { bound: (1.0 / c_in as f64).sqrt() };
        Self {
            name: p.prefix().to_owned(),
            weight: p.filled("weight", &[c_out, c_in], fill),
            bias: p.filled("bias", &[c_out], Fill::Constant(0.0)),
        }
    }

    /// Learnt numbers.
    pub fn num_parameters(&self) -> usize {
        self.weight.numel() + self.bias.numel()
    }

    /// Adds the layer's line.
    pub fn summarize(&self, layers: &mut Vec<LayerSummary>) {
        layers.push(LayerSummary {
            name: self.name.clone(),
            kind: "linear",
            weight: self.weight.size(),
            parameters: self.num_parameters(),
            output: [self.weight.size()[0], 1, 1],
            uses: 0,
            macs: 0,
        });
    }
}

/// A learnt factor.
///
/// Key: `scale` `[1]`.
pub struct Scale {
    name: String,
    scale: Tensor,
}

impl Scale {
    /// Builds the factor, 1.
    pub fn new(p: &Path) -> Self {
        Self { name: p.prefix().to_owned(), scale: p.filled("scale", &[1], Fill::Constant(1.0)) }
    }

    /// `x` times the factor.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        x * &self.scale
    }

    /// Adds the factor's line for an input of `[c, h, w]`.
    pub fn summarize(&self, output: [i64; 3], layers: &mut Vec<LayerSummary>) {
        layers.push(LayerSummary {
            name: self.name.clone(),
            kind: "scale",
            weight: vec![1],
            parameters: 1,
            output,
            uses: 1,
            macs: 0,
        });
    }
}

/// `x` where positive, 0.1 x elsewhere. Takes `x`'s storage when no gradient is wanted.
///
/// libtorch's leaky ReLU reaches Rust with slope 0.01 only. Its backward kernel, `g` or `slope g` by the sign
/// of `x`, computes the same function for `g = x` with any slope: one pass forward, one backward.
pub fn leaky_relu(x: Tensor) -> Tensor {
    if x.requires_grad() {
        x.detach().leaky_relu_backward(&x, LEAKY_SLOPE, false)
    } else {
        x.leaky_relu_backward_grad_input(&x, &x, LEAKY_SLOPE, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Store;

    fn floats(t: &Tensor) -> Vec<f32> {
        Vec::try_from(t.flatten(0, -1)).unwrap()
    }

    #[test]
    fn the_leaky_relu_and_its_gradient_have_slope_a_tenth_below_zero() {
        let x = Tensor::from_slice(&[-2.0f32, -0.5, 0.0, 3.0]).set_requires_grad(true);
        let y = leaky_relu(&x * 1.0);
        assert_eq!(floats(&y.detach()), [-0.2, -0.05, 0.0, 3.0]);
        (&y * &y).sum(Kind::Float).backward();
        // d(y^2)/dx = 2 y slope
        let expected = [2.0 * -0.2 * 0.1, 2.0 * -0.05 * 0.1, 0.0, 6.0];
        for (g, e) in floats(&x.grad()).into_iter().zip(expected) {
            assert!((g - e).abs() < 1e-7, "{g} {e}");
        }
        let z = tch::no_grad(|| leaky_relu(&x * 1.0));
        assert_eq!(floats(&z), [-0.2, -0.05, 0.0, 3.0]);
    }

    #[test]
    fn a_convolution_halves_odd_sizes_upwards_and_registers_its_site() {
        let store = Store::seeded(Device::Cpu, 1);
        let shape = ConvShape::new(2, 4, 3).stride(2);
        let conv = Conv2d::new(
            &(store.root() / "fpn" / "p6"),
            shape,
            Fill::kaiming_uniform(18, 1.0),
            Some(0.5),
        );
        let y = conv.forward_t(&Tensor::zeros([1, 2, 5, 7], (Kind::Float, Device::Cpu)), true);
        assert_eq!(y.size(), [1, 4, 3, 4]);
        assert_eq!(floats(&y.detach())[0], 0.5);
        assert_eq!(store.sites()[0].weight_name(), "fpn.p6.weight");
        let mut layers = vec![];
        assert_eq!(conv.summarize((5, 7), &mut layers), (3, 4));
        assert_eq!((layers[0].macs, layers[0].parameters), (2 * 9 * 4 * 12, 76));
    }

    #[test]
    fn batch_norm_counts_batches_and_moves_its_statistics_in_training_only() {
        let store = Store::new(Device::Cpu);
        let bn = BatchNorm::new(&(store.root() / "bn"), 1);
        let x = Tensor::from_slice(&[1.0f32, 3.0]).reshape([2, 1, 1, 1]);
        let _ = bn.forward_t(&x, false);
        assert_eq!(bn.num_batches_tracked.int64_value(&[]), 0);
        let y = bn.forward_t(&x, true);
        assert!((floats(&y.detach())[1] - 1.0).abs() < 1e-4);
        assert_eq!(bn.num_batches_tracked.int64_value(&[]), 1);
        // mean 2, unbiased variance 2, momentum 0.1
        assert!((store.get("bn.running_mean").unwrap().double_value(&[0]) - 0.2).abs() < 1e-6);
        assert!((store.get("bn.running_var").unwrap().double_value(&[0]) - 1.1).abs() < 1e-6);
    }
}
