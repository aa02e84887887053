//! `mqat inspect`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, select};
use crate::commands::{inspect_file, inspect_network};

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

pub(super) fn run(args: InspectArgs) -> Result<()> {
    match &args.file {
        Some(file) => {
            let found = inspect_file(file)?;
            if args.json { print_json(&found) } else { print_text(&found.text(args.layers)) }
        }
        None => {
            let found = inspect_network(&select(args.select))?;
            if args.json { print_json(&found) } else { print_text(&found.text(args.layers)) }
        }
    }
}
