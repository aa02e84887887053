//! A network over any number of pictures, one after the other in bounded memory: for pictures without true poses.
//!
//! One thread takes [`Job`]s (and may wait for a video), several read and warp pictures: a source of the pipeline, whose calling
//! thread runs the network while another finds poses and hands them on. Between them at most a few batches wait.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, Sender, bounded};
use image::RgbImage;

use super::estimate::{ClassResult, PoseEstimate};
use super::options::{InferOptions, preprocess};
use super::pipeline::{PictureBatch, PictureInfo, Pipeline, SolvedPicture};
use super::solver::Solver;
use super::timing::Timing;
use crate::data::View;
use crate::io::picture::{read_rgb, read_rgb_upright};
use crate::nn::Engine;

/// Batches of pictures that may wait before the network.
const WAITING_BATCHES: usize = 2;

/// A picture to be looked at.
pub struct Job {
    /// Its place in the input, from 0: RANSAC draws by it.
    pub place: usize,
    /// How it is called in results.
    pub name: String,
    /// Where it is.
    pub source: PictureSource,
    /// Its camera.
    pub view: Arc<View>,
    /// Whether the picture itself is handed on with its poses.
    pub keep: bool,
    /// Which frame it is, of one.
    pub frame: Option<FramePlace>,
    /// When it arrived, of a picture that comes from outside; none for one that is read when its turn comes.
    pub arrived: Option<Instant>,
    /// Pictures that were left out between the one before and this one, as they were older.
    pub num_dropped: u64,
    /// Dropped when the picture is answered, or when it never will be.
    pub pass: Option<Box<dyn Send>>,
}

/// A frame in its source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FramePlace {
    /// From 0.
    pub number: usize,
    /// When it is shown by the container of a file, s from the file's begin; none where that is not told.
    pub time_s: Option<f64>,
}

/// Where a picture is.
pub enum PictureSource {
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
    pub found: Result<Vec<ClassResult>, String>,
    /// The job's.
    pub frame: Option<FramePlace>,
    /// What was waited for it.
    pub latency: Latency,
    /// The job's.
    pub num_dropped: u64,
    /// Spent on it: warp, its part of the network's batch, selection of cells, PnP, s.
    pub compute_s: f64,
    /// The picture, when it was to be kept.
    pub picture: Option<RgbImage>,
    /// The job's.
    pub pass: Option<Box<dyn Send>>,
}

impl Answer {
    /// The poses that were found.
    pub fn poses(&self) -> impl Iterator<Item = &PoseEstimate> {
        self.found.iter().flatten().filter_map(|class| class.outcome.as_ref().ok())
    }
}

/// What whoever waits for a picture's poses waits for, from its arrival (or the beginning of reading it) to the moment when its
/// poses are handed on, s. Waiting for others is included: the parts add up to all of it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Latency {
    /// Until the network begins with its batch: reading, decoding, warping, waiting for a turn.
    pub read_s: f64,
    /// The network, for the whole batch.
    pub network_s: f64,
    /// Until the poses are handed on: decoding, PnP, waiting for the pictures before it.
    pub poses_s: f64,
}

impl Latency {
    /// All of it, s.
    pub fn total_s(&self) -> f64 {
        self.read_s + self.network_s + self.poses_s
    }
}

/// Finds the poses in the pictures of `jobs`, batches of `options.data.bs_valid` in their order, and hands each answer on in that
/// order. A picture that cannot be read is an answer too. When `jobs` ends early, what was taken by then is finished.
///
/// `over` is raised when nobody takes answers any more, in failure too: jobs that wait for something have to end then.
///
/// For the same pictures in the same batches the poses are those of [`super::infer`], bit for bit.
///
/// # Errors
/// If `on_answer` or the engine fails, or its outputs are not those that the solver takes.
pub fn infer_stream(
    engine: &dyn Engine,
    solver: &Solver,
    options: &InferOptions,
    jobs: impl Iterator<Item = Job> + Send,
    over: Arc<AtomicBool>,
    on_answer: impl FnMut(Answer) -> Result<()> + Send,
) -> Result<Timing> {
    let pipeline = Pipeline::new(&[engine], preprocess(&options.input), options.device);
    let batch_size = options.data.bs_valid.max(1);
    let workers = options.workers.max(1);
    std::thread::scope(|scope| {
        // A picture's turn is queued before the picture is: answers come in order whoever is first.
        let (turns, in_order) =
            bounded::<Receiver<LoadedPicture>>(WAITING_BATCHES * batch_size + workers);
        let (work, to_load) = bounded::<(Job, Sender<LoadedPicture>)>(workers);
        scope.spawn(move || feed(jobs, &turns, &work));
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
        // The pipeline drops the source when it ends, and with it what the threads wait for.
        let source = JobBatches { in_order, batch_size };
        let mut taker = Taker { on_answer, over };
        pipeline.solve(solver, source, |_, _| (), move |solved| taker.take(answer_of(solved)))
    })
}

