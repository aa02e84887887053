//! Safetensors files of `tch` tensors, and strict copying between named tensors.
//!
//! The format (<https://github.com/huggingface/safetensors>): the header's length as a little-endian u64, a JSON
//! header `{"name": {"dtype", "shape", "data_offsets"}, "__metadata__": {..}}`, then the bytes of the tensors
//! without gaps. Names are written in the order given and come back in it; the bytes are laid out by falling
//! element size, so that every tensor is aligned for readers that map the file.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::{open_file, parse_json, write_atomic};
use crate::schema::from_value;

#[cfg(target_endian = "big")]
compile_error!(
    "safetensors holds little-endian numbers, and they are copied as they lie in memory"
);

/// Longest header that is read, as in the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;
const METADATA_KEY: &str = "__metadata__";
/// The metadata entry that holds the checksum of the data.
const CHECKSUM_KEY: &str = "crc32c";
/// The metadata entry that holds the checksum of the header itself, its own digits taken as zeros.
const HEADER_CHECKSUM_KEY: &str = "header_crc32c";
/// Begin of that entry's value, by which it is known when a damaged key hides it.
const HEADER_CHECKSUM_MARK: &str = "header-";

/// Names of the element types in a header, with what they are here.
const DTYPES: [(&str, Kind); 10] = [
    ("F64", Kind::Double),
    ("F32", Kind::Float),
    ("F16", Kind::Half),
    ("BF16", Kind::BFloat16),
    ("I64", Kind::Int64),
    ("I32", Kind::Int),
    ("I16", Kind::Int16),
    ("I8", Kind::Int8),
    ("U8", Kind::Uint8),
    ("BOOL", Kind::Bool),
];

/// What a safetensors file holds.
#[derive(Debug)]
pub struct TensorFile {
    /// Names and tensors (on the CPU), in the order of the header.
    pub tensors: Vec<(String, Tensor)>,
    /// The free-text entries.
    pub metadata: BTreeMap<String, String>,
    /// Whether a checksum of the header was there, and right; files of other programs and of earlier versions have none.
    pub header_is_checked: bool,
}

impl TensorFile {
    /// The tensor of that name.
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        self.tensors.iter().find(|(n, _)| n == name).map(|(_, tensor)| tensor)
    }
}

#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: [u64; 2],
}

/// An entry that was checked: its bytes lie inside the file and fill its shape.
struct Planned {
    name: String,
    kind: Kind,
    shape: Vec<i64>,
    begin: u64,
    num_bytes: usize,
}

/// Reads a safetensors file; the tensors lie on the CPU.
///
/// # Errors
/// If the file cannot be read, is truncated or longer than its header says, has a broken header, overlapping
/// tensors or gaps, an element type other than f64, f32, f16, bf16, i64, i32, i16, i8, u8, bool, or a boolean
/// that is neither 0 nor 1. Names the file and, where it is one, the tensor.
pub fn read(path: &Path) -> Result<TensorFile> {
    read_inner(path).with_context(|| format!("reading tensors of {}", path.display()))
}

fn read_inner(path: &Path) -> Result<TensorFile> {
    let (mut file, planned, mut metadata, header_is_checked) = open_planned(path)?;
    let expected = metadata.remove(CHECKSUM_KEY);
    let (tensors, checksum) = read_planned(&mut file, planned)?;
    if let Some(expected) = expected {
        ensure!(
            expected == checksum,
            "the data have the CRC-32C {checksum}, expected {expected}: the file is damaged"
        );
    }
    Ok(TensorFile { tensors, metadata, header_is_checked })
}

/// A tensor of a file that was not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub kind: Kind,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Its bytes in the file.
    pub num_bytes: usize,
}

/// What a safetensors file says about itself, without the numbers.
#[derive(Debug, Clone, Default)]
pub struct TensorHead {
    /// The tensors, in the header's order.
    pub tensors: Vec<TensorInfo>,
    /// The file's metadata.
    pub metadata: BTreeMap<String, String>,
}

