//! From radiance to the camera's 8 bits: exposure, bloom, noise, clipping, gamma.

use std::sync::LazyLock;

use image::RgbImage;
use rand::RngCore;

use super::trajectory::FramePlan;
use crate::seed;

use super::Rgb;

const GAMMA: f32 = 2.2;
/// Fraction of the light above white that spreads around a highlight.
const BLOOM: f32 = 0.25;
/// Light above white that takes part in blooming, at most.
const BLOOM_CAP: f32 = 8.0;
/// Width of the grid on which bloom is blurred; its radius is a fraction of the image.
const BLOOM_SIDE: usize = 256;

/// sRGB-like 8-bit values of 16-bit linear ones.
static GAMMA_TABLE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    (0..=u16::MAX)
        .map(|i| ((f32::from(i) / 65535.0).powf(1.0 / GAMMA) * 255.0).round() as u8)
        .collect()
});

/// Exposes `radiance` (row-major, `size` x `size`) to an 8-bit image.
pub(super) fn expose(mut radiance: Vec<Rgb>, size: usize, plan: &FramePlan, seed: u64) -> RgbImage {
    let exposure = plan.exposure as f32;
    for pixel in &mut radiance {
        *pixel *= exposure;
    }
    add_bloom(&mut radiance, size);

    let mut rng = seed::stream(seed, &plan.noise);
    let read_variance = (plan.read_noise * plan.read_noise) as f32;
    let shot = (1.0 / plan.full_well) as f32;
    let mut random = vec![0; size * 12];
    let mut out = Vec::with_capacity(size * size * 3);
    for row in radiance.chunks_exact(size) {
        rng.fill_bytes(&mut random);
        for (value, bytes) in row.iter().flat_map(|p| p.iter()).zip(random.chunks_exact(4)) {
            let noise = (value.max(0.0) * shot + read_variance).sqrt() * gaussian(bytes);
            let level = ((value + noise).clamp(0.0, 1.0) * 65535.0) as u16;
            out.push(GAMMA_TABLE[usize::from(level)]);
        }
    }
    RgbImage::from_raw(size as u32, size as u32, out).expect("three bytes a pixel were pushed")
}

/// A nearly normal number from four random bytes: their sum has mean 510 and variance
/// `4 (256^2 - 1) / 12`.
fn gaussian(bytes: &[u8]) -> f32 {
    const DEVIATION: f32 = 147.801;
    let sum: i32 = bytes.iter().map(|&b| i32::from(b)).sum();
    (sum - 510) as f32 / DEVIATION
}

/// Spreads light above white around highlights.
fn add_bloom(image: &mut [Rgb], size: usize) {
    if !image.iter().any(|p| p.max() > 1.0) {
        return;
    }
    let step = size.div_ceil(BLOOM_SIDE);
    let side = size.div_ceil(step);
    let mut excess = vec![Rgb::zeros(); side * side];
    for (i, pixel) in image.iter().enumerate() {
        if pixel.max() > 1.0 {
            let above = pixel.map(|v| (v - 1.0).clamp(0.0, BLOOM_CAP));
            excess[i / size / step * side + i % size / step] += above / (step * step) as f32;
        }
    }
    // Three box blurs are nearly a Gaussian, here of about 1 % of the image's width.
    let radius = (side / 85).max(1);
    for _ in 0..3 {
        blur_rows(&mut excess, side, radius);
        excess = transposed(&excess, side);
        blur_rows(&mut excess, side, radius);
        excess = transposed(&excess, side);
    }
    let at = |x: f32, y: f32| {
        let place = |t: f32| ((t + 0.5) / step as f32 - 0.5).clamp(0.0, (side - 1) as f32);
        let (x, y) = (place(x), place(y));
        let (x0, y0) = (x as usize, y as usize);
        let (x1, y1) = ((x0 + 1).min(side - 1), (y0 + 1).min(side - 1));
        let top = excess[y0 * side + x0].lerp(&excess[y0 * side + x1], x.fract());
        let bottom = excess[y1 * side + x0].lerp(&excess[y1 * side + x1], x.fract());
        top.lerp(&bottom, y.fract())
    };
    for (i, pixel) in image.iter_mut().enumerate() {
        *pixel += at((i % size) as f32, (i / size) as f32) * BLOOM;
    }
}

/// A moving average along rows; beyond the edge is dark.
fn blur_rows(image: &mut [Rgb], side: usize, radius: usize) {
    let weight = 1.0 / (2 * radius + 1) as f32;
    let mut sums = vec![Rgb::zeros(); side + 1];
    for row in image.chunks_exact_mut(side) {
        for (x, pixel) in row.iter().enumerate() {
            sums[x + 1] = sums[x] + pixel;
        }
        for (x, pixel) in row.iter_mut().enumerate() {
            let (low, high) = (x.saturating_sub(radius), (x + radius + 1).min(side));
            // Differences of sums may round below zero.
            *pixel = ((sums[high] - sums[low]) * weight).map(|v| v.max(0.0));
        }
    }
}

fn transposed(image: &[Rgb], side: usize) -> Vec<Rgb> {
    (0..side * side).map(|i| image[i % side * side + i / side]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::Pose;

    fn plan(exposure: f64, read_noise: f64, full_well: f64) -> FramePlan {
        FramePlan { pose: Pose::identity(), exposure, read_noise, full_well, noise: [1, 2, 3] }
    }

    #[test]
    fn grey_comes_out_by_the_gamma_curve_and_white_clips() {
        let size = 16;
        let quiet = plan(2.0, 0.0, 1e12);
        let image = expose(vec![Rgb::repeat(0.125); size * size], size, &quiet, 0);
        // 0.25^(1/2.2) * 255 = 135.8
        assert!(image.pixels().all(|p| p.0 == [136; 3]));
        let image = expose(vec![Rgb::repeat(0.6); size * size], size, &quiet, 0);
        assert!(image.pixels().all(|p| p.0 == [255; 3]));
    }

    #[test]
    fn noise_has_the_promised_spread() {
        let size = 128;
        let noisy = plan(1.0, 0.0, 1e4);
        let image = expose(vec![Rgb::repeat(0.25); size * size], size, &noisy, 7);
        let linear: Vec<f64> =
            image.as_raw().iter().map(|&v| (f64::from(v) / 255.0).powf(2.2)).collect();
        let mean = linear.iter().sum::<f64>() / linear.len() as f64;
        let variance = linear.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / linear.len() as f64;
        assert!((mean - 0.25).abs() < 1e-3);
        // Shot noise sqrt(0.25 / 1e4) = 0.005, and rounding to 8 bits adds a little.
        assert!((0.0048..0.0056).contains(&variance.sqrt()), "{}", variance.sqrt());
    }

    #[test]
    fn a_highlight_brightens_its_surroundings_and_keeps_its_light() {
        let size = 64;
        let mut image = vec![Rgb::zeros(); size * size];
        image[32 * size + 32] = Rgb::repeat(5.0);
        add_bloom(&mut image, size);
        assert!(image[32 * size + 34].x > 0.0 && image[5 * size + 5].x == 0.0);
        let spread: f32 = image.iter().map(|p| p.x).sum::<f32>() - 5.0;
        assert!((spread - 4.0 * BLOOM).abs() < 1e-3, "{spread}");
    }
}
