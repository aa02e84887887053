//! Reading what an ONNX file says of itself, without its weights.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;

use super::proto::{DataType, ModelHead, ValueInfo};
use crate::nn::OutputShape;

/// The metadata entry that holds the JSON for this program: config and modules.
pub const META_KEY: &str = "mqat";
/// Largest file that the format allows.
const MAX_BYTES: u64 = 2 << 30;

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
    /// The outputs of floats whose shape for one image is fixed, in the file's order. What they mean is up to the network's
    /// family, which the config among the metadata names.
    pub outputs: Vec<OutputShape>,
    /// Whether activations are integers somewhere.
    pub quantized_activations: bool,
}

/// Whether a file begins like an ONNX model: with the field `ir_version`, a small number.
pub fn looks_like_onnx(head: &[u8]) -> bool {
    matches!(head, [0x08, 1..=64, rest @ ..] if rest.first().is_none_or(|b| b & 7 == 2))
}

/// Reads the head of an ONNX file of a network of images: one input `[n, 3, height, width]`, outputs of a fixed shape.
///
/// # Errors
/// If the file cannot be read, is truncated or no ONNX model, or has other inputs or outputs; names the file.
pub fn read_head(path: &Path) -> Result<FileHead> {
    let at = path.display();
    let size = std::fs::metadata(path).with_context(|| format!("opening {at}"))?.len();
    ensure!(size <= MAX_BYTES, "{at} has {size} bytes, an ONNX file has {MAX_BYTES} at most");
    let bytes = crate::io::read_file(path)?;
    if let Some(what) = crate::io::mistaken(&bytes) {
        bail!("{at} {what}");
    }
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
    let outputs = outputs_of(&graph.output)?;
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
        outputs,
        quantized_activations,
    })
}

fn dims_of(value: &ValueInfo) -> Result<Vec<Option<i64>>> {
    let kind = value.kind.as_ref().and_then(|kind| kind.tensor.as_ref());
    let kind = kind.with_context(|| format!("{} is not a tensor", value.name))?;
    ensure!(
        kind.elem_type == DataType::Float as i32,
        "{} has element type {}, expected {} (float)",
        value.name,
        kind.elem_type,
        DataType::Float as i32
    );
    value.dims().with_context(|| format!("{} has no shape", value.name))
}

/// The outputs that are dense tensors of floats: images first, everything else fixed.
fn outputs_of(outputs: &[ValueInfo]) -> Result<Vec<OutputShape>> {
    let shape = |output: &ValueInfo| -> Option<OutputShape> {
        let shape = dims_of(output).ok()?.get(1..)?.iter().copied().collect::<Option<Vec<_>>>()?;
        Some(OutputShape { name: output.name.clone(), shape })
    };
    let known: Vec<OutputShape> = outputs.iter().filter_map(shape).collect();
    let names: Vec<&str> = outputs.iter().map(|o| o.name.as_str()).collect();
    ensure!(
        !known.is_empty(),
        "it is not a network of mqat: its outputs are {names:?}, expected tensors of floats [n, ...] of a fixed shape"
    );
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::proto::{GraphHead, Node, OperatorSet};

    fn model() -> ModelHead {
        let value = |name: &str, rest: &[i64]| ValueInfo::batched(name, None, rest, "");
        let node = Node { op_type: "Conv".to_owned(), ..Node::default() };
        ModelHead {
            ir_version: 8,
            graph: Some(GraphHead {
                node: vec![node.clone(), node],
                input: vec![value("images", &[3, 32, 64])],
                output: vec![
                    value("cls_p4", &[2, 2, 4]),
                    value("reg_p4", &[32, 2, 4]),
                    value("cls_p3", &[2, 4, 8]),
                    value("reg_p3", &[32, 4, 8]),
                    value("scores", &[2, 40]),
                ],
            }),
            opset_import: vec![OperatorSet { domain: String::new(), version: 17 }],
            metadata: vec![],
        }
    }

    #[test]
    fn the_head_tells_sizes_and_outputs() {
        let head = head_of(model()).unwrap();
        assert_eq!((head.size, head.batch, head.opset), ((32, 64), None, 17));
        let outputs: Vec<(&str, &[i64])> =
            head.outputs.iter().map(|o| (o.name.as_str(), o.shape.as_slice())).collect();
        assert_eq!(outputs[0], ("cls_p4", &[2, 2, 4][..]));
        assert_eq!(outputs.last(), Some(&("scores", &[2, 40][..])));
        assert_eq!(head.operations["Conv"], 2);
        assert!(!head.quantized_activations);
    }

    #[test]
    fn what_is_no_network_of_images_is_refused_with_the_reason() {
        let check = |change: fn(&mut GraphHead), expected: &str| {
            let mut model = model();
            change(model.graph.as_mut().unwrap());
            let text = head_of(model).unwrap_err().to_string();
            assert!(text.contains(expected), "{text}");
        };
        check(|g| g.input.clear(), "expected one: images");
        check(|g| g.input[0] = ValueInfo::batched("x", None, &[1, 4, 4], ""), "expected [n, 3");
        check(|g| g.output.clear(), "not a network of mqat");
        check(
            |g| g.output.iter_mut().for_each(|o| o.kind = None),
            "expected tensors of floats [n, ...]",
        );
    }

    #[test]
    fn a_file_cut_anywhere_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut.onnx");
        let bytes = model().encode_to_vec();
        for end in [0, 1, 2, bytes.len() / 3, bytes.len() / 2] {
            std::fs::write(&path, &bytes[..end]).unwrap();
            let text = format!("{:#}", read_head(&path).unwrap_err());
            assert!(text.contains("cut.onnx") && text.contains("truncated"), "{text}");
        }
        std::fs::write(&path, b"PK\x03\x04 something else").unwrap();
        assert!(format!("{:#}", read_head(&path).unwrap_err()).contains("no ONNX file"));
    }
}
