//! Whole runs of a very small network on made-up batches.

mod afterwards;
mod batch_norm;
mod distill;
mod folder;
mod oscillation;
mod resume;
mod rules;
mod teacher;
mod together;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Result, bail};
use rand::Rng;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::data::{Batch, ObjectModel, SampleObject};
use crate::geom::{Camera, Pose, Vec3, box_corners};
use crate::io::mesh::Mesh;
use crate::nn::{Network, Preprocess};
use crate::quant::{ActivationQuantConfig, WeightQuantConfig};
use crate::seed;
use crate::topology::wdr::NetworkConfig;
use crate::topology::{Family, LossSettings, TargetSettings, Task, TaskSetting, Teacher};

const SIZE: usize = 32;
const SEED: u64 = 11;
const BATCHES: usize = 3;

/// Noise with a bright square where the object is; a function of epoch and batch.
struct ToySource {
    num_batches: usize,
}

impl BatchSource for ToySource {
    fn num_batches(&self, _batch_size: Option<usize>) -> usize {
        self.num_batches
    }

    fn open(&mut self, request: BatchRequest) -> Result<Batches> {
        let size = request.batch_size.unwrap_or(2);
        let range = request.first_batch..self.num_batches;
        Ok(Box::new(range.map(move |b| Ok(toy_batch(request.epoch_key, b, size)))))
    }
}

fn toy_batch(epoch: u64, batch: usize, size: usize) -> Batch {
    let mut made = Batch { width: SIZE, height: SIZE, ..Batch::default() };
    for i in 0..size {
        let mut rng = seed::stream(SEED, &[7, epoch, batch as u64, i as u64]);
        let (x, y) = (rng.random_range(0..12_usize), rng.random_range(0..12_usize));
        for row in 0..SIZE {
            for column in 0..SIZE {
                let inside = (x..x + 16).contains(&column) && (y..y + 16).contains(&row);
                made.masks.push(u8::from(inside));
                let light = if inside { 128 } else { 0 };
                made.pixels.extend([0; 3].map(|_: u8| light + rng.random_range(0..64_u8)));
            }
        }
        let center_px = [x as f64 + 8.0, y as f64 + 8.0];
        let t = Vec3::new((center_px[0] - 16.0) * 12.0, (center_px[1] - 16.0) * 12.0, 480.0);
        let pose = Pose { t_mm: t, ..Pose::identity() };
        made.indices.push(batch * size + i);
        made.names.push(format!("epoch{epoch}/batch{batch}/{i}.png"));
        made.objects.push(vec![SampleObject { class: 0, pose }]);
    }
    made
}

fn task() -> Box<dyn Task> {
    task_with(None)
}

fn task_with(teacher: Option<Teacher>) -> Box<dyn Task> {
    toy_config().task(TaskSetting { teacher, ..task_setting() }).unwrap()
}

fn task_setting() -> TaskSetting {
    let model = ObjectModel {
        symmetries: Default::default(),
        obj_id: 1,
        name: "obj_000001".to_owned(),
        mesh: Mesh { vertices: vec![], faces: vec![] },
        corners: box_corners(&[[-50.0; 3], [50.0; 3]]),
        diameter_mm: 173.2,
    };
    let k = [40.0, 0.0, 16.0, 0.0, 40.0, 16.0, 0.0, 0.0, 1.0];
    TaskSetting {
        camera: Camera::from_row_major(&k).unwrap(),
        models: Arc::new(vec![model]),
        targets: TargetSettings::default(),
        loss: LossSettings::default(),
        teacher: None,
        preprocess: Preprocess {
            width: 32,
            height: 32,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
        },
        seed: SEED,
    }
}

fn toy_config() -> NetworkConfig {
    NetworkConfig {
        stem_channels: 4,
        stage_channels: [4, 4, 8, 8, 8],
        stage_units: [1, 2, 1, 1, 1],
        with_output_layer: true,
        fpn_channels: 8,
        head_channels: 8,
        head_convs: 1,
        group_norm_groups: 2,
        finest_level: 3,
        anchor_sizes: vec![8.0, 16.0, 32.0, 64.0, 128.0],
        ..NetworkConfig::widedepth()
    }
}

