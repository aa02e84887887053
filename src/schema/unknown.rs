//! Keys that a schema does not know.

use serde_json::Value;

use super::below;
use super::leaves::leaves;

/// Every key of `document` that `schema` (a JSON schema of this program's types) does not know, as messages with the
/// nearest known key.
pub fn unknown_keys(document: &Value, schema: &Value) -> Vec<String> {
    unknown_below(document, schema, "")
}

/// The same for a part of a document, which stands at the dotted place `at` of it.
pub(super) fn unknown_below(part: &Value, schema: &Value, at: &str) -> Vec<String> {
    let mut found = Vec::new();
    walk(part, schema, Root { schema, at }, at, &mut found);
    found
}

/// A whole schema, and the dotted place that it describes.
#[derive(Clone, Copy)]
struct Root<'a> {
    schema: &'a Value,
    at: &'a str,
}

fn walk(value: &Value, schema: &Value, root: Root, at: &str, found: &mut Vec<String>) {
    let all = leaves(schema, root.schema);
    match value {
        Value::Object(map) => {
            let objects: Vec<&Value> =
                all.into_iter().filter(|s| s.get("properties").is_some()).collect();
            // Free-form maps (schedules) and untyped places have no properties to compare with.
            if objects.is_empty() {
                return;
            }
            for (key, child) in map {
                let place = below(at, key);
                let known: Vec<&Value> =
                    objects.iter().filter_map(|s| s["properties"].get(key)).collect();
                match known.first() {
                    Some(schema) => walk(child, schema, root, &place, found),
                    None => found.push(unknown(&place, key, &objects, root)),
                }
            }
        }
        Value::Array(items) => {
            for item_schema in all.iter().filter_map(|s| s.get("items")).take(1) {
                for (i, item) in items.iter().enumerate() {
                    walk(item, item_schema, root, &below(at, &i.to_string()), found);
                }
            }
        }
        _ => {}
    }
}

fn unknown(place: &str, key: &str, objects: &[&Value], root: Root) -> String {
    let mut elsewhere = Vec::new();
    places_of(key, root.schema, root, root.at, &mut elsewhere);
    elsewhere.truncate(MOST_PLACES);
    if !elsewhere.is_empty() {
        return format!("{place}: unknown key here, did you mean {}?", elsewhere.join(" or "));
    }
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

/// Most places of a key that are told.
const MOST_PLACES: usize = 4;
/// Deepest place that is looked at for a key: schemas may lead back to themselves.
const MOST_PARTS: usize = 6;

/// The places of a schema at which a key of this name may stand, items of lists as `.0`.
fn places_of(key: &str, schema: &Value, root: Root, at: &str, found: &mut Vec<String>) {
    if at.split('.').count() > MOST_PARTS {
        return;
    }
    for leaf in leaves(schema, root.schema) {
        for (name, child) in leaf["properties"].as_object().into_iter().flatten() {
            let place = below(at, name);
            if name == key && !found.contains(&place) {
                found.push(place);
            } else if name != key {
                places_of(key, child, root, &place, found);
            }
        }
        if let Some(items) = leaf.get("items") {
            places_of(key, items, root, &below(at, "0"), found);
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
    fn a_key_that_stands_elsewhere_is_pointed_to() {
        let schema = serde_json::to_value(schemars::schema_for!(Outer)).unwrap();
        let found = unknown_keys(&json!({"epochs": 1}), &schema);
        assert_eq!(found, ["epochs: unknown key here, did you mean flow.0.epochs or one.epochs?"]);
        let found = unknown_below(&json!({"epochs": 1}), &schema, "at");
        assert!(found[0].contains("did you mean at.flow.0.epochs"), "{found:?}");
    }
}
