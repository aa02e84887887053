//! A document beside its schema: what does not fit, with its place.

use serde_json::{Map, Value};

use super::below;
use super::leaves::{described, expected, is_open, leaves, names, one_of, takes, types};
use super::range::{Range, most_of_format};

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A value of another type, or a key that is missing.
    Form,
    /// A text that is none of the listed ones. Other spellings may be read as well: a schema does not list them.
    Name,
    /// A number outside its range, or a list of another length.
    Range,
}

/// Something that does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub place: String,
    pub kind: Kind,
    pub text: String,
}

/// All that does not fit, in the order of the document. Unknown keys are not looked for.
pub(super) fn problems(document: &Value, root: &Value, at: &str) -> Vec<Problem> {
    let mut walk = Walk { root, found: Vec::new() };
    walk.value(document, root, at);
    walk.found
}

struct Walk<'a> {
    root: &'a Value,
    found: Vec<Problem>,
}

impl<'a> Walk<'a> {
    fn push(&mut self, place: &str, kind: Kind, text: String) {
        self.found.push(Problem { place: place.to_owned(), kind, text });
    }

    fn value(&mut self, value: &Value, schema: &'a Value, at: &str) {
        let all = leaves(schema, self.root);
        if all.iter().any(|leaf| is_open(leaf)) {
            return;
        }
        let fitting: Vec<&Value> = all.iter().copied().filter(|leaf| takes(leaf, value)).collect();
        if fitting.is_empty() {
            let text = format!("is {}, expected {}", described(value), expected(&all));
            return self.push(at, Kind::Form, text);
        }
        match value {
            Value::Number(_) => self.number(value, &fitting, at),
            Value::String(text) => self.text(text, &fitting, &all, at),
            Value::Array(items) => self.list(items, fitting[0], at),
            Value::Object(map) => self.group(map, &fitting, at),
            Value::Null | Value::Bool(_) => {}
        }
    }

    fn number(&mut self, value: &Value, fitting: &[&Value], at: &str) {
        let problem = |leaf: &&Value| {
            Range::of(leaf).problem(value).or_else(|| {
                let most = most_of_format(leaf).filter(|most| value.as_f64() > Some(*most))?;
                Some(format!("{value} is above {most}"))
            })
        };
        let found: Option<Vec<String>> = fitting.iter().map(problem).collect();
        if let Some(text) = found.and_then(|all| all.into_iter().next()) {
            self.push(at, Kind::Range, text);
        }
    }

    fn text(&mut self, text: &str, fitting: &[&Value], all: &[&Value], at: &str) {
        let known = |leaf: &&Value| names(leaf).is_none_or(|names| names.contains(&text));
        if !fitting.iter().any(known) {
            let text = format!("is the text {text:?}, expected {}", expected(all));
            self.push(at, Kind::Name, text);
        }
    }

    fn list(&mut self, items: &[Value], leaf: &'a Value, at: &str) {
        let (least, most) = (leaf["minItems"].as_u64(), leaf["maxItems"].as_u64());
        let n = items.len() as u64;
        if least.is_some_and(|least| n < least) || most.is_some_and(|most| n > most) {
            let wanted = match (least, most) {
                (Some(a), Some(b)) if a == b => a.to_string(),
                (Some(a), Some(b)) => format!("{a} to {b}"),
                (Some(a), None) => format!("at least {a}"),
                (_, Some(b)) => format!("at most {b}"),
                (None, None) => unreachable!("one of the two was passed"),
            };
            let plural = if n == 1 { "value" } else { "values" };
            self.push(at, Kind::Range, format!("has {n} {plural}, expected {wanted}"));
        }
        let first = leaf["prefixItems"].as_array().map(Vec::as_slice).unwrap_or_default();
        for (i, item) in items.iter().enumerate() {
            if let Some(schema) = first.get(i).or_else(|| leaf.get("items")) {
                self.value(item, schema, &below(at, &i.to_string()));
            }
        }
    }

    fn group(&mut self, map: &Map<String, Value>, fitting: &[&'a Value], at: &str) {
        let Some(leaf) = chosen(map, fitting) else { return self.no_form(map, fitting, at) };
        for key in required(leaf).filter(|key| !map.contains_key(*key)) {
            self.push(at, Kind::Form, format!("lacks the key {key}"));
        }
        let properties = leaf["properties"].as_object();
        for (key, value) in map {
            let schema = properties.and_then(|p| p.get(key)).or_else(|| values_of_map(leaf));
            if let Some(schema) = schema {
                self.value(value, schema, &below(at, key));
            }
        }
    }

    /// The group is none of the forms that the place may have.
    fn no_form(&mut self, map: &Map<String, Value>, fitting: &[&Value], at: &str) {
        let tag = fitting.iter().find_map(|leaf| tag(leaf)).map(|(key, _)| key);
        let Some(tag) = tag else {
            let mut keys: Vec<&str> = fitting.iter().flat_map(|leaf| required(leaf)).collect();
            keys.dedup();
            return self.push(at, Kind::Form, format!("expected {} as its key", one_of(&keys)));
        };
        let known: Vec<&str> = fitting.iter().filter_map(|l| tag_name(l)).collect();
        match map.get(tag) {
            None => {
                let text = format!("lacks the key {tag}: {}", one_of(&known));
                self.push(at, Kind::Form, text);
            }
            Some(value) => {
                let text = format!("is {}, expected {}", described(value), one_of(&known));
                self.push(&below(at, tag), Kind::Name, text);
            }
        }
    }
}

/// The one of several forms that a group has: by its tag, or by the key that it must have.
fn chosen<'a>(map: &Map<String, Value>, fitting: &[&'a Value]) -> Option<&'a Value> {
    if let [one] = fitting {
        return Some(one);
    }
    let fits = |leaf: &&&Value| match tag(leaf) {
        Some((key, name)) => map.get(key).and_then(Value::as_str) == Some(name),
        None => required(leaf).all(|key| map.contains_key(key)),
    };
    fitting.iter().find(fits).copied()
}

/// The key that tells a form, with the text that it has there.
fn tag(leaf: &Value) -> Option<(&str, &str)> {
    let properties = leaf["properties"].as_object()?;
    properties.iter().find_map(|(key, schema)| Some((key.as_str(), schema["const"].as_str()?)))
}

fn tag_name(leaf: &Value) -> Option<&str> {
    tag(leaf).map(|(_, name)| name)
}

fn required(leaf: &Value) -> impl Iterator<Item = &str> {
    leaf["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The schema of the values of a free map.
pub(super) fn values_of_map(leaf: &Value) -> Option<&Value> {
    let patterns = leaf["patternProperties"].as_object();
    patterns
        .and_then(|patterns| patterns.values().next())
        .or_else(|| leaf.get("additionalProperties").filter(|schema| schema.is_object()))
}

/// Whether a schema is that of a group with known keys.
pub(super) fn is_group(leaf: &Value) -> bool {
    types(leaf).contains(&"object") && leaf["properties"].is_object()
}
