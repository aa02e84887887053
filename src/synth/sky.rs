//! Background: stars, and the Earth with oceans, land, clouds, terminator and a thin atmosphere.

use nalgebra::{Rotation3, Vector3};
use rand::Rng;

use super::lights::Lights;
use crate::seed;

/// Radius of the Earth and of the orbit (720 km above ground), km.
const EARTH_KM: f32 = 6371.0;
const ORBIT_KM: f32 = 7091.0;
/// Height over which the atmosphere's glow falls to 1/e, km; wider than in reality (8 km), to be seen.
const GLOW_KM: f32 = 22.0;
/// The full Earth's light on the satellite, as a fraction of the Sun's.
const EARTHSHINE: f32 = 0.25;
/// Colour of that light.
const EARTHSHINE_RGB: Vector3<f32> = Vector3::new(0.85, 0.97, 1.18);

const STREAM_STARS: u64 = 0x5354;

use super::Rgb;

/// The Earth as the camera sees it.
pub(super) struct Earth {
    centre_km: Vector3<f32>,
    sun: Vector3<f32>,
    turn: Rotation3<f32>,
}

impl Earth {
    pub fn new(lights: &Lights) -> Self {
        Self {
            centre_km: lights.earth.cast::<f32>() * ORBIT_KM,
            sun: lights.sun.cast(),
            turn: lights.earth_turn.cast(),
        }
    }

    /// Light on a surface that faces the Earth's centre, where a white surface facing the Sun gets 1.
    pub fn shine(&self) -> Rgb {
        let towards = self.centre_km / ORBIT_KM;
        let lit_fraction = 0.5 * (1.0 - towards.dot(&self.sun));
        EARTHSHINE_RGB * (EARTHSHINE * lit_fraction.max(0.15))
    }

    /// True when no direction within `half_angle` (cosine, sine) of the optical axis meets the Earth or its glow.
    fn out_of_view(&self, half_angle: (f32, f32)) -> bool {
        // The Earth's half angle, and 3 degrees for the glow.
        let reach = (EARTH_KM / ORBIT_KM).asin() + 0.05 + half_angle.1.atan2(half_angle.0);
        (self.centre_km.z / ORBIT_KM).clamp(-1.0, 1.0).acos() > reach
    }

    /// Radiance seen along the unit direction `d` (camera frame), and whether the Earth itself is hit.
    fn radiance(&self, d: &Vector3<f32>) -> (Rgb, bool) {
        let along = d.dot(&self.centre_km);
        if along <= 0.0 {
            return (Rgb::zeros(), false);
        }
        let miss_km = (self.centre_km.norm_squared() - along * along).max(0.0).sqrt();
        if miss_km >= EARTH_KM {
            let height = miss_km - EARTH_KM;
            if height > 8.0 * GLOW_KM {
                return (Rgb::zeros(), false);
            }
            let tangent = (d * along - self.centre_km) / miss_km;
            let lit = daylight(tangent.dot(&self.sun));
            return (Rgb::new(0.16, 0.34, 0.75) * (lit * (-height / GLOW_KM).exp()), false);
        }
        let half_chord = (EARTH_KM * EARTH_KM - miss_km * miss_km).sqrt();
        let normal = (d * (along - half_chord) - self.centre_km) / EARTH_KM;
        let lit = daylight(normal.dot(&self.sun));
        if lit <= 0.0 {
            return (Rgb::zeros(), true);
        }
        let facing = -normal.dot(d);
        let haze = Rgb::new(0.10, 0.20, 0.42) * (1.0 - facing).clamp(0.0, 1.0).powi(3);
        ((self.ground(&(self.turn * normal)) + haze) * lit, true)
    }

