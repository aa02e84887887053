//! `mqat score`: poses from files, of this program or any other, over a split; no network.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use crate::commands::test::{Run, text_of, write_report};
use crate::data::{BopFolder, DataConfig, Dataset, Purpose, Split, SplitList, SplitPart};
use crate::eval::{
    BopSplit, EvaluationInfo, Report, ResultFile, ResultFormat, ScoredSplit, benchmark_scores,
    evaluate, image_ids, odd_distances, read_predictions,
};
use crate::run::config::{Config, Names, Select};
use crate::run::home::Home;
use crate::run::request::Request;

/// What `mqat score` is asked.
#[derive(Debug, Clone)]
pub struct ScoreRequest {
    /// Config and places; no device is opened. With `skip_bad` bad lines are left out as bad images are.
    pub run: Request,
    /// Files of predictions; at least one.
    pub predictions: Vec<PathBuf>,
    /// Their format; none is told by each file's content.
    pub format: Option<ResultFormat>,
    /// The split: `train`, `valid` or `test`, the default, or the file of a list; of a BOP folder without a config and without
    /// that list the name of a folder of scenes, by default its only one of test scenes.
    pub split: Option<String>,
    /// Folder of the report.
    pub out: Option<PathBuf>,
    /// Whether overlays are drawn into it, which takes the images.
    pub overlays: bool,
}

/// What `mqat score` found.
#[derive(Debug, Serialize)]
pub struct ScoreReport {
    /// One for each file, in their order.
    pub evaluations: Vec<FileScore>,
    /// Folder with metrics.json, tables, plots and overlays.
    #[serde(serialize_with = "crate::io::path_text")]
    pub folder: Option<PathBuf>,
}

/// The evaluation of one file.
#[derive(Debug, Serialize)]
pub struct FileScore {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub predictions: PathBuf,
    /// How it is written.
    pub format: ResultFormat,
    /// Poses in it.
    pub num_predictions: usize,
    /// Poses of a class in an image beyond the first there; the most confident count, as many as there are objects.
    pub num_repeats: usize,
    /// Records that say that no pose was found.
    pub num_no_pose: usize,
    /// Lines that were left out.
    pub num_bad_lines: usize,
    /// Why, for the first ten.
    pub bad_lines: Vec<String>,
    /// Mean time that the file gives for an image, s.
    pub mean_time_s: Option<f64>,
    /// The scores.
    pub report: Report,
}

impl ScoreReport {
    /// The tables for a terminal.
    pub fn text(&self) -> String {
        text_of(&self.evaluations.iter().map(|e| &e.report).collect::<Vec<_>>())
    }
}

/// Scores files of predictions as [`super::test()`] scores a network's. A BOP folder needs no config: unless one is named,
/// classes, diameters and symmetries are those of its `models_info.json`.
///
/// # Errors
/// If the config, the dataset or a file cannot be read, or a prediction is bad or does not fit the dataset.
pub fn score(request: &ScoreRequest) -> Result<ScoreReport> {
    ensure!(!request.predictions.is_empty(), "no file of predictions is named");
    let home = request.run.home()?;
    let select = request.run.select.for_evaluation();
    select.ensure_names_act(Names::Dataset)?;
    let mut config = select.resolve(&home)?;
    let named = request.split.as_deref();
    let split = match own_folder(&home, &select, &config.data, named) {
        Some(folder) => take_folder(&mut config.data, &folder, named)?,
        None => take_list(&mut config.data, &home, select.problem(), named.unwrap_or("test"))?,
    };
    if !request.overlays {
        config.evaluation.num_overlays = 0;
    }
    let mut dataset = request.run.open_split(&home, &config, split, Purpose::Scoring)?;
    let list = config.data.list(split);
    let scored_split = ScoredSplit::open(&dataset, list, config.evaluation.bop_settings())?;
    let asked = scored_split.bop();
    let (mut runs, mut files) = (Vec::new(), Vec::new());
    let mut read = Vec::new();
    for path in &request.predictions {
        let mut file = read_predictions(path, request.format, &dataset, request.run.skip_bad)?;
        tell(path, &file, &dataset);
        if let Some(asked) = asked {
            leave_out_others(path, &mut file, asked);
        }
        read.push(file);
    }
    if let Some(asked) = asked {
        dataset.frames.retain(|frame| is_asked_for(asked, &frame.image));
    }
    for (i, mut file) in read.into_iter().enumerate() {
        let name = name_of(&request.predictions, i);
        runs.push(scored(&name, &mut file, &config, &dataset, split, &scored_split)?);
        files.push(file);
    }
    if let Some(out) = &request.out {
        write_report(out, &config, &dataset, &runs)?;
    }
    let evaluations = (request.predictions.iter().zip(files).zip(runs))
        .map(|((path, file), run)| FileScore {
            predictions: path.clone(),
            format: file.format,
            num_predictions: run.predictions.len(),
            num_repeats: file.num_repeats,
            num_no_pose: file.num_no_pose,
            num_bad_lines: file.num_bad,
            bad_lines: file.bad,
            mean_time_s: file.mean_time_s,
            report: run.evaluation.report,
        })
        .collect();
    Ok(ScoreReport { evaluations, folder: request.out.clone() })
}

