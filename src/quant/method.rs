//! What a quantization method implements, its saved state and its report.

use std::collections::BTreeMap;
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::levels::{Grid, Spacing};
use crate::nn::{ActivationSlot, Site};

/// What the begin of an epoch did to a layer's weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightStep {
    /// The fraction of frozen weights asked for, for methods that have one.
    pub fraction: Option<f64>,
    /// Whether the method took a step of its schedule.
    pub stepped: bool,
}

/// A weight quantizer of one layer. Most methods need none of their own: a [`super::WeightRule`] makes
/// [`super::FakeWeight`] theirs.
///
/// A method that computes with other weights than the stored ones also plugs a `WeightSlot` into the
/// site when it is built.
pub trait WeightQuantizer {
    /// The layer.
    fn site(&self) -> &Rc<Site>;
    /// Before training of an epoch; a second call for the same epoch does nothing.
    ///
    /// # Errors
    /// If epochs go back, or the weight cannot be quantized (it is not finite).
    fn start_epoch(&mut self, epoch: u32) -> Result<WeightStep>;
    /// After training of an epoch.
    ///
    /// # Errors
    /// If the weight is not what it must be: finite, and frozen where it is frozen.
    fn end_epoch(&mut self, epoch: u32) -> Result<()>;
    /// 1 where the weight is trainable, 0 where frozen; `None` when all are trainable always.
    fn trainable(&self) -> Option<Tensor>;
    /// The levels, once known.
    fn grid(&self) -> Option<Grid>;
    /// Fraction of the weights that is on its levels for good, 0 to 1: [`SiteReport::frozen_fraction`].
    fn frozen_fraction(&self) -> f64;
    /// Makes sure that every weight is quantized and has exactly the bits of a level.
    ///
    /// # Errors
    /// Names the tensor and the first value that is not, or says how much is not quantized yet.
    fn assert_on_grid(&self) -> Result<()>;
    /// What a resume needs, by field name.
    fn state(&self) -> Vec<(&'static str, Tensor)>;
    /// Takes the state over.
    ///
    /// # Errors
    /// Names the tensor that is missing, or of another kind, shape or value than it must be.
    fn load_state(&mut self, state: &SavedState) -> Result<()>;
    /// Fills in the weight part of the layer's report.
    fn report(&self, report: &mut SiteReport);
    /// The weight that the layer computes with in evaluation; no gradient.
    fn effective(&self) -> Tensor {
        self.site().weight.detach()
    }
    /// What the stored weight was divided by at the begin of the epoch under way: one number, or one per output channel;
    /// `None` where it kept its unit. At most one epoch changes the unit.
    fn rescaled_by(&self) -> Option<&[f32]> {
        None
    }
    /// What is learnt besides the weight, by field name.
    fn learnt(&self) -> Vec<Learnt> {
        Vec::new()
    }
    /// Before a step: looks at where the last one has moved the weights. Whether it froze some of them just now, so that
    /// [`WeightQuantizer::trainable`] is another than before.
    fn watch(&mut self) -> bool {
        false
    }
    /// How many weights are frozen because they oscillated; `None` where none are watched.
    fn num_frozen_by_oscillation(&self) -> Option<i64> {
        None
    }
    /// Before the forward pass of a step: computes the effective weight once for all its uses.
    fn begin_step(&mut self) {}
    /// Before an evaluation, with true: computes the effective weight once for all its uses in all batches. After it, before
    /// any weight changes, with false.
    fn hold_effective(&self, hold: bool) {
        let _ = hold;
    }
    /// Where the gradient of the stored weight is found after [`WeightQuantizer::end_step`], if not in
    /// the weight itself. Stays the same tensor.
    fn gradient_source(&self) -> Option<Tensor> {
        None
    }
    /// After the backward pass of a step: hands the gradient of the effective weight on.
    ///
    /// # Errors
    /// If it cannot be handed on.
    fn end_step(&mut self) -> Result<()> {
        Ok(())
    }
    /// Sets the stored weight to the effective one for good; learns nothing from then on.
    ///
    /// # Errors
    /// If a weight is off its levels (it is not a number).
    fn convert(&mut self) -> Result<()> {
        Ok(())
    }
}

/// A tensor that a quantizer learns, for the optimizer.
#[derive(Debug)]
pub struct Learnt {
    /// Its name: a field within a layer, or `quant.LAYER.FIELD`.
    pub name: String,
    /// The tensor; shares storage with the quantizer.
    pub tensor: Tensor,
    /// Its learning rate over that of the stage.
    pub lr_factor: f64,
    /// L2 penalty added to its gradient.
    pub weight_decay: f64,
    /// Steps do not take a value below this.
    pub min: f64,
}

/// How a method's scale or clipping level is learnt.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearntOptions {
    /// Its learning rate over that of the stage.
    pub lr_factor: f64,
    /// L2 penalty added to its gradient.
    pub weight_decay: f64,
    /// Steps do not take a value below this.
    pub min: f64,
}

