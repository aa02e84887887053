//! The dataset's files.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, bail};
use image::{GrayImage, RgbImage};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::mesh::{DIAMETER_MM, diameter_mm, evaluation_mesh};
use super::options::{Format, Layout, SynthOptions};
use super::trajectory::{SequencePlan, camera};
use crate::data::DepthScale;
use crate::data::bop::{
    FrameCamera, FrameObject, FrameObjectInfo, SceneCamera, SceneGt, SceneGtInfo,
};
use crate::geom::box_corners;
use crate::io::{mesh::write_ply, picture, read_json, write_atomic, write_json};
use crate::schema::from_value;

/// Folder and list of each split, in the order of [`SynthOptions`]' counts.
pub(super) const SPLITS: [&str; 3] = ["training", "validation", "testing"];
/// Folders of scenes of `--layout bop`, in the same order.
pub(super) const SCENE_SPLITS: [&str; 3] = ["train_pbr", "val", "test"];
const OBJ_ID: u32 = 1;
/// Written last: a folder that has it is complete.
const DONE: &str = "synthetic.json";
/// There while a dataset is being written.
const BEGUN: &str = "synthetic.unfinished";
/// Number in `synthetic.json` that changes whenever equal settings give other images.
const fn renderer(layout: Layout) -> u32 {
    match layout {
        Layout::Swisscube => 1,
        Layout::Bop => 2,
    }
}

/// `synthetic.json`.
#[derive(Debug, Serialize, Deserialize)]
struct Description {
    renderer: u32,
    /// [`SynthOptions`], read only when the number above is this program's.
    options: serde_json::Value,
}

/// The settings of the finished synthetic dataset in `root`, `None` when there is none (or it was made
/// by a version of this program that rendered differently).
///
/// # Errors
/// If its description cannot be read.
pub fn finished(root: &Path) -> Result<Option<SynthOptions>> {
    let path = root.join(DONE);
    if !path.is_file() {
        return Ok(None);
    }
    let description: Description = read_json(&path)?;
    // Of the options the layout alone is looked at where the number is another one.
    let layout = description.options.get("layout").cloned();
    let layout = layout.map_or(Ok(Layout::default()), serde_json::from_value);
    if layout.map(renderer).ok() != Some(description.renderer) {
        return Ok(None);
    }
    let options = from_value(description.options);
    options.map(Some).with_context(|| format!("reading options of {}", path.display()))
}

/// Whether a folder holds a dataset whose rendering was begun and not ended.
pub fn unfinished(root: &Path) -> bool {
    root.join(BEGUN).exists() && !root.join(DONE).exists()
}

/// Makes the folder ready: empty but for the mark that something was begun.
///
/// # Errors
/// If there is something else than a synthetic dataset, or one and `overwrite` is off.
pub(super) fn begin(options: &SynthOptions) -> Result<()> {
    let root = &options.out;
    let at = root.display();
    fs::create_dir_all(root).with_context(|| format!("making folder {at}"))?;
    let is_empty =
        fs::read_dir(root).with_context(|| format!("reading folder {at}"))?.next().is_none();
    if !is_empty {
        if !root.join(DONE).exists() && !root.join(BEGUN).exists() {
            bail!("{at} is not empty and holds no synthetic dataset; choose another folder");
        }
        if !options.overwrite {
            bail!(
                "{at} holds a synthetic dataset of other settings, or a part of one; pass --overwrite to replace it"
            );
        }
    }
    fs::write(root.join(BEGUN), "").with_context(|| format!("writing to {at}"))?;
    // What makes a folder look complete goes first.
    let lists = SPLITS.map(|split| format!("{split}.txt"));
    let files =
        [DONE, "swisscube_bbox.json", "test_targets_bop19.json", "camera.json", "README.md"];
    for name in lists.iter().map(String::as_str).chain(files) {
        remove(&root.join(name), |p| fs::remove_file(p))?;
    }
    for name in SPLITS.into_iter().chain(SCENE_SPLITS).chain(["models", "models_eval"]) {
        remove(&root.join(name), |p| fs::remove_dir_all(p))?;
    }
    Ok(())
}

