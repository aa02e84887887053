//! `--layout bop`: scenes of several objects, written as a BOP folder.

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use nalgebra::{Unit, UnitQuaternion, Vector3};
use rand::Rng;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::options::{Attitude, SynthOptions};
use super::raster::{Grid, Lamp, Placed, Seen, shade};
use super::shapes::{Shape, built_in, clutter, of_folder};
use super::silhouette::{Silhouette, fractions, nearest};
use super::sky::noise;
use super::trajectory::{self, nominal_attitude, rotation_within};
use super::writer::{SCENE_SPLITS, Writer};
use crate::data::DepthScale;
use crate::data::bop::{
    FrameCamera, FrameObject, FrameObjectInfo, SceneCamera, SceneGt, SceneGtInfo, mask_box,
};
use crate::geom::{Camera, Pose, Vec3};
use crate::io::mesh::write_ply;
use crate::seed;

const STREAM_SCENE: u64 = 0x424f_5053;
/// Of the objects that are not annotated.
const STREAM_CLUTTER: u64 = 0x434c_5554;
/// Images of a scene.
const SCENE_IMAGES: usize = 100;
/// Samples a side of a pixel, for its colour.
const SAMPLES: usize = 2;
/// Rows of an image whose samples are held in memory at a time.
const BAND_ROWS: usize = 32;
/// Draws of an object's place before it is left out.
const MOST_DRAWS: usize = 60;
/// How far from the image's middle the centre of an object goes, as a fraction of the side.
const MAX_OFFSET: f64 = 0.4;

/// What scenes are made of, read before anything is written.
pub(super) struct Scenes<'a> {
    options: &'a SynthOptions,
    shapes: Vec<Shape>,
    camera: Camera,
    depth_scale: DepthScale,
}

impl<'a> Scenes<'a> {
    /// Reads the meshes.
    ///
    /// # Errors
    /// If the folder of meshes cannot be read, it lies in the dataset's own, or depth images could not hold the depths.
    pub fn new(options: &'a SynthOptions) -> Result<Self> {
        let shapes = match &options.meshes {
            Some(dir) => {
                refuse_inside(dir, &options.out)?;
                of_folder(dir)?
            }
            None => built_in(options.objects),
        };
        let largest_mm = shapes.iter().map(|shape| shape.diameter_mm).fold(0.0, f64::max);
        options.ensure_depths_fit(largest_mm)?;
        let camera = trajectory::camera(options.size_px);
        Ok(Self { options, shapes, camera, depth_scale: options.depth_scale(largest_mm) })
    }

    /// Renders and writes all images and what belongs to the whole dataset; returns the number of images.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn render_all(
        &self,
        writer: &Writer,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<usize> {
        let options = self.options;
        let total = options.num_images();
        let done = AtomicUsize::new(0);
        let counts = [options.num_train, options.num_val, options.num_test];
        let mut targets = Vec::new();
        for (split, (name, count)) in SCENE_SPLITS.into_iter().zip(counts).enumerate() {
            let images = (0..count)
                .into_par_iter()
                .map(|index| {
                    let labels = self.image(writer, (split, index))?;
                    progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
                    Ok(labels)
                })
                .collect::<Result<Vec<Labels>>>()?;
            for (scene, images) in images.chunks(SCENE_IMAGES).enumerate() {
                self.write_scene(writer, &format!("{name}/{scene:06}"), images)?;
                if name == "test" {
                    targets.extend(targets_of(scene, images));
                }
            }
        }
        writer.json("test_targets_bop19.json", &targets)?;
        write_models(writer, &self.shapes)?;
        let ((fx, fy), c) = (self.camera.focal_px(), self.camera.center_px());
        let size = options.size_px;
        writer.json(
            "camera.json",
            &json!({
                "fx": fx, "fy": fy, "cx": c.x, "cy": c.y, "width": size, "height": size,
                "depth_scale": self.depth_scale,
            }),
        )?;
        writer.finish_scenes(&readme(options, &self.shapes))?;
        Ok(total)
    }

