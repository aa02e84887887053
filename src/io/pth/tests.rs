use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use tch::{Device, Kind};

use super::zip_out::ZipOut;
use super::*;

/// An archive of that pickle and those storages.
fn archive(pickle: &[u8], byte_order: &str, storages: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut zip = ZipOut::new(&mut bytes);
    zip.record("any/name/data.pkl", pickle).unwrap();
    zip.record("any/name/byteorder", byte_order.as_bytes()).unwrap();
    for (key, storage) in storages {
        zip.record(&format!("any/name/data/{key}"), storage).unwrap();
    }
    zip.finish().unwrap();
    bytes
}

fn value(pickle: &[u8]) -> Value {
    read_bytes(&archive(pickle, "little", &[])).unwrap().value
}

fn message(bytes: &[u8]) -> String {
    format!("{:#}", read_bytes(bytes).unwrap_err())
}

fn refusal(pickle: &[u8]) -> String {
    message(&archive(pickle, "little", &[]))
}

/// A storage named `0`: `("storage", class, "0", "cpu", size)`.
fn storage(class: &str, size: u8) -> Vec<u8> {
    [b"(U\x07storagec", class.as_bytes(), b"\nU\x010U\x03cpuK", &[size], b"tQ"].concat()
}

/// `torch._utils.FUNCTION(...)`, of what is already pickled.
fn rebuild(function: &str, parts: &[&[u8]]) -> Vec<u8> {
    [b"ctorch._utils\n", function.as_bytes(), b"\n(", &parts.concat(), b"tR"].concat()
}

#[test]
fn nothing_but_data_is_named() {
    for pickle in [
        b"cos\nsystem\n.".as_slice(),
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"(ios\nsystem\n.",
        b"cos\nsystem\n(U\x04truetR.",
        b"cos\nsystem\n0N.",
    ] {
        let error = refusal(pickle);
        assert!(error.contains("names os.system, which is not data"), "{error}");
        assert!(error.contains("nothing was executed"), "{error}");
    }
    for opcode in [b"(cos\nsystem\no." as &[u8], b"N\x82\x01.", b"Pid\n.", b"\x97."] {
        assert!(refusal(opcode).contains("nothing was executed"), "{}", refusal(opcode));
    }
    let error = refusal(b"ctorch._utils\n_rebuild_tensor_v2\n.");
    assert!(error.contains("a class or function stands where data are expected"), "{error}");
    assert!(refusal(b"]}b.").contains("a list is given a dict as its state"));
    assert!(refusal(b"K\x01)R.").contains("a call of an integer"));
}

#[test]
fn objects_of_other_classes_are_noted_and_nothing_is_made_of_them() {
    let name = |pickle: &[u8]| match value(pickle) {
        Value::Opaque(name) => name,
        other => panic!("{} of {:?}", other.type_name(), String::from_utf8_lossy(pickle)),
    };
    // numpy.float32(1), as protocols 2 and 4 have it
    let scalar = b"cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R(K\x03X\x01\0\0\0<NNNJ\xff\xff\xff\xff\
        J\xff\xff\xff\xffK\0tbC\x04\0\0\x80?\x86R.";
    assert_eq!(name(scalar), "numpy.core.multiarray.scalar");
    assert_eq!(
        name(b"\x80\x04\x8c\x08argparse\x8c\x09Namespace\x93)\x81}\x8c\x02lr\x4b\x01sb."),
        "argparse.Namespace"
    );
    assert_eq!(name(b"cpathlib\nPosixPath\n(X\x01\0\0\0/X\x03\0\0\0tmptR."), "pathlib.PosixPath");
    // enums and bound methods, named arguments, the classes of Python 2, subclasses of list and dict, a class by itself
    assert_eq!(
        name(b"cbuiltins\ngetattr\ncmy.code\nMode\nX\x03\0\0\0one\x86R."),
        "builtins.getattr"
    );
    assert_eq!(name(b"\x80\x04\x8c\x01m\x8c\x01C\x93)}\x92."), "m.C");
    assert_eq!(name(b"(K\x01im\nC\n}b."), "m.C");
    assert_eq!(name(b"(cm\nC\nK\x01o(K\x01K\x02u."), "m.C");
    assert_eq!(name(b"cm\nConfig\n)\x81(X\x01\0\0\0aK\x01u(K\x02e."), "m.Config");
    assert_eq!(name(b"ctorch.nn\nReLU\n."), "torch.nn.ReLU");
    assert_eq!(name(b"cm\n\x1b[2J\n."), "m.\\u{1b}[2J");
    let counts = value(b"ccollections\ndefaultdict\ncbuiltins\nint\n\x85R(X\x01\0\0\0aK\x07u.");
    assert_eq!(counts.get("a").and_then(Value::as_int), Some(7));
    // What is beside them is read as ever.
    let beside = [b"}(X\x01\0\0\0bK\x02X\x01\0\0\0a", &scalar[..scalar.len() - 1], b"u."].concat();
    assert_eq!(value(&beside).get("b").and_then(Value::as_int), Some(2));
}

