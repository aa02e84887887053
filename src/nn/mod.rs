//! The parts networks are made of: a store of named tensors, layers, and the slots quantizers plug into.
//!
//! Start at [`Store`]: it owns every parameter and buffer under its PyTorch state-dict key, in the order
//! of construction, and every quantizable layer as a [`Site`]. Layers are built from a [`Path`]
//! (`root / "fpn" / "inner_convs"`); a name given twice is a bug and panics.
//!
//! A network is one function over [`Ops`]: [`Eager`] computes it, [`Tracer`] turns it into a [`Trace`], from which costs,
//! first and last layers, unused layers and exported graphs follow. Neither a [`Store`] nor a layer crosses threads.

mod dense;
mod function;
mod init;
mod layers;
mod ops;
mod slot;
mod store;
mod trace;

pub(crate) use dense::{flags, floats, floats_mut, is_dense, same_layout};
pub(crate) use function::LEAKY_SLOPE;
pub use function::{Function, PoolShape};
pub use init::Fill;
pub(crate) use layers::NORM_EPS;
pub use layers::{
    BatchNorm, Conv2d, ConvShape, ConvTranspose2d, GroupNorm, Layer, LayerInfo, LayerKind, Linear,
    Scale, TransposeShape, images_from_bytes, leaky_relu,
};
pub use ops::{Eager, Ops};
pub use slot::{ActivationSlot, Site, SiteKind, WeightSlot};
pub use store::{Ends, Path, Role, Store, Var};
pub use trace::{LayerSummary, Node, NodeId, Trace, TraceOp, Tracer};
