//! Artifacts: any file that holds a network, as its config, the network or an engine for it, quantizers and a name.
//!
//! Start at `weights.rs`, the entrance for weights of any kind (checkpoint, safetensors, PyTorch, packed), and at
//! `engine.rs`, which runs ONNX files.
//!
//! Refused: files that are damaged, or that do not fit the network they are loaded into. It trains and writes nothing.

pub(crate) mod engine;
pub(crate) mod kind;
pub(crate) mod name;
pub(crate) mod network;
pub(crate) mod open;
pub(crate) mod packed;
pub(crate) mod pretrained;
pub(crate) mod tensor;
pub(crate) mod weights;

pub use engine::{EngineChoice, OnnxEngine, OnnxMeta, is_onnx};
pub use kind::{FileKind, Reading, Strictness, kind_of};
pub use tensor::TensorReport;
pub use weights::{
    Conversion, GridReport, InqLayerReport, LoadReport, LoadedNetwork, OtherMember, Unmatched,
    assembled_weight, load, load_state_dict, meta_of, recognise_grid,
};
