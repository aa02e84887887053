//! A list of images with everything known about them but their pixels.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::bop_folder::BopFolder;
use super::bop_frames;
use super::config::dataset_relative;
use super::consistency::{check_distances, warn_of_field};
use super::frame::Frame;
use super::models::read_models;
use super::purpose::Purpose;
use super::scene::{ImagePath, read_scene};
use super::split_list::SplitList;
use super::{DataConfig, InputConfig, ObjectModel};
use crate::io;

/// Most frames that weights of splits may make of an image, on average.
const MAX_REPEATS: f64 = 1000.0;

/// What was left out of a dataset.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Skipped {
    /// Lines that name an image again, where each counts once.
    pub repeated_images: usize,
    /// Objects whose obj_id has no mesh.
    pub objects_without_mesh: usize,
    /// Objects of a BOP folder that `data.OBJ_IDS` leaves out.
    pub objects_not_chosen: usize,
    /// Objects of which nothing can be seen, or too little to train with.
    pub hidden_objects: usize,
    /// With `skip_bad`: why each image left out is, in the order of the list.
    pub bad_images: Vec<String>,
}

/// A split of a dataset in BOP form.
#[derive(Debug, Clone)]
pub struct Dataset {
    /// Folder that the images' paths are relative to.
    pub root: PathBuf,
    /// One a class, in the order of the classes.
    pub models: Arc<Vec<ObjectModel>>,
    /// In the order of the list.
    pub frames: Vec<Frame>,
    /// What was left out.
    pub skipped: Skipped,
}

impl Dataset {
    /// Reads the list (as the config spells it), the meshes and each scene folder's JSON files, once. In a folder as the BOP
    /// benchmark publishes them ([`BopFolder`]) that has no such file the list names folders of scenes ([`SplitList`]).
    ///
    /// With `skip_bad` an image whose annotation is bad is counted and left out. Image files are first looked at
    /// when they are loaded; masks must exist now, where the purpose needs them.
    ///
    /// # Errors
    /// Names the file: missing, not JSON or truncated; a list without a line; an image number that the JSON files
    /// lack; a pose that is not finite, no rotation or behind the camera; masks that are not one an object; no
    /// object (where the purpose needs some) or no image at all left; descriptions of an object in different units.
    pub fn open(
        root: &Path,
        list: &str,
        data: &DataConfig,
        input: &InputConfig,
        purpose: Purpose,
        skip_bad: bool,
    ) -> Result<Dataset> {
        input.camera()?;
        let list_path = root.join(dataset_relative(list));
        let bop = if list_path.is_file() { None } else { BopFolder::find(root) };
        let read = match bop {
            Some(folder) => read_splits(&folder, list, data, purpose)?,
            None => read_list(root, &list_path, data, purpose)?,
        };
        let at = list_path.display();
        let num_read: usize = read.parts.iter().map(|(frames, _)| frames.len()).sum();
        let mut skipped = read.skipped;
        skipped.objects_without_mesh = read.without_mesh.len();
        let mut parts = Vec::with_capacity(read.parts.len());
        for (found, weight) in read.parts {
            let mut frames = Vec::with_capacity(found.len());
            for frame in found {
                match frame.with_context(|| at.to_string()) {
                    Ok(frame) => frames.push(frame),
                    Err(e) if skip_bad => skipped.bad_images.push(format!("{e:#}")),
                    Err(e) => return Err(e),
                }
            }
            parts.push((frames, weight));
        }
        let frames = joined(parts).with_context(|| list.to_owned())?;
        if let (true, Some(first)) = (frames.is_empty(), skipped.bad_images.first()) {
            bail!("{at}: each of the {num_read} images is bad, the first: {first}");
        }
        let models = read.models;
        let num_objects: usize = frames.iter().map(|f| f.objects.len()).sum();
        if num_objects == 0 && !read.without_mesh.is_empty() {
            let ids: BTreeSet<u32> = read.without_mesh.into_iter().collect();
            let known: Vec<u32> = models.iter().map(|m| m.obj_id).collect();
            bail!(
                "{at}: none of the objects has a mesh: their obj_ids are {ids:?}, the meshes' {known:?}"
            );
        }
        ensure!(
            num_objects > 0 || purpose == Purpose::Images,
            "{at}: no object in any of the {} images: nothing can be {}; poses in images without annotations are predicted \
             by mqat predict {at}",
            frames.len(),
            if purpose == Purpose::Training { "learnt" } else { "evaluated" }
        );
        skipped.warn(&list_path);
        check_distances(&list_path, &frames, &models)?;
        if purpose != Purpose::Scoring {
            warn_of_field(&frames, input);
        }
        warn_of_several(&list_path, &frames, purpose);
        Ok(Dataset { root: root.to_owned(), models: Arc::new(models), frames, skipped })
    }

