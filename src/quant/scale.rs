//! The scale of a grid, found by its largest level: the s whose levels fit a weight tensor best.
//!
//! The search is exact and fast: magnitudes are sorted once and summed up, so that the error of an s
//! costs one binary search per level instead of a pass over the weights (over a few weights a plain
//! pass is faster).

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::levels::{Codes, Spacing};
use super::settings::QuantInit;

/// Points of the first, even search, as published.
const GRID_POINTS: usize = 1000;
/// Lower end of the search, as published.
const GRID_MIN: f64 = 1e-6;
/// How far the search goes beyond max |W|, in its points: to twice max |W|. Of many levels the highest may well stay unused
/// where that brings outliers onto levels; the published refinement is not bounded by max |W| either.
const POINTS_BEYOND_MAX: usize = GRID_POINTS;
/// The best points of the even search that are refined: the error has many local minima.
const NUM_REFINED: usize = 8;
/// Golden-section steps of a refinement: 0.618^40 = 4e-9 of two points' distance.
const GOLDEN_STEPS: usize = 40;
/// Values that a plain pass handles in the time of a binary search among them.
const VALUES_PER_SEARCH: usize = 32;
/// Independent sums of the plain pass.
const LANES: usize = 8;
/// Magnitudes below this count as zero: their levels would not be normal f32 numbers.
const ZERO: f32 = 1e-30;

/// Which norm of the quantization error is minimised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Norm {
    /// Sum of absolute errors.
    L1,
    /// Root of the sum of squared errors.
    L2,
    /// Largest absolute error.
    Linf,
}

/// The result of a search.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Fit {
    /// The largest level.
    pub max_level: f64,
    /// The norm of the quantization error at that level.
    pub loss: f64,
}

/// Sorted magnitudes with prefix sums.
#[derive(Debug)]
pub struct Magnitudes {
    sorted: Vec<f32>,
    sum: Vec<f64>,
    sum_squares: Vec<f64>,
}

impl Magnitudes {
    /// Of these values, in any order. They must be finite.
    pub fn new(values: &[f32]) -> Self {
        // non-negative floats sort as their bit patterns do
        let mut bits: Vec<u32> = values.iter().map(|v| v.abs().to_bits()).collect();
        bits.par_sort_unstable();
        let sorted: Vec<f32> = bits.into_iter().map(f32::from_bits).collect();
        let mut sum = Vec::with_capacity(sorted.len() + 1);
        let mut sum_squares = Vec::with_capacity(sorted.len() + 1);
        let (mut s1, mut s2) = (0.0, 0.0);
        sum.push(s1);
        sum_squares.push(s2);
        for &v in &sorted {
            let v = f64::from(v);
            s1 += v;
            s2 += v * v;
            sum.push(s1);
            sum_squares.push(s2);
        }
        Self { sorted, sum, sum_squares }
    }

    /// The largest magnitude; 0 when there are no values.
    pub fn max(&self) -> f32 {
        self.sorted.last().copied().unwrap_or(0.0)
    }

    /// The norm of the distances to the nearest of `num_levels` levels evenly spaced over
    /// `[-max_level, max_level]`.
    pub fn loss(&self, norm: Norm, num_levels: u32, max_level: f64) -> f64 {
        let levels = Positive::new(num_levels, max_level);
        // a pass over few values is faster than a search for each of many levels
        let total = match self.sorted.len() < VALUES_PER_SEARCH * levels.count {
            true => self.loss_by_value(norm, levels),
            false => self.loss_by_level(norm, levels),
        };
        match norm {
            Norm::L2 => total.max(0.0).sqrt(),
            _ => total.max(0.0),
        }
    }

