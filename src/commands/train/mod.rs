//! `mqat train`: a run from its config to its last checkpoint.

mod setup;
mod source;

use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use tch::Device;

use setup::{Setup, existing_folder};
use source::Source;

use super::shared::infer_together;
use super::test::nothing_left;
use crate::artifact::StartFrom;
use crate::artifact::pretrained::{load_pretrained, teacher};
use crate::data::{Dataset, Split, sequence_of};
use crate::eval::{EvaluationInfo, evaluate};
use crate::io;
use crate::nn::{Network, device_name};
use crate::pose::{EvalTable, Outcomes};
use crate::run::config::{Config, Precision};
use crate::run::flow::FlowSource;
use crate::run::folder::{Folder, Pretrained, Provenance, Start, StartEnd};
use crate::run::home::Home;
use crate::run::machine::Machine;
use crate::run::options::{decoder_for, infer_options, task_with};
use crate::run::record::{CompletedStage, Recorder, make_plots_folder};
use crate::run::request::{Request, is_synthetic};
use crate::run::{objects, starts};
use crate::train::{
    Counts, Hooks, Monitored, Observer, Outcome, ResumeFrom, RunInfo, TrainConfig, Trainer,
    ValidScore,
};
use crate::world::World;

/// What `mqat train` is asked.
#[derive(Debug, Clone)]
pub struct TrainRequest {
    /// Config, places, device.
    pub run: Request,
    /// A flow instead of the config's.
    pub flow: Option<FlowSource>,
    /// Pretrained weights instead of the config's.
    pub from: Option<StartFrom>,
    /// Number of the experiment.
    pub exp_id: Option<u32>,
    /// Go on with an experiment instead of starting one.
    pub resume: Option<ResumeFrom>,
    /// Checkpoints every so many epochs instead of the config's.
    pub ckpt_every: Option<u32>,
    /// Checkpoints every so many steps instead of the config's.
    pub ckpt_every_steps: Option<u64>,
    /// Epochs of every stage that has not ended instead of the config's; schedules are stretched.
    pub epochs: Option<u32>,
    /// Images of a step in every stage that has not ended instead of the config's.
    pub batch_size: Option<usize>,
    /// Stop after so many steps in all instead of the config's.
    pub max_steps: Option<u64>,
    /// Pretrained weights need not fill the whole network.
    pub loose: bool,
    /// Begin the experiment `exp_id`, or go on with it where it has begun with the same config.
    pub begin_or_resume: bool,
    /// Pieces that a process computes its part of a batch in, one after the other.
    pub accumulate: usize,
}

/// What `mqat train` did.
#[derive(Debug, Serialize)]
pub struct TrainReport {
    /// The experiment's folder.
    #[serde(serialize_with = "crate::io::path_text")]
    pub folder: PathBuf,
    /// Its number.
    pub exp_id: u32,
    /// How it ended.
    pub outcome: Ended,
    /// The last checkpoint.
    #[serde(serialize_with = "crate::io::path_text")]
    pub checkpoint: PathBuf,
    /// Steps of the run.
    pub global_step: u64,
    /// Whether the data are rendered.
    pub synthetic_data: bool,
    /// The stages that were completed by this process, with their layers' levels.
    pub stages: Vec<CompletedStage>,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// All stages are complete.
    Finished,
    /// It was asked to stop; resume it.
    Interrupted,
    /// The largest number of steps was reached.
    MaxSteps,
}

impl Ended {
    /// How it ended, and its last checkpoint.
    fn of(outcome: Outcome) -> (Self, PathBuf) {
        match outcome {
            Outcome::Finished { checkpoint } => (Self::Finished, checkpoint),
            Outcome::Interrupted { checkpoint } => (Self::Interrupted, checkpoint),
            Outcome::MaxSteps { checkpoint } => (Self::MaxSteps, checkpoint),
        }
    }

    /// As it is written.
    fn name(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::Interrupted => "interrupted",
            Self::MaxSteps => "max_steps",
        }
    }
}

