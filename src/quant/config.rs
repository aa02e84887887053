//! What can be set about quantizers. Names and defaults are those of the published configuration.

use std::collections::BTreeMap;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::levels::Spacing;
use super::schedule::FractionSchedule;
use super::select::Pattern;
pub use super::settings::{
    ActivationMethod, AnaConfig, CalibrationConfig, CodeRange, DorefaConfig, Granularity,
    LsqConfig, PactConfig, QuantInit, QuantStrategy, RangeInit, StepInit, UniformConfig,
    WeightMethod,
};

/// Weight quantization of a module.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct WeightQuantConfig {
    /// The method.
    pub method: WeightMethod,
    /// Bits per weight, 1 to 8: b bits are 2^b - 1 evenly spaced levels (1 bit: 2 levels); 2^b levels
    /// for `dorefa` and for `lsq` with its full range; 2^(b-1) + 1 levels for powers of two. One of
    /// `bits` and `n_levels` must be set, unless `layer_bits` covers every layer.
    pub bits: Option<u32>,
    /// Number of levels, 2 to 256, where it is not the one of `bits`.
    pub n_levels: Option<u32>,
    /// Bits of single layers, 1 to 8, in place of `bits` and `n_levels`, by path or glob as in `module`
    /// (`backbone.features.stage1`, `**.conv1.conv`). A layer's own path goes before other patterns; a
    /// pattern that matches no layer of the module, or two that give a layer different bits, are errors.
    pub layer_bits: BTreeMap<String, u32>,
    /// What has a scale (a step) of its own.
    pub granularity: Granularity,
    /// How the levels are spaced and scaled (methods `inq`, `uniform`, `ana`).
    pub quant_init_method: QuantInit,
    /// Which weights are frozen next (method `inq`).
    pub quant_strategy: QuantStrategy,
    /// From an epoch of the stage on, the share of weights that is frozen; must end at 1 (method `inq`).
    #[schemars(with = "BTreeMap<String, f64>")]
    pub schedule: FractionSchedule,
    /// Whether the optimizer forgets its momentum at each step of the schedule (method `inq`).
    pub clear_optim_state_on_step: bool,
    /// Settings of method `lsq`.
    pub lsq: LsqConfig,
    /// Settings of method `uniform`.
    pub uniform: UniformConfig,
    /// Settings of method `dorefa`.
    pub dorefa: DorefaConfig,
    /// Settings of method `ana`.
    pub ana: AnaConfig,
}

/// Activation quantization of a module: the inputs of its convolutions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ActivationQuantConfig {
    /// The method.
    pub method: ActivationMethod,
    /// Bits per value, 1 to 8: b bits are 2^b - 1 levels (1 bit: 2 levels), and 2^b where the levels are
    /// unsigned, for `dorefa`, and for `lsq` with its full range. One of `bits` and `n_levels` must be
    /// set.
    pub bits: Option<u32>,
    /// Number of levels, 2 to 256, where it is not the one of `bits`.
    pub n_levels: Option<u32>,
    /// Epoch of the stage from which inputs are quantized; the epoch before it records them. 0 records
    /// at the begin of epoch 0: `ste` throughout it, while already quantizing; the others for some
    /// batches ([`CalibrationConfig::batches`]).
    pub quant_start_epoch: u32,
    /// How the range is found (all methods but `ste`).
    pub calibration: CalibrationConfig,
    /// Settings of method `lsq`.
    pub lsq: LsqConfig,
    /// Settings of method `pact`.
    pub pact: PactConfig,
    /// Settings of method `dorefa`.
    pub dorefa: DorefaConfig,
    /// Settings of method `ana`.
    pub ana: AnaConfig,
}

impl Default for WeightQuantConfig {
    /// The published setting, without a bit width: that must be chosen.
    fn default() -> Self {
        Self {
            method: WeightMethod::Inq,
            bits: None,
            n_levels: None,
            layer_bits: BTreeMap::new(),
            granularity: Granularity::Tensor,
            quant_init_method: QuantInit::UniformL2Opt,
            quant_strategy: QuantStrategy::Magnitude,
            schedule: FractionSchedule::default(),
            clear_optim_state_on_step: true,
            lsq: LsqConfig::default(),
            uniform: UniformConfig::default(),
            dorefa: DorefaConfig::default(),
            ana: AnaConfig::default(),
        }
    }
}

impl WeightQuantConfig {
    /// This width and granularity with another method, at the default settings of that method.
    pub fn with_method(&self, method: WeightMethod) -> Self {
        Self {
            method,
            bits: self.bits,
            n_levels: self.n_levels,
            layer_bits: self.layer_bits.clone(),
            granularity: self.granularity,
            ..Self::default()
        }
    }

