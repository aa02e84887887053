//! `mqat test`: checkpoints over a split, one report each, side by side when there are several.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;
use tch::Device;

use super::config::Config;
use super::engine::{EngineChoice, stored_config};
use super::folder::{Folder, Pick};
use super::home::Home;
use super::open::{Opened, Request, infer_options, open_engine};
use super::weights::Strictness;
use crate::data::{Dataset, Split};
use crate::eval::{
    Comparison, Evaluation, Prediction, Progress, Report, ResultFormat, RunInfo, Timing,
    average_recalls, evaluate, infer, write_bop_csv, write_depth_chart, write_errors,
    write_overlays, write_predictions,
};
use crate::io;
use crate::quant::ModuleQuantizer;
use crate::train::{CheckpointFolder, CheckpointMeta, QuantizedModule};

/// Beside metrics.json: the files that its reports are of, in their order.
pub(super) const CHECKPOINTS_FILE: &str = "checkpoints.json";

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
    /// The split.
    pub split: Split,
    /// Where predictions go: as BOP csv where the name ends in `.csv`, else as JSON lines.
    pub predictions: Option<PathBuf>,
    /// Folder of the report; none is the experiment's own.
    pub out: Option<PathBuf>,
    /// Evaluate files that lack layers, too.
    pub loose: bool,
    /// What runs the networks.
    pub engine: EngineChoice,
}

/// What `mqat test` found.
#[derive(Debug, Serialize)]
pub struct TestReport {
    /// One for each checkpoint, in their order.
    pub evaluations: Vec<CheckpointReport>,
    /// Folder with metrics.json, tables, plots and overlays.
    pub folder: Option<PathBuf>,
}