    /// Most objects of one class in an image.
    pub fn most_of_a_class(&self) -> usize {
        self.frames.iter().map(Frame::most_of_a_class).max().unwrap_or(0)
    }

    /// Least and greatest depth of the objects, mm; `None` when there are none.
    pub fn depth_range_mm(&self) -> Option<(f64, f64)> {
        let depths = self.frames.iter().flat_map(|f| &f.objects).map(|o| o.pose.t_mm.z);
        depths.fold(None, |range, z| {
            let (low, high) = range.unwrap_or((z, z));
            Some((z.min(low), z.max(high)))
        })
    }
}

/// What was read of a dataset, before bad images are left out.
struct Read {
    models: Vec<ObjectModel>,
    /// Frames with the weight of their part; a list is one part without.
    parts: Vec<(Vec<Result<Frame>>, Option<f64>)>,
    /// obj_id of each object without a mesh.
    without_mesh: Vec<u32>,
    skipped: Skipped,
}

fn read_list(root: &Path, path: &Path, data: &DataConfig, purpose: Purpose) -> Result<Read> {
    let mut images = io::read_list(path)?;
    ensure!(
        !images.is_empty(),
        "{}: the list is empty, expected one image path a line",
        path.display()
    );
    let repeated_images = take_repeats(path, &mut images, purpose);
    let models = read_models(root, data)?;
    let class_of = models.iter().enumerate().map(|(c, m)| (m.obj_id, c)).collect();
    let names: Vec<&str> = images.iter().map(String::as_str).collect();
    let (found, without_mesh) = read_frames(root, &names, &class_of, purpose == Purpose::Training);
    let named =
        |(image, frame): (&String, Result<Frame>)| frame.with_context(|| format!("image {image}"));
    let frames = images.iter().zip(found).map(named).collect();
    let skipped = Skipped { repeated_images, ..Skipped::default() };
    Ok(Read { models, parts: vec![(frames, None)], without_mesh, skipped })
}

fn read_splits(
    folder: &BopFolder,
    list: &str,
    data: &DataConfig,
    purpose: Purpose,
) -> Result<Read> {
    let list = SplitList::parse(list)?;
    let models = bop_frames::read_models(folder, data, purpose)?;
    let found = bop_frames::read_frames(folder, &list, &models, data, purpose)?;
    let known = folder.infos(&folder.meshes().context("no folder of meshes")?)?;
    let is_known = |obj_id: &u32| known.of(*obj_id).is_some();
    let (not_chosen, without_mesh): (Vec<u32>, Vec<u32>) =
        found.without_class.into_iter().partition(is_known);
    let skipped = Skipped {
        hidden_objects: found.num_hidden,
        objects_not_chosen: not_chosen.len(),
        ..Skipped::default()
    };
    Ok(Read { models, parts: found.parts, without_mesh, skipped })
}

/// The frames of all parts, one after another. Where parts have weights, their frames are repeated so that the numbers of
/// frames are as the weights, and each frame is there at least once.
///
/// # Errors
/// If the frames would be more than [`MAX_REPEATS`] times the images.
fn joined(parts: Vec<(Vec<Frame>, Option<f64>)>) -> Result<Vec<Frame>> {
    let num_images: usize = parts.iter().map(|(frames, _)| frames.len()).sum();
    let per_weight = parts.iter().filter_map(|(frames, w)| Some(frames.len() as f64 / (*w)?));
    let most = per_weight.fold(0.0, f64::max);
    let sum: f64 =
        parts.iter().map(|(f, w)| if f.is_empty() { 0.0 } else { w.unwrap_or(0.0) }).sum();
    ensure!(
        most * sum <= MAX_REPEATS * num_images as f64,
        "the weights repeat {num_images} images until they are {:.3e}, expected at most {MAX_REPEATS} times as many: take weights \
         nearer to the numbers of images ({:?})",
        most * sum,
        parts.iter().map(|(frames, _)| frames.len()).collect::<Vec<_>>()
    );
    let mut all = Vec::new();
    for (frames, weight) in parts {
        let wanted = weight.map_or(frames.len(), |w| (most * w).round() as usize);
        let wanted = if frames.is_empty() { 0 } else { wanted.max(frames.len()) };
        all.extend((0..wanted).map(|i| frames[i % frames.len()].clone()));
    }
    Ok(all)
}

