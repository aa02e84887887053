//! Traces of the layers on a fixed set of training images, kept in a file of their own, and the rounding errors.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tch::Tensor;

use super::request::SearchRequest;
use super::sensitivity::{WidthError, sensitivity, width_errors};
use super::setup::Setup;
use super::trace::{ProbeEstimate, TraceOptions, TracedLayer, Traces};
use crate::artifact::network::blank_network;
use crate::artifact::pretrained::load_pretrained;
use crate::data::{Loader, LoaderOptions, Purpose, Split};
use crate::io;
use crate::nn::Network;
use crate::quant::WeightQuantConfig;
use crate::run::options::{loader_options, task_of};
use crate::seed::fnv1a;
use crate::topology::{Prepared, Task};

/// Part of the seed of the images and the probes.
const SEED_PART: u64 = u64::from_le_bytes(*b"curvatur");
/// The unfinished measurement is written this often.
const SAVE_EVERY: Duration = Duration::from_secs(20);

/// What is known about every layer of the search.
pub(super) struct Curvature {
    traces: Traces,
    /// By layer, then by width.
    errors: Vec<Vec<WidthError>>,
    pub division: crate::study::Division,
    pub seconds: f64,
    pub is_enough: bool,
}

/// The file of a measurement.
#[derive(Serialize, Deserialize)]
struct StoredCurvature {
    /// What decides the numbers.
    of: Value,
    seconds: f64,
    traces: Traces,
}

impl Curvature {
    /// Measures, or goes on with a measurement; `None` if it was asked to stop.
    pub fn measure(
        request: &SearchRequest,
        setup: &Setup,
        stop: &AtomicBool,
    ) -> Result<Option<Self>> {
        let config = &setup.config;
        let device = request.run.open_device(config)?;
        let net = blank_network(config, device)?;
        load_pretrained(net.as_ref(), config)?;
        let (layers, weights, quantizers) = layers_of(setup, net.as_ref())?;
        let mut widths: Vec<u32> =
            request.widths.iter().copied().chain([request.trial_bits]).collect();
        widths.sort_unstable();
        widths.dedup();
        tracing::info!(layers = layers.len(), ?widths, "rounding every layer to every width");
        let errors = (layers.iter().zip(&weights).zip(&quantizers))
            .map(|((layer, weight), config)| width_errors(&layer.name, weight, config, &widths))
            .collect::<Result<Vec<_>>>()?;

        let of = identity(request, setup, &layers)?;
        let path = setup
            .place
            .dir
            .join("traces")
            .join(format!("{:016x}.json", fnv1a(of.to_string().as_bytes())));
        let mut stored = open_stored(&path, of, layers)?;
        let options = TraceOptions {
            seed: config.experiment.seed ^ SEED_PART,
            min_probes: request.trace.images.div_ceil(request.trace.batch),
            max_probes: request.trace.max_probes,
            relative_error: request.trace.relative_error,
        };
        // The sum that the programme weighs: at the fewest bits, where it is largest.
        let factors: Vec<f64> = (stored.traces.layers.iter().zip(&errors))
            .map(|(l, e)| {
                sensitivity(1.0, l.num_weights, e[0].squared_error, request.trace.division)
            })
            .collect();
        if !stored.traces.is_enough(&factors, &options) {
            let (task, batches) = batches(request, setup)?;
            let mut saved = Instant::now();
            let mut said = Instant::now();
            while !stored.traces.is_enough(&factors, &options) {
                if stop.load(Ordering::Relaxed) {
                    save(&path, &stored)?;
                    return Ok(None);
                }
                let since = Instant::now();
                let number = stored.traces.num_probes();
                let batch = &batches[number % batches.len()];
                let loss = loss(task.as_ref(), net.as_ref(), batch)?;
                stored.traces.probe(&weights, &loss, options.seed)?;
                stored.seconds += since.elapsed().as_secs_f64();
                if saved.elapsed() > SAVE_EVERY {
                    save(&path, &stored)?;
                    saved = Instant::now();
                }
                if said.elapsed() > Duration::from_secs(10) {
                    said = Instant::now();
                    let sum = stored.traces.weighted_sum(&factors);
                    tracing::info!(
                        "curvature: {} probes, relative error {:.3} (aim {}, at most {} probes)",
                        number + 1,
                        sum.relative(),
                        options.relative_error,
                        options.max_probes
                    );
                }
            }
            save(&path, &stored)?;
        }
        let sum = stored.traces.weighted_sum(&factors);
        let is_enough = sum.relative() <= options.relative_error;
        tracing::info!(
            "curvature of {} layers: {} probes, {:.1} s, relative error of the summed sensitivity {:.3}",
            factors.len(),
            stored.traces.num_probes(),
            stored.seconds,
            sum.relative()
        );
        if !is_enough {
            tracing::warn!(
                "the summed sensitivity is known to {:.1} % only after {} probes, not to {:.1} %; allow more with \
                 --trace-probes",
                100.0 * sum.relative(),
                stored.traces.num_probes(),
                100.0 * options.relative_error
            );
        }
        let division = request.trace.division;
        let seconds = stored.seconds;
        Ok(Some(Self { traces: stored.traces, errors, division, seconds, is_enough }))
    }

