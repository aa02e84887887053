//! What a training run tells about itself, as values and as lines of `metrics.jsonl`.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::io;
use crate::nn::BatchNormShift;
use crate::quant::{ModuleTelemetry, SiteReport};

/// A line of `metrics.jsonl`: the key `kind` tells which.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Record {
    /// A stage begins, or goes on after a resume.
    StageStart(StageStart),
    /// One step.
    Step(StepRecord),
    /// One epoch.
    Epoch(EpochRecord),
    /// What quantization did in an epoch.
    Telemetry(TelemetryRecord),
    /// Statistics of batch norms were estimated again.
    BatchNorm(BatchNormRecord),
    /// A validation.
    Validation(ValidRecord),
    /// A stage is complete.
    StageEnd(StageEnd),
}

impl Record {
    /// Steps of the run when it was written.
    pub fn global_step(&self) -> u64 {
        match self {
            Self::StageStart(r) => r.global_step,
            Self::Step(r) => r.global_step,
            Self::Epoch(r) => r.global_step,
            Self::Telemetry(r) => r.global_step,
            Self::BatchNorm(r) => r.global_step,
            Self::Validation(r) => r.global_step,
            Self::StageEnd(r) => r.global_step,
        }
    }

    /// The records of a metrics file, in order. A last line that was cut off while it was written is left out.
    ///
    /// # Errors
    /// If the file cannot be read, or a line is not a record: names the line.
    pub fn read_all(path: &Path) -> Result<Vec<Self>> {
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |last| last + 1);
        text[..whole]
            .split_inclusive(|&byte| byte == b'\n')
            .enumerate()
            .map(|(i, line)| io::parse_json(line, &format!("{}:{}", path.display(), i + 1)))
            .collect()
    }
}

/// Losses by name, in the order of the task that gives them.
///
/// In a line they are the keys `loss_NAME`, for example `loss_cls`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NamedLosses(pub Vec<(String, f64)>);

/// What a loss's key begins with.
const LOSS: &str = "loss_";

impl NamedLosses {
    /// Names with their values.
    pub fn iter(&self) -> impl Iterator<Item = (&str, f64)> {
        self.0.iter().map(|(name, value)| (name.as_str(), *value))
    }

    /// Their sum.
    pub fn total(&self) -> f64 {
        self.iter().map(|(_, value)| value).sum()
    }

    /// Adds losses, by name.
    pub fn add(&mut self, others: &Self) {
        for (name, value) in others.iter() {
            match self.0.iter_mut().find(|(own, _)| own == name) {
                Some((_, sum)) => *sum += value,
                None => self.0.push((name.to_owned(), value)),
            }
        }
    }

    /// Each divided by a number.
    pub fn over(&self, number: f64) -> Self {
        Self(self.iter().map(|(name, value)| (name.to_owned(), value / number)).collect())
    }

    /// The value of that name.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.iter().find(|(n, _)| *n == name).map(|(_, value)| value)
    }
}

impl<'a> FromIterator<(&'a str, f64)> for NamedLosses {
    fn from_iter<I: IntoIterator<Item = (&'a str, f64)>>(losses: I) -> Self {
        Self(losses.into_iter().map(|(name, loss)| (name.to_owned(), loss)).collect())
    }
}

impl<const N: usize> From<[(&str, f64); N]> for NamedLosses {
    fn from(losses: [(&str, f64); N]) -> Self {
        Self(losses.map(|(name, value)| (name.to_owned(), value)).into())
    }
}

impl Serialize for NamedLosses {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in self.iter() {
            map.serialize_entry(&format!("{LOSS}{name}"), &value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for NamedLosses {
    /// Takes the keys `loss_NAME` and passes over all others.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = NamedLosses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "losses, keys {LOSS}NAME with numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NamedLosses, A::Error> {
                let mut losses = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    match key.strip_prefix(LOSS) {
                        Some(name) => losses.push((name.to_owned(), map.next_value()?)),
                        None => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(NamedLosses(losses))
            }
        }

        deserializer.deserialize_map(Keys)
    }
}

/// [`NamedLosses`] whose numbers are texts, so that they are read back bit for bit.
pub(super) mod exact_losses {
    use super::*;

