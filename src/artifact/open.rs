//! The one entrance for files: what a file is and which config goes with it, then its network or an engine for it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use serde_json::Value;
use tch::Device;

use super::engine::{EngineChoice, OnnxEngine, OnnxMeta};
use super::kind::{FileKind, Reading, Strictness, kind_of};
use super::name::run_name;
use super::network::network_to_load;
use super::weights::{self, LoadedNetwork};
use crate::nn::{Engine, Network};
use crate::run::config::Names;
use crate::run::{Config, DeviceChoice, Home, Select};
use crate::train::ObjectInfo;

/// How a file is asked for.
#[derive(Clone, Copy)]
pub struct Asked<'a> {
    /// Which config, and what is changed in it.
    pub select: &'a Select,
    /// Where the problems lie.
    pub home: &'a Home,
    /// What is to run the file.
    pub engine: EngineChoice,
    /// What `--problem` and `--topology` name beside the config.
    pub names: Names,
    /// A file whose config is taken where this one carries none.
    pub beside: Option<&'a Path>,
}

impl<'a> Asked<'a> {
    /// For weights, which libtorch computes with.
    pub fn weights(select: &'a Select, home: &'a Home, names: Names) -> Self {
        Self { select, home, engine: EngineChoice::Auto, names, beside: None }
    }
}

/// A file that holds a network, before its numbers are read.
#[derive(Debug, Clone)]
pub struct Artifact {
    /// The file.
    pub file: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// The config of its network.
    pub config: Config,
}

/// Which weights of a network that is being trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stored {
    /// Those that training goes on from.
    AsStored,
    /// Those that the network computes with.
    AsComputed,
}

/// A file in what runs it.
pub struct Opened {
    /// What the network is, for people.
    pub name: String,
    /// What computes its outputs.
    pub engine: Box<dyn Engine>,
    /// Where images go.
    pub device: Device,
    /// Whether ONNX Runtime sums in its exact, slower mode; none for libtorch.
    pub exact_sums: Option<bool>,
}

/// Tells what a file is and which config goes with it.
///
/// The config is the one that the user names (`--config`, `--topology`), else the one that the file carries, else that of
/// the file beside it, else that of the topology that its tensors are of, else the default; changed by `--set`.
///
/// # Errors
/// If the file cannot be read or is not for the engine, the config cannot be used, or a name that was given cannot act.
pub fn open(file: &Path, asked: &Asked) -> Result<Artifact> {
    let kind = match asked.engine.is_ort(file)? {
        true => FileKind::Onnx,
        false => kind_of(file)?,
    };
    let config = config_of(file, kind, asked)?;
    Ok(Artifact { file: file.to_owned(), kind, config })
}

fn config_of(file: &Path, kind: FileKind, asked: &Asked) -> Result<Config> {
    let Asked { select, home, names, .. } = *asked;
    if select.config.is_some() || select.topology.is_some() {
        select.ensure_names_act(names)?;
        return select.resolve(home);
    }
    let own = stored_config(file)?.map(|document| (document, file));
    let others = match (&own, asked.beside) {
        (None, Some(beside)) => stored_config(beside)?.map(|document| (document, beside)),
        _ => None,
    };
    if let Some((document, from)) = own.or(others) {
        let at = format!("the config in {}", from.display());
        select.refuse_names(names, &format!("{} carries its own config", from.display()))?;
        return select.apply(document, &at);
    }
    ensure!(
        kind != FileKind::Onnx,
        "{} carries no config: it was not written by `mqat export`",
        file.display()
    );
    match weights::recognised_topology(file)? {
        Some(topology) => {
            tracing::info!("{} holds a network of topology {topology}", file.display());
            select.of_topology(topology).resolve(home)
        }
        None => select.resolve(home),
    }
}

/// The config that a file carries, as it was stored.
fn stored_config(file: &Path) -> Result<Option<Value>> {
    Ok(match kind_of(file)? {
        FileKind::Onnx => Some(OnnxMeta::of_file(file)?.config),
        _ => weights::meta_of(file)?.map(|meta| meta.config),
    })
}

