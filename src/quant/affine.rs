//! Rounding of tensors to multiples of a step, and the gradient of a learnt step.
//!
//! The level of a value `x` is `c * step` with `c` the integer code nearest to `x * (1 / step)`, halves
//! to even, clamped to the codes of the grid; all in f32, so that a level has the same bits wherever it
//! is computed. On the CPU one pass over plain slices does it; libtorch would need one pass for each
//! of about five operators, which over the weights of a whole network costs more than it is worth.

use rayon::prelude::*;
use tch::{Device, Kind, Tensor, no_grad};

use super::levels::Codes;
use super::settings::Clip;
use crate::nn::{are_disjoint, floats, floats_mut, is_dense, same_layout};

/// Values of one task, where rows are not channels.
const ROW: usize = 1 << 15;
/// Values summed in f32 before they go to f64.
const BLOCK: usize = 256;
/// Independent f32 sums of a block.
const LANES: usize = 8;
/// 1.5 * 2^23: adding and subtracting it rounds an f32 below 2^22 to whole numbers, halves to even.
const ROUND: f32 = 12_582_912.0;

/// The codes as f32, for one step.
#[derive(Clone, Copy)]
struct Rounding {
    inverse: f32,
    step: f32,
    lowest: f32,
    highest: f32,
    stride: f32,
    inverse_stride: f32,
    /// A code that values are counted from: 0, or 1 where codes are odd.
    origin: f32,
    /// Values in steps at or beyond these are outside, whatever they round to.
    below: f32,
    above: f32,
}

impl Rounding {
    fn new(step: f32, codes: Codes) -> Self {
        Self::clipping(step, codes, Clip::AfterRounding)
    }

    fn clipping(step: f32, codes: Codes, clip: Clip) -> Self {
        let (below, above) = match clip {
            Clip::BeforeRounding => (codes.lowest as f32, codes.highest as f32),
            Clip::AfterRounding => (f32::NEG_INFINITY, f32::INFINITY),
        };
        Self {
            below,
            above,
            inverse: 1.0 / step,
            step,
            lowest: codes.lowest as f32,
            highest: codes.highest as f32,
            stride: codes.stride as f32,
            inverse_stride: 1.0 / codes.stride as f32,
            origin: (codes.stride - 1) as f32,
        }
    }

    /// `x` in steps, and the code it rounds to, which may be one stride outside the grid.
    #[inline(always)]
    fn code(&self, x: f32) -> (f32, f32) {
        let v = x * self.inverse;
        let limited = clamp(v, self.lowest - self.stride, self.highest + self.stride);
        let t = (limited - self.origin) * self.inverse_stride;
        (v, ((t + ROUND) - ROUND) * self.stride + self.origin)
    }

    #[inline(always)]
    fn level(&self, x: f32) -> f32 {
        clamp(self.code(x).1, self.lowest, self.highest) * self.step
    }

    /// `g` times the derivative by the step, and whether `x` is inside, so that `g` passes.
    #[inline(always)]
    fn gradient(&self, x: f32, g: f32) -> (f32, bool) {
        let (v, code) = self.code(x);
        let clamped = clamp(code, self.lowest, self.highest);
        let inside = (code == clamped) & (v > self.below) & (v < self.above);
        (g * if inside { clamped - v } else { clamped }, inside)
    }
}

/// NaN stays.
#[inline(always)]
fn clamp(v: f32, low: f32, high: f32) -> f32 {
    let v = if v < low { low } else { v };
    if v > high { high } else { v }
}

/// The nearest level of each value, without a gradient; memory layout of `x`.
///
/// # Shapes
/// - `x`: f32; for a step per channel `[channels, ...]`
/// - `step`: `[1]` or `[channels]`, f32, positive
pub fn quantize(x: &Tensor, step: &Tensor, codes: Codes) -> Tensor {
    let mut out = no_grad(|| x.detach().empty_like());
    quantize_into(&mut out, x, step, codes);
    out
}

/// As [`quantize`], into a tensor of the same shape.
pub(crate) fn quantize_into(out: &mut Tensor, x: &Tensor, step: &Tensor, codes: Codes) {
    let num_steps = step.numel();
    if x.numel() == 0 {
        return;
    }
    if !(is_sliceable(x, num_steps) && is_alike(x, out)) {
        no_grad(|| out.copy_(&(rounded(x, step, codes).clamped * by_channel(x, step))));
        return;
    }
    let row = row_length(x, num_steps);
    let steps = steps_of(step);
    // SAFETY: `is_alike` has seen that the two share no memory; until the end of this function only this loop uses them.
    let (from, to) = unsafe { (floats(x), floats_mut(out)) };
    from.par_chunks(row).zip(to.par_chunks_mut(row)).enumerate().for_each(|(i, (from, to))| {
        let rounding = Rounding::new(steps[i.min(num_steps - 1)], codes);
        for (to, &x) in to.iter_mut().zip(from) {
            *to = rounding.level(x);
        }
    });
}

