//! The BOP benchmark's scores of a split of a folder as the benchmark publishes them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::bop_scores::average_recalls;
use super::prediction::Prediction;
use super::split_index::image_ids;
use crate::data::{
    BadSample, BopFolder, BopScene, DataConfig, Dataset, ModelInfos, SplitList, VISIBLE_TARGET,
};
use crate::geom::Vec3;
use crate::io::mesh::read_ply;
use crate::io::picture::{read_depth, size_and_orientation};
use crate::pose::BopScores;
use crate::pose::bop::{
    BopEstimate, BopImage, BopInstance, BopModel, BopSettings, BopTarget, ImageErrors,
    image_errors, symmetries,
};

/// A split, ready to be scored: meshes, true poses, targets.
#[derive(Debug)]
pub struct BopSplit {
    /// Numbers of the objects: class `c` of the scores is the `c`-th.
    pub obj_ids: Vec<u32>,
    /// The classes.
    pub models: Vec<BopModel>,
    /// What is to be known about the scores: where targets, meshes and visibility come from.
    pub notes: Vec<String>,
    settings: BopSettings,
    scenes: Vec<BopScene>,
    images: Vec<SplitImage>,
    /// Scene and image of each of them.
    asked: HashSet<(u32, u32)>,
    camera_size: Option<[usize; 2]>,
}

/// An image that counts.
#[derive(Debug)]
struct SplitImage {
    /// Place of its scene.
    scene: usize,
    im_id: u32,
    targets: Vec<BopTarget>,
    detection: bool,
}

/// Poses by scene and image, in the order of their file; classes as in [`BopSplit::obj_ids`].
pub type EstimatesByImage = HashMap<(u32, u32), Vec<BopEstimate>>;

/// The scores of predictions, and what is to be known about them: of a split of a BOP folder the benchmark's own
/// ([`BopSplit`]), of any other dataset those of [`average_recalls`].
///
/// # Errors
/// As [`BopSplit::open`], [`BopSplit::errors`] and [`average_recalls`].
pub fn benchmark_scores(
    dataset: &Dataset,
    data: &DataConfig,
    list: &str,
    predictions: &[Prediction],
    left_out: &[BadSample],
) -> Result<(BopScores, Vec<String>)> {
    match bop_split_of(dataset, list)? {
        Some(split) => {
            let errors = split.errors(&split.estimates(dataset, predictions)?)?;
            Ok((split.scores(&errors), split.notes))
        }
        None => Ok((average_recalls(dataset, data, predictions, left_out)?, Vec::new())),
    }
}

/// The split of a BOP folder that a list names; none where it is a list of images, or names several splits.
///
/// # Errors
/// As [`BopSplit::open`].
pub fn bop_split_of(dataset: &Dataset, list: &str) -> Result<Option<BopSplit>> {
    if dataset.root.join(list).is_file() {
        return Ok(None);
    }
    let Some(folder) = BopFolder::find(&dataset.root) else { return Ok(None) };
    match SplitList::parse(list)?.parts.as_slice() {
        [(split, _)] => BopSplit::open(&folder, split, BopSettings::default()).map(Some),
        _ => Ok(None),
    }
}

impl BopSplit {
    /// Reads what a split is scored with. Targets are those of `test_targets_bop19.json` and `test_targets_bop24.json` for a
    /// split whose name begins with `test`; else, and where there is no such file, all objects of which at least a tenth is
    /// visible, in all images.
    ///
    /// # Errors
    /// If a file cannot be read; if a scene has no true poses; if an object has no mesh or no diameter; if a target names an
    /// image or an object that is not there.
    pub fn open(folder: &BopFolder, split: &str, settings: BopSettings) -> Result<Self> {
        let meshes = folder.evaluation_meshes().context("no folder of meshes")?;
        let infos = folder.infos(&meshes)?;
        let obj_ids = infos.obj_ids();
        let models = (obj_ids.par_iter())
            .map(|&obj_id| read_model(&meshes, &infos, obj_id))
            .collect::<Result<Vec<_>>>()?;
        let scenes = folder.scenes(split)?;
        let mut notes = Vec::new();
        let name = meshes.file_name().unwrap_or_default().to_string_lossy();
        if !name.ends_with("_eval") {
            notes.push(format!(
                "errors are measured on the meshes of {name}: there are no evaluation meshes"
            ));
        }
        if scenes.iter().any(|scene| !scene.tells_visibility()) {
            notes.push(
                "visible fractions are computed from masks (1 where there are none): not every scene has scene_gt_info.json"
                    .to_owned(),
            );
        }
        let camera_size = folder.camera_size();
        let mut found = Self {
            obj_ids,
            models,
            notes,
            settings,
            scenes,
            images: Vec::new(),
            asked: HashSet::new(),
            camera_size,
        };
        found.take_targets(folder, split)?;
        Ok(found)
    }

