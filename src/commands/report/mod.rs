//! `mqat report`: evaluated experiments side by side, accuracy against compression.
//!
//! [`report`] collects what `mqat test` wrote into the experiments' folders (`gather.rs`), averages runs that differ in
//! nothing but their seed, and writes tables, a chart and one HTML page (`page.rs`) that needs no other file.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::commands::test::{TestRequest, test};
use crate::data::Split;
use crate::eval::Progress;
use crate::io;
use crate::io::chart::{Chart, Series};
use crate::pose::EvalTable;
use crate::run::home::Home;
use crate::run::request::Request;

mod gather;
mod page;
mod summary;
mod tables;

use gather::GatheredExperiment;
pub use gather::{Point, QuantizationKind};
pub use summary::{Group, ReportSummary, RunSpread};

/// What `mqat report` is asked.
#[derive(Debug, Clone)]
pub struct ReportRequest {
    /// Problem and topology for experiments given by number, places, device.
    pub run: Request,
    /// Experiments: folders, folders with experiments below them, or numbers (`3`, `exp003`).
    pub experiments: Vec<String>,
    /// The split whose evaluations are read.
    pub split: Split,
    /// Evaluate experiments that were not, at the end of every stage.
    pub evaluate: bool,
    /// The folder to write; none is `LOGS/PROBLEM/TOPOLOGY/report`.
    pub out: Option<PathBuf>,
    /// Heading of the page.
    pub title: Option<String>,
}

/// Collects, averages and writes.
///
/// # Errors
/// If an experiment is not there, none has an evaluation, the evaluations are of different lists of images, or a file
/// cannot be read or written.
pub fn report(
    request: &ReportRequest,
    progress: &mut dyn FnMut(&str, Progress),
) -> Result<ReportSummary> {
    let home = request.run.home()?;
    let folders = gather::find(&request.experiments, &request.run.select, &home)?;
    let mut experiments = Vec::new();
    let mut left_out = Vec::new();
    for folder in folders {
        if request.evaluate && !gather::is_evaluated(&folder, request.split) {
            evaluate(request, &folder, progress)?;
        }
        match gather::open(&folder, request.split)? {
            Some(experiment) => experiments.push(experiment),
            None => left_out.push(folder),
        }
    }
    ensure!(
        !experiments.is_empty(),
        "none of the experiments has an evaluation of the {} split; run `mqat test --all-stages` for each, or pass \
         --evaluate",
        request.split
    );
    for folder in &left_out {
        tracing::warn!(
            "{} has no evaluation and is left out (--evaluate makes one)",
            folder.display()
        );
    }
    ensure_comparable(&experiments)?;
    let out = request.out.clone().unwrap_or_else(|| default_folder(request, &home));
    fs::create_dir_all(&out).with_context(|| format!("making the folder {}", out.display()))?;
    let points: Vec<Point> = experiments.iter().flat_map(|e| e.points.clone()).collect();
    let summary = ReportSummary {
        synthetic_data: points.iter().any(|p| p.report.dataset.synthetic),
        groups: groups(&points),
        points,
        left_out,
        folder: out,
    };
    write(request, &summary, &experiments)?;
    Ok(summary)
}

fn default_folder(request: &ReportRequest, home: &Home) -> PathBuf {
    let select = &request.run.select;
    home.logs.join(select.problem()).join(select.topology()).join("report")
}

fn evaluate(
    request: &ReportRequest,
    folder: &Path,
    progress: &mut dyn FnMut(&str, Progress),
) -> Result<()> {
    let place = gather::Place::of(folder)?;
    let mut run = request.run.clone();
    run.select.problem = Some(place.problem);
    run.select.topology = Some(place.topology);
    run.logs = Some(place.logs);
    test(
        &TestRequest {
            run,
            checkpoints: Vec::new(),
            exp_id: Some(place.id),
            all_stages: true,
            best: false,
            split: request.split,
            predictions: None,
            out: None,
            loose: false,
            strip_prefix: None,
            engine: Default::default(),
        },
        progress,
    )
    .with_context(|| format!("evaluating {}", folder.display()))?;
    Ok(())
}

/// Percentages over different images are not to be put side by side.
fn ensure_comparable(experiments: &[GatheredExperiment]) -> Result<()> {
    let what = |p: &Point| {
        let d = &p.report.dataset;
        (d.root.clone(), d.list.clone(), d.num_objects)
    };
    let points: Vec<&Point> = experiments.iter().flat_map(|e| &e.points).collect();
    let Some(first) = points.first() else { return Ok(()) };
    for other in &points {
        ensure!(
            what(first) == what(other),
            "{} was evaluated on {:?} and {} on {:?} (folder, list, objects): evaluate both on the same images",
            first.experiment.display(),
            what(first),
            other.experiment.display(),
            what(other)
        );
    }
    Ok(())
}

