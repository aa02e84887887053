//! Levels at a scale that the values give; the gradient passes straight through.

use std::rc::Rc;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::Tensor;

use super::activation::{ActivationRule, CalibratedActivation};
use super::affine;
use super::levels::Spacing;
use super::lsq;
use super::method::{ActivationQuantizer, WeightQuantizer};
use super::scale;
use super::scheme::{ActivationContext, ActivationScheme, Settings, WeightContext, WeightScheme};
use super::settings::Clip;
use super::settings::{CalibrationConfig, QuantInit};
use super::weight::{FakeWeight, LayerLevels, WeightRule};
use super::width::BitWidth;
use crate::nn::Site;

/// Settings of weights quantized at a scale that they give themselves (method `uniform`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UniformConfig {
    /// Whether the scale is found anew at the begin of each epoch; if not, it stays that of the first.
    pub recalibrate: bool,
}

/// Method `uniform` of weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UniformWeights {
    /// How the levels are spaced and scaled (methods `inq`, `uniform`, `ana`).
    pub quant_init_method: QuantInit,
    /// Settings of method `uniform`.
    pub uniform: UniformConfig,
}

impl Settings for UniformWeights {
    const NAME: &'static str = "uniform";
    const SUMMARY: &'static str =
        "Round to levels at a scale that the weights give; the gradient passes straight through.";
}

impl WeightScheme for UniformWeights {
    fn check(&self, at: &str, problems: &mut Vec<String>) {
        self.quant_init_method.check_even(Self::NAME, at, problems);
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
        Ok(Box::new(FakeWeight::attach(Self::NAME, site, context, self.clone())?))
    }
}

impl WeightRule for UniformWeights {
    fn range(
        &self,
        name: &str,
        weight: &Tensor,
        spacing: &Spacing,
        per_channel: bool,
    ) -> Result<Vec<f32>> {
        self.expected_range(name, weight, spacing, per_channel)
    }

    fn refits(&self) -> bool {
        self.uniform.recalibrate
    }

    fn forward(&self, weight: &Tensor, levels: &LayerLevels, _train: bool) -> Tensor {
        lsq::fake_quantize(weight, levels.scale(), levels.codes(), 0.0, Clip::AfterRounding)
            .expect("the scales are those of this weight")
    }

    fn has_backward(&self) -> bool {
        true
    }

    fn backward(&self, weight: &Tensor, grad: &mut Tensor, levels: &LayerLevels) {
        let (scale, codes) = (levels.scale(), levels.codes());
        let _ = affine::gradients(weight, grad, scale, codes, Clip::AfterRounding);
    }
}

/// Method `uniform` of activations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct UniformActivations {
    /// How the range is found (all methods but `ste`).
    pub calibration: CalibrationConfig,
}

impl Settings for UniformActivations {
    const NAME: &'static str = "uniform";
    const SUMMARY: &'static str = "As `ste`, over the range that the calibration gives; unsigned where no activation is negative.";
}

impl ActivationScheme for UniformActivations {
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
        CalibratedActivation::attach(Self::NAME, site, context, &self.calibration, Nearest)
    }
}

/// The rule as it comes: to the nearest level of the calibrated range.
struct Nearest;

impl ActivationRule for Nearest {}
