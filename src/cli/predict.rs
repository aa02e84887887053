//! `mqat predict`.

use std::io::Write;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, Places, request};
use super::stop;
use super::stop::CommandEnd;
use super::terminal::JobProgress;
use crate::artifact::EngineChoice;
use crate::commands::{Overlays, PredictProgress, PredictRequest, predict};
use crate::io::video::{MAX_SIDE_PX, VideoSource};

/// How often a job of unknown length says how far it is.
const LINE_EVERY: Duration = Duration::from_secs(15);

const EXAMPLES: &str = "\
Examples:
  mqat predict --checkpoint net.mqat --camera camera.json frames/
  mqat predict --checkpoint net.onnx --camera calibration.yaml --overlays 20 --out poses flight.mp4
  mqat predict --checkpoint last.safetensors data/SwissCube/testing.txt
  mqat predict --checkpoint net.mqat --camera K.json --boxes swisscube_bbox.json --batch 1 'in/*.png'
  mqat predict --checkpoint net.mqat --camera camera.yaml --realtime /dev/video0 | my_robot
  my_camera | mqat predict --checkpoint net.mqat --camera camera.yaml --raw 640x480 -

The camera: JSON or YAML with fx, fy, cx, cy (BOP) or K, calibrations of OpenCV and camera_info of ROS with their distortion,
which is undone. Writes predictions.jsonl (poses with covariance, or the reason why there is none), predictions.csv (BOP),
summary.json and overlays. docs/predict.md tells every field.

Exit codes: 0 done, 1 failed or some images could not be read (--skip-bad: 0), 130 stopped by a signal.";

/// Arguments of `mqat predict`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct PredictArgs {
    /// Images (PNG, JPEG), folders of images, globs, lists of a dataset (.txt, one image a line), videos, a camera
    /// (/dev/video0), the address of a stream (rtsp://, http://, udp://; all three by an installed ffmpeg), or - for images
    /// on standard input.
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,

    /// The network: a checkpoint, packed (.mqat) or ONNX file, safetensors, or a PyTorch file of the published code.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: PathBuf,

    /// The camera that took the images [default: that of the dataset's scene; the network's own for images of exactly its
    /// input's size].
    #[arg(long, value_name = "FILE")]
    pub camera: Option<PathBuf>,

    /// Corners of the objects' boxes, as the dataset's BBOX_FILE [default: those of --data, else those that the checkpoint
    /// carries, else those of the list's dataset].
    #[arg(long, value_name = "FILE")]
    pub boxes: Option<PathBuf>,

    /// metrics.json of a `mqat test` of this network: the poses' standard deviations are multiplied by the factors that it
    /// measured, so that they tell the errors to expect.
    #[arg(long, value_name = "METRICS")]
    pub calibrated: Option<PathBuf>,

    /// Take the images in the folders of a folder, too.
    #[arg(long)]
    pub recursive: bool,

    /// Folder of the results [default: a new one in predict/ of the checkpoint's experiment, else in LOGS/PROBLEM/TOPOLOGY/predict].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Replace results that are in --out.
    #[arg(long, requires = "out")]
    pub overwrite: bool,

    /// Draw the poses into so many images, spread evenly over the input, or into all.
    #[arg(long, value_name = "N|all", default_value = "0")]
    pub overlays: Overlays,

    /// Print a line of JSON for each image and class as soon as it is known, as in predictions.jsonl; always so for a
    /// camera, a stream and standard input, unless --json is given.
    #[arg(long, conflicts_with = "json")]
    pub lines: bool,

    /// Look at one frame at a time, always the newest: frames that come meanwhile are dropped and counted. For a camera, a
    /// stream, standard input, and a video, whose frames then come at its own rate.
    #[arg(long)]
    pub realtime: bool,

    /// Standard input holds raw frames of this size, 3 bytes a pixel (rgb24), instead of PNG or JPEG files.
    #[arg(long, value_name = "WIDTHxHEIGHT", value_parser = size)]
    pub raw: Option<(u32, u32)>,

    /// Images that go through the network at once; 1 gives the shortest latency [default: data.bs_valid].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: Option<u16>,

    /// Take a file that lacks layers of the network, too: they keep their initial values, and the poses are theirs.
    #[arg(long)]
    pub loose: bool,

    /// What runs the network: torch, ort (ONNX Runtime, for files of `mqat export --format onnx`), or auto by the file.
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    pub engine: EngineChoice,

    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub places: Places,

    /// Print one JSON document on stdout (the summary); everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: PredictArgs) -> Result<CommandEnd> {
    let skip_bad = args.places.reads.skip_bad;
    let request = PredictRequest {
        run: request(args.select, args.places),
        checkpoint: args.checkpoint,
        inputs: args.inputs,
        raw: args.raw,
        realtime: args.realtime,
        recursive: args.recursive,
        camera: args.camera,
        boxes: args.boxes,
        calibrated: args.calibrated,
        out: args.out,
        overwrite: args.overwrite,
        overlays: args.overlays,
        batch: args.batch.map(usize::from),
        loose: args.loose,
        engine: args.engine,
    };
    let stop =
        stop::flag_saying("stopping after the images that are begun; once more to stop at once")?;
    let mut bar = Bar::Unstarted;
    let tells_lines = args.lines || (is_live(&request) && !args.json);
    let lines = tells_lines.then(|| Box::new(std::io::stdout()) as Box<dyn Write + Send>);
    let report = predict(&request, &stop, lines, &mut |at| bar.at(at))?;
    bar.finish();
    if args.json {
        print_json(&report)?
    } else if tells_lines {
        report.text().lines().for_each(|line| tracing::info!("{line}"));
    } else {
        print_text(&report.text())?
    }
    if report.interrupted {
        return Ok(CommandEnd::Interrupted);
    }
    ensure!(
        report.num_bad == 0 || skip_bad,
        "{} of {} images could not be read, the first: {}; {} has a record of each (--skip-bad makes that no failure)",
        report.num_bad,
        report.num_images,
        report.bad.first().map_or("", String::as_str),
        report.predictions.display()
    );
    Ok(CommandEnd::Done)
}

