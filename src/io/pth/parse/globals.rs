//! The names that a pickle may mention: those that stand for data, and those of other classes and functions, of which
//! nothing is made but a note. Names that start programs or run code are refused.

/// Element types that are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    F64,
    F32,
    F16,
    BF16,
    I64,
    I32,
    I16,
    I8,
    U8,
    Bool,
}

/// Each element type with its size in bytes, its storage class and its name in `torch`.
const ELEMENTS: [(Element, u64, &str, &str); 10] = [
    (Element::F64, 8, "DoubleStorage", "float64"),
    (Element::F32, 4, "FloatStorage", "float32"),
    (Element::F16, 2, "HalfStorage", "float16"),
    (Element::BF16, 2, "BFloat16Storage", "bfloat16"),
    (Element::I64, 8, "LongStorage", "int64"),
    (Element::I32, 4, "IntStorage", "int32"),
    (Element::I16, 2, "ShortStorage", "int16"),
    (Element::I8, 1, "CharStorage", "int8"),
    (Element::U8, 1, "ByteStorage", "uint8"),
    (Element::Bool, 1, "BoolStorage", "bool"),
];

/// Names in `torch` that stand for themselves: element types that tensors may not have here, layouts, formats.
const TORCH_NAMES: [&str; 24] = [
    "complex32",
    "complex64",
    "complex128",
    "quint8",
    "qint8",
    "qint32",
    "uint16",
    "uint32",
    "uint64",
    "float8_e5m2",
    "float8_e4m3fn",
    "float8_e5m2fnuz",
    "float8_e4m3fnuz",
    "float8_e8m0fnu",
    "strided",
    "sparse_coo",
    "contiguous_format",
    "channels_last",
    "preserve_format",
    "per_tensor_affine",
    "per_tensor_symmetric",
    "per_channel_affine",
    "per_channel_symmetric",
    "per_channel_affine_float_qparams",
];

impl Element {
    fn row(self) -> (Element, u64, &'static str, &'static str) {
        ELEMENTS[ELEMENTS.iter().position(|row| row.0 == self).unwrap_or(0)]
    }

    /// Bytes of one element.
    pub fn size(self) -> u64 {
        self.row().1
    }

    /// The storage class in `torch`: `FloatStorage`.
    pub fn storage_class(self) -> &'static str {
        self.row().2
    }

    /// The name in `torch`: `float32`.
    pub fn name(self) -> &'static str {
        self.row().3
    }
}

/// A name that a pickle may mention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `OrderedDict` and `Counter`: made from nothing, a dict or pairs.
    Dict,
    /// `defaultdict`: made from what makes its missing values, which is dropped, and perhaps a dict or pairs.
    DefaultDict,
    Set,
    /// `bytes` and `bytearray`.
    Bytes,
    /// `_codecs.encode`: how protocol 2 writes `bytes`.
    Encode,
    /// `torch.Size`: a tuple.
    Size,
    /// `torch.device` and `torch.serialization._get_layout`: a name.
    Named,
    /// A tensor class, where a rebuild function is told what to make.
    TensorClass,
    RebuildTensor,
    RebuildTensorV2,
    RebuildTensorV3,
    RebuildParameter,
    RebuildParameterWithState,
    RebuildFromType,
    /// A storage class; `None` for bytes without a type.
    Storage(Option<Element>),
    Dtype(Element),
    /// Another constant of `torch`.
    TorchName(&'static str),
}

impl Global {
    /// What `module.name` stands for as data; `None` for anything else.
    pub(super) fn find(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict" | "Counter") => Self::Dict,
            ("collections", "defaultdict") => Self::DefaultDict,
            ("builtins" | "__builtin__", "set" | "frozenset") => Self::Set,
            ("builtins" | "__builtin__", "bytearray" | "bytes") => Self::Bytes,
            ("_codecs", "encode") => Self::Encode,
            ("torch", "Size") => Self::Size,
            ("torch", "device") | ("torch.serialization", "_get_layout") => Self::Named,
            ("torch", "Tensor") => Self::TensorClass,
            ("torch.nn.parameter", "Parameter" | "Buffer") => Self::TensorClass,
            ("torch._utils", "_rebuild_tensor") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensorV2,
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensorV3,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch._utils", "_rebuild_parameter_with_state") => Self::RebuildParameterWithState,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch.storage" | "torch", "UntypedStorage" | "_UntypedStorage") => {
                Self::Storage(None)
            }
            ("torch" | "torch.cuda", name) if name.ends_with("Storage") => {
                Self::Storage(Some(ELEMENTS.iter().find(|row| row.2 == name)?.0))
            }
            ("torch", name) => match ELEMENTS.iter().find(|row| row.3 == name) {
                Some(row) => Self::Dtype(row.0),
                None => Self::TorchName(TORCH_NAMES.iter().find(|n| **n == name)?),
            },
            _ => return None,
        })
    }

    /// The name of a constant; `None` for classes and functions.
    pub(super) fn constant(self) -> Option<String> {
        match self {
            Self::Dtype(element) => Some(format!("torch.{}", element.name())),
            Self::TorchName(name) => Some(format!("torch.{name}")),
            _ => None,
        }
    }
}

/// Modules whose functions start programs, load code or reach the network.
const ACTING_MODULES: [&str; 26] = [
    "_posixsubprocess",
    "asyncio",
    "bdb",
    "code",
    "codeop",
    "commands",
    "ctypes",
    "http",
    "imp",
    "importlib",
    "marshal",
    "multiprocessing",
    "nt",
    "os",
    "pdb",
    "pip",
    "popen2",
    "posix",
    "pty",
    "runpy",
    "shutil",
    "socket",
    "subprocess",
    "sys",
    "urllib",
    "webbrowser",
];
/// Functions of `builtins` that run code or open files.
const ACTING_BUILTINS: [&str; 9] =
    ["__import__", "apply", "breakpoint", "compile", "eval", "exec", "execfile", "input", "open"];
/// Modules of PyTorch whose functions build tensors: one that is not known cannot be told from a weight.
const TENSOR_MODULES: [&str; 5] =
    ["torch", "torch._tensor", "torch._utils", "torch.cuda", "torch.storage"];

/// Whether a name that stands for no data may be passed over: an object of that class, or what that function would
/// return, is noted and never made. Refused is what does nothing in a checkpoint but harm, and what a tensor of the
/// network may be made by.
pub(super) fn may_be_passed_over(module: &str, name: &str) -> bool {
    let first = module.split('.').next().unwrap_or(module);
    let acts = match first {
        "builtins" | "__builtin__" => ACTING_BUILTINS.contains(&name),
        first => ACTING_MODULES.contains(&first),
    };
    !acts && !TENSOR_MODULES.contains(&module)
}