fn toy_net() -> Box<dyn Network> {
    // Threads only wait for each other on operators this small: a step takes a quarter of the time with one. The
    // setting is that of the test's own thread.
    tch::set_num_threads(1);
    toy_config().network(1, Device::Cpu, Some(SEED)).unwrap()
}

/// A network to load into.
fn blank_net(num_classes: usize) -> Box<dyn Network> {
    toy_config().network(num_classes, Device::Cpu, None).unwrap()
}

/// All outputs of a network in evaluation, by name.
fn outputs(net: &dyn Network, images: &Tensor) -> Vec<(String, Vec<u64>)> {
    let outputs = net.forward(images).unwrap();
    outputs.iter().map(|(name, tensor)| (name.to_owned(), bits(tensor))).collect()
}

fn weights(schedule: &[(u32, f64)]) -> WeightQuantConfig {
    let json = serde_json::json!({
        "bits": 2,
        "schedule": schedule.iter().map(|(e, f)| (e.to_string(), *f)).collect::<BTreeMap<_, _>>(),
    });
    serde_json::from_value(json).unwrap()
}

/// Full precision, then the FPN with quantized inputs, then the head.
fn three_stages() -> TrainConfig {
    let lr = LrConfig { base: 0.01, warmup_steps: 2, decay: Decay::Cosine { to: 0.1 } };
    let first = StageConfig {
        epochs: 2,
        lr: lr.clone(),
        optimizer: SgdConfig::full_precision(),
        ..StageConfig::default()
    };
    let fpn = StageConfig {
        epochs: 3,
        lr,
        optimizer: SgdConfig { weight_decay: 1e-3, ..SgdConfig::default() },
        activations: Some(ActivationQuantConfig {
            bits: Some(8),
            ..ActivationQuantConfig::default()
        }),
        ..StageConfig::mqat("fpn", weights(&[(0, 0.5), (1, 0.8), (2, 1.0)]))
    };
    let head = StageConfig { epochs: 1, ..StageConfig::mqat("head", weights(&[(0, 1.0)])) };
    TrainConfig { stages: vec![first, fpn, head], ..TrainConfig::default() }
}

fn trainer(config: &TrainConfig, folder: &Path) -> Trainer {
    trainer_of(config, folder, task())
}

fn trainer_of(config: &TrainConfig, folder: &Path, task: Box<dyn Task>) -> Trainer {
    let run = RunInfo {
        seed: SEED,
        checkpoints: folder.to_owned(),
        // When a process stops is not part of a run's configuration.
        config: serde_json::json!({"training": TrainConfig { max_steps: None, ..config.clone() }}),
        data: Default::default(),
        objects: Vec::new(),
    };
    Trainer::new(toy_net(), config.clone(), task, run).unwrap()
}

/// Two epochs of a module whose quantizers may learn.
fn learnt_stage(module: &str, weights: &str, activations: &str) -> StageConfig {
    StageConfig {
        epochs: 2,
        lr: LrConfig { base: 0.01, warmup_steps: 0, decay: Decay::Constant },
        activations: Some(serde_json::from_str(activations).unwrap()),
        ..StageConfig::mqat(module, serde_json::from_str(weights).unwrap())
    }
}

/// The FPN with a learnt step for each channel, and with learnt clipping levels.
fn learnt_fpn() -> StageConfig {
    learnt_stage(
        "fpn",
        r#"{"method": "lsq", "bits": 3, "granularity": "channel"}"#,
        r#"{"method": "pact", "bits": 4, "quant_start_epoch": 0, "calibration": {"batches": 2}}"#,
    )
}

/// A run that stops after so many steps, and goes on in another process to its end; its state, and what both were told.
fn stopped_and_resumed(config: &TrainConfig, stop: u64) -> (BTreeMap<String, Vec<u64>>, Recorder) {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::default();
    let first = TrainConfig { max_steps: Some(stop), ..config.clone() };
    run(&mut trainer(&first, folder.path()), &mut recorder).unwrap();
    let mut second = trainer(config, folder.path());
    second.resume(&ResumeFrom::Last, &mut recorder).unwrap();
    run(&mut second, &mut recorder).unwrap();
    (everything(&second), recorder)
}

