//! What quantization does to a module's weights, epoch by epoch: numbers to see trouble by.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::affine::by_channel;
use super::levels::Grid;
use super::method::WeightQuantizer;
use super::module::ModuleQuantizer;

/// Begin of the names of saved telemetry.
const PREFIX: &str = "telemetry.";

/// Numbers of a layer, or of all layers of a module. Null: not known (yet), or not defined.
///
/// The level of a weight is the one that it has or, where it is not quantized yet, the nearest one. Fractions are of
/// all weights, 0 to 1.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Numbers {
    /// Fraction of weights that are frozen; null for methods that freeze none.
    #[serde(alias = "share_frozen")]
    pub frozen_fraction: Option<f64>,
    /// Fraction of weights whose level is another one than at the end of the epoch before.
    pub flip_rate: Option<f64>,
    /// Fraction of weights that left a level in the epoch before and are back on it now.
    pub oscillation: Option<f64>,
    /// Relative change of the range (for even spacing, of the scale) since the end of the epoch before, `|s - s'| / |s'|` over all channels; of a
    /// module the largest of its layers.
    pub scale_drift: Option<f64>,
    /// The same since the stage first knew a scale.
    pub scale_drift_from_start: Option<f64>,
    /// Signal to quantization noise, dB: `10 log10(sum w^2 / sum (w - level)^2)`, with w the float weight. Of a frozen
    /// weight, which is float no longer, w is what it was just before it was frozen. In the unit that the weights had when
    /// the stage began, whatever `inq.rescale` says. Null without noise.
    pub sqnr_db: Option<f64>,
    /// Fraction of weights whose level is 0.
    #[serde(alias = "share_zero")]
    pub zero_fraction: Option<f64>,
    /// Number of weights that are frozen because they oscillated; left out where none are watched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_frozen_by_oscillation: Option<usize>,
    /// Number of levels that weights have; of a module the smallest of its layers.
    pub levels_in_use: Option<usize>,
}

/// A layer's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerTelemetry {
    /// The layer.
    pub name: String,
    /// Its weights.
    pub num_weights: usize,
    /// The numbers.
    #[serde(flatten)]
    pub numbers: Numbers,
}

/// A module's numbers: fractions over all of its weights, SQNR from its summed signal and noise.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModuleTelemetry {
    /// The module's pattern.
    pub module: String,
    /// Weights of its layers.
    pub num_weights: usize,
    /// The numbers.
    #[serde(flatten)]
    pub numbers: Numbers,
    /// Its layers.
    pub layers: Vec<LayerTelemetry>,
}

/// Follows the layers of the modules that learn in the stage. What it remembers is part of a checkpoint, so that a run that goes on
/// tells the same numbers.
#[derive(Debug, Default)]
pub struct Telemetry {
    layers: BTreeMap<String, Memory>,
    /// Weights before the step that is going on, by layer; only of layers that freeze weights.
    before_step: BTreeMap<String, (Tensor, Tensor)>,
}

/// What is remembered about a layer.
#[derive(Debug, Default)]
struct Memory {
    /// Level numbers at the end of the last epoch and of the one before, uint8, flat.
    levels: Option<Tensor>,
    levels_before: Option<Tensor>,
    /// Scales at the end of the last epoch, and when they were first known.
    scale: Option<Vec<f32>>,
    scale_at_start: Option<Vec<f32>>,
    /// What the stored weights have been divided by, where their unit has changed: one number, or one per output channel.
    divided_by: Option<Vec<f32>>,
    /// Sums over frozen weights, at the moment they were frozen: of w^2, and of (w - level)^2.
    frozen_signal: f64,
    frozen_noise: f64,
}

/// A layer's numbers with the sums that make a module's.
struct Measured {
    layer: LayerTelemetry,
    signal: f64,
    noise: f64,
}

