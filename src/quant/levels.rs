//! Grids of levels, the nearest level of a value, and integer codes.
//!
//! Every level is computed once, in f32, from an integer code and the grid's scale; a weight that is
//! "on the grid" has exactly that bit pattern. Rounding works on whole tensors on their device.
//!
//! Words: the *scale* is what an integer code is multiplied with; between adjacent levels lies one scale, or two
//! where the codes are the odd integers. The *largest level* is the largest magnitude among the levels. The *range* is
//! the one number that places the levels of a [`Spacing`]; which of the two it is depends on the spacing.

use std::fmt;
use std::sync::Arc;

use anyhow::{Result, ensure};
use rayon::prelude::*;
use tch::kind::Element;
use tch::{Device, Kind, Tensor};

use super::settings::CodeRange;
use crate::libtorch::upload;

/// Most levels a grid may have: an index fits 8 bits.
pub const MAX_LEVELS: u32 = 256;
/// Values of one task, where rows are not channels.
const ROW: usize = 1 << 15;

/// How the levels of a grid are spaced; a range for the tensor or for each channel makes it a [`Grid`].
#[derive(Debug, Clone, PartialEq)]
pub enum Spacing {
    /// `num_levels` values evenly spaced over `[-s, s]`, s the range; 0 is one of them when the count is odd.
    Uniform {
        /// Number of levels, 2 to 256.
        num_levels: u32,
    },
    /// `0` and `+-2^n2 .. +-2^n1`, with `n1 = floor(log2(4 s / 3))` and `n2 = n1 + 1 - num_exponents`, s the
    /// range, which is max |W| (Zhou et al., *Incremental Network Quantization*, ICLR 2017, section 2.1).
    PowerOfTwo {
        /// Number of different magnitudes other than 0, 1 to 127.
        num_exponents: u32,
    },
    /// Successive integers times the scale s, which is the range: `lowest * s`, .., `0`, .., `highest * s`.
    Integers {
        /// The lowest code, 0 or below.
        lowest: i32,
        /// The highest code, above 0.
        highest: i32,
    },
    /// The levels that a method brings along: sums of powers of two, a codebook.
    Shaped(Shape),
}

/// Levels that are none of the other [`Spacing`]s. A method that has such levels implements this in its own file; grids,
/// codes, packed files and ONNX export follow.
pub trait LevelShape: fmt::Debug + Send + Sync {
    /// The levels at a range, ascending; as many at each range, 2 to [`MAX_LEVELS`].
    fn levels(&self, range: f32) -> Vec<f32>;

    /// The integer codes of the levels, ascending: by default each level's number, counted from the lowest level that is
    /// not negative.
    fn codes(&self) -> Vec<i32> {
        let levels = self.levels(1.0);
        let first = levels.iter().filter(|level| **level < 0.0).count() as i32;
        (0..levels.len() as i32).map(|number| number - first).collect()
    }
}

/// A shared [`LevelShape`]. Two are equal where their levels and codes are.
#[derive(Debug, Clone)]
pub struct Shape(Arc<dyn LevelShape>);

impl PartialEq for Shape {
    fn eq(&self, other: &Self) -> bool {
        self.0.levels(1.0) == other.0.levels(1.0) && self.0.codes() == other.0.codes()
    }
}

/// The integers of the levels that lie at integer multiples of a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codes {
    /// The lowest.
    pub lowest: i32,
    /// The highest.
    pub highest: i32,
    /// The distance of neighbours: 1, or 2 where the codes are the odd integers.
    pub stride: i32,
}

impl Codes {
    /// How many there are.
    pub fn count(self) -> u32 {
        ((self.highest - self.lowest) / self.stride + 1) as u32
    }
}

impl Spacing {
    /// Levels of a shape of their own.
    pub fn shaped(shape: impl LevelShape + 'static) -> Self {
        Self::Shaped(Shape(Arc::new(shape)))
    }

    /// Evenly spaced levels, from a bit width, a level count, or both where they agree.
    ///
    /// `b` bits are `2^b - 1` symmetric levels, so that 0 is one of them; 1 bit is `{-s, s}`. A level
    /// count fits a bit width when it needs exactly that many bits (4 levels are 2 bits).
    ///
    /// # Errors
    /// If neither is given, one is outside its range, or the two contradict each other.
    pub fn uniform(bits: Option<u32>, n_levels: Option<u32>) -> Result<Self> {
        check_widths(bits, n_levels, 1)?;
        let num_levels = match (n_levels, bits) {
            (Some(n), _) => n,
            (None, Some(b)) => ((1 << b) - 1).max(2),
            (None, None) => unreachable!("refused by check_widths"),
        };
        Ok(Self::Uniform { num_levels })
    }

