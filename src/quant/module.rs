//! The quantizers of a module, driven epoch by epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use tch::Tensor;

use super::claim::Claim;
use super::levels::Grid;
use super::method::{
    ActivationQuantizer, Learnt, Recorded, SavedState, SiteReport, WeightQuantizer,
};
use super::select;
use crate::nn::{Site, Store};

/// What the begin of an epoch did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochStart {
    /// The fraction of frozen weights from now on; none when weights are not quantized incrementally.
    pub fraction: Option<f64>,
    /// Whether weights were frozen just now.
    pub stepped: bool,
    /// Whether the optimizer is to forget its state (of all parameters, as the published code does).
    pub clear_optimizer: bool,
}

/// The quantizers of one module's layers.
pub struct ModuleQuantizer {
    module: String,
    clears_optimizer: bool,
    layers: Vec<LayerQuantizers>,
}

/// A fully quantized weight as integers: [`Grid::values`] of the codes are its exact values.
#[derive(Debug)]
pub struct WeightCodes {
    /// The key of the weight.
    pub name: String,
    /// Its levels.
    pub grid: Grid,
    /// The code of each weight, int16, shape of the weight.
    pub codes: Tensor,
}

/// The quantizers of one layer.
pub struct LayerQuantizers {
    /// The layer.
    pub site: Rc<Site>,
    /// Of its weight; none leaves it float.
    pub weight: Option<Box<dyn WeightQuantizer>>,
    /// Of what goes into it; none leaves it float.
    pub activations: Option<Rc<dyn ActivationQuantizer>>,
}

impl ModuleQuantizer {
    /// Gives the layers that are claimed their quantizers. Nothing changes until the first epoch.
    ///
    /// Weights that are fake-quantized (all methods but INQ) and activations have a slot of their layer from
    /// now on, until the quantizer is converted or the network is gone.
    ///
    /// # Errors
    /// If the module matches nothing, neither weights nor activations are to be quantized, or a
    /// config is not valid.
    pub fn attach(claim: &Claim, store: &Store) -> Result<Self> {
        let Claim { module, weights, activations, first_layer, last_layer, seed } = claim;
        ensure!(
            weights.is_some() || activations.is_some(),
            "module {module:?}: neither weights nor activations are to be quantized"
        );
        let sites = select::sites(store, module, *first_layer, *last_layer)?;
        let names: Vec<&str> = sites.iter().map(|site| site.name.as_str()).collect();
        let own = match weights {
            Some(config) => {
                let own = config.for_layers(store, &names);
                own.with_context(|| format!("module {module:?}"))?.into_iter().map(Some).collect()
            }
            None => vec![None; sites.len()],
        };
        let mut layers = Vec::new();
        for (site, config) in sites.iter().cloned().zip(own) {
            let weight = config.map(|config| config.attach(&site, *seed)).transpose()?;
            let activations =
                activations.as_ref().map(|config| config.attach(&site, *seed)).transpose()?;
            layers.push(LayerQuantizers { site, weight, activations });
        }
        let clears_optimizer =
            weights.as_ref().is_some_and(|config| config.settings.scheme().clears_optimizer());
        Ok(Self { clears_optimizer, ..Self::of_layers(module, layers) })
    }

    /// The quantizers of layers, made elsewhere: of methods that this crate does not know, or of several in one module.
    /// Activation quantizers are plugged into their layers; weight quantizers have plugged themselves in.
    pub fn of_layers(module: &str, layers: Vec<LayerQuantizers>) -> Self {
        for layer in &layers {
            if let Some(activations) = &layer.activations {
                layer.site.set_input_slot(Some(activations.clone()));
            }
        }
        Self { module: module.to_owned(), clears_optimizer: false, layers }
    }

    /// The module's name.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// Before training of the stage's epoch, counted from 0: takes the schedule's step if one is due.
    ///
    /// A second call for the same epoch (after a resume) changes nothing and says `stepped: false`.
    ///
    /// # Errors
    /// If epochs go back, a weight is not finite, or an input range could not be recorded.
    pub fn start_epoch(&mut self, epoch: u32) -> Result<EpochStart> {
        let mut start = EpochStart { fraction: None, stepped: false, clear_optimizer: false };
        for layer in &mut self.layers {
            if let Some(weight) = &mut layer.weight {
                let step = weight.start_epoch(epoch)?;
                start.fraction = step.fraction;
                start.stepped |= step.stepped;
            }
            if let Some(activations) = &layer.activations {
                activations.start_epoch(epoch)?;
            }
        }
        start.clear_optimizer = start.stepped && self.clears_optimizer;
        Ok(start)
    }

