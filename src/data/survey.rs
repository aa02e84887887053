//! What a split of a BOP folder shows, as far as a config follows from it: cameras, image sizes, instances.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::bop_folder::BopFolder;
use super::bop_scene::BopScene;
use super::models_info::ModelInfos;
use super::warp::Size;
use crate::geom::{Camera, Vec3};
use crate::io::picture::size_and_orientation;

/// A split of a BOP folder.
#[derive(Debug, Clone, Default)]
pub struct SplitSurvey {
    /// Its name.
    pub name: String,
    /// Images that something is known about.
    pub num_images: usize,
    /// Whether every scene tells true poses.
    pub has_poses: bool,
    /// Whether every scene has masks.
    pub has_masks: bool,
    /// Whether every scene tells what is visible of its objects.
    pub has_visibility: bool,
    /// Of each image: its camera, and the size of its scene's first image, px.
    pub views: Vec<(Camera, Size)>,
    /// Instances that can be seen.
    pub instances: Vec<SeenInstance>,
    /// Most visible instances of an object in an image, by its number.
    pub most_of_object: BTreeMap<u32, usize>,
    /// Objects that are annotated and that `models_info.json` does not tell, by their number: a text that names both files.
    pub not_told: BTreeMap<u32, String>,
}

/// An instance that can be seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeenInstance {
    /// Number of its object.
    pub obj_id: u32,
    /// z of the middle of its box, mm.
    pub depth_mm: f64,
    /// Diameter times focal length over depth, in widths of the image.
    pub size_in_widths: f64,
}

impl SplitSurvey {
    /// Looks at a split; of pictures only the size of the first one of a scene.
    ///
    /// # Errors
    /// If there is no such split, a file of a scene cannot be read, or a scene has no picture.
    pub fn read(folder: &BopFolder, name: &str, infos: &ModelInfos) -> Result<Self> {
        let scenes = folder.scenes(name)?;
        let read: Vec<Self> =
            scenes.par_iter().map(|scene| of_scene(scene, infos)).collect::<Result<_>>()?;
        let all = |is: fn(&Self) -> bool| read.iter().all(is);
        let mut split = Self {
            name: name.to_owned(),
            has_poses: all(|scene| scene.has_poses),
            has_masks: all(|scene| scene.has_masks),
            has_visibility: all(|scene| scene.has_visibility),
            ..Self::default()
        };
        for scene in read {
            split.num_images += scene.num_images;
            split.views.extend(scene.views);
            split.instances.extend(scene.instances);
            for (obj_id, most) in scene.most_of_object {
                let own = split.most_of_object.entry(obj_id).or_default();
                *own = most.max(*own);
            }
            for (obj_id, why) in scene.not_told {
                split.not_told.entry(obj_id).or_insert(why);
            }
        }
        Ok(split)
    }

    /// The numbers of the objects that can be seen.
    pub fn obj_ids(&self) -> BTreeSet<u32> {
        self.instances.iter().map(|seen| seen.obj_id).collect()
    }
}

fn of_scene(scene: &BopScene, infos: &ModelInfos) -> Result<SplitSurvey> {
    let picture = scene.images.keys().find_map(|&number| scene.image_file(number));
    let picture =
        picture.with_context(|| format!("{}: it has no picture", scene.folder.display()))?;
    let ((width, height), _) = size_and_orientation(picture)?;
    let size = (width as usize, height as usize);
    let mut split = SplitSurvey {
        has_masks: ["mask_visib", "mask"].iter().any(|dir| scene.folder.join(dir).is_dir()),
        has_visibility: scene.tells_visibility(),
        has_poses: true,
        ..SplitSurvey::default()
    };
    for (number, image) in &scene.images {
        let Ok(frame) = image else { continue };
        split.num_images += 1;
        split.views.push((frame.camera, size));
        split.has_poses &= frame.objects.is_some();
        let mut of_object: HashMap<u32, usize> = HashMap::new();
        for object in frame.objects.iter().flatten() {
            let Some((diameter_mm, centre)) = told(infos, object.obj_id) else {
                let why = || not_told(scene, *number, object.obj_id, infos);
                split.not_told.entry(object.obj_id).or_insert_with(why);
                continue;
            };
            let Ok(pose) = object.pose() else { continue };
            let depth_mm = pose.apply(&centre).z;
            if object.told.is_some_and(|told| told.px_count_visib == 0) || depth_mm <= 0.0 {
                continue;
            }
            let size_in_widths =
                diameter_mm * frame.camera.focal_px().0 / depth_mm / f64::from(width);
            split.instances.push(SeenInstance { obj_id: object.obj_id, depth_mm, size_in_widths });
            *of_object.entry(object.obj_id).or_default() += 1;
        }
        for (obj_id, num) in of_object {
            let most = split.most_of_object.entry(obj_id).or_default();
            *most = num.max(*most);
        }
    }
    Ok(split)
}

