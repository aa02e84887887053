//! The scores of a run, complete enough to be read without anything else: what `metrics.json` holds.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use super::config::EvalConfig;
use super::json_lines::write_lines;
use super::prediction::Prediction;
use super::sigma::SigmaFactors;
use super::timing::Timing;
use crate::data::{BadSample, DataConfig, Dataset, Frame, ModelSymmetries};
use crate::io::{read_json, read_json_lines, write_json};
use crate::pose::{
    BopScores, Counting, DepthBins, Estimate, EvalTable, Target, TargetErrors, TargetModel,
    sample_vertices, score_targets,
};

/// A file of this name in a dataset's root says that the images were rendered.
pub const SYNTHETIC_FILE: &str = "synthetic.json";

/// What was evaluated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DatasetSummary {
    /// Folder of the dataset.
    pub root: String,
    /// The list of images.
    pub list: String,
    /// True when the dataset says that it was rendered.
    pub synthetic: bool,
    /// Images evaluated.
    pub num_images: usize,
    /// Images left out because their files are bad.
    pub num_left_out: usize,
    /// Of these, images without an object.
    pub num_images_without_object: usize,
    /// True objects.
    pub num_objects: usize,
    /// Predictions of a class in an image without an object of that class; they change no recall.
    pub num_false_predictions: usize,
    /// Images with several objects of a class.
    #[serde(default)]
    pub num_images_with_several: usize,
    /// The largest fraction of the objects that one pose a class and image can find, percent; none without objects.
    #[serde(default)]
    pub ceiling_percent: Option<f64>,
}

/// A class of the dataset.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClassSummary {
    /// Name of the mesh.
    pub name: String,
    /// Number in the mesh's file name.
    pub obj_id: u32,
    /// Diameter, mm.
    pub diameter_mm: f64,
    /// True when its published error is the closest-point one.
    pub symmetric: bool,
}

/// A depth bin's limits in both units.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BinLimits {
    /// `near`, `medium`, `far` or `all`.
    pub name: String,
    /// mm; none when they differ between classes (`diameter` bins of several diameters) and for `all`.
    pub mm: Option<(f64, f64)>,
    /// Diameters; none when they differ between classes (`equal` bins) and for `all`.
    pub diameters: Option<(f64, f64)>,
}

/// A metric's meaning.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Definition {
    /// The metric, or the beginning of its name.
    pub metric: String,
    /// What it is.
    pub meaning: String,
}

/// The complete evaluation of one run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was evaluated, for people: `full precision`, `fpn 2-bit (3 levels)`.
    pub name: String,
    /// The headline, `ADI-0.1d` over all objects, percent.
    pub headline_percent: Option<f64>,
    /// What was evaluated.
    pub dataset: DatasetSummary,
    /// What the metrics mean.
    pub definitions: Vec<Definition>,
    /// The classes, in their order.
    pub classes: Vec<ClassSummary>,
    /// The depth bins' limits, in the columns' order.
    pub bin_limits: Vec<BinLimits>,
    /// Objects in no depth bin; they count in `all` only.
    pub num_outside_bins: usize,
    /// The scores.
    pub table: EvalTable,
    /// How poses were found and scored.
    pub config: EvalConfig,
    /// Where the inference's time went, when it was run here.
    pub timing: Option<Timing>,
    /// Poses that were found only within 2 or 4 times `evaluation.ransac.inlier_px`; 0 of a file of poses.
    #[serde(default)]
    pub num_widened: usize,
    /// What the poses' standard deviations have to be multiplied by; none where no pose has any.
    #[serde(default)]
    pub sigma: Option<SigmaFactors>,
    /// The BOP benchmark's average recalls, where they were computed.
    #[serde(default)]
    pub bop: Option<BopScores>,
    /// What is to be known about the benchmark's scores.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bop_notes: Vec<String>,
}

/// A run's report and the errors it comes from.
#[derive(Debug, Clone)]
pub struct Evaluation {
    /// The scores.
    pub report: Report,
    /// The errors of every true object, in the dataset's order.
    pub errors: Vec<TargetErrors>,
}

