//! Ray casting: silhouette, depth and light of the satellite in one frame.

use std::ops::Range;

use anyhow::{Context, Result};
use nalgebra::{Point3, Vector3};
use parry3d::query::Ray;
use parry3d::shape::{CompositeShapeRef, TriMesh};

use super::lights::Lights;
use super::materials::{Material, material};
use super::mesh::{PartMesh, body, rods};
use super::part::Part;
use super::sky::{Earth, noise};
use crate::data::bop::FrameObjectInfo;
use crate::geom::{Camera, Pose};

use super::Rgb;

/// Places inside a pixel where its light is sampled (a rotated grid), px from its centre. The mask takes the
/// centre alone.
const SAMPLES: [[f64; 2]; 4] = [[-0.125, -0.375], [0.375, -0.125], [0.125, 0.375], [-0.375, 0.125]];
/// Rays a side of the grid that estimates how much of the silhouette is in the image.
const ESTIMATE_SIDE: usize = 32;
/// How far from a surface a shadow ray starts, mm.
const SHADOW_START_MM: f32 = 0.02;
const FAR_MM: f32 = 1e6;

/// Triangles ready for ray casting, in the object's frame, mm.
struct Surface {
    mesh: TriMesh,
    normals: Vec<Vector3<f32>>,
    parts: Vec<Part>,
    corners: Vec<nalgebra::Vector3<f64>>,
}

impl Surface {
    fn new(source: PartMesh) -> Result<Self> {
        let vertices = source.vertices.iter().map(|v| Point3::from(v.map(|c| c as f32))).collect();
        let mesh = TriMesh::new(vertices, source.faces.clone())
            .context("building the satellite's triangle tree")?;
        let normals = source
            .faces
            .iter()
            .map(|f| {
                let [a, b, c] = f.map(|i| Vector3::from(source.vertices[i as usize]));
                (b - a).cross(&(c - a)).normalize().cast()
            })
            .collect();
        let corners = source.vertices.iter().map(|v| (*v).into()).collect();
        Ok(Self { mesh, normals, parts: source.parts, corners })
    }

    /// The first triangle along the ray and the distance in units of its direction.
    fn cast(&self, ray: &Ray, max: f32) -> Option<(usize, f32)> {
        let (triangle, distance) = CompositeShapeRef(&self.mesh).cast_local_ray(ray, max, true)?;
        // Back faces count up from the number of triangles.
        Some((triangle as usize % self.parts.len(), distance))
    }

    /// Pixels that the surface may cover: rows and columns, also outside the image; `None` when a
    /// vertex is not in front of the camera.
    fn pixels(&self, camera: &Camera, pose: &Pose) -> Option<(Range<i64>, Range<i64>)> {
        let (mut low, mut high) = ([f64::INFINITY; 2], [f64::NEG_INFINITY; 2]);
        for corner in &self.corners {
            let x = pose.apply(corner);
            if x.z < 1.0 {
                return None;
            }
            let p = camera.project(&x);
            for a in 0..2 {
                low[a] = low[a].min(p[a]);
                high[a] = high[a].max(p[a]);
            }
        }
        let range = |a: usize| (low[a] - 1.0).floor() as i64..(high[a] + 2.0).ceil() as i64;
        Some((range(1), range(0)))
    }
}

/// The satellite, built once and shared by all threads.
pub(super) struct Scene {
    body: Surface,
    rods: Surface,
}

/// One rendered frame.
pub(super) struct Rendered {
    /// Radiance, row-major; 1 is a white surface facing the Sun.
    pub radiance: Vec<Rgb>,
    /// 255 where the ray through the pixel's centre meets the body, row-major.
    pub mask: Vec<u8>,
    /// z of the body, mm; 0 where there is none.
    pub depth_mm: Vec<f32>,
    pub info: FrameObjectInfo,
}

/// A camera's rays in the object's frame.
struct Rays {
    origin: Point3<f32>,
    /// Direction at pixel (0, 0) and its change a pixel, z = 1 in the camera frame.
    first: nalgebra::Vector3<f64>,
    step: [nalgebra::Vector3<f64>; 2],
}

impl Rays {
    fn new(camera: &Camera, pose: &Pose) -> Self {
        let to_object = pose.inverse();
        let direction = to_object.r * camera.k_inv();
        Self {
            origin: Point3::from(to_object.t_mm.cast::<f32>()),
            first: direction.column(2).into(),
            step: [direction.column(0).into(), direction.column(1).into()],
        }
    }

