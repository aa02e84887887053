//! Modules that go on learning after their stage.

use super::*;

const STEP: &str = "quant.fpn.inner_convs.3.weight_step";
const ALPHA: &str = "quant.fpn.inner_convs.3.act_alpha";
const WEIGHT: &str = "fpn.inner_convs.3.weight";

fn stage(module: &str, weights: &str, activations: &str) -> StageConfig {
    StageConfig { afterwards: Afterwards::Train, ..learnt_stage(module, weights, activations) }
}

/// Learnt steps and clipping levels, then noise that fades and a scale found anew at each epoch, then one epoch of the rest:
/// all but the last go on learning.
fn all_methods() -> TrainConfig {
    let fpn = StageConfig { afterwards: Afterwards::Train, ..learnt_fpn() };
    let tower = stage(
        "head.cls_tower",
        r#"{"method": "ana", "bits": 3, "ana": {"end_epoch": 1}}"#,
        r#"{"method": "lsq", "bits": 8}"#,
    );
    let rest = stage(
        "head.pose_tower,head.cls_logits,head.pose_pred",
        r#"{"method": "uniform", "bits": 4, "uniform": {"recalibrate": true}}"#,
        r#"{"method": "ste", "bits": 8}"#,
    );
    let stem = StageConfig {
        epochs: 1,
        activations: None,
        afterwards: Afterwards::Freeze,
        ..stage("backbone", r#"{"method": "dorefa", "bits": 4}"#, r#"{"bits": 8}"#)
    };
    TrainConfig { stages: vec![fpn, tower, rest, stem], ..TrainConfig::default() }
}

fn whole(config: &TrainConfig) -> (BTreeMap<String, Vec<u64>>, Recorder, Vec<Checkpoint>) {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(config, folder.path());
    let mut recorder = Recorder::default();
    run(&mut trainer, &mut recorder).unwrap();
    let ends = recorder.ends.iter().map(|end| Checkpoint::read(&end.checkpoint).unwrap());
    let ends = ends.collect();
    (everything(&trainer), recorder, ends)
}

fn value(checkpoint: &Checkpoint, name: &str) -> Vec<u64> {
    let all = checkpoint.weights.iter().chain(&checkpoint.quant);
    bits(&all.into_iter().find(|(n, _)| n == name).unwrap().1)
}

#[test]
fn a_module_that_trains_on_learns_weights_steps_and_clipping_levels_in_every_later_stage() {
    let (_, recorder, ends) = whole(&all_methods());
    for pair in ends.windows(2) {
        for name in [STEP, ALPHA, WEIGHT] {
            assert_ne!(value(&pair[0], name), value(&pair[1], name), "{name}");
        }
    }
    let has_momentum = |name: &str| ends[3].momentum.iter().any(|(n, _)| n == name);
    assert!(has_momentum(STEP) && has_momentum(ALPHA) && has_momentum(WEIGHT));
    // its epochs go on from those of its stage
    assert_eq!(value(&ends[3], "quant.fpn.inner_convs.3.epoch"), [6.0f64.to_bits()]);
    assert_eq!(value(&ends[3], "quant.head.cls_logits.epoch"), [2.0f64.to_bits()]);
    // the stored weights of the last stage are float, those that the layers compute with are on levels
    assert!(recorder.ends.iter().all(|end| end.sites.iter().all(|s| s.frozen_fraction == 1.0)));
    assert_eq!(recorder.ends[3].sites.iter().filter(|s| s.method == "lsq").count(), 8);
}

#[test]
fn a_frozen_module_is_the_default_and_does_not_move() {
    let mut config = all_methods();
    config.stages[0].afterwards = StageConfig::default().afterwards;
    let (_, _, ends) = whole(&config);
    for name in [STEP, ALPHA] {
        assert_eq!(value(&ends[0], name), value(&ends[1], name), "{name}");
    }
    for name in [STEP, ALPHA, WEIGHT] {
        assert_eq!(value(&ends[1], name), value(&ends[3], name), "{name}");
    }
}

#[test]
fn telemetry_follows_every_module_that_learns_across_the_stages() {
    let (_, recorder, _) = whole(&all_methods());
    let modules = |stage: usize| -> Vec<&str> {
        let of_stage = recorder.telemetry.iter().filter(|t| t.stage == stage && t.epoch == 0);
        of_stage.map(|t| t.module.module.as_str()).collect()
    };
    assert_eq!(modules(0), ["fpn"]);
    assert_eq!(modules(1), ["fpn", "head.cls_tower"]);
    assert_eq!(modules(3)[..2], ["fpn", "head.cls_tower"]);
    assert_eq!(modules(3).len(), 4);
    // what is remembered goes on: a module's own first epoch alone has no flips
    for record in &recorder.telemetry {
        let own_first = record.epoch == 0
            && all_methods().stages[record.stage].module.as_ref() == Some(&record.module.module);
        assert_eq!(record.module.numbers.flip_rate.is_none(), own_first, "{record:?}");
    }
}

#[test]
fn stops_at_any_step_change_no_bit_and_no_record() {
    let config = TrainConfig { ema: Some(EmaConfig { decay: 0.5, from: 0 }), ..all_methods() };
    let (expected, reference, _) = whole(&config);
    for stop in [5, 6, 7, 9, 12, 13, 17, 18, 19, 20] {
        let (found, recorder) = stopped_and_resumed(&config, stop);
        assert_eq!(found, expected, "after {stop} steps");
        assert_eq!(recorder.telemetry, reference.telemetry, "after {stop} steps");
        assert_eq!(recorder.messages, [""; 0]);
    }
}

#[test]
fn files_of_every_stage_evaluate_as_the_network_does_and_are_on_their_levels() {
    let config = all_methods();
    let x =
        Tensor::arange(2 * 3 * 32 * 32, (Kind::Float, Device::Cpu)).sin().reshape([2, 3, 32, 32]);
    for num_stages in 1..=config.stages.len() {
        let folder = tempfile::tempdir().unwrap();
        let stages = config.stages[..num_stages].to_vec();
        let mut trained = trainer(&TrainConfig { stages, ..config.clone() }, folder.path());
        let Outcome::Finished { checkpoint } = run(&mut trained, &mut Recorder::default()).unwrap()
        else {
            panic!("not finished")
        };
        let blank = blank_net(1);
        let loaded = load_for_evaluation(&checkpoint, blank.as_ref()).unwrap();
        assert_eq!(loaded.quantizers.len(), num_stages);
        assert_eq!(outputs(blank.as_ref(), &x), outputs(trained.net(), &x));
        for layer in loaded.quantizers.iter().flat_map(|q| q.codes().unwrap()) {
            let values = layer.grid.values(&layer.codes).unwrap();
            let stored = blank.store().get(&layer.name).unwrap();
            assert_eq!(bits(&values), bits(&stored), "{}", layer.name);
        }
    }
}

#[test]
fn another_afterwards_than_that_of_the_checkpoint_is_refused_and_an_old_file_froze() {
    let config = all_methods();
    let folder = tempfile::tempdir().unwrap();
    let first = TrainConfig { max_steps: Some(7), ..config.clone() };
    run(&mut trainer(&first, folder.path()), &mut Recorder::default()).unwrap();
    let mut frozen = config.clone();
    frozen.stages[0].afterwards = Afterwards::Freeze;
    let error = trainer(&frozen, folder.path()).resume(&ResumeFrom::Last, &mut ()).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("stage 0 (fpn) was quantized with other settings"), "{text}");
    let old = serde_json::json!({
        "stage": 0, "module": "fpn", "weights": null, "activations": {"bits": 8},
        "first_layer": true, "last_layer": true, "seed": 1,
    });
    let module: QuantizedModule = serde_json::from_value(old.clone()).unwrap();
    assert_eq!(module.afterwards, Afterwards::Freeze);
    assert!(!module.learns_in(1) && module.learns_in(0));
    assert!(serde_json::to_value(module).unwrap().get("afterwards").is_none());
}

