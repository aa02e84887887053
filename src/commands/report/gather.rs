//! From experiment folders to evaluated networks with their sizes.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};
use tch::Device;

use crate::artifact::network::blank_network;
use crate::commands::test::{CHECKPOINTS_FILE, errors_file};
use crate::data::Split;
use crate::eval::Report;
use crate::io;
use crate::quant::size::Sizes;
use crate::run::config::{self, Config, Select, TrainingSection};
use crate::run::folder::{Folder, Pick};
use crate::run::home::Home;
use crate::run::layers::{layers, sizes_after};
use crate::train::{Afterwards, CheckpointMeta, StageConfig};

/// Folders between a folder given and the experiments below it.
const DEPTH: usize = 6;

/// What a network is compared as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuantizationKind {
    /// The network that the runs began with.
    Start,
    /// No layer is quantized.
    FullPrecision,
    /// Modules one after another.
    Modular,
    /// All layers at once, with the same bits.
    Uniform,
    /// All layers at once, each with its own bits, by fake quantization: as HAWQ-V3.
    LayerWise,
    /// All layers at once, bits of modules, or of layers by a method that freezes weights.
    Joint,
}

impl QuantizationKind {
    /// In the order of the legend.
    pub const ALL: [Self; 6] = [
        Self::Start,
        Self::FullPrecision,
        Self::Modular,
        Self::Uniform,
        Self::LayerWise,
        Self::Joint,
    ];
}

impl fmt::Display for QuantizationKind {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Start => "start",
            Self::FullPrecision => "full precision",
            Self::Modular => "modular (MQAT)",
            Self::Uniform => "uniform",
            Self::LayerWise => "layer-wise (HAWQ-V3)",
            Self::Joint => "joint, mixed bits",
        })
    }
}

/// One evaluated network.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// Folder of its experiment.
    #[serde(serialize_with = "crate::io::path_text")]
    pub experiment: PathBuf,
    /// Its file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub checkpoint: PathBuf,
    /// What it is: `fpn 2-bit (3 levels)`.
    pub network: String,
    /// What it is compared as.
    pub family: QuantizationKind,
    /// Name of the last stage behind it; empty for the start.
    pub stage: String,
    /// The run's seed.
    pub seed: u64,
    /// Steps behind it.
    pub global_step: u64,
    /// Its size.
    pub sizes: Sizes,
    /// The scores.
    pub report: Report,
    /// Equal for runs that differ in nothing but their seed.
    #[serde(skip)]
    pub(super) key: String,
    /// The evaluation's folder, and the network's place in it.
    #[serde(skip)]
    pub(super) place: (PathBuf, usize),
}

impl Point {
    /// The errors of every object.
    pub(super) fn errors_file(&self) -> PathBuf {
        self.place.0.join(errors_file(self.place.1))
    }
}

/// An experiment with its evaluated networks.
pub(super) struct GatheredExperiment {
    pub folder: Folder,
    pub config: Config,
    pub points: Vec<Point>,
    /// The size of its network before anything is quantized.
    float_sizes: Sizes,
}

impl GatheredExperiment {
    /// The weights that it began with; none for random values.
    pub fn start_file(&self) -> Option<&Path> {
        let experiment = &self.config.experiment;
        experiment.pretrained.then(|| Path::new(&experiment.url))
    }

    /// Its folder, for messages.
    pub fn at(&self) -> std::path::Display<'_> {
        self.folder.path.display()
    }
}

/// What an experiment's path says: `LOGS/PROBLEM/TOPOLOGY/expNNN`.
pub(super) struct Place {
    pub logs: PathBuf,
    pub problem: String,
    pub topology: String,
    pub id: u32,
}

impl Place {
    pub(super) fn of(path: &Path) -> Result<Self> {
        let absolute =
            fs::canonicalize(path).with_context(|| format!("opening {}", path.display()))?;
        let name = |p: Option<&Path>| {
            p.and_then(Path::file_name).map(|n| n.to_string_lossy().into_owned())
        };
        let above = |n: usize| absolute.ancestors().nth(n);
        let id = name(above(0)).and_then(|n| n.strip_prefix("exp")?.parse().ok());
        let (Some(id), Some(topology), Some(problem), Some(logs)) =
            (id, name(above(1)), name(above(2)), above(3))
        else {
            bail!("{}: expected a folder LOGS/PROBLEM/TOPOLOGY/expNNN", path.display())
        };
        Ok(Self { logs: logs.to_owned(), problem, topology, id })
    }
}

