//! Levels of imported weights: which grid they lie on, and the quantizers that know it from then on.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use super::report::{GridReport, InqLayerReport, LoadReport};
use super::unwrap::InqLayer;
use crate::nn::Network;
use crate::quant::inq::InqWeights;
use crate::quant::levels::MAX_LEVELS;
use crate::quant::{Claim, Grid, ModuleQuantizer, QuantInit, Spacing, WeightQuantConfig, select};
use crate::train::{Afterwards, QuantizedModule};

/// How far a stored value may be off its level, in units of the scale: the published code computes its levels by
/// another formula (`linspace`, whose middle level is -4.5e-8), which differs by rounding only.
const LEVEL_TOLERANCE: f64 = 1e-6;

/// The different frozen values of a layer, ascending; `None` when there are more than a grid may have.
pub(super) fn frozen_values(layer: &InqLayer) -> Option<Vec<f32>> {
    let values = layer.weight.to_kind(Kind::Float).masked_select(&layer.frozen);
    let values: Vec<f32> = Vec::try_from(&values).ok()?;
    let mut found: Vec<f32> = Vec::new();
    for v in values {
        if let Err(place) = found.binary_search_by(|f| f.total_cmp(&v)) {
            if found.len() == MAX_LEVELS as usize {
                return None;
            }
            found.insert(place, v);
        }
    }
    Some(found)
}

/// A layer for [`recognise`]: its different values and the scale that is stored beside them.
pub(super) struct Values<'a> {
    pub values: &'a [f32],
    pub scale: Option<f32>,
}

/// The grid with the fewest levels that all layers lie on, with each layer's scale; `None` if there is none.
///
/// Evenly spaced levels come before as many powers of two, and the stored scale before the largest magnitude.
pub(super) fn recognise(layers: &[Values]) -> Option<(Spacing, Vec<f32>)> {
    let largest = |layer: &Values| layer.values.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let stored = |layer: &Values| layer.scale.unwrap_or(f32::NAN);
    for scale_of in [&stored as &dyn Fn(&Values) -> f32, &largest] {
        let scales: Vec<f32> = layers.iter().map(scale_of).collect();
        if scales.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            continue;
        }
        let fits = |spacing: &Spacing| {
            layers.iter().zip(&scales).all(|(layer, &s)| lies_on(layer.values, spacing, s))
        };
        let mut uniform = (2..=MAX_LEVELS).map(|num_levels| Spacing::Uniform { num_levels });
        let mut powers =
            (1..MAX_LEVELS / 2).map(|num_exponents| Spacing::PowerOfTwo { num_exponents });
        let found = [uniform.find(fits), powers.find(fits)];
        // The first of equals: even spacing.
        if let Some(spacing) = found.into_iter().flatten().min_by_key(|s| s.num_levels()) {
            return Some((spacing, scales));
        }
    }
    None
}

/// The grid with the fewest levels that a layer's frozen values lie on but for rounding; `scale` is what is stored
/// beside them (`weight_s`). `None` if there is none.
pub fn recognise_grid(values: &[f32], scale: Option<f32>) -> Option<Grid> {
    let (spacing, scale) = recognise(&[Values { values, scale }])?;
    Grid::new(spacing, scale).ok()
}

fn lies_on(values: &[f32], spacing: &Spacing, scale: f32) -> bool {
    let levels = spacing.levels(scale);
    let is_level = |v: f32| {
        let at = levels.partition_point(|l| *l < v);
        let near = levels[at.saturating_sub(1)..levels.len().min(at + 1)].iter();
        let limit = match spacing {
            Spacing::PowerOfTwo { .. } => 0.0, // powers of two are exact
            _ => LEVEL_TOLERANCE * f64::from(scale),
        };
        near.into_iter().any(|l| (f64::from(v) - f64::from(*l)).abs() <= limit)
    };
    values.iter().all(|&v| is_level(v))
}