    /// The ray through a pixel; distances along it are camera-frame z, mm.
    fn at(&self, u: f64, v: f64) -> Ray {
        let d = self.first + self.step[0] * u + self.step[1] * v;
        Ray::new(self.origin, d.cast::<f32>())
    }
}

/// What shading needs besides the hit, in the object's frame.
struct Shading<'a> {
    scene: &'a Scene,
    sun: Vector3<f32>,
    earth: Vector3<f32>,
    shine: Rgb,
}

impl Scene {
    pub fn new() -> Result<Self> {
        Ok(Self { body: Surface::new(body())?, rods: Surface::new(rods())? })
    }

    /// The fraction of the body's silhouette that lies in the image, estimated on a coarse grid.
    pub fn fraction_inside(&self, camera: &Camera, size_px: u32, pose: &Pose) -> f64 {
        let Some((rows, columns)) = self.body.pixels(camera, pose) else { return 0.0 };
        let size = f64::from(size_px);
        let fits = |r: &Range<i64>| r.start >= 0 && r.end <= i64::from(size_px);
        if fits(&rows) && fits(&columns) {
            return 1.0;
        }
        let rays = Rays::new(camera, pose);
        let place = |r: &Range<i64>, i: usize| {
            r.start as f64 + (i as f64 + 0.5) / ESTIMATE_SIDE as f64 * (r.end - r.start) as f64
        };
        let (mut inside, mut all) = (0, 0);
        for i in 0..ESTIMATE_SIDE {
            for j in 0..ESTIMATE_SIDE {
                let (u, v) = (place(&columns, j), place(&rows, i));
                if self.body.cast(&rays.at(u, v), FAR_MM).is_some() {
                    all += 1;
                    let edge = -0.5..size - 0.5;
                    inside += usize::from(edge.contains(&u) && edge.contains(&v));
                }
            }
        }
        inside as f64 / all.max(1) as f64
    }

    /// Renders one frame without the sensor's part, in front of `background` (row-major).
    pub fn render(
        &self,
        camera: &Camera,
        size_px: u32,
        pose: &Pose,
        lights: &Lights,
        background: &[Rgb],
    ) -> Rendered {
        let size = size_px as usize;
        let mut radiance = background.to_vec();
        let rays = Rays::new(camera, pose);
        let (mask, depth_mm, info) = self.silhouette(camera, size, pose, &rays);
        let to_object = pose.r.transpose();
        let shading = Shading {
            scene: self,
            sun: (to_object * lights.sun).cast(),
            earth: (to_object * lights.earth).cast(),
            shine: Earth::new(lights).shine(),
        };
        let (rows, columns) = self.lit_pixels(camera, size, pose);
        for y in rows {
            for x in columns.clone() {
                let pixel = &mut radiance[y * size + x];
                *pixel = shading.pixel(&rays, x as f64, y as f64, pixel);
            }
        }
        Rendered { radiance, mask, depth_mm, info }
    }

    /// Image pixels (rows, columns) that the satellite with its antennas may touch.
    fn lit_pixels(
        &self,
        camera: &Camera,
        size: usize,
        pose: &Pose,
    ) -> (Range<usize>, Range<usize>) {
        let side = size as i64;
        let [a, b] =
            [&self.body, &self.rods].map(|s| s.pixels(camera, pose).unwrap_or((0..side, 0..side)));
        let join = |p: &Range<i64>, q: &Range<i64>| {
            let clip = |t: i64| t.clamp(0, side) as usize;
            clip(p.start.min(q.start))..clip(p.end.max(q.end))
        };
        (join(&a.0, &b.0), join(&a.1, &b.1))
    }

