//! The format of PyTorch before 1.6: four pickles (a magic number, the version, facts about the system, the value),
//! one with the storages' keys, and then each storage as its number of elements and its bytes, least byte first.

use std::io::{Read, Seek, SeekFrom};

use anyhow::{Context, Result, bail, ensure};

use super::node::{Node, Pickled};
use super::pickle::{self, Failure, MAX_PICKLE_BYTES};
use super::storage::Tables;
use super::tree::tree;
use super::{Order, Parsed, Source};

/// 0x1950a86a20f9469cfc6c, least byte first, as a pickle holds it.
const MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
const VERSION: i64 = 1001;
/// What is read of a file before it is known how long its pickles are.
const FIRST_BYTES: u64 = 1 << 18;

/// The file and the place of each storage's bytes.
#[derive(Debug)]
pub(super) struct Legacy<R> {
    reader: R,
    places: Vec<u64>,
}

/// Reads everything but the storages' bytes.
pub(super) fn parse<R: Read + Seek>(mut reader: R, file_bytes: u64) -> Result<Parsed<R>> {
    let most = file_bytes.min(MAX_PICKLE_BYTES);
    let mut bytes = Vec::new();
    let mut wanted = FIRST_BYTES;
    let (head, at) = loop {
        reader.seek(SeekFrom::Start(bytes.len() as u64))?;
        let more = wanted.min(most) - bytes.len() as u64;
        reader.by_ref().take(more).read_to_end(&mut bytes)?;
        match pickles(&bytes) {
            Ok(found) => break found,
            Err(failure) if failure.ran_out && wanted < most => wanted *= 2,
            Err(failure) => return Err(failure.error),
        }
    };
    let Head { value, tables, keys } = head;
    let places = find_storages(&mut reader, file_bytes, at as u64, &tables, &keys)?;
    let source = Source::Legacy(Legacy { reader, places: places.clone() });
    Ok(Parsed::new(value, tables, places, Order::Little, source))
}

/// The five pickles.
struct Head {
    value: super::Data<usize>,
    tables: Tables,
    keys: Vec<String>,
}

/// The pickles and the number of bytes they take.
fn pickles(bytes: &[u8]) -> Result<(Head, usize), Failure> {
    let mut at = 0;
    let settled = |error| Failure { ran_out: false, error };
    let magic = next(bytes, &mut at, &mut Tables::default(), "the first pickle")?;
    check_magic(&magic).map_err(settled)?;
    let version = next(bytes, &mut at, &mut Tables::default(), "the version")?;
    check_version(&version).map_err(settled)?;
    next(bytes, &mut at, &mut Tables::default(), "the facts about the system")?;
    let mut tables = Tables::default();
    let value = next(bytes, &mut at, &mut tables, "the main pickle")?;
    let value = tree(&value).context("the main pickle").map_err(settled)?;
    let keys = next(bytes, &mut at, &mut Tables::default(), "the list of storages")?;
    let keys = key_texts(&keys).map_err(settled)?;
    Ok((Head { value, tables, keys }, at))
}

fn next<'a>(
    bytes: &'a [u8],
    at: &mut usize,
    tables: &mut Tables,
    what: &'static str,
) -> Result<Pickled<'a>, Failure> {
    let pickled = pickle::run(&bytes[*at..], tables)
        .map_err(|f| Failure { ran_out: f.ran_out, error: f.error.context(what) })?;
    *at += pickled.num_read;
    Ok(pickled)
}

fn check_magic(pickled: &Pickled) -> Result<()> {
    let root = pickled.node(pickled.root);
    let is_magic = matches!(root, Node::BigInt(span) if *pickled.span(*span) == MAGIC);
    ensure!(
        is_magic,
        "it begins with a pickle of {}, expected PyTorch's magic number: it is not a file of torch.save",
        root.type_name()
    );
    Ok(())
}

fn check_version(pickled: &Pickled) -> Result<()> {
    match pickled.node(pickled.root) {
        Node::Int(VERSION) => Ok(()),
        Node::Int(other) => bail!("its format has version {other}, expected {VERSION}"),
        other => bail!("its version is {}, expected {VERSION}", other.type_name()),
    }
}

fn key_texts(pickled: &Pickled) -> Result<Vec<String>> {
    let Node::List(items) = pickled.node(pickled.root) else {
        bail!("the list of storages is {}", pickled.node(pickled.root).type_name());
    };
    let text = |&item: &u32| match pickled.node(item) {
        Node::Str(span) => Ok(pickled.text(*span).to_owned()),
        Node::Int(key) => Ok(key.to_string()),
        other => bail!("the key of a storage is {}", other.type_name()),
    };
    items.iter().map(text).collect()
}

/// Walks over the storages, and returns where the bytes of each begin.
fn find_storages<R: Read + Seek>(
    reader: &mut R,
    file_bytes: u64,
    mut at: u64,
    tables: &Tables,
    keys: &[String],
) -> Result<Vec<u64>> {
    let mut places = vec![None; tables.storages.len()];
    for key in keys {
        let found = tables.find(key).with_context(|| format!("storage {key:?} has no tensor"))?;
        let storage = &tables.storages[found];
        let mut count = [0; 8];
        reader.seek(SeekFrom::Start(at))?;
        let doing = || format!("storage {key}: the file is truncated");
        reader.read_exact(&mut count).with_context(doing)?;
        let count = i64::from_le_bytes(count);
        ensure!(
            u64::try_from(count).ok().and_then(|n| n.checked_mul(storage.element_size))
                == Some(storage.num_bytes),
            "storage {key} has {count} elements of {} bytes, expected {} bytes: the file is damaged",
            storage.element_size,
            storage.num_bytes
        );
        at += 8;
        ensure!(
            storage.num_bytes <= file_bytes.saturating_sub(at),
            "storage {key} needs {} bytes and {} are left: the file is truncated",
            storage.num_bytes,
            file_bytes.saturating_sub(at)
        );
        ensure!(places[found].replace(at).is_none(), "storage {key} is there twice");
        at += storage.num_bytes;
    }
    let all: Option<Vec<u64>> = places.iter().copied().collect();
    all.with_context(|| {
        let missing = places.iter().position(Option::is_none).unwrap_or(0);
        format!("storage {:?} is missing: the file is damaged", tables.storages[missing].key)
    })
}

impl<R: Read + Seek> Legacy<R> {
    /// Fills `bytes`, which has the size of the storage.
    pub(super) fn read_storage(&mut self, storage: usize, bytes: &mut [u8]) -> Result<()> {
        self.reader.seek(SeekFrom::Start(self.places[storage]))?;
        Ok(self.reader.read_exact(bytes)?)
    }
}
