//! Turns about lines that an object may be turned about.

use nalgebra::{Matrix3, Rotation3, Unit};

use super::{Pose, Vec3};

/// Two axes are the same line's when the sine of their angle is below this.
const PARALLEL: f64 = 1e-3;

/// The turn S about the given lines (direction, a point on it in mm) after which the rotation `seen` S is the smallest; none without
/// a line. Of two lines or more, which make the object a ball, S undoes `seen`.
///
/// The angle about the unit axis a is `atan2(tr(R [a]x), tr R - a^T R a)`: the trace of R S has its maximum there.
pub fn best_turn(lines: &[(Vec3, Vec3)], seen: &Matrix3<f64>) -> Pose {
    let Some((first, offset)) = lines.first() else { return Pose::identity() };
    let is_other =
        |(axis, _): &(Vec3, Vec3)| axis.normalize().cross(&first.normalize()).norm() > PARALLEL;
    let turn = if lines.iter().any(is_other) {
        seen.transpose()
    } else {
        let axis = Unit::new_normalize(*first);
        let a = axis.into_inner();
        let along = (a.transpose() * seen * a)[(0, 0)];
        let angle_rad = (seen * a.cross_matrix()).trace().atan2(seen.trace() - along);
        *Rotation3::from_axis_angle(&axis, angle_rad).matrix()
    };
    Pose { r: turn, t_mm: offset - turn * offset }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_about_the_line_is_undone_and_leaves_the_lines_points() {
        let offset = Vec3::new(5.0, -3.0, 1.0);
        let axis = Unit::new_normalize(Vec3::new(1.0, 2.0, -0.5));
        for angle_rad in [-2.5, -0.3, 0.0, 1.1, 3.0] {
            let seen = *Rotation3::from_axis_angle(&axis, angle_rad).matrix();
            let turn = best_turn(&[(axis.into_inner() * 3.0, offset)], &seen);
            assert!((seen * turn.r - Matrix3::identity()).norm() < 1e-9);
            assert!((turn.apply(&offset) - offset).norm() < 1e-9);
        }
        assert_eq!(best_turn(&[], &Matrix3::identity()), Pose::identity());
    }
}
