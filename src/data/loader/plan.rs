//! What each batch of an epoch holds, and how one image of it is loaded.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail, ensure};
use rand::Rng;

use super::{BadSample, Batch, LoaderOptions, Share};
use crate::data::{Augmentation, DataConfig, Dataset, InputConfig, Preparer, Sample};
use crate::seed;

/// Purposes of random streams.
const SHUFFLE: u64 = 0x7368_7566;
const AUGMENT: u64 = 0x6175_676d;
const COLOR: u64 = 0x636f_6c6f;
const REPLACE: u64 = 0x7265_706c;

/// Images tried in the place of one without a visible object; a sound dataset needs 1 or 2.
const MAX_ATTEMPTS: u64 = 100;

/// The order of `n` images in an epoch: a permutation that is a function of seed and epoch.
pub fn permutation(seed: u64, epoch: u64, n: usize) -> Vec<usize> {
    let mut rng = seed::stream(seed, &[SHUFFLE, epoch]);
    let mut order: Vec<usize> = (0..n).collect();
    for i in (1..n).rev() {
        order.swap(i, rng.random_range(0..=i));
    }
    order
}

/// The images of an epoch: a permutation of all `n`, or the next `epoch_images` of the permutations one after another, so
/// that each image comes once before any comes again.
fn shuffled(options: &LoaderOptions, n: usize) -> Vec<usize> {
    let Some(length) = options.epoch_images.filter(|_| n > 0) else {
        return permutation(options.seed, options.epoch, n);
    };
    let mut place = u128::from(options.epoch) * length as u128;
    let mut order = Vec::with_capacity(length);
    while order.len() < length {
        let (pass, start) = ((place / n as u128) as u64, (place % n as u128) as usize);
        let all = permutation(options.seed, pass, n);
        let end = n.min(start + length - order.len());
        order.extend_from_slice(&all[start..end]);
        place += (end - start) as u128;
    }
    order
}

/// A place of the epoch, filled.
pub(super) struct Slot {
    /// The image that fills it, with its index into the frames; `None` when it was left out.
    pub sample: Option<(usize, Sample)>,
    pub bad: Vec<BadSample>,
}

/// A batch and what was bad on the way to it.
pub(super) struct Loaded {
    pub batch: Batch,
    pub bad: Vec<BadSample>,
}

/// All that is fixed for an epoch.
pub(super) struct LoadPlan {
    /// The size of a batch is that of what is made (see [`Share`]).
    pub options: LoaderOptions,
    dataset: Arc<Dataset>,
    preparer: Preparer,
    data: DataConfig,
    /// Index into the frames by slot.
    order: Vec<usize>,
}

impl LoadPlan {
    pub fn new(
        dataset: Arc<Dataset>,
        input: &InputConfig,
        data: &DataConfig,
        mut options: LoaderOptions,
    ) -> Result<Self> {
        ensure!(options.batch_size > 0, "the batch size is 0, expected 1 or more");
        let n = dataset.frames.len();
        let order = match options.shuffle {
            true => shuffled(&options, n),
            false => (0..n).collect(),
        };
        let (order, batch_size) = options.share.of(order, options.batch_size, options.drop_last)?;
        options.batch_size = batch_size;
        let preparer = Preparer::new(input, data)?;
        Ok(Self { options, dataset, preparer, data: data.clone(), order })
    }

    pub fn num_batches(&self) -> usize {
        let (n, size) = (self.order.len(), self.options.batch_size);
        if self.options.drop_last { n / size } else { n.div_ceil(size) }
    }

    /// Slots of all batches.
    pub fn num_slots(&self) -> usize {
        self.order.len().min(self.num_batches().saturating_mul(self.options.batch_size))
    }

    /// The slots of a batch.
    pub fn slots(&self, batch: usize) -> Range<usize> {
        let start = batch.saturating_mul(self.options.batch_size).min(self.num_slots());
        start..start.saturating_add(self.options.batch_size).min(self.num_slots())
    }

    pub fn load_batch(&self, batch: usize) -> Result<Loaded> {
        let slots = self.slots(batch).map(|slot| self.fill(slot)).collect::<Result<_>>()?;
        Ok(self.assemble(batch, slots))
    }

