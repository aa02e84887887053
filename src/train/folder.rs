//! The folder of checkpoints: numbered files, the last few of which stay, and lasting copies.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};

use super::Checkpoint;
use crate::io;

const EXTENSION: &str = "safetensors";
const BEST: &str = "best";

/// Which checkpoint to go on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ResumeFrom {
    /// The one with the highest number that can be read.
    Last,
    /// The best one by validation, of the latest stage that has one.
    Best,
    /// The one after that many completed epochs of the run.
    Epoch(u64),
}

impl FromStr for ResumeFrom {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "last" => Ok(Self::Last),
            "best" => Ok(Self::Best),
            number => match number.parse() {
                Ok(epoch) => Ok(Self::Epoch(epoch)),
                Err(_) => bail!("{text:?} is neither last, best nor a number of epochs"),
            },
        }
    }
}

/// A checkpoint that was found.
#[derive(Debug)]
pub struct Found {
    /// Its file.
    pub path: PathBuf,
    /// What it holds.
    pub checkpoint: Checkpoint,
    /// Newer files that could not be read, with why.
    pub skipped: Vec<(PathBuf, String)>,
}

/// A folder of checkpoints of one run: `ckpt_SSSSSSSS.safetensors` by number of steps, `best.safetensors`, and one
/// file for each completed stage.
#[derive(Debug, Clone)]
pub struct CheckpointFolder {
    folder: PathBuf,
    keep: usize,
}

impl CheckpointFolder {
    /// Opens a folder, makes it if it is missing, and removes files that a killed process left unfinished.
    pub fn open(folder: &Path, keep: usize) -> Result<Self> {
        ensure!(keep > 0, "0 checkpoints to keep, expected 1 or more");
        fs::create_dir_all(folder)
            .with_context(|| format!("making the checkpoint folder {}", folder.display()))?;
        io::remove_leftovers(folder)?;
        Ok(Self { folder: folder.to_owned(), keep })
    }

    /// Opens a folder to look into, and changes nothing in it.
    ///
    /// # Errors
    /// If it is not there.
    pub fn existing(folder: &Path) -> Result<Self> {
        ensure!(folder.is_dir(), "no checkpoint folder {}", folder.display());
        Ok(Self { folder: folder.to_owned(), keep: usize::MAX })
    }

    /// The checkpoints of the ends of stages, in the order of the stages.
    pub fn stage_ends(&self) -> Result<Vec<PathBuf>> {
        let doing = || format!("listing checkpoints in {}", self.folder.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(doing)? {
            let name = entry.with_context(doing)?.file_name();
            let name = name.to_string_lossy();
            let stage = name.strip_suffix(&format!(".{EXTENSION}")).and_then(|stem| {
                stem.strip_prefix("stage_")?.split_once('_')?.0.parse::<usize>().ok()
            });
            if let Some(stage) = stage {
                found.push((stage, self.folder.join(&*name)));
            }
        }
        found.sort();
        Ok(found.into_iter().map(|(_, path)| path).collect())
    }

    /// The file of a number of steps.
    pub fn path(&self, global_step: u64) -> PathBuf {
        self.folder.join(format!("ckpt_{global_step:08}.{EXTENSION}"))
    }

    /// The numbered checkpoints, ascending.
    pub fn list(&self) -> Result<Vec<(u64, PathBuf)>> {
        let doing = || format!("listing checkpoints in {}", self.folder.display());
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder).with_context(doing)? {
            let name = entry.with_context(doing)?.file_name();
            let name = name.to_string_lossy();
            let stem = name.strip_suffix(&format!(".{EXTENSION}"));
            let number = stem.and_then(|s| s.strip_prefix("ckpt_")).and_then(|s| s.parse().ok());
            if let Some(number) = number {
                found.push((number, self.folder.join(&*name)));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Writes the checkpoint under its number, then removes all numbered ones but the last few.
    pub fn save(&self, checkpoint: &Checkpoint) -> Result<PathBuf> {
        let path = self.path(checkpoint.meta.position.global_step);
        checkpoint.write(&path)?;
        let all = self.list()?;
        for (_, old) in all.iter().rev().skip(self.keep) {
            if *old != path {
                fs::remove_file(old)
                    .with_context(|| format!("removing the old checkpoint {}", old.display()))?;
            }
        }
        Ok(path)
    }

    /// Makes the checkpoint of `path` the best one.
    pub fn mark_best(&self, path: &Path) -> Result<PathBuf> {
        self.mark(path, BEST)
    }

    /// Keeps the checkpoint of `path` as that of the end of a stage.
    pub fn mark_stage(&self, path: &Path, stage: usize, name: &str) -> Result<PathBuf> {
        self.mark(path, &format!("stage_{stage}_{name}"))
    }

    /// A second name (a hard link; a copy where there are none) that outlasts the numbered file.
    fn mark(&self, path: &Path, name: &str) -> Result<PathBuf> {
        let to = self.folder.join(format!("{name}.{EXTENSION}"));
        let doing = || format!("keeping {} as {}", path.display(), to.display());
        // The dot and the ending of io's unfinished files, so that open() clears it away after a kill.
        let beside = self.folder.join(format!(".{name}.{EXTENSION}.link.unfinished"));
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(doing);
            }
            _ => {}
        }
        if fs::hard_link(path, &beside).is_err() {
            fs::copy(path, &beside).with_context(doing)?;
            let file = fs::File::open(&beside).with_context(doing)?;
            file.sync_all().with_context(doing)?;
        }
        fs::rename(&beside, &to).with_context(doing)?;
        // Of two links to one file a rename keeps both.
        match fs::remove_file(&beside) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(doing),
            _ => Ok(to),
        }
    }

