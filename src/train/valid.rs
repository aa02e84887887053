//! Validation within a run: losses on held-out images, which checkpoint is the best, and when there is no use in going on.

use std::cmp::Ordering;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::checkpoint::Best;
use super::monitor::Monitored;
use super::trainer::{Hooks, Trainer};
use super::{Batches, NamedLosses, Position, ValidRecord, ValidScore};
use crate::nn::Network;
use crate::topology::Task;
use crate::world::World;

impl Monitored {
    /// The score with this measure in the place of the headline, which becomes a detail. Where it was not measured (no
    /// pose was found, for example) the value is not a number, and never the best.
    fn chosen(self, mut score: ValidScore) -> ValidScore {
        let Some(name) = self.detail() else { return score };
        let value = score.detail(name).unwrap_or(f64::NAN);
        score.details.insert(0, (score.name, score.value));
        score.name = name.to_owned();
        score.value = value;
        score.higher_is_better = self == Self::Found;
        score
    }
}

impl ValidScore {
    /// What was measured under that name.
    pub fn detail(&self, name: &str) -> Option<f64> {
        self.details.iter().find(|(n, _)| n == name).map(|(_, value)| *value)
    }

    /// What tells scores of one value apart, more is better: objects found, and the loss.
    fn ties(&self) -> Vec<f64> {
        let found = self.counts.map_or(0.0, |counts| counts.found as f64);
        let loss = self.detail("loss").filter(|loss| loss.is_finite());
        vec![found, loss.map_or(f64::MIN, |loss| -loss)]
    }
}

impl Best {
    fn of(score: &ValidScore, position: &Position) -> Self {
        Self {
            stage: position.stage,
            name: score.name.clone(),
            value: score.value,
            global_step: position.global_step,
            ties: score.ties(),
            num_since: 0,
        }
    }

    /// Whether a score of the same stage and measure is better.
    fn is_below(&self, score: &ValidScore) -> bool {
        let order = score.value.partial_cmp(&self.value);
        let order = if score.higher_is_better { order } else { order.map(Ordering::reverse) };
        match order {
            // A best of an earlier version has nothing to tell equals apart by, and stays.
            Some(Ordering::Equal) => !self.ties.is_empty() && score.ties() > self.ties,
            Some(order) => order.is_gt(),
            None => self.value.is_nan(),
        }
    }
}

impl Trainer {
    /// Validates; whether the weights are the stage's best so far.
    pub(super) fn validate(&mut self, hooks: &mut Hooks<'_>) -> Result<bool> {
        self.reestimate_batch_norms(hooks)?;
        let score =
            self.evaluated(|| tch::no_grad(|| (hooks.validate)(self.net.as_ref(), &self.position)));
        let Some(mut score) = score.context("validating")? else { return Ok(false) };
        if let Some(losses) = self.validation_losses(hooks)? {
            let sum: f64 = losses.iter().map(|(_, loss)| loss).sum();
            score.details.push(("loss".to_owned(), sum));
            let named = losses.iter().map(|(name, loss)| (format!("loss_{name}"), loss));
            score.details.extend(named);
        }
        let score = self.config.monitor.metric.chosen(score);
        let eligible = self.quantization_is_complete();
        let best = eligible && self.is_best(&score);
        if best {
            self.best = Some(Best::of(&score, &self.position));
        } else if let Some(before) = self.best_of_stage().filter(|_| eligible) {
            before.num_since += 1;
        }
        if !score.value.is_finite() && self.config.monitor.metric == Monitored::Headline {
            let ValidScore { name, value, .. } = &score;
            hooks.observer.message(&format!("the validation's {name} is {value}"))?;
        }
        hooks.observer.validation(&ValidRecord {
            global_step: self.position.global_step,
            global_epoch: self.position.global_epoch,
            stage: self.position.stage,
            stage_name: self.stage().label(),
            score,
            averaged: self.ema.is_some(),
            eligible,
            best,
        })?;
        if self.is_out_of_patience() {
            let label = self.stage().label();
            let patience = self.config.monitor.patience.unwrap_or_default();
            hooks.observer.message(&format!(
                "stage {label} ends early: {patience} validations in a row were no better (training.monitor.patience)"
            ))?;
        }
        Ok(best)
    }

    /// Whether the stage has had as many validations without a better one as it may.
    pub(super) fn is_out_of_patience(&self) -> bool {
        let best = self.best.as_ref().filter(|best| best.stage == self.position.stage);
        let since = best.map_or(0, |best| best.num_since);
        self.config.monitor.patience.is_some_and(|patience| since >= patience)
    }

    fn best_of_stage(&mut self) -> Option<&mut Best> {
        let stage = self.position.stage;
        self.best.as_mut().filter(|best| best.stage == stage)
    }

    fn is_best(&self, score: &ValidScore) -> bool {
        let comparable =
            |best: &&Best| best.stage == self.position.stage && best.name == score.name;
        !score.value.is_nan()
            && self.best.as_ref().filter(comparable).is_none_or(|best| best.is_below(score))
    }

