//! `mqat import`: weights of other programs as a checkpoint of this one.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tch::Device;

use crate::artifact::name::module_names;
use crate::artifact::{Asked, FileKind, LoadReport, Reading, Stored, Strictness, open};
use crate::run::{Home, Names, Select};
use crate::train::{Checkpoint, CheckpointMeta, Imported};

/// What was imported.
#[derive(Debug, Serialize)]
pub struct ImportReport {
    /// The checkpoint that was written.
    #[serde(serialize_with = "crate::io::path_text")]
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// The kind of the file that was read.
    pub kind: FileKind,
    /// Modules that are quantized on a recognised grid, with bits and levels.
    pub quantized: Vec<String>,
    /// What matched and what did not.
    pub load: LoadReport,
}

/// Reads weights of any kind into the network of a config and writes them as a checkpoint that carries the config:
/// `mqat test --checkpoint` needs nothing else, `mqat export` takes it on.
///
/// A checkpoint of this program keeps its own config, position and quantizers, and loses what only a resume needs.
///
/// # Errors
/// If the file is broken or does not fit the network of the config (read loosely: not at all), or `out`
/// already exists.
pub fn import(file: &Path, select: &Select, out: &Path, reading: Reading) -> Result<ImportReport> {
    ensure!(!out.exists(), "{} already exists; remove it or name another file", out.display());
    ensure!(
        select.seed.is_none() || reading.strictness == Strictness::Loose,
        "--seed cannot act: without --loose no layer keeps its initial values; leave it out"
    );
    let home = Home::find(None, None)?;
    let artifact = open(file, &Asked::weights(select, &home, Names::Config))?;
    let config = &artifact.config;
    let (net, loaded) = artifact.network(Device::Cpu, reading, Stored::AsStored)?;
    ensure!(
        loaded.kind != FileKind::Packed,
        "{} is packed, without the state that training goes on from; import the checkpoint it was made from",
        file.display()
    );
    let quantized = module_names(&loaded.quantized);
    let document = serde_json::to_value(config).context("writing the config as JSON")?;
    let meta = match loaded.meta {
        Some(meta) => CheckpointMeta { config: document, ..meta },
        None => CheckpointMeta::of_import(
            Imported {
                file: std::path::absolute(file).unwrap_or_else(|_| file.to_owned()),
                member: loaded.report.member.clone(),
                key_form: loaded.report.key_form.clone(),
            },
            loaded.quantized,
            config.experiment.seed,
            document,
        ),
    };
    let checkpoint = Checkpoint {
        meta,
        weights: net.state(),
        quant: loaded.quantizers.iter().flat_map(|q| q.state()).collect(),
        momentum: Vec::new(),
        ema: Vec::new(),
        telemetry: Vec::new(),
        task: Vec::new(),
    };
    checkpoint.write(out)?;
    let bytes = std::fs::metadata(out).with_context(|| format!("reading {}", out.display()))?.len();
    let path = out.to_owned();
    Ok(ImportReport { path, bytes, kind: loaded.kind, quantized, load: loaded.report })
}

impl ImportReport {
    /// For a terminal.
    pub fn text(&self) -> String {
        let quantized = match self.quantized.as_slice() {
            [] => String::new(),
            modules => format!("quantized: {}\n", modules.join(" + ")),
        };
        let (text, mb) = (self.load.text(), self.bytes as f64 / 1e6);
        format!("{text}{quantized}{}: {mb:.2} MB", self.path.display())
    }
}
