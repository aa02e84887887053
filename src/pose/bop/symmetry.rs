//! The transforms of an object onto itself.

use nalgebra::{Rotation3, Unit};

use crate::geom::{Pose, Vec3};

/// Largest step between the transforms that stand for a continuous symmetry, as a fraction of the largest radius.
const SYMMETRY_STEP: f64 = 0.01;

/// The set `{continuous o discrete}` of an object's symmetries, the identity first. A continuous one, a line that the
/// object may turn about (direction, point on it), is stood for by 315 turns, the first of 0 degrees.
///
/// # Source
/// bop_toolkit, `misc.get_symmetry_transformations` with `max_sym_disc_step` 0.01: ceil(pi / 0.01) turns.
pub fn symmetries(discrete: &[Pose], continuous: &[(Vec3, Vec3)]) -> Vec<Pose> {
    let discrete = std::iter::once(Pose::identity()).chain(discrete.iter().copied());
    let num = (std::f64::consts::PI / SYMMETRY_STEP).ceil() as usize;
    let turns: Vec<Pose> = (continuous.iter())
        .flat_map(|(axis, offset)| {
            (0..num).map(move |i| {
                let angle = std::f64::consts::TAU * i as f64 / num as f64;
                let r = *Rotation3::from_axis_angle(&Unit::new_normalize(*axis), angle).matrix();
                Pose { r, t_mm: offset - r * offset }
            })
        })
        .collect();
    if turns.is_empty() {
        return discrete.collect();
    }
    discrete.flat_map(|d| turns.iter().map(move |c| c.after(&d)).collect::<Vec<_>>()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuous_symmetries_are_315_turns_about_their_line_times_the_discrete_ones() {
        let offset = Vec3::new(10.0, 0.0, 0.0);
        let shift = Pose { t_mm: Vec3::new(5.0, 0.0, 1000.0), ..Pose::identity() };
        let all = symmetries(&[shift], &[(Vec3::z(), offset)]);
        assert_eq!(all.len(), 2 * 315);
        assert!((all[0].r - Pose::identity().r).norm() < 1e-12 && all[0].t_mm.norm() < 1e-12);
        assert!(all[..315].iter().all(|s| (s.apply(&offset) - offset).norm() < 1e-9));
        assert_eq!(symmetries(&[], &[]), [Pose::identity()]);
    }
}
