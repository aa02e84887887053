//! Activations: clamp to the largest magnitude seen, round, pass the gradient straight through.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor, no_grad};
use tracing::warn;

use super::checks::check_order;
use super::levels::Spacing;
use super::method::{
    ActivationQuantizer, ActivationReport, Combine, Recorded, SavedState, saved_epoch,
};
use super::scheme::{ActivationContext, ActivationScheme, Settings};
use super::width::BitWidth;
use crate::nn::{ActivationSlot, Site};

/// Method `ste` of activations, which has no settings of its own.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct SteActivations {}

impl Settings for SteActivations {
    const NAME: &'static str = "ste";
    const SUMMARY: &'static str =
        "Clamp to the largest magnitude seen, round, and pass the gradient straight through.";
}

impl ActivationScheme for SteActivations {
    fn spacing(&self, width: BitWidth, _signed: bool) -> Result<Spacing> {
        width.symmetric(Self::NAME)
    }

    fn attach(
        &self,
        site: &Site,
        context: &ActivationContext,
    ) -> Result<Rc<dyn ActivationQuantizer>> {
        Ok(Rc::new(SteActivation::new(site, context)))
    }
}

/// What the quantizer does with activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SteMode {
    /// Passes them through; monitoring has not begun.
    Idle,
    /// Passes them through and records their largest magnitude (in training).
    Monitoring,
    /// Quantizes with the largest magnitude so far while recording it: the stage began quantized.
    Calibrating,
    /// Quantizes with the recorded magnitude.
    Quantizing,
    /// Passes them through for good: every recorded input was 0.
    Dead,
}

impl SteMode {
    const ALL: [SteMode; 5] = [
        SteMode::Idle,
        SteMode::Monitoring,
        SteMode::Calibrating,
        SteMode::Quantizing,
        SteMode::Dead,
    ];
}

/// The quantizer of one layer's input.
///
/// The epoch before `quant_start_epoch` records max |x| of the training inputs; from then on inputs
/// are clamped to it and rounded. A stage that begins quantized (`quant_start_epoch` 0, or entered
/// later) records during its first epoch while already quantizing with the maximum so far.
/// Deviation: the published code starts such a stage with the range -1..1 whatever the data.
#[derive(Debug)]
pub struct SteActivation {
    name: String,
    num_levels: u32,
    quant_start_epoch: u32,
    mode: Cell<SteMode>,
    num_recorded: Cell<i64>,
    epoch: Cell<Option<u32>>,
    abs_max: RefCell<Tensor>,
}

impl SteActivation {
    /// A quantizer for the activations that go into `site`, to be plugged in with `Site::set_input_slot`.
    pub fn new(site: &Site, context: &ActivationContext) -> Self {
        Self {
            name: site.name.clone(),
            num_levels: context.signed.num_levels(),
            quant_start_epoch: context.quant_start_epoch,
            mode: Cell::new(SteMode::Idle),
            num_recorded: Cell::new(0),
            epoch: Cell::new(None),
            abs_max: RefCell::new(Tensor::zeros([], (Kind::Float, site.weight.device()))),
        }
    }

    /// Takes `abs_max` as the range and quantizes with it from now on.
    ///
    /// # Errors
    /// If it is not positive and finite.
    pub fn set_abs_max(&self, abs_max: f32) -> Result<()> {
        ensure!(
            abs_max.is_finite() && abs_max > 0.0,
            "input range {abs_max} of {} is not positive and finite",
            self.name
        );
        let _ = no_grad(|| self.abs_max.borrow_mut().fill_(f64::from(abs_max)));
        self.mode.set(SteMode::Quantizing);
        Ok(())
    }

    /// The largest magnitude recorded.
    pub fn abs_max(&self) -> f32 {
        self.abs_max.borrow().double_value(&[]) as f32
    }

