//! The layers, their keys and their initial values.
//!
//! Activations are `[n, c, h, w]`, f32, best in channels-last memory; every layer keeps the memory order it is given.

use std::rc::Rc;

use tch::{Device, Kind, Tensor};

use super::batch_norm::BatchNormControl;
use super::function::LEAKY_SLOPE;
use super::layer::{ConvShape, Layer, LayerInfo, LayerKind, TransposeShape};
use super::products::Products;
use super::{Fill, Path, Site};

/// Added to variances by batch and group norm.
pub(crate) const NORM_EPS: f64 = 1e-5;
/// Weight of the batch in batch norm's running statistics.
const BATCH_NORM_MOMENTUM: f64 = 0.1;

/// A convolution, whose weight and input a quantizer may replace.
///
/// Keys: `weight` `[c_out, c_in / groups, k, k]`, and `bias` `[c_out]` where it has one.
pub struct Conv2d {
    info: Rc<LayerInfo>,
    site: Rc<Site>,
    bias: Option<Tensor>,
    shape: ConvShape,
    products: Products,
}

impl Conv2d {
    /// Builds the layer; `bias` is the initial value of every bias, `None` for a layer without.
    pub fn new(p: &Path, shape: ConvShape, weight: Fill, bias: Option<f64>) -> Self {
        let ConvShape { c_in, c_out, kernel, groups, .. } = shape;
        let weight = p.filled("weight", &[c_out, c_in / groups, kernel, kernel], weight);
        let bias = bias.map(|value| p.filled("bias", &[c_out], Fill::Constant(value)));
        let (info, site) = p.site_layer(LayerKind::Conv(shape), &weight, bias.as_ref());
        Self { info, site, bias, shape, products: p.products() }
    }
}

impl Layer for Conv2d {
    fn info(&self) -> &Rc<LayerInfo> {
        &self.info
    }

    /// `[n, c_in, h, w]` to `[n, c_out, h', w']`.
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let ConvShape { stride, padding, dilation, groups, .. } = self.shape;
        let (x, weight) = (self.site.effective_input(x, train), self.site.effective_weight(train));
        self.products.of(&x, &weight, self.bias.as_ref(), |x, weight, bias| {
            let (stride, padding) = ([stride, stride], [padding, padding]);
            x.conv2d(weight, bias, stride, padding, [dilation, dilation], groups)
        })
    }
}

/// A transposed convolution, whose weight and input a quantizer may replace.
///
/// Keys: `weight` `[c_in, c_out, k, k]`, and `bias` `[c_out]` where it has one.
pub struct ConvTranspose2d {
    info: Rc<LayerInfo>,
    site: Rc<Site>,
    bias: Option<Tensor>,
    shape: TransposeShape,
    products: Products,
}

impl ConvTranspose2d {
    /// Builds the layer; `bias` is the initial value of every bias, `None` for a layer without.
    pub fn new(p: &Path, shape: TransposeShape, weight: Fill, bias: Option<f64>) -> Self {
        let TransposeShape { c_in, c_out, kernel, .. } = shape;
        let weight = p.filled("weight", &[c_in, c_out, kernel, kernel], weight);
        let bias = bias.map(|value| p.filled("bias", &[c_out], Fill::Constant(value)));
        let (info, site) = p.site_layer(LayerKind::ConvTranspose(shape), &weight, bias.as_ref());
        Self { info, site, bias, shape, products: p.products() }
    }
}

impl Layer for ConvTranspose2d {
    fn info(&self) -> &Rc<LayerInfo> {
        &self.info
    }

    /// `[n, c_in, h, w]` to `[n, c_out, h', w']`.
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let TransposeShape { stride, padding, output_padding, .. } = self.shape;
        let (x, weight) = (self.site.effective_input(x, train), self.site.effective_weight(train));
        self.products.of(&x, &weight, self.bias.as_ref(), |x, weight, bias| {
            let (stride, padding) = ([stride, stride], [padding, padding]);
            let more = [output_padding, output_padding];
            x.conv_transpose2d(weight, bias, stride, padding, more, 1, [1, 1])
        })
    }
}

/// Batch normalisation with running statistics (momentum 0.1, eps 1e-5).
///
/// Keys: `weight`, `bias`, `running_mean`, `running_var` `[c]`, `num_batches_tracked` (i64, no dimension).
pub struct BatchNorm {
    info: Rc<LayerInfo>,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    num_batches_tracked: Tensor,
    control: Rc<BatchNormControl>,
}

impl BatchNorm {
    /// Builds the layer: weight 1, bias 0, running mean 0 and variance 1.
    pub fn new(p: &Path, channels: i64) -> Self {
        let cpu = (Kind::Float, Device::Cpu);
        let weight = p.filled("weight", &[channels], Fill::Constant(1.0));
        let bias = p.filled("bias", &[channels], Fill::Constant(0.0));
        Self {
            info: p.layer(LayerKind::BatchNorm { channels }, &weight, Some(&bias)),
            weight,
            bias,
            running_mean: p.buffer("running_mean", Tensor::zeros([channels], cpu)),
            running_var: p.buffer("running_var", Tensor::ones([channels], cpu)),
            num_batches_tracked: p.buffer("num_batches_tracked", Tensor::from(0i64)),
            control: p.batch_norm_control(),
        }
    }
}

