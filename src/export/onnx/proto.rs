//! The messages of an ONNX file that are written and read here, with the field numbers of the format's `onnx.proto`.
//!
//! Fields that are not named are skipped in reading.
//!
//! Source: the ONNX specification, <https://onnx.ai/onnx/repo-docs/IR.html> and `onnx/onnx.proto`.

#![allow(missing_docs, reason = "the fields have the names that the specification explains")]

use prost::Message;

/// The whole file.
#[derive(Clone, PartialEq, Message)]
pub struct Model {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(string, tag = "2")]
    pub producer_name: String,
    #[prost(string, tag = "3")]
    pub producer_version: String,
    #[prost(string, tag = "6")]
    pub doc_string: String,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<Graph>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub metadata: Vec<Entry>,
}

/// The file without its weights: what says how to run it.
#[derive(Clone, PartialEq, Message)]
pub struct ModelHead {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphHead>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OperatorSet>,
    #[prost(message, repeated, tag = "14")]
    pub metadata: Vec<Entry>,
}

/// A version of a set of operators; the empty domain is ONNX's own.
#[derive(Clone, PartialEq, Message)]
pub struct OperatorSet {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// A line of metadata.
#[derive(Clone, PartialEq, Message)]
pub struct Entry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// Nodes, weights, inputs and outputs.
#[derive(Clone, PartialEq, Message)]
pub struct Graph {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfo>,
}

/// The graph without its weights.
#[derive(Clone, PartialEq, Message)]
pub struct GraphHead {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<Node>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfo>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfo>,
}

/// An operation.
#[derive(Clone, PartialEq, Message)]
pub struct Node {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "3")]
    pub name: String,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<Attribute>,
}

/// A constant of an operation.
#[derive(Clone, PartialEq, Message)]
pub struct Attribute {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(float, optional, tag = "2")]
    pub f: Option<f32>,
    #[prost(int64, optional, tag = "3")]
    pub i: Option<i64>,
    #[prost(bytes = "vec", optional, tag = "4")]
    pub s: Option<Vec<u8>>,
    #[prost(int64, repeated, packed = "false", tag = "8")]
    pub ints: Vec<i64>,
    #[prost(int32, tag = "20")]
    pub kind: i32,
}

impl Attribute {
    /// A number.
    pub fn float(name: &str, value: f32) -> Self {
        Self { name: name.to_owned(), f: Some(value), kind: 1, ..Self::default() }
    }

    /// An integer.
    pub fn int(name: &str, value: i64) -> Self {
        Self { name: name.to_owned(), i: Some(value), kind: 2, ..Self::default() }
    }

    /// A text.
    pub fn text(name: &str, value: &str) -> Self {
        let s = Some(value.as_bytes().to_vec());
        Self { name: name.to_owned(), s, kind: 3, ..Self::default() }
    }

    /// Integers.
    pub fn ints(name: &str, values: &[i64]) -> Self {
        Self { name: name.to_owned(), ints: values.to_vec(), kind: 7, ..Self::default() }
    }
}

/// Element types of tensors, with their numbers in the format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataType {
    Float = 1,
    Uint8 = 2,
    Int8 = 3,
    Int32 = 6,
    Int64 = 7,
    /// Two to a byte, the first one in the low half.
    Int4 = 22,
    /// Four to a byte, the first one in the lowest two bits.
    Int2 = 26,
}

impl DataType {
    /// Bits of an element.
    pub fn bits(self) -> usize {
        match self {
            Self::Int2 => 2,
            Self::Int4 => 4,
            Self::Uint8 | Self::Int8 => 8,
            Self::Float | Self::Int32 => 32,
            Self::Int64 => 64,
        }
    }

    /// The smallest and the largest integer it holds.
    ///
    /// # Panics
    /// For types that hold no codes.
    pub fn range(self) -> (i32, i32) {
        match self {
            Self::Int2 => (-2, 1),
            Self::Int4 => (-8, 7),
            Self::Int8 => (-128, 127),
            Self::Uint8 => (0, 255),
            Self::Float | Self::Int32 | Self::Int64 => unreachable!("{self:?} holds no codes"),
        }
    }
}

/// A constant tensor.
#[derive(Clone, PartialEq, Message)]
pub struct Tensor {
    #[prost(int64, repeated, packed = "false", tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(string, tag = "8")]
    pub name: String,
    /// The elements, little-endian; those of less than a byte packed from the lowest bits on.
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
}

