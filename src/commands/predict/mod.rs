//! `mqat predict`: poses in any pictures, with how sure they are.

mod calibration;
mod cameras;
mod inputs;
mod jobs;
mod latency;
mod live;
mod objects;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

pub use calibration::Calibration;
pub use cameras::CameraReport;
pub use jobs::Overlays;
pub use latency::{LatencyReport, Percentiles};

use cameras::{Cameras, NetworkInput};
use inputs::{Inputs, Looking};
use jobs::{Ends, Jobs, Numbering};
use latency::Latencies;
use live::Gate;

use crate::artifact::{Asked, EngineChoice, Strictness, open};
use crate::data::ObjectBox;
use crate::eval::{
    Answer, ClassResult, Outline, PoseWriter, Solver, Timing, infer_stream, prediction_overlay,
};
use crate::io;
use crate::io::StopFlags;
use crate::io::image_stream::StreamFormat;
use crate::io::picture::write_png;
use crate::io::video::{VideoSource, check_ffmpeg, is_video};
use crate::run::config::Names;
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
    /// Images, folders, globs, lists, videos, cameras, addresses of streams, `-` for standard input.
    pub inputs: Vec<PathBuf>,
    /// Width and height of raw RGB frames on standard input, px; none for PNG and JPEG files.
    pub raw: Option<(u32, u32)>,
    /// One frame at a time, the newest; older ones are dropped.
    pub realtime: bool,
    /// Look into the folders of folders.
    pub recursive: bool,
    /// The camera's file.
    pub camera: Option<PathBuf>,
    /// The boxes of the objects, instead of the dataset's.
    pub boxes: Option<PathBuf>,
    /// `metrics.json` of a test of this network: the standard deviations of poses are multiplied by its factors.
    pub calibrated: Option<PathBuf>,
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
    /// Of these, poses that were found only within 2 or 4 times `evaluation.ransac.inlier_px`.
    pub num_widened: usize,
    /// What the standard deviations of poses were multiplied by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibrated: Option<Calibration>,
    /// Records without a pose, by their reason.
    pub no_pose: BTreeMap<String, usize>,
    /// Pictures that could not be read.
    pub num_bad: usize,
    /// Why, for the first ten.
    pub bad: Vec<String>,
    /// Pictures a second over the whole run, without opening the network.
    pub images_per_s: f64,
    /// What was waited for a picture, ms; none without a readable one.
    pub latency_ms: Option<LatencyReport>,
    /// Whether one frame at a time was taken, the newest.
    pub realtime: bool,
    /// Frames that were dropped because newer ones had come.
    pub num_dropped: u64,
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
        if self.num_widened > 0 {
            let distance = "evaluation.ransac.inlier_px";
            let _ = writeln!(text, "  only within 2 or 4 times {distance}: {}", self.num_widened);
        }
        for (reason, count) in &self.no_pose {
            let _ = writeln!(text, "  no pose: {reason:24} {count}");
        }
        for camera in &self.cameras {
            let _ = writeln!(text, "camera {}", camera.line());
        }
        let _ = write!(text, "{:.1} images/s", self.images_per_s);
        if self.num_dropped > 0 {
            let _ = write!(text, ", {} frames dropped for newer ones", self.num_dropped);
        }
        if let Some(latency) = &self.latency_ms {
            let _ = write!(text, "\n{}", latency.text(self.batch));
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

/// Predicts. `stop` ends it early: what was begun is finished and written. `lines` gets every line of the predictions as soon
/// as it is known.
///
/// # Errors
/// If the checkpoint, the camera, the boxes or an input cannot be read or do not fit each other, or a result cannot be written.
/// Pictures that cannot be read are no error here: see [`PredictReport::num_bad`].
pub fn predict(
    request: &PredictRequest,
    stop: &Arc<AtomicBool>,
    lines: Option<Box<dyn Write + Send>>,
    progress: &mut (dyn FnMut(PredictProgress) + Send),
) -> Result<PredictReport> {
    let file = &request.checkpoint;
    ensure!(file.is_file(), "no checkpoint {}", file.display());
    let calibration =
        request.calibrated.as_ref().map(|metrics| Calibration::read(metrics, file)).transpose()?;
    let home = request.run.home()?;
    let select = request.run.select.for_evaluation();
    let names = names_of(request)?;
    let engine = request.engine;
    let asked = Asked { select: &select, home: &home, engine, names, beside: None };
    let mut artifact = open(file, &asked)?;
    artifact.ensure_uses(request.run.device)?;
    let inputs = find_inputs(request)?;
    // Whoever sends a frame may wait for its answer before the next one.
    let one_by_one = request.realtime || inputs.are_live();
    if let Some(batch) = request.batch.or(one_by_one.then_some(1)) {
        artifact.config.data.bs_valid = batch;
    }
    let config = &artifact.config;
    let network = NetworkInput { input: &config.input, data: &config.data };
    let cameras = Cameras::find(request.camera.as_deref(), &inputs, &network)?;
    for camera in cameras.reports() {
        tracing::info!("camera {}", camera.line());
    }
    let wanted = objects::Wanted {
        boxes: request.boxes.as_deref(),
        data: request.run.data.as_deref(),
        problem: request.run.select.problem(),
        list_root: inputs.list_root.clone(),
    };
    let objects = objects::find(wanted, &home, &artifact)?;
    let decoder = decoder(config, objects.iter().map(|object| object.corners).collect())?;
    let device = request.run.open_device(config)?;
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let opened = artifact.engine(device, Strictness::loose(request.loose), threads)?;
    tracing::info!("predicting with {} ({})", file.display(), opened.name);
    let out = out_folder(request, &home)?;
    let options = infer_options(config, opened.device, request.run.skip_bad);

    let total = jobs::total(&inputs);
    let numbering = Mutex::new(Numbering::of(&inputs));
    let (ended, over) = (AtomicBool::new(false), Arc::<AtomicBool>::default());
    let are_live = inputs.are_live();
    let realtime = request.realtime.then(Arc::<Gate>::default);
    let ends = Ends { realtime, stop: StopFlags::of([stop.clone(), over.clone()]), ended: &ended };
    let pictures = Jobs::new(inputs, &cameras, &numbering, (request.overlays, total), ends);
    let mut results = Results::begin(&out, request.overwrite, &objects, lines)?;
    let (mut num_widened, inlier_px) = (0, config.evaluation.ransac.inlier_px);
    let on_answer = |answer: Answer| {
        num_widened += answer.poses().filter(|pose| pose.prediction.inlier_px > inlier_px).count();
        let ids = match numbering.lock() {
            Ok(numbering) => numbering.of_picture(&answer.name, answer.place, answer.frame),
            Err(_) => bail!("numbering the pictures panicked"),
        };
        results.take(answer, ids)?;
        let written = results.writer.written();
        let (num_done, num_poses) = (written.num_images, written.num_poses);
        progress(PredictProgress { num_done, num_images: total, num_poses });
        Ok(())
    };
    let obj_ids = objects.iter().map(|object| object.obj_id).collect();
    let mut solver = Solver::new(decoder.as_ref(), obj_ids, &options)?;
    if let Some(calibration) = &calibration {
        calibration.warn_of_other_settings(&config.evaluation.ransac);
        solver = solver.calibrated(calibration.rotation, calibration.translation);
    }
    let pictures = pictures.take_while(|_| !stop.load(Ordering::SeqCst));
    let engine = opened.engine.as_ref();
    let ran = infer_stream(engine, &solver, &options, pictures, over, on_answer);
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
        calibration,
        num_widened,
        interrupted: !ended.load(Ordering::SeqCst),
        are_live,
        timing,
        batch: config.data.bs_valid,
        ids_from_paths: numbering.lock().is_ok_and(|n| n.is_from_paths()),
    })?;
    io::write_json(&out.join(SUMMARY), &report)?;
    Ok(report)
}

