//! Options of `mqat export --format onnx`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::commands::{OnnxOptions, Runtime};
use crate::export::onnx::{Carrier as Stored, Method};

/// What an ONNX file is to be.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "With --format onnx")]
pub struct OnnxArgs {
    /// Round activations to integers, with ranges from so many images of the training list; convolutions then run as
    /// integers. Weights that training left float are rounded to 8 bits as well.
    #[arg(long, value_name = "IMAGES")]
    pub calibrate: Option<usize>,

    /// How calibration sets ranges.
    #[arg(long, value_enum, default_value_t, requires = "calibrate")]
    pub calibration: Calibration,

    /// Percentage of values below the range's upper end, and above its lower one, of --calibration percentile.
    #[arg(long, value_name = "PERCENT", default_value_t = 99.999)]
    pub percentile: f64,

    /// Bits of calibrated activations, 2 to 8.
    #[arg(long, value_name = "BITS", default_value_t = 8, requires = "calibrate")]
    pub activation_bits: u32,

    /// Leave weights float that training left float: their convolutions then run as floats.
    #[arg(long, requires = "calibrate")]
    pub keep_float: bool,

    /// Use all 8 bits for weights that training left float. Without, --target ort rounds them in steps, at most twice as
    /// coarse, that CPUs without 8-bit dot products (no VNNI) sum fast and exactly.
    #[arg(long, requires = "calibrate", conflicts_with = "keep_float")]
    pub full_range: bool,

    /// How integer weights are stored: a byte each (fastest), or at their true bits (smallest).
    #[arg(long, value_enum, default_value_t)]
    pub carrier: Carrier,

    /// The runtime that the file is for.
    #[arg(long, value_enum, default_value_t)]
    pub target: Target,

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
    /// differences and kernels.
    #[arg(long, value_name = "IMAGES", num_args = 0..=1, default_missing_value = "4")]
    pub check: Option<usize>,

    /// The dataset, or the folder that holds it as DATA/PROBLEM [default: cfg/hard_storage.json].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,
}

/// `--calibration`.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Calibration {
    /// From the smallest to the largest value.
    Minmax,
    /// Without the outermost values.
    #[default]
    Percentile,
    /// The least squared error of rounding: cuts more, and with it what large objects show.
    Mse,
}

/// `--carrier`.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Carrier {
    /// A byte each.
    #[default]
    Int8,
    /// 2, 4 or 8 bits.
    TrueBits,
}

/// `--target`.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub enum Target {
    /// ONNX Runtime on CPUs.
    #[default]
    Ort,
    /// TensorRT.
    Tensorrt,
    /// OpenVINO.
    Openvino,
}

impl From<OnnxArgs> for OnnxOptions {
    fn from(args: OnnxArgs) -> Self {
        Self {
            target: match args.target {
                Target::Ort => Runtime::Ort,
                Target::Tensorrt => Runtime::Tensorrt,
                Target::Openvino => Runtime::Openvino,
            },
            opset: args.opset,
            carrier: match args.carrier {
                Carrier::Int8 => Stored::Int8,
                Carrier::TrueBits => Stored::TrueBits,
            },
            batch: args.batch,
            calibrate: args.calibrate,
            method: match args.calibration {
                Calibration::Minmax => Method::MinMax,
                Calibration::Percentile => Method::Percentile(args.percentile),
                Calibration::Mse => Method::Mse,
            },
            activation_bits: args.activation_bits,
            keep_float: args.keep_float,
            full_range: args.full_range,
            decode: args.with_decode,
            check: args.check,
            data: args.data,
        }
    }
}
