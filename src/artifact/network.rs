//! The network that a config describes, before any file is loaded into it.

use anyhow::Result;
use tch::Device;

use super::kind::Strictness;
use crate::nn::Network;
use crate::run::Config;

/// The network of a config, with initial values.
pub(crate) fn new_network(config: &Config, device: Device) -> Result<Box<dyn Network>> {
    network(config, device, Some(config.experiment.seed))
}

/// The network of a config, to be loaded.
pub(crate) fn blank_network(config: &Config, device: Device) -> Result<Box<dyn Network>> {
    network(config, device, None)
}

fn network(config: &Config, device: Device, seed: Option<u64>) -> Result<Box<dyn Network>> {
    config.network.family().network(config.data.num_classes(), device, seed)
}

/// The network of a config for a file that fills it wholly, or perhaps in part: then it has initial values.
pub(crate) fn network_to_load(
    config: &Config,
    device: Device,
    strictness: Strictness,
) -> Result<Box<dyn Network>> {
    match strictness {
        Strictness::Strict => blank_network(config, device),
        Strictness::Loose => new_network(config, device),
    }
}
