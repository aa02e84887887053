use std::path::PathBuf;

use rand::Rng;
use serde_json::json;

use super::super::{Coding, Content, Dtype, Levels};
use super::*;
use crate::seed;

fn tensor(name: &str, shape: &[usize], content: Content) -> PackedTensor {
    PackedTensor { name: name.to_owned(), shape: shape.to_vec(), content }
}

fn codes(levels: Levels, coding: Coding, num: usize) -> Content {
    let mut rng = seed::stream(num as u64, &[u64::from(levels.num_levels())]);
    let codes = (0..num).map(|_| rng.random_range(0..levels.num_levels()) as u8).collect();
    Content::Codes { levels, coding, codes }
}

fn floats(values: &[f32]) -> Content {
    let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    Content::Plain { dtype: Dtype::F32, bytes }
}

fn uniform(num: u32, steps: &[f32]) -> Levels {
    let even = num.is_multiple_of(2);
    let first = if even { 1 - num as i32 } else { -(num as i32 - 1) / 2 };
    Levels::Uniform { num, first, stride: if even { 2 } else { 1 }, steps: steps.to_vec() }
}

/// A file with a tensor of every kind.
fn sample() -> PackedFile {
    let powers = Levels::PowersOfTwo { num_exponents: 4, low: vec![-5, -7, 0] };
    let table = Levels::Table { num: 3, levels: vec![-0.5, 0.25, 0.75] };
    let tensors = vec![
        tensor("count", &[], Content::Plain { dtype: Dtype::I64, bytes: vec![1; 8] }),
        tensor("a.weight", &[3, 5], codes(uniform(7, &[0.1, 0.2, 0.3]), Coding::Bits(3), 15)),
        tensor("a.bias", &[3], floats(&[1.0, -2.5, f32::MIN_POSITIVE])),
        tensor("b.weight", &[7], codes(uniform(3, &[0.7]), Coding::Base3, 7)),
        tensor("c.weight", &[3, 1, 3], codes(powers, Coding::Bits(4), 9)),
        tensor("flags", &[3], Content::Plain { dtype: Dtype::Bool, bytes: vec![1, 0, 1] }),
        tensor("d.weight", &[1, 11], codes(table, Coding::Bits(2), 11)),
        tensor("empty", &[0, 4], floats(&[])),
    ];
    let meta = json!({"config": {"a": [1, 2.5]}, "name": "sample"});
    PackedFile { meta: meta.as_object().unwrap().clone(), tensors }
}

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("net.mqat")
    }

    /// What reading these bytes says; one line, and it names the file.
    fn error_of(&self, bytes: &[u8]) -> String {
        std::fs::write(self.path(), bytes).unwrap();
        let text = format!("{:#}", read(&self.path()).unwrap_err());
        assert!(text.contains("net.mqat") && !text.contains('\n'), "{text}");
        text
    }

    fn bytes_of(&self, file: &PackedFile) -> Vec<u8> {
        let size = write(&self.path(), file).unwrap();
        let bytes = std::fs::read(self.path()).unwrap();
        assert_eq!(bytes.len() as u64, size);
        bytes
    }
}

#[test]
fn a_file_comes_back_and_is_written_alike_each_time() {
    let folder = Folder::new();
    let bytes = folder.bytes_of(&sample());
    assert_eq!(read(&folder.path()).unwrap(), sample());
    assert_eq!(folder.bytes_of(&sample()), bytes);
    verify(&folder.path()).unwrap();
    let head = read_head(&folder.path()).unwrap();
    assert_eq!(head.meta, sample().meta);
    let data: usize = head.tensors.iter().map(|t| t.num_bytes).sum();
    let grids: usize = head.tensors.iter().filter_map(|t| t.codes).map(|c| c.grid_bytes).sum();
    assert_eq!(head.header_bytes as usize + data + grids, bytes.len());
    assert_eq!((head.tensors[1].num_bytes, head.tensors[3].num_bytes), (6, 2));
}