impl BatchNorm {
    fn normalise(
        &self,
        x: &Tensor,
        mean: &Tensor,
        var: &Tensor,
        by_batch: bool,
        momentum: f64,
    ) -> Tensor {
        x.batch_norm(
            Some(&self.weight),
            Some(&self.bias),
            Some(mean),
            Some(var),
            by_batch,
            momentum,
            NORM_EPS,
            true,
        )
    }

    /// Normalises by the batch, and hands its mean and unbiased variance on.
    fn collect(&self, x: &Tensor) -> Tensor {
        // With a momentum of 1 these become those of the batch.
        let (mean, var) = (self.running_mean.zeros_like(), self.running_var.zeros_like());
        let y = self.normalise(x, &mean, &var, true, 1.0);
        tch::no_grad(|| self.control.collect(&self.info.name, &mean, &var));
        y
    }
}

impl Layer for BatchNorm {
    fn info(&self) -> &Rc<LayerInfo> {
        &self.info
    }

    /// Normalises by the batch (and moves the running statistics) when `train` and not frozen
    /// ([`super::Store::freeze_batch_norm`]), by the running statistics else. While statistics are collected
    /// ([`super::Store::collect_batch_statistics`]), by the batch.
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        if self.control.is_collecting(&self.info.name) {
            return self.collect(x);
        }
        let train = train && !self.control.is_frozen(&self.info.name);
        if train {
            let _ = tch::no_grad(|| self.num_batches_tracked.shallow_clone().g_add_scalar_(1));
        }
        self.normalise(x, &self.running_mean, &self.running_var, train, BATCH_NORM_MOMENTUM)
    }
}

/// Group normalisation (eps 1e-5).
///
/// Keys: `weight`, `bias` `[c]`.
pub struct GroupNorm {
    info: Rc<LayerInfo>,
    weight: Tensor,
    bias: Tensor,
    num_groups: i64,
}

impl GroupNorm {
    /// Builds the layer: weight 1, bias 0. `num_groups` divides `channels`.
    pub fn new(p: &Path, num_groups: i64, channels: i64) -> Self {
        let weight = p.filled("weight", &[channels], Fill::Constant(1.0));
        let bias = p.filled("bias", &[channels], Fill::Constant(0.0));
        let kind = LayerKind::GroupNorm { groups: num_groups, channels };
        let info = p.layer(kind, &weight, Some(&bias));
        Self { info, weight, bias, num_groups }
    }
}

impl Layer for GroupNorm {
    fn info(&self) -> &Rc<LayerInfo> {
        &self.info
    }

    /// Normalises each image's groups of channels.
    fn forward_t(&self, x: &Tensor, _train: bool) -> Tensor {
        x.group_norm(self.num_groups, Some(&self.weight), Some(&self.bias), NORM_EPS, true)
    }
}

/// A linear layer, whose weight and input a quantizer may replace.
///
/// Keys: `weight` `[c_out, c_in]`, `bias` `[c_out]`.
pub struct Linear {
    info: Rc<LayerInfo>,
    site: Rc<Site>,
    bias: Tensor,
}

impl Linear {
    /// Builds the layer; initial weights are uniform in `1 / sqrt(c_in)`, biases 0.
    pub fn new(p: &Path, c_in: i64, c_out: i64) -> Self {
        let fill = Fill::Uniform { bound: (1.0 / c_in as f64).sqrt() };
        let weight = p.filled("weight", &[c_out, c_in], fill);
        let bias = p.filled("bias", &[c_out], Fill::Constant(0.0));
        let (info, site) = p.site_layer(LayerKind::Linear { c_in, c_out }, &weight, Some(&bias));
        Self { info, site, bias }
    }
}

impl Layer for Linear {
    fn info(&self) -> &Rc<LayerInfo> {
        &self.info
    }

    /// `[n, c_in]` to `[n, c_out]`.
    fn forward_t(&self, x: &Tensor, train: bool) -> Tensor {
        let weight = self.site.effective_weight(train);
        self.site.effective_input(x, train).linear(&weight, Some(&self.bias))
    }
}

/// A learnt factor.
///
/// Key: `scale` `[1]`.
pub struct Scale {
    info: Rc<LayerInfo>,
    scale: Tensor,
}

impl Scale {
    /// Builds the factor, 1.
    pub fn new(p: &Path) -> Self {
        let scale = p.filled("scale", &[1], Fill::Constant(1.0));
        Self { info: p.layer(LayerKind::Scale, &scale, None), scale }
    }
}

