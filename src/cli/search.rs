//! `mqat search`.

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, Places, refuse, request};
use super::stop;
use super::stop::CommandEnd;
use crate::io::shell_word;
use crate::quant::{Levels, WeightMethod};
use crate::run::parse_weight_method;
use crate::study::{
    Budget, Division, First, ListedTrial, SearchEnd, SearchRequest, SizeKind, SizeTarget,
    StageEpochs, TraceRequest, Walk, search,
};
use crate::train::Afterwards;

/// Arguments of `mqat search`.
#[derive(Debug, Clone, Args)]
#[command(after_help = AFTER_HELP)]
pub struct SearchArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub places: Places,

    /// Start from these full-precision weights (a checkpoint or safetensors) [default: the config's experiment.url].
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,

    #[command(flatten)]
    pub target: TargetArgs,

    /// What counts for the target: `paper`, convolution weights alone, or `file`, everything (scales, biases, norms,
    /// layers that stay float).
    #[arg(long, value_enum, default_value = "paper")]
    pub size: SizeArg,

    /// Widths to choose from.
    #[arg(long, value_name = "B,B,...", value_delimiter = ',', default_value = "2,4,8",
          value_parser = clap::value_parser!(u32).range(1..=8))]
    pub bits: Vec<u32>,

    /// Width of the trials, and of the module that goes first.
    #[arg(long, value_name = "B", default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=8))]
    pub trial_bits: u32,

    /// The modules: paths, or globs such as `fpn.*` [default: all that the network has, see `mqat inspect`].
    #[arg(long, value_name = "M,M,...")]
    pub modules: Option<Patterns>,

    /// Quantizer of the weights (inq, ...) [default: that of the config's flow].
    #[arg(long, value_name = "METHOD", value_parser = parse_weight_method)]
    pub method: Option<WeightMethod>,

    /// Levels of b bits: odd, 2^b - 1 about 0, or full, 2^b [default: those of the config's flow, else the method's].
    #[arg(long, value_name = "odd|full")]
    pub levels: Option<Levels>,

    /// Keep the network's first convolution float.
    #[arg(long)]
    pub keep_first_layer: bool,

    /// Keep the prediction layers float.
    #[arg(long)]
    pub keep_last_layer: bool,

    #[command(flatten)]
    pub trials: TrialArgs,

    #[command(flatten)]
    pub trace: TraceArgs,

    /// Choose the bits of every layer, for one stage over all modules (the HAWQ-V3 baseline), without trials.
    #[arg(long)]
    pub layerwise: bool,

    /// With --layerwise: a stage for each module, its layers with their own bits, instead of one stage over all. The order is
    /// by number of parameters, or begins with --first MODULE.
    #[arg(long, requires = "layerwise")]
    pub sequential: bool,

    /// What becomes of modules after their stages: `freeze`, or `train` (they go on learning; not method inq)
    /// [default: what the config's stages say].
    #[arg(long, value_enum, value_name = "freeze|train")]
    pub afterwards: Option<AfterwardsArg>,

    /// How the plan's stages share the epochs of the config's flow: `equal`, or `sensitivity` (in proportion to the summed
    /// sensitivity of their layers, with a floor) [default: each as long as its config's stage].
    #[arg(long, value_enum, value_name = "equal|sensitivity")]
    pub stage_epochs: Option<StageEpochsArg>,

    /// Score orders of the modules too: every one, or one found place by place. Orders that begin alike share these stages.
    #[arg(long, value_enum, value_name = "all|greedy")]
    pub orders: Option<OrdersArg>,

    /// Bits of each module, given instead of searched: backbone:8,fpn:2,head:8.
    #[arg(long, value_name = "M:B,...", conflicts_with_all = ["target_compression", "target_bytes", "target_bits"])]
    pub assign: Option<Assignments>,

    /// Write the plan here; `mqat train --flow FILE` runs it.
    #[arg(long, value_name = "FILE")]
    pub out: Option<PathBuf>,

    /// Print one JSON document on stdout; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

