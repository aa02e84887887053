//! How a training run looks on the terminal.

use anyhow::Result;

use super::pace::{Left, Pace};
use super::terminal::JobProgress;
use crate::eval::row_label;
use crate::quant::telemetry::Numbers;
use crate::train::{
    BatchNormRecord, CheckpointRecord, Counts, EpochRecord, Monitored, NamedLosses, Observer,
    StageEnd, StageStart, StepRecord, TelemetryRecord, ValidRecord, ValidScore,
};

/// Bars and log lines of a training run.
#[derive(Default)]
pub(super) struct TrainView {
    epoch: Option<JobProgress>,
    /// Epochs of the stages of the run, in order.
    epochs: Vec<u32>,
    pace: Option<Pace>,
    num_epochs: u32,
    /// A stage and its first loss that was seen.
    begin: Option<(usize, f64)>,
}

/// How many times its begin the mean loss of an epoch is when training diverges.
const DIVERGED: f64 = 3.0;

impl TrainView {
    fn end_bar(&mut self) {
        if let Some(bar) = self.epoch.take() {
            bar.finish();
        }
    }

    /// What is left of stage and run after a step; the first one of a stage begins the measuring.
    fn left(&mut self, step: &StepRecord) -> Option<Left> {
        let done = f64::from(step.epoch) + (step.batch + 1) as f64 / step.num_batches as f64;
        let later = self.epochs.iter().skip(step.stage + 1).map(|&n| u64::from(n)).sum();
        self.pace.get_or_insert_with(|| Pace::start(done, self.num_epochs, later)).left(done)
    }
}

impl Observer for TrainView {
    fn run_start(&mut self, epochs: &[u32]) -> Result<()> {
        self.epochs = epochs.to_vec();
        Ok(())
    }

    fn stage_start(&mut self, start: &StageStart) -> Result<()> {
        let quantized: usize = start.sites.iter().filter(|s| s.num_levels.is_some()).count();
        let resumed = match start.epoch {
            0 => String::new(),
            epoch => format!(" resumed after epoch {epoch};"),
        };
        tracing::info!(
            "stage {} ({}):{resumed} {} epochs of {} steps, {:.2} M trainable parameters, {quantized} quantized layers",
            start.stage,
            start.name,
            start.num_epochs,
            start.num_batches,
            start.num_trainable as f64 / 1e6,
        );
        (self.pace, self.num_epochs) = (None, start.num_epochs);
        Ok(())
    }

    fn step(&mut self, step: &StepRecord) -> Result<()> {
        tracing::debug!(
            step = step.global_step,
            loss = step.loss,
            losses = losses_text(&step.losses),
            lr = step.lr,
            grad_norm = step.grad_norm,
            positive = step.num_positive,
            "step"
        );
        if self.begin.is_none_or(|(stage, _)| stage != step.stage) {
            self.begin = Some((step.stage, step.loss));
        }
        let done = step.batch as u64;
        let left = self.left(step);
        let num_epochs = self.num_epochs;
        let bar = self.epoch.get_or_insert_with(|| {
            let name = format!("{} epoch {}/{num_epochs}", step.stage_name, step.epoch + 1);
            JobProgress::start(&name, "steps", step.num_batches as u64, done)
        });
        let left = left.map_or(String::new(), |left| format!(", {}", left.text()));
        let note = format!("loss {:.4}, {:.1} images/s{left}", step.loss, step.images_per_s);
        bar.at(done + 1, &note);
        Ok(())
    }

    fn epoch(&mut self, epoch: &EpochRecord) -> Result<()> {
        self.end_bar();
        let fraction = epoch.frozen_fraction.filter(|_| epoch.quantized_fraction.is_some());
        let frozen = fraction.map_or(String::new(), |s| format!(", {:.2} % frozen", s * 100.0));
        tracing::info!(
            "{} epoch {}/{}: loss {:.4} ({}), lr {:.2e}, gradient norm {:.2}{frozen}, {:.1} images/s",
            epoch.stage_name,
            epoch.epoch + 1,
            epoch.num_epochs,
            epoch.loss,
            losses_text(&epoch.losses),
            epoch.lr,
            epoch.grad_norm,
            epoch.images_per_s,
        );
        if let Some((_, begin)) = self.begin.filter(|(_, begin)| epoch.loss > DIVERGED * begin) {
            tracing::warn!(
                "the loss is {:.1} times what it was at the begin of stage {} ({begin:.4}): training diverges; stop it \
                 and lower the learning rate (lr.base of the stage), now {:.1e}",
                epoch.loss / begin,
                epoch.stage_name,
                epoch.lr
            );
        }
        Ok(())
    }

