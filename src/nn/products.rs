//! How products of convolutions are rounded.

use std::cell::Cell;
use std::rc::Rc;

use tch::{Kind, Tensor};

/// Whether the convolutions of a store take their inputs, weights and biases rounded to bfloat16; shared by its layers. All
/// else stays float32: stored weights, results of convolutions, norms, quantizers, losses.
#[derive(Debug, Clone, Default)]
pub(super) struct Products(Rc<Cell<bool>>);

impl Products {
    pub fn set_bf16(&self, bf16: bool) {
        self.0.set(bf16);
    }

    /// The result of `convolve`, f32, for an input, a weight and a bias that are f32.
    pub fn of(
        &self,
        x: &Tensor,
        weight: &Tensor,
        bias: Option<&Tensor>,
        convolve: impl Fn(&Tensor, &Tensor, Option<&Tensor>) -> Tensor,
    ) -> Tensor {
        if !self.0.get() {
            return convolve(x, weight, bias);
        }
        let low = |tensor: &Tensor| tensor.to_kind(Kind::BFloat16);
        convolve(&low(x), &low(weight), bias.map(low).as_ref()).to_kind(Kind::Float)
    }
}
