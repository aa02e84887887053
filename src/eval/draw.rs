//! Anti-aliased lines and a small pixel font on RGB images.

use image::{Rgb, RgbImage};

use crate::geom::Vec2;

/// Columns of a glyph, and one empty column.
const GLYPH_ADVANCE: u32 = 6;
/// Rows of a glyph.
pub(super) const GLYPH_HEIGHT: u32 = 7;

/// Mixes `color` into a pixel by `fraction` (0 to 1); outside the image nothing happens.
fn blend(image: &mut RgbImage, x: i64, y: i64, color: Rgb<u8>, fraction: f64) {
    if x < 0 || y < 0 || x >= i64::from(image.width()) || y >= i64::from(image.height()) {
        return;
    }
    let pixel = image.get_pixel_mut(x as u32, y as u32);
    for (p, c) in pixel.0.iter_mut().zip(color.0) {
        *p = (f64::from(*p) * (1.0 - fraction) + f64::from(c) * fraction).round() as u8;
    }
}

/// Draws the segment from `a` to `b` (px, pixel centres at whole numbers), `width_px` wide, with round ends.
///
/// A pixel is covered by how far its centre lies inside the stroke, which smooths the edges. What is outside the
/// image is cut off first, so a far end costs nothing. Points that are not finite draw nothing.
pub(super) fn line(image: &mut RgbImage, a: Vec2, b: Vec2, width_px: f64, color: Rgb<u8>) {
    let radius = width_px / 2.0;
    let margin = radius + 1.0;
    let (w, h) = (f64::from(image.width()), f64::from(image.height()));
    let Some((a, b)) = clip(a, b, Vec2::new(-margin, -margin), Vec2::new(w + margin, h + margin))
    else {
        return;
    };
    let d = b - a;
    let length_squared = d.norm_squared();
    // Row by row only the columns near the segment are visited.
    let (top, bottom) = (a.y.min(b.y) - margin, a.y.max(b.y) + margin);
    for y in top.floor() as i64..=bottom.ceil() as i64 {
        let (low, high) = columns_near(a, b, y as f64, margin);
        for x in low.floor() as i64..=high.ceil() as i64 {
            let p = Vec2::new(x as f64, y as f64);
            let along = if length_squared > 0.0 {
                ((p - a).dot(&d) / length_squared).clamp(0.0, 1.0)
            } else {
                0.0
            };
            let distance = (p - (a + d * along)).norm();
            let fraction = (radius + 0.5 - distance).clamp(0.0, 1.0);
            if fraction > 0.0 {
                blend(image, x, y, color, fraction);
            }
        }
    }
}

/// The columns that the part of the segment within `margin` rows of `y` reaches, widened by `margin`.
fn columns_near(a: Vec2, b: Vec2, y: f64, margin: f64) -> (f64, f64) {
    let (mut from, mut to) = (0.0_f64, 1.0_f64);
    let dy = b.y - a.y;
    if dy.abs() > 1e-9 {
        let (s, e) = ((y - margin - a.y) / dy, (y + margin - a.y) / dy);
        from = s.min(e).clamp(0.0, 1.0);
        to = s.max(e).clamp(0.0, 1.0);
    }
    let (x0, x1) = (a.x + (b.x - a.x) * from, a.x + (b.x - a.x) * to);
    (x0.min(x1) - margin, x0.max(x1) + margin)
}

/// The part of a segment inside a rectangle (Liang and Barsky 1984), or `None`.
fn clip(a: Vec2, b: Vec2, low: Vec2, high: Vec2) -> Option<(Vec2, Vec2)> {
    if ![a.x, a.y, b.x, b.y].iter().all(|v| v.is_finite()) {
        return None;
    }
    let d = b - a;
    let (mut from, mut to) = (0.0_f64, 1.0_f64);
    for (p, q) in
        [(-d.x, a.x - low.x), (d.x, high.x - a.x), (-d.y, a.y - low.y), (d.y, high.y - a.y)]
    {
        if p == 0.0 {
            if q < 0.0 {
                return None;
            }
        } else if p < 0.0 {
            from = from.max(q / p);
        } else {
            to = to.min(q / p);
        }
    }
    (from <= to).then(|| (a + d * from, a + d * to))
}

/// Writes `text` with its top-left corner at (`x`, `y`), `scale` px a dot, on a dark ground.
///
/// The font has capitals (small letters are drawn as such), digits and ` .-:/%=`; anything else is a blank.
/// Returns the width in px.
pub(super) fn text(
    image: &mut RgbImage,
    [x, y]: [u32; 2],
    scale: u32,
    color: Rgb<u8>,
    text: &str,
) -> u32 {
    let width = text.chars().count() as u32 * GLYPH_ADVANCE * scale + scale;
    for dy in 0..(GLYPH_HEIGHT + 2) * scale {
        for dx in 0..width {
            blend(image, i64::from(x + dx), i64::from(y + dy), Rgb([0, 0, 0]), 0.6);
        }
    }
    for (i, c) in text.chars().enumerate() {
        let left = x + (i as u32 * GLYPH_ADVANCE + 1) * scale;
        for (column, bits) in glyph(c.to_ascii_uppercase()).into_iter().enumerate() {
            for row in (0..GLYPH_HEIGHT).filter(|row| bits >> row & 1 == 1) {
                for dot in 0..scale * scale {
                    let px = left + column as u32 * scale + dot % scale;
                    let py = y + (row + 1) * scale + dot / scale;
                    blend(image, i64::from(px), i64::from(py), color, 1.0);
                }
            }
        }
    }
    width
}

