//! Errors of predictions against their targets, and recalls with their uncertainty.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use rand::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::errors::{self, ClosestPoints, SpeedError};
use crate::geom::{Camera, Pose, Vec3};
use crate::seed;

/// What a missing prediction counts in ADD and ADI, in diameters.
pub const MISSING_DIAMETERS: f64 = 1.0;
/// What a missing prediction counts in the reprojection error, px.
pub const MISSING_PX: f64 = 50.0;

/// One object to be found: the ground truth of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Target {
    /// The image, by the name that predictions use.
    pub image: String,
    /// 0-based class.
    pub class: usize,
    /// Ground truth under `camera`.
    pub pose: Pose,
    /// The camera of the image as it was taken: reprojection errors are measured in its pixels.
    pub camera: Camera,
}

/// A predicted pose, under the same camera as the target's.
#[derive(Debug, Clone, PartialEq)]
pub struct Estimate {
    /// The image, by the name that targets use.
    pub image: String,
    /// 0-based class.
    pub class: usize,
    /// Confidence; larger is surer.
    pub score: f64,
    /// The predicted pose.
    pub pose: Pose,
}

/// Which prediction counts where an image has several of one class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Counting {
    /// The most confident one; of equals the first.
    #[default]
    MostConfident,
    /// The first in the list, whatever its score, as the published code does.
    FirstInList,
}

/// A class as the evaluation sees it.
#[derive(Debug)]
pub struct TargetModel {
    /// The name to print.
    pub name: String,
    /// Diameter of the mesh, mm: the unit of the ADD thresholds.
    pub diameter_mm: f64,
    /// True when the headline columns use the closest point.
    pub symmetric: bool,
    sample: ClosestPoints,
}

impl TargetModel {
    /// A class with the model points that errors are averaged over (mm), see [`sample_vertices`].
    ///
    /// # Errors
    /// If there are no points, or a number is not finite, or the diameter is not positive.
    pub fn new(
        name: impl Into<String>,
        diameter_mm: f64,
        symmetric: bool,
        sample: &[Vec3],
    ) -> Result<Self> {
        let name = name.into();
        ensure!(
            diameter_mm > 0.0 && diameter_mm.is_finite(),
            "model {name}: the diameter is {diameter_mm} mm, expected more than 0"
        );
        ensure!(!sample.is_empty(), "model {name}: the mesh has no vertices to measure errors on");
        ensure!(
            sample.iter().all(|x| x.iter().all(|v| v.is_finite())),
            "model {name}: a vertex is not finite"
        );
        Ok(Self { name, diameter_mm, symmetric, sample: ClosestPoints::new(sample) })
    }

    /// The model points, mm.
    pub fn sample(&self) -> &[Vec3] {
        self.sample.points()
    }
}

/// Draws `count` vertices with replacement (the published protocol takes 1,000 a class); none from no vertices.
pub fn sample_vertices(vertices: &[[f64; 3]], count: usize, seed: u64, class: usize) -> Vec<Vec3> {
    /// Purpose of the random stream.
    const PURPOSE: u64 = 0x7665_7274;
    if vertices.is_empty() {
        return Vec::new();
    }
    let mut rng = seed::stream(seed, &[PURPOSE, class as u64]);
    (0..count).map(|_| Vec3::from(vertices[rng.random_range(0..vertices.len())])).collect()
}

/// The errors of one target: the raw material of tables, curves and reports.
///
/// A missing prediction has `found = false`, 1 diameter, 50 px, and the SPEED errors pi and 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TargetErrors {
    /// The image.
    pub image: String,
    /// 0-based class.
    pub class: usize,
    /// z of the ground truth, mm.
    pub depth_mm: f64,
    /// False when no prediction of the class was made in the image.
    pub found: bool,
    /// Confidence of the prediction that counted.
    pub score: Option<f64>,
    /// Mean distance of model points, mm.
    pub add_mm: f64,
    /// Mean distance to the closest model point, mm.
    pub adi_mm: f64,
    /// The error behind the published `ADI` columns, mm: `adi_mm` for a symmetric class, else `add_mm`.
    pub headline_mm: f64,
    /// `add_mm`, in diameters of the class.
    pub add_diameters: f64,
    /// `adi_mm`, in diameters of the class.
    pub adi_diameters: f64,
    /// `headline_mm`, in diameters of the class.
    pub headline_diameters: f64,
    /// z of the ground truth in diameters of the class.
    pub depth_diameters: f64,
    /// Mean reprojection error, px of the image as taken (for a symmetric class over the closest points).
    pub reproj_px: f64,
    /// Rotation error, degrees; none when missing.
    pub re_deg: Option<f64>,
    /// Translation error, mm; none when missing.
    pub te_mm: Option<f64>,
    /// The SPEED errors.
    pub speed: SpeedError,
}