    /// Reflectance at a place of the unit sphere.
    fn ground(&self, q: &Vector3<f32>) -> Rgb {
        let bend =
            Vector3::new(noise(&(q * 7.0)), noise(&(q * 7.0 + OFFSET)), noise(&(q * 7.0 - OFFSET)));
        let cloud = smooth(0.47, 0.68, fractal(&(q * 11.0 + bend * 1.6), 7));
        let rgb = if cloud > 0.97 {
            Rgb::zeros()
        } else {
            let land = smooth(0.50, 0.54, fractal(&(q * 4.0 + OFFSET), 7));
            let dry = noise(&(q * 13.0));
            let earth = Rgb::new(0.10 + 0.16 * dry, 0.13 + 0.06 * dry, 0.06);
            Rgb::new(0.012, 0.035, 0.10).lerp(&earth, land)
        };
        rgb.lerp(&Rgb::new(0.72, 0.74, 0.76), cloud)
    }
}

const OFFSET: Vector3<f32> = Vector3::new(31.7, -17.3, 5.9);

/// Cosine of the Sun's height, softened at the terminator by twilight.
fn daylight(cosine: f32) -> f32 {
    let edge = 0.08;
    if cosine > edge {
        cosine
    } else if cosine > -edge {
        (cosine + edge).powi(2) / (4.0 * edge)
    } else {
        0.0
    }
}

fn smooth(low: f32, high: f32, x: f32) -> f32 {
    let t = ((x - low) / (high - low)).clamp(0.0, 1.0);
    t * t * (3.0 - 2.0 * t)
}

/// A value in [0, 1) from a lattice point.
fn lattice(x: i32, y: i32, z: i32) -> f32 {
    let mut h = (x as u32).wrapping_mul(0x8da6_b343)
        ^ (y as u32).wrapping_mul(0xd816_3841)
        ^ (z as u32).wrapping_mul(0xcb1a_b31f);
    h = (h ^ (h >> 15)).wrapping_mul(0x2c1b_3c6d);
    h = (h ^ (h >> 12)).wrapping_mul(0x297a_2d39);
    (h ^ (h >> 15)) as f32 * (1.0 / 4_294_967_296.0)
}

/// `f32::floor` within the range of i32, without the call that it is on plain x86-64.
fn floor(x: f32) -> f32 {
    let whole = x as i32 as f32;
    if whole > x { whole - 1.0 } else { whole }
}

/// Smooth value noise in [0, 1], one lattice cell a unit.
pub(super) fn noise(p: &Vector3<f32>) -> f32 {
    let cell = p.map(floor);
    let f = (p - cell).map(|t| t * t * (3.0 - 2.0 * t));
    let (x, y, z) = (cell.x as i32, cell.y as i32, cell.z as i32);
    let mix = |a: f32, b: f32, t: f32| a + (b - a) * t;
    let row = |y: i32, z: i32| mix(lattice(x, y, z), lattice(x + 1, y, z), f.x);
    let plane = |z: i32| mix(row(y, z), row(y + 1, z), f.y);
    mix(plane(z), plane(z + 1), f.z)
}

/// Noise of several octaves, in [0, 1].
fn fractal(p: &Vector3<f32>, octaves: u32) -> f32 {
    let (mut sum, mut weight, mut total, mut q) = (0.0, 1.0, 0.0, *p);
    for _ in 0..octaves {
        sum += weight * noise(&q);
        total += weight;
        weight *= 0.5;
        q = q * 2.03 + OFFSET;
    }
    sum / total
}

/// Paints the background of a `size` x `size` image, row-major, in radiance.
pub(super) fn paint(lights: &Lights, size: usize, focal_px: f32) -> Vec<Rgb> {
    let mut image = vec![Rgb::zeros(); size * size];
    let earth = Earth::new(lights);
    let centre = size as f32 / 2.0;
    let mut hidden = Vec::new();
    let corner = centre * std::f32::consts::SQRT_2;
    if !earth.out_of_view((focal_px, corner)) {
        hidden = vec![false; size * size];
        for (i, (out, hides)) in image.iter_mut().zip(&mut hidden).enumerate() {
            let (x, y) = ((i % size) as f32, (i / size) as f32);
            let d = Vector3::new((x - centre) / focal_px, (y - centre) / focal_px, 1.0).normalize();
            (*out, *hides) = earth.radiance(&d);
        }
    }
    add_stars(&mut image, &hidden, size, lights.stars);
    image
}

