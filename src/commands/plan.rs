//! `mqat plan`: the whole timeline of a run before anything runs.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};
use serde::Serialize;
use tch::Device;

use crate::artifact::network::blank_network;
use crate::data::{Split, num_images};
use crate::quant::size::Sizes;
use crate::run::config::{Config, Names, Select};
use crate::run::flow::{self, FlowPlan, FlowSource, MadeBy};
use crate::run::home::Home;
use crate::run::layers::{LayerReport, layers, sizes_after, sizes_text};
use crate::run::options::images_of_epoch;
use crate::run::overruled::{self, Ruler};
use crate::run::starts::StageOptions;
use crate::train::{Afterwards, Decay, LrPlace, StageConfig};

/// What `mqat plan` is asked.
#[derive(Debug, Clone, Default)]
pub struct PlanRequest {
    /// The config.
    pub select: Select,
    /// A flow instead of the config's.
    pub flow: Option<FlowSource>,
    /// The dataset, or the folder of datasets, instead of the machine's.
    pub data: Option<PathBuf>,
    /// Epochs of every stage instead of the config's.
    pub epochs: Option<u32>,
    /// Images of a step in every stage instead of the config's.
    pub batch_size: Option<usize>,
    /// Training images, where the dataset is not at hand.
    pub num_images: Option<usize>,
    /// Where the flow is written as a plan file.
    pub out: Option<PathBuf>,
}

/// A run's timeline.
#[derive(Debug, Serialize)]
pub struct PlanReport {
    /// The problem.
    pub problem: String,
    /// The topology.
    pub topology: String,
    /// The seed.
    pub seed: u64,
    /// The file of the weights it starts from; null for random ones.
    pub starts_from: Option<String>,
    /// Training images; null where no dataset was found.
    pub num_images: Option<usize>,
    /// Steps in all.
    pub num_steps: Option<u64>,
    /// Size of the float network and of what the whole flow makes of it.
    pub sizes: Sizes,
    /// The stages in order.
    pub stages: Vec<PlannedStage>,
    /// Every convolution and linear layer.
    pub layers: Vec<LayerReport>,
}

/// A stage.
#[derive(Debug, Serialize)]
pub struct PlannedStage {
    /// Its number, from 0.
    pub stage: usize,
    /// Its name.
    pub name: String,
    /// The pattern of what it quantizes.
    pub module: Option<String>,
    /// The modules that carry quantizers in it, in the order of the flow, its own last.
    pub attached: Vec<AttachedModule>,
    /// The pattern of what it keeps as it is.
    pub frozen: Option<String>,
    /// Layers it quantizes.
    pub num_layers: usize,
    /// Their weights.
    pub num_weights: usize,
    /// Whether the network's first convolution is quantized where the module covers it.
    pub first_layer: bool,
    /// Whether the prediction layers are quantized where the module covers them.
    pub last_layer: bool,
    /// Images of a step.
    pub batch_size: usize,
    /// Steps of an epoch.
    pub steps_per_epoch: Option<u64>,
    /// How many epochs it has.
    pub num_epochs: u32,
    /// Its epochs; of more than 10000 those at which something changes and some between them.
    pub epochs: Vec<PlannedEpoch>,
    /// Size once it is complete.
    pub sizes: Sizes,
    /// What is worth a second thought.
    pub warnings: Vec<String>,
}

/// A module that carries quantizers in a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AttachedModule {
    /// Its pattern.
    pub module: String,
    /// The stage that quantized it, from 0.
    pub stage: usize,
    /// What becomes of it in this stage.
    pub state: AttachedState,
}

/// What becomes of a module in a stage that carries its quantizers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum AttachedState {
    /// The stage quantizes it.
    Quantized,
    /// Quantized before, its weights and scales go on learning (`afterwards` is `train`).
    Trained,
    /// Quantized before, and frozen since (`afterwards` is `freeze`).
    Frozen,
}

/// An epoch of a stage.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PlannedEpoch {
    /// Its number in the stage, from 0.
    pub epoch: u32,
    /// Learning rate of its first step; null where that depends on how many steps an epoch has.
    pub lr_first: Option<f64>,
    /// Learning rate of its last step.
    pub lr_last: Option<f64>,
    /// Fraction of the stage's weights that is frozen on levels during it; null for methods without a schedule.
    pub fraction: Option<f64>,
    /// What becomes of the activations of the stage's layers.
    pub activations: ActivationPhase,
    /// Whether the optimizer's momentum is cleared at its begin.
    pub clears_momentum: bool,
}

