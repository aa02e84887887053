//! Ranges of a graph's values from images: smallest and largest, percentiles, or least squared rounding error.

use std::str::FromStr;

use anyhow::{Result, ensure};
use rayon::prelude::*;
use tch::{Kind, Tensor};

use super::graph::{Graph, Op};
use super::plan::{Found, GraphPlan, QParams, Wanted};
use super::reference::Reference;
use crate::nn::{Function, LEAKY_SLOPE};

/// Bins of a histogram.
const NUM_BINS: usize = 2048;
/// Ends of the range that the search for the least error tries on each side, as fractions of the largest value: all of it
/// down to 2 %, by equal factors.
const NUM_FRACTIONS: i32 = 40;
const SMALLEST_FRACTION: f64 = 0.02;

/// How ranges are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum CalibrationMethod {
    /// From the smallest to the largest value seen.
    MinMax,
    /// So that this percentage of the values lies below the upper end, and as much above the lower one.
    Percentile(f64),
    /// So that the squared error of rounding is least.
    Mse,
}

impl FromStr for CalibrationMethod {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "minmax" => Ok(Self::MinMax),
            "percentile" => Ok(Self::default()),
            "mse" => Ok(Self::Mse),
            _ => Err(format!("{text:?} is not a method, expected minmax, percentile or mse")),
        }
    }
}

impl Default for CalibrationMethod {
    /// Enough to leave single outliers out. Cutting more costs accuracy: large values are rare and carry the object.
    fn default() -> Self {
        Self::Percentile(99.999)
    }
}

/// What calibration is to find.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Calibration {
    /// How.
    pub method: CalibrationMethod,
    /// Bits of a value, 2 to 8.
    pub bits: u32,
    /// Signed integers around 0.
    pub symmetric: bool,
}

