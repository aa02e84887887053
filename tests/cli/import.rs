//! `mqat import`, `export` and `inspect FILE`: weights of other programs in, and out again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use mqat::artifact::{Strictness, load_state_dict};
use mqat::io::tensors;
use mqat::nn::Network;
use mqat::topology::wdr::{NetworkConfig, PoseNet};
use serde_json::Value;
use tch::{Device, Kind, Tensor};

use crate::support::{Ran, SMALL, dataset, run, small};

/// The network of [`SMALL`].
fn config() -> NetworkConfig {
    let text = SMALL.iter().find_map(|arg| arg.strip_prefix("network.params=")).unwrap();
    serde_json::from_str(text).unwrap()
}

fn network_of(config: NetworkConfig, num_classes: i64) -> PoseNet {
    PoseNet::new(&config, num_classes, Device::Cpu, 3).unwrap()
}

fn network(num_classes: i64) -> PoseNet {
    network_of(config(), num_classes)
}

type State = Vec<(String, Tensor)>;

fn state(net: &PoseNet) -> State {
    net.state().into_iter().map(|(name, t)| (name, t.detach().copy())).collect()
}

/// The published wrapper around a network: all under `model.`, the backbone a second time.
fn wrapped(state: State) -> State {
    let mut all = Vec::new();
    for (name, tensor) in state {
        if name.starts_with("backbone.") {
            all.push((name.clone(), tensor.shallow_clone()));
        }
        all.push((format!("model.{name}"), tensor));
    }
    all
}

/// The FPN as the published INQ leaves it with 15 levels: divided by its scale, a fraction of it frozen.
fn with_inq(state: State, fraction: f64) -> State {
    let mut all = Vec::new();
    for (name, tensor) in state {
        let is_conv = name.contains("fpn.") && tensor.dim() == 4;
        if !is_conv {
            all.push((name, tensor));
            continue;
        }
        let scaled = &tensor / tensor.abs().max();
        // torch.linspace(-1, 1, 15), whose middle is not quite 0.
        let levels = Tensor::linspace(-1.0, 1.0, 15, (Kind::Float, Device::Cpu));
        let index = ((&scaled + 1.0) * 7.0).round().to_kind(Kind::Int64);
        let values = levels.index_select(0, &index.reshape([-1])).reshape(scaled.size());
        let n = scaled.numel() as i64;
        let frozen = Tensor::arange(n, (Kind::Int64, Device::Cpu))
            .lt((fraction * n as f64).round())
            .reshape(scaled.size());
        let nan = values.full_like(f64::NAN);
        all.push((format!("{name}_frozen"), values.where_self(&frozen, &nan)));
        all.push((format!("{name}_s"), Tensor::from_slice(&[1.0f32])));
        all.push((name, scaled));
    }
    all
}

fn write(dir: &Path, name: &str, state: &State) -> String {
    let path = dir.join(name);
    tensors::write(&path, state, &BTreeMap::new()).unwrap();
    path.display().to_string()
}

fn text(path: PathBuf) -> String {
    path.display().to_string()
}

/// The table of a file's evaluation.
fn table(args: &[&str]) -> Value {
    let places = ["--data", dataset().to_str().unwrap(), "--json"];
    let low = ["--set", "data.CONFIDENCE_TH=0.001"];
    let report = run(&[args, &places, &low].concat()).code(0).json();
    report["evaluations"][0]["report"].clone()
}

fn import(file: &str, out: &str, more: &[&str]) -> Ran {
    let no_device = |arg: &&&str| !["--device", "cpu"].contains(*arg);
    let config: Vec<&str> = SMALL.iter().filter(no_device).copied().collect();
    run(&[&["import", file, "--out", out, "--json"], &config[..], more].concat())
}

