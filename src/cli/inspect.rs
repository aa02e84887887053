//! `mqat inspect`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::search::positive;
use super::shared::{ConfigNames, names, refuse};
use crate::commands::{AgainstInitRequest, inspect_against_init, inspect_file, inspect_network};
use crate::run::{Request, Select};

/// Arguments of `mqat inspect`.
#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// A file of a network of any kind (checkpoint, safetensors, packed, PyTorch, ONNX); without it the network of the config is
    /// shown.
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    #[command(flatten)]
    pub select: ConfigNames,

    /// Compare FILE's weights with what they were before any training (cosine, kurtosis, gain), and say whether its feature
    /// pyramid is trained.
    #[arg(long, requires = "file")]
    pub against_init: bool,

    /// Seed of the initial values of --against-init [default: that of the run that wrote FILE].
    #[arg(long, value_name = "N", requires = "against_init")]
    pub seed: Option<u64>,

    /// With --against-init: the dataset, or the folder that holds it as DATA/PROBLEM; counts which pyramid levels get targets.
    #[arg(long, value_name = "DIR", requires = "against_init")]
    pub data: Option<PathBuf>,

    /// Training batches to count them on, of as many epochs as that takes.
    #[arg(long, value_name = "N", default_value_t = 50, requires = "data", value_parser = positive)]
    pub batches: usize,

    /// List every layer or tensor, not only the modules.
    #[arg(long)]
    pub layers: bool,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: InspectArgs) -> Result<()> {
    match &args.file {
        Some(file) if args.against_init => {
            let found = inspect_against_init(&AgainstInitRequest {
                file: file.clone(),
                counts_levels: args.data.is_some(),
                run: Request {
                    select: Select { seed: args.seed, ..names(args.select) },
                    data: args.data,
                    ..Request::default()
                },
                batches: args.batches,
            })?;
            if args.json { print_json(&found) } else { print_text(&found.text(args.layers)) }
        }
        Some(file) => {
            refuse(
                &args.select.given(),
                "FILE is shown as it is, whatever a config says (without FILE the network of a config is shown)",
            )?;
            let found = inspect_file(file)?;
            if args.json { print_json(&found) } else { print_text(&found.text(args.layers)) }
        }
        None => {
            let found = inspect_network(&names(args.select))?;
            if args.json { print_json(&found) } else { print_text(&found.text(args.layers)) }
        }
    }
}
