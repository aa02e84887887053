//! Poses of a stream as they are found: JSON lines and BOP csv, written while it runs.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;

use super::bop_csv;
use super::estimate::{ClassResult, PoseEstimate};
use super::jobs::Answer;
use super::prediction::Prediction;
use crate::io::PartialFile;
use crate::nn::NoDetection;

/// A picture that could not be read.
const UNREADABLE: &str = "unreadable_image";

/// A pose: a line of a predictions file with more in it.
#[derive(Serialize)]
struct PoseLine<'a> {
    #[serde(flatten)]
    prediction: &'a Prediction,
    #[serde(flatten)]
    place: Place,
    correspondences: usize,
    /// Correspondences that were worth something on their own.
    effective: Option<f64>,
    sigma_px: Option<f64>,
    /// 6 x 6, row-major.
    covariance: Option<Vec<f64>>,
    #[serde(flatten)]
    latency: LatencyMs,
}

/// What was waited for a picture, ms, and what was left out before it.
#[derive(Serialize)]
struct LatencyMs {
    latency_ms: f64,
    read_ms: f64,
    network_ms: f64,
    poses_ms: f64,
    #[serde(skip_serializing_if = "is_zero")]
    dropped: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

impl LatencyMs {
    fn of(answer: &Answer) -> Self {
        let latency = answer.latency;
        Self {
            latency_ms: 1e3 * latency.total_s(),
            read_ms: 1e3 * latency.read_s,
            network_ms: 1e3 * latency.network_s,
            poses_ms: 1e3 * latency.poses_s,
            dropped: answer.num_dropped,
        }
    }
}

/// What stands where no pose is.
#[derive(Serialize)]
struct NoPoseLine<'a> {
    image: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    class: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    obj_id: Option<u32>,
    #[serde(flatten)]
    place: Place,
    no_pose: &'a str,
    detail: &'a str,
    #[serde(flatten)]
    latency: LatencyMs,
}

/// BOP's numbers of a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct Ids {
    scene_id: u32,
    im_id: u32,
}

/// What a line tells of the picture.
#[derive(Clone, Copy, Serialize)]
struct Place {
    #[serde(flatten)]
    ids: Ids,
    /// Of a video's frame, s.
    #[serde(skip_serializing_if = "Option::is_none")]
    time_s: Option<f64>,
}

/// What was written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Written {
    /// Pictures, the unreadable ones included.
    pub num_images: usize,
    /// Poses.
    pub num_poses: usize,
    /// Records without a pose by their reason, a picture that could not be read as `unreadable_image`.
    pub no_pose: BTreeMap<String, usize>,
}

impl Written {
    /// Pictures that could not be read.
    pub fn num_bad(&self) -> usize {
        self.no_pose.get(UNREADABLE).copied().unwrap_or(0)
    }
}

/// Writes answers into `predictions.jsonl` and `predictions.csv`, which have `.partial` in their names until they are whole.
pub struct PoseWriter {
    jsonl: PartialFile,
    csv: PartialFile,
    /// Who gets each JSON line at once as well.
    live: Option<Box<dyn Write + Send>>,
    written: Written,
}

impl PoseWriter {
    /// Begins both files in `folder`.
    ///
    /// # Errors
    /// If one is there and not to be replaced, or cannot be made.
    pub fn create(folder: &Path, overwrite: bool) -> Result<Self> {
        let jsonl = PartialFile::create(&folder.join("predictions.jsonl"), overwrite)?;
        let mut csv = PartialFile::create(&folder.join("predictions.csv"), overwrite)?;
        writeln!(csv, "{}", bop_csv::HEADER)?;
        Ok(Self { jsonl, csv, live: None, written: Written::default() })
    }

    /// Gives every JSON line to `live` as well, whole and at once.
    pub fn telling(self, live: Option<Box<dyn Write + Send>>) -> Self {
        Self { live, ..self }
    }

    /// What was written so far.
    pub fn written(&self) -> &Written {
        &self.written
    }

    /// Writes what became of a picture, which has these numbers in BOP's csv.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn write(&mut self, answer: &Answer, (scene_id, im_id): (u32, u32)) -> Result<()> {
        let time_s = answer.frame.and_then(|frame| frame.time_s);
        let place = Place { ids: Ids { scene_id, im_id }, time_s };
        self.written.num_images += 1;
        match &answer.found {
            Ok(found) => {
                for found in found {
                    self.write_found(answer, place, found)?;
                }
            }
            Err(why) => self.write_absent(NoPoseLine {
                image: &answer.name,
                class: None,
                obj_id: None,
                place,
                no_pose: UNREADABLE,
                detail: why,
                latency: LatencyMs::of(answer),
            })?,
        }
        Ok(())
    }

    fn write_found(&mut self, answer: &Answer, place: Place, found: &ClassResult) -> Result<()> {
        match &found.outcome {
            Ok(pose) => {
                self.written.num_poses += 1;
                self.line(&pose_line(pose, place, LatencyMs::of(answer)))?;
                let row = bop_csv::row(
                    (place.ids.scene_id, place.ids.im_id),
                    found.obj_id,
                    &pose.prediction,
                    answer.compute_s,
                );
                writeln!(self.csv, "{row}")?;
                Ok(())
            }
            Err(NoDetection { reason, detail }) => self.write_absent(NoPoseLine {
                image: &answer.name,
                class: Some(found.class),
                obj_id: Some(found.obj_id),
                place,
                no_pose: reason,
                detail,
                latency: LatencyMs::of(answer),
            }),
        }
    }

    fn write_absent(&mut self, line: NoPoseLine) -> Result<()> {
        *self.written.no_pose.entry(line.no_pose.to_owned()).or_default() += 1;
        self.line(&line)
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut bytes = serde_json::to_vec(line)?;
        bytes.push(b'\n');
        self.jsonl.write_all(&bytes)?;
        if let Some(live) = &mut self.live {
            let written = live.write_all(&bytes).and_then(|()| live.flush());
            written.context("writing a line to standard output")?;
        }
        Ok(())
    }

    /// Hands everything written so far to the system, so that a killed process loses none of it.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.jsonl.flush()?;
        self.csv.flush()
    }

    /// Ends both files, whole or as far as they are; returns what was written and the paths of JSON lines and csv.
    ///
    /// # Errors
    /// If a file cannot be written or renamed.
    pub fn end(self, whole: bool) -> Result<(Written, [PathBuf; 2])> {
        let end = |file: PartialFile| if whole { file.finish() } else { file.stop() };
        Ok((self.written, [end(self.jsonl)?, end(self.csv)?]))
    }
}

