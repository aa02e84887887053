//! Objects by sequence, and how well the mean over objects is known whose values are alike within a sequence.

use std::collections::BTreeMap;

use super::student::quantile_975;

/// Which sequence each object belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sequences {
    of_object: Vec<usize>,
    num: usize,
    are_images: bool,
}

impl Sequences {
    /// The sequences of objects, from the name of each object's sequence. Where all have the same name the image, by
    /// its own name, is the unit.
    pub fn new<'a>(names: &[&'a str], images: &[&'a str]) -> Self {
        let named = Self::by(names, names == images);
        if named.num > 1 { named } else { Self::by(images, true) }
    }

    fn by(names: &[&str], are_images: bool) -> Self {
        let mut numbers: BTreeMap<&str, usize> = BTreeMap::new();
        let of_object = names
            .iter()
            .map(|name| {
                let next = numbers.len();
                *numbers.entry(name).or_insert(next)
            })
            .collect();
        Self { of_object, num: numbers.len(), are_images }
    }

    /// Objects, all sequences together.
    pub fn num_objects(&self) -> usize {
        self.of_object.len()
    }

    /// Sums of a value of each object, a sequence each.
    pub(super) fn sums(&self, values: impl Iterator<Item = f64>) -> Vec<f64> {
        let mut sums = vec![0.0; self.num];
        for (&sequence, value) in self.of_object.iter().zip(values) {
            sums[sequence] += value;
        }
        sums
    }

    /// Objects of each.
    pub(super) fn sizes(&self) -> Vec<f64> {
        self.sums(std::iter::repeat(1.0))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.num
    }

    /// Whether each image is one by itself, since nothing tells sequences.
    pub fn are_images(&self) -> bool {
        self.are_images
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.num == 0
    }
}

/// The variance of the mean over all objects, and its degrees of freedom, from the sums of the values in each sequence and the
/// objects of each: sequences are independent, objects of one may err together.
///
/// # Source
/// The sandwich variance of a mean, clustered by sequence, with G / (G - 1) for G clusters and G - 1 degrees of freedom: Cameron,
/// Miller, *A practitioner's guide to cluster-robust inference*, Journal of Human Resources 2015, section II.
pub(super) fn variance_of_mean_over(sums: &[f64], sizes: &[f64]) -> (f64, f64) {
    let objects: f64 = sizes.iter().sum();
    let mean = sums.iter().sum::<f64>() / objects;
    let squares: f64 = sums.iter().zip(sizes).map(|(sum, n)| (sum - mean * n).powi(2)).sum();
    let num = sums.len() as f64;
    let freedom = (num - 1.0).max(1.0);
    (squares * num / freedom / objects.powi(2), freedom)
}

/// A mean difference with the interval that holds the true one in 95 % of such samples.
#[derive(Debug, Clone, Copy, PartialEq, serde::Serialize)]
pub struct MeanDifference {
    /// Second less first.
    pub mean: f64,
    /// Ends of the interval; none with fewer than two sequences.
    pub interval_95: Option<[f64; 2]>,
    /// Pairs.
    pub num: usize,
}

impl MeanDifference {
    /// Of the values of two networks for each object of `sequences`, with Student's quantile about the variance over sequences.
    ///
    /// `None` without objects.
    pub fn of(pairs: &[(f64, f64)], sequences: &Sequences) -> Option<Self> {
        let num = pairs.len();
        if num == 0 {
            return None;
        }
        let sums = sequences.sums(pairs.iter().map(|(first, second)| second - first));
        let mean = sums.iter().sum::<f64>() / num as f64;
        let (variance, freedom) = variance_of_mean_over(&sums, &sequences.sizes());
        let half = quantile_975(freedom) * variance.sqrt();
        let interval_95 = (sequences.len() > 1).then_some([mean - half, mean + half]);
        Some(Self { mean, interval_95, num })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_there_is_one_sequence_images_are_the_units() {
        let images = ["a", "b", "b"];
        let one = Sequences::new(&["s", "s", "s"], &images);
        assert!(one.are_images() && one.len() == 2);
        let two = Sequences::new(&["s", "t", "s"], &images);
        assert!(!two.are_images() && two.of_object == [0, 1, 0]);
        assert!(Sequences::new(&[], &[]).is_empty());
    }

    #[test]
    fn one_object_an_image_gives_the_interval_of_the_paired_t_test() {
        // Differences 1, 2, 3, 4, 5: mean 3, standard deviation 1.5811, over the root of 5: 0.7071.
        let pairs = [1.0, 2.0, 3.0, 4.0, 5.0].map(|difference| (10.0, 10.0 + difference));
        let images = ["a", "b", "c", "d", "e"];
        let found = MeanDifference::of(&pairs, &Sequences::new(&["s"; 5], &images)).unwrap();
        let [low, high] = found.interval_95.unwrap();
        assert_eq!((found.mean, found.num), (3.0, 5));
        assert!(
            (high - 3.0 - 2.776 * 0.5f64.sqrt()).abs() < 0.01 && (low + high - 6.0).abs() < 1e-12
        );
    }

    #[test]
    fn objects_of_one_sequence_do_not_count_as_many() {
        let single = [(0.0, 1.0), (0.0, 0.0), (0.0, 0.5)];
        let tripled: Vec<_> = single.iter().flat_map(|pair| [*pair; 3]).collect();
        let names = ["a", "b", "c"];
        let thrice: Vec<_> = names.iter().flat_map(|name| [*name; 3]).collect();
        let of = |pairs: &[(f64, f64)], names: &[&str]| {
            MeanDifference::of(pairs, &Sequences::new(names, names))
        };
        let (one, three) = (of(&single, &names).unwrap(), of(&tripled, &thrice).unwrap());
        let ([a, b], [c, d]) = (one.interval_95.unwrap(), three.interval_95.unwrap());
        assert!((a - c).abs() < 1e-12 && (b - d).abs() < 1e-12);
        assert_eq!(of(&[], &[]), None);
        assert_eq!(of(&single[..1], &names[..1]).unwrap().interval_95, None);
    }
}
