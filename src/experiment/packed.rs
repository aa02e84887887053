//! Packed files: the network of a checkpoint written as codes, and loaded again.
//!
//! The file carries the checkpoint's description with its config, so that nothing else is needed. Weights come back as
//! they are computed with; the quantizers of inputs come back with their ranges.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value};
use tch::{Device, Tensor};

use super::contents::TensorReport;
use super::export::Exported;
use super::test::module_names;
use super::weights::{FileKind, LoadedNetwork};
use crate::export::packed::{self, Bytes, Unpacked};
use crate::model::PoseNet;
use crate::nn::Store;
use crate::quant::Claim;
use crate::quant::size::Sizes;
use crate::train::{CheckpointMeta, Imported, QuantizedModule, attach_all};

/// The entry of the file's `meta` that holds the checkpoint's description.
const CHECKPOINT: &str = "checkpoint";
/// The entry that says whether the weights are averaged ones.
const AVERAGED: &str = "averaged";
/// Begin of the names of quantizer state.
const QUANT: &str = "quant.";

/// What was packed.
#[derive(Debug, Serialize)]
pub struct PackReport {
    /// The file.
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Of these, in front of the data: names, shapes, the config.
    pub header_bytes: u64,
    /// Where the others go.
    pub data: Bytes,
    /// Size without overhead, every weight in the bits that number its levels; both counts of compression.
    pub theoretical: Sizes,
    /// `bytes` over the theoretical bytes.
    pub share_of_theoretical: f64,
    /// Its tensors.
    pub num_tensors: usize,
    /// Of these, weights as codes.
    pub num_coded: usize,
    /// Batch norms stored as multiplier and offset.
    pub num_folded: usize,
    /// Batch norms that are not, though it was asked for: they would round otherwise.
    pub num_not_folded: usize,
    /// The modules whose weights or inputs lie on levels.
    pub quantized: Vec<String>,
}

impl PackReport {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let (mb, t) = (|bytes: u64| bytes as f64 / 1e6, &self.theoretical);
        let _ = writeln!(
            out,
            "{}: {:.3} MB ({} bytes), {} tensors, {} of them as codes",
            self.path.display(),
            mb(self.bytes),
            self.bytes,
            self.num_tensors,
            self.num_coded
        );
        let _ = writeln!(
            out,
            "theoretical size {:.3} MB: {:.4} x; codes {:.3}, scales {:.3}, float weights {:.3}, other {:.3}, header {:.3} MB",
            mb(t.file_bytes),
            self.share_of_theoretical,
            mb(self.data.codes),
            mb(self.data.scales),
            mb(self.data.float_weights),
            mb(self.data.other + self.data.counters),
            mb(self.header_bytes)
        );
        let _ = writeln!(
            out,
            "compression {:.2}x (paper: convolution weights alone), {:.2}x (this file against {:.3} MB in float)",
            t.paper_compression,
            t.float_bytes as f64 / self.bytes as f64,
            mb(t.float_bytes)
        );
        if self.num_folded + self.num_not_folded > 0 {
            let _ = writeln!(
                out,
                "{} batch norms folded, {} kept because folding would round otherwise",
                self.num_folded, self.num_not_folded
            );
        }
        out
    }
}

