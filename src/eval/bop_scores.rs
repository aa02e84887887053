//! The BOP benchmark's scores of an evaluation.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use rayon::prelude::*;

use super::prediction::Prediction;
use super::report::estimates_of;
use crate::data::{BadSample, DataConfig, Dataset, Frame, ModelInfos};
use crate::geom::Vec3;
use crate::pose::bop::{
    BopEstimate, BopImage, BopInstance, BopModel, BopSettings, BopTarget, image_errors, symmetries,
};
use crate::pose::{BopScores, Estimate};

/// Scores of predictions for a dataset that tells neither targets nor visibility: all objects count, however little is seen
/// of them, with the symmetries of `models_info.json` beside the meshes (none where there is no such file) and the width of
/// the first image that is there (without one, without MSPD). Without VSD and AD.
///
/// # Errors
/// As [`super::evaluate`], and if `models_info.json` cannot be read or holds a symmetry that is not a rigid transform.
pub fn average_recalls(
    dataset: &Dataset,
    data: &DataConfig,
    predictions: &[Prediction],
    left_out: &[BadSample],
) -> Result<BopScores> {
    let infos = ModelInfos::read(data.models_info(&dataset.root))?;
    let models = dataset
        .models
        .iter()
        .map(|m| {
            let points: Vec<Vec3> = m.mesh.vertices.iter().map(|&v| Vec3::from(v)).collect();
            let s = infos.symmetries(m.obj_id)?;
            let symmetries = symmetries(&s.discrete, &s.continuous);
            Ok(BopModel::new(&points, Vec::new(), m.diameter_mm, symmetries))
        })
        .collect::<Result<Vec<_>>>()?;
    let left_out: HashSet<usize> = left_out.iter().map(|bad| bad.index).collect();
    let frames: Vec<&Frame> = (dataset.frames.iter().enumerate())
        .filter_map(|(i, frame)| (!left_out.contains(&i)).then_some(frame))
        .collect();
    let (estimates, _) = estimates_of(dataset, predictions)?;
    let mut by_image: HashMap<&str, Vec<BopEstimate>> = HashMap::new();
    for Estimate { image, class, score, pose } in &estimates {
        let (class, score, pose) = (*class, *score, *pose);
        by_image.entry(image.as_str()).or_default().push(BopEstimate { class, score, pose });
    }
    let size_px = frames
        .first()
        .and_then(|f| image::image_dimensions(dataset.root.join(&f.image)).ok())
        .map(|(width, height)| [width as usize, height as usize]);
    let settings = BopSettings::default();
    let errors = (frames.par_iter())
        .map(|frame| {
            let estimates = by_image.get(frame.image.as_str()).cloned().unwrap_or_default();
            image_errors(&image_of(frame, size_px, estimates), &models, &settings)
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(BopScores::new(&errors, &models, &settings))
}

fn image_of(frame: &Frame, size_px: Option<[usize; 2]>, estimates: Vec<BopEstimate>) -> BopImage {
    let mut targets: Vec<BopTarget> = Vec::new();
    for object in &frame.objects {
        match targets.iter_mut().find(|t| t.class == object.class) {
            Some(target) => target.count += 1,
            None => targets.push(BopTarget { class: object.class, count: 1 }),
        }
    }
    let instance =
        |o: &crate::data::Annotation| BopInstance { class: o.class, pose: o.pose, visible: 1.0 };
    BopImage {
        camera: frame.camera,
        size_px,
        depth_mm: None,
        instances: frame.objects.iter().map(instance).collect(),
        estimates,
        targets,
        detection: true,
        vsd: false,
        ad: false,
    }
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
}
