//! Which numbers the codes of a tensor stand for.

use anyhow::{Result, ensure};
use rayon::prelude::*;

/// Exponents of f32's powers of two, the subnormal ones included.
const EXPONENTS: std::ops::RangeInclusive<i32> = -149..=127;
/// Weights that one thread takes at a time.
const WEIGHTS_PER_TASK: usize = 1 << 16;

/// The levels of a tensor, ascending: one set, or one for each slice of the first dimension (output channel).
#[derive(Debug, Clone, PartialEq)]
pub enum Levels {
    /// Level `i` is `(first + stride i) * step`, in f32.
    Uniform {
        /// Number of levels.
        num: u32,
        /// The integer of the lowest level.
        first: i32,
        /// From one level's integer to the next, 1 or 2.
        stride: i32,
        /// The steps.
        steps: Vec<f32>,
    },
    /// Level `num_exponents` is 0; `r` levels above and below it are `+-2^(low + r - 1)`.
    PowersOfTwo {
        /// Number of magnitudes other than 0.
        num_exponents: u32,
        /// The lowest exponents.
        low: Vec<i32>,
    },
    /// Any levels.
    Table {
        /// Number of levels.
        num: u32,
        /// `num` levels for each scale.
        levels: Vec<f32>,
    },
}

impl Levels {
    /// The shortest form that gives exactly the levels of `tables`, one table a scale. `integers` are the levels' integer
    /// codes, ascending.
    ///
    /// # Errors
    /// If tables differ in length from `integers`, or are not finite and ascending.
    pub fn of_tables(integers: &[i32], tables: &[Vec<f32>]) -> Result<Self> {
        let num = u32::try_from(integers.len())?;
        ensure!(
            !tables.is_empty() && tables.iter().all(|t| t.len() == integers.len()),
            "levels and their codes differ in number"
        );
        let table = Self::Table { num, levels: tables.concat() };
        table.check()?;
        let shorter = [Self::as_powers(num, tables), Self::as_uniform(integers, tables)];
        let exact = |levels: &Self| {
            levels.check().is_ok()
                && tables.iter().enumerate().all(|(c, t)| same_numbers(&levels.of_scale(c), t))
        };
        Ok(shorter.into_iter().flatten().find(exact).unwrap_or(table))
    }

    fn as_uniform(integers: &[i32], tables: &[Vec<f32>]) -> Option<Self> {
        let first = *integers.first()?;
        let stride = integers.get(1)?.checked_sub(first)?;
        let unit = integers.iter().position(|code| code.abs() == 1)?;
        let steps = tables.iter().map(|t| t[unit].abs()).collect();
        Some(Self::Uniform { num: integers.len() as u32, first, stride, steps })
    }

    fn as_powers(num: u32, tables: &[Vec<f32>]) -> Option<Self> {
        let num_exponents = num / 2;
        let lowest = |t: &Vec<f32>| {
            let value = f64::from(*t.get(num_exponents as usize + 1)?);
            (value > 0.0).then(|| value.log2().round() as i32)
        };
        let low = tables.iter().map(lowest).collect::<Option<_>>()?;
        // a single magnitude is as good a step
        (num % 2 == 1 && num_exponents > 1).then_some(Self::PowersOfTwo { num_exponents, low })
    }

    /// Number of levels.
    pub fn num_levels(&self) -> u32 {
        match self {
            Self::Uniform { num, .. } | Self::Table { num, .. } => *num,
            Self::PowersOfTwo { num_exponents, .. } => 2 * num_exponents + 1,
        }
    }

    /// Number of scales: one for the tensor, or one for each slice of its first dimension.
    pub fn num_scales(&self) -> usize {
        match self {
            Self::Uniform { steps, .. } => steps.len(),
            Self::PowersOfTwo { low, .. } => low.len(),
            Self::Table { num, levels } => levels.len() / (*num).max(1) as usize,
        }
    }

    /// Bits that number the levels.
    pub fn bits(&self) -> u32 {
        u32::BITS - self.num_levels().saturating_sub(1).leading_zeros()
    }

