//! The trace of the loss's Hessian, layer by layer, by Hutchinson's estimator.
//!
//! For v of random signs, `E[v^T H v] = Tr H`. One v over all layers gives every layer its own estimate,
//! `v_i^T (H v)_i = v_i^T H_ii v_i + sum_j v_i^T H_ij v_j`: the second part has mean 0, so the estimate of the layer's own
//! block is unbiased, at the cost of some variance and for the price of one pass instead of one a layer. `H v` is the
//! gradient of `v^T g`, g the gradient kept with its graph.

use anyhow::{Context, Result, ensure};
use rand::{Rng, RngCore};
use serde::{Deserialize, Serialize};
use tch::Tensor;

use crate::seed;

/// First part of the place of a probe's random stream.
const PURPOSE_PROBE: u64 = u64::from_le_bytes(*b"hutchins");

/// First part of the place of a resample's random stream.
const PURPOSE_RESAMPLE: u64 = u64::from_le_bytes(*b"resample");

/// When there are enough probes.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceOptions {
    /// Seed of the probes.
    pub seed: u64,
    /// Probes at least; 2 or more. All batches should have had their turn.
    pub min_probes: usize,
    /// Probes at most.
    pub max_probes: usize,
    /// Enough once the standard error of the summed sensitivity is below this fraction of it.
    pub relative_error: f64,
}

/// A layer whose curvature is measured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TracedLayer {
    /// Its path.
    pub name: String,
    /// Number of weights.
    pub num_weights: usize,
}

/// A mean over probes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ProbeEstimate {
    /// The mean.
    pub mean: f64,
    /// Its standard error.
    pub standard_error: f64,
}

impl ProbeEstimate {
    /// The mean of independent values, and its standard error; infinite for fewer than two values.
    fn of(values: impl ExactSizeIterator<Item = f64> + Clone) -> Self {
        let n = values.len() as f64;
        let mean = values.clone().sum::<f64>() / n;
        let squares: f64 = values.map(|v| (v - mean).powi(2)).sum();
        let standard_error =
            if n < 2.0 { f64::INFINITY } else { (squares / (n * (n - 1.0))).sqrt() };
        Self { mean, standard_error }
    }

    /// The standard error as a fraction of the mean's size.
    pub fn relative(&self) -> f64 {
        self.standard_error / self.mean.abs()
    }
}

/// Every probe's estimate for every layer.
///
/// All of them are kept: layers of one probe are not independent, and the standard error of a sum over layers needs them
/// together. Probe `k` is a function of the seed and `k`, so a measurement that was cut off goes on where it was.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traces {
    /// The layers.
    pub layers: Vec<TracedLayer>,
    /// By probe, then by layer: `v_i^T (H v)_i`.
    probes: Vec<Vec<f64>>,
}

impl Traces {
    /// Without probes so far.
    pub fn new(layers: Vec<TracedLayer>) -> Self {
        Self { layers, probes: Vec::new() }
    }

    /// Number of probes.
    pub fn num_probes(&self) -> usize {
        self.probes.len()
    }

    /// A layer's trace.
    pub fn layer(&self, index: usize) -> ProbeEstimate {
        ProbeEstimate::of(self.probes.iter().map(|p| p[index]))
    }

    /// `sum_i factors_i * trace_i` over all layers: 1 for those of a module and 0 for the others gives the module's trace.
    pub fn weighted_sum(&self, factors: &[f64]) -> ProbeEstimate {
        let sum = |p: &Vec<f64>| p.iter().zip(factors).map(|(t, f)| t * f).sum();
        ProbeEstimate::of(self.probes.iter().map(sum))
    }

    /// Every layer's trace over as many probes drawn with replacement: what another measurement might have found
    /// (the bootstrap). Draw `number` is a function of the seed.
    pub fn resampled(&self, seed: u64, number: usize) -> Vec<f64> {
        let mut rng = seed::stream(seed, &[PURPOSE_RESAMPLE, number as u64]);
        let n = self.probes.len();
        let mut sums = vec![0.0; self.layers.len()];
        for _ in 0..n {
            let probe = &self.probes[rng.random_range(0..n)];
            sums.iter_mut().zip(probe).for_each(|(sum, value)| *sum += value);
        }
        sums.iter().map(|sum| sum / n as f64).collect()
    }

