//! The scores of the BOP benchmark: 6D localization (average recall, AR) and 6D detection (average precision, AP).
//!
//! Start at [`image_errors`], which compares an image's estimates with its instances, and [`BopScores::new`], which matches
//! and counts over all images. `mod errors` has the errors of pairs, `mod localization` the recalls, `mod detection` the
//! precisions.
//!
//! # Source
//! Hodan et al., *BOP: Benchmark for 6D Object Pose Estimation*, ECCV 2018 (VSD, ADD, ADI); *BOP Challenge 2020 on 6D Object
//! Localization*, ECCVW 2020, sections 2.2 to 2.4 (MSSD, MSPD, thresholds, AR); *BOP Challenge 2023*, CVPRW 2024, and *BOP
//! Challenge 2024*, 2025 (AP of 6D detection). Where papers leave something open it is as in bop_toolkit: ties go by the
//! order of the file, an estimate farther than a diameter from an instance has an infinite MSSD and AD, estimates of
//! objects that are not in an image count in neither score.

mod detection;
mod errors;
mod localization;
mod symmetry;

use serde::{Deserialize, Serialize};

use super::errors::ClosestPoints;
pub use super::thresholds::NUM_THRESHOLDS;
use super::thresholds::thresholds;
use crate::geom::{Camera, Pose, Vec3};
pub use detection::{MSSD_MM_STEP, average_precision};
pub use errors::{EstimateErrors, ImageErrors, PairErrors, image_errors};
pub use localization::AD_THRESHOLDS;
pub use symmetry::symmetries;

/// The first threshold of MSSD, diameters; of VSD's error; and of VSD's tolerance tau, diameters.
pub const STEP: f64 = 0.05;
/// The first threshold of MSPD, px of an image of 640 px width.
pub const MSPD_STEP_PX: f64 = 5.0;

/// What the benchmark fixes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BopSettings {
    /// How far behind the measured surface a point still counts as visible in VSD, mm: 15, of ITODD 5.
    pub vsd_delta_mm: f64,
    /// The estimates of an image that count in AP: the most confident ones of all objects together.
    pub max_estimates: usize,
    /// Instances of which less is visible are ignored in AP, and so are estimates that match them.
    pub min_visible: f64,
}

impl Default for BopSettings {
    fn default() -> Self {
        Self { vsd_delta_mm: 15.0, max_estimates: 100, min_visible: 0.1 }
    }
}

/// A class as the benchmark sees it.
#[derive(Debug)]
pub struct BopModel {
    /// Triangles of the evaluation mesh; none where VSD is not asked for.
    pub faces: Vec<[u32; 3]>,
    /// Diameter, mm.
    pub diameter_mm: f64,
    /// Transforms of the object onto itself, see [`symmetries`]; empty stands for the identity alone.
    pub symmetries: Vec<Pose>,
    closest: ClosestPoints,
}

impl BopModel {
    /// A class with the vertices (mm) and triangles of its evaluation mesh.
    pub fn new(
        points: &[Vec3],
        faces: Vec<[u32; 3]>,
        diameter_mm: f64,
        symmetries: Vec<Pose>,
    ) -> Self {
        Self { faces, diameter_mm, symmetries, closest: ClosestPoints::new(points) }
    }

    /// Vertices of the mesh, mm.
    pub fn points(&self) -> &[Vec3] {
        self.closest.points()
    }

    /// Whether it has more than the identity as a symmetry: then AD is ADI.
    pub fn is_symmetric(&self) -> bool {
        self.symmetries.len() > 1
    }
}

/// A true object of an image.
#[derive(Debug, Clone, PartialEq)]
pub struct BopInstance {
    /// 0-based class.
    pub class: usize,
    /// Under the image's camera.
    pub pose: Pose,
    /// The visible fraction of its silhouette, 0 to 1.
    pub visible: f64,
}

/// A pose that was found in an image.
#[derive(Debug, Clone, PartialEq)]
pub struct BopEstimate {
    /// 0-based class.
    pub class: usize,
    /// Confidence; larger is surer.
    pub score: f64,
    /// Under the image's camera.
    pub pose: Pose,
}

/// What is to be found of an object in an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BopTarget {
    /// 0-based class.
    pub class: usize,
    /// Instances to be found, the most visible ones (`inst_count`).
    pub count: usize,
}

/// Where the depth comes from that VSD decides about visibility with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DepthSource {
    /// Depth images of the dataset: the benchmark's VSD.
    Measured,
    /// All instances, rendered under their true poses: what the dataset does not annotate hides nothing.
    Rendered,
}