/// Compares every target with the prediction that counts for its image and class, in the targets' order.
///
/// Predictions of other images and classes are ignored; one whose pose is not finite counts as missing.
/// A reprojection error without a finite value (a point in the camera's plane) becomes `f64::MAX`.
///
/// # Errors
/// If a target's class has no model, or its pose is not finite.
pub fn score_targets(
    targets: &[Target],
    estimates: &[Estimate],
    models: &[TargetModel],
    counting: Counting,
) -> Result<Vec<TargetErrors>> {
    let mut counted: HashMap<(&str, usize), &Estimate> = HashMap::new();
    for e in estimates {
        let best = counted.entry((e.image.as_str(), e.class)).or_insert(e);
        // A score that is NaN never beats and is always beaten.
        if counting == Counting::MostConfident
            && (e.score > best.score || (best.score.is_nan() && !e.score.is_nan()))
        {
            *best = e;
        }
    }
    targets
        .iter()
        .map(|target| {
            let at = &target.image;
            let model = models.get(target.class);
            ensure!(
                model.is_some(),
                "{at}: class {} has no model, there are {}",
                target.class,
                models.len()
            );
            ensure!(target.pose.is_finite(), "{at}: the true pose is not finite");
            let estimate =
                counted.get(&(target.image.as_str(), target.class)).filter(|e| e.pose.is_finite());
            Ok(target_errors(target, &models[target.class], estimate.copied()))
        })
        .collect()
}

fn target_errors(
    target: &Target,
    model: &TargetModel,
    estimate: Option<&Estimate>,
) -> TargetErrors {
    let (gt, camera, d) = (&target.pose, &target.camera, model.diameter_mm);
    let missing_mm = MISSING_DIAMETERS * d;
    let (add_mm, adi_mm, reproj_px) = match estimate.map(|e| &e.pose) {
        None => (missing_mm, missing_mm, MISSING_PX),
        Some(est) => {
            let reproj_px = if model.symmetric {
                model.sample.closest_proj_px(camera, est, gt)
            } else {
                errors::proj_px(camera, model.sample(), est, gt)
            };
            let add_mm = errors::add_mm(model.sample(), est, gt);
            let adi_mm = model.sample.adi_mm(est, gt);
            // A singular "rotation" has no inverse to search with; nothing is closer than equal points then.
            (add_mm, if adi_mm.is_nan() { add_mm } else { adi_mm }, reproj_px)
        }
    };
    let finite = |v: f64| if v.is_finite() { v } else { f64::MAX };
    let headline_mm = if model.symmetric { adi_mm } else { add_mm };
    TargetErrors {
        image: target.image.clone(),
        class: target.class,
        depth_mm: gt.t_mm.z,
        found: estimate.is_some(),
        score: estimate.map(|e| e.score),
        add_mm: finite(add_mm),
        adi_mm: finite(adi_mm),
        headline_mm: finite(headline_mm),
        add_diameters: finite(add_mm / d),
        adi_diameters: finite(adi_mm / d),
        headline_diameters: finite(headline_mm / d),
        depth_diameters: gt.t_mm.z / d,
        reproj_px: finite(reproj_px),
        re_deg: estimate.map(|e| errors::re_deg(&e.pose, gt)),
        te_mm: estimate.map(|e| errors::te_mm(&e.pose, gt)),
        speed: estimate.map_or(SpeedError::MISSING, |e| errors::speed(&e.pose, gt)),
    }
}

/// A share of correct targets with its uncertainty.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Targets whose error is below the threshold.
    pub num_correct: usize,
    /// Targets.
    pub num_targets: usize,
    /// Percentage; none without targets.
    pub percent: Option<f64>,
    /// Wilson's 95 % interval of the percentage.
    pub interval_95: Option<(f64, f64)>,
}

impl Recall {
    /// The share `num_correct` of `num_targets`.
    ///
    /// # Source
    /// Wilson, *Probable inference, the law of succession, and statistical inference*, JASA 1927.
    pub fn new(num_correct: usize, num_targets: usize) -> Self {
        /// The normal distribution's 97.5 % point.
        const Z: f64 = 1.959_963_984_540_054;
        if num_targets == 0 {
            return Self { num_correct, num_targets, percent: None, interval_95: None };
        }
        let n = num_targets as f64;
        let p = num_correct as f64 / n;
        let center = (p + Z * Z / (2.0 * n)) / (1.0 + Z * Z / n);
        let half = Z / (1.0 + Z * Z / n) * (p * (1.0 - p) / n + Z * Z / (4.0 * n * n)).sqrt();
        let interval = (100.0 * (center - half).max(0.0), 100.0 * (center + half).min(1.0));
        Self { num_correct, num_targets, percent: Some(100.0 * p), interval_95: Some(interval) }
    }

    /// The recall of `values` at a threshold: correct is strictly below.
    pub fn below(values: impl IntoIterator<Item = f64>, threshold: f64) -> Self {
        let (correct, total) = values
            .into_iter()
            .fold((0, 0), |(correct, total), v| (correct + usize::from(v < threshold), total + 1));
        Self::new(correct, total)
    }
}
