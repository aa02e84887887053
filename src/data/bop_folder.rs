//! A folder as the BOP benchmark publishes them: splits of numbered scenes, without lists of images.
//!
//! ```text
//! ROOT/models[_TYPE][_eval]/obj_000005.ply, models_info.json
//! ROOT/test_targets_bop19.json, test_targets_bop24.json
//! ROOT/SPLIT[_TYPE]/000048/scene_camera.json, scene_gt.json, scene_gt_info.json
//!                         /rgb/000001.png or gray/000001.tif, depth/, mask/, mask_visib/
//! ```

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::Deserialize;

use super::bop::{FrameObjectInfo, SceneGt, SceneGtInfo};
use super::models_info::ModelInfos;
use super::scene_files::{by_number, read_cameras, read_lenient};
use crate::geom::{Camera, Pose};
use crate::io;

/// Endings of pictures that are read.
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "tif", "tiff"];
/// An object of which a smaller fraction is visible is no target where no file names targets.
pub const VISIBLE_TARGET: f64 = 0.1;
/// The file of a scene that tells its images.
const CAMERAS: &str = "scene_camera.json";

/// A folder of a BOP dataset, scene by scene.
#[derive(Debug, Clone)]
pub struct BopFolder {
    root: PathBuf,
    /// Splits with the numbers of their scenes.
    splits: BTreeMap<String, Vec<u32>>,
}

/// A scene of a split, its JSON files read.
#[derive(Debug, Clone)]
pub struct BopScene {
    /// The number of its folder.
    pub id: u32,
    /// Its folder.
    pub folder: PathBuf,
    /// By number, rising.
    pub images: BTreeMap<u32, BopFrame>,
    /// Files of the images by number.
    files: HashMap<u32, PathBuf>,
}

/// An image of a scene.
#[derive(Debug, Clone)]
pub struct BopFrame {
    /// The camera that took it.
    pub camera: Camera,
    /// mm of a unit of its depth image.
    pub depth_scale: f64,
    /// The true objects, in the file's order; none where the scene has no `scene_gt.json`.
    pub objects: Option<Vec<BopObject>>,
}

/// An object of an image.
#[derive(Debug, Clone)]
pub struct BopObject {
    /// Its mesh's number.
    pub obj_id: u32,
    /// Under the image's camera.
    pub pose: Pose,
    /// Its boxes and visible pixels; none where the scene has no `scene_gt_info.json`.
    pub info: Option<FrameObjectInfo>,
}

/// A line of a file of targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct BopTargetLine {
    /// The scene.
    pub scene_id: u32,
    /// The image.
    pub im_id: u32,
    /// The object; none in files for detection.
    #[serde(default)]
    pub obj_id: Option<u32>,
    /// How many instances of it are to be found; none in files for detection.
    #[serde(default)]
    pub inst_count: Option<usize>,
}

/// The files of targets of a split, each with its path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BopTargets {
    /// `test_targets_bop19.json`.
    pub localization: Option<(String, Vec<BopTargetLine>)>,
    /// `test_targets_bop24.json`.
    pub detection: Option<(String, Vec<BopTargetLine>)>,
}

impl BopTargets {
    /// Scene and image of all targets; none where no file names any.
    pub fn images(&self) -> Option<HashSet<(u32, u32)>> {
        let files = [&self.localization, &self.detection];
        let mut lines = files.into_iter().flatten().flat_map(|(_, lines)| lines).peekable();
        lines.peek()?;
        Some(lines.map(|line| (line.scene_id, line.im_id)).collect())
    }
}

impl BopFolder {
    /// The folder, when it is one of a BOP dataset: it holds folders of numbered scenes, and meshes with `models_info.json`.
    pub fn find(root: &Path) -> Option<Self> {
        let mut splits = BTreeMap::new();
        for name in folders(root) {
            let scenes: Vec<u32> = folders(&root.join(&name))
                .into_iter()
                .filter(|scene| root.join(&name).join(scene).join(CAMERAS).is_file())
                .filter_map(|scene| scene.parse().ok())
                .collect();
            if !scenes.is_empty() {
                splits.insert(name, scenes);
            }
        }
        let folder = Self { root: root.to_owned(), splits };
        (!folder.splits.is_empty() && folder.meshes().is_some()).then_some(folder)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names of the splits.
    pub fn splits(&self) -> impl Iterator<Item = &str> {
        self.splits.keys().map(String::as_str)
    }

    /// The split to evaluate where none is named: the only one whose name begins with `test`.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn test_split(&self) -> Result<&str> {
        let tests: Vec<&str> = self.splits().filter(|name| name.starts_with("test")).collect();
        match tests.as_slice() {
            [one] => Ok(one),
            [] => bail!(
                "{}: no folder of scenes begins with `test`; name one with --split: {}",
                self.root.display(),
                self.names()
            ),
            _ => bail!(
                "{}: several folders of test scenes; name one with --split: {}",
                self.root.display(),
                tests.join(", ")
            ),
        }
    }

