//! Stochastic gradient descent whose state is open: momentum by name, and weights that stay where they are.

use std::cell::Cell;
use std::collections::HashMap;

use anyhow::{Context, Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{COptimizer, Device, Kind, Tensor};

use super::fused::{self, Rule};
use super::lists::UpdateLists;
use crate::libtorch::{self, SgdRule};
use crate::nn::same_layout;
use crate::quant::Learnt;
use crate::schema::below_one;

/// Settings of the optimizer. The default is the published fine-tuning of MQAT.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct SgdConfig {
    /// Fraction of the momentum kept from step to step; 0 is none.
    #[schemars(range(min = 0), transform = below_one)]
    pub momentum: f64,
    /// Nesterov momentum: look ahead along the momentum, which must be above 0.
    pub nesterov: bool,
    /// L2 penalty added to the gradient.
    #[schemars(range(min = 0))]
    pub weight_decay: f64,
}

impl Default for SgdConfig {
    fn default() -> Self {
        Self { momentum: 0.9, nesterov: false, weight_decay: 0.0 }
    }
}

impl SgdConfig {
    /// The full-precision recipe of the Wide-Depth-Range network.
    pub fn full_precision() -> Self {
        Self { momentum: 0.9, nesterov: true, weight_decay: 1e-4 }
    }

    /// Pushes a line for each value that does not fit another one. Ranges are checked by
    /// [`check_ranges`](crate::schema::check_ranges).
    pub fn check_together(&self, at: &str, problems: &mut Vec<String>) {
        if self.nesterov && self.momentum == 0.0 {
            problems.push(format!("{at}.nesterov: true needs a momentum above 0"));
        }
    }
}

struct Slot {
    name: String,
    param: Tensor,
    /// Where the gradient is, if not in the parameter itself.
    source: Option<Tensor>,
    /// Set for what a quantizer learns.
    learnt: Option<LearntRule>,
    momentum: Option<Tensor>,
    /// 1 where the entry is frozen; bool, in the memory layout of the parameter.
    frozen: Option<Tensor>,
    /// Every entry is frozen: nothing of this parameter is touched.
    all_frozen: bool,
}

/// How a quantizer's parameter departs from the rule of the network's.
#[derive(Clone, Copy)]
struct LearntRule {
    lr_factor: f64,
    weight_decay: f64,
    min: f64,
}

/// SGD with momentum (dampening 0), Nesterov and weight decay, as `torch.optim.SGD`, over named parameters.
///
/// Frozen entries ([`Sgd::set_trainable`]) get no gradient, no momentum and no decay: they stay bit-identical.
/// What quantizers learn ([`Sgd::set_learnt`]) has its own learning rate and decay. Parameters without a gradient
/// are skipped. Buffers take the memory layout of their parameter.
pub struct Sgd {
    config: SgdConfig,
    slots: Vec<Slot>,
    by_name: HashMap<String, usize>,
    /// What the next update multiplies gradients by.
    scale: Cell<f64>,
    /// Only there to set gradients to none, which tch offers nowhere else; it never steps.
    clearer: COptimizer,
}

impl Sgd {
    /// An optimizer without momentum yet, over parameters that share storage with the network's.
    ///
    /// # Errors
    /// If two parameters have the same name.
    pub fn new(config: &SgdConfig, parameters: Vec<(String, Tensor)>) -> Result<Self> {
        let mut clearer = COptimizer::sgd(0.0, 0.0, 0.0, 0.0, false)?;
        let mut by_name = HashMap::new();
        let mut slots = Vec::with_capacity(parameters.len());
        for (name, param) in parameters {
            clearer.add_parameters(&param, 0)?;
            ensure!(
                by_name.insert(name.clone(), slots.len()).is_none(),
                "two parameters are named {name}"
            );
            slots.push(Slot::new(name, param));
        }
        Ok(Self { config: config.clone(), slots, by_name, scale: Cell::new(1.0), clearer })
    }

