//! The training engine: stages, epochs, steps, learning rates, the optimizer, checkpoints.
//!
//! Start at [`Trainer`]: it owns the network, the optimizer, the quantizers and the [`Position`], runs the stages of a
//! [`TrainConfig`], and is handed a [`Task`](crate::topology::Task), a [`BatchSource`], a validation and an [`Observer`]. A [`Checkpoint`] is one file;
//! [`CheckpointFolder`] says which ones stay. [`load_for_evaluation`] puts one into a network.
//!
//! It refuses to step on losses that are not finite, to end a stage with a weight off its levels, and to mix two
//! runs in a folder. It knows no dataset and no metric.

mod batch_norm;
mod checkpoint;
mod config;
mod ema;
mod epoch;
mod folder;
mod fused;
mod lists;
mod lr;
mod monitor;
mod objects;
mod observer;
mod prefetch;
mod record;
mod reestimate;
mod rehearse;
mod sgd;
mod step;
mod together;
mod trainer;
mod valid;

#[cfg(test)]
mod tests;

pub use batch_norm::{BatchNormInfo, Estimated, batch_statistics, estimation_epoch, largest_shift};
pub use checkpoint::{
    Best, Checkpoint, CheckpointMeta, DataPrint, EpochSums, Imported, Loaded, Position,
    QuantizedModule, attach_all, config_hash, load_for_evaluation, load_weights,
};
pub use config::{Afterwards, StageConfig, TrainConfig};
pub use ema::EmaConfig;
pub use folder::{CheckpointFolder, Found, ResumeFrom};
pub use lr::{Decay, LrConfig, LrPlace};
pub use monitor::{MonitorConfig, Monitored};
pub use objects::ObjectInfo;
pub use observer::Observer;
pub use prefetch::{BatchRequest, BatchSource, Batches};
pub use record::{
    BatchNormRecord, CheckpointRecord, Counts, EpochRecord, NamedLosses, Record, StageEnd,
    StageStart, StepRecord, TelemetryRecord, ValidRecord, ValidScore,
};
pub use rehearse::Rehearsal;
pub use sgd::{Sgd, SgdConfig};
pub use trainer::{Hooks, Outcome, RunInfo, Trainer, Validate};
