//! Where the light of a sequence comes from.

use nalgebra::Rotation3;

use crate::geom::Vec3;

/// Light that stays the same over a sequence; directions are unit vectors of the camera frame.
#[derive(Debug, Clone)]
pub(super) struct Lights {
    /// Towards the Sun.
    pub sun: Vec3,
    /// Towards the Earth's centre.
    pub earth: Vec3,
    /// The Earth's own turn, for its clouds.
    pub earth_turn: Rotation3<f64>,
    /// Seed of the star field.
    pub stars: u64,
}
