//! The row that the others are compared with.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::gather::{self, GatheredExperiment, Point, QuantizationKind};
use super::start;
use super::summary::Group;
use crate::run::config::Select;
use crate::run::home::Home;

/// The name of the row of the starting network.
const START: &str = "start";

/// Which row is the base.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Base {
    /// The network that the runs began with.
    Start,
    /// One of an experiment.
    Experiment {
        /// Its folder.
        folder: PathBuf,
        /// The name of its stage; none is the last that was evaluated.
        stage: Option<String>,
    },
}

impl Base {
    /// `start`, or an experiment (a folder or a number), perhaps with `:STAGE`.
    ///
    /// # Errors
    /// If there is no such experiment, or there are several below the folder.
    pub fn parse(text: &str, select: &Select, home: &Home) -> Result<Self> {
        if text == START {
            return Ok(Self::Start);
        }
        let (name, stage) = match text.rsplit_once(':') {
            Some((name, stage)) if !Path::new(text).is_dir() => (name, Some(stage.to_owned())),
            _ => (text, None),
        };
        let mut found = gather::find(&[name.to_owned()], select, home)
            .with_context(|| format!("--paired {text}"))?;
        let num = found.len();
        let folder = found.pop().filter(|_| num == 1);
        let folder = folder.with_context(|| {
            format!("--paired {text}: {num} experiments are below that directory, name one of them")
        })?;
        Ok(Self::Experiment { folder, stage })
    }

    /// Its experiment, which the report shows too.
    pub fn folder(&self) -> Option<&Path> {
        match self {
            Self::Start => None,
            Self::Experiment { folder, .. } => Some(folder),
        }
    }

    /// Its row.
    ///
    /// # Errors
    /// If it was not evaluated.
    pub fn row(
        &self,
        groups: &[Group],
        points: &[Point],
        experiments: &[GatheredExperiment],
    ) -> Result<usize> {
        let Self::Experiment { folder, stage } = self else {
            let row = groups.iter().position(|g| g.family == QuantizationKind::Start);
            return row.with_context(|| format!("--paired start: {}", start::missing(experiments)));
        };
        let at = folder.display();
        let is_of = |p: &&Point| {
            p.family != QuantizationKind::Start && gather::is_same(&p.experiment, folder)
        };
        let own: Vec<&Point> = points.iter().filter(is_of).collect();
        ensure!(
            !own.is_empty(),
            "--paired: {at} has no evaluation; run `mqat test --all-stages` for it, or pass --evaluate"
        );
        let point = match stage {
            None => own.last().copied(),
            Some(stage) => own.iter().rfind(|p| p.stage == *stage).copied(),
        };
        let key = &point
            .with_context(|| {
                let stages: Vec<&str> = own.iter().map(|p| p.stage.as_str()).collect();
                let stage = stage.as_deref().unwrap_or_default();
                format!(
                    "--paired: {at} has no evaluated stage {stage:?}, there are: {}",
                    stages.join(", ")
                )
            })?
            .key;
        let has_key = |g: &Group| g.runs.first().is_some_and(|&i| points[i].key == *key);
        groups.iter().position(has_key).context("the base has no row")
    }
}