    /// Powers of two, from a bit width (`b` bits are `2^(b-2)` magnitudes: 3, 5, 9, 17 levels for
    /// b = 2..5), an odd level count, or both where they agree.
    ///
    /// Deviation: the published code counts 2 magnitudes less than `n_levels` asks for, so that its
    /// 3 levels are only `{0}`; here a level count is the number of levels.
    ///
    /// # Errors
    /// As for [`Spacing::uniform`]; also for an even level count and for 1 bit.
    pub fn power_of_two(bits: Option<u32>, n_levels: Option<u32>) -> Result<Self> {
        check_widths(bits, n_levels, 2)?;
        let num_exponents = match (n_levels, bits) {
            (Some(n), _) => {
                ensure!(
                    n % 2 == 1,
                    "n_levels {n} is even, but powers of two have an odd number of levels (0 and \
                     pairs of both signs): use {} or {}",
                    n - 1,
                    n + 1
                );
                (n - 1) / 2
            }
            (None, Some(b)) => 1 << (b - 2),
            (None, None) => unreachable!("refused by check_widths"),
        };
        Ok(Self::PowerOfTwo { num_exponents })
    }

    /// Successive integers around 0 for a learnt step: from a bit width and a range, or a level count
    /// `n`: `-n/2 .. n/2 - 1` where it is even, symmetric where it is odd. 1 bit, or 2 levels, is
    /// `{-s, s}`, which is [`Spacing::Uniform`].
    ///
    /// # Errors
    /// As for [`Spacing::uniform`].
    pub fn integers(bits: Option<u32>, n_levels: Option<u32>, range: CodeRange) -> Result<Self> {
        check_widths(bits, n_levels, 1)?;
        let num_levels = match (n_levels, bits, range) {
            (Some(n), _, _) => n,
            (None, Some(b), CodeRange::Full) => 1 << b,
            (None, Some(b), CodeRange::Narrow) => ((1 << b) - 1).max(2),
            (None, None, _) => unreachable!("refused by check_widths"),
        };
        Ok(match num_levels as i32 {
            2 => Self::Uniform { num_levels: 2 },
            n => Self::Integers { lowest: -(n / 2), highest: (n - 1) / 2 },
        })
    }

    /// Successive integers from 0: `2^b` or `n_levels` of them.
    ///
    /// # Errors
    /// As for [`Spacing::uniform`].
    pub fn unsigned(bits: Option<u32>, n_levels: Option<u32>) -> Result<Self> {
        Ok(Self::Integers { lowest: 0, highest: all_levels(bits, n_levels)? as i32 - 1 })
    }

    /// As many evenly spaced levels over `[-s, s]` as the bits number: `2^b`, or `n_levels`.
    ///
    /// # Errors
    /// As for [`Spacing::uniform`].
    pub fn all_codes(bits: Option<u32>, n_levels: Option<u32>) -> Result<Self> {
        Ok(Self::Uniform { num_levels: all_levels(bits, n_levels)? })
    }

