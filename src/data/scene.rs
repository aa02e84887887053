//! One scene folder: its JSON files, read once, and the frames that a list wants of it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde::de::DeserializeOwned;

use super::bop::{FrameCamera, FrameObject, SceneCamera, SceneGt};
use super::dataset::{Annotation, Frame};
use crate::geom::{Camera, Pose};
use crate::io;

/// Masks and labels are bytes, 0 is no object.
const MAX_OBJECTS: usize = 255;

/// A line of a list file, taken apart: `SCENE/rgb/NUMBER.jpg`.
#[derive(Debug, Clone, PartialEq)]
pub struct ImagePath {
    /// The scene's folder.
    pub scene: PathBuf,
    /// The image's number in the scene's files.
    pub number: u32,
}

impl ImagePath {
    /// Takes a path apart.
    ///
    /// # Errors
    /// If the file's name is no number or the path has no folder of a scene.
    pub fn parse(image: &str) -> Result<Self> {
        let path = Path::new(image);
        let number = path.file_stem().and_then(|s| s.to_str()).and_then(|s| s.parse().ok());
        let scene = path.parent().and_then(Path::parent);
        match (number, scene) {
            (Some(number), Some(scene)) => Ok(Self { scene: scene.to_owned(), number }),
            _ => bail!("expected a path like SCENE/rgb/000000.jpg"),
        }
    }
}

/// The frames of a scene and what was left out.
pub(crate) struct SceneFrames {
    /// In the order asked for.
    pub frames: Vec<Result<Frame>>,
    /// obj_id of each object without a mesh.
    pub without_mesh: Vec<u32>,
}

/// Reads the scene folder `root/scene` and returns the frames of `images` (as in the list, with their numbers).
/// `class_of` gives the class of an obj_id.
///
/// A file of the scene that cannot be read makes each of its frames an error.
pub(crate) fn read_scene(
    root: &Path,
    scene: &Path,
    images: &[(&str, u32)],
    class_of: &HashMap<u32, usize>,
) -> SceneFrames {
    let folder = root.join(scene);
    let mut without_mesh = Vec::new();
    let frames = match Scene::open(&folder) {
        Ok(scene) => images
            .iter()
            .map(|&(image, number)| scene.frame(image, number, class_of, &mut without_mesh))
            .collect(),
        Err(e) => {
            let text = format!("{e:#}");
            images.iter().map(|_| Err(anyhow!("{text}"))).collect()
        }
    };
    SceneFrames { frames, without_mesh }
}

/// The cameras of a scene folder's images by their numbers, from `scene_camera.json`.
///
/// # Errors
/// If the file cannot be read or a camera is none; names file and image.
pub fn scene_cameras(folder: &Path) -> Result<HashMap<u32, Camera>> {
    let path = folder.join("scene_camera.json");
    let cameras = by_number(&path, read::<SceneCamera>)?;
    let camera = |(number, camera): (u32, FrameCamera)| {
        let camera = Camera::from_row_major(&camera.cam_k)
            .with_context(|| format!("{}: image {number}", path.display()))?;
        Ok((number, camera))
    };
    cameras.into_iter().map(camera).collect()
}

struct Scene {
    folder: PathBuf,
    cameras: HashMap<u32, FrameCamera>,
    objects: HashMap<u32, Vec<FrameObject>>,
    masks: HashSet<String>,
    /// Masks by the image's part of the name.
    num_masks: HashMap<String, usize>,
}

impl Scene {
    fn open(folder: &Path) -> Result<Self> {
        let cameras = by_number(&folder.join("scene_camera.json"), read::<SceneCamera>)?;
        let objects: HashMap<_, Vec<FrameObject>> =
            by_number(&folder.join("scene_gt.json"), read::<SceneGt>)?;
        let mut masks = HashSet::new();
        let mut num_masks = HashMap::new();
        if objects.values().any(|o| !o.is_empty()) {
            let dir = folder.join("mask_visib");
            let reading = || format!("reading {}", dir.display());
            for entry in fs::read_dir(&dir).with_context(reading)? {
                let name = entry.with_context(reading)?.file_name();
                let Some(name) = name.to_str().filter(|n| n.ends_with(".png")) else { continue };
                if let Some((image, _)) = name.split_once('_') {
                    *num_masks.entry(image.to_owned()).or_default() += 1;
                    masks.insert(name.to_owned());
                }
            }
        }
        Ok(Self { folder: folder.to_owned(), cameras, objects, masks, num_masks })
    }

