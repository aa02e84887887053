//! What can be set about quantizers. Names and defaults are those of the published configuration.
//!
//! In JSON the settings of all methods stand beside each other in one object (`form.rs`); here a config holds the settings
//! of its own method alone.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context, Result};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use super::form;
use super::levels::Spacing;
use super::method::{ActivationQuantizer, WeightQuantizer};
use super::oscillation::OscillationConfig;
use super::pattern::Pattern;
use super::registry::{ActivationMethod, ActivationSettings, WeightMethod, WeightSettings};
use super::scheme::{ActivationContext, WeightContext};
use super::settings::Granularity;
use super::width::{BitWidth, Levels};
use crate::nn::Site;

/// Weight quantization of a module.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct WeightQuantConfig {
    /// The method with its settings.
    pub settings: WeightSettings,
    /// Bits per weight, 1 to 8. One of `bits` and `n_levels` must be set, unless `layer_bits` covers every layer.
    pub bits: Option<u32>,
    /// Number of levels, 2 to 256, where it is not the one of `bits`.
    pub n_levels: Option<u32>,
    /// How many levels b bits are; none for what the method takes by itself.
    pub levels: Option<Levels>,
    /// Widths of single layers, by path or glob.
    pub layer_bits: BTreeMap<String, BitWidth>,
    /// What has a scale of its own.
    pub granularity: Granularity,
    /// Freezing of weights that oscillate; none freezes none.
    pub oscillation: Option<OscillationConfig>,
}

/// Activation quantization of a module: what goes into its convolutions.
#[derive(Debug, Clone, PartialEq)]
pub struct ActivationQuantConfig {
    /// The method with its settings.
    pub settings: ActivationSettings,
    /// Bits per value, 1 to 8. One of `bits` and `n_levels` must be set.
    pub bits: Option<u32>,
    /// Number of levels, 2 to 256, where it is not the one of `bits`.
    pub n_levels: Option<u32>,
    /// How many levels b bits are where activations have both signs; none for what the method takes by itself.
    pub levels: Option<Levels>,
    /// Epoch of the stage from which activations are quantized.
    pub quant_start_epoch: u32,
}

/// The keys of weights that all methods share, as they stand in a config.
#[derive(Debug, Clone, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct WeightKeys {
    /// Bits per weight: b bits are 2^b - 1 evenly spaced levels (1 bit: 2 levels); 2^b levels
    /// for `dorefa` and for `lsq` with its full range (`levels` makes all methods alike); 2^(b-1) + 1
    /// levels for powers of two. One of `bits` and `n_levels` must be set, unless `layer_bits` covers
    /// every layer.
    #[schemars(range(min = 1, max = 8))]
    bits: Option<u32>,
    /// Number of levels, where it is not the one of `bits`.
    #[schemars(range(min = 2, max = 256))]
    n_levels: Option<u32>,
    /// How many levels b bits are, and which, the same for every method; null for what the method takes by
    /// itself. Must agree with `n_levels` where that is given; not for powers of two.
    levels: Option<Levels>,
    /// Widths of single layers in place of `bits` and `n_levels`, by path or glob as in `module`
    /// (`backbone.features.stage1`, `**.conv1.conv`): bits, or an object with `bits`, `n_levels` and `levels`
    /// (`{"bits": 2, "n_levels": 4}`). A layer's own path goes before other patterns; a
    /// pattern that matches no layer of the module, or two that give a layer different widths, are errors.
    layer_bits: BTreeMap<String, BitWidth>,
    /// What has a scale of its own.
    granularity: Granularity,
    /// Freeze weights that go to and fro between levels (all methods but `inq`); `null` freezes none.
    oscillation: Option<OscillationConfig>,
}

/// The keys of activations that all methods share, as they stand in a config.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
struct ActivationKeys {
    /// Bits per value: b bits are 2^b - 1 levels (1 bit: 2 levels), and 2^b where the levels are
    /// unsigned, and for `lsq` with its full range. One of `bits` and `n_levels` must be set.
    #[schemars(range(min = 1, max = 8))]
    bits: Option<u32>,
    /// Number of levels, where it is not the one of `bits`.
    #[schemars(range(min = 2, max = 256))]
    n_levels: Option<u32>,
    /// How many levels b bits are where activations have both signs; null for what the method takes by itself.
    /// `full` is not for `ste` and `pact`; of `dorefa` it is the paper's form, symmetric without a level at 0.
    levels: Option<Levels>,
    /// Epoch of the stage from which activations are quantized; the epoch before it records them. 0 records
    /// at the begin of epoch 0: `ste` throughout it, while already quantizing; the others for some
    /// batches (`calibration.batches`).
    quant_start_epoch: u32,
}

