//! `mqat export`: the network of a checkpoint for other programs.

mod objects;
pub(super) mod onnx;
mod packed;
mod quantize;
mod source;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use tch::Device;

use self::onnx::{OnnxOptions, OnnxReport, WrittenOnnx};
pub use self::packed::PackReport;
use self::source::Exported;
use crate::artifact::name::module_names;
use crate::artifact::network::blank_network;
use crate::artifact::{Asked, LoadedNetwork, Stored, Strictness, open};
use crate::export::onnx::Carrier;
use crate::export::packed::PackOptions;
use crate::io::{pth, tensors};
use crate::nn::Network;
use crate::run::{Config, FlowSource, Home, Names, Select};
use crate::train::CheckpointMeta;

/// What file is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum ExportFormat {
    /// Weights under PyTorch keys.
    #[default]
    Safetensors,
    /// The same as a PyTorch file, which torch.load(weights_only=True) reads.
    Pth,
    /// Weights as codes of 1 to 8 bits, and everything else, in one small file.
    Packed,
    /// A graph for ONNX Runtime, TensorRT or OpenVINO.
    Onnx,
}

/// Which weights of a quantized network are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
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
    pub target: ExportTarget,
    /// Which weights; none takes the quantized ones of a quantized network.
    pub weights: Option<ExportWeights>,
    /// Modules with bits that are quantized for the file, without training; none leaves the network as it is.
    pub quantize: Option<FlowSource>,
    /// The boxes of the objects, for a file that carries none.
    pub boxes: Option<PathBuf>,
    /// The dataset, or the folder of datasets: images for an ONNX file, objects for a file that carries none.
    pub data: Option<PathBuf>,
    /// The file to write.
    pub out: PathBuf,
    /// Replace `out`.
    pub overwrite: bool,
}

/// What to write, and how.
#[derive(Debug, Clone)]
pub enum ExportTarget {
    /// Weights as safetensors.
    Safetensors,
    /// Weights as a PyTorch file.
    Pth,
    /// Codes.
    Packed(PackOptions),
    /// A graph.
    Onnx(OnnxOptions),
}

impl ExportTarget {
    /// The format alone.
    pub fn format(&self) -> ExportFormat {
        match self {
            Self::Safetensors => ExportFormat::Safetensors,
            Self::Pth => ExportFormat::Pth,
            Self::Packed(_) => ExportFormat::Packed,
            Self::Onnx(_) => ExportFormat::Onnx,
        }
    }
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
    /// The objects that it carries; none for formats that carry none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_objects: Option<usize>,
    /// The modules whose weights lie on levels.
    pub quantized: Vec<String>,
    /// Those of them that were quantized for this file, without training.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub quantized_without_training: Vec<String>,
    /// What the user may not have meant, and the command that does what is likelier.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// Sizes of a packed file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packed: Option<PackReport>,
    /// What is particular to an ONNX file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub onnx: Option<OnnxReport>,
}

impl ExportReport {
    /// What every format tells of the file.
    fn new(request: &ExportRequest, weights: ExportWeights, file: FileFacts) -> Self {
        let FileFacts { num_tensors, bytes, quantized } = file;
        let (path, format) = (request.out.clone(), request.target.format());
        Self {
            path,
            format,
            weights,
            num_tensors,
            bytes,
            num_objects: None,
            quantized,
            quantized_without_training: Vec::new(),
            notes: Vec::new(),
            packed: None,
            onnx: None,
        }
    }
}

/// What was counted while a file was written.
struct FileFacts {
    num_tensors: usize,
    bytes: u64,
    quantized: Vec<String>,
}

