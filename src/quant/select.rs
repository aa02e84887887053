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
