//! The one entrance for weights of any file: what kind it is, its tensors into a network, and a report of what was
//! found.
//!
//! [`load`] reads a file (by [`kind_of`]), takes the wrappers off its keys, joins doubled tensors, assembles the
//! weights of published INQ layers (`weights/unwrap.rs`), copies what fits (`weights/assign.rs`), and gives quantized
//! layers their quantizers (`weights/grid.rs`).

mod assign;
mod grid;
mod pytorch;
mod report;
mod unwrap;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tch::Tensor;

pub(super) use assign::{dtype, num_classes_of, shape_of, topology_of};
pub use grid::recognise_grid;
pub use report::{Conversion, GridReport, InqLayerReport, LoadReport, OtherMember, Unmatched};
pub use unwrap::assembled_weight;

use crate::export::onnx::looks_like_onnx;
use crate::export::packed;
use crate::io::tensors;
use crate::model::PoseNet;
use crate::quant::ModuleQuantizer;
use crate::train::{Checkpoint, CheckpointMeta, QuantizedModule, attach_all};

/// What kind of file holds weights: told by its first bytes, never by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A checkpoint of mqat: safetensors with the position in its metadata.
    Checkpoint,
    /// Safetensors without it: weights alone.
    Safetensors,
    /// A file of `torch.save`, zip or legacy.
    PyTorch,
    /// Codes of low bits.
    Packed,
}

impl FileKind {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint of mqat (safetensors)",
            Self::Safetensors => "safetensors",
            Self::PyTorch => "PyTorch",
            Self::Packed => "packed",
        }
    }
}

/// How much of a network a file must fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Every tensor that an output depends on, and nothing unknown may be left over.
    Strict,
    /// What fits is taken, the rest keeps its initial values.
    Loose,
}

impl Strictness {
    /// Loose if asked for.
    pub fn loose(asked: bool) -> Self {
        if asked { Self::Loose } else { Self::Strict }
    }
}

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

/// Tells the kind of a file by its first bytes.
///
/// # Errors
/// If the file cannot be read, or has none of the known beginnings.
pub fn kind_of(path: &Path) -> Result<FileKind> {
    let at = path.display();
    let mut file = File::open(path).with_context(|| format!("opening {at}"))?;
    let mut head = Vec::with_capacity(16);
    file.by_ref().take(16).read_to_end(&mut head).with_context(|| format!("reading {at}"))?;
    // A safetensors header begins after its length, and with a brace; no pickle or zip has one there.
    if head.get(8) == Some(&b'{') {
        return Ok(match CheckpointMeta::of_file(path)? {
            Some(_) => FileKind::Checkpoint,
            None => FileKind::Safetensors,
        });
    }
    if head.starts_with(&packed::MAGIC) {
        return Ok(FileKind::Packed);
    }
    if looks_like_onnx(&head) {
        bail!(
            "{at} is an ONNX file, which `mqat test`, `mqat verify` and `mqat bench engine` run; name the file of \
             weights that it was exported from"
        );
    }
    let is_zip = head.starts_with(b"PK\x03\x04");
    let is_pickle = matches!(head[..], [0x80, 2..=5, ..]);
    ensure!(
        is_zip || is_pickle,
        "{at} is no file of weights: expected a checkpoint of mqat, safetensors, a packed file or \
         a PyTorch file (zip or legacy)"
    );
    Ok(FileKind::PyTorch)
}

