//! The whole config of an experiment: the rooms' sections put together, read, checked, resolved.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::data::{DataConfig, InputConfig};
use crate::eval::EvalConfig;
use crate::io;
use crate::run::home::{Home, SoleNames};
use crate::run::{keys, published};
use crate::schema::{self, check_ranges, first_of_each_key};
use crate::topology::{DistillSettings, LossSettings, TargetSettings, Topology, TrainingSettings};
use crate::train::{EmaConfig, MonitorConfig, StageConfig, TrainConfig};

/// The problem that is meant when none is named.
const DEFAULT_PROBLEM: &str = "SwissCube";
/// The topology that is meant when none is named.
const DEFAULT_TOPOLOGY: &str = "Widedepth";

/// The configs that the program carries, for when no `problems/` folder is at hand.
const EMBEDDED: [(&str, &str, &str); 4] = [
    ("SwissCube", "Widedepth", include_str!("../../problems/SwissCube/Widedepth/config.json")),
    (
        "SwissCube",
        "WidedepthTiny",
        include_str!("../../problems/SwissCube/WidedepthTiny/config.json"),
    ),
    ("SwissCube", "CaSpaceNet", include_str!("../../problems/SwissCube/CaSpaceNet/config.json")),
    (
        "SwissCube",
        "CaSpaceNetTiny",
        include_str!("../../problems/SwissCube/CaSpaceNetTiny/config.json"),
    ),
];

/// The sections that have a table of keys in docs/config.md.
pub(crate) const TABLES: [&str; 11] = [
    "experiment",
    "RUNTIME",
    "data",
    "INPUT",
    "network.params",
    "training",
    "quantize.flow.0",
    "quantize.flow.0.lr.decay",
    "quantize.flow.0.weights",
    "quantize.flow.0.activations",
    "evaluation",
];

/// The config of an experiment. Every value has a default: the published setting of SwissCube / Widedepth.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Seed and start of the run.
    pub experiment: ExperimentConfig,
    /// Threads.
    #[serde(rename = "RUNTIME")]
    pub runtime: RuntimeConfig,
    /// Dataset, batch sizes, augmentation.
    pub data: DataConfig,
    /// The image the network sees.
    #[serde(rename = "INPUT")]
    pub input: InputConfig,
    /// The network.
    pub network: Topology,
    /// Losses, targets, the full-precision stage, checkpoints.
    pub training: TrainingSection,
    /// The quantization flow.
    pub quantize: QuantizeSection,
    /// How poses are found and scored.
    pub evaluation: EvalConfig,
}

/// Seed and start of the run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ExperimentConfig {
    /// Seed of everything random: initial weights, order and augmentation of images, drawn cells, random strategies.
    pub seed: u64,
    /// Start from the weights of `url` instead of random ones.
    pub pretrained: bool,
    /// File of the full-precision weights (safetensors, PyTorch, a checkpoint), relative to the config's folder; needed
    /// with `pretrained`.
    pub url: String,
    /// Take what fits of `url`, the rest of the network keeps its initial values, instead of refusing a file that
    /// lacks layers.
    pub loose: bool,
}

impl Default for ExperimentConfig {
    fn default() -> Self {
        Self { seed: 1, pretrained: false, url: String::new(), loose: false }
    }
}

/// Threads.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct RuntimeConfig {
    /// Threads that read and warp images; 0 does it in the training thread. At most as many as there are cores are
    /// started.
    #[serde(rename = "NUM_WORKERS")]
    #[schemars(range(max = 256))]
    pub num_workers: usize,
    /// Threads libtorch computes with; 0 takes one for each core. Sums, and so results, depend on it in the last bit.
    #[serde(rename = "NUM_THREADS")]
    #[schemars(range(max = 1024))]
    pub num_threads: usize,
    /// How training rounds products of convolutions; weights, quantizers and losses are float32 always, and other commands than
    /// `train` compute in float32 unless `--set` asks them for `tf32` ([gpu.md](gpu.md)). Left out of files at its default.
    #[serde(rename = "PRECISION", skip_serializing_if = "Precision::is_fp32")]
    #[schemars(extend("default" = "fp32"))]
    pub precision: Precision,
    /// On a GPU only kernels that give the same bits every time; on the CPU there are no others. Left out of files at its default.
    #[serde(rename = "DETERMINISTIC", skip_serializing_if = "is_false")]
    #[schemars(extend("default" = false))]
    pub deterministic: bool,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        let precision = Precision::default();
        Self { num_workers: 8, num_threads: 0, precision, deterministic: false }
    }
}

