//! The header of a packed file, and where each range of the data lies.

use std::collections::HashSet;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::bits::Coding;
use super::levels::Levels;
use super::{Content, Dtype, PackedFile, PackedTensor};

/// The JSON in front of the data.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    /// Version of the program that wrote it.
    pub mqat_version: String,
    /// Bytes that follow the header.
    pub data_bytes: u64,
    /// What the writer says of the network.
    pub meta: Map<String, Value>,
    /// The tensors.
    pub tensors: Vec<Entry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Entry {
    pub name: String,
    pub shape: Vec<u64>,
    pub at: [u64; 2],
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dtype: Option<Dtype>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes: Option<CodesEntry>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CodesEntry {
    pub coding: Coding,
    pub grid: GridEntry,
    pub grid_at: [u64; 2],
}

/// The spacing of a grid without its scales.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum GridEntry {
    Uniform { levels: u32, first: i32, stride: i32 },
    PowersOfTwo { exponents: u32 },
    Table { levels: u32 },
}

impl GridEntry {
    fn of(levels: &Levels) -> Self {
        match *levels {
            Levels::Uniform { num, first, stride, .. } => {
                Self::Uniform { levels: num, first, stride }
            }
            Levels::PowersOfTwo { num_exponents, .. } => {
                Self::PowersOfTwo { exponents: num_exponents }
            }
            Levels::Table { num, .. } => Self::Table { levels: num },
        }
    }

    fn num_levels(self) -> Result<u32> {
        let num = match self {
            Self::Uniform { levels, .. } | Self::Table { levels } => Some(levels),
            Self::PowersOfTwo { exponents } => {
                exponents.checked_mul(2).and_then(|n| n.checked_add(1))
            }
        };
        num.filter(|n| (2..=256).contains(n))
            .with_context(|| format!("{self:?} has not 2 to 256 levels"))
    }

    /// Scales whose numbers fill so many bytes.
    fn num_scales(self, num_bytes: usize) -> Result<usize> {
        let of_one = match self {
            Self::Uniform { .. } | Self::PowersOfTwo { .. } => 4,
            Self::Table { levels } => 4 * levels as usize,
        };
        ensure!(
            num_bytes > 0 && num_bytes.is_multiple_of(of_one),
            "{num_bytes} bytes hold no whole number of scales of {of_one} bytes"
        );
        Ok(num_bytes / of_one)
    }

    /// The grid with the numbers of its scales; their count was checked by [`GridEntry::num_scales`].
    fn with_numbers(self, bytes: &[u8]) -> Levels {
        let words = bytes.as_chunks::<4>().0.iter();
        let floats = |words: std::slice::Iter<[u8; 4]>| {
            words.map(|word| f32::from_le_bytes(*word)).collect()
        };
        match self {
            Self::Uniform { levels, first, stride } => {
                Levels::Uniform { num: levels, first, stride, steps: floats(words) }
            }
            Self::PowersOfTwo { exponents } => Levels::PowersOfTwo {
                num_exponents: exponents,
                low: words.map(|word| i32::from_le_bytes(*word)).collect(),
            },
            Self::Table { levels } => Levels::Table { num: levels, levels: floats(words) },
        }
    }
}

/// What a packed file says of itself, without its numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedHead {
    /// Version of the program that wrote it.
    pub mqat_version: String,
    /// Bytes in front of the data.
    pub header_bytes: u64,
    /// What the writer said of the network.
    pub meta: Map<String, Value>,
    /// The tensors.
    pub tensors: Vec<HeadTensor>,
}

/// A tensor of a packed file that was not read.
#[derive(Debug, Clone, PartialEq)]
pub struct HeadTensor {
    /// Its key.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub num_elements: usize,
    /// The bytes of its numbers or codes.
    pub num_bytes: usize,
    /// The type of plain numbers; none for codes.
    pub dtype: Option<Dtype>,
    /// How codes lie; none for plain numbers.
    pub codes: Option<HeadCodes>,
}

/// What the header says of a tensor's codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeadCodes {
    /// How they lie.
    pub coding: Coding,
    /// Number of levels.
    pub num_levels: u32,
    /// Scales: one, or one for each output channel.
    pub num_scales: usize,
    /// Bytes of the scales.
    pub grid_bytes: usize,
}