impl Default for ActivationKeys {
    fn default() -> Self {
        Self { bits: None, n_levels: None, levels: None, quant_start_epoch: 1 }
    }
}

impl WeightQuantConfig {
    /// A method at its default settings, without a width: that must be chosen.
    pub fn of(method: WeightMethod) -> Self {
        Self { settings: method.settings(), ..Self::default() }
    }

    /// The method.
    pub fn method(&self) -> WeightMethod {
        self.settings.method()
    }

    /// This width and granularity with another method, at the default settings of that method.
    pub fn with_method(&self, method: WeightMethod) -> Self {
        Self { settings: method.settings(), ..self.clone() }
    }

    /// Method (where it is not INQ), bits and levels for people: `2-bit (3 levels)`, `lsq 2- to 8-bit`.
    pub fn describe(&self) -> String {
        let method = match self.method() {
            WeightMethod::Inq => String::new(),
            other => format!("{other} "),
        };
        let own = self.spacing().ok();
        let of_layers = self.layer_bits.values().filter_map(|width| self.spacing_of(*width).ok());
        let bits = of_layers.chain(own.clone()).map(|spacing| spacing.bits());
        match (&own, bits.clone().min(), bits.max()) {
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
        self.granularity == Granularity::Channel || self.settings.scheme().is_per_channel()
    }

    /// How many scales a layer of so many output channels has.
    pub fn num_scales(&self, num_channels: usize) -> usize {
        if self.per_channel() { num_channels } else { 1 }
    }

    /// The spacing of the levels, of layers that `layer_bits` does not name.
    ///
    /// # Errors
    /// If `bits` and `n_levels` are missing, out of range or contradict each other or `levels`.
    pub fn spacing(&self) -> Result<Spacing> {
        self.settings.scheme().spacing(self.width())
    }

    /// The width of layers that `layer_bits` does not name.
    pub fn width(&self) -> BitWidth {
        BitWidth { bits: self.bits, n_levels: self.n_levels, levels: self.levels }
    }

    /// The spacing of a layer's levels that has this width in `layer_bits`.
    fn spacing_of(&self, width: BitWidth) -> Result<Spacing> {
        self.settings.scheme().spacing(width.in_stage(self.levels))
    }

    /// Adds a line for every problem.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        let covered_by_layer_bits =
            !self.layer_bits.is_empty() && self.bits.is_none() && self.n_levels.is_none();
        if !covered_by_layer_bits && let Err(err) = self.spacing() {
            problems.push(format!("{at}.{}: {err}", width_key(self.bits, self.n_levels)));
        }
        for (pattern, &width) in &self.layer_bits {
            if let Err(err) = self.spacing_of(width) {
                problems.push(format!("{at}.layer_bits.{pattern}: {err}"));
            }
            if let Err(err) = Pattern::parse(pattern) {
                problems.push(format!("{at}.layer_bits.{pattern}: {err:#}"));
            }
        }
        if self.oscillation.is_some() && self.settings.scheme().schedule().is_some() {
            problems.push(format!(
                "{at}.oscillation: is for fake quantization, and method {} freezes weights by its schedule; drop it, or take \
                 another method",
                self.method()
            ));
        }
        self.settings.scheme().check(at, problems);
    }

    /// Adds a line for what does not fit a stage of that many epochs.
    pub fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        self.settings.scheme().check_epochs(epochs, at, problems);
    }

    /// Moves what was set for a stage of `from` epochs to one of `to` epochs.
    pub fn stretch(&mut self, from: u32, to: u32) {
        self.settings.scheme_mut().stretch(from, to);
    }

    /// Gives a layer its quantizer.
    pub(super) fn attach(&self, site: &Rc<Site>, seed: u64) -> Result<Box<dyn WeightQuantizer>> {
        let spacing = self.spacing().with_context(|| format!("quantizing {}", site.name))?;
        let context = WeightContext {
            spacing,
            per_channel: self.per_channel(),
            oscillation: self.oscillation,
            seed,
        };
        self.settings.scheme().attach(site, &context)
    }

    fn keys(&self) -> WeightKeys {
        WeightKeys {
            bits: self.bits,
            n_levels: self.n_levels,
            levels: self.levels,
            layer_bits: self.layer_bits.clone(),
            granularity: self.granularity,
            oscillation: self.oscillation,
        }
    }
}

