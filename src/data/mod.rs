//! The data path: BOP folders, samples, augmentation, batches.
//!
//! Start at [`Dataset::open`], which reads a list of images, its scene folders' JSON and the meshes once, and at
//! [`Loader::start`], which turns an epoch of it into batches on worker threads. In between stand [`Preparer`] (one
//! image: decode, warp to the internal camera, augment, relabel) and the warps of [`warp`].
//!
//! Refused, with the file's name: missing or truncated files, poses that are not finite or behind the camera, counts
//! that disagree. Pixels leave as bytes; the device normalises them.

mod augment;
pub mod bop;
mod config;
mod dataset;
mod loader;
mod models;
mod sample;
mod scene;
#[cfg(test)]
mod testing;
pub mod warp;

pub use augment::{Augmentation, remap_pose};
pub use config::{DataConfig, InputConfig, Split};
pub use dataset::{Annotation, Dataset, Frame, Skipped};
pub use loader::{BadSample, Batch, Loader, LoaderOptions, permutation};
pub use models::ObjectModel;
pub use sample::{Preparer, Sample, SampleObject};
