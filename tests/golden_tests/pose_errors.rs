//! Pose errors against bop_toolkit's numbers, tables against the original evaluation's.

use std::collections::BTreeMap;

use mqat::geom::{Affine2, Camera, Pose, Vec2, Vec3, box_corners};
use mqat::pose::vsd::{DepthImages, VsdCost, VsdSettings, vsd};
use mqat::pose::{
    Counting, DepthBins, Estimate, EvalTable, Section, Target, TargetErrors, TargetModel, epnp,
    errors, sample_vertices, score_targets,
};
use serde_json::Value;

use crate::support::{Array, arrays, json, number, numbers, path};

const FOLDER: &str = "09_pose_errors";

fn camera(value: &Value) -> Camera {
    Camera::from_row_major(&numbers(value)).unwrap()
}

/// The vertices of an ASCII PLY file whose first element is `vertex` with x, y, z first.
fn ply_vertices(relative: &str) -> Vec<[f64; 3]> {
    let text = std::fs::read_to_string(path(relative)).unwrap();
    let (header, body) = text.split_once("end_header\n").unwrap();
    let count = header.lines().find_map(|l| l.strip_prefix("element vertex ")).unwrap();
    let vertex = |line: &str| -> [f64; 3] {
        let numbers: Vec<f64> =
            line.split_whitespace().map(|v| f64::from(v.parse::<f32>().unwrap())).collect();
        [numbers[0], numbers[1], numbers[2]]
    };
    body.lines().take(count.trim().parse().unwrap()).map(vertex).collect()
}

/// Row `i` of a tensor `[n, ..]`.
fn row(array: &Array, i: usize) -> Vec<f64> {
    let width: usize = array.shape[1..].iter().product();
    array.f32()[i * width..(i + 1) * width].iter().map(|&v| f64::from(v)).collect()
}

fn pose(r: &[f64], t: &[f64]) -> Pose {
    Pose::from_row_major(r, t).unwrap()
}

fn vectors(values: &[f64]) -> Vec<Vec3> {
    values.chunks_exact(3).map(Vec3::from_column_slice).collect()
}

fn assert_close(what: &str, ours: f64, expected: f64, relative: f64, absolute: f64) {
    let limit = relative * expected.abs() + absolute;
    assert!((ours - expected).abs() <= limit, "{what}: {ours}, expected {expected}");
}

#[test]
fn pairs_have_the_toolkits_errors() {
    let info = json(&format!("{FOLDER}/pairs.json"));
    let data = arrays(&format!("{FOLDER}/pairs.safetensors"));
    let camera = camera(&info["K"]);
    let points = vectors(&data["vertices"].f64());
    let mesh = ply_vertices(&format!("{FOLDER}/{}", info["mesh"].as_str().unwrap()));
    assert_eq!(points, mesh.iter().map(|&v| Vec3::from(v)).collect::<Vec<_>>());
    let symmetries: Vec<Pose> = info["symmetries"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| pose(&numbers(&s["R"]), &numbers(&s["t"])))
        .collect();
    let pairs = info["pairs"].as_array().unwrap();
    assert_eq!(pairs.len(), data["R_gt"].shape[0]);
    let closest = errors::ClosestPoints::new(&points);
    for (i, pair) in pairs.iter().enumerate() {
        let gt = pose(&row(&data["R_gt"], i), &row(&data["t_gt"], i));
        let est = pose(&row(&data["R_est"], i), &row(&data["t_est"], i));
        let alone = [Pose::identity()];
        for (name, ours) in [
            ("add", errors::add_mm(&points, &est, &gt)),
            ("adi", closest.adi_mm(&est, &gt)),
            ("adi", errors::adi_mm(&points, &est, &gt)),
            ("te", errors::te_mm(&est, &gt)),
            ("proj", errors::proj_px(&camera, &points, &est, &gt)),
            ("mssd", errors::mssd_mm(&points, &est, &gt, &alone)),
            ("mssd", errors::mssd_mm(&points, &est, &gt, &[])),
            ("mssd_sym", errors::mssd_mm(&points, &est, &gt, &symmetries)),
            ("mspd", errors::mspd_px(&camera, &points, &est, &gt, &alone)),
            ("mspd_sym", errors::mspd_px(&camera, &points, &est, &gt, &symmetries)),
        ] {
            // The absolute part is rounding where the exact value is 0: points are about 1e3 mm away.
            let what = format!("pair {i} ({}): {name}", pair["kind"]);
            assert_close(&what, ours, number(&pair[name]), 1e-6, 1e-9);
        }
        let what = format!("pair {i}: re");
        assert_close(&what, errors::re_deg(&est, &gt), number(&pair["re"]), 0.0, 1e-5);
    }
}

