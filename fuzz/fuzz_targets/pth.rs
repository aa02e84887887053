//! Any bytes as a PyTorch file: the part of the reader that makes no tensors, so that libtorch stays out.
//!
//! Input whose first byte is 0 to 3 is a pickle, put into an archive with a few storages: the fuzzer then need not
//! find checksums.
#![no_main]
#![allow(dead_code)]

#[path = "../../src/io/pth/parse/mod.rs"]
mod parse;

use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

/// More is never asked for: see the limits in `parse`.
const MAX_TENSOR_BYTES: u64 = (64 << 20) + 16 * (1 << 20);

fuzz_target!(|bytes: &[u8]| {
    match bytes.split_first() {
        Some((0..=3, pickle)) => read(&archive(pickle)),
        _ => read(bytes),
    }
});

fn archive(pickle: &[u8]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let plain = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    let storages =
        [("0", 80), ("1", 12), ("2", 0)].map(|(key, n)| (format!("a/data/{key}"), vec![1; n]));
    for (name, bytes) in [("a/data.pkl".to_owned(), pickle.to_vec())].into_iter().chain(storages) {
        zip.start_file(name, plain).expect("a record begins");
        zip.write_all(&bytes).expect("a record is written");
    }
    zip.finish().expect("an archive ends").into_inner()
}

fn read(bytes: &[u8]) {
    let Ok(mut parsed) = parse::parse(Cursor::new(bytes)) else { return };
    let mut taken = 0;
    for view in &parsed.views {
        let size = view.element.size();
        let available = parsed.storages[view.storage].num_bytes / size;
        if view.num_elements > 0 {
            let steps = view.shape.iter().zip(&view.strides).map(|(&n, &step)| (n - 1) * step);
            assert!(view.offset + steps.sum::<u64>() < available, "{view:?} of {available}");
        }
        taken += view.num_elements * size;
    }
    assert!(taken <= MAX_TENSOR_BYTES, "tensors of {taken} bytes");
    for i in parsed.in_order.clone() {
        let num_bytes = parsed.storages[i].num_bytes;
        assert!(num_bytes <= 1100 * bytes.len() as u64, "a storage of {num_bytes} bytes");
        let mut storage = vec![0; num_bytes as usize];
        let _ = parsed.read_storage(i, &mut storage);
    }
}
