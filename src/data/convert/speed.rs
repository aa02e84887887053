//! SPEED and SPEED+ as a BOP folder.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use image::{GrayImage, RgbImage};
use nalgebra::{Quaternion, UnitQuaternion};
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::json;

use super::super::DepthScale;
use super::super::bop::{
    FrameCamera, FrameObject, FrameObjectInfo, SceneCamera, SceneGt, SceneGtInfo, mask_box,
};
use super::super::camera_file::{CameraFile, read_camera};
use super::super::undistort::SourceMap;
use super::super::warp::{Raster, Size};
use super::Converted;
use super::tango::{OBJ_ID, hull, keypoints_mm, write_models};
use crate::geom::{Camera, DepthPatch, Lens, Pose, Vec3, render_depth};
use crate::io::{picture, read_json, write_json};

/// Width and height of the images, px.
const SIZE: Size = (1920, 1200);
/// Focal length over pitch of SPEED's camera: 17.6 mm, 5.86 um.
const FOCAL_PX: f64 = 17.6 / 5.86e-3;
/// Images of a scene.
const SCENE_IMAGES: u32 = 1000;
/// Largest deviation of a quaternion's norm from 1.
const UNIT_TOLERANCE: f64 = 1e-3;
/// Quality of pictures that are written anew.
const JPEG_QUALITY: u8 = 95;

/// A set of labelled images.
pub(super) struct Domain {
    images: &'static str,
    labels: &'static str,
    split: &'static str,
}

/// The labelled images of SPEED.
pub(super) const SPEED: &[Domain] = &[
    Domain { images: "images/train", labels: "train.json", split: "train" },
    Domain { images: "images/real", labels: "real.json", split: "test_real" },
];
/// Those of SPEED+.
pub(super) const SPEED_PLUS: &[Domain] = &[
    Domain { images: "synthetic/images", labels: "synthetic/train.json", split: "train" },
    Domain { images: "synthetic/images", labels: "synthetic/validation.json", split: "val" },
    Domain { images: "lightbox/images", labels: "lightbox/test.json", split: "test_lightbox" },
    Domain { images: "sunlamp/images", labels: "sunlamp/test.json", split: "test_sunlamp" },
];

/// A label: camera frame from the satellite's, scalar first, m.
#[derive(Debug, Deserialize)]
struct Label {
    filename: String,
    #[serde(alias = "q_vbs2tango_true")]
    q_vbs2tango: [f64; 4],
    #[serde(rename = "r_Vo2To_vbs_true")]
    t_m: [f64; 3],
}

impl Label {
    /// The pose, mm. The rotation matrix is the ordinary one of the quaternion: the transpose of the direction-cosine matrix
    /// that the challenge's helpers build.
    fn pose(&self) -> Result<Pose> {
        let [w, x, y, z] = self.q_vbs2tango;
        let q = Quaternion::new(w, x, y, z);
        ensure!(
            (q.norm() - 1.0).abs() < UNIT_TOLERANCE,
            "its quaternion {:?} has the norm {}, expected 1",
            self.q_vbs2tango,
            q.norm()
        );
        let r = *UnitQuaternion::from_quaternion(q).to_rotation_matrix().matrix();
        let t_mm = Vec3::from(self.t_m) * 1000.0;
        ensure!(
            t_mm.z > 0.0 && t_mm.iter().all(|v| v.is_finite()),
            "its position {:?} m is not in front of the camera",
            self.t_m
        );
        Ok(Pose { r, t_mm })
    }

    /// The digits in the name: `img000123.jpg` is 123.
    fn number(&self) -> Result<u32> {
        let stem = Path::new(&self.filename).file_stem().and_then(|s| s.to_str());
        let digits = stem.map(|s| s.trim_start_matches(|c: char| !c.is_ascii_digit()));
        digits
            .and_then(|digits| digits.parse().ok())
            .with_context(|| "its name has no number, expected one like img000123.jpg".to_owned())
    }
}

