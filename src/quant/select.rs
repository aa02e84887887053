//! Which layers a module name covers.

use std::collections::BTreeSet;
use std::rc::Rc;

use anyhow::{Result, ensure};

use crate::nn::{Site, Store};

/// The prediction layers, which `last_layer` switches. In a network without them it is its last
/// convolution in the order of construction.
pub const PREDICTION_LAYERS: [&str; 2] = ["head.cls_logits", "head.pose_pred"];

/// Whether the layer `name` lies in `module`, by path components: `head` covers `head.cls_tower.0`
/// and `head` itself, never `head2`.
pub fn covers(module: &str, name: &str) -> bool {
    match name.strip_prefix(module) {
        Some(rest) => rest.is_empty() || rest.starts_with('.'),
        None => false,
    }
}

/// The convolutions of a module, in the order of construction.
///
/// Linear layers are left float: the only one, `backbone.output`, is not used by the network.
/// `first_layer` false leaves out the first convolution of the whole network, `last_layer` false its
/// [`PREDICTION_LAYERS`].
///
/// # Errors
/// If nothing is left; a name that matches nothing comes with the nearest ones.
pub fn sites(
    store: &Store,
    module: &str,
    first_layer: bool,
    last_layer: bool,
) -> Result<Vec<Rc<Site>>> {
    let convolutions: Vec<Rc<Site>> =
        store.sites().iter().filter(|site| site.weight.dim() == 4).cloned().collect();
    let covered: Vec<Rc<Site>> =
        convolutions.iter().filter(|site| covers(module, &site.name)).cloned().collect();
    ensure!(
        !covered.is_empty(),
        "module {module:?} has no convolution to quantize{}",
        nearest_names(module, &convolutions)
    );
    let last = last_layers(&convolutions);
    let is_first = |site: &Site| convolutions.first().is_some_and(|c| c.name == site.name);
    let chosen: Vec<Rc<Site>> = covered
        .into_iter()
        .filter(|site| first_layer || !is_first(site))
        .filter(|site| last_layer || !last.contains(&site.name))
        .collect();
    ensure!(
        !chosen.is_empty(),
        "module {module:?} has only layers that first_layer or last_layer keep float: set them to \
         true or choose another module"
    );
    Ok(chosen)
}

/// Refuses modules that claim the same tensor, such as `fpn` beside `fpn.inner_convs`.
///
/// # Errors
/// Names the first tensor that two of `modules` claim, or the module that matches nothing.
pub fn check_disjoint(store: &Store, modules: &[&str]) -> Result<()> {
    for (i, second) in modules.iter().enumerate() {
        for site in sites(store, second, true, true)? {
            if let Some(first) = modules[..i].iter().find(|first| covers(first, &site.name)) {
                anyhow::bail!(
                    "{} is claimed by module {first:?} and by module {second:?}: list it once",
                    site.weight_name()
                );
            }
        }
    }
    Ok(())
}

fn last_layers(convolutions: &[Rc<Site>]) -> Vec<String> {
    let known: Vec<String> = convolutions
        .iter()
        .filter(|site| PREDICTION_LAYERS.contains(&site.name.as_str()))
        .map(|site| site.name.clone())
        .collect();
    match convolutions.last() {
        Some(last) if known.is_empty() => vec![last.name.clone()],
        _ => known,
    }
}

/// `"; did you mean ..."` with up to three module or layer names.
fn nearest_names(module: &str, convolutions: &[Rc<Site>]) -> String {
    let mut names = BTreeSet::new();
    for site in convolutions {
        let ends = site.name.match_indices('.').map(|(i, _)| i).chain([site.name.len()]);
        names.extend(ends.map(|end| &site.name[..end]));
    }
    let mut ranked: Vec<(f64, &str)> =
        names.into_iter().map(|name| (strsim::jaro_winkler(module, name), name)).collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
    match ranked.is_empty() {
        true => ": the network has none".to_owned(),
        false => {
            let names: Vec<&str> = ranked.iter().take(3).map(|&(_, name)| name).collect();
            format!("; the nearest names are {}", names.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

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
    fn linear_layers_stay_float() {
        let backbone = names("backbone", true, true);
        assert_eq!(backbone.len(), 2);
        assert!(!backbone.contains(&"backbone.output".to_owned()));
        assert!(sites(&network(), "backbone.output", true, true).is_err());
    }

    #[test]
    fn first_and_last_layers_are_those_of_the_network() {
        assert_eq!(names("backbone", false, true), ["backbone.features.stage1.unit1.conv"]);
        assert_eq!(names("fpn", false, false), names("fpn", true, true));
        assert_eq!(names("head", true, false), ["head.cls_tower.0"]);
        let error = error(&network(), "head.cls_logits", true, false);
        assert!(error.contains("last_layer"), "{error}");
    }

    #[test]
    fn a_network_without_prediction_layers_ends_with_its_last_convolution() {
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
        assert!(error("").contains("\"\""));
        let empty = Store::new(Device::Cpu);
        let error = sites(&empty, "fpn", true, true).err().unwrap().to_string();
        assert!(error.contains("has none"), "{error}");
    }

    #[test]
    fn a_tensor_claimed_twice_is_named() {
        let check = |modules: &[&str]| check_disjoint(&network(), modules);
        check(&["fpn", "head", "head2", "backbone"]).unwrap();
        let error = check(&["head", "fpn", "fpn.inner_convs"]).unwrap_err().to_string();
        assert!(error.contains("fpn.inner_convs.2.weight"), "{error}");
        assert!(error.contains("\"fpn\"") && error.contains("\"fpn.inner_convs\""), "{error}");
        assert!(check(&["fpn.inner_convs.3", "fpn"]).is_err());
        assert!(check(&["fpn", "fpn"]).is_err());
        assert!(check(&["neck"]).is_err());
    }
}
