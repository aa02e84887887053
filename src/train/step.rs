//! One step: forward, losses, backward, guard, clipping, optimizer.

use anyhow::{Context, Result, bail};
use tch::{Kind, Tensor};

use super::{NamedLosses, Position, QuantizedModule, Sgd, StageConfig};
use crate::nn::Network;
use crate::quant::ModuleQuantizer;
use crate::topology::{BatchLosses, Prepared, Task};

/// What a step needs besides its batch.
pub(super) struct Step<'a> {
    pub net: &'a dyn Network,
    pub sgd: &'a mut Sgd,
    /// Those of all modules.
    pub quantizers: &'a mut [(QuantizedModule, ModuleQuantizer)],
    pub task: &'a dyn Task,
    pub stage: &'a StageConfig,
    pub lr: f64,
    /// Of the step, for messages.
    pub position: &'a Position,
    /// The checkpoint to go back to, for messages.
    pub last_checkpoint: Option<&'a std::path::Path>,
}

/// Numbers of a step.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StepNumbers {
    pub losses: NamedLosses,
    pub grad_norm: f64,
    pub num_positive: usize,
}

impl Step<'_> {
    /// Does the step. Losses and gradient norm come to the host in one transfer, after backward and before the
    /// step: weights that a non-finite gradient has touched never exist.
    ///
    /// # Errors
    /// If the batch does not fit the network, or a loss or the gradient norm is not finite; the weights are then
    /// those before the step.
    pub fn run(self, prepared: &Prepared) -> Result<StepNumbers> {
        self.sgd.zero_grad()?;
        for (_, quantizer) in self.quantizers.iter_mut() {
            quantizer.begin_step()?;
        }
        let losses = self.task.losses(self.net, prepared, true)?;
        losses.total().backward();
        for (_, quantizer) in self.quantizers.iter_mut() {
            quantizer.end_step()?;
        }
        let numbers = self.fetch(&losses)?;
        self.guard(&numbers, prepared)?;
        self.sgd.clip(numbers.grad_norm, self.stage.clip_norm)?;
        self.sgd.step(self.lr);
        Ok(numbers)
    }

    fn fetch(&self, losses: &BatchLosses) -> Result<StepNumbers> {
        let named = losses.named();
        let norm = self.sgd.grad_norm().unwrap_or_else(|| named[0].1.zeros_like());
        let all: Vec<&Tensor> = named.iter().map(|(_, loss)| loss).chain([&norm]).collect();
        let all = tch::no_grad(|| Tensor::stack(&all, 0).to_kind(Kind::Double));
        let all = Vec::<f64>::try_from(all).context("fetching the losses")?;
        let names = named.iter().map(|(name, _)| (*name).to_owned());
        Ok(StepNumbers {
            losses: NamedLosses(names.zip(all.iter().copied()).collect()),
            grad_norm: all[named.len()],
            num_positive: losses.num_positive,
        })
    }

    fn guard(&self, numbers: &StepNumbers, prepared: &Prepared) -> Result<()> {
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
        bail!(
            "step {global_step} (stage {stage} {}, epoch {}, step {} of it) was not done: {}, gradient norm \
             {grad_norm}, expected finite numbers; images {}; {last}; look at \
             these images, or lower the learning rate ({})",
            self.stage.label(),
            epoch + 1,
            batch + 1,
            losses.join(", "),
            prepared.batch.names.join(", "),
            self.lr
        )
    }
}
