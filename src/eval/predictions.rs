//! Predicted poses and their file: JSON lines.

use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use crate::geom::Pose;
use crate::io::write_atomic;

/// One predicted pose; a line of a predictions file. An object that was not found has no line.
///
/// Keys of the file: `image`, `class`, `obj_id` (may be left out), `score`, `R`, `t`, `inliers`, `residual`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prediction {
    /// Path of the image, as in the dataset's list.
    pub image: String,
    /// 0-based class: the rank of the mesh's file name.
    pub class: usize,
    /// Number in the mesh's file name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub obj_id: Option<u32>,
    /// Confidence, 0 to 1: the largest `sqrt(sigmoid)` of the cells used.
    pub score: f64,
    /// Rotation from the object's to the camera's frame, row-major.
    #[serde(rename = "R")]
    pub r: [f64; 9],
    /// Translation, mm.
    #[serde(rename = "t")]
    pub t_mm: [f64; 3],
    /// Correspondences that agree with the pose.
    pub inliers: usize,
    /// Mean distance of the inliers' reprojections, px of the internal camera.
    #[serde(rename = "residual")]
    pub residual_px: f64,
}

impl Prediction {
    /// The pose.
    ///
    /// # Errors
    /// If a number is not finite or `R` is not a rotation; names image and class.
    pub fn pose(&self) -> Result<Pose> {
        Pose::from_row_major(&self.r, &self.t_mm)
            .with_context(|| format!("prediction of class {} in image {}", self.class, self.image))
    }

    fn check(&self) -> Result<()> {
        ensure!(self.score.is_finite(), "score is {}, expected a finite number", self.score);
        self.pose().map(|_| ())
    }
}

/// Writes predictions, one JSON object a line, whole or not at all.
///
/// # Errors
/// If the file cannot be written.
pub fn write_predictions(path: &Path, predictions: &[Prediction]) -> Result<()> {
    write_lines(path, predictions)
}

/// Writes values as JSON, one a line, whole or not at all.
pub(super) fn write_lines<T: Serialize>(path: &Path, values: &[T]) -> Result<()> {
    write_atomic(path, |out| {
        for value in values {
            serde_json::to_writer(&mut *out, value)?;
            out.write_all(b"\n")?;
        }
        Ok(())
    })
}

/// Reads what [`write_predictions`] wrote; empty lines are skipped.
///
/// # Errors
/// If the file cannot be read, or a line is no prediction or holds no pose; names file and line.
pub fn read_predictions(path: &Path) -> Result<Vec<Prediction>> {
    let at = path.display();
    let file = std::fs::File::open(path).with_context(|| format!("reading predictions {at}"))?;
    let mut predictions = Vec::new();
    for (i, line) in BufReader::new(file).lines().enumerate() {
        let line = line.with_context(|| format!("{at}:{}: reading a line of text", i + 1))?;
        if line.trim().is_empty() {
            continue;
        }
        let prediction: Prediction = serde_json::from_str(&line)
            .map_err(|e| anyhow!("{at}:{}: {}", i + 1, without_line(&e)))?;
        prediction.check().with_context(|| format!("{at}:{}", i + 1))?;
        predictions.push(prediction);
    }
    Ok(predictions)
}

/// The message without serde's own line number, which is 1 for every line.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(what) => format!("{what} (column {})", error.column()),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some(image: &str) -> Prediction {
        Prediction {
            image: image.to_owned(),
            class: 0,
            obj_id: Some(1),
            score: 0.1 + 0.2,
            r: [0.0, -1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0],
            t_mm: [1.0 / 3.0, -2e-17, 1784.6],
            inliers: 80,
            residual_px: 0.4,
        }
    }

    fn error_of(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.jsonl");
        std::fs::write(&path, text).unwrap();
        format!("{:#}", read_predictions(&path).unwrap_err())
    }

    #[test]
    fn predictions_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/p.jsonl");
        let all = [some("a/é.png"), Prediction { obj_id: None, ..some("b.png") }];
        write_predictions(&path, &all).unwrap();
        assert_eq!(read_predictions(&path).unwrap(), all);
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!(text.starts_with(r#"{"image":"a/é.png","class":0,"obj_id":1,"score":0.3000"#));
        for key in ["\"R\":[0.0,-1.0", "\"t\":[0.33", "\"inliers\":80", "\"residual\":0.4}"] {
            assert!(text.contains(key), "{text}");
        }
        write_predictions(&path, &[]).unwrap();
        assert!(read_predictions(&path).unwrap().is_empty());
    }

    #[test]
    fn a_bad_line_is_named() {
        let good = serde_json::to_string(&some("a")).unwrap();
        let error = error_of(&format!("{good}\n\n{{\"image\": \"b\"}}\n"));
        assert!(error.contains("p.jsonl:3: missing field `class` (column 14)"), "{error}");
        let error = error_of(&good.replace("\"score\"", "\"scor\""));
        assert!(error.contains("p.jsonl:1: unknown field `scor`"), "{error}");
        let error = error_of(&good.replace("-1.0", "-3.0"));
        assert!(error.contains("p.jsonl:1: prediction of class 0 in image a: R is not"), "{error}");
        assert!(error_of("\u{0}\u{1}").contains("p.jsonl:1: expected value"));
        let error = format!("{:#}", read_predictions(Path::new("no/such")).unwrap_err());
        assert!(error.starts_with("reading predictions no/such: "), "{error}");
    }
}
