//! Target assignment and losses of the original (`03_loss`).

use std::collections::BTreeMap;

use mqat::geom::{Camera, Corners, Pose, Vec2, Vec3, nearest_rotation};
use mqat::topology::wdr::{
    AnchorGrid, Assignment, Draw, HeadOutputs, LossConfig, Losses, NetworkConfig, ObjectTarget,
    TargetConfig, assign, losses,
};
use nalgebra::Matrix3;
use serde_json::Value;
use tch::{Kind, Tensor};

use super::support::{Array, arrays, json, number, numbers};

/// What all cases share.
pub(super) struct Setting {
    pub grid: AnchorGrid,
    pub camera: Camera,
    pub targets: TargetConfig,
    pub losses: LossConfig,
    pub corners: Vec<Corners>,
    pub diameters_mm: Vec<f64>,
}

impl Setting {
    fn read(file: &Value) -> Self {
        let size = file["image_size"].as_u64().unwrap() as usize;
        let config = NetworkConfig {
            anchor_sizes: numbers(&file["anchor_sizes"]),
            ..NetworkConfig::widedepth()
        };
        let strides: Vec<f64> = config.strides().into_iter().map(|s| s as f64).collect();
        assert_eq!(strides, numbers(&file["anchor_strides"]));
        let classes = file["keypoints_3d_mm"].as_array().unwrap();
        Self {
            grid: AnchorGrid::new(&config, size, size),
            camera: Camera::from_row_major(&numbers(&file["internal_K"])).unwrap(),
            targets: TargetConfig {
                positive_num: file["positive_num"].as_u64().unwrap() as u32,
                positive_lambda: number(&file["positive_lambda"]),
            },
            losses: loss_config(file),
            corners: classes
                .iter()
                .map(|class| {
                    let points = numbers(class);
                    std::array::from_fn(|i| Vec3::from_row_slice(&points[3 * i..3 * i + 3]))
                })
                .collect(),
            diameters_mm: numbers(&file["mesh_diameters_mm"]),
        }
    }

    /// The objects of image `b`.
    fn objects(&self, data: &BTreeMap<String, Array>, b: usize) -> Vec<ObjectTarget> {
        let r = data[&format!("rotations.{b}")].f64();
        let t = data[&format!("translations.{b}")].f64();
        data[&format!("class_ids.{b}")]
            .i64()
            .iter()
            .enumerate()
            .map(|(i, &class)| {
                let class = class as usize;
                // Read as f32, the matrix is a rotation to 1e-7 only.
                let r = nearest_rotation(&Matrix3::from_row_slice(&r[9 * i..9 * i + 9])).unwrap();
                ObjectTarget {
                    class,
                    pose: Pose { r, t_mm: Vec3::from_row_slice(&t[3 * i..3 * i + 3]) },
                    corners: self.corners[class],
                    diameter_mm: self.diameters_mm[class],
                }
            })
            .collect()
    }

    /// The mask of image `b`.
    fn mask(&self, data: &BTreeMap<String, Array>, b: usize) -> Vec<u8> {
        let mut mask = vec![0; self.grid.width * self.grid.height];
        for run in data[&format!("mask_runs.{b}")].i64().chunks(4) {
            let [y, from, to, value] = [run[0], run[1], run[2], run[3]].map(|v| v as usize);
            mask[y * self.grid.width + from..y * self.grid.width + to].fill(value as u8);
        }
        mask
    }

    pub fn assignments(
        &self,
        data: &BTreeMap<String, Array>,
        num_images: usize,
    ) -> Vec<Assignment> {
        let image = |b| {
            let (objects, mask) = (self.objects(data, b), self.mask(data, b));
            let draw = Draw::FirstInOrder;
            assign(&self.grid, &self.targets, &self.camera, &objects, &mask, draw).unwrap()
        };
        (0..num_images).map(image).collect()
    }
}

fn loss_config(file: &Value) -> LossConfig {
    LossConfig {
        weight_cls: number(&file["loss_weight_cls"]),
        weight_reg: number(&file["loss_weight_reg"]),
        focal_alpha: number(&file["focal_alpha"]),
        focal_gamma: number(&file["focal_gamma"]),
    }
}

