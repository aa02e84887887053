//! `mqat report`.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, Places, refuse, request};
use super::terminal::Jobs;
use crate::commands::{Column, ReportRequest, TableFormat, report};
use crate::data::Split;
use crate::run::DeviceChoice;

/// Arguments of `mqat report`.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Experiments: folders (of one, or with experiments below them), or experiment numbers under the given topology
    /// (3 or exp003) [default: all of the topology].
    #[arg(value_name = "EXP")]
    pub experiments: Vec<String>,

    /// Compare every row with this one on the same objects: difference, 95 % interval, McNemar's test, p adjusted for the
    /// number of rows. `start` is the network that the runs began with.
    ///
    /// Intervals and p come from a bootstrap over sequences (images of a sequence are alike) and over runs of other seeds;
    /// p is adjusted by Holm's method. Without :STAGE it is the last stage that was evaluated.
    #[arg(long, value_name = "start|EXP[:STAGE]")]
    pub paired: Option<String>,

    /// The evaluation of the network that the runs began with, for the row `start`: a folder that `mqat test
    /// --checkpoint START --out DIR` wrote [default: that in an experiment, which --evaluate makes].
    #[arg(long, value_name = "DIR")]
    pub start: Option<PathBuf>,

    /// Columns of the tables: method, network, paper-x, file-x, mb, steps, runs, seeds, near, medium, far, all, true-adi,
    /// and with --paired difference, interval, discordant, mcnemar, p, holm.
    #[arg(long, value_name = "COLUMN,...", value_delimiter = ',')]
    pub columns: Vec<Column>,

    /// Show ADD-0.1d of every class, too.
    #[arg(long)]
    pub per_class: bool,

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

    /// Keep the pictures in the page, which then is one file, not in a folder beside it.
    #[arg(long)]
    pub self_contained: bool,

    /// Print the tables in this form instead of as text.
    #[arg(long, value_name = "md|csv|latex|html", conflicts_with = "json")]
    pub format: Option<TableFormat>,

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
    let is_folder = |text: &String| Path::new(text).is_dir();
    let base_needs_none =
        args.paired.as_ref().is_none_or(|base| base == "start" || is_folder(base));
    let all_folders = !args.experiments.is_empty() && args.experiments.iter().all(is_folder);
    if args.out.is_some() && all_folders && base_needs_none {
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
        paired: args.paired,
        start: args.start,
        columns: args.columns,
        per_class: args.per_class,
        self_contained: args.self_contained,
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
    match args.format {
        _ if args.json => print_json(&summary),
        Some(format) => print_text(&summary.formatted(format)),
        None => print_text(&summary.text()),
    }
}
