//! Inputs of layers, quantized over a range that a calibration finds: all activation methods but `ste`.
//!
//! While recording, inputs pass as they are. Where no recorded input is negative the levels are unsigned.

use std::cell::{Cell, RefCell};

use anyhow::{Context, Result, ensure};
use tch::{Device, Kind, Tensor, no_grad};
use tracing::{info, warn};

use super::affine;
use super::ana::{self, Widths};
use super::config::{ActivationMethod, ActivationQuantConfig, RangeInit, StepInit};
use super::levels::{Codes, Spacing};
use super::lsq;
use super::method::{ActivationQuantizer, ActivationReport, Learnt, SavedState, saved_epoch};
use super::pact;
use super::scale;
use super::ste::check_order;
use crate::nn::{ActivationSlot, Site};

/// Values kept for the range of smallest error, and how many a forward pass adds at most.
const SAMPLE: i64 = 8192;
const SAMPLE_PER_CALL: i64 = 1024;

/// What the quantizer does with inputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Passes them; recording has not begun.
    Idle,
    /// Passes them and records, to the end of the epoch.
    Recording,
    /// Passes them and records, for some batches.
    Calibrating,
    /// Quantizes.
    Quantizing,
    /// Passes them for good: every recorded input was 0.
    Dead,
}

impl Mode {
    const ALL: [Mode; 5] =
        [Mode::Idle, Mode::Recording, Mode::Calibrating, Mode::Quantizing, Mode::Dead];

    fn records(self) -> bool {
        matches!(self, Mode::Recording | Mode::Calibrating)
    }
}

/// What was recorded, as tensors on the device: no wait for it in a forward pass.
struct Record {
    largest: Tensor,
    smallest: Tensor,
    /// Sum of the calls' mean magnitudes.
    sum_mean: Tensor,
    calls: i64,
    batches: i64,
    /// Some of the values, NaN where there is none yet; empty where none are needed.
    sample: Tensor,
}

/// The quantizer of one layer's input.
pub(crate) struct CalibratedActivation {
    name: String,
    config: ActivationQuantConfig,
    mode: Cell<Mode>,
    epoch: Cell<Option<u32>>,
    record: RefCell<Record>,
    /// Known after the calibration.
    signed: Cell<Option<bool>>,
    /// The step (`lsq`: learnt), or for `pact` the clipping level, which is learnt; `[1]`.
    parameter: Tensor,
    baked: Cell<bool>,
}

impl CalibratedActivation {
    /// A quantizer for the input of `site`, to be plugged in with `Site::set_input_slot`.
    ///
    /// # Errors
    /// If the config's `bits` and `n_levels` are no valid width.
    pub fn new(site: &Site, config: &ActivationQuantConfig) -> Result<Self> {
        config.spacing(true).with_context(|| format!("quantizing the input of {}", site.name))?;
        let device = site.weight.device();
        let scalar = |value: f64| Tensor::full([] as [i64; 0], value, (Kind::Float, device));
        let needs_sample = config.calibration.range == RangeInit::Mse
            || (config.method == ActivationMethod::Lsq && config.lsq.init == StepInit::Mse);
        let sample = if needs_sample { SAMPLE } else { 0 };
        let parameter = Tensor::ones([1], (Kind::Float, device));
        Ok(Self {
            name: site.name.clone(),
            mode: Cell::new(Mode::Idle),
            epoch: Cell::new(None),
            record: RefCell::new(Record {
                largest: scalar(f64::NEG_INFINITY),
                smallest: scalar(f64::INFINITY),
                sum_mean: scalar(0.0),
                calls: 0,
                batches: 0,
                sample: Tensor::full([sample], f64::NAN, (Kind::Float, device)),
            }),
            signed: Cell::new(None),
            parameter: parameter.set_requires_grad(learns(config.method)),
            baked: Cell::new(false),
            config: config.clone(),
        })
    }

