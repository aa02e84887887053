//! Subjects measured in turns, and what their times say.
//!
//! A machine's speed drifts: it heats up, other programs run. So every round calls every subject once, in another order
//! than the round before, and a subject is compared with the first one by the ratios of equal rounds.

use std::fmt::Write as _;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value};
use tch::Device;

/// How often every subject is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Rounds {
    /// Rounds that are measured, 1 or more.
    pub rounds: usize,
    /// Rounds before them that are not.
    pub warm_up: usize,
}

/// How far a bench is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BenchProgress {
    /// What is being done: `rendering`, `measuring`.
    pub doing: &'static str,
    /// What is counted.
    pub unit: &'static str,
    /// So many are done.
    pub num_done: usize,
    /// Of so many.
    pub num_all: usize,
}

/// Who is told.
pub(super) type Progress<'a> = dyn FnMut(BenchProgress) + Send + 'a;

/// Something to be measured.
pub(super) struct Subject<'a> {
    /// Its name in tables.
    pub name: String,
    /// What it is.
    pub details: Map<String, Value>,
    /// How many items a call handles.
    pub per_call: usize,
    /// Does the work once and returns the seconds it took, [`timed`].
    pub call: Box<dyn FnMut() -> Result<f64> + 'a>,
}

/// Seconds of `work`, up to the end of what it started on the device. What it returns is dropped after that.
pub(super) fn timed<T>(device: Device, work: impl FnOnce() -> Result<T>) -> Result<f64> {
    synchronize(device);
    let since = Instant::now();
    let made = work()?;
    synchronize(device);
    let seconds = since.elapsed().as_secs_f64();
    drop(made);
    Ok(seconds)
}

/// Waits until a GPU has done what it was asked.
fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}

/// The order of the subjects in a round: rotated by one each round, and turned round after each whole rotation, so that
/// no subject always follows the same other one.
fn order(round: usize, num_subjects: usize) -> Vec<usize> {
    let rotated = (0..num_subjects).map(|i| (i + round) % num_subjects);
    match round / num_subjects.max(1) % 2 {
        0 => rotated.collect(),
        _ => rotated.rev().collect(),
    }
}

/// Calls every subject once in each round.
///
/// # Errors
/// If there is no subject or no round, or a call fails.
pub(super) fn measure(
    mut subjects: Vec<Subject<'_>>,
    rounds: Rounds,
    progress: &mut Progress<'_>,
) -> Result<Vec<SubjectReport>> {
    ensure!(rounds.rounds > 0, "0 rounds measure nothing, expected 1 or more");
    ensure!(!subjects.is_empty(), "there is nothing to measure");
    let all = rounds.warm_up + rounds.rounds;
    let num_all = all * subjects.len();
    let mut samples = vec![Vec::with_capacity(rounds.rounds); subjects.len()];
    let mut cpu_samples = samples.clone();
    let mut num_done = 0;
    for round in 0..all {
        for i in order(round, subjects.len()) {
            let subject = &mut subjects[i];
            let since = cpu_seconds();
            let seconds =
                (subject.call)().with_context(|| format!("measuring {}", subject.name))?;
            if round >= rounds.warm_up {
                samples[i].push(seconds);
                cpu_samples[i].push(cpu_seconds() - since);
            }
            num_done += 1;
            progress(BenchProgress { doing: "measuring", unit: "calls", num_done, num_all });
        }
    }
    let per_item = |samples: &[Vec<f64>], i: usize| -> Vec<f64> {
        samples[i].iter().map(|seconds| seconds / subjects[i].per_call.max(1) as f64).collect()
    };
    let ratios = |samples: &[Vec<f64>], i: usize| {
        let (own, first) = (per_item(samples, i), per_item(samples, 0));
        Quartiles::of(own.iter().zip(&first).map(|(own, first)| own / first).collect())
    };
    let reports = subjects.iter().enumerate().map(|(i, subject)| {
        let seconds_per_item = Quartiles::of(per_item(&samples, i)).context("no sample")?;
        Ok(SubjectReport {
            name: subject.name.clone(),
            details: subject.details.clone(),
            items_per_call: subject.per_call,
            samples_s: samples[i].clone(),
            call_s: Quartiles::of(samples[i].clone()).context("no sample")?,
            items_per_s: 1.0 / seconds_per_item.median,
            over_first: ratios(&samples, i).context("no sample")?,
            seconds_per_item,
            cpu_seconds_per_item: Quartiles::of(per_item(&cpu_samples, i)).context("no sample")?,
            cpu_over_first: ratios(&cpu_samples, i).context("no sample")?,
        })
    });
    reports.collect()
}

