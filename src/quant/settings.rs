//! The choices and settings of single methods; [`super::config`] puts them together.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How weights are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WeightMethod {
    /// Incremental network quantization: a growing share of the weights is frozen on its levels.
    #[default]
    Inq,
    /// Learnt step size: round, and learn the distance of the levels with the weights.
    Lsq,
    /// Round to levels at a scale that the weights give; the gradient passes straight through.
    Uniform,
    /// DoReFa-Net: evenly spaced levels of tanh(w).
    Dorefa,
    /// Additive noise annealing: staircases that are smoothed by noise, which fades away.
    Ana,
}

impl WeightMethod {
    /// Its name in configs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Inq => "inq",
            Self::Lsq => "lsq",
            Self::Uniform => "uniform",
            Self::Dorefa => "dorefa",
            Self::Ana => "ana",
        }
    }
}

/// How the inputs of layers are quantized.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActivationMethod {
    /// Clamp to the largest magnitude seen, round, and pass the gradient straight through.
    #[default]
    Ste,
    /// Learnt step size.
    Lsq,
    /// As `ste`, over the range that the calibration gives; unsigned where no input is negative.
    Uniform,
    /// Parameterized clipping: the largest level is learnt.
    Pact,
    /// DoReFa-Net: clip to [0, 1] times a scale, and round.
    Dorefa,
    /// Additive noise annealing.
    Ana,
}

impl ActivationMethod {
    /// Its name in configs and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ste => "ste",
            Self::Lsq => "lsq",
            Self::Uniform => "uniform",
            Self::Pact => "pact",
            Self::Dorefa => "dorefa",
            Self::Ana => "ana",
        }
    }
}

/// What has a scale (a step) of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// The weight tensor of a layer.
    #[default]
    Tensor,
    /// Each output channel.
    Channel,
}

/// The integers that a learnt step is multiplied with, at b bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CodeRange {
    /// -2^(b-1) to 2^(b-1) - 1: 2^b levels, as in the LSQ paper; 1 bit is -1 and 1.
    #[default]
    Full,
    /// -(2^(b-1) - 1) to 2^(b-1) - 1: 2^b - 1 levels; 1 bit is -1 and 1.
    Narrow,
}

/// Where a learnt step begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum StepInit {
    /// 2 mean|x| / sqrt(largest code), as in the LSQ paper.
    #[default]
    Mean,
    /// The step of smallest squared rounding error.
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
    /// Learning rate of the steps over that of the stage, 0 or more.
    pub lr_factor: f64,
    /// L2 penalty on the steps, 0 or more; that of the stage's optimizer leaves them alone.
    pub weight_decay: f64,
}

impl Default for LsqConfig {
    fn default() -> Self {
        Self { init: StepInit::Mean, range: CodeRange::Full, lr_factor: 1.0, weight_decay: 0.0 }
    }
}

impl LsqConfig {
    pub(super) fn check(&self, at: &str, problems: &mut Vec<String>) {
        check_learnt(self.lr_factor, self.weight_decay, at, problems);
    }
}

/// Settings of weights rounded at a scale that they give themselves (method `uniform`).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct UniformConfig {
    /// Whether the scale is found anew at the begin of each epoch; if not, it stays that of the first.
    pub recalibrate: bool,
}

/// Settings of method `dorefa`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DorefaConfig {
    /// The outermost level is 1, as in the paper, whatever the weights or inputs; if not, it is fitted
    /// to them once, so that quantizing hardly changes the network's function.
    pub unit_scale: bool,
}

/// Settings of parameterized clipping (method `pact`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PactConfig {
    /// Where the clipping level begins, above 0; null takes that of the calibration (the paper: 10).
    pub init: Option<f64>,
    /// Learning rate of the clipping levels over that of the stage, 0 or more.
    pub lr_factor: f64,
    /// L2 penalty on the clipping levels, 0 or more.
    pub weight_decay: f64,
}

impl Default for PactConfig {
    fn default() -> Self {
        Self { init: None, lr_factor: 1.0, weight_decay: 1e-4 }
    }
}

impl PactConfig {
    pub(super) fn check(&self, at: &str, problems: &mut Vec<String>) {
        if let Some(init) = self.init
            && !(init > 0.0 && init.is_finite())
        {
            problems.push(format!("{at}.init: {init} is not a number above 0"));
        }
        check_learnt(self.lr_factor, self.weight_decay, at, problems);
    }
}

/// Settings of additive noise annealing (method `ana`).
///
/// Widths are half-widths of the uniform noise, in distances of neighbouring levels: at 0.5 the
/// staircase is smoothed to a straight line, at 0 it is the staircase itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct AnaConfig {
    /// Width of the noise that the forward pass averages over at epoch 0, 0 to 8.
    pub forward_width: f64,
    /// Width of the noise that the gradient averages over at epoch 0, above 0 to 8.
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
    pub(super) fn check(&self, at: &str, problems: &mut Vec<String>) {
        let (forward, backward) = (self.forward_width, self.backward_width);
        if !(0.0..=8.0).contains(&forward) {
            problems.push(format!("{at}.forward_width: {forward} is outside 0..=8"));
        }
        if !(backward > 0.0 && backward <= 8.0) {
            problems.push(format!("{at}.backward_width: {backward} is not above 0 and up to 8"));
        }
    }

    pub(super) fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        if self.end_epoch >= epochs {
            problems.push(format!(
                "{at}.end_epoch: {} is never reached, the stage has only epochs 0..{epochs}: without an \
                 epoch free of noise the network is not trained as it will be used",
                self.end_epoch
            ));
        }
    }

    /// The share of the first width that is left in an epoch.
    pub(crate) fn share_at(&self, epoch: u32) -> f64 {
        if epoch >= self.end_epoch {
            0.0
        } else {
            1.0 - f64::from(epoch) / f64::from(self.end_epoch)
        }
    }
}

/// How the range of inputs is found before they are quantized (all activation methods but `ste`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrationConfig {
    /// Training batches that are recorded where a stage begins quantized (`quant_start_epoch` 0),
    /// 1 or more; they pass unquantized. With a later start the whole epoch before it is recorded.
    pub batches: u32,
    /// What the range is.
    pub range: RangeInit,
}

impl Default for CalibrationConfig {
    fn default() -> Self {
        Self { batches: 8, range: RangeInit::Max }
    }
}

/// The range of inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RangeInit {
    /// Up to the largest magnitude seen.
    #[default]
    Max,
    /// That of smallest squared rounding error on a sample of the values seen.
    Mse,
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

fn check_learnt(lr_factor: f64, weight_decay: f64, at: &str, problems: &mut Vec<String>) {
    for (key, value) in [("lr_factor", lr_factor), ("weight_decay", weight_decay)] {
        if !(value >= 0.0 && value.is_finite()) {
            problems.push(format!("{at}.{key}: {value} is not a number of 0 or more"));
        }
    }
}
