//! `mqat inspect FILE`: what a file of weights holds, of any kind.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;
use tch::Device;

use crate::artifact::kind::{FileKind, Strictness, kind_of};
use crate::artifact::name::module_names;
use crate::artifact::network::blank_network;
use crate::artifact::tensor::TensorReport;
use crate::artifact::weights::{self, InqLayerReport, OtherMember};
use crate::artifact::{OnnxMeta, packed};
use crate::export::onnx::{META_KEY, StoredCodes, StoredValues, read_contents};
use crate::io::{parse_json, tensors};
use crate::quant::SiteReport;
use crate::run::Config;
use crate::run::config;
use crate::topology::wdr::recognise::num_classes_of;
use crate::topology::{Topology, keys};
use crate::train::{BatchNormInfo, Best, CheckpointMeta, Imported, ObjectInfo, Position};

/// Group of tensors that belong to no module.
const OTHER: &str = "other";

/// What a file holds.
#[derive(Debug, Serialize)]
pub struct FileReport {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub path: PathBuf,
    /// What kind it is.
    pub kind: FileKind,
    /// Bytes on disk.
    pub bytes: u64,
    /// Version of mqat that wrote it, for a checkpoint.
    pub mqat_version: Option<String>,
    /// The stage a checkpoint is in.
    pub stage: Option<String>,
    /// Where a checkpoint is.
    pub position: Option<Position>,
    /// How a checkpoint came to be.
    pub provenance: Option<ProvenanceReport>,
    /// How the statistics of batch norms were estimated, where they are no moving averages of training.
    pub batch_norm: Option<BatchNormInfo>,
    /// The part of a nested PyTorch file that holds the network.
    pub member: Option<String>,
    /// Its other parts.
    pub other_members: Vec<OtherMember>,
    /// The form of the keys; `mqat import` and `--checkpoint` take it as the bare network.
    pub key_form: String,
    /// The network that it would be imported as.
    pub network: Option<ShapeReport>,
    /// The camera and size of the network's images, of a file that carries its config.
    pub camera: Option<CameraInfo>,
    /// The objects that the network finds, by class; empty where the file does not carry them.
    pub objects: Vec<ObjectInfo>,
    /// Modules that carry quantizers, with bits and levels.
    pub quantized: Vec<String>,
    /// Every layer of a checkpoint that carries quantizers.
    pub layers: Vec<SiteReport>,
    /// Every layer with the state of the published INQ.
    pub inq: Vec<InqLayerReport>,
    /// Every layer of an ONNX file whose weights are integers.
    pub codes: Vec<CodesReport>,
    /// Modules of the network.
    pub modules: Vec<ModuleCount>,
    /// Groups of tensors: modules, optimizer, quantizers.
    pub groups: Vec<GroupReport>,
    /// Every tensor.
    pub tensors: Vec<TensorReport>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// The camera of the images that a network takes (`INPUT` of its config).
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CameraInfo {
    /// Row-major, px.
    pub k: [f64; 9],
    /// px.
    pub width: usize,
    /// px.
    pub height: usize,
}

impl CameraInfo {
    fn of(config: &Config) -> Self {
        let input = &config.input;
        Self { k: input.k, width: input.width, height: input.height }
    }
}

/// How a checkpoint came to be.
#[derive(Debug, Serialize)]
pub struct ProvenanceReport {
    /// Seed of the run.
    pub seed: u64,
    /// Its device.
    pub device: String,
    /// Its threads.
    pub num_threads: i32,
    /// Hash of its config.
    pub config_hash: String,
    /// The best validation so far.
    pub best: Option<Best>,
    /// The file of another program that it was made from.
    pub imported: Option<Imported>,
}

/// A layer of an ONNX file whose weights are integers.
#[derive(Debug, Serialize)]
pub struct CodesReport {
    /// The layer.
    pub name: String,
    /// Its weights.
    pub num_weights: usize,
    /// The integers and their grid.
    #[serde(flatten)]
    pub codes: StoredCodes,
}

/// The network that a file's tensors are of.
#[derive(Debug, Serialize)]
pub struct ShapeReport {
    /// Its topology, if it is one with a name.
    pub topology: Option<&'static str>,
    /// Object classes, background not counted; `data.N_CLASS` is one more.
    pub num_classes: Option<i64>,
    /// Its `network.params`, as far as tensors tell them.
    pub params: Value,
}

impl ShapeReport {
    fn of(network: &Topology, num_classes: Option<i64>) -> Result<Self> {
        let mut section = serde_json::to_value(network).context("writing the network's shape")?;
        Ok(Self { topology: network.name(), num_classes, params: section["params"].take() })
    }
}

/// A module's learnt numbers, each tensor counted once.
#[derive(Debug, Serialize)]
pub struct ModuleCount {
    /// `backbone`, `fpn` or `head`.
    pub name: String,
    /// Its parameters.
    pub num_parameters: usize,
}

/// Tensors under one name.
#[derive(Debug, Serialize)]
pub struct GroupReport {
    /// `backbone`, `fpn`, `head`, `optim`, `quant`, ...
    pub name: String,
    /// Tensors.
    pub num_tensors: usize,
    /// Numbers in them.
    pub num_elements: usize,
    /// Bytes of them.
    pub bytes: usize,
}

/// Describes a file of weights.
///
/// # Errors
/// If it cannot be read or is of no known kind.
pub fn inspect_file(path: &Path) -> Result<FileReport> {
    let bytes =
        std::fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
    let kind = kind_of(path)?;
    let mut report = FileReport {
        path: path.to_owned(),
        kind,
        bytes,
        mqat_version: None,
        stage: None,
        position: None,
        provenance: None,
        batch_norm: None,
        member: None,
        other_members: Vec::new(),
        key_form: String::new(),
        network: None,
        camera: None,
        objects: Vec::new(),
        quantized: Vec::new(),
        layers: Vec::new(),
        inq: Vec::new(),
        codes: Vec::new(),
        modules: Vec::new(),
        groups: Vec::new(),
        tensors: Vec::new(),
        notes: Vec::new(),
    };
    match kind {
        FileKind::Checkpoint | FileKind::Safetensors => {
            report.tensors = head(path)?;
            report.batch_norm = bare_batch_norm(path)?;
            if let Some(meta) = CheckpointMeta::of_file(path)? {
                describe_checkpoint(&mut report, meta);
            } else if report.tensors.iter().any(|t| keys::inq_extra(&t.name).is_some()) {
                describe_state(&mut report)?;
            }
        }
        FileKind::PyTorch => describe_state(&mut report)?,
        FileKind::Packed => {
            let packed = packed::describe(path)?;
            report.tensors = packed.tensors;
            report.notes = packed.notes;
            describe_checkpoint(&mut report, packed.meta);
        }
        FileKind::Onnx => describe_onnx(&mut report)?,
    }
    count(&mut report);
    Ok(report)
}

fn head(path: &Path) -> Result<Vec<TensorReport>> {
    let tensors = tensors::read_head(path)?.tensors.into_iter();
    let report = |t: tensors::TensorInfo| TensorReport {
        dtype: weights::dtype(t.kind),
        name: t.name,
        shape: t.shape,
        bytes: t.num_bytes,
    };
    Ok(tensors.map(report).collect())
}

/// What the metadata of bare weights say of batch norms.
fn bare_batch_norm(path: &Path) -> Result<Option<BatchNormInfo>> {
    let key = CheckpointMeta::BATCH_NORM;
    let head = tensors::read_head(path)?;
    let parse =
        |json: &String| parse_json(json.as_bytes(), &format!("{}: metadata {key}", path.display()));
    head.metadata.get(key).map(parse).transpose()
}

/// Position, provenance and quantizers of a checkpoint of mqat.
fn describe_checkpoint(report: &mut FileReport, meta: CheckpointMeta) {
    report.quantized = module_names(&meta.quantized);
    // a packed file says all of its layers by the types of its tensors
    if report.kind == FileKind::Checkpoint && !meta.quantized.is_empty() {
        match quantized_layers(&report.path, &meta) {
            Ok(layers) => report.layers = layers,
            Err(error) => report.notes.push(format!("its quantizers cannot be read: {error:#}")),
        }
    }
    match config::parse(meta.config, "its config") {
        Ok(config) => report.camera = Some(CameraInfo::of(&config)),
        Err(error) => report.notes.push(format!("its config cannot be used: {error:#}")),
    }
    report.objects = meta.objects;
    report.mqat_version = Some(meta.mqat_version);
    report.stage = Some(meta.stage_name);
    report.position = Some(meta.position);
    report.batch_norm = meta.batch_norm;
    report.provenance = Some(ProvenanceReport {
        seed: meta.seed,
        device: meta.device,
        num_threads: meta.num_threads,
        config_hash: meta.config_hash,
        best: meta.best,
        imported: meta.imported,
    });
}

fn quantized_layers(path: &Path, meta: &CheckpointMeta) -> Result<Vec<SiteReport>> {
    let config = config::parse(meta.config.clone(), "its config")?;
    let net = blank_network(&config, Device::Cpu)?;
    let loaded = weights::load_as_stored(path, net.as_ref(), Strictness::Strict)?;
    Ok(loaded.quantizers.iter().flat_map(|q| q.report()).collect())
}

/// Tensors, members and INQ layers of a state dict of other programs.
fn describe_state(report: &mut FileReport) -> Result<()> {
    let state = weights::read_state(&report.path)?;
    report.member = state.member.clone();
    report.other_members = state.other_members.clone();
    let listed = state.tensors.iter().map(|(name, tensor)| TensorReport {
        name: name.clone(),
        dtype: weights::dtype(tensor.kind()),
        shape: tensor.size(),
        bytes: tensor.numel() * tensor.kind().elt_size_in_bytes(),
    });
    report.tensors = listed.collect();
    let (inq, notes) = weights::inq_layers(state)?;
    report.inq = inq;
    report.notes.extend(notes);
    Ok(())
}

/// Constants, integer weights and metadata of an ONNX file of any program.
fn describe_onnx(report: &mut FileReport) -> Result<()> {
    let contents = read_contents(&report.path)?;
    report.tensors = (contents.tensors.into_iter())
        .map(|t| TensorReport { name: t.name, dtype: t.dtype, shape: t.dims, bytes: t.num_bytes })
        .collect();
    for weight in contents.weights {
        if let StoredValues::Codes(codes) = weight.values {
            let num_weights = weight.dims.iter().product::<i64>() as usize;
            report.codes.push(CodesReport { name: weight.layer, num_weights, codes });
        }
    }
    let operations: Vec<String> =
        contents.operations.iter().map(|(name, n)| format!("{n} {name}")).collect();
    report.notes.push(format!("opset {}: {}", contents.opset, operations.join(", ")));
    report.notes.extend(contents.activation_problems);
    if contents.metadata.contains_key(META_KEY) {
        let meta = OnnxMeta::of_file(&report.path)?;
        report.notes.push(format!("exported by mqat {}, {}", meta.mqat_version, meta.activations));
        report.quantized = meta.quantized;
        report.batch_norm = meta.batch_norm;
        let config = config::parse(meta.config, "its config")?;
        report.camera = Some(CameraInfo::of(&config));
        report.objects = meta.objects;
        let num_classes = i64::try_from(config.data.num_classes()).ok();
        report.network = Some(ShapeReport::of(&config.network, num_classes)?);
    }
    Ok(())
}

/// A weight's usual name where a file holds its integers.
fn usual_name(name: &str) -> String {
    name.strip_suffix("_codes").unwrap_or(name).to_owned()
}

/// Groups, parameters and the network, from the list of tensors.
fn count(report: &mut FileReport) {
    let mut seen = HashSet::new();
    let mut parameters: BTreeMap<&str, usize> = BTreeMap::new();
    let mut sizes: HashMap<&str, Vec<i64>> = HashMap::new();
    let mut groups: Vec<GroupReport> = Vec::new();
    let names: Vec<String> = report.tensors.iter().map(|t| usual_name(&t.name)).collect();
    for (tensor, name) in report.tensors.iter().zip(&names) {
        let bare = keys::bare(name);
        let root = keys::root(bare);
        let first = || tensor.name.split_once('.').map_or(OTHER, |(first, _)| first);
        let name = root.unwrap_or_else(first);
        let num_elements = tensor.shape.iter().product::<i64>() as usize;
        match groups.iter_mut().find(|g| g.name == name) {
            Some(g) => {
                g.num_tensors += 1;
                g.num_elements += num_elements;
                g.bytes += tensor.bytes;
            }
            None => groups.push(GroupReport {
                name: name.to_owned(),
                num_tensors: 1,
                num_elements,
                bytes: tensor.bytes,
            }),
        }
        let Some(root) = root else { continue };
        if seen.insert(bare) {
            sizes.insert(bare, tensor.shape.clone());
            let is_learnt = |bare: &str| match report.kind {
                FileKind::Onnx => bare.ends_with(".weight") || bare.ends_with(".bias"),
                _ => keys::is_parameter(bare) && keys::inq_extra(bare).is_none(),
            };
            if is_learnt(bare) {
                *parameters.entry(root).or_default() += num_elements;
            }
        }
    }
    report.groups = groups;
    report.modules = parameters
        .into_iter()
        .map(|(name, num_parameters)| ModuleCount { name: name.to_owned(), num_parameters })
        .collect();
    report.key_form = weights::key_form(report.tensors.iter().map(|t| t.name.as_str()));
    if report.network.is_none() {
        let num_classes = num_classes_of(&sizes);
        let shape = Topology::of(&sizes);
        report.network = shape.and_then(|shape| ShapeReport::of(&shape, num_classes).ok());
    }
}

impl FileReport {
    /// For a terminal; `all` lists every layer and tensor.
    pub fn text(&self, all: bool) -> String {
        let mut out = String::new();
        let mb = self.bytes as f64 / 1e6;
        let _ = writeln!(out, "{}: {}, {mb:.2} MB", self.path.display(), self.kind.text());
        self.origin(&mut out);
        let quantized =
            if self.quantized.is_empty() { "none".to_owned() } else { self.quantized.join(" + ") };
        let _ = writeln!(out, "quantized modules: {quantized}");
        self.quantizers(&mut out, all);
        for note in &self.notes {
            let _ = writeln!(out, "{note}");
        }
        self.objects(&mut out);
        if !self.modules.is_empty() {
            let _ = writeln!(out, "\n{:<18} {:>12}", "module", "parameters");
            for m in &self.modules {
                let _ = writeln!(out, "{:<18} {:>12}", m.name, m.num_parameters);
            }
        }
        let _ = writeln!(out, "\n{:<18} {:>8} {:>12} {:>10}", "group", "tensors", "elements", "MB");
        for g in &self.groups {
            let mb = g.bytes as f64 / 1e6;
            let _ = writeln!(
                out,
                "{:<18} {:>8} {:>12} {mb:>10.2}",
                g.name, g.num_tensors, g.num_elements
            );
        }
        if all {
            let _ = writeln!(out, "\n{:<60} {:<8} shape", "tensor", "dtype");
            for t in &self.tensors {
                let _ = writeln!(out, "{:<60} {:<8} {:?}", t.name, t.dtype, t.shape);
            }
        }
        out
    }

