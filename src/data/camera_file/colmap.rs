//! COLMAP's `cameras.txt`: a camera a line, `ID MODEL WIDTH HEIGHT PARAMETERS`.

use anyhow::{Context, Result, bail, ensure};

use super::CameraFile;
use crate::geom::{Camera, Distortion, Lens};

/// COLMAP has the centre of the top left pixel at (0.5, 0.5), everybody else here at (0, 0).
const PIXEL_CENTER: f64 = 0.5;

/// The camera of a text that is COLMAP's; none for other texts.
///
/// # Errors
/// If there are several cameras, the model is not supported, or a number is wrong or missing.
pub(super) fn parse(text: &str) -> Option<Result<CameraFile>> {
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    let cameras: Vec<Vec<&str>> = lines.map(|l| l.split_whitespace().collect()).collect();
    let is_camera = |words: &Vec<&str>| match words[..] {
        [id, model, _, _, ..] => {
            let upper = |c: char| c.is_ascii_uppercase() || c == '_';
            id.parse::<u32>().is_ok() && model.chars().all(upper)
        }
        _ => false,
    };
    if cameras.is_empty() || !cameras.iter().all(is_camera) {
        return None;
    }
    Some(match cameras.as_slice() {
        [one] => camera_of(one),
        many => Err(anyhow::anyhow!("{} cameras: leave the line of one in it", many.len())),
    })
}

fn camera_of(words: &[&str]) -> Result<CameraFile> {
    let (model, numbers) = (words[1], &words[2..]);
    let numbers: Vec<f64> = (numbers.iter())
        .map(|word| word.parse().ok().with_context(|| format!("{word:?} is not a number")))
        .collect::<Result<_>>()?;
    let (size, parameters) = numbers.split_at(2);
    // How many focal lengths, then how many coefficients.
    let (num_focal, num_coefficients) = match model {
        "SIMPLE_PINHOLE" => (1, 0),
        "PINHOLE" => (2, 0),
        "SIMPLE_RADIAL" | "SIMPLE_RADIAL_FISHEYE" => (1, 1),
        "RADIAL" | "RADIAL_FISHEYE" => (1, 2),
        "OPENCV" | "OPENCV_FISHEYE" => (2, 4),
        "FULL_OPENCV" => (2, 8),
        _ => bail!(
            "COLMAP's model {model} is not supported, expected PINHOLE, RADIAL, OPENCV, FULL_OPENCV or OPENCV_FISHEYE: \
             undistort the images first (colmap image_undistorter)"
        ),
    };
    let expected = num_focal + 2 + num_coefficients;
    ensure!(
        parameters.len() == expected,
        "{} parameters of COLMAP's model {model}, expected {expected}",
        parameters.len()
    );
    let (focal, rest) = parameters.split_at(num_focal);
    let (center, coefficients) = rest.split_at(2);
    let mut coefficients = coefficients.to_vec();
    let distortion = match model {
        _ if model.ends_with("FISHEYE") => {
            coefficients.resize(4, 0.0);
            Distortion::equidistant(&coefficients)?
        }
        _ if coefficients.is_empty() => Distortion::None,
        _ => {
            coefficients.resize(num_coefficients.max(4), 0.0);
            Distortion::polynomial(&coefficients)?
        }
    };
    let [cx, cy] = [0, 1].map(|i| center[i] - PIXEL_CENTER);
    let camera = Camera::new(focal[0], focal[num_focal - 1], cx, cy)?;
    let whole = |n: f64| n >= 1.0 && n.fract() == 0.0 && n < 1e6;
    ensure!(size.iter().all(|n| whole(*n)), "the size {size:?} is not two whole numbers of px");
    Ok(CameraFile {
        lens: Lens::new(camera, distortion),
        size: Some((size[0] as usize, size[1] as usize)),
    })
}
