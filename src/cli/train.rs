//! `mqat train`.

use std::path::PathBuf;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail};
use clap::Args;

use super::again;
use super::plan::FlowArgs;
use super::print::{print_json, print_text};
use super::search::own_program;
use super::shared::{ConfigSelect, Places, request};
use super::stop;
use super::stop::CommandEnd;
use super::view::TrainView;
use super::world::{RankLog, WorldArgs};
use crate::artifact::StartFrom;
use crate::commands::{Ended, TrainRequest, train};
use crate::run::{FlowSource, Request};
use crate::study::{SearchEnd, SearchRequest, search};
use crate::train::{Observer, ResumeFrom};
use crate::world::World;

/// Heading of the options that say where and when a run is saved.
const SAVING: &str = "Saving and resuming";

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
    #[arg(long, value_name = "N", help_heading = SAVING)]
    pub exp_id: Option<u32>,

    /// Go on with an experiment: from its last checkpoint, its best, or the end of that epoch (counted from 1 over
    /// all stages). The experiment's own config is used; --set may change it. `auto` starts the experiment --exp-id if
    /// it does not exist, and resumes it if it does: for batch jobs that are requeued with the same command.
    #[arg(long, value_name = "last|best|EPOCH|auto", num_args = 0..=1, default_missing_value = "last", help_heading = SAVING)]
    pub resume: Option<Resume>,

    /// Write a checkpoint every so many epochs [default: the config's].
    #[arg(long, value_name = "EPOCHS", value_parser = clap::value_parser!(u32).range(1..), help_heading = SAVING)]
    pub ckpt_every: Option<u32>,

    /// Write a checkpoint every so many steps as well.
    #[arg(long, value_name = "STEPS", value_parser = clap::value_parser!(u64).range(1..), help_heading = SAVING)]
    pub ckpt_every_steps: Option<u64>,

    /// Epochs of every stage (schedules of quantization and learning rate are stretched or shrunk to fit); with --resume
    /// of those that have not ended.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub epochs: Option<u32>,

    /// Images of a step in every stage, whatever batch_size the config has for it.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub batch_size: Option<u32>,

    /// Compute the batch of each step in so many pieces, one after the other, and add up their gradients: for batches
    /// that do not fit into memory. With several processes each does so with its part.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u16).range(1..))]
    pub accumulate: u16,

    #[command(flatten)]
    pub world: WorldArgs,

    /// Stop after so many steps in all, with a checkpoint.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = SAVING)]
    pub max_steps: Option<u64>,

    /// Start from pretrained weights that lack layers or have other shapes, too: these keep their initial values
    /// (experiment.loose).
    #[arg(long)]
    pub loose: bool,

    /// Print one JSON document on stdout when done; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

/// What `--resume` takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// Go on.
    From(ResumeFrom),
    /// Begin, or go on from the last checkpoint.
    Auto,
}

impl FromStr for Resume {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => Ok(Self::Auto),
            _ => text.parse().map(Self::From).context("expected last, best, auto or an epoch"),
        }
    }
}

pub(super) fn run(args: TrainArgs) -> Result<CommandEnd> {
    let stop = stop::flag()?;
    let world = Rc::new(args.world.meet()?);
    let ended = run_in(args, &world, &stop).and_then(|end| world.barrier().map(|()| end));
    world.end(ended)
}

fn run_in(mut args: TrainArgs, world: &Rc<World>, stop: &AtomicBool) -> Result<CommandEnd> {
    let others = [("--from", args.from.is_some()), ("--resume", args.resume.is_some())];
    again::take_over(&mut args.flow, &mut args.select, &mut args.places, &others)?;
    let run = request(args.select.clone(), args.places.clone());
    let flow = match args.flow.hawq_target()? {
        None => args.flow.source(&run)?,
        Some(_) if args.resume.is_some() => bail!(
            "a resumed run keeps the bits that were chosen for it; leave --method hawq and its options out"
        ),
        Some(_) if !world.is_alone() => bail!(
            "--method hawq searches in one process: search with `mqat search --method hawq` first, then train its plan with \
             --flow"
        ),
        Some(target) => match hawq_flow(&run, target, &args, stop)? {
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
        begin_or_resume: args.resume == Some(Resume::Auto),
        resume: args.resume.and_then(|resume| match resume {
            Resume::From(from) => Some(from),
            Resume::Auto => None,
        }),
        accumulate: usize::from(args.accumulate),
        ckpt_every: args.ckpt_every,
        ckpt_every_steps: args.ckpt_every_steps,
        epochs: args.epochs,
        batch_size: args.batch_size.map(|n| n as usize),
        max_steps: args.max_steps,
        loose: args.loose,
    };
    let mut view: Box<dyn Observer> = match world.is_first() {
        true => Box::<TrainView>::default(),
        false => Box::new(RankLog { rank: world.rank() }),
    };
    let report = train(&request, world, view.as_mut(), stop)?;
    drop(view);
    if !world.is_first() {
        // Process 0 says it.
    } else if args.json {
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
