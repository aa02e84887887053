//! The objects of a dataset: meshes, boxes, diameters.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::DataConfig;
use super::config::{MODELS_INFO, dataset_relative};
use super::consistency::{check_box, check_model};
use super::models_info::ModelInfos;
use super::object::{ObjectBox, ObjectModel};
use crate::geom::{Corners, Vec3};
use crate::io;

/// Reads the boxes of the config's classes from `boxes` (a file as `BBOX_FILE`), their numbers from the names of the meshes
/// in `meshes`; without that folder class `c` is number `c + 1`.
///
/// # Errors
/// If a file cannot be read, the counts of boxes, meshes, diameters and classes disagree, or a box and its diameter are in
/// different units.
pub fn object_boxes(
    boxes: &Path,
    meshes: Option<&Path>,
    data: &DataConfig,
) -> Result<Vec<ObjectBox>> {
    let num_classes = data.num_classes();
    let at = boxes.display();
    let corners = read_boxes(boxes, num_classes)
        .with_context(|| format!("{at}: boxes of the {num_classes} classes of the network"))?;
    ensure!(
        num_classes == data.mesh_diameters_mm.len(),
        "data.MESH_DIAMETERS has {} numbers, expected {num_classes}",
        data.mesh_diameters_mm.len()
    );
    let mut infos = None;
    let obj_ids: Vec<u32> = match meshes {
        None => (1..=num_classes).map(|id| id as u32).collect(),
        Some(folder) => {
            infos = Some(ModelInfos::read(folder.join(MODELS_INFO))?);
            let paths = mesh_paths(folder)?;
            ensure!(
                paths.len() == num_classes,
                "{}: {} meshes, but the network has {num_classes} classes",
                folder.display(),
                paths.len()
            );
            paths.iter().map(|path| number_of(path)).collect::<Result<_>>()?
        }
    };
    let all = corners.into_iter().zip(obj_ids).zip(&data.mesh_diameters_mm).enumerate();
    all.map(|(class, ((corners, obj_id), &diameter_mm))| {
        check_box(&corners, (diameter_mm, obj_id), (class, boxes), infos.as_ref())?;
        Ok(ObjectBox { obj_id, corners, diameter_mm })
    })
    .collect()
}

/// The object's number in a mesh's file name.
fn number_of(path: &Path) -> Result<u32> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    trailing_number(&name).with_context(|| {
        format!("{}: no number in the name, expected one like obj_000001.ply", path.display())
    })
}

/// Reads the meshes of `root` (class = rank by the number in the file name), their boxes and diameters, and compares these
/// with each other and with `models_info.json`.
///
/// # Errors
/// If a file cannot be read, a mesh's name has no number, the counts of meshes, boxes, diameters and classes disagree, or two
/// descriptions of an object are in different units.
pub(crate) fn read_models(root: &Path, data: &DataConfig) -> Result<Vec<ObjectModel>> {
    let dir = root.join(dataset_relative(&data.mesh_dir));
    let paths = mesh_paths(&dir)?;
    let at = dir.display();
    let num_meshes = paths.len();
    ensure!(num_meshes > 0, "{at}: no .ply file, expected obj_000001.ply and so on");
    ensure!(
        num_meshes == data.num_classes(),
        "{at}: {num_meshes} meshes, but data.N_CLASS is {} (expected {}: the meshes and the background)",
        data.num_classes_with_background,
        num_meshes + 1
    );
    ensure!(
        num_meshes == data.mesh_diameters_mm.len(),
        "{at}: {num_meshes} meshes, but data.MESH_DIAMETERS has {} numbers",
        data.mesh_diameters_mm.len()
    );
    let box_file = data.boxes(root);
    let boxes = read_boxes(&box_file, num_meshes)?;
    let infos = ModelInfos::read(data.models_info(root))?;

    let mut models: Vec<ObjectModel> = Vec::with_capacity(num_meshes);
    for ((path, corners), &diameter_mm) in paths.iter().zip(boxes).zip(&data.mesh_diameters_mm) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let obj_id = number_of(path)?;
        if let Some(twin) = models.iter().find(|m| m.obj_id == obj_id) {
            anyhow::bail!("{}: obj_id {obj_id} is also that of {}", path.display(), twin.name);
        }
        let mesh = io::mesh::read_ply(path)?;
        let symmetries = infos.symmetries(obj_id)?;
        let model = ObjectModel { obj_id, name, mesh, corners, diameter_mm, symmetries };
        check_model(&model, (path, &box_file), models.len(), &infos)?;
        models.push(model);
    }
    Ok(models)
}

