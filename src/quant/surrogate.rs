//! Values with a gradient that is not theirs: straight-through estimators.

use tch::Tensor;

/// `value`, bit for bit, with the gradient `weight` in `x` (broadcast over it).
///
/// `value` and `weight` carry no gradient.
pub(crate) fn straight_through(value: &Tensor, x: &Tensor, weight: &Tensor) -> Tensor {
    if !x.requires_grad() {
        return value.shallow_clone();
    }
    let passed = x * weight;
    value + (&passed - passed.detach())
}
