//! The sections `data` and `INPUT` of a problem's config, with the published keys.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, bail};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::color::ColorConfig;
use crate::geom::Camera;
use crate::schema::{above_zero, below_one, check_ranges};

/// One of the three lists of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// `TRAIN`.
    Train,
    /// `VALID`.
    Valid,
    /// `TEST`.
    Test,
}

impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        })
    }
}

impl FromStr for Split {
    type Err = anyhow::Error;

    fn from_str(s: &str) -> Result<Self> {
        Ok(match s {
            "train" | "training" => Self::Train,
            "valid" | "val" | "validation" => Self::Valid,
            "test" | "testing" => Self::Test,
            _ => bail!("split is {s:?}, expected train, valid or test"),
        })
    }
}

/// The published section `data`: where the images are, batch sizes, augmentation, classes.
///
/// Paths are relative to the dataset's root. Of a published spelling such as `./problems/SwissCube/data/training.txt`
/// what follows the last `data/` counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct DataConfig {
    /// Shift, rotate and scale the training images.
    pub augment: bool,
    /// Images of a training batch; a stage's `batch_size` wins. Images of an epoch that fill no batch are left out of it, other ones
    /// each epoch.
    #[schemars(range(min = 1))]
    pub bs_train: usize,
    /// Images of an evaluation batch.
    #[schemars(range(min = 1))]
    pub bs_valid: usize,
    /// A cell (location of a feature map) whose confidence (sigmoid) is above this is a candidate.
    #[serde(rename = "CONFIDENCE_TH")]
    #[schemars(range(min = 0, max = 1))]
    pub confidence_threshold: f64,
    /// List of the training images, one path a line, relative to the dataset's root; in a BOP folder its folders of scenes:
    /// `train_pbr + train_real`, or with the fraction of each, `train_pbr:0.1 + train_real:0.9`.
    #[serde(rename = "TRAIN")]
    pub train: String,
    /// List of the validation images, or folders of scenes.
    #[serde(rename = "VALID")]
    pub valid: String,
    /// List of the test images, or folders of scenes.
    #[serde(rename = "TEST")]
    pub test: String,
    /// Folder of the meshes `obj_000001.ply` ..., mm; a class is the rank of its file name.
    #[serde(rename = "MESH_DIR")]
    pub mesh_dir: String,
    /// Corners of the meshes' boxes, `[class][8][3]`, mm; a BOP folder need not have it.
    #[serde(rename = "BBOX_FILE")]
    pub bbox_file: String,
    /// Diameter of each class's mesh, mm: one fewer than `N_CLASS`; empty: those of a BOP folder's `models_info.json`.
    #[serde(rename = "MESH_DIAMETERS")]
    #[schemars(transform = above_zero)]
    pub mesh_diameters_mm: Vec<f64>,
    /// Classes including the background: one more than there are meshes.
    #[serde(rename = "N_CLASS")]
    #[schemars(range(min = 2))]
    pub num_classes_with_background: usize,
    /// Largest shift, as a fraction of the image's width and height.
    #[serde(rename = "AUGMENTATION_SHIFT")]
    #[schemars(range(min = 0, max = 1))]
    pub augmentation_shift: f64,
    /// Scale factors lie within 1 +- this. (At 1 an image could shrink to a point.)
    #[serde(rename = "AUGMENTATION_SCALE")]
    #[schemars(range(min = 0), transform = below_one)]
    pub augmentation_scale: f64,
    /// Largest rotation either way, degrees.
    #[serde(rename = "AUGMENTATION_ROTATION")]
    #[schemars(range(min = 0, max = 180))]
    pub augmentation_rotation_deg: f64,
    /// An instance with fewer visible pixels than this, at internal size, is dropped from a sample.
    #[serde(rename = "MIN_VISIBLE_PX")]
    pub min_visible_px: u32,
    /// Average over the source pixels when shrinking to the internal size; the published code does not.
    #[serde(rename = "ANTIALIAS")]
    pub antialias: bool,
    /// Classes (0-based, without the background) whose pose errors take the closest point.
    #[serde(rename = "SYMMETRIC_CLASSES")]
    pub symmetric_classes: Vec<usize>,
    /// Numbers of the objects of a BOP folder that are classes; empty: all of its `models_info.json`.
    #[serde(rename = "OBJ_IDS", skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("default" = Vec::<u32>::new()))]
    pub obj_ids: Vec<u32>,
    /// An instance of which a smaller fraction is visible (`scene_gt_info.json` of a BOP folder, else its masks) is left out in
    /// training.
    #[serde(rename = "MIN_VISIBLE_FRACT", skip_serializing_if = "is_zero")]
    #[schemars(range(min = 0, max = 1), extend("default" = 0.0))]
    pub min_visible_fraction: f64,
    /// Random changes of colours in training; `null` leaves colours as they are, as published.
    #[serde(rename = "COLOR", skip_serializing_if = "Option::is_none")]
    #[schemars(extend("default" = Option::<ColorConfig>::None))]
    pub color: Option<ColorConfig>,
}