/// The meshes of a folder by the numbers in their names (then by name); hidden files, as macOS leaves them (`._obj_000001.ply`),
/// are none.
fn mesh_paths(dir: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading the meshes' folder {}", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        let hidden = path.file_name().is_some_and(|n| n.to_string_lossy().starts_with('.'));
        if !hidden && path.extension().is_some_and(|e| e.eq_ignore_ascii_case("ply")) {
            paths.push(path);
        }
    }
    paths.sort();
    let by_name = paths.clone();
    paths.sort_by_key(|path| number_of(path).unwrap_or(0));
    if let Some((number, name)) = paths.iter().zip(&by_name).find(|(a, b)| a != b) {
        tracing::info!(
            "{}: classes are ranked by the meshes' numbers: {} comes before {}",
            dir.display(),
            file_name(number),
            file_name(name)
        );
    }
    Ok(paths)
}

pub(super) fn read_boxes(path: &Path, num_meshes: usize) -> Result<Vec<Corners>> {
    let at = path.display();
    let boxes: Vec<Vec<Vec<f64>>> = io::read_json(path)?;
    ensure!(
        boxes.len() == num_meshes,
        "{at}: boxes of {} classes, expected {num_meshes} as there are meshes",
        boxes.len()
    );
    let corners = |(class, corners): (usize, &Vec<Vec<f64>>)| -> Result<Corners> {
        ensure!(
            corners.len() == 8 && corners.iter().all(|c| c.len() == 3),
            "{at}: class {class}: expected 8 corners of 3 numbers"
        );
        let finite = corners.iter().flatten().all(|v| v.is_finite());
        ensure!(finite, "{at}: class {class}: a number is not finite");
        Ok(std::array::from_fn(|i| Vec3::from_column_slice(&corners[i])))
    };
    boxes.iter().enumerate().map(corners).collect()
}

