//! PnP with outliers.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::correspondences::SortedCorrespondences;
use super::fit::Fit;
use super::{epnp, p3p};
use crate::geom::{Camera, Pose, Vec2, Vec3};
use crate::schema::{above_zero, below_one};
use crate::seed;

/// Samples drawn at least: with noise a sample without outliers need not be a good one.
const MIN_SAMPLES: u32 = 12;

/// Multiples of the inlier distance that are tried one after the other.
const DISTANCES: [f64; 3] = [1.0, 2.0, 4.0];

/// Settings of [`solve_pnp_ransac`]. The default is the published setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RansacConfig {
    /// An inlier's largest reprojection distance, px of the given camera.
    #[schemars(transform = above_zero)]
    pub inlier_px: f64,
    /// Most samples of three points; fewer are drawn once the best pose is certain enough.
    #[schemars(range(min = 1))]
    pub max_iterations: u32,
    /// Wanted probability of one sample without outliers.
    #[schemars(transform = above_zero, transform = below_one)]
    pub confidence: f64,
    /// Whether poses are refined: least squares on the inliers, chosen anew, then a robust fit. Without it the
    /// answer is EPnP on the inliers of the best sample (or that sample's pose where it fits better).
    pub refine: bool,
    /// Smallest fraction of inliers among the finite correspondences for an answer.
    #[schemars(range(min = 0, max = 1))]
    #[serde(alias = "min_inlier_share")]
    pub min_inlier_fraction: f64,
    /// Where no pose has enough inliers: try again with twice and four times `inlier_px`. The pose says which distance it took; its
    /// score is divided by that factor, and its standard deviations are multiplied by it.
    pub widen: bool,
}

impl Default for RansacConfig {
    fn default() -> Self {
        Self {
            inlier_px: 5.0,
            max_iterations: 100,
            confidence: 0.99,
            refine: true,
            min_inlier_fraction: 0.15,
            widen: true,
        }
    }
}

impl RansacConfig {
    /// Whether every value is inside its range: asked for each pose, where the schema would be slow.
    fn is_in_range(&self) -> bool {
        self.inlier_px > 0.0
            && self.inlier_px.is_finite()
            && self.max_iterations >= 1
            && self.confidence > 0.0
            && self.confidence < 1.0
            && (0.0..=1.0).contains(&self.min_inlier_fraction)
    }

    /// The inlier distances that are tried, px.
    pub fn distances_px(&self) -> impl Iterator<Item = f64> {
        let num = if self.widen { DISTANCES.len() } else { 1 };
        DISTANCES.iter().take(num).map(|factor| factor * self.inlier_px)
    }
}

/// What [`solve_pnp_ransac`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct PnpSolution {
    /// The pose, in the unit of the points.
    pub pose: Pose,
    /// Indices of the correspondences within the inlier distance, ascending.
    pub inliers: Vec<usize>,
    /// Mean reprojection distance of the inliers, px.
    pub mean_residual_px: f64,
    /// The inlier distance, px: that of the settings, or twice or four times it where there was no pose within it
    /// ([`RansacConfig::widen`]).
    pub inlier_px: f64,
}

/// Why there is no pose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPose {
    /// Fewer than 4 distinct points are seen at finite pixels, or they lie on a line.
    TooFew,
    /// No pose in front of the camera was found that enough correspondences agree with.
    NoConsensus,
    /// The correspondences that agree do not determine the pose: too few distinct points, pixels in one place, or a scene
    /// behind the camera explains them far better.
    Undetermined,
}

