//! 6D localization: recalls of the instances that are asked for.

use super::{
    BopModel, BopObjectScores, BopRecalls, BopTarget, ImageErrors, MSPD_STEP_PX, NUM_THRESHOLDS,
    PairErrors, STEP, matches, mean, thresholds,
};

/// Thresholds of AD, diameters.
pub const AD_THRESHOLDS: [f64; 3] = [0.02, 0.05, 0.1];
/// Up to which error the area under the recall of AD and ADI reaches, mm.
const AUC_MM: f64 = 100.0;

/// The most visible instances of a target, and the estimates that are compared with them.
struct Place<'a> {
    class: usize,
    /// Places of the instances in the image.
    valid: Vec<usize>,
    /// By falling score.
    estimates: Vec<&'a [PairErrors]>,
    mspd_factor: Option<f64>,
}

impl Place<'_> {
    fn matches(&self, limit: f64, error: impl Fn(&PairErrors) -> f64) -> Vec<Option<usize>> {
        let (error, valid) = (&error, &self.valid);
        let pairs = |pairs: &&'_ [PairErrors]| {
            let valid = pairs.iter().filter(move |p| valid.contains(&p.instance));
            valid.map(move |p| (p.instance, error(p))).collect::<Vec<_>>().into_iter()
        };
        matches(self.estimates.iter().map(pairs), limit)
    }

    fn num_matched(&self, limit: f64, error: impl Fn(&PairErrors) -> f64) -> usize {
        self.matches(limit, error).into_iter().flatten().count()
    }

    /// The errors of the estimates that take an instance, whatever the error.
    fn matched_errors(&self, error: fn(&PairErrors) -> f64) -> Vec<f64> {
        let taken = self.matches(f64::INFINITY, error);
        let of = |(pairs, taken): (&&[PairErrors], Option<usize>)| {
            pairs.iter().find(|p| Some(p.instance) == taken).map(error)
        };
        self.estimates.iter().zip(taken).filter_map(of).collect()
    }
}

/// How many targets of each class are found below each threshold.
pub(super) struct Recalls {
    num_targets: Vec<usize>,
    /// `[class][tau][theta]`; none without VSD.
    vsd: Option<Vec<Vec<Vec<usize>>>>,
    /// `[class][threshold]`, as the next ones.
    mssd: Vec<Vec<usize>>,
    mspd: Option<Vec<Vec<usize>>>,
    ad: Option<Vec<Vec<usize>>>,
    five: Vec<Vec<usize>>,
    /// Sums of what lies under the recall's curve of each target, 0 to 1: of AD and of ADI.
    areas: Option<[Vec<f64>; 2]>,
}

impl Recalls {
    pub fn new(images: &[ImageErrors], models: &[BopModel]) -> Self {
        let places: Vec<Place> = images.iter().flat_map(places_of).collect();
        let counts = |limits: &[f64], error: &dyn Fn(&Place, &PairErrors) -> f64| {
            let mut counts = vec![vec![0; limits.len()]; models.len()];
            for place in &places {
                for (count, &limit) in counts[place.class].iter_mut().zip(limits) {
                    *count += place.num_matched(limit, |p| error(place, p));
                }
            }
            counts
        };
        let diameter = |place: &Place| models[place.class].diameter_mm;
        let by_class = |value: &dyn Fn(&Place) -> f64| {
            let mut sums = vec![0.0; models.len()];
            places.iter().for_each(|place| sums[place.class] += value(place));
            sums
        };
        let under = |errors: Vec<f64>| -> f64 {
            errors.into_iter().map(|e| (1.0 - e / AUC_MM).max(0.0)).sum()
        };
        let with_targets = || images.iter().filter(|image| !image.targets.is_empty());
        let has_vsd = with_targets().next().is_some() && with_targets().all(|i| i.depth.is_some());
        let has_ad = with_targets().all(|image| image.ad);
        let has_mspd = with_targets().all(|image| image.mspd_factor.is_some());
        let vsd = || -> Vec<Vec<Vec<usize>>> {
            let by_tau: Vec<_> = (0..NUM_THRESHOLDS)
                .map(|tau| counts(&thresholds(STEP), &|_, p| p.vsd[tau]))
                .collect();
            let of_class = |class: usize| by_tau.iter().map(|c| c[class].clone()).collect();
            (0..models.len()).map(of_class).collect()
        };
        let mut num_targets = vec![0; models.len()];
        places.iter().for_each(|place| num_targets[place.class] += place.valid.len());
        Self {
            num_targets,
            vsd: has_vsd.then(vsd),
            mssd: counts(&thresholds(STEP), &|place, p| p.mssd_mm / diameter(place)),
            mspd: has_mspd.then(|| {
                counts(&thresholds(MSPD_STEP_PX), &|place, p| {
                    place.mspd_factor.map_or(f64::INFINITY, |factor| factor * p.mspd_px)
                })
            }),
            ad: has_ad.then(|| counts(&AD_THRESHOLDS, &|place, p| p.ad_mm / diameter(place))),
            five: counts(&[1.0], &|_, p| if p.within_5deg_5cm { 0.0 } else { f64::INFINITY }),
            areas: has_ad.then(|| {
                [
                    by_class(&|place| under(place.matched_errors(|p| p.full_ad_mm))),
                    by_class(&|place| under(place.matched_errors(|p| p.adi_mm))),
                ]
            }),
        }
    }

