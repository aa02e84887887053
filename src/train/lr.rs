//! Learning rates: a base rate, a linear warm-up, and a decay by epoch table, by steps or by a cosine.

use std::collections::BTreeMap;
use std::f64::consts::PI;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::above_zero;

/// The learning rate of a stage: `base`, times the warm-up, times the decay.
///
/// The default is the published fine-tuning of MQAT: 0.01 times a table of factors by epoch, no warm-up.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LrConfig {
    /// Learning rate that all factors multiply.
    #[schemars(transform = above_zero)]
    pub base: f64,
    /// Steps over which the rate rises linearly from `base / warmup_steps` to `base`; 0 is none.
    pub warmup_steps: u64,
    /// How the rate falls over the stage.
    pub decay: Decay,
}

/// How a learning rate falls over a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Decay {
    /// Not at all.
    Constant,
    /// Epoch of the stage (from 0) to factor. A factor multiplies the base rate, not the current one, and holds
    /// until the next entry; before the first entry the factor is 1.
    Epochs(#[schemars(transform = values_at_least_zero)] BTreeMap<u32, f64>),
    /// Multiplied by `factor` once at each of the listed steps of the stage.
    Steps {
        /// Numbers of steps after which the rate falls, ascending.
        at: Vec<u64>,
        /// What each fall multiplies the rate by.
        #[schemars(transform = above_zero, range(max = 1))]
        factor: f64,
    },
    /// Half a cosine from 1 (at the end of the warm-up) to `to` (at the end of the stage).
    Cosine {
        /// The last factor.
        #[schemars(range(min = 0, max = 1))]
        to: f64,
    },
}

impl Default for LrConfig {
    fn default() -> Self {
        Self { base: 0.01, warmup_steps: 0, decay: Decay::published_table() }
    }
}

impl Decay {
    /// The table of the published MQAT configuration (its entry for epoch 30 lies behind the last epoch).
    pub fn published_table() -> Self {
        let head = [(0, 1.0), (3, 0.1), (4, 0.01), (5, 1.0), (7, 0.1)];
        let alternating = (9..=30).step_by(2).map(|e| (e, if e % 4 == 1 { 1.0 } else { 0.1 }));
        let mut table: BTreeMap<u32, f64> = head.into_iter().chain(alternating).collect();
        table.insert(30, 0.1);
        Self::Epochs(table)
    }
}

/// Where in a stage a step is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LrPlace {
    /// Epoch of the stage, from 0.
    pub epoch: u32,
    /// Steps of the stage done before this one.
    pub step: u64,
    /// Steps of the whole stage; only the cosine looks at it.
    pub num_steps: u64,
}

impl LrConfig {
    /// The full-precision recipe of the Wide-Depth-Range network: 0.01, warm-up over 1,000 steps, x 0.1 after
    /// 200,000 and 270,000 of its 300,000.
    pub fn full_precision() -> Self {
        Self {
            base: 0.01,
            warmup_steps: 1000,
            decay: Decay::Steps { at: vec![200_000, 270_000], factor: 0.1 },
        }
    }

    /// The learning rate of a step.
    ///
    /// Deviation: step `k` (from 0) of the warm-up has `(k + 1) / warmup_steps` of the base rate. The published
    /// scheduler is one call late, so that its first step has rate 0, and raises in its last call.
    pub fn at(&self, place: LrPlace) -> f64 {
        let LrPlace { epoch, step, num_steps } = place;
        let decay = match &self.decay {
            Decay::Constant => 1.0,
            Decay::Epochs(table) => table.range(..=epoch).next_back().map_or(1.0, |(_, &f)| f),
            Decay::Steps { at, factor } => {
                factor.powi(at.iter().filter(|&&at| step >= at).count() as i32)
            }
            Decay::Cosine { to } => {
                let length = num_steps.saturating_sub(self.warmup_steps).max(1) as f64;
                let done = (step.saturating_sub(self.warmup_steps) as f64 / length).min(1.0);
                to + (1.0 - to) * 0.5 * (1.0 + (PI * done).cos())
            }
        };
        let warmup = if step < self.warmup_steps {
            (step + 1) as f64 / self.warmup_steps as f64
        } else {
            1.0
        };
        self.base * warmup * decay
    }

    /// Whether a table of factors that falls somewhere in a stage of so many epochs has its largest factor in the last one:
    /// the network is then judged right after steps at the full rate.
    pub fn ends_at_full_rate(&self, epochs: u32) -> bool {
        let Decay::Epochs(table) = &self.decay else { return false };
        let before_first = table.keys().next().is_none_or(|&first| first > 0).then_some(1.0);
        let reached = || before_first.into_iter().chain(table.range(..epochs).map(|(_, &f)| f));
        let last = table.range(..epochs).next_back().map_or(1.0, |(_, &f)| f);
        reached().all(|factor| factor <= last) && reached().any(|factor| factor < last)
    }

    /// Pushes a line for each value that does not fit another one. Ranges are checked by
    /// [`check_ranges`](crate::schema::check_ranges).
    pub fn check_together(&self, at: &str, problems: &mut Vec<String>) {
        if let Decay::Steps { at: steps, .. } = &self.decay
            && steps.windows(2).any(|w| w[0] >= w[1])
        {
            problems.push(format!("{at}.decay.steps.at: {steps:?} is not ascending"));
        }
    }
}

