//! What a run writes about itself: metrics.jsonl, TensorBoard events, plots.

use std::fs;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::folder::Folder;
use crate::io::chart::{Chart, Series};
use crate::io::events::EventWriter;
use crate::io::{write_atomic, write_json};
use crate::train::{
    CheckpointRecord, EpochRecord, Observer, StageEnd, StageStart, StepRecord, TelemetryRecord,
    ValidRecord,
};

/// Steps between two lines of steps in the files; the first steps are all written.
const STEP_EVERY: u64 = 10;

/// Writes a run's files and tells `view` what happens.
pub(super) struct Recorder<'a> {
    folder: Folder,
    view: &'a mut dyn Observer,
    metrics: Option<BufWriter<fs::File>>,
    events: Option<EventWriter>,
    stages: Vec<Value>,
    /// The config of a resumed run, to be kept once it trains.
    config: Option<Value>,
    /// The stage whose end was written by an earlier process, when a run is resumed right there.
    ended_before: Option<usize>,
}

impl<'a> Recorder<'a> {
    pub(super) fn new(folder: Folder, view: &'a mut dyn Observer) -> Self {
        Self {
            folder,
            view,
            metrics: None,
            events: None,
            stages: Vec::new(),
            config: None,
            ended_before: None,
        }
    }

    /// Keeps `config` as that of the run, once an update is done with it.
    pub(super) fn keep_config(&mut self, config: Value) {
        self.config = Some(config);
    }

    /// The ends of the stages that this process completed.
    pub(super) fn take_stages(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.stages)
    }

    /// Opens the files at the step the run begins with; what a killed run wrote beyond it is dropped.
    fn open(&mut self, global_step: u64) -> Result<()> {
        let path = self.folder.metrics();
        if path.exists() {
            self.ended_before = keep_up_to(&path, global_step)?;
        }
        let file = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .with_context(|| format!("opening {}", path.display()))?;
        self.metrics = Some(BufWriter::new(file));
        let events = self.folder.tensorboard();
        self.events = Some(match global_step {
            0 => EventWriter::open(&events)?,
            step => EventWriter::resume(&events, step as i64 + 1)?,
        });
        Ok(())
    }

    fn line(&mut self, kind: &str, record: &impl Serialize) -> Result<()> {
        let path = self.folder.metrics();
        let out = self.metrics.as_mut().context("a record before the first stage began")?;
        let mut value = serde_json::to_value(record)
            .with_context(|| format!("writing a line of {}", path.display()))?;
        if let Some(map) = value.as_object_mut() {
            map.insert("kind".to_owned(), json!(kind));
        }
        writeln!(out, "{value}").with_context(|| format!("writing {}", path.display()))
    }

    fn flush(&mut self) -> Result<()> {
        if let Some(out) = self.metrics.as_mut() {
            out.flush().with_context(|| format!("writing {}", self.folder.metrics().display()))?;
        }
        self.events.as_mut().map_or(Ok(()), EventWriter::flush)
    }

    fn scalars(&mut self, step: u64, values: &[(&str, f64)]) -> Result<()> {
        let Some(events) = self.events.as_mut() else { return Ok(()) };
        for (tag, value) in values {
            events.scalar(tag, step as i64, *value as f32)?;
        }
        Ok(())
    }
}

