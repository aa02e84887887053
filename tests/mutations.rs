//! Files of weights, damaged at random: an error or a value, never a panic, a hang or much memory.
//!
//! `MQAT_MUTATIONS=N` runs N cases a file (default 60). The cases are the same on every run.

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Cursor, Read, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use mqat::io::pth::{self, Value};
use mqat::io::tensors;
use mqat::seed::splitmix64;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipArchive, ZipWriter};

/// What Rust code has in use, and the most it had since the last case began.
static IN_USE: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = IN_USE.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What a reader may take besides tensors: a part that any file may need, and a part for each of its bytes.
const BASE_BYTES: usize = 64 << 20;
const BYTES_PER_BYTE: usize = 256;
/// What tensors may take: as `io::pth` says.
const TENSOR_BASE_BYTES: usize = 64 << 20;
const TENSOR_BYTES_PER_BYTE: usize = 16;
/// Most memory of the whole process, libtorch included.
const PROCESS_BYTES: usize = 1 << 30;
/// Files from here on get few cases: each takes long.
const LARGE_FILE_BYTES: usize = 50_000;

struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        splitmix64(self.0)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    fn range(&mut self, len: usize) -> std::ops::Range<usize> {
        let start = self.below(len);
        start..(start + 1 + self.below(32)).min(len)
    }
}

/// Opcodes that change what the next ones mean.
const OPCODES: &[u8] =
    b"(.012NJKMGXUTBC]})ltdaesuqhjrcRbQioP\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\
                         \x90\x91\x92\x93\x94\x95\x96\x97\x98";
const NUMBERS: [u64; 10] = [
    0,
    1,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
];

/// Changes a few places of `bytes`; `other` is a file to splice from.
fn mutate(bytes: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    for _ in 0..=random.below(3) {
        let at = random.below(bytes.len());
        let range = random.range(bytes.len());
        match random.below(8) {
            0 => bytes.truncate(at),
            1 => drop(bytes.drain(range)),
            2 => {
                let piece = other[random.range(other.len())].to_vec();
                drop(bytes.splice(at..at, piece));
            }
            3 => {
                let piece = bytes[range].repeat(1 + random.below(4));
                drop(bytes.splice(at..at, piece));
            }
            4 => {
                let number = NUMBERS[random.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][random.below(4)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            5 if !bytes.is_empty() => bytes[at] = OPCODES[random.below(OPCODES.len())],
            6 if !bytes.is_empty() => bytes[at] = random.next() as u8,
            _ if !bytes.is_empty() => bytes[at] ^= 1 << random.below(8),
            _ => bytes.push(random.next() as u8),
        }
    }
}

/// Changes one record and packs the archive anew, so that the change gets past the checksums; `None` if the file is
/// no archive that can be unpacked.
fn mutate_record(bytes: &[u8], other: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let mut zip = ZipArchive::new(Cursor::new(bytes)).ok()?;
    // The pickle is where most can go wrong.
    let pickle = (0..zip.len())
        .find(|&i| zip.name_for_index(i).is_some_and(|n| n.is_ok_and(|n| n.ends_with("data.pkl"))));
    let chosen = pickle.filter(|_| random.below(4) > 0).unwrap_or(random.below(zip.len()));
    let method = [CompressionMethod::Stored, CompressionMethod::Deflated][random.below(2)];
    let mut packed = ZipWriter::new(Cursor::new(Vec::new()));
    for i in 0..zip.len() {
        let mut record = Vec::new();
        let mut file = zip.by_index(i).ok()?;
        let name = file.name().ok()?.into_owned();
        file.by_ref().take(1 << 20).read_to_end(&mut record).ok()?;
        if i == chosen {
            mutate(&mut record, other, random);
        }
        let options = SimpleFileOptions::default().compression_method(method);
        packed.start_file(name, options).ok()?;
        packed.write_all(&record).ok()?;
    }
    Some(packed.finish().ok()?.into_inner())
}

/// The bytes of all tensors in a value.
fn tensor_bytes(value: &Value) -> usize {
    match value {
        Value::Tensor(tensor) => tensor.numel() * tensor.kind().elt_size_in_bytes(),
        Value::Dict(items) => items.iter().map(|(_, value)| tensor_bytes(value)).sum(),
        other => other.as_items().unwrap_or_default().iter().map(tensor_bytes).sum(),
    }
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let listed = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        listed.filter(|p| p.is_file() && p.extension().is_some_and(|e| e != "json")).collect();
    files.sort();
    files
}

/// Runs `read` on a damaged file of `len` bytes and returns what it made of it.
fn guarded<T>(what: &str, len: usize, read: impl FnOnce() -> anyhow::Result<T>) -> Option<T> {
    let before = IN_USE.load(Relaxed);
    MOST.store(before, Relaxed);
    let done = catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|_| panic!("{what} panicked"));
    let taken = MOST.load(Relaxed) - before;
    assert!(taken <= BASE_BYTES + BYTES_PER_BYTE * len, "{what}: {taken} bytes for {len}");
    if let Err(error) = &done {
        assert!(!format!("{error:#}").is_empty(), "{what}: no message");
    }
    done.ok()
}

fn num_cases(bytes: &[u8]) -> usize {
    let asked = std::env::var("MQAT_MUTATIONS").map(|n| n.parse().unwrap());
    let asked: usize = asked.unwrap_or(60);
    if bytes.len() < LARGE_FILE_BYTES { asked } else { asked.div_ceil(20) }
}

fn most_memory_of_the_process() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() << 10
}

