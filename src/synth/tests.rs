//! What a reader of the files sees, checked without the renderer's own code.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::data::DepthScale;
use crate::data::bop::{FrameObject, SceneCamera, SceneGt, SceneGtInfo};
use crate::geom::{Camera, Pose, Vec2, Vec3, box_corners};
use crate::io::mesh::{Mesh, read_ply};
use crate::io::{picture, read_json};

fn small(out: &Path) -> SynthOptions {
    SynthOptions {
        out: out.to_owned(),
        num_train: 4,
        num_val: 2,
        num_test: 3,
        size_px: 64,
        depth_d: (1.5, 4.0),
        format: Format::Png,
        depth_png: true,
        jobs: 1,
        ..SynthOptions::default()
    }
}

fn make(options: &SynthOptions) -> SynthReport {
    generate(options, &|_, _| {}).unwrap()
}

/// All files below `root`, by relative path.
fn tree(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let relative = path.strip_prefix(root).unwrap().to_owned();
                files.insert(relative, fs::read(&path).unwrap());
            }
        }
    }
    files
}

/// One image as the files describe it.
struct Read {
    image: PathBuf,
    scene: PathBuf,
    number: usize,
    camera: Camera,
    depth_scale: DepthScale,
    object: FrameObject,
    pose: Pose,
    info: FrameObjectInfo,
}

impl Read {
    fn mask(&self) -> image::GrayImage {
        let name = format!("mask_visib/{:06}_000000.png", self.number);
        picture::read_mask(&self.scene.join(name)).unwrap()
    }
}

fn read(root: &Path, list: &str) -> Vec<Read> {
    fs::read_to_string(root.join(list))
        .unwrap()
        .lines()
        .map(|line| {
            let image = root.join(line);
            let scene = image.parent().unwrap().parent().unwrap().to_owned();
            let number: usize = image.file_stem().unwrap().to_str().unwrap().parse().unwrap();
            let key = number.to_string();
            let cameras: SceneCamera = read_json(&scene.join("scene_camera.json")).unwrap();
            let poses: SceneGt = read_json(&scene.join("scene_gt.json")).unwrap();
            let infos: SceneGtInfo = read_json(&scene.join("scene_gt_info.json")).unwrap();
            let object = poses[&key][0].clone();
            Read {
                camera: Camera::from_row_major(&cameras[&key].cam_k).unwrap(),
                depth_scale: cameras[&key].depth_scale,
                pose: Pose::from_row_major(&object.r, &object.t_mm).unwrap(),
                info: infos[&key][0].clone(),
                image,
                scene,
                number,
                object,
            }
        })
        .collect()
}

/// z of the nearest triangle at every pixel centre by plain rasterization, infinite where there is none.
fn rasterized(mesh: &Mesh, camera: &Camera, pose: &Pose, size: usize) -> Vec<f64> {
    let points: Vec<Vec3> = mesh.vertices.iter().map(|v| pose.apply(&Vec3::from(*v))).collect();
    let pixels: Vec<Vec2> = points.iter().map(|p| camera.project(p)).collect();
    let mut depth = vec![f64::INFINITY; size * size];
    for face in &mesh.faces {
        let [a, b, c] = face.map(|i| pixels[i as usize]);
        let z = face.map(|i| points[i as usize].z);
        let area = (b - a).perp(&(c - a));
        let range = |axis: usize| {
            let low = a[axis].min(b[axis]).min(c[axis]).ceil().max(0.0) as usize;
            let high = a[axis].max(b[axis]).max(c[axis]).floor().min(size as f64 - 1.0);
            low..(high + 1.0).max(0.0) as usize
        };
        for y in range(1) {
            for x in range(0) {
                let p = Vec2::new(x as f64, y as f64);
                let weights =
                    [(c - b).perp(&(p - b)), (a - c).perp(&(p - c)), (b - a).perp(&(p - a))]
                        .map(|w| w / area);
                if weights.iter().all(|&w| w >= 0.0) {
                    // 1/z is linear in the image.
                    let at = 1.0 / (0..3).map(|i| weights[i] / z[i]).sum::<f64>();
                    let pixel = &mut depth[y * size + x];
                    *pixel = pixel.min(at);
                }
            }
        }
    }
    depth
}

