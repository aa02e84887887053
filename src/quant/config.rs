//! What can be set about quantizers. Names and defaults are those of the published configuration.

use std::collections::BTreeMap;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::levels::Spacing;
use super::schedule::FractionSchedule;

/// How weights are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightMethod {
    /// Incremental network quantization: a growing share of the weights is frozen on its levels.
    #[default]
    Inq,
}

/// How the inputs of layers are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActivationMethod {
    /// Clamp to the largest magnitude seen, round, and pass the gradient straight through.
    #[default]
    Ste,
}

/// How the levels are spaced and their scale s is found, once, at the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum QuantInit {
    /// Evenly spaced; s minimises the L2 norm of the rounding error of the tensor.
    #[default]
    #[serde(rename = "uniform-l2-opt")]
    UniformL2Opt,
    /// Evenly spaced; s minimises the L1 norm of the rounding error of the tensor.
    #[serde(rename = "uniform-l1-opt")]
    UniformL1Opt,
    /// Evenly spaced; s minimises the largest rounding error of the tensor.
    #[serde(rename = "uniform-linf-opt")]
    UniformLinfOpt,
    /// Evenly spaced; s is the largest magnitude of the tensor.
    #[serde(rename = "uniform")]
    Uniform,
    /// Evenly spaced; one s per output channel minimises the L2 norm of its rounding error.
    #[serde(rename = "uniform-l2-opt-per_ch")]
    UniformL2OptPerChannel,
    /// Powers of two and 0, the largest from the largest magnitude of the tensor.
    #[serde(rename = "power-of-two", alias = "none")]
    PowerOfTwo,
}

/// Which weights are frozen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuantStrategy {
    /// Those of largest magnitude among the trainable ones.
    #[default]
    Magnitude,
    /// Those of smallest magnitude among the trainable ones.
    LowMagnitude,
    /// A random choice among the trainable ones.
    Random,
    /// Random partition relaxation: each step freezes a new random choice among all weights; a weight
    /// that is no longer chosen is trained on from its level.
    #[serde(rename = "RPR", alias = "rpr")]
    Rpr,
}

/// Weight quantization of a module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WeightQuantConfig {
    /// The method.
    pub method: WeightMethod,
    /// Bits per weight, 1 to 8: b bits are 2^b - 1 evenly spaced levels (1 bit: 2 levels), or
    /// 2^(b-1) + 1 levels for powers of two. One of `bits` and `n_levels` must be set.
    pub bits: Option<u32>,
    /// Number of levels, 2 to 256, where it is not the one of `bits`.
    pub n_levels: Option<u32>,
    /// How the levels are spaced and scaled.
    pub quant_init_method: QuantInit,
    /// Which weights are frozen next.
    pub quant_strategy: QuantStrategy,
    /// From an epoch of the stage on, the share of weights that is frozen; must end at 1.
    #[schemars(with = "BTreeMap<String, f64>")]
    pub schedule: FractionSchedule,
    /// Whether the optimizer forgets its momentum at each step of the schedule.
    pub clear_optim_state_on_step: bool,
}

/// Activation quantization of a module: the inputs of its convolutions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ActivationQuantConfig {
    /// The method.
    pub method: ActivationMethod,
    /// Bits per value, 1 to 8: b bits are 2^b - 1 levels (1 bit: 2 levels). One of `bits` and
    /// `n_levels` must be set.
    pub bits: Option<u32>,
    /// Number of levels, 2 to 256, where it is not the one of `bits`.
    pub n_levels: Option<u32>,
    /// Epoch of the stage from which inputs are quantized; the epoch before it records their largest
    /// magnitude. 0 records it during epoch 0 while already quantizing.
    pub quant_start_epoch: u32,
}

impl Default for WeightQuantConfig {
    /// The published setting, without a bit width: that must be chosen.
    fn default() -> Self {
        Self {
            method: WeightMethod::Inq,
            bits: None,
            n_levels: None,
            quant_init_method: QuantInit::UniformL2Opt,
            quant_strategy: QuantStrategy::Magnitude,
            schedule: FractionSchedule::default(),
            clear_optim_state_on_step: true,
        }
    }
}

impl WeightQuantConfig {
    /// The spacing of the levels.
    ///
    /// # Errors
    /// If `bits` and `n_levels` are missing, out of range or contradict each other.
    pub fn spacing(&self) -> Result<Spacing> {
        match self.quant_init_method {
            QuantInit::PowerOfTwo => Spacing::power_of_two(self.bits, self.n_levels),
            _ => Spacing::uniform(self.bits, self.n_levels),
        }
    }

    /// Adds a line for every problem.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        if let Err(err) = self.spacing() {
            problems.push(format!("{at}.{}: {err}", width_key(self.bits, self.n_levels)));
        }
        self.schedule.check(&format!("{at}.schedule"), problems);
    }

    /// Adds a line for what does not fit a stage of that many epochs.
    pub fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        self.schedule.check_epochs(epochs, &format!("{at}.schedule"), problems);
    }
}

impl Default for ActivationQuantConfig {
    /// The published setting, without a bit width: that must be chosen.
    fn default() -> Self {
        Self { method: ActivationMethod::Ste, bits: None, n_levels: None, quant_start_epoch: 1 }
    }
}

