//! The header of a PLY file: format, elements and their properties.

use anyhow::{Context, Result, bail, ensure};

/// Longest header that is looked at, so that a large file of another kind fails at once.
const MAX_HEADER_BYTES: usize = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Ascii,
    LittleEndian,
    BigEndian,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Scalar {
    I8,
    U8,
    I16,
    U16,
    I32,
    U32,
    F32,
    F64,
}

impl Scalar {
    fn parse(name: &str) -> Result<Self> {
        Ok(match name {
            "char" | "int8" => Self::I8,
            "uchar" | "uint8" => Self::U8,
            "short" | "int16" => Self::I16,
            "ushort" | "uint16" => Self::U16,
            "int" | "int32" => Self::I32,
            "uint" | "uint32" => Self::U32,
            "float" | "float32" => Self::F32,
            "double" | "float64" => Self::F64,
            _ => bail!("`{name}` is not a type of PLY"),
        })
    }

    pub(super) fn num_bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::I32 | Self::U32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// The number in the first bytes of `little` (little endian).
    pub(super) fn value(self, little: [u8; 8]) -> f64 {
        let [b0, b1, b2, b3, ..] = little;
        match self {
            Self::I8 => f64::from(b0 as i8),
            Self::U8 => f64::from(b0),
            Self::I16 => f64::from(i16::from_le_bytes([b0, b1])),
            Self::U16 => f64::from(u16::from_le_bytes([b0, b1])),
            Self::I32 => f64::from(i32::from_le_bytes([b0, b1, b2, b3])),
            Self::U32 => f64::from(u32::from_le_bytes([b0, b1, b2, b3])),
            Self::F32 => f64::from(f32::from_le_bytes([b0, b1, b2, b3])),
            Self::F64 => f64::from_le_bytes(little),
        }
    }
}

/// What makes a property a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct List {
    /// Type of the length that precedes the items.
    pub length: Scalar,
}

#[derive(Debug, Clone)]
pub(super) struct Property {
    pub name: String,
    /// Type of the value, or of the items of a list.
    pub scalar: Scalar,
    pub list: Option<List>,
}

#[derive(Debug, Clone)]
pub(super) struct Element {
    pub name: String,
    pub count: usize,
    pub properties: Vec<Property>,
}

#[derive(Debug)]
pub(super) struct Header {
    pub format: Format,
    pub elements: Vec<Element>,
}

impl Header {
    /// The header, and the bytes that follow it.
    pub(super) fn parse(bytes: &[u8]) -> Result<(Self, &[u8])> {
        let is_ply = bytes.starts_with(b"ply\n") || bytes.starts_with(b"ply\r\n");
        ensure!(is_ply, "the file does not begin with `ply`");
        let mut rest = bytes;
        let mut format = None;
        let mut elements: Vec<Element> = Vec::new();
        for number in 1.. {
            let window = &rest[..rest.len().min(MAX_HEADER_BYTES)];
            let end = window.iter().position(|&b| b == b'\n');
            let end =
                end.context("the header has no end_header: the file is truncated or no PLY")?;
            // Comments may be in any encoding.
            let line = String::from_utf8_lossy(&rest[..end]);
            rest = &rest[end + 1..];
            let line = line.trim();
            if line == "end_header" {
                let format = format.context("the header names no format")?;
                return Ok((Self { format, elements }, rest));
            }
            parse_line(line, &mut format, &mut elements)
                .with_context(|| format!("line {number}: `{line}`"))?;
        }
        bail!("the header does not end")
    }
}

fn parse_line(line: &str, format: &mut Option<Format>, elements: &mut Vec<Element>) -> Result<()> {
    let words: Vec<&str> = line.split_ascii_whitespace().collect();
    match words[..] {
        [] | ["ply"] | ["comment" | "obj_info", ..] => {}
        ["format", name, "1.0"] => {
            *format = Some(match name {
                "ascii" => Format::Ascii,
                "binary_little_endian" => Format::LittleEndian,
                "binary_big_endian" => Format::BigEndian,
                _ => bail!("expected ascii, binary_little_endian or binary_big_endian"),
            });
        }
        ["element", name, count] => {
            ensure!(elements.iter().all(|e| e.name != name), "there are two elements {name}");
            let count = count.parse().context("the count is not a whole number")?;
            elements.push(Element { name: name.to_owned(), count, properties: Vec::new() });
        }
        ["property", "list", length, scalar, name] => {
            let list = Some(List { length: Scalar::parse(length)? });
            add(
                elements,
                Property { name: name.to_owned(), scalar: Scalar::parse(scalar)?, list },
            )?;
        }
        ["property", scalar, name] => {
            let scalar = Scalar::parse(scalar)?;
            add(elements, Property { name: name.to_owned(), scalar, list: None })?;
        }
        _ => bail!("expected format, element, property or comment"),
    }
    Ok(())
}

fn add(elements: &mut [Element], property: Property) -> Result<()> {
    let element = elements.last_mut().context("a property before any element")?;
    element.properties.push(property);
    Ok(())
}
