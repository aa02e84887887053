//! What to render.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shapes::NUM_BUILT_IN;
use crate::data::DepthScale;
use crate::io::shell_word;
use crate::schema::check_ranges;

/// Nearest allowed depth, in diameters: closer, the camera would be inside the satellite's antennas.
const NEAREST_D: f64 = 0.9;
/// Farthest allowed depth, in diameters.
const FARTHEST_D: f64 = 100.0;
/// Smallest and largest image side, px.
const SIZE_PX: [u32; 2] = [32, 8192];
/// Most objects in an image.
const MOST_INSTANCES: usize = 50;
/// Largest fraction of an object that is hidden where no setting says another one.
const HIDDEN: f64 = 0.7;
/// Largest value of that setting: something of an object is always seen.
const MOST_HIDDEN: f64 = 0.95;

/// The settings of one synthetic dataset.
///
/// `out`, `jobs` and `overwrite` say where and how it is made; they do not change what is in it and are
/// not written to `synthetic.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SynthOptions {
    /// Folder to write to.
    #[serde(skip)]
    #[serde(serialize_with = "crate::io::path_text")]
    pub out: PathBuf,
    /// Images for training.
    pub num_train: usize,
    /// Images for validation.
    pub num_val: usize,
    /// Images for testing.
    pub num_test: usize,
    /// Side of the square images, px. The camera is SwissCube's, scaled.
    #[schemars(range(min = SIZE_PX[0], max = SIZE_PX[1]))]
    pub size_px: u32,
    /// Nearest and farthest depth, in mesh diameters (178.46 mm).
    #[schemars(transform = depths)]
    pub depth_d: (f64, f64),
    /// Which attitudes to show.
    pub attitude: Attitude,
    /// Seed of everything random.
    pub seed: u64,
    /// Threads; 0 is one per core. Does not change the result.
    #[serde(skip)]
    pub jobs: usize,
    /// File format of the colour images.
    pub format: Format,
    /// Also write 16-bit depth images.
    pub depth_png: bool,
    /// Which files are written, and of what.
    #[serde(default, skip_serializing_if = "Layout::is_swisscube")]
    pub layout: Layout,
    /// Built-in objects of `--layout bop`.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = NUM_BUILT_IN))]
    pub objects: usize,
    /// Folder of meshes of the user's own instead, for `--layout bop`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub meshes: Option<PathBuf>,
    /// Fewest and most objects in an image of `--layout bop`.
    #[serde(default, skip_serializing_if = "is_none_at_all")]
    pub instances: (usize, usize),
    /// Objects without annotation in an image of `--layout bop`.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = MOST_INSTANCES))]
    pub clutter: usize,
    /// Largest fraction of an object's silhouette that is hidden or outside of an image of `--layout bop`.
    #[serde(default = "most_hidden", skip_serializing_if = "is_most_hidden")]
    #[schemars(range(min = 0, max = MOST_HIDDEN))]
    pub occlusion: f64,
    /// Largest fraction of it that is outside.
    #[serde(default = "most_hidden", skip_serializing_if = "is_most_hidden")]
    #[schemars(range(min = 0, max = MOST_HIDDEN))]
    pub truncation: f64,
    /// Replace an existing synthetic dataset.
    #[serde(skip)]
    pub overwrite: bool,
}

fn is_zero(num: &usize) -> bool {
    *num == 0
}

fn is_none_at_all(range: &(usize, usize)) -> bool {
    *range == (0, 0)
}

fn most_hidden() -> f64 {
    HIDDEN
}

fn is_most_hidden(fraction: &f64) -> bool {
    *fraction == HIDDEN
}

