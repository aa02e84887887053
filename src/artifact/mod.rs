//! Artifacts: any file that holds a network, as its config, the network or an engine for it, quantizers and a name.
//!
//! Start at `weights.rs`, the entrance for weights of any kind (checkpoint, safetensors, PyTorch, packed), and at
//! `engine.rs`, which runs ONNX files.
//!
//! Refused: files that are damaged, or that do not fit the network they are loaded into. It trains and writes nothing.

pub(crate) mod engine;
pub(crate) mod packed;
pub(crate) mod weights;

pub use engine::{EngineChoice, OnnxEngine, OnnxMeta, is_onnx};
pub use weights::{
    Conversion, FileKind, GridReport, InqLayerReport, LoadReport, LoadedNetwork, OtherMember,
    Strictness, Unmatched, assembled_weight, kind_of, load, load_state_dict, meta_of,
    recognise_grid,
};
