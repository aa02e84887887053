//! The stages of a run, its state, and how it is saved and restored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result, bail, ensure};
use tch::{Tensor, no_grad};

use super::checkpoint::{self, Best, EpochSums, config_hash};
use super::ema::Ema;
use super::together::Together;
use super::{
    BatchNormInfo, BatchSource, Checkpoint, CheckpointFolder, CheckpointMeta, CheckpointRecord,
    DataPrint, Found, ObjectInfo, Observer, Position, QuantizedModule, ResumeFrom, Sgd,
    StageConfig, StageEnd, StageStart, TrainConfig, ValidScore,
};
use crate::io::{differing_keys, name_keys};
use crate::nn::{Network, Var, device_name};
use crate::quant::{ModuleQuantizer, SiteReport, Telemetry, select};
use crate::topology::Task;
use crate::world::World;

/// What identifies a run, and where its checkpoints go.
#[derive(Debug, Clone)]
pub struct RunInfo {
    /// Seed of everything random.
    pub seed: u64,
    /// The folder of checkpoints, the run's own.
    pub checkpoints: PathBuf,
    /// The resolved configuration, kept in every checkpoint.
    pub config: serde_json::Value,
    /// By what the data are known again, by split; kept in every checkpoint.
    pub data: BTreeMap<String, DataPrint>,
    /// The objects that the network learns, by class; kept in every checkpoint.
    pub objects: Vec<ObjectInfo>,
}

/// Measures the network after an epoch; `None` if there is nothing to measure by. Runs without gradients.
pub type Validate<'a> = dyn FnMut(&dyn Network, &Position) -> Result<Option<ValidScore>> + 'a;

/// What a run is handed from outside.
pub struct Hooks<'a> {
    /// Where batches come from.
    pub source: &'a mut dyn BatchSource,
    /// The validation.
    pub validate: &'a mut Validate<'a>,
    /// Who is told.
    pub observer: &'a mut dyn Observer,
    /// Set (by a signal handler) to stop after the current step.
    pub stop: &'a AtomicBool,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All stages are complete.
    Finished {
        /// The last checkpoint.
        checkpoint: PathBuf,
    },
    /// It was asked to stop.
    Interrupted {
        /// The checkpoint to resume from.
        checkpoint: PathBuf,
    },
    /// The largest number of steps was reached.
    MaxSteps {
        /// The checkpoint to resume from.
        checkpoint: PathBuf,
    },
}

/// Trains a network through its stages.
///
/// Everything that decides the next step (weights, statistics, momentum, quantizers, position) is in a checkpoint,
/// and nothing depends on a global generator: a run that goes on from a checkpoint ends, on the CPU and with the same
/// number of threads, with the same bits as one that never stopped.
pub struct Trainer {
    pub(super) net: Box<dyn Network>,
    pub(super) config: TrainConfig,
    pub(super) task: Box<dyn Task>,
    pub(super) sgd: Sgd,
    pub(super) position: Position,
    pub(super) sums: EpochSums,
    pub(super) best: Option<Best>,
    pub(super) last_checkpoint: Option<PathBuf>,
    /// The moving average of the weights, from the epoch of the stage on that it begins with.
    pub(super) ema: Option<Ema>,
    pub(super) telemetry: Telemetry,
    /// How the statistics of batch norms were estimated the last time.
    pub(super) batch_norm: Option<BatchNormInfo>,
    pub(super) quantizers: Vec<(QuantizedModule, ModuleQuantizer)>,
    /// The processes that train this together.
    pub(super) together: Together,
    /// Steps take products of convolutions in bfloat16; what is measured between them does not.
    pub(super) in_bf16: bool,
    folder: CheckpointFolder,
    run: RunInfo,
    /// Where `last_checkpoint` is, if this run wrote or read it.
    saved: Option<Position>,
}

impl Trainer {
    /// A run at its beginning, over a network without quantizers that is to learn a task.
    ///
    /// # Errors
    /// If the config is out of range, or the folder of checkpoints cannot be made.
    pub fn new(
        net: Box<dyn Network>,
        config: TrainConfig,
        mut task: Box<dyn Task>,
        run: RunInfo,
    ) -> Result<Self> {
        let mut problems = Vec::new();
        config.check("training", &mut problems);
        ensure!(problems.is_empty(), "{}", problems.join("; "));
        task.begin(net.as_ref())?;
        let parameters = net.store().parameters().into_iter().map(|v| (v.name, v.tensor)).collect();
        let sgd = Sgd::new(&config.stages[0].optimizer, parameters)?;
        Ok(Self {
            task,
            folder: CheckpointFolder::open(&run.checkpoints, config.keep)?,
            net,
            config,
            sgd,
            position: Position::default(),
            sums: EpochSums::default(),
            best: None,
            last_checkpoint: None,
            ema: None,
            telemetry: Telemetry::default(),
            batch_norm: None,
            quantizers: Vec::new(),
            together: Together::alone(),
            in_bf16: false,
            run,
            saved: None,
        })
    }

