//! State dicts in the forms of the published code: every key list loads, and computes what the original did.

use std::collections::HashMap;

use mqat::artifact::{
    FileKind, Strictness, assembled_weight, load, load_state_dict, recognise_grid,
};
use mqat::commands::inspect_file;
use mqat::topology::keys;
use mqat::topology::wdr::{NetworkConfig, PoseNet};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::forward::{assert_near, constants, double, entries, formula_tensor, image, shape};
use super::support::{arrays, golden_dir, json, number, path};

/// The key lists of wrapped and bare networks.
fn key_lists() -> Vec<String> {
    let files = std::fs::read_dir(golden_dir().join("01_wdr_forward")).unwrap();
    let mut names: Vec<String> = files
        .map(|f| f.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with("state_dict_") && n.ends_with(".json"))
        .collect();
    names.sort();
    names
}

/// Tensors of a key list: formula values by bare name. Of every second INQ layer half the weights are frozen, and what
/// is stored at their places is not what the layer computes with; the other layers are not begun.
struct StateDicts {
    prefix: String,
    /// By formula name and shape; doubled keys share their storage, as in the original's files.
    made: HashMap<(String, Vec<i64>), Tensor>,
}

impl StateDicts {
    fn formula(&mut self, bare: &str, size: &[i64], kind: &str) -> Option<Tensor> {
        let (a, b) = constants(kind, size)?;
        let name = format!("{}{bare}", self.prefix);
        let made = self.made.entry((name.clone(), size.to_vec()));
        Some(made.or_insert_with(|| formula_tensor(&name, size, a, b)).shallow_clone())
    }

    fn make(&mut self, list: &Value, anchors: &PoseNet) -> Vec<(String, Tensor)> {
        let entries = entries(list);
        let layers: Vec<String> = entries
            .iter()
            .filter_map(|e| keys::bare(e["key"].as_str().unwrap()).strip_suffix("_frozen"))
            .map(str::to_owned)
            .collect();
        let begun = |weight: &str| {
            layers.iter().position(|layer| layer == weight).is_some_and(|i| i % 2 == 1)
        };
        let half = |size: &[i64]| {
            let n = size.iter().product::<i64>();
            Tensor::arange(n, (Kind::Int64, Device::Cpu)).remainder(2).eq(0).reshape(size)
        };
        let mut state = Vec::new();
        for entry in entries {
            let key = entry["key"].as_str().unwrap();
            let (bare, size) = (keys::bare(key), shape(entry));
            let kind = entry["kind"].as_str().unwrap();
            let tensor = match kind {
                "inq_weight_frozen" => {
                    let weight = bare.strip_suffix("_frozen").unwrap();
                    let nan = Tensor::full(&size, f64::NAN, (Kind::Float, Device::Cpu));
                    match begun(weight) {
                        true => {
                            let values = self.formula(weight, &size, "conv_weight").unwrap();
                            values.where_self(&half(&size), &nan)
                        }
                        false => nan,
                    }
                }
                "inq_weight_s" => Tensor::ones(&size, (Kind::Float, Device::Cpu)),
                "counter" => Tensor::from(7i64),
                "anchor" => anchors.store.get(bare).unwrap(),
                _ => {
                    let values = self.formula(bare, &size, kind).unwrap();
                    match begun(bare) {
                        true => {
                            let stale = Tensor::full(&size, 99.0, (Kind::Float, Device::Cpu));
                            stale.where_self(&half(&size), &values)
                        }
                        false => values,
                    }
                }
            };
            state.push((key.to_owned(), tensor));
        }
        state
    }
}

#[test]
fn every_form_of_keys_gives_the_originals_outputs() {
    let cases = json("01_wdr_forward/cases.json");
    let mut dicts = StateDicts {
        prefix: cases["weight_name_prefix"].as_str().unwrap().to_owned(),
        made: HashMap::new(),
    };
    let lists = key_lists();
    assert!(lists.iter().any(|n| n.starts_with("state_dict_wrapper")), "{lists:?}");
    let config = NetworkConfig::widedepth();
    for name in lists {
        let list = json(&format!("01_wdr_forward/{name}"));
        let logits = entries(&list)
            .iter()
            .find(|e| keys::bare(e["key"].as_str().unwrap()) == "head.cls_logits.weight");
        let num_classes = shape(logits.unwrap())[0];
        let net = PoseNet::blank(&config, num_classes, Device::Cpu).unwrap();
        let state = dicts.make(&list, &net);
        let (num_keys, num_inq) =
            (state.len(), state.iter().filter(|(k, _)| k.ends_with("weight_s")).count());
        let loaded = load_state_dict(state, &net, Strictness::Strict)
            .unwrap_or_else(|e| panic!("{name}: {e:#}"));
        let report = &loaded.report;
        assert_eq!(report.num_matched, net.store.vars().len(), "{name}");
        assert!(report.missing.is_empty() && report.left_over.is_empty(), "{name}: {report:?}");
        assert!(report.converted.is_empty() && report.mismatched.is_empty(), "{name}: {report:?}");
        // INQ layers of a doubled module are listed twice.
        assert_eq!(num_keys, report.num_matched + report.num_doubled + inq_keys(&list), "{name}");
        assert!(report.inq.len() <= num_inq && (num_inq == 0) == report.inq.is_empty(), "{name}");
        for case in cases["cases"].as_array().unwrap() {
            if case["n_class"].as_i64().unwrap() - 1 != num_classes {
                continue;
            }
            let id = case["id"].as_str().unwrap();
            let data = arrays(&format!("01_wdr_forward/case_{id}.safetensors"));
            let outputs = tch::no_grad(|| net.forward_t(&image(&cases, case), false));
            for (what, tensors) in [("cls", &outputs.cls), ("reg", &outputs.reg)] {
                for (i, t) in tensors.iter().enumerate() {
                    let expected = data[&format!("{what}.{i}")].f64();
                    let what = format!("{name}, case {id}: {what}.{i}");
                    assert_near(&double(t), &expected, 1e-4, &what);
                }
            }
        }
    }
}

