//! PnP alone: a pose from pixels of known points, a fifth of them wrong, and how sure it is.
//!
//! ```sh
//! cargo run --release --example pnp
//! ```

use anyhow::{Context, Result};
use mqat::geom::{Camera, Correspondences, Pose, Vec2, Vec3};
use mqat::pose::{RansacConfig, pose_covariance, solve_pnp_ransac};
use mqat::seed;
use rand::Rng;

const NUM_POINTS: usize = 60;
const NOISE_PX: f64 = 0.5;

fn main() -> Result<()> {
    let camera = Camera::new(600.0, 600.0, 320.0, 240.0)?;
    // 30 degrees about the axis of the camera, 1.5 m away.
    let (sin, cos) = 30f64.to_radians().sin_cos();
    let rotation = [cos, -sin, 0.0, sin, cos, 0.0, 0.0, 0.0, 1.0];
    let truth = Pose::from_row_major(&rotation, &[40.0, -20.0, 1500.0])?;

    let mut rng = seed::stream(7, &[]);
    let points: Vec<Vec3> = (0..NUM_POINTS)
        .map(|_| Vec3::from_fn(|_, _| rng.random_range(-100.0..100.0))) // mm, object frame
        .collect();
    let mut pixels: Vec<Vec2> = truth.project(&camera, &points);
    for (i, pixel) in pixels.iter_mut().enumerate() {
        let most = if i % 5 == 0 { 150.0 } else { NOISE_PX };
        *pixel += Vec2::from_fn(|_, _| rng.random_range(-most..most));
    }

    let found = solve_pnp_ransac(&camera, &points, &pixels, &RansacConfig::default(), 1)
        .context("no pose is determined by these correspondences")?;
    let off_mm = (found.pose.t_mm - truth.t_mm).norm();
    println!("{} of {NUM_POINTS} correspondences agree", found.inliers.len());
    println!("translation {:.2?} mm, {off_mm:.2} mm from the truth", found.pose.t_array());
    println!("mean reprojection distance {:.2} px", found.mean_residual_px);

    let seen = Correspondences { points, pixels, group_size: 1 };
    let covariance = pose_covariance(&camera, &found.pose, &seen, &found.inliers)
        .context("these inliers do not tell how sure the pose is")?;
    println!("standard deviations {:.2?} mm", covariance.sigma_translation_mm());
    Ok(())
}
