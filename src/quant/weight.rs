//! Weights that are quantized in the forward pass while the stored ones stay float: fake quantization.
//!
//! One type carries what the methods share (slot, grid, state, reports, baking); a [`Rule`] is a method.
//!
//! **Within an update** ([`WeightQuantizer::begin_step`] to `end_step`) the quantized weight is computed
//! once, as a leaf tensor of its own: the layer may use it several times (the head runs on five levels),
//! and its gradient is handed on in one pass. Outside of one, each forward pass quantizes anew, with a
//! gradient that libtorch can follow.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use tch::{Kind, Tensor, no_grad};
use tracing::warn;

use super::ana::{self, Widths};
use super::config::{QuantInit, WeightMethod, WeightQuantConfig};
use super::inq::check_on_grid;
use super::levels::{Codes, Grid, Spacing};
use super::lsq;
use super::method::{Learnt, SavedState, SiteReport, WeightQuantizer, WeightStep, saved_epoch};
use super::scale;
use super::ste::check_order;
use super::{affine, dorefa};
use crate::nn::{Site, WeightSlot};

/// What a layer computes with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// The stored weight: the stage has not begun.
    Float,
    /// The quantized weight.
    Quantizing,
    /// The stored weight, which is the quantized one for good.
    Baked,
}

impl Mode {
    const ALL: [Mode; 3] = [Mode::Float, Mode::Quantizing, Mode::Baked];
}

/// How a method computes the quantized weight.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Rule {
    /// Round to multiples of the step; LSQ learns the step.
    Affine {
        learns_step: bool,
    },
    Dorefa,
    Ana,
}

/// What the layer calls.
struct Slot {
    rule: Rule,
    codes: Codes,
    num_weights: usize,
    mode: Cell<Mode>,
    /// The step, `[1]` or `[channels]`; a leaf that requires a gradient where it is learnt.
    step: Tensor,
    /// ANA: of the current epoch.
    widths: Cell<Widths>,
    /// The quantized weight of the update under way.
    current: RefCell<Option<Tensor>>,
}

impl Slot {
    /// The quantized weight as training or evaluation computes with it, differentiable.
    fn quantized(&self, weight: &Tensor, train: bool) -> Tensor {
        match self.rule {
            Rule::Affine { learns_step } => {
                let factor = match learns_step {
                    true => lsq::gradient_factor(self.num_weights, self.codes),
                    false => 0.0,
                };
                lsq::fake_quantize(weight, &self.step, self.codes, factor)
                    .expect("the steps are those of this weight")
            }
            Rule::Dorefa => dorefa::fake_quantize(weight, &self.step, self.codes),
            Rule::Ana if train => ana::staircase(weight, &self.step, self.codes, self.widths.get()),
            Rule::Ana => affine::quantize(weight, &self.step, self.codes),
        }
    }

    /// The weight that evaluation computes with, on the grid bit for bit.
    fn effective(&self, weight: &Tensor) -> Tensor {
        no_grad(|| match self.rule {
            _ if self.mode.get() != Mode::Quantizing => weight.detach(),
            Rule::Dorefa => dorefa::fake_quantize(&weight.detach(), &self.step, self.codes),
            Rule::Affine { .. } | Rule::Ana => affine::quantize(weight, &self.step, self.codes),
        })
    }
}

impl WeightSlot for Slot {
    fn forward(&self, weight: &Tensor, train: bool) -> Tensor {
        if self.mode.get() != Mode::Quantizing {
            return weight.shallow_clone();
        }
        match self.current.borrow().as_ref() {
            Some(current) if train => current.shallow_clone(),
            // an alias made without autograd requires none
            _ if weight.alias().requires_grad() => self.quantized(weight, train),
            _ if train => no_grad(|| self.quantized(weight, true)),
            _ => self.effective(weight),
        }
    }
}

/// A fake-quantizing weight quantizer of one layer: LSQ, uniform, DoReFa or ANA.
pub(crate) struct FakeWeight {
    site: Rc<Site>,
    config: WeightQuantConfig,
    spacing: Spacing,
    slot: Rc<Slot>,
    grid: Option<Grid>,
    epoch: Option<u32>,
    /// Rule affine: the quantized weight within updates, whose gradient becomes that of the stored one.
    leaf: OnceCell<Tensor>,
    /// The other rules: the quantized weight with its graph, in the update under way.
    graph: Option<Tensor>,
    /// 0 throughout; once baked.
    trainable: Option<Tensor>,
}

