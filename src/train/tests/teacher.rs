//! A network whose task has a teacher, and stages that keep a module as it is.

use super::*;
use crate::topology::caspacenet;

fn teacher_trainer(config: &TrainConfig, folder: &Path) -> Trainer {
    tch::set_num_threads(1);
    let network = caspacenet::NetworkConfig::of(toy_config());
    let run = RunInfo {
        seed: SEED,
        checkpoints: folder.to_owned(),
        config: serde_json::json!({"training": TrainConfig { max_steps: None, ..config.clone() }}),
        data: Default::default(),
        objects: Vec::new(),
    };
    let net = network.network(1, Device::Cpu, Some(SEED)).unwrap();
    Trainer::new(net, config.clone(), network.task(task_setting()).unwrap(), run).unwrap()
}

/// Full precision, then both pyramids; the backbone stays as it is.
fn two_stages() -> TrainConfig {
    let frozen = Some("backbone".to_owned());
    let first = StageConfig { epochs: 2, frozen: frozen.clone(), ..StageConfig::default() };
    let fpn = StageConfig {
        epochs: 2,
        frozen,
        ..StageConfig::mqat("fpn", weights(&[(0, 0.5), (1, 1.0)]))
    };
    TrainConfig { stages: vec![first, fpn], ..TrainConfig::default() }
}

#[test]
fn a_run_with_a_teacher_ends_the_same_after_a_stop() {
    let config = two_stages();
    let folder = tempfile::tempdir().unwrap();
    let mut whole = teacher_trainer(&config, folder.path());
    let mut recorder = Recorder::default();
    run(&mut whole, &mut recorder).unwrap();
    let feature = |step: &StepRecord| step.losses.iter().find(|(n, _)| *n == "feature").unwrap().1;
    assert!(recorder.steps.iter().all(|step| feature(step) > 0.0));
    for stop in [1, BATCHES as u64 + 1, 2 * BATCHES as u64 + 2] {
        let folder = tempfile::tempdir().unwrap();
        let stopped = TrainConfig { max_steps: Some(stop), ..config.clone() };
        run(&mut teacher_trainer(&stopped, folder.path()), &mut Recorder::default()).unwrap();
        let mut second = teacher_trainer(&config, folder.path());
        let mut rest = Recorder::default();
        second.resume(&ResumeFrom::Last, &mut rest).unwrap();
        run(&mut second, &mut rest).unwrap();
        assert_eq!(weight_bits(&second, ""), weight_bits(&whole, ""), "after {stop} steps");
    }
}

#[test]
fn the_teacher_is_what_a_run_starts_from_also_where_that_is_loaded_late() {
    let config = TrainConfig { max_steps: Some(2), ..two_stages() };
    let start = caspacenet::NetworkConfig::of(toy_config());
    let start = start.network(1, Device::Cpu, Some(SEED + 1)).unwrap();
    let trained = |tell: bool| {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = teacher_trainer(&config, folder.path());
        tch::no_grad(|| {
            for ((_, mut own), (_, other)) in trainer.net().state().into_iter().zip(start.state()) {
                own.copy_(&other);
            }
        });
        if tell {
            trainer.begin_anew().unwrap();
        }
        let Outcome::MaxSteps { checkpoint } = run(&mut trainer, &mut Recorder::default()).unwrap()
        else {
            panic!("it goes on")
        };
        let teacher = Checkpoint::read(&checkpoint).unwrap().task;
        assert!(!teacher.is_empty());
        let of_start: BTreeMap<String, Tensor> = start.state().into_iter().collect();
        teacher.iter().all(|(name, tensor)| {
            let name = name.strip_prefix("task.").unwrap_or(name);
            bits(tensor) == bits(&of_start[name])
        })
    };
    assert!(trained(true));
    assert!(!trained(false), "the test can fail");
}

#[test]
fn the_feature_losses_of_slices_add_up_to_that_of_the_batch() {
    tch::set_num_threads(1);
    let family = caspacenet::NetworkConfig::of(toy_config());
    let net = family.network(1, Device::Cpu, Some(SEED)).unwrap();
    let mut task = family.task(task_setting()).unwrap();
    task.begin(net.as_ref()).unwrap();
    let feature = |batch: Batch| {
        let prepared = task.preparer().prepare(batch, 0).unwrap();
        let losses = task.losses(net.as_ref(), &prepared, false).unwrap();
        let (_, loss) = losses.named().iter().find(|(name, _)| *name == "feature").unwrap();
        loss.double_value(&[])
    };
    let whole = toy_batch(0, 0, 2);
    let slice = |i: usize| Batch {
        first_place: i,
        num_others: 1,
        indices: vec![whole.indices[i]],
        names: vec![whole.names[i].clone()],
        pixels: whole.pixels[3 * i * SIZE * SIZE..3 * (i + 1) * SIZE * SIZE].to_vec(),
        masks: whole.masks[i * SIZE * SIZE..(i + 1) * SIZE * SIZE].to_vec(),
        objects: vec![whole.objects[i].clone()],
        ..whole
    };
    let parts = feature(slice(0)) + feature(slice(1));
    let all = feature(toy_batch(0, 0, 2));
    assert!(all > 0.0 && (parts - all).abs() < 1e-5 * all, "{parts}, {all}");
}

#[test]
fn frozen_modules_stay_as_they_are_with_their_statistics_unless_these_drift() {
    let backbone = |drift: bool| {
        let mut config = two_stages();
        for stage in &mut config.stages {
            stage.frozen_statistics = !drift;
        }
        config.bn_batches = 0;
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = teacher_trainer(&config, folder.path());
        let before = weight_bits(&trainer, "");
        run(&mut trainer, &mut Recorder::default()).unwrap();
        let after = weight_bits(&trainer, "");
        let moved = after.iter().filter(|(name, bits)| before[*name] != **bits);
        moved.map(|(name, _)| name.clone()).collect::<Vec<_>>()
    };
    let moved = backbone(false);
    assert!(moved.iter().all(|name| !name.starts_with("backbone.")), "{moved:?}");
    for module in ["fpn.", "fpn_sub.", "head."] {
        assert!(moved.iter().any(|name| name.starts_with(module)), "{module}");
    }
    let drifted: Vec<String> =
        backbone(true).into_iter().filter(|name| name.starts_with("backbone.")).collect();
    let is_statistic =
        |name: &String| name.contains("running_") || name.ends_with("num_batches_tracked");
    assert!(!drifted.is_empty() && drifted.iter().all(is_statistic), "{drifted:?}");
}

#[test]
fn a_stage_cannot_keep_what_it_quantizes() {
    let mut config = two_stages();
    config.stages[1].frozen = Some("fpn.inner_convs".to_owned());
    config.stages[0].frozen = None;
    config.stages[0].frozen_statistics = false;
    let mut problems = Vec::new();
    config.check("training", &mut problems);
    let expected = [
        "training.stages.0.frozen_statistics: is false, but frozen names no module",
        "training.stages.1.frozen: holds layers of module fpn, which the stage quantizes and trains",
    ];
    assert_eq!(problems, expected);
}