    /// Tells the task of other weights that the run starts from: the network was loaded behind [`Trainer::new`].
    ///
    /// # Errors
    /// If it is the network of another task.
    pub fn begin_anew(&mut self) -> Result<()> {
        self.task.begin(self.net.as_ref())
    }

    /// Shares the run with the other processes of `world`, each of which computes its part of every batch in `accumulate`
    /// pieces, one after the other. The sum of the gradients is that of the whole batch. Process 0 alone writes checkpoints.
    pub fn with_world(mut self, world: Rc<World>, accumulate: usize) -> Self {
        self.together = Together { world, accumulate, stop_told: false };
        self
    }

    /// Has steps take products of convolutions in bfloat16. Weights, statistics, quantizers and losses stay float32, and so does
    /// all that is measured between steps.
    pub fn with_bf16(mut self, in_bf16: bool) -> Self {
        self.in_bf16 = in_bf16;
        self
    }

    /// The network.
    pub fn net(&self) -> &dyn Network {
        self.net.as_ref()
    }

    /// Where the run is.
    pub fn position(&self) -> &Position {
        &self.position
    }

    /// The layers of all modules that carry quantizers.
    pub fn sites(&self) -> Vec<SiteReport> {
        self.quantizers.iter().flat_map(|(_, q)| q.report()).collect()
    }

    /// Goes on from a checkpoint of the run's folder, and returns its path. Numbered checkpoints beyond it are renamed
    /// to `*.superseded`. With [`ResumeFrom::Last`] a run that was killed before its first checkpoint begins anew:
    /// `None`.
    ///
    /// # Errors
    /// If there is none that can be read, or it does not fit the network or the stages.
    pub fn resume(
        &mut self,
        from: &ResumeFrom,
        observer: &mut dyn Observer,
    ) -> Result<Option<PathBuf>> {
        ensure!(
            self.quantizers.is_empty() && self.position == Position::default(),
            "a run that has begun cannot be resumed"
        );
        let is_new = || Ok(*from == ResumeFrom::Last && self.folder.list()?.is_empty());
        if self.world().from_first(is_new)? {
            let folder = self.run.checkpoints.display();
            observer.message(&format!("no checkpoint in {folder} yet: the run begins anew"))?;
            return Ok(None);
        }
        let found = self.find(from)?;
        for (path, trouble) in &found.skipped {
            observer.message(&format!(
                "checkpoint {} cannot be read and is passed over: {trouble}; going on from the older {}",
                path.display(),
                found.path.display()
            ))?;
        }
        self.restore(found.checkpoint, &found.path, observer)
            .with_context(|| format!("resuming from {}", found.path.display()))?;
        let renamed = || self.folder.set_aside_after(self.position.global_step);
        for path in self.world().from_first(renamed)? {
            observer.message(&format!("a newer checkpoint is now {}", path.display()))?;
        }
        if self.best.as_ref().is_some_and(|b| b.global_step == self.position.global_step) {
            // A process that was killed right after writing it may not have come to this.
            self.world().from_first(|| self.folder.mark_best(&found.path))?;
        }
        self.last_checkpoint = Some(found.path.clone());
        self.saved = Some(self.position.clone());
        Ok(Some(found.path))
    }

    /// The checkpoint to go on from, the same file in all processes.
    fn find(&self, from: &ResumeFrom) -> Result<Found> {
        let mut own = None;
        let path = self.world().from_first(|| {
            let found = self.folder.find(from)?;
            let path = found.path.clone();
            own = Some(found);
            Ok(path)
        })?;
        match own {
            Some(found) => Ok(found),
            None => Ok(Found { checkpoint: Checkpoint::read(&path)?, path, skipped: Vec::new() }),
        }
    }

    pub(super) fn world(&self) -> &World {
        &self.together.world
    }

