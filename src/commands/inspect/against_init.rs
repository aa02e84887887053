//! `mqat inspect FILE --against-init`: how far a network's weights have come from their initial values, and whether every
//! pyramid level has anything to learn.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::super::batch_norm::TrainingBatches;
use crate::artifact::kind::Strictness;
use crate::artifact::network::new_network;
use crate::artifact::{Asked, Stored, open, weights};
use crate::nn::Network;
use crate::run::Request;
use crate::run::config::Names;
use crate::topology::LevelTargets;

/// A feature pyramid counts as trained where the cosine of every layer with its initial values is below this.
const MAX_COSINE: f64 = 0.5;
/// And where the kurtosis of every layer's weights is above this; uniform ones, as they begin, have 1.8, normal ones 3.
const MIN_KURTOSIS: f64 = 2.5;
/// The module that is judged.
const JUDGED: &str = "fpn";

/// What `mqat inspect FILE --against-init` is asked.
#[derive(Debug, Clone)]
pub struct AgainstInitRequest {
    /// The file.
    pub file: PathBuf,
    /// Config and dataset; `--seed` is that of the initial values.
    pub run: Request,
    /// Whether pyramid levels are counted: a dataset was named.
    pub counts_levels: bool,
    /// Training batches to count them on.
    pub batches: usize,
}

/// A file's weights beside their initial values.
#[derive(Debug, Serialize)]
pub struct AgainstInitReport {
    /// The file.
    #[serde(serialize_with = "crate::io::path_text")]
    pub path: PathBuf,
    /// Seed of the initial values.
    pub seed: u64,
    /// Every layer with weights.
    pub layers: Vec<LayerAgainstInit>,
    /// The modules.
    pub modules: Vec<ModuleAgainstInit>,
    /// Targets of each pyramid level; none where they were not counted.
    pub levels: Option<Vec<LevelTargets>>,
    /// Images that they were counted on.
    pub num_images: usize,
    /// The judgement.
    pub verdict: Verdict,
}

/// A layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LayerAgainstInit {
    /// Its name.
    pub name: String,
    /// The module that it is in.
    #[serde(skip)]
    pub module: String,
    /// Number of weights.
    pub num_weights: usize,
    /// Cosine of the angle between the weights and their initial values.
    pub cosine: f64,
    /// Kurtosis of the weights: 1.8 where they are uniform, 3 where they are normal.
    pub kurtosis: f64,
    /// Norm of the weights over that of their initial values.
    pub gain: f64,
}

/// A module's layers in short.
#[derive(Debug, Serialize)]
pub struct ModuleAgainstInit {
    /// Its name.
    pub name: String,
    /// Its layers with weights.
    pub num_layers: usize,
    /// Of their cosines.
    pub cosine: Spread,
    /// Of their kurtoses.
    pub kurtosis: Spread,
    /// Of their gains.
    pub gain: Spread,
}

/// Smallest, middle and largest.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Spread {
    /// The smallest.
    pub min: f64,
    /// The median.
    pub median: f64,
    /// The largest.
    pub max: f64,
}

/// Whether the network is trained, by what its feature pyramid shows.
#[derive(Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Cosine of every layer of the pyramid below 0.5; null where there is no module `fpn`.
    pub has_left_its_start: Option<bool>,
    /// Kurtosis of every layer of the pyramid above 2.5; null likewise.
    pub is_bell_shaped: Option<bool>,
    /// Every pyramid level gets targets; null where they were not counted.
    pub uses_every_level: Option<bool>,
    /// All three; null where one is not known and none fails.
    pub is_trained: Option<bool>,
}

