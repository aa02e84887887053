//! `mqat test`: checkpoints over a split, one report each, side by side when there are several.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tch::Device;

use super::shared::infer_together;
use crate::artifact::{Artifact, Asked, EngineChoice, Opened, Reading, open};
use crate::data::{BadSample, Dataset, Purpose, Split};
use crate::eval::{
    Comparison, Evaluation, EvaluationInfo, Inference, Prediction, Progress, Report, ResultFormat,
    ScoredSplit, Timing, benchmark_scores, evaluate, write_bop_csv, write_depth_chart,
    write_errors, write_overlays, write_predictions,
};
use crate::io;
use crate::run::config::{Config, Names};
use crate::run::folder::{Folder, Pick};
use crate::run::home::Home;
use crate::run::objects;
use crate::run::options::{decoder_for, infer_options};
use crate::run::request::Request;
use crate::train::{CheckpointFolder, CheckpointMeta, ResumeFrom, config_hash};
use crate::world::World;

/// Beside metrics.json: the files that its reports are of, in their order.
pub(crate) const CHECKPOINTS_FILE: &str = "checkpoints.json";

/// Beside metrics.json: the errors of every object, of the report of that number.
pub(crate) fn errors_file(index: usize) -> String {
    format!("errors_{index}.jsonl")
}

/// What `mqat test` is asked.
#[derive(Debug, Clone)]
pub struct TestRequest {
    /// Config, places, device.
    pub run: Request,
    /// Checkpoints; none takes those of the experiment.
    pub checkpoints: Vec<PathBuf>,
    /// The experiment; none is the latest.
    pub exp_id: Option<u32>,
    /// The end of every stage, not only of the last.
    pub all_stages: bool,
    /// The best checkpoint by validation, not the end of the last stage.
    pub best: bool,
    /// The split.
    pub split: Split,
    /// Where predictions go: as BOP csv where the name ends in `.csv`, else as JSON lines.
    pub predictions: Option<PathBuf>,
    /// Folder of the report; none is the experiment's own.
    pub out: Option<PathBuf>,
    /// Evaluate files that lack layers, too.
    pub loose: bool,
    /// What stands before the keys of the network, where a file holds several.
    pub strip_prefix: Option<String>,
    /// What runs the networks.
    pub engine: EngineChoice,
}

/// What `mqat test` found.
#[derive(Debug, Serialize)]
pub struct TestReport {
    /// One for each checkpoint, in their order.
    pub evaluations: Vec<CheckpointReport>,
    /// Folder with metrics.json, tables, plots and overlays.
    #[serde(serialize_with = "crate::io::path_text")]
    pub folder: Option<PathBuf>,
}

/// The evaluation of one checkpoint.
#[derive(Debug, Serialize)]
pub struct CheckpointReport {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub checkpoint: PathBuf,
    /// Where its predictions were written.
    #[serde(serialize_with = "crate::io::path_text")]
    pub predictions: Option<PathBuf>,
    /// The scores.
    pub report: Report,
}

impl TestReport {
    /// The tables for a terminal.
    pub fn text(&self) -> String {
        text_of(&self.evaluations.iter().map(|e| &e.report).collect::<Vec<_>>())
    }
}

/// One report, or several side by side, for a terminal.
pub(crate) fn text_of(reports: &[&Report]) -> String {
    match reports {
        [one] => one.text(),
        many => Comparison::new(many).text(),
    }
}

