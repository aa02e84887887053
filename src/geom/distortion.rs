//! Lens distortion: from the pinhole's plane to the picture's and back.

use anyhow::{Result, bail, ensure};
use nalgebra::Matrix2;

use super::Vec2;

/// How many numbers OpenCV's model may come with: tangential terms, then k3, k4 to k6, s1 to s4, two tilts.
const COUNTS: [usize; 5] = [4, 5, 8, 12, 14];
/// Angles from the axis at which a radial function is looked at for its turning point, over 90 degrees.
const NUM_ANGLES: usize = 4096;
/// Bisections of an interval: to the last bit.
const NUM_BISECTIONS: usize = 80;
/// Newton steps of [`Distortion::undistort`].
const NUM_STEPS: usize = 30;
/// What is left of the distance there, relative to 1 and the point's own.
const TOLERANCE: f64 = 1e-13;

/// What a lens does to points `(x / z, y / z)` of the pinhole's plane.
///
/// # Source
/// OpenCV, *Camera Calibration and 3D Reconstruction* (`calib3d`): the model of `projectPoints`, and that of
/// `cv::fisheye`, which ROS calls `equidistant` (Kannala, Brandt, *A Generic Camera Model*, PAMI 2006).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Distortion {
    /// A pinhole.
    None,
    /// Radial polynomial (or quotient of two), decentring, thin prism.
    Polynomial {
        /// `k1` to `k6`: the radius is multiplied by `(1 + k1 r^2 + k2 r^4 + k3 r^6) / (1 + k4 r^2 + k5 r^4 + k6 r^6)`.
        k: [f64; 6],
        /// `p1`, `p2`.
        p: [f64; 2],
        /// `s1` to `s4`: `s1 r^2 + s2 r^4` is added to x, `s3 r^2 + s4 r^4` to y.
        s: [f64; 4],
    },
    /// The distance from the centre is `a (1 + k1 a^2 + k2 a^4 + k3 a^6 + k4 a^8)`, `a` the angle from the axis, rad.
    Equidistant {
        /// `k1` to `k4`.
        k: [f64; 4],
    },
}

impl Distortion {
    /// OpenCV's coefficients in its order: `k1 k2 p1 p2 [k3 [k4 k5 k6 [s1 s2 s3 s4 [tilts]]]]`. None, or zeros alone, are
    /// a pinhole.
    ///
    /// # Errors
    /// If there are not 0, 4, 5, 8, 12 or 14, one is not finite, or the sensor is tilted.
    pub fn polynomial(coefficients: &[f64]) -> Result<Self> {
        let n = coefficients.len();
        ensure!(
            n == 0 || COUNTS.contains(&n),
            "{n} distortion coefficients, expected 4, 5, 8 or 12 (k1 k2 p1 p2 k3 k4 k5 k6 s1 s2 s3 s4)"
        );
        ensure_finite(coefficients)?;
        let at = |i: usize| coefficients.get(i).copied().unwrap_or(0.0);
        if at(12) != 0.0 || at(13) != 0.0 {
            bail!(
                "distortion coefficients tilt the sensor (tau {} and {}), which is not supported: calibrate without \
                 CALIB_TILTED_MODEL",
                at(12),
                at(13)
            );
        }
        Ok(match coefficients.iter().all(|v| *v == 0.0) {
            true => Self::None,
            false => Self::Polynomial {
                k: [at(0), at(1), at(4), at(5), at(6), at(7)],
                p: [at(2), at(3)],
                s: [at(8), at(9), at(10), at(11)],
            },
        })
    }

    /// `k1` to `k4` of a fisheye lens. Zeros are not a pinhole: they are the exact equidistant lens.
    ///
    /// # Errors
    /// If there are not 4, or one is not finite.
    pub fn equidistant(coefficients: &[f64]) -> Result<Self> {
        let Ok(k) = <[f64; 4]>::try_from(coefficients) else {
            bail!(
                "{} distortion coefficients of a fisheye lens (equidistant), expected 4",
                coefficients.len()
            );
        };
        ensure_finite(&k)?;
        Ok(Self::Equidistant { k })
    }

    /// True for a pinhole.
    pub fn is_none(&self) -> bool {
        *self == Self::None
    }

