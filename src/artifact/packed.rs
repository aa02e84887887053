//! Packed files: the network of a checkpoint that was written as codes, loaded again.
//!
//! The file carries the checkpoint's description with its config, so that nothing else is needed. Weights come back as
//! they are computed with; the quantizers of inputs come back with their ranges.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value};
use tch::Tensor;

use super::tensor::TensorReport;
use crate::export::packed::{self, Unpacked};
use crate::nn::Store;
use crate::quant::Claim;
use crate::train::{CheckpointMeta, QuantizedModule, attach_all};

/// The entry of the file's `meta` that holds the checkpoint's description.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// The entry that says whether the weights are averaged ones.
pub(crate) const AVERAGED: &str = "averaged";
/// Begin of the names of quantizer state.
const QUANT: &str = "quant.";

/// Modules whose activations are quantized, without the quantizers of their weights.
pub(crate) fn with_inputs_only(quantized: &[QuantizedModule]) -> Vec<QuantizedModule> {
    let inputs = quantized.iter().filter(|module| module.claim.activations.is_some());
    let without_weights = |claim: &Claim| Claim { weights: None, ..claim.clone() };
    inputs.map(|m| QuantizedModule { claim: without_weights(&m.claim), ..m.clone() }).collect()
}

/// A packed file as the network's tensors, with what the file says of itself.
pub(crate) struct PackedState {
    /// The checkpoint's description.
    pub meta: CheckpointMeta,
    /// Whether the weights are averages over training.
    pub averaged: bool,
    /// The network's tensors.
    pub weights: Vec<(String, Tensor)>,
    /// The state of the quantizers of inputs.
    pub inputs: Vec<(String, Tensor)>,
}

/// Reads a packed file.
///
/// # Errors
/// If it is damaged, or carries no description of its network.
pub(crate) fn read(path: &Path) -> Result<PackedState> {
    let file = packed::read(path)?;
    let at = || format!("reading packed file {}", path.display());
    let Unpacked { meta, state, extra } =
        packed::unpack(file, |name| name.starts_with(QUANT)).with_context(at)?;
    let averaged = meta.get(AVERAGED).and_then(Value::as_bool).unwrap_or(false);
    let meta = checkpoint_of(&meta).with_context(at)?;
    Ok(PackedState { meta, averaged, weights: state, inputs: extra })
}

/// What a packed file says of the checkpoint it was made from.
///
/// # Errors
/// If the file's header is damaged, or has no such description.
pub(crate) fn meta_of(path: &Path) -> Result<CheckpointMeta> {
    let head = packed::read_head(path)?;
    checkpoint_of(&head.meta).with_context(|| format!("reading packed file {}", path.display()))
}

fn checkpoint_of(meta: &Map<String, Value>) -> Result<CheckpointMeta> {
    let json = meta.get(CHECKPOINT).with_context(|| format!("its meta has no {CHECKPOINT}"))?;
    CheckpointMeta::of_json(&json.to_string()).with_context(|| format!("meta.{CHECKPOINT}"))
}

/// Plugs the quantizers of inputs into a network whose weights are loaded.
///
/// # Errors
/// If a module is not in the network, or its state is missing.
pub(crate) fn attach_inputs(
    state: &PackedState,
    store: &Store,
) -> Result<Vec<crate::quant::ModuleQuantizer>> {
    attach_all(&with_inputs_only(&state.meta.quantized), store, &state.inputs)
}

/// A packed file without its numbers: tensors, description, and what is to be said of its bytes.
pub(crate) struct PackedContents {
    /// The tensors; the bytes of a weight's codes include its scales.
    pub tensors: Vec<TensorReport>,
    /// The checkpoint's description.
    pub meta: CheckpointMeta,
    /// One line for the header and one for each kind of codes.
    pub notes: Vec<String>,
}

/// Describes a packed file by its header.
///
/// # Errors
/// If the file is damaged.
pub(crate) fn describe(path: &Path) -> Result<PackedContents> {
    packed::verify(path)?;
    let head = packed::read_head(path)?;
    let at = || format!("reading packed file {}", path.display());
    let meta = checkpoint_of(&head.meta).with_context(at)?;
    let mut kinds: BTreeMap<String, [usize; 3]> = BTreeMap::new();
    let mut tensors = Vec::with_capacity(head.tensors.len());
    for tensor in head.tensors {
        let (dtype, bytes) = match (tensor.dtype, tensor.codes) {
            (_, Some(codes)) => {
                let bytes = tensor.num_bytes + codes.grid_bytes;
                let width = codes.coding.bits();
                let kind = format!("{} levels at {width} bits", codes.num_levels);
                let [weights, elements, total] = kinds.entry(kind).or_default();
                (*weights, *elements, *total) =
                    (*weights + 1, *elements + tensor.num_elements, *total + bytes);
                (format!("u{width}"), bytes)
            }
            (dtype, None) => {
                let name = dtype.map_or(String::new(), |d| format!("{d:?}").to_lowercase());
                (name, tensor.num_bytes)
            }
        };
        let shape = tensor.shape.iter().map(|&d| d as i64).collect();
        tensors.push(TensorReport { name: tensor.name, dtype, shape, bytes });
    }
    let mut notes = vec![format!("header {:.1} kB", head.header_bytes as f64 / 1e3)];
    notes.extend(kinds.into_iter().map(|(kind, [weights, elements, bytes])| {
        let mb = bytes as f64 / 1e6;
        format!("{weights} layers with {kind}: {elements} weights, {mb:.3} MB with scales")
    }));
    Ok(PackedContents { tensors, meta, notes })
}
