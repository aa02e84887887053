//! Pose errors, as the BOP benchmark and the SPEED challenge define them.
//!
//! Everywhere `points` are vertices of the evaluation mesh (object frame, mm), `est` is the estimate and
//! `gt` the ground truth. An empty list of points gives NaN: there is no mean of nothing.
//!
//! # Source
//! Hodan et al., *BOP: Benchmark for 6D Object Pose Estimation*, ECCV 2018, and the BOP Challenge 2020
//! report (MSSD, MSPD); Kisantal et al., *Satellite Pose Estimation Challenge*, 2020 (SPEED).

use kiddo::SquaredEuclidean;
use kiddo::immutable::float::kdtree::ImmutableKdTree;
use nalgebra::{Matrix3, UnitQuaternion};
use serde::{Deserialize, Serialize};

use crate::geom::{Camera, Pose, Vec2, Vec3};

/// A translation error (relative, SPEED+) below which the robotic test bed cannot tell: counted as 0.
pub const SPEED_PLUS_FLOOR_RELATIVE: f64 = 0.002173;
/// A rotation error (degrees, SPEED+) below which the robotic test bed cannot tell: counted as 0.
pub const SPEED_PLUS_FLOOR_DEG: f64 = 0.169;

/// ADD, mm: the mean distance of equal model points under the two poses.
pub fn add_mm(points: &[Vec3], est: &Pose, gt: &Pose) -> f64 {
    mean(points.iter().map(|x| (est.apply(x) - gt.apply(x)).norm()))
}

/// Mean distance of the projections of equal model points, px.
pub fn proj_px(camera: &Camera, points: &[Vec3], est: &Pose, gt: &Pose) -> f64 {
    mean(points.iter().map(|x| pixel_distance(camera, &est.apply(x), &gt.apply(x))))
}

/// Rotation error, degrees: the angle of `R_est R_gt^-1`. Below 1e-6 degrees rounding is all there is.
pub fn re_deg(est: &Pose, gt: &Pose) -> f64 {
    // The true inverse, as in the toolkit: float32 rotations are orthonormal to 1e-7 only, which near half a
    // turn would show in the third digit.
    let inverse = gt.r.try_inverse().unwrap_or_else(|| gt.r.transpose());
    let cosine = ((est.r * inverse).trace() - 1.0) / 2.0;
    cosine.clamp(-1.0, 1.0).acos().to_degrees()
}

/// Translation error, mm.
pub fn te_mm(est: &Pose, gt: &Pose) -> f64 {
    (gt.t_mm - est.t_mm).norm()
}

/// True when the rotation is off by less than 5 degrees and the translation by less than 50 mm.
pub fn within_5deg_5cm(est: &Pose, gt: &Pose) -> bool {
    re_deg(est, gt) < 5.0 && te_mm(est, gt) < 50.0
}

/// MSSD, mm: the largest distance of equal model points, under the symmetry for which that is least.
///
/// `symmetries` are the transforms of the object onto itself, the identity among them; an empty list stands
/// for the identity alone.
pub fn mssd_mm(points: &[Vec3], est: &Pose, gt: &Pose, symmetries: &[Pose]) -> f64 {
    let moved: Vec<Vec3> = points.iter().map(|x| est.apply(x)).collect();
    least_over(symmetries, gt, |gt, limit| {
        largest(points.iter().zip(&moved).map(|(x, est)| (est - gt.apply(x)).norm()), limit)
    })
}

/// MSPD, px: as [`mssd_mm`] with the distances of the projections.
pub fn mspd_px(
    camera: &Camera,
    points: &[Vec3],
    est: &Pose,
    gt: &Pose,
    symmetries: &[Pose],
) -> f64 {
    let seen: Vec<Vec2> = points.iter().map(|x| camera.project(&est.apply(x))).collect();
    least_over(symmetries, gt, |gt, limit| {
        let pixel = |x: &Vec3| camera.project(&gt.apply(x));
        largest(points.iter().zip(&seen).map(|(x, est)| (est - pixel(x)).norm()), limit)
    })
}

