//! PnP against OpenCV's poses on the same problems.

use std::collections::BTreeMap;

use mqat::geom::{Camera, Pose, Vec2, Vec3, box_corners, refine_pose};
use mqat::pose::{PnpSolution, RansacConfig, epnp, errors, solve_pnp_ransac};
use rand::Rng;
use serde_json::Value;

use crate::support::{Array, arrays, json, number};

const FOLDER: &str = "08_pnp";

/// How far a quantile of ours may be above that of least squares on the true inliers, which the file holds as the
/// reachable optimum, when it is above OpenCV's.
///
/// Some 67 problems a rate of outliers are few: over 1,500 simulated files of the public one's kind (see `simulate`),
/// that optimum itself has one of its 12 medians and 95th percentiles above OpenCV's in 74 % of the files, and one
/// median above 1.15 times OpenCV's or 90th percentile above 1.3 times it in 6 %. Of ours, these factors let pass all
/// but 1 % of the files in either test. In the public file it is the median rotation error without outliers: 0.262
/// degrees of OpenCV's, 0.315 of the optimum, though the optimum is the better one in 40 of the 67 problems and by 10 %
/// in the geometric mean. What chance cannot do is tested over all problems of the file at once.
const CHANCE: Chance = Chance { of_limits: 1.1, of_opencv: 1.2 };

struct Chance {
    /// Where the limit is the README's, a multiple of OpenCV's.
    of_limits: f64,
    /// Where the limit is OpenCV's own quantile.
    of_opencv: f64,
}

/// How far the geometric mean of ours may be above that of least squares on the true inliers: weights that heavy tails
/// and outliers ask for cost about 1 % in Gaussian noise; over 200 problems chance adds 2 %.
const NEAR_OPTIMUM: f64 = 1.05;

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

type Part = fn(&(f64, f64)) -> f64;

/// The two errors of a pair, by their names in the file.
const PARTS: [(&str, Part); 2] =
    [("rotation_error_deg", |e| e.0), ("translation_error_relative", |e| e.1)];

/// Asserts a quantile of ours against a limit from OpenCV's and, `chance` times, the reachable optimum.
fn assert_quantile(group: &Group, q: f64, chance: f64, opencv_limit: impl Fn(&[f64], &str) -> f64) {
    for (name, part) in PARTS {
        let of = |errors: &[(f64, f64)]| errors.iter().map(part).collect::<Vec<f64>>();
        let ours = quantile(&of(&group.errors()), q);
        let opencv = opencv_limit(&of(&group.opencv), name);
        let optimum = chance * quantile(&of(&group.optimum), q);
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
        assert_quantile(group, 0.5, CHANCE.of_limits, |_, name| {
            1.15 * number(&summary[name]["median"])
        });
        assert_quantile(group, 0.9, CHANCE.of_limits, |_, name| {
            1.3 * number(&summary[name]["p90"])
        });
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
            assert_quantile(&group, q, CHANCE.of_opencv, |opencv, _| quantile(opencv, q));
        }
        for (i, (ours, opencv)) in group.errors().iter().zip(&group.opencv).enumerate() {
            let missed = is_solved(*opencv) && !is_solved(*ours);
            assert!(!missed, "{} % outliers, problem {i}: {ours:?}", group.percent);
        }
    }
}

/// Geometric mean of ratios of errors, each within a tenth and ten times: a failure counts ten times.
fn mean_ratio(errors: &[(f64, f64)], others: &[(f64, f64)], part: Part) -> f64 {
    let logs = errors.iter().zip(others).map(|(a, b)| (part(a) / part(b)).clamp(0.1, 10.0).ln());
    (logs.sum::<f64>() / errors.len() as f64).exp()
}

