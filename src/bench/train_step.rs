//! `mqat bench train-step`: steps of a network, float against quantized.

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value, json};
use tch::Device;

use super::images;
use super::report::{BenchReport, object, resize};
use super::rounds::{Progress, Rounds, Subject, measure, timed};
use crate::artifact::network::new_network;
use crate::artifact::pretrained::teacher;
use crate::data::{Batch, Dataset, Loader, LoaderOptions};
use crate::quant::{FractionSchedule, WeightMethod};
use crate::run::Machine;
use crate::run::config::{Config, Names, Precision};
use crate::run::flow::{self, Baseline, Bits, FlowSource};
use crate::run::folder::Start;
use crate::run::layers::name_of;
use crate::run::options::{loader_options, task_with};
use crate::run::request::Request;
use crate::train::{Afterwards, Rehearsal, RunInfo, StageConfig, TrainConfig, Trainer};

/// Steps leave the network where it is, whatever its stage would do: times do not depend on it, and many steps with
/// one batch do not lead to numbers that are none.
const LR: f64 = 1e-7;

/// What `mqat bench train-step` is asked.
#[derive(Debug, Clone)]
pub struct TrainStepRequest {
    /// Config, dataset, device.
    pub run: Request,
    /// How often.
    pub rounds: Rounds,
    /// Weight methods, each on all modules.
    pub methods: Vec<WeightMethod>,
    /// Leave out all but the float step.
    pub float_only: bool,
    /// Their bits.
    pub bits: Bits,
    /// Instead of methods: the stages of a flow, each with the ones before it.
    pub flow: Option<FlowSource>,
    /// Width and height of the network's input instead of the config's, px.
    pub size_px: Option<usize>,
    /// Images a step instead of the config's `bs_train`.
    pub batch: Option<usize>,
    /// libtorch's threads instead of the config's.
    pub threads: Option<usize>,
}

/// Measures steps, the same batch for all: first without quantization, then with each method or in each stage.
///
/// # Errors
/// If the config, the flow or the dataset cannot be used, or a step fails.
pub fn bench_train_step(
    request: &TrainStepRequest,
    progress: &mut Progress<'_>,
) -> Result<BenchReport> {
    let home = request.run.home()?;
    request.run.select.ensure_names_act(Names::Dataset)?;
    let mut config = request.run.select.resolve(&home)?;
    resize(&mut config, request.size_px)?;
    if let Some(threads) = request.threads {
        config.runtime.num_threads = threads;
    }
    config.data.bs_train = request.batch.unwrap_or(config.data.bs_train);
    let mut runs = runs(request, &config)?;
    if request.float_only {
        runs.truncate(1);
    }
    let problems = config.problems();
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    let device = request.run.open_device_to_train(&config)?;
    let machine = Machine::here(device);
    let batch_size = config.data.bs_train;
    let side_px = config.input.width.max(config.input.height);
    let found = images::open(&request.run, &mut config, batch_size, side_px, progress)?;
    let num_images = found.dataset.frames.len();
    ensure!(
        num_images >= batch_size,
        "the training split has {num_images} images, fewer than a batch of {batch_size}; lower --batch"
    );
    let batch = first_batch(&config, &found, request.run.skip_bad)?;
    let folder = tempfile::tempdir().context("making a folder for what a run would write")?;
    let mut subjects = Vec::with_capacity(runs.len());
    for (i, run) in runs.into_iter().enumerate() {
        let at = folder.path().join(i.to_string());
        let doing = format!("preparing {}", run.name);
        subjects
            .push(run.subject(&config, &found.dataset, batch.clone(), device, &at).context(doing)?);
    }
    let mut settings = object([
        ("network", json!(request.run.select.topology())),
        ("size_px", json!([config.input.width, config.input.height])),
        ("batch", json!(batch_size)),
        ("threads", json!(tch::get_num_threads())),
    ]);
    settings.extend(found.settings);
    let notes = machine.busy().into_iter().chain(found.note).collect();
    Ok(BenchReport {
        bench: "train-step",
        machine,
        command: Start::now(None).command,
        rounds: request.rounds,
        settings,
        item: "step",
        subjects: measure(subjects, request.rounds, progress)?,
        notes,
    })
}

/// The images of the first step of a run.
fn first_batch(config: &Config, found: &images::Images, skip_bad: bool) -> Result<Batch> {
    let options = LoaderOptions { skip_bad, ..loader_options(config, config.data.bs_train) };
    let mut loader = Loader::start(found.dataset.clone(), &config.input, &config.data, options)?;
    loader.next().context("the loader gave no batch")?
}

/// Stages that are rehearsed, the last of which is measured.
struct Run {
    name: String,
    stages: Vec<StageConfig>,
}

/// The float run, then one for each method or stage.
fn runs(request: &TrainStepRequest, config: &Config) -> Result<Vec<Run>> {
    let flow_of = |source: &FlowSource| -> Result<Vec<StageConfig>> {
        let mut changed = config.clone();
        source.apply(&mut changed)?;
        Ok(changed.quantize.flow)
    };
    let mut runs = Vec::new();
    if let Some(source) = &request.flow {
        let stages = flow_of(source)?;
        for i in 0..stages.len() {
            runs.push(Run { name: stages[i].label(), stages: stages[..=i].to_vec() });
        }
    } else {
        let bits = request.bits;
        for &method in &request.methods {
            let source = FlowSource::Baseline(Baseline::Uniform { method, bits });
            runs.push(Run { name: name_of(&method), stages: flow_of(&source)? });
        }
    }
    ensure!(!runs.is_empty(), "no method and no stage to measure");
    let first = runs[0].stages[0].clone();
    let float = StageConfig {
        name: "float".to_owned(),
        module: None,
        weights: None,
        activations: None,
        afterwards: Afterwards::Freeze,
        ..first
    };
    runs.insert(0, Run { name: "float".to_owned(), stages: vec![float] });
    Ok(runs)
}

