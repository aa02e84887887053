//! Tables of the keys of a type, in Markdown: key, type, default, range, meaning.

use anyhow::{Context, Result};
use serde_json::Value;

use super::leaves::{leaves, names, number, types};
use super::range::Range;
use super::walk::{is_group, values_of_map};

/// What a table in a page begins with; the place of its keys follows, and ` -->`.
const BEGIN: &str = "<!-- keys: ";
/// What the place is closed with.
const CLOSE: &str = " -->";
/// What a table in a page ends with.
const END: &str = "<!-- end of keys -->";

/// The page with each table between `<!-- keys: PLACE -->` and `<!-- end of keys -->` made anew from the schema. A
/// place is dotted, as in `training.loss`; the parts of a list are at its number, `quantize.flow.0`. Keys below a key
/// that has a table of its own stand there alone.
///
/// # Errors
/// If a place is none of the schema, or a table has no end.
pub fn fill_tables(page: &str, schema: &Value) -> Result<String> {
    let places: Vec<&str> = page
        .split(BEGIN)
        .skip(1)
        .filter_map(|rest| rest.split_once(CLOSE).map(|(place, _)| place))
        .collect();
    let mut parts = page.split(BEGIN);
    let mut filled = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (place, rest) =
            part.split_once(CLOSE).with_context(|| format!("{BEGIN}... without {CLOSE:?}"))?;
        let (_, rest) =
            rest.split_once(END).with_context(|| format!("the table of {place} has no {END}"))?;
        let table = Tables::new(schema, &places)?.table(place)?;
        filled += &format!("{BEGIN}{place}{CLOSE}\n{table}{END}{rest}");
    }
    Ok(filled)
}

/// The tables of places, each with a heading.
///
/// # Errors
/// If a place is none of the schema.
pub fn tables(places: &[&str], schema: &Value) -> Result<String> {
    let tables = Tables::new(schema, places)?;
    let one = |place: &&str| Ok(format!("### {place}\n\n{}", tables.table(place)?));
    let all: Vec<String> = places.iter().map(one).collect::<Result<_>>()?;
    Ok(all.join("\n"))
}

struct Tables<'a> {
    root: &'a Value,
    /// The schemas that have a table of their own.
    own: Vec<&'a Value>,
}

impl<'a> Tables<'a> {
    fn new(root: &'a Value, places: &[&str]) -> Result<Self> {
        let own: Vec<_> = places.iter().map(|place| at(place, root)).collect::<Result<_>>()?;
        Ok(Self { root, own: own.into_iter().flatten().collect() })
    }

    /// The table of a place: its keys, or the forms that it may have.
    fn table(&self, place: &str) -> Result<String> {
        let forms = at(place, self.root)?;
        let mut rows = Vec::new();
        match forms.as_slice() {
            [group] if is_group(group) => {
                rows.push(
                    "| key | type | default | range | meaning |\n|---|---|---|---|---|\n"
                        .to_owned(),
                );
                self.keys(group, "", &mut rows);
            }
            _ => {
                rows.push("| value | type | range | meaning |\n|---|---|---|---|\n".to_owned());
                forms.iter().for_each(|form| self.form(form, &mut rows));
            }
        }
        Ok(rows.concat())
    }

    /// A row for each key of a group, those of groups below it included.
    fn keys(&self, group: &'a Value, prefix: &str, rows: &mut Vec<String>) {
        for (key, schema) in group["properties"].as_object().into_iter().flatten() {
            let key = format!("{prefix}{key}");
            let all = leaves(schema, self.root);
            let inner = self.inner(&all);
            let is_plain_group = matches!(all.as_slice(), [one] if is_group(one));
            if !(is_plain_group && inner.is_some()) {
                rows.push(format!(
                    "| `{key}` | {} | {} | {} | {} |\n",
                    type_text(&all, self.root),
                    default_text(schema.get("default"), is_plain_group),
                    range_text(&all, self.root),
                    self.meaning(schema, &all)
                ));
            }
            if let Some(inner) = inner {
                self.keys(inner, &format!("{key}."), rows);
            }
        }
    }

