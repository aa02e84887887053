//! Which layers a stage's `module` covers.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{Result, bail, ensure};

use super::claim::Claim;
use super::pattern::{Part, paths_to};
pub use super::pattern::{Pattern, PatternSchema, covers, pattern_from_json, split};
use crate::nn::{Site, Store};

/// The quantizable layers that `module` covers, in the order of construction; see [`Pattern`].
///
/// `first_layer` false leaves out the layers that read the images, `last_layer` false those whose results are the
/// network's outputs (see [`Store::ends`]).
///
/// # Errors
/// If a part of the pattern is not valid or matches nothing, with the nearest names; or if nothing is left.
pub fn sites(
    store: &Store,
    module: &str,
    first_layer: bool,
    last_layer: bool,
) -> Result<Vec<Rc<Site>>> {
    let all: Vec<Rc<Site>> = store.sites().to_vec();
    let pattern = Pattern::parse(module)?;
    for part in &pattern.parts {
        ensure!(
            all.iter().any(|site| reaches(store, part, &site.name)),
            "module {:?} has no layer to quantize{}",
            part.text,
            nearest_names(part, &all)
        );
    }
    let ends = store.ends();
    let chosen: Vec<Rc<Site>> = all
        .iter()
        .filter(|site| covers_in(store, &pattern, &site.name))
        .filter(|site| first_layer || !ends.first.contains(&site.name))
        .filter(|site| last_layer || !ends.last.contains(&site.name))
        .cloned()
        .collect();
    ensure!(
        !chosen.is_empty(),
        "module {module:?} has only layers that first_layer or last_layer keep float: set them to \
         true or choose another module"
    );
    Ok(chosen)
}

/// Whether a pattern covers a layer of the network, by its path or by the module that it is a part of.
pub fn covers_in(store: &Store, pattern: &Pattern, layer: &str) -> bool {
    pattern.parts.iter().any(|part| reaches(store, part, layer))
}

fn reaches(store: &Store, part: &Part, layer: &str) -> bool {
    part.covers(layer) || part.covers(&store.module_of(layer))
}

/// Refuses claims on the same tensor, such as `fpn` beside `fpn.inner_convs`.
///
/// # Errors
/// Names the first tensor that two of `claims` hold, or the pattern that matches nothing.
pub fn check_disjoint(store: &Store, claims: &[Claim]) -> Result<()> {
    let mut taken: Vec<(String, &str)> = Vec::new();
    for claim in claims {
        let module = claim.module.as_str();
        let found = sites(store, module, claim.first_layer, claim.last_layer)?;
        for site in &found {
            if let Some((_, first)) = taken.iter().find(|(name, _)| *name == site.name) {
                bail!(
                    "{} is claimed by module {first:?} and by module {module:?}: list it once",
                    site.weight_name()
                );
            }
        }
        taken.extend(found.iter().map(|site| (site.name.clone(), module)));
    }
    Ok(())
}

/// `"; the nearest names are ..."` with up to three module or layer names.
fn nearest_names(part: &Part, sites: &[Rc<Site>]) -> String {
    let names: BTreeSet<&str> = sites.iter().flat_map(|site| paths_to(&site.name)).collect();
    if names.is_empty() {
        return ": the network has none".to_owned();
    }
    if part.glob.is_some()
        && let Some(hint) = first_component_without_match(&part.text, &names)
    {
        return hint;
    }
    let ranked = ranked(&part.text, names.into_iter());
    format!("; the nearest names are {}", ranked.join(", "))
}

/// Where a glob leaves the network's tree: the names beside the component that matches none.
fn first_component_without_match(glob: &str, names: &BTreeSet<&str>) -> Option<String> {
    let components = split(glob, '.');
    for len in (1..components.len()).rev() {
        let Ok(above) = Part::parse(&components[..len].join(".")) else { continue };
        let depth = |name: &str| name.split('.').count();
        let inside = names.iter().filter(|name| above.covers(name));
        let shortest = inside.clone().map(|name| depth(name)).min();
        let Some(shortest) = shortest else { continue };
        let beside: BTreeSet<&str> = inside
            .filter(|name| depth(name) == shortest + 1)
            .filter_map(|name| name.rsplit('.').next())
            .collect();
        if !beside.is_empty() {
            let nearest = ranked(components[len], beside.into_iter()).join(", ");
            return Some(format!(
                ": nothing in {:?} matches {:?}; the nearest names there are {nearest}",
                above.text, components[len]
            ));
        }
    }
    None
}

