//! The network against the original's outputs and key lists (`01_wdr_forward`).

use std::collections::HashMap;

use mqat::nn::Network;
use mqat::topology::wdr::{NetworkConfig, PoseNet};
use rayon::prelude::*;
use serde_json::{Value, json as json_value};
use tch::{Device, Kind, Tensor};

use super::support::{arrays, formula_value, golden_dir, json, number, numbers};

/// The constants (a, b) of a kind of tensor (README, "Deterministic tensors"); none for what is not touched.
pub(super) fn constants(kind: &str, shape: &[i64]) -> Option<(f64, f64)> {
    let fan_in = shape.iter().skip(1).product::<i64>() as f64;
    match kind {
        "conv_weight" | "linear_weight" => Some(((3.0 / fan_in).sqrt(), 0.0)),
        "conv_bias" | "linear_bias" => Some((0.05, 0.0)),
        "norm_weight" | "running_var" | "scale" => Some((0.2, 1.0)),
        "norm_bias" | "running_mean" => Some((0.1, 0.0)),
        _ => None,
    }
}

pub(super) fn formula_tensor(name: &str, shape: &[i64], a: f64, b: f64) -> Tensor {
    let len = shape.iter().product::<i64>() as u64;
    let values: Vec<f32> = (0..len).into_par_iter().map(|i| formula_value(name, i, a, b)).collect();
    Tensor::from_slice(&values).reshape(shape)
}

pub(super) fn entries(list: &Value) -> &Vec<Value> {
    list["entries"].as_array().unwrap()
}

pub(super) fn shape(entry: &Value) -> Vec<i64> {
    entry["shape"].as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).collect()
}

/// A network of the published shape with formula weights, made from the key list `state_dict_bare.json`.
fn formula_net(num_classes: i64, prefix: &str, kinds: &HashMap<String, String>) -> PoseNet {
    let net = PoseNet::blank(&NetworkConfig::widedepth(), num_classes, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (key, mut tensor) in net.state() {
            if let Some((a, b)) = constants(&kinds[&key], &tensor.size()) {
                tensor.copy_(&formula_tensor(&format!("{prefix}{key}"), &tensor.size(), a, b));
            }
        }
    });
    net
}

pub(super) fn double(t: &Tensor) -> Vec<f64> {
    Vec::try_from(t.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

/// As f32, which stored f32 values come back as whatever the last bit of the JSON reader is.
fn singles(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&v| v as f32).collect()
}

pub(super) fn assert_near(found: &[f64], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            (f - e).abs() <= tolerance,
            "{what}[{i}]: {f}, expected {e} (tolerance {tolerance})"
        );
    }
}

/// Shape, mean, deviation and the extremes of a tensor against the stored ones.
pub(super) fn assert_stats(t: &Tensor, stats: &Value, what: &str) {
    assert_eq!(t.size(), shape(stats), "{what}");
    let abs_max = number(&stats["abs_max"]);
    let v = double(t);
    let mean = v.iter().sum::<f64>() / v.len() as f64;
    let std = (v.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / v.len() as f64).sqrt();
    let max = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let min = v.iter().copied().fold(f64::INFINITY, f64::min);
    for (name, found) in [("mean", mean), ("std", std), ("max", max), ("min", min)] {
        assert_near(&[found], &[number(&stats[name])], 1e-5 * abs_max, &format!("{what} {name}"));
    }
}

/// The image of a case.
pub(super) fn image(file: &Value, case: &Value) -> Tensor {
    let prefix = file["weight_name_prefix"].as_str().unwrap();
    let image_name = file["image_name"].as_str().unwrap();
    let size: Vec<i64> =
        case["input"].as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).collect();
    let (a, b) = (number(&file["image_a"]), number(&file["image_b"]));
    let first4 = singles(&numbers(&case["image_first4"]));
    // The name may be given with the prefix or without.
    [image_name.to_owned(), format!("{prefix}{image_name}")]
        .iter()
        .map(|name| formula_tensor(name, &size, a, b))
        .find(|image| singles(&double(&image.flatten(0, -1).narrow(0, 0, 4))) == first4)
        .expect("an image of the stated first values")
}

