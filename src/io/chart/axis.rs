//! Ranges and ticks of an axis.

/// A labelled place on an axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tick {
    /// Where, in the axis's own terms (the logarithm on a logarithmic axis).
    pub value: f64,
    pub label: String,
}

/// What an axis covers; on a logarithmic one all values are decimal logarithms.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    pub low: f64,
    pub high: f64,
    pub ticks: Vec<Tick>,
}

impl Axis {
    /// Covers `values` with about seven round ticks. With `to_ticks` it begins and ends at a tick, and at 0 if
    /// that is not far off; else a little beside the outermost values.
    pub(super) fn linear(values: impl Iterator<Item = f64>, to_ticks: bool) -> Self {
        let mut all_whole = true;
        let values = values.inspect(|v| all_whole &= v.fract() == 0.0);
        let (mut low, mut high) = range(values).unwrap_or((0.0, 1.0));
        if to_ticks && low > 0.0 && low < 0.5 * high {
            low = 0.0;
        }
        if high - low <= 1e-9 * low.abs().max(high.abs()) {
            let margin = if low == 0.0 { 1.0 } else { 0.1 * low.abs() };
            (low, high) = (low - margin, high + margin);
        }
        let mut step = round_step((high - low) / 6.0);
        if all_whole && !to_ticks {
            step = step.max(1.0);
        }
        if to_ticks {
            // A hair of tolerance, so that 0.3 / 0.1 does not add a tick.
            low = (low / step + 1e-6).floor() * step;
            high = (high / step - 1e-6).ceil() * step;
        } else {
            let margin = 0.025 * (high - low);
            (low, high) = (low - margin, high + margin);
        }
        let first = (low / step - 1e-6).ceil() as i64;
        let last = (high / step + 1e-6).floor() as i64;
        let tick = |i: i64| Tick { value: i as f64 * step, label: label(i as f64 * step, step) };
        Self { low, high, ticks: (first..=last).map(tick).collect() }
    }

    /// Covers decimal logarithms with ticks at 1, 2 and 5 of each decade, or at the decades alone if they are
    /// many.
    pub(super) fn logarithmic(logarithms: impl Iterator<Item = f64>) -> Self {
        let (low, high) = range(logarithms).unwrap_or((0.0, 1.0));
        let num_decades = high - low;
        let digits: &[f64] = if num_decades <= 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let every = (num_decades / 8.0).ceil().max(1.0) as i32;
        let decades = (low.floor() as i32..=high.floor() as i32 + 1).filter(|d| d % every == 0);
        let candidates: Vec<(f64, f64)> = decades
            .flat_map(|d| {
                digits.iter().map(move |m| (f64::from(d) + m.log10(), m * 10_f64.powi(d)))
            })
            .collect();
        let places = || candidates.iter().map(|c| c.0);
        let low_tick = places().filter(|&v| v <= low + 1e-9).reduce(f64::max).unwrap_or(low);
        let beyond = places().filter(|&v| v >= high - 1e-9 && v > low_tick);
        let high_tick = beyond.reduce(f64::min).unwrap_or(high.max(low_tick + 1.0));
        let shown = |v: f64| (low_tick - 1e-9..=high_tick + 1e-9).contains(&v);
        let ticks = candidates.iter().filter(|(at, _)| shown(*at));
        let ticks = ticks.map(|&(at, value)| Tick { value: at, label: label(value, value) });
        Self { low: low_tick, high: high_tick, ticks: ticks.collect() }
    }

    /// How far along the axis a value lies, 0..=1.
    pub(super) fn share(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

fn range(values: impl Iterator<Item = f64>) -> Option<(f64, f64)> {
    values.fold(None, |range, v| {
        let (low, high) = range.unwrap_or((v, v));
        Some((low.min(v), high.max(v)))
    })
}

/// The smallest of 1, 2, 2.5, 5 times a power of ten that is at least `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10_f64.powf(step.log10().floor());
    let multiple = [1.0, 2.0, 2.5, 5.0].into_iter().find(|m| m * decade >= step * (1.0 - 1e-9));
    multiple.unwrap_or(10.0) * decade
}

/// `value` with the digits that a multiple of `step` needs.
fn label(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".to_owned();
    }
    if value.abs() >= 1e6 || value.abs() < 1e-4 {
        return format!("{value:.1e}").replace(".0e", "e");
    }
    let num_decimals = (0..9).find(|&n| {
        let shifted = step * 10_f64.powi(n);
        (shifted - shifted.round()).abs() < 1e-6 * shifted.max(1.0)
    });
    format!("{value:.*}", num_decimals.unwrap_or(9) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(axis: &Axis) -> Vec<&str> {
        axis.ticks.iter().map(|tick| tick.label.as_str()).collect()
    }

    #[test]
    fn a_linear_axis_ends_at_round_ticks() {
        let axis = Axis::linear([3.0, 97.0].into_iter(), true);
        assert_eq!(labels(&axis), ["0", "20", "40", "60", "80", "100"]);
        assert_eq!((axis.low, axis.high), (0.0, 100.0));
        let axis = Axis::linear([0.91, 0.94].into_iter(), true);
        assert_eq!(labels(&axis), ["0.910", "0.915", "0.920", "0.925", "0.930", "0.935", "0.940"]);
        assert_eq!(
            labels(&Axis::linear([-1.0, 1.0].into_iter(), true)),
            ["-1.0", "-0.5", "0", "0.5", "1.0"]
        );
    }

    #[test]
    fn whole_values_get_whole_ticks() {
        assert_eq!(labels(&Axis::linear([0.0, 1.0, 3.0].into_iter(), false)), ["0", "1", "2", "3"]);
    }

    #[test]
    fn one_value_and_none_make_an_axis_too() {
        for values in [vec![], vec![0.0], vec![5.0], vec![-1e-9]] {
            for to_ticks in [false, true] {
                let axis = Axis::linear(values.iter().copied(), to_ticks);
                assert!(axis.low < axis.high && !axis.ticks.is_empty(), "{values:?}: {axis:?}");
                assert!(values.iter().all(|&v| (0.0..=1.0).contains(&axis.share(v))), "{axis:?}");
            }
            let axis = Axis::logarithmic(values.iter().copied());
            assert!(axis.low < axis.high && !axis.ticks.is_empty(), "{values:?}: {axis:?}");
        }
    }

    #[test]
    fn a_logarithmic_axis_has_one_two_five_or_decades() {
        let logarithms = |values: [f64; 2]| Axis::logarithmic(values.into_iter().map(f64::log10));
        assert_eq!(labels(&logarithms([0.3, 12.0])), ["0.2", "0.5", "1", "2", "5", "10", "20"]);
        assert_eq!(
            labels(&logarithms([1e-3, 900.0])),
            ["0.001", "0.01", "0.1", "1", "10", "100", "1000"]
        );
        assert_eq!(labels(&logarithms([1e-12, 1e6])).len(), 7); // every third decade
    }
}
