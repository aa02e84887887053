//! Which of the equal poses of a symmetric object a network is to learn: equal pictures get equal labels.

use nalgebra::{Matrix3, Rotation3};

use super::ModelSymmetries;
use crate::geom::{Pose, Vec3, best_turn};

impl ModelSymmetries {
    /// Whether the object has none.
    pub fn is_empty(&self) -> bool {
        self.discrete.is_empty() && self.continuous.is_empty()
    }

    /// Of the poses that look like `pose`, the one with the smallest rotation as seen along the ray to the object's centre of symmetry (allocentric):
    /// the same for all of them, but for a set of poses of measure 0. Without symmetries `pose` itself, bit for bit.
    ///
    /// The discrete transforms are taken as a whole group, as `models_info.json` lists them; each is combined with the best turn
    /// about the continuous axis. An object with two axes is a ball, which is never turned.
    pub fn label(&self, pose: &Pose) -> Pose {
        if self.is_empty() {
            return *pose;
        }
        let seen = towards(&pose.apply(&self.centre())).transpose() * pose.r;
        let mut best: Option<(f64, Pose)> = None;
        for discrete in self.group() {
            let turned = seen * discrete.r;
            let own = discrete.after(&best_turn(&self.continuous, &turned));
            let trace = (seen * own.r).trace();
            // The smallest angle has the largest trace; rounding decides nothing.
            if best.as_ref().is_none_or(|(most, _)| trace > most + 1e-9) {
                best = Some((trace, own));
            }
        }
        best.map_or(*pose, |(_, symmetry)| pose.after(&symmetry))
    }

    /// The discrete transforms, the identity first.
    fn group(&self) -> impl Iterator<Item = Pose> {
        std::iter::once(Pose::identity()).chain(self.discrete.iter().copied())
    }

    /// A point that all symmetries leave where it is, mm, object frame: equal poses see it in one direction, which they need
    /// not do with the origin.
    fn centre(&self) -> Vec3 {
        let on_axis = self.continuous.first().map_or_else(Vec3::zeros, |(_, offset)| *offset);
        let sum = self.group().map(|symmetry| symmetry.apply(&on_axis)).sum::<Vec3>();
        sum / (1 + self.discrete.len()) as f64
    }
}

/// The smallest rotation that takes the optical axis to the direction of a point.
fn towards(t_mm: &Vec3) -> Matrix3<f64> {
    let turn = Rotation3::rotation_between(&Vec3::z(), t_mm);
    turn.map_or_else(Matrix3::identity, |turn| *turn.matrix())
}

#[cfg(test)]
mod tests {
    use super::*;
    use nalgebra::Unit;

    fn pose(angles: [f64; 3]) -> Pose {
        let r = *Rotation3::from_euler_angles(angles[0], angles[1], angles[2]).matrix();
        Pose { r, t_mm: Vec3::new(120.0, -80.0, 700.0) }
    }

    fn turn(axis: Vec3, angle_rad: f64, offset: Vec3) -> Pose {
        let r = *Rotation3::from_axis_angle(&Unit::new_normalize(axis), angle_rad).matrix();
        Pose { r, t_mm: offset - r * offset }
    }

    fn distance(a: &Pose, b: &Pose) -> f64 {
        (a.r - b.r).norm() + (a.t_mm - b.t_mm).norm()
    }

    fn poses() -> impl Iterator<Item = Pose> {
        (0..40).map(f64::from).map(|i| pose([0.37 * i, 0.11 + 0.23 * i, 1.0 - 0.19 * i]))
    }

    #[test]
    fn all_equivalents_of_a_pose_have_one_label() {
        let offset = Vec3::new(5.0, -3.0, 0.0);
        let z = Vec3::z();
        let flip = turn(Vec3::x(), std::f64::consts::PI, Vec3::zeros());
        let four = [1.0, 2.0, 3.0].map(|k| turn(z, k * std::f64::consts::FRAC_PI_2, offset));
        let wheel = ModelSymmetries { discrete: four.to_vec(), continuous: vec![] };
        let cone = ModelSymmetries { discrete: vec![], continuous: vec![(z * 2.0, offset)] };
        let cylinder =
            ModelSymmetries { discrete: vec![flip], continuous: vec![(z, Vec3::zeros())] };
        for pose in poses() {
            for equal in &wheel.discrete {
                let other = pose.after(equal);
                assert!(distance(&wheel.label(&pose), &wheel.label(&other)) < 1e-6);
            }
            for angle in [0.3, 1.9, -2.8] {
                let other = pose.after(&turn(z, angle, offset));
                assert!(distance(&cone.label(&pose), &cone.label(&other)) < 1e-6);
                let other = pose.after(&flip).after(&turn(z, angle, Vec3::zeros()));
                assert!(distance(&cylinder.label(&pose), &cylinder.label(&other)) < 1e-6);
            }
        }
    }

    #[test]
    fn a_label_is_an_equivalent_of_its_pose() {
        let offset = Vec3::new(5.0, -3.0, 0.0);
        let cone = ModelSymmetries { discrete: vec![], continuous: vec![(Vec3::z(), offset)] };
        for pose in poses() {
            let label = cone.label(&pose);
            // Points of the axis stay, and so do distances to it.
            for along in [-40.0, 0.0, 25.0] {
                let point = offset + Vec3::z() * along;
                assert!((label.apply(&point) - pose.apply(&point)).norm() < 1e-9);
            }
            assert!((label.r.determinant() - 1.0).abs() < 1e-9);
        }
    }

    #[test]
    fn no_turn_about_the_axis_is_smaller() {
        let cone =
            ModelSymmetries { discrete: vec![], continuous: vec![(Vec3::z(), Vec3::zeros())] };
        let size = |pose: &Pose| (towards(&pose.t_mm).transpose() * pose.r).trace();
        for pose in poses() {
            let label = cone.label(&pose);
            for step in 1..36 {
                let other = label.after(&turn(Vec3::z(), f64::from(step) * 0.1745, Vec3::zeros()));
                assert!(size(&other) <= size(&label) + 1e-9);
            }
        }
    }

    #[test]
    fn an_object_without_symmetries_and_a_ball() {
        let ball = ModelSymmetries {
            discrete: vec![],
            continuous: vec![(Vec3::z(), Vec3::zeros()), (Vec3::x(), Vec3::zeros())],
        };
        for pose in poses() {
            assert_eq!(distance(&ModelSymmetries::default().label(&pose), &pose), 0.0);
            assert!((ball.label(&pose).r - towards(&pose.t_mm)).norm() < 1e-9);
        }
    }
}
