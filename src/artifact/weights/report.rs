//! What loading a file found, for people and for JSON.

use std::fmt::Write as _;
use std::path::PathBuf;

use serde::Serialize;

use crate::quant::Grid;

/// How many names a line of text lists.
const SHOWN: usize = 4;

/// What loading found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct LoadReport {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub file: PathBuf,
    /// The part of a nested PyTorch file that was taken, for example `model`.
    pub member: Option<String>,
    /// Its other parts, which are left alone: what they are.
    pub other_members: Vec<OtherMember>,
    /// The form of the keys, for example `bare` or `model. (the quantization wrapper)`.
    pub key_form: String,
    /// Tensors of the network that hold the file's values now.
    pub num_matched: usize,
    /// Tensors that the file holds twice under two names, equal bit for bit.
    pub num_doubled: usize,
    /// Tensors of the network that the file has not.
    pub missing: Vec<Unmatched>,
    /// Tensors of the file that the network has not.
    pub left_over: Vec<Unmatched>,
    /// Tensors that both have and that differ in shape or kind; they keep their initial values.
    pub mismatched: Vec<Unmatched>,
    /// Tensors of other element types.
    pub converted: Vec<Conversion>,
    /// Layers with the state of the published INQ.
    pub inq: Vec<InqLayerReport>,
    /// What else is to be known, a line each.
    pub notes: Vec<String>,
}

/// A part of a nested file that is not a weight of the network.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OtherMember {
    /// Its name.
    pub name: String,
    /// Its type, and its value where that is short.
    pub what: String,
}

/// A tensor that has no match.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Unmatched {
    /// Its bare key.
    pub name: String,
    /// What is wrong with it, or why it does not matter.
    pub why: String,
    /// Whether the network's outputs do not depend on it.
    pub harmless: bool,
}

/// Tensors that were converted to what the network computes with.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Conversion {
    /// Element type in the file.
    pub from: String,
    /// Element type in the network.
    pub to: String,
    /// Number of tensors.
    pub num_tensors: usize,
}

/// A layer that the published INQ quantized.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct InqLayerReport {
    /// The layer, for example `fpn.inner_convs.2`.
    pub name: String,
    /// Its weights.
    pub num_weights: usize,
    /// Fraction of them that is frozen, 0 to 1.
    pub frozen_fraction: f64,
    /// Number of different frozen values; none when there are more than a grid may have.
    pub num_values: Option<usize>,
    /// The levels that the values lie on; none when they lie on none that is known.
    pub grid: Option<GridReport>,
    /// The largest distance by which a value was moved onto its level (rounding of the levels in f32); none when
    /// nothing was moved.
    pub largest_shift: Option<f64>,
}

/// Recognised levels.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct GridReport {
    /// `uniform` or `power_of_two`.
    pub spacing: &'static str,
    /// Number of levels.
    pub num_levels: u32,
    /// Bits that number them.
    pub bits: u32,
    /// A level is an integer code times it; none for powers of two.
    pub scale: Option<f32>,
    /// The largest magnitude of a level.
    pub max_level: f32,
}

impl GridReport {
    pub(super) fn new(grid: &Grid) -> Self {
        let spacing = grid.spacing();
        Self {
            spacing: spacing.name(),
            num_levels: spacing.num_levels(),
            bits: spacing.bits(),
            scale: grid.scale().map(|scale| scale[0]),
            max_level: grid.max_level()[0],
        }
    }
}

impl LoadReport {
    /// Tensors without a match that an output depends on.
    pub fn troubles(&self) -> impl Iterator<Item = &Unmatched> {
        let all = self.missing.iter().chain(&self.left_over).chain(&self.mismatched);
        all.filter(|u| !u.harmless)
    }

    /// Layers of the network that keep their initial values though its outputs depend on them.
    pub fn not_loaded(&self) -> Vec<&str> {
        let all = self.missing.iter().chain(&self.mismatched);
        all.filter(|u| !u.harmless).map(|u| u.name.as_str()).collect()
    }