    /// Its name in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Uniform { .. } => "uniform",
            Self::PowerOfTwo { .. } => "power_of_two",
            Self::Integers { .. } => "integers",
            Self::Shaped(_) => "shaped",
        }
    }

    /// Number of levels.
    pub fn num_levels(&self) -> u32 {
        match self {
            Self::Uniform { num_levels } => *num_levels,
            Self::Integers { lowest, highest } => (highest - lowest + 1).max(0) as u32,
            Self::PowerOfTwo { num_exponents } => 2 * num_exponents + 1,
            Self::Shaped(shape) => shape.0.levels(1.0).len() as u32,
        }
    }

    /// Bits that number the levels: the bits of a packed weight.
    pub fn bits(&self) -> u32 {
        bits_of(self.num_levels())
    }

    /// The integer codes of the levels, ascending.
    ///
    /// Uniform: the level is `code * scale`, [`Grid::scale`]; codes are successive integers around 0 for
    /// an odd count, odd integers for an even one (half of the distance of two levels is the scale, and
    /// no level is 0). Integers: successive integers, likewise times the scale. Powers of two: the sign
    /// of the level times the rank of its exponent, from 1; 0 is level 0.
    pub fn codes(&self) -> Vec<i32> {
        if let Self::Shaped(shape) = self {
            return shape.0.codes();
        }
        let codes = self.multiples().unwrap_or_else(|| {
            let highest = (self.num_levels() as i32 - 1) / 2;
            Codes { lowest: -highest, highest, stride: 1 }
        });
        (codes.lowest..=codes.highest).step_by(codes.stride as usize).collect()
    }

    /// The codes, where a level is its code times a scale; `None` for powers of two and other shapes.
    pub fn multiples(&self) -> Option<Codes> {
        match self {
            Self::Uniform { num_levels } => {
                let n = *num_levels as i32;
                Some(match n % 2 {
                    0 => Codes { lowest: 1 - n, highest: n - 1, stride: 2 },
                    _ => Codes { lowest: -(n - 1) / 2, highest: (n - 1) / 2, stride: 1 },
                })
            }
            Self::Integers { lowest, highest } => {
                Some(Codes { lowest: *lowest, highest: *highest, stride: 1 })
            }
            Self::PowerOfTwo { .. } | Self::Shaped(_) => None,
        }
    }

    /// The scale at a range, of a grid that has one: level = code * scale in f32.
    pub(crate) fn scale(&self, range: f32) -> f32 {
        let n = self.num_levels();
        match self {
            Self::Integers { .. } => range,
            _ if n.is_multiple_of(2) => (f64::from(range) / f64::from(n - 1)) as f32,
            _ => (f64::from(range) / f64::from((n - 1) / 2)) as f32,
        }
    }

    /// The levels at a range, ascending as the codes.
    pub fn levels(&self, range: f32) -> Vec<f32> {
        match self {
            Self::Uniform { .. } | Self::Integers { .. } => {
                let scale = self.scale(range);
                self.codes().into_iter().map(|code| code as f32 * scale).collect()
            }
            Self::Shaped(shape) => shape.0.levels(range),
            Self::PowerOfTwo { num_exponents } => {
                let high = (4.0 * f64::from(range) / 3.0).log2().floor() as i32;
                let low = high + 1 - *num_exponents as i32;
                let level = |code: i32| match code {
                    0 => 0.0,
                    _ => (f64::from(code.signum()) * f64::from(low + code.abs() - 1).exp2()) as f32,
                };
                self.codes().into_iter().map(level).collect()
            }
        }
    }

    /// Where a tie between two neighbouring levels goes: to the one earlier in the published list of
    /// levels, which is ascending for uniform grids, and by growing magnitude on the negative side
    /// for powers of two (`-2^n2 .. -2^n1, 0, 2^n2 .. 2^n1`).
    fn tie_goes_up(&self, upper: f32) -> bool {
        matches!(self, Self::PowerOfTwo { .. }) && upper < 0.0
    }
}

/// Bits that number `num_levels` levels.
pub fn bits_of(num_levels: u32) -> u32 {
    u32::BITS - num_levels.saturating_sub(1).leading_zeros()
}

/// `2^b` levels, or `n_levels`.
fn all_levels(bits: Option<u32>, n_levels: Option<u32>) -> Result<u32> {
    check_widths(bits, n_levels, 1)?;
    Ok(n_levels.unwrap_or_else(|| 1 << bits.unwrap_or_default()))
}

pub(super) fn check_widths(bits: Option<u32>, n_levels: Option<u32>, min_bits: u32) -> Result<()> {
    ensure!(
        bits.is_some() || n_levels.is_some(),
        "neither bits nor n_levels is given: set one of them"
    );
    if let Some(n) = n_levels {
        let min = if min_bits == 1 { 2 } else { 3 };
        ensure!(
            (min..=MAX_LEVELS).contains(&n),
            "n_levels {n} is outside {min}..={MAX_LEVELS}{}",
            if n == 1 { " (a grid of one level holds no information)" } else { "" }
        );
    }
    if let Some(b) = bits {
        ensure!((min_bits..=8).contains(&b), "bits {b} is outside {min_bits}..=8");
        if let Some(n) = n_levels {
            ensure!(
                bits_of(n) == b,
                "bits {b} and n_levels {n} contradict each other: {n} levels need {} bits; drop one \
                 of the two",
                bits_of(n)
            );
        }
    }
    Ok(())
}

/// Levels: a spacing at one range per tensor, or one per output channel (the first dimension).
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    spacing: Spacing,
    range: Vec<f32>,
}

