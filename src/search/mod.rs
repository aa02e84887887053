//! Which module goes first, and how many bits each one gets.
//!
//! Start at [`Traces`] (the curvature of the loss by Hutchinson's estimator, for which a loss is handed in),
//! [`width_errors`] (how far quantizing moves a weight) and [`solve`] (the bit widths of least summed sensitivity within a
//! size, exactly). [`flow_order`] is the paper's rule for the order of modules; [`prefixes`] and [`orders`] lay out the
//! orders that share what they begin with.
//!
//! Refused: losses and curvatures that are not finite, targets that no choice reaches (with the nearest one that can be
//! reached). It trains nothing and reads no dataset.

mod allocate;
mod order;
mod sensitivity;
mod trace;

pub use allocate::{Allocation, Choice, Infeasible, Item, solve};
pub use order::{ModuleGain, flow_order, num_separate_stages, orders, prefixes};
pub use sensitivity::{Division, WidthError, sensitivity, width_errors};
pub use trace::{Estimate, TraceOptions, TracedLayer, Traces};