impl Default for DataConfig {
    fn default() -> Self {
        Self {
            augment: true,
            bs_train: 8,
            bs_valid: 8,
            confidence_threshold: 0.3,
            train: "training.txt".into(),
            valid: "validation.txt".into(),
            test: "testing.txt".into(),
            mesh_dir: "models".into(),
            bbox_file: "swisscube_bbox.json".into(),
            mesh_diameters_mm: vec![178.46],
            num_classes_with_background: 2,
            augmentation_shift: 0.1,
            augmentation_scale: 0.1,
            augmentation_rotation_deg: 180.0,
            min_visible_px: 10,
            antialias: false,
            symmetric_classes: Vec::new(),
            obj_ids: Vec::new(),
            min_visible_fraction: 0.0,
            color: None,
        }
    }
}

fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

/// BOP's file about the meshes, beside them.
pub(super) const MODELS_INFO: &str = "models_info.json";

impl DataConfig {
    /// Pushes `"{at}.KEY: ..."` for each value that does not fit another one, and each path that names nothing. Ranges are
    /// checked by [`check_ranges`].
    pub fn check_together(&self, at: &str, problems: &mut Vec<String>) {
        let mut need = |ok: bool, key: &str, what: String| {
            if !ok {
                problems.push(format!("{at}.{key}: {what}"));
            }
        };
        for (key, path) in [
            ("TRAIN", &self.train),
            ("VALID", &self.valid),
            ("TEST", &self.test),
            ("MESH_DIR", &self.mesh_dir),
            ("BBOX_FILE", &self.bbox_file),
        ] {
            need(
                !dataset_relative(path).is_empty(),
                key,
                format!("{path:?} names nothing, expected a path relative to the dataset's root"),
            );
        }
        let n = self.num_classes_with_background;
        let diameters = &self.mesh_diameters_mm;
        need(
            diameters.is_empty() || diameters.len() + 1 == n,
            "MESH_DIAMETERS",
            format!(
                "{} diameters, expected {} (N_CLASS - 1), or none in a BOP folder",
                diameters.len(),
                n.saturating_sub(1)
            ),
        );
        need(
            self.augment || self.color.is_none(),
            "COLOR",
            "changes training images, and data.augment is false; set it to true, or COLOR to null"
                .to_owned(),
        );
        for &c in &self.symmetric_classes {
            let ok = c + 1 < n;
            need(ok, "SYMMETRIC_CLASSES", format!("{c} is outside 0..{}", n.saturating_sub(1)));
        }
    }

    /// The list file of a split, relative to the dataset's root unless it is absolute.
    pub fn list(&self, split: Split) -> &str {
        dataset_relative(match split {
            Split::Train => &self.train,
            Split::Valid => &self.valid,
            Split::Test => &self.test,
        })
    }

    /// The file of the BOP format that tells the objects' symmetries; it need not be there.
    pub fn models_info(&self, root: &Path) -> PathBuf {
        self.meshes(root).join(MODELS_INFO)
    }

    /// The file of the objects' boxes in a dataset.
    pub fn boxes(&self, root: &Path) -> PathBuf {
        root.join(dataset_relative(&self.bbox_file))
    }

    /// The folder of the objects' meshes in a dataset.
    pub fn meshes(&self, root: &Path) -> PathBuf {
        root.join(dataset_relative(&self.mesh_dir))
    }