    /// Before training of an epoch; a second call for the same epoch does nothing.
    ///
    /// # Errors
    /// If epochs go backwards, or the recording that ends here saw nothing or values that are not finite.
    pub fn start_epoch(&self, epoch: u32) -> Result<()> {
        if self.epoch.get() == Some(epoch) {
            return Ok(());
        }
        check_order(&self.name, self.epoch.get(), epoch)?;
        self.settle()?;
        if self.mode.get() == SteMode::Idle {
            if epoch >= self.quant_start_epoch {
                self.mode.set(SteMode::Calibrating);
            } else if epoch + 1 == self.quant_start_epoch {
                self.mode.set(SteMode::Monitoring);
            }
        }
        self.epoch.set(Some(epoch));
        Ok(())
    }

    /// After training of an epoch: ends a recording.
    ///
    /// # Errors
    /// If the recording saw no input, or one that is not finite.
    pub fn end_epoch(&self, _epoch: u32) -> Result<()> {
        self.settle()
    }

    /// Ends a recording, if one is under way.
    fn settle(&self) -> Result<()> {
        if !matches!(self.mode.get(), SteMode::Monitoring | SteMode::Calibrating) {
            return Ok(());
        }
        let name = &self.name;
        ensure!(
            self.num_recorded.get() > 0,
            "the input range of {name} cannot be set: no training batch passed the layer in the epoch \
             that records it"
        );
        let abs_max = self.abs_max();
        ensure!(
            abs_max.is_finite(),
            "the activations of {name} reached {abs_max} while its range was recorded"
        );
        if abs_max > 0.0 {
            self.mode.set(SteMode::Quantizing);
        } else {
            warn!(layer = %name, "every recorded input is 0: the layer's input stays unquantized");
            self.mode.set(SteMode::Dead);
        }
        Ok(())
    }

    fn record(&self, x: &Tensor) {
        no_grad(|| {
            let mut abs_max = self.abs_max.borrow_mut();
            let larger = abs_max.maximum(&x.detach().abs().max().to_kind(Kind::Float));
            abs_max.copy_(&larger);
        });
        self.num_recorded.set(self.num_recorded.get() + 1);
    }
}

impl ActivationSlot for SteActivation {
    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let mode = self.mode.get();
        if train && matches!(mode, SteMode::Monitoring | SteMode::Calibrating) {
            self.record(x);
        }
        match mode {
            SteMode::Idle | SteMode::Monitoring | SteMode::Dead => x.shallow_clone(),
            SteMode::Quantizing => fake_quantize(x, &self.abs_max.borrow(), self.num_levels),
            SteMode::Calibrating => {
                // all inputs so far may be 0; deciding that on the device saves a wait for it
                let abs_max = self.abs_max.borrow();
                let usable = abs_max.gt(0.0);
                let range = abs_max.where_self(&usable, &abs_max.ones_like());
                fake_quantize(x, &range, self.num_levels).where_self(&usable, x)
            }
        }
    }
}

/// Clamps to `[-abs_max, abs_max]` and rounds to `num_levels` evenly spaced levels, halves to even.
///
/// The result lies on the levels exactly; its gradient in `x` is 1 where `|x / abs_max| <= 1`, else 0.
///
/// # Shapes
/// - `x` and the result: any shape, f32
/// - `abs_max`: `[]`, f32, positive, on the device of `x`
///
/// # Source
/// The published activation quantizer; the same order of f32 operations.
pub fn fake_quantize(x: &Tensor, abs_max: &Tensor, num_levels: u32) -> Tensor {
    let steps = f64::from(num_levels - 1);
    let (outside, quantized) = no_grad(|| {
        let mut v = x.detach() / abs_max;
        let outside = v.abs().gt(1.0);
        let _ = v.clamp_(-1.0, 1.0);
        let _ = v.g_add_scalar_(1.0);
        let _ = v.g_div_scalar_(2.0);
        let _ = v.g_mul_scalar_(steps);
        let _ = v.round_();
        let _ = v.g_div_scalar_(steps);
        let _ = v.g_mul_scalar_(2.0);
        let _ = v.g_sub_scalar_(1.0);
        let _ = v.g_mul_(abs_max);
        (outside, v)
    });
    if !x.requires_grad() {
        return quantized;
    }
    // adds exactly 0 with the gradient of x
    let inside = x.masked_fill(&outside, 0.0);
    quantized + (&inside - inside.detach())
}

