//! Arguments that several commands have, and the refusal of those that would do nothing.

use std::path::PathBuf;

use anyhow::{Result, ensure};
use clap::Args;

use crate::run::{DeviceChoice, Request, Select, SoleNames, folder_name};

/// Which config, and what is changed in it.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Config")]
pub struct ConfigNames {
    /// The problem: a folder of problems/ [default: the only one there, else SwissCube].
    #[arg(long, value_name = "NAME", value_parser = folder_name)]
    pub problem: Option<String>,

    /// The topology: a folder of problems/PROBLEM/ [default: the only one there, else Widedepth].
    #[arg(long, value_name = "NAME", value_parser = folder_name)]
    pub topology: Option<String>,

    /// A config file, instead of problems/PROBLEM/TOPOLOGY/config.json.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Change a config value, by dotted key; repeatable (--set data.bs_valid=4 --set quantize.flow.0.epochs=10).
    /// `mqat train` and `mqat plan` refuse one that something else rules over.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

/// The same, for commands in which something is random.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Config")]
pub struct ConfigSelect {
    #[command(flatten)]
    pub names: ConfigNames,

    /// Seed of everything random: of training experiment.seed, of `mqat test` evaluation.seed [default: the config's].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// What is read, and where to compute.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data and device")]
pub struct Reads {
    /// The dataset, or the folder that holds it as DATA/PROBLEM [default: that of the experiment that is resumed or
    /// tested, else cfg/hard_storage.json].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,

    /// Count unreadable images and go on without them, instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,
}

/// Where things lie and where to compute.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Data and device")]
pub struct Places {
    #[command(flatten)]
    pub reads: Reads,

    /// Where experiments are written: LOGS/PROBLEM/TOPOLOGY/expNNN [default: cfg/hard_storage.json].
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,
}

impl ConfigNames {
    /// The options by name, and whether each is given.
    pub(super) fn given(&self) -> [(&'static str, bool); 4] {
        [
            ("--problem", self.problem.is_some()),
            ("--topology", self.topology.is_some()),
            ("--config", self.config.is_some()),
            ("--set", !self.set.is_empty()),
        ]
    }
}

/// Refuses options that are given and would do nothing; `why` says what makes them idle.
///
/// # Errors
/// If one is given.
pub(super) fn refuse(options: &[(&str, bool)], why: &str) -> Result<()> {
    for (option, is_given) in options {
        ensure!(!is_given, "{option} cannot act: {why}; leave it out");
    }
    Ok(())
}

pub(super) fn names(args: ConfigNames) -> Select {
    let ConfigNames { problem, topology, config, set } = args;
    let sole = SoleNames::here(problem.as_deref());
    Select { problem, topology, config, set, sole, ..Select::default() }
}

pub(super) fn select(args: ConfigSelect) -> Select {
    Select { seed: args.seed, ..names(args.names) }
}

pub(super) fn reading(select: ConfigSelect, reads: Reads) -> Request {
    let Reads { data, device, skip_bad } = reads;
    Request { select: self::select(select), data, device, skip_bad, logs: None }
}

pub(super) fn request(select: ConfigSelect, places: Places) -> Request {
    Request { logs: places.logs, ..reading(select, places.reads) }
}