fn is_false(value: &bool) -> bool {
    !value
}

/// How products are rounded before they are summed in float32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// Not at all.
    #[default]
    Fp32,
    /// Inputs and weights to TF32, 10 bits behind the point: GPUs from compute capability 8.0 on.
    Tf32,
    /// Inputs and weights to bfloat16, 7 bits behind the point; on GPUs and CPUs.
    Bf16,
}

impl Precision {
    fn is_fp32(&self) -> bool {
        *self == Self::Fp32
    }
}

/// Losses, targets, the full-precision stage, checkpoints.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainingSection {
    /// Weights of the losses.
    pub loss: LossSettings,
    /// Which cells learn an object.
    pub targets: TargetSettings,
    /// Learn also what the float network says that the run starts from (`experiment.url`); `null` learns from the targets
    /// alone.
    pub distill: Option<DistillSettings>,
    /// The full-precision stage before the flow; `null` starts with the flow (from pretrained weights).
    pub full_precision: Option<StageConfig>,
    /// A checkpoint every so many epochs; the end of a stage and a best epoch always write one.
    #[schemars(range(min = 1))]
    pub ckpt_every: u32,
    /// Also a checkpoint every so many steps.
    #[schemars(range(min = 1))]
    pub ckpt_every_steps: Option<u64>,
    /// How many of the numbered checkpoints stay on disk; those of stage ends and the best one stay too.
    #[schemars(range(min = 1))]
    pub keep: usize,
    /// Validation every so many epochs of a stage, and at its end.
    #[schemars(range(min = 1))]
    pub valid_every: u32,
    /// Validate on the first so many images of `VALID`; `null` takes all.
    #[schemars(range(min = 1))]
    pub valid_images: Option<usize>,
    /// Train on so many images, spread evenly over `TRAIN`; `null` takes all.
    #[schemars(range(min = 1))]
    pub train_images: Option<usize>,
    /// Images of an epoch; the next epoch goes on through the list where this one ended, so that every image comes once
    /// before any comes again. `null`: all of them. For large lists, whose schedules count in epochs.
    #[schemars(range(min = 1))]
    pub epoch_images: Option<usize>,
    /// Stop, with a checkpoint, after so many steps in all.
    #[schemars(range(min = 1))]
    pub max_steps: Option<u64>,
    /// Training batches on which the running statistics of batch norms are estimated again before every validation and
    /// at the end of a stage, once quantization changes the network ([batch_norm.md](batch_norm.md)): at most those of an
    /// epoch; 0 leaves the moving averages of training.
    pub bn_batches: usize,
    /// Estimate them again in float networks as well, so that a float control is scored like the quantized networks beside it
    /// (`--method full-precision` sets it); false leaves float networks their moving averages.
    pub bn_always: bool,
    /// What chooses the best checkpoint of a stage, and when a stage ends early.
    pub monitor: MonitorConfig,
    /// Average the weights and evaluate the average; `null` evaluates the weights themselves.
    pub ema: Option<EmaConfig>,
}

impl Default for TrainingSection {
    fn default() -> Self {
        let train = TrainConfig::default();
        Self {
            loss: LossSettings::default(),
            targets: TargetSettings::default(),
            distill: None,
            full_precision: Some(StageConfig::full_precision()),
            ckpt_every: train.ckpt_every,
            ckpt_every_steps: train.ckpt_every_steps,
            keep: train.keep,
            valid_every: train.valid_every,
            valid_images: None,
            train_images: None,
            epoch_images: None,
            max_steps: train.max_steps,
            bn_batches: train.bn_batches,
            bn_always: train.bn_always,
            monitor: train.monitor,
            ema: train.ema,
        }
    }
}

