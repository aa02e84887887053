//! What a search says.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Serialize;
use serde_json::{Value, json};

use super::choose::Chooser;
use super::curvature::Curvature;
use super::lengths::LengthsReport;
use super::orders::OrdersReport;
use super::request::{First, SearchRequest, StageEpochs, Walk};
use super::rows::{GainReport, LayerRow, ModuleRow, SizeReport, TrialReport, Verdict, percent};
use super::sensitivity::Division;
use super::setup::Setup;
use super::trace::ProbeEstimate;
use crate::run::flow::PlanRow;

/// How the curvature was measured.
#[derive(Debug, Clone, Serialize)]
pub struct CurvatureReport {
    /// Probes.
    pub probes: usize,
    /// Time of all of them, s, on the machine that drew them.
    pub seconds: f64,
    /// Whether the summed sensitivity is known as well as was asked for.
    pub is_enough: bool,
    /// Fraction of 200 resamples of the probes with which the programme finds the same bits, 0 to 1.
    pub same_choice: f64,
    /// How traces became sensitivities.
    pub division: Division,
}

/// What a search found.
#[derive(Debug, Clone, Serialize)]
pub struct SearchReport {
    /// The search's folder.
    #[serde(serialize_with = "crate::io::path_text")]
    pub folder: PathBuf,
    /// The seed.
    pub seed: u64,
    /// Whether the data are rendered.
    pub synthetic_data: bool,
    /// The widths to choose from.
    pub widths: Vec<u32>,
    /// The trials' width.
    pub trial_bits: u32,
    /// Why the first module is first.
    pub first: String,
    /// The modules' trials and their references.
    pub trials: Vec<TrialReport>,
    /// The modules, in the order of the flow; empty when layers were searched.
    pub modules: Vec<ModuleRow>,
    /// The layers, when these were searched.
    pub layers: Vec<LayerRow>,
    /// How the curvature was measured.
    pub curvature: Option<CurvatureReport>,
    /// The size.
    pub size: Option<SizeReport>,
    /// The orders, when they were scored.
    pub orders: Option<OrdersReport>,
    /// How the plan's stages share the epochs of the config's flow, where that was asked for.
    pub stage_epochs: Option<LengthsReport>,
    /// The plan file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub plan: Option<PathBuf>,
}

impl SearchReport {
    pub(super) fn new(request: &SearchRequest, setup: &Setup) -> Self {
        Self {
            folder: setup.place.dir.clone(),
            seed: setup.config.experiment.seed,
            synthetic_data: crate::run::request::is_synthetic(&setup.data),
            widths: request.widths.clone(),
            trial_bits: request.trial_bits,
            first: match &request.first {
                First::Trials if request.layerwise => "by number of parameters".to_owned(),
                First::Trials => "by trials".to_owned(),
                First::Module(name) => format!("{name}, as named"),
                First::Smallest => "the smallest, as asked".to_owned(),
            },
            trials: Vec::new(),
            modules: Vec::new(),
            layers: Vec::new(),
            curvature: None,
            size: None,
            orders: None,
            stage_epochs: None,
            plan: None,
        }
    }

    /// Adds a trial, once.
    pub(super) fn add_trial(&mut self, trial: TrialReport) {
        if self.trials.iter().all(|t| t.id != trial.id) {
            self.trials.push(trial);
        }
    }

