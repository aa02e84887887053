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
                    .with_context(|| format!("--set {dotted}: {} is not a list index", place()))?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

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
