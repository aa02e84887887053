//! `mqat test`.

use anyhow::Result;

use super::args::TestArgs;
use super::terminal::Progress;
use super::{print_json, print_text, request};
use crate::experiment::{TestRequest, test};

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
    let mut bar: Option<(String, Progress)> = None;
    let report = test(&request, &mut |name, at| {
        if bar.as_ref().is_none_or(|(of, _)| of != name)
            && let Some((_, ended)) = bar.replace((
                name.to_owned(),
                Progress::start(name, "images", at.num_images as u64, 0),
            ))
        {
            ended.finish();
        }
        if let Some((_, bar)) = bar.as_mut() {
            bar.at(at.num_done as u64, "");
        }
    })?;
    if let Some((_, bar)) = bar {
        bar.finish();
    }
    if let Some(folder) = &report.folder {
        tracing::info!("report in {}", folder.display());
    }
    if args.json { print_json(&report) } else { print_text(&report.text()) }
}
