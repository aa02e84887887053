//! Points of an object and where they are seen.

use super::{Vec2, Vec3};

/// 2D-3D correspondences: what PnP finds a pose from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Correspondences {
    /// Object frame, mm; equal ones are sightings of one point.
    pub points: Vec<Vec3>,
    /// Where each of `points` is seen, px.
    pub pixels: Vec<Vec2>,
    /// Correspondences one after the other that come from the same place of the network's output (a cell), 1 or more:
    /// their errors may be shared.
    pub group_size: usize,
}

impl Correspondences {
    /// How many.
    pub fn len(&self) -> usize {
        self.pixels.len()
    }

    /// True without any.
    pub fn is_empty(&self) -> bool {
        self.pixels.is_empty()
    }
}