/// What [`evaluate`] cannot see for itself.
#[derive(Debug, Clone)]
pub struct EvaluationInfo<'a> {
    /// What is evaluated, for people.
    pub name: &'a str,
    /// The list of images, as in the config.
    pub list: &'a str,
    /// Images that inference left out because their files are bad: their objects are not counted.
    pub left_out: &'a [BadSample],
    /// Where the inference's time went, when it was run here.
    pub timing: Option<Timing>,
}

/// Scores predictions against the dataset's true poses.
///
/// Of the predictions of a class in an image as many count as there are objects of it, the most confident ones, matched as
/// [`score_targets`] says; a missing one counts as 1 diameter, 50 px and the SPEED score pi + 1.
///
/// # Errors
/// If a prediction is of an image that the dataset has not, of a class that it has not, or holds no pose; or a mesh
/// has no vertices.
pub fn evaluate(
    dataset: &Dataset,
    data: &DataConfig,
    predictions: &[Prediction],
    config: &EvalConfig,
    info: EvaluationInfo,
) -> Result<Evaluation> {
    let classes: Vec<ClassSummary> = dataset
        .models
        .iter()
        .enumerate()
        .map(|(class, m)| ClassSummary {
            name: m.name.clone(),
            obj_id: m.obj_id,
            diameter_mm: m.diameter_mm,
            symmetric: data.symmetric_classes.contains(&class),
        })
        .collect();
    let models: Vec<TargetModel> = dataset
        .models
        .iter()
        .zip(&classes)
        .enumerate()
        .map(|(class, (m, c))| {
            let sample = sample_vertices(&m.mesh.vertices, config.num_vertices, config.seed, class);
            let model = TargetModel::new(&c.name, c.diameter_mm, c.symmetric, &sample)?;
            let known = m.symmetries.clone();
            Ok(model.with_symmetries(known.discrete, known.continuous))
        })
        .collect::<Result<_>>()?;
    let left_out: HashSet<usize> = info.left_out.iter().map(|bad| bad.index).collect();
    let frames: Vec<&Frame> = (dataset.frames.iter().enumerate())
        .filter_map(|(i, frame)| (!left_out.contains(&i)).then_some(frame))
        .collect();
    let targets = targets_of(&frames);
    let (estimates, num_false_predictions) = estimates_of(dataset, predictions)?;
    let errors = score_targets(&targets, &estimates, &models, Counting::MostConfident)?;
    let summary = DatasetSummary {
        root: dataset.root.display().to_string(),
        list: info.list.to_owned(),
        synthetic: dataset.root.join(SYNTHETIC_FILE).exists(),
        num_images: frames.len(),
        num_left_out: left_out.len(),
        num_images_without_object: frames.iter().filter(|f| f.objects.is_empty()).count(),
        num_objects: targets.len(),
        num_false_predictions,
        num_images_with_several: frames
            .iter()
            .filter(|f| f.num_findable() < f.objects.len())
            .count(),
        ceiling_percent: ceiling_percent(&frames),
    };
    let table = EvalTable::new(&errors, &models, config.depth_bins);
    // Poses of a file may be found with another setting than this config's.
    let is_own = info.timing.is_some();
    let is_widened = |p: &&Prediction| is_own && p.inlier_px > config.ransac.inlier_px;
    let sigma = {
        let symmetries = |class: usize| &dataset.models[class].symmetries;
        let is_symmetric = |class: usize| {
            classes[class].symmetric || *symmetries(class) != ModelSymmetries::default()
        };
        SigmaFactors::of(&frames, predictions, is_symmetric)
    };
    let report = Report {
        name: info.name.to_owned(),
        headline_percent: table.headline(),
        dataset: summary,
        definitions: definitions(&classes, dataset),
        bin_limits: bin_limits(&table, &classes),
        num_outside_bins: num_outside_bins(&table),
        classes,
        table,
        config: config.clone(),
        timing: info.timing,
        num_widened: predictions.iter().filter(is_widened).count(),
        sigma,
        bop: None,
        bop_notes: Vec::new(),
    };
    Ok(Evaluation { report, errors })
}

