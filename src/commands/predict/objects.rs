//! The objects whose poses are looked for: those that the network's file carries, or those of a dataset.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::artifact::Artifact;
use crate::data::{ObjectBox, object_boxes};
use crate::run::home::Home;
use crate::run::objects::{boxes, contradiction, first_of};
use crate::train::ObjectInfo;

/// What the user says about the objects.
pub(super) struct Wanted<'a> {
    /// `--boxes`.
    pub boxes: Option<&'a Path>,
    /// `--data`.
    pub data: Option<&'a Path>,
    /// The problem, which names a folder of a folder of datasets.
    pub problem: &'a str,
    /// The folder of the list's dataset.
    pub list_root: Option<PathBuf>,
}

/// The boxes of the network's classes: of `--boxes`, else of the dataset that `--data` names, else of the file itself, else
/// of the dataset of the list or the config's.
///
/// # Errors
/// If there are none, they do not fit the classes of the network, or the dataset of `--data` contradicts the file.
pub(super) fn find(wanted: Wanted, home: &Home, artifact: &Artifact) -> Result<Vec<ObjectBox>> {
    let own = artifact.objects()?;
    let data = &artifact.config.data;
    let (at, problem) = (artifact.file.display(), wanted.problem);
    if let Some(file) = wanted.boxes {
        let boxes = with_ids(object_boxes(file, None, data)?, own.as_deref());
        if let Some(what) = differs(own.as_deref(), &boxes, file) {
            tracing::warn!("{at} carries other objects than --boxes, which is taken: {what}");
        }
        return Ok(boxes);
    }
    if let Some(named) = wanted.data {
        let Some((root, objects)) = first_of([named.to_owned(), named.join(problem)], data)? else {
            bail!(
                "--data: the objects' boxes (data.BBOX_FILE, {}) are not in {}: name another dataset{}",
                data.bbox_file,
                named.display(),
                match own {
                    Some(_) => ", or leave --data out, as the file carries its objects",
                    None => ", or the file of boxes alone with --boxes",
                }
            );
        };
        if let Some(what) = differs(own.as_deref(), &objects, &root) {
            bail!(
                "{at} and the dataset of --data contradict each other: {what}; leave --data out to go by the file"
            );
        }
        return Ok(objects);
    }
    let of_list = first_of(wanted.list_root, data)?;
    if let Some(own) = own {
        return Ok(match of_list {
            Some((root, objects)) => match differs(Some(&own), &objects, &root) {
                None => objects,
                Some(what) => {
                    tracing::warn!("the list's dataset contradicts {at}, which is gone by: {what}");
                    boxes(&own)
                }
            },
            None => boxes(&own),
        });
    }
    let of_home = || first_of([home.data.join(problem), home.data.clone()], data);
    match of_list.map_or_else(of_home, |found| Ok(Some(found)))? {
        Some((root, objects)) => {
            tracing::info!(
                "{at} does not carry its objects: their boxes are those of {}",
                root.display()
            );
            Ok(objects)
        }
        None => bail!(
            "{at} does not carry the boxes of its objects (an earlier version or another program wrote it), and they \
             (data.BBOX_FILE, {}) are not in {}: name the dataset with --data, or the file of boxes alone with --boxes",
            data.bbox_file,
            home.data.display()
        ),
    }
}

/// A file of boxes knows no numbers: they are those of the network's file.
fn with_ids(mut boxes: Vec<ObjectBox>, own: Option<&[ObjectInfo]>) -> Vec<ObjectBox> {
    for (object, own) in boxes.iter_mut().zip(own.into_iter().flatten()) {
        object.obj_id = own.obj_id;
    }
    boxes
}

fn differs(own: Option<&[ObjectInfo]>, others: &[ObjectBox], place: &Path) -> Option<String> {
    contradiction(own?, others, &place.display().to_string())
}
