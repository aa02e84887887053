//! `mqat inspect`: the network of a config with its quantization plan.

use std::fmt::Write as _;

use anyhow::Result;
use serde::Serialize;
use tch::Device;

use crate::artifact::network::blank_network;
use crate::quant::size::Sizes;
use crate::run::config::{Names, Select};
use crate::run::flow;
use crate::run::home::Home;
use crate::run::layers::{LayerReport, layers, sizes_after, sizes_text};

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
    /// The first component of its keys, for example `fpn`.
    pub name: String,
    /// Parameters.
    pub num_parameters: usize,
    /// Of these, parameters that no output depends on.
    pub num_unused: usize,
    /// Weights of quantizable layers.
    pub num_conv_weights: usize,
    /// Quantizable layers.
    pub num_convs: usize,
}

/// Describes the network that a config builds.
///
/// # Errors
/// If the config cannot be read, or its flow names a module that is not there.
pub fn inspect_network(select: &Select) -> Result<NetworkReport> {
    let home = Home::find(None, None)?;
    select.ensure_names_act(Names::Config)?;
    let config = select.resolve(&home)?;
    let net = blank_network(&config, Device::Cpu)?;
    let size = [config.input.width, config.input.height];
    flow::check(&config, net.as_ref())?;
    let stages = config.train_config().stages;
    let layers = layers(net.as_ref(), &stages, size)?;
    let modules: Vec<ModuleReport> = net
        .modules()
        .into_iter()
        .map(|m| ModuleReport {
            name: m.name,
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
        sizes: sizes_after(&layers, net.as_ref(), stages.len()),
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
            let inside = |l: &&LayerReport| l.module == m.name && l.num_uses > 0;
            let mut kinds: Vec<String> = Vec::new();
            for l in self.layers.iter().filter(inside) {
                let kind = match &l.activations {
                    None => l.weights_text(),
                    Some(inputs) => format!("{}, activations {inputs}", l.weights_text()),
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
            let _ = writeln!(
                out,
                "\n{:<44} {:<20} {:>10}  weights / activations",
                "layer", "shape", "MMAC"
            );
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
