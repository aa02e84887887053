//! JSON files whose errors say where.

use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::{mistaken, read_file, without_mark, write_atomic};
use crate::schema::plain;

/// The value that the JSON file holds.
///
/// # Errors
/// If the file cannot be read or does not fit `T`: names the file, the line and the dotted key.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let bytes = read_file(path)?;
    parse_json(&bytes, &path.display().to_string())
}

/// The value that `text` (JSON, with or without a [byte order mark](without_mark)) holds; errors begin with `at`, the name
/// of where it came from.
///
/// # Errors
/// If `text` does not fit `T`: names `at`, the line and the dotted key.
pub fn parse_json<T: DeserializeOwned>(text: &[u8], at: &str) -> Result<T> {
    if let Some(what) = mistaken(text) {
        bail!("{at} {what}");
    }
    let text = without_mark(text).with_context(|| at.to_owned())?;
    let mut reader = serde_json::Deserializer::from_slice(&text);
    let value = serde_path_to_error::deserialize(&mut reader).map_err(|error| {
        // "." at the top, "?" where the text ends inside a key.
        let path = error.path().to_string().replace('[', ".").replace(']', "");
        let key = path.trim_end_matches('?').trim_end_matches('.');
        describe(at, Some(key).filter(|key| !key.is_empty()), error.inner())
    })?;
    reader.end().map_err(|error| describe(at, None, &error))?;
    Ok(value)
}

/// Reads a file of JSON values, one a line.
///
/// # Errors
/// If the file cannot be read or a line does not fit `T`: names file, line and key.
pub fn read_json_lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let text = read_file(path)?;
    let lines = text.split(|byte| *byte == b'\n').enumerate();
    let values = lines.filter(|(_, line)| !line.is_empty());
    values.map(|(i, line)| parse_json(line, &format!("{}:{}", path.display(), i + 1))).collect()
}

/// `file: line 3: section.key: what is wrong`.
fn describe(at: &str, key: Option<&str>, error: &serde_json::Error) -> anyhow::Error {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let what = plain(text.strip_suffix(&place).unwrap_or(&text));
    let key = key.map(|key| format!("{key}: ")).unwrap_or_default();
    match error.line() {
        0 => anyhow!("{at}: {key}{what}"),
        line => anyhow!("{at}: line {line}: {key}{what}"),
    }
}

/// The dotted keys in which two documents differ, in their order: those that one of them lacks, too.
pub fn differing_keys(a: &Value, b: &Value) -> Vec<String> {
    let mut found = Vec::new();
    compare(a, b, "", &mut found);
    found
}

/// Keys for a message, the first 8 of them.
pub fn name_keys(mut keys: Vec<String>) -> String {
    const MOST: usize = 8;
    if keys.len() > MOST {
        let more = keys.len() - MOST;
        keys.truncate(MOST);
        keys.push(format!("{more} more"));
    }
    keys.join(", ")
}

fn compare(a: &Value, b: &Value, at: &str, found: &mut Vec<String>) {
    let below = |key: &str| if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") };
    let null = Value::Null;
    match (a, b) {
        (Value::Object(x), Value::Object(y)) => {
            let new = y.keys().filter(|key| !x.contains_key(*key));
            for key in x.keys().chain(new) {
                let (x, y) = (x.get(key).unwrap_or(&null), y.get(key).unwrap_or(&null));
                compare(x, y, &below(key), found);
            }
        }
        (Value::Array(x), Value::Array(y)) if x.len() == y.len() => {
            for (i, (x, y)) in x.iter().zip(y).enumerate() {
                compare(x, y, &below(&i.to_string()), found);
            }
        }
        _ if a == b => {}
        _ => found.push(at.to_owned()),
    }
}

/// Writes `value` as indented JSON with a final newline, [whole or not at all](write_atomic).
///
/// # Errors
/// If `value` cannot be JSON (a map key that is not a string), or the file cannot be written.
pub fn write_json<T: Serialize>(path: &Path, value: &T) -> Result<()> {
    write_atomic(path, |out| {
        serde_json::to_writer_pretty(&mut *out, value)?;
        Ok(out.write_all(b"\n")?)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::collections::BTreeMap;
    use std::fs;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        bits: u32,
        rates: Vec<f64>,
    }

    type Outer = BTreeMap<String, Inner>;

    fn error_of(text: &str) -> String {
        format!("{:#}", parse_json::<Outer>(text.as_bytes(), "a.json").unwrap_err())
    }

    #[test]
    fn what_is_written_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let value = Outer::from([("fpn".to_owned(), Inner { bits: 2, rates: vec![0.1, 1e-300] })]);
        write_json(&path, &value).unwrap();
        assert_eq!(read_json::<Outer>(&path).unwrap(), value);
        assert!(fs::read_to_string(&path).unwrap().ends_with("}\n"));
    }

    #[test]
    fn errors_name_file_line_and_key() {
        let cases = [
            (
                "{\n\"fpn\": {\"bits\": \"2\", \"rates\": []}}",
                "a.json: line 2: fpn.bits: is the text \"2\", expected a whole number",
            ),
            (
                "{\"fpn\": {\"bits\": 2,\n\"rates\": [1,\nnull]}}",
                "a.json: line 3: fpn.rates.1: is null, expected a number",
            ),
            (
                "{\"fpn\": {\"bits\": 2, \"rate\": []}}",
                "a.json: line 1: fpn.rate: unknown key rate, expected",
            ),
            ("{\"fpn\": {\"bits\": 2}}", "a.json: line 1: fpn: lacks the key rates"),
            ("{\"fpn\": {\"bits\": 2", "a.json: line 1: fpn: EOF while parsing"),
            ("{}\n{}", "a.json: line 2: trailing characters"),
            ("", "a.json: line 1: EOF while parsing"),
        ];
        for (text, expected) in cases {
            let error = error_of(text);
            assert!(error.starts_with(expected), "{error}\nexpected {expected}");
            assert!(!error.contains(" at line "), "{error}");
        }
    }

    #[test]
    fn byte_order_marks_are_no_part_of_the_document() {
        let text = r#"{"fpn": {"bits": 2, "rates": [0.5]}}"#;
        let marked = format!("\u{feff}{text}");
        let wide: Vec<u8> = marked.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let plain = parse_json::<Outer>(text.as_bytes(), "a.json").unwrap();
        for bytes in [marked.into_bytes(), wide] {
            assert_eq!(parse_json::<Outer>(&bytes, "a.json").unwrap(), plain);
        }
        assert!(error_of("\u{feff}{").starts_with("a.json: line 1: EOF"));
        let cut = parse_json::<Outer>(b"\xff\xfe{", "a.json").unwrap_err();
        assert!(format!("{cut:#}").starts_with("a.json: its byte order mark says UTF-16"));
    }

    #[test]
    fn differences_are_named_by_their_keys() {
        let a = serde_json::json!({ "x": { "y": 1, "z": [1, 2] }, "flow": [1], "same": null });
        let b = serde_json::json!({ "x": { "y": 2, "z": [1, 3] }, "flow": [1, 2], "new": true });
        assert_eq!(differing_keys(&a, &b), ["x.y", "x.z.1", "flow", "new"]);
        assert!(differing_keys(&a, &a).is_empty());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = read_json::<Outer>(Path::new("no/such.json")).unwrap_err();
        assert!(format!("{error:#}").starts_with("reading no/such.json: "), "{error:#}");
    }
}
