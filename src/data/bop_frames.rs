//! The frames and the objects of a BOP folder: splits are folders of scenes, what is not told elsewhere comes from
//! `models_info.json`.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::bop::ObjectVisibility;
use super::bop_folder::BopFolder;
use super::bop_scene::{BopFrame, BopScene};
use super::consistency::check_model;
use super::frame::{Annotation, Frame};
use super::models::read_boxes;
use super::object::{ObjectBox, ObjectModel};
use super::purpose::Purpose;
use super::split_list::SplitList;
use super::{DataConfig, ModelInfos};
use crate::geom::box_corners;
use crate::io;

/// What is read of a BOP folder.
pub(super) struct BopFrames {
    /// The frames of each part of the list, with its weight.
    pub parts: Vec<(Vec<Result<Frame>>, Option<f64>)>,
    /// Objects that are hidden, outside of their image or behind the camera.
    pub num_hidden: usize,
    /// Numbers of objects that no class is.
    pub without_class: Vec<u32>,
}

/// Reads the frames of splits. Class `c` is the `c`-th of `models`. Objects that cannot be seen (nothing is visible of
/// them, or they are behind the camera) are left out and counted.
///
/// # Errors
/// If a split is not there, or a file of a scene cannot be read.
pub(super) fn read_frames(
    folder: &BopFolder,
    list: &SplitList,
    models: &[ObjectModel],
    data: &DataConfig,
    purpose: Purpose,
) -> Result<BopFrames> {
    let mut found = BopFrames { parts: Vec::new(), num_hidden: 0, without_class: Vec::new() };
    for part in &list.parts {
        let split = part.name.as_str();
        let mut scenes = folder.scenes(split)?;
        part.keep_own(&mut scenes);
        let asked = asked_images(folder, list, split, purpose)?;
        if purpose != Purpose::Images && !scenes.iter().all(BopScene::tells_visibility) {
            tracing::warn!(
                "{split}: not every scene has scene_gt_info.json: what is visible of objects is counted in their masks, and \
                 without masks all of it counts as visible"
            );
        }
        if purpose == Purpose::Training && scenes.iter().any(takes_whole_masks) {
            tracing::warn!(
                "{split}: scenes have masks of whole objects only: they are taken for the visible parts"
            );
        }
        let reader = Reader { root: folder.root(), models, data, purpose };
        let read: Vec<SceneFrames> =
            scenes.par_iter().map(|scene| reader.scene(scene, asked.as_ref())).collect();
        let mut frames = Vec::new();
        for scene in read {
            frames.extend(scene.frames);
            found.without_class.extend(scene.without_class);
            found.num_hidden += scene.num_hidden;
        }
        found.parts.push((frames, part.weight));
    }
    Ok(found)
}

/// Scene and image of what is evaluated of a split that has targets; none where all images are. Targets are no matter of
/// scores of several splits together.
fn asked_images(
    folder: &BopFolder,
    list: &SplitList,
    split: &str,
    purpose: Purpose,
) -> Result<Option<HashSet<(u32, u32)>>> {
    match purpose {
        Purpose::Evaluation => Ok(folder.targets_of(split)?.images()),
        Purpose::Scoring if list.parts.len() == 1 => Ok(folder.targets_of(split)?.images()),
        _ => Ok(None),
    }
}

struct SceneFrames {
    frames: Vec<Result<Frame>>,
    without_class: Vec<u32>,
    num_hidden: usize,
}

struct Reader<'a> {
    root: &'a Path,
    models: &'a [ObjectModel],
    data: &'a DataConfig,
    purpose: Purpose,
}