    /// The place of a batch's first image in the batch that it is a slice of.
    fn first_place(&self, batch: usize) -> usize {
        match self.options.share {
            Share::Slices(slices) => slices.first_place(batch, self.options.batch_size),
            Share::All | Share::Batches { .. } => 0,
        }
    }

    /// Loads what belongs into a slot; a panic becomes an error.
    pub fn fill(&self, slot: usize) -> Result<Slot> {
        catch_unwind(AssertUnwindSafe(|| self.fill_or_panic(slot))).unwrap_or_else(|panic| {
            let text = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            let image = &self.dataset.frames[self.order[slot]].image;
            Err(anyhow!("loading {image} panicked: {text}"))
        })
    }

    fn fill_or_panic(&self, slot: usize) -> Result<Slot> {
        let LoaderOptions { seed, epoch, replace_empty, skip_bad, .. } = self.options;
        let wanted = self.order[slot];
        let mut bad = Vec::new();
        let mut index = wanted;
        for attempt in 0..MAX_ATTEMPTS {
            if attempt > 0 {
                let place = [REPLACE, epoch, wanted as u64, attempt];
                index = seed::stream(seed, &place).random_range(0..self.dataset.frames.len());
            }
            if replace_empty && self.dataset.frames[index].objects.is_empty() {
                continue;
            }
            match self.load(index, wanted, attempt) {
                Ok(sample) if replace_empty && sample.objects.is_empty() => {
                    let image = &self.dataset.frames[index].image;
                    tracing::debug!(%image, "no visible object, taking another image");
                }
                Ok(sample) => return Ok(Slot { sample: Some((index, sample)), bad }),
                Err(e) if skip_bad => {
                    bad.push(BadSample { index, error: format!("{e:#}") });
                    if !replace_empty {
                        return Ok(Slot { sample: None, bad });
                    }
                }
                Err(e) => bail!("{e:#}; --skip-bad goes on without such images"),
            }
        }
        let image = &self.dataset.frames[wanted].image;
        let last = bad.last().map(|b| format!("; {} were bad, the last: {}", bad.len(), b.error));
        bail!(
            "no image with a visible object found in {MAX_ATTEMPTS} tries to replace {image}{}",
            last.unwrap_or_default()
        )
    }

    fn load(&self, index: usize, wanted: usize, attempt: u64) -> Result<Sample> {
        let augmentation = self.options.augment.then(|| {
            let place = [AUGMENT, self.options.epoch, wanted as u64, attempt];
            let mut rng = seed::stream(self.options.seed, &place);
            let (width, height) = self.preparer.size();
            Augmentation::draw(&self.data, width, height, &mut rng)
        });
        let mut sample = self
            .preparer
            .load(&self.dataset, index, augmentation.as_ref())
            .with_context(|| format!("image {}", self.dataset.frames[index].image))?;
        if let Some(color) = self.data.color.as_ref().filter(|_| self.options.augment) {
            let place = [COLOR, self.options.epoch, wanted as u64, attempt];
            color.apply(&mut sample.pixels, self.preparer.size(), self.options.seed, &place);
        }
        Ok(sample)
    }

    /// The batch of that number, of its filled slots.
    pub fn assemble(&self, number: usize, slots: Vec<Slot>) -> Loaded {
        let (width, height) = self.preparer.size();
        let n = slots.iter().filter(|s| s.sample.is_some()).count();
        let first_place = self.first_place(number);
        let num_others = match self.options.share {
            Share::Slices(slices) => slices.of - 1,
            Share::All | Share::Batches { .. } => 0,
        };
        let mut batch = Batch { width, height, first_place, num_others, ..Batch::default() };
        batch.pixels.reserve_exact(n * width * height * 3);
        batch.masks.reserve_exact(n * width * height);
        let mut bad = Vec::new();
        for slot in slots {
            bad.extend(slot.bad);
            let Some((index, sample)) = slot.sample else { continue };
            batch.indices.push(index);
            batch.names.push(self.dataset.frames[index].image.clone());
            batch.pixels.extend_from_slice(&sample.pixels);
            batch.masks.extend_from_slice(&sample.mask);
            batch.objects.push(sample.objects);
        }
        Loaded { batch, bad }
    }
}
