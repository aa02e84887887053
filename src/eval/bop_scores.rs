//! The BOP benchmark's scores of an evaluation.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

use super::prediction::Prediction;
use super::report::{estimates_of, targets_of};
use crate::data::{BadSample, DataConfig, Dataset, Frame};
use crate::geom::{Pose, Vec3};
use crate::io::read_json;
use crate::pose::{BopModel, BopScores, bop_scores, symmetries};

/// An object of `models_info.json`, as far as it is used here.
#[derive(Deserialize)]
struct ModelSymmetries {
    /// Row-major 4 x 4 transforms, mm.
    #[serde(default)]
    symmetries_discrete: Vec<Vec<f64>>,
    #[serde(default)]
    symmetries_continuous: Vec<Continuous>,
}

/// A line that the object may be turned about.
#[derive(Deserialize)]
struct Continuous {
    axis: [f64; 3],
    offset: [f64; 3],
}

/// MSSD and MSPD recalls of predictions, with the symmetries of `models_info.json` beside the meshes (none where there is no
/// such file) and the width of the first image that is there (without one, without MSPD).
///
/// # Errors
/// As [`super::evaluate`], and if `models_info.json` cannot be read or holds a symmetry that is not a rigid transform.
pub fn average_recalls(
    dataset: &Dataset,
    data: &DataConfig,
    predictions: &[Prediction],
    left_out: &[BadSample],
) -> Result<BopScores> {
    let path = data.models_info(&dataset.root);
    let infos: BTreeMap<String, ModelSymmetries> =
        if path.is_file() { read_json(&path)? } else { BTreeMap::new() };
    let models = dataset
        .models
        .iter()
        .map(|m| {
            let info = infos.iter().find(|(id, _)| id.parse() == Ok(m.obj_id)).map(|(_, i)| i);
            Ok(BopModel {
                points: m.mesh.vertices.iter().map(|&v| Vec3::from(v)).collect(),
                diameter_mm: m.diameter_mm,
                symmetries: info
                    .map_or_else(|| Ok(vec![]), |i| symmetries_of(i, m.obj_id, &path))?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    let left_out: HashSet<usize> = left_out.iter().map(|bad| bad.index).collect();
    let frames: Vec<&Frame> = (dataset.frames.iter().enumerate())
        .filter_map(|(i, frame)| (!left_out.contains(&i)).then_some(frame))
        .collect();
    let (estimates, _) = estimates_of(dataset, predictions)?;
    let width = frames
        .first()
        .and_then(|f| image::image_dimensions(dataset.root.join(&f.image)).ok())
        .map(|(width, _)| f64::from(width));
    Ok(bop_scores(&targets_of(&frames), &estimates, &models, width))
}

fn symmetries_of(info: &ModelSymmetries, obj_id: u32, path: &Path) -> Result<Vec<Pose>> {
    let place = |what: &str, i: usize| format!("{}: object {obj_id}: {what}[{i}]", path.display());
    let discrete = (info.symmetries_discrete.iter().enumerate())
        .map(|(i, m)| {
            let place = || place("symmetries_discrete", i);
            ensure!(m.len() == 16, "{}: {} numbers, expected 16", place(), m.len());
            let r: Vec<f64> = [0, 4, 8].iter().flat_map(|&row| m[row..row + 3].to_vec()).collect();
            Pose::from_row_major(&r, &[m[3], m[7], m[11]]).with_context(place)
        })
        .collect::<Result<Vec<_>>>()?;
    let continuous = (info.symmetries_continuous.iter().enumerate())
        .map(|(i, c)| {
            let (axis, offset) = (Vec3::from(c.axis), Vec3::from(c.offset));
            let valid = axis.norm() > 0.0 && axis.iter().chain(&offset).all(|v| v.is_finite());
            ensure!(
                valid,
                "{}: axis {:?} is not a direction",
                place("symmetries_continuous", i),
                c.axis
            );
            Ok((axis, offset))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(symmetries(&discrete, &continuous))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::testing::{dataset, predictions_of};

    fn scores(info: Option<&str>, predictions: &[Prediction]) -> Result<BopScores> {
        let folder = tempfile::tempdir().unwrap();
        let mut dataset = dataset();
        dataset.root = folder.path().to_owned();
        std::fs::create_dir(folder.path().join("models")).unwrap();
        if let Some(info) = info {
            std::fs::write(folder.path().join("models/models_info.json"), info).unwrap();
        }
        image::GrayImage::new(1024, 8).save(folder.path().join("0.png")).unwrap();
        average_recalls(&dataset, &DataConfig::default(), predictions, &[])
    }

    #[test]
    fn true_poses_have_every_recall_and_their_half_turns_where_that_is_a_symmetry() {
        let mut predictions = predictions_of(&dataset());
        let all = scores(None, &predictions).unwrap();
        assert_eq!((all.ar_mssd, all.ar_mspd), (Some(100.0), Some(100.0)));
        assert_eq!((all.num_targets, all.num_symmetric_classes), (30, 0));
        // R diag(-1, -1, 1)
        for p in &mut predictions {
            for i in [0, 1, 3, 4, 6, 7] {
                p.r[i] = -p.r[i];
            }
        }
        assert!(scores(None, &predictions).unwrap().ar_mssd.unwrap() < 50.0);
        let half = "[-1,0,0,0, 0,-1,0,0, 0,0,1,0, 0,0,0,1]";
        for info in [
            format!(r#"{{"1": {{"diameter": 180, "symmetries_discrete": [{half}]}}}}"#),
            r#"{"000001": {"symmetries_continuous": [{"axis": [0,0,1], "offset": [0,0,0]}]}}"#
                .into(),
        ] {
            let found = scores(Some(&info), &predictions).unwrap();
            // 315 turns have none of exactly half a turn.
            assert!(found.ar_mssd.unwrap() > 99.0 && found.num_symmetric_classes == 1, "{found:?}");
        }
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
            ("{", "models_info.json"),
        ] {
            let error = format!("{:#}", scores(Some(info), &[]).unwrap_err());
            assert!(error.contains(expected), "{info}: {error}");
        }
    }
}
