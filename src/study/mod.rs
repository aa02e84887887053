//! `mqat search`: which module goes first, how many bits each one gets, and which order is best.
//!
//! [`search()`] sets things up (`setup.rs`: the config all trials share, their stages and identities), runs the trials
//! (`trial.rs` is one experiment, `run.rs` starts them as processes of their own), measures the curvature
//! (`curvature.rs`), chooses the bits (`choose.rs`) and writes the plan. `orders.rs` walks the tree of module orders.
//!
//! The pure part trains nothing and reads no dataset: [`Traces`] (the curvature of the loss by Hutchinson's estimator, for
//! which a loss is handed in), [`width_errors`] (how far quantizing moves a weight) and [`solve`] (the bit widths of least
//! summed sensitivity within a size, exactly). [`flow_order`] is the paper's rule for the order of modules; [`prefixes`] and
//! [`orders()`] lay out the orders that share what they begin with. It refuses losses and curvatures that are not finite, and
//! targets that no choice reaches (with the nearest one that can be reached).

mod allocate;
mod choose;
mod curvature;
mod cut;
mod lengths;
mod order;
mod orders;
mod report;
mod request;
mod rows;
mod run;
mod sensitivity;
mod setup;
mod start;
mod trace;
mod trial;

use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};

use crate::run::flow::{FlowPlan, MadeBy};
use crate::run::folder::Start;
use crate::run::stretch;
use crate::train::StageConfig;
pub use allocate::{Allocation, Choice, Infeasible, Item, solve};
use choose::Chooser;
use curvature::Curvature;
use cut::Cut;
pub use cut::ListedTrial;
pub use lengths::{LengthsReport, StageLength};
pub use order::{ModuleGain, flow_order, num_separate_stages, orders, prefixes};
pub use orders::{OrderReport, OrdersReport};
pub use report::SearchReport;
pub use request::{
    Budget, First, SearchRequest, SizeKind, SizeTarget, StageEpochs, TraceRequest, Walk,
};
pub use rows::{GainReport, LayerRow, ModuleRow, SizeReport, TrialReport, Verdict};
use run::Runner;
pub use sensitivity::{Division, WidthError, sensitivity, width_errors};
use setup::Setup;
pub use trace::{ProbeEstimate, TraceOptions, TracedLayer, Traces};
use trial::Trial;

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
        if request.list && request.walk.is_none() {
            return Ok(Err(Cut::Listed(Vec::new())));
        }
        // To list commands nothing is evaluated: the order is by gains over the reference, and none over the start is told.
        let start = match request.list {
            true => None,
            false => match start::outcomes(request, setup, stop)? {
                Some(start) => Some(start),
                None => return Ok(Err(Cut::Interrupted)),
            },
        };
        for (i, (reference, trial)) in reference.iter().zip(&trials).enumerate() {
            let (before, after) = (reference.result()?, trial.result()?);
            let start = start.as_ref().unwrap_or(&before.outcomes);
            gains[i] = Some(GainReport::of(&before, &after, start, request.first_margin)?);
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
        if request.sequential {
            let (order, _) = module_order(request, setup, &gains)?;
            report.put_positions(order.iter().map(|&i| setup.modules[i].pattern.as_str()));
        }
        report.finish(&chooser, &curvature, same_choice)?;
        return Ok(Ok(Vec::new()));
    }
    let (order, first) = module_order(request, setup, &gains)?;
    let (modules, same_choice) = chooser.modulewise(&curvature, &order, first, gains)?;
    report.modules = modules;
    report.modules.sort_by_key(|m| m.position);
    report.finish(&chooser, &curvature, same_choice)?;
    Ok(Ok(report.modules.iter().map(|m| (m.module.clone(), m.bits)).collect()))
}

/// The modules in the order of the flow, and which goes first because of its trial or because it was named.
fn module_order(
    request: &SearchRequest,
    setup: &Setup,
    gains: &[Option<GainReport>],
) -> Result<(Vec<usize>, Option<usize>)> {
    let ranked: Vec<ModuleGain> = (setup.modules.iter().zip(gains))
        .map(|(m, gain)| ModuleGain {
            num_parameters: m.num_parameters,
            gain: gain.as_ref().filter(|g| g.verdict == Verdict::Gains).map(|g| g.points),
        })
        .collect();
    let (mut order, mut first) = flow_order(&ranked);
    if let First::Module(name) = &request.first {
        let given = setup.module(name)?;
        order.retain(|&i| i != given);
        order.insert(0, given);
        first = Some(given);
    }
    Ok((order, first))
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
    let mut flow = if request.sequential {
        setup.layerwise_stages(&report.layers, &report.order())?
    } else if request.layerwise {
        vec![setup.layerwise_stage(&report.layers)?]
    } else {
        let best = report.orders.as_ref().and_then(OrdersReport::best);
        let picks = best.map_or_else(|| bits.to_vec(), |best| best.picks());
        let picks: Vec<(&str, u32)> = picks.iter().map(|(m, b)| (m.as_str(), *b)).collect();
        setup.plan_stages(&picks)?
    };
    if let Some(rule) = request.stage_epochs {
        report.stage_epochs = Some(share_epochs(&mut flow, rule, report)?);
    }
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

/// Gives the stages their shares of the epochs that they have together.
fn share_epochs(
    flow: &mut [StageConfig],
    rule: StageEpochs,
    report: &SearchReport,
) -> Result<LengthsReport> {
    let total = flow.iter().map(|stage| stage.epochs).sum();
    let mut stages = Vec::new();
    for stage in flow.iter() {
        let module = stage.module.clone().unwrap_or_default();
        let sensitivity = match rule {
            StageEpochs::Equal => None,
            StageEpochs::Sensitivity => Some(report.sensitivity_of(&module)?),
        };
        stages.push(StageLength { module, sensitivity, epochs: 0 });
    }
    let weights: Vec<f64> = stages.iter().map(|s| s.sensitivity.unwrap_or(1.0)).collect();
    let (floor, epochs) = lengths::lengths(total, &weights);
    for ((stage, row), epochs) in flow.iter_mut().zip(&mut stages).zip(epochs) {
        stretch::stage(stage, epochs);
        row.epochs = epochs;
    }
    Ok(LengthsReport { rule, total, floor, stages })
}