/// The rounding of the wanted values. `pass` hands over all images, batch by batch, each time it is called (once for
/// [`CalibrationMethod::MinMax`], else twice); `trained` is the rounding that already exists. Channels of their own take their whole
/// range.
///
/// # Errors
/// If images have another size than the graph, there are none, or a value is not finite.
pub fn calibrate(
    graph: &Graph,
    trained: &GraphPlan,
    wanted: &Wanted,
    calibration: Calibration,
    mut pass: impl FnMut(&mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()>,
) -> Result<Found> {
    let reference = Reference::new(graph);
    let num_channels = |node: usize| graph.nodes[node].shape[0] as usize;
    // 0 is always a value: of the padding.
    let mut ranges = vec![(0.0f32, 0.0f32); graph.nodes.len()];
    let mut channel_ranges: Vec<Vec<(f32, f32)>> = (wanted.channels.iter().enumerate())
        .map(|(i, wanted)| vec![(0.0, 0.0); if *wanted { num_channels(i) } else { 0 }])
        .collect();
    let mut num_images = 0;
    pass(&mut |images| {
        num_images += images.size()[0];
        reference.run(images, Some(trained), |node, x| {
            if wanted.values[node] {
                let (low, high) = (x.min().double_value(&[]), x.max().double_value(&[]));
                widen(&mut ranges[node], low as f32, high as f32);
            }
            if wanted.channels[node] {
                let ends = [x.amin([0, 2, 3], false), x.amax([0, 2, 3], false)];
                let [low, high] = ends.map(|t| Vec::<f32>::try_from(t).unwrap_or_default());
                for (range, (low, high)) in
                    channel_ranges[node].iter_mut().zip(low.into_iter().zip(high))
                {
                    widen(range, low, high);
                }
            }
        })?;
        Ok(())
    })?;
    ensure!(num_images > 0, "there are no images to calibrate with");
    for (node, (range, channels)) in graph.nodes.iter().zip(ranges.iter().zip(&channel_ranges)) {
        let finite =
            channels.iter().chain([range]).all(|(low, high)| low.is_finite() && high.is_finite());
        ensure!(finite, "the values of {} are not finite", node.name);
    }
    if calibration.method != CalibrationMethod::MinMax {
        let mut histograms: Vec<Vec<u64>> = wanted
            .values
            .iter()
            .map(|wanted| if *wanted { vec![0; NUM_BINS] } else { vec![] })
            .collect();
        pass(&mut |images| {
            reference.run(images, Some(trained), |node, x| {
                if wanted.values[node] {
                    count(&mut histograms[node], x, ranges[node]);
                }
            })?;
            Ok(())
        })?;
        let errors = error_weights(graph);
        ranges = (ranges.par_iter().zip(&histograms).zip(&errors))
            .map(|((&range, histogram), &below_zero)| match calibration.method {
                _ if histogram.is_empty() || range.0 == range.1 => range,
                CalibrationMethod::Percentile(percent) => {
                    let (low, high) = percentile(histogram, range, percent);
                    (low, if keeps_high(calibration) { range.1 } else { high })
                }
                _ => least_error(histogram, range, calibration, below_zero),
            })
            .collect();
    }
    let of_bits =
        |(low, high): (f32, f32), bits| QParams::over(low, high, bits, calibration.symmetric);
    let values = wanted.values.iter().zip(ranges);
    let channels = wanted.channels.iter().zip(channel_ranges);
    Ok(Found {
        values: values
            .map(|(wanted, range)| wanted.then(|| of_bits(range, calibration.bits)))
            .collect(),
        channels: channels
            // No convolution reads them: fewer bits would help no kernel.
            .map(|(wanted, ranges)| {
                wanted.then(|| ranges.into_iter().map(|r| of_bits(r, 8)).collect())
            })
            .collect(),
    })
}

/// Widens a range; to NaN where an end is not finite.
fn widen(range: &mut (f32, f32), low: f32, high: f32) {
    *range = (range.0.min(low), range.1.max(high));
    if !(low.is_finite() && high.is_finite()) {
        *range = (f32::NAN, f32::NAN);
    }
}

/// Whether the upper end is that of the largest value: bytes of fewer bits have no end of their own there, and a larger
/// integer would lose what fewer bits are for, sums of products that fit 16 bits.
fn keeps_high(calibration: Calibration) -> bool {
    calibration.bits < 8 && !calibration.symmetric
}

/// What an error below zero becomes, by node: a leaky ReLU that follows makes it a tenth.
fn error_weights(graph: &Graph) -> Vec<f64> {
    let mut weights = vec![1.0; graph.nodes.len()];
    for node in &graph.nodes {
        match node.op {
            Op::Function(Function::LeakyRelu) => weights[node.inputs[0]] = LEAKY_SLOPE,
            Op::Function(Function::Relu) => weights[node.inputs[0]] = 0.0,
            _ => {}
        }
    }
    // A value that is read by others too counts in full.
    let mut num_readers = vec![0; graph.nodes.len()];
    for node in &graph.nodes {
        node.inputs.iter().for_each(|&x| num_readers[x] += 1);
    }
    let full = |(weight, readers): (f64, usize)| if readers > 1 { 1.0 } else { weight };
    weights.into_iter().zip(num_readers).map(full).collect()
}

/// Adds the values to a histogram over `range`.
fn count(histogram: &mut [u64], x: &Tensor, (low, high): (f32, f32)) {
    let values = Vec::<f32>::try_from(x.to_kind(Kind::Float).contiguous().view([-1]));
    let Ok(values) = values else { return };
    let per_value = NUM_BINS as f32 / (high - low).max(f32::MIN_POSITIVE);
    let partial = |chunk: &[f32]| {
        let mut counts = vec![0u32; NUM_BINS];
        for v in chunk {
            counts[(((v - low) * per_value) as usize).min(NUM_BINS - 1)] += 1;
        }
        counts
    };
    let parts: Vec<Vec<u32>> = values.par_chunks(1 << 18).map(partial).collect();
    for part in parts {
        histogram.iter_mut().zip(part).for_each(|(sum, n)| *sum += u64::from(n));
    }
}

/// The middle of a bin.
fn middle(bin: usize, (low, high): (f32, f32)) -> f64 {
    f64::from(low) + (bin as f64 + 0.5) * f64::from(high - low) / NUM_BINS as f64
}

fn percentile(histogram: &[u64], range: (f32, f32), percent: f64) -> (f32, f32) {
    let total: u64 = histogram.iter().sum();
    let beyond = (total as f64 * (1.0 - percent / 100.0)) as u64;
    let width = f64::from(range.1 - range.0) / NUM_BINS as f64;
    let cut = || {
        let mut passed = 0;
        move |(bin, n): (usize, &u64)| {
            passed += n;
            (passed > beyond).then_some(bin)
        }
    };
    let first = histogram.iter().enumerate().find_map(cut());
    let last = histogram.iter().enumerate().rev().find_map(cut());
    let low = first.map_or(range.0, |bin| (middle(bin, range) - width / 2.0) as f32);
    let high = last.map_or(range.1, |bin| (middle(bin, range) + width / 2.0) as f32);
    (low.min(0.0), high.max(0.0))
}

/// Tries ends of both sides; an error below zero is multiplied by `below_zero`.
fn least_error(
    histogram: &[u64],
    range: (f32, f32),
    calibration: Calibration,
    below_zero: f64,
) -> (f32, f32) {
    let counts: Vec<(f64, f64)> = histogram
        .iter()
        .enumerate()
        .filter(|(_, n)| **n > 0)
        .map(|(bin, n)| {
            let x = middle(bin, range);
            (x, *n as f64 * if x < 0.0 { below_zero * below_zero } else { 1.0 })
        })
        .collect();
    let fractions: Vec<f64> = (0..NUM_FRACTIONS)
        .map(|i| SMALLEST_FRACTION.powf(f64::from(i) / f64::from(NUM_FRACTIONS - 1)))
        .collect();
    let error = |low: f32, high: f32| {
        let p = QParams::over(low, high, calibration.bits, calibration.symmetric);
        let top: i32 = (1 << calibration.bits) - 1;
        let (min, max) = if calibration.symmetric { (-(top / 2), top / 2) } else { (0, top) };
        let (scale, zero) = (f64::from(p.scale), f64::from(p.zero_point));
        let (min, max) = (f64::from(min) - zero, f64::from(max) - zero);
        let inverse = 1.0 / scale;
        let squared = |&(x, n): &(f64, f64)| {
            let diff = x - (x * inverse).round_ties_even().clamp(min, max) * scale;
            n * diff * diff
        };
        counts.iter().map(squared).sum::<f64>()
    };
    if calibration.symmetric {
        let least = least(&fractions, |s| {
            error((f64::from(range.0) * s) as f32, (f64::from(range.1) * s) as f32)
        });
        let fraction = least.unwrap_or(1.0);
        return ((f64::from(range.0) * fraction) as f32, (f64::from(range.1) * fraction) as f32);
    }
    let ends = |end: f32| -> Vec<f32> {
        if end == 0.0 {
            vec![0.0]
        } else {
            fractions.iter().map(|s| (f64::from(end) * s) as f32).collect()
        }
    };
    let highs = if keeps_high(calibration) { vec![range.1] } else { ends(range.1) };
    let lows = ends(range.0);
    // One side after the other, twice: the sides hardly depend on each other.
    let (mut low, mut high) = range;
    for _ in 0..2 {
        high = least(&highs, |&high| error(low, high)).unwrap_or(high);
        low = least(&lows, |&low| error(low, high)).unwrap_or(low);
    }
    (low, high)
}

fn least<T: Copy>(values: &[T], error: impl Fn(&T) -> f64) -> Option<T> {
    let all = values.iter().map(|v| (*v, error(v)));
    all.min_by(|a, b| a.1.total_cmp(&b.1)).map(|(v, _)| v)
}

#[cfg(test)]
mod tests {
    use super::*;

    const EIGHT: Calibration =
        Calibration { method: CalibrationMethod::Mse, bits: 8, symmetric: false };

    /// A thousand values in 0..1 and one of 100.
    fn with_outlier() -> (Vec<u64>, (f32, f32)) {
        let mut values: Vec<f32> = (0..100_000).map(|i| i as f32 / 100_000.0).collect();
        values.push(100.0);
        let range = (0.0, 100.0);
        let mut histogram = vec![0; NUM_BINS];
        count(&mut histogram, &Tensor::from_slice(&values), range);
        (histogram, range)
    }

    #[test]
    fn percentiles_leave_outliers_out() {
        let (histogram, range) = with_outlier();
        assert_eq!(histogram.iter().sum::<u64>(), 100_001);
        let (low, high) = percentile(&histogram, range, 99.99);
        assert!(low == 0.0 && (0.95..1.1).contains(&high), "{low} {high}");
        assert_eq!(percentile(&histogram, range, 100.0).1, 100.0);
    }

    #[test]
    fn the_least_error_weighs_clipping_against_steps() {
        let (histogram, range) = with_outlier();
        // One value in 100,000 at 100: clipping it to 50 costs more than the coarser steps of the others.
        let (_, high) = least_error(&histogram, range, EIGHT, 1.0);
        assert!(high > 50.0, "{high}");
        let mut normal: Vec<f32> =
            (1..2000).map(|i| ((i as f32) / 1000.0 - 1.0).powi(5) * 4.0).collect();
        normal.push(4.0);
        let (range, mut histogram) = ((-4.0, 4.0), vec![0; NUM_BINS]);
        count(&mut histogram, &Tensor::from_slice(&normal), range);
        // Around 0 both ends move together, and few steps are worth clipping.
        let signed = Calibration { bits: 2, symmetric: true, ..EIGHT };
        let (low, high) = least_error(&histogram, range, signed, 1.0);
        assert!(low == -high && high < 4.0, "{low} {high}");
        // Bytes of fewer bits keep the largest value; errors below zero that hardly count let the lower end move in.
        let few = Calibration { bits: 4, ..EIGHT };
        let (low, high) = least_error(&histogram, range, few, 1.0);
        let (leaky, _) = least_error(&histogram, range, few, 0.1);
        assert!(high == 4.0 && leaky > low, "{leaky} {low} {high}");
    }
}
