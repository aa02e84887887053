//! The BOP benchmark's average recall: poses matched by score, MSSD and MSPD under the object's symmetries.

use std::collections::BTreeMap;

use nalgebra::{Rotation3, Unit};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::errors::{mspd_px, mssd_mm};
use super::recall::{Estimate, Target};
use crate::geom::{Pose, Vec3};

/// Thresholds of a recall's average: 1 to 10 times the first.
const NUM_THRESHOLDS: usize = 10;
/// The first threshold of MSSD, diameters.
const MSSD_STEP: f64 = 0.05;
/// The first threshold of MSPD, px of an image of [`MSPD_WIDTH_PX`].
const MSPD_STEP_PX: f64 = 5.0;
/// Width of the image that MSPD's thresholds are meant for, px.
const MSPD_WIDTH_PX: f64 = 640.0;
/// Largest step between the transforms that stand for a continuous symmetry, as a fraction of the largest radius.
const SYMMETRY_STEP: f64 = 0.01;

/// A class as the benchmark sees it.
#[derive(Debug, Clone)]
pub struct BopModel {
    /// Vertices of the mesh, mm.
    pub points: Vec<Vec3>,
    /// Diameter, mm.
    pub diameter_mm: f64,
    /// Transforms of the object onto itself, see [`symmetries`]; empty stands for the identity alone.
    pub symmetries: Vec<Pose>,
}

/// Average recalls, percent; none without objects.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BopScores {
    /// Of MSSD below 0.05, 0.10 .. 0.50 diameters.
    pub ar_mssd: Option<f64>,
    /// Of MSPD below 5 r, 10 r .. 50 r px, r = image width / 640; none as well when the width is not known.
    pub ar_mspd: Option<f64>,
    /// Objects.
    pub num_targets: usize,
    /// Classes with more than the identity as a symmetry.
    pub num_symmetric_classes: usize,
}

/// The set `{continuous o discrete}` of an object's symmetries, the identity included. A continuous one, a line that the
/// object may turn about (direction, point on it), is stood for by 315 turns.
pub fn symmetries(discrete: &[Pose], continuous: &[(Vec3, Vec3)]) -> Vec<Pose> {
    let discrete = std::iter::once(Pose::identity()).chain(discrete.iter().copied());
    let num = (std::f64::consts::PI / SYMMETRY_STEP).ceil() as usize;
    let turns: Vec<Pose> = (continuous.iter())
        .flat_map(|(axis, offset)| {
            (0..num).map(move |i| {
                let angle = std::f64::consts::TAU * i as f64 / num as f64;
                let r = *Rotation3::from_axis_angle(&Unit::new_normalize(*axis), angle).matrix();
                Pose { r, t_mm: offset - r * offset }
            })
        })
        .collect();
    if turns.is_empty() {
        return discrete.collect();
    }
    discrete.flat_map(|d| turns.iter().map(move |c| c.after(&d)).collect::<Vec<_>>()).collect()
}

/// Average recalls over all targets. In each image the estimates of a class, as many as there are objects of it, take
/// by falling score the free object of the least error, if that is strictly below the threshold.
///
/// # Source
/// Hodan et al., *BOP Challenge 2020 on 6D Object Localization*, section 2.2.
/// Deviation: without VSD, which needs depth images; all annotated objects count, however little is seen of them.
///
/// # Panics
/// If a target's class has no model.
pub fn bop_scores(
    targets: &[Target],
    estimates: &[Estimate],
    models: &[BopModel],
    image_width_px: Option<f64>,
) -> BopScores {
    let mut places: BTreeMap<(&str, usize), Place> = BTreeMap::new();
    for t in targets {
        places.entry((t.image.as_str(), t.class)).or_default().targets.push(t);
    }
    for e in estimates {
        if let Some(place) = places.get_mut(&(e.image.as_str(), e.class)) {
            place.estimates.push(e);
        }
    }
    let pixel_step = image_width_px.map(|w| MSPD_STEP_PX * w / MSPD_WIDTH_PX);
    let zero = || [[0_usize; NUM_THRESHOLDS]; 2];
    let add = |mut a: [[usize; NUM_THRESHOLDS]; 2], b: [[usize; NUM_THRESHOLDS]; 2]| {
        a.iter_mut().flatten().zip(b.iter().flatten()).for_each(|(a, b)| *a += b);
        a
    };
    let places: Vec<_> = places.into_iter().collect();
    let counts = (places.into_par_iter())
        .map(|((_, class), place)| place.counts(&models[class], pixel_step))
        .reduce(zero, add);
    let average = |counts: &[usize; NUM_THRESHOLDS]| {
        let all = (targets.len() * NUM_THRESHOLDS) as f64;
        (!targets.is_empty()).then(|| 100.0 * counts.iter().sum::<usize>() as f64 / all)
    };
    BopScores {
        ar_mssd: average(&counts[0]),
        ar_mspd: pixel_step.and_then(|_| average(&counts[1])),
        num_targets: targets.len(),
        num_symmetric_classes: models.iter().filter(|m| m.symmetries.len() > 1).count(),
    }
}

/// A class in an image.
#[derive(Default)]
struct Place<'a> {
    targets: Vec<&'a Target>,
    estimates: Vec<&'a Estimate>,
}