/// What becomes of the activations of a stage's layers in an epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ActivationPhase {
    /// Nothing.
    Float,
    /// Their range is recorded.
    Recorded,
    /// They are quantized.
    Quantized,
}

/// Works out the timeline of a config.
///
/// # Errors
/// If the config or the flow cannot be read, a pattern matches nothing, or two stages claim one tensor.
pub fn plan(request: &PlanRequest) -> Result<PlanReport> {
    let home = Home::find(request.data.as_deref(), None)?;
    let names = match (&request.out, request.num_images) {
        (Some(_), _) => Names::Folders, // written into the plan file
        (None, None) => Names::Dataset,
        (None, Some(_)) => Names::Config,
    };
    request.select.ensure_names_act(names)?;
    let mut config = request.select.resolve(&home)?;
    if let Some(flow) = &request.flow {
        flow.apply(&mut config)?;
    }
    overruled::ensure_none(&request.select.set, &rulers(request), &config)?;
    StageOptions { epochs: request.epochs, batch_size: request.batch_size }.apply(&mut config, 0);
    let problems = config.problems();
    ensure!(problems.is_empty(), "{}", problems.join("; "));
    let num_images = match request.num_images {
        Some(n) => Some(n),
        None => count_images(request, &home, &config)?,
    };
    let net = blank_network(&config, Device::Cpu)?;
    flow::check(&config, net.as_ref())?;
    if let Some(out) = &request.out {
        write_flow(request, &config, out)?;
    }
    let stages = config.train_config().stages;
    let layers = layers(net.as_ref(), &stages, [config.input.width, config.input.height])?;
    let planned: Vec<PlannedStage> = stages
        .iter()
        .enumerate()
        .map(|(i, stage)| {
            let batch_size = stage.batch_size.unwrap_or(config.data.bs_train);
            let steps_per_epoch =
                num_images.map(|n| (images_of_epoch(&config, n) / batch_size) as u64);
            let own = || layers.iter().filter(|l| l.stage == Some(i));
            PlannedStage {
                stage: i,
                name: stage.label(),
                module: stage.module.clone(),
                attached: attached(&stages[..=i]),
                frozen: stage.frozen.clone(),
                num_layers: own().count(),
                num_weights: own().map(|l| l.num_weights).sum(),
                first_layer: stage.first_layer,
                last_layer: stage.last_layer,
                batch_size,
                steps_per_epoch,
                num_epochs: stage.epochs,
                epochs: epochs(stage, steps_per_epoch),
                sizes: sizes_after(&layers, net.as_ref(), i),
                warnings: warnings(stage, config.training.ema.is_some()),
            }
        })
        .collect();
    let steps = |s: &PlannedStage| s.steps_per_epoch?.checked_mul(u64::from(s.num_epochs));
    Ok(PlanReport {
        problem: request.select.problem().to_owned(),
        topology: request.select.topology().to_owned(),
        seed: config.experiment.seed,
        starts_from: config.experiment.pretrained.then(|| config.experiment.url.clone()),
        num_images,
        num_steps: planned.iter().map(steps).try_fold(0u64, |sum, n| sum.checked_add(n?)),
        sizes: sizes_after(&layers, net.as_ref(), stages.len()),
        stages: planned,
        layers,
    })
}

/// The options that rule over keys of the config.
fn rulers(request: &PlanRequest) -> Vec<Ruler<'static>> {
    let mut rulers = vec![
        Ruler::new(request.select.seed.is_some(), "--seed", |key| key == "experiment.seed"),
        Ruler::of_batch_size(request.batch_size.is_some()),
        Ruler::of_epochs(request.epochs.is_some()),
    ];
    rulers.extend(request.flow.as_ref().and_then(FlowSource::ruler));
    rulers
}

/// Writes the flow as a file for `--flow`.
fn write_flow(request: &PlanRequest, config: &Config, out: &Path) -> Result<()> {
    ensure!(!out.exists(), "{} already exists; remove it or name another file", out.display());
    let made_by =
        MadeBy::now(request.select.problem(), request.select.topology(), config.experiment.seed);
    FlowPlan { made_by: Some(made_by), ..FlowPlan::new(config.quantize.flow.clone()) }.write(out)
}