#[test]
fn a_quantized_wrapper_is_imported_evaluated_and_exported() {
    let dir = tempfile::tempdir().unwrap();
    let published = wrapped(with_inq(state(&network(1)), 1.0));
    let file = write(dir.path(), "published.safetensors", &published);
    let out = text(dir.path().join("imported.safetensors"));
    let report = import(&file, &out, &[]).code(0).json();
    assert_eq!(report["quantized"], serde_json::json!(["fpn 4-bit (15 levels)"]));
    let load = &report["load"];
    assert_eq!(load["num_matched"], network(1).state().len());
    assert!(load["num_doubled"].as_u64().unwrap() > 10, "{load}");
    assert!(load["key_form"].as_str().unwrap().contains("model."), "{load}");
    let layers = load["inq"].as_array().unwrap();
    assert_eq!(layers.len(), 8);
    for layer in layers {
        assert_eq!(
            (&layer["frozen_fraction"], &layer["grid"]["num_levels"]),
            (&1.0.into(), &15.into())
        );
        assert_eq!(layer["grid"]["max_level"], 1.0, "{layer}");
        assert!(layer["largest_shift"].as_f64().is_none_or(|s| s < 1e-6), "{layer}");
    }
    import(&file, &out, &[]).code(1).says(&["already exists"]);

    // The checkpoint carries its config and quantizers, and scores as the published file itself.
    let imported = table(&["test", "--device", "cpu", "--checkpoint", &out]);
    assert_eq!(imported["name"], "fpn 4-bit (15 levels)");
    let direct = table(&small("test", &["--checkpoint", &file]));
    assert_eq!((&direct["name"], &direct["table"]), (&imported["name"], &imported["table"]));

    let seen = run(&["inspect", &out, "--json"]).code(0).json();
    assert_eq!(
        (&seen["kind"], &seen["layers"].as_array().unwrap().len()),
        (&"checkpoint".into(), &8)
    );
    assert_eq!(seen["layers"][0]["frozen_fraction"], 1.0);
    assert!(seen["provenance"]["imported"]["file"].as_str().unwrap().contains("published"));
    let seen = run(&["inspect", &file, "--json"]).code(0).json();
    assert_eq!((&seen["kind"], seen["inq"].as_array().unwrap().len()), (&"safetensors".into(), 8));
    assert_eq!(seen["network"]["num_classes"], 1);
    let counts: usize = network(1).store.parameters().iter().map(|v| v.tensor.numel()).sum();
    let modules = seen["modules"].as_array().unwrap();
    let total: u64 = modules.iter().map(|m| m["num_parameters"].as_u64().unwrap()).sum();
    assert_eq!(total as usize, counts);

    let weights = text(dir.path().join("weights.safetensors"));
    run(&["export", &out, "--out", &weights, "--weights", "float"])
        .code(1)
        .says(&["no float weights any more", "leave --weights float out"]);
    run(&["export", &out, "--out", &weights]).code(0);
    let bare = tensors::read(Path::new(&weights)).unwrap();
    let names: Vec<&str> = bare.tensors.iter().map(|(n, _)| n.as_str()).collect();
    let expected = network(1).state();
    assert_eq!(names, expected.iter().map(|(n, _)| n.as_str()).collect::<Vec<_>>());
    assert_eq!(table(&small("test", &["--checkpoint", &weights]))["table"], imported["table"]);
    let pth = text(dir.path().join("weights.pth"));
    run(&["export", &out, "--out", &pth, "--format", "pth"]).code(0);
    let read = mqat::io::pth::read(Path::new(&pth)).unwrap();
    for (key, value) in read.value.as_dict().unwrap() {
        let expected = bare.get(key.as_str().unwrap()).unwrap();
        assert!(value.as_tensor().unwrap().equal(expected), "{key:?}");
    }
    assert_eq!(read.value.as_dict().unwrap().len(), bare.tensors.len());
    assert_eq!(table(&small("test", &["--checkpoint", &pth]))["table"], imported["table"]);
}

