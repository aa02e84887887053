//! `mqat report`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, Places, refuse, request};
use super::terminal::Jobs;
use crate::commands::{ReportRequest, report};
use crate::data::Split;
use crate::run::DeviceChoice;

/// Arguments of `mqat report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Experiments: folders (of one, or with experiments below them), or experiment numbers under the given topology (3 or exp003).
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

/// Refuses what only an evaluation reads where there is none, and names where every folder is given.
fn ensure_all_act(args: &ReportArgs) -> Result<()> {
    let ReportArgs { select, places, .. } = args;
    let [problem, topology, config, set] = select.names.given();
    if !args.evaluate {
        let reads = &places.reads;
        let options = [
            config,
            set,
            ("--seed", select.seed.is_some()),
            ("--data", reads.data.is_some()),
            ("--device", reads.device != DeviceChoice::Auto),
            ("--skip-bad", reads.skip_bad),
        ];
        refuse(&options, "nothing is evaluated without --evaluate")?;
    }
    if args.out.is_some() && args.experiments.iter().all(|e| Path::new(e).is_dir()) {
        let options = [problem, topology, ("--logs", places.logs.is_some())];
        refuse(&options, "every EXP is a directory, and --out is given")?;
    }
    Ok(())
}

pub(super) fn run(args: ReportArgs) -> Result<()> {
    ensure_all_act(&args)?;
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
