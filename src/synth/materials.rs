//! What the satellite's surfaces look like, as a function of the part and the place on it.
//!
//! Every face has a colour and a layout of its own, so that it can be told from the others, and its
//! in-plane rotation seen, even when it is only a few pixels wide.

use nalgebra::{Point3, Vector3};

use super::part::Part;

/// A reflecting surface: Lambert plus a Blinn-Phong lobe.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Material {
    /// Diffuse reflectance, linear RGB.
    pub albedo: Vector3<f32>,
    /// Mirror-like reflectance, linear RGB.
    pub specular: Vector3<f32>,
    /// Exponent of the lobe.
    pub shininess: f32,
    /// How crumpled the surface is: tilt of the normal, as a tangent.
    pub crumple: f32,
}

const fn material_of(
    albedo: [f32; 3],
    specular: [f32; 3],
    shininess: f32,
    crumple: f32,
) -> Material {
    Material {
        albedo: Vector3::new(albedo[0], albedo[1], albedo[2]),
        specular: Vector3::new(specular[0], specular[1], specular[2]),
        shininess,
        crumple,
    }
}

const fn paint(r: f32, g: f32, b: f32) -> Material {
    material_of([r, g, b], [0.02, 0.02, 0.02], 12.0, 0.0)
}

const ALUMINIUM: Material = material_of([0.34, 0.34, 0.35], [0.28, 0.28, 0.29], 28.0, 0.0);
const DARK_METAL: Material = material_of([0.06, 0.06, 0.065], [0.08, 0.08, 0.08], 20.0, 0.0);
const CELL: Material = material_of([0.025, 0.05, 0.24], [0.10, 0.11, 0.14], 160.0, 0.0);
const BUSBAR: Material = material_of([0.42, 0.43, 0.46], [0.25, 0.25, 0.25], 40.0, 0.0);
const GOLD_FOIL: Material = material_of([0.62, 0.33, 0.05], [0.42, 0.26, 0.06], 22.0, 0.22);
const BLACK: Material = paint(0.012, 0.012, 0.012);
const WHITE: Material = paint(0.80, 0.80, 0.78);
const RED: Material = paint(0.62, 0.03, 0.025);
const YELLOW: Material = paint(0.78, 0.58, 0.03);
const GREEN_BOARD: Material = paint(0.025, 0.26, 0.07);
const VIOLET: Material = paint(0.16, 0.04, 0.24);
const GREY: Material = paint(0.30, 0.31, 0.33);
const ORANGE: Material = paint(0.72, 0.22, 0.03);
const ROD: Material = material_of([0.55, 0.50, 0.38], [0.3, 0.28, 0.22], 30.0, 0.0);

/// A rectangle `[u low, v low, u high, v high]` on a face, mm; later patches cover earlier ones.
type Patch = ([f32; 4], Surface);

#[derive(Clone, Copy)]
enum Surface {
    Plain(Material),
    /// A solar cell; its busbars run along v.
    Cell,
}

use Surface::{Cell, Plain};

/// Per face: ground colour and patches. `u, v` are `y, z` on the x faces, `x, z` on the y faces and
/// `x, y` on the z faces.
const PLUS_X: (Material, &[Patch]) = (
    WHITE,
    &[
        ([-38.0, -50.0, -2.0, 30.0], Cell),
        ([2.0, -50.0, 38.0, 30.0], Cell),
        ([-38.0, 34.0, -14.0, 50.0], Plain(BLACK)),
    ],
);
const MINUS_X: (Material, &[Patch]) = (
    GREEN_BOARD,
    &[
        ([-38.0, -50.0, -2.0, 30.0], Cell),
        ([4.0, 20.0, 37.0, 50.0], Plain(WHITE)),
        ([10.0, -46.0, 30.0, -26.0], Plain(BUSBAR)),
    ],
);
const PLUS_Y: (Material, &[Patch]) = (
    GOLD_FOIL,
    &[([-41.0, -54.0, 41.0, -36.0], Plain(BLACK)), ([-41.0, -36.0, -27.0, 20.0], Plain(WHITE))],
);
const MINUS_Y: (Material, &[Patch]) =
    (GREY, &[([-38.0, 4.0, 0.0, 50.0], Cell), ([6.0, 4.0, 38.0, 50.0], Plain(ORANGE))]);