    /// Replaces what quantizers learn, beside the network's parameters; momentum stays with its name. `sources` says,
    /// by name, for which parameters of the network the gradient is found in another tensor, of the same shape.
    ///
    /// # Errors
    /// If a learnt tensor has the name of a parameter, or a source that of none.
    pub fn set_learnt(
        &mut self,
        learnt: Vec<Learnt>,
        sources: Vec<(String, Tensor)>,
    ) -> Result<()> {
        let mut slots = std::mem::take(&mut self.slots);
        let old: Vec<Slot> = slots.extract_if(.., |slot| slot.learnt.is_some()).collect();
        self.by_name = slots.iter().enumerate().map(|(i, s)| (s.name.clone(), i)).collect();
        self.slots = slots;
        self.clearer = COptimizer::sgd(0.0, 0.0, 0.0, 0.0, false)?;
        for slot in &mut self.slots {
            slot.source = None;
        }
        for Learnt { name, tensor, lr_factor, weight_decay, min } in learnt {
            let free = self.by_name.insert(name.clone(), self.slots.len()).is_none();
            ensure!(free, "two parameters are named {name}");
            let before = old.iter().find(|slot| slot.name == name);
            let momentum = before.and_then(|slot| slot.momentum.as_ref());
            self.slots.push(Slot {
                learnt: Some(LearntRule { lr_factor, weight_decay, min }),
                momentum: momentum.map(Tensor::shallow_clone),
                ..Slot::new(name, tensor)
            });
        }
        for (name, source) in sources {
            self.slot(&name)?.source = Some(source);
        }
        for slot in &self.slots {
            for tensor in [Some(&slot.param), slot.source.as_ref()].into_iter().flatten() {
                self.clearer.add_parameters(tensor, 0)?;
            }
        }
        Ok(())
    }

    /// Replaces the settings; the momentum stays.
    pub fn set_config(&mut self, config: &SgdConfig) {
        self.config = config.clone();
    }

    /// Says which entries may change: by parameter name, 1 where trainable and 0 where frozen, same shape as the
    /// parameter. Parameters that are not named are trainable throughout. A parameter that is frozen throughout no
    /// longer requires a gradient, so that backward does not compute one.
    ///
    /// # Errors
    /// If a name is not a parameter, or a shape differs.
    pub fn set_trainable(&mut self, masks: &[(String, Tensor)]) -> Result<()> {
        for slot in &mut self.slots {
            slot.frozen = None;
            slot.all_frozen = false;
        }
        for (name, mask) in masks {
            let slot = self.slot(name)?;
            ensure!(
                mask.size() == slot.param.size(),
                "the mask of {name} has shape {:?}, expected {:?}",
                mask.size(),
                slot.param.size()
            );
            let mut frozen = tch::no_grad(|| slot.param.zeros_like()).to_kind(Kind::Bool);
            frozen.copy_(&mask.eq(0.0));
            let num_frozen = frozen.sum(Kind::Int64).int64_value(&[]);
            slot.all_frozen = num_frozen as usize == slot.param.numel();
            slot.frozen = (num_frozen > 0).then_some(frozen);
            if let (Some(frozen), Some(momentum)) = (&slot.frozen, &mut slot.momentum) {
                // Momentum from before the freezing must not move what is frozen now.
                let _ = momentum.masked_fill_(frozen, 0.0);
            }
        }
        for slot in &mut self.slots {
            let _ = slot.param.set_requires_grad(!slot.all_frozen);
        }
        Ok(())
    }

    fn slot(&mut self, name: &str) -> Result<&mut Slot> {
        let index = *self.by_name.get(name).with_context(|| format!("no parameter {name}"))?;
        Ok(&mut self.slots[index])
    }

    /// How many numbers may change.
    pub fn num_trainable(&self) -> usize {
        let frozen = |s: &Slot| {
            s.frozen.as_ref().map_or(0, |f| f.sum(Kind::Int64).int64_value(&[]) as usize)
        };
        self.slots.iter().map(|s| s.param.numel() - frozen(s)).sum()
    }

    /// Sets every gradient to none.
    pub fn zero_grad(&self) -> Result<()> {
        self.scale.set(1.0);
        self.clearer.zero_grad().context("clearing the gradients")
    }

    /// The gradients of this step by name, in the order of the parameters; none of a parameter that has none. Those of
    /// wholly frozen parameters are left out.
    pub fn gradients(&self) -> Vec<(&str, Option<Tensor>, &Tensor)> {
        let slots = self.slots.iter().filter(|slot| !slot.all_frozen);
        slots.map(|slot| (slot.name.as_str(), slot.grad(), &slot.param)).collect()
    }

