//! `mqat predict`: poses in any pictures, with how sure they are.

mod cameras;
mod inputs;
mod jobs;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

pub use cameras::CameraReport;
pub use jobs::Overlays;

use cameras::{Cameras, NetworkInput};
use inputs::{Input, Inputs};
use jobs::{Jobs, Numbering};

use crate::artifact::{Asked, EngineChoice, Strictness, open};
use crate::data::{ObjectBox, object_boxes};
use crate::eval::{
    Answer, ClassResult, Outline, PoseWriter, Solver, Timing, infer_stream, prediction_overlay,
};
use crate::io;
use crate::io::picture::write_png;
use crate::io::video::check_ffmpeg;
use crate::run::config::{Config, Names};
use crate::run::folder::Folder;
use crate::run::home::Home;
use crate::run::options::{decoder, infer_options};
use crate::run::request::Request;

/// Pictures that could not be read which are told one by one.
const MOST_BAD_TOLD: usize = 10;
/// What a run leaves beside its predictions.
const SUMMARY: &str = "summary.json";

/// What `mqat predict` is asked.
#[derive(Debug, Clone)]
pub struct PredictRequest {
    /// Config, places, device.
    pub run: Request,
    /// The network: all that `mqat test` takes.
    pub checkpoint: PathBuf,
    /// Images, folders, globs, lists, videos.
    pub inputs: Vec<PathBuf>,
    /// Look into the folders of folders.
    pub recursive: bool,
    /// The camera's file.
    pub camera: Option<PathBuf>,
    /// The boxes of the objects, instead of the dataset's.
    pub boxes: Option<PathBuf>,
    /// Folder of the results; none makes a new one.
    pub out: Option<PathBuf>,
    /// Replace results that are there.
    pub overwrite: bool,
    /// Pictures to draw.
    pub overlays: Overlays,
    /// Pictures of a batch; none is the config's.
    pub batch: Option<usize>,
    /// Take a file that lacks layers.
    pub loose: bool,
    /// What runs the network.
    pub engine: EngineChoice,
}

/// How far a prediction is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PredictProgress {
    /// Pictures done.
    pub num_done: usize,
    /// Pictures of the input; none when a video does not tell.
    pub num_images: Option<usize>,
    /// Poses found in them.
    pub num_poses: usize,
}

/// What `mqat predict` found; `summary.json`.
#[derive(Debug, Serialize)]
pub struct PredictReport {
    /// The file of the network.
    #[serde(serialize_with = "crate::io::path_text")]
    pub checkpoint: PathBuf,
    /// What it is, for people.
    pub network: String,
    /// What was given.
    pub inputs: Vec<String>,
    /// The cameras that were used, the first ten.
    pub cameras: Vec<CameraReport>,
    /// True when a signal ended it before all pictures were done.
    pub interrupted: bool,
    /// Pictures done, the unreadable ones included.
    pub num_images: usize,
    /// Poses found.
    pub num_poses: usize,
    /// Records without a pose, by their reason.
    pub no_pose: BTreeMap<String, usize>,
    /// Pictures that could not be read.
    pub num_bad: usize,
    /// Why, for the first ten.
    pub bad: Vec<String>,
    /// Pictures a second over the whole run, without opening the network.
    pub images_per_s: f64,
    /// From the beginning of reading a picture to its poses, ms; none without a readable picture.
    pub latency_ms: Option<Latency>,
    /// Where the time went, s.
    pub timing: TimingReport,
    /// Pictures of a batch.
    pub batch: usize,
    /// JSON lines.
    #[serde(serialize_with = "crate::io::path_text")]
    pub predictions: PathBuf,
    /// BOP csv.
    #[serde(serialize_with = "crate::io::path_text")]
    pub csv: PathBuf,
    /// Whether `scene_id` and `im_id` are those of the pictures' paths; else they number the inputs and the pictures in each.
    pub ids_from_paths: bool,
    /// Pictures with the poses drawn in.
    #[serde(serialize_with = "crate::io::path_text")]
    pub overlays: Vec<PathBuf>,
}

/// Percentiles of the latency, ms.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Latency {
    /// Half of the pictures took at most this.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// The slowest.
    pub max: f64,
}

impl Latency {
    /// Nearest ranks; none without values.
    fn of(mut values_s: Vec<f32>) -> Option<Self> {
        values_s.sort_by(f32::total_cmp);
        let last = values_s.len().checked_sub(1)?;
        let rank = |fraction: f64| (fraction * values_s.len() as f64).ceil() as usize;
        let at =
            |fraction: f64| 1e3 * f64::from(values_s[rank(fraction).saturating_sub(1).min(last)]);
        Some(Self { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) })
    }
}