    /// The group whose keys stand in the table of the key that holds it.
    fn inner(&self, all: &[&'a Value]) -> Option<&'a Value> {
        let groups: Vec<&Value> = all.iter().copied().filter(|leaf| is_group(leaf)).collect();
        match groups.as_slice() {
            [one] if !self.own.iter().any(|own| std::ptr::eq(*own, *one)) => Some(one),
            _ => None,
        }
    }

    /// Rows of one form of a place: a name, or a key with what it holds.
    fn form(&self, form: &'a Value, rows: &mut Vec<String>) {
        for name in names(form).into_iter().flatten() {
            rows.push(format!("| `\"{name}\"` | | | {} |\n", said(form)));
        }
        for (key, schema) in form["properties"].as_object().into_iter().flatten() {
            let all = leaves(schema, self.root);
            let held = match self.inner(&all) {
                Some(_) => "",
                None => &type_text(&all, self.root),
            };
            let range = range_text(&all, self.root);
            rows.push(format!("| `{key}` | {held} | {range} | {} |\n", said(form)));
            let Some(inner) = self.inner(&all) else { continue };
            for (below, schema) in inner["properties"].as_object().into_iter().flatten() {
                let all = leaves(schema, self.root);
                rows.push(format!(
                    "| `{key}.{below}` | {} | {} | {} |\n",
                    type_text(&all, self.root),
                    range_text(&all, self.root),
                    self.meaning(schema, &all)
                ));
            }
        }
    }

    /// A key's meaning, and that of each name that it takes.
    fn meaning(&self, schema: &Value, all: &[&Value]) -> String {
        let own = said(schema);
        let own =
            if own.is_empty() { all.first().map(|l| said(l)).unwrap_or_default() } else { own };
        let mut parts = vec![own];
        // Forms with a table of their own are told there.
        let has_table = all.iter().any(|leaf| self.own.iter().any(|own| std::ptr::eq(*own, *leaf)));
        for leaf in all.iter().filter(|leaf| leaf["const"].is_string() && !has_table) {
            let said = said(leaf);
            if let (Some(name), false) = (leaf["const"].as_str(), said.is_empty()) {
                parts.push(format!("`{name}`: {said}"));
            }
        }
        parts.retain(|part| !part.is_empty());
        parts.join(" ")
    }
}

/// The plain schemas of a place, but for null.
fn at<'a>(place: &str, root: &'a Value) -> Result<Vec<&'a Value>> {
    let mut here = vec![root];
    for part in place.split('.') {
        let next = here.iter().find_map(|leaf| {
            let property = leaf["properties"].get(part);
            let item = || leaf.get("items").filter(|_| part.parse::<usize>().is_ok());
            property.or_else(item)
        });
        let schema = next.with_context(|| format!("the schema has no {place}"))?;
        here = leaves(schema, root);
        here.retain(|leaf| types(leaf) != ["null"]);
    }
    Ok(here)
}

/// A doc comment as a line of a table.
fn said(schema: &Value) -> String {
    let text = schema["description"].as_str().unwrap_or_default();
    let words: Vec<&str> = text.split_whitespace().collect();
    words.join(" ").replace("[`", "`").replace("`]", "`").replace('|', "\\|")
}

fn type_text(all: &[&Value], root: &Value) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut null = false;
    for leaf in all {
        for name in types(leaf) {
            match name {
                "null" => null = true,
                _ => match names(leaf) {
                    Some(names) => words.extend(names.iter().map(|name| format!("`{name}`"))),
                    None => words.push(one_type(name, leaf, root)),
                },
            }
        }
    }
    let mut unique: Vec<String> = Vec::new();
    words.into_iter().for_each(|w| {
        if !unique.contains(&w) {
            unique.push(w)
        }
    });
    let mut text = unique.join(", ");
    if null {
        text += " or null";
    }
    text
}

fn one_type(name: &str, leaf: &Value, root: &Value) -> String {
    match name {
        "object" => match values_of_map(leaf) {
            Some(values) => format!("map to {}", type_text(&leaves(values, root), root)),
            None => "group of keys".to_owned(),
        },
        "array" => {
            let items = leaf.get("items").map(|items| type_text(&leaves(items, root), root));
            let items = items.map(|text| match text.as_str() {
                "text" => "texts".to_owned(),
                "group of keys" => "groups of keys".to_owned(),
                text => format!("{text}s"),
            });
            let length = match (leaf["minItems"].as_u64(), leaf["maxItems"].as_u64()) {
                (Some(a), Some(b)) if a == b => format!("{a} "),
                _ => String::new(),
            };
            format!("list of {length}{}", items.unwrap_or_else(|| "values".to_owned()))
        }
        "integer" => "whole number".to_owned(),
        "boolean" => "true or false".to_owned(),
        "string" => "text".to_owned(),
        other => other.to_owned(),
    }
}

/// The range of a number, of a list's numbers and length, of a map's numbers.
fn range_text(all: &[&Value], root: &Value) -> String {
    for leaf in all {
        let inner = leaf.get("items").or_else(|| values_of_map(leaf));
        let each = inner.map(|inner| range_text(&leaves(inner, root), root)).unwrap_or_default();
        let own = Range::of(leaf).text();
        let length = match (leaf["minItems"].as_u64(), leaf["maxItems"].as_u64()) {
            (Some(a), Some(b)) if a != b => format!("{a} to {b} values"),
            (Some(a), None) => format!("at least {a} values"),
            _ => String::new(),
        };
        let each = if each.is_empty() { each } else { format!("each {each}") };
        let parts: Vec<String> =
            [own, length, each].into_iter().filter(|p| !p.is_empty()).collect();
        if !parts.is_empty() {
            return parts.join(", ");
        }
    }
    String::new()
}

