//! The rows of a search's report.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;

use super::request::SizeKind;
use super::trace::ProbeEstimate;
use crate::pose::{FEW_SEQUENCES, Outcomes, Recall};

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
    /// Right and wrong of every object.
    #[serde(skip)]
    pub(super) outcomes: Outcomes,
    /// Steps.
    pub global_step: u64,
}

/// A trial against its reference (the same training without quantizing) and against the start, on the same images.
#[derive(Debug, Clone, Serialize)]
pub struct GainReport {
    /// The trial's score.
    pub score: Recall,
    /// The reference's.
    pub reference: Recall,
    /// Their difference, points of percent.
    pub points: f64,
    /// Its standard error: paired by object, by a bootstrap over sequences.
    pub standard_error: f64,
    /// Sequences that it is over; objects where all are of one sequence.
    pub num_sequences: usize,
    /// Objects that the trial alone has right.
    pub better: u64,
    /// Objects that the reference alone has right.
    pub worse: u64,
    /// A gain at least this far from 0 decides, points of percent.
    pub margin: f64,
    /// What it is worth.
    pub verdict: Verdict,
    /// The score of the full-precision network as it is.
    pub start: Recall,
    /// The trial minus the start, points of percent: the gain of the paper's rule.
    pub points_over_start: f64,
    /// Its standard error, likewise.
    pub standard_error_over_start: f64,
}

/// What a gain is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// More than the margin.
    Gains,
    /// Within it.
    Undecided,
    /// A loss of more than the margin.
    Loses,
}

impl Verdict {
    fn of(points: f64, margin: f64) -> Self {
        match points {
            p if p > margin => Self::Gains,
            p if p < -margin => Self::Loses,
            _ => Self::Undecided,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Gains => "gains",
            Self::Undecided => "undecided",
            Self::Loses => "loses",
        }
    }
}

/// Seed of the bootstrap: a search of the same trials is the same.
const SEED: u64 = 1;

impl GainReport {
    /// `margin` is in points of percent; none takes the standard error.
    pub(super) fn of(
        reference: &TrialReport,
        trial: &TrialReport,
        start: &Outcomes,
        margin: Option<f64>,
    ) -> Result<Self> {
        let doing = || format!("comparing trial {} with {}", trial.name, reference.name);
        let gain = trial.outcomes.gain_over(&reference.outcomes, SEED).with_context(doing)?;
        // The start was evaluated on the whole list, of which a trial may have the begin.
        let start = start.on(&trial.outcomes).context("comparing with the start")?;
        let over_start = trial.outcomes.gain_over(&start, SEED)?.difference;
        let (num_correct, num_targets) = start.counts();
        let margin = margin.unwrap_or(gain.difference.std_error);
        Ok(Self {
            score: trial.score,
            reference: reference.score,
            points: gain.difference.percent,
            standard_error: gain.difference.std_error,
            num_sequences: trial.outcomes.num_units(),
            better: gain.discordant.better,
            worse: gain.discordant.worse,
            margin,
            verdict: Verdict::of(gain.difference.percent, margin),
            start: Recall::new(num_correct, num_targets),
            points_over_start: over_start.percent,
            standard_error_over_start: over_start.std_error,
        })
    }

    /// That there are too few sequences for a standard error, if so.
    pub(super) fn note_of_few_sequences(&self) -> Option<String> {
        (self.num_sequences < FEW_SEQUENCES).then(|| {
            format!(
                "only {} sequences: with fewer than {FEW_SEQUENCES} standard errors, and margins by them, are too small",
                self.num_sequences
            )
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

#[cfg(test)]
mod tests {
    use super::*;

    fn trial(name: &str, right: &[(&str, bool)]) -> TrialReport {
        let outcomes = Outcomes::new(right.iter().copied());
        let (num_correct, num_targets) = outcomes.counts();
        TrialReport {
            name: name.to_owned(),
            id: String::new(),
            folder: PathBuf::new(),
            checkpoint: PathBuf::new(),
            metric: String::new(),
            score: Recall::new(num_correct, num_targets),
            outcomes,
            global_step: 0,
        }
    }

    #[test]
    fn a_gain_is_paired_and_decided_by_its_margin() {
        let of = |right: [bool; 4]| ["a", "a", "b", "b"].into_iter().zip(right).collect::<Vec<_>>();
        let reference = trial("reference", &of([false, false, true, false]));
        let better = trial("fpn", &of([true, true, true, false]));
        let mut whole = of([true, false, false, false]);
        whole.push(("c", true));
        let start = Outcomes::new(whole);
        let gain = GainReport::of(&reference, &better, &start, None).unwrap();
        // +2 of 2 in one sequence, 0 of 2 in the other: draws 0, 50, 100, standard error 35.4.
        assert_eq!((gain.points, gain.better, gain.worse), (50.0, 2, 0));
        assert!((gain.standard_error - 35.355).abs() < 1.0 && gain.margin == gain.standard_error);
        assert_eq!(gain.verdict, Verdict::Gains);
        assert!(gain.note_of_few_sequences().unwrap().contains("only 2 sequences"));
        assert_eq!(GainReport { num_sequences: 20, ..gain.clone() }.note_of_few_sequences(), None);
        assert_eq!((gain.start.num_correct, gain.start.num_targets), (1, 4));
        assert_eq!(gain.points_over_start, 50.0);
        let verdict = |trial: &TrialReport, margin| {
            GainReport::of(&reference, trial, &start, Some(margin)).unwrap().verdict
        };
        assert_eq!(verdict(&better, 60.0), Verdict::Undecided);
        assert_eq!(verdict(&better, 50.0), Verdict::Undecided);
        assert_eq!(verdict(&reference, 0.0), Verdict::Undecided);
        assert_eq!(verdict(&trial("none", &of([false; 4])), 20.0), Verdict::Loses);
        let other = trial("other", &[("a", true)]);
        let text = format!("{:#}", GainReport::of(&reference, &other, &start, None).unwrap_err());
        assert!(text.contains("comparing trial other with reference: 1 objects"), "{text}");
    }
}
