//! Values as a pickle holds them, over any kind of tensor.

/// A value of a checkpoint: Python's plain data, and tensors.
///
/// Values are trees of bounded depth: dropping or walking them by recursion is safe.
#[derive(Debug)]
pub enum Data<T> {
    /// `None`.
    None,
    /// A truth value.
    Bool(bool),
    /// An integer that fits 64 bits.
    Int(i64),
    /// Any other integer: two's complement, least byte first.
    BigInt(Vec<u8>),
    /// A float.
    Float(f64),
    /// A text.
    Str(String),
    /// `bytes` or `bytearray`; also texts of Python 2 that are not UTF-8.
    Bytes(Vec<u8>),
    /// A list.
    List(Vec<Data<T>>),
    /// A tuple, `torch.Size` included.
    Tuple(Vec<Data<T>>),
    /// A set or frozenset.
    Set(Vec<Data<T>>),
    /// A dict, `OrderedDict` or `Counter`: keys and values in order. Attributes of an `OrderedDict` (the `_metadata`
    /// of a state dict) are not kept.
    Dict(Vec<(Data<T>, Data<T>)>),
    /// The name of a `torch` constant or device: `torch.float32`, `cuda:0`.
    Name(String),
    /// An object, class or function that is not data, by the name of its class or of what would make it:
    /// `argparse.Namespace`. Nothing else is kept of it.
    Opaque(String),
    /// A tensor or parameter.
    Tensor(T),
}

impl<T> Data<T> {
    /// The value under a text key, if this is a dict that has it.
    pub fn get(&self, key: &str) -> Option<&Data<T>> {
        let found = self.as_dict()?.iter().find(|(k, _)| k.as_str() == Some(key));
        found.map(|(_, value)| value)
    }

    /// Keys and values, if this is a dict.
    pub fn as_dict(&self) -> Option<&[(Data<T>, Data<T>)]> {
        match self {
            Self::Dict(items) => Some(items),
            _ => None,
        }
    }

    /// The items, if this is a list, tuple or set.
    pub fn as_items(&self) -> Option<&[Data<T>]> {
        match self {
            Self::List(items) | Self::Tuple(items) | Self::Set(items) => Some(items),
            _ => None,
        }
    }

    /// The tensor, if this is one.
    pub fn as_tensor(&self) -> Option<&T> {
        match self {
            Self::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Self::Str(text) => Some(text),
            _ => None,
        }
    }

    /// The integer, if this is one that fits 64 bits (and no truth value).
    pub fn as_int(&self) -> Option<i64> {
        match self {
            Self::Int(value) => Some(*value),
            _ => None,
        }
    }

    /// What this is, for messages: `a dict`.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a truth value",
            Self::Int(_) | Self::BigInt(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Str(_) => "a text",
            Self::Bytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Set(_) => "a set",
            Self::Dict(_) => "a dict",
            Self::Name(_) => "a name",
            Self::Opaque(_) => "an object that is not data",
            Self::Tensor(_) => "a tensor",
        }
    }

    /// The same value with every tensor replaced.
    pub fn map<U>(self, tensor: &mut impl FnMut(T) -> U) -> Data<U> {
        let mut all = |items: Vec<Data<T>>| items.into_iter().map(|v| v.map(tensor)).collect();
        match self {
            Self::None => Data::None,
            Self::Bool(v) => Data::Bool(v),
            Self::Int(v) => Data::Int(v),
            Self::BigInt(v) => Data::BigInt(v),
            Self::Float(v) => Data::Float(v),
            Self::Str(v) => Data::Str(v),
            Self::Bytes(v) => Data::Bytes(v),
            Self::Name(v) => Data::Name(v),
            Self::Opaque(v) => Data::Opaque(v),
            Self::List(items) => Data::List(all(items)),
            Self::Tuple(items) => Data::Tuple(all(items)),
            Self::Set(items) => Data::Set(all(items)),
            Self::Dict(items) => {
                Data::Dict(items.into_iter().map(|(k, v)| (k.map(tensor), v.map(tensor))).collect())
            }
            Self::Tensor(v) => Data::Tensor(tensor(v)),
        }
    }
}
