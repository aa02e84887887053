//! Messages of serde in words that do not need the program's source.

/// A message of serde or serde_json in plain words: `invalid type: integer `3`, expected struct LrConfig` is `is the
/// number 3, expected a group of keys`. Other texts stay as they are.
pub fn plain(message: &str) -> String {
    if let Some(rest) = strip(message, &["invalid type: ", "invalid value: "])
        && let Some((is, expected)) = rest.rsplit_once(", expected ")
    {
        return format!("is {}, expected {}", found(is), expectation(expected));
    }
    if let Some(rest) = message.strip_prefix("invalid length ")
        && let Some((length, expected)) = rest.split_once(", expected ")
    {
        return format!("has {length} values, expected {}", expectation(expected));
    }
    for (begin, end) in
        [("missing field ", "lacks the key "), ("duplicate field ", "has twice the key ")]
    {
        if let Some(name) = message.strip_prefix(begin) {
            return format!("{end}{}", bare(name));
        }
    }
    for (begin, what) in [("unknown field ", "key"), ("unknown variant ", "name")] {
        if let Some((name, expected)) = message.strip_prefix(begin).and_then(name_and_rest) {
            return match expected {
                None => format!("unknown {what} {name}, expected none"),
                Some(expected) => format!("unknown {what} {name}, expected {}", bare(expected)),
            };
        }
    }
    if strip(message, &["data did not match any variant", "no variant of enum"]).is_some() {
        return "has none of the forms that it may have".to_owned();
    }
    // A message inside another one, behind its key.
    match message.split_once(": ") {
        Some((key, inner)) if !key.contains(char::is_whitespace) => {
            format!("{key}: {}", plain(inner))
        }
        _ => message.to_owned(),
    }
}

fn strip<'a>(text: &'a str, prefixes: &[&str]) -> Option<&'a str> {
    prefixes.iter().find_map(|prefix| text.strip_prefix(prefix))
}

/// The name between the backquotes at the beginning, and what follows `expected`, unless nothing is expected.
fn name_and_rest(text: &str) -> Option<(&str, Option<&str>)> {
    let (name, rest) = text.strip_prefix('`')?.split_once('`')?;
    Some((name, rest.strip_prefix(", expected ")))
}

/// Without backquotes.
fn bare(text: &str) -> String {
    text.replace('`', "")
}

/// What serde found.
fn found(text: &str) -> String {
    let value = |begin: &str| text.strip_prefix(begin).map(bare);
    if let Some(value) = value("boolean ") {
        return value;
    }
    if let Some(value) = value("integer ").or_else(|| value("floating point ")) {
        return format!("the number {value}");
    }
    if let Some(value) = text.strip_prefix("string ").or_else(|| text.strip_prefix("character ")) {
        return format!("the text {value}");
    }
    match text {
        "null" | "unit value" => "null",
        "sequence" => "a list",
        "map" => "a group of keys",
        _ => "a value of another kind",
    }
    .to_owned()
}

/// What serde expected.
fn expectation(text: &str) -> String {
    if let Some(length) = length(text) {
        return format!("a list of {length} values");
    }
    if strip(text, &["fewer elements"]).is_some() {
        return "fewer".to_owned();
    }
    if strip(text, &["struct ", "internally tagged enum", "adjacently tagged enum"]).is_some() {
        return "a group of keys".to_owned();
    }
    if strip(text, &["enum ", "variant of enum", "unit variant", "newtype variant"]).is_some() {
        return "a name or a group of keys".to_owned();
    }
    if strip(text, &["newtype struct", "unit struct"]).is_some() {
        return "a value of another kind".to_owned();
    }
    match text {
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" => "a whole number from 0 to 4294967295",
        "u64" | "u128" | "usize" => "a whole number of at least 0",
        "i8" | "i16" | "i32" | "i64" | "i128" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" | "bool" => "true or false",
        "a string" | "a borrowed string" | "string" | "str" | "path string" => "a text",
        "a character" | "char" => "a text of one character",
        "a sequence" | "a byte array" => "a list",
        "a map" | "map" | "struct" => "a group of keys",
        "string or map" | "variant identifier" | "enum" => "a name or a group of keys",
        "field identifier" => "a key",
        "unit" | "null" => "null",
        "option" => "a value or null",
        other => return other.to_owned(),
    }
    .to_owned()
}