/// Who takes the answers; dropped, by a panic too, it says that it is over.
struct Taker<F> {
    on_answer: F,
    over: Arc<AtomicBool>,
}

impl<F: FnMut(Answer) -> Result<()>> Taker<F> {
    fn take(&mut self, answer: Answer) -> Result<()> {
        let name = answer.name.clone();
        (self.on_answer)(answer).with_context(|| format!("writing what was found in {name}"))
    }
}

impl<F> Drop for Taker<F> {
    fn drop(&mut self) {
        self.over.store(true, Ordering::SeqCst);
    }
}

/// Queues the jobs until they end or nobody takes them.
fn feed(
    jobs: impl Iterator<Item = Job>,
    turns: &Sender<Receiver<LoadedPicture>>,
    work: &Sender<(Job, Sender<LoadedPicture>)>,
) {
    for job in jobs {
        let (reply, turn) = bounded(1);
        if turns.send(turn).is_err() || work.send((job, reply)).is_err() {
            break;
        }
    }
}

/// A job with its picture as the network takes it.
struct LoadedPicture {
    job: Job,
    pixels: Result<Vec<u8>, String>,
    picture: Option<RgbImage>,
    started: Instant,
    warp: Duration,
}

fn load(mut job: Job) -> LoadedPicture {
    let started = job.arrived.unwrap_or_else(Instant::now);
    let source = std::mem::replace(&mut job.source, PictureSource::Bad(String::new()));
    let read = match source {
        PictureSource::File(path) => read_rgb(&path).map_err(|e| format!("{e:#}")),
        PictureSource::Photo(path) => read_rgb_upright(&path).map_err(|e| format!("{e:#}")),
        PictureSource::Picture(picture) => Ok(picture),
        PictureSource::Bad(why) => Err(why),
    };
    let warping = Instant::now();
    let (pixels, picture) = match read {
        Err(why) => (Err(why), None),
        Ok(picture) => {
            let pixels = job.view.picture(&picture).map_err(|e| format!("{}: {e:#}", job.name));
            (pixels, Some(picture).filter(|_| job.keep))
        }
    };
    LoadedPicture { job, pixels, picture, started, warp: warping.elapsed() }
}

/// What goes along with a job's picture.
struct JobItem {
    view: Arc<View>,
    /// What is wrong with it.
    bad: Option<String>,
    picture: Option<RgbImage>,
    started: Instant,
    warp: Duration,
    frame: Option<FramePlace>,
    num_dropped: u64,
    pass: Option<Box<dyn Send>>,
}

/// Loaded pictures in their order, a batch at a time.
struct JobBatches {
    in_order: Receiver<Receiver<LoadedPicture>>,
    batch_size: usize,
}

impl Iterator for JobBatches {
    type Item = Result<PictureBatch<JobItem>>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut batch = PictureBatch { pictures: Vec::new(), pixels: Vec::new() };
        for turn in self.in_order.iter().take(self.batch_size) {
            let Ok(LoadedPicture { job, pixels, picture, started, warp }) = turn.recv() else {
                return Some(Err(anyhow!("a thread that reads pictures panicked")));
            };
            let bad = match pixels {
                Ok(pixels) => {
                    batch.pixels.extend_from_slice(&pixels);
                    None
                }
                Err(why) => Some(why),
            };
            let Job { place, name, view, frame, num_dropped, pass, .. } = job;
            let readable = bad.is_none();
            let item = JobItem { view, bad, picture, started, warp, frame, num_dropped, pass };
            batch.pictures.push(PictureInfo { place, name, readable, item });
        }
        (!batch.pictures.is_empty()).then_some(Ok(batch))
    }
}

