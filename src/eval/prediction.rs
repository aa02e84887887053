//! A predicted pose: what every file of predictions holds.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::geom::Pose;
use crate::pose::PoseCovariance;

/// One predicted pose; a line of a predictions file. An object that was not found has no line.
///
/// Keys of the file: `image`, `class`, `obj_id` (may be left out), `score`, `R`, `t`, `inliers`, `residual`, and where they are
/// known `inlier_px`, `sigma_r_rad`, `sigma_t_mm`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Path of the image, as in the dataset's list.
    pub image: String,
    /// 0-based class: the rank of the mesh's file name.
    pub class: usize,
    /// Number in the mesh's file name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obj_id: Option<u32>,
    /// Confidence, larger is surer; of this program's, 0 to 1: the largest `sqrt(sigmoid)` of the cells used, divided by 2 or 4 where
    /// PnP found no pose within `evaluation.ransac.inlier_px` but within so many times it.
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
    /// Within which distance inliers agree, px of the internal camera; 0 where it is not said.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub inlier_px: f64,
    /// How sure the pose is; none where that is not known.
    #[serde(flatten)]
    pub sigma: Option<Sigma>,
}

/// Standard deviations of a pose, in the axes of the camera.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sigma {
    /// About x, y, z, rad.
    #[serde(rename = "sigma_r_rad")]
    pub rotation_rad: [f64; 3],
    /// Along x, y, z, mm.
    #[serde(rename = "sigma_t_mm")]
    pub translation_mm: [f64; 3],
}

impl Sigma {
    /// Those of a covariance.
    pub fn of(covariance: &PoseCovariance) -> Self {
        Self {
            rotation_rad: covariance.sigma_rotation_rad(),
            translation_mm: covariance.sigma_translation_mm(),
        }
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
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
