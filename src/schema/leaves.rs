//! The plain schemas behind references and alternatives, and words for what they take.

use serde_json::Value;

/// The schemas a place may hold: references followed, `anyOf` and kin opened. Those that only point on are left out.
pub(super) fn leaves<'a>(schema: &'a Value, root: &'a Value) -> Vec<&'a Value> {
    let mut found = Vec::new();
    if let Some(target) = schema.get("$ref").and_then(Value::as_str)
        && let Some(target) = target.strip_prefix('#').and_then(|p| root.pointer(p))
    {
        found.extend(leaves(target, root));
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for inner in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
            found.extend(leaves(inner, root));
        }
    }
    if found.is_empty() || schema.get("properties").is_some() {
        found.push(schema);
    }
    found
}

/// Whether the schema takes anything.
pub(super) fn is_open(leaf: &Value) -> bool {
    types(leaf).is_empty() && leaf.get("const").is_none() && leaf.get("enum").is_none()
}

/// The JSON types that a schema names.
pub(super) fn types(leaf: &Value) -> Vec<&str> {
    match &leaf["type"] {
        Value::String(one) => vec![one],
        Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
        _ if leaf["const"].is_string() || leaf["enum"].is_array() => vec!["string"],
        _ => vec![],
    }
}

/// Whether a value is of a type that the schema names; a whole number is a number.
pub(super) fn takes(leaf: &Value, value: &Value) -> bool {
    types(leaf).iter().any(|name| match *name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        _ => false,
    })
}

/// The texts that a schema takes; `None` if any.
pub(super) fn names(leaf: &Value) -> Option<Vec<&str>> {
    match (&leaf["const"], &leaf["enum"]) {
        (Value::String(one), _) => Some(vec![one]),
        (_, Value::Array(several)) => Some(several.iter().filter_map(Value::as_str).collect()),
        _ => None,
    }
}

/// What the schemas take: `a whole number or null`.
pub(super) fn expected(leaves: &[&Value]) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut texts: Vec<&str> = Vec::new();
    for leaf in leaves {
        for name in types(leaf).into_iter().filter(|name| *name != "null") {
            match (name, names(leaf)) {
                ("string", Some(names)) => texts.extend(names),
                _ => words.push(type_words(name, leaf)),
            }
        }
    }
    if !texts.is_empty() {
        let quoted: Vec<String> = texts.iter().map(|text| format!("{text:?}")).collect();
        words.insert(0, one_of(&quoted));
    }
    if leaves.iter().any(|leaf| types(leaf).contains(&"null")) {
        words.push("null".to_owned());
    }
    let mut unique: Vec<String> = Vec::new();
    words.into_iter().for_each(|w| {
        if !unique.contains(&w) {
            unique.push(w)
        }
    });
    unique.join(" or ")
}

fn type_words(name: &str, leaf: &Value) -> String {
    match name {
        "object" => "a group of keys".to_owned(),
        "array" => match (leaf["minItems"].as_u64(), leaf["maxItems"].as_u64()) {
            (Some(least), Some(most)) if least == most => format!("a list of {least} values"),
            _ => "a list".to_owned(),
        },
        "integer" => "a whole number".to_owned(),
        "number" => "a number".to_owned(),
        "string" => "a text".to_owned(),
        "boolean" => "true or false".to_owned(),
        other => other.to_owned(),
    }
}

/// `one of a, b, c`; one alone stands for itself.
pub(super) fn one_of(names: &[impl AsRef<str>]) -> String {
    let names: Vec<&str> = names.iter().map(AsRef::as_ref).collect();
    match names.as_slice() {
        [one] => (*one).to_owned(),
        _ => format!("one of {}", names.join(", ")),
    }
}

/// What a value is: `the number 3`, `a list`.
pub(super) fn described(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => value.to_string(),
        Value::Number(_) => format!("the number {}", number(value)),
        Value::String(text) => format!("the text {text:?}"),
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "a group of keys".to_owned(),
    }
}

/// A number without needless digits: 1.0 is `1`.
pub(super) fn number(value: &Value) -> String {
    match value.as_f64() {
        Some(number) if value.is_f64() => number.to_string(),
        _ => value.to_string(),
    }
}
