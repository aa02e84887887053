//! What the network learns: cells drawn for each object, and the losses of their outputs.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tch::{Device, Tensor};

use super::anchors::{AnchorGrid, Level};
use super::candidates::CandidateConfig;
use super::config::NetworkConfig;
use super::decoder::CellDecoder;
use super::distill::{DistillConfig, distill};
use super::loss::{LossConfig, LossTargets, Losses, check_shapes};
use super::net::PoseNet;
use super::outputs::{HeadOutputs, output_names, output_shapes};
use super::targets::{Assignment, Draw, ObjectTarget, TargetConfig, assign};
use crate::data::{Batch, ObjectModel, SampleObject};
use crate::geom::Camera;
use crate::nn::{Decode, DenseLevel, Network, OutputShape, Outputs, Preprocess, Store};
use crate::seed;
use crate::topology::family::{DecodeSetting, Family, TaskSetting};
use crate::topology::settings::{DistillSettings, LossSettings, TargetSettings, TrainingSettings};
use crate::topology::task::{BatchLosses, LevelTargets, Prepare, Prepared, Task};
use crate::topology::teacher::Teacher;

/// First part of the place of a target assignment's random stream.
const PURPOSE_TARGETS: u64 = u64::from_le_bytes(*b"targets\0");

impl Family for NetworkConfig {
    fn check_together(&self, at: &str, problems: &mut Vec<String>) {
        self.check_together(at, problems);
    }

    fn build(&self, num_classes: i64, store: Store) -> Result<Box<dyn Network>> {
        Ok(Box::new(PoseNet::build(self, num_classes, store)?))
    }

    fn complete(&self, settings: &TrainingSettings) -> Result<TrainingSettings> {
        let distill = settings.distill.as_ref().map(DistillSettings::read::<DistillConfig>);
        Ok(TrainingSettings {
            loss: LossSettings::of(&settings.loss.read::<LossConfig>()?),
            targets: TargetSettings::of(&settings.targets.read::<TargetConfig>()?),
            distill: distill.transpose()?.as_ref().map(DistillSettings::of),
        })
    }

    fn task(&self, mut setting: TaskSetting) -> Result<Box<dyn Task>> {
        let loss = setting.loss.read()?;
        let (preprocess, teacher) = (setting.preprocess, setting.teacher.take());
        let teacher = teacher.map(Taught::new).transpose()?;
        let targets = Arc::new(Targets::new(self, setting)?);
        Ok(Box::new(CellTask { targets, loss, teacher, preprocess }))
    }

    fn outputs(&self, num_classes: usize, width: usize, height: usize) -> Vec<OutputShape> {
        output_shapes(&AnchorGrid::new(self, width, height), num_classes)
    }

    fn dense_levels(&self) -> Vec<DenseLevel> {
        let levels = self.strides().into_iter().zip(&self.anchor_sizes);
        let of = |(stride, &size_px): (i64, &f64)| {
            let [cls, reg] = output_names(stride);
            DenseLevel { cls, reg, stride, size_px }
        };
        levels.map(of).collect()
    }

    fn describe_outputs(&self) -> String {
        format!("levels of strides {:?} with anchors of {:?} px", self.strides(), self.anchor_sizes)
    }

    fn decoder(&self, setting: DecodeSetting) -> Result<Box<dyn Decode>> {
        let DecodeSetting { confidence_threshold, targets, max_instances, .. } = setting;
        let grid = AnchorGrid::new(self, setting.width, setting.height);
        let candidates =
            CandidateConfig { confidence_threshold, targets: targets.read()?, max_instances };
        let decoder = CellDecoder::new(grid, setting.num_classes, setting.corners, candidates)?;
        Ok(Box::new(decoder))
    }
}

/// The name of the teacher's fingerprint in the state.
const TEACHER: &str = "teacher";

/// Cells that answer for objects, and the losses of what they say.
struct CellTask {
    targets: Arc<Targets>,
    loss: LossConfig,
    teacher: Option<Taught>,
    preprocess: Preprocess,
}

/// A teacher, and how much is learnt from it.
struct Taught {
    teacher: Teacher,
    config: DistillConfig,
}

impl Taught {
    fn new(teacher: Teacher) -> Result<Self> {
        let config = teacher.settings().read()?;
        Ok(Self { teacher, config })
    }
}

impl Task for CellTask {
    fn preparer(&self) -> Arc<dyn Prepare> {
        self.targets.clone()
    }

    fn images(&self, batch: &Batch, device: Device) -> Result<Tensor> {
        self.preprocess.images(&batch.pixels, device)
    }

    fn losses(
        &self,
        network: &dyn Network,
        prepared: &Prepared,
        train: bool,
    ) -> Result<BatchLosses> {
        let assignments: &Vec<Assignment> = prepared.targets()?;
        let (grid, device) = (&self.targets.grid, network.store().device());
        let targets = self.targets.upload(assignments, device)?;
        let images = self.images(&prepared.batch, device)?;
        let run = network.run(&images, train);
        let (outputs, losses) = self.targets.compare(&run, assignments, &targets, &self.loss)?;
        let mut named = vec![("cls", losses.cls), ("reg", losses.reg)];
        // What is compared in validation is the loss of the task alone.
        if let Some(Taught { teacher, config }) = self.teacher.as_ref().filter(|_| train) {
            let says = HeadOutputs::of_named(&teacher.outputs(&images), grid)?;
            let found = distill(&outputs, &says, &targets, config);
            named.extend([("distill_cls", found.cls), ("distill_reg", found.reg)]);
        }
        Ok(BatchLosses::new(named, losses.num_positive))
    }

