//! `mqat export --format packed`: the network of a checkpoint written as codes.
//!
//! The file carries the checkpoint's description with its config, so that nothing else is needed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::{Map, Value};
use tch::Tensor;

use super::source::Exported;
use crate::artifact::name::module_names;
use crate::artifact::packed::{AVERAGED, CHECKPOINT, with_inputs_only};
use crate::artifact::{FileKind, LoadedNetwork};
use crate::export::packed::{self, Bytes, PackOptions};
use crate::nn::Network;
use crate::quant::size::Sizes;
use crate::train::{CheckpointMeta, Imported};

/// What was packed.
#[derive(Debug, Serialize)]
pub struct PackReport {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub path: PathBuf,
    /// Its size.
    pub bytes: u64,
    /// Of these, in front of the data: names, shapes, the config.
    pub header_bytes: u64,
    /// Where the others go.
    pub data: Bytes,
    /// Size without overhead, every weight in the bits that number its levels; both counts of compression.
    pub theoretical: Sizes,
    /// `bytes` over the theoretical bytes.
    pub fraction_of_theoretical: f64,
    /// Its tensors.
    pub num_tensors: usize,
    /// Of these, weights as codes.
    pub num_coded: usize,
    /// Batch norms stored as multiplier and offset.
    pub num_folded: usize,
    /// Batch norms that are not, though it was asked for: they would round otherwise.
    pub num_not_folded: usize,
    /// The modules whose weights or inputs lie on levels.
    pub quantized: Vec<String>,
}

impl PackReport {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let (mb, t) = (|bytes: u64| bytes as f64 / 1e6, &self.theoretical);
        let _ = writeln!(
            out,
            "{}: {:.3} MB ({} bytes), {} tensors, {} of them as codes",
            self.path.display(),
            mb(self.bytes),
            self.bytes,
            self.num_tensors,
            self.num_coded
        );
        let _ = writeln!(
            out,
            "theoretical size {:.3} MB: {:.4} x; codes {:.3}, scales {:.3}, float weights {:.3}, other {:.3}, header {:.3} MB",
            mb(t.file_bytes),
            self.fraction_of_theoretical,
            mb(self.data.codes),
            mb(self.data.scales),
            mb(self.data.float_weights),
            mb(self.data.other + self.data.counters),
            mb(self.header_bytes)
        );
        let _ = writeln!(
            out,
            "compression {:.2}x (paper: convolution weights alone), {:.2}x (this file against {:.3} MB in float)",
            t.paper_compression,
            t.float_bytes as f64 / self.bytes as f64,
            mb(t.float_bytes)
        );
        if self.num_folded + self.num_not_folded > 0 {
            let _ = writeln!(
                out,
                "{} batch norms folded, {} kept because folding would round otherwise",
                self.num_folded, self.num_not_folded
            );
        }
        out
    }
}

/// Writes a loaded network as a packed file; `twin` is a network of the same shape without quantizers.
///
/// # Errors
/// If it is packed already, a module is only partly quantized or its activations are not quantized yet, or the file cannot be
/// written.
pub(super) fn write(
    exported: &Exported,
    twin: &dyn Network,
    config: Value,
    options: PackOptions,
) -> Result<PackReport> {
    let Exported { from, out, net, loaded, .. } = exported;
    let net = net.as_ref();
    let at = || format!("packing {}", from.display());
    ensure!(
        loaded.kind != FileKind::Packed,
        "{} is packed already: copy it, or pack the checkpoint it was made from",
        from.display()
    );
    let inputs = input_state(twin, loaded).with_context(at)?;
    let objects = exported.objects.clone();
    let meta = CheckpointMeta { objects, ..description(loaded, from, config) };
    let meta =
        serde_json::to_value(meta).context("writing the checkpoint's description as JSON")?;
    let averaged = loaded.averaged.into();
    let meta = Map::from_iter([(CHECKPOINT.to_owned(), meta), (AVERAGED.to_owned(), averaged)]);
    let packed = packed::pack(net, &loaded.quantizers, &inputs, meta, options).with_context(at)?;
    let bytes = packed::write(out, &packed.file)?;
    let is_coded = |t: &&packed::PackedTensor| matches!(t.content, packed::Content::Codes { .. });
    Ok(PackReport {
        path: out.to_path_buf(),
        bytes,
        header_bytes: bytes - packed.bytes.sum(),
        data: packed.bytes,
        theoretical: packed.sizes,
        fraction_of_theoretical: bytes as f64 / packed.sizes.file_bytes.max(1) as f64,
        num_tensors: packed.file.tensors.len(),
        num_coded: packed.file.tensors.iter().filter(is_coded).count(),
        num_folded: packed.num_folded,
        num_not_folded: packed.num_not_folded,
        quantized: module_names(&loaded.quantized),
    })
}

/// The description that the file carries: the checkpoint's, or one made for weights of other programs.
fn description(loaded: &LoadedNetwork, from: &Path, config: Value) -> CheckpointMeta {
    match &loaded.meta {
        Some(meta) => CheckpointMeta { config, ..meta.clone() },
        None => {
            let imported = Imported {
                file: from.file_name().map(PathBuf::from).unwrap_or_default(),
                member: loaded.report.member.clone(),
                key_form: loaded.report.key_form.clone(),
            };
            let seed = config["experiment"]["seed"].as_u64().unwrap_or(0);
            let meta = CheckpointMeta::of_import(imported, loaded.quantized.clone(), seed, config);
            // A file must not depend on the machine that wrote it.
            CheckpointMeta { num_threads: 0, ..meta }
        }
    }
}

/// The state of the quantizers of inputs.
fn input_state(twin: &dyn Network, loaded: &LoadedNetwork) -> Result<Vec<(String, Tensor)>> {
    for quantizer in &loaded.quantizers {
        for site in quantizer.report() {
            if let Some(inputs) = site.activations {
                ensure!(
                    inputs.quantizing || inputs.max_level == Some(0.0),
                    "the activations of {} are not quantized yet, finish the stage of {} first",
                    site.name,
                    quantizer.module()
                );
            }
        }
    }
    let all: Vec<(String, Tensor)> = loaded.quantizers.iter().flat_map(|q| q.state()).collect();
    // Quantizers of inputs alone, in a network of their own, say which part of the state is theirs.
    let mut names = Vec::new();
    for module in with_inputs_only(&loaded.quantized) {
        names.extend(module.attach(twin.store())?.state().into_iter().map(|(name, _)| name));
    }
    Ok(all.into_iter().filter(|(name, _)| names.contains(name)).collect())
}
