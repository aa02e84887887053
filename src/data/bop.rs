//! The JSON files of a BOP scene folder, read and written.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use super::DepthScale;

/// `scene_camera.json`: image number (plain or zero padded) to camera.
pub type SceneCamera = BTreeMap<String, FrameCamera>;
/// `scene_gt.json`: image number to the objects in it.
pub type SceneGt = BTreeMap<String, Vec<FrameObject>>;
/// `scene_gt_info.json`: image number to visibility, in the order of `scene_gt.json`.
pub type SceneGtInfo = BTreeMap<String, Vec<FrameObjectInfo>>;

/// A camera of `scene_camera.json`. Other keys of the BOP format are ignored.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrameCamera {
    /// K, row-major, px. A `null` is a number that is not finite.
    #[serde(rename = "cam_K", deserialize_with = "numbers_or_null")]
    pub cam_k: Vec<f64>,
    /// What one unit of a depth image is, mm.
    #[serde(default)]
    pub depth_scale: DepthScale,
}

/// JSON has no NaN and `serde_json` writes `null` for it: read back as NaN, so that the error can say which pose it is.
fn numbers_or_null<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<f64>, D::Error> {
    let numbers = Vec::<Option<f64>>::deserialize(deserializer)?;
    Ok(numbers.into_iter().map(|v| v.unwrap_or(f64::NAN)).collect())
}

/// An object of `scene_gt.json`: `x_cam = R x_model + t`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FrameObject {
    /// R, row-major. A `null` is a number that is not finite, here and in t.
    #[serde(rename = "cam_R_m2c", deserialize_with = "numbers_or_null")]
    pub r: Vec<f64>,
    /// t, mm.
    #[serde(rename = "cam_t_m2c", deserialize_with = "numbers_or_null")]
    pub t_mm: Vec<f64>,
    /// Number in the mesh's file name (`obj_000001.ply` is 1).
    pub obj_id: u32,
}

/// What is read of an object of `scene_gt_info.json`; other keys, such as boxes, are not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
pub struct ObjectVisibility {
    /// Visible pixels.
    pub px_count_visib: u64,
    /// Visible fraction of the silhouette, 0 to 1.
    pub visib_fract: f64,
}

/// Visibility of an object as it is written, `scene_gt_info.json`. Boxes are x, y, width, height, px; -1 when nothing is visible.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FrameObjectInfo {
    /// Box of the whole silhouette, also outside the image.
    pub bbox_obj: [i64; 4],
    /// Box of the visible part.
    pub bbox_visib: [i64; 4],
    /// Pixels of the whole silhouette, also outside the image.
    pub px_count_all: u64,
    /// Pixels of the silhouette with a valid depth.
    pub px_count_valid: u64,
    /// Visible pixels.
    pub px_count_visib: u64,
    /// Visible fraction of the silhouette, 0 to 1.
    pub visib_fract: f64,
}

/// x, y, width and height of the set pixels of rows of `width`, moved by `shift`, as bop_toolkit writes boxes; -1 where there are
/// none.
pub fn mask_box(mask: &[bool], width: usize, shift: [i64; 2]) -> [i64; 4] {
    let set = || mask.iter().enumerate().filter(|(_, set)| **set).map(|(i, _)| i);
    let range = |of: fn(usize, usize) -> usize| {
        let values = || set().map(|i| of(i, width) as i64);
        Some((values().min()?, values().max()?))
    };
    let (Some((left, right)), Some((top, bottom))) = (range(|i, w| i % w), range(|i, w| i / w))
    else {
        return [-1; 4];
    };
    [left + shift[0], top + shift[1], right - left, bottom - top]
}