    fn names(&self) -> String {
        self.splits().collect::<Vec<_>>().join(", ")
    }

    /// The folder of meshes to render and train with: `models`, else the first `models_TYPE`.
    pub fn meshes(&self) -> Option<PathBuf> {
        let has = |name: &str| self.root.join(name).join("models_info.json").is_file();
        let own = || folders(&self.root).into_iter().filter(|name| !name.ends_with("_eval"));
        let other = || own().find(|name| name.starts_with("models_") && has(name));
        let name = if has("models") { Some("models".to_owned()) } else { other() };
        name.or_else(|| has("models_eval").then(|| "models_eval".to_owned()))
            .map(|name| self.root.join(name))
    }

    /// The folder of meshes that errors are measured on: `models_eval`, else the only `models_TYPE_eval`, else
    /// [`BopFolder::meshes`].
    pub fn evaluation_meshes(&self) -> Option<PathBuf> {
        let is_eval = |name: &String| {
            name.starts_with("models")
                && name.ends_with("_eval")
                && self.root.join(name).join("models_info.json").is_file()
        };
        let found: Vec<String> = folders(&self.root).into_iter().filter(is_eval).collect();
        let plain = found.iter().find(|name| *name == "models_eval");
        let name = plain.or_else(|| found.first().filter(|_| found.len() == 1));
        name.map(|name| self.root.join(name)).or_else(|| self.meshes())
    }

    /// What is told of the objects beside the meshes of a folder.
    ///
    /// # Errors
    /// As [`ModelInfos::read`], and if there is no object.
    pub fn infos(&self, meshes: &Path) -> Result<ModelInfos> {
        let infos = ModelInfos::read(meshes.join("models_info.json"))?;
        ensure!(!infos.obj_ids().is_empty(), "{}: it lists no object", infos.path().display());
        Ok(infos)
    }

    /// The targets of a split: those of the folder's files where its name begins with `test`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn targets_of(&self, split: &str) -> Result<BopTargets> {
        let read = |name: &str| -> Result<Option<(String, Vec<BopTargetLine>)>> {
            let path = self.root.join(name);
            if !split.starts_with("test") || !path.is_file() {
                return Ok(None);
            }
            Ok(Some((path.display().to_string(), io::read_json(&path)?)))
        };
        let localization = read("test_targets_bop19.json")?;
        Ok(BopTargets { localization, detection: read("test_targets_bop24.json")? })
    }

    /// Width and height of the split's images as `camera.json` gives them, px; none where it does not.
    pub fn camera_size(&self) -> Option<[usize; 2]> {
        #[derive(Deserialize)]
        struct CameraJson {
            width: usize,
            height: usize,
        }
        let camera: CameraJson = io::read_json(&self.root.join("camera.json")).ok()?;
        Some([camera.width, camera.height])
    }

    /// Reads the scenes of a split, in parallel, by rising number.
    ///
    /// # Errors
    /// If there is no such split; if a file of a scene cannot be read, an image is twice in one, a camera or a pose is none,
    /// or files of a scene disagree about the number of objects. Names the file and the image.
    pub fn scenes(&self, split: &str) -> Result<Vec<BopScene>> {
        let ids = self.splits.get(split).with_context(|| {
            format!(
                "{}: no folder {split} of numbered scenes (with {CAMERAS}); there are {}",
                self.root.display(),
                self.names()
            )
        })?;
        let dir = self.root.join(split);
        let named: BTreeSet<(u32, String)> = folders(&dir)
            .into_iter()
            .filter_map(|name| Some((name.parse().ok()?, name)))
            .filter(|(id, _)| ids.contains(id))
            .collect();
        let read: Vec<Result<BopScene>> =
            named.par_iter().map(|(id, name)| BopScene::read(*id, &dir.join(name))).collect();
        read.into_iter().collect()
    }
}

