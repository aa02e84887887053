//! A small rasterizer: which surface of several objects is seen at each sample, for its colour.

use std::ops::Range;

use nalgebra::Vector3;

use super::shapes::Shape;
use crate::geom::{Camera, Pose, Vec2, Vec3};

/// An object in a scene.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed<'a> {
    pub shape: &'a Shape,
    pub pose: Pose,
}

impl Placed<'_> {
    /// The middle of its box in the camera's frame, mm.
    pub fn middle_mm(&self) -> Vec3 {
        self.pose.apply(&self.shape.middle_mm)
    }
}

/// What is seen at a sample.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hit {
    /// Index of the object.
    pub object: u32,
    /// Index of its triangle.
    pub face: u32,
    /// Weights of the triangle's corners, on the surface.
    pub weights: [f32; 3],
}

/// A grid of samples of the image plane: sample (i, j) is at `start + step * (i, j)`, px.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    pub start: Vec2,
    pub step: f64,
    pub width: usize,
    pub height: usize,
}

impl Grid {
    /// `times` x `times` samples a pixel of some rows of an image.
    pub fn finer(size_px: usize, times: usize, rows: Range<usize>) -> Self {
        let step = 1.0 / times as f64;
        let start = Vec2::repeat(0.5 * step - 0.5) + Vec2::new(0.0, rows.start as f64);
        Self { start, step, width: size_px * times, height: rows.len() * times }
    }
}

/// The nearest surface at each sample of a grid.
pub(super) struct Seen {
    pub grid: Grid,
    /// z, mm; infinite where nothing is.
    depth_mm: Vec<f32>,
    pub hits: Vec<Option<Hit>>,
}

impl Seen {
    /// What of `objects` is seen; each must be in front of the camera.
    pub fn new(grid: Grid, camera: &Camera, objects: &[Placed<'_>]) -> Self {
        let num = grid.width * grid.height;
        let mut seen = Self { grid, depth_mm: vec![f32::INFINITY; num], hits: vec![None; num] };
        for (index, object) in objects.iter().enumerate() {
            seen.add(index, camera, object);
        }
        seen
    }

    fn add(&mut self, object: usize, camera: &Camera, placed: &Placed<'_>) {
        let mesh = &placed.shape.mesh;
        let points: Vec<Vec3> = placed.shape.points.iter().map(|v| placed.pose.apply(v)).collect();
        let pixels: Vec<Vec2> =
            points.iter().map(|p| (camera.project(p) - self.grid.start) / self.grid.step).collect();
        for (face, corners) in mesh.faces.iter().enumerate() {
            let corners = corners.map(|i| i as usize);
            let z = corners.map(|i| points[i].z);
            if z.iter().any(|z| *z <= 0.0) {
                continue;
            }
            self.triangle((object, face), corners.map(|i| pixels[i]), z);
        }
    }

    fn triangle(&mut self, (object, face): (usize, usize), [a, b, c]: [Vec2; 3], z: [f64; 3]) {
        let area = (b - a).perp(&(c - a));
        if area == 0.0 {
            return;
        }
        let range = |axis: usize, size: usize| {
            let low = a[axis].min(b[axis]).min(c[axis]).ceil().max(0.0);
            let high = a[axis].max(b[axis]).max(c[axis]).floor().min(size as f64 - 1.0);
            if low <= high { low as usize..high as usize + 1 } else { 0..0 }
        };
        for y in range(1, self.grid.height) {
            for x in range(0, self.grid.width) {
                let p = Vec2::new(x as f64, y as f64);
                let flat = [(c - b).perp(&(p - b)), (a - c).perp(&(p - c)), (b - a).perp(&(p - a))]
                    .map(|w| w / area);
                if flat.iter().any(|w| *w < 0.0) {
                    continue;
                }
                // 1 / z is linear in the image.
                let inverse: f64 = (0..3).map(|i| flat[i] / z[i]).sum();
                let depth_mm = (1.0 / inverse) as f32;
                let place = y * self.grid.width + x;
                if depth_mm < self.depth_mm[place] {
                    self.depth_mm[place] = depth_mm;
                    let weights = [0, 1, 2].map(|i| (flat[i] / z[i] / inverse) as f32);
                    let (object, face) = (object as u32, face as u32);
                    self.hits[place] = Some(Hit { object, face, weights });
                }
            }
        }
    }
}

/// Light on a scene; directions are unit vectors of the camera frame.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lamp {
    /// Towards the lamp.
    pub towards: Vector3<f32>,
    /// Light from everywhere, 0 to 1.
    pub ambient: f32,
    pub color: Vector3<f32>,
}

/// The colour of a hit, linear 0 to 1.
pub(super) fn shade(hit: &Hit, objects: &[Placed<'_>], lamp: &Lamp) -> Vector3<f32> {
    let Placed { shape, pose } = objects[hit.object as usize];
    let corners = shape.mesh.faces[hit.face as usize].map(|i| i as usize);
    let mut albedo = Vector3::zeros();
    for (corner, weight) in corners.iter().zip(hit.weights) {
        let color = shape.colors[*corner].map(|v| (f32::from(v) / 255.0).powf(2.2));
        albedo += Vector3::from(color) * weight;
    }
    let [a, b, c] = corners.map(|i| pose.apply(&shape.points[i]));
    let normal = (b - a).cross(&(c - a)).normalize();
    // Meshes of a user's own need not be oriented.
    let normal = if normal.dot(&a) > 0.0 { -normal } else { normal }.cast::<f32>();
    let direct = normal.dot(&lamp.towards).max(0.0) * (1.0 - lamp.ambient);
    albedo.component_mul(&lamp.color) * (direct + lamp.ambient)
}

#[cfg(test)]
mod tests {
    use super::super::shapes::built_in;
    use super::*;

    #[test]
    fn the_nearer_object_hides_the_farther_one() {
        let shapes = built_in(2);
        let camera = Camera::new(100.0, 100.0, 32.0, 32.0).unwrap();
        let at = |shape, z| {
            let pose = Pose { t_mm: Vec3::new(0.0, 0.0, z), ..Pose::identity() };
            Placed { shape, pose }
        };
        let objects = [at(&shapes[0], 600.0), at(&shapes[1], 300.0)];
        let seen = Seen::new(Grid::finer(64, 1, 0..64), &camera, &objects);
        let middle = 32 * 64 + 32;
        assert_eq!(seen.hits[middle].unwrap().object, 1);
        assert!((seen.depth_mm[middle] - 272.0).abs() < 0.01, "{}", seen.depth_mm[middle]);
        let weights: f32 = seen.hits[middle].unwrap().weights.iter().sum();
        assert!((weights - 1.0).abs() < 1e-5);
        assert!(seen.depth_mm[0].is_infinite() && seen.hits[0].is_none());
        // A band of rows is that part of the whole.
        let band = Seen::new(Grid::finer(64, 1, 30..40), &camera, &objects);
        assert_eq!((band.hits.len(), band.depth_mm.len()), (640, 640));
        for (i, hit) in band.hits.iter().enumerate() {
            let whole = &seen.hits[30 * 64 + i];
            assert_eq!(hit.map(|hit| hit.object), whole.map(|hit| hit.object));
        }
    }
}
