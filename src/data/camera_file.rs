//! Files of one camera: plain or BOP JSON, OpenCV's FileStorage, ROS's camera_info.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use saphyr::{LoadableYamlNode, Scalar, Yaml};
use serde_json::{Map, Value};

use super::warp::Size;
use crate::geom::{Camera, Distortion, Lens};
use crate::io;

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

/// Reads a camera from JSON or YAML (told by the content).
///
/// The matrix is `fx, fy, cx, cy` (BOP's `camera.json`), or `K` (or `k`, `cam_K`, `camera_matrix`): 9 numbers, 3 rows of 3, or a
/// map with `data` as OpenCV and ROS write it. The size is `width` and `height` or `image_width` and `image_height`.
/// Distortion is `distortion_coefficients` (or `D`, `d`, `dist_coeffs`), in OpenCV's order, or the keys `k1` to `k6`, `p1`,
/// `p2`, `s1` to `s4`; `distortion_model` names the model as ROS does, `fisheye_model: 1` is OpenCV's.
///
/// # Errors
/// Names the file: unreadable, neither JSON nor YAML, no matrix, wrong counts, a focal length that is not positive, a middle
/// outside the picture, an unknown model of distortion, pictures that are binned or cut.
pub fn read_camera(path: &Path) -> Result<CameraFile> {
    let at = path.display();
    let reading = || format!("reading camera {at}");
    let bytes = fs::metadata(path).with_context(reading)?.len();
    ensure!(bytes <= MAX_BYTES, "camera {at} has {bytes} bytes: this is no camera file");
    let text = fs::read(path).with_context(reading)?;
    let text = String::from_utf8(text).map_err(|_| anyhow!("camera {at} is no text (UTF-8)"))?;
    let text = text.trim_start_matches('\u{feff}');
    let value = match text.trim_start().chars().next() {
        None => bail!("camera {at} is empty"),
        Some('{' | '[') => io::parse_json(text.as_bytes(), &format!("camera {at}"))?,
        Some('<') => bail!(
            "camera {at} is XML, expected JSON or YAML: let OpenCV's FileStorage write a name that ends in .yaml"
        ),
        Some(_) => parse_yaml(text).with_context(|| format!("camera {at}"))?,
    };
    let Value::Object(map) = value else {
        bail!("camera {at} is no map of keys to values, expected fx, fy, cx, cy or K");
    };
    camera_of(&map).with_context(|| format!("camera {at}"))
}

