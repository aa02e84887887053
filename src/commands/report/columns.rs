//! The columns of the comparison: their names and heads.

use std::fmt;
use std::str::FromStr;

use anyhow::{Result, bail};

/// A column of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    /// The family.
    Method,
    /// What the network is.
    Network,
    /// Compression of the paper's count.
    PaperX,
    /// Compression of the file.
    FileX,
    /// Bytes of the file, 1e6.
    Megabytes,
    /// Steps behind it.
    Steps,
    /// Number of runs.
    Runs,
    /// Their seeds.
    Seeds,
    /// `ADI-0.1d` of near objects.
    Near,
    /// `ADI-0.1d` of objects at medium depth.
    Medium,
    /// `ADI-0.1d` of far objects.
    Far,
    /// `ADI-0.1d` of all objects.
    All,
    /// Closest-point distance at 0.1 d, all objects.
    TrueAdi,
    /// Difference to the base.
    Difference,
    /// Its 95 % interval.
    Interval,
    /// Objects that only the row, and that only the base has right.
    Discordant,
    /// McNemar's exact p of each pair of runs.
    Mcnemar,
    /// p of the difference by the bootstrap.
    P,
    /// The same, adjusted for the number of rows.
    Holm,
}

impl Column {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 19] = [
        Self::Method,
        Self::Network,
        Self::PaperX,
        Self::FileX,
        Self::Megabytes,
        Self::Steps,
        Self::Runs,
        Self::Seeds,
        Self::Near,
        Self::Medium,
        Self::Far,
        Self::All,
        Self::TrueAdi,
        Self::Difference,
        Self::Interval,
        Self::Discordant,
        Self::Mcnemar,
        Self::P,
        Self::Holm,
    ];

    /// Those of a table for which none are chosen; `paired` adds the comparison with a base.
    pub(super) fn default_ones(paired: bool) -> Vec<Self> {
        let is_default = |column: &Self| *column != Self::Seeds && (paired || !column.is_paired());
        Self::ALL.into_iter().filter(is_default).collect()
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Network => "network",
            Self::PaperX => "paper-x",
            Self::FileX => "file-x",
            Self::Megabytes => "mb",
            Self::Steps => "steps",
            Self::Runs => "runs",
            Self::Seeds => "seeds",
            Self::Near => "near",
            Self::Medium => "medium",
            Self::Far => "far",
            Self::All => "all",
            Self::TrueAdi => "true-adi",
            Self::Difference => "difference",
            Self::Interval => "interval",
            Self::Discordant => "discordant",
            Self::Mcnemar => "mcnemar",
            Self::P => "p",
            Self::Holm => "holm",
        }
    }

    /// Whether it compares with a base.
    pub fn is_paired(self) -> bool {
        use Column::{Difference, Discordant, Holm, Interval, Mcnemar, P};
        matches!(self, Difference | Interval | Discordant | Mcnemar | P | Holm)
    }

    /// Whether its cells begin at the left.
    pub(super) fn is_text(self) -> bool {
        matches!(self, Self::Method | Self::Network)
    }

    /// Its head in a table for people.
    pub(super) fn head(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Network => "network",
            Self::PaperX => "paper x",
            Self::FileX => "file x",
            Self::Megabytes => "MB",
            Self::Steps => "steps",
            Self::Runs => "runs",
            Self::Seeds => "seeds",
            Self::Near => "ADD-0.1d near, %",
            Self::Medium => "ADD-0.1d medium, %",
            Self::Far => "ADD-0.1d far, %",
            Self::All => "ADD-0.1d all, %",
            Self::TrueAdi => "ADD-S-0.1d, %",
            Self::Difference => "difference",
            Self::Interval => "95 % interval",
            Self::Discordant => "+n -n",
            Self::Mcnemar => "p McNemar",
            Self::P => "p",
            Self::Holm => "p (Holm)",
        }
    }
}

impl fmt::Display for Column {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Column {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(column) = Self::ALL.into_iter().find(|c| c.name() == text) {
            return Ok(column);
        }
        bail!("{text:?} is not a column; there are: {}", joined_by(&Self::ALL, ", "))
    }
}

fn joined_by(columns: &[Column], between: &str) -> String {
    columns.iter().map(|c| c.name()).collect::<Vec<_>>().join(between)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_read_by_the_names_they_print() {
        for column in Column::ALL {
            assert_eq!(column.to_string().parse::<Column>().unwrap(), column);
        }
        let text = "adi".parse::<Column>().unwrap_err().to_string();
        assert!(text.contains("\"adi\" is not a column") && text.contains("true-adi"), "{text}");
    }

    #[test]
    fn a_base_adds_columns() {
        let (without, with) = (Column::default_ones(false), Column::default_ones(true));
        assert_eq!((without.len(), with.len()), (12, 18));
        assert!(!without.iter().any(|c| c.is_paired()));
    }
}
