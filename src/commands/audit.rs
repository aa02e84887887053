//! `mqat audit`: whether a file's weights are quantized as they should be, tensor by tensor.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::Serialize;
use tch::{Device, Tensor};

use super::batch_norm::{BatchNormAudit, TrainingBatches};
use crate::artifact::network::blank_network;
use crate::artifact::{
    Artifact, Asked, FileKind, LoadedNetwork, OnnxMeta, Stored, Strictness, open,
};
use crate::export::onnx::{StoredValues, StoredWeight, read_contents};
use crate::io::tensors;
use crate::nn::Network;
use crate::quant::ActivationReport;
use crate::quant::audit::{SpacingFound, ValuesFound, WeightAudit, audit, look_at_values};
use crate::quant::levels::bits_of;
use crate::run::config::{Config, Names, Select};
use crate::run::flow::{self, Bits, FlowSource};
use crate::run::home::Home;
use crate::run::layers::{LayerReport, layers};
use crate::run::request::Request;
use crate::train::{CheckpointMeta, Position, StageConfig};

/// Bits of the integers that ONNX files hold activations in.
const STORED_BITS: u32 = 8;

/// What `mqat audit` is asked.
#[derive(Debug, Clone)]
pub struct AuditRequest {
    /// The file.
    pub file: PathBuf,
    /// The network, for files that do not carry their config.
    pub select: Select,
    /// The flow that the file is expected to have run to its end.
    pub flow: Option<FlowSource>,
    /// Bits that every convolution is expected to have.
    pub bits: Option<Bits>,
    /// Training batches with whose statistics those of batch norms are compared.
    pub bn_batches: Option<usize>,
    /// The dataset of these, instead of the machine's.
    pub data: Option<PathBuf>,
}

/// What was found.
#[derive(Debug, Serialize)]
pub struct AuditReport {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub file: PathBuf,
    /// Its kind.
    pub kind: FileKind,
    /// Whether there is no problem.
    pub passed: bool,
    /// Whether the moving average of the weights was looked at, which a checkpoint holds beside the last ones.
    pub averaged: bool,
    /// Where a checkpoint is.
    pub stage: Option<String>,
    /// Every convolution.
    pub tensors: Vec<TensorAudit>,
    /// The statistics of batch norms beside those of training batches, where that was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_norms: Option<BatchNormAudit>,
    /// What else is to be known.
    pub notes: Vec<String>,
}

/// A convolution's weight.
#[derive(Debug, Serialize)]
pub struct TensorAudit {
    /// The layer.
    pub name: String,
    /// Its weights.
    pub num_weights: usize,
    /// What the plan makes of it by now, `inq 2 bits (3 levels)` or `float`; null where there is no plan.
    pub expected: Option<String>,
    /// What its quantizer says and its weights are; null where it carries none.
    pub quantized: Option<WeightAudit>,
    /// What its values look like where it carries no quantizer.
    pub values: Option<ValuesFound>,
    /// What is wrong, a line each.
    pub problems: Vec<String>,
}

