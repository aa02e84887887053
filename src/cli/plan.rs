//! `mqat plan`, and the options that choose a flow.

use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use clap::Args;

use crate::experiment::{Baseline, Bits, FlowSource, parse_weight_method};
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
                Err(err) => bail!("{err}, full-precision"),
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
