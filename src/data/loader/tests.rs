use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::*;
use crate::data::testing::{IMAGE, SCENE, TinyDataset};

fn loader(tiny: &TinyDataset, options: LoaderOptions) -> Loader {
    let dataset = Arc::new(tiny.open(options.skip_bad).unwrap());
    Loader::start(dataset, &tiny.input, &tiny.data, options).unwrap()
}

fn training(workers: usize) -> LoaderOptions {
    LoaderOptions {
        seed: 4,
        epoch: 2,
        batch_size: 3,
        augment: true,
        shuffle: true,
        replace_empty: true,
        workers,
        ..LoaderOptions::default()
    }
}

fn batches(tiny: &TinyDataset, options: LoaderOptions) -> Vec<Batch> {
    loader(tiny, options).collect::<Result<_>>().unwrap()
}

#[test]
fn the_number_of_workers_changes_nothing() {
    let tiny = TinyDataset::with_images(11);
    let expected = batches(&tiny, training(0));
    assert_eq!(expected.len(), 4);
    assert_eq!(expected[3].indices.len(), 2);
    assert_eq!(expected[0].pixels.len(), 3 * 32 * 32 * 3);
    assert_eq!(expected[0].masks.len(), 3 * 32 * 32);
    for workers in [1, 2, 5, 16] {
        assert_eq!(batches(&tiny, training(workers)), expected, "{workers} workers");
    }
}

#[test]
fn an_epoch_resumes_at_any_batch() {
    let tiny = TinyDataset::with_images(11);
    let whole = batches(&tiny, training(2));
    for (first_batch, workers) in [(1, 2), (3, 0), (3, 2), (4, 2), (9, 1)] {
        let rest = loader(&tiny, LoaderOptions { first_batch, ..training(workers) });
        assert_eq!(rest.num_batches(), 4);
        let rest: Vec<Batch> = rest.collect::<Result<_>>().unwrap();
        assert_eq!(rest, whole[first_batch.min(4)..], "from batch {first_batch}");
    }
}

#[test]
fn each_epoch_has_an_order_and_augmentations_of_its_own() {
    let tiny = TinyDataset::with_images(11);
    let order = |epoch| {
        let all = batches(&tiny, LoaderOptions { epoch, augment: false, ..training(0) });
        all.iter().flat_map(|b| b.indices.clone()).collect::<Vec<_>>()
    };
    assert_ne!(order(0), order(1));
    assert_eq!(order(1), permutation(4, 1, 11));
    let fixed = |epoch| LoaderOptions { epoch, shuffle: false, ..training(0) };
    assert_ne!(batches(&tiny, fixed(0))[0].pixels, batches(&tiny, fixed(1))[0].pixels);
}

#[test]
fn short_epochs_go_on_through_the_images() {
    let tiny = TinyDataset::with_images(11);
    let order = |epoch, length| {
        let options = LoaderOptions { epoch, epoch_images: Some(length), ..training(0) };
        let all = batches(&tiny, options);
        all.iter().flat_map(|b| b.indices.clone()).collect::<Vec<_>>()
    };
    let one_by_one: Vec<usize> = (0..6).flat_map(|epoch| order(epoch, 4)).collect();
    let passes = [permutation(4, 0, 11), permutation(4, 1, 11)].concat();
    assert_eq!(one_by_one[..22], passes);
    assert_eq!(order(1, 11), permutation(4, 1, 11), "an epoch of all images is a pass");
    assert_eq!(order(0, 30).len(), 30, "an epoch may be longer than the list");
    assert_eq!(order(0, 30)[..22], passes);
}

#[test]
fn a_permutation_holds_each_index_once() {
    for n in [0, 1, 2, 100] {
        let order = permutation(1, 7, n);
        assert_eq!(order.iter().copied().collect::<BTreeSet<_>>(), (0..n).collect());
        assert_eq!(order.len(), n);
    }
    assert_ne!(permutation(1, 7, 100), permutation(2, 7, 100));
    assert_ne!(permutation(1, 7, 100), permutation(1, 8, 100));
}

#[test]
fn the_last_batch_may_be_dropped() {
    let tiny = TinyDataset::with_images(4);
    for workers in [0, 2] {
        let options = LoaderOptions { drop_last: true, ..training(workers) };
        let loader = loader(&tiny, options);
        assert_eq!(loader.num_batches(), 1);
        assert_eq!(loader.count(), 1);
    }
}

#[test]
fn images_without_objects_are_replaced_in_training_and_kept_in_evaluation() {
    let tiny = TinyDataset::new();
    tiny.edit_first(&format!("{SCENE}/scene_gt.json"), "\"obj_id\":1", "\"obj_id\":5");
    let training = LoaderOptions { shuffle: false, ..training(1) };
    let batch = &batches(&tiny, training.clone())[0];
    assert_eq!(batch.indices.len(), 3);
    assert_ne!(batch.indices[0], 0);
    assert_eq!(batch.indices[1..], [1, 2]);
    assert!(batch.objects.iter().all(|o| o.len() == 1));
    assert!(batch.names[0].ends_with(&format!("{:06}.png", batch.indices[0])));

    let evaluation = LoaderOptions { replace_empty: false, augment: false, ..training };
    let batch = &batches(&tiny, evaluation)[0];
    assert_eq!(batch.indices, [0, 1, 2]);
    assert_eq!(batch.objects.iter().map(Vec::len).collect::<Vec<_>>(), [0, 1, 1]);
}

