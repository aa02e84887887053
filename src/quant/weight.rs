//! Weights that are quantized in the forward pass while the stored ones stay float: fake quantization.
//!
//! [`FakeWeight`] carries what the methods share (slot, grid, state, reports, freezing); a [`WeightRule`] is what a
//! method adds to it.
//!
//! **Within a step** ([`WeightQuantizer::begin_step`] to `end_step`) the quantized weight is computed
//! once, as a leaf tensor of its own: the layer may use it several times (the head runs on five levels),
//! and its gradient is handed on in one pass. Outside of one, each forward pass quantizes anew, with a
//! gradient that libtorch can follow.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use tch::{Device, Kind, Tensor, no_grad};
use tracing::warn;

use super::affine;
use super::checks::{check_on_grid, check_order};
use super::levels::{Codes, Grid, Spacing};
use super::method::{
    Learnt, LearntOptions, SavedState, SiteReport, WeightQuantizer, WeightStep, saved_epoch,
};
use super::oscillation::Oscillation;
use super::scale;
use super::scheme::WeightContext;
use super::surrogate::straight_through;
use crate::libtorch::upload;
use crate::nn::{Site, WeightSlot};

/// What a layer computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WeightMode {
    /// The stored weight: the stage has not begun.
    Float,
    /// The quantized weight.
    Quantizing,
    /// The stored weight, which is the quantized one for good.
    Frozen,
}

impl WeightMode {
    const ALL: [WeightMode; 3] = [WeightMode::Float, WeightMode::Quantizing, WeightMode::Frozen];
}

/// The levels of a layer's weight at this moment.
#[derive(Debug)]
pub struct LayerLevels {
    spacing: Spacing,
    codes: Option<Codes>,
    num_weights: usize,
    scale: Tensor,
    is_learnt: bool,
    grid: RefCell<Option<Grid>>,
}

impl LayerLevels {
    /// How they are spaced.
    pub fn spacing(&self) -> &Spacing {
        &self.spacing
    }

    /// The integer codes.
    ///
    /// # Panics
    /// If the levels are not multiples of a scale.
    pub fn codes(&self) -> Codes {
        self.codes.expect("the method's levels are multiples of a scale")
    }

    /// Number of weights of the layer.
    pub fn num_weights(&self) -> usize {
        self.num_weights
    }

    /// The scale, or the range where levels are not multiples of a scale: `[1]` or `[channels]`, f32; a leaf that
    /// requires a gradient where the method learns it. Always the same tensor.
    pub fn scale(&self) -> &Tensor {
        &self.scale
    }

    /// The nearest level of each value; no gradient.
    ///
    /// # Panics
    /// If there are no levels yet.
    pub fn nearest(&self, weight: &Tensor) -> Tensor {
        let grid = self.current().expect("a layer that quantizes has levels");
        no_grad(|| grid.nearest(weight)).expect("the levels are those of this weight")
    }

    /// 1 where a value lies between the lowest and the highest level of its channel, or is one of the two; else 0. f32.
    fn inside(&self, weight: &Tensor) -> Tensor {
        let grid = self.current().expect("a layer that quantizes has levels");
        let levels: Vec<Vec<f32>> = (0..grid.num_ranges()).map(|i| grid.levels(i)).collect();
        let bound = |of: fn(&Vec<f32>) -> f32| {
            let values: Vec<f32> = levels.iter().map(of).collect();
            affine::by_channel(weight, &upload(&Tensor::from_slice(&values), weight.device()))
        };
        no_grad(|| {
            let (low, high) = (bound(|levels| levels[0]), bound(|levels| levels[levels.len() - 1]));
            let weight = weight.detach();
            weight.ge_tensor(&low).logical_and(&weight.le_tensor(&high)).to_kind(Kind::Float)
        })
    }

    fn has_range(spacing: &Spacing) -> bool {
        matches!(spacing, Spacing::Integers { .. } | Spacing::Uniform { num_levels: 2 })
            || spacing.multiples().is_none()
    }

