//! Silhouettes of the objects of a scene, each by itself, and which of them is in front: from depth images of one object at a
//! time.

use super::raster::Placed;
use crate::data::bop::mask_box;
use crate::geom::{Camera, DepthPatch, render_depth};

/// An object by itself, in the image and around it.
pub(super) struct Silhouette {
    /// Its depth in the image.
    inside: DepthPatch,
    /// Pixels of it, also those one image's width around the image.
    pub num_px: u64,
    /// Box of these pixels as bop_toolkit writes it: x, y, width, height; -1 where there are none.
    pub bbox: [i64; 4],
}

impl Silhouette {
    /// In a square image of `size` px.
    pub fn new(object: &Placed<'_>, camera: &Camera, size: usize) -> Self {
        let wide = around(object, camera, size, 1);
        let num_px = num_seen(&wide);
        let shift = [wide.left_top[0] as i64 - size as i64, wide.left_top[1] as i64 - size as i64];
        let set: Vec<bool> = wide.z_mm.iter().map(|z| *z > 0.0).collect();
        let bbox = mask_box(&set, wide.size[0], shift);
        Self { inside: middle_of(&wide, size), num_px, bbox }
    }

    /// Whether the object covers each pixel of the image.
    pub fn mask(&self, size: usize) -> Vec<bool> {
        (0..size * size).map(|i| self.inside.at(i % size, i / size) > 0.0).collect()
    }
}

/// Depth at each pixel of a square image, mm, 0 where nothing is, and the number of the nearest object there, from 1 on, 0 for
/// none.
pub(super) fn nearest(objects: &[Silhouette], size: usize) -> (Vec<f32>, Vec<u8>) {
    let (mut depth_mm, mut owners) = (vec![0.0; size * size], vec![0; size * size]);
    for (number, object) in (1..).zip(objects) {
        let ([left, top], [width, height]) = (object.inside.left_top, object.inside.size);
        for (i, z) in object.inside.z_mm.iter().enumerate().take(width * height) {
            let at = (top + i / width) * size + left + i % width;
            if *z > 0.0 && (owners[at] == 0 || *z < depth_mm[at]) {
                (depth_mm[at], owners[at]) = (*z, number);
            }
        }
    }
    (depth_mm, owners)
}

/// Of each object the fraction that is visible and the fraction that lies in the image, on every second pixel.
pub(super) fn fractions(objects: &[Placed<'_>], camera: &Camera, size: usize) -> Vec<[f64; 2]> {
    let coarse: Vec<Silhouette> = objects
        .iter()
        .map(|object| {
            let wide = around(object, camera, size, 2);
            let num_px = num_seen(&wide);
            Silhouette { inside: middle_of(&wide, size / 2), num_px, bbox: [-1; 4] }
        })
        .collect();
    let (_, owners) = nearest(&coarse, size / 2);
    let mut visible = vec![0u64; objects.len() + 1];
    owners.iter().for_each(|owner| visible[usize::from(*owner)] += 1);
    let of = |(object, visible): (&Silhouette, &u64)| {
        let all = object.num_px.max(1) as f64;
        [*visible as f64 / all, num_seen(&object.inside) as f64 / all]
    };
    coarse.iter().zip(&visible[1..]).map(of).collect()
}

/// The depth of an object on every `step`-th pixel of an image and of what is around it, one image wide.
fn around(object: &Placed<'_>, camera: &Camera, size: usize, step: usize) -> DepthPatch {
    let ((fx, fy), c, step_px) = (camera.focal_px(), camera.center_px(), step as f64);
    let border_px = (size / step * step) as f64;
    let moved = Camera::new(
        fx / step_px,
        fy / step_px,
        (c.x + border_px) / step_px,
        (c.y + border_px) / step_px,
    )
    .expect("a camera that is moved and scaled is one");
    let shape = object.shape;
    render_depth(&shape.points, &shape.mesh.faces, &moved, &object.pose, [size / step * 3; 2])
}

/// The middle third of a patch of a square of 3 `size` px, as a patch of a square of `size` px.
fn middle_of(wide: &DepthPatch, size: usize) -> DepthPatch {
    let low = wide.left_top.map(|v| v.clamp(size, 2 * size));
    let high = [0, 1].map(|i| (wide.left_top[i] + wide.size[i]).clamp(low[i], 2 * size));
    let mut patch = DepthPatch::empty(low.map(|v| v - size), [0, 1].map(|i| high[i] - low[i]));
    for (i, z) in patch.z_mm.iter_mut().enumerate() {
        *z = wide.at(low[0] + i % patch.size[0], low[1] + i / patch.size[0]);
    }
    patch
}

fn num_seen(patch: &DepthPatch) -> u64 {
    patch.z_mm.iter().filter(|z| **z > 0.0).count() as u64
}

#[cfg(test)]
mod tests {
    use super::super::shapes::built_in;
    use super::*;
    use crate::geom::{Pose, Vec3};

    /// The can, 80 mm high and seen from above: a disc of 52 mm whose end is 40 mm nearer.
    fn placed(shapes: &[super::super::shapes::Shape], x: f64, z: f64) -> Placed<'_> {
        let pose = Pose { t_mm: Vec3::new(x, 0.0, z), ..Pose::identity() };
        Placed { shape: &shapes[2], pose }
    }

    #[test]
    fn the_nearer_object_hides_the_farther_one() {
        let shapes = built_in(3);
        let camera = Camera::new(100.0, 100.0, 32.0, 32.0).unwrap();
        let objects = [placed(&shapes, 0.0, 600.0), placed(&shapes, 0.0, 300.0)];
        let alone = objects.each_ref().map(|object| Silhouette::new(object, &camera, 64));
        let (depth_mm, owners) = nearest(&alone, 64);
        let middle = 32 * 64 + 32;
        assert_eq!((owners[middle], owners[0], depth_mm[0]), (2, 0, 0.0));
        assert!((depth_mm[middle] - 260.0).abs() < 1e-3, "{}", depth_mm[middle]);
        // All of the farther one is behind the nearer one.
        assert_eq!(owners.iter().filter(|owner| **owner == 1).count(), 0);
        let num = owners.iter().filter(|owner| **owner == 2).count() as u64;
        assert_eq!(
            (num, alone[1].mask(64).iter().filter(|v| **v).count() as u64),
            (alone[1].num_px, num)
        );
        // Radius 26 mm at 260 mm is 10 px.
        for (found, expected) in alone[1].bbox.iter().zip([22, 22, 20, 20]) {
            assert!((found - expected).abs() <= 1, "{:?}", alone[1].bbox);
        }
        let seen = fractions(&objects, &camera, 64);
        assert_eq!((seen[0], seen[1]), ([0.0, 1.0], [1.0, 1.0]));
    }

    #[test]
    fn an_object_at_the_edge_is_counted_outside_as_well() {
        let shapes = built_in(3);
        let camera = Camera::new(100.0, 100.0, 32.0, 32.0).unwrap();
        // The end's middle is seen at column 32 - 100 * 80 / 250 = 0.
        let object = placed(&shapes, -80.0, 290.0);
        let alone = Silhouette::new(&object, &camera, 64);
        let inside = alone.mask(64).iter().filter(|v| **v).count() as u64;
        assert!(alone.bbox[0] < -5 && inside > 0 && inside < alone.num_px, "{:?}", alone.bbox);
        let [visible, seen] = fractions(&[object], &camera, 64)[0];
        let exact = inside as f64 / alone.num_px as f64;
        assert!(visible == seen && (visible - exact).abs() < 0.1, "{visible} {exact}");
    }
}
