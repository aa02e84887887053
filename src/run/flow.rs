//! Flows from outside the config: `--flow` as text, plan files, and the baselines of `--method`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::io;
use crate::nn::Network;
use crate::quant::{
    ActivationMethod, ActivationQuantConfig, Levels, WeightMethod, WeightQuantConfig, select,
};
use crate::run::config::Config;
use crate::run::folder::Start;
use crate::run::overruled::Ruler;
use crate::run::{frozen, like, stretch};
use crate::schema;
use crate::train::{Afterwards, StageConfig, TrainConfig};

/// Number of the layout of plan files that this version writes.
pub const PLAN_FORMAT: u32 = 1;

/// A plan file: a flow with where it comes from. `mqat search` writes one, `mqat train --flow FILE` runs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FlowPlan {
    /// Layout of the file, 1.
    pub format: u32,
    /// The stages, in order; the same as `quantize.flow` of a config, and complete: nothing is taken from a config.
    pub flow: Vec<StageConfig>,
    /// Who made it, and how.
    #[serde(default)]
    pub made_by: Option<MadeBy>,
    /// What was measured to choose it, a row for each module (or layer) in the order of the flow.
    #[serde(default)]
    pub table: Vec<PlanRow>,
}

/// Where a plan comes from.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct MadeBy {
    /// The command line.
    pub command: Vec<String>,
    /// Version of mqat.
    pub mqat: String,
    /// Seconds since 1970, UTC.
    pub unix_seconds: u64,
    /// The problem.
    pub problem: String,
    /// The topology.
    pub topology: String,
    /// The seed.
    pub seed: u64,
    /// Everything else that decided it: targets, candidates, budgets.
    pub details: Value,
}

/// What is known about a module (or layer) that a plan decides on.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct PlanRow {
    /// The module's pattern.
    pub module: String,
    /// Its convolution weights.
    pub num_weights: usize,
    /// Mean eigenvalue of the loss's Hessian over its weights: trace / number of weights.
    pub mean_trace: Option<f64>,
    /// Standard error of it.
    pub mean_trace_std_error: Option<f64>,
    /// Summed sensitivity by bit width.
    pub sensitivity: BTreeMap<u32, f64>,
    /// Score of the trial in which it alone was quantized, to the trial's width.
    pub trial_score: Option<f64>,
    /// Chosen bits of its weights.
    pub bits: u32,
    /// Its place in the flow, from 0.
    pub position: Option<usize>,
}

impl MadeBy {
    /// This process.
    pub fn now(problem: &str, topology: &str, seed: u64) -> Self {
        let Start { unix_seconds, command, .. } = Start::now(None);
        let (problem, topology) = (problem.to_owned(), topology.to_owned());
        let mqat = env!("CARGO_PKG_VERSION").to_owned();
        Self { command, mqat, unix_seconds, problem, topology, seed, details: Value::Null }
    }
}

impl FlowPlan {
    /// A plan of these stages with nothing said about their origin.
    pub fn new(flow: Vec<StageConfig>) -> Self {
        Self { format: PLAN_FORMAT, flow, made_by: None, table: Vec::new() }
    }

    /// Reads and checks a plan file.
    ///
    /// # Errors
    /// If it cannot be read, is of a newer format, has keys that are unknown or values outside their range: all are
    /// named.
    pub fn read(path: &Path) -> Result<Self> {
        let at = path.display();
        let document: Value = io::read_json(path)?;
        let format = document.get("format").and_then(Value::as_u64);
        let expected = format!("expected a plan: {{\"format\": {PLAN_FORMAT}, \"flow\": [...]}}");
        let Some(format) = format else { bail!("{at}: has no number format; {expected}") };
        ensure!(
            (1..=u64::from(PLAN_FORMAT)).contains(&format),
            "{at}: format {format} is not known to this version, which reads up to {PLAN_FORMAT}"
        );
        let plan: Self = schema::parse(document, &at.to_string())?;
        let problems = plan.problems();
        ensure!(problems.is_empty(), "{at}: {}", problems.join("; "));
        Ok(plan)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// If values are outside their range, or the file cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let problems = self.problems();
        ensure!(problems.is_empty(), "writing {}: {}", path.display(), problems.join("; "));
        io::write_json(path, self)
    }

    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        let stages = TrainConfig { stages: self.flow.clone(), ..TrainConfig::default() };
        stages.check("plan", &mut problems);
        problems.iter().map(|p| p.replacen("plan.stages", "flow", 1)).collect()
    }
}

