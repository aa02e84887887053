//! Networks compared on the same objects: exact McNemar test, bootstrap over sequences and runs, Holm's adjustment.
//!
//! Images of a sequence are alike, so the unit that is drawn again is the sequence ([`Sequences`]), never the image.

use anyhow::{Result, ensure};
use rand::Rng;
use serde::{Deserialize, Serialize};

use super::sequences::{Sequences, variance_of_mean_over};
use super::student;
use crate::seed;

/// Draws of the bootstrap.
pub const NUM_DRAWS: usize = 10_000;
/// Below so many sequences a bootstrap's percentiles are too near each other.
pub const FEW_SEQUENCES: usize = 20;
/// Place of its random stream.
const STREAM: u64 = 0x7061_6972;

/// The same objects, right or wrong in each run (another seed) of two configurations.
#[derive(Debug, Clone, Copy)]
pub struct Paired<'a> {
    /// Runs of the configuration that is compared; each has one value an object.
    pub row: &'a [&'a [bool]],
    /// Runs of the one it is compared with.
    pub base: &'a [&'a [bool]],
    /// Whether run `i` of both has the same seed, for all runs of both: then runs are drawn in pairs.
    pub same_seeds: bool,
}

/// A difference of percentages, row minus base, with what a bootstrap says of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Percentage points: mean over the row's runs minus mean over the base's.
    pub percent: f64,
    /// Its standard error (standard deviation of the draws), percentage points.
    pub std_error: f64,
    /// 95 % interval (2.5 and 97.5 % quantiles of the draws, moved out for few runs), percentage points.
    pub interval_95: (f64, f64),
    /// Two-sided p: twice the fraction of these draws on the other side of 0, at least 2 / (draws + 1).
    pub p: f64,
}

/// Objects that one of two runs has right and the other wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discordant {
    /// Right in the row, wrong in the base.
    pub better: u64,
    /// Wrong in the row, right in the base.
    pub worse: u64,
}

impl Discordant {
    /// Counts them.
    ///
    /// # Errors
    /// If the runs have different numbers of objects.
    pub fn count(row: &[bool], base: &[bool]) -> Result<Self> {
        ensure!(
            row.len() == base.len(),
            "{} objects against {}, expected the same ones",
            row.len(),
            base.len()
        );
        let count = |r: bool| row.iter().zip(base).filter(|&(&a, &b)| a == r && b != r).count();
        Ok(Self { better: count(true) as u64, worse: count(false) as u64 })
    }

    /// McNemar's exact test: the two-sided p that both are equally likely; 1 where no object is discordant.
    ///
    /// # Source
    /// McNemar, *Note on the sampling error of the difference between correlated proportions*, Psychometrika 1947, in its
    /// exact binomial form.
    pub fn p(&self) -> f64 {
        let (n, few) = (self.better + self.worse, self.better.min(self.worse));
        let mut log_choose = 0.0;
        let mut tail = 0.0;
        for k in 0..=few {
            if k > 0 {
                log_choose += ((n - k + 1) as f64 / k as f64).ln();
            }
            tail += (log_choose - n as f64 * std::f64::consts::LN_2).exp();
        }
        (2.0 * tail).min(1.0)
    }
}

/// Holm's step-down adjustment of p values, in their order: rows below a level are together wrong with at most that
/// probability.
///
/// # Source
/// Holm, *A simple sequentially rejective multiple test procedure*, Scandinavian Journal of Statistics 1979.
pub fn holm(p: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p.len()).collect();
    order.sort_by(|&a, &b| p[a].total_cmp(&p[b]));
    let mut adjusted = vec![1.0; p.len()];
    let mut largest: f64 = 0.0;
    for (rank, &i) in order.iter().enumerate() {
        largest = largest.max(p[i] * (p.len() - rank) as f64).min(1.0);
        adjusted[i] = largest;
    }
    adjusted
}