impl TrainingSection {
    /// The sections whose keys are those of the network's family.
    fn of_family(&self) -> TrainingSettings {
        TrainingSettings {
            loss: self.loss.clone(),
            targets: self.targets.clone(),
            distill: self.distill.clone(),
        }
    }

    fn set_of_family(&mut self, settings: TrainingSettings) {
        (self.loss, self.targets) = (settings.loss, settings.targets);
        self.distill = settings.distill;
    }
}

/// The quantization flow.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct QuantizeSection {
    /// One stage for each module, in order; a module stays quantized in the stages after its own.
    pub flow: Vec<StageConfig>,
}

impl Config {
    /// Every value outside its range, one line each with its dotted key.
    pub fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        check_ranges(self, "", &mut problems);
        self.data.check_together("data", &mut problems);
        self.input.check_together("INPUT", &mut problems);
        self.network.family().check_together("network.params", &mut problems);
        if self.experiment.pretrained && self.experiment.url.is_empty() {
            problems.push(
                "experiment.url: is empty, expected the file of the pretrained weights".into(),
            );
        }
        self.check_teacher(&mut problems);
        let mut stages = Vec::new();
        self.train_config().check_together("training", &mut stages);
        problems.extend(stages.iter().map(|p| self.place_of_stage(p)));
        first_of_each_key(&mut problems);
        problems
    }

    /// The teacher is what the run starts from: it must start from a trained float network.
    fn check_teacher(&self, problems: &mut Vec<String>) {
        if self.training.distill.is_some() && self.network.family().has_own_teacher() {
            problems.push(
                "training.distill: this network learns from a teacher of its own; set it to null"
                    .into(),
            );
            return;
        }
        let why = match (self.experiment.pretrained, &self.training.full_precision) {
            (true, None) => return,
            (false, _) => "experiment.pretrained is false",
            (true, Some(_)) => "training.full_precision trains another one first",
        };
        if self.training.distill.is_some() {
            problems.push(format!(
                "training.distill: the teacher is the float network that the run starts from, and {why}; train it in a run of \
                 its own, and start from its checkpoint with experiment.pretrained, experiment.url and \
                 training.full_precision=null"
            ));
        }
    }

    /// The stages and the saving, as the train room takes them.
    pub fn train_config(&self) -> TrainConfig {
        let t = &self.training;
        TrainConfig {
            stages: t.full_precision.iter().chain(&self.quantize.flow).cloned().collect(),
            ckpt_every: t.ckpt_every,
            ckpt_every_steps: t.ckpt_every_steps,
            keep: t.keep,
            valid_every: t.valid_every,
            max_steps: t.max_steps,
            bn_batches: t.bn_batches,
            bn_always: t.bn_always,
            monitor: t.monitor,
            ema: t.ema.clone(),
        }
    }

    /// The stages in order, each with its place.
    pub(super) fn stages_with_places(&self) -> impl Iterator<Item = (&StageConfig, String)> {
        let full = self.training.full_precision.iter();
        let full = full.map(|stage| (stage, "training.full_precision".to_owned()));
        let flow = self.quantize.flow.iter().enumerate();
        full.chain(flow.map(|(i, stage)| (stage, format!("quantize.flow.{i}"))))
    }

    /// Stages are numbered through in the train room; here they have two places.
    fn place_of_stage(&self, problem: &str) -> String {
        if problem.starts_with("training.stages: is empty") {
            return "quantize.flow: is empty and training.full_precision is null, expected at least one stage"
                .to_owned();
        }
        let Some((number, rest)) =
            problem.strip_prefix("training.stages.").and_then(|r| r.split_once('.'))
        else {
            return problem.to_owned();
        };
        let Ok(number) = number.parse::<usize>() else { return problem.to_owned() };
        match (self.training.full_precision.is_some(), number) {
            (true, 0) => format!("training.full_precision.{rest}"),
            (true, n) => format!("quantize.flow.{}.{rest}", n - 1),
            (false, n) => format!("quantize.flow.{n}.{rest}"),
        }
    }
}

