//! A small dataset in memory, predictions for it, and a network that is none of the program's.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use nalgebra::Rotation3;

use anyhow::Result;
use tch::{Device, Kind, Tensor};

use super::options::InferOptions;
use super::prediction::Prediction;
use crate::data::{Annotation, DataConfig, Dataset, Frame, InputConfig, ObjectModel, Share};
use crate::geom::{Affine2, Camera, Corners, Correspondences, Pose, Vec2, Vec3, box_corners};
use crate::io::mesh::Mesh;
use crate::nn::{
    Decode, Decoded, Detection, Engine, Evidence, HostOutputs, NoDetection, OutputShape, Outputs,
};
use crate::pose::RansacConfig;

/// Diameter of the only class, mm.
pub const DIAMETER_MM: f64 = 180.0;

/// 30 images `0.png` to `29.png` with an object each at 1.5 d to 10.2 d (a step of 0.3 d), and `empty.png` without.
pub fn dataset() -> Dataset {
    let vertices: Vec<[f64; 3]> = (0..60)
        .map(|i| {
            let a = f64::from(i);
            [50.0 * (1.7 * a).sin(), 50.0 * (2.3 * a).cos(), 57.0 * (0.9 * a).sin()]
        })
        .collect();
    let corners = box_corners(&vertices);
    let mesh = Mesh { vertices, faces: vec![[0, 1, 2]] };
    let name = "obj_000001".to_owned();
    let model = ObjectModel {
        obj_id: 1,
        name,
        mesh,
        corners,
        diameter_mm: DIAMETER_MM,
        symmetries: Default::default(),
    };
    let camera = Camera::new(600.0, 600.0, 512.0, 512.0).unwrap();
    let frame = |image: String, objects| Frame { image, camera, objects };
    let mut frames: Vec<Frame> = (0..30)
        .map(|i| {
            let a = f64::from(i);
            let r = *Rotation3::from_euler_angles(0.3 * a, 0.7 * a, -0.2 * a).matrix();
            let t_mm = Vec3::new(20.0, -10.0, DIAMETER_MM * (1.5 + 0.3 * a));
            let object = Annotation { class: 0, pose: Pose { r, t_mm }, mask: None };
            frame(format!("{i}.png"), vec![object])
        })
        .collect();
    frames.push(frame("empty.png".into(), Vec::new()));
    Dataset {
        root: PathBuf::from("data/none"),
        models: Arc::new(vec![model]),
        frames,
        skipped: Default::default(),
    }
}

/// Options for images of 128 px in batches of 3.
pub fn options() -> InferOptions {
    let input = InputConfig {
        width: 128,
        height: 128,
        k: [75.0, 0.0, 64.0, 0.0, 75.0, 64.0, 0.0, 0.0, 1.0],
        ..InputConfig::default()
    };
    InferOptions {
        input,
        data: DataConfig { bs_valid: 3, ..DataConfig::default() },
        ransac: RansacConfig::default(),
        seed: 7,
        workers: 2,
        skip_bad: false,
        share: Share::All,
        device: Device::Cpu,
    }
}

/// Where the internal camera sees the corners of the object in an image of [`dataset`].
pub fn see_corners(options: &InferOptions, image: usize) -> [Vec2; 8] {
    let dataset = dataset();
    let frame = &dataset.frames[image];
    let warp = Affine2::between_cameras(&frame.camera, &options.input.camera().unwrap());
    let truth = frame.objects[0].pose;
    dataset.models[0].corners.map(|x| warp.apply(&frame.camera.project(&truth.apply(&x))))
}

/// The first five images of [`dataset`], of different tones and without objects, written into a folder.
pub fn pictures(folder: &Path) -> Dataset {
    let mut dataset = dataset();
    dataset.root = folder.to_owned();
    dataset.frames.truncate(5);
    for (i, frame) in dataset.frames.iter_mut().enumerate() {
        frame.objects.clear();
        let tone = |x: u32, y: u32| image::Rgb([(x / 4) as u8, (y / 4) as u8, 40 * i as u8]);
        image::RgbImage::from_fn(1024, 1024, tone).save(folder.join(&frame.image)).unwrap();
    }
    dataset
}

/// The true poses as predictions.
pub fn predictions_of(dataset: &Dataset) -> Vec<Prediction> {
    dataset
        .frames
        .iter()
        .flat_map(|frame| {
            frame.objects.iter().map(|object| Prediction {
                image: frame.image.clone(),
                class: object.class,
                obj_id: Some(1),
                score: 0.9,
                r: object.pose.r_row_major(),
                t_mm: object.pose.t_array(),
                inliers: 80,
                residual_px: 0.5,
                inlier_px: 0.0,
                sigma: None,
            })
        })
        .collect()
}

/// The outputs of [`CornerEngine`]: x, then y of the corners, px.
fn corner_outputs() -> Vec<OutputShape> {
    vec![OutputShape { name: "corners".to_owned(), shape: vec![16] }]
}

/// A network of one class that sees the same corners everywhere, moved by the mean of the image.
pub struct CornerEngine {
    /// px of the internal camera.
    pub pixels: [Vec2; 8],
}

impl Engine for CornerEngine {
    fn outputs(&self, _width: usize, _height: usize) -> Vec<OutputShape> {
        corner_outputs()
    }

    fn forward(&self, images: &Tensor) -> Result<Outputs> {
        let flat: Vec<f64> = (0..16).map(|i| self.pixels[i % 8][i / 8]).collect();
        let mean = images.mean_dim([1i64, 2, 3].as_slice(), false, Kind::Double).view([-1, 1]);
        let corners = Tensor::from_slice(&flat).view([1, 16]) + mean;
        Ok(Outputs::new(vec![("corners".to_owned(), corners)]))
    }
}

/// Reads the outputs of [`CornerEngine`]; nothing is found where a corner lies left of the image.
pub struct CornerDecoder {
    outputs: Vec<OutputShape>,
    corners: Corners,
}

impl CornerDecoder {
    /// For an object with these corners.
    pub fn new(corners: Corners) -> Self {
        Self { outputs: corner_outputs(), corners }
    }
}

impl Decode for CornerDecoder {
    fn outputs(&self) -> &[OutputShape] {
        &self.outputs
    }

    fn decode(&self, outputs: &HostOutputs, image: usize) -> Vec<Decoded> {
        let (_, values) = outputs.of_image(image).next().unwrap();
        let pixel = |i: usize| Vec2::new(f64::from(values[i]), f64::from(values[i + 8]));
        let found = if values[0] < 0.0 {
            Err(NoDetection { reason: "left", detail: "the first corner is outside".to_owned() })
        } else {
            let correspondences = Correspondences {
                points: self.corners.to_vec(),
                pixels: (0..8).map(pixel).collect(),
                group_size: 8,
            };
            let evidence = Evidence::Correspondences(correspondences);
            Ok(Detection { score: 0.75, evidence })
        };
        vec![Decoded { class: 0, found }]
    }
}
