//! Objects for scenes of several ones: built in, or meshes of the user's own.

use std::f64::consts::TAU;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use serde_json::{Map, Value, json};

use super::mesh::diameter_mm;
use crate::geom::{Vec3, box_corners};
use crate::io::mesh::{Mesh, read_colored_ply};
use crate::io::read_json;

/// Built-in objects that there are.
pub(super) const NUM_BUILT_IN: usize = 5;
/// Side of the cells of a pattern, mm.
const CELL_MM: f64 = 8.0;
/// Sides of a cylinder.
const SIDES: usize = 36;

type Color = [u8; 3];
const RED: Color = [200, 40, 35];
const GREEN: Color = [40, 150, 60];
const BLUE: Color = [40, 70, 190];
const YELLOW: Color = [225, 190, 40];
const WHITE: Color = [225, 225, 220];
const BLACK: Color = [35, 35, 40];
const ORANGE: Color = [230, 120, 30];
const VIOLET: Color = [130, 60, 150];
const CYAN: Color = [60, 180, 190];

/// An object with a colour at each vertex.
#[derive(Debug, Clone)]
pub(super) struct Shape {
    /// Number in file names.
    pub obj_id: u32,
    /// mm.
    pub mesh: Mesh,
    /// The mesh's vertices, mm.
    pub points: Vec<Vec3>,
    pub colors: Vec<Color>,
    /// mm.
    pub diameter_mm: f64,
    /// The middle of its box, which need not be the origin, mm.
    pub middle_mm: Vec3,
    /// Of `models_info.json`: keys `symmetries_discrete` and `symmetries_continuous`, where there are any.
    symmetries: Map<String, Value>,
}

impl Shape {
    fn new(obj_id: u32, mesh: Mesh, colors: Vec<Color>, symmetries: Value) -> Self {
        let diameter_mm = diameter_mm(&mesh.vertices);
        let symmetries = symmetries.as_object().cloned().unwrap_or_default();
        let points = mesh.vertices.iter().map(|v| Vec3::from(*v)).collect();
        let corners = box_corners(&mesh.vertices);
        let middle_mm = (corners[0] + corners[7]) / 2.0;
        Self { obj_id, mesh, points, colors, diameter_mm, middle_mm, symmetries }
    }

    /// Whether it looks the same from other sides.
    pub fn is_symmetric(&self) -> bool {
        !self.symmetries.is_empty()
    }

    /// The object's entry of `models_info.json`.
    pub fn info(&self) -> Value {
        let corners = box_corners(&self.mesh.vertices);
        let (low, size) = (corners[0], corners[7] - corners[0]);
        let mut info = json!({
            "diameter": self.diameter_mm,
            "min_x": low.x, "min_y": low.y, "min_z": low.z,
            "size_x": size.x, "size_y": size.y, "size_z": size.z,
        });
        for (key, value) in &self.symmetries {
            info[key] = value.clone();
        }
        info
    }
}

/// The first `num` of the built-in objects: a bracket, a crate, a can (turned about z it looks the same), a plate that a half
/// turn does not change, a mug.
pub(super) fn built_in(num: usize) -> Vec<Shape> {
    let makers: [fn() -> (Faces, Value); NUM_BUILT_IN] = [bracket, crate_, can, plate, mug];
    let make = |(i, make): (usize, &fn() -> (Faces, Value))| {
        let (faces, symmetries) = make();
        Shape::new(i as u32 + 1, faces.mesh, faces.colors, symmetries)
    };
    makers.iter().take(num).enumerate().map(make).collect()
}

/// A box or a cylinder of any proportions and colours: an object that is not annotated.
pub(super) fn clutter(rng: &mut impl Rng) -> Shape {
    let half = [0; 3].map(|_| rng.random_range(10.0..45.0));
    let colors: [Color; 6] = rng.random();
    let mut faces = Faces::default();
    if rng.random_bool(0.5) {
        faces.cuboid(half.map(|v: f64| -v), half, |face, _, _| colors[face]);
    } else {
        let side = |z: f64| if z < half[1] { colors[0] } else { colors[1] };
        faces.cylinder(half[0], (-half[2], half[2]), side, [colors[2], colors[3]]);
    }
    Shape::new(0, faces.mesh, faces.colors, json!({}))
}

