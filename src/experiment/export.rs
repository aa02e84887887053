//! `mqat export`: the network of a checkpoint without what only a resume needs.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde_json::Value;
use tch::Device;

use super::config::{self, Select};
use super::home::Home;
use super::open::blank_network;
use crate::io::tensors;
use crate::train::{CheckpointMeta, load_for_evaluation};

/// What was written.
#[derive(Debug, Serialize)]
pub struct ExportReport {
    /// The file.
    pub path: PathBuf,
    /// Its tensors.
    pub num_tensors: usize,
    /// Its size.
    pub bytes: u64,
    /// The modules whose weights lie on levels.
    pub quantized: Vec<String>,
}

/// Writes the parameters and buffers of `checkpoint` as safetensors under their PyTorch keys: float weights, or
/// fake-quantized ones of the same shape where a module is quantized. Momentum, masks and position stay behind.
///
/// # Errors
/// If the checkpoint cannot be read or does not fit its config, or has quantized activations, which weights alone
/// cannot carry; or if `out` is there already.
pub fn export_weights(checkpoint: &Path, select: &Select, out: &Path) -> Result<ExportReport> {
    if out.exists() {
        bail!("{} is there already; remove it or name another file", out.display());
    }
    let meta = CheckpointMeta::of_file(checkpoint)?;
    let config = match &meta {
        Some(meta) => {
            let at = format!("the config in {}", checkpoint.display());
            config::parse(meta.config.clone(), &at)?
        }
        None => select.resolve(&Home::find(None, None)?)?,
    };
    let net = blank_network(&config, Device::Cpu)?;
    let loaded = load_for_evaluation(checkpoint, &net)?;
    for quantizer in &loaded.quantizers {
        quantizer.assert_on_grid().with_context(|| {
            format!(
                "{}: module {} is only partly quantized",
                checkpoint.display(),
                quantizer.module()
            )
        })?;
        if let Some(site) = quantizer.report().iter().find(|s| s.activations.is_some()) {
            bail!(
                "{}: the inputs of {} are quantized, which a file of weights cannot say; use the checkpoint itself",
                checkpoint.display(),
                site.name
            );
        }
    }
    let quantized = meta.as_ref().map_or_else(Vec::new, super::test::module_names);
    let metadata = BTreeMap::from([
        ("format".to_owned(), "pt".to_owned()),
        ("mqat_version".to_owned(), env!("CARGO_PKG_VERSION").to_owned()),
        ("quantized".to_owned(), Value::from(quantized.clone()).to_string()),
    ]);
    let state = net.state();
    tensors::write(out, &state, &metadata)?;
    let bytes = std::fs::metadata(out).with_context(|| format!("reading {}", out.display()))?.len();
    Ok(ExportReport { path: out.to_owned(), num_tensors: state.len(), bytes, quantized })
}
