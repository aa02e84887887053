//! Modules that a stage keeps as they are, against the network that has them.

use anyhow::{Result, bail, ensure};

use crate::nn::Network;
use crate::quant::select;
use crate::run::config::Config;
use crate::train::{Afterwards, StageConfig};

/// Refuses stages whose `frozen` holds nothing of the network, or layers that a quantizer trains meanwhile.
///
/// # Errors
/// Names the stage, and what it would keep.
pub(super) fn check(config: &Config, net: &dyn Network) -> Result<()> {
    let store = net.store();
    // The stage itself, and those before it whose modules are trained on.
    let mut learning: Vec<&StageConfig> = Vec::new();
    for (stage, place) in config.stages_with_places() {
        learning.retain(|earlier| earlier.afterwards == Afterwards::Train);
        learning.push(stage);
        let Some(frozen) = stage.frozen_modules()? else { continue };
        ensure!(
            store.parameters().iter().any(|var| select::covers_in(store, &frozen, &var.name)),
            "{place}.frozen: {:?} holds nothing of the network, whose modules are {}",
            stage.frozen.as_deref().unwrap_or_default(),
            store.modules().join(", ")
        );
        for learns in &learning {
            let Some(claim) = learns.claim() else { continue };
            let sites = select::sites(store, &claim.module, claim.first_layer, claim.last_layer)?;
            if let Some(site) = sites.iter().find(|s| select::covers_in(store, &frozen, &s.name)) {
                bail!(
                    "{place}.frozen: holds {}, which module {} of stage {} trains: take it out of one of them",
                    site.name,
                    claim.module,
                    learns.label()
                );
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tch::Device;

    use super::*;
    use crate::run::config::parse;

    #[test]
    fn what_a_stage_keeps_is_held_against_the_network() {
        let checked = |full: Option<&str>, flow: serde_json::Value| {
            let value = json!({
                "network": {"class": "CaSpaceNet"},
                "training": {"full_precision": {"frozen": full}},
                "quantize": {"flow": flow},
            });
            let config = parse(value, "config").unwrap();
            let net = config.network.family().network(1, Device::Cpu, None).unwrap();
            check(&config, net.as_ref()).map_err(|err| err.to_string())
        };
        let stage = |module: &str, afterwards: &str, frozen: Option<&str>| {
            json!({
                "module": module, "weights": {"method": "lsq", "bits": 4},
                "afterwards": afterwards, "frozen": frozen,
            })
        };
        let first = stage("fpn", "train", Some("backbone"));
        checked(Some("backbone"), json!([first, stage("head", "freeze", Some("backbone"))]))
            .unwrap();
        let error = checked(Some("neck"), json!([first])).unwrap_err();
        let expected = "training.full_precision.frozen: \"neck\" holds nothing of the network, whose modules are \
                        backbone, fpn, head";
        assert_eq!(error, expected);
        let error = checked(None, json!([first, stage("head", "freeze", Some("fpn_sub"))]));
        let expected = "quantize.flow.1.frozen: holds fpn_sub.inner_convs.2, which module fpn of stage fpn trains: take \
                        it out of one of them";
        assert_eq!(error.unwrap_err(), expected);
        // A module that is frozen after its stage may be named.
        let first = stage("fpn", "freeze", Some("backbone"));
        checked(None, json!([first, stage("head", "freeze", Some("fpn_sub"))])).unwrap();
        let error = checked(None, json!([stage("*", "freeze", Some("backbone"))])).unwrap_err();
        assert!(error.contains("which module * of stage"), "{error}");
    }
}
