//! CA-SpaceNet's network, features, losses and one training step of the original (`13_caspacenet`).

use std::collections::{BTreeMap, HashMap};

use mqat::geom::{Camera, Vec3};
use mqat::io::picture;
use mqat::nn::Network;
use mqat::topology::caspacenet::{
    CaSpaceNet, FeatureTeacher, Features, NetworkConfig, erase, feature_loss,
};
use mqat::topology::wdr::{self, LossConfig, PoseNet, TargetConfig, losses};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use super::forward::{
    assert_near, assert_stats, constants, double, entries, formula_tensor, image, shape,
};
use super::loss::Setting;
use super::support::{Array, arrays, json, number, numbers, path};

fn file() -> Value {
    json("13_caspacenet/caspacenet.json")
}

fn key_list() -> Value {
    json("13_caspacenet/state_dict_student.json")
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap()
}

fn kinds(list: &Value) -> HashMap<String, String> {
    let pair = |e: &Value| (text(e, "key").to_owned(), text(e, "kind").to_owned());
    entries(list).iter().map(pair).collect()
}

fn config(file: &Value, shared_top: bool) -> NetworkConfig {
    let anchor_sizes = numbers(&file["anchor_sizes"]);
    let wdr = wdr::NetworkConfig { anchor_sizes, ..wdr::NetworkConfig::widedepth() };
    let strides: Vec<f64> = wdr.strides().into_iter().map(|s| s as f64).collect();
    assert_eq!(strides, numbers(&file["anchor_strides"]));
    NetworkConfig { shared_top, ..NetworkConfig::of(wdr) }
}

/// The network of a case with formula weights.
fn formula_net(file: &Value, case: &Value) -> CaSpaceNet {
    let kinds = kinds(&key_list());
    let prefix = text(file, "weight_name_prefix");
    let num_classes = case["n_class"].as_i64().unwrap() - 1;
    let config = config(file, case["shared"].as_bool().unwrap());
    let net = CaSpaceNet::blank(&config, num_classes, Device::Cpu).unwrap();
    tch::no_grad(|| {
        for (key, mut tensor) in net.state() {
            if let Some((a, b)) = constants(&kinds[&key], &tensor.size()) {
                tensor.copy_(&formula_tensor(&format!("{prefix}{key}"), &tensor.size(), a, b));
            }
        }
    });
    net
}

#[test]
fn formula_weights_give_the_originals_features_and_outputs() {
    let file = file();
    let cases = file["eval_cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    for case in cases {
        let id = text(case, "id");
        let net = formula_net(&file, case);
        let image = image(&file, case);
        let data = arrays(&format!("13_caspacenet/eval_{id}.safetensors"));
        tch::no_grad(|| {
            let features = net.features_t(&image, false);
            let Features { backbone, fpn, fpn_sub, difference } = &features;
            let all = [("backbone", backbone), ("fpn", fpn), ("fpn_sub", fpn_sub)];
            for (name, tensors) in all {
                assert_eq!(tensors.len(), case[name].as_array().unwrap().len());
                for (i, t) in tensors.iter().enumerate() {
                    let what = format!("case {id}: {name}.{i}");
                    assert_stats(t, &case[name][i], &what);
                    let Some(first) = data.get(&format!("{name}.{i}.first64")) else { continue };
                    let found = &double(t)[..first.f64().len()];
                    let abs_max = number(&case[name][i]["abs_max"]);
                    assert_near(found, &first.f64(), 1e-5 * abs_max, &what);
                }
            }
            for (i, t) in difference.iter().enumerate() {
                let what = format!("case {id}: difference.{i}");
                assert!((&fpn[i] - &fpn_sub[i]).equal(t), "{what}");
                let is_zero = t.abs().max().double_value(&[]) == 0.0;
                assert_eq!(is_zero, case["difference_is_exactly_zero"][i], "{what}");
                let scale = |name: &str| number(&case[name][i]["abs_max"]);
                let first = data[&format!("difference.{i}.first64")].f64();
                let tolerance = 1e-5 * (scale("fpn") + scale("fpn_sub"));
                assert_near(&double(t)[..first.len()], &first, tolerance, &what);
            }
            let outputs = net.forward_t(&image, false);
            for (name, tensors) in [("cls", &outputs.cls), ("reg", &outputs.reg)] {
                assert_eq!(tensors.len(), case[name].as_array().unwrap().len());
                for (i, t) in tensors.iter().enumerate() {
                    let what = format!("case {id}: {name}.{i}");
                    assert_eq!(t.size(), shape(&case[name][i]), "{what}");
                    let expected = data[&format!("{name}.{i}")].f64();
                    assert_near(&double(t), &expected, 1e-4, &what);
                }
            }
        });
    }
}