/// Turns `grad`, the gradient of the levels, into that of `x` in place (0 where `x` is clipped), and returns that of each
/// step, `[1]` or `[channels]`, without a factor.
///
/// By the step the derivative of a level is the code minus `x / step`, and the outermost code where `x` is clipped: with
/// [`Clip::BeforeRounding`] this is equation 3 of Esser et al., *Learned Step Size Quantization*, ICLR 2020.
pub(crate) fn gradients(
    x: &Tensor,
    grad: &mut Tensor,
    step: &Tensor,
    codes: Codes,
    clip: Clip,
) -> Tensor {
    let num_steps = step.numel();
    if x.numel() == 0 || !(is_sliceable(x, num_steps) && is_alike(x, grad)) {
        return no_grad(|| {
            let Masks { inside, by_step, .. } = masks(x, step, codes, clip);
            let by_step = (&*grad * by_step).reshape([num_steps as i64, -1]);
            let sums = by_step.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
            let _ = grad.masked_fill_(&inside.eq(0.0), 0.0);
            sums.to_kind(Kind::Float)
        });
    }
    let row = row_length(x, num_steps);
    let steps = steps_of(step);
    // SAFETY: `is_alike` has seen that the two share no memory; until the sums are made only `row_gradient` uses them.
    let (values, grads) = unsafe { (floats(x), floats_mut(grad)) };
    let sums: Vec<f64> = values
        .par_chunks(row)
        .zip(grads.par_chunks_mut(row))
        .enumerate()
        .map(|(i, (x, g))| {
            let step = steps[i.min(num_steps - 1)];
            row_gradient(&Rounding::clipping(step, codes, clip), x, g)
        })
        .collect();
    // rows in their order: the sum does not depend on how they were shared out
    let sums: Vec<f32> = match num_steps {
        1 => vec![sums.into_iter().sum::<f64>() as f32],
        _ => sums.into_iter().map(|sum| sum as f32).collect(),
    };
    Tensor::from_slice(&sums)
}

fn row_gradient(rounding: &Rounding, x: &[f32], g: &mut [f32]) -> f64 {
    let mut total = 0.0f64;
    for (x, g) in x.chunks(BLOCK).zip(g.chunks_mut(BLOCK)) {
        let mut lanes = [0.0f32; LANES];
        let mut outside = [0u32; LANES];
        let whole = x.len() / LANES * LANES;
        for (x, g) in x[..whole].chunks_exact(LANES).zip(g[..whole].chunks_exact(LANES)) {
            for lane in 0..LANES {
                let (by_step, inside) = rounding.gradient(x[lane], g[lane]);
                lanes[lane] += by_step;
                outside[lane] |= u32::from(!inside);
            }
        }
        for (&x, &g) in x[whole..].iter().zip(&g[whole..]) {
            let (by_step, inside) = rounding.gradient(x, g);
            lanes[0] += by_step;
            outside[0] |= u32::from(!inside);
        }
        // few blocks have values outside: the others are not written
        if outside.iter().any(|lane| *lane != 0) {
            for (&x, g) in x.iter().zip(g) {
                *g = if rounding.gradient(x, *g).1 { *g } else { 0.0 };
            }
        }
        total += lanes.into_iter().map(f64::from).sum::<f64>();
    }
    total
}

/// Values by libtorch operators, f32.
struct Rounded {
    /// In steps.
    v: Tensor,
    /// The code, before clamping.
    code: Tensor,
    /// And after it.
    clamped: Tensor,
}

fn rounded(x: &Tensor, step: &Tensor, codes: Codes) -> Rounded {
    let v = x.detach() * by_channel(x, &step.detach()).reciprocal();
    let code = match codes.stride {
        // Adding 0 makes +0 of -0: a level has the same bits wherever it is computed.
        1 => v.round().g_add_scalar_(0.0),
        stride => {
            let (origin, stride) = (f64::from(stride - 1), f64::from(stride));
            let mut code = (&v - origin) / stride;
            let _ = code.round_();
            code * stride + origin
        }
    };
    let clamped = code.clamp(f64::from(codes.lowest), f64::from(codes.highest));
    Rounded { v, code, clamped }
}

/// What [`masks`] finds, each in the shape of the values.
pub(crate) struct Masks {
    /// The nearest levels.
    pub value: Tensor,
    /// 1 where the gradient passes, f32.
    pub inside: Tensor,
    /// The derivative of the level by the step.
    pub by_step: Tensor,
}

/// By libtorch operators: levels and the two derivatives.
pub(crate) fn masks(x: &Tensor, step: &Tensor, codes: Codes, clip: Clip) -> Masks {
    no_grad(|| {
        let Rounded { v, code, clamped } = rounded(x, step, codes);
        let inside = match clip {
            Clip::AfterRounding => code.eq_tensor(&clamped),
            Clip::BeforeRounding => {
                v.gt(f64::from(codes.lowest)).logical_and(&v.lt(f64::from(codes.highest)))
            }
        };
        let by_step = (&clamped - v).where_self(&inside, &clamped);
        let value = clamped * by_channel(x, &step.detach());
        Masks { value, inside: inside.to_kind(Kind::Float), by_step }
    })
}

/// A value per channel in a shape that broadcasts over `x`.
pub(crate) fn by_channel(x: &Tensor, per_channel: &Tensor) -> Tensor {
    let mut shape = vec![1i64; x.dim().max(1)];
    shape[0] = per_channel.numel() as i64;
    per_channel.reshape(shape)
}

fn row_length(x: &Tensor, num_steps: usize) -> usize {
    if num_steps == 1 { ROW } else { x.numel() / num_steps }
}

/// Whether `x` can be read as a slice whose equal parts are its channels.
fn is_sliceable(x: &Tensor, num_steps: usize) -> bool {
    is_dense(x, Kind::Float) && (num_steps == 1 || x.size().first() == Some(&(num_steps as i64)))
}

/// Whether another tensor has the layout of a dense `x`, and memory of its own.
fn is_alike(x: &Tensor, other: &Tensor) -> bool {
    other.kind() == Kind::Float && same_layout(x, other) && are_disjoint(&[x, other])
}

fn steps_of(step: &Tensor) -> Vec<f32> {
    Vec::try_from(step.detach().reshape([-1]).to_kind(Kind::Float).to_device(Device::Cpu))
        .expect("a tensor of one dimension")
}
