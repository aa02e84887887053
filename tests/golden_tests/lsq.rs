//! `07_lsq`: values and gradients of learnt step sizes, per tensor and per channel.

use std::collections::BTreeMap;

use mqat::nn::{Site, SiteKind, Store};
use mqat::quant::{
    Claim, Clip, CodeRange, Codes, Granularity, ModuleQuantizer, Spacing, WeightQuantConfig,
    affine, lsq,
};
use serde_json::Value;
use tch::{Device, Kind, Tensor, no_grad};

use crate::support::{Array, arrays, json, number};

/// README of the reference data, 07: values and gradients of the input.
const TOLERANCE: f64 = 1e-6;
/// Gradients of the scale, relative to max(1, |value|).
const SCALE_TOLERANCE: f64 = 2e-4;
/// The reference is PyTorch's operator.
const CLIP: Clip = Clip::AfterRounding;

struct Case {
    key: String,
    bits: u32,
    range: CodeRange,
    codes: Codes,
    factor: f64,
    x: Tensor,
    grad_out: Tensor,
    scale: Tensor,
    y: Tensor,
    grad_x: Tensor,
    grad_scale: Tensor,
}

fn cases() -> Vec<Case> {
    let (meta, all) = (json("07_lsq/lsq.json"), arrays("07_lsq/lsq.safetensors"));
    meta["cases"].as_array().unwrap().iter().map(|case| read(case, &all)).collect()
}

fn read(case: &Value, all: &BTreeMap<String, Array>) -> Case {
    let key = case["key"].as_str().unwrap();
    let tensor = |name: &str| all.get(name).unwrap_or_else(|| panic!("{name} is missing")).tensor();
    // special points have inputs of their own
    let input = |name: &str| match all.get(&format!("{key}.{name}")) {
        Some(array) => array.tensor(),
        None => tensor(name),
    };
    let range = match case["range"].as_str().unwrap() {
        "full" => CodeRange::Full,
        "narrow" => CodeRange::Narrow,
        other => panic!("unknown range {other}"),
    };
    let scale = match case.get("scale") {
        Some(scale) => Tensor::from_slice(&[number(scale) as f32]),
        None => tensor(&format!("{key}.scale")),
    };
    let limit = |name: &str| case[name].as_i64().unwrap() as i32;
    Case {
        bits: case["bits"].as_u64().unwrap() as u32,
        codes: Codes { lowest: limit("quant_min"), highest: limit("quant_max"), stride: 1 },
        factor: number(&case["grad_factor"]),
        x: input("x"),
        grad_out: input("grad_out"),
        scale,
        y: tensor(&format!("{key}.y")),
        grad_x: tensor(&format!("{key}.grad_x")),
        grad_scale: tensor(&format!("{key}.grad_scale")).reshape([-1]),
        range,
        key: key.to_owned(),
    }
}

fn max_diff(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

fn check(case: &Case, what: &str, y: &Tensor, grad_x: &Tensor, grad_scale: &Tensor) {
    let at = format!("{} {what}", case.key);
    let diff = max_diff(y, &case.y);
    assert!(diff <= TOLERANCE, "{at}: y is off by {diff}");
    let diff = max_diff(grad_x, &case.grad_x);
    assert!(diff <= TOLERANCE, "{at}: the gradient of x is off by {diff}");
    let relative = (grad_scale - &case.grad_scale).abs() / case.grad_scale.abs().clamp_min(1.0);
    let diff = relative.max().double_value(&[]);
    assert!(diff <= SCALE_TOLERANCE, "{at}: the gradient of the scale is off by {diff}");
}

#[test]
fn the_settings_give_the_codes_and_the_gradient_factor_of_the_reference() {
    for case in cases() {
        let spacing = Spacing::integers(Some(case.bits), None, case.range).unwrap();
        assert_eq!(spacing.multiples(), Some(case.codes), "{}", case.key);
        let factor = lsq::gradient_factor(case.x.numel(), case.codes);
        assert!((factor / case.factor - 1.0).abs() < 1e-6, "{}: {factor}", case.key);
    }
}

#[test]
fn values_and_gradients_are_those_of_the_reference() {
    for case in cases() {
        let x = case.x.copy().set_requires_grad(true);
        let scale = case.scale.copy().set_requires_grad(true);
        let y = lsq::fake_quantize(&x, &scale, case.codes, case.factor, CLIP).unwrap();
        let loss = (&y * &case.grad_out).sum(Kind::Float);
        let grads = Tensor::run_backward(&[loss], &[&x, &scale], false, false);
        check(&case, "as a differentiable function", &y.detach(), &grads[0], &grads[1]);
        let plain = affine::quantize(&case.x, &case.scale, case.codes);
        assert!(plain.equal(&y.detach()), "{}: one pass gives other bits", case.key);
    }
}

/// A module of one layer with these weights, its LSQ steps set to the reference's.
fn quantizer(case: &Case) -> (Store, ModuleQuantizer) {
    let store = Store::new(Device::Cpu);
    let path = store.root() / "m" / "conv";
    let weight = path.parameter("weight", case.x.reshape(four(&case.x)));
    path.site(Site::new("m.conv".to_owned(), SiteKind::Conv, &weight));
    let granularity =
        if case.scale.numel() > 1 { Granularity::Channel } else { Granularity::Tensor };
    let lsq = lsq::LsqConfig { range: case.range, clip: CLIP, ..Default::default() };
    let config = WeightQuantConfig {
        settings: lsq::LsqWeights { lsq }.into(),
        bits: Some(case.bits),
        granularity,
        ..WeightQuantConfig::default()
    };
    let mut quantizer =
        ModuleQuantizer::attach(&Claim::of("m").with_weights(&config), &store).unwrap();
    quantizer.start_epoch(0).unwrap();
    let (name, step) = quantizer.parameters().remove(0);
    assert_eq!((name.as_str(), step.size()), ("quant.m.conv.weight_step", case.scale.size()));
    no_grad(|| step.shallow_clone().copy_(&case.scale));
    (store, quantizer)
}

/// Convolutions have four dimensions.
fn four(x: &Tensor) -> Vec<i64> {
    let mut size = x.size();
    size.resize(4, 1);
    size
}

#[test]
fn a_quantized_layer_has_the_values_and_gradients_of_the_reference() {
    for case in cases() {
        let (store, mut quantizer) = quantizer(&case);
        let site = store.sites()[0].clone();
        let step = quantizer.parameters().remove(0).1;
        let (_, source) = quantizer.gradient_sources().remove(0);
        quantizer.begin_step().unwrap();
        // used three times, as the head is on several levels
        let y = site.effective_weight(true);
        let grad_out = case.grad_out.reshape(y.size());
        for share in [0.5, 0.25, 0.25] {
            (site.effective_weight(true) * &grad_out * share).sum(Kind::Float).backward();
        }
        quantizer.end_step().unwrap();
        let grad = source.grad().reshape(case.x.size());
        let detached = y.detach().reshape(case.x.size());
        check(&case, "within a step", &detached, &grad, &step.grad());
        quantizer.assert_on_grid().unwrap();
        let codes = quantizer.codes().unwrap().remove(0);
        assert!(codes.grid.values(&codes.codes).unwrap().reshape(case.x.size()).equal(&case.y));
    }
}