#[test]
fn keys_shapes_and_counts_are_the_originals() {
    let (file, list) = (file(), key_list());
    let num_classes = list["n_class"].as_i64().unwrap() - 1;
    let net = |shared_top| {
        CaSpaceNet::blank(&config(&file, shared_top), num_classes, Device::Cpu).unwrap()
    };
    let is_alias = |entry: &&Value| entry.get("same_tensor_as").is_some();
    for shared_top in [false, true] {
        let net = net(shared_top);
        let vars = net.store.vars();
        let expected: Vec<&Value> =
            entries(&list).iter().filter(|e| !(shared_top && is_alias(e))).collect();
        let keys: Vec<&str> = expected.iter().map(|e| text(e, "key")).collect();
        let found: Vec<&str> = vars.iter().map(|v| v.name.as_str()).collect();
        assert_eq!(found, keys);
        for (var, entry) in vars.iter().zip(&expected) {
            assert_eq!(var.tensor.size(), shape(entry), "{}", var.name);
            let parameter = entry["parameter"].as_bool().unwrap();
            assert_eq!(var.role == mqat::nn::Role::Parameter, parameter, "{}", var.name);
        }
        let total: usize = vars.iter().map(|v| v.tensor.numel()).sum();
        let count = if shared_top { "distinct_elements_shared" } else { "total_elements" };
        assert_eq!(total as u64, list[count].as_u64().unwrap());
        let aliases: BTreeMap<String, String> = net.aliases().into_iter().collect();
        let same = entries(&list).iter().filter(is_alias).filter(|_| shared_top);
        let same = same.map(|e| (text(e, "key").to_owned(), text(e, "same_tensor_as").to_owned()));
        assert_eq!(aliases, same.collect::<BTreeMap<_, _>>());
        let count = |part: &str| {
            let inside = |name: &str| name.split('.').next() == Some(part);
            let all: usize = (net.store.parameters().iter())
                .filter(|v| inside(&v.name))
                .map(|v| v.tensor.numel())
                .sum();
            let sites = net.store.sites();
            let weights = sites.iter().filter(|s| inside(&s.name)).map(|s| s.num_weights());
            (all as u64, weights.sum::<usize>() as u64)
        };
        let stored = |key: &str| {
            let part = &file["parameters"][key];
            (part["all"].as_u64().unwrap(), part["conv_weights"].as_u64().unwrap())
        };
        for part in ["backbone", "fpn", "head"] {
            assert_eq!(count(part), stored(part), "{part}");
        }
        let sub = if shared_top { "fpn_sub_without_shared_top" } else { "fpn_sub" };
        assert_eq!(count("fpn_sub"), stored(sub));
    }
    let list_of = |key: &str| -> Vec<String> {
        let all = file[key].as_array().unwrap();
        all.iter().map(|key| key.as_str().unwrap().to_owned()).collect()
    };
    let names = |state: Vec<(String, Tensor)>| -> Vec<String> {
        state.into_iter().map(|(name, _)| name).collect()
    };
    let own = net(false);
    let wdr = PoseNet::blank(&own.config().wdr, num_classes, Device::Cpu).unwrap();
    let known = names(wdr.state());
    let lacking: Vec<String> =
        names(own.state()).into_iter().filter(|key| !known.contains(key)).collect();
    assert_eq!(lacking, list_of("keys_of_the_student_that_a_wdr_checkpoint_lacks"));
    let teacher = FeatureTeacher::new(&own.config().wdr, &wdr.state(), Device::Cpu).unwrap();
    assert_eq!(names(teacher.state()), list_of("teacher_keys"));
}