fn pose_line(pose: &PoseEstimate, place: Place, latency: LatencyMs) -> PoseLine<'_> {
    let covariance = pose.covariance.as_ref();
    PoseLine {
        prediction: &pose.prediction,
        place,
        correspondences: pose.num_correspondences,
        effective: covariance.map(|c| c.effective),
        sigma_px: covariance.map(|c| c.sigma_px),
        // Symmetric: by columns is by rows.
        covariance: covariance.map(|c| c.matrix.as_slice().to_vec()),
        latency,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use crate::data::{DataConfig, InputConfig, View};
    use crate::eval::jobs::{FramePlace, Latency};
    use crate::eval::read_predictions;
    use crate::eval::testing::{dataset, predictions_of};
    use crate::geom::Camera;

    fn answer(name: &str, found: Result<Vec<ClassResult>, String>) -> Answer {
        let input = InputConfig { width: 32, height: 32, ..InputConfig::default() };
        let lens = Camera::new(20.0, 20.0, 16.0, 16.0).unwrap().into();
        let view = Arc::new(View::new(lens, None, &input, &DataConfig::default()).unwrap());
        let name = name.to_owned();
        let latency = Latency { read_s: 0.125, network_s: 0.0625, poses_s: 0.0625 };
        let (compute_s, num_dropped) = (0.125, 3);
        Answer {
            place: 0,
            name,
            view,
            found,
            frame: Some(FramePlace { number: 4, time_s: Some(0.16) }),
            latency,
            compute_s,
            num_dropped,
            picture: None,
            pass: None,
        }
    }

    #[test]
    fn poses_come_back_bit_for_bit_and_records_without_a_pose_are_counted() {
        let mut dataset = dataset();
        for (i, frame) in dataset.frames.iter_mut().enumerate() {
            frame.image = format!("testing/seq_{:06}/000000/rgb/{:06}.jpg", 7 + i / 3, i % 3);
        }
        let predictions = predictions_of(&dataset);
        let folder = tempfile::tempdir().unwrap();
        let mut writer = PoseWriter::create(folder.path(), false).unwrap();
        let absent = NoDetection { reason: "no_cell", detail: "none above 0.3".into() };
        for (i, prediction) in predictions.iter().take(4).enumerate() {
            let ids = (7 + i as u32 / 3, i as u32 % 3);
            let outcome = match i {
                1 => Err(absent.clone()),
                _ => Ok(PoseEstimate {
                    prediction: prediction.clone(),
                    num_correspondences: 96,
                    covariance: None,
                }),
            };
            let found = Ok(vec![ClassResult { class: 0, obj_id: 1, outcome }]);
            writer.write(&answer(&prediction.image, found), ids).unwrap();
        }
        writer.write(&answer("broken.png", Err("truncated".into())), (9, 9)).unwrap();
        writer.flush().unwrap();
        assert!(folder.path().join("predictions.partial.jsonl").is_file());
        let (written, [jsonl, csv]) = writer.end(true).unwrap();
        assert_eq!((written.num_images, written.num_poses, written.num_bad()), (5, 3, 1));
        assert_eq!(written.no_pose["no_cell"], 1);

        let read = read_predictions(&jsonl, None, &dataset, false).unwrap();
        assert_eq!((read.num_no_pose, read.num_bad), (2, 0));
        let expected = [&predictions[0], &predictions[2], &predictions[3]];
        assert!(read.predictions.iter().eq(expected));
        let read = read_predictions(&csv, None, &dataset, false).unwrap();
        assert_eq!(read.predictions.len(), 3);
        assert_eq!(read.mean_time_s, Some(0.125));
        let text = std::fs::read_to_string(&jsonl).unwrap();
        for part in [
            "\"no_pose\":\"no_cell\",\"detail\":\"none above 0.3\"",
            "\"no_pose\":\"unreadable_image\"",
            "\"scene_id\":7,\"im_id\":1,\"time_s\":0.16",
            "\"latency_ms\":250.0,\"read_ms\":125.0,\"network_ms\":62.5,\"poses_ms\":62.5,\"dropped\":3}",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn what_is_not_whole_says_so_in_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let writer = PoseWriter::create(folder.path(), false).unwrap();
        let (_, [jsonl, csv]) = writer.end(false).unwrap();
        assert!(
            jsonl.ends_with("predictions.partial.jsonl")
                && csv.ends_with("predictions.partial.csv")
        );
        assert!(PoseWriter::create(folder.path(), false).is_err());
        assert!(PoseWriter::create(folder.path(), true).is_ok());
    }
}
