//! Learnt step size quantization: the distance of the levels is a parameter of the network.
//!
//! Source: Esser et al., *Learned Step Size Quantization*, ICLR 2020 (arXiv 1902.08153).

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::activation::{ActivationRule, Calibrated, CalibratedActivation};
use super::affine;
use super::levels::{Codes, Spacing};
use super::method::{ActivationQuantizer, LearntOptions, WeightQuantizer};
use super::scale;
use super::scheme::{ActivationContext, ActivationScheme, Settings, WeightContext, WeightScheme};
use super::settings::{CalibrationConfig, Clip, CodeRange, MIN_STEP, RangeInit};
use super::weight::{FakeWeight, LayerLevels, WeightRule};
use super::width::{BitWidth, Levels};
use crate::nn::Site;

/// Where a learnt step begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepInit {
    /// 2 mean|x| / sqrt(largest code), as in the LSQ paper: at 8 bits about 5 times the step of smallest error.
    Mean,
    /// The step of smallest squared quantization error.
    #[default]
    Mse,
}

/// Settings of learnt steps (method `lsq`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct LsqConfig {
    /// Where the step begins.
    pub init: StepInit,
    /// The integers of b bits.
    pub range: CodeRange,
    /// Which values count as clipped in the gradient.
    pub clip: Clip,
    /// Learning rate of the steps over that of the stage.
    #[schemars(range(min = 0))]
    pub lr_factor: f64,
    /// L2 penalty on the steps; that of the stage's optimizer leaves them alone.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
}

impl Default for LsqConfig {
    fn default() -> Self {
        Self {
            init: StepInit::Mse,
            range: CodeRange::Full,
            clip: Clip::BeforeRounding,
            lr_factor: 1.0,
            weight_decay: 0.0,
        }
    }
}

impl LsqConfig {
    /// The default of version 0.1, which files of other methods hold.
    fn former_default() -> Self {
        Self { init: StepInit::Mean, ..Self::default() }
    }

    /// `levels` goes before [`LsqConfig::range`], and must not contradict it.
    fn spacing(&self, width: BitWidth) -> Result<Spacing> {
        ensure!(
            !(width.levels == Some(Levels::Full) && self.range == CodeRange::Narrow),
            "levels full and lsq.range narrow contradict each other: drop one of the two"
        );
        let (bits, n_levels) = width.count()?;
        Spacing::integers(bits, n_levels, self.range)
    }

    fn learnt(&self) -> LearntOptions {
        LearntOptions { lr_factor: self.lr_factor, weight_decay: self.weight_decay, min: MIN_STEP }
    }
}

/// Method `lsq` of weights.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LsqWeights {
    /// Settings of method `lsq`.
    pub lsq: LsqConfig,
}

impl Settings for LsqWeights {
    const NAME: &'static str = "lsq";
    const SUMMARY: &'static str =
        "Learnt step size: round, and learn the distance of the levels with the weights.";

    fn former_defaults() -> Vec<Self> {
        vec![Self { lsq: LsqConfig::former_default() }]
    }
}

impl WeightScheme for LsqWeights {
    /// Where training begins.
    fn expected_range(
        &self,
        name: &str,
        weight: &Tensor,
        spacing: &Spacing,
        per_channel: bool,
    ) -> Result<Vec<f32>> {
        self.range(name, weight, spacing, per_channel)
    }

    fn spacing(&self, width: BitWidth) -> Result<Spacing> {
        self.lsq.spacing(width)
    }

    fn attach(&self, site: &Rc<Site>, context: &WeightContext) -> Result<Box<dyn WeightQuantizer>> {
        Ok(Box::new(FakeWeight::attach(Self::NAME, site, context, self.clone())?))
    }
}

impl WeightRule for LsqWeights {
    fn range(
        &self,
        name: &str,
        weight: &Tensor,
        spacing: &Spacing,
        per_channel: bool,
    ) -> Result<Vec<f32>> {
        let codes = spacing.multiples().context("a learnt step needs multiples of it")?;
        initial_steps(name, weight, self.lsq.init, codes, per_channel)
    }