#[test]
fn what_runs_programs_or_may_be_a_weight_is_refused_wherever_it_stands() {
    for (pickle, what) in [
        (&b"}X\x01\0\0\0acsubprocess\nPopen\n(X\x02\0\0\0lstRs."[..], "subprocess.Popen"),
        (b"cbuiltins\nexec\n.", "builtins.exec"),
        (b"cimportlib\nimport_module\n.", "importlib.import_module"),
        (b"(iposix\nsystem\n.", "posix.system"),
        (b"ctorch._utils\n_rebuild_qtensor\n)R.", "torch._utils._rebuild_qtensor"),
    ] {
        let error = refusal(pickle);
        assert!(error.contains(&format!("names {what}, which is not data")), "{error}");
    }
}

#[test]
fn texts_whose_writer_counted_characters_are_read() {
    // four characters in five bytes, and the right count of the same text
    for pickle in [b"X\x04\0\0\0na\xc3\xafz.", b"X\x05\0\0\0na\xc3\xafz."] {
        assert!(matches!(value(pickle), Value::Str(text) if text == "naïz"));
    }
}

#[test]
fn plain_values_come_back() {
    assert!(matches!(value(b"N."), Value::None));
    assert!(matches!(value(b"\x89."), Value::Bool(false)));
    assert!(matches!(value(b"J\xfe\xff\xff\xff."), Value::Int(-2)));
    assert!(matches!(value(b"\x8a\x00."), Value::Int(0)));
    assert!(matches!(value(b"\x8a\x02\x00\x80."), Value::Int(-32768)));
    let wide = value(b"\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x01.");
    assert!(matches!(wide, Value::BigInt(b) if b == [0, 0, 0, 0, 0, 0, 0, 0, 1]));
    assert!(matches!(value(b"G\x3f\xf8\0\0\0\0\0\0."), Value::Float(x) if x == 1.5));
    assert!(matches!(value(b"U\x02ab."), Value::Str(s) if s == "ab"));
    assert!(matches!(value(b"U\x01\xff."), Value::Bytes(b) if b == [255]));
    let encoded = b"c_codecs\nencode\nX\x03\0\0\0a\xc3\xbfX\x06\0\0\0latin1\x86R.";
    assert!(matches!(value(encoded), Value::Bytes(b) if b == *b"a\xff"));
    assert!(matches!(value(b"c__builtin__\nbytes\n)R."), Value::Bytes(b) if b.is_empty()));
    assert!(matches!(value(b"\x96\x01\0\0\0\0\0\0\0z."), Value::Bytes(b) if b == *b"z"));
    assert!(matches!(value(b"cbuiltins\nset\n]K\x05a\x85R."), Value::Set(s) if s.len() == 1));
    assert!(matches!(value(b"\x8f(K\x01K\x02\x90."), Value::Set(s) if s.len() == 2));
    assert!(matches!(value(b"ctorch\nbfloat16\n."), Value::Name(n) if n == "torch.bfloat16"));
    assert!(matches!(value(b"ctorch\nstrided\n."), Value::Name(n) if n == "torch.strided"));
    let device = value(b"ctorch\ndevice\nU\x04cudaK\x01\x86R.");
    assert!(matches!(device, Value::Name(n) if n == "cuda:1"));
    let size = value(b"ctorch\nSize\nK\x03K\x04\x86\x85R.");
    assert!(matches!(size, Value::Tuple(items) if items[1].as_int() == Some(4)));
}

