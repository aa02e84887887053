//! A trial: one experiment with a folder of its own, known by a hash of what decides its result.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::rows::TrialReport;
use crate::io;
use crate::pose::{Outcomes, Recall};
use crate::run::config::Config;
use crate::run::folder::Folder;
use crate::seed::fnv1a;
use crate::train::{Checkpoint, CheckpointFolder, Record, config_hash};

/// One training run of a search: `SEARCH/trials/NAME-ID/PROBLEM/TOPOLOGY/exp000`.
pub(super) struct Trial {
    /// For people and `--only`.
    pub name: String,
    pub config: Config,
    /// Hash of what decides its result.
    pub id: String,
    /// `SEARCH/trials/NAME-ID`.
    pub dir: PathBuf,
    pub exp: Folder,
    /// The trial that it starts from the end of; its flow is this one's but for the last stage.
    pub parent: Option<Rc<Trial>>,
}

/// Where the trials of a search lie, and what all of them begin with.
pub(super) struct TrialPlace {
    /// The search's folder.
    pub dir: PathBuf,
    /// `PROBLEM/TOPOLOGY`.
    pub experiment: PathBuf,
    /// Tells the weights and the lists of images apart, wherever they lie.
    pub inputs: Value,
}

/// How far a trial is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Waiting,
    Begun,
    /// In another process.
    Running,
    Complete,
}

impl State {
    pub fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Begun => "begun",
            Self::Running => "running",
            Self::Complete => "complete",
        }
    }
}

/// The most characters of a trial's name in its folder's.
const NAME_CHARS: usize = 80;

impl Trial {
    pub fn new(
        place: &TrialPlace,
        name: String,
        config: Config,
        parent: Option<Rc<Trial>>,
    ) -> Result<Self> {
        let mut document = serde_json::to_value(&config).context("writing a trial's config")?;
        leave_out_what_decides_nothing(&mut document);
        document["inputs"] = place.inputs.clone();
        let id = format!("{:016x}", fnv1a(document.to_string().as_bytes()));
        let short: String = name.chars().take(NAME_CHARS).collect();
        let dir = place.dir.join("trials").join(format!("{short}-{id}"));
        let exp = Folder { path: dir.join(&place.experiment).join("exp000"), id: 0 };
        Ok(Self { name, config, id, dir, exp, parent })
    }

    /// The config file that it is started with.
    pub fn config_file(&self) -> PathBuf {
        self.dir.join("config.json")
    }

    /// What its process says.
    pub fn log(&self) -> PathBuf {
        self.dir.join("log.txt")
    }

    /// How far it is, by its folder.
    pub fn state(&self) -> Result<State> {
        if !self.exp.path.is_dir() {
            return Ok(State::Waiting);
        }
        if self.score()?.is_some() {
            return Ok(State::Complete);
        }
        Ok(if self.exp.lock().is_err() { State::Running } else { State::Begun })
    }

    /// What it measured; an error if it is not complete.
    pub fn result(&self) -> Result<TrialReport> {
        self.score()?.with_context(|| {
            format!("trial {} in {} is not complete", self.name, self.exp.path.display())
        })
    }

    /// What it measured at the end of each stage; `None` while it is not complete.
    fn score(&self) -> Result<Option<TrialReport>> {
        let last = self.config.quantize.flow.len() - 1;
        let label = self.config.quantize.flow[last].label();
        let end = self.exp.checkpoints().join(format!("stage_{last}_{label}.safetensors"));
        if !end.is_file() {
            return Ok(None);
        }
        let path = self.exp.metrics();
        let records = Record::read_all(&path)?;
        let valid = records.iter().rev().find_map(|record| match record {
            Record::Validation(valid) if valid.stage == last => Some(valid),
            _ => None,
        });
        let ended = |r: &Record| matches!(r, Record::StageEnd(end) if end.stage == last);
        let (Some(valid), true) = (valid, records.iter().any(ended)) else { return Ok(None) };
        let Some(counts) = &valid.score.counts else {
            bail!(
                "{}: its last validation has no counts; remove {} to run the trial anew",
                path.display(),
                self.dir.display()
            )
        };
        Ok(Some(TrialReport {
            name: self.name.clone(),
            id: self.id.clone(),
            folder: self.exp.path.clone(),
            checkpoint: end,
            metric: valid.score.name.clone(),
            score: Recall::new(counts.correct, counts.objects),
            outcomes: Outcomes::from(valid.score.outcomes.clone()),
            global_step: valid.global_step,
        }))
    }