/// Images of the training list; none where there is no dataset and none was named.
fn count_images(request: &PlanRequest, home: &Home, config: &Config) -> Result<Option<usize>> {
    let list = config.data.list(Split::Train);
    let root = match home.dataset(request.select.problem(), list) {
        Ok(root) => root,
        Err(err) if request.data.is_some() => return Err(err),
        Err(_) => return Ok(None),
    };
    let found = num_images(&root, list)?;
    Ok(Some(config.training.train_images.map_or(found, |most| most.min(found))))
}

/// The modules that carry quantizers in the last of these stages.
fn attached(stages: &[StageConfig]) -> Vec<AttachedModule> {
    let last = stages.len() - 1;
    let of_stage = |(stage, config): (usize, &StageConfig)| {
        let state = match config.afterwards {
            _ if stage == last => AttachedState::Quantized,
            Afterwards::Train => AttachedState::Trained,
            Afterwards::Freeze => AttachedState::Frozen,
        };
        Some(AttachedModule { module: config.module.clone()?, stage, state })
    };
    stages.iter().enumerate().filter_map(of_stage).collect()
}

fn epochs(stage: &StageConfig, steps_per_epoch: Option<u64>) -> Vec<PlannedEpoch> {
    let by_update = stage.lr.warmup_steps > 0 || matches!(stage.lr.decay, Decay::Steps { .. });
    // A cosine depends on the fraction of the stage alone; anything stands for the steps of an epoch then.
    let steps = steps_per_epoch.or((!by_update).then_some(1000));
    let lr = |epoch: u32, offset: u64| {
        let steps = steps?;
        let step = u64::from(epoch) * steps + offset.min(steps.saturating_sub(1));
        let num_steps = u64::from(stage.epochs) * steps;
        Some(stage.lr.at(LrPlace { epoch, step, num_steps }))
    };
    let scheme = stage.weights.as_ref().map(|weights| weights.settings.scheme());
    let schedule = scheme.and_then(|scheme| scheme.schedule());
    let clears = scheme.is_some_and(|scheme| scheme.clears_optimizer());
    listed(stage, steps)
        .into_iter()
        .map(|epoch| PlannedEpoch {
            epoch,
            lr_first: lr(epoch, 0),
            lr_last: lr(epoch, u64::MAX),
            fraction: schedule.map(|s| s.fraction_at(epoch)),
            activations: activations(stage, epoch),
            clears_momentum: epoch == 0 || (clears && schedule.is_some_and(|s| s.steps_at(epoch))),
        })
        .collect()
}

/// What is worth a second thought about a stage; averaged weights are not those of the last steps.
fn warnings(stage: &StageConfig, is_averaged: bool) -> Vec<String> {
    let mut warnings = Vec::from_iter(stage.doubt_of_rounding());
    if stage.lr.ends_at_full_rate(stage.epochs) && !is_averaged {
        warnings.push(format!(
            "the last epoch ({}) has the largest factor of the table lr.decay.epochs: the network is judged right after steps \
             at the full rate; end with a smaller factor, or choose a cosine ({{\"cosine\": {{\"to\": 0}}}}) or training.ema",
            stage.epochs
        ));
    }
    warnings
}

/// Longest stage of which every epoch is listed.
const MOST_LISTED: u32 = 10_000;
/// Of a longer one, so many are listed besides those at which something changes.
const SPREAD: u64 = 100;

/// The epochs of a stage that a timeline lists: all, or of a long stage both sides of every change and some between.
fn listed(stage: &StageConfig, steps_per_epoch: Option<u64>) -> Vec<u32> {
    if stage.epochs <= MOST_LISTED {
        return (0..stage.epochs).collect();
    }
    let of_step = |step: u64| {
        let epoch = step / steps_per_epoch.unwrap_or(1).max(1);
        u32::try_from(epoch).unwrap_or(u32::MAX)
    };
    let mut changes = vec![0, stage.epochs - 1, of_step(stage.lr.warmup_steps)];
    match &stage.lr.decay {
        Decay::Epochs(table) => changes.extend(table.keys()),
        Decay::Steps { at, .. } => changes.extend(at.iter().map(|&step| of_step(step))),
        Decay::Constant | Decay::Cosine { .. } => {}
    }
    let schedule = stage.weights.as_ref().and_then(|w| w.settings.scheme().schedule());
    changes.extend(schedule.iter().flat_map(|s| s.entries().map(|(at, _)| at)));
    changes.extend(stage.activations.iter().map(|a| a.quant_start_epoch));
    let spread = (0..SPREAD).map(|i| i * u64::from(stage.epochs) / SPREAD);
    let mut epochs: Vec<u32> = changes
        .into_iter()
        .flat_map(|at| [at.saturating_sub(2), at.saturating_sub(1), at, at.saturating_add(1)])
        .chain(spread.filter_map(|at| u32::try_from(at).ok()))
        .filter(|&at| at < stage.epochs)
        .collect();
    epochs.sort_unstable();
    epochs.dedup();
    epochs
}

