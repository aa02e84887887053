//! What a checkpoint holds, and its file: safetensors with the position as JSON in the metadata.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Deserializer, Serialize};
use tch::{Device, Tensor};

use super::record::exact_losses;
use super::{Afterwards, BatchNormInfo, NamedLosses, ObjectInfo, StageConfig};
use crate::io::{parse_json, tensors};
use crate::nn::{Network, Store, device_name, device_name_of};
use crate::quant::{Claim, ModuleQuantizer, Telemetry};
use crate::seed::fnv1a;

/// Number of the layout that this version writes.
pub(super) const FORMAT: u32 = 1;
/// The metadata entry that holds the JSON.
const METADATA_KEY: &str = "mqat";
/// Begin of the names of quantizer state.
const QUANT: &str = "quant.";
/// Begin of the names of momentum, followed by the parameter's key.
const MOMENTUM: &str = "optim.momentum.";

/// Begin of the names of averaged weights, followed by the key.
const EMA: &str = "ema.";
/// Begin of the names of the task's state.
const TASK: &str = "task.";

/// Where a run is: what the next step is, and how many lie behind it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// The stage, from 0.
    pub stage: usize,
    /// The stage's epoch, from 0; as large as its number of epochs when the stage is complete.
    pub epoch: u32,
    /// The epoch's next batch, from 0.
    pub batch: usize,
    /// Steps of the stage so far.
    pub stage_step: u64,
    /// Steps of the run so far.
    pub global_step: u64,
    /// Epochs of the run completed so far.
    pub global_epoch: u64,
}

/// Sums over the batches of the current epoch, so that a resumed epoch reports the same means.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct EpochSums {
    /// Steps.
    pub steps: u64,
    /// Images.
    pub images: u64,
    /// The losses, by name: keys `loss_NAME`.
    #[serde(flatten, with = "exact_losses")]
    pub losses: NamedLosses,
    /// Gradient norm before clipping.
    #[serde(with = "exact")]
    pub grad_norm: f64,
    /// Positive cells.
    pub num_positive: u64,
    /// Wall time, s.
    pub seconds: f64,
    /// Fraction the weight quantizer was at.
    pub fraction: Option<f64>,
}

/// The best validation of a stage.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Best {
    /// The stage, from 0.
    pub stage: usize,
    /// What was measured.
    pub name: String,
    /// Its value.
    #[serde(with = "exact")]
    pub value: f64,
    /// Steps behind the weights that reached it.
    pub global_step: u64,
    /// What tells it from others of that value, more is better: objects found, and minus the loss; empty in files of
    /// earlier versions.
    #[serde(default)]
    pub ties: Vec<f64>,
    /// Validations since then that could have been better and were not.
    #[serde(default)]
    pub num_since: u32,
}

/// A module that carries quantizers, with what built them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct QuantizedModule {
    /// The stage that quantized it, from 0.
    pub stage: usize,
    /// What becomes of it in later stages; not in files of earlier versions, which froze all.
    #[serde(default, skip_serializing_if = "Afterwards::is_freeze")]
    pub afterwards: Afterwards,
    /// The module and how it was quantized.
    #[serde(flatten)]
    pub claim: Claim,
}

impl QuantizedModule {
    /// The module that a stage quantizes, if it does.
    pub fn of_stage(index: usize, stage: &StageConfig, seed: u64) -> Option<Self> {
        let claim = Claim { seed, ..stage.claim()? };
        Some(Self { stage: index, afterwards: stage.afterwards, claim })
    }

    /// Whether its quantizers learn in a stage: in its own, and in later ones where it is trained on.
    pub fn learns_in(&self, stage: usize) -> bool {
        self.stage == stage || (self.stage < stage && self.afterwards == Afterwards::Train)
    }

    /// Plugs the quantizers into the network's layers.
    ///
    /// # Errors
    /// As [`ModuleQuantizer::attach`].
    pub fn attach(&self, store: &Store) -> Result<ModuleQuantizer> {
        ModuleQuantizer::attach(&self.claim, store)
            .with_context(|| format!("quantizing module {}", self.claim.module))
    }
}

