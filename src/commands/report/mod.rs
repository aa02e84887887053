//! `mqat report`: evaluated experiments side by side, accuracy against compression.
//!
//! [`report`] collects what `mqat test` wrote into the experiments' folders (`gather.rs`), averages runs that differ in
//! nothing but their seed, compares the rows with one of them on the same objects (`compare.rs`), and writes tables, a
//! chart and an HTML page (`page.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::commands::test::{TestRequest, test};
use crate::data::Split;
use crate::eval::Progress;
use crate::io;
use crate::io::chart::{Chart, Series};
use crate::pose::{EvalTable, Recall};
use crate::run::home::Home;
use crate::run::request::Request;
use crate::world::World;

mod base;
mod cells;
mod columns;
mod compare;
mod gather;
mod page;
mod start;
mod summary;
mod tables;

use base::Base;
pub use columns::Column;
use compare::RowOutcomes;
use gather::GatheredExperiment;
pub use gather::{Point, QuantizationKind};
use page::Pictures;
pub use summary::{
    ClassSpread, Group, PairedReport, PairedRow, PairedRun, ReportSummary, RunSpread, WorseControl,
};
pub use tables::TableFormat;

/// What `mqat report` is asked.
#[derive(Debug, Clone)]
pub struct ReportRequest {
    /// Problem and topology for experiments given by number, places, device.
    pub run: Request,
    /// Experiments: folders, folders with experiments below them, or numbers (`3`, `exp003`); none takes those of the
    /// topology.
    pub experiments: Vec<String>,
    /// The row that the others are compared with: `start`, or an experiment as above with `:STAGE` after it for another
    /// stage than its last evaluated one.
    pub paired: Option<String>,
    /// Folder of the evaluation of the network that the runs began with; none is looked for in the experiments.
    pub start: Option<PathBuf>,
    /// The columns of the tables; empty takes the usual ones.
    pub columns: Vec<Column>,
    /// Whether tables show every class.
    pub per_class: bool,
    /// Whether the page holds its pictures, which lie beside it else.
    pub self_contained: bool,
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
/// If an experiment is not there, none has an evaluation, the evaluations are of different lists of images, the row to
/// compare with is not there, or a file cannot be read or written.
pub fn report(
    request: &ReportRequest,
    progress: &mut dyn FnMut(&str, Progress),
) -> Result<ReportSummary> {
    let home = request.run.home()?;
    let columns = columns_of(request)?;
    let mut folders = gather::find(&request.experiments, &request.run.select, &home)?;
    let base = match &request.paired {
        Some(text) => Some(Base::parse(text, &request.run.select, &home)?),
        None => None,
    };
    if let Some(folder) = base.as_ref().and_then(Base::folder)
        && !folders.iter().any(|f| gather::is_same(f, folder))
    {
        folders.push(folder.to_owned());
    }
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
    let start = start::find(request, &experiments, progress)?;
    let points: Vec<Point> =
        start.into_iter().chain(experiments.iter().flat_map(|e| e.points.clone())).collect();
    ensure_comparable(&points)?;
    let groups = groups(&points);
    let (paired, worse_controls) = compare(base.as_ref(), &groups, &points, &experiments)?;
    let out = request.out.clone().unwrap_or_else(|| default_folder(request, &home));
    fs::create_dir_all(&out).with_context(|| format!("making the folder {}", out.display()))?;
    let summary = ReportSummary {
        synthetic_data: points.iter().any(|p| p.report.dataset.synthetic),
        groups,
        paired,
        worse_controls,
        columns,
        columns_chosen: !request.columns.is_empty(),
        per_class: request.per_class,
        points,
        left_out,
        folder: out,
    };
    write(request, &summary, &experiments)?;
    Ok(summary)
}

/// The columns that were chosen, else the usual ones.
fn columns_of(request: &ReportRequest) -> Result<Vec<Column>> {
    let is_paired = request.paired.is_some();
    if request.columns.is_empty() {
        return Ok(Column::default_ones(is_paired));
    }
    for (i, column) in request.columns.iter().enumerate() {
        ensure!(
            is_paired || !column.is_paired(),
            "--columns: {column} compares with a base; pass --paired BASE"
        );
        ensure!(!request.columns[..i].contains(column), "--columns: {column} is named twice");
    }
    Ok(request.columns.clone())
}

/// The rows against the base, and the float rows that are worse than the start.
fn compare(
    base: Option<&Base>,
    groups: &[Group],
    points: &[Point],
    experiments: &[GatheredExperiment],
) -> Result<(Option<PairedReport>, Vec<WorseControl>)> {
    let has_start = groups.iter().any(|g| g.family == QuantizationKind::Start);
    if base.is_none() && !has_start {
        return Ok((None, Vec::new()));
    }
    let base = base.map(|base| base.row(groups, points, experiments)).transpose()?;
    let outcomes = RowOutcomes::read(groups, points)?;
    let worse = outcomes.worse_controls(groups)?;
    for control in &worse {
        tracing::warn!("{}", control.text());
    }
    Ok((base.map(|base| outcomes.against(groups, base)).transpose()?, worse))
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
        &World::alone(),
        progress,
    )
    .with_context(|| format!("evaluating {}", folder.display()))?;
    Ok(())
}

