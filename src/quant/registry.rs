//! The list of methods: a line each, from which the names, the tagged settings and the JSON form follow.

use std::fmt;
use std::str::FromStr;

use anyhow::Result;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use serde_json::{Map, Value};

use super::form::{self, Entry};
use super::scheme::{ActivationScheme, Settings, WeightScheme};

macro_rules! methods {
    (
        $(#[$method_doc:meta])* $method:ident;
        $(#[$settings_doc:meta])* $settings:ident of $scheme:ident;
        $($variant:ident($type:path),)+
    ) => {
        $(#[$method_doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $method {
            $(#[doc = concat!("See `", stringify!($type), "`.")] $variant,)+
        }

        $(#[$settings_doc])*
        #[derive(Debug, Clone, PartialEq)]
        pub enum $settings {
            $(#[doc = concat!("See [`", stringify!($type), "`].")] $variant($type),)+
        }

        impl $method {
            /// All there are; the first is the default.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];

            /// Its name in configs and reports.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => <$type as Settings>::NAME,)+
                }
            }

            /// Its default settings.
            pub fn settings(self) -> $settings {
                match self {
                    $(Self::$variant => $settings::$variant(Default::default()),)+
                }
            }

            pub(super) const ENTRIES: &[Entry] = &[$(Entry::of::<$type>(),)+];
        }

        impl $settings {
            /// The method.
            pub fn method(&self) -> $method {
                match self {
                    $(Self::$variant(_) => $method::$variant,)+
                }
            }

            /// What the settings decide.
            pub fn scheme(&self) -> &dyn $scheme {
                match self {
                    $(Self::$variant(settings) => settings,)+
                }
            }

            /// The same, to be changed.
            pub fn scheme_mut(&mut self) -> &mut dyn $scheme {
                match self {
                    $(Self::$variant(settings) => settings,)+
                }
            }

            pub(super) fn to_map(&self) -> Map<String, Value> {
                match self {
                    $(Self::$variant(settings) => form::map_of(settings),)+
                }
            }

            pub(super) fn from_map(
                method: $method,
                map: Map<String, Value>,
            ) -> Result<Self, String> {
                match method {
                    $($method::$variant => form::of_map(map).map(Self::$variant),)+
                }
            }
        }

        $(impl From<$type> for $settings {
            fn from(settings: $type) -> Self {
                Self::$variant(settings)
            }
        })+

        impl Default for $method {
            fn default() -> Self {
                Self::ALL[0]
            }
        }

        impl Default for $settings {
            fn default() -> Self {
                $method::default().settings()
            }
        }

        impl fmt::Display for $method {
            fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str(self.name())
            }
        }

        impl FromStr for $method {
            type Err = anyhow::Error;

            fn from_str(name: &str) -> Result<Self> {
                Self::ALL.iter().copied().find(|method| method.name() == name).ok_or_else(|| {
                    let known: Vec<&str> = Self::ALL.iter().map(|method| method.name()).collect();
                    anyhow::anyhow!("unknown method {name:?}, expected one of {}", known.join(", "))
                })
            }
        }

        impl Serialize for $method {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.name())
            }
        }

        impl<'de> Deserialize<'de> for $method {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
            }
        }

        impl JsonSchema for $method {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($method).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                let one = |name: &str, summary: &str| {
                    serde_json::json!({"type": "string", "const": name, "description": summary})
                };
                let all = [$(one(<$type as Settings>::NAME, <$type as Settings>::SUMMARY),)+];
                json_schema!({ "oneOf": all })
            }
        }
    };
}

methods! {
    /// How weights are quantized, by name.
    WeightMethod;
    /// A weight method with its settings.
    WeightSettings of WeightScheme;
    Inq(super::inq::InqWeights),
    Lsq(super::lsq::LsqWeights),
    Uniform(super::uniform::UniformWeights),
    Dorefa(super::dorefa::DorefaWeights),
    Ana(super::ana::AnaWeights),
}

methods! {
    /// How activations are quantized, by name.
    ActivationMethod;
    /// An activation method with its settings.
    ActivationSettings of ActivationScheme;
    Ste(super::ste::SteActivations),
    Lsq(super::lsq::LsqActivations),
    Uniform(super::uniform::UniformActivations),
    Pact(super::pact::PactActivations),
    Dorefa(super::dorefa::DorefaActivations),
    Ana(super::ana::AnaActivations),
}