impl Telemetry {
    /// Forgets all but these modules, which go on learning: a stage begins.
    pub fn keep_only<'a>(&mut self, modules: impl Iterator<Item = &'a ModuleQuantizer>) {
        let kept: BTreeSet<String> = modules
            .flat_map(|module| module.weight_quantizers().map(|weight| weight.site().name.clone()))
            .collect();
        self.layers.retain(|layer, _| kept.contains(layer));
        self.before_step.clear();
    }

    /// Comes before [`ModuleQuantizer::start_epoch`]: remembers the float weights that are about to be frozen.
    pub fn before_step(&mut self, quantizer: &ModuleQuantizer) {
        for weight in quantizer.weight_quantizers() {
            if let (Some(trainable), None) =
                (weight.trainable(), weight.num_frozen_by_oscillation())
            {
                let name = &weight.site().name;
                let memory = self.layers.entry(name.clone()).or_default();
                let float = weight.site().weight.detach().copy();
                // An earlier epoch may have changed the unit.
                let now = no_grad(|| (memory.in_first_unit(&float), trainable.copy()));
                self.before_step.insert(name.clone(), now);
            }
        }
    }

    /// Comes after it: adds up what the freezing cost. Where weights thawed (random partition relaxation) the sums
    /// begin anew.
    pub fn after_step(&mut self, quantizer: &ModuleQuantizer) {
        for weight in quantizer.weight_quantizers() {
            let name = &weight.site().name;
            let Some((before, trainable_before)) = self.before_step.remove(name) else { continue };
            let Some(trainable) = weight.trainable() else { continue };
            let memory = self.layers.entry(name.clone()).or_default();
            if let Some(by) = weight.rescaled_by() {
                memory.divided_by = Some(by.to_vec());
            }
            no_grad(|| {
                if bool::try_from(trainable.gt_tensor(&trainable_before).any()).unwrap_or(false) {
                    memory.frozen_signal = 0.0;
                    memory.frozen_noise = 0.0;
                }
                let newly = trainable_before - trainable;
                let now = memory.in_first_unit(&weight.site().weight.detach());
                let noise = (now - &before) * &newly;
                memory.frozen_signal += energy(&(before * newly));
                memory.frozen_noise += energy(&noise);
            });
        }
    }

    /// The numbers at the end of an epoch.
    ///
    /// # Errors
    /// If a weight does not fit its grid.
    pub fn measure(&mut self, quantizer: &ModuleQuantizer) -> Result<ModuleTelemetry> {
        let mut measured = Vec::new();
        for weight in quantizer.weight_quantizers() {
            let name = &weight.site().name;
            let memory = self.layers.entry(name.clone()).or_default();
            let doing = || format!("measuring the quantization of {name}");
            measured.push(no_grad(|| memory.measure(weight)).with_context(doing)?);
        }
        Ok(ModuleTelemetry::of(quantizer.module(), measured))
    }

    /// What a resume needs, under names `telemetry.LAYER.FIELD`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for (layer, memory) in &self.layers {
            let mut put = |field: &str, tensor: Tensor| {
                state.push((format!("{PREFIX}{layer}.{field}"), tensor));
            };
            for (field, levels) in
                [("levels", &memory.levels), ("levels_before", &memory.levels_before)]
            {
                if let Some(levels) = levels {
                    put(field, levels.shallow_clone());
                }
            }
            for (field, scale) in [
                ("scale", &memory.scale),
                ("scale_at_start", &memory.scale_at_start),
                ("divided_by", &memory.divided_by),
            ] {
                if let Some(scale) = scale {
                    put(field, Tensor::from_slice(scale));
                }
            }
            put("frozen", Tensor::from_slice(&[memory.frozen_signal, memory.frozen_noise]));
        }
        state
    }

    /// Takes over what [`Telemetry::state`] gave.
    ///
    /// # Errors
    /// Names the tensor that is unknown or of another shape or kind.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        *self = Self::default();
        for (name, tensor) in state {
            let place = name.strip_prefix(PREFIX).and_then(|rest| rest.rsplit_once('.'));
            let (layer, field) = place.with_context(|| format!("{name} is not saved telemetry"))?;
            let memory = self.layers.entry(layer.to_owned()).or_default();
            let kind = match field {
                "levels" | "levels_before" => Kind::Uint8,
                "scale" | "scale_at_start" | "divided_by" => Kind::Float,
                _ => Kind::Double,
            };
            ensure!(
                tensor.kind() == kind && tensor.dim() == 1,
                "{name} is {:?} of shape {:?}, expected {kind:?} of one dimension",
                tensor.kind(),
                tensor.size()
            );
            match field {
                "levels" => memory.levels = Some(tensor.copy()),
                "levels_before" => memory.levels_before = Some(tensor.copy()),
                "scale" => memory.scale = Some(Vec::try_from(tensor)?),
                "scale_at_start" => memory.scale_at_start = Some(Vec::try_from(tensor)?),
                "divided_by" => memory.divided_by = Some(Vec::try_from(tensor)?),
                "frozen" => {
                    let sums: Vec<f64> = Vec::try_from(tensor)?;
                    ensure!(sums.len() == 2, "{name} has {} numbers, expected 2", sums.len());
                    (memory.frozen_signal, memory.frozen_noise) = (sums[0], sums[1]);
                }
                _ => anyhow::bail!("{name} is unknown to this version"),
            }
        }
        Ok(())
    }

    /// Whether a tensor's name is one of [`Telemetry::state`].
    pub fn owns(name: &str) -> bool {
        name.starts_with(PREFIX)
    }
}

