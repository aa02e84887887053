//! Zip archives of records as they are, each aligned: the form in which PyTorch maps a file into memory.

use std::io::Write;
use std::mem::ManuallyDrop;

use anyhow::Result;
use zip::write::{SimpleFileOptions, StreamWriter};
use zip::{CompressionMethod, DateTime, ZipWriter};

/// What PyTorch aligns records to, bytes.
const ALIGNMENT: u16 = 64;

/// Writes an archive from front to back. Equal records give equal bytes.
pub(super) struct ZipOut<'a> {
    /// Dropped without [`ZipOut::finish`] it would try to complete the archive, and print what goes wrong then, after the
    /// error that ended the writing.
    zip: ManuallyDrop<ZipWriter<StreamWriter<&'a mut dyn Write>>>,
}

impl<'a> ZipOut<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { zip: ManuallyDrop::new(ZipWriter::new_stream(out)) }
    }

    /// A record that is at hand.
    pub(super) fn record(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.record_by(name, bytes.len() as u64, |out| Ok(out.write_all(bytes)?))
    }

    /// A record of up to so many bytes that `write` writes.
    pub(super) fn record_by(
        &mut self,
        name: &str,
        num_bytes: u64,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        let options = SimpleFileOptions::default()
            .compression_method(CompressionMethod::Stored)
            .last_modified_time(DateTime::default()) // 1 January 1980
            .with_alignment(ALIGNMENT)
            .large_file(num_bytes >= u64::from(u32::MAX));
        self.zip.start_file(name, options)?;
        write(&mut *self.zip)
    }

    /// The directory; the archive is complete after it.
    pub(super) fn finish(self) -> Result<()> {
        ManuallyDrop::into_inner(self.zip).finish()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::*;

    /// Each record with the size that it is announced with.
    fn archive(records: &[(&str, Vec<u8>)], announced: impl Fn(&[u8]) -> u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut zip = ZipOut::new(&mut bytes);
        for (name, record) in records {
            zip.record_by(name, announced(record), |out| Ok(out.write_all(record)?)).unwrap();
        }
        zip.finish().unwrap();
        bytes
    }

    fn own_size(record: &[u8]) -> u64 {
        record.len() as u64
    }

    #[test]
    fn records_come_back_aligned_from_small_and_large_archives() {
        let names: Vec<String> = (0..70).map(|n| format!("a/{}", "n".repeat(n + 1))).collect();
        let records: Vec<(&str, Vec<u8>)> =
            names.iter().enumerate().map(|(i, n)| (n.as_str(), vec![i as u8; 3 * i])).collect();
        // Sizes of 64 bits, as records beyond 4 GiB have them.
        let large = |_: &[u8]| u64::from(u32::MAX);
        for bytes in [archive(&records, own_size), archive(&records, large)] {
            let mut zip = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
            assert_eq!(zip.len(), records.len());
            for (name, expected) in &records {
                let mut record = zip.by_name(name).unwrap();
                assert_eq!(record.data_start().unwrap() % u64::from(ALIGNMENT), 0, "{name}");
                let mut found = Vec::new();
                record.read_to_end(&mut found).unwrap();
                assert_eq!(found, *expected, "{name}");
            }
        }
        assert_eq!(archive(&records, own_size), archive(&records, own_size));
    }

    #[test]
    fn more_than_65535_records_fit() {
        let names: Vec<String> = (0..70_000).map(|n| n.to_string()).collect();
        let records: Vec<(&str, Vec<u8>)> = names.iter().map(|n| (n.as_str(), vec![])).collect();
        let bytes = archive(&records, own_size);
        assert_eq!(zip::ZipArchive::new(Cursor::new(bytes)).unwrap().len(), 70_000);
    }

    #[test]
    fn an_error_of_the_writer_is_handed_on() {
        let mut bytes = Vec::new();
        let mut zip = ZipOut::new(&mut bytes);
        let error = zip.record_by("a", 3, |_| anyhow::bail!("no more numbers")).unwrap_err();
        assert_eq!(error.to_string(), "no more numbers");
    }
}
