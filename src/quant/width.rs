//! A bit width and what it means: how many levels, and which.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail, ensure};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::Value;

use super::levels::{Spacing, bits_of, check_widths};
use super::settings::CodeRange;

/// How many levels b bits are, whatever the method.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Levels {
    /// 2^b - 1, symmetric about 0, which is one of them; 1 bit: 2 levels.
    Odd,
    /// 2^b: with codes -2^(b-1) to 2^(b-1) - 1, of which 0 is one; of `dorefa` as in its paper, symmetric and without 0.
    Full,
}

impl Levels {
    /// Its name in configs and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Odd => "odd",
            Self::Full => "full",
        }
    }

    /// The number of levels of `bits`, 1 to 8.
    fn count(self, bits: u32) -> u32 {
        match self {
            Self::Odd => ((1 << bits) - 1).max(2),
            Self::Full => 1 << bits,
        }
    }
}

impl fmt::Display for Levels {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Levels {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "odd" => Ok(Self::Odd),
            "full" => Ok(Self::Full),
            _ => bail!("{name:?} is not a choice of levels, expected odd (2^b - 1) or full (2^b)"),
        }
    }
}

/// A bit width, as configs give it: bits, a number of levels, or both where they agree.
///
/// In JSON a number is bits alone; an object has `bits`, `n_levels` and `levels`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BitWidth {
    /// Bits, 1 to 8.
    pub bits: Option<u32>,
    /// Number of levels, 2 to 256, where it is not the one of `bits`.
    pub n_levels: Option<u32>,
    /// How many levels `bits` are; none for what the method takes by itself.
    pub levels: Option<Levels>,
}

impl BitWidth {
    /// So many bits.
    pub fn of_bits(bits: u32) -> Self {
        Self { bits: Some(bits), ..Self::default() }
    }

    /// Bits and number of levels, the latter also where `levels` decides it.
    ///
    /// # Errors
    /// If both are missing, one is outside its range, or any two of the three contradict each other.
    pub fn count(self) -> Result<(Option<u32>, Option<u32>)> {
        let Self { bits, n_levels, levels } = self;
        let Some(levels) = levels else { return Ok((bits, n_levels)) };
        check_widths(bits, n_levels, 1)?;
        let bits = bits.or(n_levels.map(bits_of)).unwrap_or_default();
        let wanted = levels.count(bits);
        if let Some(n) = n_levels {
            ensure!(
                n == wanted,
                "levels {levels} and n_levels {n} contradict each other: {bits} bits are {wanted} levels then; drop \
                 one of the two"
            );
        }
        Ok((Some(bits), Some(wanted)))
    }

    /// Evenly spaced levels: symmetric ones ([`Spacing::uniform`]), or with [`Levels::Full`] successive integers as of a
    /// learnt step ([`Spacing::integers`]).
    ///
    /// # Errors
    /// As [`BitWidth::count`].
    pub fn evenly_spaced(self) -> Result<Spacing> {
        let (bits, n_levels) = self.count()?;
        match self.levels {
            Some(Levels::Full) => Spacing::integers(bits, n_levels, CodeRange::Full),
            _ => Spacing::uniform(bits, n_levels),
        }
    }

    /// Symmetric levels of a method that has no others.
    ///
    /// # Errors
    /// As [`BitWidth::count`], and with [`Levels::Full`].
    pub(super) fn symmetric(self, method: &str) -> Result<Spacing> {
        ensure!(
            self.levels != Some(Levels::Full),
            "levels full: method {method} has 2^b - 1 levels where activations have both signs; drop levels, or \
             choose lsq or uniform"
        );
        self.evenly_spaced()
    }

    /// What a layer has whose entry in `layer_bits` is this, in a stage of that choice of levels.
    pub(super) fn in_stage(self, levels: Option<Levels>) -> Self {
        match self.n_levels {
            Some(_) => self,
            None => Self { levels: self.levels.or(levels), ..self },
        }
    }
}

impl fmt::Display for BitWidth {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let bits = self.bits.map(|bits| format!("{bits} bits"));
        let n_levels = self.n_levels.map(|n| format!("{n} levels"));
        let levels = self.levels.map(|levels| format!("levels {levels}"));
        let parts: Vec<String> = [bits, n_levels, levels].into_iter().flatten().collect();
        f.write_str(&parts.join(", "))
    }
}

/// The keys of the object form.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Keys {
    /// Bits per weight.
    #[schemars(range(min = 1, max = 8))]
    #[serde(skip_serializing_if = "Option::is_none")]
    bits: Option<u32>,
    /// Number of levels, where it is not the one of `bits`.
    #[schemars(range(min = 2, max = 256))]
    #[serde(skip_serializing_if = "Option::is_none")]
    n_levels: Option<u32>,
    /// How many levels `bits` are.
    #[serde(skip_serializing_if = "Option::is_none")]
    levels: Option<Levels>,
}

impl Serialize for BitWidth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match *self {
            Self { bits: Some(bits), n_levels: None, levels: None } => bits.serialize(serializer),
            Self { bits, n_levels, levels } => {
                Keys { bits, n_levels, levels }.serialize(serializer)
            }
        }
    }
}