/// Runs of the same network under the same config but for the seed, in the order of appearance; of a seed one run.
fn groups(points: &[Point]) -> Vec<Group> {
    let mut keys: Vec<&str> = points.iter().map(|p| p.key.as_str()).collect();
    let mut seen = std::collections::HashSet::new();
    keys.retain(|key| seen.insert(*key));
    keys.iter()
        .filter_map(|key| {
            let mut runs: Vec<&Point> = points.iter().filter(|p| p.key == **key).collect();
            // One run seen twice (what orders of a search begin with alike, a copy) is not a second sample.
            let mut seeds = std::collections::HashSet::new();
            runs.retain(|run| seeds.insert(run.seed));
            let first = runs.first()?;
            Some(Group {
                network: first.network.clone(),
                family: first.family,
                sizes: first.sizes,
                global_step: first.global_step,
                seeds: runs.iter().map(|p| p.seed).collect(),
                headline: spreads(&runs, EvalTable::HEADLINE),
                true_adi: spreads(&runs, EvalTable::TRUE_ADI),
            })
        })
        .collect()
}

fn spreads(runs: &[&Point], row: &str) -> Vec<RunSpread> {
    let Some(first) = runs.first() else { return Vec::new() };
    let bins = first.report.table.bins.iter().enumerate();
    bins.filter_map(|(i, bin)| {
        let recalls: Vec<_> =
            runs.iter().filter_map(|p| p.report.table.all.recall(row, i)).collect();
        let values: Vec<f64> = recalls.iter().filter_map(|r| r.percent).collect();
        let (mean, std_dev) = mean_and_std_dev(&values)?;
        let interval_95 = match recalls.as_slice() {
            [one] => one.interval_95,
            _ => None,
        };
        Some(RunSpread { bin: bin.name.clone(), mean, std_dev, interval_95 })
    })
    .collect()
}

/// Mean and, of two values or more, the sample's standard deviation.
fn mean_and_std_dev(values: &[f64]) -> Option<(f64, Option<f64>)> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (!values.is_empty()).then(|| (mean, (values.len() > 1).then(|| (squares / (n - 1.0)).sqrt())))
}

/// Accuracy over all depths against the compression of the paper's count, a line each family.
fn chart(summary: &ReportSummary) -> Chart {
    let of = |family: QuantizationKind| {
        let mut points: Vec<(f64, f64)> = summary
            .groups
            .iter()
            .filter(|g| g.family == family)
            .filter_map(|g| Some((g.sizes.paper_compression, g.headline.last()?.mean)))
            .collect();
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { name: family.to_string(), points }
    };
    let synthetic = if summary.synthetic_data { " (synthetic data)" } else { "" };
    Chart {
        title: format!("Accuracy over compression{synthetic}"),
        x_label: "compression: 32-bit over quantized convolution weights".to_owned(),
        y_label: "ADI-0.1d (as published), %".to_owned(),
        series: QuantizationKind::ALL
            .into_iter()
            .map(of)
            .filter(|s| !s.points.is_empty())
            .collect(),
        log_y: false,
        marks: Vec::new(),
    }
}

fn write(
    request: &ReportRequest,
    summary: &ReportSummary,
    experiments: &[GatheredExperiment],
) -> Result<()> {
    let out = &summary.folder;
    let chart = chart(summary);
    let svg = out.join("accuracy_over_compression.svg");
    chart.write_svg(&svg)?;
    chart.write_png(&out.join("accuracy_over_compression.png"))?;
    io::write_json(&out.join("report.json"), summary)?;
    let title = request.title.as_deref().unwrap_or("mqat: experiments side by side");
    let page = page::page(title, summary, experiments, &svg)?;
    let files = [
        ("table.md", tables::markdown(summary)),
        ("table.csv", tables::csv(summary)),
        ("index.html", page),
    ];
    for (name, text) in files {
        io::write_atomic(&out.join(name), |w| Ok(w.write_all(text.as_bytes())?))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_that_of_a_sample() {
        assert_eq!(mean_and_std_dev(&[]), None);
        assert_eq!(mean_and_std_dev(&[50.0]), Some((50.0, None)));
        let (mean, std_dev) = mean_and_std_dev(&[40.0, 50.0, 60.0]).unwrap();
        assert_eq!((mean, std_dev), (50.0, Some(10.0)));
    }
}