#[test]
fn threads_do_not_change_a_byte_and_the_seed_does() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|n| folder.path().join(n));
    let first = small(&a);
    let report = make(&first);
    make(&SynthOptions { out: b.clone(), jobs: 4, ..first.clone() });
    make(&SynthOptions { out: c.clone(), seed: 1, ..first.clone() });
    let (a, b, c) = (tree(&a), tree(&b), tree(&c));
    assert!(a == b, "1 and 4 threads give other files");
    let differ = a.iter().filter(|(path, bytes)| c.get(*path) != Some(bytes)).count();
    assert!(differ > 20, "another seed changes {differ} files only");
    assert_eq!(report.images, 9);
    assert_eq!(report.bytes, a.values().map(|v| v.len() as u64).sum::<u64>());
}

#[test]
fn files_hold_what_the_layout_promises() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let options = small(root);
    make(&options);
    assert_eq!(finished(root).unwrap().as_ref().map(|o| o.same_data(&options)), Some(true));

    let mut sequences = Vec::new();
    for (list, count) in [("training.txt", 4), ("validation.txt", 2), ("testing.txt", 3)] {
        let frames = read(root, list);
        assert_eq!(frames.len(), count);
        for f in &frames {
            let rgb = picture::read_rgb(&f.image).unwrap();
            let mask = f.mask();
            assert_eq!((rgb.dimensions(), mask.dimensions()), ((64, 64), (64, 64)));
            assert!(mask.as_raw().iter().all(|v| [0, 255].contains(v)));
            let visible = mask.as_raw().iter().filter(|&&v| v == 255).count() as u64;
            assert_eq!(f.info.px_count_visib, visible);
            assert!(f.info.px_count_all >= visible && f.info.visib_fract >= 0.7);
            assert_eq!(f.object.obj_id, 1);
            assert_eq!(f.camera.row_major()[0], 607.573_032_239_703_8 / 16.0);
            assert_eq!(f.camera.center_px(), Vec2::new(32.0, 32.0));
            sequences.push((f.scene.clone(), list));
        }
    }
    sequences.dedup();
    let mut scenes: Vec<_> =
        sequences.iter().map(|(s, _)| s.parent().unwrap().file_name()).collect();
    scenes.sort();
    scenes.dedup();
    assert_eq!(scenes.len(), sequences.len(), "a sequence is in two splits");

    let boxes: Vec<Vec<[f64; 3]>> = read_json(&root.join("swisscube_bbox.json")).unwrap();
    let mesh = read_ply(&root.join("models/obj_000001.ply")).unwrap();
    let corners = box_corners(&mesh.vertices);
    for (written, corner) in boxes[0].iter().zip(&corners) {
        assert!((Vec3::from(*written) - corner).norm() < 1e-3);
    }
    let info: serde_json::Value = read_json(&root.join("models/models_info.json")).unwrap();
    assert!((info["1"]["diameter"].as_f64().unwrap() - DIAMETER_MM).abs() < 0.01);
    assert_eq!(info["1"]["min_y"], -55.4);
    let targets: Vec<serde_json::Value> = read_json(&root.join("test_targets_bop19.json")).unwrap();
    assert_eq!(targets.len(), 3);
    let readme = fs::read_to_string(root.join("README.md")).unwrap();
    assert!(readme.contains("computer-generated") && readme.contains(&options.command_line()));
}

