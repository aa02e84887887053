//! Processes that work together: who they are, and what they tell each other, by libtorch's c10d.
//!
//! Start at [`World`]. A process that was started alone has [`World::alone`]: every call returns at once and changes
//! nothing, bit for bit. Launchers (torchrun, mpirun, srun, `mqat launch`) say by the environment who is who
//! ([`Place`]); the processes meet at a TCP store and send over gloo. What all of them must have equal is sent in fixed
//! buckets in the order it is given, so that sums are the same bits in every process and in every run of as many.

mod c10d;
mod env;

pub use env::Place;

use std::cell::{Cell, RefCell};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use anyhow::{Context, Error, Result, anyhow, bail, ensure};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::{Device, Kind, Tensor, no_grad};

use c10d::{Group, Store};

/// Numbers that are sent at once: 25 MB of f32.
const BUCKET: usize = 25 * 1024 * 1024 / 4;
/// How long a process that lost the others asks who is still there.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How often it asks.
const ASK_EVERY: Duration = Duration::from_millis(50);

/// The processes that work together, seen from one of them.
pub struct World {
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
    /// None in a process that is alone.
    link: Option<Link>,
}

struct Link {
    /// None once this process has closed its connections.
    group: RefCell<Option<Group>>,
    store: Arc<Store>,
    hosts_store: bool,
    /// A message to or from another process did not come through.
    has_lost: Cell<bool>,
}

impl Link {
    /// A message over the connections.
    fn send(&self, message: impl FnOnce(&Group) -> Result<()>) -> Result<()> {
        match &*self.group.borrow() {
            Some(group) => message(group),
            None => bail!("this process has failed and closed its connections"),
        }
    }
}

impl World {
    /// One process, as without a launcher.
    pub fn alone() -> Self {
        Self { rank: 0, size: 1, local_rank: 0, local_size: 1, link: None }
    }

    /// The processes that the environment names, once all are there.
    ///
    /// # Errors
    /// If variables of the environment are missing or contradict each other, or the others do not come within `timeout`: says
    /// which.
    pub fn from_env(timeout: Duration) -> Result<Self> {
        match Place::of_env(&|name| std::env::var(name).ok())? {
            None => Ok(Self::alone()),
            Some(place) => Self::meet(&place, timeout),
        }
    }

    /// Meets the others of `place`; `timeout` is for the meeting, and for each message after it.
    ///
    /// # Errors
    /// If they do not come in time, or say that there are more or fewer processes: names the ranks.
    pub fn meet(place: &Place, timeout: Duration) -> Result<Self> {
        let Place { rank, size, .. } = *place;
        let hosts_store = rank == 0 && !place.launcher_meets;
        let meeting = || format!("meeting the other processes at {}:{}", place.address, place.port);
        let prefix = format!("mqat_attempt_{}", place.attempt);
        let store = Store::open(&place.address, place.port, hosts_store, &prefix, timeout)
            .map_err(|error| advised(error, place, hosts_store))
            .with_context(meeting)?;
        let group = wait_for_all(&store, rank, size, timeout)
            .and_then(|()| Group::open(&store, rank, size, timeout))
            .with_context(meeting)?;
        let link = Some(Link {
            group: RefCell::new(Some(group)),
            store: Arc::new(store),
            hosts_store,
            has_lost: Cell::new(false),
        });
        Ok(Self { rank, size, local_rank: place.local_rank, local_size: place.local_size, link })
    }

    /// The number of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The number of this process among those of its machine.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// The processes of this machine.
    pub fn local_size(&self) -> usize {
        self.local_size
    }

    /// Whether this is the process that writes files and talks.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Whether there is no other process.
    pub fn is_alone(&self) -> bool {
        self.size == 1
    }

    /// Replaces each tensor by its sum over the processes: the same bits in all of them. Tensors of all processes have
    /// the same shapes, in the same order; any float kind and memory layout.
    ///
    /// # Errors
    /// If another process is gone or silent.
    pub fn sum(&self, tensors: &[Tensor]) -> Result<()> {
        self.reduce(tensors, false)
    }

