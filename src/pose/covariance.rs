//! How sure a pose is: its covariance from the reprojection errors that are left.

use nalgebra::{Matrix2x6, Matrix6, Matrix6x2, Vector6};

use crate::geom::{Camera, Correspondences, Pose, Vec2, Vec3, reprojection_jacobian};

/// Fewest groups whose spread says anything about errors that a group's members share.
const MIN_GROUPS: usize = 4;

/// Covariance of a pose, and what it was estimated from.
#[derive(Debug, Clone, PartialEq)]
pub struct PoseCovariance {
    /// Of `[w, d]`, w the rotation vector (rad) and d the translation (mm) of a disturbance on the left, in the axes of
    /// the camera: `R_true = exp(w) R`, `t_true = t + d`. Rows and columns w first: rad^2, rad mm, mm^2.
    pub matrix: Matrix6<f64>,
    /// Standard deviation that one correspondence would have if all were independent, px along an axis.
    pub sigma_px: f64,
    /// Independent correspondences that would determine the pose as well: the given number, less where errors are
    /// shared.
    pub effective: f64,
}

impl PoseCovariance {
    /// With the standard deviations of the rotation and of the translation multiplied by factors; correlations stay.
    pub fn scaled(mut self, rotation: f64, translation: f64) -> Self {
        let factor = |i: usize| if i < 3 { rotation } else { translation };
        for row in 0..6 {
            for column in 0..6 {
                self.matrix[(row, column)] *= factor(row) * factor(column);
            }
        }
        self
    }

    /// Standard deviations about the camera's x, y, z, rad.
    pub fn sigma_rotation_rad(&self) -> [f64; 3] {
        std::array::from_fn(|i| self.matrix[(i, i)].max(0.0).sqrt())
    }

    /// Standard deviations along the camera's x, y, z, mm.
    pub fn sigma_translation_mm(&self) -> [f64; 3] {
        std::array::from_fn(|i| self.matrix[(i + 3, i + 3)].max(0.0).sqrt())
    }
}

/// Estimates the covariance of a `pose` that was fitted to the `inliers` of correspondences by least squares. `None` when the
/// inliers are fewer than four distinct points or do not determine a pose.
///
/// With independent errors of variance s^2 it is `s^2 H^-1`, `H = sum J^T J`. Errors are not independent: every cell that sees a
/// corner may be wrong in the same way, and the corners of one cell may be wrong together. So the residuals are taken apart
/// into what the sightings of a point share, what those of a cell share, and the rest, of variance e^2:
/// - s^2 is estimated from the mean residuals of the distinct points: `sum n_j |m_j|^2 / (2 m - 6)` for m points of n_j
///   sightings, which for independent errors is e^2 and grows with what the sightings of a point share (at least e^2 is
///   taken);
/// - what cells shift as wholes (the mean residuals of cells, less what e^2 gives them) is added in the directions in which that
///   moves a pose;
/// - what the scores `J^T r` of cells vary beyond both (the middle of the sandwich estimator clustered by cells) is added evenly:
///   a dozen cells do not tell its shape.
///
/// An error that all sightings share as a pose would (all corners as if the object were nearer) leaves no residual and is not in
/// it. Outliers that the fit left out do not count; where it weighed heavy tails down the result is a little large.
///
/// # Source
/// Sandwich with two-way clusters: Cameron, Gelbach, Miller, *Robust inference with multiway clustering*, JBES 2011;
/// components of variance by a two-way analysis: Searle, Casella, McCulloch, *Variance Components*, 1992, chapter 4.
pub fn pose_covariance(
    camera: &Camera,
    pose: &Pose,
    seen: &Correspondences,
    inliers: &[usize],
) -> Option<PoseCovariance> {
    let residuals = Residuals::of(camera, pose, seen, inliers)?;
    let whiten = residuals.information.cholesky()?.l().try_inverse()?;
    let num = residuals.seen.len() as f64;
    let plain = residuals.plain();
    let own = residuals.own().unwrap_or(plain);
    let between = residuals.between_points();
    let mut variance = Matrix6::identity() * between.max(own);
    variance += residuals.shared_in_cells(&whiten, own);
    let matrix = whiten.transpose() * variance * whiten;
    let matrix = (matrix + matrix.transpose()) * 0.5;
    matrix.iter().all(|v| v.is_finite()).then(|| PoseCovariance {
        matrix,
        sigma_px: plain.sqrt(),
        effective: if plain > 0.0 { num * 6.0 * plain / variance.trace() } else { num },
    })
}

