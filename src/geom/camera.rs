//! The pinhole camera.

use anyhow::{Result, ensure};
use nalgebra::Matrix3;

use super::{Vec2, Vec3};

/// A pinhole camera: `K` in px, row-major `[fx, skew, cx, 0, fy, cy, 0, 0, 1]`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Camera {
    k: Matrix3<f64>,
    k_inv: Matrix3<f64>,
}

impl Camera {
    /// Builds the camera from its row-major matrix.
    ///
    /// # Errors
    /// If a number is not finite, a focal length is not positive, or the last row is not `0 0 1`.
    pub fn from_row_major(k: &[f64]) -> Result<Self> {
        ensure!(k.len() == 9, "K has {} numbers, expected 9", k.len());
        ensure!(k.iter().all(|v| v.is_finite()), "K has a number that is not finite: {k:?}");
        ensure!(
            k[0] > 0.0 && k[4] > 0.0,
            "K has focal lengths {} and {} px, expected more than 0",
            k[0],
            k[4]
        );
        ensure!(
            k[3] == 0.0 && k[6] == 0.0 && k[7] == 0.0 && k[8] == 1.0,
            "K is {k:?}, expected [fx, skew, cx, 0, fy, cy, 0, 0, 1]"
        );
        let k = Matrix3::from_row_slice(k);
        let (fx, s, cx, fy, cy) = (k[(0, 0)], k[(0, 1)], k[(0, 2)], k[(1, 1)], k[(1, 2)]);
        let k_inv = Matrix3::new(
            1.0 / fx,
            -s / (fx * fy),
            (s * cy - cx * fy) / (fx * fy),
            0.0,
            1.0 / fy,
            -cy / fy,
            0.0,
            0.0,
            1.0,
        );
        Ok(Self { k, k_inv })
    }

    /// A camera without skew, px.
    ///
    /// # Errors
    /// As [`Camera::from_row_major`].
    pub fn new(fx: f64, fy: f64, cx: f64, cy: f64) -> Result<Self> {
        Self::from_row_major(&[fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0])
    }

    /// `K`, px.
    pub fn k(&self) -> &Matrix3<f64> {
        &self.k
    }

    /// The inverse of `K`.
    pub fn k_inv(&self) -> &Matrix3<f64> {
        &self.k_inv
    }

    /// `K` row-major, as the dataset's files hold it.
    pub fn row_major(&self) -> [f64; 9] {
        std::array::from_fn(|i| self.k[(i / 3, i % 3)])
    }

    /// Focal lengths, px.
    pub fn focal_px(&self) -> (f64, f64) {
        (self.k[(0, 0)], self.k[(1, 1)])
    }

    /// Principal point, px.
    pub fn center_px(&self) -> Vec2 {
        Vec2::new(self.k[(0, 2)], self.k[(1, 2)])
    }

    /// Projects a point of the camera frame (mm) to px. The point should have `z > 0`: behind the
    /// camera the mirrored pixel comes out, at `z = 0` a value that is not finite.
    pub fn project(&self, x_cam: &Vec3) -> Vec2 {
        let p = self.k * x_cam;
        Vec2::new(p.x / p.z, p.y / p.z)
    }

    /// The direction `K^-1 [u v 1]^T` of a pixel, with `z = 1`.
    pub fn ray(&self, pixel: &Vec2) -> Vec3 {
        self.k_inv * Vec3::new(pixel.x, pixel.y, 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ray_undoes_a_projection() {
        let camera =
            Camera::from_row_major(&[600.0, 2.0, 320.0, 0.0, 590.0, 250.0, 0.0, 0.0, 1.0]).unwrap();
        let x = Vec3::new(30.0, -20.0, 900.0);
        let ray = camera.ray(&camera.project(&x));
        assert!((ray * 900.0 - x).norm() < 1e-9);
        assert!((camera.k() * camera.k_inv() - Matrix3::identity()).norm() < 1e-12);
    }

    #[test]
    fn a_matrix_that_is_no_camera_is_refused() {
        assert!(Camera::from_row_major(&[1.0; 8]).is_err());
        assert!(Camera::new(0.0, 1.0, 0.0, 0.0).is_err());
        assert!(Camera::new(f64::NAN, 1.0, 0.0, 0.0).is_err());
        assert!(Camera::from_row_major(&[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 2.0]).is_err());
    }
}
