//! What calls make: dicts, sets, bytes, and descriptions of tensors that were checked against their storages.

use anyhow::{Context, Result, bail, ensure};

use super::globals::{Element, Global};
use super::machine::Machine;
use super::node::{Id, Made, Node, shortened};
use super::storage::{Slice, Storage, View};

/// Most dimensions of a tensor, as in PyTorch's iterators.
const MAX_DIMENSIONS: usize = 64;
/// Longest key of a storage; PyTorch writes decimal numbers.
const MAX_KEY_BYTES: usize = 256;
/// How far a tensor may reach, elements: one less would be the largest index in PyTorch.
const MAX_ELEMENTS: u64 = i64::MAX as u64;

impl Machine<'_, '_> {
    /// Builds what a call stands for.
    pub(super) fn call(&mut self, global: Global, args: &[Id]) -> Result<Made> {
        let node = match (global, args) {
            (Global::Dict, []) => Node::Dict(Vec::new()),
            (Global::Dict, &[source]) => Node::Dict(self.pairs_of(source)?),
            (Global::DefaultDict, [] | [_]) => Node::Dict(Vec::new()),
            (Global::DefaultDict, &[_, source]) => Node::Dict(self.pairs_of(source)?),
            (Global::Set, []) => Node::Set(Vec::new()),
            (Global::Set, &[source]) => Node::Set(self.items_of(source)?),
            (Global::Size, &[source]) => match self.node(source) {
                Node::Tuple(_) => return Ok(Made::Same(source)),
                _ => Node::Tuple(self.items_of(source)?),
            },
            (Global::Bytes, []) => Node::OwnBytes(Vec::new()),
            (Global::Bytes, &[source]) => match self.node(source) {
                Node::Bytes(_) | Node::OwnBytes(_) => return Ok(Made::Same(source)),
                other => bail!("a bytearray is made of {}", other.type_name()),
            },
            (Global::Bytes | Global::Encode, &[source, encoding]) => {
                self.encode(source, encoding)?
            }
            (Global::Named, &[source]) => self.name(source, None)?,
            (Global::Named, &[source, index]) => self.name(source, Some(index))?,
            (Global::RebuildTensor, &[storage, offset, size, stride]) => {
                self.tensor([storage, offset, size, stride], None)?
            }
            (Global::RebuildTensorV2, &[storage, offset, size, stride, _, _])
            | (Global::RebuildTensorV2, &[storage, offset, size, stride, _, _, _]) => {
                self.tensor([storage, offset, size, stride], None)?
            }
            (Global::RebuildTensorV3, &[storage, offset, size, stride, _, _, dtype])
            | (Global::RebuildTensorV3, &[storage, offset, size, stride, _, _, dtype, _]) => {
                self.tensor([storage, offset, size, stride], Some(dtype))?
            }
            (Global::RebuildParameter, &[data, _, _])
            | (Global::RebuildParameterWithState, &[data, _, _, _]) => match self.node(data) {
                Node::Tensor(_) => return Ok(Made::Same(data)),
                other => bail!("a parameter is made of {}", other.type_name()),
            },
            (Global::RebuildFromType, &[function, class, args, _]) => {
                return self.tensor_of_type(function, class, args);
            }
            (global, args) => bail!("{global:?} is called with {} arguments", args.len()),
        };
        Ok(Made::New(node))
    }

    /// `_rebuild_from_type_v2`: a tensor with attributes of its own, which are left out.
    fn tensor_of_type(&mut self, function: Id, class: Id, args: Id) -> Result<Made> {
        let function = match self.node(function) {
            &Node::Global(
                f @ (Global::RebuildTensor
                | Global::RebuildTensorV2
                | Global::RebuildTensorV3
                | Global::RebuildParameter
                | Global::RebuildParameterWithState),
            ) => f,
            other => bail!("a tensor is rebuilt by {}", other.type_name()),
        };
        ensure!(
            matches!(self.node(class), Node::Global(Global::TensorClass) | Node::Foreign(_)),
            "a tensor is rebuilt as {}",
            self.node(class).type_name()
        );
        let args = match self.node(args) {
            Node::Tuple(args) if args.len() <= 8 => args.clone(),
            other => bail!("a tensor is rebuilt from {}", other.type_name()),
        };
        self.call(function, &args)
    }

