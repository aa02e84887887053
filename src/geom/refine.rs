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
    if points_obj.len() != pixels.len() || points_obj.len() < 3 || !start.is_finite() {
        return None;
    }
    let mut pose = *start;
    let mut cost = squared_cost(camera, points_obj, pixels, &pose)?;
    let mut damping = 1e-3;
    let mut grow = 2.0;
    for _ in 0..max_iterations {
        let (jtj, jtr) = normal_equations(camera, points_obj, pixels, &pose);
        let mut moved = false;
        // A rejected step only raises the damping, so the normal equations are kept.
        for _ in 0..12 {
            let mut a = jtj;
            for i in 0..6 {
                a[(i, i)] += damping * jtj[(i, i)].max(1e-12);
            }
            let Some(step) = a.cholesky().map(|c| c.solve(&-jtr)) else {
                damping *= grow;
                grow *= 2.0;
                continue;
            };
            let next = moved_by(&pose, &step);
            let predicted: f64 = -(step.dot(&jtr) * 2.0 + step.dot(&(jtj * step)));
            match squared_cost(camera, points_obj, pixels, &next) {
                Some(next_cost) if next_cost <= cost && predicted >= 0.0 => {
                    let gain = if predicted > 0.0 { (cost - next_cost) / predicted } else { 1.0 };
                    damping =
                        (damping * (1.0 - (2.0 * gain - 1.0).powi(3)).max(1.0 / 3.0)).max(1e-15);
                    grow = 2.0;
                    let small = cost - next_cost <= 1e-12 * cost;
                    pose = next;
                    cost = next_cost;
                    moved = !small;
                    break;
                }
                _ => {
                    damping *= grow;
                    grow *= 2.0;
                }
            }
        }
        if !moved {
            break;
        }
    }
    let total: f64 = points_obj
        .iter()
        .zip(pixels)
        .map(|(x, p)| (camera.project(&pose.apply(x)) - p).norm())
        .sum();
    Some(Refined { pose, mean_residual_px: total / points_obj.len() as f64, sum_squared_px2: cost })
}

fn squared_cost(camera: &Camera, points: &[Vec3], pixels: &[Vec2], pose: &Pose) -> Option<f64> {
    let mut sum = 0.0;
    for (x, pixel) in points.iter().zip(pixels) {
        let x_cam = pose.apply(x);
        if x_cam.z <= 0.0 {
            return None;
        }
        sum += (camera.project(&x_cam) - pixel).norm_squared();
    }
    sum.is_finite().then_some(sum)
}

/// `J^T J` and `J^T r` of the reprojection error, parameters (rotation vector rad, translation mm).
fn normal_equations(
    camera: &Camera,
    points: &[Vec3],
    pixels: &[Vec2],
    pose: &Pose,
) -> (Matrix6<f64>, Vector6<f64>) {
    let k = camera.k();
    let (fx, skew, fy) = (k[(0, 0)], k[(0, 1)], k[(1, 1)]);
    let mut jtj = Matrix6::zeros();
    let mut jtr = Vector6::zeros();
    for (x, pixel) in points.iter().zip(pixels) {
        let rotated = pose.r * x;
        let c = rotated + pose.t_mm;
        let (iz, nx, ny) = (1.0 / c.z, c.x / c.z, c.y / c.z);
        let du = Vec3::new(fx * iz, skew * iz, -(fx * nx + skew * ny) * iz);
        let dv = Vec3::new(0.0, fy * iz, -fy * ny * iz);
        // d(exp(w) R x)/dw = -[R x]_x, so the gradient with respect to w is (R x) x d.
        let (wu, wv) = (rotated.cross(&du), rotated.cross(&dv));
        let ju = Vector6::new(wu.x, wu.y, wu.z, du.x, du.y, du.z);
        let jv = Vector6::new(wv.x, wv.y, wv.z, dv.x, dv.y, dv.z);
        let r = camera.project(&c) - pixel;
        jtj += ju * ju.transpose() + jv * jv.transpose();
        jtr += ju * r.x + jv * r.y;
    }
    (jtj, jtr)
}

fn moved_by(pose: &Pose, step: &Vector6<f64>) -> Pose {
    let turn: Matrix3<f64> =
        *Rotation3::from_scaled_axis(Vec3::new(step[0], step[1], step[2])).matrix();
    let r = turn * pose.r;
    Pose {
        r: super::nearest_rotation(&r).unwrap_or(r),
        t_mm: pose.t_mm + Vec3::new(step[3], step[4], step[5]),
    }
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
    fn the_jacobian_agrees_with_finite_differences() {
        let (camera, points, truth) = scene();
        let pixels: Vec<Vec2> = truth
            .project(&camera, &points)
            .iter()
            .enumerate()
            .map(|(i, p)| p + Vec2::new(i as f64, 2.0 - i as f64))
            .collect();
        let (_, jtr) = normal_equations(&camera, &points, &pixels, &truth);
        for i in 0..6 {
            let mut step = Vector6::zeros();
            step[i] = 1e-6;
            let up = squared_cost(&camera, &points, &pixels, &moved_by(&truth, &step)).unwrap();
            let down = squared_cost(&camera, &points, &pixels, &moved_by(&truth, &-step)).unwrap();
            let slope = (up - down) / 2e-6;
            assert!((slope - 2.0 * jtr[i]).abs() < 1e-3 * (1.0 + slope.abs()), "{i}: {slope}");
        }
    }
}