/// The difference of two configurations with a bootstrap over sequences and runs.
///
/// Each draw takes as many sequences as there are, with replacement and with all their objects, and as many runs of each
/// side as it has (the same ones of both sides where `same_seeds`). How often a run is drawn is stretched about 1 by
/// sqrt(n / (n - 1)), since n runs drawn from n spread too little by that factor. For the interval and p the draws are moved
/// out from the difference as far as Student's quantiles lie beyond the normal ones, since few runs tell their own spread
/// badly; the degrees of freedom are Satterthwaite's, of the variance over sequences and that over runs. One run of a side
/// is no sample of runs and stays: the interval is then about that very network, not about what another seed would give.
/// The same `seed` draws the same sequences for every pair, so that swapping row and base negates the draws.
///
/// Simulated with 150 sequences of 13 objects, p below 0.05 of two networks that are equal but for their seeds: 1, 5 and 7 %
/// with 2 runs each that spread by 0.6, 1.1 and 2.1 points, 1, 3 and 5 % with 3 runs, 1, 2 and 4 % with 5 (26, 17 and
/// 12 % at 2.1 points without the two corrections). p below 0.005 at 2.1 points: 2.8, 1.0 and 0.5 %. Where single objects change
/// from run to run, whatever their sequence and run, that is counted with both, and intervals are wide.
///
/// # Errors
/// If a side has no run, runs have other numbers of objects than there are in `sequences`, or there is no object.
///
/// # Source
/// Efron, Tibshirani, *An introduction to the bootstrap*, 1993 (percentile interval); drawing two crossed factors:
/// Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 2007, whose variance is that of the plug-in estimate: wide in
/// what both factors share, narrow by (n - 1) / n in each of them.
pub fn bootstrap(paired: Paired, sequences: &Sequences, seed: u64) -> Result<Difference> {
    let sides = Sides::new(paired, sequences)?;
    let ones = vec![1.0; sequences.len()];
    let percent =
        sides.difference(&ones, &vec![1.0; sides.row.len()], &vec![1.0; sides.base.len()]);
    let mut rng = seed::stream(seed, &[STREAM]);
    let mut draws = Vec::with_capacity(NUM_DRAWS);
    for _ in 0..NUM_DRAWS {
        let w = multiplicities(&mut rng, sequences.len());
        // Drawn before the runs, so that a row's number of runs does not move the sequences of the same draw.
        let mut runs = seed::stream(rng.random(), &[STREAM]);
        let row_runs = run_weights(&mut runs, sides.row.len());
        let base_runs = match sides.joint {
            true => row_runs.clone(),
            false => run_weights(&mut runs, sides.base.len()),
        };
        draws.push(sides.difference(&w, &row_runs, &base_runs));
    }
    Ok(summary(percent, draws, sides.freedom()))
}

/// Right objects of both sides, by run and sequence.
struct Sides {
    row: Vec<Vec<f64>>,
    base: Vec<Vec<f64>>,
    /// Objects of each sequence.
    sizes: Vec<f64>,
    /// Whether runs are drawn in pairs.
    joint: bool,
}

impl Sides {
    fn new(paired: Paired, sequences: &Sequences) -> Result<Self> {
        let row = per_sequence(paired.row, sequences)?;
        let base = per_sequence(paired.base, sequences)?;
        let joint = paired.same_seeds && base.len() == row.len();
        Ok(Self { row, base, sizes: sequences.sizes(), joint })
    }

    /// Percentage points, with weights of sequences and of the runs of each side.
    fn difference(&self, w: &[f64], row_runs: &[f64], base_runs: &[f64]) -> f64 {
        let objects: f64 = w.iter().zip(&self.sizes).map(|(w, n)| w * n).sum();
        100.0 * (mean_right(&self.row, row_runs, w) - mean_right(&self.base, base_runs, w))
            / objects
    }

    /// Degrees of freedom of the difference's variance.
    fn freedom(&self) -> f64 {
        let objects: f64 = self.sizes.iter().sum();
        let percent = |right: &Vec<f64>| 100.0 * right.iter().sum::<f64>() / objects;
        let row: Vec<f64> = self.row.iter().map(percent).collect();
        let base: Vec<f64> = self.base.iter().map(percent).collect();
        let mut parts = vec![self.variance_over_sequences()];
        if self.joint {
            let differences: Vec<f64> = row.iter().zip(&base).map(|(r, b)| r - b).collect();
            parts.extend(variance_of_mean(&differences));
        } else {
            parts.extend(variance_of_mean(&row).into_iter().chain(variance_of_mean(&base)));
        }
        student::satterthwaite(&parts)
    }

    /// The variance of the difference over sequences, runs as they are, and its degrees of freedom.
    fn variance_over_sequences(&self) -> (f64, f64) {
        let of = |runs: &[Vec<f64>], s: usize| {
            runs.iter().map(|right| right[s]).sum::<f64>() / runs.len() as f64
        };
        let sequences = 0..self.sizes.len();
        let better: Vec<f64> = sequences.map(|s| of(&self.row, s) - of(&self.base, s)).collect();
        let (variance, freedom) = variance_of_mean_over(&better, &self.sizes);
        (1e4 * variance, freedom)
    }
}

