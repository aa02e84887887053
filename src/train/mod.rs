//! The training engine.

mod lr;
mod sgd;

pub use lr::{Decay, LrConfig, LrPlace};
pub use sgd::{Sgd, SgdConfig};
