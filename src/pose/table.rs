//! The SwissCube table: recalls by depth, for each class and over all targets.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::recall::{Recall, TargetErrors, TargetModel};

/// Names of the depth bins, in order.
const BIN_NAMES: [&str; 3] = ["near", "medium", "far"];
/// What the published code adds to the largest depth, so that its target falls into the last bin, mm.
const DEPTH_MARGIN_MM: f64 = 1e-5;
/// Thresholds of ADD and ADI, in diameters, with the text of their names.
const DISTANCES: [(f64, &str); 4] = [(0.05, "0.05d"), (0.1, "0.1d"), (0.2, "0.2d"), (0.5, "0.5d")];
/// Thresholds of the reprojection error, px.
const PIXELS: [(f64, &str); 4] = [(2.0, "2px"), (5.0, "5px"), (10.0, "10px"), (20.0, "20px")];

/// How targets are split by depth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DepthBins {
    /// Three equal widths of the evaluated set's range of depths (the published code).
    #[default]
    Equal,
    /// 1d-4d, 4d-7d, 7d-10d with d the diameter of the target's class (the WDR paper); targets outside of
    /// 1d-10d are counted in `all` alone.
    Diameter,
}

/// What a row of the table counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Metric {
    /// The published `ADI` column: ADD unless the class is listed as symmetric.
    Headline,
    /// The mean distance to the closest model point, for every class.
    TrueAdi,
    /// The mean reprojection error.
    Reprojection,
    /// Rotation within 5 degrees and translation within 50 mm.
    FiveDegFiveCm,
}

/// One bin of the table.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bin {
    /// `near`, `medium`, `far` or `all`.
    pub name: String,
    /// Limits of the depth, from inclusive to exclusive: mm for equal bins, diameters for the paper's, none for `all`.
    pub limits: Option<(f64, f64)>,
}

/// One row: a metric at a threshold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TableRow {
    /// The name in files, such as `ADI-0.1d`, as published; [`row_label`] is what people read.
    pub name: String,
    /// What is counted.
    pub metric: Metric,
    /// The threshold: diameters for distances, px for reprojection, none for 5 degrees 5 cm.
    pub threshold: Option<f64>,
    /// One recall a bin.
    pub recalls: Vec<Recall>,
}

/// The rows over one class, or over all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Section {
    /// The class's name, or `all`.
    pub name: String,
    /// 0-based class; none for all classes together.
    pub class: Option<usize>,
    /// Targets in each bin.
    pub num_targets: Vec<usize>,
    /// Targets in each bin with a prediction.
    pub num_found: Vec<usize>,
    /// The rows.
    pub rows: Vec<TableRow>,
    /// Median rotation error of the targets found, degrees, a bin.
    pub median_re_deg: Vec<Option<f64>>,
    /// Median translation error of the targets found, mm, a bin.
    pub median_te_mm: Vec<Option<f64>>,
    /// The SPEED score (mean of e_q + e_t over all targets; a missing one counts pi + 1), a bin.
    pub speed_score: Vec<Option<f64>>,
    /// The same as SPEED+ counts it on its robotic test bed: parts of an error below the bed's accuracy are 0. None in older files.
    #[serde(default)]
    pub speed_plus_score: Vec<Option<f64>>,
}

impl Section {
    /// The recall of a row in a bin, both by name (`"ADI-0.1d"`, `"all"` is the last bin).
    pub fn recall(&self, row: &str, bin: usize) -> Option<&Recall> {
        self.rows.iter().find(|r| r.name == row)?.recalls.get(bin)
    }
}

/// The evaluation's result, for `metrics.json` and for the terminal (by `Display`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvalTable {
    /// How targets are split by depth.
    pub depth_bins: DepthBins,
    /// near, medium, far, all: the columns.
    pub bins: Vec<Bin>,
    /// Over all classes.
    pub all: Section,
    /// Each class by itself; empty when there is one class.
    pub classes: Vec<Section>,
}

impl TargetErrors {
    /// Whether the pose is right by the headline: an error strictly below [`EvalTable::HEADLINE_DIAMETERS`].
    pub fn is_right(&self) -> bool {
        self.headline_diameters < EvalTable::HEADLINE_DIAMETERS
    }
}