    /// The sum (L2: of squares; Linf: the maximum) of distances, level by level.
    fn loss_by_level(&self, norm: Norm, levels: Positive) -> f64 {
        let mut total = 0.0f64;
        let mut start = 0;
        for i in 0..levels.count {
            let level = (i as f64 + levels.first) * levels.step;
            let end = match i + 1 == levels.count {
                true => self.sorted.len(),
                false => self.count_up_to(start, level + 0.5 * levels.step),
            };
            if start == end {
                continue;
            }
            match norm {
                Norm::L1 => {
                    let middle = self.count_up_to(start, level).min(end);
                    let below = level * (middle - start) as f64 - self.sum(start, middle);
                    let above = self.sum(middle, end) - level * (end - middle) as f64;
                    total += below + above;
                }
                Norm::L2 => {
                    let squares = self.sum_squares[end] - self.sum_squares[start];
                    let count = (end - start) as f64;
                    total += squares - level * (2.0 * self.sum(start, end) - level * count);
                }
                Norm::Linf => {
                    let below = level - f64::from(self.sorted[start]);
                    let above = f64::from(self.sorted[end - 1]) - level;
                    total = total.max(below).max(above);
                }
            }
            start = end;
        }
        total
    }

    /// The same, value by value; in lanes, so that the compiler can use vector instructions.
    fn loss_by_value(&self, norm: Norm, levels: Positive) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let chunks = self.sorted.chunks_exact(LANES);
        let rest = chunks.remainder();
        for chunk in chunks {
            for (lane, &v) in lanes.iter_mut().zip(chunk) {
                *lane = accumulate(norm, *lane, levels.distance(v));
            }
        }
        for (lane, &v) in lanes.iter_mut().zip(rest) {
            *lane = accumulate(norm, *lane, levels.distance(v));
        }
        match norm {
            Norm::Linf => lanes.into_iter().fold(0.0, f64::max),
            _ => lanes.into_iter().sum(),
        }
    }

    /// The largest level of smallest loss; `None` when all magnitudes are zero.
    ///
    /// An even search over `[1e-6, 2 max |W|]`, then golden sections around its best points.
    pub fn fit(&self, norm: Norm, num_levels: u32) -> Option<Fit> {
        search(self.max(), &|max_level| self.loss(norm, num_levels, max_level))
    }

    /// Number of magnitudes up to `limit`, given that the first `from` are.
    fn count_up_to(&self, from: usize, limit: f64) -> usize {
        from + self.sorted[from..].partition_point(|&v| f64::from(v) <= limit)
    }

    fn sum(&self, start: usize, end: usize) -> f64 {
        self.sum[end] - self.sum[start]
    }
}

/// The largest level up to `2 max` of smallest loss; `None` when `max` is zero.
fn search(max: f32, loss: &(dyn Fn(f64) -> f64 + Sync)) -> Option<Fit> {
    if max < ZERO {
        return None;
    }
    let max = f64::from(max);
    let low = GRID_MIN.min(1e-3 * max);
    let step = (max - low) / (GRID_POINTS - 1) as f64;
    let fit = |max_level: f64| Fit { max_level, loss: loss(max_level) };
    let mut points: Vec<Fit> = (0..GRID_POINTS + POINTS_BEYOND_MAX)
        .into_par_iter()
        .map(|i| fit(low + i as f64 * step))
        .collect();
    points.sort_by(|a, b| a.loss.total_cmp(&b.loss).then(a.max_level.total_cmp(&b.max_level)));
    points.truncate(NUM_REFINED);
    let refined = points
        .par_iter()
        .map(|&p| golden_section(&fit, p, (p.max_level - step).max(low), p.max_level + step));
    refined.collect::<Vec<_>>().into_iter().min_by(|a, b| a.loss.total_cmp(&b.loss))
}

/// The scale whose multiples by `codes` have the smallest squared distance to the values; `None` when
/// all values are zero.
pub(crate) fn best_step(values: &[f32], codes: Codes) -> Option<f32> {
    best_scale(values, Norm::L2, codes)
}