    /// What poses need: camera and objects.
    fn objects(&self, out: &mut String) {
        let Some(CameraInfo { k, width, height }) = &self.camera else { return };
        let [fx, _, cx, _, fy, cy, ..] = k;
        let _ = writeln!(
            out,
            "internal camera: {width} x {height} px, fx {fx:.2}, fy {fy:.2}, cx {cx:.2}, cy {cy:.2} px"
        );
        for object in &self.objects {
            let _ = writeln!(out, "{}", object.text());
        }
        if self.objects.is_empty() {
            let _ = writeln!(
                out,
                "objects: not in the file; `mqat predict` takes their boxes from a dataset (--data) or --boxes"
            );
        }
    }

    /// Where it comes from and what it would be imported as.
    fn origin(&self, out: &mut String) {
        if let (Some(version), Some(stage), Some(at)) =
            (&self.mqat_version, &self.stage, &self.position)
        {
            let _ = writeln!(
                out,
                "checkpoint of mqat {version}: stage {} ({stage}) after {} epochs and {} steps of the next, step {} of the run",
                at.stage, at.epoch, at.batch, at.global_step
            );
        }
        if let Some(p) = &self.provenance {
            let _ = write!(out, "seed {}, {} with {} threads", p.seed, p.device, p.num_threads);
            if let Some(best) = &p.best {
                let (name, value) = (&best.name, best.value);
                let _ = write!(out, ", best {name} {value:.2} at step {}", best.global_step);
            }
            let _ = writeln!(out);
            if let Some(imported) = &p.imported {
                let from = imported.file.display();
                let _ = writeln!(out, "imported from {from}, keys {}", imported.key_form);
            }
        }
        if let Some(info) = &self.batch_norm {
            let _ = writeln!(out, "{}", info.text());
        }
        if let Some(member) = &self.member {
            let _ = writeln!(out, "the network is its member {member:?}");
        }
        for m in &self.other_members {
            let _ = writeln!(out, "other member {} ({})", m.name, m.what);
        }
        match &self.network {
            None => {
                let _ = writeln!(out, "holds no network that mqat knows");
            }
            Some(network) => {
                let topology = network.topology.unwrap_or("of no name");
                let classes = network.num_classes.map_or("?".to_owned(), |n| n.to_string());
                let _ = writeln!(
                    out,
                    "keys {}: topology {topology}, {classes} object class(es)",
                    self.key_form
                );
            }
        }
    }

