//! One update: forward, losses, backward, guard, clipping, optimizer.

use anyhow::{Context, Result, bail};
use tch::{Kind, Tensor};

use super::prefetch::{Assigner, Prepared};
use super::{Position, QuantizedModule, Sgd, StageConfig};
use crate::model::{PoseNet, losses};
use crate::quant::ModuleQuantizer;

/// What an update needs besides its batch.
pub(super) struct Step<'a> {
    pub net: &'a PoseNet,
    pub sgd: &'a mut Sgd,
    /// Those of all modules.
    pub quantizers: &'a mut [(QuantizedModule, ModuleQuantizer)],
    pub assigner: &'a Assigner,
    pub stage: &'a StageConfig,
    pub lr: f64,
    /// Of the update, for messages.
    pub position: &'a Position,
    /// The checkpoint to go back to, for messages.
    pub last_checkpoint: Option<&'a std::path::Path>,
}

/// Numbers of an update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct StepNumbers {
    pub loss_cls: f64,
    pub loss_reg: f64,
    pub grad_norm: f64,
    pub num_positive: usize,
}

impl Step<'_> {
    /// Does the update. Losses and gradient norm come to the host in one transfer, after backward and before the
    /// update: weights that a non-finite gradient has touched never exist.
    ///
    /// # Errors
    /// If the batch does not fit the network, or a loss or the gradient norm is not finite; the weights are then
    /// those before the update.
    pub fn run(self, prepared: &Prepared) -> Result<StepNumbers> {
        let Assigner { task, grid, .. } = self.assigner;
        let batch = &prepared.batch;
        let images = task.preprocess.images(&batch.pixels, self.net.store.device())?;
        self.sgd.zero_grad()?;
        for (_, quantizer) in self.quantizers.iter_mut() {
            quantizer.begin_step()?;
        }
        let outputs = self.net.forward_t(&images, true);
        let losses = losses(&outputs, grid, &task.camera, &prepared.assignments, &task.loss)?;
        losses.total().backward();
        for (_, quantizer) in self.quantizers.iter_mut() {
            quantizer.end_step()?;
        }
        let numbers = self.fetch(&losses.cls, &losses.reg, losses.num_positive)?;
        self.guard(&numbers, prepared)?;
        self.sgd.clip(numbers.grad_norm, self.stage.clip_norm)?;
        self.sgd.step(self.lr);
        Ok(numbers)
    }

    fn fetch(&self, cls: &Tensor, reg: &Tensor, num_positive: usize) -> Result<StepNumbers> {
        let norm = self.sgd.grad_norm().unwrap_or_else(|| cls.zeros_like());
        let all = tch::no_grad(|| Tensor::stack(&[cls, reg, &norm], 0).to_kind(Kind::Double));
        let all = Vec::<f64>::try_from(all).context("fetching the losses")?;
        Ok(StepNumbers { loss_cls: all[0], loss_reg: all[1], grad_norm: all[2], num_positive })
    }

    fn guard(&self, numbers: &StepNumbers, prepared: &Prepared) -> Result<()> {
        let StepNumbers { loss_cls, loss_reg, grad_norm, .. } = *numbers;
        if [loss_cls, loss_reg, grad_norm].iter().all(|v| v.is_finite()) {
            return Ok(());
        }
        let Position { stage, epoch, batch, global_step, .. } = self.position;
        let last = match self.last_checkpoint {
            Some(path) => format!("the last good checkpoint is {}", path.display()),
            None => "no checkpoint was written yet".to_owned(),
        };
        bail!(
            "update {global_step} (stage {stage} {}, epoch {epoch}, batch {batch}) was not done: loss_cls {loss_cls}, \
             loss_reg {loss_reg}, gradient norm {grad_norm}, expected finite numbers; images {}; {last}; look at \
             these images, or lower the learning rate ({})",
            self.stage.label(),
            prepared.batch.names.join(", "),
            self.lr
        )
    }
}