    /// As [`World::sum`], the largest of each number.
    ///
    /// # Errors
    /// As [`World::sum`].
    pub fn largest(&self, tensors: &[Tensor]) -> Result<()> {
        self.reduce(tensors, true)
    }

    fn reduce(&self, tensors: &[Tensor], largest: bool) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        for bucket in buckets(tensors) {
            // One message; on a GPU through the memory of the CPU.
            let flat: Vec<Tensor> =
                bucket.iter().map(|t| t.detach().contiguous().reshape([-1])).collect();
            let flat = no_grad(|| Tensor::cat(&flat, 0).to_device(Device::Cpu).contiguous());
            self.send(link, |group| group.all_reduce(&flat, largest))?;
            let mut at = 0;
            for tensor in bucket {
                let len = tensor.numel() as i64;
                let own = flat.narrow(0, at, len).reshape(tensor.size());
                no_grad(|| tensor.detach().copy_(&own));
                at += len;
            }
        }
        Ok(())
    }

    fn send(&self, link: &Link, message: impl FnOnce(&Group) -> Result<()>) -> Result<()> {
        link.send(message).map_err(|error| self.lost(&error))
    }

    /// Replaces each number by its sum over the processes.
    ///
    /// # Errors
    /// As [`World::sum`].
    pub fn sum_numbers(&self, numbers: &mut [f64]) -> Result<()> {
        if !self.is_alone() {
            let tensor = Tensor::from_slice(numbers);
            self.reduce(std::slice::from_ref(&tensor), false)?;
            numbers.copy_from_slice(&Vec::<f64>::try_from(tensor)?);
        }
        Ok(())
    }

    /// What each process gives, by rank.
    ///
    /// # Errors
    /// If another process is gone or silent, or a value cannot be written as JSON and read back.
    pub fn gather<T: Serialize + DeserializeOwned>(&self, own: T) -> Result<Vec<T>> {
        let Some(link) = &self.link else { return Ok(vec![own]) };
        let bytes = serde_json::to_vec(&own).context("writing what other processes get")?;
        let length = Tensor::from_slice(&[bytes.len() as i64]);
        let lengths = Tensor::zeros([self.size as i64], (Kind::Int64, Device::Cpu));
        self.send(link, |group| group.all_gather(&length, &lengths))?;
        let lengths = Vec::<i64>::try_from(lengths)?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let mut padded = bytes;
        padded.resize(usize::try_from(longest)?, b' '); // JSON may end in blanks
        let all = Tensor::zeros([longest * self.size as i64], (Kind::Uint8, Device::Cpu));
        let padded = Tensor::from_slice(&padded);
        self.send(link, |group| group.all_gather(&padded, &all))?;
        let all = Vec::<u8>::try_from(all)?;
        let parse = |bytes: &[u8]| {
            serde_json::from_slice(bytes).context("reading what another process gave")
        };
        all.chunks(padded.numel()).map(parse).collect()
    }

    /// What the first process makes, in all of them. Where it fails it fails in all of them.
    ///
    /// # Errors
    /// Those of `make`, told by all; and as [`World::gather`].
    pub fn from_first<T: Serialize + DeserializeOwned>(
        &self,
        make: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(link) = &self.link else { return make() };
        let made = self.is_first().then(make);
        let told: Option<Result<String, String>> = match &made {
            None => None,
            Some(Ok(value)) => {
                Some(Ok(serde_json::to_string(value).context("writing what other processes get")?))
            }
            Some(Err(error)) => Some(Err(format!("{error:#}"))),
        };
        let bytes = serde_json::to_vec(&told).context("writing what other processes get")?;
        let length = Tensor::from_slice(&[bytes.len() as i64]);
        self.send(link, |group| group.broadcast(&length))?;
        let length = usize::try_from(length.int64_value(&[0]))?;
        let text = match self.is_first() {
            true => Tensor::from_slice(&bytes),
            false => Tensor::zeros([length as i64], (Kind::Uint8, Device::Cpu)),
        };
        self.send(link, |group| group.broadcast(&text))?;
        if let Some(made) = made {
            return made;
        }
        let told: Option<Result<String, String>> =
            serde_json::from_slice(&Vec::<u8>::try_from(text)?)?;
        match told {
            Some(Ok(value)) => Ok(serde_json::from_str(&value)?),
            Some(Err(error)) => bail!("process 0 failed: {error}"),
            None => bail!("process 0 has sent nothing"),
        }
    }

    /// The result, if no process failed.
    ///
    /// # Errors
    /// The own error, or that of the first process that failed.
    pub fn all_succeeded<T>(&self, own: Result<T>) -> Result<T> {
        if self.is_alone() {
            return own;
        }
        let errors = self.gather(own.as_ref().err().map(|error| format!("{error:#}")))?;
        let value = own?;
        for (rank, error) in errors.into_iter().enumerate() {
            if let Some(error) = error {
                bail!("process {rank} failed: {error}");
            }
        }
        Ok(value)
    }

    /// Waits until all processes are here.
    ///
    /// # Errors
    /// If another process is gone or silent.
    pub fn barrier(&self) -> Result<()> {
        self.sum_numbers(&mut [0.0])
    }

    /// The end of what processes did together: a failure is told the others, which would wait for this one.
    ///
    /// # Errors
    /// That of `own`, with the number of this process.
    pub fn end<T>(&self, own: Result<T>) -> Result<T> {
        if self.is_alone() {
            return own;
        }
        own.inspect_err(|error| self.tell_failure(error))
            .with_context(|| format!("process {} of {}", self.rank, self.size))
    }

    /// Makes sure that all processes say the same.
    ///
    /// # Errors
    /// If they do not: names `what` and two processes, and gives the advice. If a process is lost.
    pub fn ensure_same(&self, what: &str, own: &str, advice: &str) -> Result<()> {
        let all = self.gather(own.to_owned())?;
        let other = all.iter().position(|text| *text != all[0]);
        match other {
            None => Ok(()),
            Some(rank) => bail!(
                "process {rank} has another {what} than process 0: {} there, {} here; {advice}",
                all[rank],
                all[0]
            ),
        }
    }

    /// Tells the others, before this process ends, why; a failing message of theirs will say it. Rank 0 of those that
    /// keep the meeting point themselves waits a moment, so that they can ask.
    fn tell_failure(&self, error: &Error) {
        let Some(link) = &self.link else { return };
        // Whoever cannot be told learns it by the closed connection.
        drop(link.store.set(&failed(self.rank), &format!("{error:#}")));
        drop(link.group.take()); // who waits for this process notices it now
        if link.has_lost.get() {
            // Those that noticed it too are asking what became of whom.
            std::thread::sleep(if link.hosts_store { LAST_WORDS / 4 } else { Duration::ZERO });
        } else if link.hosts_store {
            let others = || (0..self.size).filter(|rank| *rank != self.rank);
            let knows = |rank| has(&link.store, &informed(rank)) || has(&link.store, &failed(rank));
            wait_until(2 * LAST_WORDS, || others().all(knows));
        }
    }

    /// The error of a message that did not come through: names the process that failed, or that does not answer.
    fn lost(&self, error: &Error) -> Error {
        let Some(link) = &self.link else { return anyhow!("{error:#}") };
        link.has_lost.set(true);
        let (store, rank, size) = (link.store.clone(), self.rank, self.size);
        let (answer, asked) = mpsc::channel();
        // On a thread of its own: a meeting point whose process was stopped never answers.
        std::thread::spawn(move || drop(answer.send(who_is_gone(&store, rank, size))));
        let gone = asked.recv_timeout(2 * LAST_WORDS).unwrap_or_else(|_| vec![silent(0)]);
        let gone = if gone.is_empty() { "a message was lost".to_owned() } else { gone.join("; ") };
        anyhow!("{gone} ({error:#})")
    }
}

