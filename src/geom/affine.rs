//! Affine maps of the image plane.

use super::{Camera, Vec2};

/// `[x', y'] = M [x, y, 1]`, px; maps source to destination pixels, as OpenCV's 2x3 matrices do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Affine2 {
    /// Rows of the 2x3 matrix.
    pub m: [[f64; 3]; 2],
}

impl Affine2 {
    /// The identity.
    pub fn identity() -> Self {
        Self { m: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]] }
    }

    /// A shift by (`dx`, `dy`) px.
    pub fn shift(dx: f64, dy: f64) -> Self {
        Self { m: [[1.0, 0.0, dx], [0.0, 1.0, dy]] }
    }

    /// `K_to K_from^-1`: what an image of one camera must undergo to look as if the other took it.
    pub fn between_cameras(from: &Camera, to: &Camera) -> Self {
        let m = to.k() * from.k_inv();
        Self { m: [[m[(0, 0)], m[(0, 1)], m[(0, 2)]], [m[(1, 0)], m[(1, 1)], m[(1, 2)]]] }
    }

    /// Rotation by `angle_rad` and scaling about `center`, as OpenCV's `getRotationMatrix2D`: a positive angle
    /// turns counter-clockwise as seen in the image (y down).
    pub fn rotate_scale(center: &Vec2, angle_rad: f64, scale: f64) -> Self {
        let (a, b) = (scale * angle_rad.cos(), scale * angle_rad.sin());
        Self {
            m: [
                [a, b, (1.0 - a) * center.x - b * center.y],
                [-b, a, b * center.x + (1.0 - a) * center.y],
            ],
        }
    }

    /// `self` after `first`.
    pub fn after(&self, first: &Affine2) -> Affine2 {
        let (a, b) = (&self.m, &first.m);
        let entry = |i: usize, j: usize| {
            a[i][0] * b[0][j] + a[i][1] * b[1][j] + if j == 2 { a[i][2] } else { 0.0 }
        };
        Affine2 { m: std::array::from_fn(|i| std::array::from_fn(|j| entry(i, j))) }
    }

    /// The inverse map, or `None` when the map is singular.
    pub fn inverse(&self) -> Option<Affine2> {
        let [[a, b, c], [d, e, f]] = self.m;
        let det = a * e - b * d;
        if det == 0.0 || !det.is_finite() {
            return None;
        }
        let (ia, ib, id, ie) = (e / det, -b / det, -d / det, a / det);
        Some(Affine2 { m: [[ia, ib, -(ia * c + ib * f)], [id, ie, -(id * c + ie * f)]] })
    }

    /// Moves a pixel.
    pub fn apply(&self, p: &Vec2) -> Vec2 {
        Vec2::new(
            self.m[0][0] * p.x + self.m[0][1] * p.y + self.m[0][2],
            self.m[1][0] * p.x + self.m[1][1] * p.y + self.m[1][2],
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_leaves_its_center_and_turns_counter_clockwise() {
        let m = Affine2::rotate_scale(&Vec2::new(10.0, 20.0), std::f64::consts::FRAC_PI_2, 2.0);
        assert!((m.apply(&Vec2::new(10.0, 20.0)) - Vec2::new(10.0, 20.0)).norm() < 1e-12);
        // One px to the right goes two px up, which is towards smaller y.
        assert!((m.apply(&Vec2::new(11.0, 20.0)) - Vec2::new(10.0, 18.0)).norm() < 1e-12);
    }

    #[test]
    fn the_inverse_undoes_the_map() {
        let m =
            Affine2::rotate_scale(&Vec2::new(3.0, 4.0), 0.4, 1.1).after(&Affine2::shift(5.0, -7.0));
        let p = Vec2::new(12.0, 34.0);
        assert!((m.inverse().unwrap().apply(&m.apply(&p)) - p).norm() < 1e-12);
        assert!(Affine2 { m: [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]] }.inverse().is_none());
    }

    #[test]
    fn swisscube_to_its_internal_camera_is_one_half() {
        let f = 607.5730322397038;
        let from = Camera::new(f, f, 512.0, 512.0).unwrap();
        let to = Camera::new(f / 2.0, f / 2.0, 256.0, 256.0).unwrap();
        let m = Affine2::between_cameras(&from, &to);
        assert!((m.m[0][0] - 0.5).abs() < 1e-15 && m.m[0][2].abs() < 1e-12);
    }
}
