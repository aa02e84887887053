//! Pictures of a distorting lens to the internal camera: where each pixel comes from is worked out once for a camera.

use anyhow::{Result, ensure};

use super::warp::{IMAGE_BORDER, Raster, Size, add_sample, round_means};
use crate::geom::{Camera, Lens, Vec2};

/// Fractional bits of a coordinate: 1.5e-5 px.
const FRACTION_BITS: u32 = 16;
/// Largest side of a picture, px: coordinates leave room for the fraction in 32 bits.
const MAX_SIDE_PX: usize = 1 << 14;
/// Stands for what the lens does not show.
const UNSEEN: i32 = i32::MIN;
/// Most samples a pixel and axis.
const MAX_SAMPLES: f64 = 16.0;

/// Where the internal picture's pixels lie in that of a lens: one resampling undoes the distortion and changes the camera.
#[derive(Debug, Clone)]
pub struct SourceMap {
    size: Size,
    /// Of each pixel: x, y in the source, fixed point; x [`UNSEEN`] where there is none.
    places: Vec<[i32; 2]>,
    /// Of each pixel, with antialiasing: how far the place moves when x, then y, grow by 1.
    steps: Vec<[i32; 4]>,
    /// Samples a pixel, along x and y.
    samples: (usize, usize),
}

impl SourceMap {
    /// For pictures of `lens` under `internal`, `size` px large.
    pub fn new(lens: &Lens, internal: &Camera, size: Size, antialias: bool) -> Self {
        let at = |x: f64, y: f64| {
            let ray = internal.ray(&Vec2::new(x, y));
            let limit = MAX_SIDE_PX as f64;
            lens.pixel_of(&Vec2::new(ray.x, ray.y)).filter(|p| p.amax() < limit)
        };
        let fixed = |v: f64| (v * f64::from(1u32 << FRACTION_BITS)).round() as i32;
        let mut map = Self {
            size,
            places: Vec::with_capacity(size.0 * size.1),
            steps: Vec::new(),
            samples: (1, 1),
        };
        let mut longest = (0.0_f64, 0.0_f64);
        for (y, x) in (0..size.1).flat_map(|y| (0..size.0).map(move |x| (y as f64, x as f64))) {
            let place = at(x, y);
            map.places.push(place.map_or([UNSEEN; 2], |p| [fixed(p.x), fixed(p.y)]));
            if !antialias {
                continue;
            }
            let across = |a: Option<Vec2>, b: Option<Vec2>| match (a, b) {
                (Some(a), Some(b)) => a - b,
                _ => Vec2::zeros(), // at the edge of what is seen
            };
            let dx = across(at(x + 0.5, y), at(x - 0.5, y));
            let dy = across(at(x, y + 0.5), at(x, y - 0.5));
            if place.is_some() {
                longest = (longest.0.max(dx.norm()), longest.1.max(dy.norm()));
            }
            map.steps.push([fixed(dx.x), fixed(dx.y), fixed(dy.x), fixed(dy.y)]);
        }
        let samples = |length: f64| (length - 1e-6).ceil().clamp(1.0, MAX_SAMPLES) as usize;
        map.samples = (samples(longest.0), samples(longest.1));
        if map.samples == (1, 1) {
            map.steps = Vec::new();
        }
        map
    }

    /// The picture under the internal camera: bilinear, border 128; where it shrinks, with antialiasing, each pixel is the
    /// mean of samples spread over it, as [`super::warp::warp_rgb_antialiased`] takes them.
    ///
    /// # Errors
    /// If the byte count does not fit the size, or the picture is larger than 16384 px.
    pub fn apply(&self, source: Raster) -> Result<Vec<u8>> {
        source.check(3)?;
        ensure!(
            source.width < MAX_SIDE_PX && source.height < MAX_SIDE_PX,
            "an image of {} x {} px, expected less than {MAX_SIDE_PX} where distortion is undone",
            source.width,
            source.height
        );
        let (num_x, num_y) = self.samples;
        let offset = |i: usize, n: usize| (i as f32 + 0.5) / n as f32 - 0.5;
        let offsets: Vec<(f32, f32)> = (0..num_y)
            .flat_map(|iy| (0..num_x).map(move |ix| (ix, iy)))
            .map(|(ix, iy)| (offset(ix, num_x), offset(iy, num_y)))
            .collect();
        let (width, height) = self.size;
        let mut out = vec![IMAGE_BORDER; width * height * 3];
        let mut sums = vec![[0f32; 4]; width];
        for (y, out_row) in out.chunks_exact_mut(width * 3).enumerate() {
            sums.fill([0.0; 4]);
            let row = y * width..(y + 1) * width;
            let places = &self.places[row.clone()];
            if self.steps.is_empty() {
                for (place, sum) in places.iter().zip(&mut sums) {
                    add_place(source, *place, sum);
                }
            } else {
                for (i, (place, step)) in places.iter().zip(&self.steps[row]).enumerate() {
                    for offset in &offsets {
                        add_place(source, moved(*place, step, *offset), &mut sums[i]);
                    }
                }
            }
            round_means(&sums, offsets.len(), out_row);
        }
        Ok(out)
    }
}