    pub fn serialize<S: Serializer>(losses: &NamedLosses, s: S) -> Result<S::Ok, S::Error> {
        let mut map = s.serialize_map(Some(losses.0.len()))?;
        for (name, value) in losses.iter() {
            map.serialize_entry(&format!("{LOSS}{name}"), &format!("{value:?}"))?;
        }
        map.end()
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<NamedLosses, D::Error> {
        struct Keys;

        impl<'de> Visitor<'de> for Keys {
            type Value = NamedLosses;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "losses, keys {LOSS}NAME with numbers as text")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<NamedLosses, A::Error> {
                let mut losses = Vec::new();
                while let Some(key) = map.next_key::<String>()? {
                    match key.strip_prefix(LOSS) {
                        Some(name) => {
                            let text: String = map.next_value()?;
                            let value = text.parse().map_err(serde::de::Error::custom)?;
                            losses.push((name.to_owned(), value));
                        }
                        None => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(NamedLosses(losses))
            }
        }

        d.deserialize_map(Keys)
    }
}

/// One step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepRecord {
    /// Steps of the run so far, this one included.
    pub global_step: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: String,
    /// The stage's epoch, from 0.
    pub epoch: u32,
    /// The batch of the epoch, from 0.
    pub batch: usize,
    /// Batches of the epoch.
    pub num_batches: usize,
    /// The losses, each with its weight: keys `loss_NAME` of the line.
    #[serde(flatten)]
    pub losses: NamedLosses,
    /// Their sum.
    pub loss: f64,
    /// Learning rate.
    pub lr: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Images of the batch.
    pub num_images: usize,
    /// Positive cells of the batch.
    pub num_positive: usize,
    /// Images a second, waiting for data included.
    pub images_per_s: f64,
}

/// One epoch; losses and norm are means over its steps, those before a resume included.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EpochRecord {
    /// Steps of the run so far.
    pub global_step: u64,
    /// Epochs of the run so far, this one included.
    pub global_epoch: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: String,
    /// The stage's epoch, from 0.
    pub epoch: u32,
    /// Epochs of the stage.
    pub num_epochs: u32,
    /// Steps.
    pub steps: u64,
    /// The losses, each with its weight: keys `loss_NAME` of the line.
    #[serde(flatten)]
    pub losses: NamedLosses,
    /// Their sum.
    pub loss: f64,
    /// Norm of the gradients before clipping.
    pub grad_norm: f64,
    /// Positive cells per image.
    pub positive_per_image: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// The fraction of the module's weights that its schedule wants frozen; null for methods that freeze none.
    #[serde(alias = "inq_fraction")]
    pub quantized_fraction: Option<f64>,
    /// Fraction of the stage's module's weights that are frozen.
    #[serde(alias = "share_frozen")]
    pub frozen_fraction: Option<f64>,
    /// Images a second over the epoch.
    pub images_per_s: f64,
}

/// What quantization did to the weights of a stage's module in an epoch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TelemetryRecord {
    /// Steps of the run so far.
    pub global_step: u64,
    /// Epochs of the run so far, this one included.
    pub global_epoch: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: String,
    /// The stage's epoch, from 0.
    pub epoch: u32,
    /// Seconds that the measuring took.
    pub seconds: f64,
    /// The module and its layers.
    #[serde(flatten)]
    pub module: ModuleTelemetry,
}

/// The running statistics of batch norms, before they were estimated again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BatchNormRecord {
    /// Steps of the run so far.
    pub global_step: u64,
    /// Epochs of the run so far.
    pub global_epoch: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: String,
    /// Training batches of the estimate.
    pub num_batches: usize,
    /// Batch norms that were estimated.
    pub num_layers: usize,
    /// Seconds that it took.
    pub seconds: f64,
    /// The batch norm whose running mean was furthest from that of the batches.
    pub largest_shift: BatchNormShift,
    /// The batch norm whose running variance was furthest from that of the batches, as a factor.
    pub largest_variance_ratio: BatchNormShift,
}

/// A stage that begins, or goes on after a resume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageStart {
    /// The stage, from 0.
    pub stage: usize,
    /// Its name.
    pub name: String,
    /// The module it quantizes.
    pub module: Option<String>,
    /// The epoch it begins with: 0 unless resumed.
    pub epoch: u32,
    /// Its epochs.
    pub num_epochs: u32,
    /// Batches an epoch.
    pub num_batches: usize,
    /// Steps of the run so far.
    pub global_step: u64,
    /// Parameters that some entry of is trained, in numbers.
    pub num_trainable: usize,
    /// The layers of all modules that carry quantizers.
    pub sites: Vec<SiteReport>,
}