impl BopScene {
    fn read(id: u32, folder: &Path) -> Result<Self> {
        let cameras = by_number(&folder.join(CAMERAS), read_cameras)?;
        let gt = folder.join("scene_gt.json");
        let info = folder.join("scene_gt_info.json");
        let mut objects = match gt.is_file() {
            true => Some(by_number(&gt, read_lenient::<SceneGt>)?),
            false => None,
        };
        let mut infos = match info.is_file() && objects.is_some() {
            true => Some(by_number(&info, read_lenient::<SceneGtInfo>)?),
            false => None,
        };
        let mut images = BTreeMap::new();
        for (number, camera) in cameras {
            let at = |file: &Path| format!("{}: image {number}", file.display());
            let k =
                Camera::from_row_major(&camera.cam_k).with_context(|| at(&folder.join(CAMERAS)))?;
            // An image that scene_gt.json leaves out has no objects.
            let listed = objects.as_mut().map(|all| all.remove(&number).unwrap_or_default());
            let of_image = infos.as_mut().map(|all| all.remove(&number).unwrap_or_default());
            if let (Some(listed), Some(told)) = (&listed, &of_image) {
                ensure!(
                    listed.len() == told.len(),
                    "{}: {} objects, but scene_gt.json has {}",
                    at(&info),
                    told.len(),
                    listed.len()
                );
            }
            let object = |(i, object): (usize, super::bop::FrameObject)| {
                let pose = Pose::from_row_major(&object.r, &object.t_mm)
                    .with_context(|| format!("{}: object {i}", at(&gt)))?;
                let info = of_image.as_ref().map(|infos| infos[i].clone());
                Ok(BopObject { obj_id: object.obj_id, pose, info })
            };
            let objects = listed
                .map(|l| l.into_iter().enumerate().map(object).collect::<Result<Vec<_>>>())
                .transpose()?;
            images.insert(number, BopFrame { camera: k, depth_scale: camera.depth_scale, objects });
        }
        let files = image_files(folder)?;
        Ok(Self { id, folder: folder.to_owned(), images, files })
    }

    /// The file of an image: in `rgb`, else in `gray`; whatever its ending.
    pub fn image_file(&self, number: u32) -> Option<&Path> {
        self.files.get(&number).map(PathBuf::as_path)
    }

    /// The depth image of an image, where there is one.
    pub fn depth_file(&self, number: u32) -> Option<PathBuf> {
        let dir = self.folder.join("depth");
        let names = ENDINGS.iter().map(|ending| dir.join(format!("{number:06}.{ending}")));
        names.into_iter().find(|path| path.is_file())
    }

    /// Whether the scene tells what is visible of its objects.
    pub fn tells_visibility(&self) -> bool {
        self.images.values().flat_map(|i| i.objects.iter().flatten()).all(|o| o.info.is_some())
    }

    /// The visible fraction of an object of an image, 0 to 1: of `scene_gt_info.json`; else that of the pixels of its masks;
    /// 1 where neither is there.
    ///
    /// # Errors
    /// If a mask cannot be read.
    pub fn visible_fraction(&self, number: u32, object: usize) -> Result<f64> {
        let listed = self.images.get(&number).and_then(|i| i.objects.as_ref()?.get(object));
        if let Some(info) = listed.and_then(|o| o.info.as_ref()) {
            return Ok(info.visib_fract);
        }
        let name = format!("{number:06}_{object:06}.png");
        let [all, visible] = ["mask", "mask_visib"].map(|dir| self.folder.join(dir).join(&name));
        if !all.is_file() || !visible.is_file() {
            return Ok(1.0);
        }
        let count = |path: &Path| -> Result<usize> {
            Ok(io::picture::read_mask(path)?.iter().filter(|&&v| v != 0).count())
        };
        let (all, visible) = (count(&all)?, count(&visible)?);
        Ok(if all == 0 { 0.0 } else { visible as f64 / all as f64 })
    }
}

/// Files of a scene's images by number: those of `rgb`, or of `gray` where there is no `rgb`.
fn image_files(folder: &Path) -> Result<HashMap<u32, PathBuf>> {
    let Some(dir) = ["rgb", "gray"].map(|d| folder.join(d)).into_iter().find(|d| d.is_dir()) else {
        return Ok(HashMap::new());
    };
    let reading = || format!("reading {}", dir.display());
    let mut files = HashMap::new();
    for entry in fs::read_dir(&dir).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
        if let (Some(number), true) = (number, ending.is_some_and(|e| ENDINGS.contains(&&*e))) {
            files.insert(number, path);
        }
    }
    Ok(files)
}

/// The names of the folders in a folder, sorted; none where it cannot be read.
fn folders(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}
