//! Incremental network quantization: a growing fraction of the weights is frozen on its levels.
//!
//! "Cheap" INQ: frozen values live in the weight itself and a mask tells the trainer what it may
//! change, so the forward pass is that of a float layer.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use rand::RngCore;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};

use super::affine::by_channel;
use super::checks::{check_on_grid, check_order};
use super::levels::{Grid, Spacing};
use super::method::{SavedState, SiteReport, WeightQuantizer, WeightStep, saved_epoch};
use super::scale::{ensure_finite, ranges_by};
use super::schedule::FractionSchedule;
use super::scheme::{Settings, WeightContext, WeightScheme};
use super::settings::QuantInit;
use super::width::BitWidth;
use crate::nn::Site;
use crate::seed;

/// Purpose of this file's random streams.
const STREAM_INQ: u64 = 0x696e71;

/// Which weights are frozen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum QuantStrategy {
    /// Those of largest magnitude among the trainable ones.
    #[default]
    Magnitude,
    /// Those of smallest magnitude among the trainable ones.
    LowMagnitude,
    /// A random choice among the trainable ones.
    Random,
    /// Random partition relaxation: each step freezes a new random choice among all weights; a weight
    /// that is no longer chosen is trained on from its level.
    #[serde(rename = "RPR", alias = "rpr")]
    Rpr,
}

/// Settings of method `inq` beyond those of the published files.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InqConfig {
    /// Whether stored weights change their unit when the scale is found.
    pub rescale: Rescale,
}

/// What becomes of stored weights when the scale is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Rescale {
    /// They stay as they are, and the levels carry the scale: the layer's function stays.
    #[default]
    None,
    /// As in the published code, they are divided by the largest level, so that levels lie in [-1, 1]; biases stay.
    /// The layer's output grows by that factor, which only a normalization behind it takes out again, and its
    /// gradient shrinks. Only where `quant_init_method` searches the scale (`-opt`).
    Published,
}

/// Method `inq` of weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct InqWeights {
    /// How the levels are spaced and scaled (methods `inq`, `uniform`, `ana`).
    pub quant_init_method: QuantInit,
    /// Which weights are frozen next (method `inq`).
    pub quant_strategy: QuantStrategy,
    /// From an epoch of the stage on, the fraction of weights that is frozen; must end at 1 (method `inq`).
    #[schemars(with = "BTreeMap<String, f64>")]
    pub schedule: FractionSchedule,
    /// Whether the optimizer forgets its momentum at each step of the schedule (method `inq`).
    pub clear_optim_state_on_step: bool,
    /// Settings of method `inq`.
    pub inq: InqConfig,
}

impl Default for InqWeights {
    fn default() -> Self {
        Self {
            quant_init_method: QuantInit::UniformL2Opt,
            quant_strategy: QuantStrategy::Magnitude,
            schedule: FractionSchedule::default(),
            clear_optim_state_on_step: true,
            inq: InqConfig::default(),
        }
    }
}

impl Settings for InqWeights {
    const NAME: &'static str = "inq";
    const SUMMARY: &'static str = "Incremental network quantization: a growing fraction of the weights is frozen on its levels.";
}

impl WeightScheme for InqWeights {
    fn check(&self, at: &str, problems: &mut Vec<String>) {
        self.schedule.check(&format!("{at}.schedule"), problems);
        let is_searched =
            !matches!(self.quant_init_method, QuantInit::Uniform | QuantInit::PowerOfTwo);
        if self.inq.rescale == Rescale::Published && !is_searched {
            problems.push(format!(
                "{at}.inq.rescale: published goes with a quant_init_method that searches the scale (uniform-l2-opt, ..); \
                 with the others the published code leaves weights as they are, too: set none"
            ));
        }
        let first = self.schedule.entries().next().map(|(epoch, _)| epoch);
        if self.inq.rescale == Rescale::Published && first.is_some_and(|first| first > 0) {
            problems.push(format!(
                "{at}.inq.rescale: published changes the unit of the weights at the first step of the schedule, which must \
                 be epoch 0 of the stage (a fraction of 0 will do)"
            ));
        }
    }

    fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        self.schedule.check_epochs(epochs, &format!("{at}.schedule"), problems);
    }

    fn stretch(&mut self, from: u32, to: u32) {
        self.schedule = self.schedule.stretched(from, to);
    }

    fn spacing(&self, width: BitWidth) -> Result<Spacing> {
        let BitWidth { bits, n_levels, levels } = width;
        match (self.quant_init_method, levels) {
            (QuantInit::PowerOfTwo, None) => Spacing::power_of_two(bits, n_levels),
            (QuantInit::PowerOfTwo, Some(levels)) => bail!(
                "levels {levels}: powers of two have 2^(b-1) + 1 levels; drop levels, or choose another \
                 quant_init_method"
            ),
            _ => width.evenly_spaced(),
        }
    }

    fn is_per_channel(&self) -> bool {
        self.quant_init_method.is_per_channel()
    }

    fn schedule(&self) -> Option<&FractionSchedule> {
        Some(&self.schedule)
    }

    fn clears_optimizer(&self) -> bool {
        self.clear_optim_state_on_step
    }

    fn expected_range(
        &self,
        name: &str,
        weight: &Tensor,
        spacing: &Spacing,
        per_channel: bool,
    ) -> Result<Vec<f32>> {
        ranges_by(name, weight, self.quant_init_method, spacing, per_channel)
    }

    fn attach(&self, site: &Rc<Site>, context: &WeightContext) -> Result<Box<dyn WeightQuantizer>> {
        Ok(Box::new(InqWeight::new(site, self, context)?))
    }
}

/// The INQ quantizer of one layer's weight.
///
/// At each step of the schedule the strategy picks `floor(fraction * n) - frozen` more weights; each
/// is set to the nearest level, in place, and must not change again (for `RPR`: until the next
/// step). The scale is found once, from the weights of the first step that freezes any. Before that
/// step the weight keeps every bit of the float one.
///
/// # Source
/// Zhou et al., *Incremental Network Quantization*, ICLR 2017; Cavigelli and Benini, *RPR: Random
/// Partition Relaxation*, 2020 (arXiv 2001.01091).
/// Deviation from the published code: it divides the weights by the scale, which changes the layer's
/// function; here the levels carry the scale, unless [`Rescale::Published`] is set. `RPR` freezes `floor(fraction * n)` weights, not
/// `n - floor((1 - fraction) n)`, and a weight that thaws goes on from its level.
pub struct InqWeight {
    site: Rc<Site>,
    settings: InqWeights,
    context: WeightContext,
    grid: Option<Grid>,
    /// What the stored weight was divided by in the epoch under way.
    rescaled_by: Option<Vec<f32>>,
    /// 1 where trainable, else 0; shape and memory format of the weight.
    trainable: Tensor,
    num_frozen: usize,
    steps_done: i64,
    epoch: Option<u32>,
}

impl InqWeight {
    /// A quantizer that has not frozen anything yet.
    ///
    /// # Errors
    /// If the weight is not f32.
    pub fn new(site: &Rc<Site>, settings: &InqWeights, context: &WeightContext) -> Result<Self> {
        let kind = site.weight.kind();
        ensure!(kind == Kind::Float, "{} is {kind:?}, expected Float", site.weight_name());
        Ok(Self {
            site: site.clone(),
            settings: settings.clone(),
            context: context.clone(),
            grid: None,
            rescaled_by: None,
            trainable: no_grad(|| site.weight.detach().ones_like()),
            num_frozen: 0,
            steps_done: 0,
            epoch: None,
        })
    }

    /// Freezes weights until `fraction` of them is frozen; `epoch` places the random strategies.
    ///
    /// # Errors
    /// If the weight holds NaN or infinity.
    pub fn step(&mut self, fraction: f64, epoch: u32) -> Result<()> {
        let name = self.site.weight_name();
        let target = num_frozen_at(fraction, self.site.num_weights());
        let repartition = self.settings.quant_strategy == QuantStrategy::Rpr;
        // a step that freezes nothing changes the unit already, as published
        let rescales = self.grid.is_none() && self.settings.inq.rescale == Rescale::Published;
        if target == 0 && rescales {
            ensure_finite(&name, &self.site.weight)?;
            self.find_grid(&name)?;
        }
        if target == 0 || (target <= self.num_frozen && !repartition) {
            return Ok(());
        }
        ensure_finite(&name, &self.site.weight)?;
        if self.grid.is_none() {
            self.find_grid(&name)?;
        }
        let grid = self.grid.as_ref().context("the grid was set above")?;
        no_grad(|| -> Result<()> {
            let frozen_before = self.trainable.eq(0.0).reshape([-1]);
            let frozen = self.choose(&frozen_before, target, epoch)?;
            let shape = self.site.weight.size();
            let newly = frozen.logical_and(&frozen_before.logical_not()).reshape(&shape);
            let weight = self.site.weight.detach();
            let quantized = grid.nearest(&weight)?.where_self(&newly, &weight);
            self.site.weight.shallow_clone().copy_(&quantized);
            self.trainable
                .shallow_clone()
                .copy_(&frozen.logical_not().reshape(&shape).to_kind(Kind::Float));
            Ok(())
        })?;
        self.num_frozen = target;
        Ok(())
    }

