//! Reports as tables of text: one run, or several side by side.

use super::bop_table;
use super::grid::{TextTable, difference, number, range, wrap};
use super::report::{BinLimits, Report};
use super::sigma::SigmaFactors;
use crate::pose::{BopScores, DepthBins, EvalTable, Recall, Section, row_label};

/// Rows of a comparison that are recalls, by their names in the table.
const COMPARED: [&str; 5] =
    ["ADI-0.05d", EvalTable::HEADLINE, EvalTable::TRUE_ADI, "REP-2px", "REP-5px"];

impl Report {
    /// The scores near, medium, far and over all, for a terminal of 100 columns.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.heading() {
            text.push_str(&wrap(&line, "  "));
        }
        for section in self.sections() {
            text.push('\n');
            text.push_str(&self.grid(section).text());
        }
        if let Some(bop) = self.benchmark() {
            text.push('\n');
            text.push_str(&bop_table::grid(bop).text());
        }
        text.push('\n');
        for line in self.footnotes() {
            text.push_str(&wrap(&line, "  "));
        }
        text
    }

    /// The same as Markdown.
    pub fn markdown(&self) -> String {
        let mut text = format!("### {}\n\n", self.name);
        text.push_str(&paragraphs(self.heading().into_iter().skip(1)));
        for section in self.sections() {
            text.push('\n');
            text.push_str(&self.grid(section).markdown());
        }
        if let Some(bop) = self.benchmark() {
            text.push('\n');
            text.push_str(&bop_table::grid(bop).markdown());
        }
        text.push('\n');
        text.push_str(&paragraphs(self.footnotes()));
        text
    }

    /// The scores of the BOP benchmark where they are its own: of a split of a BOP folder, whose objects have numbers.
    fn benchmark(&self) -> Option<&BopScores> {
        self.bop.as_ref().filter(|bop| bop.objects.iter().any(|object| object.obj_id.is_some()))
    }

    /// All classes together, then each by itself when there are several.
    fn sections(&self) -> impl Iterator<Item = &Section> {
        std::iter::once(&self.table.all).chain(&self.table.classes)
    }

    /// What was evaluated, a line each.
    fn heading(&self) -> Vec<String> {
        let d = &self.dataset;
        let kind = if d.synthetic { " (synthetic)" } else { "" };
        let mut what = format!(
            "{} of {}{kind}: {}, {}",
            d.list,
            d.root,
            counted(d.num_images, "image"),
            counted(d.num_objects, "object")
        );
        if d.num_images_without_object > 0 {
            what.push_str(&format!(
                ", {} without an object",
                counted(d.num_images_without_object, "image")
            ));
        }
        if d.num_left_out > 0 {
            what.push_str(&format!(
                ", {} left out as unreadable",
                counted(d.num_left_out, "image")
            ));
        }
        if d.num_false_predictions > 0 {
            let num = counted(d.num_false_predictions, "prediction");
            what.push_str(&format!(", {num} of objects that are not there"));
        }
        vec![self.name.clone(), what]
    }

    fn grid(&self, section: &Section) -> TextTable {
        let title = match section.class {
            Some(_) => format!("class {}, percent", section.name),
            None => "percent".to_owned(),
        };
        let names = self.table.bins.iter().map(|b| b.name.clone());
        let mut grid = TextTable::new(std::iter::once(title).chain(names));
        self.depth_rows(&mut grid);
        grid.row("objects", section.num_targets.iter().map(ToString::to_string));
        grid.row("found", section.num_found.iter().map(ToString::to_string));
        let mut last_metric = None;
        for row in &section.rows {
            if last_metric.replace(row.metric) != Some(row.metric) {
                grid.gap();
            }
            grid.row(row_label(&row.name), row.recalls.iter().map(|r| number(r.percent, 1)));
            if row.name == EvalTable::HEADLINE {
                grid.row("  95 % interval", row.recalls.iter().map(|r| range(r.interval_95, 1)));
            }
        }
        grid.gap();
        for (name, values, digits) in measures(section) {
            grid.row(name, values.iter().map(|v| number(*v, digits)));
        }
        grid
    }

    /// The limits of the bins.
    fn depth_rows(&self, grid: &mut TextTable) {
        let mut row = |name: &str, cell: fn(&BinLimits) -> String| {
            let cells = self.bin_limits.iter().map(|l| {
                if l.mm.is_none() && l.diameters.is_none() { String::new() } else { cell(l) }
            });
            grid.row(name, cells);
        };
        row("depth, mm", |l| range(l.mm, 0));
        row("depth, diameters d", |l| range(l.diameters, 1));
    }

    /// How to read the table, a line each.
    fn meanings(&self) -> Vec<String> {
        let bins = match self.table.depth_bins {
            DepthBins::Equal => {
                "depth bins `equal`: three equal widths of the evaluated set's depths (z), as in the \
                 published code"
                    .to_owned()
            }
            DepthBins::Diameter => {
                let mut text =
                    "depth bins `diameter`: 1d-4d-7d-10d, as in the WDR paper".to_owned();
                if self.num_outside_bins > 0 {
                    let num = counted(self.num_outside_bins, "object");
                    text.push_str(&format!("; {num} outside of them, in `all` only"));
                }
                text
            }
        };
        let meanings = self.definitions.iter().map(|d| format!("{}: {}", d.metric, d.meaning));
        let mut lines: Vec<String> = std::iter::once(bins).chain(meanings).collect();
        if let (num @ 1.., Some(percent)) =
            (self.dataset.num_images_with_several, self.dataset.ceiling_percent)
        {
            lines.push(format!(
                "{} with several objects of a class: poses are matched to them one to one; a network that gives one pose a \
                 class and image finds at most {percent:.1} % of the objects",
                counted(num, "image")
            ));
        }
        if let Some(bop) = self.benchmark() {
            lines.extend(bop_table::notes(bop));
        } else if let Some(bop) = &self.bop {
            lines.push(format!(
                "BOP average recall, percent: MSSD {}, MSPD {} ({}; VSD, which needs depth, is not part of it)",
                number(bop.ar_mssd, 1),
                number(bop.ar_mspd, 1),
                match bop.num_symmetric_classes {
                    0 => "no symmetries".to_owned(),
                    n => format!("symmetries of {n} of {} classes", self.classes.len()),
                }
            ));
        }
        lines.extend(self.bop_notes.iter().cloned());
        lines
    }

    /// What is to be known about its poses, a line each.
    fn pose_notes(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.num_widened > 0 {
            lines.push(format!(
                "{} found only within 2 or 4 times evaluation.ransac.inlier_px ({} px), at a half or a quarter of the score",
                counted(self.num_widened, "pose"),
                self.config.ransac.inlier_px
            ));
        }
        lines.extend(self.sigma.iter().map(SigmaFactors::text));
        lines
    }

    /// Everything below the table, a line each.
    fn footnotes(&self) -> Vec<String> {
        let mut lines = self.meanings();
        lines.extend(self.pose_notes());
        if let Some(t) = &self.timing {
            lines.push(format!(
                "time: {:.1} s for {}; network {:.1} s, waiting for images {:.1} s; on all threads \
                 together: decoding {:.1} s, PnP {:.1} s",
                t.total_s,
                counted(t.num_images, "image"),
                t.network_s,
                t.loading_s,
                t.decode_s,
                t.pnp_s
            ));
        }
        lines
    }
}

