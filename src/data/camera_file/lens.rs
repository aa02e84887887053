//! What a camera's file says of its distortion: model and coefficients, and that nothing of it is passed over.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::keys::{Keys, Leaf, normalised};
use super::{MATRIX, SIZES, number};
use crate::geom::Distortion;

/// OpenCV's coefficients by name, in its order.
const NAMES: [&str; 12] = ["k1", "k2", "p1", "p2", "k3", "k4", "k5", "k6", "s1", "s2", "s3", "s4"];
/// Those of a fisheye lens.
const FISHEYE_NAMES: [&str; 4] = ["k1", "k2", "k3", "k4"];
/// VINS's names of the same.
const VINS_FISHEYE_NAMES: [&str; 4] = ["k2", "k3", "k4", "k5"];
/// Counts that OpenCV's model may have, after none.
const COUNTS: [usize; 4] = [4, 5, 8, 12];
/// What an unknown model's error proposes.
const KNOWN: &str =
    "plumb_bob, rational_polynomial or equidistant (with its coefficients), pinhole or none";

/// A model of projection and distortion.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// A projection: says nothing of distortion.
    Pinhole,
    /// Without distortion.
    None,
    /// OpenCV's polynomial with one of so many coefficients.
    Polynomial(&'static [usize]),
    /// OpenCV's fisheye.
    Equidistant,
    /// RealSense's polynomial from the distorted to the ideal image: not supported, but most often all zeros.
    InverseBrown,
}

/// A model with what said so.
struct Model<'a> {
    kind: Kind,
    path: &'a str,
    name: String,
}

/// The distortion that a file tells.
///
/// # Errors
/// If the model is unknown, its coefficients are not as many as it has, two places contradict each other, or a key speaks of
/// distortion or of a camera model and is not understood.
pub(super) fn distortion_of(keys: &Keys) -> Result<Distortion> {
    let model = model_of(keys)?;
    let fisheye = matches!(model, Some(Model { kind: Kind::Equidistant, .. }));
    let (place, coefficients) = coefficients_of(keys, fisheye)?;
    ensure_understood(keys)?;
    let zeros = coefficients.iter().all(|v| *v == 0.0);
    let Some(Model { kind, path, name }) = model else {
        return Distortion::polynomial(&coefficients).context(place);
    };
    let distortion = match kind {
        Kind::Pinhole => Distortion::polynomial(&coefficients),
        Kind::None | Kind::InverseBrown if zeros => Ok(Distortion::None),
        Kind::None => bail!("{path} is {name:?}, but {place} has values other than 0"),
        Kind::InverseBrown => bail!(
            "{path} is {name:?}, which is not supported with coefficients other than 0: undistort the images first, or \
             calibrate with OpenCV's model"
        ),
        Kind::Equidistant => match coefficients.as_slice() {
            [k @ .., 0.0] if k.len() == FISHEYE_NAMES.len() => Distortion::equidistant(k), // RealSense
            k => Distortion::equidistant(k),
        },
        Kind::Polynomial(counts) => {
            let n = coefficients.len();
            let expected: Vec<String> = counts[1..].iter().map(usize::to_string).collect();
            ensure!(
                counts.contains(&n),
                "{place} has {n} numbers, but {path} {name:?} has {}",
                expected.join(" or ")
            );
            Distortion::polynomial(&coefficients)
        }
    };
    distortion.context(place)
}

/// The model that the file names: of several names the one that says most.
fn model_of<'a>(keys: &'a Keys) -> Result<Option<Model<'a>>> {
    let mut found: Option<Model> = None;
    for leaf in keys.all() {
        let Some((kind, name)) = named_model(leaf)? else { continue };
        leaf.is_used();
        let model = Model { kind, path: &leaf.path, name };
        match &found {
            None => found = Some(model),
            _ if kind == Kind::Pinhole => {}
            Some(Model { kind: Kind::Pinhole, .. }) => found = Some(model),
            Some(other) => ensure!(
                other.kind == kind,
                "{} is {:?}, but {} is {:?}",
                other.path,
                other.name,
                model.path,
                model.name
            ),
        }
    }
    Ok(found)
}