impl Default for ActivationQuantConfig {
    /// The published setting, without a bit width: that must be chosen.
    fn default() -> Self {
        let ActivationKeys { bits, n_levels, levels, quant_start_epoch } =
            ActivationKeys::default();
        Self { settings: ActivationSettings::default(), bits, n_levels, levels, quant_start_epoch }
    }
}

impl ActivationQuantConfig {
    /// A method at its default settings, without a width: that must be chosen.
    pub fn of(method: ActivationMethod) -> Self {
        Self { settings: method.settings(), ..Self::default() }
    }

    /// The method.
    pub fn method(&self) -> ActivationMethod {
        self.settings.method()
    }

    /// The spacing of the levels; `signed` false where no activation is negative, which `ste` ignores.
    ///
    /// # Errors
    /// If `bits` and `n_levels` are missing, out of range or contradict each other.
    pub fn spacing(&self, signed: bool) -> Result<Spacing> {
        self.settings.scheme().spacing(self.width(), signed)
    }

    fn width(&self) -> BitWidth {
        BitWidth { bits: self.bits, n_levels: self.n_levels, levels: self.levels }
    }

    /// Method (where it is not `ste`), bits and levels for people.
    pub fn describe(&self) -> String {
        let method = match self.method() {
            ActivationMethod::Ste => String::new(),
            other => format!("{other} "),
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
        self.settings.scheme().check(at, problems);
    }

    /// Adds a line for what does not fit a stage of that many epochs.
    pub fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        if self.quant_start_epoch >= epochs {
            problems.push(format!(
                "{at}.quant_start_epoch: {} is never reached, the stage has only epochs 0..{epochs}",
                self.quant_start_epoch
            ));
        }
        self.settings.scheme().check_epochs(epochs, at, problems);
    }

    /// Moves what was set for a stage of `from` epochs to one of `to` epochs.
    pub fn stretch(&mut self, from: u32, to: u32) {
        let start = super::schedule::moved(self.quant_start_epoch, from, to);
        // The range is best watched for an epoch before it is used; a stage of one epoch watches it as it begins.
        let earliest = u32::from(to > 1);
        self.quant_start_epoch = start.max(earliest).min(self.quant_start_epoch);
        self.settings.scheme_mut().stretch(from, to);
    }

    /// Makes the quantizer of what goes into a layer.
    pub(super) fn attach(&self, site: &Site, seed: u64) -> Result<Rc<dyn ActivationQuantizer>> {
        let at = || format!("quantizing the activations of {}", site.name);
        let context = ActivationContext {
            signed: self.spacing(true).with_context(at)?,
            former_signed: self.settings.scheme().former_signed(self.width()).with_context(at)?,
            unsigned: self.spacing(false).with_context(at)?,
            quant_start_epoch: self.quant_start_epoch,
            seed,
        };
        self.settings.scheme().attach(site, &context)
    }

    fn keys(&self) -> ActivationKeys {
        let Self { bits, n_levels, levels, quant_start_epoch, .. } = *self;
        ActivationKeys { bits, n_levels, levels, quant_start_epoch }
    }
}

impl Serialize for WeightQuantConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (common, own) = (form::map_of(&self.keys()), self.settings.to_map());
        form::write(self.method().name(), common, own, WeightMethod::ENTRIES).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for WeightQuantConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut map = Map::deserialize(deserializer)?;
        let method: WeightMethod = method_of(&mut map)?;
        let common = form::map_of(&WeightKeys::default());
        let parts = form::take_apart(map, method.name(), &common, WeightMethod::ENTRIES)
            .map_err(de::Error::custom)?;
        let keys: WeightKeys = form::of_map(parts.common).map_err(de::Error::custom)?;
        Ok(Self {
            settings: WeightSettings::from_map(method, parts.own).map_err(de::Error::custom)?,
            bits: keys.bits,
            n_levels: keys.n_levels,
            levels: keys.levels,
            layer_bits: keys.layer_bits,
            granularity: keys.granularity,
            oscillation: keys.oscillation,
        })
    }
}

impl JsonSchema for WeightQuantConfig {
    fn schema_name() -> Cow<'static, str> {
        "WeightQuantConfig".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let common = WeightKeys::json_schema(generator);
        let method = generator.subschema_for::<WeightMethod>();
        let default = WeightMethod::default().name();
        let about = "Weight quantization of a module.";
        form::schema(generator, about, common, method, default, WeightMethod::ENTRIES)
    }
}

