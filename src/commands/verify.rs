//! `mqat verify A B`: whether two artefacts of one network still compute the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::Serialize;

use crate::artifact::{Artifact, Asked, EngineChoice, FileKind, Strictness, open};
use crate::data::{Dataset, Purpose, Split};
use crate::eval::{
    Deviation, Evaluation, EvaluationInfo, OutputDeviation, Pair, Prediction, Progress,
    SYNTHETIC_FILE, evaluate, infer_pair, sequences_of_objects,
};
use crate::nn::DenseLevel;
use crate::pose::errors::{re_deg, te_mm};
use crate::pose::{Discordant, MeanDifference, TargetErrors};
use crate::run::config::{Config, Names};
use crate::run::home::Home;
use crate::run::objects;
use crate::run::options::{decoder_for, infer_options};
use crate::run::request::{Request, limited};

/// What is compared in percent of objects.
const ADD: &str = "ADD-0.1d";

/// What `mqat verify` is asked.
#[derive(Debug, Clone)]
pub struct VerifyRequest {
    /// Config, places, device.
    pub run: Request,
    /// The artefacts; the first one is the reference.
    pub files: [PathBuf; 2],
    /// The split.
    pub split: Split,
    /// How many of its images, from the first on; none takes all.
    pub images: Option<usize>,
    /// By what they are judged; none leaves it to the files.
    pub rule: Option<Rule>,
    /// What may differ.
    pub limits: Limits,
}

/// By what two artefacts are judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Both should compute the same numbers up to the rounding of floats: outputs, detections, ADI.
    SameNumbers,
    /// Their numbers are not the same, as of a quantized network and the float one: is B shown to be worse on the same objects?
    AsGood,
}

/// What may differ at most; what is not named is the rule's own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Limits {
    /// Largest difference of a level's logits or offsets, as a fraction of the largest magnitude of that output in the
    /// reference.
    pub outputs: Option<f64>,
    /// Detection mismatch rate: fraction of the detections that only one of the two makes.
    pub changed: Option<f64>,
    /// Difference of ADI-0.1d, percentage points.
    pub adi_points: Option<f64>,
    /// By how much the mean ADD may be larger, diameters: the whole 95 % interval of the difference above it fails.
    pub add_diameters: Option<f64>,
    /// Below this probability (McNemar) more lost objects than gained ones are not chance.
    pub chance: Option<f64>,
}

impl Limits {
    /// Those of a rule.
    pub fn of(rule: Rule) -> Self {
        let none = Self::default();
        match rule {
            Rule::SameNumbers => {
                Self { outputs: Some(1e-4), changed: Some(0.01), adi_points: Some(1.0), ..none }
            }
            Rule::AsGood => Self { add_diameters: Some(0.01), chance: Some(0.05), ..none },
        }
    }

    /// These, and where one is missing that of the rule.
    fn or(self, rule: Self) -> Self {
        Self {
            outputs: self.outputs.or(rule.outputs),
            changed: self.changed.or(rule.changed),
            adi_points: self.adi_points.or(rule.adi_points),
            add_diameters: self.add_diameters.or(rule.add_diameters),
            chance: self.chance.or(rule.chance),
        }
    }
}

/// What `mqat verify` found.
#[derive(Debug, Serialize)]
pub struct VerifyReport {
    /// True when no limit is exceeded.
    pub passed: bool,
    /// The limits that are exceeded, a line each.
    pub failures: Vec<String>,
    /// By what they are judged.
    pub rule: Rule,
    /// The limits.
    pub limits: Limits,
    /// The artefacts.
    pub artefacts: [ArtefactReport; 2],
    /// Images compared.
    pub num_images: usize,
    /// Whether all images of the split were asked for.
    pub whole_split: bool,
    /// The split they are of.
    pub split: String,
    /// True when the dataset says that it was rendered.
    pub synthetic_data: bool,
    /// The outputs of pyramid levels, finest first.
    pub levels: Vec<LevelDeviation>,
    /// All other outputs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outputs: Vec<OutputDeviation>,
    /// Who finds what.
    pub detections: Detections,
    /// Poses of objects that both find; none when there is no such object.
    pub poses: Option<PoseDeviation>,
    /// ADI-0.1d of the second less that of the first, percentage points; none without true objects.
    pub adi_difference_points: Option<f64>,
    /// Objects whose verdict differs.
    pub adi_verdicts: Verdicts,
    /// How probable so uneven verdicts are by chance (exact McNemar test, two-sided).
    pub adi_chance: f64,
    /// ADD of the second less that of the first, diameters; errors above 1 diameter and missing poses count as 1; none
    /// without true objects.
    pub add_difference: Option<MeanDifference>,
}

