//! SIGINT and SIGTERM ask a run to stop; a second one ends the process at once. SIGHUP keeps what the shell set for it, so
//! that a run under `nohup` outlives its terminal.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

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
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("installing the signal handlers")?;
    let raised = stop.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            for _ in signals.forever() {
                if raised.swap(true, Ordering::SeqCst) {
                    std::process::exit(130);
                }
                tracing::warn!("{word}");
            }
        })
        .context("starting the signal thread")?;
    Ok(stop)
}

/// How a command ended, when it did not fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Done,
    /// Stopped by a signal, everything saved.
    Interrupted,
}