fn trailing_number(name: &str) -> Option<u32> {
    let start = name.rfind(|c: char| !c.is_ascii_digit()).map_or(0, |i| i + 1);
    name.get(start..)?.parse().ok()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::testing::TinyDataset;

    fn error_of(tiny: &TinyDataset) -> String {
        format!("{:#}", read_models(tiny.root(), &tiny.data).unwrap_err())
    }

    #[test]
    fn meshes_are_ranked_by_name_and_know_their_number() {
        let mut tiny = TinyDataset::new();
        tiny.add_mesh(7);
        tiny.write_boxes(2);
        tiny.data.num_classes_with_background = 3;
        tiny.data.mesh_diameters_mm = vec![150.0, 151.0];
        let models = read_models(tiny.root(), &tiny.data).unwrap();
        let seen: Vec<_> =
            models.iter().map(|m| (m.obj_id, m.name.as_str(), m.diameter_mm)).collect();
        assert_eq!(seen, [(1, "obj_000001", 150.0), (7, "obj_000007", 151.0)]);
        assert_eq!(models[0].corners[7], Vec3::new(50.0, 50.0, 50.0));
        assert_eq!(models[0].mesh.vertices.len(), 8);
    }

    #[test]
    fn counts_that_disagree_are_told() {
        let mut tiny = TinyDataset::new();
        tiny.data.num_classes_with_background = 3;
        let error = error_of(&tiny);
        assert!(error.contains("1 meshes, but data.N_CLASS is 3 (expected 2"), "{error}");

        let mut tiny = TinyDataset::new();
        tiny.data.mesh_diameters_mm = vec![1.0, 2.0];
        let error = error_of(&tiny);
        assert!(error.contains("data.MESH_DIAMETERS has 2 numbers"), "{error}");

        let tiny = TinyDataset::new();
        tiny.write_boxes(2);
        let error = error_of(&tiny);
        assert!(error.contains("swisscube_bbox.json: boxes of 2 classes, expected 1"), "{error}");
    }

    #[test]
    fn files_that_are_missing_or_wrong_are_named() {
        let tiny = TinyDataset::new();
        tiny.write("swisscube_bbox.json", "[[[1, 2, 3]]]");
        assert!(error_of(&tiny).contains("class 0: expected 8 corners"), "{}", error_of(&tiny));
        tiny.write("swisscube_bbox.json", "[[[1, 2");
        assert!(error_of(&tiny).contains("swisscube_bbox.json: line 1"), "{}", error_of(&tiny));
        tiny.remove("swisscube_bbox.json");
        assert!(error_of(&tiny).contains("swisscube_bbox.json"), "{}", error_of(&tiny));

        let tiny = TinyDataset::new();
        tiny.write("models/obj_000001.ply", "ply\nformat ascii 1.0\nelement vertex 8\n");
        assert!(error_of(&tiny).contains("obj_000001.ply"), "{}", error_of(&tiny));
        tiny.remove("models/obj_000001.ply");
        assert!(error_of(&tiny).contains("no .ply file"), "{}", error_of(&tiny));
        tiny.write("models/cube.ply", "ply\n");
        assert!(error_of(&tiny).contains("cube.ply: no number"), "{}", error_of(&tiny));
        let mut tiny = TinyDataset::new();
        tiny.data.mesh_dir = "meshes".into();
        assert!(error_of(&tiny).contains("/meshes"), "{}", error_of(&tiny));
    }

    #[test]
    fn numbers_rank_meshes_however_they_are_padded_and_hidden_files_are_no_meshes() {
        let mut tiny = TinyDataset::new();
        let mesh = std::fs::read_to_string(tiny.root().join("models/obj_000001.ply")).unwrap();
        tiny.remove("models/obj_000001.ply");
        for name in ["obj_2.ply", "obj_10.ply", "obj_1.PLY"] {
            tiny.write(&format!("models/{name}"), &mesh);
        }
        tiny.write("models/._obj_1.ply", "\0\u{5}\u{16}\u{7}");
        tiny.write_boxes(3);
        tiny.data.num_classes_with_background = 4;
        tiny.data.mesh_diameters_mm = vec![150.0, 151.0, 152.0];
        let models = read_models(tiny.root(), &tiny.data).unwrap();
        let seen: Vec<_> = models.iter().map(|m| (m.obj_id, m.diameter_mm)).collect();
        assert_eq!(seen, [(1, 150.0), (2, 151.0), (10, 152.0)]);
        let boxes = tiny.data.boxes(tiny.root());
        let boxes = object_boxes(&boxes, Some(&tiny.root().join("models")), &tiny.data).unwrap();
        assert_eq!(boxes.iter().map(|b| b.obj_id).collect::<Vec<_>>(), [1, 2, 10]);
    }

    #[test]
    fn descriptions_in_other_units_are_refused() {
        let tiny = TinyDataset::new();
        let boxes = |factor: f64| {
            let side = |i: usize, bit: usize| if i & bit != 0 { factor } else { -factor };
            let corners: Vec<_> = (0..8).map(|i| [side(i, 4), side(i, 2), side(i, 1)]).collect();
            tiny.write("swisscube_bbox.json", &serde_json::to_string(&[corners]).unwrap());
        };
        boxes(0.05);
        let error = error_of(&tiny);
        for part in [
            "the box of class 0 in ",
            "swisscube_bbox.json is 0.10000 x 0.10000 x 0.10000 mm, but the mesh ",
            "obj_000001.ply is 100.00 x 100.00 x 100.00 mm (1000 times): is the box",
            "in metres?",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        // Without the meshes: by the diameter.
        let file = tiny.data.boxes(tiny.root());
        let error = format!("{:#}", object_boxes(&file, None, &tiny.data).unwrap_err());
        assert!(error.contains("173.2 mm for the box of class 0") && error.contains("in metres?"));
        boxes(100.0); // twice as large: told in a warning
        assert!(read_models(tiny.root(), &tiny.data).is_ok());
        boxes(50.0);
        let mut metres = TinyDataset::new();
        metres.data.mesh_diameters_mm = vec![0.1732];
        let error = error_of(&metres);
        assert!(error.contains("is data.MESH_DIAMETERS in metres?"), "{error}");
        tiny.write("models/models_info.json", "{\"1\": {\"diameter\": \"x\"}}");
        assert!(error_of(&tiny).contains("models_info.json: line 1: 1.diameter"));
        tiny.write("models/models_info.json", "{\"1\": {\"diameter\": 0.17, \"size_x\": NaN}}");
        assert!(read_models(tiny.root(), &tiny.data).is_ok());
    }

    #[test]
    fn numbers_at_the_end_of_names() {
        assert_eq!(trailing_number("obj_000012"), Some(12));
        assert_eq!(trailing_number("3"), Some(3));
        assert_eq!(trailing_number("cube"), None);
        assert_eq!(trailing_number("obj_12_low"), None);
    }
}