/// The residuals of the inliers and what becomes of them.
struct Residuals {
    /// `sum J^T J`.
    information: Matrix6<f64>,
    /// Cell, distinct point and residual (px) of each.
    seen: Vec<(usize, usize, Vec2)>,
    num_points: usize,
    /// Of each cell.
    cells: Vec<Cell>,
}

/// Sums over the sightings of a cell.
#[derive(Default)]
struct Cell {
    /// `sum J^T r`.
    score: Vector6<f64>,
    /// `sum J^T`: what a shift of all its pixels does to the score.
    shift: Matrix6x2<f64>,
}

impl Residuals {
    fn of(
        camera: &Camera,
        pose: &Pose,
        correspondences: &Correspondences,
        inliers: &[usize],
    ) -> Option<Self> {
        let Correspondences { points: all, pixels, group_size } = correspondences;
        let mut information = Matrix6::zeros();
        let (mut seen, mut points, mut cells) =
            (Vec::new(), Vec::<Vec3>::new(), Vec::<Cell>::new());
        let mut last_cell = None;
        for &i in inliers {
            let (x, pixel) = (all.get(i)?, pixels.get(i)?);
            let rows = reprojection_jacobian(camera, pose, x);
            let jacobian = Matrix2x6::from_fn(|row, column| rows[row][column]);
            let residual = camera.project(&pose.apply(x)) - pixel;
            information += jacobian.transpose() * jacobian;
            let point = points.iter().position(|known| known == x).unwrap_or_else(|| {
                points.push(*x);
                points.len() - 1
            });
            let cell = Some(i / group_size.max(&1));
            if cell != last_cell {
                cells.push(Cell::default());
                last_cell = cell;
            }
            let sums = cells.last_mut()?;
            sums.score += jacobian.transpose() * residual;
            sums.shift += jacobian.transpose();
            seen.push((cells.len() - 1, point, residual));
        }
        let num_points = points.len();
        (num_points >= 4).then_some(Self { information, seen, num_points, cells })
    }

    /// Variance of a residual along an axis, were all independent, px^2.
    fn plain(&self) -> f64 {
        let squares: f64 = self.seen.iter().map(|(_, _, r)| r.norm_squared()).sum();
        squares / (2.0 * self.seen.len() as f64 - 6.0)
    }

    /// Mean residual and count of each of `num` groups, by the number that `group` gives.
    fn means(
        &self,
        num: usize,
        group: impl Fn(&(usize, usize, Vec2)) -> usize,
    ) -> Vec<(Vec2, f64)> {
        let mut means = vec![(Vec2::zeros(), 0.0); num];
        for one in &self.seen {
            let (sum, count) = &mut means[group(one)];
            *sum += one.2;
            *count += 1.0;
        }
        means.iter().map(|(sum, count)| (sum / f64::max(*count, 1.0), *count)).collect()
    }

    /// Variance that the mean residuals of the points tell, for one sighting, px^2.
    fn between_points(&self) -> f64 {
        let points = self.means(self.num_points, |s| s.1);
        let squares: f64 = points.iter().map(|(mean, count)| count * mean.norm_squared()).sum();
        squares / (2.0 * self.num_points as f64 - 6.0)
    }

    /// Variance of what neither a point's nor a cell's sightings share, px^2; `None` where hardly any is left.
    fn own(&self) -> Option<f64> {
        let freedom = (self.seen.len() + 1).checked_sub(self.num_points + self.cells.len())?;
        if freedom < MIN_GROUPS {
            return None;
        }
        let points = self.means(self.num_points, |s| s.1);
        let cells = self.means(self.cells.len(), |s| s.0);
        let all = self.seen.iter().map(|s| s.2).sum::<Vec2>() / self.seen.len() as f64;
        let rest = |s: &(usize, usize, Vec2)| s.2 - points[s.1].0 - cells[s.0].0 + all;
        let squares: f64 = self.seen.iter().map(|s| rest(s).norm_squared()).sum();
        Some(squares / (2.0 * freedom as f64))
    }