/// What a subject's calls took.
#[derive(Debug, Clone, Serialize)]
pub struct SubjectReport {
    /// Its name.
    pub name: String,
    /// What it is.
    pub details: Map<String, Value>,
    /// How many items a call handles.
    pub items_per_call: usize,
    /// Seconds of each call, round by round.
    pub samples_s: Vec<f64>,
    /// Seconds of a call.
    pub call_s: Quartiles,
    /// Seconds of an item.
    pub seconds_per_item: Quartiles,
    /// Items a second, by the median.
    pub items_per_s: f64,
    /// Seconds of an item over those of the first subject in the same round.
    pub over_first: Quartiles,
    /// Seconds of CPU time, user and system, of all threads of the process, for an item: what other programs do changes them
    /// little.
    pub cpu_seconds_per_item: Quartiles,
    /// These over those of the first subject in the same round.
    pub cpu_over_first: Quartiles,
}

/// CPU time that the process has used, s.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is that of a local variable, which the call fills in.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + 1e-9 * time.tv_nsec as f64
}

/// Some numbers in short.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quartiles {
    /// The smallest.
    pub min: f64,
    /// A quarter is at most this.
    pub q1: f64,
    /// Half is at most this.
    pub median: f64,
    /// Three quarters are at most this.
    pub q3: f64,
    /// The largest.
    pub max: f64,
}

impl Quartiles {
    /// `None` without numbers. Between two numbers quantiles are interpolated.
    pub(super) fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |fraction: f64| {
            let place = fraction * last as f64;
            let (below, above) = (values[place.floor() as usize], values[place.ceil() as usize]);
            below + (above - below) * place.fract()
        };
        Some(Self {
            min: values[0],
            q1: at(0.25),
            median: at(0.5),
            q3: at(0.75),
            max: values[last],
        })
    }
}

/// The subjects as a table, times for an item.
pub(super) fn table(subjects: &[SubjectReport], item: &str) -> String {
    let fastest = subjects.iter().map(|s| s.seconds_per_item.median).fold(f64::INFINITY, f64::min);
    let (unit, factor) = match fastest {
        s if s < 1e-3 => ("us", 1e6),
        s if s < 1.0 => ("ms", 1e3),
        _ => ("s", 1.0),
    };
    let number = |seconds: f64| {
        let value = seconds * factor;
        let digits = if value < 10.0 {
            3
        } else if value < 1000.0 {
            1
        } else {
            0
        };
        format!("{value:.digits$}")
    };
    let header = [
        "subject".to_owned(),
        format!("{unit}/{item}"),
        "quartiles".to_owned(),
        "min".to_owned(),
        "CPU".to_owned(),
        "over first".to_owned(),
        "quartiles".to_owned(),
        "CPU".to_owned(),
        format!("{item}s/s"),
    ];
    let row = |s: &SubjectReport| {
        let (time, ratio) = (&s.seconds_per_item, &s.over_first);
        [
            s.name.clone(),
            number(time.median),
            format!("{}-{}", number(time.q1), number(time.q3)),
            number(time.min),
            number(s.cpu_seconds_per_item.median),
            format!("{:.3}", ratio.median),
            format!("{:.3}-{:.3}", ratio.q1, ratio.q3),
            format!("{:.3}", s.cpu_over_first.median),
            rate(s.items_per_s),
        ]
    };
    let rows: Vec<[String; 9]> = std::iter::once(header).chain(subjects.iter().map(row)).collect();
    let width = |column: usize| rows.iter().map(|r| r[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 9] = std::array::from_fn(width);
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        let _ = write!(out, "{:<w$}", row[0], w = widths[0]);
        for (cell, w) in row.iter().zip(widths).skip(1) {
            let _ = write!(out, "  {cell:>w$}");
        }
        out.push('\n');
        if i == 0 {
            let _ = writeln!(out, "{}", "-".repeat(widths.iter().sum::<usize>() + 2 * 8));
        }
    }
    out
}

