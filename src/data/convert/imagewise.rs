//! BOP's layouts for whole images: files `KEY.rgb.png`, `KEY.camera.json`, `KEY.gt.json` ... of a folder, or of tar archives. KEY is
//! `{scene:06}_{image:06}`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, Read as _};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use image::GrayImage;
use rayon::prelude::*;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::Converted;
use crate::io::{parse_json, picture, write_json};

/// Files of an image by what follows the key: `rgb.png`.
type Files = BTreeMap<String, Vec<u8>>;

/// What the files of its scene say of an image.
struct Entry {
    scene: u32,
    number: u32,
    camera: Value,
    gt: Option<Value>,
    gt_info: Option<Value>,
}

/// A mask as runs of zeros and ones, by columns, zeros first; height and width.
#[derive(Debug, Deserialize)]
struct Runs {
    counts: Value,
    size: [usize; 2],
}

/// Converts the files of a folder into a folder of scenes.
///
/// # Errors
/// If there is none, or one cannot be read; names it.
pub(super) fn convert_files(source: &Path, out: &Path) -> Result<Converted> {
    let mut keys: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for path in files_in(source)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if let Some((key, _)) = name.split_once('.').filter(|(key, _)| ids(key).is_some()) {
            keys.entry(key.to_owned()).or_default().push(path);
        }
    }
    let at = source.display();
    ensure!(!keys.is_empty(), "{at}: no file like 000000_000001.rgb.png");
    let entry = |(key, paths): (&String, &Vec<PathBuf>)| -> Result<Entry> {
        let mut files = Files::new();
        for path in paths {
            let bytes = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            files.insert(name[key.len() + 1..].to_owned(), bytes);
        }
        write_image(key, files, out).with_context(|| format!("{at}: {key}"))
    };
    let entries = keys.par_iter().map(entry).collect::<Result<Vec<_>>>()?;
    write_scenes(entries, out)
}

/// Converts the archives of a folder into a folder of scenes.
///
/// # Errors
/// If there is none, or one cannot be read; names it and the image.
pub(super) fn convert_shards(source: &Path, out: &Path) -> Result<Converted> {
    let mut shards = files_in(source)?;
    shards.retain(|path| path.extension().is_some_and(|ending| ending == "tar"));
    ensure!(!shards.is_empty(), "{}: no archive like shard-000000.tar", source.display());
    let read =
        |path: &PathBuf| shard(path, out).with_context(|| format!("reading {}", path.display()));
    let entries: Vec<Vec<Entry>> = shards.par_iter().map(read).collect::<Result<_>>()?;
    write_scenes(entries.into_iter().flatten().collect(), out)
}