/// Reads the header of a safetensors file alone.
///
/// # Errors
/// As [`read`], but for what only the numbers show.
pub fn read_head(path: &Path) -> Result<TensorHead> {
    let head = |(_, planned, metadata, _): (File, Vec<Planned>, _, _)| {
        let info = |p: Planned| {
            let Planned { name, kind, shape, num_bytes, .. } = p;
            TensorInfo { name, kind, shape, num_bytes }
        };
        TensorHead { tensors: planned.into_iter().map(info).collect(), metadata }
    };
    open_planned(path)
        .map(head)
        .with_context(|| format!("reading the header of {}", path.display()))
}

/// A file at the first byte of its data, its tensors and metadata, and whether a checksum of the header was right.
type Opened = (File, Vec<Planned>, BTreeMap<String, String>, bool);

/// Opens a file and checks its header, also by its checksum where it has one; the file stands at the first byte of the
/// data.
fn open_planned(path: &Path) -> Result<Opened> {
    let mut file = open_file(path)?;
    let meta = file.metadata()?;
    ensure!(meta.len() >= 8, "{} bytes, expected at least 8: the file is truncated", meta.len());
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let header_bytes = u64::from_le_bytes(length);
    let available = meta.len() - 8;
    ensure!(
        header_bytes <= available.min(MAX_HEADER_BYTES),
        "the header claims {header_bytes} bytes, of which the file has {available}: \
         it is truncated or not a safetensors file"
    );
    let mut header = vec![0; usize::try_from(header_bytes)?];
    file.read_exact(&mut header)?;
    let entries: Map<String, Value> = parse_json(&header, "header")?;
    let (planned, mut metadata) = plan_reading(entries, available - header_bytes)?;
    let header_is_checked = check_header(header, &mut metadata)?;
    Ok((file, planned, metadata, header_is_checked))
}

/// Compares the header with the checksum in its metadata, which is taken out of them; whether there is one.
fn check_header(header: Vec<u8>, metadata: &mut BTreeMap<String, String>) -> Result<bool> {
    let Some(found) = metadata.remove(HEADER_CHECKSUM_KEY) else {
        let hidden = metadata.iter().find(|(_, text)| text.starts_with(HEADER_CHECKSUM_MARK));
        if let Some((key, _)) = hidden {
            bail!("the header's checksum is called {key:?}: the file is damaged");
        }
        return Ok(false);
    };
    let expected = header_checksum(header, &found);
    ensure!(
        expected.as_ref() == Some(&found),
        "the header has the checksum {}, and names {found}: the file is damaged, or another program changed it and kept \
         the metadata",
        expected.as_deref().unwrap_or("that cannot be found again")
    );
    Ok(true)
}

/// The checksum of a header that has `text` in that place; `None` where it is not there, in the form that is written.
fn header_checksum(mut header: Vec<u8>, text: &str) -> Option<String> {
    let entry = format!("\"{HEADER_CHECKSUM_KEY}\":\"{text}\"");
    let at = header.windows(entry.len()).position(|window| window == entry.as_bytes())?;
    let end = at + entry.len() - 1;
    header[end.checked_sub(8)?..end].fill(b'0');
    Some(format!("{HEADER_CHECKSUM_MARK}{:08x}", crc32c::crc32c(&header)))
}

/// Checks the header against the number of data bytes before anything is allocated.
fn plan_reading(
    header: Map<String, Value>,
    data_bytes: u64,
) -> Result<(Vec<Planned>, BTreeMap<String, String>)> {
    let mut metadata = BTreeMap::new();
    let mut planned = Vec::with_capacity(header.len());
    for (name, value) in header {
        if name == METADATA_KEY {
            metadata = from_value(value)
                .with_context(|| format!("header: {METADATA_KEY}: expected texts"))?;
        } else {
            let entry = from_value(value);
            let tensor = entry.and_then(|entry| plan_tensor(&name, entry, data_bytes));
            planned.push(tensor.with_context(|| format!("tensor {name}"))?);
        }
    }
    let mut in_order: Vec<&Planned> = planned.iter().collect();
    in_order.sort_by_key(|p| (p.begin, p.num_bytes));
    let mut end = 0;
    for p in in_order {
        let (name, begin) = (&p.name, p.begin);
        ensure!(begin == end, "tensor {name} begins at byte {begin} of the data, expected {end}");
        end += p.num_bytes as u64;
    }
    ensure!(
        end == data_bytes,
        "the tensors take {end} bytes, and the file has {data_bytes}: it is truncated or damaged"
    );
    Ok((planned, metadata))
}

