//! From a document to a value, and the ranges of a value.

use anyhow::{Result, anyhow, bail};
use schemars::JsonSchema;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::unknown::unknown_below;
use super::walk::{Kind, Problem, problems};
use super::{below, plain, schema_of};

/// The value that a document holds. Ranges are not checked: see [`check_ranges`].
///
/// # Errors
/// If keys are unknown or missing, or values have another type: `at` (the document's name) and all of them are named,
/// with dotted keys.
pub fn parse<T: DeserializeOwned + JsonSchema>(document: Value, at: &str) -> Result<T> {
    if !document.is_object() {
        bail!("{at}: is not a JSON object");
    }
    parse_part(&document, "").map_err(|problems| anyhow!("{at}: {problems}"))
}

/// The value of a part of a document, which stands at the dotted place `at` of it. Ranges are not checked.
///
/// # Errors
/// If keys are unknown or missing, or values have another type: all of them are named, with keys that begin with `at`.
pub fn parse_part<T: DeserializeOwned + JsonSchema>(part: &Value, at: &str) -> Result<T> {
    let schema = schema_of::<T>();
    let unknown = unknown_below(part, &schema, at);
    if !unknown.is_empty() {
        bail!("{}", unknown.join("; "));
    }
    serde_path_to_error::deserialize(part).map_err(|error| {
        let inner = dotted(error.path());
        // Fields that lie flat beside others lose their place: the schema tells it.
        let place = if inner == "." { at.to_owned() } else { below(at, &inner) };
        let said = plain(&error.inner().to_string());
        let all = told(problems(part, &schema, at), &place, &said);
        anyhow!("{}", all.join("; "))
    })
}

/// The value that a document holds, where there is no schema to explain it by.
///
/// # Errors
/// If it does not fit `T`: names the dotted key.
pub fn from_value<T: DeserializeOwned>(document: Value) -> Result<T> {
    serde_path_to_error::deserialize(document).map_err(|error| {
        anyhow!("{}", line(&dotted(error.path()), &plain(&error.inner().to_string())))
    })
}

/// What is told of a document that could not be read: what its schema says, or else what serde `said` of `place`.
fn told(found: Vec<Problem>, place: &str, said: &str) -> Vec<String> {
    let counts = |p: &Problem| p.kind != Kind::Name || p.place == place;
    let found: Vec<Problem> = found.into_iter().filter(counts).collect();
    let mut all: Vec<String> = found.iter().map(|p| line(&p.place, &p.text)).collect();
    // Places inside tagged forms are lost to serde: an outer place is explained by an inner one.
    let explained = |p: &Problem| p.place.starts_with(place) || place.starts_with(&p.place);
    if !found.iter().any(explained) {
        all.push(line(place, said));
    }
    all
}

fn line(place: &str, text: &str) -> String {
    match place {
        "" | "." => text.to_owned(),
        _ => format!("{place}: {text}"),
    }
}

/// A place in a document as `--set` spells it: list items by `.0`, not `[0]`.
fn dotted(path: &serde_path_to_error::Path) -> String {
    path.to_string().replace('[', ".").replace(']', "")
}

