//! `--layout bop`: scenes of several objects, written as a BOP folder.

use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use image::RgbImage;
use nalgebra::{Unit, UnitQuaternion, Vector3};
use rand::Rng;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::options::{Attitude, SynthOptions};
use super::raster::{Grid, Hit, Lamp, Placed, Seen, shade};
use super::shapes::{Shape, built_in, of_folder};
use super::sky::noise;
use super::trajectory::{self, nominal_attitude, rotation_within};
use super::writer::{SCENE_SPLITS, Writer};
use crate::data::bop::{
    FrameCamera, FrameObject, FrameObjectInfo, SceneCamera, SceneGt, SceneGtInfo,
};
use crate::geom::{Camera, Pose, Vec3};
use crate::io::mesh::write_ply;
use crate::seed;

const STREAM_SCENE: u64 = 0x424f_5053;
/// Images of a scene.
const SCENE_IMAGES: usize = 100;
/// Samples a side of a pixel, for its colour.
const SAMPLES: usize = 2;
/// Of every object at least this fraction is visible.
const MIN_VISIBLE: f64 = 0.3;
/// Draws of an object's place before it is left out.
const MOST_DRAWS: usize = 60;
/// How far from the image's middle the centre of an object goes, as a fraction of the side.
const MAX_OFFSET: f64 = 0.4;

/// Objects of a dataset.
///
/// # Errors
/// If the folder of meshes cannot be read.
pub(super) fn shapes(options: &SynthOptions) -> Result<Vec<Shape>> {
    match &options.meshes {
        Some(dir) => of_folder(dir),
        None => Ok(built_in(options.objects)),
    }
}

/// Renders and writes all images and what belongs to the whole dataset; returns the number of images.
///
/// # Errors
/// If meshes cannot be read or a file cannot be written.
pub(super) fn render_all(
    options: &SynthOptions,
    writer: &Writer,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<usize> {
    let shapes = shapes(options)?;
    let total = options.num_images();
    let done = AtomicUsize::new(0);
    let counts = [options.num_train, options.num_val, options.num_test];
    let mut targets = Vec::new();
    for (split, (name, count)) in SCENE_SPLITS.into_iter().zip(counts).enumerate() {
        let images = (0..count)
            .into_par_iter()
            .map(|index| {
                let image = draw(options, &shapes, (split, index));
                let place =
                    Place { split: name, scene: index / SCENE_IMAGES, image: index % SCENE_IMAGES };
                let labels = write_image(options, writer, &place, &image)?;
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, total);
                Ok(labels)
            })
            .collect::<Result<Vec<Labels>>>()?;
        for (scene, images) in images.chunks(SCENE_IMAGES).enumerate() {
            write_scene(options, writer, &format!("{name}/{scene:06}"), images)?;
            if name == "test" {
                targets.extend(targets_of(scene, images));
            }
        }
    }
    writer.json("test_targets_bop19.json", &targets)?;
    write_models(writer, &shapes)?;
    let camera = trajectory::camera(options.size_px);
    let ((fx, fy), c) = (camera.focal_px(), camera.center_px());
    let size = options.size_px;
    writer.json(
        "camera.json",
        &json!({
            "fx": fx, "fy": fy, "cx": c.x, "cy": c.y, "width": size, "height": size,
            "depth_scale": depth_unit_mm(options, &shapes),
        }),
    )?;
    writer.finish_scenes(&readme(options, &shapes))?;
    Ok(total)
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

/// An image before it is written.
struct Image<'a> {
    objects: Vec<Placed<'a>>,
    /// At pixel centres.
    seen: Seen,
    /// Each object by itself, in the image and around it.
    alone: Vec<Seen>,
    rgb: RgbImage,
    depth_unit_mm: f64,
}

/// Draws an image: a function of the settings, the seed and the place.
fn draw<'a>(options: &SynthOptions, shapes: &'a [Shape], place: (usize, usize)) -> Image<'a> {
    let mut rng = seed::stream(options.seed, &[STREAM_SCENE, place.0 as u64, place.1 as u64]);
    let camera = trajectory::camera(options.size_px);
    let objects = draw_objects(options, shapes, &camera, &mut rng);
    let size = options.size_px as usize;
    let seen = Seen::new(Grid::pixels(size), &camera, &objects);
    let alone = objects.iter().map(|o| Seen::new(Grid::around(size), &camera, &[*o])).collect();
    let fine = Seen::new(Grid::finer(size, SAMPLES), &camera, &objects);
    let rgb = expose(&fine, &objects, size, &mut rng);
    Image { objects, seen, alone, rgb, depth_unit_mm: depth_unit_mm(options, shapes) }
}