/// Seconds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct TimingReport {
    /// All of it.
    pub total_s: f64,
    /// The network waited for pictures.
    pub loading_s: f64,
    /// The network.
    pub network_s: f64,
}

impl PredictReport {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut text = format!("{} images, {} poses\n", self.num_images, self.num_poses);
        for (reason, count) in &self.no_pose {
            let _ = writeln!(text, "  no pose: {reason:24} {count}");
        }
        for camera in &self.cameras {
            let _ = writeln!(text, "camera {}", camera.line());
        }
        let _ = write!(text, "{:.1} images/s", self.images_per_s);
        if let Some(Latency { p50, p90, p99, .. }) = self.latency_ms {
            let _ = write!(
                text,
                ", from reading to poses {p50:.0} ms (p50), {p90:.0} (p90), {p99:.0} (p99), batches of {}",
                self.batch
            );
        }
        let _ = writeln!(text, "\npredictions in {}", self.predictions.display());
        if let [first, ..] = self.overlays.as_slice() {
            let folder = first.parent().unwrap_or(first).display();
            let _ = writeln!(text, "{} overlays in {folder}", self.overlays.len());
        }
        if self.interrupted {
            text += "interrupted: the files hold what was done until then\n";
        }
        text
    }
}

/// Predicts. `stop` ends it early: what was begun is finished and written.
///
/// # Errors
/// If the checkpoint, the camera, the boxes or an input cannot be read or do not fit each other, or a result cannot be written.
/// Pictures that cannot be read are no error here: see [`PredictReport::num_bad`].
pub fn predict(
    request: &PredictRequest,
    stop: &AtomicBool,
    progress: &mut (dyn FnMut(PredictProgress) + Send),
) -> Result<PredictReport> {
    let file = &request.checkpoint;
    ensure!(file.is_file(), "no checkpoint {}", file.display());
    let home = request.run.home()?;
    let select = request.run.select.for_evaluation();
    let names = names_of(request)?;
    let engine = request.engine;
    let asked = Asked { select: &select, home: &home, engine, names, beside: None };
    let mut artifact = open(file, &asked)?;
    artifact.ensure_uses(request.run.device)?;
    if let Some(batch) = request.batch {
        artifact.config.data.bs_valid = batch;
    }
    let config = &artifact.config;
    let inputs = inputs::find(&request.inputs, request.recursive)?;
    if inputs.inputs.iter().any(|input| matches!(input, Input::Video(_))) {
        check_ffmpeg()?;
    }
    let network = NetworkInput { input: &config.input, data: &config.data };
    let cameras = Cameras::find(request.camera.as_deref(), &inputs, &network)?;
    for camera in cameras.reports() {
        tracing::info!("camera {}", camera.line());
    }
    let objects = objects(request, &home, config, &inputs)?;
    let decoder = decoder(config, objects.iter().map(|object| object.corners).collect())?;
    let device = request.run.open_device(config)?;
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let opened = artifact.engine(device, Strictness::loose(request.loose), threads)?;
    tracing::info!("predicting with {} ({})", file.display(), opened.name);
    let out = out_folder(request, &home)?;
    let options = infer_options(config, opened.device, request.run.skip_bad);

    let total = jobs::total(&inputs);
    let numbering = Mutex::new(Numbering::of(&inputs));
    let ended = AtomicBool::new(false);
    let pictures = Jobs::new(inputs, &cameras, &numbering, (request.overlays, total), &ended);
    let mut results = Results::begin(&out, request.overwrite, &objects)?;
    let on_answer = |answer: Answer| {
        let ids = match numbering.lock() {
            Ok(numbering) => numbering.of_picture(&answer.name, answer.place),
            Err(_) => bail!("numbering the pictures panicked"),
        };
        results.take(answer, ids)?;
        let written = results.writer.written();
        let (num_done, num_poses) = (written.num_images, written.num_poses);
        progress(PredictProgress { num_done, num_images: total, num_poses });
        Ok(())
    };
    let obj_ids = objects.iter().map(|object| object.obj_id).collect();
    let solver = Solver::new(decoder.as_ref(), obj_ids, &options)?.with_covariance();
    let pictures = pictures.take_while(|_| !stop.load(Ordering::SeqCst));
    let ran = infer_stream(opened.engine.as_ref(), &solver, &options, pictures, on_answer);
    let timing = match ran {
        Ok(timing) => timing,
        Err(e) => {
            let (written, [partial, _]) = results.writer.end(false)?;
            let done = written.num_images;
            return Err(
                e.context(format!("after {done} images, which are in {}", partial.display()))
            );
        }
    };
    let report = results.report(Ending {
        request,
        network: opened.name,
        cameras: cameras.reports(),
        interrupted: !ended.load(Ordering::SeqCst),
        timing,
        batch: config.data.bs_valid,
        ids_from_paths: numbering.lock().is_ok_and(|n| n.is_from_paths()),
    })?;
    io::write_json(&out.join(SUMMARY), &report)?;
    Ok(report)
}

