//! Affine warps of images (bilinear) and masks (nearest), with constant borders.
//!
//! Coordinates run along a row in fixed point with 32 fractional bits, so that they are exact to 1e-7 px without
//! f64 work for each pixel; weights and sums are f32, and half a grey level rounds up. An integer map (SwissCube to
//! its internal camera takes every second pixel) is a plain copy.

use anyhow::{Context, Result, ensure};

use crate::geom::Affine2;

/// What lies outside an image, each channel.
pub const IMAGE_BORDER: u8 = 128;

/// How far an integer map may be off anywhere in the image, px: too little to change a rounded grey level.
const INTEGER_TOLERANCE_PX: f64 = 1e-6;

/// Largest source coordinate that the fixed point holds with room to spare, px.
const MAX_COORDINATE_PX: f64 = (1u64 << 30) as f64;

const ONE: f64 = (1u64 << 32) as f64;

/// Pixels of an image: rows of `width` times 3 (RGB) or 1 (mask) bytes.
#[derive(Debug, Clone, Copy)]
pub struct Raster<'a> {
    /// `height * width * channels` bytes.
    pub pixels: &'a [u8],
    /// px.
    pub width: usize,
    /// px.
    pub height: usize,
}

impl Raster<'_> {
    /// Whether the byte count fits the size.
    pub(super) fn check(&self, channels: usize) -> Result<()> {
        let Self { pixels, width, height } = self;
        ensure!(
            *width > 0 && *height > 0 && pixels.len() == width * height * channels,
            "an image of {width} x {height} px with {} bytes, expected {channels} a pixel",
            pixels.len()
        );
        Ok(())
    }
}

/// Width and height, px.
pub type Size = (usize, usize);

/// The RGB image moved by `m` (source to destination px), `size` px large: bilinear, border 128.
///
/// # Errors
/// If `m` is singular or reaches beyond 2^30 px, or the byte count does not fit the size.
pub fn warp_rgb(source: Raster, m: &Affine2, size: Size) -> Result<Vec<u8>> {
    source.check(3)?;
    let grid = Grid::new(m, size)?;
    match grid.integer {
        Some(integer) => Ok(copy_rgb(source, &integer, size)),
        None => Ok(bilinear(source, &[grid], size)),
    }
}

/// As [`warp_rgb`], but each pixel is the mean of `n` x `n` bilinear samples spread over it, where `n` is the
/// shrinking factor rounded up: shrinking by 2 weights the source pixels 1 2 1 either way. Equal to [`warp_rgb`]
/// when `m` does not shrink.
///
/// # Errors
/// As [`warp_rgb`].
pub fn warp_rgb_antialiased(source: Raster, m: &Affine2, size: Size) -> Result<Vec<u8>> {
    source.check(3)?;
    let [[a, b, _], [d, e, _]] = Grid::new(m, size)?.inverse.m;
    let samples = |du: f64, dv: f64| (du.hypot(dv) - 1e-6).ceil().clamp(1.0, 16.0) as usize;
    let (num_x, num_y) = (samples(a, d), samples(b, e));
    if (num_x, num_y) == (1, 1) {
        return warp_rgb(source, m, size);
    }
    let offset = |i: usize, n: usize| (i as f64 + 0.5) / n as f64 - 0.5;
    let mut grids = Vec::with_capacity(num_x * num_y);
    for (iy, ix) in (0..num_y).flat_map(|iy| (0..num_x).map(move |ix| (iy, ix))) {
        let shift = Affine2::shift(-offset(ix, num_x), -offset(iy, num_y));
        grids.push(Grid::new(&shift.after(m), size)?);
    }
    Ok(bilinear(source, &grids, size))
}

/// The labels moved by `m`, `size` px large: nearest, border 0.
///
/// # Errors
/// As [`warp_rgb`].
pub fn warp_labels(source: Raster, m: &Affine2, size: Size) -> Result<Vec<u8>> {
    let mut out = vec![0; size.0 * size.1];
    nearest(source, m, size, |at, label| out[at] = label)?;
    Ok(out)
}

/// Writes `label` into `labels` (`size` px) where the mask moved by `m` is not 0: nearest, border 0.
///
/// # Errors
/// As [`warp_rgb`].
pub fn paint_mask(
    source: Raster,
    m: &Affine2,
    size: Size,
    label: u8,
    labels: &mut [u8],
) -> Result<()> {
    nearest(source, m, size, |at, value| {
        if value != 0 {
            labels[at] = label;
        }
    })
}

