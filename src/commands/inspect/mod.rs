//! `mqat inspect`: the network of a config (`network.rs`), or what a file holds (`contents.rs`).

mod contents;
mod network;

pub use contents::{FileReport, inspect_file};
pub use network::{NetworkReport, inspect_network};
