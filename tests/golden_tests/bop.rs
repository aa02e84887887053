//! The BOP benchmark's scores against bop_toolkit's, on a folder in its form with its oddities.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mqat::data::{BopFolder, DataConfig, Dataset, InputConfig, Loader, LoaderOptions, Purpose};
use mqat::eval::{BopSplit, BopSplitErrors, EstimatesByImage, read_predictions};
use mqat::pose::bop::{BopSettings, PairErrors};
use mqat::pose::{BopScores, bop};
use serde_json::Value;

use crate::support::{json, number, numbers, path};

const FOLDER: &str = "14_bop_multi";

/// Files of the folder whose names begin with `start`.
fn files(start: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(path(FOLDER)).unwrap().map(|entry| entry.unwrap().path());
    let begins = |p: &PathBuf| p.file_name().unwrap().to_str().unwrap().starts_with(start);
    entries.filter(begins).collect()
}

/// The estimates' file, named `estimates_DATASET-SPLIT.csv`, with dataset and split.
fn estimates_file() -> (PathBuf, String, String) {
    let [file] = &files("estimates_")[..] else { panic!("one estimates_DATASET-SPLIT.csv") };
    let stem = file.file_stem().unwrap().to_str().unwrap();
    let (dataset, split) = stem.strip_prefix("estimates_").unwrap().split_once('-').unwrap();
    (file.clone(), dataset.to_owned(), split.to_owned())
}

struct Reference {
    expected: Value,
    dataset: Dataset,
    split: BopSplit,
}

impl Reference {
    fn open() -> Self {
        let expected = json(&format!("{FOLDER}/expected.json"));
        let (_, name, split) = estimates_file();
        let root = path(&format!("{FOLDER}/{name}"));
        let folder = BopFolder::find(&root).expect("a BOP folder");
        let num_objects = expected["obj_ids"].as_array().unwrap().len();
        let data = data_config(num_objects);
        let input = InputConfig::default();
        let dataset = Dataset::open(&root, &split, &data, &input, Purpose::Scoring, false).unwrap();
        let delta = number(&expected["vsd"]["delta_mm"]);
        let settings = BopSettings { vsd_delta_mm: delta, ..BopSettings::default() };
        let split = BopSplit::open(&folder, &split, settings).unwrap();
        Self { expected, dataset, split }
    }

    fn estimates(&self, file: &Path) -> EstimatesByImage {
        let read = read_predictions(file, None, &self.dataset, false).unwrap();
        self.split.estimates(&self.dataset, &read.predictions).unwrap()
    }

    fn scored(&self, file: &Path) -> (BopSplitErrors, BopScores) {
        let errors = self.split.errors(&self.estimates(file)).unwrap();
        let scores = self.split.scores(&errors);
        (errors, scores)
    }

    fn class(&self, obj_id: &Value) -> usize {
        let obj_id = obj_id.as_u64().unwrap();
        self.split.obj_ids.iter().position(|id| u64::from(*id) == obj_id).unwrap()
    }
}

fn data_config(num_objects: usize) -> DataConfig {
    DataConfig {
        num_classes_with_background: num_objects + 1,
        mesh_diameters_mm: Vec::new(),
        ..DataConfig::default()
    }
}

fn assert_near(what: &str, ours: f64, expected: f64, relative: f64, absolute: f64) {
    let equal = ours == expected; // infinities
    let limit = relative * expected.abs() + absolute;
    assert!(equal || (ours - expected).abs() <= limit, "{what}: {ours}, expected {expected}");
}

/// Percentages against fractions.
fn assert_percents(what: &str, ours: &[f64], expected: &[f64], tolerance: f64) {
    assert_eq!(ours.len(), expected.len(), "{what}: {ours:?}, expected {expected:?}");
    for (k, (ours, expected)) in ours.iter().zip(expected).enumerate() {
        assert_near(&format!("{what} {k}"), *ours, 100.0 * expected, 0.0, tolerance + 1e-9);
    }
}

#[test]
fn objects_and_their_symmetries_are_those_of_models_info() {
    let Reference { expected, split, .. } = Reference::open();
    let ids: Vec<f64> = split.obj_ids.iter().map(|&id| f64::from(id)).collect();
    assert_eq!(ids, numbers(&expected["obj_ids"]));
    let symmetric = split.models.iter().zip(ids).filter(|(m, _)| m.is_symmetric());
    let symmetric: Vec<f64> = symmetric.map(|(_, id)| id).collect();
    assert_eq!(symmetric, numbers(&expected["symmetric_obj_ids"]));
}