    fn state(&self) -> Vec<(String, Tensor)> {
        let fingerprints = self.teacher.iter().map(|taught| taught.teacher.fingerprint());
        fingerprints.map(|of| (TEACHER.to_owned(), Tensor::from(of.cast_signed()))).collect()
    }

    /// A teacher may be taken on or left out at a resume; another one in its place is refused.
    fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        for (name, value) in state {
            ensure!(name == TEACHER, "the checkpoint holds {name} of another task");
            let (saved, own) = (i64::try_from(value)?.cast_unsigned(), self.teacher.as_ref());
            ensure!(
                own.is_none_or(|own| own.teacher.fingerprint() == saved),
                "the run learns from a teacher with other weights than the file that experiment.url names has now \
                 (training.distill): put the run's own file back, or go on without it by --set training.distill=null"
            );
        }
        Ok(())
    }

    fn level_targets(&self, prepared: &Prepared) -> Result<Vec<LevelTargets>> {
        let assignments: &Vec<Assignment> = prepared.targets()?;
        Ok(self.targets.count(assignments))
    }
}

/// Draws targets as a function of the seed, the step and the place in the batch.
pub(in crate::topology) struct Targets {
    camera: Camera,
    models: Arc<Vec<ObjectModel>>,
    config: TargetConfig,
    grid: AnchorGrid,
    seed: u64,
}

impl Prepare for Targets {
    fn prepare(&self, batch: Batch, step: u64) -> Result<Prepared> {
        let assignments = self.assign(&batch, step)?;
        Ok(Prepared::new(batch, assignments))
    }
}

impl Targets {
    pub(in crate::topology) fn new(config: &NetworkConfig, setting: TaskSetting) -> Result<Self> {
        let TaskSetting { preprocess, camera, models, targets, seed, .. } = setting;
        let grid = AnchorGrid::new(config, preprocess.width, preprocess.height);
        Ok(Self { camera, models, config: targets.read()?, grid, seed })
    }

    /// The cells of each image of a batch for training step `step`.
    ///
    /// # Errors
    /// If the batch does not fit the network, or an object has no model.
    pub(in crate::topology) fn assign(&self, batch: &Batch, step: u64) -> Result<Vec<Assignment>> {
        let AnchorGrid { width, height, .. } = self.grid;
        ensure!(
            (batch.width, batch.height) == (width, height),
            "a batch has images of {} x {} px, expected {width} x {height}",
            batch.width,
            batch.height
        );
        let one = |(i, objects): (usize, &Vec<SampleObject>)| {
            let place = batch.first_place + i;
            let mut rng = seed::stream(self.seed, &[PURPOSE_TARGETS, step, place as u64]);
            let mask = batch.masks.get(i * width * height..(i + 1) * width * height);
            let mask = mask.context("the batch has fewer masks than images")?;
            let targets = objects.iter().map(|o| self.target(o)).collect::<Result<Vec<_>>>()?;
            let draw = Draw::Random(&mut rng);
            assign(&self.grid, &self.config, &self.camera, &targets, mask, draw)
                .with_context(|| format!("assigning targets to image {}", batch.names[i]))
        };
        batch.objects.iter().enumerate().map(one).collect()
    }

    /// How many cells each level has among the assignments of a batch.
    pub(in crate::topology) fn count(&self, assignments: &[Assignment]) -> Vec<LevelTargets> {
        let positives = || assignments.iter().flat_map(|a| &a.positives);
        let of_level = |level: &Level| LevelTargets {
            name: format!("stride {}, anchors of {} px", level.stride, level.size_px),
            num_targets: positives().filter(|p| level.cells().contains(&p.cell)).count(),
        };
        self.grid.levels.iter().map(of_level).collect()
    }

    /// What the losses of a batch compare with, on a device.
    ///
    /// # Errors
    /// If the assignments do not fit the network.
    pub(in crate::topology) fn upload(
        &self,
        assignments: &[Assignment],
        device: Device,
    ) -> Result<LossTargets> {
        LossTargets::upload(&self.grid, assignments, self.models.len() as i64, device)
    }

    /// The losses of a network's outputs, and these level by level; `targets` are those of the assignments.
    ///
    /// # Errors
    /// If an output is missing, or does not fit the assignments.
    pub(in crate::topology) fn compare(
        &self,
        outputs: &Outputs,
        assignments: &[Assignment],
        targets: &LossTargets,
        loss: &LossConfig,
    ) -> Result<(HeadOutputs, Losses)> {
        let outputs = HeadOutputs::of_named(outputs, &self.grid)?;
        let (_, num_classes) = check_shapes(&outputs, &self.grid, assignments)?;
        ensure!(
            num_classes == self.models.len() as i64,
            "the network has {num_classes} classes, and there are {} models",
            self.models.len()
        );
        let losses = targets.losses(&outputs, &self.camera, loss)?;
        Ok((outputs, losses))
    }

    fn target(&self, object: &SampleObject) -> Result<ObjectTarget> {
        let class = object.class;
        let model = self.models.get(class).with_context(|| {
            format!("an object has class {class}, and there are {} models", self.models.len())
        })?;
        Ok(ObjectTarget {
            class,
            pose: model.symmetries.label(&object.pose),
            corners: model.corners,
            diameter_mm: model.diameter_mm,
        })
    }
}