/// Which flow a run takes instead of its config's.
#[derive(Debug, Clone, PartialEq)]
pub enum FlowSource {
    /// Modules with their bits, in order.
    Text(Vec<TextStage>),
    /// A plan file.
    File(PathBuf),
    /// A baseline.
    Baseline(Baseline),
    /// No quantization, but the stages of a plan file: their epochs, batch sizes and learning rates.
    LikePlan(PathBuf),
    /// The same of the config of another run, with its full-precision stage, its batch size and its number of images.
    LikeConfig(PathBuf),
}

/// What a flow is compared with.
#[derive(Debug, Clone, PartialEq)]
pub enum Baseline {
    /// No quantization, but the epochs and learning rates of the config's stages; of another flow [`FlowSource::like`].
    FullPrecision,
    /// One stage over all layers with the same bits, of as many epochs as the flow's stages have together.
    Uniform {
        /// How weights are quantized.
        method: WeightMethod,
        /// The bits.
        bits: Bits,
    },
}

/// One stage of a flow as text.
#[derive(Debug, Clone, PartialEq)]
pub struct TextStage {
    /// The pattern.
    pub module: String,
    /// Bits of weights and inputs.
    pub bits: Bits,
    /// Method of the weights, where it is not the config's.
    pub weight_method: Option<WeightMethod>,
    /// Method of the inputs, where it is not the config's.
    pub activation_method: Option<ActivationMethod>,
}

/// Bits of weights, of inputs, or of both: `2`, `w2`, `a8`, `w2a8`; `/N` after a number gives the number of levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bits {
    /// Of weights; none leaves them float.
    pub weights: Option<Width>,
    /// Of inputs; none leaves them float.
    pub activations: Option<Width>,
}

/// A bit width, with the number of levels where it is not that of the width.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Width {
    /// Bits.
    pub bits: u32,
    /// Levels.
    pub n_levels: Option<u32>,
    /// How many levels the bits are; none for what the config's stage or the method takes. No part of the text form.
    pub levels: Option<Levels>,
}

impl Width {
    /// So many bits.
    pub fn of_bits(bits: u32) -> Self {
        Self { bits, n_levels: None, levels: None }
    }
}

/// The forms of [`Bits`], for messages.
const BITS_FORMS: &str = "expected bits such as 2, w2a8, w4, a8, or 2/4 for 2 bits with 4 levels";

impl FromStr for Bits {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let refuse = || format!("{text:?}: {BITS_FORMS}");
        let (weights, activations) = match text.strip_prefix('w') {
            Some(rest) => match rest.split_once('a') {
                Some((w, a)) => (Some(w), Some(a)),
                None => (Some(rest), None),
            },
            None => match text.strip_prefix('a') {
                Some(a) => (None, Some(a)),
                None => (Some(text), None),
            },
        };
        let width = |text: &str| -> Result<Width> {
            let (bits, levels) = text.split_once('/').map_or((text, None), |(b, n)| (b, Some(n)));
            let number = |digits: &str| digits.parse::<u32>().with_context(refuse);
            let n_levels = levels.map(number).transpose()?;
            Ok(Width { n_levels, ..Width::of_bits(number(bits)?) })
        };
        Ok(Self {
            weights: weights.map(width).transpose()?,
            activations: activations.map(width).transpose()?,
        })
    }
}

