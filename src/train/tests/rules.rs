//! What a run guarantees while it goes: guard, freezing, levels, best checkpoint, batch norm.

use super::*;

fn one_stage(stage: StageConfig) -> TrainConfig {
    TrainConfig { stages: vec![stage], ..TrainConfig::default() }
}

fn two_epochs() -> StageConfig {
    StageConfig { epochs: 2, ..StageConfig::default() }
}

#[test]
fn a_loss_that_is_not_finite_stops_before_the_update_and_names_everything() {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { stages: vec![two_epochs()], ..TrainConfig::default() };
    let mut trainer = trainer(&config, folder.path());
    let mut recorder = Recorder::default();
    // Poison the network after the first epoch's checkpoint was decided on.
    let poison = |net: &dyn Network, _: &Position| {
        let _ = net.store().get("head.cls_logits.weight").unwrap().fill_(f64::NAN);
        Ok(None)
    };
    let poisoned = std::cell::Cell::new(false);
    let mut validate = |net: &dyn Network, position: &Position| {
        if poisoned.replace(true) { Ok(None) } else { poison(net, position) }
    };
    let error = run_with(&mut trainer, &mut recorder, &mut validate).unwrap_err();
    let text = format!("{error:#}");
    let step = BATCHES;
    let good = folder.path().join(format!("ckpt_{step:08}.safetensors"));
    for part in [
        format!("step {step} (stage 0 full_precision, epoch 2, step 1 of it) was not done"),
        "loss_cls NaN".to_owned(),
        "images epoch1/batch0/0.png, epoch1/batch0/1.png".to_owned(),
        format!("the last good checkpoint is {}", good.display()),
    ] {
        assert!(text.contains(&part), "{part:?} is not in {text:?}");
    }
    assert_eq!(trainer.position().global_step, step as u64);
}

#[test]
fn quantized_modules_stay_on_their_bits_through_later_stages() {
    let config = three_stages();
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&config, folder.path());
    let mut recorder = Recorder::default();
    run(&mut trainer, &mut recorder).unwrap();
    assert_eq!(
        recorder.ends.iter().map(|e| e.name.as_str()).collect::<Vec<_>>(),
        ["full_precision", "fpn", "head"]
    );
    let after_fpn = Checkpoint::read(&recorder.ends[1].checkpoint).unwrap().weights;
    let (mut same, mut moved) = (0, 0);
    for (name, tensor) in after_fpn {
        let now = bits(&trainer.net().store().get(&name).unwrap());
        if name.starts_with("fpn.") && name.ends_with(".weight") {
            assert_eq!(bits(&tensor), now, "{name}");
            let mut levels = now.clone();
            levels.sort();
            levels.dedup();
            assert!(levels.len() <= 3, "{name} has {} levels", levels.len());
            same += 1;
        } else if name.starts_with("fpn.") && name.ends_with(".bias") {
            moved += usize::from(bits(&tensor) != now);
        }
    }
    assert!(same > 0 && moved > 0, "{same} weights stayed, {moved} biases moved");
    assert_eq!(recorder.ends[2].sites.iter().filter(|s| s.name.starts_with("fpn.")).count(), same);
    // What is frozen is not counted as trainable.
    let trainable: Vec<_> = recorder.starts.iter().map(|s| s.num_trainable).collect();
    assert!(trainable[2] < trainable[1] && trainable[1] == trainable[0], "{trainable:?}");
}

#[test]
fn records_follow_the_schedules() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::default();
    run(&mut trainer(&three_stages(), folder.path()), &mut recorder).unwrap();
    let fractions: Vec<_> = recorder.epochs.iter().map(|e| e.quantized_fraction).collect();
    let expected = [None, None, Some(0.5), Some(0.8), Some(1.0), Some(1.0)];
    assert_eq!(fractions, expected);
    for (share, fraction) in recorder.epochs.iter().map(|e| e.frozen_fraction).zip(expected) {
        match (share, fraction) {
            // Each layer freezes the whole number below.
            (Some(share), Some(f)) => assert!(share <= f && share > f - 0.02, "{share} of {f}"),
            (share, _) => assert!(share.is_none_or(|s| s == 0.0), "{share:?}"),
        }
    }
    // Warm-up over 2 steps in each of the first two stages; the third has none.
    let lr: Vec<_> = recorder.steps.iter().map(|s| s.lr).collect();
    let starts = [0, 2 * BATCHES, 5 * BATCHES];
    assert_eq!([lr[starts[0]], lr[starts[0] + 1]], [0.005, 0.01]);
    assert_eq!([lr[starts[1]], lr[starts[1] + 1]], [0.005, 0.01]);
    assert_eq!(lr[starts[2]], 0.01);
    assert!(recorder.steps.iter().all(|s| s.num_positive > 0 && s.num_images == 2));
    assert!(
        recorder.epochs.iter().all(|e| e.steps == BATCHES as u64 && e.positive_per_image > 1.0)
    );
}

