//! What a config names as a list of images, read as splits of a BOP folder.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use rand::seq::SliceRandom;

use super::bop_folder::BopFolder;
use super::bop_scene::BopScene;
use crate::io;
use crate::seed;

/// First part of the place of the random stream that holds images out ("heldout").
const PURPOSE_HELD_OUT: u64 = u64::from_le_bytes(*b"heldout\0");

/// Splits of a BOP folder: `train_pbr + train_real`.
///
/// A part may have a weight, `train_pbr:0.1 + train_real:0.9`: the fraction of an epoch's images that are of that split. It may
/// be a portion of its split: of `train_pbr[without 0.1 seed 1]` and `train_pbr[only 0.1 seed 1]` the second has a tenth of the
/// images, the first the others.
#[derive(Debug, Clone, PartialEq)]
pub struct SplitList {
    /// Each has a weight, or none has.
    pub parts: Vec<SplitPart>,
}

/// A part of a [`SplitList`].
#[derive(Debug, Clone, PartialEq)]
pub struct SplitPart {
    /// Name of the folder of scenes.
    pub name: String,
    /// Its portion of the split; none for all of it.
    pub held_out: Option<HeldOut>,
    /// Fraction of an epoch's images.
    pub weight: Option<f64>,
}

/// Images of a split that are held out, and which side of the cut is meant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct HeldOut {
    /// Fraction of the images, between 0 and 1.
    pub fraction: f64,
    /// Which ones.
    pub seed: u64,
    /// Whether the part is those held out; else the others.
    pub is_meant: bool,
}

impl HeldOut {
    /// Reads `without 0.1 seed 1` or `only 0.1 seed 1`.
    fn parse(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let [side, fraction, "seed", seed] = words[..] else { return None };
        let is_meant = match side {
            "only" => true,
            "without" => false,
            _ => return None,
        };
        let fraction = fraction.parse().ok().filter(|f: &f64| *f > 0.0 && *f < 1.0)?;
        Some(Self { fraction, seed: seed.parse().ok()?, is_meant })
    }

    /// The text of a list that means the images held out of a split, or the others.
    pub fn text(&self, split: &str) -> String {
        let side = if self.is_meant { "only" } else { "without" };
        format!("{split}[{side} {} seed {}]", self.fraction, self.seed)
    }

    /// Scene and number of the images that are held out. Whole scenes where the fraction is that of one scene or more, as images
    /// of a scene resemble each other; else in each scene a run of neighbours. At least one image of two.
    fn images(&self, split: &BTreeMap<u32, Vec<u32>>) -> BTreeSet<(u32, u32)> {
        let num_scenes = (self.fraction * split.len() as f64).round() as usize;
        if self.fraction * split.len() as f64 >= 1.0 {
            let mut ids: Vec<u32> = split.keys().copied().collect();
            ids.shuffle(&mut seed::stream(self.seed, &[PURPOSE_HELD_OUT]));
            let scenes = ids.into_iter().take(num_scenes);
            return scenes
                .flat_map(|id| split[&id].iter().map(move |&number| (id, number)))
                .collect();
        }
        let mut held = BTreeSet::new();
        for (&id, numbers) in split.iter().filter(|(_, numbers)| numbers.len() > 1) {
            use rand::Rng as _;
            let num = ((self.fraction * numbers.len() as f64).round() as usize)
                .clamp(1, numbers.len() - 1);
            let mut rng = seed::stream(self.seed, &[PURPOSE_HELD_OUT, u64::from(id)]);
            let first = rng.random_range(0..=numbers.len() - num);
            held.extend(numbers[first..first + num].iter().map(|&number| (id, number)));
        }
        held
    }
}

impl SplitPart {
    fn parse(part: &str, list: &str) -> Result<Self> {
        let (name, weight) = match part.split_once(':') {
            Some((name, weight)) => (name.trim(), Some(weight.trim())),
            None => (part.trim(), None),
        };
        let weight = weight
            .map(|text| {
                let weight: Option<f64> = text.parse().ok();
                weight.filter(|w| *w > 0.0 && w.is_finite()).with_context(|| {
                    format!("{list:?}: the weight {text:?} is not a number above 0")
                })
            })
            .transpose()?;
        let (name, held_out) = match name.split_once('[') {
            None => (name, None),
            Some((name, portion)) => {
                let held = portion.strip_suffix(']').and_then(HeldOut::parse);
                let held = held.with_context(|| {
                    format!(
                        "{list:?}: the portion [{portion} is none: expected [without 0.1 seed 1] or [only 0.1 seed 1], with a \
                         fraction between 0 and 1"
                    )
                })?;
                (name.trim(), Some(held))
            }
        };
        ensure!(!name.is_empty(), "{list:?}: a part of it has no name");
        Ok(Self { name: name.to_owned(), held_out, weight })
    }