/// Compares a file's weights with what they were before any training.
///
/// # Errors
/// If the file cannot be read, its seed is not known, or the dataset cannot be read.
pub fn inspect_against_init(request: &AgainstInitRequest) -> Result<AgainstInitReport> {
    let home = request.run.home()?;
    let names = if request.counts_levels { Names::Dataset } else { Names::Config };
    let select = &request.run.select;
    let artifact = open(&request.file, &Asked::weights(select, &home, names))?;
    let mut config = artifact.config.clone();
    config.experiment.seed = seed_of(&request.file, select.seed)?;
    let (net, _) = artifact.network(Device::Cpu, Strictness::Strict, Stored::AsComputed)?;
    let start = new_network(&config, Device::Cpu)?;
    let layers = layers(net.as_ref(), start.as_ref())?;
    let modules = modules(&layers);
    let (levels, num_images) = match request.counts_levels {
        true => {
            let size = config.data.bs_train;
            let batches = TrainingBatches::open_at_most(&request.run, &home, &config, size)?;
            let (levels, num_images) = batches.level_targets(request.batches)?;
            (Some(levels), num_images)
        }
        false => (None, 0),
    };
    let verdict = Verdict::of(&modules, levels.as_deref());
    let (path, seed) = (request.file.clone(), config.experiment.seed);
    Ok(AgainstInitReport { path, seed, layers, modules, levels, num_images, verdict })
}

/// The seed of the initial values: the one given, or that of the run that wrote the file, where it began with them.
fn seed_of(file: &Path, given: Option<u64>) -> Result<u64> {
    if let Some(seed) = given {
        return Ok(seed);
    }
    let at = file.display();
    let give = "give the seed of the training that began with random values as --seed N";
    let meta = weights::meta_of(file)?.with_context(|| {
        format!("{at} holds no seed, and initial values are a function of it: {give}")
    })?;
    ensure!(meta.imported.is_none(), "{at} was imported from another program: {give}");
    let began_with = &meta.config["experiment"];
    ensure!(
        began_with["pretrained"] != true,
        "the run of {at} began with the weights of {}, whose initial values it does not know: {give}",
        began_with["url"]
    );
    Ok(meta.seed)
}

fn layers(net: &dyn Network, start: &dyn Network) -> Result<Vec<LayerAgainstInit>> {
    let initial = start.store();
    let mut layers = Vec::new();
    for site in net.store().sites().iter() {
        let name = site.weight_name();
        let before = initial.get(&name).with_context(|| format!("no initial {name}"))?;
        // Zeros have no direction to leave.
        if before.count_nonzero(None::<i64>).int64_value(&[]) > 0 {
            let module = net.store().module_of(&site.name);
            layers.push(LayerAgainstInit::of(&site.name, module, &site.weight, &before));
        }
    }
    Ok(layers)
}

impl LayerAgainstInit {
    fn of(name: &str, module: String, weight: &Tensor, before: &Tensor) -> Self {
        let flat = |t: &Tensor| t.detach().to_kind(Kind::Double).reshape([-1]);
        let (w, w0) = (flat(weight), flat(before));
        let norm = |t: &Tensor| t.square().sum(Kind::Double).sqrt().double_value(&[]);
        let central = &w - w.mean(Kind::Double);
        let moment = |power: i64| central.pow_tensor_scalar(power).mean(Kind::Double);
        Self {
            name: name.to_owned(),
            module,
            num_weights: w.numel(),
            cosine: (&w * &w0).sum(Kind::Double).double_value(&[]) / (norm(&w) * norm(&w0)),
            kurtosis: moment(4).double_value(&[]) / moment(2).double_value(&[]).powi(2),
            gain: norm(&w) / norm(&w0),
        }
    }
}

fn modules(layers: &[LayerAgainstInit]) -> Vec<ModuleAgainstInit> {
    let mut names: Vec<&str> = Vec::new();
    for layer in layers {
        if !names.contains(&layer.module.as_str()) {
            names.push(&layer.module);
        }
    }
    let module = |name: &str| {
        let own: Vec<_> = layers.iter().filter(|l| l.module == name).collect();
        let spread = |of: fn(&LayerAgainstInit) -> f64| Spread::of(own.iter().map(|l| of(l)));
        ModuleAgainstInit {
            name: name.to_owned(),
            num_layers: own.len(),
            cosine: spread(|l| l.cosine),
            kurtosis: spread(|l| l.kurtosis),
            gain: spread(|l| l.gain),
        }
    };
    names.into_iter().map(module).collect()
}