    /// Finds the levels, from the weight of this moment; [`Rescale::Published`] changes its unit to the largest level.
    fn find_grid(&mut self, name: &str) -> Result<()> {
        let WeightContext { spacing, per_channel, .. } = &self.context;
        let at = || format!("quantizing {name}");
        let weight = &self.site.weight;
        let range = self.settings.expected_range(name, weight, spacing, *per_channel)?;
        let grid = Grid::new(spacing.clone(), range).with_context(at)?;
        if self.settings.inq.rescale == Rescale::None {
            self.grid = Some(grid);
            return Ok(());
        }
        let largest = match spacing {
            Spacing::Integers { .. } => grid.max_level(),
            _ => grid.range().to_vec(),
        };
        let inverse: Vec<f32> = largest.iter().map(|&s| (1.0 / f64::from(s)) as f32).collect();
        no_grad(|| {
            let inverse = Tensor::from_slice(&inverse).to_device(weight.device());
            let scaled = weight.detach() * by_channel(weight, &inverse);
            weight.shallow_clone().copy_(&scaled);
        });
        let range = grid.range().iter().zip(&largest).map(|(range, largest)| range / largest);
        self.grid = Some(Grid::new(spacing.clone(), range.collect()).with_context(at)?);
        self.rescaled_by = Some(largest);
        Ok(())
    }

    /// Which weights are frozen after the step, as a flat bool tensor in row-major order.
    fn choose(&self, frozen: &Tensor, target: usize, epoch: u32) -> Result<Tensor> {
        let n = self.site.num_weights();
        if target == n {
            return Ok(frozen.ones_like());
        }
        let before = match self.settings.quant_strategy {
            QuantStrategy::Rpr => vec![false; n],
            _ => Vec::<bool>::try_from(frozen.to_device(Device::Cpu))?,
        };
        let num_new = target - before.iter().filter(|frozen| **frozen).count();
        let chosen = match self.settings.quant_strategy {
            // Magnitudes are ordered as their bits are.
            QuantStrategy::Magnitude => {
                with_first(before, &self.magnitudes()?, num_new, |m: f32| !m.to_bits())
            }
            QuantStrategy::LowMagnitude => {
                with_first(before, &self.magnitudes()?, num_new, f32::to_bits)
            }
            QuantStrategy::Random | QuantStrategy::Rpr => {
                with_first(before, &self.random_keys(epoch), num_new, |key: u64| key)
            }
        };
        Ok(Tensor::from_slice(&chosen).to_device(frozen.device()))
    }

    /// The magnitudes of the weights, in row-major order.
    fn magnitudes(&self) -> Result<Vec<f32>> {
        let flat = self.site.weight.detach().reshape([-1]).abs();
        Ok(Vec::try_from(flat.to_device(Device::Cpu))?)
    }

    /// A random number for each weight, a function of seed, layer, epoch and index.
    fn random_keys(&self, epoch: u32) -> Vec<u64> {
        let place = [STREAM_INQ, seed::fnv1a(self.site.name.as_bytes()), u64::from(epoch)];
        let mut rng = seed::stream(self.context.seed, &place);
        (0..self.site.num_weights()).map(|_| rng.next_u64() >> 1).collect()
    }

    /// Number of frozen weights.
    pub fn num_frozen(&self) -> usize {
        self.num_frozen
    }

    /// 1 where the weight is trainable, 0 where frozen; f32, shares storage with the quantizer.
    pub fn trainable(&self) -> Tensor {
        self.trainable.shallow_clone()
    }

