//! From a request to what a command works with: folders, device, dataset.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tch::Device;

use super::config::{Config, Precision, Select};
use super::device::DeviceChoice;
use super::folder::{Folder, Provenance};
use super::home::Home;
use super::options::num_cores;
use crate::data::{Dataset, Purpose, Split};
use crate::eval::SYNTHETIC_FILE;
use crate::libtorch::{CudaMode, set_cuda_mode};
use crate::world::World;

/// The config's key.
const PRECISION: &str = "RUNTIME.PRECISION";

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
    pub(crate) fn home(&self) -> Result<Home> {
        Home::find(self.data.as_deref(), self.logs.as_deref())
    }

    /// As [`Request::home`], for work on a run: where no dataset is named it is the run's own.
    pub(crate) fn home_of_run(&self, folder: &Folder) -> Result<Home> {
        let mut home = self.home()?;
        if self.data.is_none()
            && let Some(provenance) = Provenance::of(folder)?
        {
            home.data = provenance.dataset;
        }
        Ok(home)
    }

    /// Opens the device and sets libtorch's threads, to evaluate: in float32, whatever the run was trained in, unless this
    /// request itself sets another precision. Comes before any other use of libtorch.
    pub(crate) fn open_device(&self, config: &Config) -> Result<Device> {
        self.open_device_in(config, &World::alone())
    }

    /// As [`Request::open_device`], with a GPU for each process of the machine and its part of the cores.
    pub(crate) fn open_device_in(&self, config: &Config, world: &World) -> Result<Device> {
        let is_asked = |set: &String| set.trim_start().starts_with(PRECISION);
        let asked = self.select.set.iter().any(is_asked).then_some(config.runtime.precision);
        let precision = asked.unwrap_or_default();
        ensure!(
            precision != Precision::Bf16,
            "{PRECISION}=bf16 is for the steps of training: this command computes in fp32, or in tf32 on a GPU"
        );
        self.open(config, world, precision)
    }

    /// As [`Request::open_device`], to train: in the config's precision.
    pub(crate) fn open_device_to_train(&self, config: &Config) -> Result<Device> {
        self.open_device_to_train_in(config, &World::alone())
    }

    /// As [`Request::open_device_to_train`], in one of several processes.
    pub(crate) fn open_device_to_train_in(&self, config: &Config, world: &World) -> Result<Device> {
        self.open(config, world, config.runtime.precision)
    }

    fn open(&self, config: &Config, world: &World, precision: Precision) -> Result<Device> {
        let device = self.device.open_for(world.local_rank())?;
        ensure!(
            device.is_cuda() || precision != Precision::Tf32,
            "{PRECISION}=tf32 is a precision of NVIDIA's GPUs, and this computes on the CPU: set fp32 or bf16"
        );
        if device.is_cuda() {
            let tf32 = precision == Precision::Tf32;
            let mode = CudaMode { tf32, deterministic: config.runtime.deterministic };
            set_cuda_mode(mode).context("setting how CUDA computes")?;
        }
        let cores = (num_cores() / world.local_size()).max(1);
        let threads = match config.runtime.num_threads {
            0 => cores,
            n => n,
        };
        tch::set_num_threads(i32::try_from(threads).context("RUNTIME.NUM_THREADS")?);
        tracing::debug!(threads, ?device, "libtorch");
        Ok(device)
    }

    /// Opens a split of the config's dataset.
    pub(crate) fn open_split(
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
pub(crate) fn is_synthetic(root: &Path) -> bool {
    root.join(SYNTHETIC_FILE).exists()
}

/// So many images of a dataset, spread evenly over its list.
pub(crate) fn thinned(mut dataset: Dataset, most: Option<usize>) -> Dataset {
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
pub(crate) fn limited(mut dataset: Dataset, most: Option<usize>) -> Arc<Dataset> {
    if let Some(most) = most {
        dataset.frames.truncate(most);
    }
    Arc::new(dataset)
}
