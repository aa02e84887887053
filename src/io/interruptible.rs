//! Reading from pipes, devices and sockets that may never give anything, until somebody asks for the end.

use std::io::{ErrorKind, Read};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// How long a wait for data lasts until the flags are looked at again, ms.
const LOOK_EVERY_MS: i32 = 50;

/// Flags, any of which asks whoever reads to stop.
#[derive(Debug, Clone, Default)]
pub struct StopFlags(Vec<Arc<AtomicBool>>);

impl StopFlags {
    /// Of these flags.
    pub fn of(flags: impl IntoIterator<Item = Arc<AtomicBool>>) -> Self {
        Self(flags.into_iter().collect())
    }

    /// The same and one more.
    pub fn and(&self, flag: Arc<AtomicBool>) -> Self {
        Self(self.0.iter().cloned().chain([flag]).collect())
    }

    /// Whether one is raised.
    pub fn are_raised(&self) -> bool {
        self.0.iter().any(|flag| flag.load(Ordering::SeqCst))
    }
}

/// A reader that is at its end as soon as it is asked to stop, even while it waits for data.
#[derive(Debug)]
pub struct Interruptible<R> {
    inner: R,
    stop: StopFlags,
}

impl<R: Read + AsRawFd> Interruptible<R> {
    /// Reads from `inner` until its end or until a flag is raised.
    pub fn new(inner: R, stop: StopFlags) -> Self {
        Self { inner, stop }
    }
}

impl<R: Read + AsRawFd> Read for Interruptible<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            if self.stop.are_raised() {
                return Ok(0);
            }
            if has_data(self.inner.as_raw_fd())? {
                return self.inner.read(buffer);
            }
        }
    }
}

/// Waits for a short while; whether a read would not wait (data, the end, or an error).
fn has_data(fd: RawFd) -> std::io::Result<bool> {
    let mut poll = libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
    // SAFETY: `poll` is one valid entry for the length of the call, and the descriptor is open while its reader lives.
    let status = unsafe { libc::poll(&mut poll, 1, LOOK_EVERY_MS) };
    if status >= 0 {
        return Ok(status > 0);
    }
    match std::io::Error::last_os_error() {
        e if e.kind() == ErrorKind::Interrupted => Ok(false),
        e => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn a_silent_pipe_is_left_when_a_flag_is_raised() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let flag = Arc::new(AtomicBool::new(false));
        let stop = StopFlags::default().and(flag.clone());
        let mut reader = Interruptible::new(reader, stop);
        writer.write_all(b"ab").unwrap();
        let mut two = [0; 2];
        reader.read_exact(&mut two).unwrap();
        assert_eq!(&two, b"ab");
        let raising = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(120));
            flag.store(true, Ordering::SeqCst);
        });
        let began = Instant::now();
        assert_eq!(reader.read(&mut two).unwrap(), 0);
        assert!(began.elapsed() >= Duration::from_millis(100));
        raising.join().unwrap();
        drop(writer);
    }

    #[test]
    fn the_end_of_a_pipe_is_the_end() {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(writer);
        let mut all = Vec::new();
        Interruptible::new(reader, StopFlags::default()).read_to_end(&mut all).unwrap();
        assert!(all.is_empty());
    }
}