    /// The grid of this moment: a learnt scale moves.
    fn current(&self) -> Option<Grid> {
        let grid = self.grid.borrow();
        let known = grid.as_ref()?;
        if !self.is_learnt {
            return Some(known.clone());
        }
        let range = Vec::try_from(self.scale.detach().to_device(Device::Cpu));
        Grid::new(self.spacing.clone(), range.ok()?).ok()
    }

    fn set(&self, range: Vec<f32>) -> Result<()> {
        let grid = Grid::new(self.spacing.clone(), range)?;
        let scale = grid.scale().unwrap_or_else(|| grid.range().to_vec());
        no_grad(|| self.scale.shallow_clone().copy_(&Tensor::from_slice(&scale)));
        *self.grid.borrow_mut() = Some(grid);
        Ok(())
    }
}

/// How a method of fake quantization computes with a layer's weight; [`FakeWeight`] does the rest.
///
/// By default values go to the nearest level, and the gradient passes straight through between the outermost levels.
pub trait WeightRule {
    /// The ranges ([`Grid::range`]) at the stage's begin: one, or one per output channel.
    ///
    /// # Errors
    /// If the weight is empty or not finite; names it.
    fn range(
        &self,
        name: &str,
        weight: &Tensor,
        spacing: &Spacing,
        per_channel: bool,
    ) -> Result<Vec<f32>> {
        scale::least_error(name, weight, spacing, per_channel)
    }

    /// Whether the ranges are found anew at the begin of each epoch.
    fn refits(&self) -> bool {
        false
    }

    /// Before training of an epoch, and after a resume within it.
    fn start_epoch(&self, epoch: u32) {
        let _ = epoch;
    }

    /// The weight that training (or, with `train` false, evaluation) computes with, differentiable in `weight` and in a
    /// learnt [`LayerLevels::scale`].
    ///
    /// # Shapes
    /// - `weight` and the result: `[c_out, ...]`, f32
    fn forward(&self, weight: &Tensor, levels: &LayerLevels, train: bool) -> Tensor {
        let _ = train;
        let value = self.quantize(weight, levels);
        straight_through(&value, weight, &levels.inside(weight))
    }

    /// The weight that evaluation computes with: each value has exactly the bits of a level; no gradient.
    fn quantize(&self, weight: &Tensor, levels: &LayerLevels) -> Tensor {
        let mut out = no_grad(|| weight.detach().empty_like());
        self.quantize_into(&mut out, weight, levels);
        out
    }

    /// As [`WeightRule::quantize`], into a tensor of the same shape: what a method with other values replaces.
    fn quantize_into(&self, out: &mut Tensor, weight: &Tensor, levels: &LayerLevels) {
        match levels.codes {
            Some(codes) => affine::quantize_into(out, weight, levels.scale(), codes),
            None => no_grad(|| out.copy_(&levels.nearest(&weight.detach()))),
        }
    }

    /// Whether [`WeightRule::backward`] replaces autograd within a step.
    fn has_backward(&self) -> bool {
        false
    }

    /// Turns `grad`, the gradient of the quantized weight, into that of the stored weight, in place, and adds that of a
    /// learnt scale to the scale's own. In place of libtorch following [`WeightRule::forward`], where
    /// [`WeightRule::has_backward`]; the quantized weight is then that of [`WeightRule::quantize`].
    fn backward(&self, weight: &Tensor, grad: &mut Tensor, levels: &LayerLevels) {
        let _ = (weight, grad, levels);
    }

    /// Adds to the gradient of a learnt scale what comes from weights that are frozen on integer codes: their levels are
    /// `code * scale`. Only rules that learn the scale have something to do.
    ///
    /// # Shapes
    /// - `by_scale`: that of the scale, f32: `sum grad * code` over the frozen weights
    fn add_gradient_of_frozen(&self, by_scale: &Tensor, levels: &LayerLevels) {
        let _ = (by_scale, levels);
    }

    /// How the scale is learnt, if it is.
    fn learnt(&self) -> Option<LearntOptions> {
        None
    }
}

