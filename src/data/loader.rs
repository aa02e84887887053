//! Batches of an epoch in their order, prepared by worker threads.
//!
//! What a batch holds is a function of the dataset, the seed and the epoch; how many workers there are, and when an
//! epoch was resumed, changes nothing.

mod plan;
mod queue;
mod share;

use std::sync::Arc;

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::{DataConfig, Dataset, InputConfig, SampleObject};
use plan::LoadPlan;
pub use plan::permutation;
use queue::Queue;
pub use share::{Share, Slices};

/// Images prepared alike.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Batch {
    /// px.
    pub width: usize,
    /// px.
    pub height: usize,
    /// The place of its first image in the whole batch, where this is a slice of one (see [`Slices`]).
    pub first_place: usize,
    /// Slices of the same batch besides this one; 0 where it is whole. The losses of all of them add up.
    pub num_others: usize,
    /// Into the dataset's frames, one an image.
    pub indices: Vec<usize>,
    /// The images' paths as in the list.
    pub names: Vec<String>,
    /// RGB, `[n, h, w, 3]`, not normalised.
    pub pixels: Vec<u8>,
    /// `[n, h, w]`; 0 none, i + 1 where `objects[n][i]` is seen.
    pub masks: Vec<u8>,
    /// Objects with enough visible pixels, of each image.
    pub objects: Vec<Vec<SampleObject>>,
}

/// An image left out because its files are bad.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BadSample {
    /// Into the dataset's frames.
    pub index: usize,
    /// What is wrong, naming the file.
    pub error: String,
}

/// Which batches a [`Loader`] makes.
#[derive(Debug, Clone, PartialEq)]
pub struct LoaderOptions {
    /// Seed of the order, the augmentation and the replacements.
    pub seed: u64,
    /// Epoch, so that each has an order and augmentations of its own.
    pub epoch: u64,
    /// Images of a batch, 1 or more; the last may have fewer.
    pub batch_size: usize,
    /// Augment within the limits of the config.
    pub augment: bool,
    /// Go through the images in the order of [`permutation`] instead of the list's.
    pub shuffle: bool,
    /// Images of a shuffled epoch, where it is no whole pass: epochs go on through the images where the last one ended.
    pub epoch_images: Option<usize>,
    /// Training: replace an image without a visible object (or, with `skip_bad`, with bad files) by another one, a
    /// function of seed, epoch and index. Otherwise such an image comes without objects (or is left out).
    pub replace_empty: bool,
    /// The first batch to make, for resuming within an epoch.
    pub first_batch: usize,
    /// Leave out a last batch that is not full.
    pub drop_last: bool,
    /// Threads; 0 prepares in the calling thread.
    pub workers: usize,
    /// Count images with bad files instead of failing.
    pub skip_bad: bool,
    /// Which of these batches are made, where processes share them; `first_batch` counts those that are made.
    pub share: Share,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        Self {
            seed: 0,
            epoch: 0,
            batch_size: 8,
            augment: false,
            shuffle: false,
            epoch_images: None,
            replace_empty: false,
            first_batch: 0,
            drop_last: false,
            workers: 0,
            skip_bad: false,
            share: Share::All,
        }
    }
}

/// The batches of an epoch, an iterator.
///
/// Workers prepare at most a few batches ahead and end when the loader is dropped. After an `Err` nothing follows.
/// A batch whose images are all left out is passed over.
pub struct Loader {
    plan: Arc<LoadPlan>,
    /// `None` without workers.
    queue: Option<Queue>,
    next_batch: usize,
    bad: Vec<BadSample>,
}

impl Loader {
    /// Starts the workers.
    ///
    /// # Errors
    /// If the batch size is 0, the internal camera is none, or a thread cannot be started.
    pub fn start(
        dataset: Arc<Dataset>,
        input: &InputConfig,
        data: &DataConfig,
        options: LoaderOptions,
    ) -> Result<Self> {
        let plan = Arc::new(LoadPlan::new(dataset, input, data, options)?);
        let next_batch = plan.options.first_batch;
        let queue = match plan.options.workers {
            0 => None,
            n => Some(Queue::start(plan.clone(), n.min(plan.num_slots().max(1)))?),
        };
        Ok(Self { plan, queue, next_batch, bad: Vec::new() })
    }

    /// Batches of the whole epoch, those before `first_batch` included.
    pub fn num_batches(&self) -> usize {
        self.plan.num_batches()
    }

    /// Images of these batches.
    pub fn num_images(&self) -> usize {
        self.plan.num_slots()
    }

    /// Images left out or replaced so far because of bad files (with `skip_bad`).
    pub fn bad(&self) -> &[BadSample] {
        &self.bad
    }
}

impl Iterator for Loader {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.next_batch < self.plan.num_batches() {
            let loaded = match &self.queue {
                Some(queue) => queue.take(self.next_batch),
                None => self.plan.load_batch(self.next_batch),
            };
            self.next_batch += 1;
            match loaded {
                Ok(loaded) => {
                    for bad in &loaded.bad {
                        tracing::warn!(error = %bad.error, "left out a bad image");
                    }
                    self.bad.extend(loaded.bad);
                    if !loaded.batch.indices.is_empty() {
                        return Some(Ok(loaded.batch));
                    }
                }
                Err(e) => {
                    self.next_batch = usize::MAX;
                    self.queue = None;
                    return Some(Err(e));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests;
