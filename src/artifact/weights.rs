//! The one entrance for weights of any file: what kind it is, its tensors into a network, and a report of what was
//! found.
//!
//! [`load`] reads a file (by [`kind_of`]), takes the wrappers off its keys, joins doubled tensors, assembles the
//! weights of published INQ layers (`weights/unwrap.rs`), copies what fits (`weights/assign.rs`), and gives quantized
//! layers their quantizers (`weights/grid.rs`).

mod assign;
mod grid;
mod prefix;
mod pytorch;
mod report;
mod state;
mod unwrap;

use std::path::Path;

use anyhow::{Context, Result, bail};
use tch::Tensor;

pub(crate) use assign::dtype;
pub use grid::recognise_grid;
pub use report::{Conversion, GridReport, InqLayerReport, LoadReport, OtherMember, Unmatched};
pub use unwrap::assembled_weight;

use super::kind::{FileKind, Reading, Strictness, kind_of};
use super::packed;
use crate::io::tensors;
use crate::nn::Network;
use crate::quant::ModuleQuantizer;
use crate::topology::{self, keys};
use crate::train::{Checkpoint, CheckpointMeta, QuantizedModule, attach_all};
use state::StateDict;

/// A network's weights were loaded: what came with them.
pub struct LoadedNetwork {
    /// The kind of the file.
    pub kind: FileKind,
    /// Position and provenance; `None` for all but checkpoints of mqat and packed files.
    pub meta: Option<CheckpointMeta>,
    /// What built the quantizers, in their order.
    pub quantized: Vec<QuantizedModule>,
    /// The quantizers that are plugged into the network now, in the order of the flow; those of inputs alone for packed
    /// files, whose weights lie on their levels.
    pub quantizers: Vec<ModuleQuantizer>,
    /// Whether the weights are the moving average that a checkpoint holds beside the last ones: validation measured it.
    pub averaged: bool,
    /// What matched and what did not.
    pub report: LoadReport,
}

/// What a file says of itself beside its weights; `None` for all but checkpoints of mqat and packed files.
///
/// # Errors
/// If the file cannot be read or is of no known kind.
pub fn meta_of(path: &Path) -> Result<Option<CheckpointMeta>> {
    match kind_of(path)? {
        FileKind::Checkpoint => CheckpointMeta::of_file(path),
        FileKind::Packed => packed::meta_of(path).map(Some),
        FileKind::Safetensors | FileKind::PyTorch | FileKind::Onnx => Ok(None),
    }
}

/// Loads the weights of a file of any kind, and the quantizers it knows of, into a network without quantizers, for
/// evaluation: stored weights become those that the network computes with.
///
/// Of a checkpoint with a moving average of the weights that is taken, as validation did. Momentum and position are
/// left out.
///
/// # Errors
/// If the file is broken or, as far as `strictness` asks, does not fit the network, which is then unchanged.
pub fn load(path: &Path, net: &dyn Network, reading: impl Into<Reading>) -> Result<LoadedNetwork> {
    let mut loaded = load_as_stored(path, net, reading)?;
    for quantizer in &mut loaded.quantizers {
        quantizer.convert().with_context(|| format!("loading {}", path.display()))?;
    }
    Ok(loaded)
}

/// As [`load`], with the weights that training goes on from where a method has both.
///
/// # Errors
/// As [`load`].
pub(crate) fn load_as_stored(
    path: &Path,
    net: &dyn Network,
    reading: impl Into<Reading>,
) -> Result<LoadedNetwork> {
    let Reading { strictness, strip_prefix } = reading.into();
    let kind = kind_of(path)?;
    match (kind, strip_prefix) {
        (FileKind::Safetensors | FileKind::PyTorch, prefix) => {
            let mut state = read_state(path)?;
            let doing = || format!("loading {}", path.display());
            let left_out = prefix
                .map_or(Ok(Vec::new()), |p| prefix::take_off_named(&mut state.tensors, &p))
                .with_context(doing)?;
            if !left_out.is_empty() {
                tracing::warn!(
                    "{}: {} tensors outside --strip-prefix are left out: {}",
                    path.display(),
                    left_out.len(),
                    report::first_few(&left_out.iter().map(String::as_str).collect::<Vec<_>>(), 3)
                );
            }
            load_state(state, kind, net, strictness)
        }
        (FileKind::Onnx, _) => bail!(
            "{} is an ONNX file, whose weights are not loaded into a network: name the file of weights that it was \
             exported from",
            path.display()
        ),
        (_, Some(_)) => {
            bail!("{} has this program's own keys: leave --strip-prefix out", path.display())
        }
        (FileKind::Checkpoint, None) => load_checkpoint(path, net, strictness),
        (FileKind::Packed, None) => load_packed(path, net, strictness),
    }
}

/// Reads the state dict of a file of another program.
pub(crate) fn read_state(path: &Path) -> Result<StateDict<'_>> {
    match kind_of(path)? {
        FileKind::PyTorch => pytorch::read(path),
        _ => Ok(StateDict { tensors: tensors::read(path)?.tensors, ..StateDict::of(path) }),
    }
}

