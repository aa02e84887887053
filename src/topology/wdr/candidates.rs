//! From the network's outputs for one image to the 2D-3D correspondences of each class.
//!
//! Pure Rust on slices that lie on the CPU. A cell of class `c` is a candidate when its sigmoid is above the
//! threshold; the size of the box its 8 predicted corners span says how many cells each pyramid level gives. Where several
//! instances of a class are looked for, its cells are first clustered by their boxes.

use std::cmp::Ordering;

use super::targets::{TargetConfig, positives_per_level};
use crate::geom::Vec2;

/// Numbers of one cell and class: 8 x-offsets, then 8 y-offsets.
pub const REG_CHANNELS: usize = 16;

/// How far below the threshold's logit a cell may lie and still have its sigmoid computed: f32 rounding.
const LOGIT_SLACK: f32 = 1e-3;

/// A cell whose box overlaps that of a cluster's best cell by at least this (intersection over union) belongs to the cluster.
const SAME_INSTANCE_IOU: f64 = 0.4;

/// What makes a cell a candidate, and how many of them a level gives.
#[derive(Debug, Clone, PartialEq)]
pub struct CandidateConfig {
    /// Sigmoid above which (strictly) a cell is a candidate, 0 to 1 (the config's `data.CONFIDENCE_TH`).
    pub confidence_threshold: f64,
    /// How many cells of which level: as in training.
    pub targets: TargetConfig,
    /// Most instances of a class in an image; 1 takes all cells of a class as those of one instance, as published.
    pub max_instances: usize,
}

impl Default for CandidateConfig {
    fn default() -> Self {
        Self { confidence_threshold: 0.3, targets: TargetConfig::default(), max_instances: 1 }
    }
}

/// One level's outputs for one image, contiguous.
#[derive(Debug, Clone, Copy)]
pub struct LevelOutput<'a> {
    /// Logits, `[classes, h, w]`.
    pub cls: &'a [f32],
    /// Corner offsets in anchor sizes, `[16 classes, h, w]`: by class, 8 x then 8 y.
    pub reg: &'a [f32],
    /// Rows of cells.
    pub h: usize,
    /// Cells a row.
    pub w: usize,
    /// Distance of two cells, px; cell (i, j) has its centre at `(stride / 2 + stride j, stride / 2 + stride i)`.
    pub stride_px: f64,
    /// Side of the square anchor, px.
    pub anchor_px: f64,
}

/// A selected cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SelectedCell {
    /// Index of the level.
    pub level: usize,
    /// Row-major cell inside the level.
    pub cell: usize,
    /// `sqrt(sigmoid(logit))`.
    pub score: f32,
}

/// What one instance of a class in an image hands to PnP.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassCandidates {
    /// 0-based class.
    pub class: usize,
    /// Largest score of the selected cells.
    pub score: f32,
    /// Extent that decided the spread over the levels, px.
    pub box_size_px: f64,
    /// Candidates per level.
    pub num_available: Vec<usize>,
    /// Cells wanted per level.
    pub num_wanted: Vec<usize>,
    /// The selected cells: levels ascending, in a level by falling score.
    pub cells: Vec<SelectedCell>,
    /// Predicted corners, px of the internal camera: 8 for each of `cells`, in its order.
    pub pixels: Vec<Vec2>,
}

/// The correspondences of every class that has a selected cell, ascending by class; of each of its instances, by falling
/// confidence of their best cells.
///
/// Rules (WDR's post-processor): a cell is a candidate when `sigmoid > confidence_threshold`. The box size of a
/// class comes from going through the levels in order: when the level's most confident cell beats the best
/// confidence so far, that confidence is kept, and the cell's box extent (the larger of width and height of its 8
/// points) is kept *only if it is larger than the extent so far*; so the extent need not be that of the most
/// confident cell. The extent says how many cells each level gives
/// ([`positives_per_level`]): its best ones by score, ties by cell number. A pixel is anchor centre + prediction x anchor size.
///
/// With `max_instances` above 1 these rules hold for each cluster of a class's candidates by itself: the most confident cell that
/// no cluster has begins one, with all cells left whose boxes overlap its box by 0.4 (intersection over union) or more.
///
/// Deviation: a cell with an offset that is not finite is not a candidate.
///
/// # Panics
/// When a slice of `levels` has not the length that `num_classes`, `h` and `w` say.
pub fn select(
    levels: &[LevelOutput],
    num_classes: usize,
    config: &CandidateConfig,
) -> Vec<ClassCandidates> {
    for (k, l) in levels.iter().enumerate() {
        let num_cells = l.h * l.w;
        assert_eq!(l.cls.len(), num_classes * num_cells, "level {k}: number of logits");
        assert_eq!(l.reg.len(), num_classes * REG_CHANNELS * num_cells, "level {k}: regressions");
    }
    (0..num_classes).flat_map(|class| select_class(levels, class, config)).collect()
}

