//! Batches with their targets, made ready on a thread of their own while the device computes.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow, ensure};
use crossbeam_channel::{Receiver, bounded};

use crate::data::{Batch, ObjectModel};
use crate::geom::Camera;
use crate::model::{AnchorGrid, Assignment, Draw, LossConfig, ObjectTarget, TargetConfig, assign};
use crate::seed;

/// Batches that may wait, ready, besides the one being computed.
const NUM_AHEAD: usize = 2;
/// First part of the place of a target assignment's random stream.
const PURPOSE_TARGETS: u64 = u64::from_le_bytes(*b"targets\0");

/// What the network is to learn: everything between a batch of bytes and its losses.
#[derive(Debug, Clone)]
pub struct Task {
    /// The internal camera.
    pub camera: Camera,
    /// The classes' boxes and diameters.
    pub models: Arc<Vec<ObjectModel>>,
    /// Which cells answer for an object.
    pub targets: TargetConfig,
    /// Weights of the losses.
    pub loss: LossConfig,
    /// Mean of red, green and blue, in 0 to 1.
    pub pixel_mean: [f64; 3],
    /// Standard deviation of red, green and blue, in 0 to 1.
    pub pixel_std: [f64; 3],
}

/// The batches of an epoch, from some batch on.
pub type Batches = Box<dyn Iterator<Item = Result<Batch>> + Send>;

/// Which batches are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRequest {
    /// Epochs of the run before this one: the key of the epoch's order and augmentation.
    pub epoch_key: u64,
    /// Batches of the epoch to leave out.
    pub first_batch: usize,
    /// Images a batch; `None` for that of the data section.
    pub batch_size: Option<usize>,
}

/// Where batches come from. Equal requests give equal batches, and leaving some out does not change the others.
pub trait BatchSource {
    /// Batches of a whole epoch.
    fn num_batches(&self, batch_size: Option<usize>) -> usize;

    /// Starts an epoch.
    fn open(&mut self, request: BatchRequest) -> Result<Batches>;

    /// The images that validation looks at, each once, without augmentation; `None` where losses are not measured.
    fn open_validation(&mut self) -> Result<Option<Batches>> {
        Ok(None)
    }
}

/// A batch and its targets.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub batch: Batch,
    pub assignments: Vec<Assignment>,
}

/// Draws targets as a function of the seed, the update and the place in the batch.
pub(crate) struct Assigner {
    pub task: Task,
    pub grid: AnchorGrid,
    pub seed: u64,
}

impl Assigner {
    /// Targets for update `global_step` (from 0).
    pub fn prepare(&self, batch: Batch, global_step: u64) -> Result<Prepared> {
        let AnchorGrid { width, height, .. } = self.grid;
        ensure!(
            (batch.width, batch.height) == (width, height),
            "a batch has images of {} x {} px, expected {width} x {height}",
            batch.width,
            batch.height
        );
        let one = |(i, objects): (usize, &Vec<_>)| {
            let place = [PURPOSE_TARGETS, global_step, i as u64];
            let mut rng = seed::stream(self.seed, &place);
            let mask = batch.masks.get(i * width * height..(i + 1) * width * height);
            let mask = mask.context("the batch has fewer masks than images")?;
            let targets = objects.iter().map(|o| self.target(o)).collect::<Result<Vec<_>>>()?;
            let task = &self.task;
            let draw = Draw::Random(&mut rng);
            assign(&self.grid, &task.targets, &task.camera, &targets, mask, draw)
                .with_context(|| format!("assigning targets to image {}", batch.names[i]))
        };
        let assignments = batch.objects.iter().enumerate().map(one).collect::<Result<_>>()?;
        Ok(Prepared { batch, assignments })
    }

    fn target(&self, object: &crate::data::SampleObject) -> Result<ObjectTarget> {
        let models = &self.task.models;
        let class = object.class;
        let model = models.get(class).with_context(|| {
            format!("an object has class {class}, and there are {} models", models.len())
        })?;
        Ok(ObjectTarget {
            class,
            pose: object.pose,
            corners: model.corners,
            diameter_mm: model.diameter_mm,
        })
    }
}

/// Prepared batches in order. Dropping it ends the thread.
pub(super) struct Prefetch {
    receiver: Option<Receiver<Result<Prepared>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts on `batches`, the first of which is for update `first_step` (from 0).
    pub fn start(assigner: Arc<Assigner>, batches: Batches, first_step: u64) -> Result<Self> {
        let (sender, receiver) = bounded(NUM_AHEAD);
        let work = move || {
            for (batch, step) in batches.zip(first_step..) {
                let prepared = batch.and_then(|batch| assigner.prepare(batch, step));
                let failed = prepared.is_err();
                if sender.send(prepared).is_err() || failed {
                    return;
                }
            }
        };
        let builder = std::thread::Builder::new().name("targets".to_owned());
        let thread = builder.spawn(work).context("starting the thread that prepares batches")?;
        Ok(Self { receiver: Some(receiver), thread: Some(thread) })
    }
}

impl Iterator for Prefetch {
    type Item = Result<Prepared>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Ok(prepared) = self.receiver.as_ref()?.recv() {
            return Some(prepared);
        }
        self.receiver = None;
        let panic = self.thread.take()?.join().err()?;
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Some(Err(anyhow!("the thread that prepares batches panicked: {text}")))
    }
}

impl Drop for Prefetch {
    fn drop(&mut self) {
        self.receiver = None; // a thread that waits to send now ends
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // its panic was printed by the hook, and nobody waits for its batches
        }
    }
}