    fn forward(&self, weight: &Tensor, levels: &LayerLevels, _train: bool) -> Tensor {
        let factor = gradient_factor(levels.num_weights(), levels.codes());
        fake_quantize(weight, levels.scale(), levels.codes(), factor, self.lsq.clip)
            .expect("the steps are those of this weight")
    }

    fn has_backward(&self) -> bool {
        true
    }

    fn backward(&self, weight: &Tensor, grad: &mut Tensor, levels: &LayerLevels) {
        let (scale, codes) = (levels.scale(), levels.codes());
        let by_step = affine::gradients(weight, grad, scale, codes, self.lsq.clip);
        let factor = gradient_factor(levels.num_weights(), levels.codes());
        add_gradient(levels.scale(), &(by_step * factor));
    }

    fn add_gradient_of_frozen(&self, by_scale: &Tensor, levels: &LayerLevels) {
        let factor = gradient_factor(levels.num_weights(), levels.codes());
        add_gradient(levels.scale(), &(by_scale * factor));
    }

    fn learnt(&self) -> Option<LearntOptions> {
        Some(self.lsq.learnt())
    }
}

/// Method `lsq` of activations.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LsqActivations {
    /// How the range is found (all methods but `ste`).
    pub calibration: CalibrationConfig,
    /// Settings of method `lsq`.
    pub lsq: LsqConfig,
}

impl Settings for LsqActivations {
    const NAME: &'static str = "lsq";
    const SUMMARY: &'static str = "Learnt step size.";

    fn former_defaults() -> Vec<Self> {
        vec![Self { lsq: LsqConfig::former_default(), ..Self::default() }]
    }
}

impl ActivationScheme for LsqActivations {
    fn check(&self, at: &str, problems: &mut Vec<String>) {
        if self.calibration.range != RangeInit::default() {
            problems.push(format!(
                "{at}.calibration.range: a learnt step begins as lsq.init says: set that one"
            ));
        }
    }