fn parse_yaml(text: &str) -> Result<Value> {
    // OpenCV's first line is `%YAML:1.0`, which is no YAML.
    let text = match text.strip_prefix("%YAML") {
        Some(rest) => rest.split_once('\n').map_or("", |(_, rest)| rest),
        None => text,
    };
    ensure!(!nests_deeply(text), "more than {MAX_DEPTH} lists in lists: this is no camera file");
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

fn camera_of(map: &Map<String, Value>) -> Result<CameraFile> {
    ensure_whole(map)?;
    let camera = Camera::from_row_major(&matrix_of(map)?)?;
    let size = size_of(map)?;
    if let Some((w, h)) = size {
        let c = camera.center_px();
        ensure!(
            (0.0..w as f64).contains(&c.x) && (0.0..h as f64).contains(&c.y),
            "the middle ({}, {}) px lies outside of its images of {w} x {h} px",
            c.x,
            c.y
        );
    }
    Ok(CameraFile { lens: Lens::new(camera, distortion_of(map)?), size })
}

/// Refuses messages of ROS about images that are not the camera's whole ones: their pixels are others than the matrix's.
fn ensure_whole(map: &Map<String, Value>) -> Result<()> {
    for key in ["binning_x", "binning_y"] {
        if let Some(n) = map.get(key).and_then(Value::as_f64) {
            ensure!(n <= 1.0, "{key} is {n}: binned images have another camera; give theirs");
        }
    }
    if let Some(Value::Object(roi)) = map.get("roi") {
        for key in ["x_offset", "y_offset"] {
            let offset = roi.get(key).and_then(Value::as_f64).unwrap_or(0.0);
            ensure!(
                offset == 0.0,
                "roi.{key} is {offset}: cut images have another camera; give theirs"
            );
        }
    }
    Ok(())
}

/// The first of `keys` that is there.
fn first<'a>(
    map: &'a Map<String, Value>,
    keys: &[&'static str],
) -> Option<(&'static str, &'a Value)> {
    keys.iter().find_map(|key| Some((*key, map.get(*key)?)))
}

/// K, row-major.
fn matrix_of(map: &Map<String, Value>) -> Result<Vec<f64>> {
    const KEYS: [&str; 4] = ["K", "k", "cam_K", "camera_matrix"];
    if let Some((key, value)) = first(map, &KEYS) {
        if let Value::Object(matrix) = value {
            for side in ["rows", "cols"] {
                let n = matrix.get(side).and_then(Value::as_u64);
                ensure!(n.is_none_or(|n| n == 3), "{key}.{side} is {}, expected 3", n.unwrap_or(0));
            }
        }
        let numbers = numbers(key, value)?;
        ensure!(numbers.len() == 9, "{key} has {} numbers, expected 9", numbers.len());
        return Ok(numbers);
    }
    let keys = ["fx", "fy", "cx", "cy"];
    let missing: Vec<&str> = keys.into_iter().filter(|key| !map.contains_key(*key)).collect();
    if missing.len() == keys.len() {
        bail!(
            "it has neither K (camera_matrix) nor fx, fy, cx, cy; its keys are {}",
            listed(map.keys().map(String::as_str))
        );
    }
    ensure!(missing.is_empty(), "{} is missing beside its fx, fy, cx, cy", missing.join(", "));
    let [fx, fy, cx, cy] = keys.map(|key| number(key, &map[key]));
    Ok(vec![fx?, 0.0, cx?, 0.0, fy?, cy?, 0.0, 0.0, 1.0])
}

fn listed<'a>(keys: impl Iterator<Item = &'a str>) -> String {
    const MOST: usize = 12;
    let keys: Vec<&str> = keys.collect();
    let more = if keys.len() > MOST { ", ..." } else { "" };
    match keys.is_empty() {
        true => "none".to_owned(),
        false => keys[..keys.len().min(MOST)].join(", ") + more,
    }
}

fn size_of(map: &Map<String, Value>) -> Result<Option<Size>> {
    for (width, height) in [("width", "height"), ("image_width", "image_height")] {
        let (w, h) = match (map.get(width), map.get(height)) {
            (None, None) => continue,
            (Some(w), Some(h)) => (w, h),
            (Some(_), None) => bail!("{width} stands without {height}"),
            (None, Some(_)) => bail!("{height} stands without {width}"),
        };
        let side = |key: &str, value: &Value| {
            let n = value.as_f64().filter(|n| *n >= 0.0 && n.fract() == 0.0 && *n < 1e6);
            n.map(|n| n as usize)
                .with_context(|| format!("{key} is {value}, expected a whole number of px"))
        };
        let (w, h) = (side(width, w)?, side(height, h)?);
        match (w, h) {
            (0, 0) => continue, // ROS: not known
            (0, _) | (_, 0) => {
                bail!("{width} and {height} are {w} and {h} px, expected more than 0")
            }
            size => return Ok(Some(size)),
        }
    }
    Ok(None)
}

