//! A scene of a BOP folder: its JSON files, read once, and the files of its images.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, ensure};

use super::DepthScale;
use super::bop::{FrameCamera, FrameObject, ObjectVisibility, SceneGt};
use super::scene_files::{by_number, read_cameras, read_lenient};
use crate::geom::{Camera, Pose};
use crate::io;

/// Endings of pictures that are read.
const ENDINGS: [&str; 5] = ["png", "jpg", "jpeg", "tif", "tiff"];
/// The file of a scene that tells its images.
pub(super) const CAMERAS: &str = "scene_camera.json";

/// A scene of a split, its JSON files read.
#[derive(Debug, Clone)]
pub struct BopScene {
    /// The number of its folder.
    pub id: u32,
    /// Its folder.
    pub folder: PathBuf,
    /// By number, rising: those of `scene_camera.json` and of `scene_gt.json`. A text says what is wrong with an image and
    /// names the file: it has no camera or an invalid one, or files disagree about the number of its objects.
    pub images: BTreeMap<u32, Result<BopFrame, String>>,
    /// Files of the images by number.
    files: HashMap<u32, PathBuf>,
    /// Files of the depth images by number.
    depth_files: HashMap<u32, PathBuf>,
}

/// An image of a scene.
#[derive(Debug, Clone)]
pub struct BopFrame {
    /// The camera that took it.
    pub camera: Camera,
    /// The unit of its depth image.
    pub depth_scale: DepthScale,
    /// The true objects, in the file's order; none where the scene has no `scene_gt.json`.
    pub objects: Option<Vec<BopObject>>,
}

/// An object of an image.
#[derive(Debug, Clone)]
pub struct BopObject {
    /// Its mesh's number.
    pub obj_id: u32,
    /// What is visible of it; none where the scene has no `scene_gt_info.json`.
    pub told: Option<ObjectVisibility>,
    /// Under the image's camera; a text says why it is no pose.
    pose: Result<Pose, String>,
}

impl BopObject {
    /// Its pose under the image's camera.
    ///
    /// # Errors
    /// If the file's is none; names the file, the image and the object.
    pub fn pose(&self) -> Result<Pose> {
        self.pose.as_ref().copied().map_err(|e| anyhow!("{e}"))
    }
}

impl BopScene {
    /// Reads the JSON files of a scene's folder.
    ///
    /// # Errors
    /// If one cannot be read, names an image twice, or a camera has a lens.
    pub(super) fn read(id: u32, folder: &Path) -> Result<Self> {
        let json = SceneJson::read(folder)?;
        let listed = json.objects.iter().flat_map(HashMap::keys);
        let numbers: BTreeSet<u32> = json.cameras.keys().chain(listed).copied().collect();
        let image = |number: u32| (number, json.frame(number).map_err(|e| format!("{e:#}")));
        let images = numbers.into_iter().map(image).collect();
        let pictures = ["rgb", "gray"].map(|dir| folder.join(dir));
        let pictures = pictures.iter().find(|dir| dir.is_dir());
        let files = pictures.map(|dir| numbered_files(dir)).transpose()?.unwrap_or_default();
        let depth = folder.join("depth");
        let depth_files = if depth.is_dir() { numbered_files(&depth)? } else { HashMap::default() };
        Ok(Self { id, folder: folder.to_owned(), images, files, depth_files })
    }

    /// An image of the scene.
    ///
    /// # Errors
    /// If there is none of this number, or something is wrong with it.
    pub fn frame(&self, number: u32) -> Result<&BopFrame> {
        let image = self.images.get(&number);
        let image =
            image.with_context(|| format!("{} has no image {number}", self.folder.display()))?;
        image.as_ref().map_err(|e| anyhow!("{e}"))
    }

    /// The file of an image: in `rgb`, else in `gray`; whatever its ending.
    pub fn image_file(&self, number: u32) -> Option<&Path> {
        self.files.get(&number).map(PathBuf::as_path)
    }

    /// The depth image of an image, where there is one; whatever its ending.
    pub fn depth_file(&self, number: u32) -> Option<&Path> {
        self.depth_files.get(&number).map(PathBuf::as_path)
    }

    /// Whether the scene tells what is visible of its objects.
    pub fn tells_visibility(&self) -> bool {
        let frames = self.images.values().flatten();
        frames.flat_map(|frame| frame.objects.iter().flatten()).all(|o| o.told.is_some())
    }