    /// Where a point of the pinhole's plane is seen, in units of the focal length.
    ///
    /// Beyond [`Distortion::reach`] the formula goes on but means nothing.
    pub fn distort(&self, point: &Vec2) -> Vec2 {
        match self {
            Self::None => *point,
            Self::Polynomial { p: [p1, p2], s, .. } => {
                let (x, y) = (point.x, point.y);
                let r2 = x * x + y * y;
                let radial = self.radial_factor(r2);
                Vec2::new(
                    x * radial
                        + 2.0 * p1 * x * y
                        + p2 * (r2 + 2.0 * x * x)
                        + (s[0] + s[1] * r2) * r2,
                    y * radial
                        + p1 * (r2 + 2.0 * y * y)
                        + 2.0 * p2 * x * y
                        + (s[2] + s[3] * r2) * r2,
                )
            }
            Self::Equidistant { .. } => {
                let radius = point.norm();
                if radius < 1e-9 { *point } else { point * (self.radial(radius) / radius) }
            }
        }
    }

    /// The point of the pinhole's plane that is seen at `seen`; `None` when none within reach is.
    pub fn undistort(&self, seen: &Vec2) -> Option<Vec2> {
        if self.is_none() {
            return Some(*seen);
        }
        let reach = self.reach();
        let wanted = seen.norm();
        let radius = self.radius_of(wanted, reach)?;
        let mut point = if wanted > 0.0 { seen * (radius / wanted) } else { *seen };
        let mut left = self.distort(&point) - seen;
        let small = |left: &Vec2| left.norm() <= TOLERANCE * (1.0 + wanted);
        for _ in 0..NUM_STEPS {
            if small(&left) {
                break;
            }
            let step = self.jacobian(&point).try_inverse()? * left;
            // Halved until it brings the point nearer: far out the terms bend.
            let mut fraction = 1.0;
            let better = loop {
                let next = point - step * fraction;
                let next_left = self.distort(&next) - seen;
                if next_left.norm() < left.norm() {
                    break Some((next, next_left));
                }
                fraction *= 0.5;
                if fraction < 1e-6 {
                    break None;
                }
            };
            match better {
                Some((next, next_left)) => (point, left) = (next, next_left),
                None => break,
            }
        }
        // Rounding may end the descent some units above the tolerance.
        (left.norm() <= 1e3 * TOLERANCE * (1.0 + wanted) && point.norm() < reach).then_some(point)
    }

    /// The distance from the axis (in the pinhole's plane) up to which points farther out are seen farther out: beyond it
    /// the radial polynomial turns back and would show the same place again. Infinite where it never does.
    pub fn reach(&self) -> f64 {
        if self.is_none() {
            return f64::INFINITY;
        }
        let angle = |i: f64| i * std::f64::consts::FRAC_PI_2 / NUM_ANGLES as f64;
        let rises = |angle: f64| self.slope(angle.tan()) > 0.0;
        let Some(first) = (1..NUM_ANGLES).find(|&i| !rises(angle(i as f64))) else {
            return f64::INFINITY;
        };
        let (mut low, mut high) = (angle(first as f64 - 1.0), angle(first as f64));
        for _ in 0..NUM_BISECTIONS {
            let middle = (low + high) / 2.0;
            if rises(middle) { low = middle } else { high = middle }
        }
        low.tan()
    }

    /// Derivative of [`Distortion::distort`]: rows x, y.
    pub fn jacobian(&self, point: &Vec2) -> Matrix2<f64> {
        let (x, y) = (point.x, point.y);
        let r2 = x * x + y * y;
        match self {
            Self::None => Matrix2::identity(),
            Self::Polynomial { p: [p1, p2], s, .. } => {
                let radial = self.radial_factor(r2);
                // d(factor)/d(r^2), by the slope of r * factor: f' = factor + 2 r^2 dfactor.
                let bend = self.radial_bend(r2);
                let prism = [s[0] + 2.0 * s[1] * r2, s[2] + 2.0 * s[3] * r2];
                Matrix2::new(
                    radial + 2.0 * x * x * bend + 2.0 * p1 * y + 6.0 * p2 * x + 2.0 * x * prism[0],
                    2.0 * x * y * bend + 2.0 * p1 * x + 2.0 * p2 * y + 2.0 * y * prism[0],
                    2.0 * x * y * bend + 2.0 * p1 * x + 2.0 * p2 * y + 2.0 * x * prism[1],
                    radial + 2.0 * y * y * bend + 6.0 * p1 * y + 2.0 * p2 * x + 2.0 * y * prism[1],
                )
            }
            Self::Equidistant { .. } => {
                let radius = r2.sqrt();
                if radius < 1e-9 {
                    return Matrix2::identity();
                }
                let (ratio, slope) = (self.radial(radius) / radius, self.slope(radius));
                let unit = point / radius;
                Matrix2::identity() * ratio + unit * unit.transpose() * (slope - ratio)
            }
        }
    }

