//! One scene folder: its JSON files, read once, and the frames that a list wants of it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::bop::{FrameCamera, FrameObject, SceneGt};
use super::frame::{Annotation, Frame};
use super::scene_files::{by_number, read_cameras, read_lenient};
use crate::geom::{Camera, Pose};

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
    /// If the file's name is not a number or the path has no folder of a scene.
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

/// The sequence of an image of a list: images of one are alike.
///
/// The path up to a folder `seq_N` (`mqat synth`, SwissCube); without one the folder that holds the image's own, BOP's
/// scene (`test/000007` of `test/000007/rgb/000042.png`); the image itself where its folder lies in no other.
pub fn sequence_of(image: &str) -> &str {
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let mut end = 0;
    for part in image.split('/') {
        end += part.len();
        if part.strip_prefix("seq_").is_some_and(is_number) {
            return &image[..end];
        }
        end += 1;
    }
    let scene = image.rsplit_once('/').and_then(|(folder, _)| folder.rsplit_once('/'));
    scene.map_or(image, |(scene, _)| scene)
}

/// The frames of a scene and what was left out.
pub(crate) struct SceneFrames {
    /// In the order asked for.
    pub frames: Vec<Result<Frame>>,
    /// obj_id of each object without a mesh.
    pub without_mesh: Vec<u32>,
}

/// Reads the scene folder `root/scene` and returns the frames of `images` (as in the list, with their numbers).
/// `class_of` gives the class of an obj_id; masks are looked for when they are wanted.
///
/// A file of the scene that cannot be read makes each of its frames an error.
pub(crate) fn read_scene(
    root: &Path,
    scene: &Path,
    images: &[(&str, u32)],
    class_of: &HashMap<u32, usize>,
    with_masks: bool,
) -> SceneFrames {
    let folder = root.join(scene);
    let mut without_mesh = Vec::new();
    let frames = match Scene::open(&folder, with_masks) {
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
    let cameras = by_number(&path, read_cameras)?;
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
    /// None when they are not wanted.
    masks: Option<Masks>,
}

/// The files of `mask_visib`.
#[derive(Default)]
struct Masks {
    names: HashSet<String>,
    /// By the image's part of the name.
    num_of: HashMap<String, usize>,
}

impl Masks {
    fn of(dir: &Path) -> Result<Self> {
        let reading = || {
            format!(
                "reading {}: training needs the visible part of every object as a mask (bop_toolkit's calc_gt_masks.py \
                 makes them)",
                dir.display()
            )
        };
        let mut masks = Self::default();
        for entry in fs::read_dir(dir).with_context(reading)? {
            let name = entry.with_context(reading)?.file_name();
            let visible = |name: &&str| name.ends_with(".png") && !name.starts_with('.');
            let Some(name) = name.to_str().filter(visible) else { continue };
            if let Some((image, _)) = name.split_once('_') {
                *masks.num_of.entry(image.to_owned()).or_default() += 1;
                masks.names.insert(name.to_owned());
            }
        }
        Ok(masks)
    }
}

impl Scene {
    fn open(folder: &Path, with_masks: bool) -> Result<Self> {
        let cameras = by_number(&folder.join("scene_camera.json"), read_cameras)?;
        let objects: HashMap<_, Vec<FrameObject>> =
            by_number(&folder.join("scene_gt.json"), read_lenient::<SceneGt>)?;
        let wanted = with_masks && objects.values().any(|o| !o.is_empty());
        let masks = match (wanted, with_masks) {
            (true, _) => Some(Masks::of(&folder.join("mask_visib"))?),
            (false, true) => Some(Masks::default()),
            (false, false) => None,
        };
        Ok(Self { folder: folder.to_owned(), cameras, objects, masks })
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

        ensure!(
            listed.len() <= MAX_OBJECTS,
            "{}: image {number} has {} objects, expected {MAX_OBJECTS} at most",
            at("scene_gt.json"),
            listed.len()
        );
        if let Some(masks) = &self.masks {
            self.check_masks(masks, number, listed.len())?;
        }
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
            let name = || self.folder.join("mask_visib").join(mask_name(number, i));
            let mask = self.masks.as_ref().map(|_| name());
            objects.push(Annotation { class, pose, mask });
        }
        without_mesh.extend(unknown);
        Ok(Frame { image: image.to_owned(), camera, objects })
    }

    fn check_masks(&self, masks: &Masks, number: u32, num_objects: usize) -> Result<()> {
        let dir = self.folder.join("mask_visib");
        if let Some(name) =
            (0..num_objects).map(|i| mask_name(number, i)).find(|n| !masks.names.contains(n))
        {
            bail!(
                "{} is missing: scene_gt.json lists {num_objects} objects of image {number}",
                dir.join(name).display()
            );
        }
        let num_masks = masks.num_of.get(&format!("{number:06}")).copied().unwrap_or(0);
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
    fn sequences_are_told_by_their_folders() {
        for (image, sequence) in [
            ("testing/seq_000007/000000/rgb/000042.jpg", "testing/seq_000007"),
            ("testing/seq_000007/000001/rgb/000042.jpg", "testing/seq_000007"),
            ("seq_1/000002.jpg", "seq_1"),
            ("test/000007/rgb/000042.png", "test/000007"),
            ("test/seq_x/rgb/1.png", "test/seq_x"),
            ("images/1.png", "images/1.png"),
            ("1.png", "1.png"),
        ] {
            assert_eq!(sequence_of(image), sequence);
        }
    }

    #[test]
    fn a_lens_in_a_scene_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("scene_camera.json");
        let write = |more: &str| {
            let k = "[100, 0, 32, 0, 100, 32, 0, 0, 1]";
            fs::write(&path, format!("{{\"7\": {{\"cam_K\": {k}, \"depth_scale\": 1{more}}}}}"))
                .unwrap();
            scene_cameras(folder.path()).map(|cameras| cameras.len())
        };
        for fine in ["", ", \"dist_coeffs\": [0, 0, 0, 0]", ", \"note\": \"no distortion\""] {
            assert_eq!(write(fine).unwrap(), 1, "{fine}");
        }
        for more in
            [", \"distCoeffs\": [0.1, 0, 0, 0]", ", \"cam_model\": {\"model\": \"FISHEYE624\"}"]
        {
            let error = format!("{:#}", write(more).unwrap_err());
            let key = more.split('"').nth(1).unwrap();
            assert!(error.contains(&format!("image 7: {key} tells a lens")), "{error}");
        }
    }
}
