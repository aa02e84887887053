//! What runs a network: libtorch, or ONNX Runtime for an exported file.

use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::Tensor;

use super::kind::is_onnx;
use crate::export::onnx::{FileHead, META_KEY, OnnxSession, SessionOptions, read_head};
use crate::io::parse_json;
use crate::nn::{Engine, OutputShape, Outputs};
use crate::run::config::{self, Config};
use crate::train::{BatchNormInfo, ObjectInfo};

/// What a user chooses to run networks with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum EngineChoice {
    /// ONNX Runtime for ONNX files, libtorch for all others.
    #[default]
    Auto,
    /// libtorch.
    Torch,
    /// ONNX Runtime.
    Ort,
}

impl FromStr for EngineChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "torch" | "libtorch" => Ok(Self::Torch),
            "ort" | "onnxruntime" => Ok(Self::Ort),
            _ => Err(format!("{text:?} is not an engine, expected auto, torch or ort")),
        }
    }
}

impl EngineChoice {
    /// Whether ONNX Runtime is to run a file.
    ///
    /// # Errors
    /// If the file cannot be opened, or is not for the engine that was asked for.
    pub fn is_ort(self, file: &Path) -> Result<bool> {
        let at = file.display();
        let onnx = is_onnx(file)?;
        match self {
            Self::Ort if !onnx => bail!(
                "{at} is not an ONNX file, which --engine ort runs: write one with `mqat export {at} --format onnx --out FILE`"
            ),
            Self::Torch if onnx => {
                bail!(
                    "{at} is an ONNX file, which libtorch does not run: use --engine ort or the checkpoint"
                )
            }
            _ => Ok(onnx),
        }
    }
}

/// What an ONNX file of this program carries beside its graph, as JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OnnxMeta {
    /// Version of the program that wrote it.
    pub mqat_version: String,
    /// Modules with quantized weights, as trained, with bits and levels.
    pub quantized: Vec<String>,
    /// How activations are rounded, for people.
    pub activations: String,
    /// Bits of integer activations; none where they are float.
    pub activation_bits: Option<u32>,
    /// The objects that the network finds, by class; empty in files of earlier versions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub objects: Vec<ObjectInfo>,
    /// How the statistics of the batch norms that are folded into the weights were estimated; none for moving averages.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub batch_norm: Option<BatchNormInfo>,
    /// The resolved config of the network.
    pub config: Value,
}

impl OnnxMeta {
    /// The entry of a file.
    ///
    /// # Errors
    /// If the file is not an ONNX file of a pose network, or was not written by this program.
    pub fn of_file(path: &Path) -> Result<Self> {
        Self::of(&read_head(path)?, path)
    }

    fn of(head: &FileHead, path: &Path) -> Result<Self> {
        let at = path.display();
        let text = head.metadata.get(META_KEY).with_context(|| {
            format!("{at} has no metadata {META_KEY}: it was not written by `mqat export`")
        })?;
        parse_json(text.as_bytes(), &format!("{at}: metadata {META_KEY}"))
    }

    /// What the file is, for people: `fpn 2-bit (3 levels), ONNX, 8-bit activations`.
    pub fn name(&self) -> String {
        let weights = match self.quantized.as_slice() {
            [] => "full precision".to_owned(),
            modules => modules.join(" + "),
        };
        format!("{weights}, ONNX, {}", self.activations)
    }
}

/// An ONNX file that was written by `mqat export`, in ONNX Runtime.
pub struct OnnxEngine {
    /// What the file carries.
    pub meta: OnnxMeta,
    /// The config that it was exported with.
    pub config: Config,
    session: OnnxSession,
}

impl OnnxEngine {
    /// Opens a file; `threads` 0 leaves their number to ONNX Runtime.
    ///
    /// # Errors
    /// If the file is none of this program's, or ONNX Runtime is missing or refuses it.
    pub fn open(path: &Path, threads: usize) -> Result<Self> {
        Self::open_with(path, &SessionOptions { threads, ..SessionOptions::default() })
    }

    /// As [`OnnxEngine::open`], with more options.
    ///
    /// # Errors
    /// As [`OnnxEngine::open`].
    pub fn open_with(path: &Path, options: &SessionOptions) -> Result<Self> {
        let at = path.display();
        let meta = OnnxMeta::of_file(path)?;
        let config = config::parse(meta.config.clone(), &format!("the config in {at}"))?;
        let mut options = options.clone();
        if meta.activation_bits.is_some_and(|bits| bits < 8) && options.exact_sums.is_none() {
            options.exact_sums = Some(false); // two products of 7 and 8 bits fit 16 bits
        }
        let session = OnnxSession::open(path, &options)?;
        let size = (config.input.height, config.input.width);
        let head = session.head();
        ensure!(
            head.size == size,
            "{at} takes images of {:?} px (height, width), its config {size:?}",
            head.size
        );
        for output in layout(&config, size.1, size.0) {
            let found = head.outputs.iter().find(|found| found.name == output.name);
            ensure!(
                found.is_some_and(|found| found.shape == output.shape),
                "{at} has no output {} of the shape {:?}, which its config expects",
                output.name,
                output.shape
            );
        }
        Ok(Self { meta, config, session })
    }

    /// The session itself.
    pub fn session(&self) -> &OnnxSession {
        &self.session
    }
}

/// The outputs that the family of a config's network has.
fn layout(config: &Config, width: usize, height: usize) -> Vec<OutputShape> {
    config.network.family().outputs(config.data.num_classes(), width, height)
}

impl Engine for OnnxEngine {
    fn outputs(&self, width: usize, height: usize) -> Vec<OutputShape> {
        layout(&self.config, width, height)
    }

    fn forward(&self, images: &Tensor) -> Result<Outputs> {
        let outputs = layout(&self.config, self.config.input.width, self.config.input.height);
        let names: Vec<&str> = outputs.iter().map(|output| output.name.as_str()).collect();
        self.session.named(images, &names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_engine_refuses_files_of_another_kind() {
        let folder = tempfile::tempdir().unwrap();
        let [onnx, other] = ["a.onnx", "a.safetensors"].map(|name| folder.path().join(name));
        for path in [&onnx, &other] {
            std::fs::write(path, b"x").unwrap();
        }
        assert!(EngineChoice::Auto.is_ort(&onnx).unwrap());
        assert!(!EngineChoice::Auto.is_ort(&other).unwrap());
        let text = EngineChoice::Ort.is_ort(&other).unwrap_err().to_string();
        assert!(text.contains("mqat export"), "{text}");
        assert!(EngineChoice::Torch.is_ort(&onnx).is_err());
        assert!("tensorrt".parse::<EngineChoice>().is_err());
    }
}