    /// What the radius is multiplied by, polynomial model.
    fn radial_factor(&self, r2: f64) -> f64 {
        let Self::Polynomial { k, .. } = self else { return 1.0 };
        (1.0 + r2 * (k[0] + r2 * (k[1] + r2 * k[2])))
            / (1.0 + r2 * (k[3] + r2 * (k[4] + r2 * k[5])))
    }

    /// Derivative of [`Distortion::radial_factor`] by `r^2`.
    fn radial_bend(&self, r2: f64) -> f64 {
        let Self::Polynomial { k, .. } = self else { return 0.0 };
        let below = 1.0 + r2 * (k[3] + r2 * (k[4] + r2 * k[5]));
        let above = k[0] + r2 * (2.0 * k[1] + 3.0 * r2 * k[2]);
        (above - self.radial_factor(r2) * (k[3] + r2 * (2.0 * k[4] + 3.0 * r2 * k[5]))) / below
    }

    /// Distance from the centre at which a point is seen, without decentring and prism.
    fn radial(&self, radius: f64) -> f64 {
        match self {
            Self::None => radius,
            Self::Polynomial { .. } => radius * self.radial_factor(radius * radius),
            Self::Equidistant { k } => {
                let a = radius.atan();
                let a2 = a * a;
                a * (1.0 + a2 * (k[0] + a2 * (k[1] + a2 * (k[2] + a2 * k[3]))))
            }
        }
    }

    /// Derivative of [`Distortion::radial`]; not above 0 also where the quotient's denominator is not.
    fn slope(&self, radius: f64) -> f64 {
        let r2 = radius * radius;
        match self {
            Self::None => 1.0,
            Self::Polynomial { k, .. } => {
                if 1.0 + r2 * (k[3] + r2 * (k[4] + r2 * k[5])) <= 0.0 {
                    return -1.0;
                }
                self.radial_factor(r2) + 2.0 * r2 * self.radial_bend(r2)
            }
            Self::Equidistant { k } => {
                let a2 = radius.atan().powi(2);
                let by_angle = 1.0
                    + a2 * (3.0 * k[0] + a2 * (5.0 * k[1] + a2 * (7.0 * k[2] + a2 * 9.0 * k[3])));
                by_angle / (1.0 + r2)
            }
        }
    }

    /// The radius within `reach` that is seen at `wanted`; the nearest one where decentring alone can reach it.
    fn radius_of(&self, wanted: f64, reach: f64) -> Option<f64> {
        let mut high = if reach.is_finite() { reach } else { wanted.max(1.0) };
        while reach.is_infinite() && self.radial(high) < wanted {
            high *= 2.0;
            if high > 1e9 {
                return None; // beyond the picture of the half space in front
            }
        }
        let mut low = 0.0;
        for _ in 0..NUM_BISECTIONS {
            let middle = (low + high) / 2.0;
            if self.radial(middle) < wanted { low = middle } else { high = middle }
        }
        Some(low)
    }
}