fn ceiling_percent(frames: &[&Frame]) -> Option<f64> {
    let num_objects: usize = frames.iter().map(|f| f.objects.len()).sum();
    let findable: usize = frames.iter().map(|f| f.num_findable()).sum();
    (num_objects > 0).then(|| 100.0 * findable as f64 / num_objects as f64)
}

pub(super) fn targets_of(frames: &[&Frame]) -> Vec<Target> {
    frames
        .iter()
        .flat_map(|frame| {
            frame.objects.iter().map(|object| Target {
                image: frame.image.clone(),
                class: object.class,
                pose: object.pose,
                camera: frame.camera,
            })
        })
        .collect()
}

/// The predictions as the scores want them, and how many are where no such object is.
pub(super) fn estimates_of(
    dataset: &Dataset,
    predictions: &[Prediction],
) -> Result<(Vec<Estimate>, usize)> {
    let mut classes_by_image: HashMap<&str, Vec<usize>> = HashMap::new();
    for frame in &dataset.frames {
        let classes = classes_by_image.entry(&frame.image).or_default();
        classes.extend(frame.objects.iter().map(|o| o.class));
    }
    let num_classes = dataset.models.len();
    let mut num_false = 0;
    let estimates = predictions
        .iter()
        .map(|p| {
            let classes = classes_by_image.get(p.image.as_str()).with_context(|| {
                format!(
                    "a prediction is of image {}, which is not in the evaluated list of {}: \
                     evaluate the split that it was made for",
                    p.image,
                    dataset.root.display()
                )
            })?;
            ensure!(
                p.class < num_classes,
                "a prediction in image {} is of class {}, expected 0..{num_classes}",
                p.image,
                p.class
            );
            num_false += usize::from(!classes.contains(&p.class));
            let (image, class, score) = (p.image.clone(), p.class, p.score);
            Ok(Estimate { image, class, score, pose: p.pose()? })
        })
        .collect::<Result<_>>()?;
    Ok((estimates, num_false))
}

fn num_outside_bins(table: &EvalTable) -> usize {
    let Some((all, bins)) = table.all.num_targets.split_last() else { return 0 };
    all - bins.iter().sum::<usize>()
}

fn bin_limits(table: &EvalTable, classes: &[ClassSummary]) -> Vec<BinLimits> {
    let diameter = classes.first().map(|c| c.diameter_mm);
    let one_diameter = diameter.filter(|d| classes.iter().all(|c| c.diameter_mm == *d));
    table
        .bins
        .iter()
        .map(|bin| {
            let converted = |factor: f64| bin.limits.map(|(a, b)| (a * factor, b * factor));
            let name = bin.name.clone();
            match table.depth_bins {
                DepthBins::Equal => BinLimits {
                    name,
                    mm: bin.limits,
                    diameters: one_diameter.and_then(|d| converted(1.0 / d)),
                },
                DepthBins::Diameter => {
                    BinLimits { name, mm: one_diameter.and_then(converted), diameters: bin.limits }
                }
            }
        })
        .collect()
}