    fn restore(
        &mut self,
        checkpoint: Checkpoint,
        path: &Path,
        observer: &mut dyn Observer,
    ) -> Result<()> {
        let Checkpoint { meta, weights, quant, momentum, ema, telemetry, task } = checkpoint;
        self.check_stages(&meta)?;
        for difference in self.differences(&meta) {
            observer.message(&difference)?;
        }
        checkpoint::load_weights(self.net.store(), &weights, path)?;
        let quantizers = checkpoint::attach_all(&meta.quantized, self.net.store(), &quant)?;
        self.quantizers = meta.quantized.into_iter().zip(quantizers).collect();
        self.register_learnt()?;
        self.sgd.load_momentum(&momentum)?;
        self.telemetry.load_state(&telemetry)?;
        self.task.load_state(&task)?;
        match &self.config.ema {
            Some(config) if !ema.is_empty() => {
                let mut average = Ema::begin(config, self.net.store());
                average.load_state(&ema)?;
                self.ema = Some(average);
            }
            None if !ema.is_empty() => observer.message(
                "the checkpoint holds a moving average of the weights, and training.ema is null: it is dropped",
            )?,
            _ => {}
        }
        self.position = meta.position;
        self.sums = meta.epoch_sums;
        self.best = meta.best;
        self.batch_norm = meta.batch_norm;
        Ok(())
    }

    /// The stages up to the checkpoint's must be those of the config, as far as the state depends on them.
    fn check_stages(&self, meta: &CheckpointMeta) -> Result<()> {
        let Position { stage, epoch, .. } = meta.position;
        let stages = &self.config.stages;
        let Some(own) = stages.get(stage) else {
            bail!(
                "it is in stage {stage} ({}), and the config has {} stages",
                meta.stage_name,
                stages.len()
            )
        };
        ensure!(
            own.label() == meta.stage_name,
            "its stage {stage} is {}, and that of the config is {}",
            meta.stage_name,
            own.label()
        );
        ensure!(
            epoch <= own.epochs,
            "it is after {epoch} epochs of stage {stage}, and the config has {}",
            own.epochs
        );
        for (i, stage) in stages.iter().enumerate().take(stage + 1) {
            let theirs = meta.quantized.iter().find(|q| q.stage == i);
            let ours = QuantizedModule::of_stage(i, stage, self.run.seed);
            // The stage's quantizers may not be there yet where it is about to begin.
            let about_to_begin = i == meta.position.stage && epoch == 0 && meta.position.batch == 0;
            ensure!(
                theirs == ours.as_ref() || (theirs.is_none() && about_to_begin),
                "stage {i} ({}) was quantized with other settings or another seed; start a new run for these",
                stage.label()
            );
        }
        self.check_finished_epochs(meta)
    }

    /// The epochs of a module that goes on learning count on from its own stage: the stages since then must be as long as they
    /// were.
    fn check_finished_epochs(&self, meta: &CheckpointMeta) -> Result<()> {
        let now = meta.position.stage;
        for module in meta.quantized.iter().filter(|m| m.stage < now && m.learns_in(now)) {
            let both = meta.stage_epochs.iter().zip(&self.config.stages).enumerate();
            for (i, (theirs, stage)) in both.take(now).skip(module.stage) {
                ensure!(
                    *theirs == stage.epochs,
                    "stage {i} ({}) is finished and had {theirs} epochs, and that of the config has {} ({}): module {} goes on \
                     learning after its stage (afterwards is train), and its epochs count on from the stage's; set its {theirs} \
                     epochs again, or start a new run",
                    stage.label(),
                    stage.epochs,
                    self.changed_epochs(meta).join(", "),
                    module.claim.module
                );
            }
        }
        Ok(())
    }

    /// The keys of epochs that are others than those of the checkpoint's configuration.
    fn changed_epochs(&self, meta: &CheckpointMeta) -> Vec<String> {
        let mut keys = differing_keys(&meta.config, &self.run.config);
        keys.retain(|key| key.ends_with(".epochs"));
        keys
    }

