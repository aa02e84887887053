//! The data path: BOP folders, samples, augmentation, batches.
//!
//! Start at [`Dataset::open`], which reads a list of images, its scene folders' JSON and the meshes once, and at
//! [`Loader::start`], which turns an epoch of it into batches on worker threads. In between stand [`Preparer`] (one
//! image: decode, warp to the internal camera, augment, relabel) and the warps of [`warp`]. Pictures without labels, of any
//! camera ([`read_camera`]), go through a [`View`], which undoes distortion in the same resampling.
//!
//! Refused, with the file's name: missing or truncated files, poses that are not finite or behind the camera, counts
//! that disagree. Descriptions of one thing are compared with each other (`consistency`): boxes, meshes, diameters and
//! `models_info.json` of an object, distances and diameters, cameras and images. Those in other units are errors, other
//! differences warnings. Pixels leave as bytes; the device normalises them.

mod augment;
pub mod bop;
mod bop_folder;
mod bop_frames;
mod bop_scene;
mod camera_file;
mod check;
mod color;
mod config;
mod consistency;
mod convert;
mod dataset;
mod depth_scale;
mod frame;
mod loader;
mod models;
mod models_info;
mod object;
mod purpose;
mod sample;
mod scene;
mod scene_files;
mod split_list;
mod survey;
mod symmetric_label;
#[cfg(test)]
mod testing;
mod undistort;
mod view;
pub mod warp;

pub use augment::{Augmentation, remap_pose};
pub use bop_folder::{BopFolder, BopTargetLine, BopTargets, VISIBLE_TARGET};
pub use bop_frames::folder_boxes;
pub use bop_scene::{BopFrame, BopObject, BopScene};
pub use camera_file::{CameraFile, read_camera};
pub use check::{FolderCheck, ObjectCheck, SceneCheck, SplitCheck, SplitObject};
pub use color::ColorConfig;
pub use config::{DataConfig, InputConfig, Split};
pub(crate) use consistency::off_center;
pub use convert::{ConvertFrom, Converted, convert};
pub use dataset::{Dataset, Skipped};
pub use depth_scale::DepthScale;
pub use frame::{Annotation, Frame};
pub use loader::{BadSample, Batch, Loader, LoaderOptions, Share, Slices, permutation};
pub use models::object_boxes;
pub use models_info::{ModelInfo, ModelInfos, ModelSymmetries};
pub use object::{ObjectBox, ObjectModel};
pub use purpose::Purpose;
pub use sample::{Preparer, Sample, SampleObject};
pub use scene::{ImagePath, scene_cameras, sequence_of};
pub use split_list::{HeldOut, SplitList, SplitPart, num_images};
pub use survey::{SeenInstance, SplitSurvey};
pub use undistort::SourceMap;
pub use view::View;
