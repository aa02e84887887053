//! `mqat train`: a run from its config to its last checkpoint.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;
use tch::Device;

use super::shared::infer_together;
use super::test::nothing_left;
use crate::artifact::StartFrom;
use crate::artifact::network::new_network;
use crate::artifact::pretrained::{load_pretrained, teacher};
use crate::data::{Dataset, Loader, LoaderOptions, Purpose, Share, Split, sequence_of};
use crate::eval::{EvaluationInfo, evaluate};
use crate::io;
use crate::nn::{Network, device_name};
use crate::pose::{EvalTable, Outcomes};
use crate::run::config::{Config, Select};
use crate::run::flow::FlowSource;
use crate::run::folder::{Folder, Pick, Pretrained, Provenance, Start, StartEnd};
use crate::run::home::Home;
use crate::run::machine::Machine;
use crate::run::options::{decoder_for, images_of_epoch, infer_options, loader_options, task_with};
use crate::run::overruled::Ruler;
use crate::run::record::{CompletedStage, Recorder, make_plots_folder};
use crate::run::request::{Request, is_synthetic, limited, thinned};
use crate::run::{data_print, flow, objects, overruled, starts};
use crate::train::{
    BatchRequest, BatchSource, Batches, Counts, DataPrint, Hooks, Monitored, Observer, Outcome,
    ResumeFrom, RunInfo, TrainConfig, Trainer, ValidScore,
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

/// What a run works with, before anything of it is written.
struct Setup {
    request: TrainRequest,
    home: Home,
    config: Config,
    document: Value,
    device: Device,
    training: Arc<Dataset>,
    validation: Arc<Dataset>,
    net: Box<dyn Network>,
    pretrained: Option<Pretrained>,
    /// Of the training and the validation split.
    prints: BTreeMap<String, DataPrint>,
}

impl Setup {
    fn new(request: &TrainRequest, world: &World) -> Result<Self> {
        let request = begin_or_resume(request)?;
        let mut home = request.run.home()?;
        let config = config_of(&request, &home)?;
        let request = named(&request, &config);
        if request.resume.is_some() {
            home = request.run.home_of_run(&existing_folder(&request, &home)?)?;
        }
        let device = request.run.open_device_in(&config, world)?;
        let training = request.run.open_split(&home, &config, Split::Train, Purpose::Training)?;
        let training = Arc::new(thinned(training, config.training.train_images));
        let validation =
            request.run.open_split(&home, &config, Split::Valid, Purpose::Evaluation)?;
        let validation = limited(validation, config.training.valid_images);
        ensure_batches(&config, &training)?;
        ensure_divisible(&config, world, request.accumulate)?;
        let net = new_network(&config, device)?;
        flow::check(&config, net.as_ref())?;
        if request.resume.is_none()
            && config.network.family().has_own_teacher()
            && !config.experiment.pretrained
        {
            tracing::warn!(
                "experiment.pretrained is false, and this network learns from the one that it starts from: its teacher is random \
                 values; name trained weights by experiment.url"
            );
        }
        // A pretrained start is checked before a folder is made.
        let mut pretrained = None;
        if request.resume.is_none() && config.experiment.pretrained {
            pretrained = Some(load_pretrained(net.as_ref(), &config)?);
        }
        let document = serde_json::to_value(&config).context("writing the config as JSON")?;
        let prints = [(Split::Train, &*training), (Split::Valid, &*validation)]
            .map(|(split, dataset)| (split.to_string(), data_print::of_split(dataset)))
            .into();
        Ok(Self {
            request,
            home,
            config,
            document,
            device,
            training,
            validation,
            net,
            pretrained,
            prints,
        })
    }

    /// Refuses processes of different programs, configs or data.
    fn ensure_same(&self, world: &World) -> Result<()> {
        let version = concat!(env!("CARGO_PKG_VERSION"), " ", env!("MQAT_COMMIT"));
        world.ensure_same("mqat version", version, "install one version on all machines")?;
        let resume = self.request.resume.as_ref();
        let resume = resume.map_or("none".to_owned(), |from| format!("{from:?}").to_lowercase());
        let command = "start all of them with the same command";
        world.ensure_same("--resume", &resume, command)?;
        world.ensure_same("--accumulate", &self.request.accumulate.to_string(), command)?;
        let kind = if self.device.is_cuda() { "GPU" } else { "CPU" };
        world.ensure_same("kind of device", kind, "name it by --device")?;
        // Sums depend on them.
        let threads = tch::get_num_threads().to_string();
        let set = "give all of them the same by RUNTIME.NUM_THREADS";
        world.ensure_same("number of libtorch threads", &threads, set)?;
        let configs = world.gather(self.document.clone())?;
        for (rank, config) in configs.iter().enumerate() {
            let keys = io::differing_keys(&configs[0], config);
            ensure!(
                keys.is_empty(),
                "process {rank} has another config than process 0: {} differ; start all of them with the same command",
                io::name_keys(keys)
            );
        }
        for (split, print) in &self.prints {
            let all = world.gather(print.clone())?;
            for (rank, other) in all.iter().enumerate() {
                if let Some(what) = all[0].difference(other) {
                    bail!(
                        "process {rank} has another {split} split than process 0 ({what}): all of them need the same data, of \
                         the same name and order"
                    );
                }
            }
        }
        let pretrained = self.pretrained.as_ref().map_or("none", |file| file.hash.as_str());
        let same = "give all of them the same file";
        world.ensure_same("file of pretrained weights", pretrained, same)
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
    let mut trainer = trainer.with_world(world.clone(), request.accumulate);
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

/// The request as that of a new run or of a resume, where it may be either: a run that has begun goes on if the request
/// would give it the config that it has.
fn begin_or_resume(request: &TrainRequest) -> Result<TrainRequest> {
    let mut request = request.clone();
    if !request.begin_or_resume {
        return Ok(request);
    }
    let id = request.exp_id.context(
        "--resume auto needs --exp-id N: the experiment that it is to begin, or to go on with",
    )?;
    let home = request.run.home()?;
    let config = config_of(&request, &home)?;
    let select = named(&request, &config).run.select;
    let folder = Folder::numbered(&home.logs, select.problem(), select.topology(), id)?;
    if !folder.config().exists() {
        return Ok(request);
    }
    let document: Value = io::read_json(&folder.config())?;
    let recorded = crate::run::config::parse(document, &folder.config().display().to_string())?;
    let json = |config: &Config| serde_json::to_value(config).context("writing the config as JSON");
    let keys = io::differing_keys(&json(&recorded)?, &json(&config)?);
    ensure!(
        keys.is_empty(),
        "{} was begun with another config: {} differ; leave --resume auto to the command that began it, or name another --exp-id",
        folder.path.display(),
        io::name_keys(keys)
    );
    // All that these said is in the run's config.
    let select = Select {
        problem: Some(select.problem().to_owned()),
        topology: Some(select.topology().to_owned()),
        ..Select::default()
    };
    request.run.select = select;
    request.resume = Some(ResumeFrom::Last);
    (request.flow, request.from, request.loose) = (None, None, false);
    (request.epochs, request.batch_size) = (None, None);
    Ok(request)
}

/// The config of a new run, or that of the run to go on with; changed by the flags.
fn config_of(request: &TrainRequest, home: &Home) -> Result<Config> {
    let select = &request.run.select;
    ensure!(
        request.from.is_none() || request.resume.is_none(),
        "--from cannot act: a resumed run has its weights; leave it out"
    );
    let options = starts::StageOptions { epochs: request.epochs, batch_size: request.batch_size };
    let mut num_ended = 0;
    let mut config = match &request.resume {
        None => {
            let mut config = match &request.from {
                None => select.resolve(home)?,
                Some(from) => from.config(select, home)?,
            };
            if let Some(flow) = &request.flow {
                flow.apply(&mut config)?;
            }
            request.from.iter().try_for_each(|from| from.ensure_trains(&config))?;
            config
        }
        Some(from) => {
            ensure!(
                select.config.is_none(),
                "--resume goes on with the experiment's own config; leave --config out, and change values with --set"
            );
            let folder = existing_folder(request, home)?;
            let path = folder.config();
            ensure!(
                path.exists(),
                "{} is missing: the run was stopped before it began; start a new one without --resume",
                path.display()
            );
            let document: Value = io::read_json(&path)?;
            let at = path.display().to_string();
            let mut config = select.apply(document.clone(), &at)?;
            if let Some(flow) = &request.flow {
                flow.ensure_same(&config)?;
            }
            if !select.set.is_empty() || options.epochs.is_some() || options.batch_size.is_some() {
                let recorded = crate::run::config::parse(document, &at)?;
                num_ended = starts::num_ended(&folder, from, &recorded)?;
                config.data.bs_train = options.batch_size.unwrap_or(config.data.bs_train);
                starts::keep_ended(&mut config, &recorded, num_ended)?;
            }
            config
        }
    };
    if request.resume.is_some()
        && let Some(before) = Provenance::of(&existing_folder(request, home)?)?
    {
        ensure!(
            before.seed == config.experiment.seed,
            "the experiment's seed is {}, not {}; a resumed run keeps its seed",
            before.seed,
            config.experiment.seed
        );
    }
    ensure!(
        !request.loose || request.resume.is_none(),
        "--loose cannot act: a resumed run has its weights; leave it out"
    );
    ensure!(
        !request.loose || config.experiment.pretrained,
        "--loose cannot act: the run starts from random weights (experiment.pretrained is false); leave it out"
    );
    overruled::ensure_none(&select.set, &rulers(request), &config)?;
    config.experiment.loose |= request.loose;
    options.apply(&mut config, num_ended);
    request.from.iter().for_each(|from| from.set_epochs(&mut config));
    if options.epochs.is_some() && num_ended > 0 {
        tracing::info!("--epochs leaves the {num_ended} stages alone that have ended");
    }
    let problems = config.problems();
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    Ok(config)
}

/// The options that rule over keys of the config.
fn rulers(request: &TrainRequest) -> Vec<Ruler<'static>> {
    let steps = request.ckpt_every_steps.is_some();
    let mut rulers = vec![
        Ruler::new(request.run.select.seed.is_some(), "--seed", |key| key == "experiment.seed"),
        Ruler::of_batch_size(request.batch_size.is_some()),
        Ruler::of_epochs(request.epochs.is_some()),
        Ruler::new(request.ckpt_every.is_some(), "--ckpt-every", |k| k == "training.ckpt_every"),
        Ruler::new(steps, "--ckpt-every-steps", |k| k == "training.ckpt_every_steps"),
        Ruler::new(request.max_steps.is_some(), "--max-steps", |k| k == "training.max_steps"),
        Ruler::new(request.loose, "--loose", |key| key == "experiment.loose"),
        Ruler::new(request.from.is_some(), "--from", |key| {
            key == "experiment.pretrained" || key == "experiment.url"
        }),
        Ruler::new(is_without_full_precision(request), "--from", |key| {
            key.starts_with("training.full_precision")
        }),
        Ruler::new(request.from.is_some(), "--full-precision-epochs", |key| {
            key == "training.full_precision.epochs"
        }),
    ];
    rulers.extend(request.flow.as_ref().and_then(FlowSource::ruler));
    rulers
}

/// Whether `--from` leaves the full-precision stage out.
fn is_without_full_precision(request: &TrainRequest) -> bool {
    request.from.as_ref().is_some_and(|from| from.full_precision_epochs.is_none())
}

/// The request under the name of the topology that a file of pretrained weights told, where the user named none: it is
/// also that of the run's folder.
fn named(request: &TrainRequest, config: &Config) -> TrainRequest {
    let mut request = request.clone();
    let select = &mut request.run.select;
    if request.from.is_some() && select.topology.is_none() && select.config.is_none() {
        select.topology = config.network.name().map(str::to_owned);
    }
    request
}

/// The stages, with when to save and stop as the flags of this start say; these are not part of the run's config.
fn saving(config: &Config, request: &TrainRequest) -> TrainConfig {
    let mut train = config.train_config();
    train.ckpt_every = request.ckpt_every.unwrap_or(train.ckpt_every);
    train.ckpt_every_steps = request.ckpt_every_steps.or(train.ckpt_every_steps);
    train.max_steps = request.max_steps.or(train.max_steps);
    train
}

fn existing_folder(request: &TrainRequest, home: &Home) -> Result<Folder> {
    let select = &request.run.select;
    let pick = request.exp_id.map_or(Pick::Latest, Pick::Id);
    Folder::find(&home.logs, select.problem(), select.topology(), pick)
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

/// Refuses stages whose batch is larger than the training split, before anything is written.
fn ensure_batches(config: &Config, dataset: &Dataset) -> Result<()> {
    let num_images = images_of_epoch(config, dataset.frames.len());
    for stage in config.train_config().stages {
        let batch_size = stage.batch_size.unwrap_or(config.data.bs_train);
        ensure!(
            batch_size <= num_images,
            "an epoch has {num_images} images, fewer than a batch of {batch_size} of stage {}; lower data.bs_train or the \
             stage's batch_size{}",
            stage.label(),
            config.training.epoch_images.map_or("", |_| ", or raise training.epoch_images")
        );
    }
    Ok(())
}

/// Refuses stages whose batch the processes and their pieces cannot share evenly, and names the next ones that they can.
fn ensure_divisible(config: &Config, world: &World, accumulate: usize) -> Result<()> {
    let parts = world.size() * accumulate;
    for stage in config.train_config().stages {
        let size = stage.batch_size.unwrap_or(config.data.bs_train);
        let (below, above) = (size / parts * parts, size.next_multiple_of(parts));
        let next = if below == 0 { above.to_string() } else { format!("{below} or {above}") };
        ensure!(
            size.is_multiple_of(parts),
            "stage {} has batches of {size} images, which {} processes with --accumulate {accumulate} cannot share evenly \
             ({parts} equal parts): take {next} (--batch-size, data.bs_train, or the stage's batch_size)",
            stage.label(),
            world.size()
        );
    }
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

/// The training split's batches.
struct Source<'a> {
    config: &'a Config,
    dataset: Arc<Dataset>,
    validation: Arc<Dataset>,
    skip_bad: bool,
    /// The processes that share the batches of the validation.
    world: &'a World,
}

impl Source<'_> {
    fn batch_size(&self, batch_size: Option<usize>) -> usize {
        batch_size.unwrap_or(self.config.data.bs_train)
    }
}

impl BatchSource for Source<'_> {
    fn num_batches(&self, batch_size: Option<usize>) -> usize {
        images_of_epoch(self.config, self.dataset.frames.len()) / self.batch_size(batch_size)
    }

    fn open(&mut self, request: BatchRequest) -> Result<Batches> {
        let batch_size = self.batch_size(request.batch_size);
        let options = LoaderOptions {
            epoch: request.epoch_key,
            first_batch: request.first_batch * request.slices.count,
            share: Share::Slices(request.slices),
            epoch_images: self.config.training.epoch_images,
            skip_bad: self.skip_bad,
            ..loader_options(self.config, batch_size)
        };
        let loader =
            Loader::start(self.dataset.clone(), &self.config.input, &self.config.data, options)?;
        Ok(Box::new(loader))
    }

    fn open_validation(&mut self) -> Result<Option<Batches>> {
        let options = LoaderOptions {
            augment: false,
            shuffle: false,
            replace_empty: false,
            drop_last: false,
            skip_bad: self.skip_bad,
            share: Share::Batches { first: self.world.rank(), of: self.world.size() },
            ..loader_options(self.config, self.config.data.bs_valid)
        };
        let (input, data) = (&self.config.input, &self.config.data);
        let loader = Loader::start(self.validation.clone(), input, data, options)?;
        Ok(Some(Box::new(loader)))
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