/// Objects that do not meet and are all visible enough.
fn draw_objects<'a>(
    options: &SynthOptions,
    shapes: &'a [Shape],
    camera: &Camera,
    rng: &mut impl Rng,
) -> Vec<Placed<'a>> {
    let num = rng.random_range(options.instances.0..=options.instances.1);
    let mut objects: Vec<Placed<'a>> = Vec::with_capacity(num);
    for _ in 0..num {
        let shape = &shapes[rng.random_range(0..shapes.len())];
        for _ in 0..MOST_DRAWS {
            let pose = draw_pose(options, shape, camera, rng);
            let apart = |other: &Placed<'_>| {
                let distance = (other.pose.t_mm - pose.t_mm).norm();
                distance > 0.5 * (other.shape.diameter_mm + shape.diameter_mm)
            };
            if !objects.iter().all(apart) {
                continue;
            }
            objects.push(Placed { shape, pose });
            if visible_fractions(&objects, camera, options.size_px as usize)
                .into_iter()
                .all(|fraction| fraction >= MIN_VISIBLE)
            {
                break;
            }
            objects.pop();
        }
    }
    objects
}

fn draw_pose(options: &SynthOptions, shape: &Shape, camera: &Camera, rng: &mut impl Rng) -> Pose {
    let turn = match options.attitude {
        Attitude::Full => rotation_within(rng, std::f64::consts::PI),
        Attitude::WithinDeg(deg) => {
            rotation_within(rng, deg.to_radians())
                * UnitQuaternion::from_matrix(&nominal_attitude())
        }
    };
    let (near, far) = options.depth_d;
    let z = rng.random_range(near..=far) * shape.diameter_mm;
    let side = f64::from(options.size_px);
    let mut offset = || rng.random_range(-MAX_OFFSET..=MAX_OFFSET) * side / camera.focal_px().0 * z;
    let t_mm = Vec3::new(offset(), offset(), z);
    // Turned along with the ray, so that attitudes are as seen.
    let ray = nalgebra::Rotation3::rotation_between(&Vec3::z(), &t_mm);
    let ray =
        ray.map_or_else(UnitQuaternion::identity, |r| UnitQuaternion::from_rotation_matrix(&r));
    Pose { r: *(ray * turn).to_rotation_matrix().matrix(), t_mm }
}

/// The visible fraction of each object, on a coarse grid.
fn visible_fractions(objects: &[Placed<'_>], camera: &Camera, size: usize) -> Vec<f64> {
    let coarse = |grid: Grid| Grid {
        step: 2.0 * grid.step,
        width: grid.width / 2,
        height: grid.height / 2,
        ..grid
    };
    let seen = Seen::new(coarse(Grid::pixels(size)), camera, objects);
    let count = |index: usize, object: &Placed<'_>| {
        let whole = Seen::new(coarse(Grid::around(size)), camera, &[*object]);
        let all = whole.hits.iter().flatten().count();
        let visible = seen.hits.iter().flatten().filter(|hit| hit.object == index).count();
        visible as f64 / all.max(1) as f64
    };
    objects.iter().enumerate().map(|(i, object)| count(i, object)).collect()
}