impl EvalTable {
    /// Name of the headline row at 0.1 diameters.
    pub const HEADLINE: &'static str = "ADI-0.1d";
    /// Below this error, in diameters, a pose is right by the headline.
    pub const HEADLINE_DIAMETERS: f64 = 0.1;
    /// Name of the closest-point row at 0.1 diameters.
    pub const TRUE_ADI: &'static str = "true ADI-0.1d (closest point)";

    /// Counts `errors` into the table.
    pub fn new(errors: &[TargetErrors], models: &[TargetModel], depth_bins: DepthBins) -> Self {
        let bins = make_bins(errors, depth_bins);
        let places: Vec<Option<usize>> =
            errors.iter().map(|e| place(e, &bins, depth_bins)).collect();
        let section = |class: Option<usize>, name: &str| {
            let kept: Vec<(&TargetErrors, Option<usize>)> = errors
                .iter()
                .zip(places.iter().copied())
                .filter(|(e, _)| class.is_none_or(|c| e.class == c))
                .collect();
            make_section(name, class, &kept, bins.len())
        };
        let all = section(None, "all");
        let classes = if models.len() > 1 {
            models.iter().enumerate().map(|(c, m)| section(Some(c), &m.name)).collect()
        } else {
            Vec::new()
        };
        Self { depth_bins, bins, all, classes }
    }

    /// The headline percentage (`ADI-0.1d` over all targets); none without targets.
    pub fn headline(&self) -> Option<f64> {
        self.all.recall(Self::HEADLINE, self.bins.len() - 1)?.percent
    }
}

fn make_bins(errors: &[TargetErrors], depth_bins: DepthBins) -> Vec<Bin> {
    let edges: [f64; 4] = match depth_bins {
        DepthBins::Diameter => [1.0, 4.0, 7.0, 10.0],
        DepthBins::Equal => {
            let depths = || errors.iter().map(|e| e.depth_mm);
            let low = depths().fold(f64::INFINITY, f64::min);
            let high = depths().fold(f64::NEG_INFINITY, f64::max) + DEPTH_MARGIN_MM;
            let (low, high) = if errors.is_empty() { (0.0, 0.0) } else { (low, high) };
            let width = (high - low) / 3.0;
            [low, low + width, low + 2.0 * width, high]
        }
    };
    let mut bins: Vec<Bin> = BIN_NAMES
        .iter()
        .enumerate()
        .map(|(i, name)| Bin { name: (*name).to_string(), limits: Some((edges[i], edges[i + 1])) })
        .collect();
    bins.push(Bin { name: "all".to_string(), limits: None });
    bins
}

/// The bin of a target beside `all`.
fn place(errors: &TargetErrors, bins: &[Bin], depth_bins: DepthBins) -> Option<usize> {
    let depth = match depth_bins {
        DepthBins::Equal => errors.depth_mm,
        DepthBins::Diameter => errors.depth_diameters,
    };
    bins.iter().position(|b| b.limits.is_some_and(|(low, high)| depth >= low && depth < high))
}

fn make_section(
    name: &str,
    class: Option<usize>,
    kept: &[(&TargetErrors, Option<usize>)],
    num_bins: usize,
) -> Section {
    let all_bin = num_bins - 1;
    let members: Vec<Vec<&TargetErrors>> = (0..num_bins)
        .map(|bin| {
            kept.iter()
                .filter(|(_, p)| bin == all_bin || *p == Some(bin))
                .map(|(e, _)| *e)
                .collect()
        })
        .collect();
    let row = |name: String, metric: Metric, threshold: Option<f64>| TableRow {
        name,
        metric,
        threshold,
        recalls: members.iter().map(|m| recall(m, metric, threshold)).collect(),
    };
    let mut rows = Vec::new();
    for (threshold, text) in DISTANCES {
        rows.push(row(format!("ADI-{text}"), Metric::Headline, Some(threshold)));
    }
    for (threshold, text) in DISTANCES {
        let name = format!("true ADI-{text} (closest point)");
        rows.push(row(name, Metric::TrueAdi, Some(threshold)));
    }
    for (threshold, text) in PIXELS {
        rows.push(row(format!("REP-{text}"), Metric::Reprojection, Some(threshold)));
    }
    rows.push(row("5 deg 5 cm".to_string(), Metric::FiveDegFiveCm, None));
    let medians = |value: fn(&TargetErrors) -> Option<f64>| -> Vec<Option<f64>> {
        members.iter().map(|m| median(m.iter().filter_map(|e| value(e)).collect())).collect()
    };
    let means = |value: fn(&TargetErrors) -> f64| -> Vec<Option<f64>> {
        let mean = |m: &Vec<&TargetErrors>| {
            (!m.is_empty()).then(|| m.iter().map(|e| value(e)).sum::<f64>() / m.len() as f64)
        };
        members.iter().map(mean).collect()
    };
    Section {
        name: name.to_string(),
        class,
        num_targets: members.iter().map(Vec::len).collect(),
        num_found: members.iter().map(|m| m.iter().filter(|e| e.found).count()).collect(),
        rows,
        median_re_deg: medians(|e| e.re_deg),
        median_te_mm: medians(|e| e.te_mm),
        speed_score: means(|e| e.speed.score()),
        speed_plus_score: means(|e| e.speed.with_test_bed_floor().score()),
    }
}

