//! The weights that a run starts from.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::kind::Strictness;
use super::weights;
use crate::model::PoseNet;
use crate::run::Config;

/// Loads the weights that a config starts from; quantized ones are refused.
pub(crate) fn load_pretrained(net: &PoseNet, config: &Config) -> Result<()> {
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
