//! From a network's outputs for one image to poses: what every kind of inference shares.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor};

use super::candidates::{ClassCandidates, LevelOutput, REG_CHANNELS, best_confidence, select};
use super::infer::{Engine, InferOptions};
use super::predictions::Prediction;
use crate::data::ObjectBox;
use crate::geom::{Camera, Vec3};
use crate::model::{AnchorGrid, Outputs};
use crate::pose::{NoPose, PnpSolution, PoseCovariance, Sightings, find_pose, pose_covariance};

/// Correspondences of a cell: one a corner.
const PER_CELL: usize = 8;

/// All outputs of a batch in one transfer: `[n, (C + 16 C) cells]`, of each image the levels' logits `[C, h, w]`, then the
/// levels' regressions `[16 C, h, w]`.
pub(super) fn to_host(
    outputs: &Outputs,
    grid: &AnchorGrid,
    num_images: usize,
    num_classes: usize,
) -> Result<Vec<f32>> {
    let flat: Vec<Tensor> =
        outputs.cls.iter().chain(&outputs.reg).map(|t| t.flatten(1, -1)).collect();
    let joined = Tensor::f_cat(&flat, 1).context("joining the network's outputs")?;
    let joined = joined.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let per_image = num_classes * (1 + REG_CHANNELS) * grid.num_cells();
    ensure!(
        joined.size() == [num_images as i64, per_image as i64],
        "the network's outputs have {:?} numbers, expected [{num_images}, {per_image}]: {} cells",
        joined.size(),
        grid.num_cells()
    );
    Ok(Vec::<f32>::try_from(joined.view([-1]))?)
}

/// What became of a class in an image.
pub(super) struct ClassResult {
    /// 0-based.
    pub class: usize,
    /// Number of its object.
    pub obj_id: u32,
    /// The cells and their correspondences; none when no cell is a candidate.
    pub candidates: Option<ClassCandidates>,
    /// The pose, or why there is none.
    pub outcome: Result<PnpSolution, Missing>,
}

/// Why a class has no pose.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Missing {
    /// No cell is above the threshold; the largest confidence (sigmoid).
    NoCell { best: f64 },
    /// Cells are, but none on a level that gives cells for a box of the size they predict.
    NoLevel { best: f64 },
    /// PnP found none.
    Pnp(NoPose),
}

impl ClassResult {
    /// The pose as a line of a predictions file.
    pub fn prediction(&self, image: &str) -> Option<Prediction> {
        let (solution, candidates) = (self.outcome.as_ref().ok()?, self.candidates.as_ref()?);
        Some(Prediction {
            image: image.to_owned(),
            class: self.class,
            obj_id: Some(self.obj_id),
            score: f64::from(candidates.score),
            r: solution.pose.r_row_major(),
            t_mm: solution.pose.t_array(),
            inliers: solution.inliers.len(),
            residual_px: solution.mean_residual_px,
        })
    }
}

/// What became of an image.
pub(super) struct ImageResult {
    /// Of each class, ascending.
    pub classes: Vec<ClassResult>,
    pub decode_s: f64,
    pub pnp_s: f64,
}

/// What turns outputs into poses.
pub(super) struct Solver<'a> {
    pub grid: AnchorGrid,
    objects: Vec<ObjectBox>,
    camera: Camera,
    options: &'a InferOptions,
}

impl<'a> Solver<'a> {
    /// For the outputs of `network`, which has as many classes as there are `objects`.
    pub fn new(
        network: &dyn Engine,
        objects: Vec<ObjectBox>,
        options: &'a InferOptions,
    ) -> Result<Self> {
        let grid = network.grid(options.input.width, options.input.height);
        Self::with_grid(grid, objects, options)
    }

    /// For outputs that lie on `grid`.
    pub fn with_grid(
        grid: AnchorGrid,
        objects: Vec<ObjectBox>,
        options: &'a InferOptions,
    ) -> Result<Self> {
        Ok(Self { grid, objects, camera: options.input.camera()?, options })
    }

    /// Confidence (sigmoid) above which a cell counts.
    pub fn threshold(&self) -> f64 {
        self.options.candidates.confidence_threshold
    }

