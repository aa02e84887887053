//! Networks to measure: opened from files or made, and called with images.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use rand::RngCore;
use serde_json::{Map, Value, json};
use tch::{Device, Tensor};

use super::report::{object, resize};
use super::rounds::{Rounds, Subject, timed};
use crate::artifact::network::new_network;
use crate::artifact::{Artifact, Asked, EngineChoice, FileKind, Strictness, open};
use crate::data::InputConfig;
use crate::eval::{Pipeline, preprocess};
use crate::nn::Engine;
use crate::run::config::{Config, Names, Select};
use crate::run::home::Home;
use crate::seed;

/// Place of the images' random stream.
const STREAM_IMAGES: u64 = u64::from_le_bytes(*b"benchpix");

/// What networks are measured with; every combination is a subject.
#[derive(Debug, Clone)]
pub struct NetworkSettings {
    /// How often.
    pub rounds: Rounds,
    /// Width and height of the images, px; that of the networks' configs where it is not given.
    pub size_px: Option<usize>,
    /// Images a call, each 1 or more.
    pub batches: Vec<usize>,
    /// Threads of libtorch and ONNX Runtime; empty takes those of the config.
    pub threads: Vec<usize>,
}

impl NetworkSettings {
    /// Refuses what cannot be measured.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(!self.batches.is_empty(), "--batch: no number of images");
        for (option, numbers, most) in
            [("--batch", &self.batches, 4096), ("--threads", &self.threads, 1024)]
        {
            if let Some(n) = numbers.iter().find(|n| !(1..=most).contains(*n)) {
                bail!("{option}: {n} is outside 1..={most}");
            }
        }
        Ok(())
    }

    /// The numbers of threads; `default` where none is asked for.
    fn thread_counts(&self, default: usize) -> Vec<usize> {
        if self.threads.is_empty() { vec![default] } else { self.threads.clone() }
    }
}

/// A file, or a config's own network.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// The file; none takes initial weights.
    pub file: Option<Artifact>,
    /// Its config, the input resized.
    pub config: Config,
    /// What subjects of it are called.
    pub name: String,
}

impl Source {
    /// The files, each with the config that it carries or that `select` names.
    ///
    /// # Errors
    /// If a file is not there, is not for its engine, or has no config that can be used.
    pub fn of_files(
        files: &[PathBuf],
        select: &Select,
        engine: EngineChoice,
        size_px: Option<usize>,
    ) -> Result<Vec<Self>> {
        for file in files {
            ensure!(
                file.is_file(),
                "no file {}; expected a checkpoint, a packed or an ONNX file",
                file.display()
            );
        }
        let home = Home::find(None, None)?;
        let source = |file: &PathBuf| -> Result<Self> {
            let asked = Asked { select, home: &home, engine, names: Names::Config, beside: None };
            let artifact = open(file, &asked)?;
            let mut config = artifact.config.clone();
            resize(&mut config, size_px)?;
            Ok(Self { file: Some(artifact), config, name: short_name(file, files) })
        };
        files.iter().map(source).collect()
    }

    /// Whether ONNX Runtime runs it.
    pub fn is_ort(&self) -> bool {
        self.file.as_ref().is_some_and(|file| file.kind == FileKind::Onnx)
    }
}

/// A file's name, or its whole path where another file has the same.
fn short_name(file: &Path, files: &[PathBuf]) -> String {
    let alike = files.iter().filter(|other| other.file_name() == file.file_name()).count();
    match file.file_name() {
        Some(name) if alike == 1 => name.to_string_lossy().into_owned(),
        _ => file.display().to_string(),
    }
}

/// The width and height that all sources take.
///
/// # Errors
/// If they differ.
pub(super) fn common_size(sources: &[Source]) -> Result<(usize, usize)> {
    let size = |s: &Source| (s.config.input.width, s.config.input.height);
    let first = sources.first().context("no network to measure")?;
    for other in sources {
        let ((w, h), (v, g)) = (size(first), size(other));
        ensure!(
            (w, h) == (v, g),
            "{} takes images of {w} x {h} px and {} of {v} x {g} px: compare them at one size with --size",
            first.name,
            other.name
        );
    }
    Ok(size(first))
}

/// A network ready to be called.
struct BenchNetwork {
    engine: Rc<dyn Engine>,
    device: Device,
    details: Map<String, Value>,
}

