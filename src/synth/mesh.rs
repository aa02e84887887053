//! The satellite's geometry: a 1U CubeSat whose box is that of the dataset's mesh.

use std::collections::HashMap;

use super::materials::material;
use super::part::Part;
use crate::io::mesh::Mesh;

/// Mesh diameter of the dataset, mm. The rails' chamfer gives this mesh the same one.
pub const DIAMETER_MM: f64 = 178.46;

/// Half width of the rails' outer faces and half their length, mm (CubeSat 1U: 100 x 100 x 113.5).
const HALF: f64 = 50.0;
const RAIL_END: f64 = 56.75;
/// Inner edge of the rails, mm: they are 8.5 mm wide.
const RAIL_IN: f64 = 41.5;
/// Chamfer of the rails' outer edges, mm: `50 - sqrt((178.46^2 - 113.5^2) / 4 - 50^2)`.
const CHAMFER: f64 = 2.6563;
/// Where the side walls and the end walls lie, mm.
const WALL: f64 = 49.0;
const END_WALL: f64 = 55.0;

/// Axis and radius of the telescope's hole in the +y face, mm.
pub(super) const HOLE_X: f64 = 12.0;
pub(super) const HOLE_Z: f64 = 22.0;
const HOLE_RADIUS: f64 = 15.0;
const RING_RADIUS: f64 = 19.0;
/// Directions around the hole.
const HOLE_STEPS: usize = 28;

/// Longest edge of the evaluation mesh, mm.
const MAX_EDGE_MM: f64 = 13.0;

/// Triangles with their parts; counter-clockwise seen from outside.
#[derive(Debug, Clone, Default)]
pub(super) struct PartMesh {
    pub vertices: Vec<[f64; 3]>,
    pub faces: Vec<[u32; 3]>,
    pub parts: Vec<Part>,
    index: HashMap<[i64; 3], u32>,
}

impl PartMesh {
    /// The number of a vertex, shared with any that already exists.
    fn vertex(&mut self, p: [f64; 3]) -> u32 {
        let key = p.map(|c| (c * 1e6).round() as i64);
        let vertices = &mut self.vertices;
        *self.index.entry(key).or_insert_with(|| {
            vertices.push(p);
            vertices.len() as u32 - 1
        })
    }

    fn triangle(&mut self, corners: [[f64; 3]; 3], part: Part) {
        let face = corners.map(|p| self.vertex(p));
        if face[0] != face[1] && face[1] != face[2] && face[0] != face[2] {
            self.faces.push(face);
            self.parts.push(part);
        }
    }

    fn quad(&mut self, [a, b, c, d]: [[f64; 3]; 4], part: Part) {
        self.triangle([a, b, c], part);
        self.triangle([a, c, d], part);
    }

    /// Adds the faces of a box that `part` names; `part` gets the axis and the side (false is low).
    fn add_box(
        &mut self,
        low: [f64; 3],
        high: [f64; 3],
        part: impl Fn(usize, bool) -> Option<Part>,
    ) {
        for axis in 0..3 {
            let (u, v) = ((axis + 1) % 3, (axis + 2) % 3);
            for upper in [false, true] {
                let Some(part) = part(axis, upper) else { continue };
                let corner = |du: bool, dv: bool| {
                    let mut p = [0.0; 3];
                    p[axis] = if upper { high[axis] } else { low[axis] };
                    p[u] = if du { high[u] } else { low[u] };
                    p[v] = if dv { high[v] } else { low[v] };
                    p
                };
                let mut q = [
                    corner(false, false),
                    corner(true, false),
                    corner(true, true),
                    corner(false, true),
                ];
                if !upper {
                    q.reverse();
                }
                self.quad(q, part);
            }
        }
    }

    /// Adds a prism along z over a convex, counter-clockwise outline.
    fn add_prism_z(&mut self, outline: &[[f64; 2]], z: (f64, f64), part: Part) {
        let n = outline.len();
        let at = |i: usize, z: f64| [outline[i % n][0], outline[i % n][1], z];
        for i in 0..n {
            self.quad([at(i, z.0), at(i + 1, z.0), at(i + 1, z.1), at(i, z.1)], part);
        }
        for i in 1..n - 1 {
            self.triangle([at(0, z.1), at(i, z.1), at(i + 1, z.1)], part);
            self.triangle([at(0, z.0), at(i + 1, z.0), at(i, z.0)], part);
        }
    }