#[test]
fn dicts_keep_order_and_the_later_value_of_a_key() {
    let dict = value(b"}(U\x01bK\x01U\x01aK\x02U\x01bK\x03K\x07K\x08u.");
    let items = dict.as_dict().unwrap();
    assert_eq!(items.iter().map(|(_, v)| v.as_int().unwrap()).collect::<Vec<_>>(), [3, 2, 8]);
    assert_eq!(dict.get("a").and_then(Value::as_int), Some(2));
    assert!(dict.get("c").is_none() && dict.get("a").unwrap().get("b").is_none());
}

#[test]
fn dicts_of_pairs_and_counters_are_dicts() {
    // As Python 2 writes an OrderedDict.
    let pairs = value(b"ccollections\nOrderedDict\n](](U\x01kK\x09ee\x85R.");
    assert_eq!(pairs.get("k").and_then(Value::as_int), Some(9));
    let counter = value(b"ccollections\nCounter\n}K\x05K\x01s\x85R.");
    assert_eq!(counter.as_dict().unwrap()[0].0.as_int(), Some(5));
    assert!(refusal(b"ccollections\nOrderedDict\nK\x01\x85R.").contains("made of an integer"));
    assert!(refusal(b"}]K\x01s.").contains("a list stands where a key is expected"));
}

#[test]
fn values_that_hold_themselves_or_nest_without_end_are_refused() {
    assert!(refusal(b"]q\x00h\x00a.").contains("hold themselves"));
    let deep = [b"(".repeat(100_000), b"t".repeat(100_000), b".".to_vec()].concat();
    assert!(refusal(&deep).contains("nest deeper than 200 levels"));
}

/// Each ends at a limit: none may take time or memory out of proportion to its bytes.
#[test]
fn values_that_grow_without_bytes_are_refused() {
    // Pairs, 20,000 of them, made into a dict again and again: 2 x 10^9 entries.
    let mut pairs = b"](".to_vec();
    pairs.extend(b"K\x01K\x02\x86".repeat(20_000));
    pairs.extend(b"eq\x00ccollections\nOrderedDict\nq\x010(");
    pairs.extend(b"h\x01h\x00\x85R".repeat(100_000));
    pairs.extend(b"t.");
    assert!(refusal(&pairs).contains("more than 4000000 values"));
    // A text of 60,000 bytes, named 100,000 times: 6 GB.
    let text = [b"(X\x60\xea\0\0".to_vec(), vec![b'x'; 60_000], b"q\x00".to_vec()].concat();
    let texts = [text, b"h\x00".repeat(100_000), b"t.".to_vec()].concat();
    assert!(refusal(&texts).contains("again and again"));
    // (x, x), 60 levels deep.
    let doubled = [b"N".to_vec(), b"2\x86".repeat(60), b".".to_vec()].concat();
    assert!(refusal(&doubled).contains("again and again"));
}