/// Writes the network of a checkpoint in the format that is asked for. Momentum, masks and position stay behind.
///
/// # Errors
/// If the checkpoint cannot be read or does not fit its config, the format cannot say what it holds, or `out` already
/// exists and is not to be replaced, or is the checkpoint itself.
pub fn export(request: &ExportRequest) -> Result<ExportReport> {
    let out = &request.out;
    ensure!(
        request.overwrite || !out.exists(),
        "{} already exists; pass --overwrite to replace it, or name another file",
        out.display()
    );
    ensure!(
        !is_same_file(out, &request.checkpoint),
        "{} is the file that is exported: name another --out",
        out.display()
    );
    ensure!(
        request.quantize.is_none() || request.weights != Some(ExportWeights::Float),
        "--weights float cannot act: --quantize leaves no float weights of its modules; leave one of them out"
    );
    ensure!(
        request.target.format() != ExportFormat::Onnx
            || request.weights != Some(ExportWeights::Float),
        "an ONNX file holds the weights that the network computes with: leave --weights float out"
    );
    let home = Home::find(None, None)?;
    let names = match &request.target {
        ExportTarget::Onnx(options) if options.uses_dataset() => Names::Dataset,
        _ => Names::Config,
    };
    let artifact = open(&request.checkpoint, &Asked::weights(&request.select, &home, names))?;
    let objects = objects::find(request, &artifact)?;
    let config = &artifact.config;
    let which = match request.weights {
        Some(ExportWeights::Float) => Stored::AsStored,
        _ => Stored::AsComputed,
    };
    let (net, mut loaded) = artifact.network(Device::Cpu, Strictness::Strict, which)?;
    loaded.report.log();
    let from = &request.checkpoint;
    let untrained = match &request.quantize {
        None => Vec::new(),
        Some(flow) => quantize::quantize(config, net.as_ref(), &mut loaded, flow)
            .with_context(|| from.display().to_string())?,
    };
    let exported = Exported { from, out, problem: request.select.problem(), net, loaded, objects };
    let report = match &request.target {
        ExportTarget::Safetensors | ExportTarget::Pth => write_weights(request, &exported),
        ExportTarget::Packed(options) => write_packed(request, &exported, config, *options),
        ExportTarget::Onnx(options) => write_onnx(request, &exported, config, options),
    }?;
    let mut notes = notes(request, &untrained, &exported.loaded);
    if let Some(onnx) = &report.onnx {
        notes.extend(onnx.partly_quantized.iter().map(|module| {
            format!(
                "module {module} is only partly quantized: {} holds the float weights that it computes with",
                out.display()
            )
        }));
    }
    if report.num_objects == Some(0) {
        notes.push(format!(
            "{} carries no objects, as {} has none: `mqat predict` of it needs --data or --boxes, which export takes, too",
            out.display(),
            from.display()
        ));
    }
    Ok(ExportReport { quantized_without_training: untrained, notes, ..report })
}

/// Whether two paths lead to one file.
fn is_same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// What is to be said of low bits that were not trained, and of a format for low bits without any.
fn notes(request: &ExportRequest, untrained: &[String], loaded: &LoadedNetwork) -> Vec<String> {
    let (from, out) = (request.checkpoint.display(), request.out.display());
    let asks_for_integers = match &request.target {
        ExportTarget::Safetensors | ExportTarget::Pth => false,
        ExportTarget::Packed(_) => true,
        ExportTarget::Onnx(options) => options.carrier == Carrier::TrueBits,
    };
    if !untrained.is_empty() {
        let flow = request.quantize.as_ref().map(FlowSource::text).unwrap_or_default();
        vec![format!(
            "{} was quantized without training, which costs accuracy at low bits: {}; `mqat verify {from} {out} --rule as-good \
             --images 0` says what is lost, and `mqat train --from {from} --flow {flow}` trains these bits",
            untrained.join(" + "),
            regaining(request, &flow)
        )]
    } else if asks_for_integers && loaded.quantized.is_empty() {
        vec![format!(
            "nothing in {from} is quantized, so the file holds floats: `mqat train --from {from} --flow \
             fpn:2,head:8,backbone:8` trains low bits, and `mqat export {from} --quantize fpn:4,backbone:8 ...` rounds the \
             weights without training"
        )]
    } else {
        Vec::new()
    }
}

