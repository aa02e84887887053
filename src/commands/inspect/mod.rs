//! `mqat inspect`: the network of a config (`network.rs`), what a file holds (`contents.rs`), or how far its weights have come
//! from their initial values (`against_init.rs`).

mod against_init;
mod contents;
mod network;

pub use against_init::{AgainstInitReport, AgainstInitRequest, inspect_against_init};
pub use contents::{FileReport, inspect_file};
pub use network::{NetworkReport, inspect_network};