#[test]
fn poses_and_cameras_reproduce_masks_and_depths() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let options = SynthOptions { num_train: 12, size_px: 160, seed: 3, jobs: 2, ..small(root) };
    make(&options);
    let mesh = read_ply(&root.join("models/obj_000001.ply")).unwrap();
    for f in read(root, "training.txt") {
        let at = f.image.display();
        let mask = f.mask();
        let depth = f.scene.join(format!("depth/{:06}.png", f.number));
        let (_, depth) = f.depth_scale.read(&depth).unwrap();
        let expected = rasterized(&mesh, &f.camera, &f.pose, 160);
        let mut wrong = 0;
        let mut far_off = 0;
        for (i, &z) in expected.iter().enumerate() {
            let inside = mask.as_raw()[i] == 255;
            wrong += usize::from(inside != z.is_finite());
            if inside && z.is_finite() {
                far_off += usize::from((f64::from(depth[i]) - z).abs() > 0.1);
            }
        }
        // Only pixel centres within rounding of an edge may differ.
        let area = f.info.px_count_visib as usize;
        assert!(wrong <= 2, "{at}: {wrong} of {area} mask pixels are wrong");
        assert!(far_off * 200 <= area, "{at}: {far_off} of {area} depths are wrong");
        assert!(area > 100);

        // Vertices fall on the mask, but for those within a pixel of its border or outside the image.
        let side = 159.0;
        let pixels: Vec<Vec2> = mesh
            .vertices
            .iter()
            .map(|v| f.camera.project(&f.pose.apply(&Vec3::from(*v))))
            .filter(|p| p.x >= 0.0 && p.y >= 0.0 && p.x <= side && p.y <= side)
            .collect();
        for p in pixels {
            let near = (-1..=1).any(|dy| {
                (-1..=1).any(|dx| {
                    let (x, y) = ((p.x.round() as i64 + dx), (p.y.round() as i64 + dy));
                    (0..160).contains(&x)
                        && (0..160).contains(&y)
                        && mask.get_pixel(x as u32, y as u32).0[0] == 255
                })
            });
            assert!(near, "{at}: a vertex at {p:?} is off the mask");
        }
    }
}

#[test]
fn faces_appear_where_the_pose_puts_them() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let options = SynthOptions {
        num_train: 80,
        num_val: 0,
        num_test: 0,
        size_px: 160,
        depth_d: (1.5, 2.0),
        attitude: Attitude::WithinDeg(15.0),
        depth_png: false,
        ..small(root)
    };
    make(&options);
    // Points of the object (mm) in the middle of a red, a gold and a blue area.
    let points = [
        (Vec3::new(-21.0, -16.0, 56.6), Vec3::z(), "red"),
        (Vec3::new(-10.0, 50.6, -20.0), Vec3::y(), "gold"),
        (Vec3::new(52.1, 20.0, -20.0), Vec3::x(), "blue"),
    ];
    let (mut seen, mut right) = ([0; 3], [0; 3]);
    for f in read(root, "training.txt") {
        let rgb = picture::read_rgb(&f.image).unwrap();
        for (k, (point, normal, name)) in points.iter().enumerate() {
            let at = f.pose.apply(point);
            // A face seen at a low angle is too narrow to look for its patches.
            if (f.pose.r * normal).dot(&at.normalize()) > -0.4 {
                continue;
            }
            let p = f.camera.project(&at);
            let (x, y) = (p.x.round(), p.y.round());
            if !(0.0..160.0).contains(&x) || !(0.0..160.0).contains(&y) {
                continue;
            }
            let [r, g, b] = rgb.get_pixel(x as u32, y as u32).0.map(i32::from);
            // Neither in shadow nor clipped.
            let brightest = r.max(g).max(b);
            if !(70..245).contains(&brightest) {
                continue;
            }
            seen[k] += 1;
            let holds = match *name {
                "red" => r > g + 30 && r > b + 30,
                "gold" => r > g && g > b + 15,
                _ => b > r + 15,
            };
            right[k] += usize::from(holds);
        }
    }
    // A glint nearby may bleach a few.
    for k in 0..3 {
        let name = points[k].2;
        assert!(seen[k] >= 10, "{name} is seen {} times", seen[k]);
        assert!(right[k] * 10 >= seen[k] * 9, "{name} is right in {} of {}", right[k], seen[k]);
    }
}

