//! What is recorded of every start of a run: `starts/NNN.json` beside `config.json`, and what a start may still change.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::config::Config;
use super::folder::Folder;
use super::stretch;
use crate::io;
use crate::train::{CheckpointFolder, ResumeFrom, StageConfig};

/// Writes the config that a start runs with into the run's `starts/`; its name, relative to the run's folder.
///
/// # Errors
/// If it cannot be written.
pub(crate) fn record(folder: &Folder, number: usize, config: &Value) -> Result<PathBuf> {
    let name = Path::new("starts").join(format!("{number:03}.json"));
    io::write_json(&folder.path.join(&name), config)?;
    Ok(name)
}

/// How many stages of a run have ended where a start goes on from, of those that `recorded` has. The last stage may still
/// get more epochs.
///
/// # Errors
/// If there is no checkpoint that can be read.
pub(crate) fn num_ended(folder: &Folder, from: &ResumeFrom, recorded: &Config) -> Result<usize> {
    let checkpoints = folder.checkpoints();
    if !checkpoints.is_dir() {
        return Ok(0);
    }
    let checkpoints = CheckpointFolder::existing(&checkpoints)?;
    if *from == ResumeFrom::Last && checkpoints.list()?.is_empty() {
        return Ok(0);
    }
    let position = checkpoints.find(from)?.checkpoint.meta.position;
    let stages = recorded.train_config().stages;
    let is_complete = stages.get(position.stage).is_some_and(|s| position.epoch >= s.epochs);
    let is_last = position.stage + 1 >= stages.len();
    Ok(position.stage + usize::from(is_complete && !is_last))
}

/// What the options of a start ask of stages.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct StageOptions {
    /// Epochs of every stage that has not ended.
    pub epochs: Option<u32>,
    /// Batch size of every stage that has not ended.
    pub batch_size: Option<usize>,
}

impl StageOptions {
    /// Changes the stages from the `begin`-th on.
    pub(crate) fn apply(self, config: &mut Config, begin: usize) {
        let batch_size = self.batch_size;
        for stage in stages_mut(config).skip(begin) {
            if let Some(epochs) = self.epochs {
                stretch::stage(stage, epochs);
            }
            stage.batch_size = batch_size.or(stage.batch_size);
        }
        config.data.bs_train = batch_size.unwrap_or(config.data.bs_train);
    }
}

/// Leaves the first `num_ended` stages as they were recorded, also their batch size where that is the config's.
///
/// # Errors
/// If `config`, which `--set` made of `recorded`, changes one of them.
pub(crate) fn keep_ended(config: &mut Config, recorded: &Config, num_ended: usize) -> Result<()> {
    let before = recorded.train_config().stages;
    let bs_train = (recorded.data.bs_train, config.data.bs_train);
    for (i, (stage, before)) in stages_mut(config).zip(before).take(num_ended).enumerate() {
        ensure!(
            *stage == before,
            "stage {i} ({}) has ended and stays as it was trained: --set cannot change {} of it; start a new run for that",
            before.label(),
            io::differing_keys(&as_json(&before)?, &as_json(stage)?).join(", ")
        );
        if bs_train.0 != bs_train.1 {
            stage.batch_size = Some(before.batch_size.unwrap_or(bs_train.0));
        }
    }
    Ok(())
}

fn as_json(stage: &StageConfig) -> Result<Value> {
    serde_json::to_value(stage).context("writing a stage as JSON")
}

fn stages_mut(config: &mut Config) -> impl Iterator<Item = &mut StageConfig> {
    config.training.full_precision.iter_mut().chain(&mut config.quantize.flow)
}

/// Removes what a killed process left unfinished anywhere in the folder of a run. The run's lock is held.
///
/// # Errors
/// If a folder cannot be listed or a file not removed.
pub(crate) fn remove_leftovers(folder: &Folder) -> Result<()> {
    let mut folders = vec![folder.path.clone()];
    while let Some(next) = folders.pop() {
        io::remove_leftovers(&next)?;
        let reading = || format!("reading the folder {}", next.display());
        for entry in fs::read_dir(&next).with_context(reading)? {
            let entry = entry.with_context(reading)?;
            // Links are not followed out of the run.
            if entry.file_type().with_context(reading)?.is_dir() {
                folders.push(entry.path());
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::WeightQuantConfig;

    fn config() -> Config {
        let mut config = Config::default();
        config.training.full_precision =
            Some(StageConfig { epochs: 1, batch_size: None, ..StageConfig::full_precision() });
        config.quantize.flow = vec![StageConfig {
            module: Some("fpn".to_owned()),
            epochs: 2,
            weights: Some(WeightQuantConfig::default()),
            ..StageConfig::default()
        }];
        config
    }

    #[test]
    fn stages_that_have_ended_stay_as_they_were() {
        let recorded = config();
        let mut changed = recorded.clone();
        changed.data.bs_train += 5;
        keep_ended(&mut changed, &recorded, 1).unwrap();
        StageOptions { epochs: Some(3), batch_size: Some(2) }.apply(&mut changed, 1);
        let stages = changed.train_config().stages;
        // What the ended stage took from the config is written down with it.
        assert_eq!((stages[0].epochs, stages[0].batch_size), (1, Some(recorded.data.bs_train)));
        assert_eq!((stages[1].epochs, stages[1].batch_size), (3, Some(2)));
        assert_eq!(changed.data.bs_train, 2);

        let mut longer = recorded.clone();
        longer.training.full_precision.as_mut().unwrap().epochs = 9;
        let error = keep_ended(&mut longer.clone(), &recorded, 1).unwrap_err().to_string();
        assert!(
            error.contains("stage 0 (full_precision) has ended") && error.contains("epochs"),
            "{error}"
        );
        keep_ended(&mut longer, &recorded, 0).unwrap();
    }

    #[test]
    fn leftovers_go_wherever_they_are_in_the_run() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder { path: dir.path().join("exp000"), id: 0 };
        for name in [
            ".provenance.json.a.unfinished",
            "plots/.loss.png.b.unfinished",
            "eval/x/.t.c.unfinished",
            "plots/loss.png",
        ] {
            let path = folder.path.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        remove_leftovers(&folder).unwrap();
        let left: Vec<_> =
            fs::read_dir(folder.plots()).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["loss.png"]);
        assert_eq!(fs::read_dir(folder.path.join("eval/x")).unwrap().count(), 0);
        assert!(!folder.path.join(".provenance.json.a.unfinished").exists());
    }
}