const PLUS_Z: (Material, &[Patch]) = (
    ALUMINIUM,
    &[
        ([-39.0, -39.0, -4.0, 6.0], Plain(RED)),
        ([-39.0, 14.0, 39.0, 39.0], Cell),
        ([-10.0, 17.0, 10.0, 36.0], Plain(WHITE)),
    ],
);
const MINUS_Z: (Material, &[Patch]) =
    (VIOLET, &[([-39.0, -39.0, 0.0, 39.0], Cell), ([8.0, 10.0, 38.0, 38.0], Plain(YELLOW))]);

/// The material of `part` at `p` (object frame, mm).
pub(super) fn material(part: Part, p: Point3<f32>) -> Material {
    match part {
        Part::PlusX => on_face(&PLUS_X, p.y, p.z),
        Part::MinusX => on_face(&MINUS_X, p.y, p.z),
        Part::PlusY => on_face(&PLUS_Y, p.x, p.z),
        Part::MinusY => on_face(&MINUS_Y, p.x, p.z),
        Part::PlusZ => on_face(&PLUS_Z, p.x, p.y),
        Part::MinusZ => on_face(&MINUS_Z, p.x, p.y),
        Part::Rail => ALUMINIUM,
        Part::Wall | Part::PanelEdge => DARK_METAL,
        Part::Ring => BUSBAR,
        Part::HoleWall | Part::HoleFloor => BLACK,
        Part::AntennaPlate => WHITE,
        Part::Connector => YELLOW,
        Part::Rod => ROD,
    }
}

fn on_face(face: &(Material, &[Patch]), u: f32, v: f32) -> Material {
    let hit = face
        .1
        .iter()
        .rev()
        .find(|([u0, v0, u1, v1], _)| (*u0..=*u1).contains(&u) && (*v0..=*v1).contains(&v));
    match hit {
        None => face.0,
        Some((_, Plain(material))) => *material,
        Some(([u0, v0, u1, v1], Cell)) => cell(u - u0, v - v0, u1 - u0, v1 - v0),
    }
}

/// A solar cell: two silver busbars along v and, across, the fine gaps of its string.
fn cell(u: f32, v: f32, width: f32, height: f32) -> Material {
    let at_busbar = [0.3, 0.7].iter().any(|f| (u - f * width).abs() < 0.6);
    let gaps = (height / 20.0).round().max(1.0);
    let pitch = height / gaps;
    let from_gap = (v / pitch - (v / pitch).round()).abs() * pitch;
    if at_busbar {
        BUSBAR
    } else if from_gap < 0.35 {
        DARK_METAL
    } else {
        CELL
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mean albedo of a face over a grid of 4 mm.
    fn mean_albedo(part: Part, at: impl Fn(f32, f32) -> Point3<f32>) -> Vector3<f32> {
        let grid = |half: i32| (-half..=half).map(|i| i as f32 * 4.0);
        let mut sum = Vector3::zeros();
        let mut count = 0.0;
        for u in grid(9) {
            for v in grid(9) {
                sum += material(part, at(u, v)).albedo;
                count += 1.0;
            }
        }
        sum / count
    }

    #[test]
    fn faces_differ_in_their_mean_colour() {
        let faces: Vec<Vector3<f32>> = vec![
            mean_albedo(Part::PlusX, |u, v| Point3::new(0.0, u, v)),
            mean_albedo(Part::MinusX, |u, v| Point3::new(0.0, u, v)),
            mean_albedo(Part::PlusY, |u, v| Point3::new(u, 0.0, v)),
            mean_albedo(Part::MinusY, |u, v| Point3::new(u, 0.0, v)),
            mean_albedo(Part::PlusZ, |u, v| Point3::new(u, v, 0.0)),
            mean_albedo(Part::MinusZ, |u, v| Point3::new(u, v, 0.0)),
        ];
        for (i, a) in faces.iter().enumerate() {
            for (j, b) in faces.iter().enumerate().skip(i + 1) {
                assert!((a - b).norm() > 0.07, "faces {i} and {j}: {a:?} {b:?}");
            }
        }
    }
}
