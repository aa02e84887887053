//! `mqat export`: the network of a checkpoint for other programs.

pub(super) mod onnx;
mod packed;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use tch::Device;

use self::onnx::{OnnxOptions, OnnxReport};
pub use self::packed::PackReport;
use self::source::Exported;
use crate::artifact::kind::Strictness;
use crate::artifact::name::module_names;
use crate::artifact::network::blank_network;
use crate::artifact::open::config_of_file;
use crate::artifact::weights::{self, LoadedNetwork};
use crate::export::packed::PackOptions;
use crate::io::{pth, tensors};
use crate::model::PoseNet;
use crate::run::config::{Config, Select};

/// What file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// Weights as safetensors under PyTorch keys.
    #[default]
    Safetensors,
    /// Weights as a PyTorch file, under the same keys.
    Pth,
    /// Weights as codes of 1 to 8 bits, and everything else, in one file.
    Packed,
    /// A graph for other runtimes.
    Onnx,
}

/// Which weights of a quantized network are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExportWeights {
    /// Those that training goes on from.
    Float,
    /// Those that the network computes with: on their levels, where a module is quantized.
    Quantized,
}

/// What `mqat export` is asked.
#[derive(Debug, Clone)]
pub struct ExportRequest {
    /// The file of weights, of any kind.
    pub checkpoint: PathBuf,
    /// The config, for files that carry none.
    pub select: Select,
    /// What to write.
    pub format: ExportFormat,
    /// Which weights; none takes the quantized ones of a quantized network.
    pub weights: Option<ExportWeights>,
    /// How a packed file is made.
    pub packed: PackOptions,
    /// The file to write.
    pub out: PathBuf,
    /// What an ONNX file is to be.
    pub onnx: OnnxOptions,
}

/// What was written.
#[derive(Debug, Serialize)]
pub struct ExportReport {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub path: PathBuf,
    /// What it is.
    pub format: ExportFormat,
    /// Which weights it holds.
    pub weights: ExportWeights,
    /// Its tensors.
    pub num_tensors: usize,
    /// Its size.
    pub bytes: u64,
    /// The modules whose weights lie on levels.
    pub quantized: Vec<String>,
    /// Sizes of a packed file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packed: Option<PackReport>,
    /// What is particular to an ONNX file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnx: Option<OnnxReport>,
}

/// Writes the network of a checkpoint in the format that is asked for. Momentum, masks and position stay behind.
///
/// # Errors
/// If the checkpoint cannot be read or does not fit its config, the format cannot say what it holds, or `out` is there
/// already.
pub fn export(request: &ExportRequest) -> Result<ExportReport> {
    let out = &request.out;
    ensure!(!out.exists(), "{} is there already; remove it or name another file", out.display());
    let graph = request.format == ExportFormat::Onnx;
    ensure!(
        graph || request.onnx == OnnxOptions::default(),
        "options of ONNX files are given (see `mqat export --help`), and the format is another: add --format onnx"
    );
    ensure!(
        !graph || request.weights != Some(ExportWeights::Float),
        "an ONNX file holds the weights that the network computes with: leave --weights float out"
    );
    let config = config_of_file(&request.checkpoint, &request.select)?;
    let net = blank_network(&config, Device::Cpu)?;
    let load = match request.weights {
        Some(ExportWeights::Float) => weights::load_as_stored,
        _ => weights::load,
    };
    let loaded = load(&request.checkpoint, &net, Strictness::Strict)?;
    loaded.report.log();
    let from = &request.checkpoint;
    let exported = Exported { from, out, problem: request.select.problem(), net, loaded };
    match request.format {
        ExportFormat::Safetensors | ExportFormat::Pth => write_weights(request, &exported),
        ExportFormat::Packed => write_packed(request, &exported, &config),
        ExportFormat::Onnx => write_onnx(request, &exported, &config),
    }
}

/// The weights that are asked for.
fn weights_of(request: &ExportRequest, loaded: &LoadedNetwork) -> ExportWeights {
    request.weights.unwrap_or(match loaded.quantizers.is_empty() {
        true => ExportWeights::Float,
        false => ExportWeights::Quantized,
    })
}

