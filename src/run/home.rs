//! Where things lie: the problems, the data root, the logs root, a dataset.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

use crate::data::{BopFolder, SplitList};
use crate::io;

/// `cfg/hard_storage.json`: the folders of this machine. Relative ones start at the folder that holds `cfg`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct HardStorage {
    /// Root of the datasets: `DATA/PROBLEM`.
    data: PathBuf,
    /// Root of the experiments: `LOGS/PROBLEM/TOPOLOGY/expNNN`.
    logs: PathBuf,
}

impl Default for HardStorage {
    fn default() -> Self {
        Self { data: "data".into(), logs: "logs".into() }
    }
}

/// The folders a command works with.
#[derive(Debug, Clone)]
pub struct Home {
    /// The folder that holds `problems/` and `cfg/`; the working folder when there is none.
    pub root: PathBuf,
    /// Root of the datasets.
    pub data: PathBuf,
    /// Root of the experiments.
    pub logs: PathBuf,
}

impl Home {
    /// Finds the home: `MQAT_HOME`, else the nearest folder from the working folder upward that holds `problems/`, else
    /// such a folder above the program, else the working folder. `data` and `logs` given by the user win over `cfg/hard_storage.json`.
    ///
    /// # Errors
    /// If `MQAT_HOME` is not a directory, or `cfg/hard_storage.json` cannot be read.
    pub fn find(data: Option<&Path>, logs: Option<&Path>) -> Result<Self> {
        let root = find_root()?;
        let file = root.join("cfg/hard_storage.json");
        let storage: HardStorage =
            if file.exists() { io::read_json(&file)? } else { HardStorage::default() };
        let pick = |given: Option<&Path>, stored: &Path| match given {
            Some(path) => path.to_owned(),
            None => root.join(stored),
        };
        Ok(Self { data: pick(data, &storage.data), logs: pick(logs, &storage.logs), root })
    }

    /// The folder of a problem's topology, whether it exists or not.
    pub fn problem_dir(&self, problem: &str, topology: &str) -> PathBuf {
        self.root.join("problems").join(problem).join(topology)
    }

    /// The dataset of a problem: the data root itself when `list` lies in it, else `DATA/PROBLEM`. Of a BOP folder the list
    /// names folders of scenes.
    ///
    /// # Errors
    /// If neither holds `list`; the message says how to get a dataset.
    pub fn dataset(&self, problem: &str, list: &str) -> Result<PathBuf> {
        let nested = self.data.join(problem);
        let splits = SplitList::parse(list);
        for root in [&self.data, &nested] {
            let has_splits = || splits.as_ref().is_ok_and(|splits| splits.is_in(root));
            if root.join(list).is_file() || has_splits() {
                return Ok(root.clone());
            }
        }
        if let Some(folder) = self.bop_folder(problem) {
            bail!(
                "{} has no {list}: it is a BOP folder with the folders of scenes {}; name them in data.TRAIN, data.VALID and \
                 data.TEST",
                folder.root().display(),
                folder.splits().collect::<Vec<_>>().join(", ")
            );
        }
        bail!(
            "no dataset: neither {} nor {} has {list}; put {problem} there, name its folder with --data, \
             or make a synthetic one with `mqat synth --out {}`",
            self.data.display(),
            nested.display(),
            nested.display()
        )
    }

    /// The dataset of a problem, when it is one as the BOP benchmark publishes them: the data root itself, else
    /// `DATA/PROBLEM`.
    pub fn bop_folder(&self, problem: &str) -> Option<BopFolder> {
        [self.data.clone(), self.data.join(problem)].iter().find_map(|root| BopFolder::find(root))
    }
}

/// The names that a command means that gives none: those of the home, where it has one problem or one topology of a problem.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SoleNames {
    /// The only problem with a config.
    pub problem: Option<String>,
    /// The only topology with a config, of that problem or of the given one.
    pub topology: Option<String>,
}

impl SoleNames {
    /// Those of the home of this process, where `problem` is given or not.
    pub fn here(problem: Option<&str>) -> Self {
        find_root()
            .map_or_else(|_| Self::default(), |root| Self::of(&root.join("problems"), problem))
    }

