//! What a network is, for people.

use crate::quant::ModuleQuantizer;
use crate::train::QuantizedModule;

/// What a checkpoint is, for people: `full precision`, `fpn 2-bit (3 levels)`; says so where a module is not quantized
/// to the end.
pub(crate) fn run_name(quantized: &[QuantizedModule], quantizers: &[ModuleQuantizer]) -> String {
    let names = module_names(quantized);
    if names.is_empty() {
        return "full precision".to_owned();
    }
    let partly = |quantizer: &ModuleQuantizer| {
        let sites = quantizer.report();
        let weights: Vec<_> = sites.iter().filter(|s| s.num_levels.is_some()).collect();
        let total: usize = weights.iter().map(|s| s.num_weights).sum();
        let frozen: f64 = weights.iter().map(|s| s.frozen_fraction * s.num_weights as f64).sum();
        let mut text = String::new();
        if total > 0 && frozen < total as f64 {
            text += &format!(", only {:.1} % frozen", 100.0 * frozen / total as f64);
        }
        if sites.iter().any(|s| s.activations.as_ref().is_some_and(|a| !a.quantizing)) {
            text += ", activations still float";
        }
        text
    };
    let quantizer_of =
        |i: usize| quantizers.iter().find(|q| q.module() == quantized[i].claim.module);
    let named: Vec<String> = (names.iter().enumerate())
        .map(|(i, name)| format!("{name}{}", quantizer_of(i).map_or_else(String::new, partly)))
        .collect();
    named.join(" + ")
}

/// Quantized modules, each with its bits and levels.
pub(crate) fn module_names(quantized: &[QuantizedModule]) -> Vec<String> {
    let name = |module: &QuantizedModule| {
        let mut text = module.claim.module.clone();
        if let Some(weights) = &module.claim.weights {
            text += &format!(" {}", weights.describe());
        }
        if let Some(activations) = &module.claim.activations {
            text += &format!(", activations {}", activations.describe());
        }
        text
    };
    quantized.iter().map(name).collect()
}
