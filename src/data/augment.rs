//! Random shift, rotation and scaling of a sample, and what becomes of its poses.

use nalgebra::{Rotation3, Unit};
use rand::Rng;

use super::DataConfig;
use crate::geom::{Affine2, Camera, Pose, Refined, Vec2, Vec3, refine_pose};

/// Steps of the pose refinement; from the analytic start it settles in about 5.
const MAX_REFINE_ITERATIONS: usize = 50;

/// One draw of the augmentation of an image at internal size.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Augmentation {
    /// What is cut off at the left and the top, px: the image moves by the negative of it.
    pub cut_px: [i64; 2],
    /// Rotation about the image's centre, degrees, counter-clockwise as seen.
    pub angle_deg: f64,
    /// Scale about the image's centre.
    pub scale: f64,
}

impl Augmentation {
    /// Draws within the limits of `data`: an integer shift within the fraction of `width` and `height` (px), an angle
    /// and a scale, all uniform.
    pub fn draw(data: &DataConfig, width: usize, height: usize, rng: &mut impl Rng) -> Self {
        let mut shift = |side: usize| {
            let limit = (side as f64 * data.augmentation_shift) as i64;
            rng.random_range(-limit..=limit)
        };
        let cut_px = [shift(width), shift(height)];
        let mut within = |limit: f64| rng.random_range(-limit..=limit);
        let angle_deg = within(data.augmentation_rotation_deg);
        Self { cut_px, angle_deg, scale: 1.0 + within(data.augmentation_scale) }
    }

    /// The map from the pixels of an image of this size to those of the augmented one: the shift, then rotation and
    /// scaling about the centre (`width / 2`, `height / 2`).
    pub fn affine(&self, width: usize, height: usize) -> Affine2 {
        let center = Vec2::new(width as f64 / 2.0, height as f64 / 2.0);
        let [left, top] = self.cut_px.map(|c| c as f64);
        Affine2::rotate_scale(&center, self.angle_deg.to_radians(), self.scale)
            .after(&Affine2::shift(-left, -top))
    }
}

/// The pose under camera `to` whose projected `corners` (object frame, mm) come nearest, in squared px, to those of
/// `pose` under `from` moved by `m`.
///
/// When `m` takes one camera to the other the result is `pose` itself, when it turns and scales about the principal
/// point it is exact for a distant object; a shift is not a rigid motion and leaves a residual of up to 2 px.
/// `None` when a corner is at or behind the camera.
///
/// # Source
/// The published code solves EPnP on the moved corners. Deviation: least squares, from a start known in closed form.
pub fn remap_pose(
    from: &Camera,
    to: &Camera,
    m: &Affine2,
    pose: &Pose,
    corners: &[Vec3],
) -> Option<Refined> {
    if corners.iter().any(|x| pose.apply(x).z <= 0.0) {
        return None;
    }
    let pixels: Vec<Vec2> = pose.project(from, corners).iter().map(|p| m.apply(p)).collect();
    let start = moved_start(from, to, m, pose);
    refine_pose(to, corners, &pixels, &start, MAX_REFINE_ITERATIONS)
}

/// The object rolled and brought nearer as `m` turns and scales, put on the ray on which `m` shows it, and turned
/// along with that ray, so that it is seen from the same side.
fn moved_start(from: &Camera, to: &Camera, m: &Affine2, pose: &Pose) -> Pose {
    // `m` on the planes z = 1 of both cameras.
    let origin = from.project(&Vec3::z());
    let unit = |axis: Vec3| {
        let at = |p: &Vec2| to.ray(&m.apply(p));
        at(&from.project(&(Vec3::z() + axis))) - at(&origin)
    };
    let (ex, ey) = (unit(Vec3::x()), unit(Vec3::y()));
    let scale = (ex.x * ey.y - ey.x * ex.y).abs().sqrt();
    let roll_rad = (ex.y - ey.x).atan2(ex.x + ey.y);
    let roll = Rotation3::from_axis_angle(&Unit::new_unchecked(Vec3::z()), roll_rad);

    let ray = to.ray(&m.apply(&from.project(&pose.t_mm)));
    let t_mm = ray * (pose.t_mm.z / scale);
    let turn = turn_between(&(roll * pose.t_mm), &t_mm);
    Pose { r: (turn * roll).matrix() * pose.r, t_mm }
}

