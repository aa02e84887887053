//! A network and its quantizers to a packed file, and back.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::bits::Coding;
use super::fold::{self, Folded};
use super::levels::Levels;
use super::{Content, Dtype, PackedFile, PackedTensor};
use crate::nn::Network;
use crate::quant::size::{self, LayerSize};
use crate::quant::{ModuleQuantizer, WeightCodes};
use crate::schema::from_value;

/// Where `meta` lists the tensors of the network that no output depends on, and that the file leaves out.
const LEFT_OUT: &str = "left_out";
/// Where `meta` lists the batch norms that are stored as multiplier and offset.
const FOLDED: &str = "folded_batch_norms";

/// How weights of three levels are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Ternary {
    /// Five to a byte, 1.6 bits each: the smaller file.
    #[default]
    Base3,
    /// Four to a byte, 2 bits each: simpler for a reader.
    #[serde(rename = "2bit")]
    #[value(name = "2bit")]
    TwoBit,
}

/// How a network is packed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PackOptions {
    /// Weights of three levels.
    pub ternary: Ternary,
    /// Store a batch norm as one multiplier and one offset for each channel, where that gives the same bits.
    pub fold_bn: bool,
}

/// Where the bytes of a packed network go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Bytes {
    /// Codes of quantized weights.
    pub codes: u64,
    /// Their scales.
    pub scales: u64,
    /// Weights of quantizable layers that stay float.
    pub float_weights: u64,
    /// Biases, norms with their statistics, anchors, ranges of quantized inputs.
    pub other: u64,
    /// Counters that inference does not read.
    pub counters: u64,
}

impl Bytes {
    /// All of them: the data of the file, without its header.
    pub fn sum(&self) -> u64 {
        self.codes + self.scales + self.float_weights + self.other + self.counters
    }
}

/// A network as a packed file.
#[derive(Debug)]
pub struct Packed {
    /// The file's contents.
    pub file: PackedFile,
    /// Where its bytes go.
    pub bytes: Bytes,
    /// What they would be without overhead, every weight in the bits that number its levels; both counts.
    pub sizes: size::Sizes,
    /// Batch norms stored as multiplier and offset.
    pub num_folded: usize,
    /// Batch norms that stay as they are, though folding was asked for: another rounding would come out.
    pub num_not_folded: usize,
}

/// Packs a network: weights with levels as codes, everything else as it is, `extra` tensors besides.
///
/// Layers that never run are left out. Every packed weight is compared with what the network computes
/// with.
///
/// # Errors
/// If a module is only partly quantized, or a weight is not exactly on its levels; names it.
pub fn pack(
    net: &dyn Network,
    quantizers: &[ModuleQuantizer],
    extra: &[(String, Tensor)],
    mut meta: Map<String, Value>,
    options: PackOptions,
) -> Result<Packed> {
    let mut codes = BTreeMap::new();
    for quantizer in quantizers {
        let of_module = quantizer.codes().with_context(|| {
            format!(
                "module {} is only partly quantized, finish its stage first",
                quantizer.module()
            )
        })?;
        codes.extend(of_module.into_iter().map(|c| (c.name.clone(), c)));
    }
    let left_out = unused(net);
    let (folded, num_not_folded) =
        if options.fold_bn { fold::fold_all(net.store())? } else { (Vec::new(), 0) };
    let sites: BTreeSet<String> =
        net.store().sites().iter().map(|site| site.weight_name()).collect();
    let mut count = Count::default();
    let mut packed = Vec::new();
    for (name, tensor) in net.state() {
        if left_out.contains(&name) || folded.iter().any(|f| f.holds(&name)) {
            continue;
        }
        let content = match codes.remove(&name) {
            Some(codes) => pack_weight(net, codes, options.ternary)?,
            None => plain(&tensor).with_context(|| format!("tensor {name}"))?,
        };
        count.add(sites.contains(&name), &tensor, &content);
        packed.push(PackedTensor { name, shape: shape(&tensor), content });
    }
    for (name, tensor) in folded.iter().flat_map(Folded::tensors).chain(share(extra)) {
        let content = plain(&tensor).with_context(|| format!("tensor {name}"))?;
        count.add(false, &tensor, &content);
        packed.push(PackedTensor { name, shape: shape(&tensor), content });
    }
    if let Some(name) = codes.keys().next() {
        bail!("{name} has codes and is not a tensor of the network");
    }
    let names: Vec<&str> = folded.iter().map(|f| f.name.as_str()).collect();
    meta.insert(LEFT_OUT.to_owned(), left_out.into_iter().collect());
    meta.insert(FOLDED.to_owned(), names.into());
    Ok(Packed {
        file: PackedFile { meta, tensors: packed },
        bytes: count.bytes,
        sizes: size::sizes(&count.layers, count.bytes.other),
        num_folded: folded.len(),
        num_not_folded,
    })
}