/// The folders of the experiments that are asked for; without any those of the topology.
pub(super) fn find(experiments: &[String], select: &Select, home: &Home) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    if experiments.is_empty() {
        let all = home.logs.join(select.problem()).join(select.topology());
        if all.is_dir() {
            below(&all, DEPTH, &mut found)?;
        }
        ensure!(
            !found.is_empty(),
            "{}: no experiment (a folder expNNN with a config.json) is there; name experiments, --topology or --logs",
            all.display()
        );
        return Ok(found);
    }
    for text in experiments {
        let path = Path::new(text);
        if path.is_dir() {
            let before = found.len();
            below(path, DEPTH, &mut found)?;
            ensure!(
                found.len() > before,
                "{text}: no experiment (a folder expNNN with a config.json) is there or below it"
            );
            continue;
        }
        let number = text.strip_prefix("exp").unwrap_or(text).parse::<u32>();
        let Ok(id) = number else {
            bail!(
                "{text}: is neither a folder nor the number of an experiment (such as 3 or exp003)"
            )
        };
        let folder = Folder::find(&home.logs, select.problem(), select.topology(), Pick::Id(id))?;
        found.push(folder.path);
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|path| seen.insert(path.clone()));
    Ok(found)
}

/// Whether two paths are of one folder.
pub(super) fn is_same(a: &Path, b: &Path) -> bool {
    a == b || matches!((fs::canonicalize(a), fs::canonicalize(b)), (Ok(a), Ok(b)) if a == b)
}

/// Experiments in a folder, in the order of their paths; not below an experiment.
fn below(path: &Path, depth: usize, found: &mut Vec<PathBuf>) -> Result<()> {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if name.starts_with("exp") && path.join("config.json").is_file() {
        found.push(path.to_owned());
        return Ok(());
    }
    if depth == 0 {
        return Ok(());
    }
    let reading = || format!("reading the folder {}", path.display());
    let mut entries = Vec::new();
    for entry in fs::read_dir(path).with_context(reading)? {
        entries.push(entry.with_context(reading)?.path());
    }
    entries.sort();
    entries.iter().filter(|p| p.is_dir()).try_for_each(|p| below(p, depth - 1, found))
}

fn evaluation(path: &Path, split: Split) -> PathBuf {
    path.join("eval").join(split.to_string())
}

/// Where the evaluation of the network that an experiment began with lies.
pub(super) fn start_evaluation(path: &Path, split: Split) -> PathBuf {
    path.join("eval").join(format!("{split}_start"))
}

/// Whether `mqat test` was run on the split.
pub(super) fn is_evaluated(path: &Path, split: Split) -> bool {
    evaluation(path, split).join("metrics.json").is_file()
}

/// Reads an experiment's evaluation; `None` if there is none.
pub(super) fn open(path: &Path, split: Split) -> Result<Option<GatheredExperiment>> {
    if !is_evaluated(path, split) {
        return Ok(None);
    }
    let folder = Folder { path: path.to_owned(), id: Place::of(path)?.id };
    let from = evaluation(path, split);
    let evaluated = evaluated(&from)?;
    let document: Value = io::read_json(&folder.config())?;
    let config = config::parse(document, &folder.config().display().to_string())?;
    let stages = config.train_config().stages;
    let net = blank_network(&config, Device::Cpu)?;
    let size = [config.input.width, config.input.height];
    let all = layers(net.as_ref(), &stages, size)?;
    let mut points = Vec::new();
    for (i, (report, checkpoint)) in evaluated.into_iter().enumerate() {
        let checkpoint = moved(&folder, checkpoint);
        let meta = CheckpointMeta::of_file(&checkpoint)
            .with_context(|| format!("{}: its checkpoint {i}", from.display()))?
            .with_context(|| format!("{} says nothing of its stage", checkpoint.display()))?;
        let stage = meta.position.stage;
        let done = stages.get(..=stage).with_context(|| {
            format!("{} is of stage {stage}, which the config has not", checkpoint.display())
        })?;
        points.push(Point {
            experiment: path.to_owned(),
            network: name(&report.name, done),
            family: family(done, |name| all.iter().any(|layer| layer.name == name)),
            stage: meta.stage_name,
            seed: meta.seed,
            global_step: meta.position.global_step,
            sizes: sizes_after(&all, net.as_ref(), stage),
            key: key(&config, done),
            place: (from.clone(), i),
            checkpoint,
            report,
        });
    }
    let float_sizes = sizes_after(&layers(net.as_ref(), &[], size)?, net.as_ref(), 0);
    Ok(Some(GatheredExperiment { folder, config, points, float_sizes }))
}

