//! Activations that are quantized over a range which a calibration finds: all activation methods but `ste`.
//!
//! [`CalibratedActivation`] carries what the methods share (recording, state, reports); an [`ActivationRule`] is what a
//! method adds to it. While recording, activations pass as they are. Where no recorded activation is negative the levels
//! are unsigned.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use rand::Rng;
use tch::{Device, Kind, Tensor, no_grad};
use tracing::{info, warn};

use super::affine;
use super::checks::check_order;
use super::levels::{Codes, Spacing};
use super::method::{
    ActivationQuantizer, ActivationReport, Combine, Learnt, LearntOptions, Recorded, SavedState,
    saved_epoch,
};
use super::scale;
use super::scheme::ActivationContext;
use super::settings::{CalibrationConfig, MIN_STEP, RangeInit};
use crate::libtorch::upload;
use crate::nn::{ActivationSlot, Site};
use crate::seed;

/// Values kept for the range of smallest error.
const SAMPLE: i64 = 8192;
/// The unit in which the sizes of calls weigh their means; calls that an earlier version recorded count as one.
const MEAN_UNIT: i64 = 1024;
/// Purpose of this file's random streams.
const STREAM_SAMPLE: u64 = 0x0061_6374;

/// The field that says what the levels of both signs are: lowest code, highest code, distance of neighbours.
const CODES: &str = "act_codes";

/// What the quantizer does with activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ActivationMode {
    /// Passes them; recording has not begun.
    Idle,
    /// Passes them and records, to the end of the epoch.
    Recording,
    /// Passes them and records, for some batches.
    Calibrating,
    /// Quantizes.
    Quantizing,
    /// Passes them for good: every recorded activation was 0.
    Dead,
}

impl ActivationMode {
    const ALL: [ActivationMode; 5] = [
        ActivationMode::Idle,
        ActivationMode::Recording,
        ActivationMode::Calibrating,
        ActivationMode::Quantizing,
        ActivationMode::Dead,
    ];

    fn records(self) -> bool {
        matches!(self, ActivationMode::Recording | ActivationMode::Calibrating)
    }
}

/// What was recorded, as tensors on the device: no wait for it in a forward pass.
struct ActivationRecord {
    largest: Tensor,
    smallest: Tensor,
    /// Sum of the calls' mean magnitudes, each times its number of values over [`MEAN_UNIT`].
    sum_mean: Tensor,
    calls: i64,
    /// Values that were seen.
    num_values: i64,
    batches: i64,
    /// Some of the values, each of those seen with the same probability, NaN where there is none yet; empty where none are
    /// needed.
    sample: Tensor,
}

/// What was recorded, on the host.
struct Fetched {
    largest: f64,
    smallest: f64,
    /// The mean magnitude.
    mean: f64,
    /// Without the places that are empty.
    sample: Vec<f32>,
}

impl ActivationRecord {
    /// Brings it to the host in one transfer.
    fn fetch(&self) -> Fetched {
        let one = |tensor: &Tensor| tensor.reshape([1]);
        let all = [one(&self.largest), one(&self.smallest), one(&self.sum_mean)];
        let all = no_grad(|| Tensor::cat(&[&all[0], &all[1], &all[2], &self.sample], 0));
        let all: Vec<f32> = Vec::try_from(&all.to_device(Device::Cpu)).expect("one dimension");
        let sample = all[3..].iter().copied().filter(|v| !v.is_nan()).collect();
        let [largest, smallest, sum_mean] = [all[0], all[1], all[2]].map(f64::from);
        let mean = sum_mean * MEAN_UNIT as f64 / self.num_values as f64;
        Fetched { largest, smallest, mean, sample }
    }
}

/// What a calibration found.
#[derive(Debug)]
pub struct Calibrated {
    /// The largest magnitude.
    pub max: f32,
    /// The mean magnitude.
    pub mean: f64,
    /// The scale of the levels that the calibration chose (`calibration.range`).
    pub scale: f32,
    sample: Vec<f32>,
}

