//! What a user sees: the program as a process, in fresh folders.

mod config;
mod help;
mod import;
mod onnx;
mod pipeline;
mod resume;
mod score;
mod support;