impl Memory {
    fn measure(&mut self, weight: &dyn WeightQuantizer) -> Result<Measured> {
        let site = weight.site();
        let num_weights = site.num_weights();
        let fraction = |count: i64| count as f64 / num_weights as f64;
        let count = |mask: &Tensor| mask.sum(Kind::Int64).int64_value(&[]);
        let num_frozen_by_oscillation = weight.num_frozen_by_oscillation();
        // what oscillated is frozen on a code, and its stored weight stays float
        let trainable = weight.trainable().filter(|_| num_frozen_by_oscillation.is_none());
        let mut numbers = Numbers {
            num_frozen_by_oscillation: num_frozen_by_oscillation.map(|num| num as usize),
            frozen_fraction: trainable.as_ref().map(|t| fraction(count(&t.eq(0.0)))),
            ..Numbers::default()
        };
        let (mut signal, mut noise) = (0.0, 0.0);
        if let Some(grid) = weight.grid() {
            let float = site.weight.detach();
            let used = site.effective_weight(false).detach();
            let index = grid.index(&used)?;
            let quantized = grid.nearest(&used)?;
            numbers.zero_fraction = Some(fraction(count(&quantized.eq(0.0))));
            let [in_unit, error] = [&float, &(&float - &quantized)].map(|x| self.in_first_unit(x));
            (signal, noise) = match &trainable {
                // frozen weights are on their levels and add no noise here: theirs was added when they were frozen
                Some(trainable) => (
                    self.frozen_signal + energy(&(&in_unit * trainable)),
                    self.frozen_noise + energy(&error),
                ),
                None => (energy(&in_unit), energy(&error)),
            };
            numbers.sqnr_db = decibels(signal, noise);
            let index = index.reshape([-1]);
            let in_use = index.bincount::<Tensor>(None, 0).gt(0);
            numbers.levels_in_use = Some(count(&in_use) as usize);
            self.follow(index.to_kind(Kind::Uint8), &grid, &mut numbers);
        }
        let layer = LayerTelemetry { name: site.name.clone(), num_weights, numbers };
        Ok(Measured { layer, signal, noise })
    }

    /// A tensor of the stored weight's shape and unit, in the unit that the weight had at first.
    fn in_first_unit(&self, x: &Tensor) -> Tensor {
        match &self.divided_by {
            Some(by) => x * by_channel(x, &Tensor::from_slice(by).to_device(x.device())),
            None => x.shallow_clone(),
        }
    }