/// The objects of a folder: `obj_000001.ply` ... with colours, symmetries of a `models_info.json` beside them.
///
/// # Errors
/// If there is none, or a file cannot be read or has a name without a number or a mesh without triangles.
pub(super) fn of_folder(dir: &Path) -> Result<Vec<Shape>> {
    let at = dir.display();
    let entries = fs::read_dir(dir).with_context(|| format!("reading the folder {at}"))?;
    let mut paths: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|e| e.eq_ignore_ascii_case("ply")));
    paths.sort();
    ensure!(!paths.is_empty(), "{at}: no .ply file, expected obj_000001.ply and so on");
    let infos = dir.join("models_info.json");
    let infos: Value = if infos.is_file() { read_json(&infos)? } else { Value::Null };
    let mut shapes = Vec::with_capacity(paths.len());
    for path in paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let digits = name.trim_start_matches(|c: char| !c.is_ascii_digit());
        let obj_id: u32 = digits.parse().ok().with_context(|| {
            format!("{}: no number in the name, expected one like obj_000001.ply", path.display())
        })?;
        let (mesh, colors) = read_colored_ply(&path)?;
        ensure!(!mesh.faces.is_empty(), "{}: a mesh without triangles", path.display());
        let colors = colors.unwrap_or_else(|| {
            tracing::warn!(
                "{}: no colours (red, green, blue) at its vertices: it is grey",
                path.display()
            );
            vec![[160; 3]; mesh.vertices.len()]
        });
        let mut symmetries = json!({});
        for key in ["symmetries_discrete", "symmetries_continuous"] {
            let own = &infos[obj_id.to_string()][key];
            if own.as_array().is_some_and(|all| !all.is_empty()) {
                symmetries[key] = own.clone();
            }
        }
        let shape = Shape::new(obj_id, mesh, colors, symmetries);
        ensure!(
            shape.diameter_mm >= 1.0,
            "{}: it is {:.5} mm large: is it in metres? expected mm",
            path.display(),
            shape.diameter_mm
        );
        ensure!(
            shapes.iter().all(|other: &Shape| other.obj_id != obj_id),
            "{at}: two meshes have the number {obj_id}"
        );
        shapes.push(shape);
    }
    shapes.sort_by_key(|shape| shape.obj_id);
    Ok(shapes)
}

/// Triangles whose vertices have colours.
#[derive(Default)]
struct Faces {
    mesh: Mesh,
    colors: Vec<Color>,
}

impl Faces {
    fn polygon(&mut self, points: &[[f64; 3]], color: Color) {
        let first = self.mesh.vertices.len() as u32;
        self.mesh.vertices.extend_from_slice(points);
        self.colors.extend(std::iter::repeat_n(color, points.len()));
        let last = points.len() as u32 - 1;
        self.mesh.faces.extend((1..last).map(|i| [first, first + i, first + i + 1]));
    }

    /// A rectangle from `corner` along two sides, in cells of their own colours; a cell is told by its middle, mm along the sides.
    fn panel(&mut self, corner: [f64; 3], sides: [[f64; 3]; 2], color: impl Fn(f64, f64) -> Color) {
        let length = |side: [f64; 3]| side.iter().map(|v| v * v).sum::<f64>().sqrt();
        let lengths = sides.map(length);
        let num = lengths.map(|length| (length / CELL_MM).round().max(1.0));
        let at = |u: f64, v: f64| -> [f64; 3] {
            std::array::from_fn(|k| corner[k] + sides[0][k] * u / num[0] + sides[1][k] * v / num[1])
        };
        for i in 0..num[0] as usize {
            for j in 0..num[1] as usize {
                let (u, v) = (i as f64, j as f64);
                let middle = [(u + 0.5) / num[0] * lengths[0], (v + 0.5) / num[1] * lengths[1]];
                let points = [at(u, v), at(u + 1.0, v), at(u + 1.0, v + 1.0), at(u, v + 1.0)];
                self.polygon(&points, color(middle[0], middle[1]));
            }
        }
    }

