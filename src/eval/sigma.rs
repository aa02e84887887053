//! How large the errors of poses are beside the standard deviations that were told for them.

use std::collections::HashMap;

use nalgebra::Rotation3;
use serde::{Deserialize, Serialize};

use super::prediction::{Prediction, Sigma};
use crate::data::Frame;
use crate::geom::Pose;

/// Fewest poses that a factor is computed from.
const MIN_POSES: usize = 10;
/// Median of the absolute value of a Gaussian of unit standard deviation.
const GAUSSIAN_MEDIAN: f64 = 0.674_489_750_196_081_7;

/// Errors over standard deviations, about or along the three axes of the camera.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SigmaFactor {
    /// The median of errors over standard deviations, over that of a Gaussian (0.6745): 1 where the standard deviations are right,
    /// larger where they are too small. Outliers hardly count.
    pub factor: f64,
    /// Percentage of errors within one standard deviation; 68.3 where they are right and errors Gaussian.
    pub percent_within: f64,
    /// Poses that it is from.
    pub num_poses: usize,
}

impl SigmaFactor {
    /// From the ratios of all axes of `num_poses` poses.
    fn of(mut ratios: Vec<f64>, num_poses: usize) -> Option<Self> {
        if num_poses < MIN_POSES {
            return None;
        }
        ratios.sort_by(f64::total_cmp);
        let middle = (ratios[(ratios.len() - 1) / 2] + ratios[ratios.len() / 2]) / 2.0;
        let within = ratios.iter().filter(|r| **r < 1.0).count();
        let percent_within = 100.0 * within as f64 / ratios.len() as f64;
        let factor = middle / GAUSSIAN_MEDIAN;
        (factor > 0.0 && factor.is_finite()).then_some(Self { factor, percent_within, num_poses })
    }
}

/// What told standard deviations of poses have to be multiplied by, measured on images with true poses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SigmaFactors {
    /// Of the rotation; none of fewer than 10 poses of objects without symmetries.
    pub rotation: Option<SigmaFactor>,
    /// Of the translation; none of fewer than 10 poses.
    pub translation: Option<SigmaFactor>,
}

impl SigmaFactors {
    /// Compares each pose that has standard deviations with the nearest true object of its class in its image. Objects of the
    /// classes that `is_symmetric` names tell nothing of rotations. None where no pose has standard deviations.
    pub fn of(
        frames: &[&Frame],
        predictions: &[Prediction],
        is_symmetric: impl Fn(usize) -> bool,
    ) -> Option<Self> {
        let by_image: HashMap<&str, &Frame> =
            frames.iter().map(|frame| (frame.image.as_str(), *frame)).collect();
        let (mut turns, mut shifts) = (Vec::new(), Vec::new());
        let mut num_known = 0;
        for p in predictions {
            let Some(sigma) = &p.sigma else { continue };
            num_known += 1;
            let Some(truth) = by_image.get(p.image.as_str()).and_then(|f| nearest(f, p)) else {
                continue;
            };
            let Ok(pose) = p.pose() else { continue };
            let [turn, shift] = ratios(&pose, truth, sigma);
            if !is_symmetric(p.class) {
                turns.extend(turn);
            }
            shifts.extend(shift);
        }
        let factor = |ratios: Vec<[f64; 3]>| SigmaFactor::of(ratios.concat(), ratios.len());
        (num_known > 0).then(|| Self { rotation: factor(turns), translation: factor(shifts) })
    }

    /// For people.
    pub fn text(&self) -> String {
        let of = |what: &str, factor: &Option<SigmaFactor>| match factor {
            Some(SigmaFactor { factor, percent_within, num_poses }) => format!(
                "{what} {factor:.2} ({percent_within:.0} % of {num_poses} poses' errors within one, right would be 68 %)"
            ),
            None => format!("{what} unknown (fewer than {MIN_POSES} poses)"),
        };
        format!(
            "errors over told standard deviations: {}, {}; `mqat predict --calibrated metrics.json` multiplies by it",
            of("rotation", &self.rotation),
            of("translation", &self.translation)
        )
    }
}

/// The true pose of the object of its class that lies nearest.
fn nearest<'a>(frame: &'a Frame, p: &Prediction) -> Option<&'a Pose> {
    let distance = |pose: &Pose| {
        let [x, y, z] = p.t_mm;
        (pose.t_mm - crate::geom::Vec3::new(x, y, z)).norm_squared()
    };
    let objects = frame.objects.iter().filter(|object| object.class == p.class);
    let poses = objects.map(|object| &object.pose);
    poses.min_by(|a, b| distance(a).total_cmp(&distance(b)))
}

