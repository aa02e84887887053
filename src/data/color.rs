//! Random changes of a sample's colours: what cameras and light do that a training set does not show.

use rand::Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::warp::Size;
use crate::seed;

/// Chance of each change.
const CHANCE: f64 = 0.5;
/// Most erased boxes, and most discs of a flare.
const MOST_BOXES: usize = 5;
const MOST_DISCS: usize = 10;

/// How strong random changes of colours are in training; each happens to every second image, 0 turns it off.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ColorConfig {
    /// Largest change of brightness, as a fraction of white.
    #[schemars(range(min = 0, max = 1))]
    pub brightness: f64,
    /// Contrasts lie within 1 +- this.
    #[schemars(range(min = 0, max = 1))]
    pub contrast: f64,
    /// Largest radius of a blur, px of the network's input.
    #[schemars(range(max = 64))]
    pub blur_px: usize,
    /// Largest standard deviation of noise, as a fraction of white.
    #[schemars(range(min = 0, max = 1))]
    pub noise: f64,
    /// Largest side of 1 to 5 erased boxes, as a fraction of the image's.
    #[schemars(range(min = 0, max = 1))]
    pub dropout: f64,
    /// Largest radius of 1 to 10 bright discs on a line, as a fraction of the image's width.
    #[schemars(range(min = 0, max = 1))]
    pub flare: f64,
}

/// The changes, in the order in which they are made; a change's number is the last part of the place of its random stream.
#[derive(Clone, Copy)]
enum Change {
    Flare,
    Dropout,
    Blur,
    Brightness,
    Contrast,
    Noise,
}

impl ColorConfig {
    /// Changes RGB pixels `[h, w, 3]`; labels stay as they are. Each change draws from a stream of its own, that of `seed` and
    /// `place` with its number: what one setting draws is the same whatever the others are.
    pub fn apply(&self, pixels: &mut [u8], size: Size, seed: u64, place: &[u64]) {
        // The stream of a change that happens to this image.
        let happens = |change: Change, strength: f64| {
            let mut rng = seed::stream(seed, &[place, &[change as u64]].concat());
            (rng.random_bool(CHANCE) && strength > 0.0).then_some(rng)
        };
        if let Some(mut rng) = happens(Change::Flare, self.flare) {
            flare(pixels, size, self.flare, &mut rng);
        }
        if let Some(mut rng) = happens(Change::Dropout, self.dropout) {
            erase(pixels, size, self.dropout, &mut rng);
        }
        if let Some(mut rng) = happens(Change::Blur, self.blur_px as f64) {
            blur(pixels, size, rng.random_range(1..=self.blur_px));
        }
        let drawn = |change: Change, limit: f64| {
            happens(change, limit).map_or(0.0, |mut rng| rng.random_range(-1.0..=1.0) * limit)
        };
        let brightness = drawn(Change::Brightness, self.brightness);
        let contrast = drawn(Change::Contrast, self.contrast);
        if brightness != 0.0 || contrast != 0.0 {
            for value in pixels.iter_mut() {
                let about_grey = (f64::from(*value) - 127.5) * (1.0 + contrast) + 127.5;
                *value = (about_grey + brightness * 255.0).round() as u8;
            }
        }
        if let Some(mut rng) = happens(Change::Noise, self.noise) {
            let deviation = rng.random_range(0.0..=1.0) * self.noise * 255.0;
            for value in pixels.iter_mut() {
                // The sum of 4 uniform numbers is nearly normal, with variance 1 / 3.
                let sum: f64 = (0..4).map(|_| rng.random_range(-0.5..0.5)).sum();
                *value = (f64::from(*value) + sum * 3f64.sqrt() * deviation).round() as u8;
            }
        }
    }
}

/// Fills boxes with one colour each.
fn erase(pixels: &mut [u8], (width, height): Size, largest: f64, rng: &mut impl Rng) {
    for _ in 0..rng.random_range(1..=MOST_BOXES) {
        let mut range = |side: usize| {
            let length = (rng.random_range(0.0..=1.0) * largest * side as f64).ceil() as usize;
            let start = rng.random_range(0..=side - length.min(side));
            start..start + length.min(side)
        };
        let (columns, rows) = (range(width), range(height));
        let color: [u8; 3] = rng.random();
        for y in rows {
            for x in columns.clone() {
                pixels[(y * width + x) * 3..][..3].copy_from_slice(&color);
            }
        }
    }
}

/// Brightens discs on a line through the image.
fn flare(pixels: &mut [u8], (width, height): Size, largest: f64, rng: &mut impl Rng) {
    let mut place = || [width, height].map(|side| rng.random_range(0.0..1.0) * side as f64);
    let (from, to) = (place(), place());
    let discs: Vec<_> = (0..rng.random_range(1..=MOST_DISCS))
        .map(|_| {
            let along = rng.random_range(0.0..=1.0);
            let at = [0, 1].map(|i| from[i] + (to[i] - from[i]) * along);
            let radius = (rng.random_range(0.0..=1.0) * largest * width as f64).max(1.0);
            (at, radius, rng.random_range(0.1..0.8))
        })
        .collect();
    for (i, pixel) in pixels.chunks_exact_mut(3).enumerate() {
        let (x, y) = ((i % width) as f64, (i / width) as f64);
        let light: f64 = discs
            .iter()
            .map(|(at, radius, peak)| {
                let distance = (x - at[0]).hypot(y - at[1]) / radius;
                peak * (1.0 - distance * distance).max(0.0)
            })
            .sum();
        for value in pixel {
            *value = (f64::from(*value) + light * 255.0) as u8;
        }
    }
}

