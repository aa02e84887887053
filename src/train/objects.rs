//! What a checkpoint says of the objects that its network finds, so that whoever runs it needs no dataset.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// An object class, in the order of the network's classes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ObjectInfo {
    /// Number of the object in the dataset (`obj_000001.ply` is 1).
    pub obj_id: u32,
    /// Its name: that of the mesh's file.
    pub name: String,
    /// The corners of its box, which the network predicts, in that order; x, y, z in mm, in the object's frame.
    pub box_corners_mm: [[f64; 3]; 8],
    /// mm.
    pub diameter_mm: f64,
    /// Whether its errors are measured to the closest point (`data.SYMMETRIC_CLASSES`).
    pub symmetric: bool,
    /// Row-major 4 x 4 transforms (mm) after which it looks the same, as `models_info.json` has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symmetries_discrete: Vec<Value>,
    /// Axes about which it may be turned by any angle, as `models_info.json` has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub symmetries_continuous: Vec<Value>,
}

impl ObjectInfo {
    /// For people: number, name, size of the box and diameter.
    pub fn text(&self) -> String {
        let side = |axis: usize| {
            let values = self.box_corners_mm.iter().map(|corner| corner[axis]);
            values.clone().fold(f64::MIN, f64::max) - values.fold(f64::MAX, f64::min)
        };
        let symmetric = match self.symmetric {
            true => ", symmetric (closest point)",
            false => "",
        };
        let num = self.symmetries_discrete.len() + self.symmetries_continuous.len();
        let symmetries = match num {
            0 => String::new(),
            _ => format!(", {num} symmetries"),
        };
        format!(
            "object {} {}: box {:.2} x {:.2} x {:.2} mm, diameter {:.2} mm{symmetric}{symmetries}",
            self.obj_id,
            self.name,
            side(0),
            side(1),
            side(2),
            self.diameter_mm
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_told_by_its_sizes() {
        let corner = |i: usize| [(i & 1) as f64 * 30.0 - 10.0, (i >> 1 & 1) as f64 * 20.5, 7.0];
        let object = ObjectInfo {
            obj_id: 4,
            name: "obj_000004".to_owned(),
            box_corners_mm: std::array::from_fn(corner),
            diameter_mm: 36.5,
            symmetric: true,
            symmetries_discrete: vec![Value::Null],
            symmetries_continuous: Vec::new(),
        };
        assert_eq!(
            object.text(),
            "object 4 obj_000004: box 30.00 x 20.50 x 0.00 mm, diameter 36.50 mm, symmetric (closest point), 1 symmetries"
        );
        let json = serde_json::to_string(&object).unwrap();
        assert_eq!(serde_json::from_str::<ObjectInfo>(&json).unwrap(), object);
        assert!(!json.contains("continuous"));
    }
}