    /// After training of the stage's epoch.
    ///
    /// # Errors
    /// If a frozen weight was changed, or an input range could not be recorded.
    pub fn end_epoch(&mut self, epoch: u32) -> Result<()> {
        for layer in &mut self.layers {
            if let Some(weight) = &mut layer.weight {
                weight.end_epoch(epoch)?;
            }
            if let Some(activations) = &layer.activations {
                activations.end_epoch(epoch)?;
            }
        }
        Ok(())
    }

    /// The weight quantizers, in the order of construction.
    pub(super) fn weight_quantizers(&self) -> impl Iterator<Item = &dyn WeightQuantizer> {
        self.layers.iter().filter_map(|layer| layer.weight.as_deref())
    }

    /// Whether the network computes otherwise than a float one by now: with weights on levels, some or all, or with
    /// quantized activations.
    pub fn is_acting(&self) -> bool {
        self.layers.iter().any(|layer| {
            layer.weight.as_ref().is_some_and(|weight| weight.grid().is_some())
                || layer.activations.as_ref().is_some_and(|a| a.report().quantizing)
        })
    }

    /// Number of weights that are to be quantized, and how many of them are on their levels for good.
    pub fn count_frozen(&self) -> (usize, f64) {
        self.weight_quantizers().fold((0, 0.0), |(all, frozen), weight| {
            let num = weight.site().num_weights();
            (all + num, frozen + weight.frozen_fraction() * num as f64)
        })
    }

    /// Whether weights that are to be quantized are not yet, some or all.
    pub fn is_partial(&self) -> bool {
        self.weight_quantizers().any(|weight| weight.frozen_fraction() < 1.0)
    }

    /// By weight key, 1 where the weight is trainable and 0 where it is frozen; f32, shape and memory
    /// format of the weight. The tensors are the quantizer's own and follow its steps: not to be
    /// changed.
    pub fn trainable_masks(&self) -> Vec<(String, Tensor)> {
        let weights = self.layers.iter().filter_map(|layer| layer.weight.as_ref());
        weights.filter_map(|w| Some((w.site().weight_name(), w.trainable()?))).collect()
    }

    /// What is learnt besides the network's own parameters (step sizes, clipping levels), under names
    /// `quant.LAYER.FIELD`, for the optimizer.
    pub fn learnt(&self) -> Vec<Learnt> {
        let mut all = Vec::new();
        for layer in &self.layers {
            let weight = layer.weight.iter().flat_map(|weight| weight.learnt());
            let activations = layer.activations.iter().flat_map(|quantizer| quantizer.learnt());
            let prefix = layer.prefix();
            all.extend(
                weight
                    .chain(activations)
                    .map(|l| Learnt { name: format!("{prefix}.{}", l.name), ..l }),
            );
        }
        all
    }

    /// What [`ModuleQuantizer::learnt`] learns, by name.
    pub fn parameters(&self) -> Vec<(String, Tensor)> {
        self.learnt().into_iter().map(|learnt| (learnt.name, learnt.tensor)).collect()
    }

    /// By weight key, the tensor whose gradient is that of the weight between
    /// [`ModuleQuantizer::end_step`] and the update. Weights that are not named have their own.
    pub fn gradient_sources(&self) -> Vec<(String, Tensor)> {
        let weights = self.layers.iter().filter_map(|layer| layer.weight.as_ref());
        weights.filter_map(|w| Some((w.site().weight_name(), w.gradient_source()?))).collect()
    }

    /// Before a step: looks at where the last one has moved the weights. Whether some were frozen just now because they
    /// oscillate: the optimizer is then to have the [`ModuleQuantizer::trainable_masks`] anew.
    pub fn watch(&mut self) -> bool {
        let mut froze = false;
        for weight in self.layers.iter_mut().filter_map(|layer| layer.weight.as_mut()) {
            froze |= weight.watch();
        }
        froze
    }

    /// Before the forward pass of an update. Together with [`ModuleQuantizer::end_step`] it saves
    /// quantizing a weight at each of its uses, and counts the batches of a calibration.
    ///
    /// # Errors
    /// If a calibration that ends here saw no input, or one that is not finite.
    pub fn begin_step(&mut self) -> Result<()> {
        for layer in &mut self.layers {
            if let Some(weight) = &mut layer.weight {
                weight.begin_step();
            }
            if let Some(activations) = &layer.activations {
                activations.begin_step()?;
            }
        }
        Ok(())
    }

