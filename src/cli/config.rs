//! `mqat config`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::print::{print_json, print_text};
use super::shared::{ConfigSelect, refuse, select};
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
        return print_schema(&args);
    }
    match args.markdown {
        Some(Some(page)) => return commands::renew_config_tables(&page),
        Some(None) => return print_text(&commands::config_tables()?),
        None => {}
    }
    print_json(&commands::resolve_config(&select(args.select))?)
}

/// The schema of configs; without libtorch, which the launcher does not have.
pub(super) fn print_schema(args: &ConfigArgs) -> Result<()> {
    let why = "the schema is that of every config";
    refuse(&args.select.names.given(), why)?;
    refuse(&[("--seed", args.select.seed.is_some())], why)?;
    print_json(&commands::config_schema())
}
