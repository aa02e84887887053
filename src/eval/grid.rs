//! Tables of text: for the terminal and as Markdown.

/// Widest line of a terminal table, characters.
pub(super) const WIDTH: usize = 100;
/// Narrowest column of numbers.
const LEAST_COLUMN: usize = 8;

/// A table: the first column is text (left), the others numbers (right).
#[derive(Debug, Clone, Default)]
pub(super) struct TextTable {
    /// Head of each column.
    pub(super) head: Vec<String>,
    /// Rows; an empty row is a gap.
    pub(super) rows: Vec<Vec<String>>,
}

impl TextTable {
    pub(super) fn new(head: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { head: head.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// Adds a row: its name and a cell for each further column.
    pub(super) fn row(
        &mut self,
        name: impl Into<String>,
        cells: impl IntoIterator<Item = impl Into<String>>,
    ) {
        let row = std::iter::once(name.into()).chain(cells.into_iter().map(Into::into)).collect();
        self.rows.push(row);
    }

    pub(super) fn gap(&mut self) {
        self.rows.push(Vec::new());
    }

    /// Aligned lines, each ended; two blanks between columns, under the head a rule.
    pub(super) fn text(&self) -> String {
        let widths: Vec<usize> = (0..self.head.len())
            .map(|c| {
                let of_cells = self.all_rows().filter_map(|r| r.get(c)).map(|s| s.chars().count());
                of_cells.max().unwrap_or(0).max(if c == 0 { 0 } else { LEAST_COLUMN })
            })
            .collect();
        let total = widths.iter().sum::<usize>() + 2 * widths.len().saturating_sub(1);
        let mut text = String::new();
        for (i, row) in self.all_rows().enumerate() {
            let cells: Vec<String> = row
                .iter()
                .zip(&widths)
                .enumerate()
                .map(|(c, (s, &w))| if c == 0 { format!("{s:<w$}") } else { format!("{s:>w$}") })
                .collect();
            text.push_str(cells.join("  ").trim_end());
            text.push('\n');
            if i == 0 {
                text.push_str(&"-".repeat(total));
                text.push('\n');
            }
        }
        text
    }

    /// A Markdown table; gaps are left out.
    pub(super) fn markdown(&self) -> String {
        let line = |row: &[String]| {
            let cells: Vec<String> =
                row.iter().map(|s| s.trim().replace('|', "\\|").replace('\n', " ")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let rule: Vec<&str> =
            (0..self.head.len()).map(|c| if c == 0 { "---" } else { "---:" }).collect();
        let mut text = line(&self.head);
        text.push_str(&format!("| {} |\n", rule.join(" | ")));
        for row in self.rows.iter().filter(|r| !r.is_empty()) {
            text.push_str(&line(row));
        }
        text
    }

    fn all_rows(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.head).chain(&self.rows)
    }
}

/// A number with `digits` decimals, or `-`.
pub(super) fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(|| "-".to_owned(), |v| format!("{v:.digits$}"))
}

/// A difference with its sign, or `-`.
pub(super) fn difference(value: Option<f64>, digits: usize) -> String {
    value.map_or_else(
        || "-".to_owned(),
        |v| {
            let text = format!("{v:+.digits$}");
            // Rounding may leave a zero with a minus.
            if text.trim_start_matches(['+', '-', '0', '.']).is_empty() {
                text.replace(['-', '+'], "")
            } else {
                text
            }
        },
    )
}

/// `low-high` with `digits` decimals, or `-`.
pub(super) fn range(limits: Option<(f64, f64)>, digits: usize) -> String {
    limits.map_or_else(|| "-".to_owned(), |(low, high)| format!("{low:.digits$}-{high:.digits$}"))
}

/// Breaks `text` at blanks into lines of at most [`WIDTH`] characters; later lines are indented.
pub(super) fn wrap(text: &str, indent: &str) -> String {
    let mut lines = String::new();
    let mut line = String::new();
    for word in text.split_whitespace() {
        if !line.is_empty() && line.chars().count() + 1 + word.chars().count() > WIDTH {
            lines.push_str(&line);
            lines.push('\n');
            line = indent.to_owned();
            line.push_str(word);
        } else {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines.push_str(&line);
    lines.push('\n');
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_aligned_and_markdown_escapes() {
        let mut grid = TextTable::new(["percent", "near", "all"]);
        grid.row("ADI-0.1d", ["92.4", "100.0"]);
        grid.gap();
        grid.row("a|b", [number(None, 1), difference(Some(-0.04), 1)]);
        assert_eq!(
            grid.text(),
            "percent       near       all\n\
             ----------------------------\n\
             ADI-0.1d      92.4     100.0\n\
             \n\
             a|b              -       0.0\n"
        );
        assert_eq!(
            grid.markdown(),
            "| percent | near | all |\n| --- | ---: | ---: |\n| ADI-0.1d | 92.4 | 100.0 |\n| a\\|b | - | 0.0 |\n"
        );
    }

    #[test]
    fn numbers_have_signs_and_dashes() {
        assert_eq!(difference(Some(3.25), 1), "+3.2");
        assert_eq!(difference(Some(-0.6), 1), "-0.6");
        assert_eq!(difference(Some(10.0), 0), "+10");
        assert_eq!(difference(None, 1), "-");
        assert_eq!(range(Some((1.0, 4.26)), 1), "1.0-4.3");
    }

    #[test]
    fn long_text_breaks_at_blanks() {
        let text = wrap(&"word ".repeat(50), "  ");
        assert!(text.lines().all(|l| l.chars().count() <= WIDTH));
        assert!(text.lines().skip(1).all(|l| l.starts_with("  word")));
        assert_eq!(text.split_whitespace().count(), 50);
    }
}
