//! The weights that a run starts from.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use tch::Device;

use super::kind::Strictness;
use super::name::module_names;
use super::network::new_network;
use super::open::{Asked, open};
use super::weights;
use crate::nn::Network;
use crate::run::config::Names;
use crate::run::folder::Pretrained;
use crate::run::{Config, Home, Select, stretch};
use crate::topology::Teacher;
use crate::train::StageConfig;

/// A run that starts from a file of weights which the user names, and goes straight to its flow.
#[derive(Debug, Clone)]
pub struct StartFrom {
    /// The file, relative to the working directory.
    pub file: PathBuf,
    /// Epochs of a full-precision stage before the flow; none leaves it out.
    pub full_precision_epochs: Option<u32>,
}

impl StartFrom {
    /// The config of the run: by the rule of [`open`], with the file as its pretrained weights.
    ///
    /// # Errors
    /// If the file cannot be read or is an ONNX file, or the config cannot be used.
    pub(crate) fn config(&self, select: &Select, home: &Home) -> Result<Config> {
        let at = self.file.display();
        ensure!(self.file.is_file(), "--from {at}: no such file");
        let artifact = open(&self.file, &Asked::weights(select, home, Names::Folders))
            .with_context(|| format!("--from {at}"))?;
        let mut config = artifact.config;
        let file = std::path::absolute(&self.file)
            .with_context(|| format!("finding the absolute path of {at}"))?;
        config.experiment.pretrained = true;
        config.experiment.url = file.display().to_string();
        // What was loose when the file itself was made says nothing about this run.
        config.experiment.loose = false;
        config.training.full_precision = match self.full_precision_epochs {
            None => None,
            Some(_) => {
                Some(config.training.full_precision.unwrap_or_else(StageConfig::full_precision))
            }
        };
        Ok(config)
    }

    /// Refuses a run without any stage, once its flow is known.
    ///
    /// # Errors
    /// If it is one.
    pub(crate) fn ensure_trains(&self, config: &Config) -> Result<()> {
        ensure!(
            !config.train_config().stages.is_empty(),
            "--from {}: nothing is left to train, as the config has no flow (quantize.flow): name one with --flow, for \
             example --flow fpn:2,head:8,backbone:8, or ask for full precision with --full-precision-epochs N",
            self.file.display()
        );
        Ok(())
    }

    /// Gives the full-precision stage its epochs: after those that are for all stages.
    pub(crate) fn set_epochs(&self, config: &mut Config) {
        if let (Some(stage), Some(epochs)) =
            (&mut config.training.full_precision, self.full_precision_epochs)
        {
            stretch::stage(stage, epochs);
        }
    }
}

/// Loads the weights that a config starts from; quantized ones are refused. Returns what the file is known by.
pub(crate) fn load_pretrained(net: &dyn Network, config: &Config) -> Result<Pretrained> {
    let is_loose = config.experiment.loose;
    load(net, config, Strictness::loose(is_loose))?;
    Pretrained::of(Path::new(&config.experiment.url), is_loose)
}

fn load(net: &dyn Network, config: &Config, strictness: Strictness) -> Result<()> {
    let path = Path::new(&config.experiment.url);
    ensure!(
        path.is_file(),
        "experiment.url: no file {}; put the pretrained weights there, name a file with `mqat train --from FILE`, or \
         train from scratch with --set experiment.pretrained=false",
        path.display()
    );
    let loaded = weights::load(path, net, strictness)
        .with_context(|| format!("experiment.url: loading {}", path.display()))?;
    ensure!(
        loaded.quantized.is_empty(),
        "experiment.url: {} is quantized already ({}), and training starts from full-precision weights: name the file that it \
         was made from with `mqat train --from FILE` or --set experiment.url=FILE, or go on with its run by --resume",
        path.display(),
        module_names(&loaded.quantized).join(" + ")
    );
    loaded.report.log();
    Ok(())
}

/// The network that a run under this config learns from: the float weights that it starts from, on `device`. They must be all
/// of its weights, also with `experiment.loose`: what a file lacks would teach random values.
///
/// # Errors
/// If the file cannot be read, is quantized, or does not fill the network.
pub(crate) fn teacher(config: &Config, device: Device) -> Result<Option<Teacher>> {
    let Some(distill) = &config.training.distill else { return Ok(None) };
    let net = new_network(config, device)?;
    load(net.as_ref(), config, Strictness::Strict).context(
        "loading the teacher of training.distill, whose file must fill the whole network, whatever experiment.loose says",
    )?;
    let teacher = Teacher::new(net, distill.clone())?;
    tracing::info!(
        "learning from {}, weights {:016x}",
        config.experiment.url,
        teacher.fingerprint()
    );
    Ok(Some(teacher))
}
