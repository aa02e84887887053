//! Sections of a config whose keys are those of the family that `network` names: the network's shape, `training.loss`,
//! `training.targets` and `training.distill`.
//!
//! A config holds the latter three as JSON. [`Family::complete`](super::Family::complete) fills in what they leave out and
//! refuses keys of other families; the family reads its own types from them.

use std::borrow::Cow;

use anyhow::Result;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{caspacenet, wdr};
use crate::schema::parse_part;

macro_rules! sections {
    ($($(#[$doc:meta])* $name:ident at $place:literal: $first:ty $(, $other:ty)*;)+) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
            #[serde(transparent)]
            pub struct $name(Map<String, Value>);

            impl $name {
                /// The JSON form of a family's own settings.
                pub fn of<T: Serialize>(settings: &T) -> Self {
                    match serde_json::to_value(settings) {
                        Ok(Value::Object(map)) => Self(map),
                        _ => panic!("the settings of a family are a JSON object"),
                    }
                }

                /// The settings of the family whose type that is; what is left out is its default.
                ///
                /// # Errors
                /// If keys are none of the family's, or values have another type: names all of them.
                pub fn read<T: DeserializeOwned + JsonSchema>(&self) -> Result<T> {
                    parse_part(&Value::Object(self.0.clone()), $place)
                }
            }

            impl Default for $name {
                fn default() -> Self {
                    Self::of(&<$first>::default())
                }
            }

            impl JsonSchema for $name {
                fn schema_name() -> Cow<'static, str> {
                    <$first>::schema_name()
                }

                fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                    union(vec![<$first>::json_schema(generator) $(, <$other>::json_schema(generator))*])
                }
            }
        )+
    };
}

sections! {
    /// Weights of the losses: the section `training.loss`.
    LossSettings at "training.loss": wdr::LossConfig, caspacenet::LossConfig;
    /// Which outputs learn an object: the section `training.targets`.
    TargetSettings at "training.targets": wdr::TargetConfig;
    /// What is learnt from another network: the section `training.distill`.
    DistillSettings at "training.distill": wdr::DistillConfig;
    /// The network's shape: the section `network.params`. Messages name keys from `params` on.
    ShapeSettings at "params": wdr::NetworkConfig, caspacenet::NetworkConfig;
}

/// The sections of `training` whose keys are a family's.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TrainingSettings {
    /// Weights of the losses.
    pub loss: LossSettings,
    /// Which outputs learn an object.
    pub targets: TargetSettings,
    /// What is learnt from the network that a run starts from; `None` learns from the targets alone.
    pub distill: Option<DistillSettings>,
}

/// The schema of a section with the keys of all families: the first one's, and what the others have besides.
pub(super) fn union(families: Vec<Schema>) -> Schema {
    let mut families = families.into_iter();
    let mut all = families.next().expect("there is a family");
    for family in families {
        let properties = all.ensure_object()["properties"].as_object_mut();
        let properties = properties.expect("the settings of a family are an object");
        for (key, schema) in
            family.get("properties").and_then(Value::as_object).into_iter().flatten()
        {
            if !properties.contains_key(key) {
                properties.insert(key.clone(), schema.clone());
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn loss(value: Value) -> LossSettings {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_is_left_out_is_the_familys_default() {
        let full: wdr::LossConfig = loss(json!({"weight_reg": 0.5})).read().unwrap();
        assert_eq!(full, wdr::LossConfig { weight_reg: 0.5, ..Default::default() });
        let text = serde_json::to_string(&LossSettings::of(&full)).unwrap();
        assert_eq!(
            text,
            r#"{"weight_cls":0.01,"weight_reg":0.5,"focal_alpha":0.25,"focal_gamma":2.0}"#
        );
    }

    #[test]
    fn keys_that_are_not_the_familys_are_named_with_their_place() {
        let error = |value| loss(value).read::<wdr::LossConfig>().unwrap_err().to_string();
        let text = error(json!({"weight_clss": 1}));
        assert_eq!(text, "training.loss.weight_clss: unknown key, did you mean weight_cls?");
        let text = error(json!({"weight_cls": "much"}));
        assert_eq!(text, "training.loss.weight_cls: is the text \"much\", expected a number");
    }

    #[test]
    fn a_union_has_the_keys_of_all() {
        #[derive(JsonSchema)]
        struct More {
            #[expect(dead_code, reason = "only its schema is looked at")]
            weight_more: f64,
        }
        let mut generator = SchemaGenerator::default();
        let first = wdr::LossConfig::json_schema(&mut generator);
        let both = union(vec![first.clone(), More::json_schema(&mut generator)]);
        let keys = |s: &Schema| s.get("properties").unwrap().as_object().unwrap().len();
        assert_eq!(keys(&both), keys(&first) + 1);
        assert_eq!(both.get("description"), first.get("description"));
    }
}
