//! A network over a split: images to predicted poses.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use anyhow::{Context, Result, anyhow, ensure};
use rayon::prelude::*;
use tch::{Device, Kind, Tensor};

use super::candidates::{CandidateConfig, LevelOutput, REG_CHANNELS, select};
use super::predictions::Prediction;
use super::report::Timing;
use crate::data::{BadSample, DataConfig, Dataset, InputConfig, Loader, LoaderOptions};
use crate::geom::{Camera, Vec3};
use crate::model::{AnchorGrid, Outputs, PoseNet, images_from_bytes};
use crate::pose::{RansacConfig, solve_pnp_ransac};

/// Batches of outputs that may wait for their poses while the network goes on.
const WAITING_BATCHES: usize = 2;

/// What inference needs to know.
#[derive(Debug, Clone)]
pub struct InferOptions {
    /// Size, camera and normalisation of the network's input.
    pub input: InputConfig,
    /// The section `data`: batch size and how images are shrunk.
    pub data: DataConfig,
    /// Selection of cells.
    pub candidates: CandidateConfig,
    /// PnP under the internal camera.
    pub ransac: RansacConfig,
    /// Seed of RANSAC's draws; each image has its own stream.
    pub seed: u64,
    /// Threads that load images.
    pub workers: usize,
    /// Leave images out that cannot be read instead of stopping.
    pub skip_bad: bool,
    /// Where the network is.
    pub device: Device,
}

/// How far an inference is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Images whose outputs are there.
    pub num_done: usize,
    /// Images of the split.
    pub num_images: usize,
}

/// What [`infer`] found.
#[derive(Debug, Clone)]
pub struct Inference {
    /// At most one a class and image, in the order of the images, then of the classes.
    pub predictions: Vec<Prediction>,
    /// With `skip_bad`: the images that could not be read.
    pub left_out: Vec<BadSample>,
    /// Where the time went.
    pub timing: Timing,
}

/// Predicts the poses in every image of `dataset`: network in evaluation mode, selection of cells, one PnP per class.
///
/// The PnP is solved under the internal camera; the image was warped by `K_internal K^-1`, so that the pose holds
/// under the image's own camera as it is. Results do not depend on batch size, threads or timing. An object that
/// was not found, or whose PnP has no solution, is simply absent.
///
/// # Errors
/// If an image cannot be loaded (unless `skip_bad`), the network's outputs have not the shapes of its grid, or it has
/// not as many classes as the dataset.
pub fn infer(
    network: &PoseNet,
    dataset: &Arc<Dataset>,
    options: &InferOptions,
    mut progress: impl FnMut(Progress),
) -> Result<Inference> {
    let num_classes = dataset.models.len();
    ensure!(
        network.num_classes() == num_classes as i64,
        "the network has {} classes, the dataset {num_classes}",
        network.num_classes()
    );
    let started = Instant::now();
    let mut timing = Timing { num_images: dataset.frames.len(), ..Timing::default() };
    let solver = Solver {
        dataset,
        grid: network.grid(options.input.width, options.input.height),
        camera: options.input.camera()?,
        options,
    };
    let loader_options = LoaderOptions {
        seed: options.seed,
        batch_size: options.data.bs_valid,
        workers: options.workers,
        skip_bad: options.skip_bad,
        ..LoaderOptions::default() // in the list's order, nothing augmented or replaced
    };
    let mut loader = Loader::start(dataset.clone(), &options.input, &options.data, loader_options)?;
    // The network runs here, the poses are found on the other threads meanwhile.
    let solved = std::thread::scope(|scope| -> Result<Solved> {
        let (sender, receiver) = sync_channel(WAITING_BATCHES);
        let solving = scope.spawn(|| solver.solve_all(receiver));
        let mut num_done = 0;
        loop {
            let waiting = Instant::now();
            let Some(batch) = loader.next() else { break };
            let batch = batch?;
            timing.loading_s += waiting.elapsed().as_secs_f64();
            let running = Instant::now();
            let size = [batch.indices.len(), batch.height, batch.width];
            let mean = &options.input.pixel_mean;
            let images = images_from_bytes(
                &batch.pixels,
                size,
                mean,
                &options.input.pixel_std,
                options.device,
            )?;
            let outputs = tch::no_grad(|| network.forward_t(&images, false));
            let values = to_host(&outputs, &solver.grid, size[0], num_classes)?;
            timing.network_s += running.elapsed().as_secs_f64();
            num_done += batch.indices.len();
            progress(Progress { num_done, num_images: dataset.frames.len() });
            if sender.send(HostOutputs { indices: batch.indices, values }).is_err() {
                break; // the solver panicked: joining it says so
            }
        }
        drop(sender);
        solving.join().map_err(|_| anyhow!("solving for poses panicked"))
    })?;
    timing.decode_s = solved.decode_s;
    timing.pnp_s = solved.pnp_s;
    timing.total_s = started.elapsed().as_secs_f64();
    let left_out = loader.bad().to_vec();
    timing.num_images -= left_out.len();
    Ok(Inference { predictions: solved.predictions, left_out, timing })
}

