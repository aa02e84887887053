//! `--epochs`: a stage with another number of epochs, its schedules stretched or shrunk to fit.

use std::collections::BTreeMap;

use crate::quant::{
    ActivationMethod, ActivationQuantConfig, FractionSchedule, WeightMethod, WeightQuantConfig,
};
use crate::train::{Decay, StageConfig};

/// Gives `stage` `epochs` epochs; the epochs in its schedules move in proportion.
///
/// Where several entries of a schedule fall on one epoch the last one stays. Steps of a learning rate that falls at
/// given updates move in proportion too.
pub(crate) fn stage(stage: &mut StageConfig, epochs: u32) {
    let from = stage.epochs;
    if from == 0 || from == epochs {
        stage.epochs = epochs;
        return;
    }
    match &mut stage.lr.decay {
        Decay::Epochs(table) => {
            *table = table.iter().map(|(&at, &factor)| (moved(at, from, epochs), factor)).collect();
        }
        Decay::Steps { at, .. } => {
            for step in at.iter_mut() {
                *step = *step * u64::from(epochs) / u64::from(from);
            }
        }
        Decay::Constant | Decay::Cosine { .. } => {}
    }
    if let Some(config) = &mut stage.weights {
        weights(config, from, epochs);
    }
    if let Some(config) = &mut stage.activations {
        activations(config, from, epochs);
    }
    stage.epochs = epochs;
}

/// Moves what settings made for `from` epochs say of epochs, for `epochs`.
pub(crate) fn weights(config: &mut WeightQuantConfig, from: u32, epochs: u32) {
    match config.method {
        WeightMethod::Inq => {
            let entries: BTreeMap<u32, f64> = (config.schedule.entries())
                .map(|(at, fraction)| (moved(at, from, epochs), fraction))
                .collect();
            config.schedule = FractionSchedule::new(entries);
        }
        WeightMethod::Ana => config.ana.end_epoch = moved(config.ana.end_epoch, from, epochs),
        WeightMethod::Lsq | WeightMethod::Uniform | WeightMethod::Dorefa => {}
    }
}

/// As [`weights`], for inputs.
pub(crate) fn activations(config: &mut ActivationQuantConfig, from: u32, epochs: u32) {
    let start = moved(config.quant_start_epoch, from, epochs);
    // The range is best watched for an epoch before it is used; a stage of one epoch watches it as it begins.
    let earliest = u32::from(epochs > 1);
    config.quant_start_epoch = start.max(earliest).min(config.quant_start_epoch);
    if config.method == ActivationMethod::Ana {
        config.ana.end_epoch = moved(config.ana.end_epoch, from, epochs);
    }
}

fn moved(epoch: u32, from: u32, epochs: u32) -> u32 {
    let moved = u64::from(epoch) * u64::from(epochs) / u64::from(from.max(1));
    u32::try_from(moved).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::check_ranges;

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
            check_ranges(&config, "stage", &mut problems);
            config.check_together("stage", &mut problems);
            assert_eq!(problems, Vec::<String>::new(), "{epochs} epochs");
            assert_eq!(config.epochs, epochs);
        }
    }

    #[test]
    fn a_stage_with_quantized_inputs_or_noise_shrinks_to_any_length() {
        for (weights, activations) in [("inq", "ste"), ("ana", "ana"), ("lsq", "pact")] {
            for epochs in [1, 2, 7, 90] {
                let weights = format!(r#"{{"method": "{weights}", "bits": 4}}"#);
                let activations = format!(r#"{{"method": "{activations}", "bits": 8}}"#);
                let mut config = StageConfig::mqat("fpn", serde_json::from_str(&weights).unwrap());
                let activations: ActivationQuantConfig =
                    serde_json::from_str(&activations).unwrap();
                config.activations = Some(activations);
                stage(&mut config, epochs);
                let mut problems = Vec::new();
                check_ranges(&config, "stage", &mut problems);
                config.check_together("stage", &mut problems);
                assert_eq!(problems, Vec::<String>::new(), "{weights} {epochs} epochs");
                let start = config.activations.unwrap().quant_start_epoch;
                assert_eq!(start == 0, epochs == 1, "{epochs} epochs");
            }
        }
    }

    #[test]
    fn as_many_epochs_as_before_change_nothing() {
        let mut config = published();
        stage(&mut config, 30);
        assert_eq!(config, published());
    }
}