    /// Tells layers the places of their modules, which are quantized in this order.
    pub(super) fn put_positions<'a>(&mut self, order: impl Iterator<Item = &'a str>) {
        for (position, module) in order.enumerate() {
            let own = self.layers.iter_mut().filter(|l| l.module == module);
            own.for_each(|l| l.position = Some(position));
        }
    }

    /// The modules in the order of the flow, where layers were searched for stages of modules.
    pub(super) fn order(&self) -> Vec<String> {
        let places = self.layers.iter().filter_map(|l| Some((l.position?, &l.module)));
        let places: BTreeMap<usize, &String> = places.collect();
        places.into_values().cloned().collect()
    }

    /// The summed sensitivity of a module's layers at the bits chosen; negative estimates count as 0, as in the programme.
    pub(super) fn sensitivity_of(&self, module: &str) -> Result<f64> {
        let modules = self.modules.iter().filter(|m| m.module == module);
        let modules = modules.map(|m| m.sensitivity.get(&m.bits));
        let layers = self.layers.iter().filter(|l| l.module == module);
        let found: Option<Vec<f64>> = modules
            .chain(layers.map(|l| l.sensitivity.get(&l.bits)))
            .map(|estimate| Some(estimate?.mean.max(0.0)))
            .collect();
        let found = found.filter(|found| !found.is_empty());
        Ok(found.with_context(|| format!("no sensitivity of {module} is known"))?.iter().sum())
    }

    /// Fills in sizes and curvature, once the bits are known.
    pub(super) fn finish(
        &mut self,
        chooser: &Chooser,
        curvature: &Curvature,
        same_choice: f64,
    ) -> Result<()> {
        let mut bits_of: BTreeMap<String, u32> =
            self.layers.iter().map(|l| (l.layer.clone(), l.bits)).collect();
        for module in &self.modules {
            let names = chooser.layers_of(&module.module)?;
            bits_of.extend(names.into_iter().map(|name| (name, module.bits)));
        }
        self.size = Some(chooser.size_report(&bits_of));
        self.curvature = Some(CurvatureReport {
            probes: curvature.num_probes(),
            seconds: curvature.seconds,
            is_enough: curvature.is_enough,
            same_choice,
            division: curvature.division,
        });
        Ok(())
    }

    /// What a plan file tells of its origin.
    pub(super) fn details(&self) -> Value {
        json!({
            "widths": self.widths,
            "trial_bits": self.trial_bits,
            "first": self.first,
            "trials": self.modules.iter().map(|m| json!({ "module": m.module, "gain": m.trial })).collect::<Vec<_>>(),
            "size": self.size,
            "curvature": self.curvature,
            "synthetic_data": self.synthetic_data,
            "orders": self.orders.as_ref().map(|o| o.walk),
            "stage_epochs": self.stage_epochs,
        })
    }

    /// The rows of a plan file.
    pub(super) fn plan_rows(&self) -> Vec<PlanRow> {
        let means =
            |all: &BTreeMap<u32, ProbeEstimate>| all.iter().map(|(b, e)| (*b, e.mean)).collect();
        let row = |name: &str,
                   n: usize,
                   trace: ProbeEstimate,
                   all: &BTreeMap<u32, ProbeEstimate>,
                   bits| PlanRow {
            module: name.to_owned(),
            num_weights: n,
            mean_trace: Some(trace.mean / n as f64),
            mean_trace_std_error: Some(trace.standard_error / n as f64),
            sensitivity: means(all),
            bits,
            ..PlanRow::default()
        };
        let modules = self.modules.iter().map(|m| PlanRow {
            trial_score: m.trial.as_ref().and_then(|t| t.score.percent),
            position: Some(m.position),
            ..row(&m.module, m.num_weights, m.trace, &m.sensitivity, m.bits)
        });
        let layers = self.layers.iter().map(|l| PlanRow {
            position: l.position,
            ..row(&l.layer, l.num_weights, l.trace, &l.sensitivity, l.bits)
        });
        modules.chain(layers).collect()
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = String::new();
        if !self.modules.is_empty() {
            self.write_modules(&mut text);
        }
        if !self.layers.is_empty() {
            self.write_layers(&mut text);
        }
        if let Some(size) = &self.size {
            let counted = size.counted.name();
            let _ = write!(
                text,
                "\ntarget {} ({counted} total)\npaper total (convolution weights): {} bytes, {:.2}x, {:.2} bits a weight\n\
                 file total (everything): {} bytes, {:.2}x\n",
                size.target,
                size.paper_bytes,
                size.paper_compression,
                size.mean_bits,
                size.file_bytes,
                size.file_compression
            );
        }
        if let Some(c) = &self.curvature {
            let enough = if c.is_enough { "" } else { "; fewer than the accuracy asked for needs" };
            let _ = writeln!(
                text,
                "curvature: {} probes, {:.1} s{enough}; +- is one standard error; {:.0} % of resampled probes lead to the \
                 same bits",
                c.probes,
                c.seconds,
                100.0 * c.same_choice
            );
        }
        if let Some(orders) = &self.orders {
            write_orders(orders, &mut text);
        }
        if let Some(lengths) = &self.stage_epochs {
            write_lengths(lengths, &mut text);
        }
        if self.synthetic_data {
            text.push_str("scores are of synthetic data\n");
        }
        if let Some(plan) = &self.plan {
            let _ =
                writeln!(text, "plan: {0}; train it with mqat train --flow {0}", plan.display());
        }
        text
    }

    fn write_modules(&self, text: &mut String) {
        let widths = all_widths(self.modules.iter().map(|m| &m.sensitivity));
        let has_trials = self.modules.iter().any(|m| m.trial.is_some());
        let mut head: Vec<String> =
            ["position", "module", "parameters", "conv weights", "trace"].map(str::to_owned).into();
        head.extend(widths.iter().map(|b| format!("sensitivity, {b} bit")));
        if has_trials {
            head.push(format!("{}-bit trial", self.trial_bits));
            head.push("gain, points".to_owned());
            head.push("+n -n".to_owned());
            head.push("verdict".to_owned());
            head.push("over the start".to_owned());
        }
        head.push("bits (levels)".to_owned());
        let rows = self.modules.iter().map(|m| {
            let mut row = vec![
                (m.position + 1).to_string(),
                m.module.clone(),
                m.num_parameters.to_string(),
                m.num_weights.to_string(),
                estimate(m.trace),
            ];
            row.extend(
                widths.iter().map(|b| m.sensitivity.get(b).map_or("-".into(), |e| estimate(*e))),
            );
            if has_trials {
                row.push(m.trial.as_ref().map_or("-".into(), |t| percent(&t.score)));
                let of_trial = |write: &dyn Fn(&GainReport) -> String| {
                    m.trial.as_ref().map_or("-".into(), write)
                };
                row.push(of_trial(&|t| format!("{:+.1} +- {:.1}", t.points, t.standard_error)));
                row.push(of_trial(&|t| format!("+{} -{}", t.better, t.worse)));
                row.push(of_trial(&|t| t.verdict.name().to_owned()));
                row.push(of_trial(&|t| {
                    format!("{:+.1} +- {:.1}", t.points_over_start, t.standard_error_over_start)
                }));
            }
            row.push(format!("{} ({})", m.bits, m.num_levels));
            row
        });
        write_table(head, rows.collect(), text);
        if let Some(trial) = self.modules.iter().find_map(|m| m.trial.as_ref()) {
            let metric = self.trials.first().map_or("", |t| t.metric.as_str());
            let _ = writeln!(
                text,
                "\nscores: {metric} of {} objects of the validation split, %, with Wilson's 95 % interval; gains are over\n\
                 the full-precision network after the same extra training ({}), paired by object, with their standard error\n\
                 over sequences; over the start: the same against the network as it is ({}), the paper's rule",
                trial.reference.num_targets,
                percent(&trial.reference),
                percent(&trial.start)
            );
            if let Some(note) = trial.note_of_few_sequences() {
                let _ = writeln!(text, "{note}");
            }
        }
        let _ = writeln!(text, "order {}: {}", self.first, self.why_first());
        if let Some(other) = self.by_the_papers_rule() {
            let _ = writeln!(text, "{other}");
        }
    }

    /// Why the first module is first.
    fn why_first(&self) -> String {
        if let Some(m) = self.modules.iter().find(|m| m.is_first_by_trial) {
            return format!("{} goes first, at {} bits", m.module, self.trial_bits);
        }
        let undecided: Vec<String> = (self.modules.iter())
            .filter_map(|m| Some((m, m.trial.as_ref()?)))
            .filter(|(_, t)| t.verdict == Verdict::Undecided)
            .map(|(m, t)| format!("{} ({:+.1} within +-{:.1})", m.module, t.points, t.margin))
            .collect();
        let why = match undecided.as_slice() {
            [] => "no module gains".to_owned(),
            some => format!("undecided: {}; none gains more than its margin", some.join(", ")),
        };
        format!("{why}, so that the smallest goes first and all bits are searched")
    }

    /// Which module the paper's rule (any gain over the network as it is) would put first; none without trials, or where it
    /// is the same.
    fn by_the_papers_rule(&self) -> Option<String> {
        let gain = |m: &&ModuleRow| m.trial.as_ref().map_or(f64::NAN, |t| t.points_over_start);
        self.modules.iter().find(|m| m.trial.is_some())?;
        let best = self.modules.iter().filter(|m| gain(m) > 0.0);
        let best = best.max_by(|a, b| gain(a).total_cmp(&gain(b)));
        let own = self.modules.iter().find(|m| m.is_first_by_trial);
        if best.map(|m| &m.module) == own.map(|m| &m.module) {
            return None;
        }
        Some(match best {
            Some(m) => format!(
                "the paper's rule, any gain over the network as it is, would put {} first",
                m.module
            ),
            None => "by the paper's rule, any gain over the network as it is, no module gains"
                .to_owned(),
        })
    }

    fn write_layers(&self, text: &mut String) {
        let widths = all_widths(self.layers.iter().map(|l| &l.sensitivity));
        let mut head: Vec<String> = ["layer", "weights", "trace"].map(str::to_owned).into();
        head.extend(widths.iter().map(|b| format!("sensitivity, {b} bit")));
        head.push("bits (levels)".to_owned());
        let rows = self.layers.iter().map(|l| {
            let mut row = vec![l.layer.clone(), l.num_weights.to_string(), estimate(l.trace)];
            row.extend(
                widths.iter().map(|b| l.sensitivity.get(b).map_or("-".into(), |e| estimate(*e))),
            );
            row.push(format!("{} ({})", l.bits, l.num_levels));
            row
        });
        write_table(head, rows.collect(), text);
        let order = self.order();
        if !order.is_empty() {
            let _ = writeln!(
                text,
                "order: {}; a stage for each module, its layers with their own bits",
                order.join(", ")
            );
        }
    }
}