impl Default for SynthOptions {
    fn default() -> Self {
        Self {
            out: PathBuf::new(),
            num_train: 1000,
            num_val: 100,
            num_test: 200,
            size_px: 1024,
            depth_d: (1.0, 10.0),
            attitude: Attitude::Full,
            seed: 0,
            jobs: 0,
            format: Format::default(),
            depth_png: false,
            layout: Layout::Swisscube,
            objects: 0,
            meshes: None,
            instances: (0, 0),
            clutter: 0,
            occlusion: HIDDEN,
            truncation: HIDDEN,
            overwrite: false,
        }
    }
}

impl SynthOptions {
    /// The largest depth of a surface of an object of that diameter, mm.
    fn deepest_mm(&self, diameter_mm: f64) -> f64 {
        (self.depth_d.1 + 1.0) * diameter_mm
    }

    /// The unit of depth images in which the largest object has that diameter, mm.
    pub(super) fn depth_scale(&self, diameter_mm: f64) -> DepthScale {
        DepthScale::for_depths_up_to(self.deepest_mm(diameter_mm))
    }

    /// Refuses depths that depth images cannot hold, where there are to be any.
    ///
    /// # Errors
    /// Names the largest distance and the unit.
    pub(super) fn ensure_depths_fit(&self, diameter_mm: f64) -> Result<()> {
        if !self.depth_png {
            return Ok(());
        }
        let far = self.depth_d.1;
        self.depth_scale(diameter_mm).ensure_holds(self.deepest_mm(diameter_mm)).with_context(|| {
            format!(
                "a depth of {far} diameters of {diameter_mm:.1} mm does not fit into depth images: take nearer ones, or do \
                 without --depth-png"
            )
        })
    }

    /// Images of all splits together.
    pub fn num_images(&self) -> usize {
        self.num_train + self.num_val + self.num_test
    }

    /// True when both settings give the same images, wherever and with however many threads.
    pub fn same_data(&self, other: &SynthOptions) -> bool {
        let bare =
            |o: &SynthOptions| Self { out: PathBuf::new(), jobs: 0, overwrite: false, ..o.clone() };
        bare(self) == bare(other)
    }

    /// Refuses settings that cannot be rendered, all of them in one message.
    ///
    /// # Errors
    /// If a value is outside its range.
    pub fn check(&self) -> Result<()> {
        let mut problems = Vec::new();
        if self.out.as_os_str().is_empty() {
            problems.push("out: no directory given".to_owned());
        }
        if self.num_images() == 0 {
            problems.push("train, val and test are all 0, expected at least one image".to_owned());
        }
        check_ranges(self, "", &mut problems);
        let (near, far) = self.depth_d;
        if near > far {
            problems.push(format!("depth_d: {near}d:{far}d begins farther than it ends"));
        }
        self.check_layout(&mut problems);
        ensure!(problems.is_empty(), "{}", problems.join("; "));
        Ok(())
    }

    /// Settings of the one layout beside the other.
    fn check_layout(&self, problems: &mut Vec<String>) {
        let (fewest, most) = self.instances;
        match self.layout {
            Layout::Swisscube => {
                let hides = !is_most_hidden(&self.occlusion) || !is_most_hidden(&self.truncation);
                let has_objects = self.objects > 0 || self.meshes.is_some() || most > 0;
                if has_objects || self.clutter > 0 || hides {
                    problems.push(
                        "objects, meshes, instances, clutter, occlusion and truncation are settings of layout bop, expected \
                         none with layout swisscube"
                            .to_owned(),
                    );
                }
            }
            Layout::Bop => {
                if (self.objects > 0) == self.meshes.is_some() {
                    problems
                        .push("objects or meshes: expected one of them with layout bop".to_owned());
                }
                if fewest == 0 || fewest > most || most > MOST_INSTANCES {
                    problems.push(format!(
                        "instances: {fewest}:{most}, expected FEWEST:MOST from 1 to {MOST_INSTANCES}"
                    ));
                }
            }
        }
    }

