//! The BOP benchmark's scores against bop_toolkit's, on a folder in its form with its oddities.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use mqat::data::{
    BopFolder, DataConfig, Dataset, InputConfig, Loader, LoaderOptions, Purpose, VISIBLE_TARGET,
};
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

/// The estimates' file, named `estimates_DATASET-SPLIT[-TYPE].csv`, with dataset and folder of scenes.
fn estimates_file() -> (PathBuf, String, String) {
    let [file] = &files("estimates_")[..] else { panic!("one estimates_DATASET-SPLIT.csv") };
    let (dataset, split) = dataset_and_split(file);
    (file.clone(), dataset, split)
}

/// Of `RESULT_DATASET-SPLIT[-TYPE].csv`: the folder of scenes is `SPLIT[_TYPE]`.
fn dataset_and_split(file: &Path) -> (String, String) {
    let stem = file.file_stem().unwrap().to_str().unwrap();
    let (_, name) = stem.split_once('_').unwrap();
    let (dataset, split) = name.split_once('-').unwrap();
    (dataset.to_owned(), split.replace('-', "_"))
}

#[test]
fn files_of_results_name_the_folder_of_scenes() {
    let of = |name: &str| dataset_and_split(Path::new(name));
    assert_eq!(of("estimates_toy-test.csv"), ("toy".into(), "test".into()));
    assert_eq!(of("x_tless-test-primesense.csv"), ("tless".into(), "test_primesense".into()));
}

struct Reference {
    expected: Value,
    dataset: Dataset,
    split: BopSplit,
}

impl Reference {
    fn open() -> Self {
        let (_, name, _) = estimates_file();
        Self::open_at(&path(&format!("{FOLDER}/{name}")))
    }

    /// The same of a copy of the folder that lacks something.
    fn without(files: &[&str]) -> (tempfile::TempDir, Self) {
        let copied = copied();
        for file in files {
            remove(copied.path(), file);
        }
        let reference = Self::open_at(copied.path());
        (copied, reference)
    }

