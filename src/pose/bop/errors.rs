//! The errors of an image's estimates to its instances.

use std::cmp::Ordering;

use anyhow::{Result, ensure};

use super::super::errors::{add_mm, mspd_px, mssd_mm, re_deg, te_mm};
use super::super::vsd::{DepthImages, VsdSettings, vsd};
use super::{
    BopEstimate, BopImage, BopInstance, BopModel, BopSettings, BopTarget, DepthSource,
    NUM_THRESHOLDS,
};
use crate::geom::{Camera, DepthPatch, Pose, render_depth};

/// Width of the image that MSPD's thresholds are meant for, px.
const MSPD_WIDTH_PX: f64 = 640.0;

/// An image's estimates, compared with its instances.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageErrors {
    /// Class and visible fraction of each instance.
    pub instances: Vec<(usize, f64)>,
    /// What AR asks for.
    pub targets: Vec<BopTarget>,
    /// Whether AP looks at this image.
    pub detection: bool,
    /// What MSPD is multiplied by: 640 / image width; none where that is not known.
    pub mspd_factor: Option<f64>,
    /// Where VSD's depth comes from; none without VSD.
    pub depth: Option<DepthSource>,
    /// Whether AD and ADI were computed; they are infinite otherwise.
    pub ad: bool,
    /// Estimates of classes that are in the image: by class in the order of the instances, then by falling score.
    pub estimates: Vec<EstimateErrors>,
}

/// An estimate, compared with the instances of its class.
#[derive(Debug, Clone, PartialEq)]
pub struct EstimateErrors {
    /// 0-based class.
    pub class: usize,
    /// Its place among the image's estimates of that class, in the order of their file.
    pub place: usize,
    /// Confidence.
    pub score: f64,
    /// Whether AR looks at it: it is one of as many as are asked for, the most confident ones.
    pub localization: bool,
    /// Whether AP looks at it: it is one of the image's most confident ones.
    pub detection: bool,
    /// One for each instance of its class, in their order.
    pub pairs: Vec<PairErrors>,
}

/// The errors of an estimate to an instance.
#[derive(Debug, Clone, PartialEq)]
pub struct PairErrors {
    /// Place of the instance in the image.
    pub instance: usize,
    /// Maximum symmetry-aware surface distance, mm; infinite from a diameter of distance on.
    pub mssd_mm: f64,
    /// Maximum symmetry-aware projection distance, px of the image.
    pub mspd_px: f64,
    /// ADI of symmetric objects, else ADD, mm; infinite from a diameter of distance on.
    pub ad_mm: f64,
    /// As `ad_mm`, but without a limit of distance.
    pub full_ad_mm: f64,
    /// ADI, mm.
    pub adi_mm: f64,
    /// Whether under one of the symmetries the rotation is off by less than 5 degrees and the position by less than 50 mm.
    pub within_5deg_5cm: bool,
    /// Visible surface discrepancy for each tolerance tau; 1 where it was not computed.
    pub vsd: [f64; NUM_THRESHOLDS],
}

/// Where the depth of VSD comes from, over all images with targets: measured only if it is of each of them.
pub(super) fn depth_source(images: &[ImageErrors]) -> Option<DepthSource> {
    let with_targets = images.iter().filter(|image| !image.targets.is_empty());
    let mut sources = with_targets.filter_map(|image| image.depth);
    let first = sources.next()?;
    let all = first == DepthSource::Measured && sources.all(|s| s == DepthSource::Measured);
    Some(if all { DepthSource::Measured } else { DepthSource::Rendered })
}

