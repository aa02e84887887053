//! The network's shape.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::check_ranges;
use crate::topology::wdr;

/// The shape of a network; the default is the published one for SwissCube, but for the top of its second pyramid.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct NetworkConfig {
    /// Backbone, both pyramids and head.
    #[serde(flatten)]
    pub wdr: wdr::NetworkConfig,
    /// `CaSpaceNet`: factor on the second pyramid where it is subtracted from the first. Published: 1 for SwissCube, 0.1
    /// for SPEED.
    #[schemars(range(min = 0))]
    pub subtract: f64,
    /// `CaSpaceNet`: whether P6 and P7 of both pyramids are the same layers, as in published files. With `subtract` 1 the head then
    /// sees zeros at these levels, whatever the image.
    pub shared_top: bool,
    /// `CaSpaceNet`: whether the second pyramid begins at 0, so that training begins with what the Wide-Depth-Range network
    /// gives; random as published otherwise.
    pub zero_start: bool,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self::of(wdr::NetworkConfig::default())
    }
}

impl NetworkConfig {
    /// The network around a Wide-Depth-Range network of that shape.
    pub fn of(wdr: wdr::NetworkConfig) -> Self {
        Self { wdr, subtract: 1.0, shared_top: false, zero_start: true }
    }

    /// The preset of that topology name: `CaSpaceNet` or `CaSpaceNetTiny`.
    pub fn preset(topology: &str) -> Option<Self> {
        let wdr = match topology {
            "CaSpaceNet" => "Widedepth",
            "CaSpaceNetTiny" => "WidedepthTiny",
            _ => return None,
        };
        wdr::NetworkConfig::preset(wdr).map(Self::of)
    }

    /// Adds each value outside its range, or that does not fit another one, with its place below `at`.
    pub fn check(&self, at: &str, problems: &mut Vec<String>) {
        check_ranges(self, at, problems);
        self.wdr.check_together(at, problems);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn its_keys_stand_beside_those_of_the_other_network() {
        let value = json!({"head_convs": 2, "subtract": 0.1});
        let config: NetworkConfig = crate::schema::parse(value, "x").unwrap();
        assert_eq!((config.wdr.head_convs, config.subtract), (2, 0.1));
        let written = serde_json::to_value(&config).unwrap();
        assert_eq!((&written["head_convs"], &written["shared_top"]), (&json!(2), &json!(false)));
        let error =
            |value| crate::schema::parse::<NetworkConfig>(value, "x").unwrap_err().to_string();
        let text = error(json!({"head_convs": "a"}));
        assert_eq!(text, "x: head_convs: is the text \"a\", expected a whole number");
        let text = error(json!({"substract": 1}));
        assert_eq!(text, "x: substract: unknown key, did you mean subtract?");
        let mut problems = Vec::new();
        let bad = NetworkConfig { subtract: -1.0, ..NetworkConfig::default() };
        bad.check("network", &mut problems);
        assert_eq!(problems, ["network.subtract: -1 is below 0"]);
    }
}
