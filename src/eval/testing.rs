//! A small dataset in memory, and predictions for it.

use std::path::PathBuf;
use std::sync::Arc;

use nalgebra::Rotation3;

use super::predictions::Prediction;
use crate::data::{Annotation, Dataset, Frame, ObjectModel};
use crate::geom::{Camera, Pose, Vec3, box_corners};
use crate::io::mesh::Mesh;

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
    let model = ObjectModel { obj_id: 1, name, mesh, corners, diameter_mm: DIAMETER_MM };
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
            })
        })
        .collect()
}
