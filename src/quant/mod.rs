//! Quantizers: they turn the weights and inputs of chosen layers into a few levels while training goes on.
//!
//! Start at [`ModuleQuantizer`]: it picks the layers of a module ([`select`]), gives each a weight
//! and/or activation quantizer (one file per method: [`inq`], [`ste`]) and drives them epoch by epoch.
//! [`levels`] defines the grids and their integer codes, [`scale`] finds the scale of a grid,
//! [`schedule`] the share of weights frozen at each epoch, [`size`] counts bytes in the two ways that are reported.
//!
//! A new method is one file with a type behind `WeightQuantizer` or `ActivationQuantizer` (`method.rs`)
//! and one arm in `module.rs`; grids, codes, masks, state and reports are the same for all.
//!
//! Refused: selections that match nothing or overlap, grids of one level, bits and level counts that
//! contradict each other, schedules that fall or do not end at 1, weights that are not finite.

pub mod audit;
mod config;
pub mod inq;
pub mod levels;
mod method;
mod module;
pub mod scale;
pub mod schedule;
pub mod select;
pub mod size;
pub mod ste;
pub mod telemetry;
#[cfg(test)]
mod testing;

pub use config::{
    ActivationMethod, ActivationQuantConfig, QuantInit, QuantStrategy, WeightMethod,
    WeightQuantConfig,
};
pub use inq::InqWeight;
pub use levels::{Grid, Spacing};
pub use method::{ActivationReport, SiteReport};
pub use module::{EpochStart, ModuleQuantizer, WeightCodes};
pub use schedule::FractionSchedule;
pub use ste::SteActivation;
pub use telemetry::{LayerTelemetry, ModuleTelemetry, Telemetry};
