//! Packed files: a network with the weights of its quantized layers as 1 to 8-bit codes, in one file.
//!
//! Start at [`pack`] (a network and its quantizers to a [`PackedFile`]), [`write()`], [`read`] and [`unpack`] (back to the
//! network's tensors, every weight with the bits it had). [`read_head`] tells what a file holds without its numbers.
//! [`bits`] packs codes, [`levels`] says which numbers they stand for, `format` is the layout of the file.
//!
//! # The file
//! All numbers are little-endian; no field depends on the machine that writes or reads.
//!
//! | bytes | what |
//! |---|---|
//! | 0..8 | magic `93 4D 51 41 54 0D 0A 1A` (0x93, `MQAT`, CR, LF, 0x1A) |
//! | 8..12 | version of the layout, u32: 1 |
//! | 12..20 | length of the header, u64 |
//! | 20..24 | CRC-32C of the header, u32 |
//! | 24..28 | CRC-32C of the data, u32 |
//! | 28..32 | CRC-32C of bytes 0..28, u32 |
//! | 32.. | the header: JSON, padded with spaces to a multiple of 8 |
//! | then | the data: what the header's byte ranges mean; no gaps, nothing behind |
//!
//! The header is `{"mqat_version", "data_bytes", "meta", "tensors"}`. `meta` is free. A tensor is `{"name", "shape",
//! "at": [begin, end]}` with either `"dtype"` (`F64`, `F32`, `I64`, `I32`, `U8`, `BOOL`; row-major values, as in
//! safetensors) or `"codes": {"coding", "grid", "grid_at"}`. Codes number a grid's levels from the lowest:
//! - coding `{"bits": b}`: code i takes bits `i b .. (i + 1) b` of the range, the lowest bit of the first byte first; the bits
//!   that are left in the last byte are 0.
//! - coding `"base3"`: five codes a byte, `c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4`; codes that are left in the last byte are 0.
//!
//! The grid says which number code `i` is; its own numbers lie at `grid_at`, for one scale or one for each slice of
//! the first dimension (output channel):
//! - `{"uniform": {"levels", "first", "stride"}}`: `(first + stride i) * step`, multiplied in f32; data: f32 steps.
//! - `{"powers_of_two": {"exponents": n}}`: 0 for `i = n`, else `sign(r) 2^(low + |r| - 1)` with `r = i - n`; data: i32 lows.
//! - `{"table": {"levels": n}}`: the i-th number of the table; data: n f32 values for each scale.
//!
//! # Refused
//! Files that are truncated, longer than they say, of a newer version or with any flipped bit; ranges that overlap or
//! leave gaps; codes that name no level; grids whose levels are not finite and ascending. Nothing is allocated by a
//! number that the file merely claims.

pub mod bits;
mod file;
mod fold;
mod format;
pub mod levels;
mod network;

pub use bits::Coding;
pub use file::{MAGIC, read, read_head, verify, write};
pub use format::{HeadCodes, HeadTensor, PackedHead};
pub use levels::Levels;
pub use network::{Bytes, PackOptions, Packed, Ternary, Unpacked, pack, unpack};
pub(crate) use network::{has_folded, plain};

/// A packed file in memory.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedFile {
    /// What the writer wants to say of the network: JSON, kept as it is.
    pub meta: serde_json::Map<String, serde_json::Value>,
    /// The tensors, in the order of the header.
    pub tensors: Vec<PackedTensor>,
}

/// One tensor of a packed file.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedTensor {
    /// Its key.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its numbers.
    pub content: Content,
}

/// The numbers of a tensor.
#[derive(Debug, Clone, PartialEq)]
pub enum Content {
    /// As they are.
    Plain {
        /// Their type.
        dtype: Dtype,
        /// The values, row-major, little-endian.
        bytes: Vec<u8>,
    },
    /// As numbers of levels.
    Codes {
        /// The levels.
        levels: Levels,
        /// How they lie in the file.
        coding: Coding,
        /// The level of each weight, row-major, counted from the lowest.
        codes: Vec<u8>,
    },
}

/// Types of plain numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Dtype {
    /// Double precision.
    F64,
    /// Single precision.
    F32,
    /// 64-bit integers.
    I64,
    /// 32-bit integers.
    I32,
    /// Bytes.
    U8,
    /// 0 or 1, a byte each.
    #[serde(rename = "BOOL")]
    Bool,
}

impl Dtype {
    /// Bytes of one number.
    pub fn num_bytes(self) -> usize {
        match self {
            Self::F64 | Self::I64 => 8,
            Self::F32 | Self::I32 => 4,
            Self::U8 | Self::Bool => 1,
        }
    }
}
