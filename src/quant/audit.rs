//! Whether quantized weights are what they claim to be: on their levels, few enough values, more than one.

use anyhow::Result;
use serde::Serialize;
use tch::{Kind, Tensor};

use super::levels::Grid;
use super::method::{ActivationReport, SiteReport, WeightQuantizer};
use super::module::ModuleQuantizer;

/// What was found about a layer that carries quantizers.
#[derive(Debug, Clone, Serialize)]
pub struct WeightAudit {
    /// The layer.
    pub name: String,
    /// Its weights.
    pub num_weights: usize,
    /// Method of its weights; `float` where only activations are quantized.
    pub method: String,
    /// Bits of a weight, 32 for float.
    pub bits: u32,
    /// Levels that its grid has; null for float.
    pub num_levels: Option<u32>,
    /// Different values that its quantized weights have (of a channel, where each has its scale: the most).
    pub num_values: Option<usize>,
    /// Weights that are quantized and on none of the levels.
    pub num_off_grid: usize,
    /// Fraction of weights that are frozen; null for methods that freeze none.
    pub frozen_fraction: Option<f64>,
    /// Smallest and largest scale: a level is an integer code times it. Null where levels are not multiples of one.
    pub scale: Option<[f32; 2]>,
    /// Smallest and largest of the channels' largest levels.
    pub max_level: Option<[f32; 2]>,
    /// The quantizer of its activations.
    pub activations: Option<ActivationReport>,
    /// What is wrong, a line each; empty when all is well.
    pub problems: Vec<String>,
}

/// Looks at every layer of a module.
///
/// # Errors
/// If a weight does not fit its grid's shape.
pub fn audit(quantizer: &ModuleQuantizer) -> Result<Vec<WeightAudit>> {
    let mut audits = Vec::new();
    for report in quantizer.report() {
        let weight = quantizer.weight_quantizers().find(|w| w.site().name == report.name);
        audits.push(tch::no_grad(|| audit_layer(report, weight))?);
    }
    Ok(audits)
}

fn audit_layer(report: SiteReport, weight: Option<&dyn WeightQuantizer>) -> Result<WeightAudit> {
    let mut audit = WeightAudit {
        method: report.method,
        bits: report.bits,
        num_levels: report.num_levels,
        ..WeightAudit::of_floats(&report.name, report.num_weights, report.activations)
    };
    if let Some(weight) = weight {
        audit.weights(weight, report.frozen_fraction)?;
    }
    audit.activations();
    Ok(audit)
}

impl WeightAudit {
    /// A layer of float weights, nothing looked at yet.
    pub fn of_floats(
        name: &str,
        num_weights: usize,
        activations: Option<ActivationReport>,
    ) -> Self {
        Self {
            name: name.to_owned(),
            num_weights,
            method: "float".to_owned(),
            bits: 32,
            num_levels: None,
            num_values: None,
            num_off_grid: 0,
            frozen_fraction: None,
            scale: None,
            max_level: None,
            activations,
            problems: Vec::new(),
        }
    }

    fn weights(&mut self, weight: &dyn WeightQuantizer, fraction_said: f64) -> Result<()> {
        let used = weight.site().effective_weight(false).detach().contiguous();
        let quantized = self.mask(weight, &used, fraction_said)?;
        let num_bad = count(&used.isfinite().logical_not());
        if num_bad > 0 {
            self.problems.push(format!("{num_bad} weights are not finite"));
        }
        let Some(grid) = weight.grid() else {
            self.problems.push("has no levels yet".to_owned());
            return Ok(());
        };
        self.scales(&grid);
        let off = grid.on_grid(&used)?.logical_not().logical_and(&quantized).reshape([-1]);
        self.num_off_grid = count(&off) as usize;
        if self.num_off_grid > 0 {
            let index = off.nonzero().int64_value(&[0, 0]);
            let value = used.reshape([-1]).double_value(&[index]);
            self.problems.push(format!(
                "{} weights lie on none of its levels, the first at index {index}: {value:e}",
                self.num_off_grid
            ));
        } else if num_bad == 0 {
            self.values(&grid, &used, &quantized)?;
        }
        // A method may know more about itself.
        if let (Err(err), true) = (weight.assert_on_grid(), self.problems.is_empty()) {
            self.problems.push(err.to_string());
        }
        Ok(())
    }

