//! `--like`: what of another run's config decides how many steps there are and at which rates.

use std::path::{Path, PathBuf};

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
        || key.starts_with("training.monitor")
        || key.starts_with("training.ema")
        || rules_of_float(key)
        || key.starts_with("training.full_precision")
        || key.starts_with("quantize.flow")
}

/// Whether a key is one of those that `--like` takes from a plan file.
pub(crate) fn rules_of_plan(key: &str) -> bool {
    key.starts_with("quantize.flow") || rules_of_float(key)
}

/// Whether a key is one that every float control sets, to be scored like the flow that it stands beside.
pub(crate) fn rules_of_float(key: &str) -> bool {
    key == "training.bn_always"
}

/// Gives `config` the stages of the config in `path`, each with its batch size, as many images and steps at most, and what
/// ends a stage early or is evaluated instead of its weights.
///
/// # Errors
/// If the file cannot be read, is no config, trains on another list of images, or begins with other weights.
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
    ensure_same_start(path, config, &other)?;
    let batch_size = other.data.bs_train;
    config.data.bs_train = batch_size;
    config.training.train_images = other.training.train_images;
    config.training.epoch_images = other.training.epoch_images;
    config.training.max_steps = other.training.max_steps;
    config.training.monitor = other.training.monitor;
    config.training.ema = other.training.ema;
    config.training.full_precision = other.training.full_precision;
    config.quantize.flow = other.quantize.flow;
    let full = config.training.full_precision.iter_mut();
    for stage in full.chain(&mut config.quantize.flow) {
        stage.batch_size.get_or_insert(batch_size);
    }
    Ok(())
}

/// A control that begins elsewhere shows the difference of the starts.
fn ensure_same_start(path: &Path, config: &Config, other: &Config) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    let own = config.experiment.pretrained.then(|| PathBuf::from(&config.experiment.url));
    let others = other.experiment.pretrained.then(|| folder.join(&other.experiment.url));
    let place = |file: &Option<PathBuf>| {
        file.as_ref().map(|file| file.canonicalize().unwrap_or_else(|_| file.clone()))
    };
    let text = |file: &Option<PathBuf>| match file {
        Some(file) => file.display().to_string(),
        None => "random values".to_owned(),
    };
    ensure!(
        place(&own) == place(&others),
        "--like {}: it begins with {} and this run with {}, so that the starts would be compared; pass the same config, or {}",
        path.display(),
        text(&others),
        text(&own),
        match &others {
            Some(file) => format!(
                "--set experiment.pretrained=true --set experiment.url={}",
                std::path::absolute(file).unwrap_or_else(|_| file.clone()).display()
            ),
            None => "--set experiment.pretrained=false".to_owned(),
        }
    );
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
        other.training.monitor.patience = Some(4);
        other.training.ema = Some(crate::train::EmaConfig::default());
        other.training.full_precision.as_mut().unwrap().epochs = 5;
        io::write_json(&path, &other).unwrap();
        let mut config = Config::default();
        config.data.bs_train = 8;
        take_over(&path, &mut config).unwrap();
        assert_eq!(config.experiment.seed, Config::default().experiment.seed);
        assert_eq!((config.data.bs_train, config.training.train_images), (3, Some(7)));
        assert_eq!(config.training.monitor, other.training.monitor);
        assert_eq!(config.training.ema, other.training.ema);
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
    fn another_start_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        let mut other = Config::default();
        other.experiment.pretrained = true;
        other.experiment.url = "start.safetensors".to_owned();
        io::write_json(&path, &other).unwrap();
        let text = take_over(&path, &mut Config::default()).unwrap_err().to_string();
        let start = dir.path().join("start.safetensors").display().to_string();
        assert!(text.contains(&start) && text.contains("this run with random values"), "{text}");
        // The url is relative to its config.
        let mut config = other.clone();
        config.experiment.url = start;
        take_over(&path, &mut config).unwrap();
        config.experiment.url = "elsewhere.safetensors".to_owned();
        let text = take_over(&path, &mut config).unwrap_err().to_string();
        assert!(text.contains("this run with elsewhere.safetensors"), "{text}");
        io::write_json(&path, &Config::default()).unwrap();
        let text = take_over(&path, &mut config).unwrap_err().to_string();
        assert!(text.contains("--set experiment.pretrained=false"), "{text}");
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
        assert!(rules("training.monitor.patience") && rules("training.ema.decay"));
        assert!(rules("training.bn_always") && rules_of_plan("training.bn_always"));
        assert!(rules_of_plan("quantize.flow") && !rules_of_plan("training.full_precision"));
    }
}
