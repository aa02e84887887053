//! What is printed on stdout.

use std::io::Write;

use anyhow::{Context, Result};
use serde::Serialize;

use super::terminal::visible;

/// Prints one JSON document on stdout.
pub(super) fn print_json(value: &impl Serialize) -> Result<()> {
    // Control characters are escaped in JSON already.
    let text = serde_json::to_string_pretty(value).context("writing the JSON document")?;
    print_raw(&text)
}

/// Prints text on stdout, without what acts on a terminal.
pub(super) fn print_text(text: &str) -> Result<()> {
    print_raw(&visible(text))
}

fn print_raw(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        // The reader of a pipe went away: not our failure.
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to stdout"),
    }
}