/// Writes a loaded network as a packed file.
///
/// # Errors
/// If it is packed already, a module is only partly quantized or its inputs are not quantized yet, or the file cannot be
/// written.
pub(super) fn write(exported: &Exported, config: Value) -> Result<PackReport> {
    let Exported { request, net, loaded } = exported;
    let (from, out) = (&request.checkpoint, &request.out);
    let at = || format!("packing {}", from.display());
    ensure!(
        loaded.kind != FileKind::Packed,
        "{} is packed already: copy it, or pack the checkpoint it was made from",
        from.display()
    );
    let inputs = input_state(net, loaded).with_context(at)?;
    let meta = description(loaded, from, config);
    let meta =
        serde_json::to_value(meta).context("writing the checkpoint's description as JSON")?;
    let averaged = loaded.averaged.into();
    let meta = Map::from_iter([(CHECKPOINT.to_owned(), meta), (AVERAGED.to_owned(), averaged)]);
    let packed =
        packed::pack(net, &loaded.quantizers, &inputs, meta, request.packed).with_context(at)?;
    let bytes = packed::write(out, &packed.file)?;
    let is_coded = |t: &&packed::PackedTensor| matches!(t.content, packed::Content::Codes { .. });
    Ok(PackReport {
        path: out.clone(),
        bytes,
        header_bytes: bytes - packed.bytes.sum(),
        data: packed.bytes,
        theoretical: packed.sizes,
        share_of_theoretical: bytes as f64 / packed.sizes.file_bytes.max(1) as f64,
        num_tensors: packed.file.tensors.len(),
        num_coded: packed.file.tensors.iter().filter(is_coded).count(),
        num_folded: packed.num_folded,
        num_not_folded: packed.num_not_folded,
        quantized: module_names(&loaded.quantized),
    })
}

/// The description that the file carries: the checkpoint's, or one made for weights of other programs.
fn description(loaded: &LoadedNetwork, from: &Path, config: Value) -> CheckpointMeta {
    match &loaded.meta {
        Some(meta) => CheckpointMeta { config, ..meta.clone() },
        None => {
            let imported = Imported {
                file: from.file_name().map(PathBuf::from).unwrap_or_default(),
                member: loaded.report.member.clone(),
                key_form: loaded.report.key_form.clone(),
            };
            let seed = config["experiment"]["seed"].as_u64().unwrap_or(0);
            let meta = CheckpointMeta::of_import(imported, loaded.quantized.clone(), seed, config);
            // A file must not depend on the machine that wrote it.
            CheckpointMeta { num_threads: 0, ..meta }
        }
    }
}

/// Modules whose inputs are quantized, without the quantizers of their weights.
fn with_inputs_only(quantized: &[QuantizedModule]) -> Vec<QuantizedModule> {
    let inputs = quantized.iter().filter(|module| module.claim.activations.is_some());
    let without_weights = |claim: &Claim| Claim { weights: None, ..claim.clone() };
    inputs.map(|m| QuantizedModule { claim: without_weights(&m.claim), ..m.clone() }).collect()
}

/// The state of the quantizers of inputs.
fn input_state(net: &PoseNet, loaded: &LoadedNetwork) -> Result<Vec<(String, Tensor)>> {
    for quantizer in &loaded.quantizers {
        for site in quantizer.report() {
            if let Some(inputs) = site.activations {
                ensure!(
                    inputs.quantizing || inputs.max_level == Some(0.0),
                    "the inputs of {} are not quantized yet, finish the stage of {} first",
                    site.name,
                    quantizer.module()
                );
            }
        }
    }
    let all: Vec<(String, Tensor)> = loaded.quantizers.iter().flat_map(|q| q.state()).collect();
    // Quantizers of inputs alone, in a network of their own, say which part of the state is theirs.
    let twin = PoseNet::blank(net.config(), net.num_classes(), Device::Cpu)?;
    let mut names = Vec::new();
    for module in with_inputs_only(&loaded.quantized) {
        names.extend(module.attach(&twin.store)?.state().into_iter().map(|(name, _)| name));
    }
    Ok(all.into_iter().filter(|(name, _)| names.contains(name)).collect())
}

/// A packed file as the network's tensors, with what the file says of itself.
pub(super) struct PackedState {
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
pub(super) fn read(path: &Path) -> Result<PackedState> {
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
pub(super) fn meta_of(path: &Path) -> Result<CheckpointMeta> {
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
pub(super) fn attach_inputs(
    state: &PackedState,
    store: &Store,
) -> Result<Vec<crate::quant::ModuleQuantizer>> {
    attach_all(&with_inputs_only(&state.meta.quantized), store, &state.inputs)
}

/// A packed file without its numbers: tensors, description, and what is to be said of its bytes.
pub(super) struct PackedContents {
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
pub(super) fn describe(path: &Path) -> Result<PackedContents> {
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
