//! Pictures of predicted and true boxes for a sample of images.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::data::Dataset;
use crate::eval::Prediction;
use crate::eval::overlay::{Outline, overlay};
use crate::io::picture;

/// Length of the drawn axes, as a share of the object's diameter.
const AXIS_SHARE: f64 = 0.5;

/// Writes `num` overlays, evenly spread over the split, into `folder`.
///
/// # Errors
/// If an image cannot be read or a picture cannot be written.
pub(super) fn write(
    folder: &Path,
    dataset: &Dataset,
    predictions: &[Prediction],
    num: usize,
) -> Result<()> {
    if num == 0 || dataset.frames.is_empty() {
        return Ok(());
    }
    fs::create_dir_all(folder)
        .with_context(|| format!("making the folder {}", folder.display()))?;
    let mut by_image: HashMap<&str, Vec<&Prediction>> = HashMap::new();
    for p in predictions {
        by_image.entry(p.image.as_str()).or_default().push(p);
    }
    let num = num.min(dataset.frames.len());
    for i in 0..num {
        let frame = &dataset.frames[i * dataset.frames.len() / num];
        let image = picture::read_rgb(&dataset.root.join(&frame.image))?;
        let outline = |class: usize, pose| {
            dataset.models.get(class).map(|model| Outline {
                pose,
                corners: &model.corners,
                axis_mm: model.diameter_mm * AXIS_SHARE,
            })
        };
        let truth: Vec<Outline> =
            frame.objects.iter().filter_map(|o| outline(o.class, o.pose)).collect();
        let found = by_image.get(frame.image.as_str()).map_or(&[][..], Vec::as_slice);
        let predicted: Vec<Outline> = found
            .iter()
            .map(|p| Ok(outline(p.class, p.pose()?)))
            .collect::<Result<Vec<_>>>()?
            .into_iter()
            .flatten()
            .collect();
        let caption = match (truth.first(), predicted.first()) {
            (Some(t), Some(p)) => {
                let error_mm = (t.pose.t_mm - p.pose.t_mm).norm();
                format!("z {:.0} mm  t error {error_mm:.1} mm", t.pose.t_mm.z)
            }
            (Some(t), None) => format!("z {:.0} mm  no pose", t.pose.t_mm.z),
            (None, _) => "no object".to_owned(),
        };
        let drawn = overlay(&image, &frame.camera, &truth, &predicted, &caption.to_uppercase());
        picture::write_png(&folder.join(format!("{i:03}.png")), &drawn)?;
    }
    Ok(())
}
