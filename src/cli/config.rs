//! `mqat config`.

use anyhow::Result;

use super::args::ConfigArgs;
use super::{print_json, select};
use crate::experiment;

pub(super) fn run(args: ConfigArgs) -> Result<()> {
    if args.schema {
        return print_schema();
    }
    print_json(&experiment::resolve_config(&select(args.select))?)
}

pub(super) fn print_schema() -> Result<()> {
    print_json(&experiment::config_schema())
}
