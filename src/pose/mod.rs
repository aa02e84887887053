//! Poses from corner pixels, and how wrong a pose is.
//!
//! Start at [`solve_pnp_ransac`] (2D-3D correspondences with outliers to a pose; [`find_pose`] says why there is none, and
//! [`pose_covariance`] how sure it is) and at
//! [`score_targets`] with [`EvalTable`] (predictions against ground truth, the SwissCube table).
//! The single errors are in [`errors`], VSD in [`vsd`], the scores of the BOP benchmark in [`bop`]; [`bootstrap`],
//! [`Discordant`] and [`holm`] compare networks on the same objects.
//!
//! What it refuses: a solver answers `None` where the input does not determine a pose in front of the
//! camera (too few, identical, collinear, non-finite points, no consensus); it never panics and never
//! returns a number that is not finite.

pub mod bop;
mod correspondences;
mod covariance;
mod epnp;
pub mod errors;
mod fit;
mod outcomes;
mod p3p;
mod paired;
mod ransac;
mod recall;
mod sequences;
mod student;
mod table;
mod thresholds;
pub mod vsd;

pub use bop::{BopModel, BopScores};
pub use covariance::{PoseCovariance, pose_covariance};
pub use epnp::epnp;
pub use outcomes::{OutcomeGain, Outcomes};
pub use paired::{Difference, Discordant, FEW_SEQUENCES, NUM_DRAWS, Paired, bootstrap, holm};
pub use ransac::{NoPose, PnpSolution, RansacConfig, find_pose, solve_pnp_ransac};
pub use recall::{
    Counting, Estimate, MISSING_DIAMETERS, MISSING_PX, Recall, Target, TargetErrors, TargetModel,
    sample_vertices, score_targets,
};
pub use sequences::{MeanDifference, Sequences};
pub use student::quantile_975;
pub use table::{Bin, DepthBins, EvalTable, Metric, Section, TableRow, row_label};
