//! Reading the reference data: JSON with "nan" and "inf" strings, safetensors of f32 and i64.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// The folder of the reference data.
pub fn golden_dir() -> PathBuf {
    match std::env::var_os("MQAT_GOLDEN") {
        Some(dir) => PathBuf::from(dir),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
    }
}

/// A file of the reference data; panics when it is missing.
pub fn path(relative: &str) -> PathBuf {
    let path = golden_dir().join(relative);
    assert!(path.exists(), "{} is missing from the reference data", path.display());
    path
}

/// A JSON file of the reference data.
pub fn json(relative: &str) -> Value {
    let path = path(relative);
    let text = std::fs::read_to_string(&path).unwrap();
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A number of a JSON file, where "nan", "inf" and "-inf" stand for the non-finite ones.
pub fn number(value: &Value) -> f64 {
    match value {
        Value::Number(n) => n.as_f64().unwrap(),
        Value::String(s) => match s.as_str() {
            "nan" => f64::NAN,
            "inf" => f64::INFINITY,
            "-inf" => f64::NEG_INFINITY,
            _ => panic!("{s:?} is not a number"),
        },
        _ => panic!("{value} is not a number"),
    }
}

/// A list of numbers of a JSON file, nested lists flattened.
pub fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::Array(items) => items.iter().flat_map(numbers).collect(),
        other => vec![number(other)],
    }
}

/// A tensor of the reference data.
#[derive(Debug, Clone)]
pub struct Array {
    pub shape: Vec<usize>,
    pub data: Data,
}

#[derive(Debug, Clone)]
pub enum Data {
    F32(Vec<f32>),
    I64(Vec<i64>),
}

impl Array {
    pub fn f32(&self) -> &[f32] {
        match &self.data {
            Data::F32(v) => v,
            Data::I64(_) => panic!("the tensor holds int64, expected float32"),
        }
    }

    pub fn i64(&self) -> &[i64] {
        match &self.data {
            Data::I64(v) => v,
            Data::F32(_) => panic!("the tensor holds float32, expected int64"),
        }
    }

    pub fn f64(&self) -> Vec<f64> {
        self.f32().iter().map(|&v| f64::from(v)).collect()
    }

    /// As a libtorch tensor.
    pub fn tensor(&self) -> tch::Tensor {
        let shape: Vec<i64> = self.shape.iter().map(|&d| d as i64).collect();
        match &self.data {
            Data::F32(v) => tch::Tensor::from_slice(v).reshape(shape),
            Data::I64(v) => tch::Tensor::from_slice(v).reshape(shape),
        }
    }
}

/// All tensors of a safetensors file, by name.
pub fn arrays(relative: &str) -> BTreeMap<String, Array> {
    let path = path(relative);
    let bytes = std::fs::read(&path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    file.tensors()
        .into_iter()
        .map(|(name, view)| {
            let data = match view.dtype() {
                safetensors::Dtype::F32 => Data::F32(
                    view.data()
                        .chunks_exact(4)
                        .map(|b| f32::from_le_bytes(b.try_into().unwrap()))
                        .collect(),
                ),
                safetensors::Dtype::I64 => Data::I64(
                    view.data()
                        .chunks_exact(8)
                        .map(|b| i64::from_le_bytes(b.try_into().unwrap()))
                        .collect(),
                ),
                other => panic!("{name} has type {other:?}, expected F32 or I64"),
            };
            (name, Array { shape: view.shape().to_vec(), data })
        })
        .collect()
}

/// The value of a formula tensor (README of the reference data, "Deterministic tensors").
pub fn formula_value(name: &str, index: u64, a: f64, b: f64) -> f32 {
    let h = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, c| (h ^ u64::from(c)).wrapping_mul(0x0100_0000_01b3));
    let z = mqat::seed::splitmix64(h.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    let u = (z >> 40) as f64 / (1u64 << 24) as f64;
    (((u - 0.5) * 2.0) * a + b) as f32
}

#[test]
fn the_worked_values_of_the_formula_come_out() {
    for v in json("weights_formula.json")["worked_values"].as_array().unwrap() {
        let value = formula_value(
            v["name"].as_str().unwrap(),
            v["index"].as_u64().unwrap(),
            number(&v["a"]),
            number(&v["b"]),
        );
        let bits = u32::from_str_radix(&v["value_bits"].as_str().unwrap()[2..], 16).unwrap();
        assert_eq!(value.to_bits(), bits, "{v}");
    }
}
