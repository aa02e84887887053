//! The range of a number, for messages and for people.

use serde_json::Value;

use super::leaves::number;

/// Bounds of a number, as a schema gives them.
#[derive(Debug, Default)]
pub(super) struct Range<'a> {
    least: Option<&'a Value>,
    above: Option<&'a Value>,
    most: Option<&'a Value>,
    below: Option<&'a Value>,
    multiple_of: Option<&'a Value>,
}

impl<'a> Range<'a> {
    pub(super) fn of(leaf: &'a Value) -> Self {
        let above = leaf.get("exclusiveMinimum");
        Self {
            // A type's own 0 says nothing beside a bound above 0.
            least: leaf.get("minimum").filter(|_| above.is_none()),
            above,
            most: leaf.get("maximum"),
            below: leaf.get("exclusiveMaximum"),
            multiple_of: leaf.get("multipleOf"),
        }
    }

    /// What is wrong with a number, if something is: `0 is outside 1..=1000`.
    pub(super) fn problem(&self, value: &Value) -> Option<String> {
        let x = value.as_f64()?;
        let holds = |bound: Option<&Value>, keeps: fn(f64, f64) -> bool| {
            bound.and_then(Value::as_f64).is_none_or(|bound| keeps(x, bound))
        };
        let shown = number(value);
        let inside = holds(self.least, |x, b| x >= b)
            && holds(self.above, |x, b| x > b)
            && holds(self.most, |x, b| x <= b)
            && holds(self.below, |x, b| x < b);
        if !inside {
            return Some(format!("{shown} is {}", self.outside()));
        }
        let multiple = self.multiple_of.and_then(Value::as_f64).filter(|m| x % m != 0.0)?;
        Some(format!("{shown} is not a multiple of {multiple}"))
    }

    /// Where a number is that is not inside.
    fn outside(&self) -> String {
        let excluded = |names: String| format!(" ({names} excluded)");
        let text = |bound: &Value| number(bound);
        match (self.least, self.above, self.most, self.below) {
            (Some(a), _, Some(b), _) => format!("outside {}..={}", text(a), text(b)),
            (Some(a), _, _, Some(b)) => {
                format!("outside {}..{}{}", text(a), text(b), excluded(text(b)))
            }
            (_, Some(a), Some(b), _) => {
                format!("outside {}..={}{}", text(a), text(b), excluded(text(a)))
            }
            (_, Some(a), _, Some(b)) => {
                let both = format!("{} and {}", text(a), text(b));
                format!("outside {}..{}{}", text(a), text(b), excluded(both))
            }
            (Some(a), ..) => format!("below {}", text(a)),
            (_, Some(a), ..) => format!("not above {}", text(a)),
            (.., Some(b), _) => format!("above {}", text(b)),
            (.., Some(b)) => format!("not below {}", text(b)),
            (None, None, None, None) => "outside its range".to_owned(),
        }
    }

    /// The range for a table: `1 to 1000`, `above 0`; empty without bounds.
    pub(super) fn text(&self) -> String {
        let from = self.least.map(|a| number(a)).or(self.above.map(|a| number(a)));
        let to = self.most.map(|b| number(b)).or(self.below.map(|b| number(b)));
        let mut text = match (from, to) {
            (Some(a), Some(b)) => {
                let excluded: Vec<&str> = [(self.above, &a), (self.below, &b)]
                    .into_iter()
                    .filter(|(bound, _)| bound.is_some())
                    .map(|(_, name)| name.as_str())
                    .collect();
                match excluded.as_slice() {
                    [] => format!("{a} to {b}"),
                    names => format!("{a} to {b} ({} excluded)", names.join(" and ")),
                }
            }
            (Some(a), None) if self.above.is_some() => format!("above {a}"),
            (Some(a), None) => format!("at least {a}"),
            (None, Some(b)) if self.below.is_some() => format!("below {b}"),
            (None, Some(b)) => format!("at most {b}"),
            (None, None) => String::new(),
        };
        if let Some(m) = self.multiple_of {
            let comma = if text.is_empty() { "" } else { ", " };
            text += &format!("{comma}a multiple of {}", number(m));
        }
        text
    }
}

/// The largest number that an integer of the schema's format holds.
pub(super) fn most_of_format(leaf: &Value) -> Option<f64> {
    Some(match leaf["format"].as_str()? {
        "uint8" => f64::from(u8::MAX),
        "uint16" => f64::from(u16::MAX),
        "uint32" => f64::from(u32::MAX),
        "int32" => f64::from(i32::MAX),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn messages_and_tables_tell_every_kind_of_bound() {
        for (schema, value, problem, text) in [
            (
                json!({ "minimum": 1, "maximum": 1000 }),
                json!(0),
                "0 is outside 1..=1000",
                "1 to 1000",
            ),
            (
                json!({ "minimum": 0.0, "exclusiveMaximum": 1 }),
                json!(1.0),
                "1 is outside 0..1 (1 excluded)",
                "0 to 1 (1 excluded)",
            ),
            (
                json!({ "minimum": 0, "exclusiveMinimum": 0, "maximum": 1 }),
                json!(0.0),
                "0 is outside 0..=1 (0 excluded)",
                "0 to 1 (0 excluded)",
            ),
            (
                json!({ "exclusiveMinimum": 0, "exclusiveMaximum": 1 }),
                json!(1.5),
                "1.5 is outside 0..1 (0 and 1 excluded)",
                "0 to 1 (0 and 1 excluded)",
            ),
            (json!({ "minimum": 1 }), json!(0), "0 is below 1", "at least 1"),
            (json!({ "exclusiveMinimum": 0 }), json!(-0.5), "-0.5 is not above 0", "above 0"),
            (json!({ "maximum": 3 }), json!(4), "4 is above 3", "at most 3"),
            (json!({ "exclusiveMaximum": 3 }), json!(3), "3 is not below 3", "below 3"),
            (
                json!({ "minimum": 2, "maximum": 8, "multipleOf": 2 }),
                json!(3),
                "3 is not a multiple of 2",
                "2 to 8, a multiple of 2",
            ),
        ] {
            let range = Range::of(&schema);
            assert_eq!(range.problem(&value).as_deref(), Some(problem));
            assert_eq!(range.text(), text);
        }
        assert_eq!(Range::of(&json!({ "minimum": 1, "maximum": 2 })).problem(&json!(2)), None);
        assert_eq!(Range::of(&json!({})).text(), "");
    }
}
