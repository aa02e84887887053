//! Inference over a split, poses, scores and the report.
//!
//! Start at [`Pipeline`], the one way from pictures to outputs and poses: [`infer`] and [`infer_pair`] run it over a dataset's
//! split, [`infer_stream`] over pictures without true poses. It knows no network: a [`crate::nn::Engine`] computes outputs by
//! name, a [`crate::nn::Decode`] reads them, a [`Solver`] finds the poses. [`evaluate`] makes of predictions and true poses an
//! [`Evaluation`]: the [`Report`] that `metrics.json` holds, and the errors of every object. [`write_predictions`] keeps
//! predictions as JSON lines, [`write_bop_csv`] in BOP's form, and [`read_predictions`] reads both, of any program. A
//! report is told by [`Report::text`] and [`Report::markdown`], several side by side by [`Comparison`];
//! [`write_depth_chart`] and [`write_overlays`] draw.
//!
//! Refused: an engine without the outputs that its decoder reads, predictions of images or classes that the
//! evaluated list has not, lines that hold no pose.

mod bop_csv;
mod bop_scores;
mod bop_split;
mod bop_table;
mod config;
mod deviation;
mod draw;
mod estimate;
mod grid;
mod jobs;
mod json_lines;
mod options;
pub mod overlay;
mod paired;
mod pipeline;
mod plots;
mod pose_records;
mod prediction;
mod report;
mod result_file;
mod sigma;
mod solver;
mod split;
mod split_index;
mod tables;
#[cfg(test)]
mod testing;
mod timing;

pub use bop_csv::write_bop_csv;
pub use bop_scores::average_recalls;
pub use bop_split::{BopSplit, BopSplitErrors, EstimatesByImage, ScoredSplit, benchmark_scores};
pub use config::EvalConfig;
pub use deviation::{Deviation, OutputComparison, OutputDeviation};
pub use estimate::{ClassResult, PoseEstimate};
pub use jobs::{Answer, FramePlace, Job, Latency, PictureSource, infer_stream};
pub use json_lines::write_predictions;
pub use options::{InferOptions, preprocess};
pub use overlay::{Outline, prediction_overlay, write_overlays};
pub use paired::sequences_of_objects;
pub use pipeline::{Forwarded, PictureBatch, PictureInfo, Pipeline, SolvedPicture};
pub use plots::{depth_chart, recall_over_depth, write_depth_chart};
pub use pose_records::{PoseWriter, Written};
pub use prediction::{Prediction, Sigma};
pub use report::{
    BinLimits, ClassSummary, DatasetSummary, Definition, Evaluation, EvaluationInfo, Report,
    SYNTHETIC_FILE, evaluate, read_errors, write_errors,
};
pub use result_file::{ResultFile, ResultFormat, odd_distances, read_predictions};
pub use sigma::{SigmaFactor, SigmaFactors};
pub use solver::{ImageResult, Solver};
pub use split::{Inference, Pair, Progress, infer, infer_pair, pictures_of};
pub use split_index::image_ids;
pub use tables::Comparison;
pub use timing::Timing;

pub use crate::pose::row_label;
