//! The weights that a run starts from.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use tch::Device;

use super::kind::Strictness;
use super::network::new_network;
use super::weights;
use crate::nn::Network;
use crate::run::Config;
use crate::topology::Teacher;

/// Loads the weights that a config starts from; quantized ones are refused.
pub(crate) fn load_pretrained(net: &dyn Network, config: &Config) -> Result<()> {
    let path = Path::new(&config.experiment.url);
    ensure!(
        path.is_file(),
        "experiment.url: no file {}; put the pretrained weights there, or train from scratch with \
         --set experiment.pretrained=false",
        path.display()
    );
    let loaded = weights::load(path, net, Strictness::loose(config.experiment.loose))
        .with_context(|| format!("experiment.url: loading {}", path.display()))?;
    ensure!(
        loaded.quantized.is_empty(),
        "experiment.url: {} is quantized already; start from full-precision weights",
        path.display()
    );
    loaded.report.log();
    Ok(())
}

/// The network that a run under this config learns from: the float weights that it starts from, on `device`.
pub(crate) fn teacher(config: &Config, device: Device) -> Result<Option<Teacher>> {
    let Some(distill) = &config.training.distill else { return Ok(None) };
    let net = new_network(config, device)?;
    load_pretrained(net.as_ref(), config).context("loading the teacher of training.distill")?;
    let teacher = Teacher::new(net, distill)?;
    tracing::info!(
        "learning from {}, weights {:016x}",
        config.experiment.url,
        teacher.fingerprint()
    );
    Ok(Some(teacher))
}
