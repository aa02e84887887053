//! DoReFa-Net: levels evenly spaced over the range of tanh(w).
//!
//! Source: Zhou et al., *DoReFa-Net*, 2016 (arXiv 1606.06160), section 2.3.
//! Deviation: unless `unit_scale` is set, the levels are multiplied by the scale that fits the weights
//! best at the begin, so that quantizing a trained layer hardly changes its function; and the maximum of
//! |tanh| counts as a constant in the gradient.

use tch::{Kind, Tensor, no_grad};

use super::affine;
use super::levels::Codes;
use super::surrogate::straight_through;

/// Below this the largest |tanh(w)| counts as this: a layer of zeros has levels, too.
const MIN_LARGEST: f64 = 1e-12;

/// `tanh(w) / max|tanh(w)|`, the maximum over the tensor or over each channel; and what the derivative by
/// `w` is made of: `1 / max|tanh(w)|` in a shape that broadcasts.
fn unit(weight: &Tensor, per_channel: bool) -> (Tensor, Tensor) {
    let tanh = weight.detach().tanh();
    let largest = match per_channel {
        true => tanh.abs().reshape([weight.size()[0], -1]).amax([1i64].as_slice(), false),
        false => tanh.abs().max().reshape([1]),
    };
    let inverse = affine::by_channel(weight, &largest.clamp_min(MIN_LARGEST).reciprocal());
    (tanh, inverse)
}

/// The integer codes of a weight, f32.
pub(crate) fn codes(weight: &Tensor, per_channel: bool, codes: Codes) -> Tensor {
    no_grad(|| {
        let (tanh, inverse) = unit(weight, per_channel);
        // 1 is the outermost level
        let step = Tensor::from_slice(&[1.0 / codes.highest as f32]).to_device(weight.device());
        let unit_levels = affine::quantize(&(tanh * inverse), &step, codes);
        (unit_levels * f64::from(codes.highest)).round()
    })
}

/// The quantized weight, differentiable in `weight`: straight through the rounding.
///
/// # Shapes
/// - `weight`: `[channels, ...]`, f32
/// - `step`: `[1]` or `[channels]`; the outermost level is the highest code times the step
pub(crate) fn fake_quantize(weight: &Tensor, step: &Tensor, grid: Codes) -> Tensor {
    let per_channel = step.numel() > 1;
    let (value, slope) = no_grad(|| {
        let step = affine::by_channel(weight, step);
        let value = codes(weight, per_channel, grid) * &step;
        let (tanh, inverse) = unit(weight, per_channel);
        let slope = (tanh.square() * -1.0 + 1.0) * inverse * (step * f64::from(grid.highest));
        (value, slope)
    });
    straight_through(&value, weight, &slope)
}

/// The steps that bring the levels closest to the weight in squares: `<w, c> / <c, c>`, 0 where the weight
/// is 0 throughout.
pub(crate) fn fitted_steps(weight: &Tensor, per_channel: bool, grid: Codes) -> Vec<f32> {
    no_grad(|| {
        let rows = if per_channel { weight.size()[0] } else { 1 };
        let sum = |x: Tensor| {
            x.reshape([rows, -1]).sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
        };
        let c = codes(weight, per_channel, grid);
        let steps = sum(weight.detach() * &c) / sum(c.square()).clamp_min(1.0);
        Vec::try_from(steps.to_kind(Kind::Float).to_device(tch::Device::Cpu))
            .expect("a tensor of one dimension")
    })
}