/// An image with all that is compared in it.
#[derive(Debug, Clone)]
pub struct BopImage {
    /// The camera that took it.
    pub camera: Camera,
    /// Width and height, px; without them there is neither MSPD nor VSD.
    pub size_px: Option<[usize; 2]>,
    /// Measured z, mm, row by row, of that size; 0 where nothing was measured.
    pub depth_mm: Option<Vec<f32>>,
    /// The true objects, in the order of `scene_gt.json`.
    pub instances: Vec<BopInstance>,
    /// In the order of their file.
    pub estimates: Vec<BopEstimate>,
    /// What AR asks for.
    pub targets: Vec<BopTarget>,
    /// Whether AP looks at this image.
    pub detection: bool,
    /// Whether VSD is computed, from measured depth or from rendered one.
    pub vsd: bool,
    /// Whether AD and ADI are computed, which takes long on meshes of many vertices.
    pub ad: bool,
}

/// Recalls at each threshold, percent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BopRecalls {
    /// A row for each tolerance tau, in it a recall for each threshold of the error; empty without VSD.
    pub vsd: Vec<Vec<f64>>,
    /// At 0.05 to 0.50 diameters.
    pub mssd: Vec<f64>,
    /// At 5 to 50 px of an image of 640 px width; empty where the images' width is not known.
    pub mspd: Vec<f64>,
    /// At [`AD_THRESHOLDS`]; empty where it was not computed.
    pub ad: Vec<f64>,
}

/// Precisions at each threshold, averaged over 101 recalls, percent.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BopPrecisions {
    /// At 0.05 to 0.50 diameters.
    pub mssd: Vec<f64>,
    /// At 5 to 50 px of an image of 640 px width; empty where the images' width is not known.
    pub mspd: Vec<f64>,
    /// At 2 to 20 mm.
    pub mssd_mm: Vec<f64>,
}

/// The scores of one object, percent; none without targets or instances.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BopObjectScores {
    /// The object's number, where the dataset tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obj_id: Option<u32>,
    /// Instances that AR asks for.
    pub num_targets: usize,
    /// Recalls averaged over the thresholds: VSD, MSSD, MSPD, and their mean.
    pub ar_vsd: Option<f64>,
    /// As above.
    pub ar_mssd: Option<f64>,
    /// As above.
    pub ar_mspd: Option<f64>,
    /// Recall of AD (ADI of symmetric objects, else ADD) below 0.1 diameters.
    pub ad_01d: Option<f64>,
    /// Recall of poses that are off by less than 5 degrees and 5 cm, under the symmetry that makes most of it.
    pub within_5deg_5cm: Option<f64>,
    /// Area under the recall of AD from 0 to 100 mm.
    pub auc_ad: Option<f64>,
    /// Area under the recall of ADI from 0 to 100 mm.
    pub auc_adi: Option<f64>,
    /// Recalls at each threshold; empty without targets.
    #[serde(default)]
    pub recalls: BopRecalls,
    /// Instances that AP counts.
    pub num_instances: usize,
    /// Precision at each threshold; empty without such instances.
    pub precisions: BopPrecisions,
}

/// The scores of a set of images, percent; none without what they need.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct BopScores {
    /// AR: the mean of the three below.
    #[serde(default)]
    pub ar: Option<f64>,
    /// Recall of VSD, averaged over tolerances and thresholds.
    #[serde(default)]
    pub ar_vsd: Option<f64>,
    /// Recall of MSSD below 0.05, 0.10 .. 0.50 diameters, averaged.
    pub ar_mssd: Option<f64>,
    /// Recall of MSPD below 5 r, 10 r .. 50 r px, r = image width / 640, averaged.
    pub ar_mspd: Option<f64>,
    /// Where VSD's depth comes from; none without VSD.
    #[serde(default)]
    pub vsd_depth: Option<DepthSource>,
    /// AP of BOP 2024: the mean of the next two.
    #[serde(default)]
    pub ap: Option<f64>,
    /// AP of MSSD, which is that of BOP 2025: mean over thresholds, then over objects.
    #[serde(default)]
    pub ap_mssd: Option<f64>,
    /// AP of MSPD.
    #[serde(default)]
    pub ap_mspd: Option<f64>,
    /// AP of MSSD below 2 to 20 mm.
    #[serde(default)]
    pub ap_mssd_mm: Option<f64>,
    /// Recall of AD below 0.1 diameters, mean over objects.
    #[serde(default)]
    pub ad_01d: Option<f64>,
    /// 5 degrees, 5 cm, mean over objects.
    #[serde(default)]
    pub within_5deg_5cm: Option<f64>,
    /// Area under the recall of AD, mean over objects.
    #[serde(default)]
    pub auc_ad: Option<f64>,
    /// Area under the recall of ADI, mean over objects.
    #[serde(default)]
    pub auc_adi: Option<f64>,
    /// Instances that AR asks for.
    pub num_targets: usize,
    /// Instances that AP counts.
    #[serde(default)]
    pub num_instances: usize,
    /// Classes with more than the identity as a symmetry.
    pub num_symmetric_classes: usize,
    /// Recalls of all targets together.
    #[serde(default)]
    pub recalls: BopRecalls,
    /// In the order of the classes.
    #[serde(default)]
    pub objects: Vec<BopObjectScores>,
}