/// What became of the processes that failed, or that do not notice that a message was lost, as rank `own` does.
fn who_is_gone(store: &Store, own: usize, size: usize) -> Vec<String> {
    if store.set(&noticed(own), "").is_err() {
        return vec![silent(0)]; // nobody keeps the meeting point any more
    }
    let others = || (0..size).filter(|rank| *rank != own);
    let is_heard = |rank| has(store, &failed(rank)) || has(store, &noticed(rank));
    wait_until(LAST_WORDS, || others().all(is_heard));
    let became = |rank| {
        if !is_heard(rank) {
            return Some(silent(rank));
        }
        if !has(store, &failed(rank)) {
            return None;
        }
        let reason = store.get(&failed(rank), LAST_WORDS).ok()?;
        Some(format!("process {rank} failed: {reason}"))
    };
    let gone = others().filter_map(became).collect();
    // Whoever keeps the meeting point may go.
    drop(store.set(&informed(own), ""));
    gone
}

fn silent(rank: usize) -> String {
    format!("process {rank} does not answer: it was killed, or hangs")
}

/// Whether the store has a name; not if it cannot be asked.
fn has(store: &Store, key: &str) -> bool {
    store.has(key).unwrap_or(false)
}

/// Under which name the store has why a process failed.
fn failed(rank: usize) -> String {
    format!("failed/{rank}")
}