impl fmt::Display for Bits {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        for (letter, width) in [("w", self.weights), ("a", self.activations)] {
            if let Some(Width { bits, n_levels, .. }) = width {
                write!(f, "{letter}{bits}")?;
                if let Some(n) = n_levels {
                    write!(f, "/{n}")?;
                }
            }
        }
        Ok(())
    }
}

impl FromStr for FlowSource {
    type Err = anyhow::Error;

    /// A plan file, where there is one of that name or it ends in `.json`; else stages as text.
    fn from_str(text: &str) -> Result<Self> {
        if text.ends_with(".json") || Path::new(text).is_file() {
            return Ok(Self::File(PathBuf::from(text)));
        }
        let stages = select::split(text, ',').into_iter().map(str::parse);
        Ok(Self::Text(stages.collect::<Result<_>>()?))
    }
}

impl FromStr for TextStage {
    type Err = anyhow::Error;

    /// `MODULE[+MODULE...]:BITS[@WEIGHTS[+INPUTS]]`.
    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        let Some((module, rest)) = text.rsplit_once(':') else {
            bail!(
                "{text:?} is neither an existing plan file nor MODULE:BITS, for example fpn:2 or head:w4a8"
            )
        };
        let modules: Vec<&str> = select::split(module, '+').into_iter().map(str::trim).collect();
        ensure!(!modules.contains(&""), "{text:?} names no module before the colon");
        let (bits, methods) = rest.split_once('@').map_or((rest, None), |(b, m)| (b, Some(m)));
        let bits: Bits = bits.parse().with_context(|| format!("the bits of {module}"))?;
        let (mut weight_method, mut activation_method) = (None, None);
        if let Some(methods) = methods {
            let (first, second) =
                methods.split_once('+').map_or((methods, None), |(a, b)| (a, Some(b)));
            match (bits.weights, bits.activations) {
                (None, _) => {
                    ensure!(second.is_none(), "{text:?} gives a second method, but no weight bits");
                    activation_method = Some(parse_activation_method(first)?);
                }
                (Some(_), None) => {
                    ensure!(
                        second.is_none(),
                        "{text:?} gives a second method, but no activation bits"
                    );
                    weight_method = Some(parse_weight_method(first)?);
                }
                (Some(_), Some(_)) => {
                    weight_method = Some(parse_weight_method(first)?);
                    activation_method = second.map(parse_activation_method).transpose()?;
                }
            }
        }
        Ok(Self { module: modules.join(","), bits, weight_method, activation_method })
    }
}

/// A weight method by its name in configs.
///
/// # Errors
/// If there is none of that name; names the nearest and all.
pub fn parse_weight_method(name: &str) -> Result<WeightMethod> {
    parse_method(name, "weight method", WeightMethod::ALL, WeightMethod::name)
}

/// An activation method by its name in configs.
///
/// # Errors
/// If there is none of that name; names the nearest and all.
pub fn parse_activation_method(name: &str) -> Result<ActivationMethod> {
    parse_method(name, "activation method", ActivationMethod::ALL, ActivationMethod::name)
}

fn parse_method<M: Copy>(
    name: &str,
    what: &str,
    all: &[M],
    name_of: fn(M) -> &'static str,
) -> Result<M> {
    if let Some(method) = all.iter().find(|method| name_of(**method) == name) {
        return Ok(*method);
    }
    let known: Vec<&str> = all.iter().map(|method| name_of(*method)).collect();
    let nearest = known
        .iter()
        .map(|k| (strsim::jaro_winkler(k, &name.to_lowercase()), k))
        .filter(|(likeness, _)| *likeness > 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0));
    let hint = nearest.map_or(String::new(), |(_, name)| format!(", did you mean {name}?"));
    let article = if what.starts_with('a') { "an" } else { "a" };
    bail!("{name:?} is not {article} {what}{hint} (there are: {})", known.join(", "))
}

