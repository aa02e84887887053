//! The keys of a camera's file, whatever their spelling and nesting.

use std::cell::Cell;

use anyhow::{Result, ensure};
use serde_json::Value;

use super::{number, numbers};

/// Maps in maps that are looked into.
const MAX_DEPTH: usize = 8;
/// Keys that an error lists.
const MOST_LISTED: usize = 12;
/// Maps about something else, whose keys must not be taken for the camera's.
const OTHER_MAPS: [&str; 3] = ["roi", "header", "stamp"];

/// A value with the way to it.
pub(super) struct Leaf<'a> {
    /// As spelled, dotted.
    pub path: String,
    /// The maps that it is in, normalised, outermost first.
    pub parents: Vec<String>,
    /// Its own key, normalised: without case, `_` and `-`.
    pub key: String,
    /// A number, a text, a list, or a matrix (a map with `data`).
    pub value: &'a Value,
    used: Cell<bool>,
}

impl Leaf<'_> {
    /// Marks it as understood.
    pub fn is_used(&self) {
        self.used.set(true);
    }

    /// True for a list or a matrix.
    pub fn has_numbers(&self) -> bool {
        self.value.is_array() || self.value.is_object()
    }

    /// Whether the value says nothing: null, false, empty, zeros alone.
    pub fn is_blank(&self) -> bool {
        is_blank(self.value)
    }
}

fn is_blank(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(v) => !v,
        Value::Number(n) => n.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.iter().all(is_blank),
        Value::Object(map) => map.get("data").map_or(map.is_empty(), is_blank),
    }
}

/// A key without case and without what is neither a letter nor a digit.
pub(super) fn normalised(key: &str) -> String {
    key.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect()
}

/// All values of a file.
pub(super) struct Keys<'a> {
    leaves: Vec<Leaf<'a>>,
    roi: Vec<Leaf<'a>>,
}

impl<'a> Keys<'a> {
    /// The values of a map, or of a list of maps; none for other documents.
    pub fn of(document: &'a Value) -> Option<Self> {
        let is_map = |value: &Value| value.is_object();
        let maps = match document {
            Value::Object(_) => true,
            Value::Array(items) => !items.is_empty() && items.iter().all(is_map),
            _ => false,
        };
        if !maps {
            return None;
        }
        let mut keys = Self { leaves: Vec::new(), roi: Vec::new() };
        keys.add("", &[], document, 0);
        Some(keys)
    }

    fn add(&mut self, path: &str, parents: &[String], value: &'a Value, depth: usize) {
        match value {
            Value::Object(map) if depth == 0 || (!is_matrix(value) && depth < MAX_DEPTH) => {
                for (key, value) in map {
                    let path = match path {
                        "" => key.clone(),
                        _ => format!("{path}.{key}"),
                    };
                    // ORB-SLAM's `Camera.fx` is one key.
                    let parts = key.split('.').map(normalised);
                    let parents: Vec<String> = parents.iter().cloned().chain(parts).collect();
                    self.add(&path, &parents, value, depth + 1);
                }
            }
            Value::Array(items)
                if !items.is_empty() && items.iter().all(Value::is_object) && depth < MAX_DEPTH =>
            {
                for (i, item) in items.iter().enumerate() {
                    if let Value::Object(map) = item {
                        for (key, value) in map {
                            let parents: Vec<String> =
                                parents.iter().cloned().chain([normalised(key)]).collect();
                            self.add(&format!("{path}[{i}].{key}"), &parents, value, depth + 1);
                        }
                    }
                }
            }
            _ => {
                let Some((key, parents)) = parents.split_last() else { return };
                let leaf = Leaf {
                    path: path.to_owned(),
                    parents: parents.to_vec(),
                    key: key.clone(),
                    value,
                    used: Cell::new(false),
                };
                match parents.iter().any(|p| OTHER_MAPS.contains(&p.as_str())) {
                    true => self.roi.push(leaf),
                    false => self.leaves.push(leaf),
                }
            }
        }
    }

    /// All values.
    pub fn all(&self) -> impl Iterator<Item = &Leaf<'a>> {
        self.leaves.iter()
    }

    /// The values under one of these (normalised) keys, in any map.
    pub fn named(&self, names: &[&str]) -> impl Iterator<Item = &Leaf<'a>> {
        self.leaves.iter().filter(|leaf| names.contains(&leaf.key.as_str()))
    }

    /// As [`Keys::named`], of the region of interest.
    pub fn of_roi(&self, names: &[&str]) -> impl Iterator<Item = &Leaf<'a>> {
        self.roi.iter().filter(|leaf| names.contains(&leaf.key.as_str()))
    }

    /// The values that nothing has asked for.
    pub fn unused(&self) -> impl Iterator<Item = &Leaf<'a>> {
        self.leaves.iter().filter(|leaf| !leaf.used.get())
    }

    /// The numbers that all of these lists give, with the first of them; none without one.
    ///
    /// # Errors
    /// If one is not a list of numbers, or two differ.
    pub fn same_numbers<'s>(
        &'s self,
        leaves: impl Iterator<Item = &'s Leaf<'a>>,
    ) -> Result<Option<(&'s Leaf<'a>, Vec<f64>)>> {
        let mut found: Option<(&Leaf, Vec<f64>)> = None;
        for leaf in leaves {
            leaf.is_used();
            let values = numbers(&leaf.path, leaf.value)?;
            match &found {
                None => found = Some((leaf, values)),
                Some((first, same)) => ensure!(*same == values, "{}", differ(first, leaf)),
            }
        }
        Ok(found)
    }

    /// The number that all values of these names give, with its path; none without one.
    ///
    /// # Errors
    /// If one is not a number, or two differ.
    pub fn same_number(&self, names: &[&str]) -> Result<Option<(&str, f64)>> {
        let mut found: Option<(&Leaf, f64)> = None;
        for leaf in self.named(names) {
            leaf.is_used();
            let value = number(&leaf.path, leaf.value)?;
            match found {
                None => found = Some((leaf, value)),
                Some((first, same)) => ensure!(same == value, "{}", differ(first, leaf)),
            }
        }
        Ok(found.map(|(leaf, value)| (leaf.path.as_str(), value)))
    }

    /// The outermost keys, for errors.
    pub fn listed(&self) -> String {
        let mut names: Vec<&str> = self.leaves.iter().map(|leaf| leaf.path.as_str()).collect();
        let more = if names.len() > MOST_LISTED { ", ..." } else { "" };
        names.truncate(MOST_LISTED);
        match names.is_empty() {
            true => "none".to_owned(),
            false => names.join(", ") + more,
        }
    }
}

/// A matrix of OpenCV or ROS: a map with `data`, or one that was meant to have it.
fn is_matrix(value: &Value) -> bool {
    ["data", "rows", "cols"].iter().any(|key| value.get(key).is_some())
}

fn differ(a: &Leaf, b: &Leaf) -> String {
    format!("{} and {} differ: is it a file of several cameras? give a file of one", a.path, b.path)
}