/// The epoch of a stage that tells most: with INQ the first one that has half of the weights frozen or more.
fn telling_epoch(stage: &StageConfig) -> u32 {
    let schedule = stage.weights.as_ref().and_then(|weights| weights.settings.scheme().schedule());
    let reached = |schedule: &FractionSchedule| {
        let mut entries = schedule.entries();
        entries.find(|(_, fraction)| *fraction >= 0.5).map(|(epoch, _)| epoch)
    };
    let half = schedule.and_then(reached).unwrap_or(0);
    half.min(stage.epochs.saturating_sub(1))
}

impl Run {
    fn subject<'a>(
        mut self,
        config: &Config,
        dataset: &Dataset,
        batch: Batch,
        device: Device,
        folder: &std::path::Path,
    ) -> Result<Subject<'a>> {
        for stage in &mut self.stages {
            stage.lr.base = LR;
        }
        let last = self.stages.last_mut().context("a run without stages")?;
        let epoch = telling_epoch(last);
        if let Some(activations) = &mut last.activations {
            activations.quant_start_epoch = activations.quant_start_epoch.min(epoch); // they are quantized by then
        }
        let label = last.label();
        let net = new_network(config, device)?;
        let mut checked = config.clone();
        checked.quantize.flow = self.stages.clone();
        flow::check(&checked, net.as_ref())?;
        let train = TrainConfig { stages: self.stages, ..config.train_config() };
        let teacher = teacher(config, device)?;
        let task = task_with(config, dataset, config.experiment.seed, teacher)?;
        let run = RunInfo {
            seed: config.experiment.seed,
            checkpoints: folder.to_owned(),
            config: Value::Null,
            data: Default::default(),
            objects: Vec::new(),
        };
        let in_bf16 = config.runtime.precision == Precision::Bf16;
        let trainer = Trainer::new(net, train, task, run)?.with_bf16(in_bf16);
        let mut rehearsal = Rehearsal::new(trainer, batch, epoch)?;
        let details = self::details(&rehearsal, &label, epoch);
        let call = Box::new(move || timed(device, || rehearsal.update()));
        Ok(Subject { name: self.name, details, per_call: 1, call })
    }
}

/// What is quantized, and how far.
fn details(rehearsal: &Rehearsal, stage: &str, epoch: u32) -> Map<String, Value> {
    let sites = rehearsal.sites();
    let quantized = sites.iter().filter(|site| site.num_levels.is_some());
    let mut bits: Vec<u32> = quantized.clone().map(|site| site.bits).collect();
    bits.sort_unstable();
    bits.dedup();
    let activations =
        |site: &&crate::quant::SiteReport| site.activations.as_ref().is_some_and(|a| a.quantizing);
    object([
        ("stage", json!(stage)),
        ("epoch", json!(epoch)),
        ("quantized_layers", json!(quantized.count())),
        ("quantized_activations", json!(sites.iter().filter(activations).count())),
        ("bits", json!(bits)),
        ("frozen_fraction", json!(rehearsal.frozen_fraction())),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(methods: &[WeightMethod], flow: Option<&str>) -> TrainStepRequest {
        TrainStepRequest {
            run: Request::default(),
            rounds: Rounds { rounds: 1, warm_up: 0 },
            methods: methods.to_vec(),
            float_only: false,
            bits: "4".parse().unwrap(),
            flow: flow.map(|text| text.parse().unwrap()),
            size_px: None,
            batch: None,
            threads: None,
        }
    }

    #[test]
    fn float_comes_first_then_methods_or_growing_flows() {
        let config = Config::default();
        let found = runs(&request(&[WeightMethod::Lsq, WeightMethod::Inq], None), &config).unwrap();
        let names: Vec<&str> = found.iter().map(|run| run.name.as_str()).collect();
        assert_eq!(names, ["float", "lsq", "inq"]);
        assert!(found[0].stages[0].module.is_none() && found[0].stages[0].weights.is_none());
        assert_eq!(found[1].stages[0].module.as_deref(), Some("*"));

        let found = runs(&request(&[], Some("fpn:2,head:w4a8")), &config).unwrap();
        let stages: Vec<usize> = found.iter().map(|run| run.stages.len()).collect();
        assert_eq!(stages, [1, 1, 2]);
        assert_eq!((found[1].name.as_str(), found[2].name.as_str()), ("fpn", "head"));
        assert!(runs(&request(&[], None), &config).is_err());
        let twice = runs(&request(&[], Some("fpn:2,fpn:4")), &config).err().unwrap();
        assert!(twice.to_string().contains("fpn"), "{twice}");
    }

    #[test]
    fn the_epoch_has_half_of_the_weights_frozen() {
        let weights = crate::quant::WeightQuantConfig { bits: Some(4), ..Default::default() };
        let mut stage = StageConfig::mqat("fpn", weights);
        assert_eq!(telling_epoch(&stage), 9); // published: 0.4 from epoch 5, 0.6 from epoch 9
        stage.epochs = 3;
        assert_eq!(telling_epoch(&stage), 2);
        stage.weights.as_mut().unwrap().settings = WeightMethod::Lsq.settings();
        assert_eq!(telling_epoch(&stage), 0);
    }
}