/// Extras of INQ layers, those of doubled ones counted once.
fn inq_keys(list: &Value) -> usize {
    let mut bare: Vec<&str> = entries(list)
        .iter()
        .map(|e| keys::bare(e["key"].as_str().unwrap()))
        .filter(|key| keys::inq_extra(key).is_some())
        .collect();
    bare.sort_unstable();
    bare.dedup();
    bare.len()
}

#[test]
fn a_stored_inq_layer_computes_what_the_original_layer_did() {
    let all = arrays("05_inq/inq.safetensors");
    let tensor = |name: &str| all[name].tensor();
    let mut steps = 0;
    for k in 0.. {
        let Some(output) = all.get(&format!("example.output.{k}")) else { break };
        steps += 1;
        let frozen = tensor(&format!("example.frozen_with_nan.{k}"));
        let weight = assembled_weight(&tensor("example.w_rescaled"), &frozen).unwrap();
        let none: Option<&Tensor> = None;
        let y = tensor("example.input").conv2d(&weight, none, [1, 1], [0, 0], [1, 1], 1);
        assert_near(&double(&y), &output.f64(), 1e-5, &format!("example, step {k}"));
    }
    assert!(steps > 0);
    let mut moved = 0;
    for k in 0.. {
        let Some(assembled) = all.get(&format!("moving.assembled.{k}")) else { break };
        moved += 1;
        let frozen = tensor(&format!("moving.frozen_with_nan.{k}"));
        let found = assembled_weight(&tensor(&format!("moving.w_before.{k}")), &frozen).unwrap();
        assert!(found.equal(&assembled.tensor()), "moving, step {k}");
    }
    assert!(moved > 0);
}

#[test]
fn the_originals_levels_are_recognised() {
    let file = json("05_inq/inq.json");
    let all = arrays("05_inq/inq.safetensors");
    let cases = file["cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let (weight, method) = (case["weight"].as_str().unwrap(), case["method"].as_str().unwrap());
        let n_levels = case["n_levels"].as_u64().unwrap() as u32;
        let name = format!("q.{weight}.{method}.{n_levels}");
        let scale = number(&case["s_param"]) as f32;
        let q = all[&name].tensor();
        let mut values: Vec<f32> = Vec::try_from(q.reshape([-1])).unwrap();
        values.sort_by(f32::total_cmp);
        values.dedup();
        let grid = recognise_grid(&values, Some(scale)).unwrap_or_else(|| panic!("{name}"));
        // Fewer where not every level is in use; 0 alone is not a grid of its own.
        let found = grid.spacing().num_levels();
        assert!(found <= n_levels.max(3), "{name}: {found} levels");
        let off = (grid.nearest(&q).unwrap() - &q).abs().max().double_value(&[]);
        assert!(off <= 1.5e-7 * f64::from(scale), "{name}: off by {off:e}");
    }
}

#[test]
fn nested_pytorch_files_show_their_network_and_refuse_another() {
    let config = NetworkConfig::widedepth_tiny();
    let files = json("12_checkpoints/good.json");
    let mut num_nested = 0;
    for (name, file) in files.as_object().unwrap() {
        let Some(parts) = file["content"]["dict"].as_array() else { continue };
        // A part that is a dict of tensors under a name that programs give the network.
        let Some(member) =
            parts.iter().find(|p| p[0] == "network" || p[0] == "model").map(|p| &p[0])
        else {
            continue;
        };
        num_nested += 1;
        let at = path(&format!("12_checkpoints/{name}"));
        let seen = inspect_file(&at).unwrap_or_else(|e| panic!("{name}: {e:#}"));
        assert_eq!(seen.kind, FileKind::PyTorch, "{name}");
        assert_eq!(seen.member.as_deref(), member.as_str(), "{name}");
        let part = parts.iter().find(|p| p[0] == *member).unwrap();
        let tensors = part[1]["dict"].as_array().unwrap();
        assert_eq!(seen.tensors.len(), tensors.len(), "{name}");
        for (found, expected) in seen.tensors.iter().zip(tensors) {
            assert_eq!(found.name, expected[0].as_str().unwrap(), "{name}");
            assert_eq!(found.dtype, expected[1]["tensor"]["dtype"].as_str().unwrap(), "{name}");
            assert_eq!(found.shape, shape(&expected[1]["tensor"]), "{name}");
        }
        assert_eq!(seen.other_members.len(), parts.len() - 1, "{name}");
        for layer in &seen.inq {
            let key = format!("{}.weight_frozen", layer.name);
            let frozen = tensors.iter().find(|t| t[0] == key.as_str()).unwrap();
            let values = frozen[1]["tensor"]["values"].as_array().unwrap();
            let numbers = values.iter().filter(|v| **v != "nan").count();
            let fraction = numbers as f64 / values.len() as f64;
            assert!((layer.frozen_fraction - fraction).abs() < 1e-12, "{name}: {layer:?}");
        }
        let net = PoseNet::blank(&config, 1, Device::Cpu).unwrap();
        let error = load(&at, &net, Strictness::Strict).map(|_| ()).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains(name) && text.contains("keys are not those"), "{text}");
    }
    assert!(num_nested > 0);
}
