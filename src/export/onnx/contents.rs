//! What an ONNX file holds: its constants, and the weights of its convolutions as integers or floats.
//!
//! Files of any program are read, as long as their integer weights stand before a `DequantizeLinear`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use prost::Message;
use serde::Serialize;

use super::proto::{Graph, Model, Node, Tensor};

/// Ends of the names of weights, which are left out of a layer's name.
const WEIGHT_ENDS: [&str; 2] = [".weight_codes", ".weight"];

/// What a file holds.
#[derive(Debug, Clone)]
pub struct Contents {
    /// The free-text entries.
    pub metadata: BTreeMap<String, String>,
    /// Version of ONNX's own operators; 0 where none is named.
    pub opset: i64,
    /// Types of the operations, with how often they occur.
    pub operations: BTreeMap<String, usize>,
    /// Every constant tensor, in the file's order.
    pub tensors: Vec<StoredTensor>,
    /// The weight of every convolution, each once.
    pub weights: Vec<StoredWeight>,
    /// Scales of activations that are not positive finite numbers, a line each.
    pub activation_problems: Vec<String>,
}

/// A constant tensor without its numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Its element type, `float32`, `int8`, `uint4`, ...
    pub dtype: String,
    /// Its shape.
    pub dims: Vec<i64>,
    /// Bytes of its numbers.
    pub num_bytes: usize,
}

/// A convolution's weight.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredWeight {
    /// The layer: the constant's name without its end.
    pub layer: String,
    /// Its shape.
    pub dims: Vec<i64>,
    /// Its numbers.
    pub values: StoredValues,
    /// Whether the convolution's input comes as integers.
    pub has_integer_input: bool,
}

/// The numbers of a weight.
#[derive(Debug, Clone, PartialEq)]
pub enum StoredValues {
    /// Floats.
    Float(Vec<f32>),
    /// Integers and their grid.
    Codes(StoredCodes),
}

/// Integer weights.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct StoredCodes {
    /// The integers' type.
    pub dtype: String,
    /// Bits that an integer is stored in.
    pub stored_bits: u32,
    /// Different integers that occur.
    pub num_values: usize,
    /// Smallest and largest of them.
    pub range: [i32; 2],
    /// Smallest and largest scale: the distance of two adjacent levels.
    pub scale: [f32; 2],
    /// What is wrong, a line each.
    pub problems: Vec<String>,
}

/// Reads a whole file.
///
/// # Errors
/// If it cannot be read, is truncated or not an ONNX model, or a constant does not have the bytes that its shape asks for.
pub fn read_contents(path: &Path) -> Result<Contents> {
    let at = path.display();
    let bytes = std::fs::read(path).with_context(|| format!("reading {at}"))?;
    let model = match Model::decode(bytes.as_slice()) {
        Ok(model) => model,
        Err(e) => bail!("{at} is truncated or not an ONNX file: {e}"),
    };
    contents_of(&model).with_context(|| format!("reading {at}"))
}

fn contents_of(model: &Model) -> Result<Contents> {
    let graph = model.graph.as_ref();
    let graph = graph.context("it has no graph: it is truncated or not an ONNX file")?;
    let mut operations = BTreeMap::new();
    for node in &graph.node {
        *operations.entry(node.op_type.clone()).or_insert(0) += 1;
    }
    let own = model.opset_import.iter().find(|o| o.domain.is_empty() || o.domain == "ai.onnx");
    let constants = Constants::of(graph);
    Ok(Contents {
        metadata: model.metadata.iter().map(|e| (e.key.clone(), e.value.clone())).collect(),
        opset: own.map_or(0, |set| set.version),
        operations,
        tensors: graph.initializer.iter().map(stored_tensor).collect(),
        weights: constants.weights(graph)?,
        activation_problems: constants.activation_problems(graph)?,
    })
}

fn stored_tensor(tensor: &Tensor) -> StoredTensor {
    let dtype =
        element(tensor.data_type).map_or(format!("type {}", tensor.data_type), |e| e.0.to_owned());
    StoredTensor {
        name: tensor.name.clone(),
        dtype,
        dims: tensor.dims.clone(),
        num_bytes: tensor.raw_data.len(),
    }
}

/// Name, bits and signedness of an element type, by its number in the format.
fn element(data_type: i32) -> Option<(&'static str, u32, bool)> {
    Some(match data_type {
        1 => ("float32", 32, true),
        2 => ("uint8", 8, false),
        3 => ("int8", 8, true),
        6 => ("int32", 32, true),
        7 => ("int64", 64, true),
        10 => ("float16", 16, true),
        11 => ("float64", 64, true),
        21 => ("uint4", 4, false),
        22 => ("int4", 4, true),
        25 => ("uint2", 2, false),
        26 => ("int2", 2, true),
        _ => return None,
    })
}

struct Constants<'a> {
    by_name: HashMap<&'a str, &'a Tensor>,
    /// The node that computes a value.
    maker: HashMap<&'a str, &'a Node>,
}

