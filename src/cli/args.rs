//! The command line.

use std::sync::LazyLock;

use clap::{ArgAction, Parser, Subcommand};

use super::audit::AuditArgs;
use super::bench::BenchArgs;
use super::config::ConfigArgs;
use super::dataset::DatasetArgs;
use super::export::ExportArgs;
use super::import::ImportArgs;
use super::init::InitArgs;
use super::inspect::InspectArgs;
use super::launch::LaunchArgs;
use super::plan::PlanArgs;
use super::predict::PredictArgs;
use super::recalibrate::RecalibrateArgs;
use super::report::ReportArgs;
use super::score::ScoreArgs;
use super::search::SearchArgs;
use super::synth::SynthArgs;
use super::test::TestArgs;
use super::train::TrainArgs;
use super::verify::VerifyArgs;
use crate::run::LIBTORCH_VERSION;

/// Modular Quantization-Aware Training of 6D-pose networks.
///
/// Trains a WDR pose network, quantizes it one module at a time along the flow of a config (a 2-bit FPN first), and
/// evaluates its 6D poses on SwissCube. Each problem has a config: problems/PROBLEM/TOPOLOGY/config.json.
#[derive(Debug, Parser)]
#[command(name = "mqat", version = VERSION.as_str(), max_term_width = 100, after_help = AFTER_HELP)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// Say more (-v: every step, -vv: everything). MQAT_LOG takes a tracing filter instead.
    #[arg(short, long, global = true, action = ArgAction::Count, help_heading = "Messages")]
    pub verbose: u8,

    /// Say warnings and errors only.
    #[arg(short, long, global = true, conflicts_with = "verbose", help_heading = "Messages")]
    pub quiet: bool,
}

/// Version, commit (where the sources are a git repository) and libtorch.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let commit = match env!("MQAT_COMMIT") {
        "" => String::new(),
        commit => format!("commit {commit}, "),
    };
    format!("{} ({commit}libtorch {LIBTORCH_VERSION})", env!("CARGO_PKG_VERSION"))
});

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
    /// Print the timeline of a run before it runs: stages, epochs, learning rates, every convolution, sizes.
    Plan(PlanArgs),
    /// Train a network: the full-precision stage, then one stage for each module of the quantization flow.
    Train(TrainArgs),
    /// Start a command in several processes on this machine that train or test together, one for each GPU.
    Launch(LaunchArgs),
    /// Evaluate checkpoints on a split: poses, the accuracy table, plots and overlays.
    Test(TestArgs),
    /// Find poses with their uncertainty (covariance) in images, folders, lists or videos of any camera.
    Predict(Box<PredictArgs>),
    /// Score poses from files (JSON lines or BOP csv, of any program) as `test` scores a network's.
    Score(ScoreArgs),
    /// Put evaluated experiments side by side: accuracy against compression, tables, one HTML page.
    Report(ReportArgs),
    /// Find the order and the bit widths of the modules for a target size, and write a plan to train.
    Search(Box<SearchArgs>),
    /// Write the config of a BOP folder of your own: splits, objects, camera, anchors, length of the training.
    Init(InitArgs),
    /// Look at a BOP folder of your own before training: counts, sizes, faults, and the config that fits.
    Dataset(DatasetArgs),
    /// Render a synthetic SwissCube dataset.
    Synth(SynthArgs),
    /// Show a network (layers, parameters, quantization plan), or what a file of any kind holds.
    Inspect(InspectArgs),
    /// Read weights of other programs (PyTorch files of the published code, safetensors) into a checkpoint.
    Import(ImportArgs),
    /// Check that every quantized weight of a file is on its levels, and quantized as planned; exit code 1 if not.
    Audit(AuditArgs),
    /// Estimate the running statistics of a file's batch norms again on training batches, and write a file with them.
    Recalibrate(RecalibrateArgs),
    /// Write a network for other programs: its weights (safetensors, PyTorch), a packed low-bit file, an ONNX graph.
    Export(ExportArgs),
    /// Run two files of one network (checkpoint, packed, ...) on the same images; fail when they differ.
    Verify(VerifyArgs),
    /// Measure how long parts of the program take: steps, networks, loading, PnP, engines.
    Bench(BenchArgs),
    /// Print a resolved config, or the JSON schema of configs.
    Config(ConfigArgs),
    /// Print a completion script for a shell.
    Completions {
        /// The shell to print for.
        shell: clap_complete::Shell,
    },
}

impl Command {
    /// The name of a command that works in one process, which a launcher would only repeat.
    pub(super) fn of_one_process(&self) -> Option<&'static str> {
        match self {
            Self::Train(_) | Self::Test(_) | Self::Completions { .. } => None,
            Self::Launch(_) => Some("launch"),
            Self::Predict(_) => Some("predict"),
            Self::Search(_) => Some("search"),
            Self::Score(_) => Some("score"),
            Self::Report(_) => Some("report"),
            Self::Init(_) => Some("init"),
            Self::Dataset(_) => Some("dataset"),
            Self::Synth(_) => Some("synth"),
            Self::Inspect(_) => Some("inspect"),
            Self::Import(_) => Some("import"),
            Self::Audit(_) => Some("audit"),
            Self::Recalibrate(_) => Some("recalibrate"),
            Self::Plan(_) => Some("plan"),
            Self::Export(_) => Some("export"),
            Self::Verify(_) => Some("verify"),
            Self::Bench(_) => Some("bench"),
            Self::Config(_) => Some("config"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::train::Resume;
    use crate::train::ResumeFrom;
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
        assert_eq!(parse("mqat train --resume"), Some(Resume::From(ResumeFrom::Last)));
        assert_eq!(parse("mqat train --resume best"), Some(Resume::From(ResumeFrom::Best)));
        assert_eq!(parse("mqat train --resume 12"), Some(Resume::From(ResumeFrom::Epoch(12))));
        assert_eq!(parse("mqat train --resume auto"), Some(Resume::Auto));
        assert!(Cli::try_parse_from(["mqat", "train", "--resume", "never"]).is_err());
    }
}