    /// What may make a resumed run differ from one that never stopped.
    fn differences(&self, meta: &CheckpointMeta) -> Vec<String> {
        let mut all = Vec::new();
        let mut compare = |what: &str, theirs: &str, ours: &str| {
            if theirs != ours {
                all.push(format!(
                    "the checkpoint was written with {what} {theirs}, and this run has {ours}: the result may \
                     differ from that of a run without a stop"
                ));
            }
        };
        let precision = |config: &serde_json::Value| {
            config["RUNTIME"]["PRECISION"].as_str().unwrap_or("fp32").to_owned()
        };
        compare("precision", &precision(&meta.config), &precision(&self.run.config));
        compare("seed", &meta.seed.to_string(), &self.run.seed.to_string());
        compare("mqat version", &meta.mqat_version, env!("CARGO_PKG_VERSION"));
        compare("device", &meta.device, &self.device());
        let threads = tch::get_num_threads().to_string();
        compare("libtorch threads", &meta.num_threads.to_string(), &threads);
        let processes = self.world().size().to_string();
        compare("a number of processes of", &meta.num_processes.to_string(), &processes);
        // The configurations themselves are compared: hashes of 0.1 are of another kind.
        if meta.config != self.run.config {
            let keys = differing_keys(&meta.config, &self.run.config);
            let which = match keys.is_empty() {
                true => String::new(),
                false => format!(": {} differ", name_keys(keys)),
            };
            all.push(format!("the checkpoint was written with another configuration{which}"));
        }
        for (split, theirs) in &meta.data {
            let ours = self.run.data.get(split);
            if let Some(what) = ours.and_then(|ours| theirs.difference(ours)) {
                all.push(format!(
                    "the {split} split is not the one that the checkpoint was written with ({what}): training continues \
                     on different data, and its batches differ from those of an uninterrupted run"
                ));
            }
        }
        all
    }

    fn device(&self) -> String {
        device_name(self.net.store().device())
    }

    /// Runs to the end of the last stage, or until it is asked to stop.
    ///
    /// # Errors
    /// If the folder holds checkpoints of another run and [`Trainer::resume`] was not called; if data cannot be
    /// read; if a loss is not finite; if a quantized module is off its levels after its stage; if a checkpoint
    /// cannot be written; and whatever the hooks return.
    pub fn run(&mut self, mut hooks: Hooks<'_>) -> Result<Outcome> {
        let hooks = &mut hooks;
        let is_of_another_run = || Ok(self.saved.is_none() && !self.folder.list()?.is_empty());
        if self.world().from_first(is_of_another_run)? {
            bail!(
                "{} holds checkpoints of another run; resume it or choose another folder",
                self.run.checkpoints.display()
            );
        }
        let epochs: Vec<u32> = self.config.stages.iter().map(|stage| stage.epochs).collect();
        hooks.observer.run_start(&epochs)?;
        loop {
            self.begin_stage(hooks)?;
            while self.position.epoch < self.stage().epochs && !self.is_out_of_patience() {
                if let Some(outcome) = self.stop_if_asked_between(hooks)? {
                    return Ok(outcome);
                }
                if let Some(outcome) = self.epoch(hooks)? {
                    return Ok(outcome);
                }
            }
            let checkpoint = self.end_stage(hooks)?;
            if self.position.stage + 1 == self.config.stages.len() {
                return Ok(Outcome::Finished { checkpoint });
            }
            self.position = Position {
                stage: self.position.stage + 1,
                epoch: 0,
                batch: 0,
                stage_step: 0,
                ..self.position
            };
        }
    }

    /// As [`Trainer::stop_if_asked`], between epochs; within one the epoch asks.
    fn stop_if_asked_between(&mut self, hooks: &mut Hooks<'_>) -> Result<Option<Outcome>> {
        if self.position.batch == 0 { self.stop_if_asked(hooks) } else { Ok(None) }
    }

    pub(super) fn stage(&self) -> &StageConfig {
        &self.config.stages[self.position.stage]
    }

    pub(super) fn seed(&self) -> u64 {
        self.run.seed
    }

    /// The quantizers of the stage's module, if it has one.
    pub(super) fn current_quantizer(&mut self) -> Option<&mut ModuleQuantizer> {
        let stage = self.position.stage;
        self.quantizers.iter_mut().find(|(module, _)| module.stage == stage).map(|(_, q)| q)
    }

    /// The module of that place among the quantizers, where it learns in this stage, and the epoch it is in: counted from
    /// the begin of its own stage, of which a later stage is the continuation.
    pub(super) fn epoch_of_quantizer(&self, index: usize) -> Option<u32> {
        let (module, _) = &self.quantizers[index];
        let Position { stage, epoch, .. } = self.position;
        let before = self.config.stages[module.stage.min(stage)..stage].iter();
        let epochs = before.fold(0u32, |sum, s| sum.saturating_add(s.epochs));
        module.learns_in(stage).then(|| epochs.saturating_add(epoch))
    }

