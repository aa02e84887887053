//! Sizes, and the bits of least sensitivity within a target.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use tch::Device;

use super::allocate::{Choice, Infeasible, Item, solve};
use super::curvature::Curvature;
use super::request::{SearchRequest, SizeKind, SizeTarget};
use super::rows::{GainReport, LayerRow, ModuleRow, SizeReport};
use super::setup::{Module, Setup};
use crate::artifact::network::blank_network;
use crate::quant::size::{LayerSize, sizes};

/// A convolution as it counts.
struct CountedLayer {
    name: String,
    num_weights: usize,
    /// Scales of its weights, when they are quantized.
    num_scales: usize,
    /// Scales of its inputs, when they are.
    num_input_scales: usize,
}

impl CountedLayer {
    /// At a width; `None` for float.
    fn at(&self, bits: Option<u32>) -> LayerSize {
        let Self { num_weights, num_scales, num_input_scales, .. } = *self;
        bits.map_or(LayerSize::float(num_weights), |bits| LayerSize {
            num_weights,
            bits,
            num_scales,
            num_input_scales,
        })
    }

    /// Its size at a width, bits.
    fn size(&self, kind: SizeKind, bits: Option<u32>) -> u64 {
        let size = self.at(bits);
        match kind {
            SizeKind::Paper => size.num_weights as u64 * u64::from(size.bits),
            SizeKind::File => size.bytes() * 8,
        }
    }
}

pub(super) struct Chooser<'a> {
    request: &'a SearchRequest,
    setup: &'a Setup,
    target: SizeTarget,
    /// All convolutions of the network.
    layers: Vec<CountedLayer>,
    /// Everything else in the state, bits.
    rest_bits: u64,
}

/// What gets one width: its name, its layers and their numbers of weights.
type Group<'a> = (&'a str, &'a [(String, usize)]);

/// The sensitivity of layers at a bit width.
type Sensitivity<'a> = dyn Fn(&[(String, usize)], u32) -> Result<f64> + 'a;

struct Solved {
    items: Vec<Item>,
    picks: Vec<usize>,
    /// Fraction of the resamples that lead to the same picks.
    same_choice: f64,
}

/// Resamples of the curvature that the programme is solved with.
const RESAMPLES: usize = 200;