impl LearntOptions {
    pub(crate) fn of(self, name: &str, tensor: &Tensor) -> Learnt {
        Learnt {
            name: name.to_owned(),
            tensor: tensor.shallow_clone(),
            lr_factor: self.lr_factor,
            weight_decay: self.weight_decay,
            min: self.min,
        }
    }
}

/// An activation quantizer of one layer: the slot that the layer calls, shared with it. Most methods need none of their
/// own: an [`super::ActivationRule`] makes [`super::CalibratedActivation`] theirs.
pub trait ActivationQuantizer: ActivationSlot {
    /// Before training of an epoch; a second call for the same epoch does nothing.
    ///
    /// # Errors
    /// If epochs go back, or the range could not be recorded.
    fn start_epoch(&self, epoch: u32) -> Result<()>;
    /// After training of an epoch.
    ///
    /// # Errors
    /// If the range could not be recorded.
    fn end_epoch(&self, epoch: u32) -> Result<()>;
    /// What a resume needs, by field name.
    fn state(&self) -> Vec<(&'static str, Tensor)>;
    /// Takes the state over.
    ///
    /// # Errors
    /// Names the tensor that is missing, or of another kind, shape or value than it must be.
    fn load_state(&self, state: &SavedState) -> Result<()>;
    /// What is to be said about it.
    fn report(&self) -> ActivationReport;
    /// What it learns, by field name.
    fn learnt(&self) -> Vec<Learnt> {
        Vec::new()
    }
    /// Before the forward pass of a step.
    ///
    /// # Errors
    /// If the range could not be recorded.
    fn begin_step(&self) -> Result<()> {
        Ok(())
    }
    /// What it has recorded of the activations, for processes that each see a part of a batch: to be made one after each
    /// step, so that all of them go on with the same. Empty when nothing is being recorded.
    fn recorded(&self) -> Vec<Recorded> {
        Vec::new()
    }
    /// Learns nothing from now on.
    fn convert(&self) {}
}

/// A record that processes have to make one.
pub struct Recorded {
    /// The record itself, f32: changed in place.
    pub tensor: Tensor,
    /// How.
    pub how: Combine,
}

/// How the records of processes become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Combine {
    /// The largest.
    Largest,
    /// The smallest.
    Smallest,
    /// The mean.
    Mean,
    /// At each place the value of one process, drawn by a stream of this seed.
    Draw(u64),
}

/// The saved tensors of one layer.
pub struct SavedState<'a> {
    /// `quant.SITE`.
    pub prefix: String,
    /// All saved tensors, by full name.
    pub tensors: &'a BTreeMap<&'a str, &'a Tensor>,
}

impl SavedState<'_> {
    /// A tensor of that kind and shape.
    ///
    /// # Errors
    /// Names it if it is missing or something else.
    pub fn tensor(&self, field: &str, kind: Kind, shape: &[i64]) -> Result<Tensor> {
        let name = format!("{}.{field}", self.prefix);
        let tensor = self
            .tensors
            .get(name.as_str())
            .with_context(|| format!("{name} is missing from the saved quantizer state"))?;
        ensure!(
            tensor.kind() == kind && tensor.size() == shape,
            "{name} is {:?} of shape {:?}, expected {kind:?} of shape {shape:?}: the state belongs to \
             another network or quantizer",
            tensor.kind(),
            tensor.size()
        );
        Ok(tensor.shallow_clone())
    }

    /// A saved counter.
    ///
    /// # Errors
    /// Names it if it is missing or something else.
    pub fn counter(&self, field: &str) -> Result<i64> {
        Ok(i64::try_from(&self.tensor(field, Kind::Int64, &[])?)?)
    }

    /// Whether there is such a tensor.
    pub fn has(&self, field: &str) -> bool {
        self.tensors.contains_key(format!("{}.{field}", self.prefix).as_str())
    }

    /// A saved counter that files of earlier versions lack.
    ///
    /// # Errors
    /// Names it if it is something else.
    pub fn counter_or(&self, field: &str, default: i64) -> Result<i64> {
        match self.has(field) {
            true => self.counter(field),
            false => Ok(default),
        }
    }

    /// A saved counter by its name, or by the one that files of earlier versions have.
    ///
    /// # Errors
    /// Names it if it is missing or something else.
    pub fn counter_once_named(&self, field: &str, earlier: &str) -> Result<i64> {
        self.counter(if self.has(earlier) { earlier } else { field })
    }

    /// A saved epoch, -1 for none.
    ///
    /// # Errors
    /// Names it if it is missing or something else.
    pub fn epoch(&self, field: &str) -> Result<Option<u32>> {
        let epoch = self.counter(field)?;
        if epoch == -1 {
            return Ok(None);
        }
        let epoch = u32::try_from(epoch);
        Ok(Some(epoch.with_context(|| format!("{}.{field} is not an epoch", self.prefix))?))
    }
}

/// An epoch as it is saved, see [`SavedState::epoch`].
pub fn saved_epoch(epoch: Option<u32>) -> Tensor {
    Tensor::from(epoch.map_or(-1, i64::from))
}