/// The model that a value names, if it is one that names a model.
fn named_model(leaf: &Leaf) -> Result<Option<(Kind, String)>> {
    let parent = leaf.parents.last().map_or("", String::as_str);
    let fisheye = leaf.key.contains("fisheye") || parent.contains("fisheye");
    let name = match leaf.value {
        Value::String(name) => name,
        Value::Null => return Ok(None),
        _ if fisheye => return Ok(fisheye_flag(leaf)),
        value if names_model(&leaf.key) => {
            bail!("{} is {value}, expected the name of a model: {KNOWN}", leaf.path)
        }
        _ => return Ok(None),
    };
    let of_distortion = speaks(parent) && ["model", "type", "name"].contains(&leaf.key.as_str());
    let must = names_model(&leaf.key)
        || of_distortion
        || fisheye
        || (speaks(&leaf.key) && !is_statistic(&leaf.key));
    let may = ["type", "projection", "camera", "lens", "cameratype", "lenstype"]
        .contains(&leaf.key.as_str());
    match kind_of(&normalised(name)) {
        Some(kind) if must || may => Ok(Some((kind, name.clone()))),
        None if must || (may && sounds_like_a_lens(&normalised(name))) => {
            bail!("{} is {name:?}, expected {KNOWN}", leaf.path)
        }
        _ => Ok(None),
    }
}

/// What `fisheye: true`, `fisheye_model: 1` or a value within a map of a fisheye lens says: nothing when it is false or 0.
fn fisheye_flag(leaf: &Leaf) -> Option<(Kind, String)> {
    leaf.is_used();
    let coefficients = leaf.has_numbers() && leaf.key.contains("fisheye");
    (coefficients || !leaf.is_blank()).then(|| (Kind::Equidistant, leaf.path.clone()))
}

/// Keys whose value is a model, whatever it is.
fn names_model(key: &str) -> bool {
    const KEYS: [&str; 14] = [
        "model",
        "cameramodel",
        "cammodel",
        "lensmodel",
        "distortionmodel",
        "distmodel",
        "projectionmodel",
        "intrinsicsmodel",
        "modeltype",
        "modelname",
        "modelid",
        "projectiontype",
        "distortiontype",
        "cameramodeltype",
    ];
    KEYS.contains(&key)
}

/// Names of models that are not supported, where a key may also hold something else.
fn sounds_like_a_lens(name: &str) -> bool {
    const PARTS: [&str; 10] = [
        "fisheye",
        "omni",
        "distort",
        "sphere",
        "ftheta",
        "radial",
        "division",
        "unified",
        "spherical",
        "equirect",
    ];
    const NAMES: [&str; 7] = ["fov", "atan", "mei", "ds", "eucm", "ucm", "scaramuzza"];
    PARTS.iter().any(|part| name.contains(part)) || NAMES.contains(&name)
}

