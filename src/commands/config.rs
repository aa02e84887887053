//! `mqat config`: the config that a command would work with, and the tables of its keys.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::io::write_atomic;
use crate::run::config::TABLES;
use crate::run::{Config, Home, Select};
use crate::schema::{fill_tables, tables};

/// The JSON schema of configs.
pub fn config_schema() -> serde_json::Value {
    crate::run::config::schema()
}

/// Tables of all keys of configs, in Markdown: type, default, range, meaning.
///
/// # Errors
/// If the schema lacks a section.
pub fn config_tables() -> Result<String> {
    tables(&TABLES, &config_schema())
}

/// Makes the tables of a page anew, between the lines `<!-- keys: SECTION -->` and `<!-- end of keys -->`.
///
/// # Errors
/// If the page cannot be read or written, or names a section that is not there.
pub fn renew_config_tables(page: &Path) -> Result<()> {
    let at = page.display();
    let text = fs::read_to_string(page).with_context(|| format!("reading {at}"))?;
    let renewed = fill_tables(&text, &config_schema()).with_context(|| at.to_string())?;
    write_atomic(page, |out| Ok(out.write_all(renewed.as_bytes())?))
}

/// Reads and checks the config that `select` names, with its changes.
///
/// # Errors
/// If there is none, it cannot be read, or values are outside their range.
pub fn resolve_config(select: &Select) -> Result<Config> {
    select.resolve(&Home::find(None, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_configs_has_the_tables_of_this_version() {
        let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/config.md");
        let text = fs::read_to_string(page).unwrap();
        assert!(
            fill_tables(&text, &config_schema()).unwrap() == text,
            "the tables of docs/config.md are not those of this version; renew them: \
             cargo run --release -- config --markdown docs/config.md"
        );
        for section in TABLES {
            let begin = format!("<!-- keys: {section} -->");
            assert_eq!(text.matches(&begin).count(), 1, "{begin} in docs/config.md");
        }
    }

    #[test]
    fn tables_tell_real_defaults_and_ranges() {
        let tables = config_tables().unwrap();
        for row in [
            "| `bs_train` | whole number | `8` | at least 1 |",
            "| `AUGMENTATION_SCALE` | number | `0.1` | 0 to 1 (1 excluded) |",
            "| `stage_units` | list of 5 whole numbers | `[2, 3, 9, 9, 5]` | each 1 to 64 |",
            "| `targets.positive_num` | whole number | `10` | 1 to 1000 |",
            "| `lr.base` | number | `0.01` | above 0 |",
        ] {
            assert!(tables.contains(row), "{row} is not in\n{tables}");
        }
    }
}
