//! What all trials of a search share: the config without its stages, the modules, the folder, identities.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;
use tch::Device;

use super::request::{Budget, SearchRequest, StageEpochs};
use super::rows::LayerRow;
use super::trial::{Trial, TrialPlace};
use crate::artifact::network::blank_network;
use crate::nn::Network;
use crate::quant::levels::{MAX_LEVELS, bits_of};
use crate::quant::{ActivationQuantConfig, BitWidth, WeightQuantConfig, select};
use crate::run::config::Config;
use crate::run::flow::{Baseline, Bits, FlowSource, TextStage, Width};
use crate::run::home::Home;
use crate::run::stretch;
use crate::train::{Afterwards, StageConfig};

/// A module of the search.
#[derive(Debug, Clone)]
pub(super) struct Module {
    /// Its pattern.
    pub pattern: String,
    /// Learnt numbers in it: its layers' and those of the norms beside them.
    pub num_parameters: usize,
    /// Its convolutions that are quantized, by name, with their numbers of weights.
    pub layers: Vec<(String, usize)>,
}

/// Of a layer's weights, and of its inputs where these are quantized.
pub(super) type Quantizers = (WeightQuantConfig, Option<ActivationQuantConfig>);

pub(super) struct Setup {
    /// What every trial begins with: pretrained weights, no stages; its own flow is in `template`.
    pub config: Config,
    /// The flow of the user's config, where stages take their settings from.
    template: Vec<StageConfig>,
    pub home: Home,
    /// Folder of the dataset.
    pub data: PathBuf,
    pub modules: Vec<Module>,
    /// Where trials lie: in the search's folder.
    pub place: TrialPlace,
    request: SearchRequest,
}

/// Epochs between validations that no stage has: only its end is measured, always.
const NEVER: u32 = u32::MAX;

impl Setup {
    pub fn open(request: &SearchRequest) -> Result<Self> {
        check_request(request)?;
        let home = request.run.home()?;
        let select = &request.run.select;
        let mut config = select.resolve(&home)?;
        start_from_full_precision(&mut config, request.from.as_deref())?;
        let template = std::mem::take(&mut config.quantize.flow);
        config.training.full_precision = None;
        // A trial is measured at the end of each stage, and resumes from its last epoch.
        config.training.valid_every = NEVER;
        config.training.ckpt_every = 1;
        config.training.keep = 1;
        config.training.max_steps = None;
        if request.jobs > 1 && config.runtime.num_threads == 0 {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            config.runtime.num_threads = (cores / request.jobs).max(1);
        }
        let data = home.dataset(select.problem(), &config.data.train)?;
        let data = std::path::absolute(&data).unwrap_or(data);
        let dir = request.dir.clone().unwrap_or_else(|| {
            home.logs.join(select.problem()).join(select.topology()).join("search")
        });
        let dir = std::path::absolute(&dir).unwrap_or(dir);
        let inputs = json!({
            "weights": fingerprint(Path::new(&config.experiment.url))?,
            "training": fingerprint(&data.join(&config.data.train))?,
            "validation": fingerprint(&data.join(&config.data.valid))?,
        });
        let experiment = Path::new(select.problem()).join(select.topology());
        let net = blank_network(&config, Device::Cpu)?;
        let mut setup = Self {
            config,
            template,
            home,
            data,
            modules: Vec::new(),
            place: TrialPlace { dir, experiment, inputs },
            request: request.clone(),
        };
        if setup.request.modules.is_empty() {
            setup.request.modules = net.store().modules();
        }
        setup.modules = setup.find_modules(net.as_ref())?;
        Ok(setup)
    }

