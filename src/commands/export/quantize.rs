//! `mqat export --quantize`: modules of a float network put on levels without any training.

use anyhow::{Context, Result, ensure};

use crate::artifact::LoadedNetwork;
use crate::artifact::name::module_names;
use crate::nn::Network;
use crate::run::flow::{self, FlowSource};
use crate::run::{Config, stretch};
use crate::train::QuantizedModule;

/// Gives the modules of `flow` the quantizers that training would give them, with the scales that these search for the
/// weights as they are, and puts every weight on its level. Returns the modules with bits and levels.
///
/// # Errors
/// If the network is quantized already, the flow does not fit it, or it has activations, which need images.
pub(super) fn quantize(
    config: &Config,
    net: &dyn Network,
    loaded: &mut LoadedNetwork,
    flow: &FlowSource,
) -> Result<Vec<String>> {
    let quantized = module_names(&loaded.quantized);
    ensure!(
        quantized.is_empty(),
        "--quantize cannot act: the network is quantized already ({}); leave it out",
        quantized.join(" + ")
    );
    let mut config = config.clone();
    flow.apply(&mut config)?;
    flow::check(&config, net)?;
    for (index, stage) in config.quantize.flow.iter().enumerate() {
        ensure!(
            stage.activations.is_none(),
            "--quantize {}: the ranges of activations need images; name bits of weights alone (fpn:2), and round activations \
             with --format onnx --calibrate N or by training (`mqat train --from`)",
            stage.label()
        );
        let mut stage = stage.clone();
        // All of it at once: there are no epochs in between to learn from.
        stretch::stage(&mut stage, 1);
        let module = QuantizedModule::of_stage(index, &stage, config.experiment.seed)
            .with_context(|| format!("--quantize {}: nothing is to be quantized", stage.label()))?;
        let mut quantizer = module.attach(net.store())?;
        let doing = || format!("--quantize {}", stage.label());
        quantizer.start_epoch(0).with_context(doing)?;
        quantizer.end_epoch(0).with_context(doing)?;
        quantizer.convert().with_context(doing)?;
        quantizer.assert_on_grid().with_context(doing)?;
        loaded.quantized.push(module);
        loaded.quantizers.push(quantizer);
    }
    if let Some(meta) = &mut loaded.meta {
        meta.quantized = loaded.quantized.clone();
        meta.stage_name = UNTRAINED.to_owned();
    }
    Ok(module_names(&loaded.quantized))
}

/// The stage that a file names whose weights were quantized without training.
const UNTRAINED: &str = "quantized without training";
