//! Inference over a split, poses, scores and the report.
//!
//! Start at [`infer`] (a network and a dataset to [`Prediction`]s), at [`infer_stream`] (pictures without true poses) and at [`evaluate`] (predictions and true poses to an
//! [`Evaluation`]: the [`Report`] that `metrics.json` holds, and the errors of every object). [`write_predictions`] keeps
//! predictions as JSON lines, [`write_bop_csv`] in BOP's form, and [`read_predictions`] reads both, of any program. A
//! report is told by [`Report::text`] and [`Report::markdown`], several side by side by [`Comparison`];
//! [`write_depth_chart`] and [`write_overlays`] draw. How cells become correspondences is in [`candidates`].
//!
//! Refused: a network with another number of classes than the dataset, predictions of images or classes that the
//! evaluated list has not, lines that hold no pose.

mod bop_csv;
mod bop_scores;
pub mod candidates;
mod config;
mod draw;
mod grid;
mod infer;
pub mod overlay;
mod pair;
mod plots;
mod pose_records;
mod predictions;
mod report;
mod result_file;
mod solver;
mod stream;
mod tables;
#[cfg(test)]
mod testing;

pub use bop_csv::{image_ids, write_bop_csv};
pub use bop_scores::average_recalls;
pub use config::EvalConfig;
pub use infer::{Engine, InferOptions, Inference, Progress, infer};
pub use overlay::{Outline, prediction_overlay, write_overlays};
pub use pair::{Deviation, LevelDeviation, Pair, infer_pair};
pub use plots::{depth_chart, recall_over_depth, write_depth_chart};
pub use pose_records::{PoseWriter, Written};
pub use predictions::{Prediction, write_predictions};
pub use report::{
    BinLimits, ClassSummary, DatasetSummary, Definition, Evaluation, Report, RunInfo,
    SYNTHETIC_FILE, Timing, evaluate, write_errors,
};
pub use result_file::{ResultFile, ResultFormat, odd_distances, read_predictions};
pub use stream::{Absent, Answer, Found, Found6D, Job, Source, StreamTiming, infer_stream};
pub use tables::Comparison;