/// Looks at every convolution of a file.
///
/// # Errors
/// If the file cannot be read, or fits neither its network nor stands for itself; problems of its weights are no
/// error, but [`AuditReport::passed`] is false.
pub fn audit_file(request: &AuditRequest) -> Result<AuditReport> {
    let file = &request.file;
    let home = Home::find(request.data.as_deref(), None)?;
    // The problem names the dataset where one is read.
    let names = request.bn_batches.map_or(Names::Config, |_| Names::Dataset);
    let artifact = open(file, &Asked::weights(&request.select, &home, names))?;
    let (kind, config) = (artifact.kind, &artifact.config);
    if kind == FileKind::Onnx {
        ensure!(
            request.bn_batches.is_none(),
            "--bn-batches cannot act: the batch norms of the ONNX file {} are folded into its weights; audit the checkpoint that it \
             was exported from",
            file.display()
        );
        return audit_onnx(request, &artifact);
    }
    let (net, loaded) = match artifact.network(Device::Cpu, Strictness::Strict, Stored::AsComputed)
    {
        Ok(opened) => opened,
        // A file of any other network still has values.
        Err(err) if kind == FileKind::Safetensors => {
            ensure!(
                request.flow.is_none() && request.bits.is_none() && request.bn_batches.is_none(),
                "{err:#}; only a file that fits a network can be compared with --flow, --bits or --bn-batches: name its \
                 --topology"
            );
            return audit_values(file, kind, format!("{err:#}"));
        }
        Err(err) => return Err(err),
    };
    let expected = expected(request, config, loaded.meta.as_ref())?;
    let plan = planned_layers(request, net.as_ref(), &expected, config)?;
    let mut audits = Vec::new();
    for quantizer in &loaded.quantizers {
        audits.extend(audit(quantizer)?);
    }
    let mut rows = Vec::new();
    for layer in plan.iter().filter(|l| l.kind == "conv") {
        let quantized = audits.iter().position(|a| a.name == layer.name);
        let quantized = quantized.map(|i| audits.swap_remove(i));
        let weight = net.store().get(&format!("{}.weight", layer.name));
        rows.push(row(layer, expected.is_known, quantized, weight.as_ref()));
    }
    let mut notes = expected.notes;
    notes.extend(loaded.meta.as_ref().and_then(estimate_note));
    let batch_norms = batch_norms(request, &home, config, net.as_ref(), &loaded)?;
    Ok(AuditReport { batch_norms, ..report(request, kind, &loaded, rows, notes) })
}

/// How the statistics of batch norms came to be, where weights are quantized.
fn estimate_note(meta: &CheckpointMeta) -> Option<String> {
    match &meta.batch_norm {
        Some(info) if info.global_step < meta.position.global_step => {
            let since = meta.position.global_step - info.global_step;
            Some(format!("{}; {since} steps of training moved them since", info.text()))
        }
        Some(info) => Some(info.text()),
        None if meta.quantized.is_empty() => None,
        None => Some(
            "the statistics of batch norms are moving averages of training, which may be stale: --bn-batches 50 compares \
             them with training batches"
                .to_owned(),
        ),
    }
}

/// The statistics of batch norms beside those of training batches, if asked for.
fn batch_norms(
    request: &AuditRequest,
    home: &Home,
    config: &Config,
    net: &dyn Network,
    loaded: &LoadedNetwork,
) -> Result<Option<BatchNormAudit>> {
    let Some(num) = request.bn_batches else { return Ok(None) };
    let run = Request {
        select: request.select.clone(),
        data: request.data.clone(),
        ..Request::default()
    };
    let batches = TrainingBatches::open(&run, home, config, loaded.meta.as_ref())?;
    BatchNormAudit::of(&batches, net, num).map(Some)
}

/// Every layer with what is expected of it.
fn planned_layers(
    request: &AuditRequest,
    net: &dyn Network,
    expected: &Expected,
    config: &Config,
) -> Result<Vec<LayerReport>> {
    let mut plan = layers(net, &expected.stages, [config.input.width, config.input.height])?;
    if request.bits.is_some() {
        // a width is asked for, no method
        let all = plan.iter_mut().flat_map(|l| [l.weights.as_mut(), l.activations.as_mut()]);
        all.flatten().for_each(|to| to.method = "any".to_owned());
    }
    Ok(plan)
}

