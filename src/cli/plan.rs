//! `mqat plan`, and the options that choose a flow.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, select};
use crate::commands::{PlanRequest, plan};
use crate::quant::{Levels, WeightMethod};
use crate::run::{Baseline, Bits, FlowSource, Folder, Pick, Request, Width, parse_weight_method};

/// Which flow, instead of the config's.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Flow")]
pub struct FlowArgs {
    /// The flow instead of the config's: MODULE:BITS,... (fpn:2,head:w4a8,backbone:8), or a plan file.
    ///
    /// MODULE is a path, a glob or several joined by +; BITS is 2, w2 (weights), a8 (inputs) or w2a8, with /N for N
    /// levels (2/4) and @METHOD for another method (fpn:2@inq). Epochs, learning rates and schedules are those of the
    /// config's stage for that module, else of its first stage, else the defaults.
    #[arg(long, value_name = "FLOW|FILE", conflicts_with_all = ["method", "bits"])]
    pub flow: Option<FlowSource>,

    /// A baseline instead of the config's flow: a weight method (inq, ...) gives all modules the same --bits in one
    /// stage as long as the flow; full-precision trains the flow's epochs without quantizing; hawq (of `train`) first
    /// chooses the bits of every layer for --target-compression, as `mqat search --layerwise --method lsq`.
    #[arg(long, value_name = "METHOD")]
    pub method: Option<FlowMethod>,

    /// Bits of a uniform baseline: 4, w4a8, ...
    #[arg(long, value_name = "BITS", requires = "method")]
    pub bits: Option<Bits>,

    /// Levels of b bits of the weights of --method: odd, 2^b - 1 about 0, or full, 2^b [default: the method's].
    #[arg(long, value_name = "odd|full", requires = "method")]
    pub levels: Option<Levels>,

    /// Without --method (`mqat train`): the run of that experiment once more, with its config, problem, topology, dataset and
    /// pretrained weights. With --method full-precision: the stages of this flow instead of the config's, so that it is the
    /// float control of that flow: as many steps, with the same batch sizes, learning rates and restarts.
    ///
    /// A plan file, or the config of another run: an experiment (its number or directory), or a config file. Of a config the
    /// full-precision stage, data.bs_train, training.train_images, training.epoch_images, training.max_steps, training.monitor and training.ema are
    /// taken, too; it must begin with the same weights.
    #[arg(long, value_name = "PLAN|EXP|CONFIG")]
    pub like: Option<String>,

    /// How many times smaller --method hawq makes the convolution weights, against 32 bits.
    #[arg(long, value_name = "X", requires = "method")]
    pub target_compression: Option<f64>,

    /// Probes at most for the sensitivities of --method hawq [default: 200].
    #[arg(long, value_name = "N", requires = "target_compression")]
    pub trace_probes: Option<usize>,
}

/// What `--method` names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum FlowMethod {
    /// No quantization.
    FullPrecision,
    /// Bits for each layer, by its sensitivity.
    Hawq,
    /// The same bits everywhere.
    Uniform(WeightMethod),
}

impl FromStr for FlowMethod {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "full-precision" | "full_precision" => Ok(Self::FullPrecision),
            "hawq" => Ok(Self::Hawq),
            name => match parse_weight_method(name) {
                Ok(method) => Ok(Self::Uniform(method)),
                Err(err) => {
                    bail!("{err}; without quantization: full-precision; bits for each layer: hawq")
                }
            },
        }
    }
}

impl FlowArgs {
    /// The compression of `--method hawq`, whose flow has to be measured first; none for any other flow.
    ///
    /// # Errors
    /// If its options do not go together.
    pub(super) fn hawq_target(&self) -> Result<Option<f64>> {
        let is_hawq = self.method == Some(FlowMethod::Hawq);
        match self.target_compression {
            None if is_hawq => bail!("--method hawq needs --target-compression, for example 8"),
            Some(_) if !is_hawq => bail!("--target-compression is for --method hawq"),
            target => {
                ensure!(
                    !is_hawq || self.bits.is_none(),
                    "--method hawq chooses the bits itself; leave --bits out"
                );
                Ok(target)
            }
        }
    }

