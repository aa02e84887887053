//! Bits of single layers, chosen by path or glob.

use std::collections::BTreeMap;

use anyhow::{Result, bail, ensure};
use globset::{Glob, GlobMatcher};

/// A pattern of layer names; `*` covers dots as well.
///
/// # Errors
/// If it is no valid glob.
pub(crate) fn compile(pattern: &str) -> Result<GlobMatcher> {
    ensure!(!pattern.is_empty(), "an empty pattern, expected a layer's path or a glob");
    Ok(Glob::new(pattern)?.compile_matcher())
}

/// The bits that `patterns` give to each of `names`, `None` where no pattern matches.
///
/// A pattern that is a layer's path goes before globs.
///
/// # Errors
/// If a pattern matches no name (with the nearest ones), or two globs give a layer different bits.
pub(crate) fn resolve(
    patterns: &BTreeMap<String, u32>,
    names: &[&str],
) -> Result<Vec<Option<u32>>> {
    let mut found: Vec<Option<(&str, u32)>> = vec![None; names.len()];
    for (pattern, &bits) in
        patterns.iter().filter(|(pattern, _)| !names.contains(&pattern.as_str()))
    {
        let matcher = compile(pattern)?;
        let mut matched = false;
        for (name, found) in names.iter().zip(&mut found) {
            if !matcher.is_match(name) {
                continue;
            }
            matched = true;
            // a layer that is named by its path has its bits from there
            if patterns.contains_key(*name) {
                continue;
            }
            match *found {
                Some((other, other_bits)) if other_bits != bits => bail!(
                    "layer_bits: {name} matches {other:?} ({other_bits} bits) and {pattern:?} ({bits} \
                     bits): name the layer by its path or narrow one of the two"
                ),
                _ => *found = Some((pattern, bits)),
            }
        }
        if !matched {
            bail!(
                "layer_bits: {pattern:?} matches no layer of the module{}",
                nearest(pattern, names)
            );
        }
    }
    let by_path = |name: &str| patterns.get(name).copied();
    Ok(names.iter().zip(found).map(|(name, f)| by_path(name).or(f.map(|(_, bits)| bits))).collect())
}

fn nearest(pattern: &str, names: &[&str]) -> String {
    let mut ranked: Vec<(f64, &str)> =
        names.iter().map(|name| (strsim::jaro_winkler(pattern, name), *name)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    let names: Vec<&str> = ranked.iter().take(3).map(|&(_, name)| name).collect();
    format!("; the nearest names are {}", names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAMES: [&str; 4] =
        ["fpn.inner_convs.2", "fpn.inner_convs.3", "fpn.out_convs.2", "fpn.top_blocks.p6"];

    fn bits(patterns: &[(&str, u32)]) -> Result<Vec<Option<u32>>> {
        let patterns = patterns.iter().map(|&(p, b)| (p.to_owned(), b)).collect();
        resolve(&patterns, &NAMES)
    }

    #[test]
    fn paths_go_before_globs_and_the_rest_has_none() {
        let found = bits(&[("fpn.inner_convs.*", 4), ("fpn.inner_convs.3", 8)]).unwrap();
        assert_eq!(found, [Some(4), Some(8), None, None]);
        let found = bits(&[("*", 2), ("fpn.top_blocks.p6", 8)]).unwrap();
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
        let text = bits(&[("fpn.inner*", 4), ("*.2", 2)]).unwrap_err().to_string();
        assert!(text.contains("fpn.inner_convs.2 matches \"*.2\""), "{text}");
        assert!(bits(&[("fpn.inner*", 4), ("*.2", 4)]).is_ok());
        assert!(compile("fpn.[").is_err() && compile("").is_err());
    }
}