fn share(tensors: &[(String, Tensor)]) -> impl Iterator<Item = (String, Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
}

/// The tensors that no output depends on.
fn unused(net: &dyn Network) -> BTreeSet<String> {
    let layers = net.layers();
    let unused = layers.iter().filter(|l| l.uses == 0);
    let unused: Vec<String> = unused.map(|l| format!("{}.", l.layer.name)).collect();
    let names = net.store().vars().into_iter().map(|var| var.name);
    names.filter(|name| unused.iter().any(|layer| name.starts_with(layer))).collect()
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().into_iter().map(|d| d as usize).collect()
}

/// A quantized weight as codes, compared with the weight that the layer computes with.
fn pack_weight(net: &dyn Network, weight: WeightCodes, ternary: Ternary) -> Result<Content> {
    let name = &weight.name;
    let integers = weight.grid.spacing().codes();
    let tables: Vec<Vec<f32>> =
        (0..weight.grid.num_ranges()).map(|scale| weight.grid.levels(scale)).collect();
    let levels =
        Levels::of_tables(&integers, &tables).with_context(|| format!("the levels of {name}"))?;
    let codes =
        level_numbers(&weight.codes, &integers).with_context(|| format!("packing {name}"))?;
    let site = net.store().sites().iter().find(|s| s.weight_name() == *name).cloned();
    let site = site.with_context(|| format!("{name} is the weight of no layer"))?;
    let used = tch::no_grad(|| site.effective_weight(false));
    let used = host(&used, Kind::Float).and_then(|t| Ok(Vec::<f32>::try_from(t)?))?;
    let values = levels.values(&codes).with_context(|| format!("packing {name}"))?;
    // Equal as numbers: of the two zeros the levels have the positive one.
    let off = used.iter().zip(&values).position(|(used, packed)| used != packed);
    if let Some(i) = off.or((used.len() != values.len()).then_some(0)) {
        bail!(
            "{name}: the layer computes with {:e} at index {i}, and its code means {:e}",
            used[i],
            values[i]
        );
    }
    let coding = match (levels.num_levels(), ternary) {
        (3, Ternary::Base3) => Coding::Base3,
        _ => Coding::Bits(levels.bits()),
    };
    Ok(Content::Codes { levels, coding, codes })
}

/// Codes as numbers of levels, from 0.
fn level_numbers(codes: &Tensor, integers: &[i32]) -> Result<Vec<u8>> {
    let codes = Vec::<i16>::try_from(host(codes, Kind::Int16)?)?;
    let low = *integers.first().context("no levels")?;
    let high = *integers.last().context("no levels")?;
    let mut numbers = vec![None; usize::try_from(high - low)? + 1];
    for (number, code) in integers.iter().enumerate() {
        numbers[usize::try_from(code - low)?] = Some(u8::try_from(number)?);
    }
    let number = |code: i16| {
        let at = usize::try_from(i32::from(code) - low).ok()?;
        numbers.get(at).copied().flatten()
    };
    codes
        .into_iter()
        .map(|c| number(c).with_context(|| format!("code {c} is not that of a level")))
        .collect()
}

/// Flat, on the CPU.
fn host(tensor: &Tensor, kind: Kind) -> Result<Tensor> {
    Ok(tensor
        .detach()
        .f_to_device(Device::Cpu)?
        .f_to_kind(kind)?
        .f_reshape([-1])?
        .f_contiguous()?)
}

/// A tensor's numbers as they are.
pub(crate) fn plain(tensor: &Tensor) -> Result<Content> {
    macro_rules! bytes {
        ($kind:expr, $number:ty) => {
            Vec::<$number>::try_from(host(tensor, $kind)?)?
                .into_iter()
                .flat_map(<$number>::to_le_bytes)
                .collect()
        };
    }
    let (dtype, bytes) = match tensor.kind() {
        Kind::Double => (Dtype::F64, bytes!(Kind::Double, f64)),
        Kind::Float => (Dtype::F32, bytes!(Kind::Float, f32)),
        Kind::Int64 => (Dtype::I64, bytes!(Kind::Int64, i64)),
        Kind::Int => (Dtype::I32, bytes!(Kind::Int, i32)),
        Kind::Uint8 => (Dtype::U8, bytes!(Kind::Uint8, u8)),
        Kind::Bool => (Dtype::Bool, bytes!(Kind::Uint8, u8)),
        kind => bail!("numbers of kind {kind:?} have no place in a packed file"),
    };
    Ok(Content::Plain { dtype, bytes })
}