impl BopScores {
    /// Matches and counts the errors of all images. In each image the estimates of a class take by falling score the free
    /// instance of the least error, if that is strictly below the threshold.
    ///
    /// # Panics
    /// If an instance's or a target's class has no model.
    pub fn new(images: &[ImageErrors], models: &[BopModel], settings: &BopSettings) -> Self {
        let recalls = localization::Recalls::new(images, models);
        let mut objects: Vec<BopObjectScores> =
            (0..models.len()).map(|class| recalls.object(class)).collect();
        for (class, object) in objects.iter_mut().enumerate() {
            (object.num_instances, object.precisions) =
                detection::precisions(images, class, models[class].diameter_mm, settings);
        }
        let over_objects =
            |score: fn(&BopObjectScores) -> Option<f64>| mean(objects.iter().filter_map(score));
        let (ap_mssd, ap_mspd) = (
            over_objects(|o| mean(o.precisions.mssd.iter().copied())),
            over_objects(|o| mean(o.precisions.mspd.iter().copied())),
        );
        let all = recalls.all();
        let (ar_vsd, ar_mssd, ar_mspd) = (
            mean(all.vsd.iter().flatten().copied()),
            mean(all.mssd.iter().copied()),
            mean(all.mspd.iter().copied()),
        );
        let mean_of = |parts: &[Option<f64>]| -> Option<f64> {
            let parts: Option<Vec<f64>> = parts.iter().copied().collect();
            mean(parts?.into_iter())
        };
        Self {
            ar: mean_of(&[ar_vsd, ar_mssd, ar_mspd]),
            ar_vsd,
            ar_mssd,
            ar_mspd,
            vsd_depth: ar_vsd.and_then(|_| errors::depth_source(images)),
            ap: mean_of(&[ap_mssd, ap_mspd]),
            ap_mssd,
            ap_mspd,
            ap_mssd_mm: over_objects(|o| mean(o.precisions.mssd_mm.iter().copied())),
            ad_01d: over_objects(|o| o.ad_01d),
            within_5deg_5cm: over_objects(|o| o.within_5deg_5cm),
            auc_ad: over_objects(|o| o.auc_ad),
            auc_adi: over_objects(|o| o.auc_adi),
            num_targets: recalls.num_targets(),
            num_instances: objects.iter().map(|o| o.num_instances).sum(),
            num_symmetric_classes: models.iter().filter(|m| m.is_symmetric()).count(),
            recalls: all,
            objects,
        }
    }
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (sum, num) = values.fold((0.0, 0_usize), |(sum, num), v| (sum + v, num + 1));
    (num > 0).then(|| sum / num as f64)
}

