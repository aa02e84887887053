//! The data path: BOP folders, samples, augmentation, batches.

pub mod bop;