/// A stage that is complete.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StageEnd {
    /// The stage, from 0.
    pub stage: usize,
    /// Its name.
    pub name: String,
    /// Steps of the run so far.
    pub global_step: u64,
    /// The checkpoint that stays.
    #[serde(serialize_with = "crate::io::path_text")]
    pub checkpoint: PathBuf,
    /// The layers of all modules that carry quantizers; all weights were found on their levels.
    pub sites: Vec<SiteReport>,
}

/// A checkpoint that was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointRecord {
    /// Its file.
    pub path: PathBuf,
    /// Steps of the run so far.
    pub global_step: u64,
    /// Epochs of the run so far.
    pub global_epoch: u64,
    /// Whether it is the best one now.
    pub best: bool,
}

/// What a validation measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "AnyScore")]
pub struct ValidScore {
    /// Name of the score that chooses the best checkpoint.
    pub name: String,
    /// The score; null in a file where it is not finite.
    pub value: f64,
    /// Whether more is better.
    pub higher_is_better: bool,
    /// The counts behind the score, where it is a recall.
    pub counts: Option<Counts>,
    /// Everything else that was measured, by name.
    pub details: Vec<(String, f64)>,
    /// Of each sequence its objects behind the counts, in the list's order: `1` is right, `0` wrong. Empty where it was
    /// not kept.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub outcomes: BTreeMap<String, String>,
}

/// The counts behind a recall.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Objects whose pose is right.
    pub correct: usize,
    /// Objects that are there.
    pub objects: usize,
    /// Objects for which some pose was found.
    pub found: usize,
}

/// A validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ValidRecord {
    /// Steps of the run so far.
    pub global_step: u64,
    /// Epochs of the run so far.
    pub global_epoch: u64,
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's name.
    pub stage_name: String,
    /// What was measured.
    pub score: ValidScore,
    /// Whether the moving average of the weights was evaluated, not the weights themselves.
    pub averaged: bool,
    /// Whether the weights may be the stage's best: not while its module is only partly quantized.
    pub eligible: bool,
    /// Whether it is the stage's best so far.
    pub best: bool,
}

/// A score as it may be in a file: lines of versions before 0.2 have the counts among the details.
#[derive(Deserialize)]
struct AnyScore {
    name: String,
    value: Option<f64>,
    higher_is_better: bool,
    counts: Option<Counts>,
    details: Vec<(String, Option<f64>)>,
    #[serde(default)]
    outcomes: BTreeMap<String, String>,
}

impl From<AnyScore> for ValidScore {
    fn from(read: AnyScore) -> Self {
        let details = read.details.into_iter();
        let mut details: Vec<(String, f64)> =
            details.map(|(name, value)| (name, value.unwrap_or(f64::NAN))).collect();
        let counts = read.counts.or_else(|| Counts::taken_from(&mut details));
        let value = read.value.unwrap_or(f64::NAN);
        let (name, higher_is_better) = (read.name, read.higher_is_better);
        Self { name, value, higher_is_better, counts, details, outcomes: read.outcomes }
    }
}

impl Counts {
    /// Moves the counts out of the details, if all are there.
    fn taken_from(details: &mut Vec<(String, f64)>) -> Option<Self> {
        const NAMES: [&str; 3] = ["correct", "objects", "found"];
        let of = |name: &str| details.iter().find(|(n, _)| n == name).map(|(_, v)| *v as usize);
        let [correct, objects, found] = NAMES.map(of);
        let counts = Self { correct: correct?, objects: objects?, found: found? };
        details.retain(|(name, _)| !NAMES.contains(&name.as_str()));
        Some(counts)
    }

