//! PnP with outliers.

use rand::Rng;
use rand_chacha::ChaCha8Rng;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::correspondences::Correspondences;
use super::fit::Fit;
use super::{epnp, p3p};
use crate::geom::{Camera, Pose, Vec2, Vec3};
use crate::seed;

/// Samples drawn at least: with noise a sample without outliers need not be a good one.
const MIN_SAMPLES: u32 = 12;

/// Settings of [`solve_pnp_ransac`]. The default is the published setting.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RansacConfig {
    /// An inlier's largest reprojection distance, px of the given camera.
    pub inlier_px: f64,
    /// Most samples of three points; fewer are drawn once the best pose is certain enough.
    pub max_iterations: u32,
    /// Wanted probability of one sample without outliers, in (0, 1).
    pub confidence: f64,
    /// Whether poses are refined: least squares on the inliers, chosen anew, then a robust fit. Without it the
    /// answer is EPnP on the inliers of the best sample (or that sample's pose where it fits better).
    pub refine: bool,
    /// Smallest share of inliers among the finite correspondences for an answer, in [0, 1].
    pub min_inlier_share: f64,
}

impl Default for RansacConfig {
    fn default() -> Self {
        Self {
            inlier_px: 5.0,
            max_iterations: 100,
            confidence: 0.99,
            refine: true,
            min_inlier_share: 0.15,
        }
    }
}

impl RansacConfig {
    /// Pushes a problem for each value outside its range, named `at.key`.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        if !(self.inlier_px > 0.0 && self.inlier_px.is_finite()) {
            problems.push(format!("{at}.inlier_px: {} is not more than 0", self.inlier_px));
        }
        if self.max_iterations == 0 {
            problems.push(format!("{at}.max_iterations: 0 is not 1 or more"));
        }
        if !(self.confidence > 0.0 && self.confidence < 1.0) {
            problems.push(format!("{at}.confidence: {} is outside (0, 1)", self.confidence));
        }
        if !(0.0..=1.0).contains(&self.min_inlier_share) {
            problems.push(format!(
                "{at}.min_inlier_share: {} is outside [0, 1]",
                self.min_inlier_share
            ));
        }
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
}

/// The pose of `points` (object frame) seen at `pixels`, some of which may be wrong.
///
/// Samples of three distinct points give hypotheses (P3P), scored by truncated squared distances over all
/// correspondences; a hypothesis that leads is refined on its inliers. Where points are seen repeatedly, the pose of the
/// median pixels is one more hypothesis. The winner is compared with EPnP on its inliers and refined, and its inliers
/// are chosen anew up to 4 times; a last fit weighs all correspondences by Tukey's biweight of their residual.
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
    let mut problems = Vec::new();
    config.check("", &mut problems);
    if points.len() != pixels.len() || !problems.is_empty() {
        return None;
    }
    let data = Correspondences::new(camera, points, pixels)?;
    let fit = Fit { camera, data: &data, inlier_px: config.inlier_px };
    let search = Search { camera, data: &data, config, fit };
    let leader = search.sample(seed)?;
    let pose = if config.refine { fit.finish(&leader.pose)? } else { search.with_epnp(leader)? };
    let inliers = data.inliers(camera, &pose, config.inlier_px)?;
    if !fit.is_determined(&pose, &inliers, config.min_inlier_share) {
        return None;
    }
    let distances = data.distances_px(camera, &pose);
    let mean_residual_px =
        inliers.iter().map(|&i| distances[i]).sum::<f64>() / inliers.len() as f64;
    let pose = data.in_given_unit(&pose);
    let mut inliers: Vec<usize> = inliers.iter().map(|&i| data.given_index(i)).collect();
    inliers.sort_unstable();
    (pose.is_finite() && mean_residual_px.is_finite()).then_some(PnpSolution {
        pose,
        inliers,
        mean_residual_px,
    })
}

/// A pose with its truncated squared cost.
struct Hypothesis {
    pose: Pose,
    cost: f64,
}

struct Search<'a> {
    camera: &'a Camera,
    data: &'a Correspondences,
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

    /// Samples needed for the wanted confidence, given the best hypothesis's share of inliers.
    fn num_needed(&self, best: Option<&Hypothesis>) -> u32 {
        let share = best
            .and_then(|h| self.data.inliers(self.camera, &h.pose, self.config.inlier_px))
            .map_or(0.0, |inliers| inliers.len() as f64 / self.data.points.len() as f64);
        let miss = (1.0 - share.powi(3)).max(1e-12);
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
