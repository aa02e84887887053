//! The satellite of SPEED and SPEED+, whose mesh is not published: the hull of its keypoints stands in.

use anyhow::Result;
use serde_json::{Value, json};
use std::path::Path;

use crate::geom::{Vec3, box_corners};
use crate::io::mesh::{Mesh, write_ply};
use crate::io::write_json;

/// Number of the object.
pub(super) const OBJ_ID: u32 = 1;
/// Keypoints, m: corners of the body, of its bottom plate, ends of the antennas.
///
/// # Source
/// SPNv2 (Park and D'Amico 2022), tangoPoints.
const KEYPOINTS_M: [[f64; 3]; 11] = [
    [-0.37, -0.385, 0.3215],
    [-0.37, 0.385, 0.3215],
    [0.37, 0.385, 0.3215],
    [0.37, -0.385, 0.3215],
    [-0.37, -0.264, 0.0],
    [-0.37, 0.304, 0.0],
    [0.37, 0.304, 0.0],
    [0.37, -0.264, 0.0],
    [-0.5427, 0.4877, 0.2535],
    [0.5427, 0.4877, 0.2591],
    [0.305, -0.579, 0.2515],
];

/// The keypoints, mm.
pub(super) fn keypoints_mm() -> Vec<Vec3> {
    KEYPOINTS_M.iter().map(|p| Vec3::from(*p) * 1000.0).collect()
}

/// Triangles of the convex hull of a few points, outwards. Of corners that lie in one plane all triangles are there.
pub(super) fn hull(points: &[Vec3]) -> Vec<[u32; 3]> {
    let mut faces = Vec::new();
    let num = points.len();
    for (i, j) in (0..num).flat_map(|i| (i + 1..num).map(move |j| (i, j))) {
        for k in j + 1..num {
            let normal = (points[j] - points[i]).cross(&(points[k] - points[i]));
            let heights = || points.iter().map(|p| normal.dot(&(p - points[i])));
            let rounding = 1e-9 * normal.norm() * points[i].norm().max(1.0);
            if normal.norm() < 1e-9 {
                continue;
            }
            let [i, j, k] = [i, j, k].map(|v| v as u32);
            if heights().all(|height| height <= rounding) {
                faces.push([i, j, k]);
            } else if heights().all(|height| height >= -rounding) {
                faces.push([i, k, j]);
            }
        }
    }
    faces
}

/// Writes `models` with the stand-in mesh and what is told of it.
///
/// # Errors
/// If a file cannot be written.
pub(super) fn write_models(root: &Path) -> Result<()> {
    let points = keypoints_mm();
    let vertices: Vec<[f64; 3]> = points.iter().map(|p| (*p).into()).collect();
    let corners = box_corners(&vertices);
    let (low, size) = (corners[0], corners[7] - corners[0]);
    let distances = points.iter().flat_map(|a| points.iter().map(move |b| (a - b).norm()));
    let info: Value = json!({OBJ_ID.to_string(): {
        "diameter": distances.fold(0.0, f64::max),
        "min_x": low.x, "min_y": low.y, "min_z": low.z,
        "size_x": size.x, "size_y": size.y, "size_z": size.z,
    }});
    let mesh = Mesh { vertices, faces: hull(&points) };
    std::fs::create_dir_all(root.join("models"))?;
    write_ply(&root.join("models/obj_000001.ply"), &mesh, None)?;
    write_json(&root.join("models/models_info.json"), &info)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hull_is_closed_around_its_points() {
        let cube: Vec<Vec3> = (0..8)
            .map(|i| Vec3::new((i & 1) as f64, ((i >> 1) & 1) as f64, (i >> 2) as f64))
            .collect();
        let mut points = cube.clone();
        points.push(Vec3::repeat(0.5));
        let faces = hull(&points);
        // Four triangles of each side's corners, and none with the middle.
        assert_eq!(faces.len(), 24);
        assert!(faces.iter().flatten().all(|i| *i < 8));
        for [a, b, c] in faces.iter().map(|f| f.map(|i| points[i as usize])) {
            assert!((b - a).cross(&(c - a)).dot(&(a - points[8])) > 0.0);
        }
        let tango = hull(&keypoints_mm());
        let used: std::collections::BTreeSet<u32> = tango.iter().flatten().copied().collect();
        // The ends of the antennas are on it.
        assert!([8, 9, 10].iter().all(|i| used.contains(i)), "{used:?}");
    }
}
