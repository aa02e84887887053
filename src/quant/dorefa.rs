//! DoReFa-Net: levels evenly spaced over the range of tanh(w).
//!
//! Source: Zhou et al., *DoReFa-Net*, 2016 (arXiv 1606.06160), section 2.3.
//! Deviation: unless `unit_scale` is set, the levels are multiplied by the scale that fits the weights
//! best at the begin, so that quantizing a trained layer hardly changes its function; and the maximum of
//! |tanh| counts as a constant in the gradient.

use std::rc::Rc;

use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::activation::{ActivationRule, Calibrated, CalibratedActivation};
use super::affine;
use super::levels::{Codes, Spacing};
use super::method::{ActivationQuantizer, WeightQuantizer};
use super::scale;
use super::scheme::{ActivationContext, ActivationScheme, Settings, WeightContext, WeightScheme};
use super::settings::CalibrationConfig;
use super::surrogate::straight_through;
use super::weight::{FakeWeight, LayerLevels, WeightRule};
use super::width::{BitWidth, Levels};
use crate::nn::Site;

/// Settings of method `dorefa`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DorefaConfig {
    /// The largest level is 1, as in the paper, whatever the weights or activations; if not, it is fitted
    /// to them once, so that quantizing hardly changes the network's function.
    pub unit_scale: bool,
}

/// Method `dorefa` of weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DorefaWeights {
    /// Settings of method `dorefa`.
    pub dorefa: DorefaConfig,
}

impl Settings for DorefaWeights {
    const NAME: &'static str = "dorefa";
    const SUMMARY: &'static str = "DoReFa-Net: evenly spaced levels of tanh(w).";
}

impl WeightScheme for DorefaWeights {
    fn spacing(&self, width: BitWidth) -> Result<Spacing> {
        let (bits, n_levels) = width.count()?;
        Spacing::all_codes(bits, n_levels)
    }

    fn attach(&self, site: &Rc<Site>, context: &WeightContext) -> Result<Box<dyn WeightQuantizer>> {
        Ok(Box::new(FakeWeight::attach(Self::NAME, site, context, self.clone())?))
    }
}

impl WeightRule for DorefaWeights {
    fn range(
        &self,
        name: &str,
        weight: &Tensor,
        spacing: &Spacing,
        per_channel: bool,
    ) -> Result<Vec<f32>> {
        scale::ensure_finite(name, weight)?;
        let codes = spacing.multiples().context("levels that are not multiples of a scale")?;
        let fitted = match self.dorefa.unit_scale {
            true => {
                let num = if per_channel { weight.size()[0] as usize } else { 1 };
                vec![1.0 / codes.highest as f32; num]
            }
            false => fitted_steps(weight, per_channel, codes),
        };
        let least = scale::range_of_zeros(spacing).min(1e-6);
        Ok(fitted.into_iter().map(|s| (s * codes.highest as f32).max(least)).collect())
    }

    fn forward(&self, weight: &Tensor, levels: &LayerLevels, _train: bool) -> Tensor {
        fake_quantize(weight, levels.scale(), levels.codes())
    }

    fn quantize_into(&self, out: &mut Tensor, weight: &Tensor, levels: &LayerLevels) {
        let value = fake_quantize(&weight.detach(), levels.scale(), levels.codes());
        no_grad(|| out.copy_(&value));
    }
}

/// Method `dorefa` of activations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct DorefaActivations {
    /// How the range is found (all methods but `ste`).
    pub calibration: CalibrationConfig,
    /// Settings of method `dorefa`.
    pub dorefa: DorefaConfig,
}

impl Settings for DorefaActivations {
    const NAME: &'static str = "dorefa";
    const SUMMARY: &'static str = "DoReFa-Net: clip to [0, 1] times a scale, and round.";
}

impl ActivationScheme for DorefaActivations {
    /// Of both signs: 2^b - 1 levels, so that 0 is one of them and stays 0; the paper's activations are not negative. With
    /// [`super::Levels::Full`] the paper's 2^b levels on both sides of 0.
    fn spacing(&self, width: BitWidth, signed: bool) -> Result<Spacing> {
        match signed {
            true => {
                let (bits, n_levels) = width.count()?;
                Spacing::uniform(bits, n_levels)
            }
            false => Spacing::unsigned(width.bits, width.n_levels),
        }
    }

