//! Artifacts: any file that holds a network, as its config, the network or an engine for it, quantizers and a name.
//!
//! Start at [`open()`], the one entrance: it tells what a file is and which config goes with it, and its [`Artifact`] loads
//! the network or opens an engine. `weights.rs` loads weights of any kind (checkpoint, safetensors, PyTorch, packed),
//! `engine.rs` runs ONNX files.
//!
//! Refused: files that are damaged, or that do not fit the network they are loaded into. It trains and writes nothing.

pub(crate) mod engine;
pub(crate) mod kind;
pub(crate) mod name;
pub(crate) mod network;
mod open;
pub(crate) mod packed;
pub(crate) mod pretrained;
pub(crate) mod tensor;
pub(crate) mod weights;

pub use engine::{EngineChoice, OnnxEngine, OnnxMeta};
pub use kind::{FileKind, Reading, Strictness, is_onnx, kind_of};
pub use open::{Artifact, Asked, Opened, Stored, open};
pub use pretrained::StartFrom;
pub use tensor::TensorReport;
pub use weights::{
    Conversion, GridReport, InqLayerReport, LoadReport, LoadedNetwork, OtherMember, Unmatched,
    assembled_weight, load, load_state_dict, meta_of, recognise_grid,
};
