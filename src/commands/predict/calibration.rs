//! Factors of standard deviations that `mqat test` measured.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::commands::test::CHECKPOINTS_FILE;
use crate::eval::{Report, SigmaFactor};
use crate::io;
use crate::pose::RansacConfig;

/// What the standard deviations of poses are multiplied by, and where that was measured.
#[derive(Debug, Clone, Serialize)]
pub struct Calibration {
    /// The `metrics.json`.
    #[serde(serialize_with = "crate::io::path_text")]
    pub metrics: PathBuf,
    /// What was measured, for people.
    pub network: String,
    /// Of the rotation.
    pub rotation: f64,
    /// Of the translation.
    pub translation: f64,
    #[serde(skip)]
    ransac: RansacConfig,
}

impl Calibration {
    /// The factors of a `metrics.json`: of its only report, else of that of `checkpoint`.
    ///
    /// # Errors
    /// If it cannot be read, has several reports and none of that checkpoint, or too few poses to tell a factor.
    pub(super) fn read(metrics: &Path, checkpoint: &Path) -> Result<Self> {
        let at = metrics.display();
        let reports: Vec<Report> = io::read_json(metrics)?;
        let report = match reports.as_slice() {
            [one] => one,
            many => of_checkpoint(metrics, many, checkpoint)?,
        };
        let again = "run `mqat test` again, on images with at least 10 objects that are found";
        let sigma = report.sigma.with_context(|| {
            format!("{at} tells no factors of standard deviations (sigma): {again}")
        })?;
        let translation = sigma.translation.with_context(|| {
            format!("{at} has too few poses to tell the factor of translations: {again}")
        })?;
        if sigma.rotation.is_none() {
            tracing::warn!(
                "{at} tells no factor of rotations (objects with symmetries have none): their standard deviations stay as \
                 they are, those of translations are multiplied by {:.2}",
                translation.factor
            );
        }
        Ok(Self {
            metrics: metrics.to_owned(),
            network: report.name.clone(),
            rotation: sigma.rotation.map_or(1.0, |SigmaFactor { factor, .. }| factor),
            translation: translation.factor,
            ransac: report.config.ransac.clone(),
        })
    }

    /// Says when poses are found otherwise now than where the factors were measured.
    pub(super) fn warn_of_other_settings(&self, ransac: &RansacConfig) {
        if self.ransac != *ransac {
            tracing::warn!(
                "{} was measured with other settings of PnP ({:?}) than are used now ({ransac:?}): its factors need not hold",
                self.metrics.display(),
                self.ransac
            );
        }
    }
}

/// The report of a checkpoint, by the file of names beside `metrics.json`.
fn of_checkpoint<'a>(
    metrics: &Path,
    reports: &'a [Report],
    checkpoint: &Path,
) -> Result<&'a Report> {
    let at = metrics.display();
    ensure!(!reports.is_empty(), "{at} has no report");
    let names = metrics.with_file_name(CHECKPOINTS_FILE);
    let files: Vec<PathBuf> = io::read_json(&names)?;
    let wanted = std::path::absolute(checkpoint)?;
    match files.iter().zip(reports).find(|(file, _)| **file == wanted) {
        Some((_, report)) => Ok(report),
        None => bail!(
            "{at} has {} reports, none of {}: name the metrics.json of a test of that file alone (`mqat test --checkpoint {} \
             --out DIR`)",
            reports.len(),
            wanted.display(),
            checkpoint.display()
        ),
    }
}