fn cases() -> (Value, Setting) {
    let file = json("03_loss/loss.json");
    let setting = Setting::read(&file);
    assert!(!file["cases"].as_array().unwrap().is_empty());
    (file, setting)
}

fn data(case: &Value) -> (String, BTreeMap<String, Array>, usize) {
    let id = case["id"].as_str().unwrap();
    let data = arrays(&format!("03_loss/{id}.safetensors"));
    (id.to_owned(), data, case["images"].as_u64().unwrap() as usize)
}

/// The stored predictions as leaves that want a gradient.
fn predictions(data: &BTreeMap<String, Array>, num_levels: usize) -> HeadOutputs {
    let leaves = |name: &str| {
        (0..num_levels)
            .map(|i| data[&format!("{name}.{i}")].tensor().set_requires_grad(true))
            .collect()
    };
    HeadOutputs { cls: leaves("cls"), reg: leaves("reg") }
}

/// The gradients of all levels, flattened and joined; zeros where there is none.
fn gradients(leaves: &[Tensor]) -> Vec<f64> {
    let flat = |t: &Tensor| {
        let g = if t.grad().defined() { t.grad() } else { t.zeros_like() };
        Vec::<f64>::try_from(g.to_kind(Kind::Double).flatten(0, -1)).unwrap()
    };
    leaves.iter().flat_map(flat).collect()
}

fn assert_near(found: &[f64], expected: &[f64], relative: f64, absolute: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (i, (f, e)) in found.iter().zip(expected).enumerate() {
        let tolerance = relative * e.abs() + absolute;
        assert!((f - e).abs() <= tolerance, "{what}[{i}]: {f}, expected {e} +- {tolerance}");
    }
}

fn run(setting: &Setting, data: &BTreeMap<String, Array>, n: usize) -> (HeadOutputs, Losses) {
    let outputs = predictions(data, setting.grid.levels.len());
    let assignments = setting.assignments(data, n);
    let losses =
        losses(&outputs, &setting.grid, &setting.camera, &assignments, &setting.losses).unwrap();
    losses.total().backward();
    (outputs, losses)
}

#[test]
fn the_same_cells_answer_for_the_same_objects() {
    let (file, setting) = cases();
    for case in file["cases"].as_array().unwrap() {
        let (id, data, n) = data(case);
        let assignments = setting.assignments(&data, n);
        for (b, a) in assignments.iter().enumerate() {
            let what = format!("{id}, image {b}");
            let labels: Vec<i64> = a.labels.iter().map(|&l| i64::from(l)).collect();
            assert_eq!(labels, data[&format!("labels.{b}")].i64(), "{what}");
            let cells: Vec<i64> = a.positives.iter().map(|p| p.cell as i64).collect();
            assert_eq!(cells, data[&format!("positive_index.{b}")].i64(), "{what}");
            for (label, count) in case["label_counts"][b].as_object().unwrap() {
                let label: i64 = label.parse().unwrap();
                let found = labels.iter().filter(|&&l| l == label).count();
                assert_eq!(found as u64, count.as_u64().unwrap(), "{what}, label {label}");
            }
        }
        for stored in case["objects"].as_array().unwrap() {
            let at = |key: &str| stored[key].as_u64().unwrap() as usize;
            let object = &assignments[at("image")].objects[at("index")];
            let what = format!("{id}: object {} of image {}", at("index"), at("image"));
            assert_eq!(object.class, at("class_id"), "{what}");
            let counts = |key: &str| numbers(&stored[key]);
            let found = |pick: fn(&mqat::topology::wdr::LevelCount) -> usize| {
                object.levels.iter().map(|l| pick(l) as f64).collect::<Vec<_>>()
            };
            assert_eq!(found(|l| l.on_mask), counts("in_mask_per_level"), "{what}");
            assert_eq!(found(|l| l.taken), counts("taken_per_level"), "{what}");
            // The original gives an object without a visible pixel an empty box; ours keeps its size.
            let box_xyxy = numbers(&stored["box_xyxy"]);
            if box_xyxy.iter().any(|&v| v != 0.0) {
                assert_eq!(found(|l| l.wanted), counts("wanted_per_level"), "{what}");
                assert_near(&[object.span_px], &[number(&stored["box_span"])], 1e-6, 0.0, &what);
                let edge = |axis: usize, largest: bool| {
                    let v = object.pixels.iter().map(|p| p[axis]);
                    if largest { v.fold(f64::MIN, f64::max) } else { v.fold(f64::MAX, f64::min) }
                };
                let found = [edge(0, false), edge(1, false), edge(0, true), edge(1, true)];
                assert_near(&found, &box_xyxy, 1e-6, 1e-4, &what);
            }
        }
    }
}

