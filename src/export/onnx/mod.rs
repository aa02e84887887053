//! ONNX files of a pose network, and ONNX Runtime to run them.
//!
//! Start at [`graph_of`]: it writes the network down as a [`graph::Graph`], batch norms folded, integer weights kept as
//! integers. A [`plan::GraphPlan`] says which values are rounded to 8 bits: by the quantizers of training
//! ([`plan::as_trained`]), and by [`calibrate()`] where there are none ([`plan::calibrated`]). [`emit()`] turns both into
//! a model of QuantizeLinear/DequantizeLinear pairs, which runtimes fuse into integer kernels. [`Reference`] computes with
//! libtorch what the model should. [`OnnxSession`] runs a file in ONNX Runtime, a [`Profile`] says which kernels ran.
//!
//! Refused: files that are truncated, no ONNX, or of another network. A partly quantized module's weights are floats.

mod bias;
pub mod calibrate;
mod contents;
mod emit;
mod file;
pub mod graph;
mod kernels;
mod layers;
mod network;
pub mod plan;
mod profile;
pub mod proto;
mod reference;
mod session;
#[cfg(test)]
mod testing;

pub use bias::correct_biases;
pub use calibrate::{Calibration, CalibrationMethod, calibrate};
pub use contents::{
    Contents, StoredCodes, StoredTensor, StoredValues, StoredWeight, read_contents,
};
pub use emit::{
    BASE_OPSET, Carrier, EmitOptions, INPUT, INT2_OPSET, INT4_OPSET, LAST_OPSET, carrier_of, emit,
};
pub use file::{FileHead, META_KEY, looks_like_onnx, read_head};
pub use kernels::{sums_saturate, use_unsigned_weights, widen_weights};
pub use layers::{LayerCheck, LayerSteps, QuantizedValues, quantized_values};
pub use network::{graph_of, graph_of_trace};
pub use profile::{Kernel, Profile};
pub use reference::{PlannedGraph, Reference};
pub use session::{LIBRARY, LIBRARY_VARIABLE, OnnxSession, SessionOptions, environment, version};