/// Errors over standard deviations by axis, of rotation and translation; none where one of them is 0 or no number.
fn ratios(pose: &Pose, truth: &Pose, sigma: &Sigma) -> [Option<[f64; 3]>; 2] {
    let turn = Rotation3::from_matrix_unchecked(truth.r * pose.r.transpose()).scaled_axis();
    let shift = truth.t_mm - pose.t_mm;
    let over = |error: [f64; 3], sigma: [f64; 3]| {
        let ratios: [f64; 3] = std::array::from_fn(|i| error[i].abs() / sigma[i]);
        ratios.iter().all(|r| r.is_finite()).then_some(ratios)
    };
    [over(turn.into(), sigma.rotation_rad), over(shift.into(), sigma.translation_mm)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::{dataset, predictions_of};
    use crate::geom::{Vec3, moved_by};
    use crate::seed;
    use rand::Rng;

    fn gauss(rng: &mut impl Rng) -> f64 {
        let (a, b): (f64, f64) = (rng.random(), rng.random());
        (-2.0 * (1.0 - a).ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    }

    /// Poses that are off by so many times what they tell.
    fn predictions(factors: [f64; 2]) -> Vec<Prediction> {
        let (sigma_rad, sigma_mm) = ([0.01, 0.02, 0.001], [1.0, 2.0, 30.0]);
        let mut rng = seed::stream(41, &[]);
        let mut off = |p: &Prediction| {
            let mut step = nalgebra::Vector6::zeros();
            for i in 0..3 {
                step[i] = factors[0] * sigma_rad[i] * gauss(&mut rng);
                step[i + 3] = factors[1] * sigma_mm[i] * gauss(&mut rng);
            }
            let pose = moved_by(&p.pose().unwrap(), &step);
            let (r, t_mm) = (pose.r_row_major(), pose.t_array());
            let sigma = Some(Sigma { rotation_rad: sigma_rad, translation_mm: sigma_mm });
            Prediction { r, t_mm, sigma, ..p.clone() }
        };
        let dataset = dataset();
        // Several poses of each image, so that chance is small.
        (0..20).flat_map(|_| predictions_of(&dataset)).map(|p| off(&p)).collect()
    }

    fn factors(predictions: &[Prediction], symmetric: bool) -> Option<SigmaFactors> {
        let dataset = dataset();
        let frames: Vec<&Frame> = dataset.frames.iter().collect();
        SigmaFactors::of(&frames, predictions, |_| symmetric)
    }

    #[test]
    fn the_factor_by_which_errors_are_larger_is_found() {
        for expected in [[1.0, 1.0], [5.0, 3.0], [0.5, 8.0]] {
            let found = factors(&predictions(expected), false).unwrap();
            for (found, expected) in [found.rotation, found.translation].iter().zip(expected) {
                let found = found.unwrap();
                assert!((found.factor / expected - 1.0).abs() < 0.1, "{found:?} {expected}");
                assert_eq!(found.num_poses, 600);
            }
        }
        let right = factors(&predictions([1.0, 1.0]), false).unwrap().translation.unwrap();
        assert!((right.percent_within - 68.3).abs() < 4.0, "{right:?}");
    }

    #[test]
    fn far_wrong_poses_hardly_count_and_symmetric_objects_tell_no_rotation() {
        let mut poses = predictions([2.0, 2.0]);
        for p in poses.iter_mut().step_by(20) {
            p.t_mm = (Vec3::from(p.t_mm) * 3.0).into();
        }
        let found = factors(&poses, true).unwrap();
        assert_eq!(found.rotation, None);
        assert!((found.translation.unwrap().factor / 2.0 - 1.0).abs() < 0.2, "{found:?}");
        assert!(found.text().contains("rotation unknown (fewer than 10 poses)"));
    }

    #[test]
    fn few_poses_and_poses_without_standard_deviations_tell_nothing() {
        assert_eq!(factors(&predictions_of(&dataset()), false), None);
        let few = factors(&predictions([1.0, 1.0])[..9], false).unwrap();
        assert_eq!((few.rotation, few.translation), (None, None));
        let mut perfect = predictions([1.0, 1.0]);
        for p in &mut perfect {
            p.sigma = Some(Sigma { rotation_rad: [0.0; 3], translation_mm: [0.0; 3] });
        }
        let found = factors(&perfect, false).unwrap();
        assert_eq!((found.rotation, found.translation), (None, None));
    }
}