    fn spacing(&self) -> Spacing {
        let signed = self.signed.get().unwrap_or(true);
        self.config.spacing(signed).expect("checked when the quantizer was made")
    }

    fn codes(&self) -> Codes {
        self.spacing().multiples().expect("all these levels are multiples of a step")
    }

    fn record(&self, x: &Tensor) {
        no_grad(|| {
            let record = &mut *self.record.borrow_mut();
            let x = x.detach().to_kind(Kind::Float);
            record.largest = record.largest.maximum(&x.max());
            record.smallest = record.smallest.minimum(&x.min());
            record.sum_mean += x.abs().mean(Kind::Float);
            if record.sample.numel() > 0 {
                let flat = x.reshape([-1]);
                let stride = (flat.size()[0] + SAMPLE_PER_CALL - 1) / SAMPLE_PER_CALL;
                let some = flat.slice(0, None, None, stride);
                let at = record.calls * SAMPLE_PER_CALL % SAMPLE;
                record.sample.narrow(0, at, some.size()[0]).copy_(&some);
            }
            record.calls += 1;
        });
    }

    /// Ends the recording and begins to quantize.
    fn settle(&self) -> Result<()> {
        let name = &self.name;
        let (largest, smallest, mean) = {
            let record = self.record.borrow();
            ensure!(
                record.calls > 0,
                "the input range of {name} cannot be set: no training batch passed the layer while it \
                 was recorded"
            );
            let value = |tensor: &Tensor| tensor.double_value(&[]);
            let mean = value(&record.sum_mean) / record.calls as f64;
            (value(&record.largest), value(&record.smallest), mean)
        };
        for reached in [largest, smallest] {
            ensure!(
                reached.is_finite(),
                "the input of {name} reached {reached} while its range was recorded"
            );
        }
        let abs_max = largest.max(-smallest);
        if abs_max == 0.0 {
            warn!(layer = %name, "every recorded input is 0: the layer's input stays unquantized");
            self.mode.set(Mode::Dead);
            return Ok(());
        }
        self.signed.set(Some(smallest < 0.0));
        let parameter = self.initial_parameter(abs_max as f32, mean);
        let _ = no_grad(|| self.parameter.shallow_clone().fill_(f64::from(parameter)));
        self.mode.set(Mode::Quantizing);
        let levels = self.spacing().num_levels();
        info!(layer = %name, signed = smallest < 0.0, levels, parameter, "input range found");
        Ok(())
    }

    /// The step, or the clipping level, from what was recorded.
    fn initial_parameter(&self, abs_max: f32, mean: f64) -> f32 {
        let codes = self.codes();
        let best = || {
            let sample = self.record.borrow().sample.to_device(Device::Cpu);
            let mut values: Vec<f32> = Vec::try_from(&sample).expect("one dimension");
            values.retain(|v| !v.is_nan());
            scale::best_step(&values, codes)
        };
        let step_of = |top: f32| (f64::from(top) / f64::from(codes.highest)) as f32;
        let step = match self.config.calibration.range {
            RangeInit::Max => step_of(abs_max),
            RangeInit::Mse => best().unwrap_or_else(|| step_of(abs_max)),
        };
        let top_of = |step: f32| step * codes.highest as f32;
        let found = match self.config.method {
            ActivationMethod::Lsq => match self.config.lsq.init {
                StepInit::Mean => lsq::mean_step(mean, codes),
                StepInit::Mse => best().unwrap_or_else(|| step_of(abs_max)),
            },
            ActivationMethod::Pact => self.config.pact.init.map_or(top_of(step), |top| top as f32),
            ActivationMethod::Dorefa if self.config.dorefa.unit_scale => step_of(1.0),
            _ => step,
        };
        found.max(lsq::MIN_STEP as f32)
    }

    fn widths(&self) -> Widths {
        let ana = &self.config.ana;
        // counted from the stage's begin, as those of weights
        let share = ana.share_at(self.epoch.get().unwrap_or(0));
        let backward = if ana.anneal_backward { share } else { 1.0 };
        Widths { forward: ana.forward_width * share, backward: ana.backward_width * backward }
    }

