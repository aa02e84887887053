//! `mqat plan`, and the options that choose a flow.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use clap::Args;

use super::args::ConfigSelect;
use super::{print_json, print_text, select};
use crate::experiment::{Baseline, Bits, FlowSource, PlanRequest, parse_weight_method, plan};
use crate::quant::WeightMethod;

/// Which flow, instead of the config's.
#[derive(Debug, Clone, Args)]
pub struct FlowArgs {
    /// The flow instead of the config's: MODULE:BITS,... (fpn:2,head:w4a8,backbone:8), or a plan file.
    ///
    /// MODULE is a path, a glob or several joined by +; BITS is 2, w2 (weights), a8 (inputs) or w2a8, with /N for N
    /// levels (2/4) and @METHOD for another method (fpn:2@inq). Epochs, learning rates and schedules are those of the
    /// config's stage for that module, else of its first stage, else the defaults.
    #[arg(long, value_name = "FLOW|FILE", conflicts_with_all = ["method", "bits"])]
    pub flow: Option<FlowSource>,

    /// A baseline instead of the config's flow: a weight method (inq, ...) gives all modules the same --bits in one
    /// stage as long as the flow; full-precision trains the flow's epochs without quantizing.
    #[arg(long, value_name = "METHOD")]
    pub method: Option<Method>,

    /// Bits of a uniform baseline: 4, w4a8, ...
    #[arg(long, value_name = "BITS", requires = "method")]
    pub bits: Option<Bits>,
}

/// What `--method` names.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Method {
    /// No quantization.
    FullPrecision,
    /// The same bits everywhere.
    Uniform(WeightMethod),
}

impl FromStr for Method {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "full-precision" | "full_precision" => Ok(Self::FullPrecision),
            name => match parse_weight_method(name) {
                Ok(method) => Ok(Self::Uniform(method)),
                Err(err) => bail!("{err}; without quantization: full-precision"),
            },
        }
    }
}

impl FlowArgs {
    /// The flow that is asked for, if one is.
    ///
    /// # Errors
    /// If `--method` and `--bits` do not go together.
    pub(super) fn source(self) -> Result<Option<FlowSource>> {
        let baseline = match (self.method, self.bits) {
            (None, _) => return Ok(self.flow),
            (Some(Method::FullPrecision), bits) => {
                ensure!(bits.is_none(), "--method full-precision takes no --bits");
                Baseline::FullPrecision
            }
            (Some(Method::Uniform(method)), Some(bits)) => Baseline::Uniform { method, bits },
            (Some(Method::Uniform(_)), None) => {
                bail!("--method of a uniform baseline needs --bits, for example --bits 4")
            }
        };
        Ok(Some(FlowSource::Baseline(baseline)))
    }
}

/// Arguments of `mqat plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub flow: FlowArgs,

    /// The dataset, or the folder that holds it as DATA/PROBLEM; its training images say how many updates there are.
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Number of training images, where the dataset is not at hand.
    #[arg(long, value_name = "N", conflicts_with = "data")]
    pub images: Option<usize>,

    /// Epochs of every stage, as of `mqat train`.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: Option<u32>,

    /// Also write the flow as a plan file, for --flow of other commands.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: PlanArgs) -> Result<()> {
    let found = plan(&PlanRequest {
        select: select(args.select),
        flow: args.flow.source()?,
        data: args.data,
        epochs: args.epochs,
        num_images: args.images,
        out: args.out,
    })?;
    if args.json { print_json(&found) } else { print_text(&found.text()) }
}