#[test]
fn tensors_are_rebuilt_in_every_way_that_pytorch_writes() {
    let floats: Vec<u8> = [1.0_f32, 2.0, 3.0, 4.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let typed = storage("torch\nFloatStorage", 4);
    let bytes = storage("torch.storage\nUntypedStorage", 16);
    let place = b"K\x01K\x03\x85K\x01\x85"; // offset 1, size (3,), stride (1,)
    let hooks = b"\x89ccollections\nOrderedDict\n)R";
    let v2 = rebuild("_rebuild_tensor_v2", &[&typed, place, hooks]);
    let mut from_type =
        b"ctorch._tensor\n_rebuild_from_type_v2\n(ctorch._utils\n_rebuild_tensor_v2\n".to_vec();
    from_type.extend(b"ctorch.nn.parameter\nParameter\n(");
    from_type.extend([&typed[..], place, hooks, b"t}tR"].concat());
    for pickled in [
        rebuild("_rebuild_tensor", &[&typed, place]),
        v2.clone(),
        rebuild("_rebuild_tensor_v2", &[&typed, place, hooks, b"}"]),
        rebuild("_rebuild_tensor_v3", &[&bytes, place, hooks, b"ctorch\nfloat32\n"]),
        rebuild("_rebuild_parameter", &[&v2, hooks]),
        rebuild("_rebuild_parameter_with_state", &[&v2, hooks, b"}"]),
        from_type,
        rebuild("_rebuild_tensor_v2", &[&storage("torch.cuda\nFloatStorage", 4), place, hooks]),
    ] {
        let file = archive(&[&pickled, b".".as_slice()].concat(), "little", &[("0", &floats)]);
        let file = read_bytes(&file).unwrap();
        let tensor = file.value.as_tensor().unwrap();
        assert_eq!(tensor, &Tensor::from_slice(&[2.0_f32, 3.0, 4.0]));
    }
}

#[test]
fn big_endian_numbers_are_turned() {
    let pickled = rebuild(
        "_rebuild_tensor",
        &[&storage("torch\nShortStorage", 2), b"K\x00K\x02\x85K\x01\x85"],
    );
    let pickled = [&pickled, b".".as_slice()].concat();
    let file = read_bytes(&archive(&pickled, "big", &[("0", &[1, 2, 0xff, 0xfe])])).unwrap();
    assert_eq!(file.value.as_tensor().unwrap(), &Tensor::from_slice(&[0x0102_i16, -2]));
    assert!(message(&archive(&pickled, "middle", &[])).contains("expected little or big"));
}

#[test]
fn broken_tensors_are_refused_by_name() {
    let check = |class: &str, size: u8, place: &[u8], bytes: &[u8], expected: &str| {
        let tensor = rebuild("_rebuild_tensor", &[&storage(class, size), place]);
        let dict = [b"}U\x03keyq\x00".as_slice(), &tensor, b"s."].concat();
        let error = message(&archive(&dict, "little", &[("0", bytes)]));
        assert!(error.contains(expected), "{error}");
    };
    let (two, byte) = (b"K\x00K\x02\x85K\x01\x85", "torch\nByteStorage");
    check("torch\nBoolStorage", 2, two, &[1, 2], "a boolean is 2, expected 0 or 1");
    check(byte, 1, two, &[1], "entry key: a tensor of shape [2]");
    check(byte, 2, two, &[1], "storage 0 has 1 bytes in the archive, expected 2");
    check(byte, 2, b"K\x00K\x02\x85)", &[1, 2], "entry key: a tensor has 1 sizes and 0 strides");
    check(byte, 2, b"NK\x02\x85K\x01\x85", &[1, 2], "the offset of a tensor is None");
    check("torch\nQInt8Storage", 2, two, &[1, 2], "names torch.QInt8Storage");
}

/// A directory that claims a terabyte for a record, and a tensor of one element of it.
#[test]
fn sizes_that_an_archive_merely_claims_are_not_believed() {
    let place = b"K\x00K\x01\x85K\x01\x85";
    let huge = b"(U\x07storagectorch\nByteStorage\nU\x010U\x03cpu\x8a\x06\0\0\0\0\0\x01tQ";
    let pickled = [&rebuild("_rebuild_tensor", &[huge, place])[..], b"."].concat();
    let mut file = archive(&pickled, "little", &[("0", &[1; 16])]);
    // The zip64 form of the directory entry of the storage, by hand: its sizes are 2^40.
    let name = b"any/name/data/0";
    let entry = file.windows(name.len()).rposition(|w| w == name).unwrap() - 46;
    file[entry + 20..entry + 28].fill(0xff);
    file[entry + 30] = 20;
    let extra = [&[1, 0, 16, 0][..], &(1_u64 << 40).to_le_bytes().repeat(2)].concat();
    let after = entry + 46 + name.len();
    file.splice(after..after, extra);
    let end = file.len() - 10;
    file[end] += 20;
    let error = message(&file);
    assert!(error.contains("its storages claim 1099511627776 bytes"), "{error}");
}

#[test]
fn other_kinds_of_file_are_told_what_they_are() {
    let mut tar = vec![0; 1024];
    tar[257..262].copy_from_slice(b"ustar");
    let safetensors = [&2_u64.to_le_bytes()[..], b"{\"a\":1}"].concat();
    for (bytes, expected) in [
        (tar.as_slice(), "convert it in Python"),
        (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
        (b"\n<!DOCTYPE html>", "web page"),
        (&safetensors, "safetensors file"),
        (b"", "empty"),
        (b"PK", "zip archive cannot be read"),
        (b"{}", "not a file of torch.save"),
        (b"\x80\x02K\x05.", "a pickle of an integer, expected PyTorch's magic number"),
    ] {
        let error = message(bytes);
        assert!(error.contains(expected), "{error}");
    }
    let error = format!("{:#}", read(Path::new("/missing/a.pth")).unwrap_err());
    assert!(error.contains("reading PyTorch file /missing/a.pth"), "{error}");
    assert!(read(Path::new("/")).is_err());
}

/// The older format: four pickles, the keys, and the storages.
fn legacy(main: &[u8], keys: &[u8], storages: &[u8]) -> Vec<u8> {
    let magic = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.\x80\x02}.";
    [magic, main, keys, storages].concat()
}

#[test]
fn parts_of_storages_of_the_older_format_are_found() {
    // ("storage", ByteStorage, "r", "cpu", 4, ("v", 1, 2)): bytes 1 and 2 of 4.
    let part = b"(U\x07storagectorch\nByteStorage\nU\x01rU\x03cpuK\x04(U\x01vK\x01K\x02ttQ";
    let main = rebuild("_rebuild_tensor", &[part, b"K\x01K\x01\x85K\x01\x85"]);
    let main = [&main, b".".as_slice()].concat();
    let storages = [&4_u64.to_le_bytes()[..], &[7, 8, 9, 10]].concat();
    let file = read_bytes(&legacy(&main, b"]U\x01ra.", &storages)).unwrap();
    assert_eq!(file.value.as_tensor().unwrap(), &Tensor::from_slice(&[9_u8]));
    let missing = message(&legacy(&main, b"].", &storages));
    assert!(missing.contains("storage \"r\" is missing"), "{missing}");
    let twice = message(&legacy(&main, b"](U\x01rU\x01re.", &storages.repeat(2)));
    assert!(twice.contains("storage r is there twice"), "{twice}");
    let surplus = message(&legacy(&main, b"]U\x01xa.", &storages));
    assert!(surplus.contains("storage \"x\" has no tensor"), "{surplus}");
    let short = message(&legacy(&main, b"]U\x01ra.", &storages[..11]));
    assert!(short.contains("needs 4 bytes and 3 are left"), "{short}");
}

/// Tensors of every kind and form that is written.
fn samples() -> Vec<(String, Tensor)> {
    let on_cpu = |kind| (kind, Device::Cpu);
    let kinds = [
        Kind::Double,
        Kind::Float,
        Kind::Half,
        Kind::BFloat16,
        Kind::Int64,
        Kind::Int,
        Kind::Int16,
        Kind::Int8,
        Kind::Uint8,
        Kind::Bool,
    ];
    let base = Tensor::arange(24, on_cpu(Kind::Float)).reshape([2, 3, 4]) - 7.5;
    let mut samples: Vec<(String, Tensor)> =
        kinds.iter().map(|&kind| (format!("{kind:?}"), base.remainder(2.).to_kind(kind))).collect();
    let special = Tensor::from_slice(&[f32::NAN, -0.0, f32::INFINITY, 1e-40]);
    for (name, tensor) in [
        ("shared.a", base.shallow_clone()),
        ("shared.b", base.view([4, 6])),
        ("transposed", base.transpose(0, 2)),
        ("slice", base.narrow(2, 1, 2)),
        ("expanded", Tensor::from_slice(&[1_i64, 2]).expand([70_000, 2], false)),
        ("scalar", Tensor::from(-3_i64)),
        ("empty", Tensor::zeros([0, 3], on_cpu(Kind::Half))),
        ("learnt", base.copy().set_requires_grad(true)),
        ("special", special),
        ("", Tensor::from(true)),
        ("\u{e9}\u{4e2d}", Tensor::from_slice(&[1_u8])),
    ] {
        samples.push((name.to_owned(), tensor));
    }
    samples
}

fn written(tensors: &[(String, Tensor)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/weights.pth");
    write(&path, tensors).unwrap();
    (folder, path)
}

/// The bytes of the elements in row-major order.
fn raw(tensor: &Tensor) -> Vec<u8> {
    let tensor = tensor.detach().contiguous();
    let mut bytes = vec![0; tensor.numel() * tensor.kind().elt_size_in_bytes()];
    tensor.copy_data_u8(&mut bytes, tensor.numel());
    bytes
}

#[test]
fn what_is_written_is_read() {
    let samples = samples();
    let (folder, path) = written(&samples);
    let file = read(&path).unwrap();
    let items = file.value.as_dict().unwrap();
    assert_eq!(items.len(), samples.len());
    for ((name, tensor), (key, value)) in samples.iter().zip(items) {
        let value = value.as_tensor().unwrap();
        assert_eq!(key.as_str(), Some(name.as_str()));
        assert_eq!((value.size(), value.kind()), (tensor.size(), tensor.kind()), "{name}");
        assert_eq!(raw(value), raw(tensor), "{name}");
        assert!(value.is_contiguous() && !value.requires_grad(), "{name}");
    }
    let at = |key: &str| file.value.get(key).unwrap().as_tensor().unwrap().data_ptr();
    assert_eq!(at("shared.a"), at("shared.b"), "one storage, one memory");
    let again = folder.path().join("again.pth");
    write(&again, &samples).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), std::fs::read(&again).unwrap());
}

