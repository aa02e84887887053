//! Which cells are to answer for which object; no tensors, one image at a time.

use anyhow::{Result, ensure};
use rand::{Rng, RngCore};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::anchors::AnchorGrid;
use crate::geom::{Camera, Corners, Pose, Vec2, Vec3};

/// How many cells an object gets on which level; the default is the published setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TargetConfig {
    /// Cells wanted for an object over all levels.
    #[schemars(range(min = 1, max = 1000))]
    pub positive_num: u32,
    /// How fast a level's fraction of the cells falls with the squared octaves between the object's and its anchors'
    /// size.
    #[schemars(range(min = 0))]
    pub positive_lambda: f64,
}

impl Default for TargetConfig {
    fn default() -> Self {
        Self { positive_num: 10, positive_lambda: 1.0 }
    }
}

/// An object to be found in an image.
#[derive(Debug, Clone)]
pub struct ObjectTarget {
    /// Class, from 0.
    pub class: usize,
    /// Its pose under the internal camera.
    pub pose: Pose,
    /// The corners to regress, object frame, mm.
    pub corners: Corners,
    /// The mesh's diameter, mm.
    pub diameter_mm: f64,
}

/// How the cells of an object are chosen from those on its mask.
pub enum Draw<'a> {
    /// At random, without replacement.
    Random(&'a mut dyn RngCore),
    /// The first ones, row by row: what the reference data was made with.
    FirstInOrder,
}

/// Cells of a level for an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LevelCount {
    /// Wanted by the object's size.
    pub wanted: usize,
    /// On the object's mask.
    pub on_mask: usize,
    /// Chosen.
    pub taken: usize,
}

/// An object as the losses need it.
#[derive(Debug, Clone)]
pub struct AssignedObject {
    /// Class, from 0.
    pub class: usize,
    /// The corners in the camera frame, mm.
    pub corners_cam_mm: [Vec3; 8],
    /// The corners in the image, px.
    pub pixels: [Vec2; 8],
    /// The mesh's diameter, mm.
    pub diameter_mm: f64,
    /// Longer side of the corners' box, + 1, px.
    pub span_px: f64,
    /// Cells by level.
    pub levels: Vec<LevelCount>,
}

/// A cell that is to answer for an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Positive {
    /// Index into the grid's cells.
    pub cell: usize,
    /// Index into [`Assignment::objects`].
    pub object: usize,
}

/// The targets of one image.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// By cell: class + 1, 0 background, -1 ignored (on a mask, not chosen).
    pub labels: Vec<i32>,
    /// The cells with a label above 0, ascending.
    pub positives: Vec<Positive>,
    /// The image's objects.
    pub objects: Vec<AssignedObject>,
}

/// How many cells an object of `span_px` gets on each level: `positive_num` shared out by
/// `exp(-lambda log2(span / size)^2)`, each fraction rounded, a half up.
pub fn positives_per_level(span_px: f64, sizes_px: &[f64], config: &TargetConfig) -> Vec<usize> {
    if !(span_px.is_finite() && span_px > 0.0) {
        return vec![0; sizes_px.len()];
    }
    let exponents: Vec<f64> = sizes_px
        .iter()
        .map(|size| -config.positive_lambda * (span_px / size).log2().powi(2))
        .collect();
    // Fractions do not change with a common factor; this one keeps the largest at 1.
    let largest = exponents.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let weights: Vec<f64> = exponents.iter().map(|e| (e - largest).exp()).collect();
    let sum: f64 = weights.iter().sum();
    let num = f64::from(config.positive_num);
    weights.iter().map(|w| (num * w / sum + 0.5).floor() as usize).collect()
}