    /// Method (where it is not INQ), bits and levels for people: `2-bit (3 levels)`, `lsq 2- to 8-bit`.
    pub fn describe(&self) -> String {
        let method = match self.method {
            WeightMethod::Inq => String::new(),
            other => format!("{} ", other.name()),
        };
        let own = self.spacing().ok();
        let bits = self.layer_bits.values().copied().chain(own.map(Spacing::bits));
        match (own, bits.clone().min(), bits.max()) {
            (Some(spacing), Some(low), Some(high)) if low == high => {
                format!("{method}{low}-bit ({} levels)", spacing.num_levels())
            }
            (_, Some(low), Some(high)) if low < high => format!("{method}{low}- to {high}-bit"),
            (_, Some(bits), _) => format!("{method}{bits}-bit"),
            _ => method,
        }
    }

    /// Whether each output channel has a scale of its own.
    pub fn per_channel(&self) -> bool {
        self.granularity == Granularity::Channel
            || self.quant_init_method == QuantInit::UniformL2OptPerChannel
    }

    /// The spacing of the levels, of layers that `layer_bits` does not name.
    ///
    /// # Errors
    /// If `bits` and `n_levels` are missing, out of range or contradict each other.
    pub fn spacing(&self) -> Result<Spacing> {
        let (bits, n_levels) = (self.bits, self.n_levels);
        match (self.method, self.quant_init_method) {
            (WeightMethod::Inq, QuantInit::PowerOfTwo) => Spacing::power_of_two(bits, n_levels),
            (WeightMethod::Inq | WeightMethod::Uniform | WeightMethod::Ana, _) => {
                Spacing::uniform(bits, n_levels)
            }
            (WeightMethod::Dorefa, _) => Spacing::all_codes(bits, n_levels),
            (WeightMethod::Lsq, _) => Spacing::integers(bits, n_levels, self.lsq.range),
        }
    }

    /// Adds a line for every problem.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        let covered_by_layer_bits =
            !self.layer_bits.is_empty() && self.bits.is_none() && self.n_levels.is_none();
        if !covered_by_layer_bits && let Err(err) = self.spacing() {
            problems.push(format!("{at}.{}: {err}", width_key(self.bits, self.n_levels)));
        }
        for (pattern, &bits) in &self.layer_bits {
            let own = Self { bits: Some(bits), n_levels: None, ..self.clone() };
            if let Err(err) = own.spacing() {
                problems.push(format!("{at}.layer_bits.{pattern}: {err}"));
            }
            if let Err(err) = Pattern::parse(pattern) {
                problems.push(format!("{at}.layer_bits.{pattern}: {err:#}"));
            }
        }
        self.check_unused(at, problems);
        match self.method {
            WeightMethod::Inq => self.schedule.check(&format!("{at}.schedule"), problems),
            WeightMethod::Lsq => self.lsq.check(&format!("{at}.lsq"), problems),
            WeightMethod::Ana => self.ana.check(&format!("{at}.ana"), problems),
            WeightMethod::Uniform | WeightMethod::Dorefa => {}
        }
    }

    /// A line for every setting that the method would ignore.
    fn check_unused(&self, at: &str, problems: &mut Vec<String>) {
        use WeightMethod::{Ana, Dorefa, Inq, Lsq, Uniform};
        let default = Self::default();
        let given = [
            (
                "quant_init_method",
                self.quant_init_method != default.quant_init_method,
                &[Inq, Uniform, Ana][..],
            ),
            ("quant_strategy", self.quant_strategy != default.quant_strategy, &[Inq]),
            ("schedule", self.schedule != default.schedule, &[Inq]),
            (
                "clear_optim_state_on_step",
                self.clear_optim_state_on_step != default.clear_optim_state_on_step,
                &[Inq],
            ),
            ("lsq", self.lsq != default.lsq, &[Lsq]),
            ("uniform", self.uniform != default.uniform, &[Uniform]),
            ("dorefa", self.dorefa != default.dorefa, &[Dorefa]),
            ("ana", self.ana != default.ana, &[Ana]),
        ];
        for (key, _, of) in
            given.into_iter().filter(|(_, given, of)| *given && !of.contains(&self.method))
        {
            let of: Vec<&str> = of.iter().map(|method| method.name()).collect();
            problems.push(unused(at, key, self.method.name(), &of));
        }
        if matches!(self.method, Uniform | Ana) && self.quant_init_method == QuantInit::PowerOfTwo {
            problems.push(format!(
                "{at}.quant_init_method: power-of-two is for method inq alone, and the method is {}",
                self.method.name()
            ));
        }
    }

    /// Adds a line for what does not fit a stage of that many epochs.
    pub fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        match self.method {
            WeightMethod::Inq => {
                self.schedule.check_epochs(epochs, &format!("{at}.schedule"), problems);
            }
            WeightMethod::Ana => self.ana.check_epochs(epochs, &format!("{at}.ana"), problems),
            WeightMethod::Lsq | WeightMethod::Uniform | WeightMethod::Dorefa => {}
        }
    }
}