fn plan_tensor(name: &str, entry: Entry, data_bytes: u64) -> Result<Planned> {
    let kind = DTYPES.iter().find(|(dtype, _)| *dtype == entry.dtype).map(|(_, kind)| *kind);
    let Some(kind) = kind else {
        let known: Vec<_> = DTYPES.iter().map(|(dtype, _)| *dtype).collect();
        bail!("element type {} is not one of {}", entry.dtype, known.join(", "));
    };
    let [begin, end] = entry.data_offsets;
    ensure!(
        begin <= end && end <= data_bytes,
        "bytes {begin}..{end} are not inside the {data_bytes} data bytes: the file is truncated or damaged"
    );
    // An empty tensor may have any other dimensions; the product of the rest must still be a size.
    let filled: Vec<u64> = entry.shape.iter().copied().filter(|&d| d != 0).collect();
    let elements = filled.iter().try_fold(1_u64, |product, &d| product.checked_mul(d));
    let needed = elements
        .filter(|&n| n <= i64::MAX as u64)
        .and_then(|n| n.checked_mul(kind.elt_size_in_bytes() as u64))
        .map(|n| if filled.len() == entry.shape.len() { n } else { 0 });
    ensure!(
        needed == Some(end - begin),
        "shape {:?} of {} does not fill {} bytes",
        entry.shape,
        entry.dtype,
        end - begin
    );
    let shape = entry.shape.iter().map(|&d| i64::try_from(d)).collect::<Result<_, _>>()?;
    Ok(Planned {
        name: name.to_owned(),
        kind,
        shape,
        begin,
        num_bytes: usize::try_from(end - begin)?,
    })
}

/// Reads the bytes straight into the memory of the new tensors; also returns their checksum.
fn read_planned(file: &mut File, planned: Vec<Planned>) -> Result<(Vec<(String, Tensor)>, String)> {
    let mut checksum = Checksum(0);
    let mut by_place: Vec<usize> = (0..planned.len()).collect();
    by_place.sort_by_key(|&i| planned[i].begin);
    let mut tensors: Vec<Option<Tensor>> = planned.iter().map(|_| None).collect();
    for i in by_place {
        let Planned { name, kind, shape, num_bytes, .. } = &planned[i];
        let tensor = Tensor::f_empty(shape, (*kind, Device::Cpu))
            .map_err(|error| anyhow!("tensor {name}: {}", first_line(&error)))?;
        if *num_bytes > 0 {
            // SAFETY: a fresh contiguous CPU tensor of `num_bytes` bytes (checked against shape and kind in
            // `plan_tensor`), to which nobody else has a reference.
            let bytes = unsafe {
                std::slice::from_raw_parts_mut(tensor.data_ptr().cast::<u8>(), *num_bytes)
            };
            bytes.fill(0);
            file.read_exact(bytes).with_context(|| format!("tensor {name}"))?;
            checksum.write_all(bytes)?;
            if *kind == Kind::Bool {
                let worst = bytes.iter().copied().max().unwrap_or(0);
                ensure!(worst <= 1, "tensor {name}: a boolean is {worst}, expected 0 or 1");
            }
        }
        tensors[i] = Some(tensor);
    }
    let named = planned.into_iter().zip(tensors).filter_map(|(p, t)| Some((p.name, t?))).collect();
    Ok((named, checksum.text()))
}

/// The CRC-32C of what is written to it.
struct Checksum(u32);

impl Checksum {
    fn text(&self) -> String {
        format!("{:08x}", self.0)
    }
}