/// Chooses the cells that answer for an image's objects.
///
/// From each level as many cells as [`positives_per_level`] says (or all there are) are drawn, without
/// replacement, among those whose anchor's centre lies on the object's visible mask. The other cells on a mask are
/// ignored, all else is background.
///
/// # Shapes
/// - `mask`: `[height, width]` of the grid; 0 background, `i + 1` is `objects[i]`
///
/// # Errors
/// If the mask has another size or names an object that is not there, or an object has a diameter that is
/// not positive or a corner that is not in front of the camera.
pub fn assign(
    grid: &AnchorGrid,
    config: &TargetConfig,
    camera: &Camera,
    objects: &[ObjectTarget],
    mask: &[u8],
    mut draw: Draw<'_>,
) -> Result<Assignment> {
    ensure!(
        mask.len() == grid.width * grid.height,
        "the mask has {} pixels, expected {} x {}",
        mask.len(),
        grid.width,
        grid.height
    );
    let mut labels = vec![0i32; grid.num_cells()];
    // Cells on the mask, by object and level.
    let mut on_mask = vec![vec![Vec::new(); grid.levels.len()]; objects.len()];
    for (i, level) in grid.levels.iter().enumerate() {
        for cell in level.cells() {
            let value = usize::from(mask[grid.lookup[cell]]);
            if value > 0 {
                ensure!(
                    value <= objects.len(),
                    "the mask names object {value}, but there are {}",
                    objects.len()
                );
                labels[cell] = -1;
                on_mask[value - 1][i].push(cell);
            }
        }
    }
    let sizes_px = grid.sizes_px();
    let mut positives = vec![];
    let mut assigned = vec![];
    for (index, (object, by_level)) in objects.iter().zip(&mut on_mask).enumerate() {
        let mut target = locate(index, object, camera)?;
        let wanted = positives_per_level(target.span_px, &sizes_px, config);
        for (cells, wanted) in by_level.iter_mut().zip(wanted) {
            let on_mask = cells.len();
            let taken = take(cells, wanted, &mut draw);
            target.levels.push(LevelCount { wanted, on_mask, taken: taken.len() });
            for &cell in taken {
                labels[cell] = object.class as i32 + 1;
                positives.push(Positive { cell, object: index });
            }
        }
        assigned.push(target);
    }
    positives.sort_unstable_by_key(|p| p.cell);
    Ok(Assignment { labels, positives, objects: assigned })
}

/// An object in the camera frame and in the image, without cells.
fn locate(index: usize, object: &ObjectTarget, camera: &Camera) -> Result<AssignedObject> {
    let diameter_mm = object.diameter_mm;
    ensure!(
        diameter_mm.is_finite() && diameter_mm > 0.0,
        "object {index} has a diameter of {diameter_mm} mm, expected more than 0"
    );
    let corners_cam_mm = object.corners.map(|corner| object.pose.apply(&corner));
    ensure!(
        corners_cam_mm.iter().all(|x| x.iter().all(|v| v.is_finite()) && x.z > 0.0),
        "object {index} has a corner that is not in front of the camera (t = {:?} mm)",
        object.pose.t_array()
    );
    let pixels = corners_cam_mm.map(|x| camera.project(&x));
    let extent = |axis: usize| {
        let values = pixels.iter().map(|p| p[axis]);
        values.clone().fold(f64::NEG_INFINITY, f64::max) - values.fold(f64::INFINITY, f64::min)
    };
    let span_px = extent(0).max(extent(1)) + 1.0;
    let class = object.class;
    Ok(AssignedObject { class, corners_cam_mm, pixels, diameter_mm, span_px, levels: vec![] })
}

