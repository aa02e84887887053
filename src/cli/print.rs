//! What is printed on stdout.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

/// Prints one JSON document on stdout.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    let text = serde_json::to_string_pretty(value).context("writing the JSON document")?;
    print_text(&text)
}

/// Prints text on stdout.
pub(super) fn print_text(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        // The reader of a pipe went away: not our failure.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to stdout"),
    }
}
