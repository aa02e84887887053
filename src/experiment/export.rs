//! `mqat export`: the network of a checkpoint for other programs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use tch::Device;

use super::config::{Config, Select};
use super::import::config_of_file;
use super::onnx::{self, OnnxOptions, OnnxReport};
use super::open::blank_network;
use super::packed::{self, PackReport};
use super::test::module_names;
use super::weights::{self, LoadedNetwork, Strictness};
use crate::export::packed::PackOptions;
use crate::io::{pth, tensors};
use crate::model::PoseNet;

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

/// A network to write, with what was loaded beside it.
pub(super) struct Exported<'a> {
    pub request: &'a ExportRequest,
    pub net: PoseNet,
    pub loaded: LoadedNetwork,
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
    let exported = Exported { request, net, loaded };
    match request.format {
        ExportFormat::Safetensors | ExportFormat::Pth => write_weights(&exported),
        ExportFormat::Packed => write_packed(&exported, &config),
        ExportFormat::Onnx => onnx::write(&exported, &config),
    }
}

impl Exported<'_> {
    /// The weights that are asked for.
    pub(super) fn weights(&self) -> ExportWeights {
        self.request.weights.unwrap_or(match self.loaded.quantizers.is_empty() {
            true => ExportWeights::Float,
            false => ExportWeights::Quantized,
        })
    }
}

/// A packed file with the config in it.
fn write_packed(exported: &Exported, config: &Config) -> Result<ExportReport> {
    let Exported { request, loaded, .. } = exported;
    let from = request.checkpoint.display();
    let quantized =
        loaded.quantizers.iter().any(|q| q.report().iter().any(|s| s.num_levels.is_some()));
    let weights = if quantized { ExportWeights::Quantized } else { ExportWeights::Float };
    ensure!(
        request.weights.is_none_or(|wanted| wanted == weights),
        "{from}: a packed file holds the weights that the network computes with; leave --weights out"
    );
    let config = serde_json::to_value(config).context("writing the config as JSON")?;
    let report = packed::write(exported, config)?;
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
fn write_weights(exported: &Exported) -> Result<ExportReport> {
    let Exported { request, net, loaded } = exported;
    let from = &request.checkpoint;
    let weights = exported.weights();
    match weights {
        ExportWeights::Float => ensure_float_exists(from, net, loaded)?,
        ExportWeights::Quantized => ensure_quantized(from, loaded)?,
    }
    // Quantized weights were frozen to their levels when they were loaded.
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