impl Serialize for ActivationQuantConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (common, own) = (form::map_of(&self.keys()), self.settings.to_map());
        form::write(self.method().name(), common, own, ActivationMethod::ENTRIES)
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ActivationQuantConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut map = Map::deserialize(deserializer)?;
        let method: ActivationMethod = method_of(&mut map)?;
        let common = form::map_of(&ActivationKeys::default());
        let parts = form::take_apart(map, method.name(), &common, ActivationMethod::ENTRIES)
            .map_err(de::Error::custom)?;
        let keys: ActivationKeys = form::of_map(parts.common).map_err(de::Error::custom)?;
        Ok(Self {
            settings: ActivationSettings::from_map(method, parts.own).map_err(de::Error::custom)?,
            bits: keys.bits,
            n_levels: keys.n_levels,
            levels: keys.levels,
            quant_start_epoch: keys.quant_start_epoch,
        })
    }
}

impl JsonSchema for ActivationQuantConfig {
    fn schema_name() -> Cow<'static, str> {
        "ActivationQuantConfig".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let common = ActivationKeys::json_schema(generator);
        let method = generator.subschema_for::<ActivationMethod>();
        let default = ActivationMethod::default().name();
        let about = "Activation quantization of a module: what goes into its convolutions.";
        form::schema(generator, about, common, method, default, ActivationMethod::ENTRIES)
    }
}

/// Takes the method out of an object; the default where there is none.
fn method_of<M, E>(map: &mut Map<String, Value>) -> Result<M, E>
where
    M: Default + serde::de::DeserializeOwned,
    E: de::Error,
{
    match map.remove("method") {
        Some(name) => {
            serde_json::from_value(name).map_err(|err| E::custom(format!("method: {err}")))
        }
        None => Ok(M::default()),
    }
}