    fn of(problems: &Path, given: Option<&str>) -> Self {
        let topologies = |problem: &str| {
            folders_with(&problems.join(problem), |dir| dir.join("config.json").is_file())
        };
        let has_config = |dir: &Path| {
            let name = dir.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| !topologies(name).is_empty())
        };
        let sole = |names: Vec<String>| <[String; 1]>::try_from(names).ok().map(|[name]| name);
        let problem = match given {
            Some(_) => None,
            None => sole(folders_with(problems, has_config)),
        };
        let topology = given.or(problem.as_deref()).and_then(|problem| sole(topologies(problem)));
        Self { problem, topology }
    }
}

/// The names of the folders in `dir` that are wanted; those that are no text are left out.
fn folders_with(dir: &Path, is_wanted: impl Fn(&Path) -> bool) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let wanted = entries.filter(|path| is_wanted(path));
    wanted.filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect()
}

fn find_root() -> Result<PathBuf> {
    if let Some(home) = std::env::var_os("MQAT_HOME") {
        let home = PathBuf::from(home);
        ensure!(home.is_dir(), "MQAT_HOME is {}, which is not a directory", home.display());
        return Ok(home);
    }
    let cwd = std::env::current_dir().context("finding the working folder")?;
    let program = std::env::current_exe().ok();
    let above_program = || holder_of_problems(program.as_deref()?.parent()?);
    Ok(holder_of_problems(&cwd).or_else(above_program).unwrap_or(cwd))
}

/// The folder itself, or the nearest one above it, that holds `problems/`.
fn holder_of_problems(folder: &Path) -> Option<PathBuf> {
    folder.ancestors().find(|dir| dir.join("problems").is_dir()).map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_only_problem_and_topology_need_no_name() {
        let dir = tempfile::tempdir().unwrap();
        let problems = dir.path();
        let add = |name: &str| {
            std::fs::create_dir_all(problems.join(name)).unwrap();
            std::fs::write(problems.join(name).join("config.json"), "{}").unwrap();
        };
        let of = |given| {
            let SoleNames { problem, topology } = SoleNames::of(problems, given);
            [problem.unwrap_or_default(), topology.unwrap_or_default()]
        };
        assert_eq!(of(None), ["", ""]);
        add("Boxes/Tiny");
        std::fs::create_dir(problems.join("notes")).unwrap();
        assert_eq!(of(None), ["Boxes", "Tiny"]);
        add("Boxes/Large");
        assert_eq!(
            (of(None), of(Some("Boxes"))),
            (["Boxes", ""].map(str::to_owned), ["", ""].map(str::to_owned))
        );
        add("Cups/Tiny");
        assert_eq!(
            (of(None), of(Some("Cups"))),
            (["", ""].map(str::to_owned), ["", "Tiny"].map(str::to_owned))
        );
    }

    fn home(data: &Path) -> Home {
        Home { root: data.to_owned(), data: data.to_owned(), logs: data.join("logs") }
    }

    #[test]
    fn problems_are_looked_for_upward() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("mine/notes/today");
        std::fs::create_dir_all(&deep).unwrap();
        std::fs::create_dir_all(dir.path().join("mine/problems")).unwrap();
        std::fs::create_dir_all(dir.path().join("problems")).unwrap();
        assert_eq!(holder_of_problems(&deep), Some(dir.path().join("mine")));
        // A file of that name is none.
        std::fs::write(deep.join("problems"), "").unwrap();
        assert_eq!(holder_of_problems(&deep), Some(dir.path().join("mine")));
        assert_eq!(holder_of_problems(dir.path()), Some(dir.path().to_owned()));
    }

    #[test]
    fn a_dataset_is_the_data_root_or_the_problems_folder_in_it() {
        let dir = tempfile::tempdir().unwrap();
        let home = home(dir.path());
        let err = home.dataset("SwissCube", "training.txt").unwrap_err().to_string();
        assert!(err.contains("mqat synth"), "{err}");
        let nested = dir.path().join("SwissCube");
        std::fs::create_dir(&nested).unwrap();
        std::fs::write(nested.join("training.txt"), "x").unwrap();
        assert_eq!(home.dataset("SwissCube", "training.txt").unwrap(), nested);
        std::fs::write(dir.path().join("training.txt"), "x").unwrap();
        assert_eq!(home.dataset("SwissCube", "training.txt").unwrap(), dir.path());
    }
}