/// Means over `(2 radius + 1)^2` pixels, of those inside the image.
fn blur(pixels: &mut [u8], (width, height): Size, radius: usize) {
    blur_lines(pixels, (width, height), (3, width * 3), radius);
    blur_lines(pixels, (height, width), (width * 3, 3), radius);
}

/// Moving averages along `num` lines of `length` pixels, whose pixels and lines are so many bytes apart.
fn blur_lines(
    pixels: &mut [u8],
    (length, num): (usize, usize),
    (step, next): (usize, usize),
    radius: usize,
) {
    let mut sums = vec![0u32; length + 1];
    for line in 0..num {
        for channel in 0..3 {
            let at = |i: usize| line * next + i * step + channel;
            for i in 0..length {
                sums[i + 1] = sums[i] + u32::from(pixels[at(i)]);
            }
            for i in 0..length {
                let (low, high) = (i.saturating_sub(radius), (i + radius + 1).min(length));
                let num = (high - low) as u32;
                pixels[at(i)] = ((sums[high] - sums[low] + num / 2) / num) as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: Size = (24, 16);

    fn image() -> Vec<u8> {
        (0..SIZE.0 * SIZE.1 * 3).map(|i| (i * 7 % 256) as u8).collect()
    }

    fn applied(config: &ColorConfig, place: u64) -> Vec<u8> {
        let mut pixels = image();
        config.apply(&mut pixels, SIZE, 1, &[place]);
        pixels
    }

    #[test]
    fn nothing_is_changed_without_a_setting_and_each_one_changes_something() {
        let none = ColorConfig::default();
        let all = [
            ColorConfig { brightness: 0.2, ..none.clone() },
            ColorConfig { contrast: 0.2, ..none.clone() },
            ColorConfig { blur_px: 3, ..none.clone() },
            ColorConfig { noise: 0.1, ..none.clone() },
            ColorConfig { dropout: 0.5, ..none.clone() },
            ColorConfig { flare: 0.3, ..none.clone() },
        ];
        for place in 0..20 {
            assert_eq!(applied(&none, place), image());
        }
        for config in all {
            let changed = (0..40).filter(|&place| applied(&config, place) != image()).count();
            assert!((8..=32).contains(&changed), "{config:?}: {changed} of 40");
            assert_eq!(applied(&config, 3), applied(&config, 3));
        }
    }

    /// The draws of a change show in the image alone: noise is added last, and boxes have colours of their own.
    #[test]
    fn what_one_setting_draws_does_not_depend_on_the_others() {
        let grey = |config: &ColorConfig, place: u64| -> Vec<u8> {
            let mut pixels = vec![120; SIZE.0 * SIZE.1 * 3];
            config.apply(&mut pixels, SIZE, 1, &[place]);
            pixels
        };
        let none = ColorConfig::default();
        let dropout = ColorConfig { dropout: 0.5, ..none.clone() };
        let noise = ColorConfig { noise: 0.02, ..none.clone() };
        let brightness = ColorConfig { brightness: 0.2, ..none.clone() };
        let (mut erased, mut noisy, mut brighter) = (0, 0, 0);
        for place in 0..40 {
            // Boxes, whatever is done to the colours beside them.
            let alone = grey(&dropout, place);
            let both = grey(&ColorConfig { flare: 1.0, ..dropout.clone() }, place);
            let boxes = || alone.iter().zip(&both).filter(|(value, _)| **value != 120);
            assert!(boxes().all(|(a, b)| a == b), "{place}");
            erased += boxes().count();
            // Noise on top of the same boxes, and of another brightness.
            let of = |config: &ColorConfig| -> Vec<i32> {
                grey(config, place).into_iter().map(i32::from).collect()
            };
            let only_noise: Vec<i32> = of(&noise).iter().map(|v| v - 120).collect();
            let both = of(&ColorConfig { noise: 0.02, ..brightness.clone() });
            let bright = of(&brightness);
            let on_top: Vec<i32> = both.iter().zip(&bright).map(|(a, b)| a - b).collect();
            assert_eq!(on_top, only_noise, "{place}");
            noisy += usize::from(only_noise.iter().any(|v| *v != 0));
            brighter += usize::from(bright[0] != 120);
        }
        assert!(erased > 100 && noisy > 8 && brighter > 8, "{erased} {noisy} {brighter}");
    }

    #[test]
    fn a_blur_keeps_a_flat_image_and_spreads_a_point() {
        let mut flat = vec![90; SIZE.0 * SIZE.1 * 3];
        blur(&mut flat, SIZE, 2);
        assert!(flat.iter().all(|v| *v == 90));
        let mut point = vec![0; SIZE.0 * SIZE.1 * 3];
        point[(8 * SIZE.0 + 12) * 3] = 225;
        blur(&mut point, SIZE, 1);
        let at = |x: usize, y: usize| point[(y * SIZE.0 + x) * 3];
        assert_eq!((at(12, 8), at(11, 7), at(13, 9), at(10, 8)), (25, 25, 25, 0));
        assert_eq!(point[(8 * SIZE.0 + 12) * 3 + 1], 0);
    }
}
