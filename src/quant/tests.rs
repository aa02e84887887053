//! What holds for every method, of weights and of inputs.

use std::collections::BTreeMap;

use tch::{Kind, Tensor, no_grad};

use super::affine;
use super::testing::{bits, channels_last, network, store, weights};
use super::*;
use crate::nn::{Site, Store};

const EPOCHS: u32 = 4;
const BATCHES: u64 = 3;

fn weight_config(json: &str) -> WeightQuantConfig {
    serde_json::from_str(json).unwrap()
}

/// Every weight method, at several widths, per tensor and per channel, with either choice of levels.
fn weight_configs() -> Vec<WeightQuantConfig> {
    let mut all = Vec::new();
    for method in WeightMethod::ALL {
        for (width, granularity, levels) in [
            (1, "tensor", "null"),
            (2, "channel", "null"),
            (4, "tensor", "null"),
            (8, "channel", "null"),
            (2, "tensor", "null"),
            (3, "channel", r#""odd""#),
            (2, "tensor", r#""full""#),
            (8, "channel", r#""full""#),
        ] {
            let json = format!(
                r#"{{"method": "{method}", "bits": {width}, "granularity": "{granularity}", "levels": {levels}}}"#
            );
            let mut config = weight_config(&json);
            if config.spacing().is_err() {
                continue; // no levels of this width
            }
            match &mut config.settings {
                WeightSettings::Inq(inq) => {
                    inq.schedule = FractionSchedule::new([(0, 0.5), (2, 1.0)]);
                }
                WeightSettings::Ana(ana) => ana.ana.end_epoch = 2,
                WeightSettings::Uniform(uniform) => uniform.uniform.recalibrate = width == 2,
                WeightSettings::Lsq(lsq) if width == 4 => {
                    (lsq.lsq.init, lsq.lsq.clip) = (StepInit::Mean, Clip::AfterRounding);
                }
                _ => {}
            }
            all.push(config);
        }
    }
    all
}

/// Every activation method, beginning quantized and later.
fn input_configs() -> Vec<ActivationQuantConfig> {
    let mut all = Vec::new();
    for method in ActivationMethod::ALL {
        for (width, start, levels) in [
            (2, 0, "null"),
            (8, 1, "null"),
            (4, 2, "null"),
            (3, 1, r#""odd""#),
            (3, 0, r#""full""#),
            (3, 2, r#""full""#),
        ] {
            let json = format!(
                r#"{{"method": "{method}", "bits": {width}, "quant_start_epoch": {start}, "levels": {levels}}}"#
            );
            let mut config: ActivationQuantConfig = serde_json::from_str(&json).unwrap();
            if config.spacing(true).is_err() {
                continue; // always symmetric
            }
            let range = if start == 2 { RangeInit::Mse } else { RangeInit::Max };
            let calibration = CalibrationConfig { batches: 2, range };
            match &mut config.settings {
                ActivationSettings::Lsq(lsq) => {
                    lsq.calibration.batches = 2;
                    lsq.lsq.init = if start == 2 { StepInit::Mse } else { StepInit::Mean };
                }
                ActivationSettings::Uniform(uniform) => uniform.calibration = calibration,
                ActivationSettings::Pact(pact) => pact.calibration = calibration,
                ActivationSettings::Dorefa(dorefa) => dorefa.calibration.batches = 2,
                ActivationSettings::Ana(ana) => {
                    (ana.calibration.batches, ana.ana.end_epoch) = (2, 3);
                }
                ActivationSettings::Ste(_) => {}
            }
            all.push(config);
        }
    }
    all
}

fn attach(
    store: &Store,
    weights: Option<&WeightQuantConfig>,
    inputs: Option<&ActivationQuantConfig>,
) -> ModuleQuantizer {
    let claim = Claim {
        weights: weights.cloned(),
        activations: inputs.cloned(),
        seed: 1,
        ..Claim::of("fpn")
    };
    ModuleQuantizer::attach(&claim, store).unwrap()
}

/// An update by plain gradient descent of every layer of the module, the first one used twice.
fn update(store: &Store, quantizer: &mut ModuleQuantizer, number: u64) {
    let sites: Vec<_> =
        store.sites().iter().filter(|site| site.name.starts_with("fpn.")).cloned().collect();
    let learnt = quantizer.parameters();
    let sources: BTreeMap<String, Tensor> = quantizer.gradient_sources().into_iter().collect();
    let masks: BTreeMap<String, Tensor> = quantizer.trainable_masks().into_iter().collect();
    for site in &sites {
        site.weight.shallow_clone().zero_grad();
    }
    for tensor in learnt.iter().map(|(_, tensor)| tensor).chain(sources.values()) {
        tensor.shallow_clone().zero_grad();
    }
    quantizer.begin_step().unwrap();
    for (i, site) in sites.iter().enumerate() {
        for again in 0..if i == 0 { 2 } else { 1 } {
            let x = weights(number * 10 + again, &[2, 3, 4, 4]) * (1.0 + 0.1 * number as f64);
            let x = if i == 2 { x.abs() } else { x };
            let target = weights(number * 10 + 5, &[2, 4, 4, 4]);
            let y = site.effective_input(&x, true).conv2d(
                &site.effective_weight(true),
                None::<&Tensor>,
                1,
                1,
                1,
                1,
            );
            (y - target).square().mean(Kind::Float).backward();
        }
    }
    quantizer.end_step().unwrap();
    let descend = |tensor: &Tensor, grad: &Tensor| {
        if grad.defined() {
            let _ = tensor.shallow_clone().g_sub_(&(grad * 0.05));
        }
    };
    no_grad(|| {
        for site in &sites {
            let name = site.weight_name();
            let grad = sources.get(&name).unwrap_or(&site.weight).grad();
            match masks.get(&name) {
                Some(mask) if grad.defined() => descend(&site.weight, &(grad * mask)),
                _ => descend(&site.weight, &grad),
            }
        }
        for (_, tensor) in &learnt {
            descend(tensor, &tensor.grad());
            let _ = tensor.shallow_clone().clamp_min_(settings::MIN_STEP);
        }
    });
}

/// Trains from `(epoch, batch)` on to `(epoch, batch)`.
fn run(store: &Store, quantizer: &mut ModuleQuantizer, from: (u32, u64), to: (u32, u64)) {
    for epoch in from.0..EPOCHS {
        quantizer.start_epoch(epoch).unwrap();
        for batch in if epoch == from.0 { from.1 } else { 0 }..BATCHES {
            if (epoch, batch) == to {
                return;
            }
            update(store, quantizer, u64::from(epoch) * BATCHES + batch);
        }
        quantizer.end_epoch(epoch).unwrap();
    }
}

fn everything(store: &Store, quantizer: &ModuleQuantizer) -> Vec<(String, Vec<u32>)> {
    let vars = store.vars().into_iter().map(|v| (v.name, bits(&v.tensor)));
    vars.chain(quantizer.state().into_iter().map(|(name, t)| (name, bits(&t)))).collect()
}

fn resumes_exactly(weights: Option<&WeightQuantConfig>, inputs: Option<&ActivationQuantConfig>) {
    let undisturbed = network();
    let mut quantizer = attach(&undisturbed, weights, inputs);
    run(&undisturbed, &mut quantizer, (0, 0), (EPOCHS, 0));
    quantizer.assert_on_grid().unwrap();
    let at = format!("{weights:?} {inputs:?}");
    for stop in [(0, 1), (1, 0), (1, 2), (2, 1), (3, 2)] {
        let first = network();
        let mut before = attach(&first, weights, inputs);
        run(&first, &mut before, (0, 0), stop);
        let state: Vec<_> = before.state().into_iter().map(|(n, t)| (n, t.copy())).collect();
        let second = network();
        for (from, to) in first.vars().into_iter().zip(second.vars()) {
            no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
        }
        let mut resumed = attach(&second, weights, inputs);
        resumed.load_state(&state).unwrap();
        run(&second, &mut resumed, stop, (EPOCHS, 0));
        let (now, expected) = (everything(&second, &resumed), everything(&undisturbed, &quantizer));
        for (now, expected) in now.into_iter().zip(expected) {
            assert_eq!(now, expected, "{at}, stopped at {stop:?}");
        }
        assert_eq!(resumed.report(), quantizer.report(), "{at}");
    }
}

#[test]
fn every_weight_method_resumes_bit_for_bit_at_any_batch() {
    for config in weight_configs() {
        resumes_exactly(Some(&config), None);
    }
}

#[test]
fn every_activation_method_resumes_bit_for_bit_at_any_batch() {
    for config in input_configs() {
        resumes_exactly(None, Some(&config));
    }
    let weights = weight_config(r#"{"method": "lsq", "bits": 2}"#);
    resumes_exactly(Some(&weights), Some(&input_configs()[3]));
}

#[test]
fn during_an_evaluation_every_weight_is_quantized_once_and_none_afterwards() {
    for config in weight_configs() {
        let store = network();
        let mut quantizer = attach(&store, Some(&config), None);
        run(&store, &mut quantizer, (0, 0), (1, 0));
        let site = store.sites()[3].clone();
        let shown = || no_grad(|| site.effective_weight(false));
        let before = bits(&shown());
        ModuleQuantizer::holding(&[&quantizer], || {
            assert_eq!(bits(&shown()), before, "{config:?}");
            if config.method().name() != "inq" {
                let (one, other) = (shown(), shown());
                assert_eq!(one.data_ptr(), other.data_ptr(), "{config:?}: computed twice");
            }
        });
        // What changes afterwards is seen.
        no_grad(|| drop(site.weight.shallow_clone().g_mul_scalar_(-1.0)));
        assert_ne!(bits(&shown()), before, "{config:?}");
    }
}

#[test]
fn codes_and_reports_are_those_of_the_weight_that_layers_compute_with() {
    for config in weight_configs() {
        let store = network();
        let mut quantizer = attach(&store, Some(&config), None);
        assert!(quantizer.assert_on_grid().is_err(), "{config:?}");
        run(&store, &mut quantizer, (0, 0), (EPOCHS, 0));
        let num_levels = config.spacing().unwrap().num_levels();
        let effective: BTreeMap<_, _> = quantizer.effective_weights().into_iter().collect();
        for (layer, site) in
            quantizer.codes().unwrap().into_iter().zip(store.sites().iter().skip(3))
        {
            assert_eq!(layer.name, site.weight_name());
            let values = layer.grid.values(&layer.codes).unwrap();
            assert_eq!(bits(&values), bits(&effective[&layer.name]), "{config:?}");
            assert_eq!(bits(&values), bits(&site.effective_weight(false)), "{config:?}");
            no_grad(|| {
                assert_eq!(bits(&values), bits(&site.effective_weight(false)), "{config:?}")
            });
            assert_eq!(layer.grid.spacing().num_levels(), num_levels);
            // a level is its code times the scale in f32, whatever the method
            if let Some(scale) = layer.grid.scale() {
                let scale = affine::by_channel(&values, &Tensor::from_slice(&scale));
                assert_eq!(bits(&(layer.codes.to_kind(Kind::Float) * scale + 0.0)), bits(&values));
            }
        }
        for report in quantizer.report() {
            assert_eq!(report.method, config.method().name());
            assert_eq!((report.num_levels, report.frozen_fraction), (Some(num_levels), 1.0));
            let num = if config.per_channel() { 4 } else { 1 };
            let num_scales = config.spacing().unwrap().multiples().map_or(0, |_| num);
            assert_eq!((report.scale.len(), report.max_level.len()), (num_scales, num));
            assert_eq!(report.levels.len() as u32, num_levels);
            assert!((2..=num_levels as usize).contains(&report.levels_in_use), "{report:?}");
            let codes = report.codes.unwrap();
            assert!(codes[0] < 0 && codes[1] > 0);
        }
    }
}

#[test]
fn a_converted_module_computes_the_same_bits_and_stays_so() {
    for config in weight_configs() {
        let store = network();
        let mut quantizer = attach(&store, Some(&config), None);
        run(&store, &mut quantizer, (0, 0), (EPOCHS, 0));
        let effective: BTreeMap<_, _> = quantizer.effective_weights().into_iter().collect();
        let report = quantizer.report();
        for _ in 0..2 {
            quantizer.convert().unwrap();
        }
        assert_eq!(quantizer.report(), report, "{config:?}");
        assert!(quantizer.parameters().is_empty() && quantizer.gradient_sources().is_empty());
        for (name, mask) in quantizer.trainable_masks() {
            assert_eq!(mask.abs().max().double_value(&[]), 0.0, "{name}");
            assert_eq!(bits(&store.get(&name).unwrap()), bits(&effective[&name]), "{config:?}");
        }
        assert_eq!(quantizer.trainable_masks().len(), 3);
        let before = everything(&store, &quantizer);
        update(&store, &mut quantizer, 99);
        assert_eq!(everything(&store, &quantizer), before);
        quantizer.assert_on_grid().unwrap();

        let state: Vec<_> = quantizer.state().into_iter().map(|(n, t)| (n, t.copy())).collect();
        let second = network();
        for (from, to) in store.vars().into_iter().zip(second.vars()) {
            no_grad(|| to.tensor.shallow_clone().copy_(&from.tensor));
        }
        let mut loaded = attach(&second, Some(&config), None);
        loaded.load_state(&state).unwrap();
        assert_eq!(loaded.report(), report);
        assert_eq!(everything(&second, &loaded), before);
        if config.method() != WeightMethod::Inq {
            let text = loaded.start_epoch(EPOCHS).unwrap_err().to_string();
            assert!(text.contains("resume from a checkpoint of its stage"), "{text}");
        }
    }
}

#[test]
fn before_the_first_epoch_a_layer_is_float() {
    for config in weight_configs() {
        let (store, float) = (network(), network());
        let mut quantizer = attach(&store, Some(&config), None);
        quantizer.begin_step().unwrap();
        for (site, other) in store.sites().iter().zip(float.sites().iter()) {
            assert_eq!(bits(&site.effective_weight(true)), bits(&other.weight));
        }
        quantizer.end_step().unwrap();
    }
}

#[test]
fn within_an_update_and_outside_values_and_gradients_agree() {
    for config in weight_configs().iter().filter(|c| c.method() != WeightMethod::Inq) {
        let stores = [network(), network()];
        let grads: Vec<Vec<Vec<f32>>> = (0..2)
            .map(|i| {
                let store = &stores[i];
                let mut quantizer = attach(store, Some(config), None);
                quantizer.start_epoch(0).unwrap();
                let site = store.sites()[3].clone();
                if i == 0 {
                    quantizer.begin_step().unwrap();
                }
                let y = site.effective_weight(true);
                let grad_out = weights(77, &y.size());
                (&y * grad_out).sum(Kind::Float).backward();
                let sources: BTreeMap<_, _> = quantizer.gradient_sources().into_iter().collect();
                quantizer.end_step().unwrap();
                let source = sources.get(&site.weight_name()).filter(|_| i == 0);
                let floats = |t: &Tensor| Vec::<f32>::try_from(t.detach().reshape([-1])).unwrap();
                let mut all = vec![floats(&y), floats(&source.unwrap_or(&site.weight).grad())];
                let learnt = quantizer.parameters();
                all.extend(learnt.iter().take(1).map(|(_, step)| floats(&step.grad())));
                all
            })
            .collect();
        for (inside, outside) in grads[0].iter().zip(&grads[1]) {
            for (a, b) in inside.iter().zip(outside) {
                assert!((a - b).abs() <= 1e-5 * b.abs().max(1e-2), "{config:?}: {a} {b}");
            }
        }
        assert_eq!(grads[0][0], grads[1][0], "{config:?}: the values");
    }
}

#[test]
fn weights_that_lie_on_the_grid_stay_there() {
    // uniform, ana: Q(Q(w)) = Q(w) at the same scale; lsq at the same step
    for method in ["lsq", "uniform", "ana"] {
        for width in [1, 2, 3, 8] {
            let config = weight_config(&format!(r#"{{"method": "{method}", "bits": {width}}}"#));
            let codes = config.spacing().unwrap().multiples().unwrap();
            let step = Tensor::from_slice(&[0.0371f32]);
            let once = affine::quantize(&weights(3, &[5, 4, 3, 3]), &step, codes);
            assert_eq!(bits(&affine::quantize(&once, &step, codes)), bits(&once), "{config:?}");
        }
    }
}

#[test]
fn the_kernel_and_libtorchs_operators_give_the_same_bits() {
    let w = weights(5, &[6, 5, 3, 3]);
    for codes in [
        Codes { lowest: -1, highest: 1, stride: 2 },
        Codes { lowest: -3, highest: 3, stride: 2 },
        Codes { lowest: -2, highest: 1, stride: 1 },
        Codes { lowest: 0, highest: 255, stride: 1 },
        Codes { lowest: -127, highest: 127, stride: 1 },
    ] {
        for steps in [vec![0.013f32], vec![0.2], (1..=6).map(|i| i as f32 * 0.07).collect()] {
            let step = Tensor::from_slice(&steps);
            let fast = affine::quantize(&w, &step, codes);
            // a gap in memory: no slice
            let strided = Tensor::cat(&[&w, &w], 1).narrow(1, 0, 5);
            assert_eq!(bits(&affine::quantize(&strided, &step, codes)), bits(&fast));
            let last = channels_last(&w);
            assert_eq!(bits(&affine::quantize(&last, &step, codes)), bits(&fast));

            let grad = weights(6, &w.size());
            for clip in [Clip::BeforeRounding, Clip::AfterRounding] {
                let (mut a, mut b) = (grad.copy(), Tensor::cat(&[&grad, &grad], 1).narrow(1, 0, 5));
                let sum_fast = affine::gradients(&w, &mut a, &step, codes, clip);
                let sum_plain = affine::gradients(&strided, &mut b, &step, codes, clip);
                assert_eq!(bits(&a), bits(&b), "{codes:?}");
                let difference = (&sum_fast - sum_plain).abs().max().double_value(&[]);
                assert!(difference <= 1e-4 * sum_fast.abs().max().double_value(&[]).max(1.0));
            }
        }
    }
}

#[test]
fn the_gradient_of_a_learnt_step_is_equation_3_worked_by_hand() {
    // step 0.5, codes -2..=1: v = x / step = -4.2, -2.3, -2, -1.2, 0.4, 0.9, 1, 1.3, 1.8
    let x = Tensor::from_slice(&[-2.1f32, -1.15, -1.0, -0.6, 0.2, 0.45, 0.5, 0.65, 0.9]);
    let codes = Codes { lowest: -2, highest: 1, stride: 1 };
    let step = Tensor::from_slice(&[0.5f32]);
    for (clip, by_step, passes) in [
        (
            Clip::BeforeRounding,
            [-2.0, -2.0, -2.0, 0.2, -0.4, 0.1, 1.0, 1.0, 1.0],
            [0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0],
        ),
        (
            Clip::AfterRounding,
            [-2.0, 0.3, 0.0, 0.2, -0.4, 0.1, 0.0, -0.3, 1.0],
            [0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0],
        ),
    ] {
        for i in 0..9 {
            let one = x.narrow(0, i, 1);
            let (by_step, passes): (f32, f32) = (by_step[i as usize], passes[i as usize]);
            // in one pass, and by libtorch
            let mut grad = one.ones_like();
            let sum = affine::gradients(&one, &mut grad, &step, codes, clip);
            let (leaf, learnt) =
                (one.copy().set_requires_grad(true), step.copy().set_requires_grad(true));
            let y = lsq::fake_quantize(&leaf, &learnt, codes, 1.0, clip).unwrap();
            assert_eq!(floats(&y), floats(&affine::quantize(&one, &step, codes)));
            y.sum(Kind::Float).backward();
            for (found, expected) in [
                (floats(&sum)[0], by_step),
                (floats(&learnt.grad())[0], by_step),
                (floats(&grad)[0], passes),
                (floats(&leaf.grad())[0], passes),
            ] {
                assert!((found - expected).abs() < 1e-5, "{clip:?} {i}: {found} {expected}");
            }
        }
    }
}

#[test]
fn a_learnt_step_has_the_gradient_of_the_definition_in_f64() {
    let w = weights(8, &[4, 7, 3, 3]);
    let grad = weights(9, &w.size());
    for (step, codes) in [
        (0.11f32, Codes { lowest: -4, highest: 3, stride: 1 }),
        (0.4, Codes { lowest: -1, highest: 1, stride: 1 }),
        (0.02, Codes { lowest: -128, highest: 127, stride: 1 }),
    ] {
        for clip in [Clip::BeforeRounding, Clip::AfterRounding] {
            let values: Vec<f32> = Vec::try_from(w.reshape([-1])).unwrap();
            let grads: Vec<f32> = Vec::try_from(grad.reshape([-1])).unwrap();
            let (mut by_step, mut by_weight) = (0.0, Vec::new());
            for (&w, &g) in values.iter().zip(&grads) {
                let v = f64::from(w) / f64::from(step);
                let (low, high) = (f64::from(codes.lowest), f64::from(codes.highest));
                let rounded = v.round_ties_even();
                let inside = match clip {
                    Clip::BeforeRounding => v > low && v < high,
                    Clip::AfterRounding => (low..=high).contains(&rounded),
                };
                let d = if inside { rounded - v } else { rounded.clamp(low, high) };
                by_step += f64::from(g) * d;
                by_weight.push(if inside { g } else { 0.0 });
            }
            let mut found = grad.copy();
            let sum = affine::gradients(&w, &mut found, &Tensor::from_slice(&[step]), codes, clip);
            assert_eq!(Vec::<f32>::try_from(found.reshape([-1])).unwrap(), by_weight);
            assert!((sum.double_value(&[0]) / by_step - 1.0).abs() < 1e-4, "{sum:?} {by_step}");
        }
    }
}

#[test]
fn zeros_and_channels_of_zeros_are_quantized() {
    for config in weight_configs() {
        for zeros in ["all", "one channel"] {
            let w = weights(4, &[4, 3, 3, 3]);
            match zeros {
                "all" => drop(w.shallow_clone().zero_()),
                _ => drop(w.get(2).zero_()),
            }
            let store = store(&[("fpn.conv", w)]);
            let mut quantizer = attach(&store, Some(&config), None);
            for epoch in 0..EPOCHS {
                quantizer.start_epoch(epoch).unwrap();
                quantizer.end_epoch(epoch).unwrap();
            }
            quantizer.assert_on_grid().unwrap();
            let (_, effective) = quantizer.effective_weights().remove(0);
            let largest = effective.get(2).abs().max().double_value(&[]);
            let has_zero = config.spacing().unwrap().codes().contains(&0);
            let own_scale = config.per_channel() || zeros == "all";
            // a step of 1e-6 or the mean of the other channels' where no level is 0
            let limit = if has_zero {
                0.0
            } else if own_scale {
                0.5
            } else {
                2.0
            };
            assert!(largest <= limit, "{config:?} {zeros}: {largest}");
        }
    }
}

#[test]
fn weights_that_are_not_finite_are_refused_by_name() {
    for config in weight_configs() {
        let w = weights(4, &[4, 3, 1, 1]);
        let _ = w.get(1).get(0).fill_(f64::NAN);
        let store = store(&[("fpn.conv", w)]);
        let mut quantizer = attach(&store, Some(&config), None);
        let text = format!("{:#}", quantizer.start_epoch(0).unwrap_err());
        assert!(text.contains("fpn.conv.weight holds NaN at index 3"), "{config:?}: {text}");
    }
    let config = weight_config(r#"{"method": "lsq", "bits": 2}"#);
    let store = store(&[("fpn.conv", weights(4, &[4, 3, 1, 1]))]);
    let mut quantizer = attach(&store, Some(&config), None);
    quantizer.start_epoch(0).unwrap();
    let _ = no_grad(|| store.sites()[0].weight.get(1).get(0).fill_(f64::NAN));
    assert!(quantizer.end_epoch(0).unwrap_err().to_string().contains("NaN"));
    assert!(quantizer.assert_on_grid().unwrap_err().to_string().contains("index 3"));
}

#[test]
fn layers_have_the_bits_that_are_theirs() {
    let store = network();
    let json = r#"{"method": "lsq", "bits": 2, "layer_bits": {"fpn.inner_convs.3": 8}}"#;
    let quantizer = attach(&store, Some(&weight_config(json)), None);
    let found: Vec<u32> = quantizer.report().iter().map(|report| report.bits).collect();
    assert_eq!(found, [2, 8, 2]);
    let attach = |json: &str| {
        let config = weight_config(json);
        let made = ModuleQuantizer::attach(&Claim::of("fpn").with_weights(&config), &network());
        made.err().map(|err| format!("{err:#}")).unwrap_or_default()
    };
    let text = attach(r#"{"bits": 2, "layer_bits": {"fpn.iner_convs.3": 8}}"#);
    assert!(text.contains("matches no layer") && text.contains("fpn.inner_convs.3"), "{text}");
    assert!(attach(r#"{"layer_bits": {"fpn.inner_convs": 8}}"#).contains("neither bits nor"));
    assert_eq!(attach(r#"{"layer_bits": {"fpn": 8}}"#), "");
}

/// The input quantizer of a layer, driven by hand.
fn input(json: &str) -> (Store, ModuleQuantizer, std::rc::Rc<Site>) {
    let store = store(&[("fpn.conv", weights(1, &[2, 2, 1, 1]))]);
    let config: ActivationQuantConfig = serde_json::from_str(json).unwrap();
    let mut quantizer = attach(&store, None, Some(&config));
    quantizer.start_epoch(0).unwrap();
    let site = store.sites()[0].clone();
    (store, quantizer, site)
}

fn floats(x: &Tensor) -> Vec<f32> {
    Vec::try_from(x.detach().reshape([-1])).unwrap()
}

#[test]
fn inputs_without_negative_values_get_unsigned_levels() {
    for method in ["lsq", "uniform", "pact", "dorefa", "ana"] {
        for (low, signed, codes) in [(0.0, false, [0, 3]), (-1.0, true, [-2, 1])] {
            let (_store, mut quantizer, site) = input(&format!(
                r#"{{"method": "{method}", "bits": 2, "quant_start_epoch": 0,
                     "calibration": {{"batches": 1}}}}"#
            ));
            let x = Tensor::from_slice(&[low as f32, 0.5, 1.0, 0.9]).reshape([1, 4]);
            quantizer.begin_step().unwrap();
            assert_eq!(floats(&site.effective_input(&x, true)), floats(&x), "recorded as it is");
            let report = quantizer.report()[0].activations.clone().unwrap();
            assert!(!report.quantizing && report.codes.is_none() && report.scale.is_none());
            quantizer.begin_step().unwrap();
            let report = quantizer.report()[0].activations.clone().unwrap();
            assert!(report.quantizing && report.signed == Some(signed), "{method}");
            let expected = match (method, signed) {
                ("lsq", _) | (_, false) => (codes, 1),
                _ => ([-1, 1], 1),
            };
            assert_eq!((report.codes.unwrap(), report.code_stride), expected, "{method}");
            let y = no_grad(|| site.effective_input(&(&x * 3.0), false));
            let step = report.scale.unwrap();
            for value in floats(&y) {
                let code = value / step;
                assert_eq!(code.round() * step, value, "{method}: {value} of step {step}");
            }
            if method != "lsq" {
                assert!((report.max_level.unwrap() - 1.0).abs() < 1e-6, "{method} {report:?}");
            }
        }
    }
}

#[test]
fn dorefas_activations_of_both_signs_keep_zero_unless_the_paper_is_asked_for() {
    // the range is 1: levels -1, 0, 1, or the paper's four, -1, -1/3, 1/3, 1
    let x = [-1.0f32, -0.4, 0.0, 0.1, 0.6, 2.0];
    let third = 1.0f32 / 3.0;
    for (levels, expected) in [
        ("null", [-1.0, 0.0, 0.0, 0.0, 1.0, 1.0]),
        (r#""odd""#, [-1.0, 0.0, 0.0, 0.0, 1.0, 1.0]),
        (r#""full""#, [-1.0, -third, third, third, third, 1.0]),
    ] {
        let (_store, mut quantizer, site) = input(&format!(
            r#"{{"method": "dorefa", "bits": 2, "levels": {levels}, "quant_start_epoch": 0,
                 "calibration": {{"batches": 1}}}}"#
        ));
        quantizer.begin_step().unwrap();
        let recorded = Tensor::from_slice(&[-1.0f32, 0.5, 0.25, 1.0]).reshape([1, 4]);
        let _ = site.effective_input(&recorded, true);
        quantizer.begin_step().unwrap();
        let y = no_grad(|| site.effective_input(&Tensor::from_slice(&x).reshape([1, 6]), false));
        for (i, (found, expected)) in floats(&y).into_iter().zip(expected).enumerate() {
            // 0 lies in the middle of two of the paper's levels
            let is_tie = levels.contains("full") && x[i] == 0.0;
            let found = if is_tie { found.abs() } else { found };
            assert!((found - expected).abs() < 1e-6, "{levels}: {} became {found}", x[i]);
        }
    }
}

#[test]
fn a_state_without_its_codes_has_the_levels_of_the_version_that_wrote_it() {
    let dorefa = |levels: &str| {
        input(&format!(
            r#"{{"method": "dorefa", "bits": 2, "levels": {levels}, "quant_start_epoch": 0,
                 "calibration": {{"batches": 1}}}}"#
        ))
    };
    let calibrated = |lowest: f32| {
        let (store, mut quantizer, site) = dorefa(r#""full""#);
        for _ in 0..2 {
            quantizer.begin_step().unwrap();
            let x = Tensor::from_slice(&[lowest, 0.5, 0.25, 1.0]).reshape([1, 4]);
            let _ = site.effective_input(&x, true);
        }
        (store, quantizer, site)
    };
    let is_mark = |name: &str| name.ends_with(".act_codes");
    let state = |quantizer: &ModuleQuantizer| -> Vec<(String, Tensor)> {
        quantizer.state().into_iter().map(|(name, tensor)| (name, tensor.copy())).collect()
    };
    let codes = |quantizer: &ModuleQuantizer| {
        let report = quantizer.report()[0].activations.clone().unwrap();
        (report.codes.unwrap(), report.code_stride)
    };
    let x = Tensor::from_slice(&[-1.0f32, -0.4, 0.1, 2.0]).reshape([1, 4]);
    let computed = |site: &Site| no_grad(|| floats(&site.effective_input(&x, false)));

    // 0.1 quantized at 2 bits: four levels, and the state did not say so
    let (_store, paper, paper_site) = calibrated(-1.0);
    let mut old = state(&paper);
    old.retain(|(name, _)| !is_mark(name));
    let (_store, mut resumed, site) = dorefa("null");
    resumed.load_state(&old).unwrap();
    assert_eq!(codes(&resumed), ([-3, 3], 2));
    assert_eq!(computed(&site), computed(&paper_site));
    // written again, the state says so
    let (_store, mut again, site) = dorefa("null");
    again.load_state(&state(&resumed)).unwrap();
    assert_eq!(codes(&again), ([-3, 3], 2));
    assert_eq!(computed(&site), computed(&paper_site));

    // levels that the config names were the same in every version that knew the key
    let (_store, mut odd, _site) = dorefa(r#""odd""#);
    odd.load_state(&old).unwrap();
    assert_eq!(codes(&odd), ([-1, 1], 1));
    // without negative values nothing has changed
    let (_store, positive, _site) = calibrated(0.0);
    let mut old = state(&positive);
    old.retain(|(name, _)| !is_mark(name));
    let (_store, mut resumed, _site) = dorefa("null");
    resumed.load_state(&old).unwrap();
    assert_eq!(codes(&resumed), ([0, 3], 1));

    let mut foreign = state(&paper);
    for (_, mark) in foreign.iter_mut().filter(|(name, _)| is_mark(name)) {
        *mark = Tensor::from_slice(&[-2i64, 1, 1]);
    }
    let (_store, mut quantizer, _site) = dorefa("null");
    let error = format!("{:#}", quantizer.load_state(&foreign).unwrap_err());
    assert!(error.contains("quant.fpn.conv.act_codes is [-2, 1, 1]"), "{error}");
    assert!(error.contains("another version"), "{error}");
}

#[test]
fn the_gradient_of_clipping_is_that_of_pact() {
    let alpha = Tensor::from_slice(&[2.0f32]).set_requires_grad(true);
    let x = Tensor::from_slice(&[-3.0f32, -0.1, 0.4, 1.9, 2.0, 5.0]).set_requires_grad(true);
    let unsigned = Codes { lowest: 0, highest: 3, stride: 1 };
    let y = pact::clip_and_round(&x, &alpha, unsigned);
    let third = 2.0f32 / 3.0;
    assert_eq!(floats(&y), [0.0, 0.0, third, 2.0, 2.0, 2.0]);
    y.sum(Kind::Float).backward();
    assert_eq!(floats(&x.grad()), [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    assert_eq!(floats(&alpha.grad()), [2.0]);
    let (mut x, mut alpha) = (x, alpha);
    x.zero_grad();
    alpha.zero_grad();
    let signed = Codes { lowest: -1, highest: 1, stride: 1 };
    pact::clip_and_round(&x, &alpha, signed).sum(Kind::Float).backward();
    assert_eq!(floats(&x.grad()), [0.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
    assert_eq!(floats(&alpha.grad()), [1.0]); // 2 above, 1 below
}

#[test]
fn an_averaged_staircase_is_the_mean_over_the_noise_and_its_slope_the_difference() {
    let codes = Codes { lowest: -1, highest: 2, stride: 1 };
    let step = Tensor::from_slice(&[0.5f32]);
    let position = |i: i64| -1.2 + 0.013 * i as f64;
    let values: Vec<f32> = (0..200).map(|i| position(i) as f32).collect();
    for width in [0.05, 0.3, 0.5, 0.8, 2.5] {
        let widths = ana::Widths { forward: width, backward: width };
        let x = Tensor::from_slice(&values).set_requires_grad(true);
        let y = ana::staircase(&x, &step, codes, widths);
        y.sum(Kind::Float).backward();
        let slopes = floats(&x.grad());
        let averaged = |x: f64| {
            // thresholds -0.25, 0.25, 0.75: uniform noise of half-width w steps
            let ramp = |t: f64| ((x - t) / (2.0 * width * 0.5) + 0.5).clamp(0.0, 1.0);
            -0.5 + 0.5 * [-0.25, 0.25, 0.75].map(ramp).iter().sum::<f64>()
        };
        for ((&v, y), slope) in values.iter().zip(floats(&y)).zip(slopes) {
            let v = f64::from(v);
            assert!((f64::from(y) - averaged(v)).abs() < 1e-5, "{width}: {y} at {v}");
            let h = 1e-4;
            let difference = (averaged(v + h) - averaged(v - h)) / (2.0 * h);
            // at a corner of a ramp the two sides differ
            let corner = (averaged(v + h) - 2.0 * averaged(v) + averaged(v - h)).abs() > 1e-9;
            assert!(
                corner || (f64::from(slope) - difference).abs() < 1e-3,
                "{width}: {slope} at {v}"
            );
        }
    }
    // half a step of noise is a straight line, none a staircase
    let x = Tensor::from_slice(&[-0.4f32, 0.1, 0.3, 0.9]);
    let line = ana::staircase(&x, &step, codes, ana::Widths { forward: 0.5, backward: 0.5 });
    assert!((line - &x).abs().max().double_value(&[]) < 1e-6);
    let stairs = ana::staircase(&x, &step, codes, ana::Widths { forward: 0.0, backward: 0.5 });
    assert_eq!(floats(&stairs), [-0.5, 0.0, 0.5, 1.0]);
}

#[test]
fn noise_fades_from_epoch_to_epoch_and_evaluation_never_sees_it() {
    let store = network();
    let config = weight_config(
        r#"{"method": "ana", "bits": 2, "quant_init_method": "uniform", "ana": {"end_epoch": 2}}"#,
    );
    let mut quantizer = attach(&store, Some(&config), None);
    let site = store.sites()[3].clone();
    let mut distances = Vec::new();
    for epoch in 0..3 {
        quantizer.start_epoch(epoch).unwrap();
        let levels = no_grad(|| site.effective_weight(false));
        quantizer.assert_on_grid().unwrap();
        let trained = site.effective_weight(true);
        distances.push((trained.detach() - levels).abs().max().double_value(&[]));
        if epoch == 0 {
            // the scale is max |w|, so that no weight is clipped
            let change = (trained.detach() - &site.weight).abs().max().double_value(&[]);
            assert!(change < 1e-6, "quantizing begins with the float function: {change}");
        }
    }
    assert!(distances[0] > distances[1] && distances[2] == 0.0, "{distances:?}");
}

#[test]
fn dorefa_follows_its_formula_and_its_scale_fits() {
    let w = weights(2, &[4, 3, 3, 3]);
    for unit_scale in [true, false] {
        let json = format!(
            r#"{{"method": "dorefa", "bits": 3, "dorefa": {{"unit_scale": {unit_scale}}}}}"#
        );
        let config = weight_config(&json);
        let store = store(&[("fpn.conv", w.shallow_clone())]);
        let mut quantizer = attach(&store, Some(&config), None);
        quantizer.start_epoch(0).unwrap();
        let effective = floats(&quantizer.effective_weights().remove(0).1);
        let tanh: Vec<f64> = floats(&w).iter().map(|&v| f64::from(v).tanh()).collect();
        let largest = tanh.iter().fold(0.0f64, |a, b| a.max(b.abs()));
        let unit: Vec<f64> = tanh
            .iter()
            .map(|t| 2.0 * (7.0 * (t / (2.0 * largest) + 0.5)).round() / 7.0 - 1.0)
            .collect();
        let scale = if unit_scale {
            1.0
        } else {
            let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
            let w: Vec<f64> = floats(&w).iter().map(|&v| f64::from(v)).collect();
            dot(&w, &unit) / dot(&unit, &unit)
        };
        for (found, unit) in effective.iter().zip(unit) {
            assert!((f64::from(*found) - scale * unit).abs() < 1e-5, "{found} {}", scale * unit);
        }
    }
}

#[test]
fn steps_begin_where_the_paper_or_the_error_says() {
    let w = weights(3, &[8, 4, 3, 3]);
    let values: Vec<f32> = floats(&w);
    let codes = Codes { lowest: -4, highest: 3, stride: 1 };
    let step = |init, per_channel| lsq::initial_steps("w", &w, init, codes, per_channel).unwrap();
    let mean = values.iter().map(|v| f64::from(v.abs())).sum::<f64>() / values.len() as f64;
    let expected = 2.0 * mean / 3f64.sqrt();
    assert!((f64::from(step(StepInit::Mean, false)[0]) / expected - 1.0).abs() < 1e-5);
    assert_eq!(step(StepInit::Mean, true).len(), 8);
    // no step of a fine search has a smaller error
    let error = |step: f32| {
        let q = affine::quantize(&w, &Tensor::from_slice(&[step]), codes);
        (q - &w).square().sum(Kind::Double).double_value(&[])
    };
    let best = (1..4000).map(|i| error(i as f32 * 1e-4)).fold(f64::INFINITY, f64::min);
    let found = error(step(StepInit::Mse, false)[0]);
    assert!(found <= best * (1.0 + 1e-4), "{found} {best}");
    // a channel of zeros has the mean of the others
    let _ = w.get(0).zero_();
    let steps = step(StepInit::Mean, true);
    let others = steps[1..].iter().sum::<f32>() / 7.0;
    assert!((steps[0] / others - 1.0).abs() < 1e-6, "{steps:?}");
}

#[test]
fn a_channel_has_its_own_step_and_gradient() {
    let config = weight_config(r#"{"method": "lsq", "bits": 2, "granularity": "channel"}"#);
    assert_eq!(config.granularity, Granularity::Channel);
    let store = network();
    let mut quantizer = attach(&store, Some(&config), None);
    quantizer.start_epoch(0).unwrap();
    let before = floats(&quantizer.parameters()[0].1);
    update(&store, &mut quantizer, 1);
    let after = floats(&quantizer.parameters()[0].1);
    assert_eq!(before.len(), 4);
    assert!(before.iter().zip(&after).all(|(a, b)| a != b), "{before:?} {after:?}");
}