#[test]
fn the_same_targets_are_regressed() {
    let (file, setting) = cases();
    let mut num_targets = 0;
    for case in file["cases"].as_array().unwrap() {
        let (id, data, n) = data(case);
        for (b, a) in setting.assignments(&data, n).iter().enumerate() {
            let Some(targets) = data.get(&format!("positive_reg_targets.{b}")) else {
                assert!(a.positives.is_empty(), "{id}, image {b}");
                continue;
            };
            let corners = data[&format!("positive_keypoints_camera_mm.{b}")].f64();
            let boxes = data[&format!("positive_boxes.{b}")].f64();
            assert_eq!(targets.shape[0], a.positives.len());
            for (i, p) in a.positives.iter().enumerate() {
                let what = format!("{id}, image {b}, positive {i}");
                let object = &a.objects[p.object];
                let own = setting.grid.encode(p.cell, &object.pixels);
                assert_near(&own, &targets.f64()[16 * i..16 * i + 16], 0.0, 1e-4, &what);
                let own: Vec<f64> = object.corners_cam_mm.iter().flatten().copied().collect();
                assert_near(&own, &corners[24 * i..24 * i + 24], 1e-6, 1e-4, &what);
                let x = |axis: usize| object.pixels.iter().map(move |p| p[axis]);
                let own = [
                    x(0).fold(f64::MAX, f64::min),
                    x(1).fold(f64::MAX, f64::min),
                    x(0).fold(f64::MIN, f64::max),
                    x(1).fold(f64::MIN, f64::max),
                ];
                assert_near(&own, &boxes[4 * i..4 * i + 4], 1e-6, 1e-3, &what);
                num_targets += 1;
            }
        }
    }
    assert!(num_targets > 0);
}

#[test]
fn losses_and_gradients_are_the_originals() {
    let (file, setting) = cases();
    for case in file["cases"].as_array().unwrap() {
        let (id, data, n) = data(case);
        let (outputs, losses) = run(&setting, &data, n);
        let value = |t: &Tensor| t.double_value(&[]);
        let stored = |key: &str| number(&case[key]);
        assert_near(&[value(&losses.cls)], &[stored("loss_cls")], 2e-5, 0.0, &id);
        let expected: Vec<f64> = (0..setting.grid.levels.len())
            .flat_map(|i| data[&format!("grad_cls.{i}")].f64())
            .collect();
        let what = format!("{id}, gradient of the logits");
        assert_near(&gradients(&outputs.cls), &expected, 1e-4, 1e-7, &what);

        let own = gradients(&outputs.reg);
        let what = format!("{id}, gradient of the regressions");
        let mut expected = vec![0.0; own.len()];
        match data.get("grad_reg_index") {
            Some(index) => {
                assert_near(&[value(&losses.reg)], &[stored("loss_reg")], 2e-5, 0.0, &id);
                for (&i, g) in index.i64().iter().zip(data["grad_reg_value"].f64()) {
                    expected[i as usize] = g;
                }
            }
            None => {
                // The original's plain sum of all regressions when nothing is positive: ours is 0.
                assert_eq!(losses.num_positive, 0, "{id}");
                assert_eq!(value(&losses.reg), 0.0, "{id}");
                assert!(losses.reg.requires_grad(), "{id}: the graph is kept");
            }
        }
        assert_near(&own, &expected, 1e-4, 1e-7, &what);
    }
}