/// Trains, or goes on with a run, together with the other processes of `world`. Process 0 writes the run's files.
///
/// # Errors
/// If the config, the dataset, the checkpoint or the device cannot be used, or the training fails; what was written
/// until the last checkpoint stays and can be resumed. If processes differ in what they train, or one is lost.
pub fn train(
    request: &TrainRequest,
    world: &Rc<World>,
    view: &mut dyn Observer,
    stop: &AtomicBool,
) -> Result<TrainReport> {
    let setup = world.all_succeeded(Setup::new(request, world))?;
    setup.ensure_same(world)?;
    let Setup {
        request,
        home,
        config,
        document,
        device,
        training,
        validation,
        net,
        mut pretrained,
        prints,
    } = setup;
    let request = &request;
    let mut _lock = None;
    let folder = world.from_first(|| {
        let folder = open_folder(request, &home)?;
        _lock = Some(folder.lock()?);
        starts::remove_leftovers(&folder)?;
        Ok(folder)
    })?;

    let teacher = teacher(&config, device)?;
    let task = task_with(&config, &training, config.experiment.seed, teacher)?;
    let run = RunInfo {
        seed: config.experiment.seed,
        checkpoints: folder.checkpoints(),
        config: document.clone(),
        data: prints.clone(),
        objects: objects::of_dataset(&training, &config.data)?,
    };
    let trainer = Trainer::new(net, saving(&config, request), task, run)?;
    let mut trainer = trainer
        .with_world(world.clone(), request.accumulate)
        .with_bf16(config.runtime.precision == Precision::Bf16);
    let mut recorder = Recorder::new(folder.clone(), view);
    recorder.view().folder(&folder.path)?;
    warn_of_few_images(&config, world, request.accumulate);
    let mut observer: &mut dyn Observer =
        if world.is_first() { &mut recorder } else { recorder.view() };
    if let Some(from) = &request.resume
        && trainer.resume(from, observer)?.is_none()
        && config.experiment.pretrained
    {
        // It was killed before its first checkpoint and begins anew.
        pretrained = Some(load_pretrained(trainer.net(), &config)?);
        trainer.begin_anew()?;
    }
    // A resume that is refused leaves the run as it was.
    let provenance = provenance(&config, device, &training, pretrained);
    world.from_first(|| {
        let machine = Machine::here(device);
        let start = Start { machine: Some(machine), data: prints, ..Start::now(None) };
        write_head(request, &folder, &document, provenance, start)
    })?;
    if request.resume.is_some() {
        // The config of what was trained is that of a start that trains.
        recorder.keep_config(document);
    }
    observer = if world.is_first() { &mut recorder } else { recorder.view() };
    let synthetic_data = is_synthetic(&training.root);
    let mut source = Source {
        config: &config,
        dataset: training,
        validation: validation.clone(),
        skip_bad: request.run.skip_bad,
        world,
    };
    let skip_bad = request.run.skip_bad;
    let mut validate =
        |net: &dyn Network, _: &_| validate(net, &config, &validation, device, skip_bad, world);
    let hooks = Hooks { source: &mut source, validate: &mut validate, observer, stop };
    let began = Instant::now();
    let outcome = trainer.run(hooks)?;
    let seconds = began.elapsed().as_secs_f64();
    let global_step = trainer.position().global_step;
    let (outcome, checkpoint) = Ended::of(outcome);
    let end = StartEnd { seconds, outcome: outcome.name().to_owned() };
    world.from_first(|| Provenance::record_end(&folder.provenance(), end))?;
    Ok(TrainReport {
        folder: folder.path.clone(),
        exp_id: folder.id,
        outcome,
        checkpoint,
        global_step,
        synthetic_data,
        stages: recorder.take_stages(),
    })
}

/// The stages, with when to save and stop as the flags of this start say; these are not part of the run's config.
fn saving(config: &Config, request: &TrainRequest) -> TrainConfig {
    let mut train = config.train_config();
    train.ckpt_every = request.ckpt_every.unwrap_or(train.ckpt_every);
    train.ckpt_every_steps = request.ckpt_every_steps.or(train.ckpt_every_steps);
    train.max_steps = request.max_steps.or(train.max_steps);
    train
}

fn open_folder(request: &TrainRequest, home: &Home) -> Result<Folder> {
    let select = &request.run.select;
    match request.resume {
        Some(_) => existing_folder(request, home),
        None => {
            let (problem, topology) = (select.problem(), select.topology());
            // One that was stopped before it began.
            if let Some(id) = request.exp_id.filter(|_| request.begin_or_resume) {
                let folder = Folder::numbered(&home.logs, problem, topology, id)?;
                if folder.path.is_dir() && !folder.config().exists() {
                    return Ok(folder);
                }
            }
            Folder::create(&home.logs, problem, topology, request.exp_id)
        }
    }
}

/// What is recorded of a run whose starts are not yet known.
fn provenance(
    config: &Config,
    device: Device,
    training: &Dataset,
    pretrained: Option<Pretrained>,
) -> Provenance {
    Provenance {
        mqat: env!("CARGO_PKG_VERSION").to_owned(),
        libtorch: crate::run::device::LIBTORCH_VERSION.to_owned(),
        seed: config.experiment.seed,
        device: device_name(device),
        threads: tch::get_num_threads(),
        precision: config.runtime.precision,
        dataset: std::path::absolute(&training.root).unwrap_or_else(|_| training.root.clone()),
        pretrained,
        starts: Vec::new(),
    }
}

