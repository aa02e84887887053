//! The cells of the comparison, for people and as numbers.

use super::columns::Column;
use super::summary::{Group, PairedRow, ReportSummary, RunSpread, p_text};

impl Column {
    /// Its cell in a row, for people.
    pub(super) fn cell(self, group: &Group, paired: Option<&PairedRow>) -> String {
        let of =
            |write: &dyn Fn(&PairedRow) -> String| paired.map_or_else(|| "-".to_owned(), write);
        match self {
            Self::Method => group.family.to_string(),
            Self::Network => group.network.clone(),
            Self::PaperX => format!("{:.2}", group.sizes.paper_compression),
            Self::FileX => format!("{:.2}", group.sizes.file_compression),
            Self::Megabytes => format!("{:.2}", group.sizes.file_bytes as f64 / 1e6),
            Self::Steps => group.global_step.to_string(),
            Self::Runs => group.seeds.len().to_string(),
            Self::Seeds => joined(&group.seeds, u64::to_string),
            Self::Near | Self::Medium | Self::Far | Self::All | Self::TrueAdi => {
                self.spread(group).map(spread).unwrap_or_default()
            }
            Self::Difference => of(&|r| format!("{:+.1}", r.difference.percent)),
            Self::Interval => of(&|r| {
                let (low, high) = r.difference.interval_95;
                format!("{low:+.1} to {high:+.1}")
            }),
            Self::Discordant => of(&|r| {
                joined(&r.runs, |run| {
                    format!("+{} -{}", run.discordant.better, run.discordant.worse)
                })
            }),
            Self::Mcnemar => of(&|r| joined(&r.runs, |run| p_text(run.p))),
            Self::P => of(&|r| p_text(r.difference.p)),
            Self::Holm => of(&|r| p_text(r.p_holm)),
        }
    }

    /// Its columns of numbers as they are, with their names: for csv.
    pub(super) fn values(self, group: &Group, paired: Option<&PairedRow>) -> Vec<(String, String)> {
        let named = |end: &str, value: Option<f64>| {
            let name = format!("{}{end}", self.name().replace('-', "_"));
            (name, value.map(|v| v.to_string()).unwrap_or_default())
        };
        let difference = paired.map(|r| r.difference);
        match self {
            Self::PaperX => vec![named("", Some(group.sizes.paper_compression))],
            Self::FileX => vec![named("", Some(group.sizes.file_compression))],
            Self::Megabytes => vec![("file_bytes".to_owned(), group.sizes.file_bytes.to_string())],
            Self::Near | Self::Medium | Self::Far | Self::All | Self::TrueAdi => {
                let spread = self.spread(group);
                let interval = spread.and_then(|s| s.interval_95);
                vec![
                    named("", spread.map(|s| s.mean)),
                    named("_std_dev", spread.and_then(|s| s.std_dev)),
                    named("_low_95", interval.map(|i| i.0)),
                    named("_high_95", interval.map(|i| i.1)),
                ]
            }
            Self::Difference => vec![
                named("", difference.map(|d| d.percent)),
                named("_std_error", difference.map(|d| d.std_error)),
            ],
            Self::Interval => vec![
                ("difference_low_95".to_owned(), named("", difference.map(|d| d.interval_95.0)).1),
                ("difference_high_95".to_owned(), named("", difference.map(|d| d.interval_95.1)).1),
            ],
            Self::Mcnemar => {
                let all = paired.map(|r| joined(&r.runs, |run| run.p.to_string()));
                vec![("mcnemar_p".to_owned(), all.unwrap_or_default())]
            }
            Self::P => vec![named("", difference.map(|d| d.p))],
            Self::Holm => vec![("p_holm".to_owned(), named("", paired.map(|r| r.p_holm)).1)],
            Self::Discordant if paired.is_none() => vec![named("", None)],
            Self::Method
            | Self::Network
            | Self::Steps
            | Self::Runs
            | Self::Seeds
            | Self::Discordant => vec![(self.name().to_owned(), self.cell(group, paired))],
        }
    }

    fn spread(self, group: &Group) -> Option<&RunSpread> {
        match self {
            Self::TrueAdi => group.true_adi.last(),
            _ => group.headline.iter().find(|s| s.bin == self.name()),
        }
    }
}

fn joined<T>(values: &[T], text: impl Fn(&T) -> String) -> String {
    values.iter().map(text).collect::<Vec<_>>().join("; ")
}

/// A percentage with its spread: `57.5 ± 1.2`, or its interval for one run.
pub(super) fn spread(s: &RunSpread) -> String {
    match (s.std_dev, s.interval_95) {
        (Some(sd), _) => format!("{:.1} ± {sd:.1}", s.mean),
        (None, Some((low, high))) => format!("{:.1} ({low:.1}-{high:.1})", s.mean),
        (None, None) => format!("{:.1}", s.mean),
    }
}

/// The comparison with the base of every row.
pub(super) fn paired_rows(summary: &ReportSummary) -> Vec<Option<&PairedRow>> {
    match &summary.paired {
        Some(paired) => paired.rows.iter().map(Option::as_ref).collect(),
        None => vec![None; summary.groups.len()],
    }
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