/// What the layer calls.
struct Slot {
    rule: Box<dyn WeightRule>,
    levels: LayerLevels,
    mode: Cell<WeightMode>,
    /// The quantized weight of the step under way.
    current: RefCell<Option<Tensor>>,
    /// The quantized weight of the evaluation under way.
    held: RefCell<Option<Tensor>>,
    /// Weights that oscillate, where they are watched.
    oscillation: RefCell<Option<Oscillation>>,
}

impl Slot {
    /// The weight that evaluation computes with, on the grid bit for bit.
    fn effective(&self, weight: &Tensor) -> Tensor {
        match self.mode.get() {
            WeightMode::Quantizing => {
                no_grad(|| self.with_frozen(self.rule.quantize(weight, &self.levels)))
            }
            WeightMode::Float | WeightMode::Frozen => weight.detach(),
        }
    }

    /// A quantized weight with the levels of frozen weights in their places, differentiable in it and in the scale.
    fn with_frozen(&self, quantized: Tensor) -> Tensor {
        let oscillation = self.oscillation.borrow();
        match oscillation.as_ref().and_then(Oscillation::frozen) {
            Some((frozen, codes)) => {
                let levels = &codes * affine::by_channel(&codes, self.levels.scale());
                levels.where_self(frozen, &quantized)
            }
            None => quantized,
        }
    }

    /// Takes the gradient of frozen weights out of `grad`, that of the quantized weight, and gives the scale its part.
    fn take_frozen(&self, grad: &mut Tensor) {
        let oscillation = self.oscillation.borrow();
        let Some((frozen, codes)) = oscillation.as_ref().and_then(Oscillation::frozen) else {
            return;
        };
        let scale = self.levels.scale();
        let by_scale = no_grad(|| {
            let of_frozen = (&*grad * codes) * frozen;
            let rows = of_frozen.reshape([scale.numel() as i64, -1]);
            let sums = rows.sum_dim_intlist([1i64].as_slice(), false, Kind::Double);
            let _ = grad.masked_fill_(frozen, 0.0);
            sums.to_kind(Kind::Float)
        });
        self.rule.add_gradient_of_frozen(&by_scale, &self.levels);
    }

    /// The integer codes of the weight, f32.
    fn codes(&self, weight: &Tensor) -> Tensor {
        let quantized = self.effective(weight);
        no_grad(|| (&quantized / affine::by_channel(&quantized, self.levels.scale())).round())
    }
}

impl WeightSlot for Slot {
    fn forward(&self, weight: &Tensor, train: bool) -> Tensor {
        if self.mode.get() != WeightMode::Quantizing {
            return weight.shallow_clone();
        }
        if let (false, Some(held)) = (train, self.held.borrow().as_ref()) {
            return held.shallow_clone();
        }
        match self.current.borrow().as_ref() {
            Some(current) if train => current.shallow_clone(),
            _ if train => self.with_frozen(self.rule.forward(weight, &self.levels, true)),
            _ => self.effective(weight),
        }
    }
}

/// A fake-quantizing weight quantizer of one layer: all weight methods but INQ, each with its [`WeightRule`].
pub struct FakeWeight {
    method: &'static str,
    site: Rc<Site>,
    slot: Rc<Slot>,
    epoch: Option<u32>,
    /// Rules with a backward pass of their own: the quantized weight within steps, whose gradient becomes that of the
    /// stored one.
    leaf: OnceCell<Tensor>,
    /// The other rules: the quantized weight with its graph, in the step under way.
    graph: Option<Tensor>,
    /// 0 throughout; once frozen.
    trainable: Option<Tensor>,
}