/// How far the outputs of one pyramid level lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct LevelDeviation {
    /// Distance of its cells, px.
    pub stride: i64,
    /// Class logits.
    pub logits: Deviation,
    /// Corner offsets.
    pub offsets: Deviation,
}

/// Puts the outputs of each of the network's `dense` levels together; what belongs to none stays as it is.
fn by_level(
    mut outputs: Vec<OutputDeviation>,
    dense: &[DenseLevel],
) -> (Vec<LevelDeviation>, Vec<OutputDeviation>) {
    let mut levels = Vec::new();
    for level in dense {
        let named = |name: &str| {
            outputs.iter().find(|output| output.name == name).map(|output| output.deviation)
        };
        let (Some(logits), Some(offsets)) = (named(&level.cls), named(&level.reg)) else {
            continue;
        };
        levels.push(LevelDeviation { stride: level.stride, logits, offsets });
        outputs.retain(|output| output.name != level.cls && output.name != level.reg);
    }
    (levels, outputs)
}

/// True objects by who finds their pose within the limit of ADI-0.1d.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Verdicts {
    /// Both.
    pub both: usize,
    /// The first alone: what the second loses.
    pub only_first: usize,
    /// The second alone: what it gains.
    pub only_second: usize,
    /// Neither.
    pub neither: usize,
}

impl Verdicts {
    /// Counts pairs of verdicts.
    fn of(pairs: impl Iterator<Item = [bool; 2]>) -> Self {
        let mut verdicts = Self::default();
        for are_right in pairs {
            let count = match are_right {
                [true, true] => &mut verdicts.both,
                [true, false] => &mut verdicts.only_first,
                [false, true] => &mut verdicts.only_second,
                [false, false] => &mut verdicts.neither,
            };
            *count += 1;
        }
        verdicts
    }

    /// How probable so uneven changes are, or more uneven ones, if both were equally good (the exact sign test of
    /// McNemar).
    pub fn chance(&self) -> f64 {
        let (worse, better) = (self.only_first as u64, self.only_second as u64);
        Discordant { better, worse }.p()
    }
}

/// One of the two.
#[derive(Debug, Clone, Serialize)]
pub struct ArtefactReport {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub path: PathBuf,
    /// What kind of file it is.
    pub kind: String,
    /// What the network is, for people.
    pub name: String,
    /// Size of the file.
    pub bytes: u64,
    /// ADI-0.1d over all objects, percent.
    pub adi_percent: Option<f64>,
}

/// Detections, one at most for a class and image.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Detections {
    /// Made by both.
    pub both: usize,
    /// Made by the first alone.
    pub only_first: usize,
    /// Made by the second alone.
    pub only_second: usize,
    /// Those that only one makes over all.
    pub changed_fraction: f64,
}

/// How far poses of the same object lie apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PoseDeviation {
    /// Angle of the rotation between the two, degrees.
    pub rotation_deg: Quantiles,
    /// Distance of the translations, mm.
    pub translation_mm: Quantiles,
    /// The same over the object's distance.
    pub translation_relative: Quantiles,
}

/// Some numbers in short.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// The middle one.
    pub median: f64,
    /// 95 % are at most this.
    pub p95: f64,
    /// The largest.
    pub max: f64,
}

impl Quantiles {
    /// `None` without numbers.
    fn of(mut values: Vec<f64>) -> Option<Self> {
        values.sort_by(f64::total_cmp);
        let last = values.len().checked_sub(1)?;
        let at = |fraction: f64| values[(fraction * last as f64).ceil() as usize];
        Some(Self { median: at(0.5), p95: at(0.95), max: values[last] })
    }
}

