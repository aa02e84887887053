//! `mqat export --format onnx`: calibration with the dataset's images, the file, and its check in ONNX Runtime.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use prost::Message;
use serde::Serialize;
use serde_json::json;
use tch::{Device, Kind, Tensor};

use super::source::Exported;
use crate::artifact::engine::{OnnxEngine, OnnxMeta};
use crate::artifact::name::module_names;
use crate::data::{Dataset, Loader, LoaderOptions, Split};
use crate::export::onnx::graph::{Graph, Weight};
use crate::export::onnx::plan::{self, Plan};
use crate::export::onnx::{
    BASE_OPSET, Calibration, Carrier, EmitOptions, INT2_OPSET, INT4_OPSET, LAST_OPSET, LayerCheck,
    LayerSteps, META_KEY, Method, Profile, Reference, SessionOptions, calibrate, carrier_of,
    correct_biases, emit, graph_of, rounded_values,
};
use crate::io;
use crate::model::{Outputs, PoseNet, images_from_bytes};
use crate::run::config::Config;
use crate::run::home::Home;
use crate::run::options::num_workers;

/// The runtime that a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// ONNX Runtime on CPUs: unsigned activations.
    #[default]
    Ort,
    /// TensorRT: signed activations around 0, weights of 8 or 4 bits.
    Tensorrt,
    /// OpenVINO: unsigned activations, weights of 8 or 4 bits.
    Openvino,
}

/// What an ONNX file is to be.
#[derive(Debug, Clone, PartialEq)]
pub struct OnnxOptions {
    /// The runtime.
    pub target: Target,
    /// Version of ONNX's operators; none takes the lowest that has what is needed.
    pub opset: Option<i64>,
    /// How integer weights are stored.
    pub carrier: Carrier,
    /// Images in a batch; none leaves it open.
    pub batch: Option<i64>,
    /// Images of the training list that set the ranges of activations; none keeps untrained ones float.
    pub calibrate: Option<usize>,
    /// How the ranges are set.
    pub method: Method,
    /// Bits of calibrated activations.
    pub activation_bits: u32,
    /// Leave weights float that training left float, in a calibrated network.
    pub keep_float: bool,
    /// Round those weights to all of 8 bits even where CPUs without 8-bit dot products then sum them slowly.
    pub full_range: bool,
    /// Add scores and decoded corners as outputs.
    pub decode: bool,
    /// Run the written file on so many images.
    pub check: Option<usize>,
    /// The dataset, or the folder of datasets, instead of the machine's.
    pub data: Option<PathBuf>,
}

impl Default for OnnxOptions {
    fn default() -> Self {
        Self {
            target: Target::default(),
            opset: None,
            carrier: Carrier::Int8,
            batch: None,
            calibrate: None,
            method: Method::default(),
            activation_bits: 8,
            keep_float: false,
            full_range: false,
            decode: false,
            check: None,
            data: None,
        }
    }
}

/// What was written into an ONNX file.
#[derive(Debug, Clone, Serialize)]
pub struct OnnxReport {
    /// Version of ONNX's operators.
    pub opset: i64,
    /// How activations are rounded.
    pub activations: String,
    /// Convolutions by the type of their stored weights: `float`, `int8`, `int4`, `int2`.
    pub weights: BTreeMap<&'static str, usize>,
    /// Layers that training left float and that were rounded to 8 bits for this file.
    pub rounded_after_training: Vec<String>,
    /// Layers whose trained grid no integer type holds: they are float here.
    pub grids_as_floats: Vec<String>,
    /// The file in ONNX Runtime.
    pub check: Option<CheckReport>,
}

/// How a file ran in ONNX Runtime.
#[derive(Debug, Clone, Serialize)]
pub struct CheckReport {
    /// Images.
    pub num_images: usize,
    /// What they were: of the dataset, or noise.
    pub images: String,
    /// Differences from what the file should compute, by libtorch.
    pub from_reference: Difference,
    /// Differences from the network as trained.
    pub from_network: Difference,
    /// Rounded values whose integers differ from what libtorch makes of the same integers in front of them; the largest
    /// differences first.
    pub layers: Vec<LayerSteps>,
    /// The largest of these differences, in activation steps; none without rounded values.
    pub max_steps: Option<i64>,
    /// Whether ONNX Runtime had to sum in its exact, slower mode on this CPU.
    pub exact_sums: bool,
    /// Kernels that ran.
    pub profile: Profile,
}