/// Whether an input goes on until it is ended.
fn is_live(request: &PredictRequest) -> bool {
    let is_live = |input: &PathBuf| input.as_os_str() == "-" || VideoSource::live(input).is_some();
    request.inputs.iter().any(is_live)
}

/// Width and height.
fn size(text: &str) -> Result<(u32, u32), String> {
    let sides = text.split_once(['x', 'X']);
    let sides = sides.and_then(|(w, h)| Some((w.parse().ok()?, h.parse().ok()?)));
    match sides {
        Some((w, h)) if (1..=MAX_SIDE_PX).contains(&w) && (1..=MAX_SIDE_PX).contains(&h) => {
            Ok((w, h))
        }
        _ => Err(format!(
            "expected WIDTHxHEIGHT, for example 640x480, each from 1 to {MAX_SIDE_PX} px"
        )),
    }
}

/// A bar, or lines where nobody knows how long it takes.
enum Bar {
    Unstarted,
    Known(JobProgress),
    Unknown(Instant),
}

impl Bar {
    fn at(&mut self, at: PredictProgress) {
        let PredictProgress { num_done, num_images, num_poses } = at;
        if matches!(self, Self::Unstarted) {
            *self = match num_images {
                Some(total) => {
                    Self::Known(JobProgress::start("predict", "images", total as u64, 0))
                }
                None => Self::Unknown(Instant::now()),
            };
        }
        match self {
            Self::Known(bar) => bar.at(num_done as u64, &format!("{num_poses} poses")),
            Self::Unknown(last) if last.elapsed() >= LINE_EVERY => {
                *last = Instant::now();
                tracing::info!("{num_done} images, {num_poses} poses");
            }
            _ => {}
        }
    }

    fn finish(self) {
        if let Self::Known(bar) = self {
            bar.finish();
        }
    }
}
