//! Additive noise annealing: a staircase averaged over uniform noise, whose width falls to 0.
//!
//! Source: Spallanzani et al., *Additive Noise Annealing and Approximation Properties of Quantized
//! Neural Networks*, 2019 (arXiv 1905.10452). A step of the staircase, averaged over noise uniform in
//! `[-w, w]`, is the ramp `clamp((x - t) / 2w + 1/2, 0, 1)`; the gradient is that of a ramp with a width
//! of its own.

use std::cell::Cell;
use std::rc::Rc;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::activation::{ActivationRule, CalibratedActivation};
use super::affine;
use super::levels::{Codes, Spacing};
use super::method::{ActivationQuantizer, WeightQuantizer};
use super::scale;
use super::schedule::moved;
use super::scheme::{ActivationContext, ActivationScheme, Settings, WeightContext, WeightScheme};
use super::settings::{CalibrationConfig, QuantInit};
use super::surrogate::straight_through;
use super::weight::{FakeWeight, LayerLevels, WeightRule};
use super::width::BitWidth;
use crate::nn::Site;
use crate::schema::above_zero;

/// Settings of additive noise annealing (method `ana`).
///
/// Widths are half-widths of the uniform noise, in distances of neighbouring levels: at 0.5 the
/// staircase is smoothed to a straight line, at 0 it is the staircase itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AnaConfig {
    /// Width of the noise that the forward pass averages over at epoch 0.
    #[schemars(range(min = 0, max = 8))]
    pub forward_width: f64,
    /// Width of the noise that the gradient averages over at epoch 0.
    #[schemars(range(max = 8), transform = above_zero)]
    pub backward_width: f64,
    /// Epoch of the stage from which the forward width is 0; it falls linearly until then.
    pub end_epoch: u32,
    /// Whether the backward width falls likewise, to 0: nothing is learnt through the quantizer then.
    pub anneal_backward: bool,
}

impl Default for AnaConfig {
    fn default() -> Self {
        Self { forward_width: 0.5, backward_width: 0.5, end_epoch: 20, anneal_backward: false }
    }
}

impl AnaConfig {
    fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        if self.end_epoch >= epochs {
            problems.push(format!(
                "{at}.ana.end_epoch: {} is never reached, the stage has only epochs 0..{epochs}: without \
                 an epoch free of noise the network is not trained as it will be used",
                self.end_epoch
            ));
        }
    }

    fn stretch(&mut self, from: u32, to: u32) {
        self.end_epoch = moved(self.end_epoch, from, to);
    }

    /// The fraction of the first width that is left in an epoch.
    pub(crate) fn fraction_at(&self, epoch: u32) -> f64 {
        if epoch >= self.end_epoch {
            0.0
        } else {
            1.0 - f64::from(epoch) / f64::from(self.end_epoch)
        }
    }

    fn widths_at(&self, epoch: u32) -> Widths {
        let fraction = self.fraction_at(epoch);
        let backward = if self.anneal_backward { fraction } else { 1.0 };
        Widths { forward: self.forward_width * fraction, backward: self.backward_width * backward }
    }
}

/// Method `ana` of weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AnaWeights {
    /// How the levels are spaced and scaled (methods `inq`, `uniform`, `ana`).
    pub quant_init_method: QuantInit,
    /// Settings of method `ana`.
    pub ana: AnaConfig,
}

impl Settings for AnaWeights {
    const NAME: &'static str = "ana";
    const SUMMARY: &'static str =
        "Additive noise annealing: staircases that are smoothed by noise, which fades away.";
}

impl WeightScheme for AnaWeights {
    fn check(&self, at: &str, problems: &mut Vec<String>) {
        self.quant_init_method.check_even(Self::NAME, at, problems);
    }

    fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        self.ana.check_epochs(epochs, at, problems);
    }

    fn stretch(&mut self, from: u32, to: u32) {
        self.ana.stretch(from, to);
    }

    fn spacing(&self, width: BitWidth) -> Result<Spacing> {
        width.evenly_spaced()
    }

    fn is_per_channel(&self) -> bool {
        self.quant_init_method.is_per_channel()
    }

    fn expected_range(
        &self,
        name: &str,
        weight: &Tensor,
        spacing: &Spacing,
        per_channel: bool,
    ) -> Result<Vec<f32>> {
        scale::ranges_by(name, weight, self.quant_init_method, spacing, per_channel)
    }

    fn attach(&self, site: &Rc<Site>, context: &WeightContext) -> Result<Box<dyn WeightQuantizer>> {
        let rule = AnnealedWeight { settings: self.clone(), noise: Noise::new(&self.ana) };
        Ok(Box::new(FakeWeight::attach(Self::NAME, site, context, rule)?))
    }
}

/// Method `ana` of activations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AnaActivations {
    /// How the range is found (all methods but `ste`).
    pub calibration: CalibrationConfig,
    /// Settings of method `ana`.
    pub ana: AnaConfig,
}

