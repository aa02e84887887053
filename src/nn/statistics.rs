//! The running statistics of a network's batch norms: estimated over batches, compared with them, replaced.

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, no_grad};

use super::batch_norm::Sums;
use super::{BatchStatistics, LayerKind, NORM_EPS, Store};

/// How far the running statistics of a batch norm are from those of batches.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchNormShift {
    /// The layer.
    pub layer: String,
    /// The largest `|running mean - batch mean| / sd` of its channels, with `sd` the standard deviation over the batches,
    /// `sqrt(variance + 1e-5)`.
    pub mean_shift_sd: f64,
    /// Of the channel whose variance is furthest from that of the batches (as a factor): running variance over batch
    /// variance, with 1e-5 added to both.
    pub variance_ratio: f64,
}

impl BatchNormShift {
    /// How many times larger or smaller the variance is: 1 where equal.
    pub fn variance_factor(&self) -> f64 {
        self.variance_ratio.max(1.0 / self.variance_ratio)
    }
}

impl BatchStatistics {
    /// Makes the estimates the running statistics of a network. Batch norms that did not run keep theirs.
    ///
    /// # Errors
    /// If the network has no such layer, or of another width.
    pub fn assign(&self, store: &Store) -> Result<()> {
        for (name, estimate) in self.tensors() {
            let mut own = store.get(&name).with_context(|| format!("no tensor {name}"))?;
            ensure!(
                own.size() == estimate.size(),
                "{name} is {:?}, and the statistics are {:?}",
                own.size(),
                estimate.size()
            );
            no_grad(|| own.copy_(&estimate));
        }
        Ok(())
    }

    /// How far the running statistics of a network are from the estimates, by layer.
    ///
    /// # Errors
    /// If the network has no such layer, or a number is not finite: names the layer.
    pub fn shifts(&self, store: &Store) -> Result<Vec<BatchNormShift>> {
        let shift = |(name, sums): (&String, &Sums)| shift_of(name, sums, store);
        no_grad(|| self.layers.iter().map(shift).collect())
    }
}

fn shift_of(name: &str, sums: &Sums, store: &Store) -> Result<BatchNormShift> {
    let running = |leaf: &str| {
        let key = format!("{name}.{leaf}");
        let tensor = store.get(&key).with_context(|| format!("no tensor {key}"))?;
        anyhow::Ok(tensor.to_kind(Kind::Double))
    };
    let (mean, var) = sums.estimate();
    let var = var + NORM_EPS;
    let shift = (running("running_mean")? - mean).abs() / var.sqrt();
    let log_ratio = ((running("running_var")? + NORM_EPS) / var).log();
    let furthest = log_ratio.abs().argmax(0, false);
    let shift = shift.max().double_value(&[]);
    let ratio = log_ratio.index_select(0, &furthest.reshape([1])).exp().double_value(&[0]);
    ensure!(
        shift.is_finite() && ratio.is_finite(),
        "batch norm {name}: its running statistics or those of the batches are not finite (shift {shift} sd, variance ratio \
         {ratio}); look at the weights before it"
    );
    Ok(BatchNormShift { layer: name.to_owned(), mean_shift_sd: shift, variance_ratio: ratio })
}

impl Store {
    /// Whether there are batch norms but those of [`Store::freeze_batch_norms_where`].
    pub fn has_batch_norms(&self) -> bool {
        self.batch_norms().any(|name| !self.batch_norm_control().keeps(&name))
    }

    fn batch_norms(&self) -> impl Iterator<Item = String> {
        let layers = self.layers().into_iter();
        let norms = layers.filter(|l| matches!(l.kind, LayerKind::BatchNorm { .. }));
        norms.map(|l| l.name.clone())
    }

    /// Freezes the batch norms that `is_kept` says, by name, as [`Store::freeze_batch_norm`] does all, and no others. They keep
    /// their running statistics also while those of others are collected.
    pub fn freeze_batch_norms_where(&self, is_kept: impl Fn(&str) -> bool) {
        let kept = self.batch_norms().filter(|name| is_kept(name)).collect();
        self.batch_norm_control().set_frozen_layers(kept);
    }

    /// The statistics of all batches that `work` runs the network over in evaluation mode: batch norms normalise by the batch, frozen
    /// ones too, and leave their running statistics as they are.
    ///
    /// # Errors
    /// What `work` returns.
    pub fn collect_batch_statistics(
        &self,
        work: impl FnOnce() -> Result<()>,
    ) -> Result<BatchStatistics> {
        let control = self.batch_norm_control();
        let collecting = control.begin();
        work()?;
        Ok(collecting.end())
    }
}

#[cfg(test)]
mod tests {
    use rand::Rng;
    use tch::{Device, Tensor};

    use super::*;
    use crate::nn::{BatchNorm, Layer};
    use crate::seed;

    const CHANNELS: i64 = 3;

    fn layer() -> (Store, BatchNorm) {
        let store = Store::new(Device::Cpu);
        let bn = BatchNorm::new(&(store.root() / "bn"), CHANNELS);
        (store, bn)
    }

    /// `[4, 3, 2, 2]`, each channel with a mean and spread of its own.
    fn batch(number: u64) -> Tensor {
        let mut rng = seed::stream(3, &[number]);
        let values: Vec<f32> = (0..4 * 3 * 4)
            .map(|i| {
                let channel = (i / 4 % 3) as f32;
                channel * 2.0 - 1.0 + rng.random_range(-1.0..1.0_f32) * (channel + 0.5)
            })
            .collect();
        Tensor::from_slice(&values).reshape([4, CHANNELS, 2, 2])
    }

