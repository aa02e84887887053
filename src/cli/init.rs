//! `mqat init`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use crate::commands::{InitRequest, init};
use crate::run::{FitWishes, folder_name};

/// Arguments of `mqat init`.
#[derive(Debug, Clone, Args)]
pub struct InitArgs {
    /// The BOP folder: it holds models/models_info.json and folders of scenes.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,

    /// Name of the new problem: its config becomes problems/NAME/TOPOLOGY/config.json.
    #[arg(long, value_name = "NAME", value_parser = folder_name)]
    pub problem: String,

    /// The network: a topology of the problem SwissCube.
    #[arg(long, default_value = "Widedepth", value_name = "NAME", value_parser = folder_name)]
    pub topology: String,

    /// Width and height of the network's input, px, multiples of 32 [default: the preset's longer side, in the shape of the
    /// images].
    #[arg(long, value_name = "WxH", value_parser = parse_size)]
    pub size: Option<[usize; 2]>,

    /// Seed of the training, and of the choice of images to hold out.
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub seed: u64,

    /// Fraction of the training images to hold out for validation if the dataset has no validation split.
    #[arg(long, default_value_t = 0.1, value_name = "F", value_parser = parse_fraction)]
    pub validation: f64,

    /// Numbers of the objects to learn, as 1,5,6; the others are left out [default: all that training images show].
    #[arg(long, value_name = "IDS", value_delimiter = ',')]
    pub objects: Vec<u32>,

    /// Weights to start from instead of the preset's: any file of weights or checkpoint; what fits of them is taken.
    #[arg(long, value_name = "FILE")]
    pub weights: Option<PathBuf>,

    /// Overwrite an existing config.
    #[arg(long)]
    pub overwrite: bool,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

fn parse_size(text: &str) -> Result<[usize; 2], String> {
    let sides = text.split_once('x').and_then(|(w, h)| Some([w.parse().ok()?, h.parse().ok()?]));
    sides.ok_or_else(|| format!("size is {text:?}, expected WIDTHxHEIGHT, as 320x256"))
}

fn parse_fraction(text: &str) -> Result<f64, String> {
    let fraction = text.parse().ok().filter(|f: &f64| *f > 0.0 && *f < 1.0);
    fraction.ok_or_else(|| format!("fraction is {text:?}, expected a number between 0 and 1"))
}

pub(super) fn run(args: InitArgs) -> Result<()> {
    let InitArgs { data, problem, topology, weights, overwrite, .. } = args;
    let wishes = FitWishes {
        size: args.size,
        seed: args.seed,
        validation: args.validation,
        objects: args.objects,
    };
    let report = init(&InitRequest { data, problem, topology, wishes, weights, overwrite })?;
    if args.json { print_json(&report) } else { print_text(&report.text()) }
}
