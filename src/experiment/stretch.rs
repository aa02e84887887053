//! `--epochs`: a stage with another number of epochs, its schedules stretched or shrunk to fit.

use std::collections::BTreeMap;

use super::config::Config;
use crate::quant::FractionSchedule;
use crate::train::{Decay, StageConfig};

/// Gives `stage` `epochs` epochs; the epochs in its schedules move in proportion.
///
/// Where several entries of a schedule fall on one epoch the last one stays. Steps of a learning rate that falls at
/// given updates move in proportion too.
pub(super) fn stage(stage: &mut StageConfig, epochs: u32) {
    let from = stage.epochs;
    if from == 0 || from == epochs {
        stage.epochs = epochs;
        return;
    }
    let moved = |at: u64| at * u64::from(epochs) / u64::from(from);
    let epoch = |at: u32| u32::try_from(moved(u64::from(at))).unwrap_or(u32::MAX);
    match &mut stage.lr.decay {
        Decay::Epochs(table) => {
            *table = table.iter().map(|(&at, &factor)| (epoch(at), factor)).collect();
        }
        Decay::Steps { at, .. } => {
            for step in at.iter_mut() {
                *step = moved(*step);
            }
        }
        Decay::Constant | Decay::Cosine { .. } => {}
    }
    if let Some(weights) = &mut stage.weights
        && weights.freezes()
    {
        weights.schedule = schedule(&weights.schedule, from, epochs);
    }
    if let Some(activations) = &mut stage.activations {
        let start = epoch(activations.quant_start_epoch);
        // The range has to be watched for an epoch before it is used.
        activations.quant_start_epoch = start.max(1).min(activations.quant_start_epoch);
    }
    stage.epochs = epochs;
}

/// Gives every stage of a config `epochs` epochs, see [`stage`].
pub(super) fn all(config: &mut Config, epochs: u32) {
    for each in config.training.full_precision.iter_mut().chain(&mut config.quantize.flow) {
        stage(each, epochs);
    }
}

/// A schedule made for `from` epochs, for `epochs`.
pub(super) fn schedule(schedule: &FractionSchedule, from: u32, epochs: u32) -> FractionSchedule {
    let moved = |at: u32| u64::from(at) * u64::from(epochs) / u64::from(from.max(1));
    let entries: BTreeMap<u32, f64> = schedule
        .entries()
        .map(|(at, fraction)| (u32::try_from(moved(at)).unwrap_or(u32::MAX), fraction))
        .collect();
    FractionSchedule::new(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::WeightQuantConfig;

    fn published() -> StageConfig {
        let weights = WeightQuantConfig { bits: Some(2), ..WeightQuantConfig::default() };
        StageConfig::mqat("fpn", weights)
    }

    #[test]
    fn the_published_stage_shrinks_and_still_ends_fully_quantized() {
        for epochs in [1, 2, 3, 8, 15, 60] {
            let mut config = published();
            stage(&mut config, epochs);
            let mut problems = Vec::new();
            config.check("stage", &mut problems);
            assert_eq!(problems, Vec::<String>::new(), "{epochs} epochs");
            assert_eq!(config.epochs, epochs);
        }
    }

    #[test]
    fn as_many_epochs_as_before_change_nothing() {
        let mut config = published();
        stage(&mut config, 30);
        assert_eq!(config, published());
    }
}