/// The convolutions of an ONNX file: integers within the levels that are expected of them, scales positive and finite.
fn audit_onnx(request: &AuditRequest, artifact: &Artifact) -> Result<AuditReport> {
    let (file, config) = (&artifact.file, &artifact.config);
    let meta = OnnxMeta::of_file(file)?;
    let mut contents = read_contents(file)?;
    let net = blank_network(config, Device::Cpu)?;
    let mut expected = expected(request, config, None)?;
    if !expected.is_known {
        let is_quantized = |stage: &StageConfig| {
            let module = stage.module.as_ref().map(|module| format!("{module} "));
            module.is_some_and(|module| meta.quantized.iter().any(|q| q.starts_with(&module)))
        };
        let stages = config.train_config().stages.into_iter().filter(is_quantized).collect();
        expected = Expected { stages, is_known: true, notes: Vec::new() };
    }
    let plan = planned_layers(request, net.as_ref(), &expected, config)?;
    let mut rows = Vec::new();
    for layer in plan.iter().filter(|l| l.kind == "conv") {
        let Some(i) = contents.weights.iter().position(|w| w.layer == layer.name) else {
            continue; // of no output: not in the graph
        };
        rows.push(onnx_row(layer, expected.is_known, contents.weights.swap_remove(i)));
    }
    let mut notes = expected.notes;
    notes.push(format!("activations: {}", meta.activations));
    notes.extend(
        contents.weights.iter().map(|w| format!("{} is not a layer of its network", w.layer)),
    );
    notes.extend(contents.activation_problems.iter().cloned());
    Ok(AuditReport {
        file: file.clone(),
        kind: artifact.kind,
        passed: rows.iter().all(|t| t.problems.is_empty())
            && contents.weights.is_empty()
            && contents.activation_problems.is_empty(),
        averaged: false,
        stage: None,
        tensors: rows,
        batch_norms: None,
        notes,
    })
}

fn onnx_row(layer: &LayerReport, is_known: bool, stored: StoredWeight) -> TensorAudit {
    let activations = stored.has_integer_input.then(|| ActivationReport {
        method: "integers".to_owned(),
        bits: layer.activations.as_ref().map_or(STORED_BITS, |plan| plan.bits.min(STORED_BITS)),
        num_levels: layer.activations.as_ref().map_or(1 << STORED_BITS, |plan| plan.num_levels),
        max_level: None,
        quantizing: true,
        signed: None,
        scale: None,
        codes: None,
        code_stride: 1,
    });
    match stored.values {
        StoredValues::Float(values) => {
            let weight = Tensor::from_slice(&values).reshape(&stored.dims);
            let audit = WeightAudit::of_floats(&layer.name, values.len(), activations);
            row(layer, is_known, Some(audit), Some(&weight))
        }
        StoredValues::Codes(codes) => {
            let num_levels = u32::try_from(codes.num_values.max(2)).unwrap_or(u32::MAX);
            let num_weights = stored.dims.iter().product::<i64>() as usize;
            let audit = WeightAudit {
                method: format!("{} codes", codes.dtype),
                bits: bits_of(num_levels),
                num_levels: Some(num_levels),
                num_values: Some(codes.num_values),
                scale: Some(codes.scale),
                problems: codes.problems,
                ..WeightAudit::of_floats(&layer.name, num_weights, activations)
            };
            row(layer, is_known, Some(audit), None)
        }
    }
}

/// What a file's layers should be.
struct Expected {
    /// The stages that are behind it.
    stages: Vec<StageConfig>,
    /// Whether a plan says so; if not, any values are right.
    is_known: bool,
    notes: Vec<String>,
}

fn expected(
    request: &AuditRequest,
    config: &Config,
    meta: Option<&CheckpointMeta>,
) -> Result<Expected> {
    if let Some(bits) = request.bits {
        let stage = flow::everything(bits);
        return Ok(Expected { stages: vec![stage], is_known: true, notes: Vec::new() });
    }
    let mut config = config.clone();
    if let Some(flow) = &request.flow {
        flow.apply(&mut config)?;
        let stages = config.train_config().stages;
        return Ok(Expected { stages, is_known: true, notes: Vec::new() });
    }
    let Some(meta) = meta else {
        let notes = vec![
            "the file carries no plan: any values pass; say what is expected with --bits or --flow"
                .to_owned(),
        ];
        return Ok(Expected { stages: Vec::new(), is_known: false, notes });
    };
    let stages = config.train_config().stages;
    let num_begun = (meta.position.stage + 1).min(stages.len());
    let to_come: Vec<String> = stages[num_begun..].iter().map(StageConfig::label).collect();
    let notes = match to_come.as_slice() {
        [] => Vec::new(),
        _ => vec![format!("stages to come, whose layers are float so far: {}", to_come.join(", "))],
    };
    Ok(Expected { stages: stages[..num_begun].to_vec(), is_known: true, notes })
}