    /// The search's modules in the network; none may share a layer with another.
    fn find_modules(&self, net: &dyn Network) -> Result<Vec<Module>> {
        let mut modules: Vec<Module> = Vec::new();
        for pattern in &self.request.modules {
            let stage = self.stage_of(pattern, self.request.trial_bits)?;
            let sites = select::sites(net.store(), pattern, stage.first_layer, stage.last_layer)
                .context("--modules")?;
            let layers: Vec<_> = sites.iter().map(|s| (s.name.clone(), s.num_weights())).collect();
            for (name, _) in &layers {
                if let Some(other) =
                    modules.iter().find(|m| m.layers.iter().any(|(n, _)| n == name))
                {
                    bail!(
                        "--modules: {name} is in {} and in {pattern}; each layer may be in one",
                        other.pattern
                    );
                }
            }
            modules.push(Module {
                pattern: pattern.clone(),
                num_parameters: num_parameters(net, pattern)?,
                layers,
            });
        }
        Ok(modules)
    }

    /// How a layer is quantized, with the config's own number of levels whatever the width; `None` outside of the modules.
    pub fn quantizers(&self, layer: &str) -> Result<Option<Quantizers>> {
        let module = self.modules.iter().find(|m| m.layers.iter().any(|(n, _)| n == layer));
        let Some(module) = module else { return Ok(None) };
        let stage = self.stage_of(&module.pattern, self.request.trial_bits)?;
        let n_levels = self.n_levels_of(&module.pattern);
        Ok(stage.weights.map(|w| (WeightQuantConfig { n_levels, ..w }, stage.activations)))
    }

    /// The index of a module by its pattern.
    pub fn module(&self, pattern: &str) -> Result<usize> {
        let names: Vec<&str> = self.modules.iter().map(|m| m.pattern.as_str()).collect();
        names.iter().position(|n| *n == pattern).with_context(|| {
            format!(
                "{pattern:?} is none of the search's modules ({}); name it in --modules",
                names.join(", ")
            )
        })
    }

    /// The bits that the request gives, checked.
    pub fn given_bits(&self, given: &[(String, u32)]) -> Result<Vec<(String, u32)>> {
        for (pattern, _) in given {
            self.module(pattern).context("--assign")?;
        }
        for module in &self.modules {
            let times = given.iter().filter(|(pattern, _)| *pattern == module.pattern).count();
            ensure!(times == 1, "--assign names {} {times} times, expected once", module.pattern);
        }
        Ok(given.to_vec())
    }

    /// The stage of the user's config that a module takes its settings from.
    fn template_of(&self, pattern: &str) -> Option<&StageConfig> {
        own_stage(&self.template, pattern).or(self.template.first())
    }

    /// The number of levels of the module's own stage, which the width that it is one of has (4 levels: 2 bits);
    /// `--levels` goes before.
    fn n_levels_of(&self, pattern: &str) -> Option<u32> {
        own_levels(&self.template, pattern).filter(|_| self.request.levels.is_none())
    }

    /// The stage that quantizes a module, as long as the config says.
    fn stage_of(&self, pattern: &str, bits: u32) -> Result<StageConfig> {
        let inputs = self.template_of(pattern).and_then(|s| s.activations.as_ref());
        let stage = TextStage {
            module: pattern.to_owned(),
            bits: Bits {
                weights: Some(Width {
                    bits,
                    n_levels: self.n_levels_of(pattern).filter(|&n| bits_of(n) == bits),
                    levels: self.request.levels,
                }),
                activations: inputs.map(width_of_inputs),
            },
            weight_method: self.request.method,
            activation_method: None,
        };
        let mut config = self.config.clone();
        config.quantize.flow = self.template.clone();
        FlowSource::Text(vec![stage]).apply(&mut config)?;
        let mut stage = config.quantize.flow.remove(0);
        stage.first_layer &= !self.request.keep_first_layer;
        stage.last_layer &= !self.request.keep_last_layer;
        if let Some(afterwards) = self.request.afterwards {
            stage.afterwards = afterwards;
            let mut problems = Vec::new();
            stage.check_together(&format!("the stage of {pattern}"), &mut problems);
            ensure!(problems.is_empty(), "--afterwards: {}", problems.join("; "));
        }
        Ok(stage)
    }