impl Tensor {
    /// Floats of a shape; no dimensions for one alone.
    pub fn floats(name: &str, dims: &[i64], values: &[f32]) -> Self {
        let raw_data = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Self {
            dims: dims.to_vec(),
            data_type: DataType::Float as i32,
            name: name.to_owned(),
            raw_data,
        }
    }

    /// Integers of a type that holds them.
    pub fn integers(name: &str, dims: &[i64], kind: DataType, values: &[i32]) -> Self {
        let raw_data = match kind.bits() {
            64 => values.iter().flat_map(|&v| i64::from(v).to_le_bytes()).collect(),
            32 => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
            8 => values.iter().map(|&v| v as u8).collect(),
            bits => {
                let pack = |byte: &[i32]| {
                    let of = |(i, &v): (usize, &i32)| ((v & ((1 << bits) - 1)) as u8) << (i * bits);
                    byte.iter().enumerate().map(of).fold(0, |a, b| a | b)
                };
                values.chunks(8 / bits).map(pack).collect()
            }
        };
        Self { dims: dims.to_vec(), data_type: kind as i32, name: name.to_owned(), raw_data }
    }
}

/// Name and type of an input or output.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfo {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub kind: Option<ValueType>,
    #[prost(string, tag = "3")]
    pub doc_string: String,
}

#[derive(Clone, PartialEq, Message)]
pub struct ValueType {
    #[prost(message, optional, tag = "1")]
    pub tensor: Option<TensorType>,
}

#[derive(Clone, PartialEq, Message)]
pub struct TensorType {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<Shape>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Shape {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<Dim>,
}

/// A number, or the name of a dimension that the caller decides on.
#[derive(Clone, PartialEq, Message)]
pub struct Dim {
    #[prost(int64, optional, tag = "1")]
    pub value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub param: Option<String>,
}

impl ValueInfo {
    /// A float tensor whose first dimension is the batch: fixed, or left open.
    pub fn batched(name: &str, batch: Option<i64>, rest: &[i64], doc: &str) -> Self {
        let first = match batch {
            Some(n) => Dim { value: Some(n), param: None },
            None => Dim { value: None, param: Some("batch".to_owned()) },
        };
        let rest = rest.iter().map(|&n| Dim { value: Some(n), param: None });
        let shape = Shape { dim: std::iter::once(first).chain(rest).collect() };
        let tensor = TensorType { elem_type: DataType::Float as i32, shape: Some(shape) };
        let kind = Some(ValueType { tensor: Some(tensor) });
        Self { name: name.to_owned(), kind, doc_string: doc.to_owned() }
    }

    /// The dimensions; `None` where they are left open.
    pub fn dims(&self) -> Option<Vec<Option<i64>>> {
        let shape = self.kind.as_ref()?.tensor.as_ref()?.shape.as_ref()?;
        Some(shape.dim.iter().map(|d| d.value).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_integers_are_packed_from_the_lowest_bits_on() {
        let t = Tensor::integers("t", &[3], DataType::Int4, &[1, -2, 7]);
        assert_eq!(t.raw_data, [0xe1, 0x07]);
        let t = Tensor::integers("t", &[5], DataType::Int2, &[1, 0, -1, -2, 1]);
        assert_eq!(t.raw_data, [0b1011_0001, 0b01]);
        let t = Tensor::integers("t", &[2], DataType::Int8, &[-128, 127]);
        assert_eq!(t.raw_data, [0x80, 0x7f]);
        assert_eq!(DataType::Int2.range(), (-2, 1));
        assert_eq!(DataType::Int8.range(), (-128, 127));
    }

    #[test]
    fn the_bytes_are_those_of_the_format() {
        // Written by hand from the field numbers: key = number << 3 | wire type.
        let node =
            Node { op_type: "Add".to_owned(), input: vec!["a".to_owned()], ..Node::default() };
        assert_eq!(node.encode_to_vec(), b"\x0a\x01a\x22\x03Add");
        let attribute = Attribute::ints("pads", &[1, 1]);
        assert_eq!(attribute.encode_to_vec(), b"\x0a\x04pads\x40\x01\x40\x01\xa0\x01\x07");
        let zero = Attribute::int("axis", 0);
        assert_eq!(zero.encode_to_vec(), b"\x0a\x04axis\x18\x00\xa0\x01\x02");
    }
}
