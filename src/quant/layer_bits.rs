//! Widths of single layers, chosen by path or glob.

use std::collections::BTreeMap;

use anyhow::{Result, bail};

use super::config::WeightQuantConfig;
use super::select::{Pattern, covers_in, ranked};
use super::width::BitWidth;
use crate::nn::Store;

impl WeightQuantConfig {
    /// The config of each of these layers of a network: this one, with the width that `layer_bits` gives the layer.
    ///
    /// # Errors
    /// If a pattern matches no layer (with the nearest ones), or two patterns give a layer different widths.
    pub fn for_layers(&self, store: &Store, names: &[&str]) -> Result<Vec<Self>> {
        let widths = resolve(&self.layer_bits, store, names)?;
        let own = |width: Option<BitWidth>| {
            let BitWidth { bits, n_levels, levels } =
                width.map_or(self.width(), |width| width.in_stage(self.levels));
            Self { bits, n_levels, levels, layer_bits: BTreeMap::new(), ..self.clone() }
        };
        Ok(widths.into_iter().map(own).collect())
    }
}

/// The width that `patterns` give to each of `names`, `None` where no pattern matches.
///
/// A pattern that is the layer's own path goes before the others.
fn resolve(
    patterns: &BTreeMap<String, BitWidth>,
    store: &Store,
    names: &[&str],
) -> Result<Vec<Option<BitWidth>>> {
    let mut found: Vec<Option<(&str, BitWidth)>> = vec![None; names.len()];
    for (text, &width) in patterns {
        let pattern = Pattern::parse(text)?;
        let covered: Vec<usize> =
            (0..names.len()).filter(|&i| covers_in(store, &pattern, names[i])).collect();
        if covered.is_empty() {
            let nearest = ranked(text, names.iter().copied()).join(", ");
            bail!(
                "layer_bits: {text:?} matches no layer of the module; the nearest names are {nearest}"
            );
        }
        for i in covered {
            let name = names[i];
            match found[i] {
                _ if text != name && patterns.contains_key(name) => {}
                Some((other, other_width)) if other_width != width => bail!(
                    "layer_bits: {name} matches {other:?} ({other_width}) and {text:?} ({width}): \
                     name the layer by its path or narrow one of the two"
                ),
                _ => found[i] = Some((text, width)),
            }
        }
    }
    Ok(found.into_iter().map(|found| found.map(|(_, width)| width)).collect())
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    const NAMES: [&str; 4] =
        ["fpn.inner_convs.2", "fpn.inner_convs.3", "fpn.out_convs.2", "fpn.top_blocks.p6"];

    fn bits(patterns: &[(&str, u32)]) -> Result<Vec<Option<u32>>> {
        let patterns =
            patterns.iter().map(|&(p, b)| (p.to_owned(), BitWidth::of_bits(b))).collect();
        let widths = resolve(&patterns, &Store::new(Device::Cpu), &NAMES)?;
        Ok(widths.into_iter().map(|width| width.and_then(|width| width.bits)).collect())
    }

    #[test]
    fn paths_go_before_globs_and_the_rest_has_none() {
        let found = bits(&[("fpn.inner_convs.*", 4), ("fpn.inner_convs.3", 8)]).unwrap();
        assert_eq!(found, [Some(4), Some(8), None, None]);
        let found = bits(&[("fpn", 2), ("fpn.top_blocks.p6", 8)]).unwrap();
        assert_eq!(found, [Some(2), Some(2), Some(2), Some(8)]);
    }

    #[test]
    fn a_pattern_without_a_layer_names_the_nearest() {
        let text = bits(&[("fpn.iner_convs.2", 4)]).unwrap_err().to_string();
        assert!(text.contains("matches no layer") && text.contains("fpn.inner_convs.2"), "{text}");
        assert!(bits(&[("head.*", 4)]).is_err());
    }

    #[test]
    fn globs_that_disagree_about_a_layer_are_refused() {
        let text = bits(&[("fpn.inner*", 4), ("**.2", 2)]).unwrap_err().to_string();
        assert!(text.contains("fpn.inner_convs.2 matches \"**.2\""), "{text}");
        assert!(bits(&[("fpn.inner*", 4), ("**.2", 4)]).is_ok());
        assert!(bits(&[("fpn.[", 4)]).is_err() && bits(&[("", 4)]).is_err());
    }
}
