//! Signals ask a run to stop and to save: SIGINT, SIGTERM, SIGUSR1 (the warning that batch systems such as Slurm send
//! before their time limit), and SIGHUP unless it is ignored, as under `nohup`. A second one ends the process at once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

/// How a command ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CommandEnd {
    Done,
    /// Stopped by a signal, everything saved.
    Interrupted,
}

/// Exit code of a process that a signal stopped.
const INTERRUPTED: i32 = 130;

/// A flag that the first of the signals raises, with a word on stderr.
///
/// # Errors
/// If the handlers cannot be installed.
pub(super) fn flag() -> Result<Arc<AtomicBool>> {
    flag_saying("stopping after this step, with a checkpoint; once more to stop without one")
}

/// As [`flag`], with other words.
///
/// # Errors
/// If the handlers cannot be installed.
pub(super) fn flag_saying(word: &'static str) -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let mut handled = vec![SIGINT, SIGTERM, SIGUSR1];
    if !is_ignored(SIGHUP) {
        handled.push(SIGHUP);
    }
    let mut signals = Signals::new(handled).context("installing the signal handlers")?;
    let raised = stop.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                if raised.swap(true, Ordering::SeqCst) {
                    end_now();
                }
                tracing::warn!("{word}");
            }
        })
        .context("starting the signal thread")?;
    Ok(stop)
}

/// Ends the process without any destructor: those of libtorch, run under its working threads, crash.
fn end_now() -> ! {
    drop(std::io::stderr().flush());
    signal_hook::low_level::exit(INTERRUPTED)
}

/// Whether the process was started with a signal ignored.
pub(super) fn is_ignored(signal: i32) -> bool {
    let mut current = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call only writes the current disposition to `current`, which is valid for writes; all-zero bytes are
    // a valid `sigaction` if it fails.
    let (status, current) = unsafe {
        let status = libc::sigaction(signal, std::ptr::null(), current.as_mut_ptr());
        (status, current.assume_init())
    };
    status == 0 && current.sa_sigaction == libc::SIG_IGN
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ignored_signal_is_told_from_a_handled_one() {
        // SIGURG is ignored by default, which is not the same as being set to be ignored.
        assert!(!is_ignored(libc::SIGURG));
        // SAFETY: no other test of this process looks at SIGURG.
        unsafe { libc::signal(libc::SIGURG, libc::SIG_IGN) };
        assert!(is_ignored(libc::SIGURG));
        // SAFETY: as above.
        unsafe { libc::signal(libc::SIGURG, libc::SIG_DFL) };
        assert!(!is_ignored(libc::SIGURG));
    }
}
