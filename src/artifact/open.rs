//! A file in what runs it, and the config that goes with it.

use std::path::Path;

use anyhow::Result;
use serde_json::Value;
use tch::Device;

use super::engine::{EngineChoice, OnnxEngine, OnnxMeta};
use super::kind::Reading;
use super::name::run_name;
use super::network::network_to_load;
use super::weights;
use crate::eval::Engine;
use crate::run::{Config, Home, Select};

/// A file in what runs it.
pub(crate) struct Opened {
    /// What kind of file it is.
    pub kind: &'static str,
    /// What the network is, for people.
    pub name: String,
    /// What computes its outputs.
    pub engine: Box<dyn Engine>,
    /// Where images go.
    pub device: Device,
}

/// Opens a file of any kind for inference.
pub(crate) fn open_engine(
    choice: EngineChoice,
    file: &Path,
    config: &Config,
    device: Device,
    reading: impl Into<Reading>,
) -> Result<Opened> {
    if choice.is_ort(file)? {
        let engine = OnnxEngine::open(file, tch::get_num_threads() as usize)?;
        let name = engine.meta.name();
        let engine = Box::new(engine);
        return Ok(Opened { kind: "ONNX", name, engine, device: Device::Cpu });
    }
    let reading = reading.into();
    let net = network_to_load(config, device, reading.strictness)?;
    let loaded = weights::load(file, &net, reading)?;
    loaded.report.log();
    let averaged = if loaded.averaged { ", averaged weights" } else { "" };
    let name = run_name(&loaded.quantized, &loaded.quantizers) + averaged;
    Ok(Opened { kind: loaded.kind.text(), name, engine: Box::new(net), device })
}

/// The config that a file carries, as it was stored.
///
/// # Errors
/// If the file cannot be read, or is not for the engine that was asked for.
pub(crate) fn stored_config(choice: EngineChoice, file: &Path) -> Result<Option<Value>> {
    Ok(match choice.is_ort(file)? {
        true => Some(OnnxMeta::of_file(file)?.config),
        false => weights::meta_of(file)?.map(|meta| meta.config),
    })
}

/// The config to run a file with: one named by the user, else the one that the file carries, else the default.
///
/// # Errors
/// If the file cannot be read or is not for the engine that was asked for, or the config cannot be used.
pub(crate) fn config_of(
    choice: EngineChoice,
    file: &Path,
    select: &Select,
    home: &Home,
) -> Result<Config> {
    // Asked for also where its config is not: whether the engine fits the file.
    choice.is_ort(file)?;
    let named = select.config.is_some() || select.topology.is_some();
    match if named { None } else { stored_config(choice, file)? } {
        Some(document) => select.apply(document, &format!("the config in {}", file.display())),
        None => select.resolve(home),
    }
}

/// The config of the network that a file holds: the one it carries, unless another is named; changed by `--set`.
pub(crate) fn config_of_file(file: &Path, select: &Select) -> Result<Config> {
    let named = select.config.is_some() || select.topology.is_some();
    let meta = if named { None } else { weights::meta_of(file)? };
    let Some(meta) = meta else { return select.resolve(&Home::find(None, None)?) };
    select.apply(meta.config, &format!("the config in {}", file.display()))
}