impl Settings for AnaActivations {
    const NAME: &'static str = "ana";
    const SUMMARY: &'static str = "Additive noise annealing.";
}

impl ActivationScheme for AnaActivations {
    fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        self.ana.check_epochs(epochs, at, problems);
    }

    fn stretch(&mut self, from: u32, to: u32) {
        self.ana.stretch(from, to);
    }

    fn spacing(&self, width: BitWidth, signed: bool) -> Result<Spacing> {
        match signed {
            true => width.evenly_spaced(),
            false => Spacing::unsigned(width.bits, width.n_levels),
        }
    }

    fn attach(
        &self,
        site: &Site,
        context: &ActivationContext,
    ) -> Result<Rc<dyn ActivationQuantizer>> {
        let rule = Noise::new(&self.ana);
        CalibratedActivation::attach(Self::NAME, site, context, &self.calibration, rule)
    }
}

/// The noise of the epoch under way.
struct Noise {
    config: AnaConfig,
    widths: Cell<Widths>,
}

impl Noise {
    fn new(config: &AnaConfig) -> Self {
        Self { config: config.clone(), widths: Cell::new(config.widths_at(0)) }
    }
}

struct AnnealedWeight {
    settings: AnaWeights,
    noise: Noise,
}

impl WeightRule for AnnealedWeight {
    fn range(
        &self,
        name: &str,
        weight: &Tensor,
        spacing: &Spacing,
        per_channel: bool,
    ) -> Result<Vec<f32>> {
        self.settings.expected_range(name, weight, spacing, per_channel)
    }

    fn start_epoch(&self, epoch: u32) {
        self.noise.widths.set(self.noise.config.widths_at(epoch));
    }

    fn forward(&self, weight: &Tensor, levels: &LayerLevels, train: bool) -> Tensor {
        match train {
            true => staircase(weight, levels.scale(), levels.codes(), self.noise.widths.get()),
            false => self.quantize(weight, levels),
        }
    }
}

impl ActivationRule for Noise {
    fn start_epoch(&self, epoch: u32) {
        self.widths.set(self.config.widths_at(epoch));
    }

    fn forward(&self, x: &Tensor, parameter: &Tensor, codes: Codes, train: bool) -> Tensor {
        match train {
            true => staircase(x, parameter, codes, self.widths.get()),
            false => super::activation::clamp_and_round(x, parameter, codes),
        }
    }
}

/// Half-widths of the noise, in distances of neighbouring levels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Widths {
    /// Of the values; 0 is the staircase itself.
    pub forward: f64,
    /// Of the gradient; 0 passes none.
    pub backward: f64,
}

/// The staircase with levels `code * step`, averaged over the noise; differentiable in `x`.
///
/// # Shapes
/// - `x`: f32, `[channels, ...]` where there is a step for each channel
/// - `step`: `[1]` or `[channels]`, f32, positive
pub fn staircase(x: &Tensor, step: &Tensor, codes: Codes, widths: Widths) -> Tensor {
    let (value, slope) = no_grad(|| {
        let x = x.detach();
        let distance = affine::by_channel(&x, step) * f64::from(codes.stride);
        let position = &x / &distance;
        let value = match widths.forward {
            0.0 => affine::quantize(&x, step, codes),
            width => ramps(&position, codes, width) * distance,
        };
        (value, slope(&position, codes, widths.backward))
    });
    straight_through(&value, x, &slope)
}

/// The thresholds are `first + i` for `i` in `0..count`, in distances of levels.
fn thresholds(codes: Codes) -> (f64, f64) {
    let lowest = f64::from(codes.lowest) / f64::from(codes.stride);
    (lowest + 0.5, f64::from(codes.count() - 1))
}

/// How many thresholds lie below `position - width` and `position + width`: f32 tensors.
fn reached(position: &Tensor, codes: Codes, width: f64) -> (Tensor, Tensor) {
    let (first, count) = thresholds(codes);
    let below = |offset: f64| (position + (offset - first)).ceil().clamp(0.0, count);
    (below(-width), below(width))
}

/// The averaged staircase in distances of levels: `a` steps are passed, those from `a` to `b` are
/// climbed in part, and the thresholds of these add up as an arithmetic series.
fn ramps(position: &Tensor, codes: Codes, width: f64) -> Tensor {
    let (first, _) = thresholds(codes);
    let (a, b) = reached(position, codes, width);
    let climbed = &b - &a;
    let mean_threshold = (&a + &b - 1.0) * 0.5 + first;
    let fraction = (position - mean_threshold) / (2.0 * width) + 0.5;
    a + climbed * fraction + (first - 0.5)
}

/// The derivative of the staircase averaged over noise of that width.
fn slope(position: &Tensor, codes: Codes, width: f64) -> Tensor {
    if width == 0.0 {
        return position.zeros_like();
    }
    let (a, b) = reached(position, codes, width);
    ((b - a) / (2.0 * width)).to_kind(Kind::Float)
}