/// Differences of outputs.
#[derive(Debug, Clone, Serialize)]
pub struct Difference {
    /// Largest difference of a logit.
    pub max_logit: f64,
    /// Largest difference of an offset, in anchor sizes.
    pub max_offset: f64,
    /// Mean difference of offsets, in anchor sizes.
    pub mean_offset: f64,
    /// Largest difference of an output over the largest magnitude of its level.
    pub max_relative: f64,
}

/// A file that was written, and its report.
pub(super) struct Written {
    pub report: OnnxReport,
    pub num_tensors: usize,
    pub bytes: u64,
    /// The modules whose weights lie on levels.
    pub quantized: Vec<String>,
}

/// Writes the ONNX file of a loaded network.
pub(super) fn write(
    exported: &Exported,
    config: &Config,
    options: &OnnxOptions,
) -> Result<Written> {
    let Exported { from, out, net, loaded, .. } = exported;
    check_options(options)?;
    let size = (config.input.width, config.input.height);
    let at = || from.display().to_string();
    let mut graph = graph_of(net, &loaded.quantizers, size).with_context(at)?;
    let grids_as_floats = grids_as_floats(&graph);
    let trained = plan::trained_inputs(&loaded.quantizers).with_context(at)?;
    let images = Images::new(exported, config, options)?;
    let (mut plan, mut activations) =
        (plan::as_trained(&graph, &trained), "float activations".to_owned());
    if !plan.is_empty() {
        activations = format!("activations as trained ({} layers)", trained.len());
    }
    let mut rounded = vec![];
    if let Some(num_images) = options.calibrate {
        let wanted = plan::wanted(&graph, options.target == Target::Ort);
        let float = graph.clone();
        let as_trained = plan;
        // Bytes of 7 bits fit in pairs with any weight.
        let fit_pairs =
            options.target == Target::Ort && !options.full_range && options.activation_bits == 8;
        if !options.keep_float {
            rounded = plan::round_weights(&mut graph, &wanted, fit_pairs);
        }
        let calibration = Calibration {
            method: options.method,
            bits: options.activation_bits,
            symmetric: options.target == Target::Tensorrt,
        };
        let each = |each: &mut dyn FnMut(&Tensor) -> Result<()>| images.each(num_images, each);
        let found = calibrate(&graph, &as_trained, &wanted, calibration, each)?;
        plan = plan::calibrated(&graph, &trained, found);
        plan::fit_biases(&mut graph, &plan);
        let batch = images.batch(num_images.min(correction_images(config)))?;
        correct_biases(&float, &graph, &mut plan, &as_trained, &batch)?;
        activations = format!(
            "{}-bit activations ({} on {num_images} images)",
            options.activation_bits,
            match options.method {
                Method::MinMax => "min-max".to_owned(),
                Method::Percentile(percent) => format!("percentile {percent}"),
                Method::Mse => "least error".to_owned(),
            }
        );
    }
    let emit_options = EmitOptions {
        opset: opset_for(&graph, options)?,
        carrier: options.carrier,
        int2: options.target == Target::Ort,
        batch: options.batch,
        decode: options.decode,
    };
    let quantized = module_names(&loaded.quantized);
    let activation_bits = if trained.is_empty() { options.activation_bits } else { 8 };
    let meta = OnnxMeta {
        mqat_version: env!("CARGO_PKG_VERSION").to_owned(),
        quantized: quantized.clone(),
        activations: activations.clone(),
        activation_bits: (!plan.is_empty()).then_some(activation_bits),
        config: serde_json::to_value(config).context("writing the config as JSON")?,
    };
    let model = emit(&graph, &plan, &emit_options, &metadata(&meta, &graph, config)?)?;
    let num_tensors = model.graph.as_ref().map_or(0, |g| g.initializer.len());
    let bytes = model.encode_to_vec();
    io::write_atomic(out, |w| Ok(w.write_all(&bytes)?))?;
    let check = options.check.map(|n| check(exported, config, &graph, &plan, &images, n));
    let check = check.transpose().with_context(|| format!("checking {}", out.display()))?;
    let mut weights = BTreeMap::new();
    for conv in &graph.convs {
        let kind = match &conv.weight {
            Weight::Float(_) => "float",
            Weight::Codes(codes) => match carrier_of(codes, &emit_options).bits() {
                2 => "int2",
                4 => "int4",
                _ => "int8",
            },
        };
        *weights.entry(kind).or_insert(0) += 1;
    }
    let rounded_after_training =
        rounded.into_iter().filter(|name| !grids_as_floats.contains(name)).collect();
    let report = OnnxReport {
        opset: emit_options.opset,
        activations,
        weights,
        rounded_after_training,
        grids_as_floats,
        check,
    };
    Ok(Written { report, num_tensors, bytes: bytes.len() as u64, quantized })
}