fn definitions(classes: &[ClassSummary], dataset: &Dataset) -> Vec<Definition> {
    let symmetric: Vec<&str> =
        classes.iter().filter(|c| c.symmetric).map(|c| c.name.as_str()).collect();
    let mut add = "mean distance of corresponding mesh points; published as ADI".to_owned();
    if !symmetric.is_empty() {
        add.push_str(&format!(
            "; for the classes listed as symmetric ({}) the rows ADD have the distance to the closest point, as published",
            symmetric.join(", ")
        ));
    }
    let turned: Vec<&str> = (dataset.models.iter())
        .filter(|model| !model.symmetries.is_empty())
        .map(|model| model.name.as_str())
        .collect();
    let rotations = format!(
        "rotation and translation error; of the equal poses of {} by models_info.json that with the smallest rotation error",
        turned.join(", ")
    );
    let rotations = (!turned.is_empty()).then_some(("5 deg 5 cm, medians", rotations.as_str()));
    let all = [
        ("ADD", add.as_str()),
        (
            "ADD-S",
            "mean distance to the closest mesh point (ADI of the BOP benchmark), for every class",
        ),
        ("REP", "mean reprojection error in px of the original image"),
        ("SPEED score", "mean of 2 acos|<q, q*>| + |t - t*| / |t*|; a missing pose scores pi + 1"),
        (
            "SPEED+ score",
            "the same for its lamp images: parts below 0.169 degrees and 0.002173 of the distance count as 0",
        ),
        (
            "percent",
            "fraction of true objects with an error strictly below the threshold; a missing prediction \
             counts as 1 d and 50 px",
        ),
    ];
    let all = all.into_iter().chain(rotations);
    all.map(|(metric, meaning)| Definition { metric: metric.into(), meaning: meaning.into() })
        .collect()
}

impl Report {
    /// Writes `metrics.json`.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        write_json(path, self)
    }

    /// Reads a `metrics.json` back, to compare runs.
    ///
    /// # Errors
    /// If the file cannot be read or is not a report; names file, line and key.
    pub fn read(path: &Path) -> Result<Self> {
        read_json(path)
    }
}

/// Writes the errors of every true object, one JSON object a line.
///
/// # Errors
/// If the file cannot be written.
pub fn write_errors(path: &Path, errors: &[TargetErrors]) -> Result<()> {
    write_lines(path, errors)
}

