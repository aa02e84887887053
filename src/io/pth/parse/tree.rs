//! From the flat table of a pickle to a tree of bounded depth and size.

use std::collections::HashMap;

use anyhow::{Result, bail, ensure};

use super::data::Data;
use super::node::{Id, Node, Pickled, shortened};

/// Deepest nesting. Checkpoints reach about 6.
const MAX_DEPTH: usize = 200;
/// Bytes that any tree may take. Values that a pickle names again and again are copied here.
const BASE_BYTES: usize = 4 << 20;
/// Bytes that a tree may take for each byte of its pickle, besides.
const BYTES_PER_BYTE: usize = 64;

/// The value of a pickle; tensors are places in the list of views.
///
/// # Errors
/// If values nest too deep (or hold themselves), a key cannot be one, or the tree would be out of all proportion to
/// the pickle.
pub(super) fn tree(pickled: &Pickled) -> Result<Data<usize>> {
    let bytes_left = BASE_BYTES + pickled.num_read.saturating_mul(BYTES_PER_BYTE);
    Builder { pickled, bytes_left }.value(pickled.root, 0)
}

/// How an object that is not data is called: at most so long, and without characters that act on a terminal.
fn opaque_name(module: &str, name: &str) -> String {
    shortened(&format!("{module}.{name}"))
}

struct Builder<'a> {
    pickled: &'a Pickled<'a>,
    bytes_left: usize,
}

/// What makes two keys the same.
#[derive(PartialEq, Eq, Hash)]
enum Key<'a> {
    Text(&'a str),
    Int(i64),
}

impl Builder<'_> {
    fn value(&mut self, id: Id, depth: usize) -> Result<Data<usize>> {
        ensure!(
            depth <= MAX_DEPTH,
            "its values nest deeper than {MAX_DEPTH} levels, or hold themselves: it is not a checkpoint"
        );
        self.charge(size_of::<Data<usize>>())?;
        let pickled = self.pickled;
        Ok(match pickled.node(id) {
            Node::None => Data::None,
            Node::Bool(value) => Data::Bool(*value),
            Node::Int(value) => Data::Int(*value),
            Node::Float(value) => Data::Float(*value),
            Node::BigInt(span) => Data::BigInt(self.copied(pickled.span(*span))?),
            Node::Bytes(span) => Data::Bytes(self.copied(pickled.span(*span))?),
            Node::OwnBytes(bytes) => Data::Bytes(self.copied(bytes)?),
            Node::Str(span) => {
                let text = pickled.text(*span);
                self.charge(text.len())?;
                Data::Str(text.to_owned())
            }
            Node::Name(name) => {
                self.charge(name.len())?;
                Data::Name(name.clone())
            }
            Node::Global(global) => match global.constant() {
                Some(name) => Data::Name(name),
                None => bail!("a class or function stands where data are expected"),
            },
            Node::Foreign([module, name]) | Node::Opaque([module, name]) => {
                let name = opaque_name(pickled.text(*module), pickled.text(*name));
                self.charge(name.len())?;
                Data::Opaque(name)
            }
            Node::List(items) => Data::List(self.values(items, depth)?),
            Node::Tuple(items) => Data::Tuple(self.values(items, depth)?),
            Node::Set(items) => Data::Set(self.values(items, depth)?),
            Node::Dict(items) => Data::Dict(self.entries(items, depth)?),
            Node::Storage(_) => Data::Opaque("torch storage".to_owned()),
            Node::Tensor(view) => Data::Tensor(*view as usize),
        })
    }

    fn values(&mut self, items: &[Id], depth: usize) -> Result<Vec<Data<usize>>> {
        items.iter().map(|&item| self.value(item, depth + 1)).collect()
    }

    /// As in Python, a key that comes again keeps its place and takes the later value.
    fn entries(
        &mut self,
        items: &[(Id, Id)],
        depth: usize,
    ) -> Result<Vec<(Data<usize>, Data<usize>)>> {
        let pickled = self.pickled;
        let mut places: HashMap<Key, usize> = HashMap::new();
        let mut entries: Vec<(Data<usize>, Data<usize>)> = Vec::new();
        for &(key, value) in items {
            let node = pickled.node(key);
            let same = match node {
                Node::Str(span) => Some(Key::Text(pickled.text(*span))),
                Node::Int(value) => Some(Key::Int(*value)),
                Node::List(_) | Node::Dict(_) | Node::Set(_) => {
                    bail!("{} stands where a key is expected", node.type_name())
                }
                _ => None,
            };
            let value = self.value(value, depth + 1)?;
            let next = entries.len();
            let place = same.map_or(next, |same| *places.entry(same).or_insert(next));
            match entries.get_mut(place) {
                Some(entry) => entry.1 = value,
                None => entries.push((self.value(key, depth + 1)?, value)),
            }
        }
        Ok(entries)
    }

    fn copied(&mut self, bytes: &[u8]) -> Result<Vec<u8>> {
        self.charge(bytes.len())?;
        Ok(bytes.to_vec())
    }

    fn charge(&mut self, bytes: usize) -> Result<()> {
        let left = self.bytes_left.checked_sub(bytes);
        let Some(left) = left else {
            bail!(
                "its {} bytes name the same values again and again: spelt out, they would fill memory",
                self.pickled.num_read
            );
        };
        self.bytes_left = left;
        Ok(())
    }
}
