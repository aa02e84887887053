//! The folder of a run: `LOGS/PROBLEM/TOPOLOGY/expNNN`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::config::Precision;
use super::machine::Machine;
use crate::io;
use crate::train::DataPrint;

/// The folder of one run and the names of what lies in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Folder {
    /// `LOGS/PROBLEM/TOPOLOGY/expNNN`.
    pub path: PathBuf,
    /// Its number.
    pub id: u32,
}

/// Which run a command works on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pick {
    /// The one with that number.
    Id(u32),
    /// The one with the highest number.
    Latest,
}

impl Folder {
    /// Makes a new folder: `id`, or one above the highest.
    ///
    /// # Errors
    /// If the folder with `id` already exists, or cannot be made.
    pub fn create(logs: &Path, problem: &str, topology: &str, id: Option<u32>) -> Result<Self> {
        let parent = place(logs, problem, topology)?;
        fs::create_dir_all(&parent)
            .with_context(|| format!("making the folder {}", parent.display()))?;
        let mut next = match id {
            Some(id) => id,
            None => ids(&parent)?.last().map_or(0, |last| last + 1),
        };
        loop {
            let path = parent.join(name(next));
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path, id: next }),
                // Two runs started at once: the other one took the number.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists && id.is_none() => {
                    next += 1
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => bail!(
                    "the experiment {} exists; pass --resume to go on with it, or another --exp-id",
                    path.display()
                ),
                Err(e) => {
                    return Err(e).with_context(|| format!("making the folder {}", path.display()));
                }
            }
        }
    }

    /// The folder of that number, which need not be there. A run has begun there if it has a [`Folder::config`].
    ///
    /// # Errors
    /// If a name is not that of one folder.
    pub fn numbered(logs: &Path, problem: &str, topology: &str, id: u32) -> Result<Self> {
        Ok(Self { path: place(logs, problem, topology)?.join(name(id)), id })
    }

    /// Finds an existing folder.
    ///
    /// # Errors
    /// If there is none; the message lists those there are.
    pub fn find(logs: &Path, problem: &str, topology: &str, pick: Pick) -> Result<Self> {
        let parent = place(logs, problem, topology)?;
        let ids = if parent.is_dir() { ids(&parent)? } else { Vec::new() };
        let id = match pick {
            Pick::Latest => ids.last().copied(),
            Pick::Id(id) => ids.contains(&id).then_some(id),
        };
        let Some(id) = id else {
            let wanted = match pick {
                Pick::Latest => "no experiment".to_owned(),
                Pick::Id(id) => format!("no experiment {}", name(id)),
            };
            let names: Vec<String> = ids.iter().map(|&id| name(id)).collect();
            let there = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            bail!(
                "{wanted} in {} (there: {there}); train one first, or name another --logs",
                parent.display()
            );
        };
        Ok(Self { path: parent.join(name(id)), id })
    }

    /// The resolved config.
    pub fn config(&self) -> PathBuf {
        self.path.join("config.json")
    }

    /// Who made it and how.
    pub fn provenance(&self) -> PathBuf {
        self.path.join("provenance.json")
    }

    /// One JSON object a line: steps, epochs, validations.
    pub fn metrics(&self) -> PathBuf {
        self.path.join("metrics.jsonl")
    }

    /// Checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path.join("checkpoints")
    }

    /// TensorBoard event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.path.join("tensorboard")
    }

    /// Plots of the run.
    pub fn plots(&self) -> PathBuf {
        self.path.join("plots")
    }

    /// Evaluations, one folder each.
    pub fn evaluation(&self, name: &str) -> PathBuf {
        self.path.join("eval").join(name)
    }

    /// Takes the run's lock for as long as the result lives, so that two processes never write one run.
    ///
    /// # Errors
    /// If another process holds it.
    pub fn lock(&self) -> Result<fs::File> {
        let path = self.path.join(".lock");
        // A link that somebody put there is not followed, and nothing is emptied.
        let file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        ensure!(
            file.metadata().is_ok_and(|meta| meta.is_file()),
            "{} is not a file: remove it",
            path.display()
        );
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(fs::TryLockError::WouldBlock) => {
                bail!(
                    "{} is in use by another mqat process; wait for it or stop it",
                    self.path.display()
                )
            }
            Err(fs::TryLockError::Error(e)) => {
                Err(e).with_context(|| format!("locking {}", path.display()))
            }
        }
    }
}

