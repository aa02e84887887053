//! A run that stops and goes on ends with the bits of one that never stopped.

use serde_json::Value;

use super::*;

fn undisturbed(config: &TrainConfig) -> (BTreeMap<String, Vec<u64>>, Recorder) {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(config, folder.path());
    let mut recorder = Recorder::default();
    let outcome = run(&mut trainer, &mut recorder).unwrap();
    assert!(matches!(outcome, Outcome::Finished { .. }));
    (everything(&trainer), recorder)
}

/// The records of a run with timings left out.
fn comparable(recorder: &Recorder) -> Vec<String> {
    let steps = recorder.steps.iter().map(|s| StepRecord { images_per_s: 0.0, ..s.clone() });
    steps.map(|s| format!("{s:?}")).collect()
}

fn assert_equal(a: &BTreeMap<String, Vec<u64>>, b: &BTreeMap<String, Vec<u64>>, what: &str) {
    assert!(a.keys().eq(b.keys()), "{what}: other tensors");
    let differing: Vec<_> = a.keys().filter(|name| a[*name] != b[*name]).collect();
    assert!(differing.is_empty(), "{what}: {differing:?} differ");
}

#[test]
fn stopping_after_any_update_and_resuming_changes_no_bit() {
    let config = three_stages();
    let (expected, reference) = undisturbed(&config);
    let num_steps = reference.steps.len() as u64;
    assert_eq!(num_steps, 6 * BATCHES as u64);
    assert_eq!(reference.batch_norm.len(), 4); // of the epochs that are quantized
    // Within, at the end of, and right after the begin of epochs and stages.
    for stop in [1, 3, 6, 7, 9, 11, 14, 15, 17] {
        let folder = tempfile::tempdir().unwrap();
        let mut first =
            trainer(&TrainConfig { max_steps: Some(stop), ..config.clone() }, folder.path());
        let mut recorder = Recorder::default();
        let outcome = run(&mut first, &mut recorder).unwrap();
        assert!(matches!(outcome, Outcome::MaxSteps { .. }), "{stop}: {outcome:?}");
        assert_eq!(recorder.steps.len() as u64, stop);
        drop(first);

        let mut second = trainer(&config, folder.path());
        second.resume(&ResumeFrom::Last, &mut recorder).unwrap();
        assert_eq!(second.position().global_step, stop);
        run(&mut second, &mut recorder).unwrap();
        assert_equal(&everything(&second), &expected, &format!("after {stop} steps"));
        assert_eq!(comparable(&recorder), comparable(&reference));
        let means = |r: &Recorder| -> Vec<_> {
            r.epochs
                .iter()
                .map(|e| (e.loss, e.grad_norm, e.quantized_fraction, e.frozen_fraction))
                .collect()
        };
        assert_eq!(means(&recorder), means(&reference), "after {stop} steps");
        assert_eq!(recorder.valid, reference.valid, "after {stop} steps");
        assert_eq!(recorder.telemetry, reference.telemetry, "after {stop} steps");
        assert_eq!(recorder.batch_norm, reference.batch_norm, "after {stop} steps");
        assert_eq!(recorder.messages, [""; 0]);
    }
}

#[test]
fn a_moving_average_survives_stops_bit_for_bit() {
    let ema = EmaConfig { decay: 0.75, from: 1 };
    let config = TrainConfig { ema: Some(ema), ..three_stages() };
    // weights as they are evaluated are part of the records
    let mut seen_by_validation = |net: &dyn Network, position: &Position| {
        let sum: f64 =
            net.state().iter().map(|(_, t)| t.abs().sum(Kind::Double).double_value(&[])).sum();
        let name = format!("epoch {}", position.global_epoch);
        Ok(Some(ValidScore {
            name,
            value: sum,
            higher_is_better: true,
            counts: None,
            details: vec![],
            outcomes: Default::default(),
        }))
    };
    let whole = tempfile::tempdir().unwrap();
    let mut reference = Recorder::default();
    let mut first = trainer(&config, whole.path());
    run_with(&mut first, &mut reference, &mut seen_by_validation).unwrap();
    let expected = everything(&first);
    // the last stage has but one epoch, and averages nothing
    let averaged: Vec<bool> = reference.valid.iter().map(|v| v.averaged).collect();
    assert_eq!(averaged, [false, true, false, true, true, false]);
    for stop in [4, 5, 6, 9, 10, 13, 15, 16] {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::default();
        let stopping = TrainConfig { max_steps: Some(stop), ..config.clone() };
        run_with(&mut trainer(&stopping, folder.path()), &mut recorder, &mut seen_by_validation)
            .unwrap();
        let mut second = trainer(&config, folder.path());
        second.resume(&ResumeFrom::Last, &mut recorder).unwrap();
        run_with(&mut second, &mut recorder, &mut seen_by_validation).unwrap();
        assert_equal(&everything(&second), &expected, &format!("after {stop} steps"));
        assert_eq!(recorder.valid, reference.valid, "after {stop} steps");
    }
}