impl ActivationQuantizer for SteActivation {
    fn start_epoch(&self, epoch: u32) -> Result<()> {
        SteActivation::start_epoch(self, epoch)
    }

    fn end_epoch(&self, epoch: u32) -> Result<()> {
        SteActivation::end_epoch(self, epoch)
    }

    fn recorded(&self) -> Vec<Recorded> {
        match self.mode.get() {
            SteMode::Monitoring | SteMode::Calibrating => {
                let tensor = self.abs_max.borrow().shallow_clone();
                vec![Recorded { tensor, how: Combine::Largest }]
            }
            SteMode::Idle | SteMode::Quantizing | SteMode::Dead => Vec::new(),
        }
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        vec![
            ("act_max", self.abs_max.borrow().copy()),
            ("act_mode", Tensor::from(self.mode.get() as i64)),
            ("act_num_recorded", Tensor::from(self.num_recorded.get())),
            ("act_epoch", saved_epoch(self.epoch.get())),
        ]
    }

    fn load_state(&self, state: &SavedState) -> Result<()> {
        let abs_max = state.tensor("act_max", Kind::Float, &[])?;
        let mode = state.counter("act_mode")?;
        let mode =
            usize::try_from(mode).ok().and_then(|i| SteMode::ALL.get(i)).with_context(|| {
                format!("{}.act_mode is {mode}, expected 0..{}", state.prefix, SteMode::ALL.len())
            })?;
        let num_recorded = state.counter("act_num_recorded")?;
        let epoch = state.epoch("act_epoch")?;
        if *mode == SteMode::Quantizing {
            let value = f64::try_from(abs_max.to_device(Device::Cpu))?;
            ensure!(value.is_finite() && value > 0.0, "{}.act_max is {value}", state.prefix);
        }
        no_grad(|| self.abs_max.borrow_mut().copy_(&abs_max));
        self.mode.set(*mode);
        self.num_recorded.set(num_recorded);
        self.epoch.set(epoch);
        Ok(())
    }