/// A tensor whose ranges were checked against the data.
pub(super) struct Planned {
    name: String,
    shape: Vec<usize>,
    num_elements: usize,
    at: [usize; 2],
    kind: Kind,
}

enum Kind {
    Plain(Dtype),
    Codes { coding: Coding, grid: GridEntry, num_scales: usize, grid_at: [usize; 2] },
}

/// Checks every entry against the number of data bytes: ranges fill shapes, and lie side by side from 0 to the end.
pub(super) fn plan(entries: Vec<Entry>, data_bytes: usize) -> Result<Vec<Planned>> {
    let mut names = HashSet::with_capacity(entries.len());
    for entry in &entries {
        ensure!(names.insert(entry.name.as_str()), "two tensors are named {}", entry.name);
    }
    let mut planned = Vec::with_capacity(entries.len());
    let mut ranges = Vec::with_capacity(entries.len());
    for entry in entries {
        let name = entry.name.clone();
        let tensor = plan_one(entry, data_bytes).with_context(|| format!("tensor {name}"))?;
        ranges.push((tensor.at, planned.len()));
        if let Kind::Codes { grid_at, .. } = tensor.kind {
            ranges.push((grid_at, planned.len()));
        }
        planned.push(tensor);
    }
    ranges.sort_unstable();
    let mut end = 0;
    for ([from, to], i) in ranges {
        let name = &planned[i].name;
        ensure!(
            from == end,
            "tensor {name} has a range that begins at byte {from}, expected {end}"
        );
        end = to;
    }
    ensure!(end == data_bytes, "the tensors take {end} bytes, and there are {data_bytes}");
    Ok(planned)
}

fn plan_one(entry: Entry, data_bytes: usize) -> Result<Planned> {
    let shape: Vec<usize> =
        entry.shape.iter().map(|&d| usize::try_from(d)).collect::<Result<_, _>>()?;
    let num_elements = shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d));
    let num_elements = num_elements
        .filter(|&n| i64::try_from(n).is_ok())
        .with_context(|| format!("shape {shape:?} has too many numbers"))?;
    let (at, num_bytes) = inside(entry.at, data_bytes)?;
    let (kind, expected) = match (entry.dtype, entry.codes) {
        (Some(dtype), None) => (Kind::Plain(dtype), num_elements.checked_mul(dtype.num_bytes())),
        (None, Some(codes)) => {
            let num_levels = codes.grid.num_levels()?;
            ensure!(
                num_levels <= codes.coding.num_values(),
                "{num_levels} levels do not fit {:?}",
                codes.coding
            );
            let (grid_at, grid_bytes) = inside(codes.grid_at, data_bytes)?;
            let num_scales = codes.grid.num_scales(grid_bytes)?;
            ensure!(
                num_scales == 1 || shape.first() == Some(&num_scales),
                "{num_scales} scales for shape {shape:?}, expected 1 or one for each output channel"
            );
            let expected = codes.coding.num_bytes(num_elements);
            let CodesEntry { coding, grid, .. } = codes;
            (Kind::Codes { coding, grid, num_scales, grid_at }, expected)
        }
        (None, None) => bail!("it has neither dtype nor codes"),
        (Some(_), Some(_)) => bail!("it has both dtype and codes"),
    };
    ensure!(expected == Some(num_bytes), "shape {shape:?} does not fill {num_bytes} bytes");
    Ok(Planned { name: entry.name, shape, num_elements, at, kind })
}

/// A range that lies inside the data, and its length.
fn inside([from, to]: [u64; 2], data_bytes: usize) -> Result<([usize; 2], usize)> {
    ensure!(
        from <= to && to <= data_bytes as u64,
        "bytes {from}..{to} are not inside the {data_bytes} bytes of data"
    );
    let at = [usize::try_from(from)?, usize::try_from(to)?];
    Ok((at, at[1] - at[0]))
}

