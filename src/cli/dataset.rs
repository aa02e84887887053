//! `mqat dataset`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::print::{print_json, print_text};
use crate::commands::check_dataset;

/// Arguments of `mqat dataset`.
#[derive(Debug, Clone, Args)]
pub struct DatasetArgs {
    /// What to do.
    #[command(subcommand)]
    pub command: DatasetCommand,
}

/// What is done with a dataset.
#[derive(Debug, Clone, Subcommand)]
pub enum DatasetCommand {
    /// Look at a BOP folder before training: counts a split, scene and object, sizes, depths, visibility, faults with their
    /// files, and the config that fits.
    Check(CheckArgs),
}

/// Arguments of `mqat dataset check`.
#[derive(Debug, Clone, Args)]
pub struct CheckArgs {
    /// The folder: it holds models/models_info.json and folders of scenes.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: DatasetArgs) -> Result<()> {
    let DatasetCommand::Check(args) = args.command;
    let report = check_dataset(&args.dir)?;
    if args.json { print_json(&report) } else { print_text(&report.text()) }
}