    /// Adds a six-sided rod.
    fn add_rod(&mut self, from: [f64; 3], to: [f64; 3], radius: f64) {
        use nalgebra::Vector3;
        let (a, b) = (Vector3::from(from), Vector3::from(to));
        let w = (b - a).normalize();
        let u = w.cross(&Vector3::y()).normalize();
        let v = w.cross(&u);
        let ring = |p: Vector3<f64>, i: usize| {
            let angle = i as f64 * std::f64::consts::FRAC_PI_3;
            <[f64; 3]>::from(p + (u * angle.cos() + v * angle.sin()) * radius)
        };
        for i in 0..6 {
            self.quad([ring(a, i), ring(a, i + 1), ring(b, i + 1), ring(b, i)], Part::Rod);
            self.triangle([ring(b, i), ring(b, i + 1), to], Part::Rod);
            self.triangle([ring(a, i + 1), ring(a, i), from], Part::Rod);
        }
    }

    /// The same surface with no edge longer than `max_edge` mm; edges are halved on both sides alike, so no
    /// gap opens.
    fn subdivided(&self, max_edge: f64) -> PartMesh {
        let mut out = PartMesh::default();
        let mut stack: Vec<([[f64; 3]; 3], Part)> = self
            .faces
            .iter()
            .zip(&self.parts)
            .map(|(f, &part)| (f.map(|i| self.vertices[i as usize]), part))
            .collect();
        while let Some((t, part)) = stack.pop() {
            // The longest edge is opposite to corner `k`.
            let length = |k: usize| {
                let (a, b) = (t[(k + 1) % 3], t[(k + 2) % 3]);
                (0..3).map(|i| (a[i] - b[i]).powi(2)).sum::<f64>().sqrt()
            };
            let k =
                (0..3).fold(0, |best, k| if length(k) > length(best) + 1e-9 { k } else { best });
            if length(k) <= max_edge {
                out.triangle(t, part);
                continue;
            }
            let (apex, a, b) = (t[k], t[(k + 1) % 3], t[(k + 2) % 3]);
            let middle = std::array::from_fn(|i| 0.5 * (a[i] + b[i]));
            stack.push(([apex, a, middle], part));
            stack.push(([apex, middle, b], part));
        }
        out
    }
}

/// The body: everything inside the dataset's box, antennas left out.
pub(super) fn body() -> PartMesh {
    let mut m = PartMesh::default();
    for (sx, sy) in [(1.0, 1.0), (-1.0, 1.0), (-1.0, -1.0), (1.0, -1.0)] {
        let mut outline = [
            [RAIL_IN, RAIL_IN],
            [HALF, RAIL_IN],
            [HALF, HALF - CHAMFER],
            [HALF - CHAMFER, HALF],
            [RAIL_IN, HALF],
        ]
        .map(|[x, y]| [sx * x, sy * y]);
        if sx * sy < 0.0 {
            outline.reverse();
        }
        m.add_prism_z(&outline, (-RAIL_END, RAIL_END), Part::Rail);
    }
    // Walls between the rails; the +y one is the telescope's plate.
    m.add_box([-WALL, -WALL, -END_WALL], [WALL, WALL, END_WALL], |axis, upper| {
        (!(axis == 1 && upper)).then_some(Part::Wall)
    });
    let panel = |axis: usize, upper: bool, face: Part| {
        move |a: usize, u: bool| {
            if a != axis { Some(Part::PanelEdge) } else { (u == upper).then_some(face) }
        }
    };
    m.add_box([WALL, -40.5, -53.0], [52.1, 40.5, 53.0], panel(0, true, Part::PlusX));
    m.add_box([-52.1, -40.5, -53.0], [-WALL, 40.5, 53.0], panel(0, false, Part::MinusX));
    m.add_box([-40.5, -50.6, -53.0], [40.5, -WALL, 53.0], panel(1, false, Part::MinusY));
    m.add_box([-41.0, -41.0, END_WALL], [41.0, 41.0, 56.6], panel(2, true, Part::PlusZ));
    m.add_box([-41.0, -41.0, -56.6], [41.0, 41.0, -END_WALL], panel(2, false, Part::MinusZ));
    m.add_box([-36.0, -55.4, -42.0], [22.0, -50.6, -4.0], |axis, upper| {
        (!(axis == 1 && upper)).then_some(Part::AntennaPlate)
    });
    m.add_box([10.0, -30.0, 56.6], [34.0, -4.0, 58.0], |axis, upper| {
        (axis != 2 || upper).then_some(Part::Connector)
    });
    add_telescope_plate(&mut m);
    m
}