impl FlowSource {
    /// The float control of a flow: of a plan file, or of the config of another run.
    ///
    /// # Errors
    /// If the file cannot be read or is not JSON.
    pub fn like(file: PathBuf) -> Result<Self> {
        let document: Value = io::read_json(&file)?;
        let is_plan = document.get("flow").is_some();
        Ok(if is_plan { Self::LikePlan(file) } else { Self::LikeConfig(file) })
    }

    /// Whether it trains without quantizing what a flow quantizes: to be scored like that flow, batch norms included.
    fn is_float_control(&self) -> bool {
        match self {
            Self::Baseline(Baseline::FullPrecision) | Self::LikePlan(_) | Self::LikeConfig(_) => {
                true
            }
            Self::Text(_) | Self::File(_) | Self::Baseline(Baseline::Uniform { .. }) => false,
        }
    }

    /// The keys of the config that `--like` or a float control rules over.
    pub(crate) fn ruler(&self) -> Option<Ruler<'static>> {
        match self {
            Self::LikePlan(_) => Some(Ruler::new(true, "--like", like::rules_of_plan)),
            Self::LikeConfig(_) => Some(Ruler::new(true, "--like", like::rules)),
            Self::Baseline(Baseline::FullPrecision) => {
                Some(Ruler::new(true, "--method full-precision", like::rules_of_float))
            }
            Self::Text(_) | Self::File(_) | Self::Baseline(Baseline::Uniform { .. }) => None,
        }
    }

    /// Replaces the config's flow.
    ///
    /// Stages given as text take everything but module, bits and methods from the config's stage of the same module,
    /// else from its first stage, else from the defaults.
    ///
    /// # Errors
    /// If a plan file cannot be used, or the stages do not pass the config's checks.
    pub fn apply(&self, config: &mut Config) -> Result<()> {
        if let Self::LikeConfig(path) = self {
            like::take_over(path, config)?;
        }
        if self.is_float_control() {
            config.training.bn_always = true;
        }
        let flow = &config.quantize.flow;
        config.quantize.flow = match self {
            Self::Text(stages) => stages.iter().map(|stage| stage.resolve(flow)).collect(),
            Self::File(path) => FlowPlan::read(path)?.flow,
            Self::LikePlan(path) => {
                FlowPlan::read(path)?.flow.iter().map(without_quantizing).collect()
            }
            Self::LikeConfig(_) | Self::Baseline(Baseline::FullPrecision) => {
                flow.iter().map(without_quantizing).collect()
            }
            Self::Baseline(Baseline::Uniform { method, bits }) => {
                vec![uniform(flow, *method, *bits)]
            }
        };
        let problems = config.problems();
        ensure!(problems.is_empty(), "{}", problems.join("; "));
        Ok(())
    }

    /// As an argument of `--flow`, as far as it has that form.
    pub fn text(&self) -> String {
        match self {
            Self::Text(stages) => stages.iter().map(TextStage::text).collect::<Vec<_>>().join(","),
            Self::File(path) => path.display().to_string(),
            Self::Baseline(_) | Self::LikePlan(_) | Self::LikeConfig(_) => String::new(),
        }
    }

    /// Makes sure that a run which goes on was started with this flow.
    ///
    /// # Errors
    /// If its flow is another one.
    pub fn ensure_same(&self, config: &Config) -> Result<()> {
        let mut other = config.clone();
        self.apply(&mut other)?;
        let names = |config: &Config| -> Vec<String> {
            config.quantize.flow.iter().map(StageConfig::label).collect()
        };
        ensure!(
            other.quantize == config.quantize,
            "a resumed run keeps its own flow ({}), and the one asked for ({}) differs from it; leave it out, or start \
             a new run",
            names(config).join(", "),
            names(&other).join(", ")
        );
        Ok(())
    }
}