/// Runs both artefacts over the same images and compares outputs, detections, poses and accuracy.
///
/// # Errors
/// If a file cannot be read, the two are different networks, or the dataset cannot be read. Differences above a limit
/// are no error here: see [`VerifyReport::passed`].
pub fn verify(request: &VerifyRequest, progress: &mut dyn FnMut(Progress)) -> Result<VerifyReport> {
    let home = request.run.home()?;
    let files = open_both(request, &home)?;
    ensure_same_network(&files)?;
    let config = files[0].config.clone();
    let device = request.run.open_device(&config)?;
    let dataset = request.run.open_split(&home, &config, request.split, Purpose::Images)?;
    let dataset = limited(dataset, request.images);
    let threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let engine = |file: &Artifact| file.engine(device, Strictness::Strict, threads);
    let artefacts = [engine(&files[0])?, engine(&files[1])?];
    let options = infer_options(&config, device, request.run.skip_bad);
    let engines = [artefacts[0].engine.as_ref(), artefacts[1].engine.as_ref()];
    for file in &files {
        objects::warn_of_contradiction(file.objects()?, &dataset, &file.file);
    }
    let decoder = decoder_for(&config, &dataset)?;
    let pair = infer_pair(engines, decoder.as_ref(), &dataset, &options, progress)?;
    if let (true, Some(bad)) = (pair.left_out.len() == dataset.frames.len(), pair.left_out.first())
    {
        bail!(
            "none of the {} images could be read, the first: {}",
            dataset.frames.len(),
            bad.error
        );
    }
    let (mut reports, mut errors) = (Vec::with_capacity(2), Vec::with_capacity(2));
    for (i, artefact) in artefacts.iter().enumerate() {
        let path = request.files[i].clone();
        let bytes =
            std::fs::metadata(&path).with_context(|| format!("reading {}", path.display()))?.len();
        let evaluation = score(&config, &dataset, request.split, &pair, i)?;
        let adi_percent = evaluation.report.headline_percent;
        errors.push(evaluation.errors);
        let (kind, name) = (files[i].kind.text().to_owned(), artefact.name.clone());
        reports.push(ArtefactReport { path, kind, name, bytes, adi_percent });
    }
    let artefacts: [ArtefactReport; 2] =
        reports.try_into().map_err(|_| anyhow::anyhow!("two artefacts have two reports"))?;
    let objects = Objects::of(&errors[0], &errors[1]);
    let is_integer = files[0].computes_with_integers()? || files[1].computes_with_integers()?;
    let of_files = if is_integer { Rule::AsGood } else { Rule::SameNumbers };
    let rule = request.rule.unwrap_or(of_files);
    let dense = config.network.family().dense_levels();
    Ok(judge(request, rule, &dataset, &dense, pair, artefacts, objects))
}

/// Each file with its config; a file without takes the other's.
fn open_both(request: &VerifyRequest, home: &Home) -> Result<[Artifact; 2]> {
    let select = request.run.select.for_evaluation();
    let [first, second] = &request.files;
    let asked = |beside| Asked {
        select: &select,
        home,
        engine: EngineChoice::Auto,
        names: Names::Dataset,
        beside: Some(beside),
    };
    let both = [open(first, &asked(second))?, open(second, &asked(first))?];
    if both.iter().all(|file| file.kind == FileKind::Onnx) {
        both[0].ensure_uses(request.run.device)?;
    }
    Ok(both)
}

/// Refuses networks whose outputs cannot be compared.
fn ensure_same_network(files: &[Artifact; 2]) -> Result<()> {
    let configs = files.each_ref().map(|file| &file.config);
    let [a, b] = configs;
    let classes = [a.data.num_classes(), b.data.num_classes()];
    let outputs = configs.map(|c| c.network.family().describe_outputs());
    let input = configs.map(|c| (c.input.width, c.input.height));
    let what = if classes[0] != classes[1] {
        format!("{} and {} object classes", classes[0], classes[1])
    } else if outputs[0] != outputs[1] {
        format!("{} and {}", outputs[0], outputs[1])
    } else if input[0] != input[1] {
        let [(w, h), (v, g)] = input;
        format!("inputs of {w} x {h} and {v} x {g} px")
    } else if a.input != b.input {
        "another internal camera or normalisation of images".to_owned()
    } else {
        return Ok(());
    };
    bail!(
        "{} and {} are different networks, which cannot be compared: they have {what}",
        files[0].file.display(),
        files[1].file.display()
    )
}