fn write_lengths(lengths: &LengthsReport, text: &mut String) {
    let stages: Vec<String> =
        lengths.stages.iter().map(|s| format!("{} {}", s.module, s.epochs)).collect();
    let rule = match lengths.rule {
        StageEpochs::Equal => "in equal parts",
        StageEpochs::Sensitivity => "in proportion to summed sensitivity",
    };
    let _ = writeln!(
        text,
        "epochs: {} ({} in all, {rule}, {} or more each)",
        stages.join(", "),
        lengths.total,
        lengths.floor
    );
}

fn all_widths<'a>(all: impl Iterator<Item = &'a BTreeMap<u32, ProbeEstimate>>) -> BTreeSet<u32> {
    all.flat_map(|s| s.keys().copied()).collect()
}

fn write_orders(orders: &OrdersReport, text: &mut String) {
    text.push('\n');
    let head = vec![
        "order".to_owned(),
        "bits".to_owned(),
        orders.metric.clone(),
        "after each module".to_owned(),
    ];
    let rows = orders.orders.iter().map(|o| {
        let bits: Vec<String> = o.bits.iter().map(u32::to_string).collect();
        let stages: Vec<String> =
            o.stages.iter().map(|s| s.percent.map_or("-".into(), |p| format!("{p:.1}"))).collect();
        vec![o.modules.join(" -> "), bits.join("-"), percent(&o.score), stages.join(", ")]
    });
    write_table(head, rows.collect(), text);
    let what = match orders.walk {
        Walk::All => "all orders",
        Walk::Greedy => "greedily",
    };
    let _ = writeln!(
        text,
        "{what}: {} stages trained, where separate runs of all orders take {}; bits are in the order of the modules",
        orders.num_stages, orders.num_stages_separate
    );
}

fn estimate(e: ProbeEstimate) -> String {
    format!("{:.3e} +- {:.0e}", e.mean, e.standard_error)
}

/// Columns as wide as their widest cell; the first one with letters to the left, numbers to the right.
fn write_table(head: Vec<String>, rows: Vec<Vec<String>>, text: &mut String) {
    let all: Vec<&Vec<String>> = std::iter::once(&head).chain(&rows).collect();
    let width = |i: usize| all.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    for (n, row) in all.iter().enumerate() {
        let cells = row.iter().zip(&widths).map(|(cell, width)| {
            let is_number = cell.starts_with(|c: char| c.is_ascii_digit() || "+-".contains(c));
            if n > 0 && is_number { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        let line = cells.collect::<Vec<_>>().join("  ");
        let _ = writeln!(text, "{}", line.trim_end());
        if n == 0 {
            let _ = writeln!(
                text,
                "{}",
                "-".repeat(widths.iter().sum::<usize>() + 2 * (widths.len() - 1))
            );
        }
    }
}