/// An ONNX graph with the config in it.
fn write_onnx(
    request: &ExportRequest,
    exported: &Exported,
    config: &Config,
) -> Result<ExportReport> {
    let written = onnx::write(exported, config, &request.onnx)?;
    Ok(ExportReport {
        path: request.out.clone(),
        format: request.format,
        weights: weights_of(request, &exported.loaded),
        num_tensors: written.num_tensors,
        bytes: written.bytes,
        quantized: written.quantized,
        packed: None,
        onnx: Some(written.report),
    })
}

/// A packed file with the config in it.
fn write_packed(
    request: &ExportRequest,
    exported: &Exported,
    config: &Config,
) -> Result<ExportReport> {
    let loaded = &exported.loaded;
    let from = request.checkpoint.display();
    let quantized =
        loaded.quantizers.iter().any(|q| q.report().iter().any(|s| s.num_levels.is_some()));
    let weights = if quantized { ExportWeights::Quantized } else { ExportWeights::Float };
    ensure!(
        request.weights.is_none_or(|wanted| wanted == weights),
        "{from}: a packed file holds the weights that the network computes with; leave --weights out"
    );
    let config = serde_json::to_value(config).context("writing the config as JSON")?;
    let report = packed::write(exported, config, request.packed)?;
    Ok(ExportReport {
        path: report.path.clone(),
        format: request.format,
        weights,
        num_tensors: report.num_tensors,
        bytes: report.bytes,
        quantized: report.quantized.clone(),
        packed: Some(report),
        onnx: None,
    })
}

/// Parameters and buffers under their bare keys.
fn write_weights(request: &ExportRequest, exported: &Exported) -> Result<ExportReport> {
    let Exported { from, net, loaded, .. } = exported;
    let weights = weights_of(request, loaded);
    match weights {
        ExportWeights::Float => ensure_float_exists(from, net, loaded)?,
        ExportWeights::Quantized => ensure_quantized(from, loaded)?,
    }
    // Quantized weights were baked when they were loaded.
    let state = net.state();
    let quantized = match weights {
        ExportWeights::Float => Vec::new(),
        ExportWeights::Quantized => module_names(&loaded.quantized),
    };
    let out = &request.out;
    match request.format {
        ExportFormat::Pth => pth::write(out, &state)?,
        _ => {
            let metadata = BTreeMap::from([
                ("format".to_owned(), "pt".to_owned()),
                ("mqat_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                ("quantized".to_owned(), Value::from(quantized.clone()).to_string()),
            ]);
            tensors::write(out, &state, &metadata)?;
        }
    }
    let bytes = std::fs::metadata(out).with_context(|| format!("reading {}", out.display()))?.len();
    Ok(ExportReport {
        path: out.clone(),
        format: request.format,
        weights,
        num_tensors: state.len(),
        bytes,
        quantized,
        packed: None,
        onnx: None,
    })
}

/// Refuses weights that are not what the network will compute with.
fn ensure_quantized(from: &Path, loaded: &LoadedNetwork) -> Result<()> {
    let at = from.display();
    ensure!(
        !loaded.quantizers.is_empty(),
        "{at}: no module is quantized; leave --weights quantized out"
    );
    for quantizer in &loaded.quantizers {
        quantizer.assert_on_grid().with_context(|| {
            format!(
                "{at}: module {} is only partly quantized; --weights float writes the weights as they are",
                quantizer.module()
            )
        })?;
        if let Some(site) = quantizer.report().iter().find(|s| s.activations.is_some()) {
            bail!(
                "{at}: the inputs of {} are quantized, which a file of weights cannot say; use the checkpoint itself",
                site.name
            );
        }
    }
    Ok(())
}

/// Refuses to call weights float that were overwritten by their levels.
fn ensure_float_exists(from: &Path, net: &PoseNet, loaded: &LoadedNetwork) -> Result<()> {
    for quantizer in &loaded.quantizers {
        if quantizer.assert_on_grid().is_err() {
            continue;
        }
        for (name, effective) in quantizer.effective_weights() {
            if net.store.get(&name).is_some_and(|stored| stored.equal(&effective)) {
                bail!(
                    "{}: module {} has no float weights any more: {name} and the others were set to their levels for \
                     good; leave --weights float out, or export a checkpoint from before that stage's end",
                    from.display(),
                    quantizer.module()
                );
            }
        }
    }
    Ok(())
}