fn ensure_finite(coefficients: &[f64]) -> Result<()> {
    ensure!(
        coefficients.iter().all(|v| v.is_finite()),
        "a distortion coefficient is not finite: {coefficients:?}"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lenses() -> Vec<Distortion> {
        let polynomial = |c: &[f64]| Distortion::polynomial(c).unwrap();
        vec![
            Distortion::None,
            polynomial(&[-0.28, 0.07, 0.0002, -0.0003]),
            polynomial(&[0.12, -0.25, 0.001, -0.002, 0.11]),
            polynomial(&[-0.36, 0.19, 0.0, 0.0, -0.06]),
            polynomial(&[11.9, 4.2, -0.0003, 0.0001, 0.2, 12.2, 8.3, 1.1]),
            polynomial(&[0.1, 0.02, 1e-3, -1e-3, 0.0, 0.05, 0.0, 0.0, 2e-3, -1e-3, 1e-3, 5e-4]),
            Distortion::equidistant(&[-0.02, 0.003, -0.002, 0.0004]).unwrap(),
            Distortion::equidistant(&[0.0; 4]).unwrap(),
        ]
    }

    #[test]
    fn distorting_undoes_undistorting_and_the_other_way_round() {
        for lens in lenses() {
            let reach = lens.reach();
            let mut num = 0;
            for i in -20..=20 {
                for j in -20..=20 {
                    let point = Vec2::new(0.06 * f64::from(i), 0.06 * f64::from(j));
                    if point.norm() > 0.97 * reach {
                        continue;
                    }
                    let seen = lens.distort(&point);
                    let back = lens.undistort(&seen).unwrap_or_else(|| panic!("{lens:?} {point}"));
                    // Near the turning point the inverse is steep.
                    assert!((back - point).norm() < 1e-9, "{lens:?}: {point} came back as {back}");
                    assert!((lens.distort(&back) - seen).norm() < 1e-12, "{lens:?}: {point}");
                    num += 1;
                }
            }
            assert!(num > 500, "{lens:?}: {num} points within {reach}");
        }
    }

    #[test]
    fn the_formulas_give_numbers_worked_by_hand() {
        // r^2 = 0.25 + 0.0625 = 0.3125 at (0.5, 0.25)
        let lens = Distortion::polynomial(&[0.1, 0.2, 0.01, 0.02, 0.3]).unwrap();
        let r2: f64 = 0.3125;
        let radial = 1.0 + 0.1 * r2 + 0.2 * r2.powi(2) + 0.3 * r2.powi(3);
        let seen = lens.distort(&Vec2::new(0.5, 0.25));
        assert!((seen.x - (0.5 * radial + 2.0 * 0.01 * 0.125 + 0.02 * (r2 + 0.5))).abs() < 1e-15);
        assert!(
            (seen.y - (0.25 * radial + 0.01 * (r2 + 0.125) + 2.0 * 0.02 * 0.125)).abs() < 1e-15
        );
        // 45 degrees off the axis an exact equidistant lens shows pi / 4.
        let fisheye = Distortion::equidistant(&[0.0; 4]).unwrap();
        let seen = fisheye.distort(&Vec2::new(0.0, 1.0));
        assert!((seen.y - std::f64::consts::FRAC_PI_4).abs() < 1e-15 && seen.x == 0.0);
        let quotient = Distortion::polynomial(&[0.2, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.0]).unwrap();
        assert!((quotient.distort(&Vec2::new(1.0, 0.0)).x - 1.2 / 1.5).abs() < 1e-15);
    }

    #[test]
    fn the_jacobian_agrees_with_finite_differences() {
        for lens in lenses() {
            for point in [Vec2::new(0.31, -0.22), Vec2::new(-0.05, 0.4), Vec2::zeros()] {
                let jacobian = lens.jacobian(&point);
                for axis in 0..2 {
                    let mut step = Vec2::zeros();
                    step[axis] = 1e-6;
                    let slope =
                        (lens.distort(&(point + step)) - lens.distort(&(point - step))) / 2e-6;
                    assert!((slope - jacobian.column(axis)).norm() < 1e-8, "{lens:?} {point}");
                }
            }
        }
    }

    #[test]
    fn the_reach_is_where_the_polynomial_turns() {
        // r (1 - 0.3 r^2) is largest at r = 1 / sqrt(0.9).
        let lens = Distortion::polynomial(&[-0.3, 0.0, 0.0, 0.0]).unwrap();
        assert!((lens.reach() - 1.0 / 0.9_f64.sqrt()).abs() < 1e-9);
        assert_eq!(lens.undistort(&Vec2::new(0.9, 0.0)), None);
        // 1 - 0.25 r^2 in the denominator: a pole at 2.
        let pole = Distortion::polynomial(&[0.0, 0.0, 0.0, 0.0, 0.0, -0.25, 0.0, 0.0]).unwrap();
        assert!((pole.reach() - 2.0).abs() < 1e-9);
        let fisheye = Distortion::equidistant(&[0.0; 4]).unwrap();
        assert_eq!(fisheye.reach(), f64::INFINITY);
        // 90 degrees off the axis and beyond no pinhole sees.
        assert_eq!(fisheye.undistort(&Vec2::new(1.58, 0.0)), None);
    }

    #[test]
    fn counts_and_values_that_are_no_lens_are_refused() {
        for n in [1, 2, 3, 6, 7, 9, 13, 15] {
            let error = Distortion::polynomial(&vec![0.1; n]).unwrap_err().to_string();
            assert!(error.contains(&format!("{n} distortion coefficients")), "{error}");
        }
        assert!(Distortion::polynomial(&[0.0, f64::NAN, 0.0, 0.0]).is_err());
        let mut tilted = [0.0; 14];
        assert_eq!(Distortion::polynomial(&tilted).unwrap(), Distortion::None);
        tilted[13] = 0.1;
        assert!(Distortion::polynomial(&tilted).unwrap_err().to_string().contains("tilt"));
        assert!(Distortion::equidistant(&[0.0; 5]).is_err());
    }
}