/// The tensor that was packed.
fn unpack_tensor(tensor: &PackedTensor) -> Result<Tensor> {
    macro_rules! numbers {
        ($bytes:expr, $number:ty) => {{
            let (words, _) = $bytes.as_chunks::<{ size_of::<$number>() }>();
            let numbers: Vec<$number> =
                words.iter().map(|word| <$number>::from_le_bytes(*word)).collect();
            Tensor::from_slice(&numbers)
        }};
    }
    let flat = match &tensor.content {
        Content::Codes { levels, codes, .. } => Tensor::from_slice(&levels.values(codes)?),
        Content::Plain { dtype, bytes } => match dtype {
            Dtype::F64 => numbers!(bytes, f64),
            Dtype::F32 => numbers!(bytes, f32),
            Dtype::I64 => numbers!(bytes, i64),
            Dtype::I32 => numbers!(bytes, i32),
            Dtype::U8 => Tensor::from_slice(bytes),
            Dtype::Bool => Tensor::from_slice(bytes).to_kind(Kind::Bool),
        },
    };
    let shape: Vec<i64> =
        tensor.shape.iter().map(|&d| i64::try_from(d)).collect::<Result<_, _>>()?;
    Ok(flat.f_reshape(shape)?)
}

/// Bytes so far.
#[derive(Default)]
struct Count {
    bytes: Bytes,
    layers: Vec<LayerSize>,
}

impl Count {
    fn add(&mut self, of_site: bool, tensor: &Tensor, content: &Content) {
        let num_weights = tensor.numel();
        match content {
            Content::Codes { levels, coding, codes } => {
                self.bytes.scales += levels.to_bytes().len() as u64;
                self.bytes.codes += coding.num_bytes(codes.len()).unwrap_or(0) as u64;
                let num_scales = levels.to_bytes().len() / 4;
                let bits = levels.bits();
                self.layers.push(LayerSize { num_weights, bits, num_scales, num_input_scales: 0 });
            }
            Content::Plain { bytes, .. } => {
                let bytes = bytes.len() as u64;
                if of_site {
                    self.bytes.float_weights += bytes;
                    self.layers.push(LayerSize::float(num_weights));
                } else if tensor.is_floating_point() {
                    self.bytes.other += bytes;
                } else {
                    self.bytes.counters += bytes;
                }
            }
        }
    }
}

/// A packed file as tensors.
#[derive(Debug)]
pub struct Unpacked {
    /// What the writer said of the network.
    pub meta: Map<String, Value>,
    /// The network's tensors by their keys, without those that no output depends on. Weights lie on their levels.
    pub state: Vec<(String, Tensor)>,
    /// The `extra` tensors of [`pack`].
    pub extra: Vec<(String, Tensor)>,
}

/// Whether batch norms are stored as multiplier and offset, by a file's `meta`.
pub(crate) fn has_folded(meta: &Map<String, Value>) -> bool {
    meta.get(FOLDED).and_then(Value::as_array).is_some_and(|names| !names.is_empty())
}

/// Turns a packed file into tensors, on the CPU; `extra` ones are told by `is_extra` from the network's.
///
/// # Errors
/// If what the file says of folded batch norms does not fit its tensors.
pub fn unpack(file: PackedFile, is_extra: impl Fn(&str) -> bool) -> Result<Unpacked> {
    let folded = file.meta.get(FOLDED).cloned().unwrap_or_else(|| Value::Array(Vec::new()));
    let folded: Vec<String> =
        from_value(folded).with_context(|| format!("header: meta.{FOLDED}"))?;
    let (mut state, mut extra) = (Vec::new(), Vec::new());
    for tensor in file.tensors {
        let value = unpack_tensor(&tensor).with_context(|| format!("tensor {}", tensor.name))?;
        if is_extra(&tensor.name) { &mut extra } else { &mut state }.push((tensor.name, value));
    }
    for name in &folded {
        let found = fold::unfold(name, &mut state)?;
        state.extend(found);
    }
    Ok(Unpacked { meta: file.meta, state, extra })
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
