//! Logs and progress bars on stderr: bars on a terminal, plain lines elsewhere.

use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

use super::pace::duration;

/// How often a job that is not a terminal's says how far it is, at most; a long one after this part of its time.
const PLAIN_LINE_EVERY: Duration = Duration::from_secs(15);
const PLAIN_LINES_IN_ALL_TIME: u32 = 20;

fn bars() -> &'static MultiProgress {
    static BARS: OnceLock<MultiProgress> = OnceLock::new();
    BARS.get_or_init(|| MultiProgress::with_draw_target(ProgressDrawTarget::stderr()))
}

/// Sets up the log: warnings and errors always, info by default, `-v` debug, `-vv` trace; `MQAT_LOG` overrides.
pub fn start_log(verbose: u8, quiet: bool) {
    let level = match (quiet, verbose) {
        (true, _) => "warn",
        (false, 0) => "info",
        (false, 1) => "mqat=debug,info",
        (false, _) => "mqat=trace,debug",
    };
    let filter = match std::env::var("MQAT_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::new(text),
        _ => EnvFilter::new(level),
    };
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(AboveBars)
        .with_ansi(has_colors())
        .with_target(verbose > 0)
        .with_timer(SinceStart(Instant::now()))
        .try_init();
    debug_assert!(started.is_ok(), "the log is set up once");
}

/// The text without what acts on a terminal: control characters (of names in files, for example) and marks that turn the
/// direction of writing are shown by their numbers. Line ends and tabs stay.
pub(super) fn visible(text: &str) -> String {
    escaped(text, false)
}

/// As [`visible`]; with `keep_colors` also sequences that only set colors and weight stay, as the log itself writes them.
fn escaped(text: &str, keep_colors: bool) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let length = match color_length(rest) {
            Some(length) if keep_colors => {
                out.push_str(&rest[..length]);
                length
            }
            _ if acts(c) => {
                out.extend(c.escape_unicode());
                c.len_utf8()
            }
            _ => {
                out.push(c);
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    out
}

fn acts(c: char) -> bool {
    let turns =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    (c.is_control() && c != '\n' && c != '\t') || turns
}

/// Bytes of the sequence at the front that sets colors: `ESC [ numbers m`.
fn color_length(text: &str) -> Option<usize> {
    let numbers = text.strip_prefix("\x1b[")?;
    let end = numbers.find(|c: char| !c.is_ascii_digit() && c != ';')?;
    numbers[end..].starts_with('m').then_some("\x1b[".len() + end + 1)
}

fn has_colors() -> bool {
    io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

struct SinceStart(Instant);

impl tracing_subscriber::fmt::time::FormatTime for SinceStart {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let seconds = self.0.elapsed().as_secs();
        write!(w, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
}

/// Where log lines go.
enum Log {
    Terminal,
    /// Nowhere yet: a process other than the first does not know its file so far.
    Held(Vec<u8>),
    File(fs::File),
}

static LOG: Mutex<Log> = Mutex::new(Log::Terminal);

/// Keeps log lines from the terminal until [`log_to`] says where they go.
pub(super) fn hold_log() {
    *LOG.lock().unwrap_or_else(PoisonError::into_inner) = Log::Held(Vec::new());
}

/// Writes log lines to a file, after those of earlier runs and those that were held.
///
/// # Errors
/// If the file cannot be written.
pub(super) fn log_to(path: &Path) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    let file = fs::OpenOptions::new().create(true).append(true).open(path);
    let mut file = file.with_context(writing)?;
    let mut log = LOG.lock().unwrap_or_else(PoisonError::into_inner);
    if let Log::Held(lines) = &*log {
        file.write_all(lines).with_context(writing)?;
    }
    *log = Log::File(file);
    Ok(())
}

/// Writes log lines above the bars, so that they do not tear.
struct AboveBars;

struct Line(Vec<u8>);

impl Write for Line {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        // A log that cannot be written must not stop the work.
        let text = escaped(&String::from_utf8_lossy(&self.0), has_colors());
        match &mut *LOG.lock().unwrap_or_else(PoisonError::into_inner) {
            Log::Terminal => {}
            Log::Held(lines) => return lines.extend(text.into_bytes()),
            Log::File(file) => return drop(file.write_all(text.as_bytes())),
        }
        bars().suspend(|| drop(io::stderr().write_all(text.as_bytes())));
    }
}

impl MakeWriter<'_> for AboveBars {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(Vec::new())
    }
}