/// Five columns, left to right; bit 0 is the top row.
fn glyph(c: char) -> [u8; 5] {
    match c {
        '0' => [0x3e, 0x51, 0x49, 0x45, 0x3e],
        '1' => [0x00, 0x42, 0x7f, 0x40, 0x00],
        '2' => [0x42, 0x61, 0x51, 0x49, 0x46],
        '3' => [0x21, 0x41, 0x45, 0x4b, 0x31],
        '4' => [0x18, 0x14, 0x12, 0x7f, 0x10],
        '5' => [0x27, 0x45, 0x45, 0x45, 0x39],
        '6' => [0x3c, 0x4a, 0x49, 0x49, 0x30],
        '7' => [0x01, 0x71, 0x09, 0x05, 0x03],
        '8' => [0x36, 0x49, 0x49, 0x49, 0x36],
        '9' => [0x06, 0x49, 0x49, 0x29, 0x1e],
        'A' => [0x7e, 0x11, 0x11, 0x11, 0x7e],
        'B' => [0x7f, 0x49, 0x49, 0x49, 0x36],
        'C' => [0x3e, 0x41, 0x41, 0x41, 0x22],
        'D' => [0x7f, 0x41, 0x41, 0x22, 0x1c],
        'E' => [0x7f, 0x49, 0x49, 0x49, 0x41],
        'F' => [0x7f, 0x09, 0x09, 0x09, 0x01],
        'G' => [0x3e, 0x41, 0x49, 0x49, 0x7a],
        'H' => [0x7f, 0x08, 0x08, 0x08, 0x7f],
        'I' => [0x00, 0x41, 0x7f, 0x41, 0x00],
        'J' => [0x20, 0x40, 0x41, 0x3f, 0x01],
        'K' => [0x7f, 0x08, 0x14, 0x22, 0x41],
        'L' => [0x7f, 0x40, 0x40, 0x40, 0x40],
        'M' => [0x7f, 0x02, 0x0c, 0x02, 0x7f],
        'N' => [0x7f, 0x04, 0x08, 0x10, 0x7f],
        'O' => [0x3e, 0x41, 0x41, 0x41, 0x3e],
        'P' => [0x7f, 0x09, 0x09, 0x09, 0x06],
        'Q' => [0x3e, 0x41, 0x51, 0x21, 0x5e],
        'R' => [0x7f, 0x09, 0x19, 0x29, 0x46],
        'S' => [0x46, 0x49, 0x49, 0x49, 0x31],
        'T' => [0x01, 0x01, 0x7f, 0x01, 0x01],
        'U' => [0x3f, 0x40, 0x40, 0x40, 0x3f],
        'V' => [0x1f, 0x20, 0x40, 0x20, 0x1f],
        'W' => [0x3f, 0x40, 0x38, 0x40, 0x3f],
        'X' => [0x63, 0x14, 0x08, 0x14, 0x63],
        'Y' => [0x07, 0x08, 0x70, 0x08, 0x07],
        'Z' => [0x61, 0x51, 0x49, 0x45, 0x43],
        '.' => [0x00, 0x60, 0x60, 0x00, 0x00],
        '-' => [0x08, 0x08, 0x08, 0x08, 0x08],
        ':' => [0x00, 0x36, 0x36, 0x00, 0x00],
        '/' => [0x20, 0x10, 0x08, 0x04, 0x02],
        '%' => [0x23, 0x13, 0x08, 0x64, 0x62],
        '=' => [0x14, 0x14, 0x14, 0x14, 0x14],
        _ => [0; 5],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHITE: Rgb<u8> = Rgb([255, 255, 255]);

    fn sum(image: &RgbImage) -> f64 {
        image.pixels().map(|p| f64::from(p.0[0]) / 255.0).sum()
    }

    #[test]
    fn a_line_covers_length_times_width_whatever_its_slope() {
        for end in [Vec2::new(80.0, 20.0), Vec2::new(20.0, 80.0), Vec2::new(75.0, 61.0)] {
            let mut image = RgbImage::new(100, 100);
            let start = Vec2::new(20.0, 20.0);
            line(&mut image, start, end, 3.0, WHITE);
            // The round ends add a disc.
            let area = (end - start).norm() * 3.0 + std::f64::consts::PI * 1.5 * 1.5;
            assert!((sum(&image) - area).abs() < 0.03 * area, "{} of {area}", sum(&image));
        }
    }

    #[test]
    fn a_line_from_far_outside_meets_the_same_pixels() {
        let (mut near, mut far) = (RgbImage::new(50, 50), RgbImage::new(50, 50));
        line(&mut near, Vec2::new(-50.0, 25.0), Vec2::new(100.0, 25.0), 2.0, WHITE);
        line(&mut far, Vec2::new(-1e12, 25.0), Vec2::new(1e12, 25.0), 2.0, WHITE);
        assert_eq!(near, far);
        assert!(sum(&near) > 99.0);
    }

    #[test]
    fn points_that_are_not_finite_or_all_outside_draw_nothing() {
        let mut image = RgbImage::new(20, 20);
        line(&mut image, Vec2::new(f64::NAN, 1.0), Vec2::new(5.0, 5.0), 2.0, WHITE);
        line(&mut image, Vec2::new(1.0, 1.0), Vec2::new(f64::INFINITY, 5.0), 2.0, WHITE);
        line(&mut image, Vec2::new(-90.0, 1.0), Vec2::new(-5.0, 90.0), 2.0, WHITE);
        assert_eq!(sum(&image), 0.0);
    }

    #[test]
    fn text_stays_inside_the_image() {
        let mut image = RgbImage::new(16, 8);
        assert_eq!(text(&mut image, [10, 3], 2, WHITE, "a1"), 26);
        assert!(sum(&image) > 0.0);
    }
}
