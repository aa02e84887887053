//! Batch norms of quantized networks are estimated again before they are used; float networks are left alone.

use super::*;
use crate::nn::BatchNormShift;

/// The shifts of a network's running statistics from those of the batches that the estimate of `position` is made on.
fn shifts(net: &dyn Network, position: &Position) -> Vec<BatchNormShift> {
    let place = [position.stage as u64, u64::from(position.epoch)];
    let request = BatchRequest {
        epoch_key: estimation_epoch(SEED, &place),
        first_batch: 0,
        batch_size: None,
        slices: Default::default(),
    };
    let batches = ToySource { num_batches: BATCHES }.open(request).unwrap();
    let (statistics, on) = batch_statistics(net, task().as_ref(), batches, BATCHES).unwrap();
    assert_eq!((on.num_batches, on.batch_size), (BATCHES, 2));
    statistics.shifts(net.store()).unwrap()
}

/// The largest shift that each validation of a run meets.
fn seen_by_validation(config: &TrainConfig) -> (Vec<f64>, Recorder) {
    let folder = tempfile::tempdir().unwrap();
    let mut seen = Vec::new();
    let mut recorder = Recorder::default();
    let mut validate = |net: &dyn Network, position: &Position| {
        let shifts = shifts(net, position);
        seen.push(largest_shift(&shifts).unwrap().mean_shift_sd);
        valley(net, position)
    };
    run_with(&mut trainer(config, folder.path()), &mut recorder, &mut validate).unwrap();
    (seen, recorder)
}

#[test]
fn validation_of_a_quantized_network_sees_statistics_of_its_own_batches() {
    let (seen, recorder) = seen_by_validation(&three_stages());
    let (stale, none) = seen_by_validation(&TrainConfig { bn_batches: 0, ..three_stages() });
    assert_eq!((seen.len(), none.batch_norm.len()), (6, 0));
    // Two epochs in full precision, then one stage quantizes the FPN and one the head.
    for (i, (shift, without)) in seen.iter().zip(&stale).enumerate() {
        assert!(*without > 0.05, "{i}: {without}");
        assert_eq!(*shift < 1e-5, i >= 2, "{i}: {shift}");
    }
    assert_eq!(seen[..2], stale[..2]);
    let told: Vec<_> = recorder.batch_norm.iter().map(|b| (b.stage, b.global_epoch)).collect();
    assert_eq!(told, [(1, 3), (1, 4), (1, 5), (2, 6)]);
    for record in &recorder.batch_norm {
        assert_eq!(record.num_batches, BATCHES); // at most those of an epoch
        assert!(record.largest_shift.mean_shift_sd > 0.05, "{record:?}");
        assert!(record.largest_shift.layer.starts_with("backbone."), "{record:?}");
    }
}

#[test]
fn training_itself_does_not_change() {
    let result = |bn_batches| {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = trainer(&TrainConfig { bn_batches, ..three_stages() }, folder.path());
        let mut recorder = Recorder::default();
        run(&mut trainer, &mut recorder).unwrap();
        let steps: Vec<_> = recorder.steps.iter().map(|s| (s.loss, s.grad_norm)).collect();
        (everything(&trainer), steps)
    };
    let ((with, steps_with), (without, steps_without)) = (result(50), result(0));
    assert_eq!(steps_with, steps_without);
    for (name, bits) in &with {
        let is_statistic = name.contains(".running_");
        assert_eq!(*bits != without[name], is_statistic, "{name}");
    }
}

#[test]
fn a_float_run_is_the_same_bit_for_bit() {
    let float = TrainConfig { stages: three_stages().stages[..1].to_vec(), ..three_stages() };
    let result = |bn_batches| {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = trainer(&TrainConfig { bn_batches, ..float.clone() }, folder.path());
        let mut recorder = Recorder::default();
        run(&mut trainer, &mut recorder).unwrap();
        assert!(recorder.batch_norm.is_empty() && trainer.checkpoint().meta.batch_norm.is_none());
        everything(&trainer)
    };
    assert_eq!(result(50), result(0));
}