    /// Which weights are to be on levels: the frozen ones, or all where the method freezes none.
    fn mask(&mut self, weight: &dyn WeightQuantizer, used: &Tensor, said: f64) -> Result<Tensor> {
        let Some(trainable) = weight.trainable() else {
            return Ok(used.ones_like().to_kind(Kind::Bool));
        };
        let frozen = trainable.eq(0.0);
        let neither = frozen.logical_or(&trainable.eq(1.0)).logical_not();
        if count(&neither) > 0 {
            self.problems.push("its mask holds other values than 0 and 1".to_owned());
        }
        let fraction = count(&frozen) as f64 / self.num_weights as f64;
        self.frozen_fraction = Some(fraction);
        if fraction != said {
            self.problems.push(format!(
                "its mask freezes {:.4} % of the weights, and it counts {:.4} %",
                100.0 * fraction,
                100.0 * said
            ));
        }
        if fraction < 1.0 {
            self.problems.push(format!("only {:.2} % of its weights are frozen", 100.0 * fraction));
        }
        Ok(frozen)
    }

    fn scales(&mut self, grid: &Grid) {
        let ends = |values: &[f32]| {
            let low = values.iter().copied().fold(f32::INFINITY, f32::min);
            let high = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            [low, high]
        };
        self.scale = grid.scale().map(|scale| ends(&scale));
        self.max_level = Some(ends(&grid.max_level()));
        let scale = grid.range();
        let bad = scale.iter().filter(|s| !(s.is_finite() && **s > 0.0)).count();
        if bad > 0 {
            self.problems.push(format!("{bad} of {} scales are not positive", scale.len()));
        }
    }

    /// Counts the levels in use; all weights are known to be on one.
    fn values(&mut self, grid: &Grid, used: &Tensor, quantized: &Tensor) -> Result<()> {
        let (channels, levels) = (grid.num_ranges() as i64, i64::from(grid.spacing().num_levels()));
        let channel = Tensor::arange(channels, (Kind::Int64, used.device())) * levels;
        let index = grid.index(used)?.reshape([channels, -1]) + channel.reshape([-1, 1]);
        let index = index.masked_select(&quantized.reshape([channels, -1]));
        let table = index.bincount::<Tensor>(None, channels * levels).reshape([channels, levels]);
        let most = table.gt(0).sum_dim_intlist([1i64].as_slice(), false, Kind::Int64).max();
        let most = most.int64_value(&[]);
        self.num_values = Some(most as usize);
        if self.bits < 32 && most > 1 << self.bits {
            self.problems
                .push(format!("{most} different values, more than {} bits hold", self.bits));
        }
        let is_zero = count(&used.ne(0.0)) == 0;
        if count(quantized) > 0 && (most == 1 || is_zero) {
            let value = if is_zero { "0" } else { "one level" };
            self.problems.push(format!("it has collapsed: every weight is at {value}"));
        }
        Ok(())
    }

    fn activations(&mut self) {
        let Some(activations) = &self.activations else { return };
        match activations.max_level {
            Some(max) if !(max.is_finite() && max >= 0.0) => {
                self.problems.push(format!("the range of its activations is {max}"));
            }
            // activations that are always 0 are left as it is
            Some(0.0) => {}
            _ if !activations.quantizing => {
                self.problems.push("its activations are still float".to_owned())
            }
            _ => {}
        }
    }
}

/// What the values of a weight look like that carries no quantizer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ValuesFound {
    /// Different values; of a channel the most, where `per_channel`. Null for more than 256: float.
    pub num_values: Option<usize>,
    /// Whether it is the channels that have few values, not the tensor.
    pub per_channel: bool,
    /// How the values are spaced.
    pub spacing: SpacingFound,
    /// Largest magnitude.
    pub abs_max: f64,
    /// Values that are not finite.
    pub num_not_finite: usize,
}

/// How values are spaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SpacingFound {
    /// Too many values to have a spacing.
    Float,
    /// One value.
    Constant,
    /// Multiples of one step (some may be missing).
    Even,
    /// 0 and powers of two times one number.
    PowersOfTwo,
    /// Anything else.
    Uneven,
}