const AFTER_HELP: &str = "\
Examples:
  mqat search --topology WidedepthTiny --target-compression 8 --out plan.json
  mqat train --topology WidedepthTiny --flow plan.json
  mqat search --topology WidedepthTiny --target-compression 8 --layerwise --method lsq --out hawq.json
  mqat search --topology WidedepthTiny --target-compression 8 --layerwise --sequential --method lsq --afterwards train --out plan.json
  mqat search --topology WidedepthTiny --assign backbone:8,fpn:2,head:8 --orders all

A search that was stopped goes on with the same command: complete trials are kept, others resume.";

/// How small.
#[derive(Debug, Clone, Args)]
#[group(multiple = false)]
pub struct TargetArgs {
    /// How many times smaller than with 32-bit weights.
    #[arg(long, value_name = "X")]
    pub target_compression: Option<f64>,

    /// Bytes at most.
    #[arg(long, value_name = "N")]
    pub target_bytes: Option<u64>,

    /// Bits a convolution weight at most, on average.
    #[arg(long, value_name = "AVG")]
    pub target_bits: Option<f64>,
}

/// Trials.
#[derive(Debug, Clone, Args)]
pub struct TrialArgs {
    /// Epochs of each trial's stage; schedules are stretched or shrunk [default: those of the config's flow].
    #[arg(long, value_name = "E", value_parser = clap::value_parser!(u32).range(1..))]
    pub budget_epochs: Option<u32>,

    /// Training images of a trial's epoch, spread evenly over the list [default: all].
    #[arg(long, value_name = "N", conflicts_with = "trial_steps", value_parser = positive)]
    pub trial_images: Option<usize>,

    /// Steps of a trial's stage, in place of --trial-images; rounded up to whole epochs' batches.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub trial_steps: Option<u64>,

    /// The module that goes first, without trials; `smallest` for an order by size with all bits searched.
    #[arg(long, value_name = "MODULE|smallest")]
    pub first: Option<String>,

    /// How far a trial's gain must be from 0 to decide which module goes first, points of percent; within it the search is
    /// undecided and goes by size [default: the gain's standard error].
    #[arg(long, value_name = "POINTS", conflicts_with = "first")]
    pub first_margin: Option<f64>,

    /// Trials that run at the same time, as processes of their own.
    #[arg(long, value_name = "J", default_value = "1", value_parser = positive)]
    pub jobs: usize,

    /// The search's folder: trials and traces are kept there [default: LOGS/PROBLEM/TOPOLOGY/search].
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,

    /// Run this trial only, here; another machine or GPU may run others in the same folder.
    #[arg(long, value_name = "TRIAL", conflicts_with = "print_commands")]
    pub only: Option<String>,

    /// Run and evaluate nothing: print a command for each trial that can be run now. With --orders and a target the
    /// curvature that decides their bits is measured, where it was not.
    #[arg(long)]
    pub print_commands: bool,
}

/// The curvature.
#[derive(Debug, Clone, Args)]
pub struct TraceArgs {
    /// Sensitivity: `hawq`, trace / n * squared error, or `mqbench`, which divides by n once more.
    #[arg(long, value_enum, default_value = "hawq")]
    pub trace: DivisionArg,

    /// Training images that the curvature is taken over.
    #[arg(long, value_name = "N", default_value_t = TraceRequest::default().images)]
    pub trace_images: usize,

    /// Images of a probe.
    #[arg(long, value_name = "N", default_value_t = TraceRequest::default().batch)]
    pub trace_batch: usize,

    /// Probes at most.
    #[arg(long, value_name = "N", default_value_t = TraceRequest::default().max_probes)]
    pub trace_probes: usize,

    /// Stop when the summed sensitivity's standard error is below this fraction of it.
    #[arg(long, value_name = "FRACTION", default_value_t = TraceRequest::default().relative_error)]
    pub trace_error: f64,
}

/// Totals.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SizeArg {
    Paper,
    File,
}

/// Walks.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum OrdersArg {
    All,
    Greedy,
}

/// What becomes of finished modules.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum AfterwardsArg {
    Freeze,
    Train,
}

/// Lengths of stages.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum StageEpochsArg {
    Equal,
    Sensitivity,
}

/// Divisions.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum DivisionArg {
    Hawq,
    Mqbench,
}

/// Patterns separated by commas outside of braces and brackets.
#[derive(Debug, Clone)]
pub struct Patterns(Vec<String>);

