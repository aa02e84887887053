//! The state of the machine that runs a pickle: its table of values, its stack, its memo, and the bytes that it reads.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::node::{Id, Node, Span, slice, text};
use super::storage::Tables;

/// Most values of one pickle. A tensor takes about ten.
const MAX_NODES: usize = 4_000_000;
const EMPTY: &str = "a value is missing on the stack: the file is damaged";

/// A pickle that is being run.
pub(super) struct Machine<'a, 't> {
    pub(super) bytes: &'a [u8],
    pub(super) at: usize,
    pub(super) ran_out: bool,
    pub(super) nodes: Vec<Node>,
    pub(super) stack: Vec<Id>,
    pub(super) marks: Vec<usize>,
    pub(super) memo: HashMap<u32, Id>,
    pub(super) charged: usize,
    pub(super) tables: &'t mut Tables,
}

impl<'a> Machine<'a, '_> {
    pub(super) fn extend(&mut self, items: Vec<Id>) -> Result<()> {
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::List(list) | Node::Set(list) => list.extend(items),
            Node::Opaque(_) => {}
            other => bail!("items are added to {}", other.type_name()),
        }
        Ok(())
    }

    pub(super) fn set_items(&mut self, items: Vec<(Id, Id)>) -> Result<()> {
        let target = self.top()?;
        match &mut self.nodes[target as usize] {
            Node::Dict(dict) => dict.extend(items),
            Node::Opaque(_) => {}
            other => bail!("entries are set in {}", other.type_name()),
        }
        Ok(())
    }

    pub(super) fn integer(&mut self, len: u64) -> Result<Node> {
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

    pub(super) fn push(&mut self, node: Node) -> Result<()> {
        self.charge(0)?;
        let id = Id::try_from(self.nodes.len())?;
        self.nodes.push(node);
        self.stack.push(id);
        Ok(())
    }

    pub(super) fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    pub(super) fn top(&self) -> Result<Id> {
        ensure!(self.stack.len() > self.floor(), "{EMPTY}");
        self.stack.last().copied().context(EMPTY)
    }

    pub(super) fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    pub(super) fn pop_many(&mut self, n: usize) -> Result<Vec<Id>> {
        let rest = self.stack.len().checked_sub(n).filter(|&rest| rest >= self.floor());
        Ok(self.stack.split_off(rest.context(EMPTY)?))
    }

    pub(super) fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().context("a mark is missing: the file is damaged")?;
        Ok(self.stack.split_off(mark))
    }

    pub(super) fn pop_pairs(&mut self) -> Result<Vec<(Id, Id)>> {
        let items = self.pop_mark()?;
        ensure!(items.len().is_multiple_of(2), "a key has no value");
        Ok(items.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect())
    }

    pub(super) fn remember(&mut self, key: u32) -> Result<()> {
        self.memo.insert(key, self.top()?);
        Ok(())
    }

    pub(super) fn recall_byte(&mut self) -> Result<()> {
        let key = u32::from(self.take_byte()?);
        self.recall(key)
    }

    pub(super) fn recall_u32(&mut self) -> Result<()> {
        let key = self.take_u32()?;
        self.recall(key)
    }

    pub(super) fn recall(&mut self, key: u32) -> Result<()> {
        let id = self.memo.get(&key).with_context(|| format!("nothing was stored as {key}"))?;
        self.stack.push(*id);
        Ok(())
    }

    // --- the bytes ---

    pub(super) fn ensure_left(&mut self, len: u64) -> Result<()> {
        let left = self.bytes.len() - self.at;
        if len > left as u64 {
            self.ran_out = true;
            bail!("{len} bytes are expected and {left} are left: the file is truncated or damaged");
        }
        Ok(())
    }

    pub(super) fn take_span(&mut self, len: u64) -> Result<Span> {
        self.ensure_left(len)?;
        let span = Span { start: u32::try_from(self.at)?, len: u32::try_from(len)? };
        self.at += span.len as usize;
        Ok(span)
    }

    /// A text of `len` bytes. Writers of other languages count characters: where no instruction follows `len` bytes and
    /// one follows `len` characters, these are meant.
    pub(super) fn take_text(&mut self, len: u64) -> Result<Span> {
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

    pub(super) fn take_array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let span = self.take_span(N as u64)?;
        Ok(slice(self.bytes, span).try_into()?)
    }

    pub(super) fn take_byte(&mut self) -> Result<u8> {
        self.take_array::<1>().map(|[byte]| byte)
    }

    pub(super) fn take_u32(&mut self) -> Result<u32> {
        self.take_array().map(u32::from_le_bytes)
    }

    pub(super) fn take_u64(&mut self) -> Result<u64> {
        self.take_array().map(u64::from_le_bytes)
    }

    /// A length of one byte, eight bytes or else four, by the opcode.
    pub(super) fn take_length(&mut self, code: u8, of_one: &[u8], of_eight: &[u8]) -> Result<u64> {
        if of_one.contains(&code) {
            self.take_byte().map(u64::from)
        } else if of_eight.contains(&code) {
            self.take_u64()
        } else {
            self.take_u32().map(u64::from)
        }
    }

    /// A line without its end: checked UTF-8.
    pub(super) fn take_line(&mut self) -> Result<Span> {
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