/// One artefact's poses against the true ones.
fn score(
    config: &Config,
    dataset: &Arc<Dataset>,
    split: Split,
    pair: &Pair,
    which: usize,
) -> Result<Evaluation> {
    let info = EvaluationInfo {
        name: if which == 0 { "first" } else { "second" },
        list: config.data.list(split),
        left_out: &pair.left_out,
        timing: None,
    };
    let predictions = &pair.predictions[which];
    evaluate(dataset, &config.data, predictions, &config.evaluation, info)
}

/// The true objects under both artefacts.
struct Objects {
    verdicts: Verdicts,
    add: Option<MeanDifference>,
}

impl Objects {
    /// Of the errors of both, in the dataset's order.
    fn of(first: &[TargetErrors], second: &[TargetErrors]) -> Self {
        let pairs = || first.iter().zip(second);
        let capped = |e: &TargetErrors| e.headline_diameters.min(1.0);
        let errors: Vec<_> = pairs().map(|(a, b)| (capped(a), capped(b))).collect();
        let sequences = sequences_of_objects(first.iter().map(|e| e.image.as_str()));
        Self {
            verdicts: Verdicts::of(pairs().map(|(a, b)| [a.is_right(), b.is_right()])),
            add: MeanDifference::of(&errors, &sequences),
        }
    }
}

/// Puts the numbers together and holds them against the limits.
fn judge(
    request: &VerifyRequest,
    rule: Rule,
    dataset: &Dataset,
    dense: &[DenseLevel],
    pair: Pair,
    artefacts: [ArtefactReport; 2],
    objects: Objects,
) -> VerifyReport {
    let (detections, poses) = compare_poses(&pair.predictions);
    let difference = match (artefacts[0].adi_percent, artefacts[1].adi_percent) {
        (Some(a), Some(b)) => Some(b - a),
        _ => None,
    };
    let limits = request.limits.or(Limits::of(rule));
    let mut failures = failures(&limits, &pair.outputs, dense, &detections, difference);
    failures.extend(worse(&limits, &objects));
    let (levels, outputs) = by_level(pair.outputs, dense);
    let Objects { verdicts, add } = objects;
    VerifyReport {
        passed: failures.is_empty(),
        failures,
        rule,
        limits,
        artefacts,
        num_images: dataset.frames.len() - pair.left_out.len(),
        whole_split: request.images.is_none(),
        split: request.split.to_string(),
        synthetic_data: dataset.root.join(SYNTHETIC_FILE).exists(),
        levels,
        outputs,
        detections,
        poses,
        adi_difference_points: difference,
        adi_verdicts: verdicts,
        adi_chance: verdicts.chance(),
        add_difference: add,
    }
}

/// Why the second is shown to be worse than the first.
fn worse(limits: &Limits, objects: &Objects) -> Vec<String> {
    let Objects { verdicts, add } = objects;
    let mut failures = Vec::new();
    let (lost, gained, p) = (verdicts.only_first, verdicts.only_second, verdicts.chance());
    if limits.chance.is_some_and(|limit| lost > gained && p < limit) {
        failures.push(format!(
            "B loses {lost} objects of {ADD} and gains {gained}, more than chance explains (McNemar p = {p:.4}, below {})",
            limits.chance.unwrap_or_default()
        ));
    }
    match (limits.add_diameters, add) {
        (Some(_), None) => failures.push("there is no true object to judge by".to_owned()),
        (Some(limit), Some(MeanDifference { mean, interval_95: Some([low, high]), .. }))
            if *low > limit =>
        {
            failures.push(format!(
                "ADD of B is larger by {mean:+.4} diameters in the mean (95 % interval {low:+.4} to {high:+.4}), above {limit}"
            ));
        }
        _ => {}
    }
    failures
}

/// A number in few digits.
fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        1e-3..1e5 => format!("{value:.4}"),
        _ => format!("{value:.2e}"),
    }
}

fn limit_text(limit: Option<f64>, unit: &str) -> String {
    limit.map_or(String::new(), |limit| format!(" (limit {limit:.2}{unit})"))
}

/// The fewest objects that are lost, with none gained, so that McNemar's test says less than `chance`.
fn fewest_lost(chance: f64) -> usize {
    let is_shown = |num: &usize| {
        let lost = Verdicts { only_first: *num, ..Verdicts::default() };
        lost.chance() < chance
    };
    (1..64).find(is_shown).unwrap_or(64)
}

