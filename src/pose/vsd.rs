//! VSD: how much of the visible surface two poses disagree on, from depth images.
//!
//! # Source
//! Hodan et al., *BOP: Benchmark for 6D Object Pose Estimation*, ECCV 2018, section 3, with the visibility of
//! the 2019 challenge: a pixel without a measured depth counts as visible.

use anyhow::{Result, ensure};
use serde::{Deserialize, Serialize};

use super::thresholds::thresholds;
use crate::geom::{Camera, Vec2};

/// The cost of a pixel that both poses cover.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VsdCost {
    /// 1 from tau on, else 0.
    Step,
    /// Rises linearly to 1 at tau.
    Tlinear,
}

/// The settings of [`vsd`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VsdSettings {
    /// How far behind the measured surface a point still counts as visible, mm.
    pub delta_mm: f64,
    /// Misalignment tolerances: mm, or fractions of the diameter when that is given.
    pub taus: Vec<f64>,
    /// The object's diameter, mm, when the misalignment is divided by it.
    pub diameter_mm: Option<f64>,
    /// The cost of a pixel.
    pub cost: VsdCost,
}

impl VsdSettings {
    /// The BOP challenge's settings: delta 15 mm, tau 0.05, 0.10 .. 0.50 of the diameter, step cost.
    pub fn bop(diameter_mm: f64) -> Self {
        Self {
            delta_mm: 15.0,
            taus: thresholds(0.05).to_vec(),
            diameter_mm: Some(diameter_mm),
            cost: VsdCost::Step,
        }
    }
}

/// Depth images of one size, row-major, `width * height` values of z in mm, 0 where nothing is.
#[derive(Debug, Clone, Copy)]
pub struct DepthImages<'a> {
    /// Pixels in a row.
    pub width: usize,
    /// The measured depth (or, for data without one, the rendered ground truth: then say "VSD-rendered").
    pub test: &'a [f32],
    /// The object alone, rendered under the ground truth.
    pub gt: &'a [f32],
    /// The object alone, rendered under the estimate.
    pub est: &'a [f32],
}

/// The VSD error for each tau, between 0 and 1; 1 when neither pose shows anything.
///
/// # Errors
/// If the images differ in size or are not whole rows.
pub fn vsd(camera: &Camera, images: &DepthImages, settings: &VsdSettings) -> Result<Vec<f64>> {
    let num_pixels = images.test.len();
    ensure!(
        images.gt.len() == num_pixels && images.est.len() == num_pixels,
        "depth images have {num_pixels}, {} and {} pixels, expected equal sizes",
        images.gt.len(),
        images.est.len()
    );
    ensure!(
        images.width > 0 && num_pixels.is_multiple_of(images.width),
        "a depth image of {num_pixels} pixels has no whole rows of {}",
        images.width
    );
    let mut num_union = 0usize;
    let mut differences = Vec::new(); // on the intersection, in the unit of tau
    for i in 0..num_pixels {
        let pixel = Vec2::new((i % images.width) as f64, (i / images.width) as f64);
        // From z to the distance along the ray.
        let stretch = camera.ray(&pixel).norm();
        let [test, gt, est] =
            [images.test, images.gt, images.est].map(|image| f64::from(image[i]) * stretch);
        // The comparison is made in f32, as the toolkit does.
        let shown = |d: f64| {
            d > 0.0 && (test == 0.0 || f64::from(d as f32 - test as f32) <= settings.delta_mm)
        };
        let visible_gt = shown(gt);
        let visible_est = shown(est) || (visible_gt && est > 0.0);
        num_union += usize::from(visible_gt || visible_est);
        if visible_gt && visible_est {
            differences.push((gt - est).abs() / settings.diameter_mm.unwrap_or(1.0));
        }
    }
    if num_union == 0 {
        return Ok(vec![1.0; settings.taus.len()]);
    }
    let only_one = (num_union - differences.len()) as f64;
    let cost = |tau: f64| -> f64 {
        differences
            .iter()
            .map(|&d| match settings.cost {
                VsdCost::Step => f64::from(u8::from(d >= tau)),
                VsdCost::Tlinear => (d / tau).min(1.0),
            })
            .sum()
    };
    Ok(settings.taus.iter().map(|&tau| (cost(tau) + only_one) / num_union as f64).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pixels_of_one_pose_alone_cost_1_and_shared_ones_by_tau() {
        let camera = Camera::new(1e6, 1e6, 0.0, 0.0).unwrap(); // so long that distance is depth
        // Shared and equal, shared and 30 mm off, gt alone, est alone, est hidden behind the measured surface.
        let images = DepthImages {
            width: 5,
            test: &[500.0, 500.0, 500.0, 0.0, 400.0],
            gt: &[500.0, 500.0, 500.0, 0.0, 0.0],
            est: &[500.0, 530.0, 0.0, 500.0, 500.0],
        };
        let settings = |cost| VsdSettings {
            taus: vec![20.0, 40.0],
            diameter_mm: None,
            cost,
            ..VsdSettings::bop(1.0)
        };
        let step = vsd(&camera, &images, &settings(VsdCost::Step)).unwrap();
        assert_eq!(step, [3.0 / 4.0, 2.0 / 4.0]);
        let linear = vsd(&camera, &images, &settings(VsdCost::Tlinear)).unwrap();
        assert!((linear[1] - 2.75 / 4.0).abs() < 1e-6, "{linear:?}");
    }

    #[test]
    fn images_that_do_not_fit_are_refused() {
        let camera = Camera::new(100.0, 100.0, 0.0, 0.0).unwrap();
        let run = |width, test: &[f32], gt: &[f32]| {
            vsd(&camera, &DepthImages { width, test, gt, est: gt }, &VsdSettings::bop(100.0))
        };
        assert!(run(2, &[0.0; 4], &[0.0; 4]).is_ok());
        assert!(run(2, &[0.0; 4], &[0.0; 5]).unwrap_err().to_string().contains("equal sizes"));
        assert!(run(3, &[0.0; 4], &[0.0; 4]).unwrap_err().to_string().contains("whole rows of 3"));
        assert!(run(0, &[0.0; 4], &[0.0; 4]).is_err());
    }
}