#[test]
fn vsd_has_the_toolkits_errors() {
    let info = json(&format!("{FOLDER}/vsd.json"));
    let data = arrays(&format!("{FOLDER}/vsd.safetensors"));
    let camera = camera(&info["K"]);
    let width = number(&info["width"]) as usize;
    for (i, case) in info["cases"].as_array().unwrap().iter().enumerate() {
        let image = |name: &str| data[&format!("{i}.{name}")].f32();
        let images = DepthImages {
            width,
            test: image("depth_test"),
            gt: image("depth_gt"),
            est: image("depth_est"),
        };
        for (name, s) in info["settings"].as_object().unwrap() {
            let settings = VsdSettings {
                delta_mm: number(&s["delta_mm"]),
                taus: numbers(&s["taus"]),
                diameter_mm: s["normalized_by_diameter"]
                    .as_bool()
                    .unwrap()
                    .then(|| number(&info["diameter_mm"])),
                cost: serde_json::from_value::<VsdCost>(s["cost_type"].clone()).unwrap(),
            };
            let ours = vsd(&camera, &images, &settings).unwrap();
            let expected = numbers(&case["errors"][name]);
            assert_eq!(ours.len(), expected.len());
            for (ours, expected) in ours.iter().zip(&expected) {
                assert_close(&format!("case {i}, {name}"), *ours, *expected, 0.0, 1e-6);
            }
        }
    }
    // No pixel of either pose.
    let nothing = vec![0.0_f32; image_size(&info)];
    let images = DepthImages { width, test: &nothing, gt: &nothing, est: &nothing };
    let expected = numbers(&info["nothing_visible"]);
    let ours = vsd(&camera, &images, &VsdSettings::bop(number(&info["diameter_mm"]))).unwrap();
    assert!(ours.iter().all(|v| *v == expected[0]));
}

fn image_size(info: &Value) -> usize {
    number(&info["width"]) as usize * number(&info["height"]) as usize
}

/// What one table of the file evaluates.
struct Case {
    targets: Vec<Target>,
    estimates: Vec<Estimate>,
    models: Vec<TargetModel>,
}

fn case(
    data: &BTreeMap<String, Array>,
    name: &str,
    info: &Value,
    camera: &Camera,
    diameters: &[f64],
) -> Case {
    let get = |key: &str| &data[&format!("{name}.{key}")];
    let ids = get("gt_image_class").i64().chunks_exact(2);
    let targets = ids
        .enumerate()
        .map(|(i, id)| {
            let rt = row(get("gt_R_t"), i);
            let pose = pose(&rt[..9], &rt[9..]);
            Target { image: id[0].to_string(), class: id[1] as usize, pose, camera: *camera }
        })
        .collect();
    let ids = get("pred_image_class").i64().chunks_exact(2);
    let estimates = ids
        .enumerate()
        .map(|(i, id)| {
            let srt = row(get("pred_score_R_t"), i);
            let pose = pose(&srt[1..10], &srt[10..]);
            Estimate { image: id[0].to_string(), class: id[1] as usize, score: srt[0], pose }
        })
        .collect();
    let num_classes = number(&info["n_class"]) as usize - 1;
    let models = (0..num_classes)
        .map(|c| {
            let sample = vectors(&get(&format!("sampled_vertices.{c}")).f64());
            let symmetric = info["symmetry_types"].get(format!("cls_{c}")).is_some();
            TargetModel::new(format!("class {c}"), diameters[c], symmetric, &sample).unwrap()
        })
        .collect();
    Case { targets, estimates, models }
}