#[test]
fn finished_stages_behind_a_module_that_trains_on_keep_their_epochs() {
    let config = all_methods();
    let folder = tempfile::tempdir().unwrap();
    // two epochs of 3 steps each: the third stage has begun
    let first = TrainConfig { max_steps: Some(13), ..config.clone() };
    run(&mut trainer(&first, folder.path()), &mut Recorder::default()).unwrap();
    let resumed = |change: fn(&mut TrainConfig)| {
        let mut changed = config.clone();
        change(&mut changed);
        trainer(&changed, folder.path()).resume(&ResumeFrom::Last, &mut ())
    };
    for (epochs, change) in [
        (4, (|config| config.stages[1].epochs = 4) as fn(&mut TrainConfig)),
        (3, |config| config.stages[1].epochs = 3),
    ] {
        let text = format!("{:#}", resumed(change).unwrap_err());
        let parts = [
            "stage 1 (head.cls_tower) is finished and had 2 epochs".to_owned(),
            format!("has {epochs} (training.stages.1.epochs): module fpn goes on"),
        ];
        assert!(parts.iter().all(|part| text.contains(part)), "{text}");
    }
    // the stage that goes on may be longer than it was
    assert!(resumed(|config| config.stages[2].epochs = 5).unwrap().is_some());
}

#[test]
fn a_stage_with_nothing_to_train_on_is_refused_with_the_reason() {
    let problems = |stage: StageConfig| {
        let mut problems = Vec::new();
        TrainConfig { stages: vec![stage], ..TrainConfig::default() }.check("t", &mut problems);
        problems.join("; ")
    };
    let afterwards = Afterwards::Train;
    let inq = StageConfig { afterwards, ..StageConfig::mqat("fpn", weights(&[(29, 1.0)])) };
    let text = problems(inq);
    assert!(text.starts_with("t.stages.0.afterwards: is train, but method inq puts"), "{text}");
    assert!(text.contains("lsq, uniform, dorefa, ana"), "{text}");
    let text = problems(StageConfig { afterwards, ..StageConfig::default() });
    assert!(text.contains("t.stages.0.afterwards: is train, but the stage quantizes no"), "{text}");
    assert_eq!(problems(all_methods().stages.remove(0)), "");
}
