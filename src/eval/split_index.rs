//! The images and classes of a split, by the names and numbers that files of predictions use.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::data::Dataset;

/// BOP's numbers of an image of a list: those of its sequence and of its file.
///
/// `testing/seq_000007/000000/rgb/000042.jpg` is image 42 of scene 7. Without a folder `seq_N` the scene is the number of
/// the folder that holds `rgb`, as in other BOP datasets (`test/000007/rgb/000042.png`). `None` for other names.
pub fn image_ids(image: &str) -> Option<(u32, u32)> {
    let path = Path::new(image);
    let im_id = path.file_stem()?.to_str()?.parse().ok()?;
    let scene = path.parent()?.parent()?;
    let names = || scene.iter().rev().filter_map(|part| part.to_str());
    let sequence = names().find_map(|name| name.strip_prefix("seq_")?.parse().ok());
    Some((sequence.or_else(|| names().next()?.parse().ok())?, im_id))
}

/// The images and classes of a dataset, by the names and numbers that files of predictions use.
pub(super) struct SplitIndex {
    root: PathBuf,
    images: HashSet<String>,
    first_image: Option<String>,
    by_ids: HashMap<(u32, u32), Vec<String>>,
    scenes: HashSet<u32>,
    obj_ids: Vec<u32>,
}

impl SplitIndex {
    pub fn new(dataset: &Dataset) -> Self {
        let mut by_ids: HashMap<(u32, u32), Vec<String>> = HashMap::new();
        for frame in &dataset.frames {
            if let Some(ids) = image_ids(&frame.image) {
                by_ids.entry(ids).or_default().push(frame.image.clone());
            }
        }
        Self {
            root: dataset.root.clone(),
            images: dataset.frames.iter().map(|f| f.image.clone()).collect(),
            first_image: dataset.frames.first().map(|f| f.image.clone()),
            scenes: by_ids.keys().map(|(scene, _)| *scene).collect(),
            by_ids,
            obj_ids: dataset.models.iter().map(|m| m.obj_id).collect(),
        }
    }

    /// An image as the list spells it; `./` in front or the dataset's folder may be there.
    pub fn image<'a>(&'a self, name: &'a str) -> Result<&'a str> {
        let own = Path::new(name).strip_prefix(&self.root).ok().and_then(Path::to_str);
        let spellings = [Some(name), name.strip_prefix("./"), own];
        let known = spellings.into_iter().flatten().find(|s| self.images.contains(*s));
        known.with_context(|| {
            format!(
                "image {name} is not in the evaluated list of {} ({} images, the first is {}): evaluate the split \
                 that the predictions were made for",
                self.root.display(),
                self.images.len(),
                self.first_image.as_deref().unwrap_or("none")
            )
        })
    }

    /// The image of BOP's numbers.
    pub fn image_of_ids(&self, scene_id: u32, im_id: u32) -> Result<&str> {
        match self.by_ids.get(&(scene_id, im_id)).map(Vec::as_slice) {
            Some([one]) => Ok(one),
            Some([one, other, ..]) => bail!(
                "scene_id {scene_id}, im_id {im_id} is both {one} and {other}: BOP's numbers do not tell these \
                 images apart, use JSON lines"
            ),
            _ if self.by_ids.is_empty() => bail!(
                "the images of {} have no BOP numbers: expected paths like \
                 testing/seq_000007/000000/rgb/000000.jpg, the first is {}",
                self.root.display(),
                self.first_image.as_deref().unwrap_or("none")
            ),
            _ if self.scenes.contains(&scene_id) => bail!(
                "im_id {im_id} of scene_id {scene_id} is not in the evaluated list of {}",
                self.root.display()
            ),
            _ => bail!(
                "scene_id {scene_id} is not in the evaluated list of {} ({} scenes, such as {}): it is the number of \
                 the sequence (seq_000007 is 7); evaluate the split that the predictions were made for",
                self.root.display(),
                self.scenes.len(),
                self.scenes.iter().min().map_or_else(String::new, u32::to_string)
            ),
        }
    }

    /// The class of an object's number.
    pub fn class(&self, obj_id: u32) -> Result<usize> {
        self.obj_ids.iter().position(|id| *id == obj_id).with_context(|| {
            let known: Vec<String> = self.obj_ids.iter().map(u32::to_string).collect();
            format!("no mesh has obj_id {obj_id}, there are {}", known.join(", "))
        })
    }

    /// The number of a class's object.
    pub fn obj_id(&self, class: usize) -> Result<u32> {
        let obj_id = self.obj_ids.get(class).copied();
        obj_id.with_context(|| format!("class is {class}, expected 0..{}", self.obj_ids.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_have_the_numbers_of_their_sequence_and_file() {
        for (image, ids) in [
            ("testing/seq_000007/000000/rgb/000042.jpg", Some((7, 42))),
            ("test/000003/rgb/000001.png", Some((3, 1))),
            ("seq_000012/rgb/5.png", Some((12, 5))),
            ("seq_x/000002/rgb/5.png", Some((2, 5))),
            ("test/front/rgb/000001.png", None),
            ("testing/seq_000007/000000/rgb/front.jpg", None),
            ("3.png", None),
            ("", None),
        ] {
            assert_eq!(image_ids(image), ids, "{image}");
        }
    }
}
