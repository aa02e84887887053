//! What batch norms do alike, and sums of their statistics over batches.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};

use tch::{Kind, Tensor, no_grad};

/// What all batch norms of a store do alike.
#[derive(Default)]
pub(super) struct BatchNormControl {
    frozen: Cell<bool>,
    /// Layers that are frozen whatever the others do.
    frozen_layers: RefCell<BTreeSet<String>>,
    collected: RefCell<Option<BatchStatistics>>,
}

impl BatchNormControl {
    pub fn set_frozen(&self, frozen: bool) {
        self.frozen.set(frozen);
    }

    pub fn set_frozen_layers(&self, layers: BTreeSet<String>) {
        *self.frozen_layers.borrow_mut() = layers;
    }

    /// Whether the layer `name` keeps its running statistics in training.
    pub fn is_frozen(&self, name: &str) -> bool {
        self.frozen.get() || self.keeps(name)
    }

    /// Whether the layer `name` keeps its running statistics also where others are estimated anew.
    pub fn keeps(&self, name: &str) -> bool {
        self.frozen_layers.borrow().contains(name)
    }

    /// Whether the layer `name` normalises by the batch and leaves its running statistics as they are.
    pub fn is_collecting(&self, name: &str) -> bool {
        self.collected.borrow().is_some() && !self.keeps(name)
    }

    /// Takes the statistics of a call of the layer `name`.
    pub fn collect(&self, name: &str, mean: &Tensor, var: &Tensor) {
        if let Some(collected) = self.collected.borrow_mut().as_mut() {
            collected
                .layers
                .entry(name.to_owned())
                .or_insert_with(|| Sums::zero(mean))
                .add(mean, var);
        }
    }

    /// Ends the collection when dropped, whatever became of it.
    pub fn begin(&self) -> Collecting<'_> {
        *self.collected.borrow_mut() = Some(BatchStatistics::default());
        Collecting(self)
    }
}

/// A collection that goes on.
pub(super) struct Collecting<'a>(&'a BatchNormControl);

impl Collecting<'_> {
    /// What was collected.
    pub fn end(self) -> BatchStatistics {
        self.0.collected.borrow_mut().take().unwrap_or_default()
    }
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        *self.0.collected.borrow_mut() = None;
    }
}

/// Sums over the calls of one batch norm: `count` means and variances `[c]`, f64.
#[derive(Debug)]
pub(super) struct Sums {
    count: u64,
    mean: Tensor,
    var: Tensor,
}

impl Sums {
    fn zero(like: &Tensor) -> Self {
        let zero = || like.zeros_like().to_kind(Kind::Double);
        Self { count: 0, mean: zero(), var: zero() }
    }

    fn add(&mut self, mean: &Tensor, var: &Tensor) {
        self.count += 1;
        let _ = self.mean.g_add_(&mean.to_kind(Kind::Double));
        let _ = self.var.g_add_(&var.to_kind(Kind::Double));
    }

    fn merge(&mut self, other: &Self) {
        self.count += other.count;
        let _ = self.mean.g_add_(&other.mean.to_device(self.mean.device()));
        let _ = self.var.g_add_(&other.var.to_device(self.var.device()));
    }

    /// Mean and variance, f64.
    pub fn estimate(&self) -> (Tensor, Tensor) {
        let count = self.count as f64;
        (&self.mean / count, &self.var / count)
    }
}

/// Statistics of the batch norms of a network over batches, by layer.
///
/// The estimate of a channel is the cumulative average over the batches: the mean of their means, and the mean of their
/// unbiased variances, which is what a momentum of `1 / k` at the k-th batch gives. Only sums are kept (of means, of variances,
/// and their number), so that the statistics of several processes, or of parts of the batches, add up: [`BatchStatistics::merge`].
///
/// # Source
/// Nagel et al., *Overcoming Oscillations in Quantization-Aware Training*, ICML 2022, the section on re-estimation of batch
/// norms.
#[derive(Debug, Default)]
pub struct BatchStatistics {
    pub(super) layers: BTreeMap<String, Sums>,
}

impl BatchStatistics {
    /// Batch norms that ran.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// What adds up over parts of the batches, in the order of the layers: sums, f64, which share their storage, and how many
    /// calls of each layer they are of.
    pub fn sums(&mut self) -> (Vec<Tensor>, Vec<&mut u64>) {
        let mut sums = Vec::with_capacity(2 * self.layers.len());
        let mut counts = Vec::with_capacity(self.layers.len());
        for layer in self.layers.values_mut() {
            sums.extend([layer.mean.shallow_clone(), layer.var.shallow_clone()]);
            counts.push(&mut layer.count);
        }
        (sums, counts)
    }

    /// Adds statistics of other batches.
    pub fn merge(&mut self, other: &Self) {
        no_grad(|| {
            for (name, sums) in &other.layers {
                let own = self.layers.entry(name.clone());
                own.or_insert_with(|| Sums::zero(&sums.mean)).merge(sums);
            }
        });
    }

    /// The estimates as running statistics: keys with tensors `[c]`, f32.
    pub fn tensors(&self) -> Vec<(String, Tensor)> {
        let mut all = Vec::with_capacity(2 * self.layers.len());
        for (name, sums) in &self.layers {
            let (mean, var) = sums.estimate();
            all.push((format!("{name}.running_mean"), mean.to_kind(Kind::Float)));
            all.push((format!("{name}.running_var"), var.to_kind(Kind::Float)));
        }
        all
    }
}