impl Reader<'_> {
    fn scene(&self, scene: &BopScene, asked: Option<&HashSet<(u32, u32)>>) -> SceneFrames {
        let mut read = SceneFrames { frames: Vec::new(), without_class: Vec::new(), num_hidden: 0 };
        for &number in scene.images.keys() {
            if asked.is_none_or(|asked| asked.contains(&(scene.id, number))) {
                let frame = self.frame(scene, number, &mut read);
                read.frames.push(frame);
            } else if self.purpose == Purpose::Scoring {
                // Poses in it are left out later; whether its annotation is good does not matter.
                read.frames.extend(self.without_objects(scene, number).map(Ok));
            }
        }
        read
    }

    /// An image with a camera, without what is seen in it.
    fn without_objects(&self, scene: &BopScene, number: u32) -> Option<Frame> {
        let (image, frame) = (self.image(scene, number).ok()?, scene.frame(number).ok()?);
        Some(Frame { image, camera: frame.camera, objects: Vec::new() })
    }

    /// The path of an image, relative to the root.
    fn image(&self, scene: &BopScene, number: u32) -> Result<String> {
        let at = || format!("{}: image {number}", scene.folder.display());
        let path = match scene.image_file(number) {
            Some(path) => path.to_owned(),
            // No pixel is looked at.
            None if self.purpose == Purpose::Scoring => {
                scene.folder.join(format!("rgb/{number:06}.png"))
            }
            None => bail!("{}: neither rgb nor gray has its file", at()),
        };
        let path = path.strip_prefix(self.root).unwrap_or(&path);
        let image = path.to_str().with_context(|| format!("{}: not a name in UTF-8", at()))?;
        Ok(image.to_owned())
    }

    fn frame(&self, scene: &BopScene, number: u32, read: &mut SceneFrames) -> Result<Frame> {
        let image = self.image(scene, number)?;
        let frame = scene.frame(number)?;
        let objects = self.objects(scene, number, frame, read)?;
        Ok(Frame { image, camera: frame.camera, objects })
    }

    /// The objects that are classes and can be seen.
    fn objects(
        &self,
        scene: &BopScene,
        number: u32,
        frame: &BopFrame,
        read: &mut SceneFrames,
    ) -> Result<Vec<Annotation>> {
        let at = || format!("{}: image {number}", scene.folder.display());
        let listed = match (&frame.objects, self.purpose) {
            (Some(listed), _) => listed.as_slice(),
            (None, Purpose::Images) => &[],
            (None, _) => {
                bail!("{}: the scene has no scene_gt.json: its true poses are not known", at())
            }
        };
        let mut objects = Vec::new();
        for (i, object) in listed.iter().enumerate() {
            let Some(class) = self.models.iter().position(|m| m.obj_id == object.obj_id) else {
                read.without_class.push(object.obj_id);
                continue;
            };
            let pose = object.pose()?;
            let visibility = match self.purpose {
                Purpose::Images => object.told,
                _ => scene.visibility(number, i)?,
            };
            let visible = visibility.map(|v| v.px_count_visib > 0);
            let depth_mm = pose.t_mm.z;
            ensure!(
                depth_mm > 0.0 || visible != Some(true),
                "{}: scene_gt.json: object {i}: depth {depth_mm} mm, but it has visible pixels",
                at()
            );
            if visible == Some(false) || depth_mm <= 0.0 || self.is_too_hidden(visibility) {
                read.num_hidden += 1;
                continue;
            }
            let mask = match self.purpose {
                Purpose::Training => Some(mask_file(scene, number, i)?),
                _ => None,
            };
            objects.push(Annotation { class, pose, mask });
        }
        Ok(objects)
    }

    /// Training takes what is visible enough.
    fn is_too_hidden(&self, visibility: Option<ObjectVisibility>) -> bool {
        let least = self.data.min_visible_fraction;
        self.purpose == Purpose::Training && visibility.is_some_and(|v| v.visib_fract < least)
    }
}

/// Whether masks of whole objects stand for their visible parts.
fn takes_whole_masks(scene: &BopScene) -> bool {
    !scene.folder.join("mask_visib").is_dir() && scene.folder.join("mask").is_dir()
}

/// The mask of an object's visible part; that of the whole object in a scene without visible ones.
fn mask_file(scene: &BopScene, number: u32, object: usize) -> Result<PathBuf> {
    let name = format!("{number:06}_{object:06}.png");
    let dirs = ["mask_visib", "mask"].map(|dir| scene.folder.join(dir));
    let dir = dirs.iter().find(|dir| dir.is_dir()).with_context(|| {
        format!(
            "{} has neither mask_visib nor mask: training needs the visible part of every object as a mask (bop_toolkit's \
             calc_gt_masks.py makes them)",
            scene.folder.display()
        )
    })?;
    let path = dir.join(name);
    ensure!(
        path.is_file(),
        "{} is missing: scene_gt.json lists object {object} of image {number}",
        path.display()
    );
    Ok(path)
}

