//! Inference over a split, poses, scores and the report.
//!
//! Start at [`infer`] (a network and a dataset to [`Prediction`]s, which [`write_predictions`] keeps as JSON lines) and
//! at [`evaluate`] (predictions and true poses to an [`Evaluation`]: the [`Report`] that `metrics.json` holds, and the
//! errors of every object). A report is told by [`Report::text`] and [`Report::markdown`], several side by side by
//! [`Comparison`]; [`write_depth_chart`] and [`write_overlays`] draw. How cells become correspondences is in
//! [`candidates`].
//!
//! Refused: a network with another number of classes than the dataset, predictions of images or classes that the
//! evaluated list has not, lines that hold no pose.

pub mod candidates;
mod config;
mod draw;
mod grid;
mod infer;
pub mod overlay;
mod plots;
mod predictions;
mod report;
mod tables;
#[cfg(test)]
mod testing;

pub use config::EvalConfig;
pub use infer::{InferOptions, Inference, Progress, infer};
pub use overlay::write_overlays;
pub use plots::{depth_chart, recall_over_depth, write_depth_chart};
pub use predictions::{Prediction, read_predictions, write_predictions};
pub use report::{
    BinLimits, ClassSummary, DatasetSummary, Definition, Evaluation, Report, RunInfo,
    SYNTHETIC_FILE, Timing, evaluate, write_errors,
};
pub use tables::Comparison;
