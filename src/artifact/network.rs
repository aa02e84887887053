//! The network that a config describes, before any file is loaded into it.

use anyhow::{Context, Result};
use tch::Device;

use super::kind::Strictness;
use crate::model::PoseNet;
use crate::run::Config;

/// The network of a config, with initial values.
pub(crate) fn new_network(config: &Config, device: Device) -> Result<PoseNet> {
    let num_classes = i64::try_from(config.data.num_classes()).context("data.N_CLASS")?;
    PoseNet::new(&config.network.params, num_classes, device, config.experiment.seed)
}

/// The network of a config, to be loaded.
pub(crate) fn blank_network(config: &Config, device: Device) -> Result<PoseNet> {
    let num_classes = i64::try_from(config.data.num_classes()).context("data.N_CLASS")?;
    PoseNet::blank(&config.network.params, num_classes, device)
}

/// The network of a config for a file that fills it wholly, or perhaps in part: then it has initial values.
pub(crate) fn network_to_load(
    config: &Config,
    device: Device,
    strictness: Strictness,
) -> Result<PoseNet> {
    match strictness {
        Strictness::Strict => blank_network(config, device),
        Strictness::Loose => new_network(config, device),
    }
}
