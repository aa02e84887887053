//! What a trained network becomes for a device.
//!
//! - [`packed`]: one small file with weights of 1 to 8 bits. Start at [`packed::pack`] and [`packed::read`].
//! - [`onnx`]: ONNX graphs, with float or integer arithmetic, and ONNX Runtime to run them. Start at [`onnx::graph_of`].

pub mod onnx;
pub mod packed;