/// The table of single focal losses, as a batch of one image whose single level has a cell a row.
#[test]
fn the_focal_loss_is_exact_at_the_clamp() {
    let (file, setting) = cases();
    let focal = &file["focal"];
    let logits = numbers(&focal["logits"]);
    let labels: Vec<i32> = numbers(&focal["targets"]).into_iter().map(|v| v as i32).collect();
    let num_classes = logits.len() / labels.len();
    let config =
        NetworkConfig { finest_level: 5, anchor_sizes: vec![1.0], ..NetworkConfig::widedepth() };
    let grid = AnchorGrid::new(&config, 32, 32 * labels.len());
    let losses_of = |labels: Vec<i32>| {
        let by_cell: Vec<f32> = logits.iter().map(|&v| v as f32).collect();
        let cells = labels.len() as i64;
        let x = Tensor::from_slice(&by_cell)
            .reshape([1, cells, 1, num_classes as i64])
            .permute([0, 3, 1, 2])
            .contiguous()
            .set_requires_grad(true);
        let reg = Tensor::zeros([1, 16 * num_classes as i64, cells, 1], tch::kind::FLOAT_CPU);
        let outputs = HeadOutputs { cls: vec![x.shallow_clone()], reg: vec![reg] };
        let assignment = Assignment { labels, positives: vec![], objects: vec![] };
        let one = LossConfig { weight_cls: 1.0, ..loss_config(&file) };
        let found = losses(&outputs, &grid, &setting.camera, &[assignment], &one).unwrap();
        found.cls.backward();
        let grad: Vec<f64> =
            x.grad().permute([0, 2, 3, 1]).to_kind(Kind::Double).flatten(0, -1).try_into().unwrap();
        (found.cls.double_value(&[]), grad)
    };
    let (sum, grad) = losses_of(labels.clone());
    assert_near(&[sum], &[number(&focal["sum"])], 2e-5, 0.0, "sum");
    assert_near(&grad, &numbers(&focal["grad"]), 1e-4, 1e-7, "gradient");
    for (row, expected) in numbers(&focal["per_row"]).into_iter().enumerate() {
        let only: Vec<i32> =
            labels.iter().enumerate().map(|(i, &l)| if i == row { l } else { -1 }).collect();
        assert_near(&[losses_of(only).0], &[expected], 2e-5, 0.0, &format!("row {row}"));
    }
}

#[test]
fn targets_are_coded_and_decoded_like_the_originals() {
    let (file, mut setting) = cases();
    // Anchors anywhere in a larger image.
    let config = NetworkConfig {
        anchor_sizes: numbers(&file["anchor_sizes"]),
        ..NetworkConfig::widedepth()
    };
    setting.grid = AnchorGrid::new(&config, 4 * setting.grid.width, 4 * setting.grid.height);
    let coder = arrays("03_loss/coder.safetensors");
    let (r, t) = (coder["R"].f64(), coder["t"].f64());
    let (encoded, decoded) = (coder["encoded"].f64(), coder["decoded_xy"].f64());
    for (i, anchor) in coder["anchors"].f64().chunks(4).enumerate() {
        let center = [(anchor[0] + anchor[2]) / 2.0, (anchor[1] + anchor[3]) / 2.0];
        let size = anchor[2] - anchor[0] + 1.0;
        let cell = (0..setting.grid.num_cells())
            .find(|&c| {
                setting.grid.centers_px[c] == center && setting.grid.level_of(c).size_px == size
            })
            .expect("the anchor is one of the grid");
        let rotation = nearest_rotation(&Matrix3::from_row_slice(&r[9 * i..9 * i + 9])).unwrap();
        let pose = Pose { r: rotation, t_mm: Vec3::from_row_slice(&t[3 * i..3 * i + 3]) };
        let pixels: [Vec2; 8] =
            setting.corners[0].map(|corner| setting.camera.project(&pose.apply(&corner)));
        let expected = &encoded[16 * i..16 * i + 16];
        let what = format!("anchor {i}");
        assert_near(&setting.grid.encode(cell, &pixels), expected, 0.0, 1e-4, &what);
        let back = setting.grid.decode(cell, &std::array::from_fn(|k| expected[k]));
        let own: Vec<f64> = back.iter().map(|p| p.x).chain(back.iter().map(|p| p.y)).collect();
        assert_near(&own, &decoded[16 * i..16 * i + 16], 0.0, 1e-3, &what);
    }
}
