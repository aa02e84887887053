//! The parts networks are made of: a store of named tensors, layers, and the slots quantizers plug into.
//!
//! Start at [`Store`]: it owns every parameter and buffer under its PyTorch state-dict key, in the order
//! of construction, and every quantizable layer as a [`Site`]. Layers are built from a [`Path`]
//! (`root / "fpn" / "inner_convs"`); a name given twice is a bug and panics.
//!
//! A network is one function over [`Ops`]: [`Eager`] computes it, [`Tracer`] turns it into a [`Trace`], from which costs,
//! first and last layers, unused layers and exported graphs follow. Neither a [`Store`] nor a layer crosses threads.
//!
//! Whoever trains, quantizes or exports one sees a [`Network`]. Whoever runs one sees [`Preprocess`] (bytes to images), an [`Engine`] (images to named [`Outputs`]) and its
//! [`Decode`] (numbers of an image to correspondences or poses).

mod batch_norm;
mod dense;
mod device;
mod engine;
mod function;
mod init;
mod layer;
mod layers;
mod network;
mod ops;
mod outputs;
mod preprocess;
mod products;
mod slot;
mod statistics;
mod store;
mod trace;

pub use batch_norm::BatchStatistics;
pub(crate) use dense::{are_disjoint, flags, floats, floats_mut, is_dense, same_layout};
pub use device::device_name;
pub(crate) use device::device_name_of;
pub use engine::{Decode, Decoded, Detection, Engine, Evidence, NoDetection};
pub(crate) use function::LEAKY_SLOPE;
pub use function::{Function, PoolShape};
pub use init::Fill;
pub use layer::{ConvShape, Layer, LayerInfo, LayerKind, TransposeShape};
pub(crate) use layers::NORM_EPS;
pub use layers::{BatchNorm, Conv2d, ConvTranspose2d, GroupNorm, Linear, Scale, leaky_relu};
pub use network::{DenseLevel, ModuleInfo, Network};
pub use ops::{Eager, Ops};
pub use outputs::{HostOutputs, OutputShape, Outputs};
pub use preprocess::Preprocess;
pub use slot::{ActivationSlot, Site, SiteKind, WeightSlot};
pub use statistics::BatchNormShift;
pub use store::{Ends, Path, Role, Store, Var};
pub use trace::{LayerSummary, Node, NodeId, Trace, TraceOp, Tracer};
