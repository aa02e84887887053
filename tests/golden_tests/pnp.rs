//! PnP against OpenCV's poses on the same problems.

use std::collections::BTreeMap;

use mqat::geom::{Camera, Pose, Vec2, Vec3};
use mqat::pose::{PnpSolution, RansacConfig, epnp, errors, solve_pnp_ransac};
use serde_json::Value;

use crate::support::{Array, arrays, json, number};

const FOLDER: &str = "08_pnp";

/// How far a median or percentile of ours may be above that of least squares on the true inliers, which the file
/// holds as the reachable optimum: between estimators of equal mean error the medians of 67 problems move by
/// up to 17 %.
const CHANCE: f64 = 1.2;

fn row(array: &Array, i: usize) -> Vec<f64> {
    let width: usize = array.shape[1..].iter().product();
    array.f32()[i * width..(i + 1) * width].iter().map(|&v| f64::from(v)).collect()
}

fn points(values: &[f64]) -> Vec<Vec3> {
    values.chunks_exact(3).map(Vec3::from_column_slice).collect()
}

fn pixels(values: &[f64]) -> Vec<Vec2> {
    values.chunks_exact(2).map(Vec2::from_column_slice).collect()
}

fn config(info: &Value) -> RansacConfig {
    RansacConfig {
        inlier_px: number(&info["call"]["reprojectionError"]),
        max_iterations: number(&info["call"]["iterationsCount"]) as u32,
        confidence: number(&info["call"]["confidence"]),
        ..RansacConfig::default()
    }
}

fn camera(data: &BTreeMap<String, Array>) -> Camera {
    Camera::from_row_major(&data["K"].f64()).unwrap()
}

fn truth(data: &BTreeMap<String, Array>, prefix: &str, i: usize) -> Pose {
    let (r, t) = (&data[&format!("{prefix}R_gt")], &data[&format!("{prefix}t_gt")]);
    Pose::from_row_major(&row(r, i), &row(t, i)).unwrap()
}

/// Rotation (degrees) and translation error (relative to the depth), as the file has them.
fn error_pair(pose: &Pose, gt: &Pose) -> (f64, f64) {
    // By the chord: the arc cosine has no digits below 0.02 degrees where R comes from float32.
    let chord = (pose.r - gt.r).norm() / 8.0_f64.sqrt();
    (2.0 * chord.min(1.0).asin().to_degrees(), errors::te_mm(pose, gt) / gt.t_mm.z)
}

fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[place.floor() as usize], sorted[place.ceil() as usize]);
    if low == high { low } else { low + (high - low) * place.fract() }
}

fn is_solved(error: (f64, f64)) -> bool {
    error.0 < 5.0 && error.1 < 0.05
}

/// The problems of one outlier fraction: our solutions beside the file's numbers.
struct Group {
    percent: i64,
    ours: Vec<Option<(f64, f64)>>,
    num_inliers: Vec<f64>,
    opencv: Vec<(f64, f64)>,
    optimum: Vec<(f64, f64)>,
}

impl Group {
    /// Errors of ours, where a failure is the worst.
    fn errors(&self) -> Vec<(f64, f64)> {
        self.ours.iter().map(|e| e.unwrap_or((f64::INFINITY, f64::INFINITY))).collect()
    }
}

fn solve_all(info: &Value) -> Vec<Group> {
    let data = arrays(&format!("{FOLDER}/pnp.safetensors"));
    let (camera, config) = (camera(&data), config(info));
    let xyz = points(&data["xyz"].f64());
    let mut groups: BTreeMap<i64, Group> = BTreeMap::new();
    for i in 0..data["xy"].shape[0] {
        let percent = (f64::from(data["outlier_fraction"].f32()[i]) * 100.0).round() as i64;
        let group = groups.entry(percent).or_insert_with(|| Group {
            percent,
            ours: vec![],
            num_inliers: vec![],
            opencv: vec![],
            optimum: vec![],
        });
        let xy = pixels(&row(&data["xy"], i));
        let solution: Option<PnpSolution> = solve_pnp_ransac(&camera, &xyz, &xy, &config, i as u64);
        let gt = truth(&data, "", i);
        group.ours.push(solution.as_ref().map(|s| error_pair(&s.pose, &gt)));
        group.num_inliers.push(solution.map_or(0.0, |s| s.inliers.len() as f64));
        let stored = |prefix: &str| {
            let of = |name: &str| f64::from(data[&format!("{prefix}{name}")].f32()[i]);
            let pair = (of("rotation_error_deg"), of("translation_error_relative"));
            // A pose that is not a number is OpenCV's failure.
            let failed = pair.0.is_nan() || pair.1.is_nan();
            if failed { (f64::INFINITY, f64::INFINITY) } else { pair }
        };
        group.opencv.push(stored(""));
        group.optimum.push(stored("least_squares_"));
    }
    groups.into_values().collect()
}

