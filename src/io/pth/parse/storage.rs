//! What a pickle says of its tensors: parts of storages, whose bytes lie elsewhere in the file.

use std::collections::HashMap;

use anyhow::{Result, ensure};

use super::globals::Element;

/// A storage that the pickle names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storage {
    /// Its key in the file.
    pub key: String,
    /// Its size as the pickle tells it.
    pub num_bytes: u64,
    /// Bytes of an element, where the storage has a type.
    pub element_size: u64,
}

/// A tensor: a part of a storage. Every element lies inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Place in the list of storages.
    pub storage: usize,
    /// The type of the elements.
    pub element: Element,
    /// Place of the first element, elements.
    pub offset: u64,
    /// The shape.
    pub shape: Vec<u64>,
    /// Steps between neighbours, elements.
    pub strides: Vec<u64>,
    /// Elements.
    pub num_elements: u64,
}

impl View {
    /// Bytes of its elements; `None` beyond 64 bits.
    pub fn num_bytes(&self) -> Option<u64> {
        self.num_elements.checked_mul(self.element.size())
    }

    /// Whether the elements lie one after another in row-major order.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape.iter().zip(&self.strides).rev().all(|(&size, &stride)| {
            let fits = size == 1 || stride == expected;
            expected *= size;
            fits
        })
    }
}

/// A storage, or a slice of one, as a call sees it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slice {
    pub(super) storage: usize,
    /// `None` for bytes without a type.
    pub(super) element: Option<Element>,
    /// Elements (bytes without a type) from the start of the storage.
    pub(super) offset: u64,
    pub(super) num_elements: u64,
}

/// The storages and tensors of a pickle.
#[derive(Debug, Default)]
pub(super) struct Tables {
    pub(super) storages: Vec<Storage>,
    by_key: HashMap<String, usize>,
    pub(super) slices: Vec<Slice>,
    pub(super) views: Vec<View>,
}

impl Tables {
    pub(super) fn find(&self, key: &str) -> Option<usize> {
        self.by_key.get(key).copied()
    }

    pub(super) fn enter(&mut self, storage: Storage) -> Result<usize> {
        if let Some(at) = self.find(&storage.key) {
            let known = &self.storages[at];
            ensure!(
                known.num_bytes == storage.num_bytes,
                "storage {} has {} bytes here and {} before",
                storage.key,
                storage.num_bytes,
                known.num_bytes
            );
            return Ok(at);
        }
        let at = self.storages.len();
        self.by_key.insert(storage.key.clone(), at);
        self.storages.push(storage);
        Ok(at)
    }
}
