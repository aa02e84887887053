//! Files of one camera: plain or BOP JSON, OpenCV's FileStorage, ROS's camera_info, Kalibr, RealSense, COLMAP, SPEED+.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

use super::warp::Size;
use crate::geom::{Camera, Lens};
use crate::io;
use keys::Keys;

mod colmap;
mod keys;
mod lens;

/// A camera file has a few hundred bytes; a calibration with its board's points some hundred thousand.
const MAX_BYTES: u64 = 4 << 20;
/// Lists in lists (and so on) that a YAML file may have.
const MAX_DEPTH: usize = 64;

/// What a camera's file says.
#[derive(Debug, Clone, PartialEq)]
pub struct CameraFile {
    /// The camera with its distortion.
    pub lens: Lens,
    /// Size of its pictures, px, when the file tells it.
    pub size: Option<Size>,
}

/// Reads a camera from JSON, YAML or COLMAP's `cameras.txt` (told by the content).
///
/// Keys are compared without case, `_` and `-`, and looked for in nested maps too. The matrix is `K` (`cam_K`, `camera_matrix`,
/// `intrinsics`): 9 numbers, 3 rows of 3, or a map with `data` as OpenCV and ROS write it; Kalibr's 4 numbers; or `fx, fy, cx, cy`
/// (RealSense's `ppx, ppy`). The size is `width` and `height`, `image_width` and `image_height`, or `resolution`. Distortion is
/// a list under any key that speaks of distortion or coefficients, in OpenCV's order, or the keys `k1` to `k6`, `p1`, `p2`, `s1`
/// to `s4`; its model is named as ROS, Kalibr, RealSense, COLMAP and OpenCV do.
///
/// # Errors
/// Names the file: unreadable, neither JSON nor YAML, no matrix, wrong counts, a focal length that is not positive or below
/// 1 px, a middle outside the picture, pictures that are binned or cut, several cameras, an unknown model of distortion, and
/// any key that speaks of distortion or of a camera model and is not understood.
pub fn read_camera(path: &Path) -> Result<CameraFile> {
    let at = path.display();
    let reading = || format!("reading camera {at}");
    let bytes = fs::metadata(path).with_context(reading)?.len();
    ensure!(bytes <= MAX_BYTES, "camera {at} has {bytes} bytes: this is not a camera file");
    let text = io::read_text(path).with_context(|| format!("camera {at}"))?;
    let text = text.as_str();
    if let Some(camera) = colmap::parse(text) {
        return camera.with_context(|| format!("camera {at}"));
    }
    let value = match text.trim_start().chars().next() {
        None => bail!("camera {at} is empty"),
        Some('{' | '[') => io::parse_json(text.as_bytes(), &format!("camera {at}"))?,
        Some('<') => bail!(
            "camera {at} is XML, expected JSON or YAML: let OpenCV's FileStorage write a name that ends in .yaml"
        ),
        Some(_) => parse_yaml(text).with_context(|| format!("camera {at}"))?,
    };
    camera_of(&value).with_context(|| format!("camera {at}"))
}

fn parse_yaml(text: &str) -> Result<Value> {
    // OpenCV's first line is `%YAML:1.0`, which is not YAML.
    let text = match text.strip_prefix("%YAML") {
        Some(rest) => rest.split_once('\n').map_or("", |(_, rest)| rest),
        None => text,
    };
    ensure!(!nests_deeply(text), "more than {MAX_DEPTH} lists in lists: this is not a camera file");
    let documents = Yaml::load_from_str(text).map_err(|e| {
        let place = e.marker();
        anyhow!("line {}: {}", place.line(), e.info())
    })?;
    json_of(documents.first().context("no YAML document in it")?)
}

