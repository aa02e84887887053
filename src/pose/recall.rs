//! Errors of predictions against their targets, and recalls with their uncertainty.

use std::cmp::Ordering;
use std::collections::HashMap;

use anyhow::{Result, ensure};
use rand::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::errors::{self, ClosestPoints, SpeedError};
use crate::geom::{Camera, Pose, Vec3, best_turn};
use crate::seed;

/// What a missing prediction counts in ADD and ADI, in diameters.
pub const MISSING_DIAMETERS: f64 = 1.0;
/// Below which error a prediction is matched first where an image holds several objects of its class, diameters.
const MATCHING_DIAMETERS: f64 = 0.1;
/// Rotation errors that differ by less are equal, degrees.
const SAME_DEG: f64 = 1e-6;
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

/// Which predictions count where an image has more of one class than objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Counting {
    /// The most confident ones; of equals the first.
    #[default]
    MostConfident,
    /// The first in the list, whatever their score, as the published code does.
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
    discrete: Vec<Pose>,
    continuous: Vec<(Vec3, Vec3)>,
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
        let sample = ClosestPoints::new(sample);
        Ok(Self { name, diameter_mm, symmetric, sample, discrete: vec![], continuous: vec![] })
    }

    /// With the transforms of the object onto itself (the identity need not be among them) and the lines that it may be turned
    /// about (direction, a point on it in mm): rotation and translation errors are those of the most similar of the equal poses.
    pub fn with_symmetries(mut self, discrete: Vec<Pose>, continuous: Vec<(Vec3, Vec3)>) -> Self {
        (self.discrete, self.continuous) = (discrete, continuous);
        self
    }

    /// Rotation error, degrees, and translation error, mm: of the poses that look as the true one does, for that with the
    /// smallest rotation error, of equals the smallest translation error.
    pub fn pose_errors(&self, est: &Pose, gt: &Pose) -> (f64, f64) {
        let of = |gt: &Pose| (errors::re_deg(est, gt), errors::te_mm(est, gt));
        let mut best = of(gt);
        if self.discrete.is_empty() && self.continuous.is_empty() {
            return best;
        }
        for discrete in std::iter::once(&Pose::identity()).chain(&self.discrete) {
            let seen = est.r.transpose() * gt.r * discrete.r;
            let own = of(&gt.after(&discrete.after(&best_turn(&self.continuous, &seen))));
            let is_nearer = own.0 < best.0 - SAME_DEG;
            if is_nearer || (own.0 <= best.0 + SAME_DEG && own.1 < best.1) {
                best = own;
            }
        }
        best
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
    /// Rotation error, degrees, under the object's symmetries; none when missing.
    pub re_deg: Option<f64>,
    /// Translation error, mm, of the same one of the equal poses; none when missing.
    pub te_mm: Option<f64>,
    /// The SPEED errors.
    pub speed: SpeedError,
}

/// Compares every target with the prediction that counts for it, in the targets' order.
///
/// Of a class that an image holds once that is one prediction, by `counting`. Where an image holds several objects of a class, as
/// many predictions count, and are matched one to one: in their order each takes the free object of the least headline error
/// if that is below 0.1 diameters; then those that are left take what is free, by least error.
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
    let mut places: HashMap<(&str, usize), Place> = HashMap::new();
    for (i, target) in targets.iter().enumerate() {
        let at = &target.image;
        ensure!(
            target.class < models.len(),
            "{at}: class {} has no model, there are {}",
            target.class,
            models.len()
        );
        ensure!(target.pose.is_finite(), "{at}: the true pose is not finite");
        places.entry((at.as_str(), target.class)).or_default().targets.push(i);
    }
    for e in estimates {
        if let Some(place) = places.get_mut(&(e.image.as_str(), e.class)) {
            place.estimates.push(e);
        }
    }
    let mut counted: Vec<Option<&Estimate>> = vec![None; targets.len()];
    for ((_, class), place) in places {
        place.count(targets, &models[class], counting, &mut counted);
    }
    let pairs = targets.iter().zip(counted);
    Ok(pairs.map(|(target, e)| target_errors(target, &models[target.class], e)).collect())
}

