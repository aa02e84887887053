//! What a run writes about itself: metrics.jsonl, TensorBoard events, plots.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::io::chart::{Chart, Series};
use crate::io::events::EventWriter;
use crate::io::{write_atomic, write_json};
use crate::quant::SiteReport;
use crate::run::folder::Folder;
use crate::train::{
    BatchNormRecord, CheckpointRecord, Counts, EpochRecord, Monitored, Observer, Record, StageEnd,
    StageStart, StepRecord, TelemetryRecord, ValidRecord,
};

/// Steps between two lines of steps in the files; the first steps are all written.
const STEP_EVERY: u64 = 10;

/// A stage that a process completed.
#[derive(Debug, Clone, Serialize)]
pub struct CompletedStage {
    /// The stage, from 0.
    pub stage: usize,
    /// Its name.
    pub name: String,
    /// Steps of the run at its end.
    pub global_step: u64,
    /// The checkpoint of its end.
    #[serde(serialize_with = "crate::io::path_text")]
    pub checkpoint: PathBuf,
    /// The layers of all modules that carry quantizers.
    pub layers: Vec<SiteReport>,
}

/// Writes a run's files and tells `view` what happens.
pub(crate) struct Recorder<'a> {
    folder: Folder,
    view: &'a mut dyn Observer,
    metrics: Option<BufWriter<fs::File>>,
    events: Option<EventWriter>,
    stages: Vec<CompletedStage>,
    /// The config of a resumed run, to be kept once it trains.
    config: Option<Value>,
    /// The stage whose end was written by an earlier process, when a run is resumed right there.
    ended_before: Option<usize>,
}

