//! The config that fits a BOP folder: a preset with the folder's splits, objects, camera, sizes and number of images.

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::{Value, json};

use crate::data::{BopFolder, HeldOut, ModelInfos, SplitList, SplitSurvey};

/// The largest side of the default input, px, is that of the preset; both are multiples of this.
const DIVISOR: usize = 32;
/// Instances outside of these quantiles of sizes do not decide about anchors.
const QUANTILES: [f64; 2] = [0.05, 0.95];
/// Anchors of the finest level, px.
const FINEST_ANCHORS_PX: [f64; 2] = [8.0, 32.0];
/// Fewest levels of a pyramid that begins at P3: P5 is the coarsest one that looks at the backbone.
const FEWEST_LEVELS: usize = 3;
/// Most levels: P3 to P7.
const MOST_LEVELS: usize = 5;
/// Below this size at the network's input an object is hardly found, px.
const SMALLEST_PX: f64 = 12.0;
/// Largest relative difference of focal lengths that one internal camera stands for.
const SAME_FOCAL: f64 = 0.1;
/// Images that a run validates on at most.
const MOST_VALID_IMAGES: usize = 500;
/// Of an instance at least so much must be visible to be learnt, where that is told (published for YCB-V).
const MIN_VISIBLE_FRACT: f64 = 0.2;
/// Steps of the published full-precision training, at batch 8, and the fractions of it at which its rate falls.
const PUBLISHED_IMAGES: f64 = 2_400_000.0;
const PUBLISHED_FALLS: [f64; 2] = [2.0 / 3.0, 0.9];
/// Images that a small network sees in full precision.
const SMALL_IMAGES: f64 = 80_000.0;

/// What a user wishes of the config.
#[derive(Debug, Clone)]
pub struct FitWishes {
    /// Width and height of the network's input, px; the preset's longer side and the images' shape when it is not given.
    pub size: Option<[usize; 2]>,
    /// Seed of the run and of the images held out for validation.
    pub seed: u64,
    /// Fraction of the training images that is held out where there is no folder of validation scenes.
    pub validation: f64,
    /// Numbers of the objects that become classes; all that training images show when it is empty.
    pub objects: Vec<u32>,
}

/// A key of the config, and why it is as it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Choice {
    /// The dotted key.
    pub key: String,
    /// Its value.
    pub value: Value,
    /// Why.
    pub why: String,
}

/// A preset on its way to the config that fits.
struct Fit<'a> {
    document: Value,
    choices: Vec<Choice>,
    folder: &'a BopFolder,
    infos: ModelInfos,
    wishes: &'a FitWishes,
}

/// The config of `preset` (a document) that fits a folder, and what was chosen.
///
/// # Errors
/// If the folder cannot be read, has nothing to train on, or the wished size is no multiple of 32.
pub(crate) fn fit(
    preset: Value,
    folder: &BopFolder,
    wishes: &FitWishes,
) -> Result<(Value, Vec<Choice>)> {
    let meshes = folder.meshes().context("no folder of meshes")?;
    let infos = folder.infos(&meshes)?;
    let mut fit = Fit { document: preset, choices: Vec::new(), folder, infos, wishes };
    fit.seed();
    let train = fit.splits()?;
    let classes = fit.classes(&train)?;
    let focal_px = fit.input(&train)?;
    fit.anchors(&train, &classes, focal_px)?;
    fit.stages()?;
    Ok((fit.document, fit.choices))
}