fn place(logs: &Path, problem: &str, topology: &str) -> Result<PathBuf> {
    Ok(logs.join(folder_name(problem)?).join(folder_name(topology)?))
}

/// The name of a problem or topology, if it is that of one folder: it stays below the folder it is looked for in.
///
/// # Errors
/// If it is empty, `.` or `..`, longer than a file's name may be, or has a slash or a control character.
pub fn folder_name(name: &str) -> Result<String> {
    const MOST_BYTES: usize = 255;
    let is_one = Path::new(name).components().eq([Component::Normal(name.as_ref())]);
    ensure!(
        is_one && name.len() <= MOST_BYTES && !name.chars().any(char::is_control),
        "{name:?} is not the name of a folder: expected one name, without slashes and control characters"
    );
    Ok(name.to_owned())
}

fn name(id: u32) -> String {
    format!("exp{id:03}")
}

/// The numbers of the `expNNN` folders, ascending.
fn ids(parent: &Path) -> Result<Vec<u32>> {
    let reading = || format!("reading the folder {}", parent.display());
    let mut ids = Vec::new();
    for entry in fs::read_dir(parent).with_context(reading)? {
        let name = entry.with_context(reading)?.file_name();
        if let Some(id) =
            name.to_str().and_then(|n| n.strip_prefix("exp")).and_then(|n| n.parse().ok())
        {
            ids.push(id);
        }
    }
    ids.sort_unstable();
    Ok(ids)
}

/// Where a run's numbers come from.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Provenance {
    /// Version of mqat.
    pub mqat: String,
    /// Version of libtorch the program was built for.
    pub libtorch: String,
    /// The seed.
    pub seed: u64,
    /// Device the run computes on.
    pub device: String,
    /// Threads libtorch computes with.
    pub threads: i32,
    /// How products were rounded in training; files of earlier versions do not say it.
    #[serde(default)]
    pub precision: Precision,
    /// Folder of the dataset.
    #[serde(serialize_with = "crate::io::path_text")]
    pub dataset: PathBuf,
    /// The weights that the run began with; none for random ones, and in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pretrained: Option<Pretrained>,
    /// Every start of the run.
    pub starts: Vec<Start>,
}

/// The file of weights that a run began with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pretrained {
    /// Its absolute path.
    #[serde(serialize_with = "crate::io::path_text")]
    pub file: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Its checksum, by which it is known again: `crc32c:` and eight hexadecimal digits.
    pub hash: String,
    /// Whether what it lacks of the network was drawn at random.
    pub loose: bool,
}

impl Pretrained {
    /// What a file is known by.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn of(path: &Path, loose: bool) -> Result<Self> {
        let (bytes, crc) = io::checksum(path)?;
        let file = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        Ok(Self { file, bytes, hash: format!("crc32c:{crc:08x}"), loose })
    }
}

/// One start of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Start {
    /// Seconds since 1970, UTC.
    pub unix_seconds: u64,
    /// The command line.
    pub command: Vec<String>,
    /// The checkpoint it went on from.
    pub resumed_from: Option<String>,
    /// Folder of the dataset of this start; none in files of earlier versions.
    #[serde(default)]
    pub dataset: Option<String>,
    /// The file, in the run's folder, with the config of this start; none in files of earlier versions.
    #[serde(default)]
    pub config: Option<String>,
    /// Where it ran; none in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machine: Option<Machine>,
    /// By what its data are known again, by split; empty in files of earlier versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, DataPrint>,
    /// How it ended; none where it was killed, and in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<StartEnd>,
}

/// How a start of a run ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StartEnd {
    /// From the begin of training on, s.
    pub seconds: f64,
    /// `finished`, `interrupted` or `max_steps`.
    pub outcome: String,
}