#[test]
fn the_most_visible_instances_are_the_targets() {
    let reference = Reference::open();
    let (errors, _) = reference.scored(&estimates_file().0);
    let expected = &reference.expected["localization"]["valid_gt"];
    let mut num_images = 0;
    for ((scene, image), found) in errors.images.iter().zip(&errors.errors) {
        let Some(expected) = expected[scene.to_string()][image.to_string()].as_array() else {
            assert!(found.targets.is_empty(), "{scene}/{image}");
            continue;
        };
        num_images += 1;
        let mut valid = vec![false; found.instances.len()];
        found.targets.iter().flat_map(|t| found.valid_of(t)).for_each(|i| valid[i] = true);
        let expected: Vec<bool> = expected.iter().map(|v| v.as_bool().unwrap()).collect();
        assert_eq!(valid, expected, "scene {scene}, image {image}");
    }
    let all = expected.as_object().unwrap().values().map(|s| s.as_object().unwrap().len());
    assert_eq!(num_images, all.sum::<usize>());
}

#[test]
fn errors_of_the_estimates_that_count_are_the_toolkits() {
    let reference = Reference::open();
    let (errors, _) = reference.scored(&estimates_file().0);
    let listed = reference.expected["localization"]["estimates"].as_array().unwrap();
    let mut num_pairs = 0;
    for e in listed {
        let (scene, image) = (e["scene_id"].as_u64().unwrap(), e["im_id"].as_u64().unwrap());
        let at = format!("scene {scene}, image {image}, object {}, {}", e["obj_id"], e["est_id"]);
        let ids = errors.images.iter().position(|(s, i)| (*s as u64, *i as u64) == (scene, image));
        let found = &errors.errors[ids.unwrap_or_else(|| panic!("{at}"))].estimates;
        let class = reference.class(&e["obj_id"]);
        let place = e["est_id"].as_u64().unwrap() as usize;
        let ours = found.iter().find(|o| o.localization && (o.class, o.place) == (class, place));
        let ours = ours.unwrap_or_else(|| panic!("{at} is not kept"));
        assert_eq!(ours.score, number(&e["score"]), "{at}");
        let expected = e["errors"].as_object().unwrap();
        assert_eq!(ours.pairs.len(), expected.len(), "{at}");
        for pair in &ours.pairs {
            compare(&at, pair, &expected[&pair.instance.to_string()]);
            num_pairs += 1;
        }
    }
    let kept = errors.errors.iter().flat_map(|i| &i.estimates).filter(|e| e.localization);
    assert_eq!(kept.count(), listed.len());
    assert!(num_pairs > listed.len(), "several instances of an object in an image");
}

fn compare(at: &str, pair: &PairErrors, expected: &Value) {
    let at = |what: &str| format!("{at}, instance {}: {what}", pair.instance);
    for (what, ours) in [("mssd", pair.mssd_mm), ("mspd", pair.mspd_px), ("ad", pair.ad_mm)] {
        assert_near(&at(what), ours, numbers(&expected[what])[0], 1e-5, 1e-6);
    }
    for (ours, expected) in pair.vsd.iter().zip(numbers(&expected["vsd"])) {
        assert_near(&at("vsd"), *ours, expected, 0.0, 2e-2);
    }
}

#[test]
fn recalls_and_their_averages_are_the_toolkits() {
    let reference = Reference::open();
    let (_, scores) = reference.scored(&estimates_file().0);
    let expected = &reference.expected["localization"];
    let recalls = &expected["recalls"];
    assert_percents("mssd", &scores.recalls.mssd, &numbers(&recalls["mssd"]), 0.0);
    assert_percents("mspd", &scores.recalls.mspd, &numbers(&recalls["mspd"]), 0.0);
    assert_percents("ad", &scores.recalls.ad, &numbers(&recalls["ad"]), 0.0);
    let taus = recalls["vsd"].as_array().unwrap();
    assert_eq!(scores.recalls.vsd.len(), taus.len());
    for (ours, expected) in scores.recalls.vsd.iter().zip(taus) {
        assert_percents("vsd", ours, &numbers(expected), 5.0);
    }
    let ar = &expected["ar"];
    for (name, ours, tolerance) in [
        ("vsd", scores.ar_vsd, 5.0),
        ("mssd", scores.ar_mssd, 0.0),
        ("mspd", scores.ar_mspd, 0.0),
        ("mean", scores.ar, 5.0 / 3.0),
    ] {
        assert_percents(name, &[ours.unwrap()], &[number(&ar[name])], tolerance);
    }
    assert_eq!(scores.vsd_depth, Some(bop::DepthSource::Measured));
}

