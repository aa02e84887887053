//! Parameterized clipping activation: the largest level of a layer's activations is learnt.
//!
//! Source: Choi et al., *PACT*, 2018 (arXiv 1805.06085), section 3.
//! Deviation: where activations have both signs (after leaky ReLUs, or the image itself) they are clipped to
//! `[-alpha, alpha]`, since clipping them to `[0, alpha]` would cut half of them off.

use std::rc::Rc;

use anyhow::Result;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::activation::{ActivationRule, Calibrated, CalibratedActivation};
use super::affine;
use super::levels::{Codes, Spacing};
use super::method::{ActivationQuantizer, LearntOptions};
use super::scheme::{ActivationContext, ActivationScheme, Settings};
use super::settings::CalibrationConfig;
use super::width::BitWidth;
use crate::nn::Site;
use crate::schema::above_zero;

/// Settings of parameterized clipping (method `pact`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PactConfig {
    /// Where the clipping level begins; null takes that of the calibration (the paper: 10).
    #[schemars(transform = above_zero)]
    pub init: Option<f64>,
    /// Learning rate of the clipping levels over that of the stage.
    #[schemars(range(min = 0))]
    pub lr_factor: f64,
    /// L2 penalty on the clipping levels.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
}

impl Default for PactConfig {
    fn default() -> Self {
        Self { init: None, lr_factor: 1.0, weight_decay: 1e-4 }
    }
}

/// Method `pact` of activations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct PactActivations {
    /// How the range is found (all methods but `ste`).
    pub calibration: CalibrationConfig,
    /// Settings of method `pact`.
    pub pact: PactConfig,
}

impl Settings for PactActivations {
    const NAME: &'static str = "pact";
    const SUMMARY: &'static str = "Parameterized clipping: the largest level is learnt.";
}

impl ActivationScheme for PactActivations {
    fn spacing(&self, width: BitWidth, signed: bool) -> Result<Spacing> {
        match signed {
            true => width.symmetric(Self::NAME),
            false => Spacing::unsigned(width.bits, width.n_levels),
        }
    }

    fn attach(
        &self,
        site: &Site,
        context: &ActivationContext,
    ) -> Result<Rc<dyn ActivationQuantizer>> {
        CalibratedActivation::attach(Self::NAME, site, context, &self.calibration, self.clone())
    }
}

impl ActivationRule for PactActivations {
    fn initial(&self, found: &Calibrated, codes: Codes) -> f32 {
        let calibrated = found.scale * codes.highest as f32;
        self.pact.init.map_or(calibrated, |top| top as f32)
    }

    fn parameter_name(&self) -> &'static str {
        "act_alpha"
    }

    fn scale(&self, parameter: f32, codes: Codes) -> f32 {
        parameter / codes.highest as f32
    }

    fn learnt(&self) -> Option<LearntOptions> {
        let PactConfig { lr_factor, weight_decay, .. } = self.pact;
        Some(LearntOptions { lr_factor, weight_decay, min: MIN_ALPHA })
    }

    fn forward(&self, x: &Tensor, parameter: &Tensor, codes: Codes, _train: bool) -> Tensor {
        clip_and_round(x, parameter, codes)
    }
}

/// No optimizer step takes a clipping level below this.
pub const MIN_ALPHA: f64 = 1e-6;

/// Clips to the outermost levels, the highest of which is `alpha`, and rounds; differentiable in `x`
/// (1 inside, 0 outside) and `alpha` (1 at or above it, -1 at or below the mirrored one, 0 inside).
///
/// # Shapes
/// - `x`: any shape, f32
/// - `alpha`: `[1]`, f32, positive
pub fn clip_and_round(x: &Tensor, alpha: &Tensor, codes: Codes) -> Tensor {
    let value = no_grad(|| {
        let step = alpha.detach() / f64::from(codes.highest);
        affine::quantize(x, &step, codes)
    });
    if !(x.requires_grad() || alpha.requires_grad()) {
        return value;
    }
    let (outside, by_alpha) = no_grad(|| {
        let (x, limit) = (x.detach(), alpha.detach());
        let above = x.ge_tensor(&limit);
        let below = match codes.lowest {
            0 => x.lt(0.0),
            _ => x.le_tensor(&-&limit),
        };
        let down = if codes.lowest == 0 { 0.0 } else { 1.0 };
        let by_alpha = above.to_kind(Kind::Float) - below.to_kind(Kind::Float) * down;
        (above.logical_or(&below), by_alpha)
    });
    // both add exactly 0
    let passed = x.masked_fill(&outside, 0.0);
    value + (&passed - passed.detach()) + (alpha - alpha.detach()) * by_alpha
}