/// The scale whose multiples by `codes` have the smallest distance to the values by that norm; `None` when all values are
/// zero.
fn best_scale(values: &[f32], norm: Norm, codes: Codes) -> Option<f32> {
    let top = codes.highest.max(-codes.lowest);
    if codes.lowest == -codes.highest {
        let fit = Magnitudes::new(values).fit(norm, codes.count())?;
        return Some((fit.max_level / f64::from(top)) as f32);
    }
    let sides = sides(values, codes);
    let loss = |max_level: f64| {
        let [below, above] = [&sides[0], &sides[1]].map(|(side, highest)| match *highest {
            0 => 0.0, // whatever the scale, these values become 0
            n => side.loss(norm, 2 * n as u32 + 1, max_level * f64::from(n) / f64::from(top)),
        });
        match norm {
            Norm::L1 => below + above,
            Norm::L2 => below.hypot(above),
            Norm::Linf => below.max(above),
        }
    };
    // The largest level is that of the side with more codes; the other side's largest value may need a larger one.
    let largest_value = sides.iter().map(|(side, _)| side.max()).fold(0.0, f32::max);
    let largest = (full_scale(&sides) * f64::from(top)).max(f64::from(largest_value));
    let fit = search(largest as f32, &loss)?;
    Some((fit.max_level / f64::from(top)) as f32)
}

/// The magnitudes below and above 0, each with the largest code there: each is half of a symmetric grid.
fn sides(values: &[f32], codes: Codes) -> [(Magnitudes, i32); 2] {
    let side = |sign: f32| -> Magnitudes {
        let values: Vec<f32> = values.iter().map(|v| v * sign).filter(|&v| v >= 0.0).collect();
        Magnitudes::new(&values)
    };
    [(side(-1.0), -codes.lowest), (side(1.0), codes.highest)]
}

/// The smallest scale at which no value lies beyond the outermost level of its sign; 0 when all are zero.
fn full_scale(sides: &[(Magnitudes, i32)]) -> f64 {
    let reach = |(side, highest): &(Magnitudes, i32)| match *highest {
        0 => 0.0,
        n => f64::from(side.max()) / f64::from(n),
    };
    sides.iter().map(reach).fold(0.0, f64::max)
}

/// The mean of the magnitudes; 0 when there are none.
pub(crate) fn mean_magnitude(values: &[f32]) -> f64 {
    let sum: f64 = values.iter().map(|v| f64::from(v.abs())).sum();
    sum / values.len().max(1) as f64
}

/// The levels at or above 0 of an evenly spaced grid: an odd count has 0, an even one starts half a
/// step above it.
#[derive(Debug, Clone, Copy)]
struct Positive {
    step: f64,
    /// 1 / step.
    inverse: f64,
    /// The lowest, in steps.
    first: f64,
    count: usize,
}

impl Positive {
    fn new(num_levels: u32, max_level: f64) -> Self {
        let step = 2.0 * max_level / f64::from(num_levels - 1);
        let first = if num_levels % 2 == 1 { 0.0 } else { 0.5 };
        Self { step, inverse: 1.0 / step, first, count: num_levels.div_ceil(2) as usize }
    }

    /// The distance of a magnitude to the nearest level; halves may go either way.
    fn distance(self, magnitude: f32) -> f64 {
        // adding and subtracting 1.5 * 2^52 rounds to whole numbers in one vector instruction each
        const ROUND: f64 = 6_755_399_441_055_744.0;
        let v = f64::from(magnitude);
        let index = (v * self.inverse - self.first).min((self.count - 1) as f64);
        let index = ((index + ROUND) - ROUND).max(0.0);
        (v - (index + self.first) * self.step).abs()
    }
}

fn accumulate(norm: Norm, total: f64, distance: f64) -> f64 {
    match norm {
        Norm::L1 => total + distance,
        Norm::L2 => total + distance * distance,
        Norm::Linf => total.max(distance),
    }
}

