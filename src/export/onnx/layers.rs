//! Layer by layer, whether ONNX Runtime's integers are those that the graph means.
//!
//! Each layer is computed by libtorch from the integers that ONNX Runtime itself made in front of it, so that errors do
//! not add up from layer to layer, and the result is held against the integers that ONNX Runtime made of it.

use anyhow::{Result, ensure};
use serde::Serialize;
use tch::{Kind, Tensor};

use super::emit::value_name;
use super::graph::{Graph, NodeId};
use super::plan::GraphPlan;
use super::reference::{Reference, Rounding};
use super::session::OnnxSession;
use crate::nn::{Engine, OutputShape, Outputs};

/// A rounded value, over all images.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerSteps {
    /// The node.
    pub name: String,
    /// The largest difference between an integer of ONNX Runtime's and libtorch's, in steps of this value.
    pub max_steps: i64,
    /// The fraction of the integers that differ.
    pub fraction: f64,
}

/// The rounded values of a graph, by node, and their names in the file: what [`super::SessionOptions::values`] has to
/// hold for [`LayerCheck`].
pub fn quantized_values(graph: &Graph, plan: &GraphPlan) -> Vec<(NodeId, String)> {
    let rounded = (0..graph.nodes.len()).filter(|&node| plan.values[node].is_some());
    rounded.map(|node| (node, format!("{}.q", value_name(graph, node)))).collect()
}

/// A file's rounded values as the outputs of an engine, integers as such.
pub struct QuantizedValues<'a> {
    session: &'a OnnxSession,
    outputs: Vec<OutputShape>,
}

impl<'a> QuantizedValues<'a> {
    /// Of a session that was opened with the names of [`quantized_values`].
    pub fn new(session: &'a OnnxSession, graph: &Graph, plan: &GraphPlan) -> Self {
        let outputs = quantized_values(graph, plan)
            .into_iter()
            .map(|(node, name)| OutputShape { name, shape: graph.nodes[node].shape.to_vec() })
            .collect();
        Self { session, outputs }
    }
}

impl Engine for QuantizedValues<'_> {
    fn outputs(&self, _width: usize, _height: usize) -> Vec<OutputShape> {
        self.outputs.clone()
    }

    fn forward(&self, images: &Tensor) -> Result<Outputs> {
        let names: Vec<&str> = self.outputs.iter().map(|output| output.name.as_str()).collect();
        self.session.named(images, &names)
    }
}

/// Compares the layers of a file, batch by batch.
pub struct LayerCheck<'a> {
    graph: &'a Graph,
    plan: &'a GraphPlan,
    reference: Reference<'a>,
    values: Vec<(NodeId, String)>,
    /// By rounded value: largest difference, integers that differ, integers.
    sums: Vec<(i64, i64, i64)>,
}

impl<'a> LayerCheck<'a> {
    /// For a graph that was written as `plan` rounds it.
    pub fn new(graph: &'a Graph, plan: &'a GraphPlan) -> Self {
        let values = quantized_values(graph, plan);
        let sums = vec![(0, 0, 0); values.len()];
        Self { graph, plan, reference: Reference::new(graph), values, sums }
    }

    /// Adds images `[n, 3, h, w]` and what [`QuantizedValues`] computed from them.
    ///
    /// # Errors
    /// If a value is missing or has another shape.
    pub fn add(&mut self, images: &Tensor, values: &Outputs) -> Result<()> {
        let integers = (self.values.iter())
            .map(|(_, name)| values.get(name))
            .collect::<Result<Vec<&Tensor>>>()?;
        let mut by_node: Vec<Option<usize>> = vec![None; self.graph.nodes.len()];
        for (i, (node, name)) in self.values.iter().enumerate() {
            let shape = [&images.size()[..1], &self.graph.nodes[*node].shape[..]].concat();
            let found = integers[i].size();
            ensure!(found == shape, "{name} has the shape {found:?}, expected {shape:?}");
            by_node[*node] = Some(i);
        }
        let (plan, sums) = (self.plan, &mut self.sums);
        self.reference.run_along(images, Some(plan), |node, value| {
            let (i, rounding) = by_node[node].zip(Rounding::of(plan, node))?;
            let theirs = integers[i].to_kind(Kind::Float);
            let steps = (rounding.integers(value) - &theirs).abs();
            let sum = &mut sums[i];
            sum.0 = sum.0.max(steps.max().double_value(&[]) as i64);
            sum.1 += steps.count_nonzero(None).int64_value(&[]);
            sum.2 += steps.numel() as i64;
            Some(rounding.values(&theirs))
        })?;
        Ok(())
    }

    /// The values in the graph's order.
    pub fn finish(&self) -> Vec<LayerSteps> {
        let steps =
            |((node, _), &(max_steps, differ, all)): (&(NodeId, String), &(i64, i64, i64))| {
                let name = self.graph.nodes[*node].name.clone();
                LayerSteps { name, max_steps, fraction: differ as f64 / all.max(1) as f64 }
            };
        self.values.iter().zip(&self.sums).map(steps).collect()
    }
}
