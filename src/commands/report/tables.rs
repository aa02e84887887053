//! The comparison as text, Markdown and csv.

use std::fmt::Write as _;

use super::summary::{Group, ReportSummary, RunSpread};

/// A percentage with its spread: `57.5 ± 1.2`, or its interval for one run.
pub(super) fn spread(s: &RunSpread) -> String {
    match (s.std_dev, s.interval_95) {
        (Some(sd), _) => format!("{:.1} ± {sd:.1}", s.mean),
        (None, Some((low, high))) => format!("{:.1} ({low:.1}-{high:.1})", s.mean),
        (None, None) => format!("{:.1}", s.mean),
    }
}

/// The column heads.
pub(super) fn head(summary: &ReportSummary) -> Vec<String> {
    let bins = summary.groups.first().map_or(&[][..], |g| &g.headline);
    let mut head: Vec<String> =
        ["method", "network", "paper x", "file x", "MB", "steps", "runs"].map(str::to_owned).into();
    head.extend(bins.iter().map(|b| format!("ADI-0.1d {}, %", b.bin)));
    head.push("true ADI-0.1d, %".to_owned());
    head
}

/// The cells of a row.
pub(super) fn cells(group: &Group) -> Vec<String> {
    let mut cells = vec![
        group.family.to_string(),
        group.network.clone(),
        format!("{:.2}", group.sizes.paper_compression),
        format!("{:.2}", group.sizes.file_compression),
        format!("{:.2}", group.sizes.file_bytes as f64 / 1e6),
        group.global_step.to_string(),
        group.seeds.len().to_string(),
    ];
    cells.extend(group.headline.iter().map(spread));
    cells.push(group.true_adi.last().map(spread).unwrap_or_default());
    cells
}

/// How to read the table.
pub(super) fn notes(summary: &ReportSummary) -> Vec<String> {
    let mut notes = Vec::new();
    if let Some(point) = summary.points.first() {
        let d = &point.report.dataset;
        let synthetic = if d.synthetic { " (synthetic data)" } else { "" };
        notes.push(format!("{} of {}{synthetic}: {} objects.", d.list, d.root, d.num_objects));
        notes.extend(
            point.report.definitions.iter().map(|d| format!("{}: {}.", d.metric, d.meaning)),
        );
    }
    notes.push(
        "Several runs: mean and standard deviation over seeds; one run: percentage with its 95 % interval (Wilson)."
            .to_owned(),
    );
    notes.push(
        "paper x: 32-bit over quantized convolution weights alone. file x and MB: everything that a packed file holds \
         (codes, scales, float layers, biases, norms)."
            .to_owned(),
    );
    notes
}

impl ReportSummary {
    /// The table for a terminal.
    pub fn text(&self) -> String {
        text(self)
    }
}

fn text(summary: &ReportSummary) -> String {
    let head = head(summary);
    let rows: Vec<Vec<String>> =
        std::iter::once(head.clone()).chain(summary.groups.iter().map(cells)).collect();
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max();
    let widths: Vec<usize> = (0..head.len()).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(c, (s, &w))| if c < 2 { format!("{s:<w$}") } else { format!("{s:>w$}") })
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    for note in notes(summary) {
        let _ = writeln!(text, "{note}");
    }
    let _ = writeln!(text, "report in {}", summary.folder.join("index.html").display());
    text
}

/// As Markdown.
pub(super) fn markdown(summary: &ReportSummary) -> String {
    let line = |cells: Vec<String>| format!("| {} |\n", cells.join(" | "));
    let head = head(summary);
    let rule = line(
        head.iter()
            .enumerate()
            .map(|(c, _)| if c < 2 { "---" } else { "---:" }.to_owned())
            .collect(),
    );
    let mut text = line(head) + &rule;
    text.extend(summary.groups.iter().map(|g| line(cells(g))));
    text.push('\n');
    for note in notes(summary) {
        let _ = writeln!(text, "{note}\n");
    }
    text
}

/// As csv with the numbers as they are: a line each group and depth bin.
pub(super) fn csv(summary: &ReportSummary) -> String {
    let mut text = "family,network,paper_compression,file_compression,file_bytes,global_step,num_runs,seeds,bin,\
                    adi_0_1d_mean,adi_0_1d_std_dev,adi_0_1d_low_95,adi_0_1d_high_95,true_adi_0_1d_mean,\
                    true_adi_0_1d_std_dev\n"
        .to_owned();
    let optional = |v: Option<f64>| v.map(|v| v.to_string()).unwrap_or_default();
    for group in &summary.groups {
        let seeds: Vec<String> = group.seeds.iter().map(u64::to_string).collect();
        for (headline, adi) in group.headline.iter().zip(&group.true_adi) {
            let _ = writeln!(
                text,
                "{},\"{}\",{},{},{},{},{},{},{},{},{},{},{},{},{}",
                group.family,
                group.network.replace('"', "\"\""),
                group.sizes.paper_compression,
                group.sizes.file_compression,
                group.sizes.file_bytes,
                group.global_step,
                group.seeds.len(),
                seeds.join(" "),
                headline.bin,
                headline.mean,
                optional(headline.std_dev),
                optional(headline.interval_95.map(|i| i.0)),
                optional(headline.interval_95.map(|i| i.1)),
                adi.mean,
                optional(adi.std_dev)
            );
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_run_has_an_interval_and_several_a_spread() {
        let mut s = RunSpread {
            bin: "all".into(),
            mean: 57.52,
            std_dev: None,
            interval_95: Some((52.6, 62.3)),
        };
        assert_eq!(spread(&s), "57.5 (52.6-62.3)");
        s.std_dev = Some(1.26);
        s.interval_95 = None;
        assert_eq!(spread(&s), "57.5 ± 1.3");
    }
}