/// The reports of an evaluation's folder with their files.
fn evaluated(from: &Path) -> Result<Vec<(Report, PathBuf)>> {
    let reports: Vec<Report> = io::read_json(&from.join("metrics.json"))?;
    let files = from.join(CHECKPOINTS_FILE);
    ensure!(
        files.is_file(),
        "{} is missing: the evaluation was made by an older version; run `mqat test --all-stages` again",
        files.display()
    );
    let checkpoints: Vec<PathBuf> = io::read_json(&files)?;
    ensure!(
        checkpoints.len() == reports.len(),
        "{}: {} checkpoints, and metrics.json beside it has {} reports; run `mqat test` again",
        files.display(),
        checkpoints.len(),
        reports.len()
    );
    Ok(reports.into_iter().zip(checkpoints).collect())
}

/// The row `start` from the evaluation in `from`, of the network that `experiment` is of.
pub(super) fn start_point(from: &Path, experiment: &GatheredExperiment) -> Result<Point> {
    let mut evaluated = evaluated(from)?;
    let (Some((report, checkpoint)), true) = (evaluated.pop(), evaluated.is_empty()) else {
        bail!("{}: expected the evaluation of one network, the start", from.display())
    };
    Ok(Point {
        experiment: experiment.folder.path.clone(),
        checkpoint,
        network: format!("{}, as it is", report.name),
        family: QuantizationKind::Start,
        stage: String::new(),
        seed: experiment.config.experiment.seed,
        global_step: 0,
        sizes: experiment.float_sizes,
        report,
        key: "start".to_owned(),
        place: (from.to_owned(), 0),
    })
}

/// A checkpoint of an experiment that may have been moved since.
fn moved(folder: &Folder, checkpoint: PathBuf) -> PathBuf {
    let own = checkpoint.file_name().map(|name| folder.checkpoints().join(name));
    match own {
        Some(own) if !checkpoint.is_file() && own.is_file() => own,
        _ => checkpoint,
    }
}

/// The network's name; of a float one of several stages also how many, which tells it from one of fewer.
fn name(name: &str, stages: &[StageConfig]) -> String {
    match stages.len() {
        num if num > 1 && stages.iter().all(|s| s.module.is_none()) => {
            format!("{name}, {num} stages")
        }
        _ => name.to_owned(),
    }
}

/// What stages make of a network; `is_layer` tells names of layers from patterns of modules.
fn family(stages: &[StageConfig], is_layer: impl Fn(&str) -> bool) -> QuantizationKind {
    let quantizing: Vec<&StageConfig> = stages.iter().filter(|s| s.module.is_some()).collect();
    let [one] = quantizing.as_slice() else {
        return match quantizing.is_empty() {
            true => QuantizationKind::FullPrecision,
            false => QuantizationKind::Modular,
        };
    };
    let weights = one.weights.as_ref().filter(|w| !w.layer_bits.is_empty());
    match weights {
        Some(weights) if weights.layer_bits.keys().all(|name| is_layer(name)) => {
            let is_fake_quantized = weights.settings.scheme().schedule().is_none();
            if is_fake_quantized { QuantizationKind::LayerWise } else { QuantizationKind::Joint }
        }
        Some(_) => QuantizationKind::Joint,
        None if one.module.as_deref() == Some("*") => QuantizationKind::Uniform,
        None => QuantizationKind::Modular,
    }
}