    /// The poses in one image; `index` is its place in its list, by which RANSAC draws.
    pub fn solve(&self, index: usize, values: &[f32]) -> ImageResult {
        let decoding = Instant::now();
        let num_classes = self.objects.len();
        let levels = split_levels(values, &self.grid, num_classes);
        let mut found =
            select(&levels, num_classes, &self.options.candidates).into_iter().peekable();
        let decode_s = decoding.elapsed().as_secs_f64();
        let solving = Instant::now();
        let classes = self.objects.iter().enumerate().map(|(class, object)| {
            let candidates = found.next_if(|c| c.class == class);
            let outcome = match &candidates {
                Some(candidates) => self.pose(index, candidates).map_err(Missing::Pnp),
                None => Err(self.missing(&levels, class)),
            };
            ClassResult { class, obj_id: object.obj_id, candidates, outcome }
        });
        let classes = classes.collect();
        ImageResult { classes, decode_s, pnp_s: solving.elapsed().as_secs_f64() }
    }

    fn pose(&self, index: usize, candidates: &ClassCandidates) -> Result<PnpSolution, NoPose> {
        let points = self.points(candidates);
        let seed = pnp_seed(self.options.seed, index, candidates.class);
        find_pose(&self.camera, &points, &candidates.pixels, &self.options.ransac, seed)
    }

    /// The corner that each pixel shows.
    fn points(&self, candidates: &ClassCandidates) -> Vec<Vec3> {
        let corners = &self.objects[candidates.class].corners;
        corners.iter().copied().cycle().take(candidates.pixels.len()).collect()
    }

    /// How sure the pose of a class is.
    pub fn covariance(&self, result: &ClassResult) -> Option<PoseCovariance> {
        let (solution, candidates) = (result.outcome.as_ref().ok()?, result.candidates.as_ref()?);
        let sightings = Sightings {
            points: &self.points(candidates),
            pixels: &candidates.pixels,
            inliers: &solution.inliers,
            per_cell: PER_CELL,
        };
        pose_covariance(&self.camera, &solution.pose, &sightings)
    }

    fn missing(&self, levels: &[LevelOutput], class: usize) -> Missing {
        let best = best_confidence(levels, class);
        match best > self.options.candidates.confidence_threshold {
            true => Missing::NoLevel { best },
            false => Missing::NoCell { best },
        }
    }
}

/// The seed of one PnP, a function of its place alone.
fn pnp_seed(seed: u64, image: usize, class: usize) -> u64 {
    use crate::seed::splitmix64;
    splitmix64(splitmix64(seed ^ 0x706e_7000).wrapping_add(image as u64) ^ ((class as u64) << 40))
}

/// One image's numbers as levels: all logits come first, then all regressions.
fn split_levels<'a>(
    values: &'a [f32],
    grid: &AnchorGrid,
    num_classes: usize,
) -> Vec<LevelOutput<'a>> {
    let (cls, reg) = values.split_at(num_classes * grid.num_cells());
    grid.levels
        .iter()
        .map(|level| {
            let part = |values: &'a [f32], channels: usize| {
                &values[channels * level.offset..][..channels * level.num_cells()]
            };
            LevelOutput {
                cls: part(cls, num_classes),
                reg: part(reg, num_classes * REG_CHANNELS),
                h: level.h,
                w: level.w,
                stride_px: level.stride as f64,
                anchor_px: level.size_px,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::NetworkConfig;

    #[test]
    fn levels_survive_the_transfer() {
        let network = NetworkConfig::widedepth_tiny();
        let grid = AnchorGrid::new(&network, 64, 48);
        let random = |channels: i64, level: &crate::model::Level| {
            let shape = [2, channels, level.h as i64, level.w as i64];
            let count = shape.iter().product::<i64>();
            // Channels last, as the network's own outputs may be.
            (Tensor::arange(count, (Kind::Float, Device::Cpu)) + level.offset as f64)
                .reshape([shape[0], shape[2], shape[3], shape[1]])
                .permute([0, 3, 1, 2])
        };
        let outputs = Outputs {
            cls: grid.levels.iter().map(|l| random(2, l)).collect(),
            reg: grid.levels.iter().map(|l| random(32, l)).collect(),
        };
        let values = to_host(&outputs, &grid, 2, 2).unwrap();
        let image = &values[values.len() / 2..];
        for (k, level) in split_levels(image, &grid, 2).iter().enumerate() {
            for (own, tensor) in [(level.cls, &outputs.cls[k]), (level.reg, &outputs.reg[k])] {
                let expected = Vec::<f32>::try_from(tensor.get(1).contiguous().view([-1])).unwrap();
                assert_eq!(own, expected, "level {k}");
            }
        }
        assert!(to_host(&outputs, &grid, 2, 1).is_err());
    }
}