fn answer_of(solved: SolvedPicture<JobItem>) -> Answer {
    let SolvedPicture { picture, results, network, solving, computed: [begin, end] } = solved;
    let PictureInfo { place, name, item, .. } = picture;
    let JobItem { view, bad, picture, started, warp, frame, num_dropped, pass } = item;
    Answer {
        place,
        name,
        view,
        found: match bad {
            Some(why) => Err(why),
            None => Ok(results.into_iter().flat_map(|result| result.classes).collect()),
        },
        frame,
        latency: Latency {
            read_s: begin.duration_since(started).as_secs_f64(),
            network_s: end.duration_since(begin).as_secs_f64(),
            poses_s: end.elapsed().as_secs_f64(),
        },
        num_dropped,
        compute_s: (warp + network + solving).as_secs_f64(),
        picture,
        pass,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::data::Dataset;
    use crate::eval::infer;
    use crate::eval::testing::{CornerDecoder, CornerEngine, options, pictures, see_corners};
    use crate::geom::Lens;

    /// The pictures of a dataset as jobs, each with its own camera.
    fn jobs(dataset: &Dataset, options: &InferOptions) -> Vec<Job> {
        let job = |(place, frame): (usize, &crate::data::Frame)| {
            let lens = Lens::from(frame.camera);
            let view = View::new(lens, None, &options.input, &options.data).unwrap();
            Job {
                place,
                name: frame.image.clone(),
                source: PictureSource::File(dataset.root.join(&frame.image)),
                view: Arc::new(view),
                keep: place == 0,
                frame: None,
                arrived: None,
                num_dropped: 0,
                pass: None,
            }
        };
        dataset.frames.iter().enumerate().map(job).collect()
    }

    #[test]
    fn pictures_have_the_poses_of_a_split_bit_for_bit_in_their_order() {
        let folder = tempfile::tempdir().unwrap();
        let (dataset, mut options) = (Arc::new(pictures(folder.path())), options());
        let engine = CornerEngine { pixels: see_corners(&options, 1) };
        let decoder = CornerDecoder::new(dataset.models[0].corners);
        let split = infer(&engine, &decoder, &dataset, &options, |_| ()).unwrap();
        options.workers = 3;
        let mut answers = Vec::new();
        let solver = Solver::new(&decoder, vec![1], &options).unwrap();
        let on_answer = |answer| {
            answers.push(answer);
            Ok(())
        };
        let jobs = jobs(&dataset, &options).into_iter();
        let over = Arc::<AtomicBool>::default();
        let timing = infer_stream(&engine, &solver, &options, jobs, over, on_answer).unwrap();
        assert_eq!((timing.num_images, answers.len()), (5, 5));
        for (place, (answer, expected)) in answers.iter().zip(&split.predictions).enumerate() {
            assert_eq!((answer.place, answer.picture.is_some()), (place, place == 0));
            let [class] = answer.found.as_ref().unwrap().as_slice() else { panic!("one class") };
            let estimate = class.outcome.as_ref().unwrap();
            assert_eq!(&estimate.prediction, expected);
            assert_eq!((estimate.num_correspondences, class.obj_id), (8, 1));
            assert!(estimate.covariance.is_some());
        }
    }

    #[test]
    fn an_unreadable_picture_keeps_its_turn_and_changes_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let (dataset, options) = (pictures(folder.path()), options());
        let engine = CornerEngine { pixels: see_corners(&options, 1) };
        let decoder = CornerDecoder::new(dataset.models[0].corners);
        let run = |bad: &[usize]| {
            let mut jobs = jobs(&dataset, &options);
            for &i in bad {
                jobs[i].source = PictureSource::Bad(format!("number {i} is broken"));
            }
            let mut found = Vec::new();
            let on_answer = |answer: Answer| {
                found.push(answer.found.map(|classes| {
                    classes[0].outcome.as_ref().map(|pose| pose.prediction.clone()).unwrap()
                }));
                Ok(())
            };
            let solver = Solver::new(&decoder, vec![1], &options).unwrap();
            let over = Arc::<AtomicBool>::default();
            infer_stream(&engine, &solver, &options, jobs.into_iter(), over, on_answer).unwrap();
            found
        };
        let all = run(&[]);
        // A bad one among good ones, and a batch of nothing else.
        for bad in [&[1][..], &[0, 1, 2]] {
            for (i, (found, expected)) in run(bad).iter().zip(&all).enumerate() {
                match bad.contains(&i) {
                    true => assert_eq!(found, &Err(format!("number {i} is broken"))),
                    false => assert_eq!(found, expected, "picture {i}"),
                }
            }
        }
    }

    #[test]
    fn an_endless_source_is_taken_a_few_pictures_ahead_and_a_failing_writer_ends_it() {
        let folder = tempfile::tempdir().unwrap();
        let (dataset, options) = (pictures(folder.path()), options());
        let engine = CornerEngine { pixels: see_corners(&options, 1) };
        let decoder = CornerDecoder::new(dataset.models[0].corners);
        let view = jobs(&dataset, &options)[0].view.clone();
        let taken = AtomicUsize::new(0);
        let endless = std::iter::repeat_with(|| {
            let place = taken.fetch_add(1, Ordering::SeqCst);
            let source = PictureSource::Bad("no picture".to_owned());
            let (name, view) = (place.to_string(), view.clone());
            Job {
                place,
                name,
                source,
                view,
                keep: false,
                frame: None,
                arrived: None,
                num_dropped: 0,
                pass: None,
            }
        });
        let mut written = 0;
        let on_answer = |_| {
            written += 1;
            anyhow::ensure!(written < 40, "the disk is full");
            Ok(())
        };
        let solver = Solver::new(&decoder, vec![1], &options).unwrap();
        let over = Arc::<AtomicBool>::default();
        let error = infer_stream(&engine, &solver, &options, endless, over, on_answer).unwrap_err();
        let text = format!("{error:#}");
        assert_eq!(text, "writing what was found in 39: the disk is full");
        // What may wait: the queue in front of the network, batches behind it, and what every thread holds.
        let waiting = taken.load(Ordering::SeqCst) - written;
        let batches = 2 * WAITING_BATCHES + 2;
        assert!(waiting <= batches * options.data.bs_valid + 3 * options.workers, "{waiting}");
    }

    #[test]
    fn a_failing_writer_or_engine_ends_jobs_that_wait() {
        let folder = tempfile::tempdir().unwrap();
        let (dataset, options) = (pictures(folder.path()), options());
        let decoder = CornerDecoder::new(dataset.models[0].corners);
        let solver = Solver::new(&decoder, vec![1], &options).unwrap();
        let run = |engine: &dyn Engine, on_answer: &(dyn Fn() -> Result<()> + Sync)| {
            let over = Arc::<AtomicBool>::default();
            let mut batch = jobs(&dataset, &options).into_iter().take(options.data.bs_valid);
            let silent = std::iter::from_fn(|| {
                let next = batch.next();
                while next.is_none() && !over.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                next
            });
            let ran =
                infer_stream(engine, &solver, &options, silent, over.clone(), |_| on_answer());
            format!("{:#}", ran.unwrap_err())
        };
        let engine = CornerEngine { pixels: see_corners(&options, 1) };
        let closed = run(&engine, &|| Err(anyhow!("the pipe is closed")));
        assert!(closed.ends_with("the pipe is closed"), "{closed}");
        let panicked = run(&engine, &|| panic!("a fault of the writer"));
        assert_eq!(panicked, "finding poses panicked");
        assert_eq!(run(&Failing(engine), &|| Ok(())), "no memory");
    }

    /// Fails at its first batch.
    struct Failing(CornerEngine);

    impl Engine for Failing {
        fn forward(&self, _: &tch::Tensor) -> Result<crate::nn::Outputs> {
            Err(anyhow!("no memory"))
        }
        fn outputs(&self, width: usize, height: usize) -> Vec<crate::nn::OutputShape> {
            self.0.outputs(width, height)
        }
    }
}
