//! The csv files of the BOP benchmark.
//!
//! A row is a pose: `scene_id,im_id,obj_id,score,R,t,time`; R (9 numbers, row-major) and t (3 numbers, mm) are separated
//! by spaces; `time` is that of the whole image, s, the same on all its rows, or -1.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::prediction::Prediction;
use super::split_index::{SplitIndex, image_ids};
use crate::data::Dataset;
use crate::io::write_atomic;

/// The first line. Files without it are read too.
pub(super) const HEADER: &str = "scene_id,im_id,obj_id,score,R,t,time";
/// What stands for a time that is not known.
const UNKNOWN_TIME: f64 = -1.0;

/// Whether a line is the header.
pub(super) fn is_header(line: &str) -> bool {
    line.split(',').map(str::trim).eq(HEADER.split(','))
}

/// A row, as it stands.
pub(super) struct Row {
    pub scene_id: u32,
    pub im_id: u32,
    obj_id: u32,
    score: f64,
    r: [f64; 9],
    t_mm: [f64; 3],
    pub time_s: f64,
}

impl Row {
    /// Takes a line apart.
    ///
    /// # Errors
    /// If a field is missing or is not what it should be; names field and value.
    pub fn parse(line: &str) -> Result<Self> {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        let [scene_id, im_id, obj_id, score, r, t, time] = fields.as_slice() else {
            return Err(anyhow!(
                "{} fields, expected 7: {HEADER} (numbers of R and t are separated by spaces)",
                fields.len()
            ));
        };
        let row = Self {
            scene_id: whole("scene_id", scene_id)?,
            im_id: whole("im_id", im_id)?,
            obj_id: whole("obj_id", obj_id)?,
            score: number("score", score)?,
            r: numbers("R", r)?,
            t_mm: numbers("t", t)?,
            time_s: number("time", time)?,
        };
        for (name, value) in [("score", row.score), ("time", row.time_s)] {
            ensure!(value.is_finite(), "{name} is {value}, expected a finite number");
        }
        Ok(row)
    }

    /// The row as a prediction.
    ///
    /// # Errors
    /// If the image or the object is not of the dataset, or R and t are not a pose.
    pub fn prediction(&self, index: &SplitIndex) -> Result<Prediction> {
        let prediction = Prediction {
            image: index.image_of_ids(self.scene_id, self.im_id)?.to_owned(),
            class: index.class(self.obj_id)?,
            obj_id: Some(self.obj_id),
            score: self.score,
            r: self.r,
            t_mm: self.t_mm,
            inliers: 0,
            residual_px: 0.0,
            inlier_px: 0.0,
            sigma: None,
        };
        prediction.pose()?;
        Ok(prediction)
    }
}

fn whole(name: &str, text: &str) -> Result<u32> {
    text.parse().map_err(|_| anyhow!("{name} is {text:?}, expected a whole number of at least 0"))
}

fn number(name: &str, text: &str) -> Result<f64> {
    text.parse().map_err(|_| anyhow!("{name} is {text:?}, expected a number"))
}

fn numbers<const N: usize>(name: &str, text: &str) -> Result<[f64; N]> {
    let values: Vec<f64> =
        text.split_whitespace().map(|part| number(name, part)).collect::<Result<_>>()?;
    let count = values.len();
    values
        .try_into()
        .map_err(|_| anyhow!("{name} has {count} numbers, expected {N}, separated by spaces"))
}

/// Writes predictions as the csv of the BOP benchmark, whole or not at all. Numbers have all the digits that reading them
/// back needs. `time_s` is the time of an image, the same for all.
///
/// # Errors
/// If an image's path gives no BOP numbers, or those of another image too; a class is not of the dataset; or the file
/// cannot be written.
pub fn write_bop_csv(
    path: &Path,
    dataset: &Dataset,
    predictions: &[Prediction],
    time_s: Option<f64>,
) -> Result<()> {
    let index = SplitIndex::new(dataset);
    let time_s = time_s.unwrap_or(UNKNOWN_TIME);
    write_atomic(path, |out| {
        writeln!(out, "{HEADER}")?;
        for p in predictions {
            let (scene_id, im_id) = image_ids(&p.image).with_context(|| {
                format!(
                    "image {} has no BOP numbers: expected a path like \
                     testing/seq_000007/000000/rgb/000000.jpg",
                    p.image
                )
            })?;
            index.image_of_ids(scene_id, im_id)?;
            writeln!(out, "{}", row((scene_id, im_id), index.obj_id(p.class)?, p, time_s))?;
        }
        Ok(())
    })
}

/// A row; numbers have all the digits that reading them back needs.
pub(super) fn row(
    (scene_id, im_id): (u32, u32),
    obj_id: u32,
    prediction: &Prediction,
    time_s: f64,
) -> String {
    let (r, t, score) = (joined(&prediction.r), joined(&prediction.t_mm), prediction.score);
    format!("{scene_id},{im_id},{obj_id},{score},{r},{t},{time_s}")
}

fn joined(values: &[f64]) -> String {
    values.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_is_known_with_spaces() {
        assert!(is_header(HEADER) && is_header(&HEADER.replace(',', ", ")));
        assert!(!is_header("scene_id,im_id") && !is_header("1,2,3,4,5,6,7"));
    }
}