/// Writes all domains that are there.
///
/// # Errors
/// If none is, or a file cannot be read or written; names file and image.
pub(super) fn convert(domains: &[Domain], source: &Path, out: &Path) -> Result<Converted> {
    let there = || domains.iter().filter(|domain| source.join(domain.labels).is_file());
    ensure!(
        there().next().is_some(),
        "{}: no labels, expected one of {}",
        source.display(),
        domains.iter().map(|domain| domain.labels).collect::<Vec<_>>().join(", ")
    );
    let source = &source.canonicalize().with_context(|| format!("finding {}", source.display()))?;
    let writer = Writer::new(source, out)?;
    let mut made = Converted::default();
    for domain in there() {
        made.splits.push((domain.split.to_owned(), writer.domain(domain)?));
    }
    write_models(out)?;
    writer.write_camera()?;
    made.notes.push(
        "masks are the filled hull of the projected keypoints, and the mesh is that hull: errors of model points are not \
         those of the satellite's own mesh"
            .to_owned(),
    );
    made.notes.push(match writer.map {
        None => "images are symbolic links".to_owned(),
        Some(_) => "images are written anew without the camera's distortion".to_owned(),
    });
    Ok(made)
}

struct Writer<'a> {
    source: &'a Path,
    out: &'a Path,
    camera: Camera,
    size: Size,
    /// Undoes the lens's distortion, where it has some.
    map: Option<SourceMap>,
    points: Vec<Vec3>,
    faces: Vec<[u32; 3]>,
}

/// What the files of a scene say of an image.
struct Entry {
    number: u32,
    object: FrameObject,
    info: FrameObjectInfo,
}

impl<'a> Writer<'a> {
    fn new(source: &'a Path, out: &'a Path) -> Result<Self> {
        let file = source.join("camera.json");
        let camera = match file.is_file() {
            true => read_camera(&file)?,
            false => {
                let (cx, cy) = (SIZE.0 as f64 / 2.0, SIZE.1 as f64 / 2.0);
                let camera = Camera::new(FOCAL_PX, FOCAL_PX, cx, cy)?;
                CameraFile { lens: Lens::from(camera), size: Some(SIZE) }
            }
        };
        let (lens, size) = (camera.lens, camera.size.unwrap_or(SIZE));
        let map = (!lens.distortion().is_none())
            .then(|| SourceMap::new(&lens, lens.camera(), size, false));
        let points = keypoints_mm();
        let faces = hull(&points);
        Ok(Self { source, out, camera: *lens.camera(), size, map, points, faces })
    }

    /// Writes a split; returns the number of images.
    fn domain(&self, domain: &Domain) -> Result<usize> {
        let file = self.source.join(domain.labels);
        let labels: Vec<Label> = read_json(&file)?;
        let entry = |label: &Label| {
            self.image(domain, label)
                .with_context(|| format!("{}: image {}", file.display(), label.filename))
        };
        let entries: Vec<Entry> = labels.par_iter().map(entry).collect::<Result<_>>()?;
        let mut scenes: BTreeMap<u32, Vec<Entry>> = BTreeMap::new();
        for entry in entries {
            scenes.entry(entry.number / SCENE_IMAGES).or_default().push(entry);
        }
        for (scene, entries) in scenes {
            self.scene(&self.out.join(format!("{}/{scene:06}", domain.split)), entries)
                .with_context(|| file.display().to_string())?;
        }
        Ok(labels.len())
    }

    fn image(&self, domain: &Domain, label: &Label) -> Result<Entry> {
        let (number, pose) = (label.number()?, label.pose()?);
        let scene = self.out.join(format!("{}/{:06}", domain.split, number / SCENE_IMAGES));
        self.picture(&self.source.join(domain.images).join(&label.filename), &scene, number)?;
        let (mask, info) = self.silhouette(&pose);
        for dir in ["mask", "mask_visib"] {
            picture::write_png(&scene.join(format!("{dir}/{number:06}_000000.png")), &mask)?;
        }
        let (r, t_mm) = (pose.r_row_major().to_vec(), pose.t_array().to_vec());
        Ok(Entry { number, object: FrameObject { r, t_mm, obj_id: OBJ_ID }, info })
    }