/// Several runs side by side: for each metric a row a run, and for each further run its difference to the first.
#[derive(Debug, Clone)]
pub struct Comparison<'a> {
    reports: &'a [&'a Report],
}

impl<'a> Comparison<'a> {
    /// The runs, the one to compare with first.
    pub fn new(reports: &'a [&'a Report]) -> Self {
        Self { reports }
    }

    /// For a terminal of 100 columns.
    pub fn text(&self) -> String {
        let mut text = String::new();
        for line in self.heading() {
            text.push_str(&wrap(&line, "  "));
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&self.grid().text());
        text.push('\n');
        for line in self.notes() {
            text.push_str(&wrap(&line, "  "));
        }
        text
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        format!(
            "{}\n{}\n{}",
            paragraphs(self.heading()),
            self.grid().markdown(),
            paragraphs(self.notes())
        )
    }

    /// What was evaluated.
    fn heading(&self) -> Vec<String> {
        self.reports.first().map_or_else(Vec::new, |r| r.heading().split_off(1))
    }

    fn grid(&self) -> TextTable {
        let Some(first) = self.reports.first() else { return TextTable::new(["percent"]) };
        let names = first.table.bins.iter().map(|b| b.name.clone());
        let mut grid = TextTable::new(std::iter::once("percent".to_owned()).chain(names));
        first.depth_rows(&mut grid);
        let sizes = first.table.all.num_targets.iter();
        grid.row("objects", sizes.map(ToString::to_string));
        grid.gap();
        grid.row("found", [""; 0]);
        let found = |r: &Report| r.table.all.num_found.iter().map(|&n| Some(n as f64)).collect();
        self.block(&mut grid, 0, found, false);
        for metric in COMPARED {
            grid.gap();
            grid.row(row_label(metric), [""; 0]);
            let values = |r: &Report| percents(&r.table, metric, |recall| recall.percent);
            self.block(&mut grid, 1, values, metric == EvalTable::HEADLINE);
        }
        for (i, (name, _, digits)) in measures(&first.table.all).into_iter().enumerate() {
            grid.gap();
            grid.row(name, [""; 0]);
            self.block(&mut grid, digits, |r| measures(&r.table.all)[i].1.to_vec(), false);
        }
        grid
    }

    /// The rows of one metric.
    fn block(
        &self,
        grid: &mut TextTable,
        digits: usize,
        values: impl Fn(&Report) -> Vec<Option<f64>>,
        intervals: bool,
    ) {
        let Some((first, _)) = self.reports.split_first() else { return };
        let reference = values(first);
        for (i, report) in self.reports.iter().enumerate() {
            let own = values(report);
            grid.row(format!("  {}", report.name), own.iter().map(|v| number(*v, digits)));
            if intervals {
                let cells = percents(&report.table, EvalTable::HEADLINE, |r| r.interval_95);
                grid.row("    95 % interval", cells.into_iter().map(|c| range(c, 1)));
            }
            if i > 0 {
                let changes = own.iter().zip(&reference).map(|(a, b)| Some((*a)? - (*b)?));
                grid.row("    difference", changes.map(|v| difference(v, digits)));
            }
        }
    }

    fn notes(&self) -> Vec<String> {
        let Some((first, others)) = self.reports.split_first() else { return Vec::new() };
        let mut notes = first.meanings();
        for report in self.reports {
            let named = |note| format!("`{}`: {note}", report.name);
            notes.extend(report.pose_notes().into_iter().map(named));
        }
        for other in others {
            if let Some(what) = unlike(first, other) {
                notes.push(format!(
                    "careful: `{}` and `{}` differ in {what}, so that the rows do not compare",
                    first.name, other.name
                ));
            }
        }
        notes
    }
}

