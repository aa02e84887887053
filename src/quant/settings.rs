//! Settings that several methods share; each method's own are in its file.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// No optimizer step takes a learnt step below this: the levels would fall together, and a step of 0 or less
/// has no levels at all.
pub const MIN_STEP: f64 = 1e-8;

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

/// Which values count as clipped: they pass no gradient, and by the step their derivative is the outermost code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Clip {
    /// Those at or beyond the outermost level, as in the LSQ paper (equation 3).
    #[default]
    BeforeRounding,
    /// Those that round to a code beyond the outermost one, half a step further out, as in PyTorch's operator.
    AfterRounding,
}

/// What has a scale of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Granularity {
    /// The weight tensor of a layer.
    #[default]
    Tensor,
    /// Each output channel.
    Channel,
}

/// How the range of activations is found before they are quantized (all activation methods but `ste`).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct CalibrationConfig {
    /// Training batches that are recorded where a stage begins quantized (`quant_start_epoch` 0);
    /// they pass unquantized. With a later start the whole epoch before it is recorded.
    #[schemars(range(min = 1))]
    pub batches: u32,
    /// What the range is.
    pub range: RangeInit,
}

impl Default for CalibrationConfig {
    fn default() -> Self {
        Self { batches: 8, range: RangeInit::Max }
    }
}

/// The range of activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RangeInit {
    /// Up to the largest magnitude seen.
    #[default]
    Max,
    /// That of smallest squared quantization error on a sample of the values seen.
    Mse,
}

/// How the levels are spaced and their scale s is found, once, at the first step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub enum QuantInit {
    /// Evenly spaced; s minimises the L2 norm of the quantization error of the tensor.
    #[default]
    #[serde(rename = "uniform-l2-opt")]
    UniformL2Opt,
    /// Evenly spaced; s minimises the L1 norm of the quantization error of the tensor.
    #[serde(rename = "uniform-l1-opt")]
    UniformL1Opt,
    /// Evenly spaced; s minimises the largest quantization error of the tensor.
    #[serde(rename = "uniform-linf-opt")]
    UniformLinfOpt,
    /// Evenly spaced; s is the largest magnitude of the tensor.
    #[serde(rename = "uniform")]
    Uniform,
    /// Evenly spaced; one s per output channel minimises the L2 norm of its quantization error.
    #[serde(rename = "uniform-l2-opt-per_ch")]
    UniformL2OptPerChannel,
    /// Powers of two and 0, the largest from the largest magnitude of the tensor.
    #[serde(rename = "power-of-two", alias = "none")]
    PowerOfTwo,
}

impl QuantInit {
    /// Adds a line where a method needs evenly spaced levels; `at` is the place of the stage's `weights`.
    pub(super) fn check_even(self, method: &str, at: &str, problems: &mut Vec<String>) {
        if self == Self::PowerOfTwo {
            problems.push(format!(
                "{at}.quant_init_method: power-of-two is for method inq alone, and the method is {method}"
            ));
        }
    }

    /// Whether it asks for a scale for each output channel.
    pub(super) fn is_per_channel(self) -> bool {
        self == Self::UniformL2OptPerChannel
    }
}
