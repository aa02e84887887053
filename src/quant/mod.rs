//! Quantizers: they turn the weights and activations of chosen layers into a few levels while training goes on.
//!
//! Start at [`ModuleQuantizer`]: it takes a [`Claim`] (a module and how to quantize it), picks the layers ([`select`]),
//! gives each a weight and/or activation quantizer and drives them epoch by epoch.
//!
//! **A method is one file** and one line in the list of `registry.rs`. The file has a settings type for each side
//! (weights, activations) with its name ([`Settings`]) and what follows from the settings: check, levels, epochs, how a
//! layer gets its quantizer ([`WeightScheme`], [`ActivationScheme`]). Fake quantization needs no more than a
//! [`WeightRule`] (how a weight becomes levels, and the gradient) or an [`ActivationRule`] (how the calibrated range
//! becomes a parameter, and the forward pass): slots, state, reports and freezing are shared ([`FakeWeight`],
//! [`CalibratedActivation`]). Methods that work otherwise implement [`WeightQuantizer`] or [`ActivationQuantizer`], as
//! [`inq`], which freezes stored weights, and [`ste`]. Levels that are neither even nor powers of two implement
//! [`LevelShape`] in the method's file; packed files and ONNX export ask the [`Grid`]. The names, the tagged settings
//! ([`WeightSettings`]), the JSON form (`form.rs`) and its schema follow from the list. A crate of its own quantizes by
//! [`ModuleQuantizer::of_layers`].
//!
//! Methods: [`inq`], [`lsq`], [`uniform`], [`dorefa`], [`ana`], [`pact`], [`ste`]. Shared: [`affine`] rounds to multiples of
//! a scale, fast; [`levels`] defines the grids and their integer codes, [`scale`] finds the scale of a grid, [`schedule`]
//! the fraction of weights frozen at each epoch, [`size`] counts bytes in the two ways that are reported.
//!
//! Refused: selections that match nothing or overlap, settings of another method than the chosen one, grids of one
//! level, bits and level counts that contradict each other, schedules that fall or do not end at 1, weights that are not
//! finite.

mod activation;
pub mod affine;
pub mod ana;
pub mod audit;
mod checks;
mod claim;
mod config;
pub mod dorefa;
mod form;
pub mod inq;
mod layer_bits;
pub mod levels;
pub mod lsq;
mod method;
mod module;
mod oscillation;
pub mod pact;
mod pattern;
mod registry;
pub mod scale;
pub mod schedule;
mod scheme;
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
pub mod uniform;
mod weight;
mod width;

pub use activation::{ActivationRule, Calibrated, CalibratedActivation};
pub use claim::Claim;
pub use config::{ActivationQuantConfig, WeightQuantConfig};
pub use inq::{InqWeight, QuantStrategy, Rescale};
pub use levels::{Codes, Grid, LevelShape, Spacing};
pub use lsq::StepInit;
pub use method::{
    ActivationQuantizer, ActivationReport, Combine, Learnt, LearntOptions, Recorded, SavedState,
    SiteReport, WeightQuantizer, WeightStep, saved_epoch,
};
pub use module::{EpochStart, LayerQuantizers, ModuleQuantizer, WeightCodes};
pub use oscillation::OscillationConfig;
pub use registry::{ActivationMethod, ActivationSettings, WeightMethod, WeightSettings};
pub use schedule::FractionSchedule;
pub use scheme::{ActivationContext, ActivationScheme, Settings, WeightContext, WeightScheme};
pub use settings::{CalibrationConfig, Clip, CodeRange, Granularity, QuantInit, RangeInit};
pub use ste::SteActivation;
pub use telemetry::{LayerTelemetry, ModuleTelemetry, Telemetry};
pub use weight::{FakeWeight, LayerLevels, WeightRule};
pub use width::{BitWidth, Levels};