    /// Whether the sum over layers, each times its factor, is known well enough.
    pub fn is_enough(&self, factors: &[f64], options: &TraceOptions) -> bool {
        let n = self.num_probes();
        n >= options.max_probes
            || (n >= options.min_probes.max(2)
                && self.weighted_sum(factors).relative() <= options.relative_error)
    }

    /// One more probe, of `loss`: a scalar with its graph, of which every one of `weights` is a leaf that requires a
    /// gradient. The weights are those of the layers, in their order.
    ///
    /// # Errors
    /// If libtorch cannot differentiate the loss twice, or an estimate is not finite; names the layer.
    pub fn probe(&mut self, weights: &[Tensor], loss: &Tensor, seed: u64) -> Result<()> {
        ensure!(
            weights.len() == self.layers.len(),
            "{} weights for {} layers",
            weights.len(),
            self.layers.len()
        );
        let number = self.num_probes();
        let values = quadratic_forms(weights, loss, seed, number)?;
        for (layer, value) in self.layers.iter().zip(&values) {
            ensure!(
                value.is_finite(),
                "the curvature of {} is {value} in probe {number}: the weights or the loss are not finite there",
                layer.name
            );
        }
        self.probes.push(values);
        Ok(())
    }
}

/// `v_i^T (H v)_i` of every layer.
fn quadratic_forms(
    weights: &[Tensor],
    loss: &Tensor,
    seed: u64,
    number: usize,
) -> Result<Vec<f64>> {
    let gradients =
        Tensor::f_run_backward(&[loss], weights, true, true).context("differentiating the loss")?;
    let signs: Vec<Tensor> =
        weights.iter().enumerate().map(|(i, w)| random_signs(w, seed, number, i)).collect();
    let mut product: Option<Tensor> = None;
    for (gradient, sign) in gradients.iter().zip(&signs) {
        // Undefined: the loss does not depend on the weight. Without a graph: it does so linearly.
        if gradient.defined() && gradient.requires_grad() {
            let part = (gradient * sign).sum(gradient.kind());
            product = Some(product.map_or_else(|| part.shallow_clone(), |sum| sum + &part));
        }
    }
    let Some(product) = product else { return Ok(vec![0.0; weights.len()]) };
    let products = Tensor::f_run_backward(&[product], weights, false, false)
        .context("differentiating the gradient")?;
    let forms: Vec<Tensor> = products
        .iter()
        .zip(&signs)
        .map(|(hv, sign)| {
            let zero = || Tensor::zeros([], (tch::Kind::Double, sign.device()));
            if hv.defined() { (hv * sign).sum(tch::Kind::Double) } else { zero() }
        })
        .collect();
    Vec::try_from(Tensor::stack(&forms, 0)).context("fetching the probe's estimates")
}