/// `wanted` of the cells, or all; moves them to the front.
fn take<'c>(cells: &'c mut [usize], wanted: usize, draw: &mut Draw<'_>) -> &'c [usize] {
    let num = wanted.min(cells.len());
    if let Draw::Random(rng) = draw
        && num < cells.len()
    {
        // The first steps of a Fisher-Yates shuffle.
        for i in 0..num {
            let j = rng.random_range(i..cells.len());
            cells.swap(i, j);
        }
    }
    &cells[..num]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::box_corners;
    use crate::seed;
    use crate::topology::wdr::NetworkConfig;

    fn object(z_mm: f64) -> ObjectTarget {
        let mut pose = Pose::identity();
        pose.t_mm.z = z_mm;
        let corners = box_corners(&[[-50.0; 3], [50.0; 3]]);
        ObjectTarget { class: 1, pose, corners, diameter_mm: 173.2 }
    }

    fn scene() -> (AnchorGrid, Camera) {
        let grid = AnchorGrid::new(&NetworkConfig::widedepth(), 128, 128);
        (grid, Camera::new(150.0, 150.0, 64.0, 64.0).unwrap())
    }

    #[test]
    fn an_object_of_an_anchors_size_gets_most_of_its_cells_there() {
        let sizes = [32.0, 64.0, 128.0, 256.0, 512.0];
        // Fractions of 10 over e^0 + 2 e^-1 + e^-4 + e^-9: 0.1, 2.1, 5.7, 2.1, 0.1.
        let config = TargetConfig::default();
        assert_eq!(positives_per_level(128.0, &sizes, &config), [0, 2, 6, 2, 0]);
        assert_eq!(positives_per_level(1e-300, &sizes, &config), [10, 0, 0, 0, 0]);
        assert_eq!(positives_per_level(f64::NAN, &sizes, &config), [0; 5]);
        // Equal fractions of 2.5 are rounded up.
        let flat = TargetConfig { positive_lambda: 0.0, ..config };
        assert_eq!(positives_per_level(77.0, &sizes[..4], &flat), [3, 3, 3, 3]);
    }

    #[test]
    fn cells_on_the_mask_are_chosen_or_ignored_and_the_draw_is_its_seeds() {
        let (grid, camera) = scene();
        let mask: Vec<u8> =
            (0..128 * 128).map(|i| u8::from((32..96).contains(&(i % 128)))).collect();
        let draw = |seed: u64| {
            let mut rng = seed::stream(seed, &[]);
            let draw = Draw::Random(&mut rng);
            assign(&grid, &TargetConfig::default(), &camera, &[object(800.0)], &mask, draw).unwrap()
        };
        let a = draw(1);
        // Span of the nearer face: 100 / 750 * 150 + 1 = 21 px.
        assert!((a.objects[0].span_px - 21.0).abs() < 1e-9);
        let counts: Vec<_> =
            a.objects[0].levels.iter().map(|l| (l.wanted, l.on_mask, l.taken)).collect();
        assert_eq!(counts, [(9, 128, 9), (1, 32, 1), (0, 8, 0), (0, 2, 0), (0, 1, 0)]);
        assert_eq!(a.positives.len(), 10);
        assert!(a.positives.windows(2).all(|p| p[0].cell < p[1].cell));
        assert!(a.positives.iter().all(|p| a.labels[p.cell] == 2));
        let of = |label| a.labels.iter().filter(|&&l| l == label).count();
        assert_eq!((of(-1), of(0), of(2)), (128 + 32 + 8 + 2 + 1 - 10, 341 - 171, 10));
        assert_eq!(a.labels, draw(1).labels);
        assert_ne!(a.labels, draw(2).labels);
    }

    #[test]
    fn every_cell_on_the_mask_is_drawn_equally_often() {
        let mut rng = seed::stream(5, &[]);
        let mut counts = [0; 5];
        for _ in 0..5000 {
            for &cell in take(&mut [0, 1, 2, 3, 4], 2, &mut Draw::Random(&mut rng)) {
                counts[cell] += 1;
            }
        }
        // 2000 expected, standard deviation 35.
        assert!(counts.iter().all(|c| (1850..2150).contains(c)), "{counts:?}");
    }

    #[test]
    fn what_cannot_be_assigned_is_refused() {
        let (grid, camera) = scene();
        let run = |object: ObjectTarget, mask: &[u8]| {
            let config = TargetConfig::default();
            let result = assign(&grid, &config, &camera, &[object], mask, Draw::FirstInOrder);
            result.unwrap_err().to_string()
        };
        assert!(run(object(800.0), &[0; 7]).contains("7 pixels, expected 128 x 128"));
        let mask = [2; 128 * 128];
        assert!(run(object(800.0), &mask).contains("names object 2, but there are 1"));
        let mask = [0; 128 * 128];
        assert!(run(object(-800.0), &mask).contains("object 0 has a corner that is not in front"));
        let flat = ObjectTarget { diameter_mm: 0.0, ..object(800.0) };
        assert!(run(flat, &mask).contains("diameter of 0 mm"));
    }

    #[test]
    fn loader_threads_may_make_assignments() {
        fn sendable<T: Send + Sync>() {}
        sendable::<AnchorGrid>();
        sendable::<TargetConfig>();
        sendable::<Assignment>();
    }

    #[test]
    fn an_image_without_objects_is_all_background() {
        let (grid, camera) = scene();
        let mask = [0; 128 * 128];
        let a = assign(&grid, &TargetConfig::default(), &camera, &[], &mask, Draw::FirstInOrder);
        let a = a.unwrap();
        assert!(a.positives.is_empty() && a.labels.iter().all(|&l| l == 0));
    }
}