fn kind_of(name: &str) -> Option<Kind> {
    let name = ["rs2distortion", "distortionmodel", "distortion"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
        .unwrap_or(name);
    let name = match name.strip_prefix("pinhole") {
        Some(rest) if !rest.is_empty() => rest, // Kalibr's pinhole-radtan
        _ => name,
    };
    Some(match name {
        "" | "pinhole" | "simplepinhole" | "perspective" | "rectilinear" => Kind::Pinhole,
        "none" | "nodistortion" | "undistorted" | "ideal" | "rectified" => Kind::None,
        "plumbbob"
        | "radtan"
        | "radialtangential"
        | "brown"
        | "brownconrady"
        | "modifiedbrownconrady" => Kind::Polynomial(&[0, 4, 5]),
        "rationalpolynomial" | "rational" | "thinprism" | "opencv" | "fullopencv"
        | "polynomial" => Kind::Polynomial(&[0, 4, 5, 8, 12, 14]),
        "equidistant" | "equi" | "fisheye" | "opencvfisheye" | "kannalabrandt"
        | "kannalabrandt4" | "kannalabrandt8" | "kb" | "kb4" | "kb8" => Kind::Equidistant,
        "inversebrownconrady" => Kind::InverseBrown,
        _ => return None,
    })
}

/// The coefficients in the order of their model, with the key that has them.
fn coefficients_of(keys: &Keys, fisheye: bool) -> Result<(String, Vec<f64>)> {
    let mut found: Vec<(String, Vec<f64>)> = Vec::new();
    let lists = keys.all().filter(|leaf| is_list(leaf) && !leaf.value.is_null());
    if let Some((leaf, values)) = keys.same_numbers(lists)? {
        found.push((leaf.path.clone(), values));
    }
    found.extend(radial_and_tangential(keys)?);
    found.extend(named_coefficients(keys, fisheye)?);
    // A list of zeros beside named ones, as some programs write, says nothing.
    found.sort_by_key(|(_, values)| values.iter().all(|v| *v == 0.0));
    let mut found = found.into_iter();
    let Some((place, values)) = found.next() else {
        return Ok(("k1, k2, ...".to_owned(), Vec::new()));
    };
    for (other, others) in found {
        let at = |values: &[f64], i: usize| values.get(i).copied().unwrap_or(0.0);
        let same = (0..14).all(|i| at(&values, i) == at(&others, i));
        let zeros = others.iter().all(|v| *v == 0.0);
        ensure!(same || zeros, "{place} and {other} contradict each other");
    }
    Ok((place, values))
}

/// Whether a value is a whole list of coefficients.
fn is_list(leaf: &Leaf) -> bool {
    let key = leaf.key.as_str();
    let parts =
        ["radial", "tangential", "decent"].iter().filter(|part| key.contains(*part)).count();
    let other = ["undist", "inv", "model", "type", "center", "centre"];
    if parts == 1 || other.iter().any(|part| key.contains(part)) || is_statistic(key) {
        return false;
    }
    let of_parent = leaf.parents.last().is_some_and(|p| speaks(p))
        && !(is_coefficient(key) || MATRIX.contains(&key) || SIZES.contains(&key));
    leaf.has_numbers() && (key == "d" || speaks(key) || of_parent)
}

/// MATLAB's and others' two lists, in OpenCV's order.
fn radial_and_tangential(keys: &Keys) -> Result<Option<(String, Vec<f64>)>> {
    let of = |parts: &'static [&'static str], without: &'static [&'static str]| {
        let has = move |key: &str, parts: &[&str]| parts.iter().any(|part| key.contains(part));
        let leaves = keys.all().filter(move |leaf| {
            leaf.has_numbers()
                && has(&leaf.key, parts)
                && !has(&leaf.key, without)
                && !is_statistic(&leaf.key)
        });
        keys.same_numbers(leaves)
    };
    let radial = of(&["radial"], &["tangential"])?;
    let tangential = of(&["tangential", "decent"], &["radial"])?;
    let Some(path) = radial.iter().chain(&tangential).next().map(|(leaf, _)| leaf.path.clone())
    else {
        return Ok(None);
    };
    let radial = radial.map_or_else(Vec::new, |(_, values)| values);
    let tangential = tangential.map_or_else(Vec::new, |(_, values)| values);
    ensure!(
        radial.len() <= 6 && tangential.len() <= 2,
        "{path}: {} radial and {} tangential coefficients, expected 6 and 2 at most",
        radial.len(),
        tangential.len()
    );
    let k = |i: usize| radial.get(i).copied().unwrap_or(0.0);
    let p = |i: usize| tangential.get(i).copied().unwrap_or(0.0);
    let mut values = vec![k(0), k(1), p(0), p(1), k(2)];
    if radial.len() > 3 {
        values.extend([k(3), k(4), k(5)]);
    }
    Ok(Some((path, values)))
}