    /// Takes the images out of the part's scenes that are of the other side of its cut, and scenes that have none left.
    pub(super) fn keep_own(&self, scenes: &mut Vec<BopScene>) {
        let Some(cut) = self.held_out else { return };
        let all = scenes.iter().map(|s| (s.id, s.images.keys().copied().collect())).collect();
        let held = cut.images(&all);
        for scene in scenes.iter_mut() {
            let id = scene.id;
            scene.images.retain(|&number, _| held.contains(&(id, number)) == cut.is_meant);
        }
        scenes.retain(|scene| !scene.images.is_empty());
    }
}

impl SplitList {
    /// Takes a list apart.
    ///
    /// # Errors
    /// If a part has no name, a weight is not a number above 0, only some parts have a weight, or a portion cannot be read.
    pub fn parse(list: &str) -> Result<Self> {
        let parts: Vec<SplitPart> =
            list.split('+').map(|part| SplitPart::parse(part, list)).collect::<Result<_>>()?;
        let weighted = parts.iter().filter(|part| part.weight.is_some()).count();
        ensure!(
            weighted == 0 || weighted == parts.len(),
            "{list:?}: {weighted} of {} parts have a weight, expected one for each or for none",
            parts.len()
        );
        Ok(Self { parts })
    }

    /// Whether each part is a folder in `root`.
    pub fn is_in(&self, root: &Path) -> bool {
        self.parts.iter().all(|part| root.join(&part.name).is_dir())
    }

    /// Images of the list's folders of scenes; one that is in two parts counts twice.
    ///
    /// # Errors
    /// If a scene cannot be read.
    pub fn num_images(&self, folder: &BopFolder) -> Result<usize> {
        let of_part = |part: &SplitPart| -> Result<usize> {
            let mut scenes = folder.scenes(&part.name)?;
            part.keep_own(&mut scenes);
            Ok(scenes.iter().map(|scene| scene.images.len()).sum())
        };
        self.parts.iter().map(of_part).sum()
    }
}

/// Images that a dataset's list names, or that its folders of scenes hold.
///
/// # Errors
/// If the list or a scene cannot be read.
pub fn num_images(root: &Path, list: &str) -> Result<usize> {
    let path = root.join(list);
    let folder = if path.is_file() { None } else { BopFolder::find(root) };
    let Some(folder) = folder else { return Ok(io::read_list(&path)?.len()) };
    let num = SplitList::parse(list)?.num_images(&folder)?;
    if num == 0 {
        bail!("{}: {list} has no image", root.display());
    }
    Ok(num)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_splits_are_taken_apart() {
        let parts = |list: &str| SplitList::parse(list).unwrap().parts;
        let plain =
            |name: &str, weight| SplitPart { name: name.to_owned(), held_out: None, weight };
        assert_eq!(parts("test"), [plain("test", None)]);
        assert_eq!(parts("train_pbr + train_real").len(), 2);
        let weighted = parts("train_pbr:0.1 + train_real : 0.9");
        assert_eq!(weighted[1], plain("train_real", Some(0.9)));
        for (list, expected) in [
            ("a + ", "has no name"),
            ("a:0 + b:1", "the weight \"0\" is not a number above 0"),
            ("a:x", "the weight \"x\""),
            ("a:0.5 + b", "1 of 2 parts have a weight"),
            ("a[only 2 seed 1]", "expected [without 0.1 seed 1]"),
            ("a[only 0.1]", "expected [without 0.1 seed 1]"),
            ("a[only 0.1 seed 1", "expected [without 0.1 seed 1]"),
        ] {
            let error = SplitList::parse(list).unwrap_err().to_string();
            assert!(error.contains(expected), "{list}: {error}");
        }
    }

    #[test]
    fn a_portion_is_read_as_it_is_written() {
        for is_meant in [true, false] {
            let cut = HeldOut { fraction: 0.1, seed: 7, is_meant };
            let list = format!("{}:0.5 + b:0.5", cut.text("train"));
            let parts = SplitList::parse(&list).unwrap().parts;
            assert_eq!((parts[0].name.as_str(), parts[0].held_out), ("train", Some(cut)));
        }
    }

    #[test]
    fn both_sides_of_a_cut_are_all_images_and_a_scene_is_cut_only_where_there_are_few() {
        let cut = |seed| HeldOut { fraction: 0.2, seed, is_meant: true };
        let scenes = |num: u32| -> BTreeMap<u32, Vec<u32>> {
            (0..num).map(|id| (id, (0..10).collect())).collect()
        };
        let few = cut(1).images(&scenes(3));
        assert_eq!(few.len(), 6);
        for id in 0..3 {
            let numbers: Vec<u32> = few.iter().filter(|i| i.0 == id).map(|i| i.1).collect();
            assert_eq!(numbers[1], numbers[0] + 1);
        }
        let many = cut(1).images(&scenes(20));
        let ids: BTreeSet<u32> = many.iter().map(|i| i.0).collect();
        assert_eq!((ids.len(), many.len()), (4, 40));
        assert_eq!(cut(1).images(&scenes(20)), many);
        assert_ne!(cut(2).images(&scenes(20)), many);
        assert_eq!(cut(1).images(&BTreeMap::from([(0, vec![4])])), BTreeSet::new());
    }
}