    /// The flow that is asked for, if one is.
    ///
    /// # Errors
    /// If `--method` and `--bits` do not go together, or it is one that has to be measured first.
    pub(super) fn source(self, run: &Request) -> Result<Option<FlowSource>> {
        ensure!(
            self.hawq_target()?.is_none(),
            "the bits of --method hawq have to be measured first: run `mqat search --layerwise --method lsq \
             --target-compression X --out FILE`, then pass --flow FILE"
        );
        if let Some(text) = &self.like {
            ensure!(
                self.method == Some(FlowMethod::FullPrecision),
                "--like is for --method full-precision, and alone for `mqat train`"
            );
            ensure!(
                self.bits.is_none() && self.levels.is_none(),
                "--method full-precision takes no --bits and no --levels"
            );
            return like(text, run).map(Some);
        }
        let baseline = match (self.method, self.bits) {
            (None | Some(FlowMethod::Hawq), _) => return Ok(self.flow),
            (Some(FlowMethod::FullPrecision), bits) => {
                ensure!(bits.is_none(), "--method full-precision takes no --bits");
                ensure!(self.levels.is_none(), "--method full-precision takes no --levels");
                Baseline::FullPrecision
            }
            (Some(FlowMethod::Uniform(method)), Some(bits)) => {
                Baseline::Uniform { method, bits: with_levels(bits, self.levels)? }
            }
            (Some(FlowMethod::Uniform(_)), None) => {
                bail!("--method of a uniform baseline needs --bits, for example --bits 4")
            }
        };
        Ok(Some(FlowSource::Baseline(baseline)))
    }
}

/// The bits with that choice of levels for the weights.
fn with_levels(bits: Bits, levels: Option<Levels>) -> Result<Bits> {
    let Some(levels) = levels else { return Ok(bits) };
    let weights = bits.weights.with_context(|| {
        format!(
            "--levels is of weights, and --bits {bits} quantizes activations alone; leave it out"
        )
    })?;
    Ok(Bits { weights: Some(Width { levels: Some(levels), ..weights }), ..bits })
}

/// The float control of what `text` names: a file, or an experiment by directory or number.
fn like(text: &str, run: &Request) -> Result<FlowSource> {
    let path = Path::new(text);
    if path.is_file() {
        return FlowSource::like(path.to_owned());
    }
    FlowSource::like(experiment(text, run)?.join(CONFIG))
}

/// The config of an experiment.
pub(super) const CONFIG: &str = "config.json";

/// The folder of the experiment that `--like` names by directory or number.
///
/// # Errors
/// If there is none.
pub(super) fn experiment(text: &str, run: &Request) -> Result<PathBuf> {
    let path = Path::new(text);
    if path.is_dir() {
        ensure!(path.join(CONFIG).is_file(), "--like {text}: no {CONFIG} is in that directory");
        return Ok(path.to_owned());
    }
    let number = text.strip_prefix("exp").unwrap_or(text).parse();
    let id = number.ok().with_context(|| {
        format!("--like {text}: is neither a file, nor a directory, nor the number of an experiment (such as 3 or exp003)")
    })?;
    let select = &run.select;
    let logs = run.home()?.logs;
    Ok(Folder::find(&logs, select.problem(), select.topology(), Pick::Id(id))?.path)
}

/// Arguments of `mqat plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub flow: FlowArgs,

    /// The dataset, or the folder that holds it as DATA/PROBLEM; its training images say how many steps there are.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Number of training images, where the dataset is not at hand.
    #[arg(long, value_name = "N", conflicts_with = "data")]
    pub images: Option<usize>,

    /// Epochs of every stage, as of `mqat train`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: Option<u32>,

    /// Images of a step in every stage, as of `mqat train`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,

    /// Also write the flow as a plan file, for --flow of other commands.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: PlanArgs) -> Result<()> {
    let run = Request { select: select(args.select), ..Request::default() };
    let found = plan(&PlanRequest {
        flow: args.flow.source(&run)?,
        select: run.select,
        data: args.data,
        epochs: args.epochs,
        batch_size: args.batch_size.map(|n| n as usize),
        num_images: args.images,
        out: args.out,
    })?;
    if args.json { print_json(&found) } else { print_text(&found.text()) }
}
