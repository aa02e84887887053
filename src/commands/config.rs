//! `mqat config`: the config that a command would work with.

use anyhow::Result;

use crate::run::{Config, Home, Select};

/// The JSON schema of configs.
pub fn config_schema() -> serde_json::Value {
    crate::run::config::schema()
}

/// Reads and checks the config that `select` names, with its changes.
///
/// # Errors
/// If there is none, it cannot be read, or values are outside their range.
pub fn resolve_config(select: &Select) -> Result<Config> {
    select.resolve(&Home::find(None, None)?)
}