fn recall(members: &[&TargetErrors], metric: Metric, threshold: Option<f64>) -> Recall {
    let limit = threshold.unwrap_or(f64::INFINITY);
    match metric {
        Metric::Headline => Recall::below(members.iter().map(|e| e.headline_diameters), limit),
        Metric::TrueAdi => Recall::below(members.iter().map(|e| e.adi_diameters), limit),
        Metric::Reprojection => Recall::below(members.iter().map(|e| e.reproj_px), limit),
        Metric::FiveDegFiveCm => {
            let near = |e: &&&TargetErrors| {
                e.re_deg.is_some_and(|re| re < 5.0) && e.te_mm.is_some_and(|te| te < 50.0)
            };
            Recall::new(members.iter().filter(near).count(), members.len())
        }
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.retain(|v| v.is_finite());
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        n if n % 2 == 1 => Some(values[half]),
        _ => Some((values[half - 1] + values[half]) / 2.0),
    }
}

impl fmt::Display for EvalTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.depth_bins {
            DepthBins::Equal => write!(f, "depth bins `equal`:")?,
            DepthBins::Diameter => write!(f, "depth bins `diameter`:")?,
        }
        for bin in &self.bins {
            match (bin.limits, self.depth_bins) {
                (Some((low, high)), DepthBins::Equal) => {
                    write!(f, " {} {low:.0}-{high:.0} mm", bin.name)?;
                }
                (Some((low, high)), DepthBins::Diameter) => {
                    write!(f, " {} {low:.0}d-{high:.0}d", bin.name)?;
                }
                (None, _) => {}
            }
        }
        writeln!(f, "; percent [95 % interval]")?;
        for section in std::iter::once(&self.all).chain(&self.classes) {
            writeln!(f)?;
            write_section(f, section, &self.bins)?;
        }
        Ok(())
    }
}

/// What people read for a row's name: `ADD-0.1d` for `ADI-0.1d`, which is published for the distance of corresponding points, and
/// `ADD-S-0.1d` for `true ADI-0.1d (closest point)`; other names as they are.
pub fn row_label(name: &str) -> String {
    let closest =
        name.strip_prefix("true ADI-").and_then(|rest| rest.strip_suffix(" (closest point)"));
    match (closest, name.strip_prefix("ADI-")) {
        (Some(rest), _) => format!("ADD-S-{rest}"),
        (None, Some(rest)) => format!("ADD-{rest}"),
        (None, None) => name.to_owned(),
    }
}

fn write_section(f: &mut fmt::Formatter<'_>, section: &Section, bins: &[Bin]) -> fmt::Result {
    let title = match section.class {
        Some(_) => format!("class {}", section.name),
        None => "all classes".to_string(),
    };
    let width =
        section.rows.iter().map(|r| row_label(&r.name).len()).max().unwrap_or(0).max(title.len());
    let line = |f: &mut fmt::Formatter<'_>, name: &str, cells: Vec<String>| -> fmt::Result {
        write!(f, "{name:width$}")?;
        for cell in cells {
            write!(f, "  {cell:>18}")?;
        }
        writeln!(f)
    };
    line(f, &title, bins.iter().map(|b| b.name.clone()).collect())?;
    let found = section.num_found.iter().zip(&section.num_targets);
    line(f, "found / targets", found.map(|(a, b)| format!("{a} / {b}")).collect())?;
    for row in &section.rows {
        let cells = row.recalls.iter().map(|r| match (r.percent, r.interval_95) {
            (Some(p), Some((low, high))) => format!("{p:.1} [{low:.1}, {high:.1}]"),
            _ => "-".to_string(),
        });
        line(f, &row_label(&row.name), cells.collect())?;
    }
    let plain = |values: &[Option<f64>], digits: usize| -> Vec<String> {
        let text = |v: &Option<f64>| v.map_or("-".to_string(), |v| format!("{v:.digits$}"));
        values.iter().map(text).collect()
    };
    line(f, "median rotation error, deg", plain(&section.median_re_deg, 2))?;
    line(f, "median translation, mm", plain(&section.median_te_mm, 1))?;
    line(f, "SPEED score", plain(&section.speed_score, 4))?;
    line(f, "SPEED+ score", plain(&section.speed_plus_score, 4))
}

