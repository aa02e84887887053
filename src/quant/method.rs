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
pub(crate) struct WeightStep {
    /// The share of frozen weights asked for, for methods that have one.
    pub fraction: Option<f64>,
    /// Whether the method took a step of its schedule.
    pub stepped: bool,
}

/// A weight quantizer of one layer.
///
/// A method that computes with other weights than the stored ones also plugs a `WeightSlot` into the
/// site when it is built.
pub(crate) trait WeightQuantizer {
    /// The layer.
    fn site(&self) -> &Rc<Site>;
    /// Before training of an epoch; a second call for the same epoch does nothing.
    fn start_epoch(&mut self, epoch: u32) -> Result<WeightStep>;
    /// After training of an epoch.
    fn end_epoch(&mut self, epoch: u32) -> Result<()>;
    /// 1 where the weight is trainable, 0 where frozen; `None` when all are trainable always.
    fn trainable(&self) -> Option<Tensor>;
    /// The levels, once known.
    fn grid(&self) -> Option<Grid>;
    /// Whether every weight is quantized and lies on its levels exactly.
    fn assert_on_grid(&self) -> Result<()>;
    /// What a resume needs, by field name.
    fn state(&self) -> Vec<(&'static str, Tensor)>;
    /// Takes the state over.
    fn load_state(&mut self, state: &SavedState) -> Result<()>;
    /// Fills in the weight part of the layer's report.
    fn report(&self, report: &mut SiteReport);
    /// The weight that the layer computes with in evaluation; no gradient.
    fn effective(&self) -> Tensor {
        self.site().weight.detach()
    }
    /// What is learnt besides the weight, by field name.
    fn learnt(&self) -> Vec<Learnt> {
        Vec::new()
    }
    /// Before the forward pass of an update: computes the effective weight once for all its uses.
    fn begin_step(&mut self) {}
    /// Where the gradient of the stored weight is found after [`WeightQuantizer::end_step`], if not in
    /// the weight itself. Stays the same tensor.
    fn gradient_source(&self) -> Option<Tensor> {
        None
    }
    /// After the backward pass of an update: hands the gradient of the effective weight on.
    fn end_step(&mut self) -> Result<()> {
        Ok(())
    }
    /// Sets the stored weight to the effective one for good; learns nothing from then on.
    fn bake(&mut self) -> Result<()> {
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
    /// Updates do not take a value below this.
    pub min: f64,
}

/// An activation quantizer of one layer: the slot that the layer calls, shared with it.
pub(crate) trait ActivationQuantizer: ActivationSlot {
    /// Before training of an epoch; a second call for the same epoch does nothing.
    fn start_epoch(&self, epoch: u32) -> Result<()>;
    /// After training of an epoch.
    fn end_epoch(&self, epoch: u32) -> Result<()>;
    /// What a resume needs, by field name.
    fn state(&self) -> Vec<(&'static str, Tensor)>;
    /// Takes the state over.
    fn load_state(&self, state: &SavedState) -> Result<()>;
    /// What is to be said about it.
    fn report(&self) -> ActivationReport;
    /// What it learns, by field name.
    fn learnt(&self) -> Vec<Learnt> {
        Vec::new()
    }
    /// Before the forward pass of an update.
    fn begin_step(&self) -> Result<()> {
        Ok(())
    }
    /// Learns nothing from now on.
    fn bake(&self) {}
}

/// The saved tensors of one layer.
pub(crate) struct SavedState<'a> {
    /// `quant.SITE`.
    pub prefix: String,
    /// All saved tensors, by full name.
    pub tensors: &'a BTreeMap<&'a str, &'a Tensor>,
}

impl SavedState<'_> {
    /// A tensor of that kind and shape.
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
    pub fn counter(&self, field: &str) -> Result<i64> {
        Ok(i64::try_from(&self.tensor(field, Kind::Int64, &[])?)?)
    }

    /// A saved epoch, -1 for none.
    pub fn epoch(&self, field: &str) -> Result<Option<u32>> {
        let epoch = self.counter(field)?;
        if epoch == -1 {
            return Ok(None);
        }
        let epoch = u32::try_from(epoch);
        Ok(Some(epoch.with_context(|| format!("{}.{field} is no epoch", self.prefix))?))
    }
}

/// An epoch as it is saved.
pub(crate) fn saved_epoch(epoch: Option<u32>) -> Tensor {
    Tensor::from(epoch.map_or(-1, i64::from))
}

/// What a quantized layer says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SiteReport {
    /// The layer, for example `fpn.inner_convs.2`.
    pub name: String,
    /// Number of weights.
    pub num_weights: usize,
    /// Method of the weights; `float` when only inputs are quantized.
    pub method: String,
    /// Bits per weight: what numbers the levels, 32 for float.
    pub bits: u32,
    /// Number of levels; none for float.
    pub num_levels: Option<u32>,
    /// The levels; in units of the scale where there is one scale per channel. Empty before the
    /// scale is known.
    pub levels: Vec<f32>,
    /// The scale, which is the outermost level (`lsq`: the step): one, or one per output channel. Empty
    /// before it is known.
    pub scale: Vec<f32>,
    /// The step of each scale: a level is an integer code times it. Empty before it is known, and for
    /// powers of two.
    pub step: Vec<f32>,
    /// The lowest and the highest integer code; none for float.
    pub codes: Option<[i32; 2]>,
    /// Share of the weights that is on its levels for good, 0 to 1: frozen (`inq`), or all once the
    /// layer computes with quantized weights (the other methods).
    pub share_frozen: f64,
    /// Number of different levels that these weights use.
    pub levels_in_use: usize,
    /// The quantizer of the layer's input, if there is one.
    pub activations: Option<ActivationReport>,
}

/// What the quantizer of a layer's input says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActivationReport {
    /// The method.
    pub method: String,
    /// Bits per value.
    pub bits: u32,
    /// Number of levels; before the calibration, that of inputs of both signs.
    pub num_levels: u32,
    /// The largest magnitude of a level; none before something was recorded.
    pub abs_max: Option<f32>,
    /// Whether inputs are quantized at this moment.
    pub quantizing: bool,
    /// Whether there are levels of both signs; none before the calibration.
    pub signed: Option<bool>,
    /// The step: a level is an integer code times it (`ste`: up to rounding of the published order of
    /// operations). None before the range is known.
    pub step: Option<f32>,
    /// The lowest and the highest integer code; none before the calibration.
    pub codes: Option<[i32; 2]>,
    /// The distance of neighbouring codes: 1, or 2 where the codes are the odd integers.
    pub code_stride: i32,
}

impl SiteReport {
    /// Fills in levels, scales, codes and the number of levels that `weight` uses (where `of` is true).
    pub(crate) fn set_grid(&mut self, grid: &Grid, weight: &Tensor, of: Option<&Tensor>) {
        self.scale = grid.scale().to_vec();
        self.step = grid.steps().unwrap_or_default();
        self.levels = match grid.scale().len() {
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
    pub(crate) fn set_spacing(&mut self, spacing: Spacing) {
        self.bits = spacing.bits();
        self.num_levels = Some(spacing.num_levels());
        let codes = spacing.codes();
        self.codes = Some([codes[0], codes[codes.len() - 1]]);
    }
}