#[test]
fn the_feature_loss_is_the_originals() {
    let stored = &file()["feature_loss"];
    let data = arrays("13_caspacenet/feature_loss.safetensors");
    let num_levels = stored["shapes"].as_array().unwrap().len();
    let tensor = |name: &str, i: usize| data[&format!("{name}.{i}")].tensor();
    let sub: Vec<Tensor> =
        (0..num_levels).map(|i| tensor("sub", i).set_requires_grad(true)).collect();
    let teacher: Vec<Tensor> =
        (0..num_levels).map(|i| tensor("teacher", i).set_requires_grad(true)).collect();
    let near = |found: &Tensor, expected: &Value, what: &str| {
        let expected = number(expected);
        assert_near(&[found.double_value(&[])], &[expected], 1e-6 * expected.max(1.0), what);
    };
    for i in 0..num_levels {
        let level = feature_loss(&sub[i..=i], &teacher[i..=i]);
        near(&level, &stored["per_level"][i], &format!("level {i}"));
    }
    let loss = feature_loss(&sub, &teacher);
    near(&loss, &stored["loss"], "sum");
    loss.backward();
    for (i, sub) in sub.iter().enumerate() {
        let expected = data[&format!("grad_sub.{i}")].f64();
        assert_near(&double(&sub.grad()), &expected, 1e-6, &format!("gradient of level {i}"));
    }
    assert!(teacher.iter().all(|t| !t.grad().defined()));
}

/// A teacher with the formula weights of its own names.
fn teacher(file: &Value) -> FeatureTeacher {
    let list = key_list();
    let prefix = text(file, "teacher_weight_name_prefix");
    let by_key: HashMap<&str, &Value> =
        entries(&list).iter().map(|entry| (text(entry, "key"), entry)).collect();
    let tensor = |key: &str| {
        let size = shape(by_key[key]);
        match constants(text(by_key[key], "kind"), &size) {
            Some((a, b)) => formula_tensor(&format!("{prefix}{key}"), &size, a, b),
            None => Tensor::zeros(&size, (Kind::Int64, Device::Cpu)),
        }
    };
    let keys = file["teacher_keys"].as_array().unwrap().iter().map(|key| key.as_str().unwrap());
    let state: Vec<(String, Tensor)> = keys.map(|key| (key.to_owned(), tensor(key))).collect();
    FeatureTeacher::new(&config(file, false).wdr, &state, Device::Cpu).unwrap()
}

fn setting(file: &Value, case: &Value) -> Setting {
    let size = shape(case);
    let classes = case["keypoints_3d_mm"].as_array().unwrap();
    let corners = classes.iter().map(|class| {
        let points = numbers(class);
        std::array::from_fn(|i| Vec3::from_row_slice(&points[3 * i..3 * i + 3]))
    });
    Setting {
        grid: wdr::AnchorGrid::new(&config(file, false).wdr, size[3] as usize, size[2] as usize),
        camera: Camera::from_row_major(&numbers(&case["internal_K"])).unwrap(),
        targets: TargetConfig {
            positive_num: case["positive_num"].as_u64().unwrap() as u32,
            positive_lambda: number(&case["positive_lambda"]),
        },
        losses: LossConfig {
            weight_cls: number(&case["loss_weight_cls"]),
            weight_reg: number(&case["loss_weight_reg"]),
            ..LossConfig::default()
        },
        corners: corners.collect(),
        diameters_mm: numbers(&case["mesh_diameters_mm"]),
    }
}

/// A gradient against its stored numbers, each 1e-3 of the largest; `complete` where all of it is stored.
fn assert_gradient(found: &Tensor, stored: &Value, complete: Option<&Array>, what: &str) {
    let largest = |t: &Tensor| t.abs().max().double_value(&[]);
    if stored.is_null() {
        assert!(!found.defined() || largest(found) == 0.0, "{what}: there is a gradient");
        return;
    }
    assert!(found.defined(), "{what}: there is no gradient");
    let values = double(found);
    let tolerance = 1e-3 * number(&stored["abs_max"]);
    let first = numbers(&stored["first4"]);
    assert_near(&values[..first.len()], &first, tolerance, &format!("{what}, first"));
    assert_near(&values[values.len() - 1..], &numbers(&stored["last"]), tolerance, what);
    assert_near(&[largest(found)], &[number(&stored["abs_max"])], tolerance, what);
    let sums = [values.iter().sum(), values.iter().map(|v| v.abs()).sum()];
    let tolerance_of_sums = 1e-3 * number(&stored["abs_sum"]);
    let expected = [number(&stored["sum"]), number(&stored["abs_sum"])];
    assert_near(&sums, &expected, tolerance_of_sums, &format!("{what}, sums"));
    if let Some(all) = complete {
        assert_near(&values, &all.f64(), tolerance, what);
    }
}