impl FakeWeight {
    /// A quantizer, plugged into the site; the layer stays float until the first epoch. `method` names it in reports.
    ///
    /// # Errors
    /// If the weight is not f32, a scale is to be learnt and the levels are neither [`Spacing::Integers`] nor a shape, or
    /// weights are watched and the levels are not multiples of a scale.
    pub fn attach(
        method: &'static str,
        site: &Rc<Site>,
        context: &WeightContext,
        rule: impl WeightRule + 'static,
    ) -> Result<Self> {
        let kind = site.weight.kind();
        ensure!(kind == Kind::Float, "{} is {kind:?}, expected Float", site.weight_name());
        let is_learnt = rule.learnt().is_some();
        ensure!(
            !is_learnt || LayerLevels::has_range(&context.spacing),
            "{}: method {method} learns the scale, and {:?} has another range",
            site.weight_name(),
            context.spacing
        );
        let num_ranges = if context.per_channel { site.weight.size()[0] } else { 1 };
        let scale = Tensor::ones([num_ranges], (Kind::Float, site.weight.device()));
        let levels = LayerLevels {
            codes: context.spacing.multiples(),
            spacing: context.spacing.clone(),
            num_weights: site.num_weights(),
            scale: scale.set_requires_grad(is_learnt),
            is_learnt,
            grid: RefCell::new(None),
        };
        let oscillation = match (context.oscillation, levels.codes) {
            (Some(config), Some(codes)) => Some(Oscillation::new(config, &site.weight, codes)),
            (Some(_), None) => bail!(
                "{}: oscillation needs levels that are multiples of a scale, and these are {:?}",
                site.weight_name(),
                context.spacing
            ),
            (None, _) => None,
        };
        rule.start_epoch(0);
        let slot = Rc::new(Slot {
            oscillation: RefCell::new(oscillation),
            rule: Box::new(rule),
            levels,
            mode: Cell::new(WeightMode::Float),
            current: RefCell::new(None),
            held: RefCell::new(None),
        });
        site.set_weight_slot(Some(slot.clone()));
        Ok(Self {
            method,
            site: site.clone(),
            slot,
            epoch: None,
            leaf: OnceCell::new(),
            graph: None,
            trainable: None,
        })
    }

    fn rule(&self) -> &dyn WeightRule {
        &*self.slot.rule
    }

    fn levels(&self) -> &LayerLevels {
        &self.slot.levels
    }

    /// Finds the ranges from the weight of this moment.
    fn fit(&mut self) -> Result<()> {
        let (name, weight) = (self.site.weight_name(), &self.site.weight);
        let levels = self.levels();
        let per_channel = levels.scale.numel() > 1;
        let range = self.rule().range(&name, weight, &levels.spacing, per_channel)?;
        levels.set(range).with_context(|| format!("quantizing {name}"))
    }

    /// Takes the slot out and forbids updates.
    fn freeze(&mut self) {
        self.slot.mode.set(WeightMode::Frozen);
        *self.slot.current.borrow_mut() = None;
        *self.slot.oscillation.borrow_mut() = None;
        (self.leaf, self.graph) = (OnceCell::new(), None);
        self.site.set_weight_slot(None);
        let _ = self.levels().scale.shallow_clone().set_requires_grad(false);
        self.trainable = Some(no_grad(|| self.site.weight.detach().zeros_like()));
    }

    /// The name of the scale in files: the range of a scale that is not learnt is called `weight_scale` there.
    fn scale_field(&self) -> &'static str {
        if self.levels().is_learnt { "weight_step" } else { "weight_scale" }
    }
}

impl WeightQuantizer for FakeWeight {
    fn site(&self) -> &Rc<Site> {
        &self.site
    }

    fn frozen_fraction(&self) -> f64 {
        if self.slot.mode.get() == WeightMode::Float { 0.0 } else { 1.0 }
    }

    fn start_epoch(&mut self, epoch: u32) -> Result<WeightStep> {
        check_order(&self.site.name, self.epoch, epoch)?;
        let is_new = self.epoch != Some(epoch);
        ensure!(
            !(is_new && self.slot.mode.get() == WeightMode::Frozen),
            "{} is quantized for good and cannot be trained for another epoch: resume from a checkpoint \
             of its stage",
            self.site.weight_name()
        );
        let first = self.slot.mode.get() == WeightMode::Float;
        if first || (is_new && self.rule().refits()) {
            self.fit()?;
        }
        if first {
            self.slot.mode.set(WeightMode::Quantizing);
        }
        self.rule().start_epoch(epoch);
        self.epoch = Some(epoch);
        Ok(WeightStep { fraction: None, stepped: false })
    }

