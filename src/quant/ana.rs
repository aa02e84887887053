//! Additive noise annealing: a staircase averaged over uniform noise, whose width falls to 0.
//!
//! Source: Spallanzani et al., *Additive Noise Annealing and Approximation Properties of Quantized
//! Neural Networks*, 2019 (arXiv 1905.10452). A step of the staircase, averaged over noise uniform in
//! `[-w, w]`, is the ramp `clamp((x - t) / 2w + 1/2, 0, 1)`; the gradient is that of a ramp with a width
//! of its own.

use tch::{Kind, Tensor, no_grad};

use super::affine;
use super::levels::Codes;
use super::surrogate::straight_through;

/// Half-widths of the noise, in distances of neighbouring levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Widths {
    /// Of the values; 0 is the staircase itself.
    pub forward: f64,
    /// Of the gradient; 0 passes none.
    pub backward: f64,
}

/// The staircase with levels `code * step`, averaged over the noise; differentiable in `x`.
///
/// # Shapes
/// - `x`: f32, `[channels, ...]` where there is a step for each channel
/// - `step`: `[1]` or `[channels]`, f32, positive
pub fn staircase(x: &Tensor, step: &Tensor, codes: Codes, widths: Widths) -> Tensor {
    let (value, slope) = no_grad(|| {
        let x = x.detach();
        let distance = affine::by_channel(&x, step) * f64::from(codes.stride);
        let position = &x / &distance;
        let value = match widths.forward {
            0.0 => affine::quantize(&x, step, codes),
            width => ramps(&position, codes, width) * distance,
        };
        (value, slope(&position, codes, widths.backward))
    });
    straight_through(&value, x, &slope)
}

/// The thresholds are `first + i` for `i` in `0..count`, in distances of levels.
fn thresholds(codes: Codes) -> (f64, f64) {
    let lowest = f64::from(codes.lowest) / f64::from(codes.stride);
    (lowest + 0.5, f64::from(codes.count() - 1))
}

/// How many thresholds lie below `position - width` and `position + width`: f32 tensors.
fn reached(position: &Tensor, codes: Codes, width: f64) -> (Tensor, Tensor) {
    let (first, count) = thresholds(codes);
    let below = |offset: f64| (position + (offset - first)).ceil().clamp(0.0, count);
    (below(-width), below(width))
}

/// The averaged staircase in distances of levels: `a` steps are passed, those from `a` to `b` are
/// climbed in part, and the thresholds of these add up as an arithmetic series.
fn ramps(position: &Tensor, codes: Codes, width: f64) -> Tensor {
    let (first, _) = thresholds(codes);
    let (a, b) = reached(position, codes, width);
    let climbed = &b - &a;
    let mean_threshold = (&a + &b - 1.0) * 0.5 + first;
    let share = (position - mean_threshold) / (2.0 * width) + 0.5;
    a + climbed * share + (first - 0.5)
}

/// The derivative of the staircase averaged over noise of that width.
fn slope(position: &Tensor, codes: Codes, width: f64) -> Tensor {
    if width == 0.0 {
        return position.zeros_like();
    }
    let (a, b) = reached(position, codes, width);
    ((b - a) / (2.0 * width)).to_kind(Kind::Float)
}