impl Layer for Scale {
    fn info(&self) -> &Rc<LayerInfo> {
        &self.info
    }

    /// `x` times the factor.
    fn forward_t(&self, x: &Tensor, _train: bool) -> Tensor {
        x * &self.scale
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
    use crate::nn::{SiteKind, Store};

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
        assert_eq!(conv.info().kind.shape("p6", &[2, 5, 7]), [4, 3, 4]);
        assert_eq!((conv.info().kind.macs(35, 12), conv.info().parameters), (2 * 9 * 4 * 12, 76));
    }

    #[test]
    fn shapes_are_those_that_libtorch_computes() {
        let store = Store::seeded(Device::Cpu, 1);
        let x = Tensor::ones([2, 4, 9, 6], (Kind::Float, Device::Cpu));
        let shape = ConvShape::new(4, 6, 3);
        let transposed = TransposeShape {
            c_in: 4,
            c_out: 3,
            kernel: 3,
            stride: 2,
            padding: 1,
            output_padding: 1,
        };
        let fill = || Fill::kaiming_uniform(36, 1.0);
        let layers: [Box<dyn Layer>; 5] = [
            Box::new(Conv2d::new(&(store.root() / "a"), shape.dilation(2), fill(), None)),
            Box::new(Conv2d::new(&(store.root() / "b"), shape.groups(2).stride(2), fill(), None)),
            Box::new(Conv2d::new(&(store.root() / "c"), shape.padding(0), fill(), Some(1.0))),
            Box::new(ConvTranspose2d::new(&(store.root() / "d"), transposed, fill(), Some(1.0))),
            Box::new(BatchNorm::new(&(store.root() / "e"), 4)),
        ];
        let sizes = [vec![6, 9, 6], vec![6, 5, 3], vec![6, 7, 4], vec![3, 18, 12], vec![4, 9, 6]];
        for (layer, expected) in layers.iter().zip(sizes) {
            let y = layer.forward_t(&x, false);
            let info = layer.info();
            assert_eq!(info.kind.shape(&info.name, &[4, 9, 6]), expected, "{}", info.name);
            assert_eq!(y.size()[1..], expected, "{}", info.name);
        }
        // A group sees its half of the channels, forwards; a transposed one sends each cell to kernel x kernel others.
        let macs = |i: usize, cells_out| layers[i].info().kind.macs(54, cells_out);
        assert_eq!([macs(1, 15), macs(3, 216)], [2 * 9 * 6 * 15, 4 * 3 * 9 * 54]);
        let kinds: Vec<SiteKind> = store.sites().iter().map(|s| s.kind).collect();
        assert_eq!(
            kinds,
            [SiteKind::Conv, SiteKind::Conv, SiteKind::Conv, SiteKind::ConvTranspose]
        );
        assert_eq!(store.sites()[3].out_dim(), 1);
    }

    #[test]
    fn in_bf16_products_are_rounded_and_all_else_stays_float() {
        let store = Store::seeded(Device::Cpu, 1);
        let fill = || Fill::kaiming_uniform(18, 1.0);
        let conv = Conv2d::new(&(store.root() / "a"), ConvShape::new(2, 4, 3), fill(), Some(0.5));
        let x = (Tensor::arange(70, (Kind::Float, Device::Cpu)) * 0.37).sin().reshape([1, 2, 5, 7]);
        let expected = conv.forward_t(&x, true);
        store.convolve_in_bf16(true);
        let found = conv.forward_t(&x, true);
        let off = (&found - &expected).abs().max().double_value(&[]);
        let size = expected.abs().max().double_value(&[]);
        assert_eq!(found.kind(), Kind::Float);
        // bfloat16 has 8 significant bits.
        assert!(off > 1e-6 && off < size / 64.0, "{off} {size}");
        found.sum(Kind::Float).backward();
        let grad = store.get("a.weight").unwrap().grad();
        assert_eq!((grad.kind(), grad.size()), (Kind::Float, vec![4, 2, 3, 3]));
        store.convolve_in_bf16(false);
        assert!(conv.forward_t(&x, true).equal(&expected));
    }

    #[test]
    fn a_linear_layer_computes_with_what_its_slots_give() {
        struct Half;
        impl crate::nn::WeightSlot for Half {
            fn forward(&self, weight: &Tensor, _: bool) -> Tensor {
                weight * 0.5
            }
        }
        let store = Store::seeded(Device::Cpu, 1);
        let linear = Linear::new(&(store.root() / "fc"), 3, 2);
        let x = Tensor::from_slice(&[1.0f32, 2.0, 3.0]).reshape([1, 3]);
        let y = linear.forward_t(&x, false);
        assert_eq!(y.size(), [1, 2]);
        store.sites()[0].set_weight_slot(Some(Rc::new(Half)));
        let halved = linear.forward_t(&x, false) * 2.0;
        assert!((halved - y).abs().max().double_value(&[]) < 1e-6);
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