    /// The levels of a scale, ascending.
    ///
    /// # Panics
    /// If there is no such scale.
    pub fn of_scale(&self, scale: usize) -> Vec<f32> {
        match self {
            Self::Uniform { num, first, stride, steps } => {
                (0..*num as i32).map(|i| (first + stride * i) as f32 * steps[scale]).collect()
            }
            Self::PowersOfTwo { num_exponents, low } => {
                let n = *num_exponents as i32;
                let level = |rank: i32| match rank {
                    0 => 0.0,
                    _ => {
                        let exponent = low[scale] + rank.abs() - 1;
                        (f64::from(rank.signum()) * f64::from(exponent).exp2()) as f32
                    }
                };
                (-n..=n).map(level).collect()
            }
            Self::Table { num, levels } => {
                let num = *num as usize;
                levels[scale * num..(scale + 1) * num].to_vec()
            }
        }
    }

    /// Makes sure that each scale has 2 to 256 finite, ascending levels.
    ///
    /// # Errors
    /// Says what is wrong.
    pub fn check(&self) -> Result<()> {
        let num = self.num_levels();
        ensure!((2..=256).contains(&num), "{num} levels, expected 2 to 256");
        ensure!(self.num_scales() > 0, "a grid without a scale");
        match self {
            Self::Uniform { first, stride, .. } => {
                ensure!(
                    (-512..=512).contains(first) && (1..=2).contains(stride),
                    "levels that begin at {first} with stride {stride}, expected -512 to 512 with 1 or 2"
                );
            }
            Self::PowersOfTwo { low, .. } => {
                let top = num as i32 / 2 - 1;
                ensure!(
                    low.iter().all(|&low| EXPONENTS.contains(&low)
                        && low.checked_add(top).is_some_and(|high| EXPONENTS.contains(&high))),
                    "exponents of two outside {EXPONENTS:?}"
                );
            }
            Self::Table { num, levels } => {
                ensure!(levels.len().is_multiple_of(*num as usize), "a table that ends in a row");
            }
        }
        for scale in 0..self.num_scales() {
            let levels = self.of_scale(scale);
            ensure!(
                levels.iter().all(|v| v.is_finite()) && levels.windows(2).all(|p| p[0] < p[1]),
                "the levels of scale {scale} are not finite and ascending"
            );
        }
        Ok(())
    }

    /// The numbers that `codes` stand for, row-major.
    ///
    /// # Errors
    /// If a code names no level, or the codes cannot be shared out to the scales.
    pub fn values(&self, codes: &[u8]) -> Result<Vec<f32>> {
        let num = self.num_levels();
        let most = super::bits::largest(codes);
        ensure!(
            codes.is_empty() || u32::from(most) < num,
            "code {most} names none of {num} levels"
        );
        let num_scales = self.num_scales();
        ensure!(
            codes.len().is_multiple_of(num_scales),
            "{} weights for {num_scales} scales",
            codes.len()
        );
        let mut values = vec![0.0; codes.len()];
        let per_scale = (codes.len() / num_scales).max(1);
        let by_scale = values.par_chunks_mut(per_scale).zip(codes.par_chunks(per_scale));
        by_scale.enumerate().for_each(|(scale, (values, codes))| {
            let mut table = [0.0; 256];
            let levels = self.of_scale(scale);
            table[..levels.len()].copy_from_slice(&levels);
            let parts = values.par_chunks_mut(WEIGHTS_PER_TASK);
            parts.zip(codes.par_chunks(WEIGHTS_PER_TASK)).for_each(|(values, codes)| {
                for (value, &code) in values.iter_mut().zip(codes) {
                    *value = table[usize::from(code)];
                }
            });
        });
        Ok(values)
    }

    /// The grid's own numbers as they lie in the file.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        match self {
            Self::Uniform { steps: values, .. } | Self::Table { levels: values, .. } => {
                values.iter().flat_map(|v| v.to_le_bytes()).collect()
            }
            Self::PowersOfTwo { low, .. } => low.iter().flat_map(|v| v.to_le_bytes()).collect(),
        }
    }
}