impl<'a> Recorder<'a> {
    pub(crate) fn new(folder: Folder, view: &'a mut dyn Observer) -> Self {
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

    /// Who is told besides the files.
    pub(crate) fn view(&mut self) -> &mut dyn Observer {
        self.view
    }

    /// Keeps `config` as that of the run, once a step is done with it.
    pub(crate) fn keep_config(&mut self, config: Value) {
        self.config = Some(config);
    }

    /// The ends of the stages that this process completed.
    pub(crate) fn take_stages(&mut self) -> Vec<CompletedStage> {
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

    fn line(&mut self, record: &Record) -> Result<()> {
        let path = self.folder.metrics();
        let out = self.metrics.as_mut().context("a record before the first stage began")?;
        let writing = || format!("writing a line of {}", path.display());
        serde_json::to_writer(&mut *out, record).with_context(writing)?;
        writeln!(out).with_context(writing)
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
    fn run_start(&mut self, epochs: &[u32]) -> Result<()> {
        self.view.run_start(epochs)
    }

    fn stage_start(&mut self, start: &StageStart) -> Result<()> {
        if self.metrics.is_none() {
            self.open(start.global_step)?;
        }
        // A stage that is complete does not begin again, unless it has got more epochs.
        if start.epoch < start.num_epochs {
            self.ended_before = None;
        }
        if self.ended_before != Some(start.stage) {
            self.line(&Record::StageStart(start.clone()))?;
            self.flush()?;
        }
        self.view.stage_start(start)
    }

    fn step(&mut self, step: &StepRecord) -> Result<()> {
        if let Some(config) = self.config.take() {
            write_json(&self.folder.config(), &config)?;
        }
        if step.global_step <= STEP_EVERY || step.global_step.is_multiple_of(STEP_EVERY) {
            self.line(&Record::Step(step.clone()))?;
            self.scalars(step.global_step, &[("train/loss", step.loss)])?;
            for (name, value) in step.losses.iter() {
                self.scalars(step.global_step, &[(&format!("train/loss_{name}"), value)])?;
            }
            self.scalars(
                step.global_step,
                &[
                    ("train/lr", step.lr),
                    ("train/grad_norm", step.grad_norm),
                    ("train/images_per_s", step.images_per_s),
                ],
            )?;
        }
        self.view.step(step)
    }

    fn epoch(&mut self, epoch: &EpochRecord) -> Result<()> {
        self.line(&Record::Epoch(epoch.clone()))?;
        self.scalars(epoch.global_step, &[("epoch/loss", epoch.loss), ("epoch/lr", epoch.lr)])?;
        let fractions = [
            ("quantize/fraction", epoch.quantized_fraction),
            ("quantize/frozen_fraction", epoch.frozen_fraction),
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
        self.line(&Record::Telemetry(telemetry.clone()))?;
        let module = &telemetry.module.module;
        for (name, value) in telemetry.module.numbers.known() {
            self.scalars(telemetry.global_step, &[(&format!("quantize/{module}/{name}"), value)])?;
        }
        self.view.telemetry(telemetry)
    }

    fn batch_norm(&mut self, estimate: &BatchNormRecord) -> Result<()> {
        self.line(&Record::BatchNorm(estimate.clone()))?;
        let BatchNormRecord { largest_shift, largest_variance_ratio, .. } = estimate;
        self.scalars(
            estimate.global_step,
            &[
                ("batch_norm/mean_shift_sd", largest_shift.mean_shift_sd),
                ("batch_norm/variance_ratio", largest_variance_ratio.variance_ratio),
            ],
        )?;
        self.view.batch_norm(estimate)
    }

    fn validation(&mut self, valid: &ValidRecord) -> Result<()> {
        self.line(&Record::Validation(valid.clone()))?;
        let score = &valid.score;
        let counts = score.counts.iter().flat_map(Counts::named);
        let all = std::iter::once((score.name.as_str(), score.value))
            .chain(score.details.iter().map(|(name, value)| (name.as_str(), *value)))
            .chain(counts.map(|(name, count)| (name, count as f64)));
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
            self.line(&Record::StageEnd(end.clone()))?;
        }
        self.flush()?;
        draw(&self.folder)?;
        self.stages.push(CompletedStage {
            stage: end.stage,
            name: end.name.clone(),
            global_step: end.global_step,
            checkpoint: end.checkpoint.clone(),
            layers: end.sites.clone(),
        });
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

/// Keeps the records of a metrics file up to a step; a torn last line goes too. Returns the stage that ended at that step.
///
/// # Errors
/// If the file cannot be read or written, or a line is not a record.
fn keep_up_to(path: &Path, global_step: u64) -> Result<Option<usize>> {
    let mut kept = Vec::new();
    let mut ended = None;
    for record in Record::read_all(path)? {
        let here = record.global_step() == global_step;
        if record.global_step() < global_step || (here && !matches!(record, Record::StageStart(_)))
        {
            serde_json::to_writer(&mut kept, &record).context("writing a record")?;
            kept.push(b'\n');
        }
        if let (true, Record::StageEnd(end)) = (here, &record) {
            ended = Some(end.stage);
        }
    }
    write_atomic(path, |out| Ok(out.write_all(&kept)?))?;
    Ok(ended)
}

/// Draws the curves of a run from its metrics file.
fn draw(folder: &Folder) -> Result<()> {
    for (name, chart) in charts(&Record::read_all(&folder.metrics())?) {
        if chart.series.iter().all(|s| s.points.is_empty()) {
            continue;
        }
        chart.write_svg(&folder.plots().join(format!("{name}.svg")))?;
        chart.write_png(&folder.plots().join(format!("{name}.png")))?;
    }
    Ok(())
}

/// The charts of a run, each with its file's name.
fn charts(records: &[Record]) -> [(&'static str, Chart); 5] {
    let headline = validations(records).next().map_or("score", |v| v.score.name.as_str());
    let scores = validations(records).map(|v| (v.global_step as f64, v.score.value)).collect();
    let rates = records.iter().filter_map(|record| match record {
        Record::Step(step) => Some((step.global_step as f64, step.lr)),
        _ => None,
    });
    let frozen =
        epochs(records).filter_map(|e| Some((e.global_step as f64, e.frozen_fraction? * 100.0)));
    let chart = |title: &str, y_label: String, log_y: bool, series: Vec<Series>| Chart {
        title: title.to_owned(),
        x_label: "step".to_owned(),
        y_label,
        log_y,
        series,
        marks: stages(records),
    };
    let series = |name: &str, points: Vec<(f64, f64)>| Series { name: name.to_owned(), points };
    [
        ("loss", chart("Training loss", "loss".into(), true, loss_curves(records))),
        (
            "validation",
            chart(
                &format!("Validation {headline}"),
                format!("{headline}, %"),
                false,
                vec![series(headline, scores)],
            ),
        ),
        (
            "validation_errors",
            chart(
                "Median errors of the poses found in validation",
                "deg, mm".into(),
                true,
                [Monitored::RotationError, Monitored::TranslationError]
                    .iter()
                    .filter_map(|measure| measure.detail())
                    .map(|name| series(name, measured(records, name)))
                    .collect(),
            ),
        ),
        (
            "learning_rate",
            chart(
                "Learning rate",
                "learning rate".into(),
                true,
                vec![series("learning rate", rates.collect())],
            ),
        ),
        (
            "frozen",
            chart(
                "Quantized weights of the stage's module",
                "fraction frozen, %".into(),
                false,
                vec![series("frozen", frozen.collect())],
            ),
        ),
    ]
}

/// Where each stage began, by its step, and its name.
fn stages(records: &[Record]) -> Vec<(f64, String)> {
    let mut begins: Vec<(usize, f64, String)> = Vec::new();
    for record in records {
        if let Record::StageStart(start) = record
            && begins.iter().all(|(stage, ..)| *stage != start.stage)
        {
            begins.push((start.stage, start.global_step as f64, start.name.clone()));
        }
    }
    begins.into_iter().map(|(_, step, name)| (step, name)).collect()
}

/// The curve of each loss over the epochs, in the order in which the losses are named.
fn loss_curves(records: &[Record]) -> Vec<Series> {
    let mut curves: Vec<Series> = Vec::new();
    for epoch in epochs(records) {
        for (name, value) in epoch.losses.iter() {
            let point = (epoch.global_step as f64, value);
            match curves.iter_mut().find(|curve| curve.name == name) {
                Some(curve) => curve.points.push(point),
                None => curves.push(Series { name: name.to_owned(), points: vec![point] }),
            }
        }
    }
    curves.push(Series { name: "validation, sum".to_owned(), points: measured(records, "loss") });
    curves.retain(|curve| !curve.points.is_empty());
    curves
}

/// A detail of the validations over the steps.
fn measured(records: &[Record], name: &str) -> Vec<(f64, f64)> {
    let point = |v: &ValidRecord| Some((v.global_step as f64, v.score.detail(name)?));
    validations(records).filter_map(point).collect()
}

fn epochs(records: &[Record]) -> impl Iterator<Item = &EpochRecord> {
    records.iter().filter_map(|record| match record {
        Record::Epoch(epoch) => Some(epoch),
        _ => None,
    })
}

fn validations(records: &[Record]) -> impl Iterator<Item = &ValidRecord> {
    records.iter().filter_map(|record| match record {
        Record::Validation(valid) => Some(valid),
        _ => None,
    })
}

/// The folder of plots, made.
pub(crate) fn make_plots_folder(folder: &Folder) -> Result<PathBuf> {
    let plots = folder.plots();
    fs::create_dir_all(&plots).with_context(|| format!("making the folder {}", plots.display()))?;
    ensure!(plots.is_dir(), "{} is not a directory", plots.display());
    Ok(plots)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(global_step: u64) -> Record {
        Record::Step(StepRecord {
            global_step,
            stage: 0,
            stage_name: "full_precision".into(),
            epoch: 0,
            batch: 0,
            num_batches: 3,
            losses: [("cls", 1.0), ("reg", 0.25)].into(),
            loss: 1.25,
            lr: 0.01,
            grad_norm: 1.0,
            num_images: 4,
            num_positive: 7,
            images_per_s: 100.0,
        })
    }

    fn epoch(global_step: u64) -> Record {
        Record::Epoch(EpochRecord {
            global_step,
            global_epoch: 1,
            stage: 0,
            stage_name: "fpn".into(),
            epoch: 0,
            num_epochs: 2,
            steps: 3,
            losses: [("cls", 2.0), ("edges", 0.5)].into(),
            loss: 2.5,
            grad_norm: 1.0,
            positive_per_image: 7.0,
            lr: 0.01,
            quantized_fraction: Some(0.5),
            frozen_fraction: Some(0.25),
            images_per_s: 100.0,
        })
    }

    fn end(global_step: u64) -> Record {
        let (name, checkpoint) = ("fpn".to_owned(), PathBuf::from("a"));
        Record::StageEnd(StageEnd { stage: 3, name, global_step, checkpoint, sites: vec![] })
    }

    #[test]
    fn a_resumed_run_drops_what_lies_beyond_its_checkpoint() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let write = |records: &[Record]| {
            let lines = records.iter().map(|r| serde_json::to_string(r).unwrap() + "\n");
            fs::write(&path, lines.collect::<String>() + r#"{"kind":"step","global_st"#).unwrap();
        };
        write(&[step(1), step(2), step(3)]);
        assert_eq!(keep_up_to(&path, 2).unwrap(), None);
        assert_eq!(Record::read_all(&path).unwrap(), [step(1), step(2)]);
        write(&[step(1), step(2), end(2)]);
        assert_eq!(keep_up_to(&path, 2).unwrap(), Some(3));
        assert_eq!(Record::read_all(&path).unwrap(), [step(1), step(2), end(2)]);
    }

    #[test]
    fn a_stage_is_marked_once_where_it_began() {
        let begin = |stage: usize, name: &str, epoch: u32, global_step: u64| {
            Record::StageStart(StageStart {
                stage,
                name: name.into(),
                module: None,
                epoch,
                num_epochs: 2,
                num_batches: 3,
                global_step,
                num_trainable: 1,
                sites: vec![],
            })
        };
        let records = [
            begin(0, "full_precision", 0, 0),
            begin(0, "full_precision", 1, 3),
            begin(1, "fpn", 0, 6),
        ];
        let marks = [(0.0, "full_precision".to_owned()), (6.0, "fpn".to_owned())];
        for (_, chart) in charts(&records) {
            assert_eq!(chart.marks, marks);
        }
    }

    #[test]
    fn each_loss_has_a_curve_by_its_name() {
        let charts = charts(&[step(1), epoch(3), epoch(6)]);
        let points = |chart: usize| -> Vec<(&str, &[(f64, f64)])> {
            let series = charts[chart].1.series.iter();
            series.map(|s| (s.name.as_str(), s.points.as_slice())).collect()
        };
        let losses = [("cls", &[(3.0, 2.0), (6.0, 2.0)][..]), ("edges", &[(3.0, 0.5), (6.0, 0.5)])];
        assert_eq!(points(0), losses);
        assert_eq!(points(1), [("score", &[][..])]);
        assert_eq!(points(3), [("learning rate", &[(1.0, 0.01)][..])]);
        assert_eq!(points(4), [("frozen", &[(3.0, 25.0), (6.0, 25.0)][..])]);
    }
}