    /// The command line that makes this dataset again.
    pub fn command_line(&self) -> String {
        let (near, far) = self.depth_d;
        let mut line = format!(
            "mqat synth --out DIR --train {} --val {} --test {} --size {} --depth {near}d:{far}d \
             --attitude {} --seed {} --format {}",
            self.num_train,
            self.num_val,
            self.num_test,
            self.size_px,
            self.attitude,
            self.seed,
            self.format
        );
        if self.depth_png {
            line.push_str(" --depth-png");
        }
        if self.layout == Layout::Bop {
            let (fewest, most) = self.instances;
            match &self.meshes {
                Some(dir) => line.push_str(&format!(" --layout bop --meshes {}", shell_word(dir))),
                None => line.push_str(&format!(" --layout bop --objects {}", self.objects)),
            }
            line.push_str(&format!(" --instances {fewest}:{most}"));
            if self.clutter > 0 {
                line.push_str(&format!(" --clutter {}", self.clutter));
            }
            for (name, value) in [("occlusion", self.occlusion), ("truncation", self.truncation)] {
                if !is_most_hidden(&value) {
                    line.push_str(&format!(" --{name} {value}"));
                }
            }
        }
        line
    }
}

/// For the schema of the depths.
fn depths(schema: &mut schemars::Schema) {
    let items = schema.ensure_object().get_mut("prefixItems").and_then(|i| i.as_array_mut());
    for item in items.into_iter().flatten() {
        item["minimum"] = NEAREST_D.into();
        item["maximum"] = FARTHEST_D.into();
    }
}

/// Which files a dataset has, and what is in its images.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema, ValueEnum,
)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// The satellite, in sequences with lists of images, as SwissCube.
    #[default]
    Swisscube,
    /// Several objects in front of clouds, in numbered scenes, as the BOP benchmark publishes them.
    Bop,
}

impl Layout {
    fn is_swisscube(&self) -> bool {
        *self == Self::Swisscube
    }
}

/// Which attitudes the satellite takes.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Attitude {
    /// Uniform over all rotations.
    Full,
    /// Uniform over the rotations within so many degrees (geodesic, in-plane rotation included) of one
    /// nominal attitude, the same for all sequences and splits.
    WithinDeg(#[schemars(range(min = 0, max = 180))] f64),
}

impl fmt::Display for Attitude {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Attitude::Full => write!(f, "full"),
            Attitude::WithinDeg(deg) => write!(f, "{deg}"),
        }
    }
}

impl FromStr for Attitude {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        if s.eq_ignore_ascii_case("full") {
            return Ok(Attitude::Full);
        }
        match s.trim_end_matches("deg").parse::<f64>() {
            Ok(deg) if (0.0..=180.0).contains(&deg) => Ok(Attitude::WithinDeg(deg)),
            _ => Err(format!("attitude is {s:?}, expected full or degrees from 0 to 180")),
        }
    }
}

/// File format of the colour images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    /// Lossy, as the dataset's own images.
    Jpeg {
        /// 100 is best.
        #[schemars(range(min = 1, max = 100))]
        quality: u8,
    },
    /// Lossless.
    Png,
}

impl Default for Format {
    fn default() -> Self {
        Format::Jpeg { quality: 95 }
    }
}

impl Format {
    /// The file name's ending, without the dot.
    pub fn extension(self) -> &'static str {
        match self {
            Format::Jpeg { .. } => "jpg",
            Format::Png => "png",
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Format::Jpeg { quality } => write!(f, "jpeg:{quality}"),
            Format::Png => write!(f, "png"),
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("format is {s:?}, expected png, jpeg or jpeg:QUALITY (1 to 100)");
        let lower = s.to_ascii_lowercase();
        let (name, quality) = match lower.split_once(':') {
            Some((name, q)) => (name, Some(q.parse::<u8>().map_err(|_| wrong())?)),
            None => (lower.as_str(), None),
        };
        match (name, quality) {
            ("png", None) => Ok(Format::Png),
            ("jpeg" | "jpg", None) => Ok(Format::default()),
            ("jpeg" | "jpg", Some(quality @ 1..=100)) => Ok(Format::Jpeg { quality }),
            _ => Err(wrong()),
        }
    }
}

