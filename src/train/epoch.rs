//! One epoch: its quantization step, its steps, its validation and its checkpoints.

use std::sync::atomic::Ordering;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::checkpoint::EpochSums;
use super::ema::Ema;
use super::prefetch::{BatchRequest, Prefetch};
use super::step::{Step, StepNumbers};
use super::together::ensure_equal;
use super::trainer::{Hooks, Outcome, Trainer};
use super::{EpochRecord, LrPlace, StepRecord, TelemetryRecord};
use crate::topology::Prepared;

impl Trainer {
    /// Does the rest of the current epoch; `Some` if the run is to stop, with its checkpoint written.
    pub(super) fn epoch(&mut self, hooks: &mut Hooks<'_>) -> Result<Option<Outcome>> {
        if self.position.batch == 0 {
            self.start_epoch()?;
        }
        let batch_size = self.stage().batch_size;
        let num_batches = hooks.source.num_batches(batch_size);
        ensure!(
            num_batches > 0,
            "an epoch has no batch: there are fewer training images than a batch takes"
        );
        let request = BatchRequest {
            epoch_key: self.position.global_epoch,
            first_batch: self.position.batch,
            batch_size,
            slices: self.together.slices(),
        };
        let batches = hooks.source.open(request).context("starting the epoch's batches")?;
        let first_step = self.position.global_step;
        let num_slices = request.slices.count;
        let mut batches = Prefetch::start(self.task.preparer(), batches, num_slices, first_step)?;
        let mut since = Instant::now();
        loop {
            // Not before the first step: a checkpoint at batch 0 is one before the epoch's quantization step.
            let within = 0 < self.position.batch && self.position.batch < num_batches;
            if within && let Some(outcome) = self.stop_if_asked(hooks)? {
                return Ok(Some(outcome));
            }
            let Some(prepared) = batches.next() else { break };
            let prepared = prepared?;
            let stop = hooks.stop.load(Ordering::Relaxed);
            let (numbers, lr) = self.update(&prepared, num_batches, stop)?;
            let seconds = since.elapsed().as_secs_f64();
            since = Instant::now();
            self.count(&numbers, seconds);
            let record = self.step_record(&numbers, lr, num_batches, seconds);
            hooks.observer.step(&record)?;
            // That of the epoch's last step is written when the epoch is complete: one before it would tell the
            // epoch's end a second time after a resume.
            if self.is_save_due() && self.position.batch < num_batches {
                self.save(hooks, false)?;
            }
        }
        ensure!(self.position.batch > 0, "the epoch has no batch, expected {num_batches}");
        drop(batches);
        self.finish_epoch(hooks, num_batches)?;
        Ok(None)
    }

    /// Quantizes the epoch's fraction of weights, before any of its steps.
    pub(super) fn start_epoch(&mut self) -> Result<()> {
        self.sums = EpochSums::default();
        let epoch = self.position.epoch;
        for index in 0..self.quantizers.len() {
            if let Some(own_epoch) = self.epoch_of_quantizer(index) {
                let step = self.start_quantizer(index, own_epoch);
                step.with_context(|| format!("the quantization step of epoch {}", epoch + 1))?;
            }
        }
        // The average begins with the weights in the unit that the quantizers leave them in.
        if let Some(config) = &self.config.ema
            && self.ema.is_none()
            && epoch >= config.from
        {
            self.ema = Some(Ema::begin(config, self.net.store()));
        }
        self.freeze()
    }

    /// The quantization step of one module at the begin of its epoch.
    fn start_quantizer(&mut self, index: usize, own_epoch: u32) -> Result<()> {
        let (module, quantizer) = &mut self.quantizers[index];
        self.telemetry.before_step(quantizer);
        let start = quantizer.start_epoch(own_epoch)?;
        self.telemetry.after_step(quantizer);
        if module.stage == self.position.stage {
            self.sums.fraction = start.fraction;
        }
        if start.clear_optimizer {
            self.sgd.clear_state();
        }
        Ok(())
    }

    /// The end of the epoch for all modules that learn in it.
    pub(super) fn end_quantizers(&mut self) -> Result<()> {
        let epoch = self.position.epoch;
        for index in 0..self.quantizers.len() {
            if let Some(own_epoch) = self.epoch_of_quantizer(index) {
                let doing = || format!("the end of epoch {} of the quantizers", epoch + 1);
                self.quantizers[index].1.end_epoch(own_epoch).with_context(doing)?;
            }
        }
        Ok(())
    }

    /// Freezes what oscillates, of all modules that watch it.
    fn watch_quantizers(&mut self) -> Result<()> {
        let mut froze = false;
        for (_, quantizer) in &mut self.quantizers {
            froze |= quantizer.watch();
        }
        if froze { self.freeze() } else { Ok(()) }
    }

    /// Does a step with the slices of a batch; its numbers and its learning rate. `stop` says whether this process was asked
    /// to stop, and is told the others.
    pub(super) fn update(
        &mut self,
        slices: &[Prepared],
        num_batches: usize,
        stop: bool,
    ) -> Result<(StepNumbers, f64)> {
        self.watch_quantizers()?;
        let stage = &self.config.stages[self.position.stage];
        let lr = stage.lr.at(LrPlace {
            epoch: self.position.epoch,
            step: self.position.stage_step,
            num_steps: u64::from(stage.epochs) * num_batches as u64,
        });
        let step = Step {
            net: self.net.as_ref(),
            sgd: &mut self.sgd,
            quantizers: &mut self.quantizers,
            task: self.task.as_ref(),
            world: &self.together.world,
            stop,
            stage,
            lr,
            position: &self.position,
            last_checkpoint: self.last_checkpoint.as_deref(),
        };
        let store = step.net.store();
        store.convolve_in_bf16(self.in_bf16);
        let numbers = step.run(slices);
        store.convolve_in_bf16(false);
        let numbers = numbers?;
        self.together.stop_told = numbers.stop;
        if let Some(ema) = &mut self.ema {
            ema.update();
        }
        Ok((numbers, lr))
    }