/// The two parts of the SPEED score.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpeedError {
    /// `2 acos |<q_est, q_gt>|`, radians.
    pub e_q_rad: f64,
    /// `|t_gt - t_est| / |t_gt|`.
    pub e_t: f64,
}

impl SpeedError {
    /// What a missing pose counts: half a turn and the whole distance.
    pub const MISSING: SpeedError = SpeedError { e_q_rad: std::f64::consts::PI, e_t: 1.0 };

    /// `e_q + e_t`, the score of one image (the SPEED score is its mean over all images).
    pub fn score(&self) -> f64 {
        self.e_q_rad + self.e_t
    }

    /// The error as SPEED+ counts it on its robotic test bed: parts below the bed's accuracy are 0.
    pub fn with_test_bed_floor(&self) -> SpeedError {
        let keep = |value: f64, floor: f64| if value < floor { 0.0 } else { value };
        SpeedError {
            e_q_rad: keep(self.e_q_rad, SPEED_PLUS_FLOOR_DEG.to_radians()),
            e_t: keep(self.e_t, SPEED_PLUS_FLOOR_RELATIVE),
        }
    }
}

/// The SPEED errors of one pose. `e_t` is not finite when the ground truth is at the camera's centre.
pub fn speed(est: &Pose, gt: &Pose) -> SpeedError {
    let dot = quaternion(&est.r).coords.dot(&quaternion(&gt.r).coords).abs();
    SpeedError { e_q_rad: 2.0 * dot.min(1.0).acos(), e_t: te_mm(est, gt) / gt.t_mm.norm() }
}

/// Model points with a k-d tree over them, built once per model for the closest-point errors.
pub struct ClosestPoints {
    points: Vec<Vec3>,
    tree: Option<ImmutableKdTree<f64, u64, 3, 32>>,
}

impl std::fmt::Debug for ClosestPoints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClosestPoints").field("num_points", &self.points.len()).finish()
    }
}

impl ClosestPoints {
    /// Builds the tree.
    pub fn new(points: &[Vec3]) -> Self {
        let rows: Vec<[f64; 3]> = points.iter().map(|x| [x.x, x.y, x.z]).collect();
        let finite = rows.iter().flatten().all(|v| v.is_finite());
        let tree =
            (finite && !rows.is_empty()).then(|| ImmutableKdTree::new_from_slice(rows.as_slice()));
        Self { points: points.to_vec(), tree }
    }

    /// The points.
    pub fn points(&self) -> &[Vec3] {
        &self.points
    }

    /// ADI, mm: the mean, over the points under the ground truth, of the distance to the closest point under
    /// the estimate. NaN when there are no points or a number is not finite.
    pub fn adi_mm(&self, est: &Pose, gt: &Pose) -> f64 {
        self.mean_over_pairs(est, gt, |x_est, x_gt| (x_est - x_gt).norm())
    }

    /// Mean pixel distance of the projections of the pairs that [`Self::adi_mm`] forms in space.
    pub fn closest_proj_px(&self, camera: &Camera, est: &Pose, gt: &Pose) -> f64 {
        self.mean_over_pairs(est, gt, |x_est, x_gt| pixel_distance(camera, x_est, x_gt))
    }

    fn mean_over_pairs(
        &self,
        est: &Pose,
        gt: &Pose,
        distance: impl Fn(&Vec3, &Vec3) -> f64,
    ) -> f64 {
        // The query moves into the object's frame, so that one tree serves every pose. A rotation read from
        // float32 is orthonormal to 1e-7 only, hence the true inverse.
        let (Some(tree), Some(inverse)) = (&self.tree, est.r.try_inverse()) else {
            return f64::NAN;
        };
        if !est.is_finite() || !gt.is_finite() {
            return f64::NAN;
        }
        mean(self.points.iter().map(|x| {
            let x_gt = gt.apply(x);
            let query = inverse * (x_gt - est.t_mm);
            let hit = tree.nearest_one::<SquaredEuclidean>(&[query.x, query.y, query.z]);
            distance(&est.apply(&self.points[hit.item as usize]), &x_gt)
        }))
    }
}