fn row(
    layer: &LayerReport,
    is_known: bool,
    quantized: Option<WeightAudit>,
    weight: Option<&Tensor>,
) -> TensorAudit {
    let mut problems = quantized.as_ref().map_or_else(Vec::new, |q| q.problems.clone());
    let is_quantized = quantized.as_ref().is_some_and(|q| q.num_levels.is_some());
    let values = match (is_quantized, weight) {
        (false, Some(weight)) => Some(tch::no_grad(|| look_at_values(weight))),
        _ => None,
    };
    if let Some(values) = &values {
        problems.extend(values_problems(values));
    }
    if let (Some(plan), true) = (&layer.weights, is_known) {
        match (&quantized, &values) {
            (Some(q), _)
                if q.num_levels.is_some_and(|n| n > plan.num_levels)
                    || q.num_levels.is_some() && q.bits > plan.bits =>
            {
                let levels = q.num_levels.unwrap_or_default();
                problems.push(format!(
                    "has {} bits ({levels} levels), and {plan} are expected",
                    q.bits
                ));
            }
            (Some(q), _) if q.num_levels.is_some() => {}
            (_, Some(values)) if values.num_values.is_none_or(|n| n > plan.num_levels as usize) => {
                problems.push(format!("is float, and {plan} is expected"));
            }
            _ => {}
        }
    }
    let activations = quantized.as_ref().and_then(|q| q.activations.as_ref());
    if let (Some(plan), true) = (&layer.activations, is_known) {
        match activations {
            None => problems.push(format!("has float activations, and {plan} are expected")),
            Some(i) if i.bits > plan.bits => {
                problems
                    .push(format!("has activations of {} bits, and {plan} are expected", i.bits));
            }
            Some(_) => {}
        }
    }
    TensorAudit {
        name: layer.name.clone(),
        num_weights: layer.num_weights,
        expected: is_known.then(|| layer.weights_text()),
        quantized,
        values,
        problems,
    }
}

fn values_problems(values: &ValuesFound) -> Vec<String> {
    let mut problems = Vec::new();
    if values.num_not_finite > 0 {
        problems.push(format!("{} weights are not finite", values.num_not_finite));
    }
    if values.spacing == SpacingFound::Constant {
        problems.push("it has collapsed: every weight has one value".to_owned());
    }
    problems
}

fn report(
    request: &AuditRequest,
    kind: FileKind,
    loaded: &LoadedNetwork,
    tensors: Vec<TensorAudit>,
    notes: Vec<String>,
) -> AuditReport {
    let stage = loaded.meta.as_ref().map(|meta| {
        let Position { stage, epoch, .. } = meta.position;
        format!("{stage} ({}), after {epoch} epochs", meta.stage_name)
    });
    AuditReport {
        file: request.file.clone(),
        kind,
        passed: tensors.iter().all(|t| t.problems.is_empty()),
        averaged: loaded.averaged,
        stage,
        tensors,
        batch_norms: None,
        notes: notes.into_iter().chain(loaded.report.notes.iter().cloned()).collect(),
    }
}

