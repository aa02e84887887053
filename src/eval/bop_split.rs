//! The BOP benchmark's scores of a split of a folder as the benchmark publishes them.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rayon::prelude::*;

use super::bop_scores::average_recalls;
use super::prediction::Prediction;
use super::split_index::image_ids;
use crate::data::{
    BadSample, BopFolder, BopScene, BopTargetLine, DataConfig, Dataset, ModelInfos, SplitList,
    VISIBLE_TARGET,
};
use crate::geom::Vec3;
use crate::io::mesh::read_ply;
use crate::io::picture::size_and_orientation;
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
}

/// An image that counts.
#[derive(Debug)]
struct SplitImage {
    /// Place of its scene.
    scene: usize,
    im_id: u32,
    targets: Vec<BopTarget>,
    detection: bool,
    /// Width and height, px, where they are known.
    size_px: Option<[usize; 2]>,
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
    split: &ScoredSplit,
    predictions: &[Prediction],
    left_out: &[BadSample],
) -> Result<(BopScores, Vec<String>)> {
    match split {
        ScoredSplit::Bop(split) => {
            let errors = split.errors(&split.estimates(dataset, predictions)?)?;
            Ok((split.scores(&errors), split.notes.clone()))
        }
        ScoredSplit::Plain(notes) => {
            Ok((average_recalls(dataset, data, predictions, left_out)?, notes.clone()))
        }
    }
}

/// What the benchmark's scores are computed of.
#[derive(Debug)]
pub enum ScoredSplit {
    /// A split of a BOP folder.
    Bop(Box<BopSplit>),
    /// A list of images, or several splits together, with what is to be known about their scores.
    Plain(Vec<String>),
}

impl ScoredSplit {
    /// The split of a BOP folder that a list names.
    ///
    /// # Errors
    /// As [`BopSplit::open`].
    pub fn open(dataset: &Dataset, list: &str, settings: BopSettings) -> Result<Self> {
        if dataset.root.join(list).is_file() {
            return Ok(Self::Plain(Vec::new()));
        }
        let Some(folder) = BopFolder::find(&dataset.root) else {
            return Ok(Self::Plain(Vec::new()));
        };
        let parts = SplitList::parse(list)?.parts;
        let [part] = parts.as_slice() else {
            return Ok(Self::Plain(vec![format!(
                "{list}: the benchmark's scores are of one folder of scenes, this names {}: all objects that can be seen count \
                 here, without targets, VSD and AP's rules",
                parts.len()
            )]));
        };
        // What was left out of the dataset as bad, or belongs to another list, is left out here too.
        let is_whole = part.held_out.is_none() && dataset.skipped.bad_images.is_empty();
        let kept: Option<HashSet<(u32, u32)>> = (!is_whole)
            .then(|| dataset.frames.iter().filter_map(|f| image_ids(&f.image)).collect());
        let mut split = BopSplit::open(&folder, &part.name, settings, kept.as_ref())?;
        split.note_classes(dataset);
        Ok(Self::Bop(Box::new(split)))
    }

    /// The split of a BOP folder.
    pub fn bop(&self) -> Option<&BopSplit> {
        match self {
            Self::Bop(split) => Some(split),
            Self::Plain(_) => None,
        }
    }
}

impl BopSplit {
    /// Reads what a split is scored with. Targets are those of `test_targets_bop19.json` and `test_targets_bop24.json` for a
    /// split whose name begins with `test`; else, and where there is no such file, all objects of which at least a tenth is
    /// visible, in all images. Where `kept` is given only those images (scene and number) count.
    ///
    /// # Errors
    /// If a file cannot be read; if a scene has no true poses; if an object has no mesh or no diameter; if a target names an
    /// image or an object that is not there; if something is wrong with an image that counts.
    pub fn open(
        folder: &BopFolder,
        split: &str,
        settings: BopSettings,
        kept: Option<&HashSet<(u32, u32)>>,
    ) -> Result<Self> {
        let meshes = folder.evaluation_meshes().context("no folder of meshes")?;
        let infos = folder.infos(&meshes)?;
        let obj_ids = infos.obj_ids();
        let models = (obj_ids.par_iter())
            .map(|&obj_id| read_model(&meshes, &infos, obj_id))
            .collect::<Result<Vec<_>>>()?;
        let scenes = folder.scenes(split)?;
        let mut notes = Vec::new();
        let name = meshes.file_name().unwrap_or_default().to_string_lossy();
        if let Some(why) = folder.why_no_evaluation_meshes() {
            notes.push(format!("errors are measured on the meshes of {name}: {why}"));
        }
        if scenes.iter().any(|scene| !scene.tells_visibility()) {
            notes.push(
                "visible fractions are computed from masks (1 where there are none): not every scene has scene_gt_info.json"
                    .to_owned(),
            );
        }
        let mut found = Self {
            obj_ids,
            models,
            notes,
            settings,
            scenes,
            images: Vec::new(),
            asked: HashSet::new(),
        };
        found.take_targets(folder, split, kept)?;
        found.take_sizes(folder)?;
        Ok(found)
    }