    fn telemetry(&mut self, telemetry: &TelemetryRecord) -> Result<()> {
        let module = &telemetry.module;
        tracing::info!("{}: {}", module.module, telemetry_text(&module.numbers));
        for layer in &module.layers {
            tracing::debug!("{}: {}", layer.name, telemetry_text(&layer.numbers));
        }
        Ok(())
    }

    fn batch_norm(&mut self, estimate: &BatchNormRecord) -> Result<()> {
        let BatchNormRecord { largest_shift, num_layers, num_batches, seconds, .. } = estimate;
        tracing::info!(
            "batch norms: statistics of {num_layers} layers estimated again on {num_batches} training batches in \
             {seconds:.1} s; the largest shift of a mean was {:.2} sd ({})",
            largest_shift.mean_shift_sd,
            largest_shift.layer
        );
        Ok(())
    }

    fn validation(&mut self, valid: &ValidRecord) -> Result<()> {
        let is_percent = valid.score.name.contains("ADI") || valid.score.name.ends_with('%');
        let best = match valid.best {
            true if is_percent && valid.score.value == 0.0 => ", not one right yet",
            true => ", best so far",
            false => "",
        };
        let averaged = if valid.averaged { " of the averaged weights" } else { "" };
        tracing::info!(
            "validation: {} {:.1}{}{averaged}{best}{}",
            row_label(&valid.score.name),
            valid.score.value,
            if is_percent { " %" } else { "" },
            measured(&valid.score)
        );
        for (name, value) in &valid.score.details {
            tracing::debug!("validation: {name} {value:.1}");
        }
        for (name, count) in valid.score.counts.iter().flat_map(Counts::named) {
            tracing::debug!("validation: {name} {count}");
        }
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &CheckpointRecord) -> Result<()> {
        tracing::debug!(step = checkpoint.global_step, "checkpoint {}", checkpoint.path.display());
        Ok(())
    }

    fn stage_end(&mut self, end: &StageEnd) -> Result<()> {
        self.end_bar();
        for site in &end.sites {
            if let Some(num_levels) = site.num_levels {
                tracing::debug!(
                    "{}: {} {} bits, {num_levels} levels ({} in use), scale {:?}, {:.1} % frozen",
                    site.name,
                    site.method,
                    site.bits,
                    site.levels_in_use,
                    site.scale,
                    site.frozen_fraction * 100.0
                );
            }
        }
        let quantized = end.sites.iter().filter(|s| s.num_levels.is_some()).count();
        let audit = if quantized > 0 {
            format!(", every weight of its {quantized} quantized layers on its levels")
        } else {
            String::new()
        };
        tracing::info!(
            "stage {} ({}) complete{audit}: {}",
            end.stage,
            end.name,
            end.checkpoint.display()
        );
        Ok(())
    }

    fn message(&mut self, text: &str) -> Result<()> {
        tracing::warn!("{text}");
        Ok(())
    }
}

/// `cls 0.1234, reg 0.0123`.
fn losses_text(losses: &NamedLosses) -> String {
    let parts: Vec<String> = losses.iter().map(|(name, v)| format!("{name} {v:.4}")).collect();
    parts.join(", ")
}

/// What else a validation measured, for a line: objects found, median errors, the loss.
fn measured(score: &ValidScore) -> String {
    let counts = score.counts.map(|c| format!("found {} of {}", c.found, c.objects));
    let detail = |measure: Monitored, decimals: usize| {
        let name = measure.detail().filter(|name| *name != score.name)?;
        Some(format!("{name} {:.decimals$}", score.detail(name)?))
    };
    let parts = [
        counts,
        detail(Monitored::RotationError, 1),
        detail(Monitored::TranslationError, 1),
        detail(Monitored::Loss, 4),
    ];
    parts.into_iter().flatten().map(|part| format!("; {part}")).collect()
}

/// The numbers that are known, in a line.
fn telemetry_text(numbers: &Numbers) -> String {
    let percent = |value: Option<f64>, what: &str| Some(format!("{:.2} % {what}", 100.0 * value?));
    let drift = |value: Option<f64>| {
        let value = value.filter(|&v| v != 0.0)?;
        Some(format!("scale moved by {:.2} %", 100.0 * value))
    };
    let parts = [
        percent(numbers.frozen_fraction, "frozen"),
        percent(numbers.flip_rate, "changed level"),
        percent(numbers.oscillation, "changed back"),
        numbers.num_frozen_by_oscillation.map(|n| format!("{n} frozen for oscillating")),
        drift(numbers.scale_drift),
        numbers.sqnr_db.map(|db| format!("SQNR {db:.1} dB")),
        percent(numbers.zero_fraction, "zero"),
        numbers.levels_in_use.map(|n| format!("{n} levels in use")),
    ];
    let known: Vec<String> = parts.into_iter().flatten().collect();
    if known.is_empty() { "no levels yet".to_owned() } else { known.join(", ") }
}
