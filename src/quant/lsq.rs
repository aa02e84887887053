//! Learnt step size quantization: the distance of the levels is a parameter of the network.
//!
//! Source: Esser et al., *Learned Step Size Quantization*, ICLR 2020 (arXiv 1902.08153).

use anyhow::{Context, Result};
use tch::{Kind, Tensor, no_grad};

use super::affine;
use super::config::StepInit;
use super::levels::Codes;
use super::scale;

/// Updates do not take a learnt step below this: the levels would fall together, and a step of 0 or less
/// has no levels at all.
pub const MIN_STEP: f64 = 1e-8;

/// The factor of a step's gradient, `1 / sqrt(N Qp)`: `num_values` values share the step, `Qp` is the
/// largest code (section 2.2).
pub fn gradient_factor(num_values: usize, codes: Codes) -> f64 {
    1.0 / (num_values as f64 * f64::from(codes.highest)).sqrt()
}

/// The nearest multiple of the step that `codes` has, differentiable in `x` and `step`.
///
/// The gradient of `x` passes where `x` rounds to one of the codes; that of the step is the code minus
/// `x / step` there and the outermost code elsewhere, times `factor`.
///
/// # Shapes
/// - `x`: f32, `[channels, ...]` where there is a step for each channel
/// - `step`: `[1]` or `[channels]`, f32, positive
///
/// # Errors
/// If the shapes do not fit.
pub fn fake_quantize(x: &Tensor, step: &Tensor, codes: Codes, factor: f64) -> Result<Tensor> {
    let Codes { lowest, highest, stride } = codes;
    if stride != 1 {
        return Ok(composed(x, step, codes, factor));
    }
    let zero_point = no_grad(|| step.detach().zeros_like());
    let (low, high) = (i64::from(lowest), i64::from(highest));
    let rounded = if step.numel() == 1 {
        x.f_internal_fake_quantize_learnable_per_tensor_affine(step, &zero_point, low, high, factor)
    } else {
        x.f_internal_fake_quantize_learnable_per_channel_affine(
            step,
            &zero_point,
            0,
            low,
            high,
            factor,
        )
    };
    rounded.context("rounding to a learnt step")
}

/// As [`fake_quantize`], for any codes.
fn composed(x: &Tensor, step: &Tensor, codes: Codes, factor: f64) -> Tensor {
    let value = affine::quantize(x, step, codes);
    if !(x.requires_grad() || step.requires_grad()) {
        return value;
    }
    let (inside, by_step) = affine::masks(x, step, codes);
    let step = affine::by_channel(x, &(step * factor));
    // both add exactly 0
    value + (x - x.detach()) * inside + (&step - step.detach()) * by_step
}

/// Where the steps of a weight begin: one, or one per output channel.
///
/// `mean` is `2 mean|w| / sqrt(Qp)` (section 2.1). A channel of zeros takes the mean of the other
/// channels' steps; a tensor of zeros takes 1 where 0 is a level and 1e-6 where it is not.
///
/// # Errors
/// If the tensor is empty or holds NaN or infinity; names it.
pub(crate) fn initial_steps(
    name: &str,
    weight: &Tensor,
    init: StepInit,
    codes: Codes,
    per_channel: bool,
) -> Result<Vec<f32>> {
    let step = |values: &[f32]| {
        let step = match init {
            StepInit::Mean => mean_step(scale::mean_magnitude(values), codes),
            StepInit::Mse => scale::best_step(values, codes).unwrap_or(0.0),
        };
        if f64::from(step) < MIN_STEP { 0.0 } else { step }
    };
    let steps = scale::by_channel(name, weight, per_channel, step)?;
    let known: Vec<f32> = steps.iter().copied().filter(|&step| step > 0.0).collect();
    let of_zeros = match known.len() {
        0 if codes.stride == 1 => 1.0,
        0 => 1e-6,
        n => known.iter().sum::<f32>() / n as f32,
    };
    Ok(steps.into_iter().map(|step| if step > 0.0 { step } else { of_zeros }).collect())
}

/// `2 mean|x| / sqrt(Qp)`.
pub(crate) fn mean_step(mean_magnitude: f64, codes: Codes) -> f32 {
    (2.0 * mean_magnitude / f64::from(codes.highest).sqrt()) as f32
}

/// The gradient of the step, `[1]` or `[channels]`, added to what `step` has collected.
pub(crate) fn add_gradient(step: &Tensor, gradient: &Tensor) {
    let gradient = gradient.to_device(step.device()).reshape(step.size());
    (step * gradient).sum(Kind::Float).backward();
}