/// The outputs of one batch on the CPU.
struct HostOutputs {
    /// The frames they belong to.
    indices: Vec<usize>,
    /// For each image the levels' logits `[C, h, w]`, then the levels' regressions `[16 C, h, w]`.
    values: Vec<f32>,
}

/// All outputs of a batch in one transfer: `[n, (C + 16 C) cells]`, levels' logits first.
fn to_host(
    outputs: &Outputs,
    grid: &AnchorGrid,
    num_images: usize,
    num_classes: usize,
) -> Result<Vec<f32>> {
    let flat: Vec<Tensor> =
        outputs.cls.iter().chain(&outputs.reg).map(|t| t.flatten(1, -1)).collect();
    let joined = Tensor::f_cat(&flat, 1).context("joining the network's outputs")?;
    let joined = joined.to_device(Device::Cpu).to_kind(Kind::Float).contiguous();
    let per_image = num_classes * (1 + REG_CHANNELS) * grid.num_cells();
    ensure!(
        joined.size() == [num_images as i64, per_image as i64],
        "the network's outputs have {:?} numbers, expected [{num_images}, {per_image}]: {} cells",
        joined.size(),
        grid.num_cells()
    );
    Ok(Vec::<f32>::try_from(joined.view([-1]))?)
}

/// What turns outputs into predictions.
struct Solver<'a> {
    dataset: &'a Dataset,
    grid: AnchorGrid,
    camera: Camera,
    options: &'a InferOptions,
}

#[derive(Default)]
struct Solved {
    predictions: Vec<Prediction>,
    decode_s: f64,
    pnp_s: f64,
}

impl Solver<'_> {
    fn solve_all(&self, batches: Receiver<HostOutputs>) -> Solved {
        let mut all = Solved::default();
        for batch in batches {
            let per_image = batch.values.len() / batch.indices.len().max(1);
            let images: Vec<Solved> = batch
                .indices
                .par_iter()
                .zip(batch.values.par_chunks(per_image.max(1)))
                .map(|(&index, values)| self.solve(index, values))
                .collect();
            for image in images {
                all.predictions.extend(image.predictions);
                all.decode_s += image.decode_s;
                all.pnp_s += image.pnp_s;
            }
        }
        all
    }

    /// The poses in one image.
    fn solve(&self, index: usize, values: &[f32]) -> Solved {
        let decoding = Instant::now();
        let models = &self.dataset.models;
        let levels = split_levels(values, &self.grid, models.len());
        let found = select(&levels, models.len(), &self.options.candidates);
        let decode_s = decoding.elapsed().as_secs_f64();
        let solving = Instant::now();
        let mut predictions = Vec::new();
        for class in found {
            let model = &models[class.class];
            let points: Vec<Vec3> =
                model.corners.iter().copied().cycle().take(class.pixels.len()).collect();
            let seed = pnp_seed(self.options.seed, index, class.class);
            let config = &self.options.ransac;
            let Some(solution) =
                solve_pnp_ransac(&self.camera, &points, &class.pixels, config, seed)
            else {
                continue;
            };
            predictions.push(Prediction {
                image: self.dataset.frames[index].image.clone(),
                class: class.class,
                obj_id: Some(model.obj_id),
                score: f64::from(class.score),
                r: solution.pose.r_row_major(),
                t_mm: solution.pose.t_array(),
                inliers: solution.inliers.len(),
                residual_px: solution.mean_residual_px,
            });
        }
        Solved { predictions, decode_s, pnp_s: solving.elapsed().as_secs_f64() }
    }
}

/// The seed of one PnP, a function of its place alone.
fn pnp_seed(seed: u64, image: usize, class: usize) -> u64 {
    use crate::seed::splitmix64;
    splitmix64(splitmix64(seed ^ 0x706e_7000).wrapping_add(image as u64) ^ ((class as u64) << 40))
}

/// One image's numbers as levels: all logits come first, then all regressions.
fn split_levels<'a>(
    values: &'a [f32],
    grid: &AnchorGrid,
    num_classes: usize,
) -> Vec<LevelOutput<'a>> {
    let (cls, reg) = values.split_at(num_classes * grid.num_cells());
    grid.levels
        .iter()
        .map(|level| {
            let part = |values: &'a [f32], channels: usize| {
                &values[channels * level.offset..][..channels * level.num_cells()]
            };
            LevelOutput {
                cls: part(cls, num_classes),
                reg: part(reg, num_classes * REG_CHANNELS),
                h: level.h,
                w: level.w,
                stride_px: level.stride as f64,
                anchor_px: level.size_px,
            }
        })
        .collect()
}
