//! Predicted poses as JSON lines.

use std::path::Path;

use anyhow::{Result, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};

use super::prediction::{Prediction, Sigma};
use super::split_index::SplitIndex;
use crate::io::write_atomic;
use crate::schema::plain;

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

/// A line as any program may write it: what this one adds may be missing, and other keys are not looked at.
#[derive(Deserialize)]
struct Line {
    image: String,
    class: Option<usize>,
    obj_id: Option<u32>,
    score: f64,
    #[serde(rename = "R")]
    r: [f64; 9],
    #[serde(rename = "t")]
    t_mm: [f64; 3],
    #[serde(default)]
    inliers: usize,
    #[serde(default)]
    residual: f64,
    #[serde(default)]
    inlier_px: f64,
    sigma_r_rad: Option<[f64; 3]>,
    sigma_t_mm: Option<[f64; 3]>,
}

impl Line {
    fn sigma(&self) -> Option<Sigma> {
        let (rotation_rad, translation_mm) = (self.sigma_r_rad?, self.sigma_t_mm?);
        Some(Sigma { rotation_rad, translation_mm })
    }
}

/// What a line that says why there is no pose has.
#[derive(Deserialize)]
struct NoPoseRecord {
    no_pose: Option<String>,
}

/// A line of a predictions file, checked against the images and classes of a split.
///
/// Needed are `image` (as in the split's list), `class` or `obj_id`, `score`, `R` and `t`; or `no_pose`, the reason why there is
/// none: then the result is `None`.
///
/// # Errors
/// If it is not a JSON object of these keys, holds no pose, or names an image or class that the split has not.
pub(super) fn parse_line(text: &str, index: &SplitIndex) -> Result<Option<Prediction>> {
    // Looked for only where it can be: most lines are poses.
    if text.contains("\"no_pose\"") {
        let record: NoPoseRecord = serde_json::from_str(text).map_err(json_error)?;
        if record.no_pose.is_some() {
            return Ok(None);
        }
    }
    let line: Line = serde_json::from_str(text).map_err(json_error)?;
    let image = index.image(&line.image)?.to_owned();
    let class = match (line.class, line.obj_id) {
        (Some(class), None) => class,
        (None, Some(obj_id)) => index.class(obj_id)?,
        (Some(class), Some(obj_id)) => {
            let of_id = index.class(obj_id)?;
            ensure!(
                class == of_id,
                "class is {class} but obj_id {obj_id} is class {of_id}: leave one of them out"
            );
            class
        }
        (None, None) => bail!("neither class (from 0) nor obj_id is given"),
    };
    ensure!(line.score.is_finite(), "score is {}, expected a finite number", line.score);
    let sigma = line.sigma();
    let prediction = Prediction {
        image,
        class,
        obj_id: Some(index.obj_id(class)?),
        score: line.score,
        r: line.r,
        t_mm: line.t_mm,
        inliers: line.inliers,
        residual_px: line.residual,
        inlier_px: line.inlier_px,
        sigma,
    };
    prediction.pose()?;
    Ok(Some(prediction))
}

fn json_error(error: serde_json::Error) -> anyhow::Error {
    anyhow!("{}", without_line(&error))
}

/// The message without serde's own line number, which is 1 for every line.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    match text.strip_suffix(&place) {
        Some(what) => format!("{} (column {})", plain(what), error.column()),
        None => plain(&text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::dataset;

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
            inlier_px: 1.25,
            sigma: Some(Sigma {
                rotation_rad: [0.01, 1.0 / 7.0, 0.03],
                translation_mm: [0.1, 0.2, 3e-17],
            }),
        }
    }

    fn parse(text: &str) -> Result<Prediction> {
        parse_line(text, &SplitIndex::new(&dataset())).map(|p| p.expect("a pose"))
    }

    #[test]
    fn predictions_come_back_bit_for_bit() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("new/p.jsonl");
        let all = [some("3.png"), some("4.png")];
        write_predictions(&path, &all).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<Prediction> = text.lines().map(|l| parse(l).unwrap()).collect();
        assert_eq!(read, all);
        assert!(text.starts_with(r#"{"image":"3.png","class":0,"obj_id":1,"score":0.3000"#));
        for key in [
            "\"R\":[0.0,-1.0",
            "\"t\":[0.33",
            "\"inliers\":80",
            "\"residual\":0.4,\"inlier_px\":1.25,\"sigma_r_rad\":[0.01",
        ] {
            assert!(text.contains(key), "{text}");
        }
        write_predictions(&path, &[]).unwrap();
        assert!(std::fs::read(&path).unwrap().is_empty());
    }

    #[test]
    fn lines_of_other_programs_need_no_more_than_image_object_score_and_pose() {
        let rest = r#""score": 2, "R": [0,-1,0,1,0,0,0,0,1], "t": [1, 2, 900]"#;
        let by_class = parse(&format!(r#"{{"image": "3.png", "class": 0, {rest}}}"#)).unwrap();
        let by_id =
            parse(&format!(r#"{{"net": "x", "image": "./3.png", "obj_id": 1, {rest}}}"#)).unwrap();
        assert_eq!(by_class, by_id);
        assert_eq!((by_id.inliers, by_id.residual_px, by_id.obj_id), (0, 0.0, Some(1)));
        assert_eq!((by_id.inlier_px, by_id.sigma), (0.0, None));
    }

    #[test]
    fn a_line_may_say_why_there_is_no_pose() {
        let index = SplitIndex::new(&dataset());
        let none = r#"{"image": "elsewhere.png", "no_pose": "no_cell", "detail": "x"}"#;
        assert_eq!(parse_line(none, &index).unwrap(), None);
        // A pose may have the key too, saying nothing.
        let pose = serde_json::to_string(&some("3.png")).unwrap();
        let pose = pose.replacen('{', r#"{"no_pose": null,"#, 1);
        assert_eq!(parse_line(&pose, &index).unwrap(), Some(some("3.png")));
        assert!(parse_line(r#"{"no_pose": 3}"#, &index).is_err());
    }

    #[test]
    fn a_bad_line_says_what_is_wrong() {
        let good = serde_json::to_string(&some("3.png")).unwrap();
        for (find, put, expected) in [
            ("\"score\"", "\"scor\"", "lacks the key score"),
            ("-1.0", "-3.0", "class 0 in image 3.png: R is not a rotation"),
            ("-1.0", "1.0", "the determinant is -1"),
            ("\"class\":0,\"obj_id\":1,", "", "neither class (from 0) nor obj_id is given"),
            ("\"class\":0", "\"class\":1", "class is 1 but obj_id 1 is class 0"),
            ("\"obj_id\":1", "\"obj_id\":7", "no mesh has obj_id 7, there are 1"),
            ("\"class\":0,\"obj_id\":1", "\"class\":3", "class is 3, expected 0..1"),
            ("3.png", "x.png", "image x.png is not in the evaluated list"),
            ("1784.6", "1e999", "number out of range"),
            ("1784.6]", "1784.6,1]", "trailing characters"),
            ("{", "", "expected a group of keys"),
        ] {
            let error = format!("{:#}", parse(&good.replacen(find, put, 1)).unwrap_err());
            assert!(error.contains(expected), "{put:?}: {error}");
        }
    }
}