    /// A box; the colour of a cell is told by the face (x low, x high, y low, ...) and the place on it, mm.
    fn cuboid(&mut self, low: [f64; 3], high: [f64; 3], color: impl Fn(usize, f64, f64) -> Color) {
        for axis in 0..3 {
            let (a, b) = ((axis + 1) % 3, (axis + 2) % 3);
            let side = |k: usize| -> [f64; 3] {
                std::array::from_fn(|i| if i == k { high[k] - low[k] } else { 0.0 })
            };
            for upper in [false, true] {
                let mut corner = low;
                let mut sides = [side(a), side(b)];
                if upper {
                    corner[axis] = high[axis];
                } else {
                    sides.reverse();
                }
                let face = 2 * axis + usize::from(upper);
                self.panel(corner, sides, |u, v| {
                    if upper { color(face, u, v) } else { color(face, v, u) }
                });
            }
        }
    }

    /// A cylinder about z; `color` tells that of a height, mm from the bottom, and `ends` those of bottom and top.
    fn cylinder(
        &mut self,
        radius: f64,
        (low, high): (f64, f64),
        color: impl Fn(f64) -> Color,
        ends: [Color; 2],
    ) {
        let around = |i: usize| (i as f64 * TAU / SIDES as f64).sin_cos();
        let at = |i: usize, z: f64| {
            let (sin, cos) = around(i % SIDES);
            [radius * cos, radius * sin, z]
        };
        let num = ((high - low) / CELL_MM).round().max(1.0);
        let z = |k: f64| low + (high - low) * k / num;
        for k in 0..num as usize {
            let (from, to) = (z(k as f64), z(k as f64 + 1.0));
            let own = color((from + to) / 2.0 - low);
            for i in 0..SIDES {
                self.polygon(&[at(i, from), at(i + 1, from), at(i + 1, to), at(i, to)], own);
            }
        }
        let ring = |z: f64| -> Vec<[f64; 3]> { (0..SIDES).map(|i| at(i, z)).collect() };
        let mut bottom = ring(low);
        bottom.reverse();
        self.polygon(&bottom, ends[0]);
        self.polygon(&ring(high), ends[1]);
    }
}

fn bracket() -> (Faces, Value) {
    let mut faces = Faces::default();
    let color = |face: usize, u: f64, v: f64| match face {
        1 => {
            if v < 20.0 {
                YELLOW
            } else {
                RED
            }
        }
        3 => {
            if u < 30.0 {
                WHITE
            } else {
                RED
            }
        }
        5 => {
            if u + v < 40.0 {
                BLACK
            } else {
                ORANGE
            }
        }
        0 => ORANGE,
        2 => YELLOW,
        _ => BLACK,
    };
    faces.cuboid([-40.0, -25.0, -30.0], [40.0, 25.0, -14.0], color);
    faces.cuboid([-40.0, -25.0, -14.0], [-22.0, 25.0, 34.0], color);
    faces.cuboid([10.0, -10.0, -14.0], [26.0, 12.0, 0.0], |_, _, _| BLUE);
    (faces, json!({}))
}

fn crate_() -> (Faces, Value) {
    let mut faces = Faces::default();
    faces.cuboid([-32.0, -24.0, -28.0], [32.0, 24.0, 28.0], |face, u, v| match face {
        0 => {
            if u < 24.0 {
                GREEN
            } else {
                WHITE
            }
        }
        1 => {
            if v < 32.0 {
                BLUE
            } else {
                CYAN
            }
        }
        2 => {
            if (u - 28.0).hypot(v - 32.0) < 16.0 {
                RED
            } else {
                WHITE
            }
        }
        3 => {
            if u > v {
                BLACK
            } else {
                CYAN
            }
        }
        4 => {
            if v < 16.0 {
                VIOLET
            } else {
                GREEN
            }
        }
        _ => {
            if u < 32.0 && v < 24.0 {
                YELLOW
            } else {
                BLUE
            }
        }
    });
    (faces, json!({}))
}