    /// The norm over all gradients, those of frozen entries counting as 0; a scalar on their device, no host
    /// synchronisation. `None` if no parameter has a gradient.
    pub fn grad_norm(&self) -> Option<Tensor> {
        tch::no_grad(|| {
            let mut grads = Vec::with_capacity(self.slots.len());
            // Of gradients that are frozen in part, where one pass over them gives it.
            let mut norms = Vec::new();
            for slot in &self.slots {
                let Some(mut grad) = slot.grad() else { continue };
                if let Some(frozen) = &slot.frozen {
                    if let Some(norm) = fused::norm_of_others(&grad, frozen) {
                        norms.push(Tensor::from(norm).to_kind(grad.kind()));
                        continue;
                    }
                    let _ = grad.masked_fill_(frozen, 0.0);
                }
                grads.push(grad);
            }
            norm_of(&grads, norms)
        })
    }

    /// Has the next update scale the gradients so that their norm, which is `norm`, becomes at most `max_norm`; the
    /// gradients themselves stay. A norm that is not finite is an error and changes nothing.
    pub fn clip(&self, norm: f64, max_norm: f64) -> Result<()> {
        ensure!(norm.is_finite(), "the gradient norm is {norm}");
        self.scale.set((max_norm / (norm + 1e-6)).min(1.0));
        Ok(())
    }

    /// [`Sgd::grad_norm`] and [`Sgd::clip`] in one: the norm before the clipping, as in
    /// `torch.nn.utils.clip_grad_norm_`; 0 if nothing has a gradient. One host synchronisation.
    pub fn clip_grad_norm(&self, max_norm: f64) -> Result<f64> {
        let norm = self.grad_norm().map_or(0.0, |norm| norm.double_value(&[]));
        self.clip(norm, max_norm)?;
        Ok(norm)
    }

    /// One update with learning rate `lr`. Frozen entries keep their bits, whatever their gradient.
    pub fn step(&mut self, lr: f64) {
        let config = &self.config;
        let scale = self.scale.replace(1.0);
        tch::no_grad(|| {
            let mut lists = UpdateLists::default();
            for slot in &mut self.slots {
                if !slot.join(&mut lists, config, lr) {
                    slot.step(config, lr, scale);
                }
            }
            lists.update(scale);
        });
    }

    /// Forgets the momentum.
    pub fn clear_state(&mut self) {
        for slot in &mut self.slots {
            slot.momentum = None;
        }
    }

    /// The momentum by parameter name, in the order of the parameters; those that have none yet are left out.
    /// Shares storage with the optimizer.
    pub fn momentum(&self) -> Vec<(String, Tensor)> {
        let with = self.slots.iter().filter_map(|s| Some((s, s.momentum.as_ref()?)));
        with.map(|(s, m)| (s.name.clone(), m.shallow_clone())).collect()
    }

    /// Replaces the momentum by copies of these; parameters that are not named have none afterwards.
    ///
    /// # Errors
    /// If a name is not a parameter, or a shape or kind differs.
    pub fn load_momentum(&mut self, momentum: &[(String, Tensor)]) -> Result<()> {
        self.clear_state();
        for (name, source) in momentum {
            let slot = self.slot(name)?;
            if source.size() != slot.param.size() || source.kind() != slot.param.kind() {
                bail!(
                    "the momentum of {name} is {:?} {:?}, expected {:?} {:?}",
                    source.kind(),
                    source.size(),
                    slot.param.kind(),
                    slot.param.size()
                );
            }
            slot.momentum = Some(tch::no_grad(|| {
                let mut own = slot.param.zeros_like();
                own.copy_(source);
                own
            }));
        }
        Ok(())
    }
}

impl Slot {
    fn new(name: String, param: Tensor) -> Self {
        Self {
            name,
            param,
            source: None,
            learnt: None,
            momentum: None,
            frozen: None,
            all_frozen: false,
        }
    }

    fn grad(&self) -> Option<Tensor> {
        let grad = self.source.as_ref().unwrap_or(&self.param).grad();
        (!self.all_frozen && grad.defined()).then_some(grad)
    }

    /// Learning rate and weight decay.
    fn rates(&self, config: &SgdConfig, lr: f64) -> (f64, f64) {
        match self.learnt {
            Some(rule) => (lr * rule.lr_factor, rule.weight_decay),
            None => (lr, config.weight_decay),
        }
    }

