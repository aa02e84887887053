//! The comparison as text, Markdown, csv, LaTeX and HTML.

use std::fmt::Write as _;
use std::str::FromStr;

use anyhow::{Result, bail};

use super::cells::{paired_rows, spread};
use super::columns::Column;
use super::gather::QuantizationKind;
use super::summary::{PairedReport, ReportSummary};
use crate::pose::{FEW_SEQUENCES, NUM_DRAWS};

/// A form of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TableFormat {
    /// Markdown.
    Markdown,
    /// Comma-separated values, numbers as they are.
    Csv,
    /// A `tabular` of LaTeX, which needs no package.
    Latex,
    /// A `table` of HTML.
    Html,
}

impl FromStr for TableFormat {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "md" => Self::Markdown,
            "csv" => Self::Csv,
            "latex" => Self::Latex,
            "html" => Self::Html,
            _ => bail!("{text:?} is not a format, expected md, csv, latex or html"),
        })
    }
}

/// Heads and cells, and which columns are text.
pub(super) struct Table {
    pub head: Vec<String>,
    pub rows: Vec<Vec<String>>,
    pub num_text: usize,
}

/// The comparison in the columns that are chosen.
pub(super) fn table(summary: &ReportSummary) -> Table {
    let columns = &summary.columns;
    let rows = summary.groups.iter().zip(paired_rows(summary));
    Table {
        head: columns.iter().map(|c| c.head().to_owned()).collect(),
        rows: rows
            .map(|(group, paired)| columns.iter().map(|c| c.cell(group, paired)).collect())
            .collect(),
        num_text: columns.iter().take_while(|c| c.is_text()).count(),
    }
}

/// `ADI-0.1d` of every class, a row each network; none where it is not asked for or there is one class.
pub(super) fn class_table(summary: &ReportSummary) -> Option<Table> {
    let classes = &summary.groups.first()?.classes;
    if !summary.per_class || classes.is_empty() {
        return None;
    }
    let mut head = vec![Column::Method.head().to_owned(), Column::Network.head().to_owned()];
    head.extend(classes.iter().map(|c| format!("{}, %", c.class)));
    let rows = summary.groups.iter().map(|group| {
        let mut cells = vec![group.family.to_string(), group.network.clone()];
        cells.extend(group.classes.iter().map(|c| spread(&c.spread)));
        cells
    });
    Some(Table { head, rows: rows.collect(), num_text: 2 })
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
    if let Some(paired) = &summary.paired {
        notes.extend(paired_notes(summary, paired));
    }
    notes.extend(summary.worse_controls.iter().map(|worse| format!("Warning: {}.", worse.text())));
    notes
}

fn paired_notes(summary: &ReportSummary, paired: &PairedReport) -> Vec<String> {
    let base = &summary.groups[paired.base];
    let unit = if paired.sequences_are_images { "images" } else { "sequences" };
    let mut notes = vec![
        format!(
            "difference: percentage points of ADD-0.1d (published as ADI), row minus {} ({}), on the same {} objects; 95 % interval and p by \
             a bootstrap over {} {unit} and over the runs ({NUM_DRAWS} draws). An interval that holds 0: not resolved.",
            base.family, base.network, paired.num_objects, paired.num_sequences
        ),
        "+n -n: objects that only the row, and that only the base has right; p McNemar: exact test of that, of each pair \
         of runs, as if all objects were independent. p (Holm): p adjusted for the number of rows."
            .to_owned(),
    ];
    if paired.num_sequences < FEW_SEQUENCES {
        notes.push(format!(
            "Only {} {unit}: with fewer than {FEW_SEQUENCES} the intervals are too narrow.",
            paired.num_sequences
        ));
    }
    // The start is one network by nature; of the others a network is one run of a method.
    let runs = summary.groups.iter().filter(|g| g.family != QuantizationKind::Start);
    notes.extend(notes_of_runs(runs.map(|g| g.seeds.len())));
    notes
}