impl Default for ActivationQuantConfig {
    /// The published setting, without a bit width: that must be chosen.
    fn default() -> Self {
        Self {
            method: ActivationMethod::Ste,
            bits: None,
            n_levels: None,
            quant_start_epoch: 1,
            calibration: CalibrationConfig::default(),
            lsq: LsqConfig::default(),
            pact: PactConfig::default(),
            dorefa: DorefaConfig::default(),
            ana: AnaConfig::default(),
        }
    }
}

impl ActivationQuantConfig {
    /// The spacing of the levels; `signed` false where no input is negative, which `ste` ignores.
    ///
    /// # Errors
    /// If `bits` and `n_levels` are missing, out of range or contradict each other.
    pub fn spacing(&self, signed: bool) -> Result<Spacing> {
        let (bits, n_levels) = (self.bits, self.n_levels);
        match (self.method, signed) {
            (ActivationMethod::Ste, _) => Spacing::uniform(bits, n_levels),
            (_, false) => Spacing::unsigned(bits, n_levels),
            (ActivationMethod::Lsq, true) => Spacing::integers(bits, n_levels, self.lsq.range),
            (ActivationMethod::Dorefa, true) => Spacing::all_codes(bits, n_levels),
            (_, true) => Spacing::uniform(bits, n_levels),
        }
    }

    /// Method (where it is not `ste`), bits and levels for people.
    pub fn describe(&self) -> String {
        let method = match self.method {
            ActivationMethod::Ste => String::new(),
            other => format!("{} ", other.name()),
        };
        match (self.spacing(true), self.spacing(false)) {
            (Ok(signed), Ok(unsigned)) => {
                let (a, b) = (signed.num_levels(), unsigned.num_levels());
                let levels = if a == b { a.to_string() } else { format!("{a} or {b}") };
                format!("{method}{}-bit ({levels} levels)", signed.bits())
            }
            _ => method,
        }
    }

    /// Adds a line for every problem.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        if let Err(err) = self.spacing(true) {
            problems.push(format!("{at}.{}: {err}", width_key(self.bits, self.n_levels)));
        }
        self.check_unused(at, problems);
        match self.method {
            ActivationMethod::Lsq => self.lsq.check(&format!("{at}.lsq"), problems),
            ActivationMethod::Pact => self.pact.check(&format!("{at}.pact"), problems),
            ActivationMethod::Ana => self.ana.check(&format!("{at}.ana"), problems),
            ActivationMethod::Ste | ActivationMethod::Uniform | ActivationMethod::Dorefa => {}
        }
        if self.method == ActivationMethod::Lsq && self.calibration.range != RangeInit::default() {
            problems.push(format!(
                "{at}.calibration.range: a learnt step begins as lsq.init says: set that one"
            ));
        }
        if self.calibration.batches == 0 {
            problems.push(format!("{at}.calibration.batches: 0 is below 1"));
        }
    }

    /// A line for every setting that the method would ignore.
    fn check_unused(&self, at: &str, problems: &mut Vec<String>) {
        use ActivationMethod::{Ana, Dorefa, Lsq, Pact, Uniform};
        let default = Self::default();
        let given = [
            (
                "calibration",
                self.calibration != default.calibration,
                &[Lsq, Uniform, Pact, Dorefa, Ana][..],
            ),
            ("lsq", self.lsq != default.lsq, &[Lsq]),
            ("pact", self.pact != default.pact, &[Pact]),
            ("dorefa", self.dorefa != default.dorefa, &[Dorefa]),
            ("ana", self.ana != default.ana, &[Ana]),
        ];
        for (key, _, of) in
            given.into_iter().filter(|(_, given, of)| *given && !of.contains(&self.method))
        {
            let of: Vec<&str> = of.iter().map(|method| method.name()).collect();
            problems.push(unused(at, key, self.method.name(), &of));
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
        if self.method == ActivationMethod::Ana {
            self.ana.check_epochs(epochs, &format!("{at}.ana"), problems);
        }
    }
}

