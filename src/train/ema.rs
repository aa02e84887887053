//! A moving average of the weights, by which a run is evaluated.

use anyhow::{Context, Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use crate::libtorch;
use crate::nn::Store;
use crate::schema::below_one;

/// Exponential moving average of weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EmaConfig {
    /// Fraction of the average that a step keeps: 0.999 averages over about 1,000 steps.
    #[schemars(range(min = 0), transform = below_one)]
    pub decay: f64,
    /// Epoch of each stage from which weights are averaged; before it the live weights are evaluated.
    pub from: u32,
}

impl Default for EmaConfig {
    fn default() -> Self {
        Self { decay: 0.999, from: 0 }
    }
}

impl EmaConfig {
    /// Pushes a line for a begin that no stage reaches; `epochs` is that of the longest stage.
    pub fn check_together(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        if self.from >= epochs {
            problems.push(format!(
                "{at}.from: epoch {} is never reached, no stage has more than {epochs} epochs",
                self.from
            ));
        }
    }
}

/// The average of every tensor of a network: parameters and the statistics of batch norms alike; counters are copied.
///
/// It begins as a copy. Frozen weights are copied bit for bit, so that quantized ones stay on their levels; weights
/// that a slot quantizes in the forward pass are averaged as floats and go through the slot, with the live scales,
/// when the average is evaluated.
pub(super) struct Ema {
    decay: f64,
    vars: Vec<Averaged>,
}

struct Averaged {
    name: String,
    live: Tensor,
    average: Tensor,
    /// Every entry is frozen: there is nothing to average.
    frozen: bool,
}

impl Ema {
    /// The average of a store's tensors as they are now.
    pub fn begin(config: &EmaConfig, store: &Store) -> Self {
        let copy = |live: &Tensor| no_grad(|| live.detach().copy());
        let vars = store.vars().into_iter().map(|v| Averaged {
            average: copy(&v.tensor),
            name: v.name,
            live: v.tensor,
            frozen: false,
        });
        Self { decay: config.decay, vars: vars.collect() }
    }

    /// Takes in the weights after an update.
    pub fn update(&mut self) {
        let weight = 1.0 - self.decay;
        let vars = self.vars.iter().filter(|v| !v.frozen);
        let (averaged, copied): (Vec<&Averaged>, Vec<&Averaged>) =
            vars.partition(|var| is_averaged(var.live.kind()));
        no_grad(|| {
            // Equal values stay as they are, bit for bit.
            in_lists(&averaged, |average, live| libtorch::lerp(average, live, weight));
            in_lists(&copied, libtorch::copy);
        });
    }

    /// Takes frozen entries over from the live weights; `masks` as of the optimizer, 1 where trainable.
    ///
    /// # Errors
    /// If a name is none of the network's.
    pub fn freeze(&mut self, masks: &[(String, Tensor)]) -> Result<()> {
        for var in &mut self.vars {
            var.frozen = false;
        }
        for (name, mask) in masks {
            let var = self.vars.iter_mut().find(|v| v.name == *name);
            let var = var.with_context(|| format!("no tensor {name}"))?;
            no_grad(|| {
                let frozen = mask.eq(0.0);
                let merged = var.live.detach().where_self(&frozen, &var.average);
                var.average.copy_(&merged);
                var.frozen = bool::try_from(frozen.all()).unwrap_or(false);
            });
        }
        Ok(())
    }

    /// Sets averages by name.
    ///
    /// # Errors
    /// If a name is none of the network's.
    pub fn set(&mut self, values: &[(String, Tensor)]) -> Result<()> {
        for (name, value) in values {
            let var = self.vars.iter_mut().find(|v| v.name == *name);
            let var = var.with_context(|| format!("no tensor {name}"))?;
            no_grad(|| var.average.copy_(value));
        }
        Ok(())
    }

    /// Does something while the network holds the average, and gives it its own weights back.
    pub fn evaluate<T>(&self, task: impl FnOnce() -> T) -> T {
        let put = |var: &Averaged, value: &Tensor| {
            no_grad(|| var.live.shallow_clone().copy_(value));
        };
        let kept: Vec<Tensor> =
            self.vars.iter().map(|v| no_grad(|| v.live.detach().copy())).collect();
        for var in &self.vars {
            put(var, &var.average);
        }
        let result = task();
        for (var, own) in self.vars.iter().zip(&kept) {
            put(var, own);
        }
        result
    }