/// Asserts a quantile of ours against a limit from OpenCV's and against the reachable optimum.
fn assert_quantile(group: &Group, q: f64, opencv_limit: impl Fn(&[f64], &str) -> f64) {
    type Part = fn(&(f64, f64)) -> f64;
    let parts: [(&str, Part); 2] =
        [("rotation_error_deg", |e| e.0), ("translation_error_relative", |e| e.1)];
    for (name, part) in parts {
        let of = |errors: &[(f64, f64)]| errors.iter().map(part).collect::<Vec<f64>>();
        let ours = quantile(&of(&group.errors()), q);
        let opencv = opencv_limit(&of(&group.opencv), name);
        // Least squares on the true inliers is itself above OpenCV's median now and then (as at 0 % outliers in the
        // public set: 0.3150 against 0.2617 degrees), and no estimator beats it but by chance.
        let optimum = CHANCE * quantile(&of(&group.optimum), q);
        assert!(
            ours <= opencv.max(optimum),
            "{} % outliers, {name}, quantile {q}: {ours}, limits {opencv} and {optimum}",
            group.percent
        );
    }
}

#[test]
fn errors_stay_within_the_tolerance_of_opencvs() {
    let info = json(&format!("{FOLDER}/pnp.json"));
    let groups = solve_all(&info);
    assert_eq!(groups.len(), info["summary"].as_object().unwrap().len());
    for group in &groups {
        let summary = &info["summary"][format!("outliers_{}_percent", group.percent)];
        assert_eq!(number(&summary["problems"]) as usize, group.ours.len());
        assert_quantile(group, 0.5, |_, name| 1.15 * number(&summary[name]["median"]));
        assert_quantile(group, 0.9, |_, name| 1.3 * number(&summary[name]["p90"]));
        let num_solved = group.errors().iter().filter(|e| is_solved(**e)).count();
        assert!(num_solved as f64 >= number(&summary["solved_within_5deg_and_5_percent"]));
        let inliers = quantile(&group.num_inliers, 0.5);
        assert!(inliers >= number(&summary["inliers"]["median"]), "{inliers} inliers");
    }
}

#[test]
fn errors_are_at_most_opencvs_and_nothing_it_solves_is_missed() {
    let info = json(&format!("{FOLDER}/pnp.json"));
    for group in solve_all(&info) {
        for q in [0.5, 0.95] {
            assert_quantile(&group, q, |opencv, _| quantile(opencv, q));
        }
        for (i, (ours, opencv)) in group.errors().iter().zip(&group.opencv).enumerate() {
            let missed = is_solved(*opencv) && !is_solved(*ours);
            assert!(!missed, "{} % outliers, problem {i}: {ours:?}", group.percent);
        }
    }
}

#[test]
fn plain_epnp_is_as_good_as_opencvs() {
    let info = json(&format!("{FOLDER}/pnp.json"));
    let data = arrays(&format!("{FOLDER}/pnp.safetensors"));
    let camera = camera(&data);
    let xyz = points(&data["xyz"].f64());
    let mut noisy: Vec<(f64, f64)> = vec![];
    let mut noisy_opencv: Vec<f64> = vec![];
    for i in 0..data["epnp.n_points"].shape[0] {
        let n = data["epnp.n_points"].i64()[i] as usize;
        let xy = pixels(&row(&data["epnp.xy"], i)[..2 * n]);
        let pose = epnp(&camera, &xyz[..n], &xy).unwrap();
        let (rotation, translation) = error_pair(&pose, &truth(&data, "epnp.", i));
        if data["epnp.noise_px"].f32()[i] == 0.0 {
            assert!(rotation < 1e-2 && translation < 1e-4, "{i}: {rotation} {translation}");
        } else {
            noisy.push((rotation, translation));
            noisy_opencv.push(f64::from(data["epnp.rotation_error_deg"].f32()[i]));
        }
    }
    // The same algorithm on the same pixels: the same errors but for rounding.
    let rotations: Vec<f64> = noisy.iter().map(|e| e.0).collect();
    let median = quantile(&rotations, 0.5);
    assert!(median <= 1.02 * quantile(&noisy_opencv, 0.5), "{median}");
    for (key, summary) in info["epnp_summary"].as_object().unwrap() {
        if key != "noise_0" {
            let worst = noisy.iter().map(|e| e.1).fold(0.0, f64::max);
            assert!(worst <= 1.1 * number(&summary["translation_error_relative_max"]), "{worst}");
        }
    }
}