/// The variance of the mean of independent values with its degrees of freedom; nothing for one value.
fn variance_of_mean(values: &[f64]) -> Option<(f64, f64)> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (values.len() > 1).then(|| (squares / (n - 1.0) / n, n - 1.0))
}

/// Weights of runs in a draw: how often each is drawn, stretched about 1 so that the mean of runs has the variance s^2 / n.
fn run_weights(rng: &mut impl Rng, num: usize) -> Vec<f64> {
    let n = num as f64;
    let stretch = if num > 1 { (n / (n - 1.0)).sqrt() } else { 1.0 };
    multiplicities(rng, num).into_iter().map(|times| 1.0 + stretch * (times - 1.0)).collect()
}

/// What draws say; for interval and p they are moved out as Student's distribution of `freedom` degrees lies further out
/// than the normal one.
fn summary(percent: f64, mut draws: Vec<f64>, freedom: f64) -> Difference {
    /// Differences of percentages below this are rounding.
    const ROUNDING: f64 = 1e-9;
    let n = draws.len() as f64;
    let mean = draws.iter().sum::<f64>() / n;
    let squares: f64 = draws.iter().map(|d| (d - mean).powi(2)).sum();
    let std_error = (squares / (n - 1.0)).sqrt();
    if std_error > ROUNDING {
        let moved =
            |draw: f64| std_error * student::of_normal((draw - percent) / std_error, freedom);
        draws.iter_mut().for_each(|draw| *draw = percent + moved(*draw));
    }
    let below = draws.iter().filter(|d| **d <= ROUNDING).count();
    let above = draws.iter().filter(|d| **d >= -ROUNDING).count();
    draws.sort_by(f64::total_cmp);
    let at = |fraction: f64| draws[((n - 1.0) * fraction).round() as usize];
    Difference {
        percent,
        std_error,
        interval_95: (at(0.025), at(0.975)),
        p: (2.0 * (below.min(above) + 1) as f64 / (n + 1.0)).min(1.0),
    }
}

/// Right objects of every run in every sequence.
fn per_sequence(runs: &[&[bool]], sequences: &Sequences) -> Result<Vec<Vec<f64>>> {
    ensure!(!runs.is_empty(), "no run to compare");
    let objects = sequences.num_objects();
    ensure!(objects > 0, "no object to compare");
    let count = |run: &&[bool]| {
        ensure!(
            run.len() == objects,
            "a run has {} objects, expected the {objects} of the others",
            run.len()
        );
        Ok(sequences.sums(run.iter().map(|is_right| f64::from(u8::from(*is_right)))))
    };
    runs.iter().map(count).collect()
}

/// Right objects in sequences that count `weights` times, mean over runs that count `run_weights` times.
fn mean_right(runs: &[Vec<f64>], run_weights: &[f64], weights: &[f64]) -> f64 {
    let of_run = |right: &[f64]| right.iter().zip(weights).map(|(r, w)| r * w).sum::<f64>();
    let total: f64 = runs.iter().zip(run_weights).map(|(r, w)| w * of_run(r)).sum();
    total / runs.len() as f64
}

/// How often each of `num` is drawn when `num` are drawn with replacement.
fn multiplicities(rng: &mut impl Rng, num: usize) -> Vec<f64> {
    let mut times = vec![0.0; num];
    for _ in 0..num {
        times[rng.random_range(0..num)] += 1.0;
    }
    times
}

#[cfg(test)]
mod tests {
    use super::*;

    fn p(better: u64, worse: u64) -> f64 {
        Discordant { better, worse }.p()
    }

    #[test]
    fn mcnemar_is_the_exact_binomial_test() {
        // python3 -c "from scipy.stats import binomtest as b; print([b(k, n).pvalue for k, n in
        //     ((0, 0 + 1), (1, 6), (3, 10), (13, 27), (40, 100), (400, 1000))])"
        for ((better, worse), expected) in [
            ((0, 1), 1.0),
            ((1, 5), 0.21875),
            ((3, 7), 0.34375),
            ((14, 13), 1.0),
            ((40, 60), 0.056_887_933_640_980_784),
            ((400, 600), 2.728_464_156_065_947e-10),
        ] {
            let found = p(better, worse);
            assert!((found / expected - 1.0).abs() < 1e-9, "{better} {worse}: {found}");
        }
        assert_eq!(p(0, 0), 1.0);
        assert!(p(0, 100_000) >= 0.0);
    }