    /// Does something with the network during which no weight changes, in evaluation mode and without a gradient: each
    /// effective weight is computed once.
    pub fn holding<T>(quantizers: &[&Self], task: impl FnOnce() -> T) -> T {
        struct Held<'a>(&'a [&'a ModuleQuantizer]);
        impl Held<'_> {
            fn set(&self, hold: bool) {
                let weights = self.0.iter().flat_map(|quantizer| quantizer.weight_quantizers());
                weights.for_each(|weight| weight.hold_effective(hold));
            }
        }
        impl Drop for Held<'_> {
            fn drop(&mut self) {
                self.set(false);
            }
        }
        let held = Held(quantizers);
        held.set(true);
        task()
    }

    /// What quantizers have recorded of activations in the epoch, in a fixed order.
    pub fn recorded(&self) -> Vec<Recorded> {
        let activations = self.layers.iter().filter_map(|layer| layer.activations.as_ref());
        activations.flat_map(|quantizer| quantizer.recorded()).collect()
    }

    /// After the backward pass (the last one, where several add up) and before the update.
    ///
    /// # Errors
    /// If a gradient cannot be handed on.
    pub fn end_step(&mut self) -> Result<()> {
        self.layers.iter_mut().filter_map(|l| l.weight.as_mut()).try_for_each(|w| w.end_step())
    }

    /// Freezes the module for good: stored weights become the quantized ones, bit for bit, nothing is
    /// learnt any more. Does nothing to what is not quantized yet, and to INQ, whose weights are frozen
    /// already. A converted module cannot be trained for another epoch of its stage.
    ///
    /// # Errors
    /// If a weight is off its grid (it is not a number).
    pub fn convert(&mut self) -> Result<()> {
        for layer in &mut self.layers {
            if let Some(weight) = &mut layer.weight {
                weight.convert()?;
            }
            if let Some(activations) = &layer.activations {
                activations.convert();
            }
        }
        Ok(())
    }

    /// By weight key, the weights that the layers compute with in evaluation; no gradient.
    pub fn effective_weights(&self) -> Vec<(String, Tensor)> {
        let weights = self.layers.iter().filter_map(|layer| layer.weight.as_ref());
        weights.map(|w| (w.site().weight_name(), w.effective())).collect()
    }

    /// Everything a resume needs, under names `quant.LAYER.FIELD`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for layer in &self.layers {
            let weight = layer.weight.iter().flat_map(|weight| weight.state());
            let activations = layer.activations.iter().flat_map(|quantizer| quantizer.state());
            let prefix = layer.prefix();
            state.extend(weight.chain(activations).map(|(k, v)| (format!("{prefix}.{k}"), v)));
        }
        state
    }

    /// Takes over what [`ModuleQuantizer::state`] gave; tensors of other layers are left alone.
    ///
    /// # Errors
    /// Names the tensor that is missing, unknown, or of another shape or kind.
    pub fn load_state(&mut self, state: &[(String, Tensor)]) -> Result<()> {
        let tensors: BTreeMap<&str, &Tensor> =
            state.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        let known: BTreeSet<String> = self.state().into_iter().map(|(name, _)| name).collect();
        let prefixes: BTreeSet<String> = self.layers.iter().map(LayerQuantizers::prefix).collect();
        for name in tensors.keys() {
            let of_layer = name.rsplit_once('.').is_some_and(|(head, _)| prefixes.contains(head));
            ensure!(
                !of_layer || known.contains(*name),
                "the saved quantizer state has {name}, which module {:?} does not know: it was \
                 quantized by another method",
                self.module
            );
        }
        for layer in &mut self.layers {
            let saved = SavedState { prefix: layer.prefix(), tensors: &tensors };
            let at = || format!("loading the quantizer of {}", saved.prefix);
            if let Some(weight) = &mut layer.weight {
                weight.load_state(&saved).with_context(at)?;
            }
            if let Some(activations) = &layer.activations {
                activations.load_state(&saved).with_context(at)?;
            }
        }
        Ok(())
    }

    /// What each layer says about itself, in the order of construction.
    pub fn report(&self) -> Vec<SiteReport> {
        self.layers.iter().map(LayerQuantizers::report).collect()
    }

    /// The integer codes of the module's weights, for packing.
    ///
    /// # Errors
    /// As [`ModuleQuantizer::assert_on_grid`]: only a fully quantized weight has codes.
    pub fn codes(&self) -> Result<Vec<WeightCodes>> {
        let mut all = Vec::new();
        for weight in self.layers.iter().filter_map(|layer| layer.weight.as_ref()) {
            weight.assert_on_grid()?;
            let name = weight.site().weight_name();
            let grid = weight.grid().with_context(|| format!("{name} has no levels"))?;
            let codes = grid.codes(&weight.effective())?;
            all.push(WeightCodes { name, grid, codes });
        }
        Ok(all)
    }

    /// Makes sure that every weight of the module is quantized and has exactly the bits of a level: the
    /// stored weight (INQ, and all methods once converted) or the one that the layer computes with.
    ///
    /// # Errors
    /// Names the first layer, index and value that is off, or the layer that is not fully quantized.
    pub fn assert_on_grid(&self) -> Result<()> {
        for weight in self.layers.iter().filter_map(|layer| layer.weight.as_ref()) {
            weight.assert_on_grid()?;
        }
        Ok(())
    }
}