/// Most values that a quantized weight may have.
const MOST_VALUES: usize = 256;
/// From so many weights on, values of which most occur once are those of a float layer.
const SMALL_LAYER: usize = 64;
/// How far a value may be off its multiple of the step, in steps.
const STEP_TOLERANCE: f64 = 1e-3;

/// Looks at a weight, `[c_out, ...]`, of which nothing is known.
///
/// A channel of few weights has few values whatever they are: channels count as quantized only where each value is
/// there four times on average.
pub fn look_at_values(weight: &Tensor) -> ValuesFound {
    let weight = tch::no_grad(|| weight.detach().to_kind(Kind::Float));
    let num_not_finite = count(&weight.isfinite().logical_not()) as usize;
    let abs_max = weight.abs().max().double_value(&[]);
    let found = |values: Option<usize>, per_channel, spacing| ValuesFound {
        num_values: values,
        per_channel,
        spacing,
        abs_max,
        num_not_finite,
    };
    if let Some(values) = different(&weight.reshape([-1])) {
        let spacing = spacing_of(&values);
        // A float layer of a hundred weights has no more than a hundred values.
        let many = weight.numel() >= SMALL_LAYER && 2 * values.len() > weight.numel();
        return match spacing {
            SpacingFound::Uneven if many => found(None, false, SpacingFound::Float),
            _ => found(Some(values.len()), false, spacing),
        };
    }
    let channels = weight.size()[0];
    let weights_each = weight.numel() / channels.max(1) as usize;
    let rows = weight.reshape([channels, -1]);
    let mut most: Vec<f32> = Vec::new();
    for channel in 0..channels {
        match different(&rows.get(channel)) {
            Some(values) if values.len() * 4 <= weights_each => {
                if values.len() > most.len() {
                    most = values;
                }
            }
            _ => return found(None, false, SpacingFound::Float),
        }
    }
    found(Some(most.len()), true, spacing_of(&most))
}

/// The different values of a flat tensor, ascending; none if there are more than [`MOST_VALUES`].
fn different(flat: &Tensor) -> Option<Vec<f32>> {
    // A float weight is told by its first values, without sorting millions.
    const FIRST: i64 = 4096;
    for part in [flat.narrow(0, 0, FIRST.min(flat.size()[0])), flat.shallow_clone()] {
        let sorted = part.sort(0, false).0;
        let unique = sorted.unique_consecutive(false, false, None).0;
        if unique.numel() > MOST_VALUES {
            return None;
        }
        if part.numel() == flat.numel() {
            return Vec::try_from(&unique).ok();
        }
    }
    None
}

fn spacing_of(values: &[f32]) -> SpacingFound {
    if values.len() < 2 {
        return SpacingFound::Constant;
    }
    let step =
        values.windows(2).map(|w| f64::from(w[1]) - f64::from(w[0])).fold(f64::MAX, f64::min);
    let first = f64::from(values[0]);
    let whole = |v: &f32| {
        let steps = (f64::from(*v) - first) / step;
        (steps - steps.round()).abs() <= STEP_TOLERANCE && steps <= MOST_VALUES as f64
    };
    let magnitudes = || values.iter().map(|v| f64::from(v.abs())).filter(|v| *v > 0.0);
    let smallest = magnitudes().fold(f64::MAX, f64::min);
    let power = |v: f64| {
        let exponent = (v / smallest).log2();
        (exponent - exponent.round()).abs() <= STEP_TOLERANCE
    };
    // Two magnitudes, one twice the other, are an even grid as well; of three or more 3 times the smallest would be one.
    let largest = magnitudes().fold(0.0, f64::max);
    if largest > 3.0 * smallest && magnitudes().all(power) {
        SpacingFound::PowersOfTwo
    } else if values.iter().all(whole) {
        SpacingFound::Even
    } else {
        SpacingFound::Uneven
    }
}

fn count(mask: &Tensor) -> i64 {
    mask.sum(Kind::Int64).int64_value(&[])
}

#[cfg(test)]
mod tests {
    use tch::no_grad;

    use super::*;
    use crate::nn::Store;
    use crate::quant::inq::InqWeights;
    use crate::quant::schedule::FractionSchedule;
    use crate::quant::testing::{network, weights};
    use crate::quant::{Claim, QuantInit, WeightQuantConfig};