#[test]
fn every_number_of_levels_and_odd_lengths_come_back_per_tensor_and_per_channel() {
    let folder = Folder::new();
    let mut tensors = Vec::new();
    for num_levels in [2, 3, 4, 5, 7, 8, 15, 16, 31, 32, 63, 64, 127, 128, 255, 256] {
        for (channels, each) in [(1, 1), (1, 7), (3, 5), (5, 13), (7, 41)] {
            for per_channel in [false, true] {
                let steps = vec![0.013; if per_channel { channels } else { 1 }];
                let levels = uniform(num_levels, &steps);
                let coding = Coding::Bits(levels.bits());
                let name = format!("w{num_levels}.{channels}.{each}.{per_channel}");
                let content = codes(levels, coding, channels * each);
                tensors.push(tensor(&name, &[channels, each], content));
            }
        }
    }
    let file = PackedFile { meta: serde_json::Map::new(), tensors };
    folder.bytes_of(&file);
    assert_eq!(read(&folder.path()).unwrap(), file);
}

#[test]
fn the_layout_is_the_documented_one() {
    let folder = Folder::new();
    let weight = tensor("w", &[3], {
        let levels = uniform(3, &[0.5]);
        Content::Codes { levels, coding: Coding::Bits(2), codes: vec![2, 0, 1] }
    });
    let file = PackedFile { meta: serde_json::Map::new(), tensors: vec![weight] };
    let bytes = folder.bytes_of(&file);
    assert_eq!(bytes[..12], [0x93, 0x4d, 0x51, 0x41, 0x54, 0x0d, 0x0a, 0x1a, 1, 0, 0, 0]);
    let header = u64::from_le_bytes(bytes[12..20].try_into().unwrap()) as usize;
    let json: serde_json::Value = serde_json::from_slice(&bytes[32..32 + header]).unwrap();
    let expected = json!({
        "mqat_version": env!("CARGO_PKG_VERSION"),
        "data_bytes": 5,
        "meta": {},
        "tensors": [{
            "name": "w", "shape": [3], "at": [4, 5],
            "codes": {
                "coding": {"bits": 2},
                "grid": {"uniform": {"levels": 3, "first": -1, "stride": 1}},
                "grid_at": [0, 4]
            }
        }]
    });
    assert_eq!(json, expected);
    // step 0.5 as f32, then 2 | 0 << 2 | 1 << 4
    assert_eq!(bytes[32 + header..], [0, 0, 0, 0x3f, 0b01_00_10]);
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let folder = Folder::new();
    let bytes = folder.bytes_of(&sample());
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 1 << (at % 8);
        folder.error_of(&bad);
    }
    for length in (0..bytes.len()).step_by(7).chain([8, 31, 32, bytes.len() - 1]) {
        folder.error_of(&bytes[..length]);
    }
    let longer = folder.error_of(&[&bytes[..], &[0]].concat());
    assert!(longer.contains("bytes follow the header"), "{longer}");
}

#[test]
fn other_files_and_other_versions_say_so() {
    let folder = Folder::new();
    assert!(folder.error_of(b"PK\x03\x04 a zip file").contains("mqat export --format packed"));
    assert!(folder.error_of(b"").contains("mqat export --format packed"));
    let mut bytes = folder.bytes_of(&sample());
    bytes[8] = 2;
    let own = crc32c::crc32c(&bytes[..28]);
    bytes[28..32].copy_from_slice(&own.to_le_bytes());
    let text = folder.error_of(&bytes);
    assert!(text.contains("version 2") && text.contains("reads version 1"), "{text}");
    assert!(read(folder.0.path()).is_err());
    assert!(format!("{:#}", read(&folder.0.path().join("no")).unwrap_err()).contains("/no"));
}