/// What a file calls its model of distortion.
enum Model {
    Unnamed,
    Polynomial { name: String, counts: &'static [usize] },
    Equidistant,
    None,
}

fn model_of(map: &Map<String, Value>) -> Result<Model> {
    let fisheye = map.get("fisheye_model");
    if fisheye.is_some_and(|v| v.as_bool() == Some(true) || v.as_f64().is_some_and(|n| n != 0.0)) {
        return Ok(Model::Equidistant);
    }
    let Some(value) = map.get("distortion_model") else { return Ok(Model::Unnamed) };
    let name =
        value.as_str().with_context(|| format!("distortion_model is {value}, expected a name"))?;
    let polynomial = |counts| Model::Polynomial { name: name.to_owned(), counts };
    Ok(match name.to_ascii_lowercase().as_str() {
        "" => Model::Unnamed,
        "none" => Model::None,
        "plumb_bob" | "radtan" | "brown_conrady" => polynomial(&[0, 4, 5]),
        "rational_polynomial" | "thin_prism" | "opencv" => polynomial(&[0, 4, 5, 8, 12, 14]),
        "equidistant" | "fisheye" | "kannala_brandt4" => Model::Equidistant,
        _ => bail!(
            "distortion_model is {name:?}, expected plumb_bob, rational_polynomial or equidistant (with its coefficients), \
             or none"
        ),
    })
}

fn distortion_of(map: &Map<String, Value>) -> Result<Distortion> {
    const KEYS: [&str; 7] =
        ["distortion_coefficients", "D", "d", "dist_coeffs", "distCoeffs", "dist", "distortion"];
    let (key, coefficients) = match first(map, &KEYS) {
        Some((key, Value::Null)) => (key, Vec::new()),
        Some((key, value)) => (key, numbers(key, value)?),
        None => ("k1, k2, ...", named_coefficients(map)?),
    };
    let lens = match model_of(map)? {
        Model::Unnamed => Distortion::polynomial(&coefficients),
        Model::None => {
            ensure!(
                coefficients.iter().all(|v| *v == 0.0),
                "distortion_model is \"none\", but {key} has values other than 0"
            );
            Ok(Distortion::None)
        }
        Model::Equidistant => Distortion::equidistant(&coefficients),
        Model::Polynomial { name, counts } => {
            let n = coefficients.len();
            let expected: Vec<String> = counts[1..].iter().map(usize::to_string).collect();
            ensure!(
                counts.contains(&n),
                "{key} has {n} numbers, but distortion_model {name:?} has {}",
                expected.join(" or ")
            );
            Distortion::polynomial(&coefficients)
        }
    };
    lens.with_context(|| key.to_owned())
}

/// Coefficients under their own keys, in OpenCV's order; none without a key.
fn named_coefficients(map: &Map<String, Value>) -> Result<Vec<f64>> {
    const NAMES: [&str; 12] =
        ["k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "s1", "s2", "s3", "s4"];
    const FISHEYE: [&str; 4] = ["k1", "k2", "k3", "k4"];
    let equidistant = matches!(model_of(map)?, Model::Equidistant);
    let names = if equidistant { &FISHEYE[..] } else { &NAMES[..] };
    let Some(last) = names.iter().rposition(|name| map.contains_key(*name)) else {
        return Ok(Vec::new());
    };
    let of = |name: &&str| map.get(*name).map_or(Ok(0.0), |value| number(name, value));
    let mut values: Vec<f64> = names.iter().map(of).collect::<Result<_>>()?;
    if !equidistant {
        values.truncate([4, 5, 8, 12].into_iter().find(|n| *n > last).unwrap_or(12));
    }
    Ok(values)
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
mod tests {
    use super::*;

    const OPENCV: &str = "%YAML:1.0\n---\ncalibration_time: \"Mon 01 Jan 2024 10:00:00\"\nimage_width: 640\nimage_height: 480\n\
        flags: 0\ncamera_matrix: !!opencv-matrix\n   rows: 3\n   cols: 3\n   dt: d\n   data: [ 5.3e+02, 0., 3.2e+02, 0., 531., \
        2.4e+02, 0.,\n       0., 1. ]\ndistortion_coefficients: !!opencv-matrix\n   rows: 5\n   cols: 1\n   dt: d\n   \
        data: [ -2.8e-01, 7.0e-02, 1.0e-04, -2.0e-04, 0. ]\navg_reprojection_error: 2.1e-01\n";
    const ROS: &str = "image_width: 640\nimage_height: 480\ncamera_name: narrow_stereo\ncamera_matrix:\n  rows: 3\n  cols: 3\n  \
        data: [530, 0, 320, 0, 531, 240, 0, 0, 1]\ndistortion_model: plumb_bob\ndistortion_coefficients:\n  rows: 1\n  cols: 5\n  \
        data: [-0.28, 0.07, 0.0001, -0.0002, 0]\nrectification_matrix:\n  rows: 3\n  cols: 3\n  data: [1, 0, 0, 0, 1, 0, 0, 0, 1]\n\
        projection_matrix:\n  rows: 3\n  cols: 4\n  data: [500, 0, 320, 0, 0, 500, 240, 0, 0, 0, 1, 0]\n";

    fn read(text: &str) -> Result<CameraFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cam.txt");
        fs::write(&path, text).unwrap();
        read_camera(&path)
    }

    fn error_of(text: &str) -> String {
        let error = format!("{:#}", read(text).expect_err(text));
        assert!(error.contains("cam.txt") && !error.contains('\n'), "{error}");
        error
    }

    fn expected(distortion: Distortion, size: Option<Size>) -> CameraFile {
        let camera = Camera::new(530.0, 531.0, 320.0, 240.0).unwrap();
        CameraFile { lens: Lens::new(camera, distortion), size }
    }

    #[test]
    fn every_form_of_the_same_camera_is_read_alike() {
        let plain = expected(Distortion::None, None);
        let sized = expected(Distortion::None, Some((640, 480)));
        let k = "[530, 0, 320, 0, 531, 240, 0, 0, 1]";
        let four = r#""fx": 530.0, "fy": 531, "cx": 320, "cy": 240"#;
        for (text, camera) in [
            (format!("{{{four}}}"), plain.clone()),
            (
                format!("{{{four}, \"depth_scale\": 0.1, \"width\": 640, \"height\": 480}}"),
                sized.clone(),
            ),
            (format!("{{\"K\": {k}}}"), plain.clone()),
            (format!("\u{feff}{{\"cam_K\": {k}, \"depth_scale\": 1.0}}"), plain.clone()),
            ("{\"K\": [[530, 0, 320], [0, 531, 240], [0, 0, 1]]}".to_owned(), plain.clone()),
            (format!("K: {k}\nwidth: 640\nheight: 480\n"), sized.clone()),
            ("fx: 530\nfy: 531.0\ncx: 3.2e2\ncy: 240.\n".to_owned(), plain.clone()),
            (
                format!(
                    "height: 480\nwidth: 640\ndistortion_model: ''\nd: []\nk: {k}\nbinning_x: 0\nroi: {{x_offset: 0}}"
                ),
                sized.clone(),
            ),
            (
                format!("{{\"K\": {k}, \"D\": [0, 0, 0, 0, 0], \"width\": 0, \"height\": 0}}"),
                plain.clone(),
            ),
        ] {
            assert_eq!(read(&text).unwrap(), camera, "{text}");
        }
        let distortion = Distortion::polynomial(&[-0.28, 0.07, 1e-4, -2e-4, 0.0]).unwrap();
        let lens = expected(distortion, Some((640, 480)));
        let json = r#"{"image_width": 640, "image_height": 480,
            "camera_matrix": {"type_id": "opencv-matrix", "rows": 3, "cols": 3, "dt": "d", "data": [530,0,320,0,531,240,0,0,1]},
            "distortion_coefficients": {"type_id": "opencv-matrix", "rows": 1, "cols": 5, "dt": "d", "data": [-0.28, 0.07, 1e-4, -2e-4, 0]}}"#;
        for text in [OPENCV, &OPENCV.replace('\n', "\r\n"), ROS, json] {
            assert_eq!(read(text).unwrap(), lens, "{text}");
        }
        let named = format!(
            "{{{four}, \"width\": 640, \"height\": 480, \"k1\": -0.28, \"k2\": 0.07, \"p1\": 1e-4, \"p2\": -2e-4}}"
        );
        assert_eq!(read(&named).unwrap(), lens);
    }

    #[test]
    fn models_of_distortion_are_told_by_name_and_count() {
        let with = |model: &str, d: &str| {
            ROS.replace("plumb_bob", model)
                .replace("cols: 5", "")
                .replace("[-0.28, 0.07, 0.0001, -0.0002, 0]", d)
        };
        let of = |text: &str| *read(text).unwrap().lens.distortion();
        let fisheye = Distortion::equidistant(&[0.1, 0.2, 0.3, 0.4]).unwrap();
        assert_eq!(of(&with("equidistant", "[0.1, 0.2, 0.3, 0.4]")), fisheye);
        let opencv = OPENCV
            .replace("rows: 5", "rows: 4")
            .replace("[ -2.8e-01, 7.0e-02, 1.0e-04, -2.0e-04, 0. ]", "[0.1, 0.2, 0.3, 0.4]");
        assert_eq!(of(&opencv.replace("flags: 0", "fisheye_model: 1")), fisheye);
        assert!(matches!(
            of(&opencv.replace("flags: 0", "fisheye_model: 0")),
            Distortion::Polynomial { .. }
        ));
        let eight = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8];
        let rational = Distortion::polynomial(&eight).unwrap();
        assert_eq!(of(&with("rational_polynomial", &format!("{eight:?}"))), rational);
        assert_eq!(of(&with("plumb_bob", "[]")), Distortion::None);

        for (model, d, expected) in [
            (
                "plumb_bob",
                "[0, 1, 2]",
                "has 3 numbers, but distortion_model \"plumb_bob\" has 4 or 5",
            ),
            ("plumb_bob", "[1, 1, 1, 1, 1, 1, 1, 1]", "has 8 numbers"),
            ("equidistant", "[0, 1, 2]", "3 distortion coefficients of a fisheye lens"),
            (
                "inverse_brown",
                "[0, 1, 2, 3]",
                "distortion_model is \"inverse_brown\", expected plumb_bob",
            ),
            ("none", "[0, 1]", "distortion_model is \"none\", but"),
            ("plumb_bob", "[0, .nan, 0, 0]", "is null, expected a number"),
            ("plumb_bob", "[0, x, 0, 0]", "is \"x\", expected a number"),
        ] {
            let error = error_of(&with(model, d));
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_camera_says_why() {
        let good = r#"{"fx": 530, "fy": 531, "cx": 320, "cy": 240, "width": 640, "height": 480}"#;
        for (find, put, expected) in [
            (good, "", "is empty"),
            (good, "[1, 2]", "no map"),
            (good, "hello", "no map"),
            (good, "a: [1,\nb: }", "line "),
            (
                good,
                "{\"depth_scale\": 1, \"w\": 2}",
                "neither K (camera_matrix) nor fx, fy, cx, cy; its keys are depth_scale, w",
            ),
            (good, "{}", "its keys are none"),
            (good, "<?xml version=\"1.0\"?>", "is XML"),
            (good, "{\"K\": [1, 2, 3]}", "K has 3 numbers, expected 9"),
            (good, "{\"K\": {\"rows\": 3}}", "K is a map without data"),
            (good, "{\"K\": 7}", "K is 7, expected a list"),
            (
                good,
                "{\"K\": [530, 0, 320, 0, 0, 240, 0, 0, 1]}",
                "focal lengths 530 and 0 px, expected more than 0",
            ),
            ("\"fy\": 531, ", "", "fy is missing"),
            ("530", "-530", "expected more than 0"),
            ("531", "\"531\"", "fy is \"531\", expected a number"),
            ("530", "null", "fx is null"),
            ("\"height\": 480", "\"h\": 480", "width stands without height"),
            ("480", "480.5", "height is 480.5, expected a whole number"),
            ("480", "0", "expected more than 0"),
            ("480", "200", "the middle (320, 240) px lies outside of its images of 640 x 200 px"),
            ("480", "480, \"binning_x\": 2", "binning_x is 2"),
            ("480", "480, \"roi\": {\"x_offset\": 8}", "roi.x_offset is 8"),
            ("}", "", "line 1"),
        ] {
            let error = error_of(&good.replacen(find, put, 1));
            assert!(error.contains(expected), "{put:?}: {error}");
        }
        let rows = OPENCV.replacen("rows: 3", "rows: 4", 1);
        assert!(error_of(&rows).contains("camera_matrix.rows is 4, expected 3"));
        let count = OPENCV.replacen("rows: 5", "rows: 4", 1);
        assert!(error_of(&count).contains("has 5 numbers, but rows and cols are 4 and 1"));
        let error = format!("{:#}", read_camera(Path::new("no/such.json")).unwrap_err());
        assert!(error.starts_with("reading camera no/such.json"), "{error}");
    }

    #[test]
    fn damaged_files_are_errors_not_crashes() {
        for text in [OPENCV, ROS] {
            for end in 0..text.len() {
                drop(read(&text[..end]));
            }
        }
        assert!(error_of(&"[".repeat(100_000)).contains("cam.txt"));
        assert!(error_of(&format!("a: {}", "[".repeat(100_000))).contains("lists in lists"));
        assert!(error_of(&"x".repeat(5 << 20)).contains("bytes"));
    }
}
