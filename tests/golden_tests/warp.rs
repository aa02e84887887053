//! Warps, masks, normalisation and re-mapped poses against OpenCV and the original's resize and augmentation.

use mqat::data::warp::{Raster, warp_labels, warp_rgb};
use mqat::data::{Augmentation, InputConfig, remap_pose};
use mqat::geom::{Affine2, Camera, Pose, Vec2, Vec3};
use mqat::io::picture;
use serde_json::Value;

use super::support;

fn warps() -> Value {
    support::json("10_warp/warp.json")
}

fn file(name: &Value) -> std::path::PathBuf {
    support::path(&format!("10_warp/{}", name.as_str().unwrap()))
}

/// The first two rows of a matrix of 6 or 9 numbers.
fn affine(m: &Value) -> Affine2 {
    let m = support::numbers(m);
    Affine2 { m: [[m[0], m[1], m[2]], [m[3], m[4], m[5]]] }
}

fn camera(k: &Value) -> Camera {
    Camera::from_row_major(&support::numbers(k)).unwrap()
}

fn size(warp: &Value) -> (usize, usize) {
    let side = |key: &str| warp[key].as_u64().unwrap() as usize;
    (side("width"), side("height"))
}

/// The warped image and OpenCV's, RGB or labels.
fn warped(warp: &Value, output: &str) -> (Vec<u8>, Vec<u8>) {
    let m = affine(&warp["M"]);
    if warp["interpolation"] == "nearest" {
        assert_eq!(warp["border"], 0);
        // Raw values: the labels 0, 1, 2 are not the mask of one object.
        let labels = |name| image::open(file(name)).unwrap().into_luma8();
        let source = labels(&warp["source"]);
        let (width, height) = (source.width() as usize, source.height() as usize);
        let source = Raster { pixels: source.as_raw(), width, height };
        return (warp_labels(source, &m, size(warp)).unwrap(), labels(&warp[output]).into_raw());
    }
    assert_eq!(warp["interpolation"], "linear");
    assert_eq!(warp["border"], u64::from(mqat::data::warp::IMAGE_BORDER));
    let source = picture::read_rgb(&file(&warp["source"])).unwrap();
    let (width, height) = (source.width() as usize, source.height() as usize);
    let source = Raster { pixels: source.as_raw(), width, height };
    let expected = picture::read_rgb(&file(&warp[output])).unwrap();
    (warp_rgb(source, &m, size(warp)).unwrap(), expected.into_raw())
}

fn differences(warp: &Value, output: &str) -> Vec<u8> {
    let (got, expected) = warped(warp, output);
    assert_eq!(got.len(), expected.len(), "{}", warp[output]);
    got.iter().zip(expected).map(|(&g, e)| g.abs_diff(e)).collect()
}

fn of_kind<'a>(all: &'a Value, kind: &str) -> Vec<&'a Value> {
    let found: Vec<_> =
        all["warps"].as_array().unwrap().iter().filter(|w| w["interpolation"] == kind).collect();
    assert!(!found.is_empty(), "no {kind} warp in the reference data");
    found
}

#[test]
fn images_are_within_a_grey_level_of_exact_bilinear() {
    for warp in of_kind(&warps(), "linear") {
        let off = differences(warp, "output_cv5");
        let (max, count) = (off.iter().max().unwrap(), off.iter().filter(|&&d| d > 0).count());
        println!("{}: max {max}, {count} of {} differ", warp["output_cv5"], off.len());
        assert!(*max <= 1, "{}: off by {max}", warp["output_cv5"]);
        // OpenCV 5's own distance from exact is 2.8e-5 of the values at most; room for the f32 sums.
        assert!(count as f64 <= 2e-4 * off.len() as f64, "{}: {count}", warp["output_cv5"]);
    }
}

#[test]
fn images_are_within_opencv_4s_rounding_of_coordinates() {
    for warp in of_kind(&warps(), "linear") {
        let off = differences(warp, "output");
        let n = off.len() as f64;
        let mean = off.iter().map(|&d| f64::from(d)).sum::<f64>() / n;
        let above_1 = off.iter().filter(|&&d| d > 1).count() as f64 / n;
        assert!(mean <= 0.1, "{}: mean {mean}", warp["output"]);
        assert!(above_1 <= 0.01, "{}: {above_1} above 1", warp["output"]);
        assert!(*off.iter().max().unwrap() <= 8, "{}", warp["output"]);
    }
}

#[test]
fn masks_are_opencvs() {
    for warp in of_kind(&warps(), "nearest") {
        for output in ["output", "output_cv5"] {
            let off = differences(warp, output);
            let count = off.iter().filter(|&&d| d > 0).count();
            println!("{}: {count} of {} differ", warp[output], off.len());
            assert!(count as f64 <= 1e-4 * off.len() as f64, "{}: {count}", warp[output]);
        }
    }
}

