//! `mqat search`: which module goes first, how many bits each one gets, and which order is best.
//!
//! [`search()`] sets things up (`setup.rs`: the config all trials share, their stages and identities), runs the trials
//! (`trial.rs` is one experiment, `run.rs` starts them as processes of their own), measures the curvature
//! (`curvature.rs`), chooses the bits (`choose.rs`) and writes the plan. `orders.rs` walks the tree of module orders.

mod choose;
mod curvature;
mod orders;
mod report;
mod run;
mod setup;
mod trial;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};

use super::flow::{FlowPlan, MadeBy};
use super::folder::Start;
use super::open::Request;
use crate::quant::WeightMethod;
use crate::search::{Division, ModuleGain, flow_order};
use choose::Chooser;
pub use choose::{SizeKind, Target};
use curvature::Curvature;
pub use orders::{OrderReport, OrdersReport, Walk};
pub use report::{GainReport, LayerRow, ModuleRow, SearchReport, SizeReport, TrialReport};
use run::{RunEnd, Runner};
use setup::Setup;
use trial::Trial;

/// What `mqat search` is asked.
#[derive(Debug, Clone)]
pub struct SearchRequest {
    /// Config, places, device.
    pub run: Request,
    /// The full-precision weights to start from, instead of the config's `experiment.url`.
    pub from: Option<PathBuf>,
    /// The modules, each a pattern.
    pub modules: Vec<String>,
    /// The widths to choose from, bits.
    pub widths: Vec<u32>,
    /// The width of the trials, and of the module that goes first; bits.
    pub trial_bits: u32,
    /// How small the network is to become; not needed when the bits are given.
    pub target: Option<Target>,
    /// What counts for it.
    pub size: SizeKind,
    /// How long trials are.
    pub budget: Budget,
    /// The quantizer of the weights, instead of the config's.
    pub method: Option<WeightMethod>,
    /// How the curvature is measured.
    pub trace: TraceRequest,
    /// Which module goes first.
    pub first: First,
    /// Choose bits layer by layer, for one stage over all modules (HAWQ-V3), instead of module by module.
    pub layerwise: bool,
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
    pub fn hawq(run: &Request, compression: f64) -> Result<Self> {
        let home = run.home()?;
        let select = &run.select;
        let seed = select.resolve(&home)?.experiment.seed;
        let dir = home.logs.join(select.problem()).join(select.topology()).join("search");
        Ok(Self {
            run: run.clone(),
            from: None,
            modules: ["backbone", "fpn", "head"].map(str::to_owned).into(),
            widths: vec![2, 4, 8],
            trial_bits: 2,
            target: Some(Target::Compression(compression)),
            size: SizeKind::Paper,
            budget: Budget::default(),
            method: Some(WeightMethod::Lsq),
            trace: TraceRequest::default(),
            first: First::Smallest,
            layerwise: true,
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
    /// Updates of a stage, rounded up to whole epochs' batches: sets the images of an epoch.
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
    /// Enough when the summed sensitivity's standard error is below this share of it.
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

/// How a search ended.
#[derive(Debug)]
pub enum SearchEnd {
    /// It is complete.
    Complete(Box<SearchReport>),
    /// It was asked to stop; the same command goes on.
    Interrupted,
    /// Only one trial was to be run; it is complete.
    Ran(TrialReport),
    /// Trials that are still to be run.
    Listed(Vec<ListedTrial>),
}

/// A trial that is not complete.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ListedTrial {
    /// Its name, for `--only`.
    pub name: String,
    /// Its folder.
    #[serde(serialize_with = "crate::io::path_text")]
    pub folder: PathBuf,
    /// `waiting`, `begun` (it goes on from its checkpoint), or `running` in another process.
    pub state: &'static str,
    /// The trials that have to be complete before.
    pub after: Vec<String>,
}

/// Why a search ends before its report.
enum Cut {
    Interrupted,
    Ran(TrialReport),
    Listed(Vec<ListedTrial>),
}

impl From<Cut> for SearchEnd {
    fn from(cut: Cut) -> Self {
        match cut {
            Cut::Interrupted => Self::Interrupted,
            Cut::Ran(trial) => Self::Ran(trial),
            Cut::Listed(trials) => Self::Listed(trials),
        }
    }
}

/// Searches, or goes on with a search: what is complete in the search's folder is taken from there.
///
/// # Errors
/// If the request, the config, the dataset or the weights cannot be used, the target cannot be reached, or a trial fails;
/// complete trials stay.
pub fn search(request: &SearchRequest, stop: &AtomicBool) -> Result<SearchEnd> {
    let setup = Setup::open(request)?;
    let mut report = SearchReport::new(request, &setup);
    let bits = if request.assign.is_empty() {
        match find_bits(request, &setup, &mut report, stop)? {
            Ok(bits) => bits,
            Err(cut) => return Ok(cut.into()),
        }
    } else {
        setup.given_bits(&request.assign)?
    };
    if let Some(walk) = request.walk {
        match orders::walk(request, &setup, walk, &bits, stop)? {
            Ok(orders) => report.orders = Some(orders),
            Err(cut) => return Ok(cut.into()),
        }
    }
    if request.list {
        return Ok(SearchEnd::Listed(Vec::new()));
    }
    if let Some(name) = &request.only {
        bail!("no trial of this search is named {name:?}; --print-commands names those to be run");
    }
    if let Some(path) = &request.out {
        write_plan(request, &setup, &mut report, &bits, path)?;
    }
    Ok(SearchEnd::Complete(Box::new(report)))
}

/// Trials, curvature, programme: the modules' bits, in the order of the flow.
fn find_bits(
    request: &SearchRequest,
    setup: &Setup,
    report: &mut SearchReport,
    stop: &AtomicBool,
) -> Result<std::result::Result<Vec<(String, u32)>, Cut>> {
    let target = request.target.context(
        "no target; pass --target-compression, --target-bytes or --target-bits, or the bits of each module with --assign",
    )?;
    let chooser = Chooser::new(request, setup, target)?;
    // Before anything is computed: the smallest network has to be small enough.
    chooser.ensure_feasible()?;
    let mut gains = vec![None; setup.modules.len()];
    if request.first == First::Trials && !request.layerwise {
        let (reference, trials) = module_trials(request, setup)?;
        let all: Vec<_> = reference.iter().chain(&trials).cloned().collect();
        match (Runner { request, setup, stop }).phase(&all)? {
            Ok(()) => {}
            Err(cut) => return Ok(Err(cut)),
        }
        for (i, (reference, trial)) in reference.iter().zip(&trials).enumerate() {
            let (before, after) = (reference.result()?, trial.result()?);
            gains[i] = GainReport::of(&before, &after);
            report.add_trial(before);
            report.add_trial(after);
        }
    }
    if request.list && request.walk.is_none() {
        return Ok(Err(Cut::Listed(Vec::new())));
    }
    let Some(curvature) = Curvature::measure(request, setup, stop)? else {
        return Ok(Err(Cut::Interrupted));
    };
    if request.layerwise {
        let (layers, same_choice) = chooser.layerwise(&curvature)?;
        report.layers = layers;
        report.finish(&chooser, &curvature, same_choice)?;
        return Ok(Ok(Vec::new()));
    }
    let ranked: Vec<ModuleGain> = (setup.modules.iter().zip(&gains))
        .map(|(m, gain)| ModuleGain {
            num_parameters: m.num_parameters,
            gain: gain.as_ref().map(|g| g.points),
        })
        .collect();
    let (mut order, mut first) = flow_order(&ranked);
    if let First::Module(name) = &request.first {
        let given = setup.module(name)?;
        order.retain(|&i| i != given);
        order.insert(0, given);
        first = Some(given);
    }
    let (modules, same_choice) = chooser.modulewise(&curvature, &order, first, gains)?;
    report.modules = modules;
    report.modules.sort_by_key(|m| m.position);
    report.finish(&chooser, &curvature, same_choice)?;
    Ok(Ok(report.modules.iter().map(|m| (m.module.clone(), m.bits)).collect()))
}

type Trials = Vec<std::rc::Rc<Trial>>;

/// For each module the reference trial (the same stage without quantizing) and its own.
fn module_trials(request: &SearchRequest, setup: &Setup) -> Result<(Trials, Trials)> {
    let (mut references, mut trials) = (Vec::new(), Vec::new());
    for module in &setup.modules {
        let bits = request.trial_bits;
        let stages = setup.stages(&[(module.pattern.as_str(), bits)])?;
        references.push(setup.reference(&stages[0])?);
        trials.push(setup.trial(&[(module.pattern.as_str(), bits)], None)?);
    }
    Ok((references, trials))
}

/// Writes the plan that `mqat train --flow` runs.
fn write_plan(
    request: &SearchRequest,
    setup: &Setup,
    report: &mut SearchReport,
    bits: &[(String, u32)],
    path: &std::path::Path,
) -> Result<()> {
    let flow = if request.layerwise {
        vec![setup.layerwise_stage(&report.layers)?]
    } else {
        let best = report.orders.as_ref().and_then(OrdersReport::best);
        let picks = best.map_or_else(|| bits.to_vec(), |best| best.picks());
        let picks: Vec<(&str, u32)> = picks.iter().map(|(m, b)| (m.as_str(), *b)).collect();
        setup.plan_stages(&picks)?
    };
    let start = Start::now(None);
    let select = &request.run.select;
    let made_by = MadeBy {
        command: start.command,
        mqat: env!("CARGO_PKG_VERSION").to_owned(),
        unix_seconds: start.unix_seconds,
        problem: select.problem().to_owned(),
        topology: select.topology().to_owned(),
        seed: setup.config.experiment.seed,
        details: serde_json::to_value(report.details()).context("writing the plan's details")?,
    };
    let plan =
        FlowPlan { made_by: Some(made_by), table: report.plan_rows(), ..FlowPlan::new(flow) };
    ensure!(!plan.flow.is_empty(), "the plan has no stage");
    plan.write(path)?;
    report.plan = Some(path.to_owned());
    Ok(())
}

impl Runner<'_> {
    /// Runs trials to their ends, or only what the request names; `Err` when the search is to end here.
    fn phase(&self, trials: &[std::rc::Rc<Trial>]) -> Result<std::result::Result<(), Cut>> {
        if self.request.list {
            let listed = self.list(trials)?;
            return Ok(if listed.is_empty() { Ok(()) } else { Err(Cut::Listed(listed)) });
        }
        let Some(name) = &self.request.only else {
            return Ok(match self.run(trials)? {
                RunEnd::Complete => Ok(()),
                RunEnd::Interrupted => Err(Cut::Interrupted),
            });
        };
        let Some(trial) = trials.iter().find(|t| t.name == *name) else {
            let unfinished = self.list(trials)?;
            let names: Vec<&str> = trials.iter().map(|t| t.name.as_str()).collect();
            ensure!(
                unfinished.is_empty(),
                "no trial {name:?} can be run now; there are {}",
                names.join(", ")
            );
            return Ok(Ok(())); // it may be one of a later phase
        };
        Ok(match self.run(std::slice::from_ref(trial))? {
            RunEnd::Complete => Err(Cut::Ran(trial.result()?)),
            RunEnd::Interrupted => Err(Cut::Interrupted),
        })
    }
}