    fn quantized(&self, x: &Tensor, train: bool) -> Tensor {
        let (parameter, codes) = (&self.parameter, self.codes());
        match self.config.method {
            ActivationMethod::Lsq => {
                let per_image = x.numel() / x.size().first().map_or(1, |&n| n.max(1) as usize);
                let factor = lsq::gradient_factor(per_image.max(1), codes);
                lsq::fake_quantize(x, parameter, codes, factor).expect("one step fits any input")
            }
            ActivationMethod::Pact => pact::clip_and_round(x, parameter, codes),
            ActivationMethod::Ana if train => ana::staircase(x, parameter, codes, self.widths()),
            _ => clamp_and_round(x, parameter, codes),
        }
    }
}

fn learns(method: ActivationMethod) -> bool {
    matches!(method, ActivationMethod::Lsq | ActivationMethod::Pact)
}

/// Rounds to the multiples of a step; the gradient passes between the outermost levels.
fn clamp_and_round(x: &Tensor, step: &Tensor, codes: Codes) -> Tensor {
    let value = affine::quantize(x, step, codes);
    if !x.requires_grad() {
        return value;
    }
    let outside = no_grad(|| {
        let x = x.detach();
        let low = step * f64::from(codes.lowest);
        let high = step * f64::from(codes.highest);
        x.lt_tensor(&low).logical_or(&x.gt_tensor(&high))
    });
    let passed = x.masked_fill(&outside, 0.0);
    value + (&passed - passed.detach())
}

impl ActivationSlot for CalibratedActivation {
    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        if train && self.mode.get().records() {
            self.record(x);
        }
        match self.mode.get() {
            Mode::Quantizing => self.quantized(x, train),
            _ => x.shallow_clone(),
        }
    }
}

impl ActivationQuantizer for CalibratedActivation {
    fn start_epoch(&self, epoch: u32) -> Result<()> {
        if self.epoch.get() == Some(epoch) {
            return Ok(());
        }
        check_order(&self.name, self.epoch.get(), epoch)?;
        if self.mode.get().records() {
            self.settle()?;
        }
        if self.mode.get() == Mode::Idle {
            if epoch >= self.config.quant_start_epoch {
                self.mode.set(Mode::Calibrating);
            } else if epoch + 1 == self.config.quant_start_epoch {
                self.mode.set(Mode::Recording);
            }
        }
        self.epoch.set(Some(epoch));
        Ok(())
    }

    fn end_epoch(&self, _epoch: u32) -> Result<()> {
        if self.mode.get().records() { self.settle() } else { Ok(()) }
    }

    fn begin_step(&self) -> Result<()> {
        if self.mode.get() != Mode::Calibrating {
            return Ok(());
        }
        let batches = self.record.borrow().batches;
        if batches >= i64::from(self.config.calibration.batches) {
            return self.settle();
        }
        self.record.borrow_mut().batches += 1;
        Ok(())
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        let record = self.record.borrow();
        let signed = self.signed.get().map_or(-1, i64::from);
        let mut state = vec![
            (self.parameter_field(), self.parameter.detach()),
            ("act_signed", Tensor::from(signed)),
            ("act_mode", Tensor::from(self.mode.get() as i64)),
            ("act_epoch", saved_epoch(self.epoch.get())),
            ("act_baked", Tensor::from(i64::from(self.baked.get()))),
            ("act_largest", record.largest.copy()),
            ("act_smallest", record.smallest.copy()),
            ("act_sum_mean", record.sum_mean.copy()),
            ("act_calls", Tensor::from(record.calls)),
            ("act_batches", Tensor::from(record.batches)),
        ];
        if record.sample.numel() > 0 {
            state.push(("act_sample", record.sample.copy()));
        }
        state
    }

