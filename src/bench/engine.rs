//! `mqat bench engine`: networks through libtorch and ONNX Runtime, side by side.

use std::path::PathBuf;

use anyhow::Result;

use super::forward::of_sources;
use super::networks::{NetworkSettings, Source};
use super::report::BenchReport;
use super::rounds::Progress;
use crate::artifact::engine::EngineChoice;
use crate::export::onnx;
use crate::run::request::Request;

/// What `mqat bench engine` is asked.
#[derive(Debug, Clone)]
pub struct EngineBenchRequest {
    /// Config and device.
    pub run: Request,
    /// Checkpoints, packed files, ONNX files.
    pub files: Vec<PathBuf>,
    /// What runs them.
    pub engine: EngineChoice,
    /// How.
    pub settings: NetworkSettings,
}

/// Measures each file in its engine: what `mqat test` waits for between images and outputs. ONNX Runtime runs on the
/// CPU, and its times hold the copies into and out of it.
///
/// # Errors
/// If a file cannot be read, is not for the engine, or ONNX Runtime is missing; if settings are out of range, or
/// networks take images of different sizes.
pub fn bench_engine(
    request: &EngineBenchRequest,
    progress: &mut Progress<'_>,
) -> Result<BenchReport> {
    let EngineBenchRequest { run, files, engine, settings } = request;
    settings.check()?;
    let mut sources = Source::of_files(files, &run.select, *engine, settings.size_px)?;
    for source in &mut sources {
        source.name += if source.is_ort() { " (ONNX Runtime)" } else { " (libtorch)" };
    }
    let mut report = of_sources("engine", run, &sources, settings, progress)?;
    if sources.iter().any(|source| source.is_ort()) {
        report.machine.onnxruntime = Some(onnx::version()?);
        if report.machine.device != "cpu" && sources.iter().any(|source| !source.is_ort()) {
            report.notes.push(format!(
                "libtorch ran on {}, ONNX Runtime on the CPU: compare them with --device cpu",
                report.machine.device
            ));
        }
    }
    if sources.iter().filter(|source| !source.is_ort()).count() > 1 {
        report.notes.push(SAME_ARITHMETIC.to_owned());
    }
    Ok(report)
}

/// What is said where several files run in libtorch.
const SAME_ARITHMETIC: &str = "libtorch computes in floats whatever a file stores: files of one network do the same arithmetic there, and times that \
     differ are noise";
