//! The rows of a search's report.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;

use super::request::SizeKind;
use super::trace::ProbeEstimate;
use crate::pose::Recall;

/// A trial that is complete.
#[derive(Debug, Clone, Serialize)]
pub struct TrialReport {
    /// Its name.
    pub name: String,
    /// Hash of what decides its result.
    pub id: String,
    /// Its experiment.
    #[serde(serialize_with = "crate::io::path_text")]
    pub folder: PathBuf,
    /// The network at its end.
    #[serde(serialize_with = "crate::io::path_text")]
    pub checkpoint: PathBuf,
    /// What was measured on the validation split.
    pub metric: String,
    /// The fraction that is right, with its interval.
    pub score: Recall,
    /// Steps.
    pub global_step: u64,
}

/// A trial against its reference: the same training without quantizing.
#[derive(Debug, Clone, Serialize)]
pub struct GainReport {
    /// The trial's score.
    pub score: Recall,
    /// The reference's.
    pub reference: Recall,
    /// Their difference, points of percent.
    pub points: f64,
    /// Its standard error if the two were independent; they see the same images, so that it is rather too large.
    pub standard_error: f64,
}

impl GainReport {
    pub(super) fn of(reference: &TrialReport, trial: &TrialReport) -> Option<Self> {
        let (a, b) = (reference.score, trial.score);
        let variance = |r: Recall| {
            let p = r.num_correct as f64 / r.num_targets as f64;
            p * (1.0 - p) / r.num_targets as f64
        };
        Some(Self {
            score: b,
            reference: a,
            points: b.percent? - a.percent?,
            standard_error: 100.0 * (variance(a) + variance(b)).sqrt(),
        })
    }
}

/// A module and its bits.
#[derive(Debug, Clone, Serialize)]
pub struct ModuleRow {
    /// Its pattern.
    pub module: String,
    /// Learnt numbers.
    pub num_parameters: usize,
    /// Convolution weights.
    pub num_weights: usize,
    /// Convolutions.
    pub num_layers: usize,
    /// Trace of the Hessian of the loss over its weights.
    pub trace: ProbeEstimate,
    /// Summed sensitivity of its layers, by bits.
    pub sensitivity: BTreeMap<u32, ProbeEstimate>,
    /// Its trial, if there was one.
    pub trial: Option<GainReport>,
    /// Bits of its weights.
    pub bits: u32,
    /// Levels of its weights.
    pub num_levels: u32,
    /// Its place in the flow, from 0.
    pub position: usize,
    /// Whether it goes first at the trial's bits, because of its trial or because it was named.
    pub is_first_by_trial: bool,
}

/// A layer and its bits.
#[derive(Debug, Clone, Serialize)]
pub struct LayerRow {
    /// Its path.
    pub layer: String,
    /// The module it lies in.
    pub module: String,
    /// The module's place in the flow, from 0; null where all layers are quantized in one stage.
    pub position: Option<usize>,
    /// Weights.
    pub num_weights: usize,
    /// Trace of the Hessian of the loss over its weights.
    pub trace: ProbeEstimate,
    /// Sensitivity, by bits.
    pub sensitivity: BTreeMap<u32, ProbeEstimate>,
    /// Bits of its weights.
    pub bits: u32,
    /// Levels of its weights.
    pub num_levels: u32,
}

/// The size with the chosen bits, in both totals.
#[derive(Debug, Clone, Serialize)]
pub struct SizeReport {
    /// What was asked for.
    pub target: String,
    /// The total that the target is for.
    pub counted: SizeKind,
    /// Convolution weights alone.
    pub paper_bytes: u64,
    /// How many times smaller than at 32 bits.
    pub paper_compression: f64,
    /// Everything in the state, scales of quantizers included, without a file's header.
    pub file_bytes: u64,
    /// How many times smaller than at 32 bits.
    pub file_compression: f64,
    /// Bits a convolution weight.
    pub mean_bits: f64,
}

/// `57.5 (52.6-62.3)`: percent with its 95 % interval.
pub(super) fn percent(recall: &Recall) -> String {
    match (recall.percent, recall.interval_95) {
        (Some(p), Some((low, high))) => format!("{p:.1} ({low:.1}-{high:.1})"),
        _ => "no object".to_owned(),
    }
}
