//! Depth images: 16 bits a pixel in units of `depth_scale`, written and read.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::io::picture;

/// Values that are filled at most, of the 65535 that there are.
const ROOM: f64 = 65_000.0;
/// The finest unit that is written, mm, and the other one, where 16 bits of the first do not reach.
const UNITS_MM: [f64; 2] = [0.1, 1.0];

/// What one unit of a depth image is, mm: `depth_scale` of `scene_camera.json`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DepthScale(f64);

impl Default for DepthScale {
    /// 1 mm, as where a file does not tell it.
    fn default() -> Self {
        Self(1.0)
    }
}

impl DepthScale {
    /// For images in which nothing is farther than `deepest_mm`: a tenth of a millimetre, or one.
    pub fn for_depths_up_to(deepest_mm: f64) -> Self {
        let holds = |unit_mm: &f64| deepest_mm < unit_mm * ROOM;
        Self(UNITS_MM.into_iter().find(holds).unwrap_or(UNITS_MM[1]))
    }

    /// Refuses depths that 16 bits of this unit cannot hold.
    ///
    /// # Errors
    /// If `z_mm` is beyond them, negative or not finite; names both.
    pub fn ensure_holds(self, z_mm: f64) -> Result<()> {
        let most_mm = self.0 * f64::from(u16::MAX);
        ensure!(
            (0.0..=most_mm).contains(&z_mm),
            "a depth image of depth_scale {} mm holds 0 to {most_mm} mm in its 16 bits, not {z_mm} mm",
            self.0
        );
        Ok(())
    }

    /// Writes depths, mm, 0 where nothing is, as an image of `size` (width and height, px). Not synced to the disk.
    ///
    /// # Errors
    /// If a depth does not fit, there are not as many as pixels, or the file cannot be written; names the file.
    pub fn write(self, path: &Path, size: [u32; 2], depth_mm: &[f32]) -> Result<()> {
        let unit = self.0 as f32;
        let value = |z: &f32| -> Result<u16> {
            self.ensure_holds(f64::from(*z)).with_context(|| path.display().to_string())?;
            Ok((z / unit).round() as u16)
        };
        let values = depth_mm.iter().map(value).collect::<Result<Vec<_>>>()?;
        picture::write_depth(path, size, values)
    }

    /// Reads a depth image: width and height, px, and depths, mm, row by row; 0 where nothing is known.
    ///
    /// # Errors
    /// If the unit is no length, or the file cannot be read; names the file.
    pub fn read(self, path: &Path) -> Result<([usize; 2], Vec<f32>)> {
        ensure!(
            self.0 > 0.0 && self.0.is_finite(),
            "{}: the depth_scale of its image in scene_camera.json is {}, expected mm above 0",
            path.display(),
            self.0
        );
        let (size, values) = picture::read_depth(path)?;
        let unit = self.0 as f32;
        Ok((size, values.into_iter().map(|v| f32::from(v) * unit).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depths_come_back_to_half_a_unit() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("depth.png");
        for (deepest_mm, unit_mm) in [(6000.0, 0.1), (30_000.0, 1.0)] {
            let scale = DepthScale::for_depths_up_to(deepest_mm);
            assert_eq!(scale, DepthScale(unit_mm));
            let depths = [0.0, 1234.56, deepest_mm as f32];
            scale.write(&path, [3, 1], &depths).unwrap();
            let (size, read) = scale.read(&path).unwrap();
            assert_eq!((size, read[0]), ([3, 1], 0.0));
            for (a, b) in read.iter().zip(depths) {
                assert!(f64::from((a - b).abs()) <= 0.5 * unit_mm + 1e-2, "{a} {b}");
            }
        }
    }

    #[test]
    fn depths_that_16_bits_do_not_hold_are_named_and_nothing_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("depth.png");
        let scale = DepthScale::for_depths_up_to(6000.0);
        for bad in [6600.0, -1.0, f32::NAN] {
            let error = format!("{:#}", scale.write(&path, [1, 1], &[bad]).unwrap_err());
            for part in
                ["depth.png", "depth_scale 0.1 mm", "0 to 6553.5 mm", &format!("not {bad} mm")]
            {
                assert!(error.contains(part), "{part}: {error}");
            }
        }
        assert!(!path.exists());
        // Nothing reaches farther than the coarser unit.
        assert!(DepthScale::for_depths_up_to(70_000.0).ensure_holds(70_000.0).is_err());
        std::fs::write(&path, "").unwrap();
        let error = DepthScale(0.0).read(&path).unwrap_err().to_string();
        assert!(error.contains("depth_scale of its image") && error.contains("is 0"), "{error}");
    }
}