/// Whether brackets alone nest so deeply that the parser's recursion would be in danger.
fn nests_deeply(text: &str) -> bool {
    let mut depth = 0_usize;
    text.bytes().any(|b| {
        match b {
            b'[' | b'{' => depth += 1,
            b']' | b'}' => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MAX_DEPTH
    })
}

fn json_of(node: &Yaml) -> Result<Value> {
    Ok(match node {
        Yaml::Value(Scalar::Null) => Value::Null,
        Yaml::Value(Scalar::Boolean(v)) => Value::Bool(*v),
        Yaml::Value(Scalar::Integer(v)) => Value::from(*v),
        // What is not finite becomes null, which is refused where a number is expected.
        Yaml::Value(Scalar::FloatingPoint(v)) => Value::from(v.into_inner()),
        Yaml::Value(Scalar::String(v)) => Value::String(v.to_string()),
        Yaml::Tagged(_, inner) => json_of(inner)?,
        Yaml::Sequence(items) => Value::Array(items.iter().map(json_of).collect::<Result<_>>()?),
        Yaml::Mapping(map) => {
            let mut out = Map::new();
            for (key, value) in map {
                let key = match json_of(key)? {
                    Value::String(key) => key,
                    other => other.to_string(),
                };
                out.insert(key, json_of(value)?);
            }
            Value::Object(out)
        }
        Yaml::Representation(..) | Yaml::Alias(_) | Yaml::BadValue => {
            bail!("a value that its tag does not fit")
        }
    })
}

fn camera_of(value: &Value) -> Result<CameraFile> {
    let keys = Keys::of(value)
        .context("it is not a map of keys to values, expected fx, fy, cx, cy or K")?;
    ensure_whole(&keys)?;
    let camera = Camera::from_row_major(&matrix_of(&keys)?)?;
    let (fx, fy) = camera.focal_px();
    ensure!(
        fx >= MIN_FOCAL_PX && fy >= MIN_FOCAL_PX,
        "the focal lengths are {fx} and {fy} px: are they in metres or a fraction of the image's width? expected px"
    );
    let size = size_of(&keys)?;
    if let Some((w, h)) = size {
        let c = camera.center_px();
        ensure!(
            (0.0..w as f64).contains(&c.x) && (0.0..h as f64).contains(&c.y),
            "the middle ({}, {}) px lies outside of its images of {w} x {h} px",
            c.x,
            c.y
        );
    }
    Ok(CameraFile { lens: Lens::new(camera, lens::distortion_of(&keys)?), size })
}

/// Refuses messages of ROS about images that are not the camera's whole ones: their pixels are others than the matrix's.
fn ensure_whole(keys: &Keys) -> Result<()> {
    for leaf in keys.named(&["binningx", "binningy"]) {
        let n = leaf.value.as_f64().unwrap_or(0.0);
        ensure!(n <= 1.0, "{} is {n}: binned images have another camera; give theirs", leaf.path);
    }
    for leaf in keys.of_roi(&["xoffset", "yoffset"]) {
        let offset = leaf.value.as_f64().unwrap_or(0.0);
        ensure!(
            offset == 0.0,
            "{} is {offset}: cut images have another camera; give theirs",
            leaf.path
        );
    }
    Ok(())
}

/// Names of the matrix; those with `intrinsic` may also be Kalibr's `fx fy cx cy`.
const MATRIX: [&str; 15] = [
    "k",
    "camk",
    "cameramatrix",
    "cammatrix",
    "kmatrix",
    "matrixk",
    "mtx",
    "calibrationmatrix",
    "intrinsicmatrix",
    "cameraintrinsicmatrix",
    "cameraintrinsics",
    "camintrinsics",
    "intrinsics",
    "intrinsic",
    "intrinsicparameters",
];
/// Names of the single numbers: ROS and OpenCV, NeRF, RealSense and VINS.
const FOCAL_X: [&str; 5] = ["fx", "flx", "focalx", "fu", "mu"];
const FOCAL_Y: [&str; 5] = ["fy", "fly", "focaly", "fv", "mv"];
const CENTER_X: [&str; 6] = ["cx", "ppx", "u0", "pu", "cu", "principalpointx"];
const CENTER_Y: [&str; 6] = ["cy", "ppy", "v0", "pv", "cv", "principalpointy"];
/// A shorter focal length is none in px.
const MIN_FOCAL_PX: f64 = 1.0;
/// Largest difference of two spellings of one focal length, relative.
const SAME_FOCAL: f64 = 0.01;

/// K, row-major.
fn matrix_of(keys: &Keys) -> Result<Vec<f64>> {
    for leaf in keys.named(&MATRIX) {
        for side in ["rows", "cols"] {
            let n = leaf.value.get(side).and_then(Value::as_u64);
            let fits = n.is_none_or(|n| n == 3) || leaf.key.contains("intrinsic");
            ensure!(fits, "{}.{side} is {}, expected 3", leaf.path, n.unwrap_or(0));
        }
    }
    let matrix = keys.same_numbers(keys.named(&MATRIX).filter(|leaf| !leaf.value.is_null()))?;
    let Some((leaf, numbers)) = matrix else { return four_numbers(keys) };
    let k = match (numbers.as_slice(), leaf.key.contains("intrinsic")) {
        (&[fx, fy, cx, cy], true) => vec![fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0],
        // Open3D writes columns.
        (&[fx, zero, _, skew, fy, _, cx, cy, one], true) if cx != 0.0 && cy != 0.0 => {
            vec![fx, skew, cx, zero, fy, cy, 0.0, 0.0, one]
        }
        (k, _) if k.len() == 9 => k.to_vec(),
        (k, intrinsics) => bail!(
            "{} has {} numbers, expected 9{}",
            leaf.path,
            k.len(),
            if intrinsics { " (or fx, fy, cx, cy)" } else { "" }
        ),
    };
    // SPEED+ gives fx in metres beside it.
    if let Some((path, fx)) = keys.same_number(&FOCAL_X)?
        && fx >= MIN_FOCAL_PX
    {
        ensure!(
            (fx / k[0] - 1.0).abs() <= SAME_FOCAL,
            "{path} is {fx} px, but {} has {} px: they contradict each other",
            leaf.path,
            k[0]
        );
    }
    Ok(k)
}

fn four_numbers(keys: &Keys) -> Result<Vec<f64>> {
    let names = [&FOCAL_X[..], &FOCAL_Y, &CENTER_X, &CENTER_Y];
    let mut found = Vec::with_capacity(names.len());
    for names in names {
        found.push(keys.same_number(names)?.map(|(_, value)| value));
    }
    let missing: Vec<&str> = (names.iter().zip(&found))
        .filter_map(|(names, value)| value.is_none().then_some(names[0]))
        .collect();
    ensure!(
        missing.len() < names.len(),
        "it has neither K (camera_matrix) nor fx, fy, cx, cy; its keys are {}",
        keys.listed()
    );
    ensure!(missing.is_empty(), "{} is missing beside its fx, fy, cx, cy", missing.join(", "));
    let [fx, fy, cx, cy] = std::array::from_fn(|i| found[i].unwrap_or_default());
    Ok(vec![fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0])
}

/// Names of the width and the height.
const SIDES: [(&str, &str); 6] = [
    ("width", "height"),
    ("imagewidth", "imageheight"),
    ("imgwidth", "imgheight"),
    ("w", "h"),
    ("nu", "nv"),
    ("resx", "resy"),
];
/// Names of both, `[width, height]`.
const SIZES: [&str; 6] =
    ["resolution", "imagesize", "imgsize", "imageresolution", "imagedimensions", "size"];

fn size_of(keys: &Keys) -> Result<Option<Size>> {
    let mut known: Option<(String, Size)> = None;
    let mut take = |path: &str, size: Size| {
        let before = known.get_or_insert_with(|| (path.to_owned(), size));
        ensure!(
            before.1 == size,
            "{} says {} x {} px, but {path} {} x {} px: is it a file of several cameras?",
            before.0,
            before.1.0,
            before.1.1,
            size.0,
            size.1
        );
        Ok(())
    };
    for (width, height) in SIDES {
        let (w, h) = (keys.same_number(&[width])?, keys.same_number(&[height])?);
        let ((w_path, w), (h_path, h)) = match (w, h) {
            (None, None) => continue,
            (Some(w), Some(h)) => (w, h),
            (Some((path, _)), None) => bail!("{path} stands without {height}"),
            (None, Some((path, _))) => bail!("{path} stands without {width}"),
        };
        match (whole_px(w_path, w)?, whole_px(h_path, h)?) {
            (0, 0) => {} // ROS: not known
            (w, h) => {
                ensure!(
                    w > 0 && h > 0,
                    "{w_path} and {h_path} are {w} and {h} px, expected more than 0"
                );
                take(w_path, (w, h))?;
            }
        }
    }
    for leaf in keys.named(&SIZES) {
        if let Ok([w, h]) =
            <[f64; 2]>::try_from(numbers(&leaf.path, leaf.value).unwrap_or_default())
        {
            take(&leaf.path, (whole_px(&leaf.path, w)?, whole_px(&leaf.path, h)?))?;
        }
    }
    Ok(known.map(|(_, size)| size))
}

fn whole_px(path: &str, n: f64) -> Result<usize> {
    let whole = n >= 0.0 && n.fract() == 0.0 && n < 1e6;
    ensure!(whole, "{path} is {n}, expected a whole number of px");
    Ok(n as usize)
}

fn number(key: &str, value: &Value) -> Result<f64> {
    value.as_f64().with_context(|| format!("{key} is {value}, expected a number"))
}

/// The numbers of a list, of a list of lists, or of a matrix with `data` (and `rows`, `cols`).
fn numbers(key: &str, value: &Value) -> Result<Vec<f64>> {
    match value {
        Value::Array(items) => {
            let mut out = Vec::new();
            for item in items {
                match item {
                    Value::Array(row) => {
                        for value in row {
                            out.push(number(key, value)?);
                        }
                    }
                    value => out.push(number(key, value)?),
                }
            }
            Ok(out)
        }
        Value::Object(matrix) => {
            let data =
                matrix.get("data").with_context(|| format!("{key} is a map without data"))?;
            ensure!(data.is_array(), "{key}.data is {data}, expected a list of numbers");
            let out = numbers(&format!("{key}.data"), data)?;
            if let [Some(rows), Some(cols)] =
                ["rows", "cols"].map(|side| matrix.get(side).and_then(Value::as_u64))
            {
                ensure!(
                    rows.checked_mul(cols) == Some(out.len() as u64),
                    "{key}.data has {} numbers, but rows and cols are {rows} and {cols}",
                    out.len()
                );
            }
            Ok(out)
        }
        other => bail!("{key} is {other}, expected a list of numbers"),
    }
}

#[cfg(test)]
mod tests;