/// The BOP folder that is scored without a config: none where a config is named, or the split has a list that is a file.
fn own_folder(
    home: &Home,
    select: &Select,
    data: &DataConfig,
    split: Option<&str>,
) -> Option<BopFolder> {
    let named = select.problem.is_some() || select.topology.is_some() || select.config.is_some();
    let split = split.unwrap_or("test");
    let list = split.parse().map_or(split, |split| data.list(split));
    let has_list = || is_list(home, select.problem(), list);
    if named || has_list() { None } else { home.bop_folder(select.problem()) }
}

/// Whether a dataset's list is a file.
fn is_list(home: &Home, problem: &str, list: &str) -> bool {
    home.dataset(problem, list).is_ok_and(|root| root.join(list).is_file())
}

/// The split of a name, or of a file that is a list of images.
fn take_list(data: &mut DataConfig, home: &Home, problem: &str, split: &str) -> Result<Split> {
    match split.parse() {
        Err(_) if is_list(home, problem, split) => {
            split.clone_into(&mut data.test);
            Ok(Split::Test)
        }
        parsed => parsed,
    }
}

/// Takes classes, diameters and symmetries from the folder, and a split of it as the one to evaluate.
fn take_folder(data: &mut DataConfig, folder: &BopFolder, split: Option<&str>) -> Result<Split> {
    let configured = SplitList::parse(&data.test).is_ok_and(|list| list.is_in(folder.root()));
    match split {
        Some(name) => name.clone_into(&mut data.test),
        None if configured => {}
        None => folder.test_split()?.clone_into(&mut data.test),
    }
    for SplitPart { name, .. } in SplitList::parse(&data.test)?.parts {
        let names: Vec<&str> = folder.splits().collect();
        ensure!(
            names.contains(&name.as_str()),
            "{}: no folder {name} of numbered scenes; there are {}",
            folder.root().display(),
            names.join(", ")
        );
    }
    let meshes = folder.evaluation_meshes().context("no folder of meshes")?;
    let infos = folder.infos(&meshes)?;
    let classes = match data.obj_ids.as_slice() {
        [] => infos.obj_ids(),
        chosen => infos.obj_ids().into_iter().filter(|id| chosen.contains(id)).collect(),
    };
    data.num_classes_with_background = classes.len() + 1;
    if data.mesh_diameters_mm == DataConfig::default().mesh_diameters_mm {
        data.mesh_diameters_mm.clear();
    }
    let configured = !data.symmetric_classes.is_empty();
    for (class, obj_id) in classes.into_iter().enumerate() {
        let symmetries = infos.symmetries(obj_id)?;
        let symmetric = !symmetries.discrete.is_empty() || !symmetries.continuous.is_empty();
        if symmetric && !configured {
            data.symmetric_classes.push(class);
        }
    }
    Ok(Split::Test)
}

fn is_asked_for(asked: &BopSplit, image: &str) -> bool {
    image_ids(image).is_some_and(|(scene_id, im_id)| asked.asks_for(scene_id, im_id))
}