/// The boxes of the network's classes: of the file that the user names, else of a dataset: that of the list, or the config's.
fn objects(
    request: &PredictRequest,
    home: &Home,
    config: &Config,
    inputs: &Inputs,
) -> Result<Vec<ObjectBox>> {
    let data = &config.data;
    if let Some(file) = &request.boxes {
        return object_boxes(file, None, data);
    }
    let named = request.run.data.clone();
    let own = [home.data.join(request.run.select.problem()), home.data.clone()];
    let nested = named.as_ref().map(|d| d.join(request.run.select.problem()));
    let roots: Vec<PathBuf> =
        named.into_iter().chain(nested).chain(inputs.list_root.clone()).chain(own).collect();
    let Some(root) = roots.iter().find(|root| data.boxes(root).is_file()) else {
        bail!(
            "the objects' boxes (data.BBOX_FILE, {}) are not in {}: name the dataset with --data, or the file alone with \
             --boxes",
            data.bbox_file,
            roots.first().map_or_else(String::new, |root| root.display().to_string())
        );
    };
    let meshes = data.meshes(root);
    object_boxes(&data.boxes(root), meshes.is_dir().then_some(&*meshes), data)
}

/// What the names name beside the config, and whether the other options act.
fn names_of(request: &PredictRequest) -> Result<Names> {
    let into = match (&request.out, experiment_of(&request.checkpoint)?) {
        (Some(out), _) => Some(out.clone()),
        (None, own) => own,
    };
    if let (Some(into), Some(_)) = (&into, &request.run.logs) {
        bail!("--logs cannot act: the results go into {}; leave it out", into.display());
    }
    if let (Some(boxes), Some(_)) = (&request.boxes, &request.run.data) {
        bail!(
            "--data cannot act: --boxes {} has the objects' boxes; leave it out",
            boxes.display()
        );
    }
    let may_be_folder =
        |input: &PathBuf| input.is_dir() || input.to_string_lossy().contains(['*', '?', '[']);
    ensure!(
        !request.recursive || request.inputs.iter().any(may_be_folder),
        "--recursive cannot act: no INPUT is a directory; leave it out"
    );
    Ok(match (into, &request.boxes) {
        (None, _) => Names::Folders,
        (Some(_), None) => Names::Dataset,
        (Some(_), Some(_)) => Names::Config,
    })
}

/// The experiment that a checkpoint lies in.
fn experiment_of(checkpoint: &Path) -> Result<Option<PathBuf>> {
    let absolute = std::path::absolute(checkpoint)?;
    let experiment = absolute
        .parent()
        .filter(|folder| folder.ends_with("checkpoints"))
        .and_then(Path::parent)
        .filter(|folder| Folder { path: (*folder).to_owned(), id: 0 }.config().is_file());
    Ok(experiment.map(Path::to_owned))
}

/// The folder of the results: the user's, else a new one in the experiment of the checkpoint, else in
/// `LOGS/PROBLEM/TOPOLOGY/predict`.
fn out_folder(request: &PredictRequest, home: &Home) -> Result<PathBuf> {
    if let Some(out) = &request.out {
        return Ok(out.clone());
    }
    let select = &request.run.select;
    let parent = match experiment_of(&request.checkpoint)? {
        Some(folder) => folder.join("predict"),
        None => home.logs.join(select.problem()).join(select.topology()).join("predict"),
    };
    fs::create_dir_all(&parent)
        .with_context(|| format!("making the folder {}", parent.display()))?;
    for number in 0_u32.. {
        let folder = parent.join(format!("{number:03}"));
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => {
                return Err(e).with_context(|| format!("making the folder {}", folder.display()));
            }
        }
    }
    bail!("{} is full", parent.display())
}

/// What is kept and written of the answers.
struct Results<'a> {
    out: PathBuf,
    objects: &'a [ObjectBox],
    writer: PoseWriter,
    latencies_s: Vec<f32>,
    overlays: Vec<PathBuf>,
    bad: Vec<String>,
    num_bad_told: usize,
}

impl<'a> Results<'a> {
    fn begin(out: &Path, overwrite: bool, objects: &'a [ObjectBox]) -> Result<Self> {
        let writer = PoseWriter::create(out, overwrite)?;
        if overwrite {
            remove_overlays(&out.join("overlays"))?;
        }
        Ok(Self {
            out: out.to_owned(),
            objects,
            writer,
            latencies_s: Vec::new(),
            overlays: Vec::new(),
            bad: Vec::new(),
            num_bad_told: 0,
        })
    }