/// Images that biases are corrected with: all their values of a layer are held at once.
fn correction_images(config: &Config) -> usize {
    const PIXELS: usize = 4 * 512 * 512;
    (PIXELS / (config.input.width * config.input.height)).clamp(4, 64)
}

fn check_options(options: &OnnxOptions) -> Result<()> {
    ensure!(
        (2..=8).contains(&options.activation_bits),
        "--activation-bits {} is outside 2..=8",
        options.activation_bits
    );
    ensure!(options.batch.is_none_or(|n| n >= 1), "--batch is 0, expected 1 or more");
    ensure!(options.calibrate != Some(0), "--calibrate is 0, expected 1 image or more");
    ensure!(options.check != Some(0), "--check is 0, expected 1 image or more");
    if let Method::Percentile(percent) = options.method {
        ensure!((50.0..=100.0).contains(&percent), "--percentile {percent} is outside 50..=100");
    }
    Ok(())
}

/// Layers with a trained grid that became floats.
fn grids_as_floats(graph: &Graph) -> Vec<String> {
    let float = |c: &&crate::export::onnx::graph::Conv| {
        c.trained_bits < 32 && matches!(c.weight, Weight::Float(_))
    };
    graph.convs.iter().filter(float).map(|c| c.name.clone()).collect()
}

/// The opset that is asked for, or the lowest one with the types that the weights need.
fn opset_for(graph: &Graph, options: &OnnxOptions) -> Result<i64> {
    let any = |low: i32, high: i32| {
        graph.convs.iter().any(|conv| match &conv.weight {
            Weight::Codes(codes) => codes.range().0 >= low && codes.range().1 <= high,
            Weight::Float(_) => false,
        })
    };
    let small = options.carrier == Carrier::TrueBits && any(-8, 7);
    let best = if small && options.target == Target::Ort && any(-2, 1) {
        INT2_OPSET
    } else if small {
        INT4_OPSET
    } else {
        BASE_OPSET
    };
    let Some(opset) = options.opset else { return Ok(best) };
    ensure!(
        (BASE_OPSET..=LAST_OPSET).contains(&opset),
        "--opset {opset} is outside {BASE_OPSET}..={LAST_OPSET}, the versions of ONNX's operators that are written"
    );
    // Integers of 2 bits are stored as ones of 4 where the opset has no others.
    ensure!(
        !small || opset >= INT4_OPSET,
        "opset {opset} has no integers of 4 bits for --carrier true-bits: pass --opset {INT4_OPSET} or later, or \
         --carrier int8"
    );
    Ok(opset)
}