impl Calibrated {
    /// The scale of least squared error on a sample of the values; only for rules that
    /// [need one](ActivationRule::needs_sample).
    pub fn best_scale(&self, codes: Codes) -> f32 {
        let by_max = || (f64::from(self.max) / f64::from(codes.highest)) as f32;
        scale::best_step(&self.sample, codes).unwrap_or_else(by_max)
    }
}

/// How a method quantizes activations; [`CalibratedActivation`] does the rest.
///
/// It has one parameter: the scale, or a number that the scale follows from. By default it is the scale that the
/// calibration found, values go to the nearest level, and the gradient passes between the outermost levels.
pub trait ActivationRule {
    /// Whether the parameter begins by the values themselves, whatever `calibration.range` says.
    fn needs_sample(&self) -> bool {
        false
    }

    /// The parameter after the calibration, above 0.
    fn initial(&self, found: &Calibrated, codes: Codes) -> f32 {
        let _ = codes;
        found.scale
    }

    /// The name of the parameter in files.
    fn parameter_name(&self) -> &'static str {
        "act_step"
    }

    /// The scale that a parameter stands for.
    fn scale(&self, parameter: f32, codes: Codes) -> f32 {
        let _ = codes;
        parameter
    }

    /// How the parameter is learnt, if it is.
    fn learnt(&self) -> Option<LearntOptions> {
        None
    }

    /// Before training of an epoch, and after a resume within it.
    fn start_epoch(&self, epoch: u32) {
        let _ = epoch;
    }

    /// The quantized activations, differentiable in `x` and in a learnt parameter.
    ///
    /// # Shapes
    /// - `x` and the result: any shape, f32
    /// - `parameter`: `[1]`, f32
    fn forward(&self, x: &Tensor, parameter: &Tensor, codes: Codes, train: bool) -> Tensor {
        let _ = train;
        clamp_and_round(x, parameter, codes)
    }
}

/// The quantizer of what goes into one layer.
pub struct CalibratedActivation {
    method: &'static str,
    name: String,
    context: ActivationContext,
    calibration: CalibrationConfig,
    rule: Box<dyn ActivationRule>,
    mode: Cell<ActivationMode>,
    epoch: Cell<Option<u32>>,
    record: RefCell<ActivationRecord>,
    /// Known after the calibration.
    signed: Cell<Option<bool>>,
    /// Read from a file of an earlier version, with its levels of both signs.
    is_former: Cell<bool>,
    /// The parameter of the rule, `[1]`.
    parameter: Tensor,
    /// Learns nothing any more.
    rests: Cell<bool>,
}

impl CalibratedActivation {
    /// [`CalibratedActivation::new`] for a scheme's `attach`.
    pub(super) fn attach(
        method: &'static str,
        site: &Site,
        context: &ActivationContext,
        calibration: &CalibrationConfig,
        rule: impl ActivationRule + 'static,
    ) -> Result<Rc<dyn ActivationQuantizer>> {
        Ok(Rc::new(Self::new(method, site, context, calibration, rule)?))
    }

