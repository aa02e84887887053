//! What `mqat report` finds.

use std::path::PathBuf;

use serde::Serialize;

use super::columns::Column;
use super::gather::{Point, QuantizationKind};
use crate::pose::{Difference, Discordant};
use crate::quant::size::Sizes;

/// Mean and spread of a percentage over runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSpread {
    /// The column: `near`, `medium`, `far` or `all`.
    pub bin: String,
    /// Mean over the runs, percent.
    pub mean: f64,
    /// Standard deviation over the runs (n - 1), percent; none for one run.
    pub std_dev: Option<f64>,
    /// 95 % interval (Wilson) of one run's percentage; none for several.
    pub interval_95: Option<(f64, f64)>,
}

/// Runs that differ in nothing but their seed.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// What the network is: `fpn 2-bit (3 levels)`.
    pub network: String,
    /// What it belongs to.
    pub family: QuantizationKind,
    /// Its size.
    pub sizes: Sizes,
    /// Steps of training behind it, all stages together.
    pub global_step: u64,
    /// The seeds, each once.
    pub seeds: Vec<u64>,
    /// `ADI-0.1d` as published.
    pub headline: Vec<RunSpread>,
    /// The closest-point distance at 0.1 d.
    pub true_adi: Vec<RunSpread>,
    /// `ADI-0.1d` of each class over all depths, as published; empty where there is one class.
    pub classes: Vec<ClassSpread>,
    /// Its runs: places in `points`, in the order of `seeds`.
    pub runs: Vec<usize>,
}

/// Mean and spread of a class's percentage over runs.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ClassSpread {
    /// The class.
    pub class: String,
    /// Over all depths.
    #[serde(flatten)]
    pub spread: RunSpread,
}

/// The rows against one of them, on the same objects.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairedReport {
    /// The row that the others are compared with: its place in `groups`.
    pub base: usize,
    /// Objects that all were evaluated on.
    pub num_objects: usize,
    /// Sequences that they are of.
    pub num_sequences: usize,
    /// True where nothing tells sequences, and each image counts as one.
    pub sequences_are_images: bool,
    /// In the order of `groups`; none for the base itself.
    pub rows: Vec<Option<PairedRow>>,
}

/// A row against the base.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PairedRow {
    /// Row minus base, by a bootstrap over sequences and runs.
    pub difference: Difference,
    /// The difference's p, adjusted for the number of rows (Holm).
    pub p_holm: f64,
    /// Runs side by side: of the same seed, and where a side has one run, this against every one of the other.
    pub runs: Vec<PairedRun>,
}

/// Two runs against each other.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PairedRun {
    /// Seed of the row's.
    pub seed: u64,
    /// Seed of the base's.
    pub base_seed: u64,
    /// Objects that one has right and the other wrong.
    #[serde(flatten)]
    pub discordant: Discordant,
    /// McNemar's exact p, which takes every object for independent.
    pub p: f64,
}

/// A float network that training made worse than it was at the start.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct WorseControl {
    /// The row.
    pub network: String,
    /// Its `ADI-0.1d`, percent.
    pub percent: f64,
    /// That of the start, percent.
    pub start_percent: f64,
    /// p of the difference (bootstrap over sequences and runs).
    pub p: f64,
}

impl WorseControl {
    /// As a sentence.
    pub fn text(&self) -> String {
        format!(
            "float training made the network worse: {} has {:.1} %, the start {:.1} % (p {}); a row that loses nothing \
             against this control may still lose against the start: train on more images, or with a lower rate",
            self.network,
            self.percent,
            self.start_percent,
            match p_text(self.p) {
                below if below.starts_with('<') => below,
                p => format!("= {p}"),
            }
        )
    }
}

/// A p value to two digits, as no smaller than what a draw can show.
pub(super) fn p_text(p: f64) -> String {
    match p {
        p if p < 0.001 => "< 0.001".to_owned(),
        p if p < 0.1 => format!("{p:.3}"),
        p => format!("{p:.2}"),
    }
}

/// What `mqat report` found.
#[derive(Debug, Serialize)]
pub struct ReportSummary {
    /// Whether any of the data were rendered.
    pub synthetic_data: bool,
    /// The rows of the table.
    pub groups: Vec<Group>,
    /// The rows against one of them; none unless it was asked for.
    pub paired: Option<PairedReport>,
    /// Float rows that are worse than the start.
    pub worse_controls: Vec<WorseControl>,
    /// The columns of its tables.
    #[serde(skip)]
    pub columns: Vec<Column>,
    /// Whether they were chosen.
    #[serde(skip)]
    pub columns_chosen: bool,
    /// Whether its tables show every class.
    #[serde(skip)]
    pub per_class: bool,
    /// Every evaluated network.
    pub points: Vec<Point>,
    /// Experiments without an evaluation of the split.
    #[serde(serialize_with = "crate::io::path_text")]
    pub left_out: Vec<PathBuf>,
    /// Folder of what was written: index.html, table.md, table.csv, table.tex, accuracy_over_compression.svg and .png, report.json.
    #[serde(serialize_with = "crate::io::path_text")]
    pub folder: PathBuf,
}