    /// A link to the picture, or the picture without distortion.
    fn picture(&self, from: &Path, scene: &Path, number: u32) -> Result<()> {
        ensure!(from.is_file(), "{} does not exist", from.display());
        let ending = from.extension().map_or("jpg".into(), |e| e.to_string_lossy());
        let dir = scene.join("rgb");
        fs::create_dir_all(&dir).with_context(|| format!("making the folder {}", dir.display()))?;
        let Some(map) = &self.map else {
            let link = dir.join(format!("{number:06}.{ending}"));
            return symlink(from, &link).with_context(|| format!("making {}", link.display()));
        };
        let image = picture::read_rgb(from)?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        ensure!(
            (width, height) == self.size,
            "{} is {width} x {height} px, but its camera is for {} x {} px",
            from.display(),
            self.size.0,
            self.size.1
        );
        let pixels = map.apply(Raster { pixels: image.as_raw(), width, height })?;
        let image = RgbImage::from_raw(width as u32, height as u32, pixels);
        let image = image.context("an image of another size")?;
        picture::write_jpeg(&dir.join(format!("{number:06}.jpg")), &image, JPEG_QUALITY)
    }

    /// The mask of the keypoints' hull, and what is visible of it: all that lies in the image.
    fn silhouette(&self, pose: &Pose) -> (GrayImage, FrameObjectInfo) {
        let (width, height) = self.size;
        let wide = self.around(pose);
        let [left, top] = wide.left_top;
        let set: Vec<bool> = wide.z_mm.iter().map(|z| *z > 0.0).collect();
        let shift = [left as i64 - width as i64, top as i64 - height as i64];
        let bbox_obj = mask_box(&set, wide.size[0], shift);
        let mask = GrayImage::from_fn(width as u32, height as u32, |x, y| {
            let inside = wide.at(x as usize + width, y as usize + height) > 0.0;
            image::Luma([if inside { 255 } else { 0 }])
        });
        let inside: Vec<bool> = mask.as_raw().iter().map(|v| *v > 0).collect();
        let px_count_all = set.iter().filter(|v| **v).count() as u64;
        let px_count_visib = inside.iter().filter(|v| **v).count() as u64;
        let info = FrameObjectInfo {
            bbox_obj,
            bbox_visib: mask_box(&inside, width, [0, 0]),
            px_count_all,
            px_count_valid: px_count_visib,
            px_count_visib,
            visib_fract: px_count_visib as f64 / px_count_all.max(1) as f64,
        };
        (mask, info)
    }

    /// The hull's depth in the image and one image's width and height around it.
    fn around(&self, pose: &Pose) -> DepthPatch {
        let (width, height) = self.size;
        let ((fx, fy), c) = (self.camera.focal_px(), self.camera.center_px());
        let moved = Camera::new(fx, fy, c.x + width as f64, c.y + height as f64)
            .expect("a camera that is moved is one");
        render_depth(&self.points, &self.faces, &moved, pose, [3 * width, 3 * height])
    }

    fn scene(&self, folder: &Path, entries: Vec<Entry>) -> Result<()> {
        let (mut cameras, mut poses, mut infos) =
            (SceneCamera::new(), SceneGt::new(), SceneGtInfo::new());
        let camera = FrameCamera {
            cam_k: self.camera.row_major().to_vec(),
            depth_scale: DepthScale::default(),
        };
        for Entry { number, object, info } in entries {
            let key = number.to_string();
            let other = poses.insert(key.clone(), vec![object]);
            ensure!(other.is_none(), "two labels are of image {number}");
            cameras.insert(key.clone(), camera.clone());
            infos.insert(key, vec![info]);
        }
        write_json(&folder.join("scene_camera.json"), &cameras)?;
        write_json(&folder.join("scene_gt.json"), &poses)?;
        write_json(&folder.join("scene_gt_info.json"), &infos)
    }