    fn frame(
        &self,
        image: &str,
        number: u32,
        class_of: &HashMap<u32, usize>,
        without_mesh: &mut Vec<u32>,
    ) -> Result<Frame> {
        let at = |file: &str| self.folder.join(file).display().to_string();
        let not_in = |file| format!("{}: image {number} is not in it", at(file));
        let camera = self.cameras.get(&number).with_context(|| not_in("scene_camera.json"))?;
        let camera = Camera::from_row_major(&camera.cam_k)
            .with_context(|| format!("{}: image {number}", at("scene_camera.json")))?;
        let listed = self.objects.get(&number).with_context(|| not_in("scene_gt.json"))?;
        let gt = |i: usize| format!("{}: image {number}: object {i}", at("scene_gt.json"));

        self.check_masks(number, listed.len())?;
        let mut objects = Vec::with_capacity(listed.len());
        let mut unknown = Vec::new();
        for (i, object) in listed.iter().enumerate() {
            let Some(&class) = class_of.get(&object.obj_id) else {
                unknown.push(object.obj_id);
                continue;
            };
            let pose = Pose::from_row_major(&object.r, &object.t_mm).with_context(|| gt(i))?;
            let depth_mm = pose.t_mm.z;
            ensure!(depth_mm > 0.0, "{}: depth {depth_mm} mm, expected more than 0", gt(i));
            let mask = self.folder.join("mask_visib").join(mask_name(number, i));
            objects.push(Annotation { class, pose, mask });
        }
        without_mesh.extend(unknown);
        Ok(Frame { image: image.to_owned(), camera, objects })
    }

    fn check_masks(&self, number: u32, num_objects: usize) -> Result<()> {
        let dir = self.folder.join("mask_visib");
        ensure!(
            num_objects <= MAX_OBJECTS,
            "{}: image {number} has {num_objects} objects, expected {MAX_OBJECTS} at most",
            self.folder.join("scene_gt.json").display()
        );
        if let Some(name) =
            (0..num_objects).map(|i| mask_name(number, i)).find(|n| !self.masks.contains(n))
        {
            bail!(
                "{} is missing: scene_gt.json lists {num_objects} objects of image {number}",
                dir.join(name).display()
            );
        }
        let num_masks = self.num_masks.get(&format!("{number:06}")).copied().unwrap_or(0);
        ensure!(
            num_masks == num_objects,
            "{}: {num_masks} masks of image {number}, expected {num_objects} as scene_gt.json lists objects",
            dir.display()
        );
        Ok(())
    }
}

fn mask_name(image: u32, instance: usize) -> String {
    format!("{image:06}_{instance:06}.png")
}

/// The file's map with its keys, plain or zero padded, as numbers.
fn by_number<T, M: IntoIterator<Item = (String, T)>>(
    path: &Path,
    read: impl Fn(&Path) -> Result<M>,
) -> Result<HashMap<u32, T>> {
    let at = path.display();
    let mut map = HashMap::new();
    for (key, value) in read(path)? {
        let number: u32 = key
            .parse()
            .ok()
            .with_context(|| format!("{at}: key {key:?}, expected an image number"))?;
        ensure!(map.insert(number, value).is_none(), "{at}: image {number} is in it twice");
    }
    Ok(map)
}

/// Reads a JSON file in which NaN and infinities may stand bare, as Python writes them.
fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let at = path.display();
    let text = fs::read(path).with_context(|| format!("reading {at}"))?;
    io::parse_json(&without_non_finite(text), &at.to_string())
}

/// `NaN`, `Infinity` and `-Infinity` outside strings replaced by `null`.
fn without_non_finite(text: Vec<u8>) -> Vec<u8> {
    const TOKENS: [&[u8]; 3] = [b"NaN", b"-Infinity", b"Infinity"];
    let contains = |token: &[u8]| text.windows(token.len()).any(|w| w == token);
    if !contains(TOKENS[0]) && !contains(TOKENS[2]) {
        return text;
    }
    let mut out = Vec::with_capacity(text.len());
    let (mut in_string, mut i) = (false, 0);
    while i < text.len() {
        let rest = &text[i..];
        let token = TOKENS.iter().find(|t| !in_string && rest.starts_with(t));
        if let Some(token) = token {
            out.extend_from_slice(b"null");
            i += token.len();
            continue;
        }
        out.push(text[i]);
        match text[i] {
            b'\\' if in_string && i + 1 < text.len() => {
                i += 1;
                out.push(text[i]);
            }
            b'"' => in_string = !in_string,
            _ => {}
        }
        i += 1;
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_lines_are_taken_apart() {
        let path = ImagePath::parse("training/seq_000007/000000/rgb/000042.jpg").unwrap();
        assert_eq!((path.scene.to_str(), path.number), (Some("training/seq_000007/000000"), 42));
        for bad in ["000042.jpg", "a/rgb/front.png", ""] {
            assert!(ImagePath::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn bare_non_finite_numbers_become_null_outside_strings() {
        let text = br#"{"NaN \" NaN": [NaN, -Infinity, Infinity, 1.0]}"#.to_vec();
        let clean = without_non_finite(text);
        assert_eq!(
            std::str::from_utf8(&clean).unwrap(),
            r#"{"NaN \" NaN": [null, null, null, 1.0]}"#
        );
    }
}