impl Grid {
    /// A grid of these ranges: the largest level of [`Spacing::Uniform`], the scale of [`Spacing::Integers`], max |W| of
    /// powers of two. One range is per tensor, more are one per output channel.
    ///
    /// # Errors
    /// If a range is not positive and finite, or so small that levels coincide in f32.
    pub fn new(spacing: Spacing, range: Vec<f32>) -> Result<Self> {
        ensure!(!range.is_empty(), "a grid needs a range");
        ensure!(
            (2..=MAX_LEVELS).contains(&spacing.num_levels()),
            "a grid of {} levels, expected 2..={MAX_LEVELS}",
            spacing.num_levels()
        );
        for &s in &range {
            ensure!(s.is_finite() && s > 0.0, "range {s} is not positive and finite");
            let levels = spacing.levels(s);
            ensure!(
                levels.windows(2).all(|pair| pair[0] < pair[1]) && levels[0].is_finite(),
                "range {s:e} is outside what f32 can hold {} different levels at",
                levels.len()
            );
        }
        Ok(Self { spacing, range })
    }

    /// The spacing.
    pub fn spacing(&self) -> &Spacing {
        &self.spacing
    }

    /// The ranges that place the levels, see [`Grid::new`]: one, or one per output channel.
    pub fn range(&self) -> &[f32] {
        &self.range
    }

    /// Number of ranges: 1, or the number of output channels.
    pub fn num_ranges(&self) -> usize {
        self.range.len()
    }

    /// The scales: `level = code * scale` in f32, bit for bit; none where levels are not multiples of one.
    pub fn scale(&self) -> Option<Vec<f32>> {
        self.spacing.multiples()?;
        Some(self.range.iter().map(|&s| self.spacing.scale(s)).collect())
    }

    /// The largest magnitude among the levels of each range.
    pub fn max_level(&self) -> Vec<f32> {
        let largest =
            |channel| self.levels(channel).into_iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        (0..self.range.len()).map(largest).collect()
    }

    /// The levels of a channel, ascending; of the whole tensor when there is one range.
    ///
    /// # Panics
    /// If the grid has no such channel.
    pub fn levels(&self, channel: usize) -> Vec<f32> {
        self.spacing.levels(self.range[channel])
    }

    /// Which level is nearest: its number, counted from the lowest; int64, same shape as `x`.
    ///
    /// `x` must not hold NaN. Values outside the grid go to its ends; ties go to the level that is
    /// earlier in the published order.
    ///
    /// # Errors
    /// If `x` is not f32 or its first dimension is not the number of channels.
    pub fn index(&self, x: &Tensor) -> Result<Tensor> {
        Ok(match self.map_even(x, |levels, v| levels.index(v) as i64)? {
            Some(index) => index,
            None => self.index_by_channel(x)?.reshape(x.size()),
        })
    }

    /// The nearest level; same shape as `x`, contiguous. See [`Grid::index`].
    ///
    /// # Errors
    /// As [`Grid::index`].
    pub fn nearest(&self, x: &Tensor) -> Result<Tensor> {
        if let Some(nearest) = self.map_even(x, |levels, v| levels.levels[levels.index(v)])? {
            return Ok(nearest);
        }
        let index = self.index_by_channel(x)?;
        Ok(self.level_table(x).gather(1, &index, false).reshape(x.size()))
    }

    /// The integer code of the nearest level ([`Spacing::codes`]); int16, same shape as `x`.
    ///
    /// # Errors
    /// As [`Grid::index`].
    pub fn codes(&self, x: &Tensor) -> Result<Tensor> {
        let codes = upload(&Tensor::from_slice(&self.spacing.codes()), x.device());
        let index = self.index(x)?;
        Ok(codes.index_select(0, &index.reshape([-1])).reshape(x.size()).to_kind(Kind::Int16))
    }

    /// The levels of integer codes, undoing [`Grid::codes`]; f32, same shape.
    ///
    /// # Errors
    /// If a code is none of the grid's, or the first dimension is not the number of channels.
    pub fn values(&self, codes: &Tensor) -> Result<Tensor> {
        let known = upload(&Tensor::from_slice(&self.spacing.codes()), codes.device());
        let wanted = codes.to_kind(Kind::Int);
        let index = wanted.bucketize(&known, false, false).clamp(0, known.size()[0] - 1);
        let found = known.index_select(0, &index.reshape([-1])).reshape(codes.size());
        ensure!(
            found.equal(&wanted),
            "the codes hold integers that the grid of {} levels has not",
            self.spacing.num_levels()
        );
        let index = index.reshape(self.rows(codes)?);
        Ok(self.level_table(codes).gather(1, &index, false).reshape(codes.size()))
    }