/// The pose of `points` (object frame) seen at `pixels`, some of which may be wrong.
///
/// Samples of three distinct points give hypotheses (P3P), scored by truncated squared distances over all
/// correspondences; a hypothesis that leads is refined on its inliers. Where points are seen repeatedly, the pose of the
/// median pixels is one more hypothesis. The winner is compared with EPnP on its inliers and refined, and its inliers
/// are chosen anew up to 4 times; a last fit weighs all correspondences by Tukey's biweight of their residual.
///
/// Where no pose has enough inliers, the same is tried with twice and four times the inlier distance
/// ([`RansacConfig::widen`]): the corners of an object that is near are farther off in pixels.
///
/// The result is a function of the *set* of correspondences and the seed: their order does not matter. Correspondences that are
/// not finite are left out. `None` when no pose in front of the camera is determined: fewer than 4 usable correspondences or
/// distinct points, points on a line, pixels in one place, too few inliers, or a scene that is explained far better by
/// points behind the camera.
///
/// # Source
/// Fischler, Bolles, *Random Sample Consensus*, CACM 1981; truncated score: Torr, Zisserman, *MLESAC*, CVIU 2000; local
/// optimisation: Chum, Matas, Kittler, *Locally Optimized RANSAC*, DAGM 2003.
pub fn solve_pnp_ransac(
    camera: &Camera,
    points: &[Vec3],
    pixels: &[Vec2],
    config: &RansacConfig,
    seed: u64,
) -> Option<PnpSolution> {
    find_pose(camera, points, pixels, config, seed).ok()
}

/// As [`solve_pnp_ransac`], saying why there is no pose. Settings outside their range find none ([`NoPose::NoConsensus`]).
///
/// # Errors
/// When no pose is determined.
pub fn find_pose(
    camera: &Camera,
    points: &[Vec3],
    pixels: &[Vec2],
    config: &RansacConfig,
    seed: u64,
) -> Result<PnpSolution, NoPose> {
    if points.len() != pixels.len() || !config.is_in_range() {
        return Err(NoPose::NoConsensus);
    }
    let data = SortedCorrespondences::new(camera, points, pixels).ok_or(NoPose::TooFew)?;
    for inlier_px in config.distances_px() {
        let config = RansacConfig { inlier_px, ..config.clone() };
        let found = find_within(camera, &data, &config, seed);
        if !matches!(found, Err(NoPose::NoConsensus)) {
            return found;
        }
    }
    Err(NoPose::NoConsensus)
}

/// The pose that enough correspondences agree with within `config.inlier_px`.
fn find_within(
    camera: &Camera,
    data: &SortedCorrespondences,
    config: &RansacConfig,
    seed: u64,
) -> Result<PnpSolution, NoPose> {
    let inlier_px = config.inlier_px;
    let fit = Fit { camera, data, inlier_px };
    let search = Search { camera, data, config, fit };
    let leader = search.sample(seed).ok_or(NoPose::NoConsensus)?;
    let pose = if config.refine { fit.finish(&leader.pose) } else { search.with_epnp(leader) };
    let pose = pose.ok_or(NoPose::NoConsensus)?;
    let inliers = data.inliers(camera, &pose, inlier_px).ok_or(NoPose::NoConsensus)?;
    let wanted = (config.min_inlier_fraction * data.points.len() as f64).max(4.0);
    if (inliers.len() as f64) < wanted {
        return Err(NoPose::NoConsensus);
    }
    if !fit.is_determined(&pose, &inliers, config.min_inlier_fraction) {
        return Err(NoPose::Undetermined);
    }
    let distances = data.distances_px(camera, &pose);
    let mean_residual_px =
        inliers.iter().map(|&i| distances[i]).sum::<f64>() / inliers.len() as f64;
    let pose = data.in_given_unit(&pose);
    let mut inliers: Vec<usize> = inliers.iter().map(|&i| data.given_index(i)).collect();
    inliers.sort_unstable();
    let finite = pose.is_finite() && mean_residual_px.is_finite();
    let solution = PnpSolution { pose, inliers, mean_residual_px, inlier_px };
    finite.then_some(solution).ok_or(NoPose::Undetermined)
}

/// A pose with its truncated squared cost.
struct Hypothesis {
    pose: Pose,
    cost: f64,
}

struct Search<'a> {
    camera: &'a Camera,
    data: &'a SortedCorrespondences,
    config: &'a RansacConfig,
    fit: Fit<'a>,
}