fn remove(path: &Path, how: impl Fn(&Path) -> std::io::Result<()>) -> Result<()> {
    match how(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Path of a colour image, relative to the root.
fn image_path(split: usize, sequence: usize, frame: usize, format: Format) -> String {
    format!("{}/rgb/{frame:06}.{}", scene_path(split, sequence), format.extension())
}

fn scene_path(split: usize, sequence: usize) -> String {
    format!("{}/seq_{sequence:06}/000000", SPLITS[split])
}

/// Writes files below one root and counts their bytes; shared by threads.
pub(super) struct Writer<'a> {
    options: &'a SynthOptions,
    bytes: AtomicU64,
}

impl<'a> Writer<'a> {
    pub fn new(options: &'a SynthOptions) -> Self {
        Self { options, bytes: AtomicU64::new(0) }
    }

    /// Bytes of all files written so far.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.options.out.join(relative)
    }

    /// Counts the bytes of a file.
    pub fn count(&self, path: &Path) -> Result<()> {
        let size = fs::metadata(path).with_context(|| format!("reading {}", path.display()))?.len();
        self.bytes.fetch_add(size, Ordering::Relaxed);
        Ok(())
    }

    pub fn json(&self, relative: &str, value: &impl Serialize) -> Result<()> {
        let path = self.path(relative);
        write_json(&path, value)?;
        self.count(&path)
    }

    fn text(&self, relative: &str, text: &str) -> Result<()> {
        let path = self.path(relative);
        write_atomic(&path, |out| Ok(out.write_all(text.as_bytes())?))?;
        self.count(&path)
    }

    /// Writes a picture in the dataset's format.
    fn write_rgb(&self, path: &Path, rgb: &RgbImage) -> Result<()> {
        match self.options.format {
            Format::Jpeg { quality } => picture::write_jpeg(path, rgb, quality),
            Format::Png => picture::write_png(path, rgb),
        }
    }

    /// Writes a colour image.
    pub fn rgb(&self, relative: &str, rgb: &RgbImage) -> Result<()> {
        let path = self.path(relative);
        self.write_rgb(&path, rgb)?;
        self.count(&path)
    }

    /// Writes a mask of the image's size.
    pub fn mask(&self, relative: &str, mask: &[bool]) -> Result<()> {
        let (path, size) = (self.path(relative), self.options.size_px);
        let pixels = mask.iter().map(|&v| if v { 255 } else { 0 }).collect();
        let image = GrayImage::from_raw(size, size, pixels).context("the mask has another size")?;
        picture::write_png(&path, &image)?;
        self.count(&path)
    }

    /// Writes a depth image.
    pub fn depth(&self, relative: &str, depth_mm: &[f32], scale: DepthScale) -> Result<()> {
        let (path, size) = (self.path(relative), self.options.size_px);
        scale.write(&path, [size; 2], depth_mm)?;
        self.count(&path)
    }

    /// Writes a frame's colour image, mask and, if asked for, depth.
    pub fn frame(
        &self,
        (split, sequence, frame): (usize, usize, usize),
        rgb: &RgbImage,
        mask: Vec<u8>,
        depth_mm: &[f32],
    ) -> Result<()> {
        let size = self.options.size_px;
        let rgb_path = self.path(&image_path(split, sequence, frame, self.options.format));
        self.write_rgb(&rgb_path, rgb)?;
        self.count(&rgb_path)?;
        let scene = scene_path(split, sequence);
        let mask_path = self.path(&format!("{scene}/mask_visib/{frame:06}_000000.png"));
        let mask = GrayImage::from_raw(size, size, mask).context("the mask has another size")?;
        picture::write_png(&mask_path, &mask)?;
        self.count(&mask_path)?;
        if self.options.depth_png {
            let file = format!("{scene}/depth/{frame:06}.png");
            self.depth(&file, depth_mm, self.options.depth_scale(DIAMETER_MM))?;
        }
        Ok(())
    }

    /// Writes the JSON files of a sequence.
    pub fn sequence(
        &self,
        split: usize,
        plan: &SequencePlan,
        infos: &[FrameObjectInfo],
    ) -> Result<()> {
        let k = camera(self.options.size_px).row_major().to_vec();
        let depth_scale = self.options.depth_scale(DIAMETER_MM);
        let (mut cameras, mut poses, mut visibility) =
            (SceneCamera::new(), SceneGt::new(), SceneGtInfo::new());
        for (i, (frame, info)) in plan.frames.iter().zip(infos).enumerate() {
            let key = i.to_string();
            cameras.insert(key.clone(), FrameCamera { cam_k: k.clone(), depth_scale });
            let (r, t_mm) = (frame.pose.r_row_major().to_vec(), frame.pose.t_array().to_vec());
            poses.insert(key.clone(), vec![FrameObject { r, t_mm, obj_id: OBJ_ID }]);
            visibility.insert(key, vec![info.clone()]);
        }
        let scene = scene_path(split, plan.number);
        self.json(&format!("{scene}/scene_camera.json"), &cameras)?;
        self.json(&format!("{scene}/scene_gt.json"), &poses)?;
        self.json(&format!("{scene}/scene_gt_info.json"), &visibility)
    }

    /// Writes what belongs to the whole dataset; the lists, and after them the description, last.
    pub fn finish(&self, splits: &[Vec<SequencePlan>; 3]) -> Result<()> {
        self.models()?;
        let targets: Vec<_> = splits[2]
            .iter()
            .flat_map(|s| (0..s.frames.len()).map(move |i| (s.number, i)))
            .map(|(scene, im)| {
                json!({"scene_id": scene, "im_id": im, "obj_id": OBJ_ID, "inst_count": 1})
            })
            .collect();
        self.json("test_targets_bop19.json", &targets)?;
        self.text("README.md", &readme(self.options, splits))?;
        for (split, sequences) in splits.iter().enumerate() {
            let mut list = String::new();
            for s in sequences {
                for i in 0..s.frames.len() {
                    list.push_str(&image_path(split, s.number, i, self.options.format));
                    list.push('\n');
                }
            }
            self.text(&format!("{}.txt", SPLITS[split]), &list)?;
        }
        self.describe()
    }

    /// Writes what belongs to a dataset of scenes, the description last.
    pub fn finish_scenes(&self, readme: &str) -> Result<()> {
        self.text("README.md", readme)?;
        self.describe()
    }

    /// The description, with which a dataset is complete.
    fn describe(&self) -> Result<()> {
        let options = serde_json::to_value(self.options).context("writing the options")?;
        self.json(DONE, &Description { renderer: renderer(self.options.layout), options })?;
        remove(&self.path(BEGUN), |p| fs::remove_file(p))
    }

    fn models(&self) -> Result<()> {
        let (mesh, colors) = evaluation_mesh();
        let path = self.path("models/obj_000001.ply");
        fs::create_dir_all(self.path("models"))
            .with_context(|| format!("making the folder of {}", path.display()))?;
        write_ply(&path, &mesh, Some(&colors))?;
        self.count(&path)?;
        let corners = box_corners(&mesh.vertices);
        let (low, size) = (corners[0], corners[7] - corners[0]);
        let diameter = diameter_mm(&mesh.vertices);
        let info = json!({OBJ_ID.to_string(): {
            "diameter": diameter,
            "min_x": low.x, "min_y": low.y, "min_z": low.z,
            "size_x": size.x, "size_y": size.y, "size_z": size.z,
        }});
        self.json("models/models_info.json", &info)?;
        let boxes = [corners.map(|c| [c.x, c.y, c.z])];
        self.json("swisscube_bbox.json", &boxes)
    }
}

