//! The machine that runs a pickle: it builds data and can do nothing else.
//!
//! Protocol: <https://github.com/python/cpython/blob/main/Lib/pickletools.py>, versions 2 to 5. Values lie in a flat
//! table and name each other by number, so that depth costs no stack, sharing costs no copies, and dropping is a
//! loop. Every instruction adds a bounded amount of memory; what is copied besides is charged to the same limit.

use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};

use super::globals::{Global, may_be_passed_over};
use super::machine::Machine;
use super::node::{Id, Made, Node, Pickled, Span, shortened, slice, text};
use super::storage::Tables;

/// Most bytes of one pickle that are looked at.
pub(super) const MAX_PICKLE_BYTES: u64 = 64 << 20;
/// The newest protocol that is known.
const NEWEST_PROTOCOL: u8 = 5;

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

impl Machine<'_, '_> {
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
}

/// Most arguments that a call may have.
const MAX_ARGUMENTS: usize = 16;

/// The error for a name that is not data.
fn refusal(module: &str, name: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "it names {}.{}, which is not data; nothing was executed (if you trust the file, save its weights alone \
         in Python: torch.save(model.state_dict(), \"weights.pth\"))",
        shortened(module),
        shortened(name)
    )
}