impl Planned {
    pub(super) fn head(self) -> HeadTensor {
        let (dtype, codes) = match self.kind {
            Kind::Plain(dtype) => (Some(dtype), None),
            Kind::Codes { coding, grid, num_scales, grid_at } => {
                let num_levels = grid.num_levels().unwrap_or(0);
                let grid_bytes = grid_at[1] - grid_at[0];
                (None, Some(HeadCodes { coding, num_levels, num_scales, grid_bytes }))
            }
        };
        HeadTensor {
            name: self.name,
            shape: self.shape,
            num_elements: self.num_elements,
            num_bytes: self.at[1] - self.at[0],
            dtype,
            codes,
        }
    }

    /// Takes the tensor out of the data.
    pub(super) fn decode(self, data: &[u8]) -> Result<PackedTensor> {
        let [from, to] = self.at;
        let bytes = &data[from..to];
        let content = match self.kind {
            Kind::Plain(dtype) => {
                let worst = if dtype == Dtype::Bool { super::bits::largest(bytes) } else { 0 };
                ensure!(worst <= 1, "tensor {}: a boolean is {worst}, expected 0 or 1", self.name);
                Content::Plain { dtype, bytes: bytes.to_vec() }
            }
            Kind::Codes { coding, grid, grid_at: [from, to], .. } => {
                let at = || format!("tensor {}", self.name);
                let levels = grid.with_numbers(&data[from..to]);
                levels.check().with_context(at)?;
                let codes = super::bits::unpack(bytes, coding, self.num_elements);
                let codes = codes.with_context(at)?;
                let most = super::bits::largest(&codes);
                ensure!(
                    codes.is_empty() || u32::from(most) < levels.num_levels(),
                    "tensor {}: code {most} names none of {} levels",
                    self.name,
                    levels.num_levels()
                );
                Content::Codes { levels, coding, codes }
            }
        };
        Ok(PackedTensor { name: self.name, shape: self.shape, content })
    }
}

/// Lays a file out: its header's entries, and the parts of the data in their order.
///
/// Plain numbers come first, by falling size, so that each is aligned; then the scales; then the codes.
pub(super) fn lay_out(file: &PackedFile) -> Result<(Vec<Entry>, Vec<Vec<u8>>)> {
    let mut parts: Vec<(u32, usize, bool, Vec<u8>)> = Vec::new();
    for (i, tensor) in file.tensors.iter().enumerate() {
        let num_elements: usize = tensor.shape.iter().product();
        match &tensor.content {
            Content::Plain { dtype, bytes } => {
                ensure!(
                    bytes.len() == num_elements * dtype.num_bytes(),
                    "tensor {}: {} bytes for shape {:?} of {dtype:?}",
                    tensor.name,
                    bytes.len(),
                    tensor.shape
                );
                parts.push((8 - dtype.num_bytes() as u32, i, false, bytes.clone()));
            }
            Content::Codes { levels, coding, codes } => {
                let at = || format!("tensor {}", tensor.name);
                ensure!(
                    codes.len() == num_elements,
                    "tensor {}: {} codes for shape {:?}",
                    tensor.name,
                    codes.len(),
                    tensor.shape
                );
                levels.check().with_context(at)?;
                let packed = super::bits::pack(codes, *coding).with_context(at)?;
                parts.push((8, i, true, levels.to_bytes()));
                parts.push((9, i, false, packed));
            }
        }
    }
    parts.sort_by_key(|&(rank, i, ..)| (rank, i));
    let mut entries: Vec<Entry> = file.tensors.iter().map(entry).collect();
    let mut end = 0;
    for (_, i, is_grid, bytes) in &parts {
        let at = [end, end + bytes.len() as u64];
        end = at[1];
        match (is_grid, entries[*i].codes.as_mut()) {
            (true, Some(codes)) => codes.grid_at = at,
            _ => entries[*i].at = at,
        }
    }
    Ok((entries, parts.into_iter().map(|(.., bytes)| bytes).collect()))
}

fn entry(tensor: &PackedTensor) -> Entry {
    let (dtype, codes) = match &tensor.content {
        Content::Plain { dtype, .. } => (Some(*dtype), None),
        Content::Codes { levels, coding, .. } => {
            let grid = GridEntry::of(levels);
            (None, Some(CodesEntry { coding: *coding, grid, grid_at: [0; 2] }))
        }
    };
    let shape = tensor.shape.iter().map(|&d| d as u64).collect();
    Entry { name: tensor.name.clone(), shape, at: [0; 2], dtype, codes }
}
