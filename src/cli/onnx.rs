//! Options of `mqat export --format onnx`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::shared::refuse;
use crate::commands::{OnnxOptions, Runtime};
use crate::export::onnx::{CalibrationMethod, Carrier};

/// What an ONNX file is to be.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "With --format onnx")]
pub struct OnnxArgs {
    /// Round activations to integers, with ranges from so many images of the training list; convolutions then run as
    /// integers. Weights that training left float are rounded to 8 bits as well.
    #[arg(long, value_name = "IMAGES")]
    pub calibrate: Option<usize>,

    /// How calibration sets ranges: from the smallest to the largest value (minmax), without the outermost values
    /// (percentile), or by the least squared error of rounding (mse), which cuts more, and with it what large objects show
    /// [default: percentile].
    #[arg(long, value_name = "minmax|percentile|mse", requires = "calibrate")]
    pub calibration: Option<CalibrationMethod>,

    /// Percentage of values below the range's upper end, and above its lower one, of --calibration percentile
    /// [default: 99.999].
    #[arg(long, value_name = "PERCENT", requires = "calibrate")]
    pub percentile: Option<f64>,

    /// Bits of calibrated activations, 2 to 8 [default: 8].
    #[arg(long, value_name = "BITS", requires = "calibrate")]
    pub activation_bits: Option<u32>,

    /// Leave weights float that training left float: their convolutions then run as floats.
    #[arg(long, requires = "calibrate")]
    pub keep_float: bool,

    /// Use all 8 bits for weights that training left float. Without, --target ort rounds them in steps, at most twice as
    /// coarse, that CPUs without 8-bit dot products (no VNNI) sum fast and exactly.
    #[arg(long, requires = "calibrate", conflicts_with = "keep_float")]
    pub full_range: bool,

    /// How integer weights are stored: a byte each (fastest), or at their true bits (smallest) [default: int8].
    #[arg(long = "weight-type", alias = "carrier", value_name = "TYPE", value_enum)]
    pub carrier: Option<Carrier>,

    /// The runtime that the file is for [default: ort].
    #[arg(long, value_enum)]
    pub target: Option<Runtime>,

    /// Version of ONNX's operators, 17 to 25 [default: the lowest that has the types: 17, INT4 21, INT2 25].
    #[arg(long, value_name = "N")]
    pub opset: Option<i64>,

    /// Fix the batch size [default: open].
    #[arg(long, value_name = "IMAGES")]
    pub batch: Option<i64>,

    /// Add scores and corner pixels of every cell as outputs.
    #[arg(long)]
    pub with_decode: bool,

    /// Run the file in ONNX Runtime on so many images (of the dataset with --data or --calibrate, else noise) and report
    /// differences and kernels. A file that computes something else than the network is not left in place: exit code 1.
    #[arg(long, value_name = "IMAGES", num_args = 0..=1, default_missing_value = "4")]
    pub check: Option<usize>,
}

impl OnnxArgs {
    /// The options by name, and whether each is given.
    pub(super) fn given(&self) -> [(&'static str, bool); 12] {
        [
            ("--calibrate", self.calibrate.is_some()),
            ("--calibration", self.calibration.is_some()),
            ("--percentile", self.percentile.is_some()),
            ("--activation-bits", self.activation_bits.is_some()),
            ("--keep-float", self.keep_float),
            ("--full-range", self.full_range),
            ("--weight-type", self.carrier.is_some()),
            ("--target", self.target.is_some()),
            ("--opset", self.opset.is_some()),
            ("--batch", self.batch.is_some()),
            ("--with-decode", self.with_decode),
            ("--check", self.check.is_some()),
        ]
    }

    /// What is asked for, the rest as usual; `data` is the dataset.
    ///
    /// # Errors
    /// If a percentage is given and the ranges are set in another way.
    pub(super) fn options(&self, data: Option<PathBuf>) -> Result<OnnxOptions> {
        let usual = OnnxOptions::default();
        let method = match (self.calibration.unwrap_or_default(), self.percentile) {
            (CalibrationMethod::Percentile(_), Some(percent)) => {
                CalibrationMethod::Percentile(percent)
            }
            (method, given) => {
                let why = "--calibration sets the ranges in another way";
                refuse(&[("--percentile", given.is_some())], why)?;
                method
            }
        };
        Ok(OnnxOptions {
            target: self.target.unwrap_or(usual.target),
            opset: self.opset,
            carrier: self.carrier.unwrap_or(usual.carrier),
            batch: self.batch,
            calibrate: self.calibrate,
            method,
            activation_bits: self.activation_bits.unwrap_or(usual.activation_bits),
            keep_float: self.keep_float,
            full_range: self.full_range,
            decode: self.with_decode,
            check: self.check,
            data,
        })
    }
}