    /// The stages that quantize these modules, as long as a plan is to train them.
    pub fn plan_stages(&self, picks: &[(&str, u32)]) -> Result<Vec<StageConfig>> {
        picks.iter().map(|(pattern, bits)| self.stage_of(pattern, *bits)).collect()
    }

    /// The same, as long as trials are.
    pub fn stages(&self, picks: &[(&str, u32)]) -> Result<Vec<StageConfig>> {
        let mut stages = self.plan_stages(picks)?;
        if let Some(epochs) = self.request.budget.epochs {
            stages.iter_mut().for_each(|s| stretch::stage(s, epochs));
        }
        Ok(stages)
    }

    /// One stage over all modules with the layers' own bits, as long as the flow's stages together.
    pub fn layerwise_stage(&self, layers: &[LayerRow]) -> Result<StageConfig> {
        let widest = layers.iter().map(|l| l.bits).max().context("no layer was chosen")?;
        let mut config = self.config.clone();
        let patterns: Vec<(&str, u32)> =
            self.modules.iter().map(|m| (m.pattern.as_str(), widest)).collect();
        config.quantize.flow = self.plan_stages(&patterns)?;
        let method =
            config.quantize.flow[0].weights.as_ref().map(|w| w.method()).unwrap_or_default();
        let inputs = config.quantize.flow[0].activations.as_ref().map(width_of_inputs);
        let levels = self.request.levels;
        let widest = Width { levels, ..Width::of_bits(widest) };
        let bits = Bits { weights: Some(widest), activations: inputs };
        let (first_layer, last_layer) =
            (config.quantize.flow[0].first_layer, config.quantize.flow[0].last_layer);
        FlowSource::Baseline(Baseline::Uniform { method, bits }).apply(&mut config)?;
        let mut stage = config.quantize.flow.remove(0);
        stage.name = "layerwise".to_owned();
        stage.module = Some(self.request.modules.join(","));
        (stage.first_layer, stage.last_layer) = (first_layer, last_layer);
        let weights = stage.weights.as_mut().context("the stage quantizes no weights")?;
        self.put_layer_bits(weights, layers.iter());
        Ok(stage)
    }

    /// A stage for each module in this order, with the layers' own bits.
    pub fn layerwise_stages(
        &self,
        layers: &[LayerRow],
        order: &[String],
    ) -> Result<Vec<StageConfig>> {
        let stage = |pattern: &String| -> Result<StageConfig> {
            let own = || layers.iter().filter(|l| l.module == *pattern);
            let widest = own().map(|l| l.bits).max().context("no layer was chosen")?;
            let mut stage = self.stage_of(pattern, widest)?;
            let weights = stage.weights.as_mut().context("the stage quantizes no weights")?;
            self.put_layer_bits(weights, own());
            Ok(stage)
        };
        order.iter().map(stage).collect()
    }