impl Spread {
    /// Of at least one number.
    fn of(values: impl Iterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = values.collect();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Self { min: sorted[0], median: (low + high) / 2.0, max: sorted[sorted.len() - 1] }
    }
}

impl Verdict {
    fn of(modules: &[ModuleAgainstInit], levels: Option<&[LevelTargets]>) -> Self {
        let pyramid = modules.iter().find(|m| m.name == JUDGED);
        // NaN (a layer of zeros) is no sign of training
        let has_left_its_start = pyramid.map(|m| m.cosine.max < MAX_COSINE);
        let is_bell_shaped = pyramid.map(|m| m.kurtosis.min > MIN_KURTOSIS);
        let uses_every_level = levels.map(|levels| levels.iter().all(|l| l.num_targets > 0));
        let all = [has_left_its_start, is_bell_shaped, uses_every_level];
        let is_trained = match all {
            _ if all.contains(&Some(false)) => Some(false),
            _ if all.contains(&None) => None,
            _ => Some(true),
        };
        Self { has_left_its_start, is_bell_shaped, uses_every_level, is_trained }
    }
}

impl AgainstInitReport {
    /// For a terminal; with every layer, or the modules alone.
    pub fn text(&self, all_layers: bool) -> String {
        let mut out = String::new();
        let _ = writeln!(
            out,
            "{} against its initial values (seed {})\n\n{:<44} {:>24} {:>24} {:>24}",
            self.path.display(),
            self.seed,
            "module: min / median / max",
            "cosine",
            "kurtosis",
            "gain"
        );
        for m in &self.modules {
            let name = format!("{} ({} layers)", m.name, m.num_layers);
            let [cosine, kurtosis, gain] = [m.cosine, m.kurtosis, m.gain].map(Spread::text);
            let _ = writeln!(out, "{name:<44} {cosine:>24} {kurtosis:>24} {gain:>24}");
        }
        if all_layers {
            let _ = writeln!(
                out,
                "\n{:<44} {:>9} {:>8} {:>8} {:>8}",
                "layer", "weights", "cosine", "kurtosis", "gain"
            );
            for l in &self.layers {
                let _ = writeln!(
                    out,
                    "{:<44} {:>9} {:>8.3} {:>8.2} {:>8.3}",
                    l.name, l.num_weights, l.cosine, l.kurtosis, l.gain
                );
            }
        }
        self.write_levels(&mut out);
        let _ = write!(out, "\n{}", self.verdict.text());
        out
    }

    fn write_levels(&self, out: &mut String) {
        let Some(levels) = &self.levels else {
            let _ = writeln!(
                out,
                "\npyramid levels: NOT COUNTED, no dataset was named; give --data DIR to see which levels get targets"
            );
            return;
        };
        let _ = writeln!(out, "\npyramid levels: targets on {} training images", self.num_images);
        for level in levels {
            let dead = if level.num_targets == 0 { "  DEAD: nothing to learn" } else { "" };
            let _ = writeln!(out, "  {:<30} {:>9}{dead}", level.name, level.num_targets);
        }
    }
}

impl Spread {
    fn text(self) -> String {
        format!("{:.3} / {:.3} / {:.3}", self.min, self.median, self.max)
    }
}

impl Verdict {
    fn has_met_any(&self) -> bool {
        [self.has_left_its_start, self.is_bell_shaped, self.uses_every_level].contains(&Some(true))
    }