/// The three names most like `wanted`: what a slip of the fingers or two makes of it before what begins alike.
pub(super) fn ranked<'a>(wanted: &str, names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let slips = wanted.chars().count().div_ceil(4);
    let likeness = |name: &str| match strsim::osa_distance(wanted, name) {
        distance if distance <= slips => 2.0 - distance as f64 / (slips + 1) as f64,
        _ => strsim::jaro_winkler(wanted, name),
    };
    let mut ranked: Vec<(f64, &str)> = names.map(|name| (likeness(name), name)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    ranked.into_iter().take(3).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use serde::Deserialize;

    use super::*;
    use crate::quant::testing::{network, store, weights};

    fn names(module: &str, first: bool, last: bool) -> Vec<String> {
        let sites = sites(&network(), module, first, last).unwrap();
        sites.iter().map(|site| site.name.clone()).collect()
    }

    fn error(store: &Store, module: &str, first: bool, last: bool) -> String {
        sites(store, module, first, last).err().unwrap().to_string()
    }

    #[test]
    fn modules_are_chosen_by_whole_components() {
        let head = ["head.cls_tower.0", "head.cls_logits", "head.pose_pred"];
        assert_eq!(names("head", true, true), head);
        assert_eq!(
            names("fpn.inner_convs", true, true),
            ["fpn.inner_convs.2", "fpn.inner_convs.3"]
        );
        assert_eq!(names("fpn.out_convs.2", true, true), ["fpn.out_convs.2"]);
        assert!(sites(&network(), "fpn.inner", true, true).is_err());
    }

    #[test]
    fn a_slip_of_the_fingers_goes_before_what_begins_alike() {
        let names = ["fpn.out_convs", "fpn.inner_convs", "backbone", "fpn", "head"];
        assert_eq!(ranked("fnp", names.into_iter())[0], "fpn");
        assert_eq!(ranked("haed", names.into_iter())[0], "head");
        assert_eq!(ranked("fpn.inner", names.into_iter())[0], "fpn.inner_convs");
    }

    #[test]
    fn linear_layers_are_layers_like_others() {
        assert_eq!(names("backbone", true, true).len(), 3);
        assert_eq!(names("backbone.output", true, true), ["backbone.output"]);
    }

    #[test]
    fn first_and_last_layers_are_those_of_the_network() {
        let others = ["backbone.features.stage1.unit1.conv", "backbone.output"];
        assert_eq!(names("backbone", false, true), others);
        assert_eq!(names("fpn", false, false), names("fpn", true, true));
        assert_eq!(names("head", true, false), ["head.cls_tower.0"]);
        let error = error(&network(), "head.cls_logits", true, false);
        assert!(error.contains("last_layer"), "{error}");
    }

    #[test]
    fn a_store_without_a_trace_ends_with_its_last_layer() {
        let store = store(&[("a", weights(1, &[2, 2, 1, 1])), ("b", weights(1, &[2, 2, 1, 1]))]);
        assert!(sites(&store, "b", true, false).is_err());
        assert!(sites(&store, "a", true, false).is_ok());
        assert!(sites(&store, "a", false, true).is_err());
    }

    #[test]
    fn nothing_matched_names_the_nearest() {
        let error = |module| error(&network(), module, true, true);
        assert!(error("fnp").contains("fpn"), "{}", error("fnp"));
        assert!(error("head.cls_towers").contains("head.cls_tower"));
        let empty = Store::new(Device::Cpu);
        let error = sites(&empty, "fpn", true, true).err().unwrap().to_string();
        assert!(error.contains("has none"), "{error}");
    }

    #[test]
    fn a_tensor_claimed_twice_is_named() {
        let check = |modules: &[&str]| {
            let claims: Vec<Claim> = modules.iter().map(|module| Claim::of(module)).collect();
            check_disjoint(&network(), &claims)
        };
        check(&["fpn", "head", "head2", "backbone"]).unwrap();
        let error = check(&["head", "fpn", "fpn.inner_convs"]).unwrap_err().to_string();
        assert!(error.contains("fpn.inner_convs.2.weight"), "{error}");
        assert!(error.contains("\"fpn\"") && error.contains("\"fpn.inner_convs\""), "{error}");
        assert!(check(&["fpn.inner_convs.3", "fpn"]).is_err());
        assert!(check(&["fpn", "fpn"]).is_err());
        assert!(check(&["neck"]).is_err());
        let error = check(&["fpn.*.2", "fpn.out_convs"]).unwrap_err().to_string();
        assert!(error.contains("fpn.out_convs.2.weight is claimed by"), "{error}");
        // what a switch takes out is free for another stage
        let body = Claim { first_layer: false, last_layer: false, ..Claim::of("*") };
        let others = ["backbone.features.init_block", "head.cls_logits", "head.pose_pred"];
        let claims: Vec<Claim> = [body].into_iter().chain(others.map(Claim::of)).collect();
        check_disjoint(&network(), &claims).unwrap();
    }

    #[test]
    fn globs_match_components_and_cover_what_is_below() {
        let all: Vec<String> = names("backbone,fpn,head,head2", true, true);
        assert_eq!(names("*", true, true), all);
        assert_eq!(names("**", true, true), all);
        assert_eq!(names("head.*.0", true, true), ["head.cls_tower.0"]);
        assert_eq!(names("fpn.*.[23]", true, true), names("fpn", true, true));
        assert_eq!(names("fpn.inner_convs.[!3]", true, true), ["fpn.inner_convs.2"]);
        assert_eq!(names("**.2", true, true), ["fpn.inner_convs.2", "fpn.out_convs.2"]);
        assert_eq!(
            names("{backbone.features.stage1,head}.*", true, true),
            [&["backbone.features.stage1.unit1.conv".to_owned()][..], &names("head", true, true)]
                .concat()
        );
        assert_eq!(names("head?", true, true), ["head2.conv"]);
        assert_eq!(names("head*", true, true).len(), 4);
        // one star is one component
        assert!(sites(&network(), "*.2", true, true).is_err());
        assert!(sites(&network(), "backbone.*.unit1", true, true).is_err());
    }

    #[test]
    fn a_list_covers_what_its_parts_do_and_each_part_must_match() {
        let both = names("head.cls_logits, fpn.inner_convs", true, true);
        assert_eq!(both, ["fpn.inner_convs.2", "fpn.inner_convs.3", "head.cls_logits"]);
        // an overlap within one list is not a conflict
        assert_eq!(names("fpn,fpn.inner_convs.2", true, true), names("fpn", true, true));
        let text = error(&network(), "fpn,haed", true, true);
        assert!(text.contains("\"haed\"") && text.contains("head"), "{text}");
        for bad in ["fpn,", "", "fpn,,head"] {
            assert!(error(&network(), bad, true, true).contains("is empty"), "{bad}");
        }
    }

    #[test]
    fn a_glob_that_matches_nothing_says_where_it_leaves_the_tree() {
        let text = error(&network(), "backbone.features.stag[1-3].*", true, true);
        assert!(text.contains("nothing in \"backbone.features\" matches \"stag[1-3]\""), "{text}");
        assert!(text.contains("stage1"), "{text}");
        let text = error(&network(), "bakbone.*", true, true);
        assert!(text.contains("the nearest names are backbone"), "{text}");
        let text = error(&network(), "head.[0", true, true);
        assert!(text.contains("\"head.[0\" is not a valid glob"), "{text}");
    }

    #[test]
    fn plain_paths_overlap_without_a_network() {
        let overlap =
            |a, b| Pattern::parse(a).unwrap().overlaps_surely(&Pattern::parse(b).unwrap());
        assert!(overlap("head", "head.cls_tower") && overlap("head.cls_tower", "fpn,head"));
        assert!(!overlap("head", "head2") && !overlap("head.*", "head"));
    }

    #[test]
    fn what_is_surely_apart_is_kept() {
        let without = |a, b| Pattern::parse(a).unwrap().without(&Pattern::parse(b).unwrap());
        assert_eq!(without("backbone,head", "fpn").unwrap(), "backbone,head");
        assert_eq!(without("backbone,head", "head.cls_tower").unwrap(), "backbone");
        assert_eq!(without("backbone", "backbone"), None);
        assert_eq!(without("backbone", "*"), None);
        assert_eq!(without("backbone.*,head", "fpn").unwrap(), "backbone.*,head");
        assert_eq!(without("backbone", "fpn.*").unwrap(), "backbone");
        assert_eq!(without("backbone,head.cls_tower", "fpn,head.*").unwrap(), "backbone");
        assert_eq!(without("backbone,head.cls_tower", "head.p*").unwrap(), "backbone");
        assert_eq!(without("backbone", "{backbone,fpn}.*"), None);
    }

    #[test]
    fn a_module_is_read_from_a_text_a_list_or_null() {
        #[derive(Deserialize)]
        struct Stage {
            #[serde(deserialize_with = "pattern_from_json")]
            module: Option<String>,
        }
        let read = |json: &str| serde_json::from_str::<Stage>(json).map(|s| s.module);
        assert_eq!(read(r#"{"module": "fpn"}"#).unwrap().unwrap(), "fpn");
        assert_eq!(read(r#"{"module": ["fpn", "head.*"]}"#).unwrap().unwrap(), "fpn,head.*");
        assert_eq!(read(r#"{"module": null}"#).unwrap(), None);
        assert!(read(r#"{"module": 3}"#).unwrap_err().to_string().contains("list of patterns"));
    }
}
