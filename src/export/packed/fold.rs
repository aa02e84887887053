//! Batch norms as one multiplier and one offset for each channel.
//!
//! Inference of a batch norm is `y = x m + o` with `m = weight / sqrt(running_var + eps)` and
//! `o = bias - running_mean m`: what an integer engine puts behind a convolution, joined with the scale of its weights.
//! libtorch computes `m` and `o` on the CPU in that way too, so a norm of weight `m`, bias `o`, mean 0 and a variance that
//! makes the root 1 gives the same bits. That is tried for each norm; one that rounds otherwise stays as it is. (On a
//! GPU the order of operations is another, and the last bits may differ.)

use anyhow::{Context, Result};
use tch::{Device, Kind, Tensor, no_grad};

use crate::nn::{NORM_EPS, Store};

/// Parts of a batch norm's state.
const PARTS: [&str; 5] = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"];

/// A batch norm that was folded.
#[derive(Debug)]
pub(super) struct Folded {
    /// Its path, for example `backbone.features.init_block.bn`.
    pub name: String,
    multiplier: Tensor,
    offset: Tensor,
}

impl Folded {
    /// Whether the tensor `name` of the network is part of the norm.
    pub(super) fn holds(&self, name: &str) -> bool {
        let part = name.strip_prefix(&self.name).and_then(|rest| rest.strip_prefix('.'));
        part.is_some_and(|part| PARTS.contains(&part))
    }

    /// What is stored of it.
    pub(super) fn tensors(&self) -> [(String, Tensor); 2] {
        [("multiplier", &self.multiplier), ("offset", &self.offset)]
            .map(|(part, tensor)| (format!("{}.{part}", self.name), tensor.shallow_clone()))
    }
}

/// The state of a batch norm in inference, on the CPU.
struct BatchNormState {
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
}

impl BatchNormState {
    fn of(store: &Store, name: &str) -> Option<Self> {
        let part = |part: &str| {
            let tensor = store.get(&format!("{name}.{part}"))?;
            Some(tensor.detach().to_device(Device::Cpu))
        };
        Some(Self {
            weight: part("weight")?,
            bias: part("bias")?,
            mean: part("running_mean")?,
            var: part("running_var")?,
        })
    }

    /// The norm with that multiplier and offset.
    fn plain(multiplier: &Tensor, offset: &Tensor) -> Self {
        Self {
            weight: multiplier.shallow_clone(),
            bias: offset.shallow_clone(),
            mean: multiplier.zeros_like(),
            var: multiplier.full_like(unit_variance()),
        }
    }

    fn apply(&self, x: &Tensor) -> Tensor {
        let (weight, bias) = (Some(&self.weight), Some(&self.bias));
        x.batch_norm(weight, bias, Some(&self.mean), Some(&self.var), false, 0.0, NORM_EPS, false)
    }

    /// The multiplier and the offset as libtorch rounds them.
    fn fold(&self) -> (Tensor, Tensor) {
        let channels = self.weight.size()[0];
        let zeros = self.bias.zeros_like();
        let centred = Self {
            weight: self.weight.shallow_clone(),
            bias: zeros.shallow_clone(),
            mean: zeros.shallow_clone(),
            var: self.var.shallow_clone(),
        };
        let one = Tensor::ones([1, channels, 1, 1], (Kind::Float, Device::Cpu));
        let multiplier = centred.apply(&one).reshape([channels]);
        let offset = self.apply(&one.zeros_like()).reshape([channels]);
        (multiplier, offset)
    }
}

/// A variance that, with eps added in f32, is 1.
fn unit_variance() -> f64 {
    f64::from(1.0 - NORM_EPS as f32)
}

/// Folds every batch norm of the store that has a folded form of the same bits; also returns how many have none.
pub(super) fn fold_all(store: &Store) -> Result<(Vec<Folded>, usize)> {
    let (mut folded, mut num_not_folded) = (Vec::new(), 0);
    for var in store.vars() {
        let Some(name) = var.name.strip_suffix(".running_var") else { continue };
        let norm = BatchNormState::of(store, name)
            .with_context(|| format!("{name} is not a batch norm"))?;
        match no_grad(|| exact_fold(&norm)) {
            Some((multiplier, offset)) => {
                folded.push(Folded { name: name.to_owned(), multiplier, offset });
            }
            None => num_not_folded += 1,
        }
    }
    Ok((folded, num_not_folded))
}

/// The folded form, if it gives the same bits on inputs of both memory orders.
fn exact_fold(norm: &BatchNormState) -> Option<(Tensor, Tensor)> {
    let (multiplier, offset) = norm.fold();
    let plain = BatchNormState::plain(&multiplier, &offset);
    let channels = norm.weight.size()[0];
    // 35 numbers for each channel, of many magnitudes and both signs
    let numbers = Tensor::arange(channels * 35, (Kind::Float, Device::Cpu));
    let x =
        ((&numbers * 0.7).sin() * (&numbers * 0.11).cos().exp() * 3.0).reshape([1, channels, 5, 7]);
    let channels_last = x.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
    let same = [x, channels_last].iter().all(|x| norm.apply(x).equal(&plain.apply(x)));
    same.then_some((multiplier, offset))
}

/// Takes the multiplier and offset of the norm `name` out of `stored`: the state of a norm that computes the same.
///
/// # Errors
/// If one of the two is missing.
pub(super) fn unfold(
    name: &str,
    stored: &mut Vec<(String, Tensor)>,
) -> Result<[(String, Tensor); 5]> {
    let mut take = |part: &str| {
        let full = format!("{name}.{part}");
        let at = stored.iter().position(|(name, _)| *name == full);
        let at = at.with_context(|| format!("tensor {full} is missing"))?;
        anyhow::Ok(stored.remove(at).1)
    };
    let (multiplier, offset) = (take("multiplier")?, take("offset")?);
    let plain = BatchNormState::plain(&multiplier, &offset);
    let [weight, bias, mean, var, batches] = PARTS.map(|part| format!("{name}.{part}"));
    Ok([
        (weight, plain.weight),
        (bias, plain.bias),
        (mean, plain.mean),
        (var, plain.var),
        (batches, Tensor::from(0_i64)),
    ])
}