    /// The counts by name.
    pub fn named(&self) -> [(&'static str, usize); 3] {
        [("correct", self.correct), ("objects", self.objects), ("found", self.found)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// One line of each kind, written by version 0.1.0 (lists of layers cut to one).
    const V0_1: &str = include_str!("tests/metrics_v0_1.jsonl");

    fn read(text: &str) -> Result<Vec<Record>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        fs::write(&path, text).unwrap();
        Record::read_all(&path)
    }

    #[test]
    fn lines_of_version_0_1_are_read() {
        let records = read(V0_1).unwrap();
        let [start, step, epoch, valid, end, telemetry] = &records[..] else {
            panic!("{records:?}")
        };
        let Record::StageStart(start) = start else { panic!("{start:?}") };
        assert_eq!((start.num_trainable, start.sites[0].codes), (26458, Some([-1, 1])));
        let Record::Step(step) = step else { panic!("{step:?}") };
        let losses = [("cls", 0.07604232430458069), ("reg", 0.14567771553993225)];
        assert_eq!((&step.losses, step.loss), (&losses.into(), 0.22172003984451294));
        let Record::Epoch(epoch) = epoch else { panic!("{epoch:?}") };
        assert_eq!(
            (epoch.quantized_fraction, epoch.losses.get("reg")),
            (Some(1.0), Some(0.15565968677401543))
        );
        let Record::Validation(valid) = valid else { panic!("{valid:?}") };
        assert_eq!(valid.score.counts, Some(Counts { correct: 0, objects: 4, found: 0 }));
        assert_eq!(valid.score.details.len(), 12, "{:?}", valid.score.details);
        let Record::StageEnd(end) = end else { panic!("{end:?}") };
        assert_eq!(end.sites[0].levels[0], -0.293_782_65);
        // What 0.1 called scale is the outermost level, its step the scale.
        let activations = end.sites[0].activations.as_ref().unwrap();
        assert_eq!(
            (&end.sites[0].scale, &end.sites[0].max_level),
            (&vec![0.293_782_65], &vec![0.293_782_65])
        );
        assert_eq!(
            (activations.scale, activations.max_level),
            (Some(0.050_869_144), Some(6.460_381_5))
        );
        let Record::Telemetry(telemetry) = telemetry else { panic!("{telemetry:?}") };
        let numbers = &telemetry.module.numbers;
        assert_eq!((numbers.oscillation, numbers.levels_in_use), (None, Some(3)));
        assert_eq!(telemetry.module.layers[0].num_weights, 256);
        let steps: Vec<u64> = records.iter().map(Record::global_step).collect();
        assert_eq!(steps, [8, 10, 16, 16, 16, 16]);
    }

    #[test]
    fn lines_keep_their_keys_and_read_back_as_they_were() {
        for (line, record) in V0_1.lines().zip(read(V0_1).unwrap()) {
            let line = line
                .replace("\"share_frozen\"", "\"frozen_fraction\"")
                .replace("\"share_zero\"", "\"zero_fraction\"");
            let mut old: Value = serde_json::from_str(&line).unwrap();
            let mut new = serde_json::to_value(&record).unwrap();
            assert_eq!(serde_json::from_value::<Record>(new.clone()).unwrap(), record);
            let renamed = [("inq_fraction", "quantized_fraction")];
            for (before, after) in renamed {
                if let Some(value) = old.as_object_mut().unwrap().shift_remove(before) {
                    old[after] = value;
                }
            }
            if old["kind"] == "validation" {
                let counts = json!({ "correct": 0, "objects": 4, "found": 0 });
                assert_eq!(new["score"]["counts"], counts);
                (new["score"], old["score"]) = (Value::Null, Value::Null);
            }
            if old.get("sites").is_some() {
                // Their scales have other names, see `lines_of_version_0_1_are_read`.
                (new["sites"], old["sites"]) = (Value::Null, Value::Null);
            }
            assert_eq!(new, old);
        }
    }

    #[test]
    fn a_score_that_is_not_finite_reads_back() {
        let score = ValidScore {
            name: "loss".into(),
            value: f64::NAN,
            higher_is_better: false,
            counts: None,
            details: vec![("a".into(), f64::NAN), ("b".into(), 2.0)],
            outcomes: [("seq_1".to_owned(), "101".to_owned())].into(),
        };
        let text = serde_json::to_string(&score).unwrap();
        let read: ValidScore = serde_json::from_str(&text).unwrap();
        assert!(read.value.is_nan() && read.details[0].1.is_nan(), "{read:?}");
        assert_eq!(read.details[1], ("b".to_owned(), 2.0));
        assert_eq!(read.outcomes, score.outcomes);
    }

    #[test]
    fn a_torn_last_line_is_left_out_and_any_other_is_named() {
        let torn = format!("{V0_1}{}", &V0_1[..100]);
        assert_eq!(read(&torn).unwrap(), read(V0_1).unwrap());
        assert_eq!(read("").unwrap(), []);
        let error = read(&format!("{{\"kind\":\"step\"}}\n{V0_1}")).unwrap_err().to_string();
        assert!(error.contains("metrics.jsonl:1: "), "{error}");
    }
}
