//! `mqat train`.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};
use clap::Args;

use super::plan::FlowArgs;
use super::print::{print_json, print_text};
use super::search::own_program;
use super::shared::{ConfigSelect, Places, request};
use super::stop;
use super::stop::CommandEnd;
use super::view::TrainView;
use crate::artifact::StartFrom;
use crate::commands::{Ended, TrainRequest, train};
use crate::run::{FlowSource, Request};
use crate::study::{SearchEnd, SearchRequest, search};
use crate::train::ResumeFrom;

/// Arguments of `mqat train`.
#[derive(Debug, Clone, Args)]
pub struct TrainArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub flow: FlowArgs,

    #[command(flatten)]
    pub places: Places,

    /// Start from these weights (.pth, safetensors, a checkpoint, a packed file of floats), relative to the working
    /// directory, and go straight to the flow. The config is the one that is named, else the file's own, else that of the
    /// topology that its tensors are of. For other classes than the file's add --loose.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    /// Train so many epochs in full precision before the flow of --from.
    #[arg(long, value_name = "N", requires = "from", value_parser = clap::value_parser!(u32).range(1..))]
    pub full_precision_epochs: Option<u32>,

    /// Number of the experiment folder [default: one above the highest; with --resume the highest].
    #[arg(long, value_name = "N")]
    pub exp_id: Option<u32>,

    /// Go on with an experiment: from its last checkpoint, its best, or the end of that epoch (counted from 1 over
    /// all stages). The experiment's own config is used; --set may change it.
    #[arg(long, value_name = "last|best|EPOCH", num_args = 0..=1, default_missing_value = "last")]
    pub resume: Option<ResumeFrom>,

    /// Write a checkpoint every so many epochs [default: the config's].
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u32).range(1..))]
    pub ckpt_every: Option<u32>,

    /// Write a checkpoint every so many steps as well.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..))]
    pub ckpt_every_steps: Option<u64>,

    /// Epochs of every stage (schedules of quantization and learning rate are stretched or shrunk to fit); with --resume
    /// of those that have not ended.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: Option<u32>,

    /// Images of a step in every stage, whatever batch_size the config has for it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,

    /// Stop after so many steps in all, with a checkpoint.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_steps: Option<u64>,

    /// Start from pretrained weights that lack layers or have other shapes, too: these begin with random values
    /// (experiment.loose).
    #[arg(long)]
    pub loose: bool,

    /// Print one JSON document on stdout when done; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(args: TrainArgs) -> Result<CommandEnd> {
    let stop = stop::flag()?;
    let run = request(args.select.clone(), args.places.clone());
    let flow = match args.flow.hawq_target()? {
        None => args.flow.source(&run)?,
        Some(_) if args.resume.is_some() => bail!(
            "a resumed run keeps the bits that were chosen for it; leave --method hawq and its options out"
        ),
        Some(target) => match hawq_flow(&run, target, &args, &stop)? {
            None => {
                tracing::warn!("interrupted; run the same command again to resume");
                return Ok(CommandEnd::Interrupted);
            }
            flow => flow,
        },
    };
    let request = TrainRequest {
        run,
        flow,
        from: args
            .from
            .map(|file| StartFrom { file, full_precision_epochs: args.full_precision_epochs }),
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
            Ended::Interrupted => "interrupted; resume it with --resume",
            Ended::MaxSteps => {
                "reached --max-steps; resume it with --resume and a larger --max-steps"
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
        Ended::Interrupted => CommandEnd::Interrupted,
        Ended::Finished | Ended::MaxSteps => CommandEnd::Done,
    })
}

/// The flow of `--method hawq`: the bits of every layer are searched, and its plan is trained; `None` when interrupted.
fn hawq_flow(
    run: &Request,
    target: f64,
    args: &TrainArgs,
    stop: &AtomicBool,
) -> Result<Option<FlowSource>> {
    let mut request = SearchRequest::hawq(run, own_program()?, target)?;
    request.trace.max_probes = args.flow.trace_probes.unwrap_or(request.trace.max_probes);
    request.from = args.from.clone();
    request.levels = args.flow.levels;
    Ok(match search(&request, stop)? {
        SearchEnd::Complete(_) => request.out.map(FlowSource::File),
        SearchEnd::Interrupted | SearchEnd::Ran(_) | SearchEnd::Listed(_) => None,
    })
}