impl Place<'_> {
    /// For each threshold of MSSD, then of MSPD, how many of the objects are found.
    fn counts(mut self, model: &BopModel, pixel_step: Option<f64>) -> [[usize; NUM_THRESHOLDS]; 2] {
        self.estimates.retain(|e| e.pose.is_finite());
        self.estimates.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.estimates.truncate(self.targets.len());
        let BopModel { points, diameter_mm, symmetries } = model;
        let mssd = self.errors(|e, t| mssd_mm(points, &e.pose, &t.pose, symmetries) / diameter_mm);
        let mut counts = [matches(&mssd, MSSD_STEP), [0; NUM_THRESHOLDS]];
        if let Some(step) = pixel_step {
            let mspd = self.errors(|e, t| mspd_px(&t.camera, points, &e.pose, &t.pose, symmetries));
            counts[1] = matches(&mspd, step);
        }
        counts
    }

    /// `[estimate][object]`
    fn errors(&self, error: impl Fn(&Estimate, &Target) -> f64) -> Vec<Vec<f64>> {
        let row = |e: &&Estimate| self.targets.iter().map(|t| error(e, t)).collect();
        self.estimates.iter().map(row).collect()
    }
}

/// Objects that are matched below each multiple of `step`, from errors `[estimate][object]`.
fn matches(errors: &[Vec<f64>], step: f64) -> [usize; NUM_THRESHOLDS] {
    std::array::from_fn(|k| {
        let limit = step * (k + 1) as f64;
        let mut taken: Vec<usize> = Vec::new();
        for row in errors {
            let free = row.iter().enumerate().filter(|(t, e)| !taken.contains(t) && **e < limit);
            taken.extend(free.min_by(|a, b| a.1.total_cmp(b.1)).map(|(t, _)| t));
        }
        taken.len()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::Camera;

    fn at(x: f64) -> Pose {
        Pose { t_mm: Vec3::new(x, 0.0, 1000.0), ..Pose::identity() }
    }

    fn target(image: &str, x: f64) -> Target {
        let camera = Camera::new(1000.0, 1000.0, 320.0, 240.0).unwrap();
        Target { image: image.into(), class: 0, pose: at(x), camera }
    }

    fn estimate(image: &str, score: f64, x: f64) -> Estimate {
        Estimate { image: image.into(), class: 0, score, pose: at(x) }
    }

    fn model(symmetries: Vec<Pose>) -> BopModel {
        let points = vec![Vec3::new(-50.0, 0.0, 0.0), Vec3::new(50.0, 0.0, 0.0)];
        BopModel { points, diameter_mm: 100.0, symmetries }
    }

    fn close(a: Option<f64>, b: f64) -> bool {
        a.is_some_and(|a| (a - b).abs() < 1e-9)
    }

    #[test]
    fn recall_is_averaged_over_ten_thresholds() {
        let targets = [target("a", 0.0), target("b", 0.0)];
        // 12 mm: 0.12 d is below 0.15 to 0.50, 8 of 10; 12 px are below 15 to 50. The other one is missing.
        let one = [estimate("a", 0.5, 12.0)];
        let scores = bop_scores(&targets, &one, &[model(vec![])], Some(640.0));
        assert!(close(scores.ar_mssd, 40.0) && close(scores.ar_mspd, 40.0), "{scores:?}");
        // In an image of twice the width thresholds are twice as far: 12 px are below 20 to 100.
        let scores = bop_scores(&targets, &one, &[model(vec![])], Some(1280.0));
        assert!(close(scores.ar_mspd, 45.0), "{scores:?}");
        assert_eq!(bop_scores(&targets, &one, &[model(vec![])], None).ar_mspd, None);
        assert_eq!(bop_scores(&[], &one, &[model(vec![])], None).ar_mssd, None);
    }

    #[test]
    fn as_many_estimates_as_objects_take_by_score_the_nearest_free_one() {
        let targets = [target("a", 0.0), target("a", 200.0)];
        let both = [estimate("a", 0.5, 200.0), estimate("a", 0.9, 0.0)];
        assert!(close(bop_scores(&targets, &both, &[model(vec![])], None).ar_mssd, 100.0));
        // Three for two objects: the least sure one does not count, though it alone sees the second object.
        let three = [estimate("a", 0.9, 0.0), estimate("a", 0.8, 1.0), estimate("a", 0.1, 200.0)];
        assert!(close(bop_scores(&targets, &three, &[model(vec![])], None).ar_mssd, 50.0));
        // An object is taken once.
        let twice = [estimate("a", 0.9, 0.0), estimate("a", 0.8, 0.0)];
        assert!(close(bop_scores(&targets, &twice, &[model(vec![])], None).ar_mssd, 50.0));
    }

    #[test]
    fn symmetries_forgive_what_cannot_be_seen() {
        let targets = [target("a", 0.0)];
        let half = Pose {
            r: *Rotation3::from_axis_angle(&Vec3::z_axis(), std::f64::consts::PI).matrix(),
            t_mm: Vec3::zeros(),
        };
        let turned = [Estimate { pose: at(0.0).after(&half), ..estimate("a", 1.0, 0.0) }];
        let score =
            |symmetries| bop_scores(&targets, &turned, &[model(symmetries)], Some(640.0)).ar_mssd;
        assert!(close(score(vec![]), 0.0));
        assert!(close(score(symmetries(&[half], &[])), 100.0));
        assert!(close(score(symmetries(&[], &[(Vec3::new(0.0, 0.0, 2.0), Vec3::zeros())])), 100.0));
    }

    #[test]
    fn continuous_symmetries_are_315_turns_about_their_line_times_the_discrete_ones() {
        let offset = Vec3::new(10.0, 0.0, 0.0);
        let all = symmetries(&[at(5.0)], &[(Vec3::z(), offset)]);
        assert_eq!(all.len(), 2 * 315);
        assert!((all[0].r - Pose::identity().r).norm() < 1e-12 && all[0].t_mm.norm() < 1e-12);
        assert!(all[..315].iter().all(|s| (s.apply(&offset) - offset).norm() < 1e-9));
        assert_eq!(symmetries(&[], &[]), [Pose::identity()]);
    }
}