/// The largest confidence (sigmoid) of a class's cells, 0 without any number.
pub fn best_confidence(levels: &[LevelOutput], class: usize) -> f64 {
    let logits = levels.iter().flat_map(|l| &l.cls[class * l.h * l.w..(class + 1) * l.h * l.w]);
    let best = logits.copied().filter(|v| !v.is_nan()).fold(f32::NEG_INFINITY, f32::max);
    1.0 / (1.0 + (-f64::from(best)).exp())
}

fn select_class(
    levels: &[LevelOutput],
    class: usize,
    config: &CandidateConfig,
) -> Vec<ClassCandidates> {
    let mut available: Vec<Vec<SelectedCell>> =
        levels.iter().enumerate().map(|(k, l)| candidates_of_level(l, k, class, config)).collect();
    for cells in &mut available {
        cells.sort_by(by_score);
    }
    if config.max_instances <= 1 {
        return select_instance(levels, class, &available, config).into_iter().collect();
    }
    let clusters = clusters(levels, class, &available, config.max_instances);
    clusters.iter().filter_map(|cells| select_instance(levels, class, cells, config)).collect()
}

/// The more confident cell first; equal ones by level and place, so that the order is fixed.
fn by_score(a: &SelectedCell, b: &SelectedCell) -> Ordering {
    let score = b.score.partial_cmp(&a.score).unwrap_or(Ordering::Equal);
    score.then((a.level, a.cell).cmp(&(b.level, b.cell)))
}

/// The candidates of a class, a level each by falling score, as at most `most` clusters of the same form: each the cells whose
/// boxes overlap that of its most confident one, the most confident cluster first.
fn clusters(
    levels: &[LevelOutput],
    class: usize,
    available: &[Vec<SelectedCell>],
    most: usize,
) -> Vec<Vec<Vec<SelectedCell>>> {
    let mut left: Vec<(SelectedCell, PixelBox)> = (available.iter().flatten())
        .map(|cell| (*cell, PixelBox::of(&corners_px(&levels[cell.level], class, cell.cell))))
        .collect();
    left.sort_by(|a, b| by_score(&a.0, &b.0));
    let mut clusters = Vec::new();
    while let (Some((_, first)), true) = (left.first().copied(), clusters.len() < most) {
        let mut cluster = vec![Vec::new(); levels.len()];
        left.retain(|(cell, own)| {
            // A box without an area overlaps nothing; the first cell is its cluster's in any case.
            let belongs = *own == first || own.iou(&first) >= SAME_INSTANCE_IOU;
            if belongs {
                cluster[cell.level].push(*cell);
            }
            !belongs
        });
        clusters.push(cluster);
    }
    clusters
}

/// A box in an image, px.
#[derive(Debug, Clone, Copy, PartialEq)]
struct PixelBox {
    low: Vec2,
    high: Vec2,
}

impl PixelBox {
    /// The box about points.
    fn of(points: &[Vec2; 8]) -> Self {
        let first = points[0];
        let low = points.iter().fold(first, |low, p| low.inf(p));
        Self { low, high: points.iter().fold(first, |high, p| high.sup(p)) }
    }

    fn area(&self) -> f64 {
        let sides = self.high - self.low;
        sides.x.max(0.0) * sides.y.max(0.0)
    }

    /// Intersection over union; 0 of two boxes without an area.
    fn iou(&self, other: &Self) -> f64 {
        let common = Self { low: self.low.sup(&other.low), high: self.high.inf(&other.high) };
        let union = self.area() + other.area() - common.area();
        if union > 0.0 { common.area() / union } else { 0.0 }
    }
}

/// What the cells of an instance, a level each by falling score, hand to PnP; none where no level is to give one.
fn select_instance(
    levels: &[LevelOutput],
    class: usize,
    available: &[Vec<SelectedCell>],
    config: &CandidateConfig,
) -> Option<ClassCandidates> {
    let mut best_score = 0.0;
    let mut box_size_px = 0.0;
    for first in available.iter().filter_map(|cells| cells.first()) {
        if first.score > best_score {
            best_score = first.score;
            let corners = corners_px(&levels[first.level], class, first.cell);
            box_size_px = extent_px(&corners).max(box_size_px);
        }
    }
    if best_score == 0.0 {
        return None;
    }
    let anchors: Vec<f64> = levels.iter().map(|l| l.anchor_px).collect();
    let num_wanted = positives_per_level(box_size_px, &anchors, &config.targets);
    let num_available = available.iter().map(Vec::len).collect();
    let cells: Vec<SelectedCell> = available
        .iter()
        .zip(&num_wanted)
        .flat_map(|(cells, &wanted)| cells.iter().take(wanted).copied())
        .collect();
    let score = cells.iter().map(|c| c.score).reduce(f32::max)?;
    let pixels = cells.iter().flat_map(|c| corners_px(&levels[c.level], class, c.cell)).collect();
    Some(ClassCandidates { class, score, box_size_px, num_available, num_wanted, cells, pixels })
}