fn default_text(default: Option<&Value>, is_group: bool) -> String {
    match default {
        None => "needed".to_owned(),
        Some(Value::Object(_)) if is_group => "see below".to_owned(),
        Some(value) => format!("`{}`", compact(value)),
    }
}

/// JSON on a line, whole numbers without a point.
fn compact(value: &Value) -> String {
    match value {
        Value::Number(_) => number(value),
        Value::Array(items) => {
            let items: Vec<String> = items.iter().map(compact).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Object(map) => {
            let entries: Vec<String> =
                map.iter().map(|(key, value)| format!("{key:?}: {}", compact(value))).collect();
            format!("{{{}}}", entries.join(", "))
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use schemars::JsonSchema;
    use serde::{Deserialize, Serialize};

    use crate::schema::{above_zero, schema_of};

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(default)]
    struct Outer {
        /// How many,
        /// a | b.
        #[schemars(range(min = 1, max = 9))]
        count: u32,
        /// Rate.
        #[schemars(transform = above_zero)]
        rate: Option<f64>,
        /// Weights.
        inner: Inner,
        /// The stages.
        list: Vec<Inner>,
        /// What falls.
        form: Form,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(default)]
    struct Inner {
        /// Sizes, px.
        #[schemars(inner(range(min = 1)))]
        sizes: [f64; 2],
        /// Which.
        name: Name,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Name {
        /// The first.
        One,
        /// The second.
        Two,
    }

    #[derive(Serialize, Deserialize, JsonSchema)]
    #[serde(rename_all = "snake_case")]
    enum Form {
        /// Not at all.
        Plain,
        /// In steps.
        Steps {
            /// Where.
            at: Vec<u64>,
        },
    }

    impl Default for Outer {
        fn default() -> Self {
            let (inner, form) = (Inner::default(), Form::Plain);
            Self { count: 3, rate: None, inner, list: vec![], form }
        }
    }

    impl Default for Inner {
        fn default() -> Self {
            Self { sizes: [2.0, 3.5], name: Name::Two }
        }
    }

    const KEYS: &str = "\
| key | type | default | range | meaning |
|---|---|---|---|---|
";
    const INNER: &str = "\
| `sizes` | list of 2 numbers | `[2, 3.5]` | each at least 1 | Sizes, px. |
| `name` | `one`, `two` | `\"two\"` |  | Which. `one`: The first. `two`: The second. |
";

    #[derive(Serialize, Deserialize, JsonSchema)]
    struct Root {
        outer: Outer,
    }

    #[test]
    fn a_table_has_a_row_for_each_key() {
        let schema = schema_of::<Root>();
        let outer = tables(&["outer", "outer.form"], &schema).unwrap();
        let inner = INNER
            .replace("| `", "| `inner.")
            .replace(", `inner.", ", `")
            .replace(" | `inner.", " | `");
        let expected = format!(
            "### outer

{KEYS}| `count` | whole number | `3` | 1 to 9 | How many, a \\| b. |
| `rate` | number or null | `null` | above 0 | Rate. |
{inner}| `list` | list of groups of keys | `[]` |  | The stages. |
| `form` | `plain`, group of keys | `\"plain\"` |  | What falls. |

### outer.form

| value | type | range | meaning |
|---|---|---|---|
| `\"plain\"` | | | Not at all. |
| `steps` |  |  | In steps. |
| `steps.at` | list of whole numbers | each at least 0 | Where. |
"
        );
        assert_eq!(outer, expected);
    }

    #[test]
    fn tables_of_a_page_are_made_anew_and_the_rest_stays() {
        let schema = schema_of::<Root>();
        let page = "a\n<!-- keys: outer.list.0 -->\nold\n<!-- end of keys -->\nb\n";
        let filled = fill_tables(page, &schema).unwrap();
        assert_eq!(
            filled,
            format!("a\n<!-- keys: outer.list.0 -->\n{KEYS}{INNER}<!-- end of keys -->\nb\n")
        );
        assert_eq!(fill_tables(&filled, &schema).unwrap(), filled);
        for (page, expected) in [
            ("<!-- keys: outer.x -->\n<!-- end of keys -->", "the schema has no outer.x"),
            ("<!-- keys: outer -->\n", "the table of outer has no <!-- end of keys -->"),
        ] {
            assert_eq!(fill_tables(page, &schema).unwrap_err().to_string(), expected);
        }
    }
}
