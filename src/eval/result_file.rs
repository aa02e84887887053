//! Files of predicted poses from any program: JSON lines or BOP csv, read line by line.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use super::bop_csv;
use super::json_lines::parse_line;
use super::prediction::Prediction;
use super::split_index::SplitIndex;
use crate::data::Dataset;

/// Longest line that is read, bytes: a line of either format has a few hundred.
const MAX_LINE_BYTES: u64 = 1 << 20;
/// Bad lines that are reported one by one; the others are counted.
const MAX_BAD_TOLD: usize = 10;

/// How predictions are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultFormat {
    /// One [`Prediction`] as a JSON object a line.
    Jsonl,
    /// The csv of the BOP benchmark: `scene_id,im_id,obj_id,score,R,t,time`.
    BopCsv,
}

impl ResultFormat {
    /// The format that a file's name asks for: BOP csv by the ending `.csv`, else JSON lines.
    pub fn of_name(path: &Path) -> Self {
        match path.extension() {
            Some(ending) if ending.eq_ignore_ascii_case("csv") => Self::BopCsv,
            _ => Self::Jsonl,
        }
    }

    /// The format of a file's first line with text: JSON lines begin with a brace.
    fn of_line(line: &str) -> Self {
        if line.starts_with('{') { Self::Jsonl } else { Self::BopCsv }
    }
}

impl FromStr for ResultFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "jsonl" => Ok(Self::Jsonl),
            "bop-csv" => Ok(Self::BopCsv),
            _ => Err(format!("{text:?} is not a format, expected jsonl or bop-csv")),
        }
    }
}

impl fmt::Display for ResultFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jsonl => "JSON lines",
            Self::BopCsv => "BOP csv",
        })
    }
}

/// What was read from a file of predictions.
#[derive(Debug, Clone, PartialEq)]
pub struct ResultFile {
    /// How it is written.
    pub format: ResultFormat,
    /// The predictions, in the file's order.
    pub predictions: Vec<Prediction>,
    /// Predictions of a class in an image beyond the first of that class there.
    pub num_repeats: usize,
    /// Records that say that no pose was found, of JSON lines.
    pub num_no_pose: usize,
    /// Lines that were left out.
    pub num_bad: usize,
    /// Why, for the first ten of them: `FILE:LINE: reason`.
    pub bad: Vec<String>,
    /// Mean time that the file gives for an image, s, over images with one.
    pub mean_time_s: Option<f64>,
}

/// Reads predictions for the images of `dataset`; `format` is told by the first line when it is not given.
///
/// A JSON line with the key `no_pose` says why there is none; such lines are counted.
///
/// With `skip_bad` bad lines are counted and left out. A class that is predicted several times in an image stays so:
/// [`crate::eval::evaluate`] takes the most confident one.
///
/// # Errors
/// If the file cannot be read, is empty (unless its format is given: nothing was found, then), or has a bad line:
/// malformed, no rotation, a number that is not finite, an image or class that the dataset has not, a time that is not
/// the other one of its image. Names file and line. If all lines are bad, also with `skip_bad`.
pub fn read_predictions(
    path: &Path,
    format: Option<ResultFormat>,
    dataset: &Dataset,
    skip_bad: bool,
) -> Result<ResultFile> {
    let at = path.display();
    let file = crate::io::open_stream(path).with_context(|| format!("reading predictions {at}"))?;
    let mut lines = Lines { reader: BufReader::new(file), path: path.to_owned(), number: 0 };
    let mut reader = Reader::new(SplitIndex::new(dataset), format);
    let mut text = String::new();
    while lines.next(&mut text)? {
        let line = text.trim_start_matches('\u{feff}').trim();
        if line.is_empty() {
            continue;
        }
        if let Err(e) = reader.line(line) {
            let error = e.context(format!("{at}:{}", lines.number));
            if !skip_bad {
                return Err(error);
            }
            reader.leave_out(format!("{error:#}"));
        }
    }
    reader.finish(path)
}