fn readme(options: &SynthOptions, splits: &[Vec<SequencePlan>; 3]) -> String {
    let mut text = format!(
        "# Synthetic SwissCube\n\n\
         Every image here is computer-generated by mqat {}: no photograph and no image of the\n\
         SwissCube dataset is among them. The layout is that of SwissCube (BOP).\n\n\
         ```\n{}\n```\n\n| split | images | sequences |\n|---|---|---|\n",
        env!("CARGO_PKG_VERSION"),
        options.command_line()
    );
    for (name, sequences) in SPLITS.iter().zip(splits) {
        let images: usize = sequences.iter().map(|s| s.frames.len()).sum();
        text.push_str(&format!("| {name} | {images} | {} |\n", sequences.len()));
    }
    let attitude = match options.attitude {
        super::Attitude::Full => "uniform over all rotations".to_owned(),
        super::Attitude::WithinDeg(deg) => {
            format!("within {deg} degrees of one nominal attitude (+x, +y and +z faces seen)")
        }
    };
    text.push_str(&format!(
        "\n- Images: {0} x {0} px, SwissCube's camera scaled; depth {1} to {2} mesh diameters of {DIAMETER_MM} mm.\n\
         - Attitudes: {attitude}; tumbling 0 to 5 degrees a frame.\n\
         - Poses map the mesh (mm) into the camera frame: x right, y down, z forward. Pixel (0, 0) is the\n  \
           centre of the top-left pixel.\n\
         - Masks, depths and pixel counts are of the mesh in `models/`; the two antenna rods in the images are\n  \
           not part of it.\n",
        options.size_px, options.depth_d.0, options.depth_d.1
    ));
    text
}