impl TextStage {
    /// `MODULE[+MODULE...]:BITS[@WEIGHTS]`.
    fn text(&self) -> String {
        let method = self.weight_method.map_or(String::new(), |m| format!("@{}", m.name()));
        format!("{}:{}{method}", self.module.replace(',', "+"), self.bits)
    }

    fn resolve(&self, flow: &[StageConfig]) -> StageConfig {
        let own = flow.iter().find(|stage| stage.module.as_deref() == Some(&self.module));
        let mut stage = own.or(flow.first()).cloned().unwrap_or_default();
        stage.module = Some(self.module.clone());
        if own.is_none() {
            stage.name = String::new();
            stage.thaw_module();
        }
        let (weights, activations) = (stage.weights.take(), stage.activations.take());
        stage.weights = self
            .bits
            .weights
            .map(|width| weights_of(weights, self.weight_method, width, stage.epochs));
        stage.activations = self
            .bits
            .activations
            .map(|width| activations_of(activations, self.activation_method, width, stage.epochs));
        stage
    }
}

/// Settings of weights with another width, from those of a stage where the method is the same.
fn weights_of(
    base: Option<WeightQuantConfig>,
    method: Option<WeightMethod>,
    width: Width,
    epochs: u32,
) -> WeightQuantConfig {
    let same = base.filter(|base| method.is_none_or(|method| method == base.method()));
    let base = same.unwrap_or_else(|| {
        let mut base = WeightQuantConfig::of(method.unwrap_or_default());
        base.stretch(StageConfig::DEFAULT_EPOCHS, epochs);
        base
    });
    let layer_bits = BTreeMap::new();
    let Width { bits, n_levels, levels } = width;
    // a number of levels in the text goes before the stage's choice
    let levels = levels.or(base.levels.filter(|_| n_levels.is_none()));
    WeightQuantConfig { bits: Some(bits), n_levels, levels, layer_bits, ..base }
}

/// As [`weights_of`], for inputs.
fn activations_of(
    base: Option<ActivationQuantConfig>,
    method: Option<ActivationMethod>,
    width: Width,
    epochs: u32,
) -> ActivationQuantConfig {
    let same = base.filter(|base| method.is_none_or(|method| method == base.method()));
    let base = same.unwrap_or_else(|| {
        let mut base = ActivationQuantConfig::of(method.unwrap_or_default());
        base.stretch(StageConfig::DEFAULT_EPOCHS, epochs);
        base
    });
    let Width { bits, n_levels, levels } = width;
    let levels = levels.or(base.levels.filter(|_| n_levels.is_none()));
    ActivationQuantConfig { bits: Some(bits), n_levels, levels, ..base }
}

/// The stage with its epochs and learning rates, quantizing nothing.
fn without_quantizing(stage: &StageConfig) -> StageConfig {
    let name = match stage.module {
        Some(_) => format!("float_{}", stage.label()),
        None => stage.name.clone(),
    };
    let afterwards = Afterwards::Freeze;
    StageConfig {
        name,
        module: None,
        weights: None,
        activations: None,
        afterwards,
        ..stage.clone()
    }
}

/// What every layer is to be, for comparisons: no stage to be trained. A width means as many levels as it numbers,
/// whatever the method.
pub(crate) fn everything(bits: Bits) -> StageConfig {
    let all_levels = |width: Width| {
        let n_levels = width.n_levels.or((1..=8).contains(&width.bits).then(|| 1 << width.bits));
        Width { n_levels, ..width }
    };
    let (weights, activations) = (bits.weights.map(all_levels), bits.activations.map(all_levels));
    let module = Some("*".to_owned());
    let epochs = StageConfig::default().epochs;
    StageConfig {
        module,
        weights: weights.map(|width| weights_of(None, None, width, epochs)),
        activations: activations.map(|width| activations_of(None, None, width, epochs)),
        ..StageConfig::default()
    }
}

