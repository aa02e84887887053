//! A folder as the BOP benchmark publishes them: splits of numbered scenes, without lists of images.
//!
//! ```text
//! ROOT/models[_TYPE][_eval]/obj_000005.ply, models_info.json
//! ROOT/test_targets_bop19.json, test_targets_bop24.json
//! ROOT/SPLIT[_TYPE]/000048/scene_camera.json, scene_gt.json, scene_gt_info.json
//!                         /rgb/000001.png or gray/000001.tif, depth/, mask/, mask_visib/
//! ```

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;
use serde::Deserialize;

use super::bop_scene::{BopScene, CAMERAS};
use super::models_info::ModelInfos;
use crate::io;

/// An object of which a smaller fraction is visible is no target where no file names targets.
pub const VISIBLE_TARGET: f64 = 0.1;

/// A folder of a BOP dataset, scene by scene.
#[derive(Debug, Clone)]
pub struct BopFolder {
    root: PathBuf,
    /// Splits with the numbers of their scenes.
    splits: BTreeMap<String, Vec<u32>>,
}

/// A line of a file of targets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct BopTargetLine {
    /// The scene.
    pub scene_id: u32,
    /// The image.
    pub im_id: u32,
    /// The object; none in files for detection.
    #[serde(default)]
    pub obj_id: Option<u32>,
    /// How many instances of it are to be found; none in files for detection.
    #[serde(default)]
    pub inst_count: Option<usize>,
}

/// The files of targets of a split, each with its path.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BopTargets {
    /// `test_targets_bop19.json`.
    pub localization: Option<(String, Vec<BopTargetLine>)>,
    /// `test_targets_bop24.json`.
    pub detection: Option<(String, Vec<BopTargetLine>)>,
}

impl BopTargets {
    /// Scene and image of all targets; none where no file names any.
    pub fn images(&self) -> Option<HashSet<(u32, u32)>> {
        let files = [&self.localization, &self.detection];
        let mut lines = files.into_iter().flatten().flat_map(|(_, lines)| lines).peekable();
        lines.peek()?;
        Some(lines.map(|line| (line.scene_id, line.im_id)).collect())
    }
}

impl BopFolder {
    /// The folder, when it is one of a BOP dataset: it holds folders of numbered scenes, and meshes with `models_info.json`.
    pub fn find(root: &Path) -> Option<Self> {
        let mut splits = BTreeMap::new();
        for name in folders(root) {
            let scenes: Vec<u32> = folders(&root.join(&name))
                .into_iter()
                .filter(|scene| root.join(&name).join(scene).join(CAMERAS).is_file())
                .filter_map(|scene| scene.parse().ok())
                .collect();
            if !scenes.is_empty() {
                splits.insert(name, scenes);
            }
        }
        let folder = Self { root: root.to_owned(), splits };
        (!folder.splits.is_empty() && folder.meshes().is_some()).then_some(folder)
    }

    /// The folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names of the splits.
    pub fn splits(&self) -> impl Iterator<Item = &str> {
        self.splits.keys().map(String::as_str)
    }

    /// The split to evaluate where none is named: the only one whose name begins with `test`.
    ///
    /// # Errors
    /// If there is none, or more than one.
    pub fn test_split(&self) -> Result<&str> {
        let tests: Vec<&str> = self.splits().filter(|name| name.starts_with("test")).collect();
        match tests.as_slice() {
            [one] => Ok(one),
            [] => bail!(
                "{}: no folder of scenes begins with `test`; name one with --split: {}",
                self.root.display(),
                self.names()
            ),
            _ => bail!(
                "{}: several folders of test scenes; name one with --split: {}",
                self.root.display(),
                tests.join(", ")
            ),
        }
    }

    fn names(&self) -> String {
        self.splits().collect::<Vec<_>>().join(", ")
    }

    /// The folder of meshes to render and train with: `models`, else the first `models_TYPE`.
    pub fn meshes(&self) -> Option<PathBuf> {
        let has = |name: &str| self.root.join(name).join("models_info.json").is_file();
        let own = || folders(&self.root).into_iter().filter(|name| !name.ends_with("_eval"));
        let other = || own().find(|name| name.starts_with("models_") && has(name));
        let name = if has("models") { Some("models".to_owned()) } else { other() };
        name.or_else(|| has("models_eval").then(|| "models_eval".to_owned()))
            .map(|name| self.root.join(name))
    }