    /// Mask and depth by the rays through pixel centres, and the counts of `scene_gt_info.json`, for
    /// which the silhouette is followed outside the image, too.
    fn silhouette(
        &self,
        camera: &Camera,
        size: usize,
        pose: &Pose,
        rays: &Rays,
    ) -> (Vec<u8>, Vec<f32>, FrameObjectInfo) {
        let mut mask = vec![0; size * size];
        let mut depth_mm = vec![0.0; size * size];
        let side = size as i64;
        let (rows, columns) =
            self.body.pixels(camera, pose).unwrap_or((-side..2 * side, -side..2 * side));
        let (mut whole, mut visible) = (PixelBox::default(), PixelBox::default());
        for y in rows {
            for x in columns.clone() {
                let Some((_, z)) = self.body.cast(&rays.at(x as f64, y as f64), FAR_MM) else {
                    continue;
                };
                whole.add(x, y);
                if (0..side).contains(&x) && (0..side).contains(&y) {
                    visible.add(x, y);
                    mask[y as usize * size + x as usize] = 255;
                    depth_mm[y as usize * size + x as usize] = z;
                }
            }
        }
        let info = FrameObjectInfo {
            bbox_obj: whole.x_y_w_h(),
            bbox_visib: visible.x_y_w_h(),
            px_count_all: whole.count,
            px_count_valid: visible.count,
            px_count_visib: visible.count,
            visib_fract: visible.count as f64 / whole.count.max(1) as f64,
        };
        (mask, depth_mm, info)
    }
}

/// The box of a set of pixels.
#[derive(Default)]
struct PixelBox {
    count: u64,
    low: [i64; 2],
    high: [i64; 2],
}

impl PixelBox {
    fn add(&mut self, x: i64, y: i64) {
        if self.count == 0 {
            (self.low, self.high) = ([x, y], [x, y]);
        }
        self.low = [self.low[0].min(x), self.low[1].min(y)];
        self.high = [self.high[0].max(x), self.high[1].max(y)];
        self.count += 1;
    }

    /// x, y, width, height as bop_toolkit writes them (last pixel minus first); -1 when empty.
    fn x_y_w_h(&self) -> [i64; 4] {
        if self.count == 0 {
            return [-1; 4];
        }
        [self.low[0], self.low[1], self.high[0] - self.low[0], self.high[1] - self.low[1]]
    }
}

impl Shading<'_> {
    /// The mean radiance of a pixel's samples; those that miss the satellite see `background`.
    fn pixel(&self, rays: &Rays, x: f64, y: f64, background: &Rgb) -> Rgb {
        let mut sum = Rgb::zeros();
        let mut missed = 0.0;
        for [du, dv] in SAMPLES {
            match self.light(&rays.at(x + du, y + dv)) {
                Some(light) => sum += light,
                None => missed += 1.0,
            }
        }
        (sum + background * missed) / SAMPLES.len() as f32
    }

    /// The radiance of the satellite along a ray, `None` where it misses.
    fn light(&self, ray: &Ray) -> Option<Rgb> {
        let on_body = self.scene.body.cast(ray, FAR_MM);
        let limit = on_body.map_or(FAR_MM, |(_, z)| z);
        let (surface, (triangle, z)) = match self.scene.rods.cast(ray, limit) {
            Some(hit) => (&self.scene.rods, hit),
            None => (&self.scene.body, on_body?),
        };
        let point = ray.point_at(z);
        let to_camera = -ray.dir.normalize();
        let mut normal = surface.normals[triangle];
        if normal.dot(&to_camera) < 0.0 {
            normal = -normal;
        }
        let material = material(surface.parts[triangle], point);
        let lit = normal.dot(&self.sun) > 0.0 && !self.in_shadow(&point, &normal);
        let normal = crumpled(normal, &point, material.crumple);
        let earth = 0.5 + 0.5 * normal.dot(&self.earth);
        let mut light = material.albedo.component_mul(&self.shine) * (earth * earth);
        if lit {
            light += sunlight(&material, &normal, &self.sun, &to_camera);
        }
        Some(light)
    }

    fn in_shadow(&self, point: &Point3<f32>, normal: &Vector3<f32>) -> bool {
        let ray = Ray::new(point + normal * SHADOW_START_MM, self.sun);
        self.scene.body.cast(&ray, FAR_MM).is_some() || self.scene.rods.cast(&ray, FAR_MM).is_some()
    }
}

/// Lambert plus a normalised Blinn-Phong lobe, under a Sun that makes a white surface radiate 1.
fn sunlight(
    m: &Material,
    normal: &Vector3<f32>,
    sun: &Vector3<f32>,
    to_camera: &Vector3<f32>,
) -> Rgb {
    let cosine = normal.dot(sun).max(0.0);
    let half = (sun + to_camera).normalize();
    let lobe = (m.shininess + 8.0) / 8.0 * normal.dot(&half).max(0.0).powf(m.shininess);
    (m.albedo + m.specular * lobe) * cosine
}