/// The file with another header, with checksums that fit.
fn with_header(bytes: &[u8], json: &[u8]) -> Vec<u8> {
    let header = u64::from_le_bytes(bytes[12..20].try_into().unwrap()) as usize;
    let data = &bytes[32 + header..];
    [&preamble(json, crc32c::crc32c(data))[..], json, data].concat()
}

fn header_of(bytes: &[u8]) -> serde_json::Value {
    let header = u64::from_le_bytes(bytes[12..20].try_into().unwrap()) as usize;
    serde_json::from_slice(&bytes[32..32 + header]).unwrap()
}

#[test]
fn hostile_headers_are_refused_with_what_is_wrong() {
    let folder = Folder::new();
    let bytes = folder.bytes_of(&sample());
    let huge = u64::MAX;
    for (pointer, value, word) in [
        ("/data_bytes", json!(1_u64 << 60), "bytes follow the header"),
        ("/tensors/1/shape", json!([huge, huge]), "too many numbers"),
        ("/tensors/1/shape", json!([3, 1_u64 << 40]), "does not fill"),
        ("/tensors/1/shape", json!([5, 3]), "scales for shape"),
        ("/tensors/1/shape", json!([-1]), "expected a whole number"),
        ("/tensors/1/at", json!([0, huge]), "not inside"),
        ("/tensors/1/at", json!([9, 3]), "not inside"),
        ("/tensors/2/at", json!([0, 12]), "expected"),
        ("/tensors/1/codes/grid_at", json!([0, 12]), "expected"),
        ("/tensors/1/codes/grid_at", json!([0, 0]), "whole number of scales"),
        ("/tensors/1/codes/grid_at", json!([0, 11]), "whole number of scales"),
        ("/tensors/1/codes/coding", json!({"bits": 0}), "do not fit"),
        ("/tensors/1/codes/coding", json!({"bits": 9}), "does not fill"),
        ("/tensors/1/codes/coding", json!({"bits": 2}), "do not fit"),
        ("/tensors/1/codes/coding", json!({"bits": 4_000_000_000_u64}), "does not fill"),
        ("/tensors/1/codes/coding", json!("base4"), "base4"),
        ("/tensors/1/codes/grid/uniform/levels", json!(5), "names none of 5 levels"),
        ("/tensors/1/codes/grid/uniform/levels", json!(1), "2 to 256"),
        ("/tensors/1/codes/grid/uniform/first", json!(i32::MAX), "begin at"),
        ("/tensors/4/codes/grid/powers_of_two/exponents", json!(u32::MAX), "2 to 256"),
        ("/tensors/6/codes/grid/table/levels", json!(0), "2 to 256"),
        ("/tensors/2/dtype", json!("F16"), "F16"),
        ("/tensors/2/dtype", json!(null), "neither dtype nor codes"),
        ("/tensors/2/name", json!("a.weight"), "two tensors are named a.weight"),
        ("/tensors/2/surplus", json!(1), "surplus"),
        ("/tensors", json!(7), "tensors"),
        ("/meta", json!([]), "meta"),
    ] {
        let mut header = header_of(&bytes);
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        header.pointer_mut(parent).unwrap()[key] = value.clone();
        let text = folder.error_of(&with_header(&bytes, &serde_json::to_vec(&header).unwrap()));
        assert!(text.contains(word), "{pointer} = {value}: {text}");
    }
    let deep = [vec![b'['; 100_000], vec![b']'; 100_000]].concat();
    folder.error_of(&with_header(&bytes, &deep));
}