#[test]
fn formula_weights_give_the_originals_outputs() {
    let file = json("01_wdr_forward/cases.json");
    let list = json("01_wdr_forward/state_dict_bare.json");
    let kinds: HashMap<String, String> = entries(&list)
        .iter()
        .map(|e| (e["key"].as_str().unwrap().to_owned(), e["kind"].as_str().unwrap().to_owned()))
        .collect();
    let prefix = file["weight_name_prefix"].as_str().unwrap();
    let cases = file["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    let mut net: Option<PoseNet> = None;
    for case in cases {
        let id = case["id"].as_str().unwrap();
        let num_classes = case["n_class"].as_i64().unwrap() - 1;
        if net.as_ref().is_none_or(|net| net.num_classes() != num_classes) {
            net = Some(formula_net(num_classes, prefix, &kinds));
        }
        let net = net.as_ref().unwrap();
        let image = image(&file, case);
        let data = arrays(&format!("01_wdr_forward/case_{id}.safetensors"));
        tch::no_grad(|| {
            let features = net.features_t(&image, false);
            for (name, tensors) in [("backbone", &features.backbone), ("fpn", &features.fpn)] {
                assert_eq!(tensors.len(), case[name].as_array().unwrap().len());
                for (i, t) in tensors.iter().enumerate() {
                    let what = format!("case {id}: {name}.{i}");
                    assert_stats(t, &case[name][i], &what);
                    let first = data[&format!("{name}.{i}.first64")].f64();
                    let found = &double(t)[..first.len()];
                    let abs_max = number(&case[name][i]["abs_max"]);
                    assert_near(found, &first, 1e-5 * abs_max, &what);
                }
            }
            let contiguous = net.forward_t(&image, false);
            let nhwc = image.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
            let channels_last = net.forward_t(&nhwc, false);
            for outputs in [contiguous, channels_last] {
                for (name, tensors) in [("cls", &outputs.cls), ("reg", &outputs.reg)] {
                    for (i, t) in tensors.iter().enumerate() {
                        let what = format!("case {id}: {name}.{i}");
                        assert_stats(t, &case[name][i], &what);
                        let expected = data[&format!("{name}.{i}")].f64();
                        assert_near(&double(t), &expected, 1e-4, &what);
                    }
                }
            }
        });
    }
}

#[test]
fn keys_shapes_and_order_are_the_originals() {
    let mut num_lists = 0;
    for file in std::fs::read_dir(golden_dir().join("01_wdr_forward")).unwrap() {
        let name = file.unwrap().file_name().into_string().unwrap();
        if !(name.starts_with("state_dict_bare") && name.ends_with(".json")) {
            continue;
        }
        num_lists += 1;
        let list = json(&format!("01_wdr_forward/{name}"));
        let num_classes = list["n_class"].as_i64().unwrap() - 1;
        let prefix = list["weight_name_prefix"].as_str().unwrap();
        let net = PoseNet::blank(&NetworkConfig::widedepth(), num_classes, Device::Cpu).unwrap();
        let vars = net.store.vars();
        let keys: Vec<&str> = entries(&list).iter().map(|e| e["key"].as_str().unwrap()).collect();
        let found: Vec<&str> = vars.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(found, keys, "{name}");
        assert_eq!(keys.len(), list["count"].as_u64().unwrap() as usize);
        let total: usize = vars.iter().map(|v| v.tensor.numel()).sum();
        assert_eq!(total as u64, list["total_elements"].as_u64().unwrap(), "{name}");
        for (var, entry) in vars.iter().zip(entries(&list)) {
            let what = format!("{name}: {}", var.name);
            assert_eq!(var.tensor.size(), shape(entry), "{what}");
            let kind = if entry["dtype"] == "int64" { Kind::Int64 } else { Kind::Float };
            assert_eq!(var.tensor.kind(), kind, "{what}");
            let parameter = entry["parameter"].as_bool().unwrap();
            assert_eq!(var.role == mqat::nn::Role::Parameter, parameter, "{what}");
            assert_eq!(var.tensor.requires_grad(), parameter, "{what}");
            // The constants that the forward test derives from kind and shape.
            let derived = constants(entry["kind"].as_str().unwrap(), &shape(entry));
            if let Some((a, b)) = derived {
                // The reader of JSON rounds twice.
                assert_near(
                    &[a, b],
                    &numbers(&json_value!([entry["a"], entry["b"]])),
                    1e-15,
                    &what,
                );
                let first4 = singles(&numbers(&entry["first4"]));
                let own: Vec<f32> = (0..first4.len())
                    .map(|i| formula_value(&format!("{prefix}{}", var.name), i as u64, a, b))
                    .collect();
                assert_eq!(own, first4, "{what}");
            }
        }
    }
    assert!(num_lists > 0, "there is no state_dict_bare*.json");
}