impl Fit<'_> {
    /// Sets a dotted key and says why.
    fn set(&mut self, key: &str, value: Value, why: impl Into<String>) {
        let path = format!("/{}", key.replace('.', "/"));
        if self.document.pointer(&path).is_none() {
            let (parent, name) = key.rsplit_once('.').unwrap_or(("", key));
            let parent = format!("/{}", parent.replace('.', "/"));
            if let Some(parent) = self.document.pointer_mut(&parent) {
                parent[name] = Value::Null;
            }
        }
        if let Some(place) = self.document.pointer_mut(&path) {
            *place = value.clone();
            self.choices.push(Choice { key: key.to_owned(), value, why: why.into() });
        }
    }

    fn number(&self, key: &str) -> Result<f64> {
        let value = self.document.pointer(&format!("/{}", key.replace('.', "/")));
        value.and_then(Value::as_f64).with_context(|| format!("the preset has no number {key}"))
    }

    fn seed(&mut self) {
        let seed = self.wishes.seed;
        self.set("experiment.seed", seed.into(), "--seed");
    }

    /// The folders of scenes to train, validate and test on.
    fn splits(&mut self) -> Result<SplitSurvey> {
        let names: Vec<String> = self.folder.splits().map(str::to_owned).collect();
        tell_others(&names);
        let (train, train_why) = self.training_splits(&names)?;
        let all: Vec<&str> = train.iter().map(|split| split.name.as_str()).collect();
        let (valid, passed) = self.first_with_poses(&names, "val");
        let (train_list, valid_list, valid_why) = match valid {
            Some(valid) => (
                all.join(" + "),
                valid,
                format!("the first folder of validation scenes with poses{passed}"),
            ),
            None => {
                let HeldOutTexts { train, valid } = self.held_out(&all);
                let why = format!(
                    "no folder whose name begins with `val` has poses{passed}: {} of the training images are held \
                     out (whole scenes where there are enough), by seed {}",
                    self.wishes.validation, self.wishes.seed
                );
                (train, valid, why)
            }
        };
        let (test, passed) = self.first_with_poses(&names, "test");
        let (test, test_why) = match test {
            Some(test) => (test, format!("the first folder of test scenes with poses{passed}")),
            None => (
                valid_list.clone(),
                format!(
                    "no folder of test scenes has true poses{passed}: the validation images, so that tables are of images \
                     that chose the best checkpoint"
                ),
            ),
        };
        for (key, list, why) in [
            ("data.TRAIN", train_list, train_why),
            ("data.VALID", valid_list, valid_why),
            ("data.TEST", test, test_why),
        ] {
            tracing::info!("{key} is {list}: {why}");
            self.set(key, list.into(), why);
        }
        Ok(joined(train))
    }

    /// The folders to train on, and why these.
    fn training_splits(&self, names: &[String]) -> Result<(Vec<SplitSurvey>, String)> {
        let (mut train, mut left_out) = (Vec::new(), Vec::new());
        for name in names.iter().filter(|name| name.starts_with("train")) {
            let split = SplitSurvey::read(self.folder, name, &self.infos)?;
            match why_not_to_train_on(&split) {
                Some(why) => left_out.push(format!("{name} ({why})")),
                None => train.push(split),
            }
        }
        let without = match left_out.is_empty() {
            true => String::new(),
            false => format!(", without {}", left_out.join(", ")),
        };
        ensure!(
            !train.is_empty(),
            "{}: nothing to train on: expected a folder of scenes whose name begins with `train`, with scene_gt.json and \
             masks; there are {}{without}",
            self.folder.root().display(),
            names.join(", ")
        );
        Ok((train, format!("the folders whose name begins with `train`{without}")))
    }

    /// The first folder of a name with this beginning that tells poses, and a text about the others.
    fn first_with_poses(&self, names: &[String], begin: &str) -> (Option<String>, String) {
        let (mut first, mut others) = (None, Vec::new());
        for name in names.iter().filter(|name| name.starts_with(begin)) {
            if first.is_some() {
                others.push(format!("{name} (it is not the first)"));
                continue;
            }
            match SplitSurvey::read(self.folder, name, &self.infos) {
                Ok(split) if split.has_poses => first = Some(name.clone()),
                Ok(_) => others.push(format!("{name} (not every scene has scene_gt.json)")),
                Err(e) => others.push(format!("{name} ({e:#})")),
            }
        }
        let text = match others.is_empty() {
            true => String::new(),
            false => format!(", without {}", others.join(", ")),
        };
        (first, text)
    }

    fn held_out(&self, all: &[&str]) -> HeldOutTexts {
        let FitWishes { validation: fraction, seed, .. } = *self.wishes;
        let list = |is_meant| {
            let cut = HeldOut { fraction, seed, is_meant };
            all.iter().map(|name| cut.text(name)).collect::<Vec<_>>().join(" + ")
        };
        HeldOutTexts { train: list(false), valid: list(true) }
    }

    /// The objects that are classes.
    fn classes(&mut self, train: &SplitSurvey) -> Result<Vec<u32>> {
        let all = self.infos.obj_ids();
        let shown = train.obj_ids();
        let wished = &self.wishes.objects;
        let listed = self.infos.path().display();
        if let Some(id) = wished.iter().find(|id| !all.contains(id)) {
            bail!("--objects: {listed} does not list object {id}; it has {all:?}");
        }
        let is_wished = |id: &u32| wished.is_empty() || wished.contains(id);
        if let Some((_, fault)) = train.not_told.iter().find(|(id, _)| is_wished(id)) {
            let shown: Vec<String> = shown.iter().map(u32::to_string).collect();
            bail!(
                "{fault}: add it there, with its mesh, or choose the objects to learn, as --objects {}",
                shown.join(",")
            );
        }
        if let Some(id) = wished.iter().find(|id| !shown.contains(id)) {
            bail!("--objects: training images do not show object {id}; they show {shown:?}");
        }
        let classes: Vec<u32> = shown.into_iter().filter(is_wished).collect();
        let (why, ids) = match classes == all {
            true => ("all objects of models_info.json".to_owned(), Vec::new()),
            false if wished.is_empty() => {
                (format!("those of {all:?} that training images show"), classes.clone())
            }
            false => ("--objects".to_owned(), classes.clone()),
        };
        self.set("data.N_CLASS", (classes.len() + 1).into(), format!("{why}, and the background"));
        if !ids.is_empty() {
            self.set("data.OBJ_IDS", json!(ids), why);
        }
        self.set("data.MESH_DIAMETERS", json!([]), "taken from models_info.json");
        let mut symmetric = Vec::new();
        for (class, &obj_id) in classes.iter().enumerate() {
            let found = self.infos.symmetries(obj_id)?;
            if !found.discrete.is_empty() || !found.continuous.is_empty() {
                symmetric.push(class);
            }
        }
        self.set(
            "data.SYMMETRIC_CLASSES",
            json!(symmetric),
            "classes with symmetries in models_info.json",
        );
        if train.has_visibility {
            let why = "scene_gt_info.json tells visibility: what is hardly seen is not learnt (published for YCB-V)";
            self.set("data.MIN_VISIBLE_FRACT", MIN_VISIBLE_FRACT.into(), why);
        }
        let several = train.most_of_object.iter();
        let several = several.filter(|(id, most)| classes.contains(id) && **most > 1);
        if let Some((obj_id, most)) = several.max_by_key(|(_, most)| **most) {
            let why = format!("up to {most} instances of a class in an image (object {obj_id})");
            self.set("evaluation.instances", (*most).into(), why);
        }
        Ok(classes)
    }

    /// Size and camera of the network's input; returns its focal length, px a width of an image.
    fn input(&mut self, train: &SplitSurvey) -> Result<f64> {
        let scaled = |part: fn(&crate::geom::Camera) -> f64, by_width: bool| {
            let of = train.views.iter().map(|(camera, (width, height))| {
                part(camera) / (if by_width { *width } else { *height }) as f64
            });
            quantile(of.collect(), 0.5)
        };
        let &(_, (width, height)) = train.views.first().context("no image")?;
        let aspect = height as f64 / width as f64;
        let [w, h] = match self.wishes.size {
            Some(size) => size,
            None => default_size(self.number("INPUT.INTERNAL_WIDTH")?, aspect),
        };
        for (name, side) in [("width", w), ("height", h)] {
            let near = [side / DIVISOR * DIVISOR, side.div_ceil(DIVISOR) * DIVISOR];
            ensure!(
                side > 0 && side % DIVISOR == 0,
                "--size: the {name} {side} is no multiple of {DIVISOR}: take {} or {}",
                near[0].max(DIVISOR),
                near[1].max(DIVISOR)
            );
        }
        let why = match self.wishes.size {
            Some(_) => "--size".to_owned(),
            None => format!(
                "the preset's longer side, in the shape of the images ({width} x {height} px)"
            ),
        };
        self.set("INPUT.INTERNAL_WIDTH", w.into(), why.clone());
        self.set("INPUT.INTERNAL_HEIGHT", h.into(), why);
        // The whole image is seen: the side that fits less well decides.
        let scale = (w as f64).min(h as f64 / aspect);
        let fx = scaled(|c| c.focal_px().0, true) * scale;
        let fy = scaled(|c| c.focal_px().1, false) * scale * aspect;
        // Pixel (0, 0) is the centre of the first pixel, so that an image begins at -0.5.
        let cx = scaled(|c| c.center_px().x + 0.5, true) * scale - 0.5 + (w as f64 - scale) / 2.0;
        let cy = scaled(|c| c.center_px().y + 0.5, false) * scale * aspect - 0.5
            + (h as f64 - scale * aspect) / 2.0;
        let focals: Vec<f64> =
            train.views.iter().map(|(c, (width, _))| c.focal_px().0 / *width as f64).collect();
        let [low, high] = QUANTILES.map(|q| quantile(focals.clone(), q));
        let mut why = format!(
            "the images' camera scaled by {:.4}, all of an image is seen",
            scale / width as f64
        );
        if high / low > 1.0 + SAME_FOCAL {
            why.push_str(&format!(
                "; focal lengths differ, {low:.3} to {high:.3} image widths: the median's, so that some images are cut off or \
                 leave a border"
            ));
        }
        let k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0];
        self.set("INPUT.INTERNAL_K", json!(k), why);
        Ok(scale)
    }

    /// Anchors for the sizes at which objects are seen.
    fn anchors(&mut self, train: &SplitSurvey, classes: &[u32], px_a_width: f64) -> Result<()> {
        let seen = || train.instances.iter().filter(|seen| classes.contains(&seen.obj_id));
        let sizes: Vec<f64> = seen().map(|seen| seen.size_in_widths * px_a_width).collect();
        ensure!(!sizes.is_empty(), "no object can be seen in the training images");
        let [small, large] = QUANTILES.map(|q| quantile(sizes.clone(), q));
        let depths: Vec<f64> = seen().map(|seen| seen.depth_mm).collect();
        let [near, far] = QUANTILES.map(|q| quantile(depths.clone(), q));
        let anchors = anchors(small, large);
        let mut why = format!(
            "nine of ten objects are seen {small:.0} to {large:.0} px large at the network's input, {near:.0} to {far:.0} mm \
             away"
        );
        if small < SMALLEST_PX {
            why.push_str(&format!(
                "; below {SMALLEST_PX} px objects are hardly found: take a larger --size where that is affordable"
            ));
        }
        if self.document.pointer("/network/params/finest_level").is_none() {
            bail!("the preset has no network.params.finest_level");
        }
        self.set("network.params.anchor_sizes", json!(anchors), why);
        Ok(())
    }

    /// Sizes of batches, at most the images that there are; returns the number of training images.
    fn batches(&mut self) -> Result<usize> {
        let mut num_training = 0;
        for (list, sizes) in [
            ("TRAIN", &["data.bs_train", "training.full_precision.batch_size"][..]),
            ("VALID", &["data.bs_valid"][..]),
        ] {
            let text = self.document.pointer(&format!("/data/{list}")).and_then(Value::as_str);
            let text = text.with_context(|| format!("the preset has no data.{list}"))?;
            let num = SplitList::parse(text)?.num_images(self.folder)?;
            ensure!(
                num > 0,
                "{}: {text} has no image: hold out another fraction by --validation",
                self.folder.root().display()
            );
            for key in sizes {
                let preset = self.number(key)? as usize;
                let why = match preset <= num {
                    true => format!("the preset's; data.{list} has {num} images"),
                    false => {
                        format!("all of data.{list}, which has fewer than the preset's {preset}")
                    }
                };
                self.set(key, preset.min(num).into(), why);
            }
            if list == "TRAIN" {
                num_training = num;
            }
        }
        Ok(num_training)
    }

    /// Full precision for a number of images that the network is known to learn from; no flow.
    fn stages(&mut self) -> Result<()> {
        let num_images = self.batches()?;
        let is_small = self.document.pointer("/experiment/pretrained") == Some(&Value::Bool(true))
            || self.number("network.params.fpn_channels")? < 128.0;
        let (images, range) = match is_small {
            true => (SMALL_IMAGES, [5.0, 200.0]),
            false => (PUBLISHED_IMAGES, [20.0, 200.0]),
        };
        let epochs = (images / num_images as f64).round().clamp(range[0], range[1]);
        let batch = self.number("training.full_precision.batch_size")?;
        let steps = (epochs * (num_images as f64 / batch).floor()).max(1.0);
        self.set(
            "training.full_precision.epochs",
            (epochs as u64).into(),
            format!(
                "of {num_images} training images each, {:.0} in all; --epochs of `mqat train` takes others",
                epochs * num_images as f64
            ),
        );
        let warmup = ((steps / 20.0) as u64).min(if is_small { 200 } else { 1000 });
        let lr = match is_small {
            true => {
                let keeps = self.document.pointer("/training/full_precision/frozen");
                // What learns beside modules that stay takes the preset's rate.
                let base = match keeps.is_some_and(Value::is_string) {
                    true => self.number("training.full_precision.lr.base")?,
                    false => 0.02,
                };
                json!({"base": base, "warmup_steps": warmup, "decay": {"cosine": {"to": 0.01}}})
            }
            false => {
                let at = PUBLISHED_FALLS.map(|part| (part * steps) as u64);
                let decay = json!({"steps": {"at": at, "factor": 0.1}});
                json!({"base": 0.01, "warmup_steps": warmup, "decay": decay})
            }
        };
        self.set("training.full_precision.lr", lr, format!("over {steps:.0} steps"));
        let every = (epochs / 8.0).ceil().max(1.0) as u64;
        self.set(
            "training.valid_every",
            every.into(),
            "so that validation takes a small part of the time",
        );
        self.set("training.ckpt_every", every.into(), "with each validation");
        self.set(
            "training.valid_images",
            MOST_VALID_IMAGES.into(),
            "at most so many images choose the best checkpoint",
        );
        self.set(
            "quantize.flow",
            json!([]),
            "full precision first; quantize with `mqat train --from CHECKPOINT --flow fpn:2`",
        );
        Ok(())
    }
}

