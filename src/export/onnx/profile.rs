//! What ONNX Runtime really ran: kernels and their times, from its profile.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// The operations of a profile.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Profile {
    /// By kind of kernel, the longest first.
    pub kernels: Vec<Kernel>,
    /// Convolutions that compute with integers (`QLinearConv`, `ConvInteger`).
    pub integer_convs: usize,
    /// Convolutions that compute with floats.
    pub float_convs: usize,
}

/// A kind of kernel.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Kernel {
    /// Its operation.
    pub op: String,
    /// Nodes that ran it.
    pub nodes: usize,
    /// Milliseconds of a run, all nodes together.
    pub ms: f64,
}

#[derive(Deserialize)]
struct Event {
    #[serde(default)]
    cat: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    dur: f64,
    #[serde(default)]
    args: Args,
}

#[derive(Default, Deserialize)]
struct Args {
    #[serde(default)]
    op_name: String,
}

impl Profile {
    /// Reads the file that ONNX Runtime wrote.
    ///
    /// # Errors
    /// If it is not a profile.
    pub fn read(path: &Path) -> Result<Self> {
        let at = path.display();
        let text =
            std::fs::read_to_string(path).with_context(|| format!("reading profile {at}"))?;
        let events: Vec<Event> =
            serde_json::from_str(&text).with_context(|| format!("parsing profile {at}"))?;
        Self::of(&events).with_context(|| format!("profile {at}"))
    }

    fn of(events: &[Event]) -> Result<Self> {
        let mut by_op: BTreeMap<&str, (BTreeSet<&str>, f64)> = BTreeMap::new();
        let mut num_runs = 0;
        for event in events {
            if event.cat == "Session" && event.name == "model_run" {
                num_runs += 1;
            }
            let Some(node) = event.name.strip_suffix("_kernel_time") else { continue };
            let entry = by_op.entry(event.args.op_name.as_str()).or_default();
            entry.0.insert(node);
            entry.1 += event.dur / 1e3;
        }
        ensure!(num_runs > 0 && !by_op.is_empty(), "it has no run of a network");
        let kernels = by_op.iter().map(|(op, (nodes, ms))| Kernel {
            op: (*op).to_owned(),
            nodes: nodes.len(),
            ms: ms / f64::from(num_runs),
        });
        let mut kernels: Vec<Kernel> = kernels.collect();
        kernels.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        let count = |ops: &[&str]| {
            kernels.iter().filter(|k| ops.contains(&k.op.as_str())).map(|k| k.nodes).sum()
        };
        Ok(Self {
            integer_convs: count(&["QLinearConv", "ConvInteger"]),
            float_convs: count(&["Conv", "FusedConv", "NhwcFusedConv", "ConvTranspose"]),
            kernels,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_counted_by_node_and_timed_by_run() {
        let text = r#"[
            {"cat":"Session","name":"model_run","dur":900},
            {"cat":"Node","name":"a_fence_before","dur":5,"args":{"op_name":"QLinearConv"}},
            {"cat":"Node","name":"a_kernel_time","dur":2000,"args":{"op_name":"QLinearConv"}},
            {"cat":"Node","name":"b_kernel_time","dur":1000,"args":{"op_name":"QLinearConv"}},
            {"cat":"Node","name":"c_kernel_time","dur":500,"args":{"op_name":"Conv"}},
            {"cat":"Session","name":"model_run","dur":900},
            {"cat":"Node","name":"a_kernel_time","dur":3000,"args":{"op_name":"QLinearConv"}}
        ]"#;
        let events: Vec<Event> = serde_json::from_str(text).unwrap();
        let profile = Profile::of(&events).unwrap();
        assert_eq!((profile.integer_convs, profile.float_convs), (2, 1));
        let first = &profile.kernels[0];
        assert_eq!((first.op.as_str(), first.nodes, first.ms), ("QLinearConv", 2, 3.0));
        assert!(Profile::of(&events[1..2]).is_err());
    }
}