impl<'a> Constants<'a> {
    fn of(graph: &'a Graph) -> Self {
        let by_name = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
        let made = graph.node.iter().flat_map(|n| n.output.iter().map(move |o| (o.as_str(), n)));
        Self { by_name, maker: made.collect() }
    }

    fn dequantize(&self, value: &str) -> Option<&'a Node> {
        self.maker.get(value).copied().filter(|node| node.op_type == "DequantizeLinear")
    }

    fn constant(&self, node: &Node, i: usize) -> Result<&'a Tensor> {
        let name = node.input.get(i).map(String::as_str).unwrap_or_default();
        let found = self.by_name.get(name).copied();
        found.with_context(|| format!("{}: its input {i} ({name}) is not a constant", node.name))
    }

    fn weights(&self, graph: &Graph) -> Result<Vec<StoredWeight>> {
        let mut weights: Vec<StoredWeight> = Vec::new();
        let mut seen: HashMap<&str, usize> = HashMap::new();
        for node in graph.node.iter().filter(|n| n.op_type == "Conv") {
            let name = node.input.get(1).map(String::as_str).unwrap_or_default();
            let (tensor, values) = match self.dequantize(name) {
                Some(inverse) => {
                    let tensor = self.constant(inverse, 0)?;
                    (tensor, StoredValues::Codes(self.codes(inverse, tensor)?))
                }
                None => {
                    let tensor = self.constant(node, 1)?;
                    (tensor, StoredValues::Float(floats(tensor)?))
                }
            };
            if let Some(&first) = seen.get(tensor.name.as_str()) {
                // A layer that runs on several pyramid levels has scales for each.
                if let (StoredValues::Codes(all), StoredValues::Codes(more)) =
                    (&mut weights[first].values, values)
                {
                    all.problems
                        .extend(more.problems.iter().map(|what| format!("{}: {what}", node.name)));
                }
                continue;
            }
            seen.insert(&tensor.name, weights.len());
            let end = WEIGHT_ENDS.iter().find_map(|end| tensor.name.strip_suffix(end));
            let input = node.input.first().map(String::as_str).unwrap_or_default();
            weights.push(StoredWeight {
                layer: end.unwrap_or(&tensor.name).to_owned(),
                dims: tensor.dims.clone(),
                values,
                has_integer_input: self.dequantize(input).is_some(),
            });
        }
        Ok(weights)
    }

    fn codes(&self, inverse: &Node, tensor: &Tensor) -> Result<StoredCodes> {
        let codes = integers(tensor)?;
        let scales = floats(self.constant(inverse, 1)?)?;
        let (dtype, stored_bits, _) = element(tensor.data_type).context("an unknown type")?;
        let different: HashSet<i32> = codes.iter().copied().collect();
        let channels = tensor.dims.first().copied().unwrap_or(0) as usize;
        let mut problems = scale_problems(&scales, "scale");
        if scales.len() != 1 && scales.len() != channels {
            problems.push(format!("{} scales, expected 1 or {channels}", scales.len()));
        }
        Ok(StoredCodes {
            dtype: dtype.to_owned(),
            stored_bits,
            num_values: different.len(),
            range: [
                codes.iter().copied().min().unwrap_or(0),
                codes.iter().copied().max().unwrap_or(0),
            ],
            scale: [
                scales.iter().copied().fold(f32::INFINITY, f32::min),
                scales.iter().copied().fold(f32::NEG_INFINITY, f32::max),
            ],
            problems,
        })
    }

    fn activation_problems(&self, graph: &Graph) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        for node in graph.node.iter().filter(|n| n.op_type == "QuantizeLinear") {
            let scales = floats(self.constant(node, 1)?)?;
            problems.extend(scale_problems(&scales, &format!("{}: activation scale", node.name)));
        }
        Ok(problems)
    }
}

fn scale_problems(scales: &[f32], what: &str) -> Vec<String> {
    let bad = |s: &f32| !(s.is_finite() && *s > 0.0);
    let num_bad = scales.iter().filter(|s| bad(s)).count();
    match scales.iter().position(bad) {
        None => Vec::new(),
        Some(i) => vec![format!(
            "{what} {i} is {}, expected a positive finite number ({num_bad} of {} are not)",
            scales[i],
            scales.len()
        )],
    }
}

fn num_elements(tensor: &Tensor) -> Result<usize> {
    let mut sizes = tensor.dims.iter().map(|&d| usize::try_from(d).ok());
    sizes
        .try_fold(1usize, |n, d| n.checked_mul(d?))
        .with_context(|| format!("{}: {:?} is not a shape", tensor.name, tensor.dims))
}

fn ensure_bytes(tensor: &Tensor, bits: u32) -> Result<usize> {
    let n = num_elements(tensor)?;
    let expected = n.checked_mul(bits as usize).map(|all| all.div_ceil(8));
    ensure!(
        Some(tensor.raw_data.len()) == expected,
        "{} has {} bytes, its shape {:?} of {bits} bits asks for {}",
        tensor.name,
        tensor.raw_data.len(),
        tensor.dims,
        expected.unwrap_or(0)
    );
    Ok(n)
}