    fn put_layer_bits<'a>(
        &self,
        weights: &mut WeightQuantConfig,
        layers: impl Iterator<Item = &'a LayerRow>,
    ) {
        let width = |l: &LayerRow| {
            let n_levels = self.n_levels_of(&l.module).filter(|&n| bits_of(n) == l.bits);
            BitWidth { n_levels, ..BitWidth::of_bits(l.bits) }
        };
        weights.layer_bits = layers.map(|l| (l.layer.clone(), width(l))).collect();
        (weights.bits, weights.n_levels) = (None, None);
    }

    /// A trial that quantizes these modules in this order, starting from `parent`, which has all but the last.
    pub fn trial(&self, picks: &[(&str, u32)], parent: Option<Rc<Trial>>) -> Result<Rc<Trial>> {
        let name: Vec<String> =
            picks.iter().map(|(m, bits)| format!("{}-{bits}bit", plain(m))).collect();
        let (name, config) = (name.join("."), self.config.clone());
        Ok(Rc::new(self.with_stages(name, config, self.stages(picks)?, parent)?))
    }

    /// The trial that a module's stage is compared with: the same training without quantizing.
    pub fn reference(&self, stage: &StageConfig) -> Result<Rc<Trial>> {
        let stage = StageConfig {
            name: "reference".to_owned(),
            module: None,
            weights: None,
            activations: None,
            afterwards: Afterwards::Freeze,
            ..stage.clone()
        };
        let mut config = self.config.clone();
        // Its batch norms too, so that a trial gains nothing by those alone.
        config.training.bn_always = true;
        Ok(Rc::new(self.with_stages("reference".to_owned(), config, vec![stage], None)?))
    }

    /// A trial of this config with these stages.
    fn with_stages(
        &self,
        name: String,
        mut config: Config,
        stages: Vec<StageConfig>,
        parent: Option<Rc<Trial>>,
    ) -> Result<Trial> {
        config.quantize.flow = stages;
        config.training.train_images = self.train_images(&config).or(config.training.train_images);
        let problems = config.problems();
        ensure!(problems.is_empty(), "trial {name}: {}", problems.join("; "));
        Trial::new(&self.place, name, config, parent)
    }

    /// Images of an epoch, where the budget limits them.
    fn train_images(&self, config: &Config) -> Option<usize> {
        let Budget { images, steps, .. } = self.request.budget;
        let by_steps = steps.map(|steps| {
            let stage = &config.quantize.flow[0];
            let batch = stage.batch_size.unwrap_or(config.data.bs_train);
            usize::try_from(steps.div_ceil(u64::from(stage.epochs))).unwrap_or(usize::MAX) * batch
        });
        images.or(by_steps)
    }
}

/// The stage of a flow that quantizes this module.
fn own_stage<'a>(flow: &'a [StageConfig], pattern: &str) -> Option<&'a StageConfig> {
    flow.iter().find(|stage| stage.module.as_deref() == Some(pattern))
}

/// The number of levels that a flow gives a module by a stage of its own: that of another module says nothing of it.
fn own_levels(flow: &[StageConfig], pattern: &str) -> Option<u32> {
    own_stage(flow, pattern)?.weights.as_ref()?.n_levels
}

fn check_request(request: &SearchRequest) -> Result<()> {
    ensure!(!request.widths.is_empty(), "--bits is empty, expected widths such as 2,4,8");
    for bits in request.widths.iter().chain([&request.trial_bits]) {
        ensure!((1..=8).contains(bits), "{bits} bits is outside 1..=8");
    }
    ensure!(
        !(request.layerwise && request.walk.is_some()),
        "--layerwise quantizes all modules in one stage: there are no --orders to try"
    );
    ensure!(
        !request.layerwise || request.assign.is_empty(),
        "--layerwise searches the bits of layers, and --assign gives those of modules; leave one out"
    );
    ensure!(
        request.assign.is_empty() || request.walk.is_some() || request.out.is_some(),
        "with --assign there are no bits to search; pass --orders to score orders, or --out to write the plan"
    );
    check_flow(request)?;
    let TraceLimits { images, batch, probes, error } = TraceLimits::of(request);
    ensure!(
        images > 0 && batch > 0 && batch <= images,
        "--trace-images is {images} and --trace-batch {batch}, expected 1 or more, and no more in a batch than there are"
    );
    ensure!(
        probes >= 2,
        "--trace-probes is {probes}, expected 2 or more: one has no standard error"
    );
    if let Some(margin) = request.first_margin {
        ensure!(
            margin >= 0.0 && margin.is_finite(),
            "--first-margin is {margin}, must be at least 0 (points of percent)"
        );
    }
    ensure!(error > 0.0, "--trace-error is {error}, expected more than 0");
    Ok(())
}