    /// The checkpoint to go on from. With [`ResumeFrom::Last`] a newest file that cannot be read is passed over for
    /// the next older one, and listed in [`Found::skipped`].
    ///
    /// # Errors
    /// If there is none, or none that can be read; names the folder and each trouble.
    pub fn find(&self, from: &ResumeFrom) -> Result<Found> {
        match from {
            ResumeFrom::Last => self.last(),
            ResumeFrom::Best => {
                let path = self.folder.join(format!("{BEST}.{EXTENSION}"));
                ensure!(
                    path.exists(),
                    "no {}: no epoch has been validated yet; resume from last",
                    path.display()
                );
                Ok(Found { checkpoint: Checkpoint::read(&path)?, path, skipped: vec![] })
            }
            ResumeFrom::Epoch(epoch) => self.after_epoch(*epoch),
        }
    }

    fn last(&self) -> Result<Found> {
        let mut skipped = Vec::new();
        for (_, path) in self.list()?.into_iter().rev() {
            match Checkpoint::read(&path) {
                Ok(checkpoint) => return Ok(Found { path, checkpoint, skipped }),
                Err(error) => skipped.push((path, format!("{error:#}"))),
            }
        }
        let folder = self.folder.display();
        if skipped.is_empty() {
            bail!("no checkpoint in {folder} to resume from");
        }
        let troubles: Vec<_> = skipped.into_iter().map(|(_, trouble)| trouble).collect();
        bail!("no checkpoint in {folder} can be read: {}", troubles.join("; "))
    }

    fn after_epoch(&self, epoch: u64) -> Result<Found> {
        let mut epochs = Vec::new();
        let mut skipped = Vec::new();
        for path in self.all_files()? {
            match Checkpoint::read(&path) {
                Ok(checkpoint) if checkpoint.meta.position.batch == 0 => {
                    let position = &checkpoint.meta.position;
                    if position.global_epoch == epoch {
                        return Ok(Found { path, checkpoint, skipped });
                    }
                    epochs.push(position.global_epoch);
                }
                Ok(_) => {}
                Err(error) => skipped.push((path, format!("{error:#}"))),
            }
        }
        epochs.sort();
        epochs.dedup();
        let folder = self.folder.display();
        bail!("no checkpoint after epoch {epoch} in {folder}; there are those after {epochs:?}")
    }

    /// Numbered ones first, then the lasting ones.
    fn all_files(&self) -> Result<Vec<PathBuf>> {
        let numbered: Vec<PathBuf> = self.list()?.into_iter().map(|(_, path)| path).collect();
        let mut lasting = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.ends_with(&format!(".{EXTENSION}"))
                && !name.starts_with('.')
                && !numbered.contains(&path)
            {
                lasting.push(path);
            }
        }
        lasting.sort();
        Ok(numbered.into_iter().chain(lasting).collect())
    }

    /// Renames numbered checkpoints beyond `global_step` to `*.superseded`: a run that goes on from an older one
    /// must not find them as its last. Returns the new names.
    pub fn set_aside_after(&self, global_step: u64) -> Result<Vec<PathBuf>> {
        let mut renamed = Vec::new();
        for (number, path) in self.list()? {
            if number > global_step {
                let to = path.with_extension(format!("{EXTENSION}.superseded"));
                fs::rename(&path, &to)
                    .with_context(|| format!("renaming the checkpoint {}", path.display()))?;
                renamed.push(to);
            }
        }
        Ok(renamed)
    }
}
