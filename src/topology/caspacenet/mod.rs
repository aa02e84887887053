//! CA-SpaceNet: the Wide-Depth-Range network with a second pyramid, which learns what the background alone would give
//! and is subtracted from the first.
//!
//! Start at [`CaSpaceNet`], built from a [`NetworkConfig`]; layers, targets, decoding and the losses of the head are those of
//! [`wdr`](super::wdr). A [`FeatureTeacher`], the backbone and first pyramid with which training began, sees images without their
//! objects ([`erase`]); [`feature_loss`] compares its pyramid with the second one. Neither teacher nor mask is used to infer.
//!
//! Source: Wang et al., *CA-SpaceNet: Counterfactual Analysis for 6D Pose Estimation in Space*, IROS 2022.

mod config;
mod erase;
mod keys;
mod loss;
mod net;
pub(super) mod recognise;
mod task;
mod teacher;

pub use config::NetworkConfig;
pub use erase::erase;
pub(crate) use keys::KEYS;
pub use loss::{LossConfig, feature_loss};
pub use net::{CaSpaceNet, Features};
pub use teacher::FeatureTeacher;