#[test]
fn being_killed_again_and_again_changes_no_bit() {
    let config = TrainConfig { ckpt_every_steps: Some(2), ..three_stages() };
    let (expected, reference) = undisturbed(&config);
    let folder = tempfile::tempdir().unwrap();
    let mut kills = 0;
    // Each life does a few steps beyond what the one before reached, then loses those since its checkpoint.
    for kill_after in (1..).step_by(4) {
        let mut life = trainer(&config, folder.path());
        let mut recorder = Recorder { kill_after: Some(kill_after), ..Recorder::default() };
        if kills > 0 {
            life.resume(&ResumeFrom::Last, &mut recorder).unwrap();
        }
        match run(&mut life, &mut recorder) {
            Ok(_) => {
                assert_equal(&everything(&life), &expected, "after the last life");
                break;
            }
            // The first life ends before its first checkpoint.
            Err(error) => assert_eq!(format!("{error:#}"), "killed"),
        }
        kills += 1;
    }
    assert!(kills as usize >= reference.steps.len() / 4);
}

#[test]
fn two_epochs_and_two_more_equal_four() {
    let stage = |epochs| StageConfig {
        epochs,
        lr: LrConfig { decay: Decay::Epochs([(1, 0.5), (3, 0.1)].into()), ..LrConfig::default() },
        ..StageConfig::default()
    };
    let config = |epochs| TrainConfig { stages: vec![stage(epochs)], ..TrainConfig::default() };
    let (expected, _) = undisturbed(&config(4));
    let folder = tempfile::tempdir().unwrap();
    run(&mut trainer(&config(2), folder.path()), &mut Recorder::default()).unwrap();
    let mut more = trainer(&config(4), folder.path());
    more.resume(&ResumeFrom::Last, &mut ()).unwrap();
    run(&mut more, &mut Recorder::default()).unwrap();
    assert_equal(&everything(&more), &expected, "2 + 2");
}

#[test]
fn an_interrupt_ends_after_the_update_with_a_checkpoint() {
    let config = three_stages();
    let folder = tempfile::tempdir().unwrap();
    let mut recorder =
        Recorder { interrupt_after: Some((2, Arc::default())), ..Recorder::default() };
    let mut first = trainer(&config, folder.path());
    let Outcome::Interrupted { checkpoint } = run(&mut first, &mut recorder).unwrap() else {
        panic!("not interrupted")
    };
    assert_eq!(recorder.steps.len(), 2);
    let meta = Checkpoint::read(&checkpoint).unwrap().meta;
    assert_eq!((meta.position.epoch, meta.position.batch, meta.position.global_step), (0, 2, 2));
    assert_eq!(meta.epoch_sums.steps, 2);
    assert_eq!(meta.config["training"]["keep"], 3);
}

#[test]
fn resuming_a_finished_run_finds_nothing_to_do() {
    let config = three_stages();
    let folder = tempfile::tempdir().unwrap();
    run(&mut trainer(&config, folder.path()), &mut Recorder::default()).unwrap();
    let mut again = trainer(&config, folder.path());
    again.resume(&ResumeFrom::Last, &mut ()).unwrap();
    let before = everything(&again);
    let mut recorder = Recorder::default();
    let outcome = run(&mut again, &mut recorder).unwrap();
    assert!(matches!(outcome, Outcome::Finished { .. }));
    assert!(recorder.steps.is_empty());
    assert_equal(&everything(&again), &before, "finished");
}

#[test]
fn a_checkpoint_of_other_stages_is_refused_with_the_difference() {
    let config = three_stages();
    let folder = tempfile::tempdir().unwrap();
    run(&mut trainer(&config, folder.path()), &mut Recorder::default()).unwrap();
    let refusal = |change: &dyn Fn(&mut TrainConfig)| {
        let mut other = config.clone();
        change(&mut other);
        let error = trainer(&other, folder.path()).resume(&ResumeFrom::Last, &mut ()).unwrap_err();
        format!("{error:#}")
    };
    let text = refusal(&|c| c.stages.truncate(2));
    assert!(text.ends_with("it is in stage 2 (head), and the config has 2 stages"), "{text}");
    let text = refusal(&|c| c.stages[2].name = "top".to_owned());
    assert!(text.ends_with("its stage 2 is head, and that of the config is top"), "{text}");
    let text = refusal(&|c| c.stages[1].weights.as_mut().unwrap().bits = Some(3));
    assert!(text.contains("stage 1 (fpn) was quantized with other settings"), "{text}");
}

