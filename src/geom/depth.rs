//! Depth of a triangle mesh seen by a camera: exact rays through the centres of pixels, on the CPU.

use super::{Camera, Pose, Vec3};

/// The depth of what a camera sees, in a rectangle of pixels.
#[derive(Debug, Clone, PartialEq)]
pub struct DepthPatch {
    /// Column and row of the first pixel in the image.
    pub left_top: [usize; 2],
    /// Width and height, px; 0 when nothing is seen.
    pub size: [usize; 2],
    /// z of the nearest surface in the camera's frame, mm, row by row; 0 where there is none.
    pub z_mm: Vec<f32>,
}

impl DepthPatch {
    /// Of `size` (width and height, px) from the pixel `left_top` on, without a surface.
    pub fn empty(left_top: [usize; 2], size: [usize; 2]) -> Self {
        Self { left_top, size, z_mm: vec![0.0; size[0] * size[1]] }
    }

    /// z at a pixel of the image, mm; 0 where there is no surface, and outside of the rectangle.
    pub fn at(&self, column: usize, row: usize) -> f32 {
        let [left, top] = self.left_top;
        let inside = (left..left + self.size[0]).contains(&column)
            && (top..top + self.size[1]).contains(&row);
        if inside { self.z_mm[(row - top) * self.size[0] + column - left] } else { 0.0 }
    }

    /// Where `other` is nearer than what is here, takes it; pixels of `other` outside of the rectangle are passed over.
    pub fn put(&mut self, other: &DepthPatch) {
        for row in 0..self.size[1] {
            for column in 0..self.size[0] {
                let new = other.at(self.left_top[0] + column, self.left_top[1] + row);
                let z = &mut self.z_mm[row * self.size[0] + column];
                if new > 0.0 && (*z == 0.0 || new < *z) {
                    *z = new;
                }
            }
        }
    }
}

/// The depth of a mesh (`vertices` in mm, `faces` of them, seen from both sides) in an image of `image_size` (width and
/// height, px); the patch is the rectangle of pixels that its projection may touch.
///
/// A ray through (u, v) meets the triangle a, b, c where `d (a x b)`, `d (b x c)` and `d (c x a)` have one sign; they are
/// linear in u and v, and equal along an edge that two triangles share, so that no gap opens. It holds as well for
/// triangles that reach behind the camera, of which only what is in front is seen.
pub fn render_depth(
    vertices: &[Vec3],
    faces: &[[u32; 3]],
    camera: &Camera,
    pose: &Pose,
    image_size: [usize; 2],
) -> DepthPatch {
    let points: Vec<Vec3> = vertices.iter().map(|x| pose.apply(x)).collect();
    let window = Window::of(&points, camera, image_size);
    let mut patch = DepthPatch::empty(window.low, window.size());
    for face in faces {
        let triangle = face.map(|i| points[i as usize]);
        let around = Window::of(&triangle, camera, image_size);
        draw(&mut patch, camera, &triangle, &around);
    }
    patch
}

/// A rectangle of pixels: from `low` on, up to `high` (without it).
struct Window {
    low: [usize; 2],
    high: [usize; 2],
}

impl Window {
    /// The pixels that points of the camera's frame may cover; all when one of them is not in front of the camera, none when
    /// all are behind it.
    fn of(points: &[Vec3], camera: &Camera, image_size: [usize; 2]) -> Self {
        /// Nearer points are taken for ones that have no projection, mm.
        const NEAREST_MM: f64 = 1e-6;
        if points.iter().all(|x| x.z <= NEAREST_MM) {
            return Self { low: [0; 2], high: [0; 2] };
        }
        if points.iter().any(|x| x.z <= NEAREST_MM) {
            return Self { low: [0; 2], high: image_size };
        }
        let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
        for x in points {
            let p = camera.project(x);
            for a in 0..2 {
                low[a] = low[a].min(p[a]);
                high[a] = high[a].max(p[a]);
            }
        }
        // The cast of what lies outside is the nearest number, 0 or the largest one.
        let low: [usize; 2] =
            std::array::from_fn(|a| ((low[a] - 1e-6).ceil() as usize).min(image_size[a]));
        let end = |a: usize| match high[a] + 1e-6 {
            last if last < 0.0 => 0,
            last => (last.floor() as usize).saturating_add(1),
        };
        Self { low, high: std::array::from_fn(|a| end(a).clamp(low[a], image_size[a])) }
    }

    fn size(&self) -> [usize; 2] {
        std::array::from_fn(|a| self.high[a] - self.low[a])
    }
}