/// The key to blame for a wrong width.
fn width_key(bits: Option<u32>, n_levels: Option<u32>) -> &'static str {
    if bits.is_none() && n_levels.is_some() { "n_levels" } else { "bits" }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;
    use crate::nn::Store;
    use crate::quant::inq::InqWeights;
    use crate::quant::{QuantInit, QuantStrategy};
    use crate::schema::{check_ranges, first_of_each_key};

    fn inq(config: &WeightQuantConfig) -> &InqWeights {
        match &config.settings {
            WeightSettings::Inq(settings) => settings,
            other => panic!("{other:?}"),
        }
    }

    fn weights(json: &str) -> WeightQuantConfig {
        serde_json::from_str(json).unwrap()
    }

    fn problems(config: &WeightQuantConfig) -> Vec<String> {
        let mut problems = Vec::new();
        check_ranges(config, "fpn.weights", &mut problems);
        config.check("fpn.weights", &mut problems);
        first_of_each_key(&mut problems);
        problems
    }

    #[test]
    fn the_published_entries_are_read_as_they_are() {
        let config = weights(
            r#"{"n_levels": 31, "quant_init_method": "uniform-l2-opt", "quant_strategy": "magnitude"}"#,
        );
        assert_eq!(config, WeightQuantConfig { n_levels: Some(31), ..Default::default() });
        assert!(inq(&config).clear_optim_state_on_step && problems(&config).is_empty());
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
            assert_eq!(inq(&config).quant_init_method, init);
        }
        for (name, strategy) in [
            ("magnitude", QuantStrategy::Magnitude),
            ("low_magnitude", QuantStrategy::LowMagnitude),
            ("random", QuantStrategy::Random),
            ("RPR", QuantStrategy::Rpr),
        ] {
            let config = weights(&format!(r#"{{"quant_strategy": "{name}"}}"#));
            assert_eq!(inq(&config).quant_strategy, strategy);
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
        assert!(found[0].starts_with("fpn.weights.bits: 9 is outside 1..=8"), "{found:?}");
        assert!(found[1].starts_with("fpn.weights.schedule.0: the last fraction"), "{found:?}");
        let found = problems(&weights(r#"{"n_levels": 4, "quant_init_method": "none"}"#));
        assert!(found[0].starts_with("fpn.weights.n_levels: n_levels 4 is even"), "{found:?}");
        let mut found = Vec::new();
        ActivationQuantConfig::default().check("fpn.activations", &mut found);
        assert!(found[0].starts_with("fpn.activations.bits: neither"), "{found:?}");
    }

    #[test]
    fn settings_of_another_method_are_refused_with_the_keys_that_the_method_knows() {
        let refused =
            |json: &str| serde_json::from_str::<WeightQuantConfig>(json).unwrap_err().to_string();
        for (json, text) in [
            (
                r#"{"bits": 2, "lsq": {"range": "narrow"}}"#,
                "lsq: is a setting of lsq, and the method is inq, which knows quant_init_method, \
                 quant_strategy, schedule, clear_optim_state_on_step, inq: remove lsq or change the method",
            ),
            (
                r#"{"bits": 2, "method": "lsq", "quant_init_method": "uniform"}"#,
                "quant_init_method: is a setting of inq, uniform, ana, and the method is lsq, which \
                 knows lsq:",
            ),
            (
                r#"{"schedule": {"0": 1}, "method": "lsq"}"#,
                "schedule: is a setting of inq, and the method is lsq",
            ),
            (r#"{"method": "lsq", "lsq": {"init": "mode"}}"#, "lsq.init: unknown variant `mode`"),
            (r#"{"method": "lsq", "nbits": 2}"#, "unknown field `nbits`, expected one of method,"),
            (r#"{"method": "lsq2"}"#, "method: unknown method \"lsq2\", expected one of inq, lsq,"),
        ] {
            assert!(refused(json).starts_with(text), "{json}: {}", refused(json));
        }
        let inputs = |json: &str| {
            serde_json::from_str::<ActivationQuantConfig>(json).unwrap_err().to_string()
        };
        let text = inputs(r#"{"bits": 8, "pact": {"init": 6}}"#);
        assert!(text.contains("setting of pact, and the method is ste, which has no"), "{text}");
    }

    #[test]
    fn defaults_of_other_methods_are_what_files_hold() {
        let written = serde_json::to_value(weights(r#"{"bits": 2, "method": "lsq"}"#)).unwrap();
        let keys: Vec<&String> = written.as_object().unwrap().keys().collect();
        let expected = [
            "method",
            "bits",
            "n_levels",
            "levels",
            "layer_bits",
            "granularity",
            "oscillation",
            "quant_init_method",
            "quant_strategy",
            "schedule",
            "clear_optim_state_on_step",
            "inq",
            "lsq",
            "uniform",
            "dorefa",
            "ana",
        ];
        assert_eq!(keys[..expected.len()], expected, "a new method comes behind");
        for method in WeightMethod::ALL {
            let mut document = written.clone();
            document["method"] = method.name().into();
            let config: WeightQuantConfig = serde_json::from_value(document).unwrap();
            assert_eq!(
                config,
                WeightQuantConfig { bits: Some(2), ..WeightQuantConfig::of(*method) }
            );
        }
        let earlier = weights(r#"{"bits": 2, "lsq": {"init": "mean", "range": "full"}}"#);
        assert_eq!(earlier.method(), WeightMethod::Inq, "a default of version 0.1");
        let written = serde_json::to_value(ActivationQuantConfig::default()).unwrap();
        let keys: Vec<&String> = written.as_object().unwrap().keys().collect();
        let expected = [
            "method",
            "bits",
            "n_levels",
            "levels",
            "quant_start_epoch",
            "calibration",
            "lsq",
            "pact",
            "dorefa",
            "ana",
        ];
        assert_eq!(keys[..expected.len()], expected, "a new method comes behind");
        for method in ActivationMethod::ALL {
            let mut document = written.clone();
            document["method"] = method.name().into();
            let config: ActivationQuantConfig = serde_json::from_value(document).unwrap();
            assert_eq!(config, ActivationQuantConfig::of(*method));
        }
    }

    #[test]
    fn a_key_that_methods_share_has_one_default() {
        let weights = WeightMethod::ALL.iter().map(|method| method.settings().to_map());
        let activations = ActivationMethod::ALL.iter().map(|method| method.settings().to_map());
        for side in [weights.collect::<Vec<_>>(), activations.collect()] {
            let mut known = Map::new();
            for (key, default) in side.into_iter().flatten() {
                let first = known.entry(key.clone()).or_insert_with(|| default.clone());
                assert_eq!(*first, default, "{key}");
            }
        }
    }

    #[test]
    fn values_out_of_range_are_named_with_their_key() {
        let found = |json: &str| problems(&weights(json));
        for (json, key) in [
            (
                r#"{"bits": 2, "method": "uniform", "quant_init_method": "none"}"#,
                "fpn.weights.quant_init_method: power-of-two is for method inq alone",
            ),
            (
                r#"{"bits": 2, "method": "lsq", "lsq": {"lr_factor": -1}}"#,
                "fpn.weights.lsq.lr_factor: -1 is below 0",
            ),
            (
                r#"{"bits": 2, "method": "ana", "ana": {"backward_width": 0}}"#,
                "fpn.weights.ana.backward_width: 0 is outside 0..=8 (0 excluded)",
            ),
            (
                r#"{"bits": 2, "layer_bits": {"fpn.a": 9}}"#,
                "fpn.weights.layer_bits.fpn.a: 9 is outside 1..=8",
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
            check_ranges(&config, "a", &mut found);
            config.check("a", &mut found);
            found
        };
        let text = inputs(r#"{"bits": 8, "method": "pact", "pact": {"init": 0}}"#);
        assert!(text[0].starts_with("a.pact.init: 0 is not above 0"), "{text:?}");
        let text = inputs(r#"{"bits": 8, "method": "lsq", "calibration": {"range": "mse"}}"#);
        assert!(text[0].contains("set that one"), "{text:?}");
        let text = inputs(r#"{"bits": 8, "method": "lsq", "calibration": {"batches": 0}}"#);
        assert!(text[0].starts_with("a.calibration.batches: 0"), "{text:?}");
    }

    #[test]
    fn layers_may_have_a_level_count_or_the_choice_of_their_stage() {
        let config = weights(
            r#"{"bits": 4, "levels": "full",
                "layer_bits": {"a": 2, "b": {"bits": 2, "n_levels": 4}, "c": {"bits": 3, "levels": "odd"}}}"#,
        );
        assert_eq!(problems(&config), [""; 0]);
        let own = config.for_layers(&Store::new(Device::Cpu), &["a", "b", "c", "d"]).unwrap();
        let codes: Vec<Vec<i32>> = own.iter().map(|c| c.spacing().unwrap().codes()).collect();
        assert_eq!(codes[0], [-2, -1, 0, 1]);
        assert_eq!(codes[1], [-3, -1, 1, 3], "a level count alone is as published");
        assert_eq!(codes[2], [-3, -2, -1, 0, 1, 2, 3]);
        assert_eq!((codes[3][0], codes[3][15]), (-8, 7));
        assert_eq!(weights(&serde_json::to_string(&config).unwrap()), config);
        assert_eq!(config.describe(), "2- to 4-bit");
        for (json, key, text) in [
            (
                r#"{"bits": 2, "levels": "odd", "n_levels": 4}"#,
                "fpn.weights.bits: ",
                "levels odd and n_levels 4 contradict each other: 2 bits are 3 levels",
            ),
            (
                r#"{"layer_bits": {"a": {"n_levels": 3, "levels": "full"}}}"#,
                "fpn.weights.layer_bits.a: ",
                "levels full and n_levels 3 contradict each other: 2 bits are 4 levels",
            ),
            (
                r#"{"bits": 2, "levels": "full", "quant_init_method": "power-of-two"}"#,
                "fpn.weights.bits: ",
                "levels full: powers of two have 2^(b-1) + 1 levels",
            ),
            (
                r#"{"bits": 2, "method": "lsq", "levels": "full", "lsq": {"range": "narrow"}}"#,
                "fpn.weights.bits: ",
                "levels full and lsq.range narrow contradict",
            ),
        ] {
            let found = problems(&weights(json));
            assert!(found.len() == 1 && found[0].starts_with(key), "{json}: {found:?}");
            assert!(found[0].contains(text), "{json}: {found:?}");
        }
        let mut found = Vec::new();
        let ste: ActivationQuantConfig =
            serde_json::from_str(r#"{"bits": 8, "levels": "full"}"#).unwrap();
        ste.check("a", &mut found);
        assert!(found[0].contains("levels full: method ste has 2^b - 1 levels"), "{found:?}");
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
        let WeightSettings::Ana(settings) = &config.settings else { panic!("{config:?}") };
        let fractions = [0, 10, 20, 30].map(|epoch| settings.ana.fraction_at(epoch));
        assert_eq!(fractions, [1.0, 0.5, 0.0, 0.0]);
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
        let pact = ActivationQuantConfig { settings: ActivationMethod::Pact.settings(), ..inputs };
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
