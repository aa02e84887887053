//! `mqat bench`.

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use serde::Serialize;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, select};
use super::terminal::JobProgress;
use crate::artifact::EngineChoice;
use crate::bench::{
    AllBenchReport, AllBenchRequest, BenchProgress, BenchReport, EngineBenchRequest,
    ForwardBenchRequest, LoaderBenchRequest, NetworkSettings, PnpBenchRequest, Rounds,
    TrainStepRequest, bench_all, bench_engine, bench_forward, bench_loader, bench_pnp,
    bench_train_step,
};
use crate::quant::WeightMethod;
use crate::run::{Bits, DeviceChoice, FlowSource, Request, parse_weight_method};

/// Arguments of `mqat bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchArgs {
    /// What to measure.
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// The benches.
#[derive(Debug, Clone, Subcommand)]
pub enum BenchCommand {
    /// Steps of a network (forward, losses, backward, quantizers, optimizer): float, then quantized.
    TrainStep(TrainStepArgs),
    /// The forward pass of networks in libtorch: checkpoints, packed files, or a config's network.
    Forward(ForwardArgs),
    /// The data path: images a second for each number of workers, augmented or not.
    Loader(LoaderArgs),
    /// PnP with outliers on simulated correspondences, on one thread.
    Pnp(PnpArgs),
    /// Files of a network side by side: libtorch for checkpoints, ONNX Runtime for ONNX files.
    Engine(EngineArgs),
    /// All of it for this machine: steps and their memory, forward passes in libtorch and ONNX Runtime (float and int8), loader, PnP.
    All(AllArgs),
}

/// Arguments of `mqat bench all`.
#[derive(Debug, Clone, Args)]
pub struct AllArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    /// Weight methods that steps are measured with, each on all modules.
    #[arg(long, value_name = "METHOD,...", value_delimiter = ',', default_value = "inq,lsq", value_parser = weight_method)]
    pub method: Vec<WeightMethod>,

    /// Their bits: 4, w4a8, ...
    #[arg(long, value_name = "BITS", default_value = "4")]
    pub bits: Bits,

    /// Width and height of the network's input, px [default: the config's].
    #[arg(long, value_name = "PX")]
    pub size: Option<usize>,

    /// Images of a step and of a forward pass.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = positive)]
    pub batch: usize,

    /// Threads of libtorch and ONNX Runtime [default: RUNTIME.NUM_THREADS of the config].
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,

    #[command(flatten)]
    pub data: DataArgs,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub rounds: RoundArgs,
}

/// How often, and in which form.
#[derive(Debug, Clone, Args)]
pub struct RoundArgs {
    /// Rounds that are measured; each calls every subject once, in another order.
    #[arg(long, default_value_t = 11, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub rounds: u32,

    /// Rounds before them that are not measured.
    #[arg(long, default_value_t = 2, value_name = "N")]
    pub warm_up: u32,

    /// Print one JSON document on stdout, with every sample; everything else goes to stderr.
    #[arg(long)]
    pub json: bool,
}

impl RoundArgs {
    fn rounds(&self) -> Rounds {
        Rounds { rounds: self.rounds as usize, warm_up: self.warm_up as usize }
    }
}

/// Where a network computes.
#[derive(Debug, Clone, Args)]
pub struct DeviceArgs {
    /// Where to compute: auto, cpu, cuda or cuda:N.
    #[arg(long, default_value = "auto", value_name = "DEVICE")]
    pub device: DeviceChoice,
}

/// Where images come from.
#[derive(Debug, Clone, Args)]
pub struct DataArgs {
    /// The dataset, or the folder that holds it as DATA/PROBLEM [default: that of cfg/hard_storage.json; where there is
    /// none, synthetic images are rendered into a temporary folder].
    #[arg(long, value_name = "DIR")]
    pub data: Option<PathBuf>,

    /// Take other images of the dataset for those that cannot be read, instead of stopping.
    #[arg(long)]
    pub skip_bad: bool,
}

/// Arguments of `mqat bench train-step`.
#[derive(Debug, Clone, Args)]
pub struct TrainStepArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    /// Weight methods to measure, each on all modules.
    #[arg(long, value_name = "METHOD,...", value_delimiter = ',', default_value = "inq,lsq", value_parser = weight_method)]
    pub method: Vec<WeightMethod>,

    /// Their bits: 4, w4a8, ...
    #[arg(long, value_name = "BITS", default_value = "4")]
    pub bits: Bits,

    /// Measure the stages of a flow instead (MODULE:BITS,... or a plan file), each with the ones before it.
    #[arg(long, value_name = "FLOW|FILE", conflicts_with_all = ["method", "bits"])]
    pub flow: Option<FlowSource>,

    /// Width and height of the network's input, px [default: the config's].
    #[arg(long, value_name = "PX")]
    pub size: Option<usize>,

    /// Images of a step [default: data.bs_train of the config].
    #[arg(long, value_name = "N", value_parser = positive)]
    pub batch: Option<usize>,

    /// Threads of libtorch [default: RUNTIME.NUM_THREADS of the config].
    #[arg(long, value_name = "N", value_parser = positive)]
    pub threads: Option<usize>,

    #[command(flatten)]
    pub data: DataArgs,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub rounds: RoundArgs,
}