/// Reads the objects of a BOP folder: meshes of `models` (for errors those of `models_eval`), diameters from
/// `models_info.json` unless the config has them, boxes from there too unless the config's file of boxes is there.
///
/// # Errors
/// If a file cannot be read, `data.OBJ_IDS` names an object that is not there, an object has no diameter, `data.N_CLASS` or
/// `data.MESH_DIAMETERS` is of another number of objects, or two descriptions of an object are in different units.
pub(super) fn read_models(
    folder: &BopFolder,
    data: &DataConfig,
    purpose: Purpose,
) -> Result<Vec<ObjectModel>> {
    let errors = matches!(purpose, Purpose::Evaluation | Purpose::Scoring);
    let own = folder.meshes().context("no folder of meshes")?;
    let meshes = if errors { folder.evaluation_meshes() } else { None }.unwrap_or(own.clone());
    let (infos, box_infos) = (folder.infos(&meshes)?, folder.infos(&own)?);
    let obj_ids = chosen(&infos, data)?;
    let at = infos.path().display();
    ensure!(
        obj_ids.len() == data.num_classes(),
        "{at}: {} objects {obj_ids:?}, but data.N_CLASS is {} (expected {}: the objects and the background); data.OBJ_IDS \
         chooses some of them",
        obj_ids.len(),
        data.num_classes_with_background,
        obj_ids.len() + 1
    );
    let configured = &data.mesh_diameters_mm;
    ensure!(
        configured.is_empty() || configured.len() == obj_ids.len(),
        "{at}: {} objects, but data.MESH_DIAMETERS has {} numbers; without any they are taken from {at}",
        obj_ids.len(),
        configured.len()
    );
    let box_file = data.boxes(folder.root());
    let boxes = match box_file.is_file() {
        true => Some(read_boxes(&box_file, obj_ids.len())?),
        false => None,
    };
    let mut models = Vec::with_capacity(obj_ids.len());
    for (class, &obj_id) in obj_ids.iter().enumerate() {
        let name = format!("obj_{obj_id:06}");
        let path = meshes.join(format!("{name}.ply"));
        let mesh = io::mesh::read_ply(&path)?;
        let told = infos.of(obj_id).and_then(|info| info.diameter);
        let diameter_mm = configured.get(class).copied().or(told).with_context(|| {
            format!("{at}: object {obj_id} has no diameter, and data.MESH_DIAMETERS has none")
        })?;
        let told = box_infos.of(obj_id).and_then(|info| info.corners());
        let (corners, file) = match (&boxes, told) {
            (Some(boxes), _) => (boxes[class], box_file.as_path()),
            (None, Some(corners)) => (corners, box_infos.path()),
            (None, None) => (box_corners(&mesh.vertices), path.as_path()),
        };
        let symmetries = box_infos.symmetries(obj_id)?;
        let model = ObjectModel { obj_id, name, mesh, corners, diameter_mm, symmetries };
        check_model(&model, (&path, file), class, &infos)?;
        models.push(model);
    }
    Ok(models)
}

/// What PnP needs to know of the classes of a BOP folder.
///
/// # Errors
/// As for its objects in [`super::Dataset::open`].
pub fn folder_boxes(folder: &BopFolder, data: &DataConfig) -> Result<Vec<ObjectBox>> {
    Ok(read_models(folder, data, Purpose::Images)?.iter().map(ObjectBox::from).collect())
}

/// The objects that are classes, by rising number: `data.OBJ_IDS`, or all.
fn chosen(infos: &ModelInfos, data: &DataConfig) -> Result<Vec<u32>> {
    let all = infos.obj_ids();
    if data.obj_ids.is_empty() {
        return Ok(all);
    }
    let mut ids = data.obj_ids.clone();
    ids.sort_unstable();
    if let Some(id) = ids.iter().find(|id| !all.contains(id)) {
        bail!("data.OBJ_IDS has {id}, but {} lists {all:?}", infos.path().display());
    }
    Ok(ids)
}