    fn end_epoch(&mut self, _epoch: u32) -> Result<()> {
        if let Some(options) = self.rule().learnt()
            && self.levels().scale.min().double_value(&[]) <= options.min
        {
            warn!(layer = %self.site.name, "a learnt scale is at its lower limit: lower lr_factor");
        }
        scale::ensure_finite(&self.site.weight_name(), &self.site.weight)
    }

    fn trainable(&self) -> Option<Tensor> {
        let watched = self.slot.oscillation.borrow();
        let watched = || watched.as_ref().map(Oscillation::trainable);
        self.trainable.as_ref().map(Tensor::shallow_clone).or_else(watched)
    }

    fn watch(&mut self) -> bool {
        if self.slot.mode.get() != WeightMode::Quantizing
            || self.slot.oscillation.borrow().is_none()
        {
            return false;
        }
        let codes = self.slot.codes(&self.site.weight);
        self.slot.oscillation.borrow_mut().as_mut().is_some_and(|watched| watched.look(&codes))
    }

    fn num_frozen_by_oscillation(&self) -> Option<i64> {
        self.slot.oscillation.borrow().as_ref().map(Oscillation::num_frozen)
    }

    fn grid(&self) -> Option<Grid> {
        self.levels().current()
    }

    fn assert_on_grid(&self) -> Result<()> {
        let name = self.site.weight_name();
        ensure!(
            self.slot.mode.get() != WeightMode::Float,
            "{name} is not quantized yet: its first epoch has not begun"
        );
        let grid = self.grid().with_context(|| format!("{name}: its scales are not a grid"))?;
        check_on_grid(&name, &grid, &self.effective(), None)
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        let levels = self.levels();
        let scale = match &*levels.grid.borrow() {
            Some(grid) if !levels.is_learnt => Tensor::from_slice(grid.range()),
            _ => levels.scale.detach(),
        };
        let mut state = vec![
            (self.scale_field(), scale),
            ("weight_mode", Tensor::from(self.slot.mode.get() as i64)),
            ("epoch", saved_epoch(self.epoch)),
        ];
        state.extend(self.slot.oscillation.borrow().iter().flat_map(Oscillation::state));
        state
    }

    fn load_state(&mut self, state: &SavedState) -> Result<()> {
        let field = self.scale_field();
        let range = state.tensor(field, Kind::Float, &self.levels().scale.size())?;
        let mode = state.counter("weight_mode")?;
        let mode =
            usize::try_from(mode).ok().and_then(|i| WeightMode::ALL.get(i)).with_context(|| {
                format!(
                    "{}.weight_mode is {mode}, expected 0..{}",
                    state.prefix,
                    WeightMode::ALL.len()
                )
            })?;
        let epoch = state.epoch("epoch")?;
        if *mode != WeightMode::Float {
            let range = Vec::try_from(range.to_device(Device::Cpu))?;
            self.levels().set(range).with_context(|| format!("{}.{field}", state.prefix))?;
        }
        if *mode != WeightMode::Frozen
            && let Some(watched) = self.slot.oscillation.borrow_mut().as_mut()
        {
            watched.load_state(state)?;
        }
        self.epoch = epoch;
        self.rule().start_epoch(epoch.unwrap_or(0));
        match mode {
            WeightMode::Frozen => self.freeze(),
            mode => self.slot.mode.set(*mode),
        }
        Ok(())
    }

    fn report(&self, report: &mut SiteReport) {
        report.method = self.method.to_owned();
        report.set_spacing(self.levels().spacing());
        if self.slot.mode.get() == WeightMode::Float {
            return;
        }
        report.frozen_fraction = self.frozen_fraction();
        if let Some(grid) = self.grid() {
            report.set_grid(&grid, &self.effective(), None);
        }
    }

    fn effective(&self) -> Tensor {
        self.slot.effective(&self.site.weight)
    }

    fn learnt(&self) -> Vec<Learnt> {
        match self.rule().learnt() {
            Some(options) if self.slot.mode.get() != WeightMode::Frozen => {
                vec![options.of("weight_step", &self.levels().scale)]
            }
            _ => Vec::new(),
        }
    }