/// What decides the result, but for the seed.
fn key(config: &Config, stages: &[StageConfig]) -> String {
    let Config { experiment, network, data, input, training, .. } = config;
    let start = experiment.pretrained.then_some((&experiment.url, experiment.loose));
    // The stages stand by themselves, as far as they came; the rest of the section concerns all of them.
    let mut training = TrainingSection { full_precision: None, ..training.clone() };
    let saving = TrainingSection::default();
    training.ckpt_every = saving.ckpt_every;
    training.ckpt_every_steps = saving.ckpt_every_steps;
    training.keep = saving.keep;
    if training.monitor.patience.is_none() {
        // Validations decide nothing but which checkpoint is called the best.
        training.valid_every = saving.valid_every;
        training.valid_images = saving.valid_images;
    }
    let mut stages = stages.to_vec();
    if let Some(last) = stages.last_mut() {
        last.afterwards = Afterwards::Freeze; // no stage has come after it yet
    }
    json!([start, network, data, input, training, stages]).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages(json: Value) -> Vec<StageConfig> {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn families_are_told_by_their_stages() {
        let full = json!({ "name": "full_precision" });
        let fpn = json!({ "module": "fpn", "weights": { "bits": 2 } });
        let all = json!({ "module": "*", "weights": { "method": "lsq", "bits": 4 } });
        let mixed = |method: &str, name: &str| {
            let weights = json!({ "method": method, "bits": 4, "layer_bits": { name: 2 } });
            json!({ "module": "*", "weights": weights })
        };
        let (by_layer, by_module) = (mixed("lsq", "fpn.a"), mixed("lsq", "fpn"));
        for (flow, expected) in [
            (json!([full]), QuantizationKind::FullPrecision),
            (json!([full, fpn]), QuantizationKind::Modular),
            (json!([fpn, by_layer]), QuantizationKind::Modular),
            (json!([all]), QuantizationKind::Uniform),
            (json!([full, by_layer]), QuantizationKind::LayerWise),
            (json!([full, by_module]), QuantizationKind::Joint),
            (json!([mixed("inq", "fpn.a")]), QuantizationKind::Joint),
        ] {
            assert_eq!(family(&stages(flow.clone()), |name| name == "fpn.a"), expected, "{flow}");
        }
    }

    #[test]
    fn float_rows_of_several_stages_say_how_many() {
        let full = json!({ "name": "full_precision" });
        let fpn = json!({ "module": "fpn", "weights": { "bits": 2 } });
        let named = |flow: Value| name("x", &stages(flow));
        assert_eq!(named(json!([full])), "x");
        assert_eq!(named(json!([full, full])), "x, 2 stages");
        assert_eq!(named(json!([full, fpn])), "x");
    }

    #[test]
    fn runs_are_alike_whatever_their_seed() {
        let mut a = Config::default();
        let stages = a.train_config().stages;
        let before = key(&a, &stages);
        let alike: [fn(&mut Config); 5] = [
            |c| c.experiment.seed += 1,
            |c| c.training.ckpt_every += 1,
            |c| c.training.keep += 1,
            |c| (c.training.valid_every, c.training.valid_images) = (7, Some(3)),
            |c| c.experiment.url = "unused without pretrained".to_owned(),
        ];
        for (i, change) in alike.into_iter().enumerate() {
            change(&mut a);
            assert_eq!(key(&a, &stages), before, "change {i}");
        }
        let other: [fn(&mut Config); 13] = [
            |c| c.data.bs_train += 1,
            |c| c.experiment.pretrained = true,
            |c| {
                c.experiment.pretrained = true;
                c.experiment.url = "a".to_owned();
            },
            |c| (c.experiment.pretrained, c.experiment.loose) = (true, true),
            |c| c.training.distill = Some(Default::default()),
            |c| c.training.epoch_images = Some(9),
            |c| c.training.train_images = Some(9),
            |c| c.training.max_steps = Some(9),
            |c| c.training.bn_batches += 1,
            |c| c.training.bn_always = true,
            |c| c.training.ema = Some(Default::default()),
            |c| c.training.monitor.patience = Some(1),
            |c| {
                c.training.monitor.patience = Some(1);
                c.training.valid_every += 1;
            },
        ];
        let mut keys = vec![before];
        for (i, change) in other.into_iter().enumerate() {
            let mut b = Config::default();
            change(&mut b);
            let found = key(&b, &stages);
            assert!(!keys.contains(&found), "change {i}");
            keys.push(found);
        }
    }

    #[test]
    fn what_becomes_of_the_last_stage_afterwards_changes_nothing_yet() {
        let config = Config::default();
        let freeze = json!({ "module": "fpn", "weights": { "method": "lsq", "bits": 2 } });
        let mut train = freeze.clone();
        train["afterwards"] = "train".into();
        let key_of = |flow: Value| key(&config, &stages(flow));
        assert_eq!(key_of(json!([freeze])), key_of(json!([train])));
        assert_ne!(key_of(json!([freeze, freeze])), key_of(json!([train, freeze])));
    }

    #[test]
    fn a_place_is_read_off_the_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("P/T/exp012");
        fs::create_dir_all(&path).unwrap();
        let place = Place::of(&path).unwrap();
        assert_eq!((place.problem.as_str(), place.topology.as_str(), place.id), ("P", "T", 12));
        assert_eq!(place.logs, fs::canonicalize(dir.path()).unwrap());
        assert!(Place::of(dir.path()).is_err());
        fs::write(path.join("config.json"), "{}").unwrap();
        let mut found = Vec::new();
        below(dir.path(), DEPTH, &mut found).unwrap();
        assert_eq!(found, [path]);
    }
}