    /// Which values have exactly the bit pattern of a level; bool, same shape as `x`.
    ///
    /// # Errors
    /// As [`Grid::index`].
    pub fn on_grid(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.contiguous();
        Ok(self.nearest(&x)?.view_dtype(Kind::Int).eq_tensor(&x.view_dtype(Kind::Int)))
    }

    /// The shape `[channels, weights per channel]` of `x`.
    fn rows(&self, x: &Tensor) -> Result<[i64; 2]> {
        let channels = self.range.len() as i64;
        ensure!(
            channels == 1 || x.size().first() == Some(&channels),
            "a tensor of shape {:?} for a grid of {channels} channels",
            x.size()
        );
        Ok([channels, x.numel() as i64 / channels])
    }

    /// What becomes of each value of a tensor of the CPU, in row-major order, where the levels of a channel are evenly spaced;
    /// shape of `x`. `None` elsewhere.
    fn map_even<T: Element + Send + Default>(
        &self,
        x: &Tensor,
        of: impl Fn(&EvenLevels, f32) -> T + Sync,
    ) -> Result<Option<Tensor>> {
        ensure!(x.kind() == Kind::Float, "a tensor of kind {:?}, expected Float", x.kind());
        let [channels, per_channel] = self.rows(x)?.map(|n| n as usize);
        if self.spacing.multiples().is_none() || x.device() != Device::Cpu {
            return Ok(None);
        }
        let rows: Vec<EvenLevels> = (0..channels).map(|c| self.even_levels(c)).collect();
        let values = Vec::<f32>::try_from(x.detach().reshape([-1]))?;
        let row = if channels == 1 { ROW } else { per_channel.max(1) };
        let mut out: Vec<T> = std::iter::repeat_with(T::default).take(values.len()).collect();
        let chunks = out.par_chunks_mut(row).zip(values.par_chunks(row)).enumerate();
        chunks.for_each(|(i, (out, values))| {
            let levels = &rows[i.min(channels - 1)];
            for (out, &v) in out.iter_mut().zip(values) {
                *out = of(levels, v);
            }
        });
        Ok(Some(Tensor::from_slice(&out).reshape(x.size())))
    }

    fn even_levels(&self, channel: usize) -> EvenLevels {
        let levels = self.levels(channel);
        let span = f64::from(levels[levels.len() - 1]) - f64::from(levels[0]);
        let inverse = ((levels.len() - 1) as f64 / span) as f32;
        EvenLevels { limits: self.limits(channel), levels, inverse }
    }

    fn index_by_channel(&self, x: &Tensor) -> Result<Tensor> {
        ensure!(x.kind() == Kind::Float, "a tensor of kind {:?}, expected Float", x.kind());
        let rows = self.rows(x)?;
        let limits: Vec<f32> = (0..self.range.len()).flat_map(|c| self.limits(c)).collect();
        let limits = upload(&Tensor::from_slice(&limits).reshape([rows[0], -1]), x.device());
        // side "left": a value equal to a limit belongs to the level below it
        let x = x.detach().reshape(rows);
        Ok(x.searchsorted::<Tensor>(&limits, false, false, "left", None))
    }

    /// The largest f32 that still goes to each level but the last.
    fn limits(&self, channel: usize) -> Vec<f32> {
        let levels = self.levels(channel);
        let limit = |pair: &[f32]| {
            // the middle of two f32 is exact in f64
            let middle = (f64::from(pair[0]) + f64::from(pair[1])) / 2.0;
            let nearest = middle as f32;
            let above = f64::from(nearest) > middle;
            let tie_goes_up = f64::from(nearest) == middle && self.spacing.tie_goes_up(pair[1]);
            if above || tie_goes_up { nearest.next_down() } else { nearest }
        };
        levels.windows(2).map(limit).collect()
    }

    /// The levels, `[channels, levels]`, on the device of `x`.
    fn level_table(&self, x: &Tensor) -> Tensor {
        let levels: Vec<f32> = (0..self.range.len()).flat_map(|c| self.levels(c)).collect();
        let levels = Tensor::from_slice(&levels).reshape([self.range.len() as i64, -1]);
        upload(&levels, x.device())
    }
}

/// Evenly spaced levels of a channel, at least two: the number of the nearest is computed, not searched for.
struct EvenLevels {
    levels: Vec<f32>,
    /// The largest f32 that still goes to each level but the last.
    limits: Vec<f32>,
    /// Over the distance of two levels.
    inverse: f32,
}

