//! Patterns of layers: a path, a glob over path components, or a list of these.

use std::borrow::Cow;

use anyhow::{Result, bail, ensure};
use globset::{GlobBuilder, GlobMatcher};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer};

/// What makes a part of a pattern a glob.
const GLOB: [char; 7] = ['*', '?', '[', ']', '{', '}', '\\'];

/// Whether the layer `name` lies in the module of that path, by path components: `head` covers `head.cls_tower.0`
/// and `head` itself, never `head2`.
pub fn covers(module: &str, name: &str) -> bool {
    match name.strip_prefix(module) {
        Some(rest) => rest.is_empty() || rest.starts_with('.'),
        None => false,
    }
}

/// A parsed `module`: one or more parts, separated by commas.
///
/// A part is a path (`head.cls_tower`) or a glob in which `.` separates components: `*` and `?` stay within one
/// component, `**` stands for any number of them, `[1-3]` for one character of a set and `{a,b}` for one of
/// several texts. A part covers the layers whose path it matches **and all below what it matches**: `head` covers
/// `head.cls_tower.0`, and `*` matches the modules at the top and so covers everything.
#[derive(Debug, Clone)]
pub struct Pattern {
    pub(super) parts: Vec<Part>,
}

#[derive(Debug, Clone)]
pub(super) struct Part {
    pub(super) text: String,
    /// None for a plain path.
    pub(super) glob: Option<GlobMatcher>,
}

impl Pattern {
    /// Parses a `module`.
    ///
    /// # Errors
    /// If a part is empty or no valid glob; names the part.
    pub fn parse(text: &str) -> Result<Self> {
        let parts = split(text, ',').into_iter().map(Part::parse).collect::<Result<_>>()?;
        Ok(Self { parts })
    }

    /// Whether the layer of that name is covered.
    pub fn covers(&self, layer: &str) -> bool {
        self.parts.iter().any(|part| part.covers(layer))
    }

    /// Whether two patterns of plain paths overlap, whatever the network; globs need its layers.
    pub fn overlaps_surely(&self, other: &Self) -> bool {
        let plain = |p: &Self| p.parts.iter().filter(|p| p.glob.is_none()).cloned().collect();
        let (ours, theirs): (Vec<Part>, Vec<Part>) = (plain(self), plain(other));
        ours.iter()
            .any(|a| theirs.iter().any(|b| covers(&a.text, &b.text) || covers(&b.text, &a.text)))
    }

    /// The parts that surely have no layer of `other`, joined by commas; `None` without any.
    pub fn without(&self, other: &Self) -> Option<String> {
        let is_apart = |part: &&Part| other.parts.iter().all(|other| part.is_apart_from(other));
        let kept: Vec<&str> =
            self.parts.iter().filter(is_apart).map(|part| part.text.as_str()).collect();
        (!kept.is_empty()).then(|| kept.join(","))
    }
}

impl Part {
    /// Whether no layer can be in both: neither path, as far as it is plain, leads to the other.
    fn is_apart_from(&self, other: &Self) -> bool {
        let (ours, theirs) = (self.plain_path(), other.plain_path());
        let is_known = !ours.is_empty() && !theirs.is_empty();
        is_known && !covers(&ours, &theirs) && !covers(&theirs, &ours)
    }

    /// The path up to the first component that is a glob.
    fn plain_path(&self) -> String {
        let is_plain = |component: &&str| !component.contains(GLOB);
        let plain: Vec<&str> = self.text.split('.').take_while(is_plain).collect();
        plain.join(".")
    }

    pub(super) fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        ensure!(
            !text.is_empty(),
            "a module pattern is empty, expected a path such as fpn, a glob such as head.*.0, or a list of these"
        );
        let glob = if text.contains(GLOB) {
            let made = GlobBuilder::new(&text.replace('.', "/")).literal_separator(true).build();
            match made {
                Ok(glob) => Some(glob.compile_matcher()),
                Err(err) => bail!("module pattern {text:?} is not a valid glob: {}", err.kind()),
            }
        } else {
            None
        };
        Ok(Self { text: text.to_owned(), glob })
    }

    pub(super) fn covers(&self, layer: &str) -> bool {
        match &self.glob {
            None => covers(&self.text, layer),
            Some(glob) => paths_to(layer).any(|path| glob.is_match(path.replace('.', "/"))),
        }
    }
}

/// The paths that lead to a layer, itself last: `head`, `head.cls_tower`, `head.cls_tower.0`.
pub(super) fn paths_to(layer: &str) -> impl Iterator<Item = &str> {
    let ends = layer.match_indices('.').map(|(i, _)| i).chain([layer.len()]);
    ends.map(move |end| &layer[..end])
}

/// The pieces between separators that are not inside braces or brackets.
pub fn split(text: &str, separator: char) -> Vec<&str> {
    let (mut depth, mut start, mut pieces) = (0_i32, 0, Vec::new());
    for (i, c) in text.char_indices() {
        match c {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            _ if c == separator && depth == 0 => {
                pieces.push(&text[start..i]);
                start = i + c.len_utf8();
            }
            _ => {}
        }
    }
    pieces.push(&text[start..]);
    pieces
}

/// Reads a `module` from JSON: a pattern, or a list of patterns, which is joined with commas.
///
/// # Errors
/// If it is neither, or null where the field has to be given.
pub fn pattern_from_json<'de, D: Deserializer<'de>>(d: D) -> Result<Option<String>, D::Error> {
    Ok(match Option::<OneOrMore>::deserialize(d)? {
        None => None,
        Some(OneOrMore::One(text)) => Some(text),
        Some(OneOrMore::More(list)) => Some(list.join(",")),
    })
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a pattern, a list of patterns, or null")]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// The JSON schema of a `module`, for fields read by [`pattern_from_json`].
pub struct PatternSchema;

impl JsonSchema for PatternSchema {
    fn schema_name() -> Cow<'static, str> {
        "ModulePattern".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "anyOf": [
                { "type": "string" },
                { "type": "array", "items": { "type": "string" } },
                { "type": "null" },
            ]
        })
    }
}