impl<'a> Chooser<'a> {
    pub fn new(request: &'a SearchRequest, setup: &'a Setup, target: SizeTarget) -> Result<Self> {
        match target {
            SizeTarget::Compression(x) => {
                ensure!(
                    x >= 1.0 && x.is_finite(),
                    "--target-compression is {x}, expected 1 or more"
                );
            }
            SizeTarget::Bits(x) => {
                ensure!(x > 0.0 && x.is_finite(), "--target-bits is {x}, expected more than 0");
            }
            SizeTarget::Bytes(n) => ensure!(n > 0, "--target-bytes is 0, expected more"),
        }
        let net = blank_network(&setup.config, Device::Cpu)?;
        let sites = net.store().sites();
        let layers = sites
            .iter()
            .map(|s| {
                let channels = usize::try_from(s.weight.size()[0]).context("channels")?;
                let quantizers = setup.quantizers(&s.name)?;
                Ok(CountedLayer {
                    name: s.name.clone(),
                    num_weights: s.num_weights(),
                    num_scales: quantizers.as_ref().map_or(0, |(w, _)| w.num_scales(channels)),
                    num_input_scales: usize::from(quantizers.is_some_and(|(_, a)| a.is_some())),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let is_weight = |key: &str| sites.iter().any(|s| s.weight_name() == key);
        let bits = |t: &tch::Tensor| (t.numel() * t.kind().elt_size_in_bytes() * 8) as u64;
        let rest_bits =
            net.state().iter().filter(|(key, _)| !is_weight(key)).map(|(_, t)| bits(t)).sum();
        drop(sites);
        Ok(Self { request, setup, target, layers, rest_bits })
    }

    fn size(&self, layer: &CountedLayer, bits: Option<u32>) -> u64 {
        layer.size(self.request.size, bits)
    }

    fn sizes(&self, names: &[(String, usize)], bits: u32) -> u64 {
        let inside = |l: &&CountedLayer| names.iter().any(|(name, _)| *name == l.name);
        self.layers.iter().filter(inside).map(|l| self.size(l, Some(bits))).sum()
    }

    /// What no choice changes: layers outside the modules, and for files everything but convolutions.
    fn fixed_bits(&self) -> u64 {
        let searched = |l: &&CountedLayer| {
            self.setup.modules.iter().any(|m| m.layers.iter().any(|(name, _)| *name == l.name))
        };
        let float: u64 =
            self.layers.iter().filter(|l| !searched(l)).map(|l| self.size(l, None)).sum();
        float + if self.request.size == SizeKind::File { self.rest_bits } else { 0 }
    }

    /// The size in full precision, bits.
    fn float_bits(&self) -> u64 {
        let layers: u64 = self.layers.iter().map(|l| self.size(l, None)).sum();
        layers + if self.request.size == SizeKind::File { self.rest_bits } else { 0 }
    }

    /// The size allowed, bits.
    fn budget_bits(&self) -> u64 {
        match self.target {
            SizeTarget::Bytes(bytes) => bytes * 8,
            SizeTarget::Compression(x) => (self.float_bits() as f64 / x) as u64,
            SizeTarget::Bits(x) => {
                let weights: usize = self.layers.iter().map(|l| l.num_weights).sum();
                let rest = if self.request.size == SizeKind::File { self.rest_bits } else { 0 };
                (weights as f64 * x) as u64 + rest
            }
        }
    }

    /// Refuses a target that the smallest choices do not reach, before anything is computed.
    pub fn ensure_feasible(&self) -> Result<()> {
        let widths = if self.request.layerwise {
            self.request.widths.clone()
        } else {
            // The first module gets the trial's width.
            self.request.widths.iter().copied().chain([self.request.trial_bits]).collect()
        };
        let item = |name: &str, layers: &[(String, usize)]| {
            let choice =
                |&bits: &u32| Choice { bits, cost: 0.0, size_bits: self.sizes(layers, bits) };
            Item { name: name.to_owned(), choices: widths.iter().map(choice).collect() }
        };
        let items: Vec<Item> =
            self.setup.modules.iter().map(|m| item(&m.pattern, &m.layers)).collect();
        let room = self.budget_bits().saturating_sub(self.fixed_bits());
        match solve(&items, room) {
            Ok(_) => Ok(()),
            Err(infeasible) => Err(self.explain(&infeasible, 0)),
        }
    }

    /// Why a target cannot be reached, and the nearest one that can. `beside` are bits of modules whose width is given.
    fn explain(&self, infeasible: &Infeasible, beside: u64) -> anyhow::Error {
        let fixed = self.fixed_bits();
        let smallest = fixed + beside + infeasible.smallest_bits;
        let fraction = |bits: u64| 100.0 * bits as f64 / smallest as f64;
        let mut parts: Vec<(String, u64)> = infeasible.parts.clone();
        if fixed > 0 {
            parts.push(("layers and numbers that stay float".to_owned(), fixed));
        }
        if beside > 0 {
            parts.push(("the module that goes first".to_owned(), beside));
        }
        parts.sort_by_key(|(_, bits)| std::cmp::Reverse(*bits));
        parts.truncate(4);
        let parts: Vec<String> =
            parts.iter().map(|(name, bits)| format!("{name} {:.1} %", fraction(*bits))).collect();
        // Rounded so that each of them can be reached.
        let compression = (1000.0 * self.float_bits() as f64 / smallest as f64).floor() / 1000.0;
        let weights: usize = self.layers.iter().map(|l| l.num_weights).sum();
        let rest = if self.request.size == SizeKind::File { self.rest_bits } else { 0 };
        let mean = (1000.0 * (smallest - rest) as f64 / weights as f64).ceil() / 1000.0;
        anyhow::anyhow!(
            "the target ({}) cannot be reached: with the fewest bits everywhere the network takes {} bytes by the {} \
             total; of these {}. The nearest targets are --target-compression {compression}, --target-bytes {} and \
             --target-bits {mean}; or allow fewer bits with --bits, or quantize more with --modules",
            self.target_text(),
            smallest.div_ceil(8),
            self.request.size.name(),
            parts.join(", "),
            smallest.div_ceil(8)
        )
    }

    pub fn target_text(&self) -> String {
        let budget = self.budget_bits();
        let bytes = budget / 8;
        let x = self.float_bits() as f64 / budget as f64;
        match self.target {
            SizeTarget::Compression(c) => format!("{c}x, {bytes} bytes"),
            SizeTarget::Bytes(b) => format!("{b} bytes, {x:.2}x"),
            SizeTarget::Bits(b) => format!("{b} bits a weight, {bytes} bytes, {x:.2}x"),
        }
    }

    /// The bits of the modules, and how often resampled curvature leads to the same: `first` at the trial's width, the others by the programme.
    pub fn modulewise(
        &self,
        curvature: &Curvature,
        order: &[usize],
        first: Option<usize>,
        gains: Vec<Option<GainReport>>,
    ) -> Result<(Vec<ModuleRow>, f64)> {
        let modules = &self.setup.modules;
        let free: Vec<usize> = (0..modules.len()).filter(|i| Some(*i) != first).collect();
        let given = first.map_or(0, |i| self.sizes(&modules[i].layers, self.request.trial_bits));
        let groups: Vec<Group> =
            free.iter().map(|&i| (modules[i].pattern.as_str(), &modules[i].layers[..])).collect();
        let room = self.budget_bits().saturating_sub(self.fixed_bits() + given);
        let Solved { items, picks, same_choice } = self.solve(curvature, &groups, room, given)?;
        let mut bits = vec![self.request.trial_bits; modules.len()];
        for ((&i, item), &pick) in free.iter().zip(&items).zip(&picks) {
            bits[i] = item.choices[pick].bits;
        }
        let mut rows = Vec::new();
        for (i, (module, gain)) in modules.iter().zip(gains).enumerate() {
            let num_weights = module.layers.iter().map(|(_, n)| n).sum();
            let trace = curvature.trace(&module.layers)?;
            let layer = &module.layers.first().context("a module without layers")?.0;
            rows.push(ModuleRow {
                module: module.pattern.clone(),
                num_parameters: module.num_parameters,
                num_weights,
                num_layers: module.layers.len(),
                trace,
                sensitivity: self.sensitivities(curvature, &module.layers)?,
                trial: gain,
                bits: bits[i],
                num_levels: curvature.num_levels(layer, bits[i])?,
                position: order.iter().position(|&o| o == i).unwrap_or_default(),
                is_first_by_trial: first == Some(i),
            });
        }
        Ok((rows, same_choice))
    }

    /// The bits of every layer by the programme, and how often resampled curvature leads to the same.
    pub fn layerwise(&self, curvature: &Curvature) -> Result<(Vec<LayerRow>, f64)> {
        let modules = self.setup.modules.iter();
        let layers: Vec<(&Module, &(String, usize))> =
            modules.flat_map(|m| m.layers.iter().map(move |layer| (m, layer))).collect();
        let groups: Vec<Group> =
            layers.iter().map(|(_, l)| (l.0.as_str(), std::slice::from_ref(*l))).collect();
        let room = self.budget_bits().saturating_sub(self.fixed_bits());
        let Solved { items, picks, same_choice } = self.solve(curvature, &groups, room, 0)?;
        let mut rows = Vec::new();
        for (((module, layer), item), &pick) in layers.iter().zip(&items).zip(&picks) {
            let own = std::slice::from_ref(*layer);
            let bits = item.choices[pick].bits;
            rows.push(LayerRow {
                layer: layer.0.clone(),
                module: module.pattern.clone(),
                position: None,
                num_weights: layer.1,
                trace: curvature.trace(own)?,
                sensitivity: self.sensitivities(curvature, own)?,
                bits,
                num_levels: curvature.num_levels(&layer.0, bits)?,
            });
        }
        Ok((rows, same_choice))
    }

    /// The programme, and how often it finds the same with resampled curvature.
    fn solve(
        &self,
        curvature: &Curvature,
        groups: &[Group],
        room: u64,
        beside: u64,
    ) -> Result<Solved> {
        let items =
            self.items(groups, &|layers, bits| Ok(curvature.sensitivity(layers, bits)?.mean))?;
        let picks = solve(&items, room).map_err(|err| self.explain(&err, beside))?.picks;
        let mut same = 0;
        for number in 0..RESAMPLES {
            let traces = curvature.resampled(number);
            let items = self
                .items(groups, &|layers, bits| curvature.sensitivity_of(&traces, layers, bits))?;
            let found = solve(&items, room).map_err(|err| self.explain(&err, beside))?;
            same += usize::from(found.picks == picks);
        }
        Ok(Solved { items, picks, same_choice: same as f64 / RESAMPLES as f64 })
    }

    fn items(&self, groups: &[Group], sensitivity: &Sensitivity<'_>) -> Result<Vec<Item>> {
        let item = |&(name, layers): &Group| -> Result<Item> {
            let choice = |&bits: &u32| -> Result<Choice> {
                // A negative estimate (a saddle, or noise) would pay for coarser rounding: it counts as none.
                let cost = sensitivity(layers, bits)?.max(0.0);
                Ok(Choice { bits, cost, size_bits: self.sizes(layers, bits) })
            };
            let choices = self.request.widths.iter().map(choice).collect::<Result<_>>()?;
            Ok(Item { name: name.to_owned(), choices })
        };
        groups.iter().map(item).collect()
    }

    fn sensitivities(
        &self,
        curvature: &Curvature,
        layers: &[(String, usize)],
    ) -> Result<BTreeMap<u32, crate::study::ProbeEstimate>> {
        let widths = self.request.widths.iter().chain([&self.request.trial_bits]);
        widths.map(|&bits| Ok((bits, curvature.sensitivity(layers, bits)?))).collect()
    }

    /// The names of a module's layers.
    pub fn layers_of(&self, module: &str) -> Result<Vec<String>> {
        let module = &self.setup.modules[self.setup.module(module)?];
        Ok(module.layers.iter().map(|(name, _)| name.clone()).collect())
    }

    /// Both totals with the chosen bits by layer.
    pub fn size_report(&self, bits_of: &BTreeMap<String, u32>) -> SizeReport {
        let layers: Vec<LayerSize> =
            self.layers.iter().map(|l| l.at(bits_of.get(&l.name).copied())).collect();
        let sizes = sizes(&layers, self.rest_bits / 8);
        let weights: usize = self.layers.iter().map(|l| l.num_weights).sum();
        let paper: u64 = layers.iter().map(|l| l.num_weights as u64 * u64::from(l.bits)).sum();
        SizeReport {
            target: self.target_text(),
            counted: self.request.size,
            paper_bytes: paper.div_ceil(8),
            paper_compression: sizes.paper_compression,
            file_bytes: sizes.file_bytes,
            file_compression: sizes.file_compression,
            mean_bits: paper as f64 / weights as f64,
        }
    }
}