/// The values of every weight of four dimensions in a file that fits no known network.
fn audit_values(file: &Path, kind: FileKind, why: String) -> Result<AuditReport> {
    let mut rows = Vec::new();
    for (name, tensor) in tensors::read(file)?.tensors {
        if tensor.dim() != 4 || !tensor.is_floating_point() {
            continue;
        }
        let values = tch::no_grad(|| look_at_values(&tensor));
        rows.push(TensorAudit {
            name,
            num_weights: tensor.numel(),
            expected: None,
            quantized: None,
            problems: values_problems(&values),
            values: Some(values),
        });
    }
    ensure!(!rows.is_empty(), "{} has no weight of four dimensions; {why}", file.display());
    Ok(AuditReport {
        file: file.to_owned(),
        kind,
        passed: rows.iter().all(|t| t.problems.is_empty()),
        averaged: false,
        stage: None,
        tensors: rows,
        batch_norms: None,
        notes: vec![format!("the file is looked at on its own, without a network: {why}")],
    })
}

impl AuditReport {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = format!("{}: {}", self.file.display(), self.kind.text());
        if let Some(stage) = &self.stage {
            let _ = write!(out, ", stage {stage}");
        }
        if self.averaged {
            out.push_str("; the moving average of its weights");
        }
        let _ = writeln!(
            out,
            "\n\n{:<44} {:>9}  {:<26} {:<34} {:<10}",
            "convolution", "weights", "expected", "found", "activations"
        );
        for t in &self.tensors {
            let expected = t.expected.as_deref().unwrap_or("-");
            let _ = writeln!(
                out,
                "{:<44} {:>9}  {expected:<26} {:<34} {}",
                t.name,
                t.num_weights,
                t.found(),
                t.activations()
            );
            for problem in &t.problems {
                let _ = writeln!(out, "  problem: {problem}");
            }
        }
        if let Some(batch_norms) = &self.batch_norms {
            let _ = write!(out, "\n{}", batch_norms.text());
        }
        for note in &self.notes {
            let _ = writeln!(out, "note: {note}");
        }
        let _ = writeln!(out, "\n{}", self.summary());
        out
    }

    /// One line.
    pub fn summary(&self) -> String {
        let quantized = self.tensors.iter().filter(|t| t.is_quantized()).count();
        let bad: BTreeSet<&str> = (self.tensors.iter())
            .filter(|t| !t.problems.is_empty())
            .map(|t| t.name.as_str())
            .collect();
        let count = self.tensors.len();
        match bad.len() {
            0 => format!(
                "{count} convolutions: {quantized} quantized and on their levels, {} float; no problem",
                count - quantized
            ),
            n => {
                let first = bad.first().copied().unwrap_or_default();
                format!("{n} of {count} convolutions have problems, the first: {first}")
            }
        }
    }
}

impl TensorAudit {
    fn is_quantized(&self) -> bool {
        let by_values = self.values.as_ref().is_some_and(|v| v.num_values.is_some());
        self.quantized.as_ref().is_some_and(|q| q.num_levels.is_some()) || by_values
    }

    fn found(&self) -> String {
        let with_values = |n: Option<usize>| n.map_or(String::new(), |n| format!(", {n} in use"));
        match (&self.quantized, &self.values) {
            (Some(q), _) if q.num_levels.is_some() => format!(
                "{} {} bits ({} levels{})",
                q.method,
                q.bits,
                q.num_levels.unwrap_or_default(),
                with_values(q.num_values)
            ),
            (_, Some(v)) => match (v.num_values, v.per_channel) {
                (None, _) => "float".to_owned(),
                (Some(n), per_channel) => {
                    let spacing = match v.spacing {
                        SpacingFound::Even => "evenly spaced",
                        SpacingFound::PowersOfTwo => "powers of two",
                        SpacingFound::Constant => "constant",
                        SpacingFound::Uneven | SpacingFound::Float => "unevenly spaced",
                    };
                    let each = if per_channel { " a channel" } else { "" };
                    format!("{n} values{each}, {spacing}")
                }
            },
            _ => "float".to_owned(),
        }
    }

    fn activations(&self) -> String {
        match self.quantized.as_ref().and_then(|q| q.activations.as_ref()) {
            Some(i) => format!("{} {} bits ({} levels)", i.method, i.bits, i.num_levels),
            None => "float".to_owned(),
        }
    }
}
