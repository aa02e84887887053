//! What is to be quantized, and how.

use serde::{Deserialize, Serialize};

use super::config::{ActivationQuantConfig, WeightQuantConfig};

/// A module with the quantizers it is to get: everything that [`super::ModuleQuantizer::attach`] needs besides the network.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Claim {
    /// The module: a path, a glob, or a list of these.
    pub module: String,
    /// Its weights; none leaves them float.
    pub weights: Option<WeightQuantConfig>,
    /// What goes into its layers; none leaves it float.
    pub activations: Option<ActivationQuantConfig>,
    /// Whether the network's first layer takes part.
    pub first_layer: bool,
    /// Whether the network's last layers take part.
    pub last_layer: bool,
    /// Seed of random strategies: that of the run.
    pub seed: u64,
}

impl Claim {
    /// All layers that a pattern covers, with nothing to be quantized yet; seed 0.
    pub fn of(module: &str) -> Self {
        Self {
            module: module.to_owned(),
            weights: None,
            activations: None,
            first_layer: true,
            last_layer: true,
            seed: 0,
        }
    }

    /// With its weights quantized.
    pub fn with_weights(self, weights: &WeightQuantConfig) -> Self {
        Self { weights: Some(weights.clone()), ..self }
    }

    /// With the activations quantized that go into its layers.
    pub fn with_activations(self, activations: &ActivationQuantConfig) -> Self {
        Self { activations: Some(activations.clone()), ..self }
    }
}
