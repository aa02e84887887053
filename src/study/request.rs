//! What `mqat search` is asked.

use std::path::PathBuf;

use anyhow::Result;
use serde::Serialize;

use super::sensitivity::Division;
use crate::quant::{Levels, WeightMethod};
use crate::run::request::Request;
use crate::train::Afterwards;

/// What `mqat search` is asked.
#[derive(Debug, Clone)]
pub struct SearchRequest {
    /// Config, places, device.
    pub run: Request,
    /// The program whose command `train` runs a trial: `mqat`.
    pub program: PathBuf,
    /// The full-precision weights to start from, instead of the config's `experiment.url`.
    pub from: Option<PathBuf>,
    /// The modules, each a pattern; none for those that the network has.
    pub modules: Vec<String>,
    /// The widths to choose from, bits.
    pub widths: Vec<u32>,
    /// The width of the trials, and of the module that goes first; bits.
    pub trial_bits: u32,
    /// How small the network is to become; not needed when the bits are given.
    pub target: Option<SizeTarget>,
    /// What counts for it.
    pub size: SizeKind,
    /// How long trials are.
    pub budget: Budget,
    /// The quantizer of the weights, instead of the config's.
    pub method: Option<WeightMethod>,
    /// How many levels a width is, instead of the config's.
    pub levels: Option<Levels>,
    /// How the curvature is measured.
    pub trace: TraceRequest,
    /// Which module goes first.
    pub first: First,
    /// How far a trial's gain must be from 0 to decide, points of percent; none takes its standard error.
    pub first_margin: Option<f64>,
    /// Choose bits layer by layer, for one stage over all modules (HAWQ-V3), instead of module by module.
    pub layerwise: bool,
    /// With `layerwise`: one stage for each module, with the layers' own bits, instead of one stage over all modules.
    pub sequential: bool,
    /// What becomes of modules after their stages, instead of what the config says.
    pub afterwards: Option<Afterwards>,
    /// How the plan's stages share the epochs of the config's flow; none leaves each as long as its config's stage.
    pub stage_epochs: Option<StageEpochs>,
    /// Keep the network's first convolution float.
    pub keep_first_layer: bool,
    /// Keep the prediction layers float.
    pub keep_last_layer: bool,
    /// Score module orders, too.
    pub walk: Option<Walk>,
    /// Bits of each module, given instead of searched.
    pub assign: Vec<(String, u32)>,
    /// The search's folder, instead of `LOGS/PROBLEM/TOPOLOGY/search`.
    pub dir: Option<PathBuf>,
    /// Trials that run at the same time.
    pub jobs: usize,
    /// Run this trial only (and those it starts from).
    pub only: Option<String>,
    /// Run none, and name those that are to be run.
    pub list: bool,
    /// The plan file.
    pub out: Option<PathBuf>,
}

impl SearchRequest {
    /// The layer-wise baseline (HAWQ-V3): 2, 4 or 8 bits for each layer, learnt step sizes, the network `compression`
    /// times smaller by the paper's count. Its plan goes into the search's folder.
    ///
    /// # Errors
    /// If the config cannot be resolved.
    pub fn hawq(run: &Request, program: PathBuf, compression: f64) -> Result<Self> {
        let home = run.home()?;
        let select = &run.select;
        let seed = select.resolve(&home)?.experiment.seed;
        let dir = home.logs.join(select.problem()).join(select.topology()).join("search");
        Ok(Self {
            run: run.clone(),
            program,
            from: None,
            modules: Vec::new(),
            widths: vec![2, 4, 8],
            trial_bits: 2,
            target: Some(SizeTarget::Compression(compression)),
            size: SizeKind::Paper,
            budget: Budget::default(),
            method: Some(WeightMethod::Lsq),
            levels: None,
            trace: TraceRequest::default(),
            first: First::Smallest,
            first_margin: None,
            layerwise: true,
            sequential: false,
            afterwards: None,
            stage_epochs: None,
            keep_first_layer: false,
            keep_last_layer: false,
            walk: None,
            assign: Vec::new(),
            out: Some(dir.join(format!("hawq-{compression}x-seed{seed}.json"))),
            dir: Some(dir),
            jobs: 1,
            only: None,
            list: false,
        })
    }
}

/// How long a trial is; schedules are stretched or shrunk to fit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Budget {
    /// Epochs of each stage instead of the config's.
    pub epochs: Option<u32>,
    /// Training images of an epoch instead of all.
    pub images: Option<usize>,
    /// Steps of a stage, rounded up to whole epochs' batches: sets the images of an epoch.
    pub steps: Option<u64>,
}

/// How the curvature is measured.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceRequest {
    /// Training images that the loss is taken over.
    pub images: usize,
    /// Images of a probe.
    pub batch: usize,
    /// Probes at most.
    pub max_probes: usize,
    /// Enough when the summed sensitivity's standard error is below this fraction of it.
    pub relative_error: f64,
    /// How a trace becomes a sensitivity.
    pub division: Division,
}

impl Default for TraceRequest {
    fn default() -> Self {
        Self {
            images: 64,
            batch: 8,
            max_probes: 200,
            relative_error: 0.1,
            division: Division::default(),
        }
    }
}

/// Which module goes first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum First {
    /// The one whose trial gains most.
    Trials,
    /// This one.
    Module(String),
    /// None at the trial width: by number of parameters, all bits by the programme.
    Smallest,
}

/// How small the network is to become.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SizeTarget {
    /// So many times smaller than with 32-bit weights.
    Compression(f64),
    /// At most so many bytes.
    Bytes(u64),
    /// At most so many bits a convolution weight on average.
    Bits(f64),
}

/// What counts for a target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SizeKind {
    /// The weights of convolutions alone.
    #[default]
    Paper,
    /// Everything in the state: convolutions, scales of quantizers, biases, norms, statistics, layers that stay float.
    File,
}

impl SizeKind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Paper => "paper",
            Self::File => "file",
        }
    }
}

/// How a plan's stages share the epochs of the config's flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StageEpochs {
    /// In equal parts.
    Equal,
    /// In proportion to the summed sensitivity of their layers at the bits chosen, with a floor.
    Sensitivity,
}

/// Which orders are scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Walk {
    /// Every one.
    All,
    /// One: at each place the module that scores best there.
    Greedy,
}
