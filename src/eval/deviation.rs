//! How far the outputs of two engines for the same images lie apart, output by output.

use serde::{Deserialize, Serialize};

use crate::nn::HostOutputs;

/// How far an output of two engines lies apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Deviation {
    /// Numbers compared.
    pub num_values: u64,
    /// The largest difference; of numbers that are both finite.
    pub max_abs: f64,
    /// The mean difference.
    pub mean_abs: f64,
    /// The largest magnitude of the first engine's output.
    pub scale: f64,
    /// `max_abs / scale`; 0 where both are 0.
    pub relative: f64,
    /// Numbers of which one is not finite and the other is, or another such.
    pub num_not_finite: u64,
}

/// How far an output lies apart.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OutputDeviation {
    /// The output: `cls_p3`.
    pub name: String,
    /// How far.
    #[serde(flatten)]
    pub deviation: Deviation,
}

/// Sums of a deviation.
#[derive(Default, Clone, Copy)]
struct Sums {
    deviation: Deviation,
    sum: f64,
}

impl Sums {
    fn add(&mut self, first: &[f32], second: &[f32]) {
        let d = &mut self.deviation;
        d.num_values += first.len() as u64;
        for (&a, &b) in first.iter().zip(second) {
            if a.is_finite() && b.is_finite() {
                let difference = (f64::from(a) - f64::from(b)).abs();
                d.max_abs = d.max_abs.max(difference);
                d.scale = d.scale.max(f64::from(a).abs());
                self.sum += difference;
            } else if a != b && !(a.is_nan() && b.is_nan()) {
                d.num_not_finite += 1;
            }
        }
    }

    fn finish(self) -> Deviation {
        let mut d = self.deviation;
        d.mean_abs = self.sum / d.num_values.max(1) as f64;
        d.relative = match (d.max_abs, d.scale) {
            (0.0, _) => 0.0,
            // nothing but zeros against something else: no scale makes that small
            (_, 0.0) => f64::MAX,
            (max_abs, scale) => max_abs / scale,
        };
        d
    }
}

/// Compares outputs of two engines, batch by batch.
#[derive(Default)]
pub struct OutputComparison {
    /// By output, in the engines' order.
    sums: Vec<(String, Sums)>,
}

impl OutputComparison {
    /// Adds a batch: the outputs of both engines, laid out alike; the first is what the others are measured by.
    pub fn add(&mut self, first: &HostOutputs, second: &HostOutputs) {
        if self.sums.is_empty() {
            let names = first.layout().iter().map(|output| output.name.clone());
            self.sums = names.map(|name| (name, Sums::default())).collect();
        }
        for image in 0..first.num_images().min(second.num_images()) {
            let pairs = first.of_image(image).zip(second.of_image(image));
            for ((_, sums), ((_, first), (_, second))) in self.sums.iter_mut().zip(pairs) {
                sums.add(first, second);
            }
        }
    }

    /// Over all batches, in the engines' order.
    pub fn finish(self) -> Vec<OutputDeviation> {
        let finished =
            |(name, sums): (String, Sums)| OutputDeviation { name, deviation: sums.finish() };
        self.sums.into_iter().map(finished).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::OutputShape;

    #[test]
    fn numbers_are_compared_output_by_output() {
        let output = |name: &str, n| OutputShape { name: name.to_owned(), shape: vec![n, 2] };
        let layout = vec![output("cls_p3", 4), output("cls_p4", 1), output("reg_p3", 64)];
        let per_image = 2 * (4 + 1 + 64);
        let first = vec![2.0; 2 * per_image];
        let mut second = first.clone();
        // a value of the second output and one of the last, in the second image
        second[per_image + 2 * 4] = 2.5;
        second[2 * per_image - 1] = -2.0;
        let host = |values| HostOutputs::new(layout.clone(), 2, values).unwrap();
        let mut comparison = OutputComparison::default();
        comparison.add(&host(first.clone()), &host(first.clone()));
        comparison.add(&host(first), &host(second));
        let found = comparison.finish();
        let names: Vec<&str> = found.iter().map(|o| o.name.as_str()).collect();
        assert_eq!(names, ["cls_p3", "cls_p4", "reg_p3"]);
        let [a, b, c] = [0, 1, 2].map(|i| found[i].deviation);
        assert_eq!((a.max_abs, a.relative, a.num_values), (0.0, 0.0, 2 * 2 * 4 * 2));
        assert_eq!((b.max_abs, b.relative, b.mean_abs), (0.5, 0.25, 0.5 / 8.0));
        assert_eq!((c.max_abs, c.scale, c.relative), (4.0, 2.0, 2.0));
    }

    #[test]
    fn what_is_not_finite_counts_unless_it_is_the_same() {
        let mut sums = Sums::default();
        let (inf, nan) = (f32::INFINITY, f32::NAN);
        sums.add(&[inf, nan, 1.0, 1.0, inf, 3.0], &[inf, nan, nan, inf, -inf, 3.5]);
        let d = sums.finish();
        assert_eq!((d.num_not_finite, d.max_abs, d.scale), (3, 0.5, 3.0));
        let mut zeros = Sums::default();
        zeros.add(&[0.0], &[1e-9]);
        assert_eq!(zeros.finish().relative, f64::MAX);
    }
}