    /// What errors that cells share add to `own`, in the coordinates where the information is the identity; px^2.
    fn shared_in_cells(&self, whiten: &Matrix6<f64>, own: f64) -> Matrix6<f64> {
        let num = self.cells.len() as f64;
        if self.cells.len() < MIN_GROUPS {
            return Matrix6::zeros();
        }
        let means = self.means(self.cells.len(), |s| s.0);
        let all = self.seen.iter().map(|s| s.2).sum::<Vec2>() / self.seen.len() as f64;
        let squares: f64 = means.iter().map(|(m, count)| count * (m - all).norm_squared()).sum();
        let per_cell = self.seen.len() as f64 / num;
        let shift_px2 = ((squares / (2.0 * (num - 1.0)) - own) / per_cell).max(0.0);
        let (mut shifted, mut scatter) = (Matrix6::zeros(), 0.0);
        for Cell { score, shift } in &self.cells {
            let shift = whiten * shift;
            shifted += shift * shift.transpose() * shift_px2;
            // The scores of all cells add up to 0 at the optimum.
            scatter += (whiten * score).norm_squared() * num / (num - 1.0);
        }
        let beyond = (scatter - shifted.trace()) / 6.0 - own;
        shifted + Matrix6::identity() * beyond.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::{box_corners, moved_by, refine_pose};
    use crate::pose::{RansacConfig, solve_pnp_ransac};
    use crate::seed;
    use nalgebra::{Rotation3, SymmetricEigen};
    use rand::Rng;
    use rand_chacha::ChaCha8Rng;

    const CELLS: usize = 12;
    const DRAWS: u64 = 400;

    fn camera() -> Camera {
        Camera::from_row_major(&[303.8, 0.5, 256.0, 0.0, 300.0, 250.0, 0.0, 0.0, 1.0]).unwrap()
    }

    fn points() -> Vec<Vec3> {
        let corners = box_corners(&[[-52.0, -55.0, -57.0], [52.0, 54.0, 58.0]]);
        corners.iter().copied().cycle().take(8 * CELLS).collect()
    }

    fn truth() -> Pose {
        let r = *Rotation3::from_euler_angles(0.5, -0.3, 2.0).matrix();
        Pose { r, t_mm: Vec3::new(60.0, -40.0, 620.0) }
    }

    fn gauss(rng: &mut ChaCha8Rng, sigma: f64) -> Vec2 {
        let (a, b): (f64, f64) = (rng.random(), rng.random());
        let (sin, cos) = (2.0 * std::f64::consts::PI * b).sin_cos();
        Vec2::new(cos, sin) * sigma * (-2.0 * (1.0 - a).ln()).sqrt()
    }

    /// Standard deviations of noise: of each sighting, shared by a corner's, shared by a cell's.
    type Noise = [f64; 3];

    fn disturbed(points: &[Vec3], noise: Noise, rng: &mut ChaCha8Rng) -> Vec<Vec2> {
        let [own, corner, cell] = noise;
        let corners: Vec<Vec2> = (0..8).map(|_| gauss(rng, corner)).collect();
        let cells: Vec<Vec2> = (0..CELLS).map(|_| gauss(rng, cell)).collect();
        let seen = truth().project(&camera(), points);
        let sighting = |(i, p): (usize, &Vec2)| p + gauss(rng, own) + corners[i % 8] + cells[i / 8];
        seen.iter().enumerate().map(sighting).collect()
    }

    /// What was solved minus what was true, as `[w, d]`.
    fn error_of(pose: &Pose) -> Vector6<f64> {
        let turn = Rotation3::from_matrix_unchecked(truth().r * pose.r.transpose()).scaled_axis();
        let shift = truth().t_mm - pose.t_mm;
        Vector6::new(turn.x, turn.y, turn.z, shift.x, shift.y, shift.z)
    }

    fn correspondences(points: &[Vec3], pixels: Vec<Vec2>) -> Correspondences {
        Correspondences { points: points.to_vec(), pixels, group_size: 8 }
    }

    /// The covariance of solved poses over many draws, and the mean of the estimates.
    fn simulate(
        noise: Noise,
        solve: impl Fn(&[Vec3], &[Vec2], u64) -> (Pose, Vec<usize>),
    ) -> (Matrix6<f64>, Matrix6<f64>) {
        let (points, camera) = (points(), camera());
        let mut rng = seed::stream(31, &noise.map(f64::to_bits));
        let (mut empirical, mut estimated) = (Matrix6::zeros(), Matrix6::zeros());
        for draw in 0..DRAWS {
            let pixels = disturbed(&points, noise, &mut rng);
            let (pose, inliers) = solve(&points, &pixels, draw);
            let seen = correspondences(&points, pixels);
            let found = pose_covariance(&camera, &pose, &seen, &inliers).unwrap();
            let error = error_of(&pose);
            empirical += error * error.transpose() / DRAWS as f64;
            estimated += found.matrix / DRAWS as f64;
        }
        (empirical, estimated)
    }

    fn least_squares(points: &[Vec3], pixels: &[Vec2], _: u64) -> (Pose, Vec<usize>) {
        let pose = refine_pose(&camera(), points, pixels, &truth(), 50).unwrap().pose;
        (pose, (0..points.len()).collect())
    }

    /// Variances along any direction of the six, estimate over truth: the smallest and the largest ratio.
    fn ratios(empirical: &Matrix6<f64>, estimated: &Matrix6<f64>) -> (f64, f64) {
        let whiten = empirical.cholesky().unwrap().l().try_inverse().unwrap();
        let values = SymmetricEigen::new(whiten * estimated * whiten.transpose()).eigenvalues;
        (values.min(), values.max())
    }

    #[test]
    fn the_estimate_is_the_scatter_of_solved_poses() {
        // 400 draws scatter by 7 % in each direction, by 25 % over the extremes of all; the estimate errs to the large side
        // where it takes the larger of two numbers.
        for noise in [
            [1.0, 0.0, 0.0],
            [0.3, 0.0, 0.0],
            [0.5, 1.5, 0.0], // 96 sightings are worth little more than 8
            [0.5, 0.0, 1.5], // 12 cells that shift as wholes
            [0.5, 1.0, 1.0],
        ] {
            let (empirical, estimated) = simulate(noise, least_squares);
            let (least, largest) = ratios(&empirical, &estimated);
            assert!(least > 0.7 && largest < 1.9, "{noise:?}: {least:.2} to {largest:.2}");
        }
    }

    #[test]
    fn it_holds_for_the_solver_with_its_choice_of_inliers() {
        let config = RansacConfig::default();
        let solve = |points: &[Vec3], pixels: &[Vec2], seed| {
            let found = solve_pnp_ransac(&camera(), points, pixels, &config, seed).unwrap();
            (found.pose, found.inliers)
        };
        let (empirical, estimated) = simulate([1.0, 0.0, 0.0], solve);
        let (least, largest) = ratios(&empirical, &estimated);
        assert!(least > 0.8 && largest < 1.9, "{least:.2} to {largest:.2}");
    }

    #[test]
    fn errors_that_sightings_share_make_fewer_of_them() {
        let (points, camera) = (points(), camera());
        let mut rng = seed::stream(32, &[]);
        let mut mean = |noise: Noise| {
            let effective = |_| {
                let pixels = disturbed(&points, noise, &mut rng);
                let (pose, inliers) = least_squares(&points, &pixels, 0);
                let seen = correspondences(&points, pixels);
                pose_covariance(&camera, &pose, &seen, &inliers).unwrap().effective
            };
            (0..50).map(effective).sum::<f64>() / 50.0
        };
        let (independent, by_corner, by_cell) =
            (mean([1.0, 0.0, 0.0]), mean([0.2, 1.0, 0.0]), mean([0.2, 0.0, 1.0]));
        assert!((60.0..96.1).contains(&independent), "{independent}");
        assert!(by_corner < 14.0 && by_cell < 50.0, "{by_corner}, {by_cell}");
    }

    #[test]
    fn the_frame_is_the_cameras_and_the_disturbance_on_the_left() {
        // Of a far object depth is the least known; its direction is across the image.
        let (points, camera) = (points(), camera());
        let mut rng = seed::stream(33, &[]);
        let pixels = disturbed(&points, [0.5, 0.0, 0.0], &mut rng);
        let (pose, inliers) = least_squares(&points, &pixels, 0);
        let found =
            pose_covariance(&camera, &pose, &correspondences(&points, pixels), &inliers).unwrap();
        let [x, y, z] = found.sigma_translation_mm();
        assert!(z > 3.0 * x && z > 3.0 * y, "{x} {y} {z}");
        assert!((0.3..0.7).contains(&found.sigma_px), "{}", found.sigma_px);
        // Turning the camera about its axis turns the covariance's axes with it.
        let quarter = Rotation3::from_euler_angles(0.0, 0.0, std::f64::consts::FRAC_PI_2);
        let turned = Pose { r: quarter.matrix() * pose.r, t_mm: quarter * pose.t_mm };
        let square = Camera::new(300.0, 300.0, 0.0, 0.0).unwrap();
        let at = |pose: &Pose| {
            let pixels: Vec<Vec2> = (pose.project(&square, &points).iter().enumerate())
                .map(|(i, p)| p + Vec2::new(0.1, 0.1) * ((i % 5) as f64 - 2.0))
                .collect();
            pose_covariance(&square, pose, &correspondences(&points, pixels), &inliers).unwrap()
        };
        let (a, b) = (at(&pose).sigma_rotation_rad(), at(&turned).sigma_rotation_rad());
        assert!((a[0] / b[1] - 1.0).abs() < 0.3 && (a[2] / b[2] - 1.0).abs() < 0.3, "{a:?} {b:?}");
        let moved = moved_by(&pose, &Vector6::new(0.0, 0.0, 0.01, 0.0, 0.0, 5.0));
        assert!((moved.t_mm.z - pose.t_mm.z - 5.0).abs() < 1e-12);
    }

    #[test]
    fn factors_scale_standard_deviations_and_leave_correlations() {
        let (points, camera) = (points(), camera());
        let mut rng = seed::stream(34, &[]);
        let pixels = disturbed(&points, [1.0, 0.0, 0.0], &mut rng);
        let (pose, inliers) = least_squares(&points, &pixels, 0);
        let seen = correspondences(&points, pixels);
        let given = pose_covariance(&camera, &pose, &seen, &inliers).unwrap();
        let scaled = given.clone().scaled(5.0, 3.0);
        let near = |a: f64, b: f64| assert!((a / b - 1.0).abs() < 1e-12, "{a} {b}");
        for i in 0..3 {
            near(scaled.sigma_rotation_rad()[i], 5.0 * given.sigma_rotation_rad()[i]);
            near(scaled.sigma_translation_mm()[i], 3.0 * given.sigma_translation_mm()[i]);
        }
        let correlation = |m: &Matrix6<f64>| m[(1, 3)] / (m[(1, 1)] * m[(3, 3)]).sqrt();
        near(correlation(&scaled.matrix), correlation(&given.matrix));
        assert_eq!(scaled.matrix, scaled.matrix.transpose());
        assert_eq!(scaled.effective, given.effective);
    }

    #[test]
    fn what_determines_no_pose_has_none() {
        let (points, camera, pose) = (points(), camera(), truth());
        let pixels = pose.project(&camera, &points);
        let seen = correspondences(&points, pixels);
        let of = |inliers: &[usize]| pose_covariance(&camera, &pose, &seen, inliers);
        assert!(of(&[]).is_none() && of(&[0, 1, 2]).is_none());
        assert!(of(&[0, 8, 16, 24]).is_none(), "one corner four times");
        assert!(of(&[0, 1000]).is_none());
        // Perfect sightings leave nothing to be unsure of.
        let all: Vec<usize> = (0..points.len()).collect();
        let sure = of(&all).unwrap();
        assert!(sure.sigma_translation_mm()[2] < 1e-9 && sure.effective.is_finite());
    }
}