    fn report(&self) -> ActivationReport {
        let spacing = Spacing::Uniform { num_levels: self.num_levels };
        let codes = spacing.multiples().expect("a uniform grid has a step");
        let abs_max = (self.num_recorded.get() > 0 || self.mode.get() == SteMode::Quantizing)
            .then(|| self.abs_max());
        ActivationReport {
            method: SteActivations::NAME.to_owned(),
            bits: spacing.bits(),
            num_levels: self.num_levels,
            max_level: abs_max,
            quantizing: matches!(self.mode.get(), SteMode::Quantizing | SteMode::Calibrating),
            signed: Some(true),
            scale: abs_max.filter(|&max| max > 0.0).map(|max| spacing.scale(max)),
            codes: Some([codes.lowest, codes.highest]),
            code_stride: codes.stride,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::SiteKind;

    fn slot(quant_start_epoch: u32) -> SteActivation {
        let weight = Tensor::zeros([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let spacing = Spacing::uniform(Some(2), None).unwrap();
        let context = ActivationContext {
            signed: spacing.clone(),
            former_signed: None,
            unsigned: spacing,
            quant_start_epoch,
            seed: 0,
        };
        SteActivation::new(&Site::new("m.conv".to_owned(), SiteKind::Conv, &weight), &context)
    }

    fn tensor(values: &[f32]) -> Tensor {
        Tensor::from_slice(values)
    }

    fn forward(slot: &SteActivation, values: &[f32], train: bool) -> Vec<f32> {
        Vec::try_from(&slot.forward(&tensor(values), train)).unwrap()
    }

    #[test]
    fn the_gradient_is_one_up_to_the_limits_and_zero_outside() {
        let x = tensor(&[-3.0, -2.0, -0.9, 0.0, 0.9, 1.1, 2.0, 2.1]).set_requires_grad(true);
        let y = fake_quantize(&x, &Tensor::from(2.0f32), 3);
        assert!(y.equal(&tensor(&[-2.0, -2.0, 0.0, 0.0, 0.0, 2.0, 2.0, 2.0])));
        (y * 3.0).sum(Kind::Float).backward();
        assert!(x.grad().equal(&tensor(&[0.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 0.0])));
    }

    #[test]
    fn infinite_inputs_are_clamped_and_nan_is_not_hidden() {
        let x = tensor(&[f32::INFINITY, f32::NEG_INFINITY, f32::NAN]).set_requires_grad(true);
        let y: Vec<f32> =
            Vec::try_from(&fake_quantize(&x, &Tensor::from(1.0f32), 3).detach()).unwrap();
        assert_eq!(y[..2], [1.0, -1.0]);
        assert!(y[2].is_nan());
    }

    #[test]
    fn a_stage_that_starts_quantized_calibrates_in_its_first_epoch() {
        let slot = slot(0);
        slot.start_epoch(0).unwrap();
        // nothing seen yet: evaluation passes through
        assert_eq!(forward(&slot, &[0.4, -0.1], false), [0.4, -0.1]);
        assert_eq!(forward(&slot, &[0.0, 0.0], true), [0.0, 0.0]);
        assert_eq!(forward(&slot, &[0.4, -0.1], true), [0.4, 0.0]);
        assert_eq!(forward(&slot, &[0.3, -0.8], true), [0.0, -0.8]);
        assert_eq!(forward(&slot, &[9.0, -0.8], false), [0.8, -0.8]);
        slot.end_epoch(0).unwrap();
        slot.start_epoch(1).unwrap();
        assert_eq!(forward(&slot, &[9.0, -0.8], true), [0.8, -0.8]);
        assert_eq!(slot.abs_max(), 0.8);
    }

    #[test]
    fn a_stage_entered_late_calibrates_too() {
        let slot = slot(1);
        slot.start_epoch(4).unwrap();
        assert_eq!(forward(&slot, &[0.5, 0.1], true), [0.5, 0.0]);
        // a missing end of the epoch is made up for by the next begin
        slot.start_epoch(5).unwrap();
        assert_eq!(forward(&slot, &[0.9, 0.1], true), [0.5, 0.0]);
    }

    #[test]
    fn monitoring_without_a_batch_or_with_nan_is_an_error_that_names_the_layer() {
        let unseen = slot(1);
        unseen.start_epoch(0).unwrap();
        forward(&unseen, &[1.0], false);
        let text = unseen.end_epoch(0).unwrap_err().to_string();
        assert!(text.contains("m.conv") && text.contains("no training batch"), "{text}");
        for bad in [f32::NAN, f32::INFINITY] {
            let slot = slot(1);
            slot.start_epoch(0).unwrap();
            forward(&slot, &[bad, 1.0], true);
            forward(&slot, &[2.0, 1.0], true);
            let text = slot.end_epoch(0).unwrap_err().to_string();
            assert!(text.contains("m.conv"), "{text}");
        }
    }

    #[test]
    fn an_input_that_is_always_zero_stays_unquantized() {
        for start in [0, 1] {
            let slot = slot(start);
            slot.start_epoch(0).unwrap();
            assert_eq!(forward(&slot, &[0.0, 0.0], true), [0.0, 0.0]);
            slot.end_epoch(0).unwrap();
            slot.start_epoch(1).unwrap();
            assert_eq!(forward(&slot, &[0.3, -7.0], true), [0.3, -7.0]);
            assert!(!ActivationQuantizer::report(&slot).quantizing);
        }
    }

    #[test]
    fn epochs_before_the_recording_leave_no_trace() {
        let slot = slot(3);
        for epoch in 0..2 {
            slot.start_epoch(epoch).unwrap();
            assert_eq!(forward(&slot, &[50.0], true), [50.0]);
            slot.end_epoch(epoch).unwrap();
        }
        slot.start_epoch(2).unwrap();
        assert_eq!(ActivationQuantizer::report(&slot).max_level, None);
        forward(&slot, &[1.5], true);
        assert_eq!(ActivationQuantizer::report(&slot).max_level, Some(1.5));
        assert!(slot.start_epoch(1).is_err());
    }
}
