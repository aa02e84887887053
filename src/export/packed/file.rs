//! Packed files on disk.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::format::{self, Header, PackedHead};
use super::{PackedFile, PackedTensor};
use crate::io::{parse_json, write_atomic};

/// The first bytes of every packed file.
pub const MAGIC: [u8; 8] = [0x93, b'M', b'Q', b'A', b'T', b'\r', b'\n', 0x1a];
/// Version of the layout that this program writes.
const VERSION: u32 = 1;
/// Bytes in front of the header.
const PREAMBLE_BYTES: usize = 32;
/// Longest header that is read.
const MAX_HEADER_BYTES: u64 = 64 << 20;

/// Writes a packed file, [whole or not at all](write_atomic), and returns its size. Equal contents give equal bytes.
///
/// # Errors
/// If two tensors have one name, numbers and shape disagree, a code does not fit, or the file cannot be written.
pub fn write(path: &Path, file: &PackedFile) -> Result<u64> {
    let (entries, parts) = format::lay_out(file)?;
    let data_bytes = parts.iter().map(|part| part.len() as u64).sum();
    let header = Header {
        mqat_version: env!("CARGO_PKG_VERSION").to_owned(),
        data_bytes,
        meta: file.meta.clone(),
        tensors: entries,
    };
    let mut json = serde_json::to_vec(&header).context("writing the header as JSON")?;
    json.resize(json.len().next_multiple_of(8), b' ');
    let header_bytes = json.len() as u64;
    ensure!(header_bytes <= MAX_HEADER_BYTES, "a header of {header_bytes} bytes is too long");
    // Refuses what the reader would: names that occur twice.
    format::plan(header.tensors, usize::try_from(data_bytes)?)?;
    let data_crc = parts.iter().fold(0, |crc, part| crc32c::crc32c_append(crc, part));
    let preamble = preamble(&json, data_crc);
    write_atomic(path, |out| {
        out.write_all(&preamble)?;
        out.write_all(&json)?;
        for part in &parts {
            out.write_all(part)?;
        }
        Ok(())
    })?;
    Ok(PREAMBLE_BYTES as u64 + header_bytes + data_bytes)
}

fn preamble(header: &[u8], data_crc: u32) -> [u8; PREAMBLE_BYTES] {
    let mut bytes = [0; PREAMBLE_BYTES];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[12..20].copy_from_slice(&(header.len() as u64).to_le_bytes());
    bytes[20..24].copy_from_slice(&crc32c::crc32c(header).to_le_bytes());
    bytes[24..28].copy_from_slice(&data_crc.to_le_bytes());
    let own = crc32c::crc32c(&bytes[..28]);
    bytes[28..].copy_from_slice(&own.to_le_bytes());
    bytes
}

/// Reads a packed file.
///
/// # Errors
/// If it cannot be read, is damaged, truncated, of a newer version, or says what cannot be; names the file and, where
/// it is one, the tensor.
pub fn read(path: &Path) -> Result<PackedFile> {
    read_inner(path).with_context(|| format!("reading packed file {}", path.display()))
}

fn read_inner(path: &Path) -> Result<PackedFile> {
    let opened = open(path)?;
    // As long as the file itself, which was compared with the header.
    let mut data = Vec::new();
    let limit = opened.header.data_bytes;
    (&opened.file).take(limit).read_to_end(&mut data)?;
    ensure!(data.len() as u64 == limit, "the file became shorter while it was read");
    check_crc("data", &data, opened.data_crc)?;
    let planned = format::plan(opened.header.tensors, data.len()).context("header")?;
    let tensors: Vec<PackedTensor> =
        planned.into_iter().map(|tensor| tensor.decode(&data)).collect::<Result<_>>()?;
    Ok(PackedFile { meta: opened.header.meta, tensors })
}