    /// Draws, renders and writes an image: a function of the settings, the seed and the place (split and number in it).
    fn image(&self, writer: &Writer, (split, index): (usize, usize)) -> Result<Labels> {
        let options = self.options;
        let stream = |purpose| seed::stream(options.seed, &[purpose, split as u64, index as u64]);
        let mut rng = stream(STREAM_SCENE);
        let mut objects = self.draw_objects(&mut rng);
        let num_annotated = objects.len();
        let mut clutter_rng = stream(STREAM_CLUTTER);
        let others: Vec<Shape> = (0..options.clutter).map(|_| clutter(&mut clutter_rng)).collect();
        for shape in &others {
            self.place(shape, &mut objects, num_annotated, &mut clutter_rng);
        }
        let rgb = expose(&self.camera, &objects, options.size_px as usize, &mut rng);
        let place = Place {
            split: SCENE_SPLITS[split],
            scene: index / SCENE_IMAGES,
            image: index % SCENE_IMAGES,
        };
        self.write_image(writer, &place, &objects, num_annotated, &rgb)
    }

    /// Objects that do not meet and are all visible enough.
    fn draw_objects(&self, rng: &mut impl Rng) -> Vec<Placed<'_>> {
        let (fewest, most) = self.options.instances;
        let num = rng.random_range(fewest..=most);
        let mut objects = Vec::with_capacity(num);
        for _ in 0..num {
            let shape = &self.shapes[rng.random_range(0..self.shapes.len())];
            let num_annotated = objects.len() + 1;
            self.place(shape, &mut objects, num_annotated, rng);
        }
        objects
    }

    /// Puts an object where it meets no other one and leaves the first `num_annotated` visible enough; leaves it out if no such place
    /// is found.
    fn place<'s>(
        &self,
        shape: &'s Shape,
        objects: &mut Vec<Placed<'s>>,
        num_annotated: usize,
        rng: &mut impl Rng,
    ) {
        for _ in 0..MOST_DRAWS {
            let placed = Placed { shape, pose: self.draw_pose(shape, rng) };
            let apart = |other: &Placed<'_>| {
                let distance = (other.middle_mm() - placed.middle_mm()).norm();
                distance > 0.5 * (other.shape.diameter_mm + shape.diameter_mm)
            };
            if !objects.iter().all(apart) {
                continue;
            }
            objects.push(placed);
            if self.are_seen_enough(objects, num_annotated) {
                return;
            }
            objects.pop();
        }
    }

    fn are_seen_enough(&self, objects: &[Placed<'_>], num_annotated: usize) -> bool {
        let SynthOptions { occlusion, truncation, .. } = *self.options;
        let seen = fractions(objects, &self.camera, self.options.size_px as usize);
        seen.iter()
            .take(num_annotated)
            .all(|[visible, inside]| *visible >= 1.0 - occlusion && *inside >= 1.0 - truncation)
    }

    fn draw_pose(&self, shape: &Shape, rng: &mut impl Rng) -> Pose {
        let turn = match self.options.attitude {
            Attitude::Full => rotation_within(rng, std::f64::consts::PI),
            Attitude::WithinDeg(deg) => {
                rotation_within(rng, deg.to_radians())
                    * UnitQuaternion::from_matrix(&nominal_attitude())
            }
        };
        let (near, far) = self.options.depth_d;
        let z = rng.random_range(near..=far) * shape.diameter_mm;
        let side = f64::from(self.options.size_px);
        let mut offset =
            || rng.random_range(-MAX_OFFSET..=MAX_OFFSET) * side / self.camera.focal_px().0 * z;
        let middle_mm = Vec3::new(offset(), offset(), z);
        // Turned along with the ray, so that attitudes are as seen.
        let ray = nalgebra::Rotation3::rotation_between(&Vec3::z(), &middle_mm);
        let ray =
            ray.map_or_else(UnitQuaternion::identity, |r| UnitQuaternion::from_rotation_matrix(&r));
        let r = *(ray * turn).to_rotation_matrix().matrix();
        Pose { r, t_mm: middle_mm - r * shape.middle_mm }
    }

    /// Writes the pictures of an image: colour, masks, depth.
    fn write_image(
        &self,
        writer: &Writer,
        place: &Place,
        objects: &[Placed<'_>],
        num_annotated: usize,
        rgb: &RgbImage,
    ) -> Result<Labels> {
        let ending = format!(".{}", self.options.format.extension());
        writer.rgb(&place.file("rgb", &ending), rgb)?;
        let size = self.options.size_px as usize;
        let alone: Vec<Silhouette> =
            objects.iter().map(|object| Silhouette::new(object, &self.camera, size)).collect();
        let (depth_mm, owners) = nearest(&alone, size);
        let mut labels = Labels { objects: Vec::new(), infos: Vec::new() };
        for (index, object) in objects.iter().enumerate().take(num_annotated) {
            let visible: Vec<bool> =
                owners.iter().map(|owner| usize::from(*owner) == index + 1).collect();
            let suffix = format!("_{index:06}.png");
            writer.mask(&place.file("mask", &suffix), &alone[index].mask(size))?;
            writer.mask(&place.file("mask_visib", &suffix), &visible)?;
            labels.infos.push(info(&alone[index], &visible, size));
            let (r, t_mm) = (object.pose.r_row_major().to_vec(), object.pose.t_array().to_vec());
            labels.objects.push(FrameObject { r, t_mm, obj_id: object.shape.obj_id });
        }
        if self.options.depth_png {
            writer.depth(&place.file("depth", ".png"), &depth_mm, self.depth_scale)?;
        }
        Ok(labels)
    }

    fn write_scene(&self, writer: &Writer, scene: &str, images: &[Labels]) -> Result<()> {
        let k = self.camera.row_major().to_vec();
        let depth_scale = self.depth_scale;
        let (mut cameras, mut poses, mut infos) =
            (SceneCamera::new(), SceneGt::new(), SceneGtInfo::new());
        for (i, labels) in images.iter().enumerate() {
            let key = i.to_string();
            cameras.insert(key.clone(), FrameCamera { cam_k: k.clone(), depth_scale });
            poses.insert(key.clone(), labels.objects.clone());
            infos.insert(key, labels.infos.clone());
        }
        writer.json(&format!("{scene}/scene_camera.json"), &cameras)?;
        writer.json(&format!("{scene}/scene_gt.json"), &poses)?;
        writer.json(&format!("{scene}/scene_gt_info.json"), &infos)
    }
}

/// Refuses a folder that would be deleted with what it is read for.
fn refuse_inside(meshes: &Path, out: &Path) -> Result<()> {
    let (Ok(meshes_at), Ok(out_at)) = (meshes.canonicalize(), out.canonicalize()) else {
        return Ok(());
    };
    ensure!(
        !meshes_at.starts_with(&out_at),
        "the meshes {} lie in {}, whose contents the new dataset replaces: copy them elsewhere first",
        meshes.display(),
        out.display()
    );
    Ok(())
}

/// Where an image is.
struct Place {
    split: &'static str,
    scene: usize,
    image: usize,
}

impl Place {
    /// A file of the image: `train_pbr/000000/DIR/000012SUFFIX`.
    fn file(&self, dir: &str, suffix: &str) -> String {
        format!("{}/{:06}/{dir}/{:06}{suffix}", self.split, self.scene, self.image)
    }
}

/// What is in an image.
struct Labels {
    objects: Vec<FrameObject>,
    infos: Vec<FrameObjectInfo>,
}

/// Light and background of an image.
struct Setting {
    lamp: Lamp,
    /// Colours of the darkest and of the lightest cloud.
    clouds: [Vector3<f32>; 2],
    place: Vector3<f32>,
    scale: f32,
}

impl Setting {
    fn draw(size: usize, rng: &mut impl Rng) -> Self {
        let unit = |rng: &mut dyn rand::RngCore| -> Vector3<f32> {
            let [x, y, z] = [0, 1, 2].map(|_| rng.random_range(-1.0..=1.0f32));
            Vector3::new(x, y, z)
        };
        let mut towards = unit(rng);
        towards.z = -towards.z.abs() - 0.2;
        let tint = unit(rng) * 0.12;
        let lamp = Lamp {
            towards: Unit::new_normalize(towards).into_inner(),
            ambient: rng.random_range(0.25..0.55),
            color: (Vector3::repeat(1.0) + tint) * rng.random_range(0.7..1.3),
        };
        let clouds = [0.05, 0.45].map(|level| {
            (unit(rng) * 0.5 + Vector3::repeat(1.0)) * level * rng.random_range(0.3..1.2f32)
        });
        let (place, scale) = (unit(rng) * 50.0, rng.random_range(2.0..7.0f32) / size as f32);
        Self { lamp, clouds, place, scale }
    }

    fn background(&self, x: usize, y: usize) -> Vector3<f32> {
        let at = self.place + Vector3::new(x as f32, y as f32, 0.0) * self.scale;
        let cloud = 0.6 * noise(&at) + 0.4 * noise(&(at * 3.1));
        let [dark, light] = self.clouds;
        dark + (light - dark) * cloud
    }
}

/// Colours of the samples, averaged over pixels, in front of a cloudy background; noise, 8 bits. Samples are held a band of rows
/// at a time.
fn expose(camera: &Camera, objects: &[Placed<'_>], size: usize, rng: &mut impl Rng) -> RgbImage {
    let setting = Setting::draw(size, rng);
    let deviation = rng.random_range(0.004..0.02f32);
    let mut rgb = RgbImage::new(size as u32, size as u32);
    for first in (0..size).step_by(BAND_ROWS) {
        let rows = first..(first + BAND_ROWS).min(size);
        let fine = Seen::new(Grid::finer(size, SAMPLES, rows.clone()), camera, objects);
        for (x, y) in pixels(rows.clone(), size) {
            let background = setting.background(x, y);
            let mut sum = Vector3::zeros();
            for dy in 0..SAMPLES {
                for dx in 0..SAMPLES {
                    let (u, v) = (x * SAMPLES + dx, (y - first) * SAMPLES + dy);
                    let hit = &fine.hits[v * fine.grid.width + u];
                    let color = |hit| shade(hit, objects, &setting.lamp);
                    sum += hit.as_ref().map_or(background, color);
                }
            }
            let mean = sum / (SAMPLES * SAMPLES) as f32;
            rgb.get_pixel_mut(x as u32, y as u32).0 = std::array::from_fn(|i| {
                let noise: f32 = (0..4).map(|_| rng.random_range(-0.5..0.5f32)).sum();
                let level = mean[i].max(0.0).powf(1.0 / 2.2) + noise * deviation * 1.7;
                (level.clamp(0.0, 1.0) * 255.0).round() as u8
            });
        }
    }
    rgb
}

/// Column and row of the pixels of some rows.
fn pixels(rows: Range<usize>, width: usize) -> impl Iterator<Item = (usize, usize)> {
    rows.flat_map(move |y| (0..width).map(move |x| (x, y)))
}

/// What `scene_gt_info.json` says of an object.
fn info(alone: &Silhouette, visible: &[bool], size: usize) -> FrameObjectInfo {
    let px_count_visib = visible.iter().filter(|v| **v).count() as u64;
    FrameObjectInfo {
        bbox_obj: alone.bbox,
        bbox_visib: mask_box(visible, size, [0, 0]),
        px_count_all: alone.num_px,
        px_count_valid: alone.mask(size).iter().filter(|v| **v).count() as u64,
        px_count_visib,
        visib_fract: px_count_visib as f64 / alone.num_px.max(1) as f64,
    }
}

/// The lines of `test_targets_bop19.json` for a scene.
fn targets_of(scene: usize, images: &[Labels]) -> Vec<Value> {
    let mut lines = Vec::new();
    for (image, labels) in images.iter().enumerate() {
        let mut count: BTreeMap<u32, usize> = BTreeMap::new();
        for object in &labels.objects {
            *count.entry(object.obj_id).or_default() += 1;
        }
        lines.extend(count.into_iter().map(|(obj_id, inst_count)| {
            json!({"scene_id": scene, "im_id": image, "obj_id": obj_id, "inst_count": inst_count})
        }));
    }
    lines
}

fn write_models(writer: &Writer, shapes: &[Shape]) -> Result<()> {
    let infos: Map<String, Value> =
        shapes.iter().map(|shape| (shape.obj_id.to_string(), shape.info())).collect();
    for dir in ["models", "models_eval"] {
        let folder = writer.path(dir);
        fs::create_dir_all(&folder)
            .with_context(|| format!("making the folder {}", folder.display()))?;
        for shape in shapes {
            let path = folder.join(format!("obj_{:06}.ply", shape.obj_id));
            write_ply(&path, &shape.mesh, Some(&shape.colors))?;
            writer.count(&path)?;
        }
        writer.json(&format!("{dir}/models_info.json"), &infos)?;
    }
    Ok(())
}

fn readme(options: &SynthOptions, shapes: &[Shape]) -> String {
    let mut text = format!(
        "# Synthetic objects\n\n\
         Every image here is computer-generated by mqat {}. The layout is that of the BOP benchmark (scenewise).\n\n\
         ```\n{}\n```\n\n| object | diameter, mm | symmetric |\n|---|---|---|\n",
        env!("CARGO_PKG_VERSION"),
        options.command_line()
    );
    for shape in shapes {
        let symmetric = if shape.is_symmetric() { "yes" } else { "no" };
        text.push_str(&format!("| {} | {:.1} | {symmetric} |\n", shape.obj_id, shape.diameter_mm));
    }
    text.push_str(&format!(
        "\n- Images: {0} x {0} px; {1} to {2} objects in each, of which at most {5} is hidden or outside and at most {6} \
         outside; {7} other objects without annotation; depth {3} to {4} of an object's diameter.\n- Pixel (0, 0) is the centre of the top-left pixel. Poses map the mesh (mm) into the camera frame.\n",
        options.size_px, options.instances.0, options.instances.1, options.depth_d.0, options.depth_d.1,
        options.occlusion, options.truncation, options.clutter
    ));
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::BopFolder;
    use crate::io::picture;
    use crate::synth::{Format, Layout, generate};

    fn options(out: &std::path::Path) -> SynthOptions {
        SynthOptions {
            out: out.to_owned(),
            num_train: 4,
            num_val: 1,
            num_test: 3,
            size_px: 64,
            depth_d: (1.5, 3.0),
            layout: Layout::Bop,
            objects: 3,
            instances: (2, 3),
            format: Format::Png,
            depth_png: true,
            jobs: 2,
            ..SynthOptions::default()
        }
    }

    #[test]
    fn a_folder_of_scenes_is_read_back_as_it_was_rendered() {
        let dir = tempfile::tempdir().unwrap();
        let options = options(dir.path());
        let report = generate(&options, &|_, _| {}).unwrap();
        assert_eq!(report.images, 8);
        let folder = BopFolder::find(dir.path()).unwrap();
        assert_eq!(folder.splits().collect::<Vec<_>>(), ["test", "train_pbr", "val"]);
        let infos = folder.infos(&folder.meshes().unwrap()).unwrap();
        assert_eq!(infos.symmetries(3).unwrap().continuous.len(), 1);
        let shapes = built_in(3);
        let mut num = 0;
        for scene in folder.scenes("train_pbr").unwrap() {
            for &number in scene.images.keys() {
                let frame = scene.frame(number).unwrap();
                let objects = frame.objects.as_ref().unwrap();
                assert!((1..=3).contains(&objects.len()));
                let placed: Vec<Placed<'_>> = objects
                    .iter()
                    .map(|o| Placed {
                        shape: &shapes[o.obj_id as usize - 1],
                        pose: o.pose().unwrap(),
                    })
                    .collect();
                // The rasterizer of colours sees the same objects.
                let seen = Seen::new(Grid::finer(64, 1, 0..64), &frame.camera, &placed);
                let (_, depth) = frame.depth_scale.read(scene.depth_file(number).unwrap()).unwrap();
                for (i, object) in objects.iter().enumerate() {
                    let told = object.told.unwrap();
                    let file = format!("mask_visib/{number:06}_{i:06}.png");
                    let mask = picture::read_mask(&scene.folder.join(file)).unwrap();
                    let visible = mask.as_raw().iter().filter(|v| **v != 0).count() as u64;
                    assert_eq!(told.px_count_visib, visible);
                    let differ = mask.as_raw().iter().zip(&seen.hits).filter(|(mask, hit)| {
                        (**mask != 0) != hit.is_some_and(|hit| hit.object as usize == i)
                    });
                    assert!(differ.count() <= 2);
                    assert!(told.visib_fract > 0.15, "{}", told.visib_fract);
                    // Depths are those of its surface.
                    let diameter_mm = placed[i].shape.diameter_mm;
                    let own = mask.as_raw().iter().zip(&depth).filter(|(mask, _)| **mask != 0);
                    for (_, z) in own {
                        let off_mm = (f64::from(*z) - placed[i].middle_mm().z).abs();
                        assert!(*z > 0.0 && off_mm <= 0.5 * diameter_mm + 0.1, "{z}");
                    }
                    num += 1;
                }
                let num_seen = seen.hits.iter().flatten().count();
                assert!(depth.iter().filter(|z| **z > 0.0).count().abs_diff(num_seen) <= 4);
            }
        }
        assert!(num >= 6, "{num}");
        // Again, with other threads: byte for byte.
        let again = tempfile::tempdir().unwrap();
        let other = SynthOptions { jobs: 1, ..options.clone() };
        generate(&SynthOptions { out: again.path().to_owned(), ..other }, &|_, _| {}).unwrap();
        for file in
            ["test/000000/scene_gt.json", "train_pbr/000000/rgb/000002.png", "synthetic.json"]
        {
            let read = |root: &std::path::Path| fs::read(root.join(file)).unwrap();
            assert!(read(dir.path()) == read(again.path()), "{file}");
        }
        assert_eq!(
            crate::synth::finished(dir.path()).unwrap().map(|o| o.same_data(&options)),
            Some(true)
        );
    }

    #[test]
    fn meshes_of_a_folder_keep_their_numbers_colours_and_symmetries() {
        let dir = tempfile::tempdir().unwrap();
        let source = &built_in(3)[2];
        write_ply(&dir.path().join("obj_000007.ply"), &source.mesh, Some(&source.colors)).unwrap();
        fs::write(
            dir.path().join("models_info.json"),
            serde_json::to_vec(&json!({"7": source.info()})).unwrap(),
        )
        .unwrap();
        let read = of_folder(dir.path()).unwrap();
        assert_eq!((read.len(), read[0].obj_id), (1, 7));
        assert_eq!(read[0].colors, source.colors);
        assert_eq!(read[0].info(), source.info());
        let empty = tempfile::tempdir().unwrap();
        assert!(of_folder(empty.path()).unwrap_err().to_string().contains("no .ply file"));
    }

    /// The built-in crate, its origin moved to a place outside of it.
    fn moved_crate(dir: &Path) -> Shape {
        let mut mesh = built_in(2)[1].mesh.clone();
        mesh.vertices.iter_mut().for_each(|v| v[0] += 900.0);
        let colors = built_in(2)[1].colors.clone();
        write_ply(&dir.join("obj_000004.ply"), &mesh, Some(&colors)).unwrap();
        of_folder(dir).unwrap().remove(0)
    }

    #[test]
    fn an_object_whose_origin_lies_elsewhere_is_shown_as_any_other() {
        let (dir, meshes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let shape = moved_crate(meshes.path());
        assert!(
            (shape.middle_mm - Vec3::new(900.0, 0.0, 0.0)).norm() < 1e-3,
            "{}",
            shape.middle_mm
        );
        let options = SynthOptions {
            objects: 0,
            meshes: Some(meshes.path().to_owned()),
            instances: (1, 1),
            ..options(dir.path())
        };
        generate(&options, &|_, _| {}).unwrap();
        let folder = BopFolder::find(dir.path()).unwrap();
        let infos = folder.infos(&folder.meshes().unwrap()).unwrap();
        assert!((infos.of(4).unwrap().middle() - shape.middle_mm).norm() < 1e-3);
        let scene = &folder.scenes("train_pbr").unwrap()[0];
        for number in 0..4 {
            let objects = scene.frame(number).unwrap().objects.clone().unwrap();
            assert_eq!(objects.len(), 1);
            let pose = objects[0].pose().unwrap();
            let z = pose.apply(&shape.middle_mm).z / shape.diameter_mm;
            assert!((1.5 - 1e-6..=3.0 + 1e-6).contains(&z), "{z}");
            assert!((pose.t_mm - pose.apply(&shape.middle_mm)).norm() > 899.0);
        }
    }

    #[test]
    fn meshes_are_read_before_an_old_dataset_goes() {
        let (dir, meshes) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let old = SynthOptions { num_val: 0, num_test: 0, ..options(dir.path()) };
        generate(&old, &|_, _| {}).unwrap();
        let again = |meshes: &Path| {
            let own = Some(meshes.to_owned());
            let again = SynthOptions { objects: 0, meshes: own, overwrite: true, ..old.clone() };
            format!("{:#}", generate(&again, &|_, _| {}).unwrap_err())
        };
        let error = again(meshes.path());
        assert!(error.contains("no .ply file"), "{error}");
        let error = again(&dir.path().join("models"));
        assert!(error.contains("whose contents the new dataset replaces"), "{error}");
        // It is there as before.
        assert_eq!(
            crate::synth::finished(dir.path()).unwrap().map(|o| o.same_data(&old)),
            Some(true)
        );
        assert!(dir.path().join("train_pbr/000000/rgb/000003.png").is_file());
    }

    #[test]
    fn depths_beyond_16_bits_are_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let out = dir.path().join("out");
        for layout in [Layout::Bop, Layout::Swisscube] {
            let (objects, instances) =
                if layout == Layout::Bop { (3, (1, 1)) } else { (0, (0, 0)) };
            let depth_d = (50.0, 100.0);
            let far = SynthOptions { depth_d, layout, objects, instances, ..options(&out) };
            // 101 diameters of 100 to 180 mm fit into units of 1 mm.
            assert!(far.ensure_depths_fit(180.0).is_ok());
            let error = format!("{:#}", far.ensure_depths_fit(700.0).unwrap_err());
            for part in
                ["100 diameters of 700.0 mm", "depth_scale 1 mm", "not 70700 mm", "--depth-png"]
            {
                assert!(error.contains(part), "{part}: {error}");
            }
            assert!(SynthOptions { depth_png: false, ..far }.ensure_depths_fit(700.0).is_ok());
        }
        let meshes = tempfile::tempdir().unwrap();
        let mut mesh = built_in(1)[0].mesh.clone();
        mesh.vertices.iter_mut().flatten().for_each(|v| *v *= 10.0);
        write_ply(&meshes.path().join("obj_000001.ply"), &mesh, None).unwrap();
        let own = Some(meshes.path().to_owned());
        let depth_d = (50.0, 100.0);
        let large = SynthOptions { objects: 0, meshes: own, depth_d, ..options(&out) };
        assert!(format!("{:#}", generate(&large, &|_, _| {}).unwrap_err()).contains("depth_scale"));
        assert!(!out.exists());
    }

    #[test]
    fn clutter_hides_but_is_not_annotated_and_moves_nothing() {
        let (plain, full) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let some = |out: &Path, clutter| SynthOptions { clutter, occlusion: 0.5, ..options(out) };
        generate(&some(plain.path(), 0), &|_, _| {}).unwrap();
        generate(&some(full.path(), 12), &|_, _| {}).unwrap();
        let read =
            |root: &Path, file: &str| fs::read(root.join("train_pbr/000000").join(file)).unwrap();
        let poses = |root| read(root, "scene_gt.json");
        assert_eq!(poses(plain.path()), poses(full.path()));
        let infos = |root: &Path| -> SceneGtInfo {
            serde_json::from_slice(&read(root, "scene_gt_info.json")).unwrap()
        };
        let (before, after) = (infos(plain.path()), infos(full.path()));
        let both = || before.values().flatten().zip(after.values().flatten());
        assert!(
            both().all(|(a, b)| a.px_count_all == b.px_count_all && a.visib_fract >= b.visib_fract)
        );
        assert!(both().any(|(a, b)| a.visib_fract > b.visib_fract));
        // As much as the coarse grid that places are drawn with may be off.
        assert!(after.values().flatten().all(|info| info.visib_fract > 0.35), "{after:?}");
        let depth = |root: &Path| {
            let path = root.join("train_pbr/000000/depth/000000.png");
            DepthScale::for_depths_up_to(1000.0).read(&path).unwrap().1
        };
        let num = |depths: Vec<f32>| depths.into_iter().filter(|z| *z > 0.0).count();
        assert!(num(depth(full.path())) > num(depth(plain.path())));
    }
}