    fn items_of(&mut self, source: Id) -> Result<Vec<Id>> {
        let items = match self.node(source) {
            Node::List(items) | Node::Tuple(items) | Node::Set(items) => items,
            other => bail!("a set or size is made of {}", other.type_name()),
        };
        let items = items.clone();
        self.charge(items.len())?;
        Ok(items)
    }

    /// The entries of a dict, or of a list of pairs as Python 2 writes an `OrderedDict`.
    fn pairs_of(&mut self, source: Id) -> Result<Vec<(Id, Id)>> {
        if let Node::Dict(items) = self.node(source) {
            let items = items.clone();
            self.charge(items.len())?;
            return Ok(items);
        }
        let pairs = self.items_of(source)?;
        let pair = |&id: &Id| match self.node(id) {
            Node::List(pair) | Node::Tuple(pair) if pair.len() == 2 => Ok((pair[0], pair[1])),
            other => bail!("a dict is made of {}", other.type_name()),
        };
        pairs.iter().map(pair).collect()
    }

    /// `bytes` as protocol 2 writes them: a text whose characters are the bytes.
    fn encode(&mut self, source: Id, encoding: Id) -> Result<Node> {
        let (Some(text), Some(encoding)) = (self.text_of(source), self.text_of(encoding)) else {
            bail!("bytes are made of {}", self.node(source).type_name());
        };
        self.charge(text.len() / size_of::<Node>())?;
        match encoding {
            "latin1" | "latin-1" => {
                let bytes = text.chars().map(|c| u8::try_from(u32::from(c)));
                let bytes: Result<_, _> = bytes.collect();
                Ok(Node::OwnBytes(bytes.context("bytes are made of other characters")?))
            }
            "utf-8" | "utf8" | "ascii" => Ok(Node::OwnBytes(text.as_bytes().to_vec())),
            other => bail!("bytes are encoded as {}", shortened(other)),
        }
    }

    fn name(&mut self, source: Id, index: Option<Id>) -> Result<Node> {
        let name = self.text_of(source).context("a device or layout has no name")?;
        ensure!(name.len() <= MAX_KEY_BYTES, "the name of a device has {} bytes", name.len());
        Ok(Node::Name(match index.map(|index| self.node(index)) {
            None | Some(Node::None) => name.to_owned(),
            Some(Node::Int(index)) => format!("{name}:{index}"),
            Some(other) => bail!("the number of a device is {}", other.type_name()),
        }))
    }

    /// A storage: `("storage", class, key, location, size)`, in the older format also `None` or the part
    /// `(key, offset, size)` that is meant. The location (`cuda:0`) is where it lay; here all lie on the CPU.
    pub(super) fn persistent(&mut self, id: Id) -> Result<Node> {
        let Node::Tuple(parts) = self.node(id) else {
            bail!("an outside object is named by {}, expected a tuple", self.node(id).type_name());
        };
        let (class, key, numel, part) = match parts[..] {
            [tag, class, key, _, numel] if self.text_of(tag) == Some("storage") => {
                (class, key, numel, None)
            }
            [tag, class, key, _, numel, part] if self.text_of(tag) == Some("storage") => {
                (class, key, numel, Some(part))
            }
            _ => bail!("an outside object is not a storage"),
        };
        let &Node::Global(Global::Storage(element)) = self.node(class) else {
            bail!("the class of a storage is {}", self.node(class).type_name());
        };
        let key = match (self.text_of(key), self.node(key)) {
            (Some(key), _) => key.to_owned(),
            (None, Node::Int(key)) => key.to_string(),
            (None, other) => bail!("the key of a storage is {}", other.type_name()),
        };
        ensure!(key.len() <= MAX_KEY_BYTES, "the key of a storage has {} bytes", key.len());
        let num_elements = self.whole(numel, "the size of a storage")?;
        let element_size = element.map_or(1, Element::size);
        let num_bytes = num_elements.checked_mul(element_size).filter(|&n| n <= MAX_ELEMENTS);
        let num_bytes = num_bytes
            .with_context(|| format!("storage {} has {num_elements} elements", shortened(&key)))?;
        let (offset, num_elements) = self.part(part, num_elements)?;
        let storage = self.tables.enter(Storage { key, num_bytes, element_size })?;
        self.tables.slices.push(Slice { storage, element, offset, num_elements });
        Ok(Node::Storage(u32::try_from(self.tables.slices.len() - 1)?))
    }

