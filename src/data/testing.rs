//! A small dataset in a temporary folder, for the tests of this room.

use std::fs;
use std::path::Path;

use anyhow::Result;
use image::{GrayImage, Luma, Rgb, RgbImage};
use tempfile::TempDir;

use super::{DataConfig, Dataset, InputConfig, Purpose};

/// The scene folder of every image.
pub const SCENE: &str = "training/seq_000000/000000";
/// The first image.
pub const IMAGE: &str = "training/seq_000000/000000/rgb/000000.png";
/// The mask of the first image's object.
pub const MASK: &str = "training/seq_000000/000000/mask_visib/000000_000000.png";

/// 3 images of 64 x 64 px with a cube of 100 mm at depths of 800, 900 and 1000 mm; internal size 32 x 32 px.
pub struct TinyDataset {
    dir: TempDir,
    pub data: DataConfig,
    pub input: InputConfig,
    pub list: String,
}

impl TinyDataset {
    pub fn new() -> Self {
        Self::with_images(3)
    }

    pub fn with_images(num_images: usize) -> Self {
        let tiny = Self {
            dir: tempfile::tempdir().unwrap(),
            data: DataConfig { mesh_diameters_mm: vec![173.2], ..DataConfig::default() },
            input: InputConfig {
                width: 32,
                height: 32,
                k: [50.0, 0.0, 16.0, 0.0, 50.0, 16.0, 0.0, 0.0, 1.0],
                ..InputConfig::default()
            },
            list: "training.txt".into(),
        };
        let mut list = String::new();
        let (mut cameras, mut gt) = (Vec::new(), Vec::new());
        for i in 0..num_images {
            list += &format!("{SCENE}/rgb/{i:06}.png\n");
            cameras.push(format!(
                "\"{i}\": {{\"cam_K\":[100.0,0.0,32.0,0.0,100.0,32.0,0.0,0.0,1.0]}}"
            ));
            let z = 800.0 + 100.0 * (i % 3) as f64;
            gt.push(format!(
                "\"{i}\": [{{\"cam_R_m2c\":[0.0,-1.0,0.0,1.0,0.0,0.0,0.0,0.0,1.0],\
                 \"cam_t_m2c\":[10.0,-20.0,{z:.1}],\"obj_id\":1}}]"
            ));
            tiny.write_image(&format!("{SCENE}/rgb/{i:06}.png"), 64, i as u8);
            tiny.write_mask(&format!("{SCENE}/mask_visib/{i:06}_000000.png"));
        }
        tiny.write("training.txt", &list);
        tiny.write(&format!("{SCENE}/scene_camera.json"), &format!("{{{}}}", cameras.join(",")));
        tiny.write(&format!("{SCENE}/scene_gt.json"), &format!("{{{}}}", gt.join(",")));
        tiny.add_mesh(1);
        tiny.write_boxes(1);
        tiny
    }

    pub fn root(&self) -> &Path {
        self.dir.path()
    }

    pub fn open(&self, skip_bad: bool) -> Result<Dataset> {
        self.open_for(Purpose::Training, skip_bad)
    }

    pub fn open_for(&self, purpose: Purpose, skip_bad: bool) -> Result<Dataset> {
        Dataset::open(self.root(), &self.list, &self.data, &self.input, purpose, skip_bad)
    }

    pub fn write(&self, file: &str, text: &str) {
        fs::write(self.place(file), text).unwrap();
    }

    pub fn remove(&self, file: &str) {
        fs::remove_file(self.root().join(file)).unwrap();
    }

    /// Replaces each `from` by `to`; one there must be.
    pub fn edit(&self, file: &str, from: &str, to: &str) {
        self.replace(file, from, to, usize::MAX);
    }

    pub fn edit_first(&self, file: &str, from: &str, to: &str) {
        self.replace(file, from, to, 1);
    }

    fn replace(&self, file: &str, from: &str, to: &str, count: usize) {
        let text = fs::read_to_string(self.root().join(file)).unwrap();
        assert!(text.contains(from), "{file} lacks {from:?}");
        self.write(file, &text.replacen(from, to, count));
    }

    /// Cuts the file in half.
    pub fn truncate(&self, file: &str) {
        let bytes = fs::read(self.root().join(file)).unwrap();
        fs::write(self.root().join(file), &bytes[..bytes.len() / 2]).unwrap();
    }

    /// A picture of `width` x 64 px in which each pixel differs from its neighbours.
    pub fn write_image(&self, file: &str, width: u32, seed: u8) {
        let color = |x: u32, y: u32| {
            let hash = (x * 73 + y * 151 + u32::from(seed) * 31) as u8;
            Rgb([hash, hash.wrapping_mul(7), (x * 4) as u8])
        };
        RgbImage::from_fn(width, 64, color).save(self.place(file)).unwrap();
    }

    /// 255 in a rectangle around the object.
    fn write_mask(&self, file: &str) {
        let inside = |x: u32, y: u32| (26..42).contains(&x) && (22..38).contains(&y);
        let value = |x, y| Luma([if inside(x, y) { 255 } else { 0 }]);
        GrayImage::from_fn(64, 64, value).save(self.place(file)).unwrap();
    }

    /// A cube's corners as `models/obj_N.ply`.
    pub fn add_mesh(&self, obj_id: u32) {
        let mut text = String::from(
            "ply\nformat ascii 1.0\nelement vertex 8\nproperty float x\nproperty float y\nproperty float z\n\
             element face 1\nproperty list uchar int vertex_indices\nend_header\n",
        );
        for [x, y, z] in cube() {
            text += &format!("{x} {y} {z}\n");
        }
        text += "3 0 1 2\n";
        self.write(&format!("models/obj_{obj_id:06}.ply"), &text);
    }

    pub fn write_boxes(&self, num_classes: usize) {
        let boxes = vec![cube(); num_classes];
        self.write("swisscube_bbox.json", &serde_json::to_string(&boxes).unwrap());
    }

    fn place(&self, file: &str) -> std::path::PathBuf {
        let path = self.root().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }
}

/// Corners with x slowest and z fastest, mm.
fn cube() -> [[f64; 3]; 8] {
    let side = |i: usize, bit: usize| if i & bit != 0 { 50.0 } else { -50.0 };
    std::array::from_fn(|i| [side(i, 4), side(i, 2), side(i, 1)])
}
