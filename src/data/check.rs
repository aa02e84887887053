//! What is in a BOP folder, and what is wrong with it: counts a split, a scene and an object, and faults with their files.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use rayon::prelude::*;
use serde::Serialize;

use super::bop_folder::BopFolder;
use super::bop_scene::{BopFrame, BopObject, BopScene};
use super::models_info::{ModelInfo, ModelInfos};
use crate::geom::{Vec3, box_corners};
use crate::io::mesh::read_ply;

/// Faults that are told one by one; the others are counted.
const MAX_FAULTS: usize = 200;
/// Largest difference of lengths that should be equal, relative.
const TOLERANCE: f64 = 0.01;
/// Below this side a mesh is hardly in millimetres.
const SMALLEST_MM: f64 = 1.0;

/// What is in a BOP folder.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FolderCheck {
    /// The objects of `models_info.json`.
    pub objects: Vec<ObjectCheck>,
    /// The folders of scenes.
    pub splits: Vec<SplitCheck>,
    /// What is wrong, each with its file; the first 200.
    pub faults: Vec<String>,
    /// All that is wrong.
    pub num_faults: usize,
}

/// An object of the folder.
#[derive(Debug, Clone, Serialize)]
pub struct ObjectCheck {
    /// Its number.
    pub obj_id: u32,
    /// Diameter in `models_info.json`, mm.
    pub diameter_mm: Option<f64>,
    /// Sides of its mesh's box, mm; none where the mesh cannot be read.
    pub size_mm: Option<[f64; 3]>,
    /// Vertices of the mesh, and of the evaluation mesh.
    pub num_vertices: [usize; 2],
    /// Symmetries that are listed: discrete and continuous.
    pub num_symmetries: [usize; 2],
}

/// A folder of scenes.
#[derive(Debug, Clone, Default, Serialize)]
pub struct SplitCheck {
    /// Its name.
    pub name: String,
    /// Its scenes.
    pub scenes: Vec<SceneCheck>,
    /// Images that are no picture's: without a file.
    pub num_without_file: usize,
    /// Most instances of one object in an image.
    pub most_of_an_object: usize,
    /// Targets of `test_targets_bop19.json`.
    pub num_targets: Option<usize>,
    /// Whether every scene tells poses.
    pub has_poses: bool,
    /// Whether every scene has masks.
    pub has_masks: bool,
    /// Instances by object.
    pub objects: Vec<SplitObject>,
}

/// A scene of a split.
#[derive(Debug, Clone, Serialize)]
pub struct SceneCheck {
    /// Its number.
    pub id: u32,
    /// Its images, also those that something is wrong with.
    pub num_images: usize,
    /// Instances in the others.
    pub num_instances: usize,
    /// Of these, instances that cannot be seen.
    pub num_hidden: usize,
}

/// The instances of an object in a split.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SplitObject {
    /// Its number.
    pub obj_id: u32,
    /// Whether `models_info.json` lists it with a diameter.
    pub is_listed: bool,
    /// Instances that can be seen.
    pub num_visible: usize,
    /// Least and greatest depth of the middle of its box, mm.
    pub depth_mm: [f64; 2],
    /// Least and greatest size in the image: diameter times focal length over depth, px.
    pub size_px: [f64; 2],
    /// A tenth of the instances are less visible than the first, half than the second; none where that is not told.
    pub visible: Option<[f64; 2]>,
}

impl FolderCheck {
    /// Looks at a folder. Pictures and masks are not decoded.
    ///
    /// # Errors
    /// If `models_info.json` or a file of targets cannot be read.
    pub fn new(folder: &BopFolder) -> Result<Self> {
        let own = folder.meshes().context("no folder of meshes")?;
        let eval = folder.evaluation_meshes().unwrap_or_else(|| own.clone());
        let infos = folder.infos(&own)?;
        let mut faults = Vec::new();
        if let Some(name) = folder.evaluation_meshes_without_infos() {
            faults.push(format!(
                "{}: there is no models_info.json: its meshes are not used",
                folder.root().join(name).display()
            ));
        }
        let objects = (infos.obj_ids().into_iter())
            .map(|obj_id| check_object(&own, &eval, &infos, obj_id, &mut faults))
            .collect();
        let mut splits = Vec::new();
        for name in folder.splits() {
            splits.push(check_split(folder, name, &infos, &mut faults)?);
        }
        let num_faults = faults.len();
        faults.truncate(MAX_FAULTS);
        Ok(Self { objects, splits, faults, num_faults })
    }

    /// The most instances of one object in an image of any split.
    pub fn most_of_an_object(&self) -> usize {
        self.splits.iter().map(|split| split.most_of_an_object).max().unwrap_or(0)
    }
}