/// Ratio of the poses' median distance to the true objects', beyond which a file is in other units.
const OTHER_UNIT: f64 = 5.0;

/// What is odd about the distances of poses from the camera: the median beside that of the true objects of the same class and
/// image; none where the two are near each other.
pub fn odd_distances(dataset: &Dataset, predictions: &[Prediction]) -> Option<String> {
    let mut true_mm = HashMap::new();
    for frame in &dataset.frames {
        for object in &frame.objects {
            let place = (frame.image.as_str(), object.class);
            true_mm.entry(place).or_insert_with(|| object.pose.t_mm.norm());
        }
    }
    let norm = |t: &[f64; 3]| t.iter().map(|v| v * v).sum::<f64>().sqrt();
    let pairs = predictions.iter().filter_map(|p| {
        let truth = true_mm.get(&(p.image.as_str(), p.class))?;
        Some((norm(&p.t_mm), *truth))
    });
    let (found, truth): (Vec<f64>, Vec<f64>) = pairs.unzip();
    let (found, truth) = (median(found)?, median(truth)?);
    if found * OTHER_UNIT > truth && found < OTHER_UNIT * truth {
        return None;
    }
    let cause = match truth / found {
        300.0..3000.0 => ": is t in metres? expected mm",
        5.0..20.0 => ": is t in centimetres? expected mm",
        _ => ": is t in mm, under the camera of scene_camera.json?",
    };
    Some(format!(
        "its poses are {found:.3} mm from the camera in the median, the true objects there {truth:.1} mm{cause}"
    ))
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// The lines of a file.
struct Lines {
    reader: BufReader<File>,
    path: PathBuf,
    /// Of the line read last, from 1.
    number: usize,
}

impl Lines {
    /// Reads the next line into `text`; false at the end.
    fn next(&mut self, text: &mut String) -> Result<bool> {
        text.clear();
        let mut limited = self.reader.by_ref().take(MAX_LINE_BYTES);
        let mut bytes = std::mem::take(text).into_bytes();
        let count = limited.read_until(b'\n', &mut bytes);
        self.number += 1;
        let place = || format!("{}:{}", self.path.display(), self.number);
        let count = count.with_context(place)?;
        ensure!(
            (count as u64) < MAX_LINE_BYTES,
            "{}: a line longer than {MAX_LINE_BYTES} bytes: this is not a file of predictions",
            place()
        );
        *text = String::from_utf8(bytes)
            .with_context(|| format!("{}: not a line of text (UTF-8)", place()))?;
        Ok(count > 0)
    }
}

struct Reader {
    index: SplitIndex,
    format: Option<ResultFormat>,
    /// Whether a line with text was seen.
    begun: bool,
    predictions: Vec<Prediction>,
    seen: HashSet<(String, usize)>,
    num_repeats: usize,
    num_no_pose: usize,
    times_s: HashMap<(u32, u32), f64>,
    num_bad: usize,
    bad: Vec<String>,
}

impl Reader {
    fn new(index: SplitIndex, format: Option<ResultFormat>) -> Self {
        Self {
            index,
            format,
            begun: false,
            predictions: Vec::new(),
            seen: HashSet::new(),
            num_repeats: 0,
            num_no_pose: 0,
            times_s: HashMap::new(),
            num_bad: 0,
            bad: Vec::new(),
        }
    }

    fn line(&mut self, line: &str) -> Result<()> {
        let is_first = !std::mem::replace(&mut self.begun, true);
        let format = *self.format.get_or_insert_with(|| ResultFormat::of_line(line));
        let prediction = match format {
            ResultFormat::Jsonl => match parse_line(line, &self.index)? {
                Some(prediction) => prediction,
                None => {
                    self.num_no_pose += 1;
                    return Ok(());
                }
            },
            ResultFormat::BopCsv if is_first && bop_csv::is_header(line) => return Ok(()),
            ResultFormat::BopCsv => {
                let row = bop_csv::Row::parse(line)?;
                let prediction = row.prediction(&self.index)?;
                self.check_time(&row)?;
                prediction
            }
        };
        let place = (prediction.image.clone(), prediction.class);
        self.num_repeats += usize::from(!self.seen.insert(place));
        self.predictions.push(prediction);
        Ok(())
    }

    /// All rows of an image tell the same time, as the benchmark asks.
    fn check_time(&mut self, row: &bop_csv::Row) -> Result<()> {
        let first = *self.times_s.entry((row.scene_id, row.im_id)).or_insert(row.time_s);
        ensure!(
            first == row.time_s,
            "time is {} s, but an earlier row of scene_id {}, im_id {} has {first} s: it is the time for the \
             whole image, the same on all its rows",
            row.time_s,
            row.scene_id,
            row.im_id
        );
        Ok(())
    }

    fn leave_out(&mut self, why: String) {
        self.num_bad += 1;
        if self.bad.len() < MAX_BAD_TOLD {
            self.bad.push(why);
        }
    }

    fn finish(self, path: &Path) -> Result<ResultFile> {
        let at = path.display();
        let Some(format) = self.format else {
            bail!(
                "{at} is empty: expected one prediction a line (if nothing was found, say which format it is with \
                 --format)"
            );
        };
        if let (true, Some(first)) = (self.predictions.is_empty(), self.bad.first()) {
            bail!("{at}: each of its {} predictions is bad, the first: {first}", self.num_bad);
        }
        // Summed in the order of the images, so that the last bits are the same each time.
        let mut times: Vec<_> = self.times_s.into_iter().filter(|(_, t)| *t >= 0.0).collect();
        times.sort_by_key(|(ids, _)| *ids);
        let total: f64 = times.iter().map(|(_, t)| t).sum();
        Ok(ResultFile {
            format,
            predictions: self.predictions,
            num_repeats: self.num_repeats,
            num_no_pose: self.num_no_pose,
            num_bad: self.num_bad,
            bad: self.bad,
            mean_time_s: (!times.is_empty()).then(|| total / times.len() as f64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::bop_csv::write_bop_csv;
    use crate::eval::testing::{dataset, predictions_of};
    use crate::eval::write_predictions;

    /// The dataset of the tests under paths like SwissCube's: three images a sequence.
    fn scenes() -> Dataset {
        let mut dataset = dataset();
        for (i, frame) in dataset.frames.iter_mut().enumerate() {
            frame.image = format!("testing/seq_{:06}/000000/rgb/{:06}.jpg", 7 + i / 3, i % 3);
        }
        dataset
    }

    fn read(text: &str, skip_bad: bool) -> Result<ResultFile> {
        read_as(text.as_bytes(), None, skip_bad)
    }

    fn read_as(text: &[u8], format: Option<ResultFormat>, skip_bad: bool) -> Result<ResultFile> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.txt");
        std::fs::write(&path, text).unwrap();
        read_predictions(&path, format, &scenes(), skip_bad)
    }

    fn error_of(text: &str) -> String {
        format!("{:#}", read(text, false).unwrap_err())
    }

    const HEADER: &str = "scene_id,im_id,obj_id,score,R,t,time\n";
    const ROW: &str = "7,0,1,0.9,1 0 0 0 1 0 0 0 1,1 -2.5 900,0.25\n";

    #[test]
    fn both_formats_come_back_bit_for_bit_whatever_their_names() {
        let (dataset, folder) = (scenes(), tempfile::tempdir().unwrap());
        let mut predictions = predictions_of(&dataset);
        for (i, p) in predictions.iter_mut().enumerate() {
            p.score = 1.0 / (i as f64 + 3.0);
        }
        let path = folder.path().join("new/a.dat");
        write_predictions(&path, &predictions).unwrap();
        let found = read_predictions(&path, None, &dataset, false).unwrap();
        assert_eq!((found.format, &found.predictions), (ResultFormat::Jsonl, &predictions));
        assert_eq!((found.num_repeats, found.num_bad, found.mean_time_s), (0, 0, None));

        for (time, mean) in [(Some(0.1 + 0.2), Some(0.1 + 0.2)), (None, None)] {
            write_bop_csv(&path, &dataset, &predictions, time).unwrap();
            let found = read_predictions(&path, None, &dataset, false).unwrap();
            assert_eq!(found.format, ResultFormat::BopCsv);
            match (found.mean_time_s, mean) {
                (Some(a), Some(b)) => assert!((a - b).abs() < 1e-12),
                (a, b) => assert_eq!(a, b),
            }
            // The csv has no place for these.
            predictions.iter_mut().for_each(|p| (p.inliers, p.residual_px) = (0, 0.0));
            assert_eq!(found.predictions, predictions);
        }
    }

    #[test]
    fn csv_files_may_lack_the_header_and_have_marks_and_blank_lines() {
        let expected = read(&format!("{HEADER}{ROW}"), false).unwrap();
        assert_eq!(expected.mean_time_s, Some(0.25));
        assert_eq!(expected.predictions[0].image, "testing/seq_000007/000000/rgb/000000.jpg");
        for text in [
            ROW.to_owned(),
            format!("\u{feff}{HEADER}\r\n{}", ROW.replace('\n', "\r\n")),
            format!("{HEADER}{}", ROW.trim_end()),
            ROW.replace(',', " , ").replace("1 0 0", "1  0\t0"),
        ] {
            assert_eq!(read(&text, false).unwrap().predictions, expected.predictions, "{text:?}");
        }
    }

    #[test]
    fn bad_rows_are_named_with_their_line() {
        for (find, put, expected) in [
            (",0.25", "", "p.txt:3: 6 fields, expected 7"),
            ("7,", "x7,", "p.txt:3: scene_id is \"x7\", expected a whole number"),
            ("7,0", "7,-1", "im_id is \"-1\", expected a whole number"),
            ("7,0", "7,9", "im_id 9 of scene_id 7 is not in the evaluated list"),
            (
                "7,0",
                "99,0",
                "scene_id 99 is not in the evaluated list of data/none (11 scenes, such as 7)",
            ),
            ("0,1,", "0,2,", "no mesh has obj_id 2, there are 1"),
            ("0.9", "nan", "score is NaN"),
            ("0.9", "", "score is \"\", expected a number"),
            ("900", "inf", "not finite"),
            ("900", "1e16", "p.txt:3: prediction of class 0 in image"),
            ("900", "9e307", "t has 9e307 mm, expected at most 1e15"),
            ("900", "900 1", "t has 4 numbers, expected 3"),
            ("1 0 0 0 1", "1 0 0 1", "R has 8 numbers, expected 9"),
            ("1 0 0 0 1 0", "1 0 0 0 1.01 0", "from the identity (at most 0.001)"),
            ("0 0 1,", "0 0 -1,", "the determinant is -1.000000 (expected 1)"),
            ("0.25", "later", "time is \"later\""),
            ("0.25", "NaN", "time is NaN"),
            (
                "0.25",
                "0.5",
                "p.txt:3: time is 0.5 s, but an earlier row of scene_id 7, im_id 0 has 0.25 s",
            ),
        ] {
            let text = format!("{HEADER}{ROW}{}", ROW.replacen(find, put, 1));
            let error = error_of(&text);
            assert!(error.contains(expected) && error.contains("p.txt:3"), "{put:?}: {error}");
            let rest = read(&text, true).unwrap();
            assert_eq!((rest.predictions.len(), rest.num_bad), (1, 1), "{put:?}");
            let place = error.find("p.txt").unwrap();
            assert!(rest.bad[0].ends_with(&error[place..]), "{:?}", rest.bad);
        }
        let text = format!("{HEADER}7,0\n8,0\n");
        assert!(
            format!("{:#}", read(&text, true).unwrap_err())
                .contains("each of its 2 predictions is bad")
        );
        let error = format!(
            "{:#}",
            read_predictions(Path::new("no/such"), None, &scenes(), true).unwrap_err()
        );
        assert!(error.starts_with("reading predictions no/such: "), "{error}");
    }

    #[test]
    fn an_empty_file_is_an_error_unless_its_format_is_known() {
        for text in ["", "\n  \n"] {
            assert!(error_of(text).contains("p.txt is empty"), "{}", error_of(text));
            let nothing = read_as(text.as_bytes(), Some(ResultFormat::Jsonl), false).unwrap();
            assert!(nothing.predictions.is_empty());
        }
        assert!(read(HEADER, false).unwrap().predictions.is_empty());
        // A format that is given is not told by the content.
        let error = read_as(ROW.as_bytes(), Some(ResultFormat::Jsonl), false).unwrap_err();
        assert!(format!("{error:#}").contains("p.txt:1: "), "{error:#}");
    }

    #[test]
    fn files_that_are_no_text_are_refused_in_bounded_memory() {
        let error = read_as(&[0xff, 0xfe, b'\n'], None, true).unwrap_err();
        assert!(format!("{error:#}").contains("p.txt:1: not a line of text"), "{error:#}");
        let error = read_as(&vec![b'7'; 3 << 20], None, true).unwrap_err();
        assert!(format!("{error:#}").contains("longer than 1048576 bytes"), "{error:#}");
    }

    #[test]
    fn repeats_are_counted_and_kept() {
        let text = format!("{ROW}{}{ROW}", ROW.replace("0.9", "0.95"));
        let found = read(&text, false).unwrap();
        assert_eq!((found.predictions.len(), found.num_repeats), (3, 2));
    }

    #[test]
    fn numbers_of_two_images_are_refused() {
        let mut dataset = scenes();
        dataset.frames[1].image = "testing/seq_000007/000001/rgb/000000.jpg".into();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("p.csv");
        std::fs::write(&path, ROW).unwrap();
        let error = read_predictions(&path, None, &dataset, false).unwrap_err();
        let text = format!("{error:#}");
        assert!(text.contains("scene_id 7, im_id 0 is both testing/seq_000007/000000"), "{text}");
        let error = write_bop_csv(&path, &dataset, &predictions_of(&dataset), None).unwrap_err();
        assert!(format!("{error:#}").contains("do not tell these images apart"), "{error:#}");
        // Names without numbers.
        let plain = self::dataset();
        let error = read_predictions(&path, None, &plain, false).unwrap_err();
        assert!(format!("{error:#}").contains("have no BOP numbers"), "{error:#}");
        assert!(write_bop_csv(&path, &plain, &predictions_of(&plain), None).is_err());
    }

    #[test]
    fn poses_in_other_units_are_told() {
        let dataset = scenes();
        let scaled = |factor: f64| {
            let mut predictions = predictions_of(&dataset);
            predictions.iter_mut().for_each(|p| p.t_mm = p.t_mm.map(|v| v * factor));
            odd_distances(&dataset, &predictions)
        };
        assert_eq!(scaled(1.0), None);
        assert_eq!(scaled(1.8), None);
        assert!(scaled(0.001).unwrap().contains("is t in metres? expected mm"));
        assert!(scaled(0.1).unwrap().contains("is t in centimetres?"));
        assert!(scaled(1000.0).unwrap().contains("is t in mm, under"));
        assert_eq!(odd_distances(&dataset, &[]), None);
    }

    #[test]
    fn formats_have_names() {
        for (text, format) in [("jsonl", ResultFormat::Jsonl), ("bop-csv", ResultFormat::BopCsv)] {
            assert_eq!(text.parse(), Ok(format));
        }
        assert!("csv".parse::<ResultFormat>().unwrap_err().contains("expected jsonl or bop-csv"));
        assert_eq!(ResultFormat::of_name(Path::new("a/b.CSV")), ResultFormat::BopCsv);
        assert_eq!(ResultFormat::of_name(Path::new("a.csv/b")), ResultFormat::Jsonl);
    }
}