impl Start {
    /// This process.
    pub fn now(resumed_from: Option<String>) -> Self {
        let unix_seconds =
            SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        // Arguments need not be UTF-8.
        let command = std::env::args_os().map(|arg| arg.to_string_lossy().into_owned()).collect();
        Self {
            unix_seconds,
            command,
            resumed_from,
            dataset: None,
            config: None,
            machine: None,
            data: BTreeMap::new(),
            end: None,
        }
    }
}

impl Provenance {
    /// What was recorded in a run's folder; `None` before its first start was.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn of(folder: &Folder) -> Result<Option<Self>> {
        let path = folder.provenance();
        path.exists().then(|| io::read_json(&path)).transpose()
    }

    /// Adds `start` to the file at `path`, which is made when it is not there.
    ///
    /// # Errors
    /// If the file cannot be read or written, or belongs to a run with another seed.
    pub fn record(mut self, path: &Path, start: Start) -> Result<()> {
        if path.exists() {
            let before: Provenance = io::read_json(path)?;
            ensure!(
                before.seed == self.seed,
                "{}: the run's seed is {}, this start has {}; resume with the run's own seed",
                path.display(),
                before.seed,
                self.seed
            );
            self.starts = before.starts;
            self.pretrained = before.pretrained.or(self.pretrained);
        }
        self.starts.push(start);
        io::write_json(path, &self)
    }

    /// Adds to the file at `path` how the last start ended.
    ///
    /// # Errors
    /// If the file cannot be read or written.
    pub fn record_end(path: &Path, end: StartEnd) -> Result<()> {
        let mut all: Provenance = io::read_json(path)?;
        if let Some(last) = all.starts.last_mut() {
            last.end = Some(end);
        }
        io::write_json(path, &all)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_count_up_and_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path();
        let none = Folder::find(logs, "P", "T", Pick::Latest).unwrap_err().to_string();
        assert!(none.contains("there: none"), "{none}");
        assert_eq!(Folder::create(logs, "P", "T", None).unwrap().id, 0);
        assert_eq!(Folder::create(logs, "P", "T", Some(7)).unwrap().id, 7);
        assert_eq!(Folder::create(logs, "P", "T", None).unwrap().id, 8);
        assert_eq!(Folder::find(logs, "P", "T", Pick::Latest).unwrap().id, 8);
        assert_eq!(Folder::find(logs, "P", "T", Pick::Id(7)).unwrap().id, 7);
        let taken = Folder::create(logs, "P", "T", Some(7)).unwrap_err().to_string();
        assert!(taken.contains("--resume"), "{taken}");
        let missing = Folder::find(logs, "P", "T", Pick::Id(3)).unwrap_err().to_string();
        assert!(missing.contains("exp000, exp007, exp008"), "{missing}");
    }

    #[test]
    fn names_stay_below_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let logs = dir.path().join("logs");
        for name in ["..", ".", "", "../x", "/tmp/x", "a/b", "a/", "a\u{1b}[2J", "a\nb"] {
            assert!(Folder::create(&logs, "P", name, None).is_err(), "{name:?}");
            assert!(Folder::create(&logs, name, "T", None).is_err(), "{name:?}");
            assert!(Folder::find(&logs, name, "T", Pick::Latest).is_err(), "{name:?}");
        }
        assert!(!logs.exists());
        for name in ["SwissCube", "my objects", "dätä-2.1_x", "..hidden"] {
            Folder::create(&logs, name, name, None).unwrap();
        }
    }

    #[test]
    fn a_link_in_the_place_of_the_lock_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(dir.path(), "P", "T", None).unwrap();
        let precious = dir.path().join("precious");
        fs::write(&precious, "text").unwrap();
        std::os::unix::fs::symlink(&precious, folder.path.join(".lock")).unwrap();
        assert!(folder.lock().is_err());
        assert_eq!(fs::read_to_string(&precious).unwrap(), "text");
    }

    #[test]
    fn a_run_in_use_is_not_opened_twice() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::create(dir.path(), "P", "T", None).unwrap();
        let lock = folder.lock().unwrap();
        assert!(folder.lock().unwrap_err().to_string().contains("in use"));
        drop(lock);
        folder.lock().unwrap();
    }
}