fn check_object(
    own: &Path,
    eval: &Path,
    infos: &ModelInfos,
    obj_id: u32,
    faults: &mut Vec<String>,
) -> ObjectCheck {
    let at = format!("{}: object {obj_id}", infos.path().display());
    let info = infos.of(obj_id).cloned().unwrap_or_default();
    let symmetries = infos.symmetries(obj_id).unwrap_or_else(|e| {
        faults.push(format!("{e:#}"));
        Default::default()
    });
    let mut check = ObjectCheck {
        obj_id,
        diameter_mm: info.diameter,
        size_mm: None,
        num_vertices: [0; 2],
        num_symmetries: [symmetries.discrete.len(), symmetries.continuous.len()],
    };
    let mut sizes: [Option<Vec3>; 2] = [None; 2];
    for (i, dir) in [own, eval].into_iter().enumerate() {
        let path = dir.join(format!("obj_{obj_id:06}.ply"));
        match read_ply(&path) {
            Ok(mesh) => {
                let corners = box_corners(&mesh.vertices);
                sizes[i] = Some(corners[7] - corners[0]);
                check.num_vertices[i] = mesh.vertices.len();
            }
            Err(e) => faults.push(format!("{e:#}")),
        }
    }
    let Some(size) = sizes[0] else { return check };
    check.size_mm = Some(size.into());
    if size.amax() < SMALLEST_MM {
        faults.push(format!(
            "{at}: its mesh is {:.5} mm long: is it in metres? expected mm",
            size.amax()
        ));
    }
    if let Some(told) = info.size().filter(|told| (told - size).amax() > TOLERANCE * size.norm()) {
        faults.push(format!(
            "{at}: its size is {:?} mm, that of its mesh {:?} mm",
            told.as_slice(),
            size.as_slice()
        ));
    }
    if let Some(other) = sizes[1].filter(|other| (other - size).amax() > TOLERANCE * size.norm()) {
        faults.push(format!(
            "{at}: its mesh is {:?} mm, its evaluation mesh {:?} mm",
            size.as_slice(),
            other.as_slice()
        ));
    }
    let range = size.amax() * (1.0 - TOLERANCE)..=size.norm() * (1.0 + TOLERANCE);
    match info.diameter {
        None => faults.push(format!("{at}: it has no diameter")),
        Some(diameter) if !range.contains(&diameter) => faults.push(format!(
            "{at}: its diameter is {diameter} mm, expected {:.2} mm (the longest side of its mesh) to {:.2} mm (the diagonal)",
            size.amax(),
            size.norm()
        )),
        Some(_) => {}
    }
    check
}

/// What is seen of an object in one image.
struct Seen {
    obj_id: u32,
    depth_mm: f64,
    size_px: f64,
    visible: Option<f64>,
}

/// What one scene adds to its split.
struct SceneFinds {
    check: SceneCheck,
    num_without_file: usize,
    most_of_an_object: usize,
    has_poses: bool,
    has_masks: bool,
    seen: Vec<Seen>,
    faults: Vec<String>,
}

fn check_split(
    folder: &BopFolder,
    name: &str,
    infos: &ModelInfos,
    faults: &mut Vec<String>,
) -> Result<SplitCheck> {
    let targets = folder.targets_of(name)?.localization;
    let mut split = SplitCheck {
        name: name.to_owned(),
        num_targets: targets.map(|(_, lines)| lines.len()),
        has_poses: true,
        has_masks: true,
        ..SplitCheck::default()
    };
    let mut seen: BTreeMap<u32, Vec<Seen>> = BTreeMap::new();
    let check = |scene: &Result<BopScene>| match scene {
        Ok(scene) => Ok(check_scene(scene, infos)),
        Err(e) => Err(format!("{e:#}")),
    };
    let found: Vec<_> = folder.read_scenes(name)?.par_iter().map(check).collect();
    for scene in found {
        let scene = match scene {
            Ok(scene) => scene,
            Err(fault) => {
                faults.push(fault);
                (split.has_poses, split.has_masks) = (false, false);
                continue;
            }
        };
        split.has_poses &= scene.has_poses;
        split.has_masks &= scene.has_masks;
        split.scenes.push(scene.check);
        split.num_without_file += scene.num_without_file;
        split.most_of_an_object = split.most_of_an_object.max(scene.most_of_an_object);
        faults.extend(scene.faults);
        scene.seen.into_iter().for_each(|s| seen.entry(s.obj_id).or_default().push(s));
    }
    split.objects = seen.into_iter().map(|(obj_id, seen)| summary(obj_id, &seen, infos)).collect();
    Ok(split)
}

