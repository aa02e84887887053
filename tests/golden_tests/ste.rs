//! `06_ste`: values, gradients and monitoring of the original activation quantizer.

use std::collections::BTreeMap;

use mqat::nn::{ActivationSlot, Site, SiteKind};
use mqat::quant::ste::{SteActivation, fake_quantize};
use mqat::quant::{ActivationContext, Spacing};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::support::{Array, arrays, json, number};

/// README of the reference data, 06: times abs_max.
const TOLERANCE: f64 = 1e-6;

fn slot(n_levels: u32, quant_start_epoch: u32) -> SteActivation {
    let weight = Tensor::zeros([1, 1, 1, 1], (Kind::Float, Device::Cpu));
    let spacing = Spacing::uniform(None, Some(n_levels)).unwrap();
    let context = ActivationContext {
        signed: spacing.clone(),
        former_signed: None,
        unsigned: spacing,
        quant_start_epoch,
        seed: 0,
    };
    SteActivation::new(&Site::new("m.conv".to_owned(), SiteKind::Conv, &weight), &context)
}

fn array<'a>(all: &'a BTreeMap<String, Array>, name: &str) -> &'a Array {
    all.get(name).unwrap_or_else(|| panic!("{name} is missing"))
}

fn max_diff(a: &Tensor, b: &Tensor) -> f64 {
    (a - b).abs().max().double_value(&[])
}

#[test]
fn values_and_gradients_are_those_of_the_original() {
    let (meta, all) = (json("06_ste/ste.json"), arrays("06_ste/ste.safetensors"));
    for case in meta["cases"].as_array().unwrap() {
        let (key, n) = (case["key"].as_str().unwrap(), case["n_levels"].as_u64().unwrap() as u32);
        let abs_max = number(&case["abs_max_f32"]);
        for points in ["formula", "special"] {
            let input = |name: &str| match points {
                "special" => array(&all, &format!("{name}.{key}.special")).tensor(),
                _ => array(&all, name).tensor(),
            };
            let (x, grad_out) = (input("x").set_requires_grad(true), input("grad_out"));
            let expected = array(&all, &format!("y.{key}.{points}")).tensor();
            let expected_grad = array(&all, &format!("grad_x.{key}.{points}")).tensor();

            let quantizer = slot(n, 1);
            quantizer.set_abs_max(abs_max as f32).unwrap();
            let y = quantizer.forward(&x, true);
            // the same order of f32 operations: not even rounding limits may differ
            let diff = max_diff(&y, &expected);
            assert!(diff <= TOLERANCE * abs_max, "{key} {points}: y is off by {diff}");
            let loss = (&y * &grad_out).sum(Kind::Float);
            let grad = &Tensor::run_backward(&[loss], &[&x], false, false)[0];
            // ours is grad_out or 0 exactly, theirs went through the division and product by the range
            let relative = (grad - &expected_grad).abs() / grad_out.abs().clamp_min(1.0);
            let diff = relative.max().double_value(&[]);
            assert!(diff <= TOLERANCE, "{key} {points}: the gradient is off by {diff}");

            // with a gradient or without: the same bits
            let detached = quantizer.forward(&x.detach(), false);
            assert!(detached.equal(&y), "{key} {points}");
            let distinct = detached.reshape([-1]).unique_dim(0, true, false, false).0.size()[0];
            assert!(distinct as u64 <= u64::from(n));
            if points == "formula" {
                assert_eq!(distinct as u64, case["distinct_outputs"].as_u64().unwrap(), "{key}");
            }
        }
    }
}

#[test]
fn monitoring_follows_the_original_over_the_epochs() {
    let (meta, all) = (json("06_ste/ste.json"), arrays("06_ste/ste.safetensors"));
    for case in meta["monitoring"].as_array().unwrap() {
        let start = case["quant_start_epoch"].as_u64().unwrap() as u32;
        let n = case["n_levels"].as_u64().unwrap() as u32;
        let quantizer = slot(n, start);
        let mut last_epoch = None;
        for entry in case["sequence"].as_array().unwrap() {
            let epoch = entry["epoch"].as_u64().unwrap() as u32;
            let flag = |name: &str| entry[name].as_bool().unwrap();
            if last_epoch != Some(epoch) {
                if let Some(last) = last_epoch {
                    quantizer.end_epoch(last).unwrap();
                }
                quantizer.start_epoch(epoch).unwrap();
                last_epoch = Some(epoch);
                if start == 0 && epoch == 0 {
                    // the original begins such a stage with the range -1..1 whatever the data
                    quantizer.set_abs_max(number(&entry["abs_max_after"]) as f32).unwrap();
                }
            }
            let at = format!("{start}.{epoch}.{}", entry["batch"]);
            let x = array(&all, &format!("monitor.{at}.x")).tensor();
            // evaluation in between records nothing
            let _ = quantizer.forward(&(&x * 100.0), false);
            let y = quantizer.forward(&x, true);
            let abs_max = number(&entry["abs_max_after"]);
            let diff = max_diff(&y, &array(&all, &format!("monitor.{at}.y")).tensor());
            assert!(diff <= TOLERANCE * abs_max, "{at}: y is off by {diff}");
            assert_eq!(y.equal(&x), !flag("started"), "{at}: passed through");
            if flag("monitoring") || flag("started") {
                assert_eq!(f64::from(quantizer.abs_max()), abs_max, "{at}");
            }
        }
    }
}

#[test]
fn a_range_of_zero_passes_inputs_through_instead_of_dividing_by_it() {
    let case = json("06_ste/ste.json")["abs_max_zero"].clone();
    // the original: 0 / 0
    assert!(number(&case["output"][0]).is_nan());
    let quantizer = slot(15, 1);
    assert!(quantizer.set_abs_max(0.0).is_err());
    quantizer.start_epoch(0).unwrap();
    let zeros = Tensor::zeros([4], (Kind::Float, Device::Cpu));
    let _ = quantizer.forward(&zeros, true);
    quantizer.end_epoch(0).unwrap();
    quantizer.start_epoch(1).unwrap();
    let values: Vec<f32> =
        case["input"].as_array().unwrap().iter().map(|v: &Value| number(v) as f32).collect();
    let x = Tensor::from_slice(&values);
    assert!(quantizer.forward(&x, true).equal(&x));
}

#[test]
fn the_range_starts_from_the_data_and_never_from_one() {
    // the original, without the controller's call, starts at 1 and quantizes with that
    let case = json("06_ste/ste.json")["monitoring_without_controller_step"].clone();
    let largest = number(&case["input_abs_max"]);
    assert!(number(&case["abs_max_after"]) > largest);
    let quantizer = slot(15, case["quant_start_epoch"].as_u64().unwrap() as u32);
    quantizer.start_epoch(0).unwrap();
    let x = Tensor::from_slice(&[largest as f32 / 2.0, -largest as f32]);
    assert!(quantizer.forward(&x, true).equal(&x));
    assert_eq!(f64::from(quantizer.abs_max()), largest);
}

#[test]
fn quantizing_twice_changes_nothing() {
    let all = arrays("06_ste/ste.safetensors");
    let x = array(&all, "x").tensor();
    for n in [2, 3, 15, 255] {
        let range = Tensor::from(0.7f32);
        let once = fake_quantize(&x, &range, n);
        assert!(fake_quantize(&once, &range, n).equal(&once), "{n} levels");
    }
}
