//! Weights that go to and fro between two levels, and their freezing.
//!
//! Source: Nagel et al., *Overcoming Oscillations in Quantization-Aware Training*, ICML 2022 (arXiv 2203.11086), section 4.2.
//! Deviation: the threshold is constant; the paper can lower it over training.

use anyhow::{Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor, no_grad};

use super::levels::Codes;
use super::method::SavedState;
use crate::schema::{above_zero, below_one};

/// Freezing of weights that oscillate (fake quantization).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct OscillationConfig {
    /// Frequency of oscillations, an exponential moving average of the fraction of steps with one, above which a weight is frozen.
    #[schemars(transform = above_zero, transform = below_one)]
    pub freeze_above: f64,
    /// Weight of the present step in the moving averages of frequency and integer code.
    #[schemars(transform = above_zero, transform = below_one)]
    pub momentum: f64,
}

impl Default for OscillationConfig {
    fn default() -> Self {
        Self { freeze_above: 0.02, momentum: 0.01 }
    }
}

/// What is remembered of the weights of one layer; all tensors have the shape of the weight.
#[derive(Debug)]
pub(super) struct Oscillation {
    config: OscillationConfig,
    codes: Codes,
    /// Steps that were looked at.
    num_steps: i64,
    /// Integer code of the last step, and for good of a frozen weight; int16.
    code: Tensor,
    /// Sign of the last change of the code, 0 before the first; int8.
    direction: Tensor,
    /// Moving average of oscillations, 1 in a step whose change is opposite to the one before; f32.
    frequency: Tensor,
    /// Moving average of the code; f32.
    mean: Tensor,
    /// Frozen weights; bool.
    frozen: Tensor,
    num_frozen: i64,
}

impl Oscillation {
    /// For a weight whose levels have these codes.
    pub fn new(config: OscillationConfig, weight: &Tensor, codes: Codes) -> Self {
        let zeros = |kind| no_grad(|| weight.detach().zeros_like().to_kind(kind));
        Self {
            config,
            codes,
            num_steps: 0,
            code: zeros(Kind::Int16),
            direction: zeros(Kind::Int8),
            frequency: zeros(Kind::Float),
            mean: zeros(Kind::Float),
            frozen: zeros(Kind::Bool),
            num_frozen: 0,
        }
    }

    /// Looks at the integer codes of a step, f32; whether weights were frozen just now.
    ///
    /// An oscillation is a change of the code in the direction opposite to its last change. Where the moving average of
    /// oscillations exceeds the threshold, the code becomes the rounded moving average of the code and stays.
    pub fn look(&mut self, now: &Tensor) -> bool {
        no_grad(|| {
            self.num_steps += 1;
            if self.num_steps == 1 {
                self.code = now.to_kind(Kind::Int16);
                self.mean = now.copy();
                return false;
            }
            let weight = self.config.momentum;
            let direction = (now - &self.code).sign();
            let changed = direction.not_equal(0.0);
            let oscillates = (&direction * &self.direction).less(0.0).to_kind(Kind::Float);
            self.frequency = &self.frequency * (1.0 - weight) + oscillates * weight;
            self.mean = &self.mean * (1.0 - weight) + now * weight;
            self.direction = direction.to_kind(Kind::Int8).where_self(&changed, &self.direction);
            let free = self.frozen.logical_not();
            let newly = self.frequency.greater(self.config.freeze_above).logical_and(&free);
            let code = self.nearest_code().where_self(&newly, now).to_kind(Kind::Int16);
            self.code = code.where_self(&free, &self.code);
            self.frozen = self.frozen.logical_or(&newly);
            let before = self.num_frozen;
            self.num_frozen = self.frozen.sum(Kind::Int64).int64_value(&[]);
            self.num_frozen > before
        })
    }

    /// The code nearest to the average one.
    fn nearest_code(&self) -> Tensor {
        let Codes { lowest, highest, stride } = self.codes;
        let (lowest, highest, stride) = (f64::from(lowest), f64::from(highest), f64::from(stride));
        let steps = ((&self.mean - lowest) / stride).round();
        (steps * stride + lowest).clamp(lowest, highest)
    }

    /// Where weights are frozen, bool, and all codes, f32; `None` while none is.
    pub fn frozen(&self) -> Option<(&Tensor, Tensor)> {
        (self.num_frozen > 0).then(|| (&self.frozen, self.code.to_kind(Kind::Float)))
    }

    /// 1 where the weight is trainable and 0 where it is frozen, f32.
    pub fn trainable(&self) -> Tensor {
        no_grad(|| self.frozen.logical_not().to_kind(Kind::Float))
    }

    /// How many weights are frozen.
    pub fn num_frozen(&self) -> i64 {
        self.num_frozen
    }