#[cfg(test)]
mod tests {
    use super::super::recall::{Counting, Estimate, Target, score_targets};
    use super::*;
    use crate::geom::{Camera, Pose, Vec3};

    fn models() -> Vec<TargetModel> {
        let sample = [Vec3::zeros(), Vec3::new(10.0, 0.0, 0.0)];
        ["a", "b"].map(|name| TargetModel::new(name, 100.0, false, &sample).unwrap()).into()
    }

    /// Targets of class 0 or 1 (alternating) at these depths (mm), found with these shifts (mm).
    fn errors(depths: &[(f64, Option<f64>)]) -> Vec<TargetErrors> {
        let camera = Camera::new(100.0, 100.0, 0.0, 0.0).unwrap();
        let at = |x: f64, z: f64| Pose { t_mm: Vec3::new(x, 0.0, z), ..Pose::identity() };
        let name = |i: usize| format!("{i}.png");
        let (mut targets, mut estimates) = (vec![], vec![]);
        for (i, (z, shift)) in depths.iter().enumerate() {
            let (image, class) = (name(i), i % 2);
            if let Some(x) = shift {
                let pose = at(*x, *z);
                estimates.push(Estimate { image: image.clone(), class, score: 0.5, pose });
            }
            targets.push(Target { image, class, pose: at(0.0, *z), camera });
        }
        score_targets(&targets, &estimates, &models(), Counting::default()).unwrap()
    }

    fn some_errors() -> Vec<TargetErrors> {
        errors(&[
            (100.0, Some(4.0)),
            (350.0, Some(8.0)),
            (400.0, None),
            (999.0, Some(15.0)),
            (1300.0, Some(0.0)),
        ])
    }

    fn correct(table: &EvalTable, row: &str) -> Vec<(usize, usize)> {
        let row = table.all.rows.iter().find(|r| r.name == row).unwrap();
        row.recalls.iter().map(|r| (r.num_correct, r.num_targets)).collect()
    }

    #[test]
    fn the_score_of_speed_plus_leaves_out_what_its_test_bed_cannot_tell() {
        // Relative errors 0.002 and 0.003, below and above 0.002173, and a missing pose: pi + 1.
        let table = EvalTable::new(
            &errors(&[(1000.0, Some(2.0)), (1000.0, Some(3.0)), (1000.0, None)]),
            &models(),
            DepthBins::Equal,
        );
        let missing = std::f64::consts::PI + 1.0;
        let near = |value: Option<f64>, sum: f64| (value.unwrap() - sum / 3.0).abs() < 1e-7;
        assert!(near(table.all.speed_score[3], 0.002 + 0.003 + missing));
        assert!(near(table.all.speed_plus_score[3], 0.003 + missing));
        let mut old = serde_json::to_value(&table.all).unwrap();
        old.as_object_mut().unwrap().remove("speed_plus_score");
        assert!(serde_json::from_value::<Section>(old).unwrap().speed_plus_score.is_empty());
    }

