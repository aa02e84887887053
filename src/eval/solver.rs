//! From a network's outputs for one image to poses.

use std::time::Instant;

use anyhow::Result;

use super::estimate::{ClassResult, PoseEstimate};
use super::options::InferOptions;
use super::prediction::{Prediction, Sigma};
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
    /// What standard deviations of rotation and translation are multiplied by.
    calibration: [f64; 2],
}

/// What became of an image.
#[derive(Debug)]
pub struct ImageResult {
    /// Of each class, ascending; several of a class that is seen several times.
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
            calibration: [1.0; 2],
        })
    }

    /// The same, whose poses have their standard deviations of rotation and translation multiplied by measured factors
    /// ([`super::SigmaFactors`]).
    pub fn calibrated(self, rotation: f64, translation: f64) -> Self {
        Self { calibration: [rotation, translation], ..self }
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
        let (mut last_class, mut instance) = (None, 0);
        let classes = decoded.into_iter().map(|Decoded { class, found }| {
            instance = if last_class == Some(class) { instance + 1 } else { 0 };
            last_class = Some(class);
            let place = (place, class, instance);
            let outcome = found.and_then(|found| self.estimate(place, name, found));
            ClassResult { class, obj_id: self.obj_ids[class], outcome }
        });
        let classes = classes.collect();
        ImageResult { classes, decode_s, pnp_s: solving.elapsed().as_secs_f64() }
    }

    fn estimate(
        &self,
        (place, class, instance): (usize, usize, usize),
        name: &str,
        detection: Detection,
    ) -> Result<PoseEstimate, NoDetection> {
        let prediction = |pose: &Pose| Prediction {
            image: name.to_owned(),
            class,
            obj_id: Some(self.obj_ids[class]),
            score: detection.score,
            r: pose.r_row_major(),
            t_mm: pose.t_array(),
            inliers: 0,
            residual_px: 0.0,
            inlier_px: 0.0,
            sigma: None,
        };
        let seen = match &detection.evidence {
            Evidence::Correspondences(seen) => seen,
            Evidence::Pose(pose) => {
                let prediction = prediction(pose);
                return Ok(PoseEstimate { prediction, num_correspondences: 0, covariance: None });
            }
        };
        let Correspondences { points, pixels, .. } = seen;
        let seed = pnp_seed(self.seed, place, class, instance);
        let solution = find_pose(&self.camera, points, pixels, &self.ransac, seed)
            .map_err(|why| no_pose(why, seen.len(), &self.ransac))?;
        let widening = solution.inlier_px / self.ransac.inlier_px;
        let [rotation, translation] = self.calibration.map(|factor| factor * widening);
        let covariance = pose_covariance(&self.camera, &solution.pose, seen, &solution.inliers)
            .map(|covariance| covariance.scaled(rotation, translation));
        let prediction = Prediction {
            score: detection.score / widening,
            inliers: solution.inliers.len(),
            residual_px: solution.mean_residual_px,
            inlier_px: solution.inlier_px,
            sigma: covariance.as_ref().map(Sigma::of),
            ..prediction(&solution.pose)
        };
        Ok(PoseEstimate { prediction, num_correspondences: seen.len(), covariance })
    }
}

/// The seed of one PnP, a function of its place alone.
fn pnp_seed(seed: u64, image: usize, class: usize, instance: usize) -> u64 {
    let place = ((class as u64) << 40) ^ ((instance as u64) << 56);
    splitmix64(splitmix64(seed ^ 0x706e_7000).wrapping_add(image as u64) ^ place)
}

/// Why PnP found no pose from `num` correspondences.
fn no_pose(why: NoPose, num: usize, ransac: &RansacConfig) -> NoDetection {
    let (reason, detail) = match why {
        NoPose::TooFew => (
            "too_few_correspondences",
            format!("of {num} correspondences fewer than 4 distinct corners are usable"),
        ),
        NoPose::NoConsensus => (
            "no_consensus",
            format!(
                "PnP found no pose that enough of the {num} correspondences agree with, within {} px",
                ransac.distances_px().map(|d| d.to_string()).collect::<Vec<_>>().join(", then ")
            ),
        ),
        NoPose::Undetermined => (
            "undetermined",
            format!("those of the {num} correspondences that agree do not determine a pose"),
        ),
    };
    NoDetection { reason, detail }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::{dataset, options};

    /// Finds what it holds in every image.
    struct Fixed(Result<Detection, NoDetection>);

    impl Decode for Fixed {
        fn outputs(&self) -> &[OutputShape] {
            &[]
        }

        fn decode(&self, _outputs: &HostOutputs, _image: usize) -> Vec<Decoded> {
            vec![Decoded { class: 0, found: self.0.clone() }]
        }
    }

    fn solve(found: Result<Detection, NoDetection>) -> Result<PoseEstimate, NoDetection> {
        let decoder = Fixed(found);
        let solver = Solver::new(&decoder, vec![7], &options()).unwrap();
        let outputs = HostOutputs::new(vec![], 1, vec![]).unwrap();
        let [class] = solver.solve(3, "a.png", &outputs, 0).classes.try_into().unwrap();
        assert_eq!((class.class, class.obj_id), (0, 7));
        class.outcome
    }

    #[test]
    fn a_pose_that_a_network_gives_is_taken_as_it_is() {
        let pose = dataset().frames[4].objects[0].pose;
        let evidence = Evidence::Pose(pose);
        let found = solve(Ok(Detection { score: 0.5, evidence })).unwrap();
        let p = &found.prediction;
        assert_eq!((p.image.as_str(), p.obj_id, p.score), ("a.png", Some(7), 0.5));
        assert_eq!((p.r, p.t_mm), (pose.r_row_major(), pose.t_array()));
        assert!(found.covariance.is_none());
    }

    #[test]
    fn there_is_a_reason_where_there_is_no_pose() {
        let own = NoDetection { reason: "hidden", detail: "behind".to_owned() };
        assert_eq!(solve(Err(own.clone())).unwrap_err(), own);
        let truth = dataset().frames[1].objects[0].pose;
        let points = dataset().models[0].corners.to_vec();
        let pixels = truth.project(&options().input.camera().unwrap(), &points);
        let with = |points: &[_], pixels: &[_]| {
            let (points, pixels) = (points.to_vec(), pixels.to_vec());
            let seen = Correspondences { points, pixels, group_size: 8 };
            solve(Ok(Detection { score: 0.5, evidence: Evidence::Correspondences(seen) }))
        };
        assert!(with(&points, &pixels).is_ok());
        let few = with(&points[..3], &pixels[..3]).unwrap_err();
        assert_eq!(few.reason, "too_few_correspondences");
        assert!(few.detail.starts_with("of 3 correspondences"), "{few:?}");
    }
}
