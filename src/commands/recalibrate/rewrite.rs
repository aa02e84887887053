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
/// If the file cannot be read or written, or has not exactly one tensor for each of `statistics`.
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
            replace(weights, statistics, Keys::Exact)?;
            checkpoint.meta.batch_norm = Some(info);
            checkpoint.write(out)
        }
        FileKind::Safetensors => {
            let mut read = tensors::read(file)?;
            replace(&mut read.tensors, statistics, Keys::Wrapped)?;
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
            replace(&mut state.tensors, statistics, Keys::Wrapped)?;
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

/// Which keys are those of a statistic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keys {
    /// Its name, as this program writes files.
    Exact,
    /// Its name behind wrappers or a name of someone's own.
    Wrapped,
}

impl Keys {
    fn is(self, key: &str, name: &str) -> bool {
        let bare = keys::bare(key);
        let is_behind =
            || bare.strip_suffix(name).is_some_and(|p| p.is_empty() || p.ends_with('.'));
        key == name || (self == Self::Wrapped && is_behind())
    }
}

/// Puts every statistic in the place of the one tensor of its key.
fn replace(
    all: &mut [(String, Tensor)],
    statistics: &[(String, Tensor)],
    keys: Keys,
) -> Result<()> {
    for (name, value) in statistics {
        let mut found: Vec<_> = all.iter_mut().filter(|(key, _)| keys.is(key, name)).collect();
        let [(_, tensor)] = &mut found[..] else {
            ensure!(
                !found.is_empty(),
                "the file has no tensor {name} under a name that is known: make it a checkpoint with `mqat import`, and \
                 recalibrate that"
            );
            let found: Vec<&str> = found.iter().map(|(key, _)| key.as_str()).collect();
            bail!(
                "{name} is {} in the file, which holds several networks: make the one that is meant a checkpoint with `mqat \
                 import --strip-prefix`, and recalibrate that",
                found.join(" and ")
            );
        };
        *tensor = no_grad(|| value.to_device(tensor.device()).to_kind(tensor.kind()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "fpn.bn.running_mean";

    fn replaced(file: &[&str], keys: Keys) -> Result<Vec<f64>> {
        let mut all: Vec<_> =
            file.iter().map(|key| ((*key).to_owned(), Tensor::from(1.0f32))).collect();
        replace(&mut all, &[(NAME.to_owned(), Tensor::from(2.0f32))], keys)?;
        Ok(all.iter().map(|(_, tensor)| tensor.double_value(&[])).collect())
    }

    #[test]
    fn a_statistic_replaces_the_one_tensor_of_its_name() {
        for wrapper in ["", "module.model.", "student."] {
            let key = format!("{wrapper}{NAME}");
            let found = replaced(&["xfpn.bn.running_mean", &key], Keys::Wrapped).unwrap();
            assert_eq!(found, [1.0, 2.0], "{key}");
        }
        // of a checkpoint what stands behind other names is not the network's
        assert_eq!(replaced(&["ema.fpn.bn.running_mean", NAME], Keys::Exact).unwrap(), [1.0, 2.0]);
    }

    #[test]
    fn no_tensor_and_two_are_refused_by_name() {
        let refused = |file: &[&str], keys| format!("{:#}", replaced(file, keys).unwrap_err());
        let (model, ema) = ("model.fpn.bn.running_mean", "ema.fpn.bn.running_mean");
        let text = refused(&[model, ema], Keys::Wrapped);
        assert!(text.contains(&format!("{NAME} is {model} and {ema} in the file")), "{text}");
        assert!(text.contains("--strip-prefix"), "{text}");
        assert!(refused(&["head.bn.running_mean"], Keys::Wrapped).contains("has no tensor fpn.bn"));
        assert!(refused(&[model], Keys::Exact).contains("has no tensor fpn.bn"));
    }
}
