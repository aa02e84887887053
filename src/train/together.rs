//! What processes that train together do with each other: sums of gradients, statistics and records that become one, and
//! the proof that they all have the same.

use anyhow::{Context, Result, ensure};
use rand::Rng;
use tch::{Kind, Tensor, no_grad};

use super::{Checkpoint, Sgd};
use crate::data::Slices;
use crate::io::tensors::checksum;
use crate::nn::{BatchStatistics, Role, Store};
use crate::quant::{Combine, Recorded};
use crate::seed;
use crate::world::World;

/// Purpose of the stream that draws which process's value stays.
const PURPOSE_DRAW: u64 = u64::from_le_bytes(*b"world_rd");

/// How a step is shared.
pub(super) struct Together {
    pub world: std::rc::Rc<World>,
    /// Pieces that a process computes its part of a batch in, one after the other.
    pub accumulate: usize,
    /// Whether a process was asked to stop, as the last step has told all of them.
    pub stop_told: bool,
}

impl Together {
    /// One process that computes a batch at once.
    pub fn alone() -> Self {
        Self { world: std::rc::Rc::new(World::alone()), accumulate: 1, stop_told: false }
    }

    /// The slices of a batch that are this process's.
    pub fn slices(&self) -> Slices {
        let count = self.accumulate;
        Slices { of: self.world.size() * count, first: self.world.rank() * count, count }
    }
}

/// Makes the gradients of all processes their sum: losses are sums over images. All of it in fixed buckets by the order of
/// the parameters, so that every process gets the same bits.
///
/// # Errors
/// If a process is lost, or some have a gradient that others have not: names the parameter.
pub(super) fn sum_gradients(world: &World, sgd: &Sgd) -> Result<()> {
    if world.is_alone() {
        return Ok(());
    }
    let gradients = sgd.gradients();
    let mut all: Vec<Tensor> = gradients
        .iter()
        .map(|(_, grad, param)| match grad {
            Some(grad) => grad.shallow_clone(),
            None => no_grad(|| param.zeros_like()),
        })
        .collect();
    let has: Vec<f32> =
        gradients.iter().map(|(_, g, _)| f32::from(u8::from(g.is_some()))).collect();
    let has = Tensor::from_slice(&has);
    all.push(has.shallow_clone());
    world.sum(&all).context("adding up the gradients")?;
    let counts = Vec::<f32>::try_from(has)?;
    for ((name, _, _), count) in gradients.iter().zip(counts) {
        ensure!(
            count == 0.0 || count == world.size() as f32,
            "{count} of {} processes have a gradient of {name}",
            world.size()
        );
    }
    Ok(())
}

/// Makes the running statistics of batch norms, which each process moves by its own images, their mean. In f64: where they
/// are equal they stay, bit for bit.
///
/// # Errors
/// If a process is lost.
pub(super) fn average_statistics(world: &World, store: &Store) -> Result<()> {
    if world.is_alone() {
        return Ok(());
    }
    let is_statistic =
        |name: &str| [".running_mean", ".running_var"].iter().any(|end| name.ends_with(end));
    let vars = store.vars().into_iter().filter(|v| v.role == Role::Buffer && is_statistic(&v.name));
    let own: Vec<Tensor> = vars.map(|var| var.tensor).collect();
    let sums: Vec<Tensor> = own.iter().map(|t| t.to_kind(Kind::Double)).collect();
    world.sum(&sums).context("averaging the statistics of batch norms")?;
    for (own, sum) in own.iter().zip(&sums) {
        no_grad(|| own.shallow_clone().copy_(&(sum / world.size() as f64)));
    }
    Ok(())
}

/// Adds the statistics of the batches of all processes, which have the same layers.
///
/// # Errors
/// If a process is lost.
pub(super) fn add_statistics(world: &World, statistics: &mut BatchStatistics) -> Result<()> {
    if world.is_alone() {
        return Ok(());
    }
    let (sums, counts) = statistics.sums();
    world.sum(&sums)?;
    let mut numbers: Vec<f64> = counts.iter().map(|count| **count as f64).collect();
    world.sum_numbers(&mut numbers)?;
    for (count, number) in counts.into_iter().zip(numbers) {
        *count = number as u64;
    }
    Ok(())
}

