//! Reading what an ONNX file says of itself, without its weights.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;

use super::proto::{DataType, ModelHead, ValueInfo};

/// The metadata entry that holds the JSON for this program: config and modules.
pub const META_KEY: &str = "mqat";
/// Largest file that the format allows.
const MAX_BYTES: u64 = 2 << 30;
/// Begin of the names of logits and offsets.
const CLS: &str = "cls_p";
const REG: &str = "reg_p";

/// What an ONNX file says of itself.
#[derive(Debug, Clone)]
pub struct FileHead {
    /// The free-text entries.
    pub metadata: BTreeMap<String, String>,
    /// Version of ONNX's own operators.
    pub opset: i64,
    /// Types of the operations, with how often they occur.
    pub operations: BTreeMap<String, usize>,
    /// The name of the input.
    pub input: String,
    /// The input's batch size; `None` where it is open.
    pub batch: Option<usize>,
    /// Height and width of the input, px.
    pub size: (usize, usize),
    /// For each level, finest first, the names of logits and offsets.
    pub levels: Vec<[String; 2]>,
    /// Classes, by the first level's logits.
    pub num_classes: usize,
    /// Whether activations are integers somewhere.
    pub quantized_activations: bool,
}

/// Whether a file begins like an ONNX model: with the field `ir_version`, a small number.
pub fn looks_like_onnx(head: &[u8]) -> bool {
    matches!(head, [0x08, 1..=64, rest @ ..] if rest.first().is_none_or(|b| b & 7 == 2))
}

/// Reads the head of an ONNX file of a pose network: one input of images, outputs `cls_pK` and `reg_pK`.
///
/// # Errors
/// If the file cannot be read, is truncated or no ONNX model, or has other inputs or outputs; names the file.
pub fn read_head(path: &Path) -> Result<FileHead> {
    let at = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("opening {at}"))?.len();
    ensure!(size <= MAX_BYTES, "{at} has {size} bytes, an ONNX file has {MAX_BYTES} at most");
    let bytes = std::fs::read(path).with_context(|| format!("reading {at}"))?;
    let model = match ModelHead::decode(bytes.as_slice()) {
        Ok(model) => model,
        Err(e) => bail!("{at} is truncated or no ONNX file: {e}"),
    };
    head_of(model).with_context(|| at.to_string())
}

fn head_of(model: ModelHead) -> Result<FileHead> {
    let graph = model.graph.context("it has no graph: it is truncated or no ONNX file")?;
    let opset =
        model.opset_import.iter().find(|set| set.domain.is_empty() || set.domain == "ai.onnx");
    let opset = opset.context("it names no version of ONNX's operators")?.version;
    let inputs: Vec<&str> = graph.input.iter().map(|v| v.name.as_str()).collect();
    let [input] = graph.input.as_slice() else {
        bail!("it has the inputs {inputs:?}, expected one: images [n, 3, height, width]")
    };
    let dims = dims_of(input)?;
    let [batch, Some(3), Some(height), Some(width)] = dims[..] else {
        bail!("its input {} is {dims:?}, expected [n, 3, height, width]", input.name)
    };
    let mut operations = BTreeMap::new();
    for node in &graph.node {
        *operations.entry(node.op_type.clone()).or_insert(0) += 1;
    }
    let (levels, num_classes) = levels_of(&graph.output)?;
    let quantized_activations = operations.contains_key("QuantizeLinear")
        || operations.keys().any(|op| op.starts_with("QLinear") || op == "DynamicQuantizeLinear");
    let positive = |n: i64| usize::try_from(n).ok().filter(|n| *n > 0).context("a size of 0");
    Ok(FileHead {
        metadata: model.metadata.into_iter().map(|e| (e.key, e.value)).collect(),
        opset,
        operations,
        input: input.name.clone(),
        batch: batch.map(positive).transpose()?,
        size: (positive(height)?, positive(width)?),
        levels,
        num_classes,
        quantized_activations,
    })
}

fn dims_of(value: &ValueInfo) -> Result<Vec<Option<i64>>> {
    let kind = value.kind.as_ref().and_then(|kind| kind.tensor.as_ref());
    let kind = kind.with_context(|| format!("{} is no tensor", value.name))?;
    ensure!(
        kind.elem_type == DataType::Float as i32,
        "{} has element type {}, expected {} (float)",
        value.name,
        kind.elem_type,
        DataType::Float as i32
    );
    value.dims().with_context(|| format!("{} has no shape", value.name))
}

/// Pairs of outputs by level, and the number of classes.
fn levels_of(outputs: &[ValueInfo]) -> Result<(Vec<[String; 2]>, usize)> {
    let mut levels: Vec<(u32, [String; 2])> = vec![];
    let mut num_classes = None;
    for output in outputs {
        let Some(level) = output.name.strip_prefix(CLS).and_then(|k| k.parse().ok()) else {
            continue;
        };
        let reg = outputs.iter().find(|o| o.name == format!("{REG}{level}"));
        let reg = reg.with_context(|| format!("it has {} and no {REG}{level}", output.name))?;
        let channels = |v: &ValueInfo| -> Result<i64> {
            let dims = dims_of(v)?;
            dims.get(1).copied().flatten().with_context(|| format!("{} has shape {dims:?}", v.name))
        };
        let (classes, offsets) = (channels(output)?, channels(reg)?);
        ensure!(
            classes >= 1 && offsets == 16 * classes && num_classes.is_none_or(|n| n == classes),
            "{} has {classes} channels and {} {offsets}, expected C and 16 C for the same C everywhere",
            output.name,
            reg.name
        );
        num_classes = Some(classes);
        levels.push((level, [output.name.clone(), reg.name.clone()]));
    }
    levels.sort();
    let names: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
    let num_classes = num_classes.with_context(|| {
        format!("it is no pose network of mqat: its outputs are {names:?}, expected {CLS}K and {REG}K by level")
    })?;
    Ok((levels.into_iter().map(|(_, names)| names).collect(), num_classes as usize))
}