/// Where the destination's pixels come from.
struct Grid {
    inverse: Affine2,
    integer: Option<IntegerGrid>,
}

/// Source = step * destination + offset, each axis.
#[derive(Clone, Copy)]
struct IntegerGrid {
    step: [i64; 2],
    offset: [i64; 2],
}

impl Grid {
    fn new(m: &Affine2, (width, height): Size) -> Result<Self> {
        let inverse = m.inverse().with_context(|| format!("the warp {:?} is singular", m.m))?;
        let (w, h) = (width as f64, height as f64);
        let reach =
            inverse.m.iter().map(|[a, b, c]| a.abs() * w + b.abs() * h + c.abs()).sum::<f64>();
        ensure!(
            reach < MAX_COORDINATE_PX,
            "the warp {:?} takes pixels from {reach} px away, expected less than 2^30",
            m.m
        );
        let [[a, b, c], [d, e, f]] = inverse.m;
        let off = |v: f64| (v - v.round()).abs();
        let error_px = (off(a) * w + b.abs() * h + off(c)).max(d.abs() * w + off(e) * h + off(f));
        let integer = (error_px < INTEGER_TOLERANCE_PX).then(|| IntegerGrid {
            step: [a.round() as i64, e.round() as i64],
            offset: [c.round() as i64, f.round() as i64],
        });
        Ok(Self { inverse, integer })
    }

    /// Source coordinates of the first pixel of row `y` and their change along it, fixed point.
    fn row(&self, y: usize) -> Run {
        let fixed = |v: f64| (v * ONE).round() as i64;
        let start = |r: [f64; 3]| fixed(r[1] * y as f64 + r[2]);
        let [u, v] = self.inverse.m;
        Run { u: start(u), v: start(v), du: fixed(u[0]), dv: fixed(v[0]) }
    }
}

/// Source coordinates along a row, 32 fractional bits.
#[derive(Clone, Copy)]
struct Run {
    u: i64,
    v: i64,
    du: i64,
    dv: i64,
}

impl Run {
    fn at(&self, x: usize) -> (i64, i64) {
        (self.u + self.du * x as i64, self.v + self.dv * x as i64)
    }

    /// The pixels of the row whose coordinates lie in `0..u_end` and `0..v_end`, both fixed point.
    fn inside(&self, u_end: i64, v_end: i64, width: usize) -> (usize, usize) {
        let (a, b) = span(self.u, self.du, u_end, width);
        let (c, d) = span(self.v, self.dv, v_end, width);
        let start = a.max(c);
        (start, b.min(d).max(start))
    }
}

/// The `x` of `0..count` with `0 <= start + step * x < end`, as a half-open range.
fn span(start: i64, step: i64, end: i64, count: usize) -> (usize, usize) {
    let ceil_div = |a: i64, b: i64| -((-a).div_euclid(b));
    let (low, high) = match step {
        0 if (0..end).contains(&start) => (0, count as i64),
        0 => (0, 0),
        s if s > 0 => (ceil_div(-start, s), ceil_div(end - start, s)),
        s => ((start - end).div_euclid(-s) + 1, start.div_euclid(-s) + 1),
    };
    let low = low.clamp(0, count as i64);
    (low as usize, high.clamp(low, count as i64) as usize)
}

fn copy_rgb(source: Raster, grid: &IntegerGrid, (width, height): Size) -> Vec<u8> {
    let mut out = vec![IMAGE_BORDER; width * height * 3];
    let (x_start, x_end) = span(grid.offset[0], grid.step[0], source.width as i64, width);
    let (y_start, y_end) = span(grid.offset[1], grid.step[1], source.height as i64, height);
    if x_start == x_end {
        return out;
    }
    for y in y_start..y_end {
        let from_y = (grid.offset[1] + grid.step[1] * y as i64) as usize;
        let row = &source.pixels[from_y * source.width * 3..][..source.width * 3];
        let out_row = &mut out[(y * width + x_start) * 3..(y * width + x_end) * 3];
        let mut from = grid.offset[0] + grid.step[0] * x_start as i64;
        if grid.step[0] == 1 {
            out_row.copy_from_slice(&row[from as usize * 3..][..(x_end - x_start) * 3]);
            continue;
        }
        for pixel in out_row.chunks_exact_mut(3) {
            pixel.copy_from_slice(&row[from as usize * 3..from as usize * 3 + 3]);
            from += grid.step[0];
        }
    }
    out
}

/// R, G, B and one lane of no meaning: four at a time are one vector instruction.
pub(super) type Lanes = [f32; 4];

