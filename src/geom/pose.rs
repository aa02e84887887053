//! Rigid poses.

use anyhow::{Result, ensure};
use nalgebra::{Matrix3, UnitQuaternion};

use super::{Camera, Vec2, Vec3};

/// How far `R R^T` may be from the identity in a pose read from a file.
const ROTATION_TOLERANCE: f64 = 1e-3;
/// The farthest translation that is read, mm: squares and products of such numbers stay finite and keep their digits.
const MAX_TRANSLATION_MM: f64 = 1e15;

/// A rigid pose: `x_cam = R x_obj + t`, t in mm.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pose {
    /// Rotation from the object's to the camera's frame.
    pub r: Matrix3<f64>,
    /// Translation, mm.
    pub t_mm: Vec3,
}

impl Pose {
    /// The identity.
    pub fn identity() -> Self {
        Self { r: Matrix3::identity(), t_mm: Vec3::zeros() }
    }

    /// Builds a pose from row-major `R` and `t` (mm).
    ///
    /// # Errors
    /// If a count is wrong, a number is not finite, `R` is not a rotation (within 1e-3), or `t` has more than 1e15 mm.
    pub fn from_row_major(r: &[f64], t_mm: &[f64]) -> Result<Self> {
        ensure!(r.len() == 9, "R has {} numbers, expected 9", r.len());
        ensure!(t_mm.len() == 3, "t has {} numbers, expected 3", t_mm.len());
        ensure!(
            r.iter().chain(t_mm).all(|v| v.is_finite()),
            "the pose has a number that is not finite: R {r:?}, t {t_mm:?}"
        );
        let farthest = t_mm.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
        ensure!(
            farthest <= MAX_TRANSLATION_MM,
            "t has {farthest:e} mm, expected at most {MAX_TRANSLATION_MM:e}"
        );
        let r = Matrix3::from_row_slice(r);
        let (off, det) = ((r * r.transpose() - Matrix3::identity()).norm(), r.determinant());
        ensure!(
            off < ROTATION_TOLERANCE && det > 0.0,
            "R is not a rotation: R R^T is {off:.2e} from the identity (at most {ROTATION_TOLERANCE}) and the \
             determinant is {det:.6} (expected 1): {:?}",
            r.transpose().as_slice()
        );
        Ok(Self { r, t_mm: Vec3::new(t_mm[0], t_mm[1], t_mm[2]) })
    }

    /// `R` row-major.
    pub fn r_row_major(&self) -> [f64; 9] {
        std::array::from_fn(|i| self.r[(i / 3, i % 3)])
    }

    /// `t`, mm.
    pub fn t_array(&self) -> [f64; 3] {
        [self.t_mm.x, self.t_mm.y, self.t_mm.z]
    }

    /// Moves a point of the object into the camera frame, mm.
    pub fn apply(&self, x_obj: &Vec3) -> Vec3 {
        self.r * x_obj + self.t_mm
    }

    /// The pixels of `points` (object frame, mm) under `camera`.
    pub fn project(&self, camera: &Camera, points: &[Vec3]) -> Vec<Vec2> {
        points.iter().map(|x| camera.project(&self.apply(x))).collect()
    }

    /// `self` after `other`: `x -> self(other(x))`.
    pub fn after(&self, other: &Pose) -> Pose {
        Pose { r: self.r * other.r, t_mm: self.r * other.t_mm + self.t_mm }
    }

    /// The inverse map.
    pub fn inverse(&self) -> Pose {
        let r = self.r.transpose();
        Pose { r, t_mm: -(r * self.t_mm) }
    }

    /// The unit quaternion of `R`.
    pub fn quaternion(&self) -> UnitQuaternion<f64> {
        UnitQuaternion::from_matrix(&self.r)
    }

    /// True when every number is finite.
    pub fn is_finite(&self) -> bool {
        self.r.iter().chain(self.t_mm.iter()).all(|v| v.is_finite())
    }
}

/// The rotation nearest to `m` (Frobenius norm, by singular values).
pub fn nearest_rotation(m: &Matrix3<f64>) -> Option<Matrix3<f64>> {
    let svd = m.try_svd(true, true, f64::EPSILON, 100)?;
    let (u, vt) = (svd.u?, svd.v_t?);
    let mut d = Matrix3::identity();
    d[(2, 2)] = (u * vt).determinant().signum();
    Some(u * d * vt)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::Rotation3;

    fn some_pose() -> Pose {
        let r = Rotation3::from_euler_angles(0.3, -0.7, 1.9);
        Pose { r: *r.matrix(), t_mm: Vec3::new(10.0, -20.0, 800.0) }
    }

    #[test]
    fn a_pose_and_its_inverse_cancel() {
        let p = some_pose();
        let q = p.after(&p.inverse());
        assert!((q.r - Matrix3::identity()).norm() < 1e-12 && q.t_mm.norm() < 1e-9);
    }

    #[test]
    fn row_major_numbers_come_back() {
        let p = some_pose();
        let q = Pose::from_row_major(&p.r_row_major(), &p.t_array()).unwrap();
        assert_eq!(p, q);
    }

    #[test]
    fn what_is_no_rotation_is_refused() {
        let mut r = some_pose().r_row_major();
        assert!(Pose::from_row_major(&r[..8], &[0.0; 3]).is_err());
        r[0] += 0.1;
        assert!(Pose::from_row_major(&r, &[0.0; 3]).is_err());
        assert!(Pose::from_row_major(&some_pose().r_row_major(), &[0.0, f64::NAN, 0.0]).is_err());
        let mirror = [-1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];
        assert!(Pose::from_row_major(&mirror, &[0.0; 3]).is_err());
        let r = some_pose().r_row_major();
        assert!(Pose::from_row_major(&r, &[0.0, -1e15, 1e15]).is_ok());
        for t in [[0.0, 0.0, 1e308], [-1.1e15, 0.0, 1.0]] {
            let error = Pose::from_row_major(&r, &t).unwrap_err().to_string();
            assert!(error.contains("mm, expected at most 1e15"), "{error}");
        }
    }

    #[test]
    fn the_nearest_rotation_of_a_scaled_rotation_is_that_rotation() {
        let r = some_pose().r;
        assert!((nearest_rotation(&(r * 3.0)).unwrap() - r).norm() < 1e-12);
    }
}
