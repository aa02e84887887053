//! `mqat train`.

use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};

use super::args::TrainArgs;
use super::view::TrainView;
use super::{Ended as CliEnded, print_json, print_text, request, stop};
use crate::experiment::{
    Ended, FlowSource, Request, SearchEnd, SearchRequest, TrainRequest, search, train,
};

pub(super) fn run(args: TrainArgs) -> Result<CliEnded> {
    let stop = stop::flag()?;
    let run = request(args.select, args.places);
    let flow = match args.flow.hawq_target()? {
        None => args.flow.source()?,
        Some(_) if args.resume.is_some() => bail!(
            "a resumed run keeps the bits that were chosen for it; leave --method hawq and its options out"
        ),
        Some(target) => match hawq_flow(&run, target, args.flow.trace_probes, &stop)? {
            None => {
                tracing::warn!("interrupted; the same command goes on");
                return Ok(CliEnded::Interrupted);
            }
            flow => flow,
        },
    };
    let request = TrainRequest {
        run,
        flow,
        exp_id: args.exp_id,
        resume: args.resume,
        ckpt_every: args.ckpt_every,
        ckpt_every_steps: args.ckpt_every_steps,
        epochs: args.epochs,
        batch_size: args.batch_size.map(|n| n as usize),
        max_steps: args.max_steps,
        loose: args.loose,
    };
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

/// The flow of `--method hawq`: the bits of every layer are searched, and its plan is trained; `None` when interrupted.
fn hawq_flow(
    run: &Request,
    target: f64,
    probes: Option<usize>,
    stop: &AtomicBool,
) -> Result<Option<FlowSource>> {
    let mut request = SearchRequest::hawq(run, target)?;
    request.trace.max_probes = probes.unwrap_or(request.trace.max_probes);
    Ok(match search(&request, stop)? {
        SearchEnd::Complete(_) => request.out.map(FlowSource::File),
        SearchEnd::Interrupted | SearchEnd::Ran(_) | SearchEnd::Listed(_) => None,
    })
}