#[test]
fn data_that_say_what_cannot_be_are_refused() {
    let folder = Folder::new();
    for (levels, word) in [
        (Levels::Uniform { num: 3, first: -1, stride: 1, steps: vec![f32::NAN] }, "not finite"),
        (Levels::Uniform { num: 3, first: -1, stride: 1, steps: vec![-1.0] }, "ascending"),
        (Levels::Uniform { num: 3, first: -1, stride: 1, steps: vec![0.0] }, "ascending"),
        (Levels::PowersOfTwo { num_exponents: 1, low: vec![4000] }, "exponents"),
        (Levels::Table { num: 3, levels: vec![0.0, 2.0, 1.0] }, "ascending"),
    ] {
        let good = Levels::Table { num: 3, levels: vec![0.0, 1.0, 2.0] };
        let good = match levels {
            Levels::Uniform { .. } => uniform(3, &[1.0]),
            Levels::PowersOfTwo { .. } => Levels::PowersOfTwo { num_exponents: 1, low: vec![0] },
            Levels::Table { .. } => good,
        };
        let content = codes(good, Coding::Bits(2), 5);
        let file =
            PackedFile { meta: serde_json::Map::new(), tensors: vec![tensor("w", &[5], content)] };
        let mut bytes = folder.bytes_of(&file);
        let header = u64::from_le_bytes(bytes[12..20].try_into().unwrap()) as usize;
        let numbers = levels.to_bytes();
        bytes[32 + header..][..numbers.len()].copy_from_slice(&numbers);
        let json = bytes[32..32 + header].to_vec();
        let text = folder.error_of(&with_header(&bytes, &json));
        assert!(text.contains("tensor w") && text.contains(word), "{levels:?}: {text}");
    }
    let mut file = sample();
    file.tensors[5].content = Content::Plain { dtype: Dtype::Bool, bytes: vec![1, 2, 0] };
    let text = folder.error_of(&folder.bytes_of(&file));
    assert!(text.contains("a boolean is 2"), "{text}");
}

/// Thousands of damaged files behind valid checksums: an error or another valid file, never a panic.
#[test]
fn random_damage_behind_valid_checksums_never_panics() {
    let folder = Folder::new();
    let bytes = folder.bytes_of(&sample());
    let header = u64::from_le_bytes(bytes[12..20].try_into().unwrap()) as usize;
    let mut rng = seed::stream(11, &[]);
    let (mut refused, total) = (0, 6000);
    for _ in 0..total {
        let mut json = bytes[32..32 + header].to_vec();
        let mut data = bytes[32 + header..].to_vec();
        for _ in 0..rng.random_range(1..4) {
            let part = if rng.random_bool(0.8) { &mut json } else { &mut data };
            let at = rng.random_range(0..part.len());
            match rng.random_range(0..4) {
                0 => part[at] = rng.random(),
                1 => part[at] = b"0123456789-[]{},:\"e."[rng.random_range(0..20)],
                2 => drop(part.remove(at)),
                _ => part.insert(at, b'9'),
            }
        }
        let whole = [&preamble(&json, crc32c::crc32c(&data))[..], &json, &data].concat();
        std::fs::write(folder.path(), whole).unwrap();
        match read(&folder.path()) {
            Ok(file) => {
                let each = |t: &PackedTensor| t.shape.iter().product::<usize>();
                assert!(file.tensors.iter().map(each).sum::<usize>() < 8 * bytes.len());
            }
            Err(error) => {
                assert!(!format!("{error:#}").contains('\n'), "{error:#}");
                refused += 1;
            }
        }
    }
    assert!(refused > total / 2, "{refused}");
}

#[test]
fn what_could_not_be_read_back_is_not_written() {
    let folder = Folder::new();
    let write_one = |tensors: Vec<PackedTensor>| {
        let file = PackedFile { meta: serde_json::Map::new(), tensors };
        format!("{:#}", write(&folder.path(), &file).unwrap_err())
    };
    let twice = || tensor("w", &[1], floats(&[1.0]));
    assert!(write_one(vec![twice(), twice()]).contains("two tensors are named w"));
    assert!(write_one(vec![tensor("w", &[2], floats(&[1.0]))]).contains("tensor w"));
    let content =
        Content::Codes { levels: uniform(3, &[1.0]), coding: Coding::Bits(2), codes: vec![4] };
    assert!(write_one(vec![tensor("w", &[1], content)]).contains("does not fit"));
    assert!(!folder.path().exists());
}