/// The mean over `grids` of bilinear samples.
fn bilinear(source: Raster, grids: &[Grid], (width, height): Size) -> Vec<u8> {
    let mut out = vec![0; width * height * 3];
    let mut sums = vec![[0f32; 4]; width];
    for (y, out_row) in out.chunks_exact_mut(width * 3).enumerate() {
        sums.fill([0.0; 4]);
        for grid in grids {
            add_row(source, grid.row(y), &mut sums);
        }
        round_means(&sums, grids.len(), out_row);
    }
    out
}

/// Writes sums of `num` samples as pixels: their means, half a grey level rounded up.
pub(super) fn round_means(sums: &[Lanes], num: usize, out_row: &mut [u8]) {
    let fraction = 1.0 / num as f32;
    for (pixel, sum) in out_row.chunks_exact_mut(3).zip(sums) {
        // By way of i32, which four lanes convert to at once; the values lie in 0.5..256.
        let rounded = sum.map(|s| (s * fraction + 0.5) as i32 as u8);
        pixel.copy_from_slice(&rounded[..3]);
    }
}

/// Adds the bilinear sample at `u`, `v` (32 fractional bits) to `sum`.
#[inline]
pub(super) fn add_sample(source: Raster, (u, v): (i64, i64), sum: &mut Lanes) {
    let (x, y) = (u >> 32, v >> 32);
    // A byte more than the four neighbours is read, as in `add_row`.
    if x < 0 || y < 0 || x + 2 >= source.width as i64 || y + 1 >= source.height as i64 {
        add_at_border(source, (u, v), sum);
        return;
    }
    let stride = source.width * 3;
    let at = (y as usize * source.width + x as usize) * 3;
    let top = &source.pixels[at..at + 7];
    let bottom = &source.pixels[at + stride..at + stride + 7];
    let taps = [lanes(&top[..4]), lanes(&top[3..]), lanes(&bottom[..4]), lanes(&bottom[3..])];
    add_blend(sum, taps, fraction(u), fraction(v));
}

/// Adds the bilinear samples along `run` to `sums`.
fn add_row(source: Raster, run: Run, sums: &mut [Lanes]) {
    // Here all four neighbours are inside, and a byte more, since pixels are read by four bytes.
    let last = |side: usize, margin: i64| (side as i64 - margin) << 32;
    let (start, end) = run.inside(last(source.width, 2), last(source.height, 1), sums.len());
    let (before, rest) = sums.split_at_mut(start);
    let (within, after) = rest.split_at_mut(end - start);
    for (x, sum) in before.iter_mut().enumerate() {
        add_at_border(source, run.at(x), sum);
    }
    let stride = source.width * 3;
    let (mut u, mut v) = run.at(start);
    for sum in within {
        let at = ((v >> 32) as usize * source.width + (u >> 32) as usize) * 3;
        let top = &source.pixels[at..at + 7];
        let bottom = &source.pixels[at + stride..at + stride + 7];
        let taps = [lanes(&top[..4]), lanes(&top[3..]), lanes(&bottom[..4]), lanes(&bottom[3..])];
        add_blend(sum, taps, fraction(u), fraction(v));
        u += run.du;
        v += run.dv;
    }
    for (x, sum) in after.iter_mut().enumerate() {
        add_at_border(source, run.at(end + x), sum);
    }
}

#[inline]
fn lanes(bytes: &[u8]) -> Lanes {
    // By way of i32, which converts in one instruction.
    std::array::from_fn(|c| i32::from(bytes[c]) as f32)
}

#[inline]
fn fraction(v: i64) -> f32 {
    // 31 bits, so that the number is not negative.
    ((v as u32) >> 1) as i32 as f32 * (1.0 / (1u32 << 31) as f32)
}

#[inline]
fn add_blend(sum: &mut Lanes, [a, b, c, d]: [Lanes; 4], fu: f32, fv: f32) {
    for i in 0..4 {
        let top = a[i] + (b[i] - a[i]) * fu;
        let bottom = c[i] + (d[i] - c[i]) * fu;
        sum[i] += top + (bottom - top) * fv;
    }
}