/// Evaluates. `progress` gets the name of what is evaluated and how far it is. The images are shared by the processes of
/// `world`, each image looked at once; process 0 scores and writes, and the others report nothing.
///
/// # Errors
/// If a checkpoint, the config or the dataset cannot be read or do not fit each other; if a process is lost.
pub fn test(
    request: &TestRequest,
    world: &World,
    progress: &mut dyn FnMut(&str, Progress),
) -> Result<TestReport> {
    let mut home = request.run.home()?;
    let (files, folder) = find_checkpoints(request, &home)?;
    if let Some(folder) = &folder {
        home = request.run.home_of_run(folder)?;
    }
    let artifacts = open_all(request, &home, &files, folder.as_ref())?;
    let config = &artifacts.first().context("no checkpoint to evaluate")?.config;
    let device = request.run.open_device_in(config, world)?;
    let dataset = request.run.open_split(&home, config, request.split, Purpose::Evaluation);
    let dataset = Arc::new(world.all_succeeded(dataset)?);
    ensure_same(world, config, &files)?;
    let infer = |artifact| infer_one(request, world, artifact, &dataset, device, progress);
    let found = artifacts.iter().map(infer).collect::<Result<Vec<_>>>()?;
    // The other processes do not wait for the scores.
    if !world.is_first() {
        return Ok(TestReport { evaluations: Vec::new(), folder: None });
    }
    let mut runs = Vec::with_capacity(files.len());
    for (file, (name, inference)) in files.iter().zip(found) {
        let run = score_one(request, config, &dataset, &name, inference)?;
        if let Some(path) = predictions_path(request, &files, file) {
            write_results(&path, &dataset, &run)?;
        }
        runs.push(run);
    }
    tell_apart(&mut runs, &files);
    let out = request
        .out
        .clone()
        .or_else(|| folder.as_ref().map(|f| f.evaluation(&request.split.to_string())));
    if let Some(out) = &out {
        write_report(out, config, &dataset, &runs)?;
        let absolute = |p: &PathBuf| {
            let path = std::path::absolute(p).unwrap_or_else(|_| p.clone());
            path.to_string_lossy().into_owned()
        };
        let paths: Vec<String> = files.iter().map(absolute).collect();
        io::write_json(&out.join(CHECKPOINTS_FILE), &paths)?;
    }
    let evaluations = runs
        .into_iter()
        .zip(&files)
        .map(|(run, file)| CheckpointReport {
            checkpoint: file.clone(),
            predictions: predictions_path(request, &files, file),
            report: run.evaluation.report,
        })
        .collect();
    Ok(TestReport { evaluations, folder: out })
}

/// Refuses processes that evaluate different files, or under different configs.
fn ensure_same(world: &World, config: &Config, files: &[PathBuf]) -> Result<()> {
    let files: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
    let command = "start all of them with the same command";
    world.ensure_same("list of files", &files.join(", "), command)?;
    let config = serde_json::to_value(config).context("writing the config as JSON")?;
    world.ensure_same("config", &config_hash(&config), command)
}

/// Predictions, a checkpoint's or a file's, and their scores.
pub(crate) struct Run {
    pub predictions: Vec<Prediction>,
    pub evaluation: Evaluation,
}

/// Writes a checkpoint's predictions in the format that the file's name asks for.
fn write_results(path: &Path, dataset: &Dataset, run: &Run) -> Result<()> {
    match ResultFormat::of_name(path) {
        ResultFormat::Jsonl => write_predictions(path, &run.predictions),
        ResultFormat::BopCsv => {
            let time_s = run.evaluation.report.timing.as_ref().and_then(mean_time_s);
            write_bop_csv(path, dataset, &run.predictions, time_s)
        }
    }
}

/// What an image takes on average, s: network, decoding and PnP, without loading.
fn mean_time_s(timing: &Timing) -> Option<f64> {
    let total_s = timing.network_s + timing.decode_s + timing.pnp_s;
    (timing.num_images > 0).then(|| total_s / timing.num_images as f64)
}