/// Which config a command works with, and what is changed in it.
#[derive(Debug, Clone, Default)]
pub struct Select {
    /// The problem; when it is not given the only one of the home, else `SwissCube`.
    pub problem: Option<String>,
    /// The topology; when it is not given the only one of the problem, else `Widedepth`.
    pub topology: Option<String>,
    /// What the home has only one of.
    pub sole: SoleNames,
    /// A config file instead of the problem's.
    pub config: Option<PathBuf>,
    /// `KEY=VALUE` assignments.
    pub set: Vec<String>,
    /// Seed instead of the config's.
    pub seed: Option<u64>,
    /// Which seed of the config that is.
    pub seed_of: SeedOf,
}

/// Which seed of a config `--seed` is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum SeedOf {
    /// `experiment.seed`: of training, and of whatever else is random.
    #[default]
    Experiment,
    /// `experiment.seed` and `evaluation.seed`: of a command that evaluates.
    Evaluation,
}

/// What `--problem` and `--topology` name beside the config of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// Nothing.
    Config,
    /// The problem names the dataset.
    Dataset,
    /// The problem names the dataset, both name the folder of experiments.
    Folders,
}

impl Select {
    /// The problem's name.
    pub fn problem(&self) -> &str {
        self.problem.as_deref().or(self.sole.problem.as_deref()).unwrap_or(DEFAULT_PROBLEM)
    }

    /// The topology's name.
    pub fn topology(&self) -> &str {
        self.topology.as_deref().or(self.sole.topology.as_deref()).unwrap_or(DEFAULT_TOPOLOGY)
    }

    /// Reads, changes and checks the config.
    ///
    /// # Errors
    /// If there is no such config, it cannot be read, or values are outside their range: all of them are named.
    pub fn resolve(&self, home: &Home) -> Result<Config> {
        let (mut document, at, folder) = self.read(home)?;
        if published::is_published(&document) {
            let translated = published::translate(&document).with_context(|| at.clone())?;
            tracing::info!(file = at, "a config of the published code, translated");
            for note in translated.notes {
                tracing::info!("{note}");
            }
            document = translated.document;
        }
        self.change(&mut document)?;
        let mut config = parse(document, &at)?;
        // From here on the run may be anywhere: the place of the weights becomes absolute.
        if config.experiment.pretrained {
            let url = folder.join(&config.experiment.url);
            let url = std::path::absolute(&url).unwrap_or(url);
            config.experiment.url = url.display().to_string();
        }
        Ok(config)
    }

    /// Changes a config that a file or an experiment carries, and checks it; `at` names it in messages.
    ///
    /// # Errors
    /// If an assignment names no key, or values are outside their range.
    pub(crate) fn apply(&self, mut document: Value, at: &str) -> Result<Config> {
        self.change(&mut document)?;
        parse(document, at)
    }

    /// The same, for a command that evaluates: `--seed` is also that of the evaluation.
    pub fn for_evaluation(&self) -> Self {
        Self { seed_of: SeedOf::Evaluation, ..self.clone() }
    }

    /// The same with another topology.
    pub fn of_topology(&self, topology: &str) -> Self {
        Self { topology: Some(topology.to_owned()), ..self.clone() }
    }

    /// Refuses names that would do nothing beside `--config`.
    ///
    /// # Errors
    /// If one was given.
    pub fn ensure_names_act(&self, names: Names) -> Result<()> {
        let Some(config) = &self.config else { return Ok(()) };
        self.refuse_names(names, &format!("--config {} is the config", config.display()))
    }

    /// Refuses the names that name nothing but a config.
    ///
    /// # Errors
    /// If one was given; `why` says what is taken instead.
    pub fn refuse_names(&self, names: Names, why: &str) -> Result<()> {
        let problem = self.problem.as_ref().filter(|_| names == Names::Config);
        let topology = self.topology.as_ref().filter(|_| names != Names::Folders);
        for (option, given) in [("--problem", problem), ("--topology", topology)] {
            if let Some(name) = given {
                bail!("{option} {name} cannot act: {why}; leave it out");
            }
        }
        Ok(())
    }