    fn quantized(fraction_at_1: bool) -> (Store, ModuleQuantizer) {
        let store = network();
        let settings = InqWeights {
            quant_init_method: QuantInit::UniformL2OptPerChannel,
            schedule: FractionSchedule::new([(0, 0.5), (1, 1.0)]),
            ..Default::default()
        };
        let config =
            WeightQuantConfig { bits: Some(2), settings: settings.into(), ..Default::default() };
        let mut quantizer = ModuleQuantizer::attach(
            &Claim { seed: 1, ..Claim::of("fpn").with_weights(&config) },
            &store,
        )
        .unwrap();
        for epoch in 0..=u32::from(fraction_at_1) {
            quantizer.start_epoch(epoch).unwrap();
        }
        (store, quantizer)
    }

    fn set(store: &Store, name: &str, change: impl Fn(&mut Tensor)) {
        no_grad(|| change(&mut store.get(name).unwrap().detach()));
    }

    #[test]
    fn quantized_layers_pass_with_their_numbers() {
        let (_store, quantizer) = quantized(true);
        let found = audit(&quantizer).unwrap();
        assert_eq!(found.len(), 3);
        for layer in found {
            assert_eq!(layer.problems, [""; 0], "{}", layer.name);
            assert_eq!((layer.bits, layer.num_levels, layer.num_values), (2, Some(3), Some(3)));
            assert_eq!((layer.frozen_fraction, layer.num_off_grid), (Some(1.0), 0));
            assert!(layer.scale.unwrap()[0] > 0.0);
        }
    }

    #[test]
    fn each_kind_of_damage_is_named() {
        let first = |change: &dyn Fn(&mut Tensor)| {
            let (store, quantizer) = quantized(true);
            set(&store, "fpn.inner_convs.2.weight", |w| change(w));
            let found = audit(&quantizer).unwrap();
            assert!(found[1].problems.is_empty(), "only the first was touched");
            found[0].problems.join("; ")
        };
        let text = first(&|w| drop(w.get(1).get(0).get(0).get(2).fill_(0.123)));
        assert!(
            text.starts_with("1 weights lie on none of its levels, the first at index 29"),
            "{text}"
        );
        let text = first(&|w| drop(w.fill_(0.0)));
        assert!(text.contains("collapsed: every weight is at 0"), "{text}");
        let text = first(&|w| drop(w.get(0).get(0).get(0).get(0).fill_(f64::NAN)));
        assert!(text.contains("1 weights are not finite"), "{text}");
    }

    #[test]
    fn a_partly_quantized_layer_says_how_far_it_is() {
        let (_store, quantizer) = quantized(false);
        let found = audit(&quantizer).unwrap();
        assert_eq!(found[0].problems, ["only 50.00 % of its weights are frozen"]);
        assert_eq!(found[0].num_off_grid, 0);
    }

    #[test]
    fn values_without_a_quantizer_are_recognised() {
        let look = |values: &[f32]| look_at_values(&Tensor::from_slice(values).reshape([1, -1]));
        let even = look(&[-0.5, 0.0, 0.5, 0.5, -0.5]);
        assert_eq!((even.num_values, even.spacing), (Some(3), SpacingFound::Even));
        assert_eq!(look(&[0.25, -1.0, 0.0, 0.5, 2.0, 8.0]).spacing, SpacingFound::PowersOfTwo);
        assert_eq!(look(&[0.0, 0.3, 1.0]).spacing, SpacingFound::Uneven);
        assert_eq!(look(&[2.0, 2.0]).spacing, SpacingFound::Constant);
        assert_eq!(look(&[0.0, f32::NAN]).num_not_finite, 1);

        let float = look_at_values(&weights(1, &[8, 16, 3, 3]));
        assert_eq!((float.num_values, float.spacing), (None, SpacingFound::Float));
        // ternary with a scale for each of 200 channels
        let scale =
            Tensor::arange(200, (Kind::Float, tch::Device::Cpu)).reshape([200, 1, 1, 1]) + 1;
        let ternary = weights(2, &[200, 4, 3, 3]).sign() * scale;
        let found = look_at_values(&ternary);
        assert!(found.per_channel && found.num_values == Some(2), "{found:?}");
    }
}