/// The objects of a class in an image, and the predictions of it.
#[derive(Default)]
struct Place<'a> {
    /// Places in the list of targets.
    targets: Vec<usize>,
    estimates: Vec<&'a Estimate>,
}

impl<'a> Place<'a> {
    /// Puts the predictions that count at the places of their targets.
    fn count(
        mut self,
        targets: &[Target],
        model: &TargetModel,
        counting: Counting,
        counted: &mut [Option<&'a Estimate>],
    ) {
        if counting == Counting::MostConfident {
            // A score that is NaN is always beaten; of equals the first counts.
            self.estimates.sort_by(|a, b| {
                let numbers = a.score.is_nan().cmp(&b.score.is_nan());
                numbers.then(b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal))
            });
        }
        self.estimates.truncate(self.targets.len());
        self.estimates.retain(|e| e.pose.is_finite());
        if let [target] = self.targets.as_slice() {
            counted[*target] = self.estimates.first().copied();
            return;
        }
        let mut left = self.estimates;
        for limit in [MATCHING_DIAMETERS * model.diameter_mm, f64::INFINITY] {
            left.retain(|e| {
                let free = self.targets.iter().filter(|&&t| counted[t].is_none());
                let errors = free.map(|&t| (t, headline_mm(&targets[t], model, e)));
                let near = errors.filter(|(_, error)| *error < limit);
                let best = near.min_by(|a, b| a.1.total_cmp(&b.1));
                if let Some((target, _)) = best {
                    counted[target] = Some(*e);
                }
                best.is_none()
            });
        }
    }
}

/// The error that decides about a match, mm.
fn headline_mm(target: &Target, model: &TargetModel, estimate: &Estimate) -> f64 {
    let (est, gt) = (&estimate.pose, &target.pose);
    let adi_mm = if model.symmetric { model.sample.adi_mm(est, gt) } else { f64::NAN };
    if adi_mm.is_nan() { errors::add_mm(model.sample(), est, gt) } else { adi_mm }
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
    let (re_deg, te_mm) = estimate.map(|e| model.pose_errors(&e.pose, gt)).unzip();
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
        re_deg,
        te_mm,
        speed: estimate.map_or(SpeedError::MISSING, |e| errors::speed(&e.pose, gt)),
    }
}