/// Largest difference, in points, between our percentages and the file's.
fn largest_difference(ours: &EvalTable, expected: &Value) -> f64 {
    let names = [
        ("ADI.05d", "ADI-0.05d"),
        ("ADI.10d", "ADI-0.1d"),
        ("ADI.20d", "ADI-0.2d"),
        ("ADI.50d", "ADI-0.5d"),
        ("REP02px", "REP-2px"),
        ("REP05px", "REP-5px"),
        ("REP10px", "REP-10px"),
        ("REP20px", "REP-20px"),
    ];
    let difference = |section: &Section, bin: usize, entry: &Value| -> f64 {
        let (key, row) = names.iter().find(|(key, _)| entry.get(*key).is_some()).unwrap();
        assert_eq!(entry.as_object().unwrap().len(), 4, "{key}");
        let of = |(key, row): &(&str, &str)| {
            let ours = section.recall(row, bin).unwrap().percent.unwrap();
            entry.get(*key).map_or(0.0, |v| (ours - number(v)).abs())
        };
        assert!(section.recall(row, bin).is_some());
        names.iter().map(of).fold(0.0, f64::max)
    };
    let mut largest = 0.0_f64;
    for kind in ["adi", "rep"] {
        let classes = expected[format!("{kind}_per_class")].as_array().unwrap();
        let sections =
            if ours.classes.is_empty() { std::slice::from_ref(&ours.all) } else { &ours.classes };
        assert_eq!(classes.len(), sections.len());
        for (section, entry) in sections.iter().zip(classes) {
            largest = largest.max(difference(section, ours.bins.len() - 1, entry));
        }
        let bins = expected[format!("{kind}_per_depth_bin")].as_array().unwrap();
        assert_eq!(bins.len(), ours.bins.len() - 1);
        for (bin, entry) in bins.iter().enumerate() {
            largest = largest.max(difference(&ours.all, bin, entry));
        }
    }
    largest
}

fn assert_errors_match(
    name: &str,
    ours: &[TargetErrors],
    data: &BTreeMap<String, Array>,
    classes: usize,
) {
    let get = |key: &str| &data[&format!("{name}.{key}")];
    assert!(ours.iter().all(|e| e.class < classes));
    for (i, e) in ours.iter().enumerate() {
        let what = format!("{name}, target {i}");
        let (mm, px) = (f64::from(get("error_3d_mm").f32()[i]), get("error_2d_px").f32()[i]);
        assert_eq!(e.found, mm >= 0.0, "{what}");
        let speed = row(get("speed_rad_and_relative"), i);
        if e.found {
            // The absolute parts are for errors of nearly 0, stored in float32.
            assert_close(&format!("{what}: mm"), e.headline_mm, mm, 1e-5, 1e-9);
            assert_close(&format!("{what}: px"), e.reproj_px, f64::from(px), 1e-5, 1e-9);
            assert_close(&format!("{what}: e_q"), e.speed.e_q_rad, speed[0], 1e-5, 1e-7);
            assert_close(&format!("{what}: e_t"), e.speed.e_t, speed[1], 1e-5, 1e-9);
        }
    }
}