#[test]
fn when_no_image_shows_an_object_training_fails() {
    let mut tiny = TinyDataset::new();
    tiny.data.min_visible_px = 1000;
    let error = loader(&tiny, training(1)).next().unwrap().unwrap_err();
    assert!(format!("{error:#}").contains("no image with a visible object"), "{error:#}");
}

#[test]
fn a_bad_file_is_one_error_after_the_good_batches() {
    let tiny = TinyDataset::with_images(6);
    tiny.truncate(&format!("{SCENE}/rgb/000003.png"));
    for workers in [0, 1, 3] {
        let options = LoaderOptions { batch_size: 1, workers, ..LoaderOptions::default() };
        let seen: Vec<Result<Batch>> = loader(&tiny, options).collect();
        assert_eq!(seen.len(), 4, "{workers} workers");
        assert!(seen[..3].iter().all(Result::is_ok));
        let error = format!("{:#}", seen[3].as_ref().unwrap_err());
        assert!(error.contains("000003.png"), "{error}");
    }
}

#[test]
fn bad_files_are_counted_in_evaluation_and_replaced_in_training() {
    let tiny = TinyDataset::with_images(5);
    tiny.remove(IMAGE);
    tiny.truncate(&format!("{SCENE}/mask_visib/000001_000000.png"));
    for workers in [0, 2] {
        let evaluation =
            LoaderOptions { batch_size: 2, skip_bad: true, workers, ..LoaderOptions::default() };
        let mut loader = loader(&tiny, evaluation.clone());
        let indices: Vec<Vec<usize>> = loader.by_ref().map(|b| b.unwrap().indices).collect();
        assert_eq!(indices, [vec![2, 3], vec![4]]);
        let bad: Vec<usize> = loader.bad().iter().map(|b| b.index).collect();
        assert_eq!(bad, [0, 1]);
        assert!(loader.bad()[0].error.contains("000000.png"), "{:?}", loader.bad());

        let training = LoaderOptions { replace_empty: true, ..evaluation };
        let seen = batches(&tiny, training);
        assert_eq!(seen.iter().map(|b| b.indices.len()).sum::<usize>(), 5);
        assert!(seen.iter().flat_map(|b| &b.indices).all(|&i| i >= 2));
    }
}

#[test]
fn a_panic_is_an_error_that_names_the_image() {
    let tiny = TinyDataset::new();
    let mut dataset = tiny.open(false).unwrap();
    // A class without a model, which `open` cannot produce: augmenting indexes past the end.
    dataset.frames[1].objects[0].class = 9;
    let options = LoaderOptions { shuffle: false, batch_size: 1, ..training(2) };
    let mut loader = Loader::start(Arc::new(dataset), &tiny.input, &tiny.data, options).unwrap();
    assert!(loader.next().unwrap().is_ok());
    let error = loader.next().unwrap().unwrap_err().to_string();
    assert!(error.contains("000001.png panicked"), "{error}");
    assert!(loader.next().is_none());
}

#[test]
fn workers_stop_when_the_loader_is_dropped() {
    let tiny = TinyDataset::with_images(50);
    let mut loader = loader(&tiny, LoaderOptions { batch_size: 1, ..training(4) });
    loader.next().unwrap().unwrap();
    let start = Instant::now();
    drop(loader);
    assert!(start.elapsed() < Duration::from_secs(2), "took {:?}", start.elapsed());
}

#[test]
fn workers_run_a_few_batches_ahead_and_no_further() {
    let tiny = TinyDataset::with_images(50);
    let dataset = Arc::new(tiny.open(false).unwrap());
    let options = LoaderOptions { batch_size: 2, workers: 2, ..LoaderOptions::default() };
    let mut loader = Loader::start(dataset, &tiny.input, &tiny.data, options).unwrap();
    loader.next().unwrap().unwrap();
    std::thread::sleep(Duration::from_millis(300));
    // Taken: 2 images. Then 1 + 2 batches, and one more for the 2 workers, may be read ahead: up to image 9.
    for i in 10..50 {
        tiny.remove(&format!("{SCENE}/rgb/{i:06}.png"));
    }
    let good = loader.by_ref().take_while(Result::is_ok).count();
    assert_eq!(good, 4);
}

#[test]
fn a_batch_size_of_zero_is_refused() {
    let tiny = TinyDataset::new();
    let dataset = Arc::new(tiny.open(false).unwrap());
    let options = LoaderOptions { batch_size: 0, ..LoaderOptions::default() };
    assert!(Loader::start(dataset, &tiny.input, &tiny.data, options).is_err());
}