    /// The levels; `None` before the first step that freezes weights.
    pub fn grid(&self) -> Option<&Grid> {
        self.grid.as_ref()
    }

    fn fraction(&self) -> f64 {
        self.epoch.map_or(0.0, |epoch| self.settings.schedule.fraction_at(epoch))
    }

    /// Whether all frozen weights lie on their levels, bit for bit.
    fn check_frozen(&self) -> Result<()> {
        let Some(grid) = &self.grid else { return Ok(()) };
        let frozen = self.trainable.eq(0.0);
        check_on_grid(&self.site.weight_name(), grid, &self.site.weight.detach(), Some(&frozen))
    }
}

/// `chosen` with `num` more: of those that are not chosen yet the ones of the lowest keys, of equal keys the first.
fn with_first<T: Copy, K: Ord>(
    mut chosen: Vec<bool>,
    values: &[T],
    num: usize,
    key: impl Fn(T) -> K,
) -> Vec<bool> {
    let free = values.iter().enumerate().filter(|(i, _)| !chosen[*i]);
    let mut ranked: Vec<(K, usize)> = free.map(|(i, &value)| (key(value), i)).collect();
    if num > 0 && num < ranked.len() {
        ranked.select_nth_unstable(num - 1);
    }
    ranked.truncate(num);
    for (_, i) in ranked {
        chosen[i] = true;
    }
    chosen
}

/// Number of frozen weights at a fraction: truncated, in f64, as published.
pub fn num_frozen_at(fraction: f64, num_weights: usize) -> usize {
    (fraction * num_weights as f64) as usize
}

impl WeightQuantizer for InqWeight {
    fn site(&self) -> &Rc<Site> {
        &self.site
    }

    fn frozen_fraction(&self) -> f64 {
        self.num_frozen as f64 / self.site.num_weights() as f64
    }

    fn start_epoch(&mut self, epoch: u32) -> Result<WeightStep> {
        check_order(&self.site.name, self.epoch, epoch)?;
        let schedule = &self.settings.schedule;
        let fraction = schedule.fraction_at(epoch);
        let is_new = self.epoch != Some(epoch);
        let stepped = is_new && (schedule.steps_at(epoch) || fraction > self.fraction());
        if is_new {
            self.rescaled_by = None;
        }
        if stepped {
            self.step(fraction, epoch)?;
            self.steps_done += 1;
        }
        self.epoch = Some(epoch);
        Ok(WeightStep { fraction: Some(fraction), stepped })
    }

    fn end_epoch(&mut self, _epoch: u32) -> Result<()> {
        self.check_frozen()
    }

    fn trainable(&self) -> Option<Tensor> {
        Some(InqWeight::trainable(self))
    }

    fn grid(&self) -> Option<Grid> {
        self.grid.clone()
    }

    fn rescaled_by(&self) -> Option<&[f32]> {
        self.rescaled_by.as_deref()
    }

    fn assert_on_grid(&self) -> Result<()> {
        let (frozen, n) = (self.num_frozen, self.site.num_weights());
        ensure!(
            frozen == n,
            "{} is not fully quantized: {frozen} of {n} weights are frozen",
            self.site.weight_name()
        );
        self.check_frozen()
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        let scale = match &self.grid {
            Some(grid) => Tensor::from_slice(grid.range()),
            None => Tensor::from_slice(&[f32::NAN]),
        };
        vec![
            ("weight_frozen", self.trainable.eq(0.0).to_kind(Kind::Uint8).contiguous()),
            ("weight_scale", scale),
            ("steps_done", Tensor::from(self.steps_done)),
            ("epoch", saved_epoch(self.epoch)),
        ]
    }

    fn load_state(&mut self, state: &SavedState) -> Result<()> {
        let at = &state.prefix;
        let frozen = state.tensor("weight_frozen", Kind::Uint8, &self.site.weight.size())?;
        let range = self.load_range(state)?;
        let num_frozen = frozen.ne(0).sum(Kind::Int64).int64_value(&[]) as usize;
        ensure!(
            num_frozen == 0 || range.is_some(),
            "{at}.weight_scale is NaN, but {num_frozen} weights are frozen"
        );
        let steps_done = state.counter("steps_done")?;
        let epoch = state.epoch("epoch")?;
        self.grid = match range {
            Some(range) => {
                Some(Grid::new(self.context.spacing.clone(), range).with_context(|| at.clone())?)
            }
            None => None,
        };
        no_grad(|| self.trainable.copy_(&frozen.eq(0).to_kind(Kind::Float)));
        self.num_frozen = num_frozen;
        self.steps_done = steps_done;
        self.epoch = epoch;
        Ok(())
    }

