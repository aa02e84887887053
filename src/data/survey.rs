//! What a split of a BOP folder shows, as far as a config follows from it: cameras, image sizes, instances.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::bop_folder::BopFolder;
use super::bop_scene::BopScene;
use super::models_info::ModelInfos;
use super::warp::Size;
use crate::geom::Camera;
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
}

/// An instance that can be seen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SeenInstance {
    /// Number of its object.
    pub obj_id: u32,
    /// z of its centre, mm.
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
    for frame in scene.images.values().flatten() {
        split.num_images += 1;
        split.views.push((frame.camera, size));
        split.has_poses &= frame.objects.is_some();
        let mut of_object: HashMap<u32, usize> = HashMap::new();
        for object in frame.objects.iter().flatten() {
            let Ok(pose) = object.pose() else { continue };
            let is_hidden = object.told.is_some_and(|told| told.px_count_visib == 0);
            let diameter_mm = infos.of(object.obj_id).and_then(|info| info.diameter);
            let (Some(diameter_mm), false) = (diameter_mm, is_hidden || pose.t_mm.z <= 0.0) else {
                continue;
            };
            let depth_mm = pose.t_mm.z;
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn a_split_tells_its_cameras_and_what_can_be_seen() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/14_bop_multi/toy");
        let folder = BopFolder::find(&root).unwrap();
        let infos = folder.infos(&folder.meshes().unwrap()).unwrap();
        let split = SplitSurvey::read(&folder, "train_pbr", &infos).unwrap();
        assert_eq!(split.num_images, split.views.len());
        assert!(split.has_poses && split.has_masks);
        assert!(split.instances.iter().all(|seen| seen.depth_mm > 0.0));
        assert!(split.obj_ids().is_subset(&infos.obj_ids().into_iter().collect()));
        let (camera, (width, _)) = split.views[0];
        let first = split.instances[0];
        let diameter = infos.of(first.obj_id).unwrap().diameter.unwrap();
        let size_px = diameter * camera.focal_px().0 / first.depth_mm;
        assert!((first.size_in_widths * width as f64 - size_px).abs() < 1e-9);
    }
}
