//! Where a quantizer plugs into a layer.

use std::cell::RefCell;
use std::rc::Rc;

use tch::Tensor;

/// Replaces a layer's weight in the forward pass (fake quantization with its own gradient).
///
/// INQ needs none: it keeps frozen values in the weight itself and masks their update. A layer may be called
/// several times in a forward pass: what is worth computing once is the slot's to keep.
pub trait WeightSlot {
    /// The weight to compute with; same shape as `weight`, differentiable in it.
    fn forward(&self, weight: &Tensor, train: bool) -> Tensor;
}

/// Replaces a layer's input in the forward pass.
pub trait ActivationSlot {
    /// The input to compute with; same shape as `x`, differentiable in it.
    fn forward(&self, x: &Tensor, train: bool) -> Tensor;
}

/// What a quantizable layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SiteKind {
    /// A convolution: weight `[c_out, c_in / groups, k, k]`.
    Conv,
    /// A transposed convolution: weight `[c_in, c_out, k, k]`.
    ConvTranspose,
    /// A linear layer: weight `[c_out, c_in]`.
    Linear,
}

/// A quantizable layer, known by its key.
pub struct Site {
    /// The layer's path, for example `fpn.inner_convs.2`; its weight's key is `{name}.weight`.
    pub name: String,
    /// What the layer is.
    pub kind: SiteKind,
    /// The weight; shares storage with the store's tensor.
    pub weight: Tensor,
    weight_slot: RefCell<Option<Rc<dyn WeightSlot>>>,
    input_slot: RefCell<Option<Rc<dyn ActivationSlot>>>,
}

impl Site {
    /// A layer without quantizers.
    pub fn new(name: String, kind: SiteKind, weight: &Tensor) -> Self {
        Self {
            name,
            kind,
            weight: weight.shallow_clone(),
            weight_slot: RefCell::new(None),
            input_slot: RefCell::new(None),
        }
    }

    /// The key of the weight.
    pub fn weight_name(&self) -> String {
        format!("{}.weight", self.name)
    }

    /// The dimension of the weight that counts the layer's output channels.
    pub fn out_dim(&self) -> usize {
        match self.kind {
            SiteKind::Conv | SiteKind::Linear => 0,
            SiteKind::ConvTranspose => 1,
        }
    }

    /// Number of weights.
    pub fn num_weights(&self) -> usize {
        self.weight.numel()
    }

    /// Plugs a weight quantizer in, or takes it out.
    pub fn set_weight_slot(&self, slot: Option<Rc<dyn WeightSlot>>) {
        *self.weight_slot.borrow_mut() = slot;
    }

    /// Plugs an activation quantizer in front of the layer, or takes it out.
    pub fn set_input_slot(&self, slot: Option<Rc<dyn ActivationSlot>>) {
        *self.input_slot.borrow_mut() = slot;
    }

    /// The weight that the layer computes with: the slot's, or its own.
    pub fn effective_weight(&self, train: bool) -> Tensor {
        match self.weight_slot.borrow().as_ref() {
            Some(slot) => slot.forward(&self.weight, train),
            None => self.weight.shallow_clone(),
        }
    }

    /// The input that the layer computes with: the slot's, or `x`.
    pub fn effective_input(&self, x: &Tensor, train: bool) -> Tensor {
        match self.input_slot.borrow().as_ref() {
            Some(slot) => slot.forward(x, train),
            None => x.shallow_clone(),
        }
    }
}
