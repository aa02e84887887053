//! Numbers of the original implementations, reproduced. The data's README is `tests/golden/README.md`.
//!
//! The folder is named by `MQAT_GOLDEN` (default `tests/golden`); every size comes from its files.

mod support;

mod anchors;
mod bop;
mod caspacenet;
mod checkpoints;
mod forward;
mod import;
mod inq;
mod loss;
mod lsq;
mod pnp;
mod pose_errors;
mod postprocess;
mod published_config;
mod schedules;
mod ste;
mod warp;
