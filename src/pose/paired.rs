//! Networks compared on the same objects: exact McNemar test, bootstrap over sequences and runs, Holm's adjustment.
//!
//! Images of a sequence are alike, so the unit that is drawn again is the sequence ([`Sequences`]), never the image.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::seed;

/// Draws of the bootstrap.
pub const NUM_DRAWS: usize = 10_000;
/// Place of its random stream.
const STREAM: u64 = 0x7061_6972;

/// Which sequence each object belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequences {
    of_object: Vec<usize>,
    num: usize,
    are_images: bool,
}

impl Sequences {
    /// The sequences of objects, from the name of each object's sequence. Where all have the same name the image, by
    /// its own name, is the unit.
    pub fn new<'a>(names: &[&'a str], images: &[&'a str]) -> Self {
        let named = Self::by(names, names == images);
        if named.num > 1 { named } else { Self::by(images, true) }
    }

    fn by(names: &[&str], are_images: bool) -> Self {
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let of_object = names
            .iter()
            .map(|name| {
                let next = numbers.len();
                *numbers.entry(name).or_insert(next)
            })
            .collect();
        Self { of_object, num: numbers.len(), are_images }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.num
    }

    /// Whether each image is one by itself, since nothing tells sequences.
    pub fn are_images(&self) -> bool {
        self.are_images
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.num == 0
    }
}

/// The same objects, right or wrong in each run (another seed) of two configurations.
#[derive(Debug, Clone, Copy)]
pub struct Paired<'a> {
    /// Runs of the configuration that is compared; each has one value an object.
    pub row: &'a [&'a [bool]],
    /// Runs of the one it is compared with.
    pub base: &'a [&'a [bool]],
    /// Whether run `i` of both has the same seed: then runs are drawn in pairs.
    pub same_seeds: bool,
}

/// A difference of percentages, row minus base, with what a bootstrap says of it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// Percentage points: mean over the row's runs minus mean over the base's.
    pub percent: f64,
    /// Its standard error, percentage points.
    pub std_error: f64,
    /// 95 % interval (2.5 and 97.5 % quantiles of the draws), percentage points.
    pub interval_95: (f64, f64),
    /// Two-sided p: twice the fraction of draws on the other side of 0, at least 2 / (draws + 1).
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
/// side as it has (the same ones of both sides where `same_seeds`). One run of a side is no sample of runs and stays.
/// The same `seed` draws the same sequences for every pair, so that swapping row and base negates the draws.
///
/// # Errors
/// If a side has no run, runs have other numbers of objects than there are in `sequences`, or there is no object.
///
/// # Source
/// Efron, Tibshirani, *An introduction to the bootstrap*, 1993 (percentile interval); drawing two crossed factors:
/// Owen, *The pigeonhole bootstrap*, Annals of Applied Statistics 2007 (errs towards wide intervals).
pub fn bootstrap(paired: Paired, sequences: &Sequences, seed: u64) -> Result<Difference> {
    let row = per_sequence(paired.row, sequences)?;
    let base = per_sequence(paired.base, sequences)?;
    let mut sizes = vec![0.0; sequences.num];
    for &s in &sequences.of_object {
        sizes[s] += 1.0;
    }
    let once = |runs: &[Vec<f64>]| vec![1.0; runs.len()];
    let ones = vec![1.0; sequences.num];
    let difference = |w: &[f64], row_runs: &[f64], base_runs: &[f64]| {
        let objects: f64 = w.iter().zip(&sizes).map(|(w, n)| w * n).sum();
        100.0 * (mean_right(&row, row_runs, w) - mean_right(&base, base_runs, w)) / objects
    };
    let percent = difference(&ones, &once(&row), &once(&base));
    let mut rng = seed::stream(seed, &[STREAM]);
    let mut draws = Vec::with_capacity(NUM_DRAWS);
    for _ in 0..NUM_DRAWS {
        let w = multiplicities(&mut rng, sequences.num);
        // Drawn before the runs, so that a row's number of runs does not move the sequences of the same draw.
        let mut runs = seed::stream(rng.random(), &[STREAM]);
        let row_runs = multiplicities(&mut runs, row.len());
        let joint = paired.same_seeds && base.len() == row.len();
        let base_runs =
            if joint { row_runs.clone() } else { multiplicities(&mut runs, base.len()) };
        draws.push(difference(&w, &row_runs, &base_runs));
    }
    Ok(summary(percent, draws))
}

