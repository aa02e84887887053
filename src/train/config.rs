//! What a training run consists of: its stages and when it saves and validates.

use anyhow::{Context, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{EmaConfig, LrConfig, MonitorConfig, SgdConfig};
use crate::quant::select::{self, Pattern};
use crate::quant::{ActivationQuantConfig, Claim, WeightQuantConfig};
use crate::schema::{above_zero, check_ranges, first_of_each_key};

/// Settings of a training run. The default is the published fine-tuning with the FPN quantized.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// The stages, in the order they run: a full-precision one if the network is not pretrained, then one for each
    /// module of the flow. A module that a stage has quantized stays quantized in the later ones, frozen unless
    /// `afterwards` says otherwise.
    pub stages: Vec<StageConfig>,
    /// A checkpoint every so many epochs; the end of a stage and a best epoch always write one.
    #[schemars(range(min = 1))]
    pub ckpt_every: u32,
    /// Also a checkpoint every so many steps.
    #[schemars(range(min = 1))]
    pub ckpt_every_steps: Option<u64>,
    /// How many of the numbered checkpoints stay on disk; those of stage ends and the best one stay too.
    #[schemars(range(min = 1))]
    pub keep: usize,
    /// Validation every so many epochs of a stage, and at its end.
    #[schemars(range(min = 1))]
    pub valid_every: u32,
    /// Stop, with a checkpoint, after so many steps in all.
    #[schemars(range(min = 1))]
    pub max_steps: Option<u64>,
    /// Training batches on which the running statistics of batch norms are estimated again before validation, once
    /// quantization changes the network; at most those of an epoch, 0 leaves the statistics of training.
    pub bn_batches: usize,
    /// Estimate them again in float networks as well, so that a float control is scored like the quantized networks beside
    /// it; false leaves float networks their moving averages.
    pub bn_always: bool,
    /// What chooses the best checkpoint, and when a stage ends early.
    pub monitor: MonitorConfig,
    /// Average the weights of each stage and evaluate the average; `null` evaluates the weights themselves.
    pub ema: Option<EmaConfig>,
}

impl Default for TrainConfig {
    fn default() -> Self {
        let published_fpn =
            WeightQuantConfig { n_levels: Some(15), ..WeightQuantConfig::default() };
        Self {
            stages: vec![StageConfig::mqat("fpn", published_fpn)],
            ckpt_every: 1,
            ckpt_every_steps: None,
            keep: 3,
            valid_every: 1,
            max_steps: None,
            bn_batches: 50,
            bn_always: false,
            monitor: MonitorConfig::default(),
            ema: None,
        }
    }
}

impl TrainConfig {
    /// Pushes a line for each value outside its range, or that does not fit another one.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        check_ranges(self, at, problems);
        self.check_together(at, problems);
        first_of_each_key(problems);
    }

    /// Pushes a line for each value that does not fit another one.
    pub fn check_together(&self, at: &str, problems: &mut Vec<String>) {
        if self.stages.is_empty() {
            problems.push(format!("{at}.stages: is empty, expected at least one stage"));
        }
        if let Some(ema) = &self.ema {
            let longest = self.stages.iter().map(|stage| stage.epochs).max().unwrap_or(0);
            ema.check_together(longest, &format!("{at}.ema"), problems);
        }
        for (i, stage) in self.stages.iter().enumerate() {
            stage.check_together(&format!("{at}.stages.{i}"), problems);
            let same = |other: &&StageConfig| stage.claims_surely(other);
            if let Some(other) = self.stages[..i].iter().find(same) {
                problems.push(format!(
                    "{at}.stages.{i}.module: {} was quantized by stage {} before",
                    stage.module.as_deref().unwrap_or_default(),
                    other.label()
                ));
            }
        }
    }
}

/// A pattern as a name for files: `backbone.features.stage[1-3].*` is `backbone.features.stage_1-3`, `*` is `all`.
fn plain_name(pattern: &str) -> String {
    let mut name = String::new();
    for c in pattern.chars() {
        let plain = if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' };
        if plain != '_' || !name.ends_with('_') {
            name.push(plain);
        }
    }
    match name.trim_matches(|c| "._".contains(c)) {
        "" => "all".to_owned(),
        trimmed => trimmed.to_owned(),
    }
}

/// What becomes of a stage's module in the stages after it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Afterwards {
    /// Its weights become the quantized ones for good when the next stage begins, and nothing of it is learnt any more.
    #[default]
    Freeze,
    /// It stays fake-quantized: its weights, step sizes and clipping levels go on learning with the optimizer of each later
    /// stage, until the end of the flow.
    Train,
}

impl Afterwards {
    /// Whether it is [`Afterwards::Freeze`].
    pub fn is_freeze(&self) -> bool {
        *self == Self::Freeze
    }
}

