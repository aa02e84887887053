//! The wide-depth-range pose network: Darknet-53 or a ResNet, FPN, head, anchors, targets and losses.
//!
//! Start at [`PoseNet`], built from a [`NetworkConfig`]. An [`AnchorGrid`] says where the network's outputs
//! lie in the image; [`assign`] turns an image's objects into an [`Assignment`] (no tensors, so loader
//! threads can do it), and [`losses`] compares a batch of outputs with its assignments. A [`CellDecoder`] reads the
//! correspondences of each class from the outputs; how cells are selected is in [`candidates`].
//!
//! Source: Hu et al., *Wide-Depth-Range 6D Object Pose Estimation in Space*, CVPR 2021.

mod anchors;
mod backbone;
pub mod candidates;
mod config;
mod darknet;
mod decoder;
mod distill;
mod fpn;
mod head;
pub(super) mod keys;
mod loss;
mod net;
mod outputs;
pub mod recognise;
mod resnet;
mod targets;
mod task;

pub use anchors::{AnchorGrid, CellTarget, Level};
pub(super) use backbone::BackboneNet;
pub use config::{Backbone, NetworkConfig};
pub use decoder::CellDecoder;
pub use distill::{DistillConfig, DistillLosses};
pub(super) use fpn::Fpn;
pub(super) use head::Head;
pub(crate) use keys::KEYS;
pub use loss::{LossConfig, Losses, losses};
pub use net::PoseNet;
pub(super) use net::{add_anchors, check_build};
pub use outputs::{Features, HeadOutputs, output_names, output_shapes};
pub use targets::{
    AssignedObject, Assignment, Draw, LevelCount, ObjectTarget, Positive, TargetConfig, assign,
    positives_per_level,
};
pub(super) use task::Targets;
