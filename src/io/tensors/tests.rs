use super::*;
use safetensors::SafeTensors;
use std::fs;

fn every_kind() -> Vec<(String, Tensor)> {
    let values =
        Tensor::from_slice(&[-1.5_f64, 0.0, 2.0, f64::NAN, f64::INFINITY, -0.0]).view([2, 3]);
    let whole = Tensor::from_slice(&[1_i64, 0, 7, 127, 3, 5]).view([3, 2]);
    DTYPES
        .iter()
        .rev() // the smallest elements first, so that the order of the bytes is another
        .map(|&(dtype, kind)| {
            let source = if dtype.starts_with(['F', 'B']) { &values } else { &whole };
            (format!("layer.{dtype}"), source.to_kind(kind))
        })
        .chain([
            ("scalar".to_owned(), Tensor::from(42_i64)),
            ("empty".to_owned(), Tensor::empty([0, 3], (Kind::Float, Device::Cpu))),
            ("a \"quoted\" näme".to_owned(), Tensor::from_slice(&[1_u8])),
        ])
        .collect()
}

fn bits(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.contiguous();
    let num_bytes = tensor.numel() * tensor.kind().elt_size_in_bytes();
    if num_bytes == 0 {
        return Vec::new();
    }
    // SAFETY: contiguous CPU memory of that size, alive here.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr().cast::<u8>(), num_bytes) }.to_vec()
}

fn assert_same(left: &[(String, Tensor)], right: &[(String, Tensor)]) {
    assert_eq!(left.len(), right.len());
    for ((name, a), (other, b)) in left.iter().zip(right) {
        assert_eq!(name, other);
        assert_eq!((a.size(), a.kind(), bits(a)), (b.size(), b.kind(), bits(b)), "{name}");
    }
}

fn in_folder(test: impl FnOnce(&Path)) {
    let folder = tempfile::tempdir().unwrap();
    test(&folder.path().join("weights.safetensors"));
}

#[test]
fn every_kind_comes_back_bit_for_bit_in_the_given_order() {
    in_folder(|path| {
        let tensors = every_kind();
        let metadata = BTreeMap::from([("step".to_owned(), "12\n\"x\"".to_owned())]);
        write(path, &tensors, &metadata).unwrap();
        let file = read(path).unwrap();
        assert_same(&file.tensors, &tensors);
        assert_eq!(file.metadata, metadata);
        assert_eq!(file.get("scalar").map(Tensor::size), Some(vec![]));
        assert!(file.get("none").is_none());
    });
}

#[test]
fn the_reference_reader_finds_aligned_tensors() {
    in_folder(|path| {
        let tensors = every_kind();
        write(path, &tensors, &BTreeMap::from([("a".to_owned(), "b".to_owned())])).unwrap();
        let bytes = fs::read(path).unwrap();
        let theirs = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(theirs.len(), tensors.len());
        for (name, tensor) in &tensors {
            let view = theirs.tensor(name).unwrap();
            let shape: Vec<i64> = view.shape().iter().map(|&d| d as i64).collect();
            assert_eq!((shape, view.data()), (tensor.size(), &bits(tensor)[..]), "{name}");
            let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
            assert_eq!(offset % tensor.kind().elt_size_in_bytes(), 0, "{name}");
        }
    });
}

#[test]
fn views_and_tensors_with_a_gradient_are_written_by_their_values() {
    in_folder(|path| {
        let base = Tensor::arange(24, (Kind::Float, Device::Cpu)).view([2, 3, 2, 2]);
        let channels_last = base.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2]);
        assert!(!channels_last.is_contiguous());
        let tensors = vec![
            ("channels_last".to_owned(), channels_last),
            ("slice".to_owned(), base.select(1, 1)),
            ("expanded".to_owned(), Tensor::from(2_f32).expand([5], false)),
            ("learnt".to_owned(), base.copy().set_requires_grad(true)),
        ];
        write(path, &tensors, &BTreeMap::new()).unwrap();
        assert_same(&read(path).unwrap().tensors, &tensors);
    });
}

