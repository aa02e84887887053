//! `mqat inspect`: the network of a config with its quantization plan, or the tensors of a file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use tch::Device;

use super::config::{Config, Select};
use super::home::Home;
use super::open::blank_network;
use crate::io::tensors;
use crate::model::PoseNet;
use crate::quant::ModuleQuantizer;
use crate::train::{CheckpointMeta, Position};

/// The module of a tensor that belongs to none.
const OTHER: &str = "other";

/// A network as its config describes it.
#[derive(Debug, Serialize)]
pub struct NetworkReport {
    /// Input, px.
    pub input: [usize; 2],
    /// Parameters in all.
    pub num_parameters: usize,
    /// Multiply-accumulates of an image.
    pub num_macs: u64,
    /// The modules.
    pub modules: Vec<ModuleReport>,
    /// Every convolution and linear layer.
    pub layers: Vec<LayerReport>,
    /// Size of the convolution weights, as the paper counts compression.
    pub paper_compression: f64,
}

/// A module of the network.
#[derive(Debug, Serialize)]
pub struct ModuleReport {
    /// `backbone`, `fpn` or `head`.
    pub name: String,
    /// Parameters.
    pub num_parameters: usize,
    /// Of these, parameters that no output depends on.
    pub num_unused: usize,
    /// Convolution weights, which quantization is about.
    pub num_conv_weights: usize,
    /// Convolutions.
    pub num_convs: usize,
}

/// A layer and what the flow makes of it.
#[derive(Debug, Serialize)]
pub struct LayerReport {
    /// Key without `.weight`.
    pub name: String,
    /// Shape of the weight.
    pub shape: Vec<i64>,
    /// Weights.
    pub num_weights: usize,
    /// Multiply-accumulates of an image.
    pub num_macs: u64,
    /// The stage of the flow that quantizes it.
    pub stage: Option<String>,
    /// `inq 2 bits (3 levels)` or `float`.
    pub weights: String,
    /// `ste 8 bits (255 levels)` or `float`.
    pub activations: String,
    /// Bits of a weight.
    pub bits: u32,
}

/// Describes the network that a config builds.
///
/// # Errors
/// If the config cannot be read, or its flow names a module that is not there.
pub fn inspect_network(select: &Select) -> Result<NetworkReport> {
    let home = Home::find(None, None)?;
    let config = select.resolve(&home)?;
    let net = blank_network(&config, Device::Cpu)?;
    let size = [config.input.width, config.input.height];
    let layers = plan(&net, &config, size)?;
    let conv: Vec<&LayerReport> = layers.iter().filter(|l| l.shape.len() == 4).collect();
    let num_weights: usize = conv.iter().map(|l| l.num_weights).sum();
    let num_bits: usize = conv.iter().map(|l| l.num_weights * l.bits as usize).sum();
    let modules: Vec<ModuleReport> = net
        .modules()
        .into_iter()
        .map(|m| ModuleReport {
            name: m.name.to_owned(),
            num_parameters: m.num_parameters,
            num_unused: m.num_unused,
            num_conv_weights: m.num_conv_weights,
            num_convs: m.num_convs,
        })
        .collect();
    Ok(NetworkReport {
        input: size,
        num_parameters: modules.iter().map(|m| m.num_parameters).sum(),
        num_macs: layers.iter().map(|l| l.num_macs).sum(),
        modules,
        paper_compression: 32.0 * num_weights as f64 / num_bits.max(1) as f64,
        layers,
    })
}

/// Every layer with what the whole flow makes of it.
fn plan(net: &PoseNet, config: &Config, [width, height]: [usize; 2]) -> Result<Vec<LayerReport>> {
    let mut layers: Vec<LayerReport> = net
        .summary(width, height)
        .into_iter()
        .filter(|l| matches!(l.kind, "conv" | "linear"))
        .map(|l| LayerReport {
            num_weights: l.weight.iter().product::<i64>() as usize,
            name: l.name,
            shape: l.weight,
            num_macs: l.macs,
            stage: None,
            weights: "float".to_owned(),
            activations: "float".to_owned(),
            bits: 32,
        })
        .collect();
    for (i, stage) in config.quantize.flow.iter().enumerate() {
        let Some(module) = &stage.module else { continue };
        let quantizer = ModuleQuantizer::attach(
            module,
            &net.store,
            stage.weights.as_ref(),
            stage.activations.as_ref(),
            stage.first_layer,
            stage.last_layer,
            config.experiment.seed,
        )
        .with_context(|| format!("quantize.flow.{i}.module"))?;
        for site in quantizer.report() {
            let Some(layer) = layers.iter_mut().find(|l| l.name == site.name) else { continue };
            layer.stage = Some(stage.label());
            if let Some(num_levels) = site.num_levels {
                layer.bits = site.bits;
                layer.weights = format!("{} {} bits ({num_levels} levels)", site.method, site.bits);
            }
            if let Some(a) = &site.activations {
                layer.activations =
                    format!("{} {} bits ({} levels)", a.method, a.bits, a.num_levels);
            }
        }
    }
    Ok(layers)
}

