//! A class of objects: its mesh, its box and its diameter.

use super::models_info::ModelSymmetries;
use crate::geom::Corners;
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
    /// The transforms onto itself that `models_info.json` lists.
    pub symmetries: ModelSymmetries,
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