/// Percentages over different images are not to be put side by side.
fn ensure_comparable(points: &[Point]) -> Result<()> {
    let what = |p: &Point| {
        let d = &p.report.dataset;
        (d.root.clone(), d.list.clone(), d.num_objects)
    };
    let Some(first) = points.first() else { return Ok(()) };
    for other in points {
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

/// Runs of the same network under the same config but for the seed, in the order of appearance; of a seed one run, runs in
/// the order of their seeds.
fn groups(points: &[Point]) -> Vec<Group> {
    let mut keys: Vec<&str> = points.iter().map(|p| p.key.as_str()).collect();
    let mut seen = std::collections::HashSet::new();
    keys.retain(|key| seen.insert(*key));
    keys.iter()
        .filter_map(|key| {
            let of_key = points.iter().enumerate().filter(|(_, p)| p.key == **key);
            // One run seen twice (what orders of a search begin with alike, a copy) is not a second sample. In the order
            // of seeds, so that the order of the arguments changes no number.
            let mut of_seed: BTreeMap<u64, (usize, &Point)> = BTreeMap::new();
            for (place, run) in of_key {
                let (_, first) = of_seed.entry(run.seed).or_insert((place, run));
                warn_of_repeated(first, run);
            }
            let (places, runs): (Vec<usize>, Vec<&Point>) = of_seed.into_values().unzip();
            let first = runs.first()?;
            Some(Group {
                network: first.network.clone(),
                family: first.family,
                sizes: first.sizes,
                global_step: first.global_step,
                seeds: runs.iter().map(|p| p.seed).collect(),
                headline: spreads(&runs, EvalTable::HEADLINE),
                true_adi: spreads(&runs, EvalTable::TRUE_ADI),
                classes: class_spreads(&runs),
                runs: places,
            })
        })
        .collect()
}

/// Says that a run is left out beside another one of the same config and seed, if it is of another experiment.
fn warn_of_repeated(first: &Point, run: &Point) {
    if first.experiment != run.experiment {
        tracing::warn!(
            "{} has the same config and seed as {} ({}): the first counts, since a seed is one sample; if it differs in what no config says, compare it in a report of its own",
            run.experiment.display(),
            first.experiment.display(),
            first.network
        );
    }
}

/// The headline of every class over all depths; nothing where there is one class.
fn class_spreads(runs: &[&Point]) -> Vec<ClassSpread> {
    let Some(first) = runs.first() else { return Vec::new() };
    let Some(last) = first.report.table.bins.len().checked_sub(1) else { return Vec::new() };
    let classes = first.report.table.classes.iter().enumerate();
    classes
        .filter_map(|(class, section)| {
            let recalls = runs.iter().filter_map(|p| {
                p.report.table.classes.get(class)?.recall(EvalTable::HEADLINE, last)
            });
            let spread = spread_of("all", &recalls.collect::<Vec<_>>())?;
            Some(ClassSpread { class: section.name.clone(), spread })
        })
        .collect()
}

fn spreads(runs: &[&Point], row: &str) -> Vec<RunSpread> {
    let Some(first) = runs.first() else { return Vec::new() };
    let bins = first.report.table.bins.iter().enumerate();
    bins.filter_map(|(i, bin)| {
        let recalls = runs.iter().filter_map(|p| p.report.table.all.recall(row, i));
        spread_of(&bin.name, &recalls.collect::<Vec<_>>())
    })
    .collect()
}

/// Mean and spread of one recall over runs; none without objects.
fn spread_of(bin: &str, recalls: &[&Recall]) -> Option<RunSpread> {
    let values: Vec<f64> = recalls.iter().filter_map(|r| r.percent).collect();
    let (mean, std_dev) = mean_and_std_dev(&values)?;
    let interval_95 = match recalls {
        [one] => one.interval_95,
        _ => None,
    };
    Some(RunSpread { bin: bin.to_owned(), mean, std_dev, interval_95 })
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
        y_label: "ADD-0.1d (published as ADI), %".to_owned(),
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
    let mut pictures = Pictures::new(out, request.self_contained);
    let page = page::page(title, summary, experiments, &svg, &mut pictures)?;
    let files = [
        ("table.md", tables::markdown(summary)),
        ("table.csv", tables::csv(summary)),
        ("table.tex", tables::latex(summary)),
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
