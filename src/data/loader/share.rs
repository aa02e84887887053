//! Which part of an epoch's batches a process makes.

use anyhow::{Result, ensure};

/// The part of the batches of an epoch that a loader makes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Share {
    /// All of them.
    #[default]
    All,
    /// Slices of each batch.
    Slices(Slices),
    /// Whole batches: every `of`-th from number `first` on.
    Batches {
        /// The first one, below `of`.
        first: usize,
        /// How many processes share them.
        of: usize,
    },
}

/// Some slices of a batch: it is cut into `of` pieces of equal length, and those from `first` on are made, `count` of them, a
/// batch each. What an image holds is that of the whole batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slices {
    /// Pieces of a batch.
    pub of: usize,
    /// The first piece.
    pub first: usize,
    /// Pieces from there on.
    pub count: usize,
}

impl Default for Slices {
    /// The whole batch.
    fn default() -> Self {
        Self { of: 1, first: 0, count: 1 }
    }
}

impl Slices {
    /// The place of the first image of a slice, by the number of the slice among those that are made; `length` images each.
    pub(super) fn first_place(&self, slice: usize, length: usize) -> usize {
        (self.first + slice % self.count) * length
    }
}

impl Share {
    /// What is made of an epoch's images, in its order, and the images of a batch then.
    ///
    /// # Errors
    /// If batches cannot be cut into slices of equal length.
    pub(super) fn of(
        self,
        order: Vec<usize>,
        batch_size: usize,
        drop_last: bool,
    ) -> Result<(Vec<usize>, usize)> {
        match self {
            Self::All => Ok((order, batch_size)),
            Self::Slices(slices) if slices == Slices::default() => Ok((order, batch_size)),
            Self::Slices(Slices { of, first, count }) => {
                ensure!(
                    drop_last && of > 0 && batch_size.is_multiple_of(of) && first + count <= of,
                    "batches of {batch_size} images cannot be cut into {of} slices of equal length"
                );
                let length = batch_size / of;
                let own = first * length..(first + count) * length;
                let slices = order.chunks_exact(batch_size).flat_map(|batch| &batch[own.clone()]);
                Ok((slices.copied().collect(), length))
            }
            Self::Batches { first, of } => {
                ensure!(first < of, "batch {first} of {of} that take turns");
                let own = order.chunks(batch_size).skip(first).step_by(of).flatten();
                Ok((own.copied().collect(), batch_size))
            }
        }
    }
}