/// The lists of training and validation where one is held out of the other.
struct HeldOutTexts {
    train: String,
    valid: String,
}

/// Tells the folders of scenes that nothing is done with.
fn tell_others(names: &[String]) {
    let begins = ["train", "val", "test"];
    let is_other = |name: &&String| !begins.iter().any(|begin| name.starts_with(begin));
    let others: Vec<&str> = names.iter().filter(is_other).map(String::as_str).collect();
    if !others.is_empty() {
        tracing::info!(
            "not used: {}, whose names begin with none of train, val, test",
            others.join(", ")
        );
    }
}

/// Why a folder of scenes is not trained on; none where it can be.
fn why_not_to_train_on(split: &SplitSurvey) -> Option<&'static str> {
    if !split.has_poses {
        return Some("not every scene has scene_gt.json");
    }
    if !split.has_masks {
        return Some("not every scene has mask_visib or mask");
    }
    let shows_nothing = split.instances.is_empty() && split.not_told.is_empty();
    shows_nothing.then_some("no object can be seen")
}

/// What several splits show together.
fn joined(splits: Vec<SplitSurvey>) -> SplitSurvey {
    let mut all = SplitSurvey { has_visibility: true, ..SplitSurvey::default() };
    for split in splits {
        all.num_images += split.num_images;
        all.has_visibility &= split.has_visibility;
        all.views.extend(split.views);
        all.instances.extend(split.instances);
        for (obj_id, most) in split.most_of_object {
            let own = all.most_of_object.entry(obj_id).or_default();
            *own = most.max(*own);
        }
        for (obj_id, why) in split.not_told {
            all.not_told.entry(obj_id).or_insert(why);
        }
    }
    all
}

