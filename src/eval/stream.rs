//! A network over any number of pictures, one after the other in bounded memory: for pictures without true poses.
//!
//! One thread takes [`Job`]s (and may wait for a video), several read and warp pictures, the calling one runs the network, one
//! finds poses and hands them on. Between them at most a few batches wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use crossbeam_channel::{Receiver, Sender, bounded};
use image::RgbImage;
use rayon::prelude::*;

use super::infer::{Engine, InferOptions};
use super::predictions::Prediction;
use super::solver::{ClassResult, Missing, Solver, to_host};
use crate::data::{ObjectBox, View};
use crate::io::picture::{read_rgb, read_rgb_upright};
use crate::model::images_from_bytes;
use crate::pose::{NoPose, PoseCovariance};

/// Batches that may wait before the network, and as many behind it.
const WAITING_BATCHES: usize = 2;

/// A picture to be looked at.
pub struct Job {
    /// Its place in the input, from 0: RANSAC draws by it.
    pub place: usize,
    /// How it is called in results.
    pub name: String,
    /// Where it is.
    pub source: Source,
    /// Its camera.
    pub view: Arc<View>,
    /// Whether the picture itself is handed on with its poses.
    pub keep: bool,
}

/// Where a picture is.
pub enum Source {
    /// In a PNG or JPEG file of a dataset, taken as stored.
    File(PathBuf),
    /// In a PNG or JPEG file of a camera, turned as its EXIF orientation says.
    Photo(PathBuf),
    /// Here, as a video's frame is.
    Picture(RgbImage),
    /// Nowhere: why.
    Bad(String),
}

/// What became of a [`Job`].
pub struct Answer {
    /// The job's.
    pub place: usize,
    /// The job's.
    pub name: String,
    /// The job's.
    pub view: Arc<View>,
    /// Of each class, ascending; or what is wrong with the picture.
    pub found: Result<Vec<Found>, String>,
    /// From the beginning of reading the picture to its poses, s.
    pub latency_s: f64,
    /// Spent on it: warp, its share of the network's batch, selection of cells, PnP, s.
    pub compute_s: f64,
    /// The picture, when it was to be kept.
    pub picture: Option<RgbImage>,
}

/// What became of a class in a picture.
#[derive(Debug, Clone)]
pub struct Found {
    /// 0-based.
    pub class: usize,
    /// Number of the class's object.
    pub obj_id: u32,
    /// The pose, or why there is none.
    pub outcome: Result<Found6D, Absent>,
}

/// A pose and how sure it is.
#[derive(Debug, Clone)]
pub struct Found6D {
    /// The pose.
    pub prediction: Prediction,
    /// Correspondences that PnP was given.
    pub num_correspondences: usize,
    /// Of the pose, where the correspondences tell it.
    pub covariance: Option<PoseCovariance>,
}

