//! `mqat score`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, select};
use crate::commands::{ScoreRequest, score};
use crate::eval::ResultFormat;
use crate::run::Request;

/// Arguments of `mqat score`.
#[derive(Debug, Clone, Args)]
pub struct ScoreArgs {
    /// The file of predictions: JSON lines as `mqat test --predictions` writes them, or the csv of the BOP benchmark
    /// (scene_id,im_id,obj_id,score,R,t,time); repeat it to compare several files side by side.
    #[arg(long, value_name = "FILE", required = true)]
    pub predictions: Vec<PathBuf>,

    /// How the files are written: jsonl or bop-csv [default: told by each file's first line].
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<ResultFormat>,

    /// The split that the predictions are of: train, valid, test or the file of a list; of a BOP folder without a config and
    /// without that list the name of a folder of scenes [default: test; the only folder of test scenes].
    #[arg(long, value_name = "train|valid|test|FILE|FOLDER")]
    pub split: Option<String>,

    #[command(flatten)]
    pub select: ConfigSelect,

    /// The dataset, or the folder that holds it as DATA/PROBLEM [default: cfg/hard_storage.json].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Folder for metrics.json, tables, plots and overlays [default: only the table is printed].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Draw no overlays into --out: then the image files need not be there.
    #[arg(long, requires = "out")]
    pub no_overlays: bool,

    /// Count bad lines and bad images and go on without them, instead of stopping at the first.
    #[arg(long)]
    pub skip_bad: bool,

    /// Print one JSON document on stdout; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: ScoreArgs) -> Result<()> {
    let request = ScoreRequest {
        run: Request {
            select: select(args.select),
            data: args.data,
            skip_bad: args.skip_bad,
            ..Request::default()
        },
        predictions: args.predictions,
        format: args.format,
        split: args.split,
        out: args.out,
        overlays: !args.no_overlays,
    };
    let report = score(&request)?;
    if let Some(folder) = &report.folder {
        tracing::info!("report in {}", folder.display());
    }
    if args.json { print_json(&report) } else { print_text(&report.text()) }
}