/// Everything it was told; breaks off where a killed process would.
#[derive(Debug, Default)]
struct Recorder {
    kill_after: Option<u64>,
    interrupt_after: Option<(u64, Arc<AtomicBool>)>,
    steps: Vec<StepRecord>,
    epochs: Vec<EpochRecord>,
    telemetry: Vec<TelemetryRecord>,
    batch_norm: Vec<BatchNormRecord>,
    valid: Vec<ValidRecord>,
    checkpoints: Vec<CheckpointRecord>,
    starts: Vec<StageStart>,
    ends: Vec<StageEnd>,
    messages: Vec<String>,
}

impl Observer for Recorder {
    fn stage_start(&mut self, start: &StageStart) -> Result<()> {
        self.starts.push(start.clone());
        Ok(())
    }

    fn step(&mut self, step: &StepRecord) -> Result<()> {
        self.steps.push(step.clone());
        if self.kill_after == Some(step.global_step) {
            bail!("killed");
        }
        if let Some((after, flag)) = &self.interrupt_after
            && *after == step.global_step
        {
            flag.store(true, std::sync::atomic::Ordering::Relaxed);
        }
        Ok(())
    }

    fn epoch(&mut self, epoch: &EpochRecord) -> Result<()> {
        self.epochs.push(epoch.clone());
        Ok(())
    }

    fn telemetry(&mut self, telemetry: &TelemetryRecord) -> Result<()> {
        self.telemetry.push(TelemetryRecord { seconds: 0.0, ..telemetry.clone() });
        Ok(())
    }

    fn batch_norm(&mut self, estimate: &BatchNormRecord) -> Result<()> {
        self.batch_norm.push(BatchNormRecord { seconds: 0.0, ..estimate.clone() });
        Ok(())
    }

    fn validation(&mut self, valid: &ValidRecord) -> Result<()> {
        self.valid.push(valid.clone());
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &CheckpointRecord) -> Result<()> {
        self.checkpoints.push(checkpoint.clone());
        Ok(())
    }

    fn stage_end(&mut self, end: &StageEnd) -> Result<()> {
        self.ends.push(end.clone());
        Ok(())
    }

    fn message(&mut self, text: &str) -> Result<()> {
        self.messages.push(text.to_owned());
        Ok(())
    }
}

/// A score that falls for a while and rises: a function of the position.
fn valley(_: &dyn Network, position: &Position) -> Result<Option<ValidScore>> {
    let value = (position.global_epoch as f64 - 1.5).abs();
    let name = "valid_loss".to_owned();
    Ok(Some(ValidScore {
        name,
        value,
        higher_is_better: false,
        counts: None,
        details: vec![],
        outcomes: Default::default(),
    }))
}

fn run(trainer: &mut Trainer, recorder: &mut Recorder) -> Result<Outcome> {
    run_with(trainer, recorder, &mut valley)
}

fn run_with(
    trainer: &mut Trainer,
    recorder: &mut Recorder,
    validate: &mut Validate<'_>,
) -> Result<Outcome> {
    let stop = match &recorder.interrupt_after {
        Some((_, flag)) => flag.clone(),
        None => Arc::default(),
    };
    trainer.run(Hooks {
        source: &mut ToySource { num_batches: BATCHES },
        validate,
        observer: recorder,
        stop: &stop,
    })
}

fn bits(tensor: &Tensor) -> Vec<u64> {
    let flat = tensor.detach().to_kind(Kind::Double).contiguous().reshape([-1]);
    Vec::<f64>::try_from(flat).unwrap().into_iter().map(f64::to_bits).collect()
}

/// All tensors of the trainer's state, by name.
fn everything(trainer: &Trainer) -> BTreeMap<String, Vec<u64>> {
    let Checkpoint { weights, quant, momentum, ema, telemetry, .. } = trainer.checkpoint();
    let momentum = momentum.into_iter().map(|(name, t)| (format!("momentum of {name}"), t));
    let ema = ema.into_iter().map(|(name, t)| (format!("average of {name}"), t));
    let all = weights.into_iter().chain(quant).chain(momentum).chain(ema).chain(telemetry);
    all.map(|(name, tensor)| (name, bits(&tensor))).collect()
}

fn weight_bits(trainer: &Trainer, prefix: &str) -> BTreeMap<String, Vec<u64>> {
    let all = trainer.net().state().into_iter().filter(|(name, _)| name.starts_with(prefix));
    all.map(|(name, tensor)| (name, bits(&tensor))).collect()
}