    #[test]
    fn mcnemar_is_symmetric_and_falls_with_the_gap() {
        for n in 0..60 {
            let mut before = 0.0;
            for k in 0..=n / 2 {
                assert_eq!(p(k, n - k), p(n - k, k));
                let now = p(k, n - k);
                assert!(now >= before && now <= 1.0, "{k} of {n}");
                before = now;
            }
        }
    }

    #[test]
    fn discordant_objects_are_counted() {
        let (row, base) = ([true, true, false, false, true], [true, false, true, false, false]);
        assert_eq!(Discordant::count(&row, &base).unwrap(), Discordant { better: 2, worse: 1 });
        let text = Discordant::count(&row, &base[1..]).unwrap_err().to_string();
        assert!(text.contains("5 objects against 4"), "{text}");
    }

    #[test]
    fn holm_by_hand() {
        // 0.01 x 4, 0.02 x 3, 0.03 x 2 = 0.06, 0.04 x 1 lifted to 0.06; R: p.adjust(c(.04,.01,.03,.02), "holm")
        let adjusted = holm(&[0.04, 0.01, 0.03, 0.02]);
        for (found, expected) in adjusted.iter().zip([0.06, 0.04, 0.06, 0.06]) {
            assert!((found - expected).abs() < 1e-12, "{adjusted:?}");
        }
        assert_eq!(holm(&[0.7, 0.6]), [1.0, 1.0]);
        assert!(holm(&[]).is_empty());
    }

    #[test]
    fn holm_keeps_the_order_and_never_lowers() {
        let mut rng = seed::stream(3, &[]);
        for n in 1..40 {
            let raw: Vec<f64> = (0..n).map(|_| rng.random::<f64>().powi(3)).collect();
            let adjusted = holm(&raw);
            for i in 0..n {
                assert!(adjusted[i] >= raw[i] && adjusted[i] <= 1.0);
                for j in 0..n {
                    assert!(raw[i] > raw[j] || adjusted[i] <= adjusted[j]);
                }
            }
        }
    }

    fn sequences(of_object: &[usize]) -> Sequences {
        let names: Vec<String> = of_object.iter().map(usize::to_string).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        Sequences::new(&names, &names)
    }