impl Observer for Recorder<'_> {
    fn stage_start(&mut self, start: &StageStart) -> Result<()> {
        if self.metrics.is_none() {
            self.open(start.global_step)?;
        }
        // A stage that is complete does not begin again, unless it has got more epochs.
        if start.epoch < start.num_epochs {
            self.ended_before = None;
        }
        if self.ended_before != Some(start.stage) {
            self.line("stage_start", start)?;
            self.flush()?;
        }
        self.view.stage_start(start)
    }

    fn step(&mut self, step: &StepRecord) -> Result<()> {
        if let Some(config) = self.config.take() {
            write_json(&self.folder.config(), &config)?;
        }
        if step.global_step <= STEP_EVERY || step.global_step.is_multiple_of(STEP_EVERY) {
            self.line("step", step)?;
            self.scalars(
                step.global_step,
                &[
                    ("train/loss", step.loss),
                    ("train/loss_cls", step.loss_cls),
                    ("train/loss_reg", step.loss_reg),
                    ("train/lr", step.lr),
                    ("train/grad_norm", step.grad_norm),
                    ("train/images_per_s", step.images_per_s),
                ],
            )?;
        }
        self.view.step(step)
    }

    fn epoch(&mut self, epoch: &EpochRecord) -> Result<()> {
        self.line("epoch", epoch)?;
        self.scalars(epoch.global_step, &[("epoch/loss", epoch.loss), ("epoch/lr", epoch.lr)])?;
        let fractions = [
            ("quantize/fraction", epoch.inq_fraction),
            ("quantize/share_frozen", epoch.share_frozen),
        ];
        for (tag, value) in fractions {
            if let Some(value) = value {
                self.scalars(epoch.global_step, &[(tag, value)])?;
            }
        }
        self.flush()?;
        self.view.epoch(epoch)
    }

    fn telemetry(&mut self, telemetry: &TelemetryRecord) -> Result<()> {
        self.line("telemetry", telemetry)?;
        let module = &telemetry.module.module;
        for (name, value) in telemetry.module.numbers.known() {
            self.scalars(telemetry.global_step, &[(&format!("quantize/{module}/{name}"), value)])?;
        }
        self.view.telemetry(telemetry)
    }

    fn validation(&mut self, valid: &ValidRecord) -> Result<()> {
        self.line("validation", valid)?;
        let score = &valid.score;
        let all = std::iter::once((&score.name, score.value))
            .chain(score.details.iter().map(|(name, value)| (name, *value)));
        for (name, value) in all {
            self.scalars(valid.global_step, &[(&format!("valid/{name}"), value)])?;
        }
        self.flush()?;
        self.view.validation(valid)
    }

    fn before_checkpoint(&mut self) -> Result<()> {
        self.flush()
    }

    fn checkpoint(&mut self, checkpoint: &CheckpointRecord) -> Result<()> {
        self.view.checkpoint(checkpoint)
    }

    fn stage_end(&mut self, end: &StageEnd) -> Result<()> {
        if self.ended_before.take() != Some(end.stage) {
            self.line("stage_end", end)?;
        }
        self.flush()?;
        draw(&self.folder)?;
        self.stages.push(json!({
            "stage": end.stage,
            "name": end.name,
            "global_step": end.global_step,
            "checkpoint": end.checkpoint,
            "layers": end.sites,
        }));
        self.view.stage_end(end)
    }

    fn message(&mut self, text: &str) -> Result<()> {
        self.view.message(text)
    }
}

impl Drop for Recorder<'_> {
    fn drop(&mut self) {
        // After an error that is being reported already; the ordinary ways out flush by themselves.
        if let Err(err) = self.flush() {
            tracing::warn!("{err:#}");
        }
    }
}

/// Keeps the lines of a metrics file up to a step; a torn last line goes too. Returns the stage that ended at that step.
fn keep_up_to(path: &Path, global_step: u64) -> Result<Option<usize>> {
    #[derive(Deserialize)]
    struct Place {
        global_step: u64,
        kind: String,
        stage: Option<usize>,
    }
    let reading = || format!("reading {}", path.display());
    let file = fs::File::open(path).with_context(reading)?;
    let mut kept = Vec::new();
    let mut ended = None;
    for line in BufReader::new(file).split(b'\n') {
        let line = line.with_context(reading)?;
        let Ok(place) = serde_json::from_slice::<Place>(&line) else { continue };
        let here = place.global_step == global_step;
        if place.global_step < global_step || (here && place.kind != "stage_start") {
            kept.extend_from_slice(&line);
            kept.push(b'\n');
        }
        if here && place.kind == "stage_end" {
            ended = place.stage;
        }
    }
    write_atomic(path, |out| Ok(out.write_all(&kept)?))?;
    Ok(ended)
}

