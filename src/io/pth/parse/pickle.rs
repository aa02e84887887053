//! The machine that runs a pickle: it builds data and can do nothing else.
//!
//! Protocol: <https://github.com/python/cpython/blob/main/Lib/pickletools.py>, versions 2 to 5. Values lie in a flat
//! table and name each other by number, so that depth costs no stack, sharing costs no copies, and dropping is a
//! loop. Every instruction adds a bounded amount of memory; what is copied besides is charged to the same limit.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::globals::{Global, may_be_passed_over};
use super::tensor::Tables;

/// Most bytes of one pickle that are looked at.
pub(super) const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// Most values of one pickle. A tensor takes about ten.
const MAX_NODES: usize = 4_000_000;
/// The newest protocol that is known.
const NEWEST_PROTOCOL: u8 = 5;

/// The place of a value in the table.
pub(super) type Id = u32;

/// Bytes of the pickle itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    start: u32,
    len: u32,
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
    /// A part of a storage, by its place in [`Tables`].
    Storage(u32),
    /// A tensor, by its place in [`Tables`].
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

fn slice(bytes: &[u8], span: Span) -> &[u8] {
    &bytes[span.start as usize..][..span.len as usize]
}

fn text(bytes: &[u8], span: Span) -> &str {
    std::str::from_utf8(slice(bytes, span)).unwrap_or_default()
}

/// Why a pickle was not read.
#[derive(Debug)]
pub(super) struct Failure {
    /// More bytes might help.
    pub(super) ran_out: bool,
    pub(super) error: anyhow::Error,
}

/// Runs the pickle at the front of `bytes`; tensors and storages are entered into `tables`.
pub(super) fn run<'a>(bytes: &'a [u8], tables: &mut Tables) -> Result<Pickled<'a>, Failure> {
    let seen = &bytes[..bytes.len().min(MAX_PICKLE_BYTES as usize)];
    let mut machine = Machine {
        bytes: seen,
        at: 0,
        ran_out: false,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        charged: 0,
        tables,
    };
    let root = machine.run();
    let Machine { at, nodes, ran_out, .. } = machine;
    root.map(|root| Pickled { bytes: seen, nodes, root, num_read: at })
        .map_err(|error| Failure { ran_out, error })
}

pub(super) struct Machine<'a, 't> {
    bytes: &'a [u8],
    at: usize,
    ran_out: bool,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    charged: usize,
    pub(super) tables: &'t mut Tables,
}