#[test]
fn another_seed_or_configuration_is_told() {
    let config = three_stages();
    let folder = tempfile::tempdir().unwrap();
    let first = TrainConfig { max_steps: Some(1), ..config.clone() };
    run(&mut trainer(&first, folder.path()), &mut Recorder::default()).unwrap();
    let run = RunInfo {
        seed: 12,
        checkpoints: folder.path().to_owned(),
        config: Value::Null,
        data: Default::default(),
        objects: Vec::new(),
    };
    let mut other = Trainer::new(toy_net(), config, task(), run).unwrap();
    let mut recorder = Recorder::default();
    other.resume(&ResumeFrom::Last, &mut recorder).unwrap();
    assert_eq!(recorder.messages.len(), 2, "{:?}", recorder.messages);
    assert!(recorder.messages[0].contains("seed 11, and this run has 12"));
    assert!(recorder.messages[1].contains("another configuration"));
}

#[test]
fn a_checkpoint_of_the_first_version_is_no_other_configuration_or_device() {
    let config = three_stages();
    let folder = tempfile::tempdir().unwrap();
    let first = TrainConfig { max_steps: Some(1), ..config.clone() };
    let Outcome::MaxSteps { checkpoint: path } =
        run(&mut trainer(&first, folder.path()), &mut Recorder::default()).unwrap()
    else {
        panic!("not stopped")
    };
    // As 0.1 wrote them: a hash of its own kind, and the device as Rust prints it.
    let mut old = Checkpoint::read(&path).unwrap();
    assert_eq!(old.meta.device, "cpu");
    old.meta.config = serde_json::json!({"training": config});
    old.meta.config_hash = "0123456789abcdef".to_owned();
    old.meta.device = "Cpu".to_owned();
    old.write(&path).unwrap();
    assert_eq!(Checkpoint::read(&path).unwrap().meta.device, "cpu");
    let mut recorder = Recorder::default();
    trainer(&config, folder.path()).resume(&ResumeFrom::Last, &mut recorder).unwrap();
    assert_eq!(recorder.messages, [""; 0]);
}

#[test]
fn a_loaded_checkpoint_computes_what_the_trained_network_does() {
    let config = three_stages();
    let folder = tempfile::tempdir().unwrap();
    let mut trained = trainer(&config, folder.path());
    let Outcome::Finished { checkpoint } = run(&mut trained, &mut Recorder::default()).unwrap()
    else {
        panic!("not finished")
    };
    let blank = blank_net(1);
    let loaded = load_for_evaluation(&checkpoint, blank.as_ref()).unwrap();
    assert_eq!(loaded.quantizers.len(), 2);
    assert_eq!(loaded.meta.unwrap().stage_name, "head");
    let sites = loaded.quantizers.iter().flat_map(|q| q.report()).collect::<Vec<_>>();
    assert_eq!(sites, trained.sites());
    assert!(sites.iter().all(|s| s.frozen_fraction == 1.0 && s.num_levels == Some(3)));
    let x =
        Tensor::arange(2 * 3 * 32 * 32, (Kind::Float, Device::Cpu)).sin().reshape([2, 3, 32, 32]);
    let outputs = |net: &dyn Network| outputs(net, &x);
    assert_eq!(outputs(blank.as_ref()), outputs(trained.net()));
    // The inputs' quantizers take part: without them the outputs differ.
    let float = blank_net(1);
    load_weights(float.store(), &Checkpoint::read(&checkpoint).unwrap().weights, &checkpoint)
        .unwrap();
    assert_ne!(outputs(float.as_ref()), outputs(trained.net()));
}

/// Learnt step sizes and clipping levels: LSQ weights with PACT inputs, then DoReFa weights with LSQ inputs.
fn learnt_stages() -> TrainConfig {
    let optimizer = SgdConfig { weight_decay: 1e-3, nesterov: true, ..SgdConfig::default() };
    let fpn = StageConfig { optimizer: optimizer.clone(), ..learnt_fpn() };
    let head = learnt_stage(
        "head",
        r#"{"method": "dorefa", "bits": 4, "layer_bits": {"head.cls_logits": 8}}"#,
        r#"{"method": "lsq", "bits": 8}"#,
    );
    let head = StageConfig { optimizer, ..head };
    TrainConfig { stages: vec![fpn, head], ..TrainConfig::default() }
}