/// The lines of a metrics file.
///
/// # Errors
/// If it cannot be read, or a line is no JSON.
fn read_lines(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.lines()
        .enumerate()
        .map(|(i, line)| {
            serde_json::from_str(line).with_context(|| format!("{}:{}", path.display(), i + 1))
        })
        .collect()
}

/// Draws the curves of a run from its metrics file.
fn draw(folder: &Folder) -> Result<()> {
    let lines = read_lines(&folder.metrics())?;
    let curve = |kind: &str, name: &str, x: &str, y: &str, scale: f64| Series {
        name: name.to_owned(),
        points: lines
            .iter()
            .filter(|l| l["kind"] == kind)
            .filter_map(|l| Some((l[x].as_f64()?, l.pointer(y)?.as_f64()? * scale)))
            .collect(),
    };
    let headline = lines
        .iter()
        .find(|l| l["kind"] == "validation")
        .and_then(|l| l["score"]["name"].as_str())
        .unwrap_or("score")
        .to_owned();
    let charts = [
        (
            "loss",
            Chart {
                title: "Training loss".into(),
                x_label: "step".into(),
                y_label: "loss".into(),
                log_y: true,
                series: vec![
                    curve("epoch", "classification", "global_step", "/loss_cls", 1.0),
                    curve("epoch", "regression", "global_step", "/loss_reg", 1.0),
                ],
            },
        ),
        (
            "validation",
            Chart {
                title: format!("Validation {headline}"),
                x_label: "step".into(),
                y_label: format!("{headline}, %"),
                log_y: false,
                series: vec![curve("validation", &headline, "global_step", "/score/value", 1.0)],
            },
        ),
        (
            "learning_rate",
            Chart {
                title: "Learning rate".into(),
                x_label: "step".into(),
                y_label: "learning rate".into(),
                log_y: true,
                series: vec![curve("step", "learning rate", "global_step", "/lr", 1.0)],
            },
        ),
        (
            "frozen",
            Chart {
                title: "Quantized weights of the stage's module".into(),
                x_label: "step".into(),
                y_label: "share frozen, %".into(),
                log_y: false,
                series: vec![curve("epoch", "frozen", "global_step", "/share_frozen", 100.0)],
            },
        ),
    ];
    for (name, chart) in charts {
        if chart.series.iter().all(|s| s.points.is_empty()) {
            continue;
        }
        chart.write_svg(&folder.plots().join(format!("{name}.svg")))?;
        chart.write_png(&folder.plots().join(format!("{name}.png")))?;
    }
    Ok(())
}

/// The folder of plots, made.
pub(super) fn make_plots_folder(folder: &Folder) -> Result<PathBuf> {
    let plots = folder.plots();
    fs::create_dir_all(&plots).with_context(|| format!("making the folder {}", plots.display()))?;
    ensure!(plots.is_dir(), "{} is no folder", plots.display());
    Ok(plots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resumed_run_drops_what_lies_beyond_its_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let lines = [
            r#"{"kind":"stage_start","global_step":0}"#,
            r#"{"kind":"step","global_step":1,"loss":1.5}"#,
            r#"{"kind":"step","global_step":2,"loss":1.25}"#,
            r#"{"kind":"step","global_step":3,"loss":1.0}"#,
            r#"{"kind":"step","global_st"#,
        ];
        fs::write(&path, lines.join("\n")).unwrap();
        keep_up_to(&path, 2).unwrap();
        let kept = read_lines(&path).unwrap();
        assert_eq!(kept.len(), 3);
        assert_eq!(kept[2]["loss"], 1.25);
    }
}
