//! What a PyTorch file says, in plain Rust: values, and where the numbers of its tensors lie.
//!
//! No tensor is made here, so that this part can be fuzzed by itself. Start at [`parse`]. Nothing is allocated by a
//! number that the file merely claims, and nothing in it can run: [`pickle`] knows data only.

mod archive;
mod data;
mod globals;
mod legacy;
mod machine;
mod node;
mod pickle;
mod storage;
mod tensor;
mod tree;

use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail, ensure};

pub use data::Data;
pub use globals::Element;
pub use storage::{Storage, View};

use crate::io::mistaken;

/// Bytes that the tensors of any file may take.
const BASE_TENSOR_BYTES: u64 = 64 << 20;
/// Bytes that tensors may take for each byte of the file, besides: views that overlap, archives that are compressed.
const TENSOR_BYTES_PER_BYTE: u64 = 16;

/// The order of the bytes of a number in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    Little,
    Big,
}

/// A file whose values were read, and whose numbers were not.
#[derive(Debug)]
pub struct Parsed<R> {
    /// The value; a tensor is a place in `views`.
    pub value: Data<usize>,
    /// The tensors.
    pub views: Vec<View>,
    /// The storages they are parts of.
    pub storages: Vec<Storage>,
    /// The storages in the order in which they lie in the file.
    pub in_order: Vec<usize>,
    /// The order of bytes in the storages.
    pub order: Order,
    source: Source<R>,
}

#[derive(Debug)]
enum Source<R> {
    Zip(archive::Archive<R>),
    Legacy(legacy::Legacy<R>),
}

impl<R> Parsed<R> {
    fn new(
        value: Data<usize>,
        tables: storage::Tables,
        places: Vec<u64>,
        order: Order,
        source: Source<R>,
    ) -> Self {
        let mut in_order: Vec<usize> = (0..places.len()).collect();
        in_order.sort_by_key(|&i| places[i]);
        let storage::Tables { storages, views, .. } = tables;
        Self { value, views, storages, in_order, order, source }
    }
}

impl<R: Read + Seek> Parsed<R> {
    /// Fills `bytes`, which must have the size of the storage.
    ///
    /// # Errors
    /// If the file ends early, or the bytes do not have the archive's checksum.
    pub fn read_storage(&mut self, storage: usize, bytes: &mut [u8]) -> Result<()> {
        let Storage { key, num_bytes, .. } = &self.storages[storage];
        ensure!(bytes.len() as u64 == *num_bytes, "storage {key} has {num_bytes} bytes");
        let read = match &mut self.source {
            Source::Zip(archive) => archive.read_storage(storage, bytes),
            Source::Legacy(legacy) => legacy.read_storage(storage, bytes),
        };
        read.with_context(|| format!("storage {key}: the file is damaged"))
    }
}

/// Reads everything of a PyTorch file but the numbers.
///
/// # Errors
/// If it is none, is truncated or damaged, names anything that is not data, or its tensors would take memory out of
/// all proportion to it.
pub fn parse<R: Read + Seek>(mut reader: R) -> Result<Parsed<R>> {
    let file_bytes = reader.seek(SeekFrom::End(0))?;
    reader.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    reader.by_ref().take(HEAD_BYTES).read_to_end(&mut head)?;
    reader.seek(SeekFrom::Start(0))?;
    refuse_others(&head, file_bytes)?;
    let parsed = match head.starts_with(b"PK") {
        true => archive::parse(reader, file_bytes),
        false => legacy::parse(reader, file_bytes),
    }?;
    check_memory(&parsed, file_bytes)?;
    Ok(parsed)
}

/// Refuses files whose tensors are out of all proportion to them.
fn check_memory<R>(parsed: &Parsed<R>, file_bytes: u64) -> Result<()> {
    let limit = file_bytes.saturating_mul(TENSOR_BYTES_PER_BYTE).saturating_add(BASE_TENSOR_BYTES);
    let sum = |sum: u64, bytes: Option<u64>| sum.checked_add(bytes?);
    let mut sizes = parsed.storages.iter().map(|storage| Some(storage.num_bytes));
    let stored = sizes.try_fold(0, sum).unwrap_or(u64::MAX);
    ensure!(
        stored <= limit,
        "its storages claim {stored} bytes, and the file has {file_bytes}: it is compressed too far, or damaged"
    );
    let shown = parsed.views.iter().map(View::num_bytes).try_fold(0, sum).unwrap_or(u64::MAX);
    ensure!(
        shown <= limit,
        "its {} tensors would take {shown} bytes, and the file has {file_bytes}: too many of them show the same \
         numbers (expanded or compressed); save contiguous copies",
        parsed.views.len()
    );
    Ok(())
}

const HEAD_BYTES: u64 = 512;

/// Names the other kinds of file that end up here.
fn refuse_others(head: &[u8], file_bytes: u64) -> Result<()> {
    ensure!(!head.is_empty(), "the file is empty");
    if head.get(257..262) == Some(b"ustar") {
        bail!(
            "it is a tar archive, the format of the first versions of PyTorch: if you trust it, convert it in Python, \
             torch.save(torch.load(FILE, weights_only=False), \"weights.pth\")"
        );
    }
    if let Some(what) = mistaken(head) {
        bail!("it {what}");
    }
    if let Some((length, rest)) = head.split_first_chunk::<8>()
        && rest.starts_with(b"{\"")
        && u64::from_le_bytes(*length) < file_bytes
    {
        bail!("it is a safetensors file: give it a name that ends in .safetensors");
    }
    ensure!(
        head.starts_with(b"PK") || head[0] == 0x80,
        "it begins with neither a zip archive nor a pickle: it is not a file of torch.save"
    );
    Ok(())
}
