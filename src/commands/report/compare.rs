//! Rows against one of them, on the same objects: differences with intervals and p values.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use serde::Serialize;

use super::gather::{Point, QuantizationKind};
use super::summary::{Group, PairedReport, PairedRow, PairedRun, WorseControl};
use crate::eval::{read_errors, sequences_of_objects};
use crate::pose::{Difference, Discordant, Paired, Sequences, bootstrap, holm};

/// Seed of the bootstrap: a report of the same evaluations is the same.
const SEED: u64 = 1;
/// Below this p the float control is said to be worse than the start.
const LEVEL: f64 = 0.05;

/// An object of the evaluated list: image, class, and its number among those of that class in the image.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Object {
    image: String,
    class: usize,
    number: usize,
}

/// Right and wrong of every row's runs, over the same objects in the same order.
pub(super) struct RowOutcomes {
    objects: Vec<Object>,
    sequences: Sequences,
    /// Of each row, its runs in the order of the row's seeds.
    rows: Vec<Vec<Vec<bool>>>,
}

impl RowOutcomes {
    /// Reads the errors of every object that `mqat test` wrote.
    ///
    /// # Errors
    /// If a file cannot be read, or two runs were evaluated on other objects.
    pub fn read(groups: &[Group], points: &[Point]) -> Result<Self> {
        let mut first: Option<(&Point, Vec<Object>)> = None;
        let mut rows = Vec::with_capacity(groups.len());
        for group in groups {
            let mut runs = Vec::with_capacity(group.runs.len());
            for point in group.runs.iter().filter_map(|&i| points.get(i)) {
                let (objects, right): (Vec<Object>, Vec<bool>) =
                    right_by_object(point)?.into_iter().unzip();
                match &first {
                    None => first = Some((point, objects)),
                    Some((other, expected)) => ensure_same(other, expected, point, &objects)?,
                }
                runs.push(right);
            }
            rows.push(runs);
        }
        let (_, objects) = first.context("no evaluated run to compare")?;
        let sequences = sequences_of_objects(objects.iter().map(|o| o.image.as_str()));
        Ok(Self { objects, sequences, rows })
    }

    /// The difference of two rows, and the runs of the same seed side by side.
    fn compare(&self, groups: &[Group], row: usize, base: usize) -> Result<PairedRow> {
        let runs =
            |at: usize| -> Vec<&[bool]> { self.rows[at].iter().map(Vec::as_slice).collect() };
        let (row_runs, base_runs) = (runs(row), runs(base));
        let (seeds, base_seeds) = (&groups[row].seeds, &groups[base].seeds);
        let paired = Paired { row: &row_runs, base: &base_runs, same_seeds: seeds == base_seeds };
        let difference = bootstrap(paired, &self.sequences, SEED)?;
        let mut runs = Vec::new();
        for (i, &seed) in seeds.iter().enumerate() {
            for (j, &base_seed) in base_seeds.iter().enumerate() {
                // The only run of a side, such as the start, is set against every one of the other.
                if seed == base_seed || seeds.len() == 1 || base_seeds.len() == 1 {
                    let discordant = Discordant::count(row_runs[i], base_runs[j])?;
                    runs.push(PairedRun { seed, base_seed, discordant, p: discordant.p() });
                }
            }
        }
        Ok(PairedRow { difference, p_holm: difference.p, runs })
    }

    /// All rows against `base`.
    pub fn against(&self, groups: &[Group], base: usize) -> Result<PairedReport> {
        let mut rows = Vec::with_capacity(groups.len());
        for row in 0..groups.len() {
            rows.push((row != base).then(|| self.compare(groups, row, base)).transpose()?);
        }
        let p: Vec<f64> = rows.iter().flatten().map(|row| row.difference.p).collect();
        for (row, p_holm) in rows.iter_mut().flatten().zip(holm(&p)) {
            row.p_holm = p_holm;
        }
        Ok(PairedReport {
            base,
            num_objects: self.objects.len(),
            num_sequences: self.sequences.len(),
            sequences_are_images: self.sequences.are_images(),
            rows,
        })
    }

    /// Float rows that are worse than the start by more than chance.
    pub fn worse_controls(&self, groups: &[Group]) -> Result<Vec<WorseControl>> {
        let Some(start) = groups.iter().position(|g| g.family == QuantizationKind::Start) else {
            return Ok(Vec::new());
        };
        let mut worse = Vec::new();
        let is_control =
            |g: &Group| g.family == QuantizationKind::FullPrecision && g.global_step > 0;
        for (row, group) in groups.iter().enumerate().filter(|(_, g)| is_control(g)) {
            let Difference { percent, p, .. } = self.compare(groups, row, start)?.difference;
            if percent < 0.0 && p < LEVEL {
                let percent_of = |g: &Group| g.headline.last().map_or(f64::NAN, |s| s.mean);
                worse.push(WorseControl {
                    network: group.network.clone(),
                    percent: percent_of(group),
                    start_percent: percent_of(&groups[start]),
                    p,
                });
            }
        }
        Ok(worse)
    }
}

/// Whether each object's pose is right by the headline: an error strictly below 0.1 diameters.
fn right_by_object(point: &Point) -> Result<BTreeMap<Object, bool>> {
    let path = point.errors_file();
    let mut right = BTreeMap::new();
    let mut numbers: BTreeMap<(String, usize), usize> = BTreeMap::new();
    for error in read_errors(&path)? {
        let number = numbers.entry((error.image.clone(), error.class)).or_default();
        let is_right = error.is_right();
        let object = Object { image: error.image, class: error.class, number: *number };
        *number += 1;
        right.insert(object, is_right);
    }
    let expected = point.report.dataset.num_objects;
    ensure!(
        right.len() == expected,
        "{}: {} objects, and metrics.json beside it counts {expected}; run `mqat test` again",
        path.display(),
        right.len()
    );
    Ok(right)
}

fn ensure_same(a: &Point, a_objects: &[Object], b: &Point, b_objects: &[Object]) -> Result<()> {
    if a_objects == b_objects {
        return Ok(());
    }
    let known: std::collections::BTreeSet<&Object> = a_objects.iter().collect();
    let common = b_objects.iter().filter(|o| known.contains(o)).count();
    anyhow::bail!(
        "{} was evaluated on {} objects and {} on {}, of which {common} are the same: evaluate both on the same images",
        a.errors_file().display(),
        a_objects.len(),
        b.errors_file().display(),
        b_objects.len()
    )
}
