//! A run: its config, its flow, its folder and what is written there, the machine's folders and devices.
//!
//! Start at [`Config`]: a [`Select`] names one, `config.rs` reads, changes and checks it (`keys.rs` before it is typed;
//! `published.rs` translates the published code's form). `flow.rs` and `stretch.rs` change its stages, `layers.rs` says
//! what they make of each layer. A [`Request`] becomes device and dataset; [`Folder`] is `LOGS/PROBLEM/TOPOLOGY/expNNN`
//! and `record.rs` writes what happens there.
//!
//! Refused: unknown keys, values outside their range, flows that fit no layer of the network. It reads no weights.

pub(crate) mod config;
pub(crate) mod data_print;
pub(crate) mod device;
mod driver;
pub(crate) mod fit;
pub(crate) mod flow;
pub(crate) mod folder;
mod frozen;
pub(crate) mod home;
mod keys;
pub(crate) mod layers;
pub(crate) mod like;
pub(crate) mod machine;
pub(crate) mod objects;
pub(crate) mod options;
pub(crate) mod overruled;
mod published;
pub(crate) mod record;
pub(crate) mod request;
pub(crate) mod starts;
pub(crate) mod stretch;

pub use config::{
    Config, ExperimentConfig, Names, Precision, QuantizeSection, RuntimeConfig, SeedOf, Select,
    TrainingSection,
};
pub use device::{DeviceChoice, LIBTORCH_VERSION};
pub use fit::{Choice, FitWishes};
pub use flow::{
    Baseline, Bits, FlowPlan, FlowSource, MadeBy, PlanRow, TextStage, Width, parse_weight_method,
};
pub use folder::{Folder, Pick, Provenance, Start, StartEnd, folder_name};
pub use home::{Home, SoleNames};
pub use layers::{LayerReport, QuantizedTo};
pub use machine::Machine;
pub use record::CompletedStage;
pub use request::Request;
