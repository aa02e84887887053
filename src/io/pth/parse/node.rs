//! The values of a pickle: a flat table, whose containers name their parts by place.

use super::globals::Global;

/// The place of a value in the table.
pub(super) type Id = u32;

/// Bytes of the pickle itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u32,
    pub(super) len: u32,
}

/// A value; containers name their parts by place.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits: two's complement, least byte first.
    BigInt(Span),
    Float(f64),
    /// Checked UTF-8.
    Str(Span),
    Bytes(Span),
    OwnBytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Set(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    Name(String),
    /// A class or function that is not data: its module and name.
    Foreign([Span; 2]),
    /// What a class or function that is not data would make: nothing is kept of it but the name.
    Opaque([Span; 2]),
    /// A part of a storage, by its place in [`super::storage::Tables`].
    Storage(u32),
    /// A tensor, by its place in [`super::storage::Tables`].
    Tensor(u32),
}

impl Node {
    pub(super) fn type_name(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool(_) => "a truth value",
            Self::Int(_) | Self::BigInt(_) => "an integer",
            Self::Float(_) => "a float",
            Self::Str(_) => "a text",
            Self::Bytes(_) | Self::OwnBytes(_) => "bytes",
            Self::List(_) => "a list",
            Self::Tuple(_) => "a tuple",
            Self::Set(_) => "a set",
            Self::Dict(_) => "a dict",
            Self::Global(_) => "a class or function",
            Self::Name(_) => "a name",
            Self::Foreign(_) => "a class or function that is not data",
            Self::Opaque(_) => "an object that is not data",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// What a pickle holds.
#[derive(Debug)]
pub(super) struct Pickled<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) nodes: Vec<Node>,
    pub(super) root: Id,
    /// Bytes up to and including the end mark.
    pub(super) num_read: usize,
}

impl<'a> Pickled<'a> {
    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn span(&self, span: Span) -> &'a [u8] {
        slice(self.bytes, span)
    }

    pub(super) fn text(&self, span: Span) -> &'a str {
        text(self.bytes, span)
    }
}

pub(super) fn slice(bytes: &[u8], span: Span) -> &[u8] {
    &bytes[span.start as usize..][..span.len as usize]
}

pub(super) fn text(bytes: &[u8], span: Span) -> &str {
    std::str::from_utf8(slice(bytes, span)).unwrap_or_default()
}

/// What a call made: a new value, or one that was there.
pub(super) enum Made {
    New(Node),
    Same(Id),
}

/// A long key, cut for a message.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}