/// Compares an image's estimates with its instances.
///
/// # Errors
/// If the depth image is not of the image's size.
///
/// # Panics
/// If a class has no model.
pub fn image_errors(
    image: &BopImage,
    models: &[BopModel],
    settings: &BopSettings,
) -> Result<ImageErrors> {
    let mut renderings = Renderings::new(image, models, settings)?;
    let in_detection = most_confident(&image.estimates, settings.max_estimates);
    let mut classes: Vec<usize> = Vec::new();
    for instance in &image.instances {
        if !classes.contains(&instance.class) {
            classes.push(instance.class);
        }
    }
    let mut estimates = Vec::new();
    for class in classes {
        let count = image.targets.iter().find(|t| t.class == class).map_or(0, |t| t.count);
        let mut of_class: Vec<usize> =
            (0..image.estimates.len()).filter(|&i| image.estimates[i].class == class).collect();
        let file_order = of_class.clone();
        of_class.sort_by(|&a, &b| falling(&image.estimates[a], &image.estimates[b]));
        for (rank, i) in of_class.into_iter().enumerate() {
            let (localization, detection) = (rank < count, image.detection && in_detection[i]);
            if !localization && !detection {
                continue;
            }
            let estimate = &image.estimates[i];
            let mut pairs = pairs_of(image, estimate, &models[class]);
            if let (Some(renderings), true) = (&mut renderings, localization) {
                for pair in &mut pairs {
                    pair.vsd = renderings.vsd(estimate, pair.instance)?;
                }
            }
            estimates.push(EstimateErrors {
                class,
                place: file_order.iter().position(|&j| j == i).unwrap_or(rank),
                score: estimate.score,
                localization,
                detection,
                pairs,
            });
        }
    }
    Ok(ImageErrors {
        instances: image.instances.iter().map(|i| (i.class, i.visible)).collect(),
        targets: image.targets.clone(),
        detection: image.detection,
        mspd_factor: image.size_px.map(|[width, _]| MSPD_WIDTH_PX / width as f64),
        depth: renderings.map(|r| r.source),
        ad: image.ad,
        estimates,
    })
}

fn falling(a: &BopEstimate, b: &BopEstimate) -> Ordering {
    b.score.total_cmp(&a.score)
}

/// Whether each estimate is one of the `most` most confident ones; of equals the first.
fn most_confident(estimates: &[BopEstimate], most: usize) -> Vec<bool> {
    let mut order: Vec<usize> = (0..estimates.len()).collect();
    order.sort_by(|&a, &b| falling(&estimates[a], &estimates[b]));
    let mut chosen = vec![false; estimates.len()];
    order.into_iter().take(most).for_each(|i| chosen[i] = true);
    chosen
}

fn pairs_of(image: &BopImage, estimate: &BopEstimate, model: &BopModel) -> Vec<PairErrors> {
    let of_class = image.instances.iter().enumerate().filter(|(_, i)| i.class == estimate.class);
    of_class.map(|(i, instance)| pair(image, estimate, instance, i, model)).collect()
}

fn pair(
    image: &BopImage,
    estimate: &BopEstimate,
    instance: &BopInstance,
    place: usize,
    model: &BopModel,
) -> PairErrors {
    let (est, gt) = (&estimate.pose, &instance.pose);
    let (points, symmetries) = (model.points(), &model.symmetries);
    let near = te_mm(est, gt) < model.diameter_mm;
    let adi_mm = if image.ad { model.closest.adi_mm(est, gt) } else { f64::INFINITY };
    let full_ad_mm =
        if image.ad && !model.is_symmetric() { add_mm(points, est, gt) } else { adi_mm };
    PairErrors {
        instance: place,
        mssd_mm: if near { mssd_mm(points, est, gt, symmetries) } else { f64::INFINITY },
        mspd_px: mspd_px(&image.camera, points, est, gt, symmetries),
        ad_mm: if near { full_ad_mm } else { f64::INFINITY },
        full_ad_mm,
        adi_mm,
        within_5deg_5cm: within_5deg_5cm(est, gt, symmetries),
        vsd: [1.0; NUM_THRESHOLDS],
    }
}

fn within_5deg_5cm(est: &Pose, gt: &Pose, symmetries: &[Pose]) -> bool {
    let near = |gt: &Pose| te_mm(est, gt) < 50.0 && re_deg(est, gt) < 5.0;
    near(gt) || symmetries.iter().any(|s| near(&gt.after(s)))
}

/// Depth of what VSD compares, rendered when it is asked for.
struct Renderings<'a> {
    image: &'a BopImage,
    models: &'a [BopModel],
    size: [usize; 2],
    delta_mm: f64,
    source: DepthSource,
    test: DepthPatch,
    instances: Vec<Option<DepthPatch>>,
    /// That of the estimate rendered last, with its class and pose.
    estimate: Option<((usize, Pose), DepthPatch)>,
}