#[test]
fn tables_have_the_original_percentages() {
    let info = json(&format!("{FOLDER}/tables.json"));
    let data = arrays(&format!("{FOLDER}/tables.safetensors"));
    let camera = camera(&info["K"]);
    let diameters = numbers(&info["mesh_diameters_mm"]);
    for (name, expected) in info["tables"].as_object().unwrap() {
        let Case { targets, estimates, models } = case(&data, name, expected, &camera, &diameters);
        let errors = score_targets(&targets, &estimates, &models, Counting::FirstInList).unwrap();
        assert_errors_match(name, &errors, &data, models.len());
        let table = EvalTable::new(&errors, &models, DepthBins::Equal);
        let range = numbers(&expected["depth_range_mm"]);
        let (low, _) = table.bins[0].limits.unwrap();
        let (_, high) = table.bins[table.bins.len() - 2].limits.unwrap();
        assert_close(name, low, range[0], 1e-9, 0.0);
        assert_close(name, high, range[1], 1e-9, 0.0);
        assert!(largest_difference(&table, expected) < 1e-9, "{name}\n{table}");
        // Both are printed, and the true closest-point recall is never the lower one.
        let last = table.bins.len() - 1;
        let percent = |row: &str| table.all.recall(row, last).unwrap().percent.unwrap();
        assert!(percent(EvalTable::TRUE_ADI) >= percent(EvalTable::HEADLINE));
        assert_eq!(table.headline(), Some(percent(EvalTable::HEADLINE)));
    }
}

#[test]
fn tables_with_remapped_predictions_agree_within_two_targets() {
    let info = json(&format!("{FOLDER}/tables_with_remapping.json"));
    let data = arrays(&format!("{FOLDER}/tables.safetensors"));
    let camera = camera(&info["K"]);
    let internal = Camera::new(303.7865161198519, 303.7865161198519, 256.0, 256.0).unwrap();
    let to_picture = Affine2::between_cameras(&internal, &camera);
    let diameters = numbers(&info["mesh_diameters_mm"]);
    for (name, expected) in info["tables"].as_object().unwrap() {
        let mut plain = expected.clone();
        plain["symmetry_types"] = Value::Object(serde_json::Map::new()); // the older code has none
        let Case { targets, mut estimates, models } =
            case(&data, name, &plain, &camera, &diameters);
        let corners: Vec<Vec<Vec3>> = (0..models.len())
            .map(|c| {
                let file = format!("{FOLDER}/models/obj_{:06}.ply", c + 1);
                box_corners(&ply_vertices(&file)).to_vec()
            })
            .collect();
        estimates.retain(|e| e.class < models.len());
        for e in &mut estimates {
            let points = &corners[e.class];
            let pixels: Vec<Vec2> =
                e.pose.project(&internal, points).iter().map(|p| to_picture.apply(p)).collect();
            e.pose = epnp(&camera, points, &pixels).unwrap();
        }
        let errors = score_targets(&targets, &estimates, &models, Counting::FirstInList).unwrap();
        let table = EvalTable::new(&errors, &models, DepthBins::Equal);
        let difference = largest_difference(&table, expected);
        assert!(difference <= 0.7, "{name}: off by {difference} points\n{table}");
    }
}

#[test]
fn the_drawn_vertices_are_of_the_mesh() {
    let info = json(&format!("{FOLDER}/tables.json"));
    let data = arrays(&format!("{FOLDER}/tables.safetensors"));
    for name in info["tables"].as_object().unwrap().keys() {
        let num_classes = number(&info["tables"][name]["n_class"]) as usize - 1;
        for c in 0..num_classes {
            let mesh = ply_vertices(&format!("{FOLDER}/models/obj_{:06}.ply", c + 1));
            let index = data[&format!("{name}.sampled_index.{c}")].i64();
            let drawn = vectors(&data[&format!("{name}.sampled_vertices.{c}")].f64());
            assert!(index.iter().zip(&drawn).all(|(i, x)| Vec3::from(mesh[*i as usize]) == *x));
            // Our own draw: as many, of the mesh, the same for a seed and another for another.
            let ours = sample_vertices(&mesh, drawn.len(), 5, c);
            assert_eq!(ours.len(), drawn.len());
            assert!(ours.iter().all(|x| mesh.iter().any(|v| Vec3::from(*v) == *x)));
            assert_eq!(ours, sample_vertices(&mesh, drawn.len(), 5, c));
            assert_ne!(ours, sample_vertices(&mesh, drawn.len(), 6, c));
        }
    }
}
