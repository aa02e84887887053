//! A network and its quantizers to a packed file, and back.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tch::{Device, Kind, Tensor};

use super::bits::Coding;
use super::fold::{self, Folded};
use super::levels::Levels;
use super::{Content, Dtype, PackedFile, PackedTensor};
use crate::io::tensors;
use crate::model::PoseNet;
use crate::quant::{ModuleQuantizer, WeightCodes};

/// Where `meta` lists the tensors of the network that no output depends on, and that the file leaves out.
const LEFT_OUT: &str = "left_out";
/// Where `meta` lists the batch norms that are stored as multiplier and offset.
const FOLDED: &str = "folded_batch_norms";

/// How weights of three levels are stored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ternary {
    /// Five to a byte, 1.6 bits each: the smaller file.
    #[default]
    Base3,
    /// Four to a byte, 2 bits each: simpler for a reader.
    #[serde(rename = "2bit")]
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
pub struct Sizes {
    /// Convolution weights.
    pub num_conv_weights: u64,
    /// The same in bits: for each layer its weights times the bits that number its levels, 32 for float.
    pub conv_bits: u64,
    /// Bytes of the codes as stored; less than their bits where ternary weights are five to a byte.
    pub code_bytes: u64,
    /// Bytes of the scales of quantized weights.
    pub scale_bytes: u64,
    /// Bytes of convolution weights that stay float.
    pub float_conv_bytes: u64,
    /// Bytes of everything else: biases, norms with their statistics, anchors, the ranges of quantized inputs.
    pub other_bytes: u64,
    /// Bytes of the same tensors in float32.
    pub float32_bytes: u64,
}

impl Sizes {
    /// The paper's count: 32 bits for each convolution weight over the bits it has; nothing else counts.
    pub fn paper_compression(&self) -> f64 {
        32.0 * self.num_conv_weights as f64 / self.conv_bits.max(1) as f64
    }

    /// What a file with these bits and no overhead takes: each convolution weight in its bits, everything else, scales
    /// included, as it is.
    pub fn theoretical_bytes(&self) -> u64 {
        self.conv_bits.div_ceil(8) + self.scale_bytes + self.other_bytes
    }
}

/// A network as a packed file.
#[derive(Debug)]
pub struct Packed {
    /// The file's contents.
    pub file: PackedFile,
    /// Where its bytes go.
    pub sizes: Sizes,
    /// Batch norms stored as multiplier and offset.
    pub num_folded: usize,
    /// Batch norms that stay as they are, though folding was asked for: another rounding would come out.
    pub num_not_folded: usize,
}

/// Packs a network: weights with levels as codes, everything else as it is, `extra` tensors besides.
///
/// The unused classifier of the backbone is left out. Every packed weight is compared with what the network computes
/// with.
///
/// # Errors
/// If a module is only partly quantized, or a weight is not exactly on its levels; names it.
pub fn pack(
    net: &PoseNet,
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
        if options.fold_bn { fold::fold_all(&net.store)? } else { (Vec::new(), 0) };
    let convs: BTreeSet<String> = conv_weights(net);
    let mut sizes = Sizes::default();
    let mut packed = Vec::new();
    for (name, tensor) in net.state() {
        if left_out.contains(&name) || folded.iter().any(|f| f.holds(&name)) {
            continue;
        }
        let content = match codes.remove(&name) {
            Some(codes) => pack_weight(net, codes, options.ternary)?,
            None => plain(&tensor).with_context(|| format!("tensor {name}"))?,
        };
        sizes.add(convs.contains(&name), &tensor, &content);
        packed.push(PackedTensor { name, shape: shape(&tensor), content });
    }
    for (name, tensor) in folded.iter().flat_map(Folded::tensors).chain(share(extra)) {
        let content = plain(&tensor).with_context(|| format!("tensor {name}"))?;
        sizes.add(false, &tensor, &content);
        packed.push(PackedTensor { name, shape: shape(&tensor), content });
    }
    if let Some(name) = codes.keys().next() {
        bail!("{name} has codes and is no tensor of the network");
    }
    let names: Vec<&str> = folded.iter().map(|f| f.name.as_str()).collect();
    meta.insert(LEFT_OUT.to_owned(), left_out.into_iter().collect());
    meta.insert(FOLDED.to_owned(), names.into());
    let file = PackedFile { meta, tensors: packed };
    Ok(Packed { file, sizes, num_folded: folded.len(), num_not_folded })
}

