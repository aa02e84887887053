//! `mqat bench all`: what a machine does with a network, one bench after the other.

use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::forward::of_sources;
use super::int8;
use super::loader::{LoaderBenchRequest, bench_loader};
use super::networks::{NetworkSettings, Source};
use super::pnp::{PnpBenchRequest, bench_pnp};
use super::report::{BenchReport, resize};
use super::rounds::{Progress, Rounds, table};
use super::train_step::{TrainStepRequest, bench_train_step};
use crate::artifact::engine::EngineChoice;
use crate::export::onnx;
use crate::quant::WeightMethod;
use crate::run::config::{Config, Names, Select};
use crate::run::folder::Start;
use crate::run::request::Request;
use crate::run::{Bits, Machine};

/// Images of a call of the loader.
const LOADER_IMAGES: usize = 16;
/// Problems of a call of PnP.
const PNP_PROBLEMS: usize = 200;

/// What `mqat bench all` is asked.
#[derive(Debug, Clone)]
pub struct AllBenchRequest {
    /// Config, dataset, device.
    pub run: Request,
    /// How often.
    pub rounds: Rounds,
    /// Weight methods that steps are measured with, each on all modules.
    pub methods: Vec<WeightMethod>,
    /// Their bits.
    pub bits: Bits,
    /// Width and height of the network's input instead of the config's, px.
    pub size_px: Option<usize>,
    /// Images of a step and of a forward pass.
    pub batch: usize,
    /// Threads of libtorch and ONNX Runtime instead of the config's.
    pub threads: Option<usize>,
}

/// What all benches found.
#[derive(Debug, Serialize)]
pub struct AllBenchReport {
    /// `all`.
    pub bench: &'static str,
    /// What they ran on.
    pub machine: Machine,
    /// The command line.
    pub command: Vec<String>,
    /// Rounds and warm-up of each.
    #[serde(flatten)]
    pub rounds: Rounds,
    /// Peak of the process's memory after float steps, before anything else ran, MB; none where the system does not tell it.
    pub train_step_peak_mb: Option<f64>,
    /// The benches: `train-step`, `forward`, `loader`, `pnp`.
    pub parts: Vec<BenchReport>,
    /// What is to be known about the numbers, and what did not run.
    pub notes: Vec<String>,
}

impl AllBenchReport {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = format!("{}\n", self.machine.text());
        for part in &self.parts {
            let _ = writeln!(out, "\n{} ({})", part.bench, part.settings_text());
            out.push_str(&table(&part.subjects, part.item));
        }
        if let Some(mb) = self.train_step_peak_mb {
            let _ = writeln!(out, "\npeak memory of a float train step: {mb:.0} MB");
        }
        for note in &self.notes {
            let _ = write!(out, "\n{note}");
        }
        out
    }
}

/// Measures steps (float and quantized) with their memory, the forward pass in libtorch and, where its library is, in ONNX
/// Runtime (float and int8), the loader, and PnP.
///
/// # Errors
/// If the config or the dataset cannot be used, or a bench fails.
pub fn bench_all(request: &AllBenchRequest, progress: &mut Progress<'_>) -> Result<AllBenchReport> {
    ensure!(request.batch > 0, "--batch: 0 is below 1");
    let config = config(request)?;
    let machine = Machine::here(request.run.open_device(&config)?);
    let mut notes: Vec<String> = machine.busy().into_iter().collect();
    // Memory first: what ran before would be in it.
    let float = TrainStepRequest {
        float_only: true,
        rounds: Rounds { rounds: 2, warm_up: 0 },
        ..train_step(request)
    };
    bench_train_step(&float, progress)?;
    let train_step_peak_mb = peak_mb();
    let mut parts = vec![bench_train_step(&train_step(request), progress)?];
    parts.push(forward(request, &config, &mut notes, progress)?);
    parts.push(bench_loader(&loader(request), progress)?);
    parts.push(bench_pnp(&pnp(request), progress)?);
    for part in &mut parts {
        for note in std::mem::take(&mut part.notes) {
            if !notes.contains(&note) && !note.starts_with("the machine was busy") {
                notes.push(note);
            }
        }
    }
    let (command, rounds) = (Start::now(None).command, request.rounds);
    Ok(AllBenchReport { bench: "all", machine, command, rounds, train_step_peak_mb, parts, notes })
}

fn config(request: &AllBenchRequest) -> Result<Config> {
    request.run.select.ensure_names_act(Names::Dataset)?;
    let mut config = request.run.select.resolve(&request.run.home()?)?;
    resize(&mut config, request.size_px)?;
    if let Some(threads) = request.threads {
        config.runtime.num_threads = threads;
    }
    Ok(config)
}

fn train_step(request: &AllBenchRequest) -> TrainStepRequest {
    TrainStepRequest {
        run: request.run.clone(),
        rounds: request.rounds,
        methods: request.methods.clone(),
        float_only: false,
        bits: request.bits,
        flow: None,
        size_px: request.size_px,
        batch: Some(request.batch),
        threads: request.threads,
    }
}

fn loader(request: &AllBenchRequest) -> LoaderBenchRequest {
    LoaderBenchRequest {
        run: request.run.clone(),
        rounds: request.rounds,
        workers: vec![1],
        augment: vec![true, false],
        images: LOADER_IMAGES,
        batch: None,
        size_px: request.size_px,
        image_px: None,
    }
}

fn pnp(request: &AllBenchRequest) -> PnpBenchRequest {
    PnpBenchRequest {
        select: request.run.select.clone(),
        rounds: request.rounds,
        problems: PNP_PROBLEMS,
        points: vec![80],
        noise_px: vec![1.0],
        outliers: vec![0.0, 0.3],
    }
}

/// Measures the forward pass of the network, with initial weights, in each engine that is installed.
fn forward(
    request: &AllBenchRequest,
    config: &Config,
    notes: &mut Vec<String>,
    progress: &mut Progress<'_>,
) -> Result<BenchReport> {
    let settings = NetworkSettings {
        rounds: request.rounds,
        size_px: None,
        batches: vec![request.batch],
        threads: request.threads.into_iter().collect(),
    };
    settings.check()?;
    let name = "libtorch".to_owned();
    let mut sources = vec![Source { file: None, config: config.clone(), name }];
    let folder = tempfile::tempdir().context("making a folder for ONNX files")?;
    match onnx::version() {
        Err(e) => notes.push(format!("not run: ONNX Runtime, float and int8: {e:#}")),
        Ok(_) => {
            let files = int8::write(config, folder.path())?;
            let opened = Source::of_files(&files, &Select::default(), EngineChoice::Ort, None)?;
            sources.extend(
                opened.into_iter().zip(["float", "int8"]).map(|(source, kind)| Source {
                    name: format!("ONNX Runtime {kind}"),
                    ..source
                }),
            );
        }
    }
    let mut report = of_sources("forward", &request.run, &sources, &settings, progress)?;
    report.machine.onnxruntime = onnx::version().ok();
    Ok(report)
}

/// The most memory that the process had at a time, MB.
fn peak_mb() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024.0 / 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_peak_of_memory_is_told_and_grows() {
        let before = peak_mb().unwrap();
        let block = vec![1u8; 50_000_000];
        assert!(block.iter().map(|b| u64::from(*b)).sum::<u64>() == 50_000_000);
        assert!(before > 1.0 && peak_mb().unwrap() >= before);
    }
}