/// Equal as numbers, and none NaN.
fn same_numbers(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a == b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Grid, Spacing};

    fn of_grid(grid: &Grid) -> Levels {
        let tables: Vec<_> = (0..grid.num_ranges()).map(|c| grid.levels(c)).collect();
        Levels::of_tables(&grid.spacing().codes(), &tables).unwrap()
    }

    #[test]
    fn every_uniform_grid_is_a_first_code_a_stride_and_steps() {
        for num_levels in 2..=256 {
            let scale = vec![0.1, 3.7e-3 * num_levels as f32, 41.0];
            let grid = Grid::new(Spacing::Uniform { num_levels }, scale).unwrap();
            let levels = of_grid(&grid);
            let Levels::Uniform { stride, ref steps, .. } = levels else { panic!("{levels:?}") };
            assert_eq!((stride, steps.len()), (if num_levels % 2 == 0 { 2 } else { 1 }, 3));
            assert_eq!((levels.num_levels(), levels.bits()), (num_levels, grid.spacing().bits()));
            for channel in 0..3 {
                assert!(same_numbers(&levels.of_scale(channel), &grid.levels(channel)));
            }
        }
    }

    #[test]
    fn powers_of_two_are_exponents() {
        for num_exponents in [2, 3, 4, 8, 16, 32, 64] {
            let grid =
                Grid::new(Spacing::PowerOfTwo { num_exponents }, vec![0.3, 1.0, 17.0]).unwrap();
            let levels = of_grid(&grid);
            assert!(matches!(levels, Levels::PowersOfTwo { .. }), "{num_exponents}: {levels:?}");
            for channel in 0..3 {
                assert!(same_numbers(&levels.of_scale(channel), &grid.levels(channel)));
            }
        }
    }

    #[test]
    fn an_asymmetric_range_is_uniform_and_anything_else_a_table() {
        let step = 0.037_f32;
        let integers: Vec<i32> = (-4..4).collect();
        let lsq: Vec<f32> = integers.iter().map(|&c| c as f32 * step).collect();
        let levels = Levels::of_tables(&integers, &[lsq]).unwrap();
        assert!(matches!(levels, Levels::Uniform { first: -4, stride: 1, .. }), "{levels:?}");
        let affine = vec![vec![-1.0, -0.3, 0.5], vec![0.1, 0.2, 0.7]];
        let levels = Levels::of_tables(&[0, 1, 2], &affine).unwrap();
        assert_eq!(levels, Levels::Table { num: 3, levels: affine.concat() });
        assert_eq!(levels.values(&[0, 2, 1, 0]).unwrap(), [-1.0, 0.5, 0.2, 0.1]);
    }

    #[test]
    fn codes_and_levels_that_mean_nothing_are_refused() {
        let levels = Levels::Table { num: 3, levels: vec![0.0, 1.0, 2.0] };
        assert!(levels.values(&[3]).unwrap_err().to_string().contains("code 3"));
        let two = Levels::Uniform { num: 3, first: -1, stride: 1, steps: vec![1.0, 2.0] };
        assert!(two.values(&[1, 1, 1]).is_err());
        assert_eq!(two.values(&[]).unwrap(), [0.0_f32; 0]);
        for bad in [
            Levels::Table { num: 2, levels: vec![1.0, 1.0] },
            Levels::Table { num: 2, levels: vec![0.0, f32::NAN] },
            Levels::Table { num: 2, levels: vec![] },
            Levels::Uniform { num: 1, first: 0, stride: 1, steps: vec![1.0] },
            Levels::Uniform { num: 3, first: -1, stride: 1, steps: vec![-1.0] },
            Levels::Uniform { num: 3, first: i32::MAX, stride: 2, steps: vec![1.0] },
            Levels::PowersOfTwo { num_exponents: 4, low: vec![126] },
            Levels::PowersOfTwo { num_exponents: 4, low: vec![i32::MAX] },
        ] {
            assert!(bad.check().is_err(), "{bad:?}");
        }
    }
}