    /// What is visible of an object of an image: as `scene_gt_info.json` tells; else counted in its masks, where one of the
    /// whole object alone stands for the visible part, and of a visible part alone the fraction is 1; none without masks.
    ///
    /// # Errors
    /// If something is wrong with the image, or a mask cannot be read.
    pub fn visibility(&self, number: u32, object: usize) -> Result<Option<ObjectVisibility>> {
        let objects = self.frame(number)?.objects.as_ref();
        if let Some(told) = objects.and_then(|all| all.get(object)?.told) {
            return Ok(Some(told));
        }
        let name = format!("{number:06}_{object:06}.png");
        let count = |dir: &str| -> Result<Option<u64>> {
            let path = self.folder.join(dir).join(&name);
            if !path.is_file() {
                return Ok(None);
            }
            Ok(Some(io::picture::read_mask(&path)?.iter().filter(|&&v| v != 0).count() as u64))
        };
        let whole = count("mask")?;
        let Some(px_count_visib) = count("mask_visib")?.or(whole) else { return Ok(None) };
        let all = whole.unwrap_or(px_count_visib).max(1);
        Ok(Some(ObjectVisibility {
            px_count_visib,
            visib_fract: (px_count_visib as f64 / all as f64).min(1.0),
        }))
    }
}

/// The JSON files of a scene by the numbers of the images.
struct SceneJson {
    folder: PathBuf,
    cameras: HashMap<u32, FrameCamera>,
    objects: Option<HashMap<u32, Vec<FrameObject>>>,
    told: Option<HashMap<u32, Vec<ObjectVisibility>>>,
}

impl SceneJson {
    fn read(folder: &Path) -> Result<Self> {
        let cameras = by_number(&folder.join(CAMERAS), read_cameras)?;
        let (gt, info) = (folder.join("scene_gt.json"), folder.join("scene_gt_info.json"));
        let objects = gt.is_file().then(|| by_number(&gt, read_lenient::<SceneGt>)).transpose()?;
        let has_info = info.is_file() && objects.is_some();
        let read_info = read_lenient::<BTreeMap<String, Vec<ObjectVisibility>>>;
        let told = has_info.then(|| by_number(&info, read_info)).transpose()?;
        Ok(Self { folder: folder.to_owned(), cameras, objects, told })
    }

    fn frame(&self, number: u32) -> Result<BopFrame> {
        let at = |file: &str| format!("{}: image {number}", self.folder.join(file).display());
        let camera = self.cameras.get(&number);
        let camera = camera.with_context(|| {
            format!("{} has no camera, but scene_gt.json lists its objects", at(CAMERAS))
        })?;
        let k = Camera::from_row_major(&camera.cam_k).with_context(|| at(CAMERAS))?;
        let mut frame = BopFrame { camera: k, depth_scale: camera.depth_scale, objects: None };
        let Some(objects) = &self.objects else { return Ok(frame) };
        // An image that scene_gt.json leaves out has no objects.
        let listed = objects.get(&number).map_or(&[][..], Vec::as_slice);
        let told = self.told.as_ref().map(|all| all.get(&number).map_or(&[][..], Vec::as_slice));
        if let Some(told) = told {
            ensure!(
                listed.len() == told.len(),
                "{}: {} objects, but scene_gt.json has {}",
                at("scene_gt_info.json"),
                told.len(),
                listed.len()
            );
        }
        let object = |(i, object): (usize, &FrameObject)| {
            let pose = Pose::from_row_major(&object.r, &object.t_mm)
                .with_context(|| format!("{}: object {i}", at("scene_gt.json")))
                .map_err(|e| format!("{e:#}"));
            BopObject { obj_id: object.obj_id, told: told.map(|told| told[i]), pose }
        };
        frame.objects = Some(listed.iter().enumerate().map(object).collect());
        Ok(frame)
    }
}

/// Pictures of a folder by the numbers that they are named by, plain or padded with zeros.
fn numbered_files(dir: &Path) -> Result<HashMap<u32, PathBuf>> {
    let reading = || format!("reading {}", dir.display());
    let mut files = HashMap::new();
    for entry in fs::read_dir(dir).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let ending = path.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
        if let (Some(number), true) = (number, ending.is_some_and(|e| ENDINGS.contains(&&*e))) {
            files.insert(number, path);
        }
    }
    Ok(files)
}