    /// Hands the optimizer what is frozen, of all modules.
    pub(super) fn freeze(&mut self) -> Result<()> {
        let mut masks: Vec<_> =
            self.quantizers.iter().flat_map(|(_, q)| q.trainable_masks()).collect();
        masks.extend(self.frozen_parameters()?);
        if let Some(ema) = &mut self.ema {
            ema.freeze(&masks)?;
        }
        self.sgd.set_trainable(&masks)
    }

    /// Masks of the parameters that the stage keeps as they are.
    fn frozen_parameters(&self) -> Result<Vec<(String, Tensor)>> {
        let Some(frozen) = self.stage().frozen_modules()? else { return Ok(Vec::new()) };
        let store = self.net.store();
        let parameters = store.parameters().into_iter();
        let inside = parameters.filter(|var| select::covers_in(store, &frozen, &var.name));
        let mask = |var: Var| (var.name, no_grad(|| var.tensor.zeros_like()));
        let masks: Vec<(String, Tensor)> = inside.map(mask).collect();
        ensure!(!masks.is_empty(), "frozen: {:?} has no parameter", self.stage().frozen);
        Ok(masks)
    }

    /// Says which batch norms the stage leaves as they are: all of them, or those of the modules that it keeps.
    fn freeze_batch_norms(&self) -> Result<()> {
        let (stage, store) = (self.stage(), self.net.store());
        store.freeze_batch_norm(stage.freeze_bn);
        let frozen = stage.frozen_modules()?.filter(|_| stage.frozen_statistics);
        store.freeze_batch_norms_where(|layer| {
            frozen.as_ref().is_some_and(|frozen| select::covers_in(store, frozen, layer))
        });
        Ok(())
    }

    /// Does something with the network as it is evaluated: with averaged weights where there are any.
    pub(super) fn evaluated<T>(&self, task: impl FnOnce() -> T) -> T {
        let quantizers: Vec<_> = self.quantizers.iter().map(|(_, quantizer)| quantizer).collect();
        let task = || ModuleQuantizer::holding(&quantizers, task);
        match &self.ema {
            Some(ema) => ema.evaluate(task),
            None => task(),
        }
    }

    /// Hands the optimizer what quantizers learn.
    fn register_learnt(&mut self) -> Result<()> {
        let all = || self.quantizers.iter().map(|(_, quantizer)| quantizer);
        let learnt = all().flat_map(ModuleQuantizer::learnt).collect();
        let sources = all().flat_map(ModuleQuantizer::gradient_sources).collect();
        self.sgd.set_learnt(learnt, sources)
    }

    pub(super) fn begin_stage(&mut self, hooks: &mut Hooks<'_>) -> Result<()> {
        let Position { stage: index, epoch, batch, global_step, .. } = self.position;
        let stage = self.stage().clone();
        if epoch == 0 && batch == 0 {
            self.sgd.clear_state();
            let go_on = self.quantizers.iter().filter(|(module, _)| module.learns_in(index));
            self.telemetry.keep_only(go_on.map(|(_, quantizer)| quantizer));
            self.ema = None;
        }
        for (module, quantizer) in self.quantizers.iter_mut().filter(|(m, _)| !m.learns_in(index)) {
            let doing = || format!("freezing module {} before stage {index}", module.claim.module);
            quantizer.convert().with_context(doing)?;
        }
        if let Some(module) = QuantizedModule::of_stage(index, &stage, self.run.seed)
            && self.current_quantizer().is_none()
        {
            let quantizer = module.attach(self.net.store())?;
            self.quantizers.push((module, quantizer));
        }
        self.register_learnt()?;
        self.sgd.set_config(&stage.optimizer);
        self.freeze()?;
        self.freeze_batch_norms()?;
        hooks.observer.stage_start(&StageStart {
            stage: index,
            name: stage.label(),
            module: stage.module.clone(),
            epoch,
            num_epochs: stage.epochs,
            num_batches: hooks.source.num_batches(stage.batch_size),
            global_step,
            num_trainable: self.sgd.num_trainable(),
            sites: self.sites(),
        })
    }

