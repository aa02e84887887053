//! `mqat predict`.

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

/// How often a job of unknown length says how far it is.
const LINE_EVERY: Duration = Duration::from_secs(15);

const EXAMPLES: &str = "\
Examples:
  mqat predict --checkpoint net.mqat --camera camera.json frames/
  mqat predict --checkpoint net.onnx --camera calibration.yaml --overlays 20 --out poses flight.mp4
  mqat predict --checkpoint last.safetensors data/SwissCube/testing.txt
  mqat predict --checkpoint net.mqat --camera K.json --boxes swisscube_bbox.json --batch 1 'in/*.png'

The camera: JSON or YAML with fx, fy, cx, cy (BOP) or K, calibrations of OpenCV and camera_info of ROS with their distortion,
which is undone. Writes predictions.jsonl (poses with covariance, or the reason why there is none), predictions.csv (BOP),
summary.json and overlays. docs/predict.md tells every field.

Exit codes: 0 done, 1 failed or some images could not be read (--skip-bad: 0), 130 stopped by a signal.";

/// Arguments of `mqat predict`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct PredictArgs {
    /// Images (PNG, JPEG), folders of images, globs, lists of a dataset (.txt, one image a line), videos (by an installed
    /// ffmpeg).
    #[arg(value_name = "INPUT", required = true)]
    pub inputs: Vec<PathBuf>,

    /// The network: a checkpoint, packed (.mqat) or ONNX file, safetensors, or a PyTorch file of the published code.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: PathBuf,

    /// The camera that took the images [default: that of the dataset's scene; the network's own for images of exactly its
    /// input's size].
    #[arg(long, value_name = "FILE")]
    pub camera: Option<PathBuf>,

    /// Corners of the objects' boxes, as the dataset's BBOX_FILE [default: that file in the dataset of the list or of --data].
    #[arg(long, value_name = "FILE")]
    pub boxes: Option<PathBuf>,

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

    /// Images that go through the network at once; 1 gives the shortest latency [default: data.bs_valid].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub batch: Option<u16>,

    /// Take a file that lacks layers of the network, too: they have random values, and so have the poses.
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
        recursive: args.recursive,
        camera: args.camera,
        boxes: args.boxes,
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
    let report = predict(&request, &stop, &mut |at| bar.at(at))?;
    bar.finish();
    if args.json {
        print_json(&report)?
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
