//! Files of `torch.save`, bit for bit, and hostile files refused.

use mqat::io::pth::{self, Value};
use serde_json::Value as Json;
use tch::{Kind, Tensor};

use super::support::{json, number, path};

/// The entries of a list of files, each with what is said about it.
fn files(list: &str) -> Vec<(String, Json)> {
    let files = json(list);
    let files: Vec<_> = files
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, about)| (name.clone(), about.clone()))
        .collect();
    assert!(!files.is_empty(), "{list} lists no file");
    files
}

/// The elements as integers: bit patterns of floats, values of the rest.
fn bits(tensor: &Tensor) -> Vec<i64> {
    let (as_ints, mask) = match tensor.kind() {
        Kind::Double => (tensor.view_dtype(Kind::Int64), !0),
        Kind::Float => (tensor.view_dtype(Kind::Int), 0xffff_ffff),
        Kind::Half | Kind::BFloat16 => (tensor.view_dtype(Kind::Int16), 0xffff),
        _ => (tensor.shallow_clone(), !0),
    };
    let ints = Vec::<i64>::try_from(as_ints.to_kind(Kind::Int64).flatten(0, -1)).unwrap();
    ints.into_iter().map(|i| i & mask).collect()
}

fn dtype(kind: Kind) -> &'static str {
    match kind {
        Kind::Double => "float64",
        Kind::Float => "float32",
        Kind::Half => "float16",
        Kind::BFloat16 => "bfloat16",
        Kind::Int64 => "int64",
        Kind::Int => "int32",
        Kind::Int16 => "int16",
        Kind::Int8 => "int8",
        Kind::Uint8 => "uint8",
        Kind::Bool => "bool",
        other => panic!("{other:?} is not read"),
    }
}

fn check_tensor(tensor: &Tensor, expected: &Json, at: &str) {
    assert_eq!(dtype(tensor.kind()), expected["dtype"].as_str().unwrap(), "{at}");
    let shape: Vec<i64> =
        expected["shape"].as_array().unwrap().iter().map(|d| d.as_i64().unwrap()).collect();
    assert_eq!(tensor.size(), shape, "{at}");
    assert!(tensor.is_contiguous(), "{at}");
    let integer =
        |v: &Json| v.as_i64().or(v.as_bool().map(i64::from)).or(v.as_u64().map(|u| u as i64));
    let list = if tensor.is_floating_point() { "bits" } else { "values" };
    let expected = expected[list].as_array().unwrap();
    let expected: Vec<i64> = expected.iter().map(|v| integer(v).unwrap()).collect();
    assert_eq!(bits(tensor), expected, "{at}");
}

/// Compares a value with its description in `good.json`.
fn check(value: &Value, expected: &Json, at: &str) {
    match (value, expected) {
        (Value::None, Json::Null) => {}
        (Value::Bool(value), Json::Bool(expected)) => assert_eq!(value, expected, "{at}"),
        (Value::Int(value), Json::Number(expected)) => {
            assert_eq!(Some(*value), expected.as_i64(), "{at}");
        }
        (Value::Str(value), Json::String(expected)) => assert_eq!(value, expected, "{at}"),
        (Value::Float(value), Json::Object(expected)) => {
            let expected = number(&expected["float"]);
            assert!(
                value.to_bits() == expected.to_bits() || (value.is_nan() && expected.is_nan()),
                "{at}"
            );
        }
        (Value::Tensor(tensor), Json::Object(expected)) => {
            check_tensor(tensor, &expected["tensor"], at)
        }
        (Value::List(_) | Value::Tuple(_), Json::Object(expected)) => {
            let key = if matches!(value, Value::List(_)) { "list" } else { "tuple" };
            let (items, expected) = (value.as_items().unwrap(), expected[key].as_array().unwrap());
            assert_eq!(items.len(), expected.len(), "{at}");
            for (i, (item, expected)) in items.iter().zip(expected).enumerate() {
                check(item, expected, &format!("{at}[{i}]"));
            }
        }
        (Value::Dict(items), Json::Object(expected)) => {
            let expected = expected["dict"].as_array().unwrap();
            assert_eq!(items.len(), expected.len(), "{at}");
            for ((key, value), expected) in items.iter().zip(expected) {
                check(key, &expected[0], &format!("{at}: a key"));
                check(value, &expected[1], &format!("{at}[{}]", expected[0]));
            }
        }
        (value, expected) => panic!("{at}: {} is not {expected}", value.type_name()),
    }
}

#[test]
fn every_file_of_pytorch_is_read_bit_for_bit() {
    let files = files("12_checkpoints/good.json");
    for (name, about) in &files {
        let mut content = &about["content"];
        if let Some(other) = content.as_str().and_then(|text| text.strip_prefix("same as ")) {
            content =
                files.iter().find(|(name, _)| name == other).map(|(_, a)| &a["content"]).unwrap();
        }
        let at = path(&format!("12_checkpoints/{name}"));
        let file = pth::read(&at).unwrap_or_else(|error| panic!("{name}: {error:#}"));
        check(&file.value, content, name);
        let bytes = std::fs::read(&at).unwrap();
        check(&pth::read_bytes(&bytes).unwrap().value, content, name);
    }
}

#[test]
fn broken_and_hostile_files_are_refused_by_name() {
    for (name, about) in files("12_checkpoints/bad.json") {
        let at = path(&format!("12_checkpoints/bad/{name}"));
        let read = pth::read(&at);
        eprintln!("{name}: {:?}", read.as_ref().map(|_| "read").map_err(|e| format!("{e:#}")));
        match about["expect"].as_str().unwrap() {
            "error" => {
                let error = format!("{:#}", read.expect_err(&name));
                assert!(error.contains(&name), "{error}");
            }
            "error_when_used_as_weights" => {
                assert!(read.is_ok_and(|file| file.value.as_dict().is_none()), "{name}");
            }
            "no_crash" => {}
            other => panic!("{name}: {other:?} is not known"),
        }
    }
}