    /// What changed since earlier epochs; remembers this one.
    fn follow(&mut self, levels: Tensor, grid: &Grid, numbers: &mut Numbers) {
        let fraction = |mask: &Tensor| mask.mean(Kind::Double).double_value(&[]);
        if let Some(last) = &self.levels {
            let last = last.to_device(levels.device());
            let flipped = levels.not_equal_tensor(&last);
            numbers.flip_rate = Some(fraction(&flipped.to_kind(Kind::Double)));
            if let Some(before) = &self.levels_before {
                let back =
                    flipped.logical_and(&levels.eq_tensor(&before.to_device(levels.device())));
                numbers.oscillation = Some(fraction(&back.to_kind(Kind::Double)));
            }
        }
        let scale = grid.range().to_vec();
        numbers.scale_drift = self.scale.as_ref().map(|last| drift(&scale, last));
        numbers.scale_drift_from_start =
            self.scale_at_start.as_ref().map(|first| drift(&scale, first));
        self.levels_before = self.levels.replace(levels);
        self.scale_at_start.get_or_insert_with(|| scale.clone());
        self.scale = Some(scale);
    }
}

impl ModuleTelemetry {
    fn of(module: &str, measured: Vec<Measured>) -> Self {
        let num_weights: usize = measured.iter().map(|m| m.layer.num_weights).sum();
        let (signal, noise) =
            measured.iter().fold((0.0, 0.0), |(s, n), m| (s + m.signal, n + m.noise));
        let layers: Vec<LayerTelemetry> = measured.into_iter().map(|m| m.layer).collect();
        // Over all weights, and known only if it is known of each layer.
        let mean = |of: fn(&Numbers) -> Option<f64>| -> Option<f64> {
            let sums: Option<Vec<f64>> =
                layers.iter().map(|l| Some(of(&l.numbers)? * l.num_weights as f64)).collect();
            Some(sums?.iter().sum::<f64>() / num_weights as f64)
        };
        let largest = |of: fn(&Numbers) -> Option<f64>| {
            layers.iter().filter_map(|l| of(&l.numbers)).reduce(f64::max)
        };
        let numbers = Numbers {
            frozen_fraction: mean(|n| n.frozen_fraction),
            flip_rate: mean(|n| n.flip_rate),
            oscillation: mean(|n| n.oscillation),
            scale_drift: largest(|n| n.scale_drift),
            scale_drift_from_start: largest(|n| n.scale_drift_from_start),
            sqnr_db: decibels(signal, noise),
            zero_fraction: mean(|n| n.zero_fraction),
            num_frozen_by_oscillation: layers
                .iter()
                .filter_map(|l| l.numbers.num_frozen_by_oscillation)
                .reduce(|a, b| a + b),
            levels_in_use: layers.iter().filter_map(|l| l.numbers.levels_in_use).min(),
        };
        Self { module: module.to_owned(), num_weights, numbers, layers }
    }
}

impl Numbers {
    /// The numbers that are known, with their names.
    pub fn known(&self) -> Vec<(&'static str, f64)> {
        let all = [
            ("frozen_fraction", self.frozen_fraction),
            ("flip_rate", self.flip_rate),
            ("oscillation", self.oscillation),
            ("scale_drift", self.scale_drift),
            ("scale_drift_from_start", self.scale_drift_from_start),
            ("sqnr_db", self.sqnr_db),
            ("zero_fraction", self.zero_fraction),
            ("num_frozen_by_oscillation", self.num_frozen_by_oscillation.map(|n| n as f64)),
            ("levels_in_use", self.levels_in_use.map(|n| n as f64)),
        ];
        all.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }
}

/// Sum of squares, in f64.
fn energy(x: &Tensor) -> f64 {
    // The squares are summed in f64: tens of millions of f32 addends would lose digits.
    x.square().sum(Kind::Double).double_value(&[])
}

fn decibels(signal: f64, noise: f64) -> Option<f64> {
    (signal > 0.0 && noise > 0.0).then(|| 10.0 * (signal / noise).log10())
}