fn activations(stage: &StageConfig, epoch: u32) -> ActivationPhase {
    let Some(activations) = &stage.activations else { return ActivationPhase::Float };
    let start = activations.quant_start_epoch;
    if epoch >= start {
        ActivationPhase::Quantized
    } else if epoch + 1 == start {
        ActivationPhase::Recorded
    } else {
        ActivationPhase::Float
    }
}

impl PlanReport {
    /// For a terminal.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let images = match (self.num_images, self.num_steps) {
            (Some(n), Some(steps)) => format!("{n} training images, {steps} steps"),
            _ => "no dataset found, so the number of steps is not known (give --data or --images)"
                .to_owned(),
        };
        let num_epochs: u64 = self.stages.iter().map(|s| u64::from(s.num_epochs)).sum();
        let start = self.starts_from.as_deref().unwrap_or("random weights");
        let _ = writeln!(
            out,
            "{}/{}: {}, {}, {images}\nseed {}, starts from {start}",
            self.problem,
            self.topology,
            counted(self.stages.len() as u64, "stage"),
            counted(num_epochs, "epoch"),
            self.seed
        );
        let _ = writeln!(out, "epochs are counted from 1; the schedules of a config count from 0");
        for stage in &self.stages {
            stage.write(&mut out);
        }
        self.write_layers(&mut out);
        let _ = writeln!(out, "\nin the end: {}", sizes_text(&self.sizes));
        out
    }

    fn write_layers(&self, out: &mut String) {
        let _ = writeln!(
            out,
            "\n{:<44} {:>9}  {:<24} {:<24} stage",
            "convolution", "weights", "quantized to", "activations"
        );
        for l in self.layers.iter().filter(|l| l.kind == "conv") {
            let stage = match (&l.stage, &l.stage_name, l.float_because) {
                (Some(i), Some(name), _) => format!("{i} {name}"),
                (_, _, Some(because)) => because.to_owned(),
                _ => "-".to_owned(),
            };
            let (weights, activations) = (l.weights_text(), l.activations_text());
            let _ = writeln!(
                out,
                "{:<44} {:>9}  {weights:<24} {activations:<24} {stage}",
                l.name, l.num_weights
            );
        }
        for l in self.layers.iter().filter(|l| l.kind != "conv") {
            let _ = writeln!(
                out,
                "{:<44} {:>9}  float: no output depends on it, and it counts for the file alone",
                l.name, l.num_weights
            );
        }
    }
}

impl PlannedStage {
    fn write(&self, out: &mut String) {
        let what = match &self.module {
            None => "quantizes nothing new".to_owned(),
            Some(module) => {
                let mut text = format!(
                    "quantizes {module}: {} convolutions, {} weights",
                    self.num_layers, self.num_weights
                );
                for (is_on, name) in
                    [(self.first_layer, "first_layer"), (self.last_layer, "last_layer")]
                {
                    if !is_on {
                        let _ = write!(text, ", {name} stays float");
                    }
                }
                text
            }
        };
        let updates = self.steps_per_epoch.map_or(String::new(), |n| format!(" {n} steps of"));
        let _ = writeln!(
            out,
            "\nstage {} {}: {what}; {} of{updates} {} images",
            self.stage,
            self.name,
            counted(u64::from(self.num_epochs), "epoch"),
            self.batch_size
        );
        let before = |module: &&AttachedModule| module.state != AttachedState::Quantized;
        for module in self.attached.iter().filter(before) {
            let what = match module.state {
                AttachedState::Trained => "is trained on",
                _ => "is frozen",
            };
            let _ = writeln!(out, "  {} of stage {} {what}", module.module, module.stage);
        }
        if let Some(frozen) = &self.frozen {
            let _ = writeln!(out, "  {frozen} stays as it is");
        }
        for (first, last) in runs(&self.epochs) {
            let epochs = match last.epoch {
                end if end == first.epoch => format!("{}", end + 1),
                end => format!("{}-{}", first.epoch + 1, end + 1),
            };
            let _ = writeln!(out, "  epoch {epochs:<8} {}", first.text(last));
        }
        let _ = writeln!(out, "  after it: {}", sizes_text(&self.sizes));
        for warning in &self.warnings {
            let _ = writeln!(out, "  warning: {warning}");
        }
    }
}