#[test]
fn recalls_of_objects_are_the_toolkits() {
    let reference = Reference::open();
    let (_, scores) = reference.scored(&estimates_file().0);
    let expected = reference.expected["localization"].as_object().unwrap();
    let (at, expected) = expected.iter().find(|(key, _)| key.starts_with("at_mssd_")).unwrap();
    let threshold: f64 = at.strip_prefix("at_mssd_").unwrap().parse().unwrap();
    let limits = numbers(&reference.expected["thresholds"]["mssd"]);
    let k = limits.iter().position(|limit| (limit - threshold).abs() < 1e-9).unwrap();
    assert_percents(at, &scores.recalls.mssd[k..=k], &[number(&expected["recall"])], 0.0);
    assert_eq!(scores.num_targets as u64, expected["targets"].as_u64().unwrap());
    for (obj_id, recall) in expected["per_object"].as_object().unwrap() {
        let object = scores.objects.iter().find(|o| o.obj_id.unwrap().to_string() == *obj_id);
        let ours = object.unwrap().recalls.mssd[k];
        assert_percents(obj_id, &[ours], &[number(recall)], 0.0);
    }
}

#[test]
fn precisions_are_the_toolkits() {
    let reference = Reference::open();
    let (_, scores) = reference.scored(&estimates_file().0);
    let expected = &reference.expected["detection"];
    for object in &scores.objects {
        let obj_id = object.obj_id.unwrap().to_string();
        for (name, ours) in [
            ("mssd", &object.precisions.mssd),
            ("mspd", &object.precisions.mspd),
            ("mssd_mm", &object.precisions.mssd_mm),
        ] {
            let of_error = &expected[name];
            let what = format!("object {obj_id}, {name}");
            assert_percents(&what, ours, &numbers(&of_error["ap_per_object"][&obj_id]), 0.0);
            let num = of_error["targets"][&obj_id].as_u64().unwrap();
            assert_eq!(object.num_instances as u64, num, "{what}");
        }
    }
    for (name, ours) in
        [("mssd", scores.ap_mssd), ("mspd", scores.ap_mspd), ("mssd_mm", scores.ap_mssd_mm)]
    {
        assert_percents(name, &[ours.unwrap()], &[number(&expected[name]["map"])], 0.0);
    }
    assert_percents("AP", &[scores.ap.unwrap()], &[number(&expected["bop24_map"])], 0.0);
}

#[test]
fn the_truth_as_a_result_scores_everything_when_its_score_is_the_visibility() {
    let reference = Reference::open();
    let expected = &reference.expected["ground_truth_as_result"];
    for (start, key) in [("gt_equal_scores_", "all_scores_1"), ("gt_", "score_is_visib_fract")] {
        let file = files(start)
            .into_iter()
            .find(|f| start != "gt_" || !f.to_str().unwrap().contains("equal_scores"));
        let (_, scores) = reference.scored(&file.unwrap());
        let ar = &expected[key]["ar"];
        for (name, ours) in [
            ("vsd", scores.ar_vsd),
            ("mssd", scores.ar_mssd),
            ("mspd", scores.ar_mspd),
            ("mean", scores.ar),
        ] {
            assert_percents(&format!("{key} {name}"), &[ours.unwrap()], &[number(&ar[name])], 0.0);
        }
    }
    // Our own truth is as that with visibilities.
    let errors = reference.split.errors(&reference.split.truth().unwrap()).unwrap();
    let scores = reference.split.scores(&errors);
    assert_eq!((scores.ar, scores.ad_01d), (Some(100.0), Some(100.0)), "{scores:?}");
    let map = number(&expected["bop24_map"]);
    assert_percents("AP", &[scores.ap.unwrap()], &[map], 0.0);
}

/// The other split of the folder, which no targets are of.
fn other_split(folder: &BopFolder) -> String {
    let (_, _, split) = estimates_file();
    folder.splits().find(|name| *name != split).expect("a second split").to_owned()
}

