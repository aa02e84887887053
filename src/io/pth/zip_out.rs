//! Zip archives of records as they are, each aligned: the form in which PyTorch maps a file into memory.

use std::io::Write;

use anyhow::{Result, ensure};

/// What PyTorch aligns records to, bytes.
const ALIGNMENT: u64 = 64;
/// The extra field whose only use is its length, named as PyTorch names it.
const PADDING_ID: [u8; 2] = *b"FB";
const LOCAL_BYTES: u64 = 30;
/// The version of the zip format that large files need: 4.5.
const ZIP64_VERSION: u16 = 45;
const PLAIN_VERSION: u16 = 20;
/// 1 January 1980: files of equal content have equal bytes.
const DATE: u16 = 0x21;

/// Writes an archive from front to back.
pub(super) struct ZipOut<'a> {
    out: &'a mut dyn Write,
    at: u64,
    entries: Vec<Entry>,
    /// Sizes and offsets from here on are written as 64 bits.
    large: u64,
}

struct Entry {
    name: String,
    crc: u32,
    num_bytes: u64,
    offset: u64,
}

impl<'a> ZipOut<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self { out, at: 0, entries: Vec::new(), large: u64::from(u32::MAX) }
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.at += bytes.len() as u64;
        Ok(self.out.write_all(bytes)?)
    }

    /// A record that is at hand.
    pub(super) fn record(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.begin(name, bytes.len() as u64, crc32fast::hash(bytes))?;
        self.put(bytes)
    }

    /// A record that `write` writes, whose size and checksum are known.
    pub(super) fn record_by(
        &mut self,
        name: &str,
        num_bytes: u64,
        crc: u32,
        write: impl FnOnce(&mut dyn Write) -> Result<()>,
    ) -> Result<()> {
        self.begin(name, num_bytes, crc)?;
        let mut counted = Counted { out: &mut *self.out, num_bytes: 0 };
        write(&mut counted)?;
        let written = counted.num_bytes;
        self.at += written;
        ensure!(written == num_bytes, "{written} bytes were written, expected {num_bytes}");
        Ok(())
    }

    /// The header of a record, padded so that the record is aligned.
    fn begin(&mut self, name: &str, num_bytes: u64, crc: u32) -> Result<()> {
        let is_large = num_bytes >= self.large;
        let mut extra = Vec::new();
        if is_large {
            let sizes = [num_bytes.to_le_bytes(), num_bytes.to_le_bytes()].concat();
            extra = field([1, 0], &sizes)?;
        }
        let header_end = self.at + LOCAL_BYTES + (name.len() + extra.len()) as u64;
        // A field has 4 bytes of its own; it is left out where nothing is to be padded.
        let mut padding = header_end.next_multiple_of(ALIGNMENT) - header_end;
        if (1..4).contains(&padding) {
            padding += ALIGNMENT;
        }
        if padding > 0 {
            extra.extend(field(PADDING_ID, &vec![b'Z'; usize::try_from(padding - 4)?])?);
        }
        let size = if is_large { u32::MAX } else { u32::try_from(num_bytes)? };
        let mut header = b"PK\x03\x04".to_vec();
        header.extend(self.common(is_large, crc, [size; 2], name)?);
        header.extend(u16::try_from(extra.len())?.to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(extra);
        self.entries.push(Entry { name: name.to_owned(), crc, num_bytes, offset: self.at });
        self.put(&header)
    }

    /// From the version to the length of the name: the same in both headers.
    fn common(&self, is_large: bool, crc: u32, sizes: [u32; 2], name: &str) -> Result<Vec<u8>> {
        const UTF8_NAMES: u16 = 1 << 11;
        const STORED: u16 = 0;
        let version = if is_large { ZIP64_VERSION } else { PLAIN_VERSION };
        let mut bytes = Vec::new();
        for word in [version, UTF8_NAMES, STORED, 0, DATE] {
            bytes.extend(word.to_le_bytes());
        }
        for word in [crc, sizes[0], sizes[1]] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(u16::try_from(name.len())?.to_le_bytes());
        Ok(bytes)
    }

    /// The directory; the archive is complete after it.
    pub(super) fn finish(mut self) -> Result<()> {
        let begin = self.at;
        for entry in std::mem::take(&mut self.entries) {
            let header = self.directory_entry(&entry)?;
            self.entries.push(entry);
            self.put(&header)?;
        }
        let (num_entries, num_bytes) = (self.entries.len() as u64, self.at - begin);
        let is_large = num_entries >= u64::from(u16::MAX).min(self.large)
            || num_bytes >= self.large
            || begin >= self.large;
        if is_large {
            let end = self.zip64_end(num_entries, num_bytes, begin);
            self.put(&end)?;
        }
        let short = if is_large { u16::MAX } else { u16::try_from(num_entries)? };
        let long = |n: u64| if is_large { Ok(u32::MAX) } else { u32::try_from(n) };
        let mut end = b"PK\x05\x06".to_vec();
        for word in [0, 0, short, short] {
            end.extend(word.to_le_bytes());
        }
        for word in [long(num_bytes)?, long(begin)?] {
            end.extend(word.to_le_bytes());
        }
        end.extend(0_u16.to_le_bytes());
        self.put(&end)
    }

    fn directory_entry(&self, entry: &Entry) -> Result<Vec<u8>> {
        let Entry { name, crc, num_bytes, offset } = entry;
        let mut large = Vec::new();
        let mut short = |n: u64, times: usize| {
            if n < self.large {
                return u32::try_from(n);
            }
            large.extend(n.to_le_bytes().repeat(times));
            Ok(u32::MAX)
        };
        let (size, offset) = (short(*num_bytes, 2)?, short(*offset, 1)?);
        let is_large = !large.is_empty();
        let extra = if is_large { field([1, 0], &large)? } else { Vec::new() };
        let version = if is_large { ZIP64_VERSION } else { PLAIN_VERSION };
        let mut header = b"PK\x01\x02".to_vec();
        header.extend(version.to_le_bytes());
        header.extend(self.common(is_large, *crc, [size; 2], name)?);
        // Lengths of the extra field and of a comment, disk, attributes.
        for word in [u16::try_from(extra.len())?, 0, 0, 0, 0, 0] {
            header.extend(word.to_le_bytes());
        }
        header.extend(offset.to_le_bytes());
        header.extend(name.as_bytes());
        header.extend(extra);
        Ok(header)
    }

    fn zip64_end(&self, num_entries: u64, num_bytes: u64, begin: u64) -> Vec<u8> {
        let mut end = b"PK\x06\x06".to_vec();
        end.extend(44_u64.to_le_bytes()); // bytes that follow
        end.extend([ZIP64_VERSION.to_le_bytes(), ZIP64_VERSION.to_le_bytes()].concat());
        end.extend([0; 8]);
        for word in [num_entries, num_entries, num_bytes, begin] {
            end.extend(word.to_le_bytes());
        }
        end.extend(b"PK\x06\x07\0\0\0\0");
        end.extend(self.at.to_le_bytes());
        end.extend(1_u32.to_le_bytes()); // disks
        end
    }
}