/// What a file says of itself beside its weights; `None` for all but checkpoints of mqat and packed files.
///
/// # Errors
/// If the file cannot be read or is of no known kind.
pub fn meta_of(path: &Path) -> Result<Option<CheckpointMeta>> {
    match kind_of(path)? {
        FileKind::Checkpoint => CheckpointMeta::of_file(path),
        FileKind::Packed => super::packed::meta_of(path).map(Some),
        FileKind::Safetensors | FileKind::PyTorch => Ok(None),
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
pub fn load(path: &Path, net: &PoseNet, strictness: Strictness) -> Result<LoadedNetwork> {
    let mut loaded = load_as_stored(path, net, strictness)?;
    for quantizer in &mut loaded.quantizers {
        quantizer.convert().with_context(|| format!("loading {}", path.display()))?;
    }
    Ok(loaded)
}

/// As [`load`], with the weights that training goes on from where a method has both.
///
/// # Errors
/// As [`load`].
pub(super) fn load_as_stored(
    path: &Path,
    net: &PoseNet,
    strictness: Strictness,
) -> Result<LoadedNetwork> {
    let kind = kind_of(path)?;
    match kind {
        FileKind::Checkpoint => load_checkpoint(path, net, strictness),
        FileKind::Safetensors | FileKind::PyTorch => {
            load_state(read_state(path)?, kind, net, strictness)
        }
        FileKind::Packed => load_packed(path, net, strictness),
    }
}

/// A state dict as it lies in a file.
pub(super) struct StateDict<'a> {
    path: &'a Path,
    /// Its tensors, in the file's order.
    pub tensors: Vec<(String, Tensor)>,
    /// The part of a nested file that it is.
    pub member: Option<String>,
    /// The other parts.
    pub other_members: Vec<OtherMember>,
}

impl<'a> StateDict<'a> {
    fn of(path: &'a Path) -> Self {
        Self { path, tensors: Vec::new(), member: None, other_members: Vec::new() }
    }
}

/// Reads the state dict of a file of another program.
pub(super) fn read_state(path: &Path) -> Result<StateDict<'_>> {
    match kind_of(path)? {
        FileKind::PyTorch => pytorch::read(path),
        _ => Ok(StateDict { tensors: tensors::read(path)?.tensors, ..StateDict::of(path) }),
    }
}

/// The INQ layers of a state dict, and what is to be known about its keys.
pub(super) fn inq_layers(state: StateDict) -> Result<(Vec<InqLayerReport>, Vec<String>)> {
    let unwrapped = unwrap::unwrap(state.tensors, Strictness::Loose)
        .with_context(|| format!("reading {}", state.path.display()))?;
    Ok((unwrapped.inq.iter().map(grid::describe).collect(), unwrapped.notes))
}

/// The form of keys, for people.
pub(super) fn key_form<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    unwrap::key_form(keys)
}

/// A checkpoint of mqat: its quantizers come from its own description.
fn load_checkpoint(path: &Path, net: &PoseNet, strictness: Strictness) -> Result<LoadedNetwork> {
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
    let quantizers = attach_all(&meta.quantized, &net.store, &quant)
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
    net: &PoseNet,
    strictness: Strictness,
) -> Result<LoadedNetwork> {
    let state = StateDict { tensors: state, ..StateDict::of(Path::new("the state dict")) };
    load_state(state, FileKind::PyTorch, net, strictness)
}

/// A packed file: weights on their levels, and the quantizers of inputs.
fn load_packed(path: &Path, net: &PoseNet, strictness: Strictness) -> Result<LoadedNetwork> {
    let packed = super::packed::read(path)?;
    let mut report = LoadReport {
        file: path.to_owned(),
        key_form: unwrap::key_form(packed.weights.iter().map(|(name, _)| name.as_str())),
        ..LoadReport::default()
    };
    assign::assign(net, &packed.weights, strictness, &mut report)?;
    let quantizers = super::packed::attach_inputs(&packed, &net.store)
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
    file: StateDict<'_>,
    kind: FileKind,
    net: &PoseNet,
    strictness: Strictness,
) -> Result<LoadedNetwork> {
    let at = || format!("loading {}", file.path.display());
    let unwrapped = unwrap::unwrap(file.tensors, strictness).with_context(at)?;
    let mut report = LoadReport {
        file: file.path.to_owned(),
        member: file.member.clone(),
        other_members: file.other_members.clone(),
        key_form: unwrapped.key_form,
        num_doubled: unwrapped.num_doubled,
        left_over: unwrapped.left_over,
        notes: unwrapped.notes,
        ..LoadReport::default()
    };
    assign::assign(net, &unwrapped.tensors, strictness, &mut report)?;
    let (quantized, quantizers) = grid::plug(net, &unwrapped.inq, &mut report).with_context(at)?;
    Ok(LoadedNetwork { kind, meta: None, quantized, quantizers, averaged: false, report })
}