fn unused(at: &str, key: &str, method: &str, of: &[&str]) -> String {
    format!(
        "{at}.{key}: is a setting of {} and the method is {method}, which would ignore it: remove it or \
         change the method",
        of.join(", ")
    )
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
    fn settings_that_the_method_would_ignore_are_refused() {
        let found = |json: &str| problems(&weights(json));
        for (json, key) in [
            (r#"{"bits": 2, "lsq": {"init": "mse"}}"#, "fpn.weights.lsq: is a setting of lsq"),
            (
                r#"{"bits": 2, "method": "lsq", "quant_init_method": "uniform"}"#,
                "fpn.weights.quant_init_method: is a setting of inq, uniform, ana",
            ),
            (
                r#"{"bits": 2, "method": "lsq", "schedule": {"0": 1}}"#,
                "fpn.weights.schedule: is a setting of inq and the method is lsq",
            ),
            (
                r#"{"bits": 2, "method": "uniform", "quant_init_method": "none"}"#,
                "fpn.weights.quant_init_method: power-of-two is for method inq alone",
            ),
            (
                r#"{"bits": 2, "method": "lsq", "lsq": {"lr_factor": -1}}"#,
                "fpn.weights.lsq.lr_factor: -1 is not a number of 0 or more",
            ),
            (
                r#"{"bits": 2, "method": "ana", "ana": {"backward_width": 0}}"#,
                "fpn.weights.ana.backward_width: 0 is not above 0",
            ),
            (
                r#"{"bits": 2, "layer_bits": {"fpn.a": 9}}"#,
                "fpn.weights.layer_bits.fpn.a: bits 9 is outside 1..=8",
            ),
        ] {
            let found = found(json);
            assert!(found.len() == 1 && found[0].starts_with(key), "{json}: {found:?}");
        }
        for method in ["lsq", "uniform", "dorefa", "ana"] {
            let json = format!(r#"{{"method": "{method}", "bits": 1, "granularity": "channel"}}"#);
            assert_eq!(found(&json), [""; 0], "{method}");
        }
        let all_by_layer = weights(r#"{"layer_bits": {"fpn": 4}}"#);
        assert_eq!(problems(&all_by_layer), [""; 0]);

        let inputs = |json: &str| {
            let config: ActivationQuantConfig = serde_json::from_str(json).unwrap();
            let mut found = Vec::new();
            config.check("a", &mut found);
            found
        };
        assert!(inputs(r#"{"bits": 8, "pact": {"init": 6}}"#)[0].contains("setting of pact"));
        let text = inputs(r#"{"bits": 8, "method": "pact", "pact": {"init": 0}}"#);
        assert!(text[0].starts_with("a.pact.init: 0 is not a number above 0"), "{text:?}");
        let text = inputs(r#"{"bits": 8, "method": "lsq", "calibration": {"range": "mse"}}"#);
        assert!(text[0].contains("set that one"), "{text:?}");
        let text = inputs(r#"{"bits": 8, "method": "lsq", "calibration": {"batches": 0}}"#);
        assert!(text[0].starts_with("a.calibration.batches: 0"), "{text:?}");
    }

    #[test]
    fn noise_must_end_within_the_stage() {
        let config = weights(r#"{"method": "ana", "bits": 2}"#);
        let mut found = Vec::new();
        config.check_epochs(20, "w", &mut found);
        assert!(found[0].starts_with("w.ana.end_epoch: 20 is never reached"), "{found:?}");
        found.clear();
        config.check_epochs(21, "w", &mut found);
        assert!(found.is_empty());
        assert_eq!([0, 10, 20, 30].map(|epoch| config.ana.share_at(epoch)), [1.0, 0.5, 0.0, 0.0]);
    }

    #[test]
    fn another_method_keeps_the_width_alone() {
        let config = weights(r#"{"bits": 3, "granularity": "channel", "schedule": {"0": 1}}"#);
        let lsq = config.with_method(WeightMethod::Lsq);
        assert_eq!(problems(&lsq), [""; 0]);
        assert_eq!((lsq.bits, lsq.granularity), (Some(3), Granularity::Channel));
        assert_eq!(lsq.describe(), "lsq 3-bit (8 levels)");
        assert_eq!(config.describe(), "3-bit (7 levels)");
        let mixed = weights(r#"{"bits": 4, "layer_bits": {"fpn.a": 8, "fpn.b": 2}}"#);
        assert_eq!(mixed.describe(), "2- to 8-bit");
        let inputs = ActivationQuantConfig { bits: Some(8), ..Default::default() };
        assert_eq!(inputs.describe(), "8-bit (255 levels)");
        let pact = ActivationQuantConfig { method: ActivationMethod::Pact, ..inputs };
        assert_eq!(pact.describe(), "pact 8-bit (255 or 256 levels)");
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
