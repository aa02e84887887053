//! `mqat config`.

use anyhow::Result;
use clap::Args;

use super::print::print_json;
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
}

pub(super) fn run(args: ConfigArgs) -> Result<()> {
    if args.schema {
        return print_json(&commands::config_schema());
    }
    print_json(&commands::resolve_config(&select(args.select))?)
}