    /// A width without `levels` meant the paper's 2^b levels, none of them 0.
    fn former_signed(&self, width: BitWidth) -> Result<Option<Spacing>> {
        let BitWidth { bits, n_levels, levels } = width;
        let is_default = levels.is_none() && n_levels.is_none();
        is_default
            .then(|| self.spacing(BitWidth { bits, n_levels, levels: Some(Levels::Full) }, true))
            .transpose()
    }

    fn attach(
        &self,
        site: &Site,
        context: &ActivationContext,
    ) -> Result<Rc<dyn ActivationQuantizer>> {
        CalibratedActivation::attach(Self::NAME, site, context, &self.calibration, self.clone())
    }
}

impl ActivationRule for DorefaActivations {
    fn initial(&self, found: &Calibrated, codes: Codes) -> f32 {
        match self.dorefa.unit_scale {
            true => (1.0 / f64::from(codes.highest)) as f32,
            false => found.scale,
        }
    }
}

/// Below this the largest |tanh(w)| counts as this: a layer of zeros has levels, too.
const MIN_LARGEST: f64 = 1e-12;

/// `tanh(w) / max|tanh(w)|`, the maximum over the tensor or over each channel; and what the derivative by
/// `w` is made of: `1 / max|tanh(w)|` in a shape that broadcasts.
fn unit(weight: &Tensor, per_channel: bool) -> (Tensor, Tensor) {
    let tanh = weight.detach().tanh();
    let largest = match per_channel {
        true => tanh.abs().reshape([weight.size()[0], -1]).amax([1i64].as_slice(), false),
        false => tanh.abs().max().reshape([1]),
    };
    let inverse = affine::by_channel(weight, &largest.clamp_min(MIN_LARGEST).reciprocal());
    (tanh, inverse)
}

/// The integer codes of a weight, f32.
pub(crate) fn codes(weight: &Tensor, per_channel: bool, codes: Codes) -> Tensor {
    no_grad(|| {
        let (tanh, inverse) = unit(weight, per_channel);
        // 1 is the outermost level
        let step = f64::from(1.0 / codes.highest as f32);
        let step = Tensor::full([1], step, (Kind::Float, weight.device()));
        let unit_levels = affine::quantize(&(tanh * inverse), &step, codes);
        (unit_levels * f64::from(codes.highest)).round()
    })
}

/// The quantized weight, differentiable in `weight`: straight through the rounding.
///
/// # Shapes
/// - `weight`: `[channels, ...]`, f32
/// - `step`: `[1]` or `[channels]`; the outermost level is the highest code times the step
pub(crate) fn fake_quantize(weight: &Tensor, step: &Tensor, grid: Codes) -> Tensor {
    let per_channel = step.numel() > 1;
    let (value, slope) = no_grad(|| {
        let step = affine::by_channel(weight, step);
        let value = codes(weight, per_channel, grid) * &step;
        let (tanh, inverse) = unit(weight, per_channel);
        let slope = (tanh.square() * -1.0 + 1.0) * inverse * (step * f64::from(grid.highest));
        (value, slope)
    });
    straight_through(&value, weight, &slope)
}

/// The steps that bring the levels closest to the weight in squares: `<w, c> / <c, c>`, 0 where the weight
/// is 0 throughout.
pub(crate) fn fitted_steps(weight: &Tensor, per_channel: bool, grid: Codes) -> Vec<f32> {
    no_grad(|| {
        let rows = if per_channel { weight.size()[0] } else { 1 };
        let sum = |x: Tensor| {
            x.reshape([rows, -1]).sum_dim_intlist([1i64].as_slice(), false, Kind::Double)
        };
        let c = codes(weight, per_channel, grid);
        let steps = sum(weight.detach() * &c) / sum(c.square()).clamp_min(1.0);
        Vec::try_from(steps.to_kind(Kind::Float).to_device(tch::Device::Cpu))
            .expect("a tensor of one dimension")
    })
}