/// The input's size of the shape of images: the longer side that of the preset, the other one rounded to a multiple of 32.
fn default_size(longer: f64, aspect: f64) -> [usize; 2] {
    let rounded = |side: f64| ((side / DIVISOR as f64).round() as usize).max(1) * DIVISOR;
    let longer_side = rounded(longer);
    match aspect <= 1.0 {
        true => [longer_side, rounded(longer * aspect)],
        false => [rounded(longer / aspect), longer_side],
    }
}

/// Anchors, px, from P3 on, each twice the one before, for objects of these sizes.
fn anchors(small: f64, large: f64) -> Vec<f64> {
    // An object up to 1.4 times smaller or larger is still well met by an anchor.
    let wanted = (small * std::f64::consts::SQRT_2).log2().round().exp2();
    let finest = wanted.clamp(FINEST_ANCHORS_PX[0], FINEST_ANCHORS_PX[1]);
    let mut anchors = vec![finest];
    while anchors.len() < FEWEST_LEVELS
        || (anchors.len() < MOST_LEVELS
            && anchors.last().is_some_and(|last| last * std::f64::consts::SQRT_2 < large))
    {
        anchors.push(finest * 2f64.powi(anchors.len() as i32));
    }
    anchors
}

/// A quantile of numbers, the lower of two; NaN of none.
fn quantile(mut values: Vec<f64>, part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let at = (part * values.len().saturating_sub(1) as f64).floor() as usize;
    values.get(at).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    use crate::run::config;

    fn toy() -> BopFolder {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/14_bop_multi/toy");
        BopFolder::find(&root).unwrap()
    }

    fn preset(topology: &str) -> Value {
        let file = format!("problems/SwissCube/{topology}/config.json");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
        crate::io::read_json(&path).unwrap()
    }

    fn wishes() -> FitWishes {
        FitWishes { size: None, seed: 3, validation: 0.1, objects: Vec::new() }
    }

    #[test]
    fn anchors_cover_the_sizes_that_are_seen() {
        assert_eq!(anchors(20.0, 100.0), [32.0, 64.0, 128.0]);
        assert_eq!(anchors(40.0, 300.0), [32.0, 64.0, 128.0, 256.0]);
        assert_eq!(anchors(6.0, 20.0), [8.0, 16.0, 32.0]);
        assert_eq!(anchors(60.0, 5000.0).len(), 5);
    }

    #[test]
    fn sizes_have_the_shape_of_the_images() {
        assert_eq!(default_size(512.0, 480.0 / 640.0), [512, 384]);
        assert_eq!(default_size(128.0, 1.0), [128, 128]);
        assert_eq!(default_size(128.0, 2.0), [64, 128]);
    }

    #[test]
    fn the_config_of_a_folder_passes_and_says_why() {
        for topology in ["Widedepth", "WidedepthTiny"] {
            let (document, choices) = fit(preset(topology), &toy(), &wishes()).unwrap();
            let config = config::parse(document, topology).unwrap();
            assert_eq!(config.data.num_classes_with_background, 4);
            assert_eq!(config.data.symmetric_classes, [1, 2]);
            assert_eq!(config.data.train, "train_pbr[without 0.1 seed 3]");
            assert_eq!(config.data.valid, "train_pbr[only 0.1 seed 3]");
            assert_eq!(config.data.test, "test");
            assert!(choices.iter().all(|choice| !choice.why.is_empty()));
            assert!(choices.iter().any(|c| c.key == "network.params.anchor_sizes"));
        }
    }

    #[test]
    fn the_input_is_the_whole_image_from_edge_to_edge() {
        // Images of 96 x 72 px: 160 x 120 of the input, with 20 rows of border above and below.
        let size = Some([160, 160]);
        let (document, _) =
            fit(preset("WidedepthTiny"), &toy(), &FitWishes { size, ..wishes() }).unwrap();
        let internal = config::parse(document, "here").unwrap().input.camera().unwrap();
        let infos = toy().infos(&toy().meshes().unwrap()).unwrap();
        let (camera, _) = SplitSurvey::read(&toy(), "train_pbr", &infos).unwrap().views[0];
        let m = crate::geom::Affine2::between_cameras(&camera, &internal);
        // The outer edges of the corner pixels, half a pixel off their centres.
        for (edge, expected) in [([-0.5, -0.5], [-0.5, 19.5]), ([95.5, 71.5], [159.5, 139.5])] {
            let found = m.apply(&edge.into());
            assert!((found - crate::geom::Vec2::from(expected)).norm() < 1e-9, "{found}");
        }
    }

    #[test]
    fn batches_are_not_larger_than_the_images_that_there_are_and_counts_are_exact() {
        let (document, choices) = fit(preset("WidedepthTiny"), &toy(), &wishes()).unwrap();
        // Of 3 images one is held out.
        assert_eq!(
            (&document["data"]["bs_train"], &document["data"]["bs_valid"]),
            (&2.into(), &1.into())
        );
        assert_eq!(document["training"]["full_precision"]["batch_size"], 2);
        let why = |key: &str| &choices.iter().find(|choice| choice.key == key).unwrap().why;
        assert!(
            why("training.full_precision.epochs")
                .starts_with("of 2 training images each, 400 in all")
        );
        assert!(why("data.bs_valid").contains("fewer than the preset's 16"));
    }

    #[test]
    fn chosen_objects_are_the_classes() {
        let objects = vec![11, 2];
        let (document, _) =
            fit(preset("WidedepthTiny"), &toy(), &FitWishes { objects, ..wishes() }).unwrap();
        assert_eq!(document["data"]["OBJ_IDS"], json!([2, 11]));
        assert_eq!(
            (&document["data"]["N_CLASS"], &document["data"]["SYMMETRIC_CLASSES"]),
            (&3.into(), &json!([1]))
        );
        // Two instances of object 5 are in an image, which is no class here.
        assert_eq!(document["evaluation"].get("instances"), None);
        let objects = vec![2, 4];
        let error = fit(preset("WidedepthTiny"), &toy(), &FitWishes { objects, ..wishes() });
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("models_info.json does not list object 4; it has [2, 5, 11]"),
            "{error}"
        );
    }

    #[test]
    fn a_size_that_does_not_fit_is_refused_with_those_that_do() {
        let size = Some([320, 250]);
        let error = fit(preset("Widedepth"), &toy(), &FitWishes { size, ..wishes() }).unwrap_err();
        assert_eq!(
            error.to_string(),
            "--size: the height 250 is no multiple of 32: take 224 or 256"
        );
    }
}
