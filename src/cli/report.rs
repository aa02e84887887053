//! `mqat report`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::request;
use super::shared::{ConfigSelect, Places};
use super::terminal::Jobs;
use crate::commands::{ReportRequest, report};
use crate::data::Split;

/// Arguments of `mqat report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Experiments: folders (of one, or with experiments below them), or numbers of the topology's (3 or exp003).
    #[arg(value_name = "EXP", required = true)]
    pub experiments: Vec<String>,

    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub places: Places,

    /// The split whose evaluations are compared.
    #[arg(long, default_value = "test", value_name = "train|valid|test")]
    pub split: Split,

    /// Evaluate experiments that `mqat test` was not run on, at the end of every stage.
    #[arg(long)]
    pub evaluate: bool,

    /// The folder to write [default: LOGS/PROBLEM/TOPOLOGY/report].
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Heading of the page.
    #[arg(long, value_name = "TEXT")]
    pub title: Option<String>,

    /// Print one JSON document on stdout; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: ReportArgs) -> Result<()> {
    let request = ReportRequest {
        run: request(args.select, args.places),
        experiments: args.experiments,
        split: args.split,
        evaluate: args.evaluate,
        out: args.out,
        title: args.title,
    };
    let mut jobs = Jobs::default();
    let summary = report(&request, &mut |name, at| {
        jobs.at(name, "images", at.num_done, at.num_images);
    })?;
    jobs.finish();
    if args.json { print_json(&summary) } else { print_text(&summary.text()) }
}