/// How networks are called.
#[derive(Debug, Clone, Args)]
pub struct NetworkArgs {
    /// Width and height of the images, px [default: those of the networks' configs].
    #[arg(long, value_name = "PX")]
    pub size: Option<usize>,

    /// Images a call; several numbers are measured side by side.
    #[arg(long, value_name = "N,...", value_delimiter = ',', default_value = "1")]
    pub batch: Vec<usize>,

    /// Threads; several numbers are measured side by side [default: RUNTIME.NUM_THREADS of the config].
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub threads: Vec<usize>,

    #[command(flatten)]
    pub device: DeviceArgs,

    #[command(flatten)]
    pub rounds: RoundArgs,
}

impl NetworkArgs {
    fn settings(&self) -> NetworkSettings {
        NetworkSettings {
            rounds: self.rounds.rounds(),
            size_px: self.size,
            batches: self.batch.clone(),
            threads: self.threads.clone(),
        }
    }
}

/// Arguments of `mqat bench forward`.
#[derive(Debug, Clone, Args)]
pub struct ForwardArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    /// A file of weights (checkpoint, packed, safetensors, PyTorch); repeat it to compare several [default: the
    /// config's network with initial weights].
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Vec<PathBuf>,

    #[command(flatten)]
    pub network: NetworkArgs,
}

/// Arguments of `mqat bench engine`.
#[derive(Debug, Clone, Args)]
pub struct EngineArgs {
    /// Files of networks: checkpoints, packed files, ONNX files of `mqat export`.
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,

    #[command(flatten)]
    pub select: ConfigSelect,

    /// What runs them: torch, ort (ONNX Runtime), or auto by the file.
    #[arg(long, default_value = "auto", value_name = "ENGINE")]
    pub engine: EngineChoice,

    #[command(flatten)]
    pub network: NetworkArgs,
}

/// Arguments of `mqat bench loader`.
#[derive(Debug, Clone, Args)]
pub struct LoaderArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    #[command(flatten)]
    pub data: DataArgs,

    /// Threads that load, 0 for the calling one; all are measured [default: 1, 2, 4, ... up to the CPUs].
    #[arg(long, value_name = "N,...", value_delimiter = ',')]
    pub workers: Vec<usize>,

    /// Whether images are augmented.
    #[arg(long, value_enum, default_value_t = Augment::Both)]
    pub augment: Augment,

    /// Images of a call, spread evenly over the training list.
    #[arg(long, default_value_t = 32, value_name = "N", value_parser = positive)]
    pub images: usize,

    /// Images of a batch [default: data.bs_train of the config].
    #[arg(long, value_name = "N", value_parser = positive)]
    pub batch: Option<usize>,

    /// Width and height of the network's input, px [default: the config's].
    #[arg(long, value_name = "PX")]
    pub size: Option<usize>,

    /// Width and height of rendered images, px; they take the place of a dataset that is not there [default: twice the
    /// network's input].
    #[arg(long, value_name = "PX", conflicts_with = "data", value_parser = positive)]
    pub image_size: Option<usize>,

    #[command(flatten)]
    pub rounds: RoundArgs,
}

/// Which kinds of loading are measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Augment {
    /// Augmented.
    On,
    /// As they are.
    Off,
    /// Both, side by side.
    Both,
}

/// Arguments of `mqat bench pnp`.
#[derive(Debug, Clone, Args)]
pub struct PnpArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    /// Problems a call.
    #[arg(long, default_value_t = 200, value_name = "N", value_parser = positive)]
    pub problems: usize,

    /// Correspondences of a problem; 8 a cell. Every combination of points, noise and outliers is measured.
    #[arg(long, default_value = "80", value_name = "N,...", value_delimiter = ',')]
    pub points: Vec<usize>,

    /// Standard deviation of the noise, px.
    #[arg(long, default_value = "1", value_name = "PX,...", value_delimiter = ',')]
    pub noise: Vec<f64>,

    /// Fraction of correspondences that are anywhere in the image.
    #[arg(long, default_value = "0,0.3", value_name = "FRACTION,...", value_delimiter = ',')]
    pub outliers: Vec<f64>,

    #[command(flatten)]
    pub rounds: RoundArgs,
}

