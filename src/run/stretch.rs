//! `--epochs`: a stage with another number of epochs, its schedules stretched or shrunk to fit.

use crate::quant::schedule::moved;
use crate::train::{Decay, StageConfig};

/// Gives `stage` `epochs` epochs; the epochs in its schedules move in proportion.
///
/// Where several entries of a schedule fall on one epoch the last one stays. Steps of a learning rate that falls at
/// given steps move in proportion too.
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
        config.stretch(from, epochs);
    }
    if let Some(config) = &mut stage.activations {
        config.stretch(from, epochs);
    }
    stage.epochs = epochs;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{ActivationQuantConfig, WeightQuantConfig};
    use crate::schema::check_ranges;

    fn published() -> StageConfig {
        let weights = WeightQuantConfig { bits: Some(2), ..WeightQuantConfig::default() };
        StageConfig::mqat("fpn", weights)
    }

    #[test]
    fn a_stage_that_shrinks_until_nothing_is_trained_says_so() {
        let doubt = |epochs| {
            let mut config = published();
            stage(&mut config, epochs);
            config.doubt_of_rounding()
        };
        assert!(doubt(1).unwrap().contains("100 % of the weights from epoch 1 of 1"));
        assert_eq!((doubt(8), doubt(30)), (None, None));
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