/// What makes two reports' numbers no fair comparison.
fn unlike(a: &Report, b: &Report) -> Option<&'static str> {
    if a.dataset.root != b.dataset.root || a.dataset.list != b.dataset.list {
        Some("their images")
    } else if a.table.all.num_targets != b.table.all.num_targets {
        Some("the number of objects in the bins")
    } else if a.table.bins != b.table.bins {
        Some("their depth bins")
    } else {
        None
    }
}

fn percents<T>(
    table: &EvalTable,
    row: &str,
    value: impl Fn(&Recall) -> Option<T>,
) -> Vec<Option<T>> {
    (0..table.bins.len()).map(|bin| table.all.recall(row, bin).and_then(&value)).collect()
}

/// What a section has beside recalls: name, a value a bin, decimals.
fn measures(section: &Section) -> [(&'static str, &[Option<f64>], usize); 4] {
    [
        ("median rotation error, deg", &section.median_re_deg, 2),
        ("median translation error, mm", &section.median_te_mm, 1),
        ("SPEED score", &section.speed_score, 4),
        ("SPEED+ score", &section.speed_plus_score, 4),
    ]
}

fn counted(num: usize, what: &str) -> String {
    format!("{num} {what}{}", if num == 1 { "" } else { "s" })
}

fn paragraphs(lines: impl IntoIterator<Item = String>) -> String {
    lines.into_iter().map(|line| format!("{line}  \n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::DataConfig;
    use crate::eval::testing::{DIAMETER_MM, dataset, predictions_of};
    use crate::eval::{EvalConfig, EvaluationInfo, evaluate};

    /// A report in which the farthest `num_wrong` objects are off by 0.3 d.
    fn report(name: &str, num_wrong: usize, depth_bins: DepthBins) -> Report {
        let dataset = dataset();
        let mut predictions = predictions_of(&dataset);
        for p in predictions.iter_mut().rev().take(num_wrong) {
            p.t_mm[2] += 0.3 * DIAMETER_MM;
        }
        let config = EvalConfig { depth_bins, ..EvalConfig::default() };
        let info = EvaluationInfo { name, list: "testing.txt", left_out: &[], timing: None };
        evaluate(&dataset, &DataConfig::default(), &predictions, &config, info).unwrap().report
    }

    fn line<'a>(text: &'a str, start: &str) -> Vec<&'a str> {
        let line = text.lines().find(|l| l.starts_with(start)).unwrap_or_else(|| panic!("{text}"));
        line[start.len()..].split_whitespace().collect()
    }

    #[test]
    fn the_table_of_a_run_says_what_it_shows() {
        let text = report("full precision", 5, DepthBins::Equal).text();
        assert!(text.starts_with(
            "full precision\ntesting.txt of data/none: 31 images, 30 objects, 1 image without"
        ));
        assert_eq!(line(&text, "percent"), ["near", "medium", "far", "all"]);
        assert_eq!(line(&text, "depth, diameters d"), ["1.5-4.4", "4.4-7.3", "7.3-10.2"]);
        assert_eq!(line(&text, "ADD-0.1d"), ["100.0", "100.0", "50.0", "83.3"]);
        assert_eq!(line(&text, "ADD-0.5d"), ["100.0", "100.0", "100.0", "100.0"]);
        assert_eq!(line(&text, "  95 % interval")[3], "66.4-92.7");
        assert_eq!(line(&text, "found"), ["10", "10", "10", "30"]);
        assert_eq!(line(&text, "ADD-S-0.1d")[0], "100.0");
        assert!(text.contains("ADD: mean distance of corresponding mesh points; published as ADI"));
        assert!(text.contains("depth bins `equal`: three equal widths"));
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
    }

    #[test]
    fn the_papers_bins_tell_what_lies_outside() {
        let text = report("x", 0, DepthBins::Diameter).text();
        assert_eq!(line(&text, "depth, diameters d"), ["1.0-4.0", "4.0-7.0", "7.0-10.0"]);
        assert_eq!(line(&text, "depth, mm"), ["180-720", "720-1260", "1260-1800"]);
        assert!(text.contains("1d-4d-7d-10d, as in the WDR paper; 1 object outside"), "{text}");
    }

    #[test]
    fn a_comparison_has_a_row_a_run_and_the_difference_to_the_first() {
        let full = report("full precision", 5, DepthBins::Equal);
        let low = report("fpn 2-bit (3 levels)", 2, DepthBins::Equal);
        let reports = [&full, &low];
        let text = Comparison::new(&reports).text();
        let headline = &text[text.find("ADD-0.1d\n").unwrap()..];
        assert_eq!(line(headline, "  full precision"), ["100.0", "100.0", "50.0", "83.3"]);
        assert_eq!(line(headline, "  fpn 2-bit (3 levels)"), ["100.0", "100.0", "80.0", "93.3"]);
        assert_eq!(line(headline, "    difference"), ["0.0", "0.0", "+30.0", "+10.0"]);
        assert!(!text.contains("careful"), "{text}");
        assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
        let markdown = Comparison::new(&reports).markdown();
        assert!(markdown.contains("| difference | 0.0 | 0.0 | +30.0 | +10.0 |"), "{markdown}");
    }

    #[test]
    fn runs_that_do_not_compare_are_named() {
        let a = report("a", 0, DepthBins::Equal);
        let mut b = report("b", 0, DepthBins::Equal);
        b.dataset.list = "validation.txt".into();
        let reports = [&a, &b];
        let text = Comparison::new(&reports).text();
        assert!(text.contains("careful: `a` and `b` differ in their images"), "{text}");
        let c = report("c", 0, DepthBins::Diameter);
        let reports = [&a, &c];
        assert!(
            Comparison::new(&reports).text().contains("differ in the number of objects in the")
        );
        assert_eq!(Comparison::new(&[]).text(), "percent\n-------\n\n");
    }

    #[test]
    fn markdown_has_the_same_numbers() {
        let markdown = report("full precision", 5, DepthBins::Equal).markdown();
        assert!(markdown.starts_with("### full precision\n\ntesting.txt of data/none"));
        assert!(markdown.contains("| ADD-0.1d | 100.0 | 100.0 | 50.0 | 83.3 |"), "{markdown}");
    }
}
