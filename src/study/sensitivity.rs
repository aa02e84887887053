//! How much quantizing a weight is expected to raise the loss.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::quant::levels::bits_of;
use crate::quant::{Grid, WeightQuantConfig};

/// Quantizing a weight to a bit width.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct WidthError {
    /// Bits.
    pub bits: u32,
    /// Number of levels.
    pub num_levels: u32,
    /// `||Q(W) - W||^2`, summed over the weight.
    pub squared_error: f64,
}

/// How a trace becomes a sensitivity.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Division {
    /// `Tr(H) / n * ||Q(W) - W||^2` (HAWQ-V2 and V3): the mean curvature times the sum of squared errors.
    #[default]
    Hawq,
    /// `Tr(H) / n * ||Q(W) - W||^2 / n`: MQBench divides by the number of weights n twice, which favours large layers.
    Mqbench,
}

/// The squared quantization error of `weight` at each width, with the spacing and the range that the method of `config`
/// expects ([`crate::quant::WeightScheme::expected_range`]). Its own bits are not looked at, and its level count only at the
/// width that it is one of.
///
/// # Errors
/// If the config's levels do not exist at a width (powers of two at 1 bit), or the weight is not finite.
pub fn width_errors(
    name: &str,
    weight: &Tensor,
    config: &WeightQuantConfig,
    widths: &[u32],
) -> Result<Vec<WidthError>> {
    let weight = weight.detach().to_kind(Kind::Float).contiguous();
    let at_width = |&bits: &u32| {
        let config = WeightQuantConfig {
            bits: Some(bits),
            n_levels: config.n_levels.filter(|&n| bits_of(n) == bits),
            layer_bits: BTreeMap::new(),
            ..config.clone()
        };
        let (spacing, scheme) = (config.spacing()?, config.settings.scheme());
        let range = scheme.expected_range(name, &weight, &spacing, config.per_channel())?;
        let num_levels = spacing.num_levels();
        let quantized = Grid::new(spacing, range)?.nearest(&weight)?;
        let error = (quantized - &weight).to_kind(Kind::Double);
        let squared_error = (&error * &error).sum(Kind::Double).double_value(&[]);
        Ok(WidthError { bits, num_levels, squared_error })
    };
    let all: Result<Vec<WidthError>> = widths.iter().map(at_width).collect();
    all.with_context(|| format!("quantizing {name}"))
}

/// The expected rise of the loss, up to a factor that all layers share: `trace / num_weights * squared_error`.
///
/// # Source
/// Dong et al., *HAWQ-V2*, NeurIPS 2020, equation 10.
pub fn sensitivity(trace: f64, num_weights: usize, squared_error: f64, division: Division) -> f64 {
    let n = num_weights as f64;
    let once = trace / n * squared_error;
    match division {
        Division::Hawq => once,
        Division::Mqbench => once / n,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::inq::InqWeights;
    use crate::quant::{Granularity, Levels, QuantInit, WeightMethod};

    fn inq(quant_init_method: QuantInit) -> WeightQuantConfig {
        let settings = InqWeights { quant_init_method, ..Default::default() };
        WeightQuantConfig { settings: settings.into(), ..Default::default() }
    }

    #[test]
    fn errors_of_a_small_weight_by_hand() {
        // s = max = 1. 2 bits: levels -1, 0, 1; errors 0, .4, .4, .25. 3 bits: steps of 1/3.
        let weight = Tensor::from_slice(&[1.0f32, -0.6, 0.4, 0.25]).reshape([1, 1, 2, 2]);
        let config = inq(QuantInit::Uniform);
        let found = width_errors("w", &weight, &config, &[2, 3]).unwrap();
        assert_eq!(found.iter().map(|e| e.num_levels).collect::<Vec<_>>(), [3, 7]);
        let expected = [
            0.4f64.powi(2) * 2.0 + 0.25f64.powi(2),
            (2.0f64 / 3.0 - 0.6).powi(2)
                + (0.4f64 - 1.0 / 3.0).powi(2)
                + (1.0f64 / 3.0 - 0.25).powi(2),
        ];
        for (e, expected) in found.iter().zip(expected) {
            assert!((e.squared_error - expected).abs() < 1e-6, "{e:?} {expected}");
        }
    }

    #[test]
    fn levels_of_the_config_are_those_of_their_width_alone() {
        let weight = Tensor::from_slice(&[1.0f32, -0.6, 0.4, 0.25]).reshape([1, 1, 2, 2]);
        let config = WeightQuantConfig { bits: Some(2), n_levels: Some(4), ..Default::default() };
        let found = width_errors("w", &weight, &config, &[2, 4, 8]).unwrap();
        assert_eq!(found.iter().map(|e| e.num_levels).collect::<Vec<_>>(), [4, 15, 255]);
        assert!(found.windows(2).all(|pair| pair[1].squared_error < pair[0].squared_error));
        let powers = inq(QuantInit::PowerOfTwo);
        let err = width_errors("fpn.p6.weight", &weight, &powers, &[1]).unwrap_err();
        assert!(format!("{err:#}").contains("fpn.p6.weight"), "{err:#}");
    }

    #[test]
    fn learnt_steps_round_to_all_their_integers() {
        // 2 bits of LSQ: -2, -1, 0, 1 times the step; at step 1 nothing is rounded, so that it is the best.
        let weight = Tensor::from_slice(&[-2.0f32, -1.0, 0.0, 1.0]).reshape([4, 1, 1, 1]);
        let config = WeightQuantConfig::of(WeightMethod::Lsq);
        let found = width_errors("w", &weight, &config, &[2]).unwrap();
        assert_eq!(found[0].num_levels, 4);
        assert!(found[0].squared_error < 1e-9, "{found:?}");
        let channels = WeightQuantConfig { granularity: Granularity::Channel, ..config };
        let found = width_errors("w", &weight, &channels, &[3]).unwrap();
        assert!(found[0].squared_error < 1e-9, "each channel has one value: {found:?}");
    }

    #[test]
    fn a_choice_of_levels_makes_methods_alike() {
        let weight = Tensor::from_slice(&[-2.0f32, -1.0, 0.0, 1.0]).reshape([4, 1, 1, 1]);
        for method in [WeightMethod::Inq, WeightMethod::Lsq, WeightMethod::Uniform] {
            for (levels, expected) in [(Levels::Odd, [3, 15]), (Levels::Full, [4, 16])] {
                let levels = Some(levels);
                let config = WeightQuantConfig { levels, ..WeightQuantConfig::of(method) };
                let found = width_errors("w", &weight, &config, &[2, 4]).unwrap();
                assert_eq!(found.iter().map(|e| e.num_levels).collect::<Vec<_>>(), expected);
                // -2, -1, 0, 1 are the codes of 2 bits
                let is_exact = found[0].squared_error < 1e-9;
                assert_eq!(is_exact, expected[0] == 4, "{method} {found:?}");
            }
        }
    }

    #[test]
    fn both_divisions() {
        assert_eq!(sensitivity(20.0, 4, 0.5, Division::Hawq), 2.5);
        assert_eq!(sensitivity(20.0, 4, 0.5, Division::Mqbench), 0.625);
    }
}