/// The normal of a crumpled foil: tilted by smooth noise with cells of 6 mm.
fn crumpled(normal: Vector3<f32>, point: &Point3<f32>, amount: f32) -> Vector3<f32> {
    if amount == 0.0 {
        return normal;
    }
    let p = point.coords / 6.0;
    let shift = Vector3::new(19.1, 7.7, -23.3);
    let tilt = Vector3::new(noise(&p), noise(&(p + shift)), noise(&(p - shift))).add_scalar(-0.5);
    (normal + tilt * (2.0 * amount)).normalize()
}

#[cfg(test)]
mod tests {
    use super::super::options::SynthOptions;
    use super::super::trajectory::{camera, plan};
    use super::*;

    /// The fraction of the visible surface that the Sun reaches, on a grid over the silhouette.
    fn sunlit_share(scene: &Scene, camera: &Camera, pose: &Pose, lights: &Lights) -> f64 {
        let rays = Rays::new(camera, pose);
        let to_object = pose.r.transpose();
        let shading = Shading {
            scene,
            sun: (to_object * lights.sun).cast(),
            earth: (to_object * lights.earth).cast(),
            shine: Rgb::zeros(),
        };
        let (rows, columns) = scene.body.pixels(camera, pose).unwrap();
        let (mut lit, mut hits) = (0, 0);
        for y in rows {
            for x in columns.clone() {
                let ray = rays.at(x as f64, y as f64);
                let Some((triangle, z)) = scene.body.cast(&ray, FAR_MM) else { continue };
                let normal = scene.body.normals[triangle];
                hits += 1;
                let faces_sun = normal.dot(&shading.sun) > 0.0;
                lit += usize::from(faces_sun && !shading.in_shadow(&ray.point_at(z), &normal));
            }
        }
        f64::from(lit as u32) / f64::from(hits)
    }

    #[test]
    fn the_satellite_is_mostly_sunlit_and_rarely_dark() {
        let options = SynthOptions { size_px: 64, depth_d: (3.0, 6.0), ..SynthOptions::default() };
        let scene = Scene::new().unwrap();
        let camera = camera(64);
        let mut fractions: Vec<f64> = (0..300)
            .map(|i| {
                let sequence = plan(&options, &scene, i, 1);
                sunlit_share(&scene, &camera, &sequence.frames[0].pose, &sequence.lights)
            })
            .collect();
        fractions.sort_by(f64::total_cmp);
        let dark = fractions.iter().filter(|&&s| s < 0.02).count();
        assert!(dark <= 30, "{dark} of 300 frames are fully shadowed");
        assert!(
            fractions[150] > 0.5,
            "half of the frames are sunlit by less than {}",
            fractions[150]
        );
    }

    #[test]
    fn raised_parts_throw_shadows_and_the_rest_is_lit() {
        let scene = Scene::new().unwrap();
        // The Sun stands over the +y face, low from the +x side; the telescope's ring is raised by 3.3 mm.
        let sun = Vector3::new(1.0, 0.25, 0.0).normalize();
        let shading = Shading { scene: &scene, sun, earth: sun, shine: Rgb::zeros() };
        let normal = Vector3::y();
        let beside_ring = |dx: f32| Point3::new(12.0 + dx, 50.6, 22.0);
        assert!(shading.in_shadow(&beside_ring(-22.0), &normal));
        assert!(!shading.in_shadow(&beside_ring(22.0), &normal));
        assert!(!shading.in_shadow(&Point3::new(0.0, 50.6, -30.0), &normal));
    }

    #[test]
    fn a_mirror_direction_glints_and_others_do_not() {
        let m = material(Part::PlusX, Point3::new(52.1, -30.0, -45.0));
        let normal = Vector3::x();
        let sun = Vector3::new(1.0, 0.6, 0.0).normalize();
        let mirror = Vector3::new(1.0, -0.6, 0.0).normalize();
        let aside = Vector3::new(1.0, 0.2, 0.9).normalize();
        let (glint, plain) =
            (sunlight(&m, &normal, &sun, &mirror), sunlight(&m, &normal, &sun, &aside));
        assert!(glint.x > 1.0 && plain.x < 0.05, "{glint:?} {plain:?}");
    }
}