/// The inputs, and what they need.
fn find_inputs(request: &PredictRequest) -> Result<Inputs> {
    let is_stdin = |input: &PathBuf| input.as_os_str() == "-";
    ensure!(
        request.raw.is_none() || request.inputs.iter().any(is_stdin),
        "--raw cannot act: it is for frames on standard input (INPUT -); leave it out"
    );
    let has_frames = |i: &PathBuf| is_stdin(i) || is_video(i) || VideoSource::live(i).is_some();
    ensure!(
        !request.realtime || request.inputs.iter().all(has_frames),
        "--realtime cannot act: images in files wait for the network; it is for a camera, a stream, a video or standard \
         input; leave it out"
    );
    ensure!(
        !request.realtime || request.batch.is_none_or(|batch| batch == 1),
        "--batch cannot act: --realtime takes one frame at a time; leave it out"
    );
    let stdin = request.raw.map_or(StreamFormat::Files, |(w, h)| StreamFormat::Raw(w, h));
    let (recursive, paced) = (request.recursive, request.realtime);
    let inputs = inputs::find(&request.inputs, Looking { recursive, stdin, paced })?;
    if inputs.need_ffmpeg() {
        check_ffmpeg()?;
    }
    Ok(inputs)
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
    latencies: Latencies,
    num_dropped: u64,
    overlays: Vec<PathBuf>,
    bad: Vec<String>,
    num_bad_told: usize,
}