/// For each estimate, in the order given (falling score), the instance that it takes: the free one of the least error,
/// if that is strictly below `limit`; of equal errors the first. `errors` yields instances with errors.
fn matches<I: Iterator<Item = (usize, f64)>>(
    estimates: impl Iterator<Item = I>,
    limit: f64,
) -> Vec<Option<usize>> {
    let mut taken: Vec<usize> = Vec::new();
    estimates
        .map(|errors| {
            let free = errors.filter(|(i, e)| *e < limit && !taken.contains(i));
            let (best, _) = free.min_by(|a, b| a.1.total_cmp(&b.1))?;
            taken.push(best);
            Some(best)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::Rotation3;

    fn at(x: f64) -> Pose {
        Pose { t_mm: Vec3::new(x, 0.0, 1000.0), ..Pose::identity() }
    }

    fn instance(x: f64) -> BopInstance {
        BopInstance { class: 0, pose: at(x), visible: 1.0 }
    }

    fn estimate(score: f64, x: f64) -> BopEstimate {
        BopEstimate { class: 0, score, pose: at(x) }
    }

    /// An image of this width in which all instances of class 0 are asked for.
    fn image(
        width: Option<usize>,
        instances: Vec<BopInstance>,
        estimates: Vec<BopEstimate>,
    ) -> BopImage {
        let targets = vec![BopTarget { class: 0, count: instances.len() }];
        BopImage {
            camera: Camera::new(1000.0, 1000.0, 320.0, 240.0).unwrap(),
            size_px: width.map(|w| [w, 480]),
            depth_mm: None,
            instances,
            estimates,
            targets,
            detection: true,
            vsd: false,
            ad: true,
        }
    }

    /// Two triangles of 100 mm.
    fn model(symmetries: Vec<Pose>) -> BopModel {
        let corner = |x: f64, y: f64| Vec3::new(x, y, 0.0);
        let points = [corner(-50.0, 0.0), corner(50.0, 0.0), corner(0.0, 30.0)];
        BopModel::new(&points, vec![[0, 1, 2]], 100.0, symmetries)
    }

    fn scores_of(images: &[BopImage], symmetries: Vec<Pose>) -> BopScores {
        let (models, settings) = ([model(symmetries)], BopSettings::default());
        let errors: Vec<_> =
            images.iter().map(|image| image_errors(image, &models, &settings).unwrap()).collect();
        BopScores::new(&errors, &models, &settings)
    }

    fn close(a: Option<f64>, b: f64) -> bool {
        a.is_some_and(|a| (a - b).abs() < 1e-9)
    }

    #[test]
    fn recall_is_averaged_over_ten_thresholds() {
        // 12 mm: 0.12 d is below 0.15 to 0.50, 8 of 10; 12 px are below 15 to 50. The other one is missing.
        let images = |width| {
            [
                image(width, vec![instance(0.0)], vec![estimate(0.5, 12.0)]),
                image(width, vec![instance(0.0)], vec![]),
            ]
        };
        let scores = scores_of(&images(Some(640)), vec![]);
        assert!(close(scores.ar_mssd, 40.0) && close(scores.ar_mspd, 40.0), "{scores:?}");
        assert_eq!((scores.ar, scores.vsd_depth), (None, None));
        // In an image of twice the width thresholds are twice as far: 12 px are below 20 to 100.
        assert!(close(scores_of(&images(Some(1280)), vec![]).ar_mspd, 45.0));
        let unknown = scores_of(&images(None), vec![]);
        assert_eq!((unknown.ar_mspd, unknown.ap_mspd, unknown.ap), (None, None, None));
        assert_eq!(scores_of(&[], vec![]).ar_mssd, None);
        // ADD of 12 mm: half of the targets, 88 mm of 100 under the curve.
        assert!(close(scores.ad_01d, 0.0) && close(scores.auc_ad, 44.0), "{scores:?}");
        assert!(close(scores.within_5deg_5cm, 50.0), "{scores:?}");
    }

    #[test]
    fn as_many_estimates_as_are_asked_for_take_by_score_the_nearest_free_instance() {
        let two = || vec![instance(0.0), instance(200.0)];
        let ar = |estimates: Vec<BopEstimate>| {
            scores_of(&[image(None, two(), estimates)], vec![]).ar_mssd
        };
        assert!(close(ar(vec![estimate(0.5, 200.0), estimate(0.9, 0.0)]), 100.0));
        // Three for two: the least sure one does not count, though it alone sees the second instance.
        let three = vec![estimate(0.9, 0.0), estimate(0.8, 1.0), estimate(0.1, 200.0)];
        assert!(close(ar(three), 50.0));
        // An instance is taken once.
        assert!(close(ar(vec![estimate(0.9, 0.0), estimate(0.8, 0.0)]), 50.0));
    }

    #[test]
    fn the_most_visible_instances_are_asked_for_and_others_are_no_place_to_match() {
        let hidden = BopInstance { visible: 0.2, ..instance(0.0) };
        let mut one = image(None, vec![hidden, instance(200.0)], vec![estimate(0.9, 0.0)]);
        one.targets = vec![BopTarget { class: 0, count: 1 }];
        assert!(close(scores_of(std::slice::from_ref(&one), vec![]).ar_mssd, 0.0));
        one.estimates = vec![estimate(0.9, 200.0), estimate(0.5, 0.0)];
        let scores = scores_of(&[one], vec![]);
        assert!(close(scores.ar_mssd, 100.0) && scores.num_targets == 1, "{scores:?}");
    }

    #[test]
    fn symmetries_forgive_what_cannot_be_seen() {
        let half = Pose {
            r: *Rotation3::from_axis_angle(&Vec3::y_axis(), std::f64::consts::PI).matrix(),
            t_mm: Vec3::zeros(),
        };
        let turned = BopEstimate { pose: at(0.0).after(&half), ..estimate(1.0, 0.0) };
        let scores = |symmetries| {
            scores_of(&[image(Some(640), vec![instance(0.0)], vec![turned.clone()])], symmetries)
        };
        let none = scores(vec![]);
        assert!(close(none.ar_mssd, 0.0) && close(none.within_5deg_5cm, 0.0), "{none:?}");
        for set in [
            symmetries(&[half], &[]),
            symmetries(&[], &[(Vec3::new(0.0, 2.0, 0.0), Vec3::zeros())]),
        ] {
            let all = scores(set);
            assert!(close(all.ar_mssd, 100.0) && close(all.ad_01d, 100.0), "{all:?}");
            assert!(close(all.within_5deg_5cm, 100.0), "{all:?}");
        }
    }

    #[test]
    fn precision_ignores_what_is_hardly_visible_and_counts_false_estimates() {
        let hidden = BopInstance { visible: 0.05, ..instance(400.0) };
        let instances = vec![instance(0.0), instance(200.0), hidden];
        // Right, wrong, right on a hidden one (ignored), right: precision 1 up to recall 0.5, then 2/3.
        let estimates = vec![
            estimate(0.9, 0.0),
            estimate(0.8, 80.0),
            estimate(0.7, 400.0),
            estimate(0.6, 200.0),
        ];
        let scores = scores_of(&[image(Some(640), instances, estimates)], vec![]);
        let expected = 100.0 * (51.0 + 50.0 * 2.0 / 3.0) / 101.0;
        assert!(scores.objects[0].precisions.mssd.iter().all(|&p| (p - expected).abs() < 1e-9));
        assert_eq!(scores.num_instances, 2);
        assert!(close(scores.ap_mssd_mm, expected), "{scores:?}");
        assert!(close(scores.ap, expected), "{scores:?}");
    }

    #[test]
    fn estimates_of_two_classes_at_one_pose_are_drawn_as_their_own_meshes() {
        let shrunk =
            |model: &BopModel| -> Vec<Vec3> { model.points().iter().map(|p| 0.2 * p).collect() };
        let large = model(vec![]);
        let small = BopModel::new(&shrunk(&large), large.faces.clone(), 100.0, vec![]);
        let mut one = image(
            Some(640),
            vec![instance(0.0), BopInstance { class: 1, ..instance(0.0) }],
            vec![estimate(0.9, 0.0), BopEstimate { class: 1, ..estimate(0.8, 0.0) }],
        );
        one.targets = vec![BopTarget { class: 0, count: 1 }, BopTarget { class: 1, count: 1 }];
        one.vsd = true;
        let errors = image_errors(&one, &[large, small], &BopSettings::default()).unwrap();
        let vsd: Vec<f64> = errors.estimates.iter().map(|e| e.pairs[0].vsd[0]).collect();
        assert_eq!(vsd, [0.0, 0.0]);
    }

    #[test]
    fn an_image_that_only_ap_looks_at_does_not_tell_where_the_depth_comes_from() {
        let mut measured = image(Some(640), vec![instance(0.0)], vec![estimate(0.9, 0.0)]);
        measured.vsd = true;
        measured.depth_mm = Some(vec![0.0; 640 * 480]);
        let rendered = BopImage { depth_mm: None, targets: Vec::new(), ..measured.clone() };
        let scores = scores_of(&[measured, rendered], vec![]);
        assert_eq!(scores.vsd_depth, Some(DepthSource::Measured));
    }

    #[test]
    fn without_depth_visibility_is_that_of_the_rendered_instances() {
        // A triangle in front of another one: an estimate of the hidden one that is hidden as well agrees everywhere.
        let mut front = instance(0.0);
        front.pose.t_mm.z = 500.0;
        let mut one = image(Some(640), vec![front, instance(0.0)], vec![estimate(0.5, 0.0)]);
        one.vsd = true;
        one.estimates.push(BopEstimate { pose: one.instances[0].pose, ..estimate(0.4, 0.0) });
        let scores = scores_of(&[one], vec![]);
        assert_eq!(scores.vsd_depth, Some(DepthSource::Rendered));
        // The one behind shows nothing in front of the other: its VSD is 1.
        assert!(close(scores.ar_vsd, 50.0) && close(scores.ar_mssd, 100.0), "{scores:?}");
    }
}