fn level_name(stride: i64) -> String {
    format!("P{}", stride.max(1).ilog2())
}

/// What an output is, and of which pyramid level: `logits` of `P5`; what is of no level is an output under its name.
fn kind_of(name: &str, dense: &[DenseLevel]) -> (&'static str, String) {
    for level in dense {
        for (output, kind) in [(&level.cls, "logits"), (&level.reg, "offsets")] {
            if output == name {
                return (kind, level_name(level.stride));
            }
        }
    }
    ("outputs", name.to_owned())
}

/// What exceeds a limit.
fn failures(
    limits: &Limits,
    outputs: &[OutputDeviation],
    dense: &[DenseLevel],
    detections: &Detections,
    adi_points: Option<f64>,
) -> Vec<String> {
    let mut failures = Vec::new();
    for kind in ["logits", "offsets", "outputs"] {
        let of_kind: Vec<(String, &Deviation)> = outputs
            .iter()
            .map(|output| (kind_of(&output.name, dense), &output.deviation))
            .filter(|((own, _), _)| *own == kind)
            .map(|((_, place), deviation)| (place, deviation))
            .collect();
        for (place, deviation) in of_kind.iter().filter(|(_, d)| d.num_not_finite > 0) {
            failures.push(format!(
                "{kind} of {place}: {} values are finite in one of the two only",
                deviation.num_not_finite
            ));
        }
        let beyond: Vec<_> = of_kind
            .iter()
            .filter(|(_, d)| limits.outputs.is_some_and(|limit| d.relative > limit))
            .collect();
        let worst = beyond.iter().max_by(|(_, a), (_, b)| a.relative.total_cmp(&b.relative));
        if let Some((place, deviation)) = worst {
            failures.push(format!(
                "{} differ, most of all {place} by {} of their scale, above {:e}",
                match kind {
                    "outputs" => format!("{} of {} outputs", beyond.len(), of_kind.len()),
                    _ => format!("{kind} of {} of {} levels", beyond.len(), of_kind.len()),
                },
                short(deviation.relative),
                limits.outputs.unwrap_or_default()
            ));
        }
    }
    if let Some(changed) = limits.changed.filter(|limit| detections.changed_fraction > *limit) {
        failures.push(format!(
            "detection mismatch rate of {:.2} %, above {:.2} %",
            100.0 * detections.changed_fraction,
            100.0 * changed
        ));
    }
    if let (Some(points), Some(limit)) = (adi_points, limits.adi_points)
        && points.abs() > limit
    {
        failures.push(format!("{ADD} differs by {points:+.2} points, above {limit:.2}"));
    }
    failures
}

/// Matches predictions by image and class.
fn compare_poses(predictions: &[Vec<Prediction>; 2]) -> (Detections, Option<PoseDeviation>) {
    type ByPlace<'a> = BTreeMap<(&'a str, usize), &'a Prediction>;
    let [first, second]: [ByPlace; 2] = predictions
        .each_ref()
        .map(|list| list.iter().map(|p| ((p.image.as_str(), p.class), p)).collect());
    let (mut rotations, mut translations, mut relative) = (Vec::new(), Vec::new(), Vec::new());
    let mut both = 0;
    for (place, a) in &first {
        let Some(b) = second.get(place) else { continue };
        both += 1;
        if let (Ok(a), Ok(b)) = (a.pose(), b.pose()) {
            rotations.push(re_deg(&b, &a));
            translations.push(te_mm(&b, &a));
            relative.push(te_mm(&b, &a) / a.t_mm.norm());
        }
    }
    let (only_first, only_second) = (first.len() - both, second.len() - both);
    let all = (both + only_first + only_second).max(1);
    let changed_fraction = (only_first + only_second) as f64 / all as f64;
    let spreads = (Quantiles::of(rotations), Quantiles::of(translations), Quantiles::of(relative));
    let poses = match spreads {
        (Some(rotation_deg), Some(translation_mm), Some(translation_relative)) => {
            Some(PoseDeviation { rotation_deg, translation_mm, translation_relative })
        }
        _ => None,
    };
    (Detections { both, only_first, only_second, changed_fraction }, poses)
}

