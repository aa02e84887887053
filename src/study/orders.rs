//! Scores of module orders. Orders that begin alike share these stages: a tree of experiments, each the continuation of
//! the one before it.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use serde::Serialize;

use super::cut::Cut;
use super::order::{num_separate_stages, prefixes};
use super::request::{SearchRequest, Walk};
use super::rows::TrialReport;
use super::run::Runner;
use super::setup::Setup;
use super::trial::Trial;
use crate::pose::Recall;

/// One order.
#[derive(Debug, Clone, Serialize)]
pub struct OrderReport {
    /// The modules, in order.
    pub modules: Vec<String>,
    /// Their bits, in the same order.
    pub bits: Vec<u32>,
    /// The score after the last module.
    pub score: Recall,
    /// The scores after each module.
    pub stages: Vec<Recall>,
    /// The network after the last module.
    pub checkpoint: std::path::PathBuf,
}

impl OrderReport {
    /// The modules with their bits, in order.
    pub(super) fn picks(&self) -> Vec<(String, u32)> {
        self.modules.iter().cloned().zip(self.bits.iter().copied()).collect()
    }
}

/// All orders that were scored, the best first.
#[derive(Debug, Clone, Serialize)]
pub struct OrdersReport {
    /// Which were.
    pub walk: Walk,
    /// What the scores are.
    pub metric: String,
    /// The orders.
    pub orders: Vec<OrderReport>,
    /// Stages that were trained.
    pub num_stages: usize,
    /// Stages that the orders would have taken without sharing; of a greedy walk those of all orders.
    pub num_stages_separate: usize,
    /// Every trial: an order or what orders begin with.
    pub trials: Vec<TrialReport>,
}

impl OrdersReport {
    /// The order of the best score.
    pub fn best(&self) -> Option<&OrderReport> {
        self.orders.first()
    }
}

type Tree = BTreeMap<Vec<usize>, Rc<Trial>>;

/// Scores orders of modules with these bits.
pub(super) fn walk(
    request: &SearchRequest,
    setup: &Setup,
    walk: Walk,
    bits: &[(String, u32)],
    stop: &AtomicBool,
) -> Result<std::result::Result<OrdersReport, Cut>> {
    // In the order of --modules, whatever the flow: the tree's names and ties are then the same for every search.
    let mut modules = bits.to_vec();
    let place = |m: &str| setup.module(m).unwrap_or(usize::MAX);
    modules.sort_by_key(|(m, _)| place(m));
    let runner = Runner { request, setup, stop };
    let mut tree = Tree::new();
    let whole = match walk {
        Walk::All => {
            let all = prefixes(modules.len());
            for prefix in &all {
                grow(setup, &modules, prefix, &mut tree)?;
            }
            let trials: Vec<_> = all.iter().map(|p| tree[p].clone()).collect();
            if let Err(cut) = runner.phase(&trials)? {
                return Ok(Err(cut));
            }
            all.into_iter().filter(|p| p.len() == modules.len()).collect()
        }
        Walk::Greedy => match greedy(&runner, &modules, &mut tree)? {
            Ok(best) => vec![best],
            Err(cut) => return Ok(Err(cut)),
        },
    };
    let mut orders =
        whole.iter().map(|order| report(&modules, order, &tree)).collect::<Result<Vec<_>>>()?;
    orders.sort_by_key(|o| std::cmp::Reverse(o.score.num_correct));
    let trials = tree.values().map(|t| t.result()).collect::<Result<Vec<_>>>()?;
    Ok(Ok(OrdersReport {
        walk,
        metric: trials.first().map(|t| t.metric.clone()).unwrap_or_default(),
        orders,
        num_stages: tree.len(),
        num_stages_separate: num_separate_stages(modules.len()),
        trials,
    }))
}

/// Makes the trial of a prefix; the one it extends is there.
fn grow(
    setup: &Setup,
    modules: &[(String, u32)],
    prefix: &[usize],
    tree: &mut Tree,
) -> Result<Rc<Trial>> {
    let picks: Vec<(&str, u32)> =
        prefix.iter().map(|&i| (modules[i].0.as_str(), modules[i].1)).collect();
    let parent = tree.get(&prefix[..prefix.len() - 1]).cloned();
    let trial = setup.trial(&picks, parent)?;
    tree.insert(prefix.to_vec(), trial.clone());
    Ok(trial)
}

/// The order that is best at each place, one place after another; of equal scores the earlier module.
fn greedy(
    runner: &Runner,
    modules: &[(String, u32)],
    tree: &mut Tree,
) -> Result<std::result::Result<Vec<usize>, Cut>> {
    let mut prefix: Vec<usize> = Vec::new();
    while prefix.len() < modules.len() {
        let next = (0..modules.len()).filter(|i| !prefix.contains(i));
        let longer: Vec<Vec<usize>> = next.map(|i| [prefix.as_slice(), &[i]].concat()).collect();
        let trials = longer
            .iter()
            .map(|p| grow(runner.setup, modules, p, tree))
            .collect::<Result<Vec<_>>>()?;
        if let Err(cut) = runner.phase(&trials)? {
            return Ok(Err(cut));
        }
        let scores = trials
            .iter()
            .map(|t| Ok(t.result()?.score.num_correct))
            .collect::<Result<Vec<usize>>>()?;
        let best = (0..scores.len()).reduce(|a, b| if scores[b] > scores[a] { b } else { a });
        prefix = longer[best.context("no module is left")?].clone();
    }
    Ok(Ok(prefix))
}

fn report(modules: &[(String, u32)], order: &[usize], tree: &Tree) -> Result<OrderReport> {
    let stages = (1..=order.len())
        .map(|n| tree.get(&order[..n]).context("a prefix without a trial")?.result())
        .collect::<Result<Vec<_>>>()?;
    let last = stages.last().context("an order without modules")?;
    Ok(OrderReport {
        modules: order.iter().map(|&i| modules[i].0.clone()).collect(),
        bits: order.iter().map(|&i| modules[i].1).collect(),
        score: last.score,
        checkpoint: last.checkpoint.clone(),
        stages: stages.iter().map(|s| s.score).collect(),
    })
}