    /// What a resume needs.
    pub fn state(&self) -> Vec<(&'static str, Tensor)> {
        vec![
            ("osc_steps", Tensor::from(self.num_steps)),
            ("osc_code", self.code.shallow_clone()),
            ("osc_direction", self.direction.shallow_clone()),
            ("osc_frequency", self.frequency.shallow_clone()),
            ("osc_mean", self.mean.shallow_clone()),
            ("osc_frozen", self.frozen.to_kind(Kind::Uint8)),
        ]
    }

    /// Takes the state over.
    ///
    /// # Errors
    /// Names the tensor that is missing, or of another kind, shape or value than it must be.
    pub fn load_state(&mut self, state: &SavedState) -> Result<()> {
        let (shape, device) = (self.code.size(), self.code.device());
        let tensor = |field: &str, kind| -> Result<Tensor> {
            Ok(state.tensor(field, kind, &shape)?.to_device(device).copy())
        };
        let frozen = tensor("osc_frozen", Kind::Uint8)?;
        let above = i64::try_from(frozen.max()).unwrap_or(i64::MAX);
        ensure!(above <= 1, "{}.osc_frozen holds {above}, expected 0 and 1", state.prefix);
        self.num_steps = state.counter("osc_steps")?;
        self.code = tensor("osc_code", Kind::Int16)?;
        self.direction = tensor("osc_direction", Kind::Int8)?;
        self.frequency = tensor("osc_frequency", Kind::Float)?;
        self.mean = tensor("osc_mean", Kind::Float)?;
        self.frozen = frozen.to_kind(Kind::Bool);
        self.num_frozen = self.frozen.sum(Kind::Int64).int64_value(&[]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CODES: Codes = Codes { lowest: -2, highest: 1, stride: 1 };

    fn watched(freeze_above: f64, momentum: f64, codes: Codes, num: i64) -> Oscillation {
        let weight = Tensor::zeros([num], tch::kind::FLOAT_CPU);
        Oscillation::new(OscillationConfig { freeze_above, momentum }, &weight, codes)
    }

    fn values(tensor: &Tensor) -> Vec<f32> {
        Vec::try_from(tensor.to_kind(Kind::Float)).unwrap()
    }

    #[test]
    fn a_sequence_worked_out_by_hand() {
        // a: to and fro; b: goes up step by step; c: rests and changes back later, which counts; d: rests
        let steps: [[f32; 4]; 6] = [
            [0.0, -2.0, 0.0, 1.0],
            [1.0, -1.0, 1.0, 1.0],
            [0.0, 0.0, 1.0, 1.0],
            [1.0, 1.0, 1.0, 1.0],
            [0.0, 1.0, 0.0, 1.0],
            [1.0, 1.0, 0.0, 1.0],
        ];
        let mut watched = watched(0.8, 0.5, CODES, 4);
        let mut newly = Vec::new();
        let (mut frequency, mut mean) = (Vec::new(), Vec::new());
        for step in steps {
            newly.push(watched.look(&Tensor::from_slice(&step)));
            frequency.push(values(&watched.frequency));
            mean.push(values(&watched.mean)[0]);
        }
        let of = |i: usize| -> Vec<f32> { frequency.iter().map(|f| f[i]).collect() };
        assert_eq!(of(0), [0.0, 0.0, 0.5, 0.75, 0.875, 0.9375]);
        assert_eq!(of(1), [0.0; 6]);
        assert_eq!(of(2), [0.0, 0.0, 0.0, 0.0, 0.5, 0.25]);
        assert_eq!(of(3), [0.0; 6]);
        assert_eq!(mean, [0.0, 0.5, 0.25, 0.625, 0.3125, 0.65625]);
        // frozen when 0.875 exceeds 0.8, to the code nearest to the mean of that moment, 0.3125
        assert_eq!(newly, [false, false, false, false, true, false]);
        let (frozen, codes) = watched.frozen().unwrap();
        assert_eq!(values(frozen), [1.0, 0.0, 0.0, 0.0]);
        assert_eq!(values(&codes), [0.0, 1.0, 0.0, 1.0]);
        assert_eq!((watched.num_frozen(), values(&watched.trainable())[0]), (1, 0.0));
    }

    #[test]
    fn odd_codes_freeze_on_odd_codes_within_the_grid() {
        let codes = Codes { lowest: -3, highest: 3, stride: 2 };
        let mut watched = watched(0.4, 0.5, codes, 2);
        for step in [[-1.0f32, 3.0], [1.0, 1.0], [-1.0, 3.0]] {
            watched.look(&Tensor::from_slice(&step));
        }
        // means -0.5 and 2.5
        assert_eq!(values(&watched.frozen().unwrap().1), [-1.0, 3.0]);
    }

    #[test]
    fn nothing_is_frozen_while_codes_rest() {
        let mut watched = watched(0.01, 0.5, CODES, 3);
        for _ in 0..5 {
            assert!(!watched.look(&Tensor::from_slice(&[1.0f32, -2.0, 0.0])));
        }
        assert!(watched.frozen().is_none());
    }
}
