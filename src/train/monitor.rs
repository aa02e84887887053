//! What chooses the best checkpoint, and when a stage ends for want of better ones.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What chooses the best checkpoint of a stage, and when the stage ends for want of better ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MonitorConfig {
    /// What is compared. Equal values are told apart by the objects found, then by the validation loss.
    pub metric: Monitored,
    /// End a stage after this many validations in a row without a better one, counted once its module is fully quantized;
    /// `null` trains all its epochs. The next stage goes on from the last weights, not from the best.
    #[schemars(range(min = 1))]
    pub patience: Option<u32>,
}

/// A measure of the validation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Monitored {
    /// The headline recall, `ADI-0.1d`.
    #[default]
    Headline,
    /// Objects for which a pose was found, percent.
    Found,
    /// Median rotation error of the objects found, degrees.
    RotationError,
    /// Median translation error of the objects found, mm.
    TranslationError,
    /// The sum of the losses.
    Loss,
}

impl Monitored {
    /// Its name among what a validation measured; `None` for the score itself.
    pub fn detail(self) -> Option<&'static str> {
        match self {
            Self::Headline => None,
            Self::Found => Some("found, %"),
            Self::RotationError => Some("median rotation error, deg"),
            Self::TranslationError => Some("median translation error, mm"),
            Self::Loss => Some("loss"),
        }
    }
}