/// The length of a list that is expected: `an array of length 3`, `a tuple of size 2`, `tuple struct X with 2 elements`.
fn length(text: &str) -> Option<&str> {
    let tuple = strip(text, &["an array of length ", "a tuple of size ", "an array of size "]);
    let elements = || {
        let (_, rest) = text.rsplit_once(" with ")?;
        rest.strip_suffix(" elements").or_else(|| rest.strip_suffix(" element"))
    };
    tuple.or_else(elements).filter(|n| n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    #[expect(dead_code)]
    struct LrConfig {
        base: f64,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code)]
    struct Pair(u32, u32);

    #[derive(Debug, Deserialize)]
    #[expect(dead_code)]
    enum Decay {
        Constant,
        Cosine { to: f64 },
        Two(u32, u32),
    }

    #[derive(Debug, Deserialize)]
    #[serde(untagged)]
    #[expect(dead_code)]
    enum Pattern {
        One(String),
        Many(Vec<String>),
    }

    #[derive(Debug, Deserialize)]
    #[serde(tag = "kind")]
    #[expect(dead_code)]
    enum Tagged {
        A { x: u32 },
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Empty {}

    #[derive(Debug, Deserialize)]
    struct Unit;

    fn said<T: DeserializeOwned + std::fmt::Debug>(value: Value) -> String {
        plain(&serde_json::from_value::<T>(value).unwrap_err().to_string())
    }

    /// The same as text, where serde_json says some things differently.
    fn read<T: DeserializeOwned + std::fmt::Debug>(text: &str) -> String {
        let error = serde_json::from_str::<T>(text).unwrap_err();
        let place = format!(" at line {} column {}", error.line(), error.column());
        plain(error.to_string().trim_end_matches(&place))
    }

    #[test]
    fn each_kind_of_message_is_put_into_words() {
        for (found, expected) in [
            (said::<LrConfig>(json!(3)), "is the number 3, expected a group of keys"),
            (said::<LrConfig>(json!([])), "has 0 values, expected a list of 1 values"),
            (read::<LrConfig>("\"x\""), "is the text \"x\", expected a group of keys"),
            (said::<LrConfig>(json!({})), "lacks the key base"),
            (said::<LrConfig>(json!({ "bas": 1 })), "unknown key bas, expected base"),
            (read::<LrConfig>(r#"{"base": 1, "base": 2}"#), "has twice the key base"),
            (said::<Empty>(json!({ "a": 1 })), "unknown key a, expected none"),
            (
                said::<u32>(json!(-1)),
                "is the number -1, expected a whole number from 0 to 4294967295",
            ),
            (said::<u64>(json!(1.5)), "is the number 1.5, expected a whole number of at least 0"),
            (
                said::<i64>(json!("a, expected b")),
                "is the text \"a, expected b\", expected a whole number",
            ),
            (said::<f64>(json!(null)), "is null, expected a number"),
            (said::<bool>(json!({})), "is a group of keys, expected true or false"),
            (said::<String>(json!(true)), "is true, expected a text"),
            (said::<char>(json!(1)), "is the number 1, expected a text of one character"),
            (said::<Vec<u8>>(json!("a")), "is the text \"a\", expected a list"),
            (said::<[f64; 3]>(json!([1, 2])), "has 2 values, expected a list of 3 values"),
            (said::<(u8, u8)>(json!([1])), "has 1 values, expected a list of 2 values"),
            (said::<Pair>(json!([1])), "has 1 values, expected a list of 2 values"),
            (said::<(u8, u8)>(json!([1, 2, 3])), "has 3 values, expected fewer"),
            (said::<BTreeMap<String, u8>>(json!([])), "is a list, expected a group of keys"),
            (said::<Decay>(json!(1)), "is the number 1, expected a name or a group of keys"),
            (said::<Decay>(json!("Up")), "unknown name Up, expected one of Constant, Cosine, Two"),
            (said::<Decay>(json!({ "Cosine": 1 })), "is the number 1, expected a group of keys"),
            (said::<Decay>(json!({ "Two": [1] })), "has 1 values, expected a list of 2 values"),
            (said::<Pattern>(json!(1)), "has none of the forms that it may have"),
            (said::<Tagged>(json!(1)), "is the number 1, expected a group of keys"),
            (said::<Tagged>(json!({})), "lacks the key kind"),
            (said::<Unit>(json!(1)), "is the number 1, expected a value of another kind"),
            (said::<()>(json!(1)), "is the number 1, expected null"),
            (plain("expected value"), "expected value"),
            (plain("lsq.init: missing field `x`"), "lsq.init: lacks the key x"),
            (plain("fpn: the pattern: empty"), "fpn: the pattern: empty"),
        ] {
            assert_eq!(found, expected);
        }
    }
}