    /// Classes without the background.
    pub fn num_classes(&self) -> usize {
        self.num_classes_with_background.saturating_sub(1)
    }
}

/// The published section `INPUT`: size and camera of the network's input.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct InputConfig {
    /// Width of the network's input, px; a multiple of `SIZE_DIVISIBLE`.
    #[serde(rename = "INTERNAL_WIDTH")]
    #[schemars(range(min = 1, max = MAX_SIDE_PX))]
    pub width: usize,
    /// Height of the network's input, px; a multiple of `SIZE_DIVISIBLE`.
    #[serde(rename = "INTERNAL_HEIGHT")]
    #[schemars(range(min = 1, max = MAX_SIDE_PX))]
    pub height: usize,
    /// Internal camera, K row by row, px; images are warped to it.
    #[serde(rename = "INTERNAL_K")]
    pub k: [f64; 9],
    /// Mean of R, G, B, subtracted after division by 255.
    #[serde(rename = "PIXEL_MEAN")]
    pub pixel_mean: [f64; 3],
    /// Deviation of R, G, B.
    #[serde(rename = "PIXEL_STD")]
    #[schemars(transform = above_zero)]
    pub pixel_std: [f64; 3],
    /// What the internal width and height must be multiples of, px.
    #[serde(rename = "SIZE_DIVISIBLE")]
    #[schemars(range(min = 1))]
    pub size_divisible: usize,
}

impl Default for InputConfig {
    fn default() -> Self {
        const FOCAL_PX: f64 = 303.7865161198519;
        Self {
            width: 512,
            height: 512,
            k: [FOCAL_PX, 0.0, 256.0, 0.0, FOCAL_PX, 256.0, 0.0, 0.0, 1.0],
            pixel_mean: [0.485, 0.456, 0.406],
            pixel_std: [0.229, 0.224, 0.225],
            size_divisible: 32,
        }
    }
}

/// Largest width and height of the network's input, px.
const MAX_SIDE_PX: usize = 16384;

impl InputConfig {
    /// Pushes `"{at}.KEY: ..."` for each value outside its range, or that does not fit another one.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        check_ranges(self, at, problems);
        self.check_together(at, problems);
    }

    /// Pushes `"{at}.KEY: ..."` for each value that does not fit another one.
    pub fn check_together(&self, at: &str, problems: &mut Vec<String>) {
        let divisor = self.size_divisible;
        for (key, side) in [("INTERNAL_WIDTH", self.width), ("INTERNAL_HEIGHT", self.height)] {
            if divisor > 0 && side % divisor != 0 {
                problems.push(format!(
                    "{at}.{key}: {side} is not a multiple of SIZE_DIVISIBLE ({divisor})"
                ));
            }
        }
        if let Err(e) = Camera::from_row_major(&self.k) {
            problems.push(format!("{at}.INTERNAL_K: {e:#}"));
        }
    }

    /// The internal camera.
    ///
    /// # Errors
    /// If `INTERNAL_K` is not a camera matrix.
    pub fn camera(&self) -> Result<Camera> {
        Camera::from_row_major(&self.k).context("INTERNAL_K")
    }
}