    #[test]
    fn bins_by_diameter_are_the_papers_and_all_counts_what_is_outside() {
        let table = EvalTable::new(&some_errors(), &models(), DepthBins::Diameter);
        assert_eq!(table.all.num_targets, [2, 1, 1, 5]); // 4d is medium, 13d is in no bin
        assert_eq!(table.all.num_found, [2, 0, 1, 4]);
        assert_eq!(correct(&table, "ADI-0.05d"), [(1, 2), (0, 1), (0, 1), (2, 5)]);
        assert_eq!(correct(&table, EvalTable::HEADLINE), [(2, 2), (0, 1), (0, 1), (3, 5)]);
        // 15 mm along the model's edge of 10 mm: 15 and 5 mm to the closest points.
        assert_eq!(correct(&table, EvalTable::TRUE_ADI), [(2, 2), (0, 1), (0, 1), (3, 5)]);
        assert_eq!(
            correct(&table, "true ADI-0.2d (closest point)"),
            [(2, 2), (0, 1), (1, 1), (4, 5)]
        );
        // 4 mm at 100 mm are 4 px.
        assert_eq!(correct(&table, "REP-2px"), [(0, 2), (0, 1), (1, 1), (2, 5)]);
        assert_eq!(correct(&table, "REP-5px"), [(2, 2), (0, 1), (1, 1), (4, 5)]);
        assert_eq!(correct(&table, "5 deg 5 cm"), [(2, 2), (0, 1), (1, 1), (4, 5)]);
        assert_eq!(table.headline(), Some(60.0));
        assert_eq!(table.all.median_te_mm, [Some(6.0), None, Some(15.0), Some(6.0)]);
        let missing = std::f64::consts::PI + 1.0;
        assert!((table.all.speed_score[1].unwrap() - missing).abs() < 1e-12);
    }

    #[test]
    fn a_pose_is_right_strictly_below_a_tenth_of_the_diameter() {
        // Diameter 100 mm: errors of 9.9 and 10 mm, and none found.
        let errors = errors(&[(1000.0, Some(9.9)), (1000.0, Some(10.0)), (1000.0, None)]);
        let right: Vec<bool> = errors.iter().map(TargetErrors::is_right).collect();
        assert_eq!(right, [true, false, false]);
    }

    #[test]
    fn equal_bins_split_the_range_of_the_evaluated_set() {
        let table = EvalTable::new(&some_errors(), &models(), DepthBins::Equal);
        assert_eq!(table.all.num_targets, [3, 0, 2, 5]); // 100 .. 500 .. 900 .. 1300
        assert_eq!(table.bins[2].limits.unwrap().1, 1300.0 + 1e-5);
        assert_eq!(table.bins[3], Bin { name: "all".to_string(), limits: None });
    }

    #[test]
    fn classes_stand_beside_all_when_there_are_several() {
        let table = EvalTable::new(&some_errors(), &models(), DepthBins::Diameter);
        let [a, b] = table.classes.as_slice() else { panic!() };
        assert_eq!((a.name.as_str(), a.class, b.class), ("a", Some(0), Some(1)));
        assert_eq!((a.num_targets[3], b.num_targets[3]), (3, 2));
        let one = EvalTable::new(&errors(&[(200.0, None)]), &models()[..1], DepthBins::Equal);
        assert!(one.classes.is_empty());
    }

    #[test]
    fn nothing_evaluated_is_a_table_of_dashes() {
        for bins in [DepthBins::Equal, DepthBins::Diameter] {
            let table = EvalTable::new(&[], &models(), bins);
            assert_eq!(table.headline(), None);
            let text = table.to_string();
            assert!(text.contains('-') && !text.contains("NaN") && !text.contains("inf"), "{text}");
        }
    }

    #[test]
    fn the_printed_table_names_bins_and_both_definitions() {
        let table = EvalTable::new(&some_errors(), &models(), DepthBins::Diameter);
        let text = table.to_string();
        let line = |start: &str| {
            text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{start}\n{text}"))
        };
        assert!(line("depth bins `diameter`").contains("near 1d-4d medium 4d-7d far 7d-10d"));
        assert!(line("all classes").trim_end().ends_with("all"));
        assert!(line("ADD-0.1d ").trim_end().ends_with("60.0 [23.1, 88.2]"));
        assert!(line("ADD-S-0.1d").contains("100.0"));
        assert!(line("found / targets").contains("0 / 1"));
        assert!(text.lines().any(|l| l.starts_with("class b")));
    }

    #[test]
    fn the_table_survives_json() {
        let table = EvalTable::new(&some_errors(), &models(), DepthBins::Equal);
        let text = serde_json::to_string(&table).unwrap();
        let read: EvalTable = serde_json::from_str(&text).unwrap();
        // The JSON reader may miss a number's last bit: compare what is counted and what is printed.
        assert_eq!(correct(&read, EvalTable::HEADLINE), correct(&table, EvalTable::HEADLINE));
        assert_eq!(read.to_string(), table.to_string());
    }
}
