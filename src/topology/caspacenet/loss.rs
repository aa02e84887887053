//! The loss of the second pyramid.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Reduction, Tensor};

use crate::topology::wdr;

/// Weights of the losses; the default is the published setting for SwissCube.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct LossConfig {
    /// Those of the head's losses.
    #[serde(flatten)]
    pub wdr: wdr::LossConfig,
    /// `CaSpaceNet`: factor of the feature loss, between the second pyramid and the teacher's. Published: 1 for SwissCube, 0.25
    /// for SPEED.
    #[schemars(range(min = 0))]
    pub weight_feature: f64,
}

impl Default for LossConfig {
    fn default() -> Self {
        Self { wdr: wdr::LossConfig::default(), weight_feature: 1.0 }
    }
}

/// The sum over the levels of the mean smooth L1 distance (quadratic below 1) of the second pyramid from the teacher's; no
/// gradient goes to the teacher.
///
/// # Panics
/// If a level of `sub` has another shape than that of `teacher`, or there is none.
pub fn feature_loss(sub: &[Tensor], teacher: &[Tensor]) -> Tensor {
    assert_eq!(sub.len(), teacher.len(), "levels of the second pyramid and of the teacher's");
    let level = |(s, t): (&Tensor, &Tensor)| {
        assert_eq!(s.size(), t.size(), "a level of the second pyramid and of the teacher's");
        s.smooth_l1_loss(&t.detach(), Reduction::Mean, 1.0)
    };
    let levels = sub.iter().zip(teacher).map(level);
    levels.reduce(|sum, level| sum + level).expect("a pyramid has a level")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_weigh_the_same_whatever_their_size() {
        let zeros = [Tensor::from_slice(&[0.0f32; 4]), Tensor::from_slice(&[0.0f32])];
        let teacher =
            [Tensor::from_slice(&[0.5f32, 0.0, -3.0, 0.0]), Tensor::from_slice(&[2.0f32])];
        // (0.5 * 0.25 + 2.5) / 4, and 1.5.
        let found = feature_loss(&zeros, &teacher).double_value(&[]);
        assert!((found - (2.625 / 4.0 + 1.5)).abs() < 1e-6, "{found}");
    }
}
