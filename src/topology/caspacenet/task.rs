//! What the network learns: the cells of the Wide-Depth-Range network, and the features of images without their objects.

use std::cell::RefCell;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tch::{Device, Tensor};

use super::config::NetworkConfig;
use super::erase::erase;
use super::loss::{LossConfig, feature_loss};
use super::net::{CaSpaceNet, sub_name};
use super::teacher::FeatureTeacher;
use crate::data::Batch;
use crate::nn::{Decode, DenseLevel, Network, OutputShape, Preprocess, Store};
use crate::topology::family::{DecodeSetting, Family, TaskSetting};
use crate::topology::settings::{LossSettings, TargetSettings, TrainingSettings};
use crate::topology::task::{BatchLosses, LevelTargets, Prepare, Prepared, Task};
use crate::topology::wdr::{self, Assignment, Targets};

impl Family for NetworkConfig {
    fn check_together(&self, at: &str, problems: &mut Vec<String>) {
        self.wdr.check_together(at, problems);
    }

    fn build(&self, num_classes: i64, store: Store) -> Result<Box<dyn Network>> {
        Ok(Box::new(CaSpaceNet::build(self, num_classes, store)?))
    }

    fn has_own_teacher(&self) -> bool {
        true
    }

    fn complete(&self, settings: &TrainingSettings) -> Result<TrainingSettings> {
        Ok(TrainingSettings {
            loss: LossSettings::of(&settings.loss.read::<LossConfig>()?),
            targets: TargetSettings::of(&settings.targets.read::<wdr::TargetConfig>()?),
            // None is allowed here, which is told with what the config says besides.
            distill: settings.distill.clone(),
        })
    }

    fn task(&self, setting: TaskSetting) -> Result<Box<dyn Task>> {
        let loss: LossConfig = setting.loss.read()?;
        ensure!(
            setting.teacher.is_none(),
            "training.distill: CA-SpaceNet learns from a teacher of its own; set it to null"
        );
        let preprocess = setting.preprocess;
        let targets = Targets::new(&self.wdr, setting)?;
        Ok(Box::new(FeatureTask {
            config: self.wdr.clone(),
            preparer: Arc::new(ErasedTargets { targets }),
            preprocess,
            loss,
            teacher: RefCell::default(),
        }))
    }

    fn outputs(&self, num_classes: usize, width: usize, height: usize) -> Vec<OutputShape> {
        self.wdr.outputs(num_classes, width, height)
    }

    fn dense_levels(&self) -> Vec<DenseLevel> {
        Family::dense_levels(&self.wdr)
    }

    fn describe_outputs(&self) -> String {
        self.wdr.describe_outputs()
    }

    fn decoder(&self, setting: DecodeSetting) -> Result<Box<dyn Decode>> {
        self.wdr.decoder(setting)
    }
}

/// The losses of the cells, and that of the second pyramid.
struct FeatureTask {
    config: wdr::NetworkConfig,
    preparer: Arc<ErasedTargets>,
    preprocess: Preprocess,
    loss: LossConfig,
    /// From the beginning of training on.
    teacher: RefCell<Option<FeatureTeacher>>,
}

impl FeatureTask {
    /// The teacher's pyramid for a batch of images without their objects. A network that is not trained from its beginning here, as
    /// where only the curvature of its losses is measured, is its own teacher.
    fn teach(&self, network: &dyn Network, images: &Tensor) -> Result<Vec<Tensor>> {
        let mut slot = self.teacher.borrow_mut();
        let teacher = match &mut *slot {
            Some(teacher) => teacher,
            none => none.insert(self.teacher_of(network)?),
        };
        Ok(teacher.features(images))
    }

    fn teacher_of(&self, network: &dyn Network) -> Result<FeatureTeacher> {
        FeatureTeacher::new(&self.config, &network.state(), network.store().device())
    }
}

impl Task for FeatureTask {
    fn preparer(&self) -> Arc<dyn Prepare> {
        self.preparer.clone()
    }

    fn images(&self, batch: &Batch, device: Device) -> Result<Tensor> {
        self.preprocess.images(&batch.pixels, device)
    }

    fn begin(&mut self, network: &dyn Network) -> Result<()> {
        self.teacher = RefCell::new(Some(self.teacher_of(network)?));
        Ok(())
    }

    fn losses(
        &self,
        network: &dyn Network,
        prepared: &Prepared,
        train: bool,
    ) -> Result<BatchLosses> {
        let Erased { assignments, pixels } = prepared.targets()?;
        let device = network.store().device();
        let erased = self.preprocess.images(pixels, device)?;
        let targets = &self.preparer.targets;
        let compared = targets.upload(assignments, device)?;
        let teacher = self.teach(network, &erased)?;
        let images = self.images(&prepared.batch, device)?;
        let outputs = network.run(&images, train);
        let sub = |stride: i64| outputs.get(&sub_name(stride)).map(Tensor::shallow_clone);
        let sub: Vec<Tensor> = self.config.strides().into_iter().map(sub).collect::<Result<_>>()?;
        let (_, losses) = targets.compare(&outputs, assignments, &compared, &self.loss.wdr)?;
        let wdr::Losses { cls, reg, num_positive } = losses;
        // A mean over images, where the others are sums: a slice of a batch has its part of it.
        let weight = self.loss.weight_feature / (1 + prepared.batch.num_others) as f64;
        let feature = feature_loss(&sub, &teacher) * weight;
        Ok(BatchLosses::new(vec![("cls", cls), ("reg", reg), ("feature", feature)], num_positive))
    }

    fn level_targets(&self, prepared: &Prepared) -> Result<Vec<LevelTargets>> {
        let Erased { assignments, .. } = prepared.targets()?;
        Ok(self.preparer.targets.count(assignments))
    }

    /// The teacher.
    fn state(&self) -> Vec<(String, Tensor)> {
        self.teacher.borrow().as_ref().map_or_else(Vec::new, FeatureTeacher::state)
    }

    fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        ensure!(!state.is_empty(), "the checkpoint holds no teacher: it is of another topology");
        let mut teacher = self.teacher.borrow_mut();
        let begun = teacher.as_ref().and_then(|teacher| teacher.state().into_iter().next());
        let (_, tensor) = begun.context("the task's training has not begun")?;
        *teacher = Some(FeatureTeacher::new(&self.config, state, tensor.device())?);
        Ok(())
    }
}

/// What a batch is compared with.
struct Erased {
    assignments: Vec<Assignment>,
    /// The batch's images without their objects, `[n, h, w, 3]`.
    pixels: Vec<u8>,
}

/// Draws the cells, and erases the objects from the images. They are erased behind the warp of augmentation, not before it as
/// published: one warp for both images by construction.
struct ErasedTargets {
    targets: Targets,
}

impl Prepare for ErasedTargets {
    fn prepare(&self, batch: Batch, step: u64) -> Result<Prepared> {
        let assignments = self.targets.assign(&batch, step)?;
        let (width, height) = (batch.width, batch.height);
        let mut pixels = batch.pixels.clone();
        ensure!(
            pixels.len() == 3 * batch.masks.len(),
            "the batch has {} values of pixels, expected 3 for each of {} of its masks",
            pixels.len(),
            batch.masks.len()
        );
        let images = pixels.chunks_mut(3 * width * height);
        for (image, mask) in images.zip(batch.masks.chunks(width * height)) {
            erase(image, mask, width, height);
        }
        Ok(Prepared::new(batch, Erased { assignments, pixels }))
    }
}