impl EvenLevels {
    /// The number of limits below `v`: what a search finds. Rounding is right but for values next to a limit, and those are
    /// compared with it.
    #[inline]
    fn index(&self, v: f32) -> usize {
        let last = self.limits.len();
        // From a float that is negative or not a number comes 0, from a large one the largest number.
        let rounded = ((v - self.levels[0]) * self.inverse + 0.5) as usize;
        let mut i = rounded.min(last);
        while i > 0 && v <= self.limits[i - 1] {
            i -= 1;
        }
        while i < last && v > self.limits[i] {
            i += 1;
        }
        i
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::{bits, channels_last, weights};

    /// Levels that are neither even nor powers of two.
    #[derive(Debug)]
    struct Cubes;

    impl LevelShape for Cubes {
        fn levels(&self, range: f32) -> Vec<f32> {
            (-4..=4i8).map(|i| range * (f32::from(i) / 4.0).powi(3)).collect()
        }
    }

    fn grids() -> Vec<Grid> {
        let uniform =
            [2, 3, 4, 15, 16, 31, 255, 256].map(|num_levels| Spacing::Uniform { num_levels });
        let powers = [1, 2, 4, 64].map(|num_exponents| Spacing::PowerOfTwo { num_exponents });
        let integers = [(-2, 1), (-1, 1), (-128, 127), (0, 1), (0, 255)];
        let integers = integers.map(|(lowest, highest)| Spacing::Integers { lowest, highest });
        let mut grids = Vec::new();
        for spacing in
            uniform.into_iter().chain(powers).chain(integers).chain([Spacing::shaped(Cubes)])
        {
            for scale in [vec![1.0], vec![0.3712345], vec![0.01, 0.7, 1.9]] {
                grids.push(Grid::new(spacing.clone(), scale).unwrap());
            }
        }
        grids
    }

    #[test]
    fn even_levels_are_numbered_as_a_search_numbers_them() {
        for grid in grids() {
            let channels = grid.num_ranges();
            let mut values: Vec<Vec<f32>> = vec![];
            for channel in 0..channels {
                let (levels, limits) = (grid.levels(channel), grid.limits(channel));
                let at = levels.iter().chain(&limits).copied();
                let around = at.flat_map(|v| [v, v.next_up(), v.next_down(), v * 1.0001, -v]);
                let far = [0.0, -0.0, 1e-40, 3e38, -3e38, f32::INFINITY, f32::NEG_INFINITY];
                values.push(around.chain(far).collect());
            }
            let x = Tensor::from_slice(&values.concat()).reshape([channels as i64, -1]);
            let by_search = grid.index_by_channel(&x).unwrap();
            assert!(grid.index(&x).unwrap().equal(&by_search), "{grid:?}");
            let levels = grid.level_table(&x).gather(1, &by_search, false);
            assert_eq!(bits(&grid.nearest(&x).unwrap()), bits(&levels), "{grid:?}");
        }
    }

    #[test]
    fn bits_count_symmetric_levels() {
        let levels = |bits| Spacing::uniform(Some(bits), None).unwrap().num_levels();
        assert_eq!([1, 2, 3, 4, 8].map(levels), [2, 3, 7, 15, 255]);
        let levels = |bits| Spacing::power_of_two(Some(bits), None).unwrap().num_levels();
        assert_eq!([2, 3, 4, 5, 8].map(levels), [3, 5, 9, 17, 129]);
        assert_eq!([2, 3, 4, 5, 15, 16, 17, 256].map(bits_of), [1, 2, 2, 3, 4, 4, 5, 8]);
        for bits in 1..=8 {
            assert_eq!(Spacing::uniform(Some(bits), None).unwrap().bits(), bits);
        }
        for bits in 2..=8 {
            assert_eq!(Spacing::power_of_two(Some(bits), None).unwrap().bits(), bits);
        }
    }

    #[test]
    fn two_bits_may_be_three_or_four_levels_and_no_other_number() {
        assert_eq!(Spacing::uniform(Some(2), Some(4)).unwrap().num_levels(), 4);
        assert_eq!(Spacing::uniform(Some(2), Some(3)).unwrap().num_levels(), 3);
        let refused = |bits, n| Spacing::uniform(bits, n).unwrap_err().to_string();
        assert!(refused(Some(2), Some(5)).contains("contradict"));
        assert!(refused(Some(8), Some(15)).contains("15 levels need 4 bits"));
        assert!(refused(None, None).contains("neither"));
        assert!(refused(None, Some(1)).contains("one level"));
        assert!(refused(None, Some(257)).contains("2..=256"));
        assert!(refused(Some(0), None).contains("1..=8"));
        assert!(refused(Some(9), None).contains("1..=8"));
    }

    #[test]
    fn learnt_steps_and_inputs_have_the_integers_of_their_papers() {
        use CodeRange::{Full, Narrow};
        let codes = |bits, n, range| Spacing::integers(bits, n, range).unwrap().codes();
        assert_eq!(codes(Some(2), None, Full), [-2, -1, 0, 1]);
        assert_eq!(codes(Some(2), None, Narrow), [-1, 0, 1]);
        assert_eq!(codes(None, Some(4), Narrow), [-2, -1, 0, 1]);
        assert_eq!(codes(None, Some(5), Full), [-2, -1, 0, 1, 2]);
        for range in [Full, Narrow] {
            assert_eq!(codes(Some(1), None, range), [-1, 1]);
        }
        let eight = codes(Some(8), None, Full);
        assert_eq!((eight[0], eight[255]), (-128, 127));
        assert_eq!(Spacing::unsigned(Some(1), None).unwrap().codes(), [0, 1]);
        assert_eq!(Spacing::unsigned(Some(8), None).unwrap().num_levels(), 256);
        assert_eq!(Spacing::unsigned(None, Some(3)).unwrap().codes(), [0, 1, 2]);
        assert_eq!(Spacing::all_codes(Some(2), None).unwrap().codes(), [-3, -1, 1, 3]);
        for bits in 1..=8 {
            for spacing in [
                Spacing::integers(Some(bits), None, Full),
                Spacing::integers(Some(bits), None, Narrow),
                Spacing::unsigned(Some(bits), None),
                Spacing::all_codes(Some(bits), None),
            ] {
                assert_eq!(spacing.unwrap().bits(), bits);
            }
        }
        assert!(Spacing::integers(None, None, Full).is_err());
        assert!(Spacing::unsigned(Some(9), None).is_err());
        assert!(Spacing::all_codes(Some(2), Some(5)).is_err());
    }

    #[test]
    fn powers_of_two_need_an_odd_count_and_two_bits() {
        let refused = |bits, n| Spacing::power_of_two(bits, n).unwrap_err().to_string();
        assert!(refused(Some(1), None).contains("2..=8"));
        assert!(refused(None, Some(2)).contains("3..=256"));
        assert!(refused(None, Some(16)).contains("use 15 or 17"));
        assert_eq!(Spacing::power_of_two(None, Some(15)).unwrap().num_levels(), 15);
    }

    #[test]
    fn powers_of_two_follow_the_paper() {
        let levels = |scale| Spacing::power_of_two(Some(3), None).unwrap().levels(scale);
        // 4 s / 3 = 1 exactly: n1 = 0, n2 = 0 + 1 - 2
        assert_eq!(levels(0.75), [-1.0, -0.5, 0.0, 0.5, 1.0]);
        assert_eq!(levels(0.75f32.next_down()), [-0.5, -0.25, 0.0, 0.25, 0.5]);
        assert_eq!(levels(2.9), [-2.0, -1.0, 0.0, 1.0, 2.0]);
        assert_eq!(levels(3.0), [-4.0, -2.0, 0.0, 2.0, 4.0]);
    }

    #[test]
    fn codes_are_symmetric_and_give_the_levels() {
        for grid in grids() {
            let codes = grid.spacing().codes();
            assert_eq!(codes.len() as u32, grid.spacing().num_levels());
            let mirrored: Vec<i32> = codes.iter().rev().map(|c| -c).collect();
            let one_sided = matches!(grid.spacing(), Spacing::Integers { .. });
            assert!(codes == mirrored || one_sided);
            assert!(grid.spacing().multiples().is_none_or(|c| c.count() as usize == codes.len()));
            let Some(steps) = grid.scale() else { continue };
            for (channel, step) in steps.into_iter().enumerate() {
                let levels: Vec<f32> = codes.iter().map(|&code| code as f32 * step).collect();
                assert_eq!(levels, grid.levels(channel));
                if one_sided {
                    assert_eq!(step, grid.range()[channel]);
                    continue;
                }
                let (top, s) =
                    (f64::from(levels[levels.len() - 1]), f64::from(grid.range()[channel]));
                // the step and the level are each rounded once
                assert!((top / s - 1.0).abs() < 1.2e-7, "the outermost level {top} is not {s}");
            }
        }
    }

    #[test]
    fn every_value_goes_to_its_nearest_level() {
        for grid in grids() {
            let x = weights(5, &[3, 200]) * 1.5;
            let values: Vec<f32> = Vec::try_from(&x.reshape([-1])).unwrap();
            let nearest: Vec<f32> =
                Vec::try_from(&grid.nearest(&x).unwrap().reshape([-1])).unwrap();
            for (i, (&v, &q)) in values.iter().zip(&nearest).enumerate() {
                let levels = grid.levels(if grid.num_ranges() == 1 { 0 } else { i / 200 });
                let distance = |level: f32| (f64::from(v) - f64::from(level)).abs();
                let best = levels.iter().map(|&l| distance(l)).fold(f64::INFINITY, f64::min);
                assert!(levels.contains(&q) && distance(q) == best, "{v} became {q} of {levels:?}");
            }
        }
    }

    #[test]
    fn quantizing_twice_changes_nothing_and_codes_come_back() {
        for grid in grids() {
            let x = weights(6, &[3, 5, 3, 3]);
            let once = grid.nearest(&x).unwrap();
            assert_eq!(bits(&grid.nearest(&once).unwrap()), bits(&once));
            assert!(bool::try_from(grid.on_grid(&once).unwrap().all()).unwrap());
            assert!(!bool::try_from(grid.on_grid(&(&once + 1e-4)).unwrap().any()).unwrap());
            let codes = grid.codes(&once).unwrap();
            assert_eq!(codes.kind(), Kind::Int16);
            assert_eq!(bits(&grid.values(&codes).unwrap()), bits(&once));
        }
    }

    #[test]
    fn unknown_codes_and_wrong_tensors_are_refused() {
        let grid = Grid::new(Spacing::Uniform { num_levels: 4 }, vec![1.0, 2.0]).unwrap();
        let codes = |code: i16| Tensor::from_slice(&[1i16, code]);
        assert!(grid.values(&codes(3)).is_ok());
        for unknown in [0, 2, 5, -4] {
            assert!(grid.values(&codes(unknown)).unwrap_err().to_string().contains("4 levels"));
        }
        let wrong = grid.nearest(&weights(1, &[3, 2])).unwrap_err().to_string();
        assert!(wrong.contains("[3, 2]") && wrong.contains("2 channels"), "{wrong}");
        let double = weights(1, &[2, 2]).to_kind(Kind::Double);
        assert!(grid.nearest(&double).unwrap_err().to_string().contains("Double"));
    }

    #[test]
    fn values_far_outside_and_zeros_of_both_signs_have_a_level() {
        let grid = Grid::new(Spacing::Uniform { num_levels: 3 }, vec![0.5]).unwrap();
        let x = Tensor::from_slice(&[-9.0f32, f32::NEG_INFINITY, -0.0, 0.0, 0.26, f32::INFINITY]);
        let q = grid.nearest(&x).unwrap();
        let expected = Tensor::from_slice(&[-0.5f32, -0.5, 0.0, 0.0, 0.5, 0.5]);
        assert_eq!(bits(&q), bits(&expected));
    }

    #[test]
    fn a_memory_format_changes_no_level() {
        let grid = Grid::new(Spacing::Uniform { num_levels: 7 }, vec![0.4, 0.6, 0.8]).unwrap();
        let x = weights(7, &[3, 4, 2, 2]);
        let last = channels_last(&x);
        assert!(!last.is_contiguous());
        let q = grid.nearest(&last).unwrap();
        assert_eq!(bits(&q), bits(&grid.nearest(&x).unwrap()));
        let on_grid = grid.on_grid(&channels_last(&q)).unwrap();
        assert!(bool::try_from(on_grid.all()).unwrap());
    }

    #[test]
    fn scales_that_hold_no_levels_are_refused() {
        let spacing = Spacing::Uniform { num_levels: 255 };
        for scale in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-44] {
            assert!(Grid::new(spacing.clone(), vec![0.5, scale]).is_err(), "{scale}");
        }
        assert!(Grid::new(spacing, vec![]).is_err());
        let deep = Spacing::PowerOfTwo { num_exponents: 127 };
        assert!(Grid::new(deep, vec![1e-10]).is_err());
        let one = Grid::new(Spacing::PowerOfTwo { num_exponents: 0 }, vec![1.0]).unwrap_err();
        assert!(one.to_string().contains("1 levels"));
    }
}