    fn write_camera(&self) -> Result<()> {
        let ((fx, fy), c) = (self.camera.focal_px(), self.camera.center_px());
        let path: PathBuf = self.out.join("camera.json");
        write_json(
            &path,
            &json!({
                "fx": fx, "fy": fy, "cx": c.x, "cy": c.y,
                "width": self.size.0, "height": self.size.1, "depth_scale": 1.0,
            }),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConvertFrom, convert};
    use super::*;
    use crate::data::BopFolder;
    use crate::geom::Vec2;

    /// The direction-cosine matrix of the challenge's helpers (speed-utils, `quat2dcm`), whose transpose they project with.
    fn dcm(q: [f64; 4]) -> [[f64; 3]; 3] {
        let [a, b, c, d] = q;
        [
            [2.0 * a * a - 1.0 + 2.0 * b * b, 2.0 * b * c + 2.0 * a * d, 2.0 * b * d - 2.0 * a * c],
            [2.0 * b * c - 2.0 * a * d, 2.0 * a * a - 1.0 + 2.0 * c * c, 2.0 * c * d + 2.0 * a * b],
            [2.0 * b * d + 2.0 * a * c, 2.0 * c * d - 2.0 * a * b, 2.0 * a * a - 1.0 + 2.0 * d * d],
        ]
    }

    #[test]
    fn keypoints_are_seen_where_the_challenges_helpers_put_them() {
        let q = [0.5, -0.1, 0.7, (1.0f64 - 0.25 - 0.01 - 0.49).sqrt()];
        let label =
            Label { filename: "img000001.jpg".into(), q_vbs2tango: q, t_m: [0.3, -0.2, 8.0] };
        let pose = label.pose().unwrap();
        let camera = Camera::new(FOCAL_PX, FOCAL_PX, 960.0, 600.0).unwrap();
        assert!((FOCAL_PX - 3003.412969283277).abs() < 1e-9);
        for point in keypoints_mm() {
            let rows = dcm(q);
            let x: [f64; 3] = std::array::from_fn(|i| {
                (0..3).map(|k| rows[k][i] * point[k] / 1000.0).sum::<f64>() + label.t_m[i]
            });
            let expected =
                Vec2::new(FOCAL_PX * x[0] / x[2] + 960.0, FOCAL_PX * x[1] / x[2] + 600.0);
            assert!((camera.project(&pose.apply(&point)) - expected).norm() < 1e-6);
        }
    }

    fn write(root: &Path, file: &str, text: &str) {
        let path = root.join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Small pictures instead of 1920 x 1200 ones, of a camera of the same angle of view.
    fn plus(dir: &Path) {
        write(
            dir,
            "camera.json",
            r#"{"Nu": 192, "Nv": 120, "cameraMatrix": [[300, 0, 96], [0, 300, 60], [0, 0, 1]], "distCoeffs": [-0.22, 0.5, 0, 0, -0.1]}"#,
        );
        for (file, num) in [("synthetic/train.json", 1..4), ("lightbox/test.json", 1..2)] {
            let label = |i: usize| {
                format!(
                    r#"{{"filename": "img{:06}.jpg", "q_vbs2tango_true": [1, 0, 0, 0], "r_Vo2To_vbs_true": [0.1, 0, {}]}}"#,
                    i + 998,
                    4 + i
                )
            };
            let labels: Vec<String> = num.clone().map(label).collect();
            write(dir, file, &format!("[{}]", labels.join(",")));
            let images = dir.join(file).with_file_name("images");
            fs::create_dir_all(&images).unwrap();
            for i in num {
                let image = RgbImage::from_fn(192, 120, |x, y| image::Rgb([x as u8, y as u8, 50]));
                picture::write_jpeg(&images.join(format!("img{:06}.jpg", i + 998)), &image, 95)
                    .unwrap();
            }
        }
    }

    #[test]
    fn speed_plus_becomes_a_folder_that_is_read_as_any_other() {
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        plus(dir.path());
        let out = to.path().join("bop");
        let made = convert(ConvertFrom::Speedplus, dir.path(), &out).unwrap();
        assert_eq!(made.splits, [("train".to_owned(), 3), ("test_lightbox".to_owned(), 1)]);
        assert!(made.notes[1].contains("without the camera's distortion"), "{made:?}");
        let folder = BopFolder::find(&out).unwrap();
        assert_eq!(folder.splits().collect::<Vec<_>>(), ["test_lightbox", "train"]);
        let scenes = folder.scenes("train").unwrap();
        // 999 is of the first thousand.
        assert_eq!(
            scenes.iter().map(|s| (s.id, s.images.len())).collect::<Vec<_>>(),
            [(0, 1), (1, 2)]
        );
        let frame = scenes[1].frame(1000).unwrap();
        let object = &frame.objects.as_ref().unwrap()[0];
        assert_eq!(object.pose().unwrap().t_mm, Vec3::new(100.0, 0.0, 6000.0));
        // The mask is where the keypoints' hull is: its middle is, a point beside it is not.
        let mask =
            picture::read_mask(&scenes[1].folder.join("mask_visib/001000_000000.png")).unwrap();
        let p = frame.camera.project(&object.pose().unwrap().apply(&Vec3::new(0.0, 0.0, 200.0)));
        assert_eq!(mask.get_pixel(p.x as u32, p.y as u32).0, [255]);
        assert_eq!(mask.get_pixel(5, 5).0, [0]);
        assert!(object.told.unwrap().visib_fract == 1.0);
        // Without distortion a picture's corner shows what was nearer to the middle, or nothing.
        let image = picture::read_rgb(scenes[1].image_file(1000).unwrap()).unwrap();
        assert_eq!((image.width(), image.height()), (192, 120));
        assert!(convert(ConvertFrom::Speedplus, dir.path(), &out).is_err());
    }

    #[test]
    fn what_is_wrong_with_a_label_is_told_and_nothing_is_left() {
        let (dir, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let out = to.path().join("bop");
        let error = || format!("{:#}", convert(ConvertFrom::Speed, dir.path(), &out).unwrap_err());
        assert!(
            error().contains("no labels, expected one of train.json, real.json"),
            "{}",
            error()
        );
        let label = |name: &str, q: &str, t: &str| {
            let text = format!(
                r#"[{{"filename": "{name}", "q_vbs2tango": [{q}], "r_Vo2To_vbs_true": [{t}]}}]"#
            );
            write(dir.path(), "train.json", &text);
        };
        let image = RgbImage::new(8, 8);
        let images = dir.path().join("images/train");
        fs::create_dir_all(&images).unwrap();
        picture::write_jpeg(&images.join("img000001.jpg"), &image, 90).unwrap();
        for (name, q, t, expected) in [
            ("img000001.jpg", "2,0,0,0", "0,0,5", "has the norm 2, expected 1"),
            ("img000001.jpg", "1,0,0,0", "0,0,-5", "is not in front of the camera"),
            ("img.jpg", "1,0,0,0", "0,0,5", "its name has no number"),
            ("img000002.jpg", "1,0,0,0", "0,0,5", "does not exist"),
        ] {
            label(name, q, t);
            let error = error();
            assert!(
                error.contains(expected) && error.contains(&format!("image {name}")),
                "{error}"
            );
        }
        assert_eq!(fs::read_dir(to.path()).unwrap().count(), 0);
        label("img000001.jpg", "1,0,0,0", "0,0,5");
        let made = convert(ConvertFrom::Speed, dir.path(), &out).unwrap();
        assert!(made.notes.iter().any(|note| note == "images are symbolic links"), "{made:?}");
        assert!(out.join("train/000000/rgb/000001.jpg").is_symlink());
    }
}