impl FakeWeight {
    /// A quantizer, plugged into the site; the layer stays float until the first epoch.
    ///
    /// # Errors
    /// If the config's width is not valid or the weight is not f32.
    pub fn attach(site: &Rc<Site>, config: &WeightQuantConfig) -> Result<Self> {
        let spacing = config.spacing().with_context(|| format!("quantizing {}", site.name))?;
        let kind = site.weight.kind();
        ensure!(kind == Kind::Float, "{} is {kind:?}, expected Float", site.weight_name());
        let rule = match config.method {
            WeightMethod::Lsq => Rule::Affine { learns_step: true },
            WeightMethod::Uniform => Rule::Affine { learns_step: false },
            WeightMethod::Dorefa => Rule::Dorefa,
            WeightMethod::Ana => Rule::Ana,
            WeightMethod::Inq => bail!("INQ does not fake-quantize"),
        };
        let num_steps = if config.per_channel() { site.weight.size()[0] } else { 1 };
        let step = Tensor::ones([num_steps], (Kind::Float, site.weight.device()));
        let slot = Rc::new(Slot {
            rule,
            codes: spacing.multiples().context("levels that are no multiples of a step")?,
            num_weights: site.num_weights(),
            mode: Cell::new(Mode::Float),
            step: step.set_requires_grad(config.method == WeightMethod::Lsq),
            widths: Cell::new(Widths { forward: 0.0, backward: 0.0 }),
            current: RefCell::new(None),
        });
        site.set_weight_slot(Some(slot.clone()));
        Ok(Self {
            site: site.clone(),
            config: config.clone(),
            spacing,
            slot,
            grid: None,
            epoch: None,
            leaf: OnceCell::new(),
            graph: None,
            trainable: None,
        })
    }

    fn learns_step(&self) -> bool {
        self.slot.rule == Rule::Affine { learns_step: true }
    }

    /// Finds scales from the weight of this moment.
    fn calibrate(&mut self) -> Result<()> {
        let (name, weight) = (self.site.weight_name(), &self.site.weight);
        let per_channel = self.config.per_channel();
        let codes = self.slot.codes;
        let scales = match self.slot.rule {
            Rule::Affine { learns_step: true } => {
                lsq::initial_steps(&name, weight, self.config.lsq.init, codes, per_channel)?
            }
            Rule::Dorefa => {
                scale::ensure_finite(&name, weight)?;
                let fitted = match self.config.dorefa.unit_scale {
                    true => vec![1.0 / codes.highest as f32; self.slot.step.numel()],
                    false => dorefa::fitted_steps(weight, per_channel, codes),
                };
                let least = scale::scale_of_zeros(self.spacing).min(1e-6);
                fitted.into_iter().map(|s| (s * codes.highest as f32).max(least)).collect()
            }
            _ => {
                let init = match self.config.quant_init_method {
                    QuantInit::UniformL2OptPerChannel => QuantInit::UniformL2Opt,
                    init => init,
                };
                scale::scales_by(&name, weight, init, self.spacing, per_channel)?
            }
        };
        self.set_grid(scales)
    }

    fn set_grid(&mut self, scales: Vec<f32>) -> Result<()> {
        let at = || format!("quantizing {}", self.site.weight_name());
        let grid = Grid::new(self.spacing, scales).with_context(at)?;
        let steps = grid.steps().context("a grid of steps")?;
        no_grad(|| self.slot.step.shallow_clone().copy_(&Tensor::from_slice(&steps)));
        self.grid = Some(grid);
        Ok(())
    }

    /// The grid of this moment: a learnt step moves.
    fn current_grid(&self) -> Option<Grid> {
        match self.learns_step() {
            true if self.slot.mode.get() != Mode::Float => {
                let steps = Vec::try_from(self.slot.step.detach().to_device(tch::Device::Cpu));
                Grid::new(self.spacing, steps.ok()?).ok()
            }
            _ => self.grid.clone(),
        }
    }

    fn set_widths(&self, epoch: u32) {
        let ana = &self.config.ana;
        let share = ana.share_at(epoch);
        let backward = if ana.anneal_backward { share } else { 1.0 };
        self.slot.widths.set(Widths {
            forward: ana.forward_width * share,
            backward: ana.backward_width * backward,
        });
    }

    /// Takes the slot out and forbids updates.
    fn freeze(&mut self) {
        self.slot.mode.set(Mode::Baked);
        *self.slot.current.borrow_mut() = None;
        (self.leaf, self.graph) = (OnceCell::new(), None);
        self.site.set_weight_slot(None);
        let _ = self.slot.step.shallow_clone().set_requires_grad(false);
        self.trainable = Some(no_grad(|| self.site.weight.detach().zeros_like()));
    }

    fn scale_field(&self) -> &'static str {
        if self.learns_step() { "weight_step" } else { "weight_scale" }
    }
}

impl WeightQuantizer for FakeWeight {
    fn site(&self) -> &Rc<Site> {
        &self.site
    }

    fn start_epoch(&mut self, epoch: u32) -> Result<WeightStep> {
        check_order(&self.site.name, self.epoch, epoch)?;
        let is_new = self.epoch != Some(epoch);
        ensure!(
            !(is_new && self.slot.mode.get() == Mode::Baked),
            "{} is quantized for good and cannot be trained for another epoch: resume from a checkpoint \
             of its stage",
            self.site.weight_name()
        );
        let first = self.slot.mode.get() == Mode::Float;
        let again = is_new
            && self.config.method == WeightMethod::Uniform
            && self.config.uniform.recalibrate;
        if first || again {
            self.calibrate()?;
        }
        if first {
            self.slot.mode.set(Mode::Quantizing);
        }
        self.set_widths(epoch);
        self.epoch = Some(epoch);
        Ok(WeightStep { fraction: None, stepped: false })
    }