    /// Makes the folder ready: its config, and for a trial with a parent the experiment at the parent's end.
    ///
    /// # Errors
    /// If the parent is not complete, or files cannot be written.
    pub fn prepare(&self) -> Result<()> {
        fs::create_dir_all(&self.dir)
            .with_context(|| format!("making the folder {}", self.dir.display()))?;
        io::write_json(&self.config_file(), &self.config)?;
        let parent_folder = self.exp.path.parent().context("a trial's folder has a parent")?;
        // Killed between making the folder and writing its config: nothing was computed.
        if self.exp.path.is_dir() && !self.exp.config().is_file() {
            let _lock = self.exp.lock()?;
            fs::remove_dir_all(&self.exp.path)
                .with_context(|| format!("removing {}", self.exp.path.display()))?;
        }
        if let (Some(parent), false) = (&self.parent, self.exp.path.is_dir()) {
            fs::create_dir_all(parent_folder)
                .with_context(|| format!("making the folder {}", parent_folder.display()))?;
            branch(&parent.exp, &self.exp, &self.config)?;
        }
        Ok(())
    }
}

/// Makes the experiment `to` as if it had run the flow of `from`: going on with it gives, bit for bit, what running all of
/// `config` from the beginning gives, since a checkpoint holds all that decides the next step.
///
/// # Errors
/// If `from` is not complete, its flow is not the begin of the config's, or files cannot be written.
fn branch(from: &Folder, to: &Folder, config: &Config) -> Result<()> {
    let ends = CheckpointFolder::existing(&from.checkpoints())?.stage_ends()?;
    let last =
        ends.last().with_context(|| format!("{} has no completed stage", from.path.display()))?;
    let mut checkpoint = Checkpoint::read(last)?;
    let position = &checkpoint.meta.position;
    let stage = config.quantize.flow.get(position.stage);
    ensure!(
        stage
            .is_some_and(|s| position.epoch == s.epochs && s.label() == checkpoint.meta.stage_name)
            && position.stage + 1 < config.quantize.flow.len(),
        "{} is not the end of a stage of the flow to go on with",
        last.display()
    );
    let document = serde_json::to_value(config).context("writing the config as JSON")?;
    checkpoint.meta.config_hash = config_hash(&document);
    checkpoint.meta.config = document.clone();

    let unfinished = to.path.with_file_name(".exp000.unfinished");
    if unfinished.exists() {
        fs::remove_dir_all(&unfinished)
            .with_context(|| format!("removing {}", unfinished.display()))?;
    }
    let folder = Folder { path: unfinished, id: to.id };
    fs::create_dir_all(folder.checkpoints())
        .with_context(|| format!("making the folder {}", folder.checkpoints().display()))?;
    for end in &ends {
        copy(end, &folder.checkpoints())?;
    }
    copy(&from.metrics(), &folder.path)?;
    let numbered = CheckpointFolder::open(&folder.checkpoints(), 1)?;
    checkpoint.write(&numbered.path(checkpoint.meta.position.global_step))?;
    io::write_json(&folder.config(), &document)?;
    fs::rename(&folder.path, &to.path)
        .with_context(|| format!("renaming {} to {}", folder.path.display(), to.path.display()))
}

fn copy(file: &Path, folder: &Path) -> Result<()> {
    let to = folder.join(file.file_name().unwrap_or_default());
    let doing = || format!("copying {} to {}", file.display(), to.display());
    fs::copy(file, &to).with_context(doing)?;
    Ok(())
}

/// Drops from a config what no result depends on, and what `inputs` says better.
fn leave_out_what_decides_nothing(document: &mut Value) {
    let drop = |section: &mut Value, keys: &[&str]| {
        if let Some(map) = section.as_object_mut() {
            keys.iter().for_each(|key| {
                map.remove(*key);
            });
        }
    };
    drop(&mut document["experiment"], &["url"]);
    drop(
        &mut document["training"],
        &["ckpt_every", "ckpt_every_steps", "keep", "valid_every", "max_steps"],
    );
    drop(&mut document["evaluation"], &["num_overlays"]);
    drop(&mut document["data"], &["TRAIN", "VALID", "TEST"]);
    drop(document, &["RUNTIME"]);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn an_identity_knows_what_decides_a_result_and_nothing_else() {
        let document = |change: &dyn Fn(&mut Config)| {
            let mut config = Config::default();
            change(&mut config);
            let mut document = json!(config);
            leave_out_what_decides_nothing(&mut document);
            document
        };
        let same = document(&|_| ());
        assert_eq!(document(&|c| c.experiment.url = "elsewhere".into()), same);
        assert_eq!(document(&|c| c.runtime.num_threads = 3), same);
        assert_eq!(document(&|c| c.training.keep = 9), same);
        assert_ne!(document(&|c| c.experiment.seed = 9), same);
        assert_ne!(document(&|c| c.training.train_images = Some(9)), same);
        assert_ne!(document(&|c| c.training.valid_images = Some(9)), same);
        assert_ne!(document(&|c| c.data.bs_train = 9), same);
        assert_ne!(document(&|c| c.evaluation.ransac.inlier_px = 9.0), same);
    }
}