/// A config's path as one relative to the dataset's root: of a relative path with a component `data`, what follows
/// the last one; otherwise the path itself (an absolute path stays). Without `./` in front and `/` behind.
pub(crate) fn dataset_relative(path: &str) -> &str {
    let path = path.trim();
    if path.starts_with('/') {
        return path;
    }
    let mut start = 0;
    let mut end_of_component = 0;
    for component in path.split('/') {
        end_of_component += component.len() + 1;
        if component == "data" || component == "." {
            start = end_of_component.min(path.len());
        }
    }
    path[start..].trim_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn problems_of(data: &DataConfig, input: &InputConfig) -> Vec<String> {
        let mut problems = Vec::new();
        check_ranges(data, "data", &mut problems);
        data.check_together("data", &mut problems);
        input.check("INPUT", &mut problems);
        problems
    }

    #[test]
    fn the_defaults_have_no_problem_and_survive_json() {
        let (data, input) = (DataConfig::default(), InputConfig::default());
        assert_eq!(problems_of(&data, &input), Vec::<String>::new());
        let text = serde_json::to_string(&data).unwrap();
        assert!(text.contains("\"CONFIDENCE_TH\":0.3"), "{text}");
        assert_eq!(serde_json::from_str::<DataConfig>(&text).unwrap(), data);
        let text = serde_json::to_string(&input).unwrap();
        assert_eq!(serde_json::from_str::<InputConfig>(&text).unwrap(), input);
        assert!(serde_json::from_str::<DataConfig>("{\"bs_trian\": 4}").is_err());
    }

    #[test]
    fn a_list_in_the_published_spelling_is_found_in_the_datasets_root() {
        let data = DataConfig {
            train: "./problems/SwissCube/data/training.txt".into(),
            valid: "/elsewhere/data/validation.txt".into(),
            ..DataConfig::default()
        };
        assert_eq!(data.list(Split::Train), "training.txt");
        assert_eq!(data.list(Split::Valid), "/elsewhere/data/validation.txt");
        assert_eq!(data.list(Split::Test), "testing.txt");
    }

    #[test]
    fn every_bad_value_is_told_with_its_key() {
        let data = DataConfig {
            bs_train: 0,
            bs_valid: 0,
            confidence_threshold: 1.5,
            train: "./problems/SwissCube/data/".into(),
            mesh_diameters_mm: vec![-1.0, 2.0],
            num_classes_with_background: 2,
            augmentation_shift: -0.1,
            augmentation_scale: 1.0,
            augmentation_rotation_deg: f64::NAN,
            symmetric_classes: vec![1],
            augment: false,
            color: Some(ColorConfig { brightness: 2.0, ..ColorConfig::default() }),
            ..DataConfig::default()
        };
        let input = InputConfig {
            width: 500,
            height: 0,
            k: [0.0; 9],
            pixel_mean: [f64::NAN, 0.0, 0.0],
            pixel_std: [0.0, 1.0, 1.0],
            ..InputConfig::default()
        };
        let problems = problems_of(&data, &input);
        for key in [
            "data.bs_train: 0",
            "data.bs_valid: 0",
            "data.CONFIDENCE_TH: 1.5 is outside 0..=1",
            "data.TRAIN",
            "data.MESH_DIAMETERS: 2 diameters, expected 1",
            "data.MESH_DIAMETERS.0: -1 is not above 0",
            "data.AUGMENTATION_SHIFT: -0.1",
            "data.AUGMENTATION_SCALE: 1 is outside",
            "data.AUGMENTATION_ROTATION: is not a finite number",
            "data.SYMMETRIC_CLASSES: 1 is outside 0..1",
            "data.COLOR: changes training images",
            "data.COLOR.brightness: 2 is outside 0..=1",
            "INPUT.INTERNAL_WIDTH: 500 is not a multiple",
            "INPUT.INTERNAL_HEIGHT: 0",
            "INPUT.INTERNAL_K",
            "INPUT.PIXEL_MEAN.0: is not a finite number",
            "INPUT.PIXEL_STD.0: 0 is not above 0",
        ] {
            let found = problems.iter().filter(|p| p.starts_with(key)).count();
            assert_eq!(found, 1, "{key} in {problems:#?}");
        }
    }

    #[test]
    fn what_follows_the_last_data_component_counts() {
        for (spelled, expected) in [
            ("./problems/SwissCube/data/training.txt", "training.txt"),
            ("./problems/SwissCube/data/models/", "models"),
            ("data/a/data/b.txt", "b.txt"),
            ("lists/mydata/a.txt", "lists/mydata/a.txt"),
            ("./training.txt", "training.txt"),
            ("training.txt", "training.txt"),
            ("models/", "models"),
            ("/mnt/data/training.txt", "/mnt/data/training.txt"),
            ("some/data", ""),
            ("some/data/", ""),
        ] {
            assert_eq!(dataset_relative(spelled), expected, "{spelled}");
        }
    }

    #[test]
    fn splits_have_names_and_lists() {
        let data = DataConfig::default();
        for split in [Split::Train, Split::Valid, Split::Test] {
            assert_eq!(split.to_string().parse::<Split>().unwrap(), split);
        }
        assert_eq!(data.list("validation".parse().unwrap()), "validation.txt");
        assert!("tset".parse::<Split>().unwrap_err().to_string().contains("tset"));
    }
}