    fn single<'a>(row: &'a [&'a [bool]; 1], base: &'a [&'a [bool]; 1]) -> Paired<'a> {
        Paired { row, base, same_seeds: false }
    }

    #[test]
    fn the_bootstrap_of_two_sequences_by_hand() {
        // Two sequences of two images: +2 and 0 right. Draws are 0, 50 or 100 with 1/4, 1/2, 1/4: sd 35.36, z = 1.4142. Of one
        // degree of freedom sqrt(exp((11/9 z)^2) - 1) is 4.340 there and 17.595 at 1.96, where 12.7062 is due: z becomes
        // 3.134, the draws 50 -+ 110.8, of which 1/4 lies below 0.
        let (row, base) = ([true, true, false, true], [false, false, false, true]);
        let of = sequences(&[0, 0, 1, 1]);
        let found = bootstrap(single(&[&row], &[&base]), &of, 7).unwrap();
        let (low, high) = found.interval_95;
        assert_eq!(found.percent, 50.0);
        assert!((low + 60.8).abs() < 3.0 && (high - 160.8).abs() < 3.0, "{found:?}");
        // 10,000 draws: the fraction below 0 is within 0.02 of 1/4, more than four standard errors.
        assert!((found.std_error - 35.355).abs() < 1.0, "{found:?}");
        assert!((found.p - 0.5).abs() < 0.04, "{found:?}");
    }

    #[test]
    fn images_of_a_sequence_count_as_one() {
        // 40 images in 40 sequences or in 8: what is alike within a sequence has sqrt(5) the standard error.
        let right = |i: usize| (i / 5).is_multiple_of(2);
        let row: Vec<bool> = (0..40).map(right).collect();
        let base = vec![false; 40];
        let own: Vec<usize> = (0..40).collect();
        let joined: Vec<usize> = (0..40).map(|i| i / 5).collect();
        let error = |of: &[usize]| {
            bootstrap(single(&[&row], &[&base]), &sequences(of), 1).unwrap().std_error
        };
        // sd of a half / sqrt(n): 50 / sqrt(40) and 50 / sqrt(8); the allowance is five standard errors of 10,000 draws.
        assert!((error(&own) - 7.906).abs() < 0.3 && (error(&joined) - 17.678).abs() < 0.6);
    }

    #[test]
    fn equal_networks_differ_by_nothing_and_swapping_negates() {
        let mut rng = seed::stream(5, &[]);
        let run = |rng: &mut rand_chacha::ChaCha8Rng| -> Vec<bool> {
            (0..60).map(|_| rng.random_bool(0.6)).collect()
        };
        let (a, b, c, d) = (run(&mut rng), run(&mut rng), run(&mut rng), run(&mut rng));
        let of = sequences(&(0..60).map(|i| i / 4).collect::<Vec<_>>());
        let same = bootstrap(single(&[&a], &[&a]), &of, 1).unwrap();
        assert_eq!((same.percent, same.std_error, same.p), (0.0, 0.0, 1.0));
        let (row, base): ([&[bool]; 2], [&[bool]; 2]) = ([&a, &b], [&c, &d]);
        let there = Paired { row: &row, base: &base, same_seeds: true };
        let back = Paired { row: &base, base: &row, same_seeds: true };
        let (there, back) = (bootstrap(there, &of, 1).unwrap(), bootstrap(back, &of, 1).unwrap());
        assert!((there.percent + back.percent).abs() < 1e-9);
        assert!((there.interval_95.0 + back.interval_95.1).abs() < 1.0);
        assert_eq!(there.p, back.p);
    }

    #[test]
    fn a_spread_over_seeds_widens_the_interval() {
        // Two runs, all right and none: over sequences nothing varies, over runs 0, 50, 100 with 1/4, 1/2, 1/4: an sd of
        // 35.36. The values 0 and 100 have the variance 5000, their mean 2500: an sd of 50, which stretching by sqrt(2)
        // gives: -+70.7, z -+1.414, which one degree of freedom makes 3.134 (as above): 50 -+ 156.7.
        let (all, none) = (vec![true; 30], vec![false; 30]);
        let of = sequences(&(0..30).collect::<Vec<_>>());
        let row: [&[bool]; 2] = [&all, &none];
        let paired = Paired { row: &row, base: &[&none], same_seeds: false };
        let found = bootstrap(paired, &of, 1).unwrap();
        assert_eq!(found.percent, 50.0);
        let (low, high) = found.interval_95;
        assert!((low + 106.6).abs() < 4.0 && (high - 206.6).abs() < 4.0, "{found:?}");
        // 10,000 draws of -70.7, 0 and 70.7: the allowance is six standard errors.
        assert!((found.std_error - 50.0).abs() < 1.5, "{found:?}");
        // With the same seeds on both sides the runs are drawn together, and their common part cancels.
        let both = Paired { row: &row, base: &row, same_seeds: true };
        assert_eq!(bootstrap(both, &of, 1).unwrap().std_error, 0.0);
        assert!(bootstrap(Paired { same_seeds: false, ..both }, &of, 1).unwrap().std_error > 20.0);
    }

    #[test]
    fn networks_that_are_equal_but_for_their_seeds_seldom_differ() {
        // Objects of 40 sequences are right where they are easier than a run's threshold, which is all that differs: the
        // spread over runs decides. Three runs without any stretching are told apart in 25 % (P(|t| > 1.96 sqrt(2 / 3)) of
        // two degrees of freedom), with it in 5 %; 300 samples have a standard error of 1.3 points there.
        let mut rng = seed::stream(11, &[]);
        let mut normal = || (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0;
        let of = sequences(&(0..160).map(|i| i / 4).collect::<Vec<_>>());
        let mut differ = 0;
        for _ in 0..300 {
            let difficulty: Vec<f64> = (0..160).map(|_| normal()).collect();
            let mut run = || -> Vec<bool> {
                let threshold = 0.1 * normal();
                difficulty.iter().map(|d| *d < threshold).collect()
            };
            let runs: Vec<Vec<bool>> = (0..6).map(|_| run()).collect();
            let runs: Vec<&[bool]> = runs.iter().map(Vec::as_slice).collect();
            let paired = Paired { row: &runs[..3], base: &runs[3..], same_seeds: true };
            differ += usize::from(bootstrap(paired, &of, 1).unwrap().p < 0.05);
        }
        assert!(differ < 36, "{differ} of 300");
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let run = [true; 3];
        let of = sequences(&[0, 1, 1, 1]);
        let text = bootstrap(single(&[&run], &[&run]), &of, 1).unwrap_err().to_string();
        assert!(text.contains("3 objects, expected the 4"), "{text}");
        let none = Paired { row: &[], base: &[&run], same_seeds: false };
        assert!(bootstrap(none, &sequences(&[0, 1, 1]), 1).is_err());
    }
}