/// Tells lines that name an image again, and takes them out where each image counts once; returns how many it took.
fn take_repeats(list: &Path, images: &mut Vec<String>, purpose: Purpose) -> usize {
    let mut lines: HashMap<&str, usize> = HashMap::with_capacity(images.len());
    let mut repeats = BTreeSet::new();
    let mut first = None;
    for (i, image) in images.iter().enumerate() {
        if let Some(before) = lines.get(image.as_str()) {
            first.get_or_insert_with(|| (i + 1, before + 1, image.clone()));
            repeats.insert(i);
        } else {
            lines.insert(image, i);
        }
    }
    let Some((line, before, image)) = first else { return 0 };
    let (list, num, training) = (list.display(), repeats.len(), purpose == Purpose::Training);
    let effect = if training { "it is seen more often" } else { "it counts once" };
    tracing::warn!(
        "{list}: image {line} repeats image {before}, {image} ({num} of {} images are named twice or more): {effect}",
        images.len()
    );
    if training {
        return 0;
    }
    let mut at = 0;
    images.retain(|_| {
        at += 1;
        !repeats.contains(&(at - 1))
    });
    num
}

/// Says how much of a split can be found at most, where a class is seen several times in an image.
fn warn_of_several(list: &Path, frames: &[Frame], purpose: Purpose) {
    let num_images = frames.iter().filter(|f| f.num_findable() < f.objects.len()).count();
    let most = frames.iter().map(Frame::most_of_a_class).max().unwrap_or(0);
    if num_images > 0 && purpose == Purpose::Training {
        tracing::info!(
            "{}: {num_images} of {} images hold several objects of a class, up to {most}",
            list.display(),
            frames.len()
        );
    }
    if num_images == 0 || !matches!(purpose, Purpose::Evaluation | Purpose::Scoring) {
        return;
    }
    let num_objects: usize = frames.iter().map(|f| f.objects.len()).sum();
    let findable: usize = frames.iter().map(Frame::num_findable).sum();
    tracing::warn!(
        "{}: {num_images} of {} images hold several objects of a class, up to {most}: with one pose a class and image (evaluation.instances 1) a network finds \
         at most {findable} of {num_objects} objects, {:.1} %",
        list.display(),
        frames.len(),
        100.0 * findable as f64 / num_objects as f64
    );
}

impl Skipped {
    fn warn(&self, list: &Path) {
        let list = list.display();
        if self.objects_without_mesh > 0 {
            let count = self.objects_without_mesh;
            tracing::warn!(%list, count, "left out objects whose obj_id has no mesh");
        }
        if self.objects_not_chosen > 0 {
            let count = self.objects_not_chosen;
            tracing::info!(%list, count, "left out objects that data.OBJ_IDS does not name");
        }
        if self.hidden_objects > 0 {
            let count = self.hidden_objects;
            tracing::info!(%list, count, "left out objects that are hidden or outside of the image");
        }
        if let Some(first) = self.bad_images.first() {
            tracing::warn!(%list, count = self.bad_images.len(), first, "left out bad images");
        }
    }
}

