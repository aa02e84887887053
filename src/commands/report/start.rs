//! The row `start`: the network that the runs began with, evaluated without any training.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::ReportRequest;
use super::gather::{self, GatheredExperiment, Place, Point};
use crate::commands::test::{TestRequest, test};
use crate::eval::Progress;
use crate::run::folder::Provenance;
use crate::world::World;

/// The starting network's evaluation: of the folder that is named, else the one in an experiment, which is made when
/// evaluations are asked for; `None` where there is none.
///
/// # Errors
/// If the folder that is named holds no evaluation of one network, or the evaluation fails.
pub(super) fn find(
    request: &ReportRequest,
    experiments: &[GatheredExperiment],
    progress: &mut dyn FnMut(&str, Progress),
) -> Result<Option<Point>> {
    let Some(first) = experiments.first() else { return Ok(None) };
    if let Some(folder) = &request.start {
        ensure!(
            folder.join("metrics.json").is_file(),
            "--start {}: expected the folder of an evaluation (`mqat test --checkpoint START --out DIR`); it has no \
             metrics.json",
            folder.display()
        );
        return gather::start_point(folder, first).map(Some);
    }
    ensure_one_start(experiments);
    let place = |e: &GatheredExperiment| gather::start_evaluation(&e.folder.path, request.split);
    let is_there = |e: &&GatheredExperiment| place(e).join("metrics.json").is_file();
    if let Some(experiment) = experiments.iter().find(is_there) {
        return gather::start_point(&place(experiment), experiment).map(Some);
    }
    match experiments.iter().find(|e| e.start_file().is_some()) {
        Some(experiment) if request.evaluate => {
            let folder = place(experiment);
            evaluate(request, experiment, &folder, progress)
                .with_context(|| format!("evaluating the start of {}", experiment.at()))?;
            gather::start_point(&folder, experiment).map(Some)
        }
        _ => Ok(None),
    }
}

/// Why there is no row `start`, and what makes one.
pub(super) fn missing(experiments: &[GatheredExperiment]) -> String {
    match experiments.iter().find_map(|e| e.start_file().map(|file| (e, file))) {
        Some((experiment, file)) => format!(
            "the start of {} was not evaluated: pass --evaluate, or run `mqat test --checkpoint {} --out DIR` and pass \
             --start DIR",
            experiment.at(),
            file.display()
        ),
        None => "the runs begin with random values, so that there is no start to compare with; pass --start DIR with \
                 the evaluation of a network"
            .to_owned(),
    }
}

fn ensure_one_start(experiments: &[GatheredExperiment]) {
    let mut starts = experiments.iter().filter_map(|e| e.start_file().map(|file| (e, file)));
    if let Some((first, file)) = starts.next()
        && let Some((other, another)) = starts.find(|(_, f)| *f != file)
    {
        tracing::warn!(
            "{} begins with {} and {} with {}: the row start is that of the first",
            first.at(),
            file.display(),
            other.at(),
            another.display()
        );
    }
}

fn evaluate(
    request: &ReportRequest,
    experiment: &GatheredExperiment,
    out: &Path,
    progress: &mut dyn FnMut(&str, Progress),
) -> Result<()> {
    let file = experiment.start_file().context("it begins with random values")?;
    let mut run = request.run.clone();
    run.select.problem = Some(Place::of(&experiment.folder.path)?.problem);
    run.select.topology = None;
    run.select.config.get_or_insert_with(|| experiment.folder.config());
    if run.data.is_none() {
        run.data = Provenance::of(&experiment.folder)?.map(|p| p.dataset);
    }
    let request = TestRequest {
        run,
        checkpoints: vec![PathBuf::from(file)],
        exp_id: None,
        all_stages: false,
        best: false,
        split: request.split,
        predictions: None,
        out: Some(out.to_owned()),
        loose: experiment.config.experiment.loose,
        strip_prefix: None,
        engine: Default::default(),
    };
    test(&request, &World::alone(), progress).map(|_| ())
}
