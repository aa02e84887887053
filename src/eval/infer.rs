//! A network over a split: images to predicted poses.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use anyhow::{Result, anyhow, ensure};
use rayon::prelude::*;
use tch::{Device, Tensor};

use super::candidates::CandidateConfig;
use super::predictions::Prediction;
use super::report::Timing;
use super::solver::{Solver, to_host};
use crate::data::{BadSample, DataConfig, Dataset, InputConfig, Loader, LoaderOptions, ObjectBox};
use crate::model::{AnchorGrid, Outputs, PoseNet, images_from_bytes};
use crate::pose::RansacConfig;

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

/// What computes a network's outputs: libtorch, or another runtime of an exported file.
pub trait Engine {
    /// Object classes.
    fn num_classes(&self) -> i64;
    /// Where the outputs for images of that size lie.
    fn grid(&self, width: usize, height: usize) -> AnchorGrid;
    /// Logits and offsets for images `[n, 3, h, w]`, normalised.
    ///
    /// # Errors
    /// If the images do not fit or the runtime fails.
    fn forward(&self, images: &Tensor) -> Result<Outputs>;
}

impl Engine for PoseNet {
    fn num_classes(&self) -> i64 {
        self.num_classes()
    }

    fn grid(&self, width: usize, height: usize) -> AnchorGrid {
        self.grid(width, height)
    }

    fn forward(&self, images: &Tensor) -> Result<Outputs> {
        Ok(tch::no_grad(|| self.forward_t(images, false)))
    }
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
/// under the image's own camera as it is. Results do not depend on threads or timing
/// (on the batch size by what the network's own rounding does). An object that
/// was not found, or whose PnP has no solution, is simply absent.
///
/// # Errors
/// If an image cannot be loaded (unless `skip_bad`), the network's outputs have not the shapes of its grid, or it has
/// not as many classes as the dataset.
pub fn infer(
    network: &dyn Engine,
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
    let solver = SplitSolver::new(network, dataset, options)?;
    let mut loader = start_loader(dataset, options)?;
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
            let outputs = network.forward(&images)?;
            let values = to_host(&outputs, solver.grid(), size[0], num_classes)?;
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

/// Loads the images in the list's order, nothing augmented or replaced.
pub(super) fn start_loader(dataset: &Arc<Dataset>, options: &InferOptions) -> Result<Loader> {
    let loader_options = LoaderOptions {
        seed: options.seed,
        batch_size: options.data.bs_valid,
        workers: options.workers,
        skip_bad: options.skip_bad,
        ..LoaderOptions::default()
    };
    Loader::start(dataset.clone(), &options.input, &options.data, loader_options)
}

/// The outputs of one batch on the CPU.
pub(super) struct HostOutputs {
    /// The frames they belong to.
    pub indices: Vec<usize>,
    /// As [`to_host`] gives them.
    pub values: Vec<f32>,
}

/// What turns outputs of a dataset's images into predictions.
pub(super) struct SplitSolver<'a> {
    dataset: &'a Dataset,
    solver: Solver<'a>,
}

#[derive(Default)]
pub(super) struct Solved {
    pub predictions: Vec<Prediction>,
    decode_s: f64,
    pnp_s: f64,
}

impl<'a> SplitSolver<'a> {
    /// For the outputs of `network`.
    pub(super) fn new(
        network: &dyn Engine,
        dataset: &'a Dataset,
        options: &'a InferOptions,
    ) -> Result<Self> {
        let objects = dataset.models.iter().map(ObjectBox::from).collect();
        Ok(Self { dataset, solver: Solver::new(network, objects, options)? })
    }

    /// Where the outputs lie.
    pub(super) fn grid(&self) -> &AnchorGrid {
        &self.solver.grid
    }

    fn solve_all(&self, batches: Receiver<HostOutputs>) -> Solved {
        let mut all = Solved::default();
        for batch in batches {
            self.solve_batch(&batch, &mut all);
        }
        all
    }