/// Everything in a checkpoint that is not a tensor.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckpointMeta {
    /// Layout of the file.
    pub format: u32,
    /// Version of the program that wrote it.
    pub mqat_version: String,
    /// Name of the stage at `position`.
    pub stage_name: String,
    /// What comes next.
    pub position: Position,
    /// Sums of the epoch that `position` is in.
    pub epoch_sums: EpochSums,
    /// The best validation so far, of the latest stage that has one.
    pub best: Option<Best>,
    /// Modules with quantizers, in the order of the flow.
    pub quantized: Vec<QuantizedModule>,
    /// Seed of the run.
    pub seed: u64,
    /// Threads of libtorch: sums are bit-identical only for equal numbers.
    pub num_threads: i32,
    /// Processes that train together; files of one process, and of earlier versions, do not say it.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub num_processes: usize,
    /// Device of the run, as [`device_name`] writes it.
    #[serde(deserialize_with = "read_device")]
    pub device: String,
    /// [`config_hash`] of the run's configuration; of 0.1 a number of another kind, empty for imported weights.
    pub config_hash: String,
    /// The run's resolved configuration.
    pub config: serde_json::Value,
    /// Epochs of the run's stages; empty in files of earlier versions and for imported weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stage_epochs: Vec<u32>,
    /// By what the data of the run are known again, by split; empty in files of earlier versions.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub data: BTreeMap<String, DataPrint>,
    /// The objects that the network finds, by class; empty in files of earlier versions and for imported weights.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<ObjectInfo>,
    /// How the running statistics of batch norms were estimated, where they are not the moving averages of training; none in
    /// files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_norm: Option<BatchNormInfo>,
    /// Where the weights come from, when no run of this program trained them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imported: Option<Imported>,
}

fn one() -> usize {
    1
}

fn is_one(number: &usize) -> bool {
    *number == 1
}

/// What tells configurations apart in messages: `fnv1a:` and the hash of the JSON text.
pub fn config_hash(config: &serde_json::Value) -> String {
    format!("fnv1a:{:016x}", fnv1a(config.to_string().as_bytes()))
}

fn read_device<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    String::deserialize(from).map(|text| device_name_of(&text))
}

/// By what a split of a dataset is known again: checksums, which tell whether it changed and not how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataPrint {
    /// Its images.
    pub num_images: u64,
    /// Of the names of the images in the order of the list.
    pub list: String,
    /// Of objects, poses and cameras.
    pub annotations: String,
    /// Of the sizes of the images' files.
    pub file_sizes: String,
}

impl DataPrint {
    /// What is not as in `other`, in words; `None` if nothing.
    pub fn difference(&self, other: &Self) -> Option<String> {
        let mut what = Vec::new();
        if self.num_images != other.num_images {
            what.push(format!("{} images, now {}", self.num_images, other.num_images));
        }
        for (name, ours, theirs) in [
            ("another list", &self.list, &other.list),
            ("other annotations", &self.annotations, &other.annotations),
            ("image files of other sizes", &self.file_sizes, &other.file_sizes),
        ] {
            if ours != theirs {
                what.push(name.to_owned());
            }
        }
        (!what.is_empty()).then(|| what.join(", "))
    }
}

/// The file of another program that weights were taken from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub file: PathBuf,
    /// The part of it that was taken.
    pub member: Option<String>,
    /// The form of its keys.
    pub key_form: String,
}

impl CheckpointMeta {
    /// The metadata entry of a file of bare weights that holds a [`BatchNormInfo`] as JSON.
    pub const BATCH_NORM: &str = "batch_norm";

    /// Of weights that another program trained, under the config of the network they are in.
    pub fn of_import(
        imported: Imported,
        quantized: Vec<QuantizedModule>,
        seed: u64,
        config: serde_json::Value,
    ) -> Self {
        Self {
            format: FORMAT,
            mqat_version: env!("CARGO_PKG_VERSION").to_owned(),
            stage_name: "imported".to_owned(),
            position: Position::default(),
            epoch_sums: EpochSums::default(),
            best: None,
            quantized,
            seed,
            num_threads: tch::get_num_threads(),
            num_processes: 1,
            device: device_name(Device::Cpu),
            config_hash: String::new(),
            config,
            data: BTreeMap::new(),
            objects: Vec::new(),
            stage_epochs: Vec::new(),
            batch_norm: None,
            imported: Some(imported),
        }
    }