    fn open_at(root: &Path) -> Self {
        let expected = json(&format!("{FOLDER}/expected.json"));
        let (_, _, split) = estimates_file();
        let folder = BopFolder::find(root).expect("a BOP folder");
        let num_objects = expected["obj_ids"].as_array().unwrap().len();
        let data = data_config(num_objects);
        let input = InputConfig::default();
        let dataset = Dataset::open(root, &split, &data, &input, Purpose::Scoring, false).unwrap();
        let delta = number(&expected["vsd"]["delta_mm"]);
        let settings = BopSettings { vsd_delta_mm: delta, ..BopSettings::default() };
        let split = BopSplit::open(&folder, &split, settings, None).unwrap();
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

    /// The scores of the truth.
    fn truth(&self) -> (BopSplitErrors, BopScores) {
        let errors = self.split.errors(&self.split.truth().unwrap()).unwrap();
        let scores = self.split.scores(&errors);
        (errors, scores)
    }

    fn has_note(&self, part: &str) -> bool {
        self.split.notes.iter().any(|note| note.contains(part))
    }

    fn class(&self, obj_id: &Value) -> usize {
        let obj_id = obj_id.as_u64().unwrap();
        self.split.obj_ids.iter().position(|id| u64::from(*id) == obj_id).unwrap()
    }
}

/// A copy of the folder that a test may damage.
fn copied() -> tempfile::TempDir {
    fn copy(from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        for entry in fs::read_dir(from).unwrap() {
            let (path, name) = entry.map(|e| (e.path(), e.file_name())).unwrap();
            match path.is_dir() {
                true => copy(&path, &to.join(name)),
                false => fs::write(to.join(name), fs::read(&path).unwrap()).unwrap(),
            }
        }
    }
    let (_, name, _) = estimates_file();
    let dir = tempfile::tempdir().unwrap();
    copy(&path(&format!("{FOLDER}/{name}")), dir.path());
    dir
}

/// Removes a file or a folder, in every scene where it is named `*/NAME`; it need not be there.
fn remove(root: &Path, name: &str) {
    let places = match name.strip_prefix("*/") {
        None => vec![root.join(name)],
        Some(name) => {
            let folder = BopFolder::find(root).unwrap();
            let scenes = folder.splits().flat_map(|split| folder.scenes(split).unwrap());
            scenes.map(|scene| scene.folder.join(name)).collect()
        }
    };
    for place in places {
        if place.is_dir() {
            fs::remove_dir_all(place).unwrap();
        } else if place.is_file() {
            fs::remove_file(place).unwrap();
        }
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
    assert!(num_pairs >= listed.len(), "{num_pairs} of {}", listed.len());
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
        // Without targets there are no recalls, and the toolkit has 0.
        let ours = object.unwrap().recalls.mssd.get(k).copied().unwrap_or(0.0);
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
            let num = of_error["targets"][&obj_id].as_u64().unwrap_or(0);
            assert_eq!(object.num_instances as u64, num, "{what}");
            // An object without instances has no precisions, and is not in the mean.
            match num {
                0 => assert!(ours.is_empty(), "{what}: {ours:?}"),
                _ => {
                    let expected = numbers(&of_error["ap_per_object"][&obj_id]);
                    assert_percents(&what, ours, &expected, 0.0);
                }
            }
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
        let Some(file) = file else { continue };
        let (_, scores) = reference.scored(&file);
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
    let (_, scores) = reference.truth();
    assert_eq!((scores.ar, scores.ad_01d), (Some(100.0), Some(100.0)), "{scores:?}");
    let map = number(&expected["bop24_map"]);
    assert_percents("AP", &[scores.ap.unwrap()], &[map], 0.0);
}

/// The other split of the folder, which no targets are of; the only one where there is none.
fn other_split(folder: &BopFolder) -> String {
    let (_, _, split) = estimates_file();
    folder.splits().find(|name| *name != split).unwrap_or(&split).to_owned()
}

fn open(purpose: Purpose) -> (BopFolder, String, Dataset) {
    let (_, name, _) = estimates_file();
    open_at(&path(&format!("{FOLDER}/{name}")), purpose, 0.0)
}

fn open_at(root: &Path, purpose: Purpose, min_visible: f64) -> (BopFolder, String, Dataset) {
    let folder = BopFolder::find(root).unwrap();
    let split = other_split(&folder);
    let num_objects = json(&format!("{FOLDER}/expected.json"))["obj_ids"].as_array().unwrap().len();
    let data = DataConfig { min_visible_fraction: min_visible, ..data_config(num_objects) };
    let input = input(&folder, &split);
    let dataset = Dataset::open(root, &split, &data, &input, purpose, false).unwrap();
    (folder, split, dataset)
}

/// An internal camera of 64 x 64 px that sees as much as the first image's.
fn input(folder: &BopFolder, split: &str) -> InputConfig {
    let scenes = folder.scenes(split).unwrap();
    let scene = &scenes[0];
    let number = *scene.images.keys().next().unwrap();
    let path = scene.image_file(number).unwrap();
    let (width, height) = image::image_dimensions(path).unwrap();
    let scale = 64.0 / f64::from(width.max(height));
    let mut k = scene.frame(number).unwrap().camera.row_major();
    for i in [0, 1, 4] {
        k[i] *= scale;
    }
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
            let is_image = |key: &str| key.parse::<u32>() == Ok(number);
            let told = info.as_object().unwrap().iter().find(|(key, _)| is_image(key));
            let told = told.map_or(&[][..], |(_, told)| told.as_array().unwrap());
            let seen = |v: &&Value| v["px_count_visib"].as_u64().unwrap() > 0;
            let num_seen = told.iter().filter(seen).count();
            num_hidden += told.len() - num_seen;
            let file = scene.image_file(number).unwrap().strip_prefix(folder.root()).unwrap();
            let frame = dataset.frames.iter().find(|f| Path::new(&f.image) == file).unwrap();
            assert_eq!(frame.objects.len(), num_seen, "{}", frame.image);
            assert_eq!(frame.camera, image.as_ref().unwrap().camera);
            assert!(frame.objects.iter().all(|o| o.mask.as_ref().is_some_and(|m| m.is_file())));
        }
    }
    assert_eq!((dataset.frames.len(), dataset.skipped.hidden_objects), (num_images, num_hidden));
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
    let all: usize = folder.scenes(&split).unwrap().iter().map(|s| s.images.len()).sum();
    let num_asked = folder.targets_of(&split).unwrap().images().map_or(all, |asked| asked.len());
    let reference = Reference::open();
    let data = data_config(reference.dataset.models.len());
    let input = input(&folder, &split);
    let open = |purpose| Dataset::open(&root, &split, &data, &input, purpose, false).unwrap();
    assert_eq!(open(Purpose::Evaluation).frames.len(), num_asked);
    assert_eq!(open(Purpose::Scoring).frames.len(), all);
    // Errors are measured on the evaluation meshes, training and pictures take the others.
    let vertices = |purpose| -> usize {
        open(purpose).models.iter().map(|model| model.mesh.vertices.len()).sum()
    };
    let infos = folder.infos(&folder.meshes().unwrap()).unwrap();
    let in_folder = |dir: Option<PathBuf>| -> usize {
        let path = |id: u32| dir.as_ref().unwrap().join(format!("obj_{id:06}.ply"));
        let ids = infos.obj_ids().into_iter();
        ids.map(|id| mqat::io::mesh::read_ply(&path(id)).unwrap().vertices.len()).sum()
    };
    assert_eq!(vertices(Purpose::Images), in_folder(folder.meshes()));
    assert_eq!(vertices(Purpose::Evaluation), in_folder(folder.evaluation_meshes()));
}