fn share(tensors: &[(String, Tensor)]) -> impl Iterator<Item = (String, Tensor)> {
    tensors.iter().map(|(name, tensor)| (name.clone(), tensor.shallow_clone()))
}

/// The tensors that no output depends on.
fn unused(net: &PoseNet) -> BTreeSet<String> {
    let layers = net.summary(64, 64);
    let unused: Vec<String> =
        layers.into_iter().filter(|l| l.uses == 0).map(|l| format!("{}.", l.name)).collect();
    let names = net.store.vars().into_iter().map(|var| var.name);
    names.filter(|name| unused.iter().any(|layer| name.starts_with(layer))).collect()
}

fn conv_weights(net: &PoseNet) -> BTreeSet<String> {
    let sites = net.store.sites();
    sites.iter().filter(|s| s.weight.dim() == 4).map(|s| s.weight_name()).collect()
}

fn shape(tensor: &Tensor) -> Vec<usize> {
    tensor.size().into_iter().map(|d| d as usize).collect()
}

/// A quantized weight as codes, compared with the weight that the layer computes with.
fn pack_weight(net: &PoseNet, weight: WeightCodes, ternary: Ternary) -> Result<Content> {
    let name = &weight.name;
    let integers = weight.grid.spacing().codes();
    let tables: Vec<Vec<f32>> =
        (0..weight.grid.scale().len()).map(|scale| weight.grid.levels(scale)).collect();
    let levels =
        Levels::of_tables(&integers, &tables).with_context(|| format!("the levels of {name}"))?;
    let codes =
        level_numbers(&weight.codes, &integers).with_context(|| format!("packing {name}"))?;
    let site = net.store.sites().iter().find(|s| s.weight_name() == *name).cloned();
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
        .map(|c| number(c).with_context(|| format!("code {c} is no level's")))
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
fn plain(tensor: &Tensor) -> Result<Content> {
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

impl Sizes {
    fn add(&mut self, conv: bool, tensor: &Tensor, content: &Content) {
        let num = tensor.numel() as u64;
        self.float32_bytes += num * tensor.kind().elt_size_in_bytes() as u64;
        let (bits, bytes) = match content {
            Content::Plain { bytes, .. } => (32, bytes.len() as u64),
            Content::Codes { levels, coding, codes } => {
                self.scale_bytes += levels.to_bytes().len() as u64;
                let bytes = coding.num_bytes(codes.len()).unwrap_or(0) as u64;
                self.code_bytes += bytes;
                (levels.bits(), bytes)
            }
        };
        let plain = matches!(content, Content::Plain { .. });
        if conv {
            self.num_conv_weights += num;
            self.conv_bits += num * u64::from(bits);
            self.float_conv_bytes += if plain { bytes } else { 0 };
        } else if plain {
            self.other_bytes += bytes;
        }
    }
}

/// Loads a packed file into a network without quantizers; returns the `extra` tensors of [`pack`].
///
/// # Errors
/// If tensors are missing, left over, or of another shape or kind; `at` names the file.
pub fn unpack(file: PackedFile, net: &PoseNet, at: &str) -> Result<Vec<(String, Tensor)>> {
    let names = |key: &str| -> Result<BTreeSet<String>> {
        let list = file.meta.get(key).cloned().unwrap_or_else(|| Value::Array(Vec::new()));
        serde_json::from_value(list).with_context(|| format!("{at}: meta.{key}"))
    };
    let (left_out, folded) = (names(LEFT_OUT)?, names(FOLDED)?);
    let targets: Vec<(String, Tensor)> = net.state();
    let known: BTreeSet<&str> = targets.iter().map(|(name, _)| name.as_str()).collect();
    let (mut state, mut extra) = (Vec::new(), Vec::new());
    for tensor in &file.tensors {
        let value = unpack_tensor(tensor).with_context(|| format!("{at}: {}", tensor.name))?;
        let of_network = known.contains(tensor.name.as_str());
        if of_network { &mut state } else { &mut extra }.push((tensor.name.clone(), value));
    }
    for name in &folded {
        let found = fold::unfold(name, &mut extra).with_context(|| at.to_owned())?;
        state.extend(found);
    }
    let mut report = tensors::load_into(&targets, &state);
    let unused = unused(net);
    report.missing.retain(|name| !(left_out.contains(name) && unused.contains(name)));
    report.ensure_complete(at)?;
    ensure!(
        report.applied.len() == state.len(),
        "{at}: {} of {} tensors were applied",
        report.applied.len(),
        state.len()
    );
    Ok(extra)
}

#[cfg(test)]
#[path = "network_tests.rs"]
mod tests;
