//! The JSON form of a stage's quantizer: one object with the keys that all methods share, the method's name, and the
//! keys of the methods, each method's beside each other.
//!
//! Written are the keys of all methods: the chosen method's as they are set, the others' defaults. Read is a key of
//! another method only where it has a default of that method, which is what such files hold.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::scheme::Settings;

/// What the form has to know about a method.
pub(super) struct Entry {
    pub name: &'static str,
    /// The keys with their defaults.
    defaults: fn() -> Map<String, Value>,
    /// Whether a value of a key is a default, of this version or an earlier one.
    is_default: fn(&str, &Value) -> bool,
    schema: fn(&mut SchemaGenerator) -> Schema,
}

impl Entry {
    pub const fn of<S: Settings>() -> Self {
        Self {
            name: S::NAME,
            defaults: || map_of(&S::default()),
            is_default: is_default::<S>,
            schema: S::json_schema,
        }
    }

    fn knows(&self, key: &str) -> bool {
        (self.defaults)().contains_key(key)
    }
}

fn is_default<S: Settings>(key: &str, value: &Value) -> bool {
    let alone = Map::from_iter([(key.to_owned(), value.clone())]);
    let Ok(found) = serde_json::from_value::<S>(Value::Object(alone)) else { return false };
    let found = map_of(&found);
    let mut defaults = vec![S::default()];
    defaults.extend(S::former_defaults());
    defaults.iter().any(|default| map_of(default).get(key) == found.get(key))
}

/// The fields of a struct.
pub(super) fn map_of(settings: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(settings) {
        Ok(Value::Object(map)) => map,
        other => panic!("settings are written as a JSON object, not as {other:?}"),
    }
}

/// A struct from its fields; the message begins with the key at fault.
pub(super) fn of_map<T: DeserializeOwned>(map: Map<String, Value>) -> Result<T, String> {
    serde_path_to_error::deserialize(Value::Object(map)).map_err(|err| {
        let path = err.path().to_string();
        if path == "." { err.inner().to_string() } else { format!("{path}: {}", err.inner()) }
    })
}

/// Writes the whole object.
pub(super) fn write(
    method: &str,
    common: Map<String, Value>,
    own: Map<String, Value>,
    entries: &[Entry],
) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("method".to_owned(), Value::String(method.to_owned()));
    map.extend(common);
    for (key, default) in entries.iter().flat_map(|entry| (entry.defaults)()) {
        let value = own.get(&key).cloned().unwrap_or(default);
        map.entry(key).or_insert(value);
    }
    map
}

/// An object taken apart: the shared keys, and those of the method.
pub(super) struct Parts {
    pub common: Map<String, Value>,
    pub own: Map<String, Value>,
}

/// Takes an object without its `method` apart.
///
/// # Errors
/// Names a key that no method knows, or one of another method that is set to something.
pub(super) fn take_apart(
    map: Map<String, Value>,
    method: &str,
    common_keys: &Map<String, Value>,
    entries: &[Entry],
) -> Result<Parts, String> {
    let mut parts = Parts { common: Map::new(), own: Map::new() };
    let own = entries.iter().find(|entry| entry.name == method);
    for (key, value) in map {
        if common_keys.contains_key(&key) {
            parts.common.insert(key, value);
        } else if own.is_some_and(|entry| entry.knows(&key)) {
            parts.own.insert(key, value);
        } else {
            let of: Vec<&Entry> = entries.iter().filter(|entry| entry.knows(&key)).collect();
            if of.is_empty() {
                return Err(unknown(&key, common_keys, own));
            }
            if !of.iter().any(|entry| (entry.is_default)(&key, &value)) {
                return Err(foreign(&key, method, &of, own));
            }
        }
    }
    Ok(parts)
}

fn own_keys(own: Option<&Entry>) -> Vec<String> {
    own.map_or(Vec::new(), |entry| (entry.defaults)().into_iter().map(|(key, _)| key).collect())
}

fn unknown(key: &str, common: &Map<String, Value>, own: Option<&Entry>) -> String {
    let known: Vec<String> = common.keys().cloned().chain(own_keys(own)).collect();
    format!("unknown field `{key}`, expected one of method, {}", known.join(", "))
}

fn foreign(key: &str, method: &str, of: &[&Entry], own: Option<&Entry>) -> String {
    let of: Vec<&str> = of.iter().map(|entry| entry.name).collect();
    let own = match own_keys(own) {
        keys if keys.is_empty() => "has no settings of its own".to_owned(),
        keys => format!("knows {}", keys.join(", ")),
    };
    format!(
        "{key}: is a setting of {}, and the method is {method}, which {own}: remove {key} or change the method",
        of.join(", ")
    )
}

/// The schema of the whole object, from that of the shared keys and of `method`.
pub(super) fn schema(
    generator: &mut SchemaGenerator,
    description: &str,
    common: Schema,
    method: Schema,
    default_method: &str,
    entries: &[Entry],
) -> Schema {
    let mut method = method.to_value();
    method["default"] = json!(default_method);
    let mut properties = Map::from_iter([("method".to_owned(), method)]);
    let of_methods: Vec<Schema> = entries.iter().map(|entry| (entry.schema)(generator)).collect();
    for schema in [common].into_iter().chain(of_methods) {
        if let Some(own) = schema.get("properties").and_then(Value::as_object) {
            for (key, value) in own {
                properties.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
    }
    json_schema!({
        "description": description,
        "type": "object",
        "properties": properties,
        "additionalProperties": false
    })
}
