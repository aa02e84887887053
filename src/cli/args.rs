//! The command line.

use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand};

use super::audit::AuditArgs;
use super::bench::BenchArgs;
use super::export::ExportArgs;
use super::import::ImportArgs;
use super::plan::{FlowArgs, PlanArgs};
use super::search::SearchArgs;
use super::verify::VerifyArgs;
use crate::data::Split;
use crate::experiment::{DeviceChoice, EngineChoice, folder_name};
use crate::synth::{Attitude, Format, parse_depth_range};
use crate::train::ResumeFrom;

/// Modular Quantization-Aware Training of 6D-pose networks.
///
/// Trains a WDR pose network, quantizes it one module at a time along the flow of a config (a 2-bit FPN first), and
/// evaluates its 6D poses on SwissCube. Each problem has a config: problems/PROBLEM/TOPOLOGY/config.json.
#[derive(Debug, Parser)]
#[command(name = "mqat", version, max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Say more (-v: every step, -vv: everything). MQAT_LOG takes a tracing filter instead.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// Say warnings and errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

const AFTER_HELP: &str = "\
Examples:
  mqat synth --out data/SwissCube --train 2000 --val 200 --test 400
  mqat train --problem SwissCube --topology Widedepth
  mqat train --topology WidedepthTiny --resume
  mqat test --topology WidedepthTiny --all-stages
  mqat inspect --topology Widedepth

Exit codes: 0 done, 1 failed (stderr says why), 2 wrong usage, 130 stopped by a signal (resume with --resume).";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train a network: the full-precision stage, then one stage for each module of the quantization flow.
    Train(TrainArgs),
    /// Evaluate checkpoints on a split: poses, the accuracy table, plots and overlays.
    Test(TestArgs),
    /// Find poses in images, folders, lists or videos of any camera, and how sure they are.
    Predict(Box<super::predict::PredictArgs>),
    /// Find the order and the bit widths of the modules for a target size, and write a plan to train.
    Search(Box<SearchArgs>),
    /// Score poses from files (JSON lines or BOP csv, of any program) as `test` scores a network's.
    Score(super::score::ScoreArgs),
    /// Put evaluated experiments side by side: accuracy against compression, tables, one HTML page.
    Report(super::report::ReportArgs),
    /// Render a synthetic SwissCube dataset.
    Synth(SynthArgs),
    /// Show a network (layers, parameters, quantization plan) or a checkpoint's tensors.
    Inspect(InspectArgs),
    /// Read weights of other programs (PyTorch files of the published code, safetensors) into a checkpoint.
    Import(ImportArgs),
    /// Check that every quantized weight of a file is on its levels, and quantized as planned; exit code 1 if not.
    Audit(AuditArgs),
    /// Print the timeline of a run before it runs: stages, epochs, learning rates, every convolution, sizes.
    Plan(PlanArgs),
    /// Write a checkpoint's weights alone (safetensors, PyTorch keys), as a start for other runs.
    Export(ExportArgs),
    /// Run two files of one network (checkpoint, packed, ...) on the same images; fail when they differ.
    Verify(VerifyArgs),
    /// Measure how long parts of the program take: updates, networks, loading, PnP, engines.
    Bench(BenchArgs),
    /// Print a resolved config, or the JSON schema of configs.
    Config(ConfigArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell to print for.
        shell: clap_complete::Shell,
    },
}

/// Which config, and what is changed in it.
#[derive(Debug, Clone, Args)]
pub struct ConfigSelect {
    /// The problem: a folder of problems/ [default: SwissCube].
    #[arg(long, value_name = "NAME", value_parser = folder_name)]
    pub problem: Option<String>,

    /// The topology: a folder of problems/PROBLEM/ [default: Widedepth].
    #[arg(long, value_name = "NAME", value_parser = folder_name)]
    pub topology: Option<String>,

    /// A config file, instead of problems/PROBLEM/TOPOLOGY/config.json.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Change a config value, by dotted key; repeatable (--set data.bs_valid=4 --set quantize.flow.0.epochs=10).
    /// A value that something else rules over is an error of `mqat train`.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Seed of everything random: of training experiment.seed, of `mqat test` evaluation.seed [default: the config's].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Where things lie and where to compute.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// The dataset, or the folder that holds it as DATA/PROBLEM [default: that of the experiment that is resumed or
    /// tested, else cfg/hard_storage.json].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Where experiments are written: LOGS/PROBLEM/TOPOLOGY/expNNN [default: cfg/hard_storage.json].
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,

    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,

    /// Count unreadable images and go on without them, instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,
}