impl<'a> Results<'a> {
    fn begin(
        out: &Path,
        overwrite: bool,
        objects: &'a [ObjectBox],
        lines: Option<Box<dyn Write + Send>>,
    ) -> Result<Self> {
        let writer = PoseWriter::create(out, overwrite)?.telling(lines);
        if overwrite {
            remove_overlays(&out.join("overlays"))?;
        }
        Ok(Self {
            out: out.to_owned(),
            objects,
            writer,
            latencies: Latencies::default(),
            num_dropped: 0,
            overlays: Vec::new(),
            bad: Vec::new(),
            num_bad_told: 0,
        })
    }

    fn take(&mut self, answer: Answer, ids: (u32, u32)) -> Result<()> {
        self.writer.write(&answer, ids)?;
        self.writer.flush()?;
        self.num_dropped += answer.num_dropped;
        match &answer.found {
            Ok(found) => {
                self.latencies.add(&answer.latency);
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
            let number = (self.objects.len() > 1).then_some(object.obj_id);
            outlines.push(Outline { pose: pose.prediction.pose()?, corners, axis_mm, number });
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
    calibration: Option<Calibration>,
    num_widened: usize,
    interrupted: bool,
    /// Whether the input ends only when somebody ends it.
    are_live: bool,
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
        let Ending { request, network, cameras, interrupted, are_live, .. } = ending;
        let Ending { timing, batch, ids_from_paths, calibration, num_widened, .. } = ending;
        let (written, [predictions, csv]) = self.writer.end(are_live || !interrupted)?;
        Ok(PredictReport {
            checkpoint: request.checkpoint.clone(),
            network,
            inputs: request.inputs.iter().map(|path| shown(path)).collect(),
            cameras,
            interrupted,
            num_images: written.num_images,
            num_poses: written.num_poses,
            num_widened,
            calibrated: calibration,
            num_bad: written.num_bad(),
            no_pose: written.no_pose,
            bad: self.bad,
            images_per_s: written.num_images as f64 / timing.total_s.max(1e-9),
            latency_ms: self.latencies.report(),
            realtime: request.realtime,
            num_dropped: self.num_dropped,
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

/// An input for people: the address of a stream without its user and password.
fn shown(input: &Path) -> String {
    VideoSource::live(input).map_or_else(|| input.display().to_string(), |source| source.name())
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