/// The INQ layers of a state dict, and what is to be known about its keys.
pub(crate) fn inq_layers(mut state: StateDict) -> Result<(Vec<InqLayerReport>, Vec<String>)> {
    let prefix = prefix::take_off(&mut state.tensors);
    let unwrapped = unwrap::unwrap(state.tensors, Strictness::Loose)
        .with_context(|| format!("reading {}", state.path.display()))?;
    let mut notes = unwrapped.notes;
    notes.extend(prefix.note());
    Ok((unwrapped.inq.iter().map(grid::describe).collect(), notes))
}

/// The topology of the network that a file without a config holds, told by its tensors; `None` if it is not one with a
/// name.
///
/// # Errors
/// If the file cannot be read.
pub(crate) fn recognised_topology(path: &Path) -> Result<Option<&'static str>> {
    let tensors: Vec<(String, Vec<i64>)> = match kind_of(path)? {
        FileKind::Safetensors => {
            let head = tensors::read_head(path)?;
            head.tensors.into_iter().map(|t| (t.name, t.shape)).collect()
        }
        FileKind::PyTorch => {
            read_state(path)?.tensors.into_iter().map(|(name, t)| (name, t.size())).collect()
        }
        FileKind::Checkpoint | FileKind::Packed | FileKind::Onnx => return Ok(None),
    };
    let sizes = tensors.iter().rev().map(|(name, size)| (keys::bare(name), size.clone())).collect();
    Ok(topology::recognise(&sizes))
}

/// The form of keys, for people.
pub(crate) fn key_form<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    unwrap::key_form(keys)
}

/// A checkpoint of mqat: its quantizers come from its own description.
fn load_checkpoint(
    path: &Path,
    net: &dyn Network,
    strictness: Strictness,
) -> Result<LoadedNetwork> {
    let Checkpoint { meta, weights, quant, ema, .. } = Checkpoint::read(path)?;
    let averaged = !ema.is_empty();
    let weights = if averaged { ema } else { weights };
    let mut report = LoadReport {
        file: path.to_owned(),
        key_form: unwrap::key_form(weights.iter().map(|(name, _)| name.as_str())),
        ..LoadReport::default()
    };
    if averaged {
        report.notes.push(
            "the weights are the moving average (training.ema), as validation measured them"
                .to_owned(),
        );
    }
    assign::assign(net, &weights, strictness, &mut report)?;
    let quantizers = attach_all(&meta.quantized, net.store(), &quant)
        .with_context(|| format!("loading checkpoint {}", path.display()))?;
    let quantized = meta.quantized.clone();
    Ok(LoadedNetwork {
        kind: FileKind::Checkpoint,
        meta: Some(meta),
        quantized,
        quantizers,
        averaged,
        report,
    })
}

/// Loads a state dict of another program, with the keys that it has there, into a network without quantizers.
///
/// # Errors
/// As [`load`].
pub fn load_state_dict(
    state: Vec<(String, Tensor)>,
    net: &dyn Network,
    strictness: Strictness,
) -> Result<LoadedNetwork> {
    let state = StateDict { tensors: state, ..StateDict::of(Path::new("the state dict")) };
    load_state(state, FileKind::PyTorch, net, strictness)
}

/// A packed file: weights on their levels, and the quantizers of inputs.
fn load_packed(path: &Path, net: &dyn Network, strictness: Strictness) -> Result<LoadedNetwork> {
    let packed = packed::read(path)?;
    let mut report = LoadReport {
        file: path.to_owned(),
        key_form: unwrap::key_form(packed.weights.iter().map(|(name, _)| name.as_str())),
        ..LoadReport::default()
    };
    assign::assign(net, &packed.weights, strictness, &mut report)?;
    let quantizers = packed::attach_inputs(&packed, net.store())
        .with_context(|| format!("loading packed file {}", path.display()))?;
    Ok(LoadedNetwork {
        kind: FileKind::Packed,
        quantized: packed.meta.quantized.clone(),
        meta: Some(packed.meta),
        quantizers,
        averaged: packed.averaged,
        report,
    })
}

/// A state dict of other programs.
fn load_state(
    mut file: StateDict<'_>,
    kind: FileKind,
    net: &dyn Network,
    strictness: Strictness,
) -> Result<LoadedNetwork> {
    let path = file.path;
    let at = || format!("loading {}", path.display());
    let prefix = prefix::take_off(&mut file.tensors);
    prefix.ensure_one().with_context(at)?;
    let mut tensors = file.tensors;
    if let Some(module) = keys::module_alone(tensors.iter().map(|(key, _)| key.as_str())) {
        tensors.iter_mut().for_each(|(key, _)| key.insert_str(0, module));
    }
    let unwrapped = unwrap::unwrap(tensors, strictness).with_context(at)?;
    let mut report = LoadReport {
        file: file.path.to_owned(),
        member: file.member.clone(),
        other_members: file.other_members.clone(),
        key_form: unwrapped.key_form,
        num_doubled: unwrapped.num_doubled,
        left_over: unwrapped.left_over,
        notes: prefix.note().into_iter().chain(unwrapped.notes).collect(),
        ..LoadReport::default()
    };
    assign::assign(net, &unwrapped.tensors, strictness, &mut report)?;
    let (quantized, quantizers) = grid::plug(net, &unwrapped.inq, &mut report).with_context(at)?;
    Ok(LoadedNetwork { kind, meta: None, quantized, quantizers, averaged: false, report })
}