/// The images of an archive, whose files stand one after the other.
fn shard(path: &Path, out: &Path) -> Result<Vec<Entry>> {
    let mut archive = tar::Archive::new(BufReader::new(File::open(path)?));
    let (mut entries, mut key, mut files) = (Vec::new(), String::new(), Files::new());
    let mut finish = |key: &str, files: Files| -> Result<()> {
        if !files.is_empty() {
            entries.push(write_image(key, files, out).with_context(|| key.to_owned())?);
        }
        Ok(())
    };
    for file in archive.entries()? {
        let mut file = file?;
        let path = file.path()?.into_owned();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let Some((own, what)) = name.split_once('.').filter(|(key, _)| ids(key).is_some()) else {
            continue;
        };
        if own != key {
            finish(&key, std::mem::take(&mut files))?;
            key = own.to_owned();
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        files.insert(what.to_owned(), bytes);
    }
    finish(&key, files)?;
    Ok(entries)
}

fn files_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading the folder {}", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(reading)? {
        paths.push(entry.with_context(reading)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Scene and image of a key.
fn ids(key: &str) -> Option<(u32, u32)> {
    let (scene, image) = key.split_once('_')?;
    Some((scene.parse().ok()?, image.parse().ok()?))
}

/// Writes the pictures of an image into its scene.
fn write_image(key: &str, files: Files, out: &Path) -> Result<Entry> {
    let (scene, number) = ids(key).context("no key")?;
    let folder = out.join(format!("{scene:06}"));
    let json = |what: &str| -> Result<Option<Value>> {
        files.get(what).map(|bytes| parse_json(bytes, &format!("{key}.{what}"))).transpose()
    };
    let mut has_picture = false;
    for (what, bytes) in &files {
        let Some((dir, ending)) = what.split_once('.') else { continue };
        if ["rgb", "gray", "depth"].contains(&dir) {
            has_picture |= dir != "depth";
            write_bytes(&folder.join(format!("{dir}/{number:06}.{ending}")), bytes)?;
        }
    }
    ensure!(has_picture, "it has neither {key}.rgb.png (or .jpg) nor {key}.gray.png");
    let camera = json("camera.json")?.with_context(|| format!("it has no {key}.camera.json"))?;
    let (gt, gt_info) = (json("gt.json")?, json("gt_info.json")?);
    let num_objects = gt.as_ref().and_then(Value::as_array).map_or(0, Vec::len);
    for dir in ["mask", "mask_visib"] {
        let what = format!("{dir}.json");
        let Some(masks) = json(&what)? else { continue };
        let masks = in_order(masks).with_context(|| format!("{key}.{what}"))?;
        ensure!(
            masks.len() == num_objects,
            "{key}.{what} has {} masks, but {key}.gt.json {num_objects} objects",
            masks.len()
        );
        for (i, runs) in masks.into_iter().enumerate() {
            let mask = unrolled(runs).with_context(|| format!("{key}.{what}: mask {i}"))?;
            let file = folder.join(format!("{dir}/{number:06}_{i:06}.png"));
            picture::write_png(&file, &mask)?;
        }
    }
    Ok(Entry { scene, number, camera, gt, gt_info })
}

fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let writing = || format!("writing {}", path.display());
    fs::create_dir_all(path.parent().with_context(writing)?).with_context(writing)?;
    fs::write(path, bytes).with_context(writing)
}

/// Masks of a list, or of a map by the numbers of the objects.
fn in_order(masks: Value) -> Result<Vec<Value>> {
    match masks {
        Value::Array(masks) => Ok(masks),
        Value::Object(masks) => {
            let numbered = |(key, mask): (String, Value)| {
                let number: usize = key
                    .parse()
                    .ok()
                    .with_context(|| format!("key {key:?}, expected the number of an object"))?;
                Ok((number, mask))
            };
            let sorted: BTreeMap<usize, Value> =
                masks.into_iter().map(numbered).collect::<Result<_>>()?;
            Ok(sorted.into_values().collect())
        }
        other => bail!("{other} is neither a list nor a map of masks"),
    }
}

/// The mask of runs.
fn unrolled(runs: Value) -> Result<GrayImage> {
    let Runs { counts, size: [height, width] } = serde_json::from_value(runs)?;
    let counts: Vec<usize> = serde_json::from_value(counts).ok().context(
        "its counts are no list of numbers (compressed runs are not read: write them with bop_toolkit's binary_mask_to_rle)",
    )?;
    let num_px = width * height;
    let sum = counts.iter().try_fold(0usize, |sum, run| sum.checked_add(*run));
    ensure!(
        num_px > 0 && sum == Some(num_px) && u32::try_from(width.max(height)).is_ok(),
        "its runs are {sum:?} pixels, expected {height} x {width}"
    );
    let mut mask = GrayImage::new(width as u32, height as u32);
    let mut place = 0;
    for (i, run) in counts.into_iter().enumerate() {
        if i % 2 == 1 {
            for at in place..place + run {
                mask.put_pixel((at / height) as u32, (at % height) as u32, image::Luma([255]));
            }
        }
        place += run;
    }
    Ok(mask)
}

fn write_scenes(entries: Vec<Entry>, out: &Path) -> Result<Converted> {
    let num_images = entries.len();
    let mut scenes: BTreeMap<u32, BTreeMap<u32, Entry>> = BTreeMap::new();
    for entry in entries {
        let (scene, number) = (entry.scene, entry.number);
        let other = scenes.entry(scene).or_default().insert(number, entry);
        ensure!(other.is_none(), "image {number} of scene {scene} is there twice");
    }
    let mut made = Converted { splits: vec![(String::new(), num_images)], ..Converted::default() };
    for (scene, images) in scenes {
        let folder = out.join(format!("{scene:06}"));
        let camera = |entry: &Entry| Some(entry.camera.clone());
        write_map(&folder.join("scene_camera.json"), &images, camera)?;
        write_map(&folder.join("scene_gt.json"), &images, |entry| entry.gt.clone())?;
        write_map(&folder.join("scene_gt_info.json"), &images, |entry| entry.gt_info.clone())?;
        if images.values().all(|entry| entry.gt.is_none()) {
            made.notes.push(format!("scene {scene:06} has no true poses"));
        }
    }
    Ok(made)
}

/// Writes what the images of a scene have by their numbers; nothing where none has it.
fn write_map(
    path: &Path,
    images: &BTreeMap<u32, Entry>,
    of: impl Fn(&Entry) -> Option<Value>,
) -> Result<()> {
    let mut map = Map::new();
    let mut without = None;
    for (number, entry) in images {
        match of(entry) {
            Some(value) => drop(map.insert(number.to_string(), value)),
            None => without = Some(number),
        }
    }
    match without {
        Some(_) if map.is_empty() => Ok(()),
        Some(number) => {
            bail!("{}: image {number} lacks what others of its scene have", path.display())
        }
        None => write_json(path, &map),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{ConvertFrom, convert};
    use super::*;
    use crate::data::BopFolder;

    /// The files of two images of one scene, the second without objects.
    fn files() -> Vec<(String, Vec<u8>)> {
        let mut files = Vec::new();
        for (number, gt, masks) in [
            (
                3,
                r#"[{"obj_id": 5, "cam_R_m2c": [1,0,0,0,1,0,0,0,1], "cam_t_m2c": [0,0,500]}]"#,
                r#"{"0": {"counts": [4, 3, 5], "size": [3, 4]}}"#,
            ),
            (12, "[]", "{}"),
        ] {
            let key = format!("000048_{number:06}");
            let mut png = std::io::Cursor::new(Vec::new());
            GrayImage::new(4, 3).write_to(&mut png, image::ImageFormat::Png).unwrap();
            files.push((format!("{key}.rgb.png"), png.into_inner()));
            for (what, text) in [
                (
                    "camera.json",
                    r#"{"cam_K": [9,0,2,0,9,1,0,0,1], "depth_scale": 0.1, "view_level": 2}"#,
                ),
                ("gt.json", gt),
                (
                    "gt_info.json",
                    if number == 3 { r#"[{"px_count_visib": 3, "visib_fract": 1}]"# } else { "[]" },
                ),
                ("mask.json", masks),
                ("mask_visib.json", masks),
            ] {
                files.push((format!("{key}.{what}"), text.into()));
            }
        }
        files
    }

    fn write_files(dir: &Path) {
        for (name, bytes) in files() {
            fs::write(dir.join(name), bytes).unwrap();
        }
    }

    fn write_shard(dir: &Path) {
        let mut tar = tar::Builder::new(File::create(dir.join("shard-000000.tar")).unwrap());
        for (name, bytes) in files() {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, bytes.as_slice()).unwrap();
        }
        tar.finish().unwrap();
        fs::write(dir.join("key_to_shard.json"), "{}").unwrap();
    }

    #[test]
    fn files_and_archives_become_the_same_scenes() {
        let mut written = Vec::new();
        for (from, write) in [
            (ConvertFrom::Imagewise, write_files as fn(&Path)),
            (ConvertFrom::Webdataset, write_shard as fn(&Path)),
        ] {
            let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            write(dir.path());
            fs::create_dir_all(root.path().join("models")).unwrap();
            fs::write(root.path().join("models/models_info.json"), r#"{"5": {"diameter": 90}}"#)
                .unwrap();
            let made = convert(from, dir.path(), &root.path().join("train_pbr")).unwrap();
            assert_eq!(made.splits, [(String::new(), 2)]);
            let folder = BopFolder::find(root.path()).unwrap();
            let scene = folder.scenes("train_pbr").unwrap().remove(0);
            assert_eq!(
                (scene.id, scene.images.keys().copied().collect::<Vec<_>>()),
                (48, vec![3, 12])
            );
            let frame = scene.frame(3).unwrap();
            assert_eq!(frame.camera.focal_px(), (9.0, 9.0));
            let object = &frame.objects.as_ref().unwrap()[0];
            assert_eq!((object.obj_id, object.told.unwrap().px_count_visib), (5, 3));
            assert!(scene.frame(12).unwrap().objects.as_ref().unwrap().is_empty());
            assert!(scene.image_file(12).is_some());
            // Runs by columns of 3: the second pixel of the second column on.
            let mask =
                picture::read_mask(&scene.folder.join("mask_visib/000003_000000.png")).unwrap();
            assert_eq!(mask.into_raw(), [0, 0, 255, 0, 0, 255, 0, 0, 0, 255, 0, 0]);
            let camera = fs::read_to_string(scene.folder.join("scene_camera.json")).unwrap();
            assert!(camera.contains("view_level"), "{camera}");
            written.push(camera);
        }
        assert_eq!(written[0], written[1]);
    }

    #[test]
    fn what_is_missing_is_named_and_nothing_is_left() {
        let (dir, root) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let out = root.path().join("train");
        let error =
            || format!("{:#}", convert(ConvertFrom::Imagewise, dir.path(), &out).unwrap_err());
        assert!(error().contains("no file like 000000_000001.rgb.png"));
        for (what, text, expected) in [
            ("camera.json", None, "it has no 000048_000003.camera.json"),
            ("mask.json", Some("[]"), "000048_000003.mask.json has 0 masks, but"),
            (
                "mask.json",
                Some(r#"[{"counts": [4, 3], "size": [3, 4]}]"#),
                "its runs are Some(7) pixels, expected 3 x 4",
            ),
            (
                "mask.json",
                Some(r#"[{"counts": "Pm", "size": [3, 4]}]"#),
                "its counts are no list of numbers",
            ),
            ("gt_info.json", None, "scene_gt_info.json: image 3 lacks"),
            ("rgb.png", None, "it has neither 000048_000003.rgb.png"),
        ] {
            write_files(dir.path());
            let path = dir.path().join(format!("000048_000003.{what}"));
            match text {
                Some(text) => fs::write(path, text).unwrap(),
                None => fs::remove_file(path).unwrap(),
            }
            let error = error();
            assert!(error.contains(expected), "{expected}: {error}");
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0);
        let none = format!("{:#}", convert(ConvertFrom::Webdataset, dir.path(), &out).unwrap_err());
        assert!(none.contains("no archive like shard-000000.tar"), "{none}");
    }
}
