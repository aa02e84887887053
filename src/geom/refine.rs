//! Least-squares refinement of a pose: Levenberg-Marquardt on the squared reprojection error.

use nalgebra::{Matrix3, Matrix6, Rotation3, Vector6};

use super::{Camera, Pose, Vec2, Vec3};

/// What [`refine_pose`] reached.
#[derive(Debug, Clone, Copy)]
pub struct Refined {
    /// The pose of least squared reprojection error near the start.
    pub pose: Pose,
    /// Mean distance of the projections from `pixels`, px.
    pub mean_residual_px: f64,
    /// Sum of squared distances, px^2.
    pub sum_squared_px2: f64,
}

/// Minimises `sum |project(pose(x_i)) - pixel_i|^2` from `start` by Levenberg-Marquardt.
///
/// The rotation moves by a left-multiplied rotation vector. Steps that raise the cost or put a point
/// at or behind the camera are not taken, so the result is never worse than `start`.
///
/// Returns `None` when the counts differ, there are fewer than 3 points, or `start` itself has a
/// point with `z <= 0` or a number that is not finite.
///
/// # Source
/// Levenberg-Marquardt with Nielsen's damping update: Madsen, Nielsen, Tingleff, *Methods for
/// non-linear least squares problems*, 2004, section 3.2.
pub fn refine_pose(
    camera: &Camera,
    points_obj: &[Vec3],
    pixels: &[Vec2],
    start: &Pose,
    max_iterations: usize,
) -> Option<Refined> {
    let problem = Problem::new(camera, points_obj, pixels, None)?;
    problem.descend(start, max_iterations)
}

/// As [`refine_pose`], minimising `sum w_i |project(pose(x_i)) - pixel_i|^2`.
///
/// `sum_squared_px2` of the result is that weighted sum, `mean_residual_px` the weighted mean distance.
/// Returns `None` also when a weight is negative or not finite, or all are 0.
pub fn refine_pose_weighted(
    camera: &Camera,
    points_obj: &[Vec3],
    pixels: &[Vec2],
    weights: &[f64],
    start: &Pose,
    max_iterations: usize,
) -> Option<Refined> {
    let valid = weights.iter().all(|w| *w >= 0.0 && w.is_finite());
    if !valid || weights.iter().all(|w| *w == 0.0) {
        return None;
    }
    let problem = Problem::new(camera, points_obj, pixels, Some(weights))?;
    problem.descend(start, max_iterations)
}

struct Problem<'a> {
    camera: &'a Camera,
    points: &'a [Vec3],
    pixels: &'a [Vec2],
    weights: Option<&'a [f64]>,
}

impl<'a> Problem<'a> {
    fn new(
        camera: &'a Camera,
        points: &'a [Vec3],
        pixels: &'a [Vec2],
        weights: Option<&'a [f64]>,
    ) -> Option<Self> {
        let counts_agree =
            points.len() == pixels.len() && weights.is_none_or(|w| w.len() == points.len());
        (counts_agree && points.len() >= 3).then_some(Self { camera, points, pixels, weights })
    }

    fn weight(&self, i: usize) -> f64 {
        self.weights.map_or(1.0, |w| w[i])
    }

    fn descend(&self, start: &Pose, max_iterations: usize) -> Option<Refined> {
        if !start.is_finite() {
            return None;
        }
        let mut pose = *start;
        let mut cost = self.squared_cost(&pose)?;
        let mut damping = 1e-3;
        for _ in 0..max_iterations {
            let (jtj, jtr) = self.normal_equations(&pose);
            let Some((next, next_cost)) = self.step(&pose, cost, &jtj, &jtr, &mut damping) else {
                break;
            };
            let small = cost - next_cost <= 1e-12 * cost;
            (pose, cost) = (next, next_cost);
            if small {
                break;
            }
        }
        let (mut total, mut total_weight) = (0.0, 0.0);
        for (i, (x, p)) in self.points.iter().zip(self.pixels).enumerate() {
            total += self.weight(i) * (self.camera.project(&pose.apply(x)) - p).norm();
            total_weight += self.weight(i);
        }
        Some(Refined { pose, mean_residual_px: total / total_weight, sum_squared_px2: cost })
    }