    /// A quantizer for the activations that go into `site`, to be plugged in with `Site::set_input_slot`. `method` names
    /// it in reports.
    ///
    /// # Errors
    /// If levels of the context are not multiples of a scale.
    pub fn new(
        method: &'static str,
        site: &Site,
        context: &ActivationContext,
        calibration: &CalibrationConfig,
        rule: impl ActivationRule + 'static,
    ) -> Result<Self> {
        for spacing in
            [&context.signed, &context.unsigned].into_iter().chain(&context.former_signed)
        {
            ensure!(
                spacing.multiples().is_some(),
                "quantizing the activations of {}: {spacing:?} has no scale",
                site.name
            );
        }
        let device = site.weight.device();
        let scalar = |value: f64| Tensor::full([] as [i64; 0], value, (Kind::Float, device));
        let needs_sample = calibration.range == RangeInit::Mse || rule.needs_sample();
        let sample = if needs_sample { SAMPLE } else { 0 };
        let parameter = Tensor::ones([1], (Kind::Float, device));
        rule.start_epoch(0);
        Ok(Self {
            method,
            name: site.name.clone(),
            mode: Cell::new(ActivationMode::Idle),
            epoch: Cell::new(None),
            record: RefCell::new(ActivationRecord {
                largest: scalar(f64::NEG_INFINITY),
                smallest: scalar(f64::INFINITY),
                sum_mean: scalar(0.0),
                calls: 0,
                num_values: 0,
                batches: 0,
                sample: Tensor::full([sample], f64::NAN, (Kind::Float, device)),
            }),
            signed: Cell::new(None),
            is_former: Cell::new(false),
            parameter: parameter.set_requires_grad(rule.learnt().is_some()),
            rests: Cell::new(false),
            context: context.clone(),
            calibration: calibration.clone(),
            rule: Box::new(rule),
        })
    }

    fn spacing(&self) -> &Spacing {
        match self.signed.get() {
            Some(false) => &self.context.unsigned,
            _ => self.signed_spacing(self.is_former.get()),
        }
    }

    /// The levels of both signs: those of earlier versions, where these had others, or the present ones.
    fn signed_spacing(&self, is_former: bool) -> &Spacing {
        let former = self.context.former_signed.as_ref().filter(|_| is_former);
        former.unwrap_or(&self.context.signed)
    }

    /// Whether a saved state has the levels of both signs of an earlier version, which did not say what they were.
    fn is_former(&self, state: &SavedState) -> Result<bool> {
        if !state.has(CODES) {
            return Ok(self.context.former_signed.is_some());
        }
        let saved = Vec::<i64>::try_from(state.tensor(CODES, Kind::Int64, &[3])?)?;
        let found =
            [false, true].into_iter().find(|&f| saved == saved_codes(self.signed_spacing(f)));
        found.with_context(|| {
            format!(
                "{}.{CODES} is {saved:?} (lowest, highest, distance), and the method has {:?} at this width: the file is of \
                 another version of mqat",
                state.prefix,
                saved_codes(&self.context.signed)
            )
        })
    }

    fn codes(&self) -> Codes {
        self.spacing().multiples().expect("checked when the quantizer was made")
    }

    fn record(&self, x: &Tensor) {
        no_grad(|| {
            let record = &mut *self.record.borrow_mut();
            let x = x.detach().to_kind(Kind::Float);
            record.largest = record.largest.maximum(&x.max());
            record.smallest = record.smallest.minimum(&x.min());
            let now = x.numel() as i64;
            record.sum_mean += x.abs().mean(Kind::Float) * (now as f64 / MEAN_UNIT as f64);
            if record.sample.numel() > 0 {
                let (slots, indices) = self.replaced(record.calls, record.num_values, now);
                let on_device = |of: &[i64]| upload(&Tensor::from_slice(of), x.device());
                let values = x.reshape([-1]).index_select(0, &on_device(&indices));
                let _ = record.sample.index_copy_(0, &on_device(&slots), &values);
            }
            record.calls += 1;
            record.num_values += now;
        });
    }

    /// Places of the sample that a call of `now` values replaces after `before` values, and which value each takes: every
    /// place holds each value seen so far with the same probability. A function of seed, layer and call.
    fn replaced(&self, call: i64, before: i64, now: i64) -> (Vec<i64>, Vec<i64>) {
        let place = [STREAM_SAMPLE, seed::fnv1a(self.name.as_bytes()), call as u64];
        let mut rng = seed::stream(self.context.seed, &place);
        let chance = now as f64 / (before + now) as f64;
        let mut replaced = (Vec::new(), Vec::new());
        for slot in 0..SAMPLE {
            if rng.random::<f64>() < chance {
                replaced.0.push(slot);
                replaced.1.push(rng.random_range(0..now));
            }
        }
        replaced
    }

