//! 04: from the network's outputs to correspondences and poses.

use mqat::geom::{Camera, Pose, Vec3};
use mqat::pose::{RansacConfig, solve_pnp_ransac};
use mqat::topology::wdr::TargetConfig;
use mqat::topology::wdr::candidates::{CandidateConfig, ClassCandidates, LevelOutput, select};
use serde_json::Value;

use super::support::{Array, arrays, json, number, numbers};

/// Pixels agree to this, px.
const PIXEL_TOLERANCE: f64 = 1e-3;
/// Scores agree to this.
const SCORE_TOLERANCE: f64 = 1e-6;

type Arrays = std::collections::BTreeMap<String, Array>;

fn levels<'a>(file: &'a Arrays, settings: &Value) -> Vec<LevelOutput<'a>> {
    let sizes = numbers(&settings["anchor_sizes"]);
    let strides = numbers(&settings["anchor_strides"]);
    sizes
        .iter()
        .zip(&strides)
        .enumerate()
        .map(|(k, (&anchor_px, &stride_px))| {
            let (cls, reg) = (&file[&format!("cls.{k}")], &file[&format!("reg.{k}")]);
            assert_eq!(cls.shape[0], 1, "one image a case");
            let (h, w) = (cls.shape[2], cls.shape[3]);
            LevelOutput { cls: cls.f32(), reg: reg.f32(), h, w, stride_px, anchor_px }
        })
        .collect()
}

fn counts(value: &Value) -> Vec<usize> {
    numbers(value).iter().map(|&v| v as usize).collect()
}

fn check_selection(id: &str, file: &Arrays, call: &Value, i: usize, found: &ClassCandidates) {
    let get = |what: &str| &file[&format!("call.{i}.{what}")];
    let own_levels: Vec<i64> = found.cells.iter().map(|c| c.level as i64).collect();
    let own_cells: Vec<i64> = found.cells.iter().map(|c| c.cell as i64).collect();
    assert_eq!(own_levels, get("level").i64(), "{id} {i}: levels");
    assert_eq!(own_cells, get("cell").i64(), "{id} {i}: cells");
    for (cell, score) in found.cells.iter().zip(get("score").f64()) {
        assert!((f64::from(cell.score) - score).abs() <= SCORE_TOLERANCE, "{id} {i}: {cell:?}");
    }
    let xy = get("xy").f64();
    assert_eq!(2 * found.pixels.len(), xy.len(), "{id} {i}: pixels");
    for (p, q) in found.pixels.iter().zip(xy.chunks_exact(2)) {
        let distance = (p.x - q[0]).hypot(p.y - q[1]);
        assert!(distance <= PIXEL_TOLERANCE, "{id} {i}: pixel {p} is not {q:?}");
    }
    assert_eq!(found.num_wanted, counts(&call["wanted_per_level"]), "{id} {i}: wanted");
    assert_eq!(found.num_available, counts(&call["available_per_level"]), "{id} {i}: available");
    let size = number(&call["box_size_px"]);
    assert!((found.box_size_px - size).abs() <= PIXEL_TOLERANCE, "{id} {i}: box size");
    let score = number(&call["max_score"]);
    assert!((f64::from(found.score) - score).abs() <= SCORE_TOLERANCE, "{id} {i}: score");
}

/// Rotation (degrees) and translation (share of the distance) between two poses.
fn distance(a: &Pose, b: &Pose) -> (f64, f64) {
    let cosine = ((a.r * b.r.transpose()).trace() - 1.0) / 2.0;
    let degrees = cosine.clamp(-1.0, 1.0).acos().to_degrees();
    (degrees, (a.t_mm - b.t_mm).norm() / b.t_mm.norm())
}

#[test]
fn the_cells_handed_to_pnp_are_the_original_ones() {
    let settings = json("04_postprocess/postprocess.json");
    let config = CandidateConfig {
        max_instances: 1,
        confidence_threshold: number(&settings["confidence_threshold"]),
        targets: TargetConfig {
            positive_num: number(&settings["positive_num"]) as u32,
            positive_lambda: number(&settings["positive_lambda"]),
        },
    };
    let mut num_calls = 0;
    for case in settings["cases"].as_array().unwrap() {
        let id = case["id"].as_str().unwrap();
        let file = arrays(&format!("04_postprocess/{id}.safetensors"));
        let num_classes = number(&case["n_class"]) as usize - 1;
        let found = select(&levels(&file, &settings), num_classes, &config);
        let calls = case["calls"].as_array().unwrap();
        let classes: Vec<usize> = calls.iter().map(|c| number(&c["class_id"]) as usize).collect();
        assert_eq!(found.iter().map(|f| f.class).collect::<Vec<_>>(), classes, "{id}");
        for (i, (call, found)) in calls.iter().zip(&found).enumerate() {
            check_selection(id, &file, call, i, found);
            check_pose(id, &file, call, i, found);
        }
        num_calls += calls.len();
    }
    assert!(num_calls > 0);
}

/// The reference pose is RANSAC's with EPnP alone; ours is refined on its inliers, and drawn otherwise: what must
/// agree is the consensus, and the pose within what the pixels' noise leaves open.
fn check_pose(id: &str, file: &Arrays, call: &Value, i: usize, found: &ClassCandidates) {
    let camera = Camera::from_row_major(&file["K"].f64()).unwrap();
    let corners: Vec<Vec3> = file["keypoints_3d"].f64()[found.class * 24..][..24]
        .chunks_exact(3)
        .map(|x| Vec3::new(x[0], x[1], x[2]))
        .collect();
    let points: Vec<Vec3> = corners.iter().copied().cycle().take(8 * found.cells.len()).collect();
    let xyz = file[&format!("call.{i}.xyz")].f64();
    assert!(points.iter().flat_map(|x| x.iter()).eq(xyz.iter()), "{id} {i}: points");
    let config =
        RansacConfig { inlier_px: number(&call["reprojectionError"]), ..RansacConfig::default() };
    let solution = solve_pnp_ransac(&camera, &points, &found.pixels, &config, i as u64)
        .unwrap_or_else(|| panic!("{id} {i}: no pose"));
    let reference = Pose::from_row_major(&numbers(&call["R"]), &numbers(&call["t"])).unwrap();
    let (degrees, share) = distance(&solution.pose, &reference);
    assert!(degrees < 1.5 && share < 0.015, "{id} {i}: {degrees} deg, {share} of the distance off");
    let inliers = number(&call["inliers"]);
    assert!(
        solution.inliers.len() as f64 >= 0.95 * inliers,
        "{id} {i}: {} inliers",
        solution.inliers.len()
    );
}
