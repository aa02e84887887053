//! `models_info.json`: what BOP knows of the objects beside their meshes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::scene_files::read_lenient;
use crate::geom::{Corners, Pose, Vec3, box_corners};

/// An object of the file, mm. Other keys are not looked at.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct ModelInfo {
    /// Largest distance of two vertices.
    pub diameter: Option<f64>,
    min_x: Option<f64>,
    min_y: Option<f64>,
    min_z: Option<f64>,
    size_x: Option<f64>,
    size_y: Option<f64>,
    size_z: Option<f64>,
    /// Row-major 4 x 4 transforms.
    #[serde(default)]
    symmetries_discrete: Vec<Vec<Option<f64>>>,
    #[serde(default)]
    symmetries_continuous: Vec<Continuous>,
}

/// A line that the object may be turned about.
#[derive(Debug, Clone, Deserialize)]
struct Continuous {
    axis: [Option<f64>; 3],
    offset: [Option<f64>; 3],
}

/// The transforms of an object onto itself, without the identity.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ModelSymmetries {
    /// `symmetries_discrete`.
    pub discrete: Vec<Pose>,
    /// `symmetries_continuous`: direction of the line, and a point on it, mm.
    pub continuous: Vec<(Vec3, Vec3)>,
}

impl ModelInfo {
    /// Sides of the box, mm.
    pub fn size(&self) -> Option<Vec3> {
        Some(Vec3::new(self.size_x?, self.size_y?, self.size_z?))
    }

    /// The middle of the box, mm, object frame; the origin where the file tells no box.
    pub fn middle(&self) -> Vec3 {
        self.corners().map_or_else(Vec3::zeros, |corners| (corners[0] + corners[7]) / 2.0)
    }

    /// Corners of the box, mm.
    pub fn corners(&self) -> Option<Corners> {
        let low = Vec3::new(self.min_x?, self.min_y?, self.min_z?);
        let high = low + self.size()?;
        Some(box_corners([&low.into(), &high.into()]))
    }
}

/// The objects of a `models_info.json`, by their numbers.
#[derive(Debug, Clone)]
pub struct ModelInfos {
    path: PathBuf,
    infos: BTreeMap<u32, ModelInfo>,
}

impl ModelInfos {
    /// Reads the file; without objects where there is none.
    ///
    /// # Errors
    /// If it cannot be read, or a key (the id of an object) is not a number; names file, line and key.
    pub fn read(path: PathBuf) -> Result<Self> {
        let read: BTreeMap<String, ModelInfo> =
            if path.is_file() { read_lenient(&path)? } else { BTreeMap::new() };
        let by_number = |(key, info): (String, ModelInfo)| {
            let id = key.parse().ok();
            let id = id.with_context(|| {
                format!("{}: key {key:?}, expected an object's number", path.display())
            })?;
            Ok((id, info))
        };
        let infos = read.into_iter().map(by_number).collect::<Result<_>>()?;
        Ok(Self { path, infos })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The numbers of the objects, rising.
    pub fn obj_ids(&self) -> Vec<u32> {
        self.infos.keys().copied().collect()
    }

    /// An object of the file.
    pub fn of(&self, obj_id: u32) -> Option<&ModelInfo> {
        self.infos.get(&obj_id)
    }

    /// The symmetries of an object; none of one that is not in the file.
    ///
    /// # Errors
    /// If a transform is not rigid or an axis is not a direction; names the place.
    pub fn symmetries(&self, obj_id: u32) -> Result<ModelSymmetries> {
        let Some(info) = self.of(obj_id) else { return Ok(ModelSymmetries::default()) };
        let place =
            |what: &str, i: usize| format!("{}: object {obj_id}: {what}[{i}]", self.path.display());
        let number = |v: &Option<f64>| v.unwrap_or(f64::NAN);
        let discrete = (info.symmetries_discrete.iter().enumerate())
            .map(|(i, m)| {
                let place = || place("symmetries_discrete", i);
                ensure!(m.len() == 16, "{}: {} numbers, expected 16", place(), m.len());
                let m: Vec<f64> = m.iter().map(number).collect();
                let r: Vec<f64> =
                    [0, 4, 8].iter().flat_map(|&row| m[row..row + 3].to_vec()).collect();
                Pose::from_row_major(&r, &[m[3], m[7], m[11]]).with_context(place)
            })
            .collect::<Result<Vec<_>>>()?;
        let continuous = (info.symmetries_continuous.iter().enumerate())
            .map(|(i, c)| {
                let [axis, offset] = [c.axis, c.offset].map(|v| Vec3::from(v.map(|v| number(&v))));
                let valid = axis.norm() > 0.0 && axis.iter().chain(&offset).all(|v| v.is_finite());
                let place = || place("symmetries_continuous", i);
                ensure!(valid, "{}: axis {:?} is not a direction", place(), axis.as_slice());
                Ok((axis, offset))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(ModelSymmetries { discrete, continuous })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<ModelInfos> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("models_info.json");
        std::fs::write(&path, text).unwrap();
        ModelInfos::read(path)
    }

    #[test]
    fn objects_are_known_by_their_numbers() {
        let infos = read(
            r#"{"000011": {"diameter": 90, "min_x": -1, "min_y": -2, "min_z": -3, "size_x": 2, "size_y": 4, "size_z": 6},
                "2": {"diameter": NaN, "symmetries_continuous": [{"axis": [0, 0, 2], "offset": [1, 0, 0]}]}}"#,
        )
        .unwrap();
        assert_eq!(infos.obj_ids(), [2, 11]);
        let info = infos.of(11).unwrap();
        assert_eq!((info.diameter, info.size()), (Some(90.0), Some(Vec3::new(2.0, 4.0, 6.0))));
        assert_eq!(info.corners().unwrap()[7], Vec3::new(1.0, 2.0, 3.0));
        assert_eq!(infos.of(11).unwrap().middle(), Vec3::zeros());
        assert_eq!((infos.of(2).unwrap().diameter, infos.of(2).unwrap().corners()), (None, None));
        let symmetries = infos.symmetries(2).unwrap();
        assert_eq!(symmetries.continuous, [(Vec3::new(0.0, 0.0, 2.0), Vec3::new(1.0, 0.0, 0.0))]);
        assert_eq!(infos.symmetries(7).unwrap(), ModelSymmetries::default());
        assert!(format!("{:#}", read(r#"{"cube": {}}"#).unwrap_err()).contains("key \"cube\""));
    }

    #[test]
    fn bad_symmetries_are_named() {
        for (info, expected) in [
            (
                r#"{"1": {"symmetries_discrete": [[1, 2]]}}"#,
                "object 1: symmetries_discrete[0]: 2 numbers",
            ),
            (
                r#"{"1": {"symmetries_discrete": [[2,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1]]}}"#,
                "symmetries_discrete[0]: R is not a rotation",
            ),
            (
                r#"{"1": {"symmetries_continuous": [{"axis": [0,0,0], "offset": [0,0,0]}]}}"#,
                "symmetries_continuous[0]: axis",
            ),
        ] {
            let error = format!("{:#}", read(info).unwrap().symmetries(1).unwrap_err());
            assert!(error.contains(expected), "{info}: {error}");
        }
    }
}