    /// The first step, over rising damping, that does not raise the cost. A rejected step only raises the
    /// damping, so the normal equations are kept.
    fn step(
        &self,
        pose: &Pose,
        cost: f64,
        jtj: &Matrix6<f64>,
        jtr: &Vector6<f64>,
        damping: &mut f64,
    ) -> Option<(Pose, f64)> {
        let mut grow = 2.0;
        for _ in 0..12 {
            let mut a = *jtj;
            for i in 0..6 {
                a[(i, i)] += *damping * jtj[(i, i)].max(1e-12);
            }
            if let Some(step) = a.cholesky().map(|c| c.solve(&-jtr)) {
                let next = moved_by(pose, &step);
                let predicted: f64 = -(step.dot(jtr) * 2.0 + step.dot(&(jtj * step)));
                if predicted >= 0.0
                    && let Some(next_cost) = self.squared_cost(&next)
                    && next_cost <= cost
                {
                    let gain = if predicted > 0.0 { (cost - next_cost) / predicted } else { 1.0 };
                    let shrink = (1.0 - (2.0 * gain - 1.0).powi(3)).max(1.0 / 3.0);
                    *damping = (*damping * shrink).max(1e-15);
                    return Some((next, next_cost));
                }
            }
            *damping *= grow;
            grow *= 2.0;
        }
        None
    }

    fn squared_cost(&self, pose: &Pose) -> Option<f64> {
        let mut sum = 0.0;
        for (i, (x, pixel)) in self.points.iter().zip(self.pixels).enumerate() {
            let x_cam = pose.apply(x);
            if x_cam.z <= 0.0 {
                return None;
            }
            sum += self.weight(i) * (self.camera.project(&x_cam) - pixel).norm_squared();
        }
        sum.is_finite().then_some(sum)
    }

    /// `J^T W J` and `J^T W r` of the reprojection error, parameters (rotation vector rad, translation mm).
    fn normal_equations(&self, pose: &Pose) -> (Matrix6<f64>, Vector6<f64>) {
        let mut jtj = Matrix6::zeros();
        let mut jtr = Vector6::zeros();
        for (n, (x, pixel)) in self.points.iter().zip(self.pixels).enumerate() {
            let c = pose.apply(x);
            let [ju, jv] = reprojection_jacobian(self.camera, pose, x);
            let r = self.camera.project(&c) - pixel;
            let weight = self.weight(n);
            // The lower triangle: all that the factorisation reads, mirrored below for the rest.
            for i in 0..6 {
                let (u, v) = (weight * ju[i], weight * jv[i]);
                for j in 0..=i {
                    jtj[(i, j)] += u * ju[j] + v * jv[j];
                }
                jtr[i] += u * r.x + v * r.y;
            }
        }
        jtj.fill_upper_triangle_with_lower_triangle();
        (jtj, jtr)
    }
}

/// Derivatives of a point's pixel (rows u, v; px) by a left-multiplied rotation vector (rad) and the translation (mm):
/// `R -> exp(w) R`, `t -> t + d`, parameters `[w, d]`.
#[inline]
pub fn reprojection_jacobian(camera: &Camera, pose: &Pose, x_obj: &Vec3) -> [[f64; 6]; 2] {
    let k = camera.k();
    let (fx, skew, fy) = (k[(0, 0)], k[(0, 1)], k[(1, 1)]);
    let rotated = pose.r * x_obj;
    let c = rotated + pose.t_mm;
    let (iz, nx, ny) = (1.0 / c.z, c.x / c.z, c.y / c.z);
    let du = Vec3::new(fx * iz, skew * iz, -(fx * nx + skew * ny) * iz);
    let dv = Vec3::new(0.0, fy * iz, -fy * ny * iz);
    // d(exp(w) R x)/dw = -[R x]_x, so the gradient with respect to w is (R x) x d.
    let (wu, wv) = (rotated.cross(&du), rotated.cross(&dv));
    [[wu.x, wu.y, wu.z, du.x, du.y, du.z], [wv.x, wv.y, wv.z, dv.x, dv.y, dv.z]]
}

