//! Two networks on the same objects: the mean difference of a quantity with its interval.

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
    /// Of `(group, first, second)`: the values of a group (an image) may err together, groups are independent.
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
            let half = quantile_975(g - 1) * error;
            [mean - half, mean + half]
        });
        Some(Self { mean, interval_95, num })
    }
}

/// The 97.5 % quantile of Student's distribution: exact for 1 and 2 degrees of freedom, else by the expansion of Cornish and
/// Fisher (Abramowitz, Stegun 26.7.5), which is off by less than 0.2 %.
fn quantile_975(freedom: usize) -> f64 {
    let n = freedom as f64;
    match freedom {
        0 => f64::INFINITY,
        1 => 12.7062,
        2 => 4.3027,
        _ => {
            let z: f64 = 1.959_964;
            let g1 = (z.powi(3) + z) / 4.0;
            let g2 = (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / 96.0;
            let g3 = (3.0 * z.powi(7) + 19.0 * z.powi(5) + 17.0 * z.powi(3) - 15.0 * z) / 384.0;
            let g4 = 79.0 * z.powi(9) + 776.0 * z.powi(7) + 1482.0 * z.powi(5)
                - 1920.0 * z.powi(3)
                - 945.0 * z;
            z + g1 / n + g2 / n.powi(2) + g3 / n.powi(3) + g4 / 92160.0 / n.powi(4)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_those_of_the_tables() {
        for (freedom, expected) in [(1, 12.706), (3, 3.182), (5, 2.571), (10, 2.228), (100, 1.984)]
        {
            let found = quantile_975(freedom);
            assert!((found / expected - 1.0).abs() < 0.002, "{found} for {expected}");
        }
    }

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
