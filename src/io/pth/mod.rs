//! PyTorch files (`.pth`, `.pt`, `.ckpt`), read and written without Python.
//!
//! Start at [`read`]; [`write()`] makes files that PyTorch reads. A file of `torch.save` is a pickle, a program for a small
//! machine that could call anything, and storages of numbers. Our machine builds data only (dicts, lists, tensors) and
//! refuses every other name, so nothing in a file can run; sizes are checked against the file before memory is taken. Both
//! formats are read: the zip archive (PyTorch 1.6 and later) and the older one.

mod make;
mod parse;
mod write;
mod zip_out;

use std::io::{BufReader, Cursor, Read, Seek};
use std::path::Path;

use anyhow::{Context, Result};
use tch::Tensor;

use super::open_file;

pub use parse::Data;
pub use write::write;

/// A value of a PyTorch file.
pub type Value = Data<Tensor>;

/// What a PyTorch file holds.
#[derive(Debug)]
pub struct PthFile {
    /// The value that was saved.
    pub value: Value,
}

/// Reads a PyTorch file, of the zip format or the older one; nothing in it is executed.
///
/// The tensors lie on the CPU, contiguous, without gradients, wherever they lay. Those that showed one whole storage
/// share its memory, as they did; other views are copies.
///
/// # Errors
/// If the file cannot be read, is truncated or damaged, or is none of PyTorch's; if it names a class or function
/// that is not data; if tensors reach beyond their storages, have an element type other than f64, f32, f16, bf16,
/// i64, i32, i16, i8, u8, bool, or would take memory out of all proportion to the file. Names the file and, where it
/// is one, the entry.
pub fn read(path: &Path) -> Result<PthFile> {
    let doing = || format!("reading PyTorch file {}", path.display());
    let file = open_file(path).with_context(doing)?;
    read_from(BufReader::new(file)).with_context(doing)
}

/// Reads a PyTorch file that lies in memory.
///
/// # Errors
/// As [`read`].
pub fn read_bytes(bytes: &[u8]) -> Result<PthFile> {
    read_from(Cursor::new(bytes))
}

fn read_from<R: Read + Seek>(reader: R) -> Result<PthFile> {
    let mut parsed = parse::parse(reader)?;
    let tensors = make::tensors(&mut parsed)?;
    let value = parsed.value.map(&mut |view| tensors[view].shallow_clone());
    Ok(PthFile { value })
}

#[cfg(test)]
mod tests;