/// Writes the provenance, the config of this start, and for a new run the config of the run.
fn write_head(
    request: &TrainRequest,
    folder: &Folder,
    document: &Value,
    provenance: Provenance,
    start: Start,
) -> Result<()> {
    make_plots_folder(folder)?;
    let resumed = request.resume.as_ref().map(|from| format!("{from:?}").to_lowercase());
    let number = Provenance::of(folder)?.map_or(0, |before| before.starts.len());
    let config = starts::record(folder, number, document)?;
    let start = Start {
        dataset: Some(provenance.dataset.to_string_lossy().into_owned()),
        config: Some(config.to_string_lossy().into_owned()),
        resumed_from: resumed,
        ..start
    };
    if request.resume.is_none() {
        io::write_json(&folder.config(), document)?;
    }
    provenance.record(&folder.provenance(), start)?;
    tracing::info!("experiment {}", folder.path.display());
    Ok(())
}

/// Says where batch norms normalise by few images.
fn warn_of_few_images(config: &Config, world: &World, accumulate: usize) {
    const FEW: usize = 4;
    let parts = world.size() * accumulate;
    for stage in config.train_config().stages.iter().filter(|stage| !stage.freeze_bn) {
        let images = stage.batch_size.unwrap_or(config.data.bs_train) / parts;
        if parts > 1 && images < FEW && world.is_first() {
            tracing::warn!(
                "stage {}: batch norms normalise by {images} images, a process's own, fewer than {FEW}: take larger batches or \
                 fewer processes, or set the stage's freeze_bn",
                stage.label()
            );
        }
    }
}

/// Scores the network on the validation split; the headline chooses the best checkpoint.
fn validate(
    net: &dyn Network,
    config: &Config,
    dataset: &Arc<Dataset>,
    device: Device,
    skip_bad: bool,
    world: &World,
) -> Result<Option<ValidScore>> {
    let options = infer_options(config, device, skip_bad);
    let decoder = decoder_for(config, dataset)?;
    let inference = infer_together(world, net, decoder.as_ref(), dataset, &options, |_| ())?;
    if let Some(nothing) = nothing_left(dataset, &inference.left_out) {
        tracing::warn!("nothing to validate: {}: {nothing}", config.data.list(Split::Valid));
    }
    let info = EvaluationInfo {
        name: "validation",
        list: config.data.list(Split::Valid),
        left_out: &inference.left_out,
        timing: Some(inference.timing),
    };
    let evaluation =
        evaluate(dataset, &config.data, &inference.predictions, &config.evaluation, info)?;
    let table = &evaluation.report.table;
    let Some(value) = evaluation.report.headline_percent else { return Ok(None) };
    let last = table.bins.len().saturating_sub(1);
    let mut details = Vec::new();
    let medians = [
        (Monitored::RotationError, &table.all.median_re_deg),
        (Monitored::TranslationError, &table.all.median_te_mm),
    ];
    for (measure, of_bins) in medians {
        if let (Some(name), Some(Some(median))) = (measure.detail(), of_bins.get(last)) {
            details.push((name.to_owned(), *median));
        }
    }
    for row in [EvalTable::HEADLINE, EvalTable::TRUE_ADI, "REP-5px"] {
        for (i, bin) in table.bins.iter().enumerate() {
            if let Some(percent) = table.all.recall(row, i).and_then(|r| r.percent) {
                details.push((format!("{row} {}", bin.name), percent));
            }
        }
    }
    // The counts behind the headline, for intervals.
    let found = table.all.num_found.last().copied().unwrap_or(0);
    let recall = table.all.recall(EvalTable::HEADLINE, last);
    let counts = recall.map(|r| Counts { correct: r.num_correct, objects: r.num_targets, found });
    if let (Some(name), Some(counts)) = (Monitored::Found.detail(), counts)
        && counts.objects > 0
    {
        details.push((name.to_owned(), 100.0 * counts.found as f64 / counts.objects as f64));
    }
    let name = EvalTable::HEADLINE.to_owned();
    let objects = evaluation.errors.iter().map(|e| (sequence_of(&e.image), e.is_right()));
    let outcomes = Outcomes::new(objects).into_text();
    Ok(Some(ValidScore { name, value, higher_is_better: true, counts, details, outcomes }))
}