/// Norm of the difference over the norm of `from`.
fn drift(to: &[f32], from: &[f32]) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
    let difference = norm(&mut to.iter().zip(from).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    difference / norm(&mut from.iter().map(|v| f64::from(*v)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Store;
    use crate::quant::inq::InqWeights;
    use crate::quant::schedule::FractionSchedule;
    use crate::quant::testing::{network, store};
    use crate::quant::{Claim, QuantInit, QuantStrategy, WeightQuantConfig};

    fn config(schedule: &[(u32, f64)], strategy: QuantStrategy) -> WeightQuantConfig {
        let settings = InqWeights {
            quant_init_method: QuantInit::Uniform,
            quant_strategy: strategy,
            schedule: FractionSchedule::new(schedule.iter().copied()),
            ..Default::default()
        };
        WeightQuantConfig { n_levels: Some(3), settings: settings.into(), ..Default::default() }
    }

    /// One layer of four weights with scale 2: levels -2, 0, 2.
    fn layer() -> Store {
        store(&[("m.conv", Tensor::from_slice(&[2.0f32, -1.5, 0.5, 0.25]).reshape([4, 1, 1, 1]))])
    }

    fn attach(store: &Store, schedule: &[(u32, f64)]) -> ModuleQuantizer {
        let config = config(schedule, QuantStrategy::Magnitude);
        ModuleQuantizer::attach(&Claim::of("*").with_weights(&config), store).unwrap()
    }

    fn start(telemetry: &mut Telemetry, quantizer: &mut ModuleQuantizer, epoch: u32) {
        telemetry.before_step(quantizer);
        quantizer.start_epoch(epoch).unwrap();
        telemetry.after_step(quantizer);
    }

    fn set(store: &Store, values: [f32; 4]) {
        let weight = store.get("m.conv.weight").unwrap();
        no_grad(|| {
            weight.shallow_clone().copy_(&Tensor::from_slice(&values).reshape([4, 1, 1, 1]))
        });
    }

    #[test]
    fn the_numbers_are_those_worked_out_by_hand() {
        let store = layer();
        let mut quantizer = attach(&store, &[(1, 0.5), (2, 1.0)]);
        let mut telemetry = Telemetry::default();
        start(&mut telemetry, &mut quantizer, 0);
        let before = telemetry.measure(&quantizer).unwrap().numbers;
        assert_eq!(before, Numbers { frozen_fraction: Some(0.0), ..Numbers::default() });

        // 2 and -1.5 become 2 and -2: noise 0.25; the others are nearest to 0
        start(&mut telemetry, &mut quantizer, 1);
        let first = telemetry.measure(&quantizer).unwrap();
        let noise = 0.25 + (0.25 + 0.0625);
        let expected = 10.0 * f64::log10((4.0 + 2.25 + 0.25 + 0.0625) / noise);
        assert!((first.numbers.sqnr_db.unwrap() - expected).abs() < 1e-9, "{first:?}");
        assert_eq!(first.layers[0].numbers, first.numbers);
        let Numbers { frozen_fraction, zero_fraction, levels_in_use, flip_rate, .. } =
            first.numbers;
        assert_eq!((frozen_fraction, zero_fraction), (Some(0.5), Some(0.5)));
        assert_eq!((levels_in_use, flip_rate), (Some(3), None));

        // the third weight trains over to the level 2, and is frozen there
        set(&store, [2.0, -2.0, 1.25, 0.25]);
        start(&mut telemetry, &mut quantizer, 2);
        let second = telemetry.measure(&quantizer).unwrap().numbers;
        assert_eq!((second.flip_rate, second.oscillation), (Some(0.25), None));
        assert_eq!((second.scale_drift, second.zero_fraction), (Some(0.0), Some(0.25)));
        let noise = 0.25 + 0.5625 + 0.0625;
        let expected = 10.0 * f64::log10((4.0 + 2.25 + 1.5625 + 0.0625) / noise);
        assert!((second.sqnr_db.unwrap() - expected).abs() < 1e-9, "{second:?}");
        let third = telemetry.measure(&quantizer).unwrap().numbers;
        assert_eq!((third.flip_rate, third.oscillation), (Some(0.0), Some(0.0)));
    }

    #[test]
    fn the_published_change_of_unit_is_no_noise() {
        for granularity in ["tensor", "channel"] {
            let numbers = |rescale: &str| {
                let json = format!(
                    r#"{{"bits": 4, "granularity": "{granularity}", "schedule": {{"0": 0.5, "1": 0.8, "2": 1}},
                         "inq": {{"rescale": "{rescale}"}}}}"#
                );
                let (store, config) = (network(), serde_json::from_str(&json).unwrap());
                let claim = Claim::of("fpn").with_weights(&config);
                let mut quantizer = ModuleQuantizer::attach(&claim, &store).unwrap();
                let mut telemetry = Telemetry::default();
                let mut found = Vec::new();
                for epoch in 0..3 {
                    start(&mut telemetry, &mut quantizer, epoch);
                    // a resume after each
                    let state = telemetry.state();
                    telemetry.load_state(&state).unwrap();
                    let module = telemetry.measure(&quantizer).unwrap();
                    found.push(module.numbers.sqnr_db.unwrap());
                    found.extend(module.layers.iter().map(|l| l.numbers.sqnr_db.unwrap()));
                }
                found
            };
            let (plain, rescaled) = (numbers("none"), numbers("published"));
            assert_eq!(plain.len(), 3 * 4);
            for (a, b) in plain.iter().zip(&rescaled) {
                assert!((a - b).abs() < 1e-3, "{granularity}: {plain:?} {rescaled:?}");
            }
        }
    }

    #[test]
    fn a_weight_that_goes_and_comes_back_oscillates() {
        let store = layer();
        let mut quantizer = attach(&store, &[(0, 0.5), (3, 1.0)]);
        let mut telemetry = Telemetry::default();
        start(&mut telemetry, &mut quantizer, 0);
        let mut seen = Vec::new();
        for fourth in [0.25, -1.5, 0.25, 0.25] {
            set(&store, [2.0, -2.0, 0.5, fourth]);
            let numbers = telemetry.measure(&quantizer).unwrap().numbers;
            seen.push((numbers.flip_rate, numbers.oscillation));
        }
        let expected =
            [(None, None), (Some(0.25), None), (Some(0.25), Some(0.25)), (Some(0.0), Some(0.0))];
        assert_eq!(seen, expected);
    }

    #[test]
    fn what_is_remembered_goes_through_a_checkpoint() {
        let store = network();
        let config = config(&[(0, 0.4), (2, 1.0)], QuantStrategy::Rpr);
        let attach = || {
            ModuleQuantizer::attach(
                &Claim { seed: 3, ..Claim::of("fpn").with_weights(&config) },
                &store,
            )
            .unwrap()
        };
        let (mut quantizer, mut telemetry) = (attach(), Telemetry::default());
        for epoch in 0..2 {
            start(&mut telemetry, &mut quantizer, epoch);
            telemetry.measure(&quantizer).unwrap();
        }
        let mut resumed = Telemetry::default();
        resumed.load_state(&telemetry.state()).unwrap();
        for numbers in [&mut telemetry, &mut resumed] {
            numbers.before_step(&quantizer);
        }
        quantizer.start_epoch(2).unwrap();
        for numbers in [&mut telemetry, &mut resumed] {
            numbers.after_step(&quantizer);
        }
        let expected = telemetry.measure(&quantizer).unwrap();
        assert_eq!(resumed.measure(&quantizer).unwrap(), expected);
        assert_eq!(expected.layers.len(), 3);
        assert!(expected.numbers.sqnr_db.is_some() && expected.numbers.flip_rate.is_some());

        let refused = |name: &str, tensor: Tensor| {
            let state = [(name.to_owned(), tensor)];
            Telemetry::default().load_state(&state).unwrap_err().to_string()
        };
        assert!(refused("telemetry.fpn.levels", Tensor::from(1.0f32)).contains("Uint8"));
        let unknown = refused("telemetry.fpn.more", Tensor::from_slice(&[1.0f64]));
        assert!(unknown.contains("telemetry.fpn.more is unknown"), "{unknown}");
    }
}
