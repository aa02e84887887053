//! `mqat inspect`: the network of a config with its quantization plan, or the tensors of a file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use tch::Device;

use super::config::Select;
use super::flow;
use super::home::Home;
use super::layers::{LayerReport, layers, sizes_after, sizes_text};
use super::open::blank_network;
use crate::io::tensors;
use crate::quant::size::Sizes;
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
    /// Size once the whole flow is done, in both counts.
    pub sizes: Sizes,
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

/// Describes the network that a config builds.
///
/// # Errors
/// If the config cannot be read, or its flow names a module that is not there.
pub fn inspect_network(select: &Select) -> Result<NetworkReport> {
    let home = Home::find(None, None)?;
    let config = select.resolve(&home)?;
    let net = blank_network(&config, Device::Cpu)?;
    let size = [config.input.width, config.input.height];
    flow::check(&config, &net)?;
    let stages = config.train_config().stages;
    let layers = layers(&net, &stages, size)?;
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
        sizes: sizes_after(&layers, &net, stages.len()),
        layers,
    })
}

impl NetworkReport {
    /// For a terminal; `all` lists every layer.
    pub fn text(&self, all: bool) -> String {
        let mut out = String::new();
        let [w, h] = self.input;
        let _ = writeln!(
            out,
            "{:.3} M parameters, {:.2} GMAC at {w} x {h} px; compression {}",
            self.num_parameters as f64 / 1e6,
            self.num_macs as f64 / 1e9,
            sizes_text(&self.sizes)
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
                let kind = match &l.activations {
                    None => l.weights_text(),
                    Some(inputs) => format!("{}, inputs {inputs}", l.weights_text()),
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
                    l.name,
                    l.weights_text(),
                    l.activations_text()
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
        quantized: meta.map_or_else(Vec::new, |m| super::test::module_names(&m.quantized)),
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