impl PlannedEpoch {
    fn text(&self, last: &Self) -> String {
        let mut text = match (self.lr_first, last.lr_last) {
            (Some(first), Some(last)) if (first - last).abs() <= 1e-12 * first => {
                format!("lr {first:<22.3e}")
            }
            (Some(first), Some(last)) => {
                let range = format!("{first:.3e} to {last:.3e}");
                format!("lr {range:<22}")
            }
            _ => format!("lr {:<22}", "by step"),
        };
        if let Some(fraction) = self.fraction {
            let _ = write!(text, " {:>6.2} % frozen", 100.0 * fraction);
        }
        match self.activations {
            ActivationPhase::Float => {}
            ActivationPhase::Recorded => text.push_str(", activations recorded"),
            ActivationPhase::Quantized => text.push_str(", activations quantized"),
        }
        if self.clears_momentum && self.epoch > 0 {
            text.push_str(", momentum cleared");
        }
        text.trim_end().to_owned()
    }

    /// Whether a line can stand for both.
    fn alike(&self, next: &Self) -> bool {
        self.lr_last == next.lr_first
            && next.lr_first == next.lr_last
            && self.lr_first == self.lr_last
            && self.fraction == next.fraction
            && self.activations == next.activations
            && !next.clears_momentum
    }
}

/// `1 epoch`, `2 epochs`.
fn counted(count: u64, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// The first and last epoch of each run of epochs that are alike.
fn runs(epochs: &[PlannedEpoch]) -> Vec<(&PlannedEpoch, &PlannedEpoch)> {
    let mut runs: Vec<(&PlannedEpoch, &PlannedEpoch)> = Vec::new();
    for epoch in epochs {
        match runs.last_mut() {
            Some((_, last)) if last.alike(epoch) => *last = epoch,
            _ => runs.push((epoch, epoch)),
        }
    }
    runs
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn stage(epochs: u32, decay: Decay) -> StageConfig {
        let mut stage = StageConfig { epochs, ..StageConfig::full_precision() };
        stage.lr.decay = decay;
        stage
    }

    #[test]
    fn the_modules_of_earlier_stages_are_trained_or_frozen() {
        let module = |name: &str, afterwards| StageConfig {
            module: Some(name.to_owned()),
            afterwards,
            ..StageConfig::default()
        };
        let stages = [
            stage(1, Decay::Constant),
            module("fpn", Afterwards::Train),
            module("head", Afterwards::Freeze),
            module("backbone", Afterwards::Train),
        ];
        let states = |upto: usize| -> Vec<(String, AttachedState)> {
            attached(&stages[..upto]).into_iter().map(|m| (m.module, m.state)).collect()
        };
        let of = |name: &str, state| (name.to_owned(), state);
        use AttachedState::{Frozen, Quantized, Trained};
        assert_eq!(states(1), []);
        assert_eq!(states(3), [of("fpn", Trained), of("head", Quantized)]);
        let last = [of("fpn", Trained), of("head", Frozen), of("backbone", Quantized)];
        assert_eq!(states(4), last);
    }

    #[test]
    fn a_stage_of_billions_of_epochs_is_listed_by_its_changes() {
        let falls = BTreeMap::from([(1_000_000, 0.1), (3_000_000_000, 0.01)]);
        let planned = epochs(&stage(u32::MAX, Decay::Epochs(falls)), Some(7));
        assert!(planned.len() < 200, "{} epochs are listed", planned.len());
        for at in [0, 999_999, 1_000_000, 2_999_999_999, 3_000_000_000, u32::MAX - 1] {
            assert!(planned.iter().any(|e| e.epoch == at), "epoch {at} is not listed");
        }
        let falls: Vec<u32> = (planned.windows(2))
            .filter(|pair| pair[0].lr_last != pair[1].lr_first)
            .map(|pair| pair[1].epoch)
            .collect();
        assert!(falls.ends_with(&[1_000_000, 3_000_000_000]), "{falls:?}");
        let all = epochs(&stage(30, Decay::Constant), None);
        assert!(all.iter().map(|e| e.epoch).eq(0..30));
    }
}