    fn take(&mut self, answer: Answer, ids: (u32, u32)) -> Result<()> {
        self.writer.write(&answer, ids)?;
        self.writer.flush()?;
        match &answer.found {
            Ok(found) => {
                self.latencies_s.push(answer.latency_s as f32);
                self.draw(&answer, found)?;
            }
            Err(why) => {
                self.num_bad_told += 1;
                if self.bad.len() < MOST_BAD_TOLD {
                    tracing::warn!("left out: {why}");
                    self.bad.push(why.clone());
                }
            }
        }
        Ok(())
    }

    /// Draws the poses into the picture as it was taken, when it was kept.
    fn draw(&mut self, answer: &Answer, found: &[ClassResult]) -> Result<()> {
        let Some(picture) = &answer.picture else { return Ok(()) };
        let mut outlines = Vec::new();
        let mut caption = String::new();
        for found in found {
            let Ok(pose) = &found.outcome else { continue };
            let object = &self.objects[found.class];
            let (corners, axis_mm) = (&object.corners, object.diameter_mm / 2.0);
            outlines.push(Outline { pose: pose.prediction.pose()?, corners, axis_mm });
            if caption.is_empty() {
                caption = format!("Z={:.0}MM", pose.prediction.t_mm[2]);
                if let Some(covariance) = &pose.covariance {
                    let sigma = covariance.sigma_translation_mm()[2];
                    let _ = write!(caption, "  SIGMA={sigma:.1}MM");
                }
            }
        }
        if outlines.is_empty() {
            caption = "no pose".to_owned();
        }
        let drawn = prediction_overlay(picture, answer.view.lens(), &outlines, &caption);
        let stem = Path::new(&answer.name).file_name().map(|n| n.to_string_lossy().into_owned());
        let name: String = (stem.unwrap_or_default().chars())
            .map(|c| if c.is_alphanumeric() || "-_".contains(c) { c } else { '_' })
            .collect();
        let path = self.out.join("overlays").join(format!("{:06}_{name}.png", answer.place));
        write_png(&path, &drawn)?;
        self.overlays.push(path);
        Ok(())
    }
}

/// What a report tells beside the results.
struct Ending<'a> {
    request: &'a PredictRequest,
    network: String,
    cameras: Vec<CameraReport>,
    interrupted: bool,
    timing: Timing,
    batch: usize,
    ids_from_paths: bool,
}

impl Results<'_> {
    /// Ends the files and puts everything together.
    fn report(self, ending: Ending) -> Result<PredictReport> {
        if self.num_bad_told > MOST_BAD_TOLD {
            tracing::warn!("{} images could not be read in all", self.num_bad_told);
        }
        let Ending { request, network, cameras, interrupted, timing, batch, ids_from_paths } =
            ending;
        let (written, [predictions, csv]) = self.writer.end(!interrupted)?;
        Ok(PredictReport {
            checkpoint: request.checkpoint.clone(),
            network,
            inputs: request.inputs.iter().map(|path| path.display().to_string()).collect(),
            cameras,
            interrupted,
            num_images: written.num_images,
            num_poses: written.num_poses,
            num_bad: written.num_bad(),
            no_pose: written.no_pose,
            bad: self.bad,
            images_per_s: written.num_images as f64 / timing.total_s.max(1e-9),
            latency_ms: Latency::of(self.latencies_s),
            timing: TimingReport {
                total_s: timing.total_s,
                loading_s: timing.loading_s,
                network_s: timing.network_s,
            },
            batch,
            predictions,
            csv,
            ids_from_paths,
            overlays: self.overlays,
        })
    }
}

/// Removes the overlays of an earlier run.
fn remove_overlays(folder: &Path) -> Result<()> {
    if !folder.is_dir() {
        return Ok(());
    }
    let doing = || format!("removing earlier overlays in {}", folder.display());
    for entry in fs::read_dir(folder).with_context(doing)? {
        let path = entry.with_context(doing)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let numbered =
            name.split_once('_').is_some_and(|(n, _)| n.len() == 6 && n.parse::<u32>().is_ok());
        if numbered && name.ends_with(".png") {
            fs::remove_file(&path).with_context(doing)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        assert_eq!(Latency::of(Vec::new()), None);
        let one = Latency::of(vec![0.5]).unwrap();
        assert_eq!((one.p50, one.p90, one.p99, one.max), (500.0, 500.0, 500.0, 500.0));
        let many = Latency::of((1..=200).rev().map(|i| i as f32 * 0.001).collect()).unwrap();
        for (found, expected) in
            [(many.p50, 100.0), (many.p90, 180.0), (many.p99, 198.0), (many.max, 200.0)]
        {
            assert!((found - expected).abs() < 1e-3, "{found} for {expected}");
        }
    }
}