    /// Adds the poses of a batch.
    pub(super) fn solve_batch(&self, batch: &HostOutputs, all: &mut Solved) {
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

    /// The poses in one image.
    fn solve(&self, index: usize, values: &[f32]) -> Solved {
        let solved = self.solver.solve(index, values);
        let name = &self.dataset.frames[index].image;
        Solved {
            predictions: solved.classes.iter().filter_map(|c| c.prediction(name)).collect(),
            decode_s: solved.decode_s,
            pnp_s: solved.pnp_s,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::dataset;
    use crate::geom::{Affine2, Camera, Pose, Vec2, Vec3};
    use crate::model::NetworkConfig;

    fn options() -> InferOptions {
        let input = InputConfig {
            width: 128,
            height: 128,
            k: [75.0, 0.0, 64.0, 0.0, 75.0, 64.0, 0.0, 0.0, 1.0],
            ..InputConfig::default()
        };
        InferOptions {
            input,
            data: DataConfig { bs_valid: 3, ..DataConfig::default() },
            candidates: CandidateConfig::default(),
            ransac: RansacConfig::default(),
            seed: 7,
            workers: 2,
            skip_bad: false,
            device: Device::Cpu,
        }
    }

    /// Outputs of a network that knows the answer: every cell predicts the corners of `pose`.
    fn perfect(grid: &AnchorGrid, pixels: &[Vec2; 8]) -> Vec<f32> {
        let num_cells = grid.num_cells();
        let mut values = vec![4.0; num_cells];
        for level in &grid.levels {
            let targets: Vec<_> = (level.offset..level.offset + level.num_cells())
                .map(|cell| grid.encode(cell, pixels))
                .collect();
            values.extend((0..16).flat_map(|c| targets.iter().map(move |t| t[c] as f32)));
        }
        values
    }

    #[test]
    fn a_pose_solved_under_the_internal_camera_holds_in_the_image() {
        let (dataset, options) = (dataset(), options());
        let grid = AnchorGrid::new(&NetworkConfig::widedepth_tiny(), 128, 128);
        let camera = options.input.camera().unwrap();
        let objects = dataset.models.iter().map(ObjectBox::from).collect();
        let solver = Solver::with_grid(grid, objects, &options).unwrap();
        let solver = SplitSolver { dataset: &dataset, solver };
        for index in [0, 12, 29] {
            let (frame, model) = (&dataset.frames[index], &dataset.models[0]);
            let truth = frame.objects[0].pose;
            // What the picture shows of the corners, moved as its pixels are.
            let warp = Affine2::between_cameras(&frame.camera, &camera);
            let corners =
                model.corners.map(|x| warp.apply(&frame.camera.project(&truth.apply(&x))));
            let solved = solver.solve(index, &perfect(solver.grid(), &corners));
            let [p] = solved.predictions.as_slice() else { panic!("{:?}", solved.predictions) };
            let pose = p.pose().unwrap();
            assert!((pose.t_mm - truth.t_mm).norm() < 1e-3 * truth.t_mm.norm(), "{pose:?}");
            assert!((pose.r - truth.r).norm() < 1e-2 && p.residual_px < 1e-3);
            assert_eq!((p.image.as_str(), p.obj_id), (frame.image.as_str(), Some(1)));
            assert_eq!(p.inliers % 8, 0);
        }
    }

    #[test]
    fn a_network_runs_over_a_split_whatever_the_threads() {
        let folder = tempfile::tempdir().unwrap();
        let mut dataset = dataset();
        dataset.root = folder.path().to_owned();
        dataset.frames.truncate(5);
        let dataset_pose = dataset.frames[1].objects[0].pose;
        for (i, frame) in dataset.frames.iter_mut().enumerate() {
            frame.objects.clear();
            let tone = |x: u32, y: u32| image::Rgb([(x / 4) as u8, (y / 4) as u8, 40 * i as u8]);
            image::RgbImage::from_fn(1024, 1024, tone)
                .save(folder.path().join(&frame.image))
                .unwrap();
        }
        let anchor_sizes = vec![8.0, 16.0, 32.0, 64.0, 128.0];
        let config = NetworkConfig { anchor_sizes, ..NetworkConfig::widedepth_tiny() };
        let network = PoseNet::new(&config, 1, Device::Cpu, 3).unwrap();
        // Every cell is a candidate and sees the same large box, so that there are poses to compare.
        let mut options = options();
        options.ransac.inlier_px = 400.0;
        let pose = Pose { t_mm: Vec3::new(0.0, 0.0, 300.0), ..dataset_pose };
        let unit = Camera::new(1.0, 1.0, 0.0, 0.0).unwrap();
        let corners = pose.project(&unit, &dataset.models[0].corners);
        let offsets: Vec<f32> = (0..16).map(|i| 50.0 * corners[i % 8][i / 8] as f32).collect();
        for (key, values) in [("head.cls_logits.bias", vec![4.0]), ("head.pose_pred.bias", offsets)]
        {
            let (_, mut bias) = network.state().into_iter().find(|(k, _)| k == key).unwrap();
            tch::no_grad(|| bias.copy_(&Tensor::from_slice(&values)));
        }
        let run = |network: &PoseNet, dataset: &Dataset, options: &InferOptions| {
            let mut seen = Vec::new();
            let found =
                infer(network, &Arc::new(dataset.clone()), options, |p| seen.push(p.num_done));
            (found, seen)
        };
        let (found, seen) = run(&network, &dataset, &options);
        let found = found.unwrap();
        assert_eq!((seen, found.timing.num_images), (vec![3, 5], 5));
        assert!(!found.predictions.is_empty());
        options.workers = 0;
        let (again, _) = run(&network, &dataset, &options);
        assert_eq!(found.predictions, again.unwrap().predictions);

        std::fs::remove_file(folder.path().join("3.png")).unwrap();
        let error = run(&network, &dataset, &options).0.unwrap_err();
        assert!(format!("{error:#}").contains("3.png"), "{error:#}");
        options.skip_bad = true;
        let skipped = run(&network, &dataset, &options).0.unwrap();
        assert_eq!((skipped.left_out[0].index, skipped.timing.num_images), (3, 4));
        let of = |p: &[Prediction]| {
            p.iter().map(|p| p.image.clone()).filter(|i| i != "3.png").collect::<Vec<_>>()
        };
        assert_eq!(of(&skipped.predictions), of(&found.predictions));
        assert!(skipped.predictions.iter().all(|p| p.image != "3.png"));
    }
}