    /// The losses on the images of the validation, without augmentation, means over its images; `None` where there are
    /// no batches of it, or they cannot be read as training reads them (which is told).
    fn validation_losses(&self, hooks: &mut Hooks<'_>) -> Result<Option<NamedLosses>> {
        let world = self.world();
        let measured = hooks.source.open_validation().and_then(|batches| {
            let Some(batches) = batches else { return Ok(None) };
            let losses = || batch_losses(self.net.as_ref(), self.task.as_ref(), batches, world);
            self.evaluated(|| tch::no_grad(losses)).map(Some)
        });
        let measured = world.all_succeeded(measured).and_then(|own| match own {
            Some(own) => mean_losses(world.gather(own)?.concat()).map(Some),
            None => Ok(None),
        });
        match measured {
            Ok(losses) => Ok(losses),
            Err(why) => {
                hooks
                    .observer
                    .message(&format!("the validation loss was not measured: {why:#}"))?;
                Ok(None)
            }
        }
    }
}

/// The losses of a batch of the validation.
#[derive(Clone, Serialize, Deserialize)]
struct BatchLoss {
    /// Its number in the split.
    number: usize,
    num_images: f64,
    /// By name, as bits: JSON has no NaN.
    losses: Vec<(String, u64)>,
}

/// The losses of this process's batches. Targets are drawn alike at each call, so that calls can be compared.
fn batch_losses(
    net: &dyn Network,
    task: &dyn Task,
    batches: Batches,
    world: &World,
) -> Result<Vec<BatchLoss>> {
    let preparer = task.preparer();
    let mut all = Vec::new();
    for (i, batch) in batches.enumerate() {
        let number = i * world.size() + world.rank();
        let prepared = preparer.prepare(batch?, number as u64)?;
        let num_images = prepared.batch.indices.len() as f64;
        let losses = task.losses(net, &prepared, false)?;
        let value = |loss: &Tensor| loss.to_kind(Kind::Double).double_value(&[]).to_bits();
        let losses = losses.named().iter().map(|(name, loss)| ((*name).to_owned(), value(loss)));
        all.push(BatchLoss { number, num_images, losses: losses.collect() });
    }
    Ok(all)
}

/// Means over the images of all batches, added up in the order of the split whoever measured them.
fn mean_losses(mut batches: Vec<BatchLoss>) -> Result<NamedLosses> {
    batches.sort_by_key(|batch| batch.number);
    let mut sums: Vec<(String, f64)> = Vec::new();
    let mut num_images = 0.0;
    for batch in batches {
        sums.resize(batch.losses.len(), (String::new(), 0.0));
        for (sum, (name, bits)) in sums.iter_mut().zip(batch.losses) {
            *sum = (name, sum.1 + batch.num_images * f64::from_bits(bits));
        }
        num_images += batch.num_images;
    }
    ensure!(num_images > 0.0, "no image");
    Ok(NamedLosses(sums.into_iter().map(|(name, sum)| (name, sum / num_images)).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::Counts;

    fn score(value: f64, found: usize, loss: f64) -> ValidScore {
        ValidScore {
            name: "ADI-0.1d".to_owned(),
            value,
            higher_is_better: true,
            counts: Some(Counts { correct: 0, objects: 9, found }),
            details: vec![
                ("loss".to_owned(), loss),
                ("median rotation error, deg".to_owned(), 12.5),
            ],
            outcomes: Default::default(),
        }
    }

    #[test]
    fn equal_scores_are_told_apart_by_objects_found_and_then_by_the_loss() {
        let best = Best::of(&score(0.0, 3, 2.0), &Position::default());
        for (value, found, loss, better) in [
            (0.0, 3, 2.0, false),
            (0.0, 3, 1.5, true),
            (0.0, 4, 9.0, true),
            (0.0, 2, 0.1, false),
            (1.0, 0, 9.0, true),
            (0.0, 3, f64::NAN, false),
        ] {
            let is_better = best.is_below(&score(value, found, loss));
            assert_eq!(is_better, better, "{value} {found} {loss}");
        }
        // A checkpoint of an earlier version.
        let old = Best { ties: vec![], ..best };
        assert!(!old.is_below(&score(0.0, 9, 0.0)) && old.is_below(&score(0.1, 0, 9.0)));
    }

    #[test]
    fn another_measure_takes_the_place_of_the_headline() {
        let chosen = Monitored::RotationError.chosen(score(40.0, 3, 2.0));
        assert_eq!((chosen.name.as_str(), chosen.value), ("median rotation error, deg", 12.5));
        assert_eq!(chosen.detail("ADI-0.1d"), Some(40.0));
        let best = Best::of(&chosen, &Position::default());
        assert!(best.is_below(&ValidScore { value: 12.0, ..chosen.clone() }));
        assert!(!best.is_below(&ValidScore { value: 13.0, ..chosen }));
        assert!(Monitored::TranslationError.chosen(score(40.0, 3, 2.0)).value.is_nan());
        assert_eq!(Monitored::Headline.chosen(score(40.0, 3, 2.0)), score(40.0, 3, 2.0));
    }
}