impl FromStr for Patterns {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let parts = crate::quant::select::split(text, ',');
        let parts: Vec<String> = parts.into_iter().map(|p| p.trim().to_owned()).collect();
        if parts.iter().any(String::is_empty) {
            bail!("{text:?} has an empty module, expected names that `mqat inspect` lists");
        }
        Ok(Self(parts))
    }
}

/// `MODULE:BITS` separated by commas.
#[derive(Debug, Clone)]
pub struct Assignments(Vec<(String, u32)>);

impl FromStr for Assignments {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let one = |part: &str| {
            let (module, bits) = part.rsplit_once(':')?;
            let bits = bits.trim().parse().ok().filter(|b| (1..=8).contains(b))?;
            Some((module.trim().to_owned(), bits))
        };
        let parts = crate::quant::select::split(text, ',');
        let all: Option<Vec<_>> = parts.into_iter().map(one).collect();
        match all {
            Some(all) => Ok(Self(all)),
            None => bail!(
                "{text:?} is not a list of MODULE:BITS with bits 1 to 8, such as MODULE:8,MODULE:2"
            ),
        }
    }
}

pub(super) fn positive(text: &str) -> std::result::Result<usize, String> {
    text.parse()
        .ok()
        .filter(|n| *n > 0)
        .ok_or_else(|| "expected a whole number, 1 or more".to_owned())
}

impl SearchArgs {
    fn request(self) -> Result<SearchRequest> {
        let target = &self.target;
        Ok(SearchRequest {
            target: (target.target_compression.map(SizeTarget::Compression))
                .or(target.target_bytes.map(SizeTarget::Bytes))
                .or(target.target_bits.map(SizeTarget::Bits)),
            run: request(self.select, self.places),
            program: own_program()?,
            from: self.from,
            modules: self.modules.map(|patterns| patterns.0).unwrap_or_default(),
            widths: self.bits,
            trial_bits: self.trial_bits,
            size: match self.size {
                SizeArg::Paper => SizeKind::Paper,
                SizeArg::File => SizeKind::File,
            },
            budget: Budget {
                epochs: self.trials.budget_epochs,
                images: self.trials.trial_images,
                steps: self.trials.trial_steps,
            },
            method: self.method,
            levels: self.levels,
            trace: TraceRequest {
                images: self.trace.trace_images,
                batch: self.trace.trace_batch,
                max_probes: self.trace.trace_probes,
                relative_error: self.trace.trace_error,
                division: match self.trace.trace {
                    DivisionArg::Hawq => Division::Hawq,
                    DivisionArg::Mqbench => Division::Mqbench,
                },
            },
            first: match self.trials.first {
                None => First::Trials,
                Some(name) if name == "smallest" => First::Smallest,
                Some(name) => First::Module(name),
            },
            first_margin: self.trials.first_margin,
            layerwise: self.layerwise,
            sequential: self.sequential,
            afterwards: self.afterwards.map(|afterwards| match afterwards {
                AfterwardsArg::Freeze => Afterwards::Freeze,
                AfterwardsArg::Train => Afterwards::Train,
            }),
            stage_epochs: self.stage_epochs.map(|rule| match rule {
                StageEpochsArg::Equal => StageEpochs::Equal,
                StageEpochsArg::Sensitivity => StageEpochs::Sensitivity,
            }),
            keep_first_layer: self.keep_first_layer,
            keep_last_layer: self.keep_last_layer,
            walk: self.orders.map(|orders| match orders {
                OrdersArg::All => Walk::All,
                OrdersArg::Greedy => Walk::Greedy,
            }),
            assign: self.assign.map(|a| a.0).unwrap_or_default(),
            dir: self.trials.dir,
            jobs: self.trials.jobs,
            only: self.trials.only,
            list: self.trials.print_commands,
            out: self.out,
        })
    }
}

/// The program that users call, which trials are run with: the launcher beside this one, where it was started by that.
pub(super) fn own_program() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding this program's own file")?;
    let launcher = own.with_file_name("mqat");
    Ok(if own.ends_with("mqat-core") && launcher.is_file() { launcher } else { own })
}