    fn collect(store: &Store, bn: &BatchNorm, batches: std::ops::Range<u64>) -> BatchStatistics {
        let run = || {
            batches.for_each(|b| drop(bn.forward_t(&batch(b), false)));
            Ok(())
        };
        store.collect_batch_statistics(run).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        Vec::try_from(tensor.to_kind(Kind::Double).contiguous().reshape([-1])).unwrap()
    }

    #[track_caller]
    fn assert_close(a: &Tensor, b: &Tensor, tolerance: f64) {
        for (x, y) in values(a).into_iter().zip(values(b)) {
            assert!((x - y).abs() < tolerance, "{x} {y}");
        }
    }

    /// Mean and unbiased variance of each channel, by the definition.
    fn by_hand(x: &Tensor) -> (Tensor, Tensor) {
        let flat = x.transpose(0, 1).reshape([CHANNELS, -1]).to_kind(Kind::Double);
        let mean = flat.mean_dim(&[1_i64][..], false, Kind::Double);
        let var = flat.var_dim(&[1_i64][..], true, false);
        (mean, var)
    }

    #[test]
    fn the_estimate_is_the_mean_of_the_batches_own_statistics() {
        let (store, bn) = layer();
        for k in [1, 2, 7] {
            let estimated = collect(&store, &bn, 0..k);
            let each: Vec<_> = (0..k).map(|b| by_hand(&batch(b))).collect();
            let mean: Tensor = each.iter().map(|(mean, _)| mean).sum::<Tensor>() / k as f64;
            let var: Tensor = each.iter().map(|(_, var)| var).sum::<Tensor>() / k as f64;
            let found = estimated.tensors();
            assert_eq!(found[0].0, "bn.running_mean");
            assert_close(&found[0].1, &mean, 1e-6);
            assert_close(&found[1].1, &var, 1e-6);
        }
    }

    #[test]
    fn it_is_what_a_momentum_of_one_over_k_gives() {
        let (store, bn) = layer();
        let weight = Tensor::ones([CHANNELS], (Kind::Float, Device::Cpu));
        let (mean, var) = (weight.zeros_like(), weight.ones_like());
        for k in 1..=9_u64 {
            let _ = batch(k - 1).batch_norm(
                Some(&weight),
                Some(&weight),
                Some(&mean),
                Some(&var),
                true,
                1.0 / k as f64,
                NORM_EPS,
                false,
            );
        }
        let found = collect(&store, &bn, 0..9).tensors();
        assert_close(&found[0].1, &mean, 1e-6);
        assert_close(&found[1].1, &var, 1e-5);
    }

    #[test]
    fn parts_of_the_batches_add_up() {
        let (store, bn) = layer();
        let whole = collect(&store, &bn, 0..8).tensors();
        for cut in 0..=8 {
            let mut parts = collect(&store, &bn, 0..cut);
            parts.merge(&collect(&store, &bn, cut..8));
            for ((name, a), (_, b)) in parts.tensors().into_iter().zip(&whole) {
                assert_close(&a, b, 1e-6);
                assert!(name.starts_with("bn.running_"));
            }
        }
    }

    #[test]
    fn collecting_leaves_the_running_statistics_alone_and_normalises_by_the_batch() {
        let (store, bn) = layer();
        let state = |store: &Store| -> Vec<Vec<f64>> {
            store.vars().iter().map(|v| values(&v.tensor.detach())).collect()
        };
        let before = state(&store);
        for frozen in [false, true] {
            store.freeze_batch_norm(frozen);
            let mut seen = None;
            let work = || {
                seen = Some(bn.forward_t(&batch(1), false));
                Ok(())
            };
            assert_eq!(store.collect_batch_statistics(work).unwrap().num_layers(), 1);
            let (mean, _) = by_hand(&seen.unwrap().detach());
            assert_close(&mean, &mean.zeros_like(), 1e-6);
            assert_eq!(state(&store), before);
        }
        // One that fails ends the collection.
        let failed = store.collect_batch_statistics(|| anyhow::bail!("no batch"));
        assert_eq!(failed.unwrap_err().to_string(), "no batch");
        let y = bn.forward_t(&batch(1), false);
        assert_close(&y.detach(), &batch(1), 1e-4);
    }

    #[test]
    fn shifts_are_in_standard_deviations_and_none_is_left_after_assigning() {
        let (store, bn) = layer();
        let estimated = collect(&store, &bn, 0..5);
        estimated.assign(&store).unwrap();
        let [same] = &estimated.shifts(&store).unwrap()[..] else { panic!("one layer") };
        assert!(
            same.mean_shift_sd < 1e-6 && (same.variance_factor() - 1.0).abs() < 1e-5,
            "{same:?}"
        );
        // The mean of channel 1 moves by 3 sd; the variance of channel 2 becomes a quarter.
        let (mut mean, mut var) =
            (store.get("bn.running_mean").unwrap(), store.get("bn.running_var").unwrap());
        let sd = (var.double_value(&[1]) + NORM_EPS).sqrt();
        let _ = mean.get(1).g_add_scalar_(-3.0 * sd);
        let _ = var.get(2).g_mul_scalar_(0.25);
        let [moved] = &estimated.shifts(&store).unwrap()[..] else { panic!("one layer") };
        assert_eq!(moved.layer, "bn");
        assert!((moved.mean_shift_sd - 3.0).abs() < 1e-4, "{moved:?}");
        assert!((moved.variance_ratio - 0.25).abs() < 1e-3, "{moved:?}");
        assert!((moved.variance_factor() - 4.0).abs() < 0.02, "{moved:?}");
        let _ = mean.fill_(f64::NAN);
        let text = estimated.shifts(&store).unwrap_err().to_string();
        assert!(text.contains("batch norm bn") && text.contains("not finite"), "{text}");
        let _ = var.fill_(1.0);
    }
}