    pub fn num_probes(&self) -> usize {
        self.traces.num_probes()
    }

    fn index(&self, layer: &str) -> Result<usize> {
        let found = self.traces.layers.iter().position(|l| l.name == layer);
        found.with_context(|| format!("no curvature of {layer}"))
    }

    /// The trace over the weights of some layers.
    pub fn trace(&self, layers: &[(String, usize)]) -> Result<ProbeEstimate> {
        let mut factors = vec![0.0; self.traces.layers.len()];
        for (name, _) in layers {
            factors[self.index(name)?] = 1.0;
        }
        Ok(self.traces.weighted_sum(&factors))
    }

    /// The summed sensitivity of some layers at a width.
    pub fn sensitivity(&self, layers: &[(String, usize)], bits: u32) -> Result<ProbeEstimate> {
        let mut factors = vec![0.0; self.traces.layers.len()];
        for (name, num_weights) in layers {
            let i = self.index(name)?;
            let error = self.error(i, bits)?;
            factors[i] = sensitivity(1.0, *num_weights, error.squared_error, self.division);
        }
        Ok(self.traces.weighted_sum(&factors))
    }

    /// As [`Curvature::sensitivity`], with the traces of a resample.
    pub fn sensitivity_of(
        &self,
        traces: &[f64],
        layers: &[(String, usize)],
        bits: u32,
    ) -> Result<f64> {
        let one = |(name, num_weights): &(String, usize)| -> Result<f64> {
            let i = self.index(name)?;
            let error = self.error(i, bits)?.squared_error;
            Ok(sensitivity(traces[i], *num_weights, error, self.division))
        };
        layers.iter().map(one).sum()
    }

    /// The traces of a resample of the probes.
    pub fn resampled(&self, number: usize) -> Vec<f64> {
        self.traces.resampled(SEED_PART, number)
    }

    fn error(&self, layer: usize, bits: u32) -> Result<WidthError> {
        let found = self.errors[layer].iter().find(|e| e.bits == bits);
        found.copied().with_context(|| format!("no rounding error at {bits} bits"))
    }

    /// Number of levels of a layer at a width.
    pub fn num_levels(&self, layer: &str, bits: u32) -> Result<u32> {
        Ok(self.error(self.index(layer)?, bits)?.num_levels)
    }
}

type Layers = (Vec<TracedLayer>, Vec<Tensor>, Vec<WeightQuantConfig>);