/// Why a class has no pose.
#[derive(Debug, Clone, PartialEq)]
pub struct Absent {
    /// For programs: `no_cell`, `no_usable_cell`, `too_few_correspondences`, `no_consensus`, `undetermined`.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}

/// Where the time of a stream went.
#[derive(Debug, Clone, Default)]
pub struct StreamTiming {
    /// From the first picture's reading to the last one's poses, s.
    pub total_s: f64,
    /// Waited for pictures, s.
    pub loading_s: f64,
    /// Network, s.
    pub network_s: f64,
}

/// Finds the poses in the pictures of `jobs`, batches of `options.data.bs_valid` in their order, and hands each answer on in that
/// order. `stop` ends it early: what was taken by then is finished. A picture that cannot be read is an answer too.
///
/// For the same pictures in the same order the poses are those of [`super::infer`], bit for bit.
///
/// # Errors
/// If `on_answer` fails, the network does, or it has not as many classes as there are `objects`.
pub fn infer_stream(
    network: &dyn Engine,
    objects: Vec<ObjectBox>,
    options: &InferOptions,
    jobs: impl Iterator<Item = Job> + Send,
    stop: &AtomicBool,
    on_answer: impl FnMut(Answer) -> Result<()> + Send,
) -> Result<StreamTiming> {
    ensure!(
        network.num_classes() == objects.len() as i64,
        "the network has {} classes, but there are {} objects",
        network.num_classes(),
        objects.len()
    );
    let started = Instant::now();
    let solver = Solver::new(network, objects, options)?;
    let batch_size = options.data.bs_valid.max(1);
    let workers = options.workers.max(1);
    let mut timing = StreamTiming::default();
    std::thread::scope(|scope| -> Result<()> {
        // A picture's turn is queued before the picture is: answers come in order whoever is first.
        let (turns, in_order) = bounded::<Receiver<Loaded>>(WAITING_BATCHES * batch_size + workers);
        let (work, to_load) = bounded::<(Job, Sender<Loaded>)>(workers);
        scope.spawn(move || feed(jobs, stop, &turns, &work));
        for _ in 0..workers {
            let to_load = to_load.clone();
            scope.spawn(move || {
                for (job, reply) in to_load {
                    // Nobody waits any more when the run has failed.
                    drop(reply.send(load(job)));
                }
            });
        }
        drop(to_load);
        let (batches, to_solve) = bounded::<Batch>(WAITING_BATCHES);
        let solver = &solver;
        let solving = scope.spawn(move || solve_all(solver, to_solve, on_answer));
        let ran = run_network(network, solver, options, &in_order, &batches, &mut timing);
        drop((in_order, batches));
        let solved = solving.join().map_err(|_| anyhow!("finding poses panicked"))?;
        // The writer's failure is why nobody takes batches any more.
        solved.and(ran)
    })?;
    timing.total_s = started.elapsed().as_secs_f64();
    Ok(timing)
}

/// Queues the jobs until they end, `stop` is raised or nobody takes them.
fn feed(
    jobs: impl Iterator<Item = Job>,
    stop: &AtomicBool,
    turns: &Sender<Receiver<Loaded>>,
    work: &Sender<(Job, Sender<Loaded>)>,
) {
    for job in jobs {
        if stop.load(Ordering::SeqCst) {
            break;
        }
        let (reply, turn) = bounded(1);
        if turns.send(turn).is_err() || work.send((job, reply)).is_err() {
            break;
        }
    }
}

/// A job with its picture as the network takes it.
struct Loaded {
    job: Job,
    pixels: Result<Vec<u8>, String>,
    picture: Option<RgbImage>,
    started: Instant,
    warp: Duration,
}

fn load(mut job: Job) -> Loaded {
    let started = Instant::now();
    let source = std::mem::replace(&mut job.source, Source::Bad(String::new()));
    let read = match source {
        Source::File(path) => read_rgb(&path).map_err(|e| format!("{e:#}")),
        Source::Photo(path) => read_rgb_upright(&path).map_err(|e| format!("{e:#}")),
        Source::Picture(picture) => Ok(picture),
        Source::Bad(why) => Err(why),
    };
    let warping = Instant::now();
    let (pixels, picture) = match read {
        Err(why) => (Err(why), None),
        Ok(picture) => {
            let pixels = job.view.picture(&picture).map_err(|e| format!("{}: {e:#}", job.name));
            (pixels, Some(picture).filter(|_| job.keep))
        }
    };
    Loaded { job, pixels, picture, started, warp: warping.elapsed() }
}

/// Pictures with the outputs of those that could be read.
struct Batch {
    pictures: Vec<Loaded>,
    /// As [`to_host`] gives them.
    values: Vec<f32>,
    /// The network's time for a picture.
    network: Duration,
}

fn run_network(
    network: &dyn Engine,
    solver: &Solver,
    options: &InferOptions,
    in_order: &Receiver<Receiver<Loaded>>,
    batches: &Sender<Batch>,
    timing: &mut StreamTiming,
) -> Result<()> {
    loop {
        let waiting = Instant::now();
        let mut pictures = Vec::new();
        for turn in in_order.iter().take(options.data.bs_valid.max(1)) {
            pictures
                .push(turn.recv().map_err(|_| anyhow!("a thread that reads pictures panicked"))?);
        }
        timing.loading_s += waiting.elapsed().as_secs_f64();
        if pictures.is_empty() {
            return Ok(());
        }
        let running = Instant::now();
        let readable: Vec<&[u8]> =
            pictures.iter().filter_map(|p| p.pixels.as_deref().ok()).collect();
        let num = readable.len();
        let mut values = Vec::new();
        if num > 0 {
            let pixels = readable.concat();
            let size = [num, options.input.height, options.input.width];
            let (mean, std) = (&options.input.pixel_mean, &options.input.pixel_std);
            let images = images_from_bytes(&pixels, size, mean, std, options.device)?;
            let outputs = network.forward(&images)?;
            values = to_host(&outputs, &solver.grid, num, network.num_classes() as usize)?;
        }
        let took = running.elapsed();
        timing.network_s += took.as_secs_f64();
        for picture in &mut pictures {
            picture.pixels =
                std::mem::replace(&mut picture.pixels, Ok(Vec::new())).map(|_| Vec::new());
        }
        let network = took / num.max(1) as u32;
        if batches.send(Batch { pictures, values, network }).is_err() {
            return Err(anyhow!("finding poses ended early"));
        }
    }
}

fn solve_all(
    solver: &Solver,
    batches: Receiver<Batch>,
    mut on_answer: impl FnMut(Answer) -> Result<()>,
) -> Result<()> {
    for batch in batches {
        let num = batch.pictures.iter().filter(|p| p.pixels.is_ok()).count();
        let per_picture = (batch.values.len() / num.max(1)).max(1);
        let mut values = batch.values.chunks(per_picture);
        let with_values: Vec<(Loaded, &[f32])> = batch
            .pictures
            .into_iter()
            .map(|p| {
                let own = if p.pixels.is_ok() { values.next() } else { None };
                (p, own.unwrap_or_default())
            })
            .collect();
        let answers: Vec<Answer> = with_values
            .into_par_iter()
            .map(|(loaded, values)| answer(solver, loaded, values, batch.network))
            .collect();
        for answer in answers {
            let name = answer.name.clone();
            on_answer(answer).with_context(|| format!("writing what was found in {name}"))?;
        }
    }
    Ok(())
}

fn answer(solver: &Solver, loaded: Loaded, values: &[f32], network: Duration) -> Answer {
    let Loaded { job, pixels, picture, started, warp } = loaded;
    let solving = Instant::now();
    let found = pixels.map(|_| {
        let solved = solver.solve(job.place, values);
        solved.classes.iter().map(|class| found(solver, class, &job.name)).collect()
    });
    let compute = warp + network + solving.elapsed();
    Answer {
        place: job.place,
        name: job.name,
        view: job.view,
        found,
        latency_s: started.elapsed().as_secs_f64(),
        compute_s: compute.as_secs_f64(),
        picture,
    }
}

fn found(solver: &Solver, class: &ClassResult, name: &str) -> Found {
    let num_correspondences = class.candidates.as_ref().map_or(0, |c| c.pixels.len());
    let outcome = match (class.prediction(name), &class.outcome) {
        (Some(prediction), _) => {
            let covariance = solver.covariance(class);
            Ok(Found6D { prediction, num_correspondences, covariance })
        }
        (None, Err(missing)) => Err(absent(missing, num_correspondences, solver.threshold())),
        // A pose comes with the cells that it was found from.
        (None, Ok(_)) => Err(absent(&Missing::Pnp(NoPose::TooFew), 0, solver.threshold())),
    };
    Found { class: class.class, obj_id: class.obj_id, outcome }
}

fn absent(missing: &Missing, num: usize, threshold: f64) -> Absent {
    let (reason, detail) = match missing {
        Missing::NoCell { best } => (
            "no_cell",
            format!(
                "no cell is above the confidence threshold {threshold}, the best one is at {best:.3}"
            ),
        ),
        Missing::NoLevel { best } => (
            "no_usable_cell",
            format!(
                "cells are above the confidence threshold (the best one at {best:.3}), but none with finite offsets on a \
                 level for the size they predict"
            ),
        ),
        Missing::Pnp(NoPose::TooFew) => (
            "too_few_correspondences",
            format!("of {num} correspondences fewer than 4 distinct corners are usable"),
        ),
        Missing::Pnp(NoPose::NoConsensus) => (
            "no_consensus",
            format!("PnP found no pose that enough of the {num} correspondences agree with"),
        ),
        Missing::Pnp(NoPose::Undetermined) => (
            "undetermined",
            format!("those of the {num} correspondences that agree do not determine a pose"),
        ),
    };
    Absent { reason, detail }
}
