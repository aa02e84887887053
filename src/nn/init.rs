//! Initial values: a function of the seed and the tensor's name, so that a layer more or less changes no other.

use rand_chacha::rand_core::RngCore;
use rayon::prelude::*;
use tch::{Kind, Tensor};

use crate::seed;

/// Values drawn from one stream. Part of what a seed means: changing it changes every network.
const CHUNK: usize = 1 << 16;

/// How a tensor is filled.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Fill {
    /// Every value the same.
    Constant(f64),
    /// Uniform in `[-bound, bound)`.
    Uniform {
        /// Half the width.
        bound: f64,
    },
    /// Normal about 0.
    Normal {
        /// Standard deviation.
        std: f64,
    },
}

impl Fill {
    /// Uniform with variance `gain^2 / fan_in`, `gain^2 = 2 / (1 + slope^2)`: keeps the variance through a
    /// leaky ReLU of that negative slope. PyTorch's default for convolutions is a slope of sqrt 5.
    ///
    /// # Source
    /// He et al., *Delving Deep into Rectifiers*, ICCV 2015, equation 15.
    pub fn kaiming_uniform(fan_in: i64, slope: f64) -> Self {
        Self::Uniform { bound: (6.0 / ((1.0 + slope * slope) * fan_in as f64)).sqrt() }
    }

    /// The same distribution with every value times `gain`.
    pub fn scaled(self, gain: f64) -> Self {
        match self {
            Self::Constant(value) => Self::Constant(value * gain),
            Self::Uniform { bound } => Self::Uniform { bound: bound * gain },
            Self::Normal { std } => Self::Normal { std: std * gain },
        }
    }

    /// A tensor of that shape on the CPU, f32; without a seed, random fills are zero.
    pub(crate) fn tensor(self, name: &str, shape: &[i64], seed: Option<u64>) -> Tensor {
        let options = (Kind::Float, tch::Device::Cpu);
        match (self, seed) {
            (Self::Constant(value), _) => Tensor::full(shape, value, options),
            (_, None) => Tensor::zeros(shape, options),
            (_, Some(seed)) => {
                let len: i64 = shape.iter().product();
                Tensor::from_slice(&self.values(name, len as usize, seed)).reshape(shape)
            }
        }
    }

    /// The values, row-major; thread count does not change them.
    fn values(self, name: &str, len: usize, seed: u64) -> Vec<f32> {
        let place = seed::fnv1a(name.as_bytes());
        let mut values = vec![0f32; len];
        values.par_chunks_mut(CHUNK).enumerate().for_each(|(i, chunk)| {
            let mut rng = seed::stream(seed, &[place, i as u64]);
            match self {
                Self::Constant(value) => chunk.fill(value as f32),
                Self::Uniform { bound } => chunk
                    .iter_mut()
                    .for_each(|v| *v = ((2.0 * unit(&mut rng) - 1.0) * bound) as f32),
                Self::Normal { std } => {
                    for pair in chunk.chunks_mut(2) {
                        let (a, b) = normal_pair(&mut rng);
                        pair[0] = (a * std) as f32;
                        if let Some(second) = pair.get_mut(1) {
                            *second = (b * std) as f32;
                        }
                    }
                }
            }
        });
        values
    }
}

/// Uniform in `[0, 1)`, 24 bits: what an f32 can hold.
fn unit(rng: &mut impl RngCore) -> f64 {
    f64::from(rng.next_u32() >> 8) / f64::from(1u32 << 24)
}

/// Two independent standard normal numbers (Box and Muller 1958).
fn normal_pair(rng: &mut impl RngCore) -> (f64, f64) {
    // 1 - u is in (0, 1], so that the logarithm is finite.
    let radius = (-2.0 * (1.0 - unit(rng)).ln()).sqrt();
    let (sin, cos) = (std::f64::consts::TAU * unit(rng)).sin_cos();
    (radius * cos, radius * sin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moments(values: &[f32]) -> (f64, f64) {
        let n = values.len() as f64;
        let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
        let var = values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n;
        (mean, var.sqrt())
    }

    #[test]
    fn values_depend_on_seed_and_name_and_on_nothing_else() {
        let fill = Fill::Normal { std: 0.01 };
        let a = fill.values("head.cls_tower.0.weight", 1000, 1);
        assert_eq!(a, fill.values("head.cls_tower.0.weight", 1000, 1));
        assert_eq!(a[..500], fill.values("head.cls_tower.0.weight", 500, 1));
        assert_ne!(a, fill.values("head.cls_tower.3.weight", 1000, 1));
        assert_ne!(a, fill.values("head.cls_tower.0.weight", 1000, 2));
    }

    #[test]
    fn draws_have_the_stated_moments_and_differ_between_chunks() {
        let n = 2 * CHUNK + 1;
        let uniform = Fill::Uniform { bound: 0.5 }.values("w", n, 3);
        let (mean, std) = moments(&uniform);
        // Standard errors at 131,073 draws: 0.0008 for the mean, 0.0004 for the deviation.
        assert!(mean.abs() < 4e-3 && (std - 0.5 / 3f64.sqrt()).abs() < 2e-3, "{mean} {std}");
        assert!(uniform.iter().all(|v| (-0.5..0.5).contains(v)));
        assert_ne!(uniform[..100], uniform[CHUNK..CHUNK + 100]);
        let (mean, std) = moments(&Fill::Normal { std: 2.0 }.values("w", n, 3));
        assert!(mean.abs() < 0.03 && (std - 2.0).abs() < 0.02, "{mean} {std}");
    }

    #[test]
    fn without_a_seed_only_constants_are_filled_in() {
        let zeros = Fill::Normal { std: 1.0 }.tensor("w", &[4], None);
        assert_eq!(Vec::<f32>::try_from(zeros).unwrap(), [0.0; 4]);
        let ones = Fill::Constant(1.0).tensor("w", &[2], None);
        assert_eq!(Vec::<f32>::try_from(ones).unwrap(), [1.0; 2]);
    }

    #[test]
    fn the_kaiming_bound_is_that_of_the_paper() {
        assert_eq!(Fill::kaiming_uniform(48, 1.0), Fill::Uniform { bound: (3.0f64 / 48.0).sqrt() });
    }
}
