//! Batches with their targets, made ready on a thread of their own while the device computes.

use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, Result, anyhow};
use crossbeam_channel::{Receiver, bounded};

use crate::data::{Batch, Slices};
use crate::topology::{Prepare, Prepared};

/// Batches that may wait, ready, besides the one being computed.
const NUM_AHEAD: usize = 2;

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
    /// The slices of each batch that are wanted, where processes share it or its gradients are accumulated: each comes as a batch.
    pub slices: Slices,
}

/// Where batches come from. Equal requests give equal batches, and leaving some out does not change the others.
pub trait BatchSource {
    /// Batches of a whole epoch.
    fn num_batches(&self, batch_size: Option<usize>) -> usize;

    /// Starts an epoch.
    fn open(&mut self, request: BatchRequest) -> Result<Batches>;

    /// The images that validation looks at, each once, without augmentation; of several processes each opens the batches
    /// `rank`, `rank + size`, .... `None` where losses are not measured.
    fn open_validation(&mut self) -> Result<Option<Batches>> {
        Ok(None)
    }
}

/// The prepared slices of each batch, in order; one where a batch is whole. Dropping it ends the thread.
pub(super) struct Prefetch {
    receiver: Option<Receiver<Result<Vec<Prepared>>>>,
    thread: Option<JoinHandle<()>>,
}

impl Prefetch {
    /// Starts on `batches`, of which `num_slices` are for a step, the first of them for step `first_step` (from 0).
    pub fn start(
        preparer: Arc<dyn Prepare>,
        mut batches: Batches,
        num_slices: usize,
        first_step: u64,
    ) -> Result<Self> {
        let (sender, receiver) = bounded(NUM_AHEAD);
        let work = move || {
            for step in first_step.. {
                let slices = batches.by_ref().take(num_slices);
                let prepared: Result<Vec<Prepared>> =
                    slices.map(|batch| preparer.prepare(batch?, step)).collect();
                let is_last = prepared.as_ref().is_ok_and(Vec::is_empty);
                let failed = prepared.is_err();
                if is_last || sender.send(prepared).is_err() || failed {
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
    type Item = Result<Vec<Prepared>>;

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