/// Colours of the samples, averaged over pixels, in front of a cloudy background; noise, 8 bits.
fn expose(fine: &Seen, objects: &[Placed<'_>], size: usize, rng: &mut impl Rng) -> RgbImage {
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
    let [dark, light] = [0.05, 0.45].map(|level| {
        (unit(rng) * 0.5 + Vector3::repeat(1.0)) * level * rng.random_range(0.3..1.2f32)
    });
    let (place, scale) = (unit(rng) * 50.0, rng.random_range(2.0..7.0f32) / size as f32);
    let deviation = rng.random_range(0.004..0.02f32);
    let mut rgb = RgbImage::new(size as u32, size as u32);
    for (x, y, pixel) in rgb.enumerate_pixels_mut() {
        let at = place + Vector3::new(x as f32, y as f32, 0.0) * scale;
        let cloud = 0.6 * noise(&at) + 0.4 * noise(&(at * 3.1));
        let background = dark + (light - dark) * cloud;
        let mut sum = Vector3::zeros();
        for dy in 0..SAMPLES {
            for dx in 0..SAMPLES {
                let (u, v) = (x as usize * SAMPLES + dx, y as usize * SAMPLES + dy);
                let hit: &Option<Hit> = &fine.hits[v * fine.grid.width + u];
                sum += hit.as_ref().map_or(background, |hit| shade(hit, objects, &lamp));
            }
        }
        let mean = sum / (SAMPLES * SAMPLES) as f32;
        pixel.0 = std::array::from_fn(|i| {
            let noise: f32 = (0..4).map(|_| rng.random_range(-0.5..0.5f32)).sum();
            let level = mean[i].max(0.0).powf(1.0 / 2.2) + noise * deviation * 1.7;
            (level.clamp(0.0, 1.0) * 255.0).round() as u8
        });
    }
    rgb
}

/// Writes the pictures of an image: colour, masks, depth.
fn write_image(
    options: &SynthOptions,
    writer: &Writer,
    place: &Place,
    image: &Image<'_>,
) -> Result<Labels> {
    let ending = format!(".{}", options.format.extension());
    writer.rgb(&place.file("rgb", &ending), &image.rgb)?;
    let size = options.size_px as usize;
    let mut labels = Labels { objects: Vec::new(), infos: Vec::new() };
    for (index, (object, alone)) in image.objects.iter().zip(&image.alone).enumerate() {
        let visible: Vec<bool> =
            image.seen.hits.iter().map(|hit| hit.is_some_and(|hit| hit.object == index)).collect();
        // The whole silhouette: the middle third of the grid is the image.
        let inside =
            |i: usize| alone.hits[(size + i / size) * 3 * size + size + i % size].is_some();
        let whole: Vec<bool> = (0..size * size).map(inside).collect();
        let suffix = format!("_{index:06}.png");
        writer.mask(&place.file("mask", &suffix), &whole)?;
        writer.mask(&place.file("mask_visib", &suffix), &visible)?;
        labels.infos.push(info(alone, &whole, &visible, size));
        let (r, t_mm) = (object.pose.r_row_major().to_vec(), object.pose.t_array().to_vec());
        labels.objects.push(FrameObject { r, t_mm, obj_id: object.shape.obj_id });
    }
    if options.depth_png {
        let depths: Vec<f32> =
            image.seen.depth_mm.iter().map(|z| if z.is_finite() { *z } else { 0.0 }).collect();
        writer.depth_at(&place.file("depth", ".png"), &depths, image.depth_unit_mm)?;
    }
    Ok(labels)
}

/// What `scene_gt_info.json` says of an object.
fn info(alone: &Seen, whole: &[bool], visible: &[bool], size: usize) -> FrameObjectInfo {
    let count = |mask: &[bool]| mask.iter().filter(|v| **v).count() as u64;
    let side = size as i64;
    let around: Vec<bool> = alone.hits.iter().map(Option::is_some).collect();
    let (all, visible_px) = (count(&around), count(visible));
    FrameObjectInfo {
        bbox_obj: bounds(&around, 3 * size, -side),
        bbox_visib: bounds(visible, size, 0),
        px_count_all: all,
        px_count_valid: count(whole),
        px_count_visib: visible_px,
        visib_fract: visible_px as f64 / all.max(1) as f64,
    }
}

/// x, y, width, height of the set pixels of rows of `width`, moved by `shift`, as bop_toolkit writes them; -1 where there are none.
fn bounds(mask: &[bool], width: usize, shift: i64) -> [i64; 4] {
    let set = || mask.iter().enumerate().filter(|(_, set)| **set).map(|(i, _)| i);
    let range = |of: fn(usize, usize) -> usize| {
        let values = || set().map(|i| of(i, width) as i64);
        Some((values().min()?, values().max()?))
    };
    let (Some((left, right)), Some((top, bottom))) = (range(|i, w| i % w), range(|i, w| i / w))
    else {
        return [-1; 4];
    };
    [left + shift, top + shift, right - left, bottom - top]
}

fn write_scene(
    options: &SynthOptions,
    writer: &Writer,
    scene: &str,
    images: &[Labels],
) -> Result<()> {
    let k = trajectory::camera(options.size_px).row_major().to_vec();
    let depth_scale = depth_unit_mm(options, &shapes(options)?);
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

/// What one unit of a depth image is, mm: a tenth, unless 16 bits would not reach.
fn depth_unit_mm(options: &SynthOptions, shapes: &[Shape]) -> f64 {
    let largest = shapes.iter().map(|shape| shape.diameter_mm).fold(0.0, f64::max);
    if (options.depth_d.1 + 1.0) * largest < 6_500.0 { 0.1 } else { 1.0 }
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
        "\n- Images: {0} x {0} px; {1} to {2} objects in each, of which at least {MIN_VISIBLE} is visible; depth {3} to {4} of an \
         object's diameter.\n- Pixel (0, 0) is the centre of the top-left pixel. Poses map the mesh (mm) into the camera frame.\n",
        options.size_px, options.instances.0, options.instances.1, options.depth_d.0, options.depth_d.1
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
                let seen = Seen::new(Grid::pixels(64), &frame.camera, &placed);
                let (_, depth) = picture::read_depth(scene.depth_file(number).unwrap()).unwrap();
                for (i, object) in objects.iter().enumerate() {
                    let told = object.told.unwrap();
                    let file = format!("mask_visib/{number:06}_{i:06}.png");
                    let mask = picture::read_mask(&scene.folder.join(file)).unwrap();
                    let visible = mask.as_raw().iter().filter(|v| **v != 0).count() as u64;
                    assert_eq!(told.px_count_visib, visible);
                    let differ = mask.as_raw().iter().zip(&seen.hits).filter(|(mask, hit)| {
                        (**mask != 0) != hit.is_some_and(|hit| hit.object == i)
                    });
                    assert!(differ.count() <= 2);
                    assert!(told.visib_fract > 0.15, "{}", told.visib_fract);
                    num += 1;
                }
                let far = seen.depth_mm.iter().zip(&depth).filter(|(z, d)| {
                    z.is_finite()
                        && (f64::from(**d) * frame.depth_scale - f64::from(**z)).abs() > 0.1
                });
                assert!(far.count() <= 4);
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
}
