//! `mqat config`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, select};
use crate::commands;

/// Arguments of `mqat config`.
#[derive(Debug, Clone, Args)]
pub struct ConfigArgs {
    #[command(flatten)]
    pub select: ConfigSelect,

    /// Print the JSON schema of configs instead.
    #[arg(long)]
    pub schema: bool,

    /// Print tables of all keys instead, in Markdown; with FILE, renew the tables in that page (docs/config.md).
    #[arg(long, value_name = "FILE", conflicts_with = "schema")]
    pub markdown: Option<Option<PathBuf>>,
}

pub(super) fn run(args: ConfigArgs) -> Result<()> {
    if args.schema {
        return print_json(&commands::config_schema());
    }
    match args.markdown {
        Some(Some(page)) => return commands::renew_config_tables(&page),
        Some(None) => return print_text(&commands::config_tables()?),
        None => {}
    }
    print_json(&commands::resolve_config(&select(args.select))?)
}
