//! What kind of file holds weights, and how much of a network it must fill.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::export::onnx::looks_like_onnx;
use crate::export::packed;
use crate::io::{mistaken_for_a_file, open_file};
use crate::train::CheckpointMeta;

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

/// How a file of weights is taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// How much of the network it must fill.
    pub strictness: Strictness,
    /// What stands before the keys of the network, where a file of another program holds several; `None` takes off
    /// what they all share.
    pub strip_prefix: Option<String>,
}

impl Reading {
    /// As options ask for.
    pub fn new(is_loose: bool, strip_prefix: Option<String>) -> Self {
        Self { strictness: Strictness::loose(is_loose), strip_prefix }
    }
}

impl From<Strictness> for Reading {
    fn from(strictness: Strictness) -> Self {
        Self { strictness, strip_prefix: None }
    }
}

/// Tells the kind of a file by its first bytes.
///
/// # Errors
/// If the file cannot be read, or has none of the known beginnings.
pub fn kind_of(path: &Path) -> Result<FileKind> {
    let at = path.display();
    let mut file = open_file(path)?;
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
    if let Some(what) = mistaken_for_a_file(path)? {
        bail!("{at} {what}");
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
