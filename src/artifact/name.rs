//! What a network is, for people.

use crate::quant::ModuleQuantizer;
use crate::train::{Afterwards, QuantizedModule};

/// What a checkpoint is, for people: `full precision`, `fpn 2-bit (3 levels)`; says so where a module is not quantized
/// to the end, and where one was trained on in the stages after its own.
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
        .map(|(i, name)| {
            let on = trained_on(&quantized[i..]);
            format!("{name}{on}{}", quantizer_of(i).map_or_else(String::new, partly))
        })
        .collect();
    named.join(" + ")
}

/// Whether the first of these modules was trained on in the stages of the others.
fn trained_on(modules: &[QuantizedModule]) -> &'static str {
    match modules {
        [module, _, ..] if module.afterwards == Afterwards::Train => ", trained on",
        _ => "",
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Claim, WeightQuantConfig};

    #[test]
    fn a_module_that_was_trained_on_says_so() {
        let module = |stage, name, afterwards| QuantizedModule {
            stage,
            afterwards,
            claim: Claim {
                weights: Some(WeightQuantConfig { bits: Some(2), ..Default::default() }),
                ..Claim::of(name)
            },
        };
        let names = |afterwards| {
            run_name(&[module(0, "fpn", afterwards), module(1, "head", afterwards)], &[])
        };
        let (frozen, trained) = (names(Afterwards::Freeze), names(Afterwards::Train));
        assert!(!frozen.contains("trained"), "{frozen}");
        // No stage came after the head's.
        assert_eq!(trained, frozen.replacen(" + head", ", trained on + head", 1));
    }
}
