//! The layers of a network with what the stages make of them, and its size after each stage.

use std::collections::BTreeSet;
use std::fmt;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::Value;

use crate::nn::Network;
use crate::quant::select;
use crate::quant::size::{LayerSize, Sizes, sizes};
use crate::train::StageConfig;

/// A layer and what the stages make of it.
#[derive(Debug, Clone, Serialize)]
pub struct LayerReport {
    /// Key without `.weight`.
    pub name: String,
    /// The module that it is in.
    #[serde(skip)]
    pub module: String,
    /// `conv`, `transposed conv` or `linear`.
    pub kind: &'static str,
    /// Shape of the weight.
    pub shape: Vec<i64>,
    /// Weights.
    pub num_weights: usize,
    /// How often it runs for an image; 0 for a layer that only the state holds.
    #[serde(skip)]
    pub num_uses: usize,
    /// Multiply-accumulates of an image.
    pub num_macs: u64,
    /// The stage that quantizes it, from 0, the full-precision stage included.
    pub stage: Option<usize>,
    /// That stage's name.
    pub stage_name: Option<String>,
    /// How its weights are quantized; null where they stay float.
    pub weights: Option<QuantizedTo>,
    /// How the activations that go into it are quantized; null where they stay float.
    pub activations: Option<QuantizedTo>,
    /// Why a layer that lies in a stage's module stays float all the same.
    pub float_because: Option<&'static str>,
    /// Scales that are stored with its weights.
    pub num_scales: usize,
}

/// Method, bits and levels.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuantizedTo {
    /// The method.
    pub method: String,
    /// Bits.
    pub bits: u32,
    /// Levels.
    pub num_levels: u32,
}

impl fmt::Display for QuantizedTo {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bits = if self.bits == 1 { "bit" } else { "bits" };
        write!(f, "{} {} {bits} ({} levels)", self.method, self.bits, self.num_levels)
    }
}

impl LayerReport {
    /// Weights as text, `inq 2 bits (3 levels)` or `float`.
    pub fn weights_text(&self) -> String {
        text(self.weights.as_ref())
    }

    /// Inputs as text, likewise.
    pub fn activations_text(&self) -> String {
        text(self.activations.as_ref())
    }

    fn size_after(&self, stage: usize) -> LayerSize {
        let mut size = LayerSize::float(self.num_weights);
        if self.stage.is_some_and(|own| own <= stage) {
            if let Some(weights) = &self.weights {
                size.bits = weights.bits;
                size.num_scales = self.num_scales;
            }
            size.num_input_scales = usize::from(self.activations.is_some());
        }
        size
    }
}

fn text(to: Option<&QuantizedTo>) -> String {
    to.map_or_else(|| "float".to_owned(), QuantizedTo::to_string)
}

/// Every layer of a quantizable kind for inputs of `width` x `height` px, with what `stages` make of it.
///
/// # Errors
/// If a stage's pattern matches nothing, or its widths are not valid.
pub(crate) fn layers(
    net: &dyn Network,
    stages: &[StageConfig],
    [width, height]: [usize; 2],
) -> Result<Vec<LayerReport>> {
    let mut layers: Vec<LayerReport> = net
        .summary(width, height)
        .into_iter()
        .filter(|l| l.layer.kind.site().is_some())
        .map(|l| LayerReport {
            num_weights: l.layer.weight.iter().product::<i64>() as usize,
            name: l.layer.name.clone(),
            module: net.store().module_of(&l.layer.name),
            kind: l.layer.kind.name(),
            shape: l.layer.weight.clone(),
            num_uses: l.uses,
            num_macs: l.macs,
            stage: None,
            stage_name: None,
            weights: None,
            activations: None,
            float_because: None,
            num_scales: 0,
        })
        .collect();
    for (i, stage) in stages.iter().enumerate() {
        put_stage(&mut layers, net, i, stage)
            .with_context(|| format!("stage {i} ({})", stage.label()))?;
    }
    Ok(layers)
}

fn put_stage(
    layers: &mut [LayerReport],
    net: &dyn Network,
    index: usize,
    stage: &StageConfig,
) -> Result<()> {
    let Some(claim) = stage.claim() else { return Ok(()) };
    let names = |first, last| -> Result<BTreeSet<String>> {
        let sites = select::sites(net.store(), &claim.module, first, last)?;
        Ok(sites.iter().map(|site| site.name.clone()).collect())
    };
    let covered = names(true, true)?;
    let chosen = names(claim.first_layer, claim.last_layer)?;
    let without_first = names(false, true).unwrap_or_default();
    let own = match &stage.weights {
        Some(weights) => {
            let names: Vec<&str> = chosen.iter().map(String::as_str).collect();
            weights.for_layers(net.store(), &names)?
        }
        None => Vec::new(),
    };
    for layer in layers.iter_mut().filter(|l| covered.contains(&l.name)) {
        if !chosen.contains(&layer.name) {
            let first = !claim.first_layer && !without_first.contains(&layer.name);
            let because = if first { "first_layer is false" } else { "last_layer is false" };
            layer.float_because = Some(because);
            continue;
        }
        layer.stage = Some(index);
        layer.stage_name = Some(stage.label());
        layer.float_because = None;
        let at = chosen.iter().position(|name| *name == layer.name);
        if let Some(weights) = at.and_then(|at| own.get(at)) {
            let spacing = weights.spacing()?;
            layer.num_scales = weights.num_scales(layer.shape[0] as usize);
            layer.weights = Some(QuantizedTo {
                method: weights.method().name().to_owned(),
                bits: spacing.bits(),
                num_levels: spacing.num_levels(),
            });
        }
        if let Some(activations) = &stage.activations {
            let spacing = activations.spacing(true)?;
            layer.activations = Some(QuantizedTo {
                method: activations.method().name().to_owned(),
                bits: spacing.bits(),
                num_levels: spacing.num_levels(),
            });
        }
    }
    Ok(())
}

/// The name of an enum's plain variant in configs.
pub(crate) fn name_of(variant: &impl Serialize) -> String {
    match serde_json::to_value(variant) {
        Ok(Value::String(name)) => name,
        _ => String::new(),
    }
}

/// The size once the stage of that number is complete.
pub(crate) fn sizes_after(layers: &[LayerReport], net: &dyn Network, stage: usize) -> Sizes {
    let used = || layers.iter().filter(|l| l.num_uses > 0);
    let sites: Vec<LayerSize> = used().map(|l| l.size_after(stage)).collect();
    let all: u64 = net
        .state()
        .iter()
        .map(|(_, tensor)| (tensor.numel() * tensor.kind().elt_size_in_bytes()) as u64)
        .sum();
    let float_weights: u64 = used().map(|l| 4 * l.num_weights as u64).sum();
    sizes(&sites, all - float_weights)
}

/// Both compressions with their names and the bytes, for a terminal.
pub(crate) fn sizes_text(sizes: &Sizes) -> String {
    format!(
        "weight-only compression {:.2}x (convolution weights, the paper's count), whole-model {:.2}x ({:.2} of {:.2} MB)",
        sizes.paper_compression,
        sizes.file_compression,
        sizes.file_bytes as f64 / 1e6,
        sizes.float_bytes as f64 / 1e6
    )
}