#[test]
fn tensors_that_cannot_be_written_are_named() {
    let one = || Tensor::from(1_i64);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.pth");
    let twice = write(&path, &[("a".into(), one()), ("a".into(), one())]).unwrap_err();
    assert!(format!("{twice:#}").contains("a.pth: two tensors are named a"), "{twice:#}");
    let complex = Tensor::zeros([2], (Kind::ComplexFloat, Device::Cpu));
    let error = format!("{:#}", write(&path, &[("c".into(), complex)]).unwrap_err());
    assert!(error.contains("tensor c: element type ComplexFloat cannot be written"), "{error}");
    assert!(!path.exists());
}

/// Reads `argv[1]` as PyTorch does, prints each tensor, and loads `argv[2]` into a module.
const PYTORCH: &str = "
import sys, torch
for mapped in (False, True):
    for name, t in torch.load(sys.argv[1], weights_only=True, mmap=mapped).items():
        data = t.contiguous().flatten().view(torch.uint8) if t.numel() else torch.zeros(0, dtype=torch.uint8)
        print(name.encode().hex(), str(t.dtype)[6:], list(t.shape), bytes(data.tolist()).hex())
shared = torch.load(sys.argv[1], weights_only=True)
assert shared['shared.a'].data_ptr() == shared['shared.b'].data_ptr()
module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 1), torch.nn.BatchNorm2d(3))
print(module.load_state_dict(torch.load(sys.argv[2], weights_only=True), strict=True))
assert module[0].weight.flatten().tolist() == [0, 1, 2, 3, 4, 5] and module[1].num_batches_tracked == 7
";