/// A job of known length: a bar on a terminal, a line now and then elsewhere.
pub struct JobProgress {
    name: String,
    unit: &'static str,
    total: u64,
    started: Instant,
    start_at: u64,
    last_line: Instant,
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl JobProgress {
    /// A job of `total` `unit`s, of which `done` were done before.
    pub fn start(name: &str, unit: &'static str, total: u64, done: u64) -> Self {
        let quiet = !tracing::enabled!(tracing::Level::INFO);
        let bar = (io::stderr().is_terminal() && !quiet).then(|| {
            let style = ProgressStyle::with_template(
                "{prefix:>24} {bar:28} {pos}/{len} {rate:>9} left {eta:>4} {msg}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar())
            .with_key(
                "rate",
                |state: &ProgressState, out: &mut dyn std::fmt::Write| {
                    // A line that cannot be drawn must not stop the work.
                    let _ = write!(out, "{:.1}/s", state.per_sec());
                },
            );
            let bar = bars().add(ProgressBar::new(total).with_style(style));
            bar.set_prefix(visible(name));
            bar.set_position(done);
            bar.reset_eta();
            bar
        });
        let now = Instant::now();
        Self {
            name: name.to_owned(),
            unit,
            total,
            started: now,
            start_at: done,
            last_line: now,
            bar,
            quiet,
        }
    }

    /// `done` of the total are done; `note` says how it goes.
    pub fn at(&mut self, done: u64, note: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(note.to_owned());
            bar.set_position(done);
        } else if !self.quiet && self.last_line.elapsed() >= self.line_every() {
            self.last_line = Instant::now();
            let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
            let rate = (done.saturating_sub(self.start_at)) as f64 / seconds;
            let left = if rate > 0.0 {
                format!("{} left", duration(self.total.saturating_sub(done) as f64 / rate))
            } else {
                "time left unknown".to_owned()
            };
            eprintln!(
                "{}: {done}/{} {}, {rate:.1} {}/s, {left}{}{note}",
                visible(&self.name),
                self.total,
                self.unit,
                self.unit,
                if note.is_empty() { "" } else { ", " },
            );
        }
    }

    /// Lines come thick at first and thinner as the job goes on.
    fn line_every(&self) -> Duration {
        PLAIN_LINE_EVERY.max(self.started.elapsed() / PLAIN_LINES_IN_ALL_TIME)
    }

    /// The job is over; the bar goes away.
    pub fn finish(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

/// The progress of jobs one after another, told apart by their names.
#[derive(Default)]
pub struct Jobs(Option<(String, JobProgress)>);

impl Jobs {
    /// `done` of the `total` `unit` of the job `name` are done; a job of another name before it is over.
    pub fn at(&mut self, name: &str, unit: &'static str, done: usize, total: usize) {
        if self.0.as_ref().is_none_or(|(of, _)| of != name) {
            let next = (name.to_owned(), JobProgress::start(name, unit, total as u64, 0));
            if let Some((_, ended)) = self.0.replace(next) {
                ended.finish();
            }
        }
        if let Some((_, bar)) = self.0.as_mut() {
            bar.at(done as u64, "");
        }
    }

    /// All are over.
    pub fn finish(self) {
        if let Some((_, bar)) = self.0 {
            bar.finish();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_acts_on_a_terminal_is_shown_by_number() {
        let title = "a\u{1b}]0;mine\u{7}b\tc\nd\re";
        assert_eq!(visible(title), "a\\u{1b}]0;mine\\u{7}b\tc\nd\\u{d}e");
        assert_eq!(visible("\u{202e}gpj.exe \u{9b}2J"), "\\u{202e}gpj.exe \\u{9b}2J");
        assert_eq!(visible("dätä [2] 中"), "dätä [2] 中");
    }

    #[test]
    fn the_log_keeps_its_own_colors_alone() {
        let line = "\u{1b}[33m WARN\u{1b}[0m x\u{1b}[2Jy\u{1b}[1;31";
        assert_eq!(escaped(line, true), "\u{1b}[33m WARN\u{1b}[0m x\\u{1b}[2Jy\\u{1b}[1;31");
        assert_eq!(escaped("\u{1b}[0m", false), "\\u{1b}[0m");
    }
}
