//! Arguments that several commands have.

use std::path::PathBuf;

use clap::Args;

use crate::run::{DeviceChoice, Request, Select, folder_name};

/// Which config, and what is changed in it.
#[derive(Debug, Clone, Args)]
pub struct ConfigSelect {
    /// The problem: a folder of problems/ [default: SwissCube].
    #[arg(long, value_name = "NAME", value_parser = folder_name)]
    pub problem: Option<String>,

    /// The topology: a folder of problems/PROBLEM/ [default: Widedepth].
    #[arg(long, value_name = "NAME", value_parser = folder_name)]
    pub topology: Option<String>,

    /// A config file, instead of problems/PROBLEM/TOPOLOGY/config.json.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Change a config value, by dotted key; repeatable (--set data.bs_valid=4 --set quantize.flow.0.epochs=10).
    /// `mqat train` and `mqat plan` refuse one that something else rules over.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,

    /// Seed of everything random: of training experiment.seed, of `mqat test` evaluation.seed [default: the config's].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
}

/// Where things lie and where to compute.
#[derive(Debug, Clone, Args)]
pub struct Places {
    /// The dataset, or the folder that holds it as DATA/PROBLEM [default: that of the experiment that is resumed or
    /// tested, else cfg/hard_storage.json].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Where experiments are written: LOGS/PROBLEM/TOPOLOGY/expNNN [default: cfg/hard_storage.json].
    #[arg(long, value_name = "DIR")]
    pub logs: Option<PathBuf>,

    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,

    /// Count unreadable images and go on without them, instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,
}

pub(super) fn select(args: ConfigSelect) -> Select {
    Select {
        problem: args.problem,
        topology: args.topology,
        config: args.config,
        set: args.set,
        seed: args.seed,
    }
}

pub(super) fn request(select: ConfigSelect, places: Places) -> Request {
    Request {
        select: self::select(select),
        data: places.data,
        logs: places.logs,
        device: places.device,
        skip_bad: places.skip_bad,
    }
}
