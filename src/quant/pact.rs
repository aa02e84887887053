//! Parameterized clipping activation: the largest level of a layer's input is learnt.
//!
//! Source: Choi et al., *PACT*, 2018 (arXiv 1805.06085), section 3.
//! Deviation: where inputs have both signs (after leaky ReLUs, or the image itself) they are clipped to
//! `[-alpha, alpha]`, since clipping them to `[0, alpha]` would cut half of them off.

use tch::{Kind, Tensor, no_grad};

use super::affine;
use super::levels::Codes;

/// Updates do not take a clipping level below this.
pub const MIN_ALPHA: f64 = 1e-6;

/// Clips to the outermost levels, the highest of which is `alpha`, and rounds; differentiable in `x`
/// (1 inside, 0 outside) and `alpha` (1 at or above it, -1 at or below the mirrored one, 0 inside).
///
/// # Shapes
/// - `x`: any shape, f32
/// - `alpha`: `[1]`, f32, positive
pub fn clip_and_round(x: &Tensor, alpha: &Tensor, codes: Codes) -> Tensor {
    let value = no_grad(|| {
        let step = alpha.detach() / f64::from(codes.highest);
        affine::quantize(x, &step, codes)
    });
    if !(x.requires_grad() || alpha.requires_grad()) {
        return value;
    }
    let (outside, by_alpha) = no_grad(|| {
        let (x, limit) = (x.detach(), alpha.detach());
        let above = x.ge_tensor(&limit);
        let below = match codes.lowest {
            0 => x.lt(0.0),
            _ => x.le_tensor(&-&limit),
        };
        let down = if codes.lowest == 0 { 0.0 } else { 1.0 };
        let by_alpha = above.to_kind(Kind::Float) - below.to_kind(Kind::Float) * down;
        (above.logical_or(&below), by_alpha)
    });
    // both add exactly 0
    let passed = x.masked_fill(&outside, 0.0);
    value + (&passed - passed.detach()) + (alpha - alpha.detach()) * by_alpha
}
