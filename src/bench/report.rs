//! What a bench says, and the small things all benches share.

use std::fmt::Write as _;

use anyhow::{Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value};

use super::rounds::{Rounds, SubjectReport, table};
use crate::run::Machine;
use crate::run::config::Config;

/// What a bench found.
#[derive(Debug, Serialize)]
pub struct BenchReport {
    /// Which bench.
    pub bench: &'static str,
    /// What it ran on.
    pub machine: Machine,
    /// The command line.
    pub command: Vec<String>,
    /// Rounds and warm-up.
    #[serde(flatten)]
    pub rounds: Rounds,
    /// What all subjects have in common.
    pub settings: Map<String, Value>,
    /// What a call handles so many of: images, steps, problems.
    pub item: &'static str,
    /// The subjects; ratios are to the first.
    pub subjects: Vec<SubjectReport>,
    /// What is to be known about the numbers.
    pub notes: Vec<String>,
}

impl BenchReport {
    /// The settings in a line.
    pub(super) fn settings_text(&self) -> String {
        let one = |(k, v): (&String, &Value)| format!("{}: {}", k.replace('_', " "), plain(v));
        self.settings.iter().map(one).collect::<Vec<_>>().join(", ")
    }

    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let _ = writeln!(out, "{}: {}", self.bench, self.settings_text());
        let _ = writeln!(out, "{}", self.machine.text());
        let Rounds { rounds, warm_up } = self.rounds;
        let _ = writeln!(
            out,
            "{rounds} interleaved rounds, after {warm_up} to warm up; ratios are to the first, round by round"
        );
        out.push('\n');
        out.push_str(&table(&self.subjects, self.item));
        for note in &self.notes {
            let _ = write!(out, "\n{note}");
        }
        out
    }
}

/// A JSON value without its quotes.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(all) => all.iter().map(plain).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

/// Named values as a JSON object.
pub(super) fn object<const N: usize>(entries: [(&str, Value); N]) -> Map<String, Value> {
    entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

/// Changes the network's input to a square of so many px, with the same field of view across its width.
///
/// # Errors
/// If the size is not one that the network takes.
pub(super) fn resize(config: &mut Config, size_px: Option<usize>) -> Result<()> {
    let Some(size) = size_px else { return Ok(()) };
    let input = &mut config.input;
    let (x, y) = (size as f64 / input.width as f64, size as f64 / input.height as f64);
    for (value, factor) in input.k.iter_mut().zip([x, x, x, y, y, y, 1.0, 1.0, 1.0]) {
        *value *= factor;
    }
    (input.width, input.height) = (size, size);
    let mut problems = Vec::new();
    input.check("INPUT", &mut problems);
    ensure!(problems.is_empty(), "--size {size}: {}", problems.join("; "));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resized_input_sees_the_same() {
        let mut config = Config::default();
        let before = config.input.clone();
        resize(&mut config, None).unwrap();
        assert_eq!(config.input, before);
        resize(&mut config, Some(256)).unwrap();
        assert_eq!((config.input.width, config.input.height), (256, 256));
        assert_eq!((config.input.k[0] * 2.0, config.input.k[5]), (before.k[0], 128.0));
        assert_eq!(config.input.k[6..], [0.0, 0.0, 1.0]);
        let error = resize(&mut config, Some(100)).unwrap_err().to_string();
        assert!(error.contains("--size 100") && error.contains("multiple"), "{error}");
        assert!(resize(&mut config, Some(0)).is_err());
    }

    #[test]
    fn settings_are_written_without_quotes() {
        assert_eq!(plain(&serde_json::json!(["a", 1, null])), "a 1 null");
    }
}