#[test]
fn a_float_control_has_statistics_of_its_own_batches_and_trains_as_without() {
    let float = TrainConfig {
        stages: three_stages().stages[..1].to_vec(),
        bn_always: true,
        ..three_stages()
    };
    let (seen, recorder) = seen_by_validation(&float);
    assert!(seen.len() == 2 && seen.iter().all(|shift| *shift < 1e-5), "{seen:?}");
    assert_eq!(recorder.batch_norm.len(), 2);
    let plain = TrainConfig { bn_always: false, ..float };
    let (stale, without) = seen_by_validation(&plain);
    assert!(stale.iter().all(|shift| *shift > 0.05) && without.batch_norm.is_empty());
    let losses = |r: &Recorder| r.steps.iter().map(|s| s.loss).collect::<Vec<_>>();
    assert_eq!(losses(&recorder), losses(&without));
}

#[test]
fn frozen_batch_norms_stay_as_they_are() {
    let stage = StageConfig {
        freeze_bn: true,
        epochs: 1,
        ..StageConfig::mqat("fpn", weights(&[(0, 1.0)]))
    };
    let config = TrainConfig { stages: vec![stage], ..TrainConfig::default() };
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = trainer(&config, folder.path());
    let before = weight_bits(&trainer, "backbone.features.init_block.bn.running_");
    let mut recorder = Recorder::default();
    run(&mut trainer, &mut recorder).unwrap();
    assert_eq!(weight_bits(&trainer, "backbone.features.init_block.bn.running_"), before);
    assert!(before.len() == 2 && recorder.batch_norm.is_empty());
}

#[test]
fn averaged_weights_have_statistics_of_their_own() {
    let ema = EmaConfig { decay: 0.75, from: 0 };
    let (seen, recorder) = seen_by_validation(&TrainConfig { ema: Some(ema), ..three_stages() });
    assert!(recorder.valid.iter().all(|v| v.averaged));
    assert!(seen[..2].iter().all(|shift| *shift > 0.05), "{seen:?}");
    assert!(seen[2..].iter().all(|shift| *shift < 1e-5), "{seen:?}");
}

#[test]
fn the_checkpoint_says_what_its_statistics_were_estimated_on() {
    let folder = tempfile::tempdir().unwrap();
    let config = TrainConfig { bn_batches: 2, ..three_stages() };
    let mut recorder = Recorder::default();
    run(&mut trainer(&config, folder.path()), &mut recorder).unwrap();
    let file = |end: usize| Checkpoint::read(&recorder.ends[end].checkpoint).unwrap().meta;
    assert_eq!(file(0).batch_norm, None);
    for (end, global_step) in [(1, 5 * BATCHES as u64), (2, 6 * BATCHES as u64)] {
        let info = file(end).batch_norm.unwrap();
        assert_eq!((info.reestimated_on, info.batch_size, info.global_step), (2, 2, global_step));
        let told = recorder.batch_norm.iter().find(|b| b.global_step == global_step).unwrap();
        assert_eq!(info.largest_shift.layer, told.largest_shift.layer);
    }
}

#[test]
fn a_stage_that_a_resume_ends_early_has_its_statistics_too() {
    let config = |epochs, max_steps| {
        let stage = StageConfig { epochs, ..StageConfig::mqat("fpn", weights(&[(0, 1.0)])) };
        TrainConfig { stages: vec![stage], valid_every: 9, max_steps, ..TrainConfig::default() }
    };
    let folder = tempfile::tempdir().unwrap();
    let mut recorder = Recorder::default();
    let stop = Some(2 * BATCHES as u64);
    run(&mut trainer(&config(4, stop), folder.path()), &mut recorder).unwrap();
    assert!(recorder.batch_norm.is_empty() && recorder.valid.is_empty());
    let mut shorter = trainer(&config(2, None), folder.path());
    shorter.resume(&ResumeFrom::Last, &mut recorder).unwrap();
    run(&mut shorter, &mut recorder).unwrap();
    assert_eq!((recorder.batch_norm.len(), recorder.valid.len()), (1, 0));
    let file = Checkpoint::read(&recorder.ends[0].checkpoint).unwrap();
    assert_eq!(file.meta.batch_norm.unwrap().global_step, 2 * BATCHES as u64);
    let mean = |weights: &[(String, Tensor)]| {
        let name = "backbone.features.init_block.bn.running_mean";
        bits(&weights.iter().find(|(n, _)| n == name).unwrap().1)
    };
    assert_eq!(mean(&file.weights), mean(&shorter.net().state()));
    // And going on with it changes nothing any more.
    let mut again = trainer(&config(2, None), folder.path());
    again.resume(&ResumeFrom::Last, &mut recorder).unwrap();
    run(&mut again, &mut recorder).unwrap();
    assert_eq!((recorder.batch_norm.len(), everything(&again)), (1, everything(&shorter)));
}