    /// Has the update done together with those of other parameters; false where that is not possible, as on the CPU.
    fn join(&mut self, lists: &mut UpdateLists, config: &SgdConfig, lr: f64) -> bool {
        let (lr, weight_decay) = self.rates(config, lr);
        // Where entries are frozen their gradients are 0 since the norm was computed; decay would move them.
        if matches!(self.param.device(), Device::Cpu)
            || config.momentum == 0.0
            || (self.frozen.is_some() && weight_decay != 0.0)
        {
            return false;
        }
        let Some(grad) = self.grad() else { return true };
        if !(same_layout(&self.param, &grad) && grad.kind() == self.param.kind()) {
            return false;
        }
        let momentum = self.momentum.get_or_insert_with(|| self.param.zeros_like());
        let SgdConfig { momentum: kept, nesterov, .. } = *config;
        let rule = SgdRule { lr, momentum: kept, weight_decay, nesterov };
        let least = self.learnt.map(|learnt| learnt.min);
        lists.add(rule, least, [&self.param, &grad, momentum]);
        true
    }

    /// d = scale g + decay p; m = momentum m + d; p -= lr (nesterov ? d + momentum m : m).
    fn step(&mut self, config: &SgdConfig, lr: f64, scale: f64) {
        let Some(mut d) = self.grad() else { return };
        let (lr, weight_decay) = self.rates(config, lr);
        let SgdConfig { momentum, nesterov, .. } = *config;
        let rule = Rule { lr, momentum, nesterov, weight_decay, scale };
        let frozen = self.frozen.as_ref();
        if momentum != 0.0
            && self.learnt.is_none()
            && fused::update(&mut self.param, &d, &mut self.momentum, frozen, rule)
        {
            return;
        }
        if scale < 1.0 {
            let _ = d.g_mul_scalar_(scale);
        }
        if weight_decay != 0.0 {
            d += &self.param * weight_decay;
        }
        if let Some(frozen) = &self.frozen {
            // +0 on frozen entries: subtracting lr x (+0) keeps every bit, the sign of zero too.
            let _ = d.masked_fill_(frozen, 0.0);
        }
        let direction = if config.momentum == 0.0 {
            d
        } else {
            let m = match &mut self.momentum {
                Some(m) => {
                    let _ = m.g_mul_scalar_(config.momentum);
                    m.g_add_(&d)
                }
                None => {
                    let mut m = self.param.zeros_like();
                    m.copy_(&d);
                    self.momentum.insert(m).shallow_clone()
                }
            };
            if config.nesterov { d + m * config.momentum } else { m }
        };
        let _ = self.param.g_sub_(&(direction * lr));
        if let Some(rule) = self.learnt {
            let _ = self.param.clamp_min_(rule.min);
        }
    }
}

