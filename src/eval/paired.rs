//! Two networks on the same objects: the mean difference of a quantity with its interval.

use crate::pose::quantile_975;

/// A mean difference with the interval that holds the true one in 95 % of such samples.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct MeanDifference {
    /// Second less first.
    pub mean: f64,
    /// Ends of the interval; none with fewer than two groups.
    pub interval_95: Option<[f64; 2]>,
    /// Pairs.
    pub num: usize,
}

impl MeanDifference {
    /// Of `(group, first, second)`: the values of a group (a sequence of images) may err together, groups are independent.
    ///
    /// `None` without pairs.
    ///
    /// # Source
    /// The sandwich variance of a mean, clustered by group, with Student's quantile of groups - 1 degrees of freedom:
    /// Cameron, Miller, *A practitioner's guide to cluster-robust inference*, Journal of Human Resources 2015, section II.
    pub fn of<'a>(pairs: &[(&'a str, f64, f64)]) -> Option<Self> {
        let num = pairs.len();
        if num == 0 {
            return None;
        }
        let mean = pairs.iter().map(|(_, a, b)| b - a).sum::<f64>() / num as f64;
        let mut groups = std::collections::BTreeMap::<&'a str, f64>::new();
        for (group, a, b) in pairs {
            *groups.entry(group).or_default() += b - a - mean;
        }
        let g = groups.len();
        let interval_95 = (g >= 2).then(|| {
            let squares: f64 = groups.values().map(|sum| sum * sum).sum();
            let error = (squares * g as f64 / (g - 1) as f64).sqrt() / num as f64;
            let half = quantile_975((g - 1) as f64) * error;
            [mean - half, mean + half]
        });
        Some(Self { mean, interval_95, num })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_an_image_gives_the_interval_of_the_paired_t_test() {
        // Differences 1, 2, 3, 4, 5: mean 3, standard deviation 1.5811, over the root of 5: 0.7071.
        let pairs = ["a", "b", "c", "d", "e"]
            .into_iter()
            .zip(1..)
            .map(|(i, d)| (i, 10.0, 10.0 + f64::from(d)));
        let found = MeanDifference::of(&pairs.collect::<Vec<_>>()).unwrap();
        let [low, high] = found.interval_95.unwrap();
        assert_eq!((found.mean, found.num), (3.0, 5));
        assert!(
            (high - 3.0 - 2.776 * 0.5f64.sqrt()).abs() < 0.01 && (low + high - 6.0).abs() < 1e-12
        );
    }

    #[test]
    fn objects_of_one_image_do_not_count_as_many() {
        let single = [("a", 0.0, 1.0), ("b", 0.0, 0.0), ("c", 0.0, 0.5)];
        let tripled: Vec<_> = single.iter().flat_map(|pair| [*pair; 3]).collect();
        let (one, three) =
            (MeanDifference::of(&single).unwrap(), MeanDifference::of(&tripled).unwrap());
        let ([a, b], [c, d]) = (one.interval_95.unwrap(), three.interval_95.unwrap());
        assert!((a - c).abs() < 1e-12 && (b - d).abs() < 1e-12);
        assert_eq!(MeanDifference::of(&[]), None);
        assert_eq!(MeanDifference::of(&single[..1]).unwrap().interval_95, None);
    }
}