fn open_source(source: &Source, device: Device, threads: usize) -> Result<BenchNetwork> {
    let Source { file, config, .. } = source;
    let Some(artifact) = file else {
        let net = new_network(config, device)?;
        let details =
            object([("network", json!("initial weights")), ("engine", json!("libtorch"))]);
        return Ok(BenchNetwork { engine: Rc::from(net as Box<dyn Engine>), device, details });
    };
    let (own, input) = (&artifact.config.input, &config.input);
    ensure!(
        !source.is_ort() || (own.width, own.height) == (input.width, input.height),
        "{} was exported for images of {} x {} px, not {} x {}: leave --size out, or export it for that size \
         (--set INPUT.INTERNAL_WIDTH=...)",
        artifact.file.display(),
        own.width,
        own.height,
        input.width,
        input.height
    );
    let artifact = artifact.clone().with_config(config.clone());
    let opened = artifact.engine(device, Strictness::Strict, threads)?;
    let engine = if source.is_ort() { "onnxruntime" } else { "libtorch" };
    let mut details = object([
        ("file", json!(artifact.file)),
        ("network", json!(opened.name)),
        ("engine", json!(engine)),
    ]);
    if let Some(exact_sums) = opened.exact_sums {
        details.insert("exact_sums".to_owned(), json!(exact_sums));
    }
    Ok(BenchNetwork { engine: Rc::from(opened.engine), device: opened.device, details })
}

/// Every source under every setting.
///
/// # Errors
/// If a network cannot be opened.
pub(super) fn subjects<'a>(
    sources: &[Source],
    settings: &NetworkSettings,
    device: Device,
) -> Result<Vec<Subject<'a>>> {
    let default_threads = usize::try_from(tch::get_num_threads()).unwrap_or(1);
    let threads = settings.thread_counts(default_threads);
    let mut subjects = Vec::new();
    for source in sources {
        // ONNX Runtime's threads belong to a session, libtorch's to the process.
        let mut shared: Option<Rc<BenchNetwork>> = None;
        for &n in &threads {
            let opened = match shared.take().filter(|_| !source.is_ort()) {
                Some(opened) => opened,
                None => Rc::new(open_source(source, device, n)?),
            };
            for &batch in &settings.batches {
                let mut name = source.name.clone();
                if threads.len() > 1 {
                    name += &format!(", {n} threads");
                }
                if settings.batches.len() > 1 {
                    name += &format!(", batch {batch}");
                }
                subjects.push(subject(name, &opened, &source.config, batch, n)?);
            }
            shared = Some(opened);
        }
    }
    Ok(subjects)
}

fn subject<'a>(
    name: String,
    opened: &Rc<BenchNetwork>,
    config: &Config,
    batch: usize,
    threads: usize,
) -> Result<Subject<'a>> {
    let images = images(&config.input, batch, config.experiment.seed, opened.device)?;
    let mut details = opened.details.clone();
    details.extend(object([("batch", json!(batch)), ("threads", json!(threads))]));
    let (opened, preprocess) = (opened.clone(), preprocess(&config.input));
    let wanted = i32::try_from(threads).context("the number of threads")?;
    let call = move || {
        let pipeline = Pipeline::new(&[opened.engine.as_ref()], preprocess, opened.device);
        let forward = || timed(opened.device, || pipeline.forward(&images));
        if tch::get_num_threads() != wanted {
            tch::set_num_threads(wanted);
            forward()?; // starts the threads
        }
        forward()
    };
    Ok(Subject { name, details, per_call: batch, call: Box::new(call) })
}

/// Random bytes as images, in the memory order that the program uses; `[n, 3, h, w]`.
pub(super) fn images(
    input: &InputConfig,
    batch: usize,
    seed: u64,
    device: Device,
) -> Result<Tensor> {
    let mut pixels = vec![0; batch * input.height * input.width * 3];
    seed::stream(seed, &[STREAM_IMAGES]).fill_bytes(&mut pixels);
    preprocess(input).images(&pixels, device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(batches: &[usize], threads: &[usize]) -> NetworkSettings {
        NetworkSettings {
            rounds: Rounds { rounds: 1, warm_up: 0 },
            size_px: None,
            batches: batches.to_vec(),
            threads: threads.to_vec(),
        }
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        let refused =
            |s: NetworkSettings| s.check().map_or_else(|e| e.to_string(), |()| String::new());
        assert!(refused(settings(&[0], &[])).contains("--batch: 0"));
        assert!(refused(settings(&[], &[])).contains("--batch"));
        assert!(refused(settings(&[1], &[1, 5000])).contains("--threads: 5000"));
        assert_eq!(refused(settings(&[1, 8], &[2])), "");
    }

    #[test]
    fn equal_names_become_paths() {
        let files = ["a/x.onnx", "b/x.onnx", "b/y.mqat"].map(PathBuf::from);
        let names = files.each_ref().map(|file| short_name(file, &files));
        assert_eq!(names, ["a/x.onnx", "b/x.onnx", "y.mqat"]);
    }

    #[test]
    fn networks_of_different_sizes_are_not_compared() {
        let source = |size| {
            let mut config = Config::default();
            resize(&mut config, Some(size)).unwrap();
            Source { file: None, config, name: format!("net{size}") }
        };
        assert_eq!(common_size(&[source(64), source(64)]).unwrap(), (64, 64));
        let error = common_size(&[source(64), source(128)]).unwrap_err().to_string();
        assert!(["net64", "net128", "--size"].iter().all(|part| error.contains(part)), "{error}");
        assert!(common_size(&[]).is_err());
    }
}