/// Numbers of objects in an image as a command line gives them: `1:3`, or `2`.
///
/// # Errors
/// If the text is not one or two whole numbers.
pub fn parse_instances(s: &str) -> Result<(usize, usize), String> {
    let (fewest, most) = s.split_once(':').unwrap_or((s, s));
    let range = fewest.parse().ok().zip(most.parse().ok());
    let range = range.filter(|&(fewest, most): &(usize, usize)| fewest > 0 && fewest <= most);
    range.ok_or_else(|| format!("instances are {s:?}, expected FEWEST:MOST from 1 on, as 1:3"))
}

/// Depths as a command line gives them: `1d:10d`, in mesh diameters.
///
/// # Errors
/// If the text is not two numbers, each with or without a `d`, joined by a colon.
pub fn parse_depth_range(s: &str) -> Result<(f64, f64), String> {
    let number = |t: &str| t.trim().trim_end_matches('d').parse::<f64>().ok();
    s.split_once(':')
        .and_then(|(near, far)| Some((number(near)?, number(far)?)))
        .filter(|(near, far)| near.is_finite() && far.is_finite() && near <= far)
        .ok_or_else(|| format!("depth range is {s:?}, expected NEAR:FAR in diameters, as 1d:10d"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_a_command_line_come_back() {
        assert_eq!("full".parse(), Ok(Attitude::Full));
        assert_eq!("30".parse(), Ok(Attitude::WithinDeg(30.0)));
        assert!("181".parse::<Attitude>().is_err() && "half".parse::<Attitude>().is_err());
        assert_eq!("jpeg:80".parse(), Ok(Format::Jpeg { quality: 80 }));
        assert_eq!("png".parse(), Ok(Format::Png));
        assert!("jpeg:0".parse::<Format>().is_err() && "gif".parse::<Format>().is_err());
        assert_eq!(parse_depth_range("1d:10d"), Ok((1.0, 10.0)));
        assert_eq!(parse_depth_range("2.5:4"), Ok((2.5, 4.0)));
        assert_eq!((parse_instances("1:3"), parse_instances("2")), (Ok((1, 3)), Ok((2, 2))));
        assert!(parse_instances("0:3").is_err() && parse_instances("3:1").is_err());
        assert!(parse_depth_range("10d:1d").is_err() && parse_depth_range("3d").is_err());
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let bad = SynthOptions {
            num_train: 0,
            num_val: 0,
            num_test: 0,
            size_px: 8,
            depth_d: (0.1, 2.0),
            attitude: Attitude::WithinDeg(f64::NAN),
            format: Format::Jpeg { quality: 0 },
            ..SynthOptions::default()
        };
        let message = bad.check().unwrap_err().to_string();
        for part in [
            "out: ",
            "at least one image",
            "size_px: 8 is outside 32..=8192",
            "depth_d.0: 0.1 is outside 0.9..=100",
            "attitude.within_deg: is not a finite number",
            "format.jpeg.quality: 0 is outside 1..=100",
        ] {
            assert!(message.contains(part), "{part} is not in {message:?}");
        }
        assert_eq!(message.matches("; ").count(), 5, "{message}");
        let good = SynthOptions { out: "x".into(), ..SynthOptions::default() };
        assert!(good.check().is_ok());
    }

    #[test]
    fn place_and_threads_are_not_part_of_the_data() {
        let a = SynthOptions::default();
        let b = SynthOptions { out: "x".into(), jobs: 3, overwrite: true, ..a.clone() };
        assert!(a.same_data(&b));
        assert!(!a.same_data(&SynthOptions { seed: 1, ..a.clone() }));
        let back: SynthOptions = serde_json::from_str(&serde_json::to_string(&b).unwrap()).unwrap();
        assert!(back.same_data(&a) && back.out == PathBuf::new());
    }
}
