//! The scores of the BOP benchmark as a table of text.

use super::grid::{TextTable, number};
use crate::pose::bop::{BopObjectScores, DepthSource};
use crate::pose::{BopScores, bop};

/// A row an object, the last one over all.
pub(super) fn grid(scores: &BopScores) -> TextTable {
    let mut grid = TextTable::new([
        "BOP, percent",
        "targets",
        "AR",
        "VSD",
        "MSSD",
        "MSPD",
        "AP",
        "AD-0.1d",
        "5deg 5cm",
    ]);
    for (class, object) in scores.objects.iter().enumerate() {
        let name =
            object.obj_id.map_or_else(|| format!("class {class}"), |id| format!("object {id}"));
        let values = [
            ar_of(object),
            object.ar_vsd,
            object.ar_mssd,
            object.ar_mspd,
            ap_of(object),
            object.ad_01d,
            object.within_5deg_5cm,
        ];
        grid.row(name, cells(object.num_targets, values));
    }
    grid.gap();
    let all = [
        scores.ar,
        scores.ar_vsd,
        scores.ar_mssd,
        scores.ar_mspd,
        scores.ap,
        scores.ad_01d,
        scores.within_5deg_5cm,
    ];
    grid.row("all", cells(scores.num_targets, all));
    grid
}

fn cells(num_targets: usize, values: [Option<f64>; 7]) -> Vec<String> {
    let numbers = values.iter().map(|v| number(*v, 1));
    std::iter::once(num_targets.to_string()).chain(numbers).collect()
}

/// How to read the table, a line each.
pub(super) fn notes(scores: &BopScores) -> Vec<String> {
    let depth = match scores.vsd_depth {
        Some(DepthSource::Measured) => "depth images",
        Some(DepthSource::Rendered) => {
            "depth rendered of the true objects, as not every image has a depth image: VSD-rendered"
        }
        None => "none",
    };
    let num = |value: Option<f64>| number(value, 1);
    vec![
        format!(
            "BOP localization: AR {} = mean of VSD {}, MSSD {} and MSPD {} over {} targets (the `inst_count` most visible \
             instances); VSD with {depth}",
            num(scores.ar),
            num(scores.ar_vsd),
            num(scores.ar_mssd),
            num(scores.ar_mspd),
            scores.num_targets
        ),
        format!(
            "BOP detection: AP {} = mean of MSSD {} (the score of BOP 2025) and MSPD {}, mean over objects; MSSD below {} to \
             {} mm {}; {} instances",
            num(scores.ap),
            num(scores.ap_mssd),
            num(scores.ap_mspd),
            bop::MSSD_MM_STEP,
            bop::MSSD_MM_STEP * bop::NUM_THRESHOLDS as f64,
            num(scores.ap_mssd_mm),
            scores.num_instances
        ),
        format!(
            "mean over objects: AD-0.1d {} (ADD; ADI of {} symmetric objects), 5 degrees 5 cm {}, area under the recall up to \
             100 mm: AD {}, ADI {}",
            num(scores.ad_01d),
            scores.num_symmetric_classes,
            num(scores.within_5deg_5cm),
            num(scores.auc_ad),
            num(scores.auc_adi)
        ),
    ]
}

/// The mean of an object's three recalls.
fn ar_of(object: &BopObjectScores) -> Option<f64> {
    Some((object.ar_vsd? + object.ar_mssd? + object.ar_mspd?) / 3.0)
}

/// The mean of an object's precisions of MSSD and MSPD.
fn ap_of(object: &BopObjectScores) -> Option<f64> {
    let mean = |values: &[f64]| {
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    Some((mean(&object.precisions.mssd)? + mean(&object.precisions.mspd)?) / 2.0)
}