    /// One line: what was taken from where.
    pub fn summary(&self) -> String {
        let mut text = format!("{} tensors matched", self.num_matched);
        if let Some(member) = &self.member {
            let _ = write!(text, ", from its member {member:?}");
        }
        if self.key_form != "bare" && !self.key_form.is_empty() {
            let _ = write!(text, ", keys {}", self.key_form);
        }
        if self.num_doubled > 0 {
            let _ = write!(text, ", {} stored twice and equal", self.num_doubled);
        }
        for c in &self.converted {
            let _ = write!(text, ", {} converted from {} to {}", c.num_tensors, c.from, c.to);
        }
        for (what, list) in [
            ("missing", &self.missing),
            ("left over", &self.left_over),
            ("not fitting", &self.mismatched),
        ] {
            for harmless in [false, true] {
                let names: Vec<&str> = (list.iter().filter(|u| u.harmless == harmless))
                    .map(|u| u.name.as_str())
                    .collect();
                if !names.is_empty() {
                    let kind = if harmless { " (harmless)" } else { "" };
                    let _ = write!(
                        text,
                        "; {} {what}{kind}: {}",
                        names.len(),
                        first_few(&names, SHOWN)
                    );
                }
            }
        }
        text
    }

    /// Logs what was loaded: loudly where the outputs depend on tensors that are not from the file.
    pub(crate) fn log(&self) {
        tracing::info!("loaded {}: {}", self.file.display(), self.summary());
        let not_loaded = self.not_loaded();
        if !not_loaded.is_empty() {
            tracing::warn!(
                "{} tensors of the network are NOT from {} and keep their initial values: {}",
                not_loaded.len(),
                self.file.display(),
                first_few(&not_loaded, SHOWN)
            );
        }
        for note in &self.notes {
            tracing::info!("{note}");
        }
    }

    /// Several lines, for a terminal.
    pub fn text(&self) -> String {
        let mut out = format!("{}: {}\n", self.file.display(), self.summary());
        for (what, list) in [
            ("missing", &self.missing),
            ("left over", &self.left_over),
            ("not fitting", &self.mismatched),
        ] {
            // A line for each reason.
            let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
            for u in list {
                match reasons.iter_mut().find(|(why, _)| *why == u.why) {
                    Some((_, names)) => names.push(&u.name),
                    None => reasons.push((&u.why, vec![&u.name])),
                }
            }
            for (why, names) in reasons {
                let _ = writeln!(out, "  {what}: {} ({why})", first_few(&names, SHOWN));
            }
        }
        for m in &self.other_members {
            let _ = writeln!(out, "  left alone: {} ({})", m.name, m.what);
        }
        for layer in &self.inq {
            let _ = writeln!(out, "  {}", layer.text());
        }
        for note in &self.notes {
            let _ = writeln!(out, "  {note}");
        }
        out
    }
}

impl InqLayerReport {
    /// A line: what is frozen on which levels.
    pub fn text(&self) -> String {
        let fraction = self.frozen_fraction;
        let frozen = if fraction == 0.0 {
            "INQ not begun, float".to_owned()
        } else if fraction == 1.0 {
            "INQ, fully frozen".to_owned()
        } else {
            format!("INQ, {:.2} % frozen", fraction * 100.0)
        };
        let levels = match (&self.grid, self.num_values) {
            _ if self.frozen_fraction == 0.0 => String::new(),
            (Some(g), values) => {
                let spacing =
                    if g.spacing == "uniform" { "evenly spaced" } else { "powers of two" };
                format!(
                    ", {}-bit: {} levels {spacing} up to {}, {} in use",
                    g.bits,
                    g.num_levels,
                    g.max_level,
                    values.unwrap_or(0)
                )
            }
            (None, Some(values)) => format!(", {values} different values on no known grid"),
            (None, None) => ", more different values than a grid may have".to_owned(),
        };
        format!("{}: {frozen}{levels}", self.name)
    }
}

/// The first of some names.
pub(super) fn first_few(names: &[&str], shown: usize) -> String {
    let more = names.len().saturating_sub(shown);
    let listed = names[..names.len().min(shown)].join(", ");
    if more > 0 { format!("{listed} and {more} more") } else { listed }
}
