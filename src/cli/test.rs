//! `mqat test`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, Places, refuse, request};
use super::terminal::Jobs;
use super::world::WorldArgs;
use crate::artifact::EngineChoice;
use crate::commands::{TestRequest, test};
use crate::data::Split;
use crate::world::World;

/// Arguments of `mqat test`.
#[derive(Debug, Clone, Args)]
pub struct TestArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub places: Places,

    /// A file to evaluate: a checkpoint, safetensors, or a PyTorch file of the published code; repeat it to compare
    /// several side by side.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["exp_id", "all_stages"])]
    pub checkpoint: Vec<PathBuf>,

    /// The experiment to evaluate [default: the highest].
    #[arg(long, value_name = "N")]
    pub exp_id: Option<u32>,

    /// Evaluate the end of every stage of the experiment, side by side.
    #[arg(long)]
    pub all_stages: bool,

    /// Evaluate the best checkpoint of the last stage by validation [default: the end of the last stage that is complete,
    /// else the last checkpoint].
    #[arg(long, conflicts_with_all = ["checkpoint", "all_stages"])]
    pub best: bool,

    /// The split to evaluate.
    #[arg(long, default_value = "test", value_name = "train|valid|test")]
    pub split: Split,

    /// Write the predictions: as BOP csv where the name ends in .csv, else as JSON lines with image, class, score,
    /// R[9], t[3] (mm), inliers, residual (px). With several checkpoints the name gets the checkpoint's name before
    /// its ending.
    #[arg(long, value_name = "FILE")]
    pub predictions: Option<PathBuf>,

    /// Folder for metrics.json, tables, plots and overlays [default: eval/ of the experiment, else only the table is
    /// printed].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Evaluate a file that lacks layers of the network, too: they keep their initial values, and the results are theirs.
    #[arg(long)]
    pub loose: bool,

    /// What stands before the keys of the network to take, where a file of another program holds several; what all keys
    /// share is taken off without it.
    #[arg(long, value_name = "PREFIX")]
    pub strip_prefix: Option<String>,

    /// What runs the network: torch, ort (ONNX Runtime, for files of `mqat export --format onnx`), or auto by the file.
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    pub engine: EngineChoice,

    #[command(flatten)]
    pub world: WorldArgs,

    /// Print one JSON document on stdout; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: TestArgs) -> Result<()> {
    let world = args.world.meet()?;
    let ended = run_in(args, &world);
    world.end(ended)
}

fn run_in(args: TestArgs, world: &World) -> Result<()> {
    refuse(
        &[("--logs", args.places.logs.is_some() && !args.checkpoint.is_empty())],
        "--checkpoint names the files",
    )?;
    let request = TestRequest {
        run: request(args.select, args.places),
        checkpoints: args.checkpoint,
        exp_id: args.exp_id,
        all_stages: args.all_stages,
        best: args.best,
        split: args.split,
        predictions: args.predictions,
        out: args.out,
        loose: args.loose,
        strip_prefix: args.strip_prefix,
        engine: args.engine,
    };
    let mut jobs = Jobs::default();
    let report = test(&request, world, &mut |name, at| {
        if world.is_first() {
            jobs.at(name, "images", at.num_done, at.num_images);
        }
    })?;
    jobs.finish();
    if !world.is_first() {
        return Ok(()); // process 0 says it
    }
    if let Some(folder) = &report.folder {
        tracing::info!("report in {}", folder.display());
    }
    if args.json { print_json(&report) } else { print_text(&report.text()) }
}
