//! `mqat config`.

use anyhow::Result;

use super::args::ConfigArgs;
use super::{print_json, select};
use crate::commands;

pub(super) fn run(args: ConfigArgs) -> Result<()> {
    if args.schema {
        return print_json(&commands::config_schema());
    }
    print_json(&commands::resolve_config(&select(args.select))?)
}
