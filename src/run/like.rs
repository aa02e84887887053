//! `--like`: what of another run's config decides how many steps there are and at which rates.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::config::{self, Config};
use super::published;
use crate::data::Split;
use crate::io;

/// Whether a key is one of those that `--like` takes from another run's config.
pub(crate) fn rules(key: &str) -> bool {
    key == "data.bs_train"
        || key == "training.train_images"
        || key == "training.epoch_images"
        || key == "training.max_steps"
        || key.starts_with("training.full_precision")
        || key.starts_with("quantize.flow")
}

/// Whether a key is one of those that `--like` takes from a plan file.
pub(crate) fn rules_of_plan(key: &str) -> bool {
    key.starts_with("quantize.flow")
}

/// Gives `config` the stages of the config in `path`, each with its batch size, and as many images and steps at most.
///
/// # Errors
/// If the file cannot be read, is no config, or trains on another list of images.
pub(crate) fn take_over(path: &Path, config: &mut Config) -> Result<()> {
    let at = path.display().to_string();
    let mut document: Value = io::read_json(path)?;
    if published::is_published(&document) {
        document = published::translate(&document).with_context(|| at.clone())?.document;
    }
    let other = config::parse(document, &at)?;
    let (own_list, list) = (config.data.list(Split::Train), other.data.list(Split::Train));
    ensure!(
        own_list == list,
        "--like {at}: it trains on {list} and this run on {own_list}, so that their steps would be of other images; \
         pass the same config"
    );
    let batch_size = other.data.bs_train;
    config.data.bs_train = batch_size;
    config.training.train_images = other.training.train_images;
    config.training.epoch_images = other.training.epoch_images;
    config.training.max_steps = other.training.max_steps;
    config.training.full_precision = other.training.full_precision;
    config.quantize.flow = other.quantize.flow;
    let full = config.training.full_precision.iter_mut();
    for stage in full.chain(&mut config.quantize.flow) {
        stage.batch_size.get_or_insert(batch_size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_the_steps_is_taken_over_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let mut other = Config::default();
        other.experiment.seed = 9;
        other.data.bs_train = 3;
        other.training.train_images = Some(7);
        other.training.full_precision.as_mut().unwrap().epochs = 5;
        io::write_json(&path, &other).unwrap();
        let mut config = Config::default();
        config.data.bs_train = 8;
        take_over(&path, &mut config).unwrap();
        assert_eq!(config.experiment.seed, Config::default().experiment.seed);
        assert_eq!((config.data.bs_train, config.training.train_images), (3, Some(7)));
        let stage = config.training.full_precision.unwrap();
        assert_eq!((stage.epochs, stage.batch_size), (5, Some(8)));
    }

    #[test]
    fn stages_without_a_batch_size_take_that_of_their_run() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let mut other = Config::default();
        other.data.bs_train = 3;
        other.quantize.flow = vec![crate::train::StageConfig::default()];
        io::write_json(&path, &other).unwrap();
        let mut config = Config::default();
        take_over(&path, &mut config).unwrap();
        assert_eq!(config.quantize.flow[0].batch_size, Some(3));
    }

    #[test]
    fn another_list_of_images_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        io::write_json(&path, &Config::default()).unwrap();
        let mut config = Config::default();
        config.data.train = "few.txt".to_owned();
        let text = take_over(&path, &mut config).unwrap_err().to_string();
        assert!(text.contains("few.txt") && text.contains("pass the same config"), "{text}");
        assert!(rules("quantize.flow.0.epochs") && !rules("experiment.seed"));
        assert!(rules_of_plan("quantize.flow") && !rules_of_plan("training.full_precision"));
    }
}