fn candidates_of_level(
    level: &LevelOutput,
    index: usize,
    class: usize,
    config: &CandidateConfig,
) -> Vec<SelectedCell> {
    let num_cells = level.h * level.w;
    let threshold = config.confidence_threshold as f32;
    let logit_floor = (threshold / (1.0 - threshold)).ln() - LOGIT_SLACK;
    level.cls[class * num_cells..(class + 1) * num_cells]
        .iter()
        .enumerate()
        .filter(|&(_, &logit)| logit >= logit_floor)
        .filter_map(|(cell, &logit)| {
            let sigmoid = 1.0 / (1.0 + (-logit).exp());
            (sigmoid > threshold && offsets(level, class, cell).all(f32::is_finite))
                .then(|| SelectedCell { level: index, cell, score: sigmoid.sqrt() })
        })
        .collect()
}

/// The 16 regressions of a cell.
fn offsets<'a>(
    level: &LevelOutput<'a>,
    class: usize,
    cell: usize,
) -> impl Iterator<Item = f32> + 'a {
    let num_cells = level.h * level.w;
    let reg = level.reg;
    (0..REG_CHANNELS).map(move |c| reg[(class * REG_CHANNELS + c) * num_cells + cell])
}

fn corners_px(level: &LevelOutput, class: usize, cell: usize) -> [Vec2; 8] {
    let center = |i: usize| level.stride_px / 2.0 + level.stride_px * i as f64;
    let (x, y) = (center(cell % level.w), center(cell / level.w));
    let mut d = [0.0; REG_CHANNELS];
    for (d, v) in d.iter_mut().zip(offsets(level, class, cell)) {
        *d = f64::from(v) * level.anchor_px;
    }
    std::array::from_fn(|k| Vec2::new(x + d[k], y + d[k + 8]))
}