/// Pushes `"{at}.key: ..."` for each number outside the range beside its field, and each list of another length.
pub fn check_ranges<T: Serialize + JsonSchema>(value: &T, at: &str, problems: &mut Vec<String>) {
    let document = match serde_json::to_value(value) {
        Ok(document) => document,
        Err(err) => return problems.push(line(at, &plain(&err.to_string()))),
    };
    for problem in super::walk::problems(&document, &schema_of::<T>(), at) {
        match problem.kind {
            Kind::Range => problems.push(line(&problem.place, &problem.text)),
            // The value has its type: a null where none may be is a number that JSON cannot hold.
            Kind::Form if problem.text.starts_with("is null") => {
                problems.push(line(&problem.place, "is not a finite number"));
            }
            Kind::Form | Kind::Name => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    use serde::Deserialize;
    use serde_json::json;

    use crate::schema::{above_zero, below_one, even};

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Outer {
        #[schemars(range(min = 1, max = 9))]
        count: u32,
        #[schemars(transform = above_zero)]
        rate: Option<f64>,
        #[schemars(range(min = 0.0), transform = below_one)]
        fraction: f64,
        #[schemars(inner(range(min = 2)), transform = even)]
        sides: [i64; 2],
        inner: Inner,
        list: Vec<Inner>,
        table: BTreeMap<u32, f64>,
        form: Form,
        tagged: Option<Tagged>,
        name: Name,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(deny_unknown_fields, default)]
    struct Inner {
        #[schemars(length(min = 1))]
        values: Vec<u8>,
        flag: bool,
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case", deny_unknown_fields)]
    enum Form {
        #[default]
        Plain,
        Steps {
            at: Vec<u64>,
            factor: f64,
        },
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(tag = "method", rename_all = "snake_case")]
    enum Tagged {
        Inq { rate: f64 },
        Lsq { init: f64 },
    }

    #[derive(Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Name {
        #[default]
        #[serde(alias = "einer")]
        One,
        Two,
    }

    fn error(document: Value) -> String {
        parse::<Outer>(document, "a.json").unwrap_err().to_string()
    }

    #[test]
    fn every_wrong_type_is_told_in_plain_words() {
        for (document, expected) in [
            (json!(3), "is not a JSON object"),
            (json!({ "inner": 3 }), "inner: is the number 3, expected a group of keys"),
            (json!({ "inner": null }), "inner: is null, expected a group of keys"),
            (json!({ "count": "many" }), "count: is the text \"many\", expected a whole number"),
            (json!({ "count": 1.5 }), "count: is the number 1.5, expected a whole number"),
            (json!({ "count": -1 }), "count: -1 is outside 1..=9"),
            (json!({ "rate": true }), "rate: is true, expected a number or null"),
            (json!({ "list": {} }), "list: is a group of keys, expected a list"),
            (json!({ "list": [{}, [2]] }), "list.1: is a list, expected a group of keys"),
            (json!({ "sides": [2] }), "sides: has 1 value, expected 2"),
            (json!({ "sides": [2, "x"] }), "sides.1: is the text \"x\", expected a whole number"),
            (json!({ "sides": 2 }), "sides: is the number 2, expected a list of 2 values"),
            (json!({ "table": { "1": "x" } }), "table.1: is the text \"x\", expected a number"),
            (json!({ "form": 1 }), "form: is the number 1, expected \"plain\" or a group of keys"),
            (
                json!({ "form": "odd" }),
                "form: is the text \"odd\", expected \"plain\" or a group of keys",
            ),
            (json!({ "form": { "steps": { "at": [1] } } }), "form.steps: lacks the key factor"),
            (json!({ "form": {} }), "form: lacks the key steps"),
            (json!({ "tagged": { "rate": 1.0 } }), "tagged: lacks the key method: one of inq, lsq"),
            (
                json!({ "tagged": { "method": "pact" } }),
                "tagged.method: is the text \"pact\", expected one of inq, lsq",
            ),
            (json!({ "tagged": { "method": "lsq" } }), "tagged: lacks the key init"),
            (
                json!({ "tagged": { "method": "lsq", "init": [] } }),
                "tagged.init: is a list, expected a number",
            ),
            (
                json!({ "name": "three" }),
                "name: is the text \"three\", expected one of \"one\", \"two\"",
            ),
            (json!({ "inner": { "values": [300] } }), "inner.values.0: 300 is outside 0..=255"),
        ] {
            let said = error(document.clone());
            assert_eq!(said, format!("a.json: {expected}"), "{document}");
        }
    }

    #[test]
    fn all_are_told_at_once_and_other_spellings_are_no_problem() {
        let document = json!({ "name": "einer", "count": 10, "inner": { "flag": 1 }, "list": 2 });
        assert_eq!(
            error(document),
            "a.json: count: 10 is outside 1..=9; inner.flag: is the number 1, expected true or false; \
             list: is the number 2, expected a list"
        );
        assert_eq!(parse::<Outer>(json!({ "name": "einer" }), "a").unwrap().name, Name::One);
        let unknown = error(json!({ "cuont": 1, "inner": { "flg": true } }));
        assert!(unknown.contains("cuont: unknown key, did you mean count?"), "{unknown}");
        assert!(unknown.contains("inner.flg: unknown key, did you mean flag?"), "{unknown}");
    }

    #[test]
    fn values_are_checked_by_the_ranges_beside_their_fields() {
        let bad = Outer {
            count: 0,
            rate: Some(0.0),
            fraction: 1.0,
            sides: [3, 0],
            list: vec![Inner::default(), Inner { values: vec![1], flag: true }],
            table: [(3, f64::NAN)].into(),
            ..Outer::default()
        };
        let mut problems = Vec::new();
        check_ranges(&bad, "top", &mut problems);
        assert_eq!(
            problems,
            [
                "top.count: 0 is outside 1..=9",
                "top.rate: 0 is not above 0",
                "top.fraction: 1 is outside 0..1 (1 excluded)",
                "top.sides.0: 3 is not a multiple of 2",
                "top.sides.1: 0 is below 2",
                "top.inner.values: has 0 values, expected at least 1",
                "top.list.0.values: has 0 values, expected at least 1",
                "top.table.3: is not a finite number",
            ]
        );
    }
}