/// What the numbers of runs of the rows leave open.
fn notes_of_runs(runs: impl Iterator<Item = usize> + Clone) -> Vec<String> {
    let mut notes = Vec::new();
    if runs.clone().any(|num| num == 1) {
        notes.push(
            "Rows of one run: interval and p are about that very network, not about its method, of which another seed gives another network; what seeds change is not in them."
                .to_owned(),
        );
    }
    if runs.clone().any(|num| (2..FEW_RUNS).contains(&num)) {
        notes.push(format!(
            "Fewer than {FEW_RUNS} runs of a row: its spread over runs is known badly. The intervals are widened for that (Student's distribution), p far below 0.05, and so p (Holm) of many rows, is still too small."
        ));
    }
    notes
}

/// Below so many runs their spread is known badly.
const FEW_RUNS: usize = 5;

impl ReportSummary {
    /// The table for a terminal.
    pub fn text(&self) -> String {
        let mut text = aligned(&table(self));
        if let Some(classes) = class_table(self) {
            text += &format!("\nADD-0.1d of each class over all depths\n{}\n", aligned(&classes));
        }
        for note in notes(self) {
            let _ = writeln!(text, "{note}");
        }
        let _ = writeln!(text, "report in {}", self.folder.join("index.html").display());
        text
    }

    /// The tables alone in another form.
    pub fn formatted(&self, format: TableFormat) -> String {
        match format {
            TableFormat::Csv => csv(self),
            TableFormat::Latex => latex(self),
            TableFormat::Markdown => markdown_tables(self),
            TableFormat::Html => {
                let tables = std::iter::once(table(self)).chain(class_table(self));
                tables
                    .map(|t| html(if t.num_text > 1 { "wide" } else { "" }, &t.head, &t.rows))
                    .collect()
            }
        }
    }
}

fn aligned(table: &Table) -> String {
    let rows: Vec<&Vec<String>> = std::iter::once(&table.head).chain(&table.rows).collect();
    let width = |c: usize| rows.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max();
    let widths: Vec<usize> = (0..table.head.len()).map(|c| width(c).unwrap_or(0)).collect();
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(
                |(c, (s, &w))| {
                    if c < table.num_text { format!("{s:<w$}") } else { format!("{s:>w$}") }
                },
            )
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// As Markdown.
pub(super) fn markdown(summary: &ReportSummary) -> String {
    let mut text = markdown_tables(summary);
    text.push('\n');
    for note in notes(summary) {
        let _ = writeln!(text, "{note}\n");
    }
    text
}

fn markdown_tables(summary: &ReportSummary) -> String {
    let mut text = markdown_table(&table(summary));
    if let Some(classes) = class_table(summary) {
        text +=
            &format!("\nADD-0.1d of each class over all depths:\n\n{}", markdown_table(&classes));
    }
    text
}

fn markdown_table(table: &Table) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let rule = |c: usize| if c < table.num_text { "---" } else { "---:" }.to_owned();
    let rules: Vec<String> = (0..table.head.len()).map(rule).collect();
    let mut text = line(&table.head) + &line(&rules);
    text.extend(table.rows.iter().map(|row| line(row)));
    text
}

/// As LaTeX, with the notes as comments.
pub(super) fn latex(summary: &ReportSummary) -> String {
    let mut text = latex_table(&table(summary));
    if let Some(classes) = class_table(summary) {
        text += &format!("\n% ADD-0.1d of each class over all depths\n{}", latex_table(&classes));
    }
    for note in notes(summary) {
        let _ = writeln!(text, "% {note}");
    }
    text
}

fn latex_table(table: &Table) -> String {
    let line = |cells: &[String]| {
        let cells: Vec<String> = cells.iter().map(|c| latex_text(c)).collect();
        format!("  {} \\\\\n", cells.join(" & "))
    };
    let kinds: String =
        (0..table.head.len()).map(|c| if c < table.num_text { 'l' } else { 'r' }).collect();
    let mut text =
        format!("\\begin{{tabular}}{{{kinds}}}\n  \\hline\n{}  \\hline\n", line(&table.head));
    text.extend(table.rows.iter().map(|row| line(row)));
    text + "  \\hline\n\\end{tabular}\n"
}

