//! Logs and progress bars on stderr: bars on a terminal, plain lines elsewhere.

use std::io::{self, IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;

/// How often a job that is no terminal's says how far it is.
const PLAIN_LINE_EVERY: Duration = Duration::from_secs(15);

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
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(verbose > 0)
        .with_timer(SinceStart(Instant::now()))
        .try_init();
    debug_assert!(started.is_ok(), "the log is set up once");
}

struct SinceStart(Instant);

impl tracing_subscriber::fmt::time::FormatTime for SinceStart {
    fn format_time(&self, w: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        let seconds = self.0.elapsed().as_secs();
        write!(w, "{:02}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
    }
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
        bars().suspend(|| drop(io::stderr().write_all(&self.0)));
    }
}

impl MakeWriter<'_> for AboveBars {
    type Writer = Line;

    fn make_writer(&self) -> Line {
        Line(Vec::new())
    }
}

/// A job of known length: a bar on a terminal, a line now and then elsewhere.
pub struct Progress {
    name: String,
    unit: &'static str,
    total: u64,
    started: Instant,
    start_at: u64,
    last_line: Instant,
    bar: Option<ProgressBar>,
    quiet: bool,
}

impl Progress {
    /// A job of `total` `unit`s, of which `done` were done before.
    pub fn start(name: &str, unit: &'static str, total: u64, done: u64) -> Self {
        let quiet = !tracing::enabled!(tracing::Level::INFO);
        let bar = (io::stderr().is_terminal() && !quiet).then(|| {
            let style = ProgressStyle::with_template(
                "{prefix:>24} {bar:28} {pos}/{len} {per_sec:>10} left {eta:>4} {msg}",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            let bar = bars().add(ProgressBar::new(total).with_style(style));
            bar.set_prefix(name.to_owned());
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
        } else if !self.quiet && self.last_line.elapsed() >= PLAIN_LINE_EVERY {
            self.last_line = Instant::now();
            let seconds = self.started.elapsed().as_secs_f64().max(1e-3);
            let rate = (done.saturating_sub(self.start_at)) as f64 / seconds;
            let left = if rate > 0.0 {
                format!("{:.0} s left", self.total.saturating_sub(done) as f64 / rate)
            } else {
                "time left unknown".to_owned()
            };
            eprintln!(
                "{}: {done}/{} {}, {rate:.1} {}/s, {left}{}{note}",
                self.name,
                self.total,
                self.unit,
                self.unit,
                if note.is_empty() { "" } else { ", " },
            );
        }
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
pub struct Jobs(Option<(String, Progress)>);

impl Jobs {
    /// `done` of the `total` `unit` of the job `name` are done; a job of another name before it is over.
    pub fn at(&mut self, name: &str, unit: &'static str, done: usize, total: usize) {
        if self.0.as_ref().is_none_or(|(of, _)| of != name) {
            let next = (name.to_owned(), Progress::start(name, unit, total as u64, 0));
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