impl LayerQuantizers {
    fn prefix(&self) -> String {
        format!("quant.{}", self.site.name)
    }

    fn report(&self) -> SiteReport {
        let mut report = SiteReport {
            name: self.site.name.clone(),
            num_weights: self.site.num_weights(),
            method: "float".to_owned(),
            bits: 32,
            num_levels: None,
            levels: Vec::new(),
            scale: Vec::new(),
            max_level: Vec::new(),
            codes: None,
            code_stride: 1,
            frozen_fraction: 0.0,
            levels_in_use: 0,
            activations: self.activations.as_ref().map(|activations| activations.report()),
        };
        if let Some(weight) = &self.weight {
            weight.report(&mut report);
        }
        report
    }
}

#[cfg(test)]
mod tests {
    use tch::{Kind, no_grad};

    use super::*;
    use crate::quant::inq::InqWeights;
    use crate::quant::schedule::FractionSchedule;
    use crate::quant::testing::{bits, network, train, weights};
    use crate::quant::{ActivationQuantConfig, QuantInit, QuantStrategy, WeightQuantConfig};

    const EPOCHS: u32 = 5;

    type Saved = Vec<(String, Tensor)>;

    fn weight_config(strategy: QuantStrategy, clears: bool) -> WeightQuantConfig {
        let settings = InqWeights {
            quant_init_method: QuantInit::UniformL2OptPerChannel,
            quant_strategy: strategy,
            schedule: FractionSchedule::new([(0, 0.5), (2, 0.75), (4, 1.0)]),
            clear_optim_state_on_step: clears,
            ..InqWeights::default()
        };
        WeightQuantConfig { n_levels: Some(4), settings: settings.into(), ..Default::default() }
    }

    fn input_config() -> ActivationQuantConfig {
        ActivationQuantConfig { bits: Some(4), quant_start_epoch: 2, ..Default::default() }
    }

    fn attach(store: &Store, strategy: QuantStrategy) -> ModuleQuantizer {
        let claim = Claim::of("fpn").with_weights(&weight_config(strategy, true));
        let claim = Claim { seed: 1, ..claim.with_activations(&input_config()) };
        ModuleQuantizer::attach(&claim, store).unwrap()
    }

    /// One batch: every input slot sees data, every trainable weight moves, depending on the outputs.
    fn batch(store: &Store, quantizer: &ModuleQuantizer, number: u64) {
        for (layer, (_, mask)) in quantizer.layers.iter().zip(quantizer.trainable_masks()) {
            let x = weights(number, &[2, 3]) * (1.0 + number as f64);
            let y = layer.site.effective_input(&x, true);
            let amount = 0.01 + y.abs().mean(Kind::Float).double_value(&[]) * 0.01;
            train(&store.get(&layer.site.weight_name()).unwrap(), &mask, amount, number);
        }
    }

    /// Trains from `(epoch, batch)` on, two batches an epoch.
    fn run(store: &Store, quantizer: &mut ModuleQuantizer, from: (u32, u64), to: (u32, u64)) {
        for epoch in from.0..=to.0.min(EPOCHS - 1) {
            quantizer.start_epoch(epoch).unwrap();
            let first = if epoch == from.0 { from.1 } else { 0 };
            for number in first..2 {
                if (epoch, number) == to {
                    return;
                }
                batch(store, quantizer, u64::from(epoch) * 2 + number);
            }
            quantizer.end_epoch(epoch).unwrap();
        }
    }

