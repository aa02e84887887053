//! The parts networks are made of: a store of named tensors, layers, and the slots quantizers plug into.
//!
//! Start at [`Store`]: it owns every parameter and buffer under its PyTorch state-dict key, in the order
//! of construction, and every quantizable layer as a [`Site`]. Layers are built from a [`Path`]
//! (`root / "fpn" / "inner_convs"`); a name given twice is a bug and panics.
//!
//! Whoever runs a network sees [`Preprocess`] (bytes to images), an [`Engine`] (images to named [`Outputs`]) and its
//! [`Decode`] (numbers of an image to correspondences or poses).

mod dense;
mod engine;
mod init;
mod layers;
mod outputs;
mod preprocess;
mod slot;
mod store;

pub(crate) use dense::{flags, floats, floats_mut, is_dense, same_layout};
pub use engine::{Decode, Decoded, Detection, Engine, Evidence, NoDetection};
pub use init::Fill;
pub(crate) use layers::NORM_EPS;
pub use layers::{
    BatchNorm, Conv2d, ConvShape, GroupNorm, LayerSummary, Linear, Scale, leaky_relu,
};
pub use outputs::{HostOutputs, OutputShape, Outputs};
pub use preprocess::Preprocess;
pub use slot::{ActivationSlot, Site, WeightSlot};
pub use store::{Path, Role, Store, Var};