    fn load_state(&self, state: &SavedState) -> Result<()> {
        let parameter = state.tensor(self.parameter_field(), Kind::Float, &[1])?;
        let mode = state.counter("act_mode")?;
        let mode =
            usize::try_from(mode).ok().and_then(|i| Mode::ALL.get(i)).with_context(|| {
                format!("{}.act_mode is {mode}, expected 0..{}", state.prefix, Mode::ALL.len())
            })?;
        let signed = match state.counter("act_signed")? {
            -1 => None,
            other => Some(other != 0),
        };
        let value = parameter.double_value(&[0]);
        ensure!(
            *mode != Mode::Quantizing || (value.is_finite() && value > 0.0 && signed.is_some()),
            "{}.{} is {value}",
            state.prefix,
            self.parameter_field()
        );
        let epoch = state.epoch("act_epoch")?;
        let baked = state.counter("act_baked")? != 0;
        let mut record = self.record.borrow_mut();
        let device = self.parameter.device();
        let scalar = |field| {
            Ok::<_, anyhow::Error>(state.tensor(field, Kind::Float, &[])?.to_device(device))
        };
        record.largest = scalar("act_largest")?;
        record.smallest = scalar("act_smallest")?;
        record.sum_mean = scalar("act_sum_mean")?;
        record.calls = state.counter("act_calls")?;
        record.batches = state.counter("act_batches")?;
        if record.sample.numel() > 0 {
            let sample = state.tensor("act_sample", Kind::Float, &[SAMPLE])?;
            no_grad(|| record.sample.copy_(&sample));
        }
        no_grad(|| self.parameter.shallow_clone().copy_(&parameter));
        self.mode.set(*mode);
        self.signed.set(signed);
        self.epoch.set(epoch);
        if baked {
            self.bake();
        }
        Ok(())
    }

    fn report(&self) -> ActivationReport {
        let (spacing, codes) = (self.spacing(), self.codes());
        let known = self.mode.get() == Mode::Quantizing;
        let value = known.then(|| self.parameter.double_value(&[0]) as f32);
        let step = value.map(|value| match self.config.method {
            ActivationMethod::Pact => value / codes.highest as f32,
            _ => value,
        });
        let record = self.record.borrow();
        let seen = || {
            let (high, low) = (record.largest.double_value(&[]), record.smallest.double_value(&[]));
            high.max(-low) as f32
        };
        let top = codes.highest.max(-codes.lowest) as f32;
        ActivationReport {
            method: self.config.method.name().to_owned(),
            bits: spacing.bits(),
            num_levels: spacing.num_levels(),
            abs_max: step.map(|step| step * top).or_else(|| (record.calls > 0).then(seen)),
            quantizing: known,
            signed: self.signed.get(),
            step,
            codes: known.then_some([codes.lowest, codes.highest]),
            code_stride: codes.stride,
        }
    }

    fn learnt(&self) -> Vec<Learnt> {
        let (lr_factor, weight_decay, min) = match self.config.method {
            ActivationMethod::Lsq => {
                (self.config.lsq.lr_factor, self.config.lsq.weight_decay, lsq::MIN_STEP)
            }
            ActivationMethod::Pact => {
                (self.config.pact.lr_factor, self.config.pact.weight_decay, pact::MIN_ALPHA)
            }
            _ => return Vec::new(),
        };
        if self.baked.get() {
            return Vec::new();
        }
        let tensor = self.parameter.shallow_clone();
        vec![Learnt {
            name: self.parameter_field().to_owned(),
            tensor,
            lr_factor,
            weight_decay,
            min,
        }]
    }

    fn bake(&self) {
        self.baked.set(true);
        let _ = self.parameter.shallow_clone().set_requires_grad(false);
    }
}

impl CalibratedActivation {
    fn parameter_field(&self) -> &'static str {
        match self.config.method {
            ActivationMethod::Pact => "act_alpha",
            _ => "act_step",
        }
    }
}
