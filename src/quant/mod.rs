//! Quantizers: they turn the weights and inputs of chosen layers into a few levels while training goes on.
//!
//! Start at [`ModuleQuantizer`]: it picks the layers of a module ([`select`]), gives each a weight
//! and/or activation quantizer and drives them epoch by epoch. INQ ([`inq`]) freezes stored weights; all
//! other weight methods quantize in the forward pass (`weight.rs`, with the formulas of a method in a file
//! of its own: [`lsq`], `dorefa.rs`, [`ana`]). Inputs: [`ste`] as published, the others behind one
//! calibration (`activation.rs`; [`pact`]). [`affine`] rounds to multiples of a step, fast.
//! [`levels`] defines the grids and their integer codes, [`scale`] finds the scale of a grid,
//! [`schedule`] the share of weights frozen at each epoch, [`size`] counts bytes in the two ways that are reported.
//!
//! A new method is a rule of `weight.rs` or `activation.rs`, or a type of its own behind `WeightQuantizer`
//! or `ActivationQuantizer` (`method.rs`) and one arm in `module.rs`; grids, codes, masks, state and
//! reports are the same for all.
//!
//! Refused: selections that match nothing or overlap, grids of one level, bits and level counts that
//! contradict each other, schedules that fall or do not end at 1, weights that are not finite.

mod activation;
pub mod affine;
pub mod ana;
pub mod audit;
mod config;
mod dorefa;
pub mod inq;
mod layer_bits;
pub mod levels;
pub mod lsq;
mod method;
mod module;
pub mod pact;
pub mod scale;
pub mod schedule;
pub mod select;
mod settings;
pub mod size;
pub mod ste;
mod surrogate;
pub mod telemetry;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod weight;

pub use config::{
    ActivationMethod, ActivationQuantConfig, AnaConfig, CalibrationConfig, CodeRange, DorefaConfig,
    Granularity, LsqConfig, PactConfig, QuantInit, QuantStrategy, RangeInit, StepInit,
    UniformConfig, WeightMethod, WeightQuantConfig,
};
pub use inq::InqWeight;
pub use levels::{Codes, Grid, Spacing};
pub use method::{ActivationReport, Learnt, SiteReport};
pub use module::{EpochStart, ModuleQuantizer, WeightCodes};
pub use schedule::FractionSchedule;
pub use ste::SteActivation;
pub use telemetry::{LayerTelemetry, ModuleTelemetry, Telemetry};