/// What is asked of the plan's stages.
fn check_flow(request: &SearchRequest) -> Result<()> {
    let has_stages = !request.layerwise || request.sequential;
    ensure!(
        request.layerwise || !request.sequential,
        "--sequential arranges the bits of layers in stages of modules; pass --layerwise with it"
    );
    for (option, given) in [
        ("--afterwards", request.afterwards.is_some()),
        ("--stage-epochs", request.stage_epochs.is_some()),
    ] {
        ensure!(
            has_stages || !given,
            "{option} cannot act: --layerwise makes one stage; pass --sequential for one of each module"
        );
    }
    ensure!(
        request.stage_epochs.is_none() || request.out.is_some(),
        "--stage-epochs shares the epochs of the plan's stages; pass --out to write the plan"
    );
    ensure!(
        request.afterwards.is_none() || request.out.is_some() || request.walk.is_some(),
        "--afterwards is about several stages, and each trial has one; pass --out to write the plan, or --orders"
    );
    ensure!(
        request.stage_epochs != Some(StageEpochs::Sensitivity) || request.assign.is_empty(),
        "--stage-epochs sensitivity needs sensitivities, and with --assign none are measured; pass --stage-epochs equal"
    );
    Ok(())
}

struct TraceLimits {
    images: usize,
    batch: usize,
    probes: usize,
    error: f64,
}

impl TraceLimits {
    fn of(request: &SearchRequest) -> Self {
        let t = &request.trace;
        Self { images: t.images, batch: t.batch, probes: t.max_probes, error: t.relative_error }
    }
}

/// Trials start from weights that were trained in full precision: those of `from`, or the config's.
fn start_from_full_precision(config: &mut Config, from: Option<&Path>) -> Result<()> {
    if let Some(from) = from {
        config.experiment.pretrained = true;
        let from = std::path::absolute(from).unwrap_or_else(|_| from.to_owned());
        config.experiment.url = from.display().to_string();
    }
    ensure!(
        config.experiment.pretrained,
        "a search starts from trained full-precision weights, and the config has none (experiment.pretrained is \
         false); name a checkpoint with --from FILE, for example stage_0_full_precision.safetensors of a run"
    );
    let url = Path::new(&config.experiment.url);
    ensure!(
        url.is_file(),
        "no file {} with the full-precision weights; put it there, or name a checkpoint with --from FILE",
        url.display()
    );
    Ok(())
}

/// Learnt numbers of the layers that run under a pattern.
fn num_parameters(net: &dyn Network, pattern: &str) -> Result<usize> {
    let pattern = select::Pattern::parse(pattern)?;
    let layers = net.layers();
    let covered = |name: &str| select::covers_in(net.store(), &pattern, name);
    let inside = layers.iter().filter(|l| l.uses > 0 && covered(&l.layer.name));
    Ok(inside.map(|l| l.layer.parameters).sum())
}

fn width_of_inputs(inputs: &ActivationQuantConfig) -> Width {
    let by_levels = || bits_of(inputs.n_levels.unwrap_or(MAX_LEVELS));
    let ActivationQuantConfig { bits, n_levels, levels, .. } = *inputs;
    Width { bits: bits.unwrap_or_else(by_levels), n_levels, levels }
}

/// A pattern as part of a file's name.
fn plain(pattern: &str) -> String {
    StageConfig { module: Some(pattern.to_owned()), ..StageConfig::default() }.label()
}

/// CRC-32C and length of a file: tells versions of it apart, not forgeries.
fn fingerprint(path: &Path) -> Result<String> {
    let doing = || format!("reading {}", path.display());
    let mut file = fs::File::open(path).with_context(doing)?;
    let (mut crc, mut length) = (0, 0u64);
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut buffer).with_context(doing)?;
        if n == 0 {
            return Ok(format!("{crc:08x}-{length}"));
        }
        crc = crc32c::crc32c_append(crc, &buffer[..n]);
        length += n as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_of_the_modules_own_stage() {
        let three = WeightQuantConfig { n_levels: Some(3), ..Default::default() };
        let two_bits = WeightQuantConfig { bits: Some(2), ..Default::default() };
        let flow = [StageConfig::mqat("fpn", three), StageConfig::mqat("head", two_bits)];
        assert_eq!(own_levels(&flow, "fpn"), Some(3));
        assert_eq!(own_levels(&flow, "head"), None);
        // Of no stage: settings of the first one, but not its levels.
        assert_eq!(own_levels(&flow, "backbone"), None);
    }
}
