//! `mqat train`.

use anyhow::Result;

use super::args::TrainArgs;
use super::view::TrainView;
use super::{Ended as CliEnded, print_json, print_text, request, stop};
use crate::experiment::{Ended, TrainRequest, train};

pub(super) fn run(args: TrainArgs) -> Result<CliEnded> {
    let request = TrainRequest {
        run: request(args.select, args.places),
        flow: args.flow.source()?,
        exp_id: args.exp_id,
        resume: args.resume,
        ckpt_every: args.ckpt_every,
        ckpt_every_steps: args.ckpt_every_steps,
        epochs: args.epochs,
        max_steps: args.max_steps,
        loose: args.loose,
    };
    let stop = stop::flag()?;
    let mut view = TrainView::default();
    let report = train(&request, &mut view, &stop)?;
    drop(view);
    if args.json {
        print_json(&report)?;
    } else {
        let how = match report.outcome {
            Ended::Finished => "finished",
            Ended::Interrupted => "interrupted, go on with --resume",
            Ended::MaxSteps => {
                "stopped after the steps asked for, go on with --resume and more --max-steps"
            }
        };
        print_text(&format!(
            "exp{:03} {how}: {} steps, {}",
            report.exp_id,
            report.global_step,
            report.checkpoint.display()
        ))?;
    }
    Ok(match report.outcome {
        Ended::Interrupted => CliEnded::Interrupted,
        Ended::Finished | Ended::MaxSteps => CliEnded::Done,
    })
}