/// The +y plate with its hole, the ring around it and the tube behind.
fn add_telescope_plate(m: &mut PartMesh) {
    const TOP: f64 = 50.6;
    const RING_TOP: f64 = 53.9;
    const FLOOR: f64 = 15.0;
    let (half_x, half_z) = (RAIL_IN, END_WALL);
    m.add_box([-half_x, WALL, -half_z], [half_x, TOP, half_z], |axis, _| {
        (axis != 1).then_some(Part::PanelEdge)
    });
    // Directions around the hole: even ones and those to the plate's corners. From z to x, so that
    // the outline runs counter-clockwise seen from +y.
    let mut angles: Vec<f64> =
        (0..HOLE_STEPS).map(|i| i as f64 * std::f64::consts::TAU / HOLE_STEPS as f64).collect();
    for (sx, sz) in [(1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)] {
        let (dx, dz): (f64, f64) = (sx * half_x - HOLE_X, sz * half_z - HOLE_Z);
        angles.push(dx.atan2(dz).rem_euclid(std::f64::consts::TAU));
    }
    angles.sort_by(f64::total_cmp);
    let circle = |angle: f64, radius: f64, y: f64| {
        [HOLE_X + radius * angle.sin(), y, HOLE_Z + radius * angle.cos()]
    };
    let rim = |angle: f64| {
        let (s, c) = angle.sin_cos();
        let reach = |d: f64, centre: f64, half: f64| {
            if d.abs() < 1e-12 { f64::INFINITY } else { (half * d.signum() - centre) / d }
        };
        circle(angle, reach(s, HOLE_X, half_x).min(reach(c, HOLE_Z, half_z)), TOP)
    };
    for i in 0..angles.len() {
        let (a, b) = (angles[i], angles[(i + 1) % angles.len()]);
        let ring = |angle, y| circle(angle, RING_RADIUS, y);
        let hole = |angle, y| circle(angle, HOLE_RADIUS, y);
        m.quad([ring(a, TOP), rim(a), rim(b), ring(b, TOP)], Part::PlusY);
        m.quad([ring(a, RING_TOP), ring(a, TOP), ring(b, TOP), ring(b, RING_TOP)], Part::Ring);
        m.quad(
            [hole(a, RING_TOP), ring(a, RING_TOP), ring(b, RING_TOP), hole(b, RING_TOP)],
            Part::Ring,
        );
        m.quad(
            [hole(a, FLOOR), hole(a, RING_TOP), hole(b, RING_TOP), hole(b, FLOOR)],
            Part::HoleWall,
        );
        m.triangle([[HOLE_X, FLOOR, HOLE_Z], hole(a, FLOOR), hole(b, FLOOR)], Part::HoleFloor);
    }
}

/// The two antenna rods, outside the dataset's box.
pub(super) fn rods() -> PartMesh {
    let mut m = PartMesh::default();
    m.add_rod([-34.0, -53.0, -34.0], [-150.0, -66.0, -52.0], 0.9);
    m.add_rod([20.0, -53.0, -12.0], [92.0, -66.0, 6.0], 0.9);
    m
}