/// What other programs need to know to use the file, one entry each, and the JSON for this one.
fn metadata(meta: &OnnxMeta, graph: &Graph, config: &Config) -> Result<BTreeMap<String, String>> {
    let (weights, bits) = graph.convs.iter().fold((0, 0), |(weights, bits), conv| {
        let n = conv.num_weights() as u64;
        (weights + n, bits + n * u64::from(conv.trained_bits))
    });
    let compression = 32.0 * weights as f64 / bits.max(1) as f64;
    let levels = graph.levels.iter();
    let anchors: Vec<_> =
        levels.map(|l| json!({ "stride_px": l.stride, "anchor_px": l.anchor_px })).collect();
    let classes: Vec<String> = (1..=graph.num_classes)
        .map(|class| format!("obj_{class:06} (rank {class} of the meshes)"))
        .collect();
    let entries = [
        (META_KEY, serde_json::to_value(meta)?.to_string()),
        ("class_names", json!(classes).to_string()),
        ("internal_camera_K", json!(config.input.k).to_string()),
        ("pixel_mean", json!(config.input.pixel_mean).to_string()),
        ("pixel_std", json!(config.input.pixel_std).to_string()),
        ("anchors", json!(anchors).to_string()),
        ("quantized", meta.quantized.join(" + ")),
        ("activations", meta.activations.clone()),
        ("compression_paper", format!("{compression:.2}")),
        ("mqat_version", meta.mqat_version.clone()),
    ];
    Ok(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

/// Images to calibrate and check with: of the dataset where one is named or needed, else noise.
struct Images {
    dataset: Option<Dataset>,
    config: Config,
}

impl Images {
    fn new(exported: &Exported, config: &Config, options: &OnnxOptions) -> Result<Self> {
        let wanted =
            options.calibrate.is_some() || (options.check.is_some() && options.data.is_some());
        let dataset = wanted.then(|| -> Result<Dataset> {
            let home = Home::find(options.data.as_deref(), None)?;
            let list = config.data.list(Split::Train);
            let root = home.dataset(exported.problem, list)?;
            Dataset::open(&root, list, &config.data, &config.input, false)
        });
        Ok(Self { dataset: dataset.transpose()?, config: config.clone() })
    }

    /// Hands over `num_images` images of the training list, evenly spread over it, without augmentation; noise without a
    /// dataset.
    fn each(&self, num_images: usize, each: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let input = &self.config.input;
        let Some(dataset) = &self.dataset else {
            let shape = [1, 3, input.height as i64, input.width as i64];
            for i in 0..num_images {
                each(&noise(&shape, i as u64))?;
            }
            return Ok(());
        };
        let total = dataset.frames.len();
        ensure!(
            num_images <= total,
            "{num_images} images are wanted, the training list has {total}"
        );
        let mut chosen = dataset.clone();
        chosen.frames =
            (0..num_images).map(|i| dataset.frames[i * total / num_images].clone()).collect();
        let options = LoaderOptions {
            batch_size: 2,
            workers: num_workers(&self.config),
            ..LoaderOptions::default() // in the list's order, nothing augmented or replaced
        };
        let loader = Loader::start(Arc::new(chosen), input, &self.config.data, options)?;
        for batch in loader {
            let batch = batch?;
            let size = [batch.indices.len(), batch.height, batch.width];
            let (mean, std) = (&input.pixel_mean, &input.pixel_std);
            each(&images_from_bytes(&batch.pixels, size, mean, std, Device::Cpu)?.contiguous())?;
        }
        Ok(())
    }

    /// `num_images` images as one batch.
    fn batch(&self, num_images: usize) -> Result<Tensor> {
        let mut parts = vec![];
        self.each(num_images, &mut |images| {
            parts.push(images.shallow_clone());
            Ok(())
        })?;
        Ok(Tensor::cat(&parts, 0))
    }

    fn text(&self) -> String {
        match &self.dataset {
            Some(dataset) => format!("of {}", dataset.root.display()),
            None => "noise".to_owned(),
        }
    }
}

/// Smooth noise, a function of the seed.
fn noise(shape: &[i64; 4], seed: u64) -> Tensor {
    let mut state = seed;
    let coarse: Vec<f32> = (0..3 * 16 * 16)
        .map(|_| {
            state = crate::seed::splitmix64(state.wrapping_add(1));
            (state >> 40) as f32 / (1u64 << 24) as f32 * 4.0 - 2.0
        })
        .collect();
    let coarse = Tensor::from_slice(&coarse).reshape([1, 3, 16, 16]);
    coarse.upsample_bilinear2d([shape[2], shape[3]], false, None, None)
}

/// Runs the written file in ONNX Runtime beside the graph and the network in libtorch.
fn check(
    exported: &Exported,
    config: &Config,
    graph: &Graph,
    plan: &Plan,
    images: &Images,
    num_images: usize,
) -> Result<CheckReport> {
    let folder = tempfile::tempdir().context("making a folder for the profile")?;
    let options = SessionOptions {
        threads: config.runtime.num_threads,
        profile: Some(folder.path().join("profile")),
        ..SessionOptions::default()
    };
    let engine = OnnxEngine::open_with(exported.out, &options)?;
    let reference = Reference::new(graph);
    let [mut from_reference, mut from_network] = [Sums::default(), Sums::default()];
    images.each(num_images, &mut |batch| {
        let ours = engine.run(batch)?;
        from_reference.add(&ours, &reference.run(batch, Some(plan), |_, _| {})?);
        from_network.add(&ours, &network_outputs(&exported.net, batch));
        Ok(())
    })?;
    let profile = Profile::read(&engine.session().end_profile()?)?;
    let layers = check_layers(exported, config, graph, plan, images, num_images)?;
    Ok(CheckReport {
        max_steps: layers.iter().map(|layer| layer.max_steps).max(),
        layers: layers.into_iter().filter(|layer| layer.max_steps > 0).collect(),
        num_images,
        images: images.text(),
        from_reference: from_reference.difference(),
        from_network: from_network.difference(),
        exact_sums: engine.session().exact_sums(),
        profile,
    })
}

/// Every rounded value of the file against libtorch, from the same integers; the largest differences first.
fn check_layers(
    exported: &Exported,
    config: &Config,
    graph: &Graph,
    plan: &Plan,
    images: &Images,
    num_images: usize,
) -> Result<Vec<LayerSteps>> {
    let values: Vec<String> =
        rounded_values(graph, plan).into_iter().map(|(_, name)| name).collect();
    if values.is_empty() {
        return Ok(vec![]);
    }
    let options =
        SessionOptions { threads: config.runtime.num_threads, values, ..SessionOptions::default() };
    let engine = OnnxEngine::open_with(exported.out, &options)?;
    let mut check = LayerCheck::new(graph, plan);
    images.each(num_images, &mut |batch| check.add(engine.session(), batch))?;
    let mut layers = check.finish();
    layers.sort_by(|a, b| {
        (b.max_steps, b.share).partial_cmp(&(a.max_steps, a.share)).unwrap_or(Ordering::Equal)
    });
    Ok(layers)
}

fn network_outputs(net: &PoseNet, images: &Tensor) -> Outputs {
    tch::no_grad(|| net.forward_t(images, false))
}

#[derive(Default)]
struct Sums {
    max_logit: f64,
    max_offset: f64,
    sum_offset: f64,
    num_offsets: usize,
    max_relative: f64,
}

impl Sums {
    fn add(&mut self, a: &Outputs, b: &Outputs) {
        let largest = |t: &Tensor| t.abs().max().double_value(&[]);
        for (a, b) in a.cls.iter().zip(&b.cls) {
            let diff = largest(&(a - b));
            self.max_logit = self.max_logit.max(diff);
            self.max_relative = self.max_relative.max(diff / largest(b).max(f64::MIN_POSITIVE));
        }
        for (a, b) in a.reg.iter().zip(&b.reg) {
            let diffs = (a - b).abs();
            let diff = largest(&diffs);
            self.max_offset = self.max_offset.max(diff);
            self.sum_offset += diffs.sum(Kind::Double).double_value(&[]);
            self.num_offsets += diffs.numel();
            self.max_relative = self.max_relative.max(diff / largest(b).max(f64::MIN_POSITIVE));
        }
    }

    fn difference(&self) -> Difference {
        Difference {
            max_logit: self.max_logit,
            max_offset: self.max_offset,
            mean_offset: self.sum_offset / self.num_offsets.max(1) as f64,
            max_relative: self.max_relative,
        }
    }
}

impl OnnxReport {
    /// For a terminal.
    pub fn text(&self, path: &Path) -> String {
        let weights: Vec<String> =
            self.weights.iter().map(|(kind, n)| format!("{n} convolutions {kind}")).collect();
        let mut text = format!(
            "{}: opset {}, weights: {}, {}",
            path.display(),
            self.opset,
            weights.join(", "),
            self.activations
        );
        let listed = |names: &[String]| {
            let shown = names.iter().take(3).cloned().collect::<Vec<_>>().join(", ");
            if names.len() > 3 { format!("{shown}, ... ({} layers)", names.len()) } else { shown }
        };
        if !self.rounded_after_training.is_empty() {
            text += &format!(
                "\nrounded to 8 bits after training (--keep-float leaves them float): {}",
                listed(&self.rounded_after_training)
            );
        }
        if !self.grids_as_floats.is_empty() {
            text += &format!(
                "\nthe trained levels are no integers of up to 8 bits, the file holds floats: {}",
                listed(&self.grids_as_floats)
            );
        }
        if let Some(check) = &self.check {
            text += &check.text();
        }
        text
    }
}

impl CheckReport {
    fn text(&self) -> String {
        let difference = |d: &Difference| {
            format!(
                "logits up to {:.2e}, offsets up to {:.2e} (mean {:.1e}) anchor sizes, {:.1e} relative",
                d.max_logit, d.max_offset, d.mean_offset, d.max_relative
            )
        };
        let kernels: Vec<String> = self
            .profile
            .kernels
            .iter()
            .take(8)
            .map(|k| format!("{} x {} {:.1} ms", k.nodes, k.op, k.ms))
            .collect();
        let steps = match self.max_steps {
            None => String::new(),
            Some(most) => format!(
                "\n  layer by layer, from the same integers: at most {most} activation steps{}",
                self.layers.first().map_or(String::new(), |l| format!(
                    " ({}, {:.1e} of its values)",
                    l.name, l.share
                ))
            ),
        };
        format!(
            "\nONNX Runtime, {} images ({}){}\n  from the rounded network in libtorch: {}\n  from the network as trained: {}{steps}\n  \
             {} integer and {} float convolutions; a run: {}",
            self.num_images,
            self.images,
            if self.exact_sums { ", exact sums (this CPU has no 8-bit dot product)" } else { "" },
            difference(&self.from_reference),
            difference(&self.from_network),
            self.profile.integer_convs,
            self.profile.float_convs,
            kernels.join(", ")
        )
    }
}