impl Search<'_> {
    /// The best hypothesis of all samples.
    fn sample(&self, seed: u64) -> Option<Hypothesis> {
        /// Purpose of the random stream.
        const PURPOSE: u64 = 0x7072_6e70;
        let mut rng = seed::stream(seed, &[PURPOSE]);
        let mut best = None;
        if let Some((points, pixels)) = self.data.medians()
            && let Some(pose) = epnp(self.camera, &points, &pixels)
        {
            self.consider(pose, &mut best);
        }
        let mut needed = self.config.max_iterations;
        let mut drawn = 0;
        while drawn < needed {
            drawn += 1;
            let Some(sample) = self.draw(&mut rng) else { continue };
            let points = sample.map(|i| self.data.points[i]);
            let rays = sample.map(|i| self.data.rays[i]);
            let mut improved = false;
            for pose in p3p::p3p(&points, &rays) {
                improved |= self.consider(pose, &mut best);
            }
            if improved || drawn == 1 {
                needed = needed.min(self.num_needed(best.as_ref()));
            }
        }
        best
    }

    /// Three correspondences of distinct points that span a triangle.
    fn draw(&self, rng: &mut ChaCha8Rng) -> Option<[usize; 3]> {
        let groups = &self.data.groups;
        let a = rng.random_range(0..groups.len());
        let mut b = rng.random_range(0..groups.len() - 1);
        b += usize::from(b >= a);
        let mut c = rng.random_range(0..groups.len() - 2);
        for taken in [a.min(b), a.max(b)] {
            c += usize::from(c >= taken);
        }
        let sample = [a, b, c].map(|g| rng.random_range(groups[g].clone()));
        let [x, y, z] = sample.map(|i| self.data.points[i]);
        let (u, v) = (y - x, z - x);
        let longest = u.norm_squared().max(v.norm_squared()).max((y - z).norm_squared());
        (u.cross(&v).norm() > 1e-3 * longest).then_some(sample)
    }

    /// Samples needed for the wanted confidence, given the best hypothesis's fraction of inliers.
    fn num_needed(&self, best: Option<&Hypothesis>) -> u32 {
        let fraction = best
            .and_then(|h| self.data.inliers(self.camera, &h.pose, self.config.inlier_px))
            .map_or(0.0, |inliers| inliers.len() as f64 / self.data.points.len() as f64);
        let miss = (1.0 - fraction.powi(3)).max(1e-12);
        let needed = ((1.0 - self.config.confidence).ln() / miss.ln()).ceil();
        if needed.is_finite() { (needed.min(1e9) as u32).max(MIN_SAMPLES) } else { u32::MAX }
    }

    /// Takes a hypothesis, refined on its inliers, if it beats the best one.
    fn consider(&self, pose: Pose, best: &mut Option<Hypothesis>) -> bool {
        let limit = best.as_ref().map_or(f64::INFINITY, |h| h.cost);
        let Some(cost) = self.cost(&pose, limit) else { return false };
        let mut lead = Hypothesis { pose, cost };
        if self.config.refine
            && let Some(pose) = self.fit.refined(&lead.pose)
            && let Some(cost) = self.cost(&pose, lead.cost)
        {
            lead = Hypothesis { pose, cost };
        }
        *best = Some(lead);
        true
    }

    /// The truncated squared cost when it is below `limit` and all points are in front of the camera.
    fn cost(&self, pose: &Pose, limit: f64) -> Option<f64> {
        let most = self.config.inlier_px.powi(2);
        let mut sum = 0.0;
        for group in &self.data.groups {
            let x_cam = pose.apply(&self.data.points[group.start]);
            if x_cam.z <= 0.0 {
                return None;
            }
            let seen = self.camera.project(&x_cam);
            for pixel in &self.data.pixels[group.clone()] {
                sum += (seen - pixel).norm_squared().min(most);
            }
            if sum >= limit {
                return None;
            }
        }
        (sum < limit).then_some(sum)
    }

    /// The leader, or EPnP on its inliers if that costs less.
    fn with_epnp(&self, leader: Hypothesis) -> Option<Pose> {
        let inliers = self.data.inliers(self.camera, &leader.pose, self.config.inlier_px)?;
        let condensed = self.data.condensed(&self.data.indicator(&inliers));
        let other = epnp(self.camera, &condensed.points, &condensed.pixels)
            .filter(|pose| self.cost(pose, leader.cost).is_some());
        Some(other.unwrap_or(leader.pose))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::{box_corners, refine_pose};
    use crate::pose::errors;
    use crate::schema::check_ranges;
    use nalgebra::Rotation3;
    use rand::seq::SliceRandom;
    use rayon::prelude::*;

    fn camera() -> Camera {
        Camera::from_row_major(&[303.8, 0.5, 256.0, 0.0, 300.0, 250.0, 0.0, 0.0, 1.0]).unwrap()
    }

    /// Ten cells that see the 8 corners of a box.
    fn cells() -> Vec<Vec3> {
        let corners = box_corners(&[[-52.0, -55.0, -57.0], [52.0, 54.0, 58.0]]);
        (0..80).map(|i| corners[i % 8]).collect()
    }

    fn some_pose(rng: &mut ChaCha8Rng) -> Pose {
        let turn = Vec3::from_fn(|_, _| rng.random_range(-3.0..3.0));
        let z = rng.random_range(300.0..1700.0);
        let t_mm = Vec3::new(rng.random_range(-0.5..0.5) * z, rng.random_range(-0.5..0.5) * z, z);
        Pose { r: *Rotation3::from_scaled_axis(turn).matrix(), t_mm }
    }

    fn gauss(rng: &mut ChaCha8Rng, sigma: f64) -> f64 {
        let (a, b): (f64, f64) = (rng.random(), rng.random());
        sigma * (-2.0 * (1.0 - a).ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    }

    fn anywhere(rng: &mut ChaCha8Rng) -> Vec2 {
        Vec2::new(rng.random_range(0.0..512.0), rng.random_range(0.0..512.0))
    }

    /// Pixels of `points` with noise, of which a fraction is anywhere in the image; and which are not.
    fn disturbed(
        truth: &Pose,
        points: &[Vec3],
        sigma: f64,
        fraction: f64,
        rng: &mut ChaCha8Rng,
    ) -> (Vec<Vec2>, Vec<usize>) {
        let mut kept = Vec::new();
        let mut pixels = truth.project(&camera(), points);
        for (i, p) in pixels.iter_mut().enumerate() {
            if rng.random_bool(fraction) {
                *p = anywhere(rng);
            } else {
                kept.push(i);
                *p += Vec2::new(gauss(rng, sigma), gauss(rng, sigma));
            }
        }
        (pixels, kept)
    }

    fn solve(points: &[Vec3], pixels: &[Vec2], seed: u64) -> Option<PnpSolution> {
        solve_pnp_ransac(&camera(), points, pixels, &RansacConfig::default(), seed)
    }

    #[test]
    fn without_noise_the_pose_that_made_the_points_comes_back() {
        let cells = cells();
        let tetrahedron = [cells[0], cells[3], cells[5], cells[6]];
        let cloud: Vec<Vec3> = (0..40)
            .map(|i| Vec3::new(f64::from(i * 7 % 40), f64::from(i * i % 37), f64::from(i)))
            .collect();
        let shapes: [(&[Vec3], f64); 7] = [
            (&cells, 0.0),
            (&cells, 0.3),
            (&cells[..8], 0.0),
            (&tetrahedron, 0.0),
            (&cells[..4], 0.0), // a face: flat
            (&cloud, 0.0),
            (&cloud, 0.3),
        ];
        let mut rng = seed::stream(11, &[]);
        for case in 0..350 {
            let (points, fraction) = shapes[case % shapes.len()];
            let truth = some_pose(&mut rng);
            let (pixels, kept) = disturbed(&truth, points, 0.0, fraction, &mut rng);
            let found = solve(points, &pixels, case as u64).unwrap();
            assert!((found.pose.r - truth.r).norm() < 1e-6, "case {case}: {found:?}, {truth:?}");
            let off = (found.pose.t_mm - truth.t_mm).norm();
            assert!(off < 1e-6 * truth.t_mm.z, "case {case}: {off}");
            assert!(kept.iter().all(|i| found.inliers.contains(i)), "case {case}");
        }
    }

    #[test]
    fn the_order_of_the_points_does_not_matter() {
        let points = cells();
        let mut rng = seed::stream(12, &[]);
        for case in 0..50 {
            let truth = some_pose(&mut rng);
            let (pixels, _) = disturbed(&truth, &points, 1.0, 0.4, &mut rng);
            let mut order: Vec<usize> = (0..points.len()).collect();
            order.shuffle(&mut rng);
            let shuffled: (Vec<Vec3>, Vec<Vec2>) =
                order.iter().map(|&i| (points[i], pixels[i])).unzip();
            let given = solve(&points, &pixels, case).unwrap();
            let other = solve(&shuffled.0, &shuffled.1, case).unwrap();
            assert_eq!(given.pose, other.pose);
            let mut inliers: Vec<usize> = other.inliers.iter().map(|&i| order[i]).collect();
            inliers.sort_unstable();
            assert_eq!(given.inliers, inliers);
        }
    }

    #[test]
    fn metres_and_micrometres_give_the_same_pose_as_millimetres() {
        let points = cells();
        let mut rng = seed::stream(13, &[]);
        for case in 0..50 {
            let truth = some_pose(&mut rng);
            let (pixels, _) = disturbed(&truth, &points, 1.0, 0.3, &mut rng);
            let given = solve(&points, &pixels, case).unwrap();
            for unit in [1e-3, 1e3] {
                let scaled: Vec<Vec3> = points.iter().map(|x| x * unit).collect();
                let other = solve(&scaled, &pixels, case).unwrap();
                // Rounding may end an iteration a step earlier or later.
                let turn = (given.pose.r - other.pose.r).norm();
                assert!(turn < 1e-6, "case {case}: {turn}");
                let off = (given.pose.t_mm - other.pose.t_mm / unit).norm();
                assert!(off < 1e-6 * given.pose.t_mm.norm(), "case {case}: {off}");
                assert_eq!(given.inliers, other.inliers);
            }
        }
    }

    #[test]
    fn a_seed_gives_the_same_pose_and_seeds_agree_on_a_clear_one() {
        let points = cells();
        let mut rng = seed::stream(14, &[]);
        for _ in 0..30 {
            let truth = some_pose(&mut rng);
            let (pixels, _) = disturbed(&truth, &points, 1.0, 0.5, &mut rng);
            let (a, b) = (solve(&points, &pixels, 1).unwrap(), solve(&points, &pixels, 2).unwrap());
            assert_eq!(a, solve(&points, &pixels, 1).unwrap());
            assert!((a.pose.r - b.pose.r).norm() < 1e-5, "{a:?} {b:?}");
        }
    }

    #[test]
    fn with_outliers_errors_stay_near_those_of_known_inliers() {
        let points = cells();
        let mut rng = seed::stream(15, &[]);
        // Noise (px), fraction of outliers, how much larger the rms errors may be.
        for (sigma, fraction, worse) in
            [(0.5, 0.2, 1.03), (1.0, 0.0, 1.03), (1.0, 0.5, 1.05), (2.0, 0.2, 1.03)]
        {
            let (mut ours, mut floor) = ([0.0; 2], [0.0; 2]);
            for case in 0..200 {
                let truth = some_pose(&mut rng);
                let (pixels, kept) = disturbed(&truth, &points, sigma, fraction, &mut rng);
                let found = solve(&points, &pixels, case).unwrap().pose;
                let (x, p): (Vec<Vec3>, Vec<Vec2>) =
                    kept.iter().map(|&i| (points[i], pixels[i])).unzip();
                let best = refine_pose(&camera(), &x, &p, &truth, 50).unwrap().pose;
                for (sums, pose) in [(&mut ours, &found), (&mut floor, &best)] {
                    sums[0] += errors::re_deg(pose, &truth).powi(2);
                    sums[1] += errors::add_mm(&points[..8], pose, &truth).powi(2);
                }
            }
            for i in 0..2 {
                let ratio = (ours[i] / floor[i]).sqrt();
                assert!(ratio < worse, "noise {sigma} px, {fraction} outliers, error {i}: {ratio}");
            }
        }
    }

    #[test]
    fn where_some_cells_are_worse_than_others_errors_are_below_those_of_least_squares() {
        let points = cells();
        let mut rng = seed::stream(21, &[]);
        let mut sums = [0.0; 2];
        for case in 0..200 {
            let truth = some_pose(&mut rng);
            let mut pixels = truth.project(&camera(), &points);
            for cell in pixels.chunks_mut(8) {
                let sigma = 0.5 * gauss(&mut rng, 0.8).exp();
                for p in cell {
                    *p += Vec2::new(gauss(&mut rng, sigma), gauss(&mut rng, sigma));
                }
            }
            let found = solve(&points, &pixels, case).unwrap().pose;
            let plain = refine_pose(&camera(), &points, &pixels, &truth, 50).unwrap().pose;
            for (sum, pose) in sums.iter_mut().zip([found, plain]) {
                *sum += errors::re_deg(&pose, &truth).powi(2);
            }
        }
        let ratio = (sums[0] / sums[1]).sqrt();
        assert!(ratio < 0.75, "{ratio}");
    }

    #[test]
    fn poses_do_not_depend_on_threads() {
        let points = cells();
        let mut rng = seed::stream(22, &[]);
        let problems: Vec<Vec<Vec2>> = (0..24)
            .map(|_| disturbed(&some_pose(&mut rng), &points, 1.0, 0.5, &mut rng).0)
            .collect();
        let solve_on = |threads: usize| -> Vec<Option<PnpSolution>> {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| problems.par_iter().map(|p| solve(&points, p, 3)).collect())
        };
        assert_eq!(solve_on(1), solve_on(4));
    }

    #[test]
    fn another_frame_of_the_object_gives_the_same_pose_in_it() {
        let points = cells();
        let mut rng = seed::stream(23, &[]);
        for case in 0..40 {
            let truth = some_pose(&mut rng);
            let (pixels, _) = disturbed(&truth, &points, 1.0, 0.3, &mut rng);
            let given = solve(&points, &pixels, case).unwrap();
            let moved = Pose { t_mm: Vec3::new(700.0, -20.0, 90.0), ..some_pose(&mut rng) };
            let others: Vec<Vec3> = points.iter().map(|x| moved.apply(x)).collect();
            let other = solve(&others, &pixels, case).unwrap();
            let back = other.pose.after(&moved);
            // Other samples are drawn; the fit ends at the same place.
            assert!((back.r - given.pose.r).norm() < 1e-5, "case {case}: {back:?} {given:?}");
            assert!((back.t_mm - given.pose.t_mm).norm() < 1e-5 * truth.t_mm.norm(), "case {case}");
            assert_eq!(given.inliers, other.inliers);
        }
    }

    #[test]
    fn whole_cells_may_be_wrong() {
        let points = cells();
        let mut rng = seed::stream(16, &[]);
        for case in 0..60 {
            let truth = some_pose(&mut rng);
            let wrong = some_pose(&mut rng);
            let (mut pixels, _) = disturbed(&truth, &points, 0.7, 0.0, &mut rng);
            // Four of ten cells agree on another pose.
            let (others, _) = disturbed(&wrong, &points, 0.7, 0.0, &mut rng);
            pixels[48..].copy_from_slice(&others[48..]);
            let found = solve(&points, &pixels, case).unwrap();
            assert!(errors::re_deg(&found.pose, &truth) < 8.0, "case {case}: {found:?} {truth:?}");
            assert!((found.pose.t_mm - truth.t_mm).norm() < 0.06 * truth.t_mm.z, "case {case}");
        }
    }

    #[test]
    fn without_refinement_the_pose_is_rougher_but_there() {
        let points = cells();
        let rough = RansacConfig { refine: false, ..RansacConfig::default() };
        let mut rng = seed::stream(17, &[]);
        for case in 0..40 {
            let truth = some_pose(&mut rng);
            let (pixels, _) = disturbed(&truth, &points, 1.0, 0.2, &mut rng);
            let found = solve_pnp_ransac(&camera(), &points, &pixels, &rough, case).unwrap();
            assert!((found.pose.t_mm - truth.t_mm).norm() < 0.1 * truth.t_mm.z, "case {case}");
            assert_ne!(found.pose, solve(&points, &pixels, case).unwrap().pose);
        }
    }

    #[test]
    fn where_cells_are_far_off_a_wider_distance_finds_the_pose() {
        let points = cells();
        let narrow = RansacConfig { inlier_px: 1.25, ..RansacConfig::default() };
        let only = RansacConfig { widen: false, ..narrow.clone() };
        let mut rng = seed::stream(24, &[]);
        let (mut lost, mut widened) = (0, 0);
        for case in 0..60 {
            // A near object: each cell, as a whole, is some pixels off.
            let mut truth = some_pose(&mut rng);
            truth.t_mm *= 250.0 / truth.t_mm.z;
            let (mut pixels, _) = disturbed(&truth, &points, 1.0, 0.0, &mut rng);
            for cell in pixels.chunks_mut(8) {
                let shift = Vec2::new(gauss(&mut rng, 3.0), gauss(&mut rng, 3.0));
                cell.iter_mut().for_each(|p| *p += shift);
            }
            let found = find_pose(&camera(), &points, &pixels, &narrow, case).unwrap();
            assert!([1.25, 2.5, 5.0].contains(&found.inlier_px), "{}", found.inlier_px);
            assert!(errors::re_deg(&found.pose, &truth) < 15.0, "case {case}");
            widened += usize::from(found.inlier_px > 1.25);
            let without = find_pose(&camera(), &points, &pixels, &only, case);
            lost += usize::from(without == Err(NoPose::NoConsensus));
            // Whatever is found without widening is found with it, unchanged.
            assert!(without.is_err() || without == Ok(found));
        }
        assert!(lost >= 5, "{lost}");
        assert_eq!(widened, lost);
    }

    #[test]
    fn what_determines_no_pose_gives_none() {
        let points = cells();
        let mut rng = seed::stream(18, &[]);
        let truth = some_pose(&mut rng);
        let pixels = truth.project(&camera(), &points);
        assert!(solve(&[], &[], 0).is_none());
        assert!(solve(&points, &pixels[..79], 0).is_none());
        assert!(solve(&points[..3], &pixels[..3], 0).is_none());
        assert!(solve(&[points[0]; 80], &pixels, 0).is_none());
        assert!(solve(&points, &[pixels[0]; 80], 0).is_none());
        let line: Vec<Vec3> = (0..80).map(|i| points[1] * f64::from(i)).collect();
        assert!(solve(&line, &truth.project(&camera(), &line), 0).is_none());
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX] {
            assert!(solve(&points, &[Vec2::new(value, 0.0); 80], 0).is_none());
            assert!(solve(&[Vec3::new(value, 0.0, 0.0); 80], &pixels, 0).is_none());
        }
        for case in 0..50 {
            let noise: Vec<Vec2> = (0..80).map(|_| anywhere(&mut rng)).collect();
            assert!(solve(&points, &noise, case).is_none(), "case {case}");
            // All in one place but for noise: any far enough pose would do.
            let mut near = || pixels[0] + Vec2::new(gauss(&mut rng, 1.0), gauss(&mut rng, 1.0));
            let place: Vec<Vec2> = (0..80).map(|_| near()).collect();
            assert!(solve(&points, &place, case).is_none(), "case {case}");
        }
        for problem in [
            RansacConfig { inlier_px: f64::NAN, ..RansacConfig::default() },
            RansacConfig { max_iterations: 0, ..RansacConfig::default() },
        ] {
            assert!(solve_pnp_ransac(&camera(), &points, &pixels, &problem, 0).is_none());
        }
    }

    #[test]
    fn an_object_behind_the_camera_is_not_found_in_front() {
        let points = cells();
        let mut rng = seed::stream(19, &[]);
        for case in 0..60 {
            let mut truth = some_pose(&mut rng);
            truth.t_mm = -truth.t_mm * 0.5;
            let pixels = truth.project(&camera(), &points);
            assert!(solve(&points, &pixels, case).is_none(), "case {case}: {truth:?}");
        }
    }

    #[test]
    fn whatever_comes_in_the_answer_is_finite_in_front_and_within_the_inlier_distance() {
        let mut rng = seed::stream(20, &[]);
        let special = [0.0, -0.0, 1.0, -1.0, f64::NAN, f64::INFINITY, 1e-300, 1e300, 50.0, -50.0];
        for case in 0..3000 {
            let n = rng.random_range(0..24);
            let wild = rng.random_range(0.0..1.0);
            let mut draw = |scale: f64| {
                if rng.random_bool(wild) {
                    special[rng.random_range(0..special.len())]
                } else {
                    rng.random_range(-scale..scale)
                }
            };
            let points: Vec<Vec3> = (0..n).map(|_| Vec3::from_fn(|_, _| draw(60.0))).collect();
            let pixels: Vec<Vec2> = (0..n).map(|_| Vec2::from_fn(|_, _| draw(500.0))).collect();
            let Some(found) = solve(&points, &pixels, case) else { continue };
            assert!(found.pose.is_finite() && found.inliers.len() >= 4);
            assert!((0.0..found.inlier_px).contains(&found.mean_residual_px));
            for &i in &found.inliers {
                let x_cam = found.pose.apply(&points[i]);
                assert!(x_cam.z > 0.0, "case {case}");
                let off = (camera().project(&x_cam) - pixels[i]).norm();
                assert!(off < found.inlier_px + 1e-3, "case {case}");
            }
        }
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        let broken = RansacConfig {
            inlier_px: 0.0,
            max_iterations: 0,
            confidence: 1.0,
            min_inlier_fraction: -0.1,
            ..RansacConfig::default()
        };
        let mut problems = Vec::new();
        check_ranges(&broken, "pnp", &mut problems);
        let expected = [
            "pnp.inlier_px: 0",
            "pnp.max_iterations: 0",
            "pnp.confidence: 1",
            "pnp.min_inlier_fraction: -0.1",
        ];
        assert_eq!(problems.len(), expected.len());
        for (problem, start) in problems.iter().zip(expected) {
            assert!(problem.starts_with(start), "{problem}");
        }
        check_ranges(&RansacConfig::default(), "pnp", &mut problems);
        assert_eq!(problems.len(), expected.len());
    }

    #[test]
    fn the_quick_check_agrees_with_the_ranges_of_the_schema() {
        let good = RansacConfig::default();
        for config in [
            RansacConfig { inlier_px: 0.0, ..good.clone() },
            RansacConfig { inlier_px: f64::NAN, ..good.clone() },
            RansacConfig { max_iterations: 0, ..good.clone() },
            RansacConfig { max_iterations: 1, ..good.clone() },
            RansacConfig { confidence: 0.0, ..good.clone() },
            RansacConfig { confidence: 1.0, ..good.clone() },
            RansacConfig { min_inlier_fraction: -0.1, ..good.clone() },
            RansacConfig { min_inlier_fraction: 1.0, ..good.clone() },
            RansacConfig { min_inlier_fraction: 1.1, ..good.clone() },
            good,
        ] {
            let mut problems = Vec::new();
            check_ranges(&config, "pnp", &mut problems);
            assert_eq!(config.is_in_range(), problems.is_empty(), "{config:?}: {problems:?}");
        }
    }
}