/// Refuses what a search without trials, or without a search of bits, does not read.
fn ensure_all_act(args: &SearchArgs) -> Result<()> {
    let (trials, trace, usual) = (&args.trials, &args.trace, TraceRequest::default());
    if args.layerwise {
        let options = [
            ("--first", trials.first.is_some() && !args.sequential),
            ("--first-margin", trials.first_margin.is_some()),
            ("--budget-epochs", trials.budget_epochs.is_some()),
            ("--trial-images", trials.trial_images.is_some()),
            ("--trial-steps", trials.trial_steps.is_some()),
            ("--jobs", trials.jobs != 1),
            ("--only", trials.only.is_some()),
            ("--print-commands", trials.print_commands),
        ];
        refuse(&options, "--layerwise runs no trials")?;
    }
    if args.assign.is_some() {
        let options = [
            ("--first", trials.first.is_some()),
            ("--first-margin", trials.first_margin.is_some()),
            ("--trace-images", trace.trace_images != usual.images),
            ("--trace-batch", trace.trace_batch != usual.batch),
            ("--trace-probes", trace.trace_probes != usual.max_probes),
            ("--trace-error", trace.trace_error != usual.relative_error),
            ("--trace", !matches!(trace.trace, DivisionArg::Hawq)),
            ("--size", !matches!(args.size, SizeArg::Paper)),
        ];
        refuse(&options, "--assign gives the bits, none are searched")?;
        if args.orders.is_none() {
            let options = [
                ("--budget-epochs", trials.budget_epochs.is_some()),
                ("--trial-images", trials.trial_images.is_some()),
                ("--trial-steps", trials.trial_steps.is_some()),
                ("--jobs", trials.jobs != 1),
            ];
            refuse(&options, "--assign without --orders runs no trials")?;
        }
    }
    Ok(())
}

pub(super) fn run(args: SearchArgs) -> Result<CommandEnd> {
    ensure_all_act(&args)?;
    let json = args.json;
    let request = args.request()?;
    let stop = stop::flag()?;
    match search(&request, &stop)? {
        SearchEnd::Complete(report) => {
            if json {
                print_json(&report)?
            } else {
                print_text(&report.text())?
            }
        }
        SearchEnd::Interrupted => {
            tracing::warn!("interrupted; run the same command again to resume");
            return Ok(CommandEnd::Interrupted);
        }
        SearchEnd::Ran(trial) => {
            if json {
                print_json(&trial)?;
            } else {
                let percent = trial.score.percent.unwrap_or(f64::NAN);
                print_text(&format!("{}: {} {percent:.1} %", trial.name, trial.metric))?;
            }
        }
        SearchEnd::Listed(trials) => {
            if json {
                print_json(&trials)?
            } else {
                print_text(&commands(&trials))?
            }
        }
    }
    Ok(CommandEnd::Done)
}

/// This command line with `--only` for every trial that can be run now; the others are told as comments.
fn commands(trials: &[ListedTrial]) -> String {
    let own: Vec<String> = std::env::args_os()
        .filter(|a| a != "--print-commands" && a != "--json")
        .map(|a| shell_word(&a))
        .collect();
    let line = |t: &ListedTrial| {
        let command = format!("{} --only {}", own.join(" "), shell_word(&t.name));
        match (t.state, t.after.as_slice()) {
            ("running", _) => format!("# running: {}", t.name),
            (_, []) => command,
            (_, after) => format!("# after {}: {command}", after.join(", ")),
        }
    };
    if trials.is_empty() {
        return "# every trial is complete".to_owned();
    }
    trials.iter().map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_modules_and_bits_are_read() {
        let patterns: Patterns = "backbone.{a,b},fpn, head".parse().unwrap();
        assert_eq!(patterns.0, ["backbone.{a,b}", "fpn", "head"]);
        assert!("fpn,,head".parse::<Patterns>().is_err());
        let bits: Assignments = "backbone:8,fpn:2".parse().unwrap();
        assert_eq!(bits.0, [("backbone".to_owned(), 8), ("fpn".to_owned(), 2)]);
        for bad in ["fpn", "fpn:9", "fpn:two", ""] {
            let err = bad.parse::<Assignments>().unwrap_err().to_string();
            assert!(err.contains("MODULE:BITS"), "{err}");
        }
    }
}