    /// What another file holds of a checkpoint.
    ///
    /// # Errors
    /// If it is none, or of a newer format.
    pub fn of_json(json: &str) -> Result<Self> {
        read_meta(json)
    }

    /// Reads what a file says of itself, without its tensors; `None` for a file of bare weights.
    ///
    /// # Errors
    /// If the file is not a safetensors file, or of a newer format.
    pub fn of_file(path: &Path) -> Result<Option<Self>> {
        let head = tensors::read_head(path)?;
        let meta = head.metadata.get(METADATA_KEY).map(|json| read_meta(json)).transpose();
        meta.with_context(|| format!("reading checkpoint {}", path.display()))
    }
}

/// A checkpoint in memory.
#[derive(Debug)]
pub struct Checkpoint {
    /// Position and provenance.
    pub meta: CheckpointMeta,
    /// Parameters and buffers under their PyTorch keys.
    pub weights: Vec<(String, Tensor)>,
    /// Quantizer state, names with their `quant.`.
    pub quant: Vec<(String, Tensor)>,
    /// Momentum by parameter key.
    pub momentum: Vec<(String, Tensor)>,
    /// Moving average of the weights by key, empty where there is none.
    pub ema: Vec<(String, Tensor)>,
    /// What the telemetry remembers.
    pub telemetry: Vec<(String, Tensor)>,
    /// State of the task, empty where it has none.
    pub task: Vec<(String, Tensor)>,
}

impl Checkpoint {
    /// Writes the file, whole or not at all.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string(&self.meta).context("writing the position as JSON")?;
        let metadata = BTreeMap::from([(METADATA_KEY.to_owned(), json)]);
        let share = |(name, tensor): &(String, Tensor)| (name.clone(), tensor.shallow_clone());
        let mut all: Vec<(String, Tensor)> = self.weights.iter().map(share).collect();
        all.extend(self.quant.iter().map(share));
        let momentum = self.momentum.iter().map(share);
        all.extend(momentum.map(|(name, tensor)| (format!("{MOMENTUM}{name}"), tensor)));
        let ema = self.ema.iter().map(share);
        all.extend(ema.map(|(name, tensor)| (format!("{EMA}{name}"), tensor)));
        all.extend(self.telemetry.iter().map(share));
        let task = self.task.iter().map(share);
        all.extend(task.map(|(name, tensor)| (format!("{TASK}{name}"), tensor)));
        tensors::write(path, &all, &metadata)
            .with_context(|| format!("writing checkpoint {}", path.display()))
    }

    /// Reads a file that [`Checkpoint::write`] wrote.
    ///
    /// # Errors
    /// If the file is unreadable or truncated, is not a checkpoint, or of a newer format.
    pub fn read(path: &Path) -> Result<Self> {
        let (meta, parts) = read_parts(path)?;
        let Some(meta) = meta else {
            bail!(
                "{} holds weights but no position (metadata {METADATA_KEY}): it is not a checkpoint to \
                 resume from; start a new run from these weights",
                path.display()
            )
        };
        let Parts { weights, quant, momentum, ema, telemetry, task } = parts;
        Ok(Self { meta, weights, quant, momentum, ema, telemetry, task })
    }
}

type Named = Vec<(String, Tensor)>;

/// The tensors of a file by what they are for.
#[derive(Default)]
struct Parts {
    weights: Named,
    quant: Named,
    momentum: Named,
    ema: Named,
    telemetry: Named,
    task: Named,
}