/// A coefficient's name in a key such as `k1` or `distortion_k1`; none in others.
fn coefficient(key: &str) -> Option<&str> {
    let mut name = key;
    while let Some(rest) = ["distortion", "dist", "radial", "tangential", "lens", "coeff", "camera"]
        .iter()
        .find_map(|prefix| name.strip_prefix(prefix))
    {
        name = rest;
    }
    is_coefficient(name).then_some(name)
}

/// A letter of a coefficient with its number.
fn is_coefficient(name: &str) -> bool {
    let digits = name.strip_prefix(['k', 'p', 's']).unwrap_or_default();
    (1..=2).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit())
}

/// Coefficients under their own keys, in OpenCV's order; none without a key.
fn named_coefficients(keys: &Keys, fisheye: bool) -> Result<Option<(String, Vec<f64>)>> {
    let vins = keys.named(&["mu"]).next().is_some();
    let names = match (fisheye, vins) {
        (true, true) => &VINS_FISHEYE_NAMES[..],
        (true, false) => &FISHEYE_NAMES,
        (false, _) => &NAMES,
    };
    let mut values = vec![0.0; names.len()];
    let mut last = None;
    for leaf in keys.all() {
        let Some(name) = coefficient(&leaf.key) else { continue };
        let Some(at) = names.iter().position(|n| *n == name) else { continue };
        if leaf.has_numbers() {
            continue; // a matrix: P1 and P2 of a stereo camera
        }
        leaf.is_used();
        let value = number(&leaf.path, leaf.value)?;
        let first = last.is_none_or(|(_, seen): (usize, u32)| seen & (1 << at) == 0);
        ensure!(
            first || values[at] == value,
            "{} has two values: is it a file of several cameras? give a file of one",
            leaf.path
        );
        values[at] = value;
        let (most, seen) = last.unwrap_or((0, 0));
        last = Some((at.max(most), seen | (1 << at)));
    }
    let Some((last, _)) = last else { return Ok(None) };
    if !fisheye {
        values.truncate(COUNTS.into_iter().find(|n| *n > last).unwrap_or(NAMES.len()));
    }
    Ok(Some(("k1, k2, ...".to_owned(), values)))
}

/// Whether a word of a key speaks of distortion.
fn speaks(word: &str) -> bool {
    const PARTS: [&str; 5] = ["coef", "fisheye", "radial", "tangential", "decenter"];
    (word.contains("dist") && !word.contains("distance"))
        || PARTS.iter().any(|part| word.contains(part))
}

/// Counts and uncertainties of coefficients, which change nothing.
fn is_statistic(key: &str) -> bool {
    key.starts_with("num")
        || key.ends_with("count")
        || key.contains("stddev")
        || key.contains("sigma")
        || key.contains("covar")
        || ["std", "error", "errors", "rms"].iter().any(|w| key.starts_with(w) || key.ends_with(w))
}

/// Refuses what speaks of distortion and was not used: dropping it would make every pose wrong without a word.
fn ensure_understood(keys: &Keys) -> Result<()> {
    for leaf in keys.unused().filter(|leaf| !leaf.is_blank()) {
        let key = leaf.key.as_str();
        let words = leaf.parents.iter().map(String::as_str).chain([key]);
        let numbered = coefficient(key).is_some() && leaf.value.is_number();
        let other = ["xi", "skew", "tau", "taux", "tauy"].contains(&key) && leaf.value.is_number();
        let unknown = numbered || other || words.into_iter().any(speaks) || names_model(key);
        ensure!(
            !unknown || is_statistic(key),
            "{} ({}) speaks of distortion or of a camera model and is not understood: give OpenCV's coefficients as \
             distortion_coefficients [k1, k2, p1, p2, k3] or k1, k2, ..., or remove it if the images have none",
            leaf.path,
            short(leaf.value)
        );
    }
    Ok(())
}

/// A value for an error.
fn short(value: &Value) -> String {
    const MOST: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MOST) {
        None => text,
        Some((end, _)) => format!("{} ...", &text[..end]),
    }
}
