//! The zip format (PyTorch 1.6 and later, and as an option from 1.4): `ROOT/data.pkl`, `ROOT/data/KEY`.

use std::io::{Read, Seek};

use anyhow::{Context, Result, bail, ensure};
use zip::read::{ArchiveOffset, Config, ZipFile, ZipFileEntry, ZipReadOptions};
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{self, MAX_PICKLE_BYTES};
use super::storage::Tables;
use super::tree::tree;
use super::{Order, Parsed, Source};

const PICKLE: &str = "data.pkl";
/// The newest version of the format that is known; PyTorch 2.11 writes 3.
const NEWEST_VERSION: u64 = 10;
/// Bytes a pickle may have however small the file, and for each byte of the file.
const PICKLE_BASE_BYTES: u64 = 1 << 20;
const PICKLE_BYTES_PER_BYTE: u64 = 32;

/// The archive and, for each storage, its record.
#[derive(Debug)]
pub(super) struct Archive<R> {
    zip: ZipArchive<R>,
    records: Vec<usize>,
}

/// Reads everything of a zip file but the storages' bytes.
pub(super) fn parse<R: Read + Seek>(reader: R, file_bytes: u64) -> Result<Parsed<R>> {
    // Offsets count from the start of the file. To search for the start instead goes wrong on PyTorch's own files:
    // between the directory and the end record they have 76 bytes (zip64), which the search takes for the first
    // entry if that has a name of 30 bytes.
    let config = Config { archive_offset: ArchiveOffset::Known(0) };
    let mut zip = ZipArchive::with_config(config, reader).map_err(|error| {
        anyhow::anyhow!(
            "the zip archive cannot be read ({error}): the file is truncated or damaged"
        )
    })?;
    let root = root_of(&zip)?;
    if let Some(version) = small_text(&mut zip, &format!("{root}version"))? {
        let known = version.parse::<u64>().is_ok_and(|v| v <= NEWEST_VERSION);
        ensure!(known, "its format has version {version:?}; {NEWEST_VERSION} is the newest known");
    }
    let order = match small_text(&mut zip, &format!("{root}byteorder"))?.as_deref() {
        None | Some("little") => Order::Little,
        Some("big") => Order::Big,
        Some(other) => bail!("its byte order is {other:?}, expected little or big"),
    };
    let limit = file_bytes.saturating_mul(PICKLE_BYTES_PER_BYTE).saturating_add(PICKLE_BASE_BYTES);
    let name = format!("{root}{PICKLE}");
    let bytes = record(&mut zip, &name, limit.min(MAX_PICKLE_BYTES)).context(name)?;
    let mut tables = Tables::default();
    let pickled = pickle::run(&bytes, &mut tables).map_err(|f| f.error).context(PICKLE)?;
    let value = tree(&pickled).context(PICKLE)?;
    let (mut records, mut places) = (Vec::new(), Vec::new());
    for storage in &tables.storages {
        let at = zip.index_for_name(&format!("{root}data/{}", storage.key));
        let at = at.with_context(|| {
            format!("storage {:?} is not in the archive: the file is damaged", storage.key)
        })?;
        let entry = zip.by_index_data(at)?;
        let in_record = checked_size(&entry)?;
        ensure!(
            in_record == storage.num_bytes,
            "storage {} has {in_record} bytes in the archive, expected {}: the file is damaged",
            storage.key,
            storage.num_bytes
        );
        places.push(entry.header_start());
        records.push(at);
    }
    let source = Source::Zip(Archive { zip, records });
    Ok(Parsed::new(value, tables, places, order, source))
}

impl<R: Read + Seek> Archive<R> {
    /// Fills `bytes`, which has the size of the storage.
    pub(super) fn read_storage(&mut self, storage: usize, bytes: &mut [u8]) -> Result<()> {
        let mut record = open(&mut self.zip, self.records[storage])?;
        record.read_exact(bytes)?;
        finish(&mut record)
    }
}

/// The one folder that holds a `data.pkl`, with its slash.
fn root_of<R: Read + Seek>(zip: &ZipArchive<R>) -> Result<String> {
    let mut roots = Vec::new();
    for name in zip.file_names_raw() {
        let root = name.strip_suffix(PICKLE.as_bytes());
        if let Some(root) = root.filter(|root| root.is_empty() || root.ends_with(b"/")) {
            roots.push(std::str::from_utf8(root).context("a name in the archive is not UTF-8")?);
        }
    }
    let root = match roots[..] {
        [root] => root.to_owned(),
        [] => bail!("it is a zip archive without data.pkl, so no file of torch.save"),
        _ => bail!("{} records of the archive are named data.pkl, expected one", roots.len()),
    };
    if zip.index_for_name(&format!("{root}constants.pkl")).is_some() {
        bail!(
            "it is a TorchScript archive, which holds a program: save its weights in Python, \
             torch.save(torch.jit.load(FILE).state_dict(), \"weights.pth\")"
        );
    }
    Ok(root)
}

/// A record of a few bytes, trimmed; `None` if there is none.
fn small_text<R: Read + Seek>(zip: &mut ZipArchive<R>, name: &str) -> Result<Option<String>> {
    const MAX_BYTES: u64 = 64;
    if zip.index_for_name(name).is_none() {
        return Ok(None);
    }
    let bytes = record(zip, name, MAX_BYTES).with_context(|| name.to_owned())?;
    Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned()))
}

fn record<R: Read + Seek>(zip: &mut ZipArchive<R>, name: &str, limit: u64) -> Result<Vec<u8>> {
    let at = zip.index_for_name(name).context("the record is missing")?;
    let num_bytes = checked_size(&zip.by_index_data(at)?)?;
    ensure!(num_bytes <= limit, "the record has {num_bytes} bytes, more than the {limit} expected");
    let mut record = open(zip, at)?;
    // Grows with what is there, whatever the archive claims.
    let mut bytes = Vec::new();
    record.by_ref().take(num_bytes).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 == num_bytes, "{} bytes, expected {num_bytes}", bytes.len());
    finish(&mut record)?;
    Ok(bytes)
}

/// A record to read from. PyTorch can be told to write no checksums, and leaves zeros then.
fn open<R: Read + Seek>(zip: &mut ZipArchive<R>, at: usize) -> Result<ZipFile<'_, R>> {
    let unchecked = zip.by_index_data(at)?.crc32() == 0;
    Ok(zip.by_index_with_options(at, ZipReadOptions::new().ignore_crc32(unchecked))?)
}

/// The size of a record that can be read.
fn checked_size(entry: &ZipFileEntry) -> Result<u64> {
    ensure!(!entry.encrypted(), "the archive is encrypted");
    let method = entry.compression();
    ensure!(
        matches!(method, CompressionMethod::Stored | CompressionMethod::Deflated),
        "a record is compressed by {method}, expected none or deflate"
    );
    Ok(entry.size())
}

/// Reads the end of a record, where its checksum is compared.
fn finish(record: &mut impl Read) -> Result<()> {
    let more = record.read(&mut [0])?;
    ensure!(more == 0, "the record is longer than the archive says: the file is damaged");
    Ok(())
}