fn read_parts(path: &Path) -> Result<(Option<CheckpointMeta>, Parts)> {
    let at = path.display();
    let file = tensors::read(path).with_context(|| format!("reading checkpoint {at}"))?;
    let meta = file.metadata.get(METADATA_KEY).map(|json| read_meta(json));
    let meta = meta.transpose().with_context(|| format!("reading checkpoint {at}"))?;
    if meta.is_some() && !file.header_is_checked {
        tracing::warn!(
            "{at}: an earlier version wrote it without a checksum of its header: damage to names, config or position \
             would not be noticed"
        );
    }
    let mut parts = Parts::default();
    for (name, tensor) in file.tensors {
        if let Some(key) = name.strip_prefix(MOMENTUM) {
            parts.momentum.push((key.to_owned(), tensor));
        } else if let Some(key) = name.strip_prefix(EMA) {
            parts.ema.push((key.to_owned(), tensor));
        } else if let Some(key) = name.strip_prefix(TASK) {
            parts.task.push((key.to_owned(), tensor));
        } else if name.starts_with(QUANT) {
            parts.quant.push((name, tensor));
        } else if Telemetry::owns(&name) {
            parts.telemetry.push((name, tensor));
        } else {
            parts.weights.push((name, tensor));
        }
    }
    Ok((meta, parts))
}

fn read_meta(json: &str) -> Result<CheckpointMeta> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
        mqat_version: String,
    }
    let what = format!("metadata {METADATA_KEY}");
    let version: Version = parse_json(json.as_bytes(), &what)?;
    ensure!(
        version.format <= FORMAT,
        "it has format {}, written by mqat {}, and this version reads up to {FORMAT}; \
         use that version or a later one",
        version.format,
        version.mqat_version
    );
    parse_json(json.as_bytes(), &what)
}

/// Copies weights into a network's store; every key of the store must be there with its shape and kind.
///
/// # Errors
/// If keys are missing, left over or differ; names them and `at`.
pub fn load_weights(store: &Store, weights: &[(String, Tensor)], at: &Path) -> Result<()> {
    let targets: Vec<_> = store.vars().into_iter().map(|v| (v.name, v.tensor)).collect();
    let report = tensors::load_into(&targets, weights);
    report.ensure_complete(&at.display().to_string())
}

/// What [`load_for_evaluation`] found beside the weights.
pub struct Loaded {
    /// Position and provenance; `None` for a file of bare weights.
    pub meta: Option<CheckpointMeta>,
    /// The quantizers that are plugged into the network now, in the order of the flow.
    pub quantizers: Vec<ModuleQuantizer>,
    /// Whether the weights are the moving average, which the checkpoint holds beside the last ones.
    pub averaged: bool,
}

/// Loads weights and quantizers of a checkpoint, or of a safetensors file of bare weights, into a network without
/// quantizers. Of a checkpoint with a moving average of the weights that is taken, as validation did; momentum and
/// position are left out.
///
/// # Errors
/// If the file is broken or does not fit the network.
pub fn load_for_evaluation(path: &Path, net: &dyn Network) -> Result<Loaded> {
    let (meta, Parts { weights, quant, ema, .. }) = read_parts(path)?;
    let averaged = !ema.is_empty();
    load_weights(net.store(), if averaged { &ema } else { &weights }, path)?;
    let quantized = meta.as_ref().map_or(&[][..], |m| &m.quantized);
    let mut quantizers = attach_all(quantized, net.store(), &quant)
        .with_context(|| format!("loading checkpoint {}", path.display()))?;
    for quantizer in &mut quantizers {
        // stored weights become those that the network computes with
        quantizer.convert().with_context(|| format!("loading checkpoint {}", path.display()))?;
    }
    Ok(Loaded { meta, quantizers, averaged })
}

/// Builds the quantizers of a checkpoint and gives them their state. The weights are loaded before.
///
/// # Errors
/// If a module is not in the network, or its state is missing or of another quantizer.
pub fn attach_all(
    quantized: &[QuantizedModule],
    store: &Store,
    state: &[(String, Tensor)],
) -> Result<Vec<ModuleQuantizer>> {
    let mut quantizers = Vec::with_capacity(quantized.len());
    for module in quantized {
        let mut quantizer = module.attach(store)?;
        let names: Vec<String> = quantizer.state().into_iter().map(|(name, _)| name).collect();
        let share = state.iter().filter(|(name, _)| names.contains(name));
        let own: Vec<_> = share.map(|(n, t)| (n.clone(), t.shallow_clone())).collect();
        let doing = || format!("restoring the quantizers of module {}", module.claim.module);
        quantizer.load_state(&own).with_context(doing)?;
        quantizers.push(quantizer);
    }
    Ok(quantizers)
}

/// f64 as text: serde_json's fast number parser may be off by the last bit.
mod exact {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format!("{value:?}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
