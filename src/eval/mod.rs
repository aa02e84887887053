//! Inference over a split, poses, scores and the report.

pub mod candidates;
mod draw;
pub mod overlay;
