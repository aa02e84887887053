//! 6D detection: the precision of all estimates, averaged over recalls.

use super::{
    BopPrecisions, BopSettings, EstimateErrors, ImageErrors, MSPD_STEP_PX, PairErrors, STEP,
    matches, thresholds,
};

/// The first threshold of MSSD in millimetres.
pub const MSSD_MM_STEP: f64 = 2.0;
/// Recalls that precision is averaged over: 0, 0.01 .. 1.
const NUM_RECALLS: usize = 101;

/// How many instances of a class count, and its precision at each threshold, percent; empty without instances.
pub(super) fn precisions(
    images: &[ImageErrors],
    class: usize,
    diameter_mm: f64,
    settings: &BopSettings,
) -> (usize, BopPrecisions) {
    let images: Vec<&ImageErrors> = images.iter().filter(|image| image.detection).collect();
    let counts = |(c, visible): &&(usize, f64)| *c == class && *visible >= settings.min_visible;
    let num = images.iter().map(|image| image.instances.iter().filter(counts).count()).sum();
    if num == 0 {
        return (0, BopPrecisions::default());
    }
    let at = |step: f64, error: &dyn Fn(&ImageErrors, &PairErrors) -> f64| -> Vec<f64> {
        (thresholds(step).into_iter())
            .map(|limit| {
                let found: Vec<_> = (images.iter())
                    .flat_map(|image| found(image, class, limit, settings, error))
                    .collect();
                100.0 * average_precision(found, num)
            })
            .collect()
    };
    let pixels = |image: &ImageErrors, p: &PairErrors| {
        image.mspd_factor.map_or(f64::INFINITY, |factor| factor * p.mspd_px)
    };
    let has_pixels = images.iter().all(|image| image.mspd_factor.is_some());
    let precisions = BopPrecisions {
        mssd: at(STEP, &|_, p| p.mssd_mm / diameter_mm),
        mspd: if has_pixels { at(MSPD_STEP_PX, &pixels) } else { Vec::new() },
        mssd_mm: at(MSSD_MM_STEP, &|_, p| p.mssd_mm),
    };
    (num, precisions)
}

/// Score of each estimate of a class, and whether it is right; without those that match what is hardly visible.
fn found(
    image: &ImageErrors,
    class: usize,
    limit: f64,
    settings: &BopSettings,
    error: &dyn Fn(&ImageErrors, &PairErrors) -> f64,
) -> Vec<(f64, bool)> {
    let of_class = |e: &&EstimateErrors| e.detection && e.class == class;
    let estimates: Vec<&EstimateErrors> = image.estimates.iter().filter(of_class).collect();
    let pairs = estimates.iter().map(|e| e.pairs.iter().map(|p| (p.instance, error(image, p))));
    let taken = matches(pairs, limit);
    let visible = |i: usize| image.instances[i].1 >= settings.min_visible;
    let kept = estimates.iter().zip(taken).filter(|(_, taken)| taken.is_none_or(visible));
    kept.map(|(estimate, taken)| (estimate.score, taken.is_some())).collect()
}

/// The mean over recalls of 0, 0.01 .. 1 of the largest precision at that recall or a larger one, of estimates with their
/// scores and whether they are right; equal scores stay in their order. 0 to 1.
///
/// # Source
/// Lin et al., *Microsoft COCO*, ECCV 2014, the evaluation's `accumulate`.
pub fn average_precision(mut found: Vec<(f64, bool)>, num_instances: usize) -> f64 {
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    // Recall and precision after each estimate.
    let mut num_right = 0;
    let mut curve: Vec<(f64, f64)> = found
        .iter()
        .enumerate()
        .map(|(i, (_, right))| {
            num_right += usize::from(*right);
            let right = num_right as f64;
            (right / num_instances as f64, right / (i + 1) as f64)
        })
        .collect();
    let mut best: f64 = 0.0;
    for (_, precision) in curve.iter_mut().rev() {
        best = best.max(*precision);
        *precision = best;
    }
    let at = |k: usize| {
        let recall = if k + 1 == NUM_RECALLS { 1.0 } else { 0.01 * k as f64 };
        let first = curve.partition_point(|(r, _)| *r < recall);
        curve.get(first).map_or(0.0, |(_, precision)| *precision)
    };
    (0..NUM_RECALLS).map(at).sum::<f64>() / NUM_RECALLS as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn precision_is_the_largest_at_a_recall_or_beyond() {
        assert_eq!(average_precision(vec![], 3), 0.0);
        assert_eq!(average_precision(vec![(0.5, true)], 1), 1.0);
        // Wrong, right: 1/2 everywhere.
        assert_eq!(average_precision(vec![(0.5, true), (0.9, false)], 1), 0.5);
        // One of two, then nothing: 51 of 101 recalls.
        assert!((average_precision(vec![(0.5, true)], 2) - 51.0 / 101.0).abs() < 1e-12);
        // Of equal scores the first comes first.
        assert_eq!(average_precision(vec![(0.5, false), (0.5, true)], 1), 0.5);
        assert_eq!(average_precision(vec![(0.5, true), (0.5, false)], 1), 1.0);
    }
}