/// The evaluation of one checkpoint.
#[derive(Debug, Serialize)]
pub struct CheckpointReport {
    /// The file.
    pub checkpoint: PathBuf,
    /// Where its predictions were written.
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
pub(super) fn text_of(reports: &[&Report]) -> String {
    match reports {
        [one] => one.text(),
        many => Comparison::new(many).text(),
    }
}

/// Evaluates. `progress` gets the name of what is evaluated and how far it is.
///
/// # Errors
/// If a checkpoint, the config or the dataset cannot be read or do not fit each other.
pub fn test(request: &TestRequest, progress: &mut dyn FnMut(&str, Progress)) -> Result<TestReport> {
    let mut home = request.run.home()?;
    let (files, folder) = find_checkpoints(request, &home)?;
    if let Some(folder) = &folder {
        home = request.run.home_of_run(folder)?;
    }
    let first = files.first().context("no checkpoint to evaluate")?;
    let mut config = config_for(request, &home, first, folder.as_ref())?;
    if let Some(seed) = request.run.select.seed {
        config.evaluation.seed = seed;
    }
    let device = request.run.open_device(&config)?;
    let dataset = Arc::new(request.run.open_split(&home, &config, request.split)?);
    let mut runs = Vec::with_capacity(files.len());
    for file in &files {
        let run = evaluate_one(request, &config, &dataset, device, file, progress)?;
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
        write_report(out, &config, &dataset, &runs)?;
        let absolute = |p: &PathBuf| std::path::absolute(p).unwrap_or_else(|_| p.clone());
        let paths: Vec<PathBuf> = files.iter().map(absolute).collect();
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

/// Predictions, a checkpoint's or a file's, and their scores.
pub(super) struct Run {
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
            let folder = if file.is_dir() { ": it is a folder, name a file in it" } else { "" };
            ensure!(file.is_file(), "no checkpoint {}{folder}", file.display());
        }
        return Ok((request.checkpoints.clone(), None));
    }
    let select = &request.run.select;
    let pick = request.exp_id.map_or(Pick::Latest, Pick::Id);
    let folder = Folder::find(&home.logs, select.problem(), select.topology(), pick)?;
    let checkpoints = CheckpointFolder::existing(&folder.checkpoints())?;
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
    Ok((files, Some(folder)))
}

/// The config to evaluate with: one named by the user, else the experiment's, else the one a checkpoint carries, else
/// the default.
fn config_for(
    request: &TestRequest,
    home: &Home,
    checkpoint: &Path,
    folder: Option<&Folder>,
) -> Result<Config> {
    let select = &request.run.select;
    let named = select.config.is_some() || (folder.is_none() && select.topology.is_some());
    let stored: Option<(Value, String)> = match (named, folder) {
        (true, _) => None,
        (false, Some(folder)) => {
            Some((io::read_json(&folder.config())?, folder.config().display().to_string()))
        }
        (false, None) => {
            let config = stored_config(request.engine, checkpoint)?;
            config.map(|config| (config, format!("the config in {}", checkpoint.display())))
        }
    };
    match stored {
        Some((document, at)) => select.apply(document, &at),
        None => select.resolve(home),
    }
}

fn evaluate_one(
    request: &TestRequest,
    config: &Config,
    dataset: &Arc<Dataset>,
    device: Device,
    file: &Path,
    progress: &mut dyn FnMut(&str, Progress),
) -> Result<Run> {
    let Opened { name, engine, device, .. } =
        open_engine(request.engine, file, config, device, Strictness::loose(request.loose))?;
    tracing::info!("evaluating {} ({name})", file.display());
    let options = infer_options(config, device, request.run.skip_bad);
    let inference = infer(engine.as_ref(), dataset, &options, |p| progress(&name, p))?;
    let info = RunInfo {
        name: &name,
        list: config.data.list(request.split),
        left_out: &inference.left_out,
        timing: Some(inference.timing),
    };
    let mut evaluation =
        evaluate(dataset, &config.data, &inference.predictions, &config.evaluation, info)?;
    evaluation.report.bop =
        Some(average_recalls(dataset, &config.data, &inference.predictions, &inference.left_out)?);
    Ok(Run { predictions: inference.predictions, evaluation })
}

/// What a checkpoint is, for people: `full precision`, `fpn 2-bit (3 levels)`; says so where a module is not quantized
/// to the end.
pub(super) fn run_name(quantized: &[QuantizedModule], quantizers: &[ModuleQuantizer]) -> String {
    let names = module_names(quantized);
    if names.is_empty() {
        return "full precision".to_owned();
    }
    let partly = |quantizer: &ModuleQuantizer| {
        let sites = quantizer.report();
        let weights: Vec<_> = sites.iter().filter(|s| s.num_levels.is_some()).collect();
        let total: usize = weights.iter().map(|s| s.num_weights).sum();
        let frozen: f64 = weights.iter().map(|s| s.share_frozen * s.num_weights as f64).sum();
        let mut text = String::new();
        if total > 0 && frozen < total as f64 {
            text += &format!(", only {:.1} % frozen", 100.0 * frozen / total as f64);
        }
        if sites.iter().any(|s| s.activations.as_ref().is_some_and(|a| !a.quantizing)) {
            text += ", inputs still float";
        }
        text
    };
    let quantizer_of =
        |i: usize| quantizers.iter().find(|q| q.module() == quantized[i].claim.module);
    let named: Vec<String> = (names.iter().enumerate())
        .map(|(i, name)| format!("{name}{}", quantizer_of(i).map_or_else(String::new, partly)))
        .collect();
    named.join(" + ")
}

/// Quantized modules, each with its bits and levels.
pub(super) fn module_names(quantized: &[QuantizedModule]) -> Vec<String> {
    let name = |module: &QuantizedModule| {
        let mut text = module.claim.module.clone();
        if let Some(weights) = &module.claim.weights {
            text += &format!(" {}", weights.describe());
        }
        if let Some(activations) = &module.claim.activations {
            text += &format!(", inputs {}", activations.describe());
        }
        text
    };
    quantized.iter().map(name).collect()
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
pub(super) fn write_report(
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
        write_errors(&out.join(format!("errors_{i}.jsonl")), &run.evaluation.errors)?;
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