/// Adds the star field; `hidden` (empty: nowhere) is where the Earth covers it.
fn add_stars(image: &mut [Rgb], hidden: &[bool], size: usize, stars: u64) {
    let mut rng = seed::stream(stars, &[STREAM_STARS]);
    let count = rng.random_range(20..140);
    for _ in 0..count {
        let (u, v): (f32, f32) = (rng.random(), rng.random());
        // Few bright ones, many faint ones.
        let flux = (0.03 * rng.random::<f32>().max(1e-3).powf(-0.8)).min(1.2);
        let warmth: f32 = rng.random_range(-0.25..0.25);
        let rgb = Rgb::new(1.0 + warmth, 1.0, 1.0 - warmth) * flux;
        let (x, y) = (u * (size - 1) as f32, v * (size - 1) as f32);
        let (x0, y0) = (x as usize, y as usize);
        let (fx, fy) = (x - x0 as f32, y - y0 as f32);
        for (dx, dy, w) in [
            (0, 0, (1.0 - fx) * (1.0 - fy)),
            (1, 0, fx * (1.0 - fy)),
            (0, 1, (1.0 - fx) * fy),
            (1, 1, fx * fy),
        ] {
            let (px, py) = (x0 + dx, y0 + dy);
            if px < size && py < size && !hidden.get(py * size + px).copied().unwrap_or(false) {
                image[py * size + px] += rgb * w;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::Vec3;

    fn lights(earth: Vec3, sun: Vec3) -> Lights {
        Lights { sun, earth: earth.normalize(), earth_turn: Rotation3::identity(), stars: 3 }
    }

    #[test]
    fn the_earth_spans_64_degrees_to_each_side() {
        let earth = Earth::new(&lights(Vec3::z(), -Vec3::z()));
        let at = |deg: f32| {
            let (s, c) = deg.to_radians().sin_cos();
            earth.radiance(&Vector3::new(s, 0.0, c)).1
        };
        assert!(at(0.0) && at(63.9) && !at(64.1) && !at(120.0));
    }

    #[test]
    fn the_night_side_is_black_and_the_day_side_is_not() {
        let d = Vector3::z();
        let day = Earth::new(&lights(Vec3::z(), -Vec3::z())).radiance(&d).0;
        let night = Earth::new(&lights(Vec3::z(), Vec3::z())).radiance(&d).0;
        assert!(day.norm() > 0.05 && night.norm() == 0.0);
    }

    #[test]
    fn an_earth_behind_the_camera_is_skipped_only_when_invisible() {
        // What `out_of_view` skips must be black in every direction of the image.
        for deg in (0..=180).step_by(4) {
            let (s, c) = f64::from(deg).to_radians().sin_cos();
            let l = lights(Vec3::new(s, 0.0, c), Vec3::new(0.0, -0.6, -0.8));
            let earth = Earth::new(&l);
            let (focal, corner) = (0.6, 0.5 * std::f32::consts::SQRT_2);
            if earth.out_of_view((focal, corner)) {
                for i in 0..=20 {
                    for j in 0..=20 {
                        let d = Vector3::new(i as f32 / 20.0 - 0.5, j as f32 / 20.0 - 0.5, focal);
                        assert_eq!(earth.radiance(&d.normalize()).0.norm(), 0.0, "at {deg}");
                    }
                }
            }
        }
    }

    #[test]
    fn noise_stays_in_range_and_is_continuous() {
        let mut last = noise(&Vector3::zeros());
        for i in 1..2000 {
            let t = i as f32 * 0.01;
            let value = noise(&Vector3::new(t, 0.7 * t, -0.3 * t));
            assert!((0.0..=1.0).contains(&value) && (value - last).abs() < 0.06);
            last = value;
        }
    }
}