/// What a layer says about itself, without a network.
pub(super) fn describe(layer: &InqLayer) -> InqLayerReport {
    let frozen_fraction = layer.frozen_fraction();
    let values = frozen_values(layer);
    let grid = values
        .as_deref()
        .filter(|v| !v.is_empty())
        .and_then(|values| Some(GridReport::new(&recognise_grid(values, layer.scale)?)));
    InqLayerReport {
        name: layer.name.clone(),
        num_weights: layer.weight.numel(),
        frozen_fraction,
        num_values: values.map(|v| v.len()),
        grid,
        largest_shift: None,
    }
}

/// Gives the INQ layers that lie on recognised levels their quantizers, and fills in the report's INQ part.
///
/// A module whose layers share one spacing is one quantized module, as the published code quantizes; other layers
/// stand for themselves. Frozen values move onto the levels of [`Grid`], by rounding errors at most. Layers on no
/// known grid stay as they are, float for all that comes after.
///
/// # Errors
/// If a quantizer refuses its state.
pub(super) fn plug(
    net: &dyn Network,
    layers: &[InqLayer],
    report: &mut LoadReport,
) -> Result<(Vec<QuantizedModule>, Vec<ModuleQuantizer>)> {
    report.inq = layers.iter().map(describe).collect();
    let (mut modules, mut quantizers) = (Vec::new(), Vec::new());
    for module in &net.store().modules() {
        let inside: Vec<&InqLayer> = (layers.iter())
            .filter(|l| net.store().module_of(&l.name) == *module && l.frozen_fraction() > 0.0)
            .collect();
        let whole = as_module(net, module, &inside);
        let groups = match whole {
            Some(group) => vec![group],
            None => inside.iter().filter_map(|l| as_module(net, &l.name, &[*l])).collect(),
        };
        for group in groups {
            let mut quantized = group.module;
            quantized.stage = modules.len();
            let quantizer = attach(net, &quantized, &group.layers, report).with_context(|| {
                format!("quantizing {} as it was imported", quantized.claim.module)
            })?;
            modules.push(quantized);
            quantizers.push(quantizer);
        }
    }
    for layer in &report.inq {
        if layer.frozen_fraction > 0.0 && layer.grid.is_none() {
            report.notes.push(format!(
                "{} lies on no known grid: its exact values are taken, as float weights",
                layer.name
            ));
        }
    }
    Ok((modules, quantizers))
}

struct Group<'a> {
    module: QuantizedModule,
    layers: Vec<(&'a InqLayer, Grid)>,
}

/// The layers as one quantized module; `None` if they are not all that a selection of the module takes, or share no
/// grid.
fn as_module<'a>(net: &dyn Network, module: &str, layers: &[&'a InqLayer]) -> Option<Group<'a>> {
    let names: BTreeSet<&str> = layers.iter().map(|l| l.name.as_str()).collect();
    let ends = [(true, true), (false, true), (true, false), (false, false)];
    let (first_layer, last_layer) = ends.into_iter().find(|&(first, last)| {
        select::sites(net.store(), module, first, last).is_ok_and(|sites| {
            sites.len() == names.len() && sites.iter().all(|s| names.contains(s.name.as_str()))
        })
    })?;
    // Where only what fits was asked for, a layer of another shape was not taken.
    let was_taken = |layer: &&InqLayer| {
        let weight = net.store().get(&format!("{}.weight", layer.name));
        weight.is_some_and(|w| w.size() == layer.weight.size())
    };
    if !layers.iter().all(was_taken) {
        return None;
    }
    let values: Option<Vec<Vec<f32>>> = layers.iter().map(|l| frozen_values(l)).collect();
    let values = values?;
    let known: Vec<Values> = (layers.iter().zip(&values))
        .map(|(layer, values)| Values { values, scale: layer.scale })
        .collect();
    let (spacing, scales) = recognise(&known)?;
    let grids: Option<Vec<Grid>> =
        scales.into_iter().map(|s| Grid::new(spacing.clone(), vec![s]).ok()).collect();
    let quant_init_method = match spacing {
        Spacing::PowerOfTwo { .. } => QuantInit::PowerOfTwo,
        _ => QuantInit::Uniform,
    };
    let weights = WeightQuantConfig {
        settings: InqWeights { quant_init_method, ..InqWeights::default() }.into(),
        n_levels: Some(spacing.num_levels()),
        ..WeightQuantConfig::default()
    };
    let claim = Claim { first_layer, last_layer, ..Claim::of(module).with_weights(&weights) };
    let module = QuantizedModule { stage: 0, afterwards: Afterwards::Freeze, claim };
    Some(Group { module, layers: layers.iter().copied().zip(grids?).collect() })
}