/// The best largest level met on the way to a local minimum in `[low, high]`, starting from a known one.
fn golden_section(fit: &impl Fn(f64) -> Fit, known: Fit, mut low: f64, mut high: f64) -> Fit {
    let ratio = (5.0f64.sqrt() - 1.0) / 2.0;
    let mut best = known;
    let mut left = fit(high - ratio * (high - low));
    let mut right = fit(low + ratio * (high - low));
    for _ in 0..GOLDEN_STEPS {
        for candidate in [left, right] {
            if candidate.loss < best.loss {
                best = candidate;
            }
        }
        if left.loss <= right.loss {
            high = right.max_level;
            right = left;
            left = fit(high - ratio * (high - low));
        } else {
            low = left.max_level;
            left = right;
            right = fit(low + ratio * (high - low));
        }
    }
    best
}

/// The range ([`super::Grid::range`]) of a weight tensor: one, or one per output channel for `uniform-l2-opt-per_ch`.
///
/// As [`ranges_by`], with the granularity that `init` names.
pub fn ranges(name: &str, weight: &Tensor, init: QuantInit, spacing: &Spacing) -> Result<Vec<f32>> {
    ranges_by(name, weight, init, spacing, init == QuantInit::UniformL2OptPerChannel)
}

/// The range ([`super::Grid::range`]) of a weight tensor: one, or one per output channel.
///
/// Zeros alone have no best range: it is then 1 where 0 is a level (they stay 0, as published), and
/// 1e-6 where it is not.
///
/// # Shapes
/// - `weight`: `[c_out, ...]`, f32, any memory format and device
///
/// # Errors
/// If the tensor is empty, or holds NaN or infinity; the message names it.
pub fn ranges_by(
    name: &str,
    weight: &Tensor,
    init: QuantInit,
    spacing: &Spacing,
    per_channel: bool,
) -> Result<Vec<f32>> {
    let norm = match init {
        QuantInit::UniformL2Opt | QuantInit::UniformL2OptPerChannel => Some(Norm::L2),
        QuantInit::UniformL1Opt => Some(Norm::L1),
        QuantInit::UniformLinfOpt => Some(Norm::Linf),
        QuantInit::Uniform | QuantInit::PowerOfTwo => None,
    };
    let range = |values: &[f32]| match spacing {
        Spacing::Integers { .. } => spacing.multiples().and_then(|codes| match norm {
            Some(norm) => best_scale(values, norm, codes),
            None => Some(full_scale(&sides(values, codes)) as f32).filter(|&s| s >= ZERO),
        }),
        _ => {
            let magnitudes = Magnitudes::new(values);
            match norm {
                Some(norm) => {
                    magnitudes.fit(norm, spacing.num_levels()).map(|fit| fit.max_level as f32)
                }
                None => Some(magnitudes.max()).filter(|&max| max >= ZERO),
            }
        }
    };
    let range = |values: &[f32]| range(values).unwrap_or_else(|| range_of_zeros(spacing));
    by_channel(name, weight, per_channel, range)
}

/// The ranges of least squared error, for any levels: one, or one per output channel.
///
/// # Shapes
/// - `weight`: `[c_out, ...]`, f32, any memory format and device
///
/// # Errors
/// If the tensor is empty, or holds NaN or infinity; the message names it.
pub fn least_error(
    name: &str,
    weight: &Tensor,
    spacing: &Spacing,
    per_channel: bool,
) -> Result<Vec<f32>> {
    let init = match spacing {
        Spacing::Uniform { .. } => QuantInit::UniformL2Opt,
        Spacing::PowerOfTwo { .. } => QuantInit::PowerOfTwo,
        Spacing::Integers { .. } | Spacing::Shaped(_) => {
            let zeros = range_of_zeros(spacing);
            let best = |values: &[f32]| match spacing.multiples() {
                Some(codes) => best_step(values, codes).unwrap_or(zeros),
                None => Sorted::new(values).fit(spacing).map_or(zeros, |fit| fit.max_level as f32),
            };
            return by_channel(name, weight, per_channel, best);
        }
    };
    ranges_by(name, weight, init, spacing, per_channel)
}