#[test]
fn degenerate_problems_have_a_good_pose_or_none() {
    let info = json(&format!("{FOLDER}/pnp.json"));
    let camera = camera(&arrays(&format!("{FOLDER}/pnp.safetensors")));
    let data = arrays(&format!("{FOLDER}/degenerate.safetensors"));
    let gt = Pose::from_row_major(&data["degenerate.R_gt"].f64(), &data["degenerate.t_gt"].f64())
        .unwrap();
    let config = config(&info);
    for (name, opencv) in info["degenerate"].as_object().unwrap() {
        let get = |key: &str| data.get(&format!("degenerate.{name}.{key}")).map(Array::f64);
        let xyz = points(&get("xyz").unwrap_or_default());
        let xy = pixels(&get("xy").unwrap_or_default());
        // OpenCV's pose is the true one, or worthless, or there is none.
        let is_good = opencv["returned"].as_bool() == Some(true)
            && is_solved((
                number(&opencv["rotation_error_deg"]),
                number(&opencv["translation_error_relative"]),
            ));
        for seed in 0..20 {
            let ours = solve_pnp_ransac(&camera, &xyz, &xy, &config, seed);
            if is_good {
                let (rotation, translation) = error_pair(&ours.unwrap().pose, &gt);
                assert!(
                    rotation < 1e-2 && translation < 1e-4,
                    "{name}, seed {seed}: {rotation} {translation}"
                );
            } else {
                assert!(ours.is_none(), "{name}, seed {seed}: {ours:?}");
            }
        }
        // The plain solver answers or does not, and never with what is no number.
        assert!(epnp(&camera, &xyz, &xy).is_none_or(|p| p.is_finite()), "{name}");
    }
}

/// Time and accuracy by hand: `cargo test --release --test golden_tests pnp::measure -- --ignored --nocapture`.
#[test]
#[ignore = "prints measurements"]
fn measure() {
    let info = json(&format!("{FOLDER}/pnp.json"));
    for group in solve_all(&info) {
        let print = |name: &str, errors: &[(f64, f64)]| {
            let (r, t): (Vec<f64>, Vec<f64>) = errors.iter().copied().unzip();
            println!(
                "{:2} % {name:8} rotation, deg: median {:.4}, p95 {:.4}; translation: {:.5}, {:.5}",
                group.percent,
                quantile(&r, 0.5),
                quantile(&r, 0.95),
                quantile(&t, 0.5),
                quantile(&t, 0.95)
            );
        };
        print("ours", &group.errors());
        print("OpenCV", &group.opencv);
        print("optimum", &group.optimum);
    }
    let data = arrays(&format!("{FOLDER}/pnp.safetensors"));
    let (camera, config) = (camera(&data), config(&info));
    let xyz = points(&data["xyz"].f64());
    let problems: Vec<Vec<Vec2>> =
        (0..data["xy"].shape[0]).map(|i| pixels(&row(&data["xy"], i))).collect();
    let mut rounds: Vec<f64> = (0..9)
        .map(|_| {
            let start = std::time::Instant::now();
            for xy in &problems {
                std::hint::black_box(solve_pnp_ransac(&camera, &xyz, xy, &config, 1));
            }
            start.elapsed().as_secs_f64() / problems.len() as f64
        })
        .collect();
    rounds.sort_by(f64::total_cmp);
    println!("{:.3} ms a problem of {} points (median of 9 rounds)", 1e3 * rounds[4], xyz.len());
}
