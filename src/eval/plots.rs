//! Accuracy over depth, from the errors of single objects.

use std::path::Path;

use anyhow::Result;

use crate::io::chart::{Chart, Series};
use crate::pose::TargetErrors;

/// Objects that a point of the curve should stand for at least; fewer make it jump by chance.
const LEAST_OBJECTS: usize = 20;
/// Most points of a curve.
const MOST_POINTS: usize = 15;

/// The headline recall over depth: `(mean depth in diameters, percent)` of groups of equal count, nearest first.
///
/// There are at most 15 groups, of 20 objects or more where there are as many.
pub fn recall_over_depth(errors: &[TargetErrors]) -> Vec<(f64, f64)> {
    let mut sorted: Vec<&TargetErrors> = errors.iter().collect();
    sorted.sort_by(|a, b| a.depth_diameters.total_cmp(&b.depth_diameters));
    let num = sorted.len();
    let num_groups = (num / LEAST_OBJECTS).clamp(1, MOST_POINTS);
    (0..num_groups)
        .filter_map(|i| {
            let group = &sorted[i * num / num_groups..(i + 1) * num / num_groups];
            let of = group.len() as f64;
            let correct = group.iter().filter(|e| e.is_right()).count();
            let depth: f64 = group.iter().map(|e| e.depth_diameters).sum();
            (!group.is_empty()).then(|| (depth / of, 100.0 * correct as f64 / of))
        })
        .collect()
}

/// The chart of several runs, a line each.
pub fn depth_chart(title: &str, runs: &[(&str, &[TargetErrors])]) -> Chart {
    Chart {
        title: title.to_owned(),
        x_label: "depth, object diameters (groups of equally many objects)".to_owned(),
        y_label: "ADD-0.1d (published as ADI), %".to_owned(),
        series: runs
            .iter()
            .map(|(name, errors)| Series {
                name: (*name).to_owned(),
                points: recall_over_depth(errors),
            })
            .collect(),
        log_y: false,
        marks: Vec::new(),
    }
}

/// Writes `STEM.svg` and `STEM.png` of [`depth_chart`] into `folder`.
///
/// # Errors
/// If a file cannot be written.
pub fn write_depth_chart(
    folder: &Path,
    stem: &str,
    title: &str,
    runs: &[(&str, &[TargetErrors])],
) -> Result<()> {
    let chart = depth_chart(title, runs);
    chart.write_svg(&folder.join(format!("{stem}.svg")))?;
    chart.write_png(&folder.join(format!("{stem}.png")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataConfig;
    use crate::eval::testing::{DIAMETER_MM, dataset, predictions_of};
    use crate::eval::{EvalConfig, EvaluationInfo, evaluate};

    fn errors(num_copies: usize) -> Vec<TargetErrors> {
        let dataset = dataset();
        let mut predictions = predictions_of(&dataset);
        for p in predictions.iter_mut().skip(20) {
            p.t_mm[2] += 0.3 * DIAMETER_MM;
        }
        let info = EvaluationInfo { name: "x", list: "y", left_out: &[], timing: None };
        let config = EvalConfig::default();
        let errors =
            evaluate(&dataset, &DataConfig::default(), &predictions, &config, info).unwrap().errors;
        (0..num_copies).flat_map(|_| errors.clone()).collect()
    }

    #[test]
    fn groups_are_of_equal_count_and_run_from_near_to_far() {
        // 60 objects at 30 depths: three groups of 20, of the ten nearest, middle and farthest depths.
        let points = recall_over_depth(&errors(2));
        let expected = [(2.85, 100.0), (5.85, 100.0), (8.85, 0.0)];
        assert_eq!(points.len(), 3);
        for (p, e) in points.iter().zip(expected) {
            assert!((p.0 - e.0).abs() < 1e-9 && p.1 == e.1, "{points:?}");
        }
        assert_eq!(recall_over_depth(&errors(100)).len(), MOST_POINTS);
        assert!(recall_over_depth(&[]).is_empty());
    }

    #[test]
    fn a_chart_has_a_line_a_run_in_both_formats() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (errors(2), errors(4));
        let runs = [("full precision", a.as_slice()), ("fpn 2-bit (3 levels)", &b)];
        write_depth_chart(folder.path(), "accuracy_over_depth", "Accuracy over depth", &runs)
            .unwrap();
        let svg = std::fs::read_to_string(folder.path().join("accuracy_over_depth.svg")).unwrap();
        assert!(svg.contains("full precision") && svg.contains("fpn 2-bit (3 levels)"));
        image::open(folder.path().join("accuracy_over_depth.png")).unwrap();
    }
}