/// Sorted values with prefix sums, for levels of any shape.
struct Sorted {
    values: Vec<f32>,
    sum: Vec<f64>,
    sum_squares: Vec<f64>,
}

impl Sorted {
    fn new(values: &[f32]) -> Self {
        let mut values = values.to_vec();
        values.par_sort_unstable_by(f32::total_cmp);
        let sums = |of: fn(f64) -> f64| {
            let running = values.iter().scan(0.0, |sum, &v| {
                *sum += of(f64::from(v));
                Some(*sum)
            });
            [0.0].into_iter().chain(running).collect()
        };
        let (sum, sum_squares) = (sums(|v| v), sums(|v| v * v));
        Self { values, sum, sum_squares }
    }

    /// The range of smallest squared error; in [`Fit::max_level`] stands the range.
    fn fit(&self, spacing: &Spacing) -> Option<Fit> {
        let ends = [self.values.first(), self.values.last()];
        let max = ends.into_iter().flatten().fold(0.0f32, |max, v| max.max(v.abs()));
        let unit = spacing.levels(1.0).into_iter().fold(0.0f32, |max, v| max.max(v.abs()));
        search(max / unit, &|range| self.loss(&spacing.levels(range as f32)))
    }

    /// The root of the summed squared distances to the nearest of `levels`.
    fn loss(&self, levels: &[f32]) -> f64 {
        let mut total = 0.0;
        let mut start = 0;
        for (i, &level) in levels.iter().enumerate() {
            let level = f64::from(level);
            let end = match levels.get(i + 1) {
                Some(&next) => {
                    let middle = (level + f64::from(next)) / 2.0;
                    start + self.values[start..].partition_point(|&v| f64::from(v) <= middle)
                }
                None => self.values.len(),
            };
            let sum = self.sum[end] - self.sum[start];
            let squares = self.sum_squares[end] - self.sum_squares[start];
            total += squares - level * (2.0 * sum - level * (end - start) as f64);
            start = end;
        }
        total.max(0.0).sqrt()
    }
}

/// `of` the values of a tensor, or of each of its channels.
///
/// # Errors
/// If the tensor is empty, or holds NaN or infinity; the message names it.
pub(crate) fn by_channel(
    name: &str,
    weight: &Tensor,
    per_channel: bool,
    of: impl Fn(&[f32]) -> f32 + Sync + Send,
) -> Result<Vec<f32>> {
    ensure_finite(name, weight)?;
    ensure!(weight.numel() > 0, "{name} has no values to quantize");
    let flat = weight.detach().reshape([-1]).to_device(Device::Cpu).to_kind(Kind::Float);
    let values: Vec<f32> = Vec::try_from(&flat).with_context(|| format!("reading {name}"))?;
    Ok(if per_channel {
        let per_channel = values.len() / weight.size()[0] as usize;
        values.par_chunks(per_channel).map(of).collect()
    } else {
        vec![of(&values)]
    })
}

/// The range of values that are all zero: 1 where 0 is a level, else 1e-6.
pub(crate) fn range_of_zeros(spacing: &Spacing) -> f32 {
    if spacing.codes().contains(&0) { 1.0 } else { GRID_MIN as f32 }
}