#[test]
fn rescaled_weights_resume_bit_for_bit_and_their_average_is_in_the_new_unit() {
    let weights = r#"{"bits": 2, "levels": "full", "schedule": {"0": 0.5, "1": 1}, "inq": {"rescale": "published"},
        "layer_bits": {"fpn.out_convs": {"bits": 2, "n_levels": 4}}}"#;
    let stage = StageConfig {
        epochs: 2,
        ..StageConfig::mqat("fpn", serde_json::from_str(weights).unwrap())
    };
    let ema = Some(EmaConfig { decay: 0.9, from: 0 });
    let config = TrainConfig { stages: vec![stage], ema, ..TrainConfig::default() };
    let (expected, _) = undisturbed(&config);
    for stop in [1, 4, 5] {
        let (found, _) = stopped_and_resumed(&config, stop);
        assert_equal(&found, &expected, &format!("after {stop} steps"));
    }
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::default();
    run(&mut trainer(&config, folder.path()), &mut recorder).unwrap();
    for site in &recorder.ends[0].sites {
        assert_eq!(
            (site.bits, site.num_levels, site.max_level.as_slice()),
            (2, Some(4), &[1.0][..])
        );
        let is_counted = site.name.starts_with("fpn.out_convs");
        let codes = if is_counted { [-3, 3] } else { [-2, 1] };
        assert_eq!(site.codes, Some(codes), "{}", site.name);
    }
    let checkpoint = Checkpoint::read(&recorder.ends[0].checkpoint).unwrap();
    for (name, average) in &checkpoint.ema {
        let (_, live) = checkpoint.weights.iter().find(|(own, _)| own == name).unwrap();
        if name.starts_with("fpn.") && name.ends_with("weight") {
            assert_eq!(bits(average), bits(live), "{name} is frozen");
        }
    }
}

#[test]
fn what_quantizers_learn_resumes_bit_for_bit_with_its_momentum() {
    let config = learnt_stages();
    let (expected, _) = undisturbed(&config);
    for stop in [1, 4, 6, 8, 11] {
        let (found, _) = stopped_and_resumed(&config, stop);
        assert_equal(&found, &expected, &format!("after {stop} steps"));
    }
    // The FPN's steps were learnt in its stage, and rest in the next: no momentum any more.
    let folder = tempfile::tempdir().unwrap();
    let mut trained = trainer(&config, folder.path());
    let mut recorder = Recorder::default();
    run(&mut trained, &mut recorder).unwrap();
    let read = |stage: usize| Checkpoint::read(&recorder.ends[stage].checkpoint).unwrap();
    let (fpn, head) = (read(0), read(1));
    let has_momentum =
        |c: &Checkpoint, what: &str| c.momentum.iter().any(|(n, _)| n.contains(what));
    for field in ["quant.fpn.inner_convs.3.weight_step", "quant.fpn.inner_convs.3.act_alpha"] {
        assert!(has_momentum(&fpn, field) && !has_momentum(&head, field), "{field}");
        let value =
            |c: &Checkpoint| bits(&c.quant.iter().find(|(name, _)| name == field).unwrap().1);
        assert_eq!(value(&fpn), value(&head), "{field} moved after its stage");
    }
    assert!(has_momentum(&head, "quant.head.cls_logits.act_step"));
    let site = |name: &str| recorder.ends[1].sites.iter().find(|s| s.name == name).unwrap();
    assert_eq!(site("head.cls_logits").bits, 8);
    assert_eq!(site("head.pose_pred").bits, 4);
    assert_eq!(site("fpn.inner_convs.3").codes, Some([-4, 3]));
    let pact = site("fpn.inner_convs.3").activations.as_ref().unwrap();
    assert!(pact.quantizing && pact.scale.unwrap() > 0.0 && pact.signed.is_some());
}

#[test]
fn a_file_of_a_fake_quantized_network_evaluates_as_the_network_does() {
    let config = learnt_stages();
    let folder = tempfile::tempdir().unwrap();
    let mut trained = trainer(&config, folder.path());
    let Outcome::Finished { checkpoint } = run(&mut trained, &mut Recorder::default()).unwrap()
    else {
        panic!("not finished")
    };
    let blank = blank_net(1);
    let loaded = load_for_evaluation(&checkpoint, blank.as_ref()).unwrap();
    let x =
        Tensor::arange(2 * 3 * 32 * 32, (Kind::Float, Device::Cpu)).sin().reshape([2, 3, 32, 32]);
    let outputs = |net: &dyn Network| outputs(net, &x);
    assert_eq!(outputs(blank.as_ref()), outputs(trained.net()));
    for quantizer in &loaded.quantizers {
        // the loaded weights themselves are on their levels
        quantizer.assert_on_grid().unwrap();
        for layer in quantizer.codes().unwrap() {
            let values = layer.grid.values(&layer.codes).unwrap();
            assert_eq!(
                bits(&values),
                bits(&blank.store().get(&layer.name).unwrap()),
                "{}",
                layer.name
            );
        }
    }
    assert_eq!(
        trained.sites(),
        loaded.quantizers.iter().flat_map(|q| q.report()).collect::<Vec<_>>()
    );
}