/// One test, so that the memory that is counted is its own.
#[test]
fn damaged_files_of_weights_are_refused_or_read_within_bounds() {
    let golden = std::env::var_os("MQAT_GOLDEN").map(PathBuf::from);
    let golden =
        golden.unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden"));
    let folder = golden.join("12_checkpoints");
    let paths = [files(&folder), files(&folder.join("bad"))].concat();
    let sources: Vec<Vec<u8>> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    assert!(!sources.is_empty());
    let mut random = Random(7);
    let (mut num_read, mut num_refused) = (0, 0);
    for (path, source) in paths.iter().zip(&sources) {
        for case in 0..num_cases(source) {
            let other = &sources[random.below(sources.len())];
            let repacked = match random.below(4) {
                0 => None,
                _ => mutate_record(source, other, &mut random),
            };
            let bytes = repacked.unwrap_or_else(|| {
                let mut bytes = source.clone();
                mutate(&mut bytes, other, &mut random);
                bytes
            });
            let what = format!("{}, case {case}", path.display());
            match guarded(&what, bytes.len(), || pth::read_bytes(&bytes)) {
                Some(file) => {
                    let taken = tensor_bytes(&file.value);
                    let limit = TENSOR_BASE_BYTES + TENSOR_BYTES_PER_BYTE * bytes.len();
                    assert!(
                        taken <= limit,
                        "{what}: tensors of {taken} bytes from {}",
                        bytes.len()
                    );
                    num_read += 1;
                }
                None => num_refused += 1,
            }
        }
    }
    let taken = most_memory_of_the_process();
    assert!(taken <= PROCESS_BYTES, "the process took {taken} bytes");
    println!("{num_read} files read, {num_refused} refused");
    assert!(num_read > 0 && num_refused > 0);
    damage_safetensors(&mut random);
}

/// The same for safetensors.
fn damage_safetensors(random: &mut Random) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.safetensors");
    let named: Vec<(String, tch::Tensor)> = (0..4)
        .map(|i| {
            (
                format!("tensor.{i}"),
                tch::Tensor::arange(6 * i, (tch::Kind::Float, tch::Device::Cpu)),
            )
        })
        .collect();
    tensors::write(&path, &named, &[("note".to_owned(), "text".to_owned())].into()).unwrap();
    let source = std::fs::read(&path).unwrap();
    for case in 0..num_cases(&source) * 10 {
        let mut bytes = source.clone();
        mutate(&mut bytes, &source, random);
        std::fs::write(&path, &bytes).unwrap();
        guarded(&format!("safetensors, case {case}"), bytes.len(), || tensors::read(&path));
        guarded(&format!("safetensors head, case {case}"), bytes.len(), || {
            tensors::read_head(&path)
        });
    }
}
