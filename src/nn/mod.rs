//! The parts networks are made of: a store of named tensors, layers, and the slots quantizers plug into.
//!
//! Start at [`Store`]: it owns every parameter and buffer under its PyTorch state-dict key, in the order
//! of construction, and every quantizable layer as a [`Site`]. Layers are built from a [`Path`]
//! (`root / "fpn" / "inner_convs"`); a name given twice is a bug and panics.

mod dense;
mod device;
mod init;
mod layers;
mod slot;
mod store;

pub(crate) use dense::{are_disjoint, flags, floats, floats_mut, is_dense, same_layout};
pub use device::device_name;
pub(crate) use device::device_name_of;
pub use init::Fill;
pub(crate) use layers::NORM_EPS;
pub use layers::{
    BatchNorm, Conv2d, ConvShape, GroupNorm, LayerSummary, Linear, Scale, images_from_bytes,
    leaky_relu,
};
pub use slot::{ActivationSlot, Site, WeightSlot};
pub use store::{Path, Role, Store, Var};
