//! Config documents before they are typed: unknown keys, `--set`, merging.

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value};

/// Sets `dotted` (`quantize.flow.0.epochs`) to `text`, read as JSON where it is JSON and as a string otherwise.
///
/// # Errors
/// If `assignment` has no `=`, a part of the path is empty, goes through a number, text or list end.
pub fn set(document: &mut Value, assignment: &str) -> Result<()> {
    let (dotted, text) = assignment.split_once('=').with_context(|| {
        format!("--set {assignment}: expected KEY=VALUE, for example data.bs_valid=4")
    })?;
    let value = serde_json::from_str(text).unwrap_or_else(|_| Value::String(text.to_owned()));
    let mut at = document;
    let parts: Vec<&str> = dotted.split('.').collect();
    for (depth, part) in parts.iter().enumerate() {
        let place = || parts[..=depth].join(".");
        // A key that is not in the file is created; one the program does not know is refused later.
        if at.is_null() && !part.is_empty() {
            *at = Value::Object(Map::new());
        }
        at = match at {
            Value::Object(map) if !part.is_empty() => {
                map.entry((*part).to_owned()).or_insert(Value::Null)
            }
            Value::Array(items) => {
                let index: usize = part
                    .parse()
                    .with_context(|| format!("--set {dotted}: {} is no list index", place()))?;
                let num_items = items.len();
                ensure!(
                    index <= num_items,
                    "--set {dotted}: {} is beyond the list's {num_items} items",
                    place()
                );
                if index == num_items {
                    items.push(Value::Null);
                }
                &mut items[index]
            }
            _ => bail!("--set {dotted}: nothing can be set at {}", place()),
        };
    }
    *at = value;
    Ok(())
}

/// Lays `over` onto `base`: objects merge key by key, everything else is replaced.
pub fn merge(base: &mut Value, over: Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over,
    }
}

/// Every key of `document` that `schema` (a JSON schema of this program's types) does not know, as messages with the
/// nearest known key.
pub fn unknown_keys(document: &Value, schema: &Value) -> Vec<String> {
    let mut found = Vec::new();
    walk(document, schema, schema, "", &mut found);
    found
}

fn walk(value: &Value, schema: &Value, root: &Value, at: &str, found: &mut Vec<String>) {
    let alternatives = alternatives(schema, root);
    match value {
        Value::Object(map) => {
            let objects: Vec<&Value> =
                alternatives.into_iter().filter(|s| s.get("properties").is_some()).collect();
            // Free-form maps (schedules) and untyped places have no properties to compare with.
            if objects.is_empty() {
                return;
            }
            for (key, child) in map {
                let place = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
                let known: Vec<&Value> =
                    objects.iter().filter_map(|s| s["properties"].get(key)).collect();
                match known.first() {
                    Some(schema) => walk(child, schema, root, &place, found),
                    None => found.push(unknown(&place, key, &objects)),
                }
            }
        }
        Value::Array(items) => {
            for item_schema in alternatives.iter().filter_map(|s| s.get("items")).take(1) {
                for (i, item) in items.iter().enumerate() {
                    walk(item, item_schema, root, &format!("{at}.{i}"), found);
                }
            }
        }
        _ => {}
    }
}

/// The object schemas a place may hold: references followed, `anyOf` and kin opened.
fn alternatives<'a>(schema: &'a Value, root: &'a Value) -> Vec<&'a Value> {
    let mut out = vec![schema];
    if let Some(target) = schema.get("$ref").and_then(Value::as_str)
        && let Some(found) = target.strip_prefix('#').and_then(|p| root.pointer(p))
    {
        out.extend(alternatives(found, root));
    }
    for key in ["anyOf", "oneOf", "allOf"] {
        for inner in schema.get(key).and_then(Value::as_array).into_iter().flatten() {
            out.extend(alternatives(inner, root));
        }
    }
    out
}

fn unknown(place: &str, key: &str, objects: &[&Value]) -> String {
    let known: Vec<&String> =
        objects.iter().filter_map(|s| s["properties"].as_object()).flat_map(|p| p.keys()).collect();
    let near = known
        .iter()
        .map(|k| (strsim::jaro_winkler(&k.to_lowercase(), &key.to_lowercase()), k))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    match near {
        Some((_, name)) => format!("{place}: unknown key, did you mean {name}?"),
        None => {
            let names: Vec<&str> = known.iter().map(|k| k.as_str()).collect();
            format!("{place}: unknown key, expected one of {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::JsonSchema;
    use serde_json::json;

    #[derive(JsonSchema)]
    #[expect(dead_code)]
    struct Inner {
        epochs: u32,
        momentum: f64,
    }

    #[derive(JsonSchema)]
    #[expect(dead_code)]
    struct Outer {
        flow: Vec<Inner>,
        one: Option<Inner>,
        table: std::collections::BTreeMap<String, f64>,
    }

    #[test]
    fn every_unknown_key_is_named_with_the_nearest_known_one() {
        let schema = serde_json::to_value(schemars::schema_for!(Outer)).unwrap();
        let document = json!({
            "flow": [{"epochs": 1}, {"epoch": 2}],
            "one": {"momentun": 0.9, "epochs": 3},
            "table": {"anything": 1},
            "zzz": 1
        });
        let found = unknown_keys(&document, &schema);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0], "flow.1.epoch: unknown key, did you mean epochs?");
        assert_eq!(found[1], "one.momentun: unknown key, did you mean momentum?");
        assert!(found[2].starts_with("zzz: unknown key, expected one of flow, one, table"));
    }

    #[test]
    fn set_reaches_nested_keys_and_list_items() {
        let mut d = json!({"a": {"b": 1}, "flow": [{"epochs": 3}]});
        set(&mut d, "a.b=2").unwrap();
        set(&mut d, "a.name=fpn").unwrap();
        set(&mut d, "flow.0.epochs=[1, 2]").unwrap();
        set(&mut d, "x.y.z=true").unwrap();
        set(&mut d, "flow.1.epochs=7").unwrap();
        let expected = json!({"a": {"b": 2, "name": "fpn"}, "flow": [{"epochs": [1, 2]}, {"epochs": 7}],
            "x": {"y": {"z": true}}});
        assert_eq!(d, expected);
    }

    #[test]
    fn an_assignment_that_leads_nowhere_is_refused() {
        let mut d = json!({"a": 1, "flow": []});
        for bad in ["a", "a.b=1", "flow.x=1", "flow.3=1", ".=1"] {
            assert!(set(&mut d, bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn merging_replaces_lists_and_keeps_other_keys() {
        let mut d = json!({"a": {"b": 1, "c": [1, 2]}});
        merge(&mut d, json!({"a": {"c": [3]}, "e": 5}));
        assert_eq!(d, json!({"a": {"b": 1, "c": [3]}, "e": 5}));
    }
}
