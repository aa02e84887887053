//! From a network's outputs for one image to poses.

use std::time::Instant;

use anyhow::Result;

use super::estimate::{ClassResult, PoseEstimate};
use super::options::InferOptions;
use super::prediction::Prediction;
use crate::geom::{Camera, Correspondences, Pose};
use crate::nn::{Decode, Decoded, Detection, Evidence, HostOutputs, NoDetection, OutputShape};
use crate::pose::{NoPose, RansacConfig, find_pose, pose_covariance};
use crate::seed::splitmix64;

/// What turns outputs into poses: a network's decoder, then PnP under the internal camera.
pub struct Solver<'a> {
    decoder: &'a dyn Decode,
    obj_ids: Vec<u32>,
    camera: Camera,
    ransac: RansacConfig,
    seed: u64,
    covariance: bool,
}

/// What became of an image.
#[derive(Debug)]
pub struct ImageResult {
    /// Of each class, ascending.
    pub classes: Vec<ClassResult>,
    /// Reading the outputs, s.
    pub decode_s: f64,
    /// Solving for the poses, s.
    pub pnp_s: f64,
}

impl<'a> Solver<'a> {
    /// For the outputs that `decoder` reads, of classes with the objects of these numbers.
    ///
    /// # Errors
    /// If the internal camera is none.
    pub fn new(decoder: &'a dyn Decode, obj_ids: Vec<u32>, options: &InferOptions) -> Result<Self> {
        Ok(Self {
            decoder,
            obj_ids,
            camera: options.input.camera()?,
            ransac: options.ransac.clone(),
            seed: options.seed,
            covariance: false,
        })
    }

    /// The same, that says of each pose how sure it is.
    pub fn with_covariance(self) -> Self {
        Self { covariance: true, ..self }
    }

    /// The outputs that it takes, in order.
    pub fn outputs(&self) -> &[OutputShape] {
        self.decoder.outputs()
    }

    /// The poses in one image of a batch; `place` is its place in its list, by which RANSAC draws, and `name` what it is
    /// called in results.
    pub fn solve(
        &self,
        place: usize,
        name: &str,
        outputs: &HostOutputs,
        image: usize,
    ) -> ImageResult {
        let decoding = Instant::now();
        let decoded = self.decoder.decode(outputs, image);
        let decode_s = decoding.elapsed().as_secs_f64();
        let solving = Instant::now();
        let classes = decoded.into_iter().map(|Decoded { class, found }| {
            let outcome = found.and_then(|found| self.estimate(place, name, class, found));
            ClassResult { class, obj_id: self.obj_ids[class], outcome }
        });
        let classes = classes.collect();
        ImageResult { classes, decode_s, pnp_s: solving.elapsed().as_secs_f64() }
    }

    fn estimate(
        &self,
        place: usize,
        name: &str,
        class: usize,
        detection: Detection,
    ) -> Result<PoseEstimate, NoDetection> {
        let prediction = |pose: &Pose, inliers, residual_px| Prediction {
            image: name.to_owned(),
            class,
            obj_id: Some(self.obj_ids[class]),
            score: detection.score,
            r: pose.r_row_major(),
            t_mm: pose.t_array(),
            inliers,
            residual_px,
        };
        let seen = match &detection.evidence {
            Evidence::Correspondences(seen) => seen,
            Evidence::Pose(pose) => {
                let prediction = prediction(pose, 0, 0.0);
                return Ok(PoseEstimate { prediction, num_correspondences: 0, covariance: None });
            }
        };
        let Correspondences { points, pixels, .. } = seen;
        let seed = pnp_seed(self.seed, place, class);
        let solution = find_pose(&self.camera, points, pixels, &self.ransac, seed)
            .map_err(|why| no_pose(why, seen.len()))?;
        let covariance = self
            .covariance
            .then(|| pose_covariance(&self.camera, &solution.pose, seen, &solution.inliers));
        Ok(PoseEstimate {
            prediction: prediction(
                &solution.pose,
                solution.inliers.len(),
                solution.mean_residual_px,
            ),
            num_correspondences: seen.len(),
            covariance: covariance.flatten(),
        })
    }
}

/// The seed of one PnP, a function of its place alone.
fn pnp_seed(seed: u64, image: usize, class: usize) -> u64 {
    splitmix64(splitmix64(seed ^ 0x706e_7000).wrapping_add(image as u64) ^ ((class as u64) << 40))
}

/// Why PnP found no pose from `num` correspondences.
fn no_pose(why: NoPose, num: usize) -> NoDetection {
    let (reason, detail) = match why {
        NoPose::TooFew => (
            "too_few_correspondences",
            format!("of {num} correspondences fewer than 4 distinct corners are usable"),
        ),
        NoPose::NoConsensus => (
            "no_consensus",
            format!("PnP found no pose that enough of the {num} correspondences agree with"),
        ),
        NoPose::Undetermined => (
            "undetermined",
            format!("those of the {num} correspondences that agree do not determine a pose"),
        ),
    };
    NoDetection { reason, detail }
}