/// Draws a triangle of the camera's frame into the pixels of `around`.
fn draw(patch: &mut DepthPatch, camera: &Camera, [a, b, c]: &[Vec3; 3], around: &Window) {
    let to_ray = camera.k_inv().transpose();
    // Coefficients of u, v and 1 of the three products.
    let edges = [a.cross(b), b.cross(c), c.cross(a)].map(|n| to_ray * n);
    let volume = a.dot(&b.cross(c));
    let [left, top] = patch.left_top;
    for row in around.low[1]..around.high[1] {
        for column in around.low[0]..around.high[0] {
            let (u, v) = (column as f64, row as f64);
            let [e, f, g] = edges.map(|n| n.x * u + n.y * v + n.z);
            let one_sign = (e >= 0.0 && f >= 0.0 && g >= 0.0) || (e <= 0.0 && f <= 0.0 && g <= 0.0);
            let sum = e + f + g;
            if !one_sign || sum == 0.0 {
                continue;
            }
            let z = (volume / sum) as f32;
            let old = &mut patch.z_mm[(row - top) * patch.size[0] + column - left];
            if z > 0.0 && (*old == 0.0 || z < *old) {
                *old = z;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn camera() -> Camera {
        Camera::new(100.0, 100.0, 10.0, 8.0).unwrap()
    }

    fn at(x: f64, z: f64) -> Pose {
        Pose { t_mm: Vec3::new(x, 0.0, z), ..Pose::identity() }
    }

    /// A square of 20 mm in the plane z = `slope` x.
    fn square(slope: f64) -> (Vec<Vec3>, Vec<[u32; 3]>) {
        let corner = |x: f64, y: f64| Vec3::new(x, y, slope * x);
        let vertices =
            [(-10.0, -10.0), (10.0, -10.0), (10.0, 10.0), (-10.0, 10.0)].map(|(x, y)| corner(x, y));
        (vertices.into(), vec![[0, 1, 2], [0, 2, 3]])
    }

    #[test]
    fn a_square_covers_its_pixels_once_and_without_a_gap() {
        let (vertices, faces) = square(0.0);
        // 20 mm at 500 mm are 4 px: columns 8 to 12, rows 6 to 10, edges included.
        let patch = render_depth(&vertices, &faces, &camera(), &at(0.0, 500.0), [64, 48]);
        assert_eq!((patch.left_top, patch.size), ([8, 6], [5, 5]));
        assert!(patch.z_mm.iter().all(|z| (z - 500.0).abs() < 1e-3), "{:?}", patch.z_mm);
        assert_eq!((patch.at(7, 8), patch.at(12, 10) > 0.0, patch.at(13, 8)), (0.0, true, 0.0));
        // Seen from behind it is the same.
        let turned: Vec<[u32; 3]> = faces.iter().map(|[a, b, c]| [*c, *b, *a]).collect();
        assert_eq!(patch, render_depth(&vertices, &turned, &camera(), &at(0.0, 500.0), [64, 48]));
    }

    #[test]
    fn depth_is_where_the_ray_meets_the_plane() {
        let (vertices, faces) = square(1.0);
        let patch = render_depth(&vertices, &faces, &camera(), &at(0.0, 500.0), [64, 48]);
        // x = z (u - 10) / 100 and z = 500 + x.
        for column in 9..12 {
            let expected = 500.0 / (1.0 - (column as f64 - 10.0) / 100.0);
            assert!((f64::from(patch.at(column, 8)) - expected).abs() < 1e-3, "{column}");
        }
    }

    #[test]
    fn the_nearest_surface_counts_and_what_is_outside_or_behind_is_not_seen() {
        let (vertices, faces) = square(0.0);
        let draw = |pose: Pose| render_depth(&vertices, &faces, &camera(), &pose, [64, 48]);
        let mut near = draw(at(0.0, 500.0));
        near.put(&draw(at(0.0, 900.0)));
        assert!((near.at(10, 8) - 500.0).abs() < 1e-3);
        let mut far = draw(at(0.0, 900.0));
        far.put(&draw(at(0.0, 500.0)));
        assert!((far.at(10, 8) - 500.0).abs() < 1e-3);
        assert_eq!(draw(at(0.0, -500.0)).size, [0, 0]);
        assert!(draw(at(4000.0, 500.0)).z_mm.is_empty());
        assert!(draw(at(-4000.0, 500.0)).z_mm.is_empty());
    }

    #[test]
    fn of_a_triangle_that_reaches_behind_the_camera_the_front_is_seen() {
        // The floor y = 10 mm, from z = -100 to 1000 mm.
        let vertices =
            [(-900.0, -100.0), (900.0, -100.0), (0.0, 1000.0)].map(|(x, z)| Vec3::new(x, 10.0, z));
        let patch = render_depth(&vertices, &[[0, 1, 2]], &camera(), &Pose::identity(), [20, 20]);
        assert_eq!((patch.at(10, 7), patch.at(10, 8)), (0.0, 0.0));
        // v - 8 = 100 * 10 / z.
        assert!((patch.at(10, 10) - 500.0).abs() < 1e-3 && (patch.at(10, 18) - 100.0).abs() < 1e-3);
    }
}
