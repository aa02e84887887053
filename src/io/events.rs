//! TensorBoard event files: scalars over steps.
//!
//! A file is a row of TFRecords (length, masked CRC-32C of the length, bytes, masked CRC-32C of the bytes), each
//! an `Event` of `tensorflow/core/util/event.proto`, of which the messages below are the part used here.

use std::fs::{self, File};
use std::io::{BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use prost::Message;

/// `message Event` of event.proto.
#[derive(Clone, PartialEq, Message)]
struct Event {
    /// Seconds since 1970.
    #[prost(double, tag = "1")]
    wall_time: f64,
    #[prost(int64, tag = "2")]
    step: i64,
    #[prost(oneof = "What", tags = "3, 5, 7")]
    what: Option<What>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum What {
    #[prost(string, tag = "3")]
    FileVersion(String),
    #[prost(message, tag = "5")]
    Summary(Summary),
    #[prost(message, tag = "7")]
    SessionLog(SessionLog),
}

/// `message Summary` of summary.proto.
#[derive(Clone, PartialEq, Message)]
struct Summary {
    #[prost(message, repeated, tag = "1")]
    value: Vec<SummaryValue>,
}

#[derive(Clone, PartialEq, Message)]
struct SummaryValue {
    #[prost(string, tag = "1")]
    tag: String,
    #[prost(float, optional, tag = "2")]
    simple_value: Option<f32>,
}

/// `message SessionLog` of event.proto.
#[derive(Clone, PartialEq, Message)]
struct SessionLog {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SESSION_START: i32 = 1;

/// Writes one event file, `events.out.tfevents.<seconds>.<host>.<process>`.
#[derive(Debug)]
pub struct EventWriter {
    out: BufWriter<File>,
    path: PathBuf,
}

impl EventWriter {
    /// Opens a new event file in `folder`, which is made if missing.
    ///
    /// # Errors
    /// If the folder or the file cannot be made.
    pub fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        let seconds = unix_seconds() as u64;
        let stem = format!("events.out.tfevents.{seconds:010}.{}.{}", host(), std::process::id());
        let (path, file) = create_new(folder, &stem)?;
        let mut writer = Self { out: BufWriter::new(file), path };
        writer.record(0, What::FileVersion("brain.Event:2".to_owned()))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Opens a new event file that takes over at `first_step`: what earlier files of the folder hold from that
    /// step on was lost with the run that was cut off, and TensorBoard drops it.
    ///
    /// # Errors
    /// As [`EventWriter::open`].
    pub fn resume(folder: &Path, first_step: i64) -> Result<Self> {
        let mut writer = Self::open(folder)?;
        writer.record(first_step, What::SessionLog(SessionLog { status: SESSION_START }))?;
        writer.flush()?;
        Ok(writer)
    }

    /// Adds a point to the curve `tag` (slashes group curves). It is in the file after [`EventWriter::flush`].
    ///
    /// # Errors
    /// If `tag` is empty or the file cannot be written.
    pub fn scalar(&mut self, tag: &str, step: i64, value: f32) -> Result<()> {
        ensure!(!tag.is_empty(), "a scalar of {} has no tag", self.path.display());
        let value = SummaryValue { tag: tag.to_owned(), simple_value: Some(value) };
        self.record(step, What::Summary(Summary { value: vec![value] }))
    }

    /// Hands all points to the system.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().with_context(|| format!("writing {}", self.path.display()))
    }

    /// The file being written.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn record(&mut self, step: i64, what: What) -> Result<()> {
        let event = Event { wall_time: unix_seconds(), step, what: Some(what) };
        let record = tf_record(&event.encode_to_vec());
        self.out.write_all(&record).with_context(|| format!("writing {}", self.path.display()))
    }
}

fn unix_seconds() -> f64 {
    // A clock before 1970 only makes the times of the curves wrong.
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

fn host() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let name: String = name.trim().chars().filter(|&c| is_plain(c)).collect();
    if name.is_empty() { "localhost".to_owned() } else { name }
}

/// A file that nobody has: two writers of one process may start in the same second.
fn create_new(folder: &Path, stem: &str) -> Result<(PathBuf, File)> {
    for number in 0.. {
        let name = if number == 0 { stem.to_owned() } else { format!("{stem}.{number}") };
        let path = folder.join(name);
        match File::create_new(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
            created => {
                let file = created.with_context(|| format!("making {}", path.display()))?;
                return Ok((path, file));
            }
        }
    }
    unreachable!("there are fewer files than numbers")
}

fn tf_record(bytes: &[u8]) -> Vec<u8> {
    let length = (bytes.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(bytes.len() + 16);
    record.extend(length);
    record.extend(masked_crc(&length).to_le_bytes());
    record.extend(bytes);
    record.extend(masked_crc(bytes).to_le_bytes());
    record
}

/// Rotated and offset, as TFRecord wants it (`tensorflow/core/lib/hash/crc32c.h`).
fn masked_crc(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The events of a file, each record's two checksums compared.
    fn events_of(path: &Path) -> Vec<Event> {
        let bytes = fs::read(path).unwrap();
        let mut rest = bytes.as_slice();
        let mut events = Vec::new();
        while !rest.is_empty() {
            let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(rest[at..at + 4].try_into().unwrap());
            assert_eq!(crc(8), masked_crc(&rest[..8]));
            assert_eq!(crc(12 + length), masked_crc(&rest[12..12 + length]));
            events.push(Event::decode(&rest[12..12 + length]).unwrap());
            rest = &rest[16 + length..];
        }
        events
    }

    #[test]
    fn a_file_begins_with_its_version_and_holds_the_points() {
        let folder = tempfile::tempdir().unwrap();
        let mut writer = EventWriter::open(&folder.path().join("events")).unwrap();
        writer.scalar("loss/total", 7, 0.25).unwrap();
        writer.scalar("lr", 8, 0.0).unwrap(); // a zero must be in the file, too
        writer.flush().unwrap();
        let events = events_of(writer.path());
        assert_eq!(events[0].what, Some(What::FileVersion("brain.Event:2".to_owned())));
        let points: Vec<_> = events[1..]
            .iter()
            .map(|event| match &event.what {
                Some(What::Summary(s)) => {
                    (event.step, s.value[0].tag.as_str(), s.value[0].simple_value)
                }
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(points, [(7, "loss/total", Some(0.25)), (8, "lr", Some(0.0))]);
        assert!(events.iter().all(|event| event.wall_time > 1.6e9));
    }

    #[test]
    fn a_record_has_the_bytes_of_the_format() {
        // An empty record: CRC-32C of eight zero bytes is 0x8c28b28a, of nothing 0; both masked by hand.
        let record = tf_record(&[]);
        assert_eq!(record[..8], [0; 8]);
        let masked = 0x8c28_b28a_u32.rotate_right(15).wrapping_add(0xa282_ead8);
        assert_eq!(record[8..12], masked.to_le_bytes());
        assert_eq!(record[12..], 0xa282_ead8_u32.to_le_bytes());
    }

    #[test]
    fn a_resumed_run_opens_another_file_that_says_where() {
        let folder = tempfile::tempdir().unwrap();
        let first = EventWriter::open(folder.path()).unwrap();
        let second = EventWriter::resume(folder.path(), 40).unwrap();
        assert_ne!(first.path(), second.path());
        let name = second.path().file_name().unwrap().to_string_lossy().into_owned();
        assert!(name.starts_with("events.out.tfevents."), "{name}");
        let log = What::SessionLog(SessionLog { status: SESSION_START });
        let event = &events_of(second.path())[1];
        assert_eq!((event.step, &event.what), (40, &Some(log)));
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "").unwrap();
        let error = EventWriter::open(&file.join("events")).unwrap_err();
        assert!(format!("{error:#}").contains("a/events"), "{error:#}");
    }
}
