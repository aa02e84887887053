//! What became of a class in a picture.

use super::prediction::Prediction;
use crate::nn::NoDetection;
use crate::pose::PoseCovariance;

/// What became of a class in a picture.
#[derive(Debug, Clone)]
pub struct ClassResult {
    /// 0-based.
    pub class: usize,
    /// Number of the class's object.
    pub obj_id: u32,
    /// The pose, or why there is none.
    pub outcome: Result<PoseEstimate, NoDetection>,
}

/// A pose and how sure it is.
#[derive(Debug, Clone)]
pub struct PoseEstimate {
    /// The pose.
    pub prediction: Prediction,
    /// Correspondences that PnP was given.
    pub num_correspondences: usize,
    /// Of the pose, where it is asked for and the correspondences tell it.
    pub covariance: Option<PoseCovariance>,
}
