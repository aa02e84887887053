//! A camera with its distortion.

use super::{Camera, Distortion, Vec2, Vec3};

/// A pinhole camera behind a distorting lens: what takes real pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Lens {
    camera: Camera,
    distortion: Distortion,
    /// Distance from the axis, in the pinhole's plane, from which on nothing is seen.
    reach: f64,
}

impl Lens {
    /// Puts the two together.
    pub fn new(camera: Camera, distortion: Distortion) -> Self {
        Self { camera, distortion, reach: distortion.reach() }
    }

    /// The pinhole.
    pub fn camera(&self) -> &Camera {
        &self.camera
    }

    /// The distortion.
    pub fn distortion(&self) -> &Distortion {
        &self.distortion
    }

    /// Where a point of the camera's frame (mm, `z > 0`) is seen, px; `None` where the lens's formula no longer holds.
    pub fn project(&self, x_cam: &Vec3) -> Option<Vec2> {
        if self.distortion.is_none() {
            return Some(self.camera.project(x_cam));
        }
        self.pixel_of(&Vec2::new(x_cam.x / x_cam.z, x_cam.y / x_cam.z))
    }

    /// The pixel that shows the direction `(x, y, 1)`.
    pub fn pixel_of(&self, direction: &Vec2) -> Option<Vec2> {
        let norm = direction.norm();
        if !norm.is_finite() || norm >= self.reach {
            return None;
        }
        let seen = self.distortion.distort(direction);
        Some(self.camera.project(&Vec3::new(seen.x, seen.y, 1.0)))
    }

    /// The direction `(x, y, 1)` that a pixel shows; `None` where nothing in front of the camera is seen there.
    pub fn direction_of(&self, pixel: &Vec2) -> Option<Vec2> {
        let ray = self.camera.ray(pixel);
        self.distortion.undistort(&Vec2::new(ray.x, ray.y))
    }
}

impl From<Camera> for Lens {
    fn from(camera: Camera) -> Self {
        Self { camera, distortion: Distortion::None, reach: f64::INFINITY }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_direction_undoes_a_projection() {
        let camera = Camera::new(420.0, 415.0, 319.0, 241.0).unwrap();
        let distortion = Distortion::polynomial(&[-0.3, 0.02, 1e-3, -5e-4]).unwrap();
        let lens = Lens::new(camera, distortion);
        let x = Vec3::new(120.0, -90.0, 500.0);
        let direction = lens.direction_of(&lens.project(&x).unwrap()).unwrap();
        assert!((direction - Vec2::new(0.24, -0.18)).norm() < 1e-11);
        // The formula shows far points again inside the picture; they are not.
        let far = Vec3::new(900.0, 0.0, 500.0);
        assert!(distortion.distort(&Vec2::new(1.8, 0.0)).norm() < 1.0);
        assert_eq!(lens.project(&far), None);
    }

    #[test]
    fn without_distortion_it_is_the_camera() {
        let camera = Camera::new(420.0, 415.0, 319.0, 241.0).unwrap();
        let x = Vec3::new(120.0, -90.0, 500.0);
        assert_eq!(Lens::from(camera).project(&x), Some(camera.project(&x)));
        assert_eq!(Lens::from(camera), Lens::new(camera, Distortion::None));
    }
}