/// Needs a Python with PyTorch: `MQAT_PYTHON=/path/to/python`.
#[test]
fn pytorch_reads_what_is_written() {
    let Some(python) = std::env::var_os("MQAT_PYTHON") else {
        eprintln!("SKIPPED: set MQAT_PYTHON to a Python with PyTorch to check .pth files with it");
        return;
    };
    let samples: Vec<_> = samples().into_iter().filter(|(name, _)| name != "expanded").collect();
    let (_folder, path) = written(&samples);
    let floats = (Kind::Float, Device::Cpu);
    let mut module = vec![("0.weight".to_owned(), Tensor::arange(6, floats).reshape([3, 2, 1, 1]))];
    for name in ["0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var"] {
        module.push((name.to_owned(), Tensor::ones([3], floats)));
    }
    module.push(("1.num_batches_tracked".to_owned(), Tensor::from(7_i64)));
    let (_folder, module) = written(&module);
    let run = Command::new(python).args(["-c", PYTORCH]).args([&path, &module]).output().unwrap();
    std::io::stderr().write_all(&run.stderr).unwrap();
    assert!(run.status.success());
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let expected = samples.iter().map(|(name, tensor)| {
        let dtype = element_name(tensor.kind());
        format!("{} {dtype} {:?} {}", hex(name.as_bytes()), tensor.size(), hex(&raw(tensor)))
    });
    let mut expected: Vec<String> = expected.collect();
    expected.extend(expected.clone());
    expected.push("<All keys matched successfully>".to_owned());
    let printed = String::from_utf8(run.stdout).unwrap();
    assert_eq!(printed.lines().collect::<Vec<_>>(), expected);
}

fn element_name(kind: Kind) -> &'static str {
    make::element_of(kind).unwrap().name()
}