/// Reads what a packed file says of itself, without its numbers.
///
/// # Errors
/// As [`read`], but for what only the numbers show.
pub fn read_head(path: &Path) -> Result<PackedHead> {
    let head = || -> Result<PackedHead> {
        let opened = open(path)?;
        let header = opened.header;
        let planned = format::plan(header.tensors, usize::try_from(header.data_bytes)?);
        Ok(PackedHead {
            mqat_version: header.mqat_version,
            header_bytes: opened.header_bytes + PREAMBLE_BYTES as u64,
            meta: header.meta,
            tensors: planned.context("header")?.into_iter().map(|t| t.head()).collect(),
        })
    };
    head().with_context(|| format!("reading the header of packed file {}", path.display()))
}

/// Reads a packed file once and compares its checksums, in little memory.
///
/// # Errors
/// As [`read_head`], and if the numbers are damaged.
pub fn verify(path: &Path) -> Result<()> {
    let whole = || -> Result<()> {
        let opened = open(path)?;
        let mut chunk = vec![0; 1 << 20];
        let (mut crc, mut num_bytes) = (0, 0u64);
        let mut data = (&opened.file).take(opened.header.data_bytes);
        loop {
            let read = data.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            crc = crc32c::crc32c_append(crc, &chunk[..read]);
            num_bytes += read as u64;
        }
        ensure!(num_bytes == opened.header.data_bytes, "the file became shorter while it was read");
        same_crc("data", crc, opened.data_crc)
    };
    whole().with_context(|| format!("reading packed file {}", path.display()))
}

/// A file whose header was read, and which stands at its first byte of data.
struct OpenPackedFile {
    file: File,
    header: Header,
    header_bytes: u64,
    data_crc: u32,
}

fn open(path: &Path) -> Result<OpenPackedFile> {
    let file = crate::io::open_file(path)?;
    let meta = file.metadata()?;
    ensure!(meta.is_file(), "not a file");
    let mut preamble = Vec::with_capacity(PREAMBLE_BYTES);
    (&file).take(PREAMBLE_BYTES as u64).read_to_end(&mut preamble)?;
    ensure!(
        preamble.get(..8) == Some(&MAGIC[..]),
        "it does not begin as a packed file does: `mqat export --format packed` writes them"
    );
    let preamble: [u8; PREAMBLE_BYTES] = preamble.try_into().map_err(|short: Vec<u8>| {
        anyhow::anyhow!(
            "{} bytes, expected at least {PREAMBLE_BYTES}: it is truncated",
            short.len()
        )
    })?;
    let word = |at: usize| u32::from_le_bytes([0, 1, 2, 3].map(|i| preamble[at + i]));
    check_crc("first 28 bytes", &preamble[..28], word(28))?;
    let version = word(8);
    ensure!(
        version == VERSION,
        "its layout has version {version}, and this program reads version {VERSION}: use the mqat that wrote it, or a \
         later one"
    );
    let header_bytes = u64::from(word(12)) | u64::from(word(16)) << 32;
    let available = meta.len().saturating_sub(PREAMBLE_BYTES as u64);
    ensure!(
        header_bytes <= available.min(MAX_HEADER_BYTES),
        "a header of {header_bytes} bytes, of which the file has {available}: it is truncated or damaged"
    );
    let mut json = Vec::new();
    (&file).take(header_bytes).read_to_end(&mut json)?;
    check_crc("header", &json, word(20))?;
    let header: Header = parse_json(&json, "header")?;
    let data_bytes = available - header_bytes;
    ensure!(
        header.data_bytes == data_bytes,
        "{data_bytes} bytes follow the header, expected {}: it is truncated or damaged",
        header.data_bytes
    );
    Ok(OpenPackedFile { file, header, header_bytes, data_crc: word(24) })
}

fn check_crc(what: &str, bytes: &[u8], expected: u32) -> Result<()> {
    same_crc(what, crc32c::crc32c(bytes), expected)
}

fn same_crc(what: &str, crc: u32, expected: u32) -> Result<()> {
    ensure!(
        crc == expected,
        "the CRC-32C of the {what} is {crc:08x}, expected {expected:08x}: the file is damaged"
    );
    Ok(())
}

#[cfg(test)]
#[path = "file_tests.rs"]
mod tests;
