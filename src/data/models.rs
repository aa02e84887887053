//! The objects of a dataset: meshes, boxes, diameters.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::DataConfig;
use super::config::dataset_relative;
use crate::geom::{Corners, Vec3, box_corners};
use crate::io;
use crate::io::mesh::Mesh;

/// A class of the dataset.
#[derive(Debug, Clone)]
pub struct ObjectModel {
    /// Number in the mesh's file name and in `scene_gt.json`.
    pub obj_id: u32,
    /// The mesh's file name without its extension.
    pub name: String,
    /// mm.
    pub mesh: Mesh,
    /// Corners of the box, mm, from the dataset's bounding-box file.
    pub corners: Corners,
    /// From the config, mm.
    pub diameter_mm: f64,
}

/// What PnP needs to know of a class: no mesh.
#[derive(Debug, Clone, PartialEq)]
pub struct ObjectBox {
    /// Number in the mesh's file name and in `scene_gt.json`.
    pub obj_id: u32,
    /// Corners of the box, mm.
    pub corners: Corners,
    /// mm.
    pub diameter_mm: f64,
}

impl From<&ObjectModel> for ObjectBox {
    fn from(model: &ObjectModel) -> Self {
        let ObjectModel { obj_id, corners, diameter_mm, .. } = model;
        Self { obj_id: *obj_id, corners: *corners, diameter_mm: *diameter_mm }
    }
}

/// Reads the boxes of the config's classes from `boxes` (a file as `BBOX_FILE`), their numbers from the names of the meshes
/// in `meshes`; without that folder class `c` is number `c + 1`.
///
/// # Errors
/// If a file cannot be read, or the counts of boxes, meshes, diameters and classes disagree.
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
    let obj_ids: Vec<u32> = match meshes {
        None => (1..=num_classes).map(|id| id as u32).collect(),
        Some(folder) => {
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
    let all = corners.into_iter().zip(obj_ids).zip(&data.mesh_diameters_mm);
    Ok(all
        .map(|((corners, obj_id), &diameter_mm)| ObjectBox { obj_id, corners, diameter_mm })
        .collect())
}

/// The object's number in a mesh's file name.
fn number_of(path: &Path) -> Result<u32> {
    let name = path.file_stem().unwrap_or_default().to_string_lossy();
    trailing_number(&name).with_context(|| {
        format!("{}: no number in the name, expected one like obj_000001.ply", path.display())
    })
}

/// Reads the meshes of `root` (class = rank of the sorted file names), their boxes and diameters.
///
/// # Errors
/// If a file cannot be read, a mesh's name has no number, or the counts of meshes, boxes, diameters and classes
/// disagree.
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
    let boxes = read_boxes(&root.join(dataset_relative(&data.bbox_file)), num_meshes)?;

    let mut models: Vec<ObjectModel> = Vec::with_capacity(num_meshes);
    for ((path, corners), &diameter_mm) in paths.iter().zip(boxes).zip(&data.mesh_diameters_mm) {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let obj_id = number_of(path)?;
        if let Some(twin) = models.iter().find(|m| m.obj_id == obj_id) {
            anyhow::bail!("{}: obj_id {obj_id} is also that of {}", path.display(), twin.name);
        }
        let mesh = io::mesh::read_ply(path)?;
        warn_if_unlike(path, &mesh, diameter_mm);
        models.push(ObjectModel { obj_id, name, mesh, corners, diameter_mm });
    }
    Ok(models)
}

fn mesh_paths(dir: &Path) -> Result<Vec<PathBuf>> {
    let reading = || format!("reading the meshes' folder {}", dir.display());
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).with_context(reading)? {
        let path = entry.with_context(reading)?.path();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("ply")) {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn read_boxes(path: &Path, num_meshes: usize) -> Result<Vec<Corners>> {
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

/// Metres for millimetres, or another object's diameter, would train without an error.
fn warn_if_unlike(path: &Path, mesh: &Mesh, diameter_mm: f64) {
    let corners = box_corners(&mesh.vertices);
    let diagonal_mm = (corners[7] - corners[0]).norm();
    // The diameter lies between the longest side, 0.58 diagonals or more, and the diagonal.
    if !(0.5 * diagonal_mm..=1.1 * diagonal_mm).contains(&diameter_mm) {
        tracing::warn!(
            mesh = %path.display(), diagonal_mm, diameter_mm,
            "the diameter in data.MESH_DIAMETERS does not fit the mesh's box: are both in mm?"
        );
    }
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
    fn numbers_at_the_end_of_names() {
        assert_eq!(trailing_number("obj_000012"), Some(12));
        assert_eq!(trailing_number("3"), Some(3));
        assert_eq!(trailing_number("cube"), None);
        assert_eq!(trailing_number("obj_12_low"), None);
    }
}