impl<'de> Deserialize<'de> for BitWidth {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if let Some(bits) = value.as_u64().and_then(|bits| u32::try_from(bits).ok()) {
            return Ok(Self::of_bits(bits));
        }
        if !value.is_object() {
            return Err(de::Error::custom(format!(
                "{value} is not a width, expected bits (4) or an object such as {{\"bits\": 2, \"n_levels\": 4}} or \
                 {{\"bits\": 2, \"levels\": \"full\"}}"
            )));
        }
        let Keys { bits, n_levels, levels } =
            serde_json::from_value(value).map_err(de::Error::custom)?;
        Ok(Self { bits, n_levels, levels })
    }
}

impl JsonSchema for BitWidth {
    fn schema_name() -> Cow<'static, str> {
        "BitWidth".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let keys = Keys::json_schema(generator);
        json_schema!({
            "description": "Bits, or an object with `bits`, `n_levels` and `levels`.",
            "anyOf": [{ "type": "integer", "minimum": 1, "maximum": 8 }, keys]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn width(bits: Option<u32>, n_levels: Option<u32>, levels: Option<Levels>) -> BitWidth {
        BitWidth { bits, n_levels, levels }
    }

    #[test]
    fn odd_and_full_are_the_levels_of_a_width() {
        let codes =
            |bits, levels| width(Some(bits), None, Some(levels)).evenly_spaced().unwrap().codes();
        assert_eq!(codes(2, Levels::Odd), [-1, 0, 1]);
        assert_eq!(codes(2, Levels::Full), [-2, -1, 0, 1]);
        assert_eq!(codes(3, Levels::Odd), [-3, -2, -1, 0, 1, 2, 3]);
        assert_eq!(codes(3, Levels::Full), [-4, -3, -2, -1, 0, 1, 2, 3]);
        for levels in [Levels::Odd, Levels::Full] {
            assert_eq!(codes(1, levels), [-1, 1]);
            for bits in 1..=8 {
                let spacing = width(Some(bits), None, Some(levels)).evenly_spaced().unwrap();
                assert_eq!((spacing.bits(), spacing.num_levels()), (bits, levels.count(bits)));
            }
        }
        // without a choice all is as it was
        assert_eq!(width(Some(2), Some(4), None).evenly_spaced().unwrap().codes(), [-3, -1, 1, 3]);
    }

    #[test]
    fn a_level_count_that_the_choice_does_not_have_is_refused_with_both_numbers() {
        let refused =
            |n, levels| width(None, Some(n), Some(levels)).evenly_spaced().unwrap_err().to_string();
        for (n, levels, wanted) in [
            (4, Levels::Odd, 3),
            (3, Levels::Full, 4),
            (5, Levels::Odd, 7),
            (255, Levels::Full, 256),
        ] {
            let text = refused(n, levels);
            assert!(
                text.contains(&format!("levels {levels} and n_levels {n} contradict")),
                "{text}"
            );
            assert!(text.contains(&format!("are {wanted} levels")), "{text}");
        }
        assert!(width(None, Some(3), Some(Levels::Odd)).evenly_spaced().is_ok());
        assert!(width(Some(2), Some(4), Some(Levels::Full)).evenly_spaced().is_ok());
        let text = width(Some(3), Some(4), Some(Levels::Full)).evenly_spaced().unwrap_err();
        assert!(text.to_string().contains("bits 3 and n_levels 4 contradict"), "{text}");
        assert!(width(None, None, Some(Levels::Odd)).evenly_spaced().is_err());
        assert!(width(Some(9), None, Some(Levels::Odd)).evenly_spaced().is_err());
    }

    #[test]
    fn a_number_is_bits_and_an_object_says_more() {
        for (json, expected) in [
            ("4", width(Some(4), None, None)),
            (r#"{"bits":2,"n_levels":4}"#, width(Some(2), Some(4), None)),
            (r#"{"n_levels":15}"#, width(None, Some(15), None)),
            (r#"{"bits":2,"levels":"full"}"#, width(Some(2), None, Some(Levels::Full))),
        ] {
            let found: BitWidth = serde_json::from_str(json).unwrap();
            assert_eq!(found, expected);
            assert_eq!(serde_json::to_string(&found).unwrap(), json);
        }
        for (json, text) in [
            (r#""four""#, "expected bits (4) or an object"),
            ("-2", "expected bits (4) or an object"),
            (r#"{"bit":2}"#, "unknown field `bit`"),
            (r#"{"bits":2,"levels":"even"}"#, "unknown variant `even`"),
        ] {
            let err = serde_json::from_str::<BitWidth>(json).unwrap_err().to_string();
            assert!(err.contains(text), "{json}: {err}");
        }
    }

    #[test]
    fn an_entry_takes_the_choice_of_its_stage_unless_it_says_more() {
        let full = Some(Levels::Full);
        assert_eq!(BitWidth::of_bits(2).in_stage(full), width(Some(2), None, full));
        assert_eq!(BitWidth::of_bits(2).in_stage(None), BitWidth::of_bits(2));
        let odd = width(Some(2), None, Some(Levels::Odd));
        assert_eq!(odd.in_stage(full), odd);
        let counted = width(Some(2), Some(3), None);
        assert_eq!(counted.in_stage(full), counted);
    }
}
