//! Worker threads that fill slots ahead of the consumer, a few batches at most.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{Builder, JoinHandle};

use anyhow::{Context, Result, bail};

use super::plan::{LoadPlan, Loaded, Slot};

/// Batches waiting beside the one that is being taken, besides a slot for each worker.
const BATCHES_AHEAD: usize = 2;

/// The workers of a loader. Dropping it stops them.
pub(super) struct Queue {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    plan: Arc<LoadPlan>,
    /// Batches from the oldest on that may be in the making or waiting.
    window: usize,
    state: Mutex<State>,
    /// There is room for more work, or it is time to stop.
    room: Condvar,
    /// A batch became ready.
    ready: Condvar,
}

struct State {
    stop: bool,
    /// The slot to be filled next.
    next_slot: usize,
    /// The batch that the consumer takes next.
    oldest: usize,
    /// The batches from `oldest` on.
    batches: VecDeque<Making>,
}

enum Making {
    Slots { slots: Vec<Option<Result<Slot>>>, num_missing: usize },
    Assembling,
    Ready(Result<Loaded>),
}

impl Queue {
    pub fn start(plan: Arc<LoadPlan>, workers: usize) -> Result<Self> {
        let first = plan.options.first_batch.min(plan.num_batches());
        let window = 1 + BATCHES_AHEAD + workers.div_ceil(plan.options.batch_size);
        let state = State {
            stop: false,
            next_slot: plan.slots(first).start,
            oldest: first,
            batches: VecDeque::new(),
        };
        let shared = Arc::new(Shared {
            plan,
            window,
            state: Mutex::new(state),
            room: Condvar::new(),
            ready: Condvar::new(),
        });
        let mut queue = Self { shared, threads: Vec::with_capacity(workers) };
        for i in 0..workers {
            let shared = queue.shared.clone();
            let thread = Builder::new().name(format!("loader-{i}"));
            let thread = thread.spawn(move || shared.work()).context("starting a loader thread")?;
            queue.threads.push(thread);
        }
        Ok(queue)
    }

    /// Waits for `batch`; batches must be taken in their order.
    pub fn take(&self, batch: usize) -> Result<Loaded> {
        let mut state = self.shared.lock();
        loop {
            if state.stop || state.oldest != batch {
                bail!("batch {batch} was asked of a loader that stopped or went past it");
            }
            match state.batches.pop_front() {
                Some(Making::Ready(loaded)) => {
                    state.oldest += 1;
                    self.shared.room.notify_all();
                    return loaded;
                }
                Some(unready) => state.batches.push_front(unready),
                None => {}
            }
            state = self.shared.ready.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.room.notify_all();
        for thread in self.threads.drain(..) {
            // Its panics were turned into errors of a batch; there is nobody to tell here.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// A thread panics only while filling, where the lock is not held: the state is sound in any case.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work(&self) {
        while let Some(slot) = self.claim() {
            let filled = self.plan.fill(slot);
            self.put(slot, filled);
        }
    }

    /// The next slot to fill, once there is room; `None` at the end.
    fn claim(&self) -> Option<usize> {
        let mut state = self.lock();
        loop {
            let slot = state.next_slot;
            if state.stop || slot >= self.plan.num_slots() {
                return None;
            }
            let batch = slot / self.plan.options.batch_size;
            if batch < state.oldest + self.window {
                state.next_slot += 1;
                while state.oldest + state.batches.len() <= batch {
                    let num_missing = self.plan.slots(state.oldest + state.batches.len()).len();
                    let slots = (0..num_missing).map(|_| None).collect();
                    state.batches.push_back(Making::Slots { slots, num_missing });
                }
                return Some(slot);
            }
            state = self.room.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Puts a slot into its batch; who fills the last one assembles it.
    fn put(&self, slot: usize, filled: Result<Slot>) {
        let batch = slot / self.plan.options.batch_size;
        let mut state = self.lock();
        let complete = {
            let at = batch - state.oldest;
            let making = &mut state.batches[at];
            let Making::Slots { slots, num_missing } = making else { return };
            slots[slot - self.plan.slots(batch).start] = Some(filled);
            *num_missing -= 1;
            if *num_missing > 0 {
                return;
            }
            let slots = std::mem::take(slots);
            *making = Making::Assembling;
            slots
        };
        drop(state);
        let loaded = complete.into_iter().flatten().collect::<Result<Vec<_>>>();
        let loaded = loaded.map(|slots| self.plan.assemble(batch, slots));
        let mut state = self.lock();
        let at = batch - state.oldest;
        state.batches[at] = Making::Ready(loaded);
        self.ready.notify_one();
    }
}