    /// Says which targets are of objects that a dataset has no class of.
    fn note_classes(&mut self, dataset: &Dataset) {
        let classes: HashSet<u32> = dataset.models.iter().map(|m| m.obj_id).collect();
        let targets = self.images.iter().flat_map(|image| &image.targets);
        let asked: BTreeSet<u32> = targets.map(|t| self.obj_ids[t.class]).collect();
        let others: Vec<u32> = asked.into_iter().filter(|id| !classes.contains(id)).collect();
        if !others.is_empty() {
            self.notes.push(format!(
                "the targets of objects {others:?}, which data.OBJ_IDS leaves out, count as not found in AR and AP; the \
                 other tables have the chosen objects alone"
            ));
        }
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

    fn take_targets(
        &mut self,
        folder: &BopFolder,
        split: &str,
        kept: Option<&HashSet<(u32, u32)>>,
    ) -> Result<()> {
        let is_kept = |ids: &(u32, u32)| kept.is_none_or(|kept| kept.contains(ids));
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
                asked = self.visible_targets(is_kept)?;
                self.notes.push(format!(
                    "targets of AR: all objects of which at least {VISIBLE_TARGET} is visible, in all images of {split}"
                ));
            }
        }
        let detection: Vec<(u32, u32)> = match &targets.detection {
            Some((_, lines)) => in_toolkits_order(lines),
            None => asked.keys().copied().collect(),
        };
        let in_detection: HashSet<(u32, u32)> = detection.iter().copied().collect();
        let mut seen = HashSet::new();
        let all = detection.iter().chain(asked.keys()).filter(|ids| seen.insert(**ids));
        let mut num_left_out = 0;
        for &(scene_id, im_id) in all {
            if !is_kept(&(scene_id, im_id)) {
                num_left_out += 1;
                continue;
            }
            let scene = self
                .scene_of(scene_id, im_id)
                .with_context(|| format!("targets of {split}: scene {scene_id}, image {im_id}"))?;
            let detection = in_detection.contains(&(scene_id, im_id));
            let targets = asked.get(&(scene_id, im_id)).cloned().unwrap_or_default();
            self.asked.insert((scene_id, im_id));
            self.images.push(SplitImage { scene, im_id, targets, detection, size_px: None });
        }
        if num_left_out > 0 {
            self.notes.push(format!(
                "{num_left_out} images that are asked for are left out as bad: these are not the benchmark's numbers"
            ));
        }
        ensure!(!self.images.is_empty(), "{split}: no image is asked for");
        Ok(())
    }

    /// The place of a scene with an image whose true poses are known.
    fn scene_of(&self, scene_id: u32, im_id: u32) -> Result<usize> {
        let place = self.scenes.iter().position(|s| s.id == scene_id);
        let place = place.context("there is no such scene")?;
        let scene = &self.scenes[place];
        ensure!(
            scene.frame(im_id)?.objects.is_some(),
            "{}: there is no scene_gt.json: without true poses there are no scores",
            scene.folder.display()
        );
        Ok(place)
    }

    /// The sizes of the images: of their depth images or pictures, else that of `camera.json`.
    fn take_sizes(&mut self, folder: &BopFolder) -> Result<()> {
        let scenes = &self.scenes;
        let size = |image: &SplitImage| -> Result<Option<[usize; 2]>> {
            let scene = &scenes[image.scene];
            let path = scene.depth_file(image.im_id).or_else(|| scene.image_file(image.im_id));
            let Some(path) = path else { return Ok(None) };
            let ((width, height), _) = size_and_orientation(path)?;
            Ok(Some([width as usize, height as usize]))
        };
        let sizes: Vec<_> = self.images.par_iter().map(size).collect::<Result<_>>()?;
        let num_unknown = sizes.iter().filter(|size| size.is_none()).count();
        let other = if num_unknown > 0 { folder.camera_size()? } else { None };
        for (image, size) in self.images.iter_mut().zip(sizes) {
            image.size_px = size.or(other);
        }
        if num_unknown > 0 && other.is_none() {
            let is_unknown = |i: &SplitImage| i.size_px.is_none() && !i.targets.is_empty();
            let score = if self.images.iter().any(is_unknown) { "AR" } else { "AP" };
            self.notes.push(format!(
                "no {score}: image sizes are not known ({num_unknown} of {} images have no file, and camera.json has no \
                 width and height)",
                self.images.len()
            ));
        }
        Ok(())
    }

    /// All objects that are visible enough, of images with true poses.
    fn visible_targets(
        &self,
        is_kept: impl Fn(&(u32, u32)) -> bool,
    ) -> Result<BTreeMap<(u32, u32), Vec<BopTarget>>> {
        let mut asked = BTreeMap::new();
        for scene in &self.scenes {
            for &im_id in scene.images.keys().filter(|im_id| is_kept(&(scene.id, **im_id))) {
                let image = scene.frame(im_id)?;
                let mut targets: Vec<BopTarget> = Vec::new();
                for (i, object) in image.objects.iter().flatten().enumerate() {
                    let Ok(class) = self.class(object.obj_id) else { continue };
                    if visible_fraction(scene, im_id, i)? < VISIBLE_TARGET {
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
        let objects = scene.frame(image.im_id)?.objects.iter().flatten().enumerate();
        let known = objects.filter_map(|(i, o)| Some((i, self.class(o.obj_id).ok()?, o)));
        known
            .map(|(i, class, object)| {
                let visible = visible_fraction(scene, image.im_id, i)?;
                Ok(BopInstance { class, pose: object.pose()?, visible })
            })
            .collect()
    }

    fn image(&self, image: &SplitImage, estimates: Vec<BopEstimate>) -> Result<BopImage> {
        let scene = &self.scenes[image.scene];
        let frame = scene.frame(image.im_id)?;
        // VSD, which alone looks at depth, is a part of AR.
        let vsd = !image.targets.is_empty();
        let depth = scene.depth_file(image.im_id).filter(|_| vsd);
        let depth = depth.map(|file| frame.depth_scale.read(file)).transpose()?;
        Ok(BopImage {
            camera: frame.camera,
            size_px: image.size_px,
            depth_mm: depth.map(|(_, depth_mm)| depth_mm),
            instances: self.instances(image)?,
            estimates,
            targets: image.targets.clone(),
            detection: image.detection,
            vsd,
            ad: true,
        })
    }
}

/// Scene and image of each line without repeats, in the order that bop_toolkit has them in, and with them estimates of equal
/// scores: scenes as they appear first, in each the images as they appear first.
fn in_toolkits_order(lines: &[BopTargetLine]) -> Vec<(u32, u32)> {
    let mut scenes: HashMap<u32, usize> = HashMap::new();
    let mut seen = HashSet::new();
    let mut images: Vec<(u32, u32)> = Vec::new();
    for line in lines {
        let next = scenes.len();
        scenes.entry(line.scene_id).or_insert(next);
        if seen.insert((line.scene_id, line.im_id)) {
            images.push((line.scene_id, line.im_id));
        }
    }
    images.sort_by_key(|(scene_id, _)| scenes[scene_id]);
    images
}

/// The visible fraction of an object of an image, 0 to 1; 1 where neither a file nor masks tell it.
fn visible_fraction(scene: &BopScene, im_id: u32, object: usize) -> Result<f64> {
    Ok(scene.visibility(im_id, object)?.map_or(1.0, |v| v.visib_fract))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_of_targets_are_in_the_order_of_scenes_and_once() {
        let line =
            |(scene_id, im_id)| BopTargetLine { scene_id, im_id, obj_id: None, inst_count: None };
        let lines = [(7, 4), (3, 1), (7, 2), (3, 0), (7, 4), (3, 1), (5, 9)].map(line);
        let expected = [(7, 4), (7, 2), (3, 1), (3, 0), (5, 9)];
        assert_eq!(in_toolkits_order(&lines), expected);
    }
}
