//! SIGINT and SIGTERM ask a run to stop; a second one ends the process at once.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;

/// A flag that the first SIGINT or SIGTERM raises.
///
/// # Errors
/// If the handlers cannot be installed.
pub(super) fn flag() -> Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the second signal finds the flag raised and exits before raising it again.
        flag::register_conditional_shutdown(signal, 130, stop.clone())
            .and_then(|_| flag::register(signal, stop.clone()))
            .with_context(|| format!("installing the handler of signal {signal}"))?;
    }
    Ok(stop)
}
