//! A predicted pose: what every file of predictions holds.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::geom::Pose;

/// One predicted pose; a line of a predictions file. An object that was not found has no line.
///
/// Keys of the file: `image`, `class`, `obj_id` (may be left out), `score`, `R`, `t`, `inliers`, `residual`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Path of the image, as in the dataset's list.
    pub image: String,
    /// 0-based class: the rank of the mesh's file name.
    pub class: usize,
    /// Number in the mesh's file name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obj_id: Option<u32>,
    /// Confidence, larger is surer; of this program's, 0 to 1: the largest `sqrt(sigmoid)` of the cells used.
    pub score: f64,
    /// Rotation from the object's to the camera's frame, row-major.
    #[serde(rename = "R")]
    pub r: [f64; 9],
    /// Translation, mm.
    #[serde(rename = "t")]
    pub t_mm: [f64; 3],
    /// Correspondences that agree with the pose; 0 where the program that found it does not say.
    pub inliers: usize,
    /// Mean distance of the inliers' reprojections, px of the internal camera; 0 where it is not said.
    #[serde(rename = "residual")]
    pub residual_px: f64,
}

impl Prediction {
    /// The pose.
    ///
    /// # Errors
    /// If a number is not finite or `R` is not a rotation; names image and class.
    pub fn pose(&self) -> Result<Pose> {
        Pose::from_row_major(&self.r, &self.t_mm)
            .with_context(|| format!("prediction of class {} in image {}", self.class, self.image))
    }
}