/// Refuses NaN and infinity.
///
/// # Errors
/// Names the tensor and its first bad value.
pub(crate) fn ensure_finite(name: &str, x: &Tensor) -> Result<()> {
    let finite = x.detach().isfinite();
    if bool::try_from(finite.all())? {
        return Ok(());
    }
    let flat = x.detach().reshape([-1]);
    let index = finite.logical_not().reshape([-1]).nonzero().int64_value(&[0, 0]);
    anyhow::bail!(
        "{name} holds {} at index {index}: a tensor with values that are not finite cannot be \
         quantized",
        flat.double_value(&[index])
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::CodeRange;
    use crate::quant::levels::Grid;
    use crate::quant::testing::weights;

    const NORMS: [Norm; 3] = [Norm::L1, Norm::L2, Norm::Linf];

    fn values(seed: u64, count: i64) -> Vec<f32> {
        Vec::try_from(&weights(seed, &[count])).unwrap()
    }

    /// The loss by its definition.
    fn plain_loss(values: &[f32], norm: Norm, num_levels: u32, scale: f64) -> f64 {
        let level = |i: u32| scale * (2.0 * f64::from(i) / f64::from(num_levels - 1) - 1.0);
        let distance = |v: f32| {
            let distances = (0..num_levels).map(|i| (f64::from(v) - level(i)).abs());
            distances.fold(f64::INFINITY, f64::min)
        };
        let distances = values.iter().map(|&v| distance(v));
        match norm {
            Norm::L1 => distances.sum(),
            Norm::L2 => distances.map(|d| d * d).sum::<f64>().sqrt(),
            Norm::Linf => distances.fold(0.0, f64::max),
        }
    }

    #[test]
    fn the_fast_loss_is_the_plain_one() {
        let values = values(1, 300);
        let magnitudes = Magnitudes::new(&values);
        for norm in NORMS {
            for num_levels in [2, 3, 4, 15, 16, 255, 256] {
                for scale in [1e-6, 0.1, 0.5, 1.0, 3.0] {
                    let expected = plain_loss(&values, norm, num_levels, scale);
                    let loss = magnitudes.loss(norm, num_levels, scale);
                    let at = format!("{norm:?}, {num_levels} levels, s {scale}: {loss} {expected}");
                    assert!((loss - expected).abs() <= 1e-9 * expected.max(1e-3), "{at}");
                    let levels = Positive::new(num_levels, scale);
                    let by_level = magnitudes.loss_by_level(norm, levels);
                    let by_value = magnitudes.loss_by_value(norm, levels);
                    // squares of L2 are summed as differences of sums over all values
                    assert!((by_level - by_value).abs() <= 1e-9 * by_value.max(1e-3), "{at}");
                }
            }
        }
    }

    #[test]
    fn no_scale_of_a_fine_search_is_better() {
        let values = values(2, 200);
        let magnitudes = Magnitudes::new(&values);
        for norm in NORMS {
            for num_levels in [2, 3, 4, 7, 15] {
                let fit = magnitudes.fit(norm, num_levels).unwrap();
                let max = f64::from(magnitudes.max());
                let loss = |i: i32| magnitudes.loss(norm, num_levels, f64::from(i) * 1e-5 * max);
                let best = (1..200_000).map(loss).fold(f64::INFINITY, f64::min);
                assert!(fit.loss <= best * (1.0 + 1e-4), "{norm:?} {num_levels}: {fit:?} {best}");
                assert_eq!(fit.loss, magnitudes.loss(norm, num_levels, fit.max_level));
            }
        }
    }

    #[test]
    fn outliers_may_take_the_largest_level_beyond_them() {
        // 15 levels above 0: with a largest level of 1.125, and so a scale of 0.075, every outlier is a level
        let mut values = vec![0.001f32; 200];
        values.extend([0.75, 1.05, -0.75, -1.05, 0.15, 0.3]);
        let fit = Magnitudes::new(&values).fit(Norm::L2, 31).unwrap();
        let at_max = Magnitudes::new(&values).loss(Norm::L2, 31, 1.05);
        assert!((fit.max_level - 1.125).abs() < 1e-5, "{fit:?}");
        assert!(fit.loss < at_max && fit.loss < 0.0142, "{fit:?} {at_max}");
    }

    /// Evenly spaced levels as a shape of their own.
    #[derive(Debug)]
    struct Seven;

    impl crate::quant::LevelShape for Seven {
        fn levels(&self, range: f32) -> Vec<f32> {
            Spacing::Uniform { num_levels: 7 }.levels(range)
        }
    }

    #[test]
    fn levels_of_any_shape_get_the_range_of_least_error() {
        let w = weights(6, &[5, 4, 3, 3]);
        let even = Spacing::Uniform { num_levels: 7 };
        for per_channel in [false, true] {
            let expected = least_error("w", &w, &even, per_channel).unwrap();
            let found = least_error("w", &w, &Spacing::shaped(Seven), per_channel).unwrap();
            for (found, expected) in found.into_iter().zip(expected) {
                assert!((found / expected - 1.0).abs() < 1e-4, "{found} {expected}");
            }
        }
    }

    #[test]
    fn two_levels_lie_at_the_mean_magnitude_or_the_median() {
        let magnitudes = Magnitudes::new(&[0.1, -0.2, 0.3, -0.8, 0.9]);
        let scale = |norm| magnitudes.fit(norm, 2).unwrap().max_level;
        assert!((scale(Norm::L2) - 0.46).abs() < 1e-4);
        assert!((scale(Norm::L1) - 0.3).abs() < 1e-4);
        assert!((scale(Norm::Linf) - 0.5).abs() < 1e-4);
    }

    /// The norm of the distances to the nearest of `codes` times `scale`, value by value.
    fn loss_of_codes(values: &[f32], codes: Codes, scale: f64, norm: Norm) -> f64 {
        let levels: Vec<f64> =
            (codes.lowest..=codes.highest).map(|code| f64::from(code) * scale).collect();
        let distances = values.iter().map(|&v| {
            let distance = |level: &f64| (f64::from(v) - level).abs();
            levels.iter().map(distance).fold(f64::INFINITY, f64::min)
        });
        match norm {
            Norm::L1 => distances.sum(),
            Norm::L2 => distances.map(|d| d * d).sum::<f64>().sqrt(),
            Norm::Linf => distances.fold(0.0, f64::max),
        }
    }

    #[test]
    fn the_scale_of_an_even_number_of_levels_is_that_of_a_brute_force_search() {
        let inits = [
            (QuantInit::UniformL2Opt, Norm::L2),
            (QuantInit::UniformL1Opt, Norm::L1),
            (QuantInit::UniformLinfOpt, Norm::Linf),
        ];
        for (seed, bits) in [(1, 2), (2, 3), (3, 4)] {
            // more and larger positive values than negative ones: the grid is not symmetric, nor need values be
            let values: Vec<f32> = values(seed, 300).iter().map(|v| v + 0.1).collect();
            let w = Tensor::from_slice(&values);
            let spacing = Spacing::integers(Some(bits), None, CodeRange::Full).unwrap();
            let codes = spacing.multiples().unwrap();
            let largest = f64::from(values.iter().fold(0.0f32, |max, v| max.max(v.abs())));
            for (init, norm) in inits {
                let found = f64::from(ranges("w", &w, init, &spacing).unwrap()[0]);
                let found = loss_of_codes(&values, codes, found, norm);
                let highest = 2.0 * largest / f64::from(codes.highest);
                let brute = (1..=20_000)
                    .map(|i| loss_of_codes(&values, codes, highest * f64::from(i) / 20_000.0, norm))
                    .fold(f64::INFINITY, f64::min);
                assert!(found <= brute * 1.001, "{init:?} {bits} bits: {found} {brute}");
            }
            // of the plain method: nothing is clipped, and one value lies on an outermost level
            let scale = ranges("w", &w, QuantInit::Uniform, &spacing).unwrap()[0];
            let above = values.iter().fold(0.0f32, |max, &v| max.max(v)) / codes.highest as f32;
            let below = values.iter().fold(0.0f32, |max, &v| max.max(-v)) / -codes.lowest as f32;
            assert_eq!(scale, above.max(below));
        }
    }

    #[test]
    fn weights_that_lie_on_a_grid_get_that_grid() {
        let grid = Grid::new(Spacing::Uniform { num_levels: 15 }, vec![0.8]).unwrap();
        let w = grid.nearest(&weights(3, &[16, 8, 3, 3])).unwrap();
        let spacing = Spacing::Uniform { num_levels: 15 };
        let found = ranges("w", &w, QuantInit::UniformL2Opt, &spacing).unwrap();
        assert!(found.len() == 1 && (f64::from(found[0]) - 0.8).abs() < 1e-5, "{found:?}");
    }

    #[test]
    fn the_largest_magnitude_is_the_scale_of_plain_and_power_of_two_levels() {
        let w = Tensor::from_slice(&[0.2f32, -0.7, 0.1]);
        for (init, spacing) in [
            (QuantInit::Uniform, Spacing::Uniform { num_levels: 7 }),
            (QuantInit::PowerOfTwo, Spacing::PowerOfTwo { num_exponents: 3 }),
        ] {
            assert_eq!(ranges("w", &w, init, &spacing).unwrap(), [0.7]);
        }
    }

    #[test]
    fn each_channel_gets_the_scale_it_would_get_alone() {
        let w = weights(4, &[5, 4, 3, 3]);
        let spacing = Spacing::Uniform { num_levels: 7 };
        let all = ranges("w", &w, QuantInit::UniformL2OptPerChannel, &spacing).unwrap();
        assert_eq!(all.len(), 5);
        for (channel, &scale) in all.iter().enumerate() {
            let alone = w.get(channel as i64);
            assert_eq!(ranges("w", &alone, QuantInit::UniformL2Opt, &spacing).unwrap(), [scale]);
        }
    }

    #[test]
    fn zeros_stay_zero_or_nearly_so() {
        let zeros = Tensor::zeros([2, 3, 1, 1], (Kind::Float, Device::Cpu));
        let scale =
            |init, num_levels| ranges("w", &zeros, init, &Spacing::Uniform { num_levels }).unwrap();
        for init in [QuantInit::UniformL1Opt, QuantInit::UniformL2Opt, QuantInit::UniformLinfOpt] {
            assert_eq!(scale(init, 15), [1.0]);
            assert_eq!(scale(init, 4), [1e-6]);
        }
        assert_eq!(scale(QuantInit::Uniform, 15), [1.0]);
        assert_eq!(scale(QuantInit::UniformL2OptPerChannel, 15), [1.0, 1.0]);
    }

    #[test]
    fn very_small_and_large_weights_have_a_scale_in_proportion() {
        let values = values(5, 500);
        let scale = |factor: f32| {
            let scaled: Vec<f32> = values.iter().map(|v| v * factor).collect();
            Magnitudes::new(&scaled).fit(Norm::L2, 7).unwrap().max_level / f64::from(factor)
        };
        for factor in [1e-20, 1e-7, 1e4, 1e18] {
            assert!((scale(factor) / scale(1.0) - 1.0).abs() < 1e-3, "{factor}");
        }
    }

    #[test]
    fn a_weight_that_is_not_finite_is_named() {
        for bad in [f32::NAN, f32::INFINITY] {
            let w = Tensor::from_slice(&[0.1, 0.2, bad, bad]).reshape([2, 2]);
            let spacing = Spacing::Uniform { num_levels: 3 };
            let error = ranges("fpn.a.weight", &w, QuantInit::UniformL2Opt, &spacing).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("fpn.a.weight") && text.contains("index 2"), "{text}");
        }
        let empty = Tensor::zeros([0, 3], (Kind::Float, Device::Cpu));
        let spacing = Spacing::Uniform { num_levels: 3 };
        assert!(ranges("w", &empty, QuantInit::Uniform, &spacing).is_err());
    }
}