fn check_scene(scene: &BopScene, infos: &ModelInfos) -> SceneFinds {
    let masks = Masks::of(&scene.folder);
    let mut finds = SceneFinds {
        check: SceneCheck {
            id: scene.id,
            num_images: scene.images.len(),
            num_instances: 0,
            num_hidden: 0,
        },
        num_without_file: 0,
        most_of_an_object: 0,
        has_poses: scene.images.values().flatten().all(|image| image.objects.is_some()),
        has_masks: masks.dir.is_some(),
        seen: Vec::new(),
        faults: Vec::new(),
    };
    for (&number, image) in &scene.images {
        let at = format!("{}: image {number}", scene.folder.display());
        if scene.image_file(number).is_none() {
            finds.num_without_file += 1;
            finds.faults.push(format!("{at}: neither rgb nor gray has its file"));
        }
        let image = match image {
            Ok(image) => image,
            Err(fault) => {
                finds.faults.push(fault.clone());
                continue;
            }
        };
        let objects = image.objects.as_deref().unwrap_or(&[]);
        let mut of_object: HashMap<u32, usize> = HashMap::new();
        for (i, object) in objects.iter().enumerate() {
            let hidden = object.told.is_some_and(|told| told.px_count_visib == 0);
            finds.check.num_instances += 1;
            *of_object.entry(object.obj_id).or_default() += 1;
            let pose = match object.pose() {
                Ok(pose) => pose,
                Err(e) => {
                    finds.faults.push(format!("{e:#}"));
                    continue;
                }
            };
            let gt = scene.folder.join("scene_gt.json");
            let place = format!("{}: image {number}: object {i}", gt.display());
            let middle_mm = pose.apply(&middle(object, infos));
            check_instance(&place, object, &middle_mm, infos, &mut finds.faults);
            if hidden || middle_mm.z <= 0.0 {
                finds.check.num_hidden += 1;
            } else {
                finds.seen.push(seen(object, middle_mm.z, image, infos));
            }
        }
        finds.most_of_an_object =
            of_object.into_values().max().unwrap_or(0).max(finds.most_of_an_object);
        masks.check(&at, number, objects.len(), &mut finds.faults);
    }
    finds
}

/// The middle of an object's box, mm, object frame.
fn middle(object: &BopObject, infos: &ModelInfos) -> Vec3 {
    infos.of(object.obj_id).map_or_else(Vec3::zeros, ModelInfo::middle)
}

fn seen(object: &BopObject, depth_mm: f64, image: &BopFrame, infos: &ModelInfos) -> Seen {
    let diameter = infos.of(object.obj_id).and_then(|info| info.diameter).unwrap_or(0.0);
    Seen {
        obj_id: object.obj_id,
        depth_mm,
        size_px: diameter * image.camera.focal_px().0 / depth_mm,
        visible: object.told.map(|told| told.visib_fract),
    }
}

fn check_instance(
    at: &str,
    object: &BopObject,
    middle_mm: &Vec3,
    infos: &ModelInfos,
    faults: &mut Vec<String>,
) {
    let Some(info) = infos.of(object.obj_id) else {
        faults.push(format!(
            "{at}: {} does not list obj_id {}: add it there with its mesh, or choose others with `mqat init --objects`",
            infos.path().display(),
            object.obj_id
        ));
        return;
    };
    let visible = object.told.is_none_or(|told| told.px_count_visib > 0);
    let depth_mm = middle_mm.z;
    let is_near = info.diameter.is_some_and(|diameter| middle_mm.norm() < 0.5 * diameter);
    if depth_mm <= 0.0 && object.told.is_some() && visible {
        faults.push(format!(
            "{at}: the middle of its box is at a depth of {depth_mm} mm, but it has visible pixels"
        ));
    } else if visible && depth_mm > 0.0 && is_near {
        faults.push(format!(
            "{at}: {:.3} mm from the camera, less than half its diameter: is t in metres? expected mm",
            middle_mm.norm()
        ));
    }
}

fn summary(obj_id: u32, seen: &[Seen], infos: &ModelInfos) -> SplitObject {
    let range = |value: fn(&Seen) -> f64| {
        let values = || seen.iter().map(value);
        [values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max)]
    };
    let told: Option<Vec<f64>> = seen.iter().map(|s| s.visible).collect();
    let visible = told.filter(|told| !told.is_empty()).map(|mut told| {
        told.sort_by(f64::total_cmp);
        [told[told.len() / 10], told[told.len() / 2]]
    });
    SplitObject {
        obj_id,
        is_listed: infos.of(obj_id).is_some_and(|info| info.diameter.is_some()),
        num_visible: seen.len(),
        depth_mm: range(|s| s.depth_mm),
        size_px: range(|s| s.size_px),
        visible,
    }
}

/// Masks of a scene by image.
struct Masks {
    /// The folder's name; none where there is none.
    dir: Option<&'static str>,
    num_of: HashMap<u32, usize>,
}

impl Masks {
    fn of(scene: &Path) -> Self {
        let dir = ["mask_visib", "mask"].into_iter().find(|dir| scene.join(dir).is_dir());
        let mut num_of = HashMap::new();
        let entries = dir.into_iter().flat_map(|dir| fs::read_dir(scene.join(dir))).flatten();
        for entry in entries.flatten() {
            let name = entry.file_name();
            let image = name.to_str().and_then(|name| name.split_once('_')?.0.parse().ok());
            if let Some(image) = image {
                *num_of.entry(image).or_default() += 1;
            }
        }
        Self { dir, num_of }
    }

    fn check(&self, at: &str, image: u32, num_objects: usize, faults: &mut Vec<String>) {
        let num = self.num_of.get(&image).copied().unwrap_or(0);
        if let Some(dir) = self.dir.filter(|_| num != num_objects) {
            faults.push(format!(
                "{at}: {num} masks in {dir}, but scene_gt.json has {num_objects} objects"
            ));
        }
    }
}