fn floats(tensor: &Tensor) -> Result<Vec<f32>> {
    let (name, kind) = (&tensor.name, tensor.data_type);
    ensure!(kind == 1, "{name} has element type {kind}, expected 1 (float32)");
    ensure_bytes(tensor, 32)?;
    let four = tensor.raw_data.chunks_exact(4);
    Ok(four.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

/// Integers of 8 bits or less, packed from the lowest bits on.
fn integers(tensor: &Tensor) -> Result<Vec<i32>> {
    let kind = element(tensor.data_type).filter(|(_, bits, _)| *bits <= 8);
    let Some((_, bits, signed)) = kind else {
        bail!(
            "{} has element type {}, expected an integer of 8 bits or less",
            tensor.name,
            tensor.data_type
        )
    };
    let n = ensure_bytes(tensor, bits)?;
    let (in_byte, span) = (8 / bits, 1i32 << bits);
    let one = |i: usize| {
        let byte = i32::from(tensor.raw_data[i / in_byte as usize]);
        let code = (byte >> (i as u32 % in_byte * bits)) & (span - 1);
        if signed && code >= span / 2 { code - span } else { code }
    };
    Ok((0..n).map(one).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::export::onnx::proto::DataType;

    fn node(op: &str, input: &[&str], output: &str) -> Node {
        Node {
            op_type: op.to_owned(),
            name: output.to_owned(),
            input: input.iter().map(|s| (*s).to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute: vec![],
        }
    }

    /// Two runs of one convolution with 2-bit weights, and one float convolution.
    fn model(scale: f32) -> Model {
        let codes = [1, 0, -1, -1];
        let graph = Graph {
            node: vec![
                node("QuantizeLinear", &["images", "s", "z"], "q"),
                node("DequantizeLinear", &["q", "s", "z"], "dq"),
                node("DequantizeLinear", &["a.weight_codes", "a.weight_scale"], "a.w"),
                node("Conv", &["dq", "a.w"], "a1"),
                node("Conv", &["a1", "a.w"], "a2"),
                node("Conv", &["a2", "b.weight"], "b"),
            ],
            initializer: vec![
                Tensor::floats("s", &[], &[0.5]),
                Tensor::integers("a.weight_codes", &[4, 1, 1, 1], DataType::Int2, &codes),
                Tensor::floats("a.weight_scale", &[], &[scale]),
                Tensor::floats("b.weight", &[1, 1, 1, 1], &[3.0]),
            ],
            ..Graph::default()
        };
        Model { graph: Some(graph), ..Model::default() }
    }

    #[test]
    fn weights_are_told_as_integers_or_floats_each_once() {
        let contents = contents_of(&model(0.25)).unwrap();
        assert_eq!(contents.operations["Conv"], 3);
        assert_eq!(contents.tensors[1].dtype, "int2");
        let [a, b] = contents.weights.as_slice() else { panic!("{:?}", contents.weights) };
        assert_eq!((a.layer.as_str(), a.has_integer_input), ("a", true));
        assert_eq!((b.layer.as_str(), b.has_integer_input), ("b", false));
        assert_eq!(b.values, StoredValues::Float(vec![3.0]));
        let StoredValues::Codes(codes) = &a.values else { panic!("{a:?}") };
        assert_eq!((codes.num_values, codes.range, codes.stored_bits), (3, [-1, 1], 2));
        assert_eq!((codes.scale, codes.problems.as_slice()), ([0.25, 0.25], &[] as &[String]));
        assert!(contents.activation_problems.is_empty());
    }

    #[test]
    fn a_scale_that_is_not_positive_and_finite_is_a_problem() {
        for (bad, text) in [(0.0, "is 0"), (f32::NAN, "is NaN"), (-1.0, "is -1")] {
            let contents = contents_of(&model(bad)).unwrap();
            let StoredValues::Codes(codes) = &contents.weights[0].values else { panic!() };
            assert!(codes.problems[0].contains(text), "{:?}", codes.problems);
        }
        let mut model = model(1.0);
        model.graph.as_mut().unwrap().initializer[0] = Tensor::floats("s", &[], &[f32::INFINITY]);
        let problems = contents_of(&model).unwrap().activation_problems;
        assert!(problems[0].contains("q: activation scale 0 is inf"), "{problems:?}");
    }

    #[test]
    fn a_constant_of_other_bytes_than_its_shape_is_refused() {
        let mut model = model(1.0);
        model.graph.as_mut().unwrap().initializer[1].dims = vec![9, 1, 1, 1];
        let text = contents_of(&model).unwrap_err().to_string();
        assert!(text.contains("a.weight_codes has 1 bytes"), "{text}");
        model.graph.as_mut().unwrap().initializer[1].dims = vec![-1];
        assert!(contents_of(&model).unwrap_err().to_string().contains("not a shape"));
    }
}