    /// Layers with quantizers; each of its own with `all`.
    fn quantizers(&self, out: &mut String, all: bool) {
        if !self.codes.is_empty() {
            let _ = writeln!(out, "{} layer(s) with integer weights", self.codes.len());
            for l in self.codes.iter().filter(|_| all) {
                let c = &l.codes;
                let _ = writeln!(
                    out,
                    "  {}: {} values of {} from {} to {}, scale {:e} to {:e}",
                    l.name, c.num_values, c.dtype, c.range[0], c.range[1], c.scale[0], c.scale[1]
                );
            }
        }
        if self.inq.is_empty() && self.layers.is_empty() {
            return;
        }
        let num = self.inq.len() + self.layers.len();
        let weights = self
            .layers
            .iter()
            .filter(|l| l.num_levels.is_some())
            .map(|l| (l.num_weights, l.frozen_fraction))
            .chain(self.inq.iter().map(|l| (l.num_weights, l.frozen_fraction)));
        let (total, frozen) = weights
            .fold((0.0, 0.0), |(t, f), (n, fraction)| (t + n as f64, f + n as f64 * fraction));
        let fraction = 100.0 * frozen / f64::max(total, 1.0);
        let _ = writeln!(
            out,
            "{num} layer(s) with quantizer state, {fraction:.2} % of their weights frozen"
        );
        if !all {
            return;
        }
        for l in &self.layers {
            let inputs = l.activations.as_ref().map_or(String::new(), |a| {
                let range = a.max_level.map_or("not recorded yet".to_owned(), |m| format!("+-{m}"));
                format!("; activations {} {} bits, range {range}", a.method, a.bits)
            });
            let levels = l.num_levels.map_or(String::new(), |n| {
                format!(
                    " {} bits, {n} levels ({} in use), {:.2} % frozen",
                    l.bits,
                    l.levels_in_use,
                    100.0 * l.frozen_fraction
                )
            });
            let _ = writeln!(out, "  {}: {}{levels}{inputs}", l.name, l.method);
        }
        for l in &self.inq {
            let _ = writeln!(out, "  {}", l.text());
        }
    }
}