/// Diameter and middle of the box of an object, mm; none where `models_info.json` lacks the object or its diameter.
fn told(infos: &ModelInfos, obj_id: u32) -> Option<(f64, Vec3)> {
    let info = infos.of(obj_id)?;
    Some((info.diameter?, info.middle()))
}

fn not_told(scene: &BopScene, number: u32, obj_id: u32, infos: &ModelInfos) -> String {
    let gt = scene.folder.join("scene_gt.json");
    let lacks = match infos.of(obj_id) {
        None => "does not list it",
        Some(_) => "tells no diameter of it",
    };
    format!(
        "{}: image {number} shows object {obj_id}, but {} {lacks}",
        gt.display(),
        infos.path().display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geom::Vec2;
    use std::path::Path;

    fn toy(infos: &str) -> SplitSurvey {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/14_bop_multi/toy");
        let folder = BopFolder::find(&root).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("models_info.json");
        std::fs::write(&path, infos).unwrap();
        SplitSurvey::read(&folder, "train_pbr", &ModelInfos::read(path).unwrap()).unwrap()
    }

    /// Numbers of the folder's files, read with the eye: 3 images of 96 x 72 px with fx 82; of the 5 objects of image 0 two
    /// have no visible pixel, one of them behind the camera; image 1 shows object 11, image 2 nothing.
    #[test]
    fn a_split_tells_its_cameras_and_what_can_be_seen() {
        let split = toy(
            r#"{"2": {"diameter": 117.0}, "5": {"diameter": 106.0}, "11": {"diameter": 89.0}}"#,
        );
        assert_eq!((split.num_images, split.views.len()), (3, 3));
        assert!(split.has_poses && split.has_masks && split.has_visibility);
        let (camera, size) = split.views[0];
        assert_eq!((camera.focal_px(), camera.center_px()), ((82.0, 82.0), Vec2::new(47.5, 35.5)));
        assert_eq!(size, (96, 72));
        let seen: Vec<(u32, f64)> =
            split.instances.iter().map(|seen| (seen.obj_id, seen.depth_mm.round())).collect();
        assert_eq!(seen, [(2, 462.0), (5, 632.0), (5, 786.0), (11, 632.0)]);
        let size_px = split.instances[0].size_in_widths * 96.0;
        assert!((size_px - 117.0 * 82.0 / 462.2007).abs() < 1e-4, "{size_px}");
        assert_eq!(split.most_of_object, BTreeMap::from([(2, 1), (5, 2), (11, 1)]));
        assert!(split.not_told.is_empty());
    }

    #[test]
    fn an_objects_depth_is_that_of_the_middle_of_its_box() {
        // The middle lies 100 mm from the origin, along an axis that the pose turns.
        let split = toy(
            r#"{"2": {"diameter": 117.0, "min_x": 90, "min_y": -10, "min_z": -10, "size_x": 20, "size_y": 20, "size_z": 20},
                "5": {"diameter": 106.0}, "11": {"diameter": 89.0}}"#,
        );
        let shift_mm = split.instances[0].depth_mm - 462.2007141113281;
        assert!(shift_mm.abs() > 1.0 && shift_mm.abs() <= 100.0, "{shift_mm}");
        assert!((split.instances[1].depth_mm - 632.0126953125).abs() < 1e-9);
    }

    #[test]
    fn objects_that_are_not_told_are_named_with_both_files() {
        let split = toy(r#"{"5": {"diameter": 106.0}, "11": {}}"#);
        assert_eq!(split.not_told.keys().copied().collect::<Vec<_>>(), [2, 11]);
        let parts = [
            "000000/scene_gt.json: image 0 shows object 2, but",
            "models_info.json does not list it",
        ];
        assert!(parts.iter().all(|part| split.not_told[&2].contains(part)), "{:?}", split.not_told);
        assert!(split.not_told[&11].ends_with("models_info.json tells no diameter of it"));
        assert_eq!(split.obj_ids(), BTreeSet::from([5]));
    }
}