fn summary(percent: f64, mut draws: Vec<f64>) -> Difference {
    /// Differences of percentages below this are rounding.
    const ROUNDING: f64 = 1e-9;
    let n = draws.len() as f64;
    let mean = draws.iter().sum::<f64>() / n;
    let squares: f64 = draws.iter().map(|d| (d - mean).powi(2)).sum();
    let below = draws.iter().filter(|d| **d <= ROUNDING).count();
    let above = draws.iter().filter(|d| **d >= -ROUNDING).count();
    draws.sort_by(f64::total_cmp);
    let at = |fraction: f64| draws[((n - 1.0) * fraction).round() as usize];
    Difference {
        percent,
        std_error: (squares / (n - 1.0)).sqrt(),
        interval_95: (at(0.025), at(0.975)),
        p: (2.0 * (below.min(above) + 1) as f64 / (n + 1.0)).min(1.0),
    }
}

/// Right objects of every run in every sequence.
fn per_sequence(runs: &[&[bool]], sequences: &Sequences) -> Result<Vec<Vec<f64>>> {
    ensure!(!runs.is_empty(), "no run to compare");
    let objects = sequences.of_object.len();
    ensure!(objects > 0, "no object to compare");
    let count = |run: &&[bool]| {
        ensure!(
            run.len() == objects,
            "a run has {} objects, expected the {objects} of the others",
            run.len()
        );
        let mut right = vec![0.0; sequences.num];
        for (&s, &is_right) in sequences.of_object.iter().zip(*run) {
            right[s] += f64::from(u8::from(is_right));
        }
        Ok(right)
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
        let num = of_object.iter().max().unwrap() + 1;
        Sequences { num, of_object: of_object.to_vec(), are_images: false }
    }

    fn single<'a>(row: &'a [&'a [bool]; 1], base: &'a [&'a [bool]; 1]) -> Paired<'a> {
        Paired { row, base, same_seeds: false }
    }

    #[test]
    fn the_bootstrap_of_two_sequences_by_hand() {
        // Two sequences of two images: +2 and 0 right. Draws are 0, 50 or 100 with 1/4, 1/2, 1/4: sd 35.36, and half of
        // 1/4 x 2 lies at 0.
        let (row, base) = ([true, true, false, true], [false, false, false, true]);
        let of = sequences(&[0, 0, 1, 1]);
        let found = bootstrap(single(&[&row], &[&base]), &of, 7).unwrap();
        assert_eq!((found.percent, found.interval_95), (50.0, (0.0, 100.0)));
        // 10,000 draws: the fraction at 0 is within 0.02 of 1/4, more than four standard errors.
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
        // Two runs, all right and none: over sequences nothing varies, over runs 0, 50, 100.
        let (all, none) = (vec![true; 30], vec![false; 30]);
        let of = sequences(&(0..30).collect::<Vec<_>>());
        let row: [&[bool]; 2] = [&all, &none];
        let paired = Paired { row: &row, base: &[&none], same_seeds: false };
        let found = bootstrap(paired, &of, 1).unwrap();
        assert_eq!((found.percent, found.interval_95), (50.0, (0.0, 100.0)));
        // With the same seeds on both sides the runs are drawn together, and their common part cancels.
        let both = Paired { row: &row, base: &row, same_seeds: true };
        assert_eq!(bootstrap(both, &of, 1).unwrap().std_error, 0.0);
        assert!(bootstrap(Paired { same_seeds: false, ..both }, &of, 1).unwrap().std_error > 20.0);
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

    #[test]
    fn where_there_is_one_sequence_images_are_the_units() {
        let images = ["a", "b", "b"];
        let one = Sequences::new(&["s", "s", "s"], &images);
        assert!(one.are_images() && one.len() == 2);
        let two = Sequences::new(&["s", "t", "s"], &images);
        assert!(!two.are_images() && two.of_object == [0, 1, 0]);
        assert!(Sequences::new(&[], &[]).is_empty());
    }
}