/// The evaluation mesh with one colour a vertex: the body in triangles with edges up to 13 mm, so that
/// its vertices sample the surface.
pub(super) fn evaluation_mesh() -> (Mesh, Vec<[u8; 3]>) {
    let fine = body().subdivided(MAX_EDGE_MM);
    let mut colors = vec![[128; 3]; fine.vertices.len()];
    for (face, &part) in fine.faces.iter().zip(&fine.parts) {
        for &i in face {
            let p = fine.vertices[i as usize].map(|c| c as f32);
            let albedo = material(part, p.into()).albedo;
            colors[i as usize] = albedo.map(|a| (a.powf(1.0 / 2.2) * 255.0).round() as u8).into();
        }
    }
    (Mesh { vertices: fine.vertices, faces: fine.faces }, colors)
}

/// The largest distance between two vertices, mm.
pub(super) fn diameter_mm(vertices: &[[f64; 3]]) -> f64 {
    let mut best = 0.0_f64;
    for (i, a) in vertices.iter().enumerate() {
        for b in &vertices[i + 1..] {
            let d: f64 = (0..3).map(|k| (a[k] - b[k]).powi(2)).sum();
            best = best.max(d);
        }
    }
    best.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::box_corners;

    #[test]
    fn the_box_and_the_diameter_are_those_of_the_dataset() {
        let (mesh, colors) = evaluation_mesh();
        let corners = box_corners(&mesh.vertices);
        assert_eq!(corners[0].as_slice(), &[-52.1, -55.4, -56.75]);
        assert_eq!(corners[7].as_slice(), &[52.1, 53.9, 58.0]);
        assert!((diameter_mm(&mesh.vertices) - DIAMETER_MM).abs() < 1e-3);
        assert!((1500..6000).contains(&mesh.vertices.len()), "{} vertices", mesh.vertices.len());
        assert_eq!(colors.len(), mesh.vertices.len());
    }

    #[test]
    fn subdividing_keeps_area_and_volume() {
        // Divergence theorem: the signed volume of the body's closed and open parts is unchanged.
        let sums = |m: &PartMesh| {
            m.faces.iter().fold((0.0, 0.0), |(area, volume), f| {
                let [a, b, c] = f.map(|i| nalgebra::Vector3::from(m.vertices[i as usize]));
                (area + (b - a).cross(&(c - a)).norm() / 2.0, volume + a.dot(&b.cross(&c)) / 6.0)
            })
        };
        let coarse = body();
        let (area, volume) = sums(&coarse);
        let (fine_area, fine_volume) = sums(&coarse.subdivided(MAX_EDGE_MM));
        assert!((area / fine_area - 1.0).abs() < 1e-9 && (volume / fine_volume - 1.0).abs() < 1e-9);
    }

    #[test]
    fn flat_outer_faces_point_outwards() {
        let m = body();
        let outward = [
            (Part::PlusX, [1.0, 0.0, 0.0]),
            (Part::MinusX, [-1.0, 0.0, 0.0]),
            (Part::PlusY, [0.0, 1.0, 0.0]),
            (Part::MinusY, [0.0, -1.0, 0.0]),
            (Part::PlusZ, [0.0, 0.0, 1.0]),
            (Part::MinusZ, [0.0, 0.0, -1.0]),
            (Part::HoleFloor, [0.0, 1.0, 0.0]),
        ];
        for (part, direction) in outward {
            let d = nalgebra::Vector3::from(direction);
            let mut seen = 0;
            for (f, _) in m.faces.iter().zip(&m.parts).filter(|(_, p)| **p == part) {
                let [a, b, c] = f.map(|i| nalgebra::Vector3::from(m.vertices[i as usize]));
                assert!((b - a).cross(&(c - a)).normalize().dot(&d) > 0.999, "{part:?}");
                seen += 1;
            }
            assert!(seen > 0, "{part:?}");
        }
        let centroid_out = |f: &[u32; 3]| {
            let [a, b, c] = f.map(|i| nalgebra::Vector3::from(m.vertices[i as usize]));
            let middle = (a + b + c) / 3.0;
            (b - a).cross(&(c - a)).dot(&middle) > 0.0
        };
        for (f, part) in m.faces.iter().zip(&m.parts) {
            if *part == Part::Wall {
                assert!(centroid_out(f), "a wall faces inwards");
            }
        }
    }
}