/// The larger of width and height of the points' box, px.
fn extent_px(points: &[Vec2; 8]) -> f64 {
    let span = |v: fn(&Vec2) -> f64| {
        let high = points.iter().map(v).fold(f64::NEG_INFINITY, f64::max);
        let low = points.iter().map(v).fold(f64::INFINITY, f64::min);
        high - low
    };
    span(|p| p.x).max(span(|p| p.y))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logit(p: f64) -> f32 {
        (p / (1.0 - p)).ln() as f32
    }

    /// Offsets of one class for `num_cells` cells: a box of `half` anchor sizes about each centre.
    fn boxes(num_cells: usize, half: f32) -> Vec<f32> {
        (0..REG_CHANNELS)
            .flat_map(|c| {
                // x offsets: corner k right when k >= 4; y offsets: corner k below when k is odd.
                let right = if c < 8 { c >= 4 } else { c % 2 == 1 };
                std::iter::repeat_n(if right { half } else { -half }, num_cells)
            })
            .collect()
    }

    fn level<'a>(cls: &'a [f32], reg: &'a [f32], w: usize, stride: f64) -> LevelOutput<'a> {
        let h = cls.len() / w;
        LevelOutput { cls, reg, h, w, stride_px: stride, anchor_px: 4.0 * stride }
    }

    #[test]
    fn corners_are_the_center_plus_offset_times_anchor() {
        let cls = [logit(0.1), logit(0.9)];
        let reg = boxes(2, 0.5);
        let found = select(&[level(&cls, &reg, 2, 8.0)], 1, &CandidateConfig::default());
        assert_eq!(found.len(), 1);
        let f = &found[0];
        assert_eq!((f.cells.len(), f.cells[0].cell, f.box_size_px), (1, 1, 32.0));
        assert!((f64::from(f.score) - 0.9f64.sqrt()).abs() < 1e-6);
        // Centre of cell (0, 1) is (12, 4); half an anchor is 16 px.
        assert_eq!(f.pixels[0], Vec2::new(-4.0, -12.0));
        assert_eq!(f.pixels[5], Vec2::new(28.0, 20.0));
    }

    #[test]
    fn the_extent_stays_when_a_more_confident_later_level_has_a_smaller_box() {
        let near = [logit(0.8)];
        let far = [logit(0.9)];
        let (large, small) = (boxes(1, 1.0), boxes(1, 0.1));
        let found = select(
            &[level(&near, &large, 1, 8.0), level(&far, &small, 1, 16.0)],
            1,
            &CandidateConfig::default(),
        );
        assert_eq!(found[0].box_size_px, 64.0);
        assert!((f64::from(found[0].score) - 0.9f64.sqrt()).abs() < 1e-6);
    }

    #[test]
    fn classes_read_their_own_channels() {
        let cls = [logit(0.01), logit(0.9)]; // two classes, one cell
        let reg: Vec<f32> = boxes(1, 0.25).into_iter().chain(boxes(1, 0.5)).collect();
        let level = LevelOutput { h: 1, ..level(&cls, &reg, 1, 8.0) };
        let found = select(&[level], 2, &CandidateConfig::default());
        assert_eq!((found.len(), found[0].class, found[0].box_size_px), (1, 1, 32.0));
    }

    /// Two levels of one class with an instance at the left and a fainter one at the right of the first level.
    fn two_instances() -> ([f32; 16], Vec<f32>) {
        let mut cls = [logit(0.05); 16];
        (cls[1], cls[2], cls[14]) = (logit(0.8), logit(0.9), logit(0.6));
        (cls, boxes(16, 0.5))
    }

    #[test]
    fn instances_are_clusters_of_boxes_by_falling_confidence() {
        let (cls, reg) = two_instances();
        let with = |max_instances| {
            let config = CandidateConfig { max_instances, ..CandidateConfig::default() };
            select(&[level(&cls, &reg, 16, 8.0)], 1, &config)
        };
        let cells = |found: &ClassCandidates| -> Vec<usize> {
            found.cells.iter().map(|cell| cell.cell).collect()
        };
        // As published: all cells are of one object.
        let one = with(1);
        assert_eq!((one.len(), cells(&one[0])), (1, vec![2, 1, 14]));
        let two = with(2);
        assert_eq!(two.iter().map(cells).collect::<Vec<_>>(), [vec![2, 1], vec![14]]);
        assert!(two[0].score > two[1].score);
        assert_eq!((two[1].pixels.len(), two[1].class), (8, 0));
        assert_eq!(with(5), two);
    }

    #[test]
    fn cells_of_one_object_on_several_levels_are_one_cluster() {
        let (fine, coarse) = ([logit(0.8)], [logit(0.9)]);
        // Boxes of 32 px about (4, 4) and about (8, 8): they overlap by 0.62.
        let (small, large) = (boxes(1, 0.5), boxes(1, 0.25));
        let levels = [level(&fine, &small, 1, 8.0), level(&coarse, &large, 1, 16.0)];
        let config = CandidateConfig { max_instances: 3, ..CandidateConfig::default() };
        let found = select(&levels, 1, &config);
        assert_eq!(found, select(&levels, 1, &CandidateConfig::default()));
        assert_eq!((found.len(), found[0].cells.len()), (1, 2));
    }

    #[test]
    fn boxes_without_an_area_are_told_apart() {
        let cls = [logit(0.9), logit(0.8)];
        let reg = vec![0.0; 2 * REG_CHANNELS];
        let config = CandidateConfig { max_instances: 3, ..CandidateConfig::default() };
        let found = select(&[level(&cls, &reg, 2, 8.0)], 1, &config);
        // Their size says that no level has a cell for them.
        assert!(found.is_empty());
        assert_eq!(clusters(&[level(&cls, &reg, 2, 8.0)], 0, &[candidates(&cls)], 3).len(), 2);
    }

    fn candidates(cls: &[f32]) -> Vec<SelectedCell> {
        let cell = |cell| SelectedCell { level: 0, cell, score: 1.0 - cell as f32 / 10.0 };
        (0..cls.len()).map(cell).collect()
    }

    #[test]
    fn cells_that_are_not_finite_or_not_above_the_threshold_are_no_candidates() {
        let cls = [f32::NAN, logit(0.29), logit(0.9), logit(0.8)];
        let mut reg = boxes(4, 0.5);
        reg[3 * 4 + 2] = f32::INFINITY;
        let found = select(&[level(&cls, &reg, 4, 8.0)], 1, &CandidateConfig::default());
        assert_eq!(found[0].cells.iter().map(|c| c.cell).collect::<Vec<_>>(), [3]);
        reg.fill(f32::NAN);
        assert!(select(&[level(&cls, &reg, 4, 8.0)], 1, &CandidateConfig::default()).is_empty());
    }

    #[test]
    fn equal_scores_go_by_cell_so_that_the_order_is_fixed() {
        let cls = [logit(0.5); 40];
        let reg = boxes(40, 0.5);
        let found = select(&[level(&cls, &reg, 8, 8.0)], 1, &CandidateConfig::default());
        assert_eq!(found[0].cells.len(), 10);
        assert!(found[0].cells.iter().enumerate().all(|(i, c)| c.cell == i));
    }
}
