//! A network as ONNX files, float and with integers, to be measured where no file is given.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use prost::Message;
use tch::{Device, Tensor};

use super::networks::images;
use crate::artifact::engine::OnnxMeta;
use crate::artifact::network::new_network;
use crate::export::onnx::graph::Graph;
use crate::export::onnx::plan::{self, GraphPlan};
use crate::export::onnx::{
    BASE_OPSET, Calibration, CalibrationMethod, Carrier, EmitOptions, META_KEY, calibrate, emit,
    graph_of,
};
use crate::run::config::Config;

/// Images that set the ranges of activations: speed does not depend on how good these are.
const NUM_IMAGES: usize = 2;

/// Writes the config's network with initial weights into `folder`: as it is, and with integer weights and activations. Speed
/// does not depend on the weights.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn write(config: &Config, folder: &Path) -> Result<[PathBuf; 2]> {
    let net = new_network(config, Device::Cpu)?;
    let size = (config.input.width, config.input.height);
    let mut graph = graph_of(net.as_ref(), &[], size)?;
    let [float, int8] = ["float.onnx", "int8.onnx"].map(|name| folder.join(name));
    let none = GraphPlan::none(graph.nodes.len());
    write_graph(&float, config, &graph, &none)?;
    let wanted = plan::wanted(&graph, true);
    plan::round_weights(&mut graph, &wanted, true);
    let calibration = Calibration { method: CalibrationMethod::MinMax, bits: 8, symmetric: false };
    let seen = images(&config.input, NUM_IMAGES, config.experiment.seed, Device::Cpu)?;
    let pass = |each: &mut dyn FnMut(&Tensor) -> Result<()>| each(&seen);
    let found = tch::no_grad(|| calibrate(&graph, &none, &wanted, calibration, pass))?;
    let plan = plan::calibrated(&graph, &HashMap::new(), found);
    plan::fit_biases(&mut graph, &plan);
    write_graph(&int8, config, &graph, &plan)?;
    Ok([float, int8])
}

fn write_graph(path: &Path, config: &Config, graph: &Graph, plan: &GraphPlan) -> Result<()> {
    let meta = OnnxMeta {
        mqat_version: env!("CARGO_PKG_VERSION").to_owned(),
        quantized: Vec::new(),
        activations: if plan.is_empty() { "float activations" } else { "8-bit activations" }.into(),
        activation_bits: (!plan.is_empty()).then_some(8),
        objects: Vec::new(),
        batch_norm: None,
        config: serde_json::to_value(config).context("writing the config as JSON")?,
    };
    let metadata = BTreeMap::from([(META_KEY.to_owned(), serde_json::to_string(&meta)?)]);
    let options = EmitOptions {
        opset: BASE_OPSET,
        carrier: Carrier::Int8,
        int2: false,
        batch: None,
        decode: false,
    };
    let model = emit(graph, plan, &options, &metadata)?;
    let at = || format!("writing {}", path.display());
    std::fs::write(path, model.encode_to_vec()).with_context(at)
}