    fn all_bits(store: &Store) -> Vec<(String, Vec<u32>)> {
        store.vars().into_iter().map(|v| (v.name, bits(&v.tensor))).collect()
    }

    fn copies(tensors: Saved) -> Saved {
        tensors.into_iter().map(|(name, tensor)| (name, tensor.copy())).collect()
    }

    #[test]
    fn a_resume_at_any_batch_equals_the_undisturbed_run() {
        for strategy in [QuantStrategy::Magnitude, QuantStrategy::Random, QuantStrategy::Rpr] {
            let undisturbed = network();
            let mut quantizer = attach(&undisturbed, strategy);
            run(&undisturbed, &mut quantizer, (0, 0), (EPOCHS, 0));
            quantizer.assert_on_grid().unwrap();
            for stop in (0..EPOCHS).flat_map(|epoch| [(epoch, 0), (epoch, 1)]) {
                let first = network();
                let mut quantizer_before = attach(&first, strategy);
                run(&first, &mut quantizer_before, (0, 0), stop);
                let state = copies(quantizer_before.state());

                let second = network();
                for (from, to) in first.vars().into_iter().zip(second.vars()) {
                    no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
                }
                let mut resumed = attach(&second, strategy);
                resumed.load_state(&state).unwrap();
                run(&second, &mut resumed, stop, (EPOCHS, 0));
                assert_eq!(all_bits(&second), all_bits(&undisturbed), "{strategy:?} {stop:?}");
                assert_eq!(resumed.report(), quantizer.report());
            }
        }
    }

    #[test]
    fn only_the_module_is_touched() {
        let (store, float) = (network(), network());
        let mut quantizer = attach(&store, QuantStrategy::Magnitude);
        run(&store, &mut quantizer, (0, 0), (EPOCHS, 0));
        for (now, before) in all_bits(&store).into_iter().zip(all_bits(&float)) {
            assert_eq!(now.1 == before.1, !now.0.starts_with("fpn."), "{}", now.0);
        }
    }

    #[test]
    fn reports_say_levels_scale_and_share() {
        let store = network();
        let mut quantizer = attach(&store, QuantStrategy::Magnitude);
        assert_eq!(quantizer.module(), "fpn");
        let before = &quantizer.report()[0];
        assert_eq!((before.bits, before.num_levels, before.frozen_fraction), (2, Some(4), 0.0));
        assert!(before.levels.is_empty() && before.scale.is_empty() && before.levels_in_use == 0);
        run(&store, &mut quantizer, (0, 0), (EPOCHS, 0));
        let reports = quantizer.report();
        let names: Vec<&str> = reports.iter().map(|report| report.name.as_str()).collect();
        assert_eq!(names, ["fpn.inner_convs.2", "fpn.inner_convs.3", "fpn.out_convs.2"]);
        let after = &reports[0];
        assert_eq!((after.method.as_str(), after.num_weights, after.scale.len()), ("inq", 108, 4));
        assert_eq!(after.levels, [-1.0, -1.0 / 3.0, 1.0 / 3.0, 1.0]);
        assert_eq!((after.frozen_fraction, after.levels_in_use), (1.0, 4));
        let inputs = after.activations.as_ref().unwrap();
        assert!(inputs.quantizing && inputs.max_level.unwrap() > 0.0 && inputs.num_levels == 15);
        serde_json::to_string(&reports).unwrap();
    }

    #[test]
    fn codes_are_the_weights_exactly_and_only_of_quantized_ones() {
        let store = network();
        let mut quantizer = attach(&store, QuantStrategy::Magnitude);
        assert!(quantizer.codes().unwrap_err().to_string().contains("not fully quantized"));
        run(&store, &mut quantizer, (0, 0), (EPOCHS, 0));
        let codes = quantizer.codes().unwrap();
        assert_eq!(codes.len(), 3);
        for layer in codes {
            let values = layer.grid.values(&layer.codes).unwrap();
            assert_eq!(bits(&values), bits(&store.get(&layer.name).unwrap()));
        }
    }