/// What a quantized layer says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(from = "AnySiteReport")]
pub struct SiteReport {
    /// The layer, for example `fpn.inner_convs.2`.
    pub name: String,
    /// Number of weights.
    pub num_weights: usize,
    /// Method of the weights; `float` when only activations are quantized.
    pub method: String,
    /// Bits per weight: what numbers the levels, 32 for float.
    pub bits: u32,
    /// Number of levels; none for float.
    pub num_levels: Option<u32>,
    /// The levels; at range 1 ([`Grid::range`]) where each channel has its own. Empty before they are known.
    pub levels: Vec<f32>,
    /// The scale: a level is an integer code times it. One, or one per output channel. Empty before it is known, and where
    /// levels are not multiples of one (powers of two).
    pub scale: Vec<f32>,
    /// The largest magnitude of a level: one, or one per output channel. Empty before it is known.
    pub max_level: Vec<f32>,
    /// The lowest and the highest integer code; none for float.
    pub codes: Option<[i32; 2]>,
    /// The distance of neighbouring codes: 1, or 2 where the codes are the odd integers, so that two scales lie between
    /// adjacent levels.
    pub code_stride: i32,
    /// Fraction of the weights that is on its levels for good, 0 to 1: frozen (`inq`), or all once the
    /// layer computes with quantized weights (the other methods).
    pub frozen_fraction: f64,
    /// Number of different levels that these weights use.
    pub levels_in_use: usize,
    /// The quantizer of the layer's activations, if there is one.
    pub activations: Option<ActivationReport>,
}

/// A [`SiteReport`] of any version: 0.1 called the outermost level `scale`, and the distance of its levels `step`.
#[derive(Deserialize)]
struct AnySiteReport {
    name: String,
    num_weights: usize,
    method: String,
    bits: u32,
    num_levels: Option<u32>,
    levels: Vec<f32>,
    scale: Vec<f32>,
    #[serde(default)]
    step: Vec<f32>,
    max_level: Option<Vec<f32>>,
    codes: Option<[i32; 2]>,
    #[serde(default = "one")]
    code_stride: i32,
    #[serde(alias = "share_frozen")]
    frozen_fraction: f64,
    levels_in_use: usize,
    activations: Option<ActivationReport>,
}

fn one() -> i32 {
    1
}

impl From<AnySiteReport> for SiteReport {
    fn from(any: AnySiteReport) -> Self {
        let (scale, max_level) = match any.max_level {
            Some(max_level) => (any.scale, max_level),
            None => (any.step, any.scale),
        };
        Self {
            name: any.name,
            num_weights: any.num_weights,
            method: any.method,
            bits: any.bits,
            num_levels: any.num_levels,
            levels: any.levels,
            scale,
            max_level,
            codes: any.codes,
            code_stride: any.code_stride,
            frozen_fraction: any.frozen_fraction,
            levels_in_use: any.levels_in_use,
            activations: any.activations,
        }
    }
}

/// What the quantizer of the activations that go into a layer says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActivationReport {
    /// The method.
    pub method: String,
    /// Bits per value.
    pub bits: u32,
    /// Number of levels; before the calibration, that of activations of both signs.
    pub num_levels: u32,
    /// The largest magnitude of a level; before the calibration, of what was recorded. None before that.
    #[serde(alias = "abs_max")]
    pub max_level: Option<f32>,
    /// Whether activations are quantized at this moment.
    pub quantizing: bool,
    /// Whether there are levels of both signs; none before the calibration.
    pub signed: Option<bool>,
    /// The scale: a level is an integer code times it (`ste`: up to rounding of the published order of
    /// operations). None before the range is known.
    #[serde(alias = "step")]
    pub scale: Option<f32>,
    /// The lowest and the highest integer code; none before the calibration.
    pub codes: Option<[i32; 2]>,
    /// The distance of neighbouring codes: 1, or 2 where the codes are the odd integers.
    pub code_stride: i32,
}

impl SiteReport {
    /// Fills in levels, scales, codes and the number of levels that `weight` uses (where `of` is true).
    pub(crate) fn set_grid(&mut self, grid: &Grid, weight: &Tensor, of: Option<&Tensor>) {
        self.scale = grid.scale().unwrap_or_default();
        self.max_level = grid.max_level();
        self.levels = match grid.num_ranges() {
            1 => grid.levels(0),
            _ => grid.spacing().levels(1.0),
        };
        let index = grid.index(weight).expect("the grid fits: it is that of this weight");
        let index = match of {
            Some(of) => index.masked_select(of),
            None => index.reshape([-1]),
        };
        let counts = index.bincount::<Tensor>(None, i64::from(grid.spacing().num_levels()));
        self.levels_in_use = counts.gt(0).sum(Kind::Int64).int64_value(&[]) as usize;
    }

    /// Fills in bits, number of levels and codes.
    pub(crate) fn set_spacing(&mut self, spacing: &Spacing) {
        self.bits = spacing.bits();
        self.num_levels = Some(spacing.num_levels());
        let codes = spacing.codes();
        self.codes = Some([codes[0], codes[codes.len() - 1]]);
        self.code_stride = spacing.multiples().map_or(1, |codes| codes.stride);
    }
}
