//! Opening files that a user names, which may be anything: never waiting for a pipe that nobody writes into, never
//! reading a device without end.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

/// Most bytes of a file that is read whole: far beyond any config, list or annotation.
const MAX_WHOLE_BYTES: u64 = 4 << 30;

/// Opens a file that must be seekable and of known size.
///
/// # Errors
/// If it cannot be opened, or is a folder, pipe, socket or device.
pub fn open_file(path: &Path) -> Result<File> {
    open_inner(path).with_context(|| format!("opening {}", path.display()))
}

fn open_inner(path: &Path) -> Result<File> {
    let file = open_at_once(path)?;
    let kind = file.metadata()?.file_type();
    ensure!(kind.is_file(), "it is {}, expected a file", name_of(kind));
    Ok(file)
}

/// The bytes of a file, or of a pipe that somebody writes into (`<(command)` of a shell).
///
/// # Errors
/// If it cannot be read, is a folder or a device, is a pipe without a writer, or has more than 4 GiB.
pub fn read_file(path: &Path) -> Result<Vec<u8>> {
    read_inner(path, MAX_WHOLE_BYTES).with_context(|| format!("reading {}", path.display()))
}

fn read_inner(path: &Path, most: u64) -> Result<Vec<u8>> {
    let file = open_stream_inner(path)?;
    let is_pipe = file.metadata()?.file_type().is_fifo();
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    ensure!(bytes.len() as u64 <= most, "it has more than {most} bytes");
    ensure!(!(is_pipe && bytes.is_empty()), "it is a pipe into which nobody writes");
    Ok(bytes)
}

/// Opens a file, or a pipe that somebody writes into, to be read from its beginning to its end. A pipe without a writer
/// is empty.
///
/// # Errors
/// If it cannot be opened, or is a folder, socket or device.
pub fn open_stream(path: &Path) -> Result<File> {
    open_stream_inner(path).with_context(|| format!("opening {}", path.display()))
}

fn open_stream_inner(path: &Path) -> Result<File> {
    let file = open_at_once(path)?;
    let kind = file.metadata()?.file_type();
    if kind.is_fifo() {
        wait_when_reading(&file)?;
    } else if !kind.is_file() {
        bail!("it is {}, expected a file", name_of(kind));
    }
    Ok(file)
}

/// Bytes of a file and their CRC-32C.
///
/// # Errors
/// If it cannot be read.
pub fn checksum(path: &Path) -> Result<(u64, u32)> {
    let reading = || format!("reading {}", path.display());
    let mut file = open_file(path)?;
    let (mut bytes, mut crc) = (0, 0);
    let mut chunk = vec![0; 1 << 20];
    loop {
        let read = file.read(&mut chunk).with_context(reading)?;
        if read == 0 {
            return Ok((bytes, crc));
        }
        bytes += read as u64;
        crc = crc32c::crc32c_append(crc, &chunk[..read]);
    }
}

/// Opens without waiting: a pipe that nobody writes into opens at once, and is at its end.
fn open_at_once(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)
}

/// Makes reads wait for the writer again.
fn wait_when_reading(file: &File) -> Result<()> {
    // SAFETY: the descriptor is open as long as `file` lives, and the call changes nothing but its flags.
    let status = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, 0) };
    ensure!(status == 0, "setting up the pipe: {}", std::io::Error::last_os_error());
    Ok(())
}

fn name_of(kind: std::fs::FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn a_checksum_is_that_of_all_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("digits");
        // The check value of CRC-32C (Castagnoli).
        std::fs::write(&path, b"123456789").unwrap();
        assert_eq!(checksum(&path).unwrap(), (9, 0xe306_9283));
        std::fs::write(&path, vec![0; (2 << 20) + 5]).unwrap();
        assert_eq!(checksum(&path).unwrap().0, (2 << 20) + 5);
        assert!(checksum(folder.path()).is_err());
    }

    fn pipe(folder: &Path) -> std::path::PathBuf {
        let path = folder.join("pipe");
        let name = CString::new(path.as_os_str().as_bytes()).unwrap();
        // SAFETY: a terminated string.
        assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
        path
    }

    #[test]
    fn what_is_no_file_is_told_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = pipe(dir.path());
        for (path, what) in [
            (pipe.as_path(), "a pipe"),
            (Path::new("/dev/zero"), "a device"),
            (dir.path(), "a directory"),
            (Path::new("/no/such"), "No such file"),
        ] {
            for error in [open_file(path).unwrap_err(), read_file(path).unwrap_err()] {
                let error = format!("{error:#}");
                assert!(
                    error.contains(what) && error.contains(&*path.to_string_lossy()),
                    "{error}"
                );
            }
        }
    }

    #[test]
    fn a_pipe_with_a_writer_and_a_file_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = pipe(dir.path());
        // Open for both, so that neither side waits for the other.
        let mut both = OpenOptions::new().read(true).write(true).open(&pipe).unwrap();
        std::io::Write::write_all(&mut both, b"{}").unwrap();
        let reader = std::thread::spawn(move || read_file(&pipe));
        // Until then the reader waits for more.
        std::thread::sleep(std::time::Duration::from_millis(50));
        drop(both);
        assert_eq!(reader.join().unwrap().unwrap(), b"{}");
        let file = dir.path().join("file");
        std::fs::write(&file, "abc").unwrap();
        assert_eq!(read_file(&file).unwrap(), b"abc");
        let error = format!("{:#}", read_inner(&file, 2).unwrap_err());
        assert!(error.contains("more than 2 bytes"), "{error}");
    }
}
