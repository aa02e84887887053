//! Inference over a split, poses, scores and the report.

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
pub use plots::{depth_chart, recall_over_depth, write_depth_chart};
pub use predictions::{Prediction, read_predictions, write_predictions};
pub use report::{
    BinLimits, ClassSummary, DatasetSummary, Definition, Evaluation, Report, RunInfo,
    SYNTHETIC_FILE, Timing, evaluate, write_errors,
};
pub use tables::Comparison;
