//! What a user sees: the program as a process, in fresh folders.

mod afterwards;
mod against_init;
mod bad_input;
mod bench;
mod bop;
mod caspacenet;
mod config;
mod data_files;
mod flow;
mod from;
mod help;
mod import;
mod launcher;
mod live;
mod onnx;
mod options;
mod packed;
mod pipeline;
mod predict;
mod recalibrate;
mod report;
mod resume;
mod robustness;
mod score;
mod search;
mod support;