    /// What a checkpoint holds, by key.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        self.vars.iter().map(|v| (v.name.clone(), v.average.shallow_clone())).collect()
    }

    /// Takes over what [`Ema::state`] gave.
    ///
    /// # Errors
    /// If a tensor is missing or has another shape or kind.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        for var in &mut self.vars {
            let saved = state.iter().find(|(name, _)| *name == var.name);
            let (name, saved) =
                saved.with_context(|| format!("the average of {} is missing", var.name))?;
            ensure!(
                saved.size() == var.average.size() && saved.kind() == var.average.kind(),
                "the average of {name} is {:?} {:?}, expected {:?} {:?}",
                saved.kind(),
                saved.size(),
                var.average.kind(),
                var.average.size()
            );
            no_grad(|| var.average.copy_(saved));
        }
        Ok(())
    }
}

fn is_averaged(kind: Kind) -> bool {
    matches!(kind, Kind::Float | Kind::Double | Kind::Half | Kind::BFloat16)
}

/// Does something with the averages and the live tensors in one call.
fn in_lists(vars: &[&Averaged], work: impl Fn(&[Tensor], &[Tensor]) -> Result<(), tch::TchError>) {
    if vars.is_empty() {
        return;
    }
    let average: Vec<Tensor> = vars.iter().map(|var| var.average.shallow_clone()).collect();
    let live: Vec<Tensor> = vars.iter().map(|var| var.live.detach()).collect();
    work(&average, &live).unwrap();
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn network() -> (Store, Tensor, Tensor, Tensor) {
        let store = Store::new(Device::Cpu);
        let path = store.root() / "conv";
        let weight = path.parameter("weight", Tensor::from_slice(&[1.0f32, 2.0, 4.0]));
        let mean = path.buffer("mean", Tensor::from_slice(&[0.0f32]));
        let count = path.buffer("count", Tensor::from(3i64));
        (store, weight, mean, count)
    }

    fn set(tensor: &Tensor, values: &[f32]) {
        no_grad(|| tensor.shallow_clone().copy_(&Tensor::from_slice(values)));
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(&tensor.detach()).unwrap()
    }

    #[test]
    fn the_average_follows_by_its_decay_and_counters_are_copied() {
        let (store, weight, mean, count) = network();
        let mut ema = Ema::begin(&EmaConfig { decay: 0.75, from: 0 }, &store);
        set(&weight, &[5.0, 2.0, 0.0]);
        set(&mean, &[8.0]);
        let _ = count.shallow_clone().fill_(4);
        ema.update();
        set(&weight, &[2.0, 2.0, 3.0]);
        ema.update();
        let seen =
            ema.evaluate(|| (values(&weight), values(&mean), i64::try_from(&count).unwrap()));
        // 1, 1 + (5 - 1)/4, 2 + (2 - 2)/4; 4, 4 + (0 - 4)/4, 3 + (3 - 3)/4; 0, 2, 2 + 6/4
        assert_eq!(seen, (vec![2.0, 2.0, 3.0], vec![3.5], 4));
        assert_eq!((values(&weight), values(&mean)), (vec![2.0, 2.0, 3.0], vec![8.0]));
    }

    #[test]
    fn frozen_entries_are_the_live_ones_exactly() {
        let (store, weight, ..) = network();
        let mut ema = Ema::begin(&EmaConfig { decay: 0.9, from: 0 }, &store);
        set(&weight, &[0.1, -0.3, 0.7]);
        ema.freeze(&[("conv.weight".to_owned(), Tensor::from_slice(&[0.0f32, 1.0, 0.0]))]).unwrap();
        for _ in 0..5 {
            ema.update();
        }
        let average = values(&ema.state()[0].1);
        assert_eq!((average[0], average[2]), (0.1, 0.7));
        assert!(average[1] != -0.3 && average[1] < 2.0);
        ema.freeze(&[("conv.weight".to_owned(), Tensor::from_slice(&[0.0f32; 3]))]).unwrap();
        ema.update();
        assert_eq!(values(&ema.state()[0].1), [0.1, -0.3, 0.7]);
        assert!(ema.freeze(&[("other".to_owned(), Tensor::from(0.0f32))]).is_err());
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_by_name() {
        let (store, ..) = network();
        let mut ema = Ema::begin(&EmaConfig::default(), &store);
        let mut state = ema.state();
        state[0].1 = Tensor::from_slice(&[1.0f32]);
        let text = ema.load_state(&state).unwrap_err().to_string();
        assert!(text.contains("conv.weight") && text.contains("[1]"), "{text}");
        let text = ema.load_state(&state[1..]).unwrap_err().to_string();
        assert!(text.contains("the average of conv.weight is missing"), "{text}");
    }
}