    fn end_epoch(&mut self, _epoch: u32) -> Result<()> {
        if self.learns_step() {
            let least = self.slot.step.min().double_value(&[]);
            if least <= lsq::MIN_STEP {
                warn!(layer = %self.site.name, "a learnt step is at its lower limit: lower lsq.lr_factor");
            }
        }
        scale::ensure_finite(&self.site.weight_name(), &self.site.weight)
    }

    fn trainable(&self) -> Option<Tensor> {
        self.trainable.as_ref().map(Tensor::shallow_clone)
    }

    fn grid(&self) -> Option<Grid> {
        self.current_grid()
    }

    fn assert_on_grid(&self) -> Result<()> {
        let name = self.site.weight_name();
        ensure!(
            self.slot.mode.get() != Mode::Float,
            "{name} is not quantized yet: its first epoch has not begun"
        );
        let grid = self.current_grid().with_context(|| format!("{name}: its steps are no grid"))?;
        check_on_grid(&name, &grid, &self.effective(), None)
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        let scale = match (&self.grid, self.learns_step()) {
            (Some(grid), false) => Tensor::from_slice(grid.scale()),
            _ => self.slot.step.detach(),
        };
        vec![
            (self.scale_field(), scale),
            ("weight_mode", Tensor::from(self.slot.mode.get() as i64)),
            ("epoch", saved_epoch(self.epoch)),
        ]
    }

    fn load_state(&mut self, state: &SavedState) -> Result<()> {
        let field = self.scale_field();
        let scale = state.tensor(field, Kind::Float, &self.slot.step.size())?;
        let mode = state.counter("weight_mode")?;
        let mode =
            usize::try_from(mode).ok().and_then(|i| Mode::ALL.get(i)).with_context(|| {
                format!("{}.weight_mode is {mode}, expected 0..{}", state.prefix, Mode::ALL.len())
            })?;
        let epoch = state.epoch("epoch")?;
        if *mode != Mode::Float {
            let scales = Vec::try_from(scale.to_device(tch::Device::Cpu))?;
            self.set_grid(scales).with_context(|| format!("{}.{field}", state.prefix))?;
        }
        self.epoch = epoch;
        self.set_widths(epoch.unwrap_or(0));
        match mode {
            Mode::Baked => self.freeze(),
            mode => self.slot.mode.set(*mode),
        }
        Ok(())
    }

    fn report(&self, report: &mut SiteReport) {
        report.method = self.config.method.name().to_owned();
        report.set_spacing(self.spacing);
        if self.slot.mode.get() == Mode::Float {
            return;
        }
        report.share_frozen = 1.0;
        if let Some(grid) = self.current_grid() {
            report.set_grid(&grid, &self.effective(), None);
        }
    }

    fn effective(&self) -> Tensor {
        self.slot.effective(&self.site.weight)
    }

    fn learnt(&self) -> Vec<Learnt> {
        if !self.learns_step() || self.slot.mode.get() == Mode::Baked {
            return Vec::new();
        }
        vec![Learnt {
            name: "weight_step".to_owned(),
            tensor: self.slot.step.shallow_clone(),
            lr_factor: self.config.lsq.lr_factor,
            weight_decay: self.config.lsq.weight_decay,
            min: lsq::MIN_STEP,
        }]
    }

    fn begin_step(&mut self) {
        if self.slot.mode.get() != Mode::Quantizing {
            return;
        }
        let weight = &self.site.weight;
        let leaf = match self.gradient_source() {
            Some(leaf) => {
                let (step, codes) = (&self.slot.step, self.slot.codes);
                no_grad(|| affine::quantize_into(&mut leaf.detach(), weight, step, codes));
                leaf
            }
            None => {
                let graph = self.slot.quantized(weight, true);
                let leaf = graph.detach().set_requires_grad(true);
                self.graph = Some(graph);
                leaf
            }
        };
        *self.slot.current.borrow_mut() = Some(leaf);
    }

    fn gradient_source(&self) -> Option<Tensor> {
        if self.slot.mode.get() == Mode::Baked || !matches!(self.slot.rule, Rule::Affine { .. }) {
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
        if let Some(graph) = graph {
            (graph * grad).sum(Kind::Float).backward();
            return Ok(());
        }
        let by_step =
            affine::gradients(&self.site.weight, &mut grad, &self.slot.step, self.slot.codes);
        if self.learns_step() {
            let factor = lsq::gradient_factor(self.slot.num_weights, self.slot.codes);
            lsq::add_gradient(&self.slot.step, &(by_step * factor));
        }
        Ok(())
    }

    fn bake(&mut self) -> Result<()> {
        if self.slot.mode.get() == Mode::Quantizing {
            self.assert_on_grid()?;
            let effective = self.effective();
            self.grid = self.current_grid();
            no_grad(|| self.site.weight.shallow_clone().copy_(&effective));
            self.freeze();
        }
        Ok(())
    }
}