/// A rate in three or four digits.
fn rate(per_s: f64) -> String {
    let digits = if per_s < 10.0 {
        3
    } else if per_s < 1000.0 {
        1
    } else {
        0
    };
    format!("{per_s:.digits$}")
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn quantiles_lie_between_the_numbers() {
        let spread = Quartiles::of(vec![4.0, 1.0, 3.0, 2.0]).unwrap();
        let expected = Quartiles { min: 1.0, q1: 1.75, median: 2.5, q3: 3.25, max: 4.0 };
        assert_eq!(spread, expected);
        let one = Quartiles::of(vec![7.0]).unwrap();
        assert_eq!([one.min, one.q1, one.median, one.q3, one.max], [7.0; 5]);
        let odd = Quartiles::of(vec![5.0, 9.0, 1.0]).unwrap();
        assert_eq!((odd.q1, odd.median, odd.q3), (3.0, 5.0, 7.0));
        assert!(Quartiles::of(vec![]).is_none());
    }

    #[test]
    fn every_round_has_each_subject_once_and_each_comes_first_equally_often() {
        for n in 1..=4 {
            let mut firsts = vec![0; n];
            let mut followers = std::collections::BTreeSet::new();
            for round in 0..2 * n {
                let order = order(round, n);
                let mut sorted = order.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..n).collect::<Vec<_>>());
                firsts[order[0]] += 1;
                followers.extend(order.windows(2).map(|pair| (pair[0], pair[1])));
            }
            assert_eq!(firsts, vec![2; n]);
            // each neighbour comes before and after
            assert!(followers.iter().all(|&(a, b)| followers.contains(&(b, a))), "{followers:?}");
        }
        assert_eq!(order(1, 3), [1, 2, 0]);
        assert_eq!(order(3, 3), [2, 1, 0]);
    }

    /// A subject whose calls take what `seconds` says, noted in `calls`.
    fn subject<'a>(
        name: &'static str,
        per_call: usize,
        mut seconds: Vec<f64>,
        calls: &'a RefCell<Vec<&'static str>>,
    ) -> Subject<'a> {
        seconds.reverse();
        let call = Box::new(move || {
            calls.borrow_mut().push(name);
            seconds.pop().context("out of samples")
        });
        Subject { name: name.to_owned(), details: Map::new(), per_call, call }
    }

    #[test]
    fn warm_up_is_left_out_and_ratios_are_of_equal_rounds() {
        let calls = RefCell::new(Vec::new());
        let subjects = vec![
            subject("a", 1, vec![100.0, 1.0, 2.0, 4.0], &calls),
            subject("b", 2, vec![100.0, 4.0, 4.0, 4.0], &calls),
        ];
        let mut told = Vec::new();
        let rounds = Rounds { rounds: 3, warm_up: 1 };
        let found = measure(subjects, rounds, &mut |p| told.push((p.num_done, p.num_all))).unwrap();
        assert_eq!(*calls.borrow(), ["a", "b", "b", "a", "b", "a", "a", "b"]);
        assert_eq!((told.len(), told[7]), (8, (8, 8)));
        let [a, b] = &found[..] else { panic!() };
        assert_eq!((&a.samples_s[..], a.over_first.median), (&[1.0, 2.0, 4.0][..], 1.0));
        // for an item: 2, 2, 2 s against 1, 2, 4 s
        assert_eq!((b.call_s.median, b.seconds_per_item.median, b.items_per_s), (4.0, 2.0, 0.5));
        let ratios = [b.over_first.min, b.over_first.median, b.over_first.max];
        assert_eq!(ratios, [0.5, 1.0, 2.0]);
        let text = table(&found, "step");
        assert!(text.contains("s/step") && text.lines().count() == 4, "{text}");
    }

    #[test]
    fn nothing_to_measure_is_an_error_and_a_failure_names_its_subject() {
        let calls = RefCell::new(Vec::new());
        let one = || vec![subject("a", 1, vec![1.0], &calls)];
        let run = |subjects, rounds, warm_up| {
            let error = measure(subjects, Rounds { rounds, warm_up }, &mut |_| ()).err();
            error.map_or(String::new(), |e| format!("{e:#}"))
        };
        assert!(run(one(), 0, 3).contains("0 rounds"));
        assert!(run(vec![], 1, 0).contains("nothing to measure"));
        assert_eq!(run(one(), 2, 0), "measuring a: out of samples");
        assert_eq!(run(one(), 1, 0), "");
    }

    #[test]
    fn times_are_written_in_a_unit_that_fits() {
        let calls = RefCell::new(Vec::new());
        for (seconds, cells) in [(2e-4, ["us/image", "200.0"]), (0.0125, ["ms/image", "12.5"])] {
            let found = measure(
                vec![subject("a", 1, vec![seconds], &calls)],
                Rounds { rounds: 1, warm_up: 0 },
                &mut |_| (),
            );
            let text = table(&found.unwrap(), "image");
            assert!(cells.iter().all(|cell| text.contains(cell)), "{text}");
        }
    }
}