/// The layers of all modules, their weights, and how each is quantized.
fn layers_of(setup: &Setup, net: &dyn Network) -> Result<Layers> {
    let (mut layers, mut weights, mut quantizers) = (Vec::new(), Vec::new(), Vec::new());
    let sites = net.store().sites();
    for module in &setup.modules {
        for (name, num_weights) in &module.layers {
            let quantizer = setup.quantizers(name)?;
            let (quantizer, _) = quantizer.context("a stage of the search quantizes no weights")?;
            let site = sites.iter().find(|s| s.name == *name);
            let site = site.with_context(|| format!("the network has no layer {name}"))?;
            layers.push(TracedLayer { name: name.clone(), num_weights: *num_weights });
            weights.push(site.weight.shallow_clone());
            quantizers.push(quantizer);
        }
    }
    Ok((layers, weights, quantizers))
}

/// What decides a measurement's numbers.
fn identity(request: &SearchRequest, setup: &Setup, layers: &[TracedLayer]) -> Result<Value> {
    let c = &setup.config;
    let names: Vec<&str> = layers.iter().map(|l| l.name.as_str()).collect();
    let data = serde_json::to_value(&c.data).context("writing the data section")?;
    Ok(json!({
        "weights": setup.place.inputs["weights"],
        "training": setup.place.inputs["training"],
        "network": c.network,
        "input": c.input,
        "augment": [data["augment"], data["AUGMENTATION_SHIFT"], data["AUGMENTATION_SCALE"], data["AUGMENTATION_ROTATION"]],
        "loss": c.training.loss,
        "targets": c.training.targets,
        "seed": c.experiment.seed,
        "images": request.trace.images,
        "batch": request.trace.batch,
        "layers": names,
    }))
}

fn open_stored(path: &Path, of: Value, layers: Vec<TracedLayer>) -> Result<StoredCurvature> {
    if path.is_file() {
        let stored: StoredCurvature = io::read_json(path)?;
        ensure!(
            stored.of == of && stored.traces.layers == layers,
            "{} holds another measurement; remove it",
            path.display()
        );
        return Ok(stored);
    }
    Ok(StoredCurvature { of, seconds: 0.0, traces: Traces::new(layers) })
}

fn save(path: &Path, stored: &StoredCurvature) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)
            .with_context(|| format!("making the folder {}", folder.display()))?;
    }
    io::write_json(path, stored)
}

/// The calibration set: training images drawn by the seed, augmented as in training, with targets drawn once.
fn batches(request: &SearchRequest, setup: &Setup) -> Result<(Box<dyn Task>, Vec<Prepared>)> {
    let config = &setup.config;
    let dataset =
        Arc::new(request.run.open_split(&setup.home, config, Split::Train, Purpose::Training)?);
    let size = request.trace.batch;
    ensure!(
        size <= dataset.frames.len(),
        "the training split has {} images, fewer than --trace-batch {size}",
        dataset.frames.len()
    );
    let seed = config.experiment.seed ^ SEED_PART;
    let task = task_of(config, &dataset, seed)?;
    let preparer = task.preparer();
    let skip_bad = request.run.skip_bad;
    let options = LoaderOptions { seed, skip_bad, ..loader_options(config, size) };
    let wanted = request.trace.images.div_ceil(size);
    let loader = Loader::start(dataset.clone(), &config.input, &config.data, options)?;
    let mut batches = Vec::new();
    for (number, batch) in loader.take(wanted).enumerate() {
        batches.push(preparer.prepare(batch?, number as u64)?);
    }
    ensure!(!batches.is_empty(), "the training split gave no batch of {size} images");
    if batches.len() < wanted {
        tracing::warn!(
            "the training split gives {} batches of {size} images, fewer than the {wanted} of --trace-images",
            batches.len()
        );
    }
    Ok((task, batches))
}

/// The training loss an image, batch norms at their running statistics, so that an image's loss depends on it alone.
fn loss(task: &dyn Task, net: &dyn Network, prepared: &Prepared) -> Result<Tensor> {
    let losses = task.losses(net, prepared, false)?;
    Ok(losses.total() / prepared.batch.indices.len() as f64)
}
