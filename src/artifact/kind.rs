//! What kind of file holds a network, and how much of a network it must fill.

use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::export::onnx::looks_like_onnx;
use crate::export::packed;
use crate::io::{mistaken_for_a_file, open_file};
use crate::train::CheckpointMeta;

/// What kind of file holds a network: told by its first bytes; an ONNX file by its name as well.
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
    /// A graph for ONNX Runtime.
    Onnx,
}

impl FileKind {
    /// For people.
    pub fn text(self) -> &'static str {
        match self {
            Self::Checkpoint => "checkpoint of mqat (safetensors)",
            Self::Safetensors => "safetensors",
            Self::PyTorch => "PyTorch",
            Self::Packed => "packed",
            Self::Onnx => "ONNX",
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
    if is_onnx(path)? {
        return Ok(FileKind::Onnx);
    }
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
    if let Some(what) = mistaken_for_a_file(path)? {
        bail!("{at} {what}");
    }
    let is_zip = head.starts_with(b"PK\x03\x04");
    let is_pickle = matches!(head[..], [0x80, 2..=5, ..]);
    ensure!(
        is_zip || is_pickle,
        "{at} is not a file of weights: expected a checkpoint of mqat, safetensors, a packed file, \
         a PyTorch file (zip or legacy) or an ONNX file"
    );
    Ok(FileKind::PyTorch)
}

/// Whether a file is an ONNX model, by its name or first bytes.
///
/// # Errors
/// If it cannot be opened.
pub fn is_onnx(file: &Path) -> Result<bool> {
    let at = file.display();
    let mut head = Vec::with_capacity(3);
    let opened = open_file(file)?;
    opened.take(3).read_to_end(&mut head).with_context(|| format!("reading {at}"))?;
    Ok(file.extension().is_some_and(|e| e == "onnx") || looks_like_onnx(&head))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn onnx_files_are_known_by_name_or_first_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            is_onnx(&path).unwrap()
        };
        assert!(check("a.onnx", b""));
        assert!(check("b.bin", &[8, 8, 18, 4, b'm']));
        assert!(!check("c.pth", b"PK\x03\x04"));
        assert!(!check("d.pth", &[0x80, 2, 0x8a]));
        assert!(!check("e.safetensors", &[8, 1, 0, 0, 0, 0, 0, 0, b'{']));
        assert!(is_onnx(&folder.path().join("missing")).is_err());
    }
}