/// Arguments of `mqat train`.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub flow: FlowArgs,

    #[command(flatten)]
    pub places: Places,

    /// Number of the experiment folder [default: one above the highest; with --resume the highest].
    #[arg(long, value_name = "N")]
    pub exp_id: Option<u32>,

    /// Go on with an experiment: from its last checkpoint, its best, or the end of that epoch (counted from 1 over
    /// all stages). The experiment's own config is used; --set may change it.
    #[arg(long, value_name = "last|best|EPOCH", num_args = 0..=1, default_missing_value = "last")]
    pub resume: Option<ResumeFrom>,

    /// Write a checkpoint every so many epochs [default: the config's].
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u32).range(1..))]
    pub ckpt_every: Option<u32>,

    /// Write a checkpoint every so many steps as well.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub ckpt_every_steps: Option<u64>,

    /// Epochs of every stage (schedules of quantization and learning rate are stretched or shrunk to fit); with --resume
    /// of those that have not ended.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: Option<u32>,

    /// Images of an update in every stage, whatever batch_size the config has for it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,

    /// Stop after so many steps in all, with a checkpoint.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_steps: Option<u64>,

    /// Start from pretrained weights that lack layers or have other shapes, too: these begin with random values
    /// (experiment.loose).
    #[arg(long)]
    pub loose: bool,

    /// Print one JSON document on stdout when done; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `mqat test`.
#[derive(Debug, Clone, Args)]
pub struct TestArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub places: Places,

    /// A file to evaluate: a checkpoint, safetensors, or a PyTorch file of the published code; repeat it to compare
    /// several side by side.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["exp_id", "all_stages"])]
    pub checkpoint: Vec<PathBuf>,

    /// The experiment to evaluate [default: the highest].
    #[arg(long, value_name = "N")]
    pub exp_id: Option<u32>,

    /// Evaluate the end of every stage of the experiment, side by side.
    #[arg(long)]
    pub all_stages: bool,

    /// The split to evaluate.
    #[arg(long, default_value = "test", value_name = "train|valid|test")]
    pub split: Split,

    /// Write the predictions: as BOP csv where the name ends in .csv, else as JSON lines with image, class, score,
    /// R[9], t[3] (mm), inliers, residual (px). With several checkpoints the name gets the checkpoint's name before
    /// its ending.
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,

    /// Folder for metrics.json, tables, plots and overlays [default: eval/ of the experiment, else only the table is
    /// printed].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Evaluate a file that lacks layers of the network, too: they have random values, and so have the results.
    #[arg(long)]
    pub loose: bool,

    /// What runs the network: torch, ort (ONNX Runtime, for files of `mqat export --format onnx`), or auto by the file.
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    pub engine: EngineChoice,

    /// Print one JSON document on stdout; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `mqat inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// A file of weights of any kind (checkpoint, safetensors, PyTorch); without it the network of the config is
    /// shown.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    #[command(flatten)]
    pub select: ConfigSelect,

    /// List every layer or tensor, not only the modules.
    #[arg(long)]
    pub layers: bool,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `mqat config`.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    /// Print the JSON schema of configs instead.
    #[arg(long)]
    pub schema: bool,
}

/// Arguments of `mqat synth`.
#[derive(Debug, Clone, Args)]
pub struct SynthArgs {
    /// The dataset's folder; must be empty or not there.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Number of training images.
    #[arg(long, default_value_t = 1000, value_name = "N")]
    pub train: usize,

    /// Number of validation images.
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub val: usize,

    /// Number of test images.
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub test: usize,

    /// Side of the square images, px; the camera is SwissCube's, scaled.
    #[arg(long, default_value_t = 1024, value_name = "PX")]
    pub size: u32,

    /// Range of depths in mesh diameters (178.46 mm), as NEAR:FAR.
    #[arg(long, default_value = "1d:10d", value_name = "NEAR:FAR", value_parser = parse_depth_range)]
    pub depth: (f64, f64),

    /// Attitudes: `full`, or within so many degrees of one nominal attitude.
    #[arg(long, default_value = "full", value_name = "full|DEG")]
    pub attitude: Attitude,

    /// Seed of everything random.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,

    /// Worker threads; the result does not depend on it [default: all cores].
    #[arg(long, value_name = "J", value_parser = clap::value_parser!(u16).range(1..))]
    pub jobs: Option<u16>,

    /// Image format: jpeg (quality 95), jpeg:QUALITY or png.
    #[arg(long, default_value = "jpeg", value_name = "FORMAT")]
    pub format: Format,

    /// Write 16-bit depth images as well (BOP: depth/, 0.1 mm).
    #[arg(long = "depth-png")]
    pub depth_images: bool,

    /// Replace a synthetic dataset that is there.
    #[arg(long)]
    pub overwrite: bool,

    /// Do nothing when a finished dataset with these very settings is there, and make one anew whose rendering was cut
    /// off.
    #[arg(long)]
    pub keep: bool,

    /// Print one JSON document on stdout; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn resume_needs_no_value() {
        let parse = |line: &str| match Cli::try_parse_from(line.split(' ')).unwrap().command {
            Command::Train(args) => args.resume,
            other => panic!("{other:?}"),
        };
        assert_eq!(parse("mqat train"), None);
        assert_eq!(parse("mqat train --resume"), Some(ResumeFrom::Last));
        assert_eq!(parse("mqat train --resume best"), Some(ResumeFrom::Best));
        assert_eq!(parse("mqat train --resume 12"), Some(ResumeFrom::Epoch(12)));
        assert!(Cli::try_parse_from(["mqat", "train", "--resume", "never"]).is_err());
    }
}