/// One stage: some epochs in full precision, or the quantization of one module.
///
/// The default is the published fine-tuning of MQAT without a module; name one and say how to quantize it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct StageConfig {
    /// Name in logs and files, of letters, digits, `.`, `_`, `-`; empty takes the module's, or `full_precision`.
    pub name: String,
    /// The module this stage quantizes: a path (`fpn`; `head` covers `head.cls_tower.0`, never `head2`), a glob over
    /// path components (`backbone.features.stage[1-3].*`; `*` is everything), or a list of these; `null` quantizes
    /// nothing new.
    #[serde(deserialize_with = "select::pattern_from_json")]
    #[schemars(with = "select::PatternSchema")]
    pub module: Option<String>,
    /// How the module's weights are quantized; `null` leaves them float.
    pub weights: Option<WeightQuantConfig>,
    /// How the activations that go into the module's layers are quantized; `null` leaves them float.
    pub activations: Option<ActivationQuantConfig>,
    /// What becomes of the module in the stages after this one. Method `inq` has `freeze` alone.
    pub afterwards: Afterwards,
    /// Whether the network's first layer is quantized too, where the module holds it.
    pub first_layer: bool,
    /// Whether the network's last layers are quantized too, where the module holds them.
    pub last_layer: bool,
    /// Epochs of the stage.
    #[schemars(range(min = 1))]
    pub epochs: u32,
    /// Images of a step; `null` takes `data.bs_train`.
    #[schemars(range(min = 1))]
    pub batch_size: Option<usize>,
    /// Learning rate.
    pub lr: LrConfig,
    /// Optimizer.
    pub optimizer: SgdConfig,
    /// Largest L2 norm over all gradients; larger ones are scaled down to it.
    #[schemars(transform = above_zero)]
    pub clip_norm: f64,
    /// Normalise by the running statistics of batch norms and leave them as they are. Off as published: also
    /// fine-tuning normalises by the batch and moves the statistics.
    pub freeze_bn: bool,
    /// Modules whose parameters stay as they are in this stage: a pattern as of `module`, or `null`.
    #[serde(
        deserialize_with = "select::pattern_from_json",
        skip_serializing_if = "Option::is_none"
    )]
    #[schemars(with = "select::PatternSchema", extend("default" = null))]
    pub frozen: Option<String>,
    /// Whether the batch norms of the `frozen` modules normalise by their running statistics and leave them as they are.
    /// `false` as CA-SpaceNet was published: they move, although the parameters beside them do not.
    #[serde(skip_serializing_if = "is_true")]
    #[schemars(extend("default" = true))]
    pub frozen_statistics: bool,
}

fn is_true(value: &bool) -> bool {
    *value
}

impl Default for StageConfig {
    fn default() -> Self {
        Self {
            name: String::new(),
            module: None,
            weights: None,
            activations: None,
            afterwards: Afterwards::Freeze,
            first_layer: true,
            last_layer: true,
            epochs: Self::DEFAULT_EPOCHS,
            batch_size: None,
            lr: LrConfig::default(),
            optimizer: SgdConfig::default(),
            clip_norm: 5.0,
            freeze_bn: false,
            frozen: None,
            frozen_statistics: true,
        }
    }
}

impl StageConfig {
    /// The epochs that the defaults of schedules and quantizers are made for.
    pub const DEFAULT_EPOCHS: u32 = 30;

    /// The published fine-tuning of a module's weights, 30 epochs.
    pub fn mqat(module: &str, weights: WeightQuantConfig) -> Self {
        Self { module: Some(module.to_owned()), weights: Some(weights), ..Self::default() }
    }

    /// The recipe of the Wide-Depth-Range network: 300,000 steps at batch 8 of SwissCube's 30,000 images.
    pub fn full_precision() -> Self {
        Self {
            epochs: 80,
            batch_size: Some(8),
            lr: LrConfig::full_precision(),
            optimizer: SgdConfig::full_precision(),
            ..Self::default()
        }
    }

    /// The name in logs and file names: its own, or its module's with characters that no file should have replaced.
    pub fn label(&self) -> String {
        match (self.name.as_str(), &self.module) {
            ("", Some(module)) => plain_name(module),
            ("", None) => "full_precision".to_owned(),
            (name, _) => name.to_owned(),
        }
    }

    /// What the stage quantizes, if it does; seed 0.
    pub fn claim(&self) -> Option<Claim> {
        Some(Claim {
            weights: self.weights.clone(),
            activations: self.activations.clone(),
            first_layer: self.first_layer,
            last_layer: self.last_layer,
            ..Claim::of(self.module.as_deref()?)
        })
    }