/// The checkpoints to evaluate, and the experiment's folder when it is one's.
fn find_checkpoints(request: &TestRequest, home: &Home) -> Result<(Vec<PathBuf>, Option<Folder>)> {
    if !request.checkpoints.is_empty() {
        // All of them are looked for before the first one is evaluated.
        for file in &request.checkpoints {
            let folder = if file.is_dir() { ": it is a directory, name a file in it" } else { "" };
            ensure!(file.is_file(), "no checkpoint {}{folder}", file.display());
        }
        return Ok((request.checkpoints.clone(), None));
    }
    let select = &request.run.select;
    let pick = request.exp_id.map_or(Pick::Latest, Pick::Id);
    let folder = Folder::find(&home.logs, select.problem(), select.topology(), pick)?;
    let checkpoints = CheckpointFolder::existing(&folder.checkpoints())?;
    if request.best {
        let found = checkpoints.find(&ResumeFrom::Best)?;
        let best = found.checkpoint.meta.best.map_or(String::new(), |best| {
            format!(": {} {:.1} at step {}", best.name, best.value, best.global_step)
        });
        let stage = &found.checkpoint.meta.stage_name;
        tracing::info!("evaluating {}, the best of stage {stage}{best}", found.path.display());
        return Ok((vec![found.path], Some(folder)));
    }
    let ends = checkpoints.stage_ends()?;
    if let (Some(end), Some((newest, _))) = (ends.last(), checkpoints.list()?.last()) {
        let end_step = CheckpointMeta::of_file(end)?.map_or(0, |m| m.position.global_step);
        if end_step < *newest {
            tracing::warn!(
                "{} has trained on to step {newest} in a stage that is not complete; evaluating the completed ones \
                 (name a file with --checkpoint for another)",
                folder.path.display()
            );
        }
    }
    let files = match (request.all_stages, ends.last()) {
        (true, Some(_)) => ends,
        (false, Some(last)) => vec![last.clone()],
        (_, None) => {
            let (_, last) = checkpoints.list()?.pop().with_context(|| {
                format!("{} has no checkpoint yet; train it first", folder.path.display())
            })?;
            tracing::warn!(
                "no stage of {} is complete, evaluating its last checkpoint",
                folder.path.display()
            );
            vec![last]
        }
    };
    for file in &files {
        tracing::info!("evaluating {} (--best takes the best by validation)", file.display());
    }
    Ok((files, Some(folder)))
}

/// The files with the config to evaluate all of them with: one named by the user, else the experiment's, else that of the
/// first file.
fn open_all(
    request: &TestRequest,
    home: &Home,
    files: &[PathBuf],
    folder: Option<&Folder>,
) -> Result<Vec<Artifact>> {
    let select = request.run.select.for_evaluation();
    let mut of_experiment = select.clone();
    if folder.is_some() {
        of_experiment.topology = None; // it names the folder
    }
    let asked = Asked {
        select: &of_experiment,
        home,
        engine: request.engine,
        names: Names::Dataset,
        beside: None,
    };
    let mut artifacts = files.iter().map(|file| open(file, &asked)).collect::<Result<Vec<_>>>()?;
    let Some(first) = artifacts.first() else { return Ok(artifacts) };
    let config = match folder {
        Some(folder) if select.config.is_none() => {
            let path = folder.config();
            select.apply(io::read_json(&path)?, &path.display().to_string())?
        }
        _ => first.config.clone(),
    };
    for artifact in &mut artifacts {
        artifact.ensure_uses(request.run.device)?;
        artifact.config = config.clone();
    }
    Ok(artifacts)
}

/// What the network of one file finds, and its name.
fn infer_one(
    request: &TestRequest,
    world: &World,
    artifact: &Artifact,
    dataset: &Arc<Dataset>,
    device: Device,
    progress: &mut dyn FnMut(&str, Progress),
) -> Result<(String, Inference)> {
    let config = &artifact.config;
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let reading = Reading::new(request.loose, request.strip_prefix.clone());
    let Opened { name, engine, device, .. } = artifact.engine(device, reading, threads)?;
    tracing::info!("evaluating {} ({name})", artifact.file.display());
    let options = infer_options(config, device, request.run.skip_bad);
    objects::warn_of_contradiction(artifact.objects()?, dataset, &artifact.file);
    let decoder = decoder_for(config, dataset)?;
    let report_progress = |p| progress(&name, p);
    let (engine, decoder) = (engine.as_ref(), decoder.as_ref());
    let inference = infer_together(world, engine, decoder, dataset, &options, report_progress)?;
    if let Some(nothing) = nothing_left(dataset, &inference.left_out) {
        bail!("{}: {nothing}", config.data.list(request.split));
    }
    Ok((name, inference))
}

/// The scores of what was found.
fn score_one(
    request: &TestRequest,
    config: &Config,
    dataset: &Dataset,
    name: &str,
    inference: Inference,
) -> Result<Run> {
    let info = EvaluationInfo {
        name,
        list: config.data.list(request.split),
        left_out: &inference.left_out,
        timing: Some(inference.timing),
    };
    let mut evaluation =
        evaluate(dataset, &config.data, &inference.predictions, &config.evaluation, info)?;
    let (list, left_out) = (config.data.list(request.split), &inference.left_out);
    let split = ScoredSplit::open(dataset, list, config.evaluation.bop_settings())?;
    let (bop, notes) =
        benchmark_scores(dataset, &config.data, &split, &inference.predictions, left_out)?;
    (evaluation.report.bop, evaluation.report.bop_notes) = (Some(bop), notes);
    Ok(Run { predictions: inference.predictions, evaluation })
}