/// One stage over everything, with the epochs of the whole flow.
fn uniform(flow: &[StageConfig], method: WeightMethod, bits: Bits) -> StageConfig {
    let text = TextStage {
        module: "*".to_owned(),
        bits,
        weight_method: bits.weights.map(|_| method),
        activation_method: None,
    };
    let mut stage = flow.first().cloned().unwrap_or_default();
    let epochs = flow.iter().map(|stage| stage.epochs).sum::<u32>().max(1);
    if !flow.is_empty() {
        stretch::stage(&mut stage, epochs);
    }
    let mut stage = text.resolve(&[stage]);
    let levels = bits.weights.and_then(|width| width.levels);
    let levels = levels.map_or(String::new(), |levels| format!("_{levels}"));
    stage.name = format!("uniform_{method}_{bits}{levels}").replace('/', "-");
    stage.afterwards = Afterwards::Freeze; // no stage comes after it
    stage
}

/// Refuses a flow whose patterns match nothing in the network or overlap, before hours are spent on the stages before
/// them.
///
/// # Errors
/// Names the stage, the pattern and the nearest names, or the tensor that two stages claim.
pub(crate) fn check(config: &Config, net: &dyn Network) -> Result<()> {
    let mut claims = Vec::new();
    for (i, stage) in config.quantize.flow.iter().enumerate() {
        if let Some(claim) = stage.claim() {
            select::sites(net.store(), &claim.module, claim.first_layer, claim.last_layer)
                .with_context(|| format!("quantize.flow.{i}.module"))?;
            claims.push(claim);
        }
    }
    select::check_disjoint(net.store(), &claims).context("quantize.flow")?;
    frozen::check(config, net)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn last_entry(weights: &WeightQuantConfig) -> Option<(u32, f64)> {
        weights.settings.scheme().schedule().unwrap().entries().last()
    }

    fn published() -> Config {
        let weights = WeightQuantConfig { bits: Some(2), ..Default::default() };
        let fpn = StageConfig { name: "neck".to_owned(), ..StageConfig::mqat("fpn", weights) };
        let mut head = StageConfig {
            module: Some("head".to_owned()),
            activations: Some(ActivationQuantConfig { bits: Some(8), ..Default::default() }),
            epochs: 10,
            last_layer: false,
            ..StageConfig::default()
        };
        head.lr.base = 0.5;
        let mut config = Config::default();
        config.quantize.flow = vec![fpn, head];
        config
    }

    fn source(text: &str) -> FlowSource {
        text.parse().unwrap()
    }

    fn refused(text: &str) -> String {
        format!("{:#}", text.parse::<FlowSource>().unwrap_err())
    }

    #[test]
    fn bits_are_read_in_every_form_and_written_back() {
        let width = |bits, n_levels| Some(Width { n_levels, ..Width::of_bits(bits) });
        for (text, weights, activations, written) in [
            ("2", width(2, None), None, "w2"),
            ("w4", width(4, None), None, "w4"),
            ("a8", None, width(8, None), "a8"),
            ("w2a8", width(2, None), width(8, None), "w2a8"),
            ("2/4", width(2, Some(4)), None, "w2/4"),
            ("w2/4a8/255", width(2, Some(4)), width(8, Some(255)), "w2/4a8/255"),
        ] {
            let bits: Bits = text.parse().unwrap();
            assert_eq!(bits, Bits { weights, activations }, "{text}");
            assert_eq!(bits.to_string(), written);
            assert_eq!(written.parse::<Bits>().unwrap(), bits);
        }
        for bad in ["", "w", "2a8", "w2a", "two", "w2/a8", "-1", "2.5", "a8w2"] {
            let text = format!("{:#}", bad.parse::<Bits>().unwrap_err());
            assert!(text.contains("expected bits such as 2, w2a8"), "{bad}: {text}");
        }
    }

    #[test]
    fn a_flow_as_text_takes_the_rest_from_the_stage_of_its_module_or_the_first() {
        let mut config = published();
        source("head:w4a4, backbone:8,fpn:2/4").apply(&mut config).unwrap();
        let [head, backbone, fpn] = &config.quantize.flow[..] else { panic!() };
        // the head's stage has no weights: those of an own stage are made, in its epochs
        let weights = head.weights.as_ref().unwrap();
        assert_eq!((weights.bits, head.epochs, head.lr.base), (Some(4), 10, 0.5));
        assert_eq!(last_entry(weights), Some((9, 1.0)));
        assert_eq!(head.activations.as_ref().unwrap().bits, Some(4));
        assert!(!head.last_layer);
        assert_eq!((backbone.label().as_str(), backbone.epochs), ("backbone", 30));
        assert_eq!(backbone.weights.as_ref().unwrap().bits, Some(8));
        assert!(backbone.activations.is_none() && backbone.last_layer);
        let weights = fpn.weights.as_ref().unwrap();
        assert_eq!((fpn.name.as_str(), weights.bits, weights.n_levels), ("neck", Some(2), Some(4)));
    }

    #[test]
    fn a_stage_for_another_module_does_not_keep_what_it_quantizes() {
        let mut config = published();
        for stage in &mut config.quantize.flow {
            stage.frozen = Some("backbone,head.pose_pred".to_owned());
        }
        let frozen = |text: &str| -> Vec<Option<String>> {
            let mut config = config.clone();
            source(text).apply(&mut config).unwrap();
            config.quantize.flow.into_iter().map(|stage| stage.frozen).collect()
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(
            frozen("fpn:2,backbone:8"),
            [some("backbone,head.pose_pred"), some("head.pose_pred")]
        );
        assert_eq!(frozen("*:4"), [None]);
        let uniform = Baseline::Uniform { method: WeightMethod::Lsq, bits: "4".parse().unwrap() };
        FlowSource::Baseline(uniform).apply(&mut config).unwrap();
        assert_eq!(config.quantize.flow[0].frozen, None);
    }

    #[test]
    fn several_modules_and_globs_make_one_stage() {
        let FlowSource::Text(stages) = source("fpn+head.*:2,backbone.features.stage{1,2}:w8@inq")
        else {
            panic!()
        };
        let modules: Vec<&str> = stages.iter().map(|s| s.module.as_str()).collect();
        assert_eq!(modules, ["fpn,head.*", "backbone.features.stage{1,2}"]);
        assert_eq!(stages[1].weight_method, Some(WeightMethod::Inq));
    }

    #[test]
    fn what_is_no_flow_says_what_is_expected() {
        assert!(refused("fpn").contains("neither an existing plan file nor MODULE:BITS"));
        assert!(refused("fpn:2,:8").contains("names no module"));
        assert!(refused("fpn:two").contains("the bits of fpn"));
        let text = refused("fpn:2@inc");
        assert!(text.contains("\"inc\" is not a weight method, did you mean inq?"), "{text}");
        assert!(refused("fpn:a8@set").contains("activation method"));
        assert!(refused("fpn:2@inq+ste").contains("no activation bits"));
        let mut config = published();
        let text = format!("{:#}", source("fpn:9").apply(&mut config).unwrap_err());
        assert!(text.contains("quantize.flow.0.weights.bits: 9 is outside 1..=8"), "{text}");
        let text =
            format!("{:#}", source("head:2,head.cls_tower:4").apply(&mut config).unwrap_err());
        assert!(text.contains("quantized by stage head before"), "{text}");
    }

    #[test]
    fn a_uniform_baseline_has_the_epochs_of_the_flow_and_one_stage() {
        let mut config = published();
        let bits = "w4a8".parse().unwrap();
        let baseline = Baseline::Uniform { method: WeightMethod::Inq, bits };
        FlowSource::Baseline(baseline.clone()).apply(&mut config).unwrap();
        let [stage] = &config.quantize.flow[..] else { panic!() };
        assert_eq!((stage.module.as_deref(), stage.epochs), (Some("*"), 40));
        assert_eq!(stage.label(), "uniform_inq_w4a8");
        let weights = stage.weights.as_ref().unwrap();
        assert_eq!((weights.bits, weights.n_levels), (Some(4), None));
        assert_eq!(last_entry(weights), Some((38, 1.0)));
        assert_eq!(stage.activations.as_ref().unwrap().bits, Some(8));
        FlowSource::Baseline(baseline).ensure_same(&config).unwrap();
    }

    #[test]
    fn full_precision_keeps_the_budget_and_quantizes_nothing() {
        let mut config = published();
        let baseline = FlowSource::Baseline(Baseline::FullPrecision);
        baseline.apply(&mut config).unwrap();
        let [first, second] = &config.quantize.flow[..] else { panic!() };
        assert_eq!((first.label().as_str(), first.epochs), ("float_neck", 30));
        assert_eq!(
            (second.label().as_str(), second.epochs, second.lr.base),
            ("float_head", 10, 0.5)
        );
        assert!(config.quantize.flow.iter().all(|s| s.module.is_none() && s.weights.is_none()));
        assert!(config.training.bn_always && !published().training.bn_always);
        baseline.ensure_same(&config).unwrap();
        // So it is beside a plan; a flow that quantizes leaves the key alone.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        FlowPlan::new(published().quantize.flow).write(&path).unwrap();
        let mut control = published();
        FlowSource::like(path).unwrap().apply(&mut control).unwrap();
        assert!(control.training.bn_always);
        let mut quantized = published();
        source("fpn:2").apply(&mut quantized).unwrap();
        assert!(!quantized.training.bn_always);
    }

    #[test]
    fn a_run_that_goes_on_takes_its_own_flow_and_no_other() {
        let mut config = published();
        source("fpn:2,head:8").apply(&mut config).unwrap();
        source("fpn:2,head:8").ensure_same(&config).unwrap();
        source("fpn:2,head:w8").ensure_same(&config).unwrap();
        for other in ["fpn:2", "head:8,fpn:2", "fpn:3,head:8"] {
            let text = source(other).ensure_same(&config).unwrap_err().to_string();
            assert!(text.contains("keeps its own flow (neck, head)"), "{text}");
        }
    }

    #[test]
    fn a_plan_file_is_read_back_and_checked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("plan.json");
        let plan = FlowPlan {
            made_by: Some(MadeBy { mqat: "0".to_owned(), ..MadeBy::default() }),
            table: vec![PlanRow {
                module: "fpn".to_owned(),
                sensitivity: [(2, 0.5), (8, 1e-9)].into(),
                ..PlanRow::default()
            }],
            ..FlowPlan::new(published().quantize.flow)
        };
        plan.write(&path).unwrap();
        assert_eq!(FlowPlan::read(&path).unwrap(), plan);
        let mut config = Config::default();
        source(path.to_str().unwrap()).apply(&mut config).unwrap();
        assert_eq!(config.quantize.flow, plan.flow);

        let refused = |json: &str| {
            std::fs::write(&path, json).unwrap();
            format!("{:#}", FlowPlan::read(&path).unwrap_err())
        };
        assert!(refused("[]").contains("has no number format"));
        assert!(refused(r#"{"format": 2, "flow": []}"#).contains("reads up to 1"));
        let text = refused(r#"{"format": 1, "flow": [{"modul": "fpn"}]}"#);
        assert!(text.contains("flow.0.modul: unknown key, did you mean module?"), "{text}");
        let text = refused(r#"{"format": 1, "flow": [{"module": "fpn"}]}"#);
        assert!(text.contains("flow.0.module: fpn, but neither weights nor"), "{text}");
        let missing = source("nowhere.json").apply(&mut config).unwrap_err();
        assert!(format!("{missing:#}").contains("nowhere.json"), "{missing:#}");
    }
}