/// A fraction of correct targets with its uncertainty.
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
    /// The fraction `num_correct` of `num_targets`.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn camera() -> Camera {
        Camera::new(100.0, 100.0, 0.0, 0.0).unwrap()
    }

    fn at(x: f64, z: f64) -> Pose {
        Pose { t_mm: Vec3::new(x, 0.0, z), ..Pose::identity() }
    }

    fn target(image: &str, class: usize, z: f64) -> Target {
        Target { image: image.to_string(), class, pose: at(0.0, z), camera: camera() }
    }

    fn estimate(image: &str, class: usize, score: f64, pose: Pose) -> Estimate {
        Estimate { image: image.to_string(), class, score, pose }
    }

    fn models() -> Vec<TargetModel> {
        let sample = [Vec3::zeros(), Vec3::new(10.0, 0.0, 0.0)];
        vec![
            TargetModel::new("plain", 100.0, false, &sample).unwrap(),
            TargetModel::new("round", 50.0, true, &sample).unwrap(),
        ]
    }

    #[test]
    fn rotation_errors_know_the_symmetries() {
        use nalgebra::{Rotation3, Unit};
        let turn = |axis: Vec3, deg: f64, offset: Vec3| {
            let r = Rotation3::from_axis_angle(&Unit::new_normalize(axis), deg.to_radians());
            Pose { r: *r.matrix(), t_mm: offset - r * offset }
        };
        let model = |discrete, continuous| models().remove(0).with_symmetries(discrete, continuous);
        let (offset, gt) = (
            Vec3::new(20.0, 0.0, 0.0),
            at(10.0, 500.0).after(&turn(Vec3::x(), 40.0, Vec3::zeros())),
        );
        // A half turn about a line 20 mm from the origin, and then 3 degrees and 7 mm off.
        let half = turn(Vec3::z(), 180.0, offset);
        let mut est = gt.after(&half).after(&turn(Vec3::y(), 3.0, Vec3::zeros()));
        est.t_mm.z += 7.0;
        let errors = |model: TargetModel| model.pose_errors(&est, &gt);
        let (re_deg, te_mm) = errors(model(vec![], vec![]));
        assert!(re_deg > 170.0 && te_mm > 39.0, "{re_deg} {te_mm}");
        for model in [
            model(vec![half], vec![]),
            model(vec![turn(Vec3::x(), 180.0, Vec3::zeros()), half], vec![]),
            model(vec![], vec![(Vec3::z() * 2.0, offset)]),
        ] {
            let (re_deg, te_mm) = errors(model);
            assert!((re_deg - 3.0).abs() < 1e-6 && (te_mm - 7.0).abs() < 1e-9, "{re_deg} {te_mm}");
        }
        let ball = model(vec![], vec![(Vec3::z(), Vec3::zeros()), (Vec3::x(), Vec3::zeros())]);
        assert!(errors(ball).0 < 1e-5);
        // They reach the errors of which tables are made.
        let targets = [Target { pose: gt, ..target("a", 0, 500.0) }];
        let estimates = [estimate("a", 0, 0.9, est)];
        let found = score_targets(
            &targets,
            &estimates,
            &[model(vec![half], vec![])],
            Counting::MostConfident,
        );
        let found = &found.unwrap()[0];
        assert!(
            (found.re_deg.unwrap() - 3.0).abs() < 1e-6 && (found.te_mm.unwrap() - 7.0).abs() < 1e-9
        );
    }

    #[test]
    fn errors_come_in_millimetres_diameters_and_pixels() {
        let targets = [target("a", 0, 500.0), target("a", 1, 500.0), target("b", 0, 800.0)];
        let estimates =
            [estimate("a", 0, 0.9, at(8.0, 500.0)), estimate("a", 1, 0.8, at(8.0, 500.0))];
        let errors =
            score_targets(&targets, &estimates, &models(), Counting::MostConfident).unwrap();
        let [plain, round, missing] = errors.as_slice() else { panic!() };
        assert!((plain.add_mm - 8.0).abs() < 1e-12 && (plain.adi_mm - 5.0).abs() < 1e-12);
        assert_eq!((plain.headline_mm, plain.headline_diameters), (plain.add_mm, 0.08));
        assert!((plain.reproj_px - 1.6).abs() < 1e-12);
        assert_eq!((plain.score, plain.depth_diameters), (Some(0.9), 5.0));
        assert!((plain.te_mm.unwrap() - 8.0).abs() < 1e-12 && plain.re_deg == Some(0.0));
        // The symmetric class takes the closest point, in the image too: (8 + 2) / 2 mm are 1 px.
        assert_eq!(round.headline_mm, round.adi_mm);
        assert!((round.headline_diameters - 0.1).abs() < 1e-12);
        assert!((round.reproj_px - 1.0).abs() < 1e-12);
        assert!(!missing.found && missing.re_deg.is_none() && missing.score.is_none());
        assert_eq!((missing.add_mm, missing.adi_mm, missing.reproj_px), (100.0, 100.0, 50.0));
        assert_eq!(missing.speed, SpeedError::MISSING);
    }

    #[test]
    fn several_objects_of_a_class_are_matched_one_to_one() {
        let targets = [target("a", 0, 500.0), target("a", 0, 800.0), target("a", 0, 2000.0)];
        let errors = |estimates: &[Estimate]| -> Vec<Option<f64>> {
            let counting = Counting::MostConfident;
            let errors = score_targets(&targets, estimates, &models(), counting).unwrap();
            errors.iter().map(|e| e.found.then_some(e.add_mm.round())).collect()
        };
        let at = |score: f64, x: f64, z: f64| estimate("a", 0, score, at(x, z));
        // The surer one takes the nearer of both, whatever the order of the file.
        let two = [at(0.5, 3.0, 800.0), at(0.9, 4.0, 500.0)];
        assert_eq!(errors(&two), [Some(4.0), Some(3.0), None]);
        // Right ones are matched before wrong ones, though these are surer.
        let wrong_first = [at(0.9, 40.0, 500.0), at(0.5, 1.0, 500.0)];
        assert_eq!(errors(&wrong_first), [Some(1.0), Some(303.0), None]);
        // Of four for three the least sure does not count, though it alone sees the last object.
        let four =
            [at(0.9, 0.0, 500.0), at(0.8, 1.0, 500.0), at(0.7, 2.0, 800.0), at(0.1, 0.0, 2000.0)];
        assert_eq!(errors(&four), [Some(0.0), Some(2.0), Some(1500.0)]);
        let unknown = [at(0.9, f64::NAN, 500.0)];
        assert_eq!(errors(&unknown), [None, None, None]);
    }

    #[test]
    fn the_first_or_the_most_confident_prediction_counts() {
        let targets = [target("a", 0, 500.0)];
        let estimates = [
            estimate("b", 0, 0.99, at(0.0, 500.0)),
            estimate("a", 1, 0.99, at(0.0, 500.0)),
            estimate("a", 0, f64::NAN, at(1.0, 500.0)),
            estimate("a", 0, 0.5, at(2.0, 500.0)),
            estimate("a", 0, 0.7, at(3.0, 500.0)),
            estimate("a", 0, 0.7, at(4.0, 500.0)),
        ];
        let off = |counting| {
            score_targets(&targets, &estimates, &models(), counting).unwrap()[0].te_mm.unwrap()
        };
        assert_eq!(off(Counting::FirstInList), 1.0);
        assert_eq!(off(Counting::MostConfident), 3.0);
    }

    #[test]
    fn a_pose_that_is_no_number_is_missing_and_one_in_the_camera_plane_is_far_off() {
        let targets = [target("a", 0, 500.0), target("b", 0, 500.0)];
        let estimates =
            [estimate("a", 0, 0.5, at(f64::NAN, 1.0)), estimate("b", 0, 0.5, at(0.0, 0.0))];
        let errors = score_targets(&targets, &estimates, &models(), Counting::default()).unwrap();
        assert!(!errors[0].found && errors[0].reproj_px == 50.0);
        assert!(errors[1].found && errors[1].reproj_px == f64::MAX);
        // What is written can be read again.
        let text = serde_json::to_string(&errors).unwrap();
        assert_eq!(serde_json::from_str::<Vec<TargetErrors>>(&text).unwrap(), errors);
    }

    #[test]
    fn bad_targets_and_models_are_named() {
        let run = |t: Target| {
            let error = score_targets(&[t], &[], &models(), Counting::default()).unwrap_err();
            error.to_string()
        };
        assert_eq!(run(target("x.png", 2, 500.0)), "x.png: class 2 has no model, there are 2");
        assert!(run(target("x.png", 0, f64::NAN)).contains("x.png: the true pose"));
        let point = [Vec3::zeros()];
        assert!(TargetModel::new("m", 0.0, false, &point).is_err());
        assert!(TargetModel::new("m", f64::NAN, false, &point).is_err());
        assert!(TargetModel::new("m", 1.0, false, &[]).is_err());
        assert!(TargetModel::new("m", 1.0, false, &[Vec3::new(f64::NAN, 0.0, 0.0)]).is_err());
        assert!(sample_vertices(&[], 1000, 0, 0).is_empty());
    }

    #[test]
    fn wilsons_interval_of_8_in_10() {
        let recall = Recall::new(8, 10);
        let (low, high) = recall.interval_95.unwrap();
        assert!((low - 49.016).abs() < 1e-2 && (high - 94.331).abs() < 1e-2, "{low} {high}");
        assert!((recall.percent.unwrap() - 80.0).abs() < 1e-12);
        let all = Recall::new(5, 5).interval_95.unwrap();
        assert!(all.1 == 100.0 && all.0 < 60.0);
        assert_eq!(Recall::new(0, 0).percent, None);
        // Strictly below, and never below with NaN.
        let recall = Recall::below([0.05, 0.1, f64::NAN, 0.2], 0.1);
        assert_eq!((recall.num_correct, recall.num_targets), (1, 4));
    }
}