/// Why the images that could be read have nothing to evaluate; none where they have.
pub(super) fn nothing_left(dataset: &Dataset, left_out: &[BadSample]) -> Option<String> {
    let frames = &dataset.frames;
    let bad: HashSet<usize> = left_out.iter().map(|bad| bad.index).collect();
    let objects = (frames.iter().enumerate()).filter(|(i, _)| !bad.contains(i));
    if objects.map(|(_, frame)| frame.objects.len()).sum::<usize>() > 0 {
        return None;
    }
    Some(match left_out.first() {
        Some(first) if left_out.len() == frames.len() => {
            format!("none of the {} images could be read, the first: {}", frames.len(), first.error)
        }
        Some(first) => format!(
            "{} of {} images could not be read, and the others have no object; the first: {}",
            left_out.len(),
            frames.len(),
            first.error
        ),
        None => format!("no object in any of the {} images", frames.len()),
    })
}

/// Where a checkpoint's predictions go: with several checkpoints each has its name in the file's, and its number where
/// names are equal.
fn predictions_path(request: &TestRequest, files: &[PathBuf], file: &Path) -> Option<PathBuf> {
    let path = request.predictions.as_ref()?;
    if files.len() == 1 {
        return Some(path.clone());
    }
    let part =
        |p: &Path| p.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let ending = path.extension().map(|e| format!(".{}", e.to_string_lossy())).unwrap_or_default();
    let alike = files.iter().filter(|f| part(f) == part(file)).count();
    let number = files.iter().position(|f| f == file).unwrap_or(0);
    let number = if alike > 1 { format!("_{number}") } else { String::new() };
    Some(path.with_file_name(format!("{}{number}_{}{ending}", part(path), part(file))))
}

/// Gives runs of equal names the places they come from.
fn tell_apart(runs: &mut [Run], files: &[PathBuf]) {
    let names: Vec<String> = runs.iter().map(|r| r.evaluation.report.name.clone()).collect();
    for (i, run) in runs.iter_mut().enumerate() {
        if names.iter().filter(|name| **name == names[i]).count() > 1 {
            let experiment = files[i].ancestors().filter_map(Path::file_name).find_map(|n| {
                let name = n.to_str()?;
                name.strip_prefix("exp")?.parse::<u32>().ok().map(|_| name.to_owned())
            });
            let place = experiment.unwrap_or_else(|| format!("file {i}"));
            let stem = files[i].file_stem().map(|s| s.to_string_lossy().into_owned());
            run.evaluation.report.name += &format!(", {place} {}", stem.unwrap_or_default());
        }
    }
}

/// Writes metrics, tables, the plot over depth and overlays.
pub(crate) fn write_report(
    out: &Path,
    config: &Config,
    dataset: &Dataset,
    runs: &[Run],
) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("making the folder {}", out.display()))?;
    let reports: Vec<&Report> = runs.iter().map(|r| &r.evaluation.report).collect();
    io::write_json(&out.join("metrics.json"), &reports)?;
    let markdown = match reports.as_slice() {
        [one] => one.markdown(),
        many => Comparison::new(many).markdown(),
    };
    for (name, table) in [("table.txt", &text_of(&reports)), ("table.md", &markdown)] {
        io::write_atomic(&out.join(name), |w| Ok(w.write_all(table.as_bytes())?))?;
    }
    let named: Vec<_> = runs
        .iter()
        .map(|r| (r.evaluation.report.name.as_str(), r.evaluation.errors.as_slice()))
        .collect();
    let synthetic = reports.iter().any(|r| r.dataset.synthetic);
    let title =
        if synthetic { "Accuracy over depth (synthetic data)" } else { "Accuracy over depth" };
    write_depth_chart(out, "accuracy_over_depth", title, &named)?;
    for (i, run) in runs.iter().enumerate() {
        write_errors(&out.join(errors_file(i)), &run.evaluation.errors)?;
        write_overlays(
            &out.join(format!("overlays_{i}")),
            dataset,
            &run.predictions,
            &run.evaluation.errors,
            config.evaluation.num_overlays,
        )?;
    }
    Ok(())
}