    /// The poses of a dataset's predictions; those of objects without an evaluation mesh are left out.
    pub fn estimates(
        &self,
        dataset: &Dataset,
        predictions: &[Prediction],
    ) -> Result<EstimatesByImage> {
        let mut by_image = EstimatesByImage::new();
        for p in predictions {
            let ids = image_ids(&p.image)
                .with_context(|| format!("image {} has no BOP numbers", p.image))?;
            let model = dataset.models.get(p.class);
            let obj_id = model.with_context(|| format!("class {} has no mesh", p.class))?.obj_id;
            if let Ok(class) = self.class(obj_id) {
                let estimate = BopEstimate { class, score: p.score, pose: p.pose()? };
                by_image.entry(ids).or_default().push(estimate);
            }
        }
        Ok(by_image)
    }

    /// The true poses as estimates. Their score is the visible fraction: with equal scores hidden instances would take the
    /// places of visible ones.
    ///
    /// # Errors
    /// If a visible fraction is to be computed from a mask that cannot be read.
    pub fn truth(&self) -> Result<EstimatesByImage> {
        let mut by_image = EstimatesByImage::new();
        for image in &self.images {
            let estimates = self.instances(image)?.into_iter().map(|i| BopEstimate {
                class: i.class,
                score: i.visible,
                pose: i.pose,
            });
            by_image.insert((self.scenes[image.scene].id, image.im_id), estimates.collect());
        }
        Ok(by_image)
    }

    /// Compares estimates with the true poses, images in parallel.
    ///
    /// # Errors
    /// If a depth image or a mask cannot be read, or a depth image is not of its image's size.
    pub fn errors(&self, estimates: &EstimatesByImage) -> Result<BopSplitErrors> {
        let errors = (self.images.par_iter())
            .map(|image| {
                let ids = (self.scenes[image.scene].id, image.im_id);
                let estimates = estimates.get(&ids).cloned().unwrap_or_default();
                image_errors(&self.image(image, estimates)?, &self.models, &self.settings)
                    .with_context(|| format!("scene {}, image {}", ids.0, ids.1))
            })
            .collect::<Result<Vec<_>>>()?;
        let ids = |image: &SplitImage| (self.scenes[image.scene].id, image.im_id);
        Ok(BopSplitErrors { images: self.images.iter().map(ids).collect(), errors })
    }

    /// The scores of errors.
    pub fn scores(&self, errors: &BopSplitErrors) -> BopScores {
        let mut scores = BopScores::new(&errors.errors, &self.models, &self.settings);
        for (object, obj_id) in scores.objects.iter_mut().zip(&self.obj_ids) {
            object.obj_id = Some(*obj_id);
        }
        scores
    }

    /// Whether an image is asked for.
    pub fn asks_for(&self, scene_id: u32, im_id: u32) -> bool {
        self.asked.contains(&(scene_id, im_id))
    }

    fn class(&self, obj_id: u32) -> Result<usize> {
        let class = self.obj_ids.iter().position(|id| *id == obj_id);
        class.with_context(|| {
            format!("object {obj_id} is not in models_info.json, which has {:?}", self.obj_ids)
        })
    }

    fn take_targets(&mut self, folder: &BopFolder, split: &str) -> Result<()> {
        let targets = folder.targets_of(split)?;
        let mut asked: BTreeMap<(u32, u32), Vec<BopTarget>> = BTreeMap::new();
        match &targets.localization {
            Some((name, lines)) => {
                for line in lines {
                    let (Some(obj_id), Some(count)) = (line.obj_id, line.inst_count) else {
                        bail!("{name}: a target has no obj_id or no inst_count");
                    };
                    let class = self.class(obj_id).with_context(|| name.clone())?;
                    let of_image = asked.entry((line.scene_id, line.im_id)).or_default();
                    // A target that is named again is replaced, as in bop_toolkit.
                    of_image.retain(|t| t.class != class);
                    of_image.push(BopTarget { class, count });
                }
            }
            None => {
                asked = self.visible_targets()?;
                self.notes.push(format!(
                    "targets of AR: all objects of which at least {VISIBLE_TARGET} is visible, in all images of {split}"
                ));
            }
        }
        let detection: Vec<(u32, u32)> = match &targets.detection {
            Some((_, lines)) => lines.iter().map(|l| (l.scene_id, l.im_id)).collect(),
            None => asked.keys().copied().collect(),
        };
        let in_detection: HashSet<(u32, u32)> = detection.iter().copied().collect();
        let mut seen = HashSet::new();
        let all = detection.iter().chain(asked.keys()).filter(|ids| seen.insert(**ids));
        for &(scene_id, im_id) in all {
            let scene = self
                .scene_of(scene_id, im_id)
                .with_context(|| format!("targets of {split}: scene {scene_id}, image {im_id}"))?;
            let detection = in_detection.contains(&(scene_id, im_id));
            let targets = asked.get(&(scene_id, im_id)).cloned().unwrap_or_default();
            self.asked.insert((scene_id, im_id));
            self.images.push(SplitImage { scene, im_id, targets, detection });
        }
        ensure!(!self.images.is_empty(), "{split}: no image is asked for");
        Ok(())
    }