#[test]
fn attitudes_depths_and_centres_stay_in_range() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let options = SynthOptions {
        num_train: 60,
        attitude: Attitude::WithinDeg(25.0),
        depth_d: (1.0, 3.0),
        ..small(root)
    };
    make(&options);
    let nominal = trajectory::nominal_attitude();
    let mut farthest = 0.0_f64;
    for list in ["training.txt", "validation.txt", "testing.txt"] {
        for f in read(root, list) {
            let cosine = ((f.pose.r * nominal.transpose()).trace() - 1.0) / 2.0;
            let angle = cosine.clamp(-1.0, 1.0).acos().to_degrees();
            assert!(angle <= 25.0 + 1e-6, "{angle} degrees in {}", f.image.display());
            farthest = farthest.max(angle);
            assert!((DIAMETER_MM..=3.0 * DIAMETER_MM).contains(&f.pose.t_mm.z));
            let centre = f.camera.project(&f.pose.t_mm);
            assert!(centre.min() >= 0.0 && centre.max() <= 63.0, "{centre:?}");
            assert!(f.info.visib_fract >= 0.7, "{} is visible", f.info.visib_fract);
        }
    }
    assert!(farthest > 15.0, "attitudes stay within {farthest} degrees");
}

#[test]
fn folders_with_other_things_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    fs::write(root.join("training.txt"), "precious").unwrap();
    for overwrite in [false, true] {
        let options = SynthOptions { overwrite, ..small(root) };
        let message = generate(&options, &|_, _| {}).unwrap_err().to_string();
        assert!(message.contains("holds no synthetic dataset"), "{message}");
    }
    assert_eq!(fs::read_to_string(root.join("training.txt")).unwrap(), "precious");
}

#[test]
fn a_dataset_is_replaced_only_when_asked() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    make(&small(root));
    let message = generate(&small(root), &|_, _| {}).unwrap_err().to_string();
    assert!(message.contains("--overwrite"), "{message}");
    let fewer = SynthOptions { num_train: 1, overwrite: true, ..small(root) };
    make(&fewer);
    assert_eq!(read(root, "training.txt").len(), 1);
    assert_eq!(tree(root).keys().filter(|p| p.starts_with("training")).count(), 1 + 1 + 1 + 3);
    assert!(finished(root).unwrap().unwrap().same_data(&fewer));
}

#[test]
fn a_dataset_of_another_renderer_does_not_count_as_finished() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("synthetic.json");
    assert!(finished(folder.path()).unwrap().is_none());
    fs::write(&path, r#"{"renderer": 0, "options": {"unknown": 1}}"#).unwrap();
    assert!(finished(folder.path()).unwrap().is_none());
    fs::write(&path, r#"{"renderer": 1, "options": {"unknown": 1}}"#).unwrap();
    let message = format!("{:#}", finished(folder.path()).unwrap_err());
    assert!(message.contains("synthetic.json") && message.contains("unknown"), "{message}");
}

#[test]
fn a_failure_half_way_leaves_no_lists_and_can_be_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    // A folder in the place of the last image of the last split.
    let blocked = root.join("testing/seq_000002/000000/rgb/000002.png");
    let block = |done: usize, _: usize| {
        if done == 1 {
            fs::create_dir_all(&blocked).unwrap();
        }
    };
    let message = format!("{:#}", generate(&small(root), &block).unwrap_err());
    assert!(message.contains("000002.png"), "{message}");
    assert!(root.join("training").is_dir());
    assert!(tree(root).keys().all(|p| p.extension().is_none_or(|e| e != "txt")));
    assert!(finished(root).unwrap().is_none());

    assert!(generate(&small(root), &|_, _| {}).is_err());
    make(&SynthOptions { overwrite: true, ..small(root) });
    assert_eq!(read(root, "testing.txt").len(), 3);
}

#[test]
fn progress_counts_every_image() {
    let folder = tempfile::tempdir().unwrap();
    let calls = Mutex::new(Vec::new());
    let note = |done, total| calls.lock().unwrap().push((done, total));
    generate(&SynthOptions { jobs: 3, ..small(folder.path()) }, &note).unwrap();
    let mut calls = calls.into_inner().unwrap();
    calls.sort();
    assert_eq!(calls, (1..=9).map(|i| (i, 9)).collect::<Vec<_>>());
}
