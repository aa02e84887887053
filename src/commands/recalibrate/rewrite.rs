//! A file of any kind, written again with other running statistics.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use tch::{Tensor, no_grad};

use crate::artifact::{Artifact, FileKind, packed as packed_file, weights};
use crate::export::packed;
use crate::io::{pth, tensors};
use crate::topology::keys;
use crate::train::{BatchNormInfo, Checkpoint, CheckpointMeta};

/// Refuses files whose batch norms are part of the weights before or behind them.
///
/// # Errors
/// Says what to recalibrate instead.
pub(super) fn ensure_unfolded(artifact: &Artifact) -> Result<()> {
    let at = artifact.file.display();
    ensure!(
        artifact.kind != FileKind::Onnx,
        "{at} is an ONNX file, whose batch norms are folded into its weights: recalibrate the checkpoint that it was exported \
         from, and export that again"
    );
    ensure!(
        artifact.kind != FileKind::Packed
            || !packed::has_folded(&packed::read_head(&artifact.file)?.meta),
        "{at} was packed with --fold-bn, and its batch norms have no statistics any more: recalibrate the checkpoint that it \
         was made from, and pack that again"
    );
    Ok(())
}

/// Writes the file again, with `statistics` under the bare keys of the network.
///
/// # Errors
/// If the file cannot be read or written, or has no tensor for one of `statistics`.
pub(super) fn write(
    artifact: &Artifact,
    out: &Path,
    statistics: &[(String, Tensor)],
    info: BatchNormInfo,
) -> Result<()> {
    let file = &artifact.file;
    match artifact.kind {
        FileKind::Checkpoint => {
            let mut checkpoint = Checkpoint::read(file)?;
            let is_averaged = !checkpoint.ema.is_empty();
            let weights = if is_averaged { &mut checkpoint.ema } else { &mut checkpoint.weights };
            replace(weights, statistics)?;
            checkpoint.meta.batch_norm = Some(info);
            checkpoint.write(out)
        }
        FileKind::Safetensors => {
            let mut read = tensors::read(file)?;
            replace(&mut read.tensors, statistics)?;
            read.metadata.insert(CheckpointMeta::BATCH_NORM.to_owned(), info.to_json()?);
            tensors::write(out, &read.tensors, &read.metadata)
        }
        FileKind::PyTorch => {
            let mut state = weights::read_state(file)?;
            if !state.other_members.is_empty() {
                let others: Vec<&str> =
                    state.other_members.iter().map(|m| m.name.as_str()).collect();
                tracing::warn!(
                    "{} gets the network's tensors alone, without {}",
                    out.display(),
                    others.join(", ")
                );
            }
            replace(&mut state.tensors, statistics)?;
            pth::write(out, &state.tensors)
        }
        FileKind::Packed => write_packed(file, out, statistics, info),
        FileKind::Onnx => bail!("an ONNX file has no batch norms"),
    }
}

fn write_packed(
    file: &Path,
    out: &Path,
    statistics: &[(String, Tensor)],
    info: BatchNormInfo,
) -> Result<()> {
    let mut read = packed::read(file)?;
    for (name, value) in statistics {
        let tensor = read.tensors.iter_mut().find(|t| t.name == *name);
        let tensor = tensor.with_context(|| format!("the file has no tensor {name}"))?;
        tensor.content = packed::plain(value).with_context(|| format!("tensor {name}"))?;
    }
    let meta = packed_file::meta_of(file)?;
    let meta = CheckpointMeta { batch_norm: Some(info), ..meta };
    let meta = serde_json::to_value(meta).context("writing the description as JSON")?;
    read.meta.insert(packed_file::CHECKPOINT.to_owned(), meta);
    packed::write(out, &read).map(|_| ())
}

/// Puts every statistic in the place of the tensors of its key, whatever wrappers stand before it.
fn replace(all: &mut [(String, Tensor)], statistics: &[(String, Tensor)]) -> Result<()> {
    for (name, value) in statistics {
        let mut num = 0;
        for (key, tensor) in all.iter_mut() {
            let bare = keys::bare(key);
            if bare == name || bare.strip_suffix(name.as_str()).is_some_and(|p| p.ends_with('.')) {
                *tensor = no_grad(|| value.to_device(tensor.device()).to_kind(tensor.kind()));
                num += 1;
            }
        }
        ensure!(
            num > 0,
            "the file has no tensor {name} under a name that is known: make it a checkpoint with `mqat import`, and recalibrate \
             that"
        );
    }
    Ok(())
}