/// The pose moved by `[rotation vector (rad), translation (mm)]`: `R -> exp(w) R`, `t -> t + d`.
pub fn moved_by(pose: &Pose, step: &Vector6<f64>) -> Pose {
    let turn: Matrix3<f64> =
        *Rotation3::from_scaled_axis(Vec3::new(step[0], step[1], step[2])).matrix();
    let r = turn * pose.r;
    // One Newton step towards the nearest rotation: rounding stays at 1e-16 however many steps are taken.
    let r = r * (Matrix3::identity() * 3.0 - r.transpose() * r) * 0.5;
    Pose { r, t_mm: pose.t_mm + Vec3::new(step[3], step[4], step[5]) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::box_corners;

    fn scene() -> (Camera, Vec<Vec3>, Pose) {
        let camera = Camera::new(303.8, 303.8, 256.0, 256.0).unwrap();
        let corners = box_corners(&[[-52.0, -55.0, -57.0], [52.0, 54.0, 58.0]]);
        let r = Rotation3::from_euler_angles(0.5, -0.3, 2.0);
        (camera, corners.to_vec(), Pose { r: *r.matrix(), t_mm: Vec3::new(40.0, -30.0, 700.0) })
    }

    #[test]
    fn a_disturbed_start_comes_back_to_the_pose_that_made_the_points() {
        let (camera, points, truth) = scene();
        let pixels = truth.project(&camera, &points);
        let mut start = moved_by(&truth, &Vector6::new(0.1, -0.2, 0.1, 10.0, 5.0, 60.0));
        start.t_mm.z += 40.0;
        let found = refine_pose(&camera, &points, &pixels, &start, 50).unwrap();
        assert!((found.pose.r - truth.r).norm() < 1e-8, "{found:?}");
        assert!((found.pose.t_mm - truth.t_mm).norm() < 1e-5, "{found:?}");
        assert!(found.mean_residual_px < 1e-6);
    }

    #[test]
    fn points_behind_the_camera_are_refused() {
        let (camera, points, truth) = scene();
        let pixels = truth.project(&camera, &points);
        let start = Pose { t_mm: -truth.t_mm, ..truth };
        assert!(refine_pose(&camera, &points, &pixels, &start, 10).is_none());
        assert!(refine_pose(&camera, &points[..2], &pixels[..2], &truth, 10).is_none());
        assert!(refine_pose(&camera, &points, &pixels[..3], &truth, 10).is_none());
    }

    #[test]
    fn a_point_without_weight_does_not_count() {
        let (camera, points, truth) = scene();
        let mut pixels = truth.project(&camera, &points);
        pixels[2] += Vec2::new(30.0, -40.0);
        let mut weights = vec![2.0; points.len()];
        weights[2] = 0.0;
        let start = moved_by(&truth, &Vector6::new(0.02, -0.01, 0.03, 2.0, 1.0, 9.0));
        let found = refine_pose_weighted(&camera, &points, &pixels, &weights, &start, 50).unwrap();
        assert!((found.pose.r - truth.r).norm() < 1e-8, "{found:?}");
        assert!(found.mean_residual_px < 1e-6);
        for bad in [vec![1.0; 3], vec![0.0; 8], vec![-1.0; 8], vec![f64::NAN; 8]] {
            assert!(refine_pose_weighted(&camera, &points, &pixels, &bad, &start, 50).is_none());
        }
    }

    #[test]
    fn the_rotation_stays_one_through_many_steps() {
        let (camera, points, truth) = scene();
        let pixels = truth.project(&camera, &points);
        let mut pose = truth;
        pose.r *= 1.0 + 1e-7; // as read from float32
        for i in 0..200 {
            pose =
                moved_by(&pose, &(Vector6::new(0.3, -0.2, 0.1, 0.0, 0.0, 0.0) * f64::from(i % 3)));
        }
        assert!((pose.r * pose.r.transpose() - Matrix3::identity()).norm() < 1e-14);
        let found = refine_pose(&camera, &points, &pixels, &truth, 50).unwrap();
        assert!((found.pose.r * found.pose.r.transpose() - Matrix3::identity()).norm() < 1e-14);
    }

    #[test]
    fn the_jacobian_agrees_with_finite_differences() {
        let (camera, points, truth) = scene();
        let pixels: Vec<Vec2> = truth
            .project(&camera, &points)
            .iter()
            .enumerate()
            .map(|(i, p)| p + Vec2::new(i as f64, 2.0 - i as f64))
            .collect();
        let weights: Vec<f64> = (0..points.len()).map(|i| 0.5 + i as f64).collect();
        let problem = Problem::new(&camera, &points, &pixels, Some(&weights)).unwrap();
        let (_, jtr) = problem.normal_equations(&truth);
        for i in 0..6 {
            let mut step = Vector6::zeros();
            step[i] = 1e-6;
            let up = problem.squared_cost(&moved_by(&truth, &step)).unwrap();
            let down = problem.squared_cost(&moved_by(&truth, &-step)).unwrap();
            let slope = (up - down) / 2e-6;
            assert!((slope - 2.0 * jtr[i]).abs() < 1e-3 * (1.0 + slope.abs()), "{i}: {slope}");
        }
    }
}
