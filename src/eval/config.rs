//! The section `evaluation` of a problem's config.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::pose::bop::BopSettings;
use crate::pose::{DepthBins, RansacConfig};
use crate::schema::above_zero;

/// Most overlays and mesh vertices that a config may ask for.
const MOST: usize = 1_000_000;
/// Most poses of a class that an image may be asked for.
const MOST_INSTANCES: usize = 255;

/// How poses are found in the network's outputs and how they are scored. The confidence threshold is in `data`, the
/// number of cells and their spread are those of the targets in training.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct EvalConfig {
    /// PnP: reprojection threshold at internal resolution and number of draws.
    pub ransac: RansacConfig,
    /// Mesh vertices drawn with replacement, per class, that errors are averaged over.
    #[schemars(range(min = 1, max = MOST))]
    pub num_vertices: usize,
    /// Seed of that draw and of RANSAC's.
    pub seed: u64,
    /// Depth bins of the scores.
    pub depth_bins: DepthBins,
    /// Most poses of a class in an image. `null`: as many as the evaluated images hold at most, 1 where there are no true poses.
    /// With more than 1 the confident cells of a class are clustered by their boxes, and each cluster gives a pose.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = MOST_INSTANCES), extend("default" = Option::<usize>::None))]
    pub instances: Option<usize>,
    /// VSD in a BOP folder: how far behind the measured surface a point still counts as visible, mm; the benchmark has 15, of
    /// ITODD 5.
    #[serde(skip_serializing_if = "is_15")]
    #[schemars(transform = above_zero, extend("default" = 15.0))]
    pub vsd_delta_mm: f64,
    /// Pictures of predicted and true boxes that `mqat test` writes.
    #[schemars(range(max = MOST))]
    pub num_overlays: usize,
}

impl Default for EvalConfig {
    fn default() -> Self {
        Self {
            ransac: RansacConfig::default(),
            num_vertices: 1000,
            seed: 0,
            depth_bins: DepthBins::default(),
            instances: None,
            vsd_delta_mm: 15.0,
            num_overlays: 12,
        }
    }
}

/// What files of before this key stand for.
fn is_15(value: &f64) -> bool {
    *value == 15.0
}

impl EvalConfig {
    /// What the scores of the BOP benchmark are computed with.
    pub fn bop_settings(&self) -> BopSettings {
        BopSettings { vsd_delta_mm: self.vsd_delta_mm, ..BopSettings::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::check_ranges;

    #[test]
    fn the_defaults_are_the_published_ones_and_have_no_problem() {
        let config = EvalConfig::default();
        let mut problems = Vec::new();
        check_ranges(&config, "evaluation", &mut problems);
        assert_eq!(problems, Vec::<String>::new());
        assert_eq!(config.num_vertices, 1000);
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<EvalConfig>(&text).unwrap(), config);
        let error = serde_json::from_str::<EvalConfig>(r#"{"num_vertexes": 1}"#).unwrap_err();
        assert!(error.to_string().contains("num_vertexes"));
    }

    #[test]
    fn every_bad_value_is_told_with_its_key() {
        let config =
            EvalConfig { num_vertices: 0, num_overlays: MOST + 1, ..EvalConfig::default() };
        let mut problems = Vec::new();
        check_ranges(&config, "evaluation", &mut problems);
        for key in ["num_vertices", "num_overlays"] {
            let start = format!("evaluation.{key}: ");
            assert_eq!(
                problems.iter().filter(|p| p.starts_with(&start)).count(),
                1,
                "{problems:?}"
            );
        }
    }
}
