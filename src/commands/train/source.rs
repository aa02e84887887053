//! The batches of a run, and those of its validation.

use std::sync::Arc;

use anyhow::Result;

use crate::data::{Dataset, Loader, LoaderOptions, Share};
use crate::run::config::Config;
use crate::run::options::{images_of_epoch, loader_options};
use crate::train::{BatchRequest, BatchSource, Batches};
use crate::world::World;

/// The training split's batches.
pub(super) struct Source<'a> {
    pub config: &'a Config,
    pub dataset: Arc<Dataset>,
    pub validation: Arc<Dataset>,
    pub skip_bad: bool,
    /// The processes that share the batches of the validation.
    pub world: &'a World,
}

impl Source<'_> {
    fn batch_size(&self, batch_size: Option<usize>) -> usize {
        batch_size.unwrap_or(self.config.data.bs_train)
    }
}

impl BatchSource for Source<'_> {
    fn num_batches(&self, batch_size: Option<usize>) -> usize {
        images_of_epoch(self.config, self.dataset.frames.len()) / self.batch_size(batch_size)
    }

    fn open(&mut self, request: BatchRequest) -> Result<Batches> {
        let batch_size = self.batch_size(request.batch_size);
        let options = LoaderOptions {
            epoch: request.epoch_key,
            first_batch: request.first_batch * request.slices.count,
            share: Share::Slices(request.slices),
            epoch_images: self.config.training.epoch_images,
            skip_bad: self.skip_bad,
            ..loader_options(self.config, batch_size)
        };
        let loader =
            Loader::start(self.dataset.clone(), &self.config.input, &self.config.data, options)?;
        Ok(Box::new(loader))
    }

    fn open_validation(&mut self) -> Result<Option<Batches>> {
        let options = LoaderOptions {
            augment: false,
            shuffle: false,
            replace_empty: false,
            drop_last: false,
            skip_bad: self.skip_bad,
            share: Share::Batches { first: self.world.rank(), of: self.world.size() },
            ..loader_options(self.config, self.config.data.bs_valid)
        };
        let (input, data) = (&self.config.input, &self.config.data);
        let loader = Loader::start(self.validation.clone(), input, data, options)?;
        Ok(Some(Box::new(loader)))
    }
}