/// For the schema of a map to numbers.
fn values_at_least_zero(schema: &mut schemars::Schema) {
    let object = schema.ensure_object();
    let values = object.get_mut("patternProperties").and_then(|p| p.as_object_mut());
    for value in values.into_iter().flat_map(|p| p.values_mut()) {
        value["minimum"] = 0.into();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::check_ranges;

    fn place(epoch: u32, step: u64) -> LrPlace {
        LrPlace { epoch, step, num_steps: 110 }
    }

    fn close(a: f64, b: f64) {
        assert!((a - b).abs() <= 1e-12 * b.abs(), "{a} is not {b}");
    }

    #[test]
    fn the_cosine_starts_at_the_base_after_the_warm_up_and_ends_at_its_last_factor() {
        let lr = LrConfig { base: 2.0, warmup_steps: 10, decay: Decay::Cosine { to: 0.1 } };
        close(lr.at(place(0, 0)), 0.2);
        close(lr.at(place(0, 9)), 2.0);
        close(lr.at(place(0, 10)), 2.0);
        close(lr.at(place(0, 60)), 2.0 * 0.55);
        close(lr.at(place(0, 110)), 0.2);
        close(lr.at(place(0, 500)), 0.2);
    }

    #[test]
    fn a_warm_up_multiplies_an_epoch_table_and_ends() {
        let decay = Decay::Epochs(BTreeMap::from([(1, 0.5)]));
        let lr = LrConfig { base: 1.0, warmup_steps: 4, decay };
        close(lr.at(place(0, 0)), 0.25);
        close(lr.at(place(1, 1)), 0.25);
        close(lr.at(place(1, 4)), 0.5);
        close(lr.at(place(0, 4)), 1.0);
    }

    #[test]
    fn the_json_forms_read_back() {
        for (json, decay) in [
            (r#""constant""#, Decay::Constant),
            (r#"{"epochs": {"0": 1, "10": 0.5}}"#, Decay::Epochs([(0, 1.0), (10, 0.5)].into())),
            (
                r#"{"steps": {"at": [5, 9], "factor": 0.1}}"#,
                Decay::Steps { at: vec![5, 9], factor: 0.1 },
            ),
            (r#"{"cosine": {"to": 0}}"#, Decay::Cosine { to: 0.0 }),
        ] {
            let json = format!(r#"{{"base": 0.5, "decay": {json}}}"#);
            let expected = LrConfig { base: 0.5, warmup_steps: 0, decay };
            assert_eq!(serde_json::from_str::<LrConfig>(&json).unwrap(), expected);
            let value = serde_json::to_value(&expected).unwrap();
            assert_eq!(serde_json::from_value::<LrConfig>(value).unwrap(), expected);
        }
        assert!(serde_json::from_str::<LrConfig>(r#"{"bas": 1}"#).is_err());
    }

    #[test]
    fn each_bad_value_is_named() {
        let problems = |decay| {
            let mut problems = Vec::new();
            let lr = LrConfig { base: 0.0, warmup_steps: 0, decay };
            check_ranges(&lr, "lr", &mut problems);
            lr.check_together("lr", &mut problems);
            problems
        };
        assert_eq!(problems(Decay::Constant), ["lr.base: 0 is not above 0"]);
        let table = Decay::Epochs([(3, -1.0)].into());
        assert_eq!(problems(table)[1], "lr.decay.epochs.3: -1 is below 0");
        let steps = problems(Decay::Steps { at: vec![5, 5], factor: 0.0 });
        assert_eq!(steps[1], "lr.decay.steps.factor: 0 is outside 0..=1 (0 excluded)");
        assert_eq!(steps[2], "lr.decay.steps.at: [5, 5] is not ascending");
        let cosine = problems(Decay::Cosine { to: 1.5 });
        assert_eq!(cosine[1], "lr.decay.cosine.to: 1.5 is outside 0..=1");
    }

    #[test]
    fn the_published_table_ends_at_full_rate_and_a_falling_one_does_not() {
        let table = |entries: &[(u32, f64)]| LrConfig {
            decay: Decay::Epochs(entries.iter().copied().collect()),
            ..LrConfig::default()
        };
        assert!(LrConfig::default().ends_at_full_rate(30));
        assert!(!LrConfig::default().ends_at_full_rate(31), "epoch 30 has factor 0.1");
        assert!(!LrConfig::default().ends_at_full_rate(29), "epoch 28 has factor 0.1");
        assert!(!table(&[(0, 1.0), (3, 0.1)]).ends_at_full_rate(5));
        assert!(!table(&[(3, 0.1)]).ends_at_full_rate(5), "1 before the first entry");
        assert!(table(&[(0, 0.1), (4, 0.5)]).ends_at_full_rate(5));
        // no fall within the stage, and no table
        assert!(!table(&[(0, 1.0), (3, 0.1)]).ends_at_full_rate(3));
        assert!(!table(&[]).ends_at_full_rate(5));
        assert!(!LrConfig::full_precision().ends_at_full_rate(30));
    }
}