    fn count(&mut self, numbers: &StepNumbers, seconds: f64) {
        let sums = &mut self.sums;
        sums.steps += 1;
        sums.images += numbers.num_images as u64;
        sums.losses.add(&numbers.losses);
        sums.grad_norm += numbers.grad_norm;
        sums.num_positive += numbers.num_positive as u64;
        sums.seconds += seconds;
        self.position.batch += 1;
        self.position.stage_step += 1;
        self.position.global_step += 1;
    }

    /// The record of the step that was just counted.
    fn step_record(
        &self,
        numbers: &StepNumbers,
        lr: f64,
        num_batches: usize,
        seconds: f64,
    ) -> StepRecord {
        let num_images = numbers.num_images;
        StepRecord {
            global_step: self.position.global_step,
            stage: self.position.stage,
            stage_name: self.stage().label(),
            epoch: self.position.epoch,
            batch: self.position.batch - 1,
            num_batches,
            losses: numbers.losses.clone(),
            loss: numbers.losses.total(),
            lr,
            grad_norm: numbers.grad_norm,
            num_images,
            num_positive: numbers.num_positive,
            images_per_s: num_images as f64 / seconds.max(1e-9),
        }
    }

    /// Whether a checkpoint is to be written after this step.
    fn is_save_due(&self) -> bool {
        let every = self.config.ckpt_every_steps;
        every.is_some_and(|every| self.position.global_step.is_multiple_of(every))
    }

    fn finish_epoch(&mut self, hooks: &mut Hooks<'_>, num_batches: usize) -> Result<()> {
        self.end_quantizers()?;
        if !self.world().is_alone() {
            ensure_equal(self.world(), &self.checkpoint())?;
        }
        self.position.global_epoch += 1;
        hooks.observer.epoch(&self.epoch_record(num_batches))?;
        for record in self.measure()? {
            hooks.observer.telemetry(&record)?;
        }
        self.position.epoch += 1;
        self.position.batch = 0;
        self.sums = EpochSums::default();

        let done = self.position.epoch;
        let last = done >= self.stage().epochs;
        let mut best = false;
        if last || done.is_multiple_of(self.config.valid_every) {
            best = self.validate(hooks)?;
        }
        if last || best || done.is_multiple_of(self.config.ckpt_every) || self.is_save_due() {
            self.save(hooks, best)?;
        }
        Ok(())
    }

    fn epoch_record(&self, num_batches: usize) -> EpochRecord {
        let sums = &self.sums;
        let stage = self.stage();
        let steps = sums.steps.max(1) as f64;
        let lr = stage.lr.at(LrPlace {
            epoch: self.position.epoch,
            step: self.position.stage_step.saturating_sub(1),
            num_steps: u64::from(stage.epochs) * num_batches as u64,
        });
        EpochRecord {
            global_step: self.position.global_step,
            global_epoch: self.position.global_epoch,
            stage: self.position.stage,
            stage_name: stage.label(),
            epoch: self.position.epoch,
            num_epochs: stage.epochs,
            steps: sums.steps,
            losses: sums.losses.over(steps),
            loss: sums.losses.total() / steps,
            grad_norm: sums.grad_norm / steps,
            positive_per_image: sums.num_positive as f64 / sums.images.max(1) as f64,
            lr,
            quantized_fraction: sums.fraction,
            frozen_fraction: self.frozen_fraction(),
            images_per_s: sums.images as f64 / sums.seconds.max(1e-9),
        }
    }

    /// What quantization did in the epoch that ends to the modules that learn in it.
    fn measure(&mut self) -> Result<Vec<TelemetryRecord>> {
        let mut records = Vec::new();
        for (module, quantizer) in &self.quantizers {
            if !module.learns_in(self.position.stage) {
                continue;
            }
            let since = Instant::now();
            let measured = self.telemetry.measure(quantizer)?;
            if measured.layers.is_empty() {
                continue;
            }
            records.push(TelemetryRecord {
                global_step: self.position.global_step,
                global_epoch: self.position.global_epoch,
                stage: self.position.stage,
                stage_name: self.config.stages[self.position.stage].label(),
                epoch: self.position.epoch,
                seconds: since.elapsed().as_secs_f64(),
                module: measured,
            });
        }
        Ok(records)
    }

    /// Writes a checkpoint and says that the run stops, if it was asked to.
    pub(super) fn stop_if_asked(&mut self, hooks: &mut Hooks<'_>) -> Result<Option<Outcome>> {
        // Of several processes the last step has told whether one was asked, so that all stop after the same step.
        let interrupted = match self.world().is_alone() {
            true => hooks.stop.load(Ordering::Relaxed),
            false => self.together.stop_told,
        };
        let enough = self.config.max_steps.is_some_and(|max| self.position.global_step >= max);
        if !(interrupted || enough) {
            return Ok(None);
        }
        let checkpoint = self.save(hooks, false)?;
        Ok(Some(if interrupted {
            Outcome::Interrupted { checkpoint }
        } else {
            Outcome::MaxSteps { checkpoint }
        }))
    }
}