    /// The place of a scene with an image whose true poses are known.
    fn scene_of(&self, scene_id: u32, im_id: u32) -> Result<usize> {
        let place = self.scenes.iter().position(|s| s.id == scene_id);
        let place = place.context("there is no such scene")?;
        let scene = &self.scenes[place];
        let image = scene.images.get(&im_id);
        let image =
            image.with_context(|| format!("{} has no such image", scene.folder.display()))?;
        ensure!(
            image.objects.is_some(),
            "{}: there is no scene_gt.json: without true poses there are no scores",
            scene.folder.display()
        );
        Ok(place)
    }

    /// All objects that are visible enough, of images with true poses.
    fn visible_targets(&self) -> Result<BTreeMap<(u32, u32), Vec<BopTarget>>> {
        let mut asked = BTreeMap::new();
        for scene in &self.scenes {
            for (&im_id, image) in &scene.images {
                let mut targets: Vec<BopTarget> = Vec::new();
                for (i, object) in image.objects.iter().flatten().enumerate() {
                    let Ok(class) = self.class(object.obj_id) else { continue };
                    if scene.visible_fraction(im_id, i)? < VISIBLE_TARGET {
                        continue;
                    }
                    match targets.iter_mut().find(|t| t.class == class) {
                        Some(target) => target.count += 1,
                        None => targets.push(BopTarget { class, count: 1 }),
                    }
                }
                asked.insert((scene.id, im_id), targets);
            }
        }
        Ok(asked)
    }

    /// The objects of an image that have an evaluation mesh.
    fn instances(&self, image: &SplitImage) -> Result<Vec<BopInstance>> {
        let scene = &self.scenes[image.scene];
        let objects = scene.images[&image.im_id].objects.iter().flatten().enumerate();
        let known = objects.filter_map(|(i, o)| Some((i, self.class(o.obj_id).ok()?, o.pose)));
        known
            .map(|(i, class, pose)| {
                let visible = scene.visible_fraction(image.im_id, i)?;
                Ok(BopInstance { class, pose, visible })
            })
            .collect()
    }

    fn image(&self, image: &SplitImage, estimates: Vec<BopEstimate>) -> Result<BopImage> {
        let scene = &self.scenes[image.scene];
        let frame = &scene.images[&image.im_id];
        let (mut size_px, mut depth_mm) = (None, None);
        if let Some(path) = scene.depth_file(image.im_id) {
            let (size, values) = read_depth(&path)?;
            let scale = frame.depth_scale as f32;
            depth_mm = Some(values.into_iter().map(|v| f32::from(v) * scale).collect());
            size_px = Some(size);
        } else if let Some(path) = scene.image_file(image.im_id) {
            let ((width, height), _) = size_and_orientation(path)?;
            size_px = Some([width as usize, height as usize]);
        }
        Ok(BopImage {
            camera: frame.camera,
            size_px: size_px.or(self.camera_size),
            depth_mm,
            instances: self.instances(image)?,
            estimates,
            targets: image.targets.clone(),
            detection: image.detection,
            vsd: true,
            ad: true,
        })
    }
}

fn read_model(meshes: &Path, infos: &ModelInfos, obj_id: u32) -> Result<BopModel> {
    let mesh = read_ply(&meshes.join(format!("obj_{obj_id:06}.ply")))?;
    let points: Vec<Vec3> = mesh.vertices.iter().map(|&v| Vec3::from(v)).collect();
    let diameter = infos.of(obj_id).and_then(|info| info.diameter);
    let diameter_mm = diameter.filter(|d| *d > 0.0 && d.is_finite()).with_context(|| {
        format!("{}: object {obj_id} has no diameter above 0", infos.path().display())
    })?;
    let found = infos.symmetries(obj_id)?;
    let symmetries = symmetries(&found.discrete, &found.continuous);
    Ok(BopModel::new(&points, mesh.faces, diameter_mm, symmetries))
}

/// What is compared of a split, before anything is counted.
#[derive(Debug, Clone)]
pub struct BopSplitErrors {
    /// Scene and image of each of `errors`.
    pub images: Vec<(u32, u32)>,
    /// The errors of an image's estimates.
    pub errors: Vec<ImageErrors>,
}