#[test]
fn without_targets_all_visible_objects_are_asked_for() {
    let (_copied, found) =
        Reference::without(&["test_targets_bop19.json", "test_targets_bop24.json"]);
    let (errors, scores) = found.truth();
    assert_eq!(errors.images.len(), found.dataset.frames.len());
    let visible = |image: &bop::ImageErrors| {
        image.instances.iter().filter(|(_, visible)| *visible >= VISIBLE_TARGET).count()
    };
    assert_eq!(scores.num_targets, errors.errors.iter().map(visible).sum::<usize>());
    assert_eq!((scores.num_targets, scores.ar), (scores.num_instances, Some(100.0)));
    assert!(found.has_note("targets of AR: all objects"), "{:?}", found.split.notes);
}

#[test]
fn without_targets_of_detection_ap_looks_at_the_images_of_localization() {
    let (_copied, found) = Reference::without(&["test_targets_bop24.json"]);
    let (errors, scores) = found.scored(&estimates_file().0);
    assert!(errors.errors.iter().all(|image| image.detection && !image.targets.is_empty()));
    let (_, whole) = Reference::open().scored(&estimates_file().0);
    assert_eq!((scores.ar, scores.num_targets), (whole.ar, whole.num_targets));
}

#[test]
fn without_evaluation_meshes_errors_are_measured_on_the_others() {
    let (copied, found) = Reference::without(&["models_eval"]);
    assert!(found.has_note("there are no evaluation meshes"), "{:?}", found.split.notes);
    let folder = BopFolder::find(copied.path()).unwrap();
    let infos = folder.infos(&folder.meshes().unwrap()).unwrap();
    for (model, obj_id) in found.split.models.iter().zip(&found.split.obj_ids) {
        assert_eq!(Some(model.diameter_mm), infos.of(*obj_id).unwrap().diameter);
    }
    let (_, scores) = found.truth();
    assert_eq!((scores.ar_mssd, scores.ar_mspd), (Some(100.0), Some(100.0)));
}

#[test]
fn without_scene_gt_info_masks_tell_what_is_visible() {
    let (copied, found) = Reference::without(&["*/scene_gt_info.json"]);
    assert!(found.has_note("visible fractions are computed from masks"));
    let (ours, _) = found.truth();
    let (whole, _) = Reference::open().truth();
    assert_eq!(ours.images, whole.images);
    for (ours, whole) in ours.errors.iter().zip(&whole.errors) {
        for ((_, ours), (_, told)) in ours.instances.iter().zip(&whole.instances) {
            // Masks end at the image's border, the file's counts do not.
            assert!(ours >= &(told - 1e-9) && (*ours == 0.0) == (*told == 0.0), "{ours} {told}");
        }
    }
    // Hidden instances are left out, and so are, in training, those of which too little is visible.
    for (purpose, least) in
        [(Purpose::Training, 0.0), (Purpose::Training, 0.2), (Purpose::Scoring, 0.0)]
    {
        let (_, _, without) = open_at(copied.path(), purpose, least);
        let (_, name, _) = estimates_file();
        let (_, _, with) = open_at(&path(&format!("{FOLDER}/{name}")), purpose, least);
        let nums = |dataset: &Dataset| -> (Vec<usize>, usize) {
            let of_frames = dataset.frames.iter().map(|f| f.objects.len()).collect();
            (of_frames, dataset.skipped.hidden_objects)
        };
        assert_eq!(nums(&without), nums(&with), "{purpose:?} {least}");
    }
}