    fn text(&self) -> String {
        let said = |is: Option<bool>| match is {
            Some(true) => "yes",
            Some(false) => "no",
            None => "not known",
        };
        let head = match self.is_trained {
            Some(true) => "is trained by these criteria",
            Some(false) => "is NOT trained by these criteria",
            None if self.has_met_any() => "is trained as far as was looked",
            None => "is not judged",
        };
        format!(
            "the network {head}: every {JUDGED} layer's cosine below {MAX_COSINE}: {}; kurtosis above {MIN_KURTOSIS}: {}; every \
             pyramid level gets targets: {}",
            said(self.has_left_its_start),
            said(self.is_bell_shaped),
            said(self.uses_every_level)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cosine_kurtosis_and_gain_by_hand() {
        let before = Tensor::from_slice(&[1.0f32, 0.0, 0.0, 1.0]).reshape([2, 2, 1, 1]);
        let weight = Tensor::from_slice(&[2.0f32, 0.0, 2.0, 0.0]).reshape([2, 2, 1, 1]);
        let found = LayerAgainstInit::of("fpn.a", "fpn".to_owned(), &weight, &before);
        // 2 / (sqrt(8) sqrt(2)); values 1 off their mean have kurtosis 1
        assert!((found.cosine - 0.5).abs() < 1e-12, "{found:?}");
        assert!((found.kurtosis - 1.0).abs() < 1e-12 && (found.gain - 2.0).abs() < 1e-12);
        let peaked = Tensor::from_slice(&[0.0f32, 0.0, 0.0, 4.0]);
        // mean 1: deviations -1, -1, -1, 3: fourth moment 21, variance 3
        let found = LayerAgainstInit::of("fpn.a", "fpn".to_owned(), &peaked, &before);
        assert!((found.kurtosis - 21.0 / 9.0).abs() < 1e-12, "{found:?}");
        let same = LayerAgainstInit::of("fpn.a", "fpn".to_owned(), &before, &before);
        assert!((same.cosine - 1.0).abs() < 1e-12 && (same.gain - 1.0).abs() < 1e-12);
    }

    #[test]
    fn spreads_have_the_middle_of_an_even_number() {
        let spread = |values: &[f64]| Spread::of(values.iter().copied());
        assert_eq!(spread(&[3.0, 1.0, 2.0]), Spread { min: 1.0, median: 2.0, max: 3.0 });
        assert_eq!(spread(&[4.0, 1.0]), Spread { min: 1.0, median: 2.5, max: 4.0 });
    }

    #[test]
    fn one_layer_at_its_start_or_one_dead_level_is_enough_for_a_no() {
        let layer = |name: &str, cosine, kurtosis| LayerAgainstInit {
            module: name.split('.').next().unwrap().to_owned(),
            name: name.to_owned(),
            num_weights: 1,
            cosine,
            kurtosis,
            gain: 1.0,
        };
        let verdict = |layers: &[LayerAgainstInit], counts: Option<[usize; 2]>| {
            let levels = counts.map(|counts| {
                counts.map(|num_targets| LevelTargets { name: "level".to_owned(), num_targets })
            });
            Verdict::of(&modules(layers), levels.as_ref().map(|l| l.as_slice()))
        };
        let good = [layer("fpn.a", 0.2, 3.1), layer("fpn.b", 0.4, 2.6), layer("head.a", 1.0, 1.8)];
        assert_eq!(verdict(&good, Some([5, 1])).is_trained, Some(true));
        assert_eq!(verdict(&good, None).is_trained, None);
        assert_eq!(verdict(&good, Some([5, 0])).is_trained, Some(false));
        let start = [layer("fpn.a", 0.2, 3.1), layer("fpn.b", 0.9, 2.6)];
        let found = verdict(&start, None);
        assert_eq!((found.has_left_its_start, found.is_bell_shaped), (Some(false), Some(true)));
        assert_eq!(found.is_trained, Some(false));
        let flat = [layer("fpn.a", 0.2, 1.8)];
        assert_eq!(verdict(&flat, Some([1, 1])).is_bell_shaped, Some(false));
        let no_pyramid = [layer("head.a", 0.1, 4.0)];
        assert_eq!(verdict(&no_pyramid, Some([1, 1])).is_trained, None);

        let begins = |found: Verdict, with: &str| {
            let text = found.text();
            assert!(text.starts_with(&format!("the network {with}")), "{text}");
        };
        begins(verdict(&good, Some([5, 1])), "is trained by these");
        begins(verdict(&good, Some([5, 0])), "is NOT trained");
        begins(verdict(&good, None), "is trained as far as was looked");
        begins(verdict(&no_pyramid, Some([1, 1])), "is trained as far as was looked");
        begins(verdict(&no_pyramid, None), "is not judged");
    }
}