    /// Offset and size of the part of a storage that is meant.
    fn part(&self, part: Option<Id>, num_elements: u64) -> Result<(u64, u64)> {
        let Some(part) = part else { return Ok((0, num_elements)) };
        match self.node(part) {
            Node::None => Ok((0, num_elements)),
            Node::Tuple(parts) if parts.len() == 3 => {
                let offset = self.whole(parts[1], "the offset of a part of a storage")?;
                let size = self.whole(parts[2], "the size of a part of a storage")?;
                let end = offset.checked_add(size).filter(|&end| end <= num_elements);
                end.with_context(|| {
                    format!("a part of {size} from {offset} lies outside {num_elements} elements")
                })?;
                Ok((offset, size))
            }
            other => bail!("the part of a storage is {}", other.type_name()),
        }
    }

    /// An integer that is not negative.
    fn whole(&self, id: Id, what: &str) -> Result<u64> {
        match self.node(id) {
            Node::Int(value) => {
                u64::try_from(*value).ok().with_context(|| format!("{what} is {value}, negative"))
            }
            other => bail!("{what} is {}", other.type_name()),
        }
    }

    fn wholes(&self, id: Id, what: &str) -> Result<Vec<u64>> {
        let items = match self.node(id) {
            Node::Tuple(items) | Node::List(items) => items,
            other => bail!("the {what}s of a tensor are {}", other.type_name()),
        };
        ensure!(items.len() <= MAX_DIMENSIONS, "a tensor has {} dimensions", items.len());
        items.iter().map(|&item| self.whole(item, &format!("a {what} of a tensor"))).collect()
    }

    /// A tensor from storage, offset, size and stride (and, over bytes without a type, an element type).
    fn tensor(
        &mut self,
        [storage, offset, size, stride]: [Id; 4],
        dtype: Option<Id>,
    ) -> Result<Node> {
        let &Node::Storage(slice) = self.node(storage) else {
            bail!("a tensor lies in {}", self.node(storage).type_name());
        };
        let slice = self.tables.slices[slice as usize];
        let element = match dtype.map(|id| self.node(id)) {
            None => slice.element.unwrap_or(Element::U8),
            Some(&Node::Global(Global::Dtype(element))) => element,
            Some(Node::Name(name)) => bail!("element type {name} is not supported"),
            Some(other) => bail!("the element type is {}", other.type_name()),
        };
        let in_storage = slice.element.map_or(1, Element::size);
        ensure!(
            in_storage == element.size() || in_storage == 1,
            "a tensor of {} lies in a storage of another type",
            element.name()
        );
        let (shape, strides) = (self.wholes(size, "size")?, self.wholes(stride, "stride")?);
        let offset = self.whole(offset, "the offset of a tensor")?;
        let ratio = element.size() / in_storage;
        ensure!(slice.offset.is_multiple_of(ratio), "a tensor lies across its elements");
        let available = slice.num_elements / ratio;
        let num_elements = count_inside(&shape, &strides, offset, available)?;
        let offset = slice.offset / ratio + if num_elements == 0 { 0 } else { offset };
        let view = View { storage: slice.storage, element, offset, shape, strides, num_elements };
        self.tables.views.push(view);
        Ok(Node::Tensor(u32::try_from(self.tables.views.len() - 1)?))
    }
}

/// The number of elements of a tensor, all of which lie in the first `available` ones of its storage.
fn count_inside(shape: &[u64], strides: &[u64], offset: u64, available: u64) -> Result<u64> {
    ensure!(
        shape.len() == strides.len(),
        "a tensor has {} sizes and {} strides",
        shape.len(),
        strides.len()
    );
    // An empty tensor may have any other sizes; the product of the rest must still be a size.
    let mut filled = shape.iter().filter(|&&size| size != 0);
    let num_elements = filled
        .try_fold(1_u64, |n, &size| n.checked_mul(size).filter(|&n| n <= MAX_ELEMENTS))
        .with_context(|| format!("a tensor of shape {shape:?} is too large"))?;
    if shape.contains(&0) {
        return Ok(0);
    }
    let last = shape
        .iter()
        .zip(strides)
        .try_fold(offset, |at, (&size, &stride)| at.checked_add((size - 1).checked_mul(stride)?));
    ensure!(
        last.is_some_and(|last| last < available),
        "a tensor of shape {shape:?}, strides {strides:?} and offset {offset} reaches beyond its storage of \
         {available} elements"
    );
    Ok(num_elements)
}
