//! What a quantization method brings along: its settings, and what follows from them.
//!
//! A method is one file with a settings type per side that implements [`Settings`] and [`WeightScheme`] or
//! [`ActivationScheme`], and a line in the list of `registry.rs`. The settings type has the keys as they stand in
//! the stage's `weights` or `activations` object, beside those that all methods share (`bits`, ..).

use std::fmt;
use std::rc::Rc;

use anyhow::Result;
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tch::Tensor;

use super::levels::Spacing;
use super::method::{ActivationQuantizer, WeightQuantizer};
use super::oscillation::OscillationConfig;
use super::scale;
use super::schedule::FractionSchedule;
use super::width::BitWidth;
use crate::nn::Site;

/// The settings of a method as they stand in a config: each field is a key of the stage's object.
///
/// Two methods may know the same key (`quant_init_method`, `calibration`); it then has the same default in both.
pub trait Settings:
    Clone + PartialEq + Default + Serialize + DeserializeOwned + JsonSchema
{
    /// The name in configs, reports and on the command line.
    const NAME: &'static str;
    /// One sentence for the schema.
    const SUMMARY: &'static str;

    /// Defaults of earlier versions. Files hold the settings of all methods; those of methods that are not in use must be
    /// a default, and files that an earlier version wrote hold its defaults.
    fn former_defaults() -> Vec<Self> {
        Vec::new()
    }
}

/// What a layer's weight quantizer is made of, besides the settings of its method.
#[derive(Debug, Clone)]
pub struct WeightContext {
    /// The levels of the layer.
    pub spacing: Spacing,
    /// Whether each output channel has a scale of its own.
    pub per_channel: bool,
    /// Freezing of weights that oscillate, of methods with fake quantization.
    pub oscillation: Option<OscillationConfig>,
    /// Seed of the run.
    pub seed: u64,
}

/// What the settings of a weight method decide.
pub trait WeightScheme: fmt::Debug {
    /// Adds a line for every value outside its range; `at` is the place of the stage's `weights`.
    fn check(&self, at: &str, problems: &mut Vec<String>) {
        let _ = (at, problems);
    }

    /// Adds a line for what does not fit a stage of that many epochs.
    fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        let _ = (epochs, at, problems);
    }

    /// Moves what was set for a stage of `from` epochs to one of `to` epochs, see [`super::schedule::moved`].
    fn stretch(&mut self, from: u32, to: u32) {
        let _ = (from, to);
    }

    /// The levels of a width.
    ///
    /// # Errors
    /// If its numbers are missing, out of range or contradict each other, or the method has no such levels.
    fn spacing(&self, width: BitWidth) -> Result<Spacing>;

    /// Whether these settings ask for a scale for each output channel, whatever the granularity says.
    fn is_per_channel(&self) -> bool {
        false
    }

    /// The fraction of frozen weights by epoch, of methods that freeze.
    fn schedule(&self) -> Option<&FractionSchedule> {
        None
    }

    /// Whether the optimizer forgets its state at each step of the schedule.
    fn clears_optimizer(&self) -> bool {
        false
    }

    /// The ranges ([`super::Grid::range`]) that the search for bit widths reckons with: one, or one per output channel.
    /// By default those of least squared error.
    ///
    /// # Shapes
    /// - `weight`: `[c_out, ...]`, f32
    ///
    /// # Errors
    /// If the tensor is empty or not finite; names it.
    fn expected_range(
        &self,
        name: &str,
        weight: &Tensor,
        spacing: &Spacing,
        per_channel: bool,
    ) -> Result<Vec<f32>> {
        scale::least_error(name, weight, spacing, per_channel)
    }

    /// Gives a layer its quantizer; nothing changes until the first epoch.
    ///
    /// # Errors
    /// If the levels or the weight are not those that the method can work with.
    fn attach(&self, site: &Rc<Site>, context: &WeightContext) -> Result<Box<dyn WeightQuantizer>>;
}

/// What a layer's activation quantizer is made of, besides the settings of its method.
#[derive(Debug, Clone)]
pub struct ActivationContext {
    /// The levels where activations have both signs.
    pub signed: Spacing,
    /// The levels where activations have both signs in files of earlier versions, if these had others.
    pub former_signed: Option<Spacing>,
    /// The levels where no activation is negative.
    pub unsigned: Spacing,
    /// Epoch of the stage from which activations are quantized.
    pub quant_start_epoch: u32,
    /// Seed of the run.
    pub seed: u64,
}

/// What the settings of an activation method decide.
pub trait ActivationScheme: fmt::Debug {
    /// Adds a line for every value outside its range; `at` is the place of the stage's `activations`.
    fn check(&self, at: &str, problems: &mut Vec<String>) {
        let _ = (at, problems);
    }

    /// Adds a line for what does not fit a stage of that many epochs.
    fn check_epochs(&self, epochs: u32, at: &str, problems: &mut Vec<String>) {
        let _ = (epochs, at, problems);
    }

    /// Moves what was set for a stage of `from` epochs to one of `to` epochs, see [`super::schedule::moved`].
    fn stretch(&mut self, from: u32, to: u32) {
        let _ = (from, to);
    }

    /// The levels of a width; `signed` false where no activation is negative.
    ///
    /// # Errors
    /// If its numbers are missing, out of range or contradict each other, or the method has no such levels.
    fn spacing(&self, width: BitWidth, signed: bool) -> Result<Spacing>;

    /// The levels of both signs that earlier versions had at this width, where they were others than those of
    /// [`ActivationScheme::spacing`]. Layers of files of these versions keep them.
    ///
    /// # Errors
    /// As [`ActivationScheme::spacing`].
    fn former_signed(&self, width: BitWidth) -> Result<Option<Spacing>> {
        let _ = width;
        Ok(None)
    }

    /// Makes the quantizer of what goes into a layer.
    ///
    /// # Errors
    /// If the levels are not those that the method can work with.
    fn attach(
        &self,
        site: &Site,
        context: &ActivationContext,
    ) -> Result<Rc<dyn ActivationQuantizer>>;
}