impl Artifact {
    /// The objects that the file carries, by class; none where it carries no description of them: in files of earlier
    /// versions and of other programs, and under a config of other classes.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn objects(&self) -> Result<Option<Vec<ObjectInfo>>> {
        let objects = match self.kind {
            FileKind::Onnx => OnnxMeta::of_file(&self.file)?.objects,
            _ => weights::meta_of(&self.file)?.map(|meta| meta.objects).unwrap_or_default(),
        };
        Ok(Some(objects).filter(|objects| {
            !objects.is_empty() && objects.len() == self.config.data.num_classes()
        }))
    }

    /// Whether its convolutions take integers: then no output is that of the trained network to rounding of floats.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn computes_with_integers(&self) -> Result<bool> {
        Ok(self.kind == FileKind::Onnx && OnnxMeta::of_file(&self.file)?.activation_bits.is_some())
    }

    /// The same file with another config.
    pub fn with_config(self, config: Config) -> Self {
        Self { config, ..self }
    }

    /// Its network in libtorch, with what came with the weights.
    ///
    /// # Errors
    /// If it is an ONNX file, is damaged, or does not fit its config as far as `reading` asks.
    pub fn network(
        &self,
        device: Device,
        reading: impl Into<Reading>,
        which: Stored,
    ) -> Result<(Box<dyn Network>, LoadedNetwork)> {
        let reading = reading.into();
        let net = network_to_load(&self.config, device, reading.strictness)?;
        let loaded = match which {
            Stored::AsStored => weights::load_as_stored(&self.file, net.as_ref(), reading),
            Stored::AsComputed => weights::load(&self.file, net.as_ref(), reading),
        };
        Ok((net, loaded?))
    }

    /// What runs it: libtorch on `device`, or ONNX Runtime on the CPU with `threads`.
    ///
    /// # Errors
    /// If it is damaged, does not fit its config, or ONNX Runtime is missing.
    pub fn engine(
        &self,
        device: Device,
        reading: impl Into<Reading>,
        threads: usize,
    ) -> Result<Opened> {
        let reading = reading.into();
        if self.kind == FileKind::Onnx {
            return self.onnx_engine(&reading, threads);
        }
        let (net, loaded) = self.network(device, reading, Stored::AsComputed)?;
        loaded.report.log();
        let averaged = if loaded.averaged { ", averaged weights" } else { "" };
        let name = run_name(&loaded.quantized, &loaded.quantizers) + averaged;
        Ok(Opened { name, engine: net, device, exact_sums: None })
    }

    fn onnx_engine(&self, reading: &Reading, threads: usize) -> Result<Opened> {
        let at = self.file.display();
        ensure!(
            reading.strip_prefix.is_none(),
            "--strip-prefix cannot act: the ONNX file {at} has no keys of PyTorch; leave it out"
        );
        ensure!(
            reading.strictness == Strictness::Strict,
            "--loose cannot act: no layer of the ONNX file {at} can be missing; leave it out"
        );
        let engine = OnnxEngine::open(&self.file, threads)?;
        let (own, config) = (&engine.config, &self.config);
        let what = if own.network != config.network {
            "network"
        } else if (own.input.width, own.input.height) != (config.input.width, config.input.height) {
            "INPUT.INTERNAL_WIDTH, INPUT.INTERNAL_HEIGHT"
        } else if own.data.num_classes() != config.data.num_classes() {
            "data.N_CLASS"
        } else {
            let name = engine.meta.name();
            let exact_sums = Some(engine.session().exact_sums());
            let engine = Box::new(engine);
            return Ok(Opened { name, engine, device: Device::Cpu, exact_sums });
        };
        bail!(
            "{at} was exported with another {what} than the config has, and the graph cannot be changed: leave --set, \
             --config and --topology of it out, or export the checkpoint again"
        )
    }

    /// Refuses a GPU that would have nothing to do.
    ///
    /// # Errors
    /// If one was asked for by name, and the file is for ONNX Runtime.
    pub fn ensure_uses(&self, device: DeviceChoice) -> Result<()> {
        ensure!(
            self.kind != FileKind::Onnx || !matches!(device, DeviceChoice::Cuda(_)),
            "--device {device} cannot act: ONNX Runtime runs {} on the CPU; leave it out",
            self.file.display()
        );
        Ok(())
    }
}
