//! The quantizers of a module, driven epoch by epoch.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use tch::Tensor;

use super::config::{ActivationMethod, ActivationQuantConfig, WeightMethod, WeightQuantConfig};
use super::inq::InqWeight;
use super::levels::Grid;
use super::method::{ActivationQuantizer, SavedState, SiteReport, WeightQuantizer};
use super::select;
use super::ste::SteActivation;
use crate::nn::{Site, Store};

/// What the begin of an epoch did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EpochStart {
    /// The share of frozen weights from now on; none when weights are not quantized incrementally.
    pub fraction: Option<f64>,
    /// Whether weights were frozen just now.
    pub stepped: bool,
    /// Whether the optimizer is to forget its state of the module's weights.
    pub clear_optimizer: bool,
}

/// The quantizers of one module's layers.
pub struct ModuleQuantizer {
    module: String,
    clear_on_step: bool,
    layers: Vec<Layer>,
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

struct Layer {
    site: Rc<Site>,
    weight: Option<Box<dyn WeightQuantizer>>,
    input: Option<Rc<dyn ActivationQuantizer>>,
}

impl ModuleQuantizer {
    /// Gives the convolutions of `module` their quantizers. Nothing changes until the first epoch.
    ///
    /// `first_layer` and `last_layer` false keep the network's first convolution and its prediction
    /// layers float. `seed` is that of the run.
    ///
    /// # Errors
    /// If the module matches nothing, neither weights nor activations are to be quantized, or a
    /// config is not valid.
    pub fn attach(
        module: &str,
        store: &Store,
        weights: Option<&WeightQuantConfig>,
        activations: Option<&ActivationQuantConfig>,
        first_layer: bool,
        last_layer: bool,
        seed: u64,
    ) -> Result<Self> {
        ensure!(
            weights.is_some() || activations.is_some(),
            "module {module:?}: neither weights nor activations are to be quantized"
        );
        let mut layers = Vec::new();
        for site in select::sites(store, module, first_layer, last_layer)? {
            let weight = weights.map(|config| weight_quantizer(&site, config, seed)).transpose()?;
            let input = activations.map(|config| input_quantizer(&site, config)).transpose()?;
            layers.push(Layer { site, weight, input });
        }
        for layer in &layers {
            if let Some(input) = &layer.input {
                layer.site.set_input_slot(Some(input.clone()));
            }
        }
        let clear_on_step = weights.is_some_and(|config| config.clear_optim_state_on_step);
        Ok(Self { module: module.to_owned(), clear_on_step, layers })
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
            if let Some(input) = &layer.input {
                input.start_epoch(epoch)?;
            }
        }
        start.clear_optimizer = start.stepped && self.clear_on_step;
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
            if let Some(input) = &layer.input {
                input.end_epoch(epoch)?;
            }
        }
        Ok(())
    }

    /// By weight key, 1 where the weight is trainable and 0 where it is frozen; f32, shape and memory
    /// format of the weight. The tensors are the quantizer's own and follow its steps: not to be
    /// changed.
    pub fn trainable_masks(&self) -> Vec<(String, Tensor)> {
        let weights = self.layers.iter().filter_map(|layer| layer.weight.as_ref());
        weights.filter_map(|w| Some((w.site().weight_name(), w.trainable()?))).collect()
    }

    /// Everything a resume needs, under names `quant.LAYER.FIELD`.
    pub fn state(&self) -> Vec<(String, Tensor)> {
        let mut state = Vec::new();
        for layer in &self.layers {
            let weight = layer.weight.iter().flat_map(|weight| weight.state());
            let input = layer.input.iter().flat_map(|input| input.state());
            let prefix = layer.prefix();
            state.extend(weight.chain(input).map(|(k, v)| (format!("{prefix}.{k}"), v)));
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
        let prefixes: BTreeSet<String> = self.layers.iter().map(Layer::prefix).collect();
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
            if let Some(input) = &layer.input {
                input.load_state(&saved).with_context(at)?;
            }
        }
        Ok(())
    }

    /// What each layer says about itself, in the order of construction.
    pub fn report(&self) -> Vec<SiteReport> {
        self.layers.iter().map(Layer::report).collect()
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
            let grid = weight.grid().with_context(|| format!("{name} has no levels"))?.clone();
            let codes = grid.codes(&weight.site().weight)?;
            all.push(WeightCodes { name, grid, codes });
        }
        Ok(all)
    }

    /// Makes sure that every weight of the module is frozen and has exactly the bits of a level.
    ///
    /// # Errors
    /// Names the first layer, index and value that is off, or the layer that is not fully frozen.
    pub fn assert_on_grid(&self) -> Result<()> {
        for weight in self.layers.iter().filter_map(|layer| layer.weight.as_ref()) {
            weight.assert_on_grid()?;
        }
        Ok(())
    }
}

impl Layer {
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
            share_frozen: 0.0,
            levels_in_use: 0,
            activations: self.input.as_ref().map(|input| input.report()),
        };
        if let Some(weight) = &self.weight {
            weight.report(&mut report);
        }
        report
    }
}

fn weight_quantizer(
    site: &Rc<Site>,
    config: &WeightQuantConfig,
    seed: u64,
) -> Result<Box<dyn WeightQuantizer>> {
    Ok(match config.method {
        WeightMethod::Inq => Box::new(InqWeight::new(site, config, seed)?),
    })
}

fn input_quantizer(
    site: &Site,
    config: &ActivationQuantConfig,
) -> Result<Rc<dyn ActivationQuantizer>> {
    Ok(match config.method {
        ActivationMethod::Ste => Rc::new(SteActivation::new(site, config)?),
    })
}
