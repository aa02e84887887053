//! What `mqat report` finds.

use std::path::PathBuf;

use serde::Serialize;

use super::gather::{Point, QuantizationKind};
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
}

/// What `mqat report` found.
#[derive(Debug, Serialize)]
pub struct ReportSummary {
    /// Whether any of the data were rendered.
    pub synthetic_data: bool,
    /// The rows of the table.
    pub groups: Vec<Group>,
    /// Every evaluated network.
    pub points: Vec<Point>,
    /// Experiments without an evaluation of the split.
    #[serde(serialize_with = "crate::io::path_text")]
    pub left_out: Vec<PathBuf>,
    /// Folder of what was written: index.html, table.md, table.csv, accuracy_over_compression.svg and .png, report.json.
    #[serde(serialize_with = "crate::io::path_text")]
    pub folder: PathBuf,
}