    /// Checks that every quantized weight is on its levels, and keeps the stage's checkpoint.
    fn end_stage(&mut self, hooks: &mut Hooks<'_>) -> Result<PathBuf> {
        let index = self.position.stage;
        let name = self.stage().label();
        // For a stage that ends without a validation, after a resume with fewer epochs.
        if self.is_estimate_due() {
            self.reestimate_batch_norms(hooks)?;
            self.saved = self.saved.take().filter(|_| self.is_estimate_due());
        }
        let on_grid = || -> Result<()> {
            for (module, quantizer) in &self.quantizers {
                quantizer.assert_on_grid().with_context(|| {
                    let module = &module.claim.module;
                    format!("module {module} is off its levels after stage {index} ({name})")
                })?;
            }
            Ok(())
        };
        on_grid()?;
        if self.ema.is_some() {
            self.evaluated(on_grid).context("in the moving average of the weights")?;
        }
        let numbered = self.save(hooks, false)?;
        let mark = || self.folder.mark_stage(&numbered, index, &name);
        let checkpoint = self.world().from_first(mark)?;
        hooks.observer.stage_end(&StageEnd {
            stage: index,
            name,
            global_step: self.position.global_step,
            checkpoint: checkpoint.clone(),
            sites: self.sites(),
        })?;
        Ok(checkpoint)
    }

    /// Writes the state of this moment, unless its file already exists; process 0 does it for all.
    pub(super) fn save(&mut self, hooks: &mut Hooks<'_>, best: bool) -> Result<PathBuf> {
        let world = self.together.world.clone();
        let path = world.from_first(|| self.save_here(hooks, best))?;
        self.last_checkpoint = Some(path.clone());
        self.saved = Some(self.position.clone());
        Ok(path)
    }

    fn save_here(&mut self, hooks: &mut Hooks<'_>, best: bool) -> Result<PathBuf> {
        if let (Some(path), Some(saved)) = (&self.last_checkpoint, &self.saved)
            && *saved == self.position
            && path.exists()
        {
            return Ok(path.clone());
        }
        hooks.observer.before_checkpoint()?;
        let path = self.folder.save(&self.checkpoint())?;
        if best {
            self.folder.mark_best(&path)?;
        }
        hooks.observer.checkpoint(&CheckpointRecord {
            path: path.clone(),
            global_step: self.position.global_step,
            global_epoch: self.position.global_epoch,
            best,
        })?;
        Ok(path)
    }

    /// The state of this moment.
    pub(super) fn checkpoint(&self) -> Checkpoint {
        let meta = CheckpointMeta {
            format: checkpoint::FORMAT,
            mqat_version: env!("CARGO_PKG_VERSION").to_owned(),
            stage_name: self.stage().label(),
            position: self.position.clone(),
            epoch_sums: self.sums.clone(),
            best: self.best.clone(),
            quantized: self.quantizers.iter().map(|(module, _)| module.clone()).collect(),
            seed: self.run.seed,
            num_threads: tch::get_num_threads(),
            num_processes: self.world().size(),
            device: self.device(),
            config_hash: config_hash(&self.run.config),
            config: self.run.config.clone(),
            stage_epochs: self.config.stages.iter().map(|stage| stage.epochs).collect(),
            data: self.run.data.clone(),
            objects: self.run.objects.clone(),
            batch_norm: self.batch_norm.clone(),
            imported: None,
        };
        Checkpoint {
            meta,
            weights: self.net.state(),
            quant: self.quantizers.iter().flat_map(|(_, q)| q.state()).collect(),
            momentum: self.sgd.momentum(),
            ema: self.ema.as_ref().map_or_else(Vec::new, Ema::state),
            telemetry: self.telemetry.state(),
            task: self.task.state(),
        }
    }

    /// Fraction of the weights of the stage's module that are frozen on a level; `None` if they stay float.
    pub(super) fn frozen_fraction(&self) -> Option<f64> {
        let of_stage = |(module, _): &&(QuantizedModule, _)| module.stage == self.position.stage;
        let (_, quantizer) = self.quantizers.iter().find(of_stage)?;
        let (all, frozen) = quantizer.count_frozen();
        if !quantizer.is_partial() {
            return (all > 0).then_some(1.0); // exactly, whatever the sum rounds to
        }
        Some(frozen / all as f64)
    }

    /// Whether the stage's module is quantized as it is to be in the end, so that scores are those of the result.
    pub(super) fn quantization_is_complete(&self) -> bool {
        let quantizing = |epochs_done: u32| {
            let activations = self.stage().activations.as_ref();
            activations.is_none_or(|a| epochs_done > a.quant_start_epoch)
        };
        self.frozen_fraction().is_none_or(|share| share == 1.0) && quantizing(self.position.epoch)
    }
}