/// -1 or 1 with even odds, in the shape, kind and place of `like`.
fn random_signs(like: &Tensor, seed: u64, probe: usize, layer: usize) -> Tensor {
    let mut rng = seed::stream(seed, &[PURPOSE_PROBE, probe as u64, layer as u64]);
    let count = like.numel();
    let mut signs = Vec::with_capacity(count.next_multiple_of(64));
    while signs.len() < count {
        let bits = rng.next_u64();
        signs.extend((0..64).map(|i| if bits >> i & 1 == 1 { 1.0f32 } else { -1.0 }));
    }
    signs.truncate(count);
    Tensor::from_slice(&signs).reshape(like.size()).to_device(like.device()).to_kind(like.kind())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    fn traces(names: &[(&str, usize)]) -> Traces {
        let layer =
            |&(name, num_weights): &(&str, usize)| TracedLayer { name: name.into(), num_weights };
        Traces::new(names.iter().map(layer).collect())
    }

    fn leaf(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    /// A symmetric matrix with entries that tell rows from columns.
    fn matrix(n: i64) -> Tensor {
        let a = (Tensor::arange(n * n, (Kind::Double, Device::Cpu)) * 0.7).sin().reshape([n, n]);
        &a + a.tr()
    }

    /// `w^T A w / 2` of two layers of 3 and 2 weights.
    fn quadratic(weights: &[Tensor], a: &Tensor) -> Tensor {
        let w = Tensor::cat(weights, 0);
        w.dot(&a.mv(&w)) * 0.5
    }

    #[test]
    fn a_diagonal_hessian_is_exact_with_one_probe() {
        let weights = [leaf(&[0.1, 0.2, 0.3]), leaf(&[1.0, 2.0])];
        let a = Tensor::from_slice(&[1.0, 2.0, 3.0, 10.0, -4.0]).diag(0);
        let mut found = traces(&[("a", 3), ("b", 2)]);
        found.probe(&weights, &quadratic(&weights, &a), 7).unwrap();
        found.probe(&weights, &quadratic(&weights, &a), 7).unwrap();
        assert_eq!(found.layer(0), ProbeEstimate { mean: 6.0, standard_error: 0.0 });
        assert_eq!(found.layer(1), ProbeEstimate { mean: 6.0, standard_error: 0.0 });
        assert_eq!(found.weighted_sum(&[1.0, 0.5]).mean, 9.0);
    }

    #[test]
    fn a_known_hessian_is_met_with_the_standard_error_of_theory() {
        let weights = [leaf(&[0.1, 0.2, 0.3]), leaf(&[1.0, 2.0])];
        let a = matrix(5);
        let mut found = traces(&[("a", 3), ("b", 2)]);
        const PROBES: usize = 3000;
        for _ in 0..PROBES {
            found.probe(&weights, &quadratic(&weights, &a), 1).unwrap();
        }
        for (layer, (from, to)) in [(0, 3), (3, 5)].into_iter().enumerate() {
            let at = |i: i64, j: i64| a.double_value(&[i, j]);
            let trace: f64 = (from..to).map(|i| at(i, i)).sum();
            // Var(v_i^T A_ii v_i) = 2 sum of squares off the diagonal; the other blocks add theirs once.
            let mut variance = 0.0;
            for i in from..to {
                for j in (0..5).filter(|j| *j != i) {
                    let inside = (from..to).contains(&j);
                    variance += at(i, j).powi(2) * if inside { 2.0 } else { 1.0 };
                }
            }
            let expected = (variance / PROBES as f64).sqrt();
            let ProbeEstimate { mean, standard_error } = found.layer(layer);
            assert!((mean - trace).abs() < 4.0 * expected, "{mean} {trace} +- {expected}");
            assert!((standard_error / expected - 1.0).abs() < 0.1, "{standard_error} {expected}");
        }
    }

    /// Two convolutions with what the network has between them, in f64.
    fn small_network(weights: &[Tensor]) -> Tensor {
        let x = Tensor::arange(2 * 16, (Kind::Double, Device::Cpu)).sin().reshape([2, 1, 4, 4]);
        let conv = |x: &Tensor, w: &Tensor| x.conv2d(w, None::<Tensor>, [1, 1], [1, 1], [1, 1], 1);
        let y = conv(&x, &weights[0]);
        let y = y.group_norm(1, None::<Tensor>, None::<Tensor>, 1e-5, true).sigmoid();
        let y = conv(&y, &weights[1]);
        let p = y.sigmoid();
        let q: Tensor = 1.0 - &p;
        (&p * &p * q.log() * -1.0).sum(Kind::Double)
            + y.smooth_l1_loss(&y.zeros_like(), tch::Reduction::Sum, 1.0)
    }

    #[test]
    fn products_with_the_hessian_agree_with_finite_differences() {
        let values = |n: usize, phase: f64| -> Vec<f64> {
            (0..n).map(|i| (i as f64 * 1.3 + phase).cos() * 0.5).collect()
        };
        let shaped = |values: &[f64], shape: &[i64]| {
            Tensor::from_slice(values).reshape(shape).set_requires_grad(true)
        };
        let weights =
            [shaped(&values(18, 0.0), &[2, 1, 3, 3]), shaped(&values(18, 2.0), &[1, 2, 3, 3])];
        let forms = quadratic_forms(&weights, &small_network(&weights), 3, 5).unwrap();

        let signs: Vec<Tensor> =
            weights.iter().enumerate().map(|(i, w)| random_signs(w, 3, 5, i)).collect();
        let gradient_at = |step: f64| -> Vec<Tensor> {
            let moved: Vec<Tensor> = (weights.iter().zip(&signs))
                .map(|(w, v)| (w.detach() + v * step).set_requires_grad(true))
                .collect();
            Tensor::f_run_backward(&[small_network(&moved)], &moved, false, false).unwrap()
        };
        const STEP: f64 = 1e-5;
        let (above, below) = (gradient_at(STEP), gradient_at(-STEP));
        for i in 0..2 {
            let product = (&above[i] - &below[i]) / (2.0 * STEP);
            let expected = (product * &signs[i]).sum(Kind::Double).double_value(&[]);
            let error = (forms[i] - expected).abs() / expected.abs();
            assert!(error < 1e-6, "{i}: {} {expected}", forms[i]);
        }
    }

    #[test]
    fn probes_are_a_function_of_seed_and_number() {
        let weights = [leaf(&[0.1, 0.2, 0.3]), leaf(&[1.0, 2.0])];
        let a = matrix(5);
        let run = |seed: u64, cut: usize| {
            let mut found = traces(&[("a", 3), ("b", 2)]);
            for i in 0..6 {
                if i == cut {
                    // As a file in between would hold them.
                    let text = serde_json::to_string(&found).unwrap();
                    found = serde_json::from_str(&text).unwrap();
                }
                found.probe(&weights, &quadratic(&weights, &a), seed).unwrap();
            }
            found
        };
        assert_eq!(run(1, 9), run(1, 3));
        assert_ne!(run(1, 9), run(2, 9));
    }

    #[test]
    fn resamples_scatter_as_the_standard_error_says() {
        let mut found = traces(&[("a", 3), ("b", 2)]);
        found.probes = (0..50).map(|i| vec![f64::from(i * i % 17), 1.0]).collect();
        let draws: Vec<Vec<f64>> = (0..2000).map(|i| found.resampled(1, i)).collect();
        assert!(draws.iter().all(|d| d[1] == 1.0));
        assert_eq!(found.resampled(1, 3), draws[3]);
        let ProbeEstimate { mean, standard_error } = found.layer(0);
        let scatter = draws.iter().map(|d| (d[0] - mean).powi(2)).sum::<f64>() / 2000.0;
        assert!((scatter.sqrt() / standard_error - 1.0).abs() < 0.1, "{scatter} {standard_error}");
    }

    #[test]
    fn it_is_enough_when_the_sum_is_known_well_or_the_most_are_drawn() {
        let mut found = traces(&[("a", 3)]);
        let options = TraceOptions { seed: 1, min_probes: 3, max_probes: 5, relative_error: 0.1 };
        found.probes = vec![vec![1.0], vec![1.0]];
        assert!(!found.is_enough(&[2.0], &options), "fewer than the least");
        found.probes.push(vec![1.0]);
        assert!(found.is_enough(&[2.0], &options));
        found.probes.push(vec![9.0]);
        assert!(!found.is_enough(&[2.0], &options));
        found.probes.push(vec![1.0]);
        assert!(found.is_enough(&[2.0], &options), "no more than the most");
    }

    #[test]
    fn a_loss_without_curvature_has_none_and_a_bad_one_is_refused() {
        let weights = [leaf(&[1.0, 2.0]), leaf(&[0.0])];
        let mut found = traces(&[("a", 2), ("b", 1)]);
        found.probe(&weights, &weights[0].sum(Kind::Double), 1).unwrap();
        assert_eq!(found.probes[0], [0.0, 0.0]);
        let cubed = weights[0].pow_tensor_scalar(3.0).sum(Kind::Double);
        found.probe(&weights, &cubed, 1).unwrap();
        assert_eq!(found.probes[1], [18.0, 0.0]);
        let bad = (&weights[0] * f64::NAN).exp().sum(Kind::Double);
        let err = found.probe(&weights, &bad, 1).unwrap_err().to_string();
        assert!(err.contains("curvature of a") && err.contains("probe 2"), "{err}");
    }
}
