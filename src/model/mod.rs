//! The wide-depth-range pose network: Darknet-53 or a ResNet, FPN, head, anchors, targets and losses.
//!
//! Start at [`PoseNet`], built from a [`NetworkConfig`]. An [`AnchorGrid`] says where the network's outputs
//! lie in the image; [`assign`] turns an image's objects into an [`Assignment`] (no tensors, so loader
//! threads can do it), and [`losses`] compares a batch of outputs with its assignments.
//!
//! Source: Hu et al., *Wide-Depth-Range 6D Object Pose Estimation in Space*, CVPR 2021.

mod anchors;
mod config;
mod darknet;
mod fpn;
mod head;
pub mod keys;
mod loss;
mod net;
pub mod recognise;
mod resnet;
mod targets;

pub use crate::nn::{LayerSummary, images_from_bytes};
pub use anchors::{AnchorGrid, CellTarget, Level};
pub use config::{Backbone, NetworkConfig};
pub use loss::{LossConfig, Losses, losses};
pub use net::{Features, ModuleInfo, Outputs, PoseNet, TRACE_PX};
pub use targets::{
    AssignedObject, Assignment, Draw, LevelCount, ObjectTarget, Positive, TargetConfig, assign,
    positives_per_level,
};
