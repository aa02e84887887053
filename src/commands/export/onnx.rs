//! `mqat export --format onnx`: calibration with the dataset's images, the file, and its check in ONNX Runtime.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use prost::Message;
use serde::Serialize;
use serde_json::{Value, json};
use tch::{Device, Kind, Tensor};

use super::source::Exported;
use crate::artifact::engine::{OnnxEngine, OnnxMeta};
use crate::artifact::name::module_names;
use crate::data::{Dataset, Loader, LoaderOptions, Purpose, Split};
use crate::eval::{
    OutputComparison, OutputDeviation, PictureBatch, PictureInfo, Pipeline, pictures_of, preprocess,
};
use crate::export::onnx::graph::{Graph, Weight};
use crate::export::onnx::plan::{self, GraphPlan};
use crate::export::onnx::{
    BASE_OPSET, Calibration, CalibrationMethod, Carrier, EmitOptions, INT2_OPSET, INT4_OPSET,
    LAST_OPSET, LayerCheck, LayerSteps, META_KEY, PlannedGraph, Profile, QuantizedValues,
    SessionOptions, calibrate, carrier_of, correct_biases, emit, graph_of, quantized_values,
};
use crate::io;
use crate::nn::{Engine, Preprocess};
use crate::run::config::Config;
use crate::run::home::Home;
use crate::run::objects;
use crate::run::options::num_workers;
use crate::train::{ObjectInfo, QuantizedModule};

/// Largest difference between an integer of ONNX Runtime's and libtorch's from the same integers in front of it: sums of
/// products whose rounding falls on the other side of a half.
const MAX_STEPS: i64 = 1;
/// Largest difference of an output of a file without rounded values, over the largest magnitude of its pyramid level: sums
/// of f32 in another order; what was seen is below 1e-5.
const MAX_RELATIVE: f64 = 1e-3;

/// The runtime that a file is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
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
    pub target: Runtime,
    /// Version of ONNX's operators; none takes the lowest that has what is needed.
    pub opset: Option<i64>,
    /// How integer weights are stored.
    pub carrier: Carrier,
    /// Images in a batch; none leaves it open.
    pub batch: Option<i64>,
    /// Images of the training list that set the ranges of activations; none keeps untrained ones float.
    pub calibrate: Option<usize>,
    /// How the ranges are set.
    pub method: CalibrationMethod,
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

impl OnnxOptions {
    /// Whether images of the dataset calibrate or check.
    pub fn uses_dataset(&self) -> bool {
        self.calibrate.is_some() || (self.check.is_some() && self.data.is_some())
    }
}