    fn hold_effective(&self, hold: bool) {
        let held = hold && self.slot.mode.get() == WeightMode::Quantizing;
        *self.slot.held.borrow_mut() = held.then(|| self.effective());
    }

    fn begin_step(&mut self) {
        if self.slot.mode.get() != WeightMode::Quantizing {
            return;
        }
        let weight = &self.site.weight;
        let leaf = match self.gradient_source() {
            Some(leaf) => {
                let mut out = leaf.detach();
                no_grad(|| {
                    self.rule().quantize_into(&mut out, weight, self.levels());
                    if self.num_frozen_by_oscillation().is_some_and(|num| num > 0) {
                        let all = self.slot.with_frozen(out.copy());
                        out.copy_(&all);
                    }
                });
                leaf
            }
            None => {
                let graph = self.rule().forward(weight, self.levels(), true);
                let leaf = no_grad(|| self.slot.with_frozen(graph.detach()).detach());
                let leaf = leaf.set_requires_grad(true);
                self.graph = Some(graph);
                leaf
            }
        };
        *self.slot.current.borrow_mut() = Some(leaf);
    }

    fn gradient_source(&self) -> Option<Tensor> {
        if self.slot.mode.get() == WeightMode::Frozen || !self.rule().has_backward() {
            return None;
        }
        let leaf = || no_grad(|| self.site.weight.detach().empty_like()).set_requires_grad(true);
        Some(self.leaf.get_or_init(leaf).shallow_clone())
    }

    fn end_step(&mut self) -> Result<()> {
        let leaf = self.slot.current.borrow_mut().take();
        let graph = self.graph.take();
        let Some(mut grad) = leaf.map(|leaf| leaf.grad()).filter(Tensor::defined) else {
            return Ok(());
        };
        self.slot.take_frozen(&mut grad);
        match graph {
            // every weight of the layer is frozen, and no scale learnt
            Some(graph) if !graph.requires_grad() => {}
            Some(graph) => (graph * grad).sum(Kind::Float).backward(),
            None => self.rule().backward(&self.site.weight, &mut grad, self.levels()),
        }
        Ok(())
    }

    fn convert(&mut self) -> Result<()> {
        if self.slot.mode.get() == WeightMode::Quantizing {
            self.assert_on_grid()?;
            let (effective, grid) = (self.effective(), self.grid());
            *self.levels().grid.borrow_mut() = grid;
            no_grad(|| self.site.weight.shallow_clone().copy_(&effective));
            self.freeze();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::testing::store;

    /// All defaults but the ranges.
    struct Plain;

    impl WeightRule for Plain {
        fn range(&self, _: &str, _: &Tensor, _: &Spacing, _: bool) -> Result<Vec<f32>> {
            Ok(vec![1.0, 2.0])
        }
    }

    #[test]
    fn the_default_gradient_passes_between_the_lowest_and_the_highest_level_of_each_channel() {
        // levels -2, -1, 0, 1, and twice these
        let spacing = Spacing::Integers { lowest: -2, highest: 1 };
        let values = [-2.5f32, -2.0, 1.0, 1.5, -3.5, -4.5, 1.5, 2.5];
        let store = store(&[("m.conv", Tensor::from_slice(&values).reshape([2, 4, 1, 1]))]);
        let site = &store.sites()[0];
        let context = WeightContext { spacing, per_channel: true, oscillation: None, seed: 0 };
        let mut quantizer = FakeWeight::attach("plain", site, &context, Plain).unwrap();
        quantizer.start_epoch(0).unwrap();
        let quantized = site.effective_weight(true);
        quantized.sum(Kind::Float).backward();
        let floats = |x: &Tensor| Vec::<f32>::try_from(x.detach().reshape([-1])).unwrap();
        assert_eq!(floats(&quantized), [-2.0, -2.0, 1.0, 1.0, -4.0, -4.0, 2.0, 2.0]);
        assert_eq!(floats(&site.weight.grad()), [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 0.0]);
    }
}