/// Leaves out poses in images that are no targets.
fn leave_out_others(path: &Path, file: &mut ResultFile, asked: &BopSplit) {
    let before = file.predictions.len();
    file.predictions.retain(|p| is_asked_for(asked, &p.image));
    let num = before - file.predictions.len();
    if num > 0 {
        tracing::info!("{}: {num} predictions are in images that no target is in", path.display());
    }
}

fn scored(
    name: &str,
    file: &mut ResultFile,
    config: &Config,
    dataset: &Dataset,
    split: Split,
    scored: &ScoredSplit,
) -> Result<Run> {
    let info = EvaluationInfo { name, list: config.data.list(split), left_out: &[], timing: None };
    let predictions = std::mem::take(&mut file.predictions);
    let mut evaluation = evaluate(dataset, &config.data, &predictions, &config.evaluation, info)
        .with_context(|| format!("scoring {name}"))?;
    let report = &mut evaluation.report;
    let (bop, notes) = benchmark_scores(dataset, &config.data, scored, &predictions, &[])?;
    (report.bop, report.bop_notes) = (Some(bop), notes);
    Ok(Run { predictions, evaluation })
}

/// Says what was read and what is odd about it.
fn tell(path: &Path, file: &ResultFile, dataset: &Dataset) {
    let (at, num) = (path.display(), file.predictions.len());
    tracing::info!("{at}: {num} predictions ({})", file.format);
    if num == 0 {
        tracing::warn!("{at} holds no predictions: every object counts as missing");
    }
    if file.num_repeats > 0 {
        tracing::warn!(
            "{at}: {} predictions repeat the class of another one in their image; the most confident count, as many as there \
             are objects",
            file.num_repeats
        );
    }
    if let Some(odd) = odd_distances(dataset, &file.predictions) {
        tracing::warn!("{at}: {odd}");
    }
    for bad in &file.bad {
        tracing::warn!("left out: {bad}");
    }
    if file.num_bad > file.bad.len() {
        tracing::warn!("{at}: {} bad lines in all are left out", file.num_bad);
    }
}

/// A file's name without its ending; the whole path where another file has the same.
fn name_of(paths: &[PathBuf], i: usize) -> String {
    let stem = |path: &PathBuf| path.file_stem().map(|s| s.to_string_lossy().into_owned());
    let alike = paths.iter().filter(|p| stem(p) == stem(&paths[i])).count();
    match stem(&paths[i]) {
        Some(name) if alike == 1 => name,
        _ => paths[i].display().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_that_is_a_file_wins_over_folders_of_scenes() {
        let dir = tempfile::tempdir().unwrap();
        let write = |file: &str, text: &str| {
            let path = dir.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write("models/models_info.json", "{}");
        write("test/000001/scene_camera.json", "{}");
        let root = dir.path().to_owned();
        let home = Home { root: root.clone(), data: root.clone(), logs: root };
        let (select, data) = (Select::default(), DataConfig::default());
        let is_folder = |split| own_folder(&home, &select, &data, split).is_some();
        let all = [None, Some("test"), Some("mine.txt")];
        assert_eq!(all.map(is_folder), [true; 3]);
        write("mine.txt", "x");
        assert_eq!(all.map(is_folder), [true, true, false]);
        write("testing.txt", "x");
        assert_eq!(all.map(is_folder), [false; 3]);
        assert!(is_folder(Some("valid")) && is_folder(Some("train_pbr")));
        let take = |data: &mut DataConfig, split| {
            take_list(data, &home, "SwissCube", split).map(|split| data.list(split).to_owned())
        };
        let mut data = data.clone();
        assert_eq!(take(&mut data, "test").unwrap(), "testing.txt");
        assert_eq!(take(&mut data, "mine.txt").unwrap(), "mine.txt");
        assert!(take(&mut data, "yours.txt").is_err());
    }

    #[test]
    fn files_of_equal_names_have_their_paths() {
        let paths: Vec<PathBuf> = ["a/x.csv", "b/x.jsonl", "b/y.csv"].map(PathBuf::from).into();
        let names: Vec<String> = (0..3).map(|i| name_of(&paths, i)).collect();
        assert_eq!(names, ["a/x.csv", "b/x.jsonl", "y"]);
    }
}
