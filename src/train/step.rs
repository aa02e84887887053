//! One step: forward, losses, backward, guard, clipping, optimizer.

use anyhow::{Context, Result, bail};
use tch::{Kind, Tensor};

use super::together::{average_statistics, combine, sum_gradients};
use super::{NamedLosses, Position, QuantizedModule, Sgd, StageConfig};
use crate::nn::Network;
use crate::quant::ModuleQuantizer;
use crate::topology::{Prepared, Task};
use crate::world::World;

/// What a step needs besides its batch.
pub(super) struct Step<'a> {
    pub net: &'a dyn Network,
    pub sgd: &'a mut Sgd,
    /// Those of all modules.
    pub quantizers: &'a mut [(QuantizedModule, ModuleQuantizer)],
    pub task: &'a dyn Task,
    /// The processes that share the batch.
    pub world: &'a World,
    /// Whether this one was asked to stop.
    pub stop: bool,
    pub stage: &'a StageConfig,
    pub lr: f64,
    /// Of the step, for messages.
    pub position: &'a Position,
    /// The checkpoint to go back to, for messages.
    pub last_checkpoint: Option<&'a std::path::Path>,
}

/// Numbers of a step, of the whole batch.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StepNumbers {
    pub losses: NamedLosses,
    pub grad_norm: f64,
    pub num_positive: usize,
    pub num_images: usize,
    /// Whether a process was asked to stop.
    pub stop: bool,
}

/// The losses of a slice of a batch, whose graph is gone.
struct SliceLosses {
    named: Vec<(&'static str, Tensor)>,
    num_positive: usize,
}

impl Step<'_> {
    /// Does the step with the slices of the batch that are this process's, one after the other. Losses and gradient norm
    /// come to the host in one transfer, after backward and before the step: weights that a non-finite gradient has touched never exist.
    ///
    /// # Errors
    /// If the batch does not fit the network, or a loss or the gradient norm is not finite; the weights are then
    /// those before the step.
    pub fn run(self, slices: &[Prepared]) -> Result<StepNumbers> {
        self.sgd.zero_grad()?;
        for (_, quantizer) in self.quantizers.iter_mut() {
            quantizer.begin_step()?;
        }
        let losses: Vec<SliceLosses> =
            slices.iter().map(|slice| self.backward(slice)).collect::<Result<_>>()?;
        for (_, quantizer) in self.quantizers.iter_mut() {
            quantizer.end_step()?;
        }
        self.join_processes()?;
        let numbers = self.fetch(&losses, slices)?;
        self.guard(&numbers, slices)?;
        self.sgd.clip(numbers.grad_norm, self.stage.clip_norm)?;
        self.sgd.step(self.lr);
        Ok(numbers)
    }

    /// Losses of a slice and their gradients, which add up.
    fn backward(&self, slice: &Prepared) -> Result<SliceLosses> {
        let losses = self.task.losses(self.net, slice, true)?;
        losses.total().backward();
        let named = losses.named().iter().map(|(name, loss)| (*name, loss.detach())).collect();
        Ok(SliceLosses { named, num_positive: losses.num_positive })
    }

    /// Gradients, statistics and records become those of the whole batch.
    fn join_processes(&self) -> Result<()> {
        if self.world.is_alone() {
            return Ok(());
        }
        sum_gradients(self.world, self.sgd)?;
        if !self.stage.freeze_bn {
            average_statistics(self.world, self.net.store())?;
        }
        let recorded: Vec<_> = self.quantizers.iter().flat_map(|(_, q)| q.recorded()).collect();
        combine(self.world, &recorded)
    }

    fn fetch(&self, losses: &[SliceLosses], slices: &[Prepared]) -> Result<StepNumbers> {
        let first = &losses.first().context("a step without a batch")?.named;
        let norm = self.sgd.grad_norm().unwrap_or_else(|| first[0].1.zeros_like());
        let named = losses.iter().flat_map(|slice| &slice.named);
        let all: Vec<&Tensor> = named.map(|(_, loss)| loss).chain([&norm]).collect();
        let all = tch::no_grad(|| Tensor::stack(&all, 0).to_kind(Kind::Double));
        let all = Vec::<f64>::try_from(all).context("fetching the losses")?;
        let (of_slices, norm) = all.split_at(all.len() - 1);
        let mut sums = vec![0.0; first.len()];
        for of_slice in of_slices.chunks(first.len()) {
            sums.iter_mut().zip(of_slice).for_each(|(sum, loss)| *sum += loss);
        }
        let num_positive: usize = losses.iter().map(|slice| slice.num_positive).sum();
        let num_images: usize = slices.iter().map(|slice| slice.batch.indices.len()).sum();
        sums.extend([num_positive as f64, num_images as f64, f64::from(u8::from(self.stop))]);
        self.world.sum_numbers(&mut sums)?;
        let names = first.iter().map(|(name, _)| (*name).to_owned());
        let [num_positive, num_images, stop] = sums[first.len()..] else { unreachable!() };
        Ok(StepNumbers {
            losses: NamedLosses(names.zip(sums.iter().copied()).collect()),
            grad_norm: norm[0],
            num_positive: num_positive as usize,
            num_images: num_images as usize,
            stop: stop > 0.0,
        })
    }

    fn guard(&self, numbers: &StepNumbers, slices: &[Prepared]) -> Result<()> {
        let StepNumbers { losses, grad_norm, .. } = numbers;
        if losses.iter().all(|(_, loss)| loss.is_finite()) && grad_norm.is_finite() {
            return Ok(());
        }
        let Position { stage, epoch, batch, global_step, .. } = self.position;
        let last = match self.last_checkpoint {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "no checkpoint was written yet".to_owned(),
        };
        let losses: Vec<String> =
            losses.iter().map(|(name, loss)| format!("loss_{name} {loss}")).collect();
        let names: Vec<String> =
            slices.iter().flat_map(|slice| slice.batch.names.iter().cloned()).collect();
        let names = self.world.gather(names)?.concat();
        bail!(
            "step {global_step} (stage {stage} {}, epoch {}, step {} of it) was not done: {}, gradient norm \
             {grad_norm}, expected finite numbers; images {}; {last}; look at \
             these images, or lower the learning rate ({})",
            self.stage.label(),
            epoch + 1,
            batch + 1,
            losses.join(", "),
            names.join(", "),
            self.lr
        )
    }
}