    /// The folder of meshes that errors are measured on: `models_eval`, else the only `models_TYPE_eval`, else
    /// [`BopFolder::meshes`].
    pub fn evaluation_meshes(&self) -> Option<PathBuf> {
        let mut found = self.folders_of_evaluation_meshes();
        found.retain(|name| self.root.join(name).join("models_info.json").is_file());
        let plain = found.iter().find(|name| *name == "models_eval");
        let name = plain.or_else(|| found.first().filter(|_| found.len() == 1));
        name.map(|name| self.root.join(name)).or_else(|| self.meshes())
    }

    /// Why errors are not measured on evaluation meshes; none where they are.
    pub fn why_no_evaluation_meshes(&self) -> Option<String> {
        let is_eval = |dir: &Path| dir.to_str().is_some_and(|dir| dir.ends_with("_eval"));
        if self.evaluation_meshes().is_some_and(|dir| is_eval(&dir)) {
            return None;
        }
        let found = self.folders_of_evaluation_meshes();
        Some(match self.evaluation_meshes_without_infos() {
            Some(name) => format!("{name} has no models_info.json"),
            None if found.is_empty() => "there are no evaluation meshes".to_owned(),
            None => format!("there is no models_eval, but several others: {}", found.join(", ")),
        })
    }

    /// A folder of evaluation meshes that has no `models_info.json`, and is not used.
    pub fn evaluation_meshes_without_infos(&self) -> Option<String> {
        let names = self.folders_of_evaluation_meshes();
        names.into_iter().find(|name| !self.root.join(name).join("models_info.json").is_file())
    }

    fn folders_of_evaluation_meshes(&self) -> Vec<String> {
        let mut names = folders(&self.root);
        names.retain(|name| name.starts_with("models") && name.ends_with("_eval"));
        names
    }

    /// What is told of the objects beside the meshes of a folder.
    ///
    /// # Errors
    /// As [`ModelInfos::read`], and if there is no object.
    pub fn infos(&self, meshes: &Path) -> Result<ModelInfos> {
        let infos = ModelInfos::read(meshes.join("models_info.json"))?;
        ensure!(!infos.obj_ids().is_empty(), "{}: it lists no object", infos.path().display());
        Ok(infos)
    }

    /// The targets of a split: those of the folder's files where its name begins with `test`.
    ///
    /// # Errors
    /// If a file cannot be read.
    pub fn targets_of(&self, split: &str) -> Result<BopTargets> {
        let read = |name: &str| -> Result<Option<(String, Vec<BopTargetLine>)>> {
            let path = self.root.join(name);
            if !split.starts_with("test") || !path.is_file() {
                return Ok(None);
            }
            Ok(Some((path.display().to_string(), io::read_json(&path)?)))
        };
        let localization = read("test_targets_bop19.json")?;
        Ok(BopTargets { localization, detection: read("test_targets_bop24.json")? })
    }

    /// Width and height of the images as `camera.json` gives them, px; none where there is no such file or it has no size.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn camera_size(&self) -> Result<Option<[usize; 2]>> {
        #[derive(Deserialize)]
        struct CameraJson {
            width: Option<usize>,
            height: Option<usize>,
        }
        let path = self.root.join("camera.json");
        if !path.is_file() {
            return Ok(None);
        }
        let camera: CameraJson = io::read_json(&path)?;
        Ok(camera.width.zip(camera.height).map(|(width, height)| [width, height]))
    }

    /// Reads the scenes of a split, in parallel, by rising number.
    ///
    /// # Errors
    /// If there is no such split; if a file of a scene cannot be read or names an image twice. What is wrong with one image is
    /// kept in its place ([`BopScene::images`]).
    pub fn scenes(&self, split: &str) -> Result<Vec<BopScene>> {
        self.read_scenes(split)?.into_iter().collect()
    }

    /// As [`BopFolder::scenes`], each scene with its own error.
    ///
    /// # Errors
    /// If there is no such split.
    pub fn read_scenes(&self, split: &str) -> Result<Vec<Result<BopScene>>> {
        let ids = self.splits.get(split).with_context(|| {
            format!(
                "{}: no folder {split} of numbered scenes (with {CAMERAS}); there are {}",
                self.root.display(),
                self.names()
            )
        })?;
        let dir = self.root.join(split);
        let named: BTreeSet<(u32, String)> = folders(&dir)
            .into_iter()
            .filter_map(|name| Some((name.parse().ok()?, name)))
            .filter(|(id, _)| ids.contains(id))
            .collect();
        Ok(named.par_iter().map(|(id, name)| BopScene::read(*id, &dir.join(name))).collect())
    }
}

/// The names of the folders in a folder, sorted; none where it cannot be read.
fn folders(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let dirs = entries.filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        dirs.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}