/// Text without what LaTeX reads as commands; minus signs and inequalities in mathematics.
fn latex_text(text: &str) -> String {
    let mut out = String::new();
    let mut before = ' ';
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        let in_range = before.is_ascii_digit() && rest.peek().is_some_and(char::is_ascii_digit);
        match c {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => out.extend(['\\', c]),
            '\\' => out.push_str("\\textbackslash{}"),
            '~' => out.push_str("\\textasciitilde{}"),
            '^' => out.push_str("\\textasciicircum{}"),
            '±' => out.push_str("$\\pm$"),
            '<' => out.push_str("$<$"),
            '>' => out.push_str("$>$"),
            '-' if in_range => out.push_str("--"),
            '-' if before == ' ' && text.len() > 1 => out.push_str("$-$"),
            c => out.push(c),
        }
        before = c;
    }
    out
}

/// As csv with the numbers as they are: a line each row in the columns of the table where columns, classes or a comparison
/// with a base are asked for; else a line each row and depth bin.
pub(super) fn csv(summary: &ReportSummary) -> String {
    match summary.columns_chosen || summary.per_class || summary.paired.is_some() {
        true => csv_of_columns(summary),
        false => csv_of_bins(summary),
    }
}

fn csv_of_columns(summary: &ReportSummary) -> String {
    let mut lines: Vec<String> = Vec::new();
    for (group, paired) in summary.groups.iter().zip(paired_rows(summary)) {
        let mut values: Vec<(String, String)> =
            summary.columns.iter().flat_map(|c| c.values(group, paired)).collect();
        if summary.per_class {
            let of_class = |c: &super::summary::ClassSpread| {
                let name = |end: &str| format!("class {}{end}", c.class);
                let sd = c.spread.std_dev.map(|v| v.to_string()).unwrap_or_default();
                [(name(""), c.spread.mean.to_string()), (name(" std_dev"), sd)]
            };
            values.extend(group.classes.iter().flat_map(of_class));
        }
        let (names, cells): (Vec<String>, Vec<String>) =
            values.into_iter().map(|(name, value)| (quoted(&name), quoted(&value))).unzip();
        if lines.is_empty() {
            lines.push(names.join(","));
        }
        lines.push(cells.join(","));
    }
    lines.join("\n") + "\n"
}

/// A field of csv; in quotes where it has what divides fields.
fn quoted(field: &str) -> String {
    match field.contains([',', '"', '\n', '\r']) {
        true => format!("\"{}\"", field.replace('"', "\"\"")),
        false => field.to_owned(),
    }
}

