//! What a run works with, before anything of it is written: its config, data, network and start, and what they must fit.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tch::Device;

use super::TrainRequest;
use crate::artifact::network::new_network;
use crate::artifact::pretrained::load_pretrained;
use crate::data::{Dataset, Purpose, Split};
use crate::io;
use crate::nn::Network;
use crate::run::config::{Config, Select};
use crate::run::flow::FlowSource;
use crate::run::folder::{Folder, Pick, Pretrained, Provenance};
use crate::run::home::Home;
use crate::run::options::images_of_epoch;
use crate::run::overruled::Ruler;
use crate::run::request::{limited, thinned};
use crate::run::{data_print, flow, overruled, starts};
use crate::train::{DataPrint, ResumeFrom};
use crate::world::World;

/// What a run works with, before anything of it is written.
pub(super) struct Setup {
    pub request: TrainRequest,
    pub home: Home,
    pub config: Config,
    pub document: Value,
    pub device: Device,
    pub training: Arc<Dataset>,
    pub validation: Arc<Dataset>,
    pub net: Box<dyn Network>,
    pub pretrained: Option<Pretrained>,
    /// Of the training and the validation split.
    pub prints: BTreeMap<String, DataPrint>,
}

impl Setup {
    pub fn new(request: &TrainRequest, world: &World) -> Result<Self> {
        let request = begin_or_resume(request)?;
        let mut home = request.run.home()?;
        let config = config_of(&request, &home)?;
        let request = named(&request, &config);
        if request.resume.is_some() {
            home = request.run.home_of_run(&existing_folder(&request, &home)?)?;
        }
        let device = request.run.open_device_to_train_in(&config, world)?;
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
                "experiment.pretrained is false, and this network learns from the one that it starts from: its teacher keeps its \
                 initial values; name trained weights by experiment.url"
            );
        }
        let begun = config.quantize.flow.iter().filter(|_| request.resume.is_none());
        for (stage, doubt) in begun.filter_map(|stage| Some((stage, stage.doubt_of_rounding()?))) {
            tracing::warn!("stage {}: {doubt}", stage.label());
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
    pub fn ensure_same(&self, world: &World) -> Result<()> {
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
        "--loose cannot act: the run starts from initial values (experiment.pretrained is false); leave it out"
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

pub(super) fn existing_folder(request: &TrainRequest, home: &Home) -> Result<Folder> {
    let select = &request.run.select;
    let pick = request.exp_id.map_or(Pick::Latest, Pick::Id);
    Folder::find(&home.logs, select.problem(), select.topology(), pick)
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