/// The frames of `images`, in their order, and the obj_ids without a mesh; scene folders are read in parallel.
fn read_frames(
    root: &Path,
    images: &[&str],
    class_of: &HashMap<u32, usize>,
    with_masks: bool,
) -> (Vec<Result<Frame>>, Vec<u32>) {
    let mut frames: Vec<Option<Result<Frame>>> = images.iter().map(|_| None).collect();
    let mut scenes: BTreeMap<PathBuf, Vec<(usize, u32)>> = BTreeMap::new();
    for (i, image) in images.iter().enumerate() {
        match ImagePath::parse(image) {
            Ok(path) => scenes.entry(path.scene).or_default().push((i, path.number)),
            Err(e) => frames[i] = Some(Err(e)),
        }
    }
    let read: Vec<_> = scenes
        .par_iter()
        .map(|(scene, wanted)| {
            let wanted: Vec<_> = wanted.iter().map(|&(i, number)| (images[i], number)).collect();
            read_scene(root, scene, &wanted, class_of, with_masks)
        })
        .collect();
    let mut without_mesh = Vec::new();
    for (wanted, scene) in scenes.values().zip(read) {
        without_mesh.extend(scene.without_mesh);
        for (&(i, _), frame) in wanted.iter().zip(scene.frames) {
            frames[i] = Some(frame);
        }
    }
    // Each index went either to a scene or, above, to an error.
    (frames.into_iter().flatten().collect(), without_mesh)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Annotation;
    use crate::data::testing::{IMAGE, SCENE, TinyDataset};

    fn error_of(tiny: &TinyDataset) -> String {
        format!("{:#}", tiny.open(false).unwrap_err())
    }

    #[test]
    fn a_list_is_read_with_its_annotations() {
        let tiny = TinyDataset::new();
        let dataset = tiny.open(false).unwrap();
        assert_eq!(dataset.frames.len(), 3);
        assert_eq!(dataset.models.len(), 1);
        assert_eq!(dataset.skipped, Skipped::default());
        let frame = &dataset.frames[1];
        assert_eq!(frame.image, format!("{SCENE}/rgb/000001.png"));
        assert_eq!(frame.objects.len(), 1);
        assert_eq!(frame.objects[0].class, 0);
        assert_eq!(frame.objects[0].pose.t_mm.z, 900.0);
        let mask = frame.objects[0].mask.as_ref().unwrap();
        assert!(mask.ends_with("mask_visib/000001_000000.png"));
        assert_eq!(dataset.depth_range_mm(), Some((800.0, 1000.0)));
    }

    #[test]
    fn zero_padded_keys_windows_line_ends_and_published_spellings_are_read() {
        let mut tiny = TinyDataset::new();
        for file in ["scene_camera.json", "scene_gt.json"] {
            tiny.edit(&format!("{SCENE}/{file}"), "\"2\":", "\"000002\":");
        }
        tiny.edit("training.txt", "\n", "\r\n\r\n");
        tiny.data.mesh_dir = "./problems/SwissCube/data/models/".into();
        tiny.list = "./problems/SwissCube/data/training.txt".into();
        assert_eq!(tiny.open(false).unwrap().frames.len(), 3);
    }

    #[test]
    fn missing_and_empty_lists_are_named() {
        let tiny = TinyDataset::new();
        tiny.write("training.txt", "\n  \n");
        assert!(error_of(&tiny).contains("training.txt: the list is empty"), "{}", error_of(&tiny));
        tiny.remove("training.txt");
        let error = error_of(&tiny);
        assert!(error.starts_with("reading the list") && error.contains("training.txt"), "{error}");
        assert!(tiny.open(true).is_err());
    }

    /// What is done to the dataset, parts of the error, images lost.
    type Damage<'a> = (&'a dyn Fn(&TinyDataset), &'a [&'a str], usize);

    #[test]
    fn bad_annotations_are_named_and_skipped_on_demand() {
        let gt = format!("{SCENE}/scene_gt.json");
        let camera = format!("{SCENE}/scene_camera.json");
        let cases: [Damage; 11] = [
            (&|t| t.edit(&gt, "\"1\":", "\"7\":"), &["scene_gt.json: image 1 is not in it"], 1),
            (
                &|t| t.edit(&camera, "\"1\":", "\"7\":"),
                &["scene_camera.json: image 1 is not in it"],
                1,
            ),
            (
                &|t| t.edit(&gt, "900.0", "NaN"),
                &["000001.png", "scene_gt.json: image 1: object 0", "not finite"],
                1,
            ),
            (&|t| t.edit(&gt, "900.0", "-900.0"), &["image 1: object 0: depth -900 mm"], 1),
            (
                &|t| t.edit(&gt, "900.0", "1e308"),
                &["scene_gt.json: image 1: object 0: t has 1e308 mm"],
                1,
            ),
            (&|t| t.edit(&gt, "900.0", "900.0, 1.0"), &["object 0: t has 4 numbers"], 1),
            (&|t| t.edit(&gt, "\"2\":", "\"01\":"), &["scene_gt.json: image 1 is in it twice"], 3),
            (&|t| t.edit(&gt, "\"2\":", "\"two\":"), &["scene_gt.json: key \"two\""], 3),
            (&|t| t.truncate(&gt), &["scene_gt.json: line 1"], 3),
            (&|t| t.remove(&camera), &["reading", "scene_camera.json"], 3),
            (
                &|t| t.edit("training.txt", &format!("{SCENE}/rgb/000001.png"), "rgb.png"),
                &["training.txt: image rgb.png: expected a path like"],
                1,
            ),
        ];
        for (i, (damage, expected, num_bad)) in cases.iter().enumerate() {
            let tiny = TinyDataset::new();
            damage(&tiny);
            let error = error_of(&tiny);
            assert!(expected.iter().all(|e| error.contains(e)), "case {i}: {error}");
            match tiny.open(true) {
                Ok(dataset) => {
                    assert_eq!(dataset.skipped.bad_images.len(), *num_bad, "case {i}");
                    assert_eq!(dataset.frames.len(), 3 - num_bad, "case {i}");
                }
                Err(e) => {
                    assert_eq!(*num_bad, 3, "case {i}");
                    assert!(format!("{e:#}").contains("each of the 3 images is bad"), "{e:#}");
                }
            }
        }
    }

    #[test]
    fn masks_must_be_one_an_object() {
        let tiny = TinyDataset::new();
        tiny.remove(&format!("{SCENE}/mask_visib/000001_000000.png"));
        let error = error_of(&tiny);
        assert!(error.contains("000001_000000.png is missing"), "{error}");
        let tiny = TinyDataset::new();
        tiny.write(&format!("{SCENE}/mask_visib/000001_000001.png"), "");
        let error = error_of(&tiny);
        assert!(error.contains("mask_visib: 2 masks of image 1, expected 1"), "{error}");
        assert_eq!(tiny.open(true).unwrap().frames.len(), 2);
    }

    #[test]
    fn objects_without_a_mesh_are_counted_but_not_all_may_be() {
        let tiny = TinyDataset::new();
        let gt = format!("{SCENE}/scene_gt.json");
        tiny.edit_first(&gt, "\"obj_id\":1", "\"obj_id\":5");
        let dataset = tiny.open(false).unwrap();
        assert_eq!(dataset.skipped.objects_without_mesh, 1);
        assert_eq!(dataset.frames.iter().filter(|f| f.objects.is_empty()).count(), 1);
        tiny.edit(&gt, "\"obj_id\":1", "\"obj_id\":5");
        let error = error_of(&tiny);
        assert!(error.contains("obj_ids are {5}, the meshes' [1]"), "{error}");
        assert!(tiny.open(true).is_err());
    }

    #[test]
    fn evaluation_needs_no_masks() {
        let tiny = TinyDataset::new();
        std::fs::remove_dir_all(tiny.root().join(SCENE).join("mask_visib")).unwrap();
        let error = error_of(&tiny);
        assert!(error.contains("mask_visib: training needs") && error.contains("calc_gt_masks"));
        let dataset = tiny.open_for(Purpose::Evaluation, false).unwrap();
        assert!(dataset.frames.iter().flat_map(|f| &f.objects).all(|o| o.mask.is_none()));
        assert_eq!(dataset.frames.len(), 3);
    }

    #[test]
    fn an_image_counts_once_in_an_evaluation_and_as_often_as_named_in_training() {
        let tiny = TinyDataset::new();
        let list = std::fs::read_to_string(tiny.root().join("training.txt")).unwrap();
        tiny.write("training.txt", &format!("\u{feff}{list}{list}"));
        assert_eq!(tiny.open(false).unwrap().frames.len(), 6);
        let dataset = tiny.open_for(Purpose::Evaluation, false).unwrap();
        assert_eq!((dataset.frames.len(), dataset.skipped.repeated_images), (3, 3));
        assert_eq!(dataset.frames[2].image, format!("{SCENE}/rgb/000002.png"));
    }

    #[test]
    fn a_split_without_an_object_is_refused_where_some_are_needed() {
        let tiny = TinyDataset::new();
        let gt = r#"{"0": [], "1": [], "2": []}"#;
        tiny.write(&format!("{SCENE}/scene_gt.json"), gt);
        std::fs::remove_dir_all(tiny.root().join(SCENE).join("mask_visib")).unwrap();
        for (purpose, verb) in [(Purpose::Training, "learnt"), (Purpose::Evaluation, "evaluated")] {
            let error = format!("{:#}", tiny.open_for(purpose, true).unwrap_err());
            assert!(
                error.contains(&format!("no object in any of the 3 images: nothing can be {verb}"))
            );
        }
        assert_eq!(tiny.open_for(Purpose::Images, false).unwrap().frames.len(), 3);
    }

    #[test]
    fn translations_in_metres_are_refused_and_a_single_close_object_is_not() {
        let gt = format!("{SCENE}/scene_gt.json");
        let tiny = TinyDataset::new();
        tiny.edit(&gt, "10.0,-20.0,900.0", "0.01,-0.02,0.9");
        assert!(tiny.open(false).is_ok());
        tiny.edit(&gt, "10.0,-20.0,1000.0", "0.01,-0.02,1.0");
        let error = error_of(&tiny);
        for part in ["2 of 3 objects", "such as that in", "0.900 mm", "173.2 mm", "in metres?"] {
            assert!(error.contains(part), "{part}: {error}");
        }
        // The other way round: everything but the translations in metres.
        let mut tiny = TinyDataset::new();
        tiny.edit("models/obj_000001.ply", "50", "0.05");
        let boxes = std::fs::read_to_string(tiny.root().join("swisscube_bbox.json")).unwrap();
        tiny.write("swisscube_bbox.json", &boxes.replace("50.0", "0.05"));
        tiny.data.mesh_diameters_mm = vec![0.1732];
        let error = error_of(&tiny);
        assert!(error.contains("3 of 3 objects are seen smaller than a pixel"), "{error}");
    }

    #[test]
    fn parts_with_weights_are_repeated_until_their_numbers_are_as_these() {
        let frames = TinyDataset::new().open(false).unwrap().frames;
        let names = |parts: Vec<(Vec<Frame>, Option<f64>)>| -> Vec<usize> {
            let all = joined(parts).unwrap();
            let num = |f: &Frame| all.iter().filter(|other| other.image == f.image).count();
            frames.iter().map(num).collect()
        };
        let (one, two) = (frames[..1].to_vec(), frames[1..].to_vec());
        assert_eq!(names(vec![(one.clone(), None), (two.clone(), None)]), [1, 1, 1]);
        // 2 images are a tenth: the other one comes 18 times.
        assert_eq!(names(vec![(one.clone(), Some(0.9)), (two.clone(), Some(0.1))]), [18, 1, 1]);
        assert_eq!(names(vec![(one.clone(), Some(1.0)), (two.clone(), Some(3.0))]), [1, 2, 1]);
        assert_eq!(names(vec![(one.clone(), Some(1.0)), (Vec::new(), Some(1.0))]), [1, 0, 0]);
        assert_eq!(names(vec![(one.clone(), Some(1.0)), (Vec::new(), Some(1e9))]), [1, 0, 0]);
        let error = joined(vec![(one, Some(1.0)), (two, Some(1e-9))]).unwrap_err().to_string();
        assert!(error.contains("repeat 3 images until they are 2.000e9"), "{error}");
    }

    #[test]
    fn one_object_a_class_and_image_can_be_found() {
        let tiny = TinyDataset::new();
        let mut frame = tiny.open(false).unwrap().frames[0].clone();
        assert_eq!(frame.num_findable(), 1);
        for class in [1, 0, 1] {
            let object = Annotation { class, ..frame.objects[0].clone() };
            frame.objects.push(object);
        }
        assert_eq!((frame.objects.len(), frame.num_findable()), (4, 2));
    }

    #[test]
    fn an_image_file_is_not_looked_at_yet() {
        let tiny = TinyDataset::new();
        tiny.remove(IMAGE);
        assert_eq!(tiny.open(false).unwrap().frames.len(), 3);
    }
}