/// How the statistics of batch norms are estimated for the rounded weights: in the file, or before they are folded into it.
fn regaining(request: &ExportRequest, flow: &str) -> String {
    let (from, out) = (request.checkpoint.display(), request.out.display());
    let is_folded = match &request.target {
        ExportTarget::Safetensors | ExportTarget::Pth => false,
        ExportTarget::Packed(options) => options.fold_bn,
        ExportTarget::Onnx(_) => true,
    };
    match is_folded {
        false => format!("`mqat recalibrate {out}` regains part of it"),
        true => format!(
            "to regain part of it estimate the statistics of the batch norms, which are folded into this file, before: `mqat \
             export {from} --quantize {flow} --out rounded.safetensors`, `mqat recalibrate rounded.safetensors`, then this \
             export with rounded_recalibrated.safetensors in the place of {from}"
        ),
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
    options: &OnnxOptions,
) -> Result<ExportReport> {
    let written = onnx::write(exported, config, options)?;
    let WrittenOnnx { report, num_tensors, bytes, num_objects, quantized } = written;
    let weights = match quantized.is_empty() {
        true => ExportWeights::Float,
        false => ExportWeights::Quantized,
    };
    let file = FileFacts { num_tensors, bytes, quantized };
    let num_objects = Some(num_objects);
    Ok(ExportReport {
        num_objects,
        onnx: Some(report),
        ..ExportReport::new(request, weights, file)
    })
}

/// A packed file with the config in it.
fn write_packed(
    request: &ExportRequest,
    exported: &Exported,
    config: &Config,
    options: PackOptions,
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
    let twin = blank_network(config, Device::Cpu)?;
    let config = serde_json::to_value(config).context("writing the config as JSON")?;
    let report = packed::write(exported, twin.as_ref(), config, options)?;
    let PackReport { num_tensors, bytes, .. } = report;
    let file = FileFacts { num_tensors, bytes, quantized: report.quantized.clone() };
    let num_objects = Some(exported.objects.len());
    Ok(ExportReport {
        num_objects,
        packed: Some(report),
        ..ExportReport::new(request, weights, file)
    })
}

/// Parameters and buffers under their bare keys.
fn write_weights(request: &ExportRequest, exported: &Exported) -> Result<ExportReport> {
    let Exported { from, net, loaded, .. } = exported;
    let weights = weights_of(request, loaded);
    match weights {
        ExportWeights::Float => ensure_float_exists(from, net.as_ref(), loaded)?,
        ExportWeights::Quantized => ensure_quantized(from, loaded)?,
    }
    // Quantized weights were frozen to their levels when they were loaded.
    let state = net.state();
    let quantized = match weights {
        ExportWeights::Float => Vec::new(),
        ExportWeights::Quantized => module_names(&loaded.quantized),
    };
    let out = &request.out;
    match request.target.format() {
        ExportFormat::Pth => pth::write(out, &state)?,
        _ => {
            let mut metadata = BTreeMap::from([
                ("format".to_owned(), "pt".to_owned()),
                ("mqat_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
                ("quantized".to_owned(), Value::from(quantized.clone()).to_string()),
            ]);
            if let Some(info) = loaded.meta.as_ref().and_then(|meta| meta.batch_norm.as_ref()) {
                metadata.insert(CheckpointMeta::BATCH_NORM.to_owned(), info.to_json()?);
            }
            tensors::write(out, &state, &metadata)?;
        }
    }
    let bytes = std::fs::metadata(out).with_context(|| format!("reading {}", out.display()))?.len();
    let file = FileFacts { num_tensors: state.len(), bytes, quantized };
    Ok(ExportReport::new(request, weights, file))
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
                "{at}: the activations of {} are quantized, which a file of weights cannot say; use the checkpoint itself",
                site.name
            );
        }
    }
    Ok(())
}

/// Refuses to call weights float that were overwritten by their levels.
fn ensure_float_exists(from: &Path, net: &dyn Network, loaded: &LoadedNetwork) -> Result<()> {
    for quantizer in &loaded.quantizers {
        if quantizer.assert_on_grid().is_err() {
            continue;
        }
        for (name, effective) in quantizer.effective_weights() {
            if net.store().get(&name).is_some_and(|stored| stored.equal(&effective)) {
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