fn weight_method(name: &str) -> Result<WeightMethod> {
    parse_weight_method(name)
}

fn positive(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("0 is below 1".to_owned()),
        Ok(n) => Ok(n),
        Err(_) => Err(format!("{text:?} is not a whole number of at least 1")),
    }
}

/// What a bench without a dataset works with.
fn request(args: ConfigSelect, device: DeviceChoice) -> Request {
    Request { select: select(args), device, ..Request::default() }
}

/// What a bench with a dataset works with.
fn request_with_data(args: ConfigSelect, data: DataArgs, device: DeviceChoice) -> Request {
    let DataArgs { data, skip_bad } = data;
    Request { data, skip_bad, ..request(args, device) }
}

pub(super) fn run(args: BenchArgs) -> Result<()> {
    let mut bar: Option<(&'static str, JobProgress)> = None;
    let mut progress = |at: BenchProgress| {
        if bar.as_ref().is_none_or(|(doing, _)| *doing != at.doing)
            && let Some((_, ended)) =
                bar.replace((at.doing, JobProgress::start(at.doing, at.unit, at.num_all as u64, 0)))
        {
            ended.finish();
        }
        if let Some((_, bar)) = bar.as_mut() {
            bar.at(at.num_done as u64, "");
        }
    };
    let (report, json) = measure(args.what, &mut progress)?;
    if let Some((_, bar)) = bar {
        bar.finish();
    }
    if json { print_json(&report) } else { print_text(&report.text()) }
}

/// What was measured.
#[derive(Serialize)]
#[serde(untagged)]
enum Measured {
    One(BenchReport),
    All(AllBenchReport),
}

impl Measured {
    fn text(&self) -> String {
        match self {
            Self::One(report) => report.text(),
            Self::All(report) => report.text(),
        }
    }
}

fn measure_all(
    args: AllArgs,
    progress: &mut (dyn FnMut(BenchProgress) + Send),
) -> Result<AllBenchReport> {
    let request = AllBenchRequest {
        run: request_with_data(args.select, args.data, args.device.device),
        rounds: args.rounds.rounds(),
        methods: args.method,
        bits: args.bits,
        size_px: args.size,
        batch: args.batch,
        threads: args.threads,
    };
    bench_all(&request, progress)
}

fn measure(
    what: BenchCommand,
    progress: &mut (dyn FnMut(BenchProgress) + Send),
) -> Result<(Measured, bool)> {
    let (report, rounds) = match what {
        BenchCommand::TrainStep(args) => {
            let request = TrainStepRequest {
                run: request_with_data(args.select, args.data, args.device.device),
                rounds: args.rounds.rounds(),
                methods: args.method,
                float_only: false,
                bits: args.bits,
                flow: args.flow,
                size_px: args.size,
                batch: args.batch,
                threads: args.threads,
            };
            (bench_train_step(&request, progress)?, args.rounds)
        }
        BenchCommand::Forward(args) => {
            let request = ForwardBenchRequest {
                settings: args.network.settings(),
                run: request(args.select, args.network.device.device),
                checkpoints: args.checkpoint,
            };
            (bench_forward(&request, progress)?, args.network.rounds)
        }
        BenchCommand::Engine(args) => {
            let request = EngineBenchRequest {
                settings: args.network.settings(),
                run: request(args.select, args.network.device.device),
                files: args.files,
                engine: args.engine,
            };
            (bench_engine(&request, progress)?, args.network.rounds)
        }
        BenchCommand::Loader(args) => {
            let request = LoaderBenchRequest {
                run: request_with_data(args.select, args.data, DeviceChoice::Cpu),
                rounds: args.rounds.rounds(),
                workers: args.workers,
                augment: match args.augment {
                    Augment::On => vec![true],
                    Augment::Off => vec![false],
                    Augment::Both => vec![false, true],
                },
                images: args.images,
                batch: args.batch,
                size_px: args.size,
                image_px: args.image_size,
            };
            (bench_loader(&request, progress)?, args.rounds)
        }
        BenchCommand::Pnp(args) => {
            let request = PnpBenchRequest {
                select: select(args.select),
                rounds: args.rounds.rounds(),
                problems: args.problems,
                points: args.points,
                noise_px: args.noise,
                outliers: args.outliers,
            };
            (bench_pnp(&request, progress)?, args.rounds)
        }
        BenchCommand::All(args) => {
            let json = args.rounds.json;
            return Ok((Measured::All(measure_all(args, progress)?), json));
        }
    };
    Ok((Measured::One(report), rounds.json))
}
