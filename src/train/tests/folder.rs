//! Which checkpoints stay, and which one is found.

use std::fs;

use super::*;

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A complete run with a checkpoint after each epoch.
fn complete(folder: &Path) -> TrainConfig {
    let config = three_stages();
    run(&mut trainer(&config, folder), &mut Recorder::default()).unwrap();
    config
}

fn resumed(config: &TrainConfig, folder: &Path, from: ResumeFrom) -> Result<(Position, Recorder)> {
    let mut trainer = trainer(config, folder);
    let mut recorder = Recorder::default();
    trainer.resume(&from, &mut recorder)?;
    Ok((trainer.position().clone(), recorder))
}

#[test]
fn the_last_few_the_ends_of_stages_and_the_best_stay() {
    let folder = tempfile::tempdir().unwrap();
    complete(folder.path());
    let ckpt = |epochs: usize| format!("ckpt_{:08}.safetensors", epochs * BATCHES);
    let expected = [
        "best.safetensors".to_owned(),
        ckpt(4),
        ckpt(5),
        ckpt(6),
        "stage_0_full_precision.safetensors".to_owned(),
        "stage_1_fpn.safetensors".to_owned(),
        "stage_2_head.safetensors".to_owned(),
    ];
    assert_eq!(names(folder.path()), expected);
    let end = Checkpoint::read(&folder.path().join(&expected[5])).unwrap().meta;
    assert_eq!((end.position.stage, end.position.epoch, end.position.batch), (1, 3, 0));
}

#[test]
fn a_broken_newest_checkpoint_is_passed_over_aloud() {
    let folder = tempfile::tempdir().unwrap();
    let config = complete(folder.path());
    let newest = folder.path().join(format!("ckpt_{:08}.safetensors", 6 * BATCHES));
    let whole = fs::read(&newest).unwrap();
    let garbage = vec![0xff; 1000];
    for broken in [&whole[..whole.len() / 2], &whole[..4], &[], &garbage] {
        fs::write(&newest, broken).unwrap();
        let (position, recorder) = resumed(&config, folder.path(), ResumeFrom::Last).unwrap();
        assert_eq!(position.global_step, 5 * BATCHES as u64);
        let first = &recorder.messages[0];
        assert!(first.starts_with(&format!("checkpoint {} cannot be read", newest.display())));
        assert!(first.contains(&format!("older {}", folder.path().join("ckpt_").display())));
        assert!(recorder.messages[1].contains("superseded"), "{:?}", recorder.messages);
        assert!(!newest.exists());
    }
}

#[test]
fn none_there_is_a_new_beginning_and_all_broken_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let config = three_stages();
    let (position, recorder) = resumed(&config, folder.path(), ResumeFrom::Last).unwrap();
    assert_eq!(position, Position::default());
    assert!(recorder.messages[0].ends_with("yet: the run begins anew"), "{:?}", recorder.messages);
    let error = resumed(&config, folder.path(), ResumeFrom::Epoch(1)).unwrap_err();
    assert!(format!("{error:#}").contains("there are those after []"), "{error:#}");
    let error = resumed(&config, folder.path(), ResumeFrom::Best).unwrap_err();
    assert!(format!("{error:#}").contains("no epoch has been validated yet"));
    fs::write(folder.path().join("ckpt_00000007.safetensors"), "x").unwrap();
    let error = resumed(&config, folder.path(), ResumeFrom::Last).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("can be read") && text.contains("ckpt_00000007"), "{text}");
}

#[test]
fn an_epoch_and_the_best_are_found_and_newer_ones_set_aside() {
    let folder = tempfile::tempdir().unwrap();
    let config = complete(folder.path());
    // After 2 epochs only the stage's own file is left.
    let (position, recorder) = resumed(&config, folder.path(), ResumeFrom::Epoch(2)).unwrap();
    assert_eq!((position.stage, position.global_epoch), (0, 2));
    assert_eq!(recorder.messages.len(), 3);
    assert!(names(folder.path()).iter().filter(|n| n.ends_with(".superseded")).count() == 3);
    let error = resumed(&config, folder.path(), ResumeFrom::Epoch(3)).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.ends_with("there are those after [2, 5, 6]"), "{text}");
    let (position, _) = resumed(&config, folder.path(), ResumeFrom::Best).unwrap();
    assert_eq!(position.global_epoch, 6);
}

#[test]
fn a_kill_between_a_checkpoint_and_its_mark_as_the_best_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = complete(folder.path());
    let best = folder.path().join("best.safetensors");
    fs::remove_file(&best).unwrap();
    resumed(&config, folder.path(), ResumeFrom::Last).unwrap();
    assert_eq!(Checkpoint::read(&best).unwrap().meta.position.global_epoch, 6);
    // A checkpoint that is not the best one is not made so.
    let (position, _) = resumed(&config, folder.path(), ResumeFrom::Epoch(5)).unwrap();
    assert_eq!(position.stage, 1);
    resumed(&config, folder.path(), ResumeFrom::Epoch(4)).unwrap();
    assert_ne!(Checkpoint::read(&best).unwrap().meta.position.global_epoch, 4);
}

#[test]
fn a_new_run_does_not_mix_with_an_old_one() {
    let folder = tempfile::tempdir().unwrap();
    let config = complete(folder.path());
    let error = run(&mut trainer(&config, folder.path()), &mut Recorder::default()).unwrap_err();
    assert!(error.to_string().contains("holds checkpoints of another run"), "{error}");
}

#[test]
fn unfinished_files_are_removed_and_bare_weights_are_no_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join(".best.safetensors.link.unfinished"), "x").unwrap();
    CheckpointFolder::open(folder.path(), 3).unwrap();
    assert_eq!(names(folder.path()), [""; 0]);

    let path = folder.path().join("weights.safetensors");
    let net = toy_net();
    crate::io::tensors::write(&path, &net.state(), &BTreeMap::new()).unwrap();
    let error = Checkpoint::read(&path).unwrap_err();
    assert!(error.to_string().contains("it is not a checkpoint to resume from"), "{error}");
    let blank = blank_net(1);
    let loaded = load_for_evaluation(&path, blank.as_ref()).unwrap();
    assert!(loaded.meta.is_none() && loaded.quantizers.is_empty());
    assert!(blank.state().iter().zip(net.state()).all(|((_, a), (_, b))| bits(a) == bits(&b)));
    let two_classes = blank_net(2);
    let error = load_for_evaluation(&path, two_classes.as_ref()).map(|_| ()).unwrap_err();
    let text = format!("{error:#}");
    assert!(text.contains("weights.safetensors") && text.contains("head.cls_logits"), "{text}");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ckpt_00000001.safetensors");
    let json = r#"{"format": 99, "mqat_version": "9.1.0"}"#;
    let metadata = BTreeMap::from([("mqat".to_owned(), json.to_owned())]);
    crate::io::tensors::write(&path, &toy_net().state(), &metadata).unwrap();
    let text = format!("{:#}", Checkpoint::read(&path).unwrap_err());
    assert!(text.contains("format 99, written by mqat 9.1.0"), "{text}");
}

#[test]
fn resume_words_are_parsed() {
    assert_eq!("last".parse::<ResumeFrom>().unwrap(), ResumeFrom::Last);
    assert_eq!("best".parse::<ResumeFrom>().unwrap(), ResumeFrom::Best);
    assert_eq!("12".parse::<ResumeFrom>().unwrap(), ResumeFrom::Epoch(12));
    let error = "newest".parse::<ResumeFrom>().unwrap_err();
    assert_eq!(error.to_string(), "\"newest\" is neither last, best nor a number of epochs");
}
