//! The seam between a network and what is done with its outputs: who computes them, and who reads poses from them.

use anyhow::Result;
use tch::Tensor;

use super::outputs::{HostOutputs, OutputShape, Outputs};
use crate::geom::{Correspondences, Pose};

/// What computes a network's outputs: libtorch, or another runtime of an exported file.
pub trait Engine {
    /// The outputs for images of `width` x `height` px, in order.
    fn outputs(&self, width: usize, height: usize) -> Vec<OutputShape>;

    /// The outputs for images `[n, 3, h, w]`, normalised, in evaluation mode; no gradient is recorded.
    ///
    /// # Errors
    /// If the images do not fit or the runtime fails.
    fn forward(&self, images: &Tensor) -> Result<Outputs>;
}

/// What reads a network's outputs: from the numbers of an image to what they say about each class.
pub trait Decode: Sync {
    /// The outputs that it reads, in the order in which it wants them.
    fn outputs(&self) -> &[OutputShape];

    /// What the outputs of an image, laid out as [`Decode::outputs`], say about every class, ascending; of a class that is seen
    /// several times once for each instance, the most confident first.
    ///
    /// # Panics
    /// If there is no such image, or the outputs are laid out otherwise.
    fn decode(&self, outputs: &HostOutputs, image: usize) -> Vec<Decoded>;
}

/// What an image's outputs say about a class, or about an instance of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// 0-based.
    pub class: usize,
    /// Where the object is, or why there is none.
    pub found: Result<Detection, NoDetection>,
}

/// An object that the network sees.
#[derive(Debug, Clone, PartialEq)]
pub struct Detection {
    /// Confidence, larger is surer.
    pub score: f64,
    /// What the network says about its pose.
    pub evidence: Evidence,
}

/// What a network says about a pose.
#[derive(Debug, Clone, PartialEq)]
pub enum Evidence {
    /// Where points of the object are seen: PnP finds the pose.
    Correspondences(Correspondences),
    /// The pose itself, under the internal camera.
    Pose(Pose),
}

/// Why a class has no pose in an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoDetection {
    /// For programs, in snake case: `no_cell`, `no_consensus`.
    pub reason: &'static str,
    /// For people.
    pub detail: String,
}