impl<'a> Machine<'a, '_> {
    fn run(&mut self) -> Result<Id> {
        loop {
            let at = self.at;
            let code = self.take_byte()?;
            if code == b'.' {
                return self.pop().context("the pickle ends without a value");
            }
            self.step(code).with_context(|| format!("byte {at} of the pickle"))?;
        }
    }

    fn step(&mut self, code: u8) -> Result<()> {
        match code {
            // Frames and protocol: nothing is made.
            0x80 => {
                let protocol = self.take_byte()?;
                ensure!(
                    protocol <= NEWEST_PROTOCOL,
                    "it has protocol {protocol}; {NEWEST_PROTOCOL} is the newest known"
                );
            }
            0x95 => {
                let len = self.take_u64()?;
                self.ensure_left(len)?;
            }
            // The stack and the memo.
            b'(' => self.marks.push(self.stack.len()),
            b'0' => match self.marks.last() {
                Some(&mark) if mark == self.stack.len() => drop(self.marks.pop()),
                _ => drop(self.pop()?),
            },
            b'1' => drop(self.pop_mark()?),
            b'2' => self.stack.push(self.top()?),
            b'h' => self.recall_byte()?,
            b'j' => self.recall_u32()?,
            b'q' => {
                let key = u32::from(self.take_byte()?);
                self.remember(key)?;
            }
            b'r' => {
                let key = self.take_u32()?;
                self.remember(key)?;
            }
            0x94 => self.remember(u32::try_from(self.memo.len())?)?,
            _ => return self.step_value(code),
        }
        Ok(())
    }

    fn step_value(&mut self, code: u8) -> Result<()> {
        let node = match code {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.take_array()?))),
            b'K' => Node::Int(i64::from(self.take_byte()?)),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.take_array()?))),
            0x8a => {
                let len = u64::from(self.take_byte()?);
                self.integer(len)?
            }
            0x8b => {
                let len = i32::from_le_bytes(self.take_array()?);
                self.integer(u64::try_from(len).ok().context("an integer has a negative length")?)?
            }
            b'G' => Node::Float(f64::from_be_bytes(self.take_array()?)),
            b'X' | 0x8c | 0x8d => {
                let len = self.take_length(code, &[0x8c], &[0x8d])?;
                let span = self.take_text(len)?;
                let valid = std::str::from_utf8(slice(self.bytes, span)).is_ok();
                ensure!(valid, "a text of {len} bytes is not UTF-8");
                Node::Str(span)
            }
            // Texts of Python 2.
            b'U' | b'T' => {
                let len = self.take_length(code, b"U", &[])?;
                let span = self.take_span(len)?;
                match std::str::from_utf8(slice(self.bytes, span)) {
                    Ok(_) => Node::Str(span),
                    Err(_) => Node::Bytes(span),
                }
            }
            b'B' | b'C' | 0x8e | 0x96 => {
                let len = self.take_length(code, b"C", &[0x8e, 0x96])?;
                Node::Bytes(self.take_span(len)?)
            }
            b']' => Node::List(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            b')' => Node::Tuple(Vec::new()),
            0x8f => Node::Set(Vec::new()),
            b'l' => Node::List(self.pop_mark()?),
            b't' => Node::Tuple(self.pop_mark()?),
            0x91 => Node::Set(self.pop_mark()?),
            b'd' => Node::Dict(self.pop_pairs()?),
            0x85..=0x87 => Node::Tuple(self.pop_many(usize::from(code - 0x84))?),
            _ => return self.step_change(code),
        };
        self.push(node)
    }

    fn step_change(&mut self, code: u8) -> Result<()> {
        match code {
            b'a' => {
                let item = self.pop()?;
                self.extend(vec![item])
            }
            b'e' | 0x90 => {
                let items = self.pop_mark()?;
                self.extend(items)
            }
            b's' => {
                let pair = self.pop_many(2)?;
                self.set_items(vec![(pair[0], pair[1])])
            }
            b'u' => {
                let pairs = self.pop_pairs()?;
                self.set_items(pairs)
            }
            _ => self.step_object(code),
        }
    }

    fn step_object(&mut self, code: u8) -> Result<()> {
        match code {
            b'c' => {
                let (module, name) = (self.take_line()?, self.take_line()?);
                self.push_global(module, name)
            }
            // An instance of a class of Python 2: the class by its name here, or below its arguments.
            b'i' => {
                let (module, name) = (self.take_line()?, self.take_line()?);
                drop(self.pop_mark()?);
                ensure!(self.is_foreign(module, name)?, "an instance of a class of data");
                self.push(Node::Opaque([module, name]))
            }
            b'o' => {
                let parts = self.pop_mark()?;
                match parts.first().map(|&class| self.node(class)) {
                    Some(&Node::Foreign(name)) => self.push(Node::Opaque(name)),
                    other => bail!("an instance of {}", other.map_or("nothing", Node::type_name)),
                }
            }
            // A new object with arguments by name.
            0x92 => {
                let parts = self.pop_many(3)?;
                match self.node(parts[0]) {
                    &Node::Foreign(name) => self.push(Node::Opaque(name)),
                    other => bail!("a new object of {}", other.type_name()),
                }
            }
            0x93 => {
                let pair = self.pop_many(2)?;
                match (self.node(pair[0]), self.node(pair[1])) {
                    (&Node::Str(module), &Node::Str(name)) => self.push_global(module, name),
                    _ => bail!("a name is expected to be two texts"),
                }
            }
            b'R' | 0x81 => {
                let pair = self.pop_many(2)?;
                if let &Node::Foreign(name) | &Node::Opaque(name) = self.node(pair[0]) {
                    return self.push(Node::Opaque(name));
                }
                let Node::Tuple(args) = self.node(pair[1]) else {
                    bail!("a call has {} for arguments", self.node(pair[1]).type_name());
                };
                let &Node::Global(global) = self.node(pair[0]) else {
                    bail!("a call of {}", self.node(pair[0]).type_name());
                };
                // No builder takes more; a longer list is not worth a copy.
                let args = args.iter().copied().take(MAX_ARGUMENTS + 1).collect::<Vec<_>>();
                let result = self.call(global, &args);
                match result.with_context(|| self.place())? {
                    Made::New(node) => self.push(node),
                    Made::Same(id) => {
                        self.stack.push(id);
                        Ok(())
                    }
                }
            }
            b'b' => self.build(),
            b'Q' => {
                let id = self.pop()?;
                let node = self.persistent(id).with_context(|| self.place())?;
                self.push(node)
            }
            b'P' | 0x82..=0x84 | 0x97 | 0x98 => {
                bail!(
                    "opcode {code:#04x} is none that PyTorch writes for data; nothing was executed"
                )
            }
            _ => bail!("{code:#04x} is not an opcode: the file is damaged or not a pickle"),
        }
    }

    /// The state of an `OrderedDict` (`_metadata`) or of an object that is not data is taken off the stack and dropped;
    /// nothing else has one.
    fn build(&mut self) -> Result<()> {
        let state = self.pop()?;
        let object = self.top()?;
        let (object, state) = (self.node(object), self.node(state));
        match (object, state) {
            (Node::Dict(_), Node::Dict(_)) | (Node::Opaque(_), _) => Ok(()),
            _ => bail!("{} is given {} as its state", object.type_name(), state.type_name()),
        }
    }

    fn push_global(&mut self, module: Span, name: Span) -> Result<()> {
        let node = match Global::find(text(self.bytes, module), text(self.bytes, name)) {
            Some(Global::TorchName(name)) => Node::Name(format!("torch.{name}")),
            Some(global) => Node::Global(global),
            None => {
                self.is_foreign(module, name)?;
                Node::Foreign([module, name])
            }
        };
        self.push(node)
    }

    /// Whether a name stands for no data and may be passed over.
    ///
    /// # Errors
    /// If it stands for no data and must not be.
    fn is_foreign(&self, module: Span, name: Span) -> Result<bool> {
        let (module, name) = (text(self.bytes, module), text(self.bytes, name));
        if Global::find(module, name).is_some() {
            return Ok(false);
        }
        ensure!(may_be_passed_over(module, name), refusal(module, name));
        Ok(true)
    }

    /// Where in the state dict the machine is: the nearest text below on the stack.
    fn place(&self) -> String {
        let near = self.stack.iter().rev().take(8).find_map(|&id| match self.node(id) {
            Node::Str(span) => Some(text(self.bytes, *span)),
            _ => None,
        });
        near.map_or("a value".to_owned(), |key| format!("entry {}", shortened(key)))
    }

    fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::List(list) | Node::Set(list) => list.extend(items),
            Node::Opaque(_) => {}
            other => bail!("items are added to {}", other.type_name()),
        }
        Ok(())
    }

    fn set_items(&mut self, items: Vec<(Id, Id)>) -> Result<()> {
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::Dict(dict) => dict.extend(items),
            Node::Opaque(_) => {}
            other => bail!("entries are set in {}", other.type_name()),
        }
        Ok(())
    }

    fn integer(&mut self, len: u64) -> Result<Node> {
        let span = self.take_span(len)?;
        let bytes = slice(self.bytes, span);
        if bytes.len() > 8 {
            return Ok(Node::BigInt(span));
        }
        let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
        let mut whole = [fill; 8];
        whole[..bytes.len()].copy_from_slice(bytes);
        Ok(Node::Int(i64::from_le_bytes(whole)))
    }

    // --- the table and the stack ---

    pub(super) fn node(&self, id: Id) -> &Node {
        &self.nodes[id as usize]
    }

    pub(super) fn text_of(&self, id: Id) -> Option<&'a str> {
        match self.node(id) {
            Node::Str(span) => Some(text(self.bytes, *span)),
            _ => None,
        }
    }

    /// Counts work that no instruction of the pickle pays for.
    pub(super) fn charge(&mut self, amount: usize) -> Result<()> {
        self.charged = self.charged.saturating_add(amount);
        ensure!(
            self.nodes.len().saturating_add(self.charged) <= MAX_NODES,
            "the pickle holds more than {MAX_NODES} values: it is not a checkpoint of a network"
        );
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<()> {
        self.charge(0)?;
        let id = Id::try_from(self.nodes.len())?;
        self.nodes.push(node);
        self.stack.push(id);
        Ok(())
    }

    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        ensure!(self.stack.len() > self.floor(), "{EMPTY}");
        self.stack.last().copied().context(EMPTY)
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_many(&mut self, n: usize) -> Result<Vec<Id>> {
        let rest = self.stack.len().checked_sub(n).filter(|&rest| rest >= self.floor());
        Ok(self.stack.split_off(rest.context(EMPTY)?))
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("a mark is missing: the file is damaged")?;
        Ok(self.stack.split_off(mark))
    }

    fn pop_pairs(&mut self) -> Result<Vec<(Id, Id)>> {
        let items = self.pop_mark()?;
        ensure!(items.len().is_multiple_of(2), "a key has no value");
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    fn remember(&mut self, key: u32) -> Result<()> {
        self.memo.insert(key, self.top()?);
        Ok(())
    }

    fn recall_byte(&mut self) -> Result<()> {
        let key = u32::from(self.take_byte()?);
        self.recall(key)
    }

    fn recall_u32(&mut self) -> Result<()> {
        let key = self.take_u32()?;
        self.recall(key)
    }

    fn recall(&mut self, key: u32) -> Result<()> {
        let id = self.memo.get(&key).with_context(|| format!("nothing was stored as {key}"))?;
        self.stack.push(*id);
        Ok(())
    }

    // --- the bytes ---

    fn ensure_left(&mut self, len: u64) -> Result<()> {
        let left = self.bytes.len() - self.at;
        if len > left as u64 {
            self.ran_out = true;
            bail!("{len} bytes are expected and {left} are left: the file is truncated or damaged");
        }
        Ok(())
    }

    fn take_span(&mut self, len: u64) -> Result<Span> {
        self.ensure_left(len)?;
        let span = Span { start: u32::try_from(self.at)?, len: u32::try_from(len)? };
        self.at += span.len as usize;
        Ok(span)
    }

    /// A text of `len` bytes. Writers of other languages count characters: where no instruction follows `len` bytes and
    /// one follows `len` characters, these are meant.
    fn take_text(&mut self, len: u64) -> Result<Span> {
        let at = self.at;
        let span = self.take_span(len)?;
        let follows = |end: usize| self.bytes.get(end).is_some_and(|&code| is_instruction(code));
        if follows(self.at) || slice(self.bytes, span).is_ascii() {
            return Ok(span);
        }
        let is_begin = |at: &(usize, &u8)| at.1 & 0xc0 != 0x80; // of a character in UTF-8
        let mut begins = self.bytes[at..].iter().enumerate().filter(is_begin);
        match usize::try_from(len).ok().and_then(|len| begins.nth(len)) {
            Some((num_bytes, _)) if follows(at + num_bytes) => {
                self.at = at;
                self.take_span(num_bytes as u64)
            }
            _ => Ok(span),
        }
    }

    fn take_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let span = self.take_span(N as u64)?;
        Ok(slice(self.bytes, span).try_into()?)
    }

    fn take_byte(&mut self) -> Result<u8> {
        self.take_array::<1>().map(|[byte]| byte)
    }

    fn take_u32(&mut self) -> Result<u32> {
        self.take_array().map(u32::from_le_bytes)
    }

    fn take_u64(&mut self) -> Result<u64> {
        self.take_array().map(u64::from_le_bytes)
    }

    /// A length of one byte, eight bytes or else four, by the opcode.
    fn take_length(&mut self, code: u8, of_one: &[u8], of_eight: &[u8]) -> Result<u64> {
        if of_one.contains(&code) {
            self.take_byte().map(u64::from)
        } else if of_eight.contains(&code) {
            self.take_u64()
        } else {
            self.take_u32().map(u64::from)
        }
    }

    /// A line without its end: checked UTF-8.
    fn take_line(&mut self) -> Result<Span> {
        let rest = &self.bytes[self.at..];
        let Some(len) = rest.iter().position(|&b| b == b'\n') else {
            self.ran_out = true;
            bail!("a name has no end: the file is truncated or damaged");
        };
        std::str::from_utf8(&rest[..len]).context("a name is not UTF-8")?;
        let span = Span { start: u32::try_from(self.at)?, len: u32::try_from(len)? };
        self.at += len + 1;
        Ok(span)
    }
}

/// Whether a byte is an instruction of any protocol.
fn is_instruction(code: u8) -> bool {
    b"().012BCFGIJKLMNPQRSTUVX]abcdeghijlopqrstu}".contains(&code) || (0x80..=0x98).contains(&code)
}

/// What a call made: a new value, or one that was there.
pub(super) enum Made {
    New(Node),
    Same(Id),
}

/// Most arguments that a call may have.
const MAX_ARGUMENTS: usize = 16;
const EMPTY: &str = "a value is missing on the stack: the file is damaged";

/// A long key, cut for a message.
pub(super) fn shortened(text: &str) -> String {
    const SHOWN: usize = 80;
    let mut shown: String = text.chars().take(SHOWN).flat_map(char::escape_debug).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push_str("...");
    }
    shown
}

/// The error for a name that is not data.
fn refusal(module: &str, name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "it names {}.{}, which is not data; nothing was executed (if you trust the file, save its weights alone \
         in Python: torch.save(model.state_dict(), \"weights.pth\"))",
        shortened(module),
        shortened(name)
    )
}
