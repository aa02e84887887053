//! What a trained network becomes for a device.
//!
//! - [`onnx`]: ONNX graphs, with float or integer arithmetic, and ONNX Runtime to run them. Start at [`onnx::graph_of`].

pub mod onnx;