/// Plugs the module's quantizer in, with the frozen values on their levels.
fn attach(
    net: &dyn Network,
    module: &QuantizedModule,
    layers: &[(&InqLayer, Grid)],
    report: &mut LoadReport,
) -> Result<ModuleQuantizer> {
    let mut quantizer = module.attach(net.store())?;
    let mut state = quantizer.state();
    for (layer, grid) in layers {
        let key = format!("{}.weight", layer.name);
        let weight = net.store().get(&key).with_context(|| format!("the network has no {key}"))?;
        let frozen = layer.frozen.to_device(weight.device());
        let shift = tch::no_grad(|| -> Result<f64> {
            let before = weight.detach().copy();
            let on_levels = grid.nearest(&before)?.where_self(&frozen, &before);
            weight.shallow_clone().copy_(&on_levels);
            Ok((on_levels - before).abs().max().double_value(&[]))
        })?;
        if let Some(line) = report.inq.iter_mut().find(|l| l.name == layer.name) {
            line.grid = Some(GridReport::new(grid));
            line.largest_shift = (shift > 0.0).then_some(shift);
        }
        let prefix = format!("quant.{}", layer.name);
        for (name, tensor) in &mut state {
            match name.strip_prefix(&prefix) {
                Some(".weight_frozen") => {
                    *tensor = frozen.to_kind(Kind::Uint8).reshape(tensor.size());
                }
                Some(".weight_scale") => *tensor = Tensor::from_slice(grid.range()),
                _ => {}
            }
        }
    }
    quantizer.load_state(&state)?;
    Ok(quantizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(values: &[f32], scale: Option<f32>) -> Option<(Spacing, Vec<f32>)> {
        recognise(&[Values { values, scale }])
    }

    #[test]
    fn levels_of_linspace_are_recognised_with_their_rounding() {
        // torch.linspace(-1, 1, 15)
        let mut values: Vec<f32> = (0..15).map(|i| (f64::from(i) / 7.0 - 1.0) as f32).collect();
        values[7] = -4.470_348_4e-8;
        let (spacing, scale) = one(&values, Some(1.0)).unwrap();
        assert_eq!((spacing, scale), (Spacing::Uniform { num_levels: 15 }, vec![1.0]));
        // The outermost levels are unused.
        let (spacing, scale) = one(&values[2..13], Some(1.0)).unwrap();
        assert_eq!((spacing.num_levels(), scale[0]), (15, 1.0));
        // Without a stored scale they are not known.
        assert_eq!(one(&values[2..13], None).unwrap().0.num_levels(), 11);
    }

    #[test]
    fn layers_of_one_module_share_a_level_count() {
        let (wide, ternary) = ([-1.0, -0.5, 0.0, 0.5], [-2.0, 0.0, 2.0]);
        let layers = [
            Values { values: &wide, scale: Some(1.0) },
            Values { values: &ternary, scale: Some(2.0) },
        ];
        let (spacing, scales) = recognise(&layers).unwrap();
        assert_eq!((spacing.num_levels(), scales), (5, vec![1.0, 2.0]));
    }

    #[test]
    fn powers_of_two_are_told_from_even_spacing() {
        let values = [-0.5, -0.25, 0.0, 0.0625, 0.5];
        let (spacing, scale) = one(&values, Some(0.6)).unwrap();
        // floor(log2(0.8)) = -1; 2^-4 .. 2^-1
        assert_eq!(spacing, Spacing::PowerOfTwo { num_exponents: 4 });
        assert_eq!(scale, [0.6]);
    }

    #[test]
    fn what_lies_on_no_grid_is_not_forced_onto_one() {
        assert!(one(&[-1.0, 0.123_456, 0.777, 1.0], Some(1.0)).is_none());
        assert!(one(&[0.0], None).is_none());
        assert!(one(&[0.0], Some(1.0)).is_some());
    }
}