    #[test]
    fn the_optimizer_is_cleared_at_steps_and_only_if_wanted() {
        for clear in [true, false] {
            let config = weight_config(QuantStrategy::Magnitude, clear);
            let store = network();
            let mut quantizer =
                ModuleQuantizer::attach(&Claim::of("head").with_weights(&config), &store).unwrap();
            let starts: Vec<EpochStart> =
                (0..EPOCHS).map(|epoch| quantizer.start_epoch(epoch).unwrap()).collect();
            let stepped: Vec<bool> = starts.iter().map(|start| start.stepped).collect();
            assert_eq!(stepped, [true, false, true, false, true]);
            assert!(starts.iter().all(|s| s.clear_optimizer == (clear && s.stepped)));
            let fractions: Vec<f64> = starts.iter().map(|s| s.fraction.unwrap()).collect();
            assert_eq!(fractions, [0.5, 0.5, 0.75, 0.75, 1.0]);
        }
    }

    #[test]
    fn a_module_with_activations_alone_stays_float() {
        let store = network();
        let claim = Claim::of("fpn").with_activations(&input_config());
        let mut quantizer = ModuleQuantizer::attach(&claim, &store).unwrap();
        let start = quantizer.start_epoch(0).unwrap();
        assert_eq!(start, EpochStart { fraction: None, stepped: false, clear_optimizer: false });
        assert!(quantizer.trainable_masks().is_empty());
        let report = &quantizer.report()[0];
        assert_eq!((report.method.as_str(), report.bits, report.num_levels), ("float", 32, None));
        assert!(!report.activations.as_ref().unwrap().quantizing);
    }

    #[test]
    fn a_quantizer_of_nothing_is_refused() {
        let attach = |module, weights: Option<&WeightQuantConfig>| {
            let claim = Claim { weights: weights.cloned(), ..Claim::of(module) };
            ModuleQuantizer::attach(&claim, &network())
        };
        let text = |result: Result<ModuleQuantizer>| format!("{:#}", result.err().unwrap());
        assert!(text(attach("fpn", None)).contains("neither weights nor activations"));
        let config = weight_config(QuantStrategy::Magnitude, true);
        assert!(text(attach("fqn", Some(&config))).contains("fpn"));
        let unset = WeightQuantConfig::default();
        assert!(text(attach("fpn", Some(&unset))).contains("neither bits nor n_levels"));
    }

    #[test]
    fn a_state_that_does_not_fit_is_refused_by_name() {
        let store = network();
        let mut quantizer = attach(&store, QuantStrategy::Magnitude);
        run(&store, &mut quantizer, (0, 0), (2, 1));
        let good = copies(quantizer.state());
        assert!(good.iter().all(|(name, _)| name.starts_with("quant.fpn.")));
        let refused = |change: &dyn Fn(&mut Saved)| {
            let mut state = copies(quantizer.state());
            change(&mut state);
            let mut other = attach(&network(), QuantStrategy::Magnitude);
            format!("{:#}", other.load_state(&state).unwrap_err())
        };
        for (i, (name, _)) in good.iter().enumerate() {
            let text = refused(&|state| {
                drop(state.remove(i));
            });
            assert!(text.contains(&format!("{name} is missing")), "{text}");
            let text = refused(&|state| state[i].1 = weights(1, &[2, 7, 1]));
            assert!(text.contains(name.as_str()) && text.contains("[2, 7, 1]"), "{text}");
        }
        let unknown = "quant.fpn.out_convs.2.step_size".to_owned();
        let text = refused(&|state| state.push((unknown.clone(), weights(1, &[1]))));
        assert!(text.contains(&unknown), "{text}");
        let at = |field: &str| good.iter().position(|(name, _)| name.ends_with(field)).unwrap();
        let text = refused(&|state| state[at("weight_scale")].1 = Tensor::from_slice(&[f32::NAN]));
        assert!(text.contains("NaN"), "{text}");
        let text = refused(&|state| state[at("act_mode")].1 = Tensor::from(17i64));
        assert!(text.contains("act_mode is 17"), "{text}");
        let text = refused(&|state| state[at(".epoch")].1 = Tensor::from(-2i64));
        assert!(text.contains("is not an epoch"), "{text}");
        // what belongs to other modules is not this one's business
        let mut state = copies(quantizer.state());
        state.push(("quant.head.cls_logits.weight_scale".to_owned(), weights(1, &[1])));
        state.push(("fpn.out_convs.2.bias".to_owned(), weights(1, &[4])));
        attach(&network(), QuantStrategy::Magnitude).load_state(&state).unwrap();
    }
}