impl Default for OnnxOptions {
    fn default() -> Self {
        Self {
            target: Runtime::default(),
            opset: None,
            carrier: Carrier::Int8,
            batch: None,
            calibrate: None,
            method: CalibrationMethod::default(),
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
    pub quantized_after_training: Vec<String>,
    /// Layers whose trained grid no integer type holds: they are float here.
    pub grids_as_floats: Vec<String>,
    /// Modules that training has quantized in part only: the file holds the floats that the network computes with.
    pub partly_quantized: Vec<String>,
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
    /// QuantizedGraph values whose integers differ from what libtorch makes of the same integers in front of them; the largest
    /// differences first.
    pub layers: Vec<LayerSteps>,
    /// The largest of these differences, in activation steps; none without rounded values.
    pub max_steps: Option<i64>,
    /// Whether ONNX Runtime had to sum in its exact, slower mode on this CPU.
    pub exact_sums: bool,
    /// Kernels that ran.
    pub profile: Profile,
    /// What is beyond the limits of a right file; such a file is not left in place.
    pub failures: Vec<String>,
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
    /// Values that are finite in one of the two only; they are in no other number.
    pub num_not_finite: u64,
}

/// A file that was written, and its report.
pub(super) struct WrittenOnnx {
    pub report: OnnxReport,
    pub num_tensors: usize,
    pub bytes: u64,
    /// Objects that it carries.
    pub num_objects: usize,
    /// The modules whose weights lie on levels.
    pub quantized: Vec<String>,
}

/// Writes the ONNX file of a loaded network; with a check that it fails, nothing, and the report says why.
pub(super) fn write(
    exported: &Exported,
    config: &Config,
    options: &OnnxOptions,
) -> Result<WrittenOnnx> {
    let Exported { from, out, net, loaded, .. } = exported;
    check_options(options)?;
    let size = (config.input.width, config.input.height);
    let graph = graph_of(net.as_ref(), &loaded.quantizers, size)
        .with_context(|| from.display().to_string())?;
    let grids_as_floats = grids_as_floats(&graph);
    let images = Images::new(exported, config, options)?;
    let QuantizedGraph { graph, plan, activations, layers } =
        round(exported, config, options, graph, &images)?;
    let emit_options = EmitOptions {
        opset: opset_for(&graph, options)?,
        carrier: options.carrier,
        int2: options.target == Runtime::Ort,
        batch: options.batch,
        decode: options.decode,
    };
    let partly_quantized = partly_quantized(exported);
    let is_whole = |module: &&QuantizedModule| !partly_quantized.contains(&module.claim.module);
    let whole: Vec<QuantizedModule> = loaded.quantized.iter().filter(is_whole).cloned().collect();
    let quantized = module_names(&whole);
    let objects = match &images.dataset {
        Some(dataset) if exported.objects.is_empty() => objects::of_dataset(dataset, &config.data)?,
        _ => exported.objects.clone(),
    };
    let num_objects = objects.len();
    let meta = OnnxMeta {
        mqat_version: env!("CARGO_PKG_VERSION").to_owned(),
        quantized: quantized.clone(),
        activations: activations.text.clone(),
        activation_bits: (!plan.is_empty()).then_some(activations.bits),
        objects,
        batch_norm: loaded.meta.as_ref().and_then(|meta| meta.batch_norm.clone()),
        config: serde_json::to_value(config).context("writing the config as JSON")?,
    };
    let model = emit(&graph, &plan, &emit_options, &metadata(&meta, &graph, config)?)?;
    let num_tensors = model.graph.as_ref().map_or(0, |g| g.initializer.len());
    let bytes = model.encode_to_vec();
    let check = match options.check {
        None => {
            io::write_atomic(out, |w| Ok(w.write_all(&bytes)?))?;
            None
        }
        Some(num_images) => Some(write_if_right(out, &bytes, |file| {
            check(exported, config, &graph, &plan, &images, num_images, file)
        })?),
    };
    let report = OnnxReport {
        opset: emit_options.opset,
        activations: activations.text,
        weights: weights_by_type(&graph, &emit_options),
        quantized_after_training: layers
            .into_iter()
            .filter(|name| !grids_as_floats.contains(name))
            .collect(),
        grids_as_floats,
        partly_quantized,
        check,
    };
    Ok(WrittenOnnx { report, num_tensors, bytes: bytes.len() as u64, num_objects, quantized })
}

/// Modules whose stage has not ended.
fn partly_quantized(exported: &Exported) -> Vec<String> {
    let partial = exported.loaded.quantizers.iter().filter(|quantizer| quantizer.is_partial());
    partial.map(|quantizer| quantizer.module().to_owned()).collect()
}

/// A graph whose values are rounded as the file has them.
struct QuantizedGraph {
    graph: Graph,
    plan: GraphPlan,
    activations: Activations,
    /// Layers whose weights training left float, and that are rounded now.
    layers: Vec<String>,
}

/// How activations are rounded.
struct Activations {
    /// For people.
    text: String,
    bits: u32,
}

/// Rounds what the network was trained with, and with `--calibrate` the rest.
fn round(
    exported: &Exported,
    config: &Config,
    options: &OnnxOptions,
    mut graph: Graph,
    images: &Images,
) -> Result<QuantizedGraph> {
    let trained = plan::trained_inputs(&exported.loaded.quantizers)
        .with_context(|| exported.from.display().to_string())?;
    let as_trained = plan::as_trained(&graph, &trained);
    let bits = if trained.is_empty() { options.activation_bits } else { 8 };
    let Some(num_images) = options.calibrate else {
        let text = match as_trained.is_empty() {
            true => "float activations".to_owned(),
            false => format!("activations as trained ({} layers)", trained.len()),
        };
        let activations = Activations { text, bits };
        return Ok(QuantizedGraph { graph, plan: as_trained, activations, layers: vec![] });
    };
    let wanted = plan::wanted(&graph, options.target == Runtime::Ort);
    let float = graph.clone();
    // Bytes of 7 bits fit in pairs with any weight.
    let fit_pairs =
        options.target == Runtime::Ort && !options.full_range && options.activation_bits == 8;
    let layers = match options.keep_float {
        true => vec![],
        false => plan::round_weights(&mut graph, &wanted, fit_pairs),
    };
    let calibration = Calibration {
        method: options.method,
        bits: options.activation_bits,
        symmetric: options.target == Runtime::Tensorrt,
    };
    let each = |each: &mut dyn FnMut(&Tensor) -> Result<()>| images.each(num_images, each);
    let found = calibrate(&graph, &as_trained, &wanted, calibration, each)?;
    let mut plan = plan::calibrated(&graph, &trained, found);
    plan::fit_biases(&mut graph, &plan);
    let batch = images.batch(num_images.min(correction_images(config)))?;
    correct_biases(&float, &graph, &mut plan, &as_trained, &batch)?;
    let method = match options.method {
        CalibrationMethod::MinMax => "min-max".to_owned(),
        CalibrationMethod::Percentile(percent) => format!("percentile {percent}"),
        CalibrationMethod::Mse => "least error".to_owned(),
    };
    let text =
        format!("{}-bit activations ({method} on {num_images} images)", options.activation_bits);
    Ok(QuantizedGraph { graph, plan, activations: Activations { text, bits }, layers })
}

/// Convolutions by the type that their weights are stored in.
fn weights_by_type(graph: &Graph, options: &EmitOptions) -> BTreeMap<&'static str, usize> {
    let mut weights = BTreeMap::new();
    for conv in &graph.convs {
        let kind = match &conv.weight {
            Weight::Float(_) => "float",
            Weight::Codes(codes) => match carrier_of(codes, options).bits() {
                2 => "int2",
                4 => "int4",
                _ => "int8",
            },
        };
        *weights.entry(kind).or_insert(0) += 1;
    }
    weights
}

/// Writes the file under another name in its folder, checks it, and gives it its own name if nothing is wrong with it:
/// a file of that name has passed its check.
fn write_if_right(
    out: &Path,
    bytes: &[u8],
    check: impl FnOnce(&Path) -> Result<CheckReport>,
) -> Result<CheckReport> {
    let doing = || format!("checking {}", out.display());
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    fs::create_dir_all(folder).with_context(|| format!("making folder {}", folder.display()))?;
    let mut unchecked = tempfile::Builder::new();
    unchecked.prefix(".unchecked-").suffix(".onnx");
    let unchecked = unchecked.tempfile_in(folder).with_context(doing)?.into_temp_path();
    io::write_atomic(&unchecked, |w| Ok(w.write_all(bytes)?))?;
    let report = check(&unchecked).with_context(doing)?;
    if report.failures.is_empty() {
        fs::rename(&unchecked, out).with_context(|| format!("writing {}", out.display()))?;
    }
    Ok(report)
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
    ensure!(
        !options.full_range || (options.target == Runtime::Ort && options.activation_bits == 8),
        "--full-range cannot act: all of 8 bits are left out for --target ort with --activation-bits 8 alone; leave it \
         out"
    );
    if let CalibrationMethod::Percentile(percent) = options.method {
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
    let best = if small && options.target == Runtime::Ort && any(-2, 1) {
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
        "opset {opset} has no integers of 4 bits for --weight-type true-bits: pass --opset {INT4_OPSET} or later, or \
         --weight-type int8"
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
    let of_rank = |class: i64| format!("obj_{class:06} (rank {class} of the meshes)");
    let classes: Vec<String> = match meta.objects.as_slice() {
        [] => (1..=graph.num_classes).map(|class| of_rank(class as i64)).collect(),
        objects => objects.iter().map(|object| object.name.clone()).collect(),
    };
    let mut entries = vec![
        (META_KEY, serde_json::to_value(meta)?.to_string()),
        ("class_names", json!(classes).to_string()),
        ("internal_camera_K", json!(config.input.k).to_string()),
        (
            "internal_camera_size",
            json!({ "width": config.input.width, "height": config.input.height }).to_string(),
        ),
        ("pixel_mean", json!(config.input.pixel_mean).to_string()),
        ("pixel_std", json!(config.input.pixel_std).to_string()),
        ("anchors", json!(anchors).to_string()),
        ("quantized", meta.quantized.join(" + ")),
        ("activations", meta.activations.clone()),
        ("compression_paper", format!("{compression:.2}")),
        ("mqat_version", meta.mqat_version.clone()),
    ];
    if !meta.objects.is_empty() {
        let each = |value: fn(&ObjectInfo) -> Value| -> String {
            Value::from_iter(meta.objects.iter().map(value)).to_string()
        };
        entries.extend([
            ("object_ids", each(|o| json!(o.obj_id))),
            ("box_corners_mm", each(|o| json!(o.box_corners_mm))),
            ("diameters_mm", each(|o| json!(o.diameter_mm))),
            (
                "symmetries",
                each(|o| {
                    json!({
                        "symmetric": o.symmetric,
                        "symmetries_discrete": o.symmetries_discrete,
                        "symmetries_continuous": o.symmetries_continuous,
                    })
                }),
            ),
        ]);
    }
    Ok(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

/// Images to calibrate and check with: of the dataset where one is named or needed, else noise.
struct Images {
    dataset: Option<Dataset>,
    config: Config,
}

impl Images {
    fn new(exported: &Exported, config: &Config, options: &OnnxOptions) -> Result<Self> {
        let dataset = options.uses_dataset().then(|| -> Result<Dataset> {
            let home = Home::find(options.data.as_deref(), None)?;
            let list = config.data.list(Split::Train);
            let root = home.dataset(exported.problem, list)?;
            Dataset::open(&root, list, &config.data, &config.input, Purpose::Images, false)
        });
        Ok(Self { dataset: dataset.transpose()?, config: config.clone() })
    }

    /// `num_images` pictures of the training list, evenly spread over it, without augmentation; noise without a dataset.
    fn pictures(&self, num_images: usize) -> Result<Pictures> {
        let input = &self.config.input;
        let Some(dataset) = &self.dataset else {
            let preprocess = preprocess(input);
            return Ok(Box::new((0..num_images).map(move |i| noise(&preprocess, i))));
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
        Ok(Box::new(loader.map(|batch| Ok(pictures_of(batch?)))))
    }

    /// Engines that take these images.
    fn pipeline<'a>(&self, engines: &[&'a dyn Engine]) -> Pipeline<'a> {
        Pipeline::new(engines, preprocess(&self.config.input), Device::Cpu)
    }

    /// Hands over `num_images` images, batch by batch.
    fn each(&self, num_images: usize, each: &mut dyn FnMut(&Tensor) -> Result<()>) -> Result<()> {
        let no_engine = self.pipeline(&[]);
        no_engine.run(self.pictures(num_images)?, |forwarded| match &forwarded.images {
            Some(images) => each(&images.contiguous()),
            None => Ok(()),
        })?;
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

/// Pictures, batch by batch.
type Pictures = Box<dyn Iterator<Item = Result<PictureBatch<()>>>>;

/// A picture of smooth noise, a function of its place.
fn noise(preprocess: &Preprocess, place: usize) -> Result<PictureBatch<()>> {
    let mut state = place as u64;
    let coarse: Vec<f32> = (0..3 * 16 * 16)
        .map(|_| {
            state = crate::seed::splitmix64(state.wrapping_add(1));
            (state >> 40) as f32 / (1u64 << 24) as f32 * 4.0 - 2.0
        })
        .collect();
    let coarse = Tensor::from_slice(&coarse).reshape([1, 3, 16, 16]);
    let size = [preprocess.height as i64, preprocess.width as i64];
    let normalised = coarse.upsample_bilinear2d(size, false, None, None);
    let [mean, std] =
        [preprocess.mean, preprocess.std].map(|v| Tensor::from_slice(&v).reshape([1, 3, 1, 1]));
    let bytes = ((normalised * std + mean) * 255.0).round().clamp(0.0, 255.0);
    let bytes = bytes.to_kind(Kind::Uint8).permute([0, 2, 3, 1]).contiguous().view([-1]);
    let picture = PictureInfo { place, name: format!("noise {place}"), readable: true, item: () };
    Ok(PictureBatch { pictures: vec![picture], pixels: Vec::<u8>::try_from(bytes)? })
}

/// Runs the written file in ONNX Runtime beside the graph and the network in libtorch.
fn check(
    exported: &Exported,
    config: &Config,
    graph: &Graph,
    plan: &GraphPlan,
    images: &Images,
    num_images: usize,
    file: &Path,
) -> Result<CheckReport> {
    let folder = tempfile::tempdir().context("making a folder for the profile")?;
    let options = SessionOptions {
        threads: config.runtime.num_threads,
        profile: Some(folder.path().join("profile")),
        ..SessionOptions::default()
    };
    let engine = OnnxEngine::open_with(file, &options)?;
    let planned = PlannedGraph::new(graph, plan);
    let layout = engine.outputs(config.input.width, config.input.height);
    let [mut from_planned, mut from_network] =
        [OutputComparison::default(), OutputComparison::default()];
    let pipeline = images.pipeline(&[&engine, &planned, exported.net.as_ref()]);
    pipeline.run(images.pictures(num_images)?, |forwarded| {
        let num = forwarded.pictures.len();
        let host = forwarded.outputs.iter().map(|outputs| outputs.to_host(&layout, num));
        let host = host.collect::<Result<Vec<_>>>()?;
        from_planned.add(&host[1], &host[0]);
        from_network.add(&host[2], &host[0]);
        Ok(())
    })?;
    let profile = Profile::read(&engine.session().end_profile()?)?;
    let layers = check_layers(config, graph, plan, images, num_images, file)?;
    let from_reference = Difference::of(&from_planned.finish());
    Ok(CheckReport {
        failures: failures(&layers, &from_reference),
        max_steps: layers.iter().map(|layer| layer.max_steps).max(),
        layers: layers.into_iter().filter(|layer| layer.max_steps > 0).collect(),
        num_images,
        images: images.text(),
        from_reference,
        from_network: Difference::of(&from_network.finish()),
        exact_sums: engine.session().exact_sums(),
        profile,
    })
}

/// What is beyond the limits: of layers with rounded values their integers, of a file without any its outputs.
fn failures(layers: &[LayerSteps], from_reference: &Difference) -> Vec<String> {
    if from_reference.num_not_finite > 0 {
        let n = from_reference.num_not_finite;
        return vec![format!("{n} values of the outputs are finite in one of the two only")];
    }
    if layers.is_empty() {
        let relative = from_reference.max_relative;
        let text = format!(
            "outputs differ from libtorch's by up to {relative:.1e} of their largest magnitude, expected at most \
             {MAX_RELATIVE:.0e}"
        );
        return if relative <= MAX_RELATIVE { vec![] } else { vec![text] };
    }
    let text = |layer: &LayerSteps| {
        let LayerSteps { name, max_steps, fraction } = layer;
        format!(
            "{name}: integers differ from libtorch's by up to {max_steps} activation steps ({:.1}% of them), expected at \
             most {MAX_STEPS}",
            100.0 * fraction
        )
    };
    layers.iter().filter(|layer| layer.max_steps > MAX_STEPS).map(text).collect()
}

/// Every rounded value of the file against libtorch, from the same integers; the largest differences first.
fn check_layers(
    config: &Config,
    graph: &Graph,
    plan: &GraphPlan,
    images: &Images,
    num_images: usize,
    file: &Path,
) -> Result<Vec<LayerSteps>> {
    let values: Vec<String> =
        quantized_values(graph, plan).into_iter().map(|(_, name)| name).collect();
    if values.is_empty() {
        return Ok(vec![]);
    }
    let options =
        SessionOptions { threads: config.runtime.num_threads, values, ..SessionOptions::default() };
    let engine = OnnxEngine::open_with(file, &options)?;
    let values = QuantizedValues::new(engine.session(), graph, plan);
    let mut check = LayerCheck::new(graph, plan);
    images.pipeline(&[&values]).run(images.pictures(num_images)?, |forwarded| {
        match (&forwarded.images, forwarded.outputs.as_slice()) {
            (Some(images), [values]) => check.add(images, values),
            _ => Ok(()),
        }
    })?;
    let mut layers = check.finish();
    layers.sort_by(|a, b| {
        (b.max_steps, b.fraction).partial_cmp(&(a.max_steps, a.fraction)).unwrap_or(Ordering::Equal)
    });
    Ok(layers)
}

impl Difference {
    /// Over the outputs `cls_pK` (logits) and `reg_pK` (offsets).
    fn of(outputs: &[OutputDeviation]) -> Self {
        let of = |prefix: &'static str| {
            let outputs = outputs.iter().filter(move |output| output.name.starts_with(prefix));
            outputs.map(|output| &output.deviation)
        };
        let sum: f64 = of("reg").map(|d| d.mean_abs * d.num_values as f64).sum();
        let num: u64 = of("reg").map(|d| d.num_values).sum();
        Self {
            max_logit: of("cls").map(|d| d.max_abs).fold(0.0, f64::max),
            max_offset: of("reg").map(|d| d.max_abs).fold(0.0, f64::max),
            mean_offset: sum / num.max(1) as f64,
            max_relative: of("").map(|d| d.relative).fold(0.0, f64::max),
            num_not_finite: of("").map(|d| d.num_not_finite).sum(),
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
        if !self.quantized_after_training.is_empty() {
            text += &format!(
                "\nrounded to 8 bits after training (--keep-float leaves them float): {}",
                listed(&self.quantized_after_training)
            );
        }
        if !self.grids_as_floats.is_empty() {
            text += &format!(
                "\nthe trained levels are not integers of up to 8 bits, the file holds floats: {}",
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
            let not_finite = match d.num_not_finite {
                0 => String::new(),
                n => format!(", {n} values finite in one only"),
            };
            format!(
                "logits up to {:.2e}, offsets up to {:.2e} (mean {:.1e}) anchor sizes, {:.1e} relative{not_finite}",
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
                    l.name, l.fraction
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

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    fn difference(max_relative: f64) -> Difference {
        Difference {
            max_logit: 0.0,
            max_offset: 0.0,
            mean_offset: 0.0,
            max_relative,
            num_not_finite: 0,
        }
    }

    fn layer(name: &str, max_steps: i64) -> LayerSteps {
        LayerSteps { name: name.to_owned(), max_steps, fraction: 0.25 }
    }

    #[test]
    fn a_check_fails_beyond_its_limits_and_not_at_them() {
        assert!(failures(&[], &difference(MAX_RELATIVE)).is_empty());
        let text = failures(&[], &difference(0.5)).remove(0);
        assert!(text.contains("up to 5.0e-1") && text.contains("at most 1e-3"), "{text}");
        assert_eq!(failures(&[], &difference(f64::NAN)).len(), 1);
        // Halves add up to any difference of outputs: the layers say whether a file is right.
        assert!(failures(&[layer("a", 0), layer("b", 1)], &difference(0.5)).is_empty());
        let text = failures(&[layer("a", 37), layer("b", 1)], &difference(0.0)).join("\n");
        assert_eq!(
            text,
            "a: integers differ from libtorch's by up to 37 activation steps (25.0% of them), expected at most 1"
        );
    }

    #[test]
    fn a_value_that_is_finite_in_one_alone_fails_the_check() {
        let bad = Difference { num_not_finite: 3, ..difference(0.0) };
        for layers in [vec![], vec![layer("a", 0)]] {
            let text = failures(&layers, &bad).join("");
            assert!(text.contains("3 values of the outputs are finite in one"), "{text}");
        }
    }

    #[test]
    fn a_file_is_in_place_only_after_its_check() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("new/net.onnx");
        let report = |failures| CheckReport {
            num_images: 1,
            images: "noise".to_owned(),
            from_reference: difference(0.0),
            from_network: difference(0.0),
            layers: vec![],
            max_steps: None,
            exact_sums: false,
            profile: Profile { kernels: vec![], integer_convs: 0, float_convs: 1 },
            failures,
        };
        let write = |failures: &[&str]| {
            write_if_right(&out, b"graph", |file| {
                assert_eq!(fs::read(file).unwrap(), b"graph");
                assert!(!out.exists());
                Ok(report(failures.iter().map(|&f| f.to_owned()).collect()))
            })
        };
        let left = || fs::read_dir(out.parent().unwrap()).unwrap().count();
        assert_eq!(write(&["wrong"]).unwrap().failures, ["wrong"]);
        assert_eq!(left(), 0);
        assert!(write_if_right(&out, b"graph", |_| bail!("no ONNX Runtime")).is_err());
        assert_eq!(left(), 0);
        write(&[]).unwrap();
        assert_eq!((fs::read(&out).unwrap(), left()), (b"graph".to_vec(), 1));
    }
}