impl Write for Checksum {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = crc32c::crc32c_append(self.0, bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes a safetensors file, [whole or not at all](write_atomic), with the names in the order given.
///
/// Contiguous CPU tensors are written from their own memory; others are copied one at a time. The metadata also get
/// the CRC-32C of the data and that of the header, which [`read`] checks and takes out again.
///
/// # Errors
/// If a name occurs twice or is reserved, an element type has no place in the format, or the file cannot be
/// written; names the file and the tensor.
pub fn write(
    path: &Path,
    tensors: &[(String, Tensor)],
    metadata: &BTreeMap<String, String>,
) -> Result<()> {
    write_atomic(path, |out| {
        let mut by_size = Vec::with_capacity(tensors.len());
        let mut entries = BTreeMap::new();
        for (i, (name, tensor)) in tensors.iter().enumerate() {
            let (dtype, num_bytes) =
                dtype_and_bytes(tensor).with_context(|| format!("tensor {name}"))?;
            by_size.push((i, tensor.kind().elt_size_in_bytes(), num_bytes));
            let shape = tensor.size().iter().map(|&d| d as u64).collect();
            entries.insert(i, Entry { dtype: dtype.to_owned(), shape, data_offsets: [0; 2] });
        }
        by_size.sort_by_key(|&(_, element, _)| std::cmp::Reverse(element)); // stable
        let mut end = 0;
        for &(i, _, num_bytes) in &by_size {
            let begin = end;
            end += num_bytes as u64;
            entries.entry(i).and_modify(|e| e.data_offsets = [begin, end]);
        }
        let mut checksum = Checksum(0);
        for &(i, _, num_bytes) in &by_size {
            let (name, tensor) = &tensors[i];
            write_bytes(&mut checksum, tensor, num_bytes)
                .with_context(|| format!("tensor {name}"))?;
        }
        let mut metadata = metadata.clone();
        metadata.insert(CHECKSUM_KEY.to_owned(), checksum.text());
        out.write_all(&header(tensors, entries, &metadata)?)?;
        for (i, _, num_bytes) in by_size {
            let (name, tensor) = &tensors[i];
            write_bytes(out, tensor, num_bytes).with_context(|| format!("tensor {name}"))?;
        }
        Ok(())
    })
}

fn dtype_and_bytes(tensor: &Tensor) -> Result<(&'static str, usize)> {
    ensure!(tensor.defined(), "it has no value");
    let kind = tensor.f_kind().map_err(|error| anyhow!("{}", first_line(&error)))?;
    let dtype = DTYPES.iter().find(|(_, k)| *k == kind).map(|(dtype, _)| *dtype);
    let dtype = dtype.with_context(|| format!("element type {kind:?} cannot be written"))?;
    Ok((dtype, tensor.numel() * kind.elt_size_in_bytes()))
}

/// The CRC-32C of a tensor's values in row-major order.
///
/// # Errors
/// If its element type has no place in safetensors files.
pub fn checksum(tensor: &Tensor) -> Result<u32> {
    let (_, num_bytes) = dtype_and_bytes(tensor)?;
    let mut checksum = Checksum(0);
    write_bytes(&mut checksum, tensor, num_bytes)?;
    Ok(checksum.0)
}

/// The length and the JSON, padded with spaces to a multiple of 8 bytes.
fn header(
    tensors: &[(String, Tensor)],
    entries: BTreeMap<usize, Entry>,
    metadata: &BTreeMap<String, String>,
) -> Result<Vec<u8>> {
    let mut map = Map::new();
    let mut metadata = metadata.clone();
    let blank = format!("{HEADER_CHECKSUM_MARK}{:08}", 0);
    metadata.insert(HEADER_CHECKSUM_KEY.to_owned(), blank.clone());
    map.insert(METADATA_KEY.to_owned(), serde_json::to_value(metadata)?);
    for ((name, _), entry) in tensors.iter().zip(entries.into_values()) {
        ensure!(name != METADATA_KEY, "a tensor may not be named {METADATA_KEY}");
        let former = map.insert(name.clone(), serde_json::to_value(entry)?);
        ensure!(former.is_none(), "two tensors are named {name}");
    }
    let mut json = serde_json::to_vec(&map)?;
    json.resize(json.len().next_multiple_of(8), b' ');
    ensure!(json.len() as u64 <= MAX_HEADER_BYTES, "the header has {} bytes, too many", json.len());
    let checksum = header_checksum(json.clone(), &blank)
        .context("the header has no place for its checksum")?;
    let entry = format!("\"{HEADER_CHECKSUM_KEY}\":\"{blank}\"");
    let at = json.windows(entry.len()).position(|window| window == entry.as_bytes());
    let end = at.context("the header has no place for its checksum")? + entry.len() - 1;
    json[end - checksum.len()..end].copy_from_slice(checksum.as_bytes());
    let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
    bytes.append(&mut json);
    Ok(bytes)
}

/// Writes a tensor's `num_bytes` bytes in row-major order.
pub(in crate::io) fn write_bytes(
    out: &mut dyn Write,
    tensor: &Tensor,
    num_bytes: usize,
) -> Result<()> {
    if num_bytes == 0 {
        return Ok(());
    }
    let plain = tch::no_grad(|| tensor.f_detach()?.f_to_device(Device::Cpu)?.f_contiguous());
    let plain = plain.map_err(|error| anyhow!("{}", first_line(&error)))?;
    ensure!(!plain.is_sparse(), "it is sparse, which cannot be written");
    // SAFETY: a contiguous CPU tensor of `num_bytes` bytes, alive until the end of this function.
    let bytes = unsafe { std::slice::from_raw_parts(plain.data_ptr().cast::<u8>(), num_bytes) };
    Ok(out.write_all(bytes)?)
}

/// What [`load_into`] did with each name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CopyReport {
    /// Targets that now hold the source's values.
    pub applied: Vec<String>,
    /// Targets that the source lacks; left as they were.
    pub missing: Vec<String>,
    /// Names of the source that are not a target.
    pub surplus: Vec<String>,
    /// Targets whose shape or kind differs from the source's, with how; left as they were.
    pub mismatched: Vec<(String, String)>,
}

impl CopyReport {
    /// Fails unless every target was applied and nothing was left over; `at` names the source.
    ///
    /// # Errors
    /// One message with the count and the first few names of each trouble.
    pub fn ensure_complete(&self, at: &str) -> Result<()> {
        let mismatched: Vec<String> =
            self.mismatched.iter().map(|(name, how)| format!("{name} ({how})")).collect();
        let troubles: Vec<String> =
            [("missing", &self.missing), ("surplus", &self.surplus), ("mismatched", &mismatched)]
                .into_iter()
                .filter(|(_, names)| !names.is_empty())
                .map(|(what, names)| format!("{} {what}: {}", names.len(), first_few(names)))
                .collect();
        ensure!(troubles.is_empty(), "{at} does not fit the network: {}", troubles.join("; "));
        Ok(())
    }
}

fn first_few(names: &[String]) -> String {
    const SHOWN: usize = 5;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    if names.len() > SHOWN { format!("{shown}, ...") } else { shown }
}

/// Copies each source tensor into the target of the same name, in place and without a gradient.
///
/// Only equal shapes and kinds are copied: nothing is broadcast or converted. Devices may differ.
/// Pass the report to [`CopyReport::ensure_complete`] to refuse a source that does not fit exactly.
pub fn load_into(targets: &[(String, Tensor)], source: &[(String, Tensor)]) -> CopyReport {
    let mut by_name: HashMap<&str, &Tensor> = HashMap::with_capacity(source.len());
    let mut report = CopyReport::default();
    for (name, tensor) in source {
        if by_name.insert(name, tensor).is_some() {
            report.mismatched.push((name.clone(), "occurs twice in the source".to_owned()));
            by_name.remove(name.as_str());
        }
    }
    for (name, target) in targets {
        match by_name.get(name.as_str()) {
            None if report.mismatched.iter().any(|(n, _)| n == name) => {}
            None => report.missing.push(name.clone()),
            Some(value) => match copy_into(target, value) {
                Ok(()) => report.applied.push(name.clone()),
                Err(how) => report.mismatched.push((name.clone(), how)),
            },
        }
    }
    let is_target: std::collections::HashSet<&str> =
        targets.iter().map(|(n, _)| n.as_str()).collect();
    let surplus = source.iter().map(|(name, _)| name).filter(|n| !is_target.contains(n.as_str()));
    report.surplus = surplus.cloned().collect();
    report
}

fn copy_into(target: &Tensor, value: &Tensor) -> Result<(), String> {
    if (target.size(), target.kind()) != (value.size(), value.kind()) {
        return Err(format!(
            "{:?} {:?} in the source, expected {:?} {:?}",
            value.kind(),
            value.size(),
            target.kind(),
            target.size()
        ));
    }
    let copied = tch::no_grad(|| target.shallow_clone().f_copy_(value));
    copied.map_err(|error| first_line(&error))
}

/// libtorch's message without its stack frames.
pub(in crate::io) fn first_line(error: &tch::TchError) -> String {
    error.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