/// The smallest rotation that takes the direction of `a` to that of `b`; none where they are parallel or one is zero.
///
/// The angle is atan2(|a x b|, a . b): of two rays that are equal to rounding the cosine may come out above 1, which has no
/// arc cosine.
fn turn_between(a: &Vec3, b: &Vec3) -> Rotation3<f64> {
    let cross = a.cross(b);
    let angle_rad = cross.norm().atan2(a.dot(b));
    match Unit::try_new(cross, f64::MIN_POSITIVE) {
        Some(axis) => Rotation3::from_axis_angle(&axis, angle_rad),
        None => Rotation3::identity(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::box_corners;
    use crate::seed;

    fn scene() -> (Camera, Pose, Vec<Vec3>) {
        let camera = Camera::new(300.0, 300.0, 256.0, 256.0).unwrap();
        let r = Rotation3::from_euler_angles(0.4, -1.3, 2.5);
        let pose = Pose { r: *r.matrix(), t_mm: Vec3::new(0.0, 0.0, 900.0) };
        (camera, pose, box_corners(&[[-50.0, -40.0, -60.0], [50.0, 40.0, 60.0]]).to_vec())
    }

    #[test]
    fn a_turn_about_the_principal_point_is_a_roll_of_the_camera() {
        let (camera, pose, corners) = scene();
        let turn = Augmentation { cut_px: [0, 0], angle_deg: 30.0, scale: 1.0 };
        let moved = remap_pose(&camera, &camera, &turn.affine(512, 512), &pose, &corners).unwrap();
        // Counter-clockwise as seen, y down, is a negative turn about the viewing axis.
        let roll = Rotation3::from_axis_angle(&Unit::new_unchecked(Vec3::z()), -30f64.to_radians());
        assert!((moved.pose.r - roll.matrix() * pose.r).norm() < 1e-9, "{moved:?}");
        assert!(moved.mean_residual_px < 1e-9);
    }

    #[test]
    fn between_two_cameras_the_pose_stays() {
        let (from, pose, corners) = scene();
        let to =
            Camera::from_row_major(&[420.0, 3.0, 200.0, 0.0, 410.0, 260.0, 0.0, 0.0, 1.0]).unwrap();
        let m = Affine2::between_cameras(&from, &to);
        let pose = Pose { t_mm: Vec3::new(150.0, -90.0, 800.0), ..pose };
        let moved = remap_pose(&from, &to, &m, &pose, &corners).unwrap();
        assert!((moved.pose.r - pose.r).norm() < 1e-9);
        assert!((moved.pose.t_mm - pose.t_mm).norm() < 1e-6);
    }

    #[test]
    fn rays_that_are_equal_to_rounding_need_no_turn() {
        // of this ray with itself the cosine is 1 + 2e-16, computed as the dot product of normalized vectors
        let directions = (0..20_000u64).map(|i| {
            let mut rng = seed::stream(5, &[i]);
            let mut within = |limit: f64| rng.random_range(-limit..limit);
            Vec3::new(within(400.0), within(400.0), 900.0 + within(800.0))
        });
        let mut above_one = 0;
        for ray in directions {
            above_one += usize::from(ray.normalize().dot(&ray.normalize()) > 1.0);
            for other in [ray, ray * 0.7, ray * 3.1] {
                let turn = turn_between(&ray, &other);
                assert!((turn.matrix() - Rotation3::identity().matrix()).norm() < 1e-12);
                assert!((turn * ray.normalize() - other.normalize()).norm() < 1e-12);
            }
        }
        assert!(above_one > 100, "{above_one} of these rays show nothing");
        let (camera, pose, corners) = scene();
        for i in 0..200 {
            let mut rng = seed::stream(6, &[i]);
            let mut within = |limit: f64| rng.random_range(-limit..limit);
            let pose = Pose { t_mm: Vec3::new(within(300.0), within(300.0), 900.0), ..pose };
            let moved = remap_pose(&camera, &camera, &Affine2::identity(), &pose, &corners);
            let moved = moved.expect("an image that stays has its pose");
            assert!((moved.pose.r - pose.r).norm() < 1e-7, "{moved:?}");
        }
    }

    #[test]
    fn a_turn_takes_one_ray_to_the_other_by_the_smallest_angle() {
        for i in 0..2000 {
            let mut rng = seed::stream(7, &[i]);
            let mut ray = || Vec3::from_fn(|_, _| rng.random_range(-1.0..1.0));
            let (a, b) = (ray(), ray());
            let turn = turn_between(&a, &b);
            assert!((turn * a.normalize() - b.normalize()).norm() < 1e-12, "{a} {b}");
            assert!((turn.angle() - a.angle(&b)).abs() < 1e-7, "{a} {b}");
        }
    }

    #[test]
    fn corners_behind_the_camera_have_no_pose() {
        let (camera, pose, corners) = scene();
        let pose = Pose { t_mm: Vec3::new(0.0, 0.0, 20.0), ..pose };
        assert!(remap_pose(&camera, &camera, &Affine2::identity(), &pose, &corners).is_none());
    }

    #[test]
    fn draws_fill_their_limits_and_no_more() {
        let data = DataConfig::default();
        let draws: Vec<Augmentation> = (0..2000)
            .map(|i| Augmentation::draw(&data, 512, 256, &mut seed::stream(3, &[i])))
            .collect();
        let range = |f: &dyn Fn(&Augmentation) -> f64| {
            let values = draws.iter().map(f);
            values.fold((f64::MAX, f64::MIN), |(lo, hi), v| (lo.min(v), hi.max(v)))
        };
        assert_eq!(range(&|a| a.cut_px[0] as f64), (-51.0, 51.0));
        assert_eq!(range(&|a| a.cut_px[1] as f64), (-25.0, 25.0));
        let (low, high) = range(&|a| a.angle_deg);
        assert!((-180.0..-179.0).contains(&low) && (179.0..=180.0).contains(&high));
        let (low, high) = range(&|a| a.scale);
        assert!((0.9..0.901).contains(&low) && (1.099..=1.1).contains(&high));
    }

    #[test]
    fn no_limits_draw_the_identity() {
        let data = DataConfig {
            augmentation_shift: 0.0,
            augmentation_scale: 0.0,
            augmentation_rotation_deg: 0.0,
            ..DataConfig::default()
        };
        let draw = Augmentation::draw(&data, 512, 512, &mut seed::stream(1, &[]));
        assert_eq!(draw.affine(512, 512), Affine2::identity());
    }
}
