//! From a request to what a command works with: config, device, dataset, network.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use tch::Device;

use super::config::{Config, Select};
use super::device::DeviceChoice;
use super::engine::{EngineChoice, OnnxEngine};
use super::folder::{Folder, Provenance};
use super::home::Home;
use super::test::run_name;
use super::weights::{self, Strictness};
use crate::data::{Dataset, Purpose, Split};
use crate::eval::candidates::CandidateConfig;
use crate::eval::{Engine, InferOptions, SYNTHETIC_FILE};
use crate::model::PoseNet;

/// What every command that computes is asked with.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// The config.
    pub select: Select,
    /// The dataset, or the folder of datasets, instead of the machine's.
    pub data: Option<PathBuf>,
    /// The root of experiments, instead of the machine's.
    pub logs: Option<PathBuf>,
    /// Where to compute.
    pub device: DeviceChoice,
    /// Count unreadable images and go on.
    pub skip_bad: bool,
}

impl Request {
    /// The folders of the machine, with the request's own.
    pub(super) fn home(&self) -> Result<Home> {
        Home::find(self.data.as_deref(), self.logs.as_deref())
    }

    /// As [`Request::home`], for work on a run: where no dataset is named it is the run's own.
    pub(super) fn home_of_run(&self, folder: &Folder) -> Result<Home> {
        let mut home = self.home()?;
        if self.data.is_none()
            && let Some(provenance) = Provenance::of(folder)?
        {
            home.data = provenance.dataset;
        }
        Ok(home)
    }

    /// Opens the device and sets libtorch's threads. Comes before any other use of libtorch.
    pub(super) fn open_device(&self, config: &Config) -> Result<Device> {
        let device = self.device.open()?;
        let cores = num_cores();
        let threads = match config.runtime.num_threads {
            0 => cores,
            n => n,
        };
        tch::set_num_threads(i32::try_from(threads).context("RUNTIME.NUM_THREADS")?);
        tracing::debug!(threads, ?device, "libtorch");
        Ok(device)
    }

    /// Opens a split of the config's dataset.
    pub(super) fn open_split(
        &self,
        home: &Home,
        config: &Config,
        split: Split,
        purpose: Purpose,
    ) -> Result<Dataset> {
        let list = config.data.list(split);
        let root = home.dataset(self.select.problem(), list)?;
        let dataset =
            Dataset::open(&root, list, &config.data, &config.input, purpose, self.skip_bad)?;
        let synthetic = if is_synthetic(&root) { " (synthetic)" } else { "" };
        tracing::info!(
            images = dataset.frames.len(),
            classes = dataset.models.len(),
            "{split} split of {}{synthetic}",
            root.display()
        );
        if dataset.skipped.objects_without_mesh > 0 {
            tracing::warn!(
                "{list}: {} objects have no mesh in {} and are left out",
                dataset.skipped.objects_without_mesh,
                config.data.mesh_dir
            );
        }
        for bad in &dataset.skipped.bad_images {
            tracing::warn!("left out: {bad}");
        }
        Ok(dataset)
    }
}

/// Whether a dataset says that it was rendered.
pub(super) fn is_synthetic(root: &Path) -> bool {
    root.join(SYNTHETIC_FILE).exists()
}

fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Threads that load images.
pub(super) fn num_workers(config: &Config) -> usize {
    config.runtime.num_workers.min(num_cores())
}

/// The network of a config, with initial values.
pub(super) fn new_network(config: &Config, device: Device) -> Result<PoseNet> {
    let num_classes = i64::try_from(config.data.num_classes()).context("data.N_CLASS")?;
    PoseNet::new(&config.network.params, num_classes, device, config.experiment.seed)
}

/// The network of a config, to be loaded.
pub(super) fn blank_network(config: &Config, device: Device) -> Result<PoseNet> {
    let num_classes = i64::try_from(config.data.num_classes()).context("data.N_CLASS")?;
    PoseNet::blank(&config.network.params, num_classes, device)
}

/// The network of a config for a file that fills it wholly, or perhaps in part: then it has initial values.
pub(super) fn network_to_load(
    config: &Config,
    device: Device,
    strictness: Strictness,
) -> Result<PoseNet> {
    match strictness {
        Strictness::Strict => blank_network(config, device),
        Strictness::Loose => new_network(config, device),
    }
}

/// A file in what runs it.
pub(super) struct Opened {
    /// What kind of file it is.
    pub kind: &'static str,
    /// What the network is, for people.
    pub name: String,
    /// What computes its outputs.
    pub engine: Box<dyn Engine>,
    /// Where images go.
    pub device: Device,
}

/// Opens a file of any kind for inference.
pub(super) fn open_engine(
    choice: EngineChoice,
    file: &Path,
    config: &Config,
    device: Device,
    strictness: Strictness,
) -> Result<Opened> {
    if choice.is_ort(file)? {
        let engine = OnnxEngine::open(file, tch::get_num_threads() as usize)?;
        let name = engine.meta.name();
        let engine = Box::new(engine);
        return Ok(Opened { kind: "ONNX", name, engine, device: Device::Cpu });
    }
    let net = network_to_load(config, device, strictness)?;
    let loaded = weights::load(file, &net, strictness)?;
    loaded.report.log();
    let averaged = if loaded.averaged { ", averaged weights" } else { "" };
    let name = run_name(&loaded.quantized, &loaded.quantizers) + averaged;
    Ok(Opened { kind: loaded.kind.text(), name, engine: Box::new(net), device })
}

/// How poses are inferred under a config.
pub(super) fn infer_options(config: &Config, device: Device, skip_bad: bool) -> InferOptions {
    InferOptions {
        input: config.input.clone(),
        data: config.data.clone(),
        candidates: CandidateConfig {
            confidence_threshold: config.data.confidence_threshold,
            targets: config.training.targets.clone(),
        },
        ransac: config.evaluation.ransac.clone(),
        seed: config.evaluation.seed,
        workers: num_workers(config),
        skip_bad,
        device,
    }
}

/// So many images of a dataset, spread evenly over its list.
pub(super) fn thinned(mut dataset: Dataset, most: Option<usize>) -> Dataset {
    let num_images = dataset.frames.len();
    if let Some(most) = most.filter(|most| *most < num_images) {
        // Position i / most of the way: the (i * n / most)-th image, for i below most.
        let mut index = 0;
        dataset.frames.retain(|_| {
            let (before, up_to) = (index * most / num_images, (index + 1) * most / num_images);
            index += 1;
            up_to > before
        });
    }
    dataset
}

/// The first `most` images of a dataset.
pub(super) fn limited(mut dataset: Dataset, most: Option<usize>) -> Arc<Dataset> {
    if let Some(most) = most {
        dataset.frames.truncate(most);
    }
    Arc::new(dataset)
}