fn open(purpose: Purpose) -> (BopFolder, String, Dataset) {
    let (_, name, _) = estimates_file();
    let root = path(&format!("{FOLDER}/{name}"));
    let folder = BopFolder::find(&root).unwrap();
    let split = other_split(&folder);
    let data =
        data_config(json(&format!("{FOLDER}/expected.json"))["obj_ids"].as_array().unwrap().len());
    let dataset =
        Dataset::open(&root, &split, &data, &input(&folder, &split), purpose, false).unwrap();
    (folder, split, dataset)
}

/// An internal camera of 64 x 64 px that is the middle of the first image's.
fn input(folder: &BopFolder, split: &str) -> InputConfig {
    let scenes = folder.scenes(split).unwrap();
    let camera = scenes[0].images.values().next().unwrap().camera;
    let mut k = camera.row_major();
    (k[2], k[5]) = (31.5, 31.5);
    InputConfig { width: 64, height: 64, k, ..InputConfig::default() }
}

#[test]
fn a_folder_of_scenes_is_read_without_what_cannot_be_seen() {
    let (folder, split, dataset) = open(Purpose::Training);
    let (mut num_images, mut num_hidden) = (0, 0);
    for scene in folder.scenes(&split).unwrap() {
        let info = fs::read_to_string(scene.folder.join("scene_gt_info.json")).unwrap();
        let info: Value = serde_json::from_str(&info).unwrap();
        for (&number, image) in &scene.images {
            num_images += 1;
            let told = info[number.to_string()].as_array().unwrap();
            let seen = |v: &&Value| v["px_count_visib"].as_u64().unwrap() > 0;
            let num_seen = told.iter().filter(seen).count();
            num_hidden += told.len() - num_seen;
            let file = scene.image_file(number).unwrap().strip_prefix(folder.root()).unwrap();
            let frame = dataset.frames.iter().find(|f| Path::new(&f.image) == file).unwrap();
            assert_eq!(frame.objects.len(), num_seen, "{}", frame.image);
            assert_eq!(frame.camera, image.camera);
            assert!(frame.objects.iter().all(|o| o.mask.as_ref().is_some_and(|m| m.is_file())));
        }
    }
    assert_eq!((dataset.frames.len(), dataset.skipped.hidden_objects), (num_images, num_hidden));
    assert!(num_hidden > 0 && dataset.frames.iter().any(|f| f.objects.is_empty()));
    let infos = folder.infos(&folder.meshes().unwrap()).unwrap();
    for model in dataset.models.iter() {
        let info = infos.of(model.obj_id).unwrap();
        assert_eq!(Some(model.diameter_mm), info.diameter);
        assert_eq!(Some(model.corners), info.corners());
    }
}

#[test]
fn samples_of_a_folder_of_scenes_have_their_pixels_and_masks() {
    let (folder, split, dataset) = open(Purpose::Training);
    let (data, input) = (data_config(dataset.models.len()), input(&folder, &split));
    let dataset = Arc::new(dataset);
    let options =
        LoaderOptions { batch_size: dataset.frames.len(), workers: 0, ..LoaderOptions::default() };
    let mut loader = Loader::start(Arc::clone(&dataset), &input, &data, options).unwrap();
    let batch = loader.next().unwrap().unwrap();
    assert_eq!(batch.indices.len(), dataset.frames.len());
    assert!(batch.pixels.iter().any(|&p| p > 0) && batch.masks.iter().any(|&m| m > 0));
    let num_seen: usize = batch.objects.iter().map(Vec::len).sum();
    let num_objects: usize = dataset.frames.iter().map(|f| f.objects.len()).sum();
    assert!(0 < num_seen && num_seen <= num_objects, "{num_seen} of {num_objects}");
}

#[test]
fn an_evaluation_looks_at_the_images_of_targets() {
    let (_, name, split) = estimates_file();
    let root = path(&format!("{FOLDER}/{name}"));
    let folder = BopFolder::find(&root).unwrap();
    let asked = folder.targets_of(&split).unwrap().images().unwrap();
    let reference = Reference::open();
    let data = data_config(reference.dataset.models.len());
    let input = input(&folder, &split);
    let open = |purpose| Dataset::open(&root, &split, &data, &input, purpose, false).unwrap();
    assert_eq!(open(Purpose::Evaluation).frames.len(), asked.len());
    assert!(open(Purpose::Scoring).frames.len() > asked.len());
    // Errors are measured on the evaluation meshes, training and pictures take the others.
    let vertices = |purpose| -> usize {
        open(purpose).models.iter().map(|model| model.mesh.vertices.len()).sum()
    };
    assert!(vertices(Purpose::Images) > vertices(Purpose::Evaluation));
}
