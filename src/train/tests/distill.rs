//! Learning from a teacher, within runs.

use super::*;
use crate::topology::DistillSettings;
use crate::topology::wdr::DistillConfig;

fn teacher(seed: u64) -> Teacher {
    let config = DistillConfig { weight_cls: 0.5, weight_reg: 2.0 };
    let net = toy_config().network(1, Device::Cpu, Some(seed)).unwrap();
    Teacher::new(net, DistillSettings::of(&config)).unwrap()
}

fn learning(config: &TrainConfig, folder: &Path, teacher: Option<Teacher>) -> Trainer {
    trainer_of(config, folder, task_with(teacher))
}

#[test]
fn its_losses_are_named_beside_the_others_and_change_what_is_learnt() {
    let config = three_stages();
    let weights = |teacher: Option<Teacher>| {
        let folder = tempfile::tempdir().unwrap();
        let mut recorder = Recorder::default();
        let mut trained = learning(&config, folder.path(), teacher);
        run(&mut trained, &mut recorder).unwrap();
        (weight_bits(&trained, ""), recorder)
    };
    let (alone, without) = weights(None);
    let (taught, with) = weights(Some(teacher(5)));
    let names = |r: &Recorder| -> Vec<String> {
        r.steps[0].losses.iter().map(|(name, _)| name.to_owned()).collect()
    };
    assert_eq!(names(&without), ["cls", "reg"]);
    assert_eq!(names(&with), ["cls", "reg", "distill_cls", "distill_reg"]);
    assert_ne!(alone, taught);
    assert!(with.epochs.iter().all(|e| e.losses.iter().all(|(_, loss)| loss > 0.0)));
}

#[test]
fn a_resume_needs_the_same_teacher_and_is_exact() {
    let config = three_stages();
    let whole = tempfile::tempdir().unwrap();
    let mut undisturbed = learning(&config, whole.path(), Some(teacher(5)));
    run(&mut undisturbed, &mut Recorder::default()).unwrap();
    let expected = everything(&undisturbed);
    let folder = tempfile::tempdir().unwrap();
    let first = TrainConfig { max_steps: Some(8), ..config.clone() };
    run(&mut learning(&first, folder.path(), Some(teacher(5))), &mut Recorder::default()).unwrap();
    let error = learning(&config, folder.path(), Some(teacher(6)))
        .resume(&ResumeFrom::Last, &mut ())
        .unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("a teacher with other weights") && text.contains("distill"), "{text}");
    // without one, and a run without one with one
    learning(&config, folder.path(), None).resume(&ResumeFrom::Last, &mut ()).unwrap();
    let mut second = learning(&config, folder.path(), Some(teacher(5)));
    second.resume(&ResumeFrom::Last, &mut ()).unwrap();
    run(&mut second, &mut Recorder::default()).unwrap();
    assert_eq!(everything(&second), expected);
}

#[test]
fn a_fingerprint_knows_every_weight() {
    let net = toy_config().network(1, Device::Cpu, Some(5)).unwrap();
    let weight = net.store().get("head.cls_logits.weight").unwrap();
    tch::no_grad(|| {
        let _ = weight.get(0).get(3).fill_(7.0);
    });
    let changed = Teacher::new(net, DistillSettings::default()).unwrap();
    assert_eq!(teacher(5).fingerprint(), teacher(5).fingerprint());
    assert_ne!(teacher(5).fingerprint(), changed.fingerprint());
}