    /// Ends the recording and begins to quantize.
    fn settle(&self) -> Result<()> {
        let name = &self.name;
        let Fetched { largest, smallest, mean, sample } = {
            let record = self.record.borrow();
            ensure!(
                record.calls > 0,
                "the activation range of {name} cannot be set: no training batch passed the layer while it \
                 was recorded"
            );
            record.fetch()
        };
        for reached in [largest, smallest] {
            ensure!(
                reached.is_finite(),
                "the activations of {name} reached {reached} while their range was recorded"
            );
        }
        let abs_max = largest.max(-smallest);
        if abs_max == 0.0 {
            warn!(layer = %name, "every recorded activation is 0: the layer's activations stay unquantized");
            self.mode.set(ActivationMode::Dead);
            return Ok(());
        }
        self.signed.set(Some(smallest < 0.0));
        let parameter = self.initial_parameter(abs_max as f32, mean, sample);
        let _ = no_grad(|| self.parameter.shallow_clone().fill_(f64::from(parameter)));
        self.mode.set(ActivationMode::Quantizing);
        let levels = self.spacing().num_levels();
        info!(layer = %name, signed = smallest < 0.0, levels, parameter, "activation range found");
        Ok(())
    }

    /// The parameter of the rule, from what was recorded.
    fn initial_parameter(&self, max: f32, mean: f64, sample: Vec<f32>) -> f32 {
        let codes = self.codes();
        let mut found = Calibrated { max, mean, scale: 0.0, sample };
        found.scale = match self.calibration.range {
            RangeInit::Max => (f64::from(max) / f64::from(codes.highest)) as f32,
            RangeInit::Mse => found.best_scale(codes),
        };
        self.rule.initial(&found, codes).max(MIN_STEP as f32)
    }
}

/// What a state says of a spacing, which is one of multiples of a scale.
fn saved_codes(spacing: &Spacing) -> [i64; 3] {
    let codes = spacing.multiples().expect("checked when the quantizer was made");
    [codes.lowest, codes.highest, codes.stride].map(i64::from)
}