    fn report(&self, report: &mut SiteReport) {
        report.method = InqWeights::NAME.to_owned();
        report.set_spacing(&self.context.spacing);
        report.frozen_fraction = self.frozen_fraction();
        if let Some(grid) = &self.grid {
            let frozen = self.trainable.eq(0.0);
            report.set_grid(grid, &self.site.weight, Some(&frozen));
        }
    }
}

impl InqWeight {
    /// The saved ranges, which files call `weight_scale`; `None` before the first step.
    fn load_range(&self, state: &SavedState) -> Result<Option<Vec<f32>>> {
        let one = state.tensor("weight_scale", Kind::Float, &[1]);
        let range = match one {
            Err(_) if self.context.per_channel => {
                state.tensor("weight_scale", Kind::Float, &self.site.weight.size()[..1])?
            }
            one => one?,
        };
        let range: Vec<f32> = Vec::try_from(&range)?;
        Ok(if range[0].is_nan() { None } else { Some(range) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Store;
    use crate::quant::testing::{bits, channels_last, store, train, weights};
    use crate::quant::{Claim, ModuleQuantizer, WeightQuantConfig};

    const FRACTIONS: [f64; 5] = [0.0, 0.3, 0.3, 0.8, 1.0];
    const STRATEGIES: [QuantStrategy; 4] = [
        QuantStrategy::Magnitude,
        QuantStrategy::LowMagnitude,
        QuantStrategy::Random,
        QuantStrategy::Rpr,
    ];

    fn config(strategy: QuantStrategy) -> InqWeights {
        InqWeights {
            quant_strategy: strategy,
            schedule: FractionSchedule::new((0..).zip(FRACTIONS)),
            ..Default::default()
        }
    }

    fn context(settings: &InqWeights, bits: u32, seed: u64) -> WeightContext {
        let spacing = settings.spacing(BitWidth::of_bits(bits)).unwrap();
        let per_channel = settings.is_per_channel();
        WeightContext { spacing, per_channel, oscillation: None, seed }
    }

    fn quantizer(weight: &Tensor, settings: &InqWeights, seed: u64) -> InqWeight {
        quantizer_of(weight, settings, &context(settings, 3, seed))
    }

    fn quantizer_of(weight: &Tensor, settings: &InqWeights, context: &WeightContext) -> InqWeight {
        let store: Store = store(&[("m.conv", weight.shallow_clone())]);
        InqWeight::new(&store.sites()[0].clone(), settings, context).unwrap()
    }

    fn frozen(inq: &InqWeight) -> Vec<bool> {
        bits(&inq.trainable).into_iter().map(|v| v == 0).collect()
    }

    #[test]
    fn at_fraction_zero_every_bit_is_that_of_the_float_weight() {
        let w = weights(1, &[6, 5, 3, 3]);
        for strategy in STRATEGIES {
            let mut inq = quantizer(&w, &config(strategy), 0);
            assert_eq!(bits(&inq.site.weight), bits(&w));
            let step = inq.start_epoch(0).unwrap();
            assert!(step.stepped && step.fraction == Some(0.0));
            assert_eq!(bits(&inq.site.weight), bits(&w));
            assert!(inq.grid().is_none() && frozen(&inq).iter().all(|&f| !f));
            assert!(inq.assert_on_grid().unwrap_err().to_string().contains("0 of 270"));
        }
    }

    #[test]
    fn masks_grow_and_frozen_values_keep_their_bits_while_the_others_train() {
        for strategy in &STRATEGIES[..3] {
            let mut inq = quantizer(&weights(2, &[6, 5, 3, 3]), &config(*strategy), 3);
            let mut scale = None;
            for (epoch, fraction) in (0u32..).zip(FRACTIONS) {
                let (before, values) = (frozen(&inq), bits(&inq.site.weight));
                inq.start_epoch(epoch).unwrap();
                let (now, after) = (frozen(&inq), bits(&inq.site.weight));
                let count = now.iter().filter(|&&f| f).count();
                assert_eq!(count, (fraction * 270.0) as usize);
                assert_eq!(count, inq.num_frozen());
                let nearest = inq.grid().map(|grid| bits(&grid.nearest(&inq.site.weight).unwrap()));
                for i in 0..now.len() {
                    assert!(now[i] || !before[i], "{strategy:?}: weight {i} thawed");
                    if now[i] && !before[i] {
                        assert_eq!(nearest.as_ref().unwrap()[i], after[i]);
                    } else {
                        assert_eq!(after[i], values[i], "{strategy:?}: weight {i} changed");
                    }
                }
                if let Some(grid) = inq.grid() {
                    let first = scale.get_or_insert_with(|| grid.range().to_vec());
                    assert_eq!(grid.range(), first, "the scale is found once");
                }
                train(&inq.site.weight, &inq.trainable, 0.1, u64::from(epoch));
                inq.end_epoch(epoch).unwrap();
            }
            inq.assert_on_grid().unwrap();
        }
    }

    #[test]
    fn equal_magnitudes_freeze_by_index() {
        let w = Tensor::from_slice(&[0.5f32, -0.5, 0.5, -0.5, 0.5, 0.1, -0.1, 0.1, -0.1, 0.1]);
        let w = w.reshape([10, 1, 1, 1]);
        let chosen = |strategy| {
            let mut inq = quantizer(&w, &config(strategy), 0);
            inq.start_epoch(1).unwrap();
            let frozen = frozen(&inq);
            (0..10).filter(|&i| frozen[i]).collect::<Vec<_>>()
        };
        assert_eq!(chosen(QuantStrategy::Magnitude), [0, 1, 2]);
        assert_eq!(chosen(QuantStrategy::LowMagnitude), [5, 6, 7]);
    }

    #[test]
    fn a_random_choice_depends_on_seed_layer_and_epoch_alone() {
        let w = weights(4, &[6, 5, 3, 3]);
        for strategy in &STRATEGIES[2..] {
            let choice = |seed, epoch| {
                let mut inq = quantizer(&w, &config(*strategy), seed);
                inq.step(0.3, epoch).unwrap();
                frozen(&inq)
            };
            assert_eq!(choice(1, 2), choice(1, 2));
            assert_ne!(choice(1, 2), choice(2, 2));
            assert_ne!(choice(1, 2), choice(1, 3));
        }
    }

    #[test]
    fn rpr_draws_a_new_partition_at_each_step_and_ends_quantized() {
        let mut inq = quantizer(&weights(5, &[6, 5, 3, 3]), &config(QuantStrategy::Rpr), 7);
        let mut partitions = Vec::new();
        for (epoch, fraction) in (0u32..).zip(FRACTIONS) {
            let start = inq.start_epoch(epoch).unwrap();
            assert!(start.stepped);
            assert_eq!(inq.num_frozen(), (fraction * 270.0) as usize);
            assert_eq!(frozen(&inq).iter().filter(|&&f| f).count(), inq.num_frozen());
            partitions.push(frozen(&inq));
            train(&inq.site.weight, &inq.trainable, 0.1, u64::from(epoch));
            inq.end_epoch(epoch).unwrap();
        }
        // epochs 1 and 2 freeze equally many, but others
        assert_ne!(partitions[1], partitions[2]);
        inq.assert_on_grid().unwrap();
    }

    #[test]
    fn a_weight_is_changed_in_place_and_keeps_its_memory_format() {
        let w = weights(6, &[6, 5, 3, 3]);
        let mut inq = quantizer(&channels_last(&w), &config(QuantStrategy::Magnitude), 0);
        let (stride, address) = (inq.site.weight.stride(), inq.site.weight.data_ptr());
        assert!(!inq.site.weight.is_contiguous());
        assert_eq!(inq.trainable.stride(), stride);
        let mut plain = quantizer(&w, &config(QuantStrategy::Magnitude), 0);
        for epoch in 0..5 {
            inq.start_epoch(epoch).unwrap();
            plain.start_epoch(epoch).unwrap();
            assert_eq!(bits(&inq.site.weight), bits(&plain.site.weight));
            assert_eq!(frozen(&inq), frozen(&plain));
        }
        assert_eq!(inq.site.weight.stride(), stride);
        assert_eq!(inq.site.weight.data_ptr(), address);
        assert_eq!(inq.trainable.stride(), stride);
        assert!(inq.site.weight.requires_grad() && inq.site.weight.is_leaf());
        inq.assert_on_grid().unwrap();
    }

    #[test]
    fn a_frozen_weight_that_moved_by_one_bit_is_found() {
        let mut inq = quantizer(&weights(7, &[3, 2, 1, 1]), &config(QuantStrategy::Magnitude), 0);
        inq.start_epoch(4).unwrap();
        inq.assert_on_grid().unwrap();
        let mut element = inq.site.weight.detach().reshape([-1]).get(4);
        let moved = f32::from_bits((element.double_value(&[]) as f32).to_bits() + 1);
        let _ = element.fill_(f64::from(moved));
        for error in [inq.assert_on_grid().unwrap_err(), inq.end_epoch(4).unwrap_err()] {
            let text = error.to_string();
            assert!(text.contains("m.conv.weight") && text.contains("index 4"), "{text}");
            assert!(text.contains("7 levels"), "{text}");
        }
    }

    #[test]
    fn a_weight_that_is_not_finite_is_refused_before_anything_changes() {
        let w = Tensor::from_slice(&[0.5f32, f32::NAN, 0.1, 0.2]).reshape([4, 1, 1, 1]);
        let mut inq = quantizer(&w, &config(QuantStrategy::Magnitude), 0);
        inq.start_epoch(0).unwrap();
        let text = inq.start_epoch(1).unwrap_err().to_string();
        assert!(text.contains("m.conv.weight") && text.contains("index 1"), "{text}");
        assert_eq!(bits(&inq.site.weight), bits(&w));
        assert_eq!(inq.steps_done, 1, "the failed step does not count");
    }

    #[test]
    fn an_epoch_is_stepped_once_and_a_missed_step_is_caught_up() {
        let w = weights(8, &[4, 4, 1, 1]);
        let mut inq = quantizer(&w, &config(QuantStrategy::Random), 0);
        assert!(inq.start_epoch(3).unwrap().stepped);
        let once = bits(&inq.site.weight);
        assert!(!inq.start_epoch(3).unwrap().stepped);
        assert_eq!((bits(&inq.site.weight), inq.steps_done), (once, 1));
        assert!(inq.start_epoch(2).unwrap_err().to_string().contains("must not go back"));
        let mut late = config(QuantStrategy::Random);
        late.schedule = FractionSchedule::new([(0, 0.5), (9, 1.0)]);
        let mut inq = quantizer(&w, &late, 0);
        assert!(inq.start_epoch(4).unwrap().stepped, "the step of epoch 0 was missed");
        assert!(!inq.start_epoch(5).unwrap().stepped);
    }

    #[test]
    fn every_kind_of_level_ends_on_its_grid() {
        let inits = [
            (QuantInit::UniformL2Opt, 1),
            (QuantInit::UniformL1Opt, 2),
            (QuantInit::UniformLinfOpt, 8),
            (QuantInit::Uniform, 4),
            (QuantInit::UniformL2OptPerChannel, 3),
            (QuantInit::PowerOfTwo, 5),
        ];
        for (init, width) in inits {
            let mut config = config(QuantStrategy::Magnitude);
            config.quant_init_method = init;
            let context = context(&config, width, 0);
            let mut inq = quantizer_of(&weights(9, &[6, 5, 3, 3]), &config, &context);
            for epoch in 0..5 {
                inq.start_epoch(epoch).unwrap();
                train(&inq.site.weight, &inq.trainable, 0.1, u64::from(epoch));
            }
            inq.assert_on_grid().unwrap();
            let num_scales = inq.grid().unwrap().num_ranges();
            assert_eq!(num_scales, if init == QuantInit::UniformL2OptPerChannel { 6 } else { 1 });
        }
    }

    #[test]
    fn a_double_weight_is_refused() {
        let store = store(&[("m.conv", weights(1, &[2, 2, 1, 1]).to_kind(Kind::Double))]);
        let site = store.sites()[0].clone();
        let settings = config(QuantStrategy::Random);
        let error = InqWeight::new(&site, &settings, &context(&settings, 3, 0)).err().unwrap();
        assert!(error.to_string().contains("m.conv.weight is Double"));
    }

    #[test]
    fn the_published_rescaling_makes_the_largest_level_one_and_keeps_the_choice() {
        for (json, num_levels) in [
            (r#"{"bits": 2}"#, 3),
            (r#"{"bits": 2, "levels": "full"}"#, 4),
            (r#"{"bits": 4, "granularity": "channel"}"#, 15),
        ] {
            let quantizer_of = |rescale: &str| {
                let mut json: serde_json::Value = serde_json::from_str(json).unwrap();
                json["inq"] = serde_json::json!({ "rescale": rescale });
                json["schedule"] = serde_json::json!({ "0": 0, "1": 0.5, "2": 1 });
                let config: WeightQuantConfig = serde_json::from_value(json).unwrap();
                let store = store(&[("fpn.conv", weights(4, &[4, 3, 3, 3]) * 0.1)]);
                let claim = Claim::of("fpn").with_weights(&config);
                let quantizer = ModuleQuantizer::attach(&claim, &store).unwrap();
                (store, quantizer)
            };
            let (plain_store, mut plain) = quantizer_of("none");
            let (store, mut rescaled) = quantizer_of("published");
            let weight = |store: &Store| store.get("fpn.conv.weight").unwrap();
            let before = weight(&store).copy();
            plain.start_epoch(0).unwrap();
            rescaled.start_epoch(0).unwrap();
            assert_eq!(bits(&weight(&plain_store)), bits(&before), "no weight is frozen yet");
            let factor = weight(&store) / &before;
            let per_row = factor.reshape([4, -1]);
            let spread =
                per_row.amax([1i64].as_slice(), false) - per_row.amin([1i64].as_slice(), false);
            assert!(spread.max().double_value(&[]) < 1e-4 && factor.min().double_value(&[]) > 2.0);
            for epoch in 1..=2 {
                plain.start_epoch(epoch).unwrap();
                rescaled.start_epoch(epoch).unwrap();
                // a resume in the middle goes on in the new unit and does not change it again
                let state: Vec<_> =
                    rescaled.state().into_iter().map(|(name, t)| (name, t.copy())).collect();
                let now = bits(&weight(&store));
                rescaled.load_state(&state).unwrap();
                rescaled.start_epoch(epoch).unwrap();
                assert_eq!(bits(&weight(&store)), now);
            }
            rescaled.assert_on_grid().unwrap();
            let report = &rescaled.report()[0];
            assert_eq!(report.num_levels, Some(num_levels));
            assert!(report.max_level.iter().all(|&max| max == 1.0), "{:?}", report.max_level);
            // the same codes in another unit
            let codes = |quantizer: &ModuleQuantizer| quantizer.codes().unwrap().remove(0);
            let (of_plain, of_rescaled) = (codes(&plain), codes(&rescaled));
            assert!(of_plain.codes.equal(&of_rescaled.codes), "{json}");
            let values = of_rescaled.grid.values(&of_rescaled.codes).unwrap();
            assert_eq!(bits(&values), bits(&weight(&store)));
        }
    }

    #[test]
    fn rescaling_is_refused_where_the_published_code_does_not_rescale() {
        for (method, refused) in
            [("uniform", true), ("power-of-two", true), ("uniform-l1-opt", false)]
        {
            let json = format!(
                r#"{{"bits": 2, "quant_init_method": "{method}", "inq": {{"rescale": "published"}}}}"#
            );
            let config: WeightQuantConfig = serde_json::from_str(&json).unwrap();
            let mut problems = Vec::new();
            config.check("w", &mut problems);
            assert_eq!(problems.len(), usize::from(refused), "{problems:?}");
            assert!(problems.iter().all(|p| p.starts_with("w.inq.rescale: published goes with")));
        }
        let late = r#"{"bits": 2, "schedule": {"1": 1}, "inq": {"rescale": "published"}}"#;
        let config: WeightQuantConfig = serde_json::from_str(late).unwrap();
        let mut problems = Vec::new();
        config.check("w", &mut problems);
        assert!(problems.len() == 1 && problems[0].contains("must be epoch 0"), "{problems:?}");
    }
}