fn moved(place: [i32; 2], step: &[i32; 4], (dx, dy): (f32, f32)) -> [i32; 2] {
    if place[0] == UNSEEN {
        return place;
    }
    let along = |axis: usize| (step[axis] as f32 * dx + step[axis + 2] as f32 * dy).round() as i32;
    [place[0].saturating_add(along(0)), place[1].saturating_add(along(1))]
}

#[inline]
fn add_place(source: Raster, place: [i32; 2], sum: &mut [f32; 4]) {
    if place[0] == UNSEEN {
        *sum = sum.map(|s| s + f32::from(IMAGE_BORDER));
        return;
    }
    let [u, v] = place.map(|c| i64::from(c) << (32 - FRACTION_BITS));
    add_sample(source, (u, v), sum);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::warp::{warp_rgb, warp_rgb_antialiased};
    use crate::geom::{Affine2, Distortion};
    use crate::seed;
    use rand::Rng;

    fn noise(width: usize, height: usize) -> Vec<u8> {
        let mut rng = seed::stream(8, &[]);
        (0..width * height * 3).map(|_| rng.random()).collect()
    }

    #[test]
    fn without_distortion_it_is_the_affine_warp() {
        let pixels = noise(90, 70);
        let source = Raster { pixels: &pixels, width: 90, height: 70 };
        let from = Camera::new(80.0, 82.0, 44.3, 35.1).unwrap();
        for focal in [100.0, 60.0, 27.0] {
            let to = Camera::new(focal, focal, 24.2, 15.7).unwrap();
            let m = Affine2::between_cameras(&from, &to);
            for antialias in [false, true] {
                let map = SourceMap::new(&Lens::from(from), &to, (48, 32), antialias);
                let warp = if antialias { warp_rgb_antialiased } else { warp_rgb };
                let expected = warp(source, &m, (48, 32)).unwrap();
                let got = map.apply(source).unwrap();
                // A 2^-17 px rounding of coordinates moves a value of this noise by less than a level.
                let worst = got.iter().zip(&expected).map(|(a, b)| a.abs_diff(*b)).max().unwrap();
                assert!(worst <= 1, "focal {focal}, antialias {antialias}: {worst}");
                let equal = got.iter().zip(&expected).filter(|(a, b)| a == b).count();
                assert!(equal * 100 > got.len() * 99, "{equal} of {}", got.len());
            }
        }
    }

    #[test]
    fn a_distorted_picture_of_a_ramp_comes_back_straight() {
        let camera = Camera::new(100.0, 100.0, 64.0, 64.0).unwrap();
        let distortion = Distortion::polynomial(&[-0.3, 0.05, 1e-3, -1e-3]).unwrap();
        let lens = Lens::new(camera, distortion);
        // The scene's brightness is 128 + 100 x + 60 y over directions; each pixel shows that of its own.
        let scene = |d: &Vec2| 128.0 + 100.0 * d.x + 60.0 * d.y;
        let mut pixels = vec![0; 128 * 128 * 3];
        for (i, pixel) in pixels.chunks_exact_mut(3).enumerate() {
            let at = Vec2::new((i % 128) as f64, (i / 128) as f64);
            pixel.fill(scene(&lens.direction_of(&at).unwrap()).round() as u8);
        }
        let source = Raster { pixels: &pixels, width: 128, height: 128 };
        let internal = Camera::new(50.0, 50.0, 20.0, 20.0).unwrap();
        for antialias in [false, true] {
            let got = SourceMap::new(&lens, &internal, (40, 40), antialias).apply(source).unwrap();
            for (i, pixel) in got.chunks_exact(3).enumerate() {
                let ray = internal.ray(&Vec2::new((i % 40) as f64, (i / 40) as f64));
                let expected = scene(&Vec2::new(ray.x, ray.y));
                assert!(
                    (f64::from(pixel[0]) - expected).abs() < 1.6,
                    "{i}: {} {expected}",
                    pixel[0]
                );
            }
        }
    }

    #[test]
    fn what_the_lens_does_not_show_is_border() {
        let camera = Camera::new(100.0, 100.0, 64.0, 64.0).unwrap();
        // Turns back at 1 / sqrt(0.9) = 1.05; the internal camera sees up to 4.
        let lens = Lens::new(camera, Distortion::polynomial(&[-0.3, 0.0, 0.0, 0.0]).unwrap());
        let internal = Camera::new(10.0, 10.0, 40.0, 40.0).unwrap();
        let pixels = vec![200; 128 * 128 * 3];
        let source = Raster { pixels: &pixels, width: 128, height: 128 };
        let got = SourceMap::new(&lens, &internal, (80, 80), false).apply(source).unwrap();
        let at = |x: usize, y: usize| got[(y * 80 + x) * 3];
        assert_eq!((at(40, 40), at(40 + 13, 40), at(0, 40)), (200, IMAGE_BORDER, IMAGE_BORDER));
    }

    #[test]
    fn too_large_and_misshapen_pictures_are_refused() {
        let camera = Camera::new(1.0, 1.0, 0.0, 0.0).unwrap();
        let map = SourceMap::new(&Lens::from(camera), &camera, (2, 2), false);
        assert!(map.apply(Raster { pixels: &[0; 11], width: 2, height: 2 }).is_err());
        let wide = vec![0; 3 * (1 << 14)];
        let wide = Raster { pixels: &wide, width: 1 << 14, height: 1 };
        assert!(map.apply(wide).unwrap_err().to_string().contains("16384"));
    }
}