/// Reads errors back.
///
/// # Errors
/// If the file cannot be read or a line is not the errors of an object; names file, line and key.
pub fn read_errors(path: &Path) -> Result<Vec<TargetErrors>> {
    read_json_lines(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::{dataset, predictions_of};

    fn evaluated(depth_bins: DepthBins, predictions: &[Prediction]) -> Result<Evaluation> {
        let config = EvalConfig { depth_bins, ..EvalConfig::default() };
        let info = EvaluationInfo {
            name: "full precision",
            list: "testing.txt",
            left_out: &[],
            timing: None,
        };
        evaluate(&dataset(), &DataConfig::default(), predictions, &config, info)
    }

    #[test]
    fn true_poses_score_everything_and_missing_ones_nothing() {
        let all = evaluated(DepthBins::Equal, &predictions_of(&dataset())).unwrap();
        assert_eq!(all.report.headline_percent, Some(100.0));
        assert_eq!(all.report.table.all.num_found, [10, 10, 10, 30]);
        assert_eq!(all.report.dataset.num_images_without_object, 1);
        let none = evaluated(DepthBins::Equal, &[]).unwrap();
        assert_eq!(none.report.headline_percent, Some(0.0));
        let speed = none.report.table.all.speed_score[3].unwrap();
        assert!((speed - std::f64::consts::PI - 1.0).abs() < 1e-12);
        assert!(none.errors.iter().all(|e| !e.found && e.headline_diameters == 1.0));
    }

    #[test]
    fn of_several_predictions_the_most_confident_counts() {
        let right = predictions_of(&dataset());
        let wrong = right.iter().enumerate().map(|(i, p)| {
            let mut wrong = p.clone();
            wrong.t_mm[2] *= 1.5;
            wrong.score = if i < 6 { p.score + 0.05 } else { p.score - 0.05 };
            wrong
        });
        let both: Vec<Prediction> = wrong.chain(right.iter().cloned()).collect();
        let result = evaluated(DepthBins::Equal, &both).unwrap();
        assert!(result.errors.iter().enumerate().all(|(i, e)| (e.add_mm > 1.0) == (i < 6)));
        assert_eq!(result.report.headline_percent, Some(80.0));
    }

    #[test]
    fn several_objects_of_a_class_in_an_image_cap_the_score() {
        let one = evaluated(DepthBins::Equal, &[]).unwrap().report;
        assert_eq!(
            (one.dataset.num_images_with_several, one.dataset.ceiling_percent),
            (0, Some(100.0))
        );
        assert!(!one.text().contains("several objects"));
        // Ten images get a second object, 3 m farther.
        let mut dataset = dataset();
        for frame in &mut dataset.frames[..10] {
            let mut second = frame.objects[0].clone();
            second.pose.t_mm.z += 3000.0;
            frame.objects.push(second);
        }
        let (config, info) = (
            EvalConfig::default(),
            EvaluationInfo { name: "x", list: "testing.txt", left_out: &[], timing: None },
        );
        // Each of both is found where both are predicted; one pose a class and image finds one.
        let mut poses = predictions_of(&dataset);
        let all = evaluate(&dataset, &DataConfig::default(), &poses, &config, info.clone());
        assert_eq!(all.unwrap().report.headline_percent, Some(100.0));
        poses.dedup_by(|second, first| second.image == first.image);
        let report =
            evaluate(&dataset, &DataConfig::default(), &poses, &config, info).unwrap().report;
        assert_eq!(
            (report.dataset.num_images_with_several, report.headline_percent),
            (10, Some(75.0))
        );
        assert_eq!(report.dataset.ceiling_percent, Some(75.0));
        let text = report.text().split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains("10 images with several objects of a class"), "{text}");
        assert!(text.contains("at most 75.0 % of the objects"), "{text}");
    }

    #[test]
    fn limits_are_told_in_both_units() {
        let equal = evaluated(DepthBins::Equal, &[]).unwrap().report;
        let diameter = evaluated(DepthBins::Diameter, &[]).unwrap().report;
        let d = equal.classes[0].diameter_mm;
        let (low, high) = equal.bin_limits[0].mm.unwrap();
        let in_d = equal.bin_limits[0].diameters.unwrap();
        assert!((low / d - in_d.0).abs() < 1e-12 && (high / d - in_d.1).abs() < 1e-12);
        assert_eq!(diameter.bin_limits[1].diameters, Some((4.0, 7.0)));
        assert_eq!(diameter.bin_limits[1].mm, Some((4.0 * d, 7.0 * d)));
        assert_eq!((equal.bin_limits[3].mm, equal.bin_limits[3].diameters), (None, None));
        assert_eq!((equal.num_outside_bins, diameter.num_outside_bins), (0, 1));
    }

    #[test]
    fn predictions_of_unknown_images_or_classes_are_refused_and_false_ones_counted() {
        let mut predictions = predictions_of(&dataset());
        predictions[3].image = "empty.png".into();
        let result = evaluated(DepthBins::Equal, &predictions).unwrap();
        assert_eq!(result.report.dataset.num_false_predictions, 1);
        assert_eq!(result.report.table.all.num_found[3], 29);
        predictions[3].class = 1;
        let error = evaluated(DepthBins::Equal, &predictions).unwrap_err().to_string();
        assert!(error.contains("image empty.png is of class 1, expected 0..1"), "{error}");
        predictions[3].image = "other.png".into();
        let error = evaluated(DepthBins::Equal, &predictions).unwrap_err().to_string();
        assert!(error.contains("other.png, which is not in the evaluated list"), "{error}");
    }

    #[test]
    fn metrics_come_back_from_their_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.json");
        let mut evaluation = evaluated(DepthBins::Diameter, &[]).unwrap();
        evaluation.report.timing = Some(Timing { num_images: 31, ..Timing::default() });
        evaluation.report.write(&path).unwrap();
        assert_eq!(Report::read(&path).unwrap(), evaluation.report);
        let text = std::fs::read_to_string(&path).unwrap();
        for part in ["\"headline_percent\": 0.0", "\"synthetic\": false", "\"ADI-0.1d\""] {
            assert!(text.contains(part), "{text}");
        }
        let lines = folder.path().join("errors.jsonl");
        write_errors(&lines, &evaluation.errors).unwrap();
        assert_eq!(std::fs::read_to_string(&lines).unwrap().lines().count(), 30);
    }
}