/// ADI, mm, of a single pair of poses; see [`ClosestPoints`] for many.
pub fn adi_mm(points: &[Vec3], est: &Pose, gt: &Pose) -> f64 {
    ClosestPoints::new(points).adi_mm(est, gt)
}

fn quaternion(r: &Matrix3<f64>) -> UnitQuaternion<f64> {
    UnitQuaternion::from_rotation_matrix(&nalgebra::Rotation3::from_matrix_unchecked(*r))
}

fn pixel_distance(camera: &Camera, a: &Vec3, b: &Vec3) -> f64 {
    let difference: Vec2 = camera.project(a) - camera.project(b);
    difference.norm()
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0usize), |(sum, count), v| (sum + v, count + 1));
    sum / count as f64
}

/// The largest value; NaN when there is none or one of them is NaN. Stops at the first one of at least `limit`.
fn largest(values: impl Iterator<Item = f64>, limit: f64) -> f64 {
    let mut most = f64::NAN;
    for value in values {
        if value.is_nan() {
            return value;
        }
        if most.is_nan() || value > most {
            most = value;
        }
        if most >= limit {
            break;
        }
    }
    most
}

/// The least error over the symmetries; `error` may stop at an error of at least its second argument, the least so far.
fn least_over(symmetries: &[Pose], gt: &Pose, error: impl Fn(&Pose, f64) -> f64) -> f64 {
    if symmetries.is_empty() {
        return error(gt, f64::INFINITY);
    }
    let mut least = f64::NAN;
    for symmetry in symmetries {
        let limit = if least.is_nan() { f64::INFINITY } else { least };
        least = least.min(error(&gt.after(symmetry), limit));
    }
    least
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::seed;
    use nalgebra::Rotation3;
    use rand::Rng;

    fn turned(axis_angle: Vec3, t_mm: Vec3) -> Pose {
        Pose { r: *Rotation3::from_scaled_axis(axis_angle).matrix(), t_mm }
    }

    #[test]
    fn a_shift_counts_fully_in_add_and_less_in_adi() {
        let points = [Vec3::zeros(), Vec3::new(10.0, 0.0, 0.0)];
        let gt = turned(Vec3::zeros(), Vec3::new(0.0, 0.0, 500.0));
        let est = turned(Vec3::zeros(), Vec3::new(8.0, 0.0, 500.0));
        assert!((add_mm(&points, &est, &gt) - 8.0).abs() < 1e-12);
        assert!((te_mm(&est, &gt) - 8.0).abs() < 1e-12);
        // True 0 is 8 from estimated 8, true 10 is 2 from it.
        assert!((adi_mm(&points, &est, &gt) - 5.0).abs() < 1e-12);
        // f = 100 px at 500 mm: 8 mm are 1.6 px.
        let camera = Camera::new(100.0, 100.0, 0.0, 0.0).unwrap();
        assert!((proj_px(&camera, &points, &est, &gt) - 1.6).abs() < 1e-12);
        assert!((mspd_px(&camera, &points, &est, &gt, &[]) - 1.6).abs() < 1e-12);
    }

    #[test]
    fn a_symmetry_forgives_half_a_turn() {
        let points = [Vec3::new(10.0, 0.0, 0.0), Vec3::new(-10.0, 0.0, 0.0)];
        let gt = turned(Vec3::zeros(), Vec3::new(0.0, 0.0, 500.0));
        let est = turned(Vec3::new(0.0, 0.0, std::f64::consts::PI), gt.t_mm);
        let symmetry = turned(Vec3::new(0.0, 0.0, std::f64::consts::PI), Vec3::zeros());
        assert!((mssd_mm(&points, &est, &gt, &[]) - 20.0).abs() < 1e-9);
        assert!(mssd_mm(&points, &est, &gt, &[Pose::identity(), symmetry]) < 1e-9);
        assert!((re_deg(&est, &gt) - 180.0).abs() < 1e-6);
    }

    #[test]
    fn five_degrees_and_five_centimetres_are_strict() {
        let gt = turned(Vec3::zeros(), Vec3::new(0.0, 0.0, 500.0));
        let est = |deg: f64, mm: f64| {
            turned(Vec3::new(0.0, deg.to_radians(), 0.0), Vec3::new(mm, 0.0, 500.0))
        };
        assert!(within_5deg_5cm(&est(4.9, 49.0), &gt));
        assert!(!within_5deg_5cm(&est(5.1, 49.0), &gt));
        assert!(!within_5deg_5cm(&est(4.9, 50.0), &gt));
    }

    #[test]
    fn speed_adds_radians_and_relative_distance() {
        let gt = turned(Vec3::zeros(), Vec3::new(0.0, 0.0, 10.0));
        let est = turned(Vec3::new(0.0, 0.0, 1.5), Vec3::new(0.0, 0.0, 11.0));
        let error = speed(&est, &gt);
        assert!((error.e_q_rad - 1.5).abs() < 1e-12 && (error.e_t - 0.1).abs() < 1e-12);
        assert!((error.score() - 1.6).abs() < 1e-12);
        assert_eq!(error.with_test_bed_floor(), error);
        let small = SpeedError { e_q_rad: 0.0029, e_t: 0.0021 };
        assert_eq!(small.with_test_bed_floor().score(), 0.0);
        assert!((SpeedError::MISSING.score() - (std::f64::consts::PI + 1.0)).abs() < 1e-12);
        // More than half a turn one way is less than half a turn the other way.
        let far = turned(Vec3::new(0.0, 0.0, 2.0 * std::f64::consts::PI - 1.0), gt.t_mm);
        assert!((speed(&far, &gt).e_q_rad - 1.0).abs() < 1e-9);
    }

    #[test]
    fn the_tree_finds_what_brute_force_finds() {
        let mut rng = seed::stream(4, &[]);
        for case in 0..40 {
            // Repeats, a plane, a grid with many equal distances, and a cloud.
            let n = rng.random_range(1..400);
            let points: Vec<Vec3> = (0..n)
                .map(|_| match case % 4 {
                    0 => Vec3::new(f64::from(rng.random_range(0..3)), 0.0, 1.0),
                    1 => Vec3::new(rng.random(), rng.random(), 0.5) * 100.0,
                    2 => Vec3::from_fn(|_, _| f64::from(rng.random_range(-4..4)) * 10.0),
                    _ => Vec3::from_fn(|_, _| rng.random_range(-60.0..60.0)),
                })
                .collect();
            let mut draw = |range: f64| Vec3::from_fn(|_, _| rng.random_range(-range..range));
            let gt = turned(draw(3.0), draw(50.0) + Vec3::new(0.0, 0.0, 900.0));
            let est = turned(draw(3.0), gt.t_mm + draw(40.0));
            let brute = |x: &Vec3| {
                let distance = |y: &Vec3| (est.apply(y) - gt.apply(x)).norm();
                points.iter().map(distance).fold(f64::INFINITY, f64::min)
            };
            let expected = points.iter().map(brute).sum::<f64>() / f64::from(n);
            let ours = adi_mm(&points, &est, &gt);
            assert!((ours - expected).abs() < 1e-9, "case {case}: {ours}, expected {expected}");
            assert!(ours <= add_mm(&points, &est, &gt) + 1e-9);
        }
    }

    #[test]
    fn no_points_and_no_numbers_give_nan_and_no_panic() {
        let gt = turned(Vec3::zeros(), Vec3::new(0.0, 0.0, 500.0));
        assert!(add_mm(&[], &gt, &gt).is_nan() && adi_mm(&[], &gt, &gt).is_nan());
        assert!(mssd_mm(&[], &gt, &gt, &[]).is_nan());
        let broken = Pose { t_mm: Vec3::new(f64::NAN, 0.0, 1.0), ..gt };
        assert!(adi_mm(&[Vec3::zeros()], &broken, &gt).is_nan());
        assert!(adi_mm(&[Vec3::new(f64::NAN, 0.0, 0.0)], &gt, &gt).is_nan());
        assert!(mssd_mm(&[Vec3::zeros(), Vec3::zeros()], &broken, &gt, &[]).is_nan());
    }
}