/// Makes what quantizers have recorded of activations one.
///
/// # Errors
/// If a process is lost.
pub(super) fn combine(world: &World, recorded: &[Recorded]) -> Result<()> {
    if world.is_alone() || recorded.is_empty() {
        return Ok(());
    }
    no_grad(|| -> Result<()> {
        // Smallest ones by their negatives.
        let of = |how: Combine| recorded.iter().filter(move |r| r.how == how).map(|r| &r.tensor);
        let smallest: Vec<Tensor> = of(Combine::Smallest).map(Tensor::neg).collect();
        let largest = of(Combine::Largest).map(Tensor::shallow_clone);
        let largest: Vec<Tensor> =
            largest.chain(smallest.iter().map(Tensor::shallow_clone)).collect();
        world.largest(&largest)?;
        for (own, found) in of(Combine::Smallest).zip(&smallest) {
            own.shallow_clone().copy_(&found.neg());
        }
        let mut sums: Vec<Tensor> = of(Combine::Mean).map(Tensor::shallow_clone).collect();
        for record in recorded {
            if let Combine::Draw(seed) = record.how {
                let others = not_drawn(world, seed, record.tensor.numel());
                let others = others.to_device(record.tensor.device()).reshape(record.tensor.size());
                let _ = record.tensor.shallow_clone().masked_fill_(&others, 0.0);
                sums.push(record.tensor.shallow_clone());
            }
        }
        world.sum(&sums)?;
        for mean in of(Combine::Mean) {
            let _ = mean.shallow_clone().g_div_scalar_(world.size() as f64);
        }
        Ok(())
    })
    .context("putting the records of activations together")
}

/// 1 at the places whose value is another process's.
fn not_drawn(world: &World, seed: u64, len: usize) -> Tensor {
    let mut rng = seed::stream(seed, &[PURPOSE_DRAW]);
    let others: Vec<bool> =
        (0..len).map(|_| rng.random_range(0..world.size()) != world.rank()).collect();
    Tensor::from_slice(&others)
}

/// Makes sure that all processes have the same bits in everything that a checkpoint holds.
///
/// # Errors
/// If they have not: names the first tensor that differs, and where. If a process is lost.
pub(super) fn ensure_equal(world: &World, checkpoint: &Checkpoint) -> Result<()> {
    let sums = checksums(checkpoint)?;
    let text: String = sums.iter().map(|(name, sum)| format!("{name} {sum};")).collect();
    let all = world.gather(seed::fnv1a(text.as_bytes()))?;
    if all.iter().all(|hash| *hash == all[0]) {
        return Ok(());
    }
    let all = world.gather(sums)?;
    let first = &all[0];
    for (rank, own) in all.iter().enumerate().skip(1) {
        let other = first.iter().zip(own).position(|(a, b)| a != b);
        ensure!(
            other.is_none() && own.len() == first.len(),
            "process {rank} has other bits in {} than process 0 after step {}: the processes no longer train one network; are \
             all of them of one build, on machines of one kind?",
            other.map_or("its tensors", |i| own[i].0.as_str()),
            checkpoint.meta.position.global_step
        );
    }
    Ok(())
}

/// Names and checksums of the tensors of a checkpoint.
fn checksums(checkpoint: &Checkpoint) -> Result<Vec<(String, u32)>> {
    let Checkpoint { weights, quant, momentum, ema, task, .. } = checkpoint;
    let parts = [
        ("", weights),
        ("", quant),
        ("momentum of ", momentum),
        ("average of ", ema),
        ("task ", task),
    ];
    let named = parts.into_iter().flat_map(|(prefix, tensors)| {
        tensors.iter().map(move |(name, tensor)| {
            let sum = checksum(tensor).with_context(|| format!("the checksum of {name}"));
            sum.map(|sum| (format!("{prefix}{name}"), sum))
        })
    });
    named.collect()
}