fn can() -> (Faces, Value) {
    let mut faces = Faces::default();
    let color = |z: f64| match z {
        ..20.0 => VIOLET,
        20.0..44.0 => WHITE,
        44.0..60.0 => GREEN,
        _ => VIOLET,
    };
    faces.cylinder(26.0, (-40.0, 40.0), color, [BLACK, YELLOW]);
    (faces, json!({"symmetries_continuous": [{"axis": [0, 0, 1], "offset": [0, 0, 0]}]}))
}

fn plate() -> (Faces, Value) {
    let mut faces = Faces::default();
    // A half turn about z takes u to the length minus u on the large faces, and the side faces to each other.
    faces.cuboid([-44.0, -28.0, -8.0], [44.0, 28.0, 8.0], |face, u, v| match face {
        4 => {
            if (v - 28.0).abs() < 10.0 {
                ORANGE
            } else {
                CYAN
            }
        }
        5 => {
            if (u - 44.0).abs() < 20.0 {
                WHITE
            } else {
                BLACK
            }
        }
        0 | 1 => RED,
        _ => YELLOW,
    });
    (faces, json!({"symmetries_discrete": [[-1, 0, 0, 0, 0, -1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1]]}))
}

fn mug() -> (Faces, Value) {
    let mut faces = Faces::default();
    let color = |z: f64| if z < 40.0 { BLUE } else { CYAN };
    faces.cylinder(28.0, (-34.0, 34.0), color, [BLACK, WHITE]);
    faces.cuboid([26.0, -5.0, -22.0], [50.0, 5.0, -12.0], |_, _, _| RED);
    faces.cuboid([26.0, -5.0, 12.0], [50.0, 5.0, 22.0], |_, _, _| YELLOW);
    faces.cuboid([42.0, -5.0, -12.0], [50.0, 5.0, 12.0], |_, _, _| RED);
    (faces, json!({}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_in_objects_are_closed_and_differ() {
        let shapes = built_in(NUM_BUILT_IN);
        assert_eq!(shapes.len(), NUM_BUILT_IN);
        for (i, shape) in shapes.iter().enumerate() {
            assert_eq!(shape.obj_id as usize, i + 1);
            assert_eq!(shape.colors.len(), shape.mesh.vertices.len());
            assert!((60.0..130.0).contains(&shape.diameter_mm), "{}", shape.diameter_mm);
            // Outward faces: the volume by the divergence theorem is positive.
            let volume: f64 = shape
                .mesh
                .faces
                .iter()
                .map(|f| {
                    let [a, b, c] =
                        f.map(|k| nalgebra::Vector3::from(shape.mesh.vertices[k as usize]));
                    a.dot(&b.cross(&c)) / 6.0
                })
                .sum();
            assert!(volume > 3e4, "{volume}");
        }
        assert!(shapes[0].info().get("symmetries_continuous").is_none());
        assert_eq!(shapes[2].info()["symmetries_continuous"][0]["axis"], json!([0, 0, 1]));
    }

    #[test]
    fn the_plate_looks_the_same_after_half_a_turn() {
        let shape = &built_in(4)[3];
        let key = |p: [f64; 3], c: Color| (p.map(|v| (v * 1e3).round() as i64), c);
        let vertices = || shape.mesh.vertices.iter().zip(&shape.colors);
        let mut own: Vec<_> = vertices().map(|(p, c)| key(*p, *c)).collect();
        let mut turned: Vec<_> = vertices().map(|(p, c)| key([-p[0], -p[1], p[2]], *c)).collect();
        own.sort();
        turned.sort();
        assert_eq!(own, turned);
    }
}