#[test]
fn what_cannot_be_written_is_named_and_leaves_no_file() {
    in_folder(|path| {
        let one = || Tensor::from(1_f32);
        let cases = [
            (vec![("a", one()), ("a", one())], "two tensors are named a"),
            (vec![(METADATA_KEY, one())], "a tensor may not be named __metadata__"),
            (vec![("c", one().to_kind(Kind::ComplexFloat))], "tensor c: element type ComplexFloat"),
            (vec![("u", Tensor::new())], "tensor u: it has no value"),
        ];
        for (tensors, expected) in cases {
            let tensors: Vec<_> = tensors.into_iter().map(|(n, t)| (n.to_owned(), t)).collect();
            let error = format!("{:#}", write(path, &tensors, &BTreeMap::new()).unwrap_err());
            assert!(error.starts_with("writing ") && error.contains(expected), "{error}");
            assert!(error.contains("weights.safetensors: "), "{error}");
            assert!(!path.exists());
        }
    });
}

/// A file with that header and so many zero bytes of data.
fn raw(header: &str, num_data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + num_data, 0);
    bytes
}

fn error_of(path: &Path, bytes: &[u8]) -> String {
    fs::write(path, bytes).unwrap();
    let error = format!("{:#}", read(path).unwrap_err());
    assert!(error.starts_with("reading tensors of "), "{error}");
    assert!(error.contains("weights.safetensors: "), "{error}");
    error
}

#[test]
fn hostile_headers_are_refused_before_anything_is_allocated() {
    in_folder(|path| {
        let cases = [
            (
                r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
                4,
                "inside the 4 data bytes",
            ),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 12, "the file has 12"),
            (
                r#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#,
                8,
                "does not fill 8 bytes",
            ),
            (r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "bytes 8..0 are not"),
            (
                r#"{"a":{"dtype":"F31","shape":[2],"data_offsets":[0,8]}}"#,
                8,
                "tensor a: element type F31",
            ),
            (
                r#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#,
                8,
                "tensor a: shape.0: is the number -2",
            ),
            (r#"{"a":{"dtype":"F32","shape":[2]}}"#, 8, "tensor a: lacks the key data_offsets"),
            (
                r#"{"a":{"dtype":"U8","shape":[4294967296,4294967296,2],"data_offsets":[0,0]}}"#,
                0,
                "does not fill 0 bytes",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[0,9223372036854775807,4],"data_offsets":[0,0]}}"#,
                0,
                "does not fill 0 bytes",
            ),
            (
                r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},
                    "b":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#,
                6,
                "tensor b begins at byte 2 of the data, expected 4",
            ),
            (r#"{"a":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#, 6, "expected 0"),
            (r#"{"__metadata__":{"a":1}}"#, 0, "__metadata__: expected texts"),
            (r#"{"a":"#, 0, "header: line 1: "),
            ("[]", 0, "header: line 1: is a list"),
            ("", 0, "header: line 1: EOF"),
        ];
        for (header, num_data, expected) in cases {
            let error = error_of(path, &raw(header, num_data));
            assert!(error.contains(expected), "{error}\nexpected {expected}");
        }
        let mut bytes = raw("{}", 0);
        bytes[..8].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(error_of(path, &bytes).contains("truncated or not a safetensors file"));
        let boolean = r#"{"a":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}"#;
        let mut bytes = raw(boolean, 1);
        *bytes.last_mut().unwrap() = 2;
        assert!(error_of(path, &bytes).contains("tensor a: a boolean is 2, expected 0 or 1"));
    });
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_ends() {
    in_folder(|path| {
        write(path, &every_kind(), &BTreeMap::new()).unwrap();
        let whole = fs::read(path).unwrap();
        for end in 0..whole.len() {
            error_of(path, &whole[..end]);
        }
    });
    let error = read(Path::new("no/such.safetensors")).unwrap_err();
    assert!(
        format!("{error:#}").starts_with("reading tensors of no/such.safetensors: "),
        "{error:#}"
    );
    let error = read(Path::new("/")).unwrap_err();
    assert!(format!("{error:#}").ends_with("it is a directory, expected a file"), "{error:#}");
}

fn named(tensors: Vec<(&str, Tensor)>) -> Vec<(String, Tensor)> {
    tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor)).collect()
}