#[test]
fn resizing_is_the_map_between_the_cameras() {
    let all = warps();
    let to = camera(&all["internal_K"]);
    assert_eq!(to, InputConfig::default().camera().unwrap());
    for (name, m) in all["resize_M"].as_object().unwrap() {
        let ours = Affine2::between_cameras(&camera(&all["K"][name]), &to);
        for (a, b) in ours.m.as_flattened().iter().zip(affine(m).m.as_flattened()) {
            assert!((a - b).abs() < 1e-9, "{name}: {a} for {b}");
        }
    }
}

#[test]
fn a_draw_makes_the_originals_matrix() {
    for draw in warps()["augmentation"].as_array().unwrap() {
        let cut = |key: &str| draw[key].as_i64().unwrap();
        let augmentation = Augmentation {
            cut_px: [cut("pleft"), cut("ptop")],
            angle_deg: support::number(&draw["ang"]),
            scale: support::number(&draw["scale"]),
        };
        let (width, height) = size(draw);
        let ours = augmentation.affine(width, height);
        for (a, b) in ours.m.as_flattened().iter().zip(affine(&draw["M"]).m.as_flattened()) {
            // The original's is rounded to f32: half a unit in the last place of 592 is 3e-5.
            assert!((a - b).abs() < 5e-5, "{draw}: {a} for {b}");
        }
    }
}

#[test]
fn pixels_are_normalised_as_in_the_original() {
    let all = warps();
    let input = InputConfig::default();
    assert_eq!(support::numbers(&all["pixel_mean_rgb"]), input.pixel_mean);
    assert_eq!(support::numbers(&all["pixel_std_rgb"]), input.pixel_std);
    let crops = support::arrays("10_warp/normalized.safetensors");
    for (name, crop) in all["normalized"].as_object().unwrap() {
        let picture = support::path(&format!("10_warp/{name}.png"));
        let pixels = picture::read_rgb(&picture).unwrap();
        let at = |key: &str| crop[key].as_u64().unwrap() as u32;
        let expected = &crops[&format!("{name}.crop")];
        let (h, w) = (expected.shape[1], expected.shape[2]);
        for (i, &e) in expected.f32().iter().enumerate() {
            let (c, y, x) = (i / (h * w), i / w % h, i % w);
            let pixel = pixels.get_pixel(at("crop_left") + x as u32, at("crop_top") + y as u32);
            let got = (f64::from(pixel.0[c]) / 255.0 - input.pixel_mean[c]) / input.pixel_std[c];
            assert!((got - f64::from(e)).abs() < 1e-5, "{name} {c} {y} {x}: {got} for {e}");
        }
    }
}

#[test]
fn poses_are_remapped_at_least_as_well_as_the_original_does() {
    let all = warps();
    let corners: Vec<Vec3> = all["keypoints_3d_mm"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| Vec3::from_column_slice(&support::numbers(p)))
        .collect();
    for (i, case) in all["poses"].as_array().unwrap().iter().enumerate() {
        let (from, to) = (camera(&case["src_K"]), camera(&case["dst_K"]));
        let m = affine(&case["M"]);
        // The reference's rotations are f32.
        let pose = |r: &str, t: &str| {
            let (r, t) = (support::numbers(&case[r]), support::numbers(&case[t]));
            Pose::from_row_major(&r, &t).unwrap()
        };
        let before = pose("R", "t");
        let expected = pose("new_R", "new_t");
        let targets = support::numbers(&case["target_pixels"]);
        for (x, target) in corners.iter().zip(targets.chunks_exact(2)) {
            let pixel = m.apply(&from.project(&before.apply(x)));
            assert!((pixel - Vec2::new(target[0], target[1])).norm() < 1e-3, "case {i}");
        }
        let moved = remap_pose(&from, &to, &m, &before, &corners).unwrap();
        let limit_px = 1.02 * support::number(&case["residual_px"]) + 1e-3;
        println!(
            "{}: {} px, the original {} px",
            case["kind"],
            moved.mean_residual_px,
            support::number(&case["residual_px"])
        );
        assert!(moved.mean_residual_px <= limit_px, "case {i}: {moved:?}, limit {limit_px} px");
        if case["M_is_float32"] == false {
            // Resizing: the pose of the reference, and the one before.
            for truth in [expected, before] {
                let turn = moved.pose.r * truth.r.transpose();
                let angle_deg = ((turn.trace() - 1.0) / 2.0).clamp(-1.0, 1.0).acos().to_degrees();
                assert!(angle_deg < 0.05, "case {i}: {angle_deg} degrees off");
                let off_mm = (moved.pose.t_mm - truth.t_mm).norm();
                assert!(off_mm < 1e-4 * truth.t_mm.z, "case {i}: {off_mm} mm off");
            }
        }
    }
}