/// An extra field: its name, its length, its bytes.
fn field(id: [u8; 2], bytes: &[u8]) -> Result<Vec<u8>> {
    let len = u16::try_from(bytes.len())?.to_le_bytes();
    Ok([&id[..], &len, bytes].concat())
}

struct Counted<'a> {
    out: &'a mut dyn Write,
    num_bytes: u64,
}

impl Write for Counted<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.num_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Cursor, Read};

    use super::*;

    fn archive(large: u64, records: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut zip = ZipOut::new(&mut bytes);
        zip.large = large;
        for (name, record) in records {
            zip.record(name, record).unwrap();
        }
        zip.finish().unwrap();
        bytes
    }

    #[test]
    fn records_come_back_aligned_from_small_and_large_archives() {
        let names: Vec<String> = (0..70).map(|n| format!("a/{}", "n".repeat(n + 1))).collect();
        let records: Vec<(&str, Vec<u8>)> =
            names.iter().enumerate().map(|(i, n)| (n.as_str(), vec![i as u8; 3 * i])).collect();
        // 0: every number as in an archive beyond 4 GiB.
        for large in [u64::from(u32::MAX), 100, 0] {
            let bytes = archive(large, &records);
            let mut zip = zip::ZipArchive::new(Cursor::new(&bytes)).unwrap();
            assert_eq!(zip.len(), records.len());
            for (name, expected) in &records {
                let mut record = zip.by_name(name).unwrap();
                assert_eq!(record.data_start().unwrap() % ALIGNMENT, 0, "{name}");
                let mut found = Vec::new();
                record.read_to_end(&mut found).unwrap();
                assert_eq!(found, *expected, "{name}, {large}");
            }
        }
    }

    #[test]
    fn more_than_65535_records_fit() {
        let names: Vec<String> = (0..70_000).map(|n| n.to_string()).collect();
        let records: Vec<(&str, Vec<u8>)> = names.iter().map(|n| (n.as_str(), vec![])).collect();
        let bytes = archive(u64::from(u32::MAX), &records);
        assert_eq!(zip::ZipArchive::new(Cursor::new(bytes)).unwrap().len(), 70_000);
    }

    #[test]
    fn a_record_of_another_size_than_announced_is_an_error() {
        let mut bytes = Vec::new();
        let mut zip = ZipOut::new(&mut bytes);
        let error = zip.record_by("a", 3, 0, |out| Ok(out.write_all(b"four")?)).unwrap_err();
        assert_eq!(error.to_string(), "4 bytes were written, expected 3");
    }
}