fn assert_running(net: &CaSpaceNet, stored: &Value) {
    for (key, stored) in stored.as_object().unwrap() {
        let values = double(&net.store.get(key).unwrap());
        let expected = number(&stored["sum_after"]);
        let sum: f64 = values.iter().sum();
        assert_near(&[sum], &[expected], 1e-5 * expected.abs() + 1e-4, key);
        let first = numbers(&stored["first4_after"]);
        assert_near(&values[..first.len()], &first, 1e-4, key);
    }
}

#[test]
fn a_training_step_is_the_originals() {
    let file = file();
    let cases = file["train_cases"].as_array().unwrap();
    assert!(!cases.is_empty());
    let teacher = teacher(&file);
    for case in cases {
        let id = text(case, "id");
        let data = arrays(&format!("13_caspacenet/train_{id}.safetensors"));
        let size = shape(case);
        let prefix = text(&file, "weight_name_prefix");
        let (a, b) = (number(&file["image_a"]), number(&file["image_b"]));
        let input =
            |key: &str| formula_tensor(&format!("{prefix}{}", text(&file, key)), &size, a, b);
        let features = teacher.features(&input("erased_image_name"));
        for (i, feature) in features.iter().enumerate() {
            let what = format!("{id}: teacher {i}");
            let stored = &case["teacher_features"][i];
            assert_stats(feature, stored, &what);
            let first = data[&format!("teacher_feature.{i}.first64")].f64();
            let tolerance = 1e-5 * number(&stored["abs_max"]);
            assert_near(&double(feature)[..first.len()], &first, tolerance, &what);
        }

        let net = formula_net(&file, case);
        let parameters = net.store.parameters();
        for var in parameters.iter().filter(|v| v.name.starts_with("backbone.")) {
            let _ = var.tensor.set_requires_grad(false);
        }
        let setting = setting(&file, case);
        let assignments = setting.assignments(&data, size[0] as usize);
        let weight = number(&case["loss_weight_sim"]);
        let image = input("image_name");
        let of = |train_losses: &dyn Fn(&Tensor, &Tensor, &Tensor)| {
            let sub = net.features_t(&image, true).fpn_sub;
            let feature = feature_loss(&sub, &features) * weight;
            let outputs = net.forward_t(&image, true);
            let losses =
                losses(&outputs, &setting.grid, &setting.camera, &assignments, &setting.losses);
            let losses = losses.unwrap();
            train_losses(&losses.cls, &losses.reg, &feature);
        };
        // One forward moves the statistics of the backbone.
        let _ = tch::no_grad(|| net.features_t(&image, true));
        assert_running(&net, &case["backbone_running_after_forward"]);
        of(&|cls, reg, feature| {
            for (name, loss) in [("loss_cls", cls), ("loss_reg", reg), ("loss_sim", feature)] {
                let expected = number(&case["losses"][name]);
                let what = format!("{id}: {name}");
                assert_near(&[loss.double_value(&[])], &[expected], 2e-5 * expected, &what);
            }
            (cls + reg + feature).backward();
        });
        let stored = case["gradients"].as_object().unwrap();
        let compare = |which: &str, name: &str| {
            for (key, stored) in stored {
                let complete = data.get(&format!("{name}.{key}"));
                let grad = net.store.get(key).unwrap().grad();
                assert_gradient(&grad, &stored[which], complete, &format!("{id}: {which} {key}"));
            }
        };
        compare("total", "grad");
        for var in &parameters {
            if var.tensor.grad().defined() {
                let _ = var.tensor.grad().zero_();
            }
        }
        of(&|_, _, feature| feature.backward());
        compare("sim", "grad_sim");
    }
}

#[test]
fn objects_are_erased_as_by_the_original() {
    let erased = &file()["erase"];
    let at = |key: &str| path(&format!("13_caspacenet/{}", text(erased, key)));
    let image = picture::read_rgb(&at("image")).unwrap();
    let mask = picture::read_mask(&at("mask")).unwrap();
    let (width, height) = (image.width() as usize, image.height() as usize);
    assert_eq!(numbers(&erased["kernel"]), [5.0, 5.0]);
    assert_eq!(number(&erased["value"]), 0.0);
    // Any value but 0 is an object's.
    for value in [1u8, 255] {
        let mask: Vec<u8> = mask.as_raw().iter().map(|&m| if m == 0 { 0 } else { value }).collect();
        let mut pixels = image.as_raw().clone();
        erase(&mut pixels, &mask, width, height);
        assert_eq!(&pixels, picture::read_rgb(&at("result")).unwrap().as_raw());
    }
}