fn csv_of_bins(summary: &ReportSummary) -> String {
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

/// As a table of HTML.
pub(super) fn html(class: &str, head: &[String], rows: &[Vec<String>]) -> String {
    let line = |tag: &str, cells: &[String]| {
        let cells: String = cells.iter().map(|c| format!("<{tag}>{}</{tag}>", escape(c))).collect();
        format!("<tr>{cells}</tr>\n")
    };
    let body: String = rows.iter().map(|row| line("td", row)).collect();
    format!("<table class=\"{class}\">\n{}{body}</table>\n", line("th", head))
}

/// Text without what HTML reads as marks.
pub(super) fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::super::summary::{ClassSpread, Group, RunSpread};
    use super::*;
    use crate::quant::size::sizes;

    #[test]
    fn text_is_escaped_and_tables_are_closed() {
        let table = html("wide", &["a<b".to_owned()], &[vec!["\"x\" & y".to_owned()]]);
        assert!(
            table.contains("<th>a&lt;b</th>") && table.contains("<td>&quot;x&quot; &amp; y</td>")
        );
        assert!(table.starts_with("<table class=\"wide\">") && table.ends_with("</table>\n"));
    }

    #[test]
    fn latex_reads_every_cell_as_text() {
        for (text, expected) in [
            ("57.5 ± 1.3", "57.5 $\\pm$ 1.3"),
            ("57.5 (52.6-62.3)", "57.5 (52.6--62.3)"),
            ("-5.5 to +1.4", "$-$5.5 to +1.4"),
            ("+14 -13", "+14 $-$13"),
            ("< 0.001", "$<$ 0.001"),
            ("a_b & 10 % {x}", "a\\_b \\& 10 \\% \\{x\\}"),
            ("fpn 2-bit (3 levels)", "fpn 2-bit (3 levels)"),
            ("layer-wise (HAWQ-V3)", "layer-wise (HAWQ-V3)"),
            ("-", "-"),
            ("\\^~", "\\textbackslash{}\\textasciicircum{}\\textasciitilde{}"),
        ] {
            assert_eq!(latex_text(text), expected);
        }
        let (head, rows) = (vec!["n".to_owned(), "%".to_owned()], vec![vec!["x".to_owned(); 2]]);
        assert_eq!(
            latex_table(&Table { head, rows, num_text: 1 }),
            "\\begin{tabular}{lr}\n  \\hline\n  n & \\% \\\\\n  \\hline\n  x & x \\\\\n  \\hline\n\\end{tabular}\n"
        );
    }

    #[test]
    fn few_runs_are_noted() {
        let notes = |runs: &[usize]| notes_of_runs(runs.iter().copied()).join(" ");
        assert_eq!(notes(&[5, 6]), "");
        assert!(
            notes(&[5, 1]).contains("not about its method") && !notes(&[5, 1]).contains("Fewer")
        );
        assert!(notes(&[5, 4]).contains("Fewer than 5 runs") && !notes(&[4]).contains("one run:"));
    }

    #[test]
    fn csv_has_the_base_and_the_classes_without_chosen_columns() {
        let spread = |bin: &str| RunSpread {
            bin: bin.to_owned(),
            mean: 50.0,
            std_dev: None,
            interval_95: None,
        };
        let group = Group {
            network: "full precision".to_owned(),
            family: QuantizationKind::FullPrecision,
            sizes: sizes(&[], 0),
            global_step: 1,
            seeds: vec![1],
            headline: ["near", "medium", "far", "all"].map(spread).to_vec(),
            true_adi: vec![spread("all")],
            classes: vec![ClassSpread { class: "satellite".to_owned(), spread: spread("all") }],
            runs: vec![0],
        };
        let mut summary = ReportSummary {
            synthetic_data: false,
            groups: vec![group],
            paired: None,
            worse_controls: Vec::new(),
            columns: Column::default_ones(false),
            columns_chosen: false,
            per_class: false,
            points: Vec::new(),
            left_out: Vec::new(),
            folder: Default::default(),
        };
        assert_eq!(csv(&summary).lines().count(), 2);
        assert!(csv(&summary).starts_with("family,network,paper_compression"));
        summary.per_class = true;
        assert!(
            csv(&summary)
                .lines()
                .next()
                .unwrap()
                .ends_with(",class satellite,class satellite std_dev")
        );
        summary.per_class = false;
        summary.columns = Column::default_ones(true);
        summary.paired = Some(PairedReport {
            base: 0,
            num_objects: 2,
            num_sequences: 2,
            sequences_are_images: false,
            rows: vec![None],
        });
        assert!(csv(&summary).lines().next().unwrap().ends_with(",discordant,mcnemar_p,p,p_holm"));
    }

    #[test]
    fn fields_of_csv_are_quoted_where_they_must_be() {
        assert_eq!(quoted("a b"), "a b");
        assert_eq!(quoted("a \"b\", c"), "\"a \"\"b\"\", c\"");
    }
}