    /// Whether both stages quantize some layer, as far as their patterns alone can tell.
    fn claims_surely(&self, other: &Self) -> bool {
        let whole = |s: &Self| s.first_layer && s.last_layer;
        let pattern = |s: &Self| s.module.as_deref().and_then(|m| Pattern::parse(m).ok());
        match (pattern(self), pattern(other)) {
            (Some(a), Some(b)) if whole(self) && whole(other) => a.overlaps_surely(&b),
            _ => false,
        }
    }

    /// Pushes a line for each value that does not fit another one, and each name or module that is not valid. Ranges
    /// are checked by [`check_ranges`].
    pub fn check_together(&self, at: &str, problems: &mut Vec<String>) {
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !self.label().chars().all(plain) || self.label().starts_with('.') {
            let name = self.label();
            problems.push(format!("{at}.name: {name:?} is not of letters, digits, '.', '_', '-'"));
        }
        self.lr.check_together(&format!("{at}.lr"), problems);
        self.optimizer.check_together(&format!("{at}.optimizer"), problems);
        if let Some(Err(err)) = self.module.as_deref().map(Pattern::parse) {
            problems.push(format!("{at}.module: {err}"));
        }
        match (&self.module, &self.weights, &self.activations) {
            (None, None, None) | (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {}
            (None, _, _) => problems.push(format!(
                "{at}.module: is null, but weights or activations are to be quantized; name the module"
            )),
            (Some(module), None, None) => problems.push(format!(
                "{at}.module: {module}, but neither weights nor activations say how to quantize it"
            )),
        }
        self.check_afterwards(at, problems);
        self.check_frozen(at, problems);
        if let Some(weights) = &self.weights {
            weights.check(&format!("{at}.weights"), problems);
            weights.check_epochs(self.epochs, &format!("{at}.weights"), problems);
        }
        if let Some(activations) = &self.activations {
            activations.check(&format!("{at}.activations"), problems);
            activations.check_epochs(self.epochs, &format!("{at}.activations"), problems);
        }
    }

    /// The modules whose parameters stay as they are.
    ///
    /// # Errors
    /// If the pattern is not valid.
    pub fn frozen_modules(&self) -> Result<Option<Pattern>> {
        self.frozen.as_deref().map(Pattern::parse).transpose().context("frozen")
    }

    /// What is to be said of a stage that has every weight of its module on a level before the first step.
    pub fn doubt_of_rounding(&self) -> Option<String> {
        let schedule = self.weights.as_ref()?.settings.scheme().schedule()?;
        (self.epochs > 0 && schedule.fraction_at(0) >= 1.0).then(|| {
            format!(
                "its schedule freezes 100 % of the weights from epoch 1 of {}: they are rounded, and only what is not quantized \
                 is trained; give it more epochs, or entries below 1 before the last one (of entries that fall on one epoch the last wins)",
                self.epochs
            )
        })
    }

    /// Takes out of `frozen` what the stage quantizes, where its settings were those of a stage for another module.
    pub fn thaw_module(&mut self) {
        let module = self.module.as_deref().and_then(|module| Pattern::parse(module).ok());
        if let (Some(module), Ok(Some(frozen))) = (module, self.frozen_modules()) {
            self.frozen = frozen.without(&module);
            self.frozen_statistics |= self.frozen.is_none();
        }
    }

    fn check_frozen(&self, at: &str, problems: &mut Vec<String>) {
        let frozen = match self.frozen_modules() {
            Ok(Some(frozen)) => frozen,
            Ok(None) if self.frozen_statistics => return,
            Ok(None) => {
                return problems
                    .push(format!("{at}.frozen_statistics: is false, but frozen names no module"));
            }
            Err(err) => return problems.push(format!("{at}.{err:#}")),
        };
        let module = self.module.as_deref().and_then(|m| Pattern::parse(m).ok());
        if module.is_some_and(|module| module.overlaps_surely(&frozen)) {
            problems.push(format!(
                "{at}.frozen: holds layers of module {}, which the stage quantizes and trains",
                self.module.as_deref().unwrap_or_default()
            ));
        }
    }

    fn check_afterwards(&self, at: &str, problems: &mut Vec<String>) {
        if self.afterwards == Afterwards::Freeze {
            return;
        }
        if self.module.is_none() {
            problems.push(format!(
                "{at}.afterwards: is train, but the stage quantizes no module that could be trained later"
            ));
        }
        let method = self.weights.as_ref().filter(|w| w.settings.scheme().schedule().is_some());
        if let Some(weights) = method {
            problems.push(format!(
                "{at}.afterwards: is train, but method {} puts the stored weights on their levels and freezes them there, so \
                 that nothing of them is left to train; take freeze, or a method with fake quantization (lsq, uniform, \
                 dorefa, ana)",
                weights.method()
            ));
        }
    }
}
