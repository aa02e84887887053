//! The objects of a dataset as files of networks carry them, and whether two descriptions of them agree.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use serde_json::Value;

use crate::data::{BopFolder, DataConfig, Dataset, ObjectBox, folder_boxes, object_boxes};
use crate::geom::Vec3;
use crate::io;
use crate::train::ObjectInfo;

/// Corners and diameters that lie farther apart than this fraction of the diameter are of different objects; files that
/// are written in millimetres with three digits lie closer.
const TOLERANCE: f64 = 1e-3;

/// What files carry of a dataset's objects.
///
/// # Errors
/// If the dataset's `models_info.json` cannot be read.
pub(crate) fn of_dataset(dataset: &Dataset, data: &DataConfig) -> Result<Vec<ObjectInfo>> {
    let boxes: Vec<ObjectBox> = dataset.models.iter().map(ObjectBox::from).collect();
    let mut objects = describe(&boxes, Some(&dataset.root), data)?;
    for (object, model) in objects.iter_mut().zip(dataset.models.iter()) {
        object.name = model.name.clone();
    }
    Ok(objects)
}

/// What files carry of objects with these boxes, by class; their symmetries are those that the dataset in `root` tells.
///
/// # Errors
/// If the dataset's `models_info.json` cannot be read.
pub(crate) fn describe(
    boxes: &[ObjectBox],
    root: Option<&Path>,
    data: &DataConfig,
) -> Result<Vec<ObjectInfo>> {
    let path = root.map(|root| data.models_info(root)).filter(|path| path.is_file());
    let infos: BTreeMap<String, Value> =
        path.map(|path| io::read_json(&path)).transpose()?.unwrap_or_default();
    let objects = boxes.iter().enumerate().map(|(class, object)| {
        let info = infos.iter().find(|(id, _)| id.parse() == Ok(object.obj_id));
        let list = |key: &str| -> Vec<Value> {
            let values = info.and_then(|(_, info)| info.get(key)?.as_array().cloned());
            values.unwrap_or_default()
        };
        ObjectInfo {
            obj_id: object.obj_id,
            name: format!("obj_{:06}", object.obj_id),
            box_corners_mm: object.corners.map(|corner| corner.into()),
            diameter_mm: object.diameter_mm,
            symmetric: data.symmetric_classes.contains(&class),
            symmetries_discrete: list("symmetries_discrete"),
            symmetries_continuous: list("symmetries_continuous"),
        }
    });
    Ok(objects.collect())
}

/// The objects of the first folder that has their boxes, or is a BOP folder.
///
/// # Errors
/// If its files cannot be read or do not fit the classes of the config.
pub(crate) fn first_of(
    roots: impl IntoIterator<Item = PathBuf>,
    data: &DataConfig,
) -> Result<Option<(PathBuf, Vec<ObjectBox>)>> {
    for root in roots {
        if data.boxes(&root).is_file() {
            let meshes = data.meshes(&root);
            let meshes = meshes.is_dir().then_some(&*meshes);
            let objects = object_boxes(&data.boxes(&root), meshes, data)?;
            return Ok(Some((root, objects)));
        }
        if let Some(folder) = BopFolder::find(&root) {
            return Ok(Some((root, folder_boxes(&folder, data)?)));
        }
    }
    Ok(None)
}

/// What PnP needs to know of objects that a file carries.
pub(crate) fn boxes(objects: &[ObjectInfo]) -> Vec<ObjectBox> {
    let object = |object: &ObjectInfo| ObjectBox {
        obj_id: object.obj_id,
        corners: object.box_corners_mm.map(Vec3::from),
        diameter_mm: object.diameter_mm,
    };
    objects.iter().map(object).collect()
}

/// In what the objects that a file carries differ from `others`, with both numbers; `None` if they agree. `place` says
/// where the others are from.
pub(crate) fn contradiction(
    own: &[ObjectInfo],
    others: &[ObjectBox],
    place: &str,
) -> Option<String> {
    if own.len() != others.len() {
        return Some(format!("it has {} objects, {place} {}", own.len(), others.len()));
    }
    own.iter().zip(boxes(own)).zip(others).enumerate().find_map(|(class, ((info, own), other))| {
        let at = format!("class {class} ({})", info.name);
        if own.obj_id != other.obj_id {
            return Some(format!("{at} is object {}, in {place} {}", own.obj_id, other.obj_id));
        }
        let most = TOLERANCE * own.diameter_mm.max(other.diameter_mm);
        if (own.diameter_mm - other.diameter_mm).abs() > most {
            let (ours, theirs) = (own.diameter_mm, other.diameter_mm);
            return Some(format!("{at} has a diameter of {ours} mm, in {place} {theirs} mm"));
        }
        let mut corners = own.corners.iter().zip(&other.corners).enumerate();
        let (number, (ours, theirs)) = corners.find(|(_, (a, b))| (*a - *b).amax() > most)?;
        let [ours, theirs] = [ours, theirs].map(|v| format!("({}, {}, {})", v.x, v.y, v.z));
        Some(format!("{at} has its box corner {number} at {ours} mm, in {place} at {theirs} mm"))
    })
}

/// Says it where a dataset has other objects than the file of a network carries.
pub(crate) fn warn_of_contradiction(own: Option<Vec<ObjectInfo>>, dataset: &Dataset, file: &Path) {
    let Some(own) = own else { return };
    let others: Vec<ObjectBox> = dataset.models.iter().map(ObjectBox::from).collect();
    let place = dataset.root.display().to_string();
    if let Some(what) = contradiction(&own, &others, &place) {
        tracing::warn!(
            "{} was trained with other objects than those of the dataset, whose boxes are taken: {what}",
            file.display()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(obj_id: u32, side: f64) -> ObjectInfo {
        let corner = |i: usize| [0, 1, 2].map(|axis| if i >> axis & 1 == 1 { side } else { -side });
        ObjectInfo {
            obj_id,
            name: format!("obj_{obj_id:06}"),
            box_corners_mm: std::array::from_fn(corner),
            diameter_mm: 3.5 * side,
            symmetric: false,
            symmetries_discrete: Vec::new(),
            symmetries_continuous: Vec::new(),
        }
    }

    #[test]
    fn contradictions_are_told_with_both_numbers() {
        let own = [object(1, 50.0), object(7, 20.0)];
        let others = boxes(&own);
        let found = |others: &[ObjectBox]| contradiction(&own, others, "the box file");
        assert_eq!(found(&others), None);
        let mut close = others.clone();
        close[1].corners[3].x += 0.05;
        close[1].diameter_mm += 0.05;
        assert_eq!(found(&close), None);
        assert_eq!(found(&others[..1]).unwrap(), "it has 2 objects, the box file 1");
        let mut other = others.clone();
        other[1].obj_id = 10;
        assert_eq!(found(&other).unwrap(), "class 1 (obj_000007) is object 7, in the box file 10");
        let mut metres = others.clone();
        metres[0].diameter_mm = 0.175;
        let text = found(&metres).unwrap();
        assert_eq!(text, "class 0 (obj_000001) has a diameter of 175 mm, in the box file 0.175 mm");
        let mut moved = others.clone();
        moved[0].corners[7].z = 49.0;
        assert_eq!(
            found(&moved).unwrap(),
            "class 0 (obj_000001) has its box corner 7 at (50, 50, 50) mm, in the box file at (50, 50, 49) mm"
        );
    }
}
