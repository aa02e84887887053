//! Why a search ends before its report.

use std::path::PathBuf;

use super::rows::TrialReport;

/// A trial that is not complete.
#[derive(Debug, Clone, serde::Serialize)]
pub struct ListedTrial {
    /// Its name, for `--only`.
    pub name: String,
    /// Its folder.
    #[serde(serialize_with = "crate::io::path_text")]
    pub folder: PathBuf,
    /// `waiting`, `begun` (it goes on from its checkpoint), or `running` in another process.
    pub state: &'static str,
    /// The trials that have to be complete before.
    pub after: Vec<String>,
}

/// Why a search ends before its report.
pub(super) enum Cut {
    Interrupted,
    Ran(TrialReport),
    Listed(Vec<ListedTrial>),
}