impl NetworkReport {
    /// For a terminal; `all` lists every layer.
    pub fn text(&self, all: bool) -> String {
        let mut out = String::new();
        let [w, h] = self.input;
        let _ = writeln!(
            out,
            "{:.3} M parameters, {:.2} GMAC at {w} x {h} px, convolution weights compressed {:.2}x (paper's count)",
            self.num_parameters as f64 / 1e6,
            self.num_macs as f64 / 1e9,
            self.paper_compression
        );
        let _ = writeln!(
            out,
            "\n{:<10} {:>12} {:>12} {:>6}  quantization",
            "module", "parameters", "conv weights", "convs"
        );
        for m in &self.modules {
            let inside = |l: &&LayerReport| {
                l.name.split('.').next() == Some(m.name.as_str()) && l.shape.len() == 4
            };
            let mut kinds: Vec<String> = Vec::new();
            for l in self.layers.iter().filter(inside) {
                let kind = match l.activations.as_str() {
                    "float" => l.weights.clone(),
                    activations => format!("{}, inputs {activations}", l.weights),
                };
                if !kinds.contains(&kind) {
                    kinds.push(kind);
                }
            }
            let _ = writeln!(
                out,
                "{:<10} {:>12} {:>12} {:>6}  {}",
                m.name,
                m.num_parameters,
                m.num_conv_weights,
                m.num_convs,
                kinds.join("; ")
            );
        }
        if all {
            let _ =
                writeln!(out, "\n{:<44} {:<20} {:>10}  weights / inputs", "layer", "shape", "MMAC");
            for l in &self.layers {
                let shape = format!("{:?}", l.shape);
                let macs = l.num_macs as f64 / 1e6;
                let _ = writeln!(
                    out,
                    "{:<44} {shape:<20} {macs:>10.2}  {} / {}",
                    l.name, l.weights, l.activations
                );
            }
        }
        out
    }
}

/// The tensors of a file.
#[derive(Debug, Serialize)]
pub struct FileReport {
    /// The file.
    pub path: PathBuf,
    /// Bytes on disk.
    pub bytes: u64,
    /// Version of mqat that wrote it, for a checkpoint.
    pub mqat_version: Option<String>,
    /// The stage a checkpoint is in.
    pub stage: Option<String>,
    /// Where a checkpoint is.
    pub position: Option<Position>,
    /// Modules that carry quantizers.
    pub quantized: Vec<String>,
    /// Groups of tensors: modules, optimizer, quantizers.
    pub groups: Vec<GroupReport>,
    /// Every tensor.
    pub tensors: Vec<TensorReport>,
}

/// Tensors under one name.
#[derive(Debug, Serialize)]
pub struct GroupReport {
    /// `backbone`, `fpn`, `head`, `optim`, `quant`, ...
    pub name: String,
    /// Tensors.
    pub num_tensors: usize,
    /// Numbers in them.
    pub num_elements: usize,
    /// Bytes of them.
    pub bytes: usize,
}

/// One tensor.
#[derive(Debug, Serialize)]
pub struct TensorReport {
    /// Key.
    pub name: String,
    /// Element type.
    pub dtype: String,
    /// Shape.
    pub shape: Vec<i64>,
}

/// Describes a safetensors file.
///
/// # Errors
/// If it cannot be read.
pub fn inspect_file(path: &Path) -> Result<FileReport> {
    let bytes =
        std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
    let file = tensors::read_head(path)?;
    let meta = CheckpointMeta::of_file(path)?;
    let mut groups: Vec<GroupReport> = Vec::new();
    let mut listed = Vec::with_capacity(file.tensors.len());
    for tensor in file.tensors {
        let group = tensor.name.split_once('.').map_or(OTHER, |(first, _)| first);
        let num_elements = tensor.shape.iter().product::<i64>() as usize;
        match groups.iter_mut().find(|g| g.name == group) {
            Some(g) => {
                g.num_tensors += 1;
                g.num_elements += num_elements;
                g.bytes += tensor.num_bytes;
            }
            None => groups.push(GroupReport {
                name: group.to_owned(),
                num_tensors: 1,
                num_elements,
                bytes: tensor.num_bytes,
            }),
        }
        listed.push(TensorReport {
            dtype: format!("{:?}", tensor.kind).to_lowercase(),
            name: tensor.name,
            shape: tensor.shape,
        });
    }
    Ok(FileReport {
        path: path.to_owned(),
        bytes,
        mqat_version: meta.as_ref().map(|m| m.mqat_version.clone()),
        stage: meta.as_ref().map(|m| m.stage_name.clone()),
        position: meta.as_ref().map(|m| m.position.clone()),
        quantized: meta.map_or_else(Vec::new, |m| super::test::module_names(&m)),
        groups,
        tensors: listed,
    })
}

impl FileReport {
    /// For a terminal; `all` lists every tensor.
    pub fn text(&self, all: bool) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}: {:.2} MB", self.path.display(), self.bytes as f64 / 1e6);
        if let (Some(version), Some(stage), Some(at)) =
            (&self.mqat_version, &self.stage, &self.position)
        {
            let _ = writeln!(
                out,
                "checkpoint of mqat {version}: stage {} ({stage}), epoch {}, batch {}, step {}",
                at.stage, at.epoch, at.batch, at.global_step
            );
        }
        let quantized =
            if self.quantized.is_empty() { "none".to_owned() } else { self.quantized.join(" + ") };
        let _ = writeln!(out, "quantized modules: {quantized}");
        let _ = writeln!(out, "\n{:<18} {:>8} {:>12} {:>10}", "group", "tensors", "elements", "MB");
        for g in &self.groups {
            let mb = g.bytes as f64 / 1e6;
            let _ = writeln!(
                out,
                "{:<18} {:>8} {:>12} {mb:>10.2}",
                g.name, g.num_tensors, g.num_elements
            );
        }
        if all {
            let _ = writeln!(out, "\n{:<60} {:<8} shape", "tensor", "dtype");
            for t in &self.tensors {
                let _ = writeln!(out, "{:<60} {:<8} {:?}", t.name, t.dtype, t.shape);
            }
        }
        out
    }
}
