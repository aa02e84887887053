//! `mqat dataset`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand};

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, select};
use crate::commands::{PreviewRequest, check_dataset, convert_dataset, preview};
use crate::data::ConvertFrom;
use crate::run::Request;

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
    /// files, and the command that writes a config for it.
    Check(CheckArgs),
    /// Write a dataset of another layout as a BOP folder: SPEED and SPEED+ with masks and a stand-in mesh; BOP imagewise and
    /// webdataset folders as a folder of scenes.
    Convert(ConvertArgs),
    /// Write a mosaic of training images as the network gets them, augmented, with the projected boxes of their labels.
    Preview(PreviewArgs),
}

/// Arguments of `mqat dataset convert`.
#[derive(Debug, Clone, Args)]
pub struct ConvertArgs {
    /// The folder to read: that of SPEED or SPEED+ with its labels, or of the files or archives of one BOP split.
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,

    /// Its layout.
    #[arg(long, value_name = "LAYOUT")]
    pub from: ConvertFrom,

    /// The layout to write: bop, folders of scenes.
    #[arg(long, default_value = "bop", value_name = "LAYOUT", value_parser = ["bop"])]
    pub to: String,

    /// The folder to write, which must not be there: of SPEED and SPEED+ the dataset's, of a BOP split the split's, as
    /// lmo/train_pbr beside lmo/models.
    #[arg(long, value_name = "DIR")]
    pub out: PathBuf,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
}

/// Arguments of `mqat dataset preview`.
#[derive(Debug, Clone, Args)]
pub struct PreviewArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    /// The dataset, or the folder that holds it as DATA/PROBLEM [default: cfg/hard_storage.json].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// The picture to write.
    #[arg(long, default_value = "preview.png", value_name = "FILE.png")]
    pub out: PathBuf,

    /// How many images, 1 to 100.
    #[arg(long, default_value_t = 16, value_name = "N")]
    pub images: usize,

    /// The epoch whose order and augmentations are shown; the first is 0.
    #[arg(long, default_value_t = 0, value_name = "N")]
    pub epoch: u64,

    /// Leave out unreadable images instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,

    /// Print one JSON document on stdout.
    #[arg(long)]
    pub json: bool,
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
    match args.command {
        DatasetCommand::Check(args) => {
            let report = check_dataset(&args.dir)?;
            if args.json { print_json(&report) } else { print_text(&report.text()) }
        }
        DatasetCommand::Convert(args) => {
            let report = convert_dataset(args.from, &args.dir, &args.out)?;
            if args.json { print_json(&report) } else { print_text(&report.text()) }
        }
        DatasetCommand::Preview(args) => run_preview(args),
    }
}

fn run_preview(args: PreviewArgs) -> Result<()> {
    let PreviewArgs { data, out, images, epoch, skip_bad, .. } = args;
    let run = Request { select: select(args.select), data, skip_bad, ..Request::default() };
    let report = preview(&PreviewRequest { run, out, images, epoch })?;
    if args.json { print_json(&report) } else { print_text(&report.text()) }
}