#[test]
fn loading_copies_equal_shapes_and_kinds_in_place_and_reports_the_rest() {
    let learnt = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu)).set_requires_grad(true);
    let counter = Tensor::from(0_i64);
    let one_row = Tensor::zeros([2, 2], (Kind::Float, Device::Cpu));
    let targets = named(vec![
        ("w", learnt.shallow_clone()),
        ("count", counter.shallow_clone()),
        ("row", one_row.shallow_clone()),
        ("double", one_row.shallow_clone()),
        ("twice", one_row.shallow_clone()),
        ("gone", one_row.shallow_clone()),
    ]);
    let values = Tensor::from_slice(&[1_f32, 2.0, 3.0, 4.0]).view([2, 2]);
    let source = named(vec![
        ("extra", Tensor::from(1_f32)),
        ("count", Tensor::from(9_i64)),
        ("w", values.transpose(0, 1)),
        ("row", Tensor::ones([2], (Kind::Float, Device::Cpu))),
        ("double", Tensor::ones([2, 2], (Kind::Double, Device::Cpu))),
        ("twice", values.copy()),
        ("twice", values.copy()),
    ]);
    let report = load_into(&targets, &source);
    assert_eq!(report.applied, ["w", "count"]);
    assert_eq!(report.missing, ["gone"]);
    assert_eq!(report.surplus, ["extra"]);
    let mismatched = [
        ("twice", "occurs twice in the source"),
        ("row", "Float [2] in the source, expected Float [2, 2]"),
        ("double", "Double [2, 2] in the source, expected Float [2, 2]"),
    ];
    let mismatched = mismatched.map(|(name, how)| (name.to_owned(), how.to_owned()));
    assert_eq!(report.mismatched, mismatched);
    assert!(learnt.equal(&values.transpose(0, 1)) && learnt.requires_grad());
    assert_eq!(counter.int64_value(&[]), 9);
    assert_eq!(one_row.abs().sum(Kind::Float).double_value(&[]), 0.0);
    let error = report.ensure_complete("a.safetensors").unwrap_err().to_string();
    assert!(
        error.starts_with(
            "a.safetensors does not fit the network: 1 missing: gone; 1 surplus: extra; \
             3 mismatched: twice (occurs twice in the source), row (Float [2] in"
        ),
        "{error}"
    );
}

#[test]
fn a_source_that_fits_is_complete_and_long_lists_are_cut() {
    let tensors = every_kind();
    let targets: Vec<_> = tensors.iter().map(|(n, t)| (n.clone(), t.zeros_like())).collect();
    let report = load_into(&targets, &tensors);
    report.ensure_complete("a").unwrap();
    assert_eq!(report.applied.len(), tensors.len());
    assert_same(&targets, &tensors);
    let error = load_into(&targets, &[]).ensure_complete("b").unwrap_err().to_string();
    assert!(error.contains("13 missing: ") && error.ends_with(", ..."), "{error}");
}

#[test]
fn a_changed_byte_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x.safetensors");
    let tensor = Tensor::from_slice(&[1.0_f32, 2.0, 3.0]);
    let metadata = BTreeMap::from([("who".to_owned(), "me".to_owned())]);
    write(&path, &[("a".to_owned(), tensor)], &metadata).unwrap();
    assert_eq!(read(&path).unwrap().metadata, metadata);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = format!("{:#}", read(&path).unwrap_err());
    assert!(error.contains("x.safetensors") && error.contains("damaged"), "{error}");
}
