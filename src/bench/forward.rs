//! `mqat bench forward`: the forward pass of networks in libtorch.

use std::path::PathBuf;

use anyhow::Result;
use serde_json::json;

use super::networks::{NetworkSettings, Source, common_size, subjects};
use super::report::{BenchReport, object, resize};
use super::rounds::{Progress, measure};
use crate::artifact::engine::EngineChoice;
use crate::run::Machine;
use crate::run::config::Names;
use crate::run::folder::Start;
use crate::run::request::Request;

/// What `mqat bench forward` is asked.
#[derive(Debug, Clone)]
pub struct ForwardBenchRequest {
    /// Config and device.
    pub run: Request,
    /// Checkpoints, packed files; none measures the config's network with initial weights.
    pub checkpoints: Vec<PathBuf>,
    /// How.
    pub settings: NetworkSettings,
}

/// Measures the forward pass, evaluation mode, from normalised images on the device to the outputs there.
///
/// # Errors
/// If a file cannot be read, settings are out of range, or networks take images of different sizes.
pub fn bench_forward(
    request: &ForwardBenchRequest,
    progress: &mut Progress<'_>,
) -> Result<BenchReport> {
    let ForwardBenchRequest { run, checkpoints, settings } = request;
    settings.check()?;
    let mut sources =
        Source::of_files(checkpoints, &run.select, EngineChoice::Torch, settings.size_px)?;
    if sources.is_empty() {
        run.select.ensure_names_act(Names::Config)?;
        let mut config = run.select.resolve(&run.home()?)?;
        resize(&mut config, settings.size_px)?;
        let name = run.select.topology().to_owned();
        sources.push(Source { file: None, config, name });
    }
    of_sources("forward", run, &sources, settings, progress)
}

/// Measures networks of any engine.
pub(super) fn of_sources(
    bench: &'static str,
    run: &Request,
    sources: &[Source],
    settings: &NetworkSettings,
    progress: &mut Progress<'_>,
) -> Result<BenchReport> {
    let (width, height) = common_size(sources)?;
    let device = run.open_device(&sources[0].config)?;
    let machine = Machine::here(device);
    let subjects = subjects(sources, settings, device)?;
    let notes = machine.busy().into_iter().collect();
    let threads: Vec<_> = subjects.iter().filter_map(|s| s.details.get("threads")).collect();
    let mut different: Vec<_> = threads.into_iter().cloned().collect();
    different.dedup();
    let settings_json = object([
        ("size_px", json!([width, height])),
        ("batch", json!(settings.batches)),
        ("threads", json!(different)),
    ]);
    let subjects = measure(subjects, settings.rounds, progress)?;
    Ok(BenchReport {
        bench,
        machine,
        command: Start::now(None).command,
        rounds: settings.rounds,
        settings: settings_json,
        item: "image",
        subjects,
        notes,
    })
}