impl ActivationQuantConfig {
    /// The spacing of the levels.
    ///
    /// # Errors
    /// If `bits` and `n_levels` are missing, out of range or contradict each other.
    pub fn spacing(&self) -> Result<Spacing> {
        Spacing::uniform(self.bits, self.n_levels)
    }

    /// Adds a line for every problem.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        if let Err(err) = self.spacing() {
            problems.push(format!("{at}.{}: {err}", width_key(self.bits, self.n_levels)));
        }
    }

    /// Adds a line for what does not fit a stage of that many epochs.
    pub fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        if self.quant_start_epoch >= epochs {
            problems.push(format!(
                "{at}.quant_start_epoch: {} is never reached, the stage has only epochs 0..{epochs}",
                self.quant_start_epoch
            ));
        }
    }
}

/// The key to blame for a wrong width.
fn width_key(bits: Option<u32>, n_levels: Option<u32>) -> &'static str {
    if bits.is_none() && n_levels.is_some() { "n_levels" } else { "bits" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(json: &str) -> WeightQuantConfig {
        serde_json::from_str(json).unwrap()
    }

    fn problems(config: &WeightQuantConfig) -> Vec<String> {
        let mut problems = Vec::new();
        config.check("fpn.weights", &mut problems);
        problems
    }

    #[test]
    fn the_published_entries_are_read_as_they_are() {
        let config = weights(
            r#"{"n_levels": 31, "quant_init_method": "uniform-l2-opt", "quant_strategy": "magnitude"}"#,
        );
        assert_eq!(config, WeightQuantConfig { n_levels: Some(31), ..Default::default() });
        assert!(config.clear_optim_state_on_step && problems(&config).is_empty());
        let ste: ActivationQuantConfig =
            serde_json::from_str(r#"{"n_levels": 255, "quant_start_epoch": 1}"#).unwrap();
        assert_eq!(ste, ActivationQuantConfig { n_levels: Some(255), ..Default::default() });
    }

    #[test]
    fn every_published_name_is_known() {
        for (name, init) in [
            ("uniform-l2-opt", QuantInit::UniformL2Opt),
            ("uniform-l1-opt", QuantInit::UniformL1Opt),
            ("uniform-linf-opt", QuantInit::UniformLinfOpt),
            ("uniform", QuantInit::Uniform),
            ("uniform-l2-opt-per_ch", QuantInit::UniformL2OptPerChannel),
            ("none", QuantInit::PowerOfTwo),
            ("power-of-two", QuantInit::PowerOfTwo),
        ] {
            let config = weights(&format!(r#"{{"quant_init_method": "{name}"}}"#));
            assert_eq!(config.quant_init_method, init);
        }
        for (name, strategy) in [
            ("magnitude", QuantStrategy::Magnitude),
            ("low_magnitude", QuantStrategy::LowMagnitude),
            ("random", QuantStrategy::Random),
            ("RPR", QuantStrategy::Rpr),
        ] {
            let config = weights(&format!(r#"{{"quant_strategy": "{name}"}}"#));
            assert_eq!(config.quant_strategy, strategy);
        }
    }

    #[test]
    fn unknown_keys_and_names_are_refused() {
        for json in [
            r#"{"nlevels": 3}"#,
            r#"{"quant_strategy": "biggest"}"#,
            r#"{"method": "lsq2"}"#,
            r#"{"bits": -1}"#,
        ] {
            assert!(serde_json::from_str::<WeightQuantConfig>(json).is_err(), "{json}");
        }
    }

    #[test]
    fn every_problem_is_named_with_its_key() {
        let found = problems(&WeightQuantConfig::default());
        assert!(found.len() == 1 && found[0].starts_with("fpn.weights.bits: neither"), "{found:?}");
        let config = weights(r#"{"bits": 9, "schedule": {"0": 0.5}}"#);
        let found = problems(&config);
        assert!(found[0].starts_with("fpn.weights.bits: bits 9 is outside 1..=8"), "{found:?}");
        assert!(found[1].starts_with("fpn.weights.schedule.0: the last fraction"), "{found:?}");
        let found = problems(&weights(r#"{"n_levels": 4, "quant_init_method": "none"}"#));
        assert!(found[0].starts_with("fpn.weights.n_levels: n_levels 4 is even"), "{found:?}");
        let mut found = Vec::new();
        ActivationQuantConfig::default().check("fpn.activations", &mut found);
        assert!(found[0].starts_with("fpn.activations.bits: neither"), "{found:?}");
    }

    #[test]
    fn a_stage_must_be_long_enough_for_both() {
        let mut found = Vec::new();
        WeightQuantConfig::default().check_epochs(29, "w", &mut found);
        ActivationQuantConfig::default().check_epochs(1, "a", &mut found);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("w.schedule.29: "));
        assert!(found[1].starts_with("a.quant_start_epoch: 1 is never reached"));
        found.clear();
        WeightQuantConfig::default().check_epochs(30, "w", &mut found);
        ActivationQuantConfig::default().check_epochs(2, "a", &mut found);
        assert!(found.is_empty());
    }

    #[test]
    fn defaults_survive_json_and_have_a_schema() {
        let config = WeightQuantConfig { bits: Some(2), ..Default::default() };
        assert_eq!(weights(&serde_json::to_string(&config).unwrap()), config);
        let schema = serde_json::to_string(&schemars::schema_for!(WeightQuantConfig)).unwrap();
        assert!(schema.contains("schedule") && schema.contains("uniform-l2-opt-per_ch"));
    }
}