    fn spacing(&self, width: BitWidth, signed: bool) -> Result<Spacing> {
        match signed {
            true => self.lsq.spacing(width),
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

impl ActivationRule for LsqActivations {
    fn needs_sample(&self) -> bool {
        self.lsq.init == StepInit::Mse
    }

    fn initial(&self, found: &Calibrated, codes: Codes) -> f32 {
        match self.lsq.init {
            StepInit::Mean => mean_step(found.mean, codes),
            StepInit::Mse => found.best_scale(codes),
        }
    }

    fn learnt(&self) -> Option<LearntOptions> {
        Some(self.lsq.learnt())
    }

    fn forward(&self, x: &Tensor, parameter: &Tensor, codes: Codes, _train: bool) -> Tensor {
        let per_image = x.numel() / x.size().first().map_or(1, |&n| n.max(1) as usize);
        let factor = gradient_factor(per_image.max(1), codes);
        fake_quantize(x, parameter, codes, factor, self.lsq.clip)
            .expect("one step fits any activations")
    }
}

/// The factor of a step's gradient, `1 / sqrt(N Qp)`: `num_values` values share the step, `Qp` is the
/// largest code (section 2.2).
pub fn gradient_factor(num_values: usize, codes: Codes) -> f64 {
    1.0 / (num_values as f64 * f64::from(codes.highest)).sqrt()
}

/// The nearest multiple of the step that `codes` has, differentiable in `x` and `step`.
///
/// The gradient of `x` passes where `x` is not clipped; that of the step is the code minus `x / step` there and the outermost
/// code elsewhere, times `factor`.
///
/// # Shapes
/// - `x`: f32, `[channels, ...]` where there is a step for each channel
/// - `step`: `[1]` or `[channels]`, f32, positive
///
/// # Errors
/// If the shapes do not fit.
pub fn fake_quantize(
    x: &Tensor,
    step: &Tensor,
    codes: Codes,
    factor: f64,
    clip: Clip,
) -> Result<Tensor> {
    let Codes { lowest, highest, stride } = codes;
    // libtorch's operator reads the step on the host: on a GPU that is a wait, in each direction.
    if stride != 1 || x.device() != Device::Cpu {
        return Ok(composed(x, step, codes, factor, clip));
    }
    let x = &match clip {
        Clip::BeforeRounding if x.requires_grad() || step.requires_grad() => beyond(x, step, codes),
        _ => x.shallow_clone(),
    };
    let zero_point = no_grad(|| step.detach().zeros_like());
    let (low, high) = (i64::from(lowest), i64::from(highest));
    let rounded = if step.numel() == 1 {
        x.f_internal_fake_quantize_learnable_per_tensor_affine(step, &zero_point, low, high, factor)
    } else {
        x.f_internal_fake_quantize_learnable_per_channel_affine(
            step,
            &zero_point,
            0,
            low,
            high,
            factor,
        )
    };
    rounded.context("rounding to a learnt step")
}

/// `x`, with values at or beyond the outermost level moved a step further out, so that libtorch's operator, which clips after
/// rounding, takes them as clipped. No quantized value changes.
fn beyond(x: &Tensor, step: &Tensor, codes: Codes) -> Tensor {
    let shift = no_grad(|| {
        let (x, step) = (x.detach(), affine::by_channel(x, &step.detach()));
        let above = x.ge_tensor(&(&step * f64::from(codes.highest))).to_kind(Kind::Float);
        let below = x.le_tensor(&(&step * f64::from(codes.lowest))).to_kind(Kind::Float);
        (above - below) * step
    });
    x + shift
}

/// As [`fake_quantize`], for any codes and devices, without a look at any number.
fn composed(x: &Tensor, step: &Tensor, codes: Codes, factor: f64, clip: Clip) -> Tensor {
    if !(x.requires_grad() || step.requires_grad()) {
        return affine::quantize(x, step, codes);
    }
    let affine::Masks { value, inside, by_step } = affine::masks(x, step, codes, clip);
    let step = affine::by_channel(x, &(step * factor));
    // both add exactly 0
    value + (x - x.detach()) * inside + (&step - step.detach()) * by_step
}

/// Where the steps of a weight begin: one, or one per output channel.
///
/// `mean` is `2 mean|w| / sqrt(Qp)` (section 2.1). A channel of zeros takes the mean of the other
/// channels' steps; a tensor of zeros takes 1 where 0 is a level and 1e-6 where it is not.
///
/// # Errors
/// If the tensor is empty or holds NaN or infinity; names it.
pub(crate) fn initial_steps(
    name: &str,
    weight: &Tensor,
    init: StepInit,
    codes: Codes,
    per_channel: bool,
) -> Result<Vec<f32>> {
    let step = |values: &[f32]| {
        let step = match init {
            StepInit::Mean => mean_step(scale::mean_magnitude(values), codes),
            StepInit::Mse => scale::best_step(values, codes).unwrap_or(0.0),
        };
        if f64::from(step) < MIN_STEP { 0.0 } else { step }
    };
    let steps = scale::by_channel(name, weight, per_channel, step)?;
    let known: Vec<f32> = steps.iter().copied().filter(|&step| step > 0.0).collect();
    let of_zeros = match known.len() {
        0 if codes.stride == 1 => 1.0,
        0 => 1e-6,
        n => known.iter().sum::<f32>() / n as f32,
    };
    Ok(steps.into_iter().map(|step| if step > 0.0 { step } else { of_zeros }).collect())
}

/// `2 mean|x| / sqrt(Qp)`.
pub(crate) fn mean_step(mean_magnitude: f64, codes: Codes) -> f32 {
    (2.0 * mean_magnitude / f64::from(codes.highest).sqrt()) as f32
}

/// The gradient of the step, `[1]` or `[channels]`, added to what `step` has collected.
pub(crate) fn add_gradient(step: &Tensor, gradient: &Tensor) {
    let gradient = gradient.to_device(step.device()).reshape(step.size());
    (step * gradient).sum(Kind::Float).backward();
}