impl<'a> Renderings<'a> {
    /// None where VSD is not asked for or the image's size is not known.
    fn new(
        image: &'a BopImage,
        models: &'a [BopModel],
        settings: &BopSettings,
    ) -> Result<Option<Self>> {
        let Some(size) = image.size_px.filter(|_| image.vsd) else { return Ok(None) };
        let mut all = Self {
            image,
            models,
            size,
            delta_mm: settings.vsd_delta_mm,
            source: DepthSource::Measured,
            test: DepthPatch::empty([0, 0], size),
            instances: vec![None; image.instances.len()],
            estimate: None,
        };
        match &image.depth_mm {
            Some(depth) => {
                ensure!(
                    depth.len() == size[0] * size[1],
                    "the depth image has {} pixels, expected those of an image of {} x {} px",
                    depth.len(),
                    size[0],
                    size[1]
                );
                all.test.z_mm.copy_from_slice(depth);
            }
            None => {
                all.source = DepthSource::Rendered;
                for i in 0..image.instances.len() {
                    let patch = all.instance(i).clone();
                    all.test.put(&patch);
                }
            }
        }
        Ok(Some(all))
    }

    fn render(&self, class: usize, pose: &Pose) -> DepthPatch {
        let model = &self.models[class];
        render_depth(model.points(), &model.faces, &self.image.camera, pose, self.size)
    }

    fn instance(&mut self, i: usize) -> &DepthPatch {
        if self.instances[i].is_none() {
            let BopInstance { class, pose, .. } = &self.image.instances[i];
            self.instances[i] = Some(self.render(*class, pose));
        }
        self.instances[i].get_or_insert_with(|| DepthPatch::empty([0, 0], [0, 0]))
    }

    /// The error for each tolerance; 1 where the projected bounding spheres do not meet.
    fn vsd(&mut self, estimate: &BopEstimate, i: usize) -> Result<[f64; NUM_THRESHOLDS]> {
        let gt = &self.image.instances[i].pose;
        let diameter_mm = self.models[estimate.class].diameter_mm;
        if !spheres_overlap(0.5 * diameter_mm, &estimate.pose, gt) {
            return Ok([1.0; NUM_THRESHOLDS]);
        }
        let key = (estimate.class, estimate.pose);
        if self.estimate.as_ref().is_none_or(|(rendered, _)| *rendered != key) {
            self.estimate = Some((key, self.render(estimate.class, &estimate.pose)));
        }
        self.instance(i);
        let (Some((_, est)), Some(gt)) = (&self.estimate, &self.instances[i]) else {
            return Ok([1.0; NUM_THRESHOLDS]);
        };
        let errors = self.compare(est, gt, diameter_mm)?;
        Ok(std::array::from_fn(|k| errors[k]))
    }

    /// VSD over the pixels that either of the two covers; no other pixel counts.
    fn compare(&self, est: &DepthPatch, gt: &DepthPatch, diameter_mm: f64) -> Result<Vec<f64>> {
        let drawn: Vec<&DepthPatch> =
            [est, gt].into_iter().filter(|p| !p.z_mm.is_empty()).collect();
        let bound =
            |of: fn(&DepthPatch, usize) -> usize, a: usize| drawn.iter().map(move |p| of(p, a));
        let low = [0, 1].map(|a| bound(|p, a| p.left_top[a], a).min().unwrap_or(0));
        let high = [0, 1].map(|a| bound(|p, a| p.left_top[a] + p.size[a], a).max().unwrap_or(0));
        let (width, height) = (high[0] - low[0], high[1] - low[1]);
        if width * height == 0 {
            return Ok(vec![1.0; NUM_THRESHOLDS]);
        }
        let cut = |patch: &DepthPatch| -> Vec<f32> {
            (0..width * height).map(|i| patch.at(low[0] + i % width, low[1] + i / width)).collect()
        };
        let (test, gt, est) = (cut(&self.test), cut(gt), cut(est));
        let images = DepthImages { width, test: &test, gt: &gt, est: &est };
        let mut k = self.image.camera.row_major();
        k[2] -= low[0] as f64;
        k[5] -= low[1] as f64;
        let settings = VsdSettings { delta_mm: self.delta_mm, ..VsdSettings::bop(diameter_mm) };
        vsd(&Camera::from_row_major(&k)?, &images, &settings)
    }
}

/// Whether spheres around two positions meet in the image (bop_toolkit's `overlapping_sphere_projections`).
fn spheres_overlap(radius_mm: f64, a: &Pose, b: &Pose) -> bool {
    let (a, b) = (&a.t_mm, &b.t_mm);
    let apart = (a.xy() / a.z - b.xy() / b.z).norm();
    apart < radius_mm / a.z + radius_mm / b.z
}
