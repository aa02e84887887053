//! Images without their objects.

/// How far around an object's pixels an image is erased, px: a square of 5 x 5 about each.
const RADIUS: usize = 2;

/// Sets the pixels of an image to 0 that are on an object, or at most 2 px from one in each direction.
///
/// # Shapes
/// - `pixels`: `[height, width, 3]`
/// - `mask`: `[height, width]`, any value but 0 where an object is seen
///
/// # Panics
/// If `pixels` or `mask` have another size.
pub fn erase(pixels: &mut [u8], mask: &[u8], width: usize, height: usize) {
    assert_eq!((pixels.len(), mask.len()), (3 * width * height, width * height));
    let reach = |at: usize, size: usize| at.saturating_sub(RADIUS)..(at + RADIUS + 1).min(size);
    // The square is a row of a column: first along the rows, then along the columns.
    let mut wide = vec![false; mask.len()];
    for (y, row) in mask.chunks(width.max(1)).enumerate() {
        for x in (0..width).filter(|&x| row[x] != 0) {
            reach(x, width).for_each(|x| wide[y * width + x] = true);
        }
    }
    for y in 0..height {
        for x in (0..width).filter(|x| wide[y * width + x]) {
            for y in reach(y, height) {
                let at = 3 * (y * width + x);
                pixels[at..at + 3].fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_square_about_each_pixel_of_the_mask_is_erased() {
        let (width, height) = (9, 7);
        let mut mask = vec![0; width * height];
        mask[width + 7] = 1; // row 1, column 7
        let mut pixels = vec![200; 3 * width * height];
        erase(&mut pixels, &mask, width, height);
        for (at, pixel) in pixels.chunks(3).enumerate() {
            let (x, y) = (at % width, at / width);
            let inside = (5..=8).contains(&x) && y <= 3;
            assert_eq!(pixel, [if inside { 0 } else { 200 }; 3], "{x}, {y}");
        }
    }
}