#[test]
fn an_imported_network_computes_with_the_stored_form() {
    let published = wrapped(with_inq(state(&network(1)), 0.5));
    let net = PoseNet::blank(&config(), 1, Device::Cpu).unwrap();
    let loaded = load_state_dict(published.clone_all(), &net, Strictness::Strict).unwrap();
    assert_eq!(loaded.quantizers.len(), 1);
    let site = &loaded.quantizers[0].report()[0];
    assert!((site.frozen_fraction - 0.5).abs() < 0.01 && site.num_levels == Some(15), "{site:?}");
    for (key, frozen) in published.iter().filter(|(k, _)| k.ends_with("_frozen")) {
        let key = key.strip_suffix("_frozen").unwrap();
        let stored = &published.iter().find(|(k, _)| k == key).unwrap().1;
        let expected = frozen.where_self(&frozen.isnan().logical_not(), stored);
        let weight = net.store.get(key.strip_prefix("model.").unwrap()).unwrap();
        let off = (weight - expected).abs().max().double_value(&[]);
        assert!(off < 1e-7, "{key}: {off:e}");
    }
}

trait CloneAll {
    fn clone_all(&self) -> State;
}

impl CloneAll for State {
    fn clone_all(&self) -> State {
        self.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect()
    }
}

#[test]
fn files_that_do_not_fit_say_what_to_change() {
    let dir = tempfile::tempdir().unwrap();
    let out = text(dir.path().join("out.safetensors"));
    let three = write(dir.path(), "three.safetensors", &state(&network(3)));
    import(&three, &out, &[])
        .code(1)
        .says(&["head.cls_logits.weight knows 3", "data.N_CLASS to 4"]);
    run(&["import", &three, "--out", &out, "--topology", "WidedepthTiny"])
        .code(1)
        .says(&["another topology", "network.params.stem_channels=4"]);

    let mut twice = wrapped(state(&network(1)));
    let place = twice.iter().position(|(n, _)| n.starts_with("model.backbone.")).unwrap();
    twice[place].1 = &twice[place].1 + 1.0;
    let twice = write(dir.path(), "twice.safetensors", &twice);
    import(&twice, &out, &[]).code(1).says(&["differ in the file", "at index 0", "--loose"]);

    let note = text(dir.path().join("notes.pth"));
    fs::write(&note, "these are not weights").unwrap();
    import(&note, &out, &[]).code(1).says(&["notes.pth is not a file of weights", "PyTorch"]);
    assert!(!Path::new(&out).exists());
}

#[test]
fn a_file_without_a_module_is_taken_only_when_asked() {
    let dir = tempfile::tempdir().unwrap();
    let mut part = state(&network(1));
    part.retain(|(name, _)| !name.starts_with("fpn."));
    let part = write(dir.path(), "part.safetensors", &part);
    let data = dataset().to_str().unwrap();
    let test = |more: &[&str]| {
        run(&small("test", &[&["--checkpoint", &part, "--data", data], more].concat()))
    };
    test(&[]).code(1).says(&["16 missing", "fpn.inner_convs.2.weight"]);
    test(&["--loose"])
        .code(0)
        .says(&["16 tensors of the network are NOT from", "keep their initial values"]);

    let logs = text(dir.path().join("logs"));
    let url = format!("experiment.url={part}");
    let start =
        ["--set", "experiment.pretrained=true", "--set", &url, "--data", data, "--logs", &logs];
    let train =
        |more: &[&str]| run(&small("train", &[&start[..], &["--max-steps", "1"], more].concat()));
    train(&[]).code(1).says(&["experiment.url", "16 missing"]);
    train(&["--loose"]).code(0).says(&["NOT from"]);
    let quantized =
        write(dir.path(), "quantized.safetensors", &wrapped(with_inq(state(&network(1)), 1.0)));
    let url = format!("experiment.url={quantized}");
    train(&["--set", &url]).code(1).says(&["is quantized already"]);
}