    /// `--set` and `--seed`.
    fn change(&self, document: &mut Value) -> Result<()> {
        self.set.iter().try_for_each(|assignment| keys::set(document, assignment))?;
        let Some(seed) = self.seed else { return Ok(()) };
        keys::merge(document, json!({ "experiment": { "seed": seed } }));
        if self.seed_of == SeedOf::Evaluation {
            keys::merge(document, json!({ "evaluation": { "seed": seed } }));
        }
        Ok(())
    }

    /// The config as it is written, and the folder that its paths start at.
    ///
    /// # Errors
    /// If there is no such config, or it cannot be read.
    pub(crate) fn document(&self, home: &Home) -> Result<(Value, PathBuf)> {
        let (document, _, folder) = self.read(home)?;
        Ok((document, folder))
    }

    /// The document, what to call it in messages, and the folder its paths start at.
    fn read(&self, home: &Home) -> Result<(Value, String, PathBuf)> {
        if let Some(path) = &self.config {
            let folder = path.parent().map_or_else(PathBuf::new, Path::to_owned);
            return Ok((io::read_json(path)?, path.display().to_string(), folder));
        }
        let folder = home.problem_dir(self.problem(), self.topology());
        let path = folder.join("config.json");
        if path.exists() {
            return Ok((io::read_json(&path)?, path.display().to_string(), folder));
        }
        let embedded =
            EMBEDDED.iter().find(|(p, t, _)| (*p, *t) == (self.problem(), self.topology()));
        if let Some((problem, topology, text)) = embedded {
            let at = format!("the built-in config of {problem}/{topology}");
            let document = serde_json::from_str(text).with_context(|| format!("parsing {at}"))?;
            return Ok((document, at, folder));
        }
        bail!(
            "no config {}; problems there are: {}",
            path.display(),
            known_configs(&home.root.join("problems")).join(", ")
        )
    }
}

/// `PROBLEM/TOPOLOGY` of every config at hand, the built-in ones included.
fn known_configs(problems: &Path) -> Vec<String> {
    let folders = |dir: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|e| e.path()).filter(|p| p.is_dir()).collect()
    };
    let mut known: Vec<String> = EMBEDDED.iter().map(|(p, t, _)| format!("{p}/{t}")).collect();
    for problem in folders(problems) {
        for topology in folders(&problem).into_iter().filter(|t| t.join("config.json").exists()) {
            if let Ok(name) = topology.strip_prefix(problems) {
                known.push(name.display().to_string());
            }
        }
    }
    known.sort();
    known.dedup();
    known
}

/// Types and checks a document.
///
/// # Errors
/// If keys are unknown, a value has the wrong type, or values are outside their range: `at` and all keys are named.
pub fn parse(document: Value, at: &str) -> Result<Config> {
    let mut config: Config = schema::parse(document, at)?;
    let Config { network, training, .. } = &mut config;
    let complete = network.family().complete(&training.of_family());
    training.set_of_family(complete.map_err(|err| anyhow!("{at}: {err}"))?);
    let problems = config.problems();
    if !problems.is_empty() {
        bail!("{at}: {}", problems.join("; "));
    }
    Ok(config)
}