/// Set by a process that knows what became of the others.
fn informed(rank: usize) -> String {
    format!("informed/{rank}")
}

/// Set by a process that has lost another one.
fn noticed(rank: usize) -> String {
    format!("noticed/{rank}")
}

fn wait_until(most: Duration, done: impl Fn() -> bool) {
    let since = Instant::now();
    while !done() && since.elapsed() < most {
        std::thread::sleep(ASK_EVERY);
    }
}

/// Waits until every rank is at the meeting point, once, and speaks of as many processes.
fn wait_for_all(store: &Store, rank: usize, size: usize, timeout: Duration) -> Result<()> {
    let since = Instant::now();
    let here = |rank: usize| format!("here/{rank}");
    let own = here(rank);
    ensure!(
        store.add(&format!("{own}/count"), 1)? == 1,
        "two processes have rank {rank}: every one needs its own RANK, and a meeting point (MASTER_ADDR, MASTER_PORT) that no \
         other run uses"
    );
    store.set(&own, &size.to_string())?;
    // Ranks that this process does not count on are looked for as well.
    for other in (0..size).filter(|other| *other != rank) {
        let left = timeout.saturating_sub(since.elapsed()).max(ASK_EVERY);
        let Ok(theirs) = store.get(&here(other), left) else {
            let absent: Vec<String> = (0..size)
                .filter(|r| !store.has(&here(*r)).unwrap_or(false))
                .map(|r| r.to_string())
                .collect();
            bail!(
                "rank {} of {size} did not come within {} s: were they started, with the same WORLD_SIZE, MASTER_ADDR and \
                 MASTER_PORT?",
                absent.join(", "),
                timeout.as_secs()
            )
        };
        ensure!(
            theirs == size.to_string(),
            "rank {other} was told that there are {theirs} processes, and rank {rank} that there are {size}: start all with the \
             same WORLD_SIZE"
        );
    }
    Ok(())
}

/// What to do about a meeting point that cannot be opened or reached.
fn advised(error: Error, place: &Place, hosts_store: bool) -> Error {
    let text = format!("{error:#}");
    if text.contains("EADDRINUSE") {
        anyhow!("port {} is in use by another program: set MASTER_PORT to a free one", place.port)
    } else if hosts_store {
        anyhow!("{text}; rank 0 keeps the meeting point: MASTER_ADDR must name its own machine")
    } else {
        anyhow!(
            "{text}; is rank 0 running, and do MASTER_ADDR and MASTER_PORT name it? A firewall must let them through"
        )
    }
}

/// Tensors of one kind on one device one after the other, as many as fit into a message; at least one.
fn buckets(tensors: &[Tensor]) -> Vec<&[Tensor]> {
    let mut all = Vec::new();
    let mut rest = tensors;
    while let Some(first) = rest.first() {
        let mut sum = 0;
        let fits = |t: &&Tensor| {
            sum += t.numel();
            let is_alike = t.kind() == first.kind() && t.device() == first.device();
            is_alike && (sum <= BUCKET || sum == t.numel())
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (bucket, others) = rest.split_at(count);
        all.push(bucket);
        rest = others;
    }
    all
}

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