fn add_at_border(source: Raster, (u, v): (i64, i64), sum: &mut Lanes) {
    let (w, h) = (source.width as i64, source.height as i64);
    let (x, y) = (u >> 32, v >> 32);
    if x < -1 || y < -1 || x >= w || y >= h {
        *sum = sum.map(|s| s + f32::from(IMAGE_BORDER));
        return;
    }
    let tap = |x: i64, y: i64| {
        if (0..w).contains(&x) && (0..h).contains(&y) {
            let at = (y * w + x) as usize * 3;
            let p = &source.pixels[at..at + 3];
            lanes(&[p[0], p[1], p[2], 0])
        } else {
            [f32::from(IMAGE_BORDER); 4]
        }
    };
    let taps = [tap(x, y), tap(x + 1, y), tap(x, y + 1), tap(x + 1, y + 1)];
    add_blend(sum, taps, fraction(u), fraction(v));
}

/// Calls `put(destination index, source value)` for each pixel whose nearest source pixel exists.
fn nearest(source: Raster, m: &Affine2, size: Size, mut put: impl FnMut(usize, u8)) -> Result<()> {
    source.check(1)?;
    let grid = Grid::new(m, size)?;
    for y in 0..size.1 {
        let mut run = grid.row(y);
        if let Some(IntegerGrid { step, offset }) = grid.integer {
            run = Run {
                u: offset[0] << 32,
                v: (offset[1] + step[1] * y as i64) << 32,
                du: step[0] << 32,
                dv: 0,
            };
        }
        // Rounding to the nearest, halves up.
        run.u += 1 << 31;
        run.v += 1 << 31;
        let fixed = |side: usize| (side as i64) << 32;
        let (start, end) = run.inside(fixed(source.width), fixed(source.height), size.0);
        let (mut u, mut v) = run.at(start);
        for x in start..end {
            let at = (v >> 32) as usize * source.width + (u >> 32) as usize;
            put(y * size.0 + x, source.pixels[at]);
            u += run.du;
            v += run.dv;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::Vec2;
    use crate::seed;
    use rand::Rng;

    fn noise(width: usize, height: usize, channels: usize) -> Vec<u8> {
        let mut rng = seed::stream(5, &[]);
        (0..width * height * channels).map(|_| rng.random()).collect()
    }

    /// Bilinear interpolation as its definition says, f64.
    fn reference(source: Raster, m: &Affine2, (width, height): Size) -> Vec<f64> {
        let inverse = m.inverse().unwrap();
        let tap = |x: f64, y: f64, c: usize| {
            let inside =
                x >= 0.0 && y >= 0.0 && x < source.width as f64 && y < source.height as f64;
            if !inside {
                return f64::from(IMAGE_BORDER);
            }
            f64::from(source.pixels[(y as usize * source.width + x as usize) * 3 + c])
        };
        let mut out = Vec::new();
        for i in 0..width * height {
            let p = inverse.apply(&Vec2::new((i % width) as f64, (i / width) as f64));
            let (x, y) = (p.x.floor(), p.y.floor());
            let (fx, fy) = (p.x - x, p.y - y);
            for c in 0..3 {
                let top = tap(x, y, c) * (1.0 - fx) + tap(x + 1.0, y, c) * fx;
                let bottom = tap(x, y + 1.0, c) * (1.0 - fx) + tap(x + 1.0, y + 1.0, c) * fx;
                out.push(top * (1.0 - fy) + bottom * fy);
            }
        }
        out
    }

    #[test]
    fn bilinear_agrees_with_its_definition_inside_and_at_the_border() {
        let pixels = noise(37, 29, 3);
        let source = Raster { pixels: &pixels, width: 37, height: 29 };
        let mut rng = seed::stream(6, &[]);
        for i in 0..60 {
            let center = Vec2::new(18.0, 15.0);
            let turn = Affine2::rotate_scale(
                &center,
                rng.random_range(-3.2..3.2),
                rng.random_range(0.3..3.0),
            );
            let m = turn.after(&Affine2::shift(
                rng.random_range(-30.0..30.0),
                rng.random_range(-30.0..30.0),
            ));
            let size = (41, 23);
            let got = warp_rgb(source, &m, size).unwrap();
            let expected = reference(source, &m, size);
            for (&g, e) in got.iter().zip(expected) {
                // Half a level of rounding, and the f32 sums' noise at the half.
                assert!((f64::from(g) - e).abs() <= 0.5 + 1e-4, "case {i}: {g} for {e}");
            }
        }
    }

    #[test]
    fn half_a_grey_level_rounds_up() {
        let pixels = [0, 10, 255, 1, 11, 254];
        let source = Raster { pixels: &pixels, width: 2, height: 1 };
        let got = warp_rgb(source, &Affine2::shift(-0.5, 0.0), (1, 1)).unwrap();
        assert_eq!(got, [1, 11, 255]);
    }

    #[test]
    fn integer_maps_copy_with_borders() {
        let pixels = noise(6, 6, 3);
        let source = Raster { pixels: &pixels, width: 6, height: 6 };
        for (a, e, c, f) in
            [(1.0, 1.0, 0.0, 0.0), (0.5, 1.0 / 3.0, 1.0, 2.0), (-1.0, 1.0, 6.0, 1.0)]
        {
            let m = Affine2 { m: [[a, 0.0, c], [0.0, e, f]] };
            assert!(Grid::new(&m, (8, 7)).unwrap().integer.is_some());
            let got = warp_rgb(source, &m, (8, 7)).unwrap();
            let expected = reference(source, &m, (8, 7));
            assert!(
                got.iter().zip(&expected).all(|(&g, e)| (f64::from(g) - e).abs() < 1e-3),
                "{m:?}"
            );
        }
        let half = Affine2 { m: [[0.5, 0.0, 0.1], [0.0, 0.5, 0.0]] };
        assert!(Grid::new(&half, (8, 7)).unwrap().integer.is_none());
    }

    #[test]
    fn masks_take_the_nearest_pixel_and_nothing_from_outside() {
        let pixels = [1, 2, 3, 4];
        let source = Raster { pixels: &pixels, width: 2, height: 2 };
        let shifted = warp_labels(source, &Affine2::shift(0.6, -0.4), (3, 2)).unwrap();
        assert_eq!(shifted, [0, 1, 2, 0, 3, 4]);
        let twice = Affine2 { m: [[2.0, 0.0, 0.5], [0.0, 2.0, 0.5]] };
        assert_eq!(warp_labels(source, &twice, (4, 2)).unwrap(), [1, 1, 2, 2, 1, 1, 2, 2]);
        let half = Affine2 { m: [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]] };
        assert_eq!(warp_labels(source, &half, (2, 1)).unwrap(), [1, 0]);
    }

    #[test]
    fn painting_leaves_what_is_outside_the_mask() {
        let pixels = [255, 0, 1, 0];
        let source = Raster { pixels: &pixels, width: 4, height: 1 };
        let mut labels = [7; 4];
        paint_mask(source, &Affine2::identity(), (4, 1), 2, &mut labels).unwrap();
        assert_eq!(labels, [2, 7, 2, 7]);
    }

    #[test]
    fn antialiasing_weights_one_two_one_at_half_size_and_is_nothing_when_enlarging() {
        let mut pixels = vec![0; 5 * 5 * 3];
        pixels[(2 * 5 + 2) * 3] = 160; // red at (2, 2)
        pixels[(2 * 5 + 1) * 3 + 1] = 160; // green at (1, 2)
        let source = Raster { pixels: &pixels, width: 5, height: 5 };
        let half = Affine2 { m: [[0.5, 0.0, 0.0], [0.0, 0.5, 0.0]] };
        let got = warp_rgb_antialiased(source, &half, (2, 2)).unwrap();
        assert_eq!(&got[9..], [40, 20, 0]);
        let larger = Affine2 { m: [[1.3, 0.0, 0.2], [0.0, 1.1, 0.0]] };
        assert_eq!(
            warp_rgb_antialiased(source, &larger, (6, 6)).unwrap(),
            warp_rgb(source, &larger, (6, 6)).unwrap()
        );
    }

    #[test]
    fn the_inside_of_a_row_is_exact() {
        for start in -7..8 {
            for step in -3..4 {
                let (a, b) = span(start, step, 5, 6);
                let expected: Vec<usize> =
                    (0..6).filter(|&x| (0..5).contains(&(start + step * x as i64))).collect();
                assert_eq!((a..b).collect::<Vec<_>>(), expected, "start {start}, step {step}");
            }
        }
    }

    #[test]
    fn what_cannot_be_warped_is_refused() {
        let source = Raster { pixels: &[0; 12], width: 2, height: 2 };
        let flat = Affine2 { m: [[1.0, 1.0, 0.0], [1.0, 1.0, 0.0]] };
        assert!(warp_rgb(source, &flat, (2, 2)).unwrap_err().to_string().contains("singular"));
        let tiny = Affine2 { m: [[1e-12, 0.0, 0.0], [0.0, 1.0, 0.0]] };
        assert!(warp_rgb(source, &tiny, (2, 2)).is_err());
        let short = Raster { pixels: &[0; 11], width: 2, height: 2 };
        assert!(warp_rgb(short, &Affine2::identity(), (2, 2)).is_err());
    }
}