/// The JSON schema of configs.
pub fn schema() -> Value {
    schema::schema_of::<Config>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_embedded_configs_pass_and_the_default_does_too() {
        for (problem, topology, text) in EMBEDDED {
            let document = serde_json::from_str(text).unwrap();
            parse(document, &format!("{problem}/{topology}")).unwrap();
        }
        assert_eq!(Config::default().problems(), Vec::<String>::new());
    }

    #[test]
    fn every_problem_is_named_with_its_dotted_key() {
        let document = json!({
            "data": { "bs_train": 0 },
            "training": { "full_precision": { "epochs": 0 }, "loss": { "weight_cls": -1.0 } },
            "quantize": { "flow": [{ "module": "fpn", "weights": { "bits": 2 }, "epochs": 0 }] }
        });
        let err = parse(document, "x.json").unwrap_err().to_string();
        for key in [
            "x.json: ",
            "data.bs_train: ",
            "training.full_precision.epochs: ",
            "training.loss.weight_cls: ",
            "quantize.flow.0.epochs: ",
        ] {
            assert!(err.contains(key), "{key} is missing in {err}");
        }
    }

    #[test]
    fn a_wrong_type_names_its_key() {
        let err =
            parse(json!({ "data": { "bs_train": "many" } }), "x.json").unwrap_err().to_string();
        assert!(err.starts_with("x.json: data.bs_train: "), "{err}");
        let flow = json!([{ "module": "fpn", "weights": { "bits": 2 }, "epochs": "x" }]);
        let err = parse(json!({ "quantize": { "flow": flow } }), "x").unwrap_err().to_string();
        assert!(err.starts_with("x: quantize.flow.0.epochs: "), "{err}");
    }

    #[test]
    fn a_resolved_config_reads_back_as_itself() {
        let config = Config::default();
        let document = serde_json::to_value(&config).unwrap();
        assert_eq!(parse(document, "x").unwrap(), config);
    }

    /// A config with something at every place: each kind of section, stage and quantizer.
    fn full_document() -> Value {
        let mut config = Config::default();
        config.training.ema = Some(EmaConfig::default());
        config.experiment.pretrained = true;
        config.experiment.url = "x".to_owned();
        config.training.full_precision = None;
        config.training.distill = Some(DistillSettings::default());
        let flow = [
            json!({ "module": "fpn", "weights": { "bits": 2 } }),
            json!({ "module": ["head"], "activations": { "bits": 8 },
                "lr": { "decay": { "steps": { "at": [1, 2], "factor": 0.5 } } } }),
            json!({ "module": "backbone", "weights": { "method": "lsq", "bits": 4 },
                "lr": { "decay": { "cosine": { "to": 0.5 } } } }),
        ];
        let mut document = json!(config);
        document["quantize"]["flow"] = json!(
            flow.map(|stage| { json!(serde_json::from_value::<StageConfig>(stage).unwrap()) })
        );
        document
    }

    /// Pointers to every value of a document.
    fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
        found.push(at.to_owned());
        match value {
            Value::Object(map) => {
                map.iter().for_each(|(key, v)| pointers(v, &format!("{at}/{key}"), found));
            }
            Value::Array(items) => {
                items
                    .iter()
                    .enumerate()
                    .for_each(|(i, v)| pointers(v, &format!("{at}/{i}"), found));
            }
            _ => {}
        }
    }

    #[test]
    fn no_message_about_a_wrong_type_names_a_type_of_the_program() {
        let document = full_document();
        parse(document.clone(), "x").unwrap();
        let mut places = Vec::new();
        pointers(&document, "", &mut places);
        let wrong = [
            json!(null),
            json!(true),
            json!(-1),
            json!(1.5),
            json!(1e300),
            json!("zz"),
            json!([]),
            json!([[true]]),
            json!({}),
            json!({ "zz": 1 }),
        ];
        let mut refused = 0;
        for (place, value) in places.iter().flat_map(|p| wrong.iter().map(move |w| (p, w))) {
            let mut document = document.clone();
            *document.pointer_mut(place).unwrap() = value.clone();
            let Err(error) = parse(document, "x") else { continue };
            // A family's name is what a config says itself.
            let text = format!("{error:#}").replace("\"CaSpaceNet\"", "");
            refused += 1;
            let camel = |word: &str| {
                word.as_bytes()
                    .windows(2)
                    .any(|w| w[0].is_ascii_lowercase() && w[1].is_ascii_uppercase())
            };
            let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
            for word in words {
                let types = [
                    "struct", "tuple", "enum", "variant", "untagged", "usize", "u32", "u64", "f64",
                ];
                assert!(!types.contains(&word) && !camel(word), "{place} = {value}: {text}");
            }
            assert!(!text.contains("invalid type"), "{place} = {value}: {text}");
            let section = place.split('/').nth(1).unwrap_or_default();
            assert!(text.contains(section), "{place} = {value}: {text}");
        }
        assert!(refused > 5 * places.len(), "{refused} of {} places", places.len());
    }
}
