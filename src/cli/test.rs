//! `mqat test`.

use anyhow::Result;

use super::args::TestArgs;
use super::terminal::Jobs;
use super::{print_json, print_text, request};
use crate::commands::{TestRequest, test};

pub(super) fn run(args: TestArgs) -> Result<()> {
    let request = TestRequest {
        run: request(args.select, args.places),
        checkpoints: args.checkpoint,
        exp_id: args.exp_id,
        all_stages: args.all_stages,
        split: args.split,
        predictions: args.predictions,
        out: args.out,
        loose: args.loose,
        engine: args.engine,
    };
    let mut jobs = Jobs::default();
    let report = test(&request, &mut |name, at| {
        jobs.at(name, "images", at.num_done, at.num_images);
    })?;
    jobs.finish();
    if let Some(folder) = &report.folder {
        tracing::info!("report in {}", folder.display());
    }
    if args.json { print_json(&report) } else { print_text(&report.text()) }
}