#[test]
fn over_all_problems_errors_are_below_opencvs_and_next_to_the_optimum() {
    let groups = solve_all(&json(&format!("{FOLDER}/pnp.json")));
    let all = |of: fn(&Group) -> Vec<(f64, f64)>| groups.iter().flat_map(of).collect::<Vec<_>>();
    let (ours, opencv) = (all(Group::errors), all(|g| g.opencv.clone()));
    let optimum = all(|g| g.optimum.clone());
    for (name, part) in PARTS {
        let ratio = mean_ratio(&ours, &opencv, part);
        assert!(ratio < 1.0, "{name}: {ratio} of OpenCV's");
        let ratio = mean_ratio(&ours, &optimum, part);
        assert!(ratio < NEAR_OPTIMUM, "{name}: {ratio} of the optimum's");
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
        // The plain solver answers or does not, and never with what is not a number.
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

/// Problems of the file's kind: ten cells that see the corners of a cube from 300 to 3000 mm, noise of 1 px, and outliers.
fn simulated(share: f64, rng: &mut impl Rng) -> (Camera, Vec<Vec3>, Vec<Vec2>, Pose, Vec<usize>) {
    let camera = Camera::new(607.573, 607.573, 512.0, 512.0).unwrap();
    let corners = box_corners(&[[-50.0; 3], [50.0; 3]]);
    let points: Vec<Vec3> = (0..80).map(|i| corners[i % 8]).collect();
    let gauss = |rng: &mut dyn rand::RngCore| {
        let (a, b): (f64, f64) = (rng.random(), rng.random());
        (-2.0 * (1.0 - a).ln()).sqrt() * (2.0 * std::f64::consts::PI * b).cos()
    };
    let turn = nalgebra::Quaternion::from_vector(nalgebra::Vector4::from_fn(|_, _| gauss(rng)));
    let r = *nalgebra::UnitQuaternion::from_quaternion(turn).to_rotation_matrix().matrix();
    let z = rng.random_range(300.0_f64.ln()..3000.0_f64.ln()).exp();
    let center = Vec2::new(rng.random_range(180.0..844.0), rng.random_range(180.0..844.0));
    let truth = Pose { r, t_mm: camera.ray(&center) * z };
    let mut pixels = truth.project(&camera, &points);
    let mut inliers: Vec<usize> = (0..80).collect();
    for _ in 0..(80.0 * share).round() as usize {
        let place = rng.random_range(0..inliers.len());
        let i = inliers.swap_remove(place);
        pixels[i] = Vec2::new(rng.random_range(0.0..1024.0), rng.random_range(0.0..1024.0));
    }
    inliers.iter().for_each(|&i| pixels[i] += Vec2::new(gauss(rng), gauss(rng)));
    (camera, points, pixels, truth, inliers)
}

/// What of the public file is chance: ours, EPnP on the true inliers (the most that OpenCV's EPnP in RANSAC can reach) and
/// least squares on them, over thousands of simulated problems and over draws of as few as the file has. By hand:
/// `cargo test --release --test golden_tests pnp::simulate -- --ignored --nocapture`.
#[test]
#[ignore = "prints measurements"]
fn simulate() {
    const NUM: usize = 5000;
    const IN_FILE: usize = 67;
    let mut rng = mqat::seed::stream(1, &[8]);
    for share in [0.0, 0.2, 0.4] {
        let mut errors: [Vec<(f64, f64)>; 3] = [vec![], vec![], vec![]];
        for i in 0..NUM {
            let (camera, points, pixels, truth, inliers) = simulated(share, &mut rng);
            let config = RansacConfig::default();
            let ours = solve_pnp_ransac(&camera, &points, &pixels, &config, i as u64).unwrap();
            let (x, p): (Vec<Vec3>, Vec<Vec2>) =
                inliers.iter().map(|&i| (points[i], pixels[i])).unzip();
            let plain = epnp(&camera, &x, &p).unwrap();
            let best = refine_pose(&camera, &x, &p, &truth, 50).unwrap().pose;
            for (errors, pose) in errors.iter_mut().zip([&ours.pose, &plain, &best]) {
                errors.push(error_pair(pose, &truth));
            }
        }
        for (name, part) in PARTS {
            let of = |k: usize| errors[k].iter().map(part).collect::<Vec<f64>>();
            let all = [of(0), of(1), of(2)];
            let told: Vec<String> = ["ours", "EPnP on inliers", "least squares on inliers"]
                .iter()
                .zip(&all)
                .map(|(who, e)| {
                    let rms = (e.iter().map(|v| v * v).sum::<f64>() / e.len() as f64).sqrt();
                    let (median, p95) = (quantile(e, 0.5), quantile(e, 0.95));
                    format!("{who}: median {median:.5}, p95 {p95:.5}, rms {rms:.5}")
                })
                .collect();
            println!("{:2.0} % outliers, {name}: {}", 100.0 * share, told.join("; "));
            let mut above = [0; 2];
            for _ in 0..4000 {
                let drawn: Vec<usize> = (0..IN_FILE).map(|_| rng.random_range(0..NUM)).collect();
                let median =
                    |e: &[f64]| quantile(&drawn.iter().map(|&i| e[i]).collect::<Vec<_>>(), 0.5);
                let other = median(&all[1]);
                above[0] += usize::from(median(&all[0]) > other);
                above[1] += usize::from(median(&all[2]) > other);
            }
            println!(
                "   of {IN_FILE} problems the median is above EPnP's: ours in {:.1} %, least squares' in {:.1} %",
                above[0] as f64 / 40.0,
                above[1] as f64 / 40.0
            );
        }
    }
}