/// To the nearest multiple of a scale; the gradient passes between the outermost levels.
pub(super) fn clamp_and_round(x: &Tensor, scale: &Tensor, codes: Codes) -> Tensor {
    let value = affine::quantize(x, scale, codes);
    if !x.requires_grad() {
        return value;
    }
    let outside = no_grad(|| {
        let x = x.detach();
        let low = scale * f64::from(codes.lowest);
        let high = scale * f64::from(codes.highest);
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
            ActivationMode::Quantizing => {
                self.rule.forward(x, &self.parameter, self.codes(), train)
            }
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
        if self.mode.get() == ActivationMode::Idle {
            if epoch >= self.context.quant_start_epoch {
                self.mode.set(ActivationMode::Calibrating);
            } else if epoch + 1 == self.context.quant_start_epoch {
                self.mode.set(ActivationMode::Recording);
            }
        }
        self.rule.start_epoch(epoch);
        self.epoch.set(Some(epoch));
        Ok(())
    }

    fn end_epoch(&self, _epoch: u32) -> Result<()> {
        if self.mode.get().records() { self.settle() } else { Ok(()) }
    }

    fn begin_step(&self) -> Result<()> {
        if self.mode.get() != ActivationMode::Calibrating {
            return Ok(());
        }
        let batches = self.record.borrow().batches;
        if batches >= i64::from(self.calibration.batches) {
            return self.settle();
        }
        self.record.borrow_mut().batches += 1;
        Ok(())
    }

    fn recorded(&self) -> Vec<Recorded> {
        if !self.mode.get().records() {
            return Vec::new();
        }
        let record = self.record.borrow();
        let of = |tensor: &Tensor, how| Recorded { tensor: tensor.shallow_clone(), how };
        let mut all = vec![
            of(&record.largest, Combine::Largest),
            of(&record.smallest, Combine::Smallest),
            of(&record.sum_mean, Combine::Mean),
        ];
        if record.sample.numel() > 0 {
            let call = record.calls.cast_unsigned();
            let place = seed::fnv1a(self.name.as_bytes()) ^ call.rotate_left(32);
            all.push(of(&record.sample, Combine::Draw(self.context.seed ^ place)));
        }
        all
    }

    fn state(&self) -> Vec<(&'static str, Tensor)> {
        let record = self.record.borrow();
        let signed = self.signed.get().map_or(-1, i64::from);
        let mut state = vec![
            (self.rule.parameter_name(), self.parameter.detach()),
            ("act_signed", Tensor::from(signed)),
            (CODES, Tensor::from_slice(&saved_codes(self.signed_spacing(self.is_former.get())))),
            ("act_mode", Tensor::from(self.mode.get() as i64)),
            ("act_epoch", saved_epoch(self.epoch.get())),
            ("act_converted", Tensor::from(i64::from(self.rests.get()))),
            ("act_largest", record.largest.copy()),
            ("act_smallest", record.smallest.copy()),
            ("act_sum_mean", record.sum_mean.copy()),
            ("act_calls", Tensor::from(record.calls)),
            ("act_num_values", Tensor::from(record.num_values)),
            ("act_batches", Tensor::from(record.batches)),
        ];
        if record.sample.numel() > 0 {
            state.push(("act_sample", record.sample.copy()));
        }
        state
    }

    fn load_state(&self, state: &SavedState) -> Result<()> {
        let parameter = state.tensor(self.rule.parameter_name(), Kind::Float, &[1])?;
        let mode = state.counter("act_mode")?;
        let mode = usize::try_from(mode)
            .ok()
            .and_then(|i| ActivationMode::ALL.get(i))
            .with_context(|| {
                format!(
                    "{}.act_mode is {mode}, expected 0..{}",
                    state.prefix,
                    ActivationMode::ALL.len()
                )
            })?;
        let signed = match state.counter("act_signed")? {
            -1 => None,
            other => Some(other != 0),
        };
        let is_former = self.is_former(state)?;
        let value = parameter.double_value(&[0]);
        ensure!(
            *mode != ActivationMode::Quantizing
                || (value.is_finite() && value > 0.0 && signed.is_some()),
            "{}.{} is {value}",
            state.prefix,
            self.rule.parameter_name()
        );
        let epoch = state.epoch("act_epoch")?;
        let rests = state.counter_once_named("act_converted", "act_baked")? != 0;
        let mut record = self.record.borrow_mut();
        let device = self.parameter.device();
        let scalar = |field| {
            Ok::<_, anyhow::Error>(state.tensor(field, Kind::Float, &[])?.to_device(device))
        };
        record.largest = scalar("act_largest")?;
        record.smallest = scalar("act_smallest")?;
        record.sum_mean = scalar("act_sum_mean")?;
        record.calls = state.counter("act_calls")?;
        record.num_values = state.counter_or("act_num_values", record.calls * MEAN_UNIT)?;
        record.batches = state.counter("act_batches")?;
        if record.sample.numel() > 0 {
            let sample = state.tensor("act_sample", Kind::Float, &[SAMPLE])?;
            no_grad(|| record.sample.copy_(&sample));
        }
        no_grad(|| self.parameter.shallow_clone().copy_(&parameter));
        self.mode.set(*mode);
        self.signed.set(signed);
        self.is_former.set(is_former);
        self.epoch.set(epoch);
        self.rule.start_epoch(epoch.unwrap_or(0));
        if rests {
            self.convert();
        }
        Ok(())
    }

    fn report(&self) -> ActivationReport {
        let (spacing, codes) = (self.spacing(), self.codes());
        let known = self.mode.get() == ActivationMode::Quantizing;
        let value = known.then(|| self.parameter.double_value(&[0]) as f32);
        let scale = value.map(|value| self.rule.scale(value, codes));
        let record = self.record.borrow();
        let seen = || {
            let (high, low) = (record.largest.double_value(&[]), record.smallest.double_value(&[]));
            high.max(-low) as f32
        };
        let top = codes.highest.max(-codes.lowest) as f32;
        ActivationReport {
            method: self.method.to_owned(),
            bits: spacing.bits(),
            num_levels: spacing.num_levels(),
            max_level: scale.map(|scale| scale * top).or_else(|| (record.calls > 0).then(seen)),
            quantizing: known,
            signed: self.signed.get(),
            scale,
            codes: known.then_some([codes.lowest, codes.highest]),
            code_stride: codes.stride,
        }
    }

    fn learnt(&self) -> Vec<Learnt> {
        match self.rule.learnt() {
            Some(options) if !self.rests.get() => {
                vec![options.of(self.rule.parameter_name(), &self.parameter)]
            }
            _ => Vec::new(),
        }
    }

    fn convert(&self) {
        self.rests.set(true);
        let _ = self.parameter.shallow_clone().set_requires_grad(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::SiteKind;
    use crate::quant::testing::weights;

    struct Sampled;

    impl ActivationRule for Sampled {
        fn needs_sample(&self) -> bool {
            true
        }
    }

    fn recorder() -> CalibratedActivation {
        let weight = Tensor::zeros([1, 1, 1, 1], (Kind::Float, Device::Cpu));
        let spacing = Spacing::uniform(Some(4), None).unwrap();
        let context = ActivationContext {
            signed: spacing.clone(),
            former_signed: None,
            unsigned: spacing,
            quant_start_epoch: 0,
            seed: 3,
        };
        let site = Site::new("m.conv".to_owned(), SiteKind::Conv, &weight);
        let calibration = CalibrationConfig { range: RangeInit::Mse, ..Default::default() };
        let quantizer =
            CalibratedActivation::new("uniform", &site, &context, &calibration, Sampled).unwrap();
        quantizer.start_epoch(0).unwrap();
        quantizer
    }

    fn sample(quantizer: &CalibratedActivation) -> Vec<f32> {
        Vec::try_from(&quantizer.record.borrow().sample).unwrap()
    }

    #[test]
    fn the_range_does_not_depend_on_whether_the_batch_divides_the_map() {
        // the border is much smaller than the rest, as padding and sky are
        let step = |batch: i64| {
            let quantizer = recorder();
            for call in 0..4 {
                let x = weights(call, &[batch, 32, 16, 16]);
                let _ = x.narrow(2, 0, 1).g_mul_scalar_(0.01);
                let _ = quantizer.forward(&x, true);
            }
            quantizer.settle().unwrap();
            quantizer.parameter.double_value(&[0])
        };
        let (a, b) = (step(15), step(16));
        assert!((a / b - 1.0).abs() < 0.03, "{a} {b}");
    }

    #[test]
    fn calls_count_by_their_size_and_the_sample_is_a_function_of_the_seed() {
        let run = || {
            let quantizer = recorder();
            for (value, count) in [(1.0, 60_000i64), (2.0, 20_000)] {
                let _ = quantizer
                    .forward(&Tensor::full([count], value, (Kind::Float, Device::Cpu)), true);
            }
            quantizer
        };
        let quantizer = run();
        let values = sample(&quantizer);
        let fraction = values.iter().filter(|v| **v == 2.0).count() as f64 / values.len() as f64;
        assert!((fraction - 0.25).abs() < 0.02, "{fraction}");
        assert_eq!(sample(&run()), values);
        let record = quantizer.record.borrow();
        let mean = record.sum_mean.double_value(&[]) * MEAN_UNIT as f64 / record.num_values as f64;
        assert!((mean - 1.25).abs() < 1e-5, "{mean}");
    }
}