impl VerifyReport {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        for (letter, a) in ["A", "B"].iter().zip(&self.artefacts) {
            let _ = writeln!(
                out,
                "{letter}  {}: {}, {}, {:.3} MB",
                a.path.display(),
                a.kind,
                a.name,
                a.bytes as f64 / 1e6
            );
        }
        let synthetic = if self.synthetic_data { " (synthetic)" } else { "" };
        let _ =
            writeln!(out, "{} images of the {} split{synthetic}\n", self.num_images, self.split);
        let _ = writeln!(
            out,
            "{:<6} {:>12} {:>12} {:>12}   {:>12} {:>12} {:>12}",
            "level", "logits max", "mean", "of scale", "offsets max", "mean", "of scale"
        );
        for level in &self.levels {
            let part = |d: &Deviation| {
                format!(
                    "{:>12} {:>12} {:>12}",
                    short(d.max_abs),
                    short(d.mean_abs),
                    short(d.relative)
                )
            };
            let _ = writeln!(
                out,
                "{:<6} {}   {}",
                level_name(level.stride),
                part(&level.logits),
                part(&level.offsets)
            );
        }
        for OutputDeviation { name, deviation: d } in &self.outputs {
            let _ = writeln!(
                out,
                "{name}: max {}, mean {}, of scale {}",
                short(d.max_abs),
                short(d.mean_abs),
                short(d.relative)
            );
        }
        self.poses_text(&mut out);
        let _ = match (self.failures.as_slice(), self.rule) {
            ([], Rule::SameNumbers) => writeln!(out, "passed: A and B agree within the limits"),
            ([], Rule::AsGood) => {
                writeln!(out, "passed: B is not shown to be worse than A{}", self.blind())
            }
            (failures, _) => writeln!(out, "FAILED: {}", failures.join("; ")),
        };
        out
    }

    /// What so few objects could not show.
    fn blind(&self) -> String {
        let (Some(chance), Some(MeanDifference { interval_95, num, .. })) =
            (self.limits.chance, self.add_difference)
        else {
            return String::new();
        };
        let least = fewest_lost(chance);
        let high = interval_95.map_or("?".to_owned(), |[_, high]| format!("{high:+.4}"));
        let hint = if self.whole_split { "" } else { ": --images 0 takes all" };
        format!(
            "; of {num} objects a loss of fewer than {least} ({:.1} %) cannot be told from chance, and ADD may be larger by {high} \
             diameters{hint}",
            100.0 * least as f64 / num.max(1) as f64
        )
    }

    fn poses_text(&self, out: &mut String) {
        let d = &self.detections;
        let _ = writeln!(
            out,
            "\ndetections: {} by both, {} by A alone, {} by B alone: {:.2} % changed{}",
            d.both,
            d.only_first,
            d.only_second,
            100.0 * d.changed_fraction,
            limit_text(self.limits.changed.map(|limit| 100.0 * limit), " %")
        );
        let _ = match &self.poses {
            None => writeln!(out, "poses: none that both find"),
            Some(p) => {
                let spread = |s: &Quantiles| {
                    format!("{} / {} / {}", short(s.median), short(s.p95), short(s.max))
                };
                writeln!(
                    out,
                    "poses, median / 95 % / largest: rotation {} deg; translation {} mm, {} of the distance",
                    spread(&p.rotation_deg),
                    spread(&p.translation_mm),
                    spread(&p.translation_relative)
                )
            }
        };
        let percent = |a: &ArtefactReport| {
            a.adi_percent.map_or("none".to_owned(), |percent| format!("{percent:.2} %"))
        };
        let [a, b] = self.artefacts.each_ref().map(percent);
        let points = self.adi_difference_points.map_or(String::new(), |points| {
            format!(": {points:+.2} points{}", limit_text(self.limits.adi_points, ""))
        });
        let _ = writeln!(out, "{ADD}: A {a}, B {b}{points}");
        let v = &self.adi_verdicts;
        if v.only_first + v.only_second > 0 {
            let _ = writeln!(
                out,
                "  B loses {} objects and gains {} of {} (McNemar's exact test p = {:.2}{})",
                v.only_first,
                v.only_second,
                v.both + v.only_first + v.only_second + v.neither,
                self.adi_chance,
                self.limits
                    .chance
                    .map_or(String::new(), |limit| format!(", no chance below {limit}"))
            );
        }
        if let Some(MeanDifference { mean, interval_95, .. }) = self.add_difference {
            let interval = interval_95.map_or(String::new(), |[low, high]| {
                format!(" (95 % interval {low:+.4} to {high:+.4})")
            });
            let limit = limit_text(self.limits.add_diameters, "");
            let _ = writeln!(out, "ADD: B {mean:+.4} diameters in the mean{interval}{limit}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prediction(image: &str, turn_deg: f64, x_mm: f64) -> Prediction {
        let (sin, cos) = turn_deg.to_radians().sin_cos();
        Prediction {
            image: image.to_owned(),
            class: 0,
            obj_id: None,
            score: 0.5,
            r: [cos, -sin, 0.0, sin, cos, 0.0, 0.0, 0.0, 1.0],
            t_mm: [x_mm, 0.0, 1000.0],
            inliers: 8,
            residual_px: 1.0,
            inlier_px: 0.0,
            sigma: None,
        }
    }

    #[test]
    fn detections_and_poses_are_matched_by_image_and_class() {
        let first =
            vec![prediction("a", 0.0, 0.0), prediction("b", 0.0, 0.0), prediction("c", 0.0, 0.0)];
        let second =
            vec![prediction("b", 2.0, 10.0), prediction("a", 0.0, 0.0), prediction("d", 0.0, 0.0)];
        let (detections, poses) = compare_poses(&[first, second]);
        let expected = Detections { both: 2, only_first: 1, only_second: 1, changed_fraction: 0.5 };
        assert_eq!(detections, expected);
        let poses = poses.unwrap();
        assert!((poses.rotation_deg.max - 2.0).abs() < 1e-6, "{poses:?}");
        assert!((poses.translation_mm.max - 10.0).abs() < 1e-9);
        assert!((poses.translation_relative.max - 0.01).abs() < 1e-9);
        let (none, poses) = compare_poses(&[Vec::new(), Vec::new()]);
        assert_eq!((none.changed_fraction, poses), (0.0, None));
    }

    #[test]
    fn a_spread_is_of_the_sorted_numbers() {
        let s = Quantiles::of((1..=100).rev().map(f64::from).collect()).unwrap();
        assert_eq!((s.median, s.p95, s.max), (51.0, 96.0, 100.0));
        assert_eq!(
            Quantiles::of(vec![7.0]).unwrap(),
            Quantiles { median: 7.0, p95: 7.0, max: 7.0 }
        );
        assert_eq!(Quantiles::of(Vec::new()), None);
    }

    #[test]
    fn verdicts_are_counted_in_pairs_and_tested_by_sign() {
        let pairs = [[true, true], [true, false], [false, true], [true, false], [false, false]];
        let verdicts = Verdicts::of(pairs.into_iter());
        let expected = Verdicts { both: 1, only_first: 2, only_second: 1, neither: 1 };
        assert_eq!(verdicts, expected);
        // Three changes: 2 against 1 or more uneven is every outcome.
        assert!((verdicts.chance() - 1.0).abs() < 1e-12);
        // 8 against 1: 2 (1 + 9) / 2^9.
        let uneven = Verdicts { only_first: 8, only_second: 1, ..Verdicts::default() };
        assert!((uneven.chance() - 20.0 / 512.0).abs() < 1e-12);
        assert_eq!(Verdicts::default().chance(), 1.0);
        let many = Verdicts { only_first: 2000, only_second: 2000, ..Verdicts::default() };
        assert!((many.chance() - 1.0).abs() < 1e-6, "{}", many.chance());
    }

    /// Levels of these strides with outputs `cls_pK` and `reg_pK`.
    fn dense(strides: &[i64]) -> Vec<DenseLevel> {
        let of = |&stride: &i64| {
            let name = |which: &str| format!("{which}_p{}", stride.ilog2());
            DenseLevel { cls: name("cls"), reg: name("reg"), stride, size_px: 32.0 }
        };
        strides.iter().map(of).collect()
    }

    #[test]
    fn outputs_of_a_level_are_told_together() {
        let output = |name: &str, max_abs| OutputDeviation {
            name: name.to_owned(),
            deviation: Deviation { max_abs, ..Default::default() },
        };
        let names = ["cls_p4", "cls_p3", "mask", "reg_p3", "reg_p4", "cls_p9"];
        let outputs = names.iter().zip(0..).map(|(name, i)| output(name, f64::from(i)));
        let (levels, others) = by_level(outputs.collect(), &dense(&[8, 16, 512]));
        let found: Vec<_> =
            levels.iter().map(|l| (l.stride, l.logits.max_abs, l.offsets.max_abs)).collect();
        assert_eq!(found, [(8, 1.0, 3.0), (16, 0.0, 4.0)]);
        assert_eq!(others, [output("mask", 2.0), output("cls_p9", 5.0)]);
        let json = serde_json::to_value(&others[0]).unwrap();
        assert_eq!((&json["name"], &json["max_abs"]), (&"mask".into(), &2.0.into()));
    }

    #[test]
    fn every_limit_has_its_own_failure() {
        let limits = Limits::of(Rule::SameNumbers);
        let output = |name: &str, relative| OutputDeviation {
            name: name.to_owned(),
            deviation: Deviation { relative, ..Default::default() },
        };
        let fine = [output("cls_p3", 1e-4), output("cls_p5", 0.0), output("reg_p3", 0.0)];
        let dense = dense(&[8, 16, 32, 64]);
        let with = |output: OutputDeviation| [&fine[..], &[output]].concat();
        let none = Detections::default();
        assert!(failures(&limits, &fine, &dense, &none, Some(-1.0)).is_empty());
        let text = failures(&limits, &with(output("reg_p5", 2e-4)), &dense, &none, None).join("; ");
        let expected =
            "offsets of 1 of 2 levels differ, most of all P5 by 2.00e-4 of their scale, above 1e-4";
        assert_eq!(text, expected);
        let text =
            failures(&limits, &with(output("rotation", 0.5)), &dense, &none, None).join("; ");
        assert!(text.starts_with("1 of 1 outputs differ, most of all rotation by 0.5"), "{text}");
        let mut wild = output("cls_p6", 0.0);
        wild.deviation.num_not_finite = 3;
        let text = failures(&limits, &with(wild), &dense, &none, None).join("; ");
        assert_eq!(text, "logits of P6: 3 values are finite in one of the two only");
        let changed = Detections { changed_fraction: 0.02, ..none };
        assert!(
            failures(&limits, &fine, &dense, &changed, None)[0].contains("mismatch rate of 2.00 %")
        );
        let text = failures(&limits, &fine, &dense, &none, Some(-1.25)).join("; ");
        assert_eq!(text, "ADD-0.1d differs by -1.25 points, above 1.00");
    }

    #[test]
    fn an_integer_file_is_judged_by_objects_alone() {
        let limits = Limits::default().or(Limits::of(Rule::AsGood));
        let far = OutputDeviation {
            name: "cls_p3".to_owned(),
            deviation: Deviation { relative: 0.07, ..Default::default() },
        };
        let changed = Detections { changed_fraction: 0.2, ..Detections::default() };
        assert!(failures(&limits, &[far], &dense(&[8]), &changed, Some(-3.0)).is_empty());
        let objects = |lost, gained, mean, half| Objects {
            verdicts: Verdicts { only_first: lost, only_second: gained, both: 80, neither: 9 },
            add: Some(MeanDifference {
                mean,
                interval_95: Some([mean - half, mean + half]),
                num: 100,
            }),
        };
        assert!(worse(&limits, &objects(5, 0, 0.02, 0.015)).is_empty());
        let text = worse(&limits, &objects(6, 0, 0.0, 0.01)).join("; ");
        assert!(text.starts_with("B loses 6 objects") && text.contains("p = 0.031"), "{text}");
        // As uneven, but better.
        assert!(worse(&limits, &objects(0, 9, 0.0, 0.01)).is_empty());
        let text = worse(&limits, &objects(0, 0, 0.02, 0.005)).join("; ");
        assert!(text.contains("+0.0200 diameters in the mean (95 % interval +0.0150"), "{text}");
        let none = Objects { verdicts: Verdicts::default(), add: None };
        assert_eq!(worse(&limits, &none), ["there is no true object to judge by"]);
        // A limit that is named holds whatever the rule.
        let named = Limits { changed: Some(0.1), ..Limits::default() }.or(Limits::of(Rule::AsGood));
        assert_eq!(failures(&named, &[], &[], &changed, None).len(), 1);
        assert_eq!(fewest_lost(0.05), 6);
    }
}