    /// Instances that are asked for.
    pub fn num_targets(&self) -> usize {
        self.num_targets.iter().sum()
    }

    /// The recalls of all classes together, percent; empty without targets.
    pub fn all(&self) -> BopRecalls {
        let num = self.num_targets();
        if num == 0 {
            return BopRecalls::default();
        }
        let pooled = |counts: &[Vec<usize>]| -> Vec<f64> {
            let len = counts.first().map_or(0, Vec::len);
            (0..len).map(|k| percent(counts.iter().map(|c| c[k]).sum(), num)).collect()
        };
        let tau = |classes: &[Vec<Vec<usize>>], tau: usize| {
            pooled(&classes.iter().map(|c| c[tau].clone()).collect::<Vec<_>>())
        };
        let taus = |classes: &Vec<_>| (0..NUM_THRESHOLDS).map(|k| tau(classes, k)).collect();
        BopRecalls {
            vsd: self.vsd.as_ref().map_or_else(Vec::new, taus),
            mssd: pooled(&self.mssd),
            mspd: self.mspd.as_deref().map_or_else(Vec::new, pooled),
            ad: self.ad.as_deref().map_or_else(Vec::new, pooled),
        }
    }

    /// The scores of a class, without its precisions.
    pub fn object(&self, class: usize) -> BopObjectScores {
        let num = self.num_targets[class];
        if num == 0 {
            return BopObjectScores::default();
        }
        let average = |counts: &[usize]| mean(counts.iter().map(|&c| percent(c, num)));
        let percents = |counts: &[usize]| counts.iter().map(|&c| percent(c, num)).collect();
        let recalls = BopRecalls {
            vsd: (self.vsd.iter().flat_map(|v| &v[class])).map(|c| percents(c)).collect(),
            mssd: percents(&self.mssd[class]),
            mspd: self.mspd.as_ref().map_or_else(Vec::new, |m| percents(&m[class])),
            ad: self.ad.as_ref().map_or_else(Vec::new, |ad| percents(&ad[class])),
        };
        BopObjectScores {
            num_targets: num,
            recalls,
            ar_vsd: self.vsd.as_ref().and_then(|v| average(&v[class].concat())),
            ar_mssd: average(&self.mssd[class]),
            ar_mspd: self.mspd.as_ref().and_then(|m| average(&m[class])),
            ad_01d: self.ad.as_ref().and_then(|ad| ad[class].last().map(|&c| percent(c, num))),
            within_5deg_5cm: average(&self.five[class]),
            auc_ad: self.areas.as_ref().map(|[ad, _]| 100.0 * ad[class] / num as f64),
            auc_adi: self.areas.as_ref().map(|[_, adi]| 100.0 * adi[class] / num as f64),
            ..BopObjectScores::default()
        }
    }
}

fn percent(part: usize, all: usize) -> f64 {
    100.0 * part as f64 / all as f64
}

impl ImageErrors {
    /// The places of the instances that a target asks for: the most visible ones, of equals the first.
    pub fn valid_of(&self, target: &BopTarget) -> Vec<usize> {
        let of_class = self.instances.iter().enumerate().filter(|(_, (c, _))| *c == target.class);
        let mut seen: Vec<(usize, f64)> = of_class.map(|(i, (_, visible))| (i, *visible)).collect();
        seen.sort_by(|a, b| b.1.total_cmp(&a.1));
        seen.truncate(target.count);
        seen.into_iter().map(|(i, _)| i).collect()
    }
}

/// The targets of an image.
fn places_of(image: &ImageErrors) -> impl Iterator<Item = Place<'_>> {
    image.targets.iter().map(|target| {
        let kept = image.estimates.iter().filter(|e| e.localization && e.class == target.class);
        Place {
            class: target.class,
            valid: image.valid_of(target),
            estimates: kept.map(|e| e.pairs.as_slice()).collect(),
            mspd_factor: image.mspd_factor,
        }
    })
}