/// The norm over all gradients, a scalar on their device; none without any. On the CPU it is that of the tensors' norms as
/// [`Tensor::norm`] rounds them, on other devices it takes a few operators for all.
fn norm_of(grads: &[Tensor], mut norms: Vec<Tensor>) -> Option<Tensor> {
    if let Some(device) = grads.first().map(Tensor::device)
        && device != Device::Cpu
    {
        return Some(libtorch::norm(grads).unwrap());
    }
    norms.extend(grads.iter().map(Tensor::norm));
    (!norms.is_empty()).then(|| Tensor::stack(&norms, 0).norm())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::check_ranges;
    use tch::nn;
    use tch::nn::OptimizerConfig;

    const CPU: (Kind, Device) = (Kind::Double, Device::Cpu);

    /// Deterministic values without a generator.
    fn values(shape: &[i64], phase: f64, kind: Kind) -> Tensor {
        let n = shape.iter().product::<i64>();
        let x = Tensor::arange(n, (Kind::Double, Device::Cpu));
        ((x * 0.7 + phase).sin() * 2.0).reshape(shape).to_kind(kind)
    }

    fn leaf(tensor: Tensor) -> Tensor {
        tensor.detach().copy().set_requires_grad(true)
    }

    fn param(sgd: &Sgd, name: &str) -> Tensor {
        sgd.slots[sgd.by_name[name]].param.shallow_clone()
    }

    /// A loss whose gradients change with the parameters and the step; `unused` has none.
    fn loss(a: &Tensor, b: &Tensor, step: i64) -> Tensor {
        let t = values(&a.size(), step as f64, a.kind());
        ((a - t).square() * 3.0).sum(a.kind()) + (b * (step + 1) as f64).sin().sum(b.kind())
    }

    fn largest_difference(a: &Tensor, b: &Tensor) -> f64 {
        (a - b).abs().max().double_value(&[])
    }

    /// Seven updates of ours and of libtorch's optimizer; the largest difference of a parameter.
    fn against_libtorch(config: &SgdConfig, clip: Option<f64>, kind: Kind) -> f64 {
        let vs = nn::VarStore::new(Device::Cpu);
        let mut theirs = Vec::new();
        let mut ours = Vec::new();
        for (name, shape) in [("a", [3, 2, 4].as_slice()), ("b", &[5]), ("unused", &[2])] {
            let start = values(shape, shape.len() as f64, kind);
            let mut var = vs.root().zeros(name, shape);
            var.set_data(&start);
            theirs.push(var);
            ours.push((name.to_owned(), leaf(start)));
        }
        let rule = nn::sgd(config.momentum, 0.0, config.weight_decay, config.nesterov);
        let mut reference = rule.build(&vs, 0.05).unwrap();
        let mut sgd = Sgd::new(config, ours).unwrap();
        for step in 0..7 {
            let lr = 0.05 / (step + 1) as f64;
            reference.set_lr(lr);
            reference.zero_grad();
            loss(&theirs[0], &theirs[1], step).backward();
            sgd.zero_grad().unwrap();
            loss(&param(&sgd, "a"), &param(&sgd, "b"), step).backward();
            if let Some(max_norm) = clip {
                reference.clip_grad_norm(max_norm);
                assert!(sgd.clip_grad_norm(max_norm).unwrap() > max_norm);
            }
            reference.step();
            sgd.step(lr);
        }
        let names = ["a", "b", "unused"];
        let differences =
            names.iter().zip(&theirs).map(|(n, t)| largest_difference(&param(&sgd, n), t));
        differences.fold(0.0, f64::max)
    }

    #[test]
    fn updates_equal_those_of_libtorch() {
        for momentum in [0.0, 0.9] {
            for nesterov in [false, true] {
                if nesterov && momentum == 0.0 {
                    continue;
                }
                for weight_decay in [0.0, 0.1] {
                    for clip in [None, Some(0.5)] {
                        let config = SgdConfig { momentum, nesterov, weight_decay };
                        // In f64 the formulas agree to rounding; f32 rounds each of 7 updates of numbers near 2.
                        let double = against_libtorch(&config, clip, Kind::Double);
                        assert!(double < 1e-14, "{config:?} {clip:?}: {double:e}");
                        let float = against_libtorch(&config, clip, Kind::Float);
                        assert!(float < 1e-6, "{config:?} {clip:?}: {float:e}");
                    }
                }
            }
        }
    }

    fn one(config: &SgdConfig, start: &Tensor) -> (Sgd, Tensor) {
        let p = leaf(start.shallow_clone());
        (Sgd::new(config, vec![("w".to_owned(), p.shallow_clone())]).unwrap(), p)
    }

    fn bits(tensor: &Tensor) -> Vec<u64> {
        let flat: Vec<f64> = tensor.to_kind(Kind::Double).reshape([-1]).try_into().unwrap();
        flat.into_iter().map(f64::to_bits).collect()
    }

    #[test]
    fn frozen_entries_keep_every_bit_even_the_sign_of_zero() {
        let config = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 0.1 };
        let start = Tensor::from_slice(&[-0.0_f64, 0.0, 1.0, -1.0]);
        for slope in [-3.0, 3.0] {
            let (mut sgd, p) = one(&config, &start);
            let step = |sgd: &mut Sgd| {
                sgd.zero_grad().unwrap();
                (&p * slope).sum(Kind::Double).backward();
                sgd.clip_grad_norm(5.0).unwrap()
            };
            assert!((step(&mut sgd) - 6.0).abs() < 1e-12);
            // Momentum gathered before the freezing must not act after it.
            tch::no_grad(|| sgd.slots[0].momentum = Some(Tensor::ones([4], CPU)));
            sgd.set_trainable(&[("w".to_owned(), Tensor::from_slice(&[0.0_f32, 0.0, 0.0, 1.0]))])
                .unwrap();
            for _ in 0..3 {
                // Only the trainable entry counts in the norm.
                assert!((step(&mut sgd) - 3.0).abs() < 1e-12);
                sgd.step(0.1);
            }
            assert_eq!(bits(&p)[..3], bits(&start)[..3]);
            assert_ne!(bits(&p)[3], bits(&start)[3]);
            let momentum = &sgd.momentum()[0].1;
            assert_eq!(bits(momentum)[..3], [0; 3]);
        }
    }

    #[test]
    fn a_wholly_frozen_parameter_needs_no_gradient_until_it_is_free_again() {
        let (mut sgd, p) = one(&SgdConfig::default(), &Tensor::ones([3], CPU));
        let mask = |v: f64| vec![("w".to_owned(), Tensor::full([3], v, CPU))];
        sgd.set_trainable(&mask(0.0)).unwrap();
        assert!(!p.requires_grad());
        sgd.step(1.0);
        assert_eq!(sgd.clip_grad_norm(5.0).unwrap(), 0.0);
        sgd.set_trainable(&mask(1.0)).unwrap();
        assert!(p.requires_grad());
        sgd.set_trainable(&mask(0.0)).unwrap();
        sgd.set_trainable(&[]).unwrap();
        assert!(p.requires_grad());
    }

    #[test]
    fn gradients_go_to_none_and_no_gradient_means_no_update() {
        let (mut sgd, p) = one(&SgdConfig::default(), &Tensor::ones([3], CPU));
        p.sum(Kind::Double).backward();
        assert!(p.grad().defined());
        sgd.zero_grad().unwrap();
        assert!(!p.grad().defined());
        sgd.step(1.0);
        assert_eq!(bits(&p), [1.0_f64.to_bits(); 3]);
        assert!(sgd.momentum().is_empty());
    }

    #[test]
    fn a_norm_that_is_not_finite_is_an_error_and_changes_nothing() {
        let (sgd, p) = one(&SgdConfig::default(), &Tensor::ones([2], CPU));
        (&p * f64::INFINITY).sum(Kind::Double).backward();
        let error = sgd.clip_grad_norm(5.0).unwrap_err();
        assert_eq!(error.to_string(), "the gradient norm is inf");
        assert_eq!(bits(&p.grad()), [f64::INFINITY.to_bits(); 2]);
    }

    #[test]
    fn momentum_read_back_continues_bit_for_bit_and_keeps_the_layout() {
        let config = SgdConfig { momentum: 0.9, nesterov: true, weight_decay: 1e-3 };
        let start = values(&[4, 3, 2, 2], 0.0, Kind::Float).contiguous();
        let channels_last = tch::no_grad(|| {
            let nhwc = start.permute([0, 2, 3, 1]).contiguous();
            nhwc.permute([0, 3, 1, 2]).set_requires_grad(true)
        });
        let strides = channels_last.stride();
        let mut sgd = Sgd::new(&config, vec![("w".to_owned(), channels_last)]).unwrap();
        let step = |sgd: &mut Sgd, i: i64| {
            sgd.zero_grad().unwrap();
            let w = param(sgd, "w");
            (&w * values(&[4, 3, 2, 2], i as f64, Kind::Float)).sum(Kind::Float).backward();
            sgd.clip_grad_norm(5.0).unwrap();
            sgd.step(0.1);
        };
        step(&mut sgd, 0);
        let saved = sgd.momentum()[0].1.contiguous().copy();
        let weights = param(&sgd, "w").detach().copy();
        step(&mut sgd, 1);
        let undisturbed = param(&sgd, "w").detach().copy();

        let mut again = Sgd::new(&config, vec![("w".to_owned(), leaf(weights))]).unwrap();
        again.load_momentum(&[("w".to_owned(), saved)]).unwrap();
        assert_eq!(again.momentum()[0].1.stride(), strides);
        step(&mut again, 1);
        assert_eq!(bits(&param(&again, "w")), bits(&undisturbed));
        assert_eq!(sgd.momentum()[0].1.stride(), strides);
        again.clear_state();
        assert!(again.momentum().is_empty());
    }

    #[test]
    fn wrong_names_and_shapes_are_errors_that_name_them() {
        let (mut sgd, _) = one(&SgdConfig::default(), &Tensor::ones([2], CPU));
        let entry = |name: &str, size| vec![(name.to_owned(), Tensor::ones([size], CPU))];
        let message = |r: Result<()>| r.unwrap_err().to_string();
        assert_eq!(message(sgd.set_trainable(&entry("v", 2))), "no parameter v");
        assert_eq!(
            message(sgd.set_trainable(&entry("w", 3))),
            "the mask of w has shape [3], expected [2]"
        );
        assert_eq!(
            message(sgd.load_momentum(&entry("w", 3))),
            "the momentum of w is Double [3], expected Double [2]"
        );
        let twice = (0..2).map(|_| ("w".to_owned(), leaf(Tensor::ones([1], CPU)))).collect();
        let error = Sgd::new(&SgdConfig::default(), twice).map(|_| ()).unwrap_err();
        assert_eq!(error.to_string(), "two parameters are named w");
    }

    #[test]
    fn each_bad_setting_is_named() {
        let mut problems = Vec::new();
        let config = SgdConfig { momentum: 0.0, nesterov: true, weight_decay: -1.0 };
        config.check_together("sgd", &mut problems);
        check_ranges(&config, "sgd", &mut problems);
        let whole = SgdConfig { momentum: 1.0, ..SgdConfig::default() };
        check_ranges(&whole, "sgd", &mut problems);
        assert_eq!(
            problems,
            [
                "sgd.nesterov: true needs a momentum above 0",
                "sgd.weight_decay: -1 is below 0",
                "sgd.momentum: 1 is outside 0..1 (1 excluded)",
            ]
        );
    }

    #[test]
    fn what_quantizers_learn_has_its_own_rate_decay_and_floor() {
        let config = SgdConfig { momentum: 0.5, nesterov: false, weight_decay: 0.7 };
        let own = leaf(values(&[2], 1.0, Kind::Double));
        let mut sgd = Sgd::new(&config, vec![("own".to_owned(), own)]).unwrap();
        let step = leaf(Tensor::from_slice(&[1.0f64, 0.2]));
        let learnt = || Learnt {
            name: "quant.step".to_owned(),
            tensor: step.shallow_clone(),
            lr_factor: 2.0,
            weight_decay: 0.1,
            min: 0.05,
        };
        sgd.set_learnt(vec![learnt()], vec![]).unwrap();
        assert_eq!(sgd.num_trainable(), 4);
        let mut expected = [1.0f64, 0.2];
        let mut momentum = [0.0f64; 2];
        for i in 0..3 {
            sgd.zero_grad().unwrap();
            (&step * 3.0).sum(Kind::Double).backward();
            sgd.step(0.01);
            for (value, m) in expected.iter_mut().zip(&mut momentum) {
                *m = 0.5 * *m + 3.0 + 0.1 * *value;
                *value = f64::max(*value - 0.02 * *m, 0.05);
            }
            let found = Vec::<f64>::try_from(&step.detach()).unwrap();
            assert!(
                found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12),
                "{i} {found:?}"
            );
            // registering again keeps the momentum
            sgd.set_learnt(vec![learnt()], vec![]).unwrap();
        }
        assert_eq!(sgd.momentum()[0].0, "quant.step");
        let twice = sgd.set_learnt(vec![learnt(), learnt()], vec![]);
        assert!(twice.unwrap_err().to_string().contains("two parameters are named quant.step"));
        sgd.set_learnt(vec![], vec![]).unwrap();
        assert_eq!((sgd.num_trainable(), sgd.momentum().len()), (2, 0));
    }

    #[test]
    fn a_gradient_may_lie_in_another_tensor() {
        let weight = leaf(values(&[3], 1.0, Kind::Double));
        let start = weight.detach().copy();
        let mut sgd =
            Sgd::new(&SgdConfig::default(), vec![("w".to_owned(), weight.shallow_clone())])
                .unwrap();
        let quantized = leaf(weight.round());
        sgd.set_learnt(vec![], vec![("w".to_owned(), quantized.shallow_clone())]).unwrap();
        (&quantized * 4.0).sum(Kind::Double).backward();
        assert!((sgd.clip_grad_norm(100.0).unwrap() - 48f64.sqrt()).abs() < 1e-12);
        sgd.step(0.5);
        assert!(largest_difference(&weight, &(start - 2.0)) < 1e-12);
        sgd.zero_grad().unwrap();
        assert!(!quantized.grad().defined());
        let unknown = sgd.set_learnt(vec![], vec![("v".to_owned(), quantized)]);
        assert!(unknown.unwrap_err().to_string().contains("no parameter v"));
    }
}