#[test]
fn training_lowers_the_loss() {
    let folder = tempfile::tempdir().unwrap();
    let lr = LrConfig { base: 0.02, warmup_steps: 0, decay: Decay::Constant };
    let config = one_stage(StageConfig { epochs: 12, lr, ..StageConfig::default() });
    let mut recorder = Recorder::default();
    run(&mut trainer(&config, folder.path()), &mut recorder).unwrap();
    let loss: Vec<_> = recorder.epochs.iter().map(|e| e.loss).collect();
    assert!(loss[11] < 0.8 * loss[0], "{loss:?}");
}

#[test]
fn a_weight_off_its_levels_fails_the_stage() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        one_stage(StageConfig { epochs: 1, ..StageConfig::mqat("fpn", weights(&[(0, 1.0)])) });
    let mut trainer = trainer(&config, folder.path());
    let mut move_one = |net: &dyn Network, _: &Position| {
        let weight = net.store().get("fpn.out_convs.3.weight").unwrap();
        let _ = weight.get(0).get(0).get(1).get(2).g_add_scalar_(1e-3);
        Ok(None)
    };
    let error = run_with(&mut trainer, &mut Recorder::default(), &mut move_one).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.starts_with("module fpn is off its levels after stage 0 (fpn)"), "{text}");
    assert!(text.contains("fpn.out_convs.3"), "{text}");
}

#[test]
fn only_fully_quantized_weights_can_be_the_best() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::default();
    run(&mut trainer(&three_stages(), folder.path()), &mut recorder).unwrap();
    let eligible: Vec<_> = recorder.valid.iter().map(|v| v.eligible).collect();
    assert_eq!(eligible, [true, true, false, false, true, true]);
    // Scores 0.5, 0.5, 1.5, 2.5, 3.5, 4.5: the first of equals; then the first eligible one of each stage.
    let best: Vec<_> = recorder.valid.iter().map(|v| v.best).collect();
    assert_eq!(best, [true, false, false, false, true, true]);
    let file = Checkpoint::read(&folder.path().join("best.safetensors")).unwrap();
    let kept = file.meta.best.unwrap();
    assert_eq!((kept.stage, kept.value, kept.global_step), (2, 4.5, 6 * BATCHES as u64));
}

#[test]
fn a_frozen_batch_norm_keeps_its_statistics_and_uses_them() {
    let statistics = |freeze_bn: bool| {
        let folder = tempfile::tempdir().unwrap();
        let config = one_stage(StageConfig { freeze_bn, epochs: 1, ..StageConfig::default() });
        let mut trainer = trainer(&config, folder.path());
        let mut recorder = Recorder::default();
        run(&mut trainer, &mut recorder).unwrap();
        let mut all = weight_bits(&trainer, "backbone.");
        all.retain(|name, _| name.contains("running_") || name.ends_with("num_batches_tracked"));
        (all, recorder.steps[0].loss)
    };
    let fresh = {
        let folder = tempfile::tempdir().unwrap();
        let mut all = weight_bits(&trainer(&one_stage(two_epochs()), folder.path()), "backbone.");
        all.retain(|name, _| name.contains("running_") || name.ends_with("num_batches_tracked"));
        all
    };
    assert!(!fresh.is_empty());
    let (frozen, loss_frozen) = statistics(true);
    let (moving, loss_moving) = statistics(false);
    assert_eq!(frozen, fresh);
    assert!(moving.iter().all(|(name, now)| *now != fresh[name]));
    assert_ne!(loss_frozen, loss_moving);
}

#[test]
fn the_stage_decides_the_batch_size() {
    let folder = tempfile::tempdir().unwrap();
    let config =
        one_stage(StageConfig { batch_size: Some(3), epochs: 1, ..StageConfig::default() });
    let mut recorder = Recorder::default();
    run(&mut trainer(&config, folder.path()), &mut recorder).unwrap();
    assert!(recorder.steps.iter().all(|s| s.num_images == 3));
}

