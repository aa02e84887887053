//! What the JSON schema of a type says, put to use: checks of documents and values, and tables of keys.
//!
//! A range stands once, beside its field (`#[schemars(range(min = 1, max = 1000))]`, [`above_zero`], [`below_one`]), and
//! its meaning is the field's doc comment. From there come the bounds in the published schema, the checks of
//! [`check_ranges`], the messages of [`parse`] and the tables of [`tables()`]. What no single field can say (a list as long as
//! another number, a momentum where there is Nesterov's) is checked by hand beside the type.
//!
//! No message names a type of the program: [`plain()`] puts those of serde into plain words.

mod leaves;
mod parse;
mod plain;
mod range;
mod tables;
mod unknown;
mod walk;

pub use parse::{check_ranges, from_value, parse, parse_part};
pub use plain::plain;
pub use tables::{fill_tables, tables};
pub use unknown::unknown_keys;

use std::collections::HashSet;

use schemars::{JsonSchema, Schema};
use serde_json::{Value, json};

/// The schema of a type, as JSON.
pub fn schema_of<T: JsonSchema>() -> Value {
    schemars::schema_for!(T).to_value()
}

/// Keeps the first problem of each key: what is outside its range need not be said again by what depends on it.
pub fn first_of_each_key(problems: &mut Vec<String>) {
    let mut seen = HashSet::new();
    problems.retain(|problem| {
        problem.split_once(": ").is_none_or(|(key, _)| seen.insert(key.to_owned()))
    });
}

/// For `#[schemars(transform = above_zero)]`: the number, or each number of the list, is above 0.
pub fn above_zero(schema: &mut Schema) {
    numbers(schema).insert("exclusiveMinimum".to_owned(), json!(0));
}

/// For `#[schemars(transform = below_one)]`: the number, or each number of the list, is below 1.
pub fn below_one(schema: &mut Schema) {
    numbers(schema).insert("exclusiveMaximum".to_owned(), json!(1));
}

/// For `#[schemars(transform = even)]`: the number, or each number of the list, is even.
pub fn even(schema: &mut Schema) {
    numbers(schema).insert("multipleOf".to_owned(), json!(2));
}

/// The part of a field's schema that holds bounds: that of a list's items, or its own.
fn numbers(schema: &mut Schema) -> &mut serde_json::Map<String, Value> {
    let object = schema.ensure_object();
    if object.contains_key("items") {
        return object["items"].as_object_mut().expect("items of a list are a schema of their own");
    }
    object
}

/// `key` below `at`.
fn below(at: &str, key: &str) -> String {
    if at.is_empty() { key.to_owned() } else { format!("{at}.{key}") }
}
