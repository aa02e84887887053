//! Where the network's outputs lie in the image.

use super::config::NetworkConfig;
use crate::geom::Vec2;

/// The 16 regression targets of a cell: 8 x, then 8 y, from the anchor's centre in anchor sizes.
pub type CellTarget = [f64; 16];

/// The cells of a level. There is one square anchor a cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Level {
    /// Distance of neighbouring centres, px.
    pub stride: i64,
    /// Side of the anchors, px.
    pub size_px: f64,
    /// Rows of cells.
    pub h: usize,
    /// Columns of cells.
    pub w: usize,
    /// Number of cells in the finer levels.
    pub offset: usize,
}

impl Level {
    /// Number of cells.
    pub fn num_cells(&self) -> usize {
        self.h * self.w
    }

    /// The level's cells, as indices into the grid's.
    pub fn cells(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.num_cells()
    }

    /// The centre of a cell's anchor, px.
    pub fn center_px(&self, row: usize, column: usize) -> [f64; 2] {
        let stride = self.stride as f64;
        [column, row].map(|i| stride / 2.0 + stride * i as f64)
    }

    /// A cell's anchor, px: x1, y1, x2, y2 of its first and last pixel (width = x2 - x1 + 1).
    pub fn anchor_box(&self, row: usize, column: usize) -> [f64; 4] {
        let [x, y] = self.center_px(row, column);
        let half = (self.size_px - 1.0) / 2.0;
        [x - half, y - half, x + half, y + half]
    }
}

/// The cells of all levels for one image size: finest level first, in a level row by row.
#[derive(Debug, Clone, PartialEq)]
pub struct AnchorGrid {
    /// Width of the image, px.
    pub width: usize,
    /// Height of the image, px.
    pub height: usize,
    /// The levels, finest first.
    pub levels: Vec<Level>,
    /// The anchors' centres, px, by cell.
    pub centers_px: Vec<[f64; 2]>,
    /// For each cell the pixel under its anchor's centre (moved into the image), `y * width + x`.
    pub(super) lookup: Vec<usize>,
}

impl AnchorGrid {
    /// The cells for images of `width` x `height` px; a level has `ceil(size / stride)` cells a side.
    pub fn new(config: &NetworkConfig, width: usize, height: usize) -> Self {
        let mut levels = vec![];
        let mut centers_px = vec![];
        let mut lookup = vec![];
        for (stride, &size_px) in config.strides().into_iter().zip(&config.anchor_sizes) {
            let cells = |size: usize| size.div_ceil(stride as usize);
            let level = Level {
                stride,
                size_px,
                h: cells(height),
                w: cells(width),
                offset: centers_px.len(),
            };
            for row in 0..level.h {
                for column in 0..level.w {
                    let center = level.center_px(row, column);
                    centers_px.push(center);
                    let [x, y] = center.map(|v| v as usize);
                    lookup.push(y.min(height - 1) * width + x.min(width - 1));
                }
            }
            levels.push(level);
        }
        Self { width, height, levels, centers_px, lookup }
    }

    /// Number of cells of all levels.
    pub fn num_cells(&self) -> usize {
        self.centers_px.len()
    }

    /// The level of a cell.
    pub fn level_of(&self, cell: usize) -> &Level {
        let after = self.levels.partition_point(|level| level.offset <= cell);
        &self.levels[after - 1]
    }

    /// The anchor sizes, px.
    pub fn sizes_px(&self) -> Vec<f64> {
        self.levels.iter().map(|level| level.size_px).collect()
    }

    /// What a cell is to regress for corners at `pixels`: distance from the anchor's centre in anchor sizes.
    pub fn encode(&self, cell: usize, pixels: &[Vec2; 8]) -> CellTarget {
        let ([cx, cy], size) = (self.centers_px[cell], self.level_of(cell).size_px);
        std::array::from_fn(|i| {
            let p = pixels[i % 8];
            if i < 8 { (p.x - cx) / size } else { (p.y - cy) / size }
        })
    }

    /// The corners that a cell's 16 regressed numbers stand for, px.
    pub fn decode(&self, cell: usize, offsets: &CellTarget) -> [Vec2; 8] {
        let ([cx, cy], size) = (self.centers_px[cell], self.level_of(cell).size_px);
        std::array::from_fn(|i| Vec2::new(cx + offsets[i] * size, cy + offsets[8 + i] * size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_covers_the_image_and_the_levels_follow_each_other() {
        let grid = AnchorGrid::new(&NetworkConfig::widedepth(), 100, 65);
        let shapes: Vec<_> = grid.levels.iter().map(|l| (l.h, l.w, l.offset)).collect();
        assert_eq!(shapes, [(9, 13, 0), (5, 7, 117), (3, 4, 152), (2, 2, 164), (1, 1, 168)]);
        assert_eq!(grid.num_cells(), 169);
        assert_eq!(grid.centers_px[13], [4.0, 12.0]);
        assert_eq!(grid.level_of(116).size_px, 32.0);
        assert_eq!(grid.level_of(117).size_px, 64.0);
        assert_eq!(grid.level_of(168).size_px, 512.0);
        assert_eq!(grid.levels[1].cells(), 117..152);
        // The centre of the last cell, (100, 68), lies outside and looks at the nearest pixel.
        assert_eq!(grid.lookup[116], 64 * 100 + 99);
    }

    #[test]
    fn decoding_undoes_encoding() {
        let grid = AnchorGrid::new(&NetworkConfig::widedepth(), 64, 64);
        let pixels: [Vec2; 8] =
            std::array::from_fn(|i| Vec2::new(3.0 * i as f64 - 7.0, 90.5 - i as f64));
        for cell in [0, 9, 64, 80, 84] {
            let back = grid.decode(cell, &grid.encode(cell, &pixels));
            for (a, b) in back.iter().zip(&pixels) {
                assert!((a - b).norm() < 1e-12);
            }
        }
        // cell 1: centre (12, 4), size 32
        assert_eq!(grid.encode(1, &pixels)[2], (-1.0 - 12.0) / 32.0);
        assert_eq!(grid.encode(1, &pixels)[8 + 2], (88.5 - 4.0) / 32.0);
    }
}