struct Broken(&'static str);

impl BatchSource for Broken {
    fn num_batches(&self, _: Option<usize>) -> usize {
        if self.0 == "none" { 0 } else { 2 }
    }

    fn open(&mut self, request: BatchRequest) -> Result<Batches> {
        let what = self.0;
        Ok(Box::new((0..2).map(move |b| match what {
            "error" => bail!("reading b.png: truncated"),
            "panic" if b == 1 => panic!("out of cheese"),
            "size" => Ok(Batch { width: 64, ..toy_batch(request.epoch_key, b, 2) }),
            "class" => {
                let mut batch = toy_batch(request.epoch_key, b, 2);
                batch.objects[1][0].class = 4;
                Ok(batch)
            }
            _ => Ok(toy_batch(request.epoch_key, b, 2)),
        })))
    }
}

#[test]
fn trouble_with_data_is_an_error_that_says_what() {
    for (kind, expected) in [
        ("error", "reading b.png: truncated"),
        ("panic", "the thread that prepares batches panicked: out of cheese"),
        ("size", "a batch has images of 64 x 32 px, expected 32 x 32"),
        ("class", "an object has class 4, and there are 1 models"),
        ("none", "there are fewer training images than a batch takes"),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = trainer(&one_stage(two_epochs()), folder.path());
        let result = trainer.run(Hooks {
            source: &mut Broken(kind),
            validate: &mut valley,
            observer: &mut (),
            stop: &AtomicBool::new(false),
        });
        let text = format!("{:#}", result.unwrap_err());
        assert!(text.contains(expected), "{kind}: {text}");
    }
}

#[test]
fn each_bad_value_of_a_config_is_named() {
    let mut config = three_stages();
    config.ckpt_every = 0;
    config.max_steps = Some(0);
    config.stages[0].name = "a/b".to_owned();
    config.stages[0].clip_norm = 0.0;
    config.stages[1].epochs = 2;
    config.stages[1].lr.base = -1.0;
    config.stages[2].module = Some("fpn.out_convs".to_owned());
    config
        .stages
        .push(StageConfig { module: None, ..StageConfig::mqat("x", weights(&[(0, 1.0)])) });
    config.stages.push(StageConfig { module: Some("backbone".to_owned()), ..two_epochs() });
    let mut problems = Vec::new();
    config.check("training", &mut problems);
    for part in [
        "training.ckpt_every: 0 is below 1",
        "training.max_steps: 0 is below 1",
        "training.stages.0.name: \"a/b\" is not of letters",
        "training.stages.0.clip_norm: 0 is not above 0",
        "training.stages.1.weights.schedule.2: fraction 1 is never reached",
        "training.stages.1.lr.base: -1 is not above 0",
        "training.stages.2.module: fpn.out_convs was quantized by stage fpn before",
        "training.stages.3.module: is null, but weights or activations are to be quantized",
        "training.stages.4.module: backbone, but neither weights nor activations",
    ] {
        assert!(problems.iter().any(|p| p.starts_with(part)), "{part:?} is not in {problems:#?}");
    }
    assert_eq!(problems.len(), 9, "{problems:#?}");
    let mut none = Vec::new();
    TrainConfig::default().check("training", &mut none);
    TrainConfig { stages: vec![StageConfig::full_precision()], ..TrainConfig::default() }
        .check("training", &mut none);
    assert_eq!(none, [""; 0]);
    let empty = TrainConfig { stages: vec![], ..TrainConfig::default() };
    empty.check("training", &mut none);
    assert_eq!(none, ["training.stages: is empty, expected at least one stage"]);
}

#[test]
fn the_average_is_evaluated_and_the_weights_themselves_go_on() {
    let (mut two, ema) = (three_stages(), EmaConfig { decay: 0.5, from: 0 });
    two.stages.truncate(2);
    let folder = tempfile::tempdir().unwrap();
    let plain = {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = trainer(&two, folder.path());
        run(&mut trainer, &mut Recorder::default()).unwrap();
        weight_bits(&trainer, "")
    };
    let config = TrainConfig { ema: Some(ema), ..two };
    let mut trainer = trainer(&config, folder.path());
    let mut last_seen = BTreeMap::new();
    let mut validate = |net: &dyn Network, _: &Position| {
        last_seen = net.state().iter().map(|(n, t)| (n.clone(), bits(t))).collect();
        Ok(None)
    };
    let mut recorder = Recorder::default();
    let outcome = run_with(&mut trainer, &mut recorder, &mut validate).unwrap();
    // the course of the training is that without an average
    assert_eq!(weight_bits(&trainer, ""), plain);
    let Outcome::Finished { checkpoint } = outcome else { panic!("{outcome:?}") };
    let saved = Checkpoint::read(&checkpoint).unwrap();
    let average: BTreeMap<_, _> =
        saved.ema.iter().map(|(name, tensor)| (name.clone(), bits(tensor))).collect();
    assert_eq!(average, last_seen);
    // quantized weights are on their levels in both, bit for bit; the others differ
    for (name, values) in &average {
        if name.starts_with("fpn.") && name.ends_with(".weight") {
            assert_eq!(*values, plain[name], "{name}");
        }
    }
    for moving in ["head.cls_logits.weight", "fpn.out_convs.2.bias"] {
        assert_ne!(average[moving], plain[moving], "{moving}");
    }
    let net = toy_net();
    let loaded = load_for_evaluation(&checkpoint, net.as_ref()).unwrap();
    assert!(loaded.averaged);
    let used: BTreeMap<_, _> = net.state().iter().map(|(n, t)| (n.clone(), bits(t))).collect();
    assert_eq!(used, average);
    loaded.quantizers[0].assert_on_grid().unwrap();
}

#[test]
fn an_average_that_never_begins_is_refused() {
    let ema = |decay, from| {
        let config = TrainConfig { ema: Some(EmaConfig { decay, from }), ..three_stages() };
        let mut problems = Vec::new();
        config.check("training", &mut problems);
        problems.join("; ")
    };
    assert_eq!(ema(0.9, 2), "");
    assert!(ema(0.9, 3).contains("training.ema.from: epoch 3 is never reached"), "{}", ema(0.9, 3));
    assert!(ema(1.0, 0).contains("training.ema.decay: 1 is outside 0..1 (1 excluded)"));
}

#[test]
fn telemetry_comes_with_every_epoch_that_quantizes() {
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::default();
    run(&mut trainer(&three_stages(), folder.path()), &mut recorder).unwrap();
    let places: Vec<_> = recorder.telemetry.iter().map(|t| (t.stage, t.epoch)).collect();
    assert_eq!(places, [(1, 0), (1, 1), (1, 2), (2, 0)]);
    let fpn: Vec<_> = recorder.telemetry[..3].iter().map(|t| &t.module.numbers).collect();
    let frozen: Vec<f64> = fpn.iter().map(|n| n.frozen_fraction.unwrap()).collect();
    assert!((frozen[0] - 0.5).abs() < 0.01 && (frozen[1] - 0.8).abs() < 0.01, "{frozen:?}");
    assert_eq!(frozen[2], 1.0);
    assert_eq!(fpn[0].flip_rate, None);
    assert!(fpn[1].flip_rate.unwrap() < 0.2, "only half of the weights could move");
    assert!(fpn[1].oscillation.is_none() && fpn[2].oscillation.is_some());
    assert_eq!((fpn[2].scale_drift, fpn[2].scale_drift_from_start), (Some(0.0), Some(0.0)));
    assert!(fpn.iter().all(|n| (3.0..20.0).contains(&n.sqnr_db.unwrap())), "{fpn:?}");
    assert_eq!(fpn[2].levels_in_use, Some(3));
    // the head's stage knows nothing of the fpn's
    let head = &recorder.telemetry[3].module;
    assert!(head.layers.iter().all(|l| l.name.starts_with("head.")) && head.module == "head");
}

#[test]
fn a_rehearsed_update_is_that_of_a_run() {
    let mut config = three_stages();
    config.stages.remove(0);
    config.stages.truncate(1);
    config.stages[0].lr.decay = Decay::Constant; // a rehearsal does not know how long a run is
    let folder = tempfile::tempdir().unwrap();
    config.max_steps = Some(1);
    let mut real = trainer(&config, &folder.path().join("real"));
    run(&mut real, &mut Recorder::default()).unwrap();
    let rehearsed = trainer(&config, &folder.path().join("rehearsed"));
    let mut rehearsal = Rehearsal::new(rehearsed, toy_batch(0, 0, 2), 0).unwrap();
    assert_eq!(weight_bits(rehearsal.trainer(), ""), weight_bits(&real, ""));
    assert_eq!(rehearsal.frozen_fraction(), real.frozen_fraction());
    rehearsal.update().unwrap();
    assert_ne!(weight_bits(rehearsal.trainer(), ""), weight_bits(&real, ""));
    // nothing is written, and there is no epoch after the last
    assert_eq!(std::fs::read_dir(folder.path().join("rehearsed")).unwrap().count(), 0);
    let late = trainer(&config, &folder.path().join("late"));
    let error = Rehearsal::new(late, toy_batch(0, 0, 2), 3).err().unwrap().to_string();
    assert!(error.contains("epoch 3 of a stage that has 3"), "{error}");
}

#[test]
fn a_rehearsal_has_all_modules_quantized_as_their_stages_do() {
    let folder = tempfile::tempdir().unwrap();
    let made = trainer(&three_stages(), folder.path());
    let mut rehearsal = Rehearsal::new(made, toy_batch(0, 0, 2), 0).unwrap();
    for _ in 0..2 {
        rehearsal.update().unwrap();
    }
    let sites = rehearsal.sites();
    assert!(sites.iter().all(|site| site.frozen_fraction == 1.0));
    let of_fpn: Vec<_> = sites.iter().filter(|site| site.name.starts_with("fpn")).collect();
    assert!(of_fpn.iter().all(|site| site.activations.as_ref().unwrap().quantizing));
    assert!(sites.iter().any(|site| site.name.starts_with("head")) && !of_fpn.is_empty());
}
